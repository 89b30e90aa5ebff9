"""y = f(x @ w + b) for matrices of any strides: the loop that NumPy calls, and the division among threads.

``product``    NumPy's pointers and steps in; one product for all rows of x, or one for each w of a batch
``_multiply``  divides y into parts for the pool, by rows and by columns; a part is `fastrelu.kernels.panels`

Compiled once: what depends on the operation and its types stands in its description, and arrives as words.
"""

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.errors import fail
from fastrelu.kernels.memory import (
    atomic_add,
    call_address,
    callback_address,
    ceil,
    copy_element,
    enter_default_float_status,
    larger,
    leave_float_status,
    read_word,
    smaller,
    stack,
    words,
    write_word,
    write_words,
)
from fastrelu.kernels.panels import COPY_GROUP, MC, copy_out, rows_of_part
from fastrelu.kernels.pool import in_parallel, serial_for, thread_limit
from fastrelu.kernels.problem import BIAS, DZ, OPTIONS, PROBLEM, SIZES, SMALL, THIN, TILING, TRANSPOSED_AS_X, TYPE, X, Y
from fastrelu.kernels.scratch import free, malloc
from fastrelu.kernels.small import MAX_COLUMNS, MAX_WORK
from fastrelu.kernels.thin import MAX_ROWS
from fastrelu.native.errors import NO_MEMORY, WRONG_MASK
from fastrelu.native.matrix import PART
from fastrelu.operations import KC

# Multiply-adds below which a product stays on one thread, and those that are worth a part. An element of w costs as much as 8
# even if there is a single row.
SERIAL = 500_000
W_COST = 8
GRAIN = 1_000_000
PARTS_PER_THREAD = 8
PARTS_OF_FEW_ROWS = 1  # long strips
# Rows that a part keeps for packing to be worth while, and fewer if threads would have no work.
GOOD_ROWS, LEAST_ROWS = 256, 24

_ALPHAS = 8 * MAX_COLUMNS

calculate = types.ExternalFunction(PART, types.int32(types.intp, types.intp))
"""`fastrelu.kernels.panels.part`."""


