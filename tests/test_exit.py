"""Layers and gradients called while a process ends: by whatever Python still runs then."""

import atexit
import multiprocessing
import multiprocessing.util
import threading
import time
import weakref

import numpy as np
import pytest

import fastrelu
from tests.subprocesses import call

FOUR = {"FASTRELU_NUM_THREADS": "4"}


def is_right() -> bool:
    """Whether results are, of a caller's own work and of the pool's, by a reference that shares no code with the package."""
    for m, k, n in ((5, 7, 9), (900, 257, 65)):
        rng = np.random.default_rng(m)
        x, w, dy = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((m, k), (k, n), (m, n)))
        y = np.maximum(np.einsum("ik,kj->ij", x, w), 0)
        dz = np.where(y > 0, dy, 0)
        expected = np.einsum("ij,kj->ik", dz, w), np.einsum("ik,ij->kj", x, dz), dz.sum(0)
        results = fastrelu.linear_relu(x, fastrelu.pack(w)), *fastrelu.linear_relu_backward(dy, y, x, w)
        if not all((a == b).all() for a, b in zip(results, (y, *expected), strict=True)):
            return False
    return True


def say(who):
    print(who, is_right(), flush=True)


class Last:
    pass


kept = Last()


def ends(used):
    if used:
        assert is_right()
    atexit.register(say, "atexit")
    weakref.finalize(kept, say, "weakref")
    multiprocessing.util.Finalize(None, say, ("multiprocessing",), exitpriority=10)

    def outlives():
        threading.main_thread().join()
        say("thread")

    def forever():
        while True:
            is_right()

    threading.Thread(target=outlives).start()
    for _ in range(3):
        threading.Thread(target=forever, daemon=True).start()
    if used:
        time.sleep(0.2)


@pytest.mark.parametrize("used", [True, False], ids=["used", "first use"])
def test_calls_of_everything_that_runs_at_the_end(used: bool) -> None:
    said = call(ends, used, env=FOUR, timeout=120).splitlines()
    assert sorted(said) == ["atexit True", "multiprocessing True", "thread True", "weakref True"]


def in_a_process(queue):
    multiprocessing.util.Finalize(None, lambda: queue.put(is_right()), exitpriority=10)


def ends_of_processes(method):
    assert is_right()
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=in_a_process, args=(queue,))
    process.start()
    assert queue.get()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_calls_at_the_end_of_a_process_of_multiprocessing(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    call(ends_of_processes, method, env=FOUR, timeout=100)
