"""One part of a product, on one thread: the loops over panels of w, blocks of terms and tiles of rows.

``part``      the loop ``jr``, over the panels of the part; chooses the way to their sums
``_panel``    the loop ``pc``, over blocks of `KC` terms; packs each block of a panel of w just before its use. The loop ``ir``,
              over tiles of rows, is in the micro-kernel (`fastrelu.kernels.linear`)
``_strip``    a few rows of x, and a w that is read where it lies
``_activate`` results from sums that were made elsewhere

There is no block of w for all threads to share. For the `MC` rows that go over a panel, packing it takes 1 % of the time, and
threads need not wait for one another.
"""

from numba.extending import register_jitable

from fastrelu.kernels.memory import (
    atomic_add,
    call_address,
    copy_element,
    read_word,
    smaller,
    stack,
    words,
    write_word,
    write_words,
)
from fastrelu.kernels.packing import pack_block, panel_width
from fastrelu.kernels.scratch import return_scratch, take_scratch
from fastrelu.kernels.thin import MAX_ROWS
from fastrelu.operations import KC

# Rows of a part: enough to make it cheap to pack w, few enough for their sums in a panel to stay in the second-level cache.
# Groups of panels that share a copy of the rows of x were slower: 85 to 90 % of the limit for large products, not 92 to 96 %.
MC = 768
# A thread's scratch memory, by what is kept there: a panel of w, rows of x, sums, rows of results, of biases, alpha.
PANEL_BYTES = 256  # of a row of the widest panel that is packed
STRIP_BYTES = 8192  # of a row of the longest strip
X_STEP = 4 * KC + 64  # between rows of x, lest they all meet in one set of the first-level cache
_W = 0
_X = _W + KC * PANEL_BYTES
_TOTAL = _X + MC * X_STEP
_Y = _TOTAL + MC * PANEL_BYTES
_START = _Y + MC * PANEL_BYTES
_ALPHA = _START + MC * PANEL_BYTES
SCRATCH = _ALPHA + STRIP_BYTES
_CHAIN = _X  # a strip's, where no rows of x are packed

# Terms that a strip sums before it goes on to the columns further right.
STRIP_TERMS = 16

# Rows up to which w is read where it lies.
DIRECT_ROWS = 128


@register_jitable
def _fill(place, nbytes):
    """Zeros."""
    for i in range(0, nbytes, 8):
        write_word(place + i, 0)


@register_jitable
def copy_out(source, source_row, size, rows, columns, target, target_row, target_step):
    """Results to elements that are no neighbours."""
    for _ in range(rows):
        for j in range(columns):
            copy_element(target + j * target_step, source + j * size, size)
        source += source_row
        target += target_row


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
def _panel(problem, block, scratch, rows, x, table, j, width, columns, start, start_row, target, target_row, shown):
    """The loops pc and, in the micro-kernel, ir: one panel of w, packed if it has to be, for all rows of the part."""
    x_row, x_step, w, w_k, w_n = words(problem + 8, 5)
    k, _, description = words(problem + 144, 3)
    MR = read_word(description)
    IN, SIZE, pack = words(description + 48, 3)
    packed = read_word(description + 104)
    is_direct = w_n == SIZE and IN == SIZE and columns == width and (rows <= DIRECT_ROWS or w_k == width * SIZE)
    whole, rest = rows // MR, rows % MR
    # Sums that are not complete stay out of y, whose rows may meet in few sets of the second-level cache.
    total, row = scratch + _TOTAL, width * SIZE
    p = 0
    while True:
        terms = smaller(KC, k - p)
        is_first, is_last = p == 0, p + terms >= k
        b, b_step = scratch + _W, row
        source = w + p * w_k + j * w_n
        # Beside the first tile the next panel is asked for: its memory arrives while there is something else to do.
        soon = w + (j + width) * w_n if is_last else source + KC * w_k
        soon_four, soon_one = 4 * w_k, w_k
        if packed:
            b = w + (j * k + p * width) * SIZE
            soon, soon_four, soon_one = b + KC * b_step if rows > MR else 0, 4 * b_step, b_step
        elif is_direct:
            b, b_step = source, w_k
            soon = b + 4 * b_step
        else:
            pack_block(pack, source, w_k, w_n, terms, columns, b, b_step)
            if w_k == IN:
                soon_four, soon_one = w_n, PANEL_BYTES
        a, a_row, a_step = x + p * x_step, x_row, x_step
        if IN != SIZE:
            a, a_row, a_step = scratch + _X, X_STEP, SIZE
            pack_block(pack, x + p * x_step, x_row, x_step, rows, terms, a, a_row)
        write_words(block, (a, a_row, a_step, b, b_step, terms, soon, soon_four, soon_one))
        write_words(block + 72, (is_first, not is_first, is_last, start, start_row, total, row))
        write_words(block + 128, (scratch + _ALPHA, target, target_row, shown))
        if whole > 0:
            call_address(read_word(table + 8 * MR - 8), block, whole)
        if rest > 0:
            done = whole * MR
            write_word(block, a + done * a_row)
            write_words(block + 96, (start + done * start_row, start_row, total + done * row))
            write_word(block + 136, target + done * target_row)
            call_address(read_word(table + 8 * rest - 8), block, 1)
        p += terms
        if is_last:
            break


@register_jitable
def part(task, index):
    """Calculate the part `index` of the product that the task describes (`fastrelu.kernels.matrix`)."""
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
    is_thin = (
        rows <= smaller(MAX_ROWS, MR) and thin != 0 and x_step == SIZE and w_k == SIZE and w_n != SIZE and not packed and k > 1
    )
    strip_lanes = read_word(description + 16 + 8 * rows) if in_place and rows <= 3 and rows < MR and k > 0 else 0
    sums, start, row_of_alpha = scratch + _TOTAL, scratch + _START, scratch + _ALPHA
    block = stack(160)
    while j < j_end:
        is_strip = strip_lanes > 0 and j_end - j >= strip_lanes
        width = panel_width(j_end - j, NARROW, NR)
        table = kernels + (MR * 8 if width > NARROW else 0)
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
            pack_block(pack, bias + j * bias_step, 0, bias_step, 1, columns, start, 0)
        else:
            start_row = row
            pack_block(pack, bias + j * bias_step, bias_row, bias_step, rows, columns, start, start_row)
        if alpha != 0:
            pack_block(pack_alpha, alpha + j * alpha_step, 0, alpha_step, 1, columns, row_of_alpha, 0)
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
            _panel(problem, block, scratch, rows, x, table, j, width, columns, *places)
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
            copy_out(target, target_row, IN, rows, columns, y + j * y_step, y_row, y_step)
        j += columns
    return_scratch(memory)
