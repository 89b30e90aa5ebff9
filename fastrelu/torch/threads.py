"""Work on PyTorch's own threads.

OpenMP's threads, on which PyTorch's operators run, spin for a while after each of them, on the processors that the workers of
`fastrelu` need: a step of training that goes back and forth between both kinds took longer than with either alone. So the parts
of these calls go to the OpenMP library that PyTorch uses. Nothing else changes: neither the bits, which never depend on who
calculates a part, nor the calls of `fastrelu` itself; and a forked child, in which OpenMP of GNU would wait for ever, uses
workers of its own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch

from fastrelu.native import pool

__all__ = ["run"]

_words = pool.memory
_GUEST, _TEAM = pool.GUEST // 8, pool.TEAM // 8


def _fork_join() -> int:
    """The address of `GOMP_parallel`, which the libraries of GNU, LLVM and Intel have; 0 if PyTorch uses none of them."""
    if torch.backends.openmp.is_available():
        for library in (None, torch._C.__file__):  # where PyTorch's own calls are looked for, in the same order
            try:
                return ctypes.cast(ctypes.CDLL(library).GOMP_parallel, ctypes.c_void_p).value or 0
            except (AttributeError, OSError):
                continue
    return 0


def _in_child() -> None:
    pool.write(pool.FORK_JOIN, 0)  # for systems on which a child inherits the word


pool.write(pool.FORK_JOIN, _fork_join())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def run(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call a function of `fastrelu`; what it hands to other threads goes to PyTorch's, ``torch.get_num_threads()`` of them."""
    _words[_TEAM] = torch.get_num_threads()
    _words[_GUEST] = get_ident()
    try:
        return function(*arguments, **keywords)
    finally:
        # Another thread that is inside a call meanwhile loses its mark as well: it uses the pool then, to the same bits.
        _words[_GUEST] = 0
