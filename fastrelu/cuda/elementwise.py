"""The elementwise operations on arrays of a device: types and shapes as on the CPU, the choice of a kernel, its launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from fastrelu import faults
from fastrelu.cuda import plans
from fastrelu.cuda.arrays import DeviceArray, Work
from fastrelu.cuda.conversion import bits_of
from fastrelu.cuda.kernels.elementwise import LANES, NUMBER, ONE, SELECT, Sweep, kernel
from fastrelu.cuda.kernels.places import divisors
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.layout import Axis, broadcast_strides, order_of, shared_axes
from fastrelu.cuda.memory import PACKET
from fastrelu.cuda.owned import ITEMSIZES
from fastrelu.cuda.plans import Draft, Number
from fastrelu.operations import FLOATS, OPERATIONS
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


class Options(NamedTuple):
    """How results come about; the defaults are NumPy's.

    Attributes
    ----------
    dtype : str or None
        The type to calculate in; None for that of the operands.
    casting : str
        The rule by which operands become it, and it becomes the type of the output.
    order : str
        The order of the axes of a new array: K for that of the operands, C, F, or A for F if the operands have it and C else.
    anywhere : bool
        Whether any result is wanted; if not, an output stays as it is.
    """

    dtype: str | None = None
    casting: str = "same_kind"
    order: str = "K"
    anywhere: bool = True


_DEFAULTS = Options()


def call(name: str, operands: tuple[Any, ...], out: Any = None, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Run an elementwise operation where its operands are.

    Parameters
    ----------
    name : str
        The operation.
    operands : tuple
        Its operands: arrays on one device and numbers, at least one array.
    out : array, optional
        Where to put the result; it may overlap the operands in any way.
    kwargs : mapping, optional
        The keyword arguments of a ufunc: ``dtype``, ``casting``, ``order``, ``where`` (an array of bool on the device, or a
        single one), and ``subok``, which changes nothing.

    Returns
    -------
    array
        Of the library of the first array. Where ``where`` is False it holds what ``out`` has held; anything if there is none.

    Raises
    ------
    TypeError
        If types do not fit, or there is another keyword.
    ValueError
        If shapes do not fit.
    """
    given = dict(zip(OPERATIONS[name].inputs, operands, strict=True))
    options = _DEFAULTS
    if kwargs:
        options, where = _options(name, kwargs)
        if where is not None:
            given["where"] = where
    (result,) = plans.run(name, given, {"out": out}, _write, name, options)
    return result


def _options(name: str, kwargs: Mapping[str, Any]) -> tuple[Options, Any]:
    """The keyword arguments, and a ``where`` that is an array."""
    options, mask = _DEFAULTS, None
    for keyword, value in kwargs.items():
        if keyword == "dtype":
            options = options._replace(dtype=None if value is None else np.dtype(value).name)
        elif keyword == "casting":
            if value not in _RULES:
                raise ValueError(f"{name}: casting must be one of {_RULES}, not {value!r}")
            options = options._replace(casting=value)
        elif keyword == "order":
            if value not in ("C", "F", "A", "K"):
                raise ValueError(f"{name}: order must be one of 'C', 'F', 'A' and 'K', not {value!r}")
            options = options._replace(order=value)
        elif keyword == "where":
            if type(value) in (bool, np.bool_) or (type(value) is np.ndarray and value.shape == () and value.dtype == bool):
                options = options._replace(anywhere=bool(value))
            else:
                mask = value
        elif keyword != "subok":
            raise TypeError(f"{name}: {keyword} is not available for arrays on a CUDA device")
    return options, mask


_RULES = ("no", "equiv", "safe", "same_kind", "unsafe")


def _write(draft: Draft, name: str, options: Options) -> tuple[DeviceArray]:
    return (calculate(draft, name, options),)


