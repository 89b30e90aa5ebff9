"""Products so small that finding the best way would take longer: one row after the other, with w where it lies.

A sum has at most `KC` terms here, so that it is one chain, as in the micro-kernel (`fastrelu.kernels.linear`).
"""

from numba.extending import register_jitable

from fastrelu.kernels.linear import activation_of
from fastrelu.kernels.memory import load_operands, size_of, words
from fastrelu.kernels.tile import fma_outer, load_row, load_tile, on_rows, store_tile, store_tile_partial, zeros
from fastrelu.kernels.vector import ELEMENTS

# Multiply-adds up to which this is the faster way, and columns for which there is room on the stack for alpha.
MAX_WORK, MAX_COLUMNS = 16384, 256
# Registers of sums that are independent: up to as many as hide the time that one multiply-add takes.
VECTORS = (4, 2, 1)


def build(formula: str, dtype: str, vector_bytes: int):
    """The function (task, rows) for `rows` rows.

    The task is twelve words: x with the steps between its rows and to the next column; w, whose rows are contiguous, and the
    step between them; k and n; the bias, or 0, and the step between its rows; alpha, a row of which can be read in any
    case; y and the step between its rows. Rows of bias, alpha and y are contiguous.
    """
    element = ELEMENTS[dtype]
    SIZE = size_of(element)
    LANES = vector_bytes // SIZE
    activate = on_rows(activation_of(formula))
    zero, load_first = zeros(element, 1, LANES), load_operands([(element, False)], LANES, False, partial=True)

    def columns_of(vectors):
        """The function for the columns of that many registers."""
        zero, load_bias, load = (
            make(element, *n, vectors * LANES) for make, n in ((zeros, [1]), (load_tile, [1]), (load_row, []))
        )

        @register_jitable
        def columns(x, x_step, w, w_k, k, bias, alpha, y):
            tile = load_bias(bias, 0) if bias != 0 else zero()
            for _ in range(k):
                tile = fma_outer(tile, x, 0, load(w))
                x += x_step
                w += w_k
            store_tile(activate(tile, load(alpha)), y, 0)

        return columns

    four, two, one = map(columns_of, VECTORS)
    FOUR, TWO = (vectors * LANES for vectors in VECTORS[:2])

    def small(task, rows):
        x, x_row, x_step, w, w_k, k, n, bias, bias_row, alpha, y, y_row = words(task, 12)
        while rows > 0:
            j = 0
            while n - j >= LANES:
                at, left = j * SIZE, n - j
                start = bias + at if bias != 0 else 0
                if left >= FOUR:
                    four(x, x_step, w + at, w_k, k, start, alpha + at, y + at)
                    j += FOUR
                elif left >= TWO:
                    two(x, x_step, w + at, w_k, k, start, alpha + at, y + at)
                    j += TWO
                else:
                    one(x, x_step, w + at, w_k, k, start, alpha + at, y + at)
                    j += LANES
            if j < n:
                at, count = j * SIZE, n - j
                tile = load_first((bias + at,), 0, count) if bias != 0 else zero()
                column, row = x, w + at
                for _ in range(k):
                    tile = fma_outer(tile, column, 0, load_first((row,), 0, count)[0])
                    column += x_step
                    row += w_k
                store_tile_partial(activate(tile, load_first((alpha + at,), 0, count)[0]), y + at, 0, count)
            x += x_row
            bias += bias_row
            y += y_row
            rows -= 1

    return small
