"""Forks at any moment: while other threads calculate, compile, or start; from any thread; children with threads and children.

Each test runs in a process of its own. A child that hangs is killed by its alarm, and one that dies or is wrong shows in its
exit status, so that the test fails either way.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
import fastrelu.ufuncs
from tests.subprocesses import call

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

OFF = {"FASTRELU_CACHE_DIR": "off"}
FOUR = {"FASTRELU_NUM_THREADS": "4"}
SECONDS = 120
"""After which a child counts as hung."""
LONG = 300_007
"""Elements of an array that the pool shares out."""


class Work:
    """Calls with all kinds of results, and what they must return."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        normal = rng.standard_normal
        long = normal(LONG, np.float32)
        # The pool takes part in both: by columns, and by rows.
        layers = [[normal(s, np.float32) for s in ((m, k), (k, n), n, (m, n))] for m, k, n in ((60, 300, 400), (900, 257, 65))]
        self.calls: dict[str, Callable[[], tuple[np.ndarray, ...]]] = {
            "short": lambda: (fastrelu.relu(long[:50]),),
            "relu": lambda: (fastrelu.relu(long),),
            "tanh": lambda: (fastrelu.tanh(long),),
        }
        for i, (x, w, b, dy) in enumerate(layers):
            packed = fastrelu.pack(w)
            self.calls[f"layer {i}"] = lambda x=x, w=w, b=b: (fastrelu.linear_relu(x, w, b),)
            self.calls[f"packed {i}"] = lambda x=x, w=packed, b=b: (fastrelu.linear_relu(x, w, b),)
            self.calls[f"backward {i}"] = lambda dy=dy, x=x, w=w: fastrelu.linear_relu_backward(dy, dy, x, w)
        with fastrelu.num_threads(1):
            self.expected = {name: [a.tobytes() for a in run()] for name, run in self.calls.items()}

    def wrong(self) -> list[str]:
        """The calls that return other bits."""
        return [name for name, run in self.calls.items() if [a.tobytes() for a in run()] != self.expected[name]]


def start_child(job: Callable[[], object]) -> int:
    """Fork. The child ends with status 0 if `job` returns nothing, or what is false: a list of faults."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(SECONDS)  # from its default handler a process dies, whatever it waits for
            status = 1 if job() else 0
        finally:
            os._exit(status)
    return child


def end_of(child: int) -> int:
    """Its exit status, or the negative number of the signal that it died from."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def with_grandchild(work: Work) -> bool:
    """What a child does: with threads of its own pool, and in a child of its own."""
    with fastrelu.num_threads(4):
        return bool(work.wrong()) or end_of(start_child(work.wrong)) != 0 or bool(work.wrong())


def first_use_is_wrong() -> bool:
    """A call of a type that the parent never uses, so that each child compiles it."""
    x = np.linspace(-1, 1, 100)
    return fastrelu.relu(x).tolist() != np.where(x > 0, x, 0).tolist()


@contextmanager
def in_threads(*functions: Callable[[], object]) -> Iterator[list[int]]:
    """Functions that run over and over, each in a thread, until the block ends; how often each did."""
    stop = threading.Event()
    counts = [0] * len(functions)

    def repeat(number: int) -> None:
        while not stop.is_set():
            functions[number]()
            counts[number] += 1

    with ThreadPoolExecutor(len(functions)) as threads:
        started = [threads.submit(repeat, number) for number in range(len(functions))]
        try:
            yield counts
        finally:
            stop.set()
        for one in started:
            one.result()


def check(work: Work, name: str) -> None:
    assert [a.tobytes() for a in work.calls[name]()] == work.expected[name], name


# Everything at once.


