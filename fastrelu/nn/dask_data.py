"""Data in the chunks of dask arrays, on one machine or many: gradients are calculated where the chunks are.

A batch is cut into blocks of 256 rows, the last of which may be shorter. Some neighbouring blocks are a *shard*, one task of
dask, which calculates the gradient of each block. They are added in the order of the blocks, shard by shard, by tasks as well,
and the client gets the sum. So the bits depend on the batch only, and not on the chunks, the workers, nor their threads. The
rows of a batch ascend, and dask runs a shard where most of its rows are.

``_taken``      rows of a chunk
``_gradients``  the gradients of the blocks of a shard
``_added``      those of the next shard, added to the sum
``_scored``     losses of rows that are only looked at
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.base import get_scheduler
from dask.delayed import delayed
from dask.system import CPU_COUNT

from fastrelu.nn.data import SCORED, Arrays, Batch, check_rows, is_from_dask
from fastrelu.nn.losses import LOSSES, Loss
from fastrelu.nn.sequential import Sequential
from fastrelu.operands import plain_array
from fastrelu.operations import KC

__all__ = ["InChunks"]

Pieces = Sequence[tuple[np.ndarray | range, tuple[np.ndarray, np.ndarray]]]
"""Parts of a shard: which of its rows they are, their inputs and targets."""

_LARGEST = 1 << 28
"""Bytes of the rows and the gradients of a shard, if it has more than one block: all are in memory until they are added."""


class Sums(NamedTuple):
    """What a shard knows of a batch: its losses, how many outputs are right, and the gradients of its blocks.

    Of all shards up to one the gradients are a single sum.
    """

    losses: list[np.ndarray]
    right: int
    gradients: list[dict[str, np.ndarray]]


class InChunks:
    """Rows in chunks.

    Parameters
    ----------
    words : str
        What the data are called in errors.
    x : dask array
        Inputs.
    y : array_like
        Targets, also as a dask array.
    model : Sequential
        What is trained.
    objective : Loss
        What is minimized.
    shuffle : bool or int
        As for `fastrelu.nn.data.batches`: chunks of the rows that are being shuffled stay in memory, unless these are all.
    """

    def __init__(self, words: str, x: Any, y: Any, model: Sequential, objective: Loss, shuffle: bool | int):
        x, given = _array(f"{words}x", x), y
        y = _array(f"{words}y", y, x.chunks[:1])
        check_rows(words, x.shape, y.shape)
        self.rows, self._model, self._objective, self._shuffle = len(x), model, objective, shuffle
        self._loss = next(name for name, kind in LOSSES.items() if type(objective) is kind)
        self._output = model.predict(np.zeros((1, *x.shape[1:]), x.dtype))
        x, y = _in_rows(x, x.chunks[0]), _in_rows(y, x.chunks[0])
        if not isinstance(given, da.Array):
            with _large():
                (y,) = dask.persist(y)  # once to the workers, and not once a step
        self._held = x, y  # the chunks that are in memory already are let go of with their array
        self._row = sum(a.dtype.itemsize * math.prod(a.shape[1:]) for a in (x, y))
        self._starts = np.cumsum([0, *x.chunks[0]])
        self._chunks = [*zip(x.to_delayed().ravel(), y.to_delayed().ravel(), strict=True)]
        self._kept: dict[int, Any] = {}
        self._places = {name: np.empty_like(p) for name, p in model.parameters.items()}
        self._check(f"{words}y", y)
        self._threads = _threads()

    def _check(self, argument: str, y: Any) -> None:
        """Refuse targets that the loss cannot take, before any step."""
        try:
            self._objective.targets(argument, np.empty((0, *y.shape[1:]), y.dtype), self._output)
        except ValueError:
            # The same with all rows, so that the error tells their number.
            self._objective.targets(argument, np.broadcast_to(np.zeros((), y.dtype), y.shape), self._output)
            raise
        if self._objective.has_range:
            # One layer of dask's graph, of which it compares each with all keys.
            _computed(y.map_blocks(_checked, self._loss, argument, self._output, meta=y._meta))

    def gradients(self, batch: Batch) -> tuple[float, float, Arrays]:
        """As `fastrelu.nn.data.Data.gradients`."""
        rows = np.arange(batch.start, batch.stop) if isinstance(batch, slice) else batch
        if self._shuffle is not True:
            self._keep(rows)
        # Part of the graph, unlike scattered data it is not lost with a worker.
        model, total = delayed(self._model, pure=False), None
        size = KC * self._row + sum(g.nbytes for g in self._places.values())
        for start, stop in self._shards(len(rows), KC, size):
            pieces = self._pieces(rows[start:stop])
            sums = delayed(_gradients, pure=False)(model, self._loss, len(rows), pieces, total is None)
            total = sums if total is None else delayed(_added, pure=False)(total, sums)
        (whole,) = _computed(total)
        for name, gradient in whole.gradients[0].items():
            self._places[name][...] = gradient
        losses = np.concatenate(whole.losses)
        right = whole.right / losses.size if self._objective.has_accuracy else 0.0
        return self._objective.mean(losses, self._output.dtype), right, self._places

    def score(self) -> Iterator[tuple[int, float, float]]:
        """As `fastrelu.nn.data.Data.score`."""
        model, score = delayed(self._model, pure=False), delayed(_scored, pure=False)
        shards = self._shards(self.rows, SCORED, SCORED * self._row)
        for scores in _computed(*(score(model, self._loss, self._pieces(np.arange(*shard))) for shard in shards)):
            yield from scores

    def close(self) -> None:
        """Let go of the chunks."""
        self._kept = {}

    def _keep(self, rows: np.ndarray) -> None:
        """Have the chunks calculated that this batch and the next ones need, and let go of all others."""
        if self._shuffle is False:
            ranges = [(rows[0], rows[-1])]
        else:
            size = self._shuffle
            ranges = [(i * size, min((i + 1) * size, self.rows) - 1) for i in np.unique(rows // size)]
        needed = {i for first, last in ranges for i in range(self._chunk_of(first), self._chunk_of(last) + 1)}
        missing = sorted(needed - self._kept.keys())
        self._kept = {i: chunk for i, chunk in self._kept.items() if i in needed}
        blocks = dask.persist(*(block for i in missing for block in self._chunks[i]))
        self._kept.update(zip(missing, zip(blocks[::2], blocks[1::2], strict=True), strict=True))

    def _chunk_of(self, rows: Any) -> Any:
        """The number of the chunk of a row, or of each."""
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _shards(self, rows: int, size: int, nbytes: int) -> Iterator[tuple[int, int]]:
        """First and last of the rows of each shard, which has blocks of so many rows and bytes."""
        blocks = -(-rows // size)
        shards = min(blocks, max(self._threads, -(-blocks // max(_LARGEST // nbytes, 1))))
        return pairwise([*(i * blocks // shards * size for i in range(shards)), rows])

    def _pieces(self, rows: np.ndarray) -> list[Any]:
        """The rows of a shard, from each chunk that has some."""
        chunks, pieces = self._chunk_of(rows), []
        order = np.argsort(chunks, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(chunks[order])) + 1):
            i = int(chunks[places[0]])
            chunk = self._kept.get(i, self._chunks[i])
            pieces.append((_short(places), delayed(_taken, pure=False)(*chunk, _short(rows[places] - self._starts[i]))))
        return pieces


def _array(argument: str, value: Any, chunks: tuple[tuple[int, ...], ...] = ()) -> Any:
    """Inputs or targets as a dask array; what is none yet in chunks of the rows of another, if it has as many."""
    library, kind = type(value).__module__.partition(".")[0], type(value)
    if library == "xarray" and hasattr(kind, "data"):
        value = value.data
    if isinstance(value, da.Array):
        array = value
        plain_array("fit", argument, array._meta)
    elif is_from_dask(value):
        way = "call its to_dask_array(lengths=True)" if hasattr(kind, "to_dask_array") else "make it a dask array"
        raise TypeError(f"fit: {argument} must be an array, not a {kind.__name__} of {library}: {way} first")
    else:
        value = plain_array("fit", argument, value)
        fits = chunks and value.shape[:1] == (sum(chunks[0]),)
        array = da.from_array(value, (*chunks, *value.shape[1:]) if fits else -1)
    if np.isnan(array.shape).any():
        raise ValueError(f"fit: {argument} must have chunks of known sizes: call its compute_chunk_sizes() first")
    return array


def _in_rows(array: Any, chunks: tuple[int, ...]) -> Any:
    """The same in chunks of whole rows."""
    return array.rechunk({0: chunks, **dict.fromkeys(range(1, array.ndim), -1)})


def _large() -> Any:
    """Keeps a client from warning of graphs of 10 MB: these have parameters or targets, which have to travel.

    Where nothing has read the options of `distributed`, there is no client, and they would be lost again with this one.
    """
    option = {"distributed.admin.large-graph-warning-threshold": "1 TB"}
    return dask.config.set(option if dask.config.get("distributed", None) else {})


def _computed(*tasks: Any) -> Any:
    with _large():
        return dask.compute(*tasks)


def _threads() -> int:
    """How many tasks may run at a time."""
    client: Any = getattr(get_scheduler(), "__self__", None)
    if hasattr(client, "nthreads"):
        threads: int = max(sum(client.nthreads().values()), 1)
    else:
        threads = dask.config.get("num_workers", None) or CPU_COUNT
    return threads


def _checked(targets: Any, loss: str, argument: str, output: np.ndarray) -> np.ndarray:
    numbers = plain_array("fit", argument, targets)
    LOSSES[loss]().targets(argument, numbers, output)
    return numbers[:0]


def _short(numbers: np.ndarray) -> np.ndarray | range:
    """The same in a few bytes, if each is the next."""
    first = int(numbers[0])
    neighbours = range(first, first + len(numbers))
    return neighbours if np.array_equal(numbers, neighbours) else numbers


def _taken(x: Any, y: Any, rows: np.ndarray | range) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of a chunk, as memory of their own."""
    return plain_array("fit", "x", x)[rows], plain_array("fit", "y", y)[rows]


