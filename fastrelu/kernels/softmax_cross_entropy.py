"""Softmax and cross-entropy: a row of logits to its loss and its gradient, while the row is in the cache.

Three passes over a row: its largest logit; the exponentials and their sum; the gradient. A row of one vector stays in a
register. Logarithms are taken of many rows at a time. Sums are float64 in `LANES` lanes on every processor, lane j for the
logits j, j + LANES and so on, and the lanes are combined in one order: the bits of a row depend on nothing else.
"""

from numba.extending import register_jitable

from fastrelu.kernels.functions import exp, log
from fastrelu.kernels.lanes import (
    FLOAT64,
    converted,
    first_lanes,
    largest,
    load_between,
    load_whole,
    lowest,
    spread,
    store_lanes,
    total,
)
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
from fastrelu.kernels.vector import ELEMENTS, Vector, fma, like, maximum, narrow, where, widened

# Part of the contract, like the 256 terms of a block of a product.
LANES = 16
# Logits below which a part is not worth handing to another thread.
GRAIN = 1 << 13


def build(dtype: str, vector_bytes: int):
    """The kernel for logits of type `dtype`.

    Its task in words: the logits and their row step; the int64 labels; the gradients and their row step; the float64 losses of
    the rows, and as much memory for the sums of the exponentials; the float64 factor of the gradients; where the float64 sum of
    the losses goes; rows, classes; last a word for itself.
    """
    element = ELEMENTS[dtype]
    wide = widened(Vector(element, 1)).element
    KEEPS, SIZE = not element.is_half, size_of(element)
    load_all, below = load_whole(element, LANES), first_lanes(LANES)
    load, load_one, load_loss = load_between(element, LANES), load_between(element, 1), load_row(FLOAT64, LANES)
    load_double = load_row(FLOAT64, 1)
    lowest_of_all, no_sums, no_sum = lowest(element, LANES), zeros(FLOAT64, 1, LANES), zeros(FLOAT64, 1, 1)
    to_double, to_wide, rounded = converted(FLOAT64), converted(wide), narrow(element)
    load_doubles, store_some, store_losses = load_between(FLOAT64, LANES), store_lanes(LANES), store_lanes(LANES)

    @register_jitable
    def end_row(own, greatest, power, whole, factor, place):
        """Write the gradient of the right class, and what the loss needs."""
        store(place[0], 0, rounded(fma(power, to_wide(factor / whole), -to_wide(factor))))
        store(place[1], 0, to_double(greatest) - to_double(own))
        store(place[2], 0, whole)

    @register_jitable
    def exponentials(logits, shift, count):
        """Those of the first `count` logits, and 0. Nothing is calculated of the others, whose underflow takes long."""
        shown, nothing = below(count), like(shift, 0)
        return where(shown, exp(where(shown, logits - shift, nothing)), nothing)

    @register_jitable
    def short_row(z, dz, classes, factor, place):
        """A row of one vector."""
        logits, own = load(z, 0, classes), load_one(place[3], 0, 1)
        # As in a long row, where a NaN is not always the largest.
        greatest = largest(maximum(lowest_of_all(), logits))
        powers = exponentials(logits, spread(logits, greatest), classes)
        whole = total(no_sums()[0] + to_double(powers))
        store_some(dz, rounded(powers * spread(logits, to_wide(factor / whole))), classes)
        end_row(own, greatest, exp(own - greatest), whole, factor, place)

    @register_jitable
    def long_row(z, dz, classes, factor, place):
        top, own = lowest_of_all(), load_one(place[3], 0, 1)
        for i in range(0, classes, LANES):
            top = maximum(top, load(z + i * SIZE, 0, classes - i))
        greatest = largest(top)
        shift, sums = spread(top, greatest), no_sums()[0]
        last = (classes - 1) // LANES * LANES
        for i in range(0, last, LANES):
            powers = exp(load_all(z + i * SIZE) - shift)
            sums = sums + to_double(powers)
            if KEEPS:
                store(dz + i * SIZE, 0, rounded(powers))
        powers = exponentials(load(z + last * SIZE, 0, classes - last), shift, classes - last)
        sums = sums + to_double(powers)
        if KEEPS:
            store_some(dz + last * SIZE, rounded(powers), classes - last)
        whole = total(sums)
        scale = spread(top, to_wide(factor / whole))
        for i in range(0, last, LANES):
            kept = load_all(dz + i * SIZE) if KEEPS else exp(load_all(z + i * SIZE) - shift)
            store(dz + i * SIZE, 0, rounded(kept * scale))
        store_some(dz + last * SIZE, rounded(powers * scale), classes - last)
        end_row(own, greatest, exp(own - greatest), whole, factor, place)

    @register_jitable
    def end_losses(losses, sums, count):
        """Add the logarithms of the sums."""
        for i in range(0, count, LANES):
            logarithms = log(load_doubles(sums + 8 * i, 0, count - i))
            store_losses(losses + 8 * i, load_doubles(losses + 8 * i, 0, count - i) + logarithms, count - i)

    def part(task, number):
        z, z_row, labels, dz, dz_row, losses, sums, factor, _, rows, classes, parts = words(task, 12)
        first, end = number * rows // parts, (number + 1) * rows // parts
        for row in range(first, end):
            source, target, right = z + row * z_row, dz + row * dz_row, read_word(labels + 8 * row) * SIZE
            place = (target + right, losses + 8 * row, sums + 8 * row, source + right)
            if classes <= LANES:
                short_row(source, target, classes, load_double(factor), place)
            else:
                long_row(source, target, classes, load_double(factor), place)
        end_losses(losses + 8 * first, sums + 8 * first, end - first)

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
        losses, _, _, result, rows, classes = words(task + 40, 6)
        parts = parts_of(rows, rows * (classes + LANES), GRAIN)
        write_word(task + 88, parts)
        status = enter_default_float_status()
        in_parallel(part_address(), task, parts)
        store(result, 0, sum_of(losses, rows))
        leave_float_status(status)
        return 0

    return kernel
