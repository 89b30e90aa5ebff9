"""NumPy arrays on a device: copied there, and the results back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu import faults
from fastrelu.cuda import launch
from fastrelu.cuda.arrays import DEFAULT_STREAM
from fastrelu.cuda.owned import OwnedArray
from fastrelu.operands import native


def run(name: str, call: Callable[..., Any], operands: Mapping[str, Any], outputs: Mapping[str, Any], device: int) -> Any:
    """What `call` makes of the same operands and outputs on a device, as NumPy arrays.

    Raises
    ------
    TypeError, ValueError
        If an operand is no array of numbers, or an output no writable array.
    """
    given = {operand: _sent(name, operand, value, device) for operand, value in operands.items()}
    places: dict[str, OwnedArray] = {}
    for output, array in outputs.items():
        if array is not None:
            if not isinstance(array, ndarray):
                raise TypeError(f"{name}: {output} must be an array, not {type(array).__name__}")
            fault = faults.read_only_fault(name, output, array)
            if fault is not None:
                raise fault
            places[output] = _copy_of(array, device)
    results = call(given, {output: places.get(output) for output in outputs})
    for output, place in places.items():
        outputs[output][...] = place.copy_to_host()
    hosts = {id(place): outputs[output] for output, place in places.items()}

    def fetched(result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(map(fetched, result))
        if not isinstance(result, OwnedArray):
            return result
        return hosts[id(result)] if id(result) in hosts else result.copy_to_host()[()]

    return fetched(results)


def _sent(base: str, name: str, value: Any, device: int) -> Any:
    """An operand on the device, if it is more than a number."""
    if value is None or np.ndim(value) == 0:
        return value
    array = np.asarray(value)
    if name == "where":
        if array.dtype != bool:
            raise TypeError(f"{base}: where must be of type bool, not {array.dtype}")
    elif (fault := faults.operand_fault(base, {name: value}, {})) is not None:
        raise fault
    return _copy_of(array, device)


def _copy_of(array: ndarray, device: int) -> OwnedArray:
    """A copy on the device, whose axes lie in the same order."""
    order = tuple(sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis])))
    dense = np.ascontiguousarray(native(array).transpose(order))
    copy = OwnedArray(array.shape, dense.dtype.name, device, DEFAULT_STREAM, order)
    if copy.nbytes:
        launch.active().copy_to_device(device, copy.pointer, dense.ctypes.data, copy.nbytes, DEFAULT_STREAM)
    return copy
