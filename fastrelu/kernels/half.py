"""float16 and bfloat16, kept as their 16 bits, to and from float32.

float16 goes through the processor's own conversion where there is one (F16C, AVX-512, NEON); LLVM would call a C library
function otherwise, one lane at a time, which not every process has. Both ways give the same bits.
"""

import platform

from llvmlite import ir

from fastrelu.native import target

_HARDWARE = platform.machine() in ("aarch64", "arm64") or target.has_feature("f16c") or target.has_feature("avx512f")
_HALF, _FLOAT, _BITS16, _BITS32 = ir.HalfType(), ir.FloatType(), ir.IntType(16), ir.IntType(32)


def _every(kind: ir.Type, value, lanes: int):
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def _of_one_lane(function):
    """Let a function of vectors take and return plain numbers as well, which is what one lane is."""

    def of_any_lanes(builder, value, name: str):
        if isinstance(value.type, ir.VectorType):
            return function(builder, value, name)
        result = function(builder, builder.bitcast(value, ir.VectorType(value.type, 1)), name)
        return builder.bitcast(result, result.type.element)

    of_any_lanes.__doc__ = function.__doc__
    return of_any_lanes


@_of_one_lane
def widen(builder, value, name: str):
    """The 16-bit lanes of `value`, of the type `name`, as float32; exact."""
    lanes = value.type.count
    floats, words = ir.VectorType(_FLOAT, lanes), ir.VectorType(_BITS32, lanes)
    if name == "float16" and _HARDWARE:
        return builder.fpext(builder.bitcast(value, ir.VectorType(_HALF, lanes)), floats)
    bits = builder.zext(value, words)
    if name == "bfloat16":
        return builder.bitcast(builder.shl(bits, _every(_BITS32, 16, lanes)), floats)
    size = builder.and_(bits, _every(_BITS32, 0x7FFF, lanes))
    # The exponent and the mantissa in place; the product corrects the bias, for subnormal numbers too.
    shifted = builder.bitcast(builder.shl(size, _every(_BITS32, 13, lanes)), floats)
    finite = builder.bitcast(builder.fmul(shifted, _every(_FLOAT, 2.0**112, lanes)), words)
    special = builder.or_(builder.shl(size, _every(_BITS32, 13, lanes)), _every(_BITS32, 0x7F800000, lanes))
    is_special = builder.icmp_unsigned(">=", size, _every(_BITS32, 0x7C00, lanes))
    sign = builder.shl(builder.and_(bits, _every(_BITS32, 0x8000, lanes)), _every(_BITS32, 16, lanes))
    return builder.bitcast(builder.or_(builder.select(is_special, special, finite), sign), floats)


@_of_one_lane
def narrow(builder, value, name: str):
    """The float32 lanes of `value` rounded to the type `name`, ties to even, as 16 bits; a NaN becomes a quiet one."""
    lanes = value.type.count
    words, result = ir.VectorType(_BITS32, lanes), ir.VectorType(_BITS16, lanes)
    if name == "float16" and _HARDWARE:
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(_HALF, lanes)), result)
    bits = builder.bitcast(value, words)
    half_bits = _narrow_bfloat16(builder, bits, lanes) if name == "bfloat16" else _narrow_float16(builder, bits, lanes)
    return builder.trunc(half_bits, result)


def _rounded(builder, bits, dropped: int, lanes: int):
    """`bits` shifted right by `dropped`, rounded to nearest, ties to even."""
    odd = builder.and_(builder.lshr(bits, _every(_BITS32, dropped, lanes)), _every(_BITS32, 1, lanes))
    half = builder.add(odd, _every(_BITS32, (1 << (dropped - 1)) - 1, lanes))
    return builder.lshr(builder.add(bits, half), _every(_BITS32, dropped, lanes))


def _narrow_bfloat16(builder, bits, lanes: int):
    size = builder.and_(bits, _every(_BITS32, 0x7FFFFFFF, lanes))
    is_nan = builder.icmp_unsigned(">", size, _every(_BITS32, 0x7F800000, lanes))
    quiet = builder.lshr(builder.or_(bits, _every(_BITS32, 0x00400000, lanes)), _every(_BITS32, 16, lanes))
    return builder.select(is_nan, quiet, _rounded(builder, bits, 16, lanes))


def _narrow_float16(builder, bits, lanes: int):
    size = builder.and_(bits, _every(_BITS32, 0x7FFFFFFF, lanes))
    # Normal results: the exponent's bias changes from 127 to 15, modulo 2**32.
    normal = _rounded(builder, builder.add(size, _every(_BITS32, (15 - 127) << 23, lanes)), 13, lanes)
    # Subnormal results: adding 1/2 lets the addition round to multiples of 2**-24.
    floats = ir.VectorType(_FLOAT, lanes)
    shifted = builder.fadd(builder.bitcast(size, floats), _every(_FLOAT, 0.5, lanes))
    tiny = builder.sub(builder.bitcast(shifted, size.type), _every(_BITS32, 126 << 23, lanes))
    infinite = _every(_BITS32, 0x7C00, lanes)
    payload = builder.and_(builder.lshr(size, _every(_BITS32, 13, lanes)), _every(_BITS32, 0x3FF, lanes))
    nan = builder.or_(payload, _every(_BITS32, 0x7E00, lanes))
    half = builder.select(builder.icmp_unsigned("<", size, _every(_BITS32, 0x38800000, lanes)), tiny, normal)
    half = builder.select(builder.icmp_unsigned(">=", size, _every(_BITS32, 0x47800000, lanes)), infinite, half)
    half = builder.select(builder.icmp_unsigned(">", size, _every(_BITS32, 0x7F800000, lanes)), nan, half)
    sign = builder.lshr(builder.and_(bits, _every(_BITS32, 0x80000000, lanes)), _every(_BITS32, 16, lanes))
    return builder.or_(half, sign)
