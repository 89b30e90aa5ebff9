"""Backward passes of the layers inside compiled functions: the bits and shapes of the same call from Python."""

import itertools

import numpy as np
import pytest
from numba import types
from numba.core.errors import TypingError

from fastrelu.jit.errors import ShapeError
from fastrelu.operations import BACKWARD, GRADIENTS, KC
from tests.jitting import Array, array, assert_same, function, plain, view

SUBSETS = [subset for count in (1, 2, 3) for subset in itertools.combinations(GRADIENTS, count)]
MATRIX = array("float32", 2)


def finite(dtype: str, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def operands(dtype: str, batch: tuple[int, ...], k: int, n: int) -> tuple[Array, ...]:
    """A dy, a y, an x and a w."""
    return (
        finite(dtype, *batch, n),
        finite(dtype, *batch, n, seed=1),
        finite(dtype, *batch, k, seed=2),
        finite(dtype, k, n, seed=3),
    )


def compared(parameters: str, result: str, *arguments: object) -> None:
    """The compiled call against the plain one, and what both write to their arguments."""
    own = [a.copy("K") if isinstance(a, np.ndarray) else a for a in arguments]
    assert_same(function(parameters, result)(*arguments), plain(parameters, result)(*own), result)
    assert_same(tuple(arguments), tuple(own), result)


@pytest.mark.parametrize("name", BACKWARD)
def test_matrices_of_any_strides(name: str) -> None:
    has_y = name != "linear_backward"
    parameters = "dy, y, x, w" if has_y else "dy, x, w"
    call = function(parameters, f"{name}({parameters})", *[MATRIX] * (3 + has_y))
    rng = np.random.default_rng(1)
    for number in range(40):
        m, k, n = (int(rng.integers(0 if number % 7 == 0 else 1, most)) for most in (9, 30, 41))
        m = m if number % 5 else 2 * KC + 3
        shapes = [(m, n), (m, n), (m, k), (k, n)] if has_y else [(m, n), (m, k), (k, n)]
        given = [view(rng, "float32", shape) for shape in shapes]
        assert_same(call(*given), call.py_func(*given), (m, k, n))


# Each is compiled: by day one alone, two without the first, and all.
BY_DAY = [("dx",), ("dw", "db"), GRADIENTS]


@pytest.mark.parametrize(
    "wanted", [*BY_DAY, *(pytest.param(subset, marks=pytest.mark.nightly) for subset in SUBSETS if subset not in BY_DAY)]
)
def test_some_gradients(wanted: tuple[str, ...]) -> None:
    dy, y, x, w = operands("float32", (7,), 5, 9)
    x, w = x if "dw" in wanted else None, w if "dx" in wanted else None
    compared("dy, y, x, w", f"linear_relu_backward(dy, y, x, w, wanted={wanted!r})", dy, y, x, w)


@pytest.mark.parametrize("added", [(), ("dx",), ("dw", "db"), GRADIENTS])
def test_added_to_out(added: tuple[str, ...]) -> None:
    out = finite("float64", 7, 5), finite("float64", 5, 9), finite("float64", 9)
    call = f"linear_relu_backward(dy, y, x, w, out=(dx, dw, db), accumulate={added!r})"
    compared("dy, y, x, w, dx, dw, db", call, *operands("float64", (7,), 5, 9), *out)
    if added == ("dw", "db"):
        # To results of a wider type, which then is that of the sums; narrower ones are rounded.
        compared("dy, y, x, w, dx, dw, db", call, *operands("float32", (7,), 5, 9), out[0].astype(np.float32), *out[1:])
        some = "linear_relu_backward(dy, y, x, w, out=(None, dw, None), wanted=('dw', 'db'))"
        compared("dy, y, x, w, dw", some, *operands("float64", (7,), 5, 9), np.zeros((5, 9), np.float32))


def test_bits_in_place_of_y() -> None:
    for n in (1, 8, 33):
        dy, y, x, w = operands("float32", (6,), 5, n)
        mask = np.packbits(y > 0, axis=-1, bitorder="little")
        call = function("dy, y, x, w", "linear_relu_backward(dy, y, x, w)")
        assert_same(call(dy, mask, x, w), call.py_func(dy, y, x, w), n)
    dy, y, x, w = operands("float32", (2, 3), 5, 33)
    compared("dy, y, x, w", "linear_relu_backward(dy, y, x, w)", dy, np.packbits(y > 0, axis=-1, bitorder="little"), x, w)


@pytest.mark.parametrize("batch", [(), (2, 3), (2, 0)])
def test_batches_of_other_axes(batch: tuple[int, ...]) -> None:
    dy, y, x, w = operands("float32", batch, 5, 9)
    compared("dy, y, x, w", "linear_elu_backward(dy, y, x, w, alpha=0.5)", dy, y, x, w)
    dx = finite("float32", *batch, 5)
    odd = np.zeros(dx.nbytes + 9, np.uint8)[1:][: dx.nbytes].view(np.float32).reshape(dx.shape)
    for place in (dx, dx[..., ::-1], odd) if batch else (odd,):  # each is compiled
        call = "linear_backward(dy, x, w, out=(dx, None, None), accumulate=('dx',))"
        compared("dy, x, w, dx", call, dy, x, w, place)
    if batch == (2, 3):
        dy.flags.writeable = x.flags.writeable = False
        compared("dy, y, x, w", "linear_elu_backward(dy, y, x, w, 0.5)", np.asfortranarray(dy), y, x, w)
        compared("dy", "linear_backward(dy, None, None, wanted=('db',))", dy)


def test_a_w_for_each_product() -> None:
    call = function("dy, y, x, w", "linear_tanh_backward(dy, y, x, w)", *[array("float32", 3)] * 4)
    rng = np.random.default_rng(4)
    for lengths in ((2, 2, 2, 2), (1, 2, 1, 2), (2, 1, 2, 1), (3, 3, 1, 3), (0, 0, 0, 0)):
        shapes = [(a, *rest) for a, rest in zip(lengths, ((3, 5), (3, 5), (3, 4), (4, 5)), strict=True)]
        given = [view(rng, "float32", shape) for shape in shapes]
        assert_same(call(*given), call.py_func(*given), lengths)
    dy, y, x, w = (finite("float32", *shape) for shape in ((2, 3, 5), (2, 3, 5), (2, 3, 4), (2, 4, 5)))
    dw = finite("float32", 2, 4, 5, seed=9)
    compared("dy, y, x, w, dw", "linear_relu_backward(dy, y, x, w, out=(None, dw, None), accumulate=('dw',))", dy, y, x, w, dw)


def test_types_are_mixed() -> None:
    dy, y, x, w = operands("float32", (4,), 5, 9)
    compared("dy, y, x, w", "linear_relu_backward(dy, y, x, w)", dy, y, x.astype(np.float64), w)
    compared("dy, y, x, w", "linear_relu_backward(dy, y, x, w, wanted=('db',))", dy, y, x.astype(np.float64), w)
    compared("dy, y, x, w", "linear_leaky_relu_backward(dy, y, x, w, 2)", dy, np.sign(y).astype(int), x, w)


@pytest.mark.parametrize("n", [6, 40])
def test_out_overlaps_operands(n: int) -> None:
    call = function("dy, x, w, dx, dw", "linear_backward(dy, x, w, out=(dx, dw, None))", *[MATRIX] * 5)
    dy, x, w = (finite("float32", n, n, seed=seed) for seed in range(3))
    expected = call.py_func(dy, x, w, np.empty_like(x), np.empty_like(w))
    for first, second in itertools.permutations(range(3), 2):
        own = [dy.copy(), x.copy(), w.copy()]
        assert_same(call(*own, own[first], own[second]), expected, (first, second))
        own = [dy.copy(), x.copy(), w.copy()]
        found = call(*own, own[first].T, own[second][::-1])
        assert_same(found, expected, (first, second))
    memory = np.zeros(n * n + 9, np.float32)
    for shift in (1, 9):
        memory[shift : shift + n * n] = dy.ravel()
        shifted = memory[shift : shift + n * n].reshape(n, n)
        assert_same(call(shifted, x, w, memory[: n * n].reshape(n, n), np.empty_like(w)), expected, shift)


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        ("linear_backward(a, b, c)", [(3, 5), (3, 4), (4, 6)]),
        ("linear_backward(a, b, c)", [(3, 5), (3, 4), (3, 5)]),
        ("linear_backward(a, b, c)", [(3, 5), (2, 4), (4, 5)]),
        ("linear_backward(a, b, c)", [(2, 3, 5), (3, 2, 4), (4, 5)]),
        ("linear_backward(a, b, c)", [(2, 3, 5), (3, 3, 4), (2, 4, 5)]),
        ("linear_relu_backward(a, b, None, c, wanted=('dx',))", [(3, 5), (3, 4), (4, 5)]),
        ("linear_backward(a, b, None, wanted=('dw',), out=(None, c, None))", [(3, 5), (3, 4), (5, 4)]),
        ("linear_backward(a, None, b, wanted=('dx',), out=(c, None, None))", [(3, 5), (4, 5), (3, 5)]),
        ("linear_backward(a, None, b, wanted=('dx',), out=(c, None, None))", [(2, 3, 5), (4, 5), (3, 2, 4)]),
        ("linear_backward(a, None, None, wanted=('db',), out=(None, None, b))", [(3, 5), (1,)]),
    ],
)
def test_shapes_that_do_not_fit(call: str, shapes: list[tuple[int, ...]]) -> None:
    names, arrays = ", ".join("abc"[: len(shapes)]), [np.ones(shape) for shape in shapes]
    with pytest.raises(ValueError, match=r"\w+: ") as expected:
        plain(names, call)(*arrays)
    with pytest.raises(ShapeError) as found:
        function(names, call)(*arrays)
    assert str(found.value) == str(expected.value)
    assert all((a == 1).all() for a in arrays)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("None, w", "linear_backward: x must be an array, not None"),
        ("x, None", "linear_backward: w must be an array, not None"),
        ("x, w, wanted=()", "linear_backward: wanted must be a tuple of at least one"),
        ("x, w, wanted=('dz',)", "linear_backward: wanted must be a tuple of literal names"),
        ("x, w, accumulate=('dw',)", "linear_backward: accumulate must be without dw"),
        ("x, w, out=x", "linear_backward: out must be a tuple of three arrays or None"),
        ("x, w, out=(x, None, None), wanted=('dw',)", "linear_backward: out for dx must be None"),
        ("x > 0, w", "linear_backward: x must be an array"),
        ("x, w[0]", "linear_backward: w must be an array of at least 2 axes"),
        ("x[0], w", "linear_backward: x must be an array of as many axes as dy"),
        ("x, w, out=(None, np.zeros((4, 5), np.int64), None)", "linear_backward: out for dw must be an array that float64"),
    ],
)
def test_arguments_of_another_type(arguments: str, said: str) -> None:
    with pytest.raises(TypingError) as error:
        function("dy, x, w", f"linear_backward(dy, {arguments})")(np.ones((3, 5)), np.ones((3, 4)), np.ones((4, 5)))
    assert said in str(error.value)


def test_alpha_is_a_number_for_one_product() -> None:
    kinds = (MATRIX,) * 4
    with pytest.raises(TypingError, match="linear_elu_backward: alpha must be a number"):
        function("dy, y, x, w, a", "linear_elu_backward(dy, y, x, w, a)", *kinds, array("float32", 1))
    call = function("dy, y, x, w, a", "linear_elu_backward(dy, y, x, w, a)", *kinds, types.float64)
    given = operands("float32", (6,), 5, 9)
    for alpha in (-0.5, 0.0, 1e-30):
        assert_same(call(*given, alpha), call.py_func(*given, alpha))
