"""Atomic operations, one thread after the other in the order of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnknownInstruction
from ..parser import SIZES
from .loads import addresses_of
from .registry import instruction, lanes_of

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction

Array = np.ndarray[Any, Any]

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda old, b: old + b,
    "min": min,
    "max": max,
    "and": lambda old, b: old & b,
    "or": lambda old, b: old | b,
    "xor": lambda old, b: old ^ b,
    "exch": lambda old, b: b,
    "cas": lambda old, b, c: c if old == b else old,
    "inc": lambda old, b: old.dtype.type(0) if old >= b else old + old.dtype.type(1),
    "dec": lambda old, b: b if old == 0 or old > b else old - old.dtype.type(1),
}


@instruction("atom", "red")
def atom(machine: Machine, which: Instruction) -> Step:
    from ..machine import TYPES

    *modifiers, kind = which.modifiers
    operation = [m for m in modifiers if m in _OPERATIONS]
    scopes = {"global", "gpu", "cta", "sys", "relaxed", "acq_rel", "acquire", "release"}
    if len(operation) != 1 or set(modifiers) - scopes - set(operation) or kind in ("f16", "bf16", "f16x2", "bf16x2"):
        raise UnknownInstruction(f"{which.opcode} is not known")
    apply, dtype, size = _OPERATIONS[operation[0]], TYPES[kind], SIZES[kind]
    returns = which.name == "atom"
    address, *sources = which.operands[1:] if returns else which.operands
    out = machine.target(which.operands[0], kind) if returns and getattr(which.operands[0], "name", "_") != "_" else None
    values = [machine.source(source, kind) for source in sources]

    def step(mask: Array | None) -> None:
        lanes = lanes_of(mask)
        places = addresses_of(machine, address, lanes)
        machine.memory.check(places, size, write=True)
        everyone = np.arange(machine.lanes) if lanes is None else lanes
        for i, lane in enumerate(everyone):
            place = places[i : i + 1]
            old = machine.memory.read(place, size).view(dtype)[0]
            new = np.array([apply(old, *(value[lane] for value in values))], dtype)
            machine.memory.write(place, new.view(f"u{size}"), size)
            if out is not None:
                out[lane] = old

    return step
