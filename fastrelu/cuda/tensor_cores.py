"""Products of matrices on the tensor cores, for a precision below "highest": what they can take, and their launch.

=========  =====================================  ==============================================
precision  float32                                float16, bfloat16
=========  =====================================  ==============================================
"high"     three products of TF32 numbers; short  exact products; short sums, added to a total
           sums, added to a total in float32      in float32
"medium"   one product of TF32 numbers, of 10     exact products; sums of float32 that are cut
           bits of fraction                       off instead of rounded
=========  =====================================  ==============================================

Infinities and NaN come out of "high" in float32 as they do of "highest", and its errors have been smaller: on normal and on
positive numbers up to k = 4096 about half. The bits depend on the shape and the device, unlike those of "highest".

A precision is the least that a caller asks for: float64, devices before compute capability 8.0, operands of several types and
gradients by the bits of a mask are calculated at the highest. Operands whose rows do not begin at multiples of 16 bytes are
copied first, and gradients dz = f'(dy, y) are written to memory once a call.

All of this has been run in an emulator of PTX only, which cuts sums off as the tensor cores are known to, and never on a GPU.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from fastrelu.cuda import elementwise, launch
from fastrelu.cuda.arrays import DeviceArray, Work
from fastrelu.cuda.conversion import bits_of
from fastrelu.cuda.kernels import tensor_cores, warpgroup_halves, warpgroups
from fastrelu.cuda.kernels.linear import Result, add_blocks
from fastrelu.cuda.kernels.tensor_tiles import THREADS, Layer
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import PACKET
from fastrelu.cuda.owned import ITEMSIZES
from fastrelu.cuda.plans import Draft, Number
from fastrelu.kernels import formulas

if TYPE_CHECKING:
    from fastrelu.cuda.products import Gradient, Matrix

_FIRST = (8, 0)
"""The first compute capability whose tensor cores take these types."""
_WARPGROUPS = (9, 0)
"""The one that has wgmma."""
_MUCH_SHARED_MEMORY = ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3))
"""Those with more than 99 KiB of shared memory for a block."""
_KINDS = {"float32": "tf32", "float16": "f16", "bfloat16": "bf16"}
_TILE = 128
_LEAST_TERMS = 1024
"""Terms that are worth a launch of their own, which adds up what several blocks have summed of an element."""
_ADD_THREADS = 1 << 17


def run(
    work: Draft | Work,
    sizes: tuple[int, int, int],
    x: Matrix,
    w: Matrix,
    y: Matrix,
    result: Result,
    bias: Matrix,
    alpha: Number | float,
    alphas: Matrix,
    x_gradient: Gradient | None,
    w_gradient: Gradient | None,
) -> bool:
    """Calculate y = f(x @ w + bias) on the tensor cores, if they can.

    Parameters
    ----------
    work : Draft or Work
        The call, which says whether the precision is "high" or "medium".
    sizes : tuple of int
        Rows m, terms k and columns n.
    x, w, y : Matrix
        Operands and result: (m, k), (k, n) and (m, n).
    result : Result
        What becomes of the sums.
    bias : Matrix
        What is added to them (m, n); nothing if its address is 0.
    alpha, alphas : Number or float, Matrix
        The parameter of the formula: one for all, or (m, n).
    x_gradient, w_gradient : Gradient or None
        If x or w are gradients that another formula applies to, which are written to memory first.

    Returns
    -------
    bool
        Whether the product has been launched; if not, nothing has.
    """
    m, k, n = sizes
    device = launch.active()
    capability = device.capability(work.device)
    dtype = result.dtype
    alike = {x.dtype, w.dtype, bias.dtype or dtype, alphas.dtype or dtype} == {dtype}
    by_columns = (bias.row == 0 or m == 1) and (alphas.row == 0 or m == 1)
    if capability < _FIRST or dtype not in _KINDS or not alike or not by_columns or 0 in sizes:
        return False
    size = ITEMSIZES[dtype]
    # What is copied must live until the kernel has been launched.
    if x_gradient is not None:
        made = _applied(work, x_gradient, x, (m, k), dtype, alpha, alphas)
        if made is None:
            return False
        x = made
    if w_gradient is not None:
        made = _applied(work, w_gradient, w, (k, n), dtype, alpha, alphas)
        if made is None:
            return False
        w = made
    a, a_major, _a_copy = _operand(work, x, m, k, size)
    b, b_major, _b_copy = _operand(work, w.T, n, k, size)
    way = _way(dtype, work.precision)
    described = capability == _WARPGROUPS and size == 2
    tiles = -(-m // _TILE) * -(-n // (warpgroup_halves.columns_of(way) if described else _TILE))
    parts, terms = _parts(tiles, k, device.processors(work.device))
    in_parts = parts > 1 or result.adds
    kernel = _kernel(
        dtype, way, a_major, b_major, result.formula, bool(bias.pointer), bool(alphas.pointer), in_parts, capability
    )
    slabs, delivery, slab, row = None, (y.pointer, y.row, y.column), 0, 0
    if in_parts:
        row = -(-4 * n // PACKET) * PACKET
        slab = m * row
        slabs = work.scratch(parts * slab)
        delivery = slabs.pointer, row, 4
    work.launch(
        kernel,
        (tiles, parts, 1),
        *(*a, *b, bias.pointer, bias.column, alpha, alphas.pointer, alphas.column, *delivery, slab, terms, m, n, k),
    )
    if slabs is not None:
        adder = add_blocks(result)
        packets = m * (row // PACKET)
        grid = (min(-(-packets // adder.threads[0]), _ADD_THREADS // adder.threads[0] * 16), 1, 1)
        place = y.pointer, y.row, y.column, alpha, alphas.pointer, alphas.row, alphas.column
        work.launch(adder, grid, slabs.pointer, row, slab, parts, *place, m, n)
    return True


def _operand(
    work: Draft | Work, matrix: Matrix, rows: int, terms: int, size: int
) -> tuple[tuple[int, int], str, DeviceArray | None]:
    """Address and step of the slow axis of an operand (rows, terms), what is contiguous in it, and a copy if one is needed.

    Rows or terms must be contiguous, and begin at multiples of 16 bytes.
    """
    row, term = (0 if rows == 1 else matrix.row), (0 if terms == 1 else matrix.column)
    if matrix.pointer % PACKET == 0:
        if row % PACKET == 0 and (term == size or terms == 1):
            return (matrix.pointer, row), "terms", None
        if term % PACKET == 0 and (row == size or rows == 1):
            return (matrix.pointer, term), "rows", None
    step = -(-terms * size // PACKET) * PACKET
    memory = work.scratch(rows * step)
    source = _array(work, matrix.pointer, (rows, terms), (row, term), matrix.dtype)
    target = _array(work, memory.pointer, (rows, terms), (step, size), matrix.dtype)
    elementwise.copy(work, source, target)
    return (memory.pointer, step), "terms", memory


def _applied(
    work: Draft | Work,
    gradient: Gradient,
    dy: Matrix,
    shape: tuple[int, int],
    dtype: str,
    alpha: Number | float,
    alphas: Matrix,
) -> Matrix | None:
    """Write dz = f'(dy, y) to memory of its own, once a call; None where there is no y but its bits."""
    if gradient.y.dtype != dtype or not gradient.formula:
        return None
    key = gradient, dy, shape
    if key in work.made:
        return cast("Matrix", work.made[key][0])
    # In the order of dy and y, so that reading and writing go through memory alike.
    flips = dy.column > dy.row
    rows, columns = shape[::-1] if flips else shape
    size = ITEMSIZES[dtype]
    step = -(-columns * size // PACKET) * PACKET
    memory = work.scratch(rows * step)
    dz = dataclasses.replace(dy, pointer=memory.pointer, row=size if flips else step, column=step if flips else size)
    given, derivative, target = (_array(work, m.pointer, shape, (m.row, m.column), dtype) for m in (dy, gradient.y, dz))
    operands: list[Any] = [given, derivative]
    if _parameters(gradient.formula) == 3:
        if isinstance(alpha, Number):
            operands.append(alpha.then(lambda value: bits_of(value, dtype)))
        else:
            operands.append(_array(work, alphas.pointer, shape, (alphas.row, alphas.column), alphas.dtype))
    elementwise.run(work, gradient.formula, True, (dtype,) * (len(operands) + 1), operands, target)
    work.made[key] = dz, memory
    return dz


def _way(dtype: str, precision: str) -> str:
    """How the kernels calculate it."""
    if dtype == "float32" and precision == "high":
        return "split"
    return "careful" if precision == "high" else "fast"


def _parameters(formula: str) -> int:
    """How many parameters a formula has."""
    return int(getattr(formulas, formula).__code__.co_argcount)


def _array(work: Draft | Work, pointer: int, shape: tuple[int, int], strides: tuple[int, int], dtype: str) -> DeviceArray:
    return DeviceArray(pointer, shape, strides, dtype, work.device, work.stream, True, None)


def _parts(tiles: int, terms: int, processors: int) -> tuple[int, int]:
    """Into how many parts the terms are divided where there are few block tiles, and the terms of each but the last."""
    parts = max(min(processors // tiles, terms // _LEAST_TERMS), 1)
    each = -(-terms // parts)
    each = -(-each // _TILE) * _TILE
    return -(-terms // each), each


@cache
def _kernel(
    dtype: str,
    way: str,
    a_major: str,
    b_major: str,
    formula: str,
    has_bias: bool,
    has_alphas: bool,
    is_part: bool,
    capability: tuple[int, int],
) -> Kernel:
    kind = _KINDS[dtype]
    has_alpha = bool(formula) and _parameters(formula) == 2
    whole = Layer(dtype, formula, has_bias, has_alpha, has_alphas)
    layer = Layer(dtype, has_bias=has_bias, is_part=True) if is_part else whole
    if capability == _WARPGROUPS and kind == "tf32":
        function, shared = warpgroups.product(way, a_major, b_major, layer), warpgroups.shared_bytes(a_major, b_major)
    elif capability == _WARPGROUPS:
        function = warpgroup_halves.product(kind, way, a_major, b_major, layer)
        shared = warpgroup_halves.shared_bytes(way)
    else:
        stages = 3 if capability in _MUCH_SHARED_MEMORY else 2
        function = tensor_cores.product(kind, way, a_major, b_major, layer, stages)
        shared = tensor_cores.shared_bytes(kind, a_major, b_major, stages)
    return Kernel(function, tensor_cores.ARGUMENTS, THREADS, shared=shared, blocks=1)
