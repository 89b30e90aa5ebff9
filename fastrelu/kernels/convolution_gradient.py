"""The gradients of a convolution's weight and bias: sums over the positions of all images.

``build``       the routine, which divides the sums among threads
``_tile``       a part of it: some rows and columns of dw, over all positions
``_slab``       another kind: all of dw, over one block of positions (`fastrelu.kernels.slabs` says why)
``_add_together``  the same where groups have few outputs: those of several groups stand side by side
``_add_block``  one block of positions: forms dz, copies patches, and leaves the sums to the micro-kernel
``_ask``        what the next block needs, for the micro-kernel to fetch meanwhile
``_split``      where the positions of a block stand in the images
``_fill``       the band: what these need of x, padded by zeros

The product is patches @ dz. A row of patches is what one tap (c, kh, kw) sees at each position (image, oh, ow), and a last row
of ones makes db. A column of dz is an output channel. The result is transposed as it is delivered.

Each output position reads its taps from the band: there a row of x stands padded, and with a stride of s columns as s rows,
each with every s-th column, so that neighbours of the output are neighbours there too.
"""

from numba.extending import register_jitable

from fastrelu.kernels.gradient import GRADIENT_SCRATCH, OPERAND, PLACE, form_block
from fastrelu.kernels.grouped_gradient import AT_ONCE
from fastrelu.kernels.linear import STRIDE
from fastrelu.kernels.matrix import SERIAL
from fastrelu.kernels.memory import (
    atomic_add,
    call_address,
    callback_address,
    ceil,
    enter_default_float_status,
    larger,
    leave_float_status,
    read_byte,
    read_word,
    smaller,
    stack,
    store,
    words,
    write_byte,
    write_word,
    write_words,
)
from fastrelu.kernels.packing import pack_block, panel_width
from fastrelu.kernels.panels import COPY_GROUP, GAP, PANEL_BYTES, SCRATCH
from fastrelu.kernels.pool import thread_limit
from fastrelu.kernels.scratch import free, malloc, return_scratch, take_scratch
from fastrelu.kernels.slabs import DONE, FAILED, JOB, SLABS, SLABS_PER_THREAD, add_slabs, run
from fastrelu.kernels.tile import load_row, zeros
from fastrelu.kernels.vector import ELEMENTS
from fastrelu.operations import KC

# Offsets in bytes into the problem, which `fastrelu.native.convolution_gradient` writes.
X = 0  # address; steps between images, channels, rows, columns; whether a plane is one row of positions
DY = 48  # address; steps between images, channels, positions; positions of an image
Y = 88  # address; the same steps
ALPHA = 120
DW = 128  # address, and of what it is added to
DB = 144
INPUT = 160  # images, groups, channels of a group, height, width
OUTPUT = 200  # channels of a group, height, width
KERNEL = 224  # height, width, strides, padding at the top and the left, dilations
KIND = 288  # rows of a tile, lanes of the narrowest and the widest, bytes of an element and of a sum
PARTS = 328  # packing, micro-kernels, forming of dz, delivery, adding of sums, packing of sums; the address of a one
TOGETHER = 384  # both parts of `fastrelu.kernels.grouped_gradient` if all groups count as one; outputs of one of them

LINE = 64
# Output rows from which on every row has a piece of the band of its own.
LONG = 64
# Rows of patches at a time, in bytes of a column: with a group of panels they fit the second-level cache.
PATCH_BYTES = 768
# Rows of dw that are worth a part of their own, for which all of dz has to be formed once more.
GOOD_ROWS = 96

