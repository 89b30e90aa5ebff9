"""Whoever calls: compiled code in threads, in callbacks, in forks, from a cache, with any of Numba's options."""

import ctypes
import importlib.metadata
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numba import carray, cfunc, njit, types

import fastrelu
from tests.jitting import assert_same, function, some
from tests.subprocesses import call, run


def iterations() -> None:
    """Loops that Numba divides among its threads; the first calls of the process come from these."""
    from numba import prange

    @njit(parallel=True)
    def forward(x, w, b, y, h):
        for i in prange(len(x)):
            h[i] = fastrelu.relu(x[i])
            y[i] = fastrelu.linear_relu(x[i : i + 1], w, b)[0]

    @njit
    def only_dx(y, w, dx):
        fastrelu.linear_relu_backward(y, y, None, w, out=(dx, None, None), wanted=("dx",))

    @njit(parallel=True)
    def backward(y, x, w, dx):
        for i in prange(len(x)):
            # Numba would move a literal tuple out of the loop, and then no longer know what it names.
            only_dx(y[i : i + 1], w, dx[i : i + 1])
            dx[i] += fastrelu.linear_relu_backward(y[i : i + 1], y[i : i + 1], x[i : i + 1], w)[0][0]

    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((300, 40), (40, 50), (50,)))
    for _ in range(3):
        y, h, dx = np.empty((300, 50), np.float32), np.empty_like(x), np.empty_like(x)
        forward(x, w, b, y, h)
        backward(y, x, w, dx)
        assert_same(h, fastrelu.relu(x))
        assert_same(y, fastrelu.linear_relu(x, w, b))
        assert_same(dx, 2 * fastrelu.linear_relu_backward(y, y, x, w)[0])


@pytest.mark.parametrize("layer", ["omp", pytest.param("workqueue", marks=pytest.mark.nightly)])
def test_parallel_loops(layer: str) -> None:
    env = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4", "FASTRELU_NUM_THREADS": "3"}
    call(iterations, env=env, timeout=200)


