"""The macro-kernel: y = f(x @ w + b) for matrices of any strides, divided among threads and cut into panels.

``product``  divides y into parts for the pool, by rows and by columns
``part``     the loops ``jr``, over panels of columns, and ``pc``, over blocks of `KC` terms; packs a panel of w when it gets there
``tiles``    the loop ``ir``, over tiles of rows: in the micro-kernel (`fastrelu.kernels.linear`)

There is no block of w for all threads to share, and x is not packed: x is read where it lies, one element for all lanes at a
time, and a panel of w is packed just before it is used, by the thread that uses it. For the `MC` rows that then go over
it, packing takes 1 % of the time, and threads need not wait for one another.

Compiled once: what depends on the operation and its types stands in its description, and arrives as words.
"""

import os

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.memory import (
    atomic_add,
    call_address,
    callback_address,
    copy_element,
    larger,
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
from fastrelu.native.pool import LIMIT, PARALLEL_FOR
from fastrelu.operations import KC

_parallel_for = types.ExternalFunction(PARALLEL_FOR, types.void(types.intp, types.intp, types.intp))

# Rows of a part: enough to make packing cheap, few enough for their sums in a panel to stay in the second-level cache.
MC = 768
# A thread's scratch memory, by what is kept there: a panel of w, rows of x, sums, rows of results, of biases, alpha.
PANEL_BYTES = 256  # of a row of the widest panel that is packed
ROW_BYTES = 1024  # of a row of the widest tile
X_STEP = 4 * KC + 64  # not a multiple of 4096, lest all rows of x meet in one set of the first-level cache
_W = 0
_X = _W + KC * PANEL_BYTES
_TOTAL = _X + MC * X_STEP
_Y = _TOTAL + MC * PANEL_BYTES
_START = _Y + MC * PANEL_BYTES
_ALPHA = _START + MC * PANEL_BYTES
SCRATCH = _ALPHA + ROW_BYTES

# Multiply-adds below which a product stays on one thread, and those that are worth a part.
SERIAL = 200_000
GRAIN = 1_000_000
PARTS_PER_THREAD = 8
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
def _width(columns, least, most):
    """The lanes of the next panel where `columns` are left."""
    width = most
    while width > columns and width > least:
        width >>= 1
    return width


@register_jitable
def _part(task, index):
    problem, part_rows, part_columns, row_parts = words(task, 4)
    x, x_row, x_step, w, w_k, w_n = words(problem, 6)
    bias, bias_row, bias_step, alpha, alpha_step = words(problem + 48, 5)
    y, y_row, y_step, mask, mask_row, mask_step = words(problem + 88, 6)
    m, k, n, packed, description = words(problem + 136, 5)
    MR, LEAST, NR, IN, SIZE, OUT, pack, pack_alpha, thin = words(description, 9)
    wide = description + 72
    kernels = wide + 24

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
    whole, rest = rows // MR, rows % MR
    levels = 1
    while LEAST << levels <= NR:
        levels += 1
    in_place = w_n == SIZE and IN == SIZE and not packed
    is_thin = rows <= MAX_ROWS and thin != 0 and x_step == SIZE and w_k == SIZE and w_n != SIZE and not packed and k > 1
    block = stack(160)
    while j < j_end:
        width = _width(j_end - j, LEAST, NR)
        level = 0
        while LEAST << level < width:
            level += 1
        if in_place and rows <= 3 and rows < MR and j_end - j >= read_word(wide + 8 * rows - 8):
            width = read_word(wide + 8 * rows - 8)
            level = levels
        columns = smaller(width, j_end - j)
        target, target_row = y + j * y_step, y_row
        total, total_row = scratch + _TOTAL, width * SIZE
        shown = columns
        if y_step != OUT:
            target, target_row, shown = scratch + _Y, width * OUT, width
        elif OUT == SIZE and columns == width:
            total, total_row = target, target_row
        # the bias and alpha of these columns, dense and of the type of the sums
        start, start_row = scratch + _START, 0
        if bias == 0:
            _fill(start, width * SIZE)
        elif bias_row == 0:
            _pack(pack, bias + j * bias_step, 0, bias_step, 1, columns, start, 0)
        else:
            start_row = width * SIZE
            _pack(pack, bias + j * bias_step, bias_row, bias_step, rows, columns, start, start_row)
        if alpha != 0:
            _pack(pack_alpha, alpha + j * alpha_step, 0, alpha_step, 1, columns, scratch + _ALPHA, 0)
        first = 0
        if is_thin:
            thin_task = stack(80)
            write_words(thin_task, (x, x_row, w + j * w_n, w_n, k, columns, start, start_row, scratch + _TOTAL, width * SIZE))
            call_address(thin, thin_task, rows)
            # What is left is a product with no terms, which starts from the sums.
            start, start_row, first = scratch + _TOTAL, width * SIZE, k
        pc = first
        while True:
            kc = smaller(KC, k - pc)
            b, b_step, ahead = scratch + _W, width * SIZE, 0
            if packed:
                b = w + (j * k + pc * width) * SIZE
                ahead = KC * b_step
            elif in_place and columns == width and (rows <= DIRECT_ROWS or w_k == b_step):
                b, b_step = w + pc * w_k + j * SIZE, w_k
                ahead = 8 * b_step
            else:
                _pack(pack, w + pc * w_k + j * w_n, w_k, w_n, kc, columns, b, b_step)
            a, a_row, a_step = x + pc * x_step, x_row, x_step
            if IN != SIZE:
                a, a_row, a_step = scratch + _X, X_STEP, SIZE
                _pack(pack, x + pc * x_step, x_row, x_step, rows, kc, a, a_row)
            is_first, is_last = pc == first, pc + kc >= k
            done = 0
            for turn in range(2):
                size, count = (MR, whole) if turn == 0 else (rest, 1)
                if count == 0 or size == 0:
                    continue
                write_words(block, (a + done * a_row, a_row, a_step, b, b_step, kc, ahead, is_first, is_last))
                write_words(block + 72, (start + done * start_row, start_row, total + done * total_row, total_row))
                write_words(block + 104, (scratch + _ALPHA, target + done * target_row, target_row, shown))
                write_words(block + 136, (mask + done * mask_row + (j >> 3) * mask_step, mask_row, mask_step))
                call_address(read_word(kernels + 8 * (level * MR + size - 1)), block, count)
                done += size * count
            pc += kc
            if is_last:
                break
        if y_step != OUT:
            _copy_out(target, target_row, OUT, rows, columns, y + j * y_step, y_row, y_step)
        j += columns
    return_scratch(memory)


_part_address = callback_address(_part, 2)


@register_jitable
def _ceil(a, b):
    return (a + b - 1) // b


def product(problem):
    """Calculate y = f(x @ w + b).

    Parameters
    ----------
    problem : intp
        Address of 22 words: x and its row and column steps; w and its row and column steps; b and its row and column steps,
        b being 0 if there is none; alpha and its column step; y and its steps; the bit mask and its steps; m, k, n;
        whether w is packed; the description of the operation.

    Returns
    -------
    intp
        0, or 1 if there is no memory.
    """
    m, k, n, packed, description = words(problem + 136, 5)
    if m == 0 or n == 0:
        return 0
    MR, _, NR = words(description, 3)
    threads = read_word(pool_address() + LIMIT)
    work = m * n * larger(k, 1)
    wanted = smaller(PARTS_PER_THREAD * threads, work // GRAIN)
    row_parts, column_parts = _ceil(m, MC), 1
    if work >= SERIAL and threads > 1:
        wanted = larger(wanted, threads)
        panels = _ceil(n, NR)
        column_parts = smaller(panels, _ceil(wanted, row_parts))
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
    return read_word(task + 32) != 0
