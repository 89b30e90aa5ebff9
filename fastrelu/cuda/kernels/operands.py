"""Operands of products, on their way to shared memory.

``Operand``   how an operand is read
``reading``   a number of it, as one of the type of the sums
``copying``   its part of a block tile, by all threads of a block
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from fastrelu.cuda import formulas
from fastrelu.cuda.conversion import converted
from fastrelu.cuda.kernels import patches
from fastrelu.cuda.memory import PACKET, SHARED, load, number_of, size_of, store
from fastrelu.cuda.ptx import added_product, copy_async, copy_async_below
from fastrelu.cuda.tile import is_below
from fastrelu.cuda.toolkit import device_function, intrinsic, types
from fastrelu.kernels.vector import ELEMENTS
from fastrelu.operations import HALVES

int32 = types.int32

TERMS = 8
"""Neighbouring terms that neighbouring threads copy where terms are contiguous: of float32 a sector of 32 bytes."""


@dataclass(frozen=True)
class Operand:
    """How an operand is read. Its rows are those of the result for x, and the columns of the result for w.

    Attributes
    ----------
    dtype : str
        Its element type.
    terms_first : bool
        Whether neighbouring threads copy neighbouring terms, else neighbouring rows.
    wide : bool
        Whether rows are neighbours in memory, and aligned so that 16 bytes can be copied at once.
    derivative : str
        The formula of dz, if the operand is dz: what is read is dy then. "" otherwise.
    of : str
        The element type of y; "bits along terms" or "bits along rows" for bits of y > 0.
    staged : bool
        Whether y, which then has the layout and the type of dy, is copied to shared memory as well, so that no thread waits for
        memory to make dz.
    positions : str
        If the operand is made of patches of images, which of its axes are positions: "rows" or "terms". The other one is taps.
        Neighbouring threads copy neighbouring positions. "" otherwise.
    pointwise : bool
        Whether patches have one element in each channel, and it is in the image.
    """

    dtype: str
    terms_first: bool = True
    wide: bool = False
    derivative: str = ""
    of: str = ""
    staged: bool = False
    positions: str = ""
    pointwise: bool = False


def sums_of(dtype: str) -> str:
    """The type in which numbers of a type are summed."""
    return "float32" if dtype in HALVES else dtype


@cache
def cast(path: tuple[str, ...], count: int = 1) -> Any:
    """A function that converts a number, or a tuple of `count`, from the first type of a path to the second, and so on."""
    elements = [ELEMENTS[name] for name in path]
    first, last = (number_of(element) for element in (elements[0], elements[-1]))
    if count > 1:
        first, last = types.UniTuple(first, count), types.UniTuple(last, count)

    @intrinsic
    def convert(typing_context, value):
        def codegen(context, builder, signature, arguments):
            lanes = [arguments[0]] if count == 1 else [builder.extract_value(arguments[0], i) for i in range(count)]
            for source, target in pairwise(elements):
                lanes = [converted(builder, lane, source, target) for lane in lanes]
            return lanes[0] if count == 1 else context.make_tuple(builder, last, lanes)

        return last(first), codegen

    return convert


def formula_of(name: str, dtype: str, parameters: int) -> Any:
    """A formula of `fastrelu.kernels.formulas` as a function of as many values and alpha."""
    if not name:
        return device_function(lambda *values: values[0])
    function = formulas.inline(name, dtype)
    takes_alpha = getattr(formulas.formulas, name).__code__.co_argcount > parameters
    if parameters == 1:
        return device_function((lambda x, alpha: function(x, alpha)) if takes_alpha else (lambda x, alpha: function(x)))
    return device_function((lambda x, y, alpha: function(x, y, alpha)) if takes_alpha else (lambda x, y, alpha: function(x, y)))


def reading(operand: Operand, dtype: str, common: str) -> Any:
    """The function that reads a number of an operand, as one of the type of the sums.

    Its arguments are the address; and of dz the address of y or of the byte with the bit, the number of the bit, and alpha.
    """
    read, widened = load(operand.dtype), cast((operand.dtype, common, dtype))
    if not operand.derivative:
        return device_function(lambda address, y, bit, alpha: widened(read(address)))
    if operand.of.startswith("bits"):
        read_byte, number = load("uint8"), number_of(ELEMENTS[dtype])

        @device_function
        def read_where_positive(address, y, bit, alpha):
            return widened(read(address)) if (int32(read_byte(y)) >> bit) & 1 else number(0)

        return read_where_positive
    read_y, widened_y = load(operand.of), cast((operand.of, common, dtype))
    derivative = formula_of(operand.derivative, dtype, 2)
    return device_function(lambda address, y, bit, alpha: derivative(widened(read(address)), widened_y(read_y(y)), alpha))


@dataclass(frozen=True)
class Copy:
    """How a block of threads copies an operand's part of a block tile.

    Attributes
    ----------
    near, wide : int
        How many threads copy neighbouring terms, or rows; and how many rows each copies at once.
    tile : function
        Copies. Its arguments are the places for the operand and for y, and the address, where this thread begins; the terms
        that follow there, and the first one's number; then what `begin` returned; and of dz the address of y, its steps, and
        alpha.
    settle : function or None
        Makes dz of the dy and the y that this thread has copied to two places. It needs alpha.
    begin : function
        What this thread needs to know of its rows. Its arguments are the bytes from a row and from a term to the next, the rows
        that follow, and the first one's number; and of patches how to find positions, where they are, and the bytes to this
        group.
    moves : bool
        Whether the address moves on with the terms.
    """

    near: int
    wide: int
    tile: Any
    settle: Any
    begin: Any
    moves: bool


def copying(
    operand: Operand, extent: int, pitch: int, threads: int, terms: int, dtype: str, common: str, asynchronous: bool
) -> Copy:
    """How to copy an operand.

    Parameters
    ----------
    operand : Operand
        The operand.
    extent, pitch : int
        Its rows in a block tile, and the elements from a term to the next in shared memory.
    threads, terms : int
        Threads of a block, and the terms of a block tile.
    dtype, common : str
        The type of the sums, and that of the operation.
    asynchronous : bool
        Whether the device copies to shared memory by itself.
    """
    SIZE = size_of(ELEMENTS[dtype])
    WIDE = PACKET // SIZE if operand.wide else 1
    TERM = pitch * SIZE
    # How far a thread's next copies are from its first one, along rows and terms, and how many there are.
    near = TERMS if operand.terms_first else extent // WIDE
    ROWS = threads // near if operand.terms_first else extent
    STEPS = TERMS if operand.terms_first else threads // near
    DOWN, ALONG = extent // ROWS, terms // STEPS
    DOWN_PLACE, ALONG_PLACE = ROWS * SIZE, STEPS * TERM
    number = number_of(ELEMENTS[dtype])
    is_asynchronous = asynchronous and operand.dtype == dtype and (operand.staged or not operand.derivative)
    STAGED = is_asynchronous and operand.staged
    derivative = formula_of(operand.derivative, dtype, 2)
    read_copied, put_copied = load(dtype, WIDE, SHARED), store(dtype, WIDE, SHARED)
    read, put = reading(operand, dtype, common), store(dtype, space=SHARED)
    ALONG_TERMS, ALONG_ROWS = (operand.of == f"bits along {what}" for what in ("terms", "rows"))

    @device_function
    def settle(place, y_place, alpha):
        for h in range(ALONG):
            for v in range(DOWN):
                to = place + h * ALONG_PLACE + v * DOWN_PLACE
                put_copied(to, derivative(read_copied(to), read_copied(y_place + h * ALONG_PLACE + v * DOWN_PLACE), alpha))

    def complete(tile: Any, begin: Any) -> Copy:
        return Copy(near, WIDE, tile, settle if STAGED else None, begin, operand.positions != "terms" and not operand.pointwise)

    if operand.positions:
        copy_one = copy_async(WIDE * SIZE)

        @device_function
        def start_copy(place, y_place, address, is_inside, of):
            copy_one(place, address, is_inside)
            if STAGED:
                copy_one(y_place, address + of[0], is_inside)

        @device_function
        def copy_now(place, y_place, address, is_inside, of):
            value = number(0)
            if is_inside:
                value = read(address, address + of[0], 0, of[3])
            put(place, value)

        move = start_copy if is_asynchronous else copy_now

        ITEMSIZE, POINTWISE = size_of(ELEMENTS[operand.dtype]), operand.pointwise

        @device_function
        def tap_of(address, row, column, places, entry, number, exists):
            """The address of a tap, whose entry in the table is there, and whether it exists and is in the image."""
            if POINTWISE:
                return added_product(number, places[8], address), exists
            offset, steps = patches.read_tap(entry)
            return address + offset, patches.is_inside(row, column, steps, places[3], places[4])

        @device_function
        def copy_rows(place, y_place, source, terms, p, along, of):
            places, address, row, column = along
            for h in range(ALONG):
                entry, exists = source + h * STEPS * patches.TAP, row >= 0 and is_below(h * STEPS, terms)
                at, inside = tap_of(address, row, column, places, entry, p + h * STEPS, exists)
                move(place + h * ALONG_PLACE, y_place + h * ALONG_PLACE, at, inside, of)

        @device_function
        def begin_rows(row, step, rows, i, division, places, group):
            return places, *patches.patch_of(i, rows > 0, division, places, group, ITEMSIZE)

        @device_function
        def copy_terms(place, y_place, source, terms, p, along, of):
            division, places, group, rows, i = along
            for h in range(ALONG):
                exists = is_below(h * STEPS, terms)
                address, row, column = patches.patch_of(p + h * STEPS, exists, division, places, group, ITEMSIZE)
                for v in range(DOWN):
                    entry, given = source + v * ROWS * patches.TAP, exists and is_below(v * ROWS, rows)
                    at, inside = tap_of(address, row, column, places, entry, i + v * ROWS, given)
                    to = h * ALONG_PLACE + v * DOWN_PLACE
                    move(place + to, y_place + to, at, inside, of)

        @device_function
        def begin_terms(row, step, rows, i, division, places, group):
            return division, places, group, rows, i

        return complete(copy_rows, begin_rows) if operand.positions == "rows" else complete(copy_terms, begin_terms)
    begin = device_function(lambda row, step, rows, i, division, places, group: (row, step, rows, i))
    if is_asynchronous:
        copy = copy_async_below(WIDE * SIZE)

        @device_function
        def copy_tile(place, y_place, source, terms, p, along, of):
            (row, step, rows, i), (y, y_row, y_step, _) = along, of
            for h in range(ALONG):
                given = rows if is_below(h * STEPS, terms) else int32(0)
                address, at = source + h * STEPS * step, y + i * y_row + (p + h * STEPS) * y_step
                for v in range(DOWN):
                    copy(place + h * ALONG_PLACE + v * DOWN_PLACE, address, v * ROWS, given)
                    address += ROWS * row
                    if STAGED:
                        copy(y_place + h * ALONG_PLACE + v * DOWN_PLACE, at, v * ROWS, given)
                        at += ROWS * y_row

        return complete(copy_tile, begin)

    @device_function
    def read_tile(place, y_place, source, terms, p, along, of):
        (row, step, rows, i), (y, y_row, y_step, alpha) = along, of
        for h in range(ALONG):
            given = rows if is_below(h * STEPS, terms) else int32(0)
            address, j = source + h * STEPS * step, p + h * STEPS
            for v in range(DOWN):
                at, bit = y + (i + v * ROWS) * y_row + j * y_step, 0
                if ALONG_TERMS:
                    at, bit = y + (i + v * ROWS) * y_row + (j >> 3) * y_step, j & 7
                if ALONG_ROWS:
                    at, bit = y + (i + v * ROWS >> 3) * y_row + j * y_step, (i + v * ROWS) & 7
                value = number(0)
                if is_below(v * ROWS, given):
                    value = read(address, at, bit, alpha)
                put(place + h * ALONG_PLACE + v * DOWN_PLACE, value)
                address += ROWS * row

    return complete(read_tile, begin)


def pitch_of(operand: Operand, extent: int, dtype: str) -> int:
    """Elements from a term to the next in shared memory.

    A packet more than rows where neighbouring threads write neighbouring terms, lest they meet in few banks.
    """
    return extent + (PACKET // size_of(ELEMENTS[dtype]) if operand.terms_first else 0)
