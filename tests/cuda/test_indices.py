"""Who calculates and who copies what: the functions of indices in kernels, run as the plain Python functions that they are.

For every remainder of rows and columns, each element of a result belongs to one thread of one block, and each number of an
operand's block tile is copied by one thread.
"""

from __future__ import annotations

import inspect
from itertools import product as pairs
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastrelu.cuda.kernels.linear import RASTER, BlockTile, Result, product
from fastrelu.cuda.kernels.operands import Operand

TILES = {
    "float32": [BlockTile(128, 128, 16, 8, 8, 2), BlockTile(64, 64, 16, 4, 4, 3), BlockTile(32, 32, 16, 4, 4, 8)],
    "float64": [BlockTile(64, 64, 16, 4, 4, 2), BlockTile(32, 32, 8, 4, 4, 6)],
}
CASES = [(dtype, tile) for dtype, tiles in TILES.items() for tile in tiles]


def names_in(function: Any) -> dict[str, Any]:
    """What the names that a function takes from around it mean; other functions as plain ones."""
    found = inspect.getclosurevars(getattr(function, "py_func", function)).nonlocals
    return {name: getattr(value, "py_func", value) for name, value in found.items()}


def kernel_of(tile: BlockTile, operand: Operand) -> dict[str, Any]:
    return names_in(product(tile, operand, operand, "", Result(operand.dtype), False).function)


@pytest.mark.parametrize(("dtype", "tile"), CASES)
def test_threads_share_a_block_tile(dtype: str, tile: BlockTile) -> None:
    of = kernel_of(tile, Operand(dtype))
    owners = np.zeros((tile.BM, tile.BN), int)
    for thread in range(tile.threads):
        row, column = of["corner_of"](thread)
        for packet in range(of["PACKETS"]):
            i, j = row + of["row_of"](packet), column + packet % of["ACROSS"] * of["W_GAP"]
            owners[i, j : j + of["LANES"]] += 1
    assert_array_equal(owners, 1)


def test_blocks_share_a_result_of_any_size() -> None:
    tile = BlockTile(32, 32, 16, 4, 4, 8)
    corner = kernel_of(tile, Operand("float32"))["corner"]
    # Every remainder to a tile and one, and more rows of tiles than are worked on at a time.
    few = [*range(1, tile.BM + 2)]
    bands = [RASTER * tile.BM + more for more in (-1, 0, 1, tile.BM + 1, RASTER * tile.BM)]
    for m, n in [*pairs(few, few), *pairs(bands, (1, tile.BN, 3 * tile.BN + 1))]:
        down, across = -(-m // tile.BM), -(-n // tile.BN)
        corners = [tuple(map(int, corner(np.uint32(index), m, n))) for index in range(down * across)]
        assert sorted(corners) == [(i * tile.BM, j * tile.BN) for i in range(down) for j in range(across)]


@pytest.mark.parametrize("by", ["terms", "rows", "rows, 16 bytes at once"])
@pytest.mark.parametrize(("dtype", "tile"), CASES)
def test_threads_share_a_copy(dtype: str, tile: BlockTile, by: str) -> None:
    of = kernel_of(tile, Operand(dtype, terms_first=by == "terms", wide="16" in by))
    for side, extent in (("X", tile.BM), ("W", tile.BN)):
        near, wide, by_terms = (of[f"{side}_{name}"] for name in ("NEAR", "WIDE", "BY_TERMS"))
        copy = names_in(of[f"{side.lower()}_copy"])
        copied = np.zeros((extent, tile.BK), int)
        for thread in range(tile.threads):
            low, high = thread % near, thread // near
            row, term = (high, low) if by_terms else (low * wide, high)
            for h, v in pairs(range(copy["ALONG"]), range(copy["DOWN"])):
                i = row + v * copy["ROWS"]
                assert i + wide <= extent
                copied[i : i + wide, term + h * copy["STEPS"]] += 1
        assert_array_equal(copied, 1)
