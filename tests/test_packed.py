"""Prepacked weights: the bits of the array they were made of, in every use, and in no use anything else."""

import copy
import pickle
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.native import target
from fastrelu.operations import FLOATS, LAYERS
from tests.dtypes import dtype_of
from tests.subprocesses import call as call_in_process
from tests.test_target import TARGETS

Array = np.ndarray

NAMES = sorted({layer.base for layer in LAYERS.values()})
ALL = pytest.mark.parametrize("name", NAMES)
DTYPES = pytest.mark.parametrize("dtype", FLOATS)
# Nothing, less than a vector, a vector, the widest tile, and one more or less than each.
SIZES = [(0, 0), (0, 5), (5, 0), (1, 1), (3, 7), (2, 8), (300, 9), (17, 15), (4, 16), (5, 17), (31, 31), (256, 32), (257, 33)]
SIZES += [(7, 47), (9, 48), (40, 49), (6, 63), (70, 64), (5, 65), (33, 127), (8, 128), (3, 129), (513, 200)]


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def of_random_bits(k: int, n: int, dtype: Any) -> Array:
    """Every exponent, both signs, subnormals, infinities, quiet NaNs of any payload."""
    dtype = np.dtype(dtype)
    w = np.random.default_rng([k, n]).integers(0, 256, (k, n * dtype.itemsize), np.uint8).view(dtype)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-40, -1e-40, 1e-7, 1e-310]).astype(dtype)
    w.flat[: min(len(special), w.size)] = special[: w.size]
    # The top bit of the fraction makes a NaN a quiet one. Calculating with one that signals sets it.
    quiet = {"float16": 1 << 9, "bfloat16": 1 << 6, "float32": 1 << 22, "float64": 1 << 51}[dtype.name]
    bits = w.view(f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        bits[np.isnan(w)] |= bits.dtype.type(quiet)
    return w


def bits(a: Array) -> Array:
    return np.ascontiguousarray(a).view(f"u{a.itemsize}")


def parameters(name: str, n: int, dtype: Any = np.float32) -> list[Any]:
    """alpha, of a layer that has it."""
    wide = np.float32 if np.dtype(dtype).itemsize == 2 else dtype
    kind = LAYERS[name].alpha
    return [np.linspace(-1, 1, n).astype(wide)] * (kind == "(n)") + [np.dtype(wide).type(0.3)] * (kind == "()")


LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "c": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "sliced": lambda w: np.repeat(np.repeat(w, 2, axis=0), 3, axis=1)[::2, ::3],
    "rows_reversed": lambda w: np.ascontiguousarray(w[::-1])[::-1],
    "columns_reversed": lambda w: np.ascontiguousarray(w[:, ::-1])[:, ::-1],
    "transposed_and_reversed": lambda w: np.ascontiguousarray(w.T[::-1, ::-1])[::-1, ::-1].T,
    "part_of_a_larger_one": lambda w: np.pad(w, 1)[1:-1, 1:-1],
    "unaligned": lambda w: np.frombuffer(b"\0" + w.tobytes(), np.uint8)[1:].view(w.dtype).reshape(w.shape),
    "read_only": lambda w: np.frombuffer(w.tobytes(), np.uint8).view(w.dtype).reshape(w.shape),
    "byteswapped": lambda w: w.astype(w.dtype.newbyteorder()),
}


# What it is.


@DTYPES
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_unpacking_gives_every_bit_back(dtype: str, k: int, n: int) -> None:
    w = of_random_bits(k, n, dtype_of(dtype))
    packed = fastrelu.pack(w)
    assert (packed.shape, packed.dtype) == ((k, n), w.dtype)
    back = packed.unpack()
    assert (back.shape, back.dtype) == (w.shape, w.dtype)
    assert_array_equal(bits(back), bits(w))
    assert packed.matches(w)


