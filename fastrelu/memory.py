"""Memory that the package keeps between calls."""

import ctypes
import mmap
import os
import sys
from collections.abc import Callable

_tidy: Callable[[int, int], int] | None = None
_others: list[Callable[[], object]] = []


def watch(release: Callable[[], object]) -> None:
    """Have `release` called when memory is to be given back."""
    _others.append(release)


def use(address: int) -> None:
    """Take over the address of `fastrelu.kernels.scratch.tidy`, once there are kernels that pack."""
    global _tidy
    _tidy = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)


def release_memory() -> int:
    """Give the memory in which matrix products are packed back to the system.

    Every thread that calculates a product, whether of Python or of the package's own pool, keeps 2 MB for packing until it
    ends. The next product gets new pages, which takes it some 0.2 ms more. Memory in use by another thread's call stays. With
    glibc, what the allocator keeps of memory that was freed before goes back as well, and so does what `fastrelu.torch` keeps
    of large results.

    Returns
    -------
    int
        How many bytes for packing were given back.

    Examples
    --------
    >>> import fastrelu
    >>> fastrelu.release_memory() >= 0
    True
    """
    released = _tidy(mmap.PAGESIZE, 0) if _tidy is not None else 0
    for release in _others:
        release()
    # Sums and copies that a call needs for a while come from the allocator.
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(ctypes.c_size_t(0))
    return released


def _in_child() -> None:
    if _tidy is not None:
        _tidy(mmap.PAGESIZE, 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
