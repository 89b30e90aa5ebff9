"""Convolutions on a device: the bits of the CPU, wherever a kernel meets its input, and whatever arrays it is given."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from tests.convolution_reference import Case
from tests.cuda.test_linear import SMALL, assert_bits, normal, sent
from tests.cuda.values import nightly

PLAIN = Case((2, 5, 7, 6), 7, (3, 2), padding=(1, 1))


def check(device: Any, case: Case, name: str = "conv2d_relu", dtype: str = "float32", **keywords: Any) -> None:
    operands, function = case.operands(dtype), getattr(fastrelu, name)
    expected = function(*operands, **case.options, **keywords)
    assert_bits(function(*sent(device, *operands), **case.options, **keywords), expected, case)


# Where a kernel meets its input.


def test_strides_padding_and_dilation(device, planned):
    planned(SMALL)
    for stride, padding, dilation in [((1, 1), (1, 2), (1, 1)), ((2, 3), (0, 1), (2, 1)), ((1, 2), "valid", (1, 2))]:
        check(device, Case((2, 3, 9, 10), 5, (3, 2), stride, padding, dilation))
    check(device, Case((1, 2, 6, 7), 5, (4, 2), (1, 1), "same", (1, 3)))
    check(device, Case((1, 2, 20, 23), 3, (2, 1), (7, 5)))


def test_padding_beyond_the_image(device, planned):
    planned(SMALL)
    check(device, Case((2, 3, 2, 3), 4, (3, 3), (2, 1), (5, 4)))


@pytest.mark.parametrize("groups", [2, *nightly(3, 6)])
def test_groups(device, planned, groups):
    planned(SMALL)
    check(device, Case((2, 6, 5, 6), 12, (3, 3), (1, 1), (1, 1), groups=groups))
    check(device, Case((2, 6, 5, 6), 6, (2, 2), (2, 2), groups=6))


def test_terms_beyond_a_block(device, planned):
    for per_part in (9, 1):
        planned(SMALL, per_part)
        check(device, Case((1, 29, 4, 5), 5, (3, 3), padding=(1, 1)))
        check(device, Case((1, 58, 4, 5), 4, (3, 3), padding=(1, 1), groups=2))


def test_tiles_of_positions_that_span_images(device, planned):
    planned(SMALL)
    check(device, Case((70, 3, 2, 3), 33, (2, 2), (1, 1), (1, 1)))
    check(device, Case((37, 2, 1, 1), 4, (1, 1)))


def test_padding_takes_part_in_the_sum(device):
    x, w = np.ones((1, 1, 3, 3), np.float32), np.full((1, 1, 3, 3), np.inf, np.float32)
    y = fastrelu.conv2d(*sent(device, x, w), padding=1).copy_to_host()[0, 0]
    assert np.isnan(y).sum() == 8
    assert y[1, 1] == np.inf


# Types and activations.

NAMES = ["conv2d", "conv2d_elu", *nightly("conv2d_leaky_relu", "conv2d_sigmoid", "conv2d_tanh", "conv2d_softplus")]


@pytest.mark.parametrize("name", NAMES)
def test_activations(device, planned, name):
    planned(SMALL)
    check(device, PLAIN, name, **({"alpha": 0.3} if name in ("conv2d_elu", "conv2d_leaky_relu") else {}))


@pytest.mark.parametrize("dtype", ["float64", *nightly("float16", "bfloat16")])
def test_types(device, planned, dtype):
    planned(SMALL)
    check(device, PLAIN, dtype=ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


MIXED = ["float16 int8 float32", *nightly("int16 int16 int16", "float32 float64 uint8")]


@pytest.mark.nightly
@pytest.mark.parametrize("dtypes", MIXED)
def test_mixed_types(device, planned, dtypes):
    planned(SMALL)
    operands = [(3 * o).astype(dtype) for o, dtype in zip(PLAIN.operands(), dtypes.split(), strict=True)]
    assert_bits(fastrelu.conv2d(*sent(device, *operands)), fastrelu.conv2d(*operands))


@pytest.mark.nightly
def test_alpha_on_the_device_or_as_another_number(device, planned):
    planned(SMALL)
    x, w, b = PLAIN.operands()
    given = sent(device, x, w, b)
    for alpha in (2, 0.25, np.float16(0.1), np.float64(0.1)):
        assert_bits(fastrelu.conv2d_elu(*given, alpha=alpha), fastrelu.conv2d_elu(x, w, b, alpha=alpha))
    alpha = device.array(np.float64(0.1))
    assert_bits(fastrelu.conv2d_elu(*given, alpha=alpha), fastrelu.conv2d_elu(x, w, b, alpha=0.1))


@pytest.mark.parametrize("dtype", ["float32", *nightly("float16")])
def test_slopes_of_channels(device, planned, dtype):
    planned(SMALL)
    x, w, b = Case((2, 4, 5, 6), 6, (2, 2), groups=2).operands(dtype)
    alpha = np.linspace(-1, 1, 12)[::2]
    on_device = device.array(np.linspace(-1, 1, 12))[::2]
    y = fastrelu.conv2d_prelu(*sent(device, x, w, b), on_device, groups=2)
    assert_bits(y, fastrelu.conv2d_prelu(x, w, b, alpha, groups=2))
    y = fastrelu.conv2d_prelu(*sent(device, x, w), None, -0.5, groups=2)
    assert_bits(y, fastrelu.conv2d_prelu(x, w, None, -0.5, groups=2))


@pytest.mark.nightly
def test_halves_are_rounded_once_behind_the_slopes(device, planned):
    planned(SMALL)
    x, w, b = PLAIN.operands("float16")
    out, expected = (np.empty((2, 7, 5, 5), np.float32) for _ in range(2))
    fastrelu.conv2d_prelu(x, w, b, -0.3, out=expected)
    given = device.array(out)
    assert fastrelu.conv2d_prelu(*sent(device, x, w, b), -0.3, out=given) is given
    assert_bits(given, expected)


# Arrays.


def test_layouts(device, planned):
    planned(SMALL)
    x, w, b = PLAIN.operands()
    expected = fastrelu.conv2d_relu(x, w, b)
    for turned in (
        lambda a: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        lambda a: a[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1],
        np.asfortranarray,
    ):
        # `array` keeps the order of axes; views of a device array have any strides.
        its = [device.array(turned(a)) for a in (x, w)]
        assert_bits(fastrelu.conv2d_relu(*its, device.array(b)), expected)
    spread = [device.array(np.repeat(a, 2, -1))[..., ::2] for a in (x, w, b)]
    assert_bits(fastrelu.conv2d_relu(*spread), expected)
    mirrored = [device.array(a[..., ::-1].copy())[..., ::-1] for a in (x, w, b)]
    assert_bits(fastrelu.conv2d_relu(*mirrored), expected)


def test_operands_that_repeat(device, planned):
    planned(SMALL)
    x, w = device.array(np.full((1, 1, 1, 1), 0.5, np.float32)), device.array(np.full((1, 1, 1, 1), 3, np.float32))
    x.host, w.host = np.broadcast_to(x.host, (2, 3, 5, 6)), np.broadcast_to(w.host, (4, 3, 2, 2))
    assert_bits(fastrelu.conv2d(x, w), np.full((2, 4, 4, 5), 18, np.float32))


def test_one_image(device, planned):
    planned(SMALL)
    x, w, b = PLAIN.operands()
    given = sent(device, x[0], w, b)
    expected = fastrelu.conv2d_relu(x[0], w, b)
    assert_bits(fastrelu.conv2d_relu(*given), expected)
    out = device.array(np.empty_like(expected))
    assert fastrelu.conv2d_relu(*given, out=out) is out
    assert_bits(out, expected)


@pytest.mark.parametrize("x", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty_images(device, planned, x):
    planned(SMALL)
    x, w, b = normal("float32", *x), normal("float32", 4, x[1], 3, 3), normal("float32", 4)
    for operands in ((x, w, b), (x, w)):
        assert_bits(fastrelu.conv2d_elu(*sent(device, *operands), padding=2), fastrelu.conv2d_elu(*operands, padding=2))


def test_no_output_channels(device):
    x, w = normal("float32", 2, 3, 4, 5), normal("float32", 0, 3, 2, 2)
    assert_bits(fastrelu.conv2d(*sent(device, x, w)), fastrelu.conv2d(x, w))


def test_out_of_any_kind(device, planned):
    planned(SMALL)
    x, w, b = PLAIN.operands()
    expected = fastrelu.conv2d_relu(x, w, b)
    given = sent(device, x, w, b)
    for dtype in ("float32", "float64", "float16"):
        wide = device.array(np.full((*expected.shape[:3], 2 * expected.shape[3]), 7, dtype))
        out = wide[..., ::2]
        assert fastrelu.conv2d_relu(*given, out=out) is out
        assert_bits(out, expected.astype(dtype))
        assert_array_equal(wide.host[..., 1::2], 7)
    last = device.array(np.empty((2, 5, 5, 7), np.float32).transpose(0, 3, 1, 2))
    fastrelu.conv2d_relu(*given, out=last)
    assert_bits(last, expected)


def test_out_overlaps_the_inputs(device, planned):
    planned(SMALL)
    case = Case((2, 4, 5, 6), 4, (3, 3), padding=(1, 1))
    x, w, b = case.operands()
    expected = fastrelu.conv2d_relu(x, w, b, padding=1)
    for shift in (0, 1):
        memory = device.array(np.zeros(x.size + 1, np.float32))
        given, out = memory[:-1], memory[shift : x.size + shift]
        given.host, out.host = given.host.reshape(x.shape), out.host.reshape(x.shape)
        given.host[...] = x
        fastrelu.conv2d_relu(given, *sent(device, w, b), padding=1, out=out)
        assert_bits(out, expected)


# What is refused, in the words of the CPU.

FAULTS: dict[str, Callable[[Any], Any]] = {
    "axes of x": lambda a: fastrelu.conv2d(a(2, 2), a(1, 2, 1, 1)),
    "axes of w": lambda a: fastrelu.conv2d(a(2, 2, 3), a(2, 2)),
    "channels": lambda a: fastrelu.conv2d(a(2, 2, 3), a(2, 3, 1, 1)),
    "groups": lambda a: fastrelu.conv2d(a(4, 2, 3), a(3, 2, 1, 1), groups=2),
    "bias": lambda a: fastrelu.conv2d(a(2, 2, 3), a(4, 2, 1, 1), a(1)),
    "span": lambda a: fastrelu.conv2d_relu(a(2, 2, 3), a(4, 2, 3, 1)),
    "stride": lambda a: fastrelu.conv2d(a(2, 2, 3), a(4, 2, 1, 1), stride=0),
    "stride of a float": lambda a: fastrelu.conv2d(a(2, 2, 3), a(4, 2, 1, 1), stride=1.0),
    "padding": lambda a: fastrelu.conv2d(a(2, 2, 3), a(4, 2, 1, 1), padding="full"),
    "same": lambda a: fastrelu.conv2d(a(2, 2, 3), a(4, 2, 1, 1), stride=2, padding="same"),
    "alpha": lambda a: fastrelu.conv2d_elu(a(2, 2, 3), a(4, 2, 1, 1), alpha="a"),
    "slopes": lambda a: fastrelu.conv2d_prelu(a(2, 2, 3), a(4, 2, 1, 1), None, a(3)),
    "shape of out": lambda a: fastrelu.conv2d(a(2, 2, 3), a(4, 2, 1, 1), out=a(4, 2, 2)),
    "type of out": lambda a: fastrelu.conv2d(a(2, 2, 3), a(4, 2, 1, 1), out=a(4, 2, 3, dtype="int8")),
    "dy": lambda a: fastrelu.conv2d_backward(a(4, 2, 2), a(2, 2, 3), a(4, 2, 1, 1)),
    "y": lambda a: fastrelu.conv2d_relu_backward(a(4, 2, 3), a(4, 2), a(2, 2, 3), a(4, 2, 1, 1)),
    "x is missing": lambda a: fastrelu.conv2d_backward(a(4, 2, 3), None, a(4, 2, 1, 1)),
    "nothing wanted": lambda a: fastrelu.conv2d_backward(a(4, 2, 3), None, None, wanted=()),
    "axes of dy": lambda a: fastrelu.conv2d_backward(a(4, 2), None, None, wanted=("db",)),
    "shape of out for dw": lambda a: fastrelu.conv2d_backward(a(4, 2, 3), a(2, 2, 3), a(4, 2, 1, 1), out=(None, a(4, 2), None)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_those_of_the_cpu(device, fault):
    def of_ones(*shape: int, dtype: str = "float32") -> np.ndarray:
        return np.ones(shape, dtype)

    with pytest.raises((TypeError, ValueError)) as on_host:
        FAULTS[fault](of_ones)
    with pytest.raises(on_host.type) as on_device:
        FAULTS[fault](lambda *shape, **kind: device.array(of_ones(*shape, **kind)))
    assert str(on_device.value) == str(on_host.value)


def test_option_that_only_equals_one_that_came_before(device):
    x, w = sent(device, np.ones((1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32))
    fastrelu.conv2d(x, w, stride=1)
    fastrelu.conv2d(x, w, stride=np.array([1, 1]), dilation=[1, 1])
    for stride in (1.0, (1, 1.0)):
        with pytest.raises(TypeError, match=r"^conv2d: stride must be an integer"):
            fastrelu.conv2d(x, w, stride=stride)


def test_what_only_a_device_can_be_given(device):
    x, w = sent(device, np.ones((1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32))
    repeated = device.array(np.ones((1, 2, 1), np.float32))
    repeated.host = np.lib.stride_tricks.as_strided(repeated.host, (1, 2, 2), (8, 4, 0))
    with pytest.raises(ValueError, match=r"^conv2d: out must have an element of its own in every place$"):
        fastrelu.conv2d(x, w, out=repeated)
    frozen = device.array(np.ones((1, 2, 2), np.float32), writable=False)
    with pytest.raises(ValueError, match=r"^conv2d: out is read-only, and must be writable$"):
        fastrelu.conv2d(x, w, out=frozen)
    unaligned = device.array(np.zeros(40, np.uint8))
    unaligned.host = np.lib.stride_tricks.as_strided(unaligned.host[1:37].view("f4"), (1, 3, 3), (36, 12, 4))
    with pytest.raises(ValueError, match=r"^conv2d: x must have elements that are aligned to their size$"):
        fastrelu.conv2d(unaligned, w)
    with pytest.raises(ValueError, match=r"^conv2d_elu: alpha must be a single value, not of shape \(3,\)$"):
        fastrelu.conv2d_elu(x, w, alpha=device.array(np.ones(3)))
    with pytest.raises(ValueError, match=r"^conv2d: x must have shape \(N, C, H, W\) or \(C, H, W\), not \(\)$"):
        fastrelu.conv2d(1.0, w)


# NumPy arrays.


def test_numpy_arrays_there_and_back(device, planned):
    planned(SMALL)
    x, w, b = PLAIN.operands()
    expected = fastrelu.conv2d_relu(x, w, b)
    launches = len(device.launches)
    y = fastrelu.conv2d_relu(x, w, b, device="cuda")
    assert len(device.launches) > launches
    assert type(y) is np.ndarray
    assert_array_equal(y, expected)
    with fastrelu.use("cuda"):
        launches = len(device.launches)
        out = np.empty(expected.shape)
        assert fastrelu.conv2d_relu(x, w, b, out=out) is out
        assert len(device.launches) > launches
        assert_array_equal(out, expected)
        launches = len(device.launches)
        assert_array_equal(fastrelu.conv2d_relu(x, w, b, device="cpu"), expected)
        assert len(device.launches) == launches
    fastrelu.conv2d_relu(x, w, b)
    assert len(device.launches) == launches
