"""What a convolution is given: checked, and brought into the form that its kernels take.

``arrays``    operands of one float type
``geometry``  strides, padding, dilation and groups, and the size of the output
``place``     where results are calculated: in the array that was given, or beside it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu import faults, foreign
from fastrelu.device import target
from fastrelu.native.convolution import PLANS, Geometry
from fastrelu.operands import native, pair, whole_number
from fastrelu.operations import INTEGERS

# Types in native byte order, in which operands mostly come.
_NATIVE = frozenset(map(np.dtype, ("float16", "float32", "float64")))


def arrays(base: str, operands: Mapping[str, Any]) -> Mapping[str, ndarray]:
    """The operands as arrays of their common type, aligned and in native byte order; none of them is copied without need."""
    dtypes = {a.dtype if type(a) is ndarray and a.flags.aligned else None for a in operands.values()}
    if len(dtypes) == 1 and dtypes <= _NATIVE:
        return operands
    made = {}
    for name, operand in operands.items():
        fault: BaseException | None = faults.device_fault(base, name, operand)
        operand = foreign.array(operand) if fault is None else operand
        if fault is None and (faults.overrides(operand) or isinstance(operand, np.ma.MaskedArray)):
            kind = f"{type(operand).__module__}.{type(operand).__name__}"
            fault = TypeError(f"{base}: {name} must be a NumPy array, not {kind}")
        fault = fault or faults.operand_fault(base, {name: np.asarray(operand) if type(operand) is int else operand}, {})
        if fault is not None:
            raise fault
        made[name] = np.asarray(operand)
    try:
        dtype = common_type(a.dtype for a in made.values())
    except np.exceptions.DTypePromotionError as error:
        raise faults.explain(base, error, operands) from None
    with np.errstate(all="ignore"):
        return {name: native(a.astype(dtype, copy=False)) for name, a in made.items()}


def target_of(base: str, given: Sequence[Any], device: str | None) -> int | None:
    """Where to calculate, as `fastrelu.device.target` has it."""
    return target(base, given, {} if device is None else {"device": device})


def device_parameter(base: str, formula: str, alpha: Any) -> Any:
    """A parameter for a device: a number, or a single value there; None if the formula has none."""
    if not formula.startswith(("leaky_relu", "elu")):
        return None
    return alpha if faults.is_on_cuda(alpha) else number(base, "alpha", alpha)


def batch(a: ndarray) -> ndarray:
    """Images, also of a single one."""
    return a if a.ndim == 4 else a[None]


def without_padding(x: ndarray, geometry: Geometry) -> tuple[ndarray, Geometry]:
    """Images that are nothing but padding, as images of zeros."""
    top, left, bottom, right = geometry.padding
    images, channels, height, width = x.shape
    zeros = np.zeros((images, channels, height + top + bottom, width + left + right), x.dtype)
    return zeros, Geometry(geometry.stride, (0, 0, 0, 0), geometry.dilation, geometry.groups)


def common_type(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    """The type to calculate in: that of all by NumPy's rules; integers become floats."""
    dtype = reduce(np.promote_types, dtypes)
    return np.promote_types(dtype, np.float16) if dtype.name in INTEGERS else dtype


def number(base: str, name: str, value: Any) -> float:
    """A parameter that is one number."""
    if type(value) is float:
        return value
    fault = faults.device_fault(base, name, value)
    if fault is not None:
        raise fault
    if np.ndim(value):
        raise ValueError(f"{base}: {name} must be a single value, not of shape {np.shape(value)}")
    try:
        return float(value)
    except OverflowError:
        raise OverflowError(f"{base}: {name} must be within the range of float64") from None
    except (TypeError, ValueError):
        raise TypeError(f"{base}: {name} must be a number, not {type(value).__name__}") from None


