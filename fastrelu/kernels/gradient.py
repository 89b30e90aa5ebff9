"""dz = f'(dy, y), the gradient before the activation, as an operand of a product: formed block by block, stored nowhere.

``build``        the function that forms rows of dz, and sums them over the batch for db while they are in registers
``form_block``   a block of dz from operands of any strides and types
``form_rows``    rows of dz as they lie
``form_panel``   a panel of dz, or of its transpose, in the order in which the micro-kernel reads it

An operand is 14 words: the function that forms rows; the packings of dy's type and of the sums' type; dy, its row and column
steps; what tells the derivative (y, or the bits of y > 0, or nothing), its row and column steps; whether it is bits; alpha;
where db is summed, or 0; bytes of an element of dy, and of a sum.
"""

from numba.extending import register_jitable

from fastrelu.kernels import formulas
from fastrelu.kernels.memory import (
    call_address,
    load_operands,
    read_byte,
    size_of,
    smaller,
    stack,
    store,
    words,
    write_words,
)
from fastrelu.kernels.packing import pack_block
from fastrelu.kernels.tile import load_row, zeros
from fastrelu.kernels.vector import ELEMENTS, bits_as_mask, where
from fastrelu.operations import KC

OPERAND = 112  # bytes

# Of the scratch memory: dy and y as dense rows of the sums' type, and dz before it is transposed. Rows stand a line further
# apart than they are long, lest columns meet in few sets of the first-level cache.
COLUMN_BYTES = 256
PLACE = KC * (COLUMN_BYTES + 64)
GRADIENT_SCRATCH = 3 * PLACE


def _derivative(formula: str):
    """The formula as a function (dy, y, alpha)."""
    if not formula:
        return register_jitable(lambda dy, y, alpha: dy)
    function = getattr(formulas, formula)
    if function.__code__.co_argcount == 3:
        return function
    return register_jitable(lambda dy, y, alpha: function(dy, y))


def _columns(derivative, element, LANES: int, has_y: bool, is_mask: bool, partial: bool):
    """The function for columns of dz that one vector takes: all `LANES`, or only `count` if `partial`."""
    HAS_Y, IS_MASK, SIZE = has_y, is_mask, size_of(element)
    load = load_operands([(element, False)], LANES, False, partial=partial)
    load_alpha = load_operands([(element, True)], LANES, False, partial=False)
    zero, load_sum = zeros(element, 1, LANES), load_row(element, LANES)
    as_mask = bits_as_mask(LANES)

    @register_jitable
    def read_bits(y, y_step, j, count):
        place, bits = y + (j >> 3) * y_step, 0
        if count == 64 and y_step == 1:
            for i in range(8):
                bits |= read_byte(place + i) << (8 * i)
        else:
            for i in range((count + 7) >> 3):
                bits |= read_byte(place + i * y_step) << (8 * i)
        return bits >> (j & 7)

    @register_jitable
    def form_columns(dy, dy_row, y, y_row, y_step, j, count, rows, target, target_row, alpha, sums, is_first):
        total = zero()[0]
        parameter = load_alpha((alpha,), 0, 0)[0]
        for _ in range(rows):
            dz = load((dy,), j, count)[0]
            if HAS_Y:
                if IS_MASK:
                    dz = where(as_mask(read_bits(y, y_step, j, count)), dz, 0)
                else:
                    dz = derivative(dz, load((y,), j, count)[0], parameter)
            store(target, j, dz)
            total = total + dz
            dy += dy_row
            y += y_row
            target += target_row
        if sums != 0:
            store(sums, j, total if is_first else load_sum(sums + j * SIZE) + total)

    return form_columns


