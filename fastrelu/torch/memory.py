"""Memory of large results, kept for the next ones when PyTorch has let go of it.

A step of training makes gradients of the same sizes as the one before. The C library gives blocks of megabytes back to the
system and asks for them again, and the system fills every page with zeros: in a step of four layers 1024 wide and a batch of 64
that took a quarter of the time.
"""

from __future__ import annotations

import math
from collections import deque
from sys import getrefcount
from typing import Any

import numpy as np

from fastrelu import memory
from fastrelu.native.routine import address

__all__ = ["empty", "release"]

LEAST, MOST = 1 << 18, 1 << 28
"""Bytes of the smallest result that memory is kept for, and of all memory that is kept."""

_ALIGNMENT = 64  # a cache line, and the widest vector

_blocks: dict[int, deque[np.ndarray]] = {}
"""By the bytes of a result, the blocks that were made for it: in use if a result refers to them, which a tensor keeps alive."""


def _references(block: np.ndarray) -> int:
    return getrefcount(block)


def _count_alone() -> int:
    blocks = deque([np.empty(1)])
    block = blocks.popleft()
    return _references(block)


_ALONE = _count_alone()
"""What is counted for a block that nobody else refers to."""


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """A new array, as `numpy.empty`. Other arrays of its memory must not outlive it: only PyTorch's tensors keep it alive."""
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST:
        return np.empty(shape, dtype)
    blocks = _blocks.setdefault(size, deque())
    for _ in range(len(blocks)):
        try:
            block = blocks.popleft()
        except IndexError:  # another thread has the last one
            break
        if _references(block) > _ALONE:
            blocks.append(block)
            continue
        result = _within(block, size).view(dtype).reshape(shape)
        blocks.append(block)
        return result
    block = np.empty(size + _ALIGNMENT, np.uint8)
    result = _within(block, size).view(dtype).reshape(shape)
    if _kept() + size > MOST:
        release()
    if _kept() + size <= MOST:
        blocks.append(block)
    return result


def _within(block: np.ndarray, size: int) -> np.ndarray:
    start = -address(block) % _ALIGNMENT
    return block[start : start + size]


def _kept() -> int:
    return sum(size * len(blocks) for size, blocks in [*_blocks.items()])


def release() -> None:
    """Give back what no tensor uses."""
    for blocks in [*_blocks.values()]:
        for _ in range(len(blocks)):
            try:
                block = blocks.popleft()
            except IndexError:
                break
            if _references(block) > _ALONE:
                blocks.append(block)


memory.watch(release)
