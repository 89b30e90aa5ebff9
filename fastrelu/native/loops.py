"""From the description of a loop to the address of its machine code."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from fastrelu import memory
from fastrelu.native import entries, errors, linker, matrix, pool, target
from fastrelu.native.guard import lock
from fastrelu.operations import Fused, Gradient, Loop
from fastrelu.threads import ask, get_num_threads

Source = tuple[Callable[..., Any], Any]
"""A Python function to compile, and its Numba signature."""


@cache
def runtime() -> None:
    """Provide what all loops call: the pool's memory, the pool, the driver."""
    get_num_threads()  # asked for now, so that only kernels of a forked child have to call Python
    linker.provide(pool.ASK, ask())
    pool.write(pool.CACHE, target.last_level_cache())
    linker.provide(pool.POOL, ctypes.addressof(pool.memory))
    linker.provide(errors.ERRORS, ctypes.addressof(errors.table))
    for function in errors.FUNCTIONS:
        linker.provide(function, errors.address_of(function))
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
        runtime()
        return linker.link(loop.name, source)


def _panels() -> Source:
    from numba import types

    from fastrelu.kernels.panels import part

    return part, types.int32(types.intp, types.intp)


def _tidy() -> Source:
    from numba import types

    from fastrelu.kernels.scratch import tidy

    return tidy, types.intp(types.intp, types.intp)


@cache
def _link_panels() -> None:
    linker.link(matrix.PART, _panels)
    if os.name == "posix":
        memory.use(linker.link(pool.TIDY, _tidy))


def _product() -> Source:
    from numba import types

    from fastrelu.kernels.matrix import product

    return product, types.int32(types.intp, types.intp, types.intp, types.intp)


def _pack_weight() -> Source:
    from numba import types

    from fastrelu.kernels.packing import pack_weight

    return pack_weight, types.void(types.intp)


def _part(name: str, module: str, function: str, *arguments: Any) -> int:
    """Link the function of two words that a function of the kernels' `module` builds."""

    def source() -> Source:
        from numba import types

        build = getattr(import_module(f"fastrelu.kernels.{module}"), function)
        return build(*arguments), types.void(types.intp, types.intp)

    return linker.link(name, source)


def _link_packing(dtype: str, vector_bytes: int) -> int:
    return _part(matrix.pack_name(dtype, vector_bytes), "packing", "build", dtype, vector_bytes)


@cache
def _link_tiles(formula: str, dtype: str, vector_bytes: int, gathers: bool = False) -> int:
    """Link the micro-kernels with an activation, provide the table of them, and return its address."""
    name = matrix.tiles_name(formula, dtype, vector_bytes, gathers)
    write = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(
        _part(name, "linear", "tiles", formula, dtype, gathers, vector_bytes)
    )
    table = (ctypes.c_int64 * len(matrix.Tiling(dtype, vector_bytes).shapes))()
    write(ctypes.addressof(table), 0)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(table))  # the code that refers to it is never freed either
    linker.provide(f"{name}_table", ctypes.addressof(table))
    return ctypes.addressof(table)


def weight_packing(dtype: str, vector_bytes: int) -> tuple[int, int]:
    """The addresses of the packing of whole weights, and of the packing of matrices of `dtype` that it needs."""
    with lock:
        runtime()
        return linker.link(matrix.PACK_WEIGHT, _pack_weight), _link_packing(dtype, vector_bytes)


def address_of_fused(spec: Fused) -> int:
    """The address of the loop of a fused layer."""

    def source() -> Source:
        from fastrelu.kernels.elementwise import LOOP
        from fastrelu.kernels.linear import layer

        return layer(spec), LOOP

    dtype, vector_bytes = spec.dtypes[0], spec.vector_bytes
    sums = matrix.Tiling(dtype, vector_bytes).sum_dtype
    first, last = matrix.split_formula(spec)
    with lock:
        runtime()
        _link_panels()
        linker.link(matrix.PRODUCT, _product)
        _link_packing(dtype, vector_bytes)
        _link_packing(sums, vector_bytes)
        _link_tiles(first, sums, vector_bytes)
        if sums == dtype:
            _part(matrix.thin_name(dtype, vector_bytes), "thin", "build", dtype, vector_bytes)
        if matrix.has_small(spec):
            _part(matrix.small_name(spec.formula, dtype, vector_bytes), "small", "build", spec.formula, dtype, vector_bytes)
        if last is not None:
            name = matrix.finish_name(last, dtype, spec.mask, vector_bytes)
            _part(name, "linear", "finish", last, sums, dtype, spec.mask, vector_bytes)
        return linker.link(spec.name, source)


def _backward() -> Source:
    from numba import types

    from fastrelu.kernels.backward import gradients

    return gradients, types.int32(types.intp, types.intp, types.intp, types.intp)


