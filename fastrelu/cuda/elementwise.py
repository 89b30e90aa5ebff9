"""The elementwise operations on arrays of a device: types and shapes as on the CPU, the choice of a kernel, its launch.

What a call needs to know depends only on types, shapes, strides and alignments. It is kept, so that the next call of the
same kind has only addresses to fill in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np

from fastrelu import faults
from fastrelu.cuda.arrays import DeviceArray, Work
from fastrelu.cuda.conversion import bits_of
from fastrelu.cuda.kernels.elementwise import LANES, NUMBER, ONE, Sweep, kernel
from fastrelu.cuda.kernels.places import divisors
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.layout import Axis, broadcast_strides, order_of, shared_axes
from fastrelu.cuda.memory import PACKET
from fastrelu.cuda.owned import ITEMSIZES
from fastrelu.operations import OPERATIONS
from fastrelu.ufuncs import element_of

BLOCKS = 1 << 16
"""Most blocks of a grid; beyond, each does several tiles. Enough of them that the multiprocessors share them evenly."""

NARROW = 1 << 31
"""From here on items and strides do not fit 32-bit places."""


class Layout(NamedTuple):
    """What the choice of a kernel depends on in an array."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    """Bytes from an address that is a multiple of 16."""


Operand = Layout | str
"""An array, or the type of a number: "int" and "float" for Python's."""


class _Result(NamedTuple):
    """What comes out of an operation on given operands."""

    calculated: tuple[str, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...] | None


class _Plan(NamedTuple):
    """A launch, but for the addresses."""

    kernel: Kernel
    blocks: int
    before: tuple[int, ...]
    starts: tuple[int, ...]
    after: tuple[int, ...]


def call(name: str, operands: tuple[Any, ...], out: Any = None, kwargs: dict[str, Any] | None = None) -> Any:
    """Run an elementwise operation where its operands are.

    Parameters
    ----------
    name : str
        The operation.
    operands : tuple
        Its operands: arrays on one device and numbers, at least one array.
    out : array, optional
        Where to put the result; it may overlap the operands in any way.
    kwargs : dict, optional
        Only ``dtype``.

    Returns
    -------
    array
        Of the library of the first array.

    Raises
    ------
    TypeError
        If types do not fit, or there is another keyword.
    ValueError
        If shapes do not fit.
    """
    dtype = None
    for keyword, value in (kwargs or {}).items():
        if keyword != "dtype":
            raise TypeError(f"{name}: {keyword} is not available for arrays on a CUDA device")
        dtype = None if value is None else np.dtype(value).name
    with Work(name, dict(zip(OPERATIONS[name].inputs, operands, strict=True)), {"out": out}) as work:
        result = calculate(work, name, dtype)
    return work.result(result)


def calculate(work: Work, name: str, dtype: str | None = None) -> DeviceArray:
    """Run an operation on the operands of `work`, in the type `dtype` if one is prescribed, into its ``out`` or a new array."""
    operation = OPERATIONS[name]
    given = [work.arrays.get(n, work.numbers.get(n)) for n in operation.inputs]
    kinds = tuple(map(_kind, given))
    calculated, shape, order = _result(name, kinds, dtype)
    numbers = [None if isinstance(n, DeviceArray) else _bits(name, i, n, calculated[i]) for i, n in enumerate(given)]
    result = work.arrays.get("out")
    is_new = result is None
    if result is None:
        result = work.empty(shape, calculated[-1], order)
    else:
        check_output(name, result, calculated[-1], shape)
    run(work, operation.formula or name, operation.arithmetic, calculated, given, numbers, result, is_new)
    return result


