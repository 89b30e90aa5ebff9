"""MaxPool and AveragePool along any number of axes."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from numpy import ndarray

import fastrelu
from fastrelu.onnx.graph import Node
from fastrelu.onnx.reductions import least, sum_type
from fastrelu.onnx.registry import Kernel, operator
from fastrelu.onnx.windows import Axis, Windows, padded, views

__all__: list[str] = []


@operator("MaxPool", outputs=2)
def _max_pool(node: Node) -> Kernel:
    windows, by_columns = Windows.of(node), bool(node.get("storage_order"))
    has_places = len(node.outputs) > 1
    pads = windows.pads or (0,) * 4
    # What the kernel takes as it is; everything else is padded first.
    is_plain = len(windows.kernel) == 2 and windows.auto_pad in ("NOTSET", "VALID") and len(pads) == 4 and pads[:2] == pads[2:]
    is_plain = is_plain and not has_places and all(2 * p <= k for p, k in zip(pads, windows.kernel, strict=False))
    text = f"max_pool{len(windows.kernel)}d {' x '.join(map(str, windows.kernel))}"
    arguments: tuple[Any, ...] = (
        windows.kernel,
        windows.strides or (1, 1),
        pads[:2],
        windows.dilations or (1, 1),
        windows.ceil_mode,
    )
    if is_plain:
        return Kernel(fastrelu.max_pool2d, (node.inputs[0], *arguments), text)

    def max_pool(x: ndarray) -> Any:
        axes = windows.axes(x.shape[2:], windows.kernel)
        shape = (*x.shape[:2], *(axis.count for axis in axes))
        if 0 in shape:
            return (np.zeros(shape, x.dtype), np.zeros(shape, np.int64)) if has_places else np.zeros(shape, x.dtype)
        whole = padded(x, axes, least(x.dtype))
        if not has_places:
            return _maxima(whole, axes)
        return _with_places(whole, axes, by_columns)

    return Kernel(max_pool, node.inputs, text)


def _maxima(x: ndarray, axes: tuple[Axis, ...]) -> Any:
    """Two axes at a time by the kernel, the others one by one."""
    if len(axes) == 1:
        return _pool_2d(x[:, :, None], (Axis(1, 1, 1, 1, 0, 0, 1), axes[0]))[:, :, 0]
    lead = x.shape[: x.ndim - 2]
    y = _pool_2d(x.reshape(1, prod(lead), *x.shape[-2:]), axes[-2:])
    y = y.reshape(*lead, *y.shape[2:])
    for i, axis in enumerate(axes[:-2], 2):
        cuts = (range(tap * axis.gap, tap * axis.gap + (axis.count - 1) * axis.step + 1, axis.step) for tap in range(axis.taps))
        parts = (y[(slice(None),) * i + (slice(cut.start, cut.stop, cut.step),)] for cut in cuts)
        y = reduce(np.maximum, parts)
    return y


def _pool_2d(x: ndarray, axes: tuple[Axis, ...]) -> Any:
    kernel, steps, gaps = (tuple(getattr(axis, name) for axis in axes) for name in ("taps", "step", "gap"))
    return fastrelu.max_pool2d(x, kernel, steps, 0, gaps)


def _with_places(x: ndarray, axes: tuple[Axis, ...], by_columns: bool) -> tuple[Any, Any]:
    """The maxima, and where in the whole image batch each is."""
    n, found = len(axes), views(x, axes)
    flat = found.reshape(*found.shape[: 2 + n], -1)
    # Of equal values the first counts that is no padding.
    inside = _inside(axes)
    best = flat.max(-1, keepdims=True)
    chosen = np.argmax(((flat == best) | ((flat != flat) & (best != best))) & inside, -1)
    taps = np.unravel_index(chosen, tuple(axis.taps for axis in axes))
    place: Any = 0
    order = [*range(n)][::-1] if by_columns else [*range(n)]
    for i in order:
        axis = axes[i]
        starts = np.array(axis.starts()).reshape(-1, *[1] * (n - 1 - i))
        place = place * axis.size + starts + taps[i] * axis.gap
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * n)
    return best[..., 0], (place + planes * prod(axis.size for axis in axes)).astype(np.int64)


def _inside(axes: tuple[Axis, ...]) -> ndarray:
    """Which taps of which windows are in the image, (counts, taps as one axis)."""
    n, there = len(axes), np.ones((), bool)
    for i, axis in enumerate(axes):
        at = np.add.outer(np.array(axis.starts()), np.arange(axis.taps) * axis.gap)
        shape = [1] * 2 * n
        shape[i], shape[n + i] = at.shape
        there = there & ((at >= 0) & (at < axis.size)).reshape(shape)
    return there.reshape(*(axis.count for axis in axes), -1)


@operator("AveragePool")
def _average_pool(node: Node) -> Callable[..., Any]:
    windows, counts_pads = Windows.of(node), bool(node.get("count_include_pad"))

    def average_pool(x: ndarray) -> Any:
        axes = windows.axes(x.shape[2:], windows.kernel)
        if 0 in (*x.shape, *(axis.count for axis in axes)):
            return np.zeros((*x.shape[:2], *(axis.count for axis in axes)), x.dtype)
        found = views(padded(x, axes, 0), axes)
        sums = found.sum(tuple(range(-len(axes), 0)), dtype=sum_type(x.dtype))
        return (sums / reduce(np.multiply.outer, [_counts(axis, counts_pads) for axis in axes])).astype(x.dtype)

    return average_pool


def _counts(axis: Axis, counts_pads: bool) -> ndarray:
    """How many taps of each window count: those in the image, or also those in what the node adds to it."""
    at = np.add.outer(np.array(axis.starts()), np.arange(axis.taps) * axis.gap)
    before, after = (axis.before, axis.after) if counts_pads else (0, 0)
    counts: ndarray = ((at >= -before) & (at < axis.size + after)).sum(1)
    return counts
