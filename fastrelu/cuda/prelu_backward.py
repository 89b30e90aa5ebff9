"""The gradients of `prelu` on arrays of a device."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from fastrelu.cuda.arrays import DeviceArray, Work
from fastrelu.cuda.elementwise import NARROW, calculate
from fastrelu.cuda.kernels.places import divisors
from fastrelu.cuda.kernels.prelu_backward import THREADS, BlockSums, block_sums, totals
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.layout import Axis, merged
from fastrelu.cuda.owned import ITEMSIZES
from fastrelu.operations import FLOATS, KC

Grad = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Type, shape and strides of dy or x."""


class _Plan(NamedTuple):
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
    name = "prelu_backward"
    with Work(name, {"dy": dy, "x": x, "alpha": alpha}) as work:
        for operand in ("dy", "x"):
            if operand not in work.arrays:
                raise TypeError(f"{name}: {operand} must be an array on the device, as the others are, not a number")
        upstream, inputs, slopes = work.arrays["dy"], work.arrays["x"], work.arrays.get("alpha")
        shape, kept = inputs.shape, () if slopes is None else slopes.shape
        if upstream.shape != shape:
            raise ValueError(f"{name}: dy must have the shape of x, {shape}, not {upstream.shape}")
        if len(kept) > len(shape) or any(s not in (1, n) for s, n in zip(kept[::-1], shape[::-1], strict=False)):
            raise ValueError(f"{name}: alpha must broadcast to the shape of x, {shape}, not have shape {kept}")
        dx = calculate(work, name)
        its = work.numbers["alpha"] if slopes is None else slopes
        given = getattr(its, "dtype", dx.dtype)
        dtype = str(given) if str(given) in FLOATS else dx.dtype
        dalpha = work.empty(kept, dtype)
        _sum(work, upstream, inputs, "float64" if dx.dtype == "float64" else "float32", dalpha)
    return work.result(dx), work.result(dalpha)


def _sum(work: Work, dy: DeviceArray, x: DeviceArray, dtype: str, dalpha: DeviceArray) -> None:
    """Put the gradient of alpha into `dalpha`, summed in the type `dtype`."""
    if not dalpha.size:
        return
    plan = _plan((dy.dtype, dy.shape, dy.strides), (x.dtype, x.shape, x.strides), dalpha.shape, dtype)
    threads = plan.blocks * plan.columns
    sums = work.scratch(threads * ITEMSIZES[dtype])
    if threads:
        places = dy.pointer, x.pointer, sums.pointer
        work.launch(plan.kernel, _grid(threads), threads, plan.rows, *places, *plan.after)
    final = totals(dtype, dalpha.dtype)
    work.launch(final, (plan.columns, 1, 1), plan.columns, plan.blocks, sums.pointer, dalpha.pointer)


def _grid(threads: int) -> tuple[int, int, int]:
    return -(-threads // THREADS), 1, 1


@lru_cache(maxsize=1024)
def _plan(dy: Grad, x: Grad, kept: tuple[int, ...], dtype: str) -> _Plan:
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
    return _Plan(block_sums(spec), of_rows, of_columns, tuple(after))
