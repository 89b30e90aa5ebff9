"""The gradients of a fused layer: dx = dz @ w.T, dw = x.T @ dz and db, the sum of dz over the batch, with dz = f'(dy, y).

``gradients``  the loop that NumPy calls
``_backward``  both products of one layer, as parts of one job of the pool
``_in_slabs``  the same for a long batch and small matrices: the batch is divided as well

Both products are those of `fastrelu.kernels.panels`, with dz as the operand that is formed panel by panel:

    dw = x.T @ dz     columns of x are read where they lie; db is summed while panels of dz are formed
    dx.T = w @ dz.T   so that here, too, the other operand need not be copied
"""

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.errors import fail
from fastrelu.kernels.gradient import OPERAND
from fastrelu.kernels.matrix import SERIAL, calculate, divide
from fastrelu.kernels.memory import (
    atomic_add,
    call_address,
    callback_address,
    ceil,
    constant_words,
    enter_default_float_status,
    larger,
    leave_float_status,
    read_byte,
    read_word,
    smaller,
    stack,
    words,
    write_byte,
    write_word,
    write_words,
)
from fastrelu.kernels.panels import copy_out
from fastrelu.kernels.pool import in_parallel, pool_address, serial_for
from fastrelu.kernels.problem import DELIVER, DZ, GRADIENT, HELD, KEEPS_SUMS, OPERANDS, PROBLEM, SIZES, TILING, TYPE, X, Y
from fastrelu.kernels.scratch import free, malloc
from fastrelu.native.errors import NO_MEMORY, WRONG_MASK
from fastrelu.native.matrix import (
    ALPHA,
    BACKWARD,
    COUNT,
    DB_HELD,
    DB_OUT,
    DW_HELD,
    DW_OUT,
    DX_HELD,
    DX_OUT,
    DY,
    W_IN,
    X_IN,
    Y_IN,
    describe_backward,
)
from fastrelu.native.pool import LIMIT
from fastrelu.operations import KC, Gradient

# Bytes of the sums of several blocks of the batch that wait to be added in their order.
SLABS = 4 << 20
# Rows of dw that are worth a part of their own, for which all of dz has to be formed once more.
GOOD_ROWS = 128

# A job: the tasks of the two products and how many parts they have; a byte a part that is set when it is done, lest it be done
# twice; how many parts there was no memory for; for slabs the address of the first, the bytes of one and of its rows, and the
# number of the first block.
_DX, _DX_PARTS, _DW, _DW_PARTS, _DONE, _FAILED, _SLAB = 0, 8, 16, 24, 32, 40, 48
_JOB = 80
_TABLE = 32 * COUNT


_gradients = types.ExternalFunction(BACKWARD, types.int32(types.intp, types.intp, types.intp, types.intp))


@register_jitable
def _part(job, index):
    dx_task, dx_parts, dw_task, _, done = words(job, 5)
    if read_byte(done + index):
        return
    worked = calculate(dx_task, index) if index < dx_parts else calculate(dw_task, index - dx_parts)
    if worked:
        write_byte(done + index, 1)
    else:
        atomic_add(job + _FAILED, 1)


@register_jitable
def _slab(job, index):
    """The gradients of one block of the batch: its rows of dx, and its sums of dw and db."""
    dx_task, _, dw_task, _, done = words(job, 5)
    slabs, slab, row, first = words(job + _SLAB, 4)
    if read_byte(done + index):
        return
    worked = 1
    dx_problem, _, _, dx_row_parts = words(dx_task, 4)
    if dx_problem != 0:
        # Parts of the product that have one block of columns; those of the same block lie side by side.
        for i in range(dx_row_parts):
            worked &= calculate(dx_task, (first + index) * dx_row_parts + i)
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
        atomic_add(job + _FAILED, 1)


@register_jitable
def _add_slabs(task, index):
    add, total, slabs, slab, count, nbytes, is_first, share = words(task, 8)
    start = index * share
    add_task = stack(48)
    write_words(add_task, (total + start, slabs + start, slab, count, smaller(share, nbytes - start), is_first))
    call_address(add, add_task, 0)


_part_address = callback_address(_part, 2)
_slab_address = callback_address(_slab, 2)
_add_slabs_address = callback_address(_add_slabs, 2)


@register_jitable
def _run(function, job, parts, is_serial):
    """All parts of a job; returns 0, or how many there was no memory for."""
    done = read_word(job + _DONE)
    for i in range(parts):
        write_byte(done + i, 0)
    write_word(job + _FAILED, 0)
    if is_serial:
        serial_for(function, job, parts)
    else:
        in_parallel(function, job, parts)
    if read_word(job + _FAILED) != 0:
        # Some thread got no scratch memory. This one may.
        write_word(job + _FAILED, 0)
        serial_for(function, job, parts)
    return read_word(job + _FAILED)


@register_jitable
def _deliver(description, source, source_row, held, out, rows, columns):
    """Sums to where they belong; `held` and `out` are addresses with their row and column steps."""
    task = stack(88)
    write_words(task, (source, source_row, read_word(description + TYPE + 8)))
    write_words(task + 24, held)
    write_words(task + 48, out)
    write_words(task + 72, (rows, columns))
    call_address(read_word(description + DELIVER), task, 0)


