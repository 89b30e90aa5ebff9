"""The gradients of a fused layer: dx = dz @ w.T, dw = x.T @ dz and db, the sum of dz over the batch, with dz = f'(dy, y).

``gradients``  the loop that NumPy calls
``_backward``  both products of one layer, as parts of one job of the pool (`fastrelu.kernels.slabs` for a long batch)

Both products are those of `fastrelu.kernels.panels`, with dz as the operand that is formed panel by panel:

    dw = x.T @ dz     db is summed while panels of dz are formed
    dw.T = dz.T @ x   where the columns of dw are contiguous, as in a weight (out, in): dz takes the place of x as it lies
    dx.T = w @ dz.T   dz is transposed on its way into panels
    dx = dz @ w.T     where that costs less: dz takes the place of x
"""

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.errors import fail
from fastrelu.kernels.gradient import OPERAND
from fastrelu.kernels.matrix import SERIAL, calculate, divide
from fastrelu.kernels.memory import (
    atomic_add,
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
from fastrelu.kernels.panels import COPY_GROUP, DIRECT_ROWS, FORMED_BYTES, MC, copy_out
from fastrelu.kernels.pool import thread_limit
from fastrelu.kernels.problem import (
    AS_W,
    AS_X,
    DZ,
    GRADIENT,
    HELD,
    OPERANDS,
    PACKED,
    PROBLEM,
    SIZES,
    TILING,
    TRANSPOSED_AS_W,
    TRANSPOSED_AS_X,
    TYPE,
    X,
    Y,
)
from fastrelu.kernels.scratch import free, malloc
from fastrelu.kernels.slabs import FAILED, JOB, SLABS, deliver_sums, in_slabs, run
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
    PACK_WEIGHT,
    W_IN,
    X_IN,
    Y_IN,
    describe_backward,
)
from fastrelu.operations import KC, Gradient

# Bytes of a slab so small that the batch is divided in any case, for dy and y to come from memory only once: twice the speed
# for 16384 x 13 x 512.
SMALL_SLAB = 1 << 16
# Rows of dw that are worth a part of their own, for which all of dz has to be formed once more.
GOOD_ROWS = 128
# What dx = dz @ w.T can use of a block of dz and of a panel of w.T before they have to be made again.
FORMED_ROWS, COPY_COLUMNS = FORMED_BYTES // 4, COPY_GROUP * 64
# Rows of a batch up to which the transpose of dw is calculated if dw is to be stored so: 0.81 to 0.95 of the time for 64 rows.
# The other way has to turn the sums, this one has to form dz anew for every few columns.
FEW_ROWS = 128
# The largest w.T that is packed before.
PACKED_BYTES = 2 << 20

_TABLE = 32 * COUNT

_pack_weight = types.ExternalFunction(PACK_WEIGHT, types.void(types.intp))
_gradients = types.ExternalFunction(BACKWARD, types.int32(types.intp, types.intp, types.intp, types.intp))


@register_jitable
def _part(job, index):
    dx_task, dx_parts, dw_task, dw_parts, done = words(job, 5)
    if read_byte(done + index):
        return
    # Parts of both kinds are spread evenly, so that every thread begins with about as much work.
    before, with_it = index * dx_parts // (dx_parts + dw_parts), (index + 1) * dx_parts // (dx_parts + dw_parts)
    worked = calculate(dx_task, before) if with_it > before else calculate(dw_task, index - before)
    if worked:
        write_byte(done + index, 1)
    else:
        atomic_add(job + FAILED, 1)


_part_address = callback_address(_part, 2)


