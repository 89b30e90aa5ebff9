"""One part of a product, on one thread: the loops over panels of w, blocks of terms and tiles of rows.

``part``      the loop over groups of panels; chooses the way to their sums
``_group``    the loops ``pc``, over blocks of `KC` terms, and ``jr``, over the panels of a group
``_block``    packs a block of a panel just before its use, or forms it. The loop ``ir``, over tiles of rows, is in the
              micro-kernel (`fastrelu.kernels.linear`)
``_strip``    a few rows of x, and a w that is read where it lies
``_activate`` results from sums that were made elsewhere
``_deliver``  results that the micro-kernel could not store where they belong

There is no block of w for all threads to share. For the `MC` rows that go over a panel, packing it takes 1 % of the time, and
threads need not wait for one another.
"""

from numba.extending import register_jitable

from fastrelu.kernels.gradient import GRADIENT_SCRATCH, form_columns, form_panel, form_rows
from fastrelu.kernels.linear import STRIDE
from fastrelu.kernels.memory import (
    call_address,
    ceil,
    copy_element,
    larger,
    read_word,
    smaller,
    stack,
    words,
    write_word,
    write_words,
)
from fastrelu.kernels.packing import pack_block, panel_width
from fastrelu.kernels.problem import (
    AS_W,
    AS_X,
    BIAS,
    DELIVER,
    DESCRIPTION,
    DZ,
    FINISH,
    HELD,
    KEEPS_SUMS,
    PACKED,
    SIZES,
    TILING,
    TRANSPOSED_AS_W,
    TRANSPOSED_AS_X,
    TYPE,
    W,
    X,
    Y,
)
from fastrelu.kernels.scratch import PAGE, return_scratch, take_scratch
from fastrelu.kernels.thin import MAX_ROWS
from fastrelu.operations import KC

# Rows of a part: enough to make it cheap to pack w, few enough for their sums in a panel to stay in the second-level cache.
MC = 768
# Where x is transposed or has to be copied, the bytes of a column of it, and the panels that share a block: fewer rows, for the
# same reason. If dz takes the place of x, even fewer: dy and y of the next part are asked for meanwhile.
COPY_BYTES, COPY_GROUP = 1536, 4
FORMED_BYTES = 768
# Columns of x that stand a multiple of this apart meet in so few sets of the second-level cache that it cannot hold a block of
# them: 0.61 of the limit instead of 0.93 for a transposed x with rows of 8 KB.
ALIASING = 4096
# A thread's scratch memory, by what is kept there: a panel of w, a block of x, sums, rows of biases, alpha, a block of dz.
PANEL_BYTES = 256  # of a row of the widest panel that is packed
STRIP_BYTES = 8192  # of a row of the longest strip
GAP = 64  # after rows of x, lest they all meet in one set of the first-level cache
X_COLUMN_STEP = COPY_BYTES + GAP
_W = 0
_X = _W + KC * PANEL_BYTES
_TOTAL = _X + COPY_BYTES // 4 * (4 * KC + GAP)
_START = _TOTAL + COPY_BYTES // 4 * COPY_GROUP * PANEL_BYTES
_ALPHA = _START + MC * PANEL_BYTES
_GRADIENT = _ALPHA + STRIP_BYTES
# As much as a large page has room for: convolutions need more than products.
SCRATCH = PAGE - 64
assert SCRATCH >= _GRADIENT + GRADIENT_SCRATCH
_CHAIN = _X  # a strip's, where no rows of x are packed

# Bytes of a list of what will be needed next: of w, dy, y and x up to 32 pieces, of three words, of each row.
SOON = 3072

# Terms that a strip sums before it goes on to the columns further right.
STRIP_TERMS = 16

# Rows up to which w is read where it lies.
DIRECT_ROWS = 128


@register_jitable
def _way_to_x(problem):
    """Whether blocks of x are shared by several panels, being transposed or copied; whether they are copied: to be formed or
    widened, or because they are too slow to read where they lie.
    """
    x_row, x_step = words(problem + X + 8, 2)
    m, _, _, description, _, place = words(problem + SIZES, 6)
    MR = read_word(description)
    IN, SIZE = words(description + TYPE, 2)
    is_transposed = x_row == IN and x_step != IN and x_step != 0 and m > MR
    copies = IN != SIZE or place >= AS_X or (is_transposed and x_step & (ALIASING - 1) == 0)
    return is_transposed or copies, copies


