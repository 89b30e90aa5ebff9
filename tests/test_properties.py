"""What holds for every array, whatever its shape, its steps in memory and its elements."""

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastrelu
from bench.callables import CASES, Case
from fastrelu.operations import FLOATS, INTEGERS
from tests.dtypes import dtype_of

ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def bits(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    return x.copy().view(f"u{x.itemsize}") if x.ndim else x.reshape(1).view(f"u{x.itemsize}")[0]


def number(name: str) -> st.SearchStrategy[np.dtype[Any]]:
    return st.just(dtype_of(name))


@st.composite
def views(draw: st.DrawFn, dtype: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An array whose elements are any bits, cut out of a larger one by slices of any step, its axes in any order."""
    if shape is None:
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7))
    steps = [draw(st.sampled_from([1, 1, 2, -1, -3])) for _ in shape]
    axes = draw(st.permutations(range(len(shape))))
    whole = tuple(shape[axis] * abs(steps[axis]) for axis in axes)
    words = draw(hnp.arrays(f"u{dtype.itemsize}", whole))
    cut = words.view(dtype)[tuple(slice(None, None, steps[axis]) for axis in axes)]
    array = cut.transpose(np.argsort(axes)) if shape else cut
    assert array.shape == shape
    return array


FINITE = st.floats(-1e3, 1e3)


@pytest.mark.parametrize("name", FLOATS + INTEGERS)
@given(st.data())
def test_relu_is_maximum(name: str, data: st.DataObject) -> None:
    x = data.draw(views(dtype_of(name)))
    # Of a zero and a NaN np.maximum does not give the bits that we promise in every type; the definition does.
    with np.errstate(invalid="ignore"):
        expected = np.where(x <= 0, np.zeros_like(x), x)
    result = fastrelu.relu(x)
    assert (result.shape, result.dtype) == (x.shape, x.dtype)
    assert_array_equal(bits(result), bits(expected))


@pytest.mark.parametrize("name", FLOATS + INTEGERS)
@given(st.data())
def test_relu_again_changes_nothing(name: str, data: st.DataObject) -> None:
    once = np.asarray(fastrelu.relu(data.draw(views(dtype_of(name)))))
    assert_array_equal(bits(fastrelu.relu(once)), bits(once))


@pytest.mark.parametrize("name", ["float32", "float64"])
@given(st.data())
def test_relu_and_its_mirror_make_x_and_its_size(name: str, data: st.DataObject) -> None:
    x = data.draw(views(dtype_of(name)))
    x = np.where(np.isnan(x), x.dtype.type(0), x)
    positive, negative = fastrelu.relu(x), fastrelu.relu(-x)
    # One of the two is zero, so that neither difference nor sum is rounded, infinities included.
    assert_array_equal(positive - negative, x)
    assert_array_equal(positive + negative, abs(x))


@pytest.mark.parametrize("name", FLOATS + INTEGERS)
@given(st.data())
def test_derivative_is_backward_of_ones(name: str, data: st.DataObject) -> None:
    x = data.draw(views(dtype_of(name)))
    ones = np.ones(x.shape, x.dtype)
    assert_array_equal(bits(fastrelu.relu_derivative(x)), bits(fastrelu.relu_backward(ones, x)))


@pytest.mark.parametrize("name", FLOATS)
@given(st.data())
def test_backward_takes_input_or_output(name: str, data: st.DataObject) -> None:
    x = data.draw(views(dtype_of(name)))
    dy = data.draw(views(x.dtype, x.shape))
    assert_array_equal(bits(fastrelu.relu_backward(dy, x)), bits(fastrelu.relu_backward(dy, fastrelu.relu(x))))


@ALL
@pytest.mark.parametrize(
    "name", ["float32", "float16", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("bfloat16", "float64"))]
)
@given(st.data())
def test_array_equals_its_elements(case: Case, name: str, data: st.DataObject) -> None:
    # Two NaNs in one formula are left to a test of their own. Each element takes a call.
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    first = data.draw(views(dtype_of(name), shape))
    operands = [first, *(np.full(first.shape, 0.75, first.dtype) for _ in case.data[1:])]
    if case.name == "softplus_backward":
        operands.reverse()  # an output is never negative
    result = np.asarray(case.ours(*operands, *case.parameters))
    assert (result.shape, result.dtype) == (first.shape, first.dtype)
    for index in np.ndindex(result.shape):
        alone = case.ours(*(a[index] for a in operands), *case.parameters)
        assert_array_equal(bits(result[index]), bits(alone))


@ALL
@given(st.data())
def test_layouts_of_operands_do_not_matter(case: Case, data: st.DataObject) -> None:
    dtype = np.dtype(np.float32)
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=40))
    operands = [data.draw(views(dtype, shape)) for _ in case.data]
    operands = [np.copyto(a, abs(a), where=~np.isnan(a)) or a for a in operands]
    for a in operands[1:]:
        a[np.isnan(a)] = 0.5
    contiguous = [np.ascontiguousarray(a) for a in operands]
    assert_array_equal(bits(case.ours(*operands, *case.parameters)), bits(case.ours(*contiguous, *case.parameters)))


@ALL
@given(st.data())
def test_broadcast_operands(case: Case, data: st.DataObject) -> None:
    inputs = len(case.data) + len(case.parameters)
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=inputs, max_dims=3, max_side=5))
    operands = [data.draw(hnp.arrays(np.float64, s, elements=FINITE)) for s in shapes.input_shapes]
    result = np.asarray(case.ours(*operands))
    full = [np.broadcast_to(a, shapes.result_shape).copy() for a in operands]
    assert result.shape == shapes.result_shape
    assert_array_equal(result, case.ours(*full))


@ALL
@given(st.data())
def test_out_may_be_any_view_of_the_same_memory(case: Case, data: st.DataObject) -> None:
    memory = data.draw(hnp.arrays(np.float64, st.integers(1, 300), elements=FINITE))
    length = data.draw(st.integers(0, len(memory)))

    def view() -> np.ndarray:
        step = data.draw(st.sampled_from([1, 1, 2, 3])) if length * 3 <= len(memory) else 1
        start = data.draw(st.integers(0, len(memory) - length * step))
        cut = memory[start : start + length * step : step]
        return cut[::-1] if data.draw(st.booleans()) else cut

    operands, out = [view() for _ in case.data], view()
    expected = case.ours(*(a.copy() for a in operands), *case.parameters)
    case.ours(*operands, *case.parameters, out=out)
    assert_array_equal(out, expected)


@given(x=FINITE, y=FINITE)
def test_curves_never_fall(x: float, y: float) -> None:
    low, high = np.sort([x, y])
    for f in (fastrelu.relu, fastrelu.leaky_relu):
        assert f(low) <= f(high)


@given(hnp.arrays(np.float64, hnp.array_shapes(), elements=FINITE))
def test_prelu_backward_is_linear_in_the_gradient(x: np.ndarray) -> None:
    # Doubling is exact, in every term and in every sum.
    dy = np.cos(np.arange(x.size)).reshape(x.shape)
    dx, dalpha = fastrelu.prelu_backward(dy, x, 0.25)
    twice_x, twice_alpha = fastrelu.prelu_backward(2 * dy, x, 0.25)
    assert_array_equal(twice_x, 2 * dx)
    assert_array_equal(twice_alpha, 2 * dalpha)
