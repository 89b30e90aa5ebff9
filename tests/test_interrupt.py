"""Ctrl-C during calls: it arrives when the call returns, nothing is written afterwards, and the next call is right.

Each test sends real signals, in a process of its own.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from tests.subprocesses import call

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no POSIX signals here")

FOUR = {"FASTRELU_NUM_THREADS": "4"}
Arrays = list[np.ndarray]


class Task:
    """A long call that can write into arrays which are there, or return new ones."""

    def __init__(self, name: str) -> None:
        rng = np.random.default_rng(2)
        if name == "relu":
            operands = [rng.standard_normal(25_000_000, np.float32)]  # 100 MB
            outputs: Arrays = [np.empty_like(operands[0])]
            self.run: Callable[[Arrays | None], object] = lambda out: fastrelu.relu(*operands, out=out and out[0])
        elif name == "tanh, strided":
            operands = [rng.standard_normal((3000, 4000))[::2, ::3]]
            outputs = [np.empty_like(operands[0])]
            self.run = lambda out: fastrelu.tanh(*operands, out=out and out[0])
        else:
            size = {"layer": 2000, "packed": 1500, "backward": 1000}[name]
            operands = [rng.standard_normal((size, size), np.float32) for _ in range(3)]
            x, w, dy = operands
            b = x[0]
            outputs = [np.empty_like(x)]
            if name == "backward":
                outputs += [np.empty_like(w), np.empty_like(b)]
                self.run = lambda out: fastrelu.linear_relu_backward(dy, dy, x, w, out=out and tuple(out))
            else:
                given = fastrelu.pack(w) if name == "packed" else w
                self.run = lambda out: fastrelu.linear_relu(x, given, b, out=out and out[0])
        self.out = outputs
        self.run(self.out)
        self.expected = [a.copy() for a in self.out]
        start = time.perf_counter()
        self.run(self.out)
        self.seconds = time.perf_counter() - start

    def next_is_right(self) -> None:
        result = self.run(None)
        for a, expected in zip(result if isinstance(result, tuple) else [result], self.expected, strict=True):
            assert_array_equal(a, expected)


def interrupted(name, delays):
    task = Task(name)
    late = []
    for turn in range(delays):
        in_place = turn % 4 != 3
        for a in task.out:
            a[...] = 77
        sent = threading.Event()

        def send(seconds=task.seconds * 1.2 * turn / delays, sent=sent):
            time.sleep(seconds)
            sent.at = time.perf_counter()
            os.kill(os.getpid(), signal.SIGINT)
            sent.set()

        thread = threading.Thread(target=send)
        try:
            thread.start()
            while True:  # the signal may come between two calls
                task.run(task.out if in_place else None)
        except KeyboardInterrupt:
            arrived = time.perf_counter()
        # No thread writes any more, whatever was not finished.
        before = [a.copy() for a in task.out]
        time.sleep(0.1)
        for a, a_before in zip(task.out, before, strict=True):
            assert_array_equal(a, a_before)
        sent.wait(30)
        thread.join()
        late.append(arrived - sent.at)
        task.next_is_right()
    # The call under way ends first; the rest is for a machine that others use as well.
    assert max(late) < 3 * task.seconds + 5, (late, task.seconds)


@pytest.mark.parametrize(("name", "delays"), [("relu", 4), ("tanh, strided", 4), ("layer", 4), ("packed", 4), ("backward", 8)])
def test_interrupt_during_a_call(name: str, delays: int) -> None:
    call(interrupted, name, delays, env=FOUR, timeout=180)


def run_until_interrupted(task, timer):
    timer.start()
    while True:
        task.run(task.out)


class Late(Exception):
    """What another signal's handler raises."""


def handler_raises(name):
    task = Task(name)

    def handle(number, frame):
        raise Late

    signal.signal(signal.SIGUSR1, handle)
    for turn in range(5):
        timer = threading.Timer(task.seconds * turn / 5, os.kill, (os.getpid(), signal.SIGUSR1))
        with pytest.raises(Late):
            run_until_interrupted(task, timer)
        timer.join()
        task.next_is_right()


@pytest.mark.parametrize("name", ["layer", "backward"])
def test_handler_of_another_signal_raises_during_a_call(name: str) -> None:
    call(handler_raises, name, env=FOUR, timeout=120)


def interrupted_while_others_call():
    # The calls of other threads are not disturbed by a signal, and only the main thread is interrupted.
    task = Task("layer")
    failures, stop = [], threading.Event()

    def repeat():
        try:
            while not stop.is_set():
                task.next_is_right()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(5):
        timer = threading.Timer(task.seconds * turn / 3, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run_until_interrupted(task, timer)
        timer.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    task.next_is_right()


def test_interrupt_while_other_threads_call() -> None:
    call(interrupted_while_others_call, env=FOUR, timeout=180)


def work_of_a_process(operands):
    for _ in range(1000):
        fastrelu.linear_relu(*operands)


def interrupted_pool(method):
    rng = np.random.default_rng(2)
    operands = [rng.standard_normal(s, np.float32) for s in ((700, 700), (700, 700), 700)]
    expected = fastrelu.linear_relu(*operands)
    # Its workers print their own KeyboardInterrupt when the terminal sends it to all.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with multiprocessing.get_context(method).Pool(2) as pool:
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        timer = threading.Timer(1.5, lambda: os.killpg(0, signal.SIGINT))  # as Ctrl-C does
        timer.start()
        try:
            pool.map(work_of_a_process, [operands] * 8, 1)
        except KeyboardInterrupt:
            print("interrupted")
        timer.join()
    pool.join()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode is not None
    assert_array_equal(fastrelu.linear_relu(*operands), expected)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_interrupt_of_a_pool_of_processes(method: str) -> None:
    assert call(interrupted_pool, method, env=FOUR, timeout=100) == "interrupted\n"


def interrupted_forever():
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    task = Task("layer")
    while True:
        task.run(None)


def test_process_that_catches_nothing_ends_by_the_interrupt() -> None:
    with pytest.raises(AssertionError, match=r"exit status -2\n(?s:.*)KeyboardInterrupt"):
        call(interrupted_forever, env=FOUR, timeout=60)
