"""What every elementwise loop shares, compiled once: dividing long runs among threads, and operands with any steps.

``elementwise``  divides a run into parts for the pool, unless its operands overlap
``run``          one part: calls the loop's own function for contiguous operands, or ``gather``
``gather``       any other steps: through buffers in the first-level cache
"""

import os

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.memory import (
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
from fastrelu.kernels.pool import in_parallel, pool_address, thread_limit
from fastrelu.native.pool import CACHE

# A loop describes itself in words: the number of operands, the output being the last; the elements below which a part is
# not worth handing to another thread; the number of the input that is often a single value, or -1; four functions
# (pointers, n) for contiguous operands; and the bytes of an element of each operand.
APPLY = 24  # offset of the functions: with the parameter contiguous and single, then both with streaming stores
SIZES = 56  # offset of the element sizes

MAX_OPERANDS = 5
# Elements that `gather` copies at a time: four operands of float64 are 8 KB, a quarter of a first-level cache.
BUFFER = 256
_POINTERS = 8 * MAX_OPERANDS
_BUFFERS = 8 * BUFFER * MAX_OPERANDS

# Parts for each thread: enough to even out threads that run at different speeds, few enough to cost nothing.
PARTS_PER_THREAD = 8

POSIX = os.name == "posix"
_mincore = types.ExternalFunction("mincore", types.int32(types.intp, types.intp, types.intp))


@register_jitable
def _gather(loop, args, steps, n):
    operands, _, _, apply = words(loop, 4)
    buffers, pointers = stack(_BUFFERS), stack(_POINTERS)
    start = 0
    while start < n:
        count = smaller(BUFFER, n - start)
        for i in range(operands):
            size, step = read_word(loop + SIZES + 8 * i), read_word(steps + 8 * i)
            source, source_step = read_word(args + 8 * i) + start * step, step
            target, target_step = buffers + i * 8 * BUFFER, size
            write_word(pointers + 8 * i, target)
            if i == operands - 1:
                call_address(apply, pointers, count)
                source, source_step, target, target_step = target, target_step, source, source_step
            for _ in range(count):
                copy_element(target, source, size)
                source += source_step
                target += target_step
        start += count


@register_jitable
def _run(loop, args, steps, n, streaming):
    operands, _, parameter = words(loop, 3)
    single = parameter >= 0 and read_word(steps + 8 * parameter) == 0
    for i in range(operands):
        if read_word(steps + 8 * i) != read_word(loop + SIZES + 8 * i) and not (single and i == parameter):
            _gather(loop, args, steps, n)
            return
    call_address(read_word(loop + APPLY + 8 * single + 16 * streaming), args, n)


@register_jitable
def _overlap(loop, args, steps, n, i, output):
    """Whether input `i` and the output share memory in any other way than element on element."""
    x, x_step = read_word(args + 8 * i), read_word(steps + 8 * i)
    y, y_step = read_word(args + 8 * output), read_word(steps + 8 * output)
    if x == y and x_step == y_step:
        return False
    x_span, y_span = (n - 1) * x_step, (n - 1) * y_step
    x_end = x + larger(0, x_span) + read_word(loop + SIZES + 8 * i)
    y_end = y + larger(0, y_span) + read_word(loop + SIZES + 8 * output)
    return x + smaller(0, x_span) < y_end and y + smaller(0, y_span) < x_end


@register_jitable
def _is_touched(address):
    """Whether the page at `address` has been written to before.

    The system clears a page when it is first written to, through the cache: ordinary stores that follow find it there, and
    `relu` of 400 MB into new memory takes 36 ms instead of 39.
    """
    if not POSIX:
        return True
    resident = stack(8)
    write_word(resident, 0)
    return _mincore(address & -65536, 1, resident) != 0 or read_word(resident) != 0


@register_jitable
def _should_stream(loop, args, steps, n, cache):
    """Whether to store past the caches: the operands exceed `cache` bytes, and the output is in none of them yet."""
    output = read_word(loop) - 1
    y, y_step = read_word(args + 8 * output), read_word(steps + 8 * output)
    moved = abs(y_step) * n
    for i in range(output):
        if read_word(args + 8 * i) == y:
            return False
        moved += abs(read_word(steps + 8 * i)) * n
    return moved > cache and _is_touched(y + n // 2 * y_step)


@register_jitable
def _part(task, index):
    loop, args, steps, n, chunk, streaming = words(task, 6)
    start = index * chunk
    pointers = stack(_POINTERS)
    for i in range(read_word(loop)):
        write_word(pointers + 8 * i, read_word(args + 8 * i) + start * read_word(steps + 8 * i))
    _run(loop, pointers, steps, smaller(chunk, n - start), streaming)


_part_address = callback_address(_part, 2)


def elementwise(loop, args, steps, n):
    """Run an elementwise loop over `n` elements.

    Parameters
    ----------
    loop : intp
        Address of the words by which the loop describes itself.
    args, steps : intp
        Addresses of the operands' pointers and of their steps in bytes.
    n : intp
        Number of elements.
    """
    operands, grain = words(loop, 2)
    parts = smaller(PARTS_PER_THREAD * thread_limit(), n // grain)
    for i in range(operands - 1):
        if parts > 1 and _overlap(loop, args, steps, n, i, operands - 1):
            # NumPy lets a loop run on such memory where working in order gives the right result.
            parts = 1
    # A multiple of 64 elements keeps the parts of aligned arrays aligned.
    chunk = larger(n, 1) if parts < 2 else ((n - 1) // parts + 64) & -64
    streaming = parts > 1 and _should_stream(loop, args, steps, n, read_word(pool_address() + CACHE))
    task = stack(48)
    write_words(task, (loop, args, steps, n, chunk, streaming))
    in_parallel(_part_address(), task, (n - 1) // chunk + 1)
