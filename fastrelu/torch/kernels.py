"""The functions of `fastrelu` on the memory of tensors, without gradients: nothing is copied on the way in or out.

``KERNELS`` has them by the names of the operators that `fastrelu.torch.operators` makes of them; f is an activation:

``f(x)``, ``f_backward(dy, y)``                   with alpha behind them where the activation has one
``prelu(x, alpha)``, ``prelu_backward(dy, x, alpha)``
``linear_f(x, weight, bias)``, ``linear_f_backward(dy, y, x, weight, wanted)``   the same; ``linear`` needs no y
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrelu import activations, gradients, layers
from fastrelu.operations import GRADIENTS
from fastrelu.torch import loops
from fastrelu.torch.memory import empty
from fastrelu.torch.threads import run

__all__ = ["ACTIVATIONS", "KERNELS", "LAYERS"]

ACTIVATIONS = {"relu": False, "leaky_relu": True, "elu": True, "sigmoid": False, "tanh": False, "softplus": False}
"""Those that the result tells the gradient of, and whether they have a parameter alpha."""

LAYERS = {"linear": False, **{f"linear_{name}": has_alpha for name, has_alpha in ACTIVATIONS.items()}}

# The names of the gradients for each choice of them.
_NAMES = {
    wanted: tuple(itertools.compress(GRADIENTS, wanted)) for wanted in itertools.product((False, True), repeat=len(GRADIENTS))
}

Triple = tuple[Tensor | None, Tensor | None, Tensor | None]


def _array(tensor: Tensor) -> Any:
    """What `fastrelu` sees of a tensor: an array of the same memory, or the tensor itself if it is on a GPU."""
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16 and tensor.is_cpu:  # which NumPy knows from ml_dtypes
        import ml_dtypes

        return tensor.resolve_neg().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError):  # on a GPU, or with a sign that the memory does not have yet
        return tensor if tensor.is_cuda else tensor.resolve_neg().numpy()


def _tensor(value: Any) -> Tensor:
    """A result of `fastrelu` as a tensor, of the same memory."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "V":  # bfloat16
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _empty(like: Any, shape: tuple[int, ...]) -> Any:
    """An array, or a tensor on a GPU, for a result of the type of another one."""
    return like.new_empty(shape) if isinstance(like, Tensor) else empty(tuple(shape), like.dtype)


def _elementwise(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def kernel(*operands: Any) -> Tensor:
        result = torch.empty_like(operands[0])
        run(function, *[_array(o) if isinstance(o, Tensor) else o for o in operands], out=_array(result))
        return result

    return kernel


def _layer(name: str) -> Callable[..., Tensor]:
    function = getattr(layers, name)

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, *alpha: float) -> Tensor:
        if x.is_cpu and (y := loops.forward(name, x, weight, bias, alpha)) is not None:
            return y
        rows, w, b = _array(x), _array(weight).T, None if bias is None else _array(bias)
        return _tensor(run(function, rows, w, b, *alpha, out=_empty(rows, rows.shape[:-1] + w.shape[1:])))

    return kernel


def _layer_backward(name: str) -> Callable[..., Triple]:
    function = getattr(gradients, f"{name}_backward")

    def kernel(
        dy: Tensor, y: Tensor | None, x: Tensor | None, weight: Tensor | None, wanted: Sequence[bool], *alpha: float
    ) -> Triple:
        wanted = tuple(wanted)
        if dy.is_cpu and (found := loops.backward(name, dy, y, x, weight, wanted, alpha)) is not None:
            return found
        outputs = (_array(dy),) if y is None else (_array(dy), _array(y))
        like = outputs[0]
        rows = w = dx = dweight = None
        if weight is not None and wanted[0]:
            w = _array(weight).T
            dx = _empty(like, like.shape[:-1] + w.shape[:1])
        if x is not None and wanted[1]:
            rows = _array(x)
            dweight = _empty(like, like.shape[-1:] + rows.shape[-1:])
        # The gradient of the weight is written as the weight lies in its tensor: (out, in).
        out = dx, None if dweight is None else dweight.T, None
        db = run(function, *outputs, rows, w, *alpha, out=out, wanted=_NAMES[wanted])[2]
        return tuple([None if g is None else _tensor(g) for g in (dx, dweight, db)])  # type: ignore[return-value]  # three

    return kernel


def row_shape(x: Tensor, alpha: Tensor) -> list[int]:
    """The shape in which `prelu`'s alpha, one value or one for each channel (axis 1), meets x."""
    shape = [1] * x.ndim
    if alpha.numel() > 1:
        shape[min(1, x.ndim - 1)] = alpha.numel()
    return shape


def _prelu(x: Tensor, alpha: Tensor) -> Tensor:
    y = torch.empty_like(x)
    run(activations.prelu, _array(x), _array(alpha.reshape(row_shape(x, alpha))), out=_array(y))
    return y


def _prelu_backward(dy: Tensor, x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    row = alpha.reshape(row_shape(x, alpha))
    dx, dalpha = run(activations.prelu_backward, _array(dy), _array(x), _array(row))
    return _tensor(dx), _tensor(dalpha).reshape(alpha.shape)


KERNELS: dict[str, Callable[..., Any]] = {"prelu": _prelu, "prelu_backward": _prelu_backward}
for _name in ACTIVATIONS:
    KERNELS[_name] = _elementwise(getattr(activations, _name))
    KERNELS[f"{_name}_backward"] = _elementwise(getattr(activations, f"{_name}_backward"))
for _name in LAYERS:
    KERNELS[_name] = _layer(_name)
    KERNELS[f"{_name}_backward"] = _layer_backward(_name)
