"""The ReLU family, sigmoid, tanh and softplus, forward and backward.

Every function but `prelu_backward` is a NumPy ufunc in all that it does: broadcasting, ``out``, ``where``, ``dtype``,
``casting``, ``order``, ``subok``, scalars and lists, subclasses, other libraries' arrays through ``__array_ufunc__``.

What is said here once holds for all:

* float16, bfloat16 (of the package ml_dtypes), float32 and float64 give the same type back. The functions that only compare
  and select (`relu`, `relu_derivative`, `relu_backward`) do so for every integer type as well; for the others NumPy's rules
  turn integers into the smallest float that holds them. Any other type is a TypeError, bool included.
* float16 and bfloat16 are calculated in float32 and rounded once; a float32 `alpha` does not widen them.
* A NaN is never hidden: it comes out where it went in, and a gradient passes where it stands.
* Subnormal numbers are kept. No call warns about floating-point errors.
* The result does not depend on the number of threads, the memory layout, the position in the array, or the processor; of a
  NaN that was calculated this means only that it is one.
* ``out`` may be any of the inputs, or overlap them in any way.
* Arrays on a CUDA device (CuPy's, PyTorch's, JAX's, numba-cuda's) are calculated there, in the stream of their library, which
  makes the results, with the same bits; a ufunc's keyword ``signature`` is not taken then. ``device="cuda"`` brings NumPy
  arrays there and back (`fastrelu.use`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from fastrelu import faults, foreign
from fastrelu.device import target
from fastrelu.dispatch import elementwise

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Unpack


class UfuncKeywords(TypedDict, total=False):
    """The keyword arguments of `numpy.ufunc`."""

    where: ArrayLike
    casting: str
    order: str
    dtype: DTypeLike
    subok: bool
    signature: Any
    device: str


__all__ = [
    "elu",
    "elu_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "prelu",
    "prelu_backward",
    "relu",
    "relu_backward",
    "relu_derivative",
    "sigmoid",
    "sigmoid_backward",
    "softplus",
    "softplus_backward",
    "tanh",
    "tanh_backward",
]


@elementwise
def relu(x: ArrayLike, /, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Rectified linear unit: max(x, 0).

    Parameters
    ----------
    x : array_like
        Input, of any float or integer type.
    out : ndarray, optional
        Where to put the result.
    **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        x where x > 0, and +0 where x <= 0; also -0.0 gives +0.0. A NaN is returned as it is.

    Raises
    ------
    TypeError
        If `x` has a type other than these.

    Notes
    -----
    Fukushima, "Visual feature extraction by a multilayered network of analog threshold elements", 1969,
    doi:10.1109/TSSC.1969.300225; Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", 2010.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.relu(np.array([-1.5, 0.0, 2.0]))
    array([0., 0., 2.])
    """


