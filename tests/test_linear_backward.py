"""Backward of the fused layers: the bits of every gradient, whatever the shape, the layout, the batch and the subset."""

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu import ufuncs
from fastrelu.operations import FLOATS, HALVES, KC
from tests import reference
from tests.reference import bits
from tests.test_linear import (
    LAYOUTS,
    WIDE,
    assert_bits,
    assert_surroundings,
    bits_of_positive,
    dtype_of,
    laid_out,
    normal,
    spread,
)

Array = np.ndarray

GRADIENTS = ("dx", "dw", "db")
# Every function, and the parameter of those that have one: no number of any half.
ALPHAS: dict[str, tuple[float, ...]] = {
    "linear_backward": (),
    "linear_relu_backward": (),
    "linear_leaky_relu_backward": (0.3,),
    "linear_elu_backward": (0.7,),
    "linear_sigmoid_backward": (),
    "linear_tanh_backward": (),
    "linear_softplus_backward": (),
}
ALL = pytest.mark.parametrize("name", ALPHAS)
SUBSETS = [subset for count in (1, 2, 3) for subset in itertools.combinations(GRADIENTS, count)]
RELU = "linear_relu_backward"


def operands_of(name: str) -> tuple[str, ...]:
    return ("dy", "x", "w") if name == "linear_backward" else ("dy", "y", "x", "w")


def activated(name: str, z: Array) -> Array:
    """An output of the layer, of the type of z."""
    activation = name.removeprefix("linear_").removesuffix("backward").removesuffix("_")
    return getattr(fastrelu, activation)(z, *ALPHAS[name]).astype(z.dtype) if activation else z


def problem(name: str, dtype: str, m: int, k: int, n: int, seed: int = 0) -> list[Array]:
    """dy, y, x and w."""
    dy, z, x, w = np.split(normal(dtype, 2 * m * n + m * k + k * n, seed=seed), np.cumsum([m * n, m * n, m * k]))
    return [dy.reshape(m, n), activated(name, z.reshape(m, n)), x.reshape(m, k), w.reshape(k, n)]


def call(name: str, dy: Any, y: Any, x: Any, w: Any, *alpha: Any, **keywords: Any) -> tuple[Any, Any, Any]:
    """The function; that of `linear` has no y."""
    data = (dy, x, w) if name == "linear_backward" else (dy, y, x, w)
    return getattr(fastrelu, name)(*data, *(alpha or ALPHAS[name]), **keywords)


def expected_of(name: str, *operands: Array, **keywords: Any) -> tuple[Array, ...]:
    return reference.gradients(name, *operands, *ALPHAS[name], **keywords)


def assert_gradients(result: Any, expected: Any, message: Any = "", wanted: tuple[str, ...] = GRADIENTS) -> None:
    """Equal bits of what is wanted, None for the others."""
    assert type(result) is tuple
    assert len(result) == 3
    for name, a, b in zip(GRADIENTS, result, expected, strict=True):
        if name in wanted:
            assert a.shape == b.shape, (name, message)
            assert_bits(a, b, (name, message))
        else:
            assert a is None, (name, message)


def check(name: str, *operands: Array, message: Any = "") -> None:
    """Equal bits for ordinary operands, for transposed ones, and of relu for the mask."""
    expected = expected_of(name, *operands)
    assert_gradients(call(name, *operands), expected, ("C", message))
    turned = [np.asfortranarray(a) for a in operands]
    assert_gradients(call(name, *turned), expected, ("F", message))
    if name == RELU:
        dy, y, x, _ = operands
        assert_gradients(call(name, dy, bits_of_positive(y), x, turned[3]), expected, ("mask", message))


def filled(shape: Any, dtype: Any = np.float32) -> Array:
    return np.full(shape, 77, dtype)


def outputs(m: int, k: int, n: int, dtype: Any = np.float32) -> tuple[Array, Array, Array]:
    """Arrays that show what is written to them."""
    return filled((m, k), dtype), filled((k, n), dtype), filled(n, dtype)


# What the gradients are.


def test_blocks_of_each_sum_are_added_in_order() -> None:
    # 1 is half a unit in the last place of 2**24: alone each 1 is lost, but a block of them is not.
    terms = 2 * KC + 3
    one = np.ones((terms, terms), np.float32)
    large = one.copy()
    large[0] = 2.0**24
    total = 2.0**24 + KC + 4  # (2**24 + 256) + 3, to even
    for result in (fastrelu.linear_backward(large, one, one), reference.gradients("linear_backward", large, one, one, one)):
        assert_array_equal(result[1], np.full((terms, terms), total))
        assert_array_equal(result[2], np.full(terms, total))
    for result in (fastrelu.linear_backward(large.T, one, one), reference.gradients("linear_backward", large.T, one, one, one)):
        assert_array_equal(result[0], np.full((terms, terms), total))


DERIVATIVES: dict[str, Callable[..., Array]] = {
    "linear_backward": lambda dy, y: dy,
    "linear_relu_backward": lambda dy, y: np.where(y > 0, dy, 0),
    "linear_leaky_relu_backward": lambda dy, y, alpha: np.where(y > 0, dy, alpha * dy),
    "linear_elu_backward": lambda dy, y, alpha: np.where(y > 0, dy, dy * (y + alpha)),
    "linear_sigmoid_backward": lambda dy, y: dy * y * (1 - y),
    "linear_tanh_backward": lambda dy, y: dy * (1 - y) * (1 + y),
    "linear_softplus_backward": lambda dy, y: dy * -np.expm1(-y),
}


@ALL
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_are_those_of_products_in_float64(name: str, dtype: str) -> None:
    m, k, n = 300, 20, 40
    operands = problem(name, dtype, m, k, n)
    dy, y, x, w = (a.astype(np.float64) for a in operands)
    dz = DERIVATIVES[name](dy, y, *ALPHAS[name])
    unit = 2.0 ** -{"float16": 24, "bfloat16": 24, "float32": 24, "float64": 53}[dtype]
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0)
    # As many roundings as a sum has terms, and 4 more of the derivative, whose factors are at most 1; a half once more.
    for result, exact, size, terms in zip(
        call(name, *operands),
        (dz @ w.T, x.T @ dz, dz.sum(0)),
        (abs(dy) @ abs(w).T, abs(x).T @ abs(dy), abs(dy).sum(0)),
        (n, m, m),
        strict=True,
    ):
        assert result.dtype == dtype_of(dtype)
        bound = 1.01 * ((terms + 4) * unit * size + rounding * abs(exact)) + 2.0**-25 * (dtype == "float16")
        error = abs(result.astype(np.float64) - exact)
        assert (error <= bound).all(), (error / bound).max()


@ALL
def test_gradients_are_the_slopes_of_the_forward_layer(name: str) -> None:
    m, k, n, h = 4, 3, 5, 2.0**-17
    forward = getattr(fastrelu, name.removesuffix("_backward"))
    x, w, b, weights = (normal("float64", *shape, seed=3 + i) for i, shape in enumerate([(m, k), (k, n), (n,), (m, n)]))
    assert abs(x @ w + b).min() > 1e-2  # no kink is near

    def loss() -> float:
        return float((weights * forward(x, w, b, *ALPHAS[name])).sum())

    for a, gradient in zip((x, w, b), call(name, weights, forward(x, w, b, *ALPHAS[name]), x, w), strict=True):
        slopes = np.empty_like(a)
        for i in np.ndindex(a.shape):
            kept = a[i]
            a[i] = kept + h
            above = loss()
            a[i] = kept - h
            slopes[i] = (above - loss()) / (2 * h)
            a[i] = kept
        # Central differences err by h**2 / 6 of a third derivative and by eps / h.
        assert_allclose(gradient, slopes, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["linear_leaky_relu_backward", "linear_elu_backward"])
def test_parameter(name: str, dtype: str) -> None:
    operands = problem(name, dtype, 9, 20, 33)
    function, default = getattr(fastrelu, name), 0.01 if "leaky" in name else 1.0
    assert_gradients(function(*operands), reference.gradients(name, *operands, default))
    wide = np.float32 if dtype in HALVES else dtype
    expected = reference.gradients(name, *operands, 0.3)
    for alpha in (0.3, np.dtype(wide).type(0.3), np.array(0.3, wide)):
        assert_gradients(function(*operands, alpha), expected)
        assert_gradients(function(*operands, alpha=alpha), expected)
    for alpha in (0, -2.5, 1):
        assert_gradients(function(*operands, alpha), reference.gradients(name, *operands, alpha))


