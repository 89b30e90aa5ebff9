"""Fused layers: the bits of every sum, whatever the shape, the layout, the batch, the threads and the packing."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.operations import FLOATS, HALVES, KC, LAYERS
from tests import reference
from tests.dtypes import dtype_of
from tests.reference import bits

Array = np.ndarray

WIDE = ("float32", "float64")
BASES = sorted({layer.base for layer in LAYERS.values()})
# Every remainder of a tile, of a register, of a block of a sum.
M = [*range(1, 14)]
N = [*range(1, 71), *range(127, 131), 257]
K = [*range(21), *range(KC - 1, KC + 3), *range(2 * KC - 1, 2 * KC + 3), 1000]


def normal(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Random numbers of both signs, so that every other order of a sum has other bits."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype_of(dtype))


def problem(dtype: str, m: int, k: int, n: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """An x, a w and a b."""
    flat = normal(dtype, m * k + k * n + n, seed=seed)
    return flat[: m * k].reshape(m, k), flat[m * k : m * k + k * n].reshape(k, n), flat[m * k + k * n :]


def alphas(name: str, n: int) -> tuple[Any, ...]:
    """The parameter of a layer, if it has one. The numbers are not those of any half."""
    kind = LAYERS[name].alpha
    return () if not kind else (0.3,) if kind == "()" else (np.linspace(-0.3, 0.7, n, dtype=np.float32),)


def fitting(name: str, dtype: str, n: int) -> tuple[Any, ...]:
    """The same, of the type that the layer takes without mixing types."""
    wide = np.float32 if dtype in HALVES else dtype
    return tuple(a if isinstance(a, float) else a.astype(wide) for a in alphas(name, n))


def assert_bits(result: Array, expected: Array, message: Any = "") -> None:
    assert result.dtype == expected.dtype
    assert_array_equal(bits(result), bits(expected), err_msg=str(message))


def bits_of_positive(y: Array) -> Array:
    """The mask of y: the comparison of a bfloat16 with NaN would warn."""
    return np.packbits(~(y.astype(np.float64) <= 0), axis=-1, bitorder="little")


def crossings(ms: list[int], each: int) -> Iterator[tuple[int, int, int]]:
    """Every m with every n, each with a few k, which move on so that each meets many m and n; all three different."""
    following = itertools.cycle(K)
    for m, n in itertools.product(ms, N):
        if m != n:
            for k in itertools.islice((k for k in following if k not in (m, n)), each):
                yield m, n, k


# Shapes.


def test_blocks_are_those_of_the_contract() -> None:
    assert KC == reference.BLOCK


def test_reference_on_a_sum_that_shows_its_order():
    # 1 is half a unit in the last place of 2**24: alone each 1 is lost, but a block of them is not.
    x, one = np.ones((1, 2 * KC + 1), np.float32), np.ones((2 * KC + 1, 2), np.float32)
    y = reference.linear(x, one, np.array([2.0**24, 0], np.float32))
    assert_array_equal(y, [[2.0**24 + KC, 2 * KC + 1]])
    assert_array_equal(fastrelu.linear(x, one, np.array([2.0**24, 0], np.float32)), y)


def test_reference_rounds_once():
    x, b = np.array([[1 + 2.0**-12]], np.float32), np.array([-1 - 2.0**-11], np.float32)
    assert_array_equal(reference.linear(x, x, b), [[2.0**-24]])
    assert_array_equal(fastrelu.linear(x, x, b), [[2.0**-24]])


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("m", M)
def test_every_remainder(m: int, dtype: str) -> None:
    pool = normal(dtype, 400_000, seed=m)
    for number, (_, n, k) in enumerate(crossings([m], 5)):
        # Another alignment each time.
        x = pool[number % 37 :][: m * k].reshape(m, k)
        w = pool[20_000 + number % 41 :][: k * n].reshape(k, n)
        b = pool[number:][:n]
        expected = reference.linear(x, w, b)
        assert_bits(fastrelu.linear(x, w, b), expected, (m, n, k, "C"))
        assert_bits(fastrelu.linear(x, np.asfortranarray(w), b), expected, (m, n, k, "F"))
        assert_bits(fastrelu.linear(x, fastrelu.pack(w), b), expected, (m, n, k, "packed"))
        assert_bits(fastrelu.linear(x, w), reference.linear(x, w), (m, n, k, "no bias"))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("m", [1, 2, 4, 7, 13])
def test_every_remainder_of_halves(m: int, dtype: str) -> None:
    for n, k in itertools.product([*range(1, 71, 3), 128, 257], [0, 1, 3, 17, KC, KC + 1, 600]):
        if len({m, n, k}) == 3:
            x, w, b = problem(dtype, m, k, n)
            expected = reference.layer("linear", x, w, b)
            assert_bits(fastrelu.linear(x, w, b), expected, (m, n, k, "C"))
            assert_bits(fastrelu.linear(x, np.asfortranarray(w), b), expected, (m, n, k, "F"))
            assert_bits(fastrelu.linear(x, fastrelu.pack(w), b), expected, (m, n, k, "packed"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [383, 384, 385, 767, 769, 1537])
def test_rows_around_multiples_of_a_part(m: int, dtype: str) -> None:
    for n, k in [(3, 5), (37, KC + 1), (70, 20)]:
        x, w, b = problem(dtype, m, k, n)
        assert_bits(fastrelu.linear_relu(x, w, b), reference.layer("linear_relu", x, w, b), (n, k))


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_strips_of_a_few_rows(m: int, dtype: str) -> None:
    # The longest strip has 8192 bytes: one, a second one, what is too narrow for one; every remainder of a step of 16 terms.
    longest = 8192 // np.dtype(dtype).itemsize
    for n in (longest - 1, longest + 3, 2 * longest + 301):
        for k in (1, 15, 16, 17, KC - 1, KC, KC + 1, 2 * KC + 21):
            x, w, b = problem(dtype, m, k, n)
            assert_bits(fastrelu.linear_relu(x, w, b), reference.layer("linear_relu", x, w, b), (n, k))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [48, 80, 272, 512])  # 512: columns a large power of two apart
def test_contiguous_columns_at_every_place_in_a_cache_line(width: int, dtype: str) -> None:
    flat = normal(dtype, 19 * width + 32)
    line = 64 // flat.itemsize
    rows = flat[-flat.ctypes.data % 64 // flat.itemsize :][: 19 * width].reshape(19, width)
    x, b = normal(dtype, 7, width, seed=1), normal(dtype, 19, seed=2)
    for first in range(line + 1):
        for k in (width - line - 1, (width - first) // 2, line // 2, 3):
            w = rows[:, first : first + k].T
            expected = reference.layer("linear", x[:, :k], w, b)
            assert_bits(fastrelu.linear(x[:, :k], fastrelu.pack(w), b), expected, (first, k))
            for m in (1, 2, 3, 4, 7):
                assert_bits(fastrelu.linear(x[:m, :k], w, b), expected[:m], (first, k, m))


@pytest.mark.parametrize("dtype", FLOATS)
def test_columns_of_x_a_large_power_of_two_apart(dtype: str) -> None:
    columns, w, b = normal(dtype, 40, 512), normal(dtype, 40, 19, seed=1), normal(dtype, 19, seed=2)
    for first in range(33):
        for m in (1, 3, 20, 70):
            x = columns[:, first : first + m].T
            assert_bits(fastrelu.linear(x, w, b), reference.layer("linear", x, w, b), (first, m))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_few_columns(n: int, dtype: str) -> None:
    for m, k in [(6, 2), (17, 3), (33, KC + 1), (64, 16), (130, 20), (259, 2 * KC + 3), (35, 1), (36, 0)]:
        x, w, b = problem(dtype, m, k, n)
        expected = reference.layer("linear", x, w, b)
        assert_bits(fastrelu.linear(x, w, b), expected, (m, k, "C"))
        assert_bits(fastrelu.linear(x, np.asfortranarray(w), b), expected, (m, k, "F"))
        assert_bits(fastrelu.linear(x, w), reference.layer("linear", x, w), (m, k, "no bias"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BASES)
def test_no_terms_leave_the_bias(name: str, dtype: str) -> None:
    x, w, b = problem(dtype, 5, 0, 21)
    b[:3] = np.nan, -0.0, 0.0
    alpha = fitting(name, dtype, 21)
    function = getattr(fastrelu, name)
    assert_bits(function(x, w, b, *alpha), reference.layer(name, x, w, b, *alpha))
    assert_bits(function(x, w, None, *alpha), reference.layer(name, x, w, None, *alpha))
    assert_bits(function(x, fastrelu.pack(w), b, *alpha), reference.layer(name, x, w, b, *alpha))


@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 5), (4, 3, 0), (0, 3, 0), (0, 0, 4), (4, 0, 0)])
def test_empty_results(m: int, k: int, n: int) -> None:
    x, w, b = np.ones((m, k)), np.ones((k, n)), np.ones(n)
    for weight in (w, fastrelu.pack(w)):
        assert fastrelu.linear_relu(x, weight, b).shape == (m, n)
        assert fastrelu.linear_relu(x, weight).shape == (m, n)


# Threads.

# Few rows, few columns, long sums, wide, many rows, a bit of everything: all large enough to be divided.
DIVIDED = [
    (2, 300, 2100),
    (5, 4, 30_011),
    (4001, 60, 3),
    (13, 3000, 71),
    (5, 40, 5003),
    (3001, 20, 37),
    (1601, 300, 5),
    (211, 97, 190),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", DIVIDED)
def test_number_of_threads(shape: tuple[int, int, int], dtype: str) -> None:
    x, w, b = problem(dtype, *shape)
    m, _, n = shape
    expected = reference.layer("linear_relu", x, w, b)
    packed = fastrelu.pack(w)
    for threads in (1, 2, 3, 5, 8):
        with fastrelu.num_threads(threads):
            assert_bits(fastrelu.linear_relu(x, w, b), expected, threads)
            assert_bits(fastrelu.linear_relu(x, np.asfortranarray(w), b), expected, threads)
            y, mask = fastrelu.linear_relu(x, packed, b, mask=np.empty((m, (n + 7) // 8), np.uint8))
            assert_bits(y, expected, threads)
            assert_array_equal(mask, bits_of_positive(expected))


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8])
def test_packing_with_threads(threads: int) -> None:
    _, w, _ = problem("float32", 1, 700, 513)
    with fastrelu.num_threads(threads):
        assert fastrelu.pack(w.T).matches(w.T)
        assert fastrelu.pack(w).matches(w)


# Batches.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("k", "n"), [(33, 1), (5, 3), (300, 29), (20, 130)])
def test_row_alone_and_in_any_batch(k: int, n: int, dtype: str) -> None:
    x, w, b = problem(dtype, 40, k, n)
    whole = fastrelu.linear(x, w, b)
    for i in range(40):
        assert_bits(fastrelu.linear(x[i], w, b), whole[i], i)
    for count in range(2, 15):
        for first in range(0, 40 - count, count):
            assert_bits(fastrelu.linear(x[first : first + count], w, b), whole[first : first + count], (first, count))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("batch", [(2, 3), (1, 4, 5), (3, 1, 2), (2, 0, 3)])
def test_batch_axes_of_x(batch: tuple[int, ...], dtype: str) -> None:
    count = int(np.prod(batch))
    x, w, b = problem(dtype, count, 19, 23)
    y = fastrelu.linear_relu(x.reshape(*batch, 19), w, b)
    assert y.shape == (*batch, 23)
    assert_bits(y.reshape(count, 23), reference.layer("linear_relu", x, w, b))


@pytest.mark.parametrize("dtype", FLOATS)
def test_batch_axes_of_x_in_any_order_of_memory(dtype: str) -> None:
    x, w, b = normal(dtype, 4, 19, 3, 5), normal(dtype, 19, 23), normal(dtype, 23)
    y = fastrelu.linear(x.transpose(3, 0, 2, 1), w, b)
    for i, j, n in np.ndindex(5, 4, 3):
        assert_bits(y[i, j, n], reference.layer("linear", x[j, :, n, i][None], w, b)[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_batch_axes_of_w(order: str, dtype: str) -> None:
    x, w, b = normal(dtype, 5, 1, 3, 21), normal(dtype, 2, 1, 21, 30, seed=1), normal(dtype, 30, seed=2)
    w = w if order == "C" else np.ascontiguousarray(w.swapaxes(-1, -2)).swapaxes(-1, -2)
    y = fastrelu.linear_relu(x, w, b)
    assert y.shape == (5, 2, 3, 30)
    for i, j in np.ndindex(5, 2):
        assert_bits(y[i, j], reference.layer("linear_relu", x[i, 0], w[j, 0], b), (i, j))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BASES)
def test_one_weight_for_each_row(name: str, dtype: str) -> None:
    x, w, b = normal(dtype, 6, 17), normal(dtype, 6, 17, 9, seed=1), normal(dtype, 6, 9, seed=2)
    alpha = fitting(name, dtype, 9)
    y = getattr(fastrelu, name)(x, w, b, *alpha)
    for i in range(6):
        assert_bits(y[i], reference.layer(name, x[i : i + 1], w[i], b[i], *alpha)[0], i)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 5, 3), (4, 300, 70), (13, 20, 33), (800, 9, 5), (70, 33, 3), (2, 40, 4200)])
def test_a_bias_for_each_row(m: int, k: int, n: int, dtype: str) -> None:
    x, w, _ = problem(dtype, m, k, n)
    b = normal(dtype, m, n, seed=9)
    expected = reference.layer("linear", x, w, b)
    for weight in (w, np.asfortranarray(w), fastrelu.pack(w)):
        for bias in (b, np.asfortranarray(b), np.repeat(b, 2, axis=1)[:, ::2], b[::-1].copy()[::-1]):
            assert_bits(fastrelu.linear(x, weight, bias), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["linear_leaky_relu", "linear_elu"])
def test_a_parameter_for_each_row(name: str, dtype: str) -> None:
    x, w, b = problem(dtype, 7, 30, 19)
    alpha = np.linspace(-1, 1, 7, dtype=np.float32 if dtype in HALVES else dtype)
    for weight in (w, np.asfortranarray(w), fastrelu.pack(w)):
        y = getattr(fastrelu, name)(x, weight, b, alpha)
        for i in range(7):
            assert_bits(y[i], reference.layer(name, x[i : i + 1], w, b, alpha[i])[0], i)


@pytest.mark.parametrize("dtype", FLOATS)
def test_slopes_for_each_row(dtype: str) -> None:
    x, w, b = problem(dtype, 7, 30, 19)
    alpha = normal("float32" if dtype in HALVES else dtype, 7, 19, seed=3)
    for weight in (w, np.asfortranarray(w), fastrelu.pack(w)):
        y = fastrelu.linear_prelu(x, weight, b, alpha)
        assert_bits(y, reference.layer("linear_prelu", x, w, b, alpha))


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_slope_for_all(dtype: str) -> None:
    x, w, b = problem(dtype, 7, 30, 19)
    for weight in (w, fastrelu.pack(w)):
        assert_bits(fastrelu.linear_prelu(x, weight, b, 0.3), reference.layer("linear_prelu", x, w, b, 0.3))


# Memory layout.


def unaligned(a: Array) -> Array:
    """The same elements, beginning at an odd address."""
    return np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)


def read_only(a: Array) -> Array:
    a = a.copy()
    a.flags.writeable = False
    return a


def spread(a: Array, *steps: int) -> Array:
    """The same elements, so many elements apart along each axis."""
    slices = tuple(slice(None, None, step) for step in steps)
    base = np.zeros([size * abs(step) for size, step in zip(a.shape, steps, strict=True)], a.dtype)
    base[slices] = a
    return base[slices]


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": lambda a: a,
    "F": np.asfortranarray,
    "rows_apart": lambda a: spread(a, 2, 1) if a.ndim == 2 else spread(a, 2),
    "columns_apart": lambda a: spread(a, 1, 3) if a.ndim == 2 else spread(a, 3),
    "F_columns_apart": lambda a: spread(a.T, 3, 1).T,
    "rows_reversed": lambda a: spread(a, -1, 1) if a.ndim == 2 else spread(a, -1),
    "columns_reversed": lambda a: spread(a, 1, -1) if a.ndim == 2 else spread(a, -1),
    "all_reversed": lambda a: spread(a, *[-2] * a.ndim),
    "unaligned": unaligned,
    "swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "read_only": read_only,
}


def laid_out(layout: str, a: Array) -> Array:
    if a.ndim == 1 and layout == "F_columns_apart":
        return spread(a, 5)
    if a.dtype.name == "bfloat16" and layout == "swapped":
        return a  # ml_dtypes has no other byte order
    result = LAYOUTS[layout](a)
    assert_array_equal(result, a)
    return result


# Packed, read in place, transposed in registers, strips, few columns, many rows.
SHAPES = [(13, 29, 70), (5, 300, 128), (3, 35, 66), (2, 40, 4200), (1, 7, 300), (70, 33, 3), (50, 17, 4)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layout_of_inputs(shape: tuple[int, int, int], layout: str, dtype: str) -> None:
    x, w, b = problem(dtype, *shape)
    expected = reference.layer("linear_relu", x, w, b)
    for which in range(1, 8):
        operands = [laid_out(layout, a) if which >> i & 1 else a for i, a in enumerate((x, w, b))]
        assert_bits(fastrelu.linear_relu(*operands), expected, which)
    # The weight transposed, the others of this layout.
    assert_bits(fastrelu.linear_relu(laid_out(layout, x), np.asfortranarray(w), laid_out(layout, b)), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_zero_strides(shape: tuple[int, int, int], dtype: str) -> None:
    m, k, n = shape
    x, w, b = problem(dtype, m, k, n)
    of_x = [x, np.broadcast_to(x[:1], (m, k)), np.broadcast_to(x[:, :1], (m, k)), np.broadcast_to(x[:1, :1], (m, k))]
    of_w = [w, np.broadcast_to(w[:1], (k, n)), np.broadcast_to(w[:, :1], (k, n)), np.broadcast_to(w[:1, :1], (k, n))]
    for x, w, bias in itertools.product(of_x, of_w, [b, np.broadcast_to(b[:1], n)]):
        assert_bits(fastrelu.linear(x, w, bias), reference.layer("linear", x, w, bias), (x.strides, w.strides, bias.strides))


def assert_surroundings(out: Array, whole: Array, mark: float) -> None:
    """Nothing was written beside `out`, a part of `whole`."""
    out[...] = mark
    assert (whole == np.array(mark, whole.dtype)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["linear", "linear_relu", "linear_tanh"])
@pytest.mark.parametrize("shape", SHAPES)
def test_layout_of_the_output(shape: tuple[int, int, int], name: str, dtype: str) -> None:
    m, _, n = shape
    x, w, b = problem(dtype, *shape)
    expected = reference.layer(name, x, w, b)
    views: list[Callable[[Array], Array]] = [
        lambda a: a[:m, :n],
        lambda a: a.reshape(-1)[: m * n].reshape(m, n),
        lambda a: a.reshape(-1)[3 : 3 + m * n].reshape(n, m).T,
        lambda a: a[: 2 * m : 2, : 3 * n : 3],
        lambda a: a[1 : m + 1, 5 : n + 5][::-1],
        lambda a: a[1 : m + 1, 5 : n + 5][:, ::-1],
        lambda a: a[: 2 * m, : 3 * n][::-2, ::-3],
    ]
    whole = np.full((2 * m + 1, 3 * n + 5), 77, expected.dtype)
    for number, view in enumerate(views):
        for weight in (w, np.asfortranarray(w), fastrelu.pack(w)):
            whole[...] = 77
            out = view(whole)
            assert getattr(fastrelu, name)(x, weight, b, out=out) is out
            assert_bits(out, expected, number)
            assert_surroundings(out, whole, 77)


@pytest.mark.parametrize("dtype", WIDE)
def test_unaligned_and_swapped_output(dtype: str) -> None:
    x, w, b = problem(dtype, 7, 19, 29)
    expected = reference.linear(x, w, b)
    unaligned_out = np.zeros(7 * 29 * expected.itemsize + 1, np.uint8)[1:].view(dtype).reshape(7, 29)
    for out in (unaligned_out, np.empty((7, 29), np.dtype(dtype).newbyteorder("S"))):
        fastrelu.linear(x, w, b, out=out)
        assert_bits(out.astype(dtype), expected)


# Fused, packed.

FORMS: dict[str, Callable[[Array], Array]] = {
    "C": lambda w: w,
    "F": np.asfortranarray,
    "sliced": lambda w: spread(w, 2, 3),
    "reversed": lambda w: spread(w, -1, -1),
    "unaligned": unaligned,
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BASES)
def test_fused_equals_unfused(name: str, dtype: str) -> None:
    function = getattr(fastrelu, name)
    for m, k, n in [(1, 5, 16), (1, 3, 2), (2, 20, 700), (4, 300, 33), (13, 17, 70), (60, 9, 3), (7, 255, 129)]:
        x, w, b = problem(dtype, m, k, n)
        x *= np.array(0.25, x.dtype)  # where the curves bend
        alpha = fitting(name, dtype, n)
        for bias in (b, None):
            expected = reference.layer(name, x, w, bias, *alpha)
            assert_bits(function(x, w, bias, *alpha), expected, (m, k, n))
            assert_bits(function(x, np.asfortranarray(w), bias, *alpha), expected, (m, k, n))
            if dtype in WIDE and name != "linear":  # halves are not rounded before the activation
                activation = getattr(fastrelu, name.removeprefix("linear_"))
                assert_bits(activation(fastrelu.linear(x, w, bias), *alpha), expected, (m, k, n))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["linear_leaky_relu", "linear_elu"])
def test_default_parameter(name: str, dtype: str) -> None:
    x, w, b = problem(dtype, 5, 20, 33)
    default = 0.01 if name == "linear_leaky_relu" else 1.0
    assert_bits(getattr(fastrelu, name)(x, w, b), reference.layer(name, x, w, b, default))
    assert_bits(getattr(fastrelu, name)(x, fastrelu.pack(w)), reference.layer(name, x, w, None, default))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BASES)
def test_packed_equals_unpacked(name: str, dtype: str) -> None:
    function = getattr(fastrelu, name)
    for m, k, n in [(1, 5, 16), (2, 300, 70), (3, 20, 700), (13, 17, 129), (60, 9, 3), (6, 256, 65), (2, 3, 1)]:
        x, w, b = problem(dtype, m, k, n)
        alpha = fitting(name, dtype, n)
        with_bias, without = function(x, w, b, *alpha), function(x, w, None, *alpha)
        for form, laid in FORMS.items():
            packed = fastrelu.pack(laid(w))
            assert_bits(packed.unpack(), w, (m, k, n, form))
            assert_bits(function(x, packed, b, *alpha), with_bias, (m, k, n, form))
            assert_bits(function(x, packed, None, *alpha), without, (m, k, n, form))


@pytest.mark.parametrize("dtype", FLOATS)
def test_packed_and_unpacked_again(dtype: str) -> None:
    for n in N:
        for k in (0, 1, 2, 17, KC, KC + 1):
            w = normal(dtype, k, n)
            w[:1, :1] = np.nan
            assert_bits(fastrelu.pack(w).unpack(), w, (k, n))
            assert_bits(fastrelu.pack(np.asfortranarray(w)).unpack(), w, (k, n))


@pytest.mark.parametrize("dtype", FLOATS)
def test_packed_beside_inputs_of_every_layout(dtype: str) -> None:
    x, w, b = problem(dtype, 13, 29, 70)
    packed, expected = fastrelu.pack(w), reference.layer("linear_relu", x, w, b)
    for layout in LAYOUTS:
        assert_bits(fastrelu.linear_relu(laid_out(layout, x), packed, laid_out(layout, b)), expected, layout)


# Bit masks.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [1, 2, 5, 13])
def test_mask_of_every_remainder(m: int, dtype: str) -> None:
    for n in [*range(1, 71), 128, 131, 257]:
        for k in (0, 3, KC + 1):
            x, w, b = problem(dtype, m, k, n, seed=n)
            b[n // 2] = np.nan
            x[m // 2, : k // 2] = 0
            for bias, weight in itertools.product((b, None), (w, np.asfortranarray(w), fastrelu.pack(w))):
                y = reference.layer("linear_relu", x, w, bias)
                length = (n + 7) // 8
                wide = np.full((2 * m, 3 * length), 0xA5, np.uint8)
                for mask in (np.full((m, length), 0xFF, np.uint8), wide[::2, ::3], wide[::-2, ::-3]):
                    wide[...] = 0xA5
                    result, given = fastrelu.linear_relu(x, weight, bias, mask=mask)
                    assert given is mask
                    assert_bits(result, y, (m, n, k))
                    assert_array_equal(mask, bits_of_positive(y), err_msg=str((m, n, k)))
                    if mask.base is wide:
                        assert_surroundings(mask, wide, 0xA5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_mask_of_a_long_strip(dtype: str) -> None:
    for m, k, n in [(1, 20, 4201), (3, 300, 2601), (800, 3, 19), (70, 9, 4)]:
        x, w, b = problem(dtype, m, k, n)
        y, mask = fastrelu.linear_relu(x, w, b, mask=np.empty((m, (n + 7) // 8), np.uint8))
        assert_bits(y, reference.layer("linear_relu", x, w, b))
        assert_array_equal(mask, bits_of_positive(y))


@pytest.mark.parametrize("dtype", FLOATS)
def test_mask_with_an_output_of_any_layout(dtype: str) -> None:
    x, w, b = problem(dtype, 13, 21, 43)
    expected = reference.layer("linear_relu", x, w, b)
    for out in (np.empty((13, 43), x.dtype), np.empty((43, 13), x.dtype).T, np.empty((26, 129), x.dtype)[::2, ::-3]):
        mask = np.empty((13, 6), np.uint8)
        y, _ = fastrelu.linear_relu(x, w, b, out=out, mask=mask)
        assert y is out
        assert_bits(y, expected)
        assert_array_equal(mask, bits_of_positive(expected))


@pytest.mark.parametrize("dtype", FLOATS)
def test_mask_of_a_batch_of_weights(dtype: str) -> None:
    x, w, b = normal(dtype, 3, 5, 11), normal(dtype, 3, 1, 11, 19, seed=1), normal(dtype, 19, seed=2)
    y, mask = fastrelu.linear_relu(x, w, b, mask=np.empty((3, 5, 3), np.uint8))
    assert_array_equal(mask, bits_of_positive(y))
    for i in range(3):
        assert_bits(y[i], reference.layer("linear_relu", x[i], w[i, 0], b))


def test_mask_where_a_half_underflows() -> None:
    # The sum is positive, and y, which the backward pass needs, is 0.
    x, w = np.full((1, 1), 2.0**-14, np.float16), np.full((1, 3), 2.0**-12, np.float16)
    y, mask = fastrelu.linear_relu(x, w, mask=np.empty((1, 1), np.uint8))
    assert_array_equal(y, np.zeros((1, 3)))
    assert_array_equal(mask, bits_of_positive(y))


# Exact sums, and how far others may be off.


@pytest.mark.parametrize("dtype", FLOATS)
def test_integers_are_exact(dtype: str) -> None:
    rng = np.random.default_rng(4)
    # No sum exceeds what the type counts exactly.
    limit = {"float16": 2, "bfloat16": 1}.get(dtype, 60)
    for m, k, n in [(1, 31, 65), (4, 250, 40), (13, 60, 5), (33, 17, 3), (9, 200, 131)]:
        x, w, b = (rng.integers(-limit, limit + 1, shape) for shape in [(m, k), (k, n), (n,)])
        if dtype == "bfloat16":
            x[:, 100:] = 0  # beyond 256 it counts in twos
        kind = dtype_of(dtype)
        y = fastrelu.linear(x.astype(kind), w.astype(kind), b.astype(kind))
        assert y.dtype == kind
        assert_array_equal(y.astype(np.int64), x @ w + b)
        assert_array_equal(y, (x @ w + b).astype(kind))


def error_and_size(x: Array, w: Array, b: Array) -> tuple[Array, Array]:
    """The error of a float32 sum, and |x| |w| + |b|, whose error is the same as that of the sum by the usual bounds."""
    wide = [a.astype(np.float64) for a in (x, w, b)]
    exact = wide[0] @ wide[1] + wide[2]
    return abs(fastrelu.linear(x, w, b) - exact), abs(wide[0]) @ abs(wide[1]) + abs(wide[2])


U = 2.0**-24


# Numbers of one sign, the hardest for a sum whose errors are measured by the sum of the sizes, and of both.
RANGES = [(0, 1), (0.5, 1), (0.9, 1.1), (-1, 1)]


def uniform(k: int, m: int, low: float, high: float) -> list[Array]:
    rng = np.random.default_rng(k)
    return [rng.uniform(low, high, shape).astype(np.float32) for shape in ((m, k), (k, 70), (70,))]


@pytest.mark.parametrize("m", [3, 13])
@pytest.mark.parametrize("k", [1024, 4096, 16384])
def test_error_of_long_sums(k: int, m: int) -> None:
    gamma = (k + 2) * U / (1 - (k + 2) * U)
    for low, high in RANGES:
        error, size = error_and_size(*uniform(k, m, low, high))
        assert (error <= gamma * size).all()
        assert (error <= 32 * U * size).all()


@pytest.mark.parametrize("m", [3, 13])
@pytest.mark.parametrize("k", [1024, 4096, 16384])
def test_error_that_the_docstring_states(k: int, m: int) -> None:
    for low, high in RANGES:
        error, size = error_and_size(*uniform(k, m, low, high))
        assert (error < 16 * U * size).all(), (low, high, (error / size / U).max())


@pytest.mark.parametrize("k", [1024, 4096, 16384])
def test_error_of_equal_terms(k: int) -> None:
    # Every addition errs in the same direction. A block of sums bounds the error nevertheless, with or without this luck.
    steps = KC + k // KC
    gamma = steps * U / (1 - steps * U)
    for value in (0.1, 0.7, 1 / 3):
        x, w = np.full((5, k), 1, np.float32), np.full((k, 37), value, np.float32)
        error, size = error_and_size(x, w, np.zeros(37, np.float32))
        assert (error <= gamma * size).all()


# NaN, infinities, zeros, subnormal numbers.

EDGES = [(1, 20, 37), (3, 20, 700), (4, 300, 21), (13, 40, 70), (40, 21, 3), (20, 17, 1)]


def without(a: Array, i: int, axis: int) -> Array:
    return np.delete(a, i, axis)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", EDGES)
def test_special_stays_in_its_row_and_column(shape: tuple[int, int, int], special: float, dtype: str) -> None:
    m, k, n = shape
    x, w, b = problem(dtype, m, k, n)
    before = fastrelu.linear(x, w, b)
    for weight in (lambda w: w, np.asfortranarray, fastrelu.pack):
        for i in {0, m // 2, m - 1}:
            hit = x.copy()
            hit[i, k // 3] = special
            y = fastrelu.linear(hit, weight(w), b)
            assert not np.isfinite(y[i]).any()
            assert_bits(without(y, i, 0), without(before, i, 0), i)
            assert_bits(y, reference.layer("linear", hit, w, b))
        for j in {0, n // 2, n - 1}:
            hit = w.copy()
            hit[k // 3, j] = special
            y = fastrelu.linear(x, weight(hit), b)
            assert not np.isfinite(y[:, j]).any()
            assert_bits(without(y, j, 1), without(before, j, 1), j)
            assert_bits(y, reference.layer("linear", x, hit, b))
            hit = b.copy()
            hit[j] = special
            y = fastrelu.linear(x, weight(w), hit)
            assert_bits(y[:, j], np.full(m, special, y.dtype))
            assert_bits(without(y, j, 1), without(before, j, 1), j)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BASES)
def test_nan_passes_every_activation(name: str, dtype: str) -> None:
    x, w, b = problem(dtype, 7, 20, 19)
    b[4] = np.nan
    x[5, 6] = np.nan
    alpha = fitting(name, dtype, 19)
    for weight in (w, np.asfortranarray(w), fastrelu.pack(w)):
        y = getattr(fastrelu, name)(x, weight, b, *alpha)
        assert_array_equal(np.isnan(y), (np.arange(7)[:, None] == 5) | (np.arange(19) == 4))
        assert_bits(y, reference.layer(name, x, w, b, *alpha))


@pytest.mark.parametrize("dtype", FLOATS)
def test_infinite_and_undefined_sums(dtype: str) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([[inf, 1], [inf, -inf], [0, inf], [-inf, 2], [3, 4]], dtype_of(dtype))
    w = np.array([[1, 0, 1], [1, 1, 0]], x.dtype)
    expected = [[inf, nan, inf], [nan, nan, nan], [inf, inf, nan], [-inf, nan, -inf], [7, 4, 3]]
    for weight in (w, np.asfortranarray(w), fastrelu.pack(w)):
        assert_bits(fastrelu.linear(x, weight), np.array(expected, x.dtype))
        positive = np.where(np.isnan(expected), nan, np.maximum(expected, 0))
        assert_bits(fastrelu.linear_relu(x, weight), positive.astype(x.dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_sign_of_zero(dtype: str) -> None:
    kind = dtype_of(dtype)
    for m, k, n in [(1, 1, 19), (3, 2, 40), (13, 5, 33), (20, 3, 1), (4, KC + 1, 17)]:
        minus, zero = np.full((m, k), -0.0, kind), np.zeros((m, k), kind)
        w, b = np.ones((k, n), kind), np.full(n, -0.0, kind)
        for weight in (w, np.asfortranarray(w), fastrelu.pack(w)):
            # -0 + -0 is -0, all others are +0; a second block starts from +0.
            result = fastrelu.linear(minus, weight, b)
            assert_array_equal(np.signbit(result), np.full((m, n), k <= KC))
            assert_bits(result, reference.layer("linear", minus, w, b))
            for x, bias in [(minus, None), (minus, -b), (zero, b), (zero, None)]:
                assert_array_equal(bits(fastrelu.linear(x, weight, bias)), 0)
            # The elementwise relu of -0 is what the fused one returns, and its mask is empty.
            y, mask = fastrelu.linear_relu(minus, weight, b, mask=np.full((m, (n + 7) // 8), 255, np.uint8))
            assert_bits(y, reference.layer("linear_relu", minus, w, b))
            assert_array_equal(mask, 0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_subnormals_are_not_flushed(dtype: str) -> None:
    kind = dtype_of(dtype)
    word = f"u{kind.itemsize}"
    for m, k, n in [(1, 2, 19), (3, 4, 700), (13, 5, 33), (20, 3, 2)]:
        # Subnormal numbers are the first bit patterns: with x = 1 their sum is that of the patterns.
        w = (np.arange(k * n, dtype=word).reshape(k, n) % 13 + 1).astype(word)
        x, b = np.ones((m, k), kind), np.arange(n, dtype=word) % 11
        for weight in (lambda w: w, np.asfortranarray, fastrelu.pack):
            y = fastrelu.linear_relu(x, weight(w.view(kind)), b.view(kind))
            assert_array_equal(y.view(word), np.broadcast_to(w.sum(0) + b, (m, n)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BASES)
def test_no_floating_point_warnings(name: str, dtype: str) -> None:
    info = ml_dtypes.finfo(dtype_of(dtype))
    function = getattr(fastrelu, name)
    for m, k, n in [(1, 3, 5), (3, 2, 17), (7, 20, 33), (13, 6, 1), (5, 300, 70), (2, 5, 700)]:
        x, w, b = problem(dtype, m, k, n)
        x.ravel()[:: m + k] = info.max
        w.ravel()[:: n + 1] = info.max
        x.ravel()[1 :: m + k + 1] = info.smallest_subnormal
        x[-1, -1], w[-1, -1] = np.inf, np.nan
        b[-1] = -np.inf
        alpha = fitting(name, dtype, n)
        expected = reference.layer(name, x, w, b, *alpha)
        for weight in (w, np.asfortranarray(w), fastrelu.pack(w)):
            with np.errstate(all="raise"):
                y = function(x, weight, b, *alpha)
                function(x, weight, None, *alpha)
            assert_bits(y, expected)