def run(
    work: Work,
    formula: str,
    arithmetic: bool,
    calculated: tuple[str, ...],
    operands: Sequence[Any],
    numbers: Sequence[int | None],
    result: DeviceArray,
    is_new: bool = False,
) -> None:
    """Put a formula of operands into `result`, to whose shape they broadcast; where they overlap it, by way of a copy.

    Parameters
    ----------
    work : Work
        The call.
    formula : str
        Its name in `fastrelu.kernels.formulas`; "" copies.
    arithmetic : bool
        Whether it calculates rather than selects.
    calculated : tuple of str
        The types of its operands and its result.
    operands : sequence of DeviceArray
        Its operands; of a number, anything.
    numbers : sequence of int or None
        The bits of each operand that is a number, as a signed word; None for an array.
    result : DeviceArray
        Where to put the result, of any type.
    is_new : bool, optional
        Whether nothing else is known to lie there.
    """
    layouts = tuple(None if n is not None else _layout(o) for o, n in zip(operands, numbers, strict=True))
    places = [o.pointer if n is None else n for o, n in zip(operands, numbers, strict=True)]
    target = result
    if not is_new and any(_disturbs(result, o) for o, n in zip(operands, numbers, strict=True) if n is None):
        target = work.empty(result.shape, result.dtype)
    _launch(work, formula, arithmetic, calculated, layouts, places, target)
    if target is not result:
        _launch(work, "", False, (result.dtype, result.dtype), (_layout(target),), [target.pointer], result)


def _launch(
    work: Work,
    formula: str,
    arithmetic: bool,
    calculated: tuple[str, ...],
    layouts: tuple[Any, ...],
    places: list[int],
    result: DeviceArray,
) -> None:
    """Put a formula into `result`; `places` are the addresses of operands, and the bits of those without a layout."""
    plan = _plan(formula, arithmetic, calculated, layouts, _layout(result))
    if plan is not None:
        shifted = [place + start for place, start in zip((*places, result.pointer), plan.starts, strict=True)]
        work.launch(plan.kernel, (plan.blocks, 1, 1), *plan.before, *shifted, *plan.after)


def _layout(array: DeviceArray) -> Layout:
    return Layout(array.dtype, array.shape, array.strides, array.pointer % PACKET)


def _kind(operand: Any) -> Operand:
    if isinstance(operand, DeviceArray):
        return _layout(operand)
    return type(operand).__name__ if type(operand) in (int, float) else str(operand.dtype.name)


def _disturbs(result: DeviceArray, operand: DeviceArray) -> bool:
    """Whether writing the result element by element may change what is yet to be read."""
    (first, end), (its_first, its_end) = _span(_layout(result)), _span(_layout(operand))
    apart = operand.pointer - result.pointer
    if first >= its_end + apart or its_first + apart >= end:
        return False
    if apart or result.itemsize != operand.itemsize:
        return True
    strides = broadcast_strides(operand.shape, operand.strides, result.shape)
    return any(a != b for a, b, n in zip(strides, result.strides, result.shape, strict=True) if n > 1)


@lru_cache(maxsize=4096)
def _span(array: Layout) -> tuple[int, int]:
    """Where an array begins and ends, relative to its first element."""
    if 0 in array.shape:
        return 0, 0
    ends = [(length - 1) * stride for length, stride in zip(array.shape, array.strides, strict=True)]
    return sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends) + ITEMSIZES[array.dtype]


@lru_cache(maxsize=4096)
def _result(name: str, operands: tuple[Operand, ...], dtype: str | None) -> _Result:
    """Types, shape and order of the axes of the result, by NumPy's rules."""
    operation = OPERATIONS[name]
    shapes = {n: o.shape for n, o in zip(operation.inputs, operands, strict=True) if isinstance(o, Layout)}
    fault = faults.shapes_fault(name, shapes)
    if fault is not None:
        raise fault
    for n, o in zip(operation.inputs, operands, strict=True):
        if isinstance(o, Layout):
            _refuse_unaligned(name, n, o)
    shape = np.broadcast_shapes(*shapes.values())
    names = [o.dtype if isinstance(o, Layout) else o for o in operands]
    element = dtype if dtype is not None else _element(name, names)
    if dtype is not None:
        element_of(operation, [type(numpy_type(name, dtype))], True)
    calculated = operation.loop(element, 0).dtypes
    for operand, its, to in zip(operation.inputs, names, calculated, strict=False):
        if its not in ("int", "float") and not _casts(name, its, to):
            raise TypeError(f"{name}: {operand} must have a type that becomes {to} by casting rule 'same_kind', not {its}")
    full = next((o for o in operands if isinstance(o, Layout) and o.shape == shape), None)
    return _Result(calculated, shape, None if full is None else order_of(shape, full.strides))


