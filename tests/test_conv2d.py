"""Convolutions: bits against the reference, values against the definition, and what NumPy users expect of arguments."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from tests.convolution_reference import Case, layer, sums, taps
from tests.reference import bits
from tests.subprocesses import run

# Each function with its parameters.
FUNCTIONS = {
    "conv2d": {},
    "conv2d_relu": {},
    "conv2d_leaky_relu": {"alpha": 0.3},
    "conv2d_elu": {"alpha": 0.7},
    "conv2d_sigmoid": {},
    "conv2d_tanh": {},
    "conv2d_softplus": {},
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = (np.dtype(np.float16), BFLOAT16)
PLAIN = Case((2, 5, 9, 11), 7, (3, 3), padding=(1, 1))


def check(case: Case, name: str = "conv2d_relu", dtype="float32", seed: int = 0) -> None:
    x, w, b = case.operands(dtype, seed)
    parameters = FUNCTIONS[name]
    expected = layer(name, case, x, w, b, *parameters.values())
    y = getattr(fastrelu, name)(x, w, b, **case.options, **parameters)
    assert y.dtype == x.dtype
    assert y.flags.c_contiguous
    assert_array_equal(bits(y), bits(expected), err_msg=str(case))


@pytest.mark.parametrize("kernel", [*itertools.product((1, 2, 3, 5), (1, 2, 3, 4)), (7, 7), (1, 11)])
def test_kernel_sizes(kernel):
    for stride, padding in itertools.product(((1, 1), (2, 2), (3, 1)), ((0, 0), (1, 2))):
        check(Case((2, 3, 8, 12), 7, kernel, stride, padding))


@pytest.mark.parametrize("stride", [(1, 2), (2, 1), (2, 3), (3, 3), (4, 5)])
def test_strides(stride):
    for kernel, dilation in itertools.product(((1, 1), (3, 2), (2, 5)), ((1, 1), (2, 3))):
        check(Case((2, 4, 17, 19), 5, kernel, stride, (1, 2), dilation, groups=1))


def test_stride_beyond_the_kernel():
    check(Case((2, 3, 20, 23), 4, (2, 1), (7, 5)))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding(padding):
    for kernel, dilation in itertools.product(((2, 2), (4, 3), (1, 6)), ((1, 1), (2, 3))):
        check(Case((2, 3, 9, 16), 4, kernel, (1, 1), padding, dilation))


def test_same_keeps_the_size_and_begins_with_the_smaller_half():
    x = np.ones((1, 1, 4, 5))
    y = fastrelu.conv2d(x, np.ones((1, 1, 2, 4)), padding="same")[0, 0]
    # One column of zeros at the left and two at the right; none at the top and a row at the bottom.
    assert_array_equal(y, np.outer([2, 2, 2, 1], [3, 4, 4, 3, 2]))


def test_padding_beyond_the_image():
    check(Case((2, 3, 2, 3), 4, (3, 3), (2, 1), (5, 4)))


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups(groups):
    for kernel in ((1, 1), (3, 3)):
        check(Case((2, 6, 7, 9), 12, kernel, (1, 1), (1, 1), groups=groups))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier):
    check(Case((2, 20, 7, 18), 20 * multiplier, (3, 3), (1, 1), (1, 1), groups=20))
    check(Case((2, 20, 7, 18), 20 * multiplier, (3, 3), (2, 2), (1, 1), groups=20))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_parameter_of_few_output_channels(channels, dtype):
    # Their tiles are long: the parameter has to reach the last lane.
    check(Case((2, channels, 26, 38), channels, (5, 2), (1, 2), (0, 1), (2, 2), groups=channels), "conv2d_leaky_relu", dtype)
    check(Case((1, 3, 20, 300), channels, (3, 3), padding=(1, 1)), "conv2d_elu", dtype)


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 63, 64, 65, 130])
def test_remainders_of_positions(size):
    for kernel in ((1, 1), (1, 3)):
        check(Case((1, 3, 1, size + kernel[1] - 1), 5, kernel))


@pytest.mark.parametrize("outputs", [1, 2, 5, 6, 7, 13])
def test_remainders_of_output_channels(outputs):
    check(Case((2, 3, 5, 7), outputs, (3, 2)))


def test_one_channel():
    check(Case((3, 1, 12, 13), 1, (5, 4), (1, 1), (2, 2)))


@pytest.mark.parametrize("channels", [28, 29, 256, 257])
def test_blocks_of_terms(channels):
    check(Case((2, channels, 4, 5), 7, (3, 3) if channels < 100 else (1, 1)))
    check(Case((1, channels, 4, 5), 7, (3, 3), (2, 2), (1, 1)))


def test_images_smaller_than_a_vector():
    # A panel of positions spans many images.
    check(Case((70, 3, 2, 3), 9, (2, 2), (1, 1), (1, 1)))
    check(Case((300, 5, 1, 1), 9, (1, 1)))


def test_row_longer_than_a_band():
    check(Case((1, 2, 3, 3001), 3, (2, 5), (1, 2), (0, 3), (1, 7)))


def test_many_channels_of_large_images():
    check(Case((1, 40, 40, 90), 20, (5, 5), (1, 1), (2, 2)))


# Not each of both: kernels are compiled for every activation and type.
BY_NIGHT = [
    *((name, "float32") for name in ("conv2d_sigmoid", "conv2d_tanh", "conv2d_softplus")),
    *(("conv2d_elu", dtype) for dtype in ("float64", *HALVES)),
    ("conv2d_relu", np.dtype(np.float16)),
]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float32") for name in ("conv2d", "conv2d_relu", "conv2d_leaky_relu", "conv2d_elu")),
        *(("conv2d_relu", dtype) for dtype in ("float64", BFLOAT16)),
        *(pytest.param(*each, marks=pytest.mark.nightly) for each in BY_NIGHT),
    ],
    ids=str,
)
def test_types_and_activations(name, dtype):
    check(PLAIN, name, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES])
def test_slopes_of_channels(dtype):
    x, w, b = PLAIN.operands(dtype, 3)
    alpha = np.linspace(-1, 1, len(w)).astype(dtype)
    wide = [a.astype(np.float32) if dtype in HALVES else a for a in (x, w, b, alpha)]
    expected = fastrelu.prelu(fastrelu.conv2d(*wide[:3], padding=1), wide[3][:, None, None]).astype(x.dtype)
    assert_array_equal(bits(fastrelu.conv2d_prelu(x, w, b, alpha, padding=1)), bits(expected))
    out = np.full(expected.shape, 7, x.dtype)[..., ::-1]
    assert fastrelu.conv2d_prelu(x[0], w, b, alpha, padding=1, out=out[0]).base is out.base
    assert_array_equal(bits(out[0]), bits(expected[0]))
    assert_array_equal(out[1:], 7)
    assert_array_equal(fastrelu.conv2d_prelu(x, w, None, 0.0), fastrelu.conv2d_relu(x, w))


def test_slopes_of_other_numbers_of_channels():
    with pytest.raises(
        ValueError, match=r"^conv2d_prelu: alpha must have shape \(7,\) or be one number, not have shape \(2,\)"
    ):
        fastrelu.conv2d_prelu(*PLAIN.operands(), np.ones(2))


def test_no_bias():
    x, w, _ = PLAIN.operands()
    assert_array_equal(bits(fastrelu.conv2d(x, w, **PLAIN.options)), bits(layer("conv2d", PLAIN, x, w, None)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_definition(dtype):
    case = Case((2, 6, 10, 11), 9, (3, 4), (2, 1), (1, 2), (1, 2), 3)
    x, w, b = case.operands(dtype)
    seen = taps(case, x.astype(float)).reshape(2, 3, 2, 3, 4, *case.y[2:])
    exact = np.einsum("ngckqhv,gockq->ngohv", seen, w.astype(float).reshape(3, 3, 2, 3, 4)).reshape(case.y)
    exact += b.astype(float)[:, None, None]
    scale = np.einsum("ngckqhv,gockq->ngohv", abs(seen), abs(w.astype(float)).reshape(3, 3, 2, 3, 4)).reshape(case.y)
    scale += abs(b.astype(float))[:, None, None]
    # gamma of 24 terms and the bias
    bound = 26 * np.finfo(dtype).eps / 2
    assert (abs(fastrelu.conv2d(x, w, b, **case.options) - exact) <= bound * scale).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads(threads):
    cases = (
        Case((9, 16, 14, 15), 40, (3, 3), (1, 1), (1, 1)),
        Case((2, 64, 20, 20), 33, (1, 1)),
        Case((1, 3, 60, 60), 150, (3, 3)),
    )
    with fastrelu.num_threads(threads):
        for case in cases:
            check(case)


def test_batch_has_the_bits_of_its_images():
    case = Case((5, 7, 9, 10), 8, (3, 3), (1, 1), (1, 1))
    x, w, b = case.operands()
    y = fastrelu.conv2d(x, w, b, **case.options)
    for i in range(5):
        assert_array_equal(bits(fastrelu.conv2d(x[i], w, b, **case.options)), bits(y[i]))


def layouts(a: np.ndarray) -> dict[str, np.ndarray]:
    """The same array with other strides."""
    last = np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    spread = np.zeros((*a.shape[:-1], 3 * a.shape[-1]), a.dtype)
    spread[..., ::3] = a
    bytes_ = np.zeros(a.nbytes + 1, np.uint8)
    unaligned = bytes_[1:].view(a.dtype).reshape(a.shape)
    unaligned[...] = a
    frozen = a.copy()
    frozen.flags.writeable = False
    return {
        "channels last": last,
        "Fortran": np.asfortranarray(a),
        "negative": a[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1],
        "spread": spread[..., ::3],
        "unaligned": unaligned,
        "swapped": a.astype(a.dtype.newbyteorder()),
        "read-only": frozen,
    }


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_layouts(kernel):
    case = Case((3, 18, 7, 8), 9, kernel)
    x, w, b = case.operands()
    expected = bits(layer("conv2d", case, x, w, b))
    for name in layouts(x):
        assert_array_equal(bits(fastrelu.conv2d(layouts(x)[name], w, b)), expected, err_msg=name)
        assert_array_equal(bits(fastrelu.conv2d(x, layouts(w)[name], b)), expected, err_msg=name)
    assert_array_equal(bits(fastrelu.conv2d(x, w, b[::-1].copy()[::-1])), expected)


def test_broadcast_operands():
    x, w = np.broadcast_to(np.float32(0.5), (2, 3, 5, 6)), np.broadcast_to(np.float32(3), (4, 3, 2, 2))
    assert_array_equal(fastrelu.conv2d(x, w), np.full((2, 4, 4, 5), 18, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_value_in_x_reaches_what_sees_it(value):
    case = Case((2, 3, 9, 20), 5, (3, 3), (1, 1), (1, 1))
    x, w, b = case.operands()
    x[1, 2, 4, 7] = value
    y = fastrelu.conv2d_relu(x, w, b, **case.options)
    assert_array_equal(bits(y), bits(layer("conv2d_relu", case, x, w, b)))
    assert np.isfinite(y[0]).all()
    assert np.isfinite(y[1, :, :3]).all()
    assert not np.isfinite(y[1, :, 3:6, 6:9]).all()


def test_padding_takes_part_in_the_sum():
    x, w = np.ones((1, 1, 3, 3), np.float32), np.full((1, 1, 3, 3), np.inf, np.float32)
    y = fastrelu.conv2d(x, w, padding=1)[0, 0]
    assert np.isnan(y).sum() == 8
    assert y[1, 1] == np.inf


def test_signed_zeros_and_subnormals():
    x = np.full((1, 1, 2, 3), -0.0, np.float32)
    tiny = np.float32(1e-42)
    w = np.ones((1, 1, 1, 1), np.float32)
    # The chain starts from the bias, or from +0.
    assert_array_equal(bits(fastrelu.conv2d(x, w)), bits(np.zeros_like(x)))
    assert_array_equal(bits(fastrelu.conv2d(x, w, np.array([-0.0], np.float32))), bits(x))
    assert_array_equal(bits(fastrelu.conv2d(np.full_like(x, tiny), w)), bits(np.full_like(x, tiny)))


def test_no_warning_about_overflow():
    x, w = np.full((1, 1, 2, 3), 6e4, np.float16), np.full((1, 1, 2, 2), 6e4, np.float16)
    assert_array_equal(fastrelu.conv2d(x, w), np.full((1, 1, 1, 2), np.inf, np.float16))


def test_one_image():
    x, w, b = PLAIN.operands()
    y = fastrelu.conv2d_relu(x[0], w, b, **PLAIN.options)
    assert_array_equal(y, fastrelu.conv2d_relu(x, w, b, **PLAIN.options)[0])
    out = np.empty_like(y)
    assert fastrelu.conv2d_relu(x[0], w, b, **PLAIN.options, out=out) is out
    assert_array_equal(out, y)


def test_arguments_by_position_and_as_numbers():
    x, w, b = PLAIN.operands()
    expected = fastrelu.conv2d(x, w, b, stride=(2, 2), padding=(1, 1), dilation=(2, 2))
    assert_array_equal(fastrelu.conv2d(x, w, b, 2, 1, 2, 1), expected)
    assert_array_equal(fastrelu.conv2d(x, w, b, np.int64(2), [1, 1], np.array([2, 2])), expected)


@pytest.mark.parametrize("value", [1.0, (1.0, 1), (1, np.float32(1))], ids=["float", "float_of_two", "float32_of_two"])
@pytest.mark.parametrize("name", ["stride", "dilation", "groups"])
def test_number_that_only_equals_one_that_came_before(name, value):
    x, w = np.ones((2, 5, 5)), np.ones((2, 2, 3, 3))
    whole = {name: 1 if name == "groups" else (1, 1)}
    fastrelu.conv2d(x, w, **whole)
    with pytest.raises(TypeError, match=f"conv2d: {name} must be an integer"):
        fastrelu.conv2d(x, w, **{name: value})


def test_lists_and_integers():
    y = fastrelu.conv2d([[[1, 2, 3]]], [[[[1, -1]]]])
    assert y.dtype == np.float64
    assert_array_equal(y, [[[-1, -1]]])
    assert fastrelu.conv2d(np.ones((1, 1, 2), np.int8), np.ones((1, 1, 1, 1), np.int8)).dtype == np.float16
    assert fastrelu.conv2d(np.ones((1, 1, 2), np.int16), np.ones((1, 1, 1, 1), np.float16)).dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4"])
def test_out_of_any_kind(dtype):
    x, w, b = PLAIN.operands("float32")
    expected = layer("conv2d_relu", PLAIN, x, w, b)
    large = np.zeros((*PLAIN.y[:3], 2 * PLAIN.y[3]), dtype)
    for out in (large[..., ::2], np.zeros(PLAIN.y, dtype, order="F"), np.zeros(PLAIN.y, dtype)):
        assert fastrelu.conv2d_relu(x, w, b, **PLAIN.options, out=out) is out
        assert_array_equal(out, expected.astype(dtype))


def test_out_overlaps_the_inputs():
    case = Case((2, 4, 6, 7), 4, (3, 3), (1, 1), (1, 1))
    x, w, b = case.operands()
    expected = layer("conv2d", case, x, w, b)
    for shift in (0, 1, 50):
        memory = np.zeros(2 * x.size, np.float32)
        given = memory[60 : 60 + x.size].reshape(x.shape)
        given[...] = x
        out = memory[60 - shift : 60 - shift + x.size].reshape(x.shape)
        fastrelu.conv2d(given, w, b, **case.options, out=out)
        assert_array_equal(bits(out), bits(expected))


@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((0, 3, 5, 6), (4, 3, 2, 2)),
        ((2, 3, 5, 6), (0, 3, 2, 2)),
        ((0, 0, 5, 6), (0, 0, 2, 2)),
    ],
)
def test_empty_results(x, w):
    y = fastrelu.conv2d_relu(np.zeros(x), np.zeros(w), np.zeros(w[0]))
    assert y.shape == (x[0], w[0], 4, 5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_terms_is_the_bias(name):
    b = np.array([-1.0, 2.0], np.float32)
    y = getattr(fastrelu, name)(np.zeros((3, 0, 4, 5), np.float32), np.zeros((2, 0, 3, 3), np.float32), b, **FUNCTIONS[name])
    activation = fastrelu.linear(np.zeros((1, 0), np.float32), np.zeros((0, 2), np.float32), b)[0]
    if name != "conv2d":
        activation = getattr(fastrelu, name.removeprefix("conv2d_"))(activation, *FUNCTIONS[name].values())
    assert_array_equal(y, np.broadcast_to(activation[:, None, None], (3, 2, 2, 3)))


def test_image_without_rows_is_all_padding():
    w = np.ones((1, 2, 1, 1), np.float32)
    y = fastrelu.conv2d(np.zeros((1, 2, 0, 3), np.float32), w, np.array([0.5], np.float32), padding=(1, 0))
    assert_array_equal(y, np.full((1, 1, 2, 3), 0.5))
    assert np.isnan(fastrelu.conv2d(np.zeros((1, 2, 0, 3), np.float32), w * np.inf, padding=(1, 0))).all()


def operands(**changes):
    x, w, b = PLAIN.operands()
    return {"x": x, "w": w, "b": b, **changes}


FAULTS = {
    "x has two axes": ({"x": np.ones((3, 4))}, {}, ValueError, "x must have shape (N, C, H, W) or (C, H, W), not (3, 4)"),
    "w has three axes": ({"w": np.ones((3, 4, 1))}, {}, ValueError, "w must have shape (O, C / groups, KH, KW), not (3, 4, 1)"),
    "channels": (
        {"w": np.ones((7, 4, 3, 3))},
        {},
        ValueError,
        "w must have shape (O, C / 1, KH, KW) for x of shape (2, 5, 9, 11)",
    ),
    "groups": ({}, {"groups": 5}, ValueError, "w must have shape (O, C / 5, KH, KW) for x of shape"),
    "outputs of groups": (
        {"w": np.ones((7, 1, 3, 3))},
        {"groups": 5},
        ValueError,
        "a number of output channels that 5 groups divide",
    ),
    "no groups": ({}, {"groups": 0}, ValueError, "groups must be at least 1, not 0"),
    "b": ({"b": np.ones(6)}, {}, ValueError, "b must have shape (7,) for w of shape (7, 5, 3, 3), not (6,)"),
    "empty kernel": ({"w": np.ones((7, 5, 0, 3))}, {}, ValueError, "w must have a kernel of at least one row and one column"),
    "large kernel": ({"w": np.ones((7, 5, 3, 12))}, {}, ValueError, "w must span at most the 11 columns of x of shape"),
    "dilated kernel": ({}, {"dilation": (5, 1)}, ValueError, "w must span at most the 9 rows of x of shape"),
    "stride": ({}, {"stride": 0}, ValueError, "stride must be at least 1, not 0"),
    "stride of three": ({}, {"stride": (1, 1, 1)}, ValueError, "stride must be one integer or two, not 3"),
    "stride as float": ({}, {"stride": 1.5}, TypeError, "stride must be an integer, not float"),
    "dilation": ({}, {"dilation": (1, -1)}, ValueError, "dilation must be at least 1, not -1"),
    "padding": ({}, {"padding": -1}, ValueError, "padding must be at least 0, not -1"),
    "named padding": (
        {},
        {"padding": "full"},
        ValueError,
        'padding must be "same", "valid", one integer or two, not \'full\'',
    ),
    "same": (
        {},
        {"padding": "same", "stride": 2},
        ValueError,
        'padding must not be "same" with stride (2, 2), only with stride 1',
    ),
    "complex x": ({"x": np.ones((5, 9, 11), complex)}, {}, TypeError, "x must be an integer type, float16"),
    "ragged w": ({"w": [[1], [1, 2]]}, {}, ValueError, "w must be an array or become one, not list: its rows differ in length"),
    "masked x": ({"x": np.ma.ones((5, 9, 11))}, {}, TypeError, "x must be a NumPy array, not numpy.ma"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["conv2d", "conv2d_elu"])
def test_faults(fault, name):
    changes, options, error, message = FAULTS[fault]
    out = np.full(PLAIN.y, 77, np.float32)
    with pytest.raises(error) as caught:
        getattr(fastrelu, name)(*operands(**changes).values(), **options, out=out)
    assert str(caught.value).startswith(f"{name}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (out == 77).all()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((2, 7, 9, 10)), ValueError, "out must have shape (2, 7, 9, 11), not (2, 7, 9, 10)"),
        (np.zeros(PLAIN.y, np.int32), TypeError, "out must have a type that takes float32"),
        ([1.0], TypeError, "out must be an array, not list"),
    ],
    ids=["shape", "type", "list"],
)
def test_unfit_out(out, error, message):
    with pytest.raises(error) as caught:
        fastrelu.conv2d(*PLAIN.operands(), **PLAIN.options, out=out)
    assert message in str(caught.value)


def test_read_only_out():
    out = np.zeros(PLAIN.y, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fastrelu.conv2d(*PLAIN.operands(), **PLAIN.options, out=out)


def test_alpha_is_one_number():
    with pytest.raises(ValueError, match="alpha must be a single value, not of shape"):
        fastrelu.conv2d_elu(*PLAIN.operands(), alpha=[1.0, 2.0])
    with pytest.raises(OverflowError, match="alpha must be within the range of float64"):
        fastrelu.conv2d_elu(*PLAIN.operands(), alpha=10**400)
    with pytest.raises(TypeError, match="alpha must be a number, not str"):
        fastrelu.conv2d_elu(*PLAIN.operands(), alpha="a")


def test_numbers_that_make_no_difference_may_be_huge():
    x, w, b = PLAIN.operands()
    assert_array_equal(fastrelu.conv2d(x, w, b, stride=10**30), fastrelu.conv2d(x, w, b, stride=9))
    one = w[:, :, :1, :1]
    assert_array_equal(fastrelu.conv2d(x, one, b, dilation=10**30), fastrelu.conv2d(x, one, b))
    dy = np.ones((2, 7, 1, 1), np.float32)
    for huge, large in zip(
        fastrelu.conv2d_backward(dy, x, w, stride=10**30), fastrelu.conv2d_backward(dy, x, w, stride=15), strict=True
    ):
        assert_array_equal(bits(huge), bits(large))


def test_halves_of_two_kinds():
    x, w, b = PLAIN.operands("float16")
    with pytest.raises(TypeError, match="w must have a type that has a common DType with float16 of x, not bfloat16"):
        fastrelu.conv2d(x, w.astype(BFLOAT16), b)


def test_against_torch():
    torch = pytest.importorskip("torch")
    case = Case((2, 6, 12, 13), 8, (3, 2), (2, 1), (1, 0), (1, 3), 2)
    x, w, b = case.operands("float64")
    expected = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, w, b)), **case.options).numpy()
    assert_allclose(fastrelu.conv2d(x, w, b, **case.options), expected, rtol=0, atol=1e-13)


def test_sums_are_rounded_once():
    # The sum of float16 products in float32, which float16 sums would not give.
    x, w = np.full((1, 64, 1, 1), 0.1, np.float16), np.full((1, 64, 1, 1), 0.1, np.float16)
    case = Case(x.shape, 1, (1, 1))
    assert fastrelu.conv2d(x, w)[0, 0, 0, 0] == sums(case, x, w, None).astype(np.float16)[0, 0, 0, 0]


WARM = """
import numpy as np, fastrelu
fastrelu.warmup(["conv2d_relu", "conv2d_relu_backward"], "float32")
before = fastrelu.cache_info()
x, w = np.ones((2, 3, 5, 6), np.float32), np.ones((4, 3, 2, 2), np.float32)
y = fastrelu.conv2d_relu(x, w)
fastrelu.conv2d_relu_backward(y, y, x, w)
fastrelu.conv2d_relu_backward(y, y, x, w, out=(x.copy(), w.copy(), np.ones(4, np.float32)), accumulate=("dx", "dw", "db"))
after = fastrelu.cache_info()
print(before.loaded + before.compiled, after.loaded + after.compiled)
"""


def test_warmup_loads_all_that_a_call_needs():
    before, after = run(WARM).split()
    assert before == after
