"""Fused layers and their gradients from many threads, first use included, beside a program's own parallel Numba code.

Each test runs in a process of its own under one of Numba's threading layers, none of which the package may use or disturb.
"""

import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastrelu
from tests.subprocesses import call

CALLERS = 16
# Rows, terms and columns: a caller's own work; work for the pool by columns, by rows; a vector; few columns.
SHAPES = [(5, 7, 9), (60, 300, 400), (900, 257, 65), (1, 700, 900), (3000, 64, 5)]


def whole(m: int, k: int, n: int) -> list[np.ndarray]:
    """Numbers so small and whole that any order of additions gives the same bits."""
    rng = np.random.default_rng([m, k, n])
    return [rng.integers(-3, 4, shape).astype(np.float32) for shape in ((m, k), (k, n), (n,), (m, n))]


def expected_of(x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
    """Output and gradients, by a reference that shares no code and no threads with the package."""
    y = np.maximum(np.einsum("ik,kj->ij", x, w) + b, 0)
    dz = np.where(y > 0, dy, 0)
    return [y, np.einsum("ij,kj->ik", dz, w), np.einsum("ik,ij->kj", x, dz), dz.sum(0)]


def beside_numba(layer):
    import numba

    @numba.njit(parallel=True)
    def total(x):
        s = 0
        for i in numba.prange(len(x)):
            s += min(x[i], 3)
        return s

    integers = np.arange(100_000) % 7
    right = np.minimum(integers, 3).sum()
    stop = threading.Event()
    turns = []

    def user():
        while not stop.is_set():
            # Only this thread: workqueue aborts the process when two call it.
            assert total(integers) == right
            turns.append(1)
        assert numba.threading_layer() == layer

    problems = [whole(*shape) for shape in SHAPES]
    results = [expected_of(*problem) for problem in problems]
    barrier = threading.Barrier(CALLERS)

    def work(number):
        barrier.wait(60)
        for turn in range(3 * len(SHAPES)):
            i = (number + turn) % len(SHAPES)
            x, w, b, dy = problems[i]
            if turn == number % 5:
                fastrelu.set_num_threads(1 + number % 6)
            y = fastrelu.linear_relu(x, fastrelu.pack(w) if turn % 3 == 2 else w, b)
            gradients = fastrelu.linear_relu_backward(dy, y, x, w)
            for a, expected in zip((y, *gradients), results[i], strict=True):
                assert (a == expected).all()
        return number

    with ThreadPoolExecutor(1) as one:
        running = one.submit(user)
        try:
            with ThreadPoolExecutor(CALLERS) as threads:
                assert [*threads.map(work, range(CALLERS))] == [*range(CALLERS)]
        finally:
            # The program's own code has had its turn as well, also where it had to be compiled meanwhile.
            while not turns and not running.done():
                stop.wait(0.01)
            stop.set()
        running.result()


def environment(layer: str, cached: bool) -> dict[str, str | None]:
    # NUMBA_NUM_THREADS: a parallel region with one thread is none.
    env: dict[str, str | None] = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2", "FASTRELU_NUM_THREADS": "4"}
    return env if cached else {**env, "FASTRELU_CACHE_DIR": "off"}


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_layers_from_sixteen_threads_beside_parallel_numba(layer: str) -> None:
    if layer == "tbb" and importlib.util.find_spec("tbb") is None:
        pytest.skip("there is no tbb")
    call(beside_numba, layer, env=environment(layer, cached=True), timeout=200)


@pytest.mark.nightly
@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_layers_are_compiled_beside_parallel_numba(layer: str) -> None:
    call(beside_numba, layer, env=environment(layer, cached=False), timeout=900)


def with_workqueue_only():
    import sys

    # As on a system without OpenMP and TBB: their modules cannot be imported.
    for name in ("omppool", "tbbpool"):
        sys.modules[f"numba.np.ufunc.{name}"] = None
    beside_numba("workqueue")


def test_layers_where_there_is_only_workqueue() -> None:
    env = environment("default", cached=True)
    call(with_workqueue_only, env=env, timeout=200)


def two_users_of_workqueue(count):
    # The package itself never launches a layer: workqueue would abort the process when two threads call.
    import numba

    problems = [whole(*shape) for shape in SHAPES]

    def work(number):
        x, w, b, dy = problems[number % len(SHAPES)]
        for _ in range(5):
            fastrelu.linear_relu_backward(dy, fastrelu.linear_relu(x, w, b), x, w)

    with ThreadPoolExecutor(count) as threads:
        [*threads.map(work, range(count))]
    with pytest.raises(ValueError, match="not initialized"):
        numba.threading_layer()


def test_package_launches_no_threading_layer() -> None:
    call(two_users_of_workqueue, CALLERS, env=environment("workqueue", cached=True), timeout=120)
