"""y = f(a @ b + bias) by the matrix instructions of a warp (mma.sync), which all tensor cores since Ampere have.

A block calculates 128 x 128 sums with 8 warps, 64 x 32 each. The terms come in block tiles, copied to shared memory while
older ones are multiplied. An operand's tile has rows of 128 bytes of terms if its terms are contiguous; they are swapped by
pieces of 16 bytes so that reading a column of pieces meets each bank once. Otherwise it has a row for each term, a little
longer than 128 numbers for the same reason.

Sums are float32, in one of three ways:

``fast``     the tensor cores add all of them up. They cut off what does not fit, so that the error grows with k.
``careful``  they add up few, and what they have is added to a total in float32; what that rounds off starts the
             next sums. Halves.
``split``    the same for float32: each operand is the sum of two TF32 numbers, of whose four products the three large ones are
             calculated. A NaN may come from an infinity whose parts have been multiplied: such an element is summed again
             by fma.
"""

from typing import Any

from fastrelu.cuda.kernels import fragments
from fastrelu.cuda.kernels.tensor_tiles import (
    BM,
    BN,
    K_MAJOR,
    PITCH,
    ROW_BYTES,
    Layer,
    block_tile,
    copies,
    finish,
    pitch_of,
    tile_bytes,
)
from fastrelu.cuda.ptx import SHAPES, commit_copies, wait_for_copies_but
from fastrelu.cuda.tile import shared_start
from fastrelu.cuda.toolkit import cuda, types

SIZES = {"tf32": 4, "f16": 2, "bf16": 2}
"""Bytes of a number of each kind of operands."""
ROWS, COLUMNS = 4, 4
"""Products of 16 x 8 in the tile of a warp, below and beside each other."""


