"""y = f(x @ w + b): the micro-kernel, and the loop that NumPy calls.

``micro_kernel``  one loop over k, each step a rank-1 update of a tile in registers; the bias is its start value and the
                  activation is applied before it is stored
``build``         the loop of one operation on given types, around `fastrelu.kernels.matrix`

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
    enter_default_float_status,
    leave_float_status,
    read_word,
    size_of,
    stack,
    words,
    write_words,
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
from fastrelu.kernels.vector import ELEMENTS, Vector, narrow, widened
from fastrelu.native.matrix import PRODUCT, Tiling, pack_name, thin_name
from fastrelu.operations import Fused

_product = types.ExternalFunction(PRODUCT, types.intp(types.intp))


def micro_kernel(spec: Fused, ROWS: int, LANES: int):
    """The function (block, count) for `count` tiles of `ROWS` x `LANES` elements, one below the other."""
    inputs, output = ELEMENTS[spec.dtypes[0]], ELEMENTS[spec.dtypes[-1]]
    element = widened(Vector(inputs, 1)).element
    LINES = max(1, LANES * size_of(element) // 64)
    MASK, BITS = spec.mask, 8 * ROWS
    zero, load_start, load_b = zeros(element, ROWS, LANES), load_tile(element, ROWS, LANES), load_row(element, LANES)
    rounded = narrow(output)
    formula = getattr(formulas, spec.formula) if spec.formula else None
    if formula is None:
        activate = on_rows(register_jitable(lambda row, alpha: rounded(row)), ROWS)
    elif spec.has_alpha:
        activate = on_rows(register_jitable(lambda row, alpha: rounded(formula(row, alpha))), ROWS)
    else:
        activate = on_rows(register_jitable(lambda row, alpha: rounded(formula(row))), ROWS)
    relu_mask = on_rows(register_jitable(lambda row, alpha: formulas.relu_mask(row)), ROWS)

    @register_jitable
    def write_mask(y, columns, mask, mask_row, mask_step):
        bits = stack(BITS)
        store_bits(relu_mask(y, 0), bits, columns)
        for i in range(ROWS):
            for byte in range((columns + 7) >> 3):
                copy_element(mask + byte * mask_step, bits + 8 * i + byte, 1)
            mask += mask_row

    def tiles(block, count):
        a, a_row, a_step, b, b_step, kc, ahead, is_first, is_last = words(block, 9)
        start, start_row, total, total_row, alpha = words(block + 72, 5)
        y, y_row, columns, mask, mask_row, mask_step = words(block + 112, 6)
        for _ in range(count):
            tile = load_start(start, start_row) if is_first else zero()
            column, row = a, b
            for _ in range(kc):
                tile = fma_outer(tile, column, a_row, load_b(row))
                for line in range(LINES):
                    prefetch(row + ahead + 64 * line)
                column += a_step
                row += b_step
            if not is_first:
                tile = add(load_start(total, total_row), tile)
            if is_last:
                result = activate(tile, load_b(alpha))
                if columns == LANES:
                    store_tile(result, y, y_row)
                else:
                    store_tile_partial(result, y, y_row, columns)
                if MASK:
                    write_mask(result, columns, mask, mask_row, mask_step)
            else:
                store_tile(tile, total, total_row)
            a += ROWS * a_row
            start += ROWS * start_row
            total += ROWS * total_row
            y += ROWS * y_row
            mask += ROWS * mask_row

    return tiles


def build(spec: Fused):
    """The loop for `spec` as a Python function, to be compiled with NumPy's signature of a loop."""
    tiling = Tiling(spec)
    sizes = (tiling.rows, tiling.lanes * tiling.least_vectors, tiling.lanes * tiling.vectors, tiling.in_size, tiling.size, tiling.out_size)
    symbols = (pack_name(spec.dtypes[0], spec.vector_bytes), pack_name(tiling.alpha_dtype, spec.vector_bytes))
    symbols += (thin_name(spec.dtypes[0], spec.vector_bytes) if tiling.in_size == tiling.size else 0,)
    kernels = tuple(micro_kernel(spec, *shape) for shape in tiling.shapes)
    description = constant_words((*sizes, *symbols, *tiling.wide, *kernels))
    HAS_BIAS, HAS_ALPHA, PACKED, MASK = spec.has_bias, spec.has_alpha, spec.packed, spec.mask
    ALPHA_IS_ROW = spec.alpha_is_row
    BIAS = 2
    ALPHA = 2 + spec.has_bias
    Y = ALPHA + spec.has_alpha
    INPUTS = Y
    # After the outer steps, one an operand, come the core steps: k of x, k and n of w, and n of those that have it.
    CORE = Y + 1 + spec.mask

    def loop(context, pointers, dimensions, steps, auxiliary):
        outer, k, n = words(dimensions, 3)
        x, w = words(pointers, 2)
        x_row, w_outer = words(steps, 2)
        x_step, w_k, w_n = words(steps + 8 * CORE, 3)
        core = steps + 8 * (CORE + 3)
        y, y_row = read_word(pointers + 8 * Y), read_word(steps + 8 * Y)
        bias = bias_row = bias_step = alpha = alpha_row = alpha_step = mask = mask_row = mask_step = 0
        if HAS_BIAS:
            bias, bias_row, bias_step = read_word(pointers + 8 * BIAS), read_word(steps + 8 * BIAS), read_word(core)
            core += 8
        if HAS_ALPHA:
            alpha, alpha_row = read_word(pointers + 8 * ALPHA), read_word(steps + 8 * ALPHA)
            if ALPHA_IS_ROW:
                alpha_step = read_word(core)
                core += 8
        y_step = read_word(core)
        if MASK:
            mask, mask_row = read_word(pointers + 8 * (Y + 1)), read_word(steps + 8 * (Y + 1))
            mask_step = read_word(core + 8)
        m, slices = outer, 1
        if outer > 1 and (w_outer != 0 or alpha_row != 0):
            m, slices = 1, outer
        status = enter_default_float_status()
        problem = stack(176)
        result = 0
        for i in range(slices):
            write_words(
                problem,
                (
                    *(x + i * x_row, x_row, x_step),
                    *(w + i * w_outer, w_k, w_n),
                    *(bias + i * bias_row, bias_row, bias_step),
                    *(alpha + i * alpha_row, alpha_step),
                    *(y + i * y_row, y_row, y_step),
                    *(mask + i * mask_row, mask_row, mask_step),
                    *(m, k, n, PACKED, description()),
                ),
            )
            result |= _product(problem)
        leave_float_status(status)
        return -result

    return loop