@register_jitable
def rows_of_part(problem):
    """The most rows that a part may have."""
    SIZE = read_word(read_word(problem + DESCRIPTION) + TYPE + 8)
    place = read_word(problem + DZ + 8)
    if place == AS_X:
        return FORMED_BYTES // SIZE
    if place == TRANSPOSED_AS_X:
        return DIRECT_ROWS  # w need not be packed
    return COPY_BYTES // SIZE if _way_to_x(problem)[0] else MC


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
    soon = stack(48)
    for pc in range(0, k, KC):
        end = smaller(pc + KC, k)
        for p in range(pc, end, STRIP_TERMS):
            terms = smaller(STRIP_TERMS, end - p)
            is_end = p + terms == end
            for at in range(0, columns * size, lanes * size):
                origin, origin_row = (start + at, start_row) if p == 0 else (chain + at, row)
                total = sums + at if is_end else chain + at
                b = w + p * w_k + at
                write_words(soon, (b + STRIP_TERMS * w_k, w_k, STRIP_TERMS, 0, 0, 0))
                write_words(block, (x + p * x_step, x_row, x_step, b, w_k, terms, soon, 4))
                write_words(block + 64, (p == 0 or p > pc, is_end and pc > 0, 0, origin, origin_row, total, row))
                call_address(kernel, block, 1)


@register_jitable
def _activate(block, kernel, lanes, size, columns, sums, row, alpha, target, target_row, shown):
    """Results from sums: a product without terms, which starts from them."""
    nothing = stack(24)
    write_words(nothing, (0, 0, 0))
    for j in range(0, columns, lanes):
        at = j * size
        write_words(block, (0, 0, 0, 0, 0, 0, nothing, 0, 1, 0, 1, sums + at, row, 0, 0))
        write_words(block + 120, (alpha + at, target + at, target_row, smaller(lanes, shown - j)))
        call_address(kernel, block, 1)


@register_jitable
def _prepare(problem, scratch, i0, rows, j, width, columns):
    """The bias and alpha of these columns, dense and of the type of the sums; returns the bias's address and row step."""
    bias, bias_row, bias_step, alpha, alpha_step = words(problem + BIAS, 5)
    description = read_word(problem + DESCRIPTION)
    SIZE, pack, pack_alpha = words(description + TYPE + 8, 3)
    start, start_row = scratch + _START, 0
    if bias == 0:
        _fill(start, width * SIZE)
    elif bias_row == 0:
        pack_block(pack, bias + j * bias_step, 0, bias_step, 1, columns, start, 0)
    else:
        start_row = width * SIZE
        pack_block(pack, bias + i0 * bias_row + j * bias_step, bias_row, bias_step, rows, columns, start, start_row)
    if alpha != 0:
        pack_block(pack_alpha, alpha + j * alpha_step, 0, alpha_step, 1, columns, scratch + _ALPHA, 0)
    return start, start_row


@register_jitable
def _place_of_results(problem, i0, j, sums, width, columns):
    """Where the micro-kernel stores: where the results belong, or in place of the sums; with the row step and the columns."""
    y, y_row, y_step = words(problem + Y, 3)
    held, keeps_sums = read_word(problem + HELD), read_word(problem + KEEPS_SUMS)
    description = read_word(problem + DESCRIPTION)
    IN, SIZE = words(description + TYPE, 2)
    if keeps_sums or (y_step == IN and IN == SIZE and held == 0):
        return y + i0 * y_row + j * y_step, y_row, columns
    return sums, width * SIZE, width