@DTYPES
def test_unpacking_gives_back_nans_that_signal(dtype: str) -> None:
    fraction = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}[dtype]
    unsigned = np.dtype(f"u{dtype_of(dtype).itemsize}")
    infinity = (1 << 8 * unsigned.itemsize - 1) - (1 << fraction)
    w = np.array([[infinity + 1, infinity + 2, infinity + (1 << fraction - 1) - 1]] * 3, unsigned).view(dtype_of(dtype))
    packed = fastrelu.pack(w)
    # The processor's conversion of a float16 makes such a NaN a quiet one.
    quiet = 1 << fraction - 1 if dtype == "float16" else 0
    assert_array_equal(bits(packed.unpack()), bits(w) | unsigned.type(quiet))
    assert packed.matches(w) is (dtype != "float16")


@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packing_from_every_layout(dtype: str, layout: str) -> None:
    if (dtype, layout) == ("bfloat16", "byteswapped"):
        pytest.skip("bfloat16 has one byte order")
    for k, n in ((3, 7), (40, 65), (300, 33)):
        w = of_random_bits(k, n, dtype_of(dtype)).copy()
        source = LAYOUTS[layout](w)
        packed = fastrelu.pack(source)
        assert packed.dtype == w.dtype
        assert packed.dtype.isnative
        assert_array_equal(bits(packed.unpack()), bits(w))
        assert packed.matches(w)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_array_of_the_other_byte_order_is_matched_and_taken_over(dtype: str) -> None:
    w = normal(5, 9, dtype=dtype)
    swapped = w.astype(w.dtype.newbyteorder())
    packed = fastrelu.pack(np.zeros_like(swapped))
    assert not packed.matches(swapped)
    packed.update(swapped)
    assert packed.matches(swapped)
    assert packed.matches(w)


def test_packing_a_list() -> None:
    packed = fastrelu.pack([[1.0, -2.0], [3.5, 4.0], [0.0, 1e-320]])
    assert (packed.shape, packed.dtype) == ((3, 2), np.float64)
    assert packed.unpack().tolist() == [[1.0, -2.0], [3.5, 4.0], [0.0, 1e-320]]


def test_packing_a_part_of_a_batch_that_repeats_a_row() -> None:
    w = np.broadcast_to(normal(65), (40, 65))
    assert_array_equal(fastrelu.pack(w).unpack(), w)


@DTYPES
@pytest.mark.parametrize(("k", "n"), SIZES)
def test_nbytes_are_those_of_the_array_and_less_than_a_vector_a_row_more(dtype: str, k: int, n: int) -> None:
    itemsize = max(4, dtype_of(dtype).itemsize)
    nbytes = fastrelu.pack(np.zeros((k, n), dtype_of(dtype))).nbytes
    assert type(nbytes) is int
    assert k * n * itemsize <= nbytes <= k * (n * itemsize + target.vector_bytes() - itemsize)


@DTYPES
def test_repr(dtype: str) -> None:
    packed = fastrelu.pack(np.zeros((3, 4), dtype_of(dtype)))
    assert repr(packed) == str(packed) == f"PackedWeight(shape=(3, 4), dtype={dtype})"
    assert isinstance(packed, fastrelu.PackedWeight)


# It is a copy.


@ALL
def test_changing_the_array_does_not_change_results(name: str) -> None:
    x, w, b = normal(20, 30), normal(30, 40), normal(40)
    expected = getattr(fastrelu, name)(x, w, b, *parameters(name, 40))
    packed = fastrelu.pack(w)
    before = w.copy()
    w[:] = np.nan
    assert_array_equal(getattr(fastrelu, name)(x, packed, b, *parameters(name, 40)), expected)
    assert packed.matches(before)
    assert not packed.matches(w)


def test_unpacked_array_is_a_copy() -> None:
    w = normal(5, 33)
    packed = fastrelu.pack(w)
    packed.unpack()[:] = 0
    assert packed.matches(w)


@DTYPES
def test_matches_tells_every_bit(dtype: str) -> None:
    w = of_random_bits(6, 37, dtype_of(dtype)).copy()
    packed = fastrelu.pack(w)
    assert packed.matches(np.asfortranarray(w))
    for i, j in ((0, 0), (5, 36), (2, 31), (3, 32)):
        for bit in (0, 8 * w.itemsize - 1):
            other = w.copy()
            other.view(f"u{w.itemsize}")[i, j] ^= np.array(1 << bit, f"u{w.itemsize}")
            assert not packed.matches(other)
    zero = fastrelu.pack(np.zeros((2, 3), w.dtype))
    assert not zero.matches(-np.zeros((2, 3), w.dtype))


