"""Convolutions on a device as products of the weight, or of dz, with patches of images.

``forward``          y = f(conv2d(x, w) + b)
``input_gradient``   dx, a product for each phase of the stride
``weight_gradient``  dw

They are told what `fastrelu.native.convolution` and `fastrelu.native.convolution_gradient` are told, with arrays of a device.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from fastrelu.cuda import elementwise, launch
from fastrelu.cuda.arrays import DeviceArray, Work
from fastrelu.cuda.kernels.linear import Result
from fastrelu.cuda.kernels.patches import MARGIN, PATCHES, TAP, WRITING, division, table
from fastrelu.cuda.memory import PACKET
from fastrelu.cuda.plans import Draft
from fastrelu.cuda.products import NOTHING, Gradient, Matrix, run_exactly
from fastrelu.native.convolution import Geometry
from fastrelu.native.guard import lock

MOST_POSITIONS = 1 << 30
"""Positions that one product takes; more images are several products. Rows and columns are less: no number overflows."""
_FARTHEST = (1 << 31) - 1
_MOST_GROUPS = 0xFFFF
_KEPT = 64 << 20
"""Bytes of tables that are kept on a device."""
_START = 7
"""Which word of where patches are is the address."""

Pair = tuple[int, int]
Taps = tuple[int, ...]

_tables: dict[tuple[Any, ...], int] = {}
_kept: dict[tuple[Any, int], int] = {}


def _table(work: Draft | Work, array: DeviceArray, channels: int, taps: tuple[Taps, Taps]) -> Any:
    """The address of the table of taps (channel, row, column): how many channels, and what to add to rows and columns.

    It stays on the device as long as the process lives, as plans and graphs do that name it, until there are too many: then
    each call writes its own.
    """
    driver = launch.active()
    _, *steps = array.strides
    down, across = ((its[0], its[1] - its[0] if len(its) > 1 else 0) if its else (0, 0) for its in taps)
    count = channels * len(taps[0]) * len(taps[1])
    shape = (count, max(len(taps[0]), 1), max(len(taps[1]), 1), *down, *across, *steps)
    nbytes = (count + MARGIN) * TAP
    grid = (-(-(count + MARGIN) // WRITING), 1, 1)
    place = driver, work.device
    found = _tables.get((place, shape))
    if found is not None:
        return found
    with lock:
        if (place, shape) not in _tables:
            if _kept.get(place, 0) + nbytes > _KEPT:
                scratch = work.scratch(nbytes)
                work.made[shape] = scratch
                work.launch(table(), grid, scratch.pointer, *shape)
                return scratch.pointer
            with driver.aside(work.device) as stream:  # all streams read it
                pointer = driver.allocate(work.device, nbytes, stream)
                table().launch(work.device, stream, grid, pointer, *shape)
            _tables[place, shape] = pointer
            _kept[place] = _kept.get(place, 0) + nbytes
        return _tables[place, shape]


def _division(rows: int, columns: int) -> tuple[int, ...]:
    """How kernels find positions, of which an image has so many rows and columns."""
    return *division(rows * columns), *division(columns)


def _target(array: DeviceArray, start: int, positions: Pair, steps: Pair, group: int) -> Matrix:
    """A result with positions as columns, of which an image has so many rows and columns with these steps."""
    (rows, columns), (row, column) = positions, steps
    if row == columns * column or rows == 1:  # a plane without gaps, where 16 bytes may go on in the next row
        rows, columns, row = 1, rows * columns, 0
    places = _elements(array, array.strides[0], row, column)
    return Matrix(start, array.strides[1], column, array.dtype, _division(rows, columns), places, group=group)


def _elements(array: DeviceArray, *steps: int) -> tuple[int, ...]:
    """Steps in elements."""
    if max(map(abs, steps)) > _FARTHEST * array.itemsize:
        raise ValueError(f"images, rows and columns on a CUDA device must be at most {_FARTHEST} elements apart")
    return tuple(step // array.itemsize for step in steps)


def _patches(
    work: Draft | Work,
    array: DeviceArray,
    channels: int,
    taps: tuple[Taps, Taps],
    along: str,
    positions: Pair,
    stride: Pair,
    first_image: int = 0,
    alone: bool = False,
) -> Matrix:
    """Patches of images (N, C, H, W), whose positions are the "rows" or the "columns" of a matrix.

    Parameters
    ----------
    work : Draft or Work
        The call.
    array : DeviceArray
        The images.
    channels : int
        Those of a group.
    taps : pair of tuple of int
        What each tap adds to the row and to the column.
    along : str
        The axis of positions.
    positions, stride : pair of int
        Rows and columns of positions, and the rows and columns of the image between neighbours.
    first_image : int, optional
        Where to begin.
    alone : bool, optional
        Whether the other operand is no patches, so that positions may be counted in another way.
    """
    image, channel, row, column = (stride * (length > 1) for stride, length in zip(array.strides, array.shape, strict=True))
    height, width = array.shape[2:]
    start = array.pointer + first_image * image
    for size, count, step, its in zip((height, width), positions, stride, taps, strict=True):
        if max(size, (count - 1) * step + max(map(abs, its), default=0)) >= MOST_POSITIONS:
            raise ValueError(f"images on a CUDA device must have less than {MOST_POSITIONS} rows and columns with padding")
    is_inside = all((count - 1) * step < size for count, step, size in zip(positions, stride, (height, width), strict=True))
    pointwise = taps == ((0,), (0,)) and is_inside
    is_whole = stride == (1, 1) and positions == (height, width) and (height == 1 or row == width * column)
    if alone and pointwise and is_whole:  # 16 bytes may go on in the next row
        height, width = positions = 1, height * width
        row = 0
    lanes = PACKET // array.itemsize
    # Packets are in the image, or outside, as a whole.
    is_even = stride[1] == 1 and all(number % lanes == 0 for number in (width, positions[1], *taps[1]))
    wide = is_even and array.strides[3] == array.itemsize and all(a % PACKET == 0 for a in (start, image, channel, row))
    steps = _elements(array, image, stride[0] * row, stride[1] * column)
    if pointwise and abs(channel) > _FARTHEST:
        pointwise = False
    places = (*steps, height, width, *stride, start, channel)
    entries = 0 if pointwise else _table(work, array, channels, taps)
    axes = (0, TAP) if along == "rows" else (TAP, 0)
    group = channels * channel
    return Matrix(entries, *axes, array.dtype, _division(*positions), places, pointwise, wide, group)


def _in_pieces(images: int, positions: int) -> list[tuple[int, int]]:
    """The first image of each product, and how many it takes."""
    each = max(MOST_POSITIONS // max(positions, 1), 1)
    return [(first, min(each, images - first)) for first in range(0, images, each)]


def _packed(
    work: Draft | Work, array: DeviceArray, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> DeviceArray:
    """A C-contiguous copy of a view of an array."""
    view = replace(array, pointer=array.pointer + offset, shape=shape, strides=strides)
    copy = work.empty(shape, array.dtype)
    elementwise.copy(work, view, copy)
    return copy


def _weight(work: Draft | Work, w: DeviceArray, groups: int) -> tuple[DeviceArray, Matrix]:
    """The weight as matrices (outputs, taps), one for each group, and what keeps it alive."""
    _, channels, height, width = w.shape
    step = w.itemsize
    for length, stride in zip((width, height, channels), w.strides[:0:-1], strict=True):
        if length > 1 and stride != step:
            w = _packed(work, w, w.shape, w.strides)
            break
        step *= length
    row = w.strides[0]
    return w, Matrix(w.pointer, row, w.itemsize, w.dtype, group=w.shape[0] // groups * row)


def _run(
    work: Draft | Work,
    sizes: tuple[int, int, int],
    x: Matrix,
    w: Matrix,
    y: Matrix,
    result: Result,
    groups: int,
    bias: Matrix = NOTHING,
    alpha: Any = 0.0,
    alphas: Matrix = NOTHING,
    x_gradient: Gradient | None = None,
    w_gradient: Gradient | None = None,
) -> None:
    """Products of groups, as many at a time as a grid takes."""
    for first in range(0, groups, _MOST_GROUPS):
        its_x, its_w, its_y, its_bias, its_alphas = (_from_group(matrix, first) for matrix in (x, w, y, bias, alphas))
        count = min(groups - first, _MOST_GROUPS)
        its_gradients = [
            gradient and replace(gradient, y=gradient.y.moved(first * matrix.group))
            for gradient, matrix in ((x_gradient, x), (w_gradient, w))
        ]
        run_exactly(
            work, sizes, its_x, its_w, its_y, result, its_bias, alpha, its_alphas, its_gradients[0], its_gradients[1], count
        )


def _from_group(matrix: Matrix, first: int) -> Matrix:
    offset = first * matrix.group
    if len(matrix.places) == PATCHES:
        places = (*matrix.places[:_START], matrix.places[_START] + offset, *matrix.places[_START + 1 :])
        return replace(matrix, places=places)
    return replace(matrix, pointer=matrix.pointer + offset)


# What follows is for `fastrelu.cuda.convolution`. Arrays are of one device; images have four axes, and any strides that are
# multiples of the element size. No output is empty (images, outputs, rows and columns of y, or of dx or dw, are at least 1);
# x may be: without channels the sums are the bias, without rows or columns all is padding. Types may differ: `dtype`
# of the result is the operation's. Outputs overlap no operand. At most MOST_POSITIONS positions an image: check that before.
#
# dy and y must have the same strides and the same type (copy y, or both, with elementwise.copy if they have not).
# y and dx may have any strides; dw must be C-contiguous but for its first axis.
# alphas is a Matrix(pointer, step, 0, dtype, group=(O / groups) * step) with a parameter for each output channel (prelu),
# step 0 for one in memory; alpha is a number.


def forward(
    work: Draft | Work,
    x: DeviceArray,
    w: DeviceArray,
    b: DeviceArray | None,
    y: DeviceArray,
    geometry: Geometry,
    result: Result,
    *,
    alpha: Any = 0.0,
    alphas: Matrix = NOTHING,
) -> None:
    """Write f(conv2d(x, w) + b) to `y`.

    Parameters
    ----------
    work : Draft or Work
        The call.
    x, w, b : DeviceArray
        (N, C, H, W), (O, C / groups, KH, KW), and (O,) or None.
    y : DeviceArray
        (N, O, OH, OW).
    geometry : Geometry
        Stride, padding, dilation and groups.
    result : Result
        Type, formula, type of `alphas`.
    alpha, alphas : float, Matrix, optional
        The parameter of the formula.
    """
    groups, (top, left, _, _) = geometry.groups, geometry.padding
    outputs, channels, *kernel = w.shape
    down, across = (
        tuple(t * dilation - before for t in range(count))
        for count, dilation, before in zip(kernel, geometry.dilation, (top, left), strict=True)
    )
    _holder, weight = _weight(work, w, groups)
    m, k, (rows, columns) = outputs // groups, channels * math.prod(kernel), y.shape[2:]
    bias = NOTHING if b is None else Matrix(b.pointer, b.strides[0], 0, b.dtype, group=m * b.strides[0])
    result = replace(result, positions=True)
    for first, images in _in_pieces(y.shape[0], rows * columns):
        patches = _patches(work, x, channels, (down, across), "columns", (rows, columns), geometry.stride, first, True)
        start, steps = y.pointer + first * y.strides[0], (y.strides[2], y.strides[3])
        target = _target(y, start, (rows, columns), steps, m * y.strides[1])
        _run(work, (m, k, images * rows * columns), weight, patches, target, result, groups, bias, alpha, alphas)


def input_gradient(
    work: Draft | Work,
    dy: DeviceArray,
    y: DeviceArray | None,
    w: DeviceArray,
    dx: DeviceArray,
    geometry: Geometry,
    formula: str,
    result: Result,
    *,
    alpha: Any = 0.0,
    alphas: Matrix = NOTHING,
    keeps_zeros: bool = True,
) -> None:
    """Write the gradient of the input to `dx`, or add it if the result says so.

    Parameters
    ----------
    work : Draft or Work
        The call.
    dy, y, w, dx : DeviceArray
        As y, y, w and x of `forward`; y is None if there is no formula.
    geometry : Geometry
        Stride, padding, dilation and groups.
    formula : str
        What makes dz of dy and y; "" if it is dy.
    result : Result
        Type, and whether dx is added to what the array holds.
    alpha, alphas : float, Matrix, optional
        The parameter of the formula; only one for all channels.
    keeps_zeros : bool, optional
        Whether the formula is 0 where dy and y are, as it is unless its parameter is infinite or NaN.
    """
    groups, strides = geometry.groups, dx.strides
    outputs, channels = w.shape[0] // groups, w.shape[1]
    result = replace(result, positions=True)
    for i, down, used_rows in _phases(0, dx, w, geometry):
        for j, across, used_columns in _phases(1, dx, w, geometry):
            # (groups, o, kh, kw, c): neighbouring rows of a term lie side by side.
            step, offset = w.strides, used_rows.start * w.strides[2] + used_columns.start * w.strides[3]
            shape = groups, outputs, len(used_rows), len(used_columns), channels
            turned = outputs * step[0], step[0], used_rows.step * step[2], used_columns.step * step[3], step[1]
            k = math.prod(shape[1:4])
            weight, holder = NOTHING, None
            if k:
                holder = _packed(work, w, shape, turned, offset)
                size = w.itemsize
                weight = Matrix(holder.pointer, size, channels * size, w.dtype, group=k * channels * size)
            else:
                weight = Matrix(0, w.itemsize, w.itemsize, w.dtype)
            rows, columns = (
                len(range(phase, length, step))
                for phase, length, step in zip((i, j), dx.shape[2:], geometry.stride, strict=True)
            )
            row, column = (step * stride for step, stride in zip(strides[2:], geometry.stride, strict=True))
            for first, images in _in_pieces(dx.shape[0], rows * columns):
                patches = _patches(work, dy, outputs, (down, across), "columns", (rows, columns), (1, 1), first, True)
                gradient = _gradient(y, formula, keeps_zeros, first)
                start = dx.pointer + first * strides[0] + i * strides[2] + j * strides[3]
                target = _target(dx, start, (rows, columns), (row, column), channels * strides[1])
                sizes = channels, k, images * rows * columns
                _run(work, sizes, weight, patches, target, result, groups, alpha=alpha, alphas=alphas, w_gradient=gradient)


def _gradient(y: DeviceArray | None, formula: str, keeps_zeros: bool, first_image: int = 0) -> Gradient | None:
    """The formula, and y."""
    if y is None or not formula:
        return None
    return Gradient(formula, Matrix(y.pointer + first_image * y.strides[0], 1, 0, y.dtype), keeps_zeros)


def _phases(axis: int, dx: DeviceArray, w: DeviceArray, geometry: Geometry) -> list[tuple[int, Taps, range]]:
    """For each phase of the stride along an axis what the taps add to the row or column of dy, and which taps those are."""
    stride, dilation, before = geometry.stride[axis], geometry.dilation[axis], geometry.padding[axis]
    found = []
    for phase in range(min(stride, dx.shape[2 + axis])):
        used = [t for t in range(w.shape[2 + axis]) if (phase + before - t * dilation) % stride == 0]
        taps = tuple((phase + before - t * dilation) // stride for t in used)
        step = used[1] - used[0] if len(used) > 1 else 1
        found.append((phase, taps, range(used[0], used[-1] + 1, step) if used else range(0)))
    return found


def weight_gradient(
    work: Draft | Work,
    dy: DeviceArray,
    y: DeviceArray | None,
    x: DeviceArray,
    dw: DeviceArray,
    geometry: Geometry,
    formula: str,
    result: Result,
    *,
    alpha: Any = 0.0,
    alphas: Matrix = NOTHING,
) -> None:
    """Write the gradient of the weight to `dw`, or add it; as `input_gradient` does.

    Of more than MOST_POSITIONS positions in all it is a ValueError: check that before.
    """
    groups, (top, left, _, _) = geometry.groups, geometry.padding
    outputs, channels, *kernel = dw.shape
    outputs //= groups
    down, across = (
        tuple(t * dilation - before for t in range(count))
        for count, dilation, before in zip(kernel, geometry.dilation, (top, left), strict=True)
    )
    positions: Any = dy.shape[2:]
    patches = _patches(work, x, channels, (down, across), "rows", positions, geometry.stride)
    # dz as patches of one element: its taps are the output channels.
    dz = _patches(work, dy, outputs, ((0,), (0,)), "columns", positions, (1, 1))
    row = dw.strides[0]
    target = Matrix(dw.pointer, row, dw.itemsize, dw.dtype, group=outputs * row)
    sizes = outputs, dy.shape[0] * math.prod(positions), channels * math.prod(kernel)
    gradient = _gradient(y, formula, True)  # here nothing is outside
    _run(work, sizes, dz, patches, target, result, groups, alpha=alpha, alphas=alphas, x_gradient=gradient)
