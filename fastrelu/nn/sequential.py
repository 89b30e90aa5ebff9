"""Layers one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrelu.nn.activations import Activation
from fastrelu.nn.layers import FUSED, Flatten, Layer
from fastrelu.operands import plain_array, whole_number

__all__ = ["Sequential"]


class _Stage:
    """A layer, and the activation after it that it can apply by itself; with the arrays that it fills again and again."""

    def __init__(self, layer: Any, activation: Activation | None = None):
        self.layer, self.activation = layer, activation
        self.is_own = _is_own(layer)
        self.fuses = self.is_own and getattr(layer, "fuses", False)
        # Its output is new memory, and not a part of its input or of something that only the layer knows.
        self.makes = self.is_own and not isinstance(layer, Flatten) and not getattr(layer, "inplace", False)
        self.release()

    def release(self) -> None:
        """Let go of all arrays."""
        self._kinds: list[Any] = [None, None]
        self._arrays: list[Any] = [None, None]
        for layer in (self.layer, self.activation):
            if isinstance(layer, Layer | Activation):
                layer._release()

    def _reused(self, which: int, kind: Any) -> Any:
        """The array of the last time, if what comes is of the same kind."""
        return self._arrays[which] if self._kinds[which] == kind else None

    def _keep(self, which: int, kind: Any, array: Any) -> Any:
        if self.makes and type(array) is np.ndarray:
            self._kinds[which], self._arrays[which] = kind, array
        return array

    def forward(self, x: Any, reuse: bool, keep: bool) -> Any:
        """Output of the stage, in the array of the last time if `reuse`."""
        if not self.is_own:
            return self.layer.forward(x)
        if not (reuse and type(x) is np.ndarray):
            y = self.layer._forward(x, self.activation, keep=keep)
        else:
            kind = x.shape, x.dtype
            y = self._keep(0, kind, self.layer._forward(x, self.activation, out=self._reused(0, kind), keep=keep))
        if keep and self.activation is not None:
            self.activation.A = y
        return y

    def backward(self, dy: Any, wants_dx: bool, reuse: bool) -> Any:
        """Gradient with respect to the input, in the array of the last time if `reuse`."""
        if not self.is_own:
            return self.layer.backward(dy)
        if not (reuse and wants_dx and type(dy) is np.ndarray):
            return self.layer._backward(dy, wants_dx)
        kind = dy.shape, dy.dtype
        return self._keep(1, kind, self.layer._backward(dy, wants_dx, out=self._reused(1, kind)))


class Sequential(Layer):
    """Layers one after the other, as one layer.

    An activation that follows a `Linear` or a `Conv2d` is applied in the same pass, with the same bits: nothing else about the
    layers changes. `PReLU`, which needs its input, and activations that work in place or copy stay alone.

    What is between the layers is kept in arrays that the next batch of the same shape fills again. What `forward` and
    `backward` return is new each time.

    Parameters
    ----------
    *layers : layer
        Each another object, of `fastrelu.nn` or with methods ``forward(x)`` and ``backward(dy)`` of its own; such a layer
        may have ``parameters`` and ``gradients``.

    Attributes
    ----------
    layers : tuple
        The layers as they were given.
    parameters, gradients : dict
        Those of all layers: the names begin with the number of the layer, as ``"0.weight"``.
    history : History or None
        What the last `fit` has recorded, also if it was interrupted.

    Raises
    ------
    TypeError, ValueError
        If something is no layer, or given twice.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu import nn
    >>> rng = np.random.default_rng(0)
    >>> model = nn.Sequential(nn.Linear(4, 8, rng=rng), nn.ReLU(), nn.Linear(8, 2, rng=rng))
    >>> y = model.forward(np.ones((3, 4)))
    >>> model.backward(np.ones_like(y)).shape
    (3, 4)
    >>> list(model.gradients)
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    def __init__(self, *layers: Any):
        super().__init__()
        for i, layer in enumerate(layers):
            if isinstance(layer, type) or not (callable(getattr(layer, "forward", None)) and hasattr(layer, "backward")):
                raise TypeError(f"Sequential: layer {i} must have the methods forward and backward, not be {shown(layer)}")
            if any(layer is other for other in layers[:i]):
                raise ValueError(f"Sequential: layer {i}, {layer!r}, is there twice; each must be an object of its own")
        self.layers = layers
        self.history: Any = None
        self._stages: list[_Stage] = []
        for layer in layers:
            last = self._stages[-1] if self._stages else None
            if last is not None and last.fuses and last.activation is None and _can_be_fused(layer):
                last.activation = layer
            else:
                self._stages.append(_Stage(layer))
        # A layer that is not ours may keep what it was given.
        self._reuses = all(stage.is_own for stage in self._stages)

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """What is learned, by the number of the layer and its name."""
        return self._collected("parameters")

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the parameters from the last `backward`, by the same names."""
        return self._collected("gradients")

    def _collected(self, what: str) -> dict[str, np.ndarray]:
        return {
            f"{i}.{name}": array
            for i, layer in enumerate(self.layers)
            for name, array in getattr(layer, what, _NOTHING).items()
        }

    def predict(self, x: Any, batch_size: int = 1024) -> np.ndarray:
        """Outputs for many inputs, batch by batch, without keeping anything for `backward`.

        Parameters
        ----------
        x : array_like
            Inputs; the first axis is the batch.
        batch_size : int, optional
            Rows at a time. It does not change the bits.

        Returns
        -------
        ndarray
            Outputs of the last layer.

        Raises
        ------
        TypeError, ValueError
            If `x` does not fit the first layer, or `batch_size` is no positive integer.

        Examples
        --------
        >>> import numpy as np
        >>> from fastrelu import nn
        >>> nn.Sequential(nn.Flatten()).predict(np.ones((3, 2, 2))).shape
        (3, 4)
        """
        batch_size = whole_number("predict", "batch_size", batch_size, 1)
        x = plain_array("predict", "x", x)
        if x.ndim < 1:
            raise ValueError("predict: x must have at least one axis, the batch, not shape ()")
        first = np.asarray(self._forward(x[:batch_size], keep=False))
        if len(x) <= batch_size:
            return first
        y = np.empty((len(x), *first.shape[1:]), first.dtype)
        y[:batch_size] = first
        for start in range(batch_size, len(x), batch_size):
            y[start : start + batch_size] = self._forward(x[start : start + batch_size], keep=False)
        return y

    def _options(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __repr__(self) -> str:
        if not self.layers:
            return "Sequential()"
        lines = (repr(layer).replace("\n", "\n    ") for layer in self.layers)
        return "Sequential(\n    " + ",\n    ".join(lines) + ",\n)"

    def _forward(
        self, x: Any, activation: Activation | None = None, out: Any = None, keep: bool = True, escapes: bool = True
    ) -> Any:
        """`forward`; the result is new memory if it `escapes`."""
        # From the last stage that makes an array on, the array may be the result.
        end = max((i for i, stage in enumerate(self._stages) if stage.makes), default=0) if escapes else len(self._stages)
        for i, stage in enumerate(self._stages):
            try:
                x = stage.forward(x, keep and self._reuses and i < end, keep)
            except (TypeError, ValueError) as error:
                if not stage.is_own or type(error) not in (TypeError, ValueError):
                    raise
                number = next(i for i, layer in enumerate(self.layers) if layer is stage.layer)
                raise type(error)(f"Sequential: layer {number}, {error}") from None
        if keep:
            self._kept = True
        return x

    def _backward(self, dy: Any, wants_dx: bool = True, out: Any = None) -> Any:
        self._last()
        # The layers before the first with parameters have nothing to learn.
        first = 0 if wants_dx else self._first_to_learn()
        end = min((i for i, stage in enumerate(self._stages) if stage.makes), default=0)
        for i in range(len(self._stages) - 1, first - 1, -1):
            dy = self._stages[i].backward(dy, wants_dx or i > first, self._reuses and i > end)
        return dy if wants_dx else None

    def _first_to_learn(self) -> int:
        has_any = (bool(getattr(stage.layer, "parameters", None)) for stage in self._stages)
        return next((i for i, some in enumerate(has_any) if some), len(self._stages))

    def _release(self) -> None:
        super()._release()
        for stage in self._stages:
            stage.release()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stages": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Sequential.__init__(self, *state["layers"])
        self.history = state["history"]


_NOTHING: dict[str, np.ndarray] = {}


def _is_own(layer: Any) -> bool:
    """Whether it is a layer of ours with both methods as they are; a class derived from it may have others."""
    methods = [getattr(type(layer), name, None) for name in ("forward", "backward")]
    return any(methods == [base.forward, base.backward] for base in (Layer, Activation))


def _can_be_fused(layer: Any) -> bool:
    """Whether a layer before this one can apply it."""
    return type(layer) in FUSED and not layer.copy and not layer.inplace


def shown(value: Any) -> str:
    """What stands where an object should, in words."""
    if isinstance(value, type):
        return f"the type {value.__name__}: write {value.__name__}()"
    return "a list: write *layers" if isinstance(value, list) else f"a {type(value).__name__}"
