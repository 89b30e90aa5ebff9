"""Training: minibatches, a step of the optimizer for each, and what is recorded on the way."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastrelu.native.guard import lock
from fastrelu.nn.data import Arrays, Batch, Data, InMemory, batches, check_rows, is_from_dask
from fastrelu.nn.initial import generator
from fastrelu.nn.losses import LOSSES, Loss
from fastrelu.nn.optimizers import Adam
from fastrelu.nn.sequential import Sequential, shown
from fastrelu.operands import plain_array, whole_number

__all__ = ["History", "fit"]


_WHY_LOST = "x or y may have NaN or infinities, or the learning rate may be too large"


class Optimizer(Protocol):
    """What `fit` wants of an optimizer."""

    def step(self, parameters: Arrays, gradients: Arrays) -> float:
        """Update the parameters; returns the norm of the gradients."""
        ...


@dataclass
class History:
    """What `fit` has recorded, one value an epoch.

    Parameters
    ----------
    loss : list of float
        Mean loss of the training data: of each batch before the step that it led to.
    accuracy : list of float or None
        Part of the outputs that were right, likewise; None for a loss without accuracy.
    gradient_norm : list of float
        Mean over the batches of the L2 norm of all gradients together.
    validation_loss, validation_accuracy : list of float or None
        The same of the validation data, at the end of each epoch; None without them.

    Examples
    --------
    >>> from fastrelu.nn import History
    >>> History(loss=[2.0, 1.0], accuracy=None).epochs
    2
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] | None = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    validation_loss: list[float] | None = None
    validation_accuracy: list[float] | None = None

    @property
    def epochs(self) -> int:
        """How many epochs are complete."""
        return len(self.loss)


