"""Packing: copying a block of a matrix, whatever its strides, into dense rows in the order in which kernels read it.

The same function packs the weight for the micro-kernel, the bias of a panel (a matrix of one row), and rows of x that have
to be widened: float16 and bfloat16 become float32 here and nowhere else.
"""

from numba.extending import register_jitable

from fastrelu.kernels.memory import (
    call_address,
    callback_address,
    load_operands,
    read_word,
    size_of,
    smaller,
    stack,
    store,
    words,
    write_words,
)
from fastrelu.kernels.pool import in_parallel
from fastrelu.kernels.tile import even_lanes, load_row, load_transposed, store_tile
from fastrelu.kernels.vector import ELEMENTS, Vector, widened


def build(dtype: str, vector_bytes: int):
    """The function (task, unused) for elements of `dtype`.

    The task is seven words: the block's address, its row and column steps in bytes, its rows and columns, the target's
    address and its row step. Lanes that follow the last column in its vector are filled, with zeros or with any finite copy.
    """
    element = ELEMENTS[dtype]
    wide = widened(Vector(element, 1)).element
    SIZE, WIDE = size_of(element), size_of(wide)
    LANES = vector_bytes // WIDE
    SQUARE = LANES * LANES * WIDE
    load = load_operands([(element, False)], LANES, True, partial=False)
    load_first = load_operands([(element, False)], LANES, True, partial=True)
    load_one = load_operands([(element, False)], 1, True, partial=False)
    load_square = load_transposed(element, LANES, partial=False)
    load_square_first = load_transposed(element, LANES, partial=True)
    load_wide = load_row(wide, LANES)

    @register_jitable
    def copy_rows(source, row_step, rows, columns, target, target_step):
        """The elements of a row are neighbours."""
        for _ in range(rows):
            j = 0
            while j <= columns - LANES:
                store(target, j, load((source,), j, 0)[0])
                j += LANES
            if j < columns:
                store(target, j, load_first((source,), j, columns - j)[0])
            source += row_step
            target += target_step

    @register_jitable
    def copy_every_other(source, row_step, rows, columns, target, target_step):
        """Between two elements of a row stands one that is not wanted."""
        for _ in range(rows):
            for j in range(0, columns, LANES):
                left = 2 * (columns - j) - 1
                low, high = load_first((source,), 2 * j, left)[0], load_first((source,), 2 * j + LANES, left - LANES)[0]
                store(target, j, even_lanes(low, high))
            source += row_step
            target += target_step

    @register_jitable
    def copy_transposed(source, column_step, rows, columns, target, target_step):
        """The elements of a column are neighbours: squares are transposed in registers."""
        square = stack(SQUARE)
        # Columns a large power of two apart meet in one set of the first-level cache, which has room for 8 lines: they are
        # read a whole line at a time, lest each be fetched twice (24 instead of 46 GB/s).
        head = smaller(-source // SIZE & (LANES - 1), rows) if column_step & 1023 == 0 else 0
        for j in range(0, columns, LANES):
            last = smaller(columns - j, LANES) - 1
            column, to = source + j * column_step, target + j * WIDE
            count = head if head > 0 else smaller(LANES, rows)
            left = rows
            while left > 0:
                if count == LANES and last == LANES - 1:
                    store_tile(load_square(column, column_step, last, 0), to, target_step)
                    to += LANES * target_step
                else:
                    store_tile(load_square_first(column, column_step, last, count), square, LANES * WIDE)
                    for row in range(count):
                        store(to, 0, load_wide(square + row * LANES * WIDE))
                        to += target_step
                column += count * SIZE
                left -= count
                count = smaller(LANES, left)

    @register_jitable
    def copy_any(source, row_step, column_step, rows, columns, target, target_step):
        padding = -columns & (LANES - 1)
        for _ in range(rows):
            place = source
            for j in range(columns):
                store(target, j, load_one((place,), 0, 0)[0])
                place += column_step
            for j in range(columns, columns + padding):
                store(target, j, load_one((source,), 0, 0)[0])
            source += row_step
            target += target_step

    def pack(task, _):
        source, row_step, column_step, rows, columns, target, target_step = words(task, 7)
        if column_step == SIZE:
            copy_rows(source, row_step, rows, columns, target, target_step)
        elif column_step == 2 * SIZE:
            copy_every_other(source, row_step, rows, columns, target, target_step)
        elif row_step == SIZE and rows > 1:
            copy_transposed(source, column_step, rows, columns, target, target_step)
        else:
            copy_any(source, row_step, column_step, rows, columns, target, target_step)

    return pack


@register_jitable
def pack_block(function, source, row_step, column_step, rows, columns, target, target_step):
    """Call a packing: the function that `build` made, at the address `function`."""
    task = stack(56)
    write_words(task, (source, row_step, column_step, rows, columns, target, target_step))
    call_address(function, task, 0)


@register_jitable
def panel_width(columns, narrow, wide):
    """The lanes of the next panel where `columns` are left."""
    return wide if columns >= wide else narrow


@register_jitable
def _pack_panel(task, index):
    w, w_k, w_n, k, n, target, narrow, wide, size, pack = words(task, 10)
    j, end = index * wide, smaller(n, (index + 1) * wide)
    while j < end:
        width = panel_width(end - j, narrow, wide)
        columns = smaller(width, end - j)
        pack_block(pack, w + j * w_n, w_k, w_n, k, columns, target + j * k * size, width * size)
        j += columns


_pack_panel_address = callback_address(_pack_panel, 2)


def pack_weight(task):
    """Pack a whole weight, panel after panel, as `product` reads it.

    Parameters
    ----------
    task : intp
        Address of ten words: w and its row and column steps; k and n; the target; the lanes of the narrowest and the widest
        tile; the bytes of an element of the target; the address of the packing of the type of w. A panel of c columns begins
        where the elements of the columns before end, k rows of c elements; the last is padded to a whole vector.
    """
    n, wide = read_word(task + 32), read_word(task + 56)
    in_parallel(_pack_panel_address(), task, (n + wide - 1) // wide)
