"""Values that parameters start from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrelu.native.guard import lock
from fastrelu.operations import FLOATS

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["he_normal"]


def he_normal(name: str, shape: tuple[int, ...], fan_in: int, rng: Any, dtype: DTypeLike) -> np.ndarray:
    """Normal values with the standard deviation sqrt(2 / fan_in), with which ReLU keeps the variance from layer to layer.

    He, Zhang, Ren and Sun 2015, "Delving Deep into Rectifiers", eq. 10.

    Parameters
    ----------
    name : str
        The layer, for errors.
    shape : tuple of int
        Of the weight.
    fan_in : int
        Terms of the sum that an output is.
    rng : int, numpy.random.Generator or None
        Where random numbers come from, or the seed.
    dtype : dtype
        float16, bfloat16, float32 or float64. The halves are rounded from the values of float32.
    """
    kind = float_type(name, dtype)
    drawn = np.float64 if kind == np.float64 else np.float32
    values = generator(name, rng).standard_normal(shape, dtype=drawn) * drawn(math.sqrt(2 / fan_in))
    return values.astype(kind, copy=False)


def generator(name: str, rng: Any) -> np.random.Generator:
    """The generator that `rng` is or seeds."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: rng must be a seed, a numpy.random.Generator or None, not {rng!r}") from None


def float_type(name: str, dtype: DTypeLike) -> np.dtype[Any]:
    """`dtype` if parameters can have it."""
    kind: np.dtype[Any] | None = None
    if isinstance(dtype, str) and dtype == "bfloat16":  # a name that NumPy does not know
        with lock:
            import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16)
    elif dtype is not None:
        try:
            kind = np.dtype(dtype)
        except TypeError:
            kind = None
    if kind is None or kind.name not in FLOATS:
        raise ValueError(f"{name}: dtype must be float16, bfloat16, float32 or float64, not {dtype!r}")
    return kind.newbyteorder("=")
