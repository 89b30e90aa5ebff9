"""How the primitive is differentiated, forward and backward, any number of times.

Forward mode is the definition. The tangent of an activation is its backward pass applied to the tangent, which is linear in it
and its own transpose. The tangent of a fused layer is a primitive of its own, whose transpose is the fused backward pass: so
``grad`` calls `fastrelu.linear_relu_backward` once, for those of dx, dw and db that are wanted, with the same bits.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fastrelu.jax.primitive import aligned, result_type, ufunc, ufunc_p
from fastrelu.operations import LAYERS, OPERATIONS, Layer, backward, backward_variants

_LINEAR = frozenset(
    (
        *("relu_backward", "leaky_relu_backward", "prelu_backward", "prelu_alpha_gradient"),
        *("elu_backward", "sigmoid_backward", "tanh_backward", "softplus_backward"),
    )
)
"""The elementwise ufuncs that are linear in their first operand."""


def _is_zero(tangent: Any) -> bool:
    return type(tangent) is ad.Zero


def _jvp_of(function: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """`jax.jvp` for those operands that have a tangent."""
    places = [i for i, tangent in enumerate(tangents) if not _is_zero(tangent)]

    def run(*given: Any) -> Any:
        operands = [*primals]
        for i, operand in zip(places, given, strict=True):
            operands[i] = operand
        return function(*operands)

    result: tuple[Any, Any] = jax.jvp(run, [primals[i] for i in places], [tangents[i] for i in places])
    return result


def sum_to(terms: Any, shape: tuple[int, ...]) -> Any:
    """Sum over the axes along which an array of `shape` is broadcast to that of `terms`, in the order of `fastrelu.sums`."""
    if terms.shape == shape:
        return terms
    lead = terms.ndim - len(shape)
    summed = [*range(lead), *(lead + i for i, size in enumerate(shape) if size == 1 and terms.shape[lead + i] != 1)]
    kept = [axis for axis in range(terms.ndim) if axis not in summed]
    rows = math.prod(terms.shape[axis] for axis in summed)
    if rows == 1:
        return terms.reshape(shape)
    columns = terms.transpose(summed + kept).reshape(rows, math.prod(shape))
    return ufunc("linear_backward_only_db", columns).reshape(shape)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, name: str, from_output: bool) -> tuple[Any, Any]:
    if name in LAYERS:
        y, tangent = _layer_jvp(LAYERS[name], primals, tangents, from_output)
        return [y], [tangent]
    if name in _LINEAR:
        y, tangent = _backward_jvp(name, primals, tangents)
        return [y], [tangent]
    if name in OPERATIONS:
        y, tangent = _activation_jvp(name, primals, tangents, from_output)
        return [y], [tangent]
    results = ufunc_p.bind(*primals, name=name, from_output=from_output)
    if name == "linear_backward_only_db":
        return results, [ufunc(name, *tangents)]
    _, derived = _jvp_of(partial(_unfused_gradients, name), primals, tangents)
    return results, [jnp.broadcast_to(t, result.shape) for t, result in zip(derived, results, strict=True)]


def _activation_jvp(name: str, primals: Sequence[Any], tangents: Sequence[Any], from_output: bool) -> tuple[Any, Any]:
    y = ufunc(name, *primals, from_output=from_output)
    if name in ("leaky_relu", "prelu"):
        # From the input: the output does not tell its sign where alpha is negative.
        (x, alpha), (dx, dalpha) = primals, tangents
        along_x = None if _is_zero(dx) else ufunc("prelu_backward", dx, x, alpha)
        along_alpha = None if _is_zero(dalpha) else ufunc("prelu_alpha_gradient", dalpha, x.astype(alpha.dtype)).astype(y.dtype)
    elif name == "elu":
        (x, alpha), (dx, dalpha) = primals, tangents
        along_x = along_alpha = None
        if not _is_zero(dx):
            along_x = ufunc("elu_backward", dx, y, alpha) if from_output else _elu_backward(dx, x, y, alpha)
        if not _is_zero(dalpha):
            one = jnp.ones((), alpha.dtype)
            along_alpha = jnp.where(x > 0, 0, dalpha * ufunc("elu", x, one)).astype(y.dtype)
    else:
        return y, ufunc(f"{name}_backward", tangents[0], y)
    terms = [term for term in (along_x, along_alpha) if term is not None]
    return y, jnp.broadcast_to(terms[0] if len(terms) == 1 else terms[0] + terms[1], y.shape)


def _elu_backward(dx: Any, x: Any, y: Any, alpha: Any) -> Any:
    """As the ufunc, for an alpha that may be negative."""
    return jnp.where(x <= 0, dx * (y + alpha), dx).astype(y.dtype)


def _backward_jvp(name: str, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """Of an elementwise backward pass: linear in its first operand, and what its slope does as the others change."""
    dy, y, *alpha = primals
    along_dy, along_y, *along_alpha = tangents
    dx = ufunc(name, *primals)
    terms = [] if _is_zero(along_dy) else [ufunc(name, along_dy, y, *alpha)]
    if not _is_zero(along_y) and name not in ("relu_backward", "leaky_relu_backward", "prelu_backward"):
        terms.append(_curvature(name, dy, y) * along_y)
    if along_alpha and not _is_zero(along_alpha[0]):
        factor = along_alpha[0] * (jnp.ones_like(y) if name == "elu_backward" else 1)
        terms.append(jnp.where(y <= 0, dy * factor, 0))
    if not terms:
        return dx, jnp.zeros_like(dx)
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return dx, jnp.broadcast_to(total.astype(dx.dtype), dx.shape)


def _curvature(name: str, dy: Any, y: Any) -> Any:
    """The derivative of an elementwise backward pass with respect to the output y; of `prelu_alpha_gradient` to the input."""
    if name == "sigmoid_backward":
        return dy * (1 - 2 * y)
    if name == "tanh_backward":
        return dy * (-2 * y)
    if name == "softplus_backward":
        return dy * jnp.exp(-y)
    return jnp.where(y > 0, 0, dy)  # elu_backward, prelu_alpha_gradient


def _transpose(cotangents: Sequence[Any], *operands: Any, name: str, from_output: bool) -> list[Any]:
    cotangent = cotangents[0]
    if _is_zero(cotangent):
        return [None] * len(operands)
    if name in LAYERS and LAYERS[name].base == "linear":
        layer = LAYERS[name]
        names = [*layer.inputs]
        wanted = {f"d{n}": o.aval.shape for n, o in zip(names, operands, strict=True) if ad.is_undefined_primal(o)}
        known = {n: o for n, o in zip(names, operands, strict=True) if not ad.is_undefined_primal(o)}
        gradients = _gradients(layer, wanted, cotangent, None, known.get("x"), known.get("w"), None)
        return [gradients.get(f"d{n}") for n in names]
    dy, *others = operands
    if name == "linear_backward_only_db":
        return [jnp.broadcast_to(cotangent[..., None, :], dy.aval.shape)]
    if name not in _LINEAR or any(map(ad.is_undefined_primal, others)):
        raise NotImplementedError(f"fastrelu.jax: {name} is not linear in that operand, and has no transpose")
    return [sum_to(ufunc(name, cotangent, *others), dy.aval.shape), *[None] * len(others)]


ad.primitive_jvps[ufunc_p] = _jvp
ad.primitive_transposes[ufunc_p] = _transpose


def _layer_jvp(layer: Layer, primals: Sequence[Any], tangents: Sequence[Any], from_output: bool) -> tuple[Any, Any]:
    given = dict(zip(layer.inputs, primals, strict=True))
    moved = {name: t for name, t in zip(layer.inputs, tangents, strict=True) if not _is_zero(t)}
    if layer.alpha and (not from_output or "alpha" in moved):
        y, tangent = _jvp_of(partial(_unfused, layer), primals, tangents)
        # A half is rounded twice there.
        return (y if y.dtype.itemsize > 2 else ufunc(layer.name, *primals)), tangent
    y = ufunc(layer.name, *primals, from_output=from_output)
    alpha = [given["alpha"]] if layer.alpha else []
    if "x" in moved or "w" in moved:
        operands = [*moved.values(), *([y] if layer.formula else [])]
        operands += [given["x"]] if "w" in moved else []
        operands += [given["w"]] if "x" in moved else []
        tangent = tangent_p.bind(*operands, *alpha, base=layer.base, moved=tuple(moved))
    else:
        tangent = jnp.broadcast_to(moved["b"], y.shape)
        tangent = ufunc(f"{layer.formula}_backward", tangent, y, *alpha) if layer.formula else tangent
    return y, jnp.broadcast_to(tangent, y.shape)


def _unfused(layer: Layer, x: Any, w: Any, *others: Any) -> Any:
    """The layer as two ufuncs."""
    *bias, alpha = others
    z = ufunc("linear" if bias else "linear_no_bias", x, w, *bias)
    return ufunc(layer.base.removeprefix("linear_"), z, alpha if layer.alpha == "(n)" else alpha[..., None], from_output=False)


tangent_p = Primitive("fastrelu_tangent")
"""The tangent of a fused layer: linear in those of x, w and b which ``moved`` names, and which come first."""


def _operand_names(base: str, moved: tuple[str, ...]) -> tuple[str, ...]:
    layer = LAYERS[base]
    names = [f"d{name}" for name in moved]
    names += ["y"] * bool(layer.formula) + ["x"] * ("w" in moved) + ["w"] * ("x" in moved) + ["alpha"] * bool(layer.alpha)
    return tuple(names)


_CORE_AXES = {"dx": 1, "dw": 2, "db": 1, "y": 1, "x": 1, "w": 2, "alpha": 0}


def _tangent(*operands: Any, base: str, moved: tuple[str, ...]) -> Any:
    given = dict(zip(_operand_names(base, moved), operands, strict=True))
    bias = [given["db"]] if "b" in moved else []
    tangent = None
    for x, w in (("dx", "w"), ("x", "dw")):
        if x in given and w in given:
            product = ufunc("linear" if bias else "linear_no_bias", given[x], given[w], *bias)
            tangent, bias = product if tangent is None else tangent + product, []
    formula = LAYERS[base].formula
    alpha = [given["alpha"]] if "alpha" in given else []
    return ufunc(f"{formula}_backward", tangent, given["y"], *alpha) if formula else tangent


def _tangent_shape(*operands: Any, base: str, moved: tuple[str, ...]) -> Any:
    names = _operand_names(base, moved)
    loops = [o.shape[: o.ndim - _CORE_AXES[name]] for name, o in zip(names, operands, strict=True)]
    columns = operands[names.index("dw" if "w" in moved else "w")].shape[-1]
    return result_type(operands, (*jax.lax.broadcast_shapes(*loops), columns))


def _tangent_batch(operands: Sequence[Any], axes: Sequence[int | None], **params: Any) -> tuple[Any, int]:
    lengths = [_CORE_AXES[name] for name in _operand_names(**params)]
    operands, axis = aligned(operands, axes, lengths)
    return tangent_p.bind(*operands, **params), axis


def _tangent_jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    return _jvp_of(partial(_tangent, **params), primals, tangents)


def _tangent_transpose(cotangent: Any, *operands: Any, base: str, moved: tuple[str, ...]) -> list[Any]:
    if _is_zero(cotangent):
        return [None] * len(operands)
    names = _operand_names(base, moved)
    wanted = {n: o.aval.shape for n, o in zip(names, operands, strict=True) if ad.is_undefined_primal(o)}
    known = {n: o for n, o in zip(names, operands, strict=True) if not ad.is_undefined_primal(o)}
    given = (known.get(name) for name in ("y", "x", "w", "alpha"))
    gradients = _gradients(LAYERS[base], wanted, cotangent, *given)
    return [gradients.get(name) for name in names]


tangent_p.def_impl(_tangent)
tangent_p.def_abstract_eval(_tangent_shape)
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
batching.primitive_batchers[tangent_p] = _tangent_batch
mlir.register_lowering(tangent_p, mlir.lower_fun(_tangent, multiple_results=False))


def _padded(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    return (1,) * (axes - len(shape)) + shape


def _gradients(layer: Layer, wanted: dict[str, tuple[int, ...]], dy: Any, y: Any, x: Any, w: Any, alpha: Any) -> dict[str, Any]:
    """The gradients that `wanted` names, of these shapes; y, x, w and alpha are None where nothing needs them.

    As many of the last batch axes as have one w are the rows of a matrix: all of them, if w is one. The others are as many
    products.
    """
    batch = dy.shape[:-1]
    axes = len(batch)
    weight = _padded((w.shape if w is not None else wanted.get("dw", (0, 0)))[:-2], axes)
    rows = next((i for i, length in enumerate(reversed(weight)) if length != 1), axes)
    first = axes - rows
    bias = _padded(wanted.get("db", (0,))[:-1], axes)
    if any(length != 1 for length in bias[first:]):
        # Rows with biases of their own: dz is needed as it is.
        dz = ufunc(f"{layer.formula}_backward", dy, y, *([] if alpha is None else [alpha])) if layer.formula else dy
        others = {name: shape for name, shape in wanted.items() if name != "db"}
        found = _gradients(LAYERS["linear"], others, dz, None, x, w, None) if others else {}
        return {**found, "db": sum_to(dz, wanted["db"])}
    m = math.prod(batch[first:])

    def matrix(operand: Any) -> Any:
        length = operand.shape[-1]
        loops = _padded(operand.shape[:-1], axes)
        if loops[first:] != batch[first:]:
            loops = batch
            operand = jnp.broadcast_to(operand, (*batch, length))
        return operand.reshape(*loops[:first], m, length)

    operands = [matrix(dy)]
    operands += [matrix(y)] if layer.formula else []
    operands += [matrix(x)] if "dw" in wanted else []
    operands += [w.reshape(*weight[:first], *w.shape[-2:])] if "dx" in wanted else []
    operands += [] if alpha is None else [alpha]
    names = tuple(name for name in ("dx", "dw", "db") if name in wanted)
    variant = backward(f"{layer.base}_backward", False, names, ())
    results = ufunc_p.bind(*operands, name=variant.name, from_output=True)
    gradients = dict(zip(names, results, strict=True))
    # The rows as the axes that they were, or as axes of length 1.
    inner = {"dx": batch[first:], "dw": (1,) * rows, "db": (1,) * rows}
    kept = {"dx": 1, "dw": 2, "db": 1}
    summed = {}
    for name, gradient in gradients.items():
        core = gradient.shape[gradient.ndim - kept[name] :]
        summed[name] = _reduced(gradient, (*gradient.shape[:first], *inner[name], *core), wanted[name])
    return summed


def _reduced(gradient: Any, shape: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
    """A gradient with the axes of `shape`, summed over those along which `wanted` was broadcast."""
    if gradient.shape == wanted:
        return gradient
    if math.prod(shape) == math.prod(wanted):
        return gradient.reshape(wanted)
    return sum_to(gradient.reshape(_padded(shape, len(wanted))), wanted)


def _unfused_gradients(name: str, *operands: Any) -> list[Any]:
    """A fused backward pass as several operations, which have derivatives."""
    variant = backward_variants()[name]
    given = dict(zip(variant.operands, operands, strict=True))
    dz = given["dy"]
    if variant.formula:
        alpha = [given["alpha"]] if variant.alpha else []
        dz = ufunc(variant.formula, dz, given["y"], *alpha)
    results = []
    for gradient in variant.wanted:
        if gradient == "dx":
            results.append(ufunc("linear_no_bias", dz, given["w"].mT[..., None, :, :]))
        elif gradient == "dw":
            results.append(ufunc("linear_no_bias", given["x"].mT, dz[..., None, :, :]))
        else:
            results.append(ufunc("linear_backward_only_db", dz))
    return results
