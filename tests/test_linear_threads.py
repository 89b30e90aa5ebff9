"""Fused layers called from many threads, in forks, at the end of a process, and with little memory.

What can hang or kill a process, and what is measured on one, runs in a fresh one.
"""

import atexit
import concurrent.futures
import contextlib
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu.native import pool
from fastrelu.operations import FLOATS
from tests.forks import ended_well, start_child
from tests.subprocesses import call, run

FOUR = {"FASTRELU_NUM_THREADS": "4"}
# Makes glibc ask for new pages for whatever is large, and give them back at once, so that memory can be measured.
STRICT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
NO_MEMORY = "fastrelu: no memory for packing"
# Rows, terms and columns: a caller's own work; work for the pool, by columns; by rows; a vector; few columns.
SHAPES = [(5, 7, 9), (60, 300, 400), (900, 257, 65), (1, 700, 900), (3000, 64, 5)]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux tells how much memory is used")
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of other allocators it is unknown what they keep")


def operands(m: int, k: int, n: int, dtype: str = "float32") -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([m, k, n])
    return tuple(rng.standard_normal(s).astype(getattr(ml_dtypes, dtype, dtype)) for s in ((m, k), (k, n), n))


def whole_operands(m: int, k: int, n: int, dtype: str = "float32") -> tuple[np.ndarray, ...]:
    """Numbers so small and whole that any order of additions gives the same bits."""
    rng = np.random.default_rng([m, k, n])
    return tuple(rng.integers(-3, 4, s).astype(dtype) for s in ((m, k), (k, n), n))


def is_right(dtype: str = "float32") -> bool:
    """Whether results are right, by a reference that shares no code with the package."""
    for shape in SHAPES[:3]:
        x, w, b = whole_operands(*shape, dtype)
        # Not NumPy's product, whose own threads do not survive every fork.
        expected = np.maximum(np.einsum("ik,kj->ij", x, w) + b, 0)
        if not (fastrelu.linear_relu(x, w, b) == expected).all():
            return False
    return True


