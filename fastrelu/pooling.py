"""Max pooling of images, forward and backward.

The meaning is that of `torch.nn.functional.max_pool2d`, with these bits: the first maximum of a window in the order of its rows
is its result, so that of 0.0 and -0.0 the first comes out, and so does the first NaN of a window that has one. Results depend
neither on threads nor on the layout of the memory. x is read through any strides; where its channels are contiguous
("channels last") those of the results are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from fastrelu.native.routine import address, routine
from fastrelu.operands import (
    check_output,
    float_array,
    integer_array,
    is_direct,
    name_of,
    number_array,
    pair,
    whole_number,
    wide,
    words_within,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["max_pool2d", "max_pool2d_backward"]

_IMAGES = {3: "(c, h, w)", 4: "(n, c, h, w)"}
Pair = tuple[int, int]
Geometry = tuple[int, ...]


def _results(size: int, window: int, step: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """How many windows there are along an axis."""
    room = size + 2 * padding - dilation * (window - 1) - 1
    if room < 0 and not ceil_mode:
        return 0
    count = (room + (step - 1 if ceil_mode else 0)) // step + 1
    # The last window must start inside the input or in the padding before it.
    return count - 1 if ceil_mode and (count - 1) * step >= size + padding else count


def _is_all_padding(size: int, window: int, step: int, padding: int, dilation: int, count: int) -> bool:
    """Whether a window holds nothing of the input, which lies in a gap of it."""
    starts = range(-padding, min(0, count * step - padding), step)
    return dilation > size and any(start % dilation >= size for start in starts)


def _size(base: str, name: str, value: Any, least: int) -> Pair:
    """An argument for rows and columns."""
    if type(value) is int and least <= value < 2**31:
        return value, value
    if type(value) is tuple and {*map(type, value)} == {int} and len(value) == 2 and least <= min(value) <= max(value) < 2**31:
        return value
    return pair(base, name, value, least, 2**31 - 1)


@lru_cache(1024)
def _geometry(base: str, size: Pair, window: Pair, step: Pair, padding: Pair, dilation: Pair, ceil_mode: bool) -> Geometry:
    """Rows and columns of the results; then those of a window, of the step, of the padding and of the dilation."""
    if padding[0] > window[0] // 2 or padding[1] > window[1] // 2:
        raise ValueError(f"{base}: padding must be at most half of kernel_size {window}, not {padding}")
    axes = tuple(zip(size, window, step, padding, dilation, strict=True))
    counts = tuple(_results(*axis, ceil_mode) for axis in axes)
    if min(*size, *counts) < 1:
        spanned = tuple(d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True))
        allowed = f"room for a window of {spanned} with padding {padding}"
        raise ValueError(f"{base}: x must have {allowed}, not rows and columns {size}")
    if any(_is_all_padding(*axis, count) for axis, count in zip(axes, counts, strict=True)):
        raise ValueError(f"{base}: every window must hold a part of x, whose rows and columns are {size}, not only padding")
    return (*counts, *window, *step, *padding, *dilation)


def _like(x: ndarray, shape: tuple[int, ...], dtype: Any) -> ndarray:
    """A new array (n, c, h, w) with contiguous channels if those of `x` are."""
    n, c, h, w = shape
    if x.strides[1] == x.itemsize != x.strides[3]:
        return np.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)
    return np.empty(shape, dtype)


def max_pool2d(
    x: ArrayLike,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    out: Any = None,
) -> Any:
    """The maximum of every window of an image, channel by channel.

    Parameters
    ----------
    x : array_like
        Images (n, c, h, w) or one image (c, h, w), of any float or integer type and any strides.
    kernel_size : int or pair of int
        Rows and columns of a window.
    stride : int or pair of int, optional
        From one window to the next; `kernel_size` if it is not given.
    padding : int or pair of int, optional
        Rows and columns that the windows may reach beyond the image on each side, at most half of `kernel_size`. Nothing
        there is ever selected.
    dilation : int or pair of int, optional
        From one element of a window to the next.
    ceil_mode : bool, optional
        Whether there is a last window that reaches beyond the padding, as long as it starts inside the image or in the
        padding before it.
    return_indices : bool, optional
        Whether to return the places of the maxima as well.
    out : ndarray, or pair of ndarray or None, optional
        Where to put the result; with `return_indices` a pair.

    Returns
    -------
    y : ndarray
        The maxima, of the type of x: (n, c, oh, ow) or (c, oh, ow) with
        ``oh = (h + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1``. A window with a NaN has its first NaN,
        every other one its first maximum.
    indices : ndarray
        If `return_indices`: the place of each in its plane, ``row * w + column``, as int64.

    Raises
    ------
    TypeError
        If an operand has another type.
    ValueError
        If a shape or a size does not fit, or there would be no result.

    Notes
    -----
    Weng, Ahuja and Huang, "Cresceptron: a self-organizing neural network which grows adaptively", 1992,
    doi:10.1109/IJCNN.1992.287150.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x = np.array([[[1.0, 2.0, 5.0, 4.0], [3.0, 0.0, 6.0, 7.0]]])
    >>> y, indices = fastrelu.max_pool2d(x, 2, return_indices=True)
    >>> y
    array([[[3., 7.]]])
    >>> indices
    array([[[4, 7]]])
    """
    base = "max_pool2d"
    images = number_array(base, "x", x, _IMAGES)
    lead = images.shape[:-2]
    images = images.reshape((1, *images.shape)) if images.ndim == 3 else images
    n, c, h, w = images.shape
    window = _size(base, "kernel_size", kernel_size, 1)
    step = window if stride is None else _size(base, "stride", stride, 1)
    padded, gaps = _size(base, "padding", padding, 0), _size(base, "dilation", dilation, 1)
    geometry = _geometry(base, (h, w), window, step, padded, gaps, bool(ceil_mode))
    shape, whole = (*lead, *geometry[:2]), (n, c, *geometry[:2])
    wanted = (None, None) if out is None else _wanted(base, out, shape, images.dtype, bool(return_indices))

    places = [o if o is not None and o.ndim == 4 and is_direct(o, images) else None for o in wanted]
    y = _like(images, whole, images.dtype) if places[0] is None else places[0]
    words = [address(images), *images.strides, address(y), *y.strides]
    indices = None
    if return_indices:
        indices = _like(images, whole, np.int64) if places[1] is None else places[1]
        words += [address(indices), *indices.strides]
    else:
        words += [0] * 5
    if y.size:
        kernel = routine("max_pool2d", "forward", name_of(images.dtype), "indices" if return_indices else "values")
        kernel(*words, *images.shape, *geometry, 0)
    y = _delivered(y, wanted[0], shape)
    return y if indices is None else (y, _delivered(indices, wanted[1], shape))


def _wanted(base: str, out: Any, shape: tuple[int, ...], dtype: Any, return_indices: bool) -> tuple[Any, Any]:
    """What the caller gives for the maxima and for the indices."""
    if not return_indices:
        outs = (out, None)
    elif isinstance(out, tuple) and len(out) == 2:
        outs = out
    else:
        raise TypeError(f"{base}: out must be a pair, for the maxima and for the indices, not {type(out).__name__}")
    for given, kind in zip(outs, (dtype, np.dtype(np.int64)), strict=True):
        if given is not None:
            check_output(base, given, shape, kind)
    return outs


def _delivered(result: ndarray, out: ndarray | None, shape: tuple[int, ...]) -> ndarray:
    """The result in its shape, in `out` if that is given."""
    result = result if len(shape) == 4 else result.reshape(shape)
    if out is None:
        return result
    if not (address(out) == address(result) and out.strides == result.strides):
        np.copyto(out, result)
    return out


def max_pool2d_backward(dy: ArrayLike, indices: ArrayLike, shape: Any, *, out: ndarray | None = None) -> ndarray:
    """Gradient of `max_pool2d` with respect to its input.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the maxima, (n, c, oh, ow) or (c, oh, ow).
    indices : array_like
        The places of the maxima that `max_pool2d` returned, of the same shape.
    shape : tuple of int
        Rows and columns of x, or its whole shape.
    out : ndarray, optional
        Where to put the result.

    Returns
    -------
    ndarray
        dx, of the type of dy. Each gradient is added where its maximum was; those that meet in one place are added in the
        order of the windows, starting from 0. Everything else is +0.

    Raises
    ------
    TypeError
        If an operand has another type.
    ValueError
        If a shape does not fit, or an index is outside its plane.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.max_pool2d_backward(np.array([[[0.5, 0.25]]]), np.array([[[4, 7]]]), (2, 4))
    array([[[0.  , 0.  , 0.  , 0.  ],
            [0.5 , 0.  , 0.  , 0.25]]])
    """
    base = "max_pool2d_backward"
    gradients = float_array(base, "dy", dy, _IMAGES)
    found = integer_array(base, "indices", indices)
    if found.shape != gradients.shape:
        raise ValueError(f"{base}: indices must have the shape of dy, {gradients.shape}, not {found.shape}")
    lead = gradients.shape[:-2]
    h, w = _plane(base, shape, lead)
    whole = (*lead, h, w)
    if out is not None:
        check_output(base, out, whole, gradients.dtype)
    # Checked and read through the same strides: a copy of indices whose channels are contiguous would lie otherwise.
    four = gradients.reshape((1, *gradients.shape)) if gradients.ndim == 3 else gradients
    places = found.reshape(four.shape)
    places = words_within_planes(base, places, h * w)

    sums = wide(gradients.dtype)
    n, c, rows, columns = four.shape
    is_place = is_direct(out, gradients, found) and out is not None and sums == out.dtype and _has_planes(out)
    dx = out.reshape((n, c, h, w)) if is_place and out is not None else _like(four, (n, c, h, w), sums)
    if dx.size:
        routine("max_pool2d", "backward", name_of(gradients.dtype))(
            address(four), *four.strides, address(places), *places.strides,
            address(dx), *dx.strides[:2], dx.strides[3], n, c, h * w, rows, columns, 0, 0, 0, 0,
        )  # fmt: skip
    if sums != gradients.dtype:
        with np.errstate(all="ignore"):
            dx = dx.astype(gradients.dtype)
    return _delivered(dx, out, whole)


def words_within_planes(base: str, indices: ndarray, limit: int) -> ndarray:
    """The indices (n, c, h, w) as int64 in the order of memory that they have, all in ``range(limit)``."""
    last = indices.transpose(0, 2, 3, 1)
    if last.flags.c_contiguous and not indices.flags.c_contiguous:
        return words_within(base, "indices", "an index", last, limit).transpose(0, 3, 1, 2)
    return words_within(base, "indices", "an index", indices, limit)


def _has_planes(out: ndarray) -> bool:
    """Whether the elements of a plane are all the same step apart, so that it can be reached by an index."""
    return bool(out.strides[-2] == out.shape[-1] * out.strides[-1])


def _plane(base: str, shape: Any, lead: tuple[int, ...]) -> Pair:
    """Rows and columns of x from what the caller gives as its shape."""
    if not isinstance(shape, tuple | list) or len(shape) not in (2, len(lead) + 2):
        raise ValueError(f"{base}: shape must be the rows and columns of x, or its whole shape, not {shape}")
    numbers = tuple(whole_number(base, "shape", size, 0, 2**63 - 1) for size in shape)
    if len(numbers) > 2 and numbers[:-2] != lead:
        raise ValueError(f"{base}: shape must begin with {lead} as the shape of dy does, not {numbers[:-2]}")
    return numbers[-2], numbers[-1]