def calculate(draft: Draft, name: str, options: Options = _DEFAULTS) -> DeviceArray:
    """Run an operation on the operands of a draft, into its ``out`` or a new array."""
    operation = OPERATIONS[name]
    given = {n: draft.arrays[n] for n in (*operation.inputs, "where") if n in draft.arrays}
    fault = faults.shapes_fault(name, {n: array.shape for n, array in given.items()})
    if fault is not None:
        raise fault
    for n, array in given.items():
        _refuse_unaligned(name, n, array)
    shape = np.broadcast_shapes(*(array.shape for array in given.values()))
    calculated = _types(name, {n: given[n].dtype if n in given else draft.numbers[n] for n in operation.inputs}, options)
    result = draft.arrays.get("out")
    is_new = result is None
    if result is None:
        result = draft.empty(shape, calculated[-1], _order(options.order, shape, list(given.values())))
    else:
        check_output(name, result, calculated[-1], shape, options.casting)
    if not options.anywhere:
        return result
    operands: list[Operand] = []
    for n, dtype in zip(operation.inputs, calculated, strict=False):
        operands.append(given.get(n, Number(n, partial(_bits, name, n, dtype))))
    formula, where = operation.formula or name, given.get("where")
    if where is None:
        run(draft, formula, operation.arithmetic, calculated, operands, result, is_new)
        return result
    whole = draft.empty(result.shape, calculated[-1])
    run(draft, formula, operation.arithmetic, calculated, operands, whole, True)
    run(draft, SELECT, False, ("uint8", *[result.dtype] * 3), [where, whole, result], result)
    return result


Operand = DeviceArray | Number
"""An array, or the bits of a number as a signed word."""


def run(
    work: Draft | Work,
    formula: str,
    arithmetic: bool,
    calculated: tuple[str, ...],
    operands: Sequence[Operand],
    result: DeviceArray,
    is_new: bool = False,
) -> None:
    """Put a formula of operands into `result`, to whose shape they broadcast; where they overlap it, by way of a copy.

    Parameters
    ----------
    work : Draft or Work
        The call.
    formula : str
        Its name in `fastrelu.kernels.formulas`, or SELECT.
    arithmetic : bool
        Whether it calculates rather than selects.
    calculated : tuple of str
        The types of its operands and its result.
    operands : sequence of DeviceArray or Number
        Its operands.
    result : DeviceArray
        Where to put the result, of any type.
    is_new : bool, optional
        Whether nothing else is known to lie there.
    """
    target = result
    if not is_new and any(_disturbs(result, operand) for operand in operands if isinstance(operand, DeviceArray)):
        target = work.empty(result.shape, result.dtype)
    _launch(work, formula, arithmetic, calculated, operands, target)
    if target is not result:
        copy(work, target, result)


def copy(work: Draft | Work, source: DeviceArray, target: DeviceArray) -> None:
    """Copy an array into another, to whose shape it broadcasts, which has a type of its own and no memory of the first."""
    _launch(work, "", False, (target.dtype, target.dtype), [source], target)


def _launch(
    work: Draft | Work,
    formula: str,
    arithmetic: bool,
    calculated: tuple[str, ...],
    operands: Sequence[Operand],
    result: DeviceArray,
) -> None:
    layouts = tuple(_layout(operand) if isinstance(operand, DeviceArray) else None for operand in operands)
    sweep = _sweep(formula, arithmetic, calculated, layouts, _layout(result))
    if sweep is not None:
        places = [
            operand.pointer + start if isinstance(operand, DeviceArray) else operand
            for operand, start in zip((*operands, result), sweep.starts, strict=True)
        ]
        work.launch(sweep.kernel, (sweep.blocks, 1, 1), *sweep.before, *places, *sweep.after)


class _Launch(NamedTuple):
    """A launch, but for the addresses and the bits of numbers, which come after what is `before`.

    Attributes
    ----------
    starts
        What is added to addresses; 0 for a number.
    """

    kernel: Kernel
    blocks: int
    before: tuple[int, ...]
    starts: tuple[int, ...]
    after: tuple[int, ...]


def _layout(array: DeviceArray) -> Layout:
    return Layout(array.dtype, array.shape, array.strides, array.pointer % PACKET)


def _disturbs(result: DeviceArray, operand: DeviceArray) -> bool:
    """Whether writing the result element by element may change what is yet to be read."""
    if not result.may_overlap(operand):
        return False
    if operand.pointer != result.pointer or result.itemsize != operand.itemsize:
        return True
    strides = broadcast_strides(operand.shape, operand.strides, result.shape)
    return any(a != b for a, b, n in zip(strides, result.strides, result.shape, strict=True) if n > 1)


def _order(order: str, shape: tuple[int, ...], operands: list[DeviceArray]) -> tuple[int, ...] | None:
    """The axes of a new array, the one with the longest steps first; None as they come."""
    if order == "K":
        full = next((operand for operand in operands if operand.shape == shape), None)
        return None if full is None else order_of(shape, full.strides)
    reverse = tuple(reversed(range(len(shape))))
    if order == "A":
        order = "F" if all(_is_fortran(operand) for operand in operands) else "C"
    return reverse if order == "F" else None


