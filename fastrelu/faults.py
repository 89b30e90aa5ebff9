"""What is wrong with a call that has failed: one sentence that names the function, the argument, what came and what is allowed.

Everything here runs after NumPy, or a check of ours, has refused a call, so that a good call pays nothing for it. Operands
of other libraries that take ufuncs themselves (``__array_ufunc__``) keep the errors that these libraries raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy import ndarray
from numpy._core._exceptions import _UFuncInputCastingError, _UFuncOutputCastingError

from fastrelu.foreign import is_foreign
from fastrelu.operations import BACKWARD, FLOATS, INTEGERS, LAYERS, OPERATIONS

Operands = Mapping[str, Any]
"""Arguments by their names, in the order of the ufunc."""

_LAYERS = (*(layer.base for layer in LAYERS.values()), *BACKWARD)
# There is a convolution for each fused layer.
CUDA = frozenset((*OPERATIONS, *_LAYERS, *(name.replace("linear", "conv2d", 1) for name in _LAYERS)))
"""The functions that have kernels for GPUs."""

# Numbers of DLPack. Host memory, pinned or not, is none of them.
_DEVICES = {2: "a CUDA", 13: "a CUDA", 4: "an OpenCL", 7: "a Vulkan", 8: "a Metal", 10: "a ROCm", 14: "a oneAPI"}


def overrides(operand: Any) -> bool:
    """Whether the operand's type decides itself what happens to it."""
    override = getattr(type(operand), "__array_ufunc__", ndarray.__array_ufunc__)
    return override is not ndarray.__array_ufunc__


