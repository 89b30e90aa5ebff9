"""Means of embeddings and their gradients: the bits of every sum, whatever the bags, the types and the threads."""

import itertools
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from tests.dtypes import dtype_of
from tests.reference import bits
from tests.subprocesses import call
from tests.test_guard_pages import Guarded

FLOATS = ("float16", "bfloat16", "float32", "float64")

Array = np.ndarray


def normal(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Random numbers of both signs, so that every other order of a sum has other bits."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype_of(dtype))


def wide_of(a: Array) -> type:
    return np.float64 if a.dtype == np.float64 else np.float32


def mean(bags: list[list[int]], table: Array, padding: int | None = None) -> Array:
    """The mean of each bag, row by row."""
    wide = wide_of(table)
    y = np.zeros((len(bags), table.shape[1]), wide)
    for row, bag in zip(y, bags, strict=True):
        counted = [i for i in bag if i != padding]
        for i in counted:
            row += table[i].astype(wide)
        row /= wide(max(len(counted), 1))
    return y.astype(table.dtype)


def gradient(dy: Array, bags: list[list[int]], rows: int, padding: int | None = None) -> Array:
    """The gradient of the table, place by place."""
    wide = wide_of(dy)
    dtable = np.zeros((rows, dy.shape[1]), wide)
    for row, bag in zip(dy.astype(wide), bags, strict=True):
        counted = [i for i in bag if i != padding]
        for i in counted:
            dtable[i] += row / wide(len(counted))
    return dtable.astype(dy.dtype)


def divided(ids: Array, offsets: list[int]) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in itertools.pairwise([*offsets, len(ids)])]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_number_of_columns(dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, 30, (7, 5))
    for d in [*range(71), 127, 130, 200]:
        table, dy = normal(dtype, 30, d), normal(dtype, 7, d, seed=1)
        y, dtable = mean(ids.tolist(), table), gradient(dy, ids.tolist(), 30)
        assert_array_equal(bits(fastrelu.embedding_mean(ids, table)), bits(y), err_msg=str(d))
        assert_array_equal(bits(fastrelu.embedding_mean_backward(dy, ids, 30)), bits(dtable), err_msg=str(d))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("padding", [None, 3, -1, 2**63 - 1])
def test_bags_of_different_lengths(padding: int | None, dtype: str) -> None:
    rng = np.random.default_rng(1)
    table, ids = normal(dtype, 9, 21), rng.integers(-1 if padding == -1 else 0, 9, 60)
    for offsets in ([0], [0, 0, 5, 5, 5, 40, 60], [0, 60], [0, 1, 2, 3, 30, 31]):
        bags, dy = divided(ids, offsets), normal(dtype, len(offsets), 21, seed=2)
        result = fastrelu.embedding_mean(ids, table, offsets, padding_id=padding)
        assert result.dtype == table.dtype
        assert_array_equal(bits(result), bits(mean(bags, table, padding)))
        dtable = fastrelu.embedding_mean_backward(dy, ids, 9, offsets, padding_id=padding)
        assert_array_equal(bits(dtable), bits(gradient(dy, bags, 9, padding)))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 3, 5), (0, 5), (4, 0), (2, 0, 3)])
def test_shapes_of_ids(shape: tuple[int, ...]) -> None:
    table, ids = normal("float32", 11, 6), np.random.default_rng(2).integers(0, 11, shape)
    bags = ids.reshape(-1, shape[-1]).tolist() if ids.size else [[]] * int(np.prod(shape[:-1]))
    y = fastrelu.embedding_mean(ids, table)
    assert y.shape == (*shape[:-1], 6)
    assert_array_equal(y.reshape(-1, 6), mean(bags, table))
    dy = normal("float32", *y.shape, seed=1)
    assert_array_equal(fastrelu.embedding_mean_backward(dy, ids, 11), gradient(dy.reshape(-1, 6), bags, 11))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64", ">i4"])
