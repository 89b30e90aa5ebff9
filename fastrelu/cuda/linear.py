"""The fused layers on arrays of a device: types and shapes as on the CPU, and the products that they consist of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from fastrelu import faults
from fastrelu.cuda import elementwise, plans
from fastrelu.cuda.arrays import DeviceArray
from fastrelu.cuda.kernels.linear import Result
from fastrelu.cuda.kernels.mask import mask as mask_kernel
from fastrelu.cuda.kernels.operands import sums_of
from fastrelu.cuda.layout import broadcast_strides, shared_axes
from fastrelu.cuda.plans import Draft, Number
from fastrelu.cuda.products import MOST, NOTHING, Matrix, run
from fastrelu.device import check_precision
from fastrelu.operations import LAYERS, Backward, Layer
from fastrelu.ufuncs import element_of

_MASK_BLOCKS = 1 << 16


def call(name: str, x: Any, w: Any, b: Any, alpha: Any, out: Any, mask: Any, kwargs: dict[str, Any]) -> Any:
    """Run a fused layer where its operands are.

    Parameters
    ----------
    name : str
        The layer.
    x, w, b : array
        Operands, as for the public function; b may be None.
    alpha : array, number or None
        The parameter; None for a layer that has none.
    out : array, optional
        Where to put the result; it may overlap the operands in any way.
    mask : array of uint8, optional
        Where to put the bits of y > 0.
    kwargs : dict
        Keyword arguments: only ``precision``.

    Returns
    -------
    array, or a pair of them if there is a mask
        Of the library of the first array.

    Raises
    ------
    TypeError
        If types do not fit, or there is a keyword.
    ValueError
        If shapes do not fit.
    """
    precision = check_precision(name, kwargs)
    refuse_keywords(name, kwargs)
    operands, outputs = {"x": x, "w": w, "b": b, "alpha": alpha}, {"out": out, "mask": mask}
    results = plans.run(name, operands, outputs, _write, name, b is not None, precision)
    return results[0] if mask is None else results


def _write(draft: Draft, name: str, has_bias: bool, precision: str) -> tuple[DeviceArray, ...]:
    operation = LAYERS[name if has_bias else f"{name}_no_bias"]
    draft.precision = precision
    shapes = {o: draft.arrays[o].shape if o in draft.arrays else () for o in operation.inputs}
    batch, (k, n) = _check_shapes(name, operation, shapes, draft)
    dtype = common_type(operation, draft)
    refuse_unaligned(name, draft)
    given = draft.arrays.get("out")
    if given is None:
        y = draft.empty((*batch, n), dtype)
    else:
        elementwise.check_output(name, given, dtype, (*batch, n))
        batch, y = given.shape[:-1], given
    operands = [draft.arrays[o] for o in operation.inputs if o in draft.arrays]
    target = y
    if y.dtype != dtype or any(y.may_overlap(array) for array in operands):
        target = draft.empty(y.shape, dtype)
    _products(draft, operation, batch, k, n, dtype, target)
    bits = draft.arrays.get("mask")
    if bits is not None:
        _write_mask(draft, batch, n, target, bits)
    if target is not y:
        elementwise.copy(draft, target, y)
    return (y,) if bits is None else (y, bits)


def refuse_keywords(name: str, kwargs: Mapping[str, Any]) -> None:
    """A TypeError for the first keyword argument."""
    for keyword in kwargs:
        raise TypeError(f"{name}: {keyword} is not available for arrays on a CUDA device")


def refuse_unaligned(name: str, draft: Draft) -> None:
    """A ValueError for an array whose elements the device cannot read."""
    for operand, array in draft.arrays.items():
        if any(place % array.itemsize for place in (array.pointer, *array.strides)):
            raise ValueError(f"{name}: {operand} must have elements that are aligned to their size")


def common_type(
    operation: Layer | Backward,
    draft: Draft,
    arrays: Mapping[str, DeviceArray] | None = None,
    missing: DeviceArray | None = None,
) -> str:
    """The type to calculate in, as on the CPU.

    Parameters
    ----------
    operation : Layer or Backward
        The operation.
    draft : Draft
        Its operands.
    arrays : mapping, optional
        Those that are arrays, if they have other names in `draft`.
    missing : DeviceArray, optional
        What stands for operands that are not given.
    """
    arrays = draft.arrays if arrays is None else {**draft.arrays, **arrays}
    names = []
    for operand in operation.inputs:
        name = draft.numbers.get(operand)
        names.append(name or arrays.get(operand, missing).dtype)  # type: ignore[union-attr]  # a layer's are all given
    try:
        return element_of(operation, [elementwise.type_of(operation.base, name) for name in names], False)
    except np.exceptions.DTypePromotionError:
        of_arrays = dict.fromkeys(array.dtype for operand, array in arrays.items() if operand in operation.inputs)
        raise TypeError(f"{operation.base}: the types {' and '.join(of_arrays)} have none in common") from None


def parameter(draft: Draft, dtype: str) -> Number | float:
    """Alpha as a number of the type of the sums; 0 if it is an array, or there is none."""
    return Number("alpha", partial(_rounded, sums_of(dtype))) if "alpha" in draft.numbers else 0.0


def _rounded(dtype: str, value: Any) -> float:
    with np.errstate(all="ignore"):
        return float(np.dtype(dtype).type(value))


def matrix(array: DeviceArray, row: int, column: int, offset: int = 0) -> Matrix:
    """Some rows of an array."""
    return Matrix(array.pointer + offset, row, column, array.dtype)


def matrices(
    shape: tuple[int, ...], arrays: list[DeviceArray], cores: list[int], single: int | None
) -> tuple[int, list[tuple[int, ...]], Iterator[tuple[int, ...]]]:
    """Batch axes as rows of matrices, as many as possible, and as a loop.

    Parameters
    ----------
    shape : tuple of int
        The batch axes, of which none is empty.
    arrays : list of DeviceArray
        Operands and, last, the result.
    cores : list of int
        How many of the last axes of each are no batch.
    single : int or None
        The operand of which there is one matrix for all rows.

    Returns
    -------
    m : int
        The rows.
    steps : list of tuple of int
        For each array the bytes from a row to the next.
    offsets : iterator of tuple of int
        For each turn of the loop, where each array begins.
    """
    strides = [
        broadcast_strides(a.shape[: a.ndim - core], a.strides[: a.ndim - core], shape)
        for a, core in zip(arrays, cores, strict=True)
    ]
    axes, starts = shared_axes(shape, strides)
    rows = [axis for axis in axes if single is None or axis.steps[single] == 0]
    m, steps = 1, (0,) * len(arrays)
    if rows:
        longest = max(rows, key=lambda axis: axis.length)
        m, steps = longest.length, longest.steps
        axes = [axis for axis in axes if axis is not longest]
    turns = itertools.product(*(range(axis.length) for axis in axes))
    offsets = (
        tuple(start + sum(i * axis.steps[a] for i, axis in zip(turn, axes, strict=True)) for a, start in enumerate(starts))
        for turn in turns
    )
    return m, [steps], offsets


def _products(draft: Draft, operation: Layer, batch: tuple[int, ...], k: int, n: int, dtype: str, y: DeviceArray) -> None:
    if y.size == 0:
        return
    names = [operand for operand in operation.inputs if operand in draft.arrays]
    core = {"x": 1, "w": 2, "b": 1, "alpha": len(operation.alpha) > 2 and draft.arrays.get("alpha", y).ndim > 0}
    arrays = [*(draft.arrays[operand] for operand in names), y]
    m, (steps,), turns = matrices(batch, arrays, [*(int(core[operand]) for operand in names), 1], names.index("w"))
    places = {operand: i for i, operand in enumerate(names)}
    alpha = parameter(draft, dtype)
    result = Result(dtype, operation.formula, draft.arrays["alpha"].dtype if "alpha" in places else "")
    x, w = draft.arrays["x"], draft.arrays["w"]

    def rows_of(operand: str, offsets: tuple[int, ...]) -> Matrix:
        if operand not in places:
            return NOTHING
        array, i = draft.arrays[operand], places[operand]
        column = array.strides[-1] if core[operand] and array.shape[-1] != 1 else 0
        return matrix(array, steps[i], column, offsets[i])

    for offsets in turns:
        run(
            draft,
            (m, k, n),
            matrix(x, steps[0], x.strides[-1], offsets[0]),
            matrix(w, w.strides[-2], w.strides[-1], offsets[1]),
            matrix(y, steps[-1], y.strides[-1], offsets[-1]),
            result,
            bias=rows_of("b", offsets),
            alpha=alpha,
            alphas=rows_of("alpha", offsets),
        )


def _write_mask(draft: Draft, batch: tuple[int, ...], n: int, y: DeviceArray, bits: DeviceArray) -> None:
    """Write the bits of y > 0."""
    if bits.size == 0:
        return
    kernel = mask_kernel(y.dtype)
    m, (steps,), turns = matrices(batch, [y, bits], [1, 1], None)
    grid = (min(-(-m * bits.shape[-1] // kernel.threads[0]), _MASK_BLOCKS), 1, 1)
    for first, target in turns:
        places = (y.pointer + first, steps[0], y.strides[-1], bits.pointer + target, steps[1], bits.strides[-1])
        draft.launch(kernel, grid, *places, m, n)


def _check_shapes(
    name: str, operation: Layer, shapes: dict[str, tuple[int, ...]], draft: Draft
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The batch axes of a layer, and k and n; a ValueError if operands or the mask do not fit."""
    x, w = shapes["x"], shapes["w"]
    if len(x) < 1:
        raise ValueError(f"{name}: x must have at least one axis, (..., k), not shape {x}")
    if len(w) < 2:
        raise ValueError(f"{name}: w must have at least two axes, (..., k, n), not shape {w}")
    if x[-1] != w[-2]:
        raise ValueError(f"{name}: w must have shape (..., {x[-1]}, n) for x of shape {x}, not {w}")
    k, n = w[-2:]
    batches = {"x": x[:-1], "w": w[:-2]}
    for operand in ("b", "alpha"):
        shape = shapes.get(operand, ())
        is_row = operand in shapes and (operand == "b" or (operation.alpha == "(n)" and shape != ()))
        if is_row and shape[-1:] != (n,):
            raise ValueError(f"{name}: {operand} must have shape (..., {n}) for w of shape {w}, not {shape}")
        batches[operand] = shape[:-1] if is_row else shape
    fault = faults.batch_fault(name, shapes, batches)
    if fault is not None:
        raise fault
    batch = np.broadcast_shapes(*batches.values())
    if max(k, n) > MOST:
        raise ValueError(f"{name}: k and n must be at most {MOST} on a CUDA device, not {k} and {n}")
    mask = draft.arrays.get("mask")
    if mask is not None:
        if mask.dtype != "uint8":
            raise TypeError(f"{name}: mask must be an array of uint8, not {mask.dtype}")
        out = draft.arrays.get("out")
        allowed = (*(batch if out is None else out.shape[:-1]), -(-n // 8))
        if mask.shape != allowed:
            raise ValueError(f"{name}: mask must have shape {allowed}, not {mask.shape}")
    return batch, (k, n)
