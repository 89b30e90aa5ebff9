"""The table of instructions, and what their functions have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnknownInstruction

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction

Array = np.ndarray[Any, Any]
Binder = Callable[["Machine", "Instruction"], "Step"]

REGISTRY: dict[str, Binder] = {}
"""Functions by opcode: ``add``, or with its first modifiers where they make another instruction: ``bar.warp``."""


def instruction(*names: str) -> Callable[[Binder], Binder]:
    """Enter a function into the table."""

    def enter(function: Binder) -> Binder:
        for name in names:
            REGISTRY[name] = function
        return function

    return enter


def allow(which: Instruction, *modifiers: str) -> str:
    """The type, which is the last modifier; raises where there is a modifier before it that is not allowed."""
    for modifier in which.modifiers[:-1]:
        if modifier not in modifiers:
            raise UnknownInstruction(f"the modifier .{modifier} of {which.opcode} is not known")
    return which.modifiers[-1]


def assign(out: Array, compute: Callable[[], Array]) -> Step:
    """A step that puts a calculated array into a register."""

    def step(mask: Array | None) -> None:
        if mask is None:
            out[...] = compute()
        else:
            np.copyto(out, compute(), where=mask)

    return step


def elementwise(function: Any, inputs: Sequence[Array], out: Array) -> Step:
    """A step that applies a ufunc."""

    def step(mask: Array | None) -> None:
        if mask is None:
            function(*inputs, out=out)
        else:
            np.copyto(out, function(*inputs), where=mask)

    return step


def lanes_of(mask: Array | None) -> Array | None:
    """The numbers of the lanes of a mask; None for all."""
    return None if mask is None else np.flatnonzero(mask)


def extend(values: Array, out: Array) -> Array:
    """A result that is narrower than its register, filled up by its sign or by zeros."""
    if values.dtype.itemsize >= out.dtype.itemsize or values.dtype.kind not in "iu":
        return values.view(out.dtype) if values.dtype.itemsize == out.dtype.itemsize else values
    wide = np.dtype(f"{values.dtype.kind}{out.dtype.itemsize}")
    return values.astype(wide).view(out.dtype)