@register_jitable
def divide(problem, task):
    """Divide a product into parts for the threads: writes the task that `part` takes and returns how many parts it has."""
    m, k, n, description = words(problem + SIZES, 4)
    MR, NARROW, NR = words(description + TILING, 3)
    # Parts whose columns of dz are summed must not share a vector of sums.
    tile = NARROW if read_word(problem + DZ + 8) == TRANSPOSED_AS_X else MR
    threads = thread_limit()
    work = (m + W_COST) * n * larger(k, 1)
    most_rows = rows_of_part(problem)
    row_parts, column_parts, unit = larger(ceil(m, most_rows), 1), 1, NR
    if work >= SERIAL and threads > 1:
        parts_per_thread = PARTS_PER_THREAD if m > 3 else PARTS_OF_FEW_ROWS
        wanted = larger(threads, smaller(parts_per_thread * threads, work // GRAIN))
        unit = NR * COPY_GROUP if most_rows < MC and row_parts * ceil(n, NR * COPY_GROUP) >= 2 * threads else NR
        panels = ceil(n, unit)
        if panels < 4 * threads and panels % threads != 0 and m >= threads * LEAST_ROWS:
            row_parts, panels = ceil(row_parts, threads) * threads, 1  # only rows can be shared out evenly
        column_parts = smaller(panels, ceil(wanted, row_parts))
        if column_parts * row_parts < wanted and m > GOOD_ROWS:
            row_parts = larger(row_parts, smaller(ceil(wanted, column_parts), m // GOOD_ROWS))
        if column_parts * row_parts < threads and m > LEAST_ROWS:
            row_parts = larger(row_parts, smaller(ceil(threads, column_parts), m // LEAST_ROWS))
        if column_parts == 1 and m >= threads * LEAST_ROWS:
            row_parts = ceil(row_parts, threads) * threads
    part_rows = larger(ceil(ceil(m, row_parts), tile) * tile, tile)
    part_columns = ceil(ceil(n, column_parts), unit) * unit
    row_parts = larger(ceil(m, part_rows), 1)
    write_words(task, (problem, part_rows, part_columns, row_parts, 0))
    return row_parts * ceil(n, part_columns)


@register_jitable
def _part(task, index):
    """Calculate a part, and count those that there was no memory for."""
    if not calculate(task, index):
        atomic_add(task + 32, 1)


_part_address = callback_address(_part, 2)


@register_jitable
def _multiply(problem):
    """One product, divided among threads; returns 0, or 1 if there is no memory."""
    task = stack(40)
    parts = divide(problem, task)
    if parts == 1:
        call_address(_part_address(), task, 0)
    else:
        in_parallel(_part_address(), task, parts)
    if read_word(task + 32) == 0:
        return 0
    # Some thread got no scratch memory. This one may: every part can be done again.
    write_word(task + 32, 0)
    serial_for(_part_address(), task, parts)
    return read_word(task + 32)


@register_jitable
def _spread(alpha, step, n, size, place):
    """Write a dense row of alphas to `place`, and return it."""
    for j in range(n):
        copy_element(place + j * size, alpha + j * step, size)
    return place


def product(description, pointers, dimensions, steps):
    """The loop of a generalized ufunc ``(k),(k,n),(n),alpha->(n),(q)``: y = f(x @ w + b), and the bit mask of y > 0.

    Parameters
    ----------
    description : intp
        Address of the words that `fastrelu.native.matrix.describe` lists.
    pointers, dimensions, steps : intp
        Addresses of what NumPy passes to a loop. b, alpha and the mask are operands only where the description says so.

    Returns
    -------
    int32
        0, or -1 with an exception set.
    """
    has_bias, has_alpha, alpha_is_row, has_mask = words(description + OPTIONS + 8, 4)
    outer, k, n = words(dimensions, 3)
    if has_mask and read_word(dimensions + 24) != (n + 7) >> 3:
        return fail(WRONG_MASK)
    if outer == 0 or n == 0:
        return 0
    # After the outer steps, one an operand, come the core steps: k of x, k and n of w, and n of those that have it.
    x, w = words(pointers, 2)
    x_row, w_outer = words(steps, 2)
    core = steps + 8 * (3 + has_bias + has_alpha + has_mask)
    x_step, w_k, w_n = words(core, 3)
    core += 24
    operand = 16
    bias = bias_row = bias_step = alpha = alpha_outer = alpha_step = mask = mask_row = mask_step = 0
    if has_bias:
        bias, bias_row, bias_step = read_word(pointers + operand), read_word(steps + operand), read_word(core)
        operand += 8
        core += 8
    if has_alpha:
        alpha, alpha_outer = read_word(pointers + operand), read_word(steps + operand)
        operand += 8
        if alpha_is_row:
            alpha_step = read_word(core)
            core += 8
    y, y_row, y_step = read_word(pointers + operand), read_word(steps + operand), read_word(core)
    if has_mask:
        mask, mask_row, mask_step = read_word(pointers + operand + 8), read_word(steps + operand + 8), read_word(core + 8)
    # NumPy lets an output be the very array that is an input, which the rest of the product still needs.
    size, results = read_word(description + TYPE), 0
    columns, place, place_row, place_step = n, y, y_row, y_step
    if y == x or y == w:  # noqa: SIM109  # a tuple of addresses would be compiled as one
        results, y_row, y_step = malloc(outer * n * size), n * size, size
        if results == 0:
            return fail(NO_MEMORY)
        y = results
    m, slices = outer, 1
    if outer > 1 and (w_outer != 0 or alpha_outer != 0):
        m, slices = 1, outer
    thin, packed = read_word(description + THIN), read_word(description + OPTIONS)
    is_narrow = n <= MAX_ROWS and m > n and w_outer == 0 and not packed and not has_mask and alpha_step == 0
    if is_narrow and thin != 0 and k > 1 and x_step == w_k and x_step == read_word(description + TYPE + 8):
        # With a few columns y is calculated as its transpose, which has a few rows: the same sums of the same products.
        x, w, x_row, w_n, m, n = w, x, w_n, x_row, n, m
        bias_row, bias_step, y_row, y_step = bias_step, bias_row, y_step, y_row
    small = read_word(description + SMALL)
    is_small = small != 0 and m * n * k <= MAX_WORK and k <= KC and n <= MAX_COLUMNS and w_n == size and y_step == size
    is_small = is_small and k > 0 and (bias == 0 or bias_step == size)
    status = enter_default_float_status()
    problem, alphas = stack(PROBLEM), stack(_ALPHAS)
    write_words(problem + DZ, (0, 0, 0, 0, 0, 0, packed))
    failed = 0
    while slices > 0:
        if is_small:
            row = w if alpha == 0 else _spread(alpha, alpha_step, n, size, alphas)
            write_words(problem, (x, x_row, x_step, w, w_k, k, n, bias, bias_row, row, y, y_row))
            call_address(small, problem, m)
        else:
            write_words(problem + X, (x, x_row, x_step, w, w_k, w_n))
            write_words(problem + BIAS, (bias, bias_row, bias_step, alpha, alpha_step))
            write_words(problem + Y, (y, y_row, y_step, mask, mask_row, mask_step))
            write_words(problem + SIZES, (m, k, n, description))
            failed |= _multiply(problem)
        x += x_row
        w += w_outer
        bias += bias_row
        alpha += alpha_outer
        y += y_row
        mask += mask_row
        slices -= 1
    leave_float_status(status)
    if results != 0:
        if failed == 0:
            copy_out(results, columns * size, size, outer, columns, place, place_row, place_step)
        free(results)
    if failed != 0:
        return fail(NO_MEMORY)
    return 0