def _padding(
    base: str, padding: Any, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Zeros at the top, at the left, at the bottom and at the right."""
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0, 0, 0
        if padding != "same":
            raise ValueError(f'{base}: padding must be "same", "valid", one integer or two, not {padding!r}')
        if stride != (1, 1):
            raise ValueError(f'{base}: padding must not be "same" with stride {stride}, only with stride 1')
        rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return rows // 2, columns // 2, rows - rows // 2, columns - columns // 2
    return pair(base, "padding", padding, 0) * 2


def _is_plain(value: Any) -> bool:
    """Whether an argument is an int or two of them, and no number that only equals one."""
    return type(value) is int or (type(value) is tuple and {*map(type, value)} == {int})


def plain(base: str, stride: Any, padding: Any, dilation: Any, groups: Any) -> tuple[Any, Any, Any, Any]:
    """The same options as ints and tuples of two, or a name of a padding; equal ones have the same meaning."""
    if _are_plain(stride, padding, dilation, groups):
        return stride, padding, dilation, groups
    pads = padding if isinstance(padding, str) else pair(base, "padding", padding, 0)
    whole = whole_number(base, "groups", groups, 1)
    return pair(base, "stride", stride, 1), pads, pair(base, "dilation", dilation, 1), whole


def _are_plain(stride: Any, padding: Any, dilation: Any, groups: Any) -> bool:
    is_number = _is_plain(stride) and (type(padding) is str or _is_plain(padding)) and _is_plain(dilation)
    return is_number and type(groups) is int


def geometry(
    base: str, x: tuple[int, ...], w: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[Geometry, tuple[int, ...]]:
    """Check the shapes of x and w; returns where they meet, and the shape of the output.

    Parameters
    ----------
    base : str
        The public function.
    x, w : tuple of int
        Shapes (N, C, H, W) or (C, H, W), and (O, C / groups, KH, KW).
    stride, padding, dilation, groups
        As the public function was given them.
    """
    is_plain = _are_plain(stride, padding, dilation, groups)
    return (_known_geometry if is_plain else _geometry)(base, x, w, stride, padding, dilation, groups)


def _geometry(
    base: str, x: tuple[int, ...], w: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[Geometry, tuple[int, ...]]:
    if len(x) not in (3, 4):
        raise ValueError(f"{base}: x must have shape (N, C, H, W) or (C, H, W), not {x}")
    if len(w) != 4:
        raise ValueError(f"{base}: w must have shape (O, C / groups, KH, KW), not {w}")
    groups = whole_number(base, "groups", groups, 1)
    strides, dilations = pair(base, "stride", stride, 1), pair(base, "dilation", dilation, 1)
    kernel = w[2], w[3]
    if 0 in kernel:
        raise ValueError(f"{base}: w must have a kernel of at least one row and one column, not shape {w}")
    pads = _padding(base, padding, kernel, strides, dilations)
    if w[1] * groups != x[-3]:
        raise ValueError(f"{base}: w must have shape (O, C / {groups}, KH, KW) for x of shape {x}, not {w}")
    if w[0] % groups:
        raise ValueError(f"{base}: w must have a number of output channels that {groups} groups divide, not shape {w}")
    # What makes no difference is made small: a stride where there is one output, a dilation where there is one tap.
    sizes, steps, gaps = [], [], []
    for axis in range(2):
        room = x[axis - 2] + pads[axis] + pads[axis + 2]
        needed = dilations[axis] * (kernel[axis] - 1) + 1
        if room < needed:
            kind = ("rows", "columns")[axis]
            raise ValueError(f"{base}: w must span at most the {room} {kind} of x of shape {x} with padding, not {needed}")
        sizes.append((room - needed) // strides[axis] + 1)
        steps.append(min(strides[axis], room))
        gaps.append(dilations[axis] if kernel[axis] > 1 else 1)
    return Geometry((steps[0], steps[1]), pads, (gaps[0], gaps[1]), groups), (*x[:-3], w[0], *sizes)


_known_geometry = lru_cache(PLANS)(_geometry)


def check_bias(base: str, b: tuple[int, ...], w: tuple[int, ...]) -> None:
    """Check the shape of a bias beside that of w."""
    if b != w[:1]:
        raise ValueError(f"{base}: b must have shape {w[:1]} for w of shape {w}, not {b}")


def check_slopes(base: str, alpha: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    """Check the shape of slopes, one for each output channel or one for all."""
    if alpha not in ((), outputs):
        raise ValueError(f"{base}: alpha must have shape {outputs} or be one number, not have shape {alpha}")


def gradient_geometry(
    base: str, shapes: Mapping[str, tuple[int, ...]], stride: Any, padding: Any, dilation: Any, groups: Any
) -> Geometry:
    """Check the shapes of dy, y, x and w, as far as they are given; returns where x and w meet."""
    dy = shapes["dy"]
    beside = ""
    meeting, expected = Geometry((1, 1), (0, 0, 0, 0), (1, 1), 1), dy
    if "x" in shapes and "w" in shapes:
        meeting, expected = geometry(base, shapes["x"], shapes["w"], stride, padding, dilation, groups)
        beside = f" for x of shape {shapes['x']} and w of shape {shapes['w']}"
    if dy != expected:
        raise ValueError(f"{base}: dy must have shape {expected}{beside}, not {dy}")
    if len(dy) not in (3, 4):
        raise ValueError(f"{base}: dy must have shape (N, O, OH, OW) or (O, OH, OW), not {dy}")
    if shapes.get("y", dy) != dy:
        raise ValueError(f"{base}: y must have shape {dy} as dy, not {shapes['y']}")
    return meeting


def output(base: str, name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check an array that was given for a result."""
    if not isinstance(out, ndarray):
        raise faults.device_fault(base, name, out) or TypeError(f"{base}: {name} must be an array, not {type(out).__name__}")
    fault = faults.read_only_fault(base, name, out)
    if fault is not None:
        raise fault
    check_output(base, name, (out.shape, out.dtype), (shape, dtype), np.can_cast(dtype, out.dtype, "same_kind"))


def check_output(
    base: str, name: str, out: tuple[tuple[int, ...], Any], result: tuple[tuple[int, ...], Any], casts: bool
) -> None:
    """Check the shape and the type of an array beside those of the result that it is for, which casts to it or not."""
    if out[0] != result[0]:
        raise ValueError(f"{base}: {name} must have shape {result[0]}, not {out[0]}")
    if not casts:
        raise TypeError(f"{base}: {name} must have a type that takes {result[1]} by casting rule 'same_kind', not {out[1]}")


def place(out: ndarray | None, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Iterable[ndarray]) -> ndarray:
    """Where a result is calculated: in `out` if that is C-contiguous, of its type, and overlaps no input; else a new array."""
    if out is not None:
        is_fit = out.dtype == dtype and out.dtype.isnative and out.flags.c_contiguous and out.flags.aligned
        if is_fit and not any(np.may_share_memory(out, a) for a in inputs):
            return np.asarray(out).reshape(shape)
    return np.empty(shape, dtype)


def deliver(result: ndarray, out: ndarray | None, shape: tuple[int, ...]) -> ndarray:
    """The result, in `out` if there is one."""
    if out is None:
        return result if result.shape == shape else result.reshape(shape)
    if not np.may_share_memory(result, out):
        with np.errstate(all="ignore"):
            np.copyto(out, result.reshape(shape), casting="same_kind")
    return out
