"""Operands of other libraries that would not come through a ufunc as they should: made arrays, and the results made theirs.

* Quantities of pint and astropy, see `fastrelu.units`.
* PyTorch's tensors in the memory of the host, whose hook for ufuncs is of an older protocol.
* What has no other protocol than DLPack, also in the memory of the host.
* In products, whose operands have axes of different meaning: labels of pandas, see `fastrelu.labels`, and masked arrays,
  which are refused.

No library is imported to tell.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import numpy as np

from fastrelu.native.guard import lock
from fastrelu.operations import LAYERS

__all__ = ["UNITS", "array", "call", "is_foreign", "is_foreign_to_products", "kind", "lossy_fault"]

_OTHER_PROTOCOLS = ("__array__", "__array_interface__", "__array_struct__", "__array_ufunc__", "__cuda_array_interface__")

UNITS = frozenset(("pint", "astropy"))
"""Libraries of quantities."""

_IN_PRODUCTS = frozenset(("pandas", "mask"))
"""Kinds whose own hooks are right for elementwise functions."""


def kind(value: Any) -> str:
    """The library of an operand that needs help, or what is special about it; else nothing."""
    cls: Any = type(value)
    return _kind_of(cls)


@lru_cache(256)
def _kind_of(cls: Any) -> str:
    if issubclass(cls, np.ma.MaskedArray):
        return "mask"
    for base in cls.__mro__:
        library: str = base.__module__.partition(".")[0]
        if "Quantity" in base.__name__ and library in UNITS:
            return library
        if (library, base.__name__) in (("torch", "Tensor"), ("pandas", "Series"), ("pandas", "DataFrame")):
            return library
    if hasattr(cls, "__dlpack__") and not any(hasattr(cls, name) for name in _OTHER_PROTOCOLS):
        return "dlpack"
    return ""


def is_foreign(value: Any) -> bool:
    """Whether `call` has to see to an operand of an elementwise function. It may not be on a device."""
    return is_foreign_to_products(value) and kind(value) not in _IN_PRODUCTS


def is_foreign_to_products(value: Any) -> bool:
    """The same for a fused layer or its gradients."""
    return kind(value) != ""


def array(value: Any) -> Any:
    """An array on the memory of a tensor or of what speaks DLPack, or of labelled data; anything else as it is."""
    what = kind(value)
    if what == "torch":
        return _of_tensor(value)
    return np.from_dlpack(value) if what == "dlpack" else np.asarray(value) if what == "pandas" else value


def _of_tensor(tensor: Any) -> Any:
    try:
        return np.asarray(tensor)
    except TypeError as error:
        torch = sys.modules["torch"]
        if tensor.dtype is not torch.bfloat16:
            raise
        try:
            with lock:
                from ml_dtypes import bfloat16
        except ImportError:
            raise error from None
        return np.asarray(tensor.view(torch.int16)).view(bfloat16)


def _tensor(result: Any) -> Any:
    if result is None:
        return None
    torch, numbers = sys.modules["torch"], np.asarray(result)
    if numbers.dtype.name == "bfloat16":
        return torch.from_numpy(numbers.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(numbers)


def lossy_fault(base: str, name: str, value: Any) -> TypeError | None:
    """The error for an array that has more than numbers, which a function that is no ufunc would lose without a word."""
    if isinstance(value, np.ndarray) and hasattr(value, "mask"):  # astropy has such arrays as well
        came = type(value).__name__
        return TypeError(f"{base}: {name} must be an array without a mask, not a {came}: call its filled() first")
    if kind(value) not in UNITS:
        return None
    with lock:
        from fastrelu import units
    return units.fault(base, name, value)


def call(function: Callable[..., Any], base: str, operands: Mapping[str, Any], out: Any, keywords: Mapping[str, Any]) -> Any:
    """The result of a function for operands of which some are foreign.

    Parameters
    ----------
    function : callable
        The public function, which gets arrays.
    base : str
        Its name.
    operands : mapping
        All positional arguments by their names.
    out : tensor, ndarray, tuple of them or None
        Where to put the result.
    keywords : mapping
        Its other arguments.

    Raises
    ------
    TypeError, ValueError
        If units or labels do not fit, or if a mask would be lost.
    """
    with lock:
        from fastrelu import labels, units
    mask = keywords.get("mask")
    outputs = (*(out if isinstance(out, tuple) else (out,)), *([] if mask is None else [mask]))
    kinds = {*map(kind, (*operands.values(), *outputs))}
    if base.startswith("linear"):
        _check_product(base, operands, outputs)
    if base in LAYERS:
        labels.check(base, operands)
    if kinds & UNITS:
        if any(output is not None for output in outputs):
            raise TypeError(f"{base}: out and mask must not be given where units are")
        return units.call(function, base, {name: array(value) for name, value in operands.items()}, keywords)
    places = {} if out is None else {"out": tuple(map(array, out)) if isinstance(out, tuple) else array(out)}
    if mask is not None:
        places["mask"] = array(mask)
    result = function(*map(array, operands.values()), **{**keywords, **places})
    results = result if isinstance(result, tuple) else (result,)
    if "torch" in kinds:
        results = tuple(map(_tensor, results))
    elif base in LAYERS and "pandas" in kinds:
        results = (labels.labelled(operands["x"], operands["w"], results[0]), *results[1:])
    # As any ufunc, it returns what it was given for a result.
    results = tuple(r if o is None or o is Ellipsis else o for r, o in zip_longest(results, outputs[: len(results)]))
    return results if isinstance(result, tuple) else results[0]


def _check_product(base: str, operands: Mapping[str, Any], outputs: tuple[Any, ...]) -> None:
    for name, value in operands.items():
        fault = lossy_fault(base, name, value) if kind(value) == "mask" else None
        if fault is not None:
            raise fault
    for value in outputs:
        if kind(value) in _IN_PRODUCTS:  # its numbers may be a copy, or not all are to be written
            raise TypeError(f"{base}: out must be an array, not {type(value).__name__}")