def test_types_of_ids(kind: str) -> None:
    table, ids = normal("float32", 11, 6), np.random.default_rng(2).integers(0, 11, (4, 6))
    expected = fastrelu.embedding_mean(ids, table)
    assert_array_equal(fastrelu.embedding_mean(ids.astype(kind), table), expected)
    assert_array_equal(fastrelu.embedding_mean(np.repeat(ids.astype(kind), 2, axis=1)[::-1, ::2], table), expected[::-1])
    assert_array_equal(fastrelu.embedding_mean(ids.ravel(), table, np.arange(0, 24, 6, kind)), expected)


def test_integers_become_floats_and_lists_arrays():
    y = fastrelu.embedding_mean([[0, 1]], [[1, 2], [4, 8]])
    assert_array_equal(y, np.array([[2.5, 5.0]]), strict=True)
    assert fastrelu.embedding_mean([], np.ones((3, 2), np.float32), []).shape == (0, 2)
    assert_array_equal(fastrelu.embedding_mean([], np.ones((3, 2)), [0]), np.zeros((1, 2)), strict=True)


def test_nan_shows_and_zeros_have_no_sign():
    table = np.array([[np.nan, np.inf, -0.0], [1, -np.inf, -0.0]], np.float32)
    assert_array_equal(
        bits(fastrelu.embedding_mean([[0, 1], [1, 1]], table)),
        bits(np.array([[np.nan, np.nan, 0], [1, -np.inf, 0]], np.float32)),
    )


def test_padded_rows_are_not_read():
    table = np.array([[np.nan, np.inf], [1, 2]])
    assert_array_equal(fastrelu.embedding_mean([[0, 1], [0, 0]], table, padding_id=0), [[1, 2], [0, 0]])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layouts_of_table_and_gradient(dtype: str) -> None:
    ids = np.random.default_rng(3).integers(0, 12, (5, 4))
    table, dy = normal(dtype, 12, 20), normal(dtype, 5, 20, seed=1)
    y, dtable = fastrelu.embedding_mean(ids, table), fastrelu.embedding_mean_backward(dy, ids, 12)
    forms = [
        np.asfortranarray,
        lambda a: np.repeat(np.repeat(a, 2, axis=0), 2, axis=1)[::2, ::2],
        lambda a: np.pad(a, 3)[3:-3, 3:-3],
        lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
        lambda a: a.astype(a.dtype.newbyteorder()),
    ]
    for form in forms:
        assert_array_equal(fastrelu.embedding_mean(ids, form(table)), y)
        assert_array_equal(fastrelu.embedding_mean_backward(form(dy), ids, 12), dtable)
        for function, arguments, expected in (
            (fastrelu.embedding_mean, (ids, table), y),
            (fastrelu.embedding_mean_backward, (dy, ids, 12), dtable),
        ):
            out = form(np.full_like(expected, 7))
            assert function(*arguments, out=out) is out
            assert_array_equal(out, expected)


def test_output_that_overlaps_the_table():
    table = normal("float32", 12, 20)
    expected = fastrelu.embedding_mean([[3, 0], [0, 2]], table)
    assert_array_equal(fastrelu.embedding_mean([[3, 0], [0, 2]], table, out=table[1:3]), expected)


