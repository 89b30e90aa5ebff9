"""The backward passes of convolutions on arrays of a device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrelu import convolution_operands
from fastrelu.cuda import elementwise, patches, plans
from fastrelu.cuda.arrays import DeviceArray
from fastrelu.cuda.convolution import Options, check_output, check_positions, common_type, deliver, images, place, slopes
from fastrelu.cuda.kernels.convolution_gradients import channel_sums
from fastrelu.cuda.kernels.linear import Result
from fastrelu.cuda.kernels.operands import Operand, sums_of
from fastrelu.cuda.linear import parameter, refuse_unaligned
from fastrelu.cuda.memory import PACKET
from fastrelu.cuda.owned import ITEMSIZES
from fastrelu.cuda.plans import Draft, Number
from fastrelu.cuda.products import Matrix, add_sums
from fastrelu.operations import KC

_FAR = 1e30
_MOST_BLOCKS = 0xFFFF
"""Of a grid along its second axis."""


def call(
    name: str,
    operands: Mapping[str, Any],
    options: Options,
    wanted: tuple[str, ...],
    accumulate: tuple[str, ...],
    outputs: Mapping[str, Any],
) -> tuple[Any, Any, Any]:
    """Run the backward pass of a convolution where its operands are.

    Parameters
    ----------
    name : str
        The public function.
    operands : mapping
        dy, y, x, w and alpha, as far as they are given.
    options : tuple
        Stride, padding, dilation and groups.
    wanted, accumulate : tuple of str
        The gradients to calculate, and those of them that are added to what `outputs` holds.
    outputs : mapping
        Arrays for them; they may overlap the operands in any way.

    Returns
    -------
    tuple
        dx, dw and db; None for what is not wanted.

    Raises
    ------
    TypeError
        If types do not fit.
    ValueError
        If shapes do not fit.
    """
    options = convolution_operands.plain(name, *options)
    places = {f"out for {gradient}": array for gradient, array in outputs.items()}
    given = tuple(operand for operand in operands if operand != "alpha")
    alpha = operands.get("alpha")
    # Not so far from 0 that 0 times it might be NaN, in any type.
    keeps_zeros = alpha is None or (isinstance(alpha, int | float | np.floating) and bool(-_FAR < alpha < _FAR))
    how = name, given, wanted, accumulate, options, keeps_zeros
    found = dict(zip(wanted, plans.run(name, operands, places, _write, *how), strict=True))
    return found.get("dx"), found.get("dw"), found.get("db")


def _write(
    draft: Draft,
    name: str,
    given: tuple[str, ...],
    wanted: tuple[str, ...],
    accumulate: tuple[str, ...],
    options: Options,
    keeps_zeros: bool,
) -> tuple[DeviceArray, ...]:
    """The gradients that are wanted."""
    formula = name.removeprefix("conv2d").removeprefix("_") if "y" in given else ""
    held = {g: draft.arrays[f"out for {g}"] for g in wanted if f"out for {g}" in draft.arrays}
    sizes = {o: draft.arrays[o].shape if o in draft.arrays else () for o in given}
    geometry = convolution_operands.gradient_geometry(name, sizes, *options)
    arrays = {o: draft.arrays[o] for o in given if o in draft.arrays}
    shapes = {"dx": sizes.get("x", ()), "dw": sizes.get("w", ()), "db": sizes["dy"][-3:-2]}
    alphas = slopes(name, draft, shapes["db"])
    dtype = common_type(name, [*arrays.values(), *(held[g] for g in accumulate)])
    refuse_unaligned(name, draft)
    for gradient, array in held.items():
        check_output(name, f"out for {gradient}", array, shapes[gradient], dtype)
    together = sizes["dy"][0] if "dw" in wanted and len(sizes["dy"]) == 4 else 1  # whose positions one product takes
    check_positions(name, together * math.prod(sizes["dy"][-2:]))
    results, targets = {}, {}
    for gradient in wanted:
        others = [array for key, array in draft.arrays.items() if key != f"out for {gradient}"]
        results[gradient], target = place(draft, held.get(gradient), shapes[gradient], dtype, others)
        if gradient == "dw" and not target.is_contiguous:
            target = draft.empty(target.shape, dtype)
        if gradient in accumulate and target is not results[gradient]:
            elementwise.copy(draft, results[gradient], target)
        targets[gradient] = target
    dy, y = _alike(draft, arrays["dy"], arrays.get("y"), dtype)
    alpha = parameter(draft, dtype)
    for gradient, target in targets.items():
        result = Result(dtype, alpha=alphas.dtype, adds=gradient in accumulate)
        if not target.size:
            continue
        if gradient == "dx":
            passed = images(target), geometry, formula, result
            patches.input_gradient(draft, dy, y, arrays["w"], *passed, alpha=alpha, alphas=alphas, keeps_zeros=keeps_zeros)
        elif gradient == "dw":
            passed = target, geometry, formula, result
            patches.weight_gradient(draft, dy, y, images(arrays["x"]), *passed, alpha=alpha, alphas=alphas)
        else:
            _sum_channels(draft, dy, y, target, formula, result, alpha, alphas)
    for gradient, target in targets.items():
        deliver(draft, target, results[gradient])
    return tuple(results[gradient] for gradient in wanted)


def _alike(draft: Draft, dy: DeviceArray, y: DeviceArray | None, dtype: str) -> tuple[DeviceArray, DeviceArray | None]:
    """Images of dy and y that lie alike and are of one type, as the kernels read them; copies if they do not."""
    if y is None:
        return images(dy), None
    is_alike = all(a == b for a, b, n in zip(dy.strides, y.strides, dy.shape, strict=True) if n > 1)
    if dy.dtype == y.dtype and is_alike:
        return images(dy), images(y)
    return images(_plain(draft, dy, dtype)), images(_plain(draft, y, dtype))


def _plain(draft: Draft, array: DeviceArray, dtype: str) -> DeviceArray:
    """The array, or a copy, in C order and of a type."""
    if array.dtype == dtype and array.is_contiguous:
        return array
    copy = draft.empty(array.shape, dtype)
    elementwise.copy(draft, array, copy)
    return copy


def _sum_channels(
    draft: Draft,
    dy: DeviceArray,
    y: DeviceArray | None,
    db: DeviceArray,
    formula: str,
    result: Result,
    alpha: Number | float,
    alphas: Matrix,
) -> None:
    """Put the sums of dy over images and positions, or of the gradient that a formula makes of it, into db."""
    (count, n, height, width), (image, channel, row, column) = dy.shape, dy.strides
    if height == 1 or row == width * column:  # rows that follow each other are one long row
        height, width = 1, height * width
    positions = count * height * width
    kernel = channel_sums(Operand(dy.dtype, derivative=formula, of=dy.dtype if formula else ""), result)
    blocks, slab = max(-(-positions // KC), 1), -(-n * ITEMSIZES[sums_of(result.dtype)] // PACKET) * PACKET
    slabs = draft.scratch(blocks * slab)
    across, down, _ = kernel.threads
    steps = image, channel, row, column
    draft.launch(
        kernel,
        (-(-n // across), min(-(-blocks // down), _MOST_BLOCKS), 1),
        *(dy.pointer, *steps, dy.pointer if y is None else y.pointer, *steps),
        *(alpha, alphas.pointer, slabs.pointer, slab, positions, n, height, width),
    )
    delivery = db.pointer, 0, db.strides[0], alpha, alphas.pointer, 0, 0
    add_sums(draft, result, slabs.pointer, (1, n), slab, blocks, delivery)
