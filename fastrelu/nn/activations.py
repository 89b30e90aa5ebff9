"""Activations as layers: ``A = layer.forward(Z)``, and later ``dLdZ = layer.backward(dLdA)``.

Names as in course texts: Z is what a layer before has put out, A the activation, dLdA the gradient of the loss with respect
to it. Semantics, types and NaN rules are those of the functions with the same name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrelu import activations, faults

__all__ = ["ELU", "LeakyReLU", "PReLU", "ReLU", "Sigmoid", "Softplus", "Tanh"]


class Activation:
    """What the activations share: which functions run, and what is kept between them."""

    _name: str
    alpha: Any

    def __init__(self, inplace: bool = False, copy: bool = False):
        self.inplace, self.copy = inplace, copy
        self.A: Any = None

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """What is learned, by name; changed in place by an optimizer."""
        return {}

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the parameters from the last `backward`, by the same names."""
        return {}

    def _parameters(self) -> tuple[Any, ...]:
        return ()

    def _in_place(self, argument: str, array: Any) -> Any:
        """`array` as the place for the result, if that is where it goes."""
        if not self.inplace:
            return None
        name = type(self).__name__
        if not isinstance(array, np.ndarray):
            text = f"{name}: {argument} must be an array to be overwritten, not {type(array).__name__}"
            raise faults.device_fault(name, argument, array) or TypeError(text)
        fault = faults.read_only_fault(name, argument, array)
        if fault is not None:
            raise fault
        return array

    def _call(self, function: str, *operands: Any, **keywords: Any) -> Any:
        """What a function returns; its errors are in the words of the layer."""
        try:
            return getattr(activations, function)(*operands, *self._parameters(), **keywords)
        except (TypeError, ValueError, OverflowError) as error:
            is_backward = function.endswith("_backward")
            words = {"dy": "dLdA", "y": "A", "x": "Z", "out": "dLdA" if is_backward else "Z"}
            raise faults.reworded(error, function, type(self).__name__, words) from None

    def _checked(self, kept: Any, dLdA: Any) -> None:
        name = type(self).__name__
        if kept is None:
            raise RuntimeError(f"{name}: backward needs a forward before it")
        try:
            if np.shape(dLdA) != np.shape(kept):
                raise ValueError(f"{name}: dLdA must have the shape of the output, {np.shape(kept)}, not {np.shape(dLdA)}")
        except (TypeError, ValueError) as error:
            raise faults.explain(name, error, {"dLdA": dLdA}) from None

    def forward(self, Z: Any) -> Any:
        """Apply the activation.

        Parameters
        ----------
        Z : array_like
            Input of any shape.

        Returns
        -------
        A : ndarray or scalar
            Of the same shape; `Z` itself if the layer works in place.
        """
        return self._forward(Z)

    def backward(self, dLdA: Any) -> Any:
        """Gradient with respect to the last input.

        Parameters
        ----------
        dLdA : array_like
            Gradient with respect to the output, of its shape.

        Returns
        -------
        dLdZ : ndarray or scalar
            `dLdA` itself if the layer works in place.

        Raises
        ------
        RuntimeError
            If `forward` has not been called.
        ValueError
            If `dLdA` has another shape than the output.
        """
        return self._backward(dLdA)

    def __call__(self, Z: Any) -> Any:
        return self.forward(Z)

    def _forward(self, Z: Any, activation: Any = None, out: Any = None, keep: bool = True) -> Any:
        """`forward` into `out` unless the layer works in place; A is kept if `keep`."""
        A = self._call(self._name, Z, out=self._in_place("Z", Z) if self.inplace else out)
        if keep:
            self.A = np.copy(A) if self.copy else A
        return A

    def _backward(self, dLdA: Any, wants_dx: bool = True, out: Any = None) -> Any:
        """`backward` into `out` unless the layer works in place."""
        self._checked(self.A, dLdA)
        place = self._in_place("dLdA", dLdA) if self.inplace else out
        return self._call(f"{self._name}_backward", dLdA, self.A, out=place)

    def _options(self) -> dict[str, Any]:
        """Arguments that make such a layer anew."""
        return {name: getattr(self, name) for name in ("alpha", "inplace", "copy") if hasattr(self, name)}

    def _release(self) -> None:
        """Let go of the arrays of the last call."""
        self.A = None

    def __repr__(self) -> str:
        options = [f"alpha={self.alpha!r}"] if hasattr(self, "alpha") else []
        options += [f"{name}=True" for name in ("inplace", "copy") if getattr(self, name)]
        return f"{type(self).__name__}({', '.join(options)})"


