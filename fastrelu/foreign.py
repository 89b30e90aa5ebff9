"""Operands of other libraries that would not come through a ufunc as they should: made arrays, and the results made theirs.

* Quantities of pint and astropy know the units of NumPy's own ufuncs only. relu, leaky_relu and prelu scale with their input
  and keep its unit, products have the product of the units, and what has an exponential takes numbers without dimension.
* PyTorch's tensors in the memory of the host, whose hook for ufuncs is of an older protocol.
* What has no other protocol than DLPack, also in the memory of the host.

No library is imported to tell.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["array", "call", "is_foreign", "lossy_fault"]

_OTHER_PROTOCOLS = ("__array__", "__array_interface__", "__array_struct__", "__array_ufunc__", "__cuda_array_interface__")

_UNITS = {"pint", "astropy"}

# What becomes of the units of the operands. "keeps": the result has the unit, or the product of all; "any": it does not matter;
# "sum": it is that of the result. All others, and all operands of the functions that are not here, have to be numbers.
_SCALES = {"x": "keeps"}
_PRODUCT = {"x": "keeps", "w": "keeps", "b": "sum"}
_GRADIENT = {"dy": "keeps"}
_SIGN = {"dy": "keeps", "y": "any"}
_ROLES = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu"), _SCALES),
    **dict.fromkeys(("relu_backward", "leaky_relu_backward"), _SIGN),
    **dict.fromkeys(("elu_backward", "sigmoid_backward", "tanh_backward", "softplus_backward"), _GRADIENT),
    **dict.fromkeys(("linear", "linear_relu", "linear_leaky_relu", "linear_prelu"), _PRODUCT),
    "relu_derivative": {"x": "any"},
}


def _kind(value: Any) -> str:
    """The library, or "dlpack", of an operand that needs help; else nothing."""
    cls: Any = type(value)
    return _kind_of(cls)


@lru_cache(256)
def _kind_of(cls: Any) -> str:
    for base in cls.__mro__:
        library: str = base.__module__.partition(".")[0]
        if "Quantity" in base.__name__ and library in ("pint", "astropy"):
            return library
        if base.__name__ == "Tensor" and library == "torch":
            return library
    if hasattr(cls, "__dlpack__") and not any(hasattr(cls, name) for name in _OTHER_PROTOCOLS):
        return "dlpack"
    return ""


def is_foreign(value: Any) -> bool:
    """Whether `call` has to see to an operand. It may not be on a device."""
    return _kind(value) != ""


def array(value: Any) -> Any:
    """An array on the memory of a tensor or of what speaks DLPack; anything else as it is."""
    kind = _kind(value)
    if kind == "torch":
        return np.asarray(value)
    return np.from_dlpack(value) if kind == "dlpack" else value


def lossy_fault(base: str, name: str, value: Any) -> TypeError | None:
    """The error for an array that has more than numbers, which a function that is no ufunc would lose without a word."""
    if isinstance(value, np.ma.MaskedArray):
        return TypeError(f"{base}: {name} must be an array without a mask, not a MaskedArray: call its filled() first")
    if _kind(value) in _UNITS:
        return TypeError(f"{base}: {name} must be an array without a unit, not a Quantity in {_unit(value)}")
    return None


def call(function: Any, base: str, operands: Mapping[str, Any], out: Any, keywords: Mapping[str, Any]) -> Any:
    """The result of a function for operands of which some are foreign.

    Parameters
    ----------
    function : callable
        The public function, which gets arrays.
    base : str
        Its name.
    operands : mapping
        All positional arguments by their names.
    out : tensor, ndarray or None
        Where to put the result.
    keywords : mapping
        Its other arguments.

    Raises
    ------
    TypeError
        If units do not fit.
    """
    kinds = {_kind(value) for value in (*operands.values(), out)}
    if kinds & _UNITS:
        return _with_units(function, base, operands, out, keywords)
    places = {} if out is None else {"out": tuple(map(array, out)) if isinstance(out, tuple) else array(out)}
    result = function(*map(array, operands.values()), **places, **keywords)
    if "torch" not in kinds or (out is not None and not isinstance(out, tuple)):
        return result if out is None or isinstance(out, tuple) else out
    return tuple(map(_tensor, result)) if isinstance(result, tuple) else _tensor(result)


def _tensor(result: Any) -> Any:
    return None if result is None else sys.modules["torch"].from_numpy(np.asarray(result))


def _unit(value: Any) -> Any:
    """The unit of a quantity, and None of a number."""
    kind = _kind(value)
    return value.units if kind == "pint" else value.unit if kind == "astropy" else None


def _number(base: str, name: str, value: Any, unit: Any) -> Any:
    """The number before the unit, if a quantity is given in `unit`."""
    kind = _kind(value)
    try:
        if kind == "pint":
            return value.m_as("" if unit is None else unit)
        if kind == "astropy":
            return value.to_value("" if unit is None else unit)
    except Exception:  # each library has classes of its own
        allowed = "without dimension" if unit is None else f"in a unit of the dimension of {unit}"
        raise TypeError(f"{base}: {name} must be {allowed}, not in {str(_unit(value)) or 'none'}") from None
    return value


def _scaled(base: str, name: str, value: Any) -> Any:
    """The number before the unit, whatever that is; but degrees Celsius and magnitudes have a zero that is none."""
    kind, unit = _kind(value), _unit(value)
    if unit is None:
        return value
    if hasattr(unit, "physical_unit") or (kind == "pint" and type(value)(0.0, unit).to_base_units().magnitude != 0):
        raise TypeError(f"{base}: {name} must be in a unit that has a zero, not in {unit}")
    return value.magnitude if kind == "pint" else value.value


def _with_units(function: Any, base: str, operands: Mapping[str, Any], out: Any, keywords: Mapping[str, Any]) -> Any:
    name, like = next(((n, v) for n, v in operands.items() if _unit(v) is not None), ("out", out))
    if like is out or out is not None or keywords.get("mask") is not None:
        raise TypeError(f"{base}: out and mask must not be given where units are")
    if base.endswith("_backward") and base not in _ROLES:
        raise lossy_fault(base, name, like) or TypeError(base)
    roles = _ROLES.get(base, {})
    units = [unit for name, value in operands.items() if roles.get(name) == "keeps" and (unit := _unit(value)) is not None]
    unit = math.prod(units[1:], start=units[0]) if units else None
    numbers = []
    for name, value in operands.items():
        role = roles.get(name)
        if role in ("keeps", "any"):
            numbers.append(_scaled(base, name, value))
        elif role == "sum" and value is not None:
            numbers.append(_number(base, name, value if is_foreign(value) else _quantity(value, None, like), unit))
        else:
            numbers.append(_number(base, name, value, None))
    return _quantity(function(*numbers, **keywords), unit, like)


def _quantity(number: Any, unit: Any, like: Any) -> Any:
    """A quantity of the library of `like`; without a unit one without dimension."""
    if _kind(like) == "pint":
        return type(like)(number, "" if unit is None else unit)
    return np.asanyarray(number) << (sys.modules["astropy.units"].dimensionless_unscaled if unit is None else unit)
