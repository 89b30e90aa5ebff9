"""What each instruction does. One module for each kind; every function here binds one instruction to the arrays of a
machine.

A modifier that a function does not list is an error, as is an instruction that no function takes: nothing is ever
skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnknownInstruction
from . import asynchronous, atomics, conversions, floats, integers, loads, moves, tensor, warp, warpgroup
from .registry import REGISTRY

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction

__all__ = [
    "asynchronous",
    "atomics",
    "bind",
    "conversions",
    "floats",
    "integers",
    "loads",
    "moves",
    "tensor",
    "warp",
    "warpgroup",
]


def bind(machine: Machine, instruction: Instruction) -> Step:
    """The closure that carries out an instruction on a machine."""
    for length in range(len(instruction.modifiers), -1, -1):
        name = ".".join((instruction.name, *instruction.modifiers[:length]))
        if name in REGISTRY:
            return REGISTRY[name](machine, instruction)
    raise UnknownInstruction(f"the instruction {instruction.opcode} is not known")
