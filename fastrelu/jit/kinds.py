"""The types that Numba has given the arguments, and the type to calculate in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import errors, types
from numba.np.numpy_support import as_dtype, from_dtype

from fastrelu.native.entries import MAX_AXES
from fastrelu.operations import INTEGERS, Backward, Layer, Operation

_NAMES = (*INTEGERS, "float32", "float64")


class _Class(NamedTuple):
    """The class of an operand, as NumPy hands it to what chooses a loop."""

    type: type


def plain(argument: Any) -> Any:
    """The type of an argument: of a default value as well, of a literal without its value, None if it was not given."""
    if isinstance(argument, types.Omitted):
        argument = argument.value
    if argument is None or isinstance(argument, types.NoneType):
        return None
    if isinstance(argument, bool):
        return types.boolean
    if isinstance(argument, int | float):
        return types.float64 if isinstance(argument, float) else types.int64
    return types.unliteral(argument)


def is_whole(argument: Any) -> bool:
    """Whether an argument is known to be a whole number, such as the default 0.0."""
    value = getattr(argument, "value", getattr(argument, "literal_value", argument))
    return isinstance(value, float) and value.is_integer()


def fail(name: str, argument: str, kind: Any, allowed: str) -> None:
    raise errors.TypingError(f"{name}: {argument} must be {allowed}, not {kind}")


def check(name: str, argument: str, kind: Any, numbers: bool = True) -> None:
    """Raise a typing error unless an operand is an array, or a number where these are allowed, of a type that can be used."""
    number = kind.dtype if isinstance(kind, types.Array) else kind
    allowed = "an array or a number" if numbers else "an array"
    if not (isinstance(kind, types.Array) or (numbers and isinstance(kind, types.Number))):
        fail(name, argument, kind, f"{allowed} of an integer type, float32 or float64")
    if not isinstance(number, types.Integer | types.Float) or as_dtype(number).name not in _NAMES:
        fail(name, argument, kind, f"{allowed} of an integer type, float32 or float64")
    if isinstance(kind, types.Array) and kind.ndim > MAX_AXES:
        fail(name, argument, kind, f"an array of at most {MAX_AXES} axes")


def check_output(name: str, argument: str, kind: Any, dtype: Any) -> None:
    """Raise a typing error unless an argument is an array that results of `dtype` can be written to."""
    if not isinstance(kind, types.Array):
        fail(name, argument, kind, "an array")
    if not kind.mutable:
        fail(name, argument, "a read-only one", "an array that can be written to")
    # Numba has no arithmetic on float16.
    if kind.dtype == types.float16 or not np.can_cast(as_dtype(dtype), as_dtype(kind.dtype), "same_kind"):
        fail(name, argument, kind, f"an array that {dtype} can be cast to")


def element(operation: Operation | Layer | Backward, kinds: list[Any], whole: set[int] = frozenset()) -> Any:
    """The Numba type to calculate in, by the rules of `fastrelu.ufuncs`.

    Parameters
    ----------
    operation : Operation, Layer or Backward
        What is calculated.
    kinds : list
        The types of the operands. A number among arrays counts as a Python number.
    whole : set of int
        Operands that are Python floats but whole numbers, which fit integers.
    """
    from fastrelu.ufuncs import element_of

    data = [kind for i, kind in enumerate(kinds) if i != operation.parameter]
    has_array = any(isinstance(kind, types.Array) for kind in data)
    classes = []
    for i, kind in enumerate(kinds):
        if isinstance(kind, types.Array) or not (has_array or i == operation.parameter):
            scalar = as_dtype(kind.dtype if isinstance(kind, types.Array) else kind).type
        else:
            scalar = int if isinstance(kind, types.Integer) or i in whole else float
        classes.append(_Class(scalar))
    name = element_of(operation, classes, False)
    return from_dtype(np.dtype("float32" if name == "float16" else name))
