"""Backward of the fused layers in narrower vectors than this machine has: other tiles, the same bits."""

import hashlib

import numpy as np
import pytest

from fastrelu.native import target
from fastrelu.operations import FLOATS, KC
from tests import reference
from tests.subprocesses import call
from tests.test_linear import bits_of_positive
from tests.test_linear_backward import ALPHAS, RELU, SUBSETS, problem
from tests.test_linear_backward import call as backward
from tests.test_target import TARGETS

NAMES = tuple(ALPHAS)
# Every remainder of a tile; across the ends of blocks and of the steps within.
SMALL, TERMS = range(1, 41), (1, 2, 9, 16, 17, KC - 1, KC, KC + 1, 2 * KC + 45)
# As m, k, n: few rows, long rows, long batches, few columns, and enough to be divided among threads.
LARGE = [(1, 37, 2500), (3, 300, 1081), (800, 20, 37), (3000, 33, 3), (300, 257, 130), (5000, 8, 8)]

pytestmark = pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")


def shapes(large: bool) -> list[tuple[int, int, int]]:
    """Each size along each axis, beside some others; sizes of several blocks beside small ones."""
    small = [((7 * i) % 40 + 1, (11 * i) % 40 + 1, i) for i in SMALL] + [
        ((9 * i) % 23 + 1, i, (17 * i) % 40 + 1) for i in SMALL
    ]
    long = [(size, i % 13 + 1, 3 * i + 2) for i, size in enumerate(TERMS)] + [
        (4 * i + 1, i + 2, t) for i, t in enumerate(TERMS)
    ]
    return small + long + LARGE * large


def digests(names: tuple[str, ...], dtypes: tuple[str, ...], large: bool) -> dict[str, str]:
    """Of each function and dtype, the digest of its results, and of those with a mask."""
    found = {}
    for name in names:
        for dtype in dtypes:
            digest, with_mask = hashlib.sha256(), hashlib.sha256()
            for number, shape in enumerate(shapes(large)):
                dy, y, x, w = problem(name, dtype, *shape, seed=number)
                dy[0, 0], x[-1, 0], w[0, -1], y[-1, -1] = np.inf, np.nan, -np.inf, np.nan
                turned = np.asfortranarray(x), np.asfortranarray(w)
                wanted = SUBSETS[number % len(SUBSETS)]
                for result in (backward(name, dy, y, x, w), backward(name, dy, y, *turned, wanted=wanted)):
                    for gradient in result:
                        if gradient is not None:
                            digest.update(reference.bits(gradient).tobytes())
                if name == RELU:
                    for gradient in backward(name, dy, bits_of_positive(y), x, w):
                        with_mask.update(reference.bits(gradient).tobytes())
            found[f"{name} {dtype}"] = digest.hexdigest()
            found[f"{name} {dtype} mask"] = with_mask.hexdigest()
    return found


def print_digests(*arguments):
    print(digests(*arguments))


BY_DAY = [("linear_relu_backward", "float32", "avx2"), ("linear_relu_backward", "float16", "avx2")]
ALL = [(name, dtype, to) for name in NAMES for dtype in FLOATS for to in ("avx2", "sse4")]


@pytest.mark.parametrize(
    ("name", "dtype", "to"), [*BY_DAY, *(pytest.param(*one, marks=pytest.mark.nightly) for one in ALL if one not in BY_DAY)]
)
def test_bits_are_the_same(name, dtype, to):
    """Those of a process that compiles for another target."""
    arguments = (name,), (dtype,), True
    assert eval(call(print_digests, *arguments, env=TARGETS[to][0], timeout=600)) == digests(*arguments)


# Without its own instructions for fused multiply-adds and float16, as with sse4, a processor calls functions of the C library.
@pytest.mark.nightly
def test_target_without_fma_and_f16c():
    arguments = ("linear_backward", RELU), ("float16", "float32", "float64"), False
    assert eval(call(print_digests, *arguments, env=TARGETS["generic"][0], timeout=600)) == digests(*arguments)
