"""The fused layers inside compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba.core import types
from numba.extending import overload
from numba.np.numpy_support import as_dtype

from fastrelu import layers
from fastrelu.jit import kinds
from fastrelu.jit.binding import are_apart, call_loop
from fastrelu.jit.source import OPTIONS, Operand, Result, array_call, declaration
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
    return array_call(
        name,
        parameters,
        f"{layer.name} {as_dtype(dtype).name}",
        operands,
        results,
        f"fastrelu.{name}({call})",
        [(i, kind) for i, kind in given.items() if isinstance(kind, types.Array)],
        shortcut=_shortcut(given, dtype),
        names={"are_apart": are_apart, "call_loop": call_loop([o.dtype for o in operands], 3 if layer.alpha == "(n)" else -1)},
    )


def _shortcut(given: dict[str, Any], dtype: Any) -> str:
    """Lines for matrices and rows that need no broadcasting: 10 ns instead of 50 before the loop begins."""
    x, w, b, alpha, out = (given.get(i) for i in ("x", "w", "b", "alpha", "out"))
    alpha_axes = alpha.ndim if isinstance(alpha, types.Array) else 0
    is_simple = x.ndim < 3 and w.ndim == 2 and (b is None or b.ndim == 1) and alpha_axes == 0
    if not is_simple or given.get("mask") is not None or any(a is not None and a.dtype != dtype for a in (x, w, b, out)):
        return ""
    if isinstance(alpha, types.Array) or (out is not None and out.ndim != x.ndim):
        return ""
    rows = "x.shape[0], " * (x.ndim - 1)
    tests = ["x.shape[-1] == w.shape[0]", *["b.shape[0] == w.shape[1]"] * (b is not None)]
    if out is not None:
        tests += [f"out.shape == ({rows}w.shape[1],)", "are_apart(out, operands)"]
    return (
        f"    if {' and '.join(tests)}:\n"
        f"        result = {f'np.empty(({rows}w.shape[1],), result_dtype0)' if out is None else 'out'}\n"
        "        if call_loop(place, operands, result) == 0:\n"
        "            return result\n"
    )
