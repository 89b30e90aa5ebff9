"""Ctrl-C, a closed terminal and a request to end: one interrupt, after which a run still writes what it has."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Not all systems have a terminal that hangs up.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def interrupted_once(first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Any of the signals calls `first` and raises KeyboardInterrupt in the block; those after it are ignored there."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        first()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
