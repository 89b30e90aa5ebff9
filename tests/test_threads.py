"""Calls from many threads, the number of threads of a call, and other users of threads in the same process.

What can hang or kill a process runs in a fresh one.
"""

import _thread
import atexit
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
import fastrelu.ufuncs
from fastrelu.native import quota
from fastrelu.operations import FLOATS, OPERATIONS
from fastrelu.threads import default_num_threads
from tests.jobs import Job
from tests.subprocesses import call, run, wait_for_interrupt

# More than two parts of every operation, and no multiple of anything.
LONG = 300_007
NEITHER = {"FASTRELU_NUM_THREADS": None, "OMP_NUM_THREADS": None}  # for `call`
# Those with a formula of their own.
NAMES = sorted(name for name, operation in OPERATIONS.items() if not operation.formula)

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux tells how many threads there are")


def result(name: str, dtype: str, size: int = LONG) -> np.ndarray:
    """The bits that an operation returns for operands of random bits: every exponent, both signs, NaNs."""
    rng = np.random.default_rng(5)
    of_type = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x, y = rng.integers(0, 256, (2, size * of_type.itemsize), np.uint8).view(of_type)
    operands = {"x": x, "y": y, "dy": x, "alpha": of_type.type(0.25), "at_zero": of_type.type(0.5)}
    y = getattr(fastrelu.ufuncs, name)(*[operands[i] for i in OPERATIONS[name].inputs])
    if OPERATIONS[name].arithmetic:
        y[np.isnan(y)] = np.nan  # which NaN a calculation returns is open
    return y.view(f"u{of_type.itemsize}")


def os_threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def load() -> None:
    """Load what the tests that count threads call: Numba, if the cache is empty, brings libraries with threads of their own."""
    result("relu", "float32", 10)


# The number of threads of a call.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_bits_are_the_same_for_every_number_of_threads(name, dtype):
    with fastrelu.num_threads(1):
        expected = result(name, dtype)
    for count in (2, 3, 5, 8):
        with fastrelu.num_threads(count):
            assert_array_equal(result(name, dtype), expected)


@pytest.mark.parametrize("count", [0, -1, 257, 2**70])
def test_count_out_of_range(count):
    with fastrelu.num_threads(3):
        with pytest.raises(ValueError, match="1 to 256"):
            fastrelu.set_num_threads(count)
        with pytest.raises(ValueError, match="1 to 256"), fastrelu.num_threads(count):
            pass
        assert fastrelu.get_num_threads() == 3


@pytest.mark.parametrize("count", [None, True, 2.0, "2", np.float32(2), np.array(2.5), np.array([1, 2])], ids=repr)
def test_count_is_no_integer(count):
    with fastrelu.num_threads(3):
        with pytest.raises(TypeError, match="count must be an integer"):
            fastrelu.set_num_threads(count)
        assert fastrelu.get_num_threads() == 3


@pytest.mark.parametrize("count", [1, 256, np.int8(2), np.uint64(2)], ids=repr)
def test_count_is_set(count):
    with fastrelu.num_threads(3):
        fastrelu.set_num_threads(count)
        assert fastrelu.get_num_threads() == count
        result("relu", "float32")


def test_num_threads_nests_and_survives_exceptions():
    with fastrelu.num_threads(3):
        with fastrelu.num_threads(5):
            assert fastrelu.get_num_threads() == 5
            with pytest.raises(ZeroDivisionError), fastrelu.num_threads(7):
                1 / 0  # noqa: B018
            assert fastrelu.get_num_threads() == 5
        assert fastrelu.get_num_threads() == 3


