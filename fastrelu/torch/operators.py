"""The same functions as operators, ``torch.ops.fastrelu``, for whatever looks at a computation instead of carrying it out.

``OPERATORS``   for compilers and exporters, and for gradients of gradients: backward operators have gradients themselves, which
                are made of these operators again, and so on for every order
``FUNCTIONS``   the same for `torch.func`, which does not look into operators, and for forward mode, which they do not have:
                functions of autograd with the same rules, and ``jvp``
``call``        whichever of them the moment asks for

Signatures are those of `fastrelu.torch.kernels`; a backward operator returns empty tensors for gradients that are not wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from fastrelu.torch.kernels import ACTIVATIONS, KERNELS, LAYERS, row_shape

__all__ = ["FUNCTIONS", "OPERATORS", "call"]

OPERATORS: dict[str, Any] = {}
FUNCTIONS: dict[str, Any] = {}

_library = torch.library.Library("fastrelu", "DEF")

# The derivative of an activation's derivative, as a function of the activation's result; where it is not 0 everywhere.
_CURVATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda y: (y <= 0).to(y.dtype),
    "sigmoid": lambda y: 1 - 2 * y,
    "tanh": lambda y: -2 * y,
    "softplus": lambda y: torch.exp(-y),
}


def _define(name: str, operands: str, results: str, kernel: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    _library.define(f"{name}({operands}) -> {results}")
    for device in ("CPU", "CUDA"):
        _library.impl(name, kernel, device)
    torch.library.register_fake(f"fastrelu::{name}", shapes, lib=_library)
    OPERATORS[name] = getattr(torch.ops.fastrelu, name).default


def _give_rules(
    name: str, setup: Callable[..., None], backward: Callable[..., Any], jvp: Callable[..., Any], of_slices: Callable[..., Any]
) -> None:
    """Say how an operator is differentiated in both modes, and what `torch.vmap` makes of it."""
    torch.library.register_autograd(f"fastrelu::{name}", backward, setup_context=setup, lib=_library)
    torch.library.register_vmap(f"fastrelu::{name}", of_slices, lib=_library)
    methods = {"forward": OPERATORS[name], "setup_context": setup, "backward": backward, "jvp": jvp, "vmap": of_slices}
    FUNCTIONS[name] = type(name, (torch.autograd.Function,), {key: staticmethod(method) for key, method in methods.items()})


def _save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keep tensors for the gradients of both modes."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def call(name: str, *operands: Any) -> Any:
    """Call the operator `name`."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _transformed(name, *operands)
    return OPERATORS[name](*operands)


def _apply(name: str, *operands: Any) -> Any:
    return FUNCTIONS[name].apply(*operands)


_transformed = _disable_dynamo(_apply)  # a compiler would take operators there, and lose tangents without a word


def _by_slices(name: str) -> Callable[..., Any]:
    """What `torch.vmap` makes of an operator that has to be called for each slice."""

    def rule(info: Any, axes: tuple[Any, ...], *operands: Any) -> Any:
        # Where there is no slice, one of zeros tells the shape.
        each = [
            operand.unbind(axis) or [operand.sum(axis)] if isinstance(axis, int) else itertools.repeat(operand)
            for operand, axis in zip(operands, axes, strict=True)
        ]
        results = [call(name, *slices) for slices in zip(*each, strict=False)]
        if isinstance(results[0], Tensor):
            return torch.stack(results)[: info.batch_size], 0
        return tuple(torch.stack(result)[: info.batch_size] for result in zip(*results, strict=True)), (0,) * len(results[0])

    return rule


