"""Where functions run that have kernels for GPUs: `use`, and the keyword ``device``.

Arrays on a GPU run there anyway, and are not what this is about: it brings NumPy arrays there and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu import faults

RESIDENT = -1
"""Instead of a device's number: that of the arrays, which are on one already."""

PRECISIONS = ("highest", "high", "medium")
"""How exact products of matrices on a GPU are."""

_PLAIN = (ndarray, list, tuple, int, float)
_ON_HOST = frozenset((*_PLAIN, type(None), np.float16, np.float32, np.float64))

_chosen: int | None = None
"""The device for NumPy arrays; None for the CPU."""
_watching: list[Callable[[bool], object]] = []


class use:  # a function to whoever calls it
    """Choose where NumPy arrays are calculated from now on, by all threads; as a context manager, for a while.

    With "cuda", every call of a function that has kernels for GPUs (the elementwise functions, the ``linear`` family and
    convolutions) copies its arrays to the device, calculates there, and copies the result back: the copies take longer than
    most calls, so that arrays which live on the device (CuPy's, PyTorch's, JAX's) are the better choice. Everything else stays
    on the CPU: other functions, single numbers, prepacked weights, subclasses and other libraries' arrays.

    Parameters
    ----------
    device : str
        "cpu", "cuda" for the first GPU, or "cuda:1" and so on for another one.

    Raises
    ------
    TypeError, ValueError
        If `device` is nothing of this.
    RuntimeError
        If the GPU cannot be used; says why.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> with fastrelu.use("cuda" if fastrelu.cuda.is_available() else "cpu"):
    ...     fastrelu.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    def __init__(self, device: str, /) -> None:
        self._before = _chosen
        number = _number("use", device)
        if number is not None:
            _check("use", number)
        _choose(number)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        _choose(self._before)


def watch(told: Callable[[bool], object]) -> None:
    """Have a function called with whether NumPy arrays go to a device, now and whenever that changes."""
    _watching.append(told)
    told(is_used())


def is_used() -> bool:
    """Whether NumPy arrays go to a device."""
    return _chosen is not None


def target(base: str, operands: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """The device that a call is for: None for the CPU, RESIDENT if arrays are on one already; else its number.

    Parameters
    ----------
    base : str
        The public function.
    operands : sequence
        Its operands and outputs.
    kwargs : dict
        Its keyword arguments, of which ``device`` is taken out.
    """
    if _chosen is None and "device" not in kwargs:
        for operand in operands:
            if type(operand) not in _ON_HOST:
                break
        else:
            return None  # known soonest
    asked = kwargs.pop("device", None)
    if any(map(faults.is_on_cuda, operands)):
        if asked is not None and _number(base, asked) is None:
            raise ValueError(f"{base}: device is 'cpu', and operands are on a CUDA device: copy them to the host first")
        return RESIDENT
    if asked is None:
        return _chosen if _chosen is not None and all(map(_is_plain, operands)) and any(map(np.ndim, operands)) else None
    number = _number(base, asked)
    if number is not None:
        _check(base, number)
        for operand in operands:
            if not _is_plain(operand):
                raise TypeError(f"{base}: device={asked!r} takes NumPy arrays, lists and numbers, not {type(operand).__name__}")
        if not any(map(np.ndim, operands)):
            return None
    return number


def check_precision(base: str, kwargs: dict[str, Any]) -> str:
    """Take ``precision`` out of the keyword arguments. On the CPU the highest serves for all."""
    precision = kwargs.pop("precision", "highest")
    if precision not in PRECISIONS:
        raise ValueError(f"{base}: precision must be one of {PRECISIONS}, not {precision!r}")
    return str(precision)


def _choose(number: int | None) -> None:
    global _chosen
    _chosen = number
    for told in _watching:
        told(is_used())


def _is_plain(operand: Any) -> bool:
    """Whether NumPy alone decides what happens to an operand."""
    return operand is None or operand is ... or type(operand) in _PLAIN or isinstance(operand, np.generic)


def _number(base: str, device: Any) -> int | None:
    """The number of a device; None for the CPU."""
    if not isinstance(device, str):
        raise TypeError(f"{base}: device must be 'cpu', 'cuda' or 'cuda:1' and so on, not {type(device).__name__}")
    if device == "cpu":
        return None
    name, colon, number = device.partition(":")
    if name != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(f"{base}: device must be 'cpu', 'cuda' or 'cuda:1' and so on, not {device!r}")
    return int(number or 0)


def _check(base: str, number: int) -> None:
    from fastrelu.cuda import availability

    why = availability.reason()
    if not why and number >= (count := len(availability.devices())):
        why = f"there are {count} devices"
    if why:
        raise RuntimeError(f"{base}: cuda:{number} cannot be used: {why}")
