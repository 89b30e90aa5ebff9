"""Products of matrices on a device: the choice of a kernel, and its launch.

A multiprocessor is fed by block tiles, and the larger they are the fewer numbers it must fetch for each multiplication. A small
product has few large tiles. Then smaller ones keep more multiprocessors busy, and blocks of terms can be shared out as well:
their sums, which have to be added in their order, wait in memory, and a second kernel adds them. The bits are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from fastrelu.cuda import launch, tensor_cores
from fastrelu.cuda.arrays import Work
from fastrelu.cuda.kernels.gradients import column_sums
from fastrelu.cuda.kernels.linear import BlockTile, Result, add_blocks, product, shared_bytes
from fastrelu.cuda.kernels.operands import Operand, sums_of
from fastrelu.cuda.memory import PACKET
from fastrelu.cuda.owned import ITEMSIZES
from fastrelu.cuda.plans import Draft, Number
from fastrelu.operations import KC

MOST = (1 << 31) - 1
"""Rows, columns and terms are numbers of 32 bits in the kernels."""

_SHARED_MEMORY = {(7, 5): 64, (8, 0): 164, (8, 6): 100, (8, 7): 164, (8, 9): 100, (9, 0): 228, (10, 0): 228, (10, 3): 228}
"""KiB of shared memory of a multiprocessor, by compute capability (CUDA C++ programming guide, technical specifications)."""
_LEAST_SHARED_MEMORY = 100
_ROOM_FOR_Y = 200 << 10
"""With less of it, y is not staged there: only one block of threads would be left."""
_RESERVED = 1 << 10
"""Bytes of it that the system takes for each block."""
_ASYNCHRONOUS = (8, 0)
"""The first compute capability that copies to shared memory by itself."""

_TILES = {
    "float32": (
        ((128, 128), (8, 8), 2, 1.0),
        ((64, 128), (8, 8), 3, 0.92),
        ((64, 64), (4, 4), 3, 0.6),
        ((32, 32), (4, 4), 8, 0.4),
    ),
    "float64": (((64, 64), (4, 4), 2, 1.0), ((32, 32), (4, 4), 6, 0.6)),
}
"""Rows and columns of block tiles and of threads' tiles, blocks that share a multiprocessor, and how much of its
arithmetic they can use: estimated from the bytes of shared memory that each multiplication needs.
"""
_BLOCK_TERMS = (16, 8)
_ADD_BLOCKS = 1 << 14
"""Most blocks of threads that add sums; each goes on where they end."""
_SLABS = 256 << 20
"""Most bytes of sums that wait to be added."""
_START = 1500
"""Cycles from the start of a block to its first product, and from its last one to its end."""
_LAUNCH = 5000
"""Cycles that another kernel costs."""
_BYTES = 16
"""Bytes of memory a cycle for each multiprocessor."""
_FMA = 128
"""Fused multiply-adds a cycle of a multiprocessor."""


@dataclass(frozen=True)
class Matrix:
    """Numbers in rows and columns.

    Attributes
    ----------
    pointer : int, or Place
        Address of the first.
    row, column : int
        Bytes from a row to the next, and from a column to the next.
    dtype : str
        The element type; of bits of y > 0 "bits", eight of them a column.
    division, places : tuple of int
        If rows or columns are positions in images, how to find these, and where they are: see `fastrelu.cuda.kernels.patches`.
        Of patches the pointer and the steps are those of the table of taps, with a step of 0 along positions; of a result
        the step between neighbouring columns is that within an image.
    pointwise, wide : bool
        Whether patches have one element in each channel, and whether 16 bytes of them can be copied at once.
    group : int
        Bytes from a group to the next, in a product of groups.
    """

    pointer: Any
    row: int
    column: int
    dtype: str
    division: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    pointwise: bool = False
    wide: bool = False
    group: int = 0

    @property
    def T(self) -> Matrix:
        """The transpose."""
        return replace(self, row=self.column, column=self.row)

    def moved(self, rows: int, columns: int = 0) -> Matrix:
        """The same from another row and column on."""
        return replace(self, pointer=self.pointer + rows * self.row + columns * self.column)


@dataclass(frozen=True)
class Gradient:
    """dz = f'(dy, y) as an operand in place of dy.

    Attributes
    ----------
    formula : str
        f', by the name of its formula.
    y : Matrix
        What tells the derivative, in the order of dy.
    keeps_zeros : bool
        Whether dz is 0 where dy and y are, as outside of images. No infinite parameter does.
    """

    formula: str
    y: Matrix
    keeps_zeros: bool = True


NOTHING = Matrix(0, 0, 0, "")


def run(
    work: Draft | Work,
    sizes: tuple[int, int, int],
    x: Matrix,
    w: Matrix,
    y: Matrix,
    result: Result,
    *,
    bias: Matrix = NOTHING,
    alpha: Number | float = 0.0,
    alphas: Matrix = NOTHING,
    x_gradient: Gradient | None = None,
    w_gradient: Gradient | None = None,
) -> None:
    """Calculate y = f(x @ w + bias).

    Parameters
    ----------
    work : Draft or Work
        The call, which says how exact products must be.
    sizes : tuple of int
        Rows m, terms k and columns n.
    x, w, y : Matrix
        Operands and result: (m, k), (k, n) and (m, n).
    result : Result
        What becomes of the sums.
    bias : Matrix, optional
        What they start from (m, n).
    alpha, alphas : Number or float, Matrix, optional
        The parameter of the formula: one for all, or (m, n).
    x_gradient, w_gradient : Gradient, optional
        If x or w are gradients that another formula applies to.
    """
    m, k, n = sizes
    if m == 0 or n == 0:
        return
    for first in range(0, m, 1 << 30):  # a result of more rows, by pieces
        rows = min(m - first, 1 << 30)
        part = None if x_gradient is None else Gradient(x_gradient.formula, x_gradient.y.moved(first))
        places = [matrix.moved(first) for matrix in (x, y, bias, alphas)]
        if work.precision != "highest" and tensor_cores.run(
            work, (rows, k, n), places[0], w, places[1], result, places[2], alpha, places[3], part, w_gradient
        ):
            continue
        run_exactly(work, (rows, k, n), places[0], w, places[1], result, places[2], alpha, places[3], part, w_gradient)


def run_exactly(
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
    groups: int = 0,
) -> None:
    """The same in plain floats; also of patches, where there may be up to 0xFFFF groups of products.

    The y of a gradient of patches has the type of dy and lies as dy does.
    """
    m, k, n = sizes
    dtype = sums_of(result.dtype)
    driver = launch.active()
    capability = driver.capability(work.device)
    x_kind, w_kind = kind_of(x, m, dtype, x_gradient, "terms"), kind_of(w.T, n, dtype, w_gradient, "rows")
    if _room(capability) < _ROOM_FOR_Y:
        x_kind, w_kind = replace(x_kind, staged=False), replace(w_kind, staged=False)
        x_kind, w_kind = (replace(kind, wide=kind.wide and not kind.derivative) for kind in (x_kind, w_kind))
    block, per_part = plan(sizes, x_kind, w_kind, dtype, capability, driver.processors(work.device), groups or 1)
    blocks = max(-(-k // KC), 1)
    parts = -(-blocks // per_part)
    gradient = x_gradient or w_gradient
    z = NOTHING if gradient is None else gradient.y if w_gradient is None else gradient.y.T
    kernel = product(block, x_kind, w_kind, bias.dtype, result, parts > 1, capability >= _ASYNCHRONOUS)
    size = ITEMSIZES[dtype]
    row = -(-n * size // PACKET) * PACKET
    slabs = work.scratch(max(groups, 1) * blocks * m * row) if parts > 1 else None
    first = 0 if slabs is None else slabs.pointer
    steps = (x.group, w.group, bias.group, y.group, alphas.group, blocks * m * row) if groups else ()
    delivery = (y.pointer, y.row, y.column, alpha, alphas.pointer, alphas.row, alphas.column)
    tiles = -(-m // block.BM) * -(-n // block.BN)
    work.launch(
        kernel,
        (tiles, parts, groups or 1),
        *(x.pointer, x.row, x.column, w.pointer, w.column, w.row, z.pointer, z.row, z.column),
        *(bias.pointer, bias.row, bias.column, *delivery, first, row, m * row, per_part, m, n, k),
        *(*(x.division or w.division), *x.places, *w.places, *y.division, *y.places, *steps),
    )
    if slabs is not None:
        add_sums(work, result, slabs.pointer, (m, n), row, blocks, delivery, (*y.division, *y.places), groups, steps)


def add_sums(
    work: Draft | Work,
    result: Result,
    slabs: Any,
    sizes: tuple[int, int],
    row: int,
    blocks: int,
    delivery: tuple[Any, ...],
    places: tuple[int, ...] = (),
    groups: int = 0,
    steps: tuple[int, ...] = (),
) -> None:
    """Add the sums of blocks of terms, whose rows are `row` bytes long."""
    m, n = sizes
    kernel = add_blocks(result, groups > 0)
    grid = (min(-(-m * (row // PACKET) // kernel.threads[0]), _ADD_BLOCKS), groups or 1, 1)
    work.launch(kernel, grid, slabs, row, m * row, blocks, *delivery, m, n, *places, *steps)


def sum_rows(
    work: Draft | Work,
    sizes: tuple[int, int],
    x: Matrix,
    y: Matrix,
    result: Result,
    *,
    alpha: Number | float = 0.0,
    alphas: Matrix = NOTHING,
    gradient: Gradient | None = None,
) -> None:
    """Put the sum of the rows of x, or of the gradient that a formula makes of it, into the one row of y.

    Parameters
    ----------
    work : Draft or Work
        The call.
    sizes : tuple of int
        Rows m and columns n.
    x, y : Matrix
        Operand (m, n) and result (1, n).
    result : Result
        What becomes of the sums.
    alpha, alphas : Number or float, Matrix, optional
        The parameter of the formula.
    gradient : Gradient, optional
        The formula.
    """
    m, n = sizes
    if n == 0:
        return
    dtype = sums_of(result.dtype)
    kind = replace(kind_of(x, m, dtype, gradient, "terms"), terms_first=True, wide=False, staged=False)
    kernel = column_sums(kind, result)
    blocks = max(-(-m // KC), 1)
    row = -(-n * ITEMSIZES[dtype] // PACKET) * PACKET
    slabs = work.scratch(blocks * row)
    across, down, _ = kernel.threads
    z = NOTHING if gradient is None else gradient.y
    places = (x.pointer, x.row, x.column, z.pointer, z.row, z.column, alpha, alphas.pointer, slabs.pointer, row)
    work.launch(kernel, (-(-n // across), min(-(-blocks // down), 0xFFFF), 1), *places, m, n)
    delivery = (y.pointer, y.row, y.column, alpha, alphas.pointer, alphas.row, alphas.column)
    add_sums(work, result, slabs.pointer, (1, n), row, blocks, delivery)


def kind_of(operand: Matrix, rows: int, dtype: str, gradient: Gradient | None, columns: str) -> Operand:
    """How to read an operand whose rows are those of the result; `columns` of a gradient are its "terms" or "rows"."""
    size = ITEMSIZES[operand.dtype]
    if operand.places:
        positions, formula = "rows" if operand.row == 0 else "terms", "" if gradient is None else gradient.formula
        staged = gradient is not None and operand.dtype == dtype and gradient.keeps_zeros
        wide = positions == "rows" and operand.wide and operand.dtype == dtype
        wide = wide and (gradient is None or (staged and gradient.y.pointer % PACKET == 0))
        of = "" if gradient is None else operand.dtype
        return Operand(operand.dtype, positions == "terms", wide, formula, of, staged, positions, operand.pointwise)
    row, step = abs(operand.row), abs(operand.column)
    terms_first = (rows == 1 or step <= row) and not (operand.row == size and rows > 1)
    derivative, of, staged, together = "", "", False, [operand]
    if gradient is not None:
        derivative, y = gradient.formula, gradient.y if columns == "terms" else gradient.y.T
        of = f"bits along {columns}" if y.dtype == "bits" else y.dtype
        staged = operand.dtype == y.dtype == dtype
        together.append(y)
    wide = not terms_first and operand.dtype == dtype and (staged or not derivative) and rows % (PACKET // size) == 0
    wide = wide and all(a.row == size and a.pointer % PACKET == 0 and a.column % PACKET == 0 for a in together)
    return Operand(operand.dtype, terms_first, wide, derivative, of, staged)


def _room(capability: tuple[int, int]) -> int:
    """Bytes of shared memory of a multiprocessor."""
    return _SHARED_MEMORY.get(capability, _LEAST_SHARED_MEMORY) << 10


@lru_cache(maxsize=4096)
def plan(
    sizes: tuple[int, int, int],
    x: Operand,
    w: Operand,
    dtype: str,
    capability: tuple[int, int],
    processors: int,
    groups: int = 1,
) -> tuple[BlockTile, int]:
    """The block tile for a product, and the blocks of terms that a block of threads sums.

    What is least is an estimate of the time: the products of all blocks that one multiprocessor works on, with what it takes
    to start them, and the bytes of the sums that wait. A block that is alone on its multiprocessor takes longer.
    """
    m, k, n = sizes
    blocks = max(-(-k // KC), 1)
    size = ITEMSIZES[dtype]
    best, least = None, float("inf")
    room = _room(capability)
    for (rows, columns), (thread_rows, thread_columns), most, share in _TILES[dtype]:
        for resident in (most, 1):
            fitting = [BlockTile(rows, columns, terms, thread_rows, thread_columns, resident) for terms in _BLOCK_TERMS]
            fitting = [b for b in fitting if (shared_bytes(b, x, w, dtype) + _RESERVED) * resident <= room]
            if fitting:
                break
        if not fitting:
            continue
        tiles = groups * -(-m // rows) * -(-n // columns)
        per_part = blocks
        while True:
            parts = -(-blocks // per_part)
            waits = parts > 1 and groups * blocks * m * n * size
            if waits > _SLABS or parts > 0xFFFF:
                break
            each = -(-tiles * parts // processors)
            alone = 1.25 if min(each, resident) == 1 else 1.0
            cycles = each * (rows * columns * min(k, per_part * KC) / (_FMA * share) * alone + _START)
            if waits:
                cycles += _LAUNCH + 2 * waits / (_BYTES * processors)
            if cycles < least:
                best, least = (fitting[0], per_part), cycles
            if per_part == 1:
                break
            per_part = -(-per_part // 2)
    assert best is not None  # the smallest tile needs 22 KiB
    return best
