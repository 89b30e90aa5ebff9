"""fastrelu for PyTorch: the ReLU family and the fused layers on tensors, with gradients, in the place of PyTorch's own.

>>> import torch
>>> from fastrelu.torch import replace_linear_relu
>>> model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
>>> model = replace_linear_relu(model)

Needs PyTorch (``pip install "fastrelu[torch]"``). `fastrelu.torch.functional` says what holds for all functions.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('fastrelu.torch needs PyTorch 2.5 or newer: pip install "fastrelu[torch]"') from None

from fastrelu.torch.functional import (
    elu,
    leaky_relu,
    linear,
    linear_elu,
    linear_leaky_relu,
    linear_relu,
    linear_sigmoid,
    linear_softplus,
    linear_tanh,
    prelu,
    relu,
    sigmoid,
    softplus,
    tanh,
)
from fastrelu.torch.modules import Linear, LinearReLU, Sequential
from fastrelu.torch.replacement import replace_linear_relu

__all__ = [
    "Linear",
    "LinearReLU",
    "Sequential",
    "elu",
    "leaky_relu",
    "linear",
    "linear_elu",
    "linear_leaky_relu",
    "linear_relu",
    "linear_sigmoid",
    "linear_softplus",
    "linear_tanh",
    "prelu",
    "relu",
    "replace_linear_relu",
    "sigmoid",
    "softplus",
    "tanh",
]
