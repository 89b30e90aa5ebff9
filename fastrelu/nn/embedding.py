"""Embeddings as layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import fastrelu
from fastrelu.nn.activations import Activation
from fastrelu.nn.initial import float_type, generator
from fastrelu.nn.layers import Layer
from fastrelu.operands import whole_number

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["EmbeddingMean"]


class EmbeddingMean(Layer):
    """The mean of the rows of a table that ids name, such as those of the words of a text; see `fastrelu.embedding_mean`.

    The table begins with normal values of the standard deviation 1, the row of `padding_id` with 0. `backward` returns None:
    ids have no gradient.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and columns of the table.
    padding_id : int, optional
        An id that does not count, so that texts of different lengths can have rows of the same length.
    rng, dtype
        As for `Linear`.

    Attributes
    ----------
    weight : ndarray
        The table (num_embeddings, embedding_dim).

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Examples
    --------
    >>> from fastrelu.nn import EmbeddingMean
    >>> EmbeddingMean(1000, 16, padding_id=0, rng=0).weight.shape
    (1000, 16)
    """

    _names = ("weight",)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        padding_id: int | None = None,
        rng: Any = None,
        dtype: DTypeLike = "float32",
    ):
        super().__init__()
        name = type(self).__name__
        shape = whole_number(name, "num_embeddings", num_embeddings, 1), whole_number(name, "embedding_dim", embedding_dim, 1)
        kind = float_type(name, dtype)
        drawn = np.float64 if kind == np.float64 else np.float32
        self.weight = generator(name, rng).standard_normal(shape, dtype=drawn).astype(kind, copy=False)
        self.padding_id = padding_id
        if padding_id is not None:
            if whole_number(name, "padding_id", padding_id, 0) >= num_embeddings:
                raise ValueError(f"{name}: padding_id must be below num_embeddings, {num_embeddings}, not {padding_id}")
            self.weight[padding_id] = 0

    def _options(self) -> dict[str, Any]:
        rows, columns = self.weight.shape
        options = {"num_embeddings": rows, "embedding_dim": columns, "padding_id": self.padding_id}
        return options | {"dtype": self.weight.dtype.name}

    def _forward(self, x: Any, activation: Activation | None = None, out: Any = None, keep: bool = True) -> Any:
        y = fastrelu.embedding_mean(x, self.weight, padding_id=self.padding_id, out=out)
        if keep:
            self._kept = x, y
        return y

    def _backward(self, dy: Any, wants_dx: bool = True, out: Any = None) -> None:
        ids, y = self._last()
        dy, places = self._gradient(dy, y), self._places()
        fastrelu.embedding_mean_backward(dy, ids, len(self.weight), padding_id=self.padding_id, out=places["weight"])
