"""y = f(conv2d(x, w) + b), and dx: products of a weight and of patches that are formed panel by panel.

``convolution``  what Python calls: divides the work among threads as its plan says
``_part``        some rows of the weight and some positions: copies the band that it needs, then loops over groups and grids
``_grid``        results that read the same taps: loops over panels
``_panel``       all sums of a panel: the loop over blocks of `KC` terms, with the micro-kernels of `fastrelu.kernels.linear`
``_list``        which neighbouring positions a panel has
``_few_rows``    the same for a few rows
``_deliver``     results that the micro-kernel could not store where they belong

Rows are output channels and columns are positions, flattened over images, rows and columns; vectors run along positions. The
sums of an element are those of `fastrelu.kernels.linear`, with terms in the order channel, row and column of the kernel.
The words of a plan are listed in `fastrelu.native.plan`.
"""

from numba.extending import register_jitable

from fastrelu.kernels.band import copy_band
from fastrelu.kernels.gradient import GRADIENT_SCRATCH
from fastrelu.kernels.memory import (
    atomic_add,
    call_address,
    callback_address,
    copy_element,
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
from fastrelu.kernels.packing import pack_block
from fastrelu.kernels.panels import PANEL_BYTES, SCRATCH
from fastrelu.kernels.patches import PIECE
from fastrelu.kernels.scratch import free, malloc, return_scratch, take_scratch
from fastrelu.kernels.slabs import DONE, FAILED, run
from fastrelu.native.plan import (
    BAND,
    DELIVER,
    FEW_ROWS,
    FINISH,
    FLAT,
    GRID,
    GRIDS,
    MOST_ROWS,
    OUT,
    PACK,
    PARTS,
    PATCHES,
    PHASES,
    SECOND,
    SIZES,
    SOURCE,
    SUMS_BYTES,
    TILES,
    TILING,
    TYPE,
)
from fastrelu.operations import KC

# A call: its plan; x, what tells the derivative and the weight; the two words of `fastrelu.kernels.slabs.run`; and then
BIAS = 48  # bias, alpha, y, what the results are added to

# A thread's memory: a panel of patches, biases, sums, alpha, blocks of dz, the band.
_START = KC * PANEL_BYTES
_TOTAL = _START + MOST_ROWS * PANEL_BYTES
_ALPHA = _TOTAL + MOST_ROWS * PANEL_BYTES
_GRADIENT = _ALPHA + SUMS_BYTES
_BAND = _GRADIENT + GRADIENT_SCRATCH

# Bytes of the lists of pieces and of segments: a panel has up to 64 columns.
_LIST = 64 * PIECE


@register_jitable
def _panel_width(columns, narrow, wide):
    """The lanes of the next panel where `columns` are left: a wide one that is not full is faster than three narrow ones."""
    return wide if 2 * columns > wide else narrow


@register_jitable
def _split(source, column, run, lanes, size, pieces, piece):
    """List the pieces of a run of neighbouring positions, vector by vector of the panel; returns how many there are now."""
    while run > 0:
        shown = smaller(run, lanes - column % lanes)
        write_words(pieces + PIECE * piece, (source, column, shown))
        piece += 1
        source += shown * size
        column += shown
        run -= shown
    return piece


@register_jitable
def _list(plan, first, columns, width, extent, pieces, segments):
    """List the pieces of a panel, and the segments of y that it fills: offset, first column, columns.

    Returns how many there are of both.
    """
    rows, row = extent
    LANES, SIZE = read_word(plan + TILING + 24), read_word(plan + TYPE + 8)
    image_pitch, pitch = words(plan + BAND + 32, 2)
    out_image, _, out_row, out_step, _, is_dense = words(plan + OUT, 6)
    image, i, j = first // (rows * row), first // row % rows, first % row
    at = piece = segment = 0
    while at < columns:
        run = smaller(row - j, columns - at)
        source = image * image_pitch + i * pitch + j * SIZE
        piece = _split(source, at, run, LANES, SIZE, pieces, piece)
        if at == 0 or not is_dense or (i == 0 and j == 0):
            out = image * out_image + i * out_row + j * out_step
            write_words(segments + PIECE * segment, (out, at, run))
            segment += 1
        else:
            last = segments + PIECE * (segment - 1) + 16
            write_word(last, read_word(last) + run)
        at += run
        j += run
        if j == row:
            j = 0
            i += 1
            if i == rows:
                i = 0
                image += 1
    for empty in range(at + -at % LANES, width, LANES):
        write_words(pieces + PIECE * piece, (0, empty, 0))
        piece += 1
    return piece, segment


@register_jitable
def _list_flat(plan, first, width, images, extent, pieces, segments):
    """The same if gaps of the band take part: `first` counts them as positions."""
    rows, row = extent
    LANES, SIZE = read_word(plan + TILING + 24), read_word(plan + TYPE + 8)
    image_pitch, pitch = words(plan + BAND + 32, 2)
    out_image, _, out_row, out_step, _, is_dense = words(plan + OUT, 6)
    is_dense = is_dense and pitch == row * SIZE
    source = first * SIZE
    image, i, j = source // image_pitch, source % image_pitch // pitch, source % pitch // SIZE
    at = piece = segment = 0
    while at < width and image < images:
        run = smaller(row - j, width - at)
        if run > 0 and i < rows:
            piece = _split((first + at) * SIZE, at, run, LANES, SIZE, pieces, piece)
            if at == 0 or i == 0 or not is_dense:
                write_words(segments + PIECE * segment, (image * out_image + i * out_row + j * out_step, at, run))
                segment += 1
            else:
                last = segments + PIECE * (segment - 1) + 16
                write_word(last, read_word(last) + run)
        at += pitch // SIZE - j
        j = 0
        i += 1
        if i * pitch == image_pitch:
            i = 0
            image += 1
    return piece, segment


@register_jitable
def _deliver(plan, segments, count, sums, row, rows, y, held, alpha):
    """Bring results from where the micro-kernel stored them to where they belong."""
    SIZE = read_word(plan + TYPE + 8)
    out_channel, _, out_step = words(plan + OUT + 8, 3)
    finish, deliver = read_word(plan + FINISH), read_word(plan + DELIVER)
    task = stack(88)
    for i in range(count):
        out, first, columns = words(segments + PIECE * i, 3)
        source = sums + first * SIZE
        if finish != 0:
            write_words(task, (source, row, y + out, out_channel, rows, columns, alpha, 0, 0, 0))
            call_address(finish, task, 0)
        else:
            place = held + out if held != 0 else 0
            write_words(task, (source, row, SIZE, place, out_channel, out_step, y + out, out_channel, out_step))
            write_words(task + 72, (rows, columns))
            call_address(deliver, task, 0)


@register_jitable
def _panel(plan, grid, scratch, a, rows, origin, origin_place, first, columns, width, images, extent, y, held, has_bias):
    """All results of one panel."""
    MR, NARROW, NR = words(plan + TILING, 3)
    IN, SIZE = words(plan + TYPE, 2)
    k, offsets = words(grid, 2)
    out_channel, _, out_step = words(plan + OUT + 8, 3)
    pieces, segments, block, soon, task = stack(_LIST), stack(_LIST), stack(160), stack(24), stack(64)
    table, gathering_table, is_stored = words(plan + TILES, 3)
    is_flat, limit = words(plan + FLAT, 2)
    gathers = is_flat and (limit == 0 or origin_place + (first + width) * SIZE <= limit)
    if is_flat:
        count, places = _list_flat(plan, first, width, images, extent, pieces, segments)
    else:
        count, places = _list(plan, first, columns, width, extent, pieces, segments)
    if places == 0:
        return
    table = (gathering_table if gathers else table) + (MR * 8 if width > NARROW else 0)
    is_direct = places == 1 and out_step == IN and IN == SIZE and held == 0 and is_stored and read_word(segments + 8) == 0
    row = width * SIZE
    total = scratch + _TOTAL
    target, target_row, shown = total, row, width
    if is_direct:
        target, target_row, shown = y + read_word(segments), out_channel, read_word(segments + 16)
    write_words(soon, (0, 0, 0))
    whole, rest = rows // MR, rows % MR
    p = 0
    while True:
        terms = smaller(KC, k - p)
        b, b_step = scratch, row
        if gathers:
            b, b_step = origin + first * SIZE, offsets + 8 * p
        else:
            write_words(task, (origin, pieces, count, offsets + 8 * p, terms, scratch, row))
            call_address(read_word(plan + PATCHES), task, 0)
        start, start_row = scratch + _START, NR * SIZE
        place = a + p * SIZE
        write_words(block, (place, k * SIZE, SIZE, b, b_step, terms, soon, 0))
        write_words(block + 64, (p == 0 and has_bias, p > 0, p + terms >= k, start, start_row, total, row))
        write_words(block + 120, (scratch + _ALPHA, target, target_row, shown))
        if whole > 0:
            call_address(read_word(table + 8 * MR - 8), block, whole)
        if rest > 0:
            done = whole * MR
            write_word(block, place + done * k * SIZE)
            write_words(block + 88, (start + done * start_row, start_row, total + done * row))
            write_word(block + 128, target + done * target_row)
            call_address(read_word(table + 8 * rest - 8), block, 1)
        p += terms
        if p >= k:
            break
    if not is_direct:
        _deliver(plan, segments, places, total, row, rows, y, held, scratch + _ALPHA)


@register_jitable
def _fill(place, value, size, count):
    """Write the element at `value` `count` times, an even number."""
    pair = stack(8)
    copy_element(pair, value, size)
    if size == 4:
        copy_element(pair + 4, value, size)
    for at in range(0, count * size, 8):
        write_word(place + at, read_word(pair))


@register_jitable
def _few_rows(plan, grid, scratch, a, rows, origin, positions, images, extent, y, held, bias):
    """All results of a part with a few rows, gaps included, in long tiles; then those that are none of gaps."""
    MR, NARROW, NR = words(plan + TILING, 3)
    SIZE = read_word(plan + TYPE + 8)
    k, offsets = words(grid, 2)
    image_pitch, pitch = words(plan + BAND + 32, 2)
    out_image, out_channel, out_row, out_step = words(plan + OUT, 4)
    finish, deliver = words(plan + FINISH, 2)
    lanes, table = NR, read_word(plan + TILES + 8) + (MR * 8 if NR > NARROW else 0)
    if positions > NR:
        lanes, table = read_word(plan + TILING + 24 + 8 * rows), table + MR * 8
    start, total, row = scratch + _START, scratch + _TOTAL, (positions + lanes) * SIZE
    block, soon, task = stack(160), stack(24), stack(88)
    if bias != 0:
        for i in range(rows):
            _fill(start + i * lanes * SIZE, bias + i * SIZE, SIZE, lanes)
    write_words(soon, (0, 0, 0))
    write_words(block, (a, k * SIZE, SIZE, origin, offsets, k, soon, 0))
    write_words(block + 64, (bias != 0, 0, 1, start, lanes * SIZE, 0, 0))
    for first in range(0, positions, lanes):
        write_word(block + 24, origin + first * SIZE)
        write_words(block + 120, (scratch + _ALPHA, total + first * SIZE, row, lanes))
        call_address(read_word(table + 8 * rows - 8), block, 1)
    for image in range(images):
        for i in range(rows):
            source, to = total + i * row + image * image_pitch, i * out_channel + image * out_image
            if finish != 0:
                write_words(task, (source, pitch, y + to, out_row, extent[0], extent[1], scratch + _ALPHA, 0, 0, 0))
                call_address(finish, task, 0)
            else:
                place = held + to if held != 0 else 0
                write_words(task, (source, pitch, SIZE, place, out_row, out_step, y + to, out_row, out_step))
                write_words(task + 72, extent)
                call_address(deliver, task, 0)


@register_jitable
def _grid(plan, grid, scratch, a, rows, origin, origin_place, images, extent, y, held, bias):
    """The results of one grid of a part."""
    NARROW, NR = words(plan + TILING + 8, 2)
    SIZE = read_word(plan + TYPE + 8)
    image_pitch, pitch = words(plan + BAND + 32, 2)
    is_flat = read_word(plan + FLAT)
    positions = images * extent[0] * extent[1]
    if is_flat:
        positions = ((images - 1) * image_pitch + (extent[0] - 1) * pitch) // SIZE + extent[1]
    if rows <= FEW_ROWS and not read_word(plan + BAND) and is_flat and read_word(grid) <= KC:
        _few_rows(plan, grid, scratch, a, rows, origin, positions, images, extent, y, held, bias)
        return
    if bias != 0:
        pack_block(read_word(plan + PACK + 8), bias, SIZE, 0, rows, NR, scratch + _START, NR * SIZE)
    first = 0
    while first < positions:
        lanes = _panel_width(positions - first, NARROW, NR)
        columns = smaller(lanes, positions - first)
        panel = first, columns, lanes, images, extent
        _panel(plan, grid, scratch, a, rows, origin, origin_place, *panel, y, held, bias != 0)
        first += columns


@register_jitable
def _calculate(job, index, scratch):
    """One part."""
    plan, x, second, weight = words(job, 4)
    bias, alpha, y, held = words(job + BIAS, 4)
    NR = read_word(plan + TILING + 16)
    SIZE = read_word(plan + TYPE + 8)
    image_step, _, row_step, step, _, _, group_step = words(plan + SOURCE, 7)
    second_image, second_group = read_word(plan + SECOND), read_word(plan + SECOND + 32)
    out_image, out_channel, out_row, out_step, out_group = words(plan + OUT, 5)
    m, groups, _, images = words(plan + SIZES, 4)
    grids, grid_list = words(plan + GRIDS, 2)
    is_in_place = read_word(plan + BAND)
    some_images, some_rows, some_columns, row_parts, column_parts, places, some_channels, channel_parts, some_groups = words(
        plan + PARTS, 9
    )
    stride = read_word(plan + PHASES + 32)
    m0 = index % channel_parts * some_channels
    index //= channel_parts
    place = index % places
    group = index // places * some_groups
    j0 = place % column_parts * some_columns
    place //= column_parts
    i0 = place % row_parts * some_rows
    image0 = place // row_parts * some_images
    rows = smaller(some_channels, m - m0)
    part_images = smaller(some_images, images - image0)
    # The first grid is the largest.
    height, width = words(grid_list + 32, 2)
    extent = smaller(some_rows, height - i0), smaller(some_columns, width - j0)
    lanes_of_alpha = NR
    if rows <= FEW_ROWS:  # long tiles take it as a row, and so does what delivers a whole row of results
        lanes_of_alpha = larger(larger(NR, read_word(plan + TILING + 24 + 8 * rows)), extent[1] + 1 & -2)
    _fill(scratch + _ALPHA, alpha, SIZE, lanes_of_alpha)
    for g in range(group, smaller(group + some_groups, groups)):
        source = x + image0 * image_step + g * group_step
        origin_place = i0 * stride * row_step + j0 * step
        origin = source + origin_place
        if not is_in_place:
            origin = scratch + _BAND
            other = second + image0 * second_image + g * second_group if second != 0 else 0
            copy_band(plan, scratch + _GRADIENT, source, other, alpha, part_images, (i0, j0), extent, origin)
        channel = g * m + m0
        out = g * out_group + m0 * out_channel + image0 * out_image + i0 * out_row + j0 * out_step
        its_bias = bias + channel * SIZE if bias != 0 else 0
        for grid in range(grid_list, grid_list + grids * GRID, GRID):
            k, _, weight_start, start, height, width = words(grid, 6)
            its_extent = smaller(some_rows, height - i0), smaller(some_columns, width - j0)
            if its_extent[0] > 0 and its_extent[1] > 0:
                a = weight + weight_start + channel * k * SIZE
                to = y + out + start, held + out + start if held != 0 else 0
                _grid(plan, grid, scratch, a, rows, origin, origin_place, part_images, its_extent, *to, its_bias)


@register_jitable
def _part(job, index):
    done = read_word(job + DONE)
    if read_byte(done + index):
        return
    needed = _BAND + read_word(read_word(job) + BAND + 48)
    memory = take_scratch(SCRATCH + 64) if needed <= SCRATCH else malloc(needed + 64)
    if memory == 0:
        atomic_add(job + FAILED, 1)
        return
    _calculate(job, index, (memory + 63) & -64)
    return_scratch(memory)
    write_byte(done + index, 1)


_part_address = callback_address(_part, 2)


def build(vector_bytes: int):
    """The function (call), which returns how many parts there was no memory for."""

    def convolution(job):
        parts = read_word(read_word(job) + PARTS + 72)
        done = malloc(parts)
        if done == 0:
            return 1
        write_word(job + DONE, done)
        status = enter_default_float_status()
        failed = run(_part_address(), job, parts, parts == 1)
        leave_float_status(status)
        free(done)
        return failed

    return convolution
