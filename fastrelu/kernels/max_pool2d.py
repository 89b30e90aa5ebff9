"""Max pooling: the first maximum of every window, and its place.

x (n, c, h, w) is read through any strides. Lanes run along whatever is contiguous: along a row of results, whose windows are
1 or 2 columns apart, along the rows of wide windows, or along the channels; anything else goes element by element.

``_across``    a row of results of one plane, lanes along the row
``_at_each``   a row of results, lanes along the channels; with one lane, of one plane of any strides
``_along``     a row of results, lanes along the rows of each window
``forward``    the kernel
``backward``   the gradients, back to where the maxima were found
"""

from numba.extending import register_jitable

from fastrelu.kernels.lanes import beats, every, first_maximum, load_between, lowest, plus, ramp, store_lanes
from fastrelu.kernels.memory import (
    callback_address,
    ceil,
    enter_default_float_status,
    larger,
    leave_float_status,
    load_operands,
    read_word,
    size_of,
    smaller,
    store,
    words,
    write_words,
)
from fastrelu.kernels.parts import parts_of
from fastrelu.kernels.pool import in_parallel
from fastrelu.kernels.tile import load_row, zeros
from fastrelu.kernels.vector import ELEMENTS, Vector, is_minus, narrow, where, widened

# Elements of windows below which a part is not worth handing to another thread.
GRAIN = 1 << 15
# How the lanes run: along a window's rows, across windows, over channels together, not at all.
ALONG, ACROSS, TOGETHER, ONE_BY_ONE = range(4)
# What the reduction of a vector takes, in steps of its reading.
REDUCTION = 5
# Channels that the backward pass takes at a time where they are contiguous: a cache line of the smallest type.
CHANNELS = 64


