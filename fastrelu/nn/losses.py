"""What `fit` can minimize: means over a batch, their gradients, and how many outputs are right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import fastrelu
from fastrelu.losses import row_losses, sum_of_losses

__all__ = ["LOSSES", "Loss"]


class Loss:
    """A loss by its name."""

    has_accuracy = True
    has_range = True
    """Whether targets are of the right type and all the same may be wrong."""

    def __init__(self) -> None:
        self._dy: Any = None

    def targets(self, argument: str, y: Any, outputs: np.ndarray) -> np.ndarray:
        """`y` as targets for a model of which `outputs` is one row; an error tells why it cannot be."""
        raise NotImplementedError

    def __call__(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean over the batch and its gradient, in an array that the next call fills again."""
        losses, dy = self.terms(outputs, targets, len(targets))
        return self.mean(losses, outputs.dtype), dy

    def terms(self, outputs: np.ndarray, targets: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The losses, and the gradient of their mean over a batch of so many rows, of which these may be a part."""
        raise NotImplementedError

    def mean(self, losses: np.ndarray, dtype: np.dtype[Any]) -> float:
        """The mean over a batch of what `terms` gives for its parts, one after the other; `dtype` is that of the outputs."""
        return float(losses.mean(dtype=np.float64))

    def count_right(self, outputs: np.ndarray, targets: np.ndarray) -> int:
        """How many outputs are right."""
        raise NotImplementedError

    def right(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """The part of the outputs that are right."""
        return self.count_right(outputs, targets) / targets.size

    def _place(self, outputs: np.ndarray) -> np.ndarray:
        if self._dy is None or self._dy.shape != outputs.shape or self._dy.dtype != outputs.dtype:
            self._dy = np.empty(outputs.shape, outputs.dtype)
        place: np.ndarray = self._dy
        return place


_HINTS = dict.fromkeys("USO", "np.unique(y, return_inverse=True)[1] numbers them") | {
    "b": "astype(int) makes them so",
    "f": 'astype(int) makes them so; for other numbers there is loss="mean_squared_error"',
}
"""How labels of other kinds become classes."""


class SoftmaxCrossEntropy(Loss):
    """Minus the logarithm of the probability of the right class, see `fastrelu.softmax_cross_entropy`."""

    def targets(self, argument: str, y: Any, outputs: np.ndarray) -> np.ndarray:
        labels = np.asarray(y)
        shape, classes = (len(labels), *outputs.shape[1:-1]), outputs.shape[-1]
        if labels.shape != shape:
            hint = ": argmax(-1) makes classes of rows with a single 1" if labels.shape == (*shape, classes) else ""
            raise ValueError(f"fit: {argument} must have shape {shape}, a class for each row, not {labels.shape}{hint}")
        kind = labels.dtype.kind
        if kind not in "iu":
            came = f"{labels.dtype}: {_HINTS[kind]}" if kind in _HINTS else labels.dtype
            raise TypeError(f"fit: {argument} must be integers, the classes, for softmax_cross_entropy, not {came}")
        wrong = labels[(labels < 0) | (labels >= classes)]
        if wrong.size:
            hint = "for one output there is sigmoid_cross_entropy" if classes == 1 else "classes count from 0"
            raise ValueError(f"fit: {argument} must be from 0 to {classes - 1} for {classes} outputs, not {wrong[0]}: {hint}")
        return labels.astype(np.int64, copy=False)

    def __call__(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        loss, dy = fastrelu.softmax_cross_entropy(outputs, targets, out=self._place(outputs))
        return float(loss), dy

    def terms(self, outputs: np.ndarray, targets: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.ascontiguousarray(targets)
        losses, _, dy = row_losses(outputs, labels, rows * math.prod(targets.shape[1:]), self._place(outputs))
        return losses, dy

    def mean(self, losses: np.ndarray, dtype: np.dtype[Any]) -> float:
        with np.errstate(all="ignore"):
            return float(dtype.type(sum_of_losses(losses) / len(losses)))

    def count_right(self, outputs: np.ndarray, targets: np.ndarray) -> int:
        return int(np.count_nonzero(outputs.argmax(-1) == targets))


class _Numbers(Loss):
    """Losses of numbers that the outputs should be."""

    def targets(self, argument: str, y: Any, outputs: np.ndarray) -> np.ndarray:
        values = np.asarray(y)
        if values.dtype.kind not in "fiub" and values.dtype.name != "bfloat16":
            raise TypeError(f"fit: {argument} must be numbers, not {values.dtype}")
        shape = (len(values), *outputs.shape[1:])
        if values.shape == shape[:-1] and shape[1:] == (1,):
            values = values[:, None]  # one output a row
        if values.shape != shape:
            raise ValueError(f"fit: {argument} must have shape {shape} as the outputs, not {values.shape}")
        return values.astype(outputs.dtype, copy=False)


class SigmoidCrossEntropy(_Numbers):
    """Of outputs z, the logits of independent probabilities, and targets t from 0 to 1: the mean of

        t * softplus(-z) + (1 - t) * softplus(z)

    which is -t log(p) - (1 - t) log(1 - p) with p = sigmoid(z). Its gradient is p - t, divided by the number of outputs.
    """

    def targets(self, argument: str, y: Any, outputs: np.ndarray) -> np.ndarray:
        values = super().targets(argument, y, outputs)
        wrong = values[~((values >= 0) & (values <= 1))]
        if wrong.size:
            raise ValueError(f"fit: {argument} must be from 0 to 1 for sigmoid_cross_entropy, not {wrong[0]}")
        return values

    def terms(self, outputs: np.ndarray, targets: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):  # a network that has run away
            losses = targets * fastrelu.softplus(-outputs) + (1 - targets) * fastrelu.softplus(outputs)
        dy = fastrelu.sigmoid(outputs, out=self._place(outputs))
        dy -= targets
        dy /= max(rows * math.prod(dy.shape[1:]), 1)
        return losses, dy

    def count_right(self, outputs: np.ndarray, targets: np.ndarray) -> int:
        return int(np.count_nonzero((outputs > 0) == (targets > 0.5)))


class MeanSquaredError(_Numbers):
    """The mean of the squares of the differences; it has no accuracy."""

    has_accuracy = has_range = False

    def terms(self, outputs: np.ndarray, targets: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):  # a network that has run away
            dy = np.subtract(outputs, targets, out=self._place(outputs))
            losses = np.square(dy, dtype=np.float64 if dy.dtype == np.float64 else np.float32)
            dy *= 2 / max(rows * math.prod(dy.shape[1:]), 1)
        return losses, dy


LOSSES: dict[str, type[Loss]] = {
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "sigmoid_cross_entropy": SigmoidCrossEntropy,
    "mean_squared_error": MeanSquaredError,
}
"""By the names that `fit` knows."""
