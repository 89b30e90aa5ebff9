"""Max pooling: the bits of every maximum and its place, whatever the window, the layout, the type and the threads."""

import itertools
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.native import target
from tests import reference as of_floats
from tests.dtypes import dtype_of
from tests.subprocesses import call
from tests.test_guard_pages import Guarded
from tests.test_target import TARGETS

FLOATS = ("float16", "bfloat16", "float32", "float64")
TYPES = (*FLOATS, "int32", "uint8")

Array = np.ndarray
Pair = tuple[int, int]


def bits(y: Array) -> Array:
    """What is compared: all but which NaN it is."""
    y = y.astype(y.dtype.newbyteorder("="))
    return y if y.dtype.kind in "iu" else of_floats.bits(y)


def images(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Few different numbers, so that maxima are found in several places; of floats some NaNs and zeros of both signs."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0 if dtype.startswith("u") else -5, 6, shape).astype(np.float32)
    if dtype in FLOATS:
        x[rng.random(shape) < 0.03] = np.nan
        x[rng.random(shape) < 0.1] = -0.0
        x[rng.random(shape) < 0.1] = -np.inf
    with np.errstate(invalid="ignore"):
        return x.astype(dtype_of(dtype))


def starts(size: int, window: int, step: int, padding: int, dilation: int = 1, ceil_mode: bool = False) -> list[int]:
    """Where the windows along an axis start: the definition, window by window."""
    span, start, found = dilation * (window - 1) + 1, -padding, []
    while start + span <= size + padding or (ceil_mode and start - step + span < size + padding and start < size):
        found.append(start)
        start += step
    return found


def reference(
    x: Array, window: Pair, step: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1), ceil_mode: bool = False
) -> tuple[Array, Array]:
    """The first maximum of each window, and its place; element by element of the windows."""
    rows, columns = (
        np.array(starts(x.shape[i - 2], window[i], step[i], padding[i], dilation[i], ceil_mode), int) for i in (0, 1)
    )
    h, w = x.shape[2:]
    best = np.zeros((*x.shape[:2], len(rows), len(columns)), x.dtype)
    index = np.full(best.shape, -1)
    for a, b in itertools.product(*map(range, window)):
        row, column = (rows + a * dilation[0])[:, None], columns + b * dilation[1]
        is_inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        value = x[:, :, row.clip(0, h - 1), column.clip(0, w - 1)]
        wide = value.astype(np.float64), best.astype(np.float64)
        better = (wide[0] > wide[1]) | (np.isnan(wide[0]) & ~np.isnan(wide[1])) | (index < 0)
        best = np.where(is_inside & better, value, best)
        index = np.where(is_inside & better, row * w + column, index)
    return best, index


def assert_pools(x: Array, *arguments: object) -> None:
    y, index = reference(x, *arguments)
    values, indices = fastrelu.max_pool2d(x, *arguments, return_indices=True)
    assert values.dtype == x.dtype.newbyteorder("=")
    assert_array_equal(bits(values), bits(y), err_msg=f"{x.shape} {arguments}")
    assert indices.dtype == np.int64
    assert_array_equal(indices, index, err_msg=f"{x.shape} {arguments}")
    assert_array_equal(bits(fastrelu.max_pool2d(x, *arguments)), bits(y), err_msg=f"{x.shape} {arguments}")


def layouts(x: Array) -> dict[str, Array]:
    """The same numbers in other places."""
    n, _, h, w = x.shape
    swapped = x if x.dtype.name == "bfloat16" else x.astype(x.dtype.newbyteorder())
    shifted = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    shifted[:] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "channels last": np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "Fortran": np.asfortranarray(x),
        "every second column": np.repeat(x, 2, axis=3)[..., ::2],
        "a part": np.pad(x, ((0, 1), (1, 0), (2, 1), (3, 4)))[:n, 1:, 2 : 2 + h, 3 : 3 + w],
        "backwards": np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1],
        "other order of bytes": swapped,
        "unaligned": shifted,
        "read-only": frozen,
    }


