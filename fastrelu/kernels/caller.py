"""Loops called without NumPy: what its iterator does for an array function, done for code that Numba has compiled.

``plan``  checks shapes, broadcasts them, and tells those of the results
``run``   brings the loop axes into the order of memory, joins those that can be one, and calls the loop for each of the others

Both take the table of an operation and the block that describes the arrays, as `fastrelu.native.entries` lays them out.
"""

from numba.extending import register_jitable

from fastrelu.kernels.memory import (
    call_function,
    copy_element,
    larger,
    read_word,
    smaller,
    stack,
    words,
    write_word,
    write_words,
)
from fastrelu.kernels.scratch import free, malloc
from fastrelu.native.entries import (
    ARRAY_BYTES,
    ARRAYS,
    AXES,
    CORES,
    COUNTS,
    LENGTHS,
    LOOP,
    MAX_AXES,
    MAX_OPERANDS,
    OPERAND_BYTES,
    OPERANDS,
    SHAPE,
    STEPS,
)

_ROW = 8 * MAX_AXES
_LOOP_STEPS = _ROW * MAX_OPERANDS
_POINTERS = 8 * MAX_OPERANDS
# A step for each operand, and for each of its core axes.
_ALL_STEPS = 3 * _POINTERS
_DIMENSIONS = 8 * 8


@register_jitable
def _check_cores(table, block):
    """Find the lengths of the core dimensions; returns whether all operands agree."""
    inputs, outputs, cores, n, q = words(table + COUNTS, 5)
    for i in range(cores):
        write_word(block + CORES + 8 * i, -1)
    for i in range(inputs + outputs):
        array, operand = block + ARRAYS + ARRAY_BYTES * i, table + OPERANDS + OPERAND_BYTES * i
        axes, core_axes = read_word(array + 8), read_word(operand + 8)
        if axes < 0:
            continue
        if axes < core_axes:
            return False
        for axis in range(core_axes):
            length = read_word(array + LENGTHS + 8 * (axes - core_axes + axis))
            core = block + CORES + 8 * read_word(operand + 16 + 8 * axis)
            if length >= 0:
                if read_word(core) < 0:
                    write_word(core, length)
                elif read_word(core) != length:
                    return False
    return q < 0 or read_word(block + CORES + 8 * q) == (read_word(block + CORES + 8 * n) + 7) >> 3


@register_jitable
def _loop_axes(table, block, i):
    """The number of axes of operand `i` before its core axes; -1 if it is still to be made."""
    axes = read_word(block + ARRAYS + ARRAY_BYTES * i + 8)
    return axes if axes < 0 else axes - read_word(table + OPERANDS + OPERAND_BYTES * i + 8)


def plan(table, block):
    """Check the shapes of all operands and write those of the outputs that are still to be made.

    Parameters
    ----------
    table, block : intp
        Addresses.

    Returns
    -------
    int32
        0, or 1 if the shapes do not fit.
    """
    inputs, outputs = words(table + COUNTS, 2)
    if not _check_cores(table, block):
        return 1
    axes = 0
    for i in range(inputs + outputs):
        axes = larger(axes, _loop_axes(table, block, i))
    write_word(block + AXES, axes)
    for axis in range(axes):
        length = 1
        for i in range(inputs + outputs):
            own = axis - axes + _loop_axes(table, block, i)
            given = read_word(block + ARRAYS + ARRAY_BYTES * i + LENGTHS + 8 * own) if own >= 0 else 1
            if given != 1 and length != 1 and given != length:
                return 1
            length = length if given == 1 else given
        write_word(block + SHAPE + 8 * axis, length)
    for i in range(inputs, inputs + outputs):
        array, operand = block + ARRAYS + ARRAY_BYTES * i, table + OPERANDS + OPERAND_BYTES * i
        own = _loop_axes(table, block, i)
        if own < 0:
            core_axes = read_word(operand + 8)
            for axis in range(axes):
                write_word(array + LENGTHS + 8 * axis, read_word(block + SHAPE + 8 * axis))
            for axis in range(core_axes):
                length = read_word(block + CORES + 8 * read_word(operand + 16 + 8 * axis))
                write_word(array + LENGTHS + 8 * (axes + axis), length)
        elif own != axes:
            return 1
        else:
            for axis in range(axes):
                if read_word(array + LENGTHS + 8 * axis) != read_word(block + SHAPE + 8 * axis):
                    return 1
    return 0


