"""Products so small that finding the best way would take longer: one row after the other, with w where it lies.

A sum has at most `KC` terms here, so that it is one chain, as in the micro-kernel (`fastrelu.kernels.linear`).
"""

from fastrelu.kernels.linear import activation_of
from fastrelu.kernels.memory import load_operands, size_of, smaller, words
from fastrelu.kernels.tile import fma_outer, load_row, load_tile, on_rows, store_tile, store_tile_partial, zeros
from fastrelu.kernels.vector import ELEMENTS

# Multiply-adds up to which this is the faster way, and columns for which there is room on the stack for alpha.
MAX_WORK, MAX_COLUMNS = 16384, 256
# Registers of sums that are independent: as many as hide the time that one multiply-add takes.
VECTORS = 4


def build(formula: str, dtype: str, vector_bytes: int):
    """The function (task, rows) for `rows` rows.

    The task is twelve words: x with the steps between its rows and to the next column; w, whose rows are contiguous, and the
    step between them; k and n; the bias, or 0, and the step between its rows; alpha, a row of which can be read in any
    case; y and the step between its rows. Rows of bias, alpha and y are contiguous.
    """
    element = ELEMENTS[dtype]
    SIZE = size_of(element)
    LANES = vector_bytes // SIZE
    WIDE = VECTORS * LANES
    activate = on_rows(activation_of(formula))
    zero, zero_wide = zeros(element, 1, LANES), zeros(element, 1, WIDE)
    load_wide, load_wide_row = load_tile(element, 1, WIDE), load_row(element, WIDE)
    load_first = load_operands([(element, False)], LANES, False, partial=True)

    def small(task, rows):
        x, x_row, x_step, w, w_k, k, n, bias, bias_row, alpha, y, y_row = words(task, 12)
        while rows > 0:
            j = 0
            while n - j >= WIDE:
                at = j * SIZE
                tile = load_wide(bias + at, 0) if bias != 0 else zero_wide()
                column, row = x, w + at
                for _ in range(k):
                    tile = fma_outer(tile, column, 0, load_wide_row(row))
                    column += x_step
                    row += w_k
                store_tile(activate(tile, load_wide_row(alpha + at)), y + at, 0)
                j += WIDE
            while j < n:
                at, count = j * SIZE, smaller(LANES, n - j)
                tile = load_first((bias + at,), 0, count) if bias != 0 else zero()
                column, row = x, w + at
                for _ in range(k):
                    tile = fma_outer(tile, column, 0, load_first((row,), 0, count)[0])
                    column += x_step
                    row += w_k
                store_tile_partial(activate(tile, load_first((alpha + at,), 0, count)[0]), y + at, 0, count)
                j += LANES
            x += x_row
            bias += bias_row
            y += y_row
            rows -= 1

    return small
