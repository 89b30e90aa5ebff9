"""The functions: those of `fastrelu` on tensors, with gradients, and weights as PyTorch keeps them, (out, in).

What is said here once holds for all:

* Tensors are dense, of float16, bfloat16, float32 or float64, all of one type and on one device; strides, batch axes, empty
  batches, views and tensors without axes are as with PyTorch's own functions. Results have the bits of `fastrelu` on arrays.
* Gradients are calculated for the tensors that require them, in one pass with the mask, and have gradients of every order.
* `torch.compile`, `torch.export`, `torch.fx` and `torch.func` see operators of the namespace ``torch.ops.fastrelu``.
* Under `torch.autocast` the linear functions and `prelu` cast their operands to its type, as PyTorch's do; the others do not.
* Tensors on a CUDA device go to the kernels of `fastrelu.cuda`.
* `elu`, `leaky_relu` and `softplus` keep their result for the gradient, where PyTorch's keep x: the result must not be changed
  in place before the backward pass.
* The number of threads is the lower one of `torch.get_num_threads` and `fastrelu.get_num_threads`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from fastrelu.torch.kernels import KERNELS
from fastrelu.torch.operators import OPERATORS, call

__all__ = ["elu", "leaky_relu", "linear", "linear_elu", "linear_leaky_relu", "linear_relu", "linear_sigmoid"]
__all__ += ["linear_softplus", "linear_tanh", "prelu", "relu", "sigmoid", "softplus", "tanh"]

_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, Parameter)


def _is_observed() -> bool:
    """Whether somebody wants to see operators. Else functions of autograd are used, which take a third of their time a call."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None  # of `torch.jit.trace`
        or forward_ad._current_level >= 0
    )


def _backward_of(name: str, dy: Tensor) -> Callable[..., Any]:
    """The backward pass of an operation: one that is seen, or that has gradients itself, where somebody asks for it."""
    # `torch.autograd.grad(..., is_grads_batched=True)` has a vmap of its own.
    if torch.is_grad_enabled() or _is_observed() or torch._C._functorch.is_legacy_batchedtensor(dy):
        return lambda *operands: call(f"{name}_backward", *operands)
    return KERNELS[f"{name}_backward"]


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor, *alpha: float) -> Tensor:
        y: Tensor = KERNELS[name](x, *alpha)
        ctx.name, ctx.alpha = name, alpha
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        dx = _backward_of(ctx.name, dy)(dy, *ctx.saved_tensors, *ctx.alpha)
        return None, dx, *(None for _ in ctx.alpha)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        y: Tensor = KERNELS["prelu"](x, alpha)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return _backward_of("prelu", dy)(dy, *ctx.saved_tensors)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, *alpha: float) -> Tensor:
        y: Tensor = KERNELS[name](x, weight, bias, *alpha)
        ctx.name, ctx.alpha = name, alpha
        _, x_wants, weight_wants, *_ = ctx.needs_input_grad
        ctx.save_for_backward(None if name == "linear" else y, x if weight_wants else None, weight if x_wants else None)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[1:4]
        found = _backward_of(ctx.name, dy)(dy, *ctx.saved_tensors, wanted, *ctx.alpha)
        return None, *_wanted(found, wanted), *(None for _ in ctx.alpha)


def _wanted(gradients: Any, wanted: tuple[bool, ...]) -> list[Tensor | None]:
    """Gradients without those that an operator returns empty because nobody wants them."""
    return [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]


