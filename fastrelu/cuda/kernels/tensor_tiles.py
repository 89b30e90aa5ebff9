"""What products on the tensor cores share: the order of the blocks, block tiles of operands, and what happens to sums.

A block of 256 threads calculates 128 x 128 sums from block tiles of 128 x 128 bytes of terms of each operand. What does not
exist of an operand is 0 in its tile and not read. Operands begin at a multiple of 16 bytes, and so does each of their rows.
"""

from dataclasses import dataclass
from typing import Any

from fastrelu.cuda.formulas import inline
from fastrelu.cuda.kernels.fragments import narrowed, widened
from fastrelu.cuda.memory import SHARED, load, store
from fastrelu.cuda.ptx import copy_async_part
from fastrelu.cuda.toolkit import cuda, device_function, types
from fastrelu.operations import KC

float32, int64 = types.float32, types.int64

BM, BN = 128, 128
"""Sums of a block."""
THREADS = 256
ROW_BYTES = 128
"""Terms of a row of an operand's tile, in bytes."""
K_MAJOR, MN_MAJOR = "terms", "rows"
"""What is contiguous in memory."""
PITCH = 4 * (BN + 8)
"""Bytes from one row of sums in shared memory to the next: 8 rows and 4 pairs of columns meet each bank once."""
RASTER = 8
"""Rows of block tiles that are calculated together, so that operands are found in the second-level cache."""


@dataclass(frozen=True)
class Layer:
    """What is done to sums.

    Attributes
    ----------
    dtype : str
        The type of the bias, alpha and the results.
    formula : str
        The activation, by its name in `fastrelu.kernels.formulas`; "" for none.
    has_bias, has_alpha, has_alphas : bool
        Whether there is a bias; whether the formula has a parameter; whether that is one for each column.
    is_part : bool
        Whether the terms are only some, so that results are plain sums of type float32.
    """

    dtype: str
    formula: str = ""
    has_bias: bool = False
    has_alpha: bool = False
    has_alphas: bool = False
    is_part: bool = False


def pitch_of(major: str, size: int) -> int:
    """Bytes from one row of an operand's tile to the next."""
    if major == K_MAJOR:
        return ROW_BYTES
    # 4 terms and 8 numbers of 4 bytes meet each bank once, and so do 8 terms of 16 bytes.
    return 4 * (BM + 8) if size == 4 else 2 * (BM + 8)


def tile_bytes(major: str, size: int) -> int:
    """Bytes of an operand's tile."""
    return BM * ROW_BYTES if major == K_MAJOR else ROW_BYTES // size * pitch_of(major, size)


@device_function
def is_nan(v):
    return v != v


@device_function
def block_tile(block, m, n, width):
    """The first row and column of a block, `width` columns wide: blocks go down `RASTER` rows, then to the next column."""
    rows = (m + (BM - 1)) // BM
    columns = (n + (width - 1)) // width
    group = block // (RASTER * columns)
    left = block - group * (RASTER * columns)
    height = min(rows - group * RASTER, RASTER)
    column = left // height
    return (group * RASTER + left - column * height) * BM, column * width


def copies(major: str, size: int, lines: int = BM, for_descriptors: bool = False) -> Any:
    """The function (place, base, step, row, rows, term, terms, thread) by which a block starts to copy an operand's tile.

    The tile begins at a row and a term of the operand at `base`, which has `rows` and `terms` of them. It has `lines` rows. If
    they are contiguous and descriptors tell wgmma where they are, 128 bytes of rows of each term follow each other, then come
    the next 128 bytes of rows; pieces are swapped as where terms are contiguous.
    """
    BY_ROWS, SWAPPED = major == K_MAJOR, major == K_MAJOR or for_descriptors
    SIZE, PITCH_ = size, ROW_BYTES if SWAPPED else pitch_of(major, size)
    WIDTH = ROW_BYTES if BY_ROWS else lines * size
    PIECES = WIDTH // 16
    AT_ONCE = THREADS // PIECES
    PASSES = lines * ROW_BYTES // 16 // THREADS
    GROUP = ROW_BYTES // size * ROW_BYTES

    @device_function
    def start(place, base, step, row, rows, term, terms, thread):
        line, piece = thread // PIECES, thread % PIECES
        if BY_ROWS:
            first, lines, inner, inners = row + line, rows, term, terms
        else:
            first, lines, inner, inners = term + line, terms, row, rows
        if SWAPPED:
            place += (piece >> 3) * GROUP + line * PITCH_ + (((piece & 7) ^ (line & 7)) << 4)
        else:
            place += line * PITCH_ + (piece << 4)
        nbytes = min(max((inners - inner) * SIZE - piece * 16, 0), 16)
        source = base + first * step + inner * SIZE + piece * 16
        for _ in range(PASSES):
            given = nbytes if first < lines else 0
            copy_async_part(place, source if given > 0 else base, given)
            first += AT_ONCE
            place += AT_ONCE * PITCH_
            source += AT_ONCE * step

    return start


