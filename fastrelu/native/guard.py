"""One lock around everything that must not be cut in half: by another thread, by a fork, by Ctrl-C."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

lock = threading.RLock()
"""Held while modules are imported late, and while anything is compiled or linked. A thread that forks takes it first, so that
no child inherits half of any of these, or Python's lock of a module that a lost thread was importing."""


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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block, and then reach the program.

    An import of Numba that is interrupted leaves modules behind with which the next one fails. Only the main thread is ever
    interrupted.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)