@register_jitable
def _span(array, size):
    """The first byte of an array and the one after its last; the same if it is empty."""
    place, axes = words(array, 2)
    low, high = place, place + size
    for axis in range(axes):
        length, step = read_word(array + LENGTHS + 8 * axis), read_word(array + STEPS + 8 * axis)
        if length == 0:
            return place, place
        if length > 0:
            low += smaller(0, (length - 1) * step)
            high += larger(0, (length - 1) * step)
    return low, high


@register_jitable
def _are_one(array, other):
    """Whether two operands are the same elements in the same order."""
    place, axes = words(array, 2)
    if place != read_word(other) or axes != read_word(other + 8):
        return False
    for axis in range(axes):
        if read_word(array + LENGTHS + 8 * axis) != read_word(other + LENGTHS + 8 * axis):
            return False
        if read_word(array + STEPS + 8 * axis) != read_word(other + STEPS + 8 * axis):
            return False
    return True


@register_jitable
def _overlaps_input(table, block, output):
    """Whether an output shares memory with an input, other than element on element."""
    inputs = read_word(table + COUNTS)
    array = block + ARRAYS + ARRAY_BYTES * output
    low, high = _span(array, read_word(table + OPERANDS + OPERAND_BYTES * output))
    for i in range(inputs):
        other = block + ARRAYS + ARRAY_BYTES * i
        other_low, other_high = _span(other, read_word(table + OPERANDS + OPERAND_BYTES * i))
        if low < other_high and other_low < high and not _are_one(array, other):
            return True
    return False


@register_jitable
def _is_aligned(array, size):
    """Whether all elements lie at multiples of their size, as streaming stores want it. Numba's callers need not care."""
    place, axes = words(array, 2)
    for axis in range(axes):
        place |= read_word(array + STEPS + 8 * axis)
    return place & (size - 1) == 0


@register_jitable
def _copy(array, source, size):
    """Copy contiguous elements to an array of any steps."""
    target, axes = words(array, 2)
    index = stack(_ROW)
    total = 1
    for axis in range(axes):
        write_word(index + 8 * axis, 0)
        total *= read_word(array + LENGTHS + 8 * axis)
    for _ in range(total):
        copy_element(target, source, size)
        source += size
        axis = axes - 1
        while axis >= 0:
            length, step = read_word(array + LENGTHS + 8 * axis), read_word(array + STEPS + 8 * axis)
            i = read_word(index + 8 * axis) + 1
            target += step
            if i < length:
                write_word(index + 8 * axis, i)
                break
            write_word(index + 8 * axis, 0)
            target -= length * step
            axis -= 1


@register_jitable
def _order_axes(shape, steps, axes, operands):
    """Sort the loop axes by the steps of the last operand, the smallest last, drop those of length 1, and join those which all
    operands go through in one stride. Returns how many are left.
    """
    left = 0
    last = steps + _ROW * (operands - 1)
    for axis in range(axes):
        length = read_word(shape + 8 * axis)
        if length != 1:
            to = left
            while to > 0 and abs(read_word(last + 8 * (to - 1))) < abs(read_word(last + 8 * axis)):
                to -= 1
            for row in range(operands + 1):  # the steps of each operand, then the lengths
                base = steps + _ROW * row if row < operands else shape
                moved = read_word(base + 8 * axis)
                at = left
                while at > to:
                    write_word(base + 8 * at, read_word(base + 8 * (at - 1)))
                    at -= 1
                write_word(base + 8 * to, moved)
            left += 1
    joined = smaller(left, 1)
    for axis in range(1, left):
        length = read_word(shape + 8 * axis)
        outer = 8 * (joined - 1)
        are_one = True
        for i in range(operands):
            row = steps + _ROW * i
            are_one = are_one and read_word(row + outer) == read_word(row + 8 * axis) * length
        to = outer if are_one else 8 * joined
        for i in range(operands):
            row = steps + _ROW * i
            write_word(row + to, read_word(row + 8 * axis))
        write_word(shape + to, length * read_word(shape + outer) if are_one else length)
        joined += 0 if are_one else 1
    return joined


