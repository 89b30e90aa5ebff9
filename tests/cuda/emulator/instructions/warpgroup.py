"""Tensor cores of Hopper: ``wgmma``, by which four warps multiply tiles that lie in shared memory.

The tensor cores read shared memory in a way of their own: what threads wrote must be fenced (``fence.proxy.async``), and
must not be written again before the threads have waited for the product. Both are checked. Accumulators are NaN for
everybody but the next product until the threads have waited.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Diverged, EmulationError, UnknownInstruction
from ..parser import Immediate, Vector
from .registry import instruction
from .tensor import cut, elements, unpack

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction, Operand

Array = np.ndarray[Any, Any]

GROUP = 128
"""Threads of a warpgroup."""
ROWS = 64
STEP = 32
"""Bytes of a row of an operand that one instruction takes."""


@dataclass
class Product:
    """A product under way: the words that it reads, and the number of its group."""

    offsets: Array
    lane: int
    group: int


@dataclass
class Accumulators:
    """Registers of a warpgroup that a product fills, the values that they will have, and the group of its last product."""

    outs: list[Array]
    values: Array
    group: int


@instruction("wgmma.fence")
def fence(machine: Machine, which: Instruction) -> Step:
    return lambda mask: _check_groups(machine, mask)


@instruction("wgmma.commit_group")
def commit(machine: Machine, which: Instruction) -> Step:
    def step(mask: Array | None) -> None:
        for first in _groups(machine, mask):
            machine.product_groups[first] = machine.product_groups.get(first, 0) + 1

    return step


@instruction("wgmma.wait_group")
def wait(machine: Machine, which: Instruction) -> Step:
    allowed = int(machine.source(which.operands[0], "u32")[0])

    def step(mask: Array | None) -> None:
        left = []
        groups = set(_groups(machine, mask))
        for product in machine.products:
            if product.lane in groups and product.group < machine.product_groups.get(product.lane, 0) - allowed:
                machine.shared.end_use(product.offsets, product.lane)
            else:
                left.append(product)
        machine.products[:] = left
        for (first, names), filled in list(machine.accumulators.items()):
            if first in groups and filled.group < machine.product_groups.get(first, 0) - allowed:
                for out, value in zip(filled.outs, filled.values, strict=True):
                    out[first : first + GROUP] = value
                del machine.accumulators[first, names]

    return step


@instruction("wgmma.mma_async")
def mma_async(machine: Machine, which: Instruction) -> Step:
    found = re.fullmatch(r"mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.f32\.(\w+)\.(\w+)", ".".join(which.modifiers))
    if not found or found[3] != found[4]:
        raise UnknownInstruction(f"{which.opcode} is not known")
    columns, depth, kind = int(found[1]), int(found[2]), found[3]
    per, widen = unpack(kind)
    target, a, b, keep, *options = which.operands
    values = [_number(option) for option in options]
    transposed = values[2:] if per == 2 else [0, 0]
    if depth != 8 * per or columns % 8 or not 8 <= columns <= 256 or values[:2] != [1, 1]:
        raise UnknownInstruction(f"{which.text}")
    if isinstance(a, Vector) and len(transposed) == 1:
        transposed = [0, *transposed]  # a in registers has no choice
    outs = [machine.target(e, "f32") for e in elements(target)]
    names = str(target)
    if len(outs) != columns // 2 or len(transposed) != 2:
        raise UnknownInstruction(f"{which.text}")
    left = [machine.source(e, "b32") for e in a.elements] if isinstance(a, Vector) else machine.source(a, "u64")
    right, kept = machine.source(b, "u64"), machine.source(keep, "pred")

    thread = np.arange(GROUP)
    index = np.arange(columns // 2)[:, None]
    rows = thread // 32 * 16 + thread % 32 // 4 + index // 2 % 2 * 8
    places = index // 4 * 8 + thread % 4 * 2 + index % 2

    def tile(descriptors: Array, first: int, count: int, transpose: int) -> tuple[Array, Array]:
        descriptor = descriptors[first : first + GROUP]
        if (descriptor != descriptor[0]).any():
            raise Diverged("the threads of a warpgroup have different descriptors")
        addresses = _addresses(int(descriptor[0]), count, per, transpose)
        lanes = np.full(addresses.size, first)
        offsets = machine.shared.offsets(addresses.reshape(-1).astype(np.uint64), 2 if transpose else 4, lanes)
        words = machine.shared.begin_use(offsets // 4 * 4, first)
        if not transpose:
            return widen(words.reshape(count, -1)).reshape(count, depth), offsets // 4 * 4
        halves = np.where(offsets % 4 != 0, words >> np.uint32(16), words & np.uint32(0xFFFF))
        return widen(halves.reshape(count, depth))[..., 0], offsets // 4 * 4

    def step(mask: Array | None) -> None:
        for first in _groups(machine, mask):
            these = slice(first, first + GROUP)
            used = []
            if isinstance(left, list):
                matrix = np.zeros((4, 16, depth))
                for i, register in enumerate(left):
                    part = widen(register[these].reshape(4, 8, 4)).reshape(4, 8, 4 * per)
                    matrix[:, i % 2 * 8 : i % 2 * 8 + 8, i // 2 * 4 * per : (i // 2 + 1) * 4 * per] = part
                matrix = matrix.reshape(ROWS, depth)
            else:
                matrix, offsets = tile(left, first, ROWS, transposed[0])
                used.append(offsets)
            other, offsets = tile(right, first, columns, transposed[1])
            used.append(offsets)
            product = (matrix @ other.T)[rows, places]
            filled = machine.accumulators.get((first, names))
            before = np.stack([out[these] for out in outs]) if filled is None else filled.values
            group = machine.product_groups.get(first, 0)
            values = cut(product + np.where(kept[these], before, 0))
            machine.accumulators[first, names] = Accumulators(outs, values, group)
            for out in outs:
                out[these] = np.nan
            machine.products += [Product(offsets, first, group) for offsets in used]

    return step


def _number(operand: Operand) -> int:
    if not isinstance(operand, Immediate):
        raise UnknownInstruction(f"{operand} is no constant")
    return int(operand.text, 0)


def _check_groups(machine: Machine, mask: Array | None) -> None:
    _groups(machine, mask)


def _groups(machine: Machine, mask: Array | None) -> list[int]:
    """The first lanes of the warpgroups that are there, whole."""
    if machine.padded % GROUP:
        raise EmulationError("wgmma in a block that does not consist of warpgroups")
    active = np.full(machine.lanes, True) if mask is None else mask
    rows = active.reshape(-1, GROUP)
    if (rows.any(1) != rows.all(1)).any():
        raise Diverged("only some threads of a warpgroup reach an instruction for the whole warpgroup")
    return [int(row) * GROUP for row in np.flatnonzero(rows.all(1))]


def _addresses(descriptor: int, count: int, per: int, transposed: int) -> Array:
    """Where a tile lies: of each of ``count`` rows the addresses of its words, or of its values if it is transposed.

    The tile is made of pieces of 8 rows, whose rows of 32, 64 or 128 bytes are swizzled: some bits of an address are changed
    by others, so that the banks are used evenly.
    """
    start = (descriptor & 0x3FFF) << 4
    leading, stride = (descriptor >> 16 & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    base_offset, swizzle = descriptor >> 49 & 7, descriptor >> 62
    if base_offset:
        raise UnknownInstruction("a descriptor with a base offset")
    width, bits = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}[swizzle]
    row = np.arange(count)[:, None]
    if not transposed:
        byte = np.arange(0, STEP, 4)[None]
        if swizzle:
            address = start + row // 8 * stride + row % 8 * width + byte
        else:
            address = start + row // 8 * stride + byte // 16 * leading + row % 8 * 16 + byte % 16
    else:
        deep, wide = np.arange(8 * per)[None], width // 2
        outer = (leading, stride) if swizzle else (stride, leading)
        address = start + row % wide * 2 + row // wide * outer[0] + deep % 8 * width + deep // 8 * outer[1]
    result: Array = address ^ ((address >> 7 & bits) << 4)
    return result
