"""Values whose bits are compared, and arrays brought back from a device."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from fastrelu.cuda import launch
from fastrelu.operations import FLOATS
from tests.dtypes import dtype_of

Array = np.ndarray[Any, Any]


def specials(name: str) -> Array:
    """Zeros, subnormals, ordinary numbers, limits, infinities and NaNs of both signs; of integers small ones and limits."""
    dtype = dtype_of(name)
    if name not in FLOATS:
        info = np.iinfo(dtype)
        return np.array([0, 1, 2, info.max // 2, info.max - 1, info.max, info.min, info.min // 2], dtype)
    infinity = int(np.array(np.inf, dtype).view(f"u{dtype.itemsize}"))
    one = int(np.array(1, dtype).view(f"u{dtype.itemsize}"))
    least_normal = infinity & -infinity  # the lowest bit of the exponent
    sizes = [0, 1, 3, least_normal - 1, least_normal, one - 1, one, one + 1, infinity - 1, infinity, infinity + 1]
    sizes += [infinity + least_normal // 2, infinity + least_normal // 2 + 5, infinity + least_normal - 1]
    sign = 1 << (8 * dtype.itemsize - 1)
    return np.array([*sizes, *(sign | size for size in sizes)], f"u{dtype.itemsize}").view(dtype)


def operands(name: str, count: int, size: int) -> list[Array]:
    """So many arrays of one type: all combinations of special values, ordinary numbers, and arbitrary bits."""
    dtype, rng = dtype_of(name), np.random.default_rng(7)
    pairs = np.array(list(product(specials(name), repeat=min(count, 2))), dtype).T
    arrays = []
    for special in [*pairs, *[np.resize(specials(name), pairs.shape[1])] * (count - 2)]:
        room = size - len(special)
        arbitrary = rng.integers(0, 256, room // 2 * dtype.itemsize, dtype=np.uint8).view(dtype)
        ordinary = (
            3 * rng.standard_normal(room - len(arbitrary)) if name in FLOATS else rng.integers(0, 100, room - len(arbitrary))
        )
        arrays.append(np.concatenate([special, arbitrary, ordinary.astype(dtype)]))
    return arrays


def bits(x: Array, *, any_nan: bool = False) -> Array:
    """The elements as unsigned integers; with `any_nan` every NaN is the same, since which one a calculation gives is open."""
    if any_nan and x.dtype.name in FLOATS:
        x = np.where(x != x, np.array(np.nan).astype(x.dtype), x)
    return np.ascontiguousarray(x).view(f"u{x.itemsize}")


def to_host(array: Any) -> Array:
    """What stands in a device array."""
    if hasattr(array, "host"):
        return np.array(array.host)
    buffer = np.empty(array.nbytes, np.uint8)
    launch.active().copy_to_host(array.device, buffer.ctypes.data, array.pointer, array.nbytes, array.stream)
    return np.lib.stride_tricks.as_strided(buffer.view(dtype_of(array.dtype)), array.shape, array.strides)


def nightly(*values: Any) -> list[Any]:
    """The same as parameters of tests that run by night: most of them compile kernels of their own, one to two seconds each."""
    return [pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.nightly) for value in values]
