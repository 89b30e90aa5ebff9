"""Conversions between types, and of addresses between state spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import numbers
from ..errors import UnknownInstruction
from .registry import assign, elementwise, extend, instruction

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction

Array = np.ndarray[Any, Any]

_TO_INTEGER = ("rni", "rzi", "rmi", "rpi")


@instruction("cvt")
def cvt(machine: Machine, which: Instruction) -> Step:
    *modes, to, source = which.modifiers
    if to in ("f16x2", "bf16x2"):
        return _pair(machine, which)
    a = machine.source(which.operands[1], source)
    out = machine.register(which.operands[0])
    convert = _conversion(which, a, modes, to, source)
    if a.dtype.kind in "iu" and to[0] in "usb":
        dtype = np.dtype(f"{'i' if to[0] == 's' else 'u'}{int(to[1:]) // 8}")
        if dtype.itemsize == out.dtype.itemsize and not modes:
            return _cast(a, out.view(dtype))
    return assign(out, lambda: extend(convert(), out))


def _cast(a: Array, out: Array) -> Step:
    return elementwise(np.positive, (a,), out) if a.dtype == out.dtype else assign(out, lambda: a.astype(out.dtype))


def _conversion(which: Instruction, a: Array, modes: list[str], to: str, source: str) -> Callable[[], Array]:
    unknown = UnknownInstruction(f"the conversion {which.opcode} is not known")
    floats = ("f16", "bf16", "f32", "f64", "tf32")
    if source not in floats and to not in floats:
        if modes:
            raise unknown
        dtype = np.dtype(f"{'i' if to[0] == 's' else 'u'}{int(to[1:]) // 8}")
        return lambda: a.astype(dtype)
    if source not in floats:
        if modes != ["rn"]:
            raise unknown
        return {
            "f32": lambda: a.astype(np.float32),
            "f64": lambda: a.astype(np.float64),
        }[to]
    if to not in floats:
        if len(modes) != 1 or modes[0] not in _TO_INTEGER:
            raise unknown
        dtype = np.dtype(f"{'i' if to[0] == 's' else 'u'}{int(to[1:]) // 8}")
        widened = _widen(a, source)
        return lambda: numbers.to_integer(widened(), dtype, modes[0])
    if (source, to) == ("f32", "tf32") and modes in (["rna"], ["rn"], ["rz"]):
        return lambda: numbers.to_tf32(a, modes[0])
    if to == source and len(modes) == 1 and modes[0] in _TO_INTEGER and source in ("f32", "f64"):
        function = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[modes[0]]
        return lambda: numbers.canonicalize(function(a))
    if source in ("f16", "bf16") and to in ("f32", "f64") and not modes:
        widened = _widen(a, source)
        return widened if to == "f32" else lambda: widened().astype(np.float64)
    if (source, to) == ("f32", "f64") and not modes:
        return lambda: a.astype(np.float64)
    if modes != ["rn"]:
        raise unknown
    if (source, to) == ("f64", "f32"):
        return lambda: numbers.canonicalize(a.astype(np.float32))
    if to == "f16" and source in ("f32", "f64"):
        return lambda: numbers.to_float16(a)
    if (source, to) == ("f32", "bf16"):
        return lambda: numbers.to_bfloat16(a)
    raise unknown


def _widen(a: Array, source: str) -> Callable[[], Array]:
    if source == "f16":
        return lambda: numbers.from_float16(np.ascontiguousarray(a))
    if source == "bf16":
        return lambda: numbers.from_bfloat16(a)
    return lambda: a


def _pair(machine: Machine, which: Instruction) -> Step:
    """Two float32 to one register of two short floats; the first source becomes the upper half."""
    if which.modifiers[:-2] != ("rn",) or which.modifiers[-1] != "f32":
        raise UnknownInstruction(f"the conversion {which.opcode} is not known")
    narrow = numbers.to_float16 if which.modifiers[-2] == "f16x2" else numbers.to_bfloat16
    upper, lower = (machine.source(operand, "f32") for operand in which.operands[1:])
    out = machine.target(which.operands[0], "b32")
    return assign(out, lambda: (narrow(upper).astype(np.uint32) << np.uint32(16)) | narrow(lower))


@instruction("cvta")
def cvta(machine: Machine, which: Instruction) -> Step:
    from ..machine import LOCAL_WINDOW, SHARED_WINDOW

    *way, kind = which.modifiers
    a, out = machine.source(which.operands[1], kind), machine.target(which.operands[0], kind)
    space = way[-1].removesuffix("::cta")
    window = {"global": 0, "const": 0, "param": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space)
    if window is None or kind != "u64" or way[:-1] not in ([], ["to"]):
        raise UnknownInstruction(f"{which.opcode} is not known")
    offset = np.uint64(window)
    return assign(out, (lambda: a - offset) if len(way) == 2 else (lambda: a + offset))
