"""Patches of images as an operand of a product: no array of patches is ever made.

One axis of the operand is positions (image, row, column of the output), the other taps (channel, row and column of the
kernel). What each of them adds to an address can be told apart, and so can what it adds to the row and the column of the
image, by which one knows whether the patch leaves the image there. What is outside is 0.

Positions are found by division. Taps are read from a table, of which each entry is bytes to add, in 64 bits, and rows and
columns to add, in 32 bits each. It goes on behind the last tap, with `MARGIN` taps outside of all images. Where a kernel has
one element, the number of a tap is that of its channel, and there is no table.
"""

from __future__ import annotations

from functools import cache

from llvmlite import ir

from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import store
from fastrelu.cuda.ptx import added_product, product_of
from fastrelu.cuda.toolkit import cuda, device_function, intrinsic, types

TAP = 16
"""Bytes of a tap in the table."""
MARGIN = 128
"""Taps behind the last one: as many as a block tile has rows."""
WRITING = 128
"""Threads of a block that writes the table."""
OUTSIDE = -(1 << 30)
"""A row that no tap brings back into an image."""
DIVISION, STEPS, PATCHES = 6, 3, 9
"""Words that say how a position becomes an image, a row and a column (see `division`: of the positions of an image, and of
those of a row), how many elements lie between neighbours of these three, and where patches are. The latter are the steps,
then rows and columns of the image that is read, its rows and columns between neighbouring positions, its address, and the bytes
between its channels.
"""

_WORD, _LONG = ir.IntType(32), ir.IntType(64)
int32, int64 = types.int32, types.int64


@device_function
def _divided(number, factor, shift):
    """A quotient of numbers of 31 bits, the divisor of which is given by `division`."""
    return int32(product_of(number, factor) >> shift)


def division(divisor: int) -> tuple[int, int, int]:
    """A divisor of at most 31 bits, and the factor and the shift that divide by it: Granlund and Montgomery 1994, theorem 4.2
    (doi:10.1145/773473.178249).
    """
    shift = 31 + max(divisor - 1, 0).bit_length()
    return divisor, -(-(1 << shift) // divisor), shift


@intrinsic
def read_tap(typing_context, address):
    """The two words of a tap. They never change, so that nothing must be done before they are read."""
    kind = types.UniTuple(types.int64, 2)

    def codegen(context, builder, signature, arguments):
        pair = ir.VectorType(_LONG, 2)
        loaded = builder.load(builder.inttoptr(arguments[0], ir.PointerType(pair, 1)), align=TAP)
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return context.make_tuple(builder, kind, [builder.extract_element(loaded, _WORD(i)) for i in range(2)])

    return kind(types.int64), codegen


@intrinsic
def is_inside(typing_context, row, column, steps, height, width):
    """Whether a tap leads from a row and a column to one within the image; all in 32 bits."""

    def codegen(context, builder, signature, arguments):
        row, column, height, width = (builder.trunc(arguments[i], _WORD) for i in (0, 1, 3, 4))
        down, across = builder.trunc(arguments[2], _WORD), builder.trunc(builder.lshr(arguments[2], _LONG(32)), _WORD)
        # What is less than 0 is very large without a sign.
        rows = builder.icmp_unsigned("<", builder.add(row, down), height)
        return builder.and_(rows, builder.icmp_unsigned("<", builder.add(column, across), width))

    return types.boolean(*[types.int64] * 5), codegen


@device_function
def place_of(position, division):
    """The image, the row and the column of a position."""
    image = _divided(position, division[1], division[2])
    rest = int32(position - image * int32(division[0]))
    row = _divided(rest, division[4], division[5])
    return image, row, int32(rest - row * int32(division[3]))


@device_function
def elements_to(image, row, column, steps):
    """The elements from the first to a place."""
    return added_product(image, steps[0], added_product(row, steps[1], added_product(column, steps[2], int64(0))))


@device_function
def patch_of(position, exists, division, places, group, itemsize):
    """The address of a patch, and its first row and column in the image."""
    image, row, column = place_of(position, division)
    first = int32(row * int32(places[5])) if exists else int32(OUTSIDE)
    address = places[7] + group + itemsize * elements_to(image, row, column, places)
    return address, first, int32(column * int32(places[6]))


@cache
def table() -> Kernel:
    """The kernel that writes a table: for all channels the rows, and for each of them the columns, which are evenly spaced."""
    put = store("int64", 2)

    def write(entries, taps, rows, columns, first_row, row_gap, first_column, column_gap, channel, row, column):
        for i in range(cuda.grid(1), taps + MARGIN, cuda.gridsize(1)):
            at_row, at_column = i // columns % rows, i % columns
            down, across = first_row + at_row * row_gap, first_column + at_column * column_gap
            offset = i // (rows * columns) * channel + down * row + across * column
            if i >= taps:
                down, across, offset = int64(OUTSIDE), int64(0), int64(0)
            put(entries + i * TAP, (offset, across << 32 | down & 0xFFFFFFFF))

    return Kernel(write, (types.int64,) * 11, WRITING)