@register_jitable
def _divides_batch(dx_problem, NR, SIZE, threads, sizes):
    """Whether threads share the batch instead of dw, which is too small."""
    m, k, n = sizes
    few = ceil(n, NR) * larger(k // GOOD_ROWS, 1) < 2 * threads
    slab = (k + 1) * ((n * SIZE + 63) & -64)
    divides = (few or slab <= SMALL_SLAB) and threads > 1 and m > KC and slab * threads <= SLABS
    divides = divides and m * n * (k + 1) >= SERIAL
    return divides and (dx_problem == 0 or read_word(dx_problem + DZ + 8) == AS_X)


@register_jitable
def _describe_dw(description, problem, dz, table, sizes, is_transposed):
    """The product for dw = x.T @ dz, or for its transpose; without x for db only."""
    m, k, n = sizes
    dy, dy_row, dy_step = _entry(table, DY)
    x, x_row, x_step = _entry(table, X_IN)
    out, row, step = _entry(table, DW_OUT)
    held, held_row, held_step = _entry(table, DW_HELD)
    if is_transposed:
        write_words(problem + X, (dy, dy_step, dy_row, x, x_row, x_step))
        write_words(problem + Y, (out, step, row))
        write_words(problem + SIZES, (n, m, k, description, dz, TRANSPOSED_AS_X))
        write_words(problem + HELD, (held, held_step, held_row))
    else:
        write_words(problem + X, (x, x_step, x_row, dy, dy_row, dy_step))
        write_words(problem + Y, (out, row, step))
        write_words(problem + SIZES, (k, m, n, description, dz, AS_W))
        write_words(problem + HELD, (held, held_row, held_step))


@register_jitable
def _backward(description, dx_problem, dw_problem, db, sizes):
    """The products of one layer; returns 0, or 1 if there is no memory.

    A problem is 0 if the product is not wanted. `db` is where its sums are put, or 0.
    """
    m, k, n = sizes
    NR = read_word(description + TILING + 16)
    SIZE = read_word(description + TYPE + 8)
    threads = thread_limit()
    job, dx_task, dw_task = stack(JOB), stack(40), stack(40)
    dx_parts = divide(dx_problem, dx_task) if dx_problem != 0 and m > 0 else 0
    dw_parts = divide(dw_problem, dw_task) if dw_problem != 0 else 0
    if dx_problem == 0:
        write_words(dx_task, (0, 0, 0, 0, 0))
    blocks = ceil(m, KC)
    divides_batch = dw_problem != 0 and read_word(dw_problem + DZ + 8) == AS_W
    divides_batch = divides_batch and _divides_batch(dx_problem, NR, SIZE, threads, sizes)
    most = larger(dx_parts + dw_parts, blocks if divides_batch else 0)
    done = stack(256)
    if most > 256:
        done = malloc(most)
        if done == 0:
            return 1
    write_words(job, (dx_task, dx_parts, dw_task, dw_parts, done, 0))
    if divides_batch:
        if dx_problem != 0:
            # All columns of some rows, so many that they divide a block.
            rows = KC // (SIZE >> 1)
            write_words(dx_task + 8, (rows, ceil(read_word(dx_problem + SIZES + 16), NR) * NR, ceil(m, rows)))
        failed = in_slabs(description, job, dw_task, db, sizes, threads)
    else:
        # Two small products on one thread: 55 instead of 86 us where the others sleep.
        parts = dx_parts + dw_parts
        failed = run(_part_address(), job, parts, parts < 2 or m * n * (k + 1) * parts < SERIAL)
    if most > 256:
        free(done)
    return failed


@register_jitable
def _entry(table, operand):
    """An operand's address and its steps along two core axes."""
    address, _, row, step = words(table + 32 * operand, 4)
    return address, row, step


@register_jitable
def _describe_dx(description, problem, dz, table, sizes):
    """The product for dx: dx = dz @ w.T, or its transpose; returns the address of memory for a packed w.T, or 0.

    Both have the same sums of the same products. The first has to bring w.T into the order of panels and to form dz for every
    group of them; the second has to transpose both dz and the results.
    """
    m, k, n = sizes
    dy, dy_row, dy_step = _entry(table, DY)
    w, w_row, w_step = _entry(table, W_IN)
    out, row, step = _entry(table, DX_OUT)
    held, held_row, held_step = _entry(table, DX_HELD)
    IN, SIZE, pack = words(description + TYPE, 3)
    NARROW, NR = words(description + TILING + 8, 2)
    nbytes = n * ceil(k, NARROW) * NARROW * SIZE
    is_direct, packs = m <= DIRECT_ROWS and w_row == SIZE and IN == SIZE, m > 2 * FORMED_ROWS and nbytes <= PACKED_BYTES
    # Costs of an element of w or dz, or of dx, in ps on Zen 4, for each of the terms or columns that use it.
    packing = 0 if is_direct else 200 * 1024 // (m if packs else smaller(m, FORMED_ROWS))
    as_it_is = packing + 130 * 1024 // smaller(k, COPY_COLUMNS)
    transposed = 140 * 1024 // smaller(k, MC) + 80 * 1024 // larger(n, 1)
    if as_it_is >= transposed:
        write_words(problem + X, (w, w_row, w_step, dy, dy_step, dy_row))
        write_words(problem + Y, (out, step, row))
        write_words(problem + SIZES, (k, n, m, description, dz, TRANSPOSED_AS_W))
        write_words(problem + HELD, (held, held_step, held_row))
        return 0
    memory = malloc(nbytes + 64) if packs else 0
    write_words(problem + X, (dy, dy_row, dy_step, w, w_step, w_row))
    write_words(problem + Y, (out, row, step))
    write_words(problem + SIZES, (m, n, k, description, dz, AS_X))
    write_words(problem + HELD, (held, held_row, held_step))
    if memory != 0:
        packed, task = (memory + 63) & -64, stack(80)
        write_words(task, (w, w_step, w_row, n, k, packed, NARROW, NR, SIZE, pack))
        _pack_weight(task)
        write_words(problem + X + 24, (packed, 0, 0))
        write_word(problem + PACKED, 1)
    return memory


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
    NR = read_word(description + TILING + 16)
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
        alpha = read_word(table + 32 * ALPHA)
        for at, sums in ((dx_dz, 0), (dw_dz, db if has_db else 0)):
            write_words(at, (form, pack, pack_sums, dy, dy_row, dy_step, y, y_row, y_step, is_mask))
            write_words(at + 80, (alpha if alpha != 0 else nothing, sums, IN, SIZE))
        for at in range(0, PROBLEM, 8):
            write_word(dx_problem + at, 0)
            write_word(dw_problem + at, 0)
        packed = _describe_dx(description, dx_problem, dx_dz, table, (m, k, n)) if has_dx and m > 0 and k > 0 else 0
        products = (
            dx_problem if has_dx and m > 0 and k > 0 else 0,
            dw_problem if n > 0 and (has_db or (has_dw and k > 0)) else 0,
        )
        dw_sizes = m, k if has_dw else 0, n
        _, row, step = _entry(table, DW_OUT)
        turns = has_dw and k > 0 and 0 < m <= FEW_ROWS and row == IN and step != IN
        turns = turns and not _divides_batch(products[0], NR, SIZE, thread_limit(), dw_sizes)
        _describe_dw(description, dw_problem, dw_dz, table, dw_sizes, turns)
        failed = _backward(description, products[0], products[1], db, dw_sizes)
        if packed != 0:
            free(packed)
        if copies:
            if failed == 0 and has_dx:
                copy_out(dx_copy, k * IN, IN, m, k, dx_place, dx_row, dx_step)
            if failed == 0 and has_dw:
                copy_out(dw_copy, n * IN, IN, k, n, dw_place, dw_row, dw_step)
            write_words(table + 32 * DX_OUT, (dx_place, read_word(table + 32 * DX_OUT + 8), dx_row, dx_step))
            write_words(table + 32 * DW_OUT, (dw_place, read_word(table + 32 * DW_OUT + 8), dw_row, dw_step))
            free(dx_copy)
        if failed == 0 and has_db and n > 0:
            deliver_sums(description, db, 0, _entry(table, DB_HELD), _entry(table, DB_OUT), 1, n)
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
