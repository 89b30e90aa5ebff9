"""How a convolution is divided among threads, and where the words stand that tell its kernel.

Output position r of an axis, tap t of the kernel: the element of the input with number r * stride + taps[t], or 0 where that
lies outside. This holds of conv2d. Of the gradient of its input it holds of each grid of results: if the stride is 2, say, the
even rows and columns, the even rows and odd columns, and so on. All grids read one band.

Importing this module needs neither Numba nor llvmlite.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
import numpy.typing as npt

from fastrelu.native.matrix import Tiling

# Offsets in bytes into a plan. Steps are in bytes; what is 0 is not there.
TILING = 0  # rows, lanes of the narrow and of the wide tile, lanes of a vector, lanes of tiles of 1, 2 and 3 rows
TYPE = 56  # bytes of an element, bytes of a sum
PACK = 72  # packing of the operands' type and of the sums'
PATCHES = 88
TILES = 96  # the micro-kernels for panels, those that gather; whether they store results, else sums
FINISH = 120  # what makes results from sums: either this
DELIVER = 128  # or this, which also adds and reaches any place
FORM = 136  # forming of dz
ROWS = 144  # copy of rows, all phases of the columns at once; 0 if there is none
SOURCE = 152  # of x or dy the steps of images, channels, rows and elements; its rows and columns; the step of groups
SECOND = 208  # of what tells the derivative the steps of images, channels, rows, elements and groups
OUT = 248  # of the results the steps of images, channels, rows, elements and groups; whether rows follow without gaps
SIZES = 296  # rows of the weight of a group, groups, channels of a group, images
GRIDS = 328  # how many and their list
PHASES = 344  # of the rows how many and their list, of the columns how many and their list, strides
LOWEST = 392  # for rows and for columns: the lowest tap, and the distance to the highest, in steps of the stride
BAND = 424  # whether there is none; the pitches of channels, phases of rows, of columns, images and rows; bytes
FLAT = 480  # whether positions are those of the band, gaps included, and nothing is packed; bytes of a channel to read, or 0
PARTS = 496  # of a part the images, rows, columns; how many an image has by rows and columns; how many parts that makes; of a
# part the channels and how many that makes, the groups; how many parts in all
_WORDS = 72

# Bytes of a grid in the list. Its words: terms of a group; the offsets of all terms, from a position of the band on; where its
# weight and where its results begin; rows and columns of its results.
GRID = 48

# Multiply-adds below which a convolution stays on one thread, and those that are worth a part.
SERIAL = 500_000
GRAIN = 1_000_000
PARTS_PER_THREAD = 4
# Panels that a part keeps, and rows of the weight, for the copies to be worth while.
GOOD_PANELS, GOOD_TILES = 4, 8
# Rows of the weight, and bytes of a band, that leave room for the rest in a thread's scratch memory.
MOST_ROWS = 512
BAND_BYTES = 1280 << 10
# What it costs to pack a vector of a panel, in vectors of multiply-adds.
PACK_COST = 6
# And to copy what it is packed from.
COPY_COST = 6
# What a part takes longer than expected.
UNEVEN = 1 / 32
# Channels that stand a multiple of this apart meet in few sets of the caches.
ALIASING = 4096
# With a few rows of the weight, the sums of a whole part wait to be delivered.
FEW_ROWS, SUMS_BYTES = 3, 96 << 10


@dataclass(frozen=True)
class Axis:
    """What an axis of the output reads of that of the input."""

    size: int  # of the output
    source: int  # of the input
    stride: int
    taps: tuple[int, ...]

    @cached_property
    def phases(self) -> list[int]:
        return sorted({tap % self.stride for tap in self.taps})

    @cached_property
    def low(self) -> int:
        return min((tap // self.stride for tap in self.taps), default=0)

    @cached_property
    def span(self) -> int:
        return max((tap // self.stride for tap in self.taps), default=0) - self.low

    @property
    def is_inside(self) -> bool:
        """Whether all positions lie in the input."""
        if not self.taps:
            return False
        return min(self.taps) >= 0 and (self.size - 1) * self.stride + max(self.taps) < self.source

    @property
    def is_identity(self) -> bool:
        return self.taps == (0,) and self.stride == 1 and self.size == self.source


@dataclass(frozen=True)
class Grid:
    """Results that read the same taps: where they begin, in bytes, and their axes."""

    start: int
    rows: Axis
    columns: Axis

    @property
    def taps(self) -> int:
        return len(self.rows.taps) * len(self.columns.taps)


@dataclass(frozen=True)
class Job:
    """The product of a weight and patches: sizes of a group, and steps as the words of a plan have them.

    If there are grids, `rows` and `columns` have the size of the largest and the taps of all.
    """

    rows: Axis
    columns: Axis
    images: int
    groups: int
    channels: int  # of a group
    m: int  # rows of the weight of a group
    source: tuple[int, int, int, int]
    second: tuple[int, int, int, int] | None
    out: tuple[int, int, int, int]
    tiling: Tiling
    threads: int
    grids: tuple[Grid, ...] = ()

    @property
    def all_grids(self) -> tuple[Grid, ...]:
        return self.grids or (Grid(0, self.rows, self.columns),)

    @property
    def taps(self) -> int:
        """Those of all grids."""
        return sum(grid.taps for grid in self.all_grids)


def _even(total: int, most: int) -> int:
    """The size of parts of `total`, none of which has more than `most`."""
    return ceil(total / ceil(total / max(most, 1)))


class _Band:
    """The layout of a band for parts of some images, rows and columns."""

    def __init__(self, job: Job, images: int, rows: int, columns: int):
        size = job.tiling.size
        self.pitch = self._columns(job, columns) * size
        self.image = (rows + job.rows.span) * self.pitch
        self.column_phase = images * self.image
        self.row_phase = len(job.columns.phases) * self.column_phase
        self.channel = len(job.rows.phases) * self.row_phase
        if self.channel % 1024 == 0:
            self.channel += 64  # lest channels meet in few sets of the caches
        # A copy fills whole vectors, and a panel may end behind the last position.
        self.nbytes = job.channels * self.channel + max(job.tiling.wide) * size + 64

    @staticmethod
    def _columns(job: Job, columns: int) -> int:
        """Elements of a row."""
        axis, lanes = job.columns, job.tiling.lanes
        count = columns + axis.span
        step = axis.stride * job.source[3] // job.tiling.in_size
        if job.second is None and (step in (1, 2) or job.source[2] != job.tiling.in_size):
            return count  # rows are copied one after the other
        if columns < axis.size or axis.stride > 1:
            return count + -count % lanes
        left = min(max(-axis.low, 0), count)
        inside = max(min(axis.source - axis.low, count) - left, 0)
        return max(count, left + inside + -inside % lanes)

    def offsets(self, job: Job, grid: Grid) -> npt.NDArray[np.int64]:
        """Those of all terms."""

        def along(axis: Axis, taps: tuple[int, ...], pitch: int, phase: int) -> npt.NDArray[np.int64]:
            steps = (axis.phases.index(t % axis.stride) * phase + (t // axis.stride - axis.low) * pitch for t in taps)
            return np.array([*steps], np.int64)

        rows = along(job.rows, grid.rows.taps, self.pitch, self.row_phase)
        columns = along(job.columns, grid.columns.taps, job.tiling.size, self.column_phase)
        return _sums(self.channel * np.arange(job.channels, dtype=np.int64), rows, columns)


def _sums(*offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Those of each channel, row and column."""
    channels, rows, columns = offsets
    return (channels[:, None, None] + rows[:, None] + columns).ravel()