def test_matches_nothing_of_another_shape_or_type() -> None:
    w = np.ones((4, 4), np.float32)
    packed = fastrelu.pack(w)
    for other in (
        w[:3],
        w[:, :3],
        w[None],
        w.ravel(),
        w.astype(np.float64),
        w.astype(np.float16),
        w.astype(int),
        1.0,
        "w",
        None,
    ):
        assert packed.matches(other) is False
    assert packed.matches(w) is True
    assert fastrelu.pack(w.astype(np.float64)).matches(w.tolist()) is True
    empty = fastrelu.pack(np.ones((0, 4), np.float32))
    assert empty.matches(np.ones((0, 4), np.float32))
    assert not empty.matches(np.ones((4, 0), np.float32))


@DTYPES
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "byteswapped"])
def test_update(dtype: str, layout: str) -> None:
    for k, n in ((3, 7), (300, 65)):
        packed = fastrelu.pack(np.zeros((k, n), dtype_of(dtype)))
        place, nbytes = packed._data.ctypes.data, packed.nbytes
        w = of_random_bits(k, n, dtype_of(dtype)).copy()
        assert packed.update(LAYOUTS[layout](w)) is None
        assert packed.matches(w)
        assert (packed._data.ctypes.data, packed.nbytes) == (place, nbytes)
        finite = normal(k, n, dtype=dtype_of(dtype))
        packed.update(finite)
        x = normal(5, k, dtype=dtype_of(dtype))
        assert_array_equal(fastrelu.linear(x, packed), fastrelu.linear(x, finite), strict=True)


def test_refused_update_changes_nothing() -> None:
    w = normal(4, 5)
    packed = fastrelu.pack(w)
    for wrong in (w.astype(np.float64), w.astype(np.float16), w.astype(int), w > 0, w.tolist(), None, packed):
        with pytest.raises(TypeError, match=r"^update: w must"):
            packed.update(wrong)
    for wrong in (w.T, w[:3], w[:, :4], w[None], w[0], np.float32(1)):
        with pytest.raises(ValueError, match=rf"^update: w must have .*not (shape )?{re.escape(str(np.shape(wrong)))}$"):
            packed.update(wrong)
    assert packed.matches(w)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (1, 3, 4), (0,)], ids=str)
def test_packing_other_than_two_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"^pack: w must have two axes, \(k, n\), not shape {re.escape(str(shape))}$"):
        fastrelu.pack(np.zeros(shape))


@pytest.mark.parametrize(
    "dtype", ["int8", "int64", "uint8", "bool", "complex64", "object", "longdouble", "U1", "M8[s]", "f4,f4"]
)
def test_packing_other_types(dtype: str) -> None:
    if np.dtype(dtype) == np.float64:
        pytest.skip("long double is float64 on this machine")
    text = f"pack: w must be float16, bfloat16, float32 or float64, not {np.dtype(dtype).name}"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        fastrelu.pack(np.zeros((3, 4), dtype))


