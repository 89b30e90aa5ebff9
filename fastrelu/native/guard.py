"""Locks around everything that must not be cut in half: by another thread, by a fork, by a signal.

They are taken in one order only: `lock`, then Numba's own lock around compilation, then `table_lock`, then the lock around the
interpreter's table of imports, then llvmlite's own lock around each call of LLVM. A thread that forks takes all, so that no
child inherits half of anything, or the lock of a module that a lost thread was importing.
"""

import _imp  # of every interpreter with the standard import; the public name of these two functions is gone in Python 3.12
import logging  # noqa: F401  # before the functions for a fork are registered, see there
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

R = TypeVar("R")

_STACK = 16 << 20
"""Bytes of stack of a thread that compiles."""


def _numba_lock() -> Any:
    """Numba's own lock around compilation, if Numba is there."""
    return getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None)


def _has_numba_lock() -> bool:
    """Whether this thread is amid a compilation by Numba, which may meet a function of this package."""
    numba_lock = _numba_lock()
    return numba_lock is not None and bool(numba_lock.is_locked())


class _Lock:
    """A reentrant lock that a thread which has Numba's lock passes by: waiting for it would be the wrong order.

    No fork cuts such a thread in half either, since the thread that forks waits for Numba's lock.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._thread = threading.local()

    def __enter__(self) -> None:
        taken = not _has_numba_lock()
        if taken:
            self._lock.acquire()
        self._stack().append(taken)

    def __exit__(self, *_: object) -> None:
        if self._stack().pop():
            self._lock.release()

    def _stack(self) -> list[bool]:
        """What this thread did each time that it entered."""
        stack: list[bool] = self._thread.__dict__.setdefault("stack", [])
        return stack


lock = _Lock()
"""Held while modules are imported late, and while anything is compiled or linked."""

table_lock = threading.RLock()
"""Held for moments, while an entry is added to a table, by a thread that waits for nothing."""


def _llvm_lock() -> Any:
    """The lock of llvmlite, if llvmlite is there. A thread has it also outside of the others, while an object is freed."""
    return getattr(getattr(sys.modules.get("llvmlite.binding.ffi"), "lib", None), "_lock", None)


_held = ExitStack()
"""What the thread that forks has taken besides `lock`: the modules may appear between the two functions."""


def _context_locks() -> list[Any]:
    """Numba's locks around the making of its contexts, if Numba is there."""
    target = getattr(sys.modules.get("numba.core.registry"), "CPUTarget", None)
    return [found for value in vars(target).values() if (found := getattr(value, "_lock", None)) is not None] if target else []


def _take_numba() -> None:
    """Take Numba's locks.

    A thread that makes a context waits for the lock around compilation, and one that has this lock may need a context. Neither
    order is safe, so that the locks of the contexts are only tried, for half a minute at most.
    """
    for _ in range(1000):
        if (numba_lock := _numba_lock()) is not None:
            _held.enter_context(numba_lock)
        for found in _context_locks():
            if not found.acquire(timeout=0.02):
                break
            _held.callback(found.release)
        else:
            return
        _held.close()
        time.sleep(0.01)
    _held.enter_context(_numba_lock())


def _before_fork() -> None:
    lock.__enter__()
    _take_numba()
    _held.enter_context(table_lock)
    # Objects of LLVM may be freed wherever memory is asked for, also amid the table of imports, for which os.fork waits.
    _imp.acquire_lock()
    _held.callback(_imp.release_lock)
    if (llvm_lock := _llvm_lock()) is not None:
        _held.enter_context(llvm_lock)


def _after_fork() -> None:
    _held.close()
    lock.__exit__()


# The functions that were registered last are called first. Those of `logging` take its lock: called before these, they would
# have it while these wait for a thread that compiles, and Numba writes to its log.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def uninterrupted(function: Callable[[], R]) -> R:
    """Call `function` in a thread of its own and wait for its end; what interrupts the wait is raised then.

    Ctrl-C, or any signal handler that raises, would else cut an import of Numba in half, and leave modules behind with which
    the next import fails. A thread that has Numba's lock calls `function` itself: another would wait for that lock.
    """
    if _has_numba_lock():
        return function()
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
