"""Modules that take the place of PyTorch's own: parameters, their names and their initial values stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrelu.torch.functional import linear, linear_relu

__all__ = ["Linear", "LinearReLU"]


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
