"""Which of many integers is the first that is out of range."""

from numba.extending import register_jitable

from fastrelu.kernels.lanes import outside
from fastrelu.kernels.memory import atomic_read, atomic_replace, callback_address, words, write_words
from fastrelu.kernels.parts import parts_of
from fastrelu.kernels.pool import in_parallel

# Words below which a part is not worth handing to another thread.
GRAIN = 1 << 15


def first_outside(vector_bytes: int):
    """The kernel. Its task in words: the address of int64 words and how many there are; the end of their range; one that is
    allowed besides; the address of the result, where -1 stands; last a word for itself.
    """
    LANES = vector_bytes // 8
    some, one = outside(LANES), outside(1)

    @register_jitable
    def find(values, first, end, limit, exempt):
        """The number of the first, or -1."""
        i = first
        while i <= end - LANES and not some(values + 8 * i, limit, exempt):
            i += LANES
        while i < end:
            if one(values + 8 * i, limit, exempt):
                return i
            i += 1
        return -1

    def part(task, number):
        values, count, limit, exempt, result, parts = words(task, 6)
        found = find(values, number * count // parts, (number + 1) * count // parts, limit, exempt)
        if found >= 0:
            before = atomic_read(result)
            while (before < 0 or found < before) and not atomic_replace(result, before, found):
                before = atomic_read(result)

    part_address = callback_address(part, 2)

    def kernel(task):
        count = words(task, 2)[1]
        parts = parts_of(count, count, GRAIN)
        write_words(task + 40, (parts,))
        in_parallel(part_address(), task, parts)
        return 0

    return kernel