def build(formula: str, dtype: str, mask: bool, vector_bytes: int, wide: int):
    """The function (task, unused) that forms rows of dz for sums of `dtype`; `wide` columns at a time where there are so many.

    The task is twelve words: dy, its row step; y or the bits, the row and the column step; rows and columns; the target and
    its row step; alpha; the place of db or 0; whether the sums there are to be replaced instead of added to. dy and y have
    contiguous rows. Lanes that follow the last column in its vector are 0.
    """
    element = ELEMENTS[dtype]
    LANES, WIDE = vector_bytes // size_of(element), wide
    kind = (_derivative(formula), element)
    whole = _columns(*kind, WIDE, bool(formula), mask, partial=False)
    some = _columns(*kind, LANES, bool(formula), mask, partial=True)

    def form(task, _):
        dy, dy_row, y, y_row, y_step, rows, columns, target, target_row, alpha, sums, is_first = words(task, 12)
        # Without sums, long rows are formed one by one: the processor fetches ahead along a row, not down the columns (half the
        # time for the 1 x 1 convolution of 64 x 56 x 56 to 256).
        height = smaller(1, rows) if sums == 0 and columns > WIDE else rows
        while True:  # sums begin with 0 even without rows
            j = 0
            while j <= columns - WIDE:
                whole(dy, dy_row, y, y_row, y_step, j, WIDE, height, target, target_row, alpha, sums, is_first)
                j += WIDE
            while j < columns:
                count = smaller(columns - j, LANES)
                some(dy, dy_row, y, y_row, y_step, j, count, height, target, target_row, alpha, sums, is_first)
                j += count
            dy += height * dy_row
            y += height * y_row
            target += height * target_row
            rows -= height
            if rows == 0:
                break

    return form


@register_jitable
def _dense(pack, source, row, step, rows, columns, target, pitch, is_dense):
    """The address and the row step of a block whose rows are contiguous: a copy, if they are not."""
    if is_dense:
        return source, row
    pack_block(pack, source, row, step, rows, columns, target, pitch)
    return target, pitch


@register_jitable
def form_block(operand, scratch, i, j, rows, columns, target, target_row, sums, is_first):
    """Rows of dz from row `i` and column `j` on, which is a multiple of 8."""
    form, pack, _, dy, dy_row, dy_step, y, y_row, y_step, is_mask, alpha = words(operand, 11)
    IN, SIZE = words(operand + 96, 2)
    pitch = (columns * SIZE + 127) & -64
    dy += i * dy_row + j * dy_step
    y += i * y_row
    dy, dy_row = _dense(pack, dy, dy_row, dy_step, rows, columns, scratch, pitch, dy_step == IN and IN == SIZE)
    if is_mask:
        y += (j >> 3) * y_step
    elif y != 0:
        y += j * y_step
        y, y_row = _dense(pack, y, y_row, y_step, rows, columns, scratch + PLACE, pitch, y_step == IN and IN == SIZE)
    task = stack(96)
    write_words(task, (dy, dy_row, y, y_row, y_step, rows, columns, target, target_row, alpha, sums, is_first))
    call_address(form, task, 0)


@register_jitable
def form_rows(operand, scratch, i, j, rows, columns, target, target_row):
    """Any number of rows of dz, without sums."""
    SIZE = words(operand + 104, 1)[0]
    most = PLACE // ((columns * SIZE + 127) & -64)
    for first in range(0, rows, most):
        count = smaller(most, rows - first)
        form_block(operand, scratch, i + first, j, count, columns, target + first * target_row, target_row, 0, True)


@register_jitable
def form_columns(operand, scratch, p, j, terms, columns, has_sums, target, target_row):
    """Any number of columns of dz, from term `p` and column `j` on."""
    SIZE = words(operand + 104, 1)[0]
    most = COLUMN_BYTES // SIZE
    for first in range(0, columns, most):
        count = smaller(most, columns - first)
        form_panel(operand, scratch, p, j + first, terms, count, False, has_sums, target + first * SIZE, target_row)


@register_jitable
def form_panel(operand, scratch, p, j, terms, columns, is_transposed, has_sums, target, target_row):
    """`terms` x `columns` elements of dz, or of its transpose, from term `p` and column `j` on. One of the parts
    that form them has the sums.
    """
    sums, _, SIZE = words(operand + 88, 3)
    if not is_transposed:
        place = sums + j * SIZE if sums != 0 and has_sums else 0
        form_block(operand, scratch, p, j, terms, columns, target, target_row, place, p == 0)
        return
    block, pitch = scratch + 2 * PLACE, (terms * SIZE + 127) & -64
    form_block(operand, scratch, j, p, columns, terms, block, pitch, 0, True)
    pack = words(operand + 16, 1)[0]
    pack_block(pack, block, SIZE, pitch, terms, columns, target, target_row)
