"""A panel of patches: of the positions of a panel, all elements that a block of terms multiplies, in the order in which the
micro-kernel reads them. No array of patches ever exists.
"""

from fastrelu.kernels.memory import load_operands, read_word, size_of, store, store_partial, words
from fastrelu.kernels.tile import load_row
from fastrelu.kernels.vector import ELEMENTS

PIECE = 24  # bytes of an entry of the list of pieces


def build(dtype: str, vector_bytes: int):
    """The function (task, unused) for elements of `dtype`.

    The task is eight words: the address that offsets count from; the list of pieces and their number; the offsets of the terms
    and their number; the target, the step between its rows, and the elements of a row. A piece is the neighbouring
    positions that one vector takes, in three words: its offset, its first column in the panel, and how many elements it has.
    The lanes after these are filled, and the next piece replaces them.
    """
    element = ELEMENTS[dtype]
    SIZE = size_of(element)
    LANES = vector_bytes // SIZE
    load = load_row(element, LANES)
    load_some = load_operands([(element, False)], LANES, False, partial=True)

    def pack(task, _):
        origin, pieces, count, offsets, terms, target, row, width = words(task, 8)
        for i in range(count):
            offset, column, shown = words(pieces + PIECE * i, 3)
            source, to = origin + offset, target + column * SIZE
            if shown == LANES:
                for p in range(terms):
                    store(to, 0, load(source + read_word(offsets + 8 * p)))
                    to += row
            elif column <= width - LANES:
                for p in range(terms):
                    store(to, 0, load_some((source + read_word(offsets + 8 * p),), 0, shown)[0])
                    to += row
            else:
                for p in range(terms):
                    store_partial(to, 0, load_some((source + read_word(offsets + 8 * p),), 0, shown)[0], width - column)
                    to += row

    return pack
