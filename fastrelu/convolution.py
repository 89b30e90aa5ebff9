"""Convolutions of images, with their activation.

The names follow one rule: ``conv2d`` and the activation. What is said here once holds for all:

* x is (N, C, H, W), or (C, H, W) for one image; w is (O, C / groups, KH, KW); y is (N, O, OH, OW), with as many axes as x. With
  OH = (H + padding - dilation (KH - 1) - 1) // stride + 1, and OW likewise,

      y[i, o, h, v] = f(b[o] + the sum over c, kh, kw of w[o, c, kh, kw] * x[i, c, h sh + kh dh - top, v sv + kw dv - left])

  This is what `torch.nn.functional.conv2d` calculates (a cross-correlation), with the same arguments.
* ``stride``, ``padding`` and ``dilation`` are integers, one or a pair for rows and columns. ``padding="valid"`` is none,
  and ``"same"`` keeps the size with stride 1: of dilation (K - 1) zeros the smaller half comes first.
* Padding is zeros that take part in the sum: 0 times an infinite weight is NaN.
* Each element is summed in blocks of 256 terms, within a block one chain of fused multiply-adds, and the blocks' sums in
  ascending order. The terms of y are (c, kh, kw) in this order, and its first block starts from the bias. Nothing else that a
  call does changes the bits: neither threads, layouts, nor the batch.
* float16, bfloat16, float32 and float64 give the same type back; the halves are summed in float32 and rounded once. Types are
  mixed by NumPy's rules; integers become floats. Parameters such as alpha do not change the type.
* Strides of the operands are free: an array in the order (N, H, W, C) is ``a.transpose(0, 3, 1, 2)``. ``out`` may overlap the
  inputs. Results without `out` are C-contiguous. No call warns about floating-point errors.
* Arrays on a CUDA device (CuPy's, PyTorch's, JAX's, numba-cuda's) are calculated there, in the stream of their library, which
  makes the results; all operands must be there then. In float32 and float64 the bits are those of the CPU. ``device="cuda"``
  brings NumPy arrays there and back (`fastrelu.use`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from fastrelu import activations
from fastrelu import convolution_operands as operands
from fastrelu.device import is_used
from fastrelu.native.convolution import forward
from fastrelu.operands import wide

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "conv2d",
    "conv2d_elu",
    "conv2d_leaky_relu",
    "conv2d_prelu",
    "conv2d_relu",
    "conv2d_sigmoid",
    "conv2d_softplus",
    "conv2d_tanh",
]


def _forward(
    base: str,
    formula: str,
    x: Any,
    w: Any,
    b: Any,
    alpha: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    out: Any,
    device: str | None,
) -> ndarray:
    """The convolution `base`, whose activation is the formula of that name."""
    if device is not None or is_used() or not (type(x) is type(w) is ndarray):
        place = operands.target_of(base, (x, w, b, alpha, out), device)
        if place is not None:
            from fastrelu.cuda import dispatch as cuda

            everything = {"x": x, "w": w, "b": b, "alpha": operands.device_parameter(base, formula, alpha)}
            on_device: ndarray = cuda.convolution(base, everything, (stride, padding, dilation, groups), out, place)
            return on_device
    given = operands.arrays(base, {"x": x, "w": w} if b is None else {"x": x, "w": w, "b": b})
    x, w, b = given["x"], given["w"], given.get("b")
    geometry, shape = operands.geometry(base, x.shape, w.shape, stride, padding, dilation, groups)
    if b is not None:
        operands.check_bias(base, b.shape, w.shape)
    if out is not None:
        operands.output(base, "out", out, shape, x.dtype)
    alpha = operands.number(base, "alpha", alpha)
    x = operands.batch(x)
    y = operands.place(out, (len(x), *shape[-3:]), x.dtype, given.values())
    if y.size and x.shape[1] == 0:
        y[...] = 0 if b is None else b[:, None, None]
        _activate(formula, y, alpha)
    elif y.size:
        if 0 in x.shape:
            x, geometry = operands.without_padding(x, geometry)
        forward(x, w, b, y, geometry, formula, alpha)
    return operands.deliver(y, out, shape)


def _activate(formula: str, y: ndarray, alpha: float) -> None:
    """The activation of sums without terms, in place."""
    if formula:
        parameters = (alpha,) if formula in ("leaky_relu", "elu") else ()
        getattr(activations, formula)(y, *parameters, out=y)


def conv2d(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out: ndarray | None = None,
    device: str | None = None,
) -> ndarray:
    """Convolution of images with kernels, and a bias.

    Parameters
    ----------
    x : array_like
        Images (N, C, H, W) or (C, H, W).
    w : array_like
        Kernels (O, C / groups, KH, KW).
    b : array_like, optional
        Bias (O,).
    stride : int or pair of int, optional
        Rows and columns between neighbours of the output.
    padding : int, pair of int, "same" or "valid", optional
        Zeros at the top and the bottom, and at the left and the right.
    dilation : int or pair of int, optional
        Rows and columns between neighbours of a kernel.
    groups : int, optional
        Parts of the channels that have nothing to do with each other.
    out : ndarray, optional
        Where to put the result.
    device : str, optional
        Where to calculate with NumPy arrays: "cpu", "cuda" and so on, see `fastrelu.use`.

    Returns
    -------
    ndarray
        The output (N, O, OH, OW) or (O, OH, OW), C-contiguous unless it is `out`.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type, or is another library's array that decides for itself.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.array([[[-3.0, 1.0, 2.0]]]), np.array([[[[1.0, 0.5]]]])
    >>> fastrelu.conv2d(x, w, np.array([0.5]))
    array([[[-2. ,  2.5]]])
    >>> fastrelu.conv2d(x, w, padding="same")
    array([[[-2.5,  2. ,  2. ]]])
    """
    return _forward("conv2d", "", x, w, b, 0.0, stride, padding, dilation, groups, out, device)


def conv2d_relu(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out: ndarray | None = None,
    device: str | None = None,
) -> ndarray:
    """Convolution and `relu`: max(conv2d(x, w, b), 0).

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups
        As for `conv2d`.
    out : ndarray, optional
        Where to put the result.
    device : str, optional
        Where to calculate with NumPy arrays: "cpu", "cuda" and so on, see `fastrelu.use`.

    Returns
    -------
    ndarray
        The output (N, O, OH, OW) or (O, OH, OW): +0 where the sum is not positive, NaN where it is NaN.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.array([[[-3.0, 1.0, 2.0]]]), np.array([[[[1.0, 0.5]]]])
    >>> fastrelu.conv2d_relu(x, w)
    array([[[0., 2.]]])
    """
    return _forward("conv2d_relu", "relu", x, w, b, 0.0, stride, padding, dilation, groups, out, device)


def conv2d_leaky_relu(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    alpha: float = 0.01,
    out: ndarray | None = None,
    device: str | None = None,
) -> ndarray:
    """Convolution and `leaky_relu`.

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups
        As for `conv2d`.
    alpha : float, optional
        Slope where the sum is negative.
    out : ndarray, optional
        Where to put the result.
    device : str, optional
        Where to calculate with NumPy arrays: "cpu", "cuda" and so on, see `fastrelu.use`.

    Returns
    -------
    ndarray
        The output (N, O, OH, OW) or (O, OH, OW), in float32 and float64 with the bits that `leaky_relu` of `conv2d` has.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.float32([[[-3, 1, 2]]]), np.float32([[[[1, 0.5]]]])
    >>> fastrelu.conv2d_leaky_relu(x, w, alpha=0.5)
    array([[[-1.25,  2.  ]]], dtype=float32)
    """
    return _forward("conv2d_leaky_relu", "leaky_relu", x, w, b, alpha, stride, padding, dilation, groups, out, device)


def conv2d_prelu(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None,
    alpha: ArrayLike,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out: ndarray | None = None,
    device: str | None = None,
) -> ndarray:
    """Convolution and `prelu`, with a slope for each output channel.

    The slopes are applied in a pass of their own. A gradient needs the sums rather than the output, since a learned slope may
    become negative: `prelu_backward` of what `conv2d` gave, and then `conv2d_backward`.

    Parameters
    ----------
    x, w, b
        As for `conv2d`; b may be None.
    alpha : array_like
        Slopes (O,), or one for all.
    stride, padding, dilation, groups
        As for `conv2d`.
    out : ndarray, optional
        Where to put the result.
    device : str, optional
        Where to calculate with NumPy arrays: "cpu", "cuda" and so on, see `fastrelu.use`.

    Returns
    -------
    ndarray
        The output (N, O, OH, OW) or (O, OH, OW).

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.array([[[-3.0, 1.0, 2.0]]]), np.array([[[[1.0]]], [[[-1.0]]]])
    >>> fastrelu.conv2d_prelu(x, w, None, np.array([0.5, 0.25]))
    array([[[-1.5 ,  1.  ,  2.  ]],
    <BLANKLINE>
           [[ 3.  , -0.25, -0.5 ]]])
    """
    base = "conv2d_prelu"
    if device is not None or is_used() or not (type(x) is type(w) is ndarray):
        place = operands.target_of(base, (x, w, b, alpha, out), device)
        if place is not None:
            from fastrelu.cuda import dispatch as cuda

            everything = {"x": x, "w": w, "b": b, "alpha": alpha}
            on_device: ndarray = cuda.convolution(base, everything, (stride, padding, dilation, groups), out, place)
            return on_device
    given = operands.arrays(base, {"x": x, "w": w} if b is None else {"x": x, "w": w, "b": b})
    slopes, dtype, outputs = operands.arrays(base, {"alpha": alpha})["alpha"], given["x"].dtype, given["w"].shape[:1]
    operands.check_slopes(base, slopes.shape, outputs)
    if out is not None:
        shapes = given["x"].shape, given["w"].shape
        operands.output(base, "out", out, operands.geometry(base, *shapes, stride, padding, dilation, groups)[1], dtype)
    # Halves are rounded once, behind the slopes.
    sums = wide(dtype)
    given = {name: a.astype(sums, copy=False) for name, a in given.items()}
    y = _forward(base, "", given["x"], given["w"], given.get("b"), 0.0, stride, padding, dilation, groups, None, "cpu")
    target = out if out is not None else y if sums == dtype else np.empty(y.shape, dtype)
    activations.prelu(y, slopes.astype(sums, copy=False).reshape(-1, 1, 1), out=target, casting="same_kind")
    return target


def conv2d_elu(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    alpha: float = 1.0,
    out: ndarray | None = None,
    device: str | None = None,
) -> ndarray:
    """Convolution and `elu`.

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups
        As for `conv2d`.
    alpha : float, optional
        Minus the limit for large negative sums.
    out : ndarray, optional
        Where to put the result.
    device : str, optional
        Where to calculate with NumPy arrays: "cpu", "cuda" and so on, see `fastrelu.use`.

    Returns
    -------
    ndarray
        The output (N, O, OH, OW) or (O, OH, OW), in float32 and float64 with the bits that `elu` of `conv2d` has.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.array([[[-3.0, 1.0, 2.0]]]), np.array([[[[1.0, 0.5]]]])
    >>> fastrelu.conv2d_elu(x, w)
    array([[[-0.917915,  2.      ]]])
    """
    return _forward("conv2d_elu", "elu", x, w, b, alpha, stride, padding, dilation, groups, out, device)


def conv2d_sigmoid(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out: ndarray | None = None,
    device: str | None = None,
) -> ndarray:
    """Convolution and `sigmoid`.

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups
        As for `conv2d`.
    out : ndarray, optional
        Where to put the result.
    device : str, optional
        Where to calculate with NumPy arrays: "cpu", "cuda" and so on, see `fastrelu.use`.

    Returns
    -------
    ndarray
        The output (N, O, OH, OW) or (O, OH, OW), in float32 and float64 with the bits that `sigmoid` of `conv2d` has.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.conv2d_sigmoid(np.zeros((1, 1, 2)), np.ones((1, 1, 1, 2)))
    array([[[0.5]]])
    """
    return _forward("conv2d_sigmoid", "sigmoid", x, w, b, 0.0, stride, padding, dilation, groups, out, device)


def conv2d_tanh(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out: ndarray | None = None,
    device: str | None = None,
) -> ndarray:
    """Convolution and `tanh`.

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups
        As for `conv2d`.
    out : ndarray, optional
        Where to put the result.
    device : str, optional
        Where to calculate with NumPy arrays: "cpu", "cuda" and so on, see `fastrelu.use`.

    Returns
    -------
    ndarray
        The output (N, O, OH, OW) or (O, OH, OW), in float32 and float64 with the bits that `tanh` of `conv2d` has.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.conv2d_tanh(np.zeros((1, 1, 2)), np.ones((1, 1, 1, 2)))
    array([[[0.]]])
    """
    return _forward("conv2d_tanh", "tanh", x, w, b, 0.0, stride, padding, dilation, groups, out, device)


def conv2d_softplus(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out: ndarray | None = None,
    device: str | None = None,
) -> ndarray:
    """Convolution and `softplus`.

    Parameters
    ----------
    x, w, b, stride, padding, dilation, groups
        As for `conv2d`.
    out : ndarray, optional
        Where to put the result.
    device : str, optional
        Where to calculate with NumPy arrays: "cpu", "cuda" and so on, see `fastrelu.use`.

    Returns
    -------
    ndarray
        The output (N, O, OH, OW) or (O, OH, OW), in float32 and float64 with the bits that `softplus` of `conv2d` has.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.conv2d_softplus(np.zeros((1, 1, 2)), np.ones((1, 1, 1, 2)))
    array([[[0.69314718]]])
    """
    return _forward("conv2d_softplus", "softplus", x, w, b, 0.0, stride, padding, dilation, groups, out, device)
