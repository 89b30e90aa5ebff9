"""One lock around everything that must not be cut in half: by another thread, by a fork, by a signal."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")

lock = threading.RLock()
"""Held while modules are imported late, and while anything is compiled or linked. A thread that forks takes it first, so that
no child inherits half of any of these, or Python's lock of a module that a lost thread was importing."""


_STACK = 16 << 20
"""Bytes of stack of a thread that compiles."""


def _numba_lock() -> Any:
    """Numba's own lock around compilation, if Numba is there."""
    return getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None)


def _before_fork() -> None:
    lock.acquire()
    if (numba_lock := _numba_lock()) is not None:
        numba_lock.acquire()


def _after_fork() -> None:
    numba_lock = _numba_lock()
    if numba_lock is not None and numba_lock.is_locked():
        numba_lock.release()
    lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def uninterrupted(function: Callable[[], R]) -> R:
    """Call `function` in a thread of its own and wait for its end; what interrupts the wait is raised then.

    Ctrl-C, or any signal handler that raises, would else cut an import of Numba in half, and leave modules behind with which
    the next import fails.
    """
    results: list[R] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    with lock:
        size = threading.stack_size(_STACK)  # a program may have asked for stacks in which LLVM cannot work
        try:
            thread.start()
        except RuntimeError:  # no thread can be started while the interpreter shuts down
            return function()
        finally:
            threading.stack_size(size)
    interruption = None
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption
    if errors:
        raise errors[0]
    return results[0]
