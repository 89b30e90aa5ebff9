"""Backward of the fused layers called from many threads, in forks, at the end of a process, and with little memory.

What can hang or kill a process, and what is measured on one, runs in a fresh one.
"""

import contextlib
import itertools
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.operations import FLOATS
from tests.forks import ended_well, start_child
from tests.subprocesses import call
from tests.test_linear import bits_of_positive
from tests.test_linear_backward import ALPHAS, RELU, SUBSETS, assert_gradients, expected_of, problem
from tests.test_linear_backward import call as backward
from tests.test_linear_threads import (
    FOUR,
    ONE_ARENA,
    STRICT_MALLOC,
    memory,
    needs_fork,
    needs_glibc,
    needs_proc,
    smallest_stack,
)

Array = np.ndarray

# Rows, terms and columns: a caller's own work; square; many rows; a vector; few columns; long rows; long batches.
SHAPES = [(5, 7, 9), (300, 260, 270), (3000, 70, 65), (1, 700, 900), (4001, 60, 3), (3, 300, 2100), (20_011, 8, 8)]
LONG = [(5001, 20, 110), (9001, 61, 7), (70_001, 1, 9), (1025, 30, 500)]


def whole(m: int, k: int, n: int, dtype: str = "float32") -> list[Array]:
    """Numbers so small and whole that any order of additions gives the same bits."""
    rng = np.random.default_rng([m, k, n])
    return [rng.integers(-2, 3, shape).astype(dtype) for shape in ((m, n), (m, n), (m, k), (k, n))]


def is_right(dtype: str = "float32") -> bool:
    """Whether results are right, by a reference that shares no code with the package."""
    for shape in SHAPES[:3]:
        dy, y, x, w = whole(*shape, dtype)
        dz = np.where(y > 0, dy, 0)
        # Not NumPy's product, whose own threads do not survive every fork.
        expected = np.einsum("ij,kj->ik", dz, w), np.einsum("ik,ij->kj", x, dz), dz.sum(0)
        for given_y in (y, bits_of_positive(y)):
            result = fastrelu.linear_relu_backward(dy, given_y, x, w)
            if not all((a == b).all() for a, b in zip(result, expected, strict=True)):
                return False
    return True


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whole_numbers_are_exact(dtype: str) -> None:
    assert is_right(dtype)


# The number of threads, and many callers.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
def test_bits_are_the_same_for_every_number_of_threads(shape: tuple[int, int, int], dtype: str) -> None:
    dy, y, x, w = problem(RELU, dtype, *shape)
    expected = expected_of(RELU, dy, y, x, w)
    old = tuple(np.full(a.shape, 0.75, dy.dtype) for a in expected)
    added = expected_of(RELU, dy, y, x, w, added_to=old)
    mask, turned = bits_of_positive(y), np.asfortranarray(w)
    for count in range(1, 9):
        with fastrelu.num_threads(count):
            assert_gradients(backward(RELU, dy, y, x, w), expected, count)
            assert_gradients(backward(RELU, dy, mask, x, turned), expected, count)
            out = tuple(a.copy() for a in old)
            backward(RELU, dy, y, x, w, out=out, accumulate=("dx", "dw", "db"))
            assert_gradients(out, added, count)
            for wanted in SUBSETS[:-1] if count in (2, 5) else ():
                assert_gradients(backward(RELU, dy, mask, x, w, wanted=wanted), expected, count, wanted)


@pytest.mark.parametrize("name", ALPHAS)
def test_every_function_with_threads(name: str) -> None:
    for shape in SHAPES[1:3]:
        operands = problem(name, "float32", *shape)
        expected = expected_of(name, *operands)
        for count in (1, 3, 8, 64):
            with fastrelu.num_threads(count):
                assert_gradients(backward(name, *operands), expected, count)