@pytest.mark.parametrize("wrong", [None, "w", [[1, 2]], [[True]]], ids=repr)
def test_packing_what_is_no_matrix_of_floats(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^pack: w must be"):
        fastrelu.pack(wrong)


def test_packing_a_packed_weight() -> None:
    with pytest.raises(TypeError, match=r"^pack: w must be"):
        fastrelu.pack(fastrelu.pack(np.ones((2, 2))))


# In use: the bits of the array.


@ALL
@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_results_have_the_bits_of_the_array(name: str, dtype: str, bias: bool) -> None:
    of_type = dtype_of(dtype)
    for m, k, n in ((1, 3, 5), (2, 300, 33), (5, 7, 64), (13, 257, 65), (3, 0, 4), (0, 3, 4), (3, 4, 0), (400, 70, 49)):
        x, w = normal(m, k, dtype=of_type), normal(k, n, dtype=of_type)
        b = normal(n, dtype=of_type) if bias else None
        alpha = parameters(name, n, of_type)
        expected = getattr(fastrelu, name)(x, w, b, *alpha)
        packed = fastrelu.pack(w)
        assert_array_equal(getattr(fastrelu, name)(x, packed, b, *alpha), expected, strict=True)
        out = np.zeros((m, n), of_type)
        assert getattr(fastrelu, name)(x, packed, b, *alpha, out=out) is out
        assert_array_equal(out, expected)


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_mask_has_the_bits_of_the_array(dtype: str, bias: bool) -> None:
    of_type = dtype_of(dtype)
    for m, k, n in ((1, 3, 5), (7, 300, 33), (400, 70, 49)):
        x, w = normal(m, k, dtype=of_type), normal(k, n, dtype=of_type)
        b = normal(n, dtype=of_type) if bias else None
        masks = np.full((2, m, (n + 7) // 8), 77, np.uint8)
        y, _ = fastrelu.linear_relu(x, w, b, mask=masks[0])
        assert_array_equal(fastrelu.linear_relu(x, fastrelu.pack(w), b, mask=masks[1])[0], y, strict=True)
        assert_array_equal(masks[1], masks[0])


@ALL
def test_batches_and_layouts_of_x(name: str) -> None:
    x, w, b, alpha = normal(2, 3, 30), normal(30, 40), normal(3, 40), parameters(name, 40)
    packed, f = fastrelu.pack(w), getattr(fastrelu, name)
    expected = f(x, w, b, *alpha)
    layouts = (x, np.asfortranarray(x), x.astype(">f4"), np.repeat(x, 2, axis=2)[..., ::2], x[..., ::-1].copy()[..., ::-1])
    for layout in layouts:
        assert_array_equal(f(layout, packed, b, *alpha), expected, strict=True)
    assert_array_equal(f(x[0, 0], packed, b[0], *alpha), expected[0, 0], strict=True)
    # Overlapping in place.
    square = normal(30, 30)
    result = f(x[0], square, None, *parameters(name, 30))
    f(x[0], fastrelu.pack(square), None, *parameters(name, 30), out=x[0])
    assert_array_equal(x[0], result)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_byteswapped_x_is_of_the_same_type(dtype: str) -> None:
    x, w = normal(5, 7, dtype=dtype), normal(7, 9, dtype=dtype)
    expected = fastrelu.linear(x, w)
    assert_array_equal(fastrelu.linear(x.astype(x.dtype.newbyteorder()), w), expected, strict=True)
    assert_array_equal(fastrelu.linear(x.astype(x.dtype.newbyteorder()), fastrelu.pack(w)), expected, strict=True)


@ALL
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_x_beside_a_float32_weight_gives_float32(name: str, half: str) -> None:
    x, w, b = normal(6, 30, dtype=dtype_of(half)), normal(30, 40), normal(40)
    alpha = parameters(name, 40)
    expected = getattr(fastrelu, name)(x.astype(np.float32), w, b, *alpha)
    assert_array_equal(getattr(fastrelu, name)(x, w, b, *alpha), expected, strict=True)
    assert_array_equal(getattr(fastrelu, name)(x, fastrelu.pack(w), b, *alpha), expected, strict=True)


@ALL
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_float32_x_beside_a_half_weight_gives_float32(name: str, half: str) -> None:
    x, w, b = normal(6, 30), normal(30, 40, dtype=dtype_of(half)), normal(40)
    alpha = parameters(name, 40)
    expected = getattr(fastrelu, name)(x, w.astype(np.float32), b, *alpha)
    assert_array_equal(getattr(fastrelu, name)(x, fastrelu.pack(w), b, *alpha), expected, strict=True)
    # The same object serves the half as well.
    packed = fastrelu.pack(w)
    for a in (x, x.astype(w.dtype), x):
        given = (b.astype(a.dtype), *alpha)
        assert_array_equal(getattr(fastrelu, name)(a, packed, *given), getattr(fastrelu, name)(a, w, *given), strict=True)


PAIRS = [("int8", "float32"), ("uint16", "float32"), ("int8", "float64"), ("int32", "float64")]
PAIRS += [("float16", "float64"), ("bfloat16", "float64"), ("float32", "float64")]


@ALL
@pytest.mark.parametrize(("narrow", "wide"), PAIRS)
def test_x_that_fits_the_type_of_the_weight(name: str, narrow: str, wide: str) -> None:
    x, w, b = np.abs(5 * normal(6, 30)).astype(dtype_of(narrow)), normal(30, 40, dtype=wide), normal(40, dtype=wide)
    alpha = parameters(name, 40, wide)
    expected = getattr(fastrelu, name)(x, w, b, *alpha)
    assert expected.dtype == wide
    assert_array_equal(getattr(fastrelu, name)(x, fastrelu.pack(w), b, *alpha), expected, strict=True)


MISFITS = [("float64", "float32"), ("int64", "float32"), ("int32", "float32"), ("float64", "float16"), ("float64", "bfloat16")]
MISFITS += [("float16", "bfloat16"), ("bfloat16", "float16")]


@ALL
@pytest.mark.parametrize(("given", "packed"), MISFITS)
def test_x_that_does_not_fit_is_refused(name: str, given: str, packed: str) -> None:
    # A weight in another type would be another weight.
    x, w = normal(6, 30).astype(dtype_of(given)), fastrelu.pack(normal(30, 40, dtype=dtype_of(packed)))
    out = np.full((6, 40), 77.0)
    with pytest.raises(TypeError, match=rf"^{name}: x must .*{packed}.*not {given}$"):
        getattr(fastrelu, name)(x, w, None, *parameters(name, 40), out=out)
    assert_array_equal(out, 77)


@ALL
@pytest.mark.parametrize("dtype", ["bool", "complex64", "object", "str", "M8[s]"])
@pytest.mark.parametrize("packed", FLOATS)
def test_x_of_no_number_type_is_refused(name: str, dtype: str, packed: str) -> None:
    out = np.full((6, 40), 77.0)
    w = fastrelu.pack(np.ones((30, 40), dtype_of(packed)))
    with pytest.raises(TypeError, match=rf"^{name}: x must "):
        getattr(fastrelu, name)(np.zeros((6, 30), dtype), w, None, *parameters(name, 40), out=out)
    assert_array_equal(out, 77)


@ALL
@pytest.mark.parametrize(("packed", "wider"), [("float32", "float64"), ("float16", "float32"), ("bfloat16", "float64")])
def test_wider_bias_gives_the_same_as_beside_the_array_or_is_refused(name: str, packed: str, wider: str) -> None:
    # Rounding it in silence would break the promise that packing does not matter.
    x, w, b = normal(6, 30, dtype=dtype_of(packed)), normal(30, 40, dtype=dtype_of(packed)), normal(40, dtype=wider)
    alpha = parameters(name, 40, dtype_of(packed))
    expected = getattr(fastrelu, name)(x, w, b, *alpha)
    assert expected.dtype == wider
    try:
        result = getattr(fastrelu, name)(x, fastrelu.pack(w), b, *alpha)
    except TypeError as error:
        assert str(error).startswith(f"{name}: ")  # noqa: PT017  # both outcomes are right
    else:
        assert_array_equal(result, expected, strict=True)


# Not in use for anything else.


def test_functions_of_numpy_refuse_it() -> None:
    x, packed = np.ones((3, 3), np.float32), fastrelu.pack(np.ones((3, 3), np.float32))
    for use in (
        lambda: np.matmul(x, packed),
        lambda: np.add(x, packed),
        lambda: x @ packed,
        lambda: packed @ x,
        lambda: x * packed,
        lambda: np.exp(packed),
        lambda: np.dot(x, packed).astype(float),
        lambda: fastrelu.relu(packed),
        lambda: np.array(packed, float),
        lambda: iter(packed),
        lambda: len(packed),
    ):
        with pytest.raises(TypeError):
            use()


@ALL
def test_it_is_a_weight_only(name: str) -> None:
    x, packed, alpha = np.ones((3, 3), np.float32), fastrelu.pack(np.ones((3, 3), np.float32)), parameters(name, 3)
    out = np.full((3, 3), 77, np.float32)
    f = getattr(fastrelu, name)
    for given in ((packed, x, x[0]), (packed, packed, x[0]), (x, x, packed), (x, packed, packed)):
        with pytest.raises(TypeError):
            f(*given, *alpha, out=out)
    assert_array_equal(out, 77)
    with pytest.raises(TypeError):
        f(x, packed, None, *alpha, out=packed)
    assert packed.matches(x)


@ALL
@pytest.mark.parametrize("n", [5, 16, 40])
def test_axes_of_a_packed_weight_mean_the_same_or_are_refused(name: str, n: int) -> None:
    x, w = normal(6, n), normal(n, n)
    alpha = parameters(name, n)
    end = [-1] * (LAYERS[name].alpha == "(n)") + [()] * (LAYERS[name].alpha == "()")
    # x of another layout is no matter of the weight.
    packed, f = fastrelu.pack(w), getattr(fastrelu, name)
    keywords = {"axes": [0, (-2, -1), *end, -1]}
    assert_array_equal(f(x.T, packed, None, *alpha, **keywords), f(x, w, None, *alpha), strict=True)
    # Rows for columns: the packed order has no transpose.
    keywords = {"axes": [-1, (-1, -2), *end, -1]}
    expected = f(x, w, None, *alpha, **keywords)
    try:
        result = f(x, packed, None, *alpha, **keywords)
    except (TypeError, ValueError):
        return
    assert_array_equal(result, expected, strict=True)


# Copies.

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle_{p}": lambda w, p=p: pickle.loads(pickle.dumps(w, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}


@DTYPES
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize(("k", "n"), [(30, 65), (0, 4), (4, 0)])
def test_copies(dtype: str, change: Callable[[Any], Any], k: int, n: int) -> None:
    w = of_random_bits(k, n, dtype_of(dtype))
    packed = fastrelu.pack(w)
    other = change(packed)
    assert type(other) is fastrelu.PackedWeight
    assert (other.shape, other.dtype, other.nbytes) == (packed.shape, packed.dtype, packed.nbytes)
    assert other.matches(w)
    # Neither shares memory with the other.
    packed.update(np.zeros_like(w))
    assert other.matches(w)


def pack_and_save(path: str) -> None:
    Path(path).write_bytes(pickle.dumps([fastrelu.pack(of_random_bits(30, 65, dtype_of(t))) for t in FLOATS]))


def load_and_calculate(path: str, results: str) -> None:
    found = []
    for dtype, packed in zip(FLOATS, pickle.loads(Path(path).read_bytes()), strict=True):
        assert packed.matches(of_random_bits(30, 65, dtype_of(dtype)))
        packed.update(normal(30, 65, dtype=dtype_of(dtype)))
        copied = pickle.loads(pickle.dumps(packed))
        found.append(fastrelu.linear_relu(normal(7, 30, dtype=dtype_of(dtype)), copied).tobytes())
    Path(results).write_bytes(pickle.dumps((target.vector_bytes(), found)))


@pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")
@pytest.mark.parametrize("to", ["avx2", pytest.param("sse4", marks=pytest.mark.nightly)])
def test_pickled_here_and_used_where_vectors_are_narrower(tmp_path: Path, to: str) -> None:
    here, there = tmp_path / "packed", tmp_path / "results"
    pack_and_save(str(here))
    call_in_process(load_and_calculate, str(here), str(there), env=TARGETS[to][0], timeout=120)
    width, found = pickle.loads(there.read_bytes())
    assert width == TARGETS[to][1]
    for dtype, result in zip(FLOATS, found, strict=True):
        x, w = normal(7, 30, dtype=dtype_of(dtype)), normal(30, 65, dtype=dtype_of(dtype))
        assert result == fastrelu.linear_relu(x, w).tobytes()


@pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")
def test_pickled_where_vectors_are_narrower_and_used_here(tmp_path: Path) -> None:
    call_in_process(pack_and_save, str(tmp_path / "packed"), env=TARGETS["avx2"][0], timeout=120)
    load_and_calculate(str(tmp_path / "packed"), str(tmp_path / "results"))
    width, found = pickle.loads((tmp_path / "results").read_bytes())
    assert width == target.vector_bytes()
    for dtype, result in zip(FLOATS, found, strict=True):
        x, w = normal(7, 30, dtype=dtype_of(dtype)), normal(30, 65, dtype=dtype_of(dtype))
        assert result == fastrelu.linear_relu(x, w).tobytes()


# Many threads, and arrays of other libraries.


def test_eight_threads_use_one_object() -> None:
    w, b = normal(200, 300), normal(300)
    packed = fastrelu.pack(w)
    inputs = [normal(m, 200) for m in (1, 2, 5, 13, 40, 100, 200, 300)]
    expected = [fastrelu.linear_relu(x, w, b) for x in inputs]
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait(30)
        for turn in range(20):
            i = (number + turn) % 8
            assert_array_equal(fastrelu.linear_relu(inputs[i], packed, b), expected[i])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))


def test_eight_threads_pack_at_once() -> None:
    weights = [of_random_bits(300, 200 + i, np.float32) for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            for w, packed in zip(weights, threads.map(fastrelu.pack, weights), strict=True):
                assert packed.matches(w)


@ALL
def test_list_as_x(name: str) -> None:
    # Python's numbers are float64.
    x, w = normal(6, 30, dtype=np.float64), normal(30, 40, dtype=np.float64)
    alpha = parameters(name, 40, np.float64)
    result = getattr(fastrelu, name)(x.tolist(), fastrelu.pack(w), None, *alpha)
    assert_array_equal(result, getattr(fastrelu, name)(x, w, None, *alpha), strict=True)
    with pytest.raises(TypeError, match=rf"^{name}: x must .*float32.*not float64$"):
        getattr(fastrelu, name)(x.tolist(), fastrelu.pack(w.astype(np.float32)), None, *alpha)


class Tagged(np.ndarray):
    """A subclass that can be told from its base."""


class Unwrapping(np.ndarray):
    """A subclass that calculates with copies of its operands, as those of other libraries may."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **keywords: Any) -> Any:
        if out:
            keywords["out"] = tuple(a.view(np.ndarray) if isinstance(a, Unwrapping) else a for a in out)
        return getattr(ufunc, method)(*(np.array(a) for a in inputs), **keywords)


@ALL
@pytest.mark.parametrize("operand", ["x", "b", "out"])
@pytest.mark.parametrize("subclass", [Tagged, Unwrapping], ids=lambda c: c.__name__)
def test_subclass_beside_it(name: str, operand: str, subclass: type) -> None:
    x, w, b, alpha = normal(6, 30), normal(30, 40), normal(40), parameters(name, 40)
    expected = getattr(fastrelu, name)(x, w, b, *alpha)
    of_class = {"x": x, "b": b, "out": np.zeros((6, 40), np.float32)}
    of_class[operand] = of_class[operand].view(subclass)
    out = {"out": of_class["out"]} if operand == "out" else {}
    result = getattr(fastrelu, name)(of_class["x"], fastrelu.pack(w), of_class["b"], *alpha, **out)
    assert type(result) is (Tagged if subclass is Tagged else np.ndarray)
    assert_array_equal(result.view(np.ndarray), expected, strict=True)


@ALL
@pytest.mark.parametrize("operand", ["x", "b", "alpha"])
def test_dask_beside_it(name: str, operand: str) -> None:
    da = pytest.importorskip("dask.array")
    alpha = parameters(name, 40)
    if operand == "alpha" and not alpha:
        pytest.skip("no alpha")
    given = {"x": normal(60, 30), "b": normal(40), **({"alpha": np.asarray(alpha[0])} if alpha else {})}
    w = normal(30, 40)
    f = getattr(fastrelu, name)
    x, *rest = given.values()
    expected = f(x, w, *rest)
    given[operand] = da.from_array(given[operand], chunks=(25, 30) if operand == "x" else -1)
    x, *rest = given.values()
    result = f(x, fastrelu.pack(w), *rest)
    assert isinstance(result, da.Array)
    assert_array_equal(result.compute(scheduler="threads"), expected, strict=True)


@ALL
def test_object_that_becomes_an_array_beside_it(name: str) -> None:
    x, w, alpha = normal(6, 30), normal(30, 40), parameters(name, 40)
    expected = getattr(fastrelu, name)(x, w, None, *alpha)
    assert_array_equal(getattr(fastrelu, name)(memoryview(x), fastrelu.pack(w), None, *alpha), expected, strict=True)
