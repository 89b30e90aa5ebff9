"""The ReLU family, sigmoid, tanh and softplus on JAX's arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastrelu.jax import derivatives  # noqa: F401  # which gives the primitive its rules
from fastrelu.jax.operands import is_known, prepared
from fastrelu.jax.primitive import ufunc

if TYPE_CHECKING:
    import jax
    from jax.typing import ArrayLike


def _activation(name: str, x: Any, alpha: Any = None) -> Any:
    given = {"x": x} if alpha is None else {"x": x, "alpha": alpha}
    return ufunc(name, *prepared(name, given).values(), from_output=alpha is None or is_known(alpha))


def relu(x: ArrayLike, /) -> jax.Array:
    """Rectified linear unit: max(x, 0).

    Parameters
    ----------
    x : array_like
        Input, of any float or integer type.

    Returns
    -------
    jax.Array
        As `fastrelu.relu`: x where x > 0, +0 where x <= 0, a NaN as it is. The gradient passes where x > 0 or x is NaN.

    Raises
    ------
    TypeError
        If `x` has a type other than these.

    Examples
    --------
    >>> import jax
    >>> import fastrelu.jax
    >>> jax.grad(fastrelu.jax.relu)(2.0)
    Array(1., dtype=float32, weak_type=True)
    """
    return _activation("relu", x)


def leaky_relu(x: ArrayLike, /, alpha: ArrayLike = 0.01) -> jax.Array:
    """Leaky ReLU: x where x > 0, else alpha * x.

    Parameters
    ----------
    x : array_like
        Input.
    alpha : array_like, optional
        Slope below 0, which has a derivative as well.

    Returns
    -------
    jax.Array

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If `alpha` does not broadcast with `x`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.leaky_relu(jnp.array([-1.0, 2.0]), alpha=0.25)
    Array([-0.25,  2.  ], dtype=float32)
    """
    return _activation("leaky_relu", x, alpha)


def prelu(x: ArrayLike, alpha: ArrayLike, /) -> jax.Array:
    """Parametric ReLU: x where x > 0, else alpha * x, with a learned alpha.

    Parameters
    ----------
    x : array_like
        Input.
    alpha : array_like
        Slopes, broadcast against `x`. Their gradient is summed in the order of `fastrelu.prelu_backward`.

    Returns
    -------
    jax.Array

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If `alpha` does not broadcast with `x`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import fastrelu.jax
    >>> jax.grad(lambda alpha: fastrelu.jax.prelu(jnp.array([-3.0, 2.0]), alpha).sum())(jnp.array([0.25]))
    Array([-3.], dtype=float32)
    """
    return _activation("prelu", x, alpha)


def elu(x: ArrayLike, /, alpha: ArrayLike = 1.0) -> jax.Array:
    """Exponential linear unit: x where x > 0, else alpha * (exp(x) - 1).

    Parameters
    ----------
    x : array_like
        Input.
    alpha : array_like, optional
        The limit at minus infinity, with the sign turned; it has a derivative as well.

    Returns
    -------
    jax.Array

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If `alpha` does not broadcast with `x`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.elu(jnp.array([-1.0, 2.0]))
    Array([-0.63212055,  2.        ], dtype=float32)
    """
    return _activation("elu", x, alpha)


def sigmoid(x: ArrayLike, /) -> jax.Array:
    """Logistic function: 1 / (1 + exp(-x)).

    Parameters
    ----------
    x : array_like
        Input.

    Returns
    -------
    jax.Array

    Raises
    ------
    TypeError
        If `x` is neither of a float nor of an integer type.

    Examples
    --------
    >>> import fastrelu.jax
    >>> fastrelu.jax.sigmoid(0.0)
    Array(0.5, dtype=float32, weak_type=True)
    """
    return _activation("sigmoid", x)


def tanh(x: ArrayLike, /) -> jax.Array:
    """Hyperbolic tangent.

    Parameters
    ----------
    x : array_like
        Input.

    Returns
    -------
    jax.Array

    Raises
    ------
    TypeError
        If `x` is neither of a float nor of an integer type.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.tanh(jnp.array([-jnp.inf, 0.0]))
    Array([-1.,  0.], dtype=float32)
    """
    return _activation("tanh", x)


def softplus(x: ArrayLike, /) -> jax.Array:
    """Smooth ReLU: log(1 + exp(x)).

    Parameters
    ----------
    x : array_like
        Input.

    Returns
    -------
    jax.Array

    Raises
    ------
    TypeError
        If `x` is neither of a float nor of an integer type.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import fastrelu.jax
    >>> fastrelu.jax.softplus(jnp.array([0.0, 1000.0]))
    Array([6.931472e-01, 1.000000e+03], dtype=float32)
    """
    return _activation("softplus", x)