class ReLU(Activation):
    """max(Z, 0), see `fastrelu.relu`.

    Parameters
    ----------
    inplace : bool, optional
        Whether `forward` writes over Z and `backward` over dLdA, without new memory.
    copy : bool, optional
        Whether a copy of the output is kept for `backward`. Else it is the array that `forward` returned, which must not be
        changed before.

    Attributes
    ----------
    A : ndarray or None
        The last output.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import ReLU
    >>> layer = ReLU()
    >>> layer.forward(np.array([-1.0, 2.0]))
    array([0., 2.])
    >>> layer.backward(np.array([5.0, 5.0]))
    array([0., 5.])
    """

    _name = "relu"


class LeakyReLU(Activation):
    """Z where Z > 0, else alpha * Z, see `fastrelu.leaky_relu`.

    Parameters
    ----------
    alpha : float, optional
        Slope for negative Z, at least 0: the output has to tell the sign of Z.
    inplace, copy : bool, optional
        As for `ReLU`.

    Attributes
    ----------
    A : ndarray or None
        The last output.

    Raises
    ------
    ValueError
        If `alpha` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import LeakyReLU
    >>> LeakyReLU(alpha=0.25).forward(np.array([-2.0, 3.0]))
    array([-0.5,  3. ])
    """

    _name = "leaky_relu"

    def __init__(self, alpha: float = 0.01, inplace: bool = False, copy: bool = False):
        super().__init__(inplace, copy)
        self.alpha = _not_negative(type(self).__name__, alpha)

    def _parameters(self) -> tuple[Any, ...]:
        return (self.alpha,)


class ELU(Activation):
    """Z where Z > 0, else alpha * (exp(Z) - 1), see `fastrelu.elu`.

    Parameters
    ----------
    alpha : float, optional
        Minus the limit for large negative Z, at least 0.
    inplace, copy : bool, optional
        As for `ReLU`.

    Attributes
    ----------
    A : ndarray or None
        The last output.

    Raises
    ------
    ValueError
        If `alpha` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import ELU
    >>> ELU().forward(np.array([-1.0, 2.0]))
    array([-0.63212056,  2.        ])
    """

    _name = "elu"

    def __init__(self, alpha: float = 1.0, inplace: bool = False, copy: bool = False):
        super().__init__(inplace, copy)
        self.alpha = _not_negative(type(self).__name__, alpha)

    def _parameters(self) -> tuple[Any, ...]:
        return (self.alpha,)


class Sigmoid(Activation):
    """1 / (1 + exp(-Z)), see `fastrelu.sigmoid`.

    Parameters
    ----------
    inplace, copy : bool, optional
        As for `ReLU`.

    Attributes
    ----------
    A : ndarray or None
        The last output.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import Sigmoid
    >>> Sigmoid().forward(np.array([-np.inf, 0.0]))
    array([0. , 0.5])
    """

    _name = "sigmoid"


class Tanh(Activation):
    """Hyperbolic tangent, see `fastrelu.tanh`.

    Parameters
    ----------
    inplace, copy : bool, optional
        As for `ReLU`.

    Attributes
    ----------
    A : ndarray or None
        The last output.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import Tanh
    >>> Tanh().forward(np.array([-np.inf, 0.0]))
    array([-1.,  0.])
    """

    _name = "tanh"