def _element(name: str, names: list[str]) -> str:
    """The name of the type to calculate in."""
    operation = OPERATIONS[name]
    if len(set(names)) == 1 and names[0] in operation.dtypes:  # bfloat16 by itself does not need ml_dtypes
        return names[0]
    classes = [
        PythonNumber(int if n == "int" else float) if n in ("int", "float") else type(numpy_type(name, n)) for n in names
    ]
    try:
        return element_of(operation, classes, False)
    except np.exceptions.DTypePromotionError:
        raise TypeError(f"{name}: the types {' and '.join(dict.fromkeys(names))} have none in common") from None


class PythonNumber(NamedTuple):
    """The type of a Python number, as NumPy hands it to a promoter."""

    type: type


def numpy_type(name: str, dtype: str) -> np.dtype[Any]:
    """NumPy's type of a name; TypeError if only ml_dtypes has it, and is not installed."""
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(f"{name}: bfloat16 together with other types needs the package ml_dtypes") from None
        return cast("np.dtype[Any]", np.dtype(ml_dtypes.bfloat16))
    return np.dtype(dtype)


def _casts(name: str, source: str, target: str) -> bool:
    if source == target:
        return True
    return bool(np.can_cast(numpy_type(name, source), numpy_type(name, target), "same_kind"))


def check_output(name: str, out: DeviceArray, dtype: str, shape: tuple[int, ...]) -> None:
    """TypeError or ValueError if a result of a type and a shape does not fit into `out`."""
    _check_output(name, _layout(out), dtype, shape)


@lru_cache(maxsize=4096)
def _check_output(name: str, out: Layout, dtype: str, shape: tuple[int, ...]) -> None:
    fault = faults.shapes_fault(name, {"operands": shape, "out": out.shape})
    if fault is not None or np.broadcast_shapes(out.shape, shape) != out.shape:
        raise ValueError(f"{name}: out must have shape {shape} or one that it broadcasts to, not {out.shape}")
    if not _casts(name, dtype, out.dtype):
        raise TypeError(f"{name}: out must have a type that takes {dtype} by casting rule 'same_kind', not {out.dtype}")
    if any(stride == 0 and length > 1 for stride, length in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"{name}: out must have an element of its own in every place, and repeats some along an axis")
    _refuse_unaligned(name, "out", out)


def _refuse_unaligned(name: str, operand: str, array: Layout) -> None:
    if any(place % ITEMSIZES[array.dtype] for place in (array.offset, *array.strides)):
        raise ValueError(f"{name}: {operand} must have elements that are aligned to their size")


def _bits(name: str, i: int, number: Any, dtype: str) -> int:
    """The bits of a number as one of the type `dtype`, read as a signed word."""
    try:
        bits = bits_of(number, dtype)
    except OverflowError:
        operand = OPERATIONS[name].inputs[i]
        raise OverflowError(f"{name}: {operand} must be within the range of {dtype}, not {number}") from None
    return bits - (bits >> 63 << 64)


