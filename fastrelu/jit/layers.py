"""The fused layers inside compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload, register_jitable
from numba.np.numpy_support import as_dtype

from fastrelu import layers
from fastrelu.jit import binding, kinds
from fastrelu.jit.source import OPTIONS, Operand, Result, array_call, compiled, declaration
from fastrelu.operations import LAYERS


def register() -> None:
    for name in layers.__all__:
        function = getattr(layers, name)
        overload(function, jit_options=OPTIONS)(declaration(function, partial(_implementation, name)))


def _implementation(name: str, parameters: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    given = {i: kinds.plain(argument) for i, argument in arguments.items()}
    b, out, mask = given["b"], given["out"], given.get("mask")
    layer = LAYERS[name + "_no_bias" * (b is None) + "_mask" * (mask is not None)]
    cores = {"x": 1, "w": 2, "b": 1, "alpha": len(layer.alpha) - 2}
    for i in layer.inputs:
        kinds.check(name, i, given[i], numbers=i == "alpha")
        is_row_of_one = i == "alpha" and not isinstance(given[i], types.Array)
        if not is_row_of_one and given[i].ndim < cores[i]:
            kinds.fail(name, i, given[i], f"an array of at least {cores[i]} axes")
    dtype = kinds.element(layer, [given[i] for i in layer.inputs])
    if out is not None:
        kinds.check_output(name, "out", out, dtype)
    if mask is not None and (not isinstance(mask, types.Array) or mask.dtype != types.uint8 or not mask.mutable):
        kinds.fail(name, "mask", mask, "an array of uint8 that can be written to")
    axes = max(given[i].ndim - cores[i] for i in layer.inputs if isinstance(given[i], types.Array)) + 1
    if out is not None:
        axes = max(axes, out.ndim)
    if mask is not None:
        axes = max(axes, mask.ndim)
    operands = [
        Operand(i, given[i], dtype, is_row=layer.alpha == "(n)" and i == "alpha" and not isinstance(given[i], types.Array))
        for i in layer.inputs
    ]
    results = [Result("out", out, dtype, axes)]
    if mask is not None:
        results.append(Result("mask", mask, types.uint8, axes))
    values = ["{}" if isinstance(kind, types.Array) else "1" if i == "alpha" else "None" for i, kind in given.items()]
    call = ", ".join(f"{i}={value}" if i in ("out", "mask") else value for i, value in zip(given, values, strict=True))
    key = f"{layer.name} {as_dtype(dtype).name}"
    arrays = [(i, kind) for i, kind in given.items() if isinstance(kind, types.Array)]
    general = array_call(name, parameters, key, operands, results, f"fastrelu.{name}({call})", arrays)
    return _with_shortcut(general, parameters, key, operands, results) if _is_simple(given, dtype) else general


def _is_simple(given: dict[str, Any], dtype: Any) -> bool:
    """Whether there are only matrices and rows of one type, and nothing to broadcast or to cast."""
    x, w, b, alpha, out = (given.get(i) for i in ("x", "w", "b", "alpha", "out"))
    arrays = [array for array in (x, w, b, out) if array is not None]
    return (
        (x.ndim < 3 and w.ndim == 2)
        and (b is None or b.ndim == 1)
        and (out is None or out.ndim == x.ndim)
        and not isinstance(alpha, types.Array)
        and given.get("mask") is None
        and all(array.dtype == dtype for array in arrays)
    )


_SHORTCUT = """
def {name}({parameters}):
    place = table()
    if place != 0 and {tests}:
        result = {result}
        if call_loop(place, {operands}, result) == 0:
            return result
    return general({arguments})
"""


def _with_shortcut(
    general: Callable[..., Any], parameters: str, key: str, operands: list[Operand], results: list[Result]
) -> Callable[..., Any]:
    """An implementation that calls the loop at once where shapes fit: 25 ns before the loop begins instead of 50."""
    names = [operand.expression for operand in operands]
    axes, out = results[0].axes, results[0].kind
    shape = "(x.shape[0], w.shape[1])" if axes == 2 else "(w.shape[1],)"
    tests = ["x.shape[-1] == w.shape[0]", *["b.shape[0] == w.shape[1]"] * ("b" in names)]
    if out is not None:
        tests += [f"out.shape == {shape}", f"are_apart(out, {', '.join(names)})"]
    source = _SHORTCUT.format(
        name=general.__name__,
        parameters=parameters,
        tests=" and ".join(tests),
        result="out" if out is not None else f"np.empty({shape}, dtype)",
        operands=", ".join(names),
        arguments=", ".join(parameter.partition("=")[0] for parameter in parameters.split(", ")),
    )
    row = next((i for i, operand in enumerate(operands) if operand.is_row), -1)
    namespace = {
        "np": np,
        "dtype": as_dtype(results[0].dtype),
        "table": binding.table(key),
        "are_apart": binding.are_apart(len(operands) + 1),
        "call_loop": binding.call_loop([operand.dtype for operand in operands], row),
        "general": register_jitable(general),
    }
    return compiled(general.__name__, source, namespace)
