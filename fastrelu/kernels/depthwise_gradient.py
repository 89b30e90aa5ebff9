"""dw of a convolution of each channel by itself: sums of products of x and dz, with channels side by side in a vector."""

from numba.extending import register_jitable

from fastrelu.kernels.memory import size_of, store, words
from fastrelu.kernels.tile import load_row, zeros
from fastrelu.kernels.vector import ELEMENTS, fma
from fastrelu.native.matrix import Tiling


def _tap(element, LANES: int):
    """The function for some channels of one tap."""
    SIZE = size_of(element)
    load, zero = load_row(element, LANES), zeros(element, 1, LANES)

    @register_jitable
    def add_runs(x, x_step, dz, dz_step, runs, count, sums, is_first):
        chain = zero()[0]
        for _ in range(count):
            place, done, nbytes = words(runs, 3)
            a, b = x + place // SIZE * x_step, dz + done // SIZE * dz_step
            for _ in range(nbytes // SIZE):
                chain = fma(load(a), load(b), chain)
                a += x_step
                b += dz_step
            runs += 24
        store(sums, 0, chain if is_first else load(sums) + chain)

    return add_runs


def build(dtype: str, vector_bytes: int):
    """The function (task, lanes) that adds a block of positions to the sums of one tap, for sums of `dtype`.

    The task is eight words: x and dz, channels side by side, each with the bytes from one position to the next; the runs of
    the block (`fastrelu.kernels.convolution_gradient`) and how many; the sums, and whether they are to be replaced.
    """
    NARROW, WIDE = (Tiling(dtype, vector_bytes).widths[i] for i in (0, -1))
    some, many = (_tap(ELEMENTS[dtype], lanes) for lanes in (NARROW, WIDE))

    def add(task, lanes):
        x, x_step, dz, dz_step, runs, count, sums, is_first = words(task, 8)
        if lanes == WIDE:
            many(x, x_step, dz, dz_step, runs, count, sums, is_first)
        else:
            some(x, x_step, dz, dz_step, runs, count, sums, is_first)

    return add
