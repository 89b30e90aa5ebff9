"""What a launch did: how often each instruction ran, and how well its accesses to memory fitted together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .program import Program

Array = np.ndarray[Any, Any]


class Statistics:
    """Counts over all blocks of all launches of a program that are added up here.

    Attributes
    ----------
    instructions : Counter
        Executions by a thread, by opcode with its modifiers.
    requests, sectors, least_sectors : Counter
        Of accesses to global memory, by ``"load"`` and ``"store"``: instructions of a warp, parts of 32 bytes that they
        touched, and how few of these would have held the bytes.
    wavefronts, least_wavefronts : Counter
        Of accesses to shared memory, by ``"load"``, ``"store"`` and ``"copy"``: passes that the banks needed, and how few
        would have done.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.stretches: Counter[int] = Counter()
        self.requests: Counter[str] = Counter()
        self.sectors: Counter[str] = Counter()
        self.least_sectors: Counter[str] = Counter()
        self.wavefronts: Counter[str] = Counter()
        self.least_wavefronts: Counter[str] = Counter()
        self.events: Counter[str] = Counter()

    def executed(self, stretch: int, lanes: int) -> None:
        """A stretch of code ran for so many lanes."""
        self.stretches[stretch] += lanes

    @property
    def instructions(self) -> Counter[str]:
        return self._count(self.stretches)

    def _count(self, stretches: Counter[int]) -> Counter[str]:
        total: Counter[str] = Counter()
        for number, lanes in stretches.items():
            stretch = self._program.stretches[number]
            for instruction in stretch.instructions + ([stretch.last] if stretch.last else []):
                total[instruction.opcode] += lanes
        return total

    def add(self, other: Statistics) -> None:
        """Take over the counts of another launch of the program."""
        for name, values in vars(self).items():
            if isinstance(values, Counter):
                values.update(getattr(other, name))

    def global_access(self, kind: str, addresses: Array, size: int, lanes: Array | None) -> None:
        """One instruction's accesses to global memory."""
        lanes = np.arange(len(addresses)) if lanes is None else lanes
        warp = lanes.astype(np.uint64) >> np.uint64(5) << np.uint64(48)
        parts = [np.unique(warp | ((addresses + np.uint64(i)) >> np.uint64(5))) for i in range(0, size, 32)]
        requests, counts = np.unique(warp, return_counts=True)
        self.requests[kind] += len(requests)
        self.sectors[kind] += len(np.unique(np.concatenate(parts)))
        self.least_sectors[kind] += int(np.sum(-(-counts * size // 32)))

    def shared_access(self, kind: str, offsets: Array, size: int, lanes: Array | None) -> None:
        """One instruction's accesses to shared memory: 32 banks of 4 bytes serve 128 bytes in one pass."""
        lanes = np.arange(len(offsets)) if lanes is None else lanes
        group = lanes // (32 if size <= 4 else 128 // size)
        words = np.concatenate([offsets // 4 + i for i in range(max(size // 4, 1))])
        groups = np.concatenate([group] * max(size // 4, 1))
        distinct = np.unique(groups << 40 | words)
        banks = (distinct >> 40) * 32 + (distinct & 31)
        used, counts = np.unique(banks, return_counts=True)
        starts = np.flatnonzero(np.r_[True, np.diff(used // 32) > 0])
        self.wavefronts[kind] += int(np.maximum.reduceat(counts, starts).sum())
        self.least_wavefronts[kind] += len(starts)