def _joined(pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a shard in the order of its rows."""
    if len(pieces) == 1:
        return pieces[0][1]
    order = np.argsort(np.concatenate([places for places, _ in pieces]))
    x, y = (np.concatenate(parts) for parts in zip(*(rows for _, rows in pieces), strict=True))
    return x[order], y[order]


def _gradients(model: Sequential, loss: str, rows: int, pieces: Pieces, is_first: bool) -> Sums:
    """The gradients of the blocks of a shard of a batch that has so many rows; of the first shard their sum."""
    model, objective = copy.deepcopy(model), LOSSES[loss]()  # other threads use the same model
    x, y = _joined(pieces)
    sums = Sums([], 0, [])
    for start in range(0, len(x), KC):
        outputs = model._forward(x[start : start + KC], escapes=False)
        targets = objective.targets("y", y[start : start + KC], outputs)
        losses, dy = objective.terms(outputs, targets, rows)
        right = objective.count_right(outputs, targets) if objective.has_accuracy else 0
        model._backward(dy, wants_dx=False)
        block = Sums([losses], right, [{name: np.array(g) for name, g in model.gradients.items()}])
        if is_first and start:
            sums = _added(sums, block)
        else:
            sums = Sums(sums.losses + block.losses, sums.right + right, sums.gradients + block.gradients)
    return sums


def _added(total: Sums, sums: Sums) -> Sums:
    """The sum of all shards up to one, from that of those before it."""
    (gradients,) = total.gradients
    with np.errstate(all="ignore"):
        for block in sums.gradients:
            gradients = {name: np.add(g, block[name]) for name, g in gradients.items()}
    return Sums(total.losses + sums.losses, total.right + sums.right, [gradients])


def _scored(model: Sequential, loss: str, pieces: Pieces) -> list[tuple[int, float, float]]:
    """Number of rows, loss, and share of right outputs of `SCORED` rows after the other."""
    objective = LOSSES[loss]()
    x, y = _joined(pieces)
    scores = []
    for start in range(0, len(x), SCORED):
        outputs = model.predict(x[start : start + SCORED])
        targets = objective.targets("y", y[start : start + SCORED], outputs)
        right = objective.right(outputs, targets) if objective.has_accuracy else 0.0
        scores.append((len(outputs), objective(outputs, targets)[0], right))
    return scores
