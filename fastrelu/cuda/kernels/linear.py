"""Products in plain floats, to the bit as on the CPU: y = f(x @ w + b), and both products of the backward pass.

``BlockTile``   how a block of threads divides its part of a product
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
from typing import Any

from fastrelu.cuda import tile
from fastrelu.cuda.kernels.operands import Operand, cast, copying, formula_of, pitch_of, sums_of
from fastrelu.cuda.kernels.patches import DIVISION, PATCHES, STEPS, elements_to, place_of
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import PACKET, SHARED, load, number_of, size_of, store
from fastrelu.cuda.ptx import block_index, commit_copies, thread_index, wait_for_copies
from fastrelu.cuda.tile import is_below, shared_start
from fastrelu.cuda.toolkit import cuda, device_function, types
from fastrelu.kernels.vector import ELEMENTS
from fastrelu.operations import KC

int32, int64, uint32 = types.int32, types.int64, types.uint32

WARP_ROWS, WARP_COLUMNS = 4, 8
"""Threads of a warp along the rows and the columns of its tile."""
RASTER = 8
"""Rows of block tiles that are worked on at a time, so that what they share stays in the second-level cache."""
ADDING = 256
"""Threads of a block that adds sums."""
AHEAD = 8
"""Sums that a thread reads at a time, lest it wait for each."""
GROUPS = 6
"""Bytes from a group to the next in x, w, the bias, y, the parameters and the sums that wait."""
PLACES = DIVISION + STEPS
"""Words that say where the columns of a result are, if they are positions."""
COPY = ("tile", "settle", "begin", "near", "wide", "moves")


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
    positions : bool
        Whether the columns are positions in images.
    """

    dtype: str
    formula: str = ""
    alpha: str = ""
    adds: bool = False
    positions: bool = False


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
    activation = formula_of(result.formula, dtype, 1)
    read_alpha, widened_alpha = load(result.alpha or dtype), cast((result.alpha or dtype, dtype))
    read_held, widened_held = load(result.dtype), cast((result.dtype, dtype))

    POSITIONS = result.positions

    @device_function
    def address_of(i, j, y, y_row, y_column, places):
        """The address of a result, and how many neighbours follow it in memory."""
        if POSITIONS:
            image, row, column = place_of(j, places)
            steps = places[6], places[7], places[8]
            return y + i * y_row + OUT * elements_to(image, row, column, steps), int32(places[3] - column)
        return y + i * y_row + j * y_column, int32(LANES)

    @device_function
    def deliver(place, i, j, n, y, y_row, y_column, alpha, alphas, alpha_row, alpha_column, places):
        """The packet of row i, from column j on, of n."""
        if HAS_FORMULA or ADDS:
            for c in range(LANES):
                value = read(place + c * SIZE)
                if HAS_FORMULA:
                    parameter = number(alpha)
                    if HAS_ALPHAS and j + c < n:
                        parameter = widened_alpha(read_alpha(alphas + i * alpha_row + (j + c) * alpha_column))
                    value = activation(value, parameter)
                if ADDS and j + c < n:
                    at, _ = address_of(i, j + c, y, y_row, y_column, places)
                    value = widened_held(read_held(at)) + value
                put(place + c * SIZE, value)
        to, following = address_of(i, j, y, y_row, y_column, places)
        if j + LANES <= n and following >= LANES and y_column == OUT and to % (LANES * OUT) == 0:
            put_all(to, narrowed_all(read_all(place)))
        else:
            for c in range(LANES):
                if j + c < n:
                    at, _ = address_of(i, j + c, y, y_row, y_column, places)
                    put_one(at, narrowed(read(place + c * SIZE)))

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
    kind = tile.build(element, TM, TN, THREADS, BK, (X_PITCH, X_GAP), (W_PITCH, W_GAP))
    zeros, load_tile, store_tile, add_to = kind.zeros, kind.load, kind.store, kind.add_to
    multiply, multiply_term = kind.multiply, kind.multiply_term
    x_copying = copying(x_kind, BM, X_PITCH, THREADS, BK, dtype, common, asynchronous)
    w_copying = copying(w_kind, BN, W_PITCH, THREADS, BK, dtype, common, asynchronous)
    x_copy, x_settle, x_begin, X_NEAR, X_WIDE, X_MOVES = (getattr(x_copying, name) for name in COPY)
    w_copy, w_settle, w_begin, W_NEAR, W_WIDE, W_MOVES = (getattr(w_copying, name) for name in COPY)
    X_PATCHES, W_PATCHES = bool(x_kind.positions), bool(w_kind.positions)
    GROUPED = X_PATCHES or W_PATCHES
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
    def corner_of(thread):
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
        row, column = corner_of(thread)
        for g in range(PACKETS):
            i, j = first_row + row + row_of(g), first_column + column + g % ACROSS * W_GAP
            if i < m and j < n:
                put_packet(slab + i * slab_row + j * SIZE, read_packet(shared_start() + thread * PACKET + g * GAP))

    def linear(
        x, x_row, x_step, w, w_column, w_step, dz_y, dz_row, dz_step, b, b_row, b_column,
        y, y_row, y_column, alpha, alphas, alpha_row, alpha_column, slabs, slab_row, slab, blocks, m, n, k,
        division, x_places, w_places, y_places, groups,
    ):  # fmt: skip
        x_group = w_group = int64(0)
        if GROUPED:
            group = cuda.blockIdx.z
            x_group, w_group = group * groups[0], group * groups[1]
            b += group * groups[2]
            y += group * groups[3]
            alphas += group * groups[4]
            slabs += group * groups[5]
            if not X_PATCHES:
                x += x_group
            if not W_PATCHES:
                w += w_group
        if X_PATCHES:
            dz_y -= x_places[7]  # how far y is from dy
        elif W_PATCHES:
            dz_y -= w_places[7]
        thread = cuda.threadIdx.x
        first_row, first_column = corner(uint32(cuda.blockIdx.x), m, n)
        row, column = corner_of(thread)
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
        x_along = x_begin(x_row, x_step, int32(m - x_i), x_i, division, x_places, x_group)
        x_next = x + x_i * x_row + (term + x_p) * x_step
        near, far = thread % W_NEAR, thread // W_NEAR
        w_j, w_p = (far, near) if W_BY_TERMS else (near * W_WIDE, far)
        w_to = stages + W_PART + w_p * W_TERM + w_j * SIZE
        w_j = first_column + w_j
        w_along = w_begin(w_column, w_step, int32(n - w_j), w_j, division, w_places, w_group)
        w_next = w + w_j * w_column + (term + w_p) * w_step
        x_y, w_y = x_to + 2 * STAGE, w_to + 2 * STAGE - W_PART
        dz = (dz_y, dz_row, dz_step, parameter)

        x_copy(x_to, x_y, x_next, left - x_p, term + x_p, x_along, dz)
        w_copy(w_to, w_y, w_next, left - w_p, term + w_p, w_along, dz)
        if ASYNCHRONOUS:
            commit_copies()
        if X_MOVES:
            x_next += BK * x_step
        if W_MOVES:
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
            after = int32(max(left - KC, 0))  # what is left behind this block of terms
            while is_below(after, left):
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
                    if X_MOVES:
                        x_next += BK * x_step
                    if W_MOVES:
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
            row, column = corner_of(thread)
            for g in range(PACKETS):
                i, j = first_row + row + row_of(g), first_column + column + g % ACROSS * W_GAP
                if i < m and j < n:
                    place = shared_start() + thread * PACKET + g * GAP
                    deliver(place, i, j, n, y, y_row, y_column, alpha, alphas, alpha_row, alpha_column, y_places)

    word = types.int64
    arguments = (*[word] * 15, number, *[word] * 6, *[int32] * 4)
    counts = GROUPED * DIVISION, X_PATCHES * PATCHES, W_PATCHES * PATCHES, result.positions * PLACES, GROUPED * GROUPS
    arguments += tuple(types.UniTuple(word, count) for count in counts)
    return Kernel(linear, arguments, THREADS, shared=shared_bytes(block, x_kind, w_kind, dtype), blocks=block.blocks)


@cache
def add_blocks(result: Result, grouped: bool = False) -> Kernel:
    """The kernel that adds the sums of blocks of terms in ascending order, and delivers them; of groups, each along y."""
    GROUPED = grouped
    dtype = sums_of(result.dtype)
    element = ELEMENTS[dtype]
    SIZE = size_of(element)
    LANES = PACKET // SIZE
    kind = tile.build(element, 1, LANES, ADDING)
    store_sums, added = kind.store, kind.add
    read = load(dtype, LANES)
    deliver = delivering(result)

    def add(slabs, slab_row, slab, blocks, y, y_row, y_column, alpha, alphas, alpha_row, alpha_column, m, n, places, groups):
        if GROUPED:
            group = cuda.blockIdx.y
            y += group * groups[3]
            alphas += group * groups[4]
            slabs += group * groups[5]
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
            deliver(place, i, j, n, y, y_row, y_column, alpha, alphas, alpha_row, alpha_column, places)

    word = types.int64
    counts = (result.positions * PLACES, GROUPED * GROUPS)
    arguments = (*[word] * 7, number_of(element), *[word] * 5, *(types.UniTuple(word, count) for count in counts))
    return Kernel(add, arguments, ADDING, shared=ADDING * PACKET)
