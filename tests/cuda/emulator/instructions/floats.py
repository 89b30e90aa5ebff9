"""Floating point. Only instructions with a defined result are known: no ``.approx``, no ``.ftz``, no other rounding than
to nearest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import numbers
from ..errors import UnknownInstruction
from .registry import allow, assign, instruction

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction

Array = np.ndarray[Any, Any]

_UFUNCS = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
_SIGNS = {2: np.uint16(1 << 15), 4: np.uint32(1 << 31), 8: np.uint64(1 << 63)}


def float_arithmetic(machine: Machine, which: Instruction) -> Step:
    """The float side of names that integers have too."""
    if which.name in ("neg", "abs"):
        return _sign(machine, which)
    if which.name in ("min", "max"):
        return _extremum(machine, which)
    kind = allow(which, "rn")
    if kind not in ("f32", "f64") or (which.name == "div" and which.modifiers[0] != "rn"):
        raise UnknownInstruction(f"{which.opcode} is not known")
    if which.name == "mad":
        return fma(machine, which)
    function = _UFUNCS[which.name]
    a, b = (machine.source(operand, kind) for operand in which.operands[1:])
    out = machine.target(which.operands[0], kind)

    def step(mask: Array | None) -> None:
        if mask is None:
            function(a, b, out=out)
            numbers.canonicalize(out)
        else:
            np.copyto(out, numbers.canonicalize(function(a, b)), where=mask)

    return step


def _sign(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    a = machine.source(which.operands[1], kind)
    bits = a.view(f"u{a.dtype.itemsize}")
    out = machine.target(which.operands[0], kind).view(bits.dtype)
    sign = np.uint32(0x80008000) if kind.endswith("x2") else _SIGNS[a.dtype.itemsize]
    return assign(out, (lambda: bits ^ sign) if which.name == "neg" else (lambda: bits & ~sign))


def _extremum(machine: Machine, which: Instruction) -> Step:
    kind = allow(which, "NaN")
    keep, largest = "NaN" in which.modifiers, which.name == "max"
    a, b = (machine.source(operand, kind) for operand in which.operands[1:])
    out = machine.target(which.operands[0], kind)
    if kind in ("f32", "f64"):
        return assign(out, lambda: numbers.minimum(a, b, keep_nan=keep, largest=largest))
    raise UnknownInstruction(f"{which.opcode} is not known")


@instruction("fma")
def fma(machine: Machine, which: Instruction) -> Step:
    kind = allow(which, "rn")
    if kind not in ("f32", "f64") or which.modifiers[0] != "rn":
        raise UnknownInstruction(f"{which.opcode} is not known")
    a, b, c = (machine.source(operand, kind) for operand in which.operands[1:])
    out = machine.target(which.operands[0], kind)
    room = np.empty_like(out)

    def step(mask: Array | None) -> None:
        if mask is None:
            numbers.fma(a, b, c, out)
        else:
            numbers.fma(a, b, c, room)
            np.copyto(out, room, where=mask)

    return step


@instruction("sqrt", "rcp")
def root(machine: Machine, which: Instruction) -> Step:
    kind = allow(which, "rn")
    if kind not in ("f32", "f64") or which.modifiers[0] != "rn":
        raise UnknownInstruction(f"{which.opcode} is not known")
    a = machine.source(which.operands[1], kind)
    one = a.dtype.type(1)
    out = machine.target(which.operands[0], kind)
    if which.name == "sqrt":
        return assign(out, lambda: numbers.canonicalize(np.sqrt(a)))
    return assign(out, lambda: numbers.canonicalize(one / a))


@instruction("testp")
def classify(machine: Machine, which: Instruction) -> Step:
    kind = allow(which, "finite", "infinite", "number", "notanumber", "normal", "subnormal")
    a = machine.source(which.operands[1], kind)
    tiny = np.finfo(a.dtype).smallest_normal
    tests = {
        "finite": lambda: np.isfinite(a),
        "infinite": lambda: np.isinf(a),
        "number": lambda: ~np.isnan(a),
        "notanumber": lambda: np.isnan(a),
        "normal": lambda: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda: np.abs(a) < tiny,
    }
    return assign(machine.target(which.operands[0], "pred"), tests[which.modifiers[0]])


@instruction("copysign")
def copysign(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    a, b = (machine.source(operand, f"b{kind[1:]}") for operand in which.operands[1:])
    sign = _SIGNS[a.dtype.itemsize]
    return assign(machine.target(which.operands[0], f"b{kind[1:]}"), lambda: (a & sign) | (b & ~sign))
