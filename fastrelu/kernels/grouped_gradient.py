"""dw and db of a convolution whose groups have few outputs each: sums of products of x and dz, with the outputs of several
groups side by side in a vector.

Each lane is an output channel, and meets one input channel of its own group at a time.
"""

from numba.core import types
from numba.extending import intrinsic, register_jitable

from fastrelu.kernels.memory import load_operands, pointer, size_of, smaller, stack, store, words
from fastrelu.kernels.tile import load_row, store_tile, zeros
from fastrelu.kernels.vector import ELEMENTS, call_intrinsic, suffix
from fastrelu.native.matrix import Tiling

# Taps that the sums of a call are for: each needs a chain of multiply-adds in a register.
AT_ONCE = 9
# And how many at a time if there are no more, or where registers are few.
FEW = 3
# Lanes that are written at a time where outputs share an input channel.
SPREAD = 4


@intrinsic
def _fma_rows(typing_context, tile, places, offset, row):
    """The tile plus products of what stands at each of `places` and of `row`."""

    def codegen(context, builder, sig, args):
        tile_value, places, offset, row = args
        rows = []
        for i, vector in enumerate(tile):
            place = pointer(builder, builder.add(builder.extract_value(places, i), offset), vector.llvm)
            x = builder.load(place, align=size_of(vector.element))
            arguments = [x, row, builder.extract_value(tile_value, i)]
            rows.append(call_intrinsic(builder, f"llvm.fma.{suffix(vector)}", vector.llvm, arguments))
        return context.make_tuple(builder, tile, rows)

    return tile(tile, places, types.intp, row), codegen


def _taps(element, LANES: int, TAPS: int):
    """The function for some taps, and for db."""
    SIZE = size_of(element)
    TILE, TILE_ROW = TAPS * LANES * SIZE, LANES * SIZE
    load, zero, zero_tile = load_row(element, LANES), zeros(element, 1, LANES), zeros(element, TAPS, LANES)

    @register_jitable
    def add_runs(task, sources, count, sums):
        x_step, dz, dz_step, runs, run_count, sums_row, total, is_first = words(task, 8)
        places = words(sources, TAPS)
        chains, chain = zero_tile(), zero()[0]
        for _ in range(run_count):
            place, done, nbytes = words(runs, 3)
            a, b = place // SIZE * x_step, dz + done // SIZE * dz_step
            for _ in range(nbytes // SIZE):
                row = load(b)
                chains = _fma_rows(chains, places, a, row)
                chain = chain + row
                a += x_step
                b += dz_step
            runs += 24
        held = stack(TILE)
        store_tile(chains, held, TILE_ROW)
        for i in range(smaller(count, TAPS)):
            at = sums + i * sums_row
            store(at, 0, load(held + i * TILE_ROW) if is_first else load(at) + load(held + i * TILE_ROW))
        if total != 0:
            store(total, 0, chain if is_first else load(total) + chain)

    return add_runs


def build(dtype: str, vector_bytes: int):
    """The function (task, count) that adds a block of positions to the sums of at most `AT_ONCE` taps, for sums of `dtype`.

    The task is words: bytes from one position to the next in x; dz, and its bytes; the runs of the block
    (`fastrelu.kernels.convolution_gradient`) and how many; bytes from the sums of one tap to those of the next; where db is
    added up, or 0; whether sums are to be replaced; the sums; the addresses of x for `AT_ONCE` taps.
    """
    tiling = Tiling(dtype, vector_bytes)
    element, LANES = ELEMENTS[dtype], tiling.widths[0]
    has_many = (AT_ONCE + 2) * tiling.least_vectors <= tiling.registers
    TAPS = AT_ONCE if has_many else FEW
    some, many = _taps(element, LANES, FEW), _taps(element, LANES, TAPS)

    def add(task, count):
        sums_row = words(task + 40, 1)[0]
        sums, sources = words(task + 64, 1)[0], task + 72
        if count <= FEW:
            some(task, sources, count, sums)
        else:
            for first in range(0, count, TAPS):
                many(task, sources + 8 * first, count - first, sums + first * sums_row)

    return add


def _columns(element, LANES: int):
    """The function that writes the numbers of a row into `LANES` neighbouring columns of other rows."""
    SIZE = size_of(element)
    load = load_operands([(element, True)], LANES, True, partial=False)

    @register_jitable
    def write(source, rows, target, step):
        for row in range(rows):
            store(target + row * step, 0, load((source + row * SIZE,), 0, 0)[0])

    return write


def spread(dtype: str, vector_bytes: int):
    """The function (task, _) that writes rows of lanes: each input channel as often as its group has outputs.

    The task is eight words: the first channel, and bytes to the next; how many there are; lanes that the first has, and that
    the others have; rows; where they go, and the lanes of one. Lanes beyond the last channel repeat it.
    """
    element, SIZE = ELEMENTS[dtype], size_of(ELEMENTS[dtype])
    write_some, write_one = _columns(element, SPREAD), _columns(element, 1)

    def write(task, _):
        source, channel, channels, count, outputs, rows, target, lanes = words(task, 8)
        lane = number = 0
        while lane < lanes:
            end = smaller(lane + count, lanes) if number < channels - 1 else lanes
            while lane < end:  # what is too much is replaced by what follows, but never the next row
                if lane + SPREAD <= lanes:
                    write_some(source + number * channel, rows, target + lane * SIZE, lanes * SIZE)
                    lane = smaller(lane + SPREAD, end)
                else:
                    write_one(source + number * channel, rows, target + lane * SIZE, lanes * SIZE)
                    lane += 1
            number += 1
            count = outputs

    return write
