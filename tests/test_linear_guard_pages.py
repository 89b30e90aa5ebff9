"""Fused layers read and write nothing outside their matrices, which stand directly before or after memory that cannot be
touched.
"""

import itertools
import sys

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.native import target
from fastrelu.operations import FLOATS, HALVES, KC, LAYERS
from tests.reference import bits
from tests.subprocesses import call
from tests.test_guard_pages import Guarded
from tests.test_target import TARGETS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no mprotect here")

_MARK = 0xA5

Shapes = list[tuple[int, int, int]]


def matrix(block: Guarded, dtype: np.dtype, rows: int, columns: int, padding: int, at_end: bool) -> np.ndarray:
    """A matrix with `padding` elements between its rows, whose last or first element touches a guard."""
    step = columns + padding
    flat = block.array(dtype, (rows - 1) * step + columns if rows and columns else 0, 1, at_end)
    return as_strided(flat, (rows, columns), (step * dtype.itemsize, dtype.itemsize))


def sweep(name: str, dtypes: tuple[str, ...], shapes: Shapes, paddings: tuple[int, ...], threads: int) -> None:
    """Call a layer for all shapes, given as m, k, n, with all operands at either guard."""
    function, has_mask = getattr(fastrelu, name), name == "linear_relu"
    fastrelu.set_num_threads(threads)
    padding = max(paddings)
    elements = [max((s[i] + padding) * (s[j] + padding) for s in shapes) for i, j in ((0, 1), (1, 2), (0, 2))]
    of_x, of_w, of_y = (Guarded(8 * size) for size in elements)
    of_b, of_alpha, of_mask = (Guarded(8 * size) for size in (elements[2], elements[2], elements[2]))
    rng = np.random.default_rng(3)
    for dtype in dtypes:
        kind, wide = np.dtype(getattr(ml_dtypes, dtype, dtype)), np.dtype("float32" if dtype in HALVES else dtype)
        for block in (of_x, of_w, of_b):
            view = block.bytes.view(kind)
            view[:] = rng.standard_normal(len(view)).astype(np.float32)
        of_alpha.bytes.view(wide)[:] = 0.3
        for (m, k, n), padding, at_end, form in itertools.product(shapes, paddings, (False, True), ("C", "T", "packed")):
            case = (dtype, m, k, n, padding, at_end, form)
            x, out = matrix(of_x, kind, m, k, padding, at_end), matrix(of_y, kind, m, n, padding, at_end)
            w = matrix(of_w, kind, n, k, padding, at_end).T if form == "T" else matrix(of_w, kind, k, n, padding, at_end)
            b = of_b.array(kind, n, 1, at_end)
            kind_of_alpha = LAYERS[name].alpha
            alpha = [of_alpha.array(wide, n if kind_of_alpha == "(n)" else 1, 1, at_end)] if kind_of_alpha else []
            if kind_of_alpha == "()":
                alpha = [alpha[0].reshape(())]
            weight = fastrelu.pack(w) if form == "packed" else w
            expected = bits(function(np.array(x), np.array(w), np.array(b), *map(np.array, alpha)))
            # Equal to a plain call, so that every element is written; and nothing else is.
            of_y.bytes[:] = _MARK
            assert_array_equal(bits(function(x, weight, b, *alpha, out=out)), expected, err_msg=str(case))
            if has_mask:
                mask = matrix(of_mask, np.dtype(np.uint8), m, (n + 7) // 8, padding, at_end)
                of_mask.bytes[:] = _MARK
                function(x, weight, b, out=out, mask=mask)
                positive = np.packbits(expected != 0, axis=-1, bitorder="little")
                assert_array_equal(mask, positive, err_msg=str(case))
                mask[:] = _MARK
                assert (of_mask.bytes == _MARK).all(), case
            assert_array_equal(bits(out), expected, err_msg=str(case))
            out.view(f"u{kind.itemsize}")[:] = int.from_bytes([_MARK] * kind.itemsize, "little")
            assert (of_y.bytes == _MARK).all(), case


def different(ms: list[int], ks: list[int], ns: list[int]) -> Shapes:
    return [shape for shape in itertools.product(ms, ks, ns) if len({*shape}) == 3]


# Few rows, a tile with and without a rest; every remainder of a register, and of a tile of several.
ROWS, COLUMNS = [1, 2, 4, 5, 13], [*range(1, 19), 31, 33, 47, 63, 65, 70, 127, 130]


@pytest.mark.parametrize("name", ["linear_relu", "linear_prelu", "linear_elu"])
def test_every_remainder_of_rows_and_columns(name):
    call(sweep, name, FLOATS, different(ROWS, [6, 21], COLUMNS), (0, 3), 1, timeout=300)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_remainder_of_a_sum(dtype):
    ks = [*range(36), 63, 65, *range(KC - 2, KC + 3), 2 * KC + 17]
    call(sweep, "linear_relu", (dtype,), different([1, 4, 11], ks, [2, 9, 37]), (0, 1), 1, timeout=300)


@pytest.mark.parametrize("dtype", FLOATS)
def test_few_columns(dtype):
    call(
        sweep, "linear", (dtype,), different([6, 14, 33, 70, 131], [1, 2, 17, 40, KC + 3], [1, 2, 3, 4]), (0, 5), 1, timeout=300
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_long_strips(dtype):
    shapes = different([1, 2, 3, 4], [1, 15, 17, 40], [255, 260, 385, 530, 2049, 4100])
    call(sweep, "linear_relu", (dtype,), shapes, (0, 1), 1, timeout=300)


def test_columns_a_large_power_of_two_apart():
    # 1024 elements: at a guard that follows, columns begin early and late in a cache line.
    call(sweep, "linear", FLOATS, different([2, 7], [990, 1000, 1023], [3, 18, 37]), (1, 24, 34), 1, timeout=300)


def test_divided_among_threads():
    shapes = [(2, 300, 2100), (5, 40, 5003), (1601, 60, 3), (403, 31, 190), (13, 3000, 71)]
    call(sweep, "linear_relu", FLOATS, shapes, (0, 1), 3, timeout=300)


@pytest.mark.nightly
@pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")
@pytest.mark.parametrize("to", ["avx2", pytest.param("sse4", marks=pytest.mark.nightly)])
def test_narrower_vectors(to):
    shapes = different(ROWS, [6, 21], COLUMNS) + different([1, 3, 4, 9], [40, KC + 1], [2, 37, 130, 530])
    call(sweep, "linear_relu", FLOATS, shapes, (0, 3), 1, env=TARGETS[to][0], timeout=600)