class Softplus(Activation):
    """log(1 + exp(Z)), see `fastrelu.softplus`.

    Parameters
    ----------
    inplace, copy : bool, optional
        As for `ReLU`.

    Attributes
    ----------
    A : ndarray or None
        The last output.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import Softplus
    >>> Softplus().forward(np.array([0.0, 1000.0]))
    array([6.93147181e-01, 1.00000000e+03])
    """

    _name = "softplus"


class PReLU(Activation):
    """Z where Z > 0, else alpha * Z with a learned alpha, see `fastrelu.prelu`.

    Parameters
    ----------
    alpha : array_like, optional
        Slopes, broadcast against Z: (C,) for Z of shape (N, C). The attribute may be changed in place by an optimizer.
    inplace, copy : bool, optional
        As for `ReLU`, but what `backward` needs is Z: in place a copy of it is kept in any case.

    Attributes
    ----------
    alpha : ndarray
        The slopes.
    Z, A : ndarray or None
        The last input and output.
    dLdalpha : ndarray or None
        Gradient with respect to alpha, of its shape, from the last `backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import PReLU
    >>> layer = PReLU(np.array([0.25, 0.5]))
    >>> layer.forward(np.array([[-4.0, -4.0]]))
    array([[-1., -2.]])
    >>> layer.backward(np.ones((1, 2)))
    array([[0.25, 0.5 ]])
    >>> layer.dLdalpha
    array([-4., -4.])
    """

    _name = "prelu"

    def __init__(self, alpha: Any = 0.25, inplace: bool = False, copy: bool = False):
        super().__init__(inplace, copy)
        array = _numbers(type(self).__name__, alpha)
        self.alpha = alpha if isinstance(alpha, np.ndarray) else array.astype(np.float32)
        self.Z: Any = None
        self.dLdalpha: Any = None

    def _parameters(self) -> tuple[Any, ...]:
        return (self.alpha,)

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The slopes, as ``alpha``."""
        return {"alpha": self.alpha}

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """`dLdalpha` as ``alpha``; empty before `backward`."""
        return {} if self.dLdalpha is None else {"alpha": np.asarray(self.dLdalpha, self.alpha.dtype)}

    def _forward(self, Z: Any, activation: Any = None, out: Any = None, keep: bool = True) -> Any:
        kept = None if self._in_place("Z", Z) is None else np.array(Z)
        A = super()._forward(Z, out=out, keep=keep)
        if keep:
            if kept is None:
                kept = np.array(Z) if self.copy else np.asanyarray(Z)
            self.Z = kept
        return A

    def _backward(self, dLdA: Any, wants_dx: bool = True, out: Any = None) -> Any:
        """`backward`; the gradient with respect to alpha is put into `dLdalpha`."""
        self._checked(self.Z, dLdA)
        place = self._in_place("dLdA", dLdA)
        dLdZ, dLdalpha = self._call("prelu_backward", dLdA, self.Z)
        if place is not None:
            if not np.can_cast(dLdZ.dtype, place.dtype, "same_kind"):
                raise TypeError(f"PReLU: dLdA must be of a float type to take {dLdZ.dtype}, not {place.dtype}")
            place[...] = dLdZ
            dLdZ = place
        self.dLdalpha = dLdalpha
        return dLdZ

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "alpha": self.alpha.tolist()}

    def _release(self) -> None:
        super()._release()
        self.Z = None


def _numbers(name: str, alpha: Any) -> np.ndarray:
    """`alpha` as an array, if it holds numbers."""
    fault = faults.device_fault(name, "alpha", alpha) or faults.operand_fault(name, {"alpha": alpha}, {})
    if fault is not None:
        raise fault
    return np.asarray(alpha)


def _not_negative(name: str, alpha: float) -> float:
    array = _numbers(name, alpha)
    if array.size != 1:
        raise ValueError(f"{name}: alpha must be a single number, not of shape {array.shape}; for more of them there is PReLU")
    if not array >= 0:
        raise ValueError(f"{name}: alpha must be at least 0, not {alpha!r}; for a learned slope there is PReLU")
    return alpha
