"""Where windows lie along the axes of an image, as ONNX describes it for convolution and pooling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu.onnx.graph import Node

__all__ = ["Axis", "Windows"]


@dataclass(frozen=True)
class Axis:
    """An axis: its `size`, `taps` of a window, from one window to the next `step`, from one tap to the next `gap`; `before` and
    `after`, the points that are added to it, which the windows reach; and how many windows there are, `count`.
    """

    size: int
    taps: int
    step: int
    gap: int
    before: int
    after: int
    count: int

    @property
    def reach(self) -> int:
        """Points that the windows span."""
        return (self.count - 1) * self.step + (self.taps - 1) * self.gap + 1

    def starts(self) -> range:
        """Where the windows begin, counted from the first point of the axis."""
        return range(-self.before, self.count * self.step - self.before, self.step)


@dataclass(frozen=True)
class Windows:
    """What the attributes of a node say of them; `kernel` is () where a weight tells it."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    ceil_mode: bool

    @classmethod
    def of(cls, node: Node) -> Windows:
        """From a node."""
        kind = node.get("auto_pad")
        if kind not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise ValueError(f"load: {node} has the attribute auto_pad={kind!r}, which there is not")
        names = ("kernel_shape", "strides", "dilations", "pads")
        kernel, strides, dilations, pads = (tuple(node.get(name, ())) for name in names)
        if min((0, *pads)) < 0 or min((1, *kernel, *strides, *dilations)) < 1:
            raise ValueError(f"load: {node} must have positive windows, strides and dilations, and no negative pads")
        return cls(kernel, strides, dilations, pads if kind == "NOTSET" else (), kind, bool(node.get("ceil_mode")))

    def axes(self, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[Axis, ...]:
        """Those of an image of a size."""
        return _axes(self, sizes, kernel)


@lru_cache(1024)
def _axes(windows: Windows, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[Axis, ...]:
    n = len(kernel)
    if len(sizes) != n:
        raise ValueError(f"an image must have {n} axes besides batch and channels, not {len(sizes)}")
    strides, dilations, pads = windows.strides or (1,) * n, windows.dilations or (1,) * n, windows.pads or (0,) * 2 * n
    if not len(strides) == len(dilations) == len(pads) / 2 == n:
        raise ValueError(f"strides, dilations and pads must be for {n} axes")
    axes = []
    for i, (size, taps, step, gap) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        span = (taps - 1) * gap + 1
        before, after = pads[i], pads[n + i]
        if windows.auto_pad.startswith("SAME"):
            count = -(-size // step)
            total = max((count - 1) * step + span - size, 0)
            before = total // 2 if windows.auto_pad == "SAME_UPPER" else total - total // 2
            after = total - before
        else:
            room = size + before + after - span
            count = (-(-room // step) if windows.ceil_mode else room // step) + 1
            if windows.ceil_mode and (count - 1) * step >= size + before:
                count -= 1  # a window must begin inside the image or before it
        if count < 1 and size:
            raise ValueError(f"windows span {span} points, and the image has {size} with {before + after} of padding")
        axes.append(Axis(size, taps, step, gap, before, after, max(count, 0)))
    return tuple(axes)


def padded(x: ndarray, axes: tuple[Axis, ...], fill: Any) -> ndarray:
    """`x` with what windows reach around it, which is `fill`; cut where they do not reach."""
    reach = tuple(axis.reach for axis in axes)
    if all(axis.before == 0 and axis.reach == axis.size for axis in axes):
        return x
    whole = np.full((*x.shape[:2], *reach), fill, x.dtype)
    ends = [max(min(axis.size, axis.reach - axis.before), 0) for axis in axes]
    there: Any = tuple(slice(axis.before, axis.before + end) for axis, end in zip(axes, ends, strict=True))
    used: Any = tuple(map(slice, ends))
    whole[(slice(None), slice(None), *there)] = x[(slice(None), slice(None), *used)]
    return whole


def views(x: ndarray, axes: tuple[Axis, ...]) -> ndarray:
    """The windows of a padded image, (n, c, counts, taps), as a view."""
    n, steps = len(axes), x.strides[2:]
    shape = (*x.shape[:2], *(axis.count for axis in axes), *(axis.taps for axis in axes))
    strides = (*x.strides[:2], *(s * a.step for s, a in zip(steps, axes, strict=True)))
    strides += tuple(s * a.gap for s, a in zip(steps[:n], axes, strict=True))
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)