class _Chain(torch.autograd.Function):
    """Fused layers, each of which takes what the one before it returns: what autograd does for each function it does once."""

    @staticmethod
    def forward(ctx: Any, names: tuple[str, ...], x: Tensor, *parameters: Tensor | None) -> Tensor:
        ys = _ys([KERNELS[name] for name in names], x, parameters)
        ctx.names = names
        # Of layers that nobody wants gradients of, only what the first of the others takes is kept.
        first = next(i for i, wants in enumerate(ctx.needs_input_grad[1:]) if wants) - 1 >> 1
        kept: list[Tensor | None] = [None if i < first - 1 else y for i, y in enumerate(ys)]
        if names[-1] == "linear":
            kept[-1] = None
        ctx.save_for_backward(x, *parameters, *kept)
        return ys[-1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        count = len(ctx.names)
        x, *saved = ctx.saved_tensors
        parameters, ys = saved[: 2 * count], saved[2 * count :]
        if torch.is_grad_enabled():
            # Gradients of these gradients go through what is between the layers as well.
            ys = _ys([OPERATORS[name] for name in ctx.names], x, parameters)
        xs, wants = [x, *ys], ctx.needs_input_grad[1:]
        gradients: list[Tensor | None] = [None] * len(wants)
        for i in reversed(range(count)):
            wanted = any(wants[: 2 * i + 1]), wants[2 * i + 1], wants[2 * i + 2]
            if not any(wanted):
                break
            name, y, weight = ctx.names[i], ys[i], parameters[2 * i]
            operands = dy, None if name == "linear" else y, xs[i] if wanted[1] else None, weight if wanted[0] else None
            dx, *gradients[2 * i + 1 : 2 * i + 3] = _wanted(_backward_of(name, dy)(*operands, wanted), wanted)
            if dx is None:
                break
            dy = dx
        return None, dy if wants[0] else None, *gradients[1:]


def _ys(functions: list[Callable[..., Tensor]], x: Tensor, parameters: Sequence[Tensor | None]) -> list[Tensor]:
    """What all layers of a chain return."""
    ys = []
    for function, weight, bias in zip(functions, parameters[::2], parameters[1::2], strict=True):
        x = function(x, weight, bias)
        ys.append(x)
    return ys


def chain(names: tuple[str, ...], x: Tensor, parameters: list[Tensor | None]) -> Tensor | None:
    """Layers one after the other as one function of autograd; None if they have to be called one by one.

    Parameters
    ----------
    names : tuple of str
        Those of layers whose activation has no parameter.
    x : Tensor
        Input of the first.
    parameters : list
        Weight and bias of each.
    """
    if _is_observed() or type(x) not in _PLAIN or has_torch_function_unary(x) or torch.is_autocast_enabled("cpu"):
        return None
    if not _is_dense(x, x) or not x.ndim:
        return None
    width = x.shape[-1]
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        if (
            weight is None
            or type(weight) not in _PLAIN
            or not _is_dense(x, weight)
            or weight.ndim != 2
            or weight.shape[1] != width
        ):
            return None
        width = weight.shape[0]
        if bias is not None and (type(bias) not in _PLAIN or not _is_dense(x, bias) or bias.shape != (width,)):
            return None
    if torch.is_grad_enabled() and (x.requires_grad or any(p is not None and p.requires_grad for p in parameters)):
        y: Tensor = _Chain.apply(names, x, *parameters)
        return y
    for name, weight, bias in zip(names, parameters[::2], parameters[1::2], strict=True):
        x = KERNELS[name](x, weight, bias)
    return x


def _is_dense(x: Tensor, operand: Tensor) -> bool:
    """Whether an operand is a dense tensor in host memory, of a type that the layers take and of that of x."""
    dtype = operand.dtype
    return dtype in _TYPES and dtype is x.dtype and operand.is_cpu and operand.layout is torch.strided and not operand.is_nested


def _refuse(name: str, **operands: Any) -> None:
    """Refuse what is no tensor that a function takes, or does not fit the first one; only bias may be None."""
    first = None
    for operand, tensor in operands.items():
        if tensor is None and operand == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {operand} must be a tensor, not {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name}: {operand} must be a dense tensor, not one of layout {tensor.layout}")
        if tensor.is_nested:
            raise TypeError(f"{name}: {operand} must be a dense tensor, not a nested one")
        if tensor.dtype not in _TYPES:
            raise TypeError(f"{name}: {operand} must be float16, bfloat16, float32 or float64, not {_short(tensor.dtype)}")
        if tensor.device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(f"{name}: {operand} must be on the CPU or a CUDA device, not on {tensor.device}")
        if first is None:
            first, first_name = tensor, operand
        if tensor.dtype is not first.dtype:
            there = f"the type of {first_name}, {_short(first.dtype)}"
            raise TypeError(f"{name}: {operand} must have {there}, not {_short(tensor.dtype)}")
        if tensor.device != first.device:
            raise ValueError(f"{name}: {operand} must be on the device of {first_name}, {first.device}, not on {tensor.device}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _checked_alpha(name: str, alpha: Any) -> float:
    try:
        value = float(alpha)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: alpha must be a number, not {type(alpha).__name__}") from None
    if value < 0:  # the result no longer tells the sign of the input
        raise ValueError(f"{name}: alpha must be at least 0, not {value}")
    return value


def _activation(name: str, x: Tensor, *alpha: float) -> Tensor:
    is_plain = type(x) in _PLAIN
    if not (is_plain and _is_dense(x, x)):
        _refuse(name, x=x)
        is_plain = is_plain and not x.is_meta
    if alpha:
        alpha = (_checked_alpha(name, alpha[0]),)
    y: Tensor
    if not is_plain or _is_observed():
        y = call(name, x, *alpha)
    elif x.requires_grad and torch.is_grad_enabled():
        y = _Activation.apply(name, x, *alpha)
    else:
        y = KERNELS[name](x, *alpha)
    return y


def _linear(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, *alpha: float) -> Tensor:
    device = isinstance(x, Tensor) and ((x.is_cpu and "cpu") or (x.is_cuda and "cuda"))
    if device and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = (_cast(t, dtype) for t in (x, weight, bias))
    is_plain = type(x) in _PLAIN and type(weight) in _PLAIN and (bias is None or type(bias) in _PLAIN)
    if not (is_plain and _is_dense(x, x) and _is_dense(x, weight) and (bias is None or _is_dense(x, bias))):
        _refuse(name, x=x, weight=weight, bias=bias)
        is_plain = is_plain and not x.is_meta
    if alpha:
        alpha = (_checked_alpha(name, alpha[0]),)
    y: Tensor
    if torch._C._get_tracing_state() is not None:  # shapes are no numbers there
        y = OPERATORS[name](x, weight, bias, *alpha)
        return y
    shape, of_weight = x.shape, weight.shape
    if len(of_weight) != 2:
        raise ValueError(f"{name}: weight must have shape (out, in), not {tuple(of_weight)}")
    if not shape or shape[-1] != of_weight[1]:
        wanted = f"(..., {of_weight[1]}) for weight of shape {tuple(of_weight)}"
        raise ValueError(f"{name}: x must have shape {wanted}, not {tuple(shape)}")
    if bias is not None and bias.shape != of_weight[:1]:
        wanted = f"({of_weight[0]},) for weight of shape {tuple(of_weight)}"
        raise ValueError(f"{name}: bias must have shape {wanted}, not {tuple(bias.shape)}")
    if not is_plain or _is_observed():
        y = call(name, x, weight, bias, *alpha)
    elif torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        y = _Linear.apply(name, x, weight, bias, *alpha)
    else:
        y = KERNELS[name](x, weight, bias, *alpha)
    return y


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    """What autocast makes of an operand: as it does, all floats but float64."""
    is_cast = isinstance(tensor, Tensor) and tensor.dtype in _TYPES and tensor.dtype is not torch.float64
    return tensor.to(dtype) if is_cast else tensor


def relu(x: Tensor) -> Tensor:
    """max(x, 0) of every element, as `fastrelu.relu`: a NaN stays. Its gradient is dy where the result is above 0 or NaN."""
    if has_torch_function_unary(x):
        return handle_torch_function(relu, (x,), x)
    return _activation("relu", x)


def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    """As `fastrelu.leaky_relu`, for alpha >= 0: the result tells the sign that its gradient depends on."""
    if has_torch_function_unary(x):
        return handle_torch_function(leaky_relu, (x,), x, alpha=alpha)
    return _activation("leaky_relu", x, alpha)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """As `torch.nn.functional.prelu`: alpha, of any sign, has one value, or one for each channel (axis 1)."""
    if has_torch_function_variadic(x, alpha):
        return handle_torch_function(prelu, (x, alpha), x, alpha)
    if isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type):
        x, alpha = (_cast(t, torch.get_autocast_dtype(x.device.type)) for t in (x, alpha))
    _refuse("prelu", x=x, alpha=alpha)
    channels = x.shape[min(1, x.ndim - 1)] if x.ndim else 1
    if alpha.ndim > 1 or alpha.numel() not in (1, channels):
        raise ValueError(
            f"prelu: alpha must have 1 or {channels} values for x of shape {tuple(x.shape)}, not shape {tuple(alpha.shape)}"
        )
    y: Tensor
    if _is_observed() or x.is_meta or type(x) not in _PLAIN or type(alpha) not in _PLAIN:
        y = call("prelu", x, alpha)
    else:
        y = _PReLU.apply(x, alpha)
    return y


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """As `fastrelu.elu`, for alpha >= 0."""
    if has_torch_function_unary(x):
        return handle_torch_function(elu, (x,), x, alpha=alpha)
    return _activation("elu", x, alpha)


def sigmoid(x: Tensor) -> Tensor:
    """As `fastrelu.sigmoid`."""
    if has_torch_function_unary(x):
        return handle_torch_function(sigmoid, (x,), x)
    return _activation("sigmoid", x)


def tanh(x: Tensor) -> Tensor:
    """As `fastrelu.tanh`."""
    if has_torch_function_unary(x):
        return handle_torch_function(tanh, (x,), x)
    return _activation("tanh", x)


def softplus(x: Tensor) -> Tensor:
    """As `fastrelu.softplus`: log(1 + e**x), with no threshold beyond which it would be x."""
    if has_torch_function_unary(x):
        return handle_torch_function(softplus, (x,), x)
    return _activation("softplus", x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X @ weight.T + bias, as `torch.nn.functional.linear`, in the order of `fastrelu.linear`."""
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(linear, (x, weight, bias), x, weight, bias)
    return _linear("linear", x, weight, bias)


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """relu(x @ weight.T + bias) in one pass, forward and backward.

    Parameters
    ----------
    x : Tensor
        (..., in).
    weight : Tensor
        (out, in).
    bias : Tensor, optional
        (out,).

    Returns
    -------
    Tensor
        (..., out), of the type of x.

    Raises
    ------
    TypeError
        If an operand is no dense tensor of floats, or of another type than x.
    ValueError
        If shapes do not fit, or operands are on different devices.

    Examples
    --------
    >>> import torch
    >>> import fastrelu.torch
    >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0], [-2.0, 0.5]], requires_grad=True)
    >>> y = fastrelu.torch.linear_relu(x, weight)
    >>> y.sum().backward()
    >>> y.tolist(), weight.grad.tolist()
    ([[1.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]])
    """
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(linear_relu, (x, weight, bias), x, weight, bias)
    return _linear("linear_relu", x, weight, bias)


def linear_leaky_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None, alpha: float = 0.01) -> Tensor:
    """leaky_relu(x @ weight.T + bias) in one pass, for alpha >= 0."""
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(linear_leaky_relu, (x, weight, bias), x, weight, bias, alpha=alpha)
    return _linear("linear_leaky_relu", x, weight, bias, alpha)


def linear_elu(x: Tensor, weight: Tensor, bias: Tensor | None = None, alpha: float = 1.0) -> Tensor:
    """elu(x @ weight.T + bias) in one pass, for alpha >= 0."""
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(linear_elu, (x, weight, bias), x, weight, bias, alpha=alpha)
    return _linear("linear_elu", x, weight, bias, alpha)


def linear_sigmoid(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """sigmoid(x @ weight.T + bias) in one pass."""
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(linear_sigmoid, (x, weight, bias), x, weight, bias)
    return _linear("linear_sigmoid", x, weight, bias)


def linear_tanh(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """tanh(x @ weight.T + bias) in one pass."""
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(linear_tanh, (x, weight, bias), x, weight, bias)
    return _linear("linear_tanh", x, weight, bias)


def linear_softplus(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """softplus(x @ weight.T + bias) in one pass."""
    if has_torch_function_variadic(x, weight, bias):
        return handle_torch_function(linear_softplus, (x, weight, bias), x, weight, bias)
    return _linear("linear_softplus", x, weight, bias)
