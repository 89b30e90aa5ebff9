"""Global memory: the real addresses of arrays on this machine.

A kernel gets the addresses that it would get on a device, and the emulator reads and writes there. So an array in a
test is a NumPy array, and a whole public call runs on it. Only what is registered may be touched: everything else is
out of bounds, to the byte.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right, insort
from typing import Any

import numpy as np

from . import races
from .errors import Misaligned, OutOfBounds, Race

Array = np.ndarray[Any, Any]

# What carries an access of so many bytes; nothing is calculated with it. A complex number is NumPy's only plain item of 16.
CARRIERS: dict[int, np.dtype[Any]] = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)} | {16: np.dtype(np.complex128)}
_ORIGIN = 4096  # NumPy refuses an array at the address 0


class _AddressSpace:
    """All of the process's memory as one array of items of one size."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "data": (_ORIGIN, False),
            "shape": ((1 << 47) // dtype.itemsize,),
            "typestr": dtype.str,
            "version": 3,
        }


_SPACES = {size: np.asarray(_AddressSpace(dtype)) for size, dtype in CARRIERS.items()}
_SHIFTS = {size: size.bit_length() - 1 for size in CARRIERS}


class GlobalMemory:
    """The arrays that kernels may touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._count: dict[int, int] = {}
        self._writable: set[int] = set()
        self._touched: dict[int, tuple[Array, Array]] = {}
        self._granule = 4

    def begin(self, granule: int) -> None:
        """A kernel starts, whose smallest access to global memory is of so many bytes: everything before it has happened."""
        self._touched.clear()
        self._granule = granule

    def register(self, array: Array, name: str = "", *, writable: bool = True) -> None:
        """Allow kernels to touch ``array`` for as long as it lives; its memory must be its own, without gaps."""
        low, high = np.lib.array_utils.byte_bounds(array)
        self.add(low, high, name or f"array {array.shape} {array.dtype}", writable=writable)
        weakref.finalize(array, self.remove, low)

    def add(self, low: int, high: int, name: str, *, writable: bool = True) -> None:
        """Allow kernels to touch the addresses from ``low`` to ``high``, which is not included."""
        if writable:
            self._writable.add(low)
        if low in self._ends:
            self._count[low] += 1
            self._ends[low] = max(self._ends[low], high)
        else:
            insort(self._starts, low)
            self._ends[low], self._names[low], self._count[low] = high, name, 1

    def protect(self, low: int) -> None:
        """Forbid writes to what starts at an address."""
        self._writable.discard(low)

    def remove(self, low: int) -> None:
        """Take back what `add` allowed."""
        self._count[low] -= 1
        if not self._count[low]:
            self._starts.remove(low)
            del self._ends[low], self._names[low], self._count[low]
            self._writable.discard(low)

    def check(self, addresses: Array, size: int, *, write: bool = False) -> None:
        """Raise where an access of ``size`` bytes is misaligned or leaves every region; the message names the nearest one."""
        if size > 1 and (np.bitwise_or.reduce(addresses) & (size - 1)):
            bad = int(np.flatnonzero(addresses & np.uint64(size - 1))[0])
            raise Misaligned(f"global address {int(addresses[bad]):#x} is no multiple of {size} (lane {bad} of the access)")
        if not addresses.size:
            return
        low, high = int(addresses.min()), int(addresses.max()) + size
        at = bisect_right(self._starts, low) - 1
        if at >= 0 and high <= self._ends[self._starts[at]] and (not write or self._starts[at] in self._writable):
            return
        starts = np.array([s for s in self._starts if not write or s in self._writable], np.uint64)
        ends = np.array([self._ends[int(s)] for s in starts], np.uint64)
        found = np.searchsorted(starts, addresses, "right") - 1
        wrong = found < 0
        if len(starts):
            wrong |= addresses + np.uint64(size) > ends[found]
        if wrong.any():
            bad = int(np.flatnonzero(wrong)[0])
            doing, place = "write" if write else "read", self.describe(int(addresses[bad]))
            raise OutOfBounds(f"global {doing} of {size} bytes {place} (lane {bad} of the access)")

    def touch(self, addresses: Array, size: int, stamps: Array, how: int) -> None:
        """Note an access that was checked; raise where it races with one by another thread of the launch."""
        starts = np.array(self._starts, np.uint64)
        regions = np.searchsorted(starts, addresses, "right") - 1 if len(starts) > 1 else np.zeros(len(addresses), np.int64)
        low, high = int(regions.min()), int(regions.max())
        for region in [low] if low == high else np.unique(regions).tolist():
            here = slice(None) if low == high else regions == region
            start = self._starts[region]
            if start not in self._touched:
                granules = (self._ends[start] - start) // self._granule + 2
                self._touched[start] = np.full(granules, -1, np.int64), np.full(granules, -1, np.int64)
            # Granules lie at multiples of their size, wherever the region starts.
            offsets = (addresses[here] - np.uint64(start - start % 16)).view(
                np.int64
            ) - start % 16 // self._granule * self._granule
            written, read = self._touched[start]
            wrong, access, _ = races.compiled().touch(offsets, stamps[here], size, self._granule, written, read, how)
            if wrong:
                block, thread = races.block_and_thread(int(stamps[here][access]))
                doing = "read" if how != races.WRITING else "write"
                done = "written" if wrong == races.WRITTEN else "read"
                raise Race(
                    f"thread {thread} of block {block} would {doing} {self.describe(int(addresses[here][access]))}, "
                    f"which another thread has {done} in the same launch"
                )

    def describe(self, address: int) -> str:
        """An address in words: how far it lies before or behind the nearest region, or within one."""
        best, words = None, f"at {address:#x}, with nothing registered"
        for start in self._starts:
            end = self._ends[start]
            if start <= address < end:
                return f"at byte {address - start} of {end - start} of {self._names[start]}"
            distance = start - address if address < start else address - end
            if best is None or distance < best:
                best = distance
                words = f"{distance} bytes {'before' if address < start else 'behind'} {self._names[start]}"
        return words

    @staticmethod
    def read(addresses: Array, size: int) -> Array:
        """The items at the addresses, which were checked."""
        items: Array = _SPACES[size].take(_index(addresses, size))
        return items

    @staticmethod
    def write(addresses: Array, items: Array, size: int) -> None:
        """Put items at the addresses, which were checked."""
        _SPACES[size][_index(addresses, size)] = items


def _index(addresses: Array, size: int) -> Array:
    index: Array = ((addresses - np.uint64(_ORIGIN)) >> np.uint64(_SHIFTS[size])).view(np.int64)
    return index
