"""Values of one element type as another, as NumPy casts arrays, written down as LLVM IR. Halves are kept as their 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from fastrelu.cuda import ptx
from fastrelu.kernels.vector import FLOAT32, Element


def bits_of(number: Any, dtype: str) -> int:
    """The bits of a number that is rounded to the type `dtype`; OverflowError for a Python integer that does not fit one."""
    if dtype == "bfloat16":
        bits = bits_of(number, "float32")
        if bits & 0x7FFFFFFF > 0x7F800000:
            return bits >> 16 | 0x40
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    with np.errstate(all="ignore"):
        value = np.dtype(dtype).type(number)
    return int(value.view(f"u{value.itemsize}"))


def widened(builder: Any, value: Any, element: Element) -> Any:
    """A half as float32; exact."""
    if element.name == "float16":
        return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
    return builder.bitcast(builder.shl(builder.zext(value, ir.IntType(32)), ir.IntType(32)(16)), ir.FloatType())


def narrowed(builder: Any, value: Any, element: Element) -> Any:
    """A float32 rounded to a half, ties to even."""
    if element.name == "float16":
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))
    return ptx.rounded_to_bfloat16(builder, value)


def converted(builder: Any, value: Any, source: Element, target: Element) -> Any:
    """A value of the type `source` as one of the type `target`; of floats there are no integers made."""
    if source.name == target.name:
        return value
    if source.is_half:
        return converted(builder, widened(builder, value, source), FLOAT32, target)
    if target.is_half:
        if source.name == "float64" and target.name == "float16":  # in one step, or it would be rounded twice
            return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))
        return narrowed(builder, converted(builder, value, source, FLOAT32), target)
    if not target.is_float:
        if target.bits <= source.bits:
            return value if target.bits == source.bits else builder.trunc(value, target.llvm)
        return (builder.zext if source.kind == "u" else builder.sext)(value, target.llvm)
    if not source.is_float:
        return (builder.uitofp if source.kind == "u" else builder.sitofp)(value, target.llvm)
    return (builder.fpext if target.bits > source.bits else builder.fptrunc)(value, target.llvm)
