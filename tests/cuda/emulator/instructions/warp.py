"""What the threads of a warp do together: shuffles, votes, barriers; and fences, which order memory that the emulator
keeps in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Diverged, EmulationError, UnknownInstruction
from ..parser import Pair
from .registry import allow, assign, instruction, lanes_of

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction

Array = np.ndarray[Any, Any]


def _require_members(machine: Machine, members: Array, mask: Array | None) -> None:
    """Raise where a thread that the mask of members names is not there, or one that is there is not named."""
    active = np.full(machine.lanes, True) if mask is None else mask
    packed = np.packbits(active.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)[:, 0]
    named = members.reshape(-1, 32)
    wrong = active.reshape(-1, 32) & (named != packed[:, None])
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise Diverged(f"threads {int(named[row, column]):#010x} of a warp are called, and {int(packed[row]):#010x} come")


@instruction("shfl.sync")
def shfl(machine: Machine, which: Instruction) -> Step:
    mode = which.modifiers[1]
    if which.modifiers[2:] != ("b32",) or mode not in ("up", "down", "bfly", "idx"):
        raise UnknownInstruction(which.opcode)
    target, a, b, c, members = which.operands
    first = target.first if isinstance(target, Pair) else target
    out = machine.target(first, "b32")
    valid_out = machine.target(target.second, "pred") if isinstance(target, Pair) else None
    value, shift, limits, named = (machine.source(operand, "b32") for operand in (a, b, c, members))
    lane = (np.arange(machine.lanes) % 32).astype(np.int64)
    start = np.arange(machine.lanes) - lane

    def step(mask: Array | None) -> None:
        _require_members(machine, named, mask)
        by, clamp, segment = (
            (shift & 31).astype(np.int64),
            (limits & 31).astype(np.int64),
            ((limits >> 8) & 31).astype(np.int64),
        )
        largest = (lane & segment) | (clamp & ~segment)
        if mode == "up":
            other = lane - by
            valid = other >= largest
        else:
            other = {"down": lane + by, "bfly": lane ^ by, "idx": (lane & segment) | (by & ~segment)}[mode]
            valid = other <= largest
        source = start + np.where(valid, other, lane)
        if mask is not None and (~mask[source] & mask).any():
            raise Diverged("a shuffle reads from a thread that is not there")
        np.copyto(out, value[source], where=True if mask is None else mask)
        if valid_out is not None:
            np.copyto(valid_out, valid, where=True if mask is None else mask)

    return step


@instruction("vote.sync")
def vote(machine: Machine, which: Instruction) -> Step:
    mode = which.modifiers[1]
    source, named = machine.source(which.operands[1], "pred"), machine.source(which.operands[2], "b32")
    if mode not in ("all", "any", "uni", "ballot"):
        raise UnknownInstruction(which.opcode)
    out = machine.target(which.operands[0], "b32" if mode == "ballot" else "pred")

    def step(mask: Array | None) -> None:
        _require_members(machine, named, mask)
        active = (np.full(machine.lanes, True) if mask is None else mask).reshape(-1, 32)
        votes = source.reshape(-1, 32)
        if mode == "ballot":
            row = np.packbits(votes & active, axis=1, bitorder="little").view(np.uint32)[:, 0]
        else:
            every, some = (votes | ~active).all(1), (votes & active).any(1)
            row = {"all": every, "any": some, "uni": every | ~some}[mode]
        np.copyto(out, np.repeat(row, 32), where=True if mask is None else mask)

    return step


@instruction("activemask")
def activemask(machine: Machine, which: Instruction) -> Step:
    out = machine.target(which.operands[0], allow(which))

    def step(mask: Array | None) -> None:
        active = (np.full(machine.lanes, True) if mask is None else mask).reshape(-1, 32)
        row = np.packbits(active, axis=1, bitorder="little").view(np.uint32)[:, 0]
        np.copyto(out, np.repeat(row, 32), where=True if mask is None else mask)

    return step


@instruction("redux.sync")
def redux(machine: Machine, which: Instruction) -> Step:
    _, operation, kind = which.modifiers
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    if operation not in functions or kind not in ("u32", "s32", "b32"):
        raise UnknownInstruction(which.opcode)
    source, named = machine.source(which.operands[1], kind), machine.source(which.operands[2], "b32")
    out = machine.target(which.operands[0], kind)

    def step(mask: Array | None) -> None:
        _require_members(machine, named, mask)
        for row in range(0, machine.lanes, 32):
            lanes = np.arange(row, row + 32)
            lanes = lanes if mask is None else lanes[mask[row : row + 32]]
            if len(lanes):
                out[lanes] = functions[operation].reduce(source[lanes], dtype=source.dtype)

    return step


@instruction("bar.warp")
def warp_barrier(machine: Machine, which: Instruction) -> Step:
    named = machine.source(which.operands[0], "b32")

    def step(mask: Array | None) -> None:
        _require_members(machine, named, mask)
        machine.shared.warp_barrier(None if mask is None else np.flatnonzero(mask))

    return step


@instruction("membar", "fence")
def fence(machine: Machine, which: Instruction) -> Step:
    known = {"gl", "cta", "sys", "gpu", "sc", "acq_rel", "proxy", "async", "shared::cta"}
    if set(which.modifiers) - known:
        raise UnknownInstruction(which.opcode)

    proxy = "async" in which.modifiers

    def step(mask: Array | None) -> None:
        machine.statistics.events[which.opcode] += 1
        if proxy:
            machine.shared.fence(lanes_of(mask))

    return step


@instruction("trap", "brkpt")
def trap(machine: Machine, which: Instruction) -> Step:
    def step(mask: Array | None) -> None:
        raise EmulationError("the kernel stopped itself")

    return step


@instruction("elect.sync")
def elect(machine: Machine, which: Instruction) -> Step:
    target, members = which.operands
    if not isinstance(target, Pair):
        raise UnknownInstruction(which.text)
    out, named = machine.target(target.second, "pred"), machine.source(members, "b32")
    first = np.arange(machine.lanes) % 32 == 0
    plain = assign(out, lambda: first)

    def step(mask: Array | None) -> None:
        machine.warps(mask)
        _require_members(machine, named, mask)
        plain(mask)

    return step
