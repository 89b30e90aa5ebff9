"""y = f(a @ b + bias) of float32 by the matrix instructions of a warpgroup (wgmma) of compute capability 9.0.

A block calculates 128 x 128 sums with two warpgroups, 64 x 128 each. Operands are copied as in `tensor_cores`. wgmma takes
A from registers, where its numbers are rounded to TF32 or split into two such numbers; B it reads from shared memory, by
terms, so that every block tile of B is written there once more, rounded or in two parts, while the tile before is
multiplied. This also transposes it where its rows are contiguous.

On paper a block tile takes 512 cycles for each product of an H200's tensor cores. Reading B for them takes 256; writing two
parts of B takes 384 and one 256, reading A 128 and copying 256: with the three products of ``split`` that is 1536 of 1536
cycles of shared memory, and with the one of ``fast`` 896 of 512, so that shared memory is the limit there. None of this has
been measured.
"""

from typing import Any

from fastrelu.cuda.kernels import fragments
from fastrelu.cuda.kernels.tensor_tiles import (
    BN,
    K_MAJOR,
    PITCH,
    ROW_BYTES,
    THREADS,
    Layer,
    block_tile,
    copies,
    finish,
    pitch_of,
    tile_bytes,
)
from fastrelu.cuda.memory import SHARED, load, store
from fastrelu.cuda.ptx import commit_copies, fence_for_tensor_cores, wait_for_copies_but
from fastrelu.cuda.tile import shared_start
from fastrelu.cuda.toolkit import cuda, device_function, types

STAGES = 4
"""Block tiles in shared memory: one is multiplied, one made ready, and the others arrive."""
PART = BN * ROW_BYTES
"""Bytes of a block tile of B as wgmma reads it."""
INSTRUCTIONS = 4
"""Products of 8 terms of a block tile."""
# Rows of 128 bytes, swapped in pieces of 16 bytes, 8 rows in 1024 bytes (PTX ISA, matrix descriptor of wgmma).
DESCRIPTOR = (1 << 62) | (64 << 32) | (1 << 16)


def shared_bytes(a_major: str, b_major: str) -> int:
    """Shared memory of a block."""
    return 1024 + 4 * PART + STAGES * (tile_bytes(a_major, 4) + tile_bytes(b_major, 4))


