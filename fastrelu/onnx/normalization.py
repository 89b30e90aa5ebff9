"""Normalizations. What they sum has the types of `reductions`, and the result is rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu.onnx.graph import Node
from fastrelu.onnx.reductions import sum_type
from fastrelu.onnx.registry import operator

__all__ = ["absorbed"]


def _along_channels(a: ndarray, ndim: int) -> ndarray:
    """A value a channel, as it broadcasts with images of so many axes."""
    return a.reshape(-1, *[1] * (ndim - 2))


def _is_inference(node: Node) -> bool:
    """Whether a BatchNormalization takes the statistics that it is given, and these are of channels."""
    is_test = node.version >= 7 or node.get("is_test")
    return bool(is_test and node.get("spatial", 1) and not node.get("training_mode") and not any(node.outputs[1:]))


def absorbed(node: Node, w: ndarray, b: ndarray | None) -> tuple[ndarray, ndarray] | None:
    """The weight (outputs, ...) and the bias of a layer with a BatchNormalization of constants behind it; None if it is none.

    Halves would be rounded twice.
    """
    constants = [node.constant(i) for i in range(1, 5)]
    if w.dtype.itemsize < 4 or not _is_inference(node) or any(a is None or a.shape != w.shape[:1] for a in constants):
        return None
    scale, shift, mean, variance = (np.asarray(a, np.float64) for a in constants)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + node.get("epsilon"))
        bias = ((0 if b is None else b) - mean) * factor + shift
        return (w * factor.reshape(-1, *[1] * (w.ndim - 1))).astype(w.dtype), bias.astype(w.dtype)


@operator("BatchNormalization", outputs=3)
def _batch_normalization(node: Node) -> Callable[..., Any]:
    is_training, epsilon, momentum = bool(node.get("training_mode")), node.get("epsilon"), node.get("momentum")
    if not is_training and not _is_inference(node):
        raise node.refuse("is for training in an old version, or without spatial; supported is inference")

    def normalize(x: ndarray, scale: ndarray, shift: ndarray, mean: ndarray, variance: ndarray) -> Any:
        sums = sum_type(x.dtype)
        values = x.astype(sums)
        used = mean.astype(sums), variance.astype(sums)
        if is_training:
            axes = (0, *range(2, x.ndim))
            used = values.mean(axes), values.var(axes)
        factor = scale.astype(sums) / np.sqrt(used[1] + epsilon)
        values -= _along_channels(used[0], x.ndim)
        values *= _along_channels(factor, x.ndim)
        values += _along_channels(shift, x.ndim)
        y = values.astype(x.dtype, copy=False)
        if len(node.outputs) == 1:
            return y
        old = zip((mean, variance), used, strict=True)
        running = ((before * momentum + now * (1 - momentum)).astype(before.dtype) for before, now in old)
        return (y, *running)[: len(node.outputs)]

    return normalize


def _standardized(x: ndarray, axes: tuple[int, ...], epsilon: float) -> tuple[ndarray, ndarray, ndarray]:
    """With the mean 0 and, but for epsilon, the variance 1 along axes; that mean, and the inverse of the deviation."""
    z = x.astype(sum_type(x.dtype))
    mean = z.mean(axes, keepdims=True)
    z -= mean
    inverse = 1 / np.sqrt(np.square(z).mean(axes, keepdims=True) + epsilon)
    z *= inverse
    return z, mean, inverse


@operator("InstanceNormalization")
def _instance_normalization(node: Node) -> Callable[..., Any]:
    epsilon = node.get("epsilon")

    def normalize(x: ndarray, scale: ndarray, shift: ndarray) -> Any:
        z, _, _ = _standardized(x, tuple(range(2, x.ndim)), epsilon)
        return (z * _along_channels(scale, x.ndim) + _along_channels(shift, x.ndim)).astype(x.dtype)

    return normalize


@operator("LayerNormalization", outputs=3)
def _layer_normalization(node: Node) -> Callable[..., Any]:
    axis, epsilon = node.get("axis"), node.get("epsilon")

    def normalize(x: ndarray, scale: ndarray, shift: ndarray | None = None) -> Any:
        z, mean, inverse = _standardized(x, tuple(range(x.ndim)[axis:]), epsilon)
        z = z * scale
        y = (z if shift is None else z + shift).astype(x.dtype)
        if len(node.outputs) == 1:
            return y
        return (y, mean.astype(np.float32), inverse.astype(np.float32))[: len(node.outputs)]

    return normalize


@operator("LRN")
def _local_response_normalization(node: Node) -> Callable[..., Any]:
    size, alpha, beta, bias = (node.get(name) for name in ("size", "alpha", "beta", "bias"))
    before = (size - 1) // 2

    def normalize(x: ndarray) -> Any:
        z = x.astype(sum_type(x.dtype))
        widths = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(np.square(z), widths), size, 1)
        return (z / (bias + alpha / size * windows.sum(-1)) ** beta).astype(x.dtype)

    return normalize
