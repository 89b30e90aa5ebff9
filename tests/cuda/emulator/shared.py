"""Shared memory of the blocks that run side by side.

An asynchronous copy (``cp.async``) may write at any moment between its issue and the end of the wait for it. So its
destination counts as written when it is issued, is closed to everybody until then, and counts as written again, by
the thread that waited.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import races
from .errors import Misaligned, OutOfBounds, Race
from .memory import CARRIERS

Array = np.ndarray[Any, Any]

BASE = 1024
"""Address of the first byte: the first KiB belongs to the system, as on compute capability 9.0, and 0 is nobody's address."""


class SharedMemory:
    """``size`` bytes for each of ``blocks`` blocks, and ``lanes`` threads in all.

    ``granule`` is the unit in which races are looked for: the bytes of the kernel's smallest access.
    """

    def __init__(self, blocks: int, lanes: int, size: int, granule: int) -> None:
        self.size = max(-(-size // 16) * 16, 16)
        self.limit = size
        memory = np.empty(blocks * self.size + 16, np.uint8)
        start = -memory.ctypes.data % 16
        self.bytes = memory[start : start + blocks * self.size]
        self._views = {n: self.bytes.view(dtype) for n, dtype in CARRIERS.items()}
        self._granule = granule
        granules = len(self.bytes) // granule
        self._owners = np.empty(granules, np.int64), np.empty(granules, np.int64), np.empty(granules, np.bool_)
        # For the tensor cores' own way to memory: readers under way, writers' fences, and the number of fences at each write.
        self._in_use = np.empty(granules, np.int32)
        self._fences, self._fences_at = np.zeros(lanes, np.int32), np.full(granules, -1, np.int32)
        self._writer = np.zeros(granules, np.int32)
        self.asynchronous = False
        per_block = lanes // blocks
        self._thread = np.tile(np.arange(per_block, dtype=np.int64), blocks)
        self.starts = np.repeat(np.arange(blocks, dtype=np.int64) * self.size, per_block) - BASE
        self._time = np.zeros(lanes, np.int64)
        self._stamp = self._thread.copy()
        self.reset()

    def reset(self) -> None:
        """A new launch: NaN everywhere, as nothing is known of what the last kernel left."""
        self.bytes[:] = 0xFF
        written, read, arriving = self._owners
        written[:] = read[:] = -1
        arriving[:] = False
        self._in_use[:] = self._fences[:] = 0
        self._fences_at[:] = -1
        self._time[:] = 0
        self._stamp[:] = self._thread

    def barrier(self, lanes: Array) -> None:
        """The threads passed a barrier of their block together."""
        self._set_time(lanes, ((self._time[lanes] >> races.WARP_SYNC_BITS) + 1) << races.WARP_SYNC_BITS)

    def warp_barrier(self, lanes: Array | None) -> None:
        """The threads passed a barrier of their warp together."""
        where = slice(None) if lanes is None else lanes
        self._set_time(where, self._time[where] + 1)

    def _set_time(self, lanes: Any, time: Array) -> None:
        self._time[lanes] = time
        self._stamp[lanes] = (time << races.THREAD_BITS) | self._thread[lanes]

    def offsets(self, addresses: Array, size: int, lanes: Array | None) -> Array:
        """Where the addresses lie in the memory of all blocks, after the checks of bounds and alignment."""
        addresses = addresses.astype(np.int64)
        if size > 1 and (np.bitwise_or.reduce(addresses) & (size - 1)):
            bad = int(np.flatnonzero(addresses & (size - 1))[0])
            raise Misaligned(f"shared address {int(addresses[bad]):#x} is no multiple of {size} (lane {bad} of the access)")
        if addresses.size and (int(addresses.min()) < BASE or int(addresses.max()) + size > BASE + self.limit):
            bad = int(np.flatnonzero((addresses < BASE) | (addresses + size > BASE + self.limit))[0])
            raise OutOfBounds(
                f"shared access of {size} bytes at byte {int(addresses[bad]) - BASE} of {self.limit} (lane {bad} of the access)"
            )
        result: Array = addresses + (self.starts if lanes is None else self.starts[lanes])
        return result

    def read(self, offsets: Array, size: int, lanes: Array | None) -> Array:
        """The items at offsets; a race raises."""
        self._check("read", offsets, size, lanes)
        items: Array = self._views[size].take(offsets >> (size.bit_length() - 1))
        return items

    def write(self, offsets: Array, items: Array, size: int, lanes: Array | None) -> None:
        """Put items at offsets; a race raises."""
        self._check("write", offsets, size, lanes)
        self._views[size][offsets >> (size.bit_length() - 1)] = items
        if self.asynchronous:
            who = np.arange(len(self._fences)) if lanes is None else lanes
            for i in range(0, size, self._granule):
                at = (offsets + i) // self._granule
                self._writer[at], self._fences_at[at] = who, self._fences[who]

    def fence(self, lanes: Array | None) -> None:
        """Threads make what they wrote visible to the tensor cores (``fence.proxy.async``)."""
        self._fences[slice(None) if lanes is None else lanes] += 1

    def begin_use(self, offsets: Array, lane: int) -> Array:
        """The 32-bit words at offsets, for tensor cores that read them from now until `end_use` on behalf of a thread."""
        at = self._granules(offsets)
        behind = (self._fences_at[at] >= 0) & (self._fences[self._writer[at]] == self._fences_at[at])
        if behind.any():
            bad = int(at[np.flatnonzero(behind)[0]])
            raise Race(
                f"tensor cores read shared byte {bad * self._granule % self.size}, which its writer has not fenced since"
            )
        words = self.read(offsets, 4, np.full(len(offsets), lane))
        np.add.at(self._in_use, at, 1)
        return words

    def end_use(self, offsets: Array, lane: int) -> None:
        """The thread waited for the tensor cores, which may have read until now."""
        np.subtract.at(self._in_use, self._granules(offsets), 1)
        self.read(offsets, 4, np.full(len(offsets), lane))

    def _granules(self, offsets: Array) -> Array:
        """The granules of words at offsets."""
        return np.concatenate([(offsets + i) // self._granule for i in range(0, 4, self._granule)])

    def begin_copy(self, offsets: Array, size: int, lanes: Array | None) -> None:
        """Close the destination of an asynchronous copy."""
        self._check("write", offsets, size, lanes)
        self._mark(offsets, size, True)

    def end_copy(self, offsets: Array, items: Array, size: int, lanes: Array) -> None:
        """The copy has arrived, in the eyes of the thread that issued it."""
        self._mark(offsets, size, False)
        self.write(offsets, items, size, lanes)

    def _mark(self, offsets: Array, size: int, arriving: bool) -> None:
        for i in range(0, size, self._granule):
            self._owners[2][(offsets + i) // self._granule] = arriving

    def _check(self, doing: str, offsets: Array, size: int, lanes: Array | None) -> None:
        if self.asynchronous and doing == "write":
            for i in range(0, size, self._granule):
                if self._in_use[(offsets + i) // self._granule].any():
                    raise Race("a write to shared memory that tensor cores may still read: nobody waited for them")
        checks = races.compiled()
        stamps = self._stamp if lanes is None else self._stamp[lanes]
        wrong, lane, at = (checks.read if doing == "read" else checks.write)(
            offsets, stamps, size, self._granule, *self._owners
        )
        if wrong == races.OK:
            return
        byte, me = at * self._granule % self.size, int(stamps[lane]) & races.SEVERAL_WARPS
        if wrong == races.ARRIVING:
            raise Race(f"thread {me} would {doing} shared byte {byte}, which a copy that nobody waited for may still write")
        done = "written" if wrong == races.WRITTEN else "read"
        other = int(self._owners[0 if wrong == races.WRITTEN else 1][at]) & races.SEVERAL_WARPS
        who = f"thread {other}" if other < races.ONE_WARP else "several threads"
        raise Race(f"thread {me} would {doing} shared byte {byte}, which {who} has {done} since the last barrier")