@elementwise
def relu_derivative(x: ArrayLike, /, at_zero: ArrayLike = 0.0, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Derivative of `relu`: 1 where x > 0, 0 where x < 0.

    Parameters
    ----------
    x : array_like
        Input of `relu`, of any float or integer type. Its output serves as well.
    at_zero : array_like, optional
        The value where x is 0, which the derivative leaves open; 0 as in PyTorch and JAX. A whole number
        keeps an integer type.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        1, 0 or `at_zero`, of the type of `x`; 1 for a NaN.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.relu_derivative(np.array([-2.0, 0.0, 3.0]), at_zero=0.5)
    array([0. , 0.5, 1. ])
    """


@elementwise
def relu_backward(dy: ArrayLike, y: ArrayLike, /, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Gradient of `relu` with respect to its input: dy where y > 0, else 0.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output of `relu`; its input gives the same result.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        dy where y > 0 or y is NaN, and +0 where y <= 0.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.relu_backward(np.array([0.1, 0.2, 0.3]), fastrelu.relu(np.array([-1.0, 0.0, 2.0])))
    array([0. , 0. , 0.3])
    """


@elementwise
def leaky_relu(x: ArrayLike, /, alpha: ArrayLike = 0.01, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Leaky ReLU: x where x > 0, else alpha * x.

    Parameters
    ----------
    x : array_like
        Input.
    alpha : array_like, optional
        Slope for negative `x`. A Python number does not change the type of the result.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        0 keeps its sign.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Notes
    -----
    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.leaky_relu(np.array([-2.0, 3.0]), alpha=0.25)
    array([-0.5,  3. ])
    """


@elementwise
def leaky_relu_backward(
    dy: ArrayLike, y: ArrayLike, /, alpha: ArrayLike = 0.01, out: Any = None, **kwargs: Unpack[UfuncKeywords]
) -> Any:
    """Gradient of `leaky_relu` with respect to its input: dy where y > 0, else alpha * dy.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output. If `alpha` may be negative the output does not tell the sign of the input: give the input instead,
        which is right for every `alpha`.
    alpha : array_like, optional
        As in the forward pass.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        At y = 0 it is alpha * dy, at a NaN dy.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.leaky_relu_backward(np.array([1.0, 1.0]), np.array([-0.5, 3.0]), alpha=0.25)
    array([0.25, 1.  ])
    """


@elementwise
def prelu(x: ArrayLike, alpha: ArrayLike, /, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Parametric ReLU: x where x > 0, else alpha * x, with a learned alpha.

    Parameters
    ----------
    x : array_like
        Input.
    alpha : array_like
        Slopes, broadcast against `x` by NumPy's rules: shape (C,) for `x` of shape (N, C), and ``alpha[:, None, None]``
        for channels in `x` of shape (N, C, H, W).
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        0 keeps its sign.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Notes
    -----
    He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015, doi:10.1109/ICCV.2015.123.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.prelu(np.array([[-1.0, -1.0], [2.0, 2.0]]), np.array([0.25, 0.5]))
    array([[-0.25, -0.5 ],
           [ 2.  ,  2.  ]])
    """


def prelu_backward(dy: ArrayLike, x: ArrayLike, alpha: ArrayLike, /, *, device: str | None = None) -> tuple[Any, Any]:
    """Gradients of `prelu` with respect to its input and to alpha.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    x : array_like
        The input; a learned alpha may become negative, and then the output does not tell the sign of the input.
    alpha : array_like
        As in the forward pass.
    device : str, optional
        Where NumPy arrays are calculated, "cpu" or "cuda"; where `fastrelu.use` says if not given.

    Returns
    -------
    dx : ndarray or scalar
        dy where x > 0 or x is NaN, else alpha * dy.
    dalpha : ndarray or scalar
        The sum of dy * min(x, 0) over the axes along which `alpha` was broadcast, of the shape of `alpha`; of its type if
        that is a float type, else of that of `dx`. A NaN in `x` shows in it. Summed in blocks of 256 in the order of the
        axes, so that the bits depend neither on the memory layout nor on what stands in other channels; halves are summed in
        float32.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If `alpha` does not broadcast to the shape of `x`, or `dy` differs from it.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x = np.array([[-1.0, -2.0], [3.0, -4.0]])
    >>> dx, dalpha = fastrelu.prelu_backward(np.ones((2, 2)), x, np.array([0.25, 0.5]))
    >>> dalpha
    array([-1., -6.])
    """
    from fastrelu import ufuncs
    from fastrelu.sums import sum_to

    place = target("prelu_backward", (dy, x, alpha), {} if device is None else {"device": device})
    if place is not None:
        from fastrelu.cuda import dispatch as cuda

        gradients: tuple[Any, Any] = cuda.elementwise("prelu_backward", {"dy": dy, "x": x, "alpha": alpha}, None, {}, place)
        return gradients
    if any(map(foreign.is_foreign, (dy, x, alpha))):
        gradients = foreign.call(prelu_backward, "prelu_backward", {"dy": dy, "x": x, "alpha": alpha}, None, {})
        return gradients
    try:
        shape, slopes = np.shape(x), np.shape(alpha)
        if np.shape(dy) != shape:
            raise ValueError(f"prelu_backward: dy must have the shape of x, {shape}, not {np.shape(dy)}")
        if len(slopes) > len(shape) or any(s not in (1, n) for s, n in zip(slopes[::-1], shape[::-1], strict=False)):
            raise ValueError(f"prelu_backward: alpha must broadcast to the shape of x, {shape}, not have shape {slopes}")
        dx = ufuncs.prelu_backward(dy, x, alpha)
        dtype = np.asarray(dx).dtype
        terms = ufuncs.prelu_alpha_gradient(np.asarray(dy), np.asarray(x), dtype=np.promote_types(dtype, np.float32))
    except (TypeError, ValueError, OverflowError) as error:
        raise faults.explain("prelu_backward", error, {"dy": dy, "x": x, "alpha": alpha}) from None
    if isinstance(dx, np.ma.MaskedArray):
        terms = np.where(np.ma.getmaskarray(dx), 0, terms)
    given = getattr(alpha, "dtype", dtype)
    total = sum_to(np.asarray(terms), slopes)
    with np.errstate(all="ignore"):
        return dx, total.astype(dtype if given.kind in "iu" else given)[()]


@elementwise
def elu(x: ArrayLike, /, alpha: ArrayLike = 1.0, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Exponential linear unit: x where x > 0, else alpha * (exp(x) - 1).

    Parameters
    ----------
    x : array_like
        Input.
    alpha : array_like, optional
        Minus the limit for large negative `x`.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        Largest error with alpha = 1: 0.95 ULP in float32, 1.18 in float64. 0 keeps its sign.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Notes
    -----
    Clevert, Unterthiner and Hochreiter, "Fast and accurate deep network learning by exponential linear units", 2016,
    arXiv:1511.07289.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.elu(np.array([-1.0, 2.0]))
    array([-0.63212056,  2.        ])
    """


@elementwise
def elu_backward(
    dy: ArrayLike, y: ArrayLike, /, alpha: ArrayLike = 1.0, out: Any = None, **kwargs: Unpack[UfuncKeywords]
) -> Any:
    """Gradient of `elu` with respect to its input: dy where y > 0, else dy * (y + alpha).

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output. It suffices for alpha >= 0 only: with a negative alpha all outputs are positive.
    alpha : array_like, optional
        As in the forward pass.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        At y = 0 it is alpha * dy, at a NaN dy. Where `y` comes close to -alpha the sum cancels: the error is about one unit
        in the last place of alpha, not of the result.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.elu_backward(np.array([1.0, 1.0]), fastrelu.elu(np.array([-1.0, 2.0])))
    array([0.36787944, 1.        ])
    """


@elementwise
def sigmoid(x: ArrayLike, /, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Logistic function: 1 / (1 + exp(-x)).

    Parameters
    ----------
    x : array_like
        Input.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        Between 0 and 1; small results keep their digits down to the subnormal numbers. Largest error: 1.52 ULP in
        float32, 1.48 in float64.

    Raises
    ------
    TypeError
        If `x` is neither of a float nor of an integer type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.sigmoid(np.array([-np.inf, 0.0, np.inf]))
    array([0. , 0.5, 1. ])
    """


@elementwise
def sigmoid_backward(dy: ArrayLike, y: ArrayLike, /, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Gradient of `sigmoid` with respect to its input: dy * y * (1 - y).

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Examples
    --------
    >>> import fastrelu
    >>> float(fastrelu.sigmoid_backward(2.0, 0.5))
    0.5
    """


@elementwise
def tanh(x: ArrayLike, /, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Hyperbolic tangent.

    Parameters
    ----------
    x : array_like
        Input.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        0 keeps its sign. Largest error: 1.47 ULP in float32, 1.54 in float64.

    Raises
    ------
    TypeError
        If `x` is neither of a float nor of an integer type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.tanh(np.array([-np.inf, 0.0, 1.0]))
    array([-1.        ,  0.        ,  0.76159416])
    """


@elementwise
def tanh_backward(dy: ArrayLike, y: ArrayLike, /, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Gradient of `tanh` with respect to its input: dy * (1 - y**2).

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Examples
    --------
    >>> import fastrelu
    >>> float(fastrelu.tanh_backward(2.0, 0.5))
    1.5
    """


@elementwise
def softplus(x: ArrayLike, /, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Smooth ReLU: log(1 + exp(x)).

    Parameters
    ----------
    x : array_like
        Input.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        Never overflows before `x` does. Largest error: 1.97 ULP in float32, 1.93 in float64.

    Raises
    ------
    TypeError
        If `x` is neither of a float nor of an integer type.

    Notes
    -----
    Dugas, Bengio, Bélisle, Nadeau and Garcia, "Incorporating second-order functional knowledge for better option pricing",
    2000.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.softplus(np.array([-1000.0, 0.0, 1000.0]))
    array([0.00000000e+00, 6.93147181e-01, 1.00000000e+03])
    """


@elementwise
def softplus_backward(dy: ArrayLike, y: ArrayLike, /, out: Any = None, **kwargs: Unpack[UfuncKeywords]) -> Any:
    """Gradient of `softplus` with respect to its input: dy * (1 - exp(-y)), which is dy * sigmoid(x).

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output.
    y : array_like
        The output.
    out, **kwargs
        As for any `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> round(float(fastrelu.softplus_backward(1.0, fastrelu.softplus(0.0))), 12)
    0.5
    """
