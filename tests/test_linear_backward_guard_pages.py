"""Backward of the fused layers reads and writes nothing outside its arrays, which stand directly before or after memory that
cannot be touched.
"""

import itertools
import sys

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.native import target
from fastrelu.operations import FLOATS, KC
from tests.reference import bits
from tests.subprocesses import call
from tests.test_guard_pages import Guarded
from tests.test_linear_backward import GRADIENTS, RELU, bits_of_positive
from tests.test_linear_backward import call as backward
from tests.test_linear_guard_pages import Shapes, different, matrix
from tests.test_target import TARGETS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no mprotect here")

_MARK = 0xA5


def sweep(name: str, dtypes: tuple[str, ...], shapes: Shapes, paddings: tuple[int, ...], threads: int) -> None:
    """Call a function for all shapes, given as m, k, n, with all operands and outputs at either guard."""
    fastrelu.set_num_threads(threads)
    padding = max(paddings)
    elements = [max((s[i] + padding) * (s[j] + padding) for s in shapes) for i, j in ((0, 1), (1, 2), (0, 2))]
    of_x, of_w, of_dy, of_y, of_mask = (Guarded(8 * elements[i]) for i in (0, 1, 2, 2, 2))
    of_out = [Guarded(8 * elements[i]) for i in (0, 1, 2)]
    rng = np.random.default_rng(3)
    for dtype in dtypes:
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        for block in (of_x, of_w, of_dy, of_y):
            view = block.bytes.view(kind)
            view[:] = rng.standard_normal(len(view)).astype(np.float32)
        for (m, k, n), padding, at_end, form in itertools.product(shapes, paddings, (False, True), ("C", "T")):
            case = (dtype, m, k, n, padding, at_end, form)

            def place(block: Guarded, rows: int, columns: int, turned: bool) -> np.ndarray:
                if turned:
                    return matrix(block, kind, columns, rows, padding, at_end).T  # noqa: B023
                return matrix(block, kind, rows, columns, padding, at_end)  # noqa: B023

            turned = form == "T"
            dy, x = place(of_dy, m, n, False), place(of_x, m, k, turned)
            y, w = place(of_y, m, n, turned), place(of_w, k, n, turned)
            mask = matrix(of_mask, np.dtype(np.uint8), m, (n + 7) // 8, padding, at_end)
            mask[...] = bits_of_positive(np.array(y))
            out = place(of_out[0], m, k, turned), place(of_out[1], k, n, turned), of_out[2].array(kind, n, 1, at_end)
            expected = [bits(a) for a in backward(name, *map(np.array, (dy, y, x, w)))]
            # Equal to a plain call, so that every element is written; and nothing else is.
            for given_y, accumulate in [(y, ()), (y, GRADIENTS), (mask, ())] if name == RELU else [(y, ())]:
                for block, a in zip(of_out, out, strict=True):
                    block.bytes[:] = _MARK
                    if accumulate:
                        a[...] = 0
                backward(name, dy, given_y, x, w, out=out, accumulate=accumulate)
                for block, a, wanted in zip(of_out, out, expected, strict=True):
                    assert_array_equal(bits(a), wanted, err_msg=str(case))
                    a.view(f"u{kind.itemsize}")[:] = int.from_bytes([_MARK] * kind.itemsize, "little")
                    assert (block.bytes == _MARK).all(), case


# Every remainder of a register, and of a tile of several.
EDGES = [*range(1, 19), 31, 33, 47, 65, 70, 127, 130]


@pytest.mark.parametrize("axis", ["m", "k", "n"])
def test_every_remainder(axis: str) -> None:
    place = "mkn".index(axis)
    shapes = [tuple(np.roll((size, a, b), place)) for size in EDGES for a, b in [(3, 21), (22, 6), (4, 1), (14, 36)]]
    call(sweep, RELU, FLOATS, [tuple(map(int, shape)) for shape in shapes], (0, 3), 1, timeout=300)


@pytest.mark.parametrize("name", ["linear_backward", "linear_elu_backward", "linear_softplus_backward"])
def test_other_functions(name: str) -> None:
    call(sweep, name, FLOATS, different([1, 4, 21], [6, 13], [2, 17, 33, 70]), (0, 1), 1, timeout=300)


@pytest.mark.parametrize("axis", ["m", "k", "n"])
def test_ends_of_blocks(axis: str) -> None:
    sizes = [KC - 1, KC, KC + 1, 2 * KC + 17]
    shapes = [tuple(map(int, np.roll((size, a, b), "mkn".index(axis)))) for size in sizes for a, b in [(3, 37), (18, 5)]]
    call(sweep, RELU, FLOATS, shapes, (0, 1), 1, timeout=300)


def test_rows_a_large_power_of_two_apart() -> None:
    # 1024 elements: at a guard that follows, rows begin early and late in a cache line.
    call(sweep, "linear_backward", FLOATS, [(3, 1000, 37), (101, 990, 9), (7, 18, 1000)], (24, 34), 1, timeout=300)


def test_divided_among_threads() -> None:
    shapes = [(2, 300, 2100), (1601, 60, 3), (403, 131, 190), (5001, 8, 9), (13, 700, 271)]
    call(sweep, RELU, FLOATS, shapes, (0, 1), 3, timeout=300)


@pytest.mark.nightly
@pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")
@pytest.mark.parametrize("to", ["avx2", pytest.param("sse4", marks=pytest.mark.nightly)])
def test_narrower_vectors(to: str) -> None:
    shapes = different([2, 13], [21], EDGES) + different([KC + 1, 40], [2, 37, 130], [3, 18])
    call(sweep, RELU, FLOATS, shapes, (0, 3), 1, env=TARGETS[to][0], timeout=600)
