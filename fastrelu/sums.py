"""Sums in one fixed order."""

import math

import numpy as np

from fastrelu.operations import KC


def sum_to(terms: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum `terms` over the axes along which an array of `shape` is broadcast to it.

    Terms are added in the order of the axes, in blocks of `KC`, so that the bits depend on nothing else: not on the memory
    layout, nor on what else is summed in the same call. Overflow and NaN raise no warning.
    """
    lead = terms.ndim - len(shape)
    summed = [*range(lead), *(lead + i for i, size in enumerate(shape) if size == 1 and terms.shape[lead + i] != 1)]
    kept = [axis for axis in range(terms.ndim) if axis not in summed]
    rows = math.prod(terms.shape[axis] for axis in summed)
    columns = terms.transpose(summed + kept).reshape(rows, -1) if rows else terms.reshape(0, math.prod(shape))
    blocks = -(-rows // KC)
    sums = np.zeros((blocks, columns.shape[1]), terms.dtype)
    total = np.zeros(columns.shape[1], terms.dtype)
    with np.errstate(all="ignore"):
        for p in range(min(KC, rows)):
            step = columns[p::KC]
            sums[: len(step)] += step
        for block in sums:
            total += block
    return total.reshape(shape)
