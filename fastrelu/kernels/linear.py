"""y = f(x @ w + b): the micro-kernel, and what remains to be done to its tiles.

``micro_kernel``  one loop over k, each step a rank-1 update of a tile in registers; the bias is its start value and the
                  activation is applied before it is stored
``tiles``         the micro-kernels of all shapes
``finish``        what would not fit the registers beside a tile: long formulas, halves, bit masks; from the first-level cache
``layer``         the loop that NumPy calls for one operation on given types, around `fastrelu.kernels.matrix`

Every element is summed in blocks of `KC` terms: within a block one chain of fused multiply-adds in ascending order that starts
from the bias in the first block and from 0 in the others; then the blocks' sums are added in ascending order. Nothing
else that a call does may change the bits.
"""

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels import formulas
from fastrelu.kernels.memory import (
    constant_words,
    copy_element,
    load_operands,
    read_word,
    size_of,
    smaller,
    stack,
    store_partial,
    words,
)
from fastrelu.kernels.tile import (
    add,
    fma_outer,
    load_row,
    load_tile,
    on_rows,
    prefetch,
    store_bits,
    store_tile,
    store_tile_partial,
    zeros,
)
from fastrelu.kernels.vector import ELEMENTS, narrow
from fastrelu.native.matrix import PRODUCT, Tiling, describe
from fastrelu.operations import Fused

# Terms between two requests for what will be needed later.
STRIDE = 4

_product = types.ExternalFunction(PRODUCT, types.int32(types.intp, types.intp, types.intp, types.intp))


def activation_of(formula: str):
    """The formula as a function (x, alpha)."""
    if not formula:
        return register_jitable(lambda x, alpha: x)
    function = getattr(formulas, formula)
    if function.__code__.co_argcount == 2:
        return function
    return register_jitable(lambda x, alpha: function(x))


def micro_kernel(activation, element, ROWS: int, LANES: int, gathers: bool):
    """The function (block, count) for `count` tiles of `ROWS` x `LANES` elements, one below the other.

    The block is 19 words. A column of x, the steps between its rows and to the next column; the panel of w and the step between
    its rows; the number of terms; the address of a list of what will be needed next, and how many of its rows are asked for
    every `STRIDE` terms; whether the chain of terms starts from a given tile, whether sums so far are added at its end, and
    whether that is all; the tile to start from and the step between its rows; where the sums are kept and the step between
    their rows; alpha; y, the step between its rows and how many of its columns there are.

    The list has three words an entry, which ends with 0 rows: an address, the step between its rows, and their number. A row
    is as long as one of the tile.

    If it `gathers`, rows of w stand anywhere: in place of the step between them is the address of a list of their offsets.
    """
    GATHERS = gathers
    LINES = max(1, LANES * size_of(element) // 64)
    zero, load_start, load_b = zeros(element, ROWS, LANES), load_tile(element, ROWS, LANES), load_row(element, LANES)
    activate = on_rows(activation)

    def kernel(block, count):
        a, a_row, a_step, b, b_step, terms, soon, rate, has_start, has_sums, is_last = words(block, 11)
        start, start_row, total, total_row, alpha, y, y_row, columns = words(block + 88, 8)
        place, step, left = words(soon, 3)
        while count > 0:
            tile = load_start(start, start_row) if has_start else zero()
            column, row, p = a, b, 0
            while p < terms:
                stop = smaller(p + STRIDE, terms)
                for _ in range(smaller(rate, left)):
                    for line in range(LINES):
                        prefetch(place + 64 * line)
                    place += step
                    left -= 1
                if left == 0 and step != 0:
                    soon += 24
                    place, step, left = words(soon, 3)
                if count > 1:
                    next_rows = a + (ROWS + ((p >> 2) & 3)) * a_row + (p & -16) * a_step
                    prefetch(next_rows)
                    prefetch(next_rows + 4 * a_row)
                while p < stop:
                    if GATHERS:
                        row = b + read_word(b_step + 8 * p)
                    tile = fma_outer(tile, column, a_row, load_b(row))
                    column += a_step
                    if not GATHERS:
                        row += b_step
                    p += 1
            if has_sums:
                tile = add(load_start(total, total_row), tile)
            if not is_last:
                store_tile(tile, total, total_row)
            elif columns == LANES:
                store_tile(activate(tile, load_b(alpha)), y, y_row)
            else:
                store_tile_partial(activate(tile, load_b(alpha)), y, y_row, columns)
            a += ROWS * a_row
            start += ROWS * start_row
            total += ROWS * total_row
            y += ROWS * y_row
            count -= 1

    return kernel


def tiles(formula: str, dtype: str, gathers: bool, vector_bytes: int):
    """The function (table, unused) that writes the addresses of the micro-kernels with that activation into a table, in
    the order of `Tiling.shapes`.
    """
    activation = activation_of(formula)
    kernels = [micro_kernel(activation, ELEMENTS[dtype], *shape, gathers) for shape in Tiling(dtype, vector_bytes).shapes]
    table = constant_words(kernels)
    COUNT = len(kernels)

    def write(target, _):
        source = table()
        for i in range(COUNT):
            copy_element(target + 8 * i, source + 8 * i, 8)

    return write


def finish(formula: str, sums: str, dtype: str, mask: bool, vector_bytes: int):
    """The function (task, unused) that makes results of type `dtype` from rows of sums, and the bit mask if there is one.

    The task is ten words: the sums and the step between their rows; the results and theirs; rows and columns; alpha; the mask
    and the steps between its rows and its bytes. Rows are contiguous, and the results may stand where the sums stand.
    """
    activation, element, output = activation_of(formula), ELEMENTS[sums], ELEMENTS[dtype]
    rounded = narrow(output)
    LANES = max(8, vector_bytes // size_of(element))
    SIZE, OUT = size_of(element), size_of(output)
    MASK = mask
    load = load_operands([(element, False), (element, False)], LANES, False, partial=True)
    mask_of = on_rows(register_jitable(lambda y, unused: formulas.relu_mask(y)))

    def finish_rows(task, _):
        source, source_row, y, y_row, rows, columns, alpha, mask, mask_row, mask_step = words(task, 10)
        bits = stack(8)
        while rows > 0:
            j = 0
            while j < columns:
                count = smaller(columns - j, LANES)
                x, parameter = load((source + j * SIZE, alpha + j * SIZE), 0, count)
                result = rounded(activation(x, parameter))
                store_partial(y + j * OUT, 0, result, count)
                if MASK:
                    store_bits(mask_of((result,), 0), bits, count)
                    for i in range((count + 7) >> 3):
                        copy_element(mask + ((j >> 3) + i) * mask_step, bits + i, 1)
                j += count
            source += source_row
            y += y_row
            mask += mask_row
            rows -= 1

    return finish_rows


def layer(spec: Fused):
    """The loop for `spec` as a Python function, to be compiled with NumPy's signature of a loop."""
    description = constant_words(describe(spec))

    def loop(context, pointers, dimensions, steps, auxiliary):
        return _product(description(), pointers, dimensions, steps)

    return loop