def _is_fortran(array: DeviceArray) -> bool:
    """Whether the elements lie side by side in the order of Fortran, and of C only where both are one."""
    turned = replace(array, shape=array.shape[::-1], strides=array.strides[::-1])
    return turned.is_contiguous and (array.ndim < 2 or not array.is_contiguous)


def _types(name: str, given: dict[str, str], options: Options) -> tuple[str, ...]:
    """The types of an operation's operands and its result, by NumPy's rules; `given` are those of the operands as they come."""
    operation = OPERATIONS[name]
    if options.dtype is None:
        element = _element(name, list(given.values()))
    else:
        element = options.dtype
        element_of(operation, [type(numpy_type(name, element))], True)
    calculated = operation.loop(element, 0).dtypes
    for (operand, its), to in zip(given.items(), calculated, strict=False):
        if its not in ("int", "float") and not _casts(name, its, to, options.casting):
            rule = f"by casting rule {options.casting!r}"
            raise TypeError(f"{name}: {operand} must have a type that becomes {to} {rule}, not {its}")
    return calculated


def _element(name: str, names: list[str]) -> str:
    """The name of the type to calculate in."""
    operation = OPERATIONS[name]
    if len(set(names)) == 1 and names[0] in operation.dtypes:  # bfloat16 by itself does not need ml_dtypes
        return names[0]
    try:
        return element_of(operation, [type_of(name, its) for its in names], False)
    except np.exceptions.DTypePromotionError:
        raise TypeError(f"{name}: the types {' and '.join(dict.fromkeys(names))} have none in common") from None


class PythonNumber(NamedTuple):
    """The type of a Python number, as NumPy hands it to a promoter."""

    type: type


def type_of(name: str, dtype: str) -> Any:
    """The type of an array, or of a Python number ("int" and "float"), as NumPy hands it to a promoter."""
    return PythonNumber(_PYTHON[dtype]) if dtype in _PYTHON else type(numpy_type(name, dtype))


_PYTHON = {"int": int, "float": float}


def numpy_type(name: str, dtype: str) -> np.dtype[Any]:
    """NumPy's type of a name; TypeError if only ml_dtypes has it, and is not installed."""
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(f"{name}: bfloat16 together with other types needs the package ml_dtypes") from None
        return cast("np.dtype[Any]", np.dtype(ml_dtypes.bfloat16))
    return np.dtype(dtype)


def _casts(name: str, source: str, target: str, rule: str) -> bool:
    """Whether a type becomes another by a casting rule."""
    if source == target:
        return True
    allowed = np.can_cast(numpy_type(name, source), numpy_type(name, target), rule)  # type: ignore[arg-type]
    if allowed and source in FLOATS and target not in FLOATS:
        raise TypeError(f"{name}: floats become no integers on a CUDA device, by casting rule {rule!r} neither")
    return bool(allowed)


def check_output(name: str, out: DeviceArray, dtype: str, shape: tuple[int, ...], rule: str = "same_kind") -> None:
    """TypeError or ValueError if a result of a type and a shape does not fit into `out`."""
    fault = faults.shapes_fault(name, {"operands": shape, "out": out.shape})
    if fault is not None or np.broadcast_shapes(out.shape, shape) != out.shape:
        raise ValueError(f"{name}: out must have shape {shape} or one that it broadcasts to, not {out.shape}")
    if not _casts(name, dtype, out.dtype, rule):
        raise TypeError(f"{name}: out must have a type that takes {dtype} by casting rule {rule!r}, not {out.dtype}")
    if any(stride == 0 and length > 1 for stride, length in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"{name}: out must have an element of its own in every place, and repeats some along an axis")
    _refuse_unaligned(name, "out", out)


def _refuse_unaligned(name: str, operand: str, array: DeviceArray) -> None:
    if any(place % array.itemsize for place in (array.pointer, *array.strides)):
        raise ValueError(f"{name}: {operand} must have elements that are aligned to their size")


def _bits(name: str, operand: str, dtype: str, number: Any) -> int:
    """The bits of a number as one of the type `dtype`, read as a signed word."""
    try:
        bits = bits_of(number, dtype)
    except OverflowError:
        raise OverflowError(f"{name}: {operand} must be within the range of {dtype}, not {number}") from None
    return bits - (bits >> 63 << 64)


def _sweep(
    formula: str, arithmetic: bool, calculated: tuple[str, ...], operands: tuple[Layout | None, ...], result: Layout
) -> _Launch | None:
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
    return _Launch(kernel(spec), blocks, tuple(before), places, tuple(after))


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
