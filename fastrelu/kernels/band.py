"""The band of a part of a convolution: a copy of what the part needs of its input, with the zeros around it.

For each channel it holds, one after the other, the phases of the rows and within these the phases of the columns: the rows
(or columns) whose number leaves the same remainder when divided by the stride. Neighbouring positions of the output then
read neighbouring elements, for each tap at an offset of its own. A phase has the rows of each image of the part. The copy has
the type of the sums; dz = f'(dy, y) is formed while it is copied.
"""

from numba.extending import register_jitable

from fastrelu.kernels.gradient import OPERAND, PLACE, form_block
from fastrelu.kernels.memory import (
    call_address,
    copy_element,
    larger,
    read_word,
    smaller,
    stack,
    words,
    write_word,
    write_words,
)
from fastrelu.kernels.packing import pack_block
from fastrelu.native.plan import BAND, FORM, LOWEST, PACK, PHASES, ROWS, SECOND, SIZES, SOURCE, TYPE

# Bytes of a row from which on it is faster to write the zeros beside each row than those of a whole channel before.
LONG_ROW = 128
# Columns of dz that are formed at once: the scratch memory has room for one row of them.
FORMED_COLUMNS = 4096


@register_jitable
def _zero(address, nbytes):
    """Zeros in `nbytes` bytes, a multiple of 4."""
    if nbytes & 4:
        nothing = stack(8)
        write_word(nothing, 0)
        copy_element(address, nothing, 4)
        address += 4
        nbytes -= 4
    for at in range(0, nbytes, 8):
        write_word(address + at, 0)


@register_jitable
def _inside(first, stride, phase, count, size):
    """Which of `count` rows from number `first` of a phase on lie in an image of `size` rows: the first, and the one after
    the last.
    """
    low, high = smaller(larger(-first, 0), count), count
    if (first + count - 1) * stride + phase >= size:  # seldom, and a division takes long
        high = larger((size - phase + stride - 1) // stride - first, low)
    return low, high


@register_jitable
def _copy(plan, scratch, source, second, alpha, steps, second_steps, rows, columns, target, target_row):
    """Rows of one phase of one channel of one image, or of dz."""
    row, step = steps
    form = read_word(plan + FORM)
    pack, pack_sums = words(plan + PACK, 2)
    if form == 0:
        pack_block(pack, source, row, step, rows, columns, target, target_row)
        return
    IN, SIZE = words(plan + TYPE, 2)
    operand = stack(OPERAND)
    write_words(operand, (form, pack, pack_sums, source, row, step, second))
    write_words(operand + 56, second_steps)
    write_words(operand + 72, (0, alpha, 0, IN, SIZE))
    for j in range(0, columns, FORMED_COLUMNS):
        count = smaller(FORMED_COLUMNS, columns - j)
        most = PLACE // ((count * SIZE + 127) & -64)
        for i in range(0, rows, most):
            place = target + i * target_row + j * SIZE
            form_block(operand, scratch, i, j, smaller(most, rows - i), count, place, target_row, 0, True)


@register_jitable
def _surround(target, pitch, rows, first, count, left, right):
    """Zeros around `count` rows from number `first` on, from byte `left` to byte `right` of each."""
    if count == 0:
        _zero(target, rows * pitch)
        return
    _zero(target, first * pitch + left)
    end = first + count - 1
    for r in range(first, end):
        _zero(target + r * pitch + right, pitch - right + left)
    _zero(target + end * pitch + right, (rows - end) * pitch - right)


@register_jitable
def copy_band(plan, scratch, source, second, alpha, images, place, extent, band):
    """Copy what positions from row and column `place` on, `extent` of them, need of `images` images, whose first element
    stands at `source` and, of what tells the derivative, at `second`.
    """
    image_step, channel_step, row_step, step, height, width, _ = words(plan + SOURCE, 7)
    second_image, second_channel, second_row, second_step = words(plan + SECOND, 4)
    channels = read_word(plan + SIZES + 16)
    row_phases, row_list, column_phases, column_list, row_stride, column_stride = words(plan + PHASES, 6)
    row_low, row_span, column_low, column_span = words(plan + LOWEST, 4)
    channel_pitch, row_phase_pitch, column_phase_pitch, image_pitch, pitch = words(plan + BAND + 8, 5)
    SIZE = read_word(plan + TYPE + 8)
    i, j = place[0] + row_low, place[1] + column_low
    rows, columns = extent[0] + row_span, extent[1] + column_span
    steps = row_stride * row_step, column_stride * step
    second_steps = row_stride * second_row, column_stride * second_step
    form, IN = read_word(plan + FORM), read_word(plan + TYPE)
    rows_function = read_word(plan + ROWS)
    is_known = column_phases == column_stride and (column_stride == 2 or column_stride == 4)
    if is_known and rows_function != 0 and form == 0 and step == IN:
        task = stack(88)
        for c in range(channels):
            for f in range(row_phases):
                first, last = _inside(i, row_stride, read_word(row_list + 8 * f), rows, height)
                start = c * channel_step + (i * row_stride + read_word(row_list + 8 * f)) * row_step
                target = band + c * channel_pitch + f * row_phase_pitch
                for image in range(images):
                    write_words(task, (source + image * image_step + start, steps[0], rows, first, last, columns))
                    write_words(task + 48, (j * column_stride, width, target + image * image_pitch, pitch, column_phase_pitch))
                    call_address(rows_function, task, column_stride)
        return
    # Where a copy goes row by row, and fills the rest of its vectors with zeros, all the others can be written before it.
    is_simple = pitch < LONG_ROW and form == 0 and (steps[1] == IN or steps[1] == 2 * IN)
    for c in range(channels):
        if is_simple:
            _zero(band + c * channel_pitch, channel_pitch)
        for f in range(row_phases):
            row_phase = read_word(row_list + 8 * f)
            first, last = _inside(i, row_stride, row_phase, rows, height)
            ih = (i + first) * row_stride + row_phase
            for g in range(column_phases):
                column_phase = read_word(column_list + 8 * g)
                low, high = _inside(j, column_stride, column_phase, columns, width)
                iw = (j + low) * column_stride + column_phase
                count = last - first if high > low else 0
                for image in range(images):
                    target = band + c * channel_pitch + f * row_phase_pitch + g * column_phase_pitch + image * image_pitch
                    start = target + first * pitch + low * SIZE
                    if count > 0:
                        element = source + image * image_step + c * channel_step + ih * row_step + iw * step
                        y = 0
                        if second != 0:
                            y = second + image * second_image + c * second_channel + ih * second_row + iw * second_step
                        _copy(plan, scratch, element, y, alpha, steps, second_steps, count, high - low, start, pitch)
                    if not is_simple:
                        _surround(target, pitch, rows, first, count, low * SIZE, high * SIZE)