def _loaders(kind: str, a_major: str, b_major: str) -> tuple[Any, Any]:
    """How a warp reads a step of A and of B."""
    size = SIZES[kind]
    instructions = fragments.STEP // SHAPES[kind]
    pitches = [pitch_of(major, size) for major in (a_major, b_major)]

    def scattered(count: int, rows: int, pitch: int) -> list[int]:
        near = [(0, 0), (rows, 0), (0, 4), (rows, 4)] if rows else [(0, 0), (0, 4)]
        distance = 16 if rows else 8
        return [
            (8 * g + term) * pitch + 4 * (distance * i + row)
            for g in range(instructions)
            for i in range(count)
            for row, term in near
        ]

    if a_major == K_MAJOR:
        load_a = fragments.load_rows(kind, ROWS, ROW_BYTES, instructions)
    elif size == 2:
        load_a = fragments.load_transposed(ROWS)
    else:
        load_a = fragments.load_words(scattered(ROWS, 8, pitches[0]))
    if b_major == K_MAJOR:
        load_b = fragments.load_rows(kind, COLUMNS // 2, ROW_BYTES, instructions)
    elif size == 2:
        load_b = fragments.load_transposed(COLUMNS // 2)
    else:
        load_b = fragments.load_words(scattered(COLUMNS, 0, pitches[1]))
    return load_a, load_b


ARGUMENTS = (types.int64,) * 6 + (types.float32,) + (types.int64,) * 10


def shared_bytes(kind: str, a_major: str, b_major: str, stages: int) -> int:
    """Shared memory of a block that keeps so many block tiles: one is multiplied while the others arrive."""
    size = SIZES[kind]
    return 128 + max(stages * (tile_bytes(a_major, size) + tile_bytes(b_major, size)), BM * PITCH)


def product(kind: str, way: str, a_major: str, b_major: str, layer: Layer, stages: int) -> Any:
    """The kernel for operands of a kind ("tf32", "f16", "bf16") that lie in memory by rows or by terms.

    Arguments are the addresses of a, b, the bias, alpha and y, and steps in bytes: a is m x k, b is n x k, and the step of
    either is that of its slow axis.
    """
    SIZE, STAGES = SIZES[kind], stages
    BK = ROW_BYTES // SIZE
    STEPS = BK // fragments.STEP
    A_BYTES = tile_bytes(a_major, SIZE)
    STAGE = A_BYTES + tile_bytes(b_major, SIZE)
    SPLIT, CAREFUL = way == "split", way == "careful"
    A_BY_ROWS, B_BY_ROWS, HALVES = a_major == K_MAJOR, b_major == K_MAJOR, SIZE == 2
    A_PITCH, B_PITCH = pitch_of(a_major, SIZE), pitch_of(b_major, SIZE)
    COUNT = ROWS * COLUMNS * 4
    AHEAD = STAGES - 1
    start_a, start_b = copies(a_major, SIZE), copies(b_major, SIZE)
    load_a, load_b = _loaders(kind, a_major, b_major)
    zeros, promote = fragments.zeros(COUNT), fragments.promote(COUNT)
    multiply, multiply_split = fragments.multiply(kind, ROWS, COLUMNS), fragments.multiply_split(ROWS, COLUMNS)
    results = finish(layer, SPLIT)
    wait = wait_for_copies_but(AHEAD - 1)
    store_sums = fragments.store_sums(ROWS, COLUMNS, PITCH)

    def kernel(a, a_step, b, b_step, bias, bias_step, alpha, alphas, alphas_step, y, y_row, y_step, part_step, terms, m, n, k):
        thread = types.int64(cuda.threadIdx.x)
        lane = thread & 31
        warp = thread >> 5
        i0, j0 = block_tile(types.int64(cuda.blockIdx.x), m, n, BN)
        part = types.int64(cuda.blockIdx.y)
        a += part * terms * (SIZE if A_BY_ROWS else a_step)
        b += part * terms * (SIZE if B_BY_ROWS else b_step)
        y += part * part_step
        k = min(k - part * terms, terms)
        start = (shared_start() + 127) & -128
        tiles = (k + (BK - 1)) // BK
        for tile in range(AHEAD):
            if tile < tiles:
                start_a(start + tile * STAGE, a, a_step, i0, m, tile * BK, k, thread)
                start_b(start + tile * STAGE + A_BYTES, b, b_step, j0, n, tile * BK, k, thread)
            commit_copies()
        first_row, first_column = (warp & 1) * (ROWS * 16), (warp >> 1) * (COLUMNS * 8)
        if A_BY_ROWS:
            a_line = first_row + (lane & 15)
            a_place = a_line * ROW_BYTES + (((lane >> 4) ^ (a_line & 7)) << 4)
        elif HALVES:
            a_place = ((lane & 7) + ((lane >> 4) << 3)) * A_PITCH + first_row * 2 + (((lane >> 3) & 1) << 4)
        else:
            a_place = (lane & 3) * A_PITCH + (first_row + (lane >> 2)) * 4
        if B_BY_ROWS:
            b_line = first_column + (lane & 7) + ((lane >> 4) << 3)
            b_place = A_BYTES + b_line * ROW_BYTES + ((((lane >> 3) & 1) ^ (b_line & 7)) << 4)
        elif HALVES:
            b_place = A_BYTES + (lane & 15) * B_PITCH + first_column * 2 + ((lane >> 4) << 4)
        else:
            b_place = A_BYTES + (lane & 3) * B_PITCH + (first_column + (lane >> 2)) * 4
        sums = zeros()
        totals = zeros()
        stage = 0
        free = AHEAD
        for tile in range(tiles):
            wait()
            cuda.syncthreads()
            following = tile + AHEAD
            if following < tiles:
                start_a(start + free * STAGE, a, a_step, i0, m, following * BK, k, thread)
                start_b(start + free * STAGE + A_BYTES, b, b_step, j0, n, following * BK, k, thread)
            commit_copies()
            place = start + stage * STAGE
            for step in range(STEPS):
                if A_BY_ROWS:
                    a_part = load_a((place + a_place) ^ (step * (fragments.STEP * SIZE)))
                else:
                    a_part = load_a(place + a_place + step * (fragments.STEP * A_PITCH))
                if B_BY_ROWS:
                    b_part = load_b((place + b_place) ^ (step * (fragments.STEP * SIZE)))
                else:
                    b_part = load_b(place + b_place + step * (fragments.STEP * B_PITCH))
                if SPLIT:
                    totals, sums = multiply_split(totals, sums, a_part, b_part)
                else:
                    sums = multiply(sums, a_part, b_part)
            if CAREFUL:
                totals, sums = promote(totals, sums)
            stage = 0 if stage == STAGES - 1 else stage + 1
            free = 0 if free == STAGES - 1 else free + 1
        if SPLIT or CAREFUL:
            totals, sums = promote(totals, sums)
        cuda.syncthreads()
        place = start + (first_row + (lane >> 2)) * PITCH + (first_column + (lane & 3) * 2) * 4
        store_sums(place, totals if SPLIT or CAREFUL else sums)
        cuda.syncthreads()
        a_row, a_term = (a_step, SIZE) if A_BY_ROWS else (SIZE, a_step)
        b_row, b_term = (b_step, SIZE) if B_BY_ROWS else (SIZE, b_step)
        x_terms = a, a_row, a_term, b, b_row, b_term, k
        results(start, x_terms, part, bias, bias_step, alpha, alphas, alphas_step, y, y_row, y_step, i0, j0, m, n, thread)

    return kernel
