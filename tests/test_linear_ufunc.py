"""Every fused layer is a generalized ufunc in all that it does: operands, keywords, types, overlap, errors."""

import copy
import inspect
import itertools
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu import ufuncs
from fastrelu.operations import FLOATS, LAYERS
from tests.dtypes import dtype_of
from tests.subprocesses import run

Array = np.ndarray

NAMES = sorted({layer.base for layer in LAYERS.values()})
ALL = pytest.mark.parametrize("name", NAMES)
# Those with one alpha for a matrix, and those with one for each column.
SCALAR = [name for name in NAMES if LAYERS[name].alpha == "()"]
ROW = [name for name in NAMES if LAYERS[name].alpha == "(n)"]
M, K, N = 5, 3, 7
IMPORTS = "import numpy as np, fastrelu as f; from ml_dtypes import bfloat16; from numpy import *\n"


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def operands(name: str, m: int = M, k: int = K, n: int = N, dtype: Any = np.float32) -> list[Any]:
    """x, w, b and, of an operation that has it, alpha."""
    found: list[Any] = [normal(m, k, dtype=dtype), normal(k, n, dtype=dtype), normal(n, dtype=dtype)]
    if LAYERS[name].alpha:
        wide = np.float32 if np.dtype(dtype).itemsize == 2 else dtype
        found.append(np.abs(normal(n, dtype=wide, seed=1)) if name in ROW else np.dtype(wide).type(0.3))
    return found


def call(name: str, given: Any, **keywords: Any) -> Any:
    return getattr(fastrelu, name)(*given, **keywords)


def filled(shape: Any, dtype: Any = np.float32) -> Array:
    """An output that shows what is written to it."""
    return np.full(shape, 77, dtype)


# The definition.

ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "linear": lambda z: z,
    "linear_relu": lambda z: np.maximum(z, 0),
    "linear_leaky_relu": lambda z, alpha: np.where(z > 0, z, alpha * z),
    "linear_prelu": lambda z, alpha: np.where(z > 0, z, alpha * z),
    "linear_elu": lambda z, alpha: np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0))),
    "linear_sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "linear_tanh": np.tanh,
    "linear_softplus": lambda z: np.logaddexp(z, 0),
}


@ALL
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_are_those_of_a_product_in_float64(name: str, dtype: str) -> None:
    given = operands(name, 20, 30, 40, dtype_of(dtype))
    x, w, b, *alpha = (np.asarray(a, np.float64) for a in given)
    expected = ACTIVATIONS[name](x @ w + b, *alpha)
    unit = 2.0 ** -{"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}[dtype]
    # No activation is steeper than 1, and each adds a few units of its own; a half is rounded once.
    bound = 8 * unit * (np.abs(x) @ np.abs(w) + np.abs(b)).max()
    assert_allclose(call(name, given).astype(np.float64), expected, rtol=8 * unit, atol=bound)


@ALL
def test_every_layer_has_its_activation_in_the_package(name: str) -> None:
    assert name in fastrelu.__all__
    activation = name.removeprefix("linear").removeprefix("_")
    if activation:
        assert activation in fastrelu.__all__
        for dtype in (np.float32, np.float64):
            x, w, b, *alpha = operands(name, 20, 30, 40, dtype)
            expected = getattr(fastrelu, activation)(fastrelu.linear(x, w, b), *alpha)
            assert_array_equal(call(name, (x, w, b, *alpha)), expected, strict=True)


# Operands.


@ALL
def test_lists_and_tuples(name: str) -> None:
    given = operands(name, dtype=np.float64)
    expected = call(name, given)
    assert_array_equal(call(name, [a.tolist() for a in given]), expected, strict=True)
    x, *rest = given
    assert_array_equal(call(name, [tuple(map(tuple, x)), *rest]), expected, strict=True)


@ALL
def test_x_of_one_axis(name: str) -> None:
    x, *rest = operands(name)
    expected = call(name, (x, *rest))
    for i in range(M):
        result = call(name, (x[i], *rest))
        assert result.shape == (N,)
        assert_array_equal(result, expected[i])


@ALL
def test_missing_bias_is_none(name: str) -> None:
    x, w, _, *alpha = operands(name)
    # A sum starts from the bias: from +0 where there is none.
    expected = call(name, (x, w, np.zeros(N, np.float32), *alpha))
    assert_array_equal(call(name, (x, w, None, *alpha)), expected, strict=True)
    if not alpha:
        assert_array_equal(call(name, (x, w)), expected, strict=True)


@ALL
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (2, 1, 3), (0,), (3, 0), (0, 3)], ids=str)
def test_batches_of_x(name: str, batch: tuple[int, ...]) -> None:
    x, w, b, *alpha = operands(name, int(np.prod(batch)))
    expected = call(name, (x, w, b, *alpha))
    result = call(name, (x.reshape(*batch, K), w, b, *alpha))
    assert_array_equal(result, expected.reshape(*batch, N), strict=True)


@ALL
def test_batches_of_every_operand(name: str) -> None:
    x, w, b = normal(2, 4, K), normal(3, 1, 1, K, N), normal(4, N)
    alpha = [np.abs(normal(2, 1, N))] * (name in ROW) + [np.abs(normal(2, 1))] * (name in SCALAR)
    result = call(name, (x, w, b, *alpha))
    assert (result.shape, result.dtype) == ((3, 2, 4, N), np.float32)
    for s, i, j in np.ndindex(3, 2, 4):
        own = [a[i, 0] for a in alpha]
        assert_array_equal(result[s, i, j], call(name, (x[i, j : j + 1], w[s, 0, 0], b[j], *own))[0])


@ALL
@pytest.mark.parametrize(("m", "k", "n"), [(0, K, N), (M, K, 0), (0, K, 0), (0, 0, N), (M, 0, 0), (0, 0, 0)])
def test_no_elements(name: str, m: int, k: int, n: int) -> None:
    given = operands(name, m, k, n)
    result = call(name, given)
    assert (result.shape, result.dtype) == ((m, n), np.float32)
    out = filled((m, n))
    assert call(name, given, out=out) is out


@ALL
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [1, M, 400])
def test_no_terms_is_the_activation_of_the_bias(name: str, dtype: str, m: int) -> None:
    x, w, b, *alpha = operands(name, m, 0, N, dtype_of(dtype))
    activation = name.removeprefix("linear").removeprefix("_")
    f = getattr(fastrelu, activation) if activation else np.positive
    assert_array_equal(call(name, (x, w, b, *alpha)), np.broadcast_to(f(b, *alpha), (m, N)), strict=True)
    zero = f(np.zeros(N, b.dtype), *alpha)
    assert_array_equal(call(name, (x, w, None, *alpha)), np.broadcast_to(zero, (m, N)), strict=True)