@register_jitable
def _inside(start, step, count, end):
    """Of `count` places, `step` apart from `start` on: how many are negative, and how many are in ``range(end)``."""
    if start >= 0 and start + (count - 1) * step < end:
        return 0, count  # mostly, and a division takes as long as a small window
    before = smaller(count, (step - 1 - start) // step) if start < 0 else 0
    below = smaller(count, (end - start + step - 1) // step)
    return before, larger(0, below - before)


def _across(element, LANES: int, STEP: int, INDICES: bool):
    """The function for windows `STEP` columns apart."""
    SIZE = size_of(element)
    load = load_between(element, STEP * LANES)
    lowest_of_all, columns = lowest(element, LANES), ramp(LANES, STEP)
    even, odd = every(STEP, 0), every(STEP, STEP - 1)
    rounded = narrow(element)
    store_values, store_indices = store_lanes(LANES), store_lanes(LANES)

    @register_jitable
    def across(x, x_row, y, indices, h, w, count, window, padding, dilation, top):
        above, height = _inside(top, dilation[0], window[0], h)
        first_row = top + above * dilation[0]
        for j in range(0, count, LANES):
            left = j * STEP - padding
            best, index = lowest_of_all(), columns(left)
            taps = window[1]
            if left < 0:
                for _ in range(_inside(left, dilation[1], taps, w)[0]):
                    index = where(is_minus(index), plus(index, dilation[1]), index)
            if left + (taps - 1) * dilation[1] >= w:  # no lane sees columns so far to the right
                taps = larger(0, smaller(taps, (w - left + dilation[1] - 1) // dilation[1]))
            index = plus(index, first_row * w)
            for a in range(height):
                row = first_row + a * dilation[0]
                b = 0
                while b < taps:
                    column = left + b * dilation[1]
                    block = load(x + row * x_row + column * SIZE, -column, w - column)
                    value = even(block)
                    better = beats(value, best)
                    best, index = where(better, value, best), where(better, columns(row * w + column), index)
                    b += 1
                    if STEP == 2 and dilation[1] == 1 and b < taps:
                        value = odd(block)
                        better = beats(value, best)
                        best, index = where(better, value, best), where(better, columns(row * w + column + 1), index)
                        b += 1
            store_values(y + j * SIZE, rounded(best), count - j)
            if INDICES:
                store_indices(indices + j * 8, index, count - j)

    return across


def _at_each(element, LANES: int, INDICES: bool):
    """The function for channels that are contiguous, or with one lane for any strides."""
    load, lowest_of_all, splat_index = load_between(element, LANES), lowest(element, LANES), ramp(LANES, 0)
    rounded = narrow(element)
    store_values, store_indices = store_lanes(LANES), store_lanes(LANES)

    @register_jitable
    def at_each(x, y, indices, channels, h, w, count, window, step, padding, dilation, top):
        above, height = _inside(top, dilation[0], window[0], h)
        first_row = top + above * dilation[0]
        for j in range(count):
            left = j * step - padding
            before, width = _inside(left, dilation[1], window[1], w)
            first_column = left + before * dilation[1]
            for c in range(0, channels, LANES):
                best, index = lowest_of_all(), splat_index(first_row * w + first_column)
                for a in range(height):
                    row = first_row + a * dilation[0]
                    for b in range(width):
                        column = first_column + b * dilation[1]
                        place = x[0] + c * x[1] + row * x[2] + column * x[3]
                        value = load(place, 0, channels - c)
                        better = beats(value, best)
                        best, index = where(better, value, best), where(better, splat_index(row * w + column), index)
                store_values(y[0] + c * y[1] + j * y[3], rounded(best), channels - c)
                if INDICES:
                    store_indices(indices[0] + c * indices[1] + j * indices[3], index, channels - c)

    return at_each


def _along(element, LANES: int, INDICES: bool):
    """The function for wide windows and few results: lanes along the rows of the window."""
    SIZE = size_of(element)
    load, lowest_of_all, columns = load_between(element, LANES), lowest(element, LANES), ramp(LANES, 1)
    rounded = narrow(element)

    @register_jitable
    def along(x, x_row, y, y_step, indices, i_step, h, w, count, window, step, padding, dilation, top):
        above, height = _inside(top, dilation[0], window[0], h)
        first_row = top + above * dilation[0]
        for j in range(count):
            left = larger(0, j * step - padding)
            end = smaller(w, j * step - padding + window[1])
            best, index = lowest_of_all(), columns(first_row * w + left)
            for a in range(height):
                row = first_row + a * dilation[0]
                for column in range(left, end, LANES):
                    value = load(x + row * x_row + column * SIZE, 0, end - column)
                    better = beats(value, best)
                    best, index = where(better, value, best), where(better, columns(row * w + column), index)
            value, place = first_maximum(best, index)
            store(y + j * y_step, 0, rounded(value))
            if INDICES:
                store(indices + j * i_step, 0, place)

    return along


def forward(dtype: str, results: str, vector_bytes: int):
    """The kernel for x of type `dtype`; `results` is "values", or "indices" for both.

    Its task in words: x, the results, and their indices (or zeros), each with its steps along n, c, h and w; n, c, h, w; rows
    and columns of the results; rows and columns of a window, of the step between windows, of the padding, and of the step
    inside a window; last a word for itself.
    """
    element, INDICES = ELEMENTS[dtype], results == "indices"
    SIZE = size_of(element)
    LANES = vector_bytes // max(4, SIZE)
    PARTS = 8 * 29
    by_one, by_two = _across(element, LANES, 1, INDICES), _across(element, LANES, 2, INDICES)
    at_each, one_by_one = _at_each(element, LANES, INDICES), _at_each(element, 1, INDICES)
    along = _along(element, LANES, INDICES)

    @register_jitable
    def way(task):
        """How the lanes run."""
        columns, a, b = words(task + 160, 3)
        b_step, b_inside = read_word(task + 192), read_word(task + 224)
        are_near, vectors = b_step <= 2, ceil(columns, LANES)
        if read_word(task + 32) == SIZE:
            others = a * b * (vectors if are_near else columns)
            if b_inside == 1 and columns * (a * ceil(b, LANES) + REDUCTION) < others:
                return ALONG
            if are_near and read_word(task + 72) == SIZE and (not INDICES or read_word(task + 112) == 8):
                return ACROSS
        if read_word(task + 16) == SIZE and read_word(task + 56) == SIZE and (not INDICES or read_word(task + 96) == 8):
            return TOGETHER
        return ONE_BY_ONE

    def part(task, number):
        x, x_n, x_c, x_h, x_w, y, y_n, y_c, y_h, y_w, i, i_n, i_c, i_h, i_w = words(task, 15)
        n, c, h, w, rows, columns, a, b, a_step, b_step, above, left, a_inside, b_inside, parts = words(task + 120, 15)
        window, dilation = (a, b), (a_inside, b_inside)
        lanes = way(task)
        planes = 1 if lanes == TOGETHER else c
        lines = n * planes * rows
        line, end = number * lines // parts, (number + 1) * lines // parts
        row, plane = line % rows, line // rows
        image, channel = plane // planes, plane % planes
        for _ in range(line, end):
            top = row * a_step - above
            source = x + image * x_n + channel * x_c
            target = y + image * y_n + channel * y_c + row * y_h
            places = i + image * i_n + channel * i_c + row * i_h
            of_x, of_y, of_i = (source, x_c, x_h, x_w), (target, y_c, y_h, y_w), (places, i_c, i_h, i_w)
            if lanes == ALONG:
                along(source, x_h, target, y_w, places, i_w, h, w, columns, window, b_step, left, dilation, top)
            elif lanes == ACROSS and b_step == 1:
                by_one(source, x_h, target, places, h, w, columns, window, left, dilation, top)
            elif lanes == ACROSS:
                by_two(source, x_h, target, places, h, w, columns, window, left, dilation, top)
            elif lanes == TOGETHER:
                at_each(of_x, of_y, of_i, c, h, w, columns, window, b_step, left, dilation, top)
            else:
                one_by_one(of_x, of_y, of_i, 1, h, w, columns, window, b_step, left, dilation, top)
            row += 1
            if row == rows:
                row = 0
                channel += 1
                if channel == planes:
                    channel = 0
                    image += 1

    part_address = callback_address(part, 2)

    def kernel(task):
        n, c = words(task + 120, 2)
        rows, columns, a, b = words(task + 152, 4)
        planes = n if way(task) == TOGETHER else n * c
        parts = parts_of(planes * rows, n * c * rows * columns * a * b, GRAIN)
        write_words(task + PARTS, (parts,))
        status = enter_default_float_status()
        in_parallel(part_address(), task, parts)
        leave_float_status(status)
        return 0

    return kernel


def backward(dtype: str, vector_bytes: int):
    """The kernel for gradients of type `dtype`; those of float16 and bfloat16 are added up as float32.

    Its task in words: dy and the indices, each with its steps along n, c, h and w; dx with its steps along n and c and
    from one element of a plane to the next; n, c; elements of a plane; rows and columns of dy; last four words for itself.
    """
    element = ELEMENTS[dtype]
    wide = widened(Vector(element, 1)).element
    DY, SIZE = size_of(element), size_of(wide)
    LANES = vector_bytes // SIZE
    load, load_sum = load_operands([(element, False)], 1, True, partial=False), load_row(wide, 1)
    zero, zero_row, store_zeros = zeros(wide, 1, 1), zeros(wide, 1, LANES), store_lanes(LANES)

    @register_jitable
    def clear(place, step, count):
        if step == SIZE:
            for i in range(0, count, LANES):
                store_zeros(place + i * SIZE, zero_row()[0], count - i)
        else:
            for i in range(count):
                store(place + i * step, 0, zero()[0])

    @register_jitable
    def add(place, gradient):
        store(place, 0, load_sum(place) + load((gradient,), 0, 0)[0])

    @register_jitable
    def scatter(task, number, block, blocks):
        dy, dy_n, dy_c, dy_h, dy_w, i, i_n, i_c, i_h, i_w, dx, dx_n, dx_c, dx_step = words(task, 14)
        c, size, rows, columns = words(task + 120, 4)
        image, first = number // blocks, number % blocks * block
        count = smaller(block, c - first)
        dy += image * dy_n + first * dy_c
        i += image * i_n + first * i_c
        dx += image * dx_n + first * dx_c
        if count == 1:
            clear(dx, dx_step, size)
        else:
            for place in range(size):
                clear(dx + place * dx_step, dx_c, count)
        if count == 1 and dy_w == DY and dy_h == columns * DY and i_w == 8 and i_h == columns * 8 and dx_step == SIZE:
            for k in range(rows * columns):
                add(dx + SIZE * read_word(i + 8 * k), dy + DY * k)
            return
        for row in range(rows):
            for column in range(columns):
                for k in range(count):
                    place = dx + k * dx_c + dx_step * read_word(i + row * i_h + column * i_w + k * i_c)
                    add(place, dy + row * dy_h + column * dy_w + k * dy_c)

    def part(task, number):
        count, block, blocks, parts = words(task + 8 * 19, 4)
        for piece in range(number * count // parts, (number + 1) * count // parts):
            scatter(task, piece, block, blocks)

    part_address = callback_address(part, 2)

    def kernel(task):
        dx_c, dx_step, n, c, size, rows, columns = words(task + 96, 7)
        block = CHANNELS if dx_c == SIZE and dx_step != SIZE else 1
        blocks = ceil(c, block)
        parts = parts_of(n * blocks, n * c * (size + rows * columns), GRAIN)
        write_words(task + 8 * 19, (n * blocks, block, blocks, parts))
        status = enter_default_float_status()
        in_parallel(part_address(), task, parts)
        leave_float_status(status)
        return 0

    return kernel
