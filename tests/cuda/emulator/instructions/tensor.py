"""Tensor cores: ``ldmatrix`` and ``mma.sync``.

Products are exact and summed in float64. NVIDIA documents no rounding for the sum with the accumulator in float32,
and measurements show that it is cut, not rounded: so it is cut here as well, which is the worse case for whoever sums
many of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import numbers
from ..errors import UnknownInstruction
from ..parser import Vector
from .loads import addresses_of
from .registry import instruction

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction, Operand

Array = np.ndarray[Any, Any]


def elements(operand: Operand) -> tuple[Operand, ...]:
    """The registers in braces."""
    return operand.elements if isinstance(operand, Vector) else (operand,)


def unpack(kind: str) -> tuple[int, Callable[[Array], Array]]:
    """How many values a register of 32 bits holds, and the function that makes them float64 along a new last axis."""
    if kind == "tf32":
        return 1, lambda bits: (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)[..., None]
    if kind in ("f16", "bf16"):
        widen = numbers.from_float16 if kind == "f16" else numbers.from_bfloat16
        return 2, lambda bits: widen(np.ascontiguousarray(bits).view(np.uint16)).astype(np.float64).reshape(*bits.shape, 2)
    raise UnknownInstruction(f"tensor cores for {kind}")


def cut(values: Array) -> Array:
    """float64 to float32, towards zero."""
    result = values.astype(np.float32)
    over = np.abs(result.astype(np.float64)) > np.abs(values)
    return numbers.canonicalize(np.where(over & np.isfinite(values), np.nextafter(result, np.float32(0)), result))


@instruction("mma.sync")
def mma(machine: Machine, which: Instruction) -> Step:
    found = re.fullmatch(r"sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(\w+)\.(\w+)\.f32", ".".join(which.modifiers))
    if not found or found[2] != found[3]:
        raise UnknownInstruction(f"{which.opcode} is not known")
    depth, kind = int(found[1]), found[2]
    per, widen = unpack(kind)
    if depth not in ((4, 8) if per == 1 else (8, 16)):
        raise UnknownInstruction(f"{which.opcode} is not known")
    d, a, b, c = (elements(operand) for operand in which.operands)
    halves = depth // (4 * per)  # registers of a row of a
    if (len(a), len(b), len(c), len(d)) != (2 * halves, halves, 4, 4):
        raise UnknownInstruction(which.text)
    sources = [[machine.source(e, "b32").reshape(-1, 8, 4) for e in part] for part in (a, b)]
    addends = [machine.source(e, "f32").reshape(-1, 8, 4) for e in c]
    outs = [machine.target(e, "f32").reshape(-1, 8, 4) for e in d]

    def step(mask: Array | None) -> None:
        warps = machine.warps(mask)
        # A thread is (g, q) of 8 x 4: a register of a holds rows g (and g + 8) and columns from q * per (and 4 * per further).
        left = np.zeros((len(warps), 16, depth))
        right = np.zeros((len(warps), 8, depth))
        for i, register in enumerate(sources[0]):
            half = i // 2 * 4 * per
            left[:, i % 2 * 8 : i % 2 * 8 + 8, half : half + 4 * per] = widen(register[warps]).reshape(-1, 8, 4 * per)
        for i, register in enumerate(sources[1]):
            right[:, :, i * 4 * per : (i + 1) * 4 * per] = widen(register[warps]).reshape(-1, 8, 4 * per)
        product = left @ right.transpose(0, 2, 1)
        total = [product[:, i // 2 * 8 : i // 2 * 8 + 8, i % 2 :: 2] + addends[i][warps] for i in range(4)]
        for out, value in zip(outs, total, strict=True):
            out[warps] = cut(value)

    return step


@instruction("ldmatrix")
def ldmatrix(machine: Machine, which: Instruction) -> Step:
    modifiers = list(which.modifiers)
    transposed = "trans" in modifiers
    if transposed:
        modifiers.remove("trans")
    found = re.fullmatch(r"sync\.aligned\.m8n8\.x([124])\.shared(::cta)?\.b16", ".".join(modifiers))
    if not found:
        raise UnknownInstruction(f"{which.opcode} is not known")
    count = int(found[1])
    outs = [machine.target(e, "b32").reshape(-1, 32) for e in elements(which.operands[0])]

    def step(mask: Array | None) -> None:
        warps = machine.warps(mask)
        # The first 8 * count threads say where the rows are.
        rows = (warps[:, None] * 32 + np.arange(8 * count)).reshape(-1)
        offsets = machine.shared.offsets(addresses_of(machine, which.operands[1], rows), 16, rows)
        if machine.measure:
            machine.statistics.shared_access("load", offsets, 16, rows)
        items = machine.shared.read(offsets, 16, rows).view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            items = np.ascontiguousarray(items.transpose(0, 1, 3, 2))
        words = items.view(np.uint32).reshape(-1, count, 32)
        for i, out in enumerate(outs):
            out[warps] = words[:, i]

    return step
