"""How a convolution is divided: the sizes at which another way through its kernel begins, on bits, and what plans promise."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.native import plan
from fastrelu.native.matrix import Tiling
from tests.convolution_reference import Case, backward, layer
from tests.reference import bits

LONG = plan.MOST_ROWS


def check(case: Case, name: str = "conv2d", dtype: str = "float32", *parameters: float) -> None:
    x, w, b = case.operands(dtype)
    y = getattr(fastrelu, name)(x, w, b, **case.options, **({"alpha": parameters[0]} if parameters else {}))
    assert_array_equal(bits(y), bits(layer(name, case, x, w, b, *parameters)), err_msg=str(case))


def job(case: Case, threads: int = 2, dtype: str = "float32") -> plan.Job:
    """The job of a contiguous x."""
    size = Tiling(dtype, 64).in_size
    taps = [tuple(range(-p, k - p)) for k, p in zip(case.kernel, case.padding, strict=True)]
    axes = [plan.Axis(*each) for each in zip(case.y[2:], case.x[2:], case.stride, taps, strict=True)]
    steps = [tuple(int(s) * size for s in np.cumprod((1, *shape[:0:-1]))[::-1]) for shape in (case.x, case.y)]
    channels, m = case.x[1] // case.groups, case.outputs // case.groups
    return plan.Job(*axes, case.x[0], case.groups, channels, m, steps[0], None, steps[1], Tiling(dtype, 64), threads)


@pytest.mark.parametrize("outputs", [LONG - 2, LONG, LONG + 1, 2 * LONG, 2 * LONG + 3])
def test_more_rows_of_the_weight_than_a_part_has(outputs):
    for threads in (1, 2):
        with fastrelu.num_threads(threads):
            check(Case((1, 2, 1, 9), outputs, (1, 1)), "conv2d_elu", "float32", 0.5)


@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
def test_few_output_channels(outputs):
    # Their sums wait in a place of SUMS_BYTES: images that need less, about as much, and more.
    for width in (5, 64, 65, plan.SUMS_BYTES // 4 // 8 // outputs, plan.SUMS_BYTES // 4 // 3):
        check(Case((2, 2, 6, width), outputs, (3, 3), (1, 1), (1, 1)), "conv2d_elu", "float32", 0.5)


def test_few_output_channels_of_more_terms_than_a_block():
    check(Case((2, 29, 6, 20), 2, (3, 3), (1, 1), (1, 1)))


@pytest.mark.parametrize(
    ("height", "width", "kernel", "dilation"), [(7000, 2, (3, 2), (1, 1)), (1, 21_000, (1, 2), (1, 20_000))]
)
def test_dx_of_few_channels_of_odd_shapes(height, width, kernel, dilation):
    # Narrow rows stand further apart in a band than they are long; long ones have no room in the memory that dz is formed in.
    case = Case((1, 2, height, width), 3, kernel, (1, 1), (1, 0), dilation)
    x, w, b = case.operands()
    y = fastrelu.conv2d_relu(x, w, b, **case.options)
    dy = np.random.default_rng(1).standard_normal(y.shape, np.float32)
    dx = fastrelu.conv2d_relu_backward(dy, y, x, w, **case.options, wanted=("dx",))[0]
    assert_array_equal(bits(dx), bits(backward("conv2d_relu_backward", case, dy, y, x, w)[0]))


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_columns_of_a_phase(stride, dtype):
    for width in (15, 16, 17, 31, 32, 33, 34, 65):
        check(Case((1, 3, 4, width), 4, (2, 3), (1, stride), (1, 2)), "conv2d", dtype)
        check(Case((1, 3, 4, width), 4, (2, 5), (2, stride), (2, 3)), "conv2d", dtype)


def test_pieces_of_a_vector():
    # Rows of 1 to 9 positions: a vector of a panel holds pieces of up to 16 of them.
    for width in range(1, 10):
        check(Case((3, 40, 9, width), 70, (3, 1)))


def test_bands_that_read_nothing_behind_an_image():
    for width in (60, 62, 63, 64, 65, 66):
        check(Case((1, 3, 5, width), 4, (3, 3)))


@pytest.mark.parametrize(
    "case",
    [
        Case((1, 64, 30, 30), 96, (3, 3), (1, 1), (1, 1)),
        Case((40, 8, 7, 7), 600, (3, 3), (1, 1), (1, 1)),
        Case((2, 512, 14, 14), 512, (3, 3), (1, 1), (1, 1)),
        Case((1, 3, 2, 100_000), 4, (2, 3), (1, 2), (0, 1)),
        Case((4, 64, 9, 9), 64, (3, 3), (2, 2), (1, 1), (1, 1), 64),
        Case((3, 2000, 1, 5), 2, (1, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 3, 64])
def test_parts_cover_all_results_and_fit_their_memory(case, threads):
    words, lists = plan.make(job(case, threads), (0,) * 10)
    at = plan.PARTS // 8
    images, rows, columns, row_parts, column_parts, places, channels, channel_parts, groups, parts = map(
        int, words[at : at + 10]
    )
    m, all_groups, _, all_images = map(int, words[plan.SIZES // 8 : plan.SIZES // 8 + 4])
    height, width = map(int, lists[0][4:6])
    assert (m, all_groups, all_images) == (case.outputs // case.groups, case.groups, case.x[0])
    assert height * width == case.y[2] * case.y[3]
    assert row_parts == -(-height // rows)
    assert column_parts == -(-width // columns)
    assert places == -(-all_images // images) * row_parts * column_parts
    assert channel_parts == -(-m // channels)
    assert parts == places * channel_parts * -(-all_groups // groups)
    assert channels <= LONG
    assert images == 1 or (row_parts, column_parts) == (1, 1)
    assert rows == 1 or column_parts == 1
    assert int(words[plan.BAND // 8 + 6]) <= plan.BAND_BYTES
