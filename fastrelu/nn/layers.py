"""Layers: ``y = layer.forward(x)``, later ``dx = layer.backward(dy)``, and then the layer has the gradients of its parameters.

What is said here once holds for all:

* The first axis is the batch. x and dy become arrays of the type of the parameters; the values of a row of the result depend
  on that row only.
* `forward` keeps what `backward` needs of x and y without copying it, so that neither may be changed in between.
* ``parameters`` and ``gradients`` are dicts from names to arrays. The arrays of the gradients are made by the first `backward`
  and filled again by the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import fastrelu
from fastrelu.nn.activations import ELU, Activation, LeakyReLU, ReLU, Sigmoid, Softplus, Tanh
from fastrelu.nn.initial import he_normal
from fastrelu.operands import known_array, whole_number

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["Flatten", "Linear", "LinearReLU"]

FUSED = (ReLU, LeakyReLU, ELU, Sigmoid, Tanh, Softplus)
"""Activations that a layer before them can apply: their gradient needs no more than the output."""


class Layer:
    """What the layers share. One with an activation of its own, or that a model gives it, applies it before y is stored."""

    fuses = False
    """Whether an activation can be fused into the layer."""

    _names: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._kept: Any = None
        self._gradients: dict[str, np.ndarray] = {}

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """What is learned, by name; changed in place by an optimizer."""
        return {name: array for name in self._names if (array := getattr(self, name)) is not None}

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the parameters from the last `backward`, by the same names; empty before it."""
        return dict(self._gradients)

    def forward(self, x: Any) -> Any:
        """Output of the layer.

        Parameters
        ----------
        x : array_like
            Input; its first axis is the batch.

        Returns
        -------
        y : ndarray
            Output.

        Raises
        ------
        TypeError, ValueError
            If `x` does not fit the layer.
        """
        return self._forward(x)

    def backward(self, dy: Any, *, wants_dx: bool = True) -> Any:
        """Gradient with respect to the last input; those of the parameters are put into ``gradients``.

        Parameters
        ----------
        dy : array_like
            Gradient with respect to the output, of its shape.
        wants_dx : bool, optional
            Whether dx is needed: the first layer of a network can do without, and so can a network whose inputs are data.

        Returns
        -------
        dx : ndarray or None
            Of the shape of the input.

        Raises
        ------
        RuntimeError
            If `forward` has not been called.
        TypeError, ValueError
            If `dy` does not fit the output.
        """
        return self._backward(dy, wants_dx)

    def __call__(self, x: Any) -> Any:
        return self.forward(x)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copies, without what the last call has left."""
        return {**self.__dict__, "_kept": None, "_gradients": {}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._options().items())})"

    def _options(self) -> dict[str, Any]:
        """Arguments that make such a layer anew, apart from the values of its parameters."""
        return {}

    def _forward(self, x: Any, activation: Activation | None = None, out: Any = None, keep: bool = True) -> Any:
        """`forward` into `out`, and through `activation`; what `backward` needs is kept if `keep`."""
        raise NotImplementedError

    def _backward(self, dy: Any, wants_dx: bool = True, out: Any = None) -> Any:
        """`backward` into `out`; without `wants_dx` for the parameters only."""
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of the arrays of the last call."""
        self._kept = None

    def _array(self, argument: str, value: Any, dtype: np.dtype[Any]) -> np.ndarray:
        """`value` as an array of a type, or the error that tells why it is none."""
        if type(value) is np.ndarray and value.dtype == dtype:
            return value
        return np.asarray(known_array(type(self).__name__, argument, value), dtype)

    def _gradient(self, dy: Any, y: Any) -> np.ndarray:
        """`dy` as an array of the shape and type of `y`."""
        name = type(self).__name__
        gradient = self._array("dy", dy, y.dtype)
        if gradient.shape != y.shape:
            raise ValueError(f"{name}: dy must have the shape of the output, {y.shape}, not {gradient.shape}")
        return gradient

    def _last(self) -> Any:
        """What the last `forward` has kept."""
        if self._kept is None:
            raise RuntimeError(f"{type(self).__name__}: backward needs a forward before it")
        return self._kept

    def _places(self) -> dict[str, np.ndarray]:
        """Arrays for the gradients: those of the last time, if they fit."""
        parameters, gradients = self.parameters, self._gradients
        if gradients.keys() != parameters.keys():
            gradients.clear()
        for name, p in parameters.items():
            g = gradients.get(name)
            if g is None or g.shape != p.shape or g.dtype != p.dtype:
                gradients[name] = np.empty(p.shape, p.dtype)
        return gradients


