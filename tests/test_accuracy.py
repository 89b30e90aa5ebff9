"""How far a result may be from the exact one, in units in the last place of the exact one."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from bench.callables import CASES, Case
from tests.dtypes import dtype_of

Array = np.ndarray

# A wider type for the reference; where long double is no wider than double, float64 has none.
WIDER = {"float32": np.float64, "float64": np.longdouble}
WIDE = [
    "float32",
    pytest.param(
        "float64", marks=pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="long double is double on this machine")
    ),
]
HALVES = ("float16", "bfloat16")
CURVES = ("sigmoid", "tanh", "elu", "softplus")


def bits(x: Any) -> Array:
    x = np.ascontiguousarray(x)
    return x.view(f"u{x.itemsize}")


def ulps(result: Array, exact: Array) -> Array:
    """The error in units in the last place, of subnormal results too; NaN where the result is NaN."""
    with np.errstate(under="ignore"):
        rounded = abs(exact).astype(result.dtype)
    return abs(result.astype(exact.dtype) - exact) / np.spacing(rounded).astype(exact.dtype)


def grid(name: str) -> Array:
    """Every exponent of both signs, the range in which the curves bend, and its dense middle."""
    rng = np.random.default_rng(0)
    word = np.dtype(f"u{np.dtype(name).itemsize}")
    infinity = int(np.array(np.inf, name).view(word))
    positive = rng.integers(0, infinity, 60_000, word).view(name)
    lowest = -110 if name == "float32" else -750
    middle = rng.uniform(-3, 3, 60_000)
    bend = rng.uniform(lowest, -lowest, 60_000)
    powers = np.ldexp(1.0, np.arange(-60, 9))
    neighbours = np.concatenate([np.nextafter(powers.astype(name), np.array(t, name)) for t in (-np.inf, np.inf)])
    edges = np.concatenate(
        [powers, [0.5 * math.log(2), math.log(2), 16.635, 17.33, 18.0, 36.04, 37.43, 38.0, 103.97, 104.0, 745.13]]
    )
    points = np.concatenate([positive, middle.astype(name), bend.astype(name), neighbours, edges.astype(name), [0.0]])
    return np.concatenate([points, -points]).astype(name)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("operation", CURVES)
def test_within_two_units_over_the_whole_range(operation: str, name: str) -> None:
    case, x = CASES[operation], grid(name)
    with np.errstate(under="ignore"):
        exact = case.definition(x.astype(WIDER[name]), *case.parameters)
    result = case.ours(x, *case.parameters)
    assert ulps(result, exact).max() <= 2


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("operation", ["sigmoid", "softplus"])
def test_subnormal_results_keep_their_digits(operation: str, name: str) -> None:
    tiny = np.finfo(name).smallest_normal
    low, high = np.log(float(np.finfo(name).smallest_subnormal)), np.log(float(tiny))
    x = np.linspace(low, high, 10_001).astype(name)
    with np.errstate(under="ignore"):
        exact = CASES[operation].definition(x.astype(WIDER[name]))
    result = getattr(fastrelu, operation)(x)
    assert ulps(result, exact).max() <= 2
    assert len(np.unique(result)) > 5000  # not a few steps, and not zero


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("alpha", [0.25, 1.6733, 1e-3, -0.5])
def test_elu_with_any_alpha_within_three_units(alpha: float, name: str) -> None:
    # One more rounding: the product with alpha.
    x = grid(name)
    x = x[abs(x) > np.finfo(name).smallest_normal * 2.0**12]  # products that are normal
    alpha = np.dtype(name).type(alpha)
    wide = x.astype(WIDER[name])
    exact = np.where(x > 0, wide, WIDER[name](alpha) * np.expm1(np.minimum(wide, 0)))
    assert ulps(fastrelu.elu(x, alpha), exact).max() <= 3


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_curves_stay_in_their_range(name: str) -> None:
    x = np.sort(grid(name))
    for operation, low, high in (("sigmoid", 0, 1), ("tanh", -1, 1), ("elu", -1, np.inf), ("softplus", 0, np.inf)):
        y = getattr(fastrelu, operation)(x)
        assert y.min() == low, operation
        assert y.max() == min(high, x.max()), operation


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_odd_and_even_parts_are_exact(name: str) -> None:
    x = grid(name)
    assert_array_equal(bits(fastrelu.tanh(-x)), bits(-fastrelu.tanh(x)))


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_half_is_float32_rounded_once(case: Case, name: str) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype_of(name))
    operands = [x, np.random.default_rng(0).permutation(x)][-len(case.data) :]
    with np.errstate(all="ignore"):
        exact = case.ours(*(a.astype(np.float32) for a in operands), *case.parameters)
        rounded = exact.astype(x.dtype)
        result = case.ours(*operands, *case.parameters)
        nan = np.isnan(exact)
        assert_array_equal(np.isnan(result), nan)
    assert_array_equal(bits(result)[~nan], bits(rounded)[~nan])


def backward_operands(case: Case, name: str) -> list[Array]:
    """Ordinary gradients, and outputs of the forward pass over its whole range whose products are normal numbers."""
    x = grid(name)
    forward = getattr(fastrelu, case.name.removesuffix("_backward"))
    y = forward(x, *case.parameters)
    y = y[(abs(y) > np.finfo(name).smallest_normal * 2.0**12) & (abs(y) < np.finfo(name).max / 2**12)]
    dy = np.random.default_rng(1).uniform(-1000, 1000, len(y)).astype(name)
    return [dy, y]


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize(
    ("operation", "bound"),
    [
        ("sigmoid_backward", 3),  # three roundings
        ("tanh_backward", 2),  # a fused one and a product
        ("elu_backward", 2),  # a sum and a product
        ("softplus_backward", 3),  # the exponential and a product
    ],
)
def test_backward_within_its_roundings(operation: str, bound: int, name: str) -> None:
    case = CASES[operation]
    operands = backward_operands(case, name)
    wide = [a.astype(WIDER[name]) for a in operands]
    if operation == "tanh_backward":  # 1 - y * y would cancel in the wider type too
        exact = wide[0] * ((1 - wide[1]) * (1 + wide[1]))
    else:
        exact = case.definition(*wide, *case.parameters)
    kept = (abs(exact) >= np.finfo(name).smallest_normal) | (exact == 0)
    assert ulps(case.ours(*operands, *case.parameters), exact)[kept].max() <= bound


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.name.endswith("_backward")], ids=lambda case: case.name)
def test_backward_is_the_slope_of_forward(case: Case) -> None:
    # Central differences err by h**2 / 6 of the third derivative and by eps / h: 1e-9 here. Kinks stand at 0.
    x = np.linspace(-20, 20, 4001)
    x = x[abs(x) > 1e-3]
    h = 2.0**-17
    forward = getattr(fastrelu, case.name.removesuffix("_backward"))
    slope = (forward(x + h, *case.parameters) - forward(x - h, *case.parameters)) / (2 * h)
    for dy in (1.0, -2.5):
        gradient = case.ours(np.full_like(x, dy), forward(x, *case.parameters), *case.parameters)
        assert_allclose(gradient, dy * slope, rtol=1e-8, atol=1e-8)


def test_relu_derivative_is_the_slope_of_relu() -> None:
    x = np.linspace(-20, 20, 4000)
    h = 2.0**-17
    assert_allclose(fastrelu.relu_derivative(x), (fastrelu.relu(x + h) - fastrelu.relu(x - h)) / (2 * h), atol=1e-9)


# prelu_backward: a pass to the input and a sum in one fixed order.


def naive_prelu_backward(dy: Array, x: Array, alpha: Array, wide: Callable[[Any], Any]) -> Array:
    """The gradient of alpha, added up term by term in `wide`: blocks of 256 in the order of the axes, then the blocks."""
    lead = x.ndim - alpha.ndim
    terms: dict[tuple[int, ...], list[Any]] = {i: [] for i in np.ndindex(alpha.shape)}
    for index in np.ndindex(x.shape):
        where = tuple(0 if size == 1 else i for i, size in zip(index[lead:], alpha.shape, strict=True))
        terms[where].append(wide(0) if x[index] > 0 else wide(dy[index]) * wide(x[index]))
    total = np.zeros(alpha.shape, wide)
    for where, values in terms.items():
        for start in range(0, len(values), 256):
            block = wide(0)
            for value in values[start : start + 256]:
                block += value
            total[where] += block
    return total


def normal(shape: tuple[int, ...], name: str, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype_of(name))


SHAPES = {
    "one_slope_for_each_feature": ((300, 3), (3,)),
    "one_slope_for_each_channel": ((5, 3, 9, 7), (3, 1, 1)),
    "kept_leading_axis": ((5, 3, 11), (1, 3, 1)),
    "one_slope": ((7, 41), ()),
    "one_slope_in_an_axis": ((7, 41), (1,)),
    "rows": ((4, 300), (4, 1)),
    "no_sum": ((3, 5), (3, 5)),
    "two_apart": ((3, 5, 4, 6), (5, 1, 6)),
    "no_elements": ((0, 3), (3,)),
    "no_features": ((3, 0), (0,)),
    "nothing_summed_into_one": ((0,), ()),
}


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("shape", "slopes"), SHAPES.values(), ids=SHAPES)
def test_prelu_backward_adds_in_one_order(shape: tuple[int, ...], slopes: tuple[int, ...], name: str) -> None:
    dy, x, alpha = normal(shape, name, 0), normal(shape, name, 1), normal(slopes, name, 2)
    dx, dalpha = fastrelu.prelu_backward(dy, x, alpha)
    wide = np.float32 if name in HALVES else np.dtype(name).type
    assert_array_equal(dx, np.where(x > 0, dy, (alpha.astype(wide) * dy.astype(wide)).astype(x.dtype)))
    assert_array_equal(bits(dalpha), bits(naive_prelu_backward(dy, x, alpha, wide).astype(x.dtype)))
    assert dx.dtype == dalpha.dtype == x.dtype
    assert dalpha.shape == slopes


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 511, 512, 513, 1000])
def test_prelu_backward_around_whole_blocks(rows: int) -> None:
    dy, x, alpha = normal((rows, 2), "float32", 0), -abs(normal((rows, 2), "float32", 1)), normal((2,), "float32", 2)
    _, dalpha = fastrelu.prelu_backward(dy, x, alpha)
    assert_array_equal(bits(dalpha), bits(naive_prelu_backward(dy, x, alpha, np.float32)))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_prelu_backward_does_not_depend_on_the_layout(name: str) -> None:
    shape = (7, 3, 50, 2)
    dy, x, alpha = normal(shape, name, 0), normal(shape, name, 1), normal((3, 1, 1), name, 2)
    dx, dalpha = fastrelu.prelu_backward(dy, x, alpha)
    layouts = {
        "fortran": np.asfortranarray,
        "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
        "strided": lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
        "channels_last": lambda a: np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1),
    }
    for layout, change in layouts.items():
        got_x, got_alpha = fastrelu.prelu_backward(change(dy), change(x), alpha)
        assert_array_equal(bits(got_x), bits(dx), err_msg=layout)
        assert_array_equal(bits(got_alpha), bits(dalpha), err_msg=layout)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_prelu_backward_does_not_depend_on_threads(threads: int) -> None:
    dy, x, alpha = normal((60_000, 3), "float32", 0), normal((60_000, 3), "float32", 1), normal((3,), "float32", 2)
    with fastrelu.num_threads(threads):
        _, dalpha = fastrelu.prelu_backward(dy, x, alpha)
    for channel in range(3):
        _, alone = fastrelu.prelu_backward(dy[:, channel], x[:, channel], alpha[channel])
        assert_array_equal(bits(dalpha[channel]), bits(alone))


def test_prelu_backward_of_a_channel_ignores_the_others() -> None:
    dy, x, alpha = normal((300, 4), "float32", 0), normal((300, 4), "float32", 1), normal((4,), "float32", 2)
    _, before = fastrelu.prelu_backward(dy, x, alpha)
    x[:, 1], dy[:, 2] = np.nan, 1e30
    _, after = fastrelu.prelu_backward(dy, x, alpha)
    assert_array_equal(bits(after[[0, 3]]), bits(before[[0, 3]]))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_prelu_backward_shows_nan(name: str) -> None:
    dy, x = np.ones((4, 3), dtype_of(name)), np.ones((4, 3), dtype_of(name))
    x[2, 1] = dy[1, 2] = np.nan
    x[:, 2] = -1
    dx, dalpha = fastrelu.prelu_backward(dy, x, np.full(3, 0.5, x.dtype))
    assert dx[2, 1] == 1  # the gradient passes where x is NaN
    assert_array_equal(np.isnan(dx.astype(np.float32)).nonzero(), ([1], [2]))
    assert_array_equal(np.isnan(dalpha.astype(np.float32)), [False, True, True])


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("slope", ["float32", "float64"])
def test_prelu_backward_sums_halves_in_the_type_of_a_wider_alpha(half: str, slope: str) -> None:
    # Slopes are often kept in a wider type than activations; that must not make the sum any worse.
    dy, x = normal((600, 2), half, 0), -abs(normal((600, 2), half, 1))
    alpha = np.full(2, 0.25, slope)
    _, dalpha = fastrelu.prelu_backward(dy, x, alpha)
    assert_array_equal(dalpha, naive_prelu_backward(dy, x, alpha, np.dtype(slope).type), strict=True)


@pytest.mark.parametrize("integer", ["int8", "uint16", "int32", "int64"])
def test_prelu_backward_of_integer_alpha_has_the_type_of_dx(integer: str) -> None:
    dy, x = normal((300, 2), "float32", 0), normal((300, 2), "float32", 1)
    dx, dalpha = fastrelu.prelu_backward(dy, x, np.ones(2, integer))
    assert dalpha.dtype == dx.dtype == np.result_type(np.float32, integer)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        pytest.param(0.5, "float32", id="python_float"),
        pytest.param(1, "float32", id="python_integer"),
        pytest.param(np.float32(0.5), "float32", id="float32_scalar"),
        pytest.param(np.float64(0.5), "float64", id="float64_scalar"),
        pytest.param(np.array(0.5, np.float32), "float32", id="zero_dimensional"),
    ],
)
def test_prelu_backward_of_one_slope_returns_a_scalar(alpha: Any, expected: str) -> None:
    dy, x = normal((30,), "float32", 0), normal((30,), "float32", 1)
    dx, dalpha = fastrelu.prelu_backward(dy, x, alpha)
    assert type(dalpha) is np.dtype(expected).type
    assert dx.dtype == expected
    assert_allclose(dalpha, np.sum(dy * np.minimum(x, 0)), rtol=1e-5)


def test_prelu_backward_takes_lists_and_scalars() -> None:
    dx, dalpha = fastrelu.prelu_backward([1.0, 2.0], [-3.0, 4.0], [0.5])
    assert_array_equal(dx, [0.5, 2.0], strict=True)
    assert_array_equal(dalpha, [-3.0], strict=True)
    dx, dalpha = fastrelu.prelu_backward(1.0, -2.0, 0.5)
    assert (type(dx), dx, type(dalpha), dalpha) == (np.float64, 0.5, np.float64, -2.0)


def test_prelu_backward_is_the_slope_of_prelu() -> None:
    x = normal((40, 3), "float64", 0)
    x = x + np.copysign(1e-3, x)
    dy, alpha, h = normal((40, 3), "float64", 1), np.array([0.25, -0.5, 2.0]), 2.0**-17
    dx, dalpha = fastrelu.prelu_backward(dy, x, alpha)
    slope = (fastrelu.prelu(x + h, alpha) - fastrelu.prelu(x - h, alpha)) / (2 * h)
    assert_allclose(dx, dy * slope, rtol=1e-8)
    change = (fastrelu.prelu(x, alpha + h) - fastrelu.prelu(x, alpha - h)) / (2 * h)
    assert_allclose(dalpha, (dy * change).sum(axis=0), rtol=1e-8)


@pytest.mark.parametrize("alpha", [(2,), (2, 3), (5, 1), (1, 4, 3)], ids=str)
def test_prelu_backward_refuses_an_alpha_that_does_not_broadcast(alpha: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="prelu_backward: alpha must broadcast"):
        fastrelu.prelu_backward(np.ones((4, 3)), np.ones((4, 3)), np.ones(alpha))


@pytest.mark.parametrize("shape", [(3,), (4, 1), (3, 4), ()], ids=str)
def test_prelu_backward_refuses_a_gradient_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="prelu_backward: dy must have the shape of x"):
        fastrelu.prelu_backward(np.ones(shape), np.ones((4, 3)), np.ones(3))


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize(
    "bad", [np.ones(3, bool), np.ones(3, complex), np.array([None] * 3), np.array(["a"] * 3)], ids=lambda a: a.dtype.name
)
def test_prelu_backward_names_the_operand_it_refuses(position: int, bad: Array) -> None:
    operands: list[Any] = [np.ones(3), np.ones(3), np.ones(3)]
    operands[position] = bad
    name = ("dy", "x", "alpha")[position]
    with pytest.raises(
        TypeError, match=f"^prelu_backward: {name} must be .*float32.*, not {bad.dtype.name.rstrip('0123456789')}"
    ):
        fastrelu.prelu_backward(*operands)
