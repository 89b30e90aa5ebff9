"""The macro-kernel: y = f(x @ w + b) for matrices of any strides, divided among threads and cut into panels.

``product``  divides y into parts for the pool, by rows and by columns
``part``     the loops ``jr``, over panels of columns, and ``pc``, over blocks of `KC` terms; packs each panel of w there
``tiles``    the loop ``ir``, over tiles of rows: in the micro-kernel (`fastrelu.kernels.linear`)

There is no block of w for all threads to share, and x is not packed: x is read where it lies, one element for all lanes at a
time, and a panel of w is packed just before it is used, by the thread that uses it. For the `MC` rows that then go over
it, packing takes 1 % of the time, and threads need not wait for one another.

Compiled once: what depends on the operation and its types stands in its description, and arrives as words.
"""

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.errors import fail
from fastrelu.kernels.memory import (
    atomic_add,
    call_address,
    callback_address,
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
from fastrelu.kernels.pool import pool_address, serial_for
from fastrelu.kernels.scratch import return_scratch, take_scratch
from fastrelu.kernels.thin import MAX_ROWS
from fastrelu.native.errors import NO_MEMORY, WRONG_MASK
from fastrelu.native.pool import LIMIT, PARALLEL_FOR
from fastrelu.operations import KC

_parallel_for = types.ExternalFunction(PARALLEL_FOR, types.void(types.intp, types.intp, types.intp))

# Rows of a part in float32, half of them in float64, and panels that it calculates at a time: a block of x and the sums of a
# group of panels, 400 KB each, share the second-level cache. There are enough rows to make it cheap to pack w, and enough
# panels to make it worth while to copy x.
MC = 384
GROUP = 4
# Rows from which on there are groups.
GROUP_ROWS = 64
# A thread's scratch memory, by what is kept there: a panel of w, rows of x, sums, rows of results, of biases, alpha.
PANEL_BYTES = 256  # of a row of the widest panel that is packed
STRIP_BYTES = 8192  # of a row of the longest strip
X_GAP = 64  # between rows of x, lest they all meet in one set of the first-level cache
_W = 0
_X = _W + KC * PANEL_BYTES
_TOTAL = _X + MC * (4 * KC + X_GAP) + MC // 2 * X_GAP
_Y = _TOTAL + MC * GROUP * PANEL_BYTES
_START = _Y + MC * GROUP * PANEL_BYTES
_ALPHA = _START + MC * PANEL_BYTES
SCRATCH = _ALPHA + STRIP_BYTES
_CHAIN = _X  # a strip's, where no rows of x are packed

# Terms that a strip sums before it goes on to the columns further right.
STRIP_TERMS = 16

# Multiply-adds below which a product stays on one thread, and those that are worth a part. An element of w costs as much as 8
# even if there is a single row.
SERIAL = 500_000
W_COST = 8
GRAIN = 1_000_000
PARTS_PER_THREAD = 8
PARTS_OF_FEW_ROWS = 1  # long strips
# Rows that a part keeps for packing to be worth while, and fewer if threads would have no work.
GOOD_ROWS, LEAST_ROWS = 256, 48
# Rows up to which w is read where it lies.
DIRECT_ROWS = 12


@register_jitable
def _pack(function, source, row_step, column_step, rows, columns, target, target_step):
    task = stack(56)
    write_words(task, (source, row_step, column_step, rows, columns, target, target_step))
    call_address(function, task, 0)


@register_jitable
def _fill(place, nbytes):
    """Zeros."""
    for i in range(0, nbytes, 8):
        write_word(place + i, 0)


@register_jitable
def _copy_out(source, source_row, size, rows, columns, target, target_row, target_step):
    """Results to elements that are no neighbours."""
    for _ in range(rows):
        for j in range(columns):
            copy_element(target + j * target_step, source + j * size, size)
        source += source_row
        target += target_row


@register_jitable
def _width(columns, narrow, wide):
    """The lanes of the next panel where `columns` are left."""
    return wide if columns >= wide else narrow


@register_jitable
def _strip(block, kernel, lanes, size, x, x_row, x_step, w, w_k, k, columns, start, start_row, sums, chain, row):
    """The sums of a few rows over a strip of w that is read where it lies, a few of its rows at a time from left to right.

    The chains of an unfinished block wait in `chain`. Memory delivers long runs faster than the short ones of a panel.
    """
    for pc in range(0, k, KC):
        end = smaller(pc + KC, k)
        for p in range(pc, end, STRIP_TERMS):
            terms = smaller(STRIP_TERMS, end - p)
            is_end = p + terms == end
            for at in range(0, columns * size, lanes * size):
                origin, origin_row = (start + at, start_row) if p == 0 else (chain + at, row)
                total = sums + at if is_end else chain + at
                b = w + p * w_k + at
                write_words(block, (x + p * x_step, x_row, x_step, b, w_k, terms, b + STRIP_TERMS * w_k, 4 * w_k, w_k))
                write_words(block + 72, (p == 0 or p > pc, is_end and pc > 0, 0, origin, origin_row, total, row))
                call_address(kernel, block, 1)


@register_jitable
def _activate(block, kernel, lanes, size, columns, sums, row, alpha, target, target_row, shown):
    """Results from sums: a product without terms, which starts from them."""
    for j in range(0, columns, lanes):
        at = j * size
        write_words(block, (0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, sums + at, row, 0, 0))
        write_words(block + 128, (alpha + at, target + at, target_row, smaller(lanes, shown - j)))
        call_address(kernel, block, 1)


@register_jitable
def _panels(problem, block, scratch, rows, x, table, j, lanes, width, columns, start, start_row, target, target_row, shown):
    """The loops pc, jr and, in the micro-kernel, ir: a group of panels of w, each packed if it has to be, for all rows."""
    x_row, x_step, w, w_k, w_n = words(problem + 8, 5)
    k, _, description = words(problem + 144, 3)
    MR = read_word(description)
    IN, SIZE, pack = words(description + 48, 3)
    packed = read_word(description + 104)
    is_in_place = w_n == SIZE and IN == SIZE and not packed and lanes <= columns
    whole, rest = rows // MR, rows % MR
    # Sums that are not complete stay out of y, whose rows may meet in few sets of the second-level cache.
    row, b_row = width * SIZE, lanes * SIZE
    p = 0
    while True:
        terms = smaller(KC, k - p)
        is_first, is_last = p == 0, p + terms >= k
        a, a_row, a_step = x + p * x_step, x_row, x_step
        if IN != SIZE or width > lanes:
            a, a_row, a_step = scratch + _X, KC * SIZE + X_GAP, SIZE
            _pack(pack, x + p * x_step, x_row, x_step, rows, terms, a, a_row)
        for at in range(0, width, lanes):
            source = w + p * w_k + (j + at) * w_n
            b, b_step = scratch + _W, b_row
            # Beside the first tile the next panel is asked for: its memory arrives while there is something else to do.
            soon = source + lanes * w_n if at + lanes < width or is_last else source + KC * w_k - at * w_n
            soon_four, soon_one = 4 * w_k, w_k
            if packed:
                b = w + ((j + at) * k + p * lanes) * SIZE
                next_panel = lanes * k * SIZE if at + lanes < width else KC * b_step - at * k * SIZE
                soon, soon_four, soon_one = b + next_panel if rows > MR else 0, 4 * b_step, b_step
            elif is_in_place and (rows <= DIRECT_ROWS or w_k == b_step):
                b, b_step = source, w_k
                soon = b + 4 * b_step
            else:
                _pack(pack, source, w_k, w_n, terms, smaller(lanes, columns - at), b, b_step)
                if w_k == IN:
                    soon_four, soon_one = w_n, PANEL_BYTES
            here = at * SIZE
            write_words(block, (a, a_row, a_step, b, b_step, terms, soon, soon_four, soon_one))
            write_words(block + 72, (is_first, not is_first, is_last, start + here, start_row))
            write_words(block + 112, (scratch + _TOTAL + here, row, scratch + _ALPHA + here))
            write_words(block + 136, (target + here, target_row, smaller(lanes, shown - at)))
            if whole > 0:
                call_address(read_word(table + 8 * MR - 8), block, whole)
            if rest > 0:
                done = whole * MR
                write_word(block, a + done * a_row)
                write_words(block + 96, (start + here + done * start_row, start_row, scratch + _TOTAL + here + done * row))
                write_word(block + 136, target + here + done * target_row)
                call_address(read_word(table + 8 * rest - 8), block, 1)
        p += terms
        if is_last:
            break


@register_jitable
def _part(task, index):
    problem, part_rows, part_columns, row_parts = words(task, 4)
    x, x_row, x_step, w, w_k, w_n = words(problem, 6)
    bias, bias_row, bias_step, alpha, alpha_step = words(problem + 48, 5)
    y, y_row, y_step, mask, mask_row, mask_step = words(problem + 88, 6)
    m, k, n, description = words(problem + 136, 4)
    MR, NARROW, NR = words(description, 3)
    IN, SIZE, pack, pack_alpha, thin, kernels, finish, packed = words(description + 48, 8)

    memory = take_scratch(SCRATCH + 64)
    if memory == 0:
        atomic_add(task + 32, 1)
        return
    scratch = (memory + 63) & -64
    i0 = index % row_parts * part_rows
    j, j_end = index // row_parts * part_columns, smaller(n, (index // row_parts + 1) * part_columns)
    rows = smaller(part_rows, m - i0)
    x += i0 * x_row
    y += i0 * y_row
    mask += i0 * mask_row
    bias += i0 * bias_row
    in_place = w_n == SIZE and IN == SIZE and not packed
    is_thin = rows <= MAX_ROWS and thin != 0 and x_step == SIZE and w_k == SIZE and w_n != SIZE and not packed and k > 1
    strip_lanes = read_word(description + 16 + 8 * rows) if in_place and rows <= 3 and rows < MR and k > 0 else 0
    sums, start, row_of_alpha = scratch + _TOTAL, scratch + _START, scratch + _ALPHA
    block = stack(160)
    while j < j_end:
        is_strip = strip_lanes > 0 and j_end - j >= strip_lanes
        lanes = _width(j_end - j, NARROW, NR)
        width = lanes
        table = kernels + (MR * 8 if width > NARROW else 0)
        if lanes == NR and rows >= GROUP_ROWS and k > KC and bias_row == 0:
            width = smaller(larger(1, (j_end - j) // NR), GROUP) * NR
        if is_strip:
            width = smaller((j_end - j) // strip_lanes, STRIP_BYTES // (strip_lanes * SIZE)) * strip_lanes
            table = kernels + (MR * 16 if NR > NARROW else MR * 8)
        columns, row = smaller(width, j_end - j), width * SIZE
        target, target_row, shown = y + j * y_step, y_row, columns
        if y_step != IN or IN != SIZE:
            target, target_row, shown = scratch + _Y, row, width
        # The bias and alpha of these columns, dense and of the type of the sums.
        start_row = 0
        if bias == 0:
            _fill(start, row)
        elif bias_row == 0:
            _pack(pack, bias + j * bias_step, 0, bias_step, 1, columns, start, 0)
        else:
            start_row = row
            _pack(pack, bias + j * bias_step, bias_row, bias_step, rows, columns, start, start_row)
        if alpha != 0:
            _pack(pack_alpha, alpha + j * alpha_step, 0, alpha_step, 1, columns, row_of_alpha, 0)
        if is_strip:
            kernel, place, chain = read_word(table + 8 * rows - 8), w + j * SIZE, scratch + _CHAIN
            operands = (x, x_row, x_step, place, w_k, k, width)
            _strip(block, kernel, strip_lanes, SIZE, *operands, start, start_row, sums, chain, row)
            _activate(block, kernel, strip_lanes, SIZE, width, sums, row, row_of_alpha, target, target_row, shown)
        elif is_thin:
            kernel, thin_task = read_word(table + 8 * rows - 8), stack(80)
            write_words(thin_task, (x, x_row, w + j * w_n, w_n, k, columns, start, start_row, sums, row))
            call_address(thin, thin_task, rows)
            _activate(block, kernel, width, SIZE, width, sums, row, row_of_alpha, target, target_row, shown)
        else:
            places = (start, start_row, target, target_row, shown)
            _panels(problem, block, scratch, rows, x, table, j, lanes, width, columns, *places)
        if finish != 0:
            # In place, unless the results are of another type or no neighbours.
            results, results_row = y + j * y_step, y_row
            if y_step != IN:
                results, results_row = target, target_row
            finish_task = stack(80)
            write_words(finish_task, (target, target_row, results, results_row, rows, columns, row_of_alpha))
            write_words(finish_task + 56, (mask + (j >> 3) * mask_step, mask_row, mask_step))
            call_address(finish, finish_task, 0)
        if y_step != IN:
            _copy_out(target, target_row, IN, rows, columns, y + j * y_step, y_row, y_step)
        j += columns
    return_scratch(memory)


_part_address = callback_address(_part, 2)


@register_jitable
def _ceil(a, b):
    return (a + b - 1) // b


@register_jitable
def _multiply(problem):
    """One product, divided among threads; returns 0, or 1 if there is no memory.

    The problem is 21 words: x and its row and column steps; w and its row and column steps; b and its row and column steps, b
    being 0 if there is none; alpha and its column step; y and its steps; the bit mask and its steps; m, k, n; the
    description of the operation.
    """
    m, k, n, description = words(problem + 136, 4)
    MR, _, NR = words(description, 3)
    most_rows = 4 * MC // read_word(description + 56)
    threads = read_word(pool_address() + LIMIT)
    work = (m + W_COST) * n * larger(k, 1)
    row_parts, column_parts = _ceil(m, most_rows), 1
    if work >= SERIAL and threads > 1:
        parts_per_thread = PARTS_PER_THREAD if m > 3 else PARTS_OF_FEW_ROWS
        wanted = larger(threads, smaller(parts_per_thread * threads, work // GRAIN))
        column_parts = smaller(_ceil(n, NR), _ceil(wanted, row_parts))
        if column_parts * row_parts < wanted and m > GOOD_ROWS:
            row_parts = larger(row_parts, smaller(_ceil(wanted, column_parts), m // GOOD_ROWS))
        if column_parts * row_parts < threads and m > LEAST_ROWS:
            row_parts = larger(row_parts, smaller(_ceil(threads, column_parts), m // LEAST_ROWS))
    part_rows = _ceil(_ceil(m, row_parts), MR) * MR
    part_columns = _ceil(_ceil(n, column_parts), NR) * NR
    row_parts = _ceil(m, part_rows)
    parts = row_parts * _ceil(n, part_columns)
    task = stack(40)
    write_words(task, (problem, part_rows, part_columns, row_parts, 0))
    if parts == 1:
        call_address(_part_address(), task, 0)
    else:
        _parallel_for(_part_address(), task, parts)
    if read_word(task + 32) == 0:
        return 0
    # Some thread got no scratch memory. This one may: every part can be done again.
    write_word(task + 32, 0)
    serial_for(_part_address(), task, parts)
    return read_word(task + 32)


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
    has_bias, has_alpha, alpha_is_row, has_mask = words(description + 112, 4)
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
    m, slices = outer, 1
    if outer > 1 and (w_outer != 0 or alpha_outer != 0):
        m, slices = 1, outer
    thin, packed = read_word(description + 80), read_word(description + 104)
    is_narrow = n <= MAX_ROWS and m > n and w_outer == 0 and not packed and not has_mask and alpha_step == 0
    if is_narrow and thin != 0 and k > 1 and x_step == w_k and x_step == read_word(description + 56):
        # With a few columns y is calculated as its transpose, which has a few rows: the same sums of the same products.
        x, w, x_row, w_n, m, n = w, x, w_n, x_row, n, m
        bias_row, bias_step, y_row, y_step = bias_step, bias_row, y_step, y_row
    status = enter_default_float_status()
    problem = stack(168)
    failed = 0
    while slices > 0:
        write_words(problem, (x, x_row, x_step, w, w_k, w_n))
        write_words(problem + 48, (bias, bias_row, bias_step, alpha, alpha_step))
        write_words(problem + 88, (y, y_row, y_step, mask, mask_row, mask_step))
        write_words(problem + 136, (m, k, n, description))
        failed |= _multiply(problem)
        x += x_row
        w += w_outer
        bias += bias_row
        alpha += alpha_outer
        y += y_row
        mask += mask_row
        slices -= 1
    leave_float_status(status)
    if failed != 0:
        return fail(NO_MEMORY)
    return 0


@register_jitable
def _pack_panel(task, index):
    w, w_k, w_n, k, n, target, narrow, wide, size, pack = words(task, 10)
    j, end = index * wide, smaller(n, (index + 1) * wide)
    while j < end:
        width = _width(end - j, narrow, wide)
        columns = smaller(width, end - j)
        _pack(pack, w + j * w_n, w_k, w_n, k, columns, target + j * k * size, width * size)
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
    _parallel_for(_pack_panel_address(), task, _ceil(n, wide))
