"""From the public functions to the operations on a device.

The modules that the calls go to have one function `call` each, raise errors that begin with the public function's name, and
know nothing of NumPy arrays: these are brought to the device and back here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from fastrelu import faults
from fastrelu.cuda import launch
from fastrelu.device import RESIDENT, check_precision
from fastrelu.native.guard import lock
from fastrelu.packed import PackedWeight


def elementwise(name: str, operands: dict[str, Any], out: Any, kwargs: dict[str, Any], device: int) -> Any:
    """An elementwise function.

    Parameters
    ----------
    name : str
        Its name.
    operands : dict
        Its operands, by name and in order.
    out : device array, ndarray or None
        Where to put the result.
    kwargs : dict
        Its keyword arguments.
    device : int
        The device for NumPy arrays; RESIDENT if the operands are on one.
    """
    names = tuple(operands)
    if "where" in kwargs and device != RESIDENT:  # goes there as well
        operands = {**operands, "where": kwargs.pop("where")}

    def call(given: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        if name == "prelu_backward":
            return _module("prelu_backward").call(*given.values())
        options = {**kwargs, "where": given["where"]} if "where" in given else kwargs
        return _module("elementwise").call(name, tuple([given[operand] for operand in names]), outputs["out"], options)

    return _run(name, call, operands, {"out": _single(name, out)}, device)


def layer(name: str, operands: dict[str, Any], out: Any, mask: Any, kwargs: dict[str, Any], device: int) -> Any:
    """A fused layer; `operands` are x, w, b and alpha, which may be None."""
    _refuse_packed(name, operands)
    kwargs = _with_precision(name, kwargs)

    def call(given: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        x, w, b, alpha = (given[operand] for operand in ("x", "w", "b", "alpha"))
        return _module("linear").call(name, x, w, b, alpha, outputs["out"], outputs["mask"], kwargs)

    return _run(name, call, operands, {"out": _single(name, out), "mask": mask}, device)


def backward(
    name: str,
    operands: dict[str, Any],
    wanted: tuple[str, ...],
    accumulate: tuple[str, ...],
    outputs: dict[str, Any],
    kwargs: dict[str, Any],
    device: int,
) -> Any:
    """The backward pass of a fused layer; `operands` are dy, y, x, w and alpha, `outputs` arrays for dx, dw and db."""
    _refuse_packed(name, operands)
    kwargs = _with_precision(name, kwargs)

    def call(given: Mapping[str, Any], places: Mapping[str, Any]) -> Any:
        return _module("gradients").call(name, dict(given), wanted, accumulate, dict(places), kwargs)

    return _run(name, call, operands, outputs, device)


def convolution(name: str, operands: dict[str, Any], options: tuple[Any, ...], out: Any, device: int) -> Any:
    """A convolution; `operands` are x, w, b and alpha, which may be None; `options` stride, padding, dilation and groups."""

    def call(given: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        return _module("convolution").call(name, dict(given), options, outputs["out"])

    return _run(name, call, operands, {"out": out}, device)


def convolution_backward(
    name: str,
    operands: dict[str, Any],
    options: tuple[Any, ...],
    wanted: tuple[str, ...],
    accumulate: tuple[str, ...],
    outputs: dict[str, Any],
    device: int,
) -> Any:
    """The backward pass of a convolution; `operands` are dy, y, x, w and alpha, `outputs` arrays for dx, dw and db."""

    def call(given: Mapping[str, Any], places: Mapping[str, Any]) -> Any:
        return _module("convolution_gradients").call(name, dict(given), options, wanted, accumulate, dict(places))

    return _run(name, call, operands, outputs, device)


def _run(name: str, call: Callable[..., Any], operands: dict[str, Any], outputs: dict[str, Any], device: int) -> Any:
    try:
        launch.active()
    except (ImportError, RuntimeError):
        for operand, value in (*operands.items(), *outputs.items()):
            fault = faults.device_fault(name, operand, value)
            if fault is not None:
                raise fault from None
        raise
    if device == RESIDENT:
        return call(operands, outputs)
    from fastrelu.cuda import host

    return host.run(name, call, operands, outputs, device)


@cache
def _module(name: str) -> Any:
    with lock:  # a child that is forked amid an import would wait for its end for ever
        return import_module(f"fastrelu.cuda.{name}")


def _single(name: str, out: Any) -> Any:
    """The array of an ``out``."""
    if type(out) is tuple:
        if len(out) != 1:
            raise ValueError(f"{name}: out must be an array or a tuple of one, not a tuple of {len(out)}")
        out = out[0]
    return None if out is ... else out


def _with_precision(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments, with ``precision`` only if it is another than the highest."""
    kwargs = {**kwargs}
    precision = check_precision(name, kwargs)
    return kwargs if precision == "highest" else {**kwargs, "precision": precision}


def _refuse_packed(base: str, operands: dict[str, Any]) -> None:
    if type(operands.get("w")) is PackedWeight:
        on_device = (f"{name} ({type(value).__name__}) is" for name, value in operands.items() if faults.is_on_cuda(value))
        what = next(on_device, "the others are")
        raise TypeError(f"{base}: w is packed for the CPU, and {what} on a CUDA device: pass w as an array there")
