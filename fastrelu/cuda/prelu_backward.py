"""The gradients of `prelu` on arrays of a device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastrelu.cuda import plans
from fastrelu.cuda.arrays import DeviceArray
from fastrelu.cuda.elementwise import NARROW, calculate
from fastrelu.cuda.kernels.places import divisors
from fastrelu.cuda.kernels.prelu_backward import THREADS, BlockSums, block_sums, totals
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.layout import Axis, merged
from fastrelu.cuda.owned import ITEMSIZES
from fastrelu.cuda.plans import Draft
from fastrelu.operations import FLOATS, KC

Grad = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Type, shape and strides of dy or x."""


class _Launch(NamedTuple):
    """The launch of the sums of blocks, but for the addresses."""

    kernel: Kernel
    rows: int
    columns: int
    after: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """Blocks of a column."""
        return -(-self.rows // KC)


def call(dy: Any, x: Any, alpha: Any) -> tuple[Any, Any]:
    """Gradients of `prelu` with respect to its input and to alpha, with the same bits as on the CPU.

    Parameters
    ----------
    dy, x : array
        The gradient of the output, and the input: of one shape, on one device.
    alpha : array or number
        As in the forward pass.

    Returns
    -------
    dx, dalpha : array
        Of the library of the first array.

    Raises
    ------
    TypeError
        If types do not fit, or `dy` or `x` is no array on a device.
    ValueError
        If shapes do not fit.
    """
    dx, dalpha = plans.run("prelu_backward", {"dy": dy, "x": x, "alpha": alpha}, {}, _write)
    return dx, dalpha


def _write(draft: Draft) -> tuple[DeviceArray, DeviceArray]:
    name = "prelu_backward"
    for operand in ("dy", "x"):
        if operand not in draft.arrays:
            raise TypeError(f"{name}: {operand} must be an array on the device, as the others are, not a number")
    upstream, inputs, slopes = draft.arrays["dy"], draft.arrays["x"], draft.arrays.get("alpha")
    shape, kept = inputs.shape, () if slopes is None else slopes.shape
    if upstream.shape != shape:
        raise ValueError(f"{name}: dy must have the shape of x, {shape}, not {upstream.shape}")
    if len(kept) > len(shape) or any(s not in (1, n) for s, n in zip(kept[::-1], shape[::-1], strict=False)):
        raise ValueError(f"{name}: alpha must broadcast to the shape of x, {shape}, not have shape {kept}")
    dx = calculate(draft, name)
    given = draft.numbers["alpha"] if slopes is None else slopes.dtype
    dalpha = draft.empty(kept, given if given in FLOATS else dx.dtype)
    _sum(draft, upstream, inputs, "float64" if dx.dtype == "float64" else "float32", dalpha)
    return dx, dalpha


def _sum(draft: Draft, dy: DeviceArray, x: DeviceArray, dtype: str, dalpha: DeviceArray) -> None:
    """Put the gradient of alpha into `dalpha`, summed in the type `dtype`."""
    if not dalpha.size:
        return
    launch = _launch((dy.dtype, dy.shape, dy.strides), (x.dtype, x.shape, x.strides), dalpha.shape, dtype)
    threads = launch.blocks * launch.columns
    sums = draft.scratch(threads * ITEMSIZES[dtype])
    if threads:
        places = dy.pointer, x.pointer, sums.pointer
        draft.launch(launch.kernel, _grid(threads), threads, launch.rows, *places, *launch.after)
    final = totals(dtype, dalpha.dtype)
    draft.launch(final, (launch.columns, 1, 1), launch.columns, launch.blocks, sums.pointer, dalpha.pointer)


def _grid(threads: int) -> tuple[int, int, int]:
    return -(-threads // THREADS), 1, 1


def _launch(dy: Grad, x: Grad, kept: tuple[int, ...], dtype: str) -> _Launch:
    _, shape, _ = x
    lead = len(shape) - len(kept)
    axes = [Axis(n, steps) for n, steps in zip(shape, zip(dy[2], x[2], strict=True), strict=True)]
    is_kept = [axis >= lead and (kept[axis - lead] != 1 or shape[axis] == 1) for axis in range(len(shape))]
    columns = merged([axis for axis, keep in zip(axes, is_kept, strict=True) if keep])
    rows = merged([axis for axis, keep in zip(axes, is_kept, strict=True) if not keep]) or [Axis(1, (0, 0))]
    of_columns, of_rows = (math.prod(axis.length for axis in group) for group in (columns, rows))
    blocks = -(-of_rows // KC)
    largest = max((abs(step) for axis in (*columns, *rows) for step in axis.steps), default=0)
    wide = max(blocks * of_columns, of_rows, largest) >= NARROW
    spec = BlockSums((dy[0], x[0], dtype), len(columns), len(rows), wide)
    after: list[int] = []
    for lengths, group in (([blocks, *(axis.length for axis in columns)], columns), ([axis.length for axis in rows], rows)):
        after += divisors(lengths, wide) or [0]
        after += [axis.steps[k] for k in (0, 1) for axis in group] or [0]
    return _Launch(block_sums(spec), of_rows, of_columns, tuple(after))