@pytest.mark.parametrize("shape", [(3000, 40, 700, 30), (90_000, 3, 2000, 9), (5, 300, 400, 50), (1, 8, 4000, 9)])
def test_number_of_threads(shape: tuple[int, ...]) -> None:
    rows, d, bags, length = shape
    rng = np.random.default_rng(4)
    table, dy = normal("float32", rows, d), normal("float32", bags, d, seed=1)
    ids = (rows * rng.random((bags, length)) ** 4).astype(int)  # the first rows much more often
    with fastrelu.num_threads(1):
        y, dtable = fastrelu.embedding_mean(ids, table), fastrelu.embedding_mean_backward(dy, ids, rows)
        unique, gradients = fastrelu.embedding_mean_backward(dy, ids, rows, sparse=True)
    assert_array_equal(y[:20], mean(ids[:20].tolist(), table))
    dy[20:] = 0
    few = fastrelu.embedding_mean_backward(dy, ids, rows)
    assert_array_equal(few, gradient(dy[:20], ids[:20].tolist(), rows))
    dy = normal("float32", bags, d, seed=1)
    assert_array_equal(unique, np.unique(ids), strict=True)
    assert_array_equal(gradients, dtable[unique])
    for threads in (2, 3, 5, 8):
        with fastrelu.num_threads(threads):
            assert_array_equal(fastrelu.embedding_mean(ids, table), y)
            assert_array_equal(fastrelu.embedding_mean_backward(dy, ids, rows), dtable)
            assert_array_equal(fastrelu.embedding_mean_backward(dy, ids, rows, sparse=True)[1], gradients)


@pytest.mark.parametrize("rows", [1, 2, 2047, 2048, 2049, 1 << 22, (1 << 22) + 1, 1 << 62])
def test_rows_of_any_number_of_digits(rows: int) -> None:
    rng = np.random.default_rng(5)
    ids, dy = rng.integers(0, rows, (30, 4)), normal("float64", 30, 3)
    ids[::3] = ids[0, 0]
    unique, gradients = fastrelu.embedding_mean_backward(dy, ids, rows, sparse=True)
    expected, numbers = np.unique(ids, return_inverse=True)
    assert_array_equal(unique, expected)
    assert_array_equal(gradients, gradient(dy, numbers.reshape(ids.shape).tolist(), len(expected)))


def test_sparse_without_ids():
    unique, gradients = fastrelu.embedding_mean_backward(np.ones((2, 3)), [[5], [5]], 9, padding_id=5, sparse=True)
    assert_array_equal(unique, np.empty(0, np.int64), strict=True)
    assert gradients.shape == (0, 3)


# Faults.

