"""Loads and stores: of parameters, of global, shared and local memory, and by generic addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import races
from ..errors import EmulationError, OutOfBounds, UnknownInstruction
from ..memory import CARRIERS
from ..parser import SIZES, Address, Symbol, Vector
from .registry import extend, instruction, lanes_of

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction, Operand

Array = np.ndarray[Any, Any]

_SPACES = ("global", "shared", "shared::cta", "local", "param", "const")
_HINTS = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"}  # caches
_HINTS |= {"weak", "volatile", "relaxed", "acquire", "release", "cta", "gpu", "sys"}  # order and scope
_HINTS |= {f"L1::evict_{order}" for order in ("normal", "unchanged", "first", "last")} | {"L1::no_allocate"}
_HINTS |= {"L2::64B", "L2::128B", "L2::256B"}


def addresses_of(machine: Machine, operand: Operand, lanes: Array | None) -> Array:
    """The addresses of an operand in brackets, for some lanes."""
    assert isinstance(operand, Address)
    if isinstance(operand.base, Symbol):
        count = machine.lanes if lanes is None else len(lanes)
        return np.full(count, machine.symbol(operand.base.name) + operand.offset, np.uint64)
    base = machine.register(operand.base)
    if lanes is not None:
        base = base[lanes]
    if base.dtype.itemsize == 4:
        return (base.view(np.uint32) + np.uint32(operand.offset & 0xFFFFFFFF)).astype(np.uint64)
    return base.view(np.uint64) + np.uint64(operand.offset & 0xFFFFFFFFFFFFFFFF)


def _shape(which: Instruction) -> tuple[str, str, int]:
    """State space, type and number of elements of an access."""
    *modifiers, kind = which.modifiers
    space, count = "", 1
    for modifier in modifiers:
        if modifier in _SPACES and not space:
            space = modifier.removesuffix("::cta")
        elif modifier in ("v2", "v4"):
            count = int(modifier[1])
        elif modifier not in _HINTS:
            raise UnknownInstruction(f"the modifier .{modifier} of {which.opcode} is not known")
    return space, kind, count


def read_global(machine: Machine, addresses: Array, size: int, lanes: Array | None, how: int = races.READING) -> Array:
    """Items in global memory, after the checks."""
    machine.memory.check(addresses, size)
    machine.memory.touch(addresses, size, machine.moments if lanes is None else machine.moments[lanes], how)
    if machine.measure:
        machine.statistics.global_access("load", addresses, size, lanes)
    return machine.memory.read(addresses, size)


def read(machine: Machine, space: str, addresses: Array, size: int, lanes: Array | None, how: int = races.READING) -> Array:
    """Items of ``size`` bytes in a state space, after the checks."""
    if space == "":
        space, window = _generic(addresses)
        addresses = addresses - np.uint64(window)
    if space in ("global", "const"):
        return read_global(machine, addresses, size, lanes, how)
    if space == "shared":
        offsets = machine.shared.offsets(addresses, size, lanes)
        if machine.measure:
            machine.statistics.shared_access("load", offsets, size, lanes)
        return machine.shared.read(offsets, size, lanes)
    columns = _local(machine, addresses, size)
    rows = np.arange(machine.lanes) if lanes is None else lanes
    return np.ascontiguousarray(machine.local[rows[:, None], columns]).view(CARRIERS[size])[:, 0]


def write(machine: Machine, space: str, addresses: Array, items: Array, size: int, lanes: Array | None) -> None:
    """Put items of ``size`` bytes into a state space, after the checks."""
    if space == "":
        space, window = _generic(addresses)
        addresses = addresses - np.uint64(window)
    if space == "global":
        machine.memory.check(addresses, size, write=True)
        machine.memory.touch(addresses, size, machine.moments if lanes is None else machine.moments[lanes], races.WRITING)
        if machine.measure:
            machine.statistics.global_access("store", addresses, size, lanes)
        machine.memory.write(addresses, items, size)
    elif space == "shared":
        offsets = machine.shared.offsets(addresses, size, lanes)
        if machine.measure:
            machine.statistics.shared_access("store", offsets, size, lanes)
        machine.shared.write(offsets, items, size, lanes)
    elif space == "local":
        rows = np.arange(machine.lanes) if lanes is None else lanes
        machine.local[rows[:, None], _local(machine, addresses, size)] = items.view(np.uint8).reshape(-1, size)
    else:
        raise UnknownInstruction(f"a store to .{space}")


def _generic(addresses: Array) -> tuple[str, int]:
    """The state space that generic addresses are in, and where it begins among them."""
    from ..machine import LOCAL_WINDOW, SHARED_WINDOW

    kinds = [addresses < np.uint64(SHARED_WINDOW), addresses < np.uint64(LOCAL_WINDOW)]
    if kinds[0].all():
        return "global", 0
    if not kinds[1].any():
        return "local", LOCAL_WINDOW
    if kinds[1].all() and not kinds[0].any():
        return "shared", SHARED_WINDOW
    raise EmulationError("one access reaches several state spaces")


def _local(machine: Machine, addresses: Array, size: int) -> Array:
    columns = addresses.astype(np.int64)[:, None] + np.arange(size)
    if (columns < 0).any() or (columns >= machine.local.shape[1]).any():
        raise OutOfBounds("an access outside local memory")
    return columns


@instruction("ld", "ldu")
def ld(machine: Machine, which: Instruction) -> Step:
    space, kind, count = _shape(which)
    target, source = which.operands
    elements = target.elements if isinstance(target, Vector) else (target,)
    if len(elements) != count:
        raise UnknownInstruction(which.text)
    outs = [None if getattr(e, "name", "") == "_" else machine.register(e) for e in elements]
    if space == "param":
        return _parameter(machine, which, outs)
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{SIZES[kind]}")
    size = SIZES[kind] * count
    how = races.READING_CONSTANT if "nc" in which.modifiers else races.READING

    def step(mask: Array | None) -> None:
        lanes = lanes_of(mask)
        items = read(machine, space, addresses_of(machine, source, lanes), size, lanes, how)
        columns = items.view(dtype).reshape(-1, count)
        for i, out in enumerate(outs):
            if out is not None:
                value = columns[:, i]
                value = extend(value.copy() if count > 1 else value, out)
                out[slice(None) if lanes is None else lanes] = value

    return step


def _parameter(machine: Machine, which: Instruction, outs: list[Array | None]) -> Step:
    source = which.operands[1]
    assert isinstance(source, Address)
    if not isinstance(source.base, Symbol) or source.offset or len(outs) != 1 or outs[0] is None:
        raise UnknownInstruction(which.text)
    name, out = source.base.name, outs[0]

    def step(mask: Array | None) -> None:
        value = np.asarray(machine.parameters[name])
        value = value.astype(out.dtype) if value.dtype.itemsize != out.dtype.itemsize else value.view(out.dtype)
        np.copyto(out, value, where=True if mask is None else mask)

    return step


@instruction("st")
def st(machine: Machine, which: Instruction) -> Step:
    space, kind, count = _shape(which)
    target, source = which.operands
    elements = source.elements if isinstance(source, Vector) else (source,)
    if len(elements) != count:
        raise UnknownInstruction(which.text)
    bits = f"b{8 * SIZES[kind]}"
    values = [machine.source(element, bits) for element in elements]
    size = SIZES[kind] * count

    def step(mask: Array | None) -> None:
        lanes = lanes_of(mask)
        parts = values if lanes is None else [value[lanes] for value in values]
        items = np.stack(parts, 1).view(CARRIERS[size])[:, 0]
        write(machine, space, addresses_of(machine, target, lanes), items, size, lanes)

    return step
