"""Small products, which are calculated one row after the other: the bits of every sum, and nothing outside the matrices."""

import hashlib
import itertools
import sys

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastrelu
from fastrelu.kernels.small import MAX_COLUMNS, MAX_WORK
from fastrelu.native import target
from fastrelu.operations import KC
from tests import reference
from tests.subprocesses import call
from tests.test_linear import BASES, WIDE, assert_bits, fitting, normal, problem
from tests.test_linear_guard_pages import sweep
from tests.test_target import TARGETS

Array = np.ndarray
Shapes = list[tuple[int, int, int]]

M, K = (1, 2, 5), (1, 2, 17, KC - 1, KC, KC + 1)
# As m, k, n: the last that are small and the first that are not, by work, by columns, by terms.
LIMITS: Shapes = [
    (1, MAX_WORK // MAX_COLUMNS, MAX_COLUMNS),
    (1, MAX_WORK // MAX_COLUMNS + 1, MAX_COLUMNS),
    (3, 5, MAX_COLUMNS),
    (1, 20, MAX_COLUMNS - 1),
    (1, 20, MAX_COLUMNS + 1),
    (MAX_WORK // KC // 2, KC, 2),
    (3, KC, 21),
    (3, KC, 22),
    (128, 2, 64),
    (MAX_WORK // 35, 5, 7),
    (1, KC + 1, 40),
]
NONE: Shapes = [(0, 3, 5), (3, 0, 5), (3, 5, 0), (0, 0, 5), (1, 0, 70)]


def shapes() -> Shapes:
    """Every number of columns up to some registers, each with some rows and terms."""
    some = [(M[(n + i) % 3], K[(n + 2 * i) % 6], n) for n in range(1, 71) for i in range(3)]
    return some + LIMITS + NONE


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("name", BASES)
def test_every_remainder(name: str, dtype: str) -> None:
    function = getattr(fastrelu, name)
    for number, (m, k, n) in enumerate(shapes()):
        x, w, b = problem(dtype, m, k, n, seed=number)
        bias, alpha = (b, None)[number // 3 % 2], fitting(name, dtype, n)
        assert_bits(function(x, w, bias, *alpha), reference.layer(name, x, w, bias, *alpha), (m, k, n))


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("name", ["linear_relu", "linear_prelu", "linear_elu"])
def test_any_strides(name: str, dtype: str) -> None:
    function, rng = getattr(fastrelu, name), np.random.default_rng(4)
    for number in range(150):
        m, k, n = (int(rng.integers(1, most)) for most in (6, 30, 41))
        # Backwards, transposed, with gaps; rows of w with gaps between them, or bottom up.
        x = normal(dtype, 2 * m, 3 * k, seed=number)[:: rng.choice([2, -2]), :: rng.choice([3, -3])]
        x = (x, np.asfortranarray(x), x[:1].repeat(m, 0), np.broadcast_to(x[:1], x.shape))[number % 4]
        w = normal(dtype, 2 * k, n + 3, seed=number + 1)[:: rng.choice([2, -2]), 1 : n + 1]
        b = normal(dtype, m, 2 * n, seed=number + 2)
        b = (b[:, :n], b[0, :n], b[0, ::2], b[0, n - 1 :: -1][:n], None)[number % 5]
        alpha = fitting(name, dtype, n)
        if name == "linear_prelu":
            alpha = ((alpha[0], alpha[0][::-1], normal(dtype, 2 * n)[::2], np.broadcast_to(alpha[0][-1:], n))[number % 4],)
        out = np.full((m + 1, n + 2), 7, dtype)
        function(x, w, b, *alpha, out=out[:m, 1 : n + 1])
        assert_bits(out[:m, 1 : n + 1], reference.layer(name, x, w, b, *alpha), (m, k, n, number))
        assert (out[m:] == 7).all()
        assert (out[:, [0, -1]] == 7).all()


@pytest.mark.parametrize("dtype", WIDE)
def test_x_is_a_sliding_window(dtype: str) -> None:
    # With one column the product is calculated as its transpose, whose rows then are x: overlapping ones.
    flat, w = normal(dtype, 90), normal(dtype, 7, 1, seed=1)
    for m, b in itertools.product((2, 5, 30, 83), (None, normal(dtype, 1), normal(dtype, 83, 1, seed=2))):
        bias = b[:m] if b is not None else None
        x = as_strided(flat, (m, 7), (flat.itemsize,) * 2)
        assert_bits(fastrelu.linear(x, w, bias), reference.linear(x, w, bias), m)
        assert_bits(fastrelu.linear_elu(x, w, bias, 0.3), reference.layer("linear_elu", x, w, bias, 0.3), m)


@pytest.mark.parametrize("dtype", WIDE)
def test_a_w_and_an_alpha_for_each_row(dtype: str) -> None:
    for k, n in [(3, 5), (17, 33), (0, 4)]:
        x, w, b = normal(dtype, 6, k), normal(dtype, 6, k, n, seed=1), normal(dtype, 6, n, seed=2)
        rows, alphas = normal(dtype, 6, n, seed=3), normal(dtype, 6, seed=4)
        for name, alpha in [("linear_relu", []), ("linear_prelu", [rows]), ("linear_elu", [alphas])]:
            for weights in (w, w[:1]):
                expected = [
                    reference.layer(name, x[i : i + 1], weights[i % len(weights)], b[i], *[a[i] for a in alpha])
                    for i in range(6)
                ]
                assert_bits(getattr(fastrelu, name)(x, weights, b, *alpha), np.concatenate(expected), (k, n, name))


@pytest.mark.parametrize("dtype", WIDE)
def test_out_is_an_operand(dtype: str) -> None:
    for n in (4, 16, 23):
        x, w, b = problem(dtype, n, n, n)
        for rows in (x, x[0]):
            expected = reference.layer("linear_relu", np.atleast_2d(rows), w, b).reshape(rows.shape)
            own, weight, bias = rows.copy(), w.copy(), b.copy()
            assert_bits(fastrelu.linear_relu(own, w, b, out=own), expected)
            if rows.ndim == 2:
                assert_bits(fastrelu.linear_relu(rows, weight, b, out=weight), expected)
            else:
                assert_bits(fastrelu.linear_relu(rows, w, bias, out=bias), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="no mprotect here")
@pytest.mark.parametrize("name", ["linear", "linear_prelu", "linear_elu"])
def test_nothing_outside_the_matrices(name: str) -> None:
    few = [(m, k, n) for m, k in ((1, 2), (2, 5)) for n in range(1, 36)] + LIMITS[:6] + [(2, 1, 64), (1, 0, 3)]
    call(sweep, name, WIDE, few, (0, 3), 1, timeout=300)


def digest(names: tuple[str, ...], dtypes: tuple[str, ...]) -> str:
    found = hashlib.sha256()
    for name, dtype in itertools.product(names, dtypes):
        for number, (m, k, n) in enumerate(shapes()):
            x, w, b = problem(dtype, m, k, n, seed=number)
            y = getattr(fastrelu, name)(x, w, (b, None)[number // 3 % 2], *fitting(name, dtype, n))
            found.update(reference.bits(y).tobytes())
    return found.hexdigest()


def print_digest(*arguments: tuple[str, ...]) -> None:
    print(digest(*arguments))


@pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")
@pytest.mark.parametrize(
    ("names", "dtypes", "to"),
    # By day what `test_linear_target` compiles for these vectors as well.
    [
        (("linear_relu",), ("float32",), "avx2"),
        *(pytest.param(("linear", "linear_prelu"), WIDE, to, marks=pytest.mark.nightly) for to in ("avx2", "sse4")),
    ],
)
def test_narrower_vectors(names: tuple[str, ...], dtypes: tuple[str, ...], to: str) -> None:
    assert call(print_digest, names, dtypes, env=TARGETS[to][0], timeout=300).strip() == digest(names, dtypes)