@ALL
@pytest.mark.parametrize("dtype", FLOATS)
def test_unaligned_and_byteswapped(name: str, dtype: str) -> None:
    given = operands(name, dtype=dtype_of(dtype))
    expected = call(name, given)
    unaligned = [np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape) for a in given]
    assert not any(a.flags.aligned for a in unaligned)
    assert_array_equal(call(name, unaligned), expected, strict=True)
    if dtype != "bfloat16":
        swapped = [a.astype(a.dtype.newbyteorder()) for a in given]
        assert_array_equal(call(name, swapped), expected, strict=True)


@ALL
def test_operands_are_left_alone(name: str) -> None:
    given = [np.array(a) for a in operands(name)]
    before = [a.copy() for a in given]
    for a in given:
        a.flags.writeable = False
    assert_array_equal(call(name, given), call(name, before))
    for a, b in zip(given, before, strict=True):
        assert_array_equal(a, b)


# Keywords.


@ALL
def test_out_in_every_spelling(name: str) -> None:
    given = operands(name)
    expected = call(name, given)
    for spelling in (lambda out: out, lambda out: (out,)):
        out = filled((M, N))
        assert call(name, given, out=spelling(out)) is out
        assert_array_equal(out, expected)
        out = filled((M, N))
        defaults = [0.3] * (LAYERS[name].alpha != "" and len(given) == 3)
        assert call(name, [*given, *defaults, spelling(out)]) is out
        assert_array_equal(out, expected)
    for nothing in (None, (None,)):
        assert_array_equal(call(name, given, out=nothing), expected, strict=True)


@ALL
def test_out_ellipsis_returns_an_array(name: str) -> None:
    given = operands(name)
    result = call(name, given, out=...)
    assert type(result) is np.ndarray
    assert_array_equal(result, call(name, given), strict=True)


@ALL
def test_out_of_any_layout(name: str) -> None:
    given = operands(name)
    expected = call(name, given)
    for out in (
        np.asfortranarray(filled((M, N))),
        filled((2 * M, 3 * N))[::-2, ::3],
        filled((M, N + 1))[:, :-1],
        filled((M, N))[:, ::-1],
        np.zeros(4 * M * N + 1, np.uint8)[1:].view(np.float32).reshape(M, N),
        filled((M, N), ">f4"),
        filled((M, N), np.float64),
        filled((2, 1, M, N)),
    ):
        assert call(name, given, out=out) is out
        assert_array_equal(out, np.broadcast_to(expected, out.shape))


@ALL
def test_only_the_elements_of_out_are_written(name: str) -> None:
    frame = filled((M + 2, N + 2))
    given = operands(name)
    call(name, given, out=frame[1:-1, 1:-1])
    assert_array_equal(frame[1:-1, 1:-1], call(name, given))
    frame[1:-1, 1:-1] = 77
    assert_array_equal(frame, 77)


@ALL
def test_axes(name: str) -> None:
    x, w, b, *alpha = operands(name)
    expected = call(name, (x, w, b, *alpha))
    ends = [0] * (name in ROW) + [()] * (name in SCALAR)
    assert_array_equal(call(name, (x.T, w, b, *alpha), axes=[0, (0, 1), 0, *ends, 1]), expected)
    assert_array_equal(call(name, (x, w.T, b, *alpha), axes=[-1, (-1, -2), -1, *ends, -1]), expected)
    out = filled((N, M))
    assert call(name, (x, w, b, *alpha), axes=[1, (0, 1), 0, *ends, 0], out=out) is out
    assert_array_equal(out, expected.T)
    # Without a bias there is no entry for it.
    result = call(name, (x.T, w, None, *alpha), axes=[0, (0, 1), *ends, 0])
    assert_array_equal(result, call(name, (x, w, None, *alpha)).T)


@ALL
def test_wrong_axes(name: str) -> None:
    x, w, b, *alpha = operands(name)
    ends = [0] * (name in ROW) + [()] * (name in SCALAR)
    out = filled((M, N))
    with pytest.raises(np.exceptions.AxisError, match="out of bounds"):
        call(name, (x, w, b, *alpha), axes=[5, (0, 1), 0, *ends, 1], out=out)
    with pytest.raises(ValueError, match="axes"):
        call(name, (x, w, b, *alpha), axes=[0], out=out)
    with pytest.raises(TypeError, match="axis"):
        call(name, (x, w, b, *alpha), axis=0, out=out)
    with pytest.raises(TypeError, match="keepdims"):
        call(name, (x, w, b, *alpha), keepdims=True, out=out)
    for keyword in ("where", "nothing"):
        with pytest.raises(TypeError, match=keyword):
            call(name, (x, w, b, *alpha), out=out, **{keyword: True})
    assert_array_equal(out, 77)


@ALL
def test_dtype_casting_and_signature(name: str) -> None:
    given = operands(name)
    wide = call(name, [a.astype(np.float64) for a in given])
    count = len(given)
    for keywords in (
        {"dtype": np.float64},
        {"dtype": "d"},
        {"signature": "d" * count + "->d"},
        {"signature": (np.float64,) * (count + 1)},
        {"signature": (None,) * count + (np.float64,)},
    ):
        assert_array_equal(call(name, given, **keywords), wide, strict=True)
    for casting in ("no", "equiv", "safe", "same_kind", "unsafe"):
        assert_array_equal(call(name, given, casting=casting), call(name, given), strict=True)
    out = filled((M, N))
    with pytest.raises(TypeError, match="casting rule 'safe'"):
        call(name, [a.astype(np.float64) for a in given], dtype=np.float32, casting="safe", out=out)
    with pytest.raises(TypeError, match="casting rule 'no'"):
        call(name, given, dtype=np.float64, casting="no", out=out)
    assert_array_equal(out, 77)


@ALL
@pytest.mark.parametrize("dtype", ["bool", "complex128", "longdouble", "object", "int32"])
def test_refused_dtype_is_named(name: str, dtype: str) -> None:
    out = filled((M, N))
    with pytest.raises(TypeError, match=rf"^{name}: dtype must be .*float32 or float64, not {np.dtype(dtype).name}$"):
        call(name, operands(name), dtype=dtype, out=out)
    assert_array_equal(out, 77)


