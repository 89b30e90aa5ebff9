"""Nothing grows: resident memory stays flat over many calls of every operation, calls that raise, and threads that end.

Each test runs in a process of its own, in rounds. What the first round leaves behind (loops, caches, what the allocator keeps)
may stay. An array that is lost at each call, 112 bytes and more, shows in the normal run; the smallest thing that can be lost,
16 bytes, in the nightly one.
"""

import contextlib
import ctypes
import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastrelu
import fastrelu.ufuncs
from fastrelu.operations import BACKWARD, LAYERS, OPERATIONS, backward_variants
from tests.subprocesses import call
from tests.test_linear_threads import STRICT_MALLOC, memory, needs_proc

pytestmark = needs_proc

SLACK = 512 << 10
"""Bytes: a few runs of pages that one allocator or another asks for at once. malloc's arenas grow by 132 KB, Python's by 1 MB
(256 KB until 3.10), of which only what is touched counts."""
NORMAL, NIGHTLY = 1_000, 20_000
ROUNDS = 5

Call = Callable[[], Any]


def resident() -> int:
    gc.collect()
    with contextlib.suppress(AttributeError):  # of glibc: gives back what is free
        ctypes.CDLL(None).malloc_trim(0)
    return memory("VmRSS")


def assert_flat(calls: list[Call], count: int) -> None:
    """Make each call `count` times a round. Memory must not grow after the first round."""
    # Else Linux may put a large page, 2 MB, at any time in the place of small ones of which few are used.
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE
    sizes = []
    for _ in range(ROUNDS):
        for run in calls:
            for _ in itertools.repeat(None, count):
                run()
        sizes.append(resident())
    assert max(sizes) - sizes[0] <= SLACK, [size - sizes[0] for size in sizes]


def elementwise() -> Iterator[Call]:
    """Every elementwise function, and the ufunc behind it: with a new result, with `out`, and as it is called otherwise."""
    rng = np.random.default_rng(0)
    for name, operation in OPERATIONS.items():
        x = rng.standard_normal(10).astype(np.float32)
        alpha = np.float32(0.5)
        operands = [alpha if i == operation.parameter else x for i in range(len(operation.inputs))]
        out = np.empty_like(x)
        ufunc = getattr(fastrelu.ufuncs, name)
        yield lambda ufunc=ufunc, operands=operands: ufunc(*operands)
        if name == "prelu_alpha_gradient":
            continue
        function = getattr(fastrelu, name)
        yield lambda function=function, operands=operands: function(*operands)
        if name != "prelu_backward":
            yield lambda function=function, operands=operands, out=out: function(*operands, out=out)
            yield lambda ufunc=ufunc, operands=operands, out=out: ufunc(*operands, out=out, where=out > 0)
    halves = np.ones(10, ml_dtypes.bfloat16)
    yield lambda: fastrelu.tanh(halves)
    yield lambda: fastrelu.relu([1, 2, 3])
    yield lambda: fastrelu.relu(-3)
    yield lambda: fastrelu.relu(x[::-2], dtype=np.float64)
    yield lambda: fastrelu.relu.at(x, [0, 1])