def _offsets_in_place(job: Job, grid: Grid) -> npt.NDArray[np.int64]:
    """Those of all terms, where the input lies."""
    _, channel, row, step = job.source
    channels = channel * np.arange(job.channels, dtype=np.int64)
    return _sums(channels, row * np.array(grid.rows.taps, np.int64), step * np.array(grid.columns.taps, np.int64))


def _is_in_place(job: Job) -> bool:
    """Whether patches are read where the input lies."""
    has_sums_type = job.tiling.in_size == job.tiling.size and job.source[3] == job.tiling.size
    return has_sums_type and job.second is None and job.columns.stride == 1 and job.rows.is_inside and job.columns.is_inside


def _lanes(positions: int, tiling: Tiling) -> int:
    """Lanes of the panels of so many positions."""
    narrow, wide = tiling.widths[0], tiling.widths[-1]
    whole, rest = divmod(positions, wide)
    return whole * wide + (wide if 2 * rest > wide else rest + -rest % narrow)


def _length(job: Job, images: int, rows: int) -> float:
    """What the thread with most parts calculates, if a part has so many images, or so many rows of one."""
    width = job.columns.size
    parts = ceil(job.images / images) * ceil(job.rows.size / rows)
    multiplied = _lanes(images * rows * width, job.tiling) * (job.m + PACK_COST)
    copied = images * (rows + job.rows.span) * width * COPY_COST
    turns = ceil(parts / job.threads)
    # One thread may be slower than others: more parts even that out.
    return (turns + UNEVEN) * (multiplied + copied)


