"""Activations, which are the package's own ufuncs, and arithmetic of NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu import ufuncs
from fastrelu.onnx.graph import Node, dtype_of
from fastrelu.onnx.reductions import sum_type
from fastrelu.onnx.registry import Kernel, operator

__all__ = ["ACTIVATIONS", "LEGACY", "activation"]

ACTIVATIONS = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "Elu": "elu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
}
"""Operators, and what the package calls them."""

LEGACY = 7
"""The version of the operator set that broadcasts as NumPy does; those before have attributes for it."""


def activation(node: Node) -> tuple[str, float | None]:
    """The package's name of an activation, and its alpha, if it has one."""
    return ACTIVATIONS[node.operator], node.get("alpha")


@operator(*ACTIVATIONS)
def _activation(node: Node) -> Kernel:
    name, alpha = activation(node)
    # A Python number does not change the type of the result.
    return Kernel(getattr(ufuncs, name), (node.inputs[0], *([] if alpha is None else [alpha])), name)


@operator("PRelu")
def _prelu(node: Node) -> Kernel:
    ufunc = ufuncs.prelu

    def prelu(x: ndarray, slope: ndarray) -> Any:
        if node.version < LEGACY and slope.ndim == 1:
            slope = slope.reshape(-1, *[1] * (x.ndim - 2)) if x.ndim > 1 else slope
        if x.dtype.kind in "iu":
            return np.where(x < 0, slope * x, x)
        return ufunc(x, slope)

    return Kernel(prelu, node.inputs, "prelu")


_FORMULAS: dict[str, Callable[[ndarray, Any, Any], Any]] = {
    "Celu": lambda z, alpha, _: np.maximum(z, 0) + np.minimum(0, alpha * np.expm1(z / alpha)),
    "HardSigmoid": lambda z, alpha, beta: np.clip(alpha * z + beta, 0, 1),
    "HardSwish": lambda z, *_: z * np.clip(z / 6 + 0.5, 0, 1),
    "Mish": lambda z, *_: z * np.tanh(np.logaddexp(0, z)),
    "Selu": lambda z, alpha, gamma: gamma * np.where(z > 0, z, alpha * np.expm1(z)),
    "Softsign": lambda z, *_: z / (1 + np.abs(z)),
    "ThresholdedRelu": lambda z, alpha, _: np.where(z > alpha, z, 0),
}
"""Activations that the package has not, of z, alpha, and beta or gamma."""


@operator(*_FORMULAS)
def _formula(node: Node) -> Callable[..., Any]:
    formula, alpha, more = _FORMULAS[node.operator], node.get("alpha"), node.get("beta", node.get("gamma"))
    return lambda x: formula(x.astype(sum_type(x.dtype)), alpha, more).astype(x.dtype)  # rounded once


def _truncated(a: ndarray, b: ndarray) -> Any:
    """The quotient, of integers without what is behind the point."""
    if a.dtype.kind not in "iu":
        return np.divide(a, b)
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(quotient.dtype)


def _remainder(node: Node) -> Callable[..., Any]:
    return np.fmod if node.get("fmod") else np.remainder


def _power(a: ndarray, b: ndarray) -> Any:
    return np.power(a, b).astype(a.dtype, copy=False)


_BINARY: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _truncated,
    "Pow": _power,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
}


@operator(*_BINARY)
def _binary(node: Node) -> Callable[..., Any]:
    function = _BINARY[node.operator]
    if node.version >= LEGACY or not node.get("broadcast"):
        return function
    axis = node.get("axis")

    def aligned(a: ndarray, b: ndarray) -> Any:
        """`b` has consecutive axes of `a`, from `axis` on; by default the last."""
        after = 0 if axis is None else a.ndim - axis % a.ndim - b.ndim
        return function(a, b.reshape(b.shape + (1,) * after))

    return aligned


@operator("Mod")
def _mod(node: Node) -> Callable[..., Any]:
    return _remainder(node)


_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Ceil": np.ceil,
    "Exp": np.exp,
    "Floor": np.floor,
    "Log": np.log,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Sign": np.sign,
    "Sqrt": np.sqrt,
}


@operator(*_UNARY)
def _unary(node: Node) -> Callable[..., Any]:
    return _UNARY[node.operator]


@operator("Reciprocal")
def _reciprocal(node: Node) -> Callable[..., Any]:
    return lambda x: np.divide(x.dtype.type(1), x)


_SEVERAL: dict[str, Callable[..., Any]] = {"Max": np.maximum, "Min": np.minimum, "Sum": np.add}


@operator(*_SEVERAL)
def _several(node: Node) -> Callable[..., Any]:
    function = _SEVERAL[node.operator]
    return lambda *arrays: reduce(function, arrays[1:], arrays[0]) if len(arrays) > 1 else arrays[0].copy()


@operator("Where")
def _where(node: Node) -> Callable[..., Any]:
    return np.where


@operator("Clip")
def _clip(node: Node) -> Callable[..., Any]:
    least, most = node.get("min"), node.get("max")

    def clip(x: ndarray, low: Any = None, high: Any = None) -> Any:
        low, high = least if low is None else low, most if high is None else high
        # In this order: where low > high, the result is high.
        y = x.copy() if low is None else np.maximum(x, np.asarray(low, x.dtype))
        return y if high is None else np.minimum(y, np.asarray(high, x.dtype))

    return clip


@operator("Cast")
def _cast(node: Node) -> Callable[..., Any]:
    to = node.get("to")
    if isinstance(to, str):  # before version 6
        raise node.refuse(f"has the attribute to={to!r}; supported are the numbers of types")
    dtype = dtype_of(to, str(node))
    return lambda x: x.astype(dtype)


@operator("CastLike")
def _cast_like(node: Node) -> Callable[..., Any]:
    return lambda x, like: x.astype(like.dtype)