def forks_amid_everything(forks):
    with fastrelu.num_threads(4):
        work = Work()
        os.environ["FASTRELU_CACHE_DIR"] = "off"  # from here on nothing is found there, and nothing kept
        compiled = []

        def compiles():
            integers = np.arange(-50, 50)
            for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
                x = integers.astype(dtype)
                assert_array_equal(fastrelu.relu(x), np.where((x > 0), x, 0))
                compiled.append(len(ends))

        jobs = [lambda name=name: check(work, name) for name in ("relu", "tanh", "layer 0", "layer 1", "backward 1")]
        ends: list[int] = []
        with ThreadPoolExecutor(1) as compiler, in_threads(*jobs) as counts:
            first_uses = compiler.submit(compiles)
            while len(ends) < forks or not first_uses.done():
                # Not at first: such a child takes as long as several first uses here.
                first_use = first_use_is_wrong if len(ends) % 12 == 5 else bool
                ends.append(end_of(start_child(lambda first_use=first_use: with_grandchild(work) or first_use())))
            first_uses.result()
        assert not any(ends)
        assert min(counts) > 0
        assert len(set(compiled)) > 1  # forks in between
        assert not work.wrong()


@pytest.mark.parametrize("forks", [10, pytest.param(60, marks=pytest.mark.nightly)])
def test_forks_while_other_threads_calculate_and_compile(forks: int) -> None:
    call(forks_amid_everything, forks, env=FOUR, timeout=300)


def forks_amid_first_uses(delay, in_child):
    x, w, b = (np.arange(n, dtype=np.float32).reshape(s) % 7 - 3 for n, s in ((12, (3, 4)), (20, (4, 5)), (5, 5)))
    y = np.array([[max(sum(x[i] * w[:, j]) + b[j], 0) for j in range(5)] for i in range(3)])

    def layer():
        return fastrelu.linear_relu(x, w, b).tolist() != y.tolist()

    def relu():
        return fastrelu.relu(x).tolist() != np.where(x > 0, x, 0).tolist()

    with ThreadPoolExecutor(2) as threads:
        first = [threads.submit(layer), threads.submit(relu)]
        time.sleep(delay)
        child = start_child({"layer": layer, "relu": relu}[in_child])
        assert not any(one.result() for one in first)
    assert end_of(child) == 0


# While modules are imported, while LLVM is asked for the processor, while one of many kernels is compiled or linked.
# The layer takes many seconds; `tests.test_fork` has short ones.
@pytest.mark.parametrize(
    ("delay", "in_child"),
    [
        pytest.param(delay, in_child, marks=pytest.mark.nightly)
        for delay, in_child in ((0.5, "layer"), (0, "relu"), (0.02, "relu"), (3, "relu"))
    ],
)
def test_first_use_in_a_child_while_other_threads_compile_a_layer(delay: float, in_child: str) -> None:
    call(forks_amid_first_uses, delay, in_child, env=OFF, timeout=2 * SECONDS)


def forks_amid_calls_of_llvm(count):
    import llvmlite.binding as llvm

    def asks():
        for _ in range(100):
            llvm.get_host_cpu_features()

    def child():
        return llvm.get_host_cpu_name() == "" or fastrelu.relu(np.float32(-1)) != 0

    with in_threads(asks, asks):
        assert [end_of(start_child(child)) for _ in range(count)] == [0] * count


def test_child_while_other_threads_call_llvm() -> None:
    # llvmlite's lock is held at almost any moment, and without any other lock.
    call(forks_amid_calls_of_llvm, 20, timeout=120)


def forks_amid_making_of_contexts(count):
    from numba.core.registry import CPUTarget, cpu_target

    locks = [value._lock for value in vars(CPUTarget).values() if hasattr(value, "_lock")]
    assert locks

    def make(lock):
        with lock:
            time.sleep(1e-3)  # as if it took as long as in earnest

    with in_threads(*[lambda lock=lock: make(lock) for lock in locks]):
        assert [end_of(start_child(lambda: cpu_target.target_context is None)) for _ in range(count)] == [0] * count


def test_child_while_other_threads_make_the_contexts_of_numba() -> None:
    call(forks_amid_making_of_contexts, 8, timeout=2 * SECONDS)


def compiles_amid_making_of_contexts():
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import CPUTarget

    made = threading.Event()
    lock = vars(CPUTarget)["_toplevel_target_context"]._lock

    def makes():
        with lock:
            made.set()
            time.sleep(4)  # until the other compiles
            with global_compiler_lock:  # as Numba does
                pass

    maker = threading.Thread(target=makes, daemon=True)
    maker.start()
    made.wait()
    children = [start_child(lambda: False)]
    assert not first_use_is_wrong()
    children.append(start_child(first_use_is_wrong))
    assert [end_of(child) for child in children] == [0, 0]
    maker.join(30)
    assert not maker.is_alive()


