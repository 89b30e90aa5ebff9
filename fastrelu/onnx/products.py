"""Gemm and MatMul: fused layers with a weight that is packed once, where it is a constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu import ufuncs
from fastrelu.onnx.graph import Node
from fastrelu.onnx.normalization import absorbed
from fastrelu.onnx.registry import Kernel, operator
from fastrelu.operands import name_of, wide
from fastrelu.operations import FLOATS, HALVES
from fastrelu.packed import PackedWeight, pack

__all__ = ["Layer", "layer_of"]


def is_float(a: ndarray) -> bool:
    """Whether the fused layers take its type."""
    return name_of(a.dtype) in FLOATS


def as_row(a: ndarray, n: int) -> ndarray | None:
    """What is the same for all rows, as (n,); None if it differs from row to row."""
    if a.size not in (1, n) or any(d != 1 for d in a.shape[:-1]):
        return None
    return np.broadcast_to(a.reshape(-1), (n,))


@dataclass(frozen=True, eq=False)
class Layer:
    """f(x @ w + b) with constants.

    Attributes
    ----------
    x : str
        Name of the input.
    w, b : ndarray
        (k, n), and (n,).
    transposed : bool
        Whether x has to be transposed.
    ndim : int
        Axes that the result has at least: a bias may have more than x.
    is_matrix : bool
        Whether x is one for certain.
    """

    x: str
    w: ndarray
    b: ndarray
    transposed: bool
    ndim: int
    is_matrix: bool

    def plus(self, b: ndarray) -> Layer | None:
        """The layer with another bias added; None if that is none."""
        row = as_row(b, self.w.shape[1])
        if row is None or row.dtype != self.w.dtype:
            return None
        with np.errstate(all="ignore"):
            total = self.b + row
        return replace(self, b=total, ndim=max(self.ndim, b.ndim))

    def normalized(self, node: Node) -> Layer | None:
        """The layer with a BatchNormalization of constants along the last axis; None if it is none."""
        found = absorbed(node, self.w.T, self.b) if self.is_matrix and self.ndim <= 2 else None
        return None if found is None else replace(self, w=found[0].T, b=found[1])

    def slopes(self, slope: ndarray) -> ndarray | None:
        """The slopes of a PRelu behind the layer as a row; None if they are none."""
        return as_row(slope, self.w.shape[1])

    def kernel(self, name: str, alpha: Any) -> Kernel:
        """The layer with an activation, "" for none, and its parameter."""
        # Bits do not depend on packing. The ufunc of a packed weight has operands of the weight's own order.
        packed = pack(self.w)
        base = f"linear_{name}" if name else "linear"
        operand, suffix = _operand(packed)
        function = getattr(ufuncs, base + suffix)
        b = np.ascontiguousarray(self.b)
        more = () if alpha is None else (np.ascontiguousarray(alpha, wide(self.w.dtype)),)
        text = f"{base}{', packed' * bool(suffix)} {self.w.shape[0]} x {self.w.shape[1]} {self.w.dtype}"
        if not self.transposed and self.ndim < 2:
            return Kernel(function, (self.x, operand, b, *more), text)

        def reshaped(x: ndarray) -> Any:
            y = function(x.T if self.transposed else x, operand, b, *more)
            return y.reshape((1,) * (self.ndim - y.ndim) + y.shape)

        return Kernel(reshaped, (self.x,), text)


def _operand(packed: PackedWeight) -> tuple[ndarray, str]:
    """The weight as a ufunc takes it, and what is appended to the name of that."""
    return (packed._operand, "_packed") if packed._columns is None else (packed._columns, "")


def layer_of(node: Node) -> Layer | None:
    """The layer that a node is, if its weight is a constant matrix and its bias, if it has one, a constant row."""
    w = node.constant(1)
    if w is None or w.ndim != 2 or not is_float(w):
        return None
    if node.operator == "MatMul":
        return Layer(node.inputs[0], w, np.zeros(w.shape[1], w.dtype), False, 0, False)
    alpha, beta = node.get("alpha"), node.get("beta")
    if node.get("transB"):
        w = w.T
    is_half = name_of(w.dtype) in HALVES
    b: ndarray | None = np.zeros(w.shape[1], w.dtype)
    if node.has(2) and beta:  # 0 times what is infinite is nothing here
        c = node.constant(2)
        b = None if c is None or c.dtype != w.dtype else as_row(c, w.shape[1])
    # A half that was multiplied would be rounded twice.
    if b is None or (is_half and (alpha, beta) != (1.0, 1.0)):
        return None
    with np.errstate(all="ignore"):
        w = w if alpha == 1.0 else (w * w.dtype.type(alpha))
        b = b if beta == 1.0 else (b * b.dtype.type(beta))
    return Layer(node.inputs[0], w, b, bool(node.get("transA")), 0, True)


@operator("Gemm")
def _gemm(node: Node) -> Kernel | Callable[..., Any]:
    layer = layer_of(node)
    if layer is not None:
        return layer.kernel("", None)
    alpha, beta = node.get("alpha"), node.get("beta")
    turns = bool(node.get("transA")), bool(node.get("transB"))
    linear: Any = ufuncs.linear

    def gemm(a: ndarray, b: ndarray, c: ndarray | None = None) -> Any:
        dtype = a.dtype
        if a.ndim != 2 or b.ndim != 2:
            raise ValueError(f"A and B must be matrices, not of shape {a.shape} and {b.shape}")
        a, b = (m.T if turn else m for m, turn in zip((a, b), turns, strict=True))
        if is_float(a):
            sums = wide(dtype)  # halves are rounded once, at the end
            y = linear(a.astype(sums, copy=False), b.astype(sums, copy=False), np.zeros(b.shape[1], sums))
            y, c = y if alpha == 1.0 else y * sums.type(alpha), None if c is None else c.astype(sums, copy=False)
        else:
            y = np.matmul(a, b)
            y = y if alpha == 1.0 else (y * alpha).astype(dtype)
        if c is not None and beta:
            y = y + (c if beta == 1.0 else (c * y.dtype.type(beta) if is_float(y) else (c * beta).astype(dtype)))
        return y.astype(dtype, copy=False)

    return gemm


@operator("MatMul")
def _matmul(node: Node) -> Kernel | Callable[..., Any]:
    layer = layer_of(node)
    if layer is not None:
        return layer.kernel("", None)
    linear: Any = ufuncs.linear

    def matmul(a: ndarray, b: ndarray) -> Any:
        if not is_float(a) or not a.ndim or not b.ndim:
            return np.matmul(a, b)
        if b.ndim == 1:
            return linear(a, b[:, None], np.zeros(1, b.dtype))[..., 0]
        return linear(a, b if a.ndim == 1 else b[..., None, :, :], np.zeros(b.shape[-1], b.dtype))

    return matmul


@operator("MatMulInteger")
def _matmul_integer(node: Node) -> Callable[..., Any]:
    def matmul(a: ndarray, b: ndarray, a_zero: ndarray | None = None, b_zero: ndarray | None = None) -> Any:
        left, right = a.astype(np.int32), b.astype(np.int32)
        if a_zero is not None:  # one for each row
            left -= a_zero[..., None].astype(np.int32) if a_zero.ndim else a_zero.astype(np.int32)
        if b_zero is not None:
            right -= b_zero.astype(np.int32)
        return np.matmul(left, right)

    return matmul
