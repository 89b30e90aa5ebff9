"""From sums to results: what the micro-kernel cannot store where they belong.

``build``     sums to elements of any strides and of the output's type, added to what is held there if that is wanted
``add_up``    sums of several blocks of terms, one after the other
"""

from numba.extending import register_jitable

from fastrelu.kernels.lanes import store_every_other
from fastrelu.kernels.memory import load_operands, size_of, smaller, stack, store, store_partial, words
from fastrelu.kernels.tile import load_row, load_transposed, on_rows, store_tile
from fastrelu.kernels.vector import ELEMENTS, Vector, narrow, widened


def build(dtype: str, vector_bytes: int):
    """The function (task, unused) for results of type `dtype`.

    The task is eleven words: the sums and their row and column steps; what they are added to, or 0, and its steps; the results
    and their steps, which may stand there as well; rows and columns.
    """
    element = ELEMENTS[dtype]
    sums = widened(Vector(element, 1)).element
    SIZE, OUT = size_of(sums), size_of(element)
    LANES = vector_bytes // SIZE
    SQUARE = LANES * LANES * SIZE
    rounded = narrow(element)
    load_sums = load_operands([(sums, False)], LANES, False, partial=True)
    load_held = load_operands([(element, False)], LANES, True, partial=True)
    load_sum = load_operands([(sums, False)], 1, False, partial=False)
    load_one = load_operands([(element, False)], 1, True, partial=False)
    load_square = load_transposed(sums, LANES, partial=False)
    load_square_first = load_transposed(sums, LANES, partial=True)
    round_rows = on_rows(_ignoring(rounded))

    def deliver(task, _):
        source, s_row, s_step, held, h_row, h_step, out, o_row, o_step, rows, columns = words(task, 11)
        if o_step != OUT and o_row == OUT:  # the transposed result has contiguous rows
            s_row, s_step, h_row, h_step, o_row, o_step = s_step, s_row, h_step, h_row, o_step, o_row
            rows, columns = columns, rows
        is_dense = o_step == OUT and (held == 0 or h_step == OUT)
        square = stack(SQUARE)
        if is_dense and s_step == SIZE:
            for _ in range(rows):
                for j in range(0, columns, LANES):
                    count = smaller(columns - j, LANES)
                    value = load_sums((source,), j, count)[0]
                    if held != 0:
                        value = load_held((held,), j, count)[0] + value
                    store_partial(out, j, rounded(value), count)
                source += s_row
                held += h_row if held != 0 else 0
                out += o_row
        elif is_dense and s_row == SIZE:
            for i in range(0, rows, LANES):
                height = smaller(rows - i, LANES)
                for j in range(0, columns, LANES):
                    count = smaller(columns - j, LANES)
                    place, to = source + i * SIZE + j * s_step, out + i * o_row + j * OUT
                    if held == 0 and height == LANES and count == LANES:
                        store_tile(round_rows(load_square(place, s_step, 0, 0), 0), to, o_row)
                    else:
                        store_tile(load_square_first(place, s_step, count - 1, height), square, LANES * SIZE)
                        for r in range(height):
                            value = load_sums((square + r * LANES * SIZE,), 0, count)[0]
                            if held != 0:
                                value = load_held((held + (i + r) * h_row + j * OUT,), 0, count)[0] + value
                            store_partial(to, 0, rounded(value), count)
                            to += o_row
        elif o_step == 2 * OUT and s_step == SIZE and held == 0:
            for _ in range(rows):
                for j in range(0, columns, LANES):
                    count = smaller(columns - j, LANES)
                    store_every_other(out + j * o_step, rounded(load_sums((source,), j, count)[0]), count)
                source += s_row
                out += o_row
        else:
            for i in range(rows):
                for j in range(columns):
                    value = load_sum((source + i * s_row + j * s_step,), 0, 0)[0]
                    if held != 0:
                        value = load_one((held + i * h_row + j * h_step,), 0, 0)[0] + value
                    store(out + i * o_row + j * o_step, 0, rounded(value))

    return deliver


def _ignoring(function):
    """A function of a row as one of a row and a parameter."""
    return register_jitable(lambda x, unused: function(x))


def add_up(dtype: str, vector_bytes: int):
    """The function (task, unused) that adds sums to a total in ascending order.

    The task is six words: the total; the first sums; the bytes from one to the next and how many there are; the bytes of each,
    a multiple of a vector's; whether the first replace what the total holds.
    """
    element = ELEMENTS[dtype]
    LANES = vector_bytes // size_of(element)
    load = load_row(element, LANES)

    def add(task, _):
        total, sums, step, count, nbytes, is_first = words(task, 6)
        for at in range(0, nbytes, vector_bytes):
            place, left = sums + at, count
            value = load(total + at)
            if is_first:
                value = load(place)
                place += step
                left -= 1
            while left > 0:
                value = value + load(place)
                place += step
                left -= 1
            store(total + at, 0, value)

    return add