@pytest.mark.parametrize(
    ("ours", "openmp", "expected"),
    [
        ("3", "5", 3),
        ("3", None, 3),
        (None, "5", 5),
        (None, "5,2", 5),
        ("0", "5", 5),
        ("-1", "5", 5),
        ("many", "5", 5),
        ("", "5", 5),
        ("100000", None, 256),
    ],
)
def test_environment(monkeypatch, ours, openmp, expected):
    for name, value in (("FASTRELU_NUM_THREADS", ours), ("OMP_NUM_THREADS", openmp)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert default_num_threads() == expected


def environment_counts():
    assert fastrelu.get_num_threads() == 4
    load()
    assert fastrelu.get_num_threads() == 4
    before = os_threads()
    result("relu", "float32")
    assert len(os_threads() - before) == 3


@needs_proc
def test_environment_counts_in_calls():
    call(environment_counts, env={"FASTRELU_NUM_THREADS": "4"})


def first_use_within_num_threads():
    with fastrelu.num_threads(1):
        load()
        before = os_threads()
        result("relu", "float32")
        assert os_threads() == before
    result("relu", "float32")
    assert len(os_threads() - before) == 3


@needs_proc
def test_first_use_within_num_threads():
    # What was in force before the block counts again after it, also when the block saw the first call of the process.
    call(first_use_within_num_threads, env={"FASTRELU_NUM_THREADS": "4"})


def reported_is_used():
    assert fastrelu.get_num_threads() == 4
    os.environ["FASTRELU_NUM_THREADS"] = "6"  # too late: a number that has been reported stays
    load()
    before = os_threads()
    result("relu", "float32")
    assert len(os_threads() - before) + 1 == fastrelu.get_num_threads() == 4


@needs_proc
def test_reported_number_is_that_of_calls():
    call(reported_is_used, env={"FASTRELU_NUM_THREADS": "4"})


def block_before_anything_is_asked():
    with fastrelu.num_threads(3):
        pass
    os.environ["FASTRELU_NUM_THREADS"] = "5"
    assert fastrelu.get_num_threads() == 5


def test_block_leaves_nothing_set():
    call(block_before_anything_is_asked, env={"FASTRELU_NUM_THREADS": "4"})


def affinity_counts():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    assert fastrelu.get_num_threads() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity():
    call(affinity_counts, env=NEITHER)


# Quotas of control groups. A folder of them is written as {path: content}.


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        # Version 2: the group itself, the groups around it, and the top of the mount, which may be the container's group.
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "200001 100000"}, 3),
        ("0::/", {"cpu.max": "1000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 50000", "cpu.max": "900000 100000"}, 5),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "300000 100000", "c/cpu.max": "100000 100000"}, 3),
        ("0::/elsewhere", {"cpu.max": "150000 100000"}, 2),
        ("0::/../a", {"cpu.max": "40 10", "a/cpu.max": "10 10", "../a/cpu.max": "10 10"}, 4),
        # Version 1: each controller has folders of its own, sometimes shared by two.
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "350000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("1:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 1),
        ("1:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "20", "cpu,cpuacct/a/cpu.cfs_period_us": "10"}, 2),
        ("1:cpuacct,cpu:/a", {"cpuacct,cpu/a/cpu.cfs_quota_us": "20", "cpuacct,cpu/a/cpu.cfs_period_us": "10"}, 2),
        ("1:cpu:/x", {"cpu/cpu.cfs_quota_us": "20", "cpu/cpu.cfs_period_us": "10"}, 2),
        ("1:memory:/a\n2:cpuset:/a", {"cpu/a/cpu.cfs_quota_us": "20", "cpu/a/cpu.cfs_period_us": "10"}, None),
        # Both: version 2 beside the folders of version 1.
        ("1:cpu:/\n0::/a", {"unified/a/cpu.max": "70 10", "cpu/cpu.cfs_quota_us": "80", "cpu/cpu.cfs_period_us": "10"}, 7),
        # What Linux does not write, or a list of groups that cannot be read.
        ("0::/", {"cpu.max": "many"}, None),
        ("0::/", {"cpu.max": ""}, None),
        ("0::/", {"cpu.max": "100000"}, None),
        ("0::/", {"cpu.max": "100000 0"}, None),
        ("nothing\n0::/a:b", {"a:b/cpu.max": "40 10"}, 4),
        (None, {"cpu.max": "40 10"}, 4),
    ],
)
def test_smallest_quota_of_the_groups_around_the_process_counts(tmp_path, groups, files, expected):
    if groups is not None:
        (tmp_path / "groups").write_text(groups + "\n")
    for name, content in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(content + "\n")
    assert quota.processors(tmp_path / "groups", tmp_path / "root") == expected


@pytest.mark.parametrize(("processors", "expected"), [(None, 3), (2, 2), (5, 3)])
def test_quota_and_affinity(monkeypatch, processors, expected):
    for name in NEITHER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5}, raising=False)
    monkeypatch.setattr(quota, "processors", lambda: processors)
    assert default_num_threads() == expected


# Processes of which there are many.


def count_in_worker(_=None) -> tuple[int, int]:
    """What a worker reports, and how many threads its first long call has."""
    load()
    before = os_threads()
    result("relu", "float32")
    return fastrelu.get_num_threads(), len(os_threads() - before) + 1


