"""Rows of a band where the columns have a stride: all phases in one pass, with the zeros around them."""

from numba.extending import register_jitable

from fastrelu.kernels.lanes import every, store_lanes
from fastrelu.kernels.memory import load_lanes, size_of, smaller, words
from fastrelu.kernels.tile import load_row, zeros
from fastrelu.kernels.vector import ELEMENTS

# Strides of the columns that there is a way for.
STRIDES = (2, 4)


def build(dtype: str, vector_bytes: int):
    """The function (task, stride) for elements of `dtype`, and a stride of the columns among `STRIDES`.

    The task is eleven words: the address of column 0 of the first row; the step between rows; how many rows there are, the
    first that is one of the image and the end of these; columns of a phase; the column of the image that the first is, which
    may be negative, and how many the image has; the target and the step between its rows; the step between phases. The
    columns of the image are neighbours.
    """
    element = ELEMENTS[dtype]
    SIZE = size_of(element)
    LANES = vector_bytes // SIZE
    store = store_lanes(LANES)

    def rows_of(stride):
        STRIDE = stride
        load, load_some = load_row(element, STRIDE * LANES), load_lanes(element, STRIDE * LANES)
        zero = zeros(element, 1, STRIDE * LANES)
        first, second, third, fourth = (every(STRIDE, phase % STRIDE) for phase in range(4))

        @register_jitable
        def copy(task):
            source, step, rows, top, bottom, columns, start, width, target, pitch, phase = words(task, 11)
            for row in range(rows):
                low, high = (0, width) if top <= row < bottom else (0, 0)
                for j in range(0, columns, LANES):
                    at, count = start + j * STRIDE, smaller(columns - j, LANES)
                    if low <= at and at + STRIDE * LANES <= high:
                        value = load(source + at * SIZE)
                    else:
                        value = load_some(source + at * SIZE, low - at, high - at, zero()[0])
                    place = target + j * SIZE
                    store(place, first(value), count)
                    store(place + phase, second(value), count)
                    if STRIDE > 2:
                        store(place + 2 * phase, third(value), count)
                        store(place + 3 * phase, fourth(value), count)
                source += step
                target += pitch

        return copy

    of_two, of_four = (rows_of(stride) for stride in STRIDES)

    def copy(task, stride):
        if stride == 2:
            of_two(task)
        else:
            of_four(task)

    return copy
