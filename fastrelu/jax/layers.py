"""Fused layers, f(x @ w + b) in one pass, on JAX's arrays.

x is (..., k), w (k, n) and b (n,) or None, as in `fastrelu.layers`; w and b may have batch axes of their own, which broadcast
with those of x. The bits are those of the NumPy functions, and so are those of the gradients where w is one matrix: dx, dw
and db come from one call of the fused backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from fastrelu.jax import derivatives  # noqa: F401  # which gives the primitive its rules
from fastrelu.jax.operands import is_known, prepared
from fastrelu.jax.primitive import cores, ufunc
from fastrelu.operations import LAYERS, Layer

if TYPE_CHECKING:
    import jax
    from jax.typing import ArrayLike


def _layer(base: str, x: Any, w: Any, b: Any, alpha: Any = None) -> Any:
    given = {"x": x, "w": w, "b": b} if alpha is None else {"x": x, "w": w, "b": b, "alpha": alpha}
    operands = prepared(base, given)
    if LAYERS[base].alpha == "(n)" and operands["alpha"].ndim == 0:
        operands["alpha"] = jnp.broadcast_to(operands["alpha"], operands["w"].shape[-1:])
    layer = LAYERS[base if "b" in operands else f"{base}_no_bias"]
    from_output = alpha is None or (layer.alpha == "()" and is_known(alpha))
    return _in_order_of_weights(partial(ufunc, layer.name, from_output=from_output), layer, [*operands.values()])


def _in_order_of_weights(function: Callable[..., Any], layer: Layer, operands: list[Any]) -> Any:
    """Call a layer with those loop axes last along which there is one weight: together they are the rows of a product."""
    lengths = [len(core) for core in cores(layer.name)[0]]
    loops = [operand.ndim - length for operand, length in zip(operands, lengths, strict=True)]
    axes = max(loops)
    weight = (1,) * (axes - loops[1]) + operands[1].shape[: loops[1]]
    order = sorted(range(axes), key=lambda axis: weight[axis] == 1)
    if order == [*range(axes)]:
        return function(*operands)
    padded = [jnp.expand_dims(operand, range(axes - own)) for operand, own in zip(operands, loops, strict=True)]
    ordered = [operand.transpose(*order, *range(axes, operand.ndim)) for operand in padded]
    return function(*ordered).transpose(*np.argsort(order), axes)


def linear(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, /) -> jax.Array:
    """Linear layer: x @ w + b.

    Parameters
    ----------
    x : array_like
        Input (..., k).
    w : array_like
        Weight (..., k, n).
    b : array_like, optional
        Bias (..., n).

    Returns
    -------
    jax.Array
        (..., n).

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.linear(jnp.array([1.0, 2.0]), jnp.array([[1.0], [-1.0]]))
    Array([-1.], dtype=float32)
    """
    return _layer("linear", x, w, b)


def linear_relu(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, /) -> jax.Array:
    """Linear layer and ReLU: max(x @ w + b, 0).

    Parameters
    ----------
    x, w, b : array_like
        As for `linear`.

    Returns
    -------
    jax.Array
        (..., n). NaN and zero are treated as in `fastrelu.relu`.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import fastrelu.jax
    >>> jax.grad(lambda w: fastrelu.jax.linear_relu(jnp.array([1.0, 2.0]), w).sum())(jnp.array([[1.0, -1.0], [1.0, -1.0]]))
    Array([[1., 0.],
           [2., 0.]], dtype=float32)
    """
    return _layer("linear_relu", x, w, b)


def linear_leaky_relu(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, /, alpha: ArrayLike = 0.01) -> jax.Array:
    """Linear layer and leaky ReLU.

    Parameters
    ----------
    x, w, b : array_like
        As for `linear`.
    alpha : array_like, optional
        As for the activation. A number that is not negative is best: then the gradient needs the output only.

    Returns
    -------
    jax.Array
        (..., n).

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.linear_leaky_relu(jnp.array([1.0, 2.0]), jnp.array([[1.0], [-1.0]]), alpha=0.25)
    Array([-0.25], dtype=float32)
    """
    return _layer("linear_leaky_relu", x, w, b, alpha)


def linear_prelu(x: ArrayLike, w: ArrayLike, b: ArrayLike | None, alpha: ArrayLike, /) -> jax.Array:
    """Linear layer and parametric ReLU.

    Parameters
    ----------
    x, w, b : array_like
        As for `linear`.
    alpha : array_like
        Slopes below 0: one, or one a column (n,).

    Returns
    -------
    jax.Array
        (..., n).

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.linear_prelu(jnp.ones(1), jnp.array([[1.0, -1.0]]), None, jnp.array([0.5, 0.25]))
    Array([ 1.  , -0.25], dtype=float32)
    """
    return _layer("linear_prelu", x, w, b, alpha)


def linear_elu(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, /, alpha: ArrayLike = 1.0) -> jax.Array:
    """Linear layer and ELU.

    Parameters
    ----------
    x, w, b : array_like
        As for `linear`.
    alpha : array_like, optional
        As for the activation. A number that is not negative is best: then the gradient needs the output only.

    Returns
    -------
    jax.Array
        (..., n).

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.linear_elu(jnp.array([1.0, 2.0]), jnp.array([[1.0], [-1.0]]))
    Array([-0.63212055], dtype=float32)
    """
    return _layer("linear_elu", x, w, b, alpha)


def linear_sigmoid(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, /) -> jax.Array:
    """Linear layer and sigmoid.

    Parameters
    ----------
    x, w, b : array_like
        As for `linear`.

    Returns
    -------
    jax.Array
        (..., n).

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.linear_sigmoid(jnp.ones(2), jnp.array([[1.0], [-1.0]]))
    Array([0.5], dtype=float32)
    """
    return _layer("linear_sigmoid", x, w, b)


def linear_tanh(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, /) -> jax.Array:
    """Linear layer and tanh.

    Parameters
    ----------
    x, w, b : array_like
        As for `linear`.

    Returns
    -------
    jax.Array
        (..., n).

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.linear_tanh(jnp.ones(2), jnp.array([[1.0], [-1.0]]))
    Array([0.], dtype=float32)
    """
    return _layer("linear_tanh", x, w, b)


def linear_softplus(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, /) -> jax.Array:
    """Linear layer and softplus.

    Parameters
    ----------
    x, w, b : array_like
        As for `linear`.

    Returns
    -------
    jax.Array
        (..., n).

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.linear_softplus(jnp.ones(2), jnp.array([[1.0], [-1.0]]))
    Array([0.6931472], dtype=float32)
    """
    return _layer("linear_softplus", x, w, b)
