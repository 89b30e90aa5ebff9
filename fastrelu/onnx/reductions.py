"""Operators that make one number of many. Sums of float32 are calculated in float64 and rounded once, those of halves in
float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu.onnx.graph import Node
from fastrelu.onnx.registry import operator
from fastrelu.onnx.shapes import numbers

__all__ = ["least", "sum_type"]

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
FLAT = 13
"""The version of the operator set from which on Softmax is along one axis; before, all axes from there on are one."""


def sum_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that sums are calculated in."""
    if dtype.kind in "iub":
        return dtype
    return _SINGLE if dtype.itemsize == 2 else _DOUBLE


def _sum(x: ndarray, axes: Any, keepdims: bool) -> Any:
    return np.sum(x, axes, dtype=sum_type(x.dtype), keepdims=keepdims)


def _mean(x: ndarray, axes: Any, keepdims: bool) -> Any:
    if x.dtype.kind in "iu":
        return np.mean(x, axes, keepdims=keepdims)
    return np.mean(x, axes, dtype=sum_type(x.dtype), keepdims=keepdims)


def least(dtype: np.dtype[Any]) -> Any:
    """What no value is below."""
    if dtype.kind in "iu":
        return np.iinfo(dtype).min
    return False if dtype.kind == "b" else dtype.type(-np.inf)


def _most(dtype: np.dtype[Any]) -> Any:
    """What no value is above."""
    if dtype.kind in "iu":
        return np.iinfo(dtype).max
    return True if dtype.kind == "b" else dtype.type(np.inf)


def _max(x: ndarray, axes: Any, keepdims: bool) -> Any:
    return np.max(x, axes, keepdims=keepdims, initial=least(x.dtype))


def _min(x: ndarray, axes: Any, keepdims: bool) -> Any:
    return np.min(x, axes, keepdims=keepdims, initial=_most(x.dtype))


def _product(x: ndarray, axes: Any, keepdims: bool) -> Any:
    return np.prod(x, axes, dtype=sum_type(x.dtype), keepdims=keepdims)


def _sum_of_squares(x: ndarray, axes: Any, keepdims: bool) -> Any:
    return np.sum(np.square(x, dtype=sum_type(x.dtype)), axes, keepdims=keepdims)


def _length(x: ndarray, axes: Any, keepdims: bool) -> Any:
    return np.sqrt(_sum_of_squares(x, axes, keepdims))


_REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceL1": lambda x, axes, keepdims: _sum(np.abs(x), axes, keepdims),
    "ReduceL2": _length,
    "ReduceMax": _max,
    "ReduceMin": _min,
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": _sum_of_squares,
}


@operator(*_REDUCE)
def _reduce(node: Node) -> Callable[..., Any]:
    function, keepdims = _REDUCE[node.operator], bool(node.get("keepdims"))
    axes, skips = numbers(node, "axes", 1), bool(node.get("noop_with_empty_axes"))

    def reduce(*inputs: Any) -> Any:
        x, chosen = inputs[0], axes(inputs)
        everything = () if skips else None  # the axes that are meant by none
        return np.asarray(function(x, tuple(chosen) if chosen else everything, keepdims)).astype(x.dtype, copy=False)

    return reduce


@operator("ArgMax", "ArgMin")
def _arg(node: Node) -> Callable[..., Any]:
    function: Any = np.argmax if node.operator == "ArgMax" else np.argmin
    axis, keepdims, is_last = node.get("axis"), bool(node.get("keepdims")), bool(node.get("select_last_index"))

    def arg(x: ndarray) -> Any:
        if not is_last:
            return function(x, axis, keepdims=keepdims)
        return x.shape[axis] - 1 - function(np.flip(x, axis), axis, keepdims=keepdims)

    return arg


@operator("Softmax", "LogSoftmax")
def _softmax(node: Node) -> Callable[..., Any]:
    is_flat, is_log = node.version < FLAT, node.operator == "LogSoftmax"
    axis = node.get("axis")

    def softmax(x: ndarray) -> Any:
        z = x.astype(sum_type(x.dtype))
        axes = tuple(range(axis % x.ndim if axis != x.ndim else axis, x.ndim)) if is_flat else (axis,)
        if z.size == 0:
            return z.astype(x.dtype)
        z -= z.max(axes, keepdims=True)
        if is_log:
            z -= np.log(np.exp(z).sum(axes, keepdims=True))
        else:
            np.exp(z, out=z)
            z /= z.sum(axes, keepdims=True)
        return z.astype(x.dtype, copy=False)

    return softmax


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> Callable[..., Any]:
    reduce = _mean if node.operator == "GlobalAveragePool" else _max

    def pool(x: ndarray) -> Any:
        return np.asarray(reduce(x, tuple(range(2, x.ndim)), True)).astype(x.dtype, copy=False)

    return pool
