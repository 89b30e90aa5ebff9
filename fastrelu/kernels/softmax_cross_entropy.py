"""Softmax and cross-entropy: a row of logits to its loss and its gradient, while the row is in the cache.

Three passes over a row: its largest logit; the exponentials and their sum; the gradient. Sums are float64 in `LANES` lanes on
every processor, lane j for the logits j, j + LANES and so on, and the lanes are combined in one order: the bits of a row depend
on nothing else.
"""

from numba.extending import register_jitable

from fastrelu.kernels.functions import exp, log
from fastrelu.kernels.lanes import FLOAT64, converted, largest, load_between, lowest, spread, store_lanes, total
from fastrelu.kernels.memory import (
    callback_address,
    enter_default_float_status,
    leave_float_status,
    read_word,
    size_of,
    store,
    words,
    write_word,
)
from fastrelu.kernels.parts import parts_of
from fastrelu.kernels.pool import in_parallel
from fastrelu.kernels.tile import load_row, zeros
from fastrelu.kernels.vector import ELEMENTS, Vector, fma, maximum, narrow, widened

# Part of the contract, like the 256 terms of a block of a product.
LANES = 16
# Logits below which a part is not worth handing to another thread.
GRAIN = 1 << 13


def build(dtype: str, vector_bytes: int):
    """The kernel for logits of type `dtype`.

    Its task in words: the logits and their row step; the int64 labels; the gradients and their row step; the float64 losses of
    the rows; the float64 factor of the gradients; where the float64 sum of the losses goes; rows, classes; last a word for
    itself.
    """
    element = ELEMENTS[dtype]
    wide = widened(Vector(element, 1)).element
    KEEPS, SIZE = not element.is_half, size_of(element)
    load, load_one, load_loss = load_between(element, LANES), load_between(element, 1), load_row(FLOAT64, LANES)
    load_double = load_row(FLOAT64, 1)
    lowest_of_all, no_sums, no_sum = lowest(element, LANES), zeros(FLOAT64, 1, LANES), zeros(FLOAT64, 1, 1)
    to_double, to_wide, rounded = converted(FLOAT64), converted(wide), narrow(element)
    store_some = store_lanes(LANES)

    @register_jitable
    def row_loss(z, label, dz, classes, factor):
        """The loss of a row, whose gradient is written to `dz`."""
        top = lowest_of_all()
        for i in range(0, classes, LANES):
            top = maximum(top, load(z + i * SIZE, 0, classes - i))
        greatest = largest(top)
        shift, own = spread(top, greatest), load_one(z + label * SIZE, 0, 1)
        sums = no_sums()[0]
        for i in range(0, classes, LANES):
            power = exp(load(z + i * SIZE, 0, classes - i) - shift)
            sums = sums + to_double(power)
            if KEEPS:
                store_some(dz + i * SIZE, rounded(power), classes - i)
        whole = total(sums)
        scale = to_wide(factor / whole)
        scales = spread(top, scale)
        for i in range(0, classes, LANES):
            kept = load(dz + i * SIZE, 0, classes - i) if KEEPS else exp(load(z + i * SIZE, 0, classes - i) - shift)
            store_some(dz + i * SIZE, rounded(kept * scales), classes - i)
        store(dz + label * SIZE, 0, rounded(fma(exp(own - greatest), scale, -to_wide(factor))))
        return (to_double(greatest) - to_double(own)) + log(whole)

    def part(task, number):
        z, z_row, labels, dz, dz_row, losses, factor, _, rows, classes, parts = words(task, 11)
        for row in range(number * rows // parts, (number + 1) * rows // parts):
            label = read_word(labels + 8 * row)
            loss = row_loss(z + row * z_row, label, dz + row * dz_row, classes, load_double(factor))
            store(losses, row, loss)

    part_address = callback_address(part, 2)

    @register_jitable
    def sum_of(losses, count):
        """The sum in the order of the lanes, and then what is left over."""
        sums, rest, i = no_sums()[0], no_sum()[0], 0
        while i <= count - LANES:
            sums = sums + load_loss(losses + 8 * i)
            i += LANES
        while i < count:
            rest = rest + load_double(losses + 8 * i)
            i += 1
        return total(sums) + rest

    def kernel(task):
        losses, _, result, rows, classes = words(task + 40, 5)
        parts = parts_of(rows, rows * (classes + LANES), GRAIN)
        write_word(task + 80, parts)
        status = enter_default_float_status()
        in_parallel(part_address(), task, parts)
        store(result, 0, sum_of(losses, rows))
        leave_float_status(status)
        return 0

    return kernel
