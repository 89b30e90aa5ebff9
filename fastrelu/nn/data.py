"""What `fit` learns from: the order in which rows are seen, and data in the memory of this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from fastrelu.nn.losses import Loss
from fastrelu.nn.optimizers import Arrays
from fastrelu.nn.sequential import Sequential
from fastrelu.operations import KC

__all__ = ["Arrays", "Batch", "Data", "InMemory", "batches", "check_rows", "is_from_dask"]

Batch = slice | np.ndarray
"""The rows of a batch: neighbours, or their numbers."""

SCORED = 1024
"""Rows of which `Data.score` makes one loss."""


class Data(Protocol):
    """Inputs and targets, wherever they are."""

    rows: int

    def gradients(self, batch: Batch) -> tuple[float, float, Arrays]:
        """Loss, share of outputs that are right (or 0), and the gradients of all parameters, for some rows."""
        ...

    def score(self) -> Iterator[tuple[int, float, float]]:
        """Number, loss and share of right outputs of `SCORED` rows after the other."""
        ...

    def close(self) -> None:
        """Let go of what was kept from batch to batch."""
        ...


def batches(rows: int, size: int, shuffle: bool | int, rng: np.random.Generator) -> Iterator[Batch]:
    """The batches of an epoch.

    Parameters
    ----------
    rows : int
        Of the data.
    size : int
        Of a batch; the last has the rest.
    shuffle : bool or int
        False for the order of the data, True for any, an integer for parts of so many neighbouring rows: the parts in any
        order, and in each its rows in any order.
    rng : numpy.random.Generator
        Where the orders come from.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn.data import batches
    >>> [sorted(batch.tolist()) for batch in batches(6, 2, 2, np.random.default_rng(0))]
    [[4, 5], [0, 1], [2, 3]]
    """
    if shuffle is False:
        yield from (slice(start, min(start + size, rows)) for start in range(0, rows, size))
        return
    window = rows if shuffle is True else min(shuffle, rows)
    starts = np.arange(0, rows, window)
    if len(starts) > 1:
        starts = rng.permutation(starts)
    waiting = np.empty(0, np.int64)
    for start in starts:
        order = rng.permutation(min(window, rows - int(start))) + start
        waiting = np.concatenate([waiting, order]) if len(waiting) else order
        while len(waiting) >= size:
            yield _arranged(waiting[:size])
            waiting = waiting[size:]
    if len(waiting):
        yield _arranged(waiting)


def _arranged(batch: np.ndarray) -> np.ndarray:
    # The gradients of more than one block are summed block by block: a block of neighbours can be where its rows are.
    return np.sort(batch) if len(batch) > KC else batch


class InMemory:
    """Arrays of this process.

    Parameters
    ----------
    x, y : ndarray
        Inputs and targets.
    model : Sequential
        What is trained.
    objective : Loss
        What is minimized.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, model: Sequential, objective: Loss):
        self.rows, self._x, self._y, self._model, self._objective = len(x), x, y, model, objective
        # NumPy's take would copy all of any other array for each batch.
        self._is_plain = x.flags.c_contiguous and x.flags.aligned
        self._place = np.empty((0, *x.shape[1:]), x.dtype)

    def _taken(self, batch: Batch) -> np.ndarray:
        """The inputs of a batch; those that are not neighbours in the memory of the batch before."""
        if isinstance(batch, slice) or not self._is_plain:
            return self._x[batch]
        if len(self._place) < len(batch):
            self._place = np.empty((len(batch), *self._x.shape[1:]), self._x.dtype)
        # With another mode than "raise" it writes straight into the place. No row is out of range.
        return np.take(self._x, batch, axis=0, out=self._place[: len(batch)], mode="clip")

    def gradients(self, batch: Batch) -> tuple[float, float, Arrays]:
        """As `Data.gradients`."""
        x, y = self._taken(batch), self._y[batch]
        outputs = self._model._forward(x, escapes=False)
        loss, dy = self._objective(outputs, y)
        right = self._objective.right(outputs, y) if self._objective.has_accuracy else 0.0
        self._model._backward(dy, wants_dx=False)
        return loss, right, self._model.gradients

    def score(self) -> Iterator[tuple[int, float, float]]:
        """As `Data.score`."""
        for start in range(0, self.rows, SCORED):
            x, y = self._x[start : start + SCORED], self._y[start : start + SCORED]
            outputs = self._model.predict(x)
            right = self._objective.right(outputs, y) if self._objective.has_accuracy else 0.0
            yield len(x), self._objective(outputs, y)[0], right

    def close(self) -> None:
        """As `Data.close`."""
        self._place = self._place[:0].copy()


def check_rows(words: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    """Refuse shapes of inputs and targets that have no rows, or not as many."""
    for argument, shape in (("x", x), ("y", y)):
        if len(shape) < 1 or not shape[0]:
            raise ValueError(f"fit: {words}{argument} must have at least one row, not shape {shape}")
    if x[0] != y[0]:
        raise ValueError(f"fit: {words}y must have as many rows as x, {x[0]}, not {y[0]}")


def is_from_dask(x: Any) -> bool:
    """Whether it is a collection of dask, or a labelled array that holds one; nothing is imported to tell."""
    return hasattr(type(x), "__dask_graph__") and x.__dask_graph__() is not None
