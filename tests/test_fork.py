"""Processes that fork: children and grandchildren calculate right, and none hangs or dies."""

import concurrent.futures
import ctypes
import inspect
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
import fastrelu.ufuncs
from fastrelu import threads
from fastrelu.native import pool
from tests.forks import ended_well, start_child
from tests.jobs import Job, eventually
from tests.subprocesses import call, run, wait_for_interrupt

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

SMALL, LARGE = 100, 1_500_000  # a caller's own work, and work for the pool
FOUR = {"FASTRELU_NUM_THREADS": "4"}


def is_right(dtype="float32") -> bool:
    for size in (SMALL, LARGE):
        x = (np.arange(size) % 100 - 50).astype(dtype)
        if not (fastrelu.relu(x) == np.where(x > 0, x, 0)).all():
            return False
    return True


def fork_then_fork():
    assert is_right()

    def child():
        return is_right() and ended_well(start_child(is_right)) and is_right("float64")

    assert ended_well(start_child(child))
    # The parent is as before.
    assert is_right()
    assert is_right("float64")


def test_child_and_grandchild_after_use():
    call(fork_then_fork, env=FOUR)


def fork_before_use():
    assert ended_well(start_child(is_right))
    assert is_right()


def test_child_before_use():
    call(fork_before_use, env=FOUR)


def child_has_threads():
    def threads_started():
        before = len(os.listdir("/proc/self/task"))
        return is_right() and len(os.listdir("/proc/self/task")) == before + 3

    assert is_right()
    assert ended_well(start_child(threads_started))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux tells how many threads there are")
def test_child_has_a_pool_of_its_own():
    call(child_has_threads, env=FOUR)


def fork_while_others_calculate():
    assert is_right()
    stop = threading.Event()
    wrong = []

    def work():
        while not stop.is_set():
            if not is_right():
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    # The pool is busy, or being set up, in any state, when a child gets a copy of it.
    assert all(ended_well(start_child(is_right)) for _ in range(60))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_sixty_children_while_other_threads_calculate():
    call(fork_while_others_calculate, env=FOUR, timeout=120)


def fork_while_another_thread_compiles(delay):
    threads = [threading.Thread(target=is_right, args=(dtype,)) for dtype in ("float32", "float64")]
    for thread in threads:
        thread.start()
    time.sleep(delay)
    child = start_child(lambda: is_right("int32"))
    for thread in threads:
        thread.join()
    assert ended_well(child)
    assert is_right("float32")
    assert is_right("float64")


# While Python imports the linker, while it imports Numba, and while Numba compiles.
@pytest.mark.parametrize("delay", [0, 0.8, *(pytest.param(delay, marks=pytest.mark.nightly) for delay in (0.01, 0.05, 0.2))])
def test_child_while_another_thread_compiles(delay):
    call(fork_while_another_thread_compiles, delay, env={"FASTRELU_CACHE_DIR": "off"}, timeout=120)


def map_in_processes(method):
    x = [np.linspace(-1, 1, size, dtype=np.float32) for size in (SMALL, LARGE, SMALL, LARGE)]
    expected = [fastrelu.relu(a) for a in x]
    with multiprocessing.get_context(method).Pool(2) as pool:
        for function in (fastrelu.relu, fastrelu.ufuncs.relu):
            for a, b in zip(pool.map(function, x), expected, strict=True):
                assert_array_equal(a, b)
    assert_array_equal(fastrelu.relu(x[1]), expected[1])


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_pool(method):
    call(map_in_processes, method, env=FOUR)


def executor():
    x = np.linspace(-1, 1, LARGE)
    expected = fastrelu.tanh(x)
    with concurrent.futures.ProcessPoolExecutor(2) as processes:
        for y in processes.map(fastrelu.tanh, [x] * 4):
            assert_array_equal(y, expected)


def test_process_pool_executor():
    call(executor, env=FOUR)


def fork_amid_jobs():
    fastrelu.set_num_threads(4)
    jobs = [Job(10) for _ in range(5)]
    assert [eventually(lambda job=job: len(job.working) > 0) for job in jobs] == [True] * 5

    def child():
        job = Job(10)
        return job.has(4) and job.end() == list(range(10))

    assert ended_well(start_child(child))
    assert [job.end() for job in jobs] == [list(range(10))] * 5


def test_child_does_not_count_callers_that_it_has_lost():
    call(fork_amid_jobs)


# Whose workers they are.


def forked_by_c():
    def child():
        return pool.read(pool.OWNER) == 0 and pool.read(pool.DEFAULT) == 4 and is_right() and pool.read(pool.STARTED) == 3

    assert is_right()
    assert pool.read(pool.OWNER) == os.getpid()
    # As a C library does it: Python does not know.
    assert ended_well(start_child(child, ctypes.pythonapi.fork))
    assert pool.read(pool.OWNER) == os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux wipes memory")
