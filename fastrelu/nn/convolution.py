"""Convolution and pooling as layers: x (N, C, H, W), or (C, H, W) without a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import fastrelu
from fastrelu.nn.activations import Activation, ReLU
from fastrelu.nn.initial import he_normal
from fastrelu.nn.layers import Layer, Weighted
from fastrelu.operands import pair, whole_number

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["Conv2d", "Conv2dReLU", "MaxPool2d"]

Pair = int | tuple[int, int]
"""A number for both axes, or one for the rows and one for the columns."""


class Conv2d(Weighted):
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

    _function = "conv2d"

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
        self.groups = groups = whole_number(name, "groups", groups, 1)
        in_channels = whole_number(name, "in_channels", in_channels, 1)
        out_channels = whole_number(name, "out_channels", out_channels, 1)
        for argument, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}: {argument} must be a multiple of groups, {groups}, not {channels}")
        self.kernel_size, self.stride = pair(name, "kernel_size", kernel_size, 1), pair(name, "stride", stride, 1)
        self.dilation = pair(name, "dilation", dilation, 1)
        self.padding: Any = padding
        if not isinstance(padding, str):
            self.padding = pair(name, "padding", padding, 0)
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

    def _checked(self, x: Any) -> np.ndarray:
        array = self._array("x", x, self.weight.dtype)
        channels = self.weight.shape[1] * self.groups
        if array.ndim not in (3, 4) or array.shape[-3] != channels:
            allowed = f"(N, {channels}, H, W)"
            raise ValueError(f"{type(self).__name__}: x must have shape {allowed} for in_channels, not {array.shape}")
        return array


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

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import Conv2dReLU
    >>> layer = Conv2dReLU(1, 1, (1, 2), rng=0)
    >>> layer.weight[:] = [1.0, -1.0]
    >>> layer.forward(np.array([[[1.0, 2.0, 0.0]]]))
    array([[[0., 2.]]], dtype=float32)
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

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import MaxPool2d
    >>> layer = MaxPool2d((1, 2))
    >>> layer.forward(np.array([[[1.0, 2.0, 5.0, 4.0]]]))
    array([[[2., 5.]]])
    >>> layer.backward(np.array([[[0.5, 0.25]]]))
    array([[[0.  , 0.5 , 0.25, 0.  ]]])
    """

    def __init__(
        self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, dilation: Pair = 1, ceil_mode: bool = False
    ):
        super().__init__()
        self.kernel_size = pair("MaxPool2d", "kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair("MaxPool2d", "stride", stride, 1)
        self.padding, self.dilation = pair("MaxPool2d", "padding", padding, 0), pair("MaxPool2d", "dilation", dilation, 1)
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
