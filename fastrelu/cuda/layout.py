"""How a few arrays of one shape are gone through together: the fewest axes, and where they are."""

from __future__ import annotations

from typing import NamedTuple

Steps = tuple[int, ...]
"""Of one axis: the distance in bytes between neighbours, in each array."""


class Axis(NamedTuple):
    """An axis that all arrays share."""

    length: int
    steps: Steps


def broadcast_strides(shape: tuple[int, ...], strides: tuple[int, ...], to: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of an array of `shape` that is read as one of the shape `to`: 0 where it is repeated."""
    lead = len(to) - len(shape)
    repeated = (stride if length == its else 0 for length, its, stride in zip(to[lead:], shape, strides, strict=True))
    return (0,) * lead + tuple(repeated)


def shared_axes(shape: tuple[int, ...], strides: list[tuple[int, ...]]) -> tuple[list[Axis], Steps]:
    """Turn, sort and merge axes so that the last array, the result, is gone through in the order of its addresses.

    Parameters
    ----------
    shape : tuple of int
        The common shape; no length is 0.
    strides : list of tuple of int
        The strides of each array for it.

    Returns
    -------
    axes : list of Axis
        The innermost comes last. Lengths are at least 2.
    starts : tuple of int
        Where each array begins, relative to its first element.
    """
    axes = [Axis(length, tuple(its[k] for its in strides)) for k, length in enumerate(shape) if length > 1]
    starts = [0] * len(strides)
    for k, (length, steps) in enumerate(axes):
        if steps[-1] < 0:
            starts = [start + (length - 1) * step for start, step in zip(starts, steps, strict=True)]
            axes[k] = Axis(length, tuple(-step for step in steps))
    axes.sort(key=lambda axis: [abs(step) for step in reversed(axis.steps)], reverse=True)
    return merged(axes), tuple(starts)


def merged(axes: list[Axis]) -> list[Axis]:
    """The same with every two neighbours as one that are one in memory, and without those of length 1."""
    kept: list[Axis] = []
    for axis in axes:
        if axis.length == 1:
            continue
        if kept and all(outer == inner * axis.length for outer, inner in zip(kept[-1].steps, axis.steps, strict=True)):
            axis = Axis(kept.pop().length * axis.length, axis.steps)
        kept.append(axis)
    return kept


def order_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of an array from the longest stride to the shortest; None if they come so."""
    order = sorted(range(len(shape)), key=lambda axis: (shape[axis] > 1) * abs(strides[axis]), reverse=True)
    steps = [abs(stride) for length, stride in zip(shape, strides, strict=True) if length > 1]
    return None if steps == sorted(steps, reverse=True) else tuple(order)