def test_child_of_c_code_has_a_pool_without_owner():
    call(forked_by_c, env=FOUR)


def forked_without_wiping():
    class Memory(mmap.mmap):
        def madvise(self, *arguments):
            raise OSError("as on an old system")

    mmap.mmap = Memory
    from fastrelu.native import pool
    from tests.forks import ended_well, start_child
    from tests.test_fork import is_right

    assert is_right()
    assert pool.read(pool.OWNER) == os.getpid()
    fork = ctypes.pythonapi.fork
    assert ended_well(start_child(lambda: pool.read(pool.OWNER) == os.getppid() and is_right(), fork))
    assert ended_well(start_child(lambda: pool.read(pool.OWNER) == 0 and is_right()))


def test_child_has_a_pool_without_owner_where_the_system_wipes_nothing():
    source = inspect.getsource(forked_without_wiping)
    run(f"import ctypes, mmap, os\n{source}\nforked_without_wiping()", env=FOUR)


NEW_USER, NEW_PID = 0x10000000, 0x20000000
# Only a process without threads may have a new namespace of users, and NumPy's BLAS starts some.
ALONE = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def unshare(flags):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def may_unshare() -> bool:
    if sys.platform != "linux":
        return False
    try:
        run("from tests.test_fork import *; unshare(NEW_USER | NEW_PID)", env=ALONE)
    except AssertionError:
        return False
    return True


def first_process():
    """The first process of a namespace forks, in the middle of calls, the first process of another."""
    assert os.getpid() == 1
    fastrelu.set_num_threads(4)
    assert is_right()

    def forever():
        while True:
            is_right()

    for _ in range(2):
        threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.02)
    unshare(NEW_PID)

    def child():
        signal.alarm(20)
        return os.getpid() == 1 and is_right() and pool.read(pool.STARTED) == 3 and is_right("float64")

    return ended_well(start_child(child))


def forks_of_first_processes():
    unshare(NEW_USER)
    for _ in range(20):

        def namespace():
            signal.alarm(20)
            unshare(NEW_PID)
            return ended_well(start_child(first_process))

        assert ended_well(start_child(namespace))


def test_child_with_the_number_of_its_parent_in_a_namespace_of_its_own():
    if not may_unshare():
        pytest.skip("no namespaces of processes here")
    call(forks_of_first_processes, env=ALONE, timeout=120)


# The number of threads.

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux tells how many threads there are")


def threads_of_a_call() -> int:
    """How many threads the first long call of a process has."""
    before = len(os.listdir("/proc/self/task"))
    assert is_right()
    return 1 + len(os.listdir("/proc/self/task")) - before


def child_asks_again(reports_first):
    def child():
        os.environ["FASTRELU_NUM_THREADS"] = "3"
        if reports_first:
            return (fastrelu.get_num_threads(), threads_of_a_call()) == (3, 3)
        return (threads_of_a_call(), fastrelu.get_num_threads()) == (3, 3)

    assert is_right()
    assert fastrelu.get_num_threads() == 4
    assert ended_well(start_child(child))
    # Neither the parent nor a child in which nothing has changed is another.
    os.environ["FASTRELU_NUM_THREADS"] = "2"
    assert fastrelu.get_num_threads() == 4
    del os.environ["FASTRELU_NUM_THREADS"]
    os.environ["OMP_NUM_THREADS"] = "5"
    assert ended_well(start_child(lambda: threads_of_a_call() == fastrelu.get_num_threads() == 5))


@needs_proc
@pytest.mark.parametrize("reports_first", [False, True])
def test_child_finds_out_anew_how_many_threads_it_may_use(reports_first):
    call(child_asks_again, reports_first, env=FOUR)


def child_keeps_what_was_set():
    def child():
        os.environ["FASTRELU_NUM_THREADS"] = "2"
        return fastrelu.get_num_threads() == threads_of_a_call() == 3

    assert is_right()
    with fastrelu.num_threads(3):
        assert ended_well(start_child(child))
    # After the block nothing is set, as before it.
    os.environ["FASTRELU_NUM_THREADS"] = "5"
    assert ended_well(start_child(lambda: fastrelu.get_num_threads() == threads_of_a_call() == 5))
    fastrelu.set_num_threads(3)
    assert ended_well(start_child(child))


@needs_proc
def test_child_keeps_the_number_of_threads_that_was_set():
    call(child_keeps_what_was_set, env=FOUR)


def interrupted_question():
    asked = []

    def interrupt():
        asked.append(1)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return 3

    def child():
        threads.default_num_threads = interrupt
        try:
            is_right(), wait_for_interrupt()
        except KeyboardInterrupt:
            return is_right() and fastrelu.get_num_threads() == 3 and len(asked) == 2
        return False

    assert is_right()
    assert ended_well(start_child(child))


def test_interrupt_of_a_kernel_that_asks_for_the_number_of_threads():
    call(interrupted_question, env=FOUR)
