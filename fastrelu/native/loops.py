"""From the description of a loop to the address of its machine code."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from fastrelu.native import linker, matrix, pool, target
from fastrelu.native.guard import lock
from fastrelu.operations import HALVES, Fused, Loop
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


def _product() -> Source:
    from numba import types

    from fastrelu.kernels.matrix import product

    return product, types.intp(types.intp)


def _two_words(module: str, dtype: str, vector_bytes: int) -> Source:
    """The function of two words that `module` of the kernels builds for a type."""
    from numba import types

    build = import_module(f"fastrelu.kernels.{module}").build
    return build(dtype, vector_bytes), types.void(types.intp, types.intp)


def link_packing(dtype: str, vector_bytes: int) -> int:
    """Link the packing of matrices of `dtype` and return its address."""
    return linker.link(matrix.pack_name(dtype, vector_bytes), lambda: _two_words("packing", dtype, vector_bytes))


def address_of_fused(spec: Fused) -> int:
    """The address of the loop of a fused layer."""

    def source() -> Source:
        from fastrelu.kernels.elementwise import LOOP
        from fastrelu.kernels.linear import build

        return build(spec), LOOP

    dtype, vector_bytes = spec.dtypes[0], spec.vector_bytes
    with lock:
        _runtime()
        linker.link(matrix.PRODUCT, _product)
        link_packing(dtype, vector_bytes)
        if dtype in HALVES:
            link_packing("float32", vector_bytes)
        else:
            linker.link(matrix.thin_name(dtype, vector_bytes), lambda: _two_words("thin", dtype, vector_bytes))
        return linker.link(spec.name, source)
