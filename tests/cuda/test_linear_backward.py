"""Backward passes of fused layers on a device: the bits of the CPU for every gradient, subset, layout and share of rows."""

import itertools

import numpy as np
import pytest

import fastrelu
from fastrelu.cuda import launch
from fastrelu.cuda.kernels.linear import Operand, Result, product
from tests.cuda.emulator import EmulatedDriver
from tests.cuda.machine_code import assemble
from tests.cuda.test_linear import BY_TERMS, LARGE, SMALL, WIDE, assert_bits, normal, sent
from tests.cuda.values import nightly

RELU = "linear_relu_backward"
GRADIENTS = ("dx", "dw", "db")
SUBSETS = [subset for count in (1, 2, 3) for subset in itertools.combinations(GRADIENTS, count)]


def problem(m, k, n, dtype="float32"):
    """dy, y, x and w."""
    y = np.maximum(normal(dtype, m, n, seed=1), 0).astype(normal(dtype, 1).dtype)
    return [normal(dtype, m, n), y, normal(dtype, m, k, seed=2), normal(dtype, k, n, seed=3)]


def assert_gradients(result, expected, message=""):
    assert type(result) is tuple
    for name, a, b in zip(GRADIENTS, result, expected, strict=True):
        assert (a is None) == (b is None), (name, message)
        if b is not None:
            assert_bits(a, b, (name, message))


def check(device, name, *operands, message="", **keywords):
    function = getattr(fastrelu, name)
    assert_gradients(function(*sent(device, *operands), **keywords), function(*operands, **keywords), message)


def bits_of_positive(y):
    return np.packbits(~(y <= 0), axis=-1, bitorder="little")


@pytest.mark.parametrize("size", [33, *nightly(1, 32, 65)])
def test_every_edge_of_small_tiles(device, planned, size):
    planned(SMALL)
    for first, second in [(5, 17), (33, 4), (1, 34)]:
        for shape in [(size, first, second), (first, size, second), (first, second, size)]:
            check(device, RELU, *problem(*shape), message=shape)


@pytest.fixture
def hopper(monkeypatch):
    """A device that has room for y beside dy in shared memory."""
    monkeypatch.setattr(launch, "driver", EmulatedDriver((9, 0)))
    return launch.driver


@pytest.mark.nightly
def test_edges_of_large_tiles(hopper, planned):
    planned(LARGE)
    for shape in [(130, 35, 132), (17, 129, 4)]:
        check(hopper, RELU, *problem(*shape), message=shape)


@pytest.mark.parametrize("n", [31, *nightly(4, 64)])
def test_y_beside_dy_in_shared_memory(hopper, planned, n):
    planned(SMALL)
    for m, k in [(1, 5), (33, 17), (259, 2)]:
        check(hopper, RELU, *problem(m, k, n), message=(m, k))
        check(hopper, RELU, *map(np.asfortranarray, problem(m, k, n)), message=(m, k, "F"))


@pytest.mark.parametrize("m", [0, 257, *nightly(1, 255, 256, 513)])
def test_blocks_of_rows(device, planned, m):
    for per_part in (9, 1, 2):
        planned(SMALL, per_part)
        check(device, RELU, *problem(m, 9, 12), message=per_part)


def test_blocks_are_added_in_order(device, planned):
    # 1 is half a unit in the last place of 2**24: alone each 1 is lost, but a block of them is not.
    one, large = np.ones((515, 4), np.float32), np.ones((515, 4), np.float32)
    large[0] = 2.0**24
    for per_part in (1, 3):
        planned(SMALL, per_part)
        _, dw, db = fastrelu.linear_backward(*sent(device, large, one), None, wanted=("dw", "db"))
        assert_bits(dw, np.full((4, 4), np.float32(2.0**24 + 256 + 4)))
        assert_bits(db, np.full(4, np.float32(2.0**24 + 256 + 4)))


def test_more_blocks_of_rows_than_are_read_at_a_time(device, planned):
    planned(SMALL, 1)
    check(device, "linear_backward", *problem(256 * 18 + 3, 1, 4)[::2], normal("float32", 1, 4), wanted=("dw", "db"))


