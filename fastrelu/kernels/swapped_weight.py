"""A weight with its channels before its outputs, as the gradient of a convolution's input multiplies it."""

from numba.extending import register_jitable

from fastrelu.kernels.memory import callback_address, ceil, load_operands, size_of, smaller, store_partial, words
from fastrelu.kernels.pool import in_parallel, serial_for
from fastrelu.kernels.vector import ELEMENTS

# Channels that are written at a time: a part reads neighbours, and writes as many runs as a core's prefetcher follows.
CHANNELS = 8
# Bytes below which one thread is faster.
SERIAL = 1 << 17


def build(vector_bytes: int):
    """The function (task).

    The task is six words: the weight (groups, outputs, channels, kernel) and the result (groups, channels, outputs, kernel),
    both contiguous; groups, outputs and channels; the bytes of a kernel, a multiple of 4.
    """
    element = ELEMENTS["int32"]
    SIZE = size_of(element)
    LANES = vector_bytes // SIZE
    load = load_operands([(element, False)], LANES, False, partial=True)

    @register_jitable
    def part(task, index):
        source, target, _, outputs, channels, kernel = words(task, 6)
        blocks = ceil(channels, CHANNELS)
        group, first = index // blocks, index % blocks * CHANNELS
        count = smaller(CHANNELS, channels - first)
        plane = group * outputs * channels * kernel
        place, row = source + plane + first * kernel, target + plane + first * outputs * kernel
        for _ in range(outputs):
            for c in range(count):
                kernel_from, kernel_to = place + c * kernel, row + c * outputs * kernel
                for at in range(0, kernel, vector_bytes):
                    left = smaller(LANES, (kernel - at) // SIZE)
                    store_partial(kernel_to + at, 0, load((kernel_from + at,), 0, left)[0], left)
            place += channels * kernel
            row += kernel

    part_address = callback_address(part, 2)

    def swap(task):
        _, _, groups, outputs, channels, kernel = words(task, 6)
        parts = groups * ceil(channels, CHANNELS)
        if groups * outputs * channels * kernel < SERIAL:
            serial_for(part_address(), task, parts)
        else:
            in_parallel(part_address(), task, parts)
        return 0

    return swap
