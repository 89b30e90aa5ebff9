"""A panel of patches: of the positions of a panel, all elements that a block of terms multiplies, in the order in which the
micro-kernel reads them. No array of patches ever exists.
"""

from fastrelu.kernels.memory import load_lanes, read_word, size_of, store, words
from fastrelu.kernels.tile import load_row, zeros
from fastrelu.kernels.vector import ELEMENTS

PIECE = 24  # bytes of an entry of the list of pieces


def build(dtype: str, vector_bytes: int):
    """The function (task, unused) for elements of `dtype`.

    The task is seven words: the address that offsets count from; the list of pieces and their number; the offsets of the terms
    and their number; the target, and the step between its rows. A piece is some neighbouring positions that stand in one
    vector of the panel, in three words: its offset, its first column in the panel, and how many elements it has. Pieces
    are in the order of their columns. The other lanes of a vector are 0.
    """
    element = ELEMENTS[dtype]
    SIZE = size_of(element)
    LANES = vector_bytes // SIZE
    nothing, load, load_some = zeros(element, 1, LANES), load_row(element, LANES), load_lanes(element, LANES)

    def pack(task, _):
        origin, pieces, count, offsets, terms, target, row = words(task, 7)
        zero = nothing()[0]
        while count > 0:
            offset, column, shown = words(pieces, 3)
            first = column & (LANES - 1)
            column -= first
            source, end, to = origin + offset - first * SIZE, first + shown, target + column * SIZE
            pieces += PIECE
            count -= 1
            if shown == LANES:
                for p in range(terms):
                    store(to + p * row, 0, load(source + read_word(offsets + 8 * p)))
                continue
            # Most vectors have a second piece: it is merged with the first in a register, others in the first-level cache.
            other, other_first, other_end = source, end, end
            if count > 0:
                offset, next_column, shown = words(pieces, 3)
                if next_column - column < LANES:
                    other_first = next_column - column
                    other, other_end = origin + offset - other_first * SIZE, other_first + shown
                    pieces += PIECE
                    count -= 1
            for p in range(terms):
                at = read_word(offsets + 8 * p)
                value = load_some(source + at, first, end, zero)
                store(to + p * row, 0, load_some(other + at, other_first, other_end, value))
            while count > 0:
                offset, next_column, shown = words(pieces, 3)
                first = next_column - column
                if first >= LANES:
                    break
                source = origin + offset - first * SIZE
                for p in range(terms):
                    place = to + p * row
                    store(place, 0, load_some(source + read_word(offsets + 8 * p), first, first + shown, load(place)))
                pieces += PIECE
                count -= 1

    return pack
