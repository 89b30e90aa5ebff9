"""The activations and their gradients inside compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic, overload, register_jitable
from numba.np.numpy_support import as_dtype

from fastrelu import activations
from fastrelu.jit import kinds
from fastrelu.jit.errors import ShapeError
from fastrelu.jit.source import OPTIONS, Operand, Result, array_call, compiled, declaration
from fastrelu.operations import KC, OPERATIONS, Operation


def register() -> None:
    for name in activations.__all__:
        function = getattr(activations, name)
        implement = _prelu_backward if name == "prelu_backward" else partial(_implementation, OPERATIONS[name])
        overload(function, jit_options=OPTIONS)(declaration(function, implement))


def _implementation(operation: Operation, parameters: str, arguments: dict[str, Any], dtype: Any = None) -> Callable[..., Any]:
    name, out = operation.name, kinds.plain(arguments.get("out"))
    given = [kinds.plain(arguments[i]) for i in operation.inputs]
    for argument, kind in zip(operation.inputs, given, strict=True):
        kinds.check(name, argument, kind)
    whole = {i for i, name in enumerate(operation.inputs) if name in operation.whole and kinds.is_whole(arguments[name])}
    dtype = dtype or kinds.element(operation, given, whole)
    if out is not None:
        kinds.check_output(name, "out", out, dtype)
    arrays = [kind for kind in given if isinstance(kind, types.Array)]
    if not arrays and out is None:
        return _on_numbers(operation, parameters, as_dtype(dtype).name)
    order = "F" if arrays and all(kind.layout == "F" and kind.ndim > 1 for kind in arrays) else "C"
    axes = max([kind.ndim for kind in arrays] if out is None else [out.ndim])
    call = f"fastrelu.{name}({', '.join('{}' if isinstance(kind, types.Array) else '1' for kind in given)}"
    return array_call(
        name,
        parameters,
        f"{name} {as_dtype(dtype).name}",
        [Operand(argument, kind, dtype) for argument, kind in zip(operation.inputs, given, strict=True)],
        [Result("out", out, dtype, axes, order)],
        call + (")" if out is None else ", out={})"),
        [
            (argument, kind)
            for argument, kind in zip((*operation.inputs, "out"), (*given, out), strict=True)
            if isinstance(kind, types.Array)
        ],
    )


def _on_numbers(operation: Operation, parameters: str, dtype: str) -> Callable[..., Any]:
    from fastrelu.kernels import formulas
    from fastrelu.kernels.vector import ELEMENTS

    element = replace(ELEMENTS[dtype], as_bits=not operation.arithmetic)
    source = "def {}({}):\n    return number(formula({}))\n".format(
        operation.name, parameters, ", ".join(f"vector({i})" for i in operation.inputs)
    )
    formula = getattr(formulas, operation.formula or operation.name)
    return compiled(operation.name, source, {"formula": formula, "vector": _vector(element), "number": _number(element)})


def _vector(element: Any) -> Callable[..., Any]:
    """A primitive that turns a number into a vector of one lane."""
    from fastrelu.kernels.vector import Vector

    vector, kind = Vector(element, 1), getattr(types, element.name)

    @intrinsic
    def convert(typing_context, number):
        def codegen(context, builder, sig, args):
            return builder.bitcast(context.cast(builder, args[0], number, kind), vector.llvm)

        return vector(number), codegen

    return convert


def _number(element: Any) -> Callable[..., Any]:
    """A primitive that turns a vector of one lane into a number."""
    kind = getattr(types, element.name)

    @intrinsic
    def convert(typing_context, vector):
        def codegen(context, builder, sig, args):
            return builder.bitcast(args[0], context.get_value_type(kind))

        return kind(vector), codegen

    return convert


_PRELU_BACKWARD = """
def prelu_backward(dy, x, alpha):
    {check}dx = gradient(dy, x, alpha)
    {check_alpha}terms = gradient_terms(dy, x)
    total = np.zeros({size}, dtype)
    block = np.zeros({size}, dtype)
    count = np.zeros({size}, np.int64)
    for index in np.ndindex(terms.shape):
        place = 0
{place}        block[place] += terms[index]
        count[place] += 1
        if count[place] == KC:
            total[place] += block[place]
            block[place] = 0
            count[place] = 0
    for place in range(len(total)):
        if count[place] > 0:
            total[place] += block[place]
    return dx, {returned}
"""

_PRELU_BACKWARD_OF_NUMBERS = """
def prelu_backward(dy, x, alpha):
    return gradient(dy, x, alpha), dtype.type(0) + gradient_terms(dy, x)
"""


def _prelu_backward(parameters: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    """The sums are those of `fastrelu.sums.sum_to`: in the order of the axes, in blocks of `KC`."""
    name, operation = "prelu_backward", OPERATIONS["prelu_backward"]
    given = [kinds.plain(arguments[i]) for i in operation.inputs]
    for argument, kind in zip(operation.inputs, given, strict=True):
        kinds.check(name, argument, kind)
    dy, x, alpha = given
    axes, alpha_axes = (kind.ndim if isinstance(kind, types.Array) else 0 for kind in (x, alpha))
    if isinstance(dy, types.Array) != isinstance(x, types.Array) or (isinstance(dy, types.Array) and dy.ndim != axes):
        kinds.fail(name, "dy", dy, f"of the shape of x, {x}")
    if alpha_axes > axes:
        kinds.fail(name, "alpha", alpha, f"such that it broadcasts to x, {x}")
    element = kinds.element(operation, given)
    dtype = as_dtype(element)
    terms = OPERATIONS["prelu_alpha_gradient"]
    kept = as_dtype(alpha.dtype) if isinstance(alpha, types.Array) and isinstance(alpha.dtype, types.Float) else dtype
    namespace = {
        **{"np": np, "KC": KC, "ShapeError": ShapeError, "dtype": dtype, "kept": kept},
        "gradient": register_jitable(_implementation(operation, parameters, arguments)),
        "gradient_terms": register_jitable(_implementation(terms, "dy, x", arguments, element)),
    }
    if not isinstance(x, types.Array):
        return compiled(name, _PRELU_BACKWARD_OF_NUMBERS, namespace)
    arrays = [(i, kind) for i, kind in zip(operation.inputs, given, strict=True) if isinstance(kind, types.Array)]
    lengths = [f"{i}.shape[{axis}]" for i, kind in arrays for axis in range(kind.ndim)]
    call = f"fastrelu.{name}({', '.join('{}' if isinstance(kind, types.Array) else '1' for kind in given)})"
    fails = f"raise ShapeError({', '.join([repr(call), repr(' '.join(str(kind.ndim) for _, kind in arrays)), *lengths])})"
    lead = axes - alpha_axes
    at = (f"index[{lead + axis}] if alpha.shape[{axis}] != 1 else 0" for axis in range(alpha_axes))
    place = "".join(f"        place = place * alpha.shape[{axis}] + ({i})\n" for axis, i in enumerate(at))
    source = _PRELU_BACKWARD.format(
        check=f"if dy.shape != x.shape:\n        {fails}\n    ",
        check_alpha=f"if dx.shape != x.shape:\n        {fails}\n    ",
        size="alpha.size" if alpha_axes else "1",
        place=place,
        returned="total.astype(kept).reshape(alpha.shape)" if alpha_axes else "kept.type(total[0])",
    )
    return compiled(name, source, namespace)
