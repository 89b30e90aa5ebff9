"""Convolutions of images, with their activation, and the gradients.

The names follow one rule: ``conv2d``, the activation, ``backward``. What is said here once holds for all:

* x is (N, C, H, W), or (C, H, W) for one image; w is (O, C / groups, KH, KW); y is (N, O, OH, OW), with as many axes as x. With
  OH = (H + padding - dilation (KH - 1) - 1) // stride + 1, and OW likewise,

      y[i, o, h, v] = f(b[o] + the sum over c, kh, kw of w[o, c, kh, kw] * x[i, c, h sh + kh dh - top, v sv + kw dv - left])

  This is what `torch.nn.functional.conv2d` calculates (a cross-correlation), with the same arguments.
* ``stride``, ``padding`` and ``dilation`` are whole numbers, one or a pair for rows and columns. ``padding="valid"`` is none,
  and ``"same"`` keeps the size with stride 1: of dilation (K - 1) zeros the smaller half comes first.
* Padding is zeros that take part in the sum: 0 times an infinite weight is NaN. So it is in the gradients.
* Each element is summed in blocks of 256 terms, within a block one chain of fused multiply-adds, and the blocks' sums in
  ascending order. The terms of y are (c, kh, kw) in this order, and its first block starts from the bias; those of dx are
  (o, kh, kw), where the stride lets them meet; those of dw and db (image, h, v). Nothing else that a call does changes the
  bits: neither threads, layouts, the batch (in y and dx), nor what else is calculated.
* float16, bfloat16, float32 and float64 give the same type back; the halves are summed in float32 and rounded once. Types are
  mixed by NumPy's rules; integers become floats. Parameters such as alpha do not change the type.
* Strides of the operands are free: an array in the order (N, H, W, C) is ``a.transpose(0, 3, 1, 2)``. ``out`` may overlap the
  inputs. Results without `out` are C-contiguous. No call warns about floating-point errors.
* In the gradients dz = f'(dy, y) is the gradient before the activation, which is never stored as a whole; where y is NaN the
  gradient passes. ``wanted`` names the gradients to calculate, and the others are returned as None. ``out`` is a triple of
  arrays or None. Those that ``accumulate`` names are added to what `out` holds, and take part in the choice of the type.
* Arrays on a CUDA device (CuPy's, PyTorch's, JAX's, numba-cuda's) are calculated there, in the stream of their library, which
  makes the results; all operands must be there then. In float32 and float64 the bits are those of the CPU. ``device="cuda"``
  brings NumPy arrays there and back (`fastrelu.use`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from fastrelu import activations, faults
from fastrelu import convolution_operands as operands
from fastrelu.device import target, watch
from fastrelu.gradients import named, outputs_for
from fastrelu.native.convolution import Geometry, forward, input_gradient
from fastrelu.native.convolution_gradient import weight_gradient
from fastrelu.operands import wide
from fastrelu.operations import GRADIENTS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "conv2d",
    "conv2d_backward",
    "conv2d_elu",
    "conv2d_elu_backward",
    "conv2d_leaky_relu",
    "conv2d_leaky_relu_backward",
    "conv2d_prelu",
    "conv2d_relu",
    "conv2d_relu_backward",
    "conv2d_sigmoid",
    "conv2d_sigmoid_backward",
    "conv2d_softplus",
    "conv2d_softplus_backward",
    "conv2d_tanh",
    "conv2d_tanh_backward",
]

Triple = tuple[ndarray | None, ndarray | None, ndarray | None]
"""dx, dw and db."""

_plain: type | None = ndarray
"""The type of operands that are calculated on the CPU for certain; None while NumPy arrays go to a GPU."""


@watch
def _choose(is_device_used: bool) -> None:
    global _plain
    _plain = None if is_device_used else ndarray


def _place(base: str, given: Sequence[Any], device: str | None) -> int | None:
    """Where to calculate, as `target` has it."""
    return target(base, given, {} if device is None else {"device": device})


def _parameter(base: str, formula: str, alpha: Any) -> Any:
    """A parameter for a device: a number, or a single value there; None if the formula has none."""
    if not formula.startswith(("leaky_relu", "elu")):
        return None
    return alpha if faults.is_on_cuda(alpha) else operands.number(base, "alpha", alpha)


def _batch(a: ndarray) -> ndarray:
    """Images, also of a single one."""
    return a if a.ndim == 4 else a[None]


def _without_padding(x: ndarray, geometry: Geometry) -> tuple[ndarray, Geometry]:
    """Images that are nothing but padding, as images of zeros."""
    top, left, bottom, right = geometry.padding
    images, channels, height, width = x.shape
    zeros = np.zeros((images, channels, height + top + bottom, width + left + right), x.dtype)
    return zeros, Geometry(geometry.stride, (0, 0, 0, 0), geometry.dilation, geometry.groups)


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
    if device is not None or not (type(x) is type(w) is _plain):
        place = _place(base, (x, w, b, alpha, out), device)
        if place is not None:
            from fastrelu.cuda import dispatch as cuda

            everything = {"x": x, "w": w, "b": b, "alpha": _parameter(base, formula, alpha)}
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
    x = _batch(x)
    y = operands.place(out, (len(x), *shape[-3:]), x.dtype, given.values())
    if y.size and x.shape[1] == 0:
        y[...] = 0 if b is None else b[:, None, None]
        _activate(formula, y, alpha)
    elif y.size:
        if 0 in x.shape:
            x, geometry = _without_padding(x, geometry)
        forward(x, w, b, y, geometry, formula, alpha)
    return operands.deliver(y, out, shape)


def _activate(formula: str, y: ndarray, alpha: float) -> None:
    """The activation of sums without terms, in place."""
    if formula:
        parameters = (alpha,) if formula in ("leaky_relu", "elu") else ()
        getattr(activations, formula)(y, *parameters, out=y)


def _backward(
    base: str,
    formula: str,
    dy: Any,
    y: Any,
    x: Any,
    w: Any,
    alpha: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    wanted: Any,
    accumulate: Any,
    out: Any,
    device: str | None,
) -> Triple:
    """The gradients of a convolution, whose derivative is the formula of that name."""
    wanted, added = named(base, "wanted", wanted), named(base, "accumulate", accumulate)
    if not wanted:
        raise ValueError(f"{base}: wanted must name at least one of {GRADIENTS}, not none")
    outputs = outputs_for(base, out, wanted, added)
    needs_images = wanted != ("db",)
    for name, operand in (("x", x), ("w", w)):
        if operand is None and needs_images:
            raise ValueError(f"{base}: {name} is needed for {next(g for g in wanted if g != 'db')}, and must not be None")
    named_operands = {"dy": dy, "y": y, "x": x, "w": w} if formula else {"dy": dy, "x": x, "w": w}
    named_operands = {name: o for name, o in named_operands.items() if o is not None or name in ("dy", "y")}
    if device is not None or type(dy) is not _plain:
        place = _place(base, (*named_operands.values(), alpha, *outputs.values()), device)
        if place is not None:
            from fastrelu.cuda import dispatch as cuda

            named_operands["alpha"] = _parameter(base, formula, alpha)
            options = stride, padding, dilation, groups
            on_device: Triple = cuda.convolution_backward(base, named_operands, options, wanted, added, outputs, place)
            return on_device
    named_operands |= {f"out for {name}": outputs[name] for name in added}
    given = operands.arrays(base, named_operands)
    dy, y, x, w = (given.get(name) for name in ("dy", "y", "x", "w"))
    geometry = operands.gradient_geometry(base, {n: a.shape for n, a in given.items()}, stride, padding, dilation, groups)
    shapes = {"dx": () if x is None else x.shape, "dw": () if w is None else w.shape, "db": dy.shape[-3:-2]}
    for name, array in outputs.items():
        operands.output(base, f"out for {name}", array, shapes[name], dy.dtype)
    alpha = operands.number(base, "alpha", alpha)

    inputs = [a for a in (dy, y, x, w) if a is not None]
    shapes_4d = {**shapes, "dx": (1,) * (4 - len(shapes["dx"])) + shapes["dx"]}
    places = {name: operands.place(outputs.get(name), shapes_4d[name], dy.dtype, inputs) for name in wanted}
    held = {name: np.ascontiguousarray(given[f"out for {name}"]).reshape(shapes_4d[name]) for name in added}
    dy, y, x = (None if a is None else _batch(a) for a in (dy, y, x))
    calculated = {name: a for name, a in places.items() if a.size and dy.size}
    for name in places.keys() - calculated.keys():
        places[name][...] = held.get(name, 0)
    if "dx" in calculated:
        input_gradient(dy, y, w, calculated["dx"], geometry, formula, alpha, held.get("dx"))
    if "dw" in calculated or "db" in calculated:
        if "dw" in calculated and 0 in x.shape:
            x, geometry = _without_padding(x, geometry)
        gradients = calculated.get("dw"), calculated.get("db")
        weight_gradient(dy, y, x, *gradients, geometry, formula, alpha, held.get("dw"), held.get("db"))
    results = [operands.deliver(places[g], outputs.get(g), shapes[g]) if g in wanted else None for g in GRADIENTS]
    return results[0], results[1], results[2]


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
    if device is not None or not (type(x) is type(w) is _plain):
        place = _place(base, (x, w, b, alpha, out), device)
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


def conv2d_backward(
    dy: ArrayLike,
    x: ArrayLike | None,
    w: ArrayLike | None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    out: tuple[ndarray | None, ndarray | None, ndarray | None] | None = None,
    device: str | None = None,
) -> Triple:
    """Gradients of `conv2d` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output, of its shape.
    x : array_like or None
        The input; may be None if only db is wanted.
    w : array_like or None
        The weight; may be None if only db is wanted.
    stride, padding, dilation, groups
        As in the forward pass.
    wanted : sequence of str, optional
        The gradients to calculate, among "dx", "dw" and "db".
    accumulate : sequence of str, optional
        Those of them that are added to what `out` holds.
    out : tuple of (ndarray or None), optional
        Where to put dx, dw and db.
    device : str, optional
        As in the forward pass.

    Returns
    -------
    dx : ndarray or None
        Gradient with respect to x, of its shape.
    dw : ndarray or None
        Gradient with respect to w, of its shape.
    db : ndarray or None
        The sum of dy over images and positions (O,).

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type, or is another library's array that decides for itself.
    ValueError
        If shapes do not fit, if an operand that is needed is None, or if `wanted`, `out` and `accumulate` do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.array([[[-3.0, 1.0, 2.0]]]), np.array([[[[1.0, 0.5]]]])
    >>> dx, dw, db = fastrelu.conv2d_backward(np.array([[[1.0, 2.0]]]), x, w)
    >>> dx, dw, db
    (array([[[1. , 2.5, 1. ]]]), array([[[[-1.,  5.]]]]), array([3.]))
    """
    options = stride, padding, dilation, groups, wanted, accumulate, out, device
    return _backward("conv2d_backward", "", dy, None, x, w, 0.0, *options)


def conv2d_relu_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: ArrayLike | None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    out: tuple[ndarray | None, ndarray | None, ndarray | None] | None = None,
    device: str | None = None,
) -> Triple:
    """Gradients of `conv2d_relu` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output.
    x, w, stride, padding, dilation, groups, wanted, accumulate, out, device
        As for `conv2d_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `conv2d_backward`, with dz = dy where y > 0 or y is NaN, else 0, in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.array([[[-3.0, 1.0, 2.0]]]), np.array([[[[1.0, 0.5]]]])
    >>> y = fastrelu.conv2d_relu(x, w)
    >>> fastrelu.conv2d_relu_backward(np.ones((1, 1, 2)), y, x, w, wanted=("dw", "db"))
    (None, array([[[[1., 2.]]]]), array([1.]))
    """
    options = stride, padding, dilation, groups, wanted, accumulate, out, device
    return _backward("conv2d_relu_backward", "relu_backward", dy, y, x, w, 0.0, *options)


def conv2d_leaky_relu_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: ArrayLike | None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    alpha: float = 0.01,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    out: tuple[ndarray | None, ndarray | None, ndarray | None] | None = None,
    device: str | None = None,
) -> Triple:
    """Gradients of `conv2d_leaky_relu` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output.
    x, w, stride, padding, dilation, groups
        As for `conv2d_backward`.
    alpha : float, optional
        As in the forward pass.
    wanted, accumulate, out, device
        As for `conv2d_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `conv2d_backward`, with dz = `leaky_relu_backward` of dy and y, in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.array([[[-3.0, 1.0, 2.0]]]), np.array([[[[1.0, 0.5]]]])
    >>> y = fastrelu.conv2d_leaky_relu(x, w, alpha=0.5)
    >>> fastrelu.conv2d_leaky_relu_backward(np.ones((1, 1, 2)), y, x, w, alpha=0.5, wanted=("db",))[2]
    array([1.5])
    """
    options = stride, padding, dilation, groups, wanted, accumulate, out, device
    return _backward("conv2d_leaky_relu_backward", "leaky_relu_backward", dy, y, x, w, alpha, *options)


def conv2d_elu_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: ArrayLike | None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    alpha: float = 1.0,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    out: tuple[ndarray | None, ndarray | None, ndarray | None] | None = None,
    device: str | None = None,
) -> Triple:
    """Gradients of `conv2d_elu` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output.
    x, w, stride, padding, dilation, groups
        As for `conv2d_backward`.
    alpha : float, optional
        As in the forward pass.
    wanted, accumulate, out, device
        As for `conv2d_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `conv2d_backward`, with dz = `elu_backward` of dy and y, in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.zeros((1, 1, 2)), np.ones((1, 1, 1, 2))
    >>> y = fastrelu.conv2d_elu(x, w)
    >>> fastrelu.conv2d_elu_backward(np.ones((1, 1, 1)), y, x, w, wanted=("db",))[2]
    array([1.])
    """
    options = stride, padding, dilation, groups, wanted, accumulate, out, device
    return _backward("conv2d_elu_backward", "elu_backward", dy, y, x, w, alpha, *options)


def conv2d_sigmoid_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: ArrayLike | None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    out: tuple[ndarray | None, ndarray | None, ndarray | None] | None = None,
    device: str | None = None,
) -> Triple:
    """Gradients of `conv2d_sigmoid` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output.
    x, w, stride, padding, dilation, groups, wanted, accumulate, out, device
        As for `conv2d_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `conv2d_backward`, with dz = `sigmoid_backward` of dy and y, in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.zeros((1, 1, 2)), np.ones((1, 1, 1, 2))
    >>> y = fastrelu.conv2d_sigmoid(x, w)
    >>> fastrelu.conv2d_sigmoid_backward(np.ones((1, 1, 1)), y, x, w, wanted=("db",))[2]
    array([0.25])
    """
    options = stride, padding, dilation, groups, wanted, accumulate, out, device
    return _backward("conv2d_sigmoid_backward", "sigmoid_backward", dy, y, x, w, 0.0, *options)


def conv2d_tanh_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: ArrayLike | None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    out: tuple[ndarray | None, ndarray | None, ndarray | None] | None = None,
    device: str | None = None,
) -> Triple:
    """Gradients of `conv2d_tanh` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output.
    x, w, stride, padding, dilation, groups, wanted, accumulate, out, device
        As for `conv2d_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `conv2d_backward`, with dz = `tanh_backward` of dy and y, in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.zeros((1, 1, 2)), np.ones((1, 1, 1, 2))
    >>> y = fastrelu.conv2d_tanh(x, w)
    >>> fastrelu.conv2d_tanh_backward(np.ones((1, 1, 1)), y, x, w, wanted=("db",))[2]
    array([1.])
    """
    options = stride, padding, dilation, groups, wanted, accumulate, out, device
    return _backward("conv2d_tanh_backward", "tanh_backward", dy, y, x, w, 0.0, *options)


def conv2d_softplus_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: ArrayLike | None,
    /,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    out: tuple[ndarray | None, ndarray | None, ndarray | None] | None = None,
    device: str | None = None,
) -> Triple:
    """Gradients of `conv2d_softplus` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output.
    x, w, stride, padding, dilation, groups, wanted, accumulate, out, device
        As for `conv2d_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `conv2d_backward`, with dz = `softplus_backward` of dy and y, in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.zeros((1, 1, 2)), np.ones((1, 1, 1, 2))
    >>> y = fastrelu.conv2d_softplus(x, w)
    >>> fastrelu.conv2d_softplus_backward(np.ones((1, 1, 1)), y, x, w, wanted=("db",))[2]
    array([0.5])
    """
    options = stride, padding, dilation, groups, wanted, accumulate, out, device
    return _backward("conv2d_softplus_backward", "softplus_backward", dy, y, x, w, 0.0, *options)
