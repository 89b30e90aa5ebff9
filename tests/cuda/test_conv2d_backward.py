"""Backward passes of convolutions on a device: the bits of the CPU, for every gradient, subset and layout."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from tests.convolution_reference import Case
from tests.cuda.test_linear import SMALL, assert_bits, normal, sent
from tests.cuda.test_linear_backward import GRADIENTS, SUBSETS, assert_gradients
from tests.cuda.values import nightly

RELU = "conv2d_relu_backward"
PLAIN = Case((2, 5, 7, 6), 7, (3, 2), padding=(1, 1))


def problem(case: Case, dtype: Any = "float32", name: str = RELU) -> list[np.ndarray]:
    """dy, y, x and w; without y for `conv2d_backward`."""
    x, w, _ = case.operands(dtype)
    y = normal(dtype, *case.y, seed=1)
    y = np.maximum(y, np.zeros((), y.dtype))
    operands = [normal(dtype, *case.y, seed=2), y, x, w]
    return operands if name != "conv2d_backward" else [operands[0], *operands[2:]]


def check(device: Any, case: Case, name: str = RELU, dtype: Any = "float32", **keywords: Any) -> None:
    operands, function = problem(case, dtype, name), getattr(fastrelu, name)
    expected = function(*operands, **case.options, **keywords)
    assert_gradients(function(*sent(device, *operands), **case.options, **keywords), expected, case)


# Where a kernel meets its input.


def test_strides_padding_and_dilation(device, planned):
    planned(SMALL)
    for stride, padding, dilation in [((1, 1), (1, 2), (1, 1)), ((2, 3), (0, 1), (2, 1)), ((1, 2), "valid", (1, 2))]:
        check(device, Case((2, 3, 9, 10), 5, (3, 2), stride, padding, dilation))
    check(device, Case((1, 2, 6, 7), 5, (4, 2), (1, 1), "same", (1, 3)))
    # Most of the input is met by no kernel.
    check(device, Case((1, 2, 20, 23), 3, (2, 1), (7, 5)))


def test_padding_beyond_the_image(device, planned):
    planned(SMALL)
    check(device, Case((2, 3, 2, 3), 4, (3, 3), (2, 1), (5, 4)))


@pytest.mark.parametrize("groups", [2, *nightly(3, 6)])
def test_groups(device, planned, groups):
    planned(SMALL)
    check(device, Case((2, 6, 5, 6), 12, (3, 3), (1, 1), (1, 1), groups=groups))
    check(device, Case((2, 6, 5, 6), 6, (2, 2), (2, 2), groups=6))


def test_positions_beyond_a_block(device, planned):
    for per_part in (9, 1):
        planned(SMALL, per_part)
        check(device, Case((5, 2, 9, 12), 3, (2, 2)))  # a block begins in the middle of an image
        check(device, Case((260, 2, 2, 3), 33, (2, 2), padding=(1, 1)))


def test_blocks_are_added_in_order(device, planned):
    # 1 is half a unit in the last place of 2**24: alone each 1 is lost, but a block of them is not.
    dy, x = np.ones((5, 2, 1, 103), np.float32), np.ones((5, 2, 1, 103), np.float32)
    dy[0, :, 0, 0] = 2.0**24
    w = np.ones((2, 2, 1, 1), np.float32)
    for per_part in (1, 3):
        planned(SMALL, per_part)
        _, dw, db = fastrelu.conv2d_backward(*sent(device, dy, x, w), wanted=("dw", "db"))
        assert_bits(dw, np.full((2, 2, 1, 1), np.float32(2.0**24 + 256 + 4)))
        assert_bits(db, np.full(2, np.float32(2.0**24 + 256 + 4)))


def test_more_output_channels_than_threads_beside_each_other(device, planned):
    planned(SMALL)
    check(device, Case((2, 1, 12, 13), 35, (2, 2)), wanted=("db",))


def test_padding_takes_part_in_the_sums(device, planned):
    planned(SMALL)
    infinite, ones = np.full((1, 1, 3, 3), np.inf, np.float32), np.ones((1, 1, 3, 3), np.float32)
    for operands in [(ones, ones, infinite), (infinite, ones, ones)]:
        expected = fastrelu.conv2d_backward(*operands, padding=1)
        assert_gradients(fastrelu.conv2d_backward(*sent(device, *operands), padding=1), expected)
        assert any(np.isnan(gradient).any() for gradient in expected)


# Types and derivatives.

NAMES = ["conv2d_backward", "conv2d_elu_backward"]
BY_NIGHT = nightly(*(f"conv2d_{f}_backward" for f in ("leaky_relu", "sigmoid", "tanh", "softplus")))


@pytest.mark.parametrize("name", [*NAMES, *BY_NIGHT])
def test_derivatives(device, planned, name):
    planned(SMALL)
    check(device, PLAIN, name, **({"alpha": 0.3} if "elu" in name else {}))


@pytest.mark.parametrize("dtype", nightly("float64", "bfloat16", "float16"))
def test_types(device, planned, dtype):
    planned(SMALL)
    check(device, PLAIN, dtype=dtype)


@pytest.mark.nightly
@pytest.mark.parametrize("dtypes", ["float16 float32 int8 float32", *nightly("float32 float64 float32 float16", "int16 " * 4)])
def test_mixed_types(device, planned, dtypes):
    planned(SMALL)
    operands = [(3 * o).astype(dtype) for o, dtype in zip(problem(PLAIN), dtypes.split(), strict=True)]
    expected = fastrelu.conv2d_relu_backward(*operands, **PLAIN.options)
    assert_gradients(fastrelu.conv2d_relu_backward(*sent(device, *operands), **PLAIN.options), expected)


@pytest.mark.parametrize("alpha", [np.inf, np.float64(0.1)], ids=["infinite", "on the device"])
def test_alpha(device, planned, alpha):
    planned(SMALL)
    operands = problem(PLAIN)
    expected = fastrelu.conv2d_leaky_relu_backward(*operands, **PLAIN.options, alpha=float(alpha))
    alpha = alpha if np.isinf(alpha) else device.array(alpha)
    result = fastrelu.conv2d_leaky_relu_backward(*sent(device, *operands), **PLAIN.options, alpha=alpha)
    assert_gradients(result, expected)


# Arrays.


@pytest.mark.parametrize("wanted", SUBSETS, ids="-".join)
def test_subsets(device, planned, wanted):
    planned(SMALL)
    check(device, PLAIN, wanted=wanted)


def test_bias_alone_needs_no_images(device, planned):
    dy, y, x, w = problem(PLAIN)
    expected = fastrelu.conv2d_relu_backward(dy, y, None, None, wanted=("db",))
    dy, y, x, w = sent(device, dy, y, x, w)
    for others in ((None, None), (x, None), (None, w)):
        assert_gradients(fastrelu.conv2d_relu_backward(dy, y, *others, wanted=("db",)), expected)


def test_layouts(device, planned):
    planned(SMALL)
    operands = problem(PLAIN)
    expected = fastrelu.conv2d_relu_backward(*operands, **PLAIN.options)
    last = [np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in operands]
    spread = [device.array(np.repeat(a, 2, -1))[..., ::2] for a in operands]
    plain, last = sent(device, *operands), sent(device, *last)
    for given in (last, spread, [last[0], *plain[1:]], [plain[0], spread[1], *plain[2:]]):
        assert_gradients(fastrelu.conv2d_relu_backward(*given, **PLAIN.options), expected)


def test_one_image(device, planned):
    planned(SMALL)
    dy, y, x, w = problem(PLAIN)
    operands = dy[0], y[0], x[0], w
    expected = fastrelu.conv2d_relu_backward(*operands, **PLAIN.options)
    assert_gradients(fastrelu.conv2d_relu_backward(*sent(device, *operands), **PLAIN.options), expected)


@pytest.mark.parametrize(
    ("x", "w", "dy"),
    [
        ((0, 3, 4, 5), (2, 3, 3, 3), (0, 2, 6, 7)),
        ((2, 0, 4, 5), (2, 0, 3, 3), (2, 2, 6, 7)),
        ((2, 3, 0, 5), (2, 3, 3, 3), (2, 2, 2, 7)),
        ((2, 3, 4, 5), (0, 3, 3, 3), (2, 0, 6, 7)),
    ],
    ids=["no images", "no channels", "only padding", "no outputs"],
)
def test_empty_arrays(device, planned, x, w, dy):
    planned(SMALL)
    operands = [normal("float32", *shape, seed=i) for i, shape in enumerate((dy, dy, x, w))]
    outputs = tuple(normal("float32", *shape, seed=9) for shape in (x, w, dy[1:2]))
    for accumulate in ((), GRADIENTS):
        expected = tuple(out.copy() for out in outputs)
        fastrelu.conv2d_relu_backward(*operands, padding=2, out=expected, accumulate=accumulate)
        places = tuple(sent(device, *outputs))
        fastrelu.conv2d_relu_backward(*sent(device, *operands), padding=2, out=places, accumulate=accumulate)
        assert_gradients(places, expected, accumulate)


def test_accumulation(device, planned):
    operands = problem(PLAIN)
    for per_part in (9, 1):
        planned(SMALL, per_part)
        for accumulate in (("dw",), GRADIENTS):
            held = [normal("float32", *shape, seed=5) for shape in (PLAIN.x, PLAIN.w, (PLAIN.outputs,))]
            places = tuple(sent(device, *held))
            expected = tuple(held)
            fastrelu.conv2d_relu_backward(*operands, **PLAIN.options, out=expected, accumulate=accumulate)
            results = fastrelu.conv2d_relu_backward(
                *sent(device, *operands), **PLAIN.options, out=places, accumulate=accumulate
            )
            assert all(a is b for a, b in zip(results, places, strict=True))
            assert_gradients(results, expected, accumulate)


@pytest.mark.nightly
def test_accumulation_into_another_type(device, planned):
    planned(SMALL)
    operands = problem(PLAIN, "float16")
    held = np.full(PLAIN.w, 1 / 3, np.float32)
    place = device.array(held)
    options = {**PLAIN.options, "wanted": ("dw",), "accumulate": ("dw",)}
    fastrelu.conv2d_relu_backward(*operands, **options, out=(None, held, None))
    fastrelu.conv2d_relu_backward(*sent(device, *operands), **options, out=(None, place, None))
    assert_bits(place, held)


def test_outputs_of_any_kind(device, planned):
    planned(SMALL)
    operands = problem(PLAIN)
    expected = fastrelu.conv2d_relu_backward(*operands, **PLAIN.options)
    shapes = PLAIN.x, PLAIN.w, (PLAIN.outputs,)
    wide = [device.array(np.full((*shape[:-1], 2 * shape[-1]), 7, "float32")) for shape in shapes]
    double = sent(device, *(np.empty(shape) for shape in shapes))
    last = [device.array(np.empty((s[0], *s[2:], s[1]), "f4").transpose(0, 3, 1, 2)) for s in shapes[:2]]
    for places in ([a[..., ::2] for a in wide], double, [*last, None]):
        fastrelu.conv2d_relu_backward(*sent(device, *operands), **PLAIN.options, out=tuple(places))
        for place, gradient in zip(places, expected, strict=True):
            if place is not None:
                assert_bits(place, gradient.astype(place.host.dtype))
    assert all((a.host[..., 1::2] == 7).all() for a in wide)


@pytest.mark.nightly
def test_outputs_that_overlap_operands(device, planned):
    planned(SMALL)
    case = Case((2, 4, 5, 6), 4, (3, 3), padding=(1, 1))
    dy, y, x, w = problem(case)
    expected = fastrelu.conv2d_relu_backward(dy, y, x, w, padding=1)
    given = sent(device, dy, y, x, w)
    places = given[2], given[3], None
    dx, dw, db = fastrelu.conv2d_relu_backward(*given, padding=1, out=places)
    assert dx is given[2]
    assert dw is given[3]
    assert_gradients((dx, dw, db), expected)
    given = sent(device, dy, y, x, w)
    dx, _, _ = fastrelu.conv2d_relu_backward(*given, padding=1, wanted=("dx",), out=(given[0], None, None))
    assert_bits(dx, expected[0])


def test_numpy_arrays_there_and_back(device, planned):
    planned(SMALL)
    operands = problem(PLAIN)
    expected = fastrelu.conv2d_relu_backward(*operands, **PLAIN.options)
    dw = np.zeros(PLAIN.w)
    with fastrelu.use("cuda"):
        launches = len(device.launches)
        dx, result, db = fastrelu.conv2d_relu_backward(*operands, **PLAIN.options, out=(None, dw, None))
        assert len(device.launches) > launches
    assert result is dw
    for a, b in zip((dx, dw, db), expected, strict=True):
        assert_array_equal(a, b)
    launches = len(device.launches)
    fastrelu.conv2d_relu_backward(*operands, **PLAIN.options)
    assert len(device.launches) == launches
