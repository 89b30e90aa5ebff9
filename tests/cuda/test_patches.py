"""Patches of images as operands: how positions and taps are found, and what is copied at once."""

import ml_dtypes  # noqa: F401  # its types are compared
import numpy as np
import pytest

import fastrelu
from fastrelu.cuda import patches, products
from fastrelu.cuda.kernels.linear import BlockTile
from fastrelu.cuda.kernels.patches import MARGIN, OUTSIDE, TAP, division
from tests.convolution_reference import Case
from tests.cuda.test_conv2d import check
from tests.cuda.test_linear import SMALL, assert_bits, normal, sent
from tests.cuda.values import nightly


def test_division_is_exact():
    rng = np.random.default_rng(0)
    most = (1 << 31) - 1
    for divisor in [*range(1, 70), 3136, 12544, 50176, (1 << 30) - 1, 1 << 30, most - 1, most]:
        divisor, factor, shift = division(divisor)
        assert factor < 1 << 32
        multiples = [q * divisor + d for q in (0, 1, 2, most // divisor) for d in (-1, 0, 1)]
        for number in [*multiples, *rng.integers(0, most, 50), most]:
            if 0 <= number <= most:
                assert int(number) * factor >> shift == number // divisor


def test_taps_behind_the_last_are_outside(device, planned):
    planned(SMALL)
    check(device, Case((1, 2, 4, 5), 3, (2, 3), (1, 1), (1, 1), (2, 1)))
    (pointer,) = (place for (where, _), place in patches._tables.items() if where[0] is device)
    table = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_int32 * (4 * (12 + MARGIN))).from_address(pointer)).reshape(-1, 4)
    assert table[0].nbytes == TAP
    offsets = np.ascontiguousarray(table[:, :2]).view(np.int64)[:, 0]
    expected = [(c * 80 + h * 20 + w * 4, h, w) for c in range(2) for h in (-1, 1) for w in (-1, 0, 1)]
    assert [*zip(offsets[:12], table[:12, 2], table[:12, 3], strict=True)] == expected
    assert (table[12:, 2] == OUTSIDE).all()
    assert (offsets[12:] == 0).all()


def test_no_table_is_written_twice_or_kept_beyond_the_limit(device, planned, monkeypatch):
    planned(SMALL)
    case = Case((1, 2, 4, 5), 3, (2, 2))
    check(device, case)
    count = len(device.launches)
    check(device, case)
    assert len(device.launches) == count + 1
    monkeypatch.setattr(patches, "_KEPT", 0)
    before = len(patches._tables)
    for _ in range(2):
        check(device, Case((1, 2, 6, 5), 3, (2, 2)))
    assert len(patches._tables) == before
    assert len(device.launches) == count + 5


def problem(case: Case) -> list[np.ndarray]:
    x, w, b = case.operands()
    return [normal("float32", *case.y, seed=1), fastrelu.conv2d_relu(x, w, b, **case.options), x, w]


def check_backward(device, case: Case) -> None:
    operands = problem(case)
    expected = fastrelu.conv2d_relu_backward(*operands, **case.options)
    for ours, its in zip(fastrelu.conv2d_relu_backward(*sent(device, *operands), **case.options), expected, strict=True):
        assert_bits(ours, its, case)


@pytest.mark.nightly
def test_pieces_of_the_batch_and_of_the_groups(device, planned, monkeypatch):
    planned(SMALL)
    monkeypatch.setattr(patches, "_MOST_GROUPS", 2)
    case = Case((5, 6, 3, 4), 6, (2, 2), (1, 1), (1, 0), groups=3)
    check_backward(device, case)
    monkeypatch.setattr(patches, "MOST_POSITIONS", 30)
    check(device, case)
    operands = problem(case)
    expected = fastrelu.conv2d_relu_backward(*operands, **case.options, wanted=("dx",))[0]
    assert_bits(fastrelu.conv2d_relu_backward(*sent(device, *operands), **case.options, wanted=("dx",))[0], expected)


def kinds(monkeypatch) -> list[tuple]:
    """The operands of the products that will be launched."""
    seen, kernel_for = [], products.product

    def noting(block, x_kind, w_kind, *rest):
        seen.append((x_kind, w_kind))
        return kernel_for(block, x_kind, w_kind, *rest)

    monkeypatch.setattr(products, "product", noting)
    return seen


def test_planes_of_one_by_one_kernels_by_16_bytes(device, planned, monkeypatch):
    planned(SMALL)
    seen = kinds(monkeypatch)
    for size, is_wide in [((6, 6), True), ((5, 7), False), ((3, 8), True)]:
        check(device, Case((3, 5, *size), 7, (1, 1)))
        assert (seen[-1][1].wide, seen[-1][1].pointwise) == (is_wide, True)
    x, w, b = Case((2, 4, 5, 8), 4, (1, 1)).operands()
    for view, is_wide in [
        (np.s_[..., :4], True),
        (np.s_[..., 1:5], False),
        (np.s_[..., ::2], False),
        (np.s_[..., ::-1], False),
    ]:
        y = fastrelu.conv2d_relu(device.array(x)[view], *sent(device, w, b))
        assert_bits(y, fastrelu.conv2d_relu(x[view], w, b), view)
        assert seen[-1][1].wide == is_wide


@pytest.mark.nightly
def test_dz_of_one_by_one_kernels_beside_y(device, planned, monkeypatch):
    planned(SMALL)
    seen = kinds(monkeypatch)
    device._capability = 9, 0
    check_backward(device, Case((3, 5, 6, 6), 8, (1, 1)))
    (_, dz), (its_dz, _) = seen
    assert dz.wide
    assert dz.staged
    assert its_dz.staged
    assert its_dz.pointwise


def test_repeated_rows_are_no_plane(device, planned):
    planned(SMALL)
    x, w, b = Case((2, 3, 4, 8), 4, (1, 1)).operands()
    one_row = device.array(x[:, :, :1])
    one_row.host = np.broadcast_to(one_row.host, x.shape)
    expected = fastrelu.conv2d_relu(np.broadcast_to(x[:, :, :1], x.shape), w, b)
    assert_bits(fastrelu.conv2d_relu(one_row, *sent(device, w, b)), expected)


def test_phase_that_no_tap_meets(device, planned):
    planned(SMALL)
    check_backward(device, Case((2, 3, 8, 7), 4, (1, 2), (3, 3)))


def test_padding_for_which_there_are_no_numbers(device):
    x, w = sent(device, np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 1, 1), np.float32))
    with pytest.raises(
        ValueError, match=r"^images on a CUDA device must have less than 1073741824 rows and columns with padding$"
    ):
        fastrelu.conv2d(x, w, stride=1 << 30, padding=1 << 31)


TILES = [BlockTile(64, 128, 16, 8, 8, 3), *nightly(BlockTile(128, 128, 16, 8, 8, 2), BlockTile(64, 64, 8, 4, 4, 3))]


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.BM} x {tile.BN}")
def test_edges_of_larger_tiles(device, planned, tile):
    planned(tile)
    check_backward(device, Case((2, 15, 9, 8), 65, (3, 3), (1, 1), (1, 1)))