def layers() -> Iterator[Call]:
    """Every fused layer: with and without a bias, packed, with a mask; and what is done with packed weights."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((3, 4), (4, 5), 5))
    packed, out = fastrelu.pack(w), np.empty((3, 5), np.float32)
    for name in sorted({layer.base for layer in LAYERS.values()}):
        function = getattr(fastrelu, name)
        alpha = (0.25,) if LAYERS[name].alpha else ()
        biases = (b, None)
        for weight, bias in itertools.product((w, packed), biases):
            operands = (x, weight, bias, *alpha)
            yield lambda function=function, operands=operands: function(*operands)
            yield lambda function=function, operands=operands: function(*operands, out=out)
    for weight in (w, packed):
        yield lambda weight=weight: fastrelu.linear_relu(x, weight, b, mask=np.empty((3, 1), np.uint8))
    yield lambda: fastrelu.linear_relu(x.tolist(), w, b)
    yield lambda: fastrelu.pack(w)
    yield lambda: packed.update(w)
    yield packed.unpack
    yield lambda: packed.matches(w)


def gradients() -> Iterator[Call]:
    """Every backward pass: all gradients and some of them, new and added; from bits; batches of weights; bare ufuncs."""
    rng = np.random.default_rng(0)
    dy, x, w = (rng.standard_normal(s).astype(np.float32) for s in ((3, 5), (3, 4), (4, 5)))
    mask = np.packbits(dy > 0, axis=-1, bitorder="little")
    out = np.zeros_like(x), np.zeros_like(w), np.zeros(5, np.float32)
    for name, layer in BACKWARD.items():
        function = getattr(fastrelu, name)
        operands = (dy, dy, x, w) if layer.formula else (dy, x, w)
        yield lambda function=function, operands=operands: function(*operands)
        yield lambda function=function, operands=operands: function(*operands, out=out, accumulate=("dw", "db"))
        yield lambda function=function, operands=operands: function(*operands, wanted=("dw", "db"))
        ufunc = getattr(fastrelu.ufuncs, name)
        given = [*operands, 0.25] if layer.alpha else operands
        yield lambda ufunc=ufunc, given=given: ufunc(*given)
    yield lambda: fastrelu.linear_relu_backward(dy, mask, x, w)
    yield lambda: fastrelu.linear_relu_backward(dy, mask, x, None, wanted=("dw",))
    yield lambda: fastrelu.linear_relu_backward(dy[None], dy[None], x[None], w[None])


def settings() -> Iterator[Call]:
    def within() -> None:
        with fastrelu.num_threads(2):
            pass

    yield within
    yield lambda: fastrelu.set_num_threads(3)
    yield fastrelu.release_memory
    yield fastrelu.get_num_threads


def raising() -> Iterator[Call]:
    """Calls with one fault each."""
    x, w, b = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32), np.ones(5, np.float32)
    dy, packed = np.ones((3, 5), np.float32), fastrelu.pack(w)
    read_only = np.ones((3, 5), np.float32)
    read_only.flags.writeable = False
    faults: list[Call] = [
        lambda: fastrelu.relu(np.ones(3), out=np.ones(4)),
        lambda: fastrelu.relu("text"),
        lambda: fastrelu.relu(x, out=x, where=np.ones(7, bool)),
        lambda: fastrelu.tanh(np.ones(3, complex)),
        lambda: fastrelu.relu_backward(np.ones(3), np.ones(4)),
        lambda: fastrelu.elu(x, alpha="a"),
        lambda: fastrelu.relu(x, nonsense=1),
        lambda: fastrelu.relu(),  # type: ignore[call-arg]
        lambda: fastrelu.linear_relu(x, w[1:], b),
        lambda: fastrelu.linear_relu(x, w, b[1:]),
        lambda: fastrelu.linear_relu(x.astype(complex), w, b),
        lambda: fastrelu.linear_relu(x, w, b, out=np.ones((3, 6), np.float32)),
        lambda: fastrelu.linear_relu(x, w, b, out=read_only),
        lambda: fastrelu.linear_relu(x, packed, b[1:]),
        lambda: fastrelu.linear_relu(x, w, b, mask=np.ones((3, 2), np.uint8)),
        lambda: fastrelu.linear_relu_backward(dy, dy, x[1:], w),
        lambda: fastrelu.linear_relu_backward(dy, dy, x.astype(complex), w),
        lambda: fastrelu.linear_relu_backward(dy, dy, x, w, out=(x, w, dy)),
        lambda: fastrelu.linear_relu_backward(dy, dy, x, w, wanted=("dz",)),
        lambda: fastrelu.pack(b),
        lambda: packed.update(w[1:]),
        lambda: fastrelu.set_num_threads(0),
        lambda: fastrelu.set_num_threads("two"),  # type: ignore[arg-type]
    ]

    def raises(fault: Call) -> None:
        try:
            fault()
        except (TypeError, ValueError):
            return
        raise AssertionError("no error")

    for fault in faults:
        yield lambda fault=fault: raises(fault)


KINDS = {made.__name__: made for made in (elementwise, layers, gradients, settings, raising)}


def rounds(kind: str, count: int) -> None:
    assert_flat(list(KINDS[kind]()), count)


BY_DAY = ("layers", "raising")


@pytest.mark.parametrize("kind", [k if k in BY_DAY else pytest.param(k, marks=pytest.mark.nightly) for k in KINDS])
def test_memory_stays_flat_over_calls(kind: str) -> None:
    call(rounds, kind, NORMAL // 2 if kind == "raising" else NORMAL, env=STRICT_MALLOC, timeout=300)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_flat_over_100_000_calls(kind: str) -> None:
    call(rounds, kind, NIGHTLY, env=STRICT_MALLOC, timeout=3000)


def variants(count: int) -> None:
    # Each is a ufunc of its own, and none is made anew.
    rng = np.random.default_rng(0)
    dy, x, w = (rng.standard_normal(s).astype(np.float32) for s in ((3, 5), (3, 4), (4, 5)))
    names = sorted(backward_variants())

    def look_up() -> None:
        for name in names:
            getattr(fastrelu.ufuncs, name)

    assert_flat([look_up, lambda: fastrelu.linear_backward(dy, x, w)], count)


def test_looking_up_ufuncs_makes_nothing() -> None:
    call(variants, 400, env=STRICT_MALLOC, timeout=120)


def threads(count: int) -> None:
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((40, 300), (300, 100), 100))
    expected = fastrelu.linear_relu(x, w, b).sum()
    sums: set[float] = set()

    def work() -> None:
        sums.add(float(fastrelu.linear_relu(x, w, b).sum()))
        fastrelu.tanh(x)

    def one_thread() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    assert_flat([one_thread], count)
    assert sums == {float(expected)}


@pytest.mark.parametrize("limit", ["1", "4"])
def test_two_thousand_threads_that_end_leave_nothing(limit: str) -> None:
    # Each has 400 KB of scratch memory while it lives.
    call(threads, 400, env={"FASTRELU_NUM_THREADS": limit, **STRICT_MALLOC}, timeout=200)


def changes(count: int) -> None:
    x = np.ones(300_007, np.float32)
    turns = itertools.cycle((1, 2, 5, 3, 8))

    def change() -> None:
        fastrelu.set_num_threads(next(turns))
        fastrelu.relu(x, out=x)

    assert_flat([change], count)


def test_changes_of_the_number_of_threads_leave_nothing() -> None:
    call(changes, 200, env=STRICT_MALLOC, timeout=100)