class Weighted(Layer):
    """What `Linear` and `Conv2d` share: a weight, perhaps a bias, and one pass through both and an activation."""

    fuses = True
    _names = ("weight", "bias")
    _function: str
    """The function of the package without an activation."""
    _own_activation: Activation | None = None
    weight: np.ndarray
    bias: np.ndarray | None

    def _checked(self, x: Any) -> np.ndarray:
        """`x` as an array that the layer can take."""
        raise NotImplementedError

    def _geometry(self) -> tuple[Any, ...]:
        """Arguments of the function behind the operands."""
        return ()

    def _forward(self, x: Any, activation: Activation | None = None, out: Any = None, keep: bool = True) -> Any:
        activation = activation or self._own_activation
        x = self._checked(x)
        function, alpha = _variant(self._function, activation)
        y = function(x, self.weight, self.bias, *self._geometry(), **alpha, out=out)
        if keep:
            self._kept = x, y, activation
        return y

    def _backward(self, dy: Any, wants_dx: bool = True, out: Any = None) -> Any:
        x, y, activation = self._last()
        dy, places = self._gradient(dy, y), self._places()
        function, alpha = _variant(self._function, activation, "_backward")
        operands = (dy, x, self.weight) if activation is None else (dy, y, x, self.weight)
        wanted = _WANTED[wants_dx, self.bias is not None]
        results = (out, places["weight"], places.get("bias"))
        return function(*operands, *self._geometry(), **alpha, wanted=wanted, out=results)[0]


_WANTED = {
    (True, True): ("dx", "dw", "db"),
    (True, False): ("dx", "dw"),
    (False, True): ("dw", "db"),
    (False, False): ("dw",),
}
"""The gradients to calculate: whether dx is one of them, and whether there is a bias."""


def _variant(function: str, activation: Activation | None, backward: str = "") -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of the package that applies a layer and an activation, and the activation's parameter."""
    suffix = "" if activation is None else f"_{activation._name}"
    alpha = {"alpha": activation.alpha} if activation is not None and hasattr(activation, "alpha") else {}
    return getattr(fastrelu, f"{function}{suffix}{backward}"), alpha


class Linear(Weighted):
    """y = x @ weight + bias, see `fastrelu.linear`.

    The weight begins with normal values of the standard deviation sqrt(2 / in_features) (He et al. 2015, eq. 10), the bias
    with 0.

    Parameters
    ----------
    in_features, out_features : int
        Lengths of a row of x and of y.
    bias : bool, optional
        Whether there is a bias.
    rng : int, numpy.random.Generator or None, optional
        Where random numbers come from, or their seed. Layers with the same seed begin with the same numbers: share a generator.
    dtype : dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    weight : ndarray
        (in_features, out_features).
    bias : ndarray or None
        (out_features,).

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import Linear
    >>> layer = Linear(2, 1, rng=0)
    >>> layer.weight[:] = [[1.0], [2.0]]
    >>> layer.forward([[3.0, 4.0]])
    array([[11.]], dtype=float32)
    >>> layer.backward([[1.0]])
    array([[1., 2.]], dtype=float32)
    >>> layer.gradients["weight"]
    array([[3.],
           [4.]], dtype=float32)
    """

    _function = "linear"

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, rng: Any = None, dtype: DTypeLike = "float32"
    ):
        super().__init__()
        name = type(self).__name__
        k, n = whole_number(name, "in_features", in_features, 1), whole_number(name, "out_features", out_features, 1)
        self.weight = he_normal(name, (k, n), k, rng, dtype)
        self.bias = np.zeros(n, self.weight.dtype) if bias else None

    def _options(self) -> dict[str, Any]:
        k, n = self.weight.shape
        return {"in_features": k, "out_features": n, "bias": self.bias is not None, "dtype": self.weight.dtype.name}

    def _checked(self, x: Any) -> np.ndarray:
        array = self._array("x", x, self.weight.dtype)
        if array.ndim < 1 or array.shape[-1] != len(self.weight):
            allowed = f"(..., {len(self.weight)})"
            raise ValueError(f"{type(self).__name__}: x must have shape {allowed} for in_features, not {array.shape}")
        return array


class LinearReLU(Linear):
    """max(x @ weight + bias, 0) in one pass, see `fastrelu.linear_relu`.

    `Sequential` does the same by itself with a `Linear` that a `ReLU` follows.

    Parameters
    ----------
    in_features, out_features, bias, rng, dtype
        As for `Linear`.

    Attributes
    ----------
    weight, bias : ndarray
        As for `Linear`.

    Raises
    ------
    TypeError, ValueError
        As for `Linear`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import LinearReLU
    >>> layer = LinearReLU(2, 2, rng=0)
    >>> layer.weight[:] = [[1.0, -1.0], [1.0, -1.0]]
    >>> layer(np.ones((1, 2)))
    array([[2., 0.]], dtype=float32)
    """

    fuses = False
    _own_activation = ReLU()


class Flatten(Layer):
    """All axes but the first become one.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import Flatten
    >>> Flatten().forward(np.ones((2, 3, 4))).shape
    (2, 12)
    """

    def _forward(self, x: Any, activation: Activation | None = None, out: Any = None, keep: bool = True) -> Any:
        x = np.asarray(x)
        if x.ndim < 1:
            raise ValueError("Flatten: x must have at least one axis, the batch, not shape ()")
        if keep:
            self._kept = x.shape
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def _backward(self, dy: Any, wants_dx: bool = True, out: Any = None) -> Any:
        shape = self._last()
        dy = np.asarray(dy)
        flat = (shape[0], math.prod(shape[1:]))
        if dy.shape != flat:
            raise ValueError(f"Flatten: dy must have the shape of the output, {flat}, not {dy.shape}")
        return dy.reshape(shape)
