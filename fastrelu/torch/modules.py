"""Modules that take the place of PyTorch's own: parameters, their names and their initial values stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastrelu.torch.functional import chain, linear, linear_relu

__all__ = ["Linear", "LinearReLU", "Sequential"]


class Linear(nn.Linear):
    """`torch.nn.Linear` by `fastrelu.torch.linear`.

    Examples
    --------
    >>> import torch
    >>> from fastrelu.torch import Linear
    >>> Linear(784, 256)(torch.zeros(32, 784)).shape
    torch.Size([32, 256])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Input @ weight.T + bias."""
        if torch.jit.is_scripting():
            return torch.ops.fastrelu.linear(input, self.weight, self.bias)
        return linear(input, self.weight, self.bias)


class LinearReLU(nn.Linear):
    """`torch.nn.Linear` and the ReLU behind it in one pass, by `fastrelu.torch.linear_relu`.

    Examples
    --------
    >>> import torch
    >>> from fastrelu.torch import LinearReLU
    >>> layer = LinearReLU(784, 256)
    >>> layer(torch.zeros(32, 784)).shape, [*layer.state_dict()]
    (torch.Size([32, 256]), ['weight', 'bias'])
    """

    def forward(self, input: Tensor) -> Tensor:
        """relu(input @ weight.T + bias)."""
        if torch.jit.is_scripting():
            return torch.ops.fastrelu.linear_relu(input, self.weight, self.bias)
        return linear_relu(input, self.weight, self.bias)


class Sequential(nn.Sequential):
    """`torch.nn.Sequential` that gives `Linear` and `LinearReLU` layers which follow each other to autograd as one function.

    The values and the gradients have the same bits. Layers with hooks are called one by one, as they are where somebody
    looks at operators (`torch.compile`, `torch.func`, `torch.autocast` and so on).

    Examples
    --------
    >>> import torch
    >>> from fastrelu.torch import Linear, LinearReLU, Sequential
    >>> model = Sequential(LinearReLU(784, 256), LinearReLU(256, 128), Linear(128, 10))
    >>> model(torch.zeros(32, 784)).shape
    torch.Size([32, 10])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The layers one after the other."""
        if torch.jit.is_scripting():
            for layer in self:
                input = layer(input)
            return input
        return _in_order([*self._modules.values()], input)


NAMES = {LinearReLU: "linear_relu", Linear: "linear", nn.Identity: ""}
"""Layers that one function of autograd can take, and what they calculate."""


def is_called_only(layer: nn.Module) -> bool:
    """Whether calling a layer is no more than what `NAMES` says."""
    return (
        type(layer) in NAMES
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        and "forward" not in layer.__dict__
    )


def _in_order(layers: list[Any], x: Tensor) -> Tensor:
    """What layers return that are called one after the other, with those together that one function can take."""
    is_seen = torch.compiler.is_compiling() or _has_any_global_hook()
    waiting: list[Any] = []
    for layer in layers:
        if is_seen or not is_called_only(layer):
            x = layer(_together(waiting, x))
            waiting = []
        elif type(layer) is not nn.Identity:
            waiting.append(layer)
    return _together(waiting, x)


def _together(layers: list[Any], x: Tensor) -> Tensor:
    if len(layers) > 1:
        parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
        y = chain(tuple([NAMES[type(layer)] for layer in layers]), x, parameters)
        if y is not None:
            return y
    for layer in layers:
        x = layer(x)
    return x