def explain(
    base: str,
    error: Exception,
    operands: Operands,
    outputs: Operands | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> BaseException:
    """The error to raise instead of `error`.

    Parameters
    ----------
    base : str
        The public function.
    error : Exception
        What the call raised.
    operands : mapping
        Its operands by their names, in the order of the ufunc.
    outputs : mapping, optional
        The arrays for the results that it was given, likewise; None for one that it was not.
    keywords : mapping, optional
        Its other arguments.
    """
    from fastrelu import ufuncs

    reason = ufuncs.explain(error) if isinstance(error, TypeError) else error
    outputs, keywords = outputs or {}, keywords or {}
    given = {name: value for name, value in (*operands.items(), *outputs.items()) if value is not None}
    if any(map(overrides, given.values())):
        return _refused(base, str(error), given) or reason
    for name, value in given.items():
        fault = device_fault(base, name, value)
        if fault is not None:
            return fault
    if not isinstance(reason, TypeError | ValueError | OverflowError):
        return reason
    return (
        operand_fault(base, operands, keywords)
        or _other_fault(base, reason, operands, outputs, keywords)
        or _renamed(base, reason)
    )


def reworded(error: Exception, function: str, name: str, words: Mapping[str, str]) -> Exception:
    """An error of a function as that of what called it, which has another name and `words` of its own for the arguments."""
    message = str(error)
    if not message.startswith(f"{function}: "):
        return error
    text = re.sub(rf"\b({'|'.join(words)})\b", lambda found: words[found[0]], message.removeprefix(function))
    return type(error)(f"{name}{text}")


def device_fault(base: str, name: str, value: Any) -> TypeError | None:
    """The error for an array in the memory of a device, which `base` cannot take; no library is imported to tell."""
    device = _device(value)
    if device is None:
        return None
    kind = f"{type(value).__module__}.{_kind(value)}"
    why = "copy it to the host first"
    if device == _DEVICES[2]:
        if base in CUDA:
            from fastrelu.cuda import reason

            why = reason() or "all operands and outputs must be on the device, or none"
        else:
            why = f"{base} has no kernels for GPUs, {why}"
    return TypeError(f"{base}: {name} is on {device} device; it must be a NumPy array, not {kind}: {why}")


def is_on_cuda(value: Any) -> bool:
    """Whether a value is an array in the memory of a CUDA device."""
    return type(value) not in _ON_HOST and _device(value) == _DEVICES[2]


def is_told(base: str, error: Exception, operands: Operands) -> bool:
    """Whether an error needs no explanation: of a call for a CUDA device, or with arrays for operands of other libraries."""
    is_ours = str(error).startswith(f"{base}: ")
    on_cuda = [is_on_cuda(value) for value in operands.values()]
    if base in CUDA and (on_cuda[0] or (any(on_cuda) and is_ours)):
        return True
    return is_ours and any(map(is_foreign, operands.values()))


_ON_HOST = frozenset((ndarray, int, float, list, tuple, type(None)))


def _device(value: Any) -> str | None:
    """What kind of device the memory of an array is on; None for the host."""
    if isinstance(value, ndarray | np.generic | type):
        return None
    try:
        if hasattr(value, "__dlpack_device__"):
            device = _DEVICES.get(int(value.__dlpack_device__()[0]))
            if device is not None:
                return device
        return _DEVICES[2] if hasattr(value, "__cuda_array_interface__") else None
    except Exception:  # whatever another library raises there, it is not what the user asked
        return None


def shapes_fault(base: str, shapes: Mapping[str, tuple[int, ...]]) -> ValueError | None:
    """The first operand that does not broadcast with those before it."""
    before: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        for other, its in before.items():
            if _broadcast(shape, its) is None:
                return ValueError(f"{base}: {name} must broadcast with {other} of shape {its}, not have shape {shape}")
        before[name] = shape
    return None


def batch_fault(base: str, shapes: Mapping[str, Any], batches: Mapping[str, tuple[int, ...]]) -> ValueError | None:
    """The first operand whose batch axes, a part of its shape, do not broadcast with those of the operands before it."""
    before: dict[str, tuple[int, ...]] = {}
    for name, batch in batches.items():
        for other, its in before.items():
            if _broadcast(batch, its) is None:
                allowed = f"batch axes that broadcast with {its} of {other}"
                return ValueError(f"{base}: {name} must have {allowed}, not {batch} as in its shape {shapes[name]}")
        before[name] = batch
    return None


def output_fault(base: str, name: str, out: Any, shape: tuple[int, ...], core: int = 0) -> ValueError | None:
    """What is wrong with an array for a result of a shape, whose last `core` axes are no batch."""
    if not isinstance(out, ndarray):
        return None
    first = len(shape) - core
    if _broadcast(out.shape, shape) != out.shape or out.shape[out.ndim - core :] != shape[first:]:
        return ValueError(f"{base}: {name} must have shape {shape} or one that it broadcasts to, not {out.shape}")
    return read_only_fault(base, name, out)


def lazy_fault(base: str, operands: Iterable[Any], outputs: Operands) -> TypeError | None:
    """The error for arrays for the results of a product of dask arrays, which dask would wait for endlessly."""
    given = {name: value for name, value in outputs.items() if value is not None}
    if given and any(type(value).__module__.startswith("dask.") for value in (*operands, *given.values())):
        return TypeError(f"{base}: {next(iter(given))} must not be given beside dask arrays, whose results are lazy")
    return None


def read_only_fault(base: str, name: str, out: Any) -> ValueError | None:
    """The error for an array that cannot be written."""
    if isinstance(out, ndarray) and not out.flags.writeable:
        return ValueError(f"{base}: {name} is read-only, and must be writable")
    return None


def _refused(base: str, message: str, given: Operands) -> TypeError | None:
    """The error if another library's operand wants no ufunc, or none of ours, for a reason that we know."""
    if "does not support ufuncs" in message:
        for name, value in given.items():
            if getattr(type(value), "__array_ufunc__", ...) is None:
                return TypeError(f"{base}: {name} must be an array; {_kind(value)} does not support ufuncs")
    if "returned NotImplemented" in message or message.startswith(f"{base}: "):
        for name, value in given.items():
            fault = device_fault(base, name, value)
            if fault is not None:
                return fault
    if message.startswith("`dtype` inference failed"):  # dask asks NumPy with empty arrays
        for name, value in given.items():
            dtype = getattr(value, "dtype", np.dtype(np.float64))
            if getattr(dtype, "name", "float64") not in FLOATS + INTEGERS:
                return TypeError(f"{base}: {name} must be an integer type, float16, bfloat16, float32 or float64, not {dtype}")
    # What the protocol asks for, and what astropy says.
    if message.startswith(("operand type(s) all returned NotImplemented", "unknown ufunc")):
        name, value = next((name, value) for name, value in given.items() if overrides(value))
        kind = f"{type(value).__module__.partition('.')[0]}.{_kind(value)}"
        return TypeError(f"{base}: {name} must be an array; {kind} returned NotImplemented for it, make it a NumPy array first")
    return None


def operand_fault(base: str, operands: Operands, keywords: Mapping[str, Any]) -> BaseException | None:
    """What cannot be an operand, whatever the others are."""
    for name, value in operands.items():
        try:
            dtype = np.asarray(value).dtype
        except (TypeError, ValueError) as error:
            why = "its rows differ in length" if "inhomogeneous" in str(error) else str(error).partition("\n")[0]
            text = f"{base}: {name} must be an array or become one, not {_kind(value)}: {why}"
            return TypeError(text) if isinstance(error, TypeError) else ValueError(text)
        # An int of any size takes the type of the others, and with a prescribed type the rules of casting decide.
        is_open = type(value) is int or not {"dtype", "signature"}.isdisjoint(keywords)
        if not is_open and dtype.name not in FLOATS + INTEGERS:
            if type(value).__module__.startswith("scipy.sparse"):
                return TypeError(f"{base}: {name} must be a dense array, not a {_kind(value)}: call its toarray() first")
            came = np.dtype(dtype.type).name
            if not isinstance(value, ndarray) and came != _kind(value):
                came += f" ({_kind(value)})"
            return TypeError(f"{base}: {name} must be an integer type, float16, bfloat16, float32 or float64, not {came}")
    return None


def _other_fault(
    base: str, reason: Exception, operands: Operands, outputs: Operands, keywords: Mapping[str, Any]
) -> BaseException | None:
    """What NumPy refuses in words of its own."""
    if isinstance(reason, _UFuncInputCastingError):
        name, rule = [*operands][reason.in_i], f"by casting rule {reason.casting!r}"
        return TypeError(f"{base}: {name} must have a type that becomes {reason.to} {rule}, not {reason.from_}")
    if isinstance(reason, _UFuncOutputCastingError):
        name, rule = [*outputs][reason.out_i - reason.ufunc.nin], f"by casting rule {reason.casting!r}"
        return TypeError(f"{base}: {name} must have a type that takes {reason.from_} {rule}, not {reason.to}")
    if isinstance(reason, np.exceptions.DTypePromotionError):
        return _mixed_types(base, {**operands, **outputs})
    if isinstance(reason, OverflowError):
        return _out_of_bounds(base, operands)
    if isinstance(reason, TypeError) and not str(reason).startswith(f"{base}: "):
        for name, out in outputs.items():
            if out is not None and not isinstance(out, ndarray):
                return TypeError(f"{base}: {name} must be an array, not {_kind(out)}")
        where = np.asarray(keywords.get("where", True)).dtype
        if not np.can_cast(where, bool):
            return TypeError(f"{base}: where must be of type bool, not {where}")
    return None


def _mixed_types(base: str, given: Operands) -> TypeError | None:
    """Operands for which NumPy knows no common type."""
    before: dict[str, np.dtype[Any]] = {}
    for name, value in given.items():
        dtype = np.asarray(value).dtype
        for other, its in before.items():
            try:
                np.promote_types(its, dtype)
            except TypeError:
                return TypeError(f"{base}: {name} must have a type that has a common DType with {its} of {other}, not {dtype}")
        if value is not None:
            before[name] = dtype
    return None


def _out_of_bounds(base: str, operands: Operands) -> OverflowError | None:
    """The Python number that the type of the others cannot hold."""
    strong = [np.asarray(value).dtype for value in operands.values() if type(value) not in (int, float)]
    dtype = np.result_type(*strong) if strong else np.dtype(np.float64)
    for name, value in operands.items():
        if type(value) is int:
            try:
                dtype.type(value)
            except OverflowError:
                # Python refuses to show the digits of a very large number.
                shown = str(value) if value.bit_length() < 128 else f"a number of {value.bit_length()} bits"
                return OverflowError(f"{base}: {name} must be within the range of {dtype}, not {shown}")
    return None


def _renamed(base: str, reason: Exception) -> BaseException:
    """`reason` with the name of the public function for that of the variant of its ufunc."""
    name = str(reason).partition(" ")[0].rstrip(":()")
    if type(reason) in (TypeError, ValueError) and name.startswith(f"{base}_"):
        return type(reason)(str(reason).replace(name, base))
    return reason


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


def _kind(value: Any) -> str:
    return type(value).__name__