# Sizes.

EDGES = [*range(1, 71), *range(127, 131), *(blocks * KC + rest for blocks in (1, 2, 3) for rest in (-1, 0, 1, 2))]
# Beside the size that is tested stand others, so that each meets many.
OTHERS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 21, 24, 31, 33, 37, 48, 63, 65, 70]


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("axis", ["m", "k", "n"])
def test_every_remainder(axis: str, dtype: str) -> None:
    names, others = itertools.cycle(ALPHAS), itertools.cycle(itertools.permutations(OTHERS, 2))
    for size in EDGES:
        for first, second in itertools.islice(others, 5):
            shape = {"m": (size, first, second), "k": (first, size, second), "n": (first, second, size)}[axis]
            name = next(names)
            check(name, *problem(name, dtype, *shape, seed=size), message=(name, shape))
        for _ in range(7):  # so that all come together with all
            next(others)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("axis", ["m", "k", "n"])
def test_every_remainder_of_halves(axis: str, dtype: str) -> None:
    names, others = itertools.cycle(ALPHAS), itertools.cycle(itertools.permutations(OTHERS, 2))
    for size in [*range(1, 71, 2), 128, KC - 1, KC, KC + 1, 2 * KC + 1, 3 * KC]:
        for first, second in itertools.islice(others, 0, 20, 7):
            shape = {"m": (size, first, second), "k": (first, size, second), "n": (first, second, size)}[axis]
            name = next(names)
            check(name, *problem(name, dtype, *shape, seed=size), message=(name, shape))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", range(1, 18))
def test_few_rows_and_few_columns(n: int, dtype: str) -> None:
    for m, k in itertools.product(range(1, 6), [1, 3, 18, 69, 300]):
        check(RELU, *problem(RELU, dtype, m, k, n), message=(m, k))
    for m, k in [(20, 2), (37, 1), (259, 3), (70, 19), (2 * KC + 3, 5)]:
        check(RELU, *problem(RELU, dtype, m, k, n), message=(m, k))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", range(1, 6))
def test_few_long_rows(m: int, dtype: str) -> None:
    for k, n in [(300, 700), (700, 301), (3, 2100), (2101, 3), (17, 4201)]:
        check(RELU, *problem(RELU, dtype, m, k, n), message=(k, n))


BLOCKS = [
    *itertools.permutations((KC + 1, 2 * KC + 1, 31)),
    *itertools.permutations((3 * KC, KC, 7)),
    (KC, KC, KC),
    (2 * KC - 1, 2 * KC, KC - 1),
    (1000, 6, 300),
    (61, 1000, 513),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_several_blocks_along_several_axes(shape: tuple[int, int, int], dtype: str) -> None:
    name = "linear_leaky_relu_backward" if sum(shape) % 2 else RELU
    check(name, *problem(name, dtype, *shape))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "k", "n"), [(5000, 8, 8), (3000, 70, 65), (20_000, 3, 1), (7001, 1, 5)])
def test_long_batches(m: int, k: int, n: int, dtype: str) -> None:
    check(RELU, *problem(RELU, dtype, m, k, n))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "k", "n"), [(3, 1024, 37), (130, 1024, 9), (7, 130, 1024), (101, 1024, 1024), (259, 100, 2048)])
def test_rows_a_large_power_of_two_apart(m: int, k: int, n: int, dtype: str) -> None:
    check("linear_backward", *problem("linear_backward", dtype, m, k, n))
    # The same distance where only a few columns of each row belong to the matrix.
    dy, y, x, w = problem(RELU, dtype, m, k, n)
    cut = [a[:, 5 : a.shape[1] - 4 * (a.shape[1] > 1000)] if a.shape[1] > 9 else a for a in (x, w, dy, y)]
    x, dy, y = cut[0], cut[2], cut[3]
    w = w[len(w) - x.shape[1] :, w.shape[1] - dy.shape[1] :]
    for given_w in (w, np.asfortranarray(w)):
        assert_gradients(call(RELU, dy, y, x, given_w), expected_of(RELU, dy, y, x, w))


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_no_rows(name: str, dtype: str) -> None:
    dx, dw, db = call(name, *problem(name, dtype, 0, 5, 3))
    assert dx.shape == (0, 5)
    assert_bits(dw, np.zeros((5, 3), dtype_of(dtype)))
    assert_bits(db, np.zeros(3, dtype_of(dtype)))
    out = outputs(0, 5, 3, dtype_of(dtype))
    assert call(name, *problem(name, dtype, 0, 5, 3), out=out)[1] is out[1]
    assert not out[1].any()
    assert not out[2].any()
    out = outputs(0, 5, 3, dtype_of(dtype))
    call(name, *problem(name, dtype, 0, 5, 3), out=out, accumulate=GRADIENTS)
    assert_array_equal(out[1], filled((5, 3)))
    assert_array_equal(out[2], filled(3))


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_no_columns(name: str, dtype: str) -> None:
    for m in (4, 0):
        dx, dw, db = call(name, *problem(name, dtype, m, 5, 0))
        assert_bits(dx, np.zeros((m, 5), dtype_of(dtype)))
        assert (dw.shape, db.shape) == ((5, 0), (0,))


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_no_terms_of_the_forward_sum(name: str, dtype: str) -> None:
    operands = problem(name, dtype, 300, 0, 7)
    assert_gradients(call(name, *operands), expected_of(name, *operands))


