"""The compiled loops of the fused layers, called on the memory of tensors without arrays in between.

A step of training of a small network is many short calls, and NumPy's arrays and ufuncs took as long as the products. Both ways
end in the same loops.

``forward``    y of a layer
``backward``   its gradients

Both return None for operands that only the general way takes: without elements, not aligned, or with batch axes that no single
step goes through; and where host memory goes to a GPU. What the operands must be besides is the caller's to check.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Callable
from functools import cache, reduce
from itertools import compress
from operator import or_
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from fastrelu import device, operations
from fastrelu.operations import GRADIENTS, LAYERS
from fastrelu.torch import memory
from fastrelu.torch.threads import run

__all__ = ["backward", "forward"]

Loop = Callable[..., int]
Alpha = tuple[float, ...]

_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_STORED = {dtype: np.dtype("int16" if name == "bfloat16" else name) for dtype, name in _NAMES.items()}
_PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 5)
"""What NumPy calls a loop with, see `fastrelu.kernels.matrix.product`; the GIL is released meanwhile."""


@cache
def _forward_loop(name: str, dtype: torch.dtype, has_bias: bool) -> Loop:
    from fastrelu.native import loops, target

    layer = LAYERS[name if has_bias else f"{name}_no_bias"]
    return _PROTOTYPE(loops.address_of_fused(layer.loop(_NAMES[dtype], target.vector_bytes())))


@cache
def _backward_loop(name: str, dtype: torch.dtype, wanted: tuple[bool, ...]) -> Loop:
    from fastrelu.native import loops, target

    variant = operations.backward(f"{name}_backward", False, tuple(compress(GRADIENTS, wanted)), ())
    return _PROTOTYPE(loops.address_of_gradient(variant.loop(_NAMES[dtype], target.vector_bytes())))


def _alpha(value: float, dtype: torch.dtype) -> Any:
    """The parameter in memory."""
    return (ctypes.c_double if dtype is torch.float64 else ctypes.c_float)(value)


def _call(loop: Loop, pointers: list[int], dimensions: tuple[int, ...], steps: list[int], size: int) -> None:
    """Call a loop; `steps` are in elements of `size` bytes: those from one product to the next, then those within operands."""
    words = array("q", [*pointers, *dimensions, *[step * size for step in steps]])
    place = words.buffer_info()[0]
    lengths = place + 8 * len(pointers)
    try:
        run(loop, None, place, lengths, lengths + 8 * len(dimensions), None)
    except SystemError as error:  # by which ctypes tells that the loop has set an exception: there was no memory
        raise (error.__cause__ or error) from None


def _rows(x: Tensor) -> tuple[int, int, int] | None:
    """The rows of a batch, the step from one to the next and that within a row, in elements; None if no step goes through."""
    if x.ndim == 2:
        return x.shape[0], *x.stride()
    columns = x.shape[-1] if x.ndim else 0
    return (x.numel() // columns, columns, 1) if columns and x.is_contiguous() else None


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype is torch.bfloat16:
        return torch.from_numpy(memory.empty(shape, _STORED[dtype])).view(dtype)
    return torch.from_numpy(memory.empty(shape, _STORED[dtype]))


def _fits(operand: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> TypeGuard[Tensor]:
    """Whether an operand has this shape, and can be read where it lies."""
    return (
        operand is not None
        and operand.shape == shape
        and operand.dtype is like.dtype
        and operand.is_cpu
        and not operand.is_neg()
    )


def _is_simple(pointers: list[int], work: int, size: int) -> bool:
    """Whether there is work to do, on elements that stand at multiples of their size."""
    return work > 0 and reduce(or_, pointers) & (size - 1) == 0


def forward(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, alpha: Alpha) -> Tensor | None:
    """Y of the layer `name`, f(x @ weight.T + bias)."""
    rows = _rows(x)
    if rows is None or weight.ndim != 2 or device.is_used():
        return None
    m, x_row, x_step = rows
    n, k = weight.shape
    if not _fits(x, x, (*x.shape[:-1], k)) or not _fits(weight, x, (n, k)):
        return None
    w_row, w_step = weight.stride()
    size, dtype = x.itemsize, x.dtype
    pointers, outer, core = [x.data_ptr(), weight.data_ptr()], [x_row, 0], [x_step, w_step, w_row]
    if bias is not None:
        if not _fits(bias, x, (n,)):
            return None
        pointers.append(bias.data_ptr())
        outer.append(0)
        core += bias.stride()
    if not _is_simple(pointers, m * k * n, size):
        return None
    if alpha:
        parameter = _alpha(alpha[0], dtype)
        pointers.append(ctypes.addressof(parameter))
        outer.append(0)
    y = _empty((*x.shape[:-1], n), dtype)
    pointers.append(y.data_ptr())
    outer.append(n)
    core.append(1)
    _call(_forward_loop(name, dtype, bias is not None), pointers, (m, k, n), outer + core, size)
    return y


def backward(
    name: str, dy: Tensor, y: Tensor | None, x: Tensor | None, weight: Tensor | None, wanted: tuple[bool, ...], alpha: Alpha
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """The gradients with respect to x, weight and bias that are `wanted`."""
    if not any(wanted) or not dy.ndim or device.is_used():
        return None
    *batch, n = dy.shape
    k = 1
    if wanted[1] and x is not None and x.ndim:
        k = x.shape[-1]
    elif wanted[0] and weight is not None and weight.ndim:
        k = weight.shape[-1]
    operands = [(dy, n)]
    if name != "linear":
        operands.append((y, n))
    if wanted[1]:
        operands.append((x, k))
    pointers: list[int] = []
    core: list[int] = []
    for operand, columns in operands:
        if not _fits(operand, dy, (*batch, columns)) or (rows := _rows(operand)) is None:
            return None
        pointers.append(operand.data_ptr())
        core += rows[1:]
    if wanted[0]:
        if not _fits(weight, dy, (n, k)):
            return None
        pointers.append(weight.data_ptr())
        core += reversed(weight.stride())
    size, dtype, m = dy.itemsize, dy.dtype, math.prod(batch)
    if not _is_simple(pointers, m * k * n, size):
        return None
    if alpha:
        parameter = _alpha(alpha[0], dtype)
        pointers.append(ctypes.addressof(parameter))
    dx = _empty((*batch, k), dtype) if wanted[0] else None
    dweight = _empty((n, k), dtype) if wanted[1] else None
    dbias = _empty((n,), dtype) if wanted[2] else None
    for gradient, steps in ((dx, (k, 1)), (dweight, (1, k)), (dbias, (1,))):
        if gradient is not None:
            pointers.append(gradient.data_ptr())
            core += steps
    dimensions = (1, m, n, k) if wanted[0] or wanted[1] else (1, m, n)
    _call(_backward_loop(name, dtype, wanted), pointers, dimensions, [0] * len(pointers) + core, size)
    return dx, dweight, dbias