@lru_cache(maxsize=4096)
def _plan(
    formula: str, arithmetic: bool, calculated: tuple[str, ...], operands: tuple[Layout | None, ...], result: Layout
) -> _Plan | None:
    """The kernel for operands (None for a number) and a result, and all its arguments but the addresses; None if there is
    nothing to do.
    """
    if 0 in result.shape:
        return None
    arrays = [o for o in (*operands, result) if o is not None]
    stored = tuple(its if o is None else o.dtype for o, its in zip((*operands, result), calculated, strict=True))
    axes, starts = shared_axes(result.shape, [broadcast_strides(a.shape, a.strides, result.shape) for a in arrays])
    sizes = [ITEMSIZES[a.dtype] for a in arrays]
    inner = axes[-1] if axes else Axis(1, tuple(sizes))
    reads = [LANES if step == size else ONE for step, size in zip(inner.steps, sizes, strict=True)]
    offsets = [array.offset + start for array, start in zip(arrays, starts, strict=True)]
    if len(axes) <= 1 and all(step in (0, size) for step, size in zip(inner.steps, sizes, strict=True)) and reads[-1] == LANES:
        lanes, head = _packets(sizes, reads, offsets)
        head = min(head, inner.length)
        items, rest = divmod(inner.length - head, lanes)
        starts = tuple(s + head * size * (r == LANES) for s, size, r in zip(starts, sizes, reads, strict=True))
        spec = _spec(formula, arithmetic, calculated, stored, operands, reads, lanes)
        before, after = [items, head, rest], []
    else:
        lanes = _lanes(axes, sizes, reads, offsets)
        if lanes == 1:
            reads = [ONE] * len(reads)
        steps = tuple(step * lanes if read == LANES else step for step, read in zip(inner.steps, reads, strict=True))
        axes[-1] = Axis(inner.length // lanes, steps)
        if axes[-1].length == 1 and len(axes) > 1:
            del axes[-1]
        items = int(np.prod([axis.length for axis in axes], dtype=object))
        wide = items >= NARROW or any(abs(step) >= NARROW for axis in axes for step in axis.steps)
        spec = _spec(formula, arithmetic, calculated, stored, operands, reads, lanes, len(axes), wide)
        before = [items]
        dividing = divisors([axis.length for axis in axes], wide)
        after = (dividing or [0]) + [axis.steps[k] for k in range(len(arrays)) for axis in axes]
    blocks = max(1, min(BLOCKS, -(-items // spec.tile)))
    shifts = iter(starts)
    places = tuple(0 if o is None else next(shifts) for o in (*operands, result))
    return _Plan(kernel(spec), blocks, tuple(before), places, tuple(after))


def _spec(
    formula: str,
    arithmetic: bool,
    calculated: tuple[str, ...],
    stored: tuple[str, ...],
    operands: tuple[Layout | None, ...],
    reads: list[str],
    lanes: int,
    axes: int = 0,
    wide: bool = False,
) -> Sweep:
    of_arrays = iter(reads)
    all_reads = tuple(NUMBER if o is None else next(of_arrays) for o in operands)
    return Sweep(formula, arithmetic, calculated, stored, all_reads, lanes, axes, wide)


def _packets(sizes: list[int], reads: list[str], offsets: list[int]) -> tuple[int, int]:
    """How many elements of contiguous arrays make an item, and how many come before the first one that is aligned in all."""
    along = [(size, offset) for size, read, offset in zip(sizes, reads, offsets, strict=True) if read == LANES]
    lanes = PACKET // max(size for size, _ in along)
    heads = {-(offset // size) % lanes for size, offset in along}
    return (lanes, heads.pop()) if len(heads) == 1 else (1, 0)


def _lanes(axes: list[Axis], sizes: list[int], reads: list[str], offsets: list[int]) -> int:
    """How many elements make an item along the innermost of several axes, if they lie side by side and are always aligned."""
    if reads[-1] != LANES or any(read == ONE and step for read, step in zip(reads, axes[-1].steps, strict=True)):
        return 1
    along = [k for k, read in enumerate(reads) if read == LANES]
    lanes = PACKET // max(sizes[k] for k in along)
    while lanes > 1:
        places = [(offsets[k], *(axis.steps[k] for axis in axes[:-1])) for k in along]
        aligned = all(place % (lanes * sizes[k]) == 0 for k, its in zip(along, places, strict=True) for place in its)
        if aligned and axes[-1].length % lanes == 0:
            return lanes
        lanes //= 2
    return 1