def memory(name: str) -> int:
    """A line of what Linux tells about this process, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


# The number of threads, and many callers.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_the_same_for_every_number_of_threads(shape, dtype):
    given = operands(*shape, dtype)
    packed = fastrelu.pack(given[1])
    with fastrelu.num_threads(1):
        expected = fastrelu.linear_tanh(*given)
    for count in (2, 3, 5, 8, 64):
        with fastrelu.num_threads(count):
            assert_array_equal(fastrelu.linear_tanh(*given), expected)
            assert_array_equal(fastrelu.linear_tanh(given[0], packed, given[2]), expected)


def test_calls_after_each_change_of_the_number_of_threads():
    given = operands(900, 257, 65)
    with fastrelu.num_threads(1):
        expected = fastrelu.linear_relu(*given)
        for count in (4, 1, 7, 2, 256, 3, 1, 5):
            fastrelu.set_num_threads(count)
            for _ in range(3):
                assert_array_equal(fastrelu.linear_relu(*given), expected)


def first_use_from_eight_threads():
    sys.setswitchinterval(1e-6)  # a thread is interrupted wherever it can be
    barrier = threading.Barrier(8)
    given = [operands(*shape) for shape in SHAPES]

    def work(_):
        results = []
        for x, w, b in given:
            barrier.wait(60)
            results.append(fastrelu.linear_relu(x, w, b))
            results.append(fastrelu.linear_relu(x, w, b, mask=np.zeros((len(x), -(-len(b) // 8)), np.uint8))[1])
            results.append(fastrelu.linear_relu(x, fastrelu.pack(w)))
        return results

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(work, range(8)))
    for i, (x, w, b) in enumerate(given):
        assert_allclose(results[0][3 * i], np.maximum(x.astype(float) @ w + b, 0), rtol=1e-5, atol=1e-3)
    for one in results:
        for a, b in zip(one, work_alone(given), strict=True):
            assert_array_equal(a, b)


def work_alone(given):
    for x, w, b in given:
        y = fastrelu.linear_relu(x, w, b)
        yield y
        yield np.packbits(y > 0, axis=-1, bitorder="little")
        yield fastrelu.linear_relu(x, w)


@pytest.mark.nightly
def test_first_use_from_eight_threads_at_once():
    call(first_use_from_eight_threads, env={"FASTRELU_CACHE_DIR": "off"}, timeout=180)


@contextlib.contextmanager
def callers(count: int) -> Iterator[None]:
    """Threads that compare their results, of different shapes and types, until the block ends."""
    kinds = [(shape, dtype) for shape in SHAPES for dtype in ("float16", "float32", "float64")]
    given = [operands(*shape, dtype) for shape, dtype in kinds]
    packed = [fastrelu.pack(w) for _, w, _ in given]
    expected = [fastrelu.linear_relu(*one) for one in given]
    stop = threading.Event()

    def work(number):
        turn = number
        while not stop.is_set():
            i = turn % len(given)
            x, w, b = given[i]
            assert_array_equal(fastrelu.linear_relu(x, packed[i] if turn % 2 else w, b), expected[i])
            turn += 1
        return turn

    with ThreadPoolExecutor(count) as threads:
        started = [threads.submit(work, number) for number in range(count)]
        try:
            yield
        finally:
            stop.set()
        for number, one in enumerate(started):
            assert one.result() > number + 2  # each had its turn


def calls_while_the_limit_changes():
    with callers(8):
        for turn in range(200):
            fastrelu.set_num_threads(1 + turn % 6)
            time.sleep(0.02)


def test_eight_callers_with_different_shapes_while_the_number_of_threads_changes():
    call(calls_while_the_limit_changes, timeout=120)


def test_output_of_one_caller_is_left_alone_by_others():
    # All write rows of one array, each its own.
    x, w, b = operands(64, 100, 130)
    expected = fastrelu.linear_relu(x, w, b)
    y = np.zeros((66, 130), np.float32)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            y[:] = 77
            list(threads.map(lambda i: fastrelu.linear_relu(x[i : i + 8], w, b, out=y[1 + i : 9 + i]), range(0, 64, 8)))
            assert_array_equal(y[1:-1], expected)
            assert_array_equal(y[[0, -1]], 77)


# Forks.


def fork_then_fork():
    assert is_right()

    def child():
        return is_right() and ended_well(start_child(is_right)) and is_right("float64")

    assert ended_well(start_child(child))
    # The parent is as before.
    assert is_right()
    assert is_right("float64")


@needs_fork
def test_child_and_grandchild_after_use():
    call(fork_then_fork, env=FOUR, timeout=120)


def fork_before_use():
    assert ended_well(start_child(is_right))
    assert is_right()


@needs_fork
def test_child_before_use():
    call(fork_before_use, env=FOUR, timeout=120)


def fork_while_others_calculate():
    assert is_right()
    with callers(2):
        # The pool is busy, and scratch memory in use, in any state, when a child gets a copy of it.
        assert all(ended_well(start_child(is_right)) for _ in range(30))
    assert is_right()


@needs_fork
def test_thirty_children_while_other_threads_calculate():
    call(fork_while_others_calculate, env=FOUR, timeout=180)


def packed_in_a_child():
    x, w, b = operands(60, 300, 400)
    packed = fastrelu.pack(w)
    expected = fastrelu.linear_relu(x, w, b)

    def child():
        same = (fastrelu.linear_relu(x, packed, b) == expected).all()
        packed.update(2 * w)
        return same and packed.matches(2 * w)

    assert ended_well(start_child(child))
    assert packed.matches(w)  # the child has a copy


@needs_fork
def test_packed_weight_of_the_parent_in_a_child():
    call(packed_in_a_child, env=FOUR)


def map_in_processes(method):
    x, w, b = operands(60, 300, 400)
    packed, expected = fastrelu.pack(w), fastrelu.linear_relu(x, w, b)
    with multiprocessing.get_context(method).Pool(2) as pool:
        for y in pool.starmap(fastrelu.linear_relu, [(x, w, b), (x, packed, b)] * 3):
            assert_array_equal(y, expected)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(method)) as processes:
        assert_array_equal(processes.submit(fastrelu.linear_relu, x, packed, b).result(), expected)


@needs_fork
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_pool(method):
    call(map_in_processes, method, env=FOUR, timeout=120)


# The end of a process.


def last_words():
    print(is_right())


def calls_at_exit():
    atexit.register(last_words)
    assert is_right()


def first_call_at_exit():
    atexit.register(last_words)


def test_call_at_exit():
    assert call(calls_at_exit, env=FOUR) == "True\n"


def test_first_call_at_exit():
    assert call(first_call_at_exit, env=FOUR) == "True\n"


@pytest.mark.nightly
def test_first_call_at_exit_with_an_empty_cache():
    code = "import atexit, fastrelu; atexit.register(lambda: print(fastrelu.linear_relu([1.0], [[2.0]], [3.0])))"
    assert run(code, env={"FASTRELU_CACHE_DIR": "off"}) == "[5.]\n"


def daemons_at_exit():
    for shape in SHAPES[:3]:
        given = operands(*shape)

        def forever(given=given):
            while True:
                fastrelu.linear_relu(*given)

        threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.3)


def test_daemon_threads_call_when_the_process_ends():
    call(daemons_at_exit, env=FOUR)


# Memory.


def calls_from_threads_that_end(count):
    given = [operands(40, 300, 100), operands(900, 257, 65)]
    results = []

    def work():
        results.extend(fastrelu.linear_relu(*one).sum() for one in given)

    def threads(number):
        for _ in range(number):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    threads(20)  # the first ones also fill what the allocator keeps for later
    before = memory("VmRSS")
    threads(count)
    # One thread touches 400 KB of its scratch memory: 80 MB in all if it were kept.
    assert memory("VmRSS") - before < 20e6
    assert len(set(results)) == 2


@needs_proc
@pytest.mark.parametrize("limit", ["1", "4"])
def test_threads_that_end_free_their_memory(limit):
    call(calls_from_threads_that_end, 200, env={"FASTRELU_NUM_THREADS": limit, **STRICT_MALLOC})


def memory_of_many_calls():
    given = [operands(*shape) for shape in SHAPES]
    packed = [fastrelu.pack(w) for _, w, _ in given]

    def calls(count):
        for _ in range(count):
            for (x, w, b), p in zip(given, packed, strict=True):
                fastrelu.linear_relu(x, w, b)
                fastrelu.linear_relu(x, p, b, mask=np.empty((len(x), -(-len(b) // 8)), np.uint8))
                fastrelu.pack(w)
                with contextlib.suppress(ValueError, TypeError):
                    fastrelu.linear_relu(x, w, b[1:])
                with contextlib.suppress(ValueError, TypeError):
                    fastrelu.linear_relu(x > 0, w, b)

    calls(20)
    before = memory("VmRSS")
    calls(100)
    # Each turn takes 5 MB.
    assert memory("VmRSS") - before < 10e6


@needs_proc
def test_calls_leak_no_memory():
    call(memory_of_many_calls, env=STRICT_MALLOC)


def smallest_stack() -> int:
    """The smallest size of a stack with which threads start here."""
    for size in (32768, 65536, 131072, 262144):
        try:
            threading.stack_size(size)
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
        except (ValueError, RuntimeError):
            continue
        return size
    raise AssertionError("no thread starts")


def calls_on_a_small_stack(is_first):
    given = [operands(*shape, dtype) for shape in SHAPES for dtype in ("float16", "float32", "float64")]
    packed = [fastrelu.pack(w) for _, w, _ in given]
    expected = [] if is_first else [fastrelu.linear_relu(*one) for one in given]
    found = []

    def work():
        for (x, w, b), p in zip(given, packed, strict=True):
            found.append(fastrelu.linear_relu(x, w, b))
            assert_array_equal(fastrelu.linear_relu(x, p, b), found[-1])

    # What a first call loads or compiles runs on the stack of the caller as well, and LLVM takes more than 64 KiB of it.
    size = 1 << 20 if is_first else max(smallest_stack(), 65536)
    threading.stack_size(size)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == len(given)
    for y, other in zip(found, expected or [fastrelu.linear_relu(*one) for one in given], strict=True):
        assert_array_equal(y, other)


@pytest.mark.parametrize("limit", ["1", "4"])
@pytest.mark.parametrize("is_first", [False, True])
def test_large_product_on_a_small_stack(is_first, limit):
    call(calls_on_a_small_stack, is_first, env={"FASTRELU_NUM_THREADS": limit})


def call_without_memory(room):
    import resource

    large = whole_operands(900, 257, 65)
    expected = fastrelu.linear_relu(*large)
    out = np.zeros_like(expected)
    begin, done = threading.Event(), threading.Event()
    outcomes = []

    def work():
        begin.wait(30)
        try:
            for _ in range(3):
                fastrelu.linear_relu(*large, out=out)
            outcomes.append("result")
        except MemoryError as error:
            outcomes.append(str(error))
        done.set()

    thread = threading.Thread(target=work)  # has its stack before memory is short
    thread.start()
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + room, unlimited[1]))
    try:
        begin.set()
        assert done.wait(30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    thread.join()
    if outcomes == ["result"]:
        assert_array_equal(out, expected)
    # As before where there is memory again, in this thread and in a new one.
    assert_array_equal(fastrelu.linear_relu(*large), expected)
    with ThreadPoolExecutor(1) as threads:
        assert_array_equal(threads.submit(fastrelu.linear_relu, *large).result(), expected)
    print(*outcomes)


ONE_ARENA = {**STRICT_MALLOC, "MALLOC_ARENA_MAX": "1"}


# Numbers of bytes that are left: no scratch memory fits, or all that is needed.
@needs_proc
@needs_glibc
@pytest.mark.parametrize(("room", "outcome"), [(0, NO_MEMORY), (2**17, NO_MEMORY), (2**24, "result")])
def test_no_memory_for_the_scratch_of_a_new_thread_is_a_memory_error(room, outcome):
    assert call(call_without_memory, room, env={"FASTRELU_NUM_THREADS": "1", **ONE_ARENA}) == f"{outcome}\n"


@needs_proc
@needs_glibc
@pytest.mark.parametrize("room", [0, 2**17, 2**21])
def test_no_memory_where_other_threads_have_theirs(room):
    # They may be so quick that nothing is left to do for the one that has none.
    output = call(call_without_memory, room, env={"FASTRELU_NUM_THREADS": "4", **ONE_ARENA})
    assert output in (f"{NO_MEMORY}\n", "result\n")


def peak_of_a_large_product(packed):
    m, k, n = 2000, 700, 3000
    with fastrelu.num_threads(4):
        # Every thread has its scratch memory, and what else a first call needs.
        small = operands(900, 257, 640)
        fastrelu.linear_relu(small[0], fastrelu.pack(small[1]) if packed else small[1], small[2])
        x, w, b = operands(m, k, n)
        if packed:
            w = fastrelu.pack(w)
        out = np.ones((m, n), np.float32)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak counts from here
        before = memory("VmRSS")
        fastrelu.linear_relu(x, w, b, out=out)
        # Not a copy of w (8.4 MB), nor the result before the activation (24 MB).
        assert memory("VmHWM") - before < 8e6
    assert not (out == 1).all()


@needs_proc
@pytest.mark.parametrize("packed", [False, True])
def test_large_product_allocates_next_to_nothing(packed):
    call(peak_of_a_large_product, packed, env=STRICT_MALLOC)


# Memory given back on request.


def entries() -> list[list[int]]:
    """The memory that threads keep for packing: address, bytes and state."""
    starts = range(pool.SCRATCHES, pool.SCRATCHES + 64 * pool.MAX_SCRATCHES, 64)
    return [entry for at in starts if (entry := [pool.read(at + 8 * i) for i in range(3)])[2] != 0]


def release_what_three_threads_keep():
    assert fastrelu.release_memory() == 0  # no kernel is there yet
    given = [operands(*shape) for shape in SHAPES]
    expected = [fastrelu.linear_relu(*one) for one in given]
    small = operands(40, 41, 42)  # so small that it is a thread's own work, yet packed
    expected_of_small = fastrelu.linear_relu(*small)
    large = operands(900, 1000, 650)  # so long that a worker is awake in time also on a busy machine
    kept = threading.Event(), threading.Event()

    def idle():
        fastrelu.linear_relu(*small)
        kept[0].set()
        kept[1].wait(20)
        assert_array_equal(fastrelu.linear_relu(*small), expected_of_small)

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(idle)
        assert kept[0].wait(20)
        deadline = time.monotonic() + 15
        while len(entries()) < 4 and time.monotonic() < deadline:  # until each worker has had a part
            fastrelu.linear_relu(*large)
        before, count = memory("VmRSS"), len(entries())
        assert count == 4  # the caller, two workers, and the other thread of Python
        released = fastrelu.release_memory()
        # Large pages of 2 MB if the system has given some, else what was touched.
        assert count * 300_000 < released <= count << 21
        assert 0.9 * released < before - memory("VmRSS") < 1.1 * released + 1e6
        assert fastrelu.release_memory() == 0
        for one, result in zip(given, expected, strict=True):
            assert_array_equal(fastrelu.linear_relu(*one), result)
        assert 0 < fastrelu.release_memory() <= released
        kept[1].set()
        done.result()


@needs_proc
def test_idle_memory_is_given_back_on_request():
    call(release_what_three_threads_keep, env={"FASTRELU_NUM_THREADS": "3", **STRICT_MALLOC})


def freed_memory_is_given_back():
    small = [np.ones(8000) for _ in range(1000)]  # 64 MB that the allocator does not give back by itself,
    last = small.pop()  # because of what lies behind
    small.clear()
    before = memory("VmRSS")
    fastrelu.release_memory()
    assert before - memory("VmRSS") > 50e6
    assert last.sum() == 8000


@needs_proc
@needs_glibc
def test_freed_memory_is_given_back_on_request():
    call(freed_memory_is_given_back)


def release_amid_calls():
    with callers(4):
        released = [fastrelu.release_memory() for _ in range(200) if not time.sleep(0.005)]
    assert sum(released) > 0
    assert is_right()


def test_memory_is_given_back_while_others_calculate():
    call(release_amid_calls, env=FOUR, timeout=120)


def release_while_threads_end():
    given = operands(900, 257, 65)
    expected = fastrelu.linear_relu(*given)
    for _ in range(60):
        threads = [threading.Thread(target=fastrelu.linear_relu, args=given) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            fastrelu.release_memory()
    assert len(entries()) == 1  # those of threads that have ended are free again
    assert_array_equal(fastrelu.linear_relu(*given), expected)


def test_memory_is_given_back_while_threads_end():
    call(release_while_threads_end, env={"FASTRELU_NUM_THREADS": "1"})


def no_entry_is_left():
    given = operands(900, 257, 65)
    with fastrelu.num_threads(1):
        expected = fastrelu.linear_relu(*given)
    for at in range(pool.SCRATCHES, pool.SCRATCHES + 64 * pool.MAX_SCRATCHES, 64):
        pool.write(at + 16, pool.read(at + 16) or 3)

    def calls():
        assert_array_equal(fastrelu.linear_relu(*given), expected)
        before = memory("VmRSS")
        for _ in range(50):
            assert_array_equal(fastrelu.linear_relu(*given), expected)
        assert memory("VmRSS") - before < 10e6

    with ThreadPoolExecutor(1) as threads:
        threads.submit(calls).result()
    calls()


@needs_proc
def test_more_threads_than_the_table_has_entries():
    call(no_entry_is_left, env={**FOUR, **STRICT_MALLOC})


def nested_forks(depth):
    given = operands(900, 257, 65)
    expected = fastrelu.linear_relu(*given)
    sizes = []

    def generation(left):
        if len(entries()) > 1:  # this thread's
            return False
        if not (fastrelu.linear_relu(*given) == expected).all():
            return False
        keep_three()
        sizes.append(memory("VmData"))
        # The memory of three threads is 12 MB of addresses.
        return sizes[-1] < sizes[0] + 4e6 and (left == 0 or ended_well(start_child(lambda: generation(left - 1))))

    def keep(ready):
        fastrelu.linear_relu(*given)
        ready.set()
        time.sleep(3600)

    def keep_three():
        for ready in [threading.Event() for _ in range(3)]:
            threading.Thread(target=keep, args=(ready,), daemon=True).start()
            assert ready.wait(20)
        assert len(entries()) == 4

    keep_three()
    assert ended_well(start_child(lambda: generation(depth)))
    assert len(entries()) == 4


@needs_proc
@needs_fork
def test_nested_forks_leak_no_memory():
    call(nested_forks, 6, env={"FASTRELU_NUM_THREADS": "1", **STRICT_MALLOC})


def fork_while_memory_is_given_back():
    stop = threading.Event()

    def release():
        while not stop.is_set():
            fastrelu.release_memory()

    releaser = threading.Thread(target=release)
    releaser.start()
    with callers(2):
        assert all(ended_well(start_child(lambda: is_right() and len(entries()) <= 4)) for _ in range(30))
    stop.set()
    releaser.join()


@needs_fork
def test_thirty_children_while_memory_is_given_back():
    call(fork_while_memory_is_given_back, env=FOUR, timeout=180)


def state_that_nobody_ends():
    given = operands(900, 257, 65)
    expected = fastrelu.linear_relu(*given)
    (at,) = (at for at in range(pool.SCRATCHES, pool.SCRATCHES + 64 * pool.MAX_SCRATCHES, 64) if pool.read(at))
    pool.write(at + 16, 4)  # being given back, by a thread that a fork in C code has lost
    assert_array_equal(fastrelu.linear_relu(*given), expected)
    pool.write(at + 16, 1)
    assert_array_equal(fastrelu.linear_relu(*given), expected)
    pool.write(at + 16, 4)
    assert ended_well(start_child(lambda: entries()[0][2] == 1 and is_right()))


@needs_fork
def test_thread_does_not_wait_for_ever_for_its_memory():
    call(state_that_nobody_ends, env={"FASTRELU_NUM_THREADS": "1"})