@register_jitable
def _in_slabs(description, job, dx_task, dw_task, db, sizes, threads):
    """Divide the batch into blocks of `KC` rows, whose sums are added in ascending order; returns 0 if there was memory."""
    m, k, n = sizes
    SIZE = read_word(description + TYPE + 8)
    add = read_word(description + GRADIENT + 8)
    row = (n * SIZE + 63) & -64
    slab, blocks = (k + 1) * row, ceil(m, KC)
    held = smaller(blocks, larger(SLABS // slab, 2 * threads))
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
        failed = _run(_slab_address(), job, count, False)
        share = (ceil(slab, 2 * threads) + 4095) & -4096
        add_task = stack(64)
        write_words(add_task, (add, total, slabs, slab, count, slab, first == 0, share))
        in_parallel(_add_slabs_address(), add_task, ceil(slab, share))
        first += count
    if failed == 0:
        if k > 0:
            _deliver(description, total, row, words(dw_problem + HELD, 3), words(dw_problem + Y, 3), k, n)
        for at in range(0, row, 8):
            write_word(db + at, read_word(total + k * row + at))
    free(memory)
    return failed


@register_jitable
def _backward(description, dx_problem, dw_problem, db, sizes):
    """The products of one layer; returns 0, or 1 if there is no memory.

    A problem is 0 if the product is not wanted. `db` is where its sums are put, or 0.
    """
    m, k, n = sizes
    MR, _, NR = words(description + TILING, 3)
    SIZE = read_word(description + TYPE + 8)
    threads = read_word(pool_address() + LIMIT)
    job, dx_task, dw_task = stack(_JOB), stack(40), stack(40)
    dx_parts = divide(dx_problem, dx_task) if dx_problem != 0 and m > 0 else 0
    dw_parts = divide(dw_problem, dw_task) if dw_problem != 0 else 0
    if dx_problem == 0:
        write_words(dx_task, (0, 0, 0, 0, 0))
    blocks = ceil(m, KC)
    few = ceil(n, NR) * larger(k // GOOD_ROWS, 1) < 2 * threads
    slab = (k + 1) * ((n * SIZE + 63) & -64)
    in_slabs = dw_problem != 0 and few and m * n * (k + 1) >= SERIAL and threads > 1 and blocks > 1 and slab * threads <= SLABS
    most = larger(dx_parts + dw_parts, blocks if in_slabs else 0)
    done = stack(256)
    if most > 256:
        done = malloc(most)
        if done == 0:
            return 1
    write_words(job, (dx_task, dx_parts, dw_task, dw_parts, done, 0))
    if in_slabs:
        if dx_problem != 0:
            # The columns of dx.T are those of one block.
            rows = smaller(read_word(dx_task + 8), larger(ceil(k, MR) * MR, MR))
            write_words(dx_task + 8, (rows, KC, larger(ceil(k, rows), 1)))
        failed = _in_slabs(description, job, dx_task, dw_task, db, sizes, threads)
    else:
        failed = _run(_part_address(), job, dx_parts + dw_parts, dx_parts + dw_parts < 2)
    if most > 256:
        free(done)
    return failed


@register_jitable
def _entry(table, operand):
    """An operand's address and its steps along two core axes."""
    address, _, row, step = words(table + 32 * operand, 4)
    return address, row, step


def gradients(description, pointers, dimensions, steps):
    """The loop of a generalized ufunc ``(m,n),(m,n),(m,k),(k,n),()->(m,k),(k,n),(n)`` of dy, y, x, w and alpha.

    Parameters
    ----------
    description : intp
        Address of the words that `fastrelu.native.matrix.describe_backward` lists: they tell which operands there are. Instead
        of y there may be the bits of y > 0, (m, q). What a gradient is added to is an operand after alpha.
    pointers, dimensions, steps : intp
        Addresses of what NumPy passes to a loop.

    Returns
    -------
    int32
        0, or -1 with an exception set.
    """
    form, _, is_mask = words(description + GRADIENT, 3)
    IN, SIZE, pack, pack_sums = words(description + TYPE, 4)
    outer, m, n = words(dimensions, 3)
    has_dx, has_dw, has_db = words(description + OPERANDS + 8 * DX_OUT, 3)
    has_dx, has_dw, has_db = has_dx >= 0, has_dw >= 0, has_db >= 0
    if is_mask and read_word(dimensions + 24) != (n + 7) >> 3:
        return fail(WRONG_MASK)
    k = read_word(dimensions + 24 + 8 * is_mask) if has_dx or has_dw else 0
    if outer == 0:
        return 0
    # Of each operand the address, the step from one product to the next, and the steps along its core axes.
    table, count = stack(_TABLE), 0
    for operand in range(COUNT):
        count += read_word(description + OPERANDS + 8 * operand) >= 0
    core = steps + 8 * count
    for operand in range(COUNT):
        axes = read_word(description + OPERANDS + 8 * operand)
        write_words(table + 32 * operand, (0, 0, 0, 0))
        if axes >= 0:
            write_words(table + 32 * operand, (read_word(pointers), read_word(steps)))
            for axis in range(axes):
                write_word(table + 32 * operand + 8 * (4 - axes + axis), read_word(core + 8 * axis))
            core += 8 * axes
            pointers += 8
            steps += 8

    db_bytes, dx_bytes, dw_bytes = (n * SIZE + 191) & -64, m * k * IN * has_dx, k * n * IN * has_dw
    memory = malloc(db_bytes)
    if memory == 0:
        return fail(NO_MEMORY)
    db = (memory + 63) & -64
    status = enter_default_float_status()
    dx_problem, dw_problem, dx_dz, dw_dz = stack(PROBLEM), stack(PROBLEM), stack(OPERAND), stack(OPERAND)
    nothing = stack(8)
    write_word(nothing, 0)
    failed = 0
    while outer > 0 and failed == 0:
        outer -= 1
        dx_copy = dw_copy = dx_place = dw_place = 0
        _, dx_row, dx_step = _entry(table, DX_OUT)
        _, dw_row, dw_step = _entry(table, DW_OUT)
        copies = 0
        for operand in range(ALPHA):
            place = read_word(table + 32 * operand)
            copies |= place != 0 and (place == read_word(table + 32 * DX_OUT) or place == read_word(table + 32 * DW_OUT))
        if copies:
            dx_copy = malloc(dx_bytes + dw_bytes + 1)
            if dx_copy == 0:
                failed = 1
                break
            dw_copy = dx_copy + dx_bytes
            dx_place, dw_place = read_word(table + 32 * DX_OUT), read_word(table + 32 * DW_OUT)
            write_words(table + 32 * DX_OUT, (dx_copy, read_word(table + 32 * DX_OUT + 8), k * IN, IN))
            write_words(table + 32 * DW_OUT, (dw_copy, read_word(table + 32 * DW_OUT + 8), n * IN, IN))
        dy, dy_row, dy_step = _entry(table, DY)
        y, y_row, y_step = _entry(table, Y_IN)
        x, x_row, x_step = _entry(table, X_IN)
        w, w_row, w_step = _entry(table, W_IN)
        alpha = read_word(table + 32 * ALPHA)
        for at, sums in ((dx_dz, 0), (dw_dz, db if has_db else 0)):
            write_words(at, (form, pack, pack_sums, dy, dy_row, dy_step, y, y_row, y_step, is_mask))
            write_words(at + 80, (alpha if alpha != 0 else nothing, sums, IN, SIZE))
        for at in range(0, PROBLEM, 8):
            write_word(dx_problem + at, 0)
            write_word(dw_problem + at, 0)
        write_words(dx_problem + X, (w, w_row, w_step, dy, dy_step, dy_row))
        out, row, step = _entry(table, DX_OUT)
        write_words(dx_problem + Y, (out, step, row))
        write_words(dx_problem + SIZES, (k, n, m, description, dx_dz, 1))
        held, row, step = _entry(table, DX_HELD)
        write_words(dx_problem + HELD, (held, step, row))
        write_words(dw_problem + X, (x, x_step, x_row, dy, dy_row, dy_step))
        write_words(dw_problem + Y, _entry(table, DW_OUT))
        write_words(dw_problem + SIZES, (k if has_dw else 0, m, n, description, dw_dz, 0))
        write_words(dw_problem + HELD, _entry(table, DW_HELD))
        products = (
            dx_problem if has_dx and m > 0 and k > 0 else 0,
            dw_problem if n > 0 and (has_db or (has_dw and k > 0)) else 0,
        )
        failed = _backward(description, products[0], products[1], db, (m, k if has_dw else 0, n))
        if copies:
            if failed == 0 and has_dx:
                copy_out(dx_copy, k * IN, IN, m, k, dx_place, dx_row, dx_step)
            if failed == 0 and has_dw:
                copy_out(dw_copy, n * IN, IN, k, n, dw_place, dw_row, dw_step)
            write_words(table + 32 * DX_OUT, (dx_place, read_word(table + 32 * DX_OUT + 8), dx_row, dx_step))
            write_words(table + 32 * DW_OUT, (dw_place, read_word(table + 32 * DW_OUT + 8), dw_row, dw_step))
            free(dx_copy)
        if failed == 0 and has_db and n > 0:
            _deliver(description, db, 0, _entry(table, DB_HELD), _entry(table, DB_OUT), 1, n)
        for operand in range(COUNT):
            entry = table + 32 * operand
            write_word(entry, read_word(entry) + read_word(entry + 8))
    leave_float_status(status)
    free(memory)
    if failed != 0:
        return fail(NO_MEMORY)
    return 0


def loop(spec: Gradient):
    """The loop for `spec` as a Python function, to be compiled with NumPy's signature of a loop."""
    description = constant_words(describe_backward(spec))

    def call(context, pointers, dimensions, steps, auxiliary):
        return _gradients(description(), pointers, dimensions, steps)

    return call
