"""Quantities of pint and astropy, which know the units of NumPy's own ufuncs only. No library is imported to tell.

relu, leaky_relu and prelu scale with their input and keep its unit, gradients have that of dy, products have the product of the
units, and what has an exponential takes numbers without dimension.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastrelu.foreign import UNITS, kind

__all__ = ["call", "fault"]

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


def fault(base: str, name: str, value: Any) -> TypeError:
    """The error for a quantity that a function would make a number without a word."""
    return TypeError(f"{base}: {name} must be an array without a unit, not a Quantity in {_unit(value)}")


def call(function: Callable[..., Any], base: str, operands: Mapping[str, Any], keywords: Mapping[str, Any]) -> Any:
    """The result of a function for operands of which some are quantities, as `fastrelu.foreign.call`."""
    quantities = {name: value for name, value in operands.items() if _unit(value) is not None}
    (first, like), *others = quantities.items()
    for name, value in others:
        if kind(value) != kind(like):
            raise TypeError(f"{base}: {name} must be a Quantity of {kind(like)} as {first}, not of {kind(value)}")
    if base.endswith("_backward") and base not in _ROLES:
        raise fault(base, first, like)
    roles = _ROLES.get(base, {})
    units = [_unit(value) for name, value in quantities.items() if roles.get(name) == "keeps"]
    unit = math.prod(units[1:], start=units[0]) if units else None
    numbers = []
    for name, value in operands.items():
        role = roles.get(name)
        if role in ("keeps", "any"):
            numbers.append(_scaled(base, name, value))
        elif role == "sum" and value is not None:
            numbers.append(_number(base, name, value if name in quantities else _quantity(value, None, like), unit))
        else:
            numbers.append(_number(base, name, value, None))
    return _quantity(function(*numbers, **keywords), unit, like)


def _unit(value: Any) -> Any:
    """The unit of a quantity, and None of a number."""
    return (value.units if kind(value) == "pint" else value.unit) if kind(value) in UNITS else None


def _number(base: str, name: str, value: Any, unit: Any) -> Any:
    """The number before the unit, if a quantity is given in `unit`."""
    if _unit(value) is None:
        return value
    wanted = "" if unit is None else unit
    try:
        return value.m_as(wanted) if kind(value) == "pint" else value.to_value(wanted)
    except Exception:  # each library has classes of its own
        allowed = "without dimension" if unit is None else f"in a unit of the dimension of {unit}"
        raise TypeError(f"{base}: {name} must be {allowed}, not in {str(_unit(value)) or 'none'}") from None


def _scaled(base: str, name: str, value: Any) -> Any:
    """The number before the unit, whatever that is; but degrees Celsius and magnitudes have a zero that is none."""
    unit = _unit(value)
    if unit is None:
        return value
    if kind(value) == "pint":
        number, has_zero = value.magnitude, type(value)(0.0, unit).to_base_units().magnitude == 0
    else:
        is_scale = unit.physical_type == "temperature" and not unit.is_equivalent("K")
        number, has_zero = value.value, not (hasattr(unit, "physical_unit") or is_scale)
    if not has_zero:
        raise TypeError(f"{base}: {name} must be in a unit that has a zero, not in {unit}")
    return number


def _quantity(number: Any, unit: Any, like: Any) -> Any:
    """A quantity of the library of `like`; without a unit one without dimension."""
    if kind(like) == "pint":
        return type(like)(number, "" if unit is None else unit)
    return np.asanyarray(number) << (sys.modules["astropy.units"].dimensionless_unscaled if unit is None else unit)
