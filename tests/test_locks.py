"""Threads that compile with Numba beside first calls of this package: no order of locks makes them wait for ever."""

import os
import threading
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from tests.subprocesses import call, run

OFF = {"FASTRELU_CACHE_DIR": "off"}


def relu_is_right(dtype="float32"):
    x = (np.arange(200) % 77 - 38).astype(dtype)
    assert_array_equal(fastrelu.relu(x), np.where(x > 0, x, 0))


def in_threads(*functions):
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def first_call_under_the_lock_of_numba():
    from numba.core.compiler_lock import global_compiler_lock

    with global_compiler_lock:
        relu_is_right()
    relu_is_right("float64")


def test_first_call_under_the_lock_of_numba():
    call(first_call_under_the_lock_of_numba, env=OFF, timeout=120)


def both_orders(delay):
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    assert cpu_target.target_context  # as it is before anything is compiled

    def compiles():
        with global_compiler_lock:
            time.sleep(delay)
            relu_is_right("float32")
            relu_is_right("float64")

    # The other has the lock of this package and waits for Numba's.
    in_threads(compiles, lambda: [relu_is_right("float64"), relu_is_right("float32")])
    relu_is_right("int32")


@pytest.mark.parametrize("delay", [0.02, *(pytest.param(delay, marks=pytest.mark.nightly) for delay in (0, 0.3))])
def test_first_calls_with_and_without_the_lock_of_numba(delay):
    call(both_orders, delay, env=OFF, timeout=120)


def within_a_compilation():
    import numba
    from numba.extending import overload

    def clipped(x):
        raise NotImplementedError

    @overload(clipped)
    def _clipped(x):
        # The compiler of another library asks for a value while Numba compiles.
        limit = float(fastrelu.relu(np.float32(3)))
        return lambda x: min(x, limit)

    @numba.njit
    def user(x):
        return clipped(x)

    in_threads(lambda: user(5.0), relu_is_right)
    assert user(5.0) == 3


def test_first_call_within_a_compilation():
    call(within_a_compilation, env=OFF, timeout=120)


def forks_while_numba_logs():
    """A thread that has Numba's lock needs the lock of `logging`, which a fork takes too."""
    import logging

    from numba.core.compiler_lock import global_compiler_lock

    started = threading.Event()

    def compiles():
        with global_compiler_lock:
            started.set()
            time.sleep(0.3)
            with logging._lock:
                pass

    def forks():
        started.wait()
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    in_threads(compiles, forks)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_while_numba_logs():
    # This module would import `logging` first, with pytest.
    run("import fastrelu\nfrom tests.test_locks import forks_while_numba_logs\nforks_while_numba_logs()", timeout=60)


def forks_amid_late_imports():
    """Numba asks for the functions of this package before it takes its own lock; a child has no thread to end the imports."""
    import importlib
    import sys

    from fastrelu.jit import register

    started = threading.Event()

    class Slow:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("fastrelu.jit."):
                started.set()
                time.sleep(0.2)

    sys.meta_path.insert(0, Slow())

    def forks():
        started.wait()
        child = os.fork()
        if child == 0:
            importlib.import_module("fastrelu.jit.elementwise")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    in_threads(register, forks)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_amid_late_imports():
    call(forks_amid_late_imports, timeout=60)


def forks_while_numba_compiles():
    import numba

    def compiles():
        for i in range(20):
            assert numba.njit(lambda x: x + i)(1) == 1 + i  # noqa: B023  # compiled at once

    def forks():
        for _ in range(3):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    relu_is_right()
                    assert numba.njit(lambda x: x + 1)(1) == 2
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0

    in_threads(compiles, forks, relu_is_right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_while_numba_compiles():
    call(forks_while_numba_compiles, timeout=120)
