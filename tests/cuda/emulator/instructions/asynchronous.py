"""Copies from global to shared memory that run beside the threads (``cp.async``).

The bytes are read when a copy is issued, and arrive when the thread waits for its group: what is read from the
destination before that is a race, see `SharedMemory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EmulationError, UnknownInstruction
from ..memory import CARRIERS
from ..parser import Immediate
from .loads import addresses_of, read_global
from .registry import instruction, lanes_of

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction

Array = np.ndarray[Any, Any]


@dataclass
class Copy:
    """Copies of one instruction that are under way: one for each lane, in the lane's group."""

    offsets: Array
    items: Array
    size: int
    lanes: Array
    groups: Array


@instruction("cp.async")
def cp_async(machine: Machine, which: Instruction) -> Step:
    _, cache, *rest = which.modifiers
    known = {"shared", "shared::cta", "global", "L2::64B", "L2::128B", "L2::256B"}
    size_operand = which.operands[2]
    if cache not in ("ca", "cg") or set(rest) - known or not isinstance(size_operand, Immediate):
        raise UnknownInstruction(which.text)
    size = int(size_operand.text)
    if size not in ((16,) if cache == "cg" else (4, 8, 16)):
        raise UnknownInstruction(f"cp.async.{cache} of {size} bytes")
    wanted = machine.source(which.operands[3], "u32") if len(which.operands) > 3 else None

    def step(mask: Array | None) -> None:
        lanes = lanes_of(mask)
        everyone = np.arange(machine.lanes) if lanes is None else lanes
        source = addresses_of(machine, which.operands[1], lanes)
        offsets = machine.shared.offsets(addresses_of(machine, which.operands[0], lanes), size, lanes)
        if wanted is None:
            items = read_global(machine, source, size, lanes)
        else:
            items = _partial(machine, source, size, everyone, wanted[everyone])
        if machine.measure:
            machine.statistics.shared_access("copy", offsets, size, lanes)
        machine.shared.begin_copy(offsets, size, lanes)
        machine.copies.append(Copy(offsets, items, size, everyone, machine.committed[everyone]))

    return step


def _partial(machine: Machine, source: Array, size: int, lanes: Array, wanted: Array) -> Array:
    """The first ``wanted`` bytes of each item; the rest is 0, and what is not wanted is not touched."""
    if (wanted > size).any():
        raise EmulationError(f"cp.async of {size} bytes is told to read {int(wanted.max())}")
    items = np.zeros((len(source), size), np.uint8)
    for count in np.unique(wanted):
        these = np.flatnonzero(wanted == count)
        if count == size:
            items[these] = read_global(machine, source[these], size, lanes[these]).view(np.uint8).reshape(-1, size)
        else:
            for i in range(int(count)):
                at = source[these] + np.uint64(i)
                machine.memory.check(at, 1)
                items[these, i] = machine.memory.read(at, 1)
    return items.view(CARRIERS[size])[:, 0]


@instruction("cp.async.commit_group")
def commit(machine: Machine, which: Instruction) -> Step:
    if len(which.modifiers) != 2:
        raise UnknownInstruction(which.opcode)

    def step(mask: Array | None) -> None:
        machine.committed[slice(None) if mask is None else mask] += 1

    return step


@instruction("cp.async.wait_group", "cp.async.wait_all")
def wait(machine: Machine, which: Instruction) -> Step:
    # A lane's groups below its limit are complete: all but the newest n of those that it committed, or all copies.
    everything = which.modifiers[1] == "wait_all"
    allowed = 0 if everything else int(machine.source(which.operands[0], "u32")[0])

    def step(mask: Array | None) -> None:
        limit = machine.committed + 1 if everything else machine.committed - allowed
        left = []
        for copy in machine.copies:
            arrived = copy.groups < limit[copy.lanes]
            if mask is not None:
                arrived &= mask[copy.lanes]
            if arrived.all():
                machine.shared.end_copy(copy.offsets, copy.items, copy.size, copy.lanes)
            elif not arrived.any():
                left.append(copy)
            else:
                parts = copy.offsets, copy.items, copy.lanes, copy.groups
                offsets, items, lanes, _ = (part[arrived] for part in parts)
                machine.shared.end_copy(offsets, items, copy.size, lanes)
                offsets, items, lanes, groups = (part[~arrived] for part in parts)
                left.append(Copy(offsets, items, copy.size, lanes, groups))
        machine.copies[:] = left

    return step