def _preparation(split: bool, b_major: str) -> Any:
    """The function (source, place, thread) that writes a tile of B as wgmma reads it, in one part or two."""
    SPLIT, BY_ROWS, B_PITCH, B_PART = split, b_major == K_MAJOR, pitch_of(b_major, 4), PART
    PIECES = BN * ROW_BYTES // 16 // THREADS
    load_four, store_four = load("uint32", 4, SHARED), store("uint32", 4, SHARED)
    load_column = fragments.load_words([term * B_PITCH for term in range(4)])
    split_four, round_four = fragments.split_words(4), fragments.round_words(4)

    @device_function
    def write(place, four):
        if SPLIT:
            high, low = split_four(four)
            store_four(place, high)
            store_four(place + B_PART, low)
        else:
            store_four(place, round_four(four))

    @device_function
    def prepare(source, place, thread):
        if BY_ROWS:
            for v in range(PIECES):
                at = (thread + v * THREADS) << 4
                write(place + at, load_four(source + at))
        else:
            row, first = thread & (BN - 1), thread // BN
            for v in range(PIECES):
                piece = first + v * (THREADS // BN)
                four = load_column(source + piece * (4 * B_PITCH) + row * 4)
                write(place + row * ROW_BYTES + ((piece ^ (row & 7)) << 4), four)

    return prepare


def product(way: str, a_major: str, b_major: str, layer: Layer) -> Any:
    """The kernel for float32 operands that lie in memory by rows or by terms; arguments as in `tensor_cores.product`."""
    SPLIT = way == "split"
    A_BY_ROWS, B_BY_ROWS = a_major == K_MAJOR, b_major == K_MAJOR
    A_PITCH, A_BYTES = pitch_of(a_major, 4), tile_bytes(a_major, 4)
    STAGE = A_BYTES + tile_bytes(b_major, 4)
    BK = ROW_BYTES // 4
    AHEAD = STAGES - 1
    COUNT = BN // 2
    start_a, start_b = copies(a_major, 4), copies(b_major, 4)
    if A_BY_ROWS:
        load_a = fragments.load_rows("tf32", 1, ROW_BYTES, INSTRUCTIONS)
    else:
        near = [(0, 0), (8, 0), (0, 4), (8, 4)]
        load_a = fragments.load_words([(8 * g + term) * A_PITCH + 4 * row for g in range(INSTRUCTIONS) for row, term in near])
    split, round_ = fragments.split_words(4 * INSTRUCTIONS), fragments.round_words(4 * INSTRUCTIONS)
    begin = fragments.begin_products(BN, INSTRUCTIONS, ((1, 0), (0, 1), (0, 0)) if SPLIT else ((0, 0),))
    end = fragments.end_products(BN)
    zeros, promote = fragments.zeros(COUNT), fragments.promote(COUNT)
    prepare = _preparation(SPLIT, b_major)
    store_sums = fragments.store_sums(1, BN // 8, PITCH)
    results = finish(layer, SPLIT)
    wait_for_first, wait_for_next = wait_for_copies_but(AHEAD - 1), wait_for_copies_but(AHEAD - 2)

    def kernel(a, a_step, b, b_step, bias, bias_step, alpha, alphas, alphas_step, y, y_row, y_step, part_step, terms, m, n, k):
        thread = types.int64(cuda.threadIdx.x)
        lane = thread & 31
        i0, j0 = block_tile(types.int64(cuda.blockIdx.x), m, n, BN)
        part = types.int64(cuda.blockIdx.y)
        a += part * terms * (4 if A_BY_ROWS else a_step)
        b += part * terms * (4 if B_BY_ROWS else b_step)
        y += part * part_step
        k = min(k - part * terms, terms)
        start = (shared_start() + 1023) & -1024
        stages = start + 4 * PART
        tiles = (k + (BK - 1)) // BK
        for tile in range(AHEAD):
            if tile < tiles:
                start_a(stages + tile * STAGE, a, a_step, i0, m, tile * BK, k, thread)
                start_b(stages + tile * STAGE + A_BYTES, b, b_step, j0, n, tile * BK, k, thread)
            commit_copies()
        wait_for_first()
        cuda.syncthreads()
        if tiles > 0:
            prepare(stages + A_BYTES, start, thread)
        fence_for_tensor_cores()
        first_row = (thread >> 5) * 16
        if A_BY_ROWS:
            line = first_row + (lane & 15)
            a_place = line * ROW_BYTES + (((lane >> 4) ^ (line & 7)) << 4)
        else:
            a_place = (lane & 3) * A_PITCH + (first_row + (lane >> 2)) * 4
        sums = zeros()
        totals = zeros()
        stage = 0
        free = AHEAD
        for tile in range(tiles):
            wait_for_next()
            cuda.syncthreads()
            first = DESCRIPTOR | ((start + (tile & 1) * (2 * PART)) >> 4)
            words = load_a(stages + stage * STAGE + a_place)
            if SPLIT:
                high, low = split(words)
            else:
                high = round_(words)
                low = high
            sums = begin(sums, high, low, first, first + (PART >> 4))
            following = tile + AHEAD
            if following < tiles:
                start_a(stages + free * STAGE, a, a_step, i0, m, following * BK, k, thread)
                start_b(stages + free * STAGE + A_BYTES, b, b_step, j0, n, following * BK, k, thread)
            commit_copies()
            stage = 0 if stage == STAGES - 1 else stage + 1
            free = 0 if free == STAGES - 1 else free + 1
            if tile + 1 < tiles:
                prepare(stages + stage * STAGE + A_BYTES, start + ((tile + 1) & 1) * (2 * PART), thread)
            fence_for_tensor_cores()
            sums = end(sums)
            if SPLIT:
                totals, sums = promote(totals, sums)
        if SPLIT:
            totals, sums = promote(totals, sums)
        cuda.syncthreads()
        store_sums(start + (first_row + (lane >> 2)) * PITCH + (lane & 3) * 8, totals if SPLIT else sums)
        cuda.syncthreads()
        a_row, a_term = (a_step, 4) if A_BY_ROWS else (4, a_step)
        b_row, b_term = (b_step, 4) if B_BY_ROWS else (4, b_step)
        x_terms = a, a_row, a_term, b, b_row, b_term, k
        results(start, x_terms, part, bias, bias_step, alpha, alphas, alphas_step, y, y_row, y_step, i0, j0, m, n, thread)

    return kernel
