"""The gradients of convolutions.

The names follow one rule: that of the convolution and ``_backward``. What is said here once holds for all:

* dz = f'(dy, y) is the gradient before the activation, which is never stored as a whole; where y is NaN the gradient passes.
* ``wanted`` names the gradients to calculate, and the others are returned as None. ``out`` is a triple of arrays or None. Those
  that ``accumulate`` names are added to what `out` holds, and take part in the choice of the type.
* Each element is summed as in the forward pass. The terms of dx are (o, kh, kw), where the stride lets them meet; those of dw
  and db (image, h, v). Nothing else that a call does changes the bits: neither threads, layouts, what else is calculated, nor,
  in dx, the batch.
* Padding takes part in the sums as zeros. Types, strides, overlap, warnings, arrays on a CUDA device and ``device`` are as in
  the forward pass (`fastrelu.convolution`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from fastrelu import convolution_operands as operands
from fastrelu.device import is_used
from fastrelu.gradients import named, outputs_for
from fastrelu.native.convolution import input_gradient
from fastrelu.native.convolution_gradient import weight_gradient
from fastrelu.operations import GRADIENTS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "conv2d_backward",
    "conv2d_elu_backward",
    "conv2d_leaky_relu_backward",
    "conv2d_relu_backward",
    "conv2d_sigmoid_backward",
    "conv2d_softplus_backward",
    "conv2d_tanh_backward",
]

Triple = tuple[ndarray | None, ndarray | None, ndarray | None]
"""dx, dw and db."""


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
    if device is not None or is_used() or type(dy) is not ndarray:
        place = operands.target_of(base, (*named_operands.values(), alpha, *outputs.values()), device)
        if place is not None:
            from fastrelu.cuda import dispatch as cuda

            named_operands["alpha"] = operands.device_parameter(base, formula, alpha)
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
    dy, y, x = (None if a is None else operands.batch(a) for a in (dy, y, x))
    calculated = {name: a for name, a in places.items() if a.size and dy.size}
    for name in places.keys() - calculated.keys():
        places[name][...] = held.get(name, 0)
    if "dx" in calculated:
        input_gradient(dy, y, w, calculated["dx"], geometry, formula, alpha, held.get("dx"))
    if "dw" in calculated or "db" in calculated:
        if "dw" in calculated and 0 in x.shape:
            x, geometry = operands.without_padding(x, geometry)
        gradients = calculated.get("dw"), calculated.get("db")
        weight_gradient(dy, y, x, *gradients, geometry, formula, alpha, held.get("dw"), held.get("db"))
    results = [operands.deliver(places[g], outputs.get(g), shapes[g]) if g in wanted else None for g in GRADIENTS]
    return results[0], results[1], results[2]


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
