"""Fused layers on a device: the bits of the CPU, whatever the tile, the layout and the share of terms."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.cuda import products
from fastrelu.cuda.kernels.linear import BlockTile, Operand, Result, product
from tests.cuda.machine_code import assemble
from tests.cuda.values import nightly

LARGE = BlockTile(128, 128, 16, 8, 8, 2)
MIDDLE = BlockTile(64, 64, 16, 4, 4, 3)
SMALL = BlockTile(32, 32, 16, 4, 4, 8)
TARGETS = [(8, 0), (9, 0, "a")]
BY_TERMS, BY_ROWS, WIDE = Operand("float32"), Operand("float32", False), Operand("float32", False, True)


def normal(dtype, *shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def problem(m, k, n, dtype="float32"):
    return normal(dtype, m, k, seed=m), normal(dtype, k, n, seed=n), normal(dtype, n, seed=k)


def bits(y):
    y = np.array(y, order="C")
    y[y != y] = np.nan
    return y.view(f"u{y.itemsize}")


def assert_bits(result, expected, message=""):
    host = result.host if hasattr(result, "host") else result.copy_to_host()
    assert host.dtype == expected.dtype, message
    assert host.shape == expected.shape, message
    assert_array_equal(bits(host), bits(expected), err_msg=str(message))


def sent(device, *operands):
    return [device.array(o) if isinstance(o, np.ndarray) else o for o in operands]


def check(device, name, *operands, message="", **keywords):
    """The same call on NumPy arrays and on the device."""
    function = getattr(fastrelu, name)
    assert_bits(function(*sent(device, *operands), **keywords), function(*operands, **keywords), message)


# Sizes.


@pytest.mark.parametrize("n", [1, 33, *nightly(31, 32, 36, 65)])
def test_every_edge_of_small_tiles(device, planned, n):
    planned(SMALL)
    for m, k in [(1, 1), (31, 15), (32, 16), (33, 17), (3, 31), (65, 32), (5, 47), (64, 3)]:
        check(device, "linear_relu", *problem(m, k, n), message=(m, k))


@pytest.mark.parametrize("tile", [LARGE, MIDDLE], ids=["large", "middle"])
def test_edges_of_large_tiles(device, planned, tile):
    planned(tile)
    for m, k, n in [(129, 35, 132), (127, 17, 4), (1, 16, 260), (130, 1, 129)]:
        check(device, "linear_relu", *problem(m, k, n), message=(m, k, n))


@pytest.mark.parametrize("k", [0, 257, 513, *nightly(1, 255, 256, 270)])
def test_blocks_of_terms(device, planned, k):
    operands = problem(5, k, 36)
    for tile, per_part in [(SMALL, 9), (SMALL, 1), (SMALL, 2)]:
        planned(tile, per_part)
        check(device, "linear_relu", *operands, message=per_part)


def test_blocks_are_added_in_order(device, planned):
    # 1 is half a unit in the last place of 2**24: alone each 1 is lost, but a block of them is not.
    x, w = np.ones((1, 515), np.float32), np.ones((515, 4), np.float32)
    w[0] = 2.0**24
    for per_part in (1, 2, 3):
        planned(SMALL, per_part)
        y = fastrelu.linear(*sent(device, x, w))
        assert_array_equal(y.host if hasattr(y, "host") else y.copy_to_host(), np.full((1, 4), 2.0**24 + 256 + 4))


def test_more_tiles_than_a_band_has_rows(device, planned):
    planned(SMALL)
    check(device, "linear_relu", *problem(9 * 32 + 1, 8, 68))


def test_sign_of_zero_behind_the_last_term(device, planned):
    # -0 stays -0 as long as nothing is added, and a product of zeros behind the last term would be.
    planned(SMALL)
    x, w, b = np.full((2, 5), -0.0, np.float32), np.zeros((5, 4), np.float32), np.full(4, -0.0, np.float32)
    check(device, "linear", x, w, b)
    check(device, "linear", -x, -w, b)


def test_special_stays_in_its_row_and_column(device, planned):
    planned(SMALL)
    x, w, b = problem(7, 40, 9)
    x[3, 5], w[7, 2] = np.nan, np.inf
    check(device, "linear_relu", x, w, b)


# Layouts.


def layouts(a):
    """The array that is sent, and the view of it that is the operand."""
    wide = np.full((a.shape[0], 2 * a.shape[1]), 77, a.dtype)
    wide[:, ::2] = a
    return {
        "C": (a, np.s_[:]),
        "F": (np.asfortranarray(a), np.s_[:]),
        "reversed": (a[::-1, ::-1].copy(), np.s_[::-1, ::-1]),
        "spread": (wide, np.s_[:, ::2]),
    }


def test_layouts_of_operands(device, planned):
    planned(SMALL)
    x, w, b = problem(37, 21, 44)
    expected = fastrelu.linear_relu(x, w, b)
    for (i, (a, view)), (j, (c, its_view)) in itertools.product(layouts(x).items(), layouts(w).items()):
        result = fastrelu.linear_relu(device.array(a)[view], device.array(c)[its_view], device.array(b))
        assert_bits(result, expected, (i, j))


def test_repeated_rows(device, planned):
    planned(SMALL)
    x, w, b = problem(1, 21, 44)
    row = device.array(x)
    row.host = np.broadcast_to(row.host, (33, 21))
    assert_bits(fastrelu.linear_relu(row, *sent(device, w, b)), fastrelu.linear_relu(np.broadcast_to(x, (33, 21)), w, b))


@pytest.mark.parametrize(
    ("x", "w", "b"),
    [
        ((7,), (7, 4), (4,)),
        ((2, 3, 5, 7), (7, 4), (4,)),
        ((3, 5, 7), (3, 1, 7, 4), (3, 1, 4)),
        ((5, 7), (3, 1, 7, 4), (5, 4)),
        ((0, 7), (7, 4), (4,)),
        ((3, 7), (7, 0), (0,)),
    ],
)
def test_batch_axes(device, planned, x, w, b):
    planned(SMALL)
    check(device, "linear_relu", normal("float32", *x), normal("float32", *w), normal("float32", *b))


def test_batch_axes_in_any_order_of_memory(device, planned):
    planned(SMALL)
    x, w, b = normal("float32", 3, 4, 5, 8), normal("float32", 8, 4), normal("float32", 4)
    expected = fastrelu.linear_relu(x.transpose(2, 0, 1, 3), w, b)
    held = device.array(x)
    held.host = held.host.transpose(2, 0, 1, 3)
    assert_bits(fastrelu.linear_relu(held, *sent(device, w, b)), expected)


# Outputs.


def test_output_of_any_layout(device, planned):
    planned(SMALL)
    x, w, b = problem(37, 21, 44)
    expected = fastrelu.linear_relu(x, w, b)
    for whole, view in [((37, 50), np.s_[:, 3:47]), ((37, 88), np.s_[:, ::2]), ((40, 44), np.s_[39:2:-1])]:
        out = device.array(np.full(whole, 77, np.float32))
        result = out[view]
        assert fastrelu.linear_relu(*sent(device, x, w, b), out=result) is result
        assert_bits(result, expected)
        assert (out.host == 77).sum() == out.host.size - expected.size
    turned = device.array(np.zeros((44, 37), np.float32))
    assert_bits(fastrelu.linear_relu(*sent(device, x, w, b), out=turned.T), expected)


def test_output_overlaps_an_input(device, planned):
    planned(SMALL)
    x, w, b = problem(36, 36, 36)
    expected = fastrelu.linear_relu(x, w, b)
    for which in (0, 1):
        operands = sent(device, x, w, b)
        assert_bits(fastrelu.linear_relu(*operands, out=operands[which]), expected)


def test_output_of_another_float(device, planned):
    planned(SMALL)
    x, w, b = problem(5, 21, 36)
    for dtype in ("float16", "float64"):
        out = device.empty((5, 36), dtype)
        assert_bits(fastrelu.linear_relu(*sent(device, x, w, b), out=out), fastrelu.linear_relu(x, w, b).astype(dtype))


@pytest.mark.parametrize("n", [37, *nightly(1, 8)])
def test_mask(device, planned, n):
    planned(SMALL)
    x, w, b = problem(5, 21, n)
    x[2] = np.nan
    masks = np.zeros((5, -(-n // 8)), np.uint8), device.array(np.full((5, -(-n // 8)), 255, np.uint8))
    expected, _ = fastrelu.linear_relu(x, w, b, mask=masks[0])
    result, mask = fastrelu.linear_relu(*sent(device, x, w, b), mask=masks[1])
    assert mask is masks[1]
    assert_bits(result, expected)
    assert_array_equal(mask.host, masks[0])


# Types and activations.


@pytest.mark.parametrize("dtype", ["bfloat16", *nightly("float16", "float64")])
def test_types(device, planned, dtype):
    for tile, per_part in [(SMALL, 9), (SMALL, 1)]:
        planned(tile, per_part)
        for m, k, n in [(33, 19, 36), (5, 259, 7)]:
            check(device, "linear_relu", *problem(m, k, n, dtype), message=(m, k, n, per_part))


def test_types_meet(device, planned):
    planned(SMALL)
    x, w, b = problem(5, 9, 36)
    check(device, "linear_relu", (10 * x).astype(np.int16), w, b)
    check(device, "linear_relu", x.astype(np.float16), w, b)


@pytest.mark.parametrize(
    "name",
    ["linear", "linear_leaky_relu", "linear_softplus", *nightly("linear_elu", "linear_sigmoid", "linear_tanh")],
)
def test_activations(device, planned, name):
    planned(SMALL)
    alpha = (0.3,) if name in ("linear_leaky_relu", "linear_elu") else ()
    check(device, name, *problem(5, 9, 36), *alpha)


@pytest.mark.nightly
def test_slope_of_each_column(device, planned):
    planned(SMALL)
    x, w, b = problem(5, 9, 36)
    check(device, "linear_prelu", x, w, b, normal("float32", 36, seed=9))
    check(device, "linear_prelu", x, w, None, 0.25)


# What is refused.


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5, 7), (8, 4), (4,)), r"linear_relu: w must have shape \(\.\.\., 7, n\)"),
        (((5, 7), (7, 4), (5,)), r"linear_relu: b must have shape \(\.\.\., 4\)"),
        (((5, 7), (7,), (4,)), "linear_relu: w must have at least two axes"),
    ],
)
def test_shapes_that_do_not_fit(device, shapes, message):
    with pytest.raises(ValueError, match=message):
        fastrelu.linear_relu(*(device.array(np.zeros(shape, np.float32)) for shape in shapes))


def test_output_and_mask_that_do_not_fit(device):
    operands = sent(device, *problem(5, 7, 4))
    with pytest.raises(ValueError, match="linear_relu: out must have shape"):
        fastrelu.linear_relu(*operands, out=device.empty((4, 4), np.float32))
    with pytest.raises(ValueError, match=r"linear_relu: mask must have shape \(5, 1\), not \(5, 2\)"):
        fastrelu.linear_relu(*operands, mask=device.empty((5, 2), np.uint8))
    with pytest.raises(TypeError, match="linear_relu: mask must be an array of uint8, not int8"):
        fastrelu.linear_relu(*operands, mask=device.empty((5, 1), np.int8))
    with pytest.raises(TypeError, match="linear_relu: axes is not available"):
        fastrelu.linear_relu(*operands, axes=[(0, 1)])


# The choice of a tile.


def test_large_product_takes_large_tiles_and_whole_sums():
    tile, per_part = products.plan((4096, 4096, 4096), BY_TERMS, WIDE, "float32", (9, 0), 132)
    assert tile == LARGE
    assert per_part == 16


def test_small_products_are_spread_over_the_device():
    for m, k, n in [(64, 4096, 64), (784, 60000, 256), (1, 4096, 4096), (128, 1024, 1024)]:
        tile, per_part = products.plan((m, k, n), BY_TERMS, WIDE, "float32", (9, 0), 132)
        blocks = -(-m // tile.BM) * -(-n // tile.BN) * -(-k // (256 * per_part))
        assert blocks >= 60, (m, k, n)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_device_has_a_tile(capability, dtype):
    kind = Operand(dtype)
    for size in (1, 100, 5000):
        tile, _ = products.plan((size, size, size), kind, kind, dtype, capability, 40)
        room = {(7, 5): 64, (8, 0): 164, (8, 9): 100, (9, 0): 228, (12, 0): 100}[capability] << 10
        assert (product(tile, kind, kind, "", Result(dtype), False).shared + 1024) * tile.blocks <= room


# Machine code.


@pytest.mark.parametrize(
    ("target", "terms", "x", "w"),
    [
        ((9, 0, "a"), 16, BY_TERMS, WIDE),
        ((9, 0, "a"), 16, BY_TERMS, BY_TERMS),
        ((9, 0, "a"), 16, WIDE, WIDE),
        ((8, 0), 8, BY_TERMS, WIDE),
    ],
    ids=["NN-90", "NT-90", "TN-90", "NN-80"],
)
def test_main_loop_multiplies(target, terms, x, w):
    kernel = product(BlockTile(128, 128, terms, 8, 8, 2), x, w, "float32", Result("float32", "relu"), False)
    ptx, _ = kernel.ptx(target)
    code = assemble(ptx, target)
    assert code.registers <= 128  # two blocks of 256 threads fit
    assert code.spilled == 0
    assert code.stack == 0
    assert code.count("LDL", "STL") == 0
    assert ".f64" not in ptx
    assert code.main_loop("FFMA").share("FFMA") >= 0.84
    assert code.count("LDS.128") >= 4 * terms
    assert code.count("STG.E.128") > 0


def test_copies_meet_in_no_bank(device, planned):
    device.measure = True
    planned(LARGE)
    x, w, _ = problem(128, 64, 128)
    for operands in (x, w), (x, np.asfortranarray(w)), (np.asfortranarray(x), w):
        fastrelu.linear(*sent(device, *operands))
        counts = device.launches[-1]
        assert counts.wavefronts["copy"] == counts.least_wavefronts["copy"]