def send_count(connection, set_to=None):
    if set_to:
        fastrelu.set_num_threads(set_to)
    connection.send(count_in_worker())


class Unpickled:
    """Calls and reports while a worker reads what it was sent, before it runs anything."""

    def __init__(self):
        self.counts = ()

    def __setstate__(self, _):
        self.counts = count_in_worker()

    def __getstate__(self):
        return {"x": 1}

    def __call__(self, connection):
        connection.send(self.counts)


def workers_have_one_thread(method):
    os.sched_getaffinity = lambda _: set(range(5))  # so that a forked worker would have more than one
    result("relu", "float32")
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()

    def answer(target, *arguments):
        process = context.Process(target=target, args=(theirs, *arguments))
        process.start()
        process.join()
        return ours.recv()

    assert answer(send_count) == (1, 1)
    assert answer(send_count, 3) == (3, 3)
    if method != "fork":
        assert answer(Unpickled()) == (1, 1)
    with context.Pool(2) as pool:
        assert pool.map(count_in_worker, range(2), 1)[0] == (1, 1)
    with ProcessPoolExecutor(1, context) as processes:
        assert processes.submit(count_in_worker).result() == (1, 1)
    os.environ["OMP_NUM_THREADS"] = "4"
    assert answer(send_count) == ((4, 4) if method != "forkserver" else (1, 1))  # that server's environment is older


METHODS = [method for method in ("fork", "forkserver", "spawn") if method in multiprocessing.get_all_start_methods()]


@needs_proc
@pytest.mark.parametrize("method", METHODS)
def test_worker_process_has_one_thread_unless_told_otherwise(method):
    call(workers_have_one_thread, method, env=NEITHER, timeout=120)


def workers_of_joblib():
    import joblib

    os.sched_getaffinity = lambda _: set(range(5))
    counts = joblib.Parallel(2, backend="multiprocessing")(joblib.delayed(count_in_worker)() for _ in range(2))
    assert counts[0] == (1, 1)
    # It hands each of its own processes a share of the processors, in variables of the environment.
    with joblib.parallel_config("loky", inner_max_num_threads=3):
        counts = joblib.Parallel(2)(joblib.delayed(count_in_worker)() for _ in range(2))
    assert counts[0] == (3, 3)


@needs_proc
def test_workers_of_joblib():
    pytest.importorskip("joblib")
    call(workers_of_joblib, env=NEITHER, timeout=120)