# Subsets.


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_subset_has_the_bits_of_all(name: str, dtype: str) -> None:
    for shape in [(13, 21, 40), (1, 30, 5), (300, 4, 2), (4, 70, 300), (600, 33, 17)]:
        dy, y, x, w = problem(name, dtype, *shape)
        expected = expected_of(name, dy, y, x, w)
        for wanted in SUBSETS:
            for order in (wanted, wanted[::-1], [*wanted]):
                assert_gradients(call(name, dy, y, x, w, wanted=order), expected, shape, wanted)
            needed = (x if "dw" in wanted else None, w if "dx" in wanted else None)
            if "dx" in wanted or "dw" in wanted:
                assert_gradients(call(name, dy, y, *needed, wanted=wanted), expected, shape, wanted)
            out = [a if g in wanted else None for g, a in zip(GRADIENTS, outputs(*shape, dy.dtype), strict=True)]
            result = call(name, dy, y, x, w, wanted=wanted, out=tuple(out))
            assert_gradients(result, expected, shape, wanted)
            assert all(a is b for a, b in zip(result, out, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_db_alone_needs_neither_x_nor_w(name: str, dtype: str) -> None:
    dy, y, x, w = problem(name, dtype, 600, 3, 37)
    expected = expected_of(name, dy, y, x, w)
    assert_gradients(call(name, dy, y, None, None, wanted=("db",)), expected, wanted=("db",))
    rows = [a.reshape(20, 30, 37) for a in (dy, y)]
    assert_gradients(call(name, *rows, None, None, wanted=("db",)), expected, wanted=("db",))


def test_subset_of_a_mask() -> None:
    dy, y, x, w = problem(RELU, "float32", 70, 21, 43)
    for wanted in SUBSETS:
        needed = (x if "dw" in wanted else None, w if "dx" in wanted else None)
        result = call(RELU, dy, bits_of_positive(y), *needed, wanted=wanted)
        assert_gradients(result, expected_of(RELU, dy, y, x, w), wanted, wanted)


def test_some_outputs_are_given_and_others_new() -> None:
    dy, y, x, w = problem(RELU, "float32", 9, 21, 43)
    expected = expected_of(RELU, dy, y, x, w)
    for chosen in itertools.product((True, False), repeat=3):
        out = tuple(a if given_one else None for given_one, a in zip(chosen, outputs(9, 21, 43), strict=True))
        result = call(RELU, dy, y, x, w, out=out)
        assert_gradients(result, expected, chosen)
        assert all(a is b for a, b in zip(result, out, strict=True) if b is not None)
    assert_gradients(call(RELU, dy, y, x, w, out=None), expected)


@pytest.mark.parametrize("wanted", [(), [], ("dz",), ("dx", "bias"), ("",)], ids=str)
def test_wanted_that_is_empty_or_unknown_is_refused(wanted: Any) -> None:
    out = outputs(4, 3, 5)
    for keywords in ({}, {"out": out}):
        with pytest.raises(ValueError, match=r"^linear_relu_backward: .*wanted"):
            call(RELU, *problem(RELU, "float32", 4, 3, 5), wanted=wanted, **keywords)
    assert all((a == 77).all() for a in out)


# Batches.


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_one_row_without_a_batch_axis(name: str, dtype: str) -> None:
    for k, n in [(21, 43), (1, 1), (300, 5), (3, 600)]:
        operands = dy, y, x, w = problem(name, dtype, 1, k, n)
        dx, dw, db = expected_of(name, *operands)
        assert_gradients(call(name, dy[0], y[0], x[0], w), (dx[0], dw, db))
        out = (filled(k, dy.dtype), filled((k, n), dy.dtype), filled(n, dy.dtype))
        assert all(a is b for a, b in zip(call(name, dy[0], y[0], x[0], w, out=out), out, strict=True))
        assert_gradients(out, (dx[0], dw, db))
    mask = bits_of_positive(y[0])
    if name == RELU:
        assert_gradients(call(name, dy[0], mask, x[0], w), (dx[0], dw, db))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("batch", [(1,), (2, 3), (1, 4, 5), (20, 1, 30), (2, 0, 3), (0,)], ids=str)
def test_batch_axes_are_rows(batch: tuple[int, ...], dtype: str) -> None:
    for name in (RELU, "linear_backward"):
        dy, y, x, w = problem(name, dtype, int(np.prod(batch)), 19, 23)
        dx, dw, db = expected_of(name, dy, y, x, w)
        shaped = [a.reshape(*batch, a.shape[-1]) for a in (dy, y, x)]
        expected = dx.reshape(shaped[2].shape), dw, db
        assert_gradients(call(name, *shaped, w), expected)
        out = tuple(filled(a.shape, dy.dtype) for a in expected)
        assert all(a is b for a, b in zip(call(name, *shaped, w, out=out), out, strict=True))
        assert_gradients(out, expected)
    mask = bits_of_positive(problem(RELU, dtype, int(np.prod(batch)), 19, 23)[1]).reshape(*batch, 3)
    dy, y, x, w = problem(RELU, dtype, int(np.prod(batch)), 19, 23)
    dx, dw, db = expected_of(RELU, dy, y, x, w)
    result = call(RELU, dy.reshape(*batch, 23), mask, x.reshape(*batch, 19), w)
    assert_gradients(result, (dx.reshape(*batch, 19), dw, db))


@pytest.mark.parametrize("dtype", FLOATS)
def test_batch_axes_in_any_order_of_memory(dtype: str) -> None:
    dy, y, x, w = problem(RELU, dtype, 4 * 3 * 5, 19, 23)
    dx, dw, db = expected_of(RELU, dy, y, x, w)
    shaped = [a.reshape(4, 3, 5, -1) for a in (dy, y, x, bits_of_positive(y))]
    orders = list(itertools.permutations(range(4)))
    for number, order in enumerate(orders):
        # Each operand in another order of its axes.
        moved = []
        for i, a in enumerate(shaped):
            axes = orders[(number + 5 * i) % len(orders)]
            moved.append(np.ascontiguousarray(a.transpose(axes)).transpose(np.argsort(axes)))
        out = np.empty([shaped[2].shape[axis] for axis in order], x.dtype).transpose(np.argsort(order))
        for given_y in (moved[1], moved[3]):
            out[...] = 77
            result = call(RELU, moved[0], given_y, moved[2], w, out=(out, None, None))
            assert result[0] is out
            assert_gradients(result, (dx.reshape(4, 3, 5, 19), dw, db), order)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [RELU, "linear_backward", "linear_elu_backward"])
def test_batch_axes_of_w(name: str, dtype: str) -> None:
    m, k, n = 6, 21, 30
    dy, z = normal(dtype, 5, 1, m, n), normal(dtype, 2, m, n, seed=1)
    x, w = normal(dtype, 2, m, k, seed=2), normal(dtype, 5, 2, k, n, seed=3)
    y = activated(name, z)
    for given_w in (w, np.ascontiguousarray(w.swapaxes(-1, -2)).swapaxes(-1, -2)):
        result = call(name, dy, y, x, given_w)
        assert [a.shape for a in result] == [(5, 2, m, k), (5, 2, k, n), (5, 2, n)]
        for i, j in np.ndindex(5, 2):
            expected = expected_of(name, dy[i, 0], y[j], x[j], w[i, j])
            assert_gradients(tuple(a[i, j] for a in result), expected, (i, j))
        if name == RELU:
            assert_gradients(call(name, dy, bits_of_positive(y), x, given_w), result)
        for wanted in SUBSETS:
            assert_gradients(call(name, dy, y, x, given_w, wanted=wanted), result, wanted, wanted)
        old = tuple(normal(dtype, *a.shape, seed=9) for a in result)
        out = tuple(a.copy() for a in old)
        assert call(name, dy, y, x, given_w, out=out, accumulate=("dw", "db"))[1] is out[1]
        for i, j in np.ndindex(5, 2):
            added_to = (None, old[1][i, j], old[2][i, j])
            expected = expected_of(name, dy[i, 0], y[j], x[j], w[i, j], added_to=added_to)
            assert_gradients(tuple(a[i, j] for a in out), expected, (i, j))


def test_one_weight_for_each_row() -> None:
    dy, y = normal("float32", 40, 1, 9), normal("float32", 40, 1, 9, seed=1)
    x, w = normal("float32", 40, 1, 17, seed=2), normal("float32", 40, 17, 9, seed=3)
    result = call(RELU, dy, y, x, w)
    for i in range(40):
        assert_gradients(tuple(a[i] for a in result), expected_of(RELU, dy[i], y[i], x[i], w[i]), i)


def test_bare_ufunc() -> None:
    bare = ufuncs.linear_relu_backward
    assert type(bare) is np.ufunc
    assert bare is ufuncs.linear_relu_backward
    assert "linear_relu_backward" in dir(ufuncs)
    assert bare.signature == "(m,n),(m,n),(m,k),(k,n)->(m,k),(k,n),(n)"
    assert (bare.nin, bare.nout) == (4, 3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_bare_ufunc_returns_every_gradient(dtype: str) -> None:
    for shape in [(13, 21, 40), (600, 33, 17), (1, 1, 1), (0, 3, 4)]:
        operands = problem(RELU, dtype, *shape)
        expected = expected_of(RELU, *operands)
        assert_gradients(ufuncs.linear_relu_backward(*operands), expected)
        out = outputs(*shape, dtype_of(dtype))
        assert_gradients(ufuncs.linear_relu_backward(*operands, out=out), expected)
        assert_gradients(out, expected)
    # Here a batch axis is one of slices.
    dy, y, x, w = problem(RELU, dtype, 12, 5, 7)
    result = ufuncs.linear_relu_backward(dy.reshape(3, 4, 7), y.reshape(3, 4, 7), x.reshape(3, 4, 5), w)
    for i in range(3):
        rows = slice(4 * i, 4 * i + 4)
        assert_gradients(tuple(a[i] for a in result), expected_of(RELU, dy[rows], y[rows], x[rows], w))


# Memory layout.

# Few rows, few columns, one tile and a rest, several blocks of each sum.
SHAPES = [(13, 29, 70), (2, 40, 21), (1, 7, 300), (70, 3, 33), (50, 17, 4), (600, 33, 18), (5, 300, 515)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layout_of_inputs(shape: tuple[int, int, int], layout: str, dtype: str) -> None:
    operands = problem(RELU, dtype, *shape)
    expected = expected_of(RELU, *operands)
    with_mask = [operands[0], bits_of_positive(operands[1]), *operands[2:]]
    moved = [laid_out(layout, a) for a in operands]
    moved_mask = laid_out(layout, with_mask[1])
    for which in range(1, 16):
        chosen = [b if which >> i & 1 else a for i, (a, b) in enumerate(zip(operands, moved, strict=True))]
        assert_gradients(call(RELU, *chosen), expected, which)
        if which & 2:
            assert_gradients(call(RELU, chosen[0], moved_mask, *chosen[2:]), expected, ("mask", which))
    for wanted in SUBSETS:
        assert_gradients(call(RELU, *moved, wanted=wanted), expected, wanted, wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_layouts_of_every_function(name: str, dtype: str) -> None:
    operands = problem(name, dtype, 13, 29, 43)
    expected = expected_of(name, *operands)
    for layout in LAYOUTS:
        assert_gradients(call(name, *[laid_out(layout, a) for a in operands]), expected, layout)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_strides(shape: tuple[int, int, int], dtype: str) -> None:
    m, k, n = shape
    dy, y, x, w = problem(RELU, dtype, m, k, n)

    def views(a: Array) -> list[Array]:
        return [a, *(np.broadcast_to(part, a.shape) for part in (a[:1], a[:, :1], a[:1, :1]))]

    for i, given_dy in enumerate(views(dy)):
        for j in range(4):
            given_y, given_x, given_w = views(y)[(i + j) % 4], views(x)[j], views(w)[(i + 3 * j) % 4]
            expected = expected_of(RELU, given_dy, given_y, given_x, given_w)
            assert_gradients(call(RELU, given_dy, given_y, given_x, given_w), expected, (i, j))
            mask = np.broadcast_to(bits_of_positive(y[:1]), (m, (n + 7) // 8))
            expected = expected_of(RELU, given_dy, np.broadcast_to(y[:1], (m, n)), given_x, given_w)
            assert_gradients(call(RELU, given_dy, mask, given_x, given_w), expected, (i, j))


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_gradient_of_a_sum(name: str, dtype: str) -> None:
    # One number for all: every stride is 0.
    for m, k, n in [(40, 9, 21), (3, 300, 5), (600, 17, 33)]:
        _, y, x, w = problem(name, dtype, m, k, n)
        dy = np.broadcast_to(np.ones((), y.dtype), (m, n))
        assert_gradients(call(name, dy, y, x, w), expected_of(name, dy, y, x, w))
        shaped = np.broadcast_to(dy[0, 0], (m, 1, n)), y[:, None], x[:, None]
        dx, dw, db = call(name, *shaped, w)
        assert_gradients((dx[:, 0], dw, db), expected_of(name, dy, y, x, w))


OUTPUT_VIEWS: dict[str, Callable[[Array, int, int], Array]] = {
    "rows": lambda a, m, n: a[:m, :n],
    "contiguous": lambda a, m, n: a.reshape(-1)[: m * n].reshape(m, n),
    "transposed": lambda a, m, n: a.reshape(-1)[3 : 3 + m * n].reshape(n, m).T,
    "steps": lambda a, m, n: a[: 2 * m : 2, : 3 * n : 3],
    "rows_reversed": lambda a, m, n: a[1 : m + 1, 5 : n + 5][::-1],
    "columns_reversed": lambda a, m, n: a[1 : m + 1, 5 : n + 5][:, ::-1],
    "steps_reversed": lambda a, m, n: a[: 2 * m, : 3 * n][::-2, ::-3],
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("view", OUTPUT_VIEWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layout_of_outputs(shape: tuple[int, int, int], view: str, dtype: str) -> None:
    m, k, n = shape
    operands = problem(RELU, dtype, *shape)
    for accumulate in ((), GRADIENTS):
        added_to = tuple(np.full(1, 77, operands[0].dtype) if accumulate else None for _ in range(3))
        expected = expected_of(RELU, *operands, added_to=added_to)
        wholes = [filled((2 * r + 1, 3 * c + 5), dtype_of(dtype)) for r, c in ((m, k), (k, n), (1, n))]
        dx, dw = (OUTPUT_VIEWS[view](whole, r, c) for whole, r, c in zip(wholes, (m, k), (k, n), strict=False))
        out = dx, dw, OUTPUT_VIEWS[view](wholes[2], 1, n)[0]
        result = call(RELU, *operands, out=out, accumulate=accumulate)
        assert all(a is b for a, b in zip(result, out, strict=True))
        assert_gradients(out, expected, accumulate)
        for part, whole in zip(out, wholes, strict=True):
            assert_surroundings(part, whole, 77)


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_outputs_of_every_function(name: str, dtype: str) -> None:
    operands = problem(name, dtype, 13, 29, 43)
    expected = expected_of(name, *operands)
    out = tuple(np.asfortranarray(a) for a in outputs(13, 29, 43, dtype_of(dtype)))
    assert all(a is b for a, b in zip(call(name, *operands, out=out), out, strict=True))
    assert_gradients(out, expected)


@pytest.mark.parametrize("accumulate", [(), GRADIENTS], ids=["written", "added"])
@pytest.mark.parametrize("dtype", WIDE)
def test_unaligned_and_swapped_outputs(dtype: str, accumulate: tuple[str, ...]) -> None:
    operands = problem(RELU, dtype, 9, 19, 29)
    expected = expected_of(RELU, *operands, added_to=tuple(np.full(1, 2, dtype) if accumulate else None for _ in range(3)))
    size = np.dtype(dtype).itemsize
    makers: list[Callable[[tuple[int, ...]], Array]] = [
        lambda shape: np.zeros(size * int(np.prod(shape)) + 1, np.uint8)[1:].view(dtype).reshape(shape),
        lambda shape: np.zeros(shape, np.dtype(dtype).newbyteorder("S")),
    ]
    for make in makers:
        out = tuple(make(a.shape) for a in expected)
        for a in out:
            a[...] = 2
        assert all(a is b for a, b in zip(call(RELU, *operands, out=out, accumulate=accumulate), out, strict=True))
        assert_gradients(tuple(np.array(a, dtype) for a in out), expected)


def test_operands_are_left_alone() -> None:
    for name in ALPHAS:
        operands = problem(name, "float32", 600, 21, 43)
        before = [a.copy() for a in operands]
        call(name, *operands)
        for a, b in zip(operands, before, strict=True):
            assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_packed_weight(name: str, dtype: str) -> None:
    for shape in [(13, 29, 70), (3, 300, 2), (40, 7, 515)]:
        dy, y, x, w = problem(name, dtype, *shape)
        packed = fastrelu.pack(w)
        expected = expected_of(name, dy, y, x, w)
        assert_gradients(call(name, dy, y, x, packed), expected)
        assert_gradients(call(name, dy, y, None, packed, wanted=("dx", "db")), expected, wanted=("dx", "db"))
        assert_gradients(call(name, dy, y, x, packed, wanted=("dw",)), expected, wanted=("dw",))


def test_lists() -> None:
    operands = problem("linear_elu_backward", "float64", 5, 3, 4)
    expected = expected_of("linear_elu_backward", *operands)
    assert_gradients(call("linear_elu_backward", *[a.tolist() for a in operands]), expected)


# Bit masks.


@pytest.mark.parametrize("dtype", FLOATS)
def test_mask_of_every_remainder(dtype: str) -> None:
    rng = np.random.default_rng(5)
    for n in [*range(1, 71), 128, 131, KC + 1]:
        m, k = 1 + 7 * n % 13, 1 + 5 * n % 11
        dy, y, x, w = problem(RELU, dtype, m, k, n, seed=n)
        y[m // 2, n // 2] = np.nan
        expected = expected_of(RELU, dy, y, x, w)
        mask = bits_of_positive(y)
        assert_gradients(call(RELU, dy, mask, x, w), expected, n)
        # Bits beyond the last column may be any.
        mask[:, -1] |= (rng.integers(0, 256, m) & -(1 << (n - 1) % 8 + 1)).astype(np.uint8)
        length = mask.shape[1]
        flat = np.full(m * length + 1, 0xFF, np.uint8)
        flat[1:] = mask.ravel()
        layouts = mask, np.asfortranarray(mask), spread(mask, 2, 3), spread(mask, -1, -2), flat[1:].reshape(m, length)
        for given_mask in layouts:
            assert_gradients(call(RELU, dy, given_mask, x, w), expected, n)


@pytest.mark.parametrize("dtype", FLOATS)
def test_mask_that_the_forward_layer_writes(dtype: str) -> None:
    for shape in [(13, 21, 43), (1, 20, 700), (800, 3, 19), (70, 300, 4)]:
        dy, _, x, w = problem(RELU, dtype, *shape)
        y, mask = fastrelu.linear_relu(x, w, mask=np.empty((shape[0], (shape[2] + 7) // 8), np.uint8))
        expected = expected_of(RELU, dy, y, x, w)
        assert_gradients(call(RELU, dy, y, x, w), expected)
        assert_gradients(call(RELU, dy, mask, x, w), expected)


@pytest.mark.parametrize("length", [0, 2, 4, 17])
@pytest.mark.parametrize("m", [4, 600])
def test_mask_of_another_length_is_refused(m: int, length: int) -> None:
    # An array of uint8 is always a mask, so that with 17 columns one of 17 is wrong as well.
    dy, _, x, w = problem(RELU, "float32", m, 5, 17)
    out = outputs(m, 5, 17)
    for given_w in (w, w[None]):
        for keywords in ({}, {"wanted": ("db",)}):
            with pytest.raises(ValueError, match=r"^linear_relu_backward: y .*must have shape"):
                call(RELU, dy, np.zeros((m, length), np.uint8), x, given_w, **keywords)
    with pytest.raises(ValueError, match=r"^linear_relu_backward: y .*must have shape"):
        call(RELU, dy, np.zeros((m, length), np.uint8), x, w, out=out)
    assert all((a == 77).all() for a in out)


def test_uint8_is_a_number_in_the_other_functions() -> None:
    dy, _, x, w = problem("linear_elu_backward", "float32", 9, 5, 16)
    y = np.arange(9 * 16, dtype=np.uint8).reshape(9, 16) % 3
    assert_gradients(call("linear_elu_backward", dy, y, x, w), expected_of("linear_elu_backward", dy, y, x, w))


# Adding to what is there.


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_accumulate(name: str, dtype: str) -> None:
    for m, k, n in [(13, 29, 43), (1, 300, 5), (600, 33, 4), (3, 2, 600), (300, 130, 65)]:
        operands = problem(name, dtype, m, k, n)
        old = tuple(normal(dtype, *shape, seed=8) for shape in ((m, k), (k, n), (n,)))
        for accumulate in SUBSETS:
            added_to = tuple(a if g in accumulate else None for g, a in zip(GRADIENTS, old, strict=True))
            out = tuple(a.copy() for a in old)
            result = call(name, *operands, out=out, accumulate=accumulate)
            assert all(a is b for a, b in zip(result, out, strict=True))
            assert_gradients(out, expected_of(name, *operands, added_to=added_to), accumulate)
            # Only what is added to, and the others new or not wanted.
            out = tuple(None if a is None else a.copy() for a in added_to)
            for wanted in (GRADIENTS, accumulate):
                fresh = tuple(None if a is None else a.copy() for a in out)
                result = call(name, *operands, out=fresh, accumulate=[*accumulate], wanted=wanted)
                assert_gradients(result, expected_of(name, *operands, added_to=added_to), accumulate, wanted)


def test_accumulate_with_a_mask() -> None:
    dy, y, x, w = problem(RELU, "float32", 70, 21, 43)
    old = tuple(normal("float32", *a.shape, seed=8) for a in (x, w, w[0]))
    out = tuple(a.copy() for a in old)
    call(RELU, dy, bits_of_positive(y), x, w, out=out, accumulate=GRADIENTS)
    assert_gradients(out, expected_of(RELU, dy, y, x, w, added_to=old))


@pytest.mark.parametrize("dtype", HALVES)
def test_half_that_is_added_to_is_rounded_once(dtype: str) -> None:
    kind = dtype_of(dtype)
    u = float(ml_dtypes.finfo(kind).eps)
    x = np.ones((3, 1), kind)
    # 1 + 5 u / 16 and 1 + 5 u / 8, which alone are rounded to 1 and to 1 + u.
    for terms, old, new in [((1, u / 4, u / 16), 3 * u / 8, 1 + u), ((1, u / 2, u / 8), -u / 4, 1)]:
        dy = np.array(terms, kind)[:, None]
        out = np.array([[old]], kind), np.array([old], kind)
        fastrelu.linear_backward(dy, x, None, wanted=("dw", "db"), out=(None, *out), accumulate=("dw", "db"))
        assert [float(out[0][0, 0]), float(out[1][0])] == [new, new]


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("m", [256, 512, 700, 1100])
def test_micro_batches_of_256_rows_give_the_bits_of_the_whole_batch(m: int, dtype: str) -> None:
    for name, k, n in [(RELU, 33, 19), ("linear_backward", 5, 3), ("linear_tanh_backward", 130, 70)]:
        dy, y, x, w = problem(name, dtype, m, k, n)
        out = np.zeros_like(x), np.zeros_like(w), np.zeros_like(w[0])
        for first in range(0, m, 256):
            rows = slice(first, first + 256)
            own = out[0][rows], *out[1:]
            call(name, dy[rows], y[rows], x[rows], w, out=own, accumulate=("dw", "db"))
        assert_gradients(out, call(name, dy, y, x, w))


def test_accumulate_needs_an_output() -> None:
    operands = problem(RELU, "float32", 4, 3, 5)
    out = outputs(4, 3, 5)
    for accumulate, given_out in [
        (("dw",), None),
        (("dw",), (None, None, None)),
        (("dx", "db"), (out[0], out[1], None)),
        (("dz",), out),
        (("dx", ""), out),
    ]:
        with pytest.raises(ValueError, match=r"^linear_relu_backward: .*(accumulate|out)"):
            call(RELU, *operands, out=given_out, accumulate=accumulate)
    with pytest.raises(ValueError, match=r"^linear_relu_backward: .*(accumulate|out|wanted)"):
        call(RELU, *operands, out=out, accumulate=("dw",), wanted=("dx", "db"))
    assert all((a == 77).all() for a in out)


# Types.

TABLE = {
    "int8 float32": "float32",
    "int32 float32": "float64",
    "uint16 float16": "float32",
    "int8 bfloat16": "bfloat16",
    "int8 int8": "float16",
    "int16 int16": "float32",
    "int64 int64": "float64",
    "float16 float32": "float32",
    "bfloat16 float32": "float32",
    "float32 float64": "float64",
}


@pytest.mark.parametrize(("pair", "common"), TABLE.items(), ids=TABLE)
@pytest.mark.parametrize("name", ["linear_backward", "linear_relu_backward", "linear_tanh_backward"])
def test_types_meet_in_the_type_that_holds_all(name: str, pair: str, common: str) -> None:
    one, rest = (dtype_of(part) for part in pair.split())
    values = [np.round(3 * abs(a)) for a in problem(name, "float32", 9, 5, 12)]
    # Each operand in turn is the one of another type.
    for odd in range(4):
        if name == "linear_backward" and odd == 1:
            continue  # it has no y
        mixed = [a.astype(one if i == odd else rest) for i, a in enumerate(values)]
        expected = expected_of(name, *[a.astype(dtype_of(common)) for a in mixed])
        assert_gradients(call(name, *mixed), expected, odd)


@pytest.mark.parametrize("dtype", FLOATS)
def test_mask_has_no_part_in_the_type(dtype: str) -> None:
    dy, y, x, w = problem(RELU, dtype, 9, 5, 12)
    assert call(RELU, dy, bits_of_positive(y), x, w)[0].dtype == dtype_of(dtype)


@ALL
def test_float16_and_bfloat16_have_no_common_type(name: str) -> None:
    dy, y, x, w = problem(name, "float16", 9, 5, 12)
    out = outputs(9, 5, 12)
    with pytest.raises(TypeError):
        call(name, dy, y, x.astype(ml_dtypes.bfloat16), w, out=out)
    assert all((a == 77).all() for a in out)


@pytest.mark.parametrize("accumulate", [(), GRADIENTS], ids=["written", "added"])
@pytest.mark.parametrize("pair", ["float32 float64", "float64 float32", "float16 float32", "bfloat16 float32"])
def test_output_of_another_float(pair: str, accumulate: tuple[str, ...]) -> None:
    dtype, other = pair.split()
    operands = problem(RELU, dtype, 9, 5, 12)
    # What a gradient is added to is an operand, and takes part in the choice of the type.
    common = np.promote_types(*(a.dtype for a in (operands[0], normal(other, 1)))) if accumulate else operands[0].dtype
    gradients = expected_of(RELU, *(a.astype(common) for a in operands))
    out = tuple(normal(other, *a.shape, seed=4) for a in gradients)
    expected = [(a + g if accumulate else g).astype(other) for a, g in zip(out, gradients, strict=True)]
    assert all(a is b for a, b in zip(call(RELU, *operands, out=out, accumulate=accumulate), out, strict=True))
    assert_gradients(out, expected)


REFUSED = {
    "bool": (bool, "bool"),
    "complex64": (np.complex64, "complex64"),
    "object": (object, "object"),
    "str": (str, "str"),
    "datetime64": ("M8[s]", "datetime64"),
    "longdouble": (np.longdouble, np.dtype(np.longdouble).name),
    "float8": (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
}


@pytest.mark.parametrize(("bad", "shown"), REFUSED.values(), ids=REFUSED)
@ALL
def test_error_names_the_operand_of_a_wrong_type(name: str, bad: Any, shown: str) -> None:
    if shown == "float64":
        pytest.skip("long double is float64 on this machine")
    operands = problem(name, "float32", 4, 3, 5)
    out = outputs(4, 3, 5)
    for position, operand in enumerate(("dy", "y", "x", "w")):
        if operand in operands_of(name):
            wrong = [np.zeros(a.shape, bad) if i == position else a for i, a in enumerate(operands)]
            for _ in range(2):  # a failure must not be remembered as an answer
                with pytest.raises(TypeError, match=rf"^{name}: {operand} must .*{shown}"):
                    call(name, *wrong, out=out)
    assert all((a == 77).all() for a in out)
    assert_gradients(call(name, *operands, out=out), expected_of(name, *operands))


# NaN, infinities, zeros, subnormal numbers.


@pytest.mark.parametrize("dtype", FLOATS)
def test_where_the_gradient_of_relu_passes(dtype: str) -> None:
    info = ml_dtypes.finfo(dtype_of(dtype))
    tiny, huge = float(info.smallest_subnormal), float(info.max)
    y = np.array([[0.0, -0.0, tiny, -tiny, 1, -1, np.nan, np.inf, -np.inf, huge, -huge]], dtype_of(dtype))
    passes = np.array([0, 0, 1, 0, 1, 0, 1, 1, 0, 1, 0])
    n = len(passes)
    for m in (1, 2, 9, 300):
        dy, rows = np.ones((m, n), y.dtype), np.repeat(y, m, axis=0)
        for given_y in (rows, bits_of_positive(rows)):
            dx, dw, db = call(RELU, dy, given_y, np.ones((m, 3), y.dtype), np.ones((2 + 1, n), y.dtype))
            assert_array_equal(dx.astype(float), np.full((m, 3), passes.sum()))
            assert_array_equal(dw.astype(float), np.broadcast_to(m * passes, (3, n)).astype(y.dtype).astype(float))
            assert_array_equal(db, (m * passes).astype(y.dtype))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_special_gradient_stays_in_its_row_and_column(dtype: str, special: float) -> None:
    for m, k, n in [(1, 20, 37), (4, 300, 21), (13, 40, 70), (600, 21, 3)]:
        dy, y, x, w = problem(RELU, dtype, m, k, n)
        before = call(RELU, dy, y, x, w)
        for i, j in {(0, 0), (m // 2, n // 2), (m - 1, n - 1)}:
            hit, positive = dy.copy(), y.copy()
            hit[i, j], positive[i, j] = special, 1
            dx, dw, db = result = call(RELU, hit, positive, x, w)
            assert not np.isfinite(dx[i]).any()
            assert not np.isfinite(dw[:, j]).any()
            assert not np.isfinite(db[j])
            assert_bits(np.delete(dx, i, 0), np.delete(before[0], i, 0), (i, j))
            assert_bits(np.delete(dw, j, 1), np.delete(before[1], j, 1), (i, j))
            assert_bits(np.delete(db, j), np.delete(before[2], j), (i, j))
            assert_gradients(result, expected_of(RELU, hit, positive, x, w))
            # Where y blocks it, it is not there.
            positive[i, j], zero = 0, dy.copy()
            zero[i, j] = 0
            for given_y in (positive, bits_of_positive(positive)):
                assert_gradients(call(RELU, hit, given_y, x, w), call(RELU, zero, given_y, x, w))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_special_weight_and_input_stay_in_their_places(dtype: str, special: float) -> None:
    for m, k, n in [(1, 20, 37), (4, 300, 21), (13, 40, 70), (600, 21, 3)]:
        dy, y, x, w = problem(RELU, dtype, m, k, n)
        before = call(RELU, dy, y, x, w)
        w_hit, x_hit = w.copy(), x.copy()
        w_hit[k // 2, n // 2] = special
        x_hit[m // 2, k - 1] = special
        dx, dw, db = result = call(RELU, dy, y, x_hit, w_hit)
        assert_gradients(result, expected_of(RELU, dy, y, x_hit, w_hit))
        assert_bits(np.delete(dx, k // 2, 1), np.delete(before[0], k // 2, 1))
        assert_bits(dw[:-1], before[1][:-1])
        assert_bits(db, before[2])


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_every_function_on_special_values(name: str, dtype: str) -> None:
    info = ml_dtypes.finfo(dtype_of(dtype))
    special = [0.0, -0.0, float(info.smallest_subnormal), 1, -1, np.nan, np.inf, -np.inf, float(info.max), float(info.min)]
    for m, k, n in [(10, 3, 10), (1, 7, 100), (100, 1, 5)]:
        dy, y, x, w = problem(name, dtype, m, k, n)
        pairs = np.array(list(itertools.product(special, special)), np.float64).astype(dy.dtype)
        count = min(len(pairs), m * n)
        dy.ravel()[:count], y.ravel()[:count] = pairs[:count].T
        assert_gradients(call(name, dy, y, x, w), expected_of(name, dy, y, x, w), (m, k, n))


@pytest.mark.parametrize("dtype", FLOATS)
def test_subnormals_are_not_flushed(dtype: str) -> None:
    kind = dtype_of(dtype)
    word = f"u{kind.itemsize}"
    for m, k, n in [(1, 2, 19), (4, 5, 7), (13, 3, 33), (20, 30, 2)]:
        # Subnormal numbers are the first bit patterns: with ones their sum is that of the patterns.
        patterns = (np.arange(m * n, dtype=word).reshape(m, n) % 3 + 1).astype(word)
        one = np.ones((m, k), kind), np.ones((k, n), kind)
        dx, dw, db = call(RELU, patterns.view(kind), np.ones((m, n), kind), *one)
        assert_array_equal(dx.view(word), np.broadcast_to(patterns.sum(1)[:, None], (m, k)))
        assert_array_equal(dw.view(word), np.broadcast_to(patterns.sum(0), (k, n)))
        assert_array_equal(db.view(word), patterns.sum(0))


@pytest.mark.parametrize("dtype", FLOATS)
def test_sign_of_zero(dtype: str) -> None:
    for m, k, n in [(1, 1, 19), (3, 2, 40), (13, 5, 33), (300, 3, 1), (4, KC + 1, 17)]:
        dy = np.full((m, n), -0.0, dtype_of(dtype))
        x, w = np.ones((m, k), dy.dtype), np.ones((k, n), dy.dtype)
        # A sum starts from +0.
        for result in (call(RELU, dy, np.ones_like(dy), x, w), call(RELU, -dy - 1, np.zeros_like(dy), x, w)):
            for a in result:
                assert_array_equal(bits(a), 0)
        out = tuple(np.full(a.shape, -0.0, dy.dtype) for a in (x, w, w[0]))
        call(RELU, dy, np.ones_like(dy), x, w, out=out, accumulate=GRADIENTS)
        for a in out:
            assert_array_equal(bits(a), 0)


@pytest.mark.parametrize("dtype", FLOATS)
@ALL
def test_no_floating_point_warnings(name: str, dtype: str) -> None:
    info = ml_dtypes.finfo(dtype_of(dtype))
    for m, k, n in [(1, 3, 5), (7, 20, 33), (300, 6, 1), (13, 300, 70)]:
        dy, y, x, w = problem(name, dtype, m, k, n)
        for a in (dy, x, w):
            a.ravel()[:: m + k] = info.max
            a.ravel()[1 :: m + k + 1] = info.smallest_subnormal
        x[-1, -1], w[-1, -1], dy[0, 0], y[-1, -1] = np.inf, np.nan, -np.inf, np.nan
        old = tuple(np.full(a.shape, info.max, dy.dtype) for a in (x, w, w[0]))
        for accumulate in ((), GRADIENTS):
            out = tuple(a.copy() for a in old)
            with np.errstate(all="raise"):
                result = call(name, dy, y, x, w)
                call(name, dy, y, x, w, out=out, accumulate=accumulate)
            assert_gradients(result, expected_of(name, dy, y, x, w))
            added_to = old if accumulate else (None, None, None)
            assert_gradients(out, expected_of(name, dy, y, x, w, added_to=added_to))


# Outputs in the memory of inputs: as if the inputs had been copied before.

SQUARES = pytest.mark.parametrize("size", [1, 5, 17, 64, 300])


@SQUARES
@pytest.mark.parametrize("dtype", FLOATS)
def test_outputs_are_inputs(size: int, dtype: str) -> None:
    # Of two of the four operands the whole, of a third one a row.
    for places in itertools.permutations(("dy", "y", "x", "w"), 3):
        for accumulate in ((), GRADIENTS):
            named = dict(zip(("dy", "y", "x", "w"), problem(RELU, dtype, size, size, size), strict=True))
            out = named[places[0]], named[places[1]], named[places[2]][size // 2]
            added_to = tuple(a.copy() if accumulate else None for a in out)
            expected = expected_of(RELU, *[a.copy() for a in named.values()], added_to=added_to)
            assert all(a is b for a, b in zip(call(RELU, *named.values(), out=out, accumulate=accumulate), out, strict=True))
            assert_gradients(out, expected, places)


@ALL
@pytest.mark.parametrize(("m", "k", "n"), [(5, 3, 7), (40, 17, 9), (600, 33, 18)])
def test_step_in_place(name: str, m: int, k: int, n: int) -> None:
    # As a training loop may write them that needs x and w no more.
    for wanted in SUBSETS:
        dy, y, x, w = problem(name, "float32", m, k, n)
        b = normal("float32", n)
        expected = expected_of(name, dy.copy(), y, x.copy(), w.copy())
        out = tuple(a if g in wanted else None for g, a in zip(GRADIENTS, (x, w, b), strict=True))
        assert_gradients(call(name, dy, y, x, w, out=out, wanted=wanted), expected, wanted, wanted)


OVERLAPS: dict[str, Callable[[Array, int, int], tuple[Array, Array]]] = {
    "one_row_before": lambda a, m, k: (a[1 : m + 1, :k], a[:m, :k]),
    "one_row_after": lambda a, m, k: (a[:m, :k], a[1 : m + 1, :k]),
    "one_column_after": lambda a, m, k: (a[:m, :k], a[:m, 1 : k + 1]),
    "rows_reversed": lambda a, m, k: (a[:m, :k], a[:m, :k][::-1]),
    "columns_reversed": lambda a, m, k: (a[:m, :k], a[:m, :k][:, ::-1]),
    "same_row_every_time": lambda a, m, k: (np.broadcast_to(a[0, :k], (m, k)), a[:m, :k]),
}


@pytest.mark.parametrize("view", OVERLAPS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (5, 7), (40, 17), (300, 70)])
def test_output_overlaps_an_input(rows: int, columns: int, view: str) -> None:
    # Numbers of an output and of an operand, and sizes with which both have this shape.
    pairs = [(0, which, (rows, columns, columns)) for which in (0, 1, 2)]
    pairs += [(1, which, (rows, rows, columns)) for which in (0, 1)] + [(1, 3, (rows + 2, rows, columns))]
    for (number, which, shape), accumulate in itertools.product(pairs, ((), GRADIENTS)):
        operands, out = problem(RELU, "float32", *shape), [None, None, None]
        operands[which], out[number] = OVERLAPS[view](normal("float32", rows + 1, columns + 1), rows, columns)
        added_to = tuple(None if a is None or not accumulate else a.copy() for a in out)
        expected = expected_of(RELU, *[a.copy() for a in operands], added_to=added_to)
        chosen = tuple(g for g, a in zip(GRADIENTS, out, strict=True) if a is not None and accumulate)
        assert_gradients(call(RELU, *operands, out=tuple(out), accumulate=chosen), expected, (number, which))


@pytest.mark.parametrize("size", [5, 17, 90])
def test_output_is_the_transpose_of_an_input(size: int) -> None:
    for which, (i, j) in itertools.product(range(2), [(0, 1), (2, 3), (3, 2), (1, 0)]):
        operands = problem(RELU, "float32", size, size, size)
        expected = expected_of(RELU, *[a.copy() for a in operands])
        out = [operands[i].T, operands[j].T, None] if which else [operands[j].T, None, operands[i][:, size // 2]]
        assert_gradients(call(RELU, *operands, out=tuple(out)), expected, (which, i, j))


def test_output_overlaps_the_mask() -> None:
    dy, y, x, w = problem(RELU, "float32", 5, 6, 19)
    memory = normal("float32", 5, 6)
    mask = memory.view(np.uint8)[:, 3:6]
    mask[...] = bits_of_positive(y)
    assert_gradients(call(RELU, dy, mask, x, w, out=(memory, None, None)), expected_of(RELU, dy, y, x, w))


def test_output_is_the_parameter() -> None:
    name = "linear_elu_backward"
    operands = problem(name, "float32", 9, 5, 12)
    out = np.full((9, 5), 0.7, np.float32)
    assert_gradients(call(name, *operands, out[4, 2], out=(out, None, None)), expected_of(name, *operands))


# Errors: before anything is written.

M, K, N = 5, 3, 9
# Shapes that are wrong, and the operands of which one is to be named.
MISTAKES: dict[str, tuple[dict[str, tuple[int, ...]], tuple[str, ...]]] = {
    "dy_without_axes": ({"dy": ()}, ("dy",)),
    "x_without_axes": ({"x": ()}, ("x",)),
    "w_without_axes": ({"w": ()}, ("w",)),
    "w_of_one_axis": ({"w": (N,)}, ("w",)),
    "w_is_transposed": ({"w": (N, K)}, ("w", "x")),
    "columns_of_w": ({"w": (K, N + 1)}, ("w", "dy")),
    "one_column_of_w": ({"w": (K, 1)}, ("w", "dy")),
    "rows_of_w": ({"w": (K + 1, N)}, ("w", "x")),
    "one_row_of_w": ({"w": (1, N)}, ("w", "x")),
    "columns_of_x": ({"x": (M, K + 1)}, ("x", "w")),
    "rows_of_x": ({"x": (M + 1, K)}, ("x", "dy")),
    "one_row_of_x": ({"x": (1, K)}, ("x", "dy")),
    "x_of_one_row_without_axis": ({"x": (K,)}, ("x", "dy")),
    "other_axes_of_x": ({"x": (1, M, K)}, ("x", "dy")),
    "columns_of_dy": ({"dy": (M, N + 1)}, ("dy", "y", "w")),
    "one_column_of_dy": ({"dy": (M, 1)}, ("dy", "y", "w")),
    "rows_of_dy": ({"dy": (M + 1, N)}, ("dy", "y", "x")),
    "one_row_of_dy": ({"dy": (1, N)}, ("dy", "y", "x")),
    "y_without_axes": ({"y": ()}, ("y",)),
    "columns_of_y": ({"y": (M, N - 1)}, ("y", "dy")),
    "one_column_of_y": ({"y": (M, 1)}, ("y", "dy")),
    "rows_of_y": ({"y": (M + 1, N)}, ("y", "dy")),
    "one_row_of_y": ({"y": (1, N)}, ("y", "dy")),
    "other_axes_of_y": ({"y": (1, M, N)}, ("y", "dy")),
    "columns_of_y_and_a_batch_of_w": ({"y": (M, N - 1), "w": (2, K, N)}, ("y", "dy")),
    "rows_of_x_and_a_batch_of_w": ({"x": (M + 1, K), "w": (2, K, N)}, ("x", "dy")),
    "columns_of_a_batch_of_w": ({"w": (2, K, N + 1)}, ("w", "dy")),
}


@ALL
@pytest.mark.parametrize("mistake", MISTAKES)
def test_error_names_the_operand_of_a_wrong_shape(name: str, mistake: str) -> None:
    shapes, named = MISTAKES[mistake]
    if "y" in shapes and name == "linear_backward":
        pytest.skip("it has no y")
    own = {"dy": (M, N), "y": (M, N), "x": (M, K), "w": (K, N), **shapes}
    operands = [np.ones(shape, np.float32) for shape in own.values()]
    out = outputs(M, K, N)
    for given_out in (None, out) if len(own["w"]) == 2 else (None,):
        with pytest.raises(ValueError, match=f"^{name}: ({'|'.join(named)}) must"):
            call(name, *operands, out=given_out)
    assert all((a == 77).all() for a in out)


@pytest.mark.parametrize(("which", "shape"), [(0, (M, 1)), (0, (M + 1, 1)), (0, (M, 3)), (1, (2,)), (1, ()), (2, (1, M, 2))])
def test_error_names_a_mask_of_a_wrong_shape(which: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^linear_relu_backward: y .*must have shape"):
        call(RELU, np.ones((M, N)), np.ones(shape, np.uint8), np.ones((M, K)), np.ones((K, N)))


@ALL
def test_output_of_a_wrong_shape_is_refused(name: str) -> None:
    operands = problem(name, "float32", M, K, N)
    wrong = [(M + 1, K), (M, K + 1), (1, K), (M, 1), (1, M, K)], [(N, K), (K, N + 1), (1, N)], [(N + 1,), (1,), (1, N), ()]
    for which, shapes in enumerate(wrong):
        for shape in shapes:
            out = [*outputs(M, K, N)]
            out[which] = filled(shape)
            for accumulate in ((), GRADIENTS):
                with pytest.raises(ValueError, match=f"^{name}: .*out"):
                    call(name, *operands, out=tuple(out), accumulate=accumulate)
            assert all((a == 77).all() for a in out), (which, shape)


@ALL
def test_output_that_is_not_wanted_is_refused(name: str) -> None:
    operands = problem(name, "float32", M, K, N)
    for wanted in SUBSETS[:-1]:
        out = outputs(M, K, N)
        with pytest.raises(ValueError, match=f"^{name}: .*(out|wanted)"):
            call(name, *operands, out=out, wanted=wanted)
        assert all((a == 77).all() for a in out)


@pytest.mark.parametrize("which", range(3))
def test_read_only_output_is_refused(which: int) -> None:
    out = outputs(M, K, N)
    out[which].flags.writeable = False
    for accumulate in ((), GRADIENTS):
        with pytest.raises(ValueError, match="read-only"):
            call(RELU, *problem(RELU, "float32", M, K, N), out=out, accumulate=accumulate)
    assert all((a == 77).all() for a in out)


@pytest.mark.parametrize("smaller", ["int64", "uint8", "bool"])
@pytest.mark.parametrize("which", range(3))
def test_output_of_a_lower_kind_is_refused(which: int, smaller: str) -> None:
    out = [*outputs(M, K, N)]
    out[which] = np.ones(out[which].shape, smaller)
    for accumulate in ((), GRADIENTS):
        with pytest.raises(TypeError):
            call(RELU, *problem(RELU, "float32", M, K, N), out=tuple(out), accumulate=accumulate)
    assert all((a == (1 if i == which else 77)).all() for i, a in enumerate(out))


def test_out_must_be_three_arrays() -> None:
    operands = problem(RELU, "float32", M, K, N)
    dx, dw, db = outputs(M, K, N)
    for out in (dx, (dx,), (dx, dw), (dx, dw, db, db), (), 1.0, "out", (dx, dw, [0.0] * N), (dx, 1.0, None)):
        with pytest.raises((TypeError, ValueError), match=r"^linear_relu_backward: .*out"):
            call(RELU, *operands, out=out)
    assert all((a == 77).all() for a in (dx, dw, db))


@ALL
def test_none_for_an_operand_that_is_needed(name: str) -> None:
    operands = problem(name, "float32", M, K, N)
    for position, (operand, gradient) in enumerate([("dy", "db"), ("y", "db"), ("x", "dw"), ("w", "dx")]):
        if operand in operands_of(name):
            without = [None if i == position else a for i, a in enumerate(operands)]
            for wanted in (GRADIENTS, (gradient,)):
                with pytest.raises((TypeError, ValueError), match=f"^{name}: {operand} .*must"):
                    call(name, *without, wanted=wanted)


@ALL
def test_wrong_keywords_and_numbers_of_operands(name: str) -> None:
    operands = problem(name, "float32", M, K, N)
    if name == "linear_backward":
        del operands[1]  # it has no y
    function = getattr(fastrelu, name)
    out = outputs(M, K, N)
    for keyword in ("where", "nothing", "mask"):
        with pytest.raises(TypeError, match=keyword):
            function(*operands, out=out, **{keyword: True})
    for count in range(len(operands)):
        with pytest.raises(TypeError, match=name):
            function(*operands[:count])
    with pytest.raises(TypeError, match=name):
        function(*operands, *[operands[0]] * 4)
    assert all((a == 77).all() for a in out)


def test_names_are_public() -> None:
    assert {*ALPHAS} <= {*fastrelu.__all__}


# Whatever the shape, the steps in memory and the subset.

SIZES = st.integers(0, 20) | st.sampled_from([31, 64, KC, KC + 1])


@st.composite
def cut(draw: st.DrawFn, shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Random numbers in an array that is cut out of a larger one by slices of any step, its axes in any order."""
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1, -3])) for _ in shape]
    spaced = spread(normal(dtype, *shape, seed=seed), *steps)
    return np.asfortranarray(spaced) if draw(st.booleans()) else spaced


@pytest.mark.parametrize("dtype", FLOATS)
@given(st.data())
def test_any_call(dtype: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*ALPHAS]))
    m, k, n = (data.draw(SIZES) for _ in range(3))
    dy, z, x, w = (data.draw(cut(s, dtype, i)) for i, s in enumerate([(m, n), (m, n), (m, k), (k, n)]))
    y = activated(name, z)
    wanted = data.draw(st.sampled_from(SUBSETS))
    shapes = dict(zip(GRADIENTS, [(m, k), (k, n), (n,)], strict=True))
    out = {g: data.draw(st.none() | cut(shapes[g], dtype, 7)) if g in wanted else None for g in GRADIENTS}
    accumulate = tuple(g for g in GRADIENTS if out[g] is not None and data.draw(st.booleans()))
    added_to = tuple(np.array(out[g]) if g in accumulate else None for g in GRADIENTS)
    expected = expected_of(name, dy, y, x, w, added_to=added_to)
    given_y = bits_of_positive(y) if name == RELU and data.draw(st.booleans()) else y
    result = call(name, dy, given_y, x, w, wanted=wanted, accumulate=accumulate, out=tuple(out.values()))
    assert_gradients(result, expected, wanted=wanted)
    for a, b in zip(result, out.values(), strict=True):
        assert b is None or a is b


@given(st.data())
def test_any_overlap(data: st.DataObject) -> None:
    # All operands and one output anywhere in the same memory.
    m, k, n = (data.draw(st.integers(1, 12)) for _ in range(3))
    memory = normal("float32", 600)

    def view(*shape: int) -> Array:
        step = data.draw(st.sampled_from([1, 2, -1]))
        span = int(np.prod(shape)) * abs(step)
        start = data.draw(st.integers(0, len(memory) - span))
        return memory[start : start + span][::step].reshape(shape)

    operands = [view(m, n), view(m, n), view(m, k), view(k, n)]
    which = data.draw(st.integers(0, 2))
    accumulate = (GRADIENTS[which],) if data.draw(st.booleans()) else ()
    out, added_to = [None] * 3, [None] * 3
    out[which] = view(*[(m, k), (k, n), (n,)][which])
    if accumulate:
        added_to[which] = out[which].copy()
    expected = expected_of(RELU, *[a.copy() for a in operands], added_to=tuple(added_to))
    assert_gradients(call(RELU, *operands, out=tuple(out), accumulate=accumulate), expected)
