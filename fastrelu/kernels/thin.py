"""A few rows of x times a weight whose columns are contiguous, as in PyTorch's (out, in) layout.

The weight is read once, in order, and is transposed in registers on its way into the sums: with so few rows packing it would
take longer than the product. The order of every sum is that of the micro-kernel (`fastrelu.kernels.linear`).
"""

from numba.extending import register_jitable

from fastrelu.kernels.memory import size_of, smaller, stack, words
from fastrelu.kernels.tile import add, fma_outer, fma_square, load_row, load_tile, load_transposed, store_tile, zeros
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
    def end_block(whole, tile, p):
        """The sum so far, with that of the block that ends at p."""
        return tile if p <= KC else add(whole, tile)

    @register_jitable
    def some_terms(tile, whole, a, a_row, place, w_column, last, p, count):
        """The next `count` terms, fewer than a square has, or with the end of a block among them."""
        square = stack(SQUARE)
        store_tile(load_square_first(place, w_column, last, count), square, LANES * SIZE)
        for q in range(count):
            tile = fma_outer(tile, a + p * SIZE, a_row, load_one_row(square + q * LANES * SIZE))
            p += 1
            if p & (KC - 1) == 0:
                whole = end_block(whole, tile, p)
                tile = zero()
        return tile, whole

    @register_jitable
    def sums(task):
        a, a_row, w, w_column, k, columns, bias, bias_row, total, total_row = words(task, 10)
        # Columns that all begin at the same place in a cache line are read a line at a time. If 16 lines of one set of the
        # first-level cache, which has room for 8, were each read in two parts, they would be fetched twice.
        head = smaller(-w // SIZE & (LANES - 1) if w_column & 63 == 0 else 0, k)
        for j in range(0, columns, LANES):
            last = smaller(columns - j, LANES) - 1
            place = w + j * w_column
            tile = load_bias(bias + j * SIZE, bias_row)
            whole = tile
            p, count = 0, head if head > 0 else smaller(LANES, k)
            while p < k:
                if count == LANES and last == LANES - 1 and KC - (p & (KC - 1)) >= LANES:
                    tile = fma_square(tile, a + p * SIZE, a_row, SIZE, load_square(place, w_column, last, 0))
                    if (p + LANES) & (KC - 1) == 0:
                        whole = end_block(whole, tile, p + LANES)
                        tile = zero()
                else:
                    tile, whole = some_terms(tile, whole, a, a_row, place, w_column, last, p, count)
                p += count
                place += count * SIZE
                count = smaller(LANES, k - p)
            if k & (KC - 1) != 0:
                whole = end_block(whole, tile, k)
            store_tile(whole, total + j * SIZE, total_row)

    return sums


def build(dtype: str, vector_bytes: int):
    """The function (task, rows) for up to `MAX_ROWS` rows.

    The task is ten words: x, whose rows are contiguous, and its row step; the weight and the step between its columns; k and
    the number of columns; the bias and the total with their row steps. Bias and total are padded to whole vectors.
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
