"""Integers and bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EmulationError, UnknownInstruction
from .floats import float_arithmetic
from .registry import allow, assign, elementwise, instruction

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction

Array = np.ndarray[Any, Any]

_UFUNCS = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum, "neg": np.negative, "abs": np.absolute}
_BITS = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}


def _is_float(which: Instruction) -> bool:
    return which.modifiers[-1] in ("f16", "bf16", "f16x2", "bf16x2", "f32", "f64")


@instruction("add", "sub", "min", "max", "neg", "abs")
def add(machine: Machine, which: Instruction) -> Step:
    if _is_float(which):
        return float_arithmetic(machine, which)
    kind = allow(which)
    inputs = [machine.source(operand, kind) for operand in which.operands[1:]]
    return elementwise(_UFUNCS[which.name], inputs, machine.target(which.operands[0], kind))


@instruction("and", "or", "xor", "not")
def bitwise(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    inputs = [machine.source(operand, kind) for operand in which.operands[1:]]
    return elementwise(_BITS[which.name], inputs, machine.target(which.operands[0], kind))


@instruction("mul", "mad")
def mul(machine: Machine, which: Instruction) -> Step:
    if _is_float(which):
        return float_arithmetic(machine, which)
    kind = allow(which, "lo", "hi", "wide")
    if len(which.modifiers) != 2:
        raise UnknownInstruction(which.opcode)
    part = which.modifiers[0]
    bits = int(kind[1:])
    wide = f"{kind[0]}{2 * bits}" if part == "wide" else kind
    a, b = machine.source(which.operands[1], kind), machine.source(which.operands[2], kind)
    out = machine.target(which.operands[0], wide)
    addend = machine.source(which.operands[3], wide) if which.name == "mad" else None

    if part == "lo":

        def product() -> Array:
            return a * b
    elif part == "wide":

        def product() -> Array:
            return np.multiply(a, b, dtype=out.dtype)
    elif bits == 32:
        double = np.dtype(f"{a.dtype.kind}8")

        def product() -> Array:
            return (np.multiply(a, b, dtype=double) >> double.type(32)).astype(a.dtype)
    else:

        def product() -> Array:
            return _high64(a, b)

    return assign(out, product if addend is None else lambda: product() + addend)


def _high64(a: Array, b: Array) -> Array:
    """The upper half of products of 64-bit integers."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.view(np.uint64), b.view(np.uint64)
    xl, xh, yl, yh = x & low, x >> half, y & low, y >> half
    middle = xh * yl + ((xl * yl) >> half)
    other = xl * yh + (middle & low)
    high = xh * yh + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        high -= np.where(a < 0, y, np.uint64(0)) + np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


@instruction("div", "rem")
def div(machine: Machine, which: Instruction) -> Step:
    if _is_float(which):
        return float_arithmetic(machine, which)
    kind = allow(which)
    a, b = machine.source(which.operands[1], kind), machine.source(which.operands[2], kind)
    out = machine.target(which.operands[0], kind)
    remainder = which.name == "rem"

    def step(mask: Array | None) -> None:
        zero = b == 0
        if (zero if mask is None else zero & mask).any():
            raise EmulationError("an integer is divided by 0")
        divisor = np.where(zero, b.dtype.type(1), b)
        # NumPy rounds down, PTX towards zero.
        quotient = a // divisor
        if b.dtype.kind == "i":
            quotient += ((a < 0) != (divisor < 0)) & (quotient * divisor != a)
        np.copyto(out, a - quotient * divisor if remainder else quotient, where=True if mask is None else mask)

    return step


