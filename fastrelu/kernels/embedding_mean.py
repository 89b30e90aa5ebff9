"""Means of rows of a table, and their gradients.

``forward``    bags in parallel; a strip of columns at a time, its sums in registers
``backward``   rows of the table in parallel, each the sum of its own terms in their order
``sort``       brings the terms of a row together: keys in ascending order, those that are equal in the order in which they came
"""

from numba.extending import register_jitable

from fastrelu.kernels.memory import (
    callback_address,
    enter_default_float_status,
    larger,
    leave_float_status,
    load_operands,
    read_word,
    size_of,
    smaller,
    stack,
    store,
    store_partial,
    words,
    write_word,
)
from fastrelu.kernels.parts import parts_of
from fastrelu.kernels.pool import in_parallel
from fastrelu.kernels.tile import zeros
from fastrelu.kernels.vector import ELEMENTS, Vector, like, narrow, widened

# Elements below which a part is not worth handing to another thread.
GRAIN = 1 << 14
# Registers of a strip of columns.
REGISTERS = 4
# The bits of a key that one pass of the sort looks at: 2048 counters are 16 KB, half of a first-level cache.
DIGIT = 11
_DIGITS = 1 << DIGIT
_COUNTERS = 8 << DIGIT


def forward(dtype: str, vector_bytes: int):
    """The kernel for a table of type `dtype`.

    Its task in words: int64 ids and how many there are; the bags' first ids, with one more for the end, or 0 if each bag has
    the same number of ids, and that number; the table and its row step; the results and their row step; bags, columns; the id
    that does not count; last a word for itself.
    """
    element = ELEMENTS[dtype]
    wide = widened(Vector(element, 1)).element
    LANES = vector_bytes // size_of(wide)
    STRIP = REGISTERS * LANES
    load_strip = load_operands([(element, False)], STRIP, True, partial=False)
    load_some = load_operands([(element, False)], LANES, True, partial=True)
    zero_strip, zero_some = zeros(wide, 1, STRIP), zeros(wide, 1, LANES)
    rounded = narrow(element)

    @register_jitable
    def bag_mean(ids, end, place, row, result, columns, padding):
        """The mean of a bag, whose ids stand from the address `ids` up to `end`."""
        j = 0
        while j <= columns - STRIP:
            sums, count, at = zero_strip()[0], 0, ids
            while at < end:
                number = read_word(at)
                if number != padding:
                    sums = sums + load_strip((place + number * row,), j, 0)[0]
                    count += 1
                at += 8
            store(result, j, rounded(sums / like(sums, larger(count, 1))))
            j += STRIP
        while j < columns:
            width = smaller(LANES, columns - j)
            few, count, at = zero_some()[0], 0, ids
            while at < end:
                number = read_word(at)
                if number != padding:
                    few = few + load_some((place + number * row,), j, width)[0]
                    count += 1
                at += 8
            store_partial(result, j, rounded(few / like(few, larger(count, 1))), width)
            j += LANES

    def part(task, number):
        ids, _, firsts, length, table, row, y, y_row, bags, columns, padding, parts = words(task, 12)
        for bag in range(number * bags // parts, (number + 1) * bags // parts):
            start, end = bag * length, (bag + 1) * length
            if firsts != 0:
                start, end = words(firsts + 8 * bag, 2)
            bag_mean(ids + 8 * start, ids + 8 * end, table, row, y + bag * y_row, columns, padding)

    part_address = callback_address(part, 2)

    def kernel(task):
        count, bags, columns = read_word(task + 8), read_word(task + 64), read_word(task + 72)
        parts = parts_of(bags, (count + bags) * columns, GRAIN)
        write_word(task + 88, parts)
        status = enter_default_float_status()
        in_parallel(part_address(), task, parts)
        leave_float_status(status)
        return 0

    return kernel


@register_jitable
def _below(keys, count, key):
    """How many of the ascending keys are less than `key`."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if read_word(keys + 8 * middle) < key:
            low = middle + 1
        else:
            high = middle
    return low


@register_jitable
def _row_at(keys, count, rows, work):
    """The row before which that much work is done: one for each row, and one for each term."""
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        if middle + _below(keys, count, middle) < work:
            low = middle + 1
        else:
            high = middle
    return low


def backward(dtype: str, vector_bytes: int):
    """The kernel for gradients of type `dtype`.

    Its task in words: ascending keys, the row of the terms for each, and how many there are; the terms, float32 or float64,
    and their row step; the results and their row step; rows, columns; last a word for itself.
    """
    element = ELEMENTS[dtype]
    wide = widened(Vector(element, 1)).element
    LANES = vector_bytes // size_of(wide)
    STRIP = REGISTERS * LANES
    load_strip = load_operands([(wide, False)], STRIP, False, partial=False)
    load_some = load_operands([(wide, False)], LANES, False, partial=True)
    zero_strip, zero_some = zeros(wide, 1, STRIP), zeros(wide, 1, LANES)
    rounded = narrow(element)

    @register_jitable
    def row_sum(places, end, terms, step, result, columns):
        """The sum of the terms whose numbers stand from the address `places` up to `end`."""
        j = 0
        while j <= columns - STRIP:
            sums, at = zero_strip()[0], places
            while at < end:
                sums = sums + load_strip((terms + read_word(at) * step,), j, 0)[0]
                at += 8
            store(result, j, rounded(sums))
            j += STRIP
        while j < columns:
            width = smaller(LANES, columns - j)
            few, at = zero_some()[0], places
            while at < end:
                few = few + load_some((terms + read_word(at) * step,), j, width)[0]
                at += 8
            store_partial(result, j, rounded(few), width)
            j += LANES

    def part(task, number):
        keys, places, count, terms, step, y, y_row, rows, columns, parts = words(task, 10)
        first = _row_at(keys, count, rows, number * (rows + count) // parts)
        last = rows if number == parts - 1 else _row_at(keys, count, rows, (number + 1) * (rows + count) // parts)
        at = _below(keys, count, first)
        for row in range(first, last):
            start = at
            while at < count and read_word(keys + 8 * at) == row:
                at += 1
            row_sum(places + 8 * start, places + 8 * at, terms, step, y + row * y_row, columns)

    part_address = callback_address(part, 2)

    def kernel(task):
        count, rows, columns = read_word(task + 16), read_word(task + 56), read_word(task + 64)
        parts = parts_of(rows, (rows + count) * columns, GRAIN)
        write_word(task + 72, parts)
        status = enter_default_float_status()
        in_parallel(part_address(), task, parts)
        leave_float_status(status)
        return 0

    return kernel


def sort(vector_bytes: int):
    """The kernel, a radix sort from the lowest digit on. Its task in words: keys, their values, as much memory for both again;
    how many there are; how many passes of `DIGIT` bits. After an odd number of passes the results stand in the second place.
    """

    def kernel(task):
        keys, values, other_keys, other_values, count, passes = words(task, 6)
        counters = stack(_COUNTERS)
        for number in range(passes):
            shift = DIGIT * number
            for digit in range(_DIGITS):
                write_word(counters + 8 * digit, 0)
            for i in range(count):
                counter = counters + 8 * (read_word(keys + 8 * i) >> shift & (_DIGITS - 1))
                write_word(counter, read_word(counter) + 1)
            before = 0
            for digit in range(_DIGITS):
                of_digit = read_word(counters + 8 * digit)
                write_word(counters + 8 * digit, before)
                before += of_digit
            for i in range(count):
                key = read_word(keys + 8 * i)
                counter = counters + 8 * (key >> shift & (_DIGITS - 1))
                place = read_word(counter)
                write_word(counter, place + 1)
                write_word(other_keys + 8 * place, key)
                write_word(other_values + 8 * place, read_word(values + 8 * i))
            keys, values, other_keys, other_values = other_keys, other_values, keys, values
        return 0

    return kernel