@register_jitable
def _deliver(problem, scratch, i0, rows, j, columns, source, source_row):
    """Bring results from where the micro-kernel stored them to where they belong, if these are two places."""
    y, y_row, y_step, mask, mask_row, mask_step = words(problem + Y, 6)
    held, held_row, held_step, keeps_sums = words(problem + HELD, 4)
    description = read_word(problem + DESCRIPTION)
    IN, SIZE = words(description + TYPE, 2)
    finish, deliver = read_word(description + FINISH), read_word(description + DELIVER)
    if keeps_sums:
        return
    y += i0 * y_row + j * y_step
    if deliver != 0:
        if y_step != IN or IN != SIZE or held != 0:
            task = stack(88)
            held += i0 * held_row + j * held_step if held != 0 else 0
            write_words(task, (source, source_row, SIZE, held, held_row, held_step, y, y_row, y_step, rows, columns))
            call_address(deliver, task, 0)
        return
    if finish != 0:
        # In place, unless the results are of another type or no neighbours.
        results, results_row = y, y_row
        if y_step != IN:
            results, results_row = source, source_row
        finish_task = stack(80)
        write_words(finish_task, (source, source_row, results, results_row, rows, columns, scratch + _ALPHA))
        write_words(finish_task + 56, (mask + i0 * mask_row + (j >> 3) * mask_step, mask_row, mask_step))
        call_address(finish, finish_task, 0)
    if y_step != IN:
        copy_out(source, source_row, IN, rows, columns, y, y_row, y_step)


@register_jitable
def _ask_rows(soon, address, row_step, rows, nbytes, piece):
    """Add rows of `nbytes` bytes to a list of what will be needed, in pieces; returns its new end."""
    for at in range(0, nbytes, piece):
        write_words(soon, (address + at, row_step, rows))
        soon += 24
    return soon


@register_jitable
def _ask_matrix(soon, address, row_step, step, size, rows, columns, piece):
    """The same with a block of a matrix, unless its elements are no neighbours."""
    if step == size:
        return _ask_rows(soon, address, row_step, rows, columns * size, piece)
    if row_step == size:
        return _ask_rows(soon, address, step, columns, rows * size, piece)
    return soon


