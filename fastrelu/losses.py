"""Losses and their gradients in one pass."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from fastrelu.native.routine import address, routine
from fastrelu.operands import check_output, float_array, integer_array, is_direct, name_of, words_within

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["softmax_cross_entropy"]

_REDUCTIONS = ("mean", "sum", "none")
# As in `fastrelu.kernels.softmax_cross_entropy`, which imports Numba.
_LANES = 16


def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, reduction: str = "mean", out: ndarray | None = None
) -> tuple[Any, ndarray]:
    """The cross-entropy between softmax(logits) and labels, and its gradient.

    Parameters
    ----------
    logits : array_like
        (..., classes), of any float type.
    labels : array_like
        (...), the right class of each row, of any integer type.
    reduction : {"mean", "sum", "none"}, optional
        What becomes of the losses of the rows.
    out : ndarray, optional
        Where to put the gradient. It may be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        ``log(sum(exp(z))) - z[label]`` of each row z: their mean, their sum, or with "none" all (...), of the type of the
        logits. The mean of no rows is NaN.
    dlogits : ndarray
        The gradient of the loss with respect to the logits, ``softmax(z) - onehot(label)``; divided by the number of rows for
        "mean".

    Raises
    ------
    TypeError
        If an operand has another type.
    ValueError
        If a label is no class, a shape does not fit, or `reduction` is another.

    Notes
    -----
    The largest logit is subtracted first, so that nothing overflows. Exponentials are those of the type of the logits, float32
    for halves; their sum, the logarithm, the losses and the sum of the losses are float64. A row is summed in 16 chains, one
    for each remainder of the class by 16, and so are the losses of the rows; losses that do not fill 16 are a sum of their own.
    The result of a row depends on that row only, and no bit depends on the threads.

    A row with a NaN or +inf has the loss NaN and a gradient of NaN; -inf is a class of probability 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> loss, dlogits = fastrelu.softmax_cross_entropy(np.array([[0.0, 0.0], [0.0, 1000.0]]), [0, 1])
    >>> print(f"{loss:.4f}")
    0.3466
    >>> dlogits
    array([[-0.25,  0.25],
           [ 0.  ,  0.  ]])
    """
    base = "softmax_cross_entropy"
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{base}: reduction must be one of {_REDUCTIONS}, not {reduction!r}")
    z = float_array(base, "logits", logits)
    if z.ndim == 0:
        raise ValueError(f"{base}: logits must have at least one axis, that of the classes")
    classes = integer_array(base, "labels", labels)
    if classes.shape != z.shape[:-1]:
        raise ValueError(f"{base}: labels must have shape {z.shape[:-1]} as the rows of logits, not {classes.shape}")
    if out is not None:
        check_output(base, out, z.shape, z.dtype)
    right = words_within(base, "labels", "a label", classes, z.shape[-1])
    losses, loss, dlogits = row_losses(z, right, max(right.size, 1) if reduction == "mean" else 1, out)
    if reduction == "none":
        with np.errstate(all="ignore"):
            return losses.astype(z.dtype).reshape(right.shape)[()], dlogits
    if reduction == "mean":
        loss = loss / right.size if right.size else math.nan
    with np.errstate(all="ignore"):
        return z.dtype.type(loss), dlogits


def row_losses(z: ndarray, right: ndarray, divisor: int, out: ndarray | None = None) -> tuple[ndarray, float, ndarray]:
    """What `softmax_cross_entropy` calculates of operands that are checked.

    Parameters
    ----------
    z : ndarray
        The logits.
    right : ndarray
        The labels, contiguous int64.
    divisor : int
        What the gradient is divided by: the rows of a batch, of which these may be a part.
    out : ndarray, optional
        Where to put the gradient.

    Returns
    -------
    losses : ndarray
        Those of all rows, float64, in one axis.
    loss : float
        Their sum, as `sum_of_losses` has it.
    dlogits : ndarray
        The gradient.
    """
    flat = z.reshape(-1, z.shape[-1]) if z.size else z.reshape(right.size, z.shape[-1])
    if flat.strides[1] != flat.itemsize:
        flat = np.ascontiguousarray(flat)
    place = out.reshape(flat.shape) if out is not None and out.flags.c_contiguous else None
    is_same = place is not None and address(place) == address(flat) and place.strides == flat.strides
    if place is not None and not is_direct(place, right, *(() if is_same else (flat,))):
        place = None
    gradient = np.empty(flat.shape, flat.dtype) if place is None else place
    losses, sums, loss_sum = np.empty(right.size), np.empty(right.size), ctypes.c_double(0)
    factor = ctypes.c_double(1 / divisor)
    if flat.size:
        routine("softmax_cross_entropy", "build", name_of(flat.dtype))(
            address(flat), flat.strides[0], address(right), address(gradient), gradient.strides[0],
            address(losses), address(sums), ctypes.addressof(factor), ctypes.addressof(loss_sum), *flat.shape, 0,
        )  # fmt: skip
    if out is not None and place is None:
        np.copyto(out, gradient.reshape(z.shape))
    dlogits = gradient.reshape(z.shape) if out is None else out
    return losses, loss_sum.value, dlogits


def sum_of_losses(losses: ndarray) -> float:
    """The sum of losses that were calculated in parts, in the order and with the bits of the kernel."""
    whole = len(losses) // _LANES * _LANES
    with np.errstate(all="ignore"):
        lanes = np.add.accumulate([np.zeros(_LANES), *losses[:whole].reshape(-1, _LANES)])[-1]
        while len(lanes) > 1:
            lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
        rest = np.add.accumulate([0.0, *losses[whole:]])[-1]
        return float(lanes[0] + rest)