TABLE, IDS, DY = np.ones((9, 4), np.float32), np.zeros((2, 3), int), np.ones((2, 4), np.float32)
RAVELLED = IDS.ravel()


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((IDS + 0.5, TABLE), {}, "ids must be of an integer type, not float64"),
        ((0, TABLE), {}, "ids must have at least one axis"),
        ((IDS, TABLE[0]), {}, r"table must have shape \(rows, d\), not \(4,\)"),
        ((IDS, TABLE > 0), {}, "table must be an integer type, float16, bfloat16, float32 or float64, not bool"),
        ((IDS + 9, TABLE), {}, r"an id must be in range\(9\), not 9 as in ids\[0, 0\]"),
        (([[0, 1], [8, -1]], TABLE), {}, r"an id must be in range\(9\), not -1 as in ids\[1, 1\]"),
        (([[0, 1], [8, -1]], TABLE), {"padding_id": 1}, r"an id must be in range\(9\) or 1, not -1 as in ids\[1, 1\]"),
        ((np.array([3, 2**64 - 1], np.uint64), TABLE), {"padding_id": -1}, r"an id .* not 18446744073709551615 as in ids\[1\]"),
        ((IDS, TABLE[:0]), {}, r"an id must be in range\(0\), not 0 as in ids\[0, 0\]"),
        ((IDS, TABLE, [0]), {}, r"ids must have one axis where offsets are given, not shape \(2, 3\)"),
        ((RAVELLED, TABLE, [[0]]), {}, "offsets must have one axis"),
        ((RAVELLED, TABLE, [1, 2]), {}, "offsets must begin with 0, not 1"),
        ((RAVELLED, TABLE, []), {}, "offsets must begin with 0, not be empty"),
        ((RAVELLED, TABLE, [0, 3, 2]), {}, r"offsets must not fall, and offsets\[1\] of 3 exceeds offsets\[2\], 2"),
        ((RAVELLED, TABLE, [0, 7]), {}, r"offsets must not fall, and offsets\[1\] of 7 exceeds the number of ids, 6"),
        ((RAVELLED, TABLE, [0.0]), {}, "offsets must be of an integer type, not float64"),
        ((IDS, TABLE), {"padding_id": 1.0}, "padding_id must be an integer, not float"),
        ((IDS, TABLE), {"padding_id": 2**63}, "padding_id must be -9223372036854775808 to 9223372036854775807, not"),
        ((IDS, TABLE), {"out": DY.T}, r"out must have shape \(2, 4\), not \(4, 2\)"),
        ((IDS, TABLE), {"out": DY.astype(int)}, "out must have type float32, not int64"),
    ],
)
def test_faults(arguments: tuple, keywords: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^embedding_mean: {message}"):
        fastrelu.embedding_mean(*arguments, **keywords)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((DY, IDS, -1), {}, "rows must be 0 to 9223372036854775807, not -1"),
        ((DY, IDS, 2.0), {}, "rows must be an integer, not float"),
        ((DY[0], IDS, 9), {}, r"dy must have shape \(2, d\), not \(4,\)"),
        ((DY, IDS[0], 9), {}, r"dy must have shape \(d,\), not \(2, 4\)"),
        ((DY, IDS + 9, 9), {}, r"an id must be in range\(9\), not 9 as in ids\[0, 0\]"),
        ((DY, RAVELLED, 9, [0, 3, 3]), {}, r"dy must have shape \(3, d\), not \(2, 4\)"),
        ((DY, IDS, 9), {"sparse": True, "out": TABLE}, "out must not be given with sparse"),
        ((DY, IDS, 9), {"out": TABLE[1:]}, r"out must have shape \(9, 4\), not \(8, 4\)"),
    ],
)
def test_faults_of_the_backward_pass(arguments: tuple, keywords: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^embedding_mean_backward: {message}"):
        fastrelu.embedding_mean_backward(*arguments, **keywords)


@pytest.mark.parametrize("first", [0, 7, 8, 39_999, 70_001, 99_999])
def test_first_bad_id_is_named(first: int) -> None:
    ids, out = np.zeros((1000, 100), int), np.full((1000, 4), 77, np.float32)
    ids.flat[[first, 99_999]] = -5, 9
    with pytest.raises(ValueError, match=rf"as in ids\[{first // 100}, {first % 100}\]"):
        fastrelu.embedding_mean(ids, TABLE, out=out)
    assert (out == 77).all()


# Memory beside the operands.


def sweep(threads: int) -> None:
    """Run both passes with all operands at either guard."""
    fastrelu.set_num_threads(threads)
    blocks = [Guarded(8 * 40 * 140) for _ in range(4)]
    ids = np.random.default_rng(0).integers(0, 40, (9, 7))
    for dtype, d, at_end in itertools.product(FLOATS, [*range(1, 20), 63, 65, 130], (False, True)):
        kind = dtype_of(dtype)

        def place(number: int, kind: np.dtype, *shape: int) -> Array:
            return blocks[number].array(kind, int(np.prod(shape)), 1, at_end).reshape(shape)  # noqa: B023  # used at once

        table, out, numbers = place(0, kind, 40, d), place(1, kind, 9, d), place(2, ids.dtype, 9, 7)
        table[:], numbers[:] = normal(dtype, 40, d), ids
        fastrelu.embedding_mean(numbers, table, out=out)
        assert_array_equal(bits(out), bits(mean(ids.tolist(), table)))
        dtable = place(3, kind, 40, d)
        fastrelu.embedding_mean_backward(out, numbers, 40, out=dtable)
        assert_array_equal(bits(dtable), bits(gradient(out, ids.tolist(), 40)))


@pytest.mark.skipif(sys.platform == "win32", reason="no mprotect here")
def test_nothing_outside_the_operands_is_touched():
    call(sweep, 2, timeout=300)