@instruction("shl", "shr")
def shift(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    a, n = machine.source(which.operands[1], kind), machine.source(which.operands[2], "u32")
    bits = 8 * a.dtype.itemsize
    last, most = np.uint32(bits - 1), a.dtype.type(bits - 1)
    out = machine.target(which.operands[0], kind)
    if which.name == "shl":
        return assign(out, lambda: np.where(n > last, a.dtype.type(0), a << np.minimum(n, last).astype(a.dtype)))
    if a.dtype.kind == "i":
        return assign(out, lambda: a >> np.minimum(n, last).astype(a.dtype))
    return assign(out, lambda: np.where(n > last, a.dtype.type(0), a >> np.minimum(n.astype(a.dtype), most)))


@instruction("shf")
def funnel_shift(machine: Machine, which: Instruction) -> Step:
    kind = allow(which, "l", "r", "wrap", "clamp")
    direction, mode = which.modifiers[0], which.modifiers[1]
    low, high, n = (machine.source(operand, "u32") for operand in which.operands[1:])
    out = machine.target(which.operands[0], kind)

    def compute() -> Array:
        count = (n & np.uint32(31) if mode == "wrap" else np.minimum(n, np.uint32(32))).astype(np.uint64)
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        moved = (both << count) >> np.uint64(32) if direction == "l" else both >> count
        return moved.astype(np.uint32)

    return assign(out.view(np.uint32), compute)


@instruction("bfe")
def extract_field(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    a = machine.source(which.operands[1], kind)
    start, length = (machine.source(operand, "u32") for operand in which.operands[2:])
    out = machine.target(which.operands[0], kind)
    bits = 8 * a.dtype.itemsize

    def compute() -> Array:
        first = np.minimum(start & np.uint32(255), np.uint32(bits)).astype(np.int64)
        count = np.minimum(length & np.uint32(255), np.uint32(bits)).astype(np.int64)
        result = np.zeros(a.shape, np.uint64)
        unsigned = a.view(f"u{a.dtype.itemsize}").astype(np.uint64)
        sign_at = np.minimum(first + count - 1, bits - 1)
        sign = np.where(count > 0, (unsigned >> np.maximum(sign_at, 0).astype(np.uint64)) & np.uint64(1), np.uint64(0))
        if a.dtype.kind == "u":
            sign = np.zeros_like(sign)
        for i in range(bits):
            inside = (i < count) & (first + i < bits)
            bit = (unsigned >> np.minimum(first + i, bits - 1).astype(np.uint64)) & np.uint64(1)
            result |= np.where(inside, bit, sign) << np.uint64(i)
        return result.astype(f"u{a.dtype.itemsize}").view(a.dtype)

    return assign(out, compute)


@instruction("bfi")
def insert_field(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    a, b = (machine.source(operand, kind) for operand in which.operands[1:3])
    start, length = (machine.source(operand, "u32") for operand in which.operands[3:])
    out = machine.target(which.operands[0], kind)
    bits = 8 * a.dtype.itemsize

    def compute() -> Array:
        first, count = start & np.uint32(255), np.minimum(length & np.uint32(255), np.uint32(bits))
        everything = np.uint64(0xFFFFFFFFFFFFFFFF)
        wide = np.minimum(count, np.uint32(63)).astype(np.uint64)
        ones = np.where(count >= 64, everything, (np.uint64(1) << wide) - np.uint64(1))
        shift = np.minimum(first, np.uint32(63)).astype(np.uint64)
        mask = np.where(first < bits, ones << shift, np.uint64(0))
        return ((b.astype(np.uint64) & ~mask) | ((a.astype(np.uint64) << shift) & mask)).astype(a.dtype)

    return assign(out, compute)


@instruction("popc", "clz", "brev")
def count_bits(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    a = machine.source(which.operands[1], kind)
    bits = 8 * a.dtype.itemsize
    out = machine.target(which.operands[0], kind if which.name == "brev" else "u32")
    if which.name == "popc":
        return assign(out, lambda: np.bitwise_count(a).astype(np.uint32))

    def compute() -> Array:
        digits = np.unpackbits(a.view(np.uint8).reshape(-1, bits // 8)[:, ::-1], axis=1)
        if which.name == "clz":
            return np.where(a == 0, bits, digits.argmax(1)).astype(np.uint32)
        return np.packbits(digits[:, ::-1], axis=1)[:, ::-1].copy().view(a.dtype)[:, 0]

    return assign(out, compute)


@instruction("lop3")
def any_three(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    a, b, c = (machine.source(operand, kind) for operand in which.operands[1:4])
    table = int(machine.source(which.operands[4], "u32")[0])

    def compute() -> Array:
        result = np.zeros(a.shape, a.dtype)
        for i in range(8):
            if table >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result

    return assign(machine.target(which.operands[0], kind), compute)


@instruction("prmt")
def permute_bytes(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    a, b, selector = (machine.source(operand, "u32") for operand in which.operands[1:])

    def compute() -> Array:
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        result = np.zeros(a.shape, np.uint32)
        for i in range(4):
            code = (selector >> np.uint32(4 * i)) & np.uint32(15)
            byte = (both >> ((code & np.uint32(7)).astype(np.uint64) * np.uint64(8))).astype(np.uint32) & np.uint32(255)
            sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
            result |= np.where(code & np.uint32(8), sign, byte) << np.uint32(8 * i)
        return result

    return assign(machine.target(which.operands[0], kind).view(np.uint32), compute)
