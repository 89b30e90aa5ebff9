"""The kernels of convolutions, as functions of arrays that have been checked.

Importing this module needs neither Numba nor llvmlite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from fastrelu.native import matrix, target
from fastrelu.native.routine import routine


@dataclass(frozen=True)
class Geometry:
    """Where a kernel meets the images.

    Attributes
    ----------
    stride, dilation : tuple of int
        Of rows and of columns.
    padding : tuple of int
        Zeros at the top, at the left, at the bottom and at the right.
    groups : int
        Parts of the channels that have nothing to do with each other.
    """

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int


def _flat(a: ndarray) -> ndarray:
    """`a`, or a copy of it, such that the positions of a plane are one step apart."""
    _, _, height, width = a.shape
    is_flat = height == 1 or width == 1 or a.strides[2] == width * a.strides[3]
    return a if is_flat else np.ascontiguousarray(a)


def _steps(a: ndarray) -> tuple[int, int, int, int]:
    """The address, and the steps between images, channels and positions."""
    image, channel, row, column = a.strides
    return a.ctypes.data, image, channel, row if a.shape[3] == 1 else column


def weight_gradient(
    dy: ndarray,
    y: ndarray | None,
    x: ndarray,
    dw: ndarray | None,
    db: ndarray | None,
    geometry: Geometry,
    formula: str,
    alpha: float,
    dw_held: ndarray | None,
    db_held: ndarray | None,
) -> None:
    """Write the gradients of the weight and of the bias.

    Parameters
    ----------
    dy, y, x : ndarray
        4-D, of one float type, aligned, in native byte order, of any strides, and not empty. y is None if `formula` is "".
    dw, db : ndarray or None
        Results (C-contiguous), or None if not wanted. They overlap nothing but what they are added to.
    geometry : Geometry
        Of the convolution.
    formula : str
        dz from dy and y, by its name in `fastrelu.kernels.formulas`; "" if it is dy.
    alpha : float
        Its parameter.
    dw_held, db_held : ndarray or None
        What the gradients are added to (C-contiguous).
    """
    from fastrelu.native import loops

    dtype, vector_bytes = dy.dtype.name, target.vector_bytes()
    tiling = matrix.Tiling(dtype, vector_bytes)
    dy = _flat(dy)
    y = None if y is None else _flat(y)
    images, _, height, width = x.shape
    channels, (_, outputs, out_height, out_width) = x.shape[1] // geometry.groups, dy.shape
    kernel = (1, 1) if dw is None else dw.shape[2:]
    is_plain = kernel == geometry.stride == (1, 1) and not any(geometry.padding)
    x_is_flat = is_plain and (height == 1 or width == 1 or x.strides[2] == width * x.strides[3])
    parameter = np.array([alpha], tiling.sum_dtype)
    one = np.ones(1, dy.dtype)
    # Images that follow one another without a gap are as one.
    flats = [a for a in (dy, y) if a is not None]
    is_one = all(_steps(a)[1] == out_height * out_width * _steps(a)[3] for a in flats)
    plane = out_height * out_width * (images if is_one else 1)
    routine("convolution_gradient", "build")(
        *(x.ctypes.data, *x.strides[:3], x.strides[2] if width == 1 and x_is_flat else x.strides[3], int(x_is_flat)),
        *(*_steps(dy), plane),
        *((0, 0, 0, 0) if y is None else _steps(y)),
        parameter.ctypes.data,
        *(0 if a is None else a.ctypes.data for a in (dw, dw_held, db, db_held)),
        *(images, geometry.groups, channels, height, width),
        *(outputs // geometry.groups, out_height, out_width),
        *(*kernel, *geometry.stride, *geometry.padding[:2], *geometry.dilation),
        *(tiling.rows, tiling.widths[0], tiling.widths[-1], tiling.in_size, tiling.size),
        *loops.convolution_gradient_parts(formula, dtype, vector_bytes),
        one.ctypes.data,
    )
