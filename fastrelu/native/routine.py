"""Kernels that are no loops of a ufunc: Python calls them itself, with one block of words.

Importing this module needs neither Numba nor llvmlite.
"""

import ctypes
from array import array
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy.typing as npt

from fastrelu.native import target
from fastrelu.native.guard import lock

# Where an array keeps the address of its elements: behind what every object begins with. Extensions are compiled with it.
_DATA = object.__basicsize__
_pointer_at = ctypes.c_void_p.from_address


def address(a: npt.NDArray[Any]) -> int:
    """Where the first element of an array stands: ``a.ctypes.data``, in 0.1 us instead of 1."""
    return _pointer_at(id(a) + _DATA).value or 0


@cache
def routine(module: str, function: str, *arguments: str) -> Callable[..., None]:
    """A compiled function, as one that takes integers: addresses, sizes and steps in bytes.

    Parameters
    ----------
    module, function : str
        Where in `fastrelu.kernels` the function is that builds the kernel: it is called with `arguments` and the width of the
        host's vectors in bytes. The kernel takes the address of its words, and returns how many parts there was no
        memory for.
    *arguments : str
        Such as a dtype or the name of a formula.

    Returns
    -------
    callable
        Raises `MemoryError` if there was no memory. Runs without the GIL. Whoever calls it checks all that the words say, and
        keeps the arrays alive meanwhile.
    """
    from fastrelu.native import linker, loops

    vector_bytes = target.vector_bytes()

    def source() -> loops.Source:
        from numba import types

        build = getattr(import_module(f"fastrelu.kernels.{module}"), function)
        return build(*arguments, vector_bytes), types.intp(types.intp)

    with lock:
        loops.runtime()
        address = linker.link("_".join(("fastrelu", module, function, *arguments, str(vector_bytes))), source)
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)

    def run(*words: int) -> None:
        task = array("q", words)  # filled in a fifth of the time that a ctypes array takes
        if call(task.buffer_info()[0]):
            raise MemoryError(f"fastrelu: no memory for {function}")

    return run
