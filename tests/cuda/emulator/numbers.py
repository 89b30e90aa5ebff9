"""Arithmetic as PTX defines it, over NumPy arrays of one value a thread.

NumPy adds, multiplies, divides and takes roots with the one rounding that PTX asks for (``.rn``). What it has not is
here: the fused multiply-add, PTX's NaN, and conversions to the short types.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CANONICAL = {
    np.dtype(np.float16): np.uint16(0x7FFF),
    np.dtype(np.float32): np.uint32(0x7FFFFFFF),
}
"""The NaN that results of float16 and float32 instructions are. Those of float64 keep an operand's payload, as host processors
do."""


@cache
def _fused() -> dict[np.dtype[Any], Any]:
    """The multiply-add with one rounding, compiled by LLVM: it calls libm's where the processor has none."""
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    @intrinsic
    def fused(context, a, b, c):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            kind = arguments[0].type
            name = "llvm.fma.f32" if isinstance(kind, ir.FloatType) else "llvm.fma.f64"
            function = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
            return builder.call(function, arguments)

        return a(a, a, a), generate

    def over_arrays(nan):  # type: ignore[no-untyped-def]
        def single(a, b, c, out):  # type: ignore[no-untyped-def]
            for i in range(out.size):
                result = fused(a[i], b[i], c[i])
                out[i] = result if result == result else nan

        def double(a, b, c, out):  # type: ignore[no-untyped-def]
            for i in range(out.size):
                out[i] = fused(a[i], b[i], c[i])

        return double if nan is None else single

    compiled = {}
    for scalar, nan in ((types.float32, CANONICAL[np.dtype(np.float32)].view(np.float32)), (types.float64, None)):
        operand, result = types.Array(scalar, 1, "C", readonly=True), types.Array(scalar, 1, "C")  # a constant is read-only
        compiled[np.dtype(str(scalar))] = njit(types.void(operand, operand, operand, result))(over_arrays(nan))
    return compiled


def fma(a: Array, b: Array, c: Array, out: Array) -> None:
    """``out = a * b + c`` with one rounding; contiguous arrays of float32 or float64."""
    _fused()[out.dtype](a, b, c, out)


def canonicalize(values: Array) -> Array:
    """Replace every NaN by PTX's own, in place."""
    wrong = np.isnan(values)
    if wrong.any() and values.dtype in CANONICAL:
        bits = CANONICAL[values.dtype]
        values.view(bits.dtype)[wrong] = bits
    return values


def to_bfloat16(values: Array) -> Array:
    """float32 to the bits of bfloat16, to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def from_bfloat16(bits: Array) -> Array:
    """The bits of bfloat16 to float32, exactly."""
    return canonicalize((bits.astype(np.uint32) << np.uint32(16)).view(np.float32))


def to_float16(values: Array) -> Array:
    """float32 or float64 to the bits of float16, to nearest, ties to even."""
    with np.errstate(all="ignore"):
        return canonicalize(values.astype(np.float16)).view(np.uint16)


def from_float16(bits: Array) -> Array:
    """The bits of float16 to float32, exactly."""
    with np.errstate(all="ignore"):
        return canonicalize(bits.view(np.float16).astype(np.float32))


def to_tf32(values: Array, mode: str) -> Array:
    """float32 to float32 with 10 bits of fraction: ``rna`` ties away from zero, ``rn`` ties to even, ``rz`` cuts."""
    bits = values.view(np.uint32)
    kept = np.uint32(0xFFFFE000)
    if mode == "rna":
        rounded = (bits + np.uint32(0x1000)) & kept
    elif mode == "rn":
        rounded = (bits + (np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))) & kept
    else:
        rounded = bits & kept
    special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    result = np.where(special, bits, rounded)
    return np.where(np.isnan(values), CANONICAL[np.dtype(np.float32)], result).view(np.float32)


def to_integer(values: Array, dtype: np.dtype[Any], mode: str) -> Array:
    """Float to integer: rounded as ``mode`` says (``rni rzi rmi rpi``), saturated, NaN to 0."""
    rounded = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode](values)
    limits = np.iinfo(dtype)
    with np.errstate(all="ignore"):
        result = rounded.astype(dtype)
    result = np.where(rounded >= float(limits.max), limits.max, result)
    result = np.where(rounded <= float(limits.min), limits.min, result)
    return np.where(np.isnan(values), 0, result).astype(dtype)


def minimum(a: Array, b: Array, *, keep_nan: bool, largest: bool) -> Array:
    """PTX's ``min`` and ``max``: -0 lies below +0; of a NaN and a number the number, or NaN where ``.NaN`` asks for it."""
    if a.dtype.kind != "f":
        result: Array = (np.maximum if largest else np.minimum)(a, b)
        return result
    first = (a > b) if largest else (a < b)
    first |= (a == b) & (np.signbit(b) if largest else np.signbit(a))
    result = np.where(first, a, b)
    nan_a, nan_b = np.isnan(a), np.isnan(b)
    if nan_a.any() or nan_b.any():
        result = np.where(nan_a, a if keep_nan else b, np.where(nan_b, b if keep_nan else a, result))
        canonicalize(result)
    return result
