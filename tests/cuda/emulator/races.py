"""The search for races: who touched each granule of memory last, and when.

A *stamp* is the number of barriers that a block has passed, the number of its warp's own barriers, and the thread.
Two accesses by different threads, at least one of them a write, are a race unless a barrier that both take part in
stands between them. These loops run for every access to shared memory, so Numba compiles them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

THREAD_BITS = 12
"""Ten for the thread in its block, and two marks of readers: several of one warp, several warps."""
WARP_SYNC_BITS = 20
ONE_WARP = 1 << 10
SEVERAL_WARPS = (1 << THREAD_BITS) - 1

OK, ARRIVING, WRITTEN, READ = range(4)

_SAME_WARP = (1 << 11) | (31 << 5)
_BLOCK = THREAD_BITS + WARP_SYNC_BITS


def _unordered(before, now):  # type: ignore[no-untyped-def]
    """Whether nothing stands between an access with the stamp ``before`` and one with the stamp ``now``."""
    if before < 0 or (before >> _BLOCK) != (now >> _BLOCK) or ((before ^ now) & SEVERAL_WARPS) == 0:
        return False
    return ((before ^ now) & _SAME_WARP) != 0 or (before >> THREAD_BITS) == (now >> THREAD_BITS)


def _read(offsets, stamps, size, granule, written, read, arriving):  # type: ignore[no-untyped-def]
    for i in range(offsets.size):
        for at in range(offsets[i] // granule, (offsets[i] + size - 1) // granule + 1):
            if arriving[at]:
                return ARRIVING, i, at
            if unordered(written[at], stamps[i]):
                return WRITTEN, i, at
            before, now = read[at], stamps[i]
            if before >= 0 and (before >> _BLOCK) == (now >> _BLOCK) and ((before ^ now) & SEVERAL_WARPS) != 0:
                now |= SEVERAL_WARPS if (before ^ now) & _SAME_WARP else ONE_WARP
            read[at] = now
    return OK, 0, 0


def _write(offsets, stamps, size, granule, written, read, arriving):  # type: ignore[no-untyped-def]
    for i in range(offsets.size):
        for at in range(offsets[i] // granule, (offsets[i] + size - 1) // granule + 1):
            if arriving[at]:
                return ARRIVING, i, at
            if unordered(written[at], stamps[i]):
                return WRITTEN, i, at
            if unordered(read[at], stamps[i]):
                return READ, i, at
            written[at] = stamps[i]
    return OK, 0, 0


@cache
def compiled() -> tuple[Any, Any]:
    """The two checks: of reads and of writes. Each notes the accesses and returns ``(what is wrong, access, granule)``."""
    global unordered
    from numba import njit, types

    unordered = njit(inline="always")(_unordered)
    words, flags = types.Array(types.int64, 1, "C"), types.Array(types.boolean, 1, "C")
    signature = types.UniTuple(types.int64, 3)(words, words, types.int64, types.int64, words, words, flags)
    return njit(signature)(_read), njit(signature)(_write)
