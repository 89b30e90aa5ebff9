"""The gradients of a convolution's weight and bias, for arrays whose shapes and types have been checked.

Importing this module needs neither Numba nor llvmlite.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu.native import matrix, target
from fastrelu.native.convolution import PLANS, Geometry, optional_address, parameter
from fastrelu.native.routine import address, routine

Numbers = tuple[int, ...]


def _is_flat(a: ndarray) -> bool:
    """Whether the positions of a plane are one step apart."""
    _, _, height, width = a.shape
    return height == 1 or width == 1 or bool(a.strides[2] == width * a.strides[3])


def _flat(a: ndarray) -> ndarray:
    """`a`, or a copy of it that is flat."""
    return a if a.flags.c_contiguous or _is_flat(a) else np.ascontiguousarray(a)


def _steps(shape: Numbers, strides: Numbers) -> Numbers:
    """The steps between images, channels and positions."""
    image, channel, row, column = strides
    return image, channel, row if shape[3] == 1 else column


@cache
def _one(dtype: np.dtype[Any]) -> ndarray:
    return np.ones(1, dtype)


@lru_cache(PLANS)
def _words(
    dy: Numbers,
    dy_strides: Numbers,
    y_strides: Numbers | None,
    x: Numbers,
    x_strides: Numbers,
    x_is_flat: bool,
    kernel: tuple[int, int],
    geometry: Geometry,
    formula: str,
    dtype: np.dtype[Any],
) -> tuple[Numbers, Numbers, Numbers, Numbers, str]:
    """What a task says besides the addresses of its arrays: what follows those of x, dy and y; the end; the type of sums."""
    from fastrelu.native import loops

    vector_bytes = target.vector_bytes()
    tiling = matrix.Tiling(dtype.name, vector_bytes)
    images, outputs, out_height, out_width = dy
    _, channels, height, width = x
    dy_steps = _steps(dy, dy_strides)
    y_steps = None if y_strides is None else _steps(dy, y_strides)
    # Images that follow one another without a gap are as one.
    is_one = all(steps[0] == out_height * out_width * steps[2] for steps in (dy_steps, y_steps) if steps is not None)
    plane = out_height * out_width * (images if is_one else 1)
    # Groups that would leave most lanes of a vector idle are columns of one product, and so is db alone. To bring their
    # channels together takes longer than the sums of a single tap.
    of_group = outputs // geometry.groups
    is_worth = of_group == 1 or (kernel != (1, 1) and 4 * of_group <= tiling.widths[0])
    is_together = geometry.groups > 1 and channels > 0 and is_worth
    groups = 1 if is_together or channels == 0 else geometry.groups
    addresses = loops.addresses_of_weight_gradient(formula, tiling.dtype, vector_bytes)
    end = (
        *(images, groups, channels // geometry.groups, height, width),
        *(outputs // groups, out_height, out_width),
        *(*kernel, *geometry.stride, *geometry.padding[:2], *geometry.dilation),
        *(tiling.rows, tiling.widths[0], tiling.widths[0 if is_together else -1], tiling.in_size, tiling.size),
        *addresses[:-2],
        address(_one(dtype)),
        *(addresses[-2:] if is_together else (0, 0)),
        of_group,
    )
    after_x = *x_strides[:3], _steps(x, x_strides)[2] if x_is_flat else x_strides[3], int(x_is_flat)
    return after_x, (*dy_steps, plane), y_steps or (0, 0, 0), end, tiling.sum_dtype


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
    dy = _flat(dy)
    y = None if y is None else _flat(y)
    kernel = (1, 1)
    if x is None or dw is None:
        x, x_is_flat = np.empty((len(dy), 0, 1, 1), dy.dtype), True
    else:
        kernel = dw.shape[2], dw.shape[3]
        x_is_flat = kernel == geometry.stride == (1, 1) and not any(geometry.padding) and _is_flat(x)
    after_x, after_dy, after_y, end, sums = _words(
        *(dy.shape, dy.strides, None if y is None else y.strides, x.shape, x.strides, x_is_flat),
        *(kernel, geometry, formula, dy.dtype),
    )
    number = parameter(alpha, sums)
    routine("convolution_gradient", "build")(
        *(address(x), *after_x, address(dy), *after_dy, optional_address(y), *after_y, ctypes.addressof(number)),
        *(optional_address(dw), optional_address(dw_held), optional_address(db), optional_address(db_held)),
        *end,
    )