@ALL
def test_order(name: str) -> None:
    given = operands(name)
    assert call(name, given).flags.c_contiguous
    fortran = call(name, given, order="F")
    assert fortran.flags.f_contiguous
    assert_array_equal(fortran, call(name, given))
    assert call(name, given, order="C").flags.c_contiguous


class Tagged(np.ndarray):
    """A subclass that can be told from its base."""


@ALL
def test_subok(name: str) -> None:
    given = [np.asarray(a) for a in operands(name)]
    expected = call(name, given)
    for i in range(len(given)):
        mixed = [a.view(Tagged) if i == j else a for j, a in enumerate(given)]
        result = call(name, mixed)
        assert type(result) is Tagged
        assert_array_equal(result.view(np.ndarray), expected)
        assert type(call(name, mixed, subok=False)) is np.ndarray
    out = filled((M, N)).view(Tagged)
    assert call(name, given, out=out) is out
    assert_array_equal(out.view(np.ndarray), expected)


# Memory that inputs and output share: as if the inputs had been copied before.

OVERLAPS: dict[str, Callable[[Array, int, int], tuple[Array, Array]]] = {
    "in_place": lambda a, m, k: (a[:m, :k], a[:m, :k]),
    "one_row_before": lambda a, m, k: (a[1 : m + 1, :k], a[:m, :k]),
    "one_row_after": lambda a, m, k: (a[:m, :k], a[1 : m + 1, :k]),
    "one_column_after": lambda a, m, k: (a[:m, :k], a[:m, 1 : k + 1]),
    "rows_reversed": lambda a, m, k: (a[:m, :k], a[:m, :k][::-1]),
    "columns_reversed": lambda a, m, k: (a[:m, :k], a[:m, :k][:, ::-1]),
    "same_row_every_time": lambda a, m, k: (np.broadcast_to(a[0, :k], (m, k)), a[:m, :k]),
}
# Below and above the size from which a product is divided among threads.
SQUARES = pytest.mark.parametrize(("m", "k"), [(1, 3), (5, 7), (40, 17), (300, 70)])


@ALL
@SQUARES
@pytest.mark.parametrize("view", OVERLAPS)
def test_output_overlaps_x(name: str, m: int, k: int, view: str) -> None:
    _, *rest = operands(name, m, k, k)
    x, out = OVERLAPS[view](normal(m + 1, k + 1), m, k)
    expected = call(name, (x.copy(), *rest))
    assert call(name, (x, *rest), out=out) is out
    assert_array_equal(out, expected)


@ALL
@pytest.mark.parametrize("k", [3, 17, 90])
def test_output_is_the_transpose_of_x(name: str, k: int) -> None:
    x, *rest = operands(name, k, k, k)
    expected = call(name, (x.copy(), *rest))
    call(name, (x, *rest), out=x.T)
    assert_array_equal(x.T, expected)


@ALL
@SQUARES
def test_output_overlaps_w(name: str, m: int, k: int) -> None:
    m = min(m, k)
    for view in (lambda a: a[:m], lambda a: a[-m:], lambda a: a.T[:m], lambda a: a[::-1][:m]):
        x, w, *rest = operands(name, m, k, k)
        expected = call(name, (x, w.copy(), *rest))
        out = view(w)
        call(name, (x, w, *rest), out=out)
        assert_array_equal(out, expected)


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("k", [300, 600, 900])
def test_output_is_w_and_has_rows_for_several_threads(k: int, threads: int) -> None:
    # Each part of the rows needs the whole of w, also after another part is written.
    x, w, b = operands("linear_relu", k, k, k)
    with fastrelu.num_threads(threads):
        expected = fastrelu.linear_relu(x, w.copy(), b)
        fastrelu.linear_relu(x, w, b, out=w)
    assert_array_equal(w, expected)