def address_of_gradient(spec: Gradient) -> int:
    """The address of the loop of a backward pass."""

    def source() -> Source:
        from fastrelu.kernels.backward import loop
        from fastrelu.kernels.elementwise import LOOP

        return loop(spec), LOOP

    dtype, vector_bytes = spec.dtype, spec.vector_bytes
    tiling = matrix.Tiling(dtype, vector_bytes)
    sums = tiling.sum_dtype
    with lock:
        runtime()
        _link_panels()
        linker.link(matrix.PACK_WEIGHT, _pack_weight)
        linker.link(matrix.BACKWARD, _backward)
        _link_packing(dtype, vector_bytes)
        _link_packing(sums, vector_bytes)
        _link_tiles("", sums, vector_bytes)
        _part(matrix.deliver_name(dtype, vector_bytes), "results", "build", dtype, vector_bytes)
        _part(matrix.add_up_name(sums, vector_bytes), "results", "add_up", sums, vector_bytes)
        name = matrix.form_name(spec.formula, sums, spec.mask, vector_bytes)
        _part(name, "gradient", "build", spec.formula, sums, spec.mask, vector_bytes, tiling.widths[-1])
        return linker.link(spec.name, source)


@cache
def addresses_of_weight_gradient(formula: str, dtype: str, vector_bytes: int) -> tuple[int, ...]:
    """The functions that the gradient of a convolution's weight needs: packing, micro-kernels, forming of dz, delivery,
    adding of sums, packing of these, sums of groups side by side, and what spreads their channels.
    """
    tiling = matrix.Tiling(dtype, vector_bytes)
    sums = tiling.sum_dtype
    form = matrix.form_name(formula, sums, False, vector_bytes)
    with lock:
        runtime()
        _link_panels()
        return (
            _link_packing(dtype, vector_bytes),
            _link_tiles("", sums, vector_bytes),
            _part(form, "gradient", "build", formula, sums, False, vector_bytes, tiling.widths[-1]),
            _part(matrix.deliver_name(dtype, vector_bytes), "results", "build", dtype, vector_bytes),
            _part(matrix.add_up_name(sums, vector_bytes), "results", "add_up", sums, vector_bytes),
            _link_packing(sums, vector_bytes),
            _part(matrix.grouped_name(sums, vector_bytes), "grouped_gradient", "build", sums, vector_bytes),
            _part(matrix.spread_name(sums, vector_bytes), "grouped_gradient", "spread", sums, vector_bytes),
        )


def addresses_of_patches(formula: str, derivative: str | None, dtype: str, vector_bytes: int) -> tuple[int, ...]:
    """The functions that a convolution needs, as the words of `fastrelu.native.plan` from `PACK` to `ROWS`: with an activation,
    or for the gradient of its input if there is a `derivative`, "" for that of the identity.
    """
    tiling = matrix.Tiling(dtype, vector_bytes)
    sums = tiling.sum_dtype
    is_stored = derivative is None and formula in matrix.IN_REGISTERS and sums == dtype
    last = "" if is_stored else formula
    finish = deliver = form = 0
    with lock:
        runtime()
        if derivative is None:
            name = matrix.finish_name(last, dtype, False, vector_bytes)
            finish = _part(name, "linear", "finish", last, sums, dtype, False, vector_bytes)
        else:
            deliver = _part(matrix.deliver_name(dtype, vector_bytes), "results", "build", dtype, vector_bytes)
        if derivative:
            name = matrix.form_name(derivative, sums, False, vector_bytes)
            form = _part(name, "gradient", "build", derivative, sums, False, vector_bytes, tiling.widths[-1])
        return (
            _link_packing(dtype, vector_bytes),
            _link_packing(sums, vector_bytes),
            _part(matrix.patches_name(sums, vector_bytes), "patches", "build", sums, vector_bytes),
            _link_tiles(formula if is_stored else "", sums, vector_bytes),
            _link_tiles(formula if is_stored else "", sums, vector_bytes, True),
            int(is_stored or derivative is not None),
            finish,
            deliver,
            form,
            _part(matrix.rows_name(dtype, vector_bytes), "band_rows", "build", dtype, vector_bytes) if sums == dtype else 0,
        )


def _plan() -> Source:
    from numba import types

    from fastrelu.kernels.caller import plan

    return plan, types.int32(types.intp, types.intp)


def _run() -> Source:
    from numba import types

    from fastrelu.kernels.caller import run

    return run, types.int32(types.intp, types.intp)


def array_calls() -> tuple[int, int]:
    """The addresses of what compiled code calls to check shapes, and to run a loop on arrays."""
    with lock:
        runtime()
        return linker.link(entries.PLAN, _plan), linker.link(entries.RUN, _run)