@pytest.mark.parametrize(
    "name",
    ["linear", "linear_elu", *nightly("linear_leaky_relu", "linear_sigmoid", "linear_tanh", "linear_softplus")],
)
def test_derivatives(device, planned, name):
    planned(SMALL)
    dy, y, x, w = problem(5, 9, 12)
    alpha = (0.3,) if name in ("linear_leaky_relu", "linear_elu") else ()
    operands = (dy, x, w) if name == "linear" else (dy, np.abs(y) / 4, x, w, *alpha)
    check(device, f"{name}_backward", *operands, wanted=("dw", "db"))


@pytest.mark.nightly
def test_parameter_on_the_device(device, planned):
    planned(SMALL)
    check(device, "linear_leaky_relu_backward", *problem(5, 9, 12), np.array(0.3, np.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", *nightly("float16", "float64")])
def test_types(device, planned, dtype):
    planned(SMALL)
    check(device, RELU, *problem(259, 19, 36, dtype))


def test_where_the_gradient_passes(device, planned):
    planned(SMALL)
    dy, y, x, w = problem(4, 3, 5)
    y[0] = 0, -0.0, np.nan, np.inf, -1
    dy[1, 2] = np.nan
    check(device, RELU, dy, y, x, w)
    check(device, RELU, dy, bits_of_positive(y), x, w)


@pytest.mark.parametrize("n", [37, *nightly(1, 8)])
def test_bits_in_place_of_y(device, planned, n):
    planned(SMALL)
    dy, y, x, w = problem(21, 9, n)
    check(device, RELU, dy, bits_of_positive(y), x, w)


def test_subset_has_the_bits_of_all(device, planned):
    planned(SMALL)
    dy, y, x, w = problem(37, 9, 12)
    for wanted in SUBSETS:
        needed = x if "dw" in wanted else None, w if "dx" in wanted else None
        check(device, RELU, dy, y, *needed, wanted=wanted, message=wanted)


def test_accumulate(device, planned):
    dy, y, x, w = problem(300, 9, 12)
    old = normal("float32", 300, 9, seed=7), normal("float32", 9, 12, seed=8), normal("float32", 12, seed=9)
    expected = fastrelu.linear_relu_backward(dy, y, x, w, out=tuple(a.copy() for a in old), accumulate=GRADIENTS)
    for per_part in (9, 1):
        planned(SMALL, per_part)
        out = tuple(sent(device, *old))
        result = fastrelu.linear_relu_backward(*sent(device, dy, y, x, w), out=out, accumulate=GRADIENTS)
        assert all(a is b for a, b in zip(result, out, strict=True))
        assert_gradients(result, expected)


def test_outputs_of_any_layout(device, planned):
    planned(SMALL)
    operands = problem(37, 9, 12)
    expected = fastrelu.linear_relu_backward(*operands)
    whole = device.array(np.full((9, 40), 77, np.float32)), device.array(np.full((12, 18), 77, np.float32))
    out = whole[0][:, 3:].T, whole[1][:, ::2].T, None
    assert_gradients(fastrelu.linear_relu_backward(*sent(device, *operands), out=out), expected)
    assert (whole[0].host[:, :3] == 77).all()
    assert (whole[1].host[:, 1::2] == 77).all()


def test_outputs_are_inputs(device, planned):
    planned(SMALL)
    operands = problem(12, 12, 12)
    expected = fastrelu.linear_relu_backward(*operands)
    dy, y, x, w = sent(device, *operands)
    assert_gradients(fastrelu.linear_relu_backward(dy, y, x, w, out=(x, w, None)), expected)


def test_output_of_another_float(device, planned):
    planned(SMALL)
    operands = problem(5, 9, 12)
    expected = fastrelu.linear_relu_backward(*operands)
    out = device.empty((5, 9), "float16"), device.empty((9, 12), "float64"), None
    result = fastrelu.linear_relu_backward(*sent(device, *operands), out=out)
    kinds = (np.float16, np.float64, np.float32)
    assert_gradients(result, [a.astype(kind) for a, kind in zip(expected, kinds, strict=True)])


def test_layouts_of_operands(device, planned):
    planned(SMALL)
    dy, y, x, w = problem(37, 9, 12)
    expected = fastrelu.linear_relu_backward(dy, y, x, w)
    assert_gradients(fastrelu.linear_relu_backward(*sent(device, *map(np.asfortranarray, (dy, y, x, w)))), expected)
    turned = [device.array(a[::-1].copy())[::-1] for a in (dy, y, x, w)]
    assert_gradients(fastrelu.linear_relu_backward(*turned), expected)


def test_batch_axes_are_rows(device, planned):
    planned(SMALL)
    dy, y, x, w = problem(24, 9, 12)
    rows = [a.reshape(2, 3, 4, -1) for a in (dy, y, x)]
    check(device, RELU, *rows, w)
    check(device, RELU, *(a[1, 2, 3] for a in rows), w)
    # In an order of memory in which they are not one axis.
    turned = [device.array(a.transpose(2, 0, 1, 3).copy()) for a in rows]
    for a in turned:
        a.host = a.host.transpose(1, 2, 0, 3)
    out = device.array(np.zeros((4, 2, 3, 9), np.float32))
    out.host = out.host.transpose(1, 2, 0, 3)
    result = fastrelu.linear_relu_backward(*turned, device.array(w), out=(out, None, None))
    assert_gradients(result, fastrelu.linear_relu_backward(*rows, w))


def test_batch_axes_of_w(device, planned):
    planned(SMALL)
    dy, z, x, w = (normal("float32", *s) for s in [(3, 1, 6, 8), (2, 6, 8), (2, 6, 5), (3, 2, 5, 8)])
    for wanted in (GRADIENTS, ("dw",), ("dx", "db")):
        check(device, RELU, dy, np.maximum(z, 0), x, w, wanted=wanted, message=wanted)


def test_shapes_that_do_not_fit(device):
    dy, y, x, w = sent(device, *problem(5, 7, 4))
    with pytest.raises(ValueError, match="linear_relu_backward: x must have shape"):
        fastrelu.linear_relu_backward(dy, y, w, w)
    with pytest.raises(ValueError, match=r"linear_relu_backward: out for dx must have shape \(5, 7\)"):
        fastrelu.linear_relu_backward(dy, y, x, w, out=(device.empty((7, 5), np.float32), None, None))
    with pytest.raises(TypeError, match="linear_relu_backward: axes is not available"):
        fastrelu.linear_relu_backward(dy, y, x, w, axes=[])


STAGED = {"of": "float32", "staged": True}
GRADIENT_KINDS = {
    "dx": (Operand("float32", True, False, "relu_backward", **STAGED), BY_TERMS, 0.8),
    "dw": (WIDE, Operand("float32", False, True, "relu_backward", **STAGED), 0.84),
    "dx of bits": (Operand("float32", True, False, "relu_backward", "bits along terms"), BY_TERMS, 0.77),
    "dw of bits": (WIDE, Operand("float32", False, False, "relu_backward", "bits along rows"), 0.79),
}


@pytest.mark.parametrize("kind", ["dw", *nightly("dx", "dx of bits", "dw of bits")])
def test_machine_code(kind):
    x, w, share = GRADIENT_KINDS[kind]
    target = (9, 0, "a")
    ptx, _ = product(LARGE, x, w, "", Result("float32"), False).ptx(target)
    code = assemble(ptx, target)
    assert code.registers <= 128
    assert code.spilled == 0
    assert code.count("LDL", "STL") == 0
    assert ".f64" not in ptx
    assert code.main_loop("FFMA").share("FFMA") >= share


def test_gradient_of_a_sum_repeats_its_rows(device, planned):
    planned(SMALL)
    dy = device.array(np.ones((1, 12), np.float32))
    dy.host = np.broadcast_to(dy.host, (33, 12))
    _, y, x, w = problem(33, 9, 12)
    expected = fastrelu.linear_relu_backward(np.ones((33, 12), np.float32), y, x, w)
    assert_gradients(fastrelu.linear_relu_backward(dy, *sent(device, y, x, w)), expected)