def chunks_of_dask(scheduler):
    import dask
    import dask.array

    x = np.linspace(-1, 1, LONG, dtype=np.float32)
    expected = fastrelu.relu(x)
    with dask.config.set(scheduler=scheduler, num_workers=4):
        for _ in range(5):
            assert_array_equal(fastrelu.relu(dask.array.from_array(x, LONG // 3)).compute(), expected)
        if scheduler == "processes":
            assert dask.compute(dask.delayed(count_in_worker)())[0] == (1, 1)


@needs_proc
@pytest.mark.parametrize("scheduler", [pytest.param("threads", marks=pytest.mark.nightly), "processes"])
def test_chunks_of_dask(scheduler):
    pytest.importorskip("dask")
    call(chunks_of_dask, scheduler, env=NEITHER, timeout=120)


# Many callers.


def first_use_from_many_threads():
    sys.setswitchinterval(1e-6)  # a thread is interrupted wherever it can be
    callers = 8
    barrier = threading.Barrier(callers)

    def work(_):
        results = []
        for name in NAMES:
            for dtype in FLOATS:
                barrier.wait(30)
                results.append(result(name, dtype, 5000))
        return results

    with ThreadPoolExecutor(callers) as threads:
        results = list(threads.map(work, range(callers)))
    expected = [result(name, dtype, 5000) for name in NAMES for dtype in FLOATS]
    for one in results:
        for a, b in zip(one, expected, strict=True):
            assert_array_equal(a, b)


def test_first_use_from_many_threads_at_once():
    call(first_use_from_many_threads, timeout=120)


def eight_callers_of_the_pool():
    names = ("relu", "relu_backward", "tanh", "leaky_relu")
    with fastrelu.num_threads(1):
        expected = {name: result(name, "float32") for name in names}
    stop = threading.Event()

    def change_limit():
        count = 0
        while not stop.is_set():
            fastrelu.set_num_threads(1 + count % 6)
            count += 1
            time.sleep(1e-4)

    def work(number):
        for turn in range(40):
            name = names[(number + turn) % len(names)]
            assert_array_equal(result(name, "float32"), expected[name])

    changer = threading.Thread(target=change_limit)
    changer.start()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    stop.set()
    changer.join()


def test_eight_callers_of_the_pool_while_its_limit_changes():
    call(eight_callers_of_the_pool, timeout=120)


def workers_make_room():
    fastrelu.set_num_threads(4)
    first = Job(100)
    assert first.has(4)
    second = Job(10)
    assert second.has(1)
    first.step()  # between two parts a worker sees that there is another caller
    assert first.has(3)
    others = [Job(10), Job(10)]
    first.step()
    assert first.has(1)
    first.step()  # the caller itself always works
    assert first.has(1)
    crowd = [Job(10), Job(10)]
    first.step()
    assert [job.has(1) for job in (first, second, *others, *crowd)] == [True] * 6
    for job in (*crowd, *others):
        assert job.end() == list(range(10))
    assert first.has(3)  # they come back without being asked
    assert second.end() == list(range(10))
    assert first.has(4)
    assert first.end() == list(range(100))


def test_workers_make_room_for_other_callers_and_come_back():
    call(workers_make_room)


def crowd_keeps_the_pool_asleep():
    fastrelu.set_num_threads(3)
    first = Job(10)
    assert first.has(3)
    others = [Job(10), Job(10)]
    assert [job.has(1) for job in others] == [True, True]
    assert first.end() == list(range(10))
    late = Job(10)  # the pool is free, but three threads are at work with this one
    assert late.has(1)
    assert [job.end() for job in others] == [list(range(10))] * 2
    assert late.has(1)
    again = Job(10)  # has the pool, but for the worker in whose place the late one works
    assert again.has(2)
    assert late.end() == list(range(10))
    assert again.has(3)
    assert again.end() == list(range(10))


def test_crowd_of_callers_leaves_the_pool_alone():
    call(crowd_keeps_the_pool_asleep)


def workers_block_signals():
    load()
    before = os_threads()
    with fastrelu.num_threads(4):
        result("relu", "float32")
    workers = os_threads() - before
    assert len(workers) == 3
    for worker in workers:
        with open(f"/proc/self/task/{worker}/status") as file:
            blocked = next(int(line.split()[1], 16) for line in file if line.startswith("SigBlk"))
        # A worker that took a signal would take it from a thread of the program that waits for it.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGCHLD):
            assert blocked >> (number - 1) & 1


@needs_proc
def test_workers_block_signals():
    call(workers_block_signals)


# Other users of threads.


def beside_numba(layer):
    import numba

    @numba.njit(parallel=True)
    def total(x):
        s = 0
        for i in numba.prange(len(x)):
            s += min(x[i], 3)
        return s

    integers = np.arange(100_000) % 7
    launch = True
    if layer == "tbb" and importlib.util.find_spec("tbb") is None:
        launch = False  # Numba raises; that must not matter here
        with pytest.raises(ValueError, match="threading layer"):
            total(integers)
    stop = threading.Event()

    def parallel():
        while not stop.is_set():
            # Only this thread: workqueue aborts the process when two call it.
            assert total(integers) == np.minimum(integers, 3).sum()

    user = ThreadPoolExecutor(1).submit(parallel if launch else stop.wait)
    with fastrelu.num_threads(1):
        expected = result("tanh", "float32")
    with ThreadPoolExecutor(3) as threads:
        for x in threads.map(lambda _: result("tanh", "float32"), range(30)):
            assert_array_equal(x, expected)
    stop.set()
    user.result()


@pytest.mark.parametrize("layer", ["omp", *(pytest.param(layer, marks=pytest.mark.nightly) for layer in ("workqueue", "tbb"))])
def test_numba_threads_at_the_same_time(layer):
    call(beside_numba, layer, env={"NUMBA_THREADING_LAYER": layer})


def beside_numba_compiler():
    import numba

    # Both compile the same of Numba's own functions, in both orders.
    @numba.njit
    def before(x, n):
        return min(x.max(), 2.5) + max(n, 3) + np.clip(x, 0, 1).sum() + x[:n].mean()

    @numba.njit
    def after(x, n):
        return abs(x.min()) + np.sort(x)[n] + x.reshape(5, -1).sum()

    x = np.linspace(-1, 4, 100)
    assert before(x, 10) == pytest.approx(before.py_func(x, 10))
    thread = threading.Thread(target=after, args=(x, 7))
    thread.start()
    assert_array_equal(fastrelu.relu(x), np.where(x > 0, x, 0))
    thread.join()
    assert after(x, 7) == pytest.approx(after.py_func(x, 7))
    assert before(x.astype(np.float32), 10) == pytest.approx(before.py_func(x, 10), rel=1e-5)
    assert_array_equal(fastrelu.relu(-x), np.where(x < 0, -x, 0))


@pytest.mark.nightly
def test_numba_compiles_at_the_same_time():
    call(beside_numba_compiler, env={"FASTRELU_CACHE_DIR": "off"})


def beside_torch():
    import torch

    torch.set_num_threads(3)
    x = torch.linspace(-1, 1, LONG)
    expected = torch.clamp(x, min=0).numpy()
    with fastrelu.num_threads(4):
        for _ in range(10):
            assert_array_equal(fastrelu.relu(x.numpy()), torch.relu(x).numpy())
    assert_array_equal(torch.relu(x).numpy(), expected)
    assert torch.get_num_threads() == 3


def test_torch_keeps_its_threads():
    pytest.importorskip("torch")
    call(beside_torch)


def beside_torch_that_flushes():
    import torch

    expected = {(name, size): result(name, "float32", size) for name in NAMES for size in (50, LONG)}
    # Sets the flush-to-zero mode of this thread, and of no worker of the pool.
    assert torch.set_flush_denormal(True)
    for (name, size), bits in expected.items():
        assert_array_equal(result(name, "float32", size), bits, err_msg=name)
    # The caller's mode is as it was.
    assert torch.tensor([1e-38]).mul(0.5).item() == 0


def test_subnormal_numbers_are_kept_when_torch_flushes_them():
    pytest.importorskip("torch")
    call(beside_torch_that_flushes)


# Interrupts.


class Interrupt:
    """Sends a KeyboardInterrupt a while after a module is first asked for."""

    def __init__(self, module: str, delay: float):
        self.module, self.delay = module, delay

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            self.module = ""
            if self.delay == 0:
                _thread.interrupt_main()
            else:
                threading.Timer(self.delay, _thread.interrupt_main).start()


def interrupted(module, delay):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background with it ignored
    x = np.array([-1, 2, 3], np.float32)
    sys.meta_path.insert(0, Interrupt(module, delay))
    with pytest.raises(KeyboardInterrupt):
        fastrelu.relu(x), wait_for_interrupt()  # the call may be finished by then; the interrupt must not be lost
    assert fastrelu.relu(x).tolist() == [0, 2, 3]
    assert fastrelu.tanh(np.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("module", "delay"),
    [
        ("numba.core.cpu", 0),
        pytest.param("fastrelu.kernels.vector", 0, marks=pytest.mark.nightly),
        # Numba's registration of its own functions comes next, and then the compilation.
        pytest.param("numba.cpython.slicing", 0, marks=pytest.mark.nightly),
        ("fastrelu.native.compiler", 0.3),
        pytest.param("fastrelu.native.compiler", 0.9, marks=pytest.mark.nightly),
    ],
)
def test_interrupt_of_the_first_use(module, delay):
    call(interrupted, module, delay, env={"FASTRELU_CACHE_DIR": "off"})


def alarmed(delay):
    x = np.array([-1, 2, 3], np.float32)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, delay)
    with pytest.raises(KeyboardInterrupt):
        fastrelu.relu(x), wait_for_interrupt()
    assert fastrelu.relu(x).tolist() == [0, 2, 3]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm here")
@pytest.mark.parametrize("delay", [0.3, *(pytest.param(delay, marks=pytest.mark.nightly) for delay in (0.12, 0.8))])
def test_handler_of_another_signal_raises_during_the_first_use(delay):
    call(alarmed, delay, env={"FASTRELU_CACHE_DIR": "off"})


# The end of the process.


def daemons_at_exit():
    for size in (10, 1000, LONG):
        for name in ("relu", "tanh"):

            def forever(name=name, size=size):
                while True:
                    result(name, "float32", size)

            threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.2)


def test_daemon_threads_call_when_the_process_ends():
    call(daemons_at_exit)


def last_words():
    print(fastrelu.relu(np.float32(3)), result("relu", "float32").size)


def calls_at_exit():
    atexit.register(last_words)


def test_first_call_at_exit():
    assert call(calls_at_exit) == f"3.0 {LONG}\n"


def test_first_call_at_exit_with_an_empty_cache():
    code = "import atexit, fastrelu; atexit.register(lambda: print(fastrelu.relu(3)))"
    assert run(code, env={"FASTRELU_CACHE_DIR": "off"}) == "3\n"