def first_use_of_many(nogil: bool) -> None:
    """Threads that compile and call at once what nobody has called before, compiled callers beside Python."""
    kinds = [types.Array(types.float32, axes, "C") for axes in (2, 2)]
    relu = function("x", "relu(x)", kinds[0], nogil=nogil)
    layer = function("x, w", "linear_relu(x, w)", *kinds, nogil=nogil)
    x, a, w = some("float32", 40, 30), np.ones((40, 30), np.float32), np.ones((30, 50), np.float32)
    barrier, found = threading.Barrier(8), []

    def work(number: int) -> None:
        barrier.wait()
        if number == 0:
            njit(lambda x: fastrelu.relu(x))(x)
        for _ in range(200):
            found.append((relu(x), (layer if number % 2 else fastrelu.linear_relu)(a, w)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = (fastrelu.relu(x), fastrelu.linear_relu(a, w))
    assert len(found) == 1600
    for results in found:
        assert_same(results, expected)


@pytest.mark.parametrize("nogil", [True, False])
def test_first_use_by_many_threads(nogil: bool) -> None:
    call(first_use_of_many, nogil, timeout=200)


@pytest.mark.parametrize("options", [{"fastmath": True}, {"boundscheck": True}, {"error_model": "numpy"}])
def test_options_of_the_caller_change_no_bit(options: dict) -> None:
    x = some("float32", 3000)
    names = ["elu(x, 0.5)", "softplus_backward(x, x[::-1])", "linear_tanh(x[:30].reshape(5, 6), x[100:160].reshape(6, 10))"]
    plain_call = function("x", f"({', '.join(names)})")
    assert_same(function("x", f"({', '.join(names)})", **options)(x), plain_call.py_func(x))
    dx = "prelu_backward(x.reshape(1000, 3), x[::-1].copy().reshape(1000, 3), x[7:10])"
    assert_same(function("x", dx, **options)(x), function("x", dx).py_func(x))


# Callbacks.


def in_callbacks() -> None:
    @cfunc(types.void(types.CPointer(types.double), types.CPointer(types.double), types.intp))
    def callback(x, y, n):
        from_x, to_y = carray(x, (n,)), carray(y, (n,))
        fastrelu.relu(from_x, out=to_y)
        to_y[0] = fastrelu.sigmoid(from_x[0])

    @cfunc(types.intp(types.CPointer(types.double)))
    def start(memory):
        values = carray(memory, (100, 10))
        values[1:] = fastrelu.linear_relu(values[1:], values[:10].copy())
        return 0

    x, y = some("float64", 50), np.zeros(50)
    pointers = [a.ctypes.data_as(ctypes.POINTER(ctypes.c_double)) for a in (x, y)]
    callback.ctypes(*pointers, 50)
    expected = fastrelu.relu(x)
    expected[0] = fastrelu.sigmoid(x)[0]
    assert_same(y, expected)
    if sys.platform == "win32":
        return
    # A thread that Python has never heard of makes the first call of this layer.
    library, thread = ctypes.CDLL(None), ctypes.c_ulong()
    values = np.random.default_rng(0).standard_normal((100, 10))
    expected = values.copy()
    arguments = ctypes.byref(thread), None, ctypes.c_void_p(start.address), ctypes.c_void_p(values.ctypes.data)
    assert library.pthread_create(*arguments) == 0
    assert library.pthread_join(thread, None) == 0
    expected[1:] = fastrelu.linear_relu(expected[1:], expected[:10].copy())
    assert_same(values, expected)


def test_callbacks() -> None:
    call(in_callbacks, timeout=100)


def test_wrong_shapes_are_caught_in_compiled_code() -> None:
    @njit
    def guarded(x, w):
        try:
            fastrelu.relu_backward(x, w)
            return fastrelu.linear_relu(x, w.reshape(-1, 1))[0]
        except Exception:
            return -1.0

    assert guarded(np.ones(3), np.ones(3)) == 3
    assert guarded(np.ones(3), np.ones(4)) == -1
    # Nothing is left behind.
    assert guarded(np.ones(2), np.ones(2)) == 2


# Caches of the caller's.

MODULE = """
import fastrelu
from fastrelu import linear_relu as layer
from numba import njit

@njit(cache=True)
def network(x, w):
    h = layer(x, w)
    for i in range(h.shape[0]):
        h[i, 0] = fastrelu.elu(h[i, 0] - 3.0, 0.5)
    fastrelu.tanh(h, out=h)
    return fastrelu.linear_relu_backward(h, h, x, w)
"""

USER = """
import sys, hashlib
sys.path.insert(0, {folder!r})
import numpy as np
from tests import jitting
from module import network
x = np.random.default_rng(0).standard_normal((9, 7)).astype(np.float32)
w = np.random.default_rng(1).standard_normal((7, 20)).astype(np.float32)
found = network(x, w)
assert sum(network.stats.cache_{expected}.values()) == 1, network.stats
print(hashlib.sha256(b"".join(a.tobytes() for a in found)).hexdigest())
"""


@pytest.mark.parametrize("kernels", [pytest.param("empty", marks=pytest.mark.nightly), None])
def test_cache_of_the_caller(tmp_path: Path, kernels: str | None) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    first = run(USER.format(folder=str(tmp_path), expected="misses"), env, 200)
    if kernels is not None:
        env["FASTRELU_CACHE_DIR"] = str(tmp_path / "kernels")
    second = run(USER.format(folder=str(tmp_path), expected="hits"), env, 300)
    assert first == second


@pytest.mark.skipif(
    not any(e.value.startswith("fastrelu.") for e in importlib.metadata.entry_points(group="numba_extensions")),
    reason="the package is not installed",
)
def test_numba_finds_the_functions_by_itself() -> None:
    code = (
        "from fastrelu import relu\nfrom numba import njit\nprint(njit(lambda x: relu(x))(-1.5), njit(lambda x: relu(x))(2.5))"
    )
    assert run(code) == "0.0 2.5\n"


# What goes wrong.


def without_kernels() -> None:
    from fastrelu.native import entries

    def fail(key):
        raise OSError("no kernel for " + key)

    entries.address = fail
    sys.unraisablehook = lambda args: print(args.exc_value)
    relu = function("x", "relu(x)")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the kernel could not be made"):
            relu(np.ones(3))
    print(relu(2.0))


def test_no_kernel_is_an_error_that_can_be_caught() -> None:
    assert call(without_kernels) == "no kernel for relu float64\n" * 2 + "2.0\n"


def forked() -> None:
    relu, layer = function("x", "relu(x)"), function("x, w", "linear_relu(x, w)")
    x, w = some("float32", 1_500_000), np.ones((300, 400), np.float32)

    def is_right() -> bool:
        return (relu(x)[::7] == fastrelu.relu(x[::7].copy())).sum() > 100_000 and (layer(w, w.T) == 400).all()

    assert is_right()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            fresh = function("x", "elu(x)")(x[:100])
            status = 0 if is_right() and len(fresh) == 100 else 1
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert is_right()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_after_use() -> None:
    call(forked, env={"FASTRELU_NUM_THREADS": "4"}, timeout=200)


def many_calls() -> None:
    @njit
    def loop(x, w, b):
        total = 0.0
        for _ in range(20_000):
            total += fastrelu.relu(x)[0, 0] + fastrelu.linear_relu(x, w, b)[0, 0]
            total += fastrelu.linear_relu(x, w, b, out=np.empty((4, 30), np.float32))[0, 0]
            total += fastrelu.relu(x.T, out=x.T)[0, 0]
        return total

    def resident() -> int:
        return int(re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())[1])

    x, w, b = (np.abs(some("float32", *shape)) for shape in ((4, 20), (20, 30), (30,)))
    loop(x, w, b)
    before = resident()
    for _ in range(4):
        loop(x, w, b)
    # An array of a call is 320 bytes or more: lost ones would be 20 MiB at the least.
    assert resident() - before < 4_000, (before, resident())


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux only")
def test_memory_is_given_back() -> None:
    call(many_calls, timeout=200)
