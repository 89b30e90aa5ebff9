"""Conv along one, two or three axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

import fastrelu
from fastrelu.onnx.graph import Node
from fastrelu.onnx.normalization import absorbed
from fastrelu.onnx.products import is_float
from fastrelu.onnx.registry import Kernel, operator
from fastrelu.onnx.windows import Windows, padded, views

__all__ = ["Convolution", "convolution_of"]


@dataclass(frozen=True, eq=False)
class Convolution:
    """f(conv(x, w) + b) with a constant weight (O, C / groups, ...) and bias (O,) or None."""

    x: str
    w: ndarray
    b: ndarray | None
    windows: Windows
    groups: int

    def _channels(self, a: ndarray) -> ndarray | None:
        """A value a channel, of an operand that broadcasts with the output; None if it is none."""
        axes, outputs = self.w.ndim - 1, len(self.w)
        shape = (1,) * (axes - a.ndim) + a.shape
        if shape[-axes:] not in ((outputs, *(1,) * (axes - 1)), (1,) * axes) or any(d != 1 for d in shape[:-axes]):
            return None
        return np.broadcast_to(a.reshape(-1), (outputs,)) if a.size else None

    def plus(self, b: ndarray) -> Convolution | None:
        """The convolution with another bias added; None if that is none."""
        row = self._channels(b)
        if row is None or row.dtype != self.w.dtype or b.ndim > self.w.ndim:
            return None
        with np.errstate(all="ignore"):
            return replace(self, b=row if self.b is None else self.b + row)

    def normalized(self, node: Node) -> Convolution | None:
        """The convolution with a BatchNormalization of constants, which disappears in weight and bias."""
        found = absorbed(node, self.w, self.b)
        return None if found is None else replace(self, w=found[0], b=found[1])

    def slopes(self, slope: ndarray) -> ndarray | None:
        """The slopes of a PRelu behind it, one a channel; None if they are none."""
        return self._channels(slope)

    def kernel(self, name: str, alpha: Any) -> Kernel:
        """The convolution with an activation, "" for none, and its parameter."""
        w = np.ascontiguousarray(self.w)
        text = f"conv2d{'_' * bool(name)}{name} {' x '.join(map(str, w.shape))} {w.dtype}"
        is_pair = self.w.ndim == 4 and self.windows.auto_pad in ("NOTSET", "VALID")
        pads = self.windows.pads or (0,) * 4
        if is_pair and len(pads) == 4 and pads[:2] == pads[2:]:
            geometry = (self.windows.strides or 1, pads[:2], self.windows.dilations or 1, self.groups)
            function, more = _function(name, alpha)
            return Kernel(function, (self.x, w, self.b, *more, *geometry), text)
        call = _general(self.windows, self.groups, name, alpha)
        return Kernel(call, (self.x, w, self.b), text)


def _function(name: str, alpha: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The package's function, and its arguments behind x, w and b."""
    function = getattr(fastrelu, f"conv2d_{name}" if name else "conv2d")
    if name == "prelu":
        return function, (np.ascontiguousarray(alpha),)
    return (function, ()) if alpha is None else (partial(function, alpha=alpha), ())


def _general(windows: Windows, groups: int, name: str, alpha: Any) -> Callable[..., Any]:
    """Any padding, and one to three axes: in terms of two."""
    function, more = _function(name, alpha)

    def conv(x: ndarray, w: ndarray, b: ndarray | None = None) -> Any:
        if x.ndim != w.ndim:
            raise ValueError(f"X must have {w.ndim} axes for W of shape {w.shape}, not shape {x.shape}")
        axes = windows.axes(x.shape[2:], w.shape[2:])
        if 0 in (*x.shape, *(axis.count for axis in axes)):
            return np.zeros((len(x), len(w), *(axis.count for axis in axes)), x.dtype)
        x = padded(x, axes, 0)
        steps, gaps = [axis.step for axis in axes], [axis.gap for axis in axes]
        if len(axes) == 1:
            y = function(x[:, :, None], w[:, :, None], b, *more, (1, steps[0]), 0, (1, gaps[0]), groups)
            return y[:, :, 0]
        if len(axes) == 2:
            return function(x, w, b, *more, tuple(steps), 0, tuple(gaps), groups)
        # What a window reads of the first axis becomes channels, in the order of the sums: (channel, depth, row, column).
        n, outputs, depth = len(x), len(w), axes[0].count
        stacks = views(x, axes[:1] + tuple(replace(axis, taps=1, step=1, count=axis.reach) for axis in axes[1:]))
        stacks = stacks[..., 0, 0].transpose(0, 2, 1, 5, 3, 4)
        images = stacks.reshape(n * depth, -1, *x.shape[3:])
        y = function(images, w.reshape(outputs, -1, *w.shape[3:]), b, *more, tuple(steps[1:]), 0, tuple(gaps[1:]), groups)
        return np.moveaxis(y.reshape(n, depth, *y.shape[1:]), 1, 2)

    return conv


def convolution_of(node: Node) -> Convolution | None:
    """The convolution that a node is, if its weight and its bias are constants."""
    w, b = node.constant(1), node.constant(2)
    if w is None or not is_float(w) or (node.has(2) and b is None):
        return None
    return Convolution(node.inputs[0], w, b, _windows(node), node.get("group"))


def _windows(node: Node) -> Windows:
    windows, w = Windows.of(node), node.constant(1)
    if w is not None:
        if not 3 <= w.ndim <= 5:
            raise node.refuse(f"has a weight of shape {w.shape}; supported are convolutions along one, two or three axes")
        if windows.kernel not in ((), w.shape[2:]):
            raise ValueError(f"load: {node} has kernel_shape {windows.kernel} and a weight of shape {w.shape}")
    return windows


@operator("Conv")
def _conv(node: Node) -> Kernel | Callable[..., Any]:
    found = convolution_of(node)
    return _general(_windows(node), node.get("group"), "", None) if found is None else found.kernel("", None)
