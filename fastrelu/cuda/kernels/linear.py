"""Products in plain floats, to the bit as on the CPU: y = f(x @ w + b), and both products of the backward pass.

``BlockTile``   how a block of threads divides its part of a product
``Operand``     how an operand is read
``copying``     an operand on its way to shared memory
``delivering``  sums on their way to results
``product``     the kernel: a block tile of sums, term after term
``add_blocks``  the kernel that adds the sums of blocks of terms, where several blocks of threads have shared them

Every element is summed as everywhere in this package: in blocks of KC terms, each one chain of fused multiply-adds from 0 (the
first from the bias), and the sums of the blocks are added in ascending order. A thread keeps the sums of the block of terms at
hand in registers; the total waits in shared memory, where it is added to once in KC terms, and from where it is delivered. So
two blocks of threads fit on a multiprocessor, and one calculates while the other waits.

Terms beyond the last are never multiplied: even a product of zeros can change the sign of a zero. Rows beyond the last
are calculated from anything, and not stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from fastrelu.cuda import formulas, tile
from fastrelu.cuda.conversion import converted
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import PACKET, SHARED, load, number_of, size_of, store
from fastrelu.cuda.ptx import block_index, commit_copies, copy_async_below, thread_index, wait_for_copies
from fastrelu.cuda.tile import is_below, shared_start
from fastrelu.cuda.toolkit import cuda, device_function, intrinsic, types
from fastrelu.kernels.vector import ELEMENTS
from fastrelu.operations import HALVES, KC

int32, uint32 = types.int32, types.uint32

WARP_ROWS, WARP_COLUMNS = 4, 8
"""Threads of a warp along the rows and the columns of its tile."""
TERMS = 8
"""Neighbouring terms that neighbouring threads copy where terms are contiguous: of float32 a sector of 32 bytes."""
RASTER = 8
"""Rows of block tiles that are worked on at a time, so that what they share stays in the second-level cache."""
ADDING = 256
"""Threads of a block that adds sums."""
AHEAD = 8
"""Sums that a thread reads at a time, lest it wait for each."""


@dataclass(frozen=True)
class BlockTile:
    """How a block of threads divides its part of a product.

    Attributes
    ----------
    BM, BN, BK : int
        Rows, columns and terms of the block tile.
    TM, TN : int
        Rows and columns of a thread's tile.
    blocks : int
        How many blocks of threads a multiprocessor has room for.
    """

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int
    blocks: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.BM // self.TM * (self.BN // self.TN)


@dataclass(frozen=True)
class Operand:
    """How an operand is read. Its rows are those of the result for x, and the columns of the result for w.

    Attributes
    ----------
    dtype : str
        Its element type.
    terms_first : bool
        Whether neighbouring threads copy neighbouring terms, else neighbouring rows.
    wide : bool
        Whether rows are neighbours in memory, and aligned so that 16 bytes can be copied at once.
    derivative : str
        The formula of dz, if the operand is dz: what is read is dy then. "" otherwise.
    of : str
        The element type of y; "bits along terms" or "bits along rows" for bits of y > 0.
    staged : bool
        Whether y, which then has the layout and the type of dy, is copied to shared memory as well, so that no thread waits for
        memory to make dz.
    """

    dtype: str
    terms_first: bool = True
    wide: bool = False
    derivative: str = ""
    of: str = ""
    staged: bool = False


@dataclass(frozen=True)
class Result:
    """What becomes of sums.

    Attributes
    ----------
    dtype : str
        The element type.
    formula : str
        The activation; "" for none.
    alpha : str
        The element type of an alpha in memory; "" if it is a number or there is none.
    adds : bool
        Whether they are added to what the array holds.
    """

    dtype: str
    formula: str = ""
    alpha: str = ""
    adds: bool = False


def sums_of(dtype: str) -> str:
    """The type in which numbers of a type are summed."""
    return "float32" if dtype in HALVES else dtype


@cache
def cast(path: tuple[str, ...], count: int = 1) -> Any:
    """A function that converts a number, or a tuple of `count`, from the first type of a path to the second, and so on."""
    elements = [ELEMENTS[name] for name in path]
    first, last = (number_of(element) for element in (elements[0], elements[-1]))
    if count > 1:
        first, last = types.UniTuple(first, count), types.UniTuple(last, count)

    @intrinsic
    def convert(typing_context, value):
        def codegen(context, builder, signature, arguments):
            lanes = [arguments[0]] if count == 1 else [builder.extract_value(arguments[0], i) for i in range(count)]
            for source, target in pairwise(elements):
                lanes = [converted(builder, lane, source, target) for lane in lanes]
            return lanes[0] if count == 1 else context.make_tuple(builder, last, lanes)

        return last(first), codegen

    return convert


def _formula(name: str, dtype: str, parameters: int) -> Any:
    """A formula of `fastrelu.kernels.formulas` as a function of as many values and alpha."""
    if not name:
        return device_function(lambda *values: values[0])
    function = formulas.inline(name, dtype)
    takes_alpha = getattr(formulas.formulas, name).__code__.co_argcount > parameters
    if parameters == 1:
        return device_function((lambda x, alpha: function(x, alpha)) if takes_alpha else (lambda x, alpha: function(x)))
    return device_function((lambda x, y, alpha: function(x, y, alpha)) if takes_alpha else (lambda x, y, alpha: function(x, y)))


def reading(operand: Operand, dtype: str, common: str) -> Any:
    """The function that reads a number of an operand, as one of the type of the sums.

    Its arguments are the address; and of dz the address of y or of the byte with the bit, the number of the bit, and alpha.
    """
    read, widened = load(operand.dtype), cast((operand.dtype, common, dtype))
    if not operand.derivative:
        return device_function(lambda address, y, bit, alpha: widened(read(address)))
    if operand.of.startswith("bits"):
        read_byte, number = load("uint8"), number_of(ELEMENTS[dtype])

        @device_function
        def read_where_positive(address, y, bit, alpha):
            return widened(read(address)) if (int32(read_byte(y)) >> bit) & 1 else number(0)

        return read_where_positive
    read_y, widened_y = load(operand.of), cast((operand.of, common, dtype))
    derivative = _formula(operand.derivative, dtype, 2)
    return device_function(lambda address, y, bit, alpha: derivative(widened(read(address)), widened_y(read_y(y)), alpha))


@dataclass(frozen=True)
class Copy:
    """How a block of threads copies an operand's part of a block tile.

    Attributes
    ----------
    near, wide : int
        How many threads copy neighbouring terms, or rows; and how many rows each copies at once.
    tile : function
        Copies. Its arguments are the places for the operand and for y, and the address, where this thread begins; the terms
        that follow there, and the first one's number; then the bytes from a row and from a term to the next, the rows
        that follow, and the first one's number; and of dz the address of y, its steps, and alpha.
    settle : function or None
        Makes dz of the dy and the y that this thread has copied to two places. It needs alpha.
    """

    near: int
    wide: int
    tile: Any
    settle: Any


def copying(operand: Operand, extent: int, pitch: int, block: BlockTile, dtype: str, common: str, asynchronous: bool) -> Copy:
    """How to copy an operand.

    Parameters
    ----------
    operand : Operand
        The operand.
    extent, pitch : int
        Its rows in a block tile, and the elements from a term to the next in shared memory.
    block : BlockTile
        The block tile.
    dtype, common : str
        The type of the sums, and that of the operation.
    asynchronous : bool
        Whether the device copies to shared memory by itself.
    """
    SIZE = size_of(ELEMENTS[dtype])
    WIDE = PACKET // SIZE if operand.wide else 1
    TERM = pitch * SIZE
    # How far a thread's next copies are from its first one, along rows and terms, and how many there are.
    near = TERMS if operand.terms_first else extent // WIDE
    ROWS = block.threads // near if operand.terms_first else extent
    STEPS = TERMS if operand.terms_first else block.threads // near
    DOWN, ALONG = extent // ROWS, block.BK // STEPS
    DOWN_PLACE, ALONG_PLACE = ROWS * SIZE, STEPS * TERM
    number = number_of(ELEMENTS[dtype])
    if asynchronous and operand.dtype == dtype and (operand.staged or not operand.derivative):
        copy, STAGED = copy_async_below(WIDE * SIZE), operand.staged

        @device_function
        def copy_tile(place, y_place, source, terms, p, along, of):
            (row, step, rows, i), (y, y_row, y_step, _) = along, of
            for h in range(ALONG):
                given = rows if is_below(h * STEPS, terms) else int32(0)
                address, at = source + h * STEPS * step, y + i * y_row + (p + h * STEPS) * y_step
                for v in range(DOWN):
                    copy(place + h * ALONG_PLACE + v * DOWN_PLACE, address, v * ROWS, given)
                    address += ROWS * row
                    if STAGED:
                        copy(y_place + h * ALONG_PLACE + v * DOWN_PLACE, at, v * ROWS, given)
                        at += ROWS * y_row

        read, put = load(dtype, WIDE, SHARED), store(dtype, WIDE, SHARED)
        derivative = _formula(operand.derivative, dtype, 2)

        @device_function
        def settle(place, y_place, alpha):
            for h in range(ALONG):
                for v in range(DOWN):
                    to = place + h * ALONG_PLACE + v * DOWN_PLACE
                    put(to, derivative(read(to), read(y_place + h * ALONG_PLACE + v * DOWN_PLACE), alpha))

        return Copy(near, WIDE, copy_tile, settle if STAGED else None)
    read, put = reading(operand, dtype, common), store(dtype, space=SHARED)
    ALONG_TERMS, ALONG_ROWS = (operand.of == f"bits along {what}" for what in ("terms", "rows"))

    @device_function
    def read_tile(place, y_place, source, terms, p, along, of):
        (row, step, rows, i), (y, y_row, y_step, alpha) = along, of
        for h in range(ALONG):
            given = rows if is_below(h * STEPS, terms) else int32(0)
            address, j = source + h * STEPS * step, p + h * STEPS
            for v in range(DOWN):
                at, bit = y + (i + v * ROWS) * y_row + j * y_step, 0
                if ALONG_TERMS:
                    at, bit = y + (i + v * ROWS) * y_row + (j >> 3) * y_step, j & 7
                if ALONG_ROWS:
                    at, bit = y + (i + v * ROWS >> 3) * y_row + j * y_step, (i + v * ROWS) & 7
                value = number(0)
                if is_below(v * ROWS, given):
                    value = read(address, at, bit, alpha)
                put(place + h * ALONG_PLACE + v * DOWN_PLACE, value)
                address += ROWS * row

    return Copy(near, WIDE, read_tile, None)


def pitch_of(operand: Operand, extent: int, dtype: str) -> int:
    """Elements from a term to the next in shared memory.

    A packet more than rows where neighbouring threads write neighbouring terms, lest they meet in few banks.
    """
    return extent + (PACKET // size_of(ELEMENTS[dtype]) if operand.terms_first else 0)


def shared_bytes(block: BlockTile, x: Operand, w: Operand, dtype: str) -> int:
    """The shared memory that the kernel needs: the totals, two block tiles of the operands, and one of a staged y."""
    x_pitch, w_pitch = pitch_of(x, block.BM, dtype), pitch_of(w, block.BN, dtype)
    pitches = (2 + x.staged) * x_pitch + (2 + w.staged) * w_pitch
    return size_of(ELEMENTS[dtype]) * (block.BM * block.BN + block.BK * pitches)


def delivering(result: Result) -> Any:
    """The function that delivers a packet of sums, which is in shared memory and is overwritten."""
    dtype = sums_of(result.dtype)
    SIZE, OUT = size_of(ELEMENTS[dtype]), size_of(ELEMENTS[result.dtype])
    LANES = PACKET // SIZE
    number = number_of(ELEMENTS[dtype])
    read, put = load(dtype, space=SHARED), store(dtype, space=SHARED)
    read_all, put_all = load(dtype, LANES, SHARED), store(result.dtype, LANES)
    put_one = store(result.dtype)
    narrowed, narrowed_all = (cast((dtype, result.dtype), count) for count in (1, LANES))
    HAS_FORMULA, ADDS, HAS_ALPHAS = bool(result.formula), result.adds, bool(result.alpha)
    activation = _formula(result.formula, dtype, 1)
    read_alpha, widened_alpha = load(result.alpha or dtype), cast((result.alpha or dtype, dtype))
    read_held, widened_held = load(result.dtype), cast((result.dtype, dtype))

    @device_function
    def deliver(place, i, j, n, y, y_row, y_column, alpha, alphas, alpha_row, alpha_column):
        """The packet of row i, from column j on, of n."""
        to = y + i * y_row + j * y_column
        if HAS_FORMULA or ADDS:
            for c in range(LANES):
                value = read(place + c * SIZE)
                if HAS_FORMULA:
                    parameter = number(alpha)
                    if HAS_ALPHAS and j + c < n:
                        parameter = widened_alpha(read_alpha(alphas + i * alpha_row + (j + c) * alpha_column))
                    value = activation(value, parameter)
                if ADDS and j + c < n:
                    value = widened_held(read_held(to + c * y_column)) + value
                put(place + c * SIZE, value)
        if j + LANES <= n and y_column == OUT and to % (LANES * OUT) == 0:
            put_all(to, narrowed_all(read_all(place)))
        else:
            for c in range(LANES):
                if j + c < n:
                    put_one(to + c * y_column, narrowed(read(place + c * SIZE)))

    return deliver


@cache
def product(
    block: BlockTile, x_kind: Operand, w_kind: Operand, bias: str, result: Result, in_parts: bool, asynchronous: bool = True
) -> Kernel:
    """The kernel for a product.

    Parameters
    ----------
    block : BlockTile
        The block tile.
    x_kind, w_kind : Operand
        The operands.
    bias : str
        The element type of the bias; "" if there is none.
    result : Result
        What becomes of the sums.
    in_parts : bool
        Whether several blocks of threads share the terms of a block tile: each stores the sum of every block of terms.
    asynchronous : bool, optional
        Whether the device copies to shared memory by itself, as from compute capability 8.0 on.
    """
    common = result.dtype
    dtype = sums_of(common)
    element = ELEMENTS[dtype]
    number = number_of(element)
    SIZE = size_of(element)
    LANES = PACKET // SIZE
    BM, BN, BK, TM, TN, THREADS = block.BM, block.BN, block.BK, block.TM, block.TN, block.threads
    X_PITCH, W_PITCH = pitch_of(x_kind, BM, dtype), pitch_of(w_kind, BN, dtype)
    X_GAP, W_GAP = WARP_ROWS * LANES, WARP_COLUMNS * LANES
    WARPS_ACROSS = BN // (WARP_COLUMNS * TN)
    PACKETS, ACROSS = TM * TN // LANES, TN // LANES
    GAP = THREADS * PACKET
    X_TERM, W_TERM = X_PITCH * SIZE, W_PITCH * SIZE
    STAGE, W_PART = BK * (X_TERM + W_TERM), BK * X_TERM
    STAGES = BM * BN * SIZE
    TILES = KC // BK
    kind = tile.build(element, TM, TN, THREADS, BK, (X_PITCH, X_GAP), (W_PITCH, W_GAP))
    zeros, load_tile, store_tile, add_to = kind.zeros, kind.load, kind.store, kind.add_to
    multiply, multiply_term = kind.multiply, kind.multiply_term
    x_copying = copying(x_kind, BM, X_PITCH, block, dtype, common, asynchronous)
    w_copying = copying(w_kind, BN, W_PITCH, block, dtype, common, asynchronous)
    x_copy, x_settle, X_NEAR, X_WIDE = x_copying.tile, x_copying.settle, x_copying.near, x_copying.wide
    w_copy, w_settle, W_NEAR, W_WIDE = w_copying.tile, w_copying.settle, w_copying.near, w_copying.wide
    X_BY_TERMS, W_BY_TERMS = x_kind.terms_first, w_kind.terms_first
    X_SETTLES, W_SETTLES = x_settle is not None, w_settle is not None
    deliver = delivering(result)
    HAS_BIAS, IN_PARTS, ASYNCHRONOUS = bool(bias), in_parts, asynchronous
    read_bias, widened_bias = load(bias or dtype), cast((bias or dtype, common, dtype))
    HAS_ALPHA = bool(result.alpha and (x_kind.derivative or w_kind.derivative))
    read_alpha, widened_alpha = load(result.alpha or dtype), cast((result.alpha or dtype, dtype))
    put, read_packet, put_packet = store(dtype, space=SHARED), load(dtype, LANES, SHARED), store(dtype, LANES)

    @device_function
    def corner(index, m, n):
        """The first row and column of the block tile of a block of threads."""
        across, down = uint32((n + BN - 1) // BN), uint32((m + BM - 1) // BM)
        band = uint32(index // uint32(RASTER * across))
        within = uint32(index - band * RASTER * across)
        height = uint32(min(uint32(RASTER), uint32(down - band * RASTER)))
        return int32((band * RASTER + within % height) * BM), int32(within // height * BN)

    @device_function
    def place_of(thread):
        """The first row and column of a thread within the block tile."""
        lane, warp = thread % 32, thread // 32
        row = warp // WARPS_ACROSS * (WARP_ROWS * TM) + lane // WARP_COLUMNS * LANES
        return row, warp % WARPS_ACROSS * (WARP_COLUMNS * TN) + lane % WARP_COLUMNS * LANES

    @device_function
    def row_of(packet):
        """How far down a packet of a thread is."""
        return packet // (LANES * ACROSS) * X_GAP + packet // ACROSS % LANES

    @device_function
    def keep(slab, slab_row, m, n):
        """Store the sums of a block of terms, which wait in shared memory."""
        thread = thread_index()
        first_row, first_column = corner(block_index(), m, n)
        row, column = place_of(thread)
        for g in range(PACKETS):
            i, j = first_row + row + row_of(g), first_column + column + g % ACROSS * W_GAP
            if i < m and j < n:
                put_packet(slab + i * slab_row + j * SIZE, read_packet(shared_start() + thread * PACKET + g * GAP))

    def linear(
        x, x_row, x_step, w, w_column, w_step, dz_y, dz_row, dz_step, b, b_row, b_column,
        y, y_row, y_column, alpha, alphas, alpha_row, alpha_column, slabs, slab_row, slab, blocks, m, n, k,
    ):  # fmt: skip
        thread = cuda.threadIdx.x
        first_row, first_column = corner(uint32(cuda.blockIdx.x), m, n)
        row, column = place_of(thread)
        number_of_block = int32(cuda.blockIdx.y * blocks)
        term = int32(number_of_block * KC)
        left = int32(k - term)
        if IN_PARTS:
            left = int32(min(left, blocks * KC))
        end = int32(term + left)
        sums = shared_start() + thread * PACKET
        stages = shared_start() + STAGES
        x_place = stages + row * SIZE
        w_place = stages + W_PART + column * SIZE
        parameter = number(alpha)
        if HAS_ALPHA:
            parameter = widened_alpha(read_alpha(alphas))

        # Where this thread copies: its row and term, how many follow, the first address, and the place.
        near, far = thread % X_NEAR, thread // X_NEAR
        x_i, x_p = (far, near) if X_BY_TERMS else (near * X_WIDE, far)
        x_to = stages + x_p * X_TERM + x_i * SIZE
        x_i = first_row + x_i
        x_along, x_next = (x_row, x_step, int32(m - x_i), x_i), x + x_i * x_row + (term + x_p) * x_step
        near, far = thread % W_NEAR, thread // W_NEAR
        w_j, w_p = (far, near) if W_BY_TERMS else (near * W_WIDE, far)
        w_to = stages + W_PART + w_p * W_TERM + w_j * SIZE
        w_j = first_column + w_j
        w_along, w_next = (w_column, w_step, int32(n - w_j), w_j), w + w_j * w_column + (term + w_p) * w_step
        x_y, w_y = x_to + 2 * STAGE, w_to + 2 * STAGE - W_PART
        dz = (dz_y, dz_row, dz_step, parameter)

        x_copy(x_to, x_y, x_next, left - x_p, term + x_p, x_along, dz)
        w_copy(w_to, w_y, w_next, left - w_p, term + w_p, w_along, dz)
        if ASYNCHRONOUS:
            commit_copies()
        x_next += BK * x_step
        w_next += BK * w_step

        sums_now = zeros()
        if HAS_BIAS and term == 0:
            for g in range(PACKETS):
                i, j = first_row + row + row_of(g), first_column + column + g % ACROSS * W_GAP
                for c in range(LANES):
                    start = number(0)
                    if i < m and j + c < n:
                        start = widened_bias(read_bias(b + i * b_row + (j + c) * b_column))
                    put(sums + g * GAP + c * SIZE, start)
            sums_now = load_tile(sums)

        stage = int32(0)
        is_first = True
        while left > 0:
            for _ in range(TILES):
                if ASYNCHRONOUS:
                    wait_for_copies()
                if X_SETTLES:
                    x_settle(x_to + stage, x_y, parameter)
                if W_SETTLES:
                    w_settle(w_to + stage, w_y, parameter)
                cuda.syncthreads()
                if left > BK:
                    other, ahead = STAGE - stage, int32(left - BK)
                    p = int32(end - ahead)
                    x_copy(x_to + other, x_y, x_next, ahead - x_p, p + x_p, x_along, dz)
                    w_copy(w_to + other, w_y, w_next, ahead - w_p, p + w_p, w_along, dz)
                    x_next += BK * x_step
                    w_next += BK * w_step
                if ASYNCHRONOUS:
                    commit_copies()
                if left < BK:
                    for p in range(left):
                        sums_now = multiply_term(sums_now, x_place + stage + p * X_TERM, w_place + stage + p * W_TERM)
                    left = int32(0)
                    break
                sums_now = multiply(sums_now, x_place + stage, w_place + stage)
                left = int32(left - BK)
                stage = int32(STAGE - stage)
                if left == 0:
                    break
            if IN_PARTS:
                store_tile(sums, sums_now)
                keep(slabs + number_of_block * slab, slab_row, m, n)
                number_of_block = int32(number_of_block + 1)
            elif is_first:
                store_tile(sums, sums_now)
            else:
                add_to(sums, sums_now)
            is_first = False
            sums_now = zeros()

        if not IN_PARTS:
            if is_first:
                store_tile(sums, sums_now)
            thread = thread_index()
            first_row, first_column = corner(block_index(), m, n)
            row, column = place_of(thread)
            for g in range(PACKETS):
                i, j = first_row + row + row_of(g), first_column + column + g % ACROSS * W_GAP
                if i < m and j < n:
                    place = shared_start() + thread * PACKET + g * GAP
                    deliver(place, i, j, n, y, y_row, y_column, alpha, alphas, alpha_row, alpha_column)

    word = types.int64
    arguments = (*[word] * 15, number, *[word] * 6, *[int32] * 4)
    return Kernel(linear, arguments, THREADS, shared=shared_bytes(block, x_kind, w_kind, dtype), blocks=block.blocks)


@cache
def add_blocks(result: Result) -> Kernel:
    """The kernel that adds the sums of blocks of terms in ascending order, and delivers them."""
    dtype = sums_of(result.dtype)
    element = ELEMENTS[dtype]
    SIZE = size_of(element)
    LANES = PACKET // SIZE
    kind = tile.build(element, 1, LANES, ADDING)
    store_sums, added = kind.store, kind.add
    read = load(dtype, LANES)
    deliver = delivering(result)

    def add(slabs, slab_row, slab, blocks, y, y_row, y_column, alpha, alphas, alpha_row, alpha_column, m, n):
        place = shared_start() + cuda.threadIdx.x * PACKET
        across = (n + LANES - 1) // LANES
        for at in range(cuda.grid(1), m * across, cuda.gridsize(1)):
            i, j = at // across, at % across * LANES
            source = slabs + i * slab_row + j * SIZE
            total = read(source)
            left = blocks - 1
            while left >= AHEAD:
                for _ in range(AHEAD):
                    source += slab
                    total = added(total, read(source))
                left -= AHEAD
            for _ in range(left):
                source += slab
                total = added(total, read(source))
            store_sums(place, total)
            deliver(place, i, j, n, y, y_row, y_column, alpha, alphas, alpha_row, alpha_column)

    word = types.int64
    arguments = (*[word] * 7, number_of(element), *[word] * 5)
    return Kernel(add, arguments, ADDING, shared=ADDING * PACKET)