# Bytes of a list of what will be needed next: of dy, y and x the pieces of 64 bytes that a block has in so many images.
IMAGES = 2
SOON = 24 * (3 * (8 * KC // LINE + IMAGES) + 1)

# After the words of a job, which begin with those of its kind: blocks of positions, and rows with the one of ones.
_JOB = JOB + 16

# What the micro-kernel for several groups is told.
_ADD = 72 + 8 * AT_ONCE

# A thread's scratch memory.
RUN, PIECE = 24, 48
_RUNS = 0
_PIECES = _RUNS + KC * RUN
_PATCHES = _PIECES + KC * PIECE
PATCHES_BYTES = PATCH_BYTES // 4 * (4 * KC + GAP)
_DZ = _PATCHES + PATCHES_BYTES
_SUMS = _DZ + COPY_GROUP * PANEL_BYTES * KC
SUM_BYTES = 384 * COPY_GROUP * PANEL_BYTES
_GRADIENT = _SUMS + SUM_BYTES
_BAND = _GRADIENT + GRADIENT_SCRATCH
BAND_BYTES = SCRATCH - _BAND

_load_line = load_row(ELEMENTS["float32"], LINE // 4)
_zero_line = zeros(ELEMENTS["float32"], 1, LINE // 4)


@register_jitable
def _copy(source, target, nbytes):
    """Copy, up to a line beyond the end."""
    for at in range(0, nbytes, LINE):
        store(target + at, 0, _load_line(source + at))


@register_jitable
def _clear(target, nbytes):
    """Zeros, up to a line beyond the end."""
    for at in range(0, nbytes, LINE):
        store(target + at, 0, _zero_line()[0])


@register_jitable
def _split(problem, scratch, first, terms):
    """List the runs of a block of positions, which are neighbours in an output row, and the pieces of the band that they need.

    A run is the offset in a channel of the band, the offset in a row of patches, and its length. A piece is the image, the
    first row of x and how many, the first column and how many outputs a row has, and its offset.

    Returns how many runs and pieces there are; the bytes of a phase, a row and a channel of the band; what separates rows of
    the band in x, and taps in the band.
    """
    OH, OW = words(problem + OUTPUT + 8, 2)
    KH, KW, row_stride, column_stride, top, left, row_dilation, column_dilation = words(problem + KERNEL, 8)
    SIZE = read_word(problem + KIND + 32)
    is_long = OW >= LONG
    reach = (KW - 1) * column_dilation
    phase = (smaller(OW, KC) + reach // column_stride) * SIZE + LINE
    row = smaller(column_stride, reach + 1) * phase
    runs = pieces = done = offset = start = first_oh = 0
    last = -1
    while done < terms:
        image, place = (first + done) // (OH * OW), (first + done) % (OH * OW)
        oh, ow = place // OW, place % OW
        count = smaller(OW - ow, terms - done)
        if is_long or image != last:
            last_oh = oh if is_long else (smaller(place + terms - done, OH * OW) - 1) // OW
            rows = KH if is_long else (last_oh - oh) * row_stride + (KH - 1) * row_dilation + 1
            column, outputs = (ow, count) if is_long else (0, OW)
            piece = (
                image,
                oh * row_stride - top,
                rows,
                column * column_stride - left,
                outputs + reach // column_stride,
                offset,
            )
            write_words(scratch + _PIECES + pieces * PIECE, piece)
            start, first_oh, last = offset, oh, image
            offset += rows * row
            pieces += 1
        place = start + (oh - first_oh) * row_stride * row + (0 if is_long else ow * SIZE)
        write_words(scratch + _RUNS + runs * RUN, (place, done * SIZE, count * SIZE))
        runs += 1
        done += count
    return runs, pieces, phase, row, offset, row_dilation if is_long else 1, row if is_long else row_dilation * row


@register_jitable
def _fill(problem, scratch, pieces, band, x, x_step, channels, phase, row, channel, unit):
    """Copy what some channels, `x_step` bytes apart, have in the pieces of the band."""
    x_image, _, x_row, x_column = words(problem + X + 8, 4)
    height, width = words(problem + INPUT + 24, 2)
    stride = read_word(problem + KERNEL + 24)
    SIZE, pack = words(problem + KIND + 32, 2)
    for number in range(pieces):
        image, ih, rows, iw, outputs, offset = words(scratch + _PIECES + number * PIECE, 6)
        first_row = smaller(larger(-(ih // unit), 0), rows)
        end_row = larger(smaller((height - 1 - ih) // unit + 1, rows), first_row)
        for number_of_phase in range(row // phase):
            column = iw + number_of_phase
            left = smaller(larger(-(column // stride), 0), outputs)
            right = larger(smaller((width - 1 - column) // stride + 1, outputs), left)
            source = x + image * x_image + (ih + first_row * unit) * x_row + (column + left * stride) * x_column
            target = band + offset + number_of_phase * phase
            for _ in range(channels):
                for i in range(rows):
                    is_inside = first_row <= i < end_row
                    if left > 0 or not is_inside:
                        _clear(target + i * row, (left if is_inside else outputs) * SIZE)
                if left < right and first_row < end_row:
                    task = target + first_row * row + left * SIZE
                    pack_block(pack, source, unit * x_row, stride * x_column, end_row - first_row, right - left, task, row)
                if right < outputs:
                    for i in range(first_row, end_row):
                        _clear(target + i * row + right * SIZE, (outputs - right) * SIZE)
                source += x_step
                target += channel


@register_jitable
def _form(problem, scratch, group, first, terms, j0, j1):
    """Panels of dz for a block of positions and the output channels from `j0` to `j1` of a group."""
    dy, dy_image, dy_channel, dy_position, plane, y, y_image, y_channel, y_position, alpha = words(problem + DY, 10)
    n = read_word(problem + OUTPUT)
    _, NARROW, NR, IN, SIZE, pack, _, form = words(problem + KIND, 8)
    pack_sums = read_word(problem + PARTS + 40)
    operand = stack(OPERAND)
    dy += group * n * dy_channel
    y += group * n * y_channel
    # Mostly positions are neighbours in memory: then dz is formed channel by channel, and transposed once.
    is_transposed = dy_position == IN and dy_channel != IN
    block, pitch = scratch + _GRADIENT + 2 * PLACE, (terms * SIZE + 127) & -64
    j = j0
    while j < j1:
        width = panel_width(j1 - j, NARROW, NR)
        columns, target_row = smaller(width, j1 - j), width * SIZE
        target, done = scratch + _DZ + (j - j0) * KC * SIZE, 0
        while done < terms:
            image, place = (first + done) // plane, (first + done) % plane
            count = smaller(plane - place, terms - done)
            write_words(operand, (form, pack, 0, dy + image * dy_image))
            write_words(operand + 48, (y + image * y_image,))
            write_words(operand + 72, (0, alpha, 0, IN, SIZE))
            if is_transposed:
                write_words(operand + 32, (dy_channel, dy_position))
                write_words(operand + 56, (y_channel, y_position))
                at = block + done * SIZE
                form_block(operand, scratch + _GRADIENT, j, place, columns, count, at, pitch, 0, True)
            else:
                write_words(operand + 32, (dy_position, dy_channel))
                write_words(operand + 56, (y_position, y_channel))
                at = target + done * target_row
                form_block(operand, scratch + _GRADIENT, place, j, count, columns, at, target_row, 0, True)
            done += count
        if is_transposed:
            pack_block(pack_sums, block, SIZE, pitch, terms, columns, target, target_row)
        j += width


@register_jitable
def _ask_planes(soon, a, image_step, channel_step, plane, first, terms, channels, SIZE, piece):
    """Add what some channels have at the positions of a block to a list of what will be needed; returns its new end."""
    done = 0
    for _ in range(IMAGES):
        image, place = (first + done) // plane, (first + done) % plane
        count = smaller(plane - place, terms - done)
        for at in range(0, count * SIZE, piece):
            write_words(soon, (a + image * image_step + place * SIZE + at, channel_step, channels))
            soon += 24
        done += count
    return soon


@register_jitable
def _ask(problem, soon, group, first, j, outputs, r, rows, piece):
    """List what the block of positions from `first` on needs of some output channels, and of rows of a flat x, in pieces;
    returns how many these are. Memory delivers it beside the arithmetic of the block before.
    """
    x, x_image, x_channel, _, x_column = words(problem + X, 5)
    dy, dy_image, dy_channel, dy_position, plane, y, y_image, y_channel, y_position = words(problem + DY, 9)
    images, _, channels = words(problem + INPUT, 3)
    n, OH, OW = words(problem + OUTPUT, 3)
    IN = read_word(problem + KIND + 24)
    terms, begin = smaller(KC, images * OH * OW - first), soon
    if terms > 0 and outputs > 0 and dy_position == IN and dy_channel != IN:
        at = group * n + j
        soon = _ask_planes(soon, dy + at * dy_channel, dy_image, dy_channel, plane, first, terms, outputs, IN, piece)
        if y != 0 and y_position == IN:
            soon = _ask_planes(soon, y + at * y_channel, y_image, y_channel, plane, first, terms, outputs, IN, piece)
    if terms > 0 and rows > 0 and x_column == IN:
        x += (group * channels + r) * x_channel
        soon = _ask_planes(soon, x, x_image, x_channel, OH * OW, first, terms, rows, IN, piece)
    write_words(soon, (0, 0, 0))
    asked = 0
    while begin < soon:
        asked += read_word(begin + 16)
        begin += 24
    return asked


@register_jitable
def _side_by_side(problem, scratch, pieces, shape, c, j, columns, band, lanes):
    """Input channel `c` of the group of each output from `j` on, side by side."""
    phase, row, channel, unit = shape
    x, _, x_channel = words(problem + X, 3)
    channels = read_word(problem + INPUT + 16)
    NARROW, SIZE = read_word(problem + KIND + 8), read_word(problem + KIND + 32)
    pack_sums = read_word(problem + PARTS + 40)
    spread, outputs = words(problem + TOGETHER + 8, 2)
    group = j // outputs
    count = (j + columns - 1) // outputs - group + 1
    step = channels * x_channel
    _fill(problem, scratch, pieces, band, x + group * step + c * x_channel, step, count, phase, row, channel, unit)
    if outputs == 1:
        pack_block(pack_sums, band, SIZE, channel, channel // SIZE, count, lanes, NARROW * SIZE)
    else:
        task = stack(64)
        write_words(task, (band, channel, count, (group + 1) * outputs - j, outputs, channel // SIZE, lanes, NARROW))
        call_address(spread, task, 0)


@register_jitable
def _add_together(problem, scratch, number, r0, r1, j0, j1, sums, sums_row, is_first):
    """The sums of one block of positions, with the outputs of several groups as columns; returns 1 if there was memory."""
    images, _, channels = words(problem + INPUT, 3)
    OH, OW = words(problem + OUTPUT + 8, 2)
    KH, KW, _, column_stride, _, _, _, column_dilation = words(problem + KERNEL, 8)
    NARROW, SIZE = read_word(problem + KIND + 8), read_word(problem + KIND + 32)
    add = read_word(problem + TOGETHER)
    first, taps = number * KC, KH * KW
    terms, k = smaller(KC, images * OH * OW - first), channels * taps
    _form(problem, scratch, 0, first, terms, j0, j1)
    runs, pieces, phase, row, channel, unit, tap_row = _split(problem, scratch, first, terms)
    shape = phase, row, channel, unit
    band, lanes, memory = scratch + _BAND, scratch + _PATCHES, 0
    nbytes = channel * NARROW + LINE
    if nbytes > smaller(BAND_BYTES, PATCHES_BYTES):
        memory = malloc(2 * nbytes)
        if memory == 0:
            return 0
        band, lanes = memory, memory + nbytes
    task = stack(_ADD)
    for j in range(j0, j1, NARROW):
        dz, place = scratch + _DZ + (j - j0) * KC * SIZE, sums + (j - j0) * SIZE
        total = place + (k - r0) * sums_row if r1 > k else 0
        for c in range(smaller(r0, k - 1) // taps, ceil(smaller(r1, k), taps) if r0 < k else channels):
            _side_by_side(problem, scratch, pieces, shape, c, j, smaller(NARROW, j1 - j), band, lanes)
            start, end = larger(r0, c * taps), smaller(r1, (c + 1) * taps)
            for r in range(start, larger(end, start + (total != 0)), AT_ONCE):
                write_words(task, (NARROW * SIZE, dz, NARROW * SIZE, scratch + _RUNS, runs, sums_row, total, is_first))
                write_word(task + 64, place + (r - r0) * sums_row)
                for i in range(AT_ONCE):
                    tap = smaller(r + i, end - 1) % taps
                    shift = tap % KW * column_dilation
                    source = tap // KW * tap_row + shift % column_stride * phase + shift // column_stride * SIZE
                    write_word(task + 72 + 8 * i, lanes + source * NARROW)
                call_address(add, task, larger(smaller(AT_ONCE, end - r), 0))
                total = 0
    if memory != 0:
        free(memory)
    return 1


@register_jitable
def _add_block(problem, scratch, group, number, r0, r1, j0, j1, sums, sums_row, is_first):
    """The sums of one block of positions, for rows and columns of one group; returns 1 if there was memory."""
    if read_word(problem + TOGETHER) != 0:
        return _add_together(problem, scratch, number, r0, r1, j0, j1, sums, sums_row, is_first)
    x, x_image, x_channel, _, x_column, is_flat = words(problem + X, 6)
    images, _, channels = words(problem + INPUT, 3)
    OH, OW = words(problem + OUTPUT + 8, 2)
    KH, KW, _, column_stride, _, _, _, column_dilation = words(problem + KERNEL, 8)
    MR, NARROW, NR, _, SIZE, pack, kernels = words(problem + KIND, 7)
    one = read_word(problem + PARTS + 48)
    taps, k = KH * KW, channels * KH * KW if read_word(problem + DW) != 0 else 0
    first = number * KC
    terms = smaller(KC, images * OH * OW - first)
    x += group * channels * x_channel
    patch_row = KC * SIZE + GAP
    _form(problem, scratch, group, first, terms, j0, j1)
    runs, pieces, phase, row, channel, unit, tap_row = (
        (0, 0, 0, 0, 0, 0, 0) if is_flat else _split(problem, scratch, first, terms)
    )
    band, memory = scratch + _BAND, 0
    if channel + LINE > BAND_BYTES:
        memory = malloc(channel + LINE)
        if memory == 0:
            return 0
        band = memory
    block, soon, nothing = stack(160), stack(SOON), stack(24)
    write_words(nothing, (0, 0, 0))
    r = r0
    while r < r1:
        c = r // taps
        end = smaller(r + PATCH_BYTES // SIZE, r1)
        patches = scratch + _PATCHES
        last = smaller(end, k)
        if is_flat:
            done = 0
            while done < terms and r < last:
                image, place = (first + done) // (OH * OW), (first + done) % (OH * OW)
                count = smaller(OH * OW - place, terms - done)
                source, target = x + image * x_image + r * x_channel + place * x_column, patches + done * SIZE
                pack_block(pack, source, x_channel, x_column, last - r, count, target, patch_row)
                done += count
        elif r < last:
            most = larger((BAND_BYTES - LINE) // channel, 1)
            if (last - 1) // taps - c >= most:
                end = last = (c + most) * taps
            count = (last - 1) // taps - c + 1
            _fill(problem, scratch, pieces, band, x + c * x_channel, x_channel, count, phase, row, channel, unit)
            for i in range(r, last):
                tap = i % taps
                shift = tap % KW * column_dilation
                source = band + (i // taps - c) * channel + tap // KW * tap_row
                source += shift % column_stride * phase + shift // column_stride * SIZE
                target = patches + (i - r) * patch_row
                for j in range(runs):
                    offset, place, nbytes = words(scratch + _RUNS + j * RUN, 3)
                    _copy(source + offset, target + place, nbytes)
        if end > k:
            pack_block(pack, one, 0, 0, 1, terms, patches + (k - r) * patch_row, 0)
        j = j0
        while j < j1:
            lanes = panel_width(j1 - j, NARROW, NR)
            table = kernels + (MR * 8 if lanes > NARROW else 0)
            total = sums + (r - r0) * sums_row + (j - j0) * SIZE
            outputs = smaller(lanes, j1 - j) if r == r0 else 0
            rows = last - r if is_flat and j == j0 else 0
            asked = _ask(problem, soon, group, first + KC, j, outputs, r, rows, larger(lanes * SIZE, LINE))
            whole, rest = (end - r) // MR, (end - r) % MR
            rate = ceil(asked * STRIDE, terms * larger(whole, 1))
            write_words(block, (patches, patch_row, SIZE, scratch + _DZ + (j - j0) * KC * SIZE, lanes * SIZE, terms))
            write_words(block + 48, (soon, rate, 0, not is_first, 0, 0, 0, total, sums_row, 0, 0, 0, 0))
            if whole > 0:
                call_address(read_word(table + 8 * MR - 8), block, whole)
                write_words(block + 48, (nothing, 0))
            if rest > 0:
                write_words(block, (patches + whole * MR * patch_row, patch_row))
                write_words(block + 104, (total + whole * MR * sums_row, sums_row))
                call_address(read_word(table + 8 * rest - 8), block, 1)
            j += lanes
        r = end
    if memory != 0:
        free(memory)
    return 1


@register_jitable
def _deliver(problem, group, r0, r1, j0, j1, sums, sums_row):
    """Bring sums to where they belong: rows of dw, and the last row to db."""
    dw, dw_held, db, db_held = words(problem + DW, 4)
    channels, n = read_word(problem + INPUT + 16), read_word(problem + OUTPUT)
    KH, KW = words(problem + KERNEL, 2)
    IN, SIZE = words(problem + KIND + 24, 2)
    deliver = read_word(problem + PARTS + 24)
    k = channels * KH * KW if dw != 0 else 0
    task = stack(88)
    end = smaller(r1, k)
    if r0 < end:
        place = ((group * n + j0) * k + r0) * IN
        held = dw_held + place if dw_held != 0 else 0
        write_words(task, (sums, sums_row, SIZE, held, IN, k * IN, dw + place, IN, k * IN, end - r0, j1 - j0))
        call_address(deliver, task, 0)
    if r1 > k:
        place = (group * n + j0) * IN
        held = db_held + place if db_held != 0 else 0
        write_words(task, (sums + (k - r0) * sums_row, sums_row, SIZE, held, 0, IN, db + place, 0, IN, 1, j1 - j0))
        call_address(deliver, task, 0)


@register_jitable
def _padded(columns, NARROW, SIZE):
    """Bytes of a row of sums."""
    return ceil(columns, NARROW) * NARROW * SIZE


def _tile(job, index):
    """Some rows and columns of one group, over all positions."""
    problem, part_rows, row_parts, part_columns = words(job, 4)
    done = read_word(job + DONE)
    blocks, rows = words(job + JOB, 2)
    if read_byte(done + index):
        return
    n = read_word(problem + OUTPUT)
    NARROW, SIZE = read_word(problem + KIND + 8), read_word(problem + KIND + 32)
    column_parts = ceil(n, part_columns)
    group, rest = index // (row_parts * column_parts), index % (row_parts * column_parts)
    r0, j0 = rest % row_parts * part_rows, rest // row_parts * part_columns
    r1, j1 = smaller(r0 + part_rows, rows), smaller(j0 + part_columns, n)
    memory, worked = take_scratch(SCRATCH + LINE), 1
    if memory == 0:
        atomic_add(job + FAILED, 1)
        return
    scratch = (memory + LINE - 1) & -LINE
    sums, row = scratch + _SUMS, _padded(j1 - j0, NARROW, SIZE)
    for number in range(blocks):
        worked &= _add_block(problem, scratch, group, number, r0, r1, j0, j1, sums, row, number == 0)
    if worked:
        _deliver(problem, group, r0, r1, j0, j1, sums, row)
        write_byte(done + index, 1)
    else:
        atomic_add(job + FAILED, 1)
    return_scratch(memory)


def _slab(job, index):
    """All groups, over one block of positions."""
    problem, slabs, slab, first = words(job, 4)
    done = read_word(job + DONE)
    _, rows = words(job + JOB, 2)
    if read_byte(done + index):
        return
    groups, n = read_word(problem + INPUT + 8), read_word(problem + OUTPUT)
    _, NARROW, NR, _, SIZE = words(problem + KIND, 5)
    memory, worked = take_scratch(SCRATCH + LINE), 1
    if memory == 0:
        atomic_add(job + FAILED, 1)
        return
    scratch, row = (memory + LINE - 1) & -LINE, _padded(n, NARROW, SIZE)
    for group in range(groups):
        for j0 in range(0, n, NR * COPY_GROUP):
            j1 = smaller(j0 + NR * COPY_GROUP, n)
            sums = slabs + index * slab + group * rows * row + j0 * SIZE
            worked &= _add_block(problem, scratch, group, first + index, 0, rows, j0, j1, sums, row, True)
    if worked:
        write_byte(done + index, 1)
    else:
        atomic_add(job + FAILED, 1)
    return_scratch(memory)


_tile_address = callback_address(_tile, 2)
_slab_address = callback_address(_slab, 2)


@register_jitable
def _in_slabs(problem, job, slab, threads):
    """Divide the positions into blocks, whose sums are added in ascending order; returns 0 if there was memory."""
    groups, n = read_word(problem + INPUT + 8), read_word(problem + OUTPUT)
    NARROW, SIZE = read_word(problem + KIND + 8), read_word(problem + KIND + 32)
    add = read_word(problem + PARTS + 32)
    blocks, rows = words(job + JOB, 2)
    held = smaller(blocks, smaller(larger(SLABS // slab, 2 * threads), SLABS_PER_THREAD * threads))
    memory = malloc((held + 1) * slab + LINE)
    if memory == 0:
        return 1
    total = (memory + LINE - 1) & -LINE
    failed, first = 0, 0
    while first < blocks and failed == 0:
        count = smaller(held, blocks - first)
        write_words(job, (problem, total + slab, slab, first))
        failed = run(_slab_address(), job, count, False)
        add_slabs(add, total, total + slab, slab, count, first == 0, threads)
        first += count
    if failed == 0:
        row = _padded(n, NARROW, SIZE)
        for group in range(groups):
            _deliver(problem, group, 0, rows, 0, n, total + group * rows * row, row)
    free(memory)
    return failed


@register_jitable
def _sum(problem):
    """Divide the sums among threads; returns 0 if there was memory."""
    dw, _, db = words(problem + DW, 3)
    images, groups, channels = words(problem + INPUT, 3)
    n, OH, OW = words(problem + OUTPUT, 3)
    KH, KW = words(problem + KERNEL, 2)
    MR, NARROW, NR, _, SIZE = words(problem + KIND, 5)
    positions = images * OH * OW
    rows, blocks = (channels * KH * KW if dw != 0 else 0) + (db != 0), ceil(positions, KC)
    threads = thread_limit()
    work = groups * rows * n * positions
    part_columns = NR * COPY_GROUP
    column_parts = ceil(n, part_columns)
    most_rows = SUM_BYTES // _padded(smaller(n, part_columns), NARROW, SIZE) // MR * MR
    row_parts, wanted = ceil(rows, most_rows), 1
    if work >= SERIAL and threads > 1:
        wanted = 2 * threads
        row_parts = larger(row_parts, smaller(ceil(wanted, groups * column_parts), rows // GOOD_ROWS))
    slab = (groups * rows * _padded(n, NARROW, SIZE) + LINE - 1) & -LINE
    in_slabs = groups * column_parts * row_parts < wanted and blocks > 1 and slab * threads <= SLABS
    part_rows = ceil(ceil(rows, row_parts), MR) * MR
    row_parts = ceil(rows, part_rows)
    parts = groups * column_parts * row_parts
    most = larger(parts, blocks if in_slabs else 0)
    job, done = stack(_JOB), stack(256)
    if most > 256:
        done = malloc(most)
        if done == 0:
            return 1
    write_words(job, (problem, part_rows, row_parts, part_columns, done, 0))
    write_words(job + JOB, (blocks, rows))
    failed = _in_slabs(problem, job, slab, threads) if in_slabs else run(_tile_address(), job, parts, wanted == 1)
    if most > 256:
        free(done)
    return failed


def build(_vector_bytes: int):
    """The routine (problem), for all types, which arrive as the addresses of their kernels."""

    def weight_gradient(problem):
        status = enter_default_float_status()
        failed = _sum(problem)
        leave_float_status(status)
        return failed

    return weight_gradient
