"""Fused layers inside compiled functions: the bits and shapes of the same call from Python."""

import numpy as np
import pytest
from numba import types
from numba.core.errors import TypingError

import fastrelu
from fastrelu.jit.errors import ShapeError
from tests.jitting import Array, array, assert_same, function, plain, some, view
from tests.test_linear import BASES, fitting

X, W, B = (array("float32", axes) for axes in (2, 2, 1))


def finite(dtype: str, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def compared(parameters: str, result: str, *arguments: object, signature: tuple = (), message: object = "") -> None:
    """The compiled call against the plain one, on copies that overlap as the arguments do."""
    assert_same(function(parameters, result, *signature)(*arguments), plain(parameters, result)(*arguments), message or result)


def call_of(name: str) -> tuple[str, str]:
    names = ["x", "w", "b", *["alpha"] * bool(fitting(name, "float32", 1))]
    return ", ".join(names), f"{name}({', '.join(names)})"


@pytest.mark.parametrize("name", BASES)
def test_matrices_of_any_strides(name: str) -> None:
    # The alpha is a number here, and a row of 0.3 where there can be one for each column.
    rng, parameters, result = np.random.default_rng(1), *call_of(name)
    alpha = [types.float64] * ("alpha" in parameters)
    call, no_bias = (function(parameters, result, X, W, bias, *alpha) for bias in (B, types.none))
    for number in range(60):
        m, k, n = (int(rng.integers(0 if number % 7 == 0 else 1, most)) for most in (7, 40, 71))
        k = k if number % 5 else 300
        x, w, b = view(rng, "float32", (m, k)), view(rng, "float32", (k, n)), view(rng, "float32", (n,))
        if number % 3 == 0:
            x, w, b = (np.ascontiguousarray(a) for a in (x, w, b))
        given = [0.3] * len(alpha)
        assert_same(call(x, w, b, *given), getattr(fastrelu, name)(x, w, b, *given), (m, k, n))
        assert_same(no_bias(x, w, None, *given), getattr(fastrelu, name)(x, w, None, *given), (m, k, n))


@pytest.mark.parametrize("n", [*range(1, 20), 31, 33, 47, 65, 255, 256, 257])
def test_contiguous_matrices(n: int) -> None:
    for m, k in ((1, 3), (2, 64), (5, 257)):
        x, w, b = finite("float64", m, k), finite("float64", k, n, seed=1), finite("float64", n, seed=2)
        for left in (x, x[0]):
            compared("x, w, b", "linear_prelu(x, w, b, 0.25)", left, w, b, message=(m, k, n))
    compared("x, w", "linear(x, w)", x, w)


@pytest.mark.parametrize("name", ["linear_relu", "linear_prelu", "linear_elu"])
def test_batches(name: str) -> None:
    # Axes before those of x, w, b and alpha are broadcast.
    parameters, result = call_of(name)
    alphas = {"linear_relu": [], "linear_prelu": [(), (5,), (2, 1, 5)], "linear_elu": [(), (3,), (2, 1)]}[name] or [None]
    signature = [array("float32", axes) for axes in (3, 3, 2)]
    for number, shape in enumerate(alphas):
        kind = [] if shape is None else [types.float64 if shape == () else array("float32", len(shape))]
        call = function(parameters, result, *signature, *kind)
        for x, w, b in [
            ((2, 3, 4), (1, 4, 5), (1, 5)),
            ((1, 3, 4), (3, 4, 5), (2, 5)),
            ((2, 1, 0), (1, 0, 5), (3, 5)),
            ((0, 3, 4), (1, 4, 5), (3, 5)),
        ]:
            alpha = [] if shape is None else [0.3] if shape == () else [finite("float32", *shape, seed=number)]
            rng = np.random.default_rng(number)
            operands = [view(rng, "float32", s) for s in (x, w, b)]
            try:
                expected = getattr(fastrelu, name)(*operands, *alpha)
            except ValueError as error:  # some do not fit
                expected = str(error)
            if isinstance(expected, str):
                with pytest.raises(ShapeError) as found:
                    call(*operands, *alpha)
                assert str(found.value) == expected
            else:
                assert_same(call(*operands, *alpha), expected, (x, w, b, shape))


def test_other_numbers_of_axes() -> None:
    w, b = finite("float32", 4, 5), finite("float32", 5, seed=1)
    for shape in ((4,), (2, 3, 4), (2, 1, 3, 4)):
        compared("x, w, b", "linear_relu(x, w, b)", finite("float32", *shape, seed=2), w, b)
    compared("x, w, b", "linear_relu(x, w.T, b)", finite("float32", 3, 5), w, b[:4])
    compared("x, w, b", "linear_relu(x, w, b)", np.asfortranarray(finite("float32", 3, 4)), np.asfortranarray(w), b)
    compared("x, w, b", "linear_relu(x, w, b)", finite("float32", 700, 4), w, finite("float32", 700, 5))
    large = finite("float32", 300, 270), finite("float32", 270, 333, seed=1), finite("float32", 333, seed=2)
    compared("x, w, b", "linear_relu(x, w, b)", *large)


def test_types_are_mixed() -> None:
    w, b = finite("float64", 4, 5), finite("float32", 5, seed=1)
    compared("x, w, b", "linear_tanh(x, w, b)", finite("float32", 3, 4), w, b)
    compared("x, w", "linear(x, w)", np.arange(12).reshape(3, 4), w)
    compared("x, w", "linear_leaky_relu(x, w)", finite("float32", 3, 4), w.astype(np.float32))
    compared("x, w", "linear_leaky_relu(x, w, None, 2)", finite("float32", 3, 4), w.astype(np.float32))
    compared("x, w", "linear_elu(x, w, alpha=0.5)", finite("float32", 4), w.astype(np.float32))


def test_into_out() -> None:
    parameters, result = "x, w, b, out", "linear_relu(x, w, b, out=out)"
    call = function(parameters, result, X, W, B, X)
    rng = np.random.default_rng(2)
    for _ in range(60):
        m, k, n = map(int, rng.integers(1, 20, 3))
        x, w, b = view(rng, "float32", (int(rng.choice([1, m])), k)), view(rng, "float32", (k, n)), view(rng, "float32", (n,))
        out, expected = view(rng, "float32", (m, n)), np.empty((m, n), np.float32)
        found = call(x, w, b, out)
        fastrelu.linear_relu(x, w, b, out=expected)
        assert_same(out, expected, (m, k, n))
        assert (found.ctypes.data, found.strides) == (out.ctypes.data, out.strides)
    x, w, b = finite("float32", 3, 4), finite("float32", 4, 5), finite("float32", 5)
    for out in (
        np.zeros((2, 3, 5), np.float32),
        np.zeros((3, 5)),
        np.zeros(128, np.uint8)[1:61].view(np.float32).reshape(3, 5),
    ):
        call = function(parameters, result)
        call(x, w, b, out)
        assert_same(out.copy(), np.broadcast_to(fastrelu.linear_relu(x, w, b), out.shape).astype(out.dtype))
    narrow = np.zeros((3, 5), np.float32)
    function(parameters, result)(x.astype(np.float64), w, b, narrow)
    assert_same(narrow, fastrelu.linear_relu(x.astype(np.float64), w, b).astype(np.float32))


@pytest.mark.parametrize("n", [5, 20, 300])
def test_out_overlaps_operands_in_every_direction(n: int) -> None:
    # The sums of 300 terms are not in registers from the first to the last.
    call = function("x, w, b, out", "linear_relu(x, w, b, out=out)", X, W, B, X)
    base = finite("float32", 2 * n * n + 9)
    w, b = finite("float32", n, n, seed=1), finite("float32", n, seed=2)

    def views(memory: Array) -> list[Array]:
        squares = [memory[at : at + n * n].reshape(n, n) for at in (0, 1, 4, n, n * n, n * n // 2)]
        return [
            *squares,
            squares[5][::-1],
            squares[0].T,
            squares[0][::-1],
            squares[1][:, ::-1],
            memory[: 2 * n * n].reshape(n, 2 * n)[:, ::2],
        ]

    for i in range(11):
        for j in range(11):
            found, expected = base.copy(), base.copy()
            for as_w in (False, True):
                x, out = views(found)[i], views(found)[j]
                own, place = views(expected)[i].copy(), views(expected)[j]
                call(*((w, x) if as_w else (x, w)), b, out)
                place[:] = fastrelu.linear_relu(*((w, own) if as_w else (own, w)), b)
                assert_same(found, expected, (i, j, as_w))


def test_out_is_b_or_alpha() -> None:
    kinds = [array("float32", 1)] * 3
    call = function("x, w, b, alpha, out", "linear_prelu(x, w, b, alpha, out=out)", kinds[0], W, *kinds)
    for k, n in ((3, 5), (600, 40), (20, 2500)):
        x, w, b, alpha = finite("float32", k), finite("float32", k, n), finite("float32", n), finite("float32", n, seed=3)
        expected = fastrelu.linear_prelu(x, w, b, alpha)
        for own, slopes, out in ((first := b.copy(), alpha, first), (b, second := alpha.copy(), second)):
            assert_same(call(x, w, own, slopes, out), expected, (k, n))
        long = np.concatenate([b, b])
        long[1 : n + 1] = b
        assert_same(call(x, w, long[1 : n + 1], alpha, long[:n]), expected, (k, n))


def test_masks() -> None:
    parameters, result = "x, w, b, mask", "linear_relu(x, w, b, mask=mask)"
    call = function(parameters, result, X, W, B, array("uint8", 2))
    rng = np.random.default_rng(3)
    for n in (1, 7, 8, 9, 33, 70):
        for m, k in ((1, 3), (5, 20), (3, 300), (0, 2)):
            x, w, b = view(rng, "float32", (m, k)), view(rng, "float32", (k, n)), view(rng, "float32", (n,))
            masks = [np.full((m, 2 * ((n + 7) // 8)), 255, np.uint8)[:, ::2] for _ in range(2)]
            found = call(x, w, b, masks[0])
            assert_same(found, fastrelu.linear_relu(x, w, b, mask=masks[1]), (m, k, n))
            assert_same(masks[0], masks[1])
    x, w, out = finite("float64", 2, 3, 4), finite("float64", 4, 9), np.zeros((2, 3, 9))
    compared("x, w, out", "linear_relu(x, w, out=out, mask=np.zeros((2, 3, 2), np.uint8))", x, w, out)


SHAPES = [
    ("linear(a, b)", [(2, 3), (4, 5)]),
    ("linear(a, b, c)", [(2, 3), (3, 5), (4,)]),
    ("linear(a, b, c)", [(2, 3), (3, 5), (1,)]),
    ("linear(a, b, out=c)", [(2, 3), (3, 5), (2, 4)]),
    ("linear(a, b, out=c)", [(2, 3), (3, 5), (3, 5)]),
    ("linear(a, b, out=c)", [(2, 3), (3, 5), (1, 5)]),
    ("linear(a, b, out=c)", [(2, 3), (3, 5), (5,)]),
    ("linear(a, b)", [(2, 2, 3), (3, 3, 5)]),
    ("linear(a, b, c)", [(2, 3), (3, 5), (3, 5)]),
    ("linear_prelu(a, b, None, c)", [(2, 3), (3, 5), (4,)]),
    ("linear_elu(a, b, None, c)", [(2, 3), (3, 5), (3,)]),
    ("linear_relu(a, b, mask=c)", [(2, 3), (3, 9), (2, 1)]),
    ("linear_relu(a, b, mask=c)", [(2, 3), (3, 9), (3, 2)]),
]


@pytest.mark.parametrize(("call", "shapes"), SHAPES)
def test_shapes_that_do_not_fit(call: str, shapes: list[tuple[int, ...]]) -> None:
    names = ", ".join("abc"[: len(shapes)])
    arrays = [np.ones(shape, np.uint8 if "mask" in call and i == 2 else float) for i, shape in enumerate(shapes)]
    with pytest.raises(ValueError, match=r"\w+: ") as expected:
        plain(names, call)(*arrays)
    with pytest.raises(ShapeError) as found:
        function(names, call)(*arrays)
    assert str(found.value) == str(expected.value)
    assert all((a == 1).all() for a in arrays)


@pytest.mark.parametrize(
    ("call", "argument", "said"),
    [
        ("linear(x, np.ones((3, 2)))", 1.0, "linear: x must be an array of an integer type, float32 or float64, not float64"),
        ("linear(x, np.ones((3, 2)))", np.array(1.0), "linear: x must be an array of at least 1 axes"),
        ("linear(np.ones(3), x)", np.ones(3), "linear: w must be an array of at least 2 axes"),
        ("linear(np.ones(3), x)", np.ones((3, 2), np.complex64), "linear: w must be"),
        ("linear(np.ones(3), x)", np.ones((3, 2), bool), "linear: w must be"),
        ("linear(np.ones(3), x)", None, "linear: w must be"),
        ("linear_relu(np.ones(3), np.ones((3, 2)), x)", 0.5, "linear_relu: b must be an array"),
        ("linear_elu(np.ones(3), np.ones((3, 2)), None, x)", True, "linear_elu: alpha must be"),
        ("linear_relu(np.ones(3), np.ones((3, 2)), out=x)", np.broadcast_to(1.0, 2), "linear_relu: out must be"),
        ("linear_relu(np.ones(3), np.ones((3, 2)), out=x)", np.zeros(2, int), "linear_relu: out must be"),
        ("linear_relu(np.ones(3), np.ones((3, 2)), mask=x)", np.zeros(1), "linear_relu: mask must be an array of uint8"),
    ],
)
def test_argument_of_another_type(call: str, argument: object, said: str) -> None:
    with pytest.raises(TypingError) as error:
        function("x", call)(argument)
    assert said in str(error.value)


def test_special_values() -> None:
    call = function("x, w, b", "linear_relu(x, w, b)", X, W, B)
    for seed in range(9):
        x, w, b = some("float32", 5, 3, seed=seed), some("float32", 3, 21, seed=seed + 1), some("float32", 21, seed=seed)
        assert_same(call(x, w, b), fastrelu.linear_relu(x, w, b))
