"""Gradients of convolutions: bits against the reference, values against the definition, and the arguments."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu.kernels.convolution_gradient import BAND_BYTES
from tests.convolution_reference import Case, backward
from tests.reference import bits
from tests.test_conv2d import FUNCTIONS, layouts

RELU = "conv2d_relu_backward"
NAMES = ("dx", "dw", "db")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = (np.dtype(np.float16), BFLOAT16)
PLAIN = Case((2, 5, 9, 11), 7, (3, 3), padding=(1, 1))


def operands(case: Case, dtype="float32", seed: int = 0) -> tuple[np.ndarray, ...]:
    """Reproducible dy, y, x and w; y is as any activation may leave it."""
    x, w, _ = case.operands(dtype, seed)
    rng = np.random.default_rng(seed + 1)
    dy, y = (rng.standard_normal(case.y, np.float32) for _ in range(2))
    y[y < -0.8] = 0
    return dy.astype(dtype), y.astype(dtype), x, w


def call(name: str, given: tuple, options: dict, **keywords) -> tuple:
    dy, y, x, w = given
    between = () if name == "conv2d_backward" else (y,)
    return getattr(fastrelu, name)(dy, *between, x, w, **options, **FUNCTIONS[name.removesuffix("_backward")], **keywords)


def check(case: Case, name: str = RELU, dtype="float32", seed: int = 0, wanted: tuple[str, ...] = NAMES) -> None:
    given = operands(case, dtype, seed)
    alpha = FUNCTIONS[name.removesuffix("_backward")].values()
    expected = backward(name, case, *given, *alpha)
    for gradient, a, b in zip(NAMES, call(name, given, case.options, wanted=wanted), expected, strict=True):
        if gradient in wanted:
            assert a.dtype == given[0].dtype
            assert_array_equal(bits(a), bits(b), err_msg=f"{gradient} {case}")


@pytest.mark.parametrize("kernel", [*itertools.product((1, 2, 3, 5), (1, 2, 3, 4)), (7, 7), (1, 11)])
def test_kernel_sizes(kernel):
    for stride, padding in itertools.product(((1, 1), (2, 2), (3, 1)), ((0, 0), (1, 2))):
        check(Case((2, 3, 8, 12), 7, kernel, stride, padding))


@pytest.mark.parametrize("stride", [(1, 2), (2, 1), (2, 3), (3, 3), (4, 5)])
def test_strides(stride):
    for kernel, dilation in itertools.product(((1, 1), (3, 2), (2, 5)), ((1, 1), (2, 3))):
        check(Case((2, 4, 17, 19), 5, kernel, stride, (1, 2), dilation))


def test_stride_beyond_the_kernel():
    check(Case((2, 3, 20, 23), 4, (2, 1), (7, 5)))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding(padding):
    for kernel, dilation in itertools.product(((2, 2), (4, 3), (1, 6)), ((1, 1), (2, 3))):
        check(Case((2, 3, 9, 16), 4, kernel, (1, 1), padding, dilation))


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


@pytest.mark.parametrize("channels", [2, 15, 16, 17, 64, 65, 130, 300])
def test_depthwise_remainders_of_channels(channels):
    check(Case((2, channels, 5, 6), channels, (3, 2), (1, 1), (1, 1), groups=channels))


@pytest.mark.parametrize("dtype", ["float64", *HALVES], ids=str)
def test_depthwise_types(dtype):
    check(Case((2, 20, 7, 18), 20, (3, 3), (1, 1), (1, 1), groups=20), dtype=dtype)


def test_depthwise_bands_of_many_sizes():
    # Too large for as many channels as a tile is wide, then for a thread's memory at all.
    check(Case((1, 70, 9, 120), 70, (5, 3), (1, 1), (1, 1), groups=70))
    check(Case((1, 18, 60, 300), 18, (3, 15), (1, 1), (1, 1), (20, 10), groups=18))
    check(Case((1, 2, 6100, 62), 2, (2, 2), (1, 1), (0, 0), (6095, 1), groups=2), wanted=("dw", "db"))


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 600])
def test_remainders_of_positions(size):
    for kernel in ((1, 1), (1, 3)):
        check(Case((1, 3, 1, size + kernel[1] - 1), 5, kernel))


@pytest.mark.parametrize("outputs", [1, 2, 5, 15, 16, 17, 64, 65, 80, 257])
def test_remainders_of_output_channels(outputs):
    check(Case((2, 3, 5, 7), outputs, (3, 2)))


def test_one_channel():
    check(Case((3, 1, 12, 13), 1, (5, 4), (1, 1), (2, 2)))


@pytest.mark.parametrize("channels", [21, 22, 43, 65])
def test_remainders_of_rows_of_patches(channels):
    check(Case((2, channels, 4, 5), 7, (3, 3)))
    check(Case((1, 9 * channels, 4, 5), 3, (1, 1)))


def test_images_smaller_than_a_vector():
    # A block of positions spans many images.
    check(Case((70, 3, 2, 3), 9, (2, 2), (1, 1), (1, 1)))
    check(Case((300, 5, 1, 1), 9, (1, 1)))


def test_blocks_that_end_within_an_image():
    check(Case((5, 3, 13, 14), 9, (3, 3), (1, 1), (1, 1)))


@pytest.mark.parametrize("width", [63, 64, 65, 255, 256, 257, 1000])
def test_long_rows(width):
    check(Case((2, 2, 4, width), 3, (3, 3), (1, 1), (1, 1)))
    check(Case((1, 2, 7, width), 3, (3, 2), (2, 3), (1, 1), (2, 5)))


def test_band_that_exceeds_a_threads_memory():
    assert BAND_BYTES < 1 << 20
    check(Case((1, 1, 5, 41000), 2, (4, 2), (1, 1), (0, 0), (1, 40000)), wanted=("dw", "db"))
    check(Case((1, 2, 6100, 62), 2, (2, 2), (1, 1), (0, 0), (6095, 1)), wanted=("dw", "db"))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((f"{name}_backward", "float32") for name in FUNCTIONS),
        *((RELU, dtype) for dtype in ("float64", *HALVES)),
        *(  # kernels are compiled for every activation and type
            pytest.param(f"{name}_backward", dtype, marks=pytest.mark.nightly)
            for name in FUNCTIONS
            for dtype in ("float64", *HALVES)
            if name != "conv2d_relu"
        ),
    ],
    ids=str,
)
def test_types_and_activations(name, dtype):
    check(PLAIN, name, dtype)


def direct(case: Case, dz: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """The gradients by their definition, tap by tap."""
    (top, left, bottom, right), (sh, sw), (dh, dw), (oh, ow) = case.pads, case.stride, case.dilation, case.y[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    of_x, of_w = np.zeros_like(padded), np.zeros_like(w)
    for o, i, j in itertools.product(range(len(w)), *map(range, case.kernel)):
        first = o // (len(w) // case.groups) * w.shape[1]
        seen = np.s_[
            :, first : first + w.shape[1], i * dh : i * dh + sh * (oh - 1) + 1 : sh, j * dw : j * dw + sw * (ow - 1) + 1 : sw
        ]
        of_w[o, :, i, j] = (padded[seen] * dz[:, o, None]).sum((0, 2, 3))
        of_x[seen] += dz[:, o, None] * w[o, :, i, j, None, None]
    return of_x[:, :, top : top + case.x[2], left : left + case.x[3]], of_w, dz.sum((0, 2, 3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_definition(dtype):
    case = Case((2, 6, 10, 11), 9, (3, 4), (2, 1), (1, 2), (1, 2), 3)
    dy, y, x, w = operands(case, dtype)
    exact = [dy.astype(float) * (y > 0), x.astype(float), w.astype(float)]
    scales = direct(case, *map(abs, exact))
    # gamma of 160 positions, the longest of the sums
    bound = 162 * np.finfo(dtype).eps / 2
    for a, b, scale in zip(call(RELU, (dy, y, x, w), case.options), direct(case, *exact), scales, strict=True):
        assert (abs(a - b) <= bound * scale).all()


@pytest.mark.parametrize(
    "name",
    [
        "conv2d_elu",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in FUNCTIONS if name not in ("conv2d_elu", "conv2d_relu")),
    ],
)
def test_finite_differences(name):
    case, step = Case((1, 2, 5, 6), 4, (2, 3), (2, 1), (1, 1), groups=2), 1e-6
    x, w, b = case.operands("float64")
    parameters = FUNCTIONS[name]

    def value(*arrays: np.ndarray) -> float:
        return float((getattr(fastrelu, name)(*arrays, **case.options, **parameters) * dy).sum())

    y = getattr(fastrelu, name)(x, w, b, **case.options, **parameters)
    dy = np.random.default_rng(5).standard_normal(y.shape)
    gradients = call(f"{name}_backward", (dy, y, x, w), case.options)
    for i, (given, gradient) in enumerate(zip((x, w, b), gradients, strict=True)):
        for index in list(np.ndindex(given.shape))[::3]:
            values = []
            for sign in (1, -1):
                moved = [x.copy(), w.copy(), b.copy()]
                moved[i][index] += sign * step
                values.append(value(*moved))
            assert_allclose(gradient[index], (values[0] - values[1]) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads(threads):
    cases = (
        Case((9, 16, 14, 15), 40, (3, 3), (1, 1), (1, 1)),  # blocks of positions are shared out
        Case((2, 64, 20, 20), 33, (1, 1)),
        Case((1, 60, 14, 14), 300, (3, 3)),  # rows and columns of dw are
        Case((1, 1, 140, 140), 4, (3, 3)),  # more blocks than wait to be added
        Case((40, 2, 9, 40), 6, (3, 3), groups=2),
        Case((5, 40, 15, 16), 40, (3, 3), groups=40),
    )
    with fastrelu.num_threads(threads):
        for case in cases:
            check(case)


def test_batch_in_pieces_of_whole_blocks():
    case = Case((6, 3, 16, 16), 4, (1, 1))  # 256 positions an image
    dy, y, x, w = operands(case)
    dx, dw, db = call(RELU, (dy, y, x, w), {})
    dw_sum, db_sum = np.zeros_like(dw), np.zeros_like(db)
    for i in range(6):
        part = call(RELU, (dy[i], y[i], x[i], w), {}, out=(None, dw_sum, db_sum), accumulate=("dw", "db"))
        assert_array_equal(bits(part[0]), bits(dx[i]))
    assert_array_equal(bits(dw_sum), bits(dw))
    assert_array_equal(bits(db_sum), bits(db))


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_layouts(kernel):
    case = Case((3, 18, 7, 8), 9, kernel)
    given = operands(case)
    expected = [bits(a) for a in backward(RELU, case, *given)]
    for i, layout in itertools.product(range(4), layouts(given[0])):
        changed = (*given[:i], layouts(given[i])[layout], *given[i + 1 :])
        for gradient, a, b in zip(NAMES, call(RELU, changed, {}), expected, strict=True):
            assert_array_equal(bits(a), b, err_msg=f"{gradient} {('dy', 'y', 'x', 'w')[i]} {layout}")


SUBSETS = [names for count in (1, 2) for names in itertools.combinations(NAMES, count)]


@pytest.mark.parametrize("wanted", SUBSETS)
def test_wanted(wanted):
    given = operands(PLAIN)
    for name in (RELU, "conv2d_backward"):
        every = call(name, given, PLAIN.options)
        some = call(name, given, PLAIN.options, wanted=wanted)
        for gradient, a, b in zip(NAMES, some, every, strict=True):
            if gradient in wanted:
                assert_array_equal(bits(a), bits(b))
            else:
                assert a is None


def test_db_needs_neither_x_nor_w():
    dy, y, x, w = operands(PLAIN)
    expected = call(RELU, (dy, y, x, w), PLAIN.options)[2]
    dx, dw, db = fastrelu.conv2d_relu_backward(dy, y, None, None, wanted=("db",))
    assert dx is None
    assert dw is None
    assert_array_equal(bits(db), bits(expected))
    assert_array_equal(
        fastrelu.conv2d_backward(dy[0], None, None, wanted=("db",))[2], fastrelu.conv2d_backward(dy[:1], x[:1], w, padding=1)[2]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", *HALVES], ids=str)
@pytest.mark.parametrize("accumulate", [*SUBSETS, NAMES])
def test_accumulate(accumulate, dtype):
    case = Case((2, 5, 9, 11), 7, (3, 3), (2, 1), (1, 1))
    given = operands(case, dtype)
    rng = np.random.default_rng(7)
    out = tuple(rng.standard_normal(s, np.float32).astype(dtype) for s in (case.x, case.w, (case.outputs,)))
    added_to = tuple(a.copy() if name in accumulate else None for name, a in zip(NAMES, out, strict=True))
    expected = backward(RELU, case, *given, added_to=added_to)
    results = call(RELU, given, case.options, out=out, accumulate=accumulate)
    for a, b, place in zip(results, expected, out, strict=True):
        assert a is place
        assert_array_equal(bits(a), bits(b))


def test_accumulate_halves_in_float32():
    given = operands(PLAIN, "float16")
    dw = np.ones(PLAIN.w, np.float32)
    call(RELU, given, PLAIN.options, wanted=("dw",), accumulate=("dw",), out=(None, dw, None))
    expected = backward(RELU, PLAIN, *(a.astype(np.float32) for a in given))[1]
    assert_array_equal(dw, 1 + expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4"])
@pytest.mark.parametrize("accumulate", [(), NAMES])
def test_out_of_any_kind(dtype, accumulate):
    given = operands(PLAIN)
    shapes = PLAIN.x, PLAIN.w, (PLAIN.outputs,)
    plain = [np.ones(s, np.promote_types(dtype, np.float32)) for s in shapes]
    expected = call(RELU, given, PLAIN.options, accumulate=accumulate, out=tuple(plain))
    out = tuple(np.ones((*s[:-1], 2 * s[-1]), dtype)[..., ::-2] for s in shapes)
    results = call(RELU, given, PLAIN.options, accumulate=accumulate, out=out)
    for a, b, place in zip(results, expected, out, strict=True):
        assert a is place
        assert_array_equal(a, b.astype(dtype))


def test_out_overlaps_the_inputs():
    case = Case((2, 4, 6, 7), 4, (3, 3), (1, 1), (1, 1))
    given = operands(case)
    expected = backward(RELU, case, *given)
    for i in range(3):  # dx in place of dy, y or x; dw in place of w
        changed = [a.copy() for a in given]
        results = call(RELU, tuple(changed), case.options, out=(changed[i], changed[3], None))
        assert results[0] is changed[i]
        for a, b in zip(results, expected, strict=True):
            assert_array_equal(bits(a), bits(b))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", range(4))
def test_special_values(which, value):
    case = Case((2, 3, 9, 20), 5, (3, 3), (2, 1), (1, 1))
    given = operands(case)
    given[which][1, 2, 1, 1] = value
    expected = backward(RELU, case, *given)
    for a, b in zip(call(RELU, given, case.options), expected, strict=True):
        assert_array_equal(bits(a), bits(b))


def test_gradient_passes_where_y_is_nan_and_not_at_zero():
    y = np.array([[[np.nan, 0.0, -0.0, 1.0, -1.0]]])
    dx, _, db = fastrelu.conv2d_relu_backward(np.ones_like(y), y, np.ones_like(y), np.ones((1, 1, 1, 1)))
    assert_array_equal(dx, [[[1, 0, 0, 1, 0]]])
    assert_array_equal(db, [2])


def test_padding_takes_part_in_dw():
    dw = fastrelu.conv2d_backward(np.full((1, 1, 3, 3), np.inf), np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)), padding=1)[1]
    assert np.isnan(dw).sum() == 8
    assert dw[0, 0, 1, 1] == np.inf


@pytest.mark.parametrize(
    ("x", "w", "padding"),
    [
        ((0, 3, 5, 6), (4, 3, 2, 2), 0),
        ((2, 3, 5, 6), (0, 3, 2, 2), 0),
        ((2, 0, 5, 6), (4, 0, 2, 2), 0),
        ((2, 3, 0, 6), (4, 3, 2, 2), 1),
    ],
    ids=["no images", "no outputs", "no channels", "no rows"],
)
def test_empty_operands(x, w, padding):
    given, weight = np.ones(x, np.float32), np.ones(w, np.float32)
    y = fastrelu.conv2d_relu(given, weight, padding=padding)
    y[...] = 1
    dy = np.full_like(y, 2)
    dx, dw, db = fastrelu.conv2d_relu_backward(dy, y, given, weight, padding=padding)
    assert_array_equal(dx, np.zeros(x))
    assert_array_equal(dw, np.zeros(w))
    assert_array_equal(db, dy.sum((0, 2, 3)))
    out = np.ones(x, np.float32), np.ones(w, np.float32), np.ones(w[0], np.float32)
    fastrelu.conv2d_relu_backward(dy, y, given, weight, padding=padding, out=out, accumulate=NAMES)
    assert_array_equal(out[0], np.ones(x))
    assert_array_equal(out[1], np.ones(w))
    assert_array_equal(out[2], 1 + db)


def test_one_image():
    dy, y, x, w = operands(PLAIN)
    one = call(RELU, (dy[0], y[0], x[0], w), PLAIN.options)
    expected = call(RELU, (dy[:1], y[:1], x[:1], w), PLAIN.options)
    assert one[0].shape == PLAIN.x[1:]
    for a, b in zip(one, expected, strict=True):
        assert_array_equal(bits(a).ravel(), bits(b).ravel())


def test_types_are_mixed():
    dy, y, x, w = operands(PLAIN)
    assert [g.dtype for g in call(RELU, (dy, y.astype(np.float16), x.astype(np.float64), w), PLAIN.options)] == [np.float64] * 3
    assert fastrelu.conv2d_backward([[[1, 2]]], [[[1, 2]]], [[[[3]]]])[1].dtype == np.float64


FAULTS = {
    "dy": (
        {"dy": np.ones((2, 7, 9, 10))},
        {},
        ValueError,
        "dy must have shape (2, 7, 9, 11) for x of shape (2, 5, 9, 11) and w of",
    ),
    "y": ({"y": np.ones((2, 7, 9, 10))}, {}, ValueError, "y must have shape (2, 7, 9, 11) as dy, not (2, 7, 9, 10)"),
    "w": ({"w": np.ones((7, 4, 3, 3))}, {}, ValueError, "w must have shape (O, C / 1, KH, KW) for x of shape"),
    "no x": ({"x": None}, {}, ValueError, "x is needed for dx, and must not be None"),
    "no w": ({"w": None}, {"wanted": ("dw",)}, ValueError, "w is needed for dw, and must not be None"),
    "no y": (
        {"y": None},
        {},
        TypeError,
        "y must be an integer type, float16, bfloat16, float32 or float64, not object (NoneType)",
    ),
    "wanted": ({}, {"wanted": "dx"}, ValueError, "wanted must be a sequence of names among ('dx', 'dw', 'db'), not 'dx'"),
    "nothing wanted": ({}, {"wanted": ()}, ValueError, "wanted must name at least one of ('dx', 'dw', 'db'), not none"),
    "accumulate": (
        {},
        {"accumulate": ("dx",), "out": (None,) * 3},
        ValueError,
        "accumulate names dx, for which out has no array",
    ),
    "out": ({}, {"out": [None] * 3}, ValueError, "out must be a tuple of three arrays or None, for dx, dw and db, not list"),
    "shape of dw": (
        {},
        {"out": (None, np.ones((7, 5, 3, 2)), None)},
        ValueError,
        "out for dw must have shape (7, 5, 3, 3), not (7, 5",
    ),
    "type of db": ({}, {"out": (None, None, np.ones(7, int))}, TypeError, "out for db must have a type that takes float32"),
    "stride": ({}, {"stride": 0}, ValueError, "stride must be at least 1, not 0"),
    "complex": ({"x": np.ones((2, 5, 9, 11), complex)}, {}, TypeError, "x must be an integer type, float16"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault):
    changes, options, error, message = FAULTS[fault]
    given = dict(zip(("dy", "y", "x", "w"), operands(PLAIN), strict=True)) | changes
    dx = np.full(PLAIN.x, 77, np.float32)
    options = {"padding": 1, **({} if "wanted" in options else {"out": (dx, None, None)}), **options}
    with pytest.raises(error) as caught:
        fastrelu.conv2d_relu_backward(*given.values(), **options)
    assert str(caught.value).startswith("conv2d_relu_backward: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (dx == 77).all()