@register_jitable
def _next_blocks(problem, soon, p, j, x_i, x_rows, x_p, piece):
    """List what the next block needs, from term `p` and column `j` on, and some rows of x that will be needed after it, in
    pieces of `piece` bytes; returns how many these are.

    Memory delivers it beside the arithmetic of this block. Without that, forming dz for 384 rows took 17 % of the time of a
    product of 2048 rows and columns.
    """
    x, x_row, x_step, w, w_k, w_n = words(problem + X, 6)
    k, n, description, dz, place = words(problem + SIZES + 8, 5)
    IN, SIZE = words(description + TYPE, 2)
    first = soon
    y = y_row = y_step = 0
    if dz != 0 and not read_word(dz + 72):  # bits are few
        y, y_row, y_step = words(dz + 48, 3)
    if p < k and j < n:
        terms, columns = smaller(KC, k - p), smaller(piece // SIZE, n - j)
        if read_word(problem + PACKED):
            soon = _ask_rows(soon, w + j * k * SIZE + p * piece, piece, terms, piece, piece)
        else:
            soon = _ask_matrix(soon, w + p * w_k + j * w_n, w_k, w_n, IN, terms, columns, piece)
            if y != 0 and place == TRANSPOSED_AS_W:
                soon = _ask_matrix(soon, y + j * y_row + p * y_step, y_step, y_row, IN, terms, columns, piece)
            elif y != 0 and place == AS_W:
                soon = _ask_matrix(soon, y + p * y_row + j * y_step, y_row, y_step, IN, terms, columns, piece)
    if x_rows > 0:
        terms = smaller(KC, k - x_p)
        soon = _ask_matrix(soon, x + x_i * x_row + x_p * x_step, x_row, x_step, IN, x_rows, terms, piece)
        if place == TRANSPOSED_AS_X:
            y_row, y_step = y_step, y_row
        if y != 0 and place >= AS_X:
            soon = _ask_matrix(soon, y + x_i * y_row + x_p * y_step, y_row, y_step, IN, x_rows, terms, piece)
    write_words(soon, (0, 0, 0))
    asked = 0
    while first < soon:
        asked += read_word(first + 16)
        first += 24
    return asked


@register_jitable
def _block(problem, block, scratch, i0, rows, a, a_row, a_step, p, j, width, columns, total, coming):
    """One block of terms of one panel, for all rows of the part. The next two or three are asked for meanwhile."""
    w, w_k, w_n = words(problem + W, 3)
    k, _, description, dz, place = words(problem + SIZES + 8, 5)
    is_formed = dz != 0 and place < AS_X
    MR, NARROW = words(description, 2)
    IN, SIZE, pack, _, _, kernels = words(description + TYPE, 6)
    is_direct = (
        not is_formed and w_n == SIZE and IN == SIZE and columns == width and (rows <= DIRECT_ROWS or w_k == width * SIZE)
    )
    table = kernels + (MR * 8 if width > NARROW else 0)
    row = width * SIZE
    terms = smaller(KC, k - p)
    is_first, is_last = p == 0, p + terms >= k
    start, start_row = _prepare(problem, scratch, i0, rows, j, width, columns) if is_first or is_last else (0, 0)
    b, b_step = scratch + _W, row
    source = w + p * w_k + j * w_n
    if is_formed:
        form_panel(dz, scratch + _GRADIENT, p, j, terms, columns, place == TRANSPOSED_AS_W, i0 == 0, b, b_step)
    elif read_word(problem + PACKED):
        b = w + (j * k + p * width) * SIZE
    elif is_direct:
        b, b_step = source, w_k
    else:
        pack_block(pack, source, w_k, w_n, terms, columns, b, b_step)
    # Sums that are not complete stay out of y, whose rows may meet in few sets of the second-level cache.
    target, target_row, shown = _place_of_results(problem, i0, j, total, width, columns)
    soon = stack(SOON)
    if is_direct:
        write_words(soon, (b + STRIDE * b_step, b_step, terms, 0, 0, 0))
        rate = STRIDE
    else:
        asked = _next_blocks(problem, soon, *coming, row)
        rate = ceil(asked * STRIDE, larger(terms * ceil(rows, MR), STRIDE))
    write_words(block, (a, a_row, a_step, b, b_step, terms, soon, rate))
    write_words(block + 64, (is_first, not is_first, is_last, start, start_row, total, row))
    write_words(block + 120, (scratch + _ALPHA, target, target_row, shown))
    whole, rest = rows // MR, rows % MR
    if whole > 0:
        call_address(read_word(table + 8 * MR - 8), block, whole)
    if rest > 0:
        done = whole * MR
        write_word(block, a + done * a_row)
        write_words(block + 88, (start + done * start_row, start_row, total + done * row))
        write_word(block + 128, target + done * target_row)
        call_address(read_word(table + 8 * rest - 8), block, 1)
    if is_last:
        _deliver(problem, scratch, i0, rows, j, columns, target, target_row)


@register_jitable
def _group(problem, block, scratch, i0, rows, j0, j_end, part_start, part_end):
    """All sums of some panels of the part."""
    x, x_row, x_step = words(problem + X, 3)
    m, k, _, description, dz, place = words(problem + SIZES, 6)
    _, NARROW, NR = words(description, 3)
    IN, SIZE, pack = words(description + TYPE, 3)
    shares, copies = _way_to_x(problem)
    p = 0
    while True:
        a, a_row, a_step = x + i0 * x_row + p * x_step, x_row, x_step
        terms = smaller(KC, k - p)
        if copies and k > 0:
            a, a_row, a_step = scratch + _X, KC * SIZE + GAP, SIZE
            source = x + i0 * x_row + p * x_step
            if k <= KC and j0 > part_start:
                pass  # the same block as for the group before
            elif dz != 0 and place == AS_X:
                form_rows(dz, scratch + _GRADIENT, i0, p, rows, terms, a, a_row)
            elif dz != 0 and place == TRANSPOSED_AS_X:
                form_columns(dz, scratch + _GRADIENT, p, i0, terms, rows, j0 == 0, a, X_COLUMN_STEP)
            elif x_row == IN and rows > 1:
                pack_block(pack, source, x_step, x_row, terms, rows, a, X_COLUMN_STEP)
            else:
                pack_block(pack, source, x_row, x_step, rows, terms, a, a_row)
            if place == TRANSPOSED_AS_X or (x_row == IN and rows > 1 and place != AS_X):
                a_row, a_step = SIZE, X_COLUMN_STEP
        # The block of x that comes after this one, of which each panel asks for its share.
        x_i, x_p, x_rows = i0, p + KC, rows
        if x_p >= k:
            x_p = 0
            if j_end >= part_end:
                x_i += rows
                x_rows = smaller(rows, m - x_i)
            elif k <= KC:
                x_rows = 0
        if not shares:
            x_rows = 0
        j, total = j0, scratch + _TOTAL
        while j < j_end:
            width = panel_width(j_end - j, NARROW, NR)
            columns = smaller(width, j_end - j)
            next_p, next_j = p, j + columns
            if next_j >= j_end:
                next_p, next_j = (p + KC, j0) if p + KC < k else (0, j_end)
            done = x_rows * (j - j0) // (j_end - j0)
            share = x_rows * (j + columns - j0) // (j_end - j0) - done
            coming = (next_p, next_j, x_i + done, share, x_p)
            _block(problem, block, scratch, i0, rows, a, a_row, a_step, p, j, width, columns, total, coming)
            total += rows * width * SIZE
            j += columns
        p += KC
        if p >= k:
            break


def part(task, index):
    """Calculate one part of a product.

    Parameters
    ----------
    task : intp
        Address of four words: the problem (`fastrelu.kernels.problem`), rows and columns of a part, and parts of a column.
    index : intp
        Number of the part.

    Returns
    -------
    int32
        Whether there was memory; nothing is written otherwise.
    """
    problem, part_rows, part_columns, row_parts = words(task, 4)
    x, x_row, x_step, w, w_k, w_n = words(problem + X, 6)
    m, k, n, description, dz = words(problem + SIZES, 5)
    MR, NARROW, NR = words(description, 3)
    IN, SIZE, _, _, thin, kernels = words(description + TYPE, 6)
    packed = read_word(problem + PACKED)

    memory = take_scratch(SCRATCH + 64)
    if memory == 0:
        return 0
    scratch = (memory + 63) & -64
    i0 = index % row_parts * part_rows
    j, j_end = index // row_parts * part_columns, smaller(n, (index // row_parts + 1) * part_columns)
    rows = smaller(part_rows, m - i0)
    place = x + i0 * x_row
    in_place = w_n == SIZE and IN == SIZE and not packed and dz == 0
    is_thin = (
        rows <= smaller(MAX_ROWS, MR) and thin != 0 and x_step == SIZE and w_k == SIZE and w_n != SIZE and not packed and k > 1
    ) and dz == 0
    strip_lanes = read_word(description + TILING + 16 + 8 * rows) if in_place and rows <= 3 and 0 < rows < MR and k > 0 else 0
    group = NR * COPY_GROUP if _way_to_x(problem)[0] else NR
    part_start = j
    sums, block = scratch + _TOTAL, stack(160)
    while j < j_end:
        is_strip = strip_lanes > 0 and j_end - j >= strip_lanes
        if not is_strip and not is_thin:
            end = smaller(j + group, j_end)
            _group(problem, block, scratch, i0, rows, j, end, part_start, j_end)
            j = end
            continue
        width = panel_width(j_end - j, NARROW, NR)
        table = kernels + (MR * 8 if width > NARROW else 0)
        lanes = width
        if is_strip:
            width = smaller((j_end - j) // strip_lanes, STRIP_BYTES // (strip_lanes * SIZE)) * strip_lanes
            table = kernels + (MR * 16 if NR > NARROW else MR * 8)
            lanes = strip_lanes
        columns, row = smaller(width, j_end - j), width * SIZE
        start, start_row = _prepare(problem, scratch, i0, rows, j, width, columns)
        target, target_row, shown = _place_of_results(problem, i0, j, sums, width, columns)
        kernel = read_word(table + 8 * rows - 8)
        if is_strip:
            operands, chain = (place, x_row, x_step, w + j * SIZE, w_k, k, width), scratch + _CHAIN
            _strip(block, kernel, strip_lanes, SIZE, *operands, start, start_row, sums, chain, row)
        else:
            thin_task = stack(80)
            write_words(thin_task, (place, x_row, w + j * w_n, w_n, k, columns, start, start_row, sums, row))
            call_address(thin, thin_task, rows)
        _activate(block, kernel, lanes, SIZE, width, sums, row, scratch + _ALPHA, target, target_row, shown)
        _deliver(problem, scratch, i0, rows, j, columns, target, target_row)
        j += columns
    return_scratch(memory)
    return 1
