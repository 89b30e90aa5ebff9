"""A kernel made ready to run: its straight stretches of code, and where its variables lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from . import parser
from .errors import UnknownInstruction

if TYPE_CHECKING:
    from .machine import Machine

Array = np.ndarray[Any, Any]


@dataclass
class Stretch:
    """Instructions that run one after the other, and the one that ends them, if it is no ordinary one."""

    start: int
    instructions: list[parser.Instruction]
    last: parser.Instruction | None
    goal: int | None = None

    def exit(self, machine: Machine, mask: Array | None, at: int, place: Array, waiting: Array, end: int) -> int | None:
        """Where the lanes of the stretch go on: all at the number returned, or, if None, as ``place`` now says."""
        last = self.last
        if last is None:
            return at + 1
        if last.name == "bar" or last.name == "barrier":
            machine.arrive(mask, at, place, waiting, _barrier_number(last), end)
            return None
        goal = end if self.goal is None else self.goal
        if last.predicate is None:
            return goal
        taken = machine.source(last.predicate, "pred")
        taken = ~taken if last.negated else taken
        if mask is not None:
            taken = taken & mask
        count = np.count_nonzero(taken)
        if not count:
            return at + 1
        if count == (machine.lanes if mask is None else np.count_nonzero(mask)):
            return goal
        place[slice(None) if mask is None else mask] = at + 1
        place[taken] = goal
        return None


def _barrier_number(instruction: parser.Instruction) -> int:
    if len(instruction.operands) != 1 or not isinstance(instruction.operands[0], parser.Immediate) or instruction.predicate:
        raise UnknownInstruction(f"a barrier for some threads of a block: {instruction.text}")
    return int(instruction.operands[0].text, 0)


class Program:
    """A kernel of a module.

    Parameters
    ----------
    ptx : str
    name : str, optional
        Of the kernel; not needed where there is one.
    """

    def __init__(self, ptx: str, name: str | None = None) -> None:
        module = parser.parse(ptx)
        self.target = module.target
        self.kernel = module.kernels[name] if name else next(iter(module.kernels.values()))
        self.machines: dict[Any, Machine] = {}
        self.stretches = _stretches(self.kernel)
        variables = module.variables + self.kernel.variables
        self.shared_offsets: dict[str, int] = {}
        self.local_offsets: dict[str, int] = {}
        self.globals: dict[str, Array] = {}
        self.shared_size = self.local_size = self.dynamic_align = 0
        self.dynamic_names = []
        for variable in variables:
            if variable.space == "shared" and variable.size is None:
                self.dynamic_names.append(variable.name)
                self.dynamic_align = max(self.dynamic_align, variable.align)
            elif variable.space == "shared":
                start = -(-self.shared_size // variable.align) * variable.align
                self.shared_offsets[variable.name] = start
                self.shared_size = start + int(variable.size or 0)
            elif variable.space == "local":
                start = -(-self.local_size // variable.align) * variable.align
                self.local_offsets[variable.name] = start
                self.local_size = start + int(variable.size or 0)
            elif variable.space in ("global", "const"):
                self.globals[variable.name] = _initial(variable)
            else:
                raise UnknownInstruction(f"a variable in .{variable.space}")
        self.granule = _granule(self.kernel, "shared")
        self.global_granule = _granule(self.kernel, "global")

    def pack(self, arguments: tuple[Any, ...]) -> dict[str, np.generic]:
        """The arguments of a launch by the names of the parameters, in their types."""
        from .machine import TYPES

        parameters = self.kernel.parameters
        if len(arguments) != len(parameters):
            raise TypeError(f"{self.kernel.name} takes {len(parameters)} arguments, {len(arguments)} came")
        packed = {}
        for parameter, value in zip(parameters, arguments, strict=True):
            dtype = TYPES[parameter.type]
            if dtype.kind in "iu":
                value = int(value) & ((1 << (8 * dtype.itemsize)) - 1)
                packed[parameter.name] = np.array(value, f"u{dtype.itemsize}").view(dtype)[()]
            else:
                packed[parameter.name] = dtype.type(value)
        return packed


def _stretches(kernel: parser.Kernel) -> list[Stretch]:
    count = len(kernel.instructions)
    starts = {0, *(at for at in kernel.labels.values() if at < count)}
    for i, instruction in enumerate(kernel.instructions):
        if _ends(instruction) and i + 1 < count:
            starts.add(i + 1)
    order = [*sorted(starts), count]
    number = {start: i for i, start in enumerate(order)}
    stretches = []
    for start, stop in pairwise(order):
        body = kernel.instructions[start:stop]
        last = body.pop() if body and _ends(body[-1]) else None
        goal = None
        if last and last.name == "bra":
            label = last.operands[0]
            assert isinstance(label, parser.Symbol), last.text
            goal = number[kernel.labels[label.name]]
        stretches.append(Stretch(start, body, last, goal))
    return stretches


def _ends(instruction: parser.Instruction) -> bool:
    if instruction.name in ("bra", "ret", "exit"):
        return True
    return instruction.name in ("bar", "barrier") and "warp" not in instruction.modifiers


def _initial(variable: parser.Variable) -> Array:
    values = np.zeros(max(variable.size or 0, len(variable.values)) + 16, np.uint8)
    values = values[-values.ctypes.data % 16 :][: variable.size]
    if variable.values:
        width = parser.SIZES[variable.type]
        packed = np.array(variable.values, f"u{width}").view(np.uint8)
        values[: len(packed)] = packed
    return values


def _granule(kernel: parser.Kernel, space: str) -> int:
    """Bytes of the smallest access that may be to a state space."""
    sizes = [4]
    for instruction in kernel.instructions:
        named = [m for m in instruction.modifiers if re.match("global|shared|local|param|const", m)]
        if instruction.name in ("ld", "st", "atom", "red") and (not named or named[0].startswith(space)):
            found = re.fullmatch(r"[busf](\d+)", instruction.modifiers[-1])
            if found:
                sizes.append(int(found[1]) // 8)
    return min(sizes)
