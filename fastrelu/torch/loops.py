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
from array import array
from collections.abc import Callable
from functools import cache, reduce
from itertools import compress
from operator import or_
from typing import Any

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


@cache
def _alpha(value: float, dtype: torch.dtype) -> Any:
    """The parameter in memory."""
    return (ctypes.c_double if dtype is torch.float64 else ctypes.c_float)(value)


def _call(loop: Loop, pointers: list[int], dimensions: tuple[int, ...], outer: list[int], core: list[int]) -> None:
    """Call a loop; `outer` are the steps from one product to the next, `core` those within operands, in bytes."""
    words = array("q", [*pointers, *dimensions, *outer, *core])
    place = words.buffer_info()[0]
    steps = place + 8 * (len(pointers) + len(dimensions))
    try:
        run(loop, None, place, place + 8 * len(pointers), steps, None)
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


def forward(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, alpha: Alpha) -> Tensor | None:
    """Y of the layer `name`, f(x @ weight.T + bias)."""
    rows = _rows(x)
    if rows is None or device.is_used():
        return None
    m, x_row, x_step = rows
    n, k = weight.shape
    w_row, w_step = weight.stride()
    size, dtype = x.itemsize, x.dtype
    y = _empty((*x.shape[:-1], n), dtype)
    pointers = [x.data_ptr(), weight.data_ptr()]
    outer, core = [x_row * size, 0], [x_step * size, w_step * size, w_row * size]
    if bias is not None:
        pointers.append(bias.data_ptr())
        outer.append(0)
        core.append(bias.stride()[0] * size)
    pointers.append(y.data_ptr())
    if not _are_fit(pointers, m * k * n, size) or x.is_neg() or weight.is_neg() or (bias is not None and bias.is_neg()):
        return None
    if alpha:
        pointers.insert(-1, ctypes.addressof(_alpha(alpha[0], dtype)))
        outer.append(0)
    outer.append(n * size)
    core.append(size)
    _call(_forward_loop(name, dtype, bias is not None), pointers, (m, k, n), outer, core)
    return y


def backward(
    name: str, dy: Tensor, y: Tensor | None, x: Tensor | None, weight: Tensor | None, wanted: tuple[bool, ...], alpha: Alpha
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """The gradients with respect to x, weight and bias that are `wanted`."""
    rows = _rows(dy)
    if rows is None or device.is_used() or dy.is_neg():
        return None
    m, row, step = rows
    n, size, dtype = dy.shape[-1], dy.itemsize, dy.dtype
    k = 1
    pointers, core = [dy.data_ptr()], [row, step]
    if y is not None:
        rows = _rows(y)
        if rows is None or y.is_neg():
            return None
        pointers.append(y.data_ptr())
        core += rows[1:]
    if wanted[1] and x is not None:
        rows = _rows(x)
        if rows is None or x.is_neg():
            return None
        k = x.shape[-1]
        pointers.append(x.data_ptr())
        core += rows[1:]
    if wanted[0] and weight is not None:
        if weight.is_neg():
            return None
        k = weight.shape[1]
        pointers.append(weight.data_ptr())
        core += reversed(weight.stride())
    if not _are_fit(pointers, m * k * n, size):
        return None
    if alpha:
        pointers.append(ctypes.addressof(_alpha(alpha[0], dtype)))
    dx = dweight = dbias = None
    if wanted[0]:
        dx = _empty((*dy.shape[:-1], k), dtype)
        pointers.append(dx.data_ptr())
        core += (k, 1)
    if wanted[1]:
        dweight = _empty((n, k), dtype)
        pointers.append(dweight.data_ptr())
        core += (1, k)
    if wanted[2]:
        dbias = _empty((n,), dtype)
        pointers.append(dbias.data_ptr())
        core.append(1)
    dimensions = (1, m, n, k) if wanted[0] or wanted[1] else (1, m, n)
    _call(_backward_loop(name, dtype, wanted), pointers, dimensions, [0] * len(pointers), [step * size for step in core])
    return dx, dweight, dbias


def _are_fit(pointers: list[int], work: int, size: int) -> bool:
    """Whether there is work to do, on elements that stand at multiples of their size."""
    return work > 0 and reduce(or_, pointers) & (size - 1) == 0
