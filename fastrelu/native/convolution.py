"""Convolutions of arrays whose shapes and types have been checked.

Importing this module needs neither Numba nor llvmlite.
"""

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrelu.native import plan, target
from fastrelu.native.matrix import Tiling
from fastrelu.native.routine import address, routine
from fastrelu.threads import get_num_threads

Array = npt.NDArray[np.generic]
Words = tuple[int, list[npt.NDArray[np.int64]]]

# Plans that are kept: a network has a few dozen different layers.
PLANS = 512


@dataclass(frozen=True)
class Geometry:
    """Where a kernel meets its input, as in `torch.nn.functional.conv2d`."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, left, bottom, right
    dilation: tuple[int, int]
    groups: int


def _make(job: plan.Job, formula: str, derivative: str | None, dtype: str) -> Words:
    from fastrelu.native.loops import addresses_of_patches

    words, lists = plan.make(job, addresses_of_patches(formula, derivative, dtype, target.vector_bytes()))
    return address(words), [words, *lists]


def optional_address(array: Array | None) -> int:
    """The address of an array, 0 for none."""
    return 0 if array is None else address(array)


def parameter(alpha: float, sums: str) -> Any:
    """A parameter in the type of the sums, for kernels that read it."""
    return ctypes.c_double(alpha) if sums == "float64" else ctypes.c_float(alpha)


def _run(
    words: Words, x: Array, second: Array | None, weight: Array, bias: Array | None, alpha: Any, y: int, held: int
) -> None:
    # The words 4 and 5 are the kernel's own.
    routine("convolution", "build")(
        *(words[0], address(x), optional_address(second), address(weight), 0, 0),
        *(optional_address(bias), ctypes.addressof(alpha), y, held),
    )


@lru_cache(PLANS)
def _forward_plan(
    x: tuple[int, ...],
    steps: tuple[int, ...],
    w: tuple[int, ...],
    y: tuple[int, ...],
    out: tuple[int, ...],
    geometry: Geometry,
    formula: str,
    dtype: np.dtype[np.generic],
    threads: int,
) -> tuple[Words, str]:
    """A plan, and the type of the sums."""
    top, left, _, _ = geometry.padding
    taps = [
        tuple(t * dilation - before for t in range(count))
        for count, dilation, before in zip(w[2:], geometry.dilation, (top, left), strict=True)
    ]
    axes = [plan.Axis(*each) for each in zip(y[2:], x[2:], geometry.stride, taps, strict=True)]
    job = plan.Job(
        rows=axes[0],
        columns=axes[1],
        images=x[0],
        groups=geometry.groups,
        channels=w[1],
        m=w[0] // geometry.groups,
        source=(steps[0], steps[1], steps[2], steps[3]),
        second=None,
        out=(out[0], out[1], out[2], out[3]),
        tiling=Tiling(dtype.name, target.vector_bytes()),
        threads=threads,
    )
    return _make(job, formula, None, dtype.name), job.tiling.sum_dtype


def forward(x: Array, w: Array, b: Array | None, y: Array, geometry: Geometry, formula: str, alpha: float) -> None:
    """Write f(conv2d(x, w) + b) to `y`.

    Parameters
    ----------
    x, w, b : ndarray
        (N, C, H, W), (O, C / groups, KH, KW), and (O,) or None; of one float type in native byte order, aligned, with any
        strides. No size is 0.
    y : ndarray
        (N, O, OH, OW), C-contiguous.
    geometry : Geometry
        Stride, padding, dilation and groups.
    formula : str
        f, by its name in `fastrelu.kernels.formulas`; "" for the identity.
    alpha : float
        Its parameter, if it has one.
    """
    threads = get_num_threads()
    words, sums = _forward_plan(x.shape, x.strides, w.shape, y.shape, y.strides, geometry, formula, y.dtype, threads)
    weight = np.ascontiguousarray(w, sums)
    bias = None if b is None else np.ascontiguousarray(b, sums)
    _run(words, x, None, weight, bias, parameter(alpha, sums), address(y), 0)


@lru_cache(PLANS)
def _input_plan(
    dy: tuple[int, ...],
    steps: tuple[int, ...],
    second: tuple[int, int, int, int] | None,
    w: tuple[int, ...],
    dx: tuple[int, ...],
    out: tuple[int, ...],
    geometry: Geometry,
    formula: str,
    dtype: np.dtype[np.generic],
    threads: int,
) -> tuple[Words, list[tuple[slice, slice]], str]:
    """A plan, the rows and columns of the kernel that each of its grids needs, and the type of the sums."""
    tiling = Tiling(dtype.name, target.vector_bytes())
    top, left, _, _ = geometry.padding

    def axes(n: int, before: int) -> list[tuple[plan.Axis, slice]]:
        """For each grid along an axis what it reads of dy, and the taps of the kernel that it needs."""
        stride, dilation = geometry.stride[n], geometry.dilation[n]
        found = []
        for phase in range(min(stride, dx[2 + n])):
            used = [t for t in range(w[2 + n]) if (phase + before - t * dilation) % stride == 0]
            taps = tuple((phase + before - t * dilation) // stride for t in used)
            found.append((plan.Axis(len(range(phase, dx[2 + n], stride)), dy[2 + n], 1, taps), _as_slice(used)))
        return found

    def union(axes: list[tuple[plan.Axis, slice]]) -> plan.Axis:
        """What all grids read."""
        return plan.Axis(axes[0][0].size, axes[0][0].source, 1, tuple(sorted({t for axis, _ in axes for t in axis.taps})))

    rows, columns = axes(0, top), axes(1, left)
    grids, used = [], []
    for i, (its_rows, used_rows) in enumerate(rows):
        for j, (its_columns, used_columns) in enumerate(columns):
            grids.append(plan.Grid(i * out[2] + j * out[3], its_rows, its_columns))
            used.append((used_rows, used_columns))
    job = plan.Job(
        rows=union(rows),
        columns=union(columns),
        images=dx[0],
        groups=geometry.groups,
        channels=w[0] // geometry.groups,
        m=w[1],
        source=(steps[0], steps[1], steps[2], steps[3]),
        second=second,
        out=(out[0], out[1], out[2] * geometry.stride[0], out[3] * geometry.stride[1]),
        tiling=tiling,
        threads=threads,
        grids=tuple(grids),
    )
    return _make(job, "", formula, dtype.name), used, tiling.sum_dtype


def _as_slice(numbers: list[int]) -> slice:
    """Evenly spaced numbers as a slice."""
    if not numbers:
        return slice(0, 0)
    return slice(numbers[0], numbers[-1] + 1, numbers[1] - numbers[0] if len(numbers) > 1 else 1)


def _swapped(w: Array, used: list[tuple[slice, slice]], groups: int) -> Array:
    """For each grid the weight that it needs, contiguous, with the channels of each group before its outputs; one after the
    other.
    """
    outputs, channels = len(w) // groups, w.shape[1]
    result, start = np.empty(w.size, w.dtype), 0
    for rows, columns in used:
        part = np.ascontiguousarray(w[..., rows, columns])
        if part.size == w.size and (outputs == 1 or channels == 1):
            return part
        swapped = result[start : start + part.size]
        start += part.size
        if outputs == 1 or channels == 1:
            swapped[:] = part.ravel()
        elif part.size:
            kernel = part.shape[2] * part.shape[3] * part.itemsize
            routine("swapped_weight", "build")(address(part), address(swapped), groups, outputs, channels, kernel)
    return result


def input_gradient(
    dy: Array,
    y: Array | None,
    w: Array,
    dx: Array,
    geometry: Geometry,
    formula: str,
    alpha: float,
    held: Array | None,
) -> None:
    """Write the gradient of the input to `dx`.

    Parameters
    ----------
    dy, y, w : ndarray
        As in `forward`; y, what the layer put out, is None if the formula is "".
    dx : ndarray
        (N, C, H, W), C-contiguous.
    geometry : Geometry
        Stride, padding, dilation and groups.
    formula : str
        What makes dz of dy and y, by its name in `fastrelu.kernels.formulas`; "" if it is dy.
    alpha : float
        Its parameter, if it has one.
    held : ndarray or None
        What dx is added to. May be `dx` itself.
    """
    second = None if y is None else y.strides
    words, used, sums = _input_plan(
        dy.shape, dy.strides, second, w.shape, dx.shape, dx.strides, geometry, formula, dx.dtype, get_num_threads()
    )
    weight = _swapped(np.ascontiguousarray(w, sums), used, geometry.groups)
    added = None if held is None else np.ascontiguousarray(held)
    _run(words, dy, y, weight, None, parameter(alpha, sums), address(dx), optional_address(added))