# Windows.


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("window", "step", "padding"),
    [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1), (5, 5, 2), (9, 1, 4)],
)
def test_every_width(window: int, step: int, padding: int, dtype: str) -> None:
    pool = images(dtype, 1, 1, 9, 70, seed=window)
    for w in range(max(1, window - 2 * padding), 70, 1 if dtype == "float32" else 5):
        assert_pools(pool[..., :w], (window, window), (step, step), (padding, padding))
        assert_pools(pool[..., -w:].copy(), (window, window), (step, step), (padding, padding))


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_rows_and_columns_of_different_sizes(dtype: str) -> None:
    x = images(dtype, 2, 3, 23, 41)
    for window, step, dilation in itertools.product(
        [(1, 1), (1, 4), (4, 1), (3, 2), (2, 5), (6, 6)], [(1, 2), (2, 1), (3, 4)], [(1, 1), (2, 1), (1, 3)]
    ):
        for padding in {(0, 0), (window[0] // 2, window[1] // 2), (0, window[1] // 2)}:
            for ceil_mode in (False, True):
                assert_pools(x, window, step, padding, dilation, ceil_mode)


@pytest.mark.parametrize("shape", [(7, 7), (8, 40), (33, 3), (1, 64), (64, 1)])
def test_window_of_the_whole_image(shape: Pair) -> None:
    for dtype in ("float32", "float64", "int32"):
        for form in layouts(images(dtype, 2, 5, *shape)).values():
            assert_pools(form, shape, shape)


def test_last_window_starts_inside_the_image_or_the_padding_before_it():
    for size, window, step in itertools.product(range(1, 14), range(1, 6), range(1, 6)):
        for padding in range(window // 2 + 1):
            expected = len(starts(size, window, step, padding, 1, True))
            x = np.ones((1, 1, size, 1), np.float32)
            arguments = ((window, 1), (step, 1), (padding, 0), 1, True)
            if expected:
                assert fastrelu.max_pool2d(x, *arguments).shape == (1, 1, expected, 1)
            else:
                with pytest.raises(ValueError, match="room for a window"):
                    fastrelu.max_pool2d(x, *arguments)


def test_defaults_are_windows_side_by_side_and_one_number_is_for_both_axes():
    x = images("float32", 2, 3, 9, 8)
    expected = reference(x, (2, 2), (2, 2))[0]
    for size in (2, (2, 2), [2, 2], np.int64(2), np.array([2, 2])):
        assert_array_equal(fastrelu.max_pool2d(x, size), expected)


# What is selected.


@pytest.mark.parametrize("dtype", FLOATS)
def test_first_maximum_and_first_nan_win(dtype: str) -> None:
    nan = np.nan
    rows = [[1, 3, 3, 2], [0.0, -0.0, 0, 0], [-0.0, 0.0, 0, 0], [5, nan, 9, nan], [-np.inf] * 4, [-np.inf, -np.inf, 1, nan]]
    places = [1, 0, 0, 1, 0, 3]
    x = np.array(rows, np.float32).astype(dtype_of(dtype)).reshape(1, -1, 2, 2)
    y, indices = fastrelu.max_pool2d(x, 2, return_indices=True)
    assert_array_equal(indices.ravel(), places)
    assert_array_equal(bits(y.ravel()), bits(x.reshape(-1, 4)[range(6), places]))


def test_padding_is_never_selected():
    x = np.full((1, 1, 5, 40), -np.inf, np.float32)
    for window, step in [(3, 1), (3, 2), (4, 3)]:
        y, indices = fastrelu.max_pool2d(x, window, step, window // 2, return_indices=True)
        assert (y == -np.inf).all()
        assert_array_equal(indices, reference(x, (window,) * 2, (step,) * 2, (window // 2,) * 2)[1])
    lowest = np.full((1, 1, 2, 2), np.iinfo(np.int32).min, np.int32)
    assert_array_equal(fastrelu.max_pool2d(lowest, 2, 1, 1, return_indices=True)[1], [[[[0, 0, 1], [0, 0, 1], [2, 2, 3]]]])


def test_subnormal_numbers_are_told_apart():
    x = np.array([1, 3, 2, 0], np.uint32).view(np.float32).reshape(1, 1, 2, 2)
    y, index = fastrelu.max_pool2d(x, 2, return_indices=True)
    assert y.view(np.uint32) == 3
    assert index == 1


# Memory and threads.


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("arguments", [((2, 2), (2, 2)), ((3, 3), (2, 2), (1, 1)), ((3, 3), (1, 1)), ((2, 4), (3, 3), (1, 2))])
def test_layouts(arguments: tuple, dtype: str) -> None:
    x = images(dtype, 2, 21, 11, 13)
    y, index = reference(x, *arguments)
    for name, form in layouts(x).items():
        values, indices = fastrelu.max_pool2d(form, *arguments, return_indices=True)
        assert_array_equal(bits(values), bits(y), err_msg=name)
        assert_array_equal(indices, index, err_msg=name)
        assert_array_equal(bits(fastrelu.max_pool2d(form[1], *arguments)), bits(y[1]), err_msg=name)
    assert values.dtype == x.dtype


def test_channels_that_were_last_stay_last():
    x = layouts(images("float32", 2, 5, 8, 8))["channels last"]
    for result in fastrelu.max_pool2d(x, 2, return_indices=True):
        assert result.transpose(0, 2, 3, 1).flags.c_contiguous
    y, indices = fastrelu.max_pool2d(x, 2, return_indices=True)
    assert fastrelu.max_pool2d_backward(y, indices, (8, 8)).transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("shape", [(5, 7, 60, 64), (1, 1, 701, 300), (300, 20, 7, 7)])
def test_number_of_threads(shape: tuple[int, ...]) -> None:
    x = images("float32", *shape)
    y, index = reference(x, (3, 3), (2, 2), (1, 1))
    dx = backward_reference(y, index, shape)
    for threads, form in itertools.product((1, 2, 3, 5, 8), ("plain", "channels last")):
        with fastrelu.num_threads(threads):
            values, indices = fastrelu.max_pool2d(layouts(x).get(form, x), 3, 2, 1, return_indices=True)
            assert_array_equal(bits(values), bits(y))
            assert_array_equal(indices, index)
            assert_array_equal(bits(fastrelu.max_pool2d_backward(values, indices, shape)), bits(dx))


def test_outputs_of_any_layout():
    x = images("float32", 2, 3, 9, 34)
    y, index = reference(x, (2, 2), (2, 2))
    for name, out in layouts(np.zeros_like(y)).items():
        if name != "read-only":
            places = layouts(np.zeros_like(index))[name]
            result = fastrelu.max_pool2d(x, 2, out=out)
            assert result is out
            assert_array_equal(bits(out), bits(y), err_msg=name)
            out[:] = 0
            results = fastrelu.max_pool2d(x, 2, return_indices=True, out=(out, places))
            assert results[0] is out
            assert results[1] is places
            assert_array_equal(bits(out), bits(y), err_msg=name)
            assert_array_equal(places, index, err_msg=name)
    places = np.zeros_like(index)
    assert_array_equal(fastrelu.max_pool2d(x, 2, return_indices=True, out=(None, places))[0], y)
    assert_array_equal(places, index)
    out = np.zeros_like(y)
    assert_array_equal(bits(fastrelu.max_pool2d(x[1], 2, out=out[1])), bits(y[1]))


def test_output_that_overlaps_the_input():
    flat = images("float32", 1, 1, 1, 900).ravel()
    x, out = flat[:800].reshape(2, 4, 10, 10), flat[100:300].reshape(2, 4, 5, 5)
    y, _ = reference(x, (2, 2), (2, 2))
    fastrelu.max_pool2d(x, 2, out=out)
    assert_array_equal(bits(out), bits(y))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (3, 0, 4, 4)])
def test_no_images(shape: tuple[int, ...]) -> None:
    y, indices = fastrelu.max_pool2d(np.ones(shape), 2, return_indices=True)
    assert y.shape == indices.shape == (*shape[:2], 2, 2)
    assert fastrelu.max_pool2d_backward(y, indices, shape).shape == shape


# Backward.


def backward_reference(dy: Array, indices: Array, shape: tuple[int, ...]) -> Array:
    """Each gradient added where its maximum was, one after the other."""
    wide = np.float64 if dy.dtype == np.float64 else np.float32
    dx = np.zeros((shape[0] * shape[1], shape[2] * shape[3]), wide)
    for plane, index, gradient in zip(dx, indices.reshape(len(dx), -1), dy.reshape(len(dx), -1), strict=True):
        np.add.at(plane, index, gradient.astype(wide))
    with np.errstate(invalid="ignore"):
        return dx.astype(dy.dtype).reshape(shape)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("window", "step"), [(2, 2), (3, 1), (2, 3)])
def test_backward(window: int, step: int, dtype: str) -> None:
    shape = (2, 5, 11, 14)
    indices = fastrelu.max_pool2d(images("float32", *shape), window, step, return_indices=True)[1]
    dy = np.random.default_rng(1).standard_normal(indices.shape).astype(np.float32).astype(dtype_of(dtype))
    dy.flat[::17] = -0.0
    dx = backward_reference(dy, indices, shape)
    for size in (shape, shape[2:], [*shape]):
        result = fastrelu.max_pool2d_backward(dy, indices, size)
        assert result.dtype == dy.dtype
        assert_array_equal(bits(result), bits(dx))
    assert_array_equal(bits(fastrelu.max_pool2d_backward(dy[1], indices[1], shape[1:])), bits(dx[1]))
    for (name, gradients), places in zip(layouts(dy).items(), layouts(indices).values(), strict=True):
        for of_dy, of_indices in ((gradients, places), (dy, places), (gradients, indices.astype(np.int16))):
            assert_array_equal(bits(fastrelu.max_pool2d_backward(of_dy, of_indices, shape)), bits(dx), err_msg=name)
    for name, out in layouts(np.ones_like(dx)).items():
        if name != "read-only":
            assert fastrelu.max_pool2d_backward(dy, indices, shape, out=out) is out
            assert_array_equal(bits(out), bits(dx), err_msg=name)


def test_index_outside_its_plane():
    dy, shape = np.ones((2, 40, 30, 30), np.float32), (2, 40, 5, 5)
    for place, bad in [((1, 39, 29, 29), 25), ((0, 0, 0, 0), -1), ((1, 0, 3, 7), 2**62)]:
        indices = np.zeros(dy.shape, np.int64)
        indices[place] = bad
        indices[1, 39, 29, 29] = 25  # the first one is named
        out = np.full(shape, 77, np.float32)
        with pytest.raises(
            ValueError, match=rf"^max_pool2d_backward: an index must be in range\(25\), not {bad} as in indices"
        ):
            fastrelu.max_pool2d_backward(dy, indices, shape, out=out)
        assert (out == 77).all()
    indices = np.zeros(dy.shape, np.uint64)
    indices[1, 0, 3, 7] = 2**64 - 1
    with pytest.raises(ValueError, match=r"not 18446744073709551615 as in indices\[1, 0, 3, 7\]"):
        fastrelu.max_pool2d_backward(dy, indices, shape)


# Faults.

X = np.ones((1, 2, 6, 6), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0, 0], 2), r"x must have shape \(c, h, w\) or \(n, c, h, w\), not \(6, 6\)"),
        ((X > 0, 2), "x must be an integer type, float16, bfloat16, float32 or float64, not bool"),
        ((X, 2.0), "kernel_size must be an integer, not float"),
        ((X, True), "kernel_size must be an integer, not bool"),
        ((X, 0), "kernel_size must be 1 to 2147483647, not 0"),
        ((X, (2, 2, 2)), "kernel_size must be one integer or two, not 3"),
        ((X, 2, 0), "stride must be 1 to 2147483647, not 0"),
        ((X, 2**31), "kernel_size must be 1 to 2147483647, not 2147483648"),
        ((X, 2, (1, 2.0)), "stride must be an integer, not float"),
        ((X, 2, {}), "stride must be an integer, not dict"),
        ((X, 2, 1, -1), "padding must be 0 to 2147483647, not -1"),
        ((X, 3, 1, (1, 2)), r"padding must be at most half of kernel_size \(3, 3\), not \(1, 2\)"),
        ((X, 2, 1, 0, 0), "dilation must be 1 to 2147483647, not 0"),
        ((X, 7), r"x must have room for a window of \(7, 7\) with padding \(0, 0\), not rows and columns \(6, 6\)"),
        ((X[..., :0], 1), r"x must have room for a window of \(1, 1\)"),
        ((X[:, :, :1], (2, 1), 1, (1, 0), 2), "every window must hold a part of x"),
    ],
)
def test_faults(arguments: tuple, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^max_pool2d: {message}"):
        fastrelu.max_pool2d(*arguments)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"out": np.zeros((1, 2, 3, 4), np.float32)}, r"out must have shape \(1, 2, 3, 3\), not \(1, 2, 3, 4\)"),
        ({"out": np.zeros((1, 2, 3, 3))}, "out must have type float32, not float64"),
        ({"out": [0]}, "out must be an array, not list"),
        ({"out": layouts(np.zeros((1, 2, 3, 3), np.float32))["read-only"]}, "out is read-only"),
        ({"out": X, "return_indices": True}, "out must be a pair, for the maxima and for the indices, not ndarray"),
        ({"out": (None, X[..., :3, :3]), "return_indices": True}, "out must have type int64, not float32"),
    ],
)
def test_faults_of_out(keywords: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^max_pool2d: {message}"):
        fastrelu.max_pool2d(X, 2, **keywords)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0, 0], X[0, 0], (9, 9)), r"dy must have shape \(c, h, w\)"),
        ((X, X, (9, 9)), "indices must be of an integer type, not float32"),
        ((X, np.zeros((1, 2, 6, 5), int), (9, 9)), r"indices must have the shape of dy, \(1, 2, 6, 6\), not \(1, 2, 6, 5\)"),
        ((X, X.astype(int), 9), "shape must be the rows and columns of x, or its whole shape, not 9"),
        ((X, X.astype(int), (2, 2, 9, 9)), r"shape must begin with \(1, 2\) as the shape of dy does, not \(2, 2\)"),
        ((X, X.astype(int), (9, -9)), "shape must be 0 to 9223372036854775807, not -9"),
        ((X, X.astype(int), (9, 9.0)), "shape must be an integer, not float"),
        ((X, X.astype(int), (0, 9)), r"an index must be in range\(0\), not 1 as in indices\[0, 0, 0, 0\]"),
    ],
)
def test_faults_of_the_backward_pass(arguments: tuple, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^max_pool2d_backward: {message}"):
        fastrelu.max_pool2d_backward(*arguments)


# Memory beside the operands.


def sweep(dtypes: tuple[str, ...], threads: int) -> None:
    """Pool with all operands at either guard."""
    fastrelu.set_num_threads(threads)
    blocks = [Guarded(8 * 4 * 12 * 70) for _ in range(4)]
    cases = [
        ((2, 2), (2, 2), (0, 0)),
        ((3, 3), (2, 2), (1, 1)),
        ((3, 3), (1, 1), (1, 1)),
        ((1, 9), (1, 9), (0, 0)),
        ((2, 2), (3, 3), (0, 0)),
    ]
    for dtype, w, arguments, at_end, is_last in itertools.product(
        dtypes, [*range(9, 21), 33, 66], cases, (False, True), (False, True)
    ):
        shape = (1, 4, 12, w)

        def place(number: int, kind: np.dtype, shape: tuple[int, ...]) -> Array:
            n, c, h, w = shape
            flat = blocks[number].array(kind, int(np.prod(shape)), 1, at_end)  # noqa: B023  # used at once
            return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2) if is_last else flat.reshape(shape)  # noqa: B023

        x = place(0, dtype_of(dtype), shape)
        x[:] = images(dtype, *shape)
        y, index = reference(x, *arguments)
        out, indices = place(1, x.dtype, y.shape), place(2, np.dtype(np.int64), y.shape)
        fastrelu.max_pool2d(x, *arguments, return_indices=True, out=(out, indices))
        assert_array_equal(bits(out), bits(y))
        assert_array_equal(indices, index)
        fastrelu.max_pool2d(x, *arguments, out=out)
        if dtype in ("float32", "float64"):
            dx = place(3, x.dtype, shape)
            fastrelu.max_pool2d_backward(out, indices, shape, out=dx)
            assert_array_equal(bits(dx), bits(backward_reference(y, index, shape)))


@pytest.mark.skipif(sys.platform == "win32", reason="no mprotect here")
def test_nothing_outside_the_operands_is_touched():
    call(sweep, ("float32", "float16", "int32"), 2, timeout=300)


@pytest.mark.nightly
@pytest.mark.skipif(
    sys.platform == "win32" or not target.has_feature("avx2"), reason="only features of x86 processors are varied"
)
def test_narrower_vectors():
    call(sweep, ("float32",), 1, env=TARGETS["avx2"][0], timeout=300)
