"""y = f(a @ b + bias) of halves by the matrix instructions of a warpgroup (wgmma) of compute capability 9.0.

wgmma reads both operands from shared memory as they were copied there, whichever axis is contiguous. A block calculates
128 rows with two warpgroups: of 256 columns if the tensor cores add everything up, of 128 if a thread keeps totals besides. On
paper a block tile of 256 columns takes 1024 cycles of an H200's tensor cores, and its operands 640 cycles of shared
memory to be read and 384 to be written. None of this has been measured.
"""

from typing import Any

from fastrelu.cuda.kernels import fragments
from fastrelu.cuda.kernels.tensor_tiles import BM, BN, MN_MAJOR, PITCH, ROW_BYTES, Layer, block_tile, copies, finish
from fastrelu.cuda.kernels.warpgroups import DESCRIPTOR, INSTRUCTIONS
from fastrelu.cuda.ptx import commit_copies, fence_for_tensor_cores, wait_for_copies_but
from fastrelu.cuda.tile import shared_start
from fastrelu.cuda.toolkit import cuda, types

STAGES = 4
"""Block tiles in shared memory: one is multiplied while the others arrive."""
BK = ROW_BYTES // 2
GROUP = BK * ROW_BYTES
"""Bytes of 64 rows of an operand's tile."""


def columns_of(way: str) -> int:
    """Columns that a block calculates."""
    return BN if way == "careful" else 2 * BN


def shared_bytes(way: str) -> int:
    """Shared memory of a block."""
    return 1024 + max(STAGES * (BM + columns_of(way)) * ROW_BYTES, BM * PITCH)


def _descriptor(major: str) -> int:
    """What a matrix descriptor says beside an address: 8 rows of 128 bytes take 1024; the next 128 bytes of rows come after."""
    return DESCRIPTOR & ~0xFFFF0000 | (GROUP >> 4) << 16 if major == MN_MAJOR else DESCRIPTOR


def product(kind: str, way: str, a_major: str, b_major: str, layer: Layer) -> Any:
    """The kernel for halves of a kind ("f16", "bf16"); arguments as in `tensor_cores.product`."""
    CAREFUL, COLUMNS = way == "careful", columns_of(way)
    A_ROWS, B_ROWS = a_major == MN_MAJOR, b_major == MN_MAJOR
    A_BYTES, STAGE = BM * ROW_BYTES, (BM + COLUMNS) * ROW_BYTES
    AHEAD = STAGES - 1
    COUNT, TWICE = COLUMNS // 2, COLUMNS > BN
    A_DESCRIPTOR, B_DESCRIPTOR = _descriptor(a_major), _descriptor(b_major)
    start_a, start_b = copies(a_major, 2, BM, True), copies(b_major, 2, COLUMNS, True)
    begin = fragments.begin_described(kind, COLUMNS, INSTRUCTIONS, A_ROWS, B_ROWS)
    end = fragments.end_products(COLUMNS)
    zeros, promote = fragments.zeros(COUNT), fragments.promote(COUNT)
    store_first = fragments.store_sums(1, BN // 8, PITCH, 0, COUNT)
    store_second = fragments.store_sums(1, BN // 8, PITCH, COUNT - BN // 2, COUNT)
    results = finish(layer, False)
    wait = wait_for_copies_but(AHEAD - 1)

    def kernel(a, a_step, b, b_step, bias, bias_step, alpha, alphas, alphas_step, y, y_row, y_step, part_step, terms, m, n, k):
        thread = types.int64(cuda.threadIdx.x)
        lane = thread & 31
        i0, j0 = block_tile(types.int64(cuda.blockIdx.x), m, n, COLUMNS)
        part = types.int64(cuda.blockIdx.y)
        a += part * terms * (a_step if A_ROWS else 2)
        b += part * terms * (b_step if B_ROWS else 2)
        y += part * part_step
        k = min(k - part * terms, terms)
        start = (shared_start() + 1023) & -1024
        tiles = (k + (BK - 1)) // BK
        for tile in range(AHEAD):
            if tile < tiles:
                start_a(start + tile * STAGE, a, a_step, i0, m, tile * BK, k, thread)
                start_b(start + tile * STAGE + A_BYTES, b, b_step, j0, n, tile * BK, k, thread)
            commit_copies()
        sums = zeros()
        totals = zeros()
        stage = 0
        free = AHEAD
        for tile in range(tiles):
            wait()
            fence_for_tensor_cores()
            cuda.syncthreads()
            place = start + stage * STAGE
            a_place = place + (thread >> 7) * GROUP
            sums = begin(sums, A_DESCRIPTOR | (a_place >> 4), B_DESCRIPTOR | ((place + A_BYTES) >> 4))
            following = tile + AHEAD
            if following < tiles:
                start_a(start + free * STAGE, a, a_step, i0, m, following * BK, k, thread)
                start_b(start + free * STAGE + A_BYTES, b, b_step, j0, n, following * BK, k, thread)
            commit_copies()
            stage = 0 if stage == STAGES - 1 else stage + 1
            free = 0 if free == STAGES - 1 else free + 1
            sums = end(sums)
            if CAREFUL:
                totals, sums = promote(totals, sums)
        if CAREFUL:
            sums, totals = promote(totals, sums)
        row = (thread >> 5) * 16 + (lane >> 2)
        nothing = a, 0, 0, b, 0, 0, 0
        cuda.syncthreads()
        store_first(start + row * PITCH + (lane & 3) * 8, sums)
        cuda.syncthreads()
        results(start, nothing, part, bias, bias_step, alpha, alphas, alphas_step, y, y_row, y_step, i0, j0, m, n, thread)
        if TWICE:
            j0 += BN
            cuda.syncthreads()
            store_second(start + row * PITCH + (lane & 3) * 8, sums)
            cuda.syncthreads()
            results(start, nothing, part, bias, bias_step, alpha, alphas, alphas_step, y, y_row, y_step, i0, j0, m, n, thread)

    return kernel
