"""What a call takes: JAX's rules of promotion, our errors."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastrelu import faults
from fastrelu.layers import shape_fault
from fastrelu.native.entries import MAX_AXES
from fastrelu.operations import FLOATS, HALVES, INTEGERS, LAYERS, OPERATIONS


def prepared(base: str, given: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The operands of a call as arrays of the types of a loop, checked.

    Parameters
    ----------
    base : str
        The public function.
    given : mapping
        Its operands by their names; ``b`` may be None, and is left out then.

    Raises
    ------
    TypeError
        If an operand is no array of numbers, or has a type for which there is no loop.
    ValueError
        If shapes do not fit.
    """
    operands = {name: _array(base, name, value) for name, value in given.items() if name != "b" or value is not None}
    shapes = {name: tuple(map(_length, operand.shape)) for name, operand in operands.items()}
    fault = faults.shapes_fault(base, shapes) if base in OPERATIONS else _layer_fault(base, shapes)
    if fault is not None:
        raise fault
    alpha = operands.pop("alpha", None)
    # In relu alone an integer type stays what it is. A wide alpha widens the data, as in NumPy, but for float32 beside halves.
    dtype = jnp.result_type(*operands.values())
    if base != "relu" and dtype.name in INTEGERS:
        dtype = jnp.result_type(dtype, float)
    if alpha is not None and not (dtype.name in HALVES and alpha.dtype.name in ("float32", *INTEGERS)):
        dtype = jnp.result_type(dtype, *([] if alpha.dtype.name in INTEGERS else [alpha]))
    prepared = {name: _cast(operand, dtype) for name, operand in operands.items()}
    if alpha is not None:
        wide = jnp.dtype("float32") if dtype.name in HALVES else dtype
        prepared["alpha"] = _cast(alpha, wide)
    return prepared


def _cast(operand: jax.Array, dtype: Any) -> jax.Array:
    if operand.weak_type and operand.dtype.name in INTEGERS and dtype.name in FLOATS:
        operand = operand * 1.0  # a float that is as weak
    return operand if operand.dtype == dtype else operand.astype(dtype)


def _array(base: str, name: str, value: Any) -> jax.Array:
    if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float) or isinstance(value, bool):
        raise TypeError(f"{base}: {name} must be an array or a number, not {type(value).__name__}")
    dtype = value.dtype.name if hasattr(value, "dtype") else ""
    if dtype and dtype not in FLOATS + INTEGERS:
        raise TypeError(f"{base}: {name} must be an integer type, float16, bfloat16, float32 or float64, not {dtype}")
    if np.ndim(value) > MAX_AXES:
        raise ValueError(f"{base}: {name} must have at most {MAX_AXES} axes, not {np.ndim(value)}")
    is_concrete = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    return value if is_concrete else jnp.asarray(value)  # which takes a microsecond or more, also where nothing is to do


class _Symbol(int):
    """A length that `jax.export` leaves open, as a number by which it differs from others, and which shows its name."""

    name: str

    def __repr__(self) -> str:
        return self.name


def _length(length: Any) -> int:
    if isinstance(length, int):
        return length
    symbol = _Symbol(1000 + hash(length) % 1000)  # the product of several must not be too long for an array
    symbol.name = str(length)
    return symbol


def _layer_fault(base: str, shapes: Mapping[str, tuple[int, ...]]) -> ValueError | None:
    given = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
    if LAYERS[base].alpha == "(n)" and shapes["alpha"] == ():
        del given["alpha"]
    return shape_fault(base, given, {"out": None}, {})


def is_known(alpha: Any) -> bool:
    """Whether an alpha is a number that is not negative, so that the output of its activation tells the sign of the input."""
    return isinstance(alpha, int | float | np.floating | np.integer) and bool(alpha >= 0)