def fit(
    model: Sequential,
    x: Any,
    y: Any,
    epochs: int = 10,
    batch_size: int = 64,
    *,
    optimizer: Optimizer | None = None,
    loss: str = "softmax_cross_entropy",
    validation: tuple[Any, Any] | None = None,
    shuffle: bool | int = True,
    rng: Any = None,
    progress: bool = True,
) -> History:
    """Train a model by minibatches.

    With the same `rng`, model and data the bits are the same, whatever the number of threads. The rows of a batch of more than
    256, whose gradients are sums of blocks, are in the order of the data.

    Where x is a dask array, gradients are calculated where its chunks are, by the scheduler that dask uses: threads, or the
    workers of a ``distributed.Client``. Their blocks of 256 rows are added in order: no bit depends on chunks, workers or
    threads. Of networks of float32 or float64 in which all parameters are those of `Linear` and `LinearReLU`, the bits are
    those of a training in memory; so they are of any network with batches of up to 256 rows. Otherwise the gradient of a batch
    is the sum of those of its blocks, and a layer of a user's own sees a block at a time. With ``shuffle=True`` each batch has
    rows of all chunks, which should be in memory (``x.persist()``); with a number, chunks are calculated when their rows are
    shuffled, and stay until these have been used; with False, while a batch needs them. Targets are read once before the first
    step.

    Parameters
    ----------
    model : Sequential
        Changed in place.
    x : array_like or dask array
        Inputs; the first axis is the data.
    y : array_like or dask array
        What the outputs should be: for softmax_cross_entropy classes, integers from 0; for sigmoid_cross_entropy numbers from 0
        to 1, of the shape of the outputs; for mean_squared_error any numbers. Where there is one output a row, y may have one
        axis.
    epochs : int, optional
        How many times all data are seen.
    batch_size : int, optional
        Rows for a step; the last batch of an epoch has the rest.
    optimizer : SGD, Adam or the like, optional
        By default ``Adam()``. It keeps its state, so that one that is given again goes on.
    loss : str, optional
        "softmax_cross_entropy", "sigmoid_cross_entropy" (both of outputs without the activation) or "mean_squared_error".
    validation : tuple of x and y, optional
        Data that are only looked at, at the end of each epoch.
    shuffle : bool or int, optional
        Whether each epoch has an order of its own, else that of the data. A number of rows: parts of so many neighbouring rows
        come in any order, and in each its rows in any order.
    rng : int, numpy.random.Generator or None, optional
        Where the orders come from, or the seed.
    progress : bool, optional
        Whether to show a progress bar, if tqdm is installed (``pip install "fastrelu[progress]"``) and somebody can see it.

    Returns
    -------
    History
        Loss, accuracy and gradient norm of each epoch. It is ``model.history`` as well, from the beginning: an interrupt
        (Ctrl-C) passes, the complete epochs stay there, and the parameters are those after the last complete step.

    Raises
    ------
    TypeError, ValueError
        If arguments do not fit together or to the model; nothing has been changed then.

    Warns
    -----
    RuntimeWarning
        If the loss of an epoch is NaN or infinite, once. Training goes on.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu import nn
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((200, 2))
    >>> y = 2 * x[:, 0] - x[:, 1]
    >>> model = nn.Sequential(nn.Linear(2, 1, rng=rng))
    >>> history = nn.fit(model, x, y, epochs=20, optimizer=nn.SGD(lr=0.1), loss="mean_squared_error", rng=0)
    >>> history.loss[-1] < 1e-3
    True
    """
    objective = _checked(model, loss)
    epochs, batch_size = whole_number("fit", "epochs", epochs, 0), whole_number("fit", "batch_size", batch_size, 1)
    shuffle = bool(shuffle) if isinstance(shuffle, bool | np.bool_) else whole_number("fit", "shuffle", shuffle, 1)
    data = _data("", x, y, model, objective, shuffle)
    held_out = None
    if validation is not None:
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise ValueError("fit: validation must be a pair, x and y")
        held_out = _data("validation ", *validation, model, objective, False)
    orders = generator("fit", rng)
    if optimizer is None:
        optimizer = Adam()
    elif isinstance(optimizer, type) or not callable(getattr(optimizer, "step", None)):
        raise TypeError(f"fit: optimizer must have a method step, as SGD and Adam have, not be {shown(optimizer)}")
    history = model.history = _empty(objective.has_accuracy, held_out is not None)
    is_lost = False
    try:
        with _bar(-(-data.rows // batch_size) * epochs, progress) as bar:
            for _ in range(epochs):
                order = batches(data.rows, batch_size, shuffle, orders)
                entries = _epoch(model, data, order, optimizer, objective.has_accuracy, bar)
                if held_out is not None:
                    entries |= _validate(held_out, objective.has_accuracy)
                for name, value in reversed(entries.items()):  # the loss last, which counts as a complete epoch
                    getattr(history, name).append(value)
                if not (is_lost or math.isfinite(entries["loss"])):
                    is_lost = True
                    warnings.warn(f"fit: the loss has become {entries['loss']}: {_WHY_LOST}", RuntimeWarning, stacklevel=2)
                if bar is not None:
                    bar.set_postfix(entries)
    finally:
        data.close()
        model._release()
    return history


def _empty(has_accuracy: bool, has_validation: bool) -> History:
    def entries(are_there: bool) -> list[float] | None:
        return [] if are_there else None

    return History([], entries(has_accuracy), [], entries(has_validation), entries(has_accuracy and has_validation))


def _checked(model: Any, loss: Any) -> Loss:
    if not isinstance(model, Sequential):
        raise TypeError(f"fit: model must be a Sequential, not {type(model).__name__}")
    if not model.parameters:
        raise ValueError("fit: model has no parameters to learn")
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"fit: loss must be one of {', '.join(LOSSES)}, not {loss!r}")
    return LOSSES[loss]()


def _data(words: str, x: Any, y: Any, model: Sequential, objective: Loss, shuffle: bool | int) -> Data:
    """Inputs and targets that the model and the loss can take."""
    if is_from_dask(x):
        with lock:
            from fastrelu.nn.dask_data import InChunks

        return InChunks(words, x, y, model, objective, shuffle)
    x, y = plain_array("fit", f"{words}x", x), plain_array("fit", f"{words}y", y)
    check_rows(words, x.shape, y.shape)
    return InMemory(x, objective.targets(f"{words}y", y, model.predict(x[:2])), model, objective)


def _epoch(
    model: Sequential, data: Data, batches: Iterable[Batch], optimizer: Optimizer, has_accuracy: bool, bar: Any
) -> dict[str, float]:
    """A step for each batch; returns what the history notes."""
    losses, right, norms, rows, count = 0.0, 0.0, 0.0, 0, 0
    parameters = model.parameters
    for batch in batches:
        size = batch.stop - batch.start if isinstance(batch, slice) else len(batch)
        loss, share, gradients = data.gradients(batch)
        norms += optimizer.step(parameters, gradients)
        losses, right, rows, count = losses + loss * size, right + share * size, rows + size, count + 1
        if bar is not None:
            bar.update()
    accuracy = {"accuracy": right / rows} if has_accuracy else {}
    return {"loss": losses / rows, **accuracy, "gradient_norm": norms / count}


def _validate(data: Data, has_accuracy: bool) -> dict[str, float]:
    losses, right = 0.0, 0.0
    for rows, loss, share in data.score():
        losses, right = losses + loss * rows, right + share * rows
    accuracy = {"validation_accuracy": right / data.rows} if has_accuracy else {}
    return {"validation_loss": losses / data.rows, **accuracy}


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Any]:
    """A progress bar; None if it is not wanted, cannot be seen, or tqdm is not there."""
    is_seen = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    if not (progress and is_seen and importlib.util.find_spec("tqdm")):
        yield None
        return
    with lock:
        from tqdm import tqdm
    with tqdm(total=total, desc="training", unit="batch") as bar:
        yield bar
