"""Tiles as values: the sums that a thread keeps in registers, and the lines of the operands that it reads from shared memory.

A tile is a tuple of ``rows x columns`` numbers, row by row. It consists of packets of 16 bytes, which shared memory reads and
writes in one instruction. A thread's packets lie apart, so that the threads of a warp read neighbouring packets and meet in
no bank.

All this is straight-line code with constant indices: what is indexed at run time would not stay in registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from fastrelu.cuda.memory import PACKET, SHARED, number_of, size_of
from fastrelu.cuda.toolkit import intrinsic, types
from fastrelu.kernels.vector import Element

_BYTE = ir.IntType(8)
_WORD = ir.IntType(32)


@intrinsic
def shared_start(typing_context):
    """The address of the dynamic shared memory of the block."""

    def codegen(context, builder, signature, arguments):
        name = "fastrelu_shared"
        memory = builder.module.globals.get(name)
        if memory is None:
            memory = ir.GlobalVariable(builder.module, ir.ArrayType(_BYTE, 0), name, addrspace=SHARED)
            memory.linkage, memory.align = "external", PACKET
        return builder.ptrtoint(memory, ir.IntType(64))

    return types.int64(), codegen


@intrinsic
def is_below(typing_context, a, b):
    """Whether a < b, both numbers of 32 bits: Numba would compare 64, in two instructions."""

    def codegen(context, builder, signature, arguments):
        return builder.icmp_signed("<", *(builder.trunc(word, _WORD) for word in arguments))

    return types.boolean(types.int64, types.int64), codegen


@dataclass(frozen=True)
class Tile:
    """Functions for kernels, for one kind of tile. An address is one in shared memory.

    Attributes
    ----------
    zeros : function () -> tile
        No sums yet.
    load : function (address) -> tile
        What `store` has stored.
    store, add_to : function (address, tile)
        Store a tile, or add it to the one that is stored there. Packet g of a thread is `threads` packets behind packet g - 1.
    add : function (tile, tile) -> tile
        The sums of two tiles.
    multiply : function (tile, address, address) -> tile
        The tile and the products of two operands, term after term, each a fused multiply-add.
    multiply_term : function (tile, address, address) -> tile
        The same for a single term.
    """

    zeros: Any
    load: Any
    store: Any
    add_to: Any
    add: Any
    multiply: Any
    multiply_term: Any


def build(
    element: Element,
    rows: int,
    columns: int,
    threads: int,
    terms: int = 1,
    x_steps: tuple[int, int] = (0, 0),
    w_steps: tuple[int, int] = (0, 0),
) -> Tile:
    """The functions for a kind of tile.

    Parameters
    ----------
    element : Element
        Of the sums.
    rows, columns : int
        The numbers of a tile; multiples of those of a packet, or 1.
    threads : int
        Threads of a block.
    terms : int, optional
        Terms that are multiplied at once.
    x_steps, w_steps : pair of int, optional
        Of the operand that has the rows, and of that which has the columns: the elements from a term to the next, and from a
        packet of a thread to its next.
    """
    SIZE, COUNT = size_of(element), rows * columns
    LANES = PACKET // SIZE
    packet = ir.VectorType(element.llvm, LANES)
    kind = types.UniTuple(number_of(element), COUNT)
    (X_TERM, X_GAP), (W_TERM, W_GAP) = x_steps, w_steps
    GAP = threads * LANES

    def start(builder: Any, address: Any) -> Any:
        return builder.inttoptr(address, ir.PointerType(_BYTE, SHARED))

    def place(builder: Any, pointer: Any, elements: int) -> Any:
        """A constant distance from a pointer, which becomes a part of the instruction."""
        return builder.bitcast(builder.gep(pointer, [_WORD(elements * SIZE)]), ir.PointerType(packet, SHARED))

    def load_packet(builder: Any, pointer: Any, elements: int) -> list[Any]:
        loaded = builder.load(place(builder, pointer, elements), align=PACKET)
        return [builder.extract_element(loaded, _WORD(i)) for i in range(LANES)]

    def store_packet(builder: Any, pointer: Any, elements: int, numbers: list[Any]) -> None:
        whole = ir.Constant(packet, ir.Undefined)
        for i, number in enumerate(numbers):
            whole = builder.insert_element(whole, number, _WORD(i))
        builder.store(whole, place(builder, pointer, elements), align=PACKET)

    def load_line(builder: Any, pointer: Any, first: int, count: int, gap: int) -> list[Any]:
        return [number for g in range(count // LANES) for number in load_packet(builder, pointer, first + g * gap)]

    def unpacked(builder: Any, tile: Any) -> list[Any]:
        return [builder.extract_value(tile, i) for i in range(COUNT)]

    def packed(builder: Any, numbers: list[Any]) -> Any:
        tile = ir.Constant(ir.ArrayType(element.llvm, COUNT), ir.Undefined)
        for i, number in enumerate(numbers):
            tile = builder.insert_value(tile, number, i)
        return tile

    @intrinsic
    def zeros(typing_context):
        return kind(), lambda context, builder, signature, arguments: packed(builder, [element.llvm(0.0)] * COUNT)

    @intrinsic
    def load(typing_context, address):
        def codegen(context, builder, signature, arguments):
            return packed(builder, load_line(builder, start(builder, arguments[0]), 0, COUNT, GAP))

        return kind(types.int64), codegen

    @intrinsic
    def store(typing_context, address, tile):
        def codegen(context, builder, signature, arguments):
            pointer, numbers = start(builder, arguments[0]), unpacked(builder, arguments[1])
            for g in range(COUNT // LANES):
                store_packet(builder, pointer, g * GAP, numbers[g * LANES : (g + 1) * LANES])
            return context.get_dummy_value()

        return types.void(types.int64, kind), codegen

    @intrinsic
    def add_to(typing_context, address, tile):
        def codegen(context, builder, signature, arguments):
            pointer, numbers = start(builder, arguments[0]), unpacked(builder, arguments[1])
            for g in range(COUNT // LANES):
                held = load_packet(builder, pointer, g * GAP)
                sums = [builder.fadd(a, b) for a, b in zip(held, numbers[g * LANES :], strict=False)]
                store_packet(builder, pointer, g * GAP, sums)
            return context.get_dummy_value()

        return types.void(types.int64, kind), codegen

    @intrinsic
    def add(typing_context, a, b):
        def codegen(context, builder, signature, arguments):
            pairs = zip(*(unpacked(builder, argument) for argument in arguments), strict=True)
            return packed(builder, [builder.fadd(*pair) for pair in pairs])

        return kind(kind, kind), codegen

    def multiplication(count: int) -> Any:
        @intrinsic
        def multiply(typing_context, tile, x_address, w_address):
            def codegen(context, builder, signature, arguments):
                sums = unpacked(builder, arguments[0])
                x, w = (start(builder, address) for address in arguments[1:])

                def lines(p: int) -> tuple[list[Any], list[Any]]:
                    return load_line(builder, x, p * X_TERM, rows, X_GAP), load_line(builder, w, p * W_TERM, columns, W_GAP)

                following = lines(0)
                for p in range(count):
                    x_line, w_line = following
                    if p + 1 < count:  # ahead of these products, which hide how long loads take
                        following = lines(p + 1)
                    for i in range(rows):
                        for j in range(columns):
                            at = i * columns + j
                            sums[at] = builder.fma(x_line[i], w_line[j], sums[at])
                return packed(builder, sums)

            return kind(kind, types.int64, types.int64), codegen

        return multiply

    return Tile(zeros, load, store, add_to, add, multiplication(terms), multiplication(1))