def test_first_use_and_fork_while_another_thread_makes_the_contexts_of_numba() -> None:
    call(compiles_amid_making_of_contexts, env=OFF, timeout=60)


# Other ways to fork, and what a child may do.


def forks_in_an_executor(count):
    with fastrelu.num_threads(4):
        work = Work()
        jobs = [lambda name=name: check(work, name) for name in ("tanh", "layer 1")]
        with in_threads(*jobs), ThreadPoolExecutor(3) as threads:
            # The thread that is left in the child is one of an executor.
            ends = threads.map(lambda _: end_of(start_child(lambda: with_grandchild(work))), range(count))
            assert [*ends] == [0] * count
        assert not work.wrong()


def test_children_of_threads_of_an_executor() -> None:
    call(forks_in_an_executor, 12, env=FOUR, timeout=200)


def fork_before_use_in_a_thread():
    faults = []

    def first_use():
        x = np.arange(-LONG, LONG, dtype=np.float32)
        return (fastrelu.relu(x) != np.where(x > 0, x, 0)).any()

    def forks():
        faults.append(end_of(start_child(first_use)))

    threads = [threading.Thread(target=forks) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [0] * 4
    assert not first_use()


def test_children_of_threads_before_any_use() -> None:
    call(fork_before_use_in_a_thread, env=FOUR, timeout=100)


def child_runs_threads():
    with fastrelu.num_threads(4):
        work = Work()

        def child():
            # More callers than the pool serves at once.
            with ThreadPoolExecutor(6) as threads:
                return [fault for faults in threads.map(lambda _: work.wrong(), range(12)) for fault in faults]

        with in_threads(lambda: check(work, "layer 1")):
            assert [end_of(start_child(child)) for _ in range(4)] == [0] * 4


def test_child_that_runs_threads() -> None:
    call(child_runs_threads, env=FOUR, timeout=200)


def six_generations():
    with fastrelu.num_threads(4):
        work = Work()

        def generation(number):
            return work.wrong() or (number > 0 and end_of(start_child(lambda: generation(number - 1))) != 0) or work.wrong()

        assert not generation(6)


def test_child_of_a_child_and_so_on() -> None:
    call(six_generations, env=FOUR, timeout=100)


# The standard library's processes, from a parent whose other threads calculate.


def map_amid_calls(method, executor):
    with fastrelu.num_threads(4):
        work = Work()
        rng = np.random.default_rng(1)
        x, w, b = (rng.standard_normal(s, np.float32) for s in ((300, 260), (260, 270), 270))
        expected = fastrelu.linear_relu(x, w, b)
        context = multiprocessing.get_context(method)
        gradients = fastrelu.linear_relu_backward(expected, expected, x, w)
        with in_threads(lambda: check(work, "layer 1"), lambda: check(work, "tanh")):
            if executor:
                with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
                    results = [*pool.map(fastrelu.linear_relu, [x] * 4, [w] * 4, [b] * 4)]
                    backward = pool.submit(fastrelu.linear_relu_backward, expected, expected, x, w).result()
                    relu = pool.submit(fastrelu.ufuncs.relu, x).result()
            else:
                with context.Pool(2) as pool:
                    results = pool.starmap(fastrelu.linear_relu, [(x, w, b)] * 4)
                    backward = pool.apply(fastrelu.linear_relu_backward, (expected, expected, x, w))
                    (relu,) = pool.map(fastrelu.ufuncs.relu, [x])
        for y in results:
            assert_array_equal(y, expected)
        for a, a_expected in zip(backward, gradients, strict=True):
            assert_array_equal(a, a_expected)
        assert_array_equal(relu, np.where(x > 0, x, 0))


@pytest.mark.parametrize("executor", [False, True], ids=["multiprocessing", "concurrent.futures"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pool_of_processes_while_other_threads_calculate(method: str, executor: bool) -> None:
    call(map_amid_calls, method, executor, env=FOUR, timeout=150)
