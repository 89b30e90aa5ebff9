"""Jobs of a backward pass, and the division of a long batch among threads.

``run``       the parts of a job, each of them once
``in_slabs``  blocks of the batch as parts: with small matrices there is nothing else to divide
``add_slabs`` their sums

A block of `KC` rows of the batch is a block of terms of dw and db: each has a place of its own for its sums, a slab, and
afterwards the slabs are added in ascending order, as one thread would have done.
"""

from numba.extending import register_jitable

from fastrelu.kernels.gradient import OPERAND
from fastrelu.kernels.matrix import calculate
from fastrelu.kernels.memory import (
    atomic_add,
    call_address,
    callback_address,
    ceil,
    larger,
    read_byte,
    read_word,
    smaller,
    stack,
    words,
    write_byte,
    write_word,
    write_words,
)
from fastrelu.kernels.pool import in_parallel, serial_for
from fastrelu.kernels.problem import DELIVER, DZ, GRADIENT, HELD, KEEPS_SUMS, PROBLEM, SIZES, TYPE, X, Y
from fastrelu.kernels.scratch import free, malloc
from fastrelu.operations import KC

# Bytes of the sums of several blocks of the batch that wait to be added in their order.
SLABS = 4 << 20
# And how many wait at most: they stay in the caches.
SLABS_PER_THREAD = 32

# A job: the tasks of dx and dw, each with the number of its parts, and then
DONE = 32  # the address of a byte for each part, set when it is done, lest it be done twice
FAILED = 40  # how many parts there was no memory for
_SLAB = 48  # the address of the first slab, the bytes of one and of its rows, the number of its block
JOB = 80


@register_jitable
def run(function, job, parts, is_serial):
    """All parts of a job; returns 0, or how many there was no memory for."""
    done = read_word(job + DONE)
    for i in range(parts):
        write_byte(done + i, 0)
    write_word(job + FAILED, 0)
    if is_serial:
        serial_for(function, job, parts)
    else:
        in_parallel(function, job, parts)
    if read_word(job + FAILED) != 0:
        # Some thread got no scratch memory. This one may.
        write_word(job + FAILED, 0)
        serial_for(function, job, parts)
    return read_word(job + FAILED)


@register_jitable
def deliver_sums(description, source, source_row, held, out, rows, columns):
    """Sums to where they belong; `held` and `out` are addresses with their row and column steps."""
    task = stack(88)
    write_words(task, (source, source_row, read_word(description + TYPE + 8)))
    write_words(task + 24, held)
    write_words(task + 48, out)
    write_words(task + 72, (rows, columns))
    call_address(read_word(description + DELIVER), task, 0)


@register_jitable
def _slab(job, index):
    """The gradients of one block of the batch: its rows of dx, and its sums of dw and db."""
    dx_task, _, dw_task, _, done = words(job, 5)
    slabs, slab, row, first = words(job + _SLAB, 4)
    if read_byte(done + index):
        return
    worked = 1
    dx_problem, dx_rows, _, dx_parts = words(dx_task, 4)
    if dx_problem != 0:
        parts = KC // dx_rows
        for i in range((first + index) * parts, smaller((first + index + 1) * parts, dx_parts)):
            worked &= calculate(dx_task, i)
    whole, part_rows, _, row_parts = words(dw_task, 4)
    k, m, n = words(whole + SIZES, 3)
    problem, operand, task = stack(PROBLEM), stack(OPERAND), stack(40)
    for at in range(0, PROBLEM, 8):
        write_word(problem + at, read_word(whole + at))
    for at in range(0, OPERAND, 8):
        write_word(operand + at, read_word(read_word(whole + DZ) + at))
    start = (first + index) * KC
    x, _, x_step = words(problem + X, 3)
    dy, dy_row = words(operand + 24, 2)
    y, y_row = words(operand + 48, 2)
    place = slabs + index * slab
    write_word(problem + X, x + start * x_step)
    write_words(operand + 24, (dy + start * dy_row, dy_row))
    write_words(operand + 48, (y + start * y_row, y_row))
    write_word(operand + 88, place + k * row)
    write_words(problem + Y, (place, row, read_word(read_word(problem + SIZES + 24) + TYPE + 8)))
    write_word(problem + SIZES + 8, smaller(KC, m - start))
    write_word(problem + DZ, operand)
    write_word(problem + KEEPS_SUMS, 1)
    write_words(task, (problem, part_rows, n, row_parts, 0))
    for i in range(row_parts):
        worked &= calculate(task, i)
    if worked:
        write_byte(done + index, 1)
    else:
        atomic_add(job + FAILED, 1)


@register_jitable
def _add_slabs(task, index):
    add, total, slabs, slab, count, nbytes, is_first, share = words(task, 8)
    start = index * share
    add_task = stack(48)
    write_words(add_task, (total + start, slabs + start, slab, count, smaller(share, nbytes - start), is_first))
    call_address(add, add_task, 0)


_slab_address = callback_address(_slab, 2)
_add_slabs_address = callback_address(_add_slabs, 2)


@register_jitable
def add_slabs(add, total, slabs, slab, count, is_first, threads):
    """Add `count` slabs of `slab` bytes to a total, in ascending order, or let them replace it."""
    share = (ceil(slab, 2 * threads) + 4095) & -4096
    task = stack(64)
    write_words(task, (add, total, slabs, slab, count, slab, is_first, share))
    in_parallel(_add_slabs_address(), task, ceil(slab, share))


@register_jitable
def in_slabs(description, job, dw_task, db, sizes, threads):
    """Divide the batch into blocks of `KC` rows, whose sums are added in ascending order; returns 0 if there was memory."""
    m, k, n = sizes
    SIZE = read_word(description + TYPE + 8)
    add = read_word(description + GRADIENT + 8)
    row = (n * SIZE + 63) & -64
    slab, blocks = (k + 1) * row, ceil(m, KC)
    held = smaller(blocks, smaller(larger(SLABS // slab, 2 * threads), SLABS_PER_THREAD * threads))
    memory = malloc((held + 1) * slab + 64)
    if memory == 0:
        return 1
    total = (memory + 63) & -64
    slabs = total + slab
    dw_problem = read_word(dw_task)
    write_words(job + _SLAB, (slabs, slab, row, 0))
    failed, first = 0, 0
    while first < blocks and failed == 0:
        count = smaller(held, blocks - first)
        write_word(job + _SLAB + 24, first)
        failed = run(_slab_address(), job, count, False)
        add_slabs(add, total, slabs, slab, count, first == 0, threads)
        first += count
    if failed == 0:
        if k > 0:
            deliver_sums(description, total, row, words(dw_problem + HELD, 3), words(dw_problem + Y, 3), k, n)
        for at in range(0, row, 8):
            write_word(db + at, read_word(total + k * row + at))
    free(memory)
    return failed
