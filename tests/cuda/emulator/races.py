"""The search for races: who touched each granule of memory last, and when.

A *stamp* is the number of barriers that a block has passed, the number of its warp's own barriers, and the thread.
Two accesses by different threads, at least one of them a write, are a race unless a barrier that both take part in
stands between them. These loops run for every access to shared memory, so Numba compiles them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

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


# Global memory: a stamp is the block, the number of barriers that it has passed, and the thread.
_EPOCH_SHIFT, _BLOCK_SHIFT = 11, 31
_SEVERAL_THREADS = (1 << _EPOCH_SHIFT) - 1
_SEVERAL_BLOCKS = ((1 << 32) - 1) << _BLOCK_SHIFT
BARRIER = 1 << _EPOCH_SHIFT
"""What a barrier adds to the stamps of its block."""

READING, READING_CONSTANT, WRITING = range(3)


def global_stamps(blocks: Any, threads: Any) -> Any:
    """The stamps of threads when their blocks begin."""
    return (blocks << _BLOCK_SHIFT) | threads


def block_and_thread(stamp: int) -> tuple[int, int]:
    """Whose stamp it is."""
    return stamp >> _BLOCK_SHIFT, stamp & _SEVERAL_THREADS


def _clash(before, now):  # type: ignore[no-untyped-def]
    """Whether nothing orders two accesses to global memory."""
    if before < 0 or before == now:
        return False
    return (before >> _BLOCK_SHIFT) != (now >> _BLOCK_SHIFT) or (
        (before >> _EPOCH_SHIFT) == (now >> _EPOCH_SHIFT) and ((before ^ now) & _SEVERAL_THREADS) != 0
    )


def _touch(offsets, stamps, size, granule, written, read, how):  # type: ignore[no-untyped-def]
    for i in range(offsets.size):
        now = stamps[i]
        for at in range(offsets[i] // granule, (offsets[i] + size - 1) // granule + 1):
            # What the compiler calls constant must not be written in the whole launch, not even by the same thread before.
            if clash(written[at], now) or (how == READING_CONSTANT and written[at] >= 0):
                return WRITTEN, i, at
            before = read[at]
            if how == WRITING:
                if clash(before, now):
                    return READ, i, at
                written[at] = now
            elif clash(before, now):
                read[at] = _SEVERAL_BLOCKS if (before >> _BLOCK_SHIFT) != (now >> _BLOCK_SHIFT) else now | _SEVERAL_THREADS
            elif before >> _EPOCH_SHIFT != now >> _EPOCH_SHIFT or before < 0:
                read[at] = now
    return OK, 0, 0


class Checks(NamedTuple):
    """Each notes accesses and returns ``(what is wrong, access, granule)``."""

    read: Any
    write: Any
    touch: Any


@cache
def compiled() -> Checks:
    """The checks of reads and writes of shared memory, and of accesses to global memory, as machine code."""
    global unordered, clash
    from numba import njit, types

    unordered, clash = njit(inline="always")(_unordered), njit(inline="always")(_clash)
    words, flags = types.Array(types.int64, 1, "C"), types.Array(types.boolean, 1, "C")
    signature = types.UniTuple(types.int64, 3)(words, words, types.int64, types.int64, words, words, flags)
    anywhere = types.UniTuple(types.int64, 3)(words, words, types.int64, types.int64, words, words, types.int64)
    return Checks(njit(signature)(_read), njit(signature)(_write), njit(anywhere)(_touch))