@pytest.mark.parametrize("threads", [1, 2, 5, 8])
def test_outputs_are_inputs_that_all_threads_need(threads: int) -> None:
    # Each part of dx needs the whole of w, and of dw the whole of x, also after another part is written.
    for shape in [(600, 300, 310), (3000, 70, 65), (40, 900, 800)]:
        dy, y, x, w = problem(RELU, "float32", *shape)
        expected = expected_of(RELU, dy, y, x, w)
        with fastrelu.num_threads(threads):
            assert_gradients(backward(RELU, dy, y, x, w, out=(x, w, dy[-1])), expected)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_batch_of_weights_with_threads(threads: int) -> None:
    dy, y, x, w = (a.reshape(3, -1, a.shape[1]) for a in problem(RELU, "float32", 3 * 300, 3 * 70, 65))
    x = np.ascontiguousarray(x[:, :, :70])
    with fastrelu.num_threads(threads):
        result = backward(RELU, dy, y, x, w)
    for i in range(3):
        assert_gradients(tuple(a[i] for a in result), expected_of(RELU, dy[i], y[i], x[i], w[i]))


def test_calls_after_each_change_of_the_number_of_threads() -> None:
    operands = problem(RELU, "float32", 900, 257, 65)
    expected = expected_of(RELU, *operands)
    with fastrelu.num_threads(1):
        for count in (4, 1, 7, 2, 256, 3, 1, 5):
            fastrelu.set_num_threads(count)
            for _ in range(3):
                assert_gradients(backward(RELU, *operands), expected)


def first_use_from_eight_threads():
    sys.setswitchinterval(1e-6)  # a thread is interrupted wherever it can be
    barrier = threading.Barrier(8)
    given = [problem("linear_backward", "float32", *shape) for shape in SHAPES[:3]]
    expected = [expected_of("linear_backward", *operands) for operands in given]

    def work(_):
        for operands, gradients in zip(given, expected, strict=True):
            barrier.wait(60)
            assert_gradients(backward("linear_backward", *operands), gradients)

    with ThreadPoolExecutor(8) as threads:
        assert len([*threads.map(work, range(8))]) == 8


def test_first_use_from_eight_threads_at_once() -> None:
    call(first_use_from_eight_threads, timeout=180)


@contextlib.contextmanager
def callers(count: int) -> Iterator[None]:
    """Threads that compare their results, of different functions, shapes and types, until the block ends."""
    names = itertools.cycle([RELU, "linear_backward", "linear_tanh_backward"])
    kinds = [(next(names), shape, dtype) for dtype in ("float16", "float32", "float64") for shape in SHAPES[:5]]
    given = [(name, problem(name, dtype, *shape)) for name, shape, dtype in kinds]
    expected = [expected_of(name, *operands) for name, operands in given]
    stop = threading.Event()

    def work(number):
        turn = number
        while not stop.is_set():
            i = turn % len(given)
            name, operands = given[i]
            wanted = SUBSETS[turn % len(SUBSETS)]
            out = tuple(np.zeros_like(a) if g in wanted else None for g, a in zip(("dx", "dw", "db"), expected[i], strict=True))
            options = {"out": out, "accumulate": wanted} if turn % 3 else {}
            assert_gradients(backward(name, *operands, wanted=wanted, **options), expected[i], wanted=wanted)
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
        for turn in range(80):
            fastrelu.set_num_threads(1 + turn % 6)
            time.sleep(0.02)


def test_eight_callers_with_different_shapes_while_the_number_of_threads_changes() -> None:
    call(calls_while_the_limit_changes, timeout=120)


def test_outputs_of_one_caller_are_left_alone_by_others() -> None:
    # All write rows of one dx, and each its own dw and db.
    dy, y, x, w = problem(RELU, "float32", 512, 100, 130)
    dx, parts = np.zeros((514, 100), np.float32), np.zeros((8, 102, 130), np.float32)

    def work(i):
        rows = slice(64 * i, 64 * i + 64)
        own = dx[1:-1][rows], parts[i, :100], parts[i, 100]
        backward(RELU, dy[rows], y[rows], x[rows], w, out=own, accumulate=("dw",))

    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            dx[...], parts[...] = 77, 77
            parts[:, :100] = 0
            list(threads.map(work, range(8)))
            assert_array_equal(dx[1:-1], expected_of(RELU, dy, y, x, w)[0])
            for i in range(8):
                rows = slice(64 * i, 64 * i + 64)
                _, dw, db = expected_of(RELU, dy[rows], y[rows], x[rows], w)
                assert_array_equal(parts[i], [*dw, db, np.full(130, 77)])
            assert_array_equal(dx[[0, -1]], 77)


