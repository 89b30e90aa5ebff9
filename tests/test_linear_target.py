"""Fused layers in narrower vectors than this machine has: other tiles, the same bits."""

import hashlib

import ml_dtypes
import numpy as np
import pytest

import fastrelu
from fastrelu.native import target
from fastrelu.operations import FLOATS, HALVES, KC
from tests import reference
from tests.subprocesses import call
from tests.test_target import TARGETS

NAMES = ("linear", "linear_relu", "linear_elu")
# Every remainder of a tile; across the ends of blocks and of the steps within.
ROWS, TERMS = range(1, 14), (1, 2, 9, 16, 17, KC - 1, KC, KC + 1, 2 * KC + 45)
# As m, k, n: strips, many rows, few columns, and enough to be divided among threads.
LARGE = [(1, 37, 2500), (3, 300, 2081), (800, 20, 37), (300, 33, 3), (64, 257, 130)]

pytestmark = pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")


def shapes(columns: int) -> list[tuple[int, int, int]]:
    """All numbers of rows, of terms and of columns up to `columns`, each number of columns with some of the others."""
    some = [
        (ROWS[(5 * n + 4 * i) % len(ROWS)], TERMS[(2 * n + i) % len(TERMS)], n) for n in range(1, columns + 1) for i in range(4)
    ]
    return [shape for shape in some if len({*shape}) == 3]


def digests(names: tuple[str, ...], dtypes: tuple[str, ...], columns: int, large: bool) -> dict[str, str]:
    """Of each layer and dtype, the digest of its results, and of its masks."""
    found = {}
    for name in names:
        function = getattr(fastrelu, name)
        for dtype in dtypes:
            kind, rng = np.dtype(getattr(ml_dtypes, dtype, dtype)), np.random.default_rng(11)
            wide = "float32" if dtype in HALVES else dtype
            alpha = [np.array(0.3, wide)] if name == "linear_elu" else []
            digest, masks = hashlib.sha256(), hashlib.sha256()
            for m, k, n in shapes(columns) + LARGE * large:
                x, w, b = (rng.standard_normal(shape).astype(np.float32).astype(kind) for shape in [(m, k), (k, n), (n,)])
                x[m // 2, k // 2], b[n // 2] = np.inf, np.nan
                for weight in (w, np.asfortranarray(w), fastrelu.pack(w)):
                    for bias in (b, None):
                        digest.update(reference.bits(function(x, weight, bias, *alpha)).tobytes())
                        if name == "linear_relu":
                            mask = np.empty((m, (n + 7) // 8), np.uint8)
                            y, _ = function(x, weight, bias, mask=mask)
                            digest.update(reference.bits(y).tobytes())
                            masks.update(mask.tobytes())
            found[f"{name} {dtype}"] = digest.hexdigest()
            found[f"{name} {dtype} mask"] = masks.hexdigest()
    return found


def print_digests(*arguments):
    print(digests(*arguments))


def test_every_remainder_occurs():
    ms, ks, ns = zip(*shapes(40), strict=True)
    assert ({*ms}, {*ks}, {*ns}) == ({*ROWS}, {*TERMS}, {*range(1, 41)})


BY_DAY = [("linear_relu", "float32", "avx2"), ("linear_relu", "float16", "avx2")]
ALL = [(name, dtype, to) for name in NAMES for dtype in FLOATS for to in ("avx2", "sse4")]


@pytest.mark.parametrize(
    ("name", "dtype", "to"), [*BY_DAY, *(pytest.param(*one, marks=pytest.mark.nightly) for one in ALL if one not in BY_DAY)]
)
def test_bits_are_the_same(name, dtype, to):
    """Those of a process that compiles for another target."""
    arguments = (name,), (dtype,), 40, True
    assert eval(call(print_digests, *arguments, env=TARGETS[to][0], timeout=600)) == digests(*arguments)


# Without its own instructions for fused multiply-adds and float16, as with sse4, a processor calls functions of the C library.
@pytest.mark.nightly
def test_target_without_fma_and_f16c():
    arguments = ("linear", "linear_relu"), ("float16", "float32", "float64"), 9, False
    assert eval(call(print_digests, *arguments, env=TARGETS["generic"][0], timeout=600)) == digests(*arguments)
