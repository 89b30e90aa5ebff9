"""Convolution and pooling as layers: x (N, C, H, W), or (C, H, W) without a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import fastrelu
from fastrelu.nn.activations import ReLU
from fastrelu.nn.activations import _Activation as Activation
from fastrelu.nn.initial import he_normal, positive
from fastrelu.nn.layers import _WANTED, Layer, variant

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["Conv2d", "Conv2dReLU", "MaxPool2d"]

Pair = int | tuple[int, int]
"""A number for both axes, or one for the rows and one for the columns."""


class Conv2d(Layer):
    """Convolution, see `fastrelu.conv2d`.

    The weight begins with normal values of the standard deviation sqrt(2 / fan_in) (He et al. 2015, eq. 10), where
    fan_in = in_channels / groups * KH * KW is the number of terms of a sum, the bias with 0.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of x and of y, multiples of `groups`.
    kernel_size : int or pair of int
        KH and KW.
    stride, padding, dilation : int or pair of int, optional
        Steps of the kernel, zeros around the image, and distance of the kernel's points. `padding` may be "same" or "valid", as
        for `fastrelu.conv2d`.
    groups : int, optional
        Into how many parts, each with a part of the channels, the convolution is divided.
    bias, rng, dtype
        As for `Linear`.

    Attributes
    ----------
    weight : ndarray
        (out_channels, in_channels / groups, KH, KW).
    bias : ndarray or None
        (out_channels,).

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.

    Examples
    --------
    >>> from fastrelu.nn import Conv2d
    >>> Conv2d(3, 8, 3, padding=1, rng=0).weight.shape
    (8, 3, 3, 3)
    """

    fuses = True
    _names = ("weight", "bias")
    _own_activation: Activation | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        *,
        bias: bool = True,
        rng: Any = None,
        dtype: DTypeLike = "float32",
    ):
        super().__init__()
        name = type(self).__name__
        self.groups = positive(name, "groups", groups)
        channels = {"in_channels": in_channels, "out_channels": out_channels}
        for argument, value in channels.items():
            if positive(name, argument, value) % groups:
                raise ValueError(f"{name}: {argument} must be a multiple of groups, {groups}, not {value}")
        self.kernel_size, self.stride = _pair(name, "kernel_size", kernel_size), _pair(name, "stride", stride)
        self.dilation = _pair(name, "dilation", dilation)
        self.padding: Any = padding
        if not isinstance(padding, str):
            self.padding = _pair(name, "padding", padding, 0)
        elif padding not in ("same", "valid"):
            raise ValueError(f'{name}: padding must be "same", "valid", an integer or a pair of them, not {padding!r}')
        elif padding == "same" and self.stride != (1, 1):
            raise ValueError(f'{name}: padding must not be "same" with stride {self.stride}, only with stride 1')
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = he_normal(name, shape, shape[1] * shape[2] * shape[3], rng, dtype)
        self.bias = np.zeros(out_channels, self.weight.dtype) if bias else None

    def _options(self) -> dict[str, Any]:
        out_channels, in_channels = self.weight.shape[:2]
        options = {"in_channels": in_channels * self.groups, "out_channels": out_channels, "kernel_size": self.kernel_size}
        names = ("stride", "padding", "dilation", "groups")
        options |= {name: getattr(self, name) for name in names}
        return options | {"bias": self.bias is not None, "dtype": self.weight.dtype.name}

    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def _forward(self, x: Any, activation: Activation | None = None, out: Any = None, keep: bool = True) -> Any:
        activation = activation or self._own_activation
        x = self._array("x", x, self.weight.dtype)
        channels = self.weight.shape[1] * self.groups
        if x.ndim not in (3, 4) or x.shape[-3] != channels:
            raise ValueError(f"{type(self).__name__}: x must have shape (N, {channels}, H, W) for in_channels, not {x.shape}")
        function, alpha = variant("conv2d", activation)
        y = function(x, self.weight, self.bias, *self._geometry(), **alpha, out=out)
        if keep:
            self._kept = x, y, activation
        return y

    def _backward(self, dy: Any, wants_dx: bool = True, out: Any = None) -> Any:
        x, y, activation = self._last()
        dy, places = self._gradient(dy, y), self._places()
        function, alpha = variant("conv2d", activation, backward=True)
        operands = (dy, x, self.weight) if activation is None else (dy, y, x, self.weight)
        wanted = _WANTED[wants_dx, self.bias is not None]
        results = (out, places["weight"], places.get("bias"))
        return function(*operands, *self._geometry(), **alpha, wanted=wanted, out=results)[0]


class Conv2dReLU(Conv2d):
    """Convolution and ReLU in one pass, see `fastrelu.conv2d_relu`.

    `Sequential` does the same by itself with a `Conv2d` that a `ReLU` follows.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, rng, dtype
        As for `Conv2d`.

    Attributes
    ----------
    weight, bias : ndarray
        As for `Conv2d`.

    Raises
    ------
    TypeError, ValueError
        As for `Conv2d`.
    """

    fuses = False
    _own_activation = ReLU()


class MaxPool2d(Layer):
    """The largest value of each window, see `fastrelu.max_pool2d`.

    Parameters
    ----------
    kernel_size : int or pair of int
        Rows and columns of a window.
    stride : int or pair of int, optional
        Steps of the window; by default its size, so that windows do not overlap.
    padding, dilation : int or pair of int, optional
        Points around the image, which are never selected, and distance of the window's points.
    ceil_mode : bool, optional
        Whether windows may reach beyond the end.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it should be.
    """

    def __init__(
        self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, dilation: Pair = 1, ceil_mode: bool = False
    ):
        super().__init__()
        self.kernel_size = _pair("MaxPool2d", "kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else _pair("MaxPool2d", "stride", stride)
        self.padding, self.dilation = _pair("MaxPool2d", "padding", padding, 0), _pair("MaxPool2d", "dilation", dilation)
        self.ceil_mode = bool(ceil_mode)

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}

    def _forward(self, x: Any, activation: Activation | None = None, out: Any = None, keep: bool = True) -> Any:
        x = np.asarray(x)
        if not keep:
            return fastrelu.max_pool2d(x, **self._options(), out=out)
        kept_indices = self._kept[1] if out is not None and self._kept is not None else None
        out = None if kept_indices is None or kept_indices.shape != out.shape else (out, kept_indices)
        y, indices = fastrelu.max_pool2d(x, **self._options(), return_indices=True, out=out)
        self._kept = x.shape, indices, y.dtype
        return y

    def _backward(self, dy: Any, wants_dx: bool = True, out: Any = None) -> Any:
        shape, indices, dtype = self._last()
        dy = self._array("dy", dy, dtype)
        if dy.shape != indices.shape:
            raise ValueError(f"MaxPool2d: dy must have the shape of the output, {indices.shape}, not {dy.shape}")
        return fastrelu.max_pool2d_backward(dy, indices, shape, out=out)


def _pair(name: str, argument: str, value: Any, least: int = 1) -> tuple[int, int]:
    """The number for the rows and that for the columns."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}: {argument} must be an integer or a pair of them, not {value!r}")
    rows, columns = (positive(name, argument, one, least) for one in pair)
    return rows, columns
