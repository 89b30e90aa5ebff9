"""How many of the processors that a measurement wants were taken by other programs."""

from __future__ import annotations

import os
import time

from fastrelu.threads import get_num_threads

MUCH = 0.1
"""Processors that other programs may take before a call may be slow for it."""


class Watch:
    """Looks on from when it is made.

    Examples
    --------
    >>> from fastrelu.benchmarks.contention import Watch
    >>> watch = Watch()
    >>> 0 <= watch.lacking()
    True
    """

    def __init__(self) -> None:
        self._start = _now()

    def lacking(self) -> float:
        """Processors that a call on all threads had to do without, on average; 0 where the system does not tell."""
        wall, busy, own = (now - then for now, then in zip(_now(), self._start, strict=True))
        if not busy:
            return 0.0
        processors = len(os.sched_getaffinity(0))
        return max(0.0, (busy - own) / wall + min(get_num_threads(), processors) - processors)


def _now() -> tuple[float, float, float]:
    """Seconds: the clock, the work of all programs on the processors that this one may use, and its own."""
    return time.perf_counter(), _busy(), time.process_time()


def _busy() -> float:
    """From Linux's table of what each processor did: user, nice, system, idle, waiting, interrupts of two kinds, stolen."""
    try:
        with open("/proc/stat") as file:
            rows = [line.split() for line in file if line.startswith("cpu")]
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = sum(sum(map(int, row[1:4])) + sum(map(int, row[6:9])) for row in rows if row[0] in mine)
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return 0.0
