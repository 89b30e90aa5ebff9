"""From the description of a loop to the address of its machine code."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

from fastrelu.native import linker, pool, target
from fastrelu.native.guard import lock
from fastrelu.operations import Loop
from fastrelu.threads import default_num_threads

Source = tuple[Callable[..., Any], Any]
"""A Python function to compile, and its Numba signature."""


@cache
def _runtime() -> None:
    """Provide what all loops call: the pool's memory, the pool, the driver."""
    if pool.read(pool.LIMIT) == 0:
        pool.write(pool.LIMIT, default_num_threads())
    pool.write(pool.CACHE, target.last_level_cache())
    linker.provide(pool.POOL, ctypes.addressof(pool.memory))
    linker.link(pool.PARALLEL_FOR, _parallel_for)
    linker.link(pool.ELEMENTWISE, _elementwise)


def _parallel_for() -> Source:
    from numba import types

    from fastrelu.kernels.pool import parallel_for, serial_for

    return parallel_for if os.name == "posix" else serial_for, types.void(types.intp, types.intp, types.intp)


def _elementwise() -> Source:
    from numba import types

    from fastrelu.kernels.driver import elementwise

    return elementwise, types.void(types.intp, types.intp, types.intp, types.intp)


def address_of(loop: Loop) -> int:
    """The address of `loop`, compiled or taken from the cache at the first request."""

    def source() -> Source:
        from fastrelu.kernels.elementwise import LOOP, build

        return build(loop), LOOP

    with lock:
        _runtime()
        return linker.link(loop.name, source)
