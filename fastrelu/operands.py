"""Operands of the functions that are no ufuncs: checked, and as arrays that a kernel can read."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu import faults, foreign
from fastrelu.native.routine import address, routine
from fastrelu.operations import FLOATS, HALVES, INTEGERS

_KNOWN = frozenset(FLOATS + INTEGERS)
# What NumPy's functions make of integers: the smallest float that holds them.
_FLOAT_OF: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float16),
    2: np.dtype(np.float32),
    4: np.dtype(np.float64),
    8: np.dtype(np.float64),
}


@cache
def name_of(dtype: np.dtype[Any]) -> str:
    """The name of a type; NumPy makes it up anew each time, which takes 2 us."""
    return dtype.name


def known_array(base: str, name: str, value: Any) -> ndarray:
    """`value` as an array of a float or integer type."""
    if type(value) is not ndarray or name_of(value.dtype) not in _KNOWN:
        value = _numbers_alone(base, name, value)
        fault = faults.operand_fault(base, {name: value}, {})
        if fault is not None:
            raise fault
    array = np.asarray(value)
    if name_of(array.dtype) not in _KNOWN:  # a Python integer that no integer type holds
        raise TypeError(f"{base}: {name} must be an integer type, float16, bfloat16, float32 or float64, not {array.dtype}")
    return array


def plain_array(base: str, name: str, value: Any) -> ndarray:
    """`value` as an array of any type but that of Python's objects."""
    if type(value) is ndarray and value.dtype != object:
        return value
    value = _numbers_alone(base, name, value)
    array = np.asarray(value)
    fault = faults.operand_fault(base, {name: value}, {}) if array.dtype == object else None
    if fault is not None:
        raise fault
    return array


def _numbers_alone(base: str, name: str, value: Any) -> Any:
    """`value`, or an array on its memory, if it is in this machine's memory and has nothing that an array would lose."""
    fault = faults.device_fault(base, name, value) or foreign.lossy_fault(base, name, value)
    if fault is not None:
        raise fault
    return foreign.array(value)


def number_array(base: str, name: str, value: Any, ndims: Mapping[int, str] | None = None) -> ndarray:
    """An operand of any float or integer type, native and aligned; a copy only if it has to be.

    Parameters
    ----------
    base, name : str
        The function and the operand, for errors.
    value : array_like
        The operand.
    ndims : mapping of int to str, optional
        How many axes it may have, and what those are.
    """
    array = known_array(base, name, value)
    if ndims is not None and array.ndim not in ndims:
        raise ValueError(f"{base}: {name} must have shape {' or '.join(ndims.values())}, not {array.shape}")
    return native(array)


def native(array: ndarray) -> ndarray:
    """The same, in the order of bytes and with the alignment of the processor."""
    if array.dtype.isnative and array.flags.aligned:
        return array
    return np.array(array, array.dtype.newbyteorder("="))


def float_array(base: str, name: str, value: Any, ndims: Mapping[int, str] | None = None) -> ndarray:
    """The same; integers become the float type that NumPy's functions give them."""
    array = number_array(base, name, value, ndims)
    if name_of(array.dtype) in FLOATS:
        return array
    converted: ndarray = array.astype(_FLOAT_OF[array.dtype.itemsize])
    return converted


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that sums of `dtype` have."""
    return np.dtype(np.float32) if name_of(dtype) in HALVES else dtype


def integer_array(base: str, name: str, value: Any) -> ndarray:
    """An operand of an integer type; an empty list is one as well."""
    array = known_array(base, name, value)
    if array.size == 0 and not isinstance(value, ndarray):
        array = array.astype(np.int64)
    if name_of(array.dtype) not in INTEGERS:
        raise TypeError(f"{base}: {name} must be of an integer type, not {array.dtype}")
    return array


def words_within(base: str, name: str, what: str, integers: ndarray, limit: int, exempt: int | None = None) -> ndarray:
    """`integers` as contiguous int64, which are all in ``range(limit)`` or `exempt`; `what` one of them is called."""
    words = np.asarray(integers, np.int64, order="C")
    first = -1
    if integers.dtype == np.uint64 and (huge := integers > np.iinfo(np.int64).max).any():
        first = int(huge.argmax())
    elif words.size:
        first = _first_outside(words, limit, exempt)
    if first >= 0:
        place = tuple(int(i) for i in np.unravel_index(first, integers.shape))
        where = f"{name}[{', '.join(map(str, place))}]" if place else name
        allowed = f"in range({limit})" + (f" or {exempt}" if exempt is not None else "")
        raise ValueError(f"{base}: {what} must be {allowed}, not {integers[place]} as in {where}")
    return words


def _first_outside(words: ndarray, limit: int, exempt: int | None) -> int:
    if limit == 0 and exempt is None:
        return 0
    found = ctypes.c_int64(-1)
    # What is in the range anyway is no exception.
    exempt = 0 if exempt is None else exempt
    routine("ranges", "first_outside")(address(words), words.size, limit, exempt, ctypes.addressof(found), 0)
    return found.value


def whole_number(base: str, name: str, value: Any, least: int, most: int | None = None) -> int:
    """An argument that must be an integer from `least` on, or to `most`."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{base}: {name} must be an integer, not {type(value).__name__}")
    if most is None and number < least:
        raise ValueError(f"{base}: {name} must be at least {least}, not {number}")
    if most is not None and not least <= number <= most:
        raise ValueError(f"{base}: {name} must be {least} to {most}, not {number}")
    return number


def pair(base: str, name: str, value: Any, least: int, most: int | None = None) -> tuple[int, int]:
    """An integer for rows and columns, or one for each, as `whole_number` takes them."""
    is_several = isinstance(value, tuple | list) or (isinstance(value, ndarray) and value.ndim == 1)
    numbers = tuple(value) if is_several else (value, value)
    if len(numbers) != 2:
        raise ValueError(f"{base}: {name} must be one integer or two, not {len(numbers)}")
    first, second = (whole_number(base, name, number, least, most) for number in numbers)
    return first, second


def check_output(base: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "out") -> None:
    """Refuse an array for results that has another shape or type, or cannot be written."""
    if not isinstance(out, ndarray):
        raise faults.device_fault(base, name, out) or TypeError(f"{base}: {name} must be an array, not {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"{base}: {name} must have shape {shape}, not {out.shape}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"{base}: {name} must have type {dtype}, not {out.dtype}")
    fault = faults.read_only_fault(base, name, out)
    if fault is not None:
        raise fault


def is_direct(out: ndarray | None, *operands: ndarray) -> bool:
    """Whether a kernel can write to `out` while it reads the operands."""
    return (
        out is not None
        and out.dtype.isnative
        and out.flags.aligned
        and not any(np.may_share_memory(out, operand) for operand in operands)
    )