def _extent(job: Job, in_place: bool, wanted: int) -> tuple[int, int, int]:
    """Images, rows and columns of a part, if `wanted` parts are wanted."""
    rows, columns = job.rows.size, job.columns.size
    plane = rows * columns
    positions = max(ceil(job.images * plane / wanted), 1)

    def fits(images: int, rows: int, columns: int) -> bool:
        if in_place:
            return True
        band = _Band(job, images, rows, columns)
        sums = job.m * ((images - 1) * band.image + (rows - 1) * band.pitch + columns * job.tiling.size)
        return band.nbytes <= BAND_BYTES and (job.m > FEW_ROWS or sums <= SUMS_BYTES)

    def most(limit: int, extent: tuple[int, int, int], axis: int) -> int:
        """How many fit along an axis, at least 1 and at most `limit`."""
        low, high = 1, limit
        while low < high:
            middle = (low + high + 1) // 2
            tried = list(extent)
            tried[axis] = middle
            if fits(*tried):
                low = middle
            else:
                high = middle - 1
        return low

    if positions >= plane and fits(1, rows, columns):
        limit = most(min(job.images, positions // plane), (1, rows, columns), 0)
        return min(range(limit, max((limit - 1) // 4, limit - 64), -1), key=lambda n: _length(job, n, rows)), rows, columns
    if fits(1, 1, columns) and (positions >= columns or rows > 1):
        limit = most(max(min(rows, 2 * positions // columns), 1), (1, 1, columns), 1)
        return 1, min(range(limit, (limit - 1) // 4, -1), key=lambda n: _length(job, 1, n)), columns
    return 1, 1, _even(columns, most(max(min(columns, positions), 1), (1, 1, 1), 2))


def _rows(job: Job, parts: int) -> int:
    """Rows of the weight of each of so many parts, whole tiles."""
    return ceil(ceil(job.m / parts) / job.tiling.rows) * job.tiling.rows


def _is_flat(job: Job, in_place: bool, band: _Band, extent: tuple[int, int, int]) -> bool:
    """Whether it is faster to multiply gaps of the band as well than to pack panels without them."""
    images, rows, columns = extent
    size = job.tiling.size
    pitch, image = band.pitch, band.image
    if in_place:
        pitch = image = job.rows.stride * job.source[2]
        if images > 1 or job.source[2] != job.columns.source * size or job.source[1] < 0:
            return False
        if job.source[1] % ALIASING == 0 and job.m > job.tiling.rows:
            return False
    positions = ((images - 1) * image + (rows - 1) * pitch) // size + columns
    return _lanes(positions, job.tiling) * job.m < _lanes(images * rows * columns, job.tiling) * (job.m + PACK_COST)


def make(job: Job, addresses: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """The words of a plan, and the arrays that they refer to.

    Parameters
    ----------
    job : Job
        The product.
    addresses : tuple of int
        The words from `PACK` to `ROWS`.
    """
    tiling = job.tiling
    NR, MR = tiling.widths[-1], tiling.rows
    in_place = _is_in_place(job)
    rows, columns = job.rows, job.columns
    source, out = job.source, job.out
    is_dense = out[2] == columns.size * out[3]
    is_plane = rows.is_identity and columns.is_identity and is_dense and source[2] == columns.source * source[3]
    if in_place and is_plane and len(job.all_grids) == 1:
        # Whole planes are rows.
        rows, columns = Axis(1, 1, 1, (0,)), Axis(rows.size * columns.size, rows.size * columns.size, 1, (0,))
        job = replace(job, rows=rows, columns=columns, grids=())
    positions = job.images * rows.size * columns.size
    work = job.groups * job.m * max(job.channels * job.taps, 1) * positions
    wanted = 1
    if work >= SERIAL and job.threads > 1:
        wanted = max(job.threads, min(PARTS_PER_THREAD * job.threads, work // GRAIN))
    images, some_rows, some_columns = _extent(
        job, in_place, max(min(ceil(wanted / job.groups), positions // (GOOD_PANELS * NR)), 1)
    )
    image_parts = ceil(job.images / images)
    row_parts, column_parts = ceil(rows.size / some_rows), ceil(columns.size / some_columns)
    places = image_parts * row_parts * column_parts
    most_parts = min(ceil(wanted / (places * job.groups)), max(job.m // (GOOD_TILES * MR), 1))
    least_parts = ceil(job.m / (MOST_ROWS // MR * MR))

    def length(channel_parts: int) -> int:
        """Rows of the weight that the thread with most parts multiplies, and what their copies cost."""
        return ceil(places * job.groups * channel_parts / job.threads) * (_rows(job, channel_parts) + PACK_COST + COPY_COST)

    channels = _rows(job, min(range(least_parts, max(most_parts, least_parts) + 1), key=length))
    channel_parts = ceil(job.m / channels)
    groups = max(job.groups * places * channel_parts // max(wanted, 1), 1)
    groups = min(groups, job.groups) if wanted > 1 else job.groups
    band = _Band(job, images, some_rows, some_columns)
    flat = _is_flat(job, in_place, band, (images, some_rows, some_columns))
    limit = 0
    if in_place:
        limit = rows.source * source[2] - max(rows.taps) * source[2] - max(columns.taps) * source[3]
        pitch = rows.stride * source[2]
        pitches = (1, 0, 0, 0, pitch * rows.size if flat else source[0], pitch, 0)
    else:
        pitches = (0, band.channel, band.row_phase, band.column_phase, band.image, band.pitch, band.nbytes)
    offsets = [_offsets_in_place(job, grid) if in_place else band.offsets(job, grid) for grid in job.all_grids]
    grids, weight = [], 0
    for grid, its_offsets in zip(job.all_grids, offsets, strict=True):
        k = len(its_offsets)
        grids += [k, its_offsets.ctypes.data, weight, grid.start, grid.rows.size, grid.columns.size]
        weight += job.groups * job.m * k * tiling.size
    lists = [np.array(each, np.int64) for each in (grids, rows.phases, columns.phases)]
    second = job.second or (0, 0, 0, 0)
    words = [
        *(MR, tiling.widths[0], NR, tiling.lanes, *tiling.wide, tiling.in_size, tiling.size),
        *addresses,
        *(*source, rows.source, columns.source, job.channels * source[1]),
        *(*second, job.channels * second[1]),
        *(*out, job.m * out[1], int(is_dense)),
        *(job.m, job.groups, job.channels if job.taps else 0, job.images, len(job.all_grids), lists[0].ctypes.data),
        *(len(rows.phases), lists[1].ctypes.data, len(columns.phases), lists[2].ctypes.data, rows.stride, columns.stride),
        *(rows.low, rows.span, columns.low, columns.span),
        *pitches,
        *(int(flat), limit),
        *(images, some_rows, some_columns, row_parts, column_parts, places, channels, channel_parts, groups),
        places * channel_parts * ceil(job.groups / groups),
    ]
    assert len(words) == _WORDS, len(words)
    return np.array(words, np.int64), lists + offsets
