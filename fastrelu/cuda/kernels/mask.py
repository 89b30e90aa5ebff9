"""The bits of y > 0, of which the backward pass of a layer with `relu` needs no more."""

from functools import cache

from fastrelu.cuda.kernels.operands import cast, sums_of
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import load, number_of, store
from fastrelu.cuda.toolkit import cuda, types
from fastrelu.kernels.vector import ELEMENTS

THREADS = 256


@cache
def mask(dtype: str) -> Kernel:
    """The kernel for results of a type; a thread makes a byte."""
    wide = sums_of(dtype)
    number = number_of(ELEMENTS[wide])
    read, widened, put = load(dtype), cast((dtype, wide)), store("uint8")

    def write_bits(y, y_row, y_column, bits, bits_row, bits_column, m, n):
        across = (n + 7) // 8
        for at in range(cuda.grid(1), m * across, cuda.gridsize(1)):
            i, first = at // across, at % across * 8
            byte = 0
            for c in range(8):
                if first + c < n:
                    value = widened(read(y + i * y_row + (first + c) * y_column))
                    if not value <= number(0):  # a NaN counts as positive
                        byte |= 1 << c
            put(bits + i * bits_row + first // 8 * bits_column, types.uint8(byte))

    return Kernel(write_bits, (types.int64,) * 8, THREADS)
