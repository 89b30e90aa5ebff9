"""What the tests of compiled callers share: one-line functions under @njit, and arrays of every layout."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit, types

import fastrelu
from fastrelu.jit import register
from tests.reference import bits

# Numba does it by itself where the package is installed.
register()

Array = np.ndarray


def array(dtype: str, axes: int) -> types.Array:
    """The Numba type of arrays of any strides, so that one compilation takes them all."""
    return types.Array(getattr(types, dtype), axes, "A")


@cache
def function(parameters: str, result: str, *signature: Any, **options: Any) -> Callable[..., Any]:
    """The compiled ``lambda parameters: result``, in which all public functions can be called by their names; for the argument
    types of `signature`, or compiled for what comes.
    """
    public = {name: getattr(fastrelu, name) for name in fastrelu.__all__}
    plain = eval(f"lambda {parameters}: {result}", {**public, "np": np})
    return njit(signature, **options)(plain) if signature else njit(**options)(plain)


def plain(parameters: str, result: str) -> Callable[..., Any]:
    """The same, not compiled."""
    return function(parameters, result).py_func


def some(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Random numbers of both signs; a third of those in float types is special."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 9, shape).astype(dtype) - (np.dtype(dtype).kind == "i") * np.dtype(dtype).type(4)
    values = rng.standard_normal(shape).astype(dtype)
    return np.where(rng.random(shape) < 0.3, rng.choice(specials(dtype), shape), values).astype(dtype)


def specials(dtype: str) -> Array:
    """Floats at which formulas and comparisons go wrong."""
    info = np.finfo(dtype)
    some = [0.0, info.smallest_subnormal, info.tiny, 1e-3, 0.5, 1.0, 3.7, 90.0, 700.0, info.max, np.inf, np.nan]
    some = np.array(some, dtype)
    return np.concatenate([some, -some])


def view(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Random numbers in an array of that shape with random strides: any order of axes, gaps, backwards."""
    order = rng.permutation(len(shape))
    steps = rng.choice([1, 1, 2, 3, -1, -2], len(shape))
    whole = [shape[axis] * abs(steps[axis]) for axis in order]
    values = some(dtype, *whole, seed=int(rng.integers(1 << 30))).transpose(np.argsort(order))
    return values[tuple(slice(None, None, step) for step in steps)]


def assert_same(found: Any, expected: Any, message: Any = "", exact: bool = False) -> None:
    """Equal types, shapes and bits, of arrays or of tuples of them; which NaN was calculated is open, unless `exact`."""
    if isinstance(expected, tuple):
        assert isinstance(found, tuple), message
        assert len(found) == len(expected), message
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, message, exact)
        return
    if expected is None:
        assert found is None, message
        return
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape == () and expected.dtype == np.float32:
        # Numba returns each float to Python as a double.
        assert found == found.astype(np.float32) or np.isnan(found), message
        found = found.astype(np.float32)
    if expected.dtype.kind == "c":
        found, expected = (np.stack([a.real, a.imag]) for a in (found, expected))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), message
    if exact or expected.dtype.kind != "f":
        assert found.tobytes() == expected.tobytes(), message
    else:
        assert (bits(found) == bits(expected)).all(), (message, found, expected)