@ALL
@SQUARES
def test_output_overlaps_the_bias(name: str, m: int, k: int) -> None:
    for view in (lambda a: a[0], lambda a: a[-1], lambda a: a[m // 2], lambda a: a[0][::-1], lambda a: a):
        x, w, _, *alpha = operands(name, m, k, k)
        out = normal(m, k)
        b = view(out)
        expected = call(name, (x, w, b.copy(), *alpha))
        call(name, (x, w, b, *alpha), out=out)
        assert_array_equal(out, expected)


@pytest.mark.parametrize("name", ROW + SCALAR)
@SQUARES
def test_output_overlaps_alpha(name: str, m: int, k: int) -> None:
    for view in (lambda a: a[0], lambda a: a[-1]) if name in ROW else (lambda a: a[m // 2, k // 2], lambda a: a[:, 0]):
        x, w, b, _ = operands(name, m, k, k)
        out = np.abs(normal(m, k))
        alpha = view(out)
        expected = call(name, (x, w, b, np.array(alpha)))
        call(name, (x, w, b, alpha), out=out)
        assert_array_equal(out, expected)


def test_mask_overlaps_x() -> None:
    x, w, b = operands("linear_relu", 4, 4, 30)
    expected = fastrelu.linear_relu(x.copy(), w, b, mask=np.zeros((4, 4), np.uint8))
    mask = x.view(np.uint8)[:, 3:7]
    y, _ = fastrelu.linear_relu(x, w, b, mask=mask)
    assert_array_equal(y, expected[0])
    assert_array_equal(mask, expected[1])


# Outputs that are refused, and stay as they were.


@ALL
@pytest.mark.parametrize("m", [M, 3000])
def test_read_only_out_is_refused(name: str, m: int) -> None:
    out = filled((m, N))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        call(name, operands(name, m), out=out)
    assert_array_equal(out, 77)


@ALL
@pytest.mark.parametrize("smaller", ["int64", "int8", "uint8", "bool"])
def test_out_of_a_lower_kind_is_refused(name: str, smaller: str) -> None:
    out = np.ones((M, N), smaller)
    with pytest.raises(TypeError, match="casting rule 'same_kind'"):
        call(name, operands(name), out=out)
    assert_array_equal(out, np.ones((M, N), smaller))


@ALL
def test_out_of_a_smaller_type_needs_more_than_safe(name: str) -> None:
    given = operands(name, dtype=np.float64)
    out = filled((M, N))
    with pytest.raises(TypeError, match="casting rule 'safe'"):
        call(name, given, out=out, casting="safe")
    assert_array_equal(out, 77)
    call(name, given, out=out)
    assert_array_equal(out, call(name, given).astype(np.float32))


@ALL
@pytest.mark.parametrize("shape", [(M, N + 1), (M, N - 1), (M, 1), (N + 1,), ()], ids=str)
def test_out_with_other_columns_is_refused(name: str, shape: tuple[int, ...]) -> None:
    out = filled(shape)
    with pytest.raises(ValueError, match=rf"^{name}: out must have shape \(\.\.\., {N}\) .*, not {re.escape(str(shape))}$"):
        call(name, operands(name), out=out)
    assert_array_equal(out, 77)


@ALL
@pytest.mark.parametrize("shape", [(M + 1, N), (M - 1, N), (N,), (1, N), (M, 1, N)], ids=str)
def test_out_with_other_rows_is_refused(name: str, shape: tuple[int, ...]) -> None:
    out = filled(shape)
    with pytest.raises(ValueError, match=r"broadcast|reduction"):
        call(name, operands(name), out=out)
    assert_array_equal(out, 77)


@ALL
@pytest.mark.parametrize("out", [[0.0, 0.0], 1.0, "out"], ids=str)
def test_out_must_be_an_array(name: str, out: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name}: out must be an array, not {type(out).__name__}$"):
        call(name, operands(name), out=out)


@ALL
def test_too_many_and_too_few_operands(name: str) -> None:
    f = getattr(fastrelu, name)
    for few in ((), (np.ones((2, 2)),), *([(np.ones((2, 2)), np.ones((2, 2)))] * (name in ROW))):
        with pytest.raises(TypeError, match=name):
            f(*few)
    with pytest.raises(TypeError, match=name):
        f(*[np.ones((2, 2))] * (f.nargs + 1))


# Shapes that do not fit. Which operand is named, and how it should be.

SHAPES = {
    "x_without_axes": ({"x": ()}, "x must have at least one axis, (..., k), not shape ()"),
    "w_of_one_axis": ({"w": (N,)}, f"w must have at least two axes, (..., k, n), not shape ({N},)"),
    "w_without_axes": ({"w": ()}, "w must have at least two axes, (..., k, n), not shape ()"),
    "k_differs": ({"w": (K + 1, N)}, f"w must have shape (..., {K}, n) for x of shape ({M}, {K}), not ({K + 1}, {N})"),
    "k_of_x_is_1": ({"x": (M, 1)}, f"w must have shape (..., 1, n) for x of shape ({M}, 1), not ({K}, {N})"),
    "k_of_w_is_1": ({"w": (1, N)}, f"w must have shape (..., {K}, n) for x of shape ({M}, {K}), not (1, {N})"),
    "w_is_transposed": (
        {"w": (N, K)},
        f"w must have shape (..., {K}, n) for x of shape ({M}, {K}), not ({N}, {K}); w.T would fit",
    ),
    "short_bias": ({"b": (N - 1,)}, f"b must have shape (..., {N}) for w of shape ({K}, {N}), not ({N - 1},)"),
    "bias_of_one_element": ({"b": (1,)}, f"b must have shape (..., {N}) for w of shape ({K}, {N}), not (1,)"),
    "bias_without_axes": ({"b": ()}, f"b must have shape (..., {N}) for w of shape ({K}, {N}), not ()"),
    "bias_of_rows": ({"b": (N, 1)}, f"b must have shape (..., {N}) for w of shape ({K}, {N}), not ({N}, 1)"),
    "short_alpha": ({"alpha": (N - 1,)}, f"alpha must have shape (..., {N}) for w of shape ({K}, {N}), not ({N - 1},)"),
    "alpha_of_one_element": ({"alpha": (1,)}, f"alpha must have shape (..., {N}) for w of shape ({K}, {N}), not (1,)"),
}
# Each way leads through other code.
WAYS = ("plain", "no_bias", "out", "packed", "packed_out", "mask", "packed_mask")


def wrong_shapes() -> Iterator[Any]:
    """Names of a layer, a mistake and a way, of those that go together."""
    for name, (mistake, (shapes, _)), way in itertools.product(NAMES, SHAPES.items(), WAYS):
        has_all = (name in ROW or "alpha" not in shapes) and not (way == "no_bias" and "b" in shapes)
        can_be_packed = len(shapes.get("w", (K, N))) == 2
        if has_all and (can_be_packed or "packed" not in way) and (name == "linear_relu" or "mask" not in way):
            yield pytest.param(name, mistake, way, id=f"{name}-{mistake}-{way}")


@pytest.mark.parametrize(("name", "mistake", "way"), list(wrong_shapes()))
def test_error_names_the_operand_of_a_wrong_shape(name: str, mistake: str, way: str) -> None:
    shapes, text = SHAPES[mistake]
    own: dict[str, Any] = {"x": (M, K), "w": (K, N), "b": (N,), "alpha": (N,), **shapes}
    keywords: dict[str, Any] = {}
    if "mask" in way:
        keywords["mask"] = filled((M, 1), np.uint8)
    if "out" in way:
        keywords["out"] = filled((M, N))
    w = np.ones(own["w"])
    bias = None if way == "no_bias" else np.ones(own["b"])
    alpha = [np.ones(own["alpha"])] if name in ROW else []
    given = (np.ones(own["x"]), fastrelu.pack(w) if "packed" in way else w, bias, *alpha)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: {text}')}$") as caught:
        call(name, given, **keywords)
    assert caught.value.__suppress_context__
    for written in (keywords.get("out"), keywords.get("mask")):
        assert written is None or (written == 77).all()


@ALL
def test_batches_that_do_not_fit_are_refused(name: str) -> None:
    x, w, b, *alpha = operands(name)
    out = filled((M, N))
    for wrong in (
        (x, normal(2, K, N), b, *alpha),
        (x, w, normal(M + 1, N), *alpha),
        *([(x, w, b, normal(M + 1, N))] * (name in ROW)),
        *([(x, w, b, normal(M + 1))] * (name in SCALAR)),
    ):
        with pytest.raises(ValueError, match="broadcast"):
            call(name, wrong)
        with pytest.raises(ValueError, match=r"broadcast|reduction"):
            call(name, wrong, out=out)
    assert_array_equal(out, 77)


# The bit mask as an output.


@pytest.mark.parametrize("shape", [(M, 0), (M, 2), (M, 7), (2,), ()], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_mask_of_another_length_is_refused(shape: tuple[int, ...], packed: bool) -> None:
    x, w, b = operands("linear_relu")
    mask, out = filled(shape, np.uint8), filled((M, N))
    text = f"linear_relu: mask must have shape (..., 1) for {N} columns, not {shape}"
    for keywords in ({}, {"out": out}):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            fastrelu.linear_relu(x, fastrelu.pack(w) if packed else w, b, mask=mask, **keywords)
    assert_array_equal(mask, 77)
    assert_array_equal(out, 77)


@pytest.mark.parametrize("shape", [(M + 1, 1), (M - 1, 1), (1,), (1, 1)], ids=str)
def test_mask_with_other_rows_is_refused(shape: tuple[int, ...]) -> None:
    mask, out = filled(shape, np.uint8), filled((M, N))
    with pytest.raises(ValueError, match=r"broadcast|reduction"):
        fastrelu.linear_relu(*operands("linear_relu"), mask=mask, out=out)
    assert_array_equal(mask, 77)
    assert_array_equal(out, 77)


@pytest.mark.parametrize("mask", [np.zeros((M, 1), np.int8), np.zeros((M, 1), bool), [[0]] * M, 0, "mask", ...], ids=repr)
def test_mask_must_be_an_array_of_uint8(mask: Any) -> None:
    shown = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
    out = filled((M, N))
    with pytest.raises(TypeError, match=f"^linear_relu: mask must be an array of uint8, not {shown}$"):
        fastrelu.linear_relu(*operands("linear_relu"), mask=mask, out=out)
    assert_array_equal(out, 77)


def test_read_only_mask_is_refused() -> None:
    mask, out = filled((M, 1), np.uint8), filled((M, N))
    mask.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        fastrelu.linear_relu(*operands("linear_relu"), mask=mask, out=out)
    assert_array_equal(mask, 77)
    assert_array_equal(out, 77)


def test_mask_beside_every_spelling_of_out() -> None:
    given = operands("linear_relu")
    expected = fastrelu.linear_relu(*given)
    bits = np.packbits(expected > 0, axis=-1, bitorder="little")
    for out in (None, (None,), ..., filled((M, N)), (filled((M, N)),)):
        mask = filled((M, 1), np.uint8)
        y, returned = fastrelu.linear_relu(*given, out=out, mask=mask)
        assert returned is mask
        given_out = out[0] if isinstance(out, tuple) else out
        assert y is given_out or not isinstance(given_out, np.ndarray)
        assert_array_equal(y, expected, strict=True)
        assert_array_equal(mask, bits)


@pytest.mark.parametrize("name", ["linear_relu_mask", "linear_relu_no_bias_mask"])
@pytest.mark.parametrize("length", [0, 1, 3, 9])
@pytest.mark.parametrize("m", [1, M, 3000])
def test_bare_ufunc_refuses_a_mask_of_another_length(name: str, length: int, m: int) -> None:
    given = operands("linear_relu", m, K, 9)[: LAYERS[name].bias + 2]
    ufunc = getattr(ufuncs, name)
    frame, out = filled((m + 2, length + 2), np.uint8), filled((m, 9))
    with pytest.raises(ValueError, match="mask must have"):
        ufunc(*given, out=(out, frame[1:-1, 1:-1]))
    assert_array_equal(frame, 77)
    assert_array_equal(out, 77)
    mask = filled((m, 2), np.uint8)
    ufunc(*given, out=(out, mask))
    assert_array_equal(mask, np.packbits(out > 0, axis=-1, bitorder="little"))


@pytest.mark.parametrize("name", ["linear_relu_mask", "linear_relu_no_bias_mask"])
def test_bare_ufunc_wants_a_mask(name: str) -> None:
    with pytest.raises(ValueError, match="unspecified"):
        getattr(ufuncs, name)(*operands("linear_relu")[: LAYERS[name].bias + 2])


# Types.


@ALL
@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_give_the_same_type_back(name: str, dtype: str) -> None:
    given = operands(name, dtype=dtype_of(dtype))
    assert call(name, given).dtype == given[0].dtype
    if LAYERS[name].alpha != "(n)":
        assert call(name, given[:3]).dtype == given[0].dtype
        assert call(name, given[:2]).dtype == given[0].dtype


TABLE = {
    "int8 float32": "float32",
    "int16 float32": "float32",
    "int32 float32": "float64",
    "int64 float32": "float64",
    "uint8 float16": "float16",
    "int8 bfloat16": "bfloat16",
    "int8 int8": "float16",
    "uint8 int8": "float32",
    "int16 int16": "float32",
    "int32 int32": "float64",
    "int64 int64": "float64",
    "uint64 int64": "float64",
    "float16 float32": "float32",
    "bfloat16 float32": "float32",
    "float16 float64": "float64",
    "bfloat16 float64": "float64",
    "float32 float64": "float64",
}


@pytest.mark.parametrize(("pair", "common"), TABLE.items(), ids=TABLE)
@pytest.mark.parametrize("name", ["linear", "linear_relu", "linear_prelu", "linear_tanh"])
def test_types_meet_in_the_type_that_holds_all(name: str, pair: str, common: str) -> None:
    a, b = (dtype_of(part) for part in pair.split())
    values = [np.round(np.abs(3 * v)) for v in operands(name, dtype=np.float32)]
    # Each operand in turn is the one of another type.
    for odd in range(3 if LAYERS[name].bias else 2):
        mixed = [v.astype(a if i == odd else b) for i, v in enumerate(values)]
        result = call(name, mixed)
        expected = call(name, [v.astype(dtype_of(common)) for v in mixed])
        assert_array_equal(result, expected, strict=True)
    mixed = [values[0].astype(a), values[1].astype(b), None, *(v.astype(b) for v in values[3:])]
    assert call(name, mixed).dtype == dtype_of(common)


@ALL
def test_float16_and_bfloat16_have_no_common_type(name: str) -> None:
    given = operands(name, dtype=np.float16)
    given[1] = given[1].astype(ml_dtypes.bfloat16)
    out = filled((M, N))
    with pytest.raises(TypeError, match="common DType"):
        call(name, given, out=out)
    assert_array_equal(out, 77)


REFUSED = {
    "bool": (bool, "bool"),
    "complex64": (np.complex64, "complex64"),
    "object": (object, "object"),
    "str": (str, "str"),
    "bytes": ("S4", "bytes"),
    "datetime64": ("M8[s]", "datetime64"),
    "timedelta64": ("m8[s]", "timedelta64"),
    "longdouble": (np.longdouble, np.dtype(np.longdouble).name),
    "structured": ("f4,f4", "void"),
    "float8": (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
}


@pytest.mark.parametrize(("bad", "shown"), REFUSED.values(), ids=REFUSED)
@ALL
def test_error_names_operation_operand_and_types(name: str, bad: Any, shown: str) -> None:
    if shown == "float64":
        pytest.skip("long double is float64 on this machine")
    out = filled((M, N))
    for position, operand in enumerate(LAYERS[name].inputs):
        given = operands(name)
        given[position] = np.zeros(np.shape(given[position]), bad)
        text = f"^{name}: {operand} must be an integer type, float16, bfloat16, float32 or float64, not {shown}"
        for _ in range(2):  # NumPy must not remember a failure as an answer
            with pytest.raises(TypeError, match=text) as caught:
                call(name, given, out=out)
            assert caught.value.__suppress_context__
    assert_array_equal(out, 77)
    # And a good call follows.
    assert_array_equal(call(name, operands(name), out=out), call(name, operands(name)))


@ALL
def test_none_for_an_operand_that_is_needed(name: str) -> None:
    for position, operand in enumerate(LAYERS[name].inputs):
        if operand != "b":
            given = operands(name)
            given[position] = None
            with pytest.raises(TypeError, match=f"^{name}: {operand} must be .*, not object"):
                call(name, given)


# Alpha.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("number", [0.3, 1, 0, -2.5], ids=str)
@pytest.mark.parametrize("name", SCALAR + ROW)
def test_python_number_as_alpha_does_not_change_the_type(name: str, number: float, dtype: str) -> None:
    given = operands(name, dtype=dtype_of(dtype))
    wide = np.float32 if given[0].itemsize == 2 else given[0].dtype
    expected = call(name, [*given[:3], np.full(N, number, wide) if name in ROW else np.array(number, wide)])
    for w in (given[1], fastrelu.pack(given[1])):
        for bias in (given[2], None):
            like = expected if bias is not None else call(name, [*given[:2], None, np.full_like(given[3], number)])
            assert_array_equal(call(name, (given[0], w, bias, number)), like, strict=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", SCALAR)
def test_default_alpha_and_alpha_by_keyword(name: str, dtype: str) -> None:
    x, w, b, alpha = operands(name, dtype=dtype_of(dtype))
    default = inspect.signature(getattr(fastrelu, name)).parameters["alpha"].default
    activation = getattr(fastrelu, name.removeprefix("linear_"))
    assert default == inspect.signature(activation).parameters["alpha"].default
    assert_array_equal(call(name, (x, w, b)), call(name, (x, w, b, default)), strict=True)
    assert_array_equal(call(name, (x, w, b), alpha=alpha), call(name, (x, w, b, alpha)), strict=True)
    out = np.zeros((M, N), x.dtype)
    assert call(name, (x, w, b), alpha=alpha, out=out) is out
    assert_array_equal(out, call(name, (x, w, b, alpha)))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", SCALAR + ROW)
def test_float32_alpha_beside_halves_keeps_them(name: str, half: str) -> None:
    x, w, b, alpha = operands(name, dtype=dtype_of(half))
    assert alpha.dtype == np.float32
    result = call(name, (x, w, b, alpha))
    assert result.dtype == x.dtype
    # float64 does not hold in float32, and counts as an operand like the others.
    assert call(name, (x, w, b, alpha.astype(np.float64))).dtype == np.float64
    # It is used with all its bits, on sums that are not rounded yet.
    wide = call(name, [a.astype(np.float32) for a in (x, w, b, alpha)])
    assert_array_equal(result, wide.astype(x.dtype))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", SCALAR + ROW)
def test_type_of_a_result_does_not_depend_on_earlier_calls(name: str, half: str) -> None:
    setup = f"{IMPORTS}x, w, a = np.ones((2, 3), {half}), np.ones((3, 4), {half}), np.ones(4, np.float32)\n"
    alpha = "a" if name in ROW else "a[0]"
    mixed = f"f.{name}(x, w, None, {alpha}).dtype.name"
    assert run(f"{setup}print({mixed})") == run(f"{setup}f.{name}(x, w, None, {alpha}.astype({half})); print({mixed})")


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("m", [M, 3000])
def test_alpha_for_each_matrix(name: str, m: int) -> None:
    x, w, b, _ = operands(name, m)
    alpha = np.array([0.1, -0.5, 2.0], np.float32)
    expected = [call(name, (x, w, b, a)) for a in alpha]
    assert_array_equal(call(name, (x, w, b, alpha[:, None])), expected, strict=True)
    x = np.broadcast_to(x, (3, m, K))
    assert_array_equal(call(name, (x, w, b, alpha[:, None])), expected, strict=True)


@pytest.mark.parametrize("name", SCALAR)
def test_alpha_for_each_row(name: str) -> None:
    x, w, b, _ = operands(name)
    alpha = np.linspace(-1, 1, M, dtype=np.float32)
    expected = [call(name, (x[i : i + 1], w, b, alpha[i]))[0] for i in range(M)]
    assert_array_equal(call(name, (x, w, b, alpha)), expected, strict=True)


@pytest.mark.parametrize("name", ROW)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_one_alpha_for_all_columns(name: str, bias: bool, packed: bool) -> None:
    x, w, b, _ = operands(name)
    b = b if bias else None
    weight = fastrelu.pack(w) if packed else w
    expected = call(name, (x, w, b, np.full(N, 0.3, np.float32)))
    for alpha in (np.float32(0.3), np.array(0.3, np.float32)):
        assert_array_equal(call(name, (x, weight, b, alpha)), expected, strict=True)
    assert_array_equal(call(name, (x, weight, b, np.full((M, N), 0.3, np.float32))), expected, strict=True)
    # It is the leaky layer.
    assert_array_equal(fastrelu.linear_leaky_relu(x, weight, b, np.float32(0.3)), expected, strict=True)


# Arrays of other libraries.


class Recorder:
    """Takes every ufunc that it meets and returns what it was called with."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        return ufunc, method, inputs, keywords


@ALL
def test_object_with_array_ufunc_gets_the_ufunc(name: str) -> None:
    for position in range(len(LAYERS[name].inputs)):
        given = operands(name)
        given[position] = recorder = Recorder()
        ufunc, method, inputs, keywords = call(name, given, casting="unsafe")
        assert ufunc is getattr(ufuncs, name)
        assert method == "__call__"
        assert inputs[position] is recorder
        assert len(inputs) == ufunc.nin
        assert keywords == {"casting": "unsafe"}
    _, w, _, *alpha = operands(name)
    ufunc, _, inputs, _ = call(name, (Recorder(), w, None, *alpha))
    assert ufunc is getattr(ufuncs, f"{name}_no_bias")
    assert inputs[1] is w


@ALL
def test_array_ufunc_of_the_output_counts(name: str) -> None:
    out = Recorder()
    ufunc, _, _, keywords = call(name, operands(name), out=out)
    assert ufunc is getattr(ufuncs, name)
    assert keywords["out"] == (out,)


def test_array_ufunc_gets_the_mask() -> None:
    mask = np.zeros((M, 1), np.uint8)
    _, w, b = operands("linear_relu")
    ufunc, _, inputs, keywords = fastrelu.linear_relu(Recorder(), w, b, mask=mask)
    assert ufunc is ufuncs.linear_relu_mask
    assert len(inputs) == 3
    assert keywords["out"][1] is mask


class Opaque:
    """Wants no ufunc at all."""

    __array_ufunc__ = None


@ALL
def test_array_ufunc_none_is_a_type_error(name: str) -> None:
    for position in range(len(LAYERS[name].inputs)):
        given = operands(name)
        given[position] = Opaque()
        with pytest.raises(TypeError, match="does not support ufuncs"):
            call(name, given)


@ALL
def test_error_raised_in_array_ufunc_is_shown(name: str) -> None:
    for error in (TypeError, ValueError, ZeroDivisionError):

        class Failing:
            shape = (M, K)

            def __array_ufunc__(self, *_: Any, error: Any = error, **__: Any) -> Any:
                raise error("from the other library")

        with pytest.raises(error, match=r"^from the other library$"):
            call(name, [Failing(), *operands(name)[1:]])


class Convertible:
    """No array, but something that becomes one."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return normal(M, K, dtype=dtype or np.float32)


@ALL
def test_object_that_becomes_an_array(name: str) -> None:
    _, *rest = operands(name)
    assert_array_equal(call(name, (Convertible(), *rest)), call(name, (normal(M, K), *rest)), strict=True)


@ALL
def test_memoryview(name: str) -> None:
    given = operands(name)
    assert_array_equal(call(name, [memoryview(np.asarray(a)) for a in given]), call(name, given), strict=True)


@ALL
def test_dask_is_lazy_and_computes_the_same(name: str) -> None:
    da = pytest.importorskip("dask.array")
    x, w, b, *alpha = operands(name, 60)
    result = call(name, (da.from_array(x, chunks=(25, K)), w, b, *alpha))
    assert isinstance(result, da.Array)
    assert (result.shape, result.dtype, result.chunks) == ((60, N), np.float32, ((25, 25, 10), (N,)))
    expected = call(name, (x, w, b, *alpha))
    assert_array_equal(result.compute(scheduler="threads"), expected, strict=True)
    no_bias = call(name, (da.from_array(x, chunks=(25, K)), w, None, *alpha))
    assert_array_equal(no_bias.compute(scheduler="threads"), call(name, (x, w, None, *alpha)), strict=True)
    # Every other operand as well.
    for position in range(1, len(LAYERS[name].inputs)):
        given = [x, w, b, *alpha]
        given[position] = da.from_array(np.asarray(given[position]))
        result = call(name, given)
        assert isinstance(result, da.Array)
        assert_array_equal(result.compute(scheduler="threads"), expected, strict=True)


def fail_to_compute(block: Array) -> Array:
    if block.size:  # dask asks for the type of an empty one
        raise AssertionError("computed too early")
    return block


@ALL
def test_dask_computes_nothing_before_it_is_asked(name: str) -> None:
    da = pytest.importorskip("dask.array")
    for position in (0, 1, 2):
        given = operands(name)
        given[position] = da.from_array(given[position]).map_blocks(fail_to_compute, dtype=np.float32)
        # One alpha for all columns has to become a row of them.
        for parameters in (given[3:], [np.float32(0.3)] * len(given[3:])):
            result = call(name, (*given[:3], *parameters))
            with pytest.raises(AssertionError, match="too early"):
                result.compute(scheduler="synchronous")


def test_dask_arrays_that_do_not_fit_are_refused_early() -> None:
    da = pytest.importorskip("dask.array")
    x, w, b = operands("linear_relu")
    x, lazy = da.from_array(x), da.from_array(w)
    with pytest.raises(ValueError, match=rf"^linear_relu: w must have shape \(..., {K}, n\) for x of shape"):
        fastrelu.linear_relu(x, w[:-1], b)
    with pytest.raises(ValueError, match=rf"^linear_relu: b must have shape \(..., {N}\) for w of shape"):
        fastrelu.linear_relu(x, lazy, b[:-1])
    with pytest.raises(ValueError, match=r"^linear_relu: w must have at least two axes"):
        fastrelu.linear_relu(x, b, b)
    with pytest.raises(TypeError, match=r"^linear_relu: x must be an integer type, .* not bool"):
        fastrelu.linear_relu(x > 0, w, b)
    with pytest.raises(ValueError, match="chunk"):
        fastrelu.linear_relu(x, lazy.rechunk((1, N)), b)


def test_dask_fills_no_array() -> None:
    # Given one of its own, it would call itself for ever.
    da = pytest.importorskip("dask.array")
    x, w, _ = operands("linear_relu")
    lazy = da.from_array(x)
    for out in (np.empty((M, N), np.float32), da.zeros((M, N), dtype=np.float32)):
        with pytest.raises(TypeError, match=r"^linear_relu: out must not be given beside dask arrays"):
            fastrelu.linear_relu(lazy, w, out=out)
    with pytest.raises(TypeError, match=r"^linear_relu: mask must not be given beside dask arrays"):
        fastrelu.linear_relu(lazy, w, mask=np.empty((M, 1), np.uint8))
    with pytest.raises(TypeError, match=r"^linear_backward: out for dw must not be given beside dask arrays"):
        fastrelu.linear_backward(np.ones((M, N), np.float32), lazy, w, out=(None, da.zeros((K, N), dtype=np.float32), None))


def test_dask_wants_the_terms_in_one_chunk() -> None:
    da = pytest.importorskip("dask.array")
    x, w, b = operands("linear_relu")
    with pytest.raises(ValueError, match="chunk"):
        fastrelu.linear_relu(da.from_array(x, chunks=(M, 1)), w, b)


@ALL
def test_pandas_frame_keeps_the_labels_of_its_rows(name: str) -> None:
    pd = pytest.importorskip("pandas")
    x, w, b, *alpha = operands(name)
    rows = [f"row {i}" for i in range(M)]
    result = call(name, (pd.DataFrame(x, rows), w, b, *alpha))
    pd.testing.assert_frame_equal(result, pd.DataFrame(call(name, (x, w, b, *alpha)), rows), check_exact=True)


@ALL
def test_pandas_series_as_the_bias(name: str) -> None:
    pd = pytest.importorskip("pandas")
    x, w, b, *alpha = operands(name)
    assert_array_equal(call(name, (x, w, pd.Series(b), *alpha)), call(name, (x, w, b, *alpha)), strict=True)


@ALL
def test_xarray_goes_through_its_own_apply_ufunc(name: str) -> None:
    xr = pytest.importorskip("xarray")
    given = operands(name)
    arrays = [xr.DataArray(given[0], dims=["row", "input"]), *given[1:]]
    with pytest.raises(NotImplementedError, match="apply_ufunc"):
        call(name, arrays)
    f = getattr(fastrelu, name)
    result = xr.apply_ufunc(lambda x: f(x, *given[1:]), arrays[0], input_core_dims=[["input"]], output_core_dims=[["output"]])
    assert result.dims == ("row", "output")
    assert_array_equal(result, call(name, given))


@ALL
def test_masked_arrays_are_refused(name: str) -> None:
    # NumPy would give the result the mask of the input, whose columns are others, or find no room for it.
    for position, operand in enumerate(("x", "w", "b")):
        given = operands(name)
        given[position] = np.ma.array(given[position])
        with pytest.raises(TypeError, match=rf"^{name}: {operand} must be an array without a mask, not a MaskedArray"):
            call(name, given)


# The face of a ufunc.


@ALL
def test_attributes(name: str) -> None:
    f, bare, layer = getattr(fastrelu, name), getattr(ufuncs, name), LAYERS[name]
    assert (f.nin, f.nout, f.nargs) == (len(layer.inputs), 1, len(layer.inputs) + 1) == (bare.nin, bare.nout, bare.nargs)
    assert f.__name__ == f.__qualname__ == bare.__name__ == name
    assert f.signature == bare.signature
    assert f.signature == "(k),(k,n),(n)" + {"": "", "()": ",()", "(n)": ",(n)"}[layer.alpha] + "->(n)"
    assert f.ntypes == len(f.types) == len(set(f.types)) == 3
    assert [row[-1] for row in f.types] == ["e", "f", "d"]
    assert f.identity is None


@ALL
def test_types_are_those_of_the_results(name: str) -> None:
    for row in getattr(fastrelu, name).types:
        inputs, output = row.split("->")
        given = [np.asarray(a).astype(t) for a, t in zip(operands(name), inputs, strict=True)]
        assert call(name, given, signature=row).dtype.char == output


@ALL
def test_docstring_is_complete(name: str) -> None:
    doc = inspect.getdoc(getattr(fastrelu, name))
    sections = [doc.index(f"\n{title}\n{'-' * len(title)}\n") for title in ("Parameters", "Returns", "Raises", "Examples")]
    assert sections == sorted(sections)
    # Names stand at the beginning of a line of their section, before a colon if there is one.
    lines = [line for line in doc[sections[0] : sections[1]].splitlines() if line and not line.startswith(" ")]
    named = {part.strip().lstrip("*") for line in lines for part in line.split(":")[0].split(",")}
    assert named >= set(inspect.signature(getattr(fastrelu, name)).parameters)


@ALL
def test_signature(name: str) -> None:
    parameters = inspect.signature(getattr(fastrelu, name)).parameters
    alpha = [] if not LAYERS[name].alpha else ["alpha"]
    mask = ["mask"] if name == "linear_relu" else []
    assert list(parameters) == ["x", "w", "b", *alpha, "out", *mask, "kwargs"]
    positional = ["x", "w", "b", *(alpha if name in ROW else [])]
    for parameter in parameters.values():
        assert (parameter.kind is parameter.POSITIONAL_ONLY) == (parameter.name in positional)
    assert parameters["b"].default is (parameters["b"].empty if name in ROW else None)
    with pytest.raises(TypeError):
        getattr(fastrelu, name)(x=normal(M, K), w=normal(K, N))


@ALL
def test_bare_ufunc(name: str) -> None:
    bare = getattr(ufuncs, name)
    assert type(bare) is np.ufunc
    assert bare is getattr(ufuncs, name)
    assert name in dir(ufuncs)
    assert f"{name}_no_bias" in dir(ufuncs)
    given = operands(name)
    assert_array_equal(bare(*given), call(name, given), strict=True)
    x, w, _, *alpha = given
    assert_array_equal(getattr(ufuncs, f"{name}_no_bias")(x, w, *alpha), call(name, (x, w, None, *alpha)), strict=True)


@ALL
def test_bare_ufunc_has_no_reductions(name: str) -> None:
    bare = getattr(ufuncs, name)
    for method in ("reduce", "accumulate", "outer"):
        with pytest.raises((ValueError, RuntimeError, TypeError)):
            getattr(bare, method)(normal(M, K), normal(K, N))


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda f: pickle.loads(pickle.dumps(f))}


@ALL
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_to_itself(name: str, change: Callable[[Any], Any]) -> None:
    for f in (getattr(fastrelu, name), getattr(ufuncs, name), getattr(ufuncs, f"{name}_no_bias")):
        assert change(f) is f


def test_pickle_in_another_process() -> None:
    pickled = [pickle.dumps(f) for f in (fastrelu.linear_relu, ufuncs.linear_relu)]
    run(
        f"{IMPORTS}import pickle\nfor p in {pickled!r}: pickle.loads(p)(np.ones((2, 3)), np.ones((3, 4)), np.ones(4))\n"
        "assert pickle.loads(p) is f.ufuncs.linear_relu"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("keyword", ["dtype", "signature"])
def test_first_call_may_prescribe_the_type_of_its_operands(keyword: str, dtype: str) -> None:
    # Nothing is compiled or registered before the first call, and that one is in a new process.
    value = "x.dtype" if keyword == "dtype" else "(x.dtype,) * 4"
    code = f"x = np.ones((2, 2)).astype({dtype}); assert f.linear(x, x, x[0], {keyword}={value}).tolist() == [[3, 3]] * 2"
    run(IMPORTS + code)


def test_all_combinations_of_layouts() -> None:
    x, w, b = operands("linear_relu", 11, 9, 13)
    expected = fastrelu.linear_relu(x, w, b)
    layouts: list[Callable[[Array], Array]] = [
        np.ascontiguousarray,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
    ]
    for of_x, of_w, of_b in itertools.product(layouts, layouts, layouts):
        assert_array_equal(fastrelu.linear_relu(of_x(x), of_w(w), of_b(b)), expected)