def finish(layer: Layer, exact: bool) -> Any:
    """The function by which a block makes results of its sums, which are in shared memory, row by row.

    If they must be `exact`, an element that is NaN is summed again, in blocks of `KC` terms as everywhere else: `terms` are the
    addresses of a and b, each with the steps from row to row and from term to term, and the number of terms.
    """
    HAS_BIAS, HAS_ALPHA, HAS_ALPHAS, EXACT, BLOCK = layer.has_bias, layer.has_alpha, layer.has_alphas, exact, KC
    dtype = "float32" if layer.is_part else layer.dtype
    SIZE = 4 if dtype == "float32" else 2
    load_four, load_one = load("float32", 4, SHARED), load("float32")
    load_number, widen = load(layer.dtype), widened(layer.dtype)
    store_number, store_four, narrow = store(dtype), store(dtype, 4), narrowed(dtype)
    activate = inline(layer.formula, "float32") if layer.formula else None
    ACTIVATES = bool(layer.formula)

    @device_function
    def four_of(address, step, count):
        first = widen(load_number(address)) if count > 0 else float32(0)
        second = widen(load_number(address + step)) if count > 1 else float32(0)
        third = widen(load_number(address + 2 * step)) if count > 2 else float32(0)
        fourth = widen(load_number(address + 3 * step)) if count > 3 else float32(0)
        return first, second, third, fourth

    @device_function
    def activated(v, alpha, alphas):
        if HAS_ALPHAS:
            return activate(v, alphas)
        if HAS_ALPHA:
            return activate(v, alpha)
        if ACTIVATES:
            return activate(v)
        return v

    @device_function
    def summed_again(v, start, terms, i, j):
        if not is_nan(v):
            return v
        a, a_row, a_term, b, b_row, b_term, k = terms
        total = start
        p = int64(0)
        while p < k:
            stop = min(p + BLOCK, k)
            part = start if p == 0 else float32(0)
            while p < stop:
                part = cuda.fma(load_one(a + i * a_row + p * a_term), load_one(b + j * b_row + p * b_term), part)
                p += 1
            total = part if stop <= BLOCK else total + part
        return total

    def results(start, terms, part, bias, bias_step, alpha, alphas, alphas_step, y, y_row, y_step, i0, j0, m, n, thread):
        lane = thread & 31
        column = j0 + lane * 4
        count = min(n - column, 4)
        whole = count == 4 and y_step == SIZE and ((y | y_row) & (4 * SIZE - 1)) == 0
        biases = (float32(0), float32(0), float32(0), float32(0))
        parameters = biases
        if HAS_BIAS and part == 0:
            biases = four_of(bias + column * bias_step, bias_step, count)
        if HAS_ALPHAS:
            parameters = four_of(alphas + column * alphas_step, alphas_step, count)
        line = thread >> 5
        last = min(m - i0, BM)
        while line < last:
            v = load_four(start + line * PITCH + lane * 16)
            i = i0 + line
            if HAS_BIAS:
                v = (v[0] + biases[0], v[1] + biases[1], v[2] + biases[2], v[3] + biases[3])
            if EXACT and count > 0 and is_nan(v[0] + v[1] + v[2] + v[3]):
                first = summed_again(v[0], biases[0], terms, i, column)
                second, third, fourth = v[1], v[2], v[3]
                if count > 1:
                    second = summed_again(second, biases[1], terms, i, column + 1)
                if count > 2:
                    third = summed_again(third, biases[2], terms, i, column + 2)
                if count > 3:
                    fourth = summed_again(fourth, biases[3], terms, i, column + 3)
                v = (first, second, third, fourth)
            v = narrow(activated(v, alpha, parameters))
            place = y + i * y_row + column * y_step
            if whole:
                store_four(place, v)
            else:
                if count > 0:
                    store_number(place, v[0])
                if count > 1:
                    store_number(place + y_step, v[1])
                if count > 2:
                    store_number(place + 2 * y_step, v[2])
                if count > 3:
                    store_number(place + 3 * y_step, v[3])
            line += THREADS // 32

    return device_function(results)
