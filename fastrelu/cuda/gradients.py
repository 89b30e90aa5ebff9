"""The backward passes of the fused layers on arrays of a device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastrelu import faults
from fastrelu.cuda import elementwise, plans
from fastrelu.cuda.arrays import DeviceArray
from fastrelu.cuda.kernels.linear import Result
from fastrelu.cuda.layout import broadcast_strides
from fastrelu.cuda.linear import common_type, parameter, refuse_keywords, refuse_unaligned
from fastrelu.cuda.plans import Draft
from fastrelu.cuda.products import MOST, NOTHING, Gradient, Matrix, run, sum_rows
from fastrelu.device import check_precision
from fastrelu.gradients import check_shapes
from fastrelu.operations import GRADIENTS, backward

_CORES = {"dy": 2, "y": 2, "x": 2, "w": 2, "alpha": 0, "dx": 2, "dw": 2, "db": 1}
"""How many of the last axes of an array are no batch where w has a batch; where it has none, rows are one axis."""


def call(
    name: str,
    operands: Mapping[str, Any],
    wanted: tuple[str, ...],
    accumulate: tuple[str, ...],
    outputs: Mapping[str, Any],
    kwargs: Mapping[str, Any],
) -> tuple[Any, Any, Any]:
    """Run the backward pass of a fused layer where its operands are.

    Parameters
    ----------
    name : str
        The public function.
    operands : mapping
        dy, y, x, w and alpha, as far as they are needed.
    wanted, accumulate : tuple of str
        The gradients to calculate, and those of them that are added to what `outputs` holds.
    outputs : mapping
        Arrays for them; they may overlap the operands in any way.
    kwargs : mapping
        Keyword arguments: only ``precision``.

    Returns
    -------
    tuple
        dx, dw and db; None for what is not wanted.

    Raises
    ------
    TypeError
        If types do not fit, or there is a keyword.
    ValueError
        If shapes do not fit.
    """
    kwargs = {**kwargs}
    precision = check_precision(name, kwargs)
    refuse_keywords(name, kwargs)
    places = {f"out for {gradient}": array for gradient, array in outputs.items()}
    found = dict(zip(wanted, plans.run(name, operands, places, _write, name, wanted, accumulate, precision), strict=True))
    return found.get("dx"), found.get("dw"), found.get("db")


def _write(
    draft: Draft, name: str, wanted: tuple[str, ...], accumulate: tuple[str, ...], precision: str
) -> tuple[DeviceArray, ...]:
    """The gradients that are wanted."""
    draft.precision = precision
    given: dict[str, DeviceArray] = {o: draft.arrays[o] for o in ("dy", "y", "x", "w") if o in draft.arrays}
    held = {g: draft.arrays[f"out for {g}"] for g in wanted if f"out for {g}" in draft.arrays}
    is_mask = name == "linear_relu_backward" and "y" in given and given["y"].dtype == "uint8"
    shapes = _shapes(name, draft, given, held, is_mask)
    operation = backward(name, is_mask, GRADIENTS, tuple(g for g in GRADIENTS if g in accumulate))
    dtype = common_type(operation, draft, {**given, **{g: held[g] for g in accumulate}}, given["dy"])
    refuse_unaligned(name, draft)
    results, targets = {}, {}
    for gradient in wanted:
        results[gradient] = result = held.get(gradient) or draft.empty(shapes[gradient], dtype)
        others = [array for array in draft.arrays.values() if array is not result]
        targets[gradient] = result
        if gradient in held and (result.dtype != dtype or any(map(result.may_overlap, others))):
            targets[gradient] = target = draft.empty(result.shape, dtype)
            if gradient in accumulate:
                elementwise.copy(draft, result, target)
    pass_ = _Pass(draft, operation.formula, is_mask, dtype, accumulate)
    if "w" in given and given["w"].ndim > 2:
        pass_.batches(given, targets)
    else:
        pass_.rows(given, targets)
    for gradient, target in targets.items():
        if target is not results[gradient]:
            elementwise.copy(draft, target, results[gradient])
    return tuple(results[gradient] for gradient in wanted)


class _Pass:
    """The products of one call."""

    def __init__(self, draft: Draft, formula: str, is_mask: bool, dtype: str, accumulate: tuple[str, ...]) -> None:
        self.draft, self.formula, self.is_mask, self.accumulate = draft, formula, is_mask, accumulate
        alpha = draft.arrays.get("alpha")
        self.alpha = parameter(draft, dtype)
        self.result = Result(dtype, alpha="" if alpha is None else alpha.dtype)

    def rows(self, given: dict[str, DeviceArray], targets: dict[str, DeviceArray]) -> None:
        """All leading axes are one batch, in their order."""
        draft = self.draft
        matrices: dict[str, Matrix] = {}
        late: list[tuple[DeviceArray, DeviceArray]] = []
        for name, array in {**given, **targets}.items():
            if name in ("w", "dw", "db"):
                row = array.strides[-2] if name != "db" else 0
            else:
                step = _row_step(array)
                if step is None:
                    copy = draft.empty(array.shape, array.dtype)
                    if name != "dx" or "dx" in self.accumulate:
                        elementwise.copy(draft, array, copy)
                    if name == "dx":
                        late.append((copy, array))
                    array, step = copy, _row_step(copy)
                row = step or 0
            matrices[name] = Matrix(array.pointer, row, array.strides[-1], array.dtype)
        alpha = draft.arrays.get("alpha")
        k = given["w"].shape[0] if "w" in given else given["x"].shape[-1] if "x" in given else 0
        m, n = math.prod(given["dy"].shape[:-1]), given["dy"].shape[-1]
        self._run(matrices, NOTHING if alpha is None else Matrix(alpha.pointer, 0, 0, alpha.dtype), m, k, n)
        for copy, array in late:
            elementwise.copy(draft, copy, array)

    def batches(self, given: dict[str, DeviceArray], targets: dict[str, DeviceArray]) -> None:
        """A product for each matrix of the batch of w and the others."""
        arrays = {**given, **targets}
        alpha = self.draft.arrays.get("alpha")
        if alpha is not None:
            arrays["alpha"] = alpha
        cores = {name: array.ndim - _CORES[name] for name, array in arrays.items()}
        batch = np.broadcast_shapes(*(array.shape[: cores[name]] for name, array in arrays.items()))
        strides = {
            name: broadcast_strides(array.shape[: cores[name]], array.strides[: cores[name]], batch)
            for name, array in arrays.items()
        }
        (m, n), k = given["dy"].shape[-2:], given["w"].shape[-2]
        for turn in itertools.product(*map(range, batch)):
            matrices = {}
            for name, array in arrays.items():
                offset = sum(i * step for i, step in zip(turn, strides[name], strict=True))
                row = array.strides[-2] if _CORES[name] == 2 else 0
                column = array.strides[-1] if _CORES[name] else 0
                matrices[name] = Matrix(array.pointer + offset, row, column, array.dtype)
            self._run(matrices, matrices.get("alpha", NOTHING), m, k, n)

    def _run(self, matrices: dict[str, Matrix], alphas: Matrix, m: int, k: int, n: int) -> None:
        draft, dy = self.draft, matrices["dy"]
        gradient = None
        if self.formula:
            y = matrices["y"]
            gradient = Gradient(self.formula, replace(y, dtype="bits") if self.is_mask else y)
        options: dict[str, Any] = {"alpha": self.alpha, "alphas": alphas}
        results = {g: replace(self.result, adds=g in self.accumulate) for g in GRADIENTS}
        if "dx" in matrices:
            run(draft, (m, n, k), dy, matrices["w"].T, matrices["dx"], results["dx"], x_gradient=gradient, **options)
        if "dw" in matrices:
            run(draft, (k, m, n), matrices["x"].T, dy, matrices["dw"], results["dw"], w_gradient=gradient, **options)
        if "db" in matrices:
            sum_rows(draft, (m, n), dy, matrices["db"], results["db"], gradient=gradient, **options)


def _row_step(array: DeviceArray) -> int | None:
    """Bytes from a row to the next, with all axes but the last as rows in their order; None if that is not always the same."""
    if array.size == 0:
        return 0
    rows, step, length = 1, 0, 1
    for size, stride in zip(array.shape[-2::-1], array.strides[-2::-1], strict=True):
        if size == 1:
            continue
        if rows == 1:
            step, length = stride, size
        elif stride != step * length:
            return None
        else:
            length *= size
        rows *= size
    return step


def _shapes(
    base: str, draft: Draft, given: dict[str, DeviceArray], held: dict[str, DeviceArray], is_mask: bool
) -> dict[str, tuple[int, ...]]:
    """The shapes of the gradients; a ValueError if those of the arrays do not fit."""
    for operand in ("dy", "y", "x", "w"):
        if operand in draft.numbers:
            raise ValueError(f"{base}: {operand} must be an array on the device, not a number")
    check_shapes(base, given, held, is_mask)
    dy, w, x = given["dy"].shape, given["w"].shape if "w" in given else None, given["x"].shape if "x" in given else None
    n = dy[-1]
    k = w[-2] if w is not None else x[-1] if x is not None else 0
    alpha = draft.arrays["alpha"].shape if "alpha" in draft.arrays else ()
    if w is None or len(w) == 2:
        if alpha:
            raise ValueError(f"{base}: alpha must be a single value, not of shape {alpha}")
        batch: tuple[int, ...] = ()
        cores = {"dx": (*dy[:-1], k), "dw": (k, n), "db": (n,)}
        m = math.prod(dy[:-1])
    else:
        shapes = {operand: array.shape for operand, array in given.items()} | {"alpha": (*alpha, 1, 1)}
        batches = {operand: shape[:-2] for operand, shape in shapes.items()}
        fault = faults.batch_fault(base, shapes, batches)
        if fault is not None:
            raise fault
        batch = np.broadcast_shapes(*batches.values())
        m = dy[-2]
        cores = {"dx": (m, k), "dw": (k, n), "db": (n,)}
        for gradient, array in held.items():
            if array.shape != (*batch, *cores[gradient]):
                raise ValueError(f"{base}: out for {gradient} must have shape {(*batch, *cores[gradient])}, not {array.shape}")
    if max(m, k, n) > MOST:
        raise ValueError(f"{base}: rows and columns must be at most {MOST} on a CUDA device, not {m}, {k} and {n}")
    for gradient, array in held.items():
        if any(stride == 0 and length > 1 for stride, length in zip(array.strides, array.shape, strict=True)):
            raise ValueError(f"{base}: out for {gradient} must have an element of its own in every place")
    return {gradient: (*batch, *core) for gradient, core in cores.items()}
