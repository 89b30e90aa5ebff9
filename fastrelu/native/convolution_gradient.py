"""The gradients of a convolution's weight and bias, for arrays whose shapes and types have been checked.

Importing this module needs neither Numba nor llvmlite.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from fastrelu.native import matrix, target
from fastrelu.native.convolution import Geometry
from fastrelu.native.routine import routine


def _is_flat(a: ndarray) -> bool:
    """Whether the positions of a plane are one step apart."""
    _, _, height, width = a.shape
    return height == 1 or width == 1 or bool(a.strides[2] == width * a.strides[3])


def _flat(a: ndarray) -> ndarray:
    """`a`, or a copy of it that is flat."""
    return a if _is_flat(a) else np.ascontiguousarray(a)


def _steps(a: ndarray) -> tuple[int, int, int, int]:
    """The address, and the steps between images, channels and positions."""
    image, channel, row, column = a.strides
    return a.ctypes.data, image, channel, row if a.shape[3] == 1 else column


def weight_gradient(
    dy: ndarray,
    y: ndarray | None,
    x: ndarray | None,
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
        4-D, of one float type, aligned, in native byte order, of any strides, and not empty. y is None if `formula` is "",
        and x may be None if dw is.
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
    images, outputs, out_height, out_width = dy.shape
    kernel = (1, 1)
    if x is None or dw is None:
        x, x_is_flat = np.empty((images, 0, 1, 1), dy.dtype), True
    else:
        kernel = dw.shape[2], dw.shape[3]
        x_is_flat = kernel == geometry.stride == (1, 1) and not any(geometry.padding) and _is_flat(x)
    _, channels, height, width = x.shape
    parameter = np.array([alpha], tiling.sum_dtype)
    one = np.ones(1, dy.dtype)
    # Images that follow one another without a gap are as one.
    flats = [a for a in (dy, y) if a is not None]
    is_one = all(_steps(a)[1] == out_height * out_width * _steps(a)[3] for a in flats)
    plane = out_height * out_width * (images if is_one else 1)
    # Channels that each have one kernel of their own are columns of one product.
    is_depthwise = 1 < geometry.groups == channels == outputs
    groups = 1 if is_depthwise else geometry.groups
    addresses = loops.addresses_of_weight_gradient(formula, dtype, vector_bytes)
    routine("convolution_gradient", "build")(
        *(x.ctypes.data, *x.strides[:3], _steps(x)[3] if x_is_flat else x.strides[3], int(x_is_flat)),
        *(*_steps(dy), plane),
        *((0, 0, 0, 0) if y is None else _steps(y)),
        parameter.ctypes.data,
        *(0 if a is None else a.ctypes.data for a in (dw, dw_held, db, db_held)),
        *(images, groups, channels // geometry.groups, height, width),
        *(outputs // groups, out_height, out_width),
        *(*kernel, *geometry.stride, *geometry.padding[:2], *geometry.dilation),
        *(tiling.rows, tiling.widths[0], tiling.widths[-1], tiling.in_size, tiling.size),
        *addresses[:-1],
        one.ctypes.data,
        addresses[-1] if is_depthwise else 0,
    )
