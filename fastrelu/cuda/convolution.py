"""Convolutions on arrays of a device: types and shapes as on the CPU, and the products that they consist of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastrelu import convolution_operands
from fastrelu.cuda import elementwise, patches, plans
from fastrelu.cuda.arrays import DeviceArray
from fastrelu.cuda.kernels.linear import Result
from fastrelu.cuda.kernels.operands import sums_of
from fastrelu.cuda.linear import parameter, refuse_unaligned
from fastrelu.cuda.plans import Draft
from fastrelu.cuda.products import NOTHING, Matrix
from fastrelu.operations import FLOATS

Options = tuple[Any, Any, Any, Any]
"""Stride, padding, dilation and groups, as the public function was given them."""


def call(name: str, operands: Mapping[str, Any], options: Options, out: Any) -> Any:
    """Run a convolution where its operands are.

    Parameters
    ----------
    name : str
        The public function.
    operands : mapping
        x, w, b and alpha, as for the public function; b may be None.
    options : tuple
        Stride, padding, dilation and groups.
    out : array, optional
        Where to put the result; it may overlap the operands in any way.

    Returns
    -------
    array
        Of the library of the first array.

    Raises
    ------
    TypeError
        If types do not fit.
    ValueError
        If shapes do not fit.
    """
    options = convolution_operands.plain(name, *options)
    (y,) = plans.run(name, operands, {"out": out}, _write, name, operands["b"] is not None, options)
    return y


def _write(draft: Draft, name: str, has_bias: bool, options: Options) -> tuple[DeviceArray]:
    names = ("x", "w", "b") if has_bias else ("x", "w")
    shapes = {o: draft.arrays[o].shape if o in draft.arrays else () for o in names}
    geometry, shape = convolution_operands.geometry(name, shapes["x"], shapes["w"], *options)
    if has_bias:
        convolution_operands.check_bias(name, shapes["b"], shapes["w"])
    alphas = slopes(name, draft, shapes["w"][:1], geometry.groups)
    arrays = {o: draft.arrays[o] for o in names}
    dtype = common_type(name, arrays.values())
    refuse_unaligned(name, draft)
    out = draft.arrays.get("out")
    if out is not None:
        check_output(name, "out", out, shape, dtype)
        if name == "conv2d_prelu" and out.dtype != dtype:
            dtype = sums_of(dtype)  # halves are rounded once, behind the slopes
    y, target = place(draft, out, shape, dtype, [array for operand, array in draft.arrays.items() if operand != "out"])
    if target.size:
        check_positions(name, math.prod(shape[-2:]))
        formula = name.removeprefix("conv2d").removeprefix("_").replace("prelu", "leaky_relu")
        result, alpha = Result(dtype, formula, alphas.dtype), parameter(draft, dtype)
        x, w, b = images(arrays["x"]), arrays["w"], arrays.get("b")
        patches.forward(draft, x, w, b, images(target), geometry, result, alpha=alpha, alphas=alphas)
    deliver(draft, target, y)
    return (y,)


def common_type(name: str, arrays: Iterable[DeviceArray]) -> str:
    """The type to calculate in, as on the CPU."""
    dtypes = [*dict.fromkeys(array.dtype for array in arrays)]
    if len(dtypes) == 1 and dtypes[0] in FLOATS:  # bfloat16 by itself does not need ml_dtypes
        return dtypes[0]
    try:
        return str(convolution_operands.common_type(elementwise.numpy_type(name, dtype) for dtype in dtypes))
    except np.exceptions.DTypePromotionError:
        raise TypeError(f"{name}: the types {' and '.join(dtypes)} have none in common") from None


def slopes(name: str, draft: Draft, outputs: tuple[int, ...], groups: int = 1) -> Matrix:
    """The parameter of the activation, if it is an array on the device, for the output channels of each group."""
    alpha = draft.arrays.get("alpha")
    shape = () if alpha is None else alpha.shape
    if name == "conv2d_prelu":
        convolution_operands.check_slopes(name, shape, outputs)
    elif shape:
        raise ValueError(f"{name}: alpha must be a single value, not of shape {shape}")
    if alpha is None:
        return NOTHING
    step = alpha.strides[0] if shape else 0
    return Matrix(alpha.pointer, step, 0, alpha.dtype, group=outputs[0] // groups * step)


def images(array: DeviceArray) -> DeviceArray:
    """Images, also of a single one."""
    if array.ndim == 4:
        return array
    return replace(array, shape=(1, *array.shape), strides=(0, *array.strides))


def check_positions(name: str, positions: int) -> None:
    """A ValueError if the kernels do not have numbers for all positions of a product."""
    if positions > patches.MOST_POSITIONS:
        raise ValueError(f"{name}: at most {patches.MOST_POSITIONS} positions are taken on a CUDA device, not {positions}")


def check_output(name: str, what: str, out: DeviceArray, shape: tuple[int, ...], dtype: str) -> None:
    """Check an array that was given for a result."""
    casts = dtype == out.dtype or np.can_cast(
        elementwise.numpy_type(name, dtype), elementwise.numpy_type(name, out.dtype), "same_kind"
    )
    convolution_operands.check_output(name, what, (out.shape, out.dtype), (shape, dtype), casts)
    if any(stride == 0 and length > 1 for stride, length in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"{name}: {what} must have an element of its own in every place")


def place(
    draft: Draft, out: DeviceArray | None, shape: tuple[int, ...], dtype: str, others: Iterable[DeviceArray]
) -> tuple[DeviceArray, DeviceArray]:
    """A result, and where it is calculated: there, or in an array of its own if that has another type or overlaps others."""
    if out is None:
        made = draft.empty(shape, dtype)
        return made, made
    if out.dtype != dtype or any(map(out.may_overlap, others)):
        return out, draft.empty(shape, dtype)
    return out, out


def deliver(draft: Draft, target: DeviceArray, result: DeviceArray) -> None:
    """Copy what was calculated beside the result."""
    if target is not result:
        elementwise.copy(draft, target, result)
