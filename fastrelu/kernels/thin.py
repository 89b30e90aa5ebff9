"""A few rows of x times a weight whose columns are contiguous, as in PyTorch's (out, in) layout.

The weight is read once, in order, and is transposed in registers on its way into the sums: with so few rows packing it would
take longer than the product. The order of every sum is that of the micro-kernel (`fastrelu.kernels.linear`).
"""

from numba.extending import register_jitable

from fastrelu.kernels.memory import size_of, smaller, stack, store, store_partial, words
from fastrelu.kernels.tile import (
    add,
    fma_outer,
    fma_square,
    load_row,
    load_tile,
    load_transposed,
    store_tile,
    zeros,
)
from fastrelu.kernels.vector import ELEMENTS
from fastrelu.operations import KC

MAX_ROWS = 4


def _sums(element, ROWS: int, LANES: int):
    """The function for `ROWS` rows of x."""
    SIZE = size_of(element)
    SQUARE = LANES * LANES * SIZE
    zero, load_bias = zeros(element, ROWS, LANES), load_tile(element, ROWS, LANES)
    load_square = load_transposed(element, LANES, partial=False)
    load_square_first = load_transposed(element, LANES, partial=True)
    load_one_row = load_row(element, LANES)

    @register_jitable
    def sums(task):
        a, a_row, a_step, w, w_column, k, columns, bias, bias_row, total, total_row = words(task, 11)
        square = stack(SQUARE)
        for j in range(0, columns, LANES):
            last = smaller(columns - j, LANES) - 1
            column, place = a, w + j * w_column
            whole = load_bias(bias + j * SIZE, bias_row)
            for start in range(0, k, KC):
                tile = zero()
                if start == 0:
                    tile = whole
                p, kc = 0, smaller(KC, k - start)
                while p <= kc - LANES:
                    tile = fma_square(tile, column, a_row, a_step, load_square(place, w_column, last, 0))
                    column += LANES * a_step
                    place += LANES * SIZE
                    p += LANES
                if p < kc:
                    store_tile(load_square_first(place, w_column, last, kc - p), square, LANES * SIZE)
                    for q in range(kc - p):
                        tile = fma_outer(tile, column, a_row, load_one_row(square + q * LANES * SIZE))
                        column += a_step
                whole = tile if start == 0 else add(whole, tile)
            store_tile(whole, total + j * SIZE, total_row)

    return sums


def build(dtype: str, vector_bytes: int):
    """The function (task, rows) for up to `MAX_ROWS` rows.

    The task is eleven words: x and its row and column steps; the weight and the step between its columns; k and the number
    of columns; the bias and the total with their row steps. Bias and total are padded to whole vectors.
    """
    element = ELEMENTS[dtype]
    LANES = vector_bytes // size_of(element)
    one, two, three, four = (_sums(element, rows, LANES) for rows in range(1, MAX_ROWS + 1))

    def thin(task, rows):
        if rows == 1:
            one(task)
        elif rows == 2:
            two(task)
        elif rows == 3:
            three(task)
        else:
            four(task)

    return thin