@register_jitable
def _iterate(table, block):
    """Call the loop for all elements, or for all matrices."""
    inputs, outputs, cores = words(table + COUNTS, 3)
    operands, axes = inputs + outputs, read_word(block + AXES)
    shape, steps = stack(_ROW), stack(_LOOP_STEPS)
    pointers, all_steps, dimensions = stack(_POINTERS), stack(_ALL_STEPS), stack(_DIMENSIONS)
    for axis in range(axes):
        length = read_word(block + SHAPE + 8 * axis)
        if length == 0:
            return 0
        write_word(shape + 8 * axis, length)
    core_steps = all_steps + 8 * operands
    for i in range(operands):
        array, operand = block + ARRAYS + ARRAY_BYTES * i, table + OPERANDS + OPERAND_BYTES * i
        own, core_axes = _loop_axes(table, block, i), read_word(operand + 8)
        write_word(pointers + 8 * i, read_word(array))
        for axis in range(axes):
            at = axis - axes + own
            is_spread = at < 0 or read_word(array + LENGTHS + 8 * at) == 1
            write_word(steps + _ROW * i + 8 * axis, 0 if is_spread else read_word(array + STEPS + 8 * at))
        for axis in range(core_axes):
            write_word(core_steps, read_word(array + STEPS + 8 * (own + axis)))
            core_steps += 8
    axes = _order_axes(shape, steps, axes, operands)
    inner = 8 * (axes - 1)
    write_word(dimensions, read_word(shape + inner) if axes > 0 else 1)
    for i in range(cores):
        write_word(dimensions + 8 + 8 * i, read_word(block + CORES + 8 * i))
    for i in range(operands):
        write_word(all_steps + 8 * i, read_word(steps + _ROW * i + inner) if axes > 0 else 0)
    index = stack(_ROW)
    calls = 1
    for axis in range(axes - 1):
        write_word(index + 8 * axis, 0)
        calls *= read_word(shape + 8 * axis)
    for _ in range(calls):
        if call_function(read_word(table + LOOP), (0, pointers, dimensions, all_steps, 0)) != 0:
            return 1
        axis = axes - 2
        while axis >= 0:
            length, i = read_word(shape + 8 * axis), read_word(index + 8 * axis) + 1
            is_end = i == length
            write_word(index + 8 * axis, 0 if is_end else i)
            for operand in range(operands):
                step = read_word(steps + _ROW * operand + 8 * axis)
                at = pointers + 8 * operand
                write_word(at, read_word(at) + (step - length * step if is_end else step))
            axis = axis - 1 if is_end else -1
    return 0


def run(table, block):
    """Calculate the outputs.

    Parameters
    ----------
    table, block : intp
        Addresses. The block is one that `plan` found right, with all outputs in it.

    Returns
    -------
    int32
        0, or 1 with a Python exception set if there is no memory.
    """
    inputs, outputs = words(table + COUNTS, 2)
    places, kept = stack(_POINTERS), stack(_LOOP_STEPS)
    failed = 0
    for i in range(inputs, inputs + outputs):
        array, size = block + ARRAYS + ARRAY_BYTES * i, read_word(table + OPERANDS + OPERAND_BYTES * i)
        write_word(places + 8 * i, 0)
        if _overlaps_input(table, block, i) or not _is_aligned(array, size):
            # Into memory of its own first.
            axes, step = read_word(array + 8), size
            for reverse in range(axes):
                at = 8 * (axes - 1 - reverse)
                write_word(kept + _ROW * i + at, read_word(array + STEPS + at))
                write_word(array + STEPS + at, step)
                step *= read_word(array + LENGTHS + at)
            memory = malloc(step)
            if memory == 0:
                failed = 1
            else:
                write_word(places + 8 * i, read_word(array))
                write_word(array, memory)
    if failed == 0:
        failed = _iterate(table, block)
    for i in range(inputs, inputs + outputs):
        array, size = block + ARRAYS + ARRAY_BYTES * i, read_word(table + OPERANDS + OPERAND_BYTES * i)
        place = read_word(places + 8 * i)
        if place != 0:
            memory = read_word(array)
            for axis in range(read_word(array + 8)):
                write_word(array + STEPS + 8 * axis, read_word(kept + _ROW * i + 8 * axis))
            write_words(array, (place,))
            if failed == 0:
                _copy(array, memory, size)
            free(memory)
    return failed