# Forks, and the end of a process.


def fork_then_fork():
    assert is_right()

    def child():
        return is_right() and ended_well(start_child(is_right)) and is_right("float64")

    assert ended_well(start_child(child))
    # The parent is as before.
    assert is_right()
    assert is_right("float64")


@needs_fork
def test_child_and_grandchild_after_use() -> None:
    call(fork_then_fork, env=FOUR, timeout=120)


def fork_before_use():
    assert ended_well(start_child(is_right))
    assert is_right()


@needs_fork
def test_child_before_use() -> None:
    call(fork_before_use, env=FOUR, timeout=120)


def fork_while_others_calculate():
    assert is_right()
    with callers(2):
        # The pool is busy, and scratch memory in use, in any state, when a child gets a copy of it.
        assert all(ended_well(start_child(is_right)) for _ in range(12))
    assert is_right()


@needs_fork
def test_twelve_children_while_other_threads_calculate() -> None:
    call(fork_while_others_calculate, env=FOUR, timeout=180)


def map_in_processes(method):
    operands = problem(RELU, "float32", 300, 260, 270)
    expected = expected_of(RELU, *operands)
    assert_gradients(fastrelu.linear_relu_backward(*operands), expected)
    with multiprocessing.get_context(method).Pool(2) as pool:
        # Which also pickles the function.
        for result in pool.starmap(fastrelu.linear_relu_backward, [operands] * 6):
            assert_gradients(result, expected)


@needs_fork
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_pool(method: str) -> None:
    call(map_in_processes, method, env=FOUR, timeout=120)


def daemons_at_exit():
    for shape in SHAPES[:4]:
        operands = problem(RELU, "float32", *shape)

        def forever(operands=operands):
            while True:
                fastrelu.linear_relu_backward(*operands)

        threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.3)


def test_daemon_threads_call_when_the_process_ends() -> None:
    call(daemons_at_exit, env=FOUR)


# Memory.


def calls_from_threads_that_end(count):
    given = [problem(RELU, "float32", 40, 300, 100), problem(RELU, "float32", 900, 257, 65)]
    results = []

    def work():
        results.extend(float(sum(a.sum() for a in backward(RELU, *operands))) for operands in given)

    def threads(number):
        for _ in range(number):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    threads(20)  # the first ones also fill what the allocator keeps for later
    before = memory("VmRSS")
    threads(count)
    # One thread touches some 400 KB of its scratch memory: 80 MB in all if it were kept.
    assert memory("VmRSS") - before < 20e6
    assert len(set(results)) == 2


@needs_proc
@pytest.mark.parametrize("limit", ["1", "4"])
def test_threads_that_end_free_their_memory(limit: str) -> None:
    call(calls_from_threads_that_end, 200, env={"FASTRELU_NUM_THREADS": limit, **STRICT_MALLOC})


def memory_of_many_calls():
    given = [problem(RELU, dtype, *shape) for shape in SHAPES[:4] for dtype in ("float32", "float16")]

    def calls(count):
        for _ in range(count):
            for dy, y, x, w in given:
                out = tuple(np.zeros_like(a) for a in (x, w, w[0]))
                backward(RELU, dy, y, x, w)
                backward(RELU, dy, bits_of_positive(y), x[::-1], w.T.copy().T, out=out, accumulate=("dw",))
                backward(RELU, dy.copy(), y, x.copy(), w.copy(), wanted=("db", "dx"))
                with contextlib.suppress(ValueError, TypeError):
                    backward(RELU, dy, y, x[1:], w)
                with contextlib.suppress(ValueError, TypeError):
                    backward(RELU, dy, y, x > 0, w, out=out)

    calls(10)
    before = memory("VmRSS")
    calls(40)
    # Each turn takes 15 MB.
    assert memory("VmRSS") - before < 10e6


@needs_proc
def test_calls_leak_no_memory() -> None:
    call(memory_of_many_calls, env=STRICT_MALLOC)