def _activation(name: str, has_alpha: bool) -> None:
    alpha, backward_name = ", float alpha" if has_alpha else "", f"{name}_backward"

    def like_first(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x)

    _define(name, f"Tensor x{alpha}", "Tensor", KERNELS[name], like_first)
    _define(backward_name, f"Tensor dy, Tensor y{alpha}", "Tensor", KERNELS[backward_name], like_first)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.alpha = inputs[1:]
        _save(ctx, output)

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return jvp(ctx, dy), *(None for _ in ctx.alpha)

    def jvp(ctx: Any, of_x: Tensor, *_: Any) -> Any:
        return call(backward_name, of_x, *ctx.saved_tensors, *ctx.alpha)

    def of_slices(info: Any, axes: tuple[Any, ...], x: Tensor, *alpha: float) -> Any:
        return call(name, x, *alpha), axes[0]

    _give_rules(name, setup, backward, jvp, of_slices)

    def setup_second(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.alpha = inputs[2:]
        _save(ctx, *inputs[:2])

    def backward_second(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        dy, y = ctx.saved_tensors
        of_y = g * dy * _CURVATURES[name](y) if name in _CURVATURES and ctx.needs_input_grad[1] else None
        return call(backward_name, g, y, *ctx.alpha), of_y, *(None for _ in ctx.alpha)

    def jvp_second(ctx: Any, of_dy: Tensor, of_y: Tensor, *_: Any) -> Tensor:
        dy, y = ctx.saved_tensors
        tangent: Tensor = call(backward_name, of_dy, y, *ctx.alpha)
        return tangent + of_y * dy * _CURVATURES[name](y) if name in _CURVATURES else tangent

    def of_pairs(info: Any, axes: tuple[Any, ...], dy: Tensor, y: Tensor, *alpha: float) -> Any:
        pair = [
            t.expand(info.batch_size, *t.shape) if axis is None else t.movedim(axis, 0)
            for t, axis in zip((dy, y), axes[:2], strict=True)
        ]
        return call(backward_name, *pair, *alpha), 0

    _give_rules(backward_name, setup_second, backward_second, jvp_second, of_pairs)


def _prelu() -> None:
    def like_first(x: Tensor, alpha: Tensor) -> Tensor:
        return torch.empty_like(x)

    def like_both(dy: Tensor, x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(alpha)

    def kernel(dy: Tensor, x: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        dx, dalpha = KERNELS["prelu_backward"](dy, x, alpha)
        like = torch.empty_like(x)
        return dx if dx.stride() == like.stride() else like.copy_(dx), dalpha  # compilers rely on strides

    _define("prelu", "Tensor x, Tensor alpha", "Tensor", KERNELS["prelu"], like_first)
    _define("prelu_backward", "Tensor dy, Tensor x, Tensor alpha", "(Tensor, Tensor)", kernel, like_both)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, *inputs)

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        gradients: tuple[Tensor, Tensor] = call("prelu_backward", dy, *ctx.saved_tensors)
        return gradients

    def jvp(ctx: Any, of_x: Tensor, of_alpha: Tensor) -> Tensor:
        x, alpha = ctx.saved_tensors
        shape = row_shape(x, alpha)
        return torch.where(x <= 0, of_x * alpha.reshape(shape) + x * of_alpha.reshape(shape), of_x)

    def backward_second(ctx: Any, g_x: Tensor, g_alpha: Tensor) -> tuple[Any, ...]:
        dy, x, alpha = ctx.saved_tensors
        shape = row_shape(x, alpha)
        is_scaled, slopes, g_alpha = x <= 0, alpha.reshape(shape), g_alpha.reshape(shape)
        of_dy = torch.where(is_scaled, g_x * slopes + g_alpha * x, g_x)
        of_alpha = torch.where(is_scaled, g_x * dy, 0).sum_to_size(shape).reshape(alpha.shape)
        return of_dy, torch.where(is_scaled, g_alpha * dy, 0), of_alpha

    def jvp_second(ctx: Any, of_dy: Tensor, of_x: Tensor, of_alpha: Tensor) -> tuple[Tensor, Tensor]:
        dy, x, alpha = ctx.saved_tensors
        shape = row_shape(x, alpha)
        is_scaled = x <= 0
        of_dx = torch.where(is_scaled, of_dy * alpha.reshape(shape) + dy * of_alpha.reshape(shape), of_dy)
        of_dalpha = torch.where(is_scaled, of_dy * x + dy * of_x, 0)
        return of_dx, of_dalpha.sum_to_size(shape).reshape(alpha.shape)

    _give_rules("prelu", setup, backward, jvp, _by_slices("prelu"))
    _give_rules("prelu_backward", setup, backward_second, jvp_second, _by_slices("prelu_backward"))


def _layer(name: str, has_alpha: bool) -> None:
    alpha, backward_name = ", float alpha" if has_alpha else "", f"{name}_backward"
    activation = name.removeprefix("linear").removeprefix("_")

    def shape_of_y(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    def shapes_of_gradients(
        dy: Tensor, y: Tensor | None, x: Tensor | None, weight: Tensor | None, wanted: Sequence[bool], *_: Any
    ) -> tuple[Tensor, ...]:
        shapes = [
            (*dy.shape[:-1], weight.shape[1]) if wanted[0] and weight is not None else (0,),
            (dy.shape[-1], x.shape[-1]) if wanted[1] and x is not None else (0,),
            (dy.shape[-1],) if wanted[2] else (0,),
        ]
        return tuple(dy.new_empty(shape) for shape in shapes)

    def kernel(dy: Tensor, *operands: Any) -> tuple[Tensor, ...]:
        return tuple(dy.new_empty(0) if g is None else g for g in KERNELS[backward_name](dy, *operands))

    _define(name, f"Tensor x, Tensor weight, Tensor? bias{alpha}", "Tensor", KERNELS[name], shape_of_y)
    operands = f"Tensor dy, Tensor? y, Tensor? x, Tensor? weight, bool[] wanted{alpha}"
    _define(backward_name, operands, "(Tensor, Tensor, Tensor)", kernel, shapes_of_gradients)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.alpha, ctx.has_bias = inputs[3:], inputs[2] is not None
        _save(ctx, output if activation else None, *inputs[:2])

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        wanted = [*ctx.needs_input_grad[:2], ctx.has_bias and ctx.needs_input_grad[2]]
        found = call(backward_name, dy, *ctx.saved_tensors, wanted, *ctx.alpha)
        return *(g if want else None for g, want in zip(found, wanted, strict=True)), *(None for _ in ctx.alpha)

    def jvp(ctx: Any, of_x: Tensor, of_weight: Tensor, of_bias: Tensor | None, *_: Any) -> Any:
        y, x, weight = ctx.saved_tensors
        of_z = call("linear", of_x, weight, of_bias) + call("linear", x, of_weight, None)
        return call(f"{activation}_backward", of_z, y, *ctx.alpha) if activation else of_z

    def of_slices(info: Any, axes: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None, *alpha: float) -> Any:
        if axes[1] is None and axes[2] is None:
            return call(name, x.movedim(axes[0], 0), weight, bias, *alpha), 0
        return _by_slices(name)(info, axes, x, weight, bias, *alpha)

    _give_rules(name, setup, backward, jvp, of_slices)

    def setup_second(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.wanted, ctx.alpha = inputs[4], inputs[5:]
        _save(ctx, *inputs[:4])

    def backward_second(ctx: Any, g_x: Tensor, g_weight: Tensor, g_bias: Tensor) -> tuple[Any, ...]:
        """With dz = f'(y) dy: dx = dz @ weight, dweight = dz.T @ x, and dbias is the sum of dz."""
        dy, y, x, weight = ctx.saved_tensors
        terms = []
        if ctx.wanted[0]:
            terms.append(call("linear", g_x, weight, g_bias if ctx.wanted[2] else None))
        elif ctx.wanted[2]:
            terms.append(g_bias.expand_as(dy))
        if ctx.wanted[1]:
            terms.append(call("linear", x, g_weight, None))
        of_dz = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        dz, of_dy, of_y, of_x, of_weight = dy, of_dz, None, None, None
        if activation:
            dz, of_dy = (call(f"{activation}_backward", g, y, *ctx.alpha) for g in (dy, of_dz))
            if activation in _CURVATURES and ctx.needs_input_grad[1]:
                of_y = of_dz * dy * _CURVATURES[activation](y)
        if ctx.wanted[1] and ctx.needs_input_grad[2]:
            of_x = call("linear", dz, g_weight.t(), None)
        if ctx.wanted[0] and ctx.needs_input_grad[3]:
            of_weight = call("linear", _columns(dz), _columns(g_x), None)
        return of_dy, of_y, of_x, of_weight, None, *(None for _ in ctx.alpha)

    def jvp_second(ctx: Any, of_dy: Tensor, of_y: Tensor | None, of_x: Tensor | None, of_weight: Tensor | None, *_: Any) -> Any:
        dy, y, x, weight = ctx.saved_tensors
        dz, of_dz = dy, of_dy
        if activation:
            dz, of_dz = (call(f"{activation}_backward", g, y, *ctx.alpha) for g in (dy, of_dy))
            if activation in _CURVATURES:
                of_dz = of_dz + of_y * dy * _CURVATURES[activation](y)
        of_dx, of_dweight, of_db = call("linear_backward", of_dz, None, x, weight, ctx.wanted)
        products = [*ctx.wanted[:2], False]
        if any(products):
            more = call("linear_backward", dz, None, of_x, of_weight, products)
            of_dx, of_dweight = of_dx + more[0], of_dweight + more[1]
        return of_dx, of_dweight, of_db

    _give_rules(backward_name, setup_second, backward_second, jvp_second, _by_slices(backward_name))


def _columns(rows: Tensor) -> Tensor:
    """The transpose of all rows of a batch."""
    return rows.flatten(0, -2).t() if rows.ndim > 1 else rows[:, None]


for _name, _has_alpha in ACTIVATIONS.items():
    _activation(_name, _has_alpha)
_prelu()
for _name, _has_alpha in LAYERS.items():
    _layer(_name, _has_alpha)
