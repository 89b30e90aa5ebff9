"""Packing: copying a block of a matrix, whatever its strides, into dense rows in the order in which kernels read it.

The same function packs the weight for the micro-kernel, the bias of a panel (a matrix of one row), and rows of x that have
to be widened: float16 and bfloat16 become float32 here and nowhere else.
"""

from numba.extending import register_jitable

from fastrelu.kernels.memory import load_operands, size_of, smaller, stack, store, words
from fastrelu.kernels.tile import load_row, load_transposed, store_tile
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
    def copy_transposed(source, column_step, rows, columns, target, target_step):
        """The elements of a column are neighbours: squares are transposed in registers."""
        square = stack(SQUARE)
        for j in range(0, columns, LANES):
            last = smaller(columns - j, LANES) - 1
            column, to = source + j * column_step, target + j * WIDE
            i = 0
            while i <= rows - LANES and last == LANES - 1:
                store_tile(load_square(column + i * SIZE, column_step, last, 0), to, target_step)
                to += LANES * target_step
                i += LANES
            while i < rows:
                count = smaller(rows - i, LANES)
                store_tile(load_square_first(column + i * SIZE, column_step, last, count), square, LANES * WIDE)
                for row in range(count):
                    store(to, 0, load_wide(square + row * LANES * WIDE))
                    to += target_step
                i += count

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
        elif row_step == SIZE and rows > 1:
            copy_transposed(source, column_step, rows, columns, target, target_step)
        else:
            copy_any(source, row_step, column_step, rows, columns, target, target_step)

    return pack