def calls_on_a_small_stack(is_first):
    given = [problem(RELU, dtype, *shape) for shape in SHAPES for dtype in ("float16", "float32", "float64")]
    expected = [expected_of(RELU, *operands) for operands in given]
    if not is_first:
        for operands in given:
            backward(RELU, *operands)
    done = []

    def work():
        for operands, gradients in zip(given, expected, strict=True):
            assert_gradients(backward(RELU, *operands), gradients)
            done.append(gradients)

    # What a first call loads or compiles runs on the stack of the caller as well, and LLVM takes more than 64 KiB of it.
    threading.stack_size(1 << 20 if is_first else max(smallest_stack(), 65536))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(done) == len(given)


@pytest.mark.parametrize(("is_first", "limit"), [(False, "1"), (True, "4")])
def test_large_products_on_a_small_stack(is_first: bool, limit: str) -> None:
    call(calls_on_a_small_stack, is_first, env={"FASTRELU_NUM_THREADS": limit})


def call_without_memory(room):
    import resource

    large = problem(RELU, "float32", 900, 257, 65)
    expected = expected_of(RELU, *large)
    assert_gradients(backward(RELU, *large), expected)
    out = tuple(np.zeros_like(a) for a in expected)
    begin, done = threading.Event(), threading.Event()
    outcomes = []

    def work():
        begin.wait(30)
        try:
            for _ in range(3):
                backward(RELU, *large, out=out)
            outcomes.append("result")
        except MemoryError:
            outcomes.append("MemoryError")
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
        assert_gradients(out, expected)
    # As before where there is memory again, in this thread and in a new one.
    assert_gradients(backward(RELU, *large), expected)
    with ThreadPoolExecutor(1) as threads:
        assert_gradients(threads.submit(backward, RELU, *large).result(), expected)
    print(*outcomes)


# Numbers of bytes that are left: no scratch memory fits, or all that is needed.
@needs_proc
@needs_glibc
@pytest.mark.parametrize(("limit", "room"), [("1", 0), ("1", 2**25), ("4", 2**17)])
def test_no_memory_is_a_memory_error(limit: str, room: int) -> None:
    output = call(call_without_memory, room, env={"FASTRELU_NUM_THREADS": limit, **ONE_ARENA})
    # Where others have their scratch memory they may be so quick that nothing is left for the one that has none.
    assert output in {("1", 0): ("MemoryError\n",), ("1", 2**25): ("result\n",)}.get(
        (limit, room), ("MemoryError\n", "result\n")
    )


def peak_of_a_large_call(m, k, n, kind):
    with fastrelu.num_threads(4):
        # Every thread has its scratch memory, and what else a first call needs.
        backward(RELU, *problem(RELU, "float32", 900, 257, 640))
        dy, y, x, w = problem(RELU, "float32", m, k, n)
        backward(RELU, dy[:300], bits_of_positive(y[:300]), x[:300], w)
        if kind == "F":
            w = np.asfortranarray(w)
        y = bits_of_positive(y) if kind == "mask" else y
        out = np.ones((m, k), np.float32), np.ones((k, n), np.float32), np.ones(n, np.float32)
        accumulate = ("dx", "dw", "db") if kind == "accumulate" else ()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak counts from here
        before = memory("VmRSS")
        backward(RELU, dy, y, x, w, out=out, accumulate=accumulate)
        peak = memory("VmHWM") - before
    assert peak < 16e6, peak
    assert not any((a == 1).all() for a in out)


# Where the gradient before the activation has 8 MB, dx 8 and dw 4; where it has 19 MB and dx 26; where dw has 12.
@needs_proc
@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((2048, 1024, 1024), "C"),
        pytest.param((2048, 1024, 1024), "mask", marks=pytest.mark.nightly),
        ((2048, 1024, 1024), "accumulate"),
        pytest.param((100_000, 64, 48), "C", marks=pytest.mark.nightly),
        ((100_000, 64, 48), "accumulate"),
        ((300, 2000, 1500), "F"),
    ],
    ids=str,
)
def test_large_call_allocates_next_to_nothing(shape: tuple[int, int, int], kind: str) -> None:
    call(peak_of_a_large_call, *shape, kind, env=STRICT_MALLOC)
