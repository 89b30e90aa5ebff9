"""Every operation is a ufunc in all that it does: operands, keywords, types, overlap, errors."""

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from bench.callables import CASES, Case
from fastrelu import ufuncs
from fastrelu.operations import FLOATS, INTEGERS, OPERATIONS
from tests.dtypes import dtype_of
from tests.subprocesses import run

Array = np.ndarray

ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
UNARY = [case for case in CASES.values() if len(case.data) == 1]
SELECTING = [name for name, operation in OPERATIONS.items() if not operation.arithmetic]
# What a new process begins with.
NAMES = "import numpy as np, fastrelu as f; from ml_dtypes import bfloat16; from numpy import *\n"
# Below and above the size from which a call is divided among threads.
SIZES = pytest.mark.parametrize("size", [1, 2, 5, 300, 100_003])


def bits(x: Array) -> Array:
    return np.ascontiguousarray(x).view(f"u{x.itemsize}")


def data(case: Case, shape: int | tuple[int, ...] = 300, name: str = "float32") -> list[Array]:
    """One array for each operand that is data."""
    rng = np.random.default_rng(0)
    return [(3 * rng.standard_normal(shape)).astype(dtype_of(name)) for _ in case.data]


def all_parameters(case: Case) -> tuple[float, ...]:
    """Those of the table, and those that it leaves at their default."""
    return (0,) if case.name == "relu_derivative" else case.parameters


def call(case: Case, operands: Any, **keywords: Any) -> Any:
    return case.ours(*operands, *case.parameters, **keywords)


# Operands.


@ALL
def test_scalars_in_scalar_out(case: Case) -> None:
    expected = call(case, [np.array([0.5])] * len(case.data))[0]
    for x in (0.5, np.float64(0.5), np.array(0.5)):
        result = call(case, [x] * len(case.data))
        assert type(result) is np.float64
        assert result == expected
    assert type(call(case, [np.float32(0.5)] * len(case.data))) is np.float32
    assert type(call(case, [np.float16(0.5)] * len(case.data))) is np.float16
    assert type(call(case, [ml_dtypes.bfloat16(0.5)] * len(case.data))) is ml_dtypes.bfloat16


@ALL
def test_lists_and_tuples(case: Case) -> None:
    values = [[-1.5, 0.0, 2.0], [3.0, -0.25, 1.0]]
    expected = call(case, [np.array(values)] * len(case.data))
    assert_array_equal(call(case, [values] * len(case.data)), expected, strict=True)
    assert_array_equal(call(case, [tuple(map(tuple, values))] * len(case.data)), expected, strict=True)


@ALL
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (1,), (1, 1, 1), (2, 3, 4, 5)], ids=str)
def test_shapes(case: Case, shape: tuple[int, ...]) -> None:
    operands = data(case, shape)
    result = call(case, operands)
    assert (result.shape, result.dtype) == (shape, np.float32)
    assert_array_equal(result.ravel(), call(case, [a.ravel() for a in operands]))


@ALL
def test_operands_are_left_alone(case: Case) -> None:
    operands = data(case)
    before = [a.copy() for a in operands]
    for a in operands:
        a.flags.writeable = False
    assert_array_equal(call(case, operands), call(case, before))
    for a, b in zip(operands, before, strict=True):
        assert_array_equal(a, b)


@ALL
@pytest.mark.parametrize("name", FLOATS)
def test_unaligned_and_byteswapped(case: Case, name: str) -> None:
    operands = data(case, 300, name)
    expected = call(case, operands)
    unaligned = [np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype) for a in operands]
    assert not any(a.flags.aligned for a in unaligned)
    assert_array_equal(bits(call(case, unaligned)), bits(expected))
    out = np.zeros(300 * expected.itemsize + 1, np.uint8)[1:].view(expected.dtype)
    assert call(case, operands, out=out) is out
    assert_array_equal(bits(out.copy()), bits(expected))
    if name != "bfloat16":
        swapped = [a.astype(a.dtype.newbyteorder()) for a in operands]
        result = call(case, swapped)
        assert result.dtype.isnative
        assert_array_equal(bits(result), bits(expected))
        out = np.zeros(300, swapped[0].dtype)
        call(case, operands, out=out)
        assert_array_equal(out, expected)


@pytest.mark.parametrize("case", [c for c in CASES.values() if len(c.data) == 2 or c.parameters], ids=lambda case: case.name)
def test_broadcasting(case: Case) -> None:
    rng = np.random.default_rng(0)
    f, count = case.ours, len(case.data) + len(case.parameters)
    shapes = [(4, 1, 6), (5, 1), (2, 1, 1, 6)][:count]
    operands = [rng.standard_normal(shape) for shape in shapes]
    full = np.broadcast_shapes(*shapes)
    expected = f(*(np.broadcast_to(a, full).copy() for a in operands))
    assert_array_equal(f(*operands), expected, strict=True)
    out = np.zeros((3, *full))
    f(*operands, out=out)
    assert_array_equal(out, np.broadcast_to(expected, out.shape))
    with pytest.raises(ValueError, match="broadcast"):
        f(np.zeros(3), np.zeros(4), *([np.zeros(3)] * (count - 2)))


# Keywords.


@ALL
def test_out_in_every_spelling(case: Case) -> None:
    operands = data(case)
    expected = call(case, operands)
    for spelling in (lambda out: {"out": out}, lambda out: {"out": (out,)}):
        out = np.zeros(300, np.float32)
        assert call(case, operands, **spelling(out)) is out
        assert_array_equal(out, expected)
    out = np.zeros(300, np.float32)
    assert case.ours(*operands, *all_parameters(case), out) is out
    assert_array_equal(out, expected)
    assert_array_equal(call(case, operands, out=None), expected, strict=True)
    assert_array_equal(call(case, operands, out=(None,)), expected, strict=True)


@ALL
def test_zero_dimensional_out(case: Case) -> None:
    out = np.zeros(())
    assert call(case, [0.5] * len(case.data), out=out) is out
    assert out == call(case, [0.5] * len(case.data))


@ALL
def test_out_ellipsis_returns_an_array(case: Case) -> None:
    result = call(case, [0.5] * len(case.data), out=...)
    assert isinstance(result, np.ndarray)
    assert result.shape == ()


@ALL
@pytest.mark.parametrize("size", [10, 100_003])
def test_where_leaves_the_rest(case: Case, size: int) -> None:
    operands = data(case, size)
    expected = call(case, operands)
    for mask in (np.arange(size) % 3 == 0, np.arange(size) > size // 2, np.zeros(size, bool), np.ones(size, bool)):
        out = np.full(size, 77, np.float32)
        call(case, operands, out=out, where=mask)
        assert_array_equal(out, np.where(mask, expected, np.float32(77)))
    out = np.full((2, size), 77, np.float32)
    call(case, operands, out=out, where=[[True], [False]])
    assert_array_equal(out, [expected, np.full(size, 77)])


@ALL
def test_dtype_casting_and_signature(case: Case) -> None:
    operands = data(case)
    expected = call(case, [a.astype(np.float64) for a in operands])
    count = len(OPERATIONS[case.name].inputs)
    for keywords in (
        {"dtype": np.float64},
        {"dtype": "d"},
        {"signature": "d" * count + "->d"},
        {"sig": (np.float64,) * (count + 1)},
        {"signature": (None,) * count + (np.float64,)},
    ):
        assert_array_equal(call(case, operands, **keywords), expected, strict=True)
    for casting in ("no", "equiv", "safe", "same_kind", "unsafe"):
        arrays = [*operands, *(np.full(300, p, np.float32) for p in all_parameters(case))]
        assert_array_equal(case.ours(*arrays, casting=casting), case.ours(*arrays), strict=True)
    with pytest.raises(TypeError, match="casting rule 'safe'"):
        call(case, [a.astype(np.float64) for a in operands], dtype=np.float32, casting="safe")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "int16"])
@pytest.mark.parametrize("keyword", ["dtype", "signature"])
def test_first_call_may_prescribe_the_type_of_its_operands(keyword: str, name: str) -> None:
    # Nothing is compiled or registered before the first call, and that one is in a new process.
    value = "x.dtype" if keyword == "dtype" else "(x.dtype, x.dtype)"
    run(f"{NAMES}x = np.array([-1, 2]).astype({name}); assert f.relu(x, {keyword}={value}).tolist() == [0, 2]")


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("operation", ["leaky_relu", "prelu", "elu"])
def test_type_of_a_result_does_not_depend_on_earlier_calls(operation: str, half: str) -> None:
    mixed = f"f.{operation}(np.ones(3, {half}), np.ones(3, np.float32)).dtype.name"
    assert run(f"{NAMES}print({mixed})") == run(f"{NAMES}f.{operation}(np.ones(3, {half}), 0.5); print({mixed})")


@ALL
def test_order(case: Case) -> None:
    grids = data(case, (5, 7))
    fortran = [np.asfortranarray(a) for a in grids]
    assert call(case, grids).flags.c_contiguous
    assert call(case, fortran).flags.f_contiguous
    assert call(case, fortran, order="C").flags.c_contiguous
    assert call(case, grids, order="F").flags.f_contiguous
    assert call(case, fortran, order="A").flags.f_contiguous
    assert_array_equal(call(case, fortran, order="C"), call(case, grids))
    moved = [np.transpose(np.zeros((3, 4, 5), a.dtype), (1, 2, 0)) for a in grids]
    assert call(case, moved, order="K").strides == moved[0].strides


class Tagged(np.ndarray):
    """A subclass that can be told from its base."""


@ALL
def test_subok(case: Case) -> None:
    operands = [a.view(Tagged) for a in data(case)]
    assert type(call(case, operands)) is Tagged
    assert type(call(case, operands, subok=False)) is np.ndarray
    assert type(call(case, [a.view(np.ndarray) for a in operands])) is np.ndarray
    out = np.zeros(300, np.float32).view(Tagged)
    assert call(case, data(case), out=out) is out
    assert_array_equal(call(case, operands).view(np.ndarray), call(case, data(case)))


# Outputs that are refused, and stay as they were.


@ALL
@pytest.mark.parametrize("size", [3, 100_003])
def test_read_only_out_is_refused(case: Case, size: int) -> None:
    operands = data(case, size)
    out = np.full(size, 77, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        call(case, operands, out=out)
    assert_array_equal(out, 77)


@ALL
@pytest.mark.parametrize("smaller", ["int64", "int8", "uint8", "bool"])
def test_out_of_a_lower_kind_is_refused(case: Case, smaller: str) -> None:
    out = np.ones(300, smaller)
    with pytest.raises(TypeError, match="casting rule 'same_kind'"):
        call(case, data(case), out=out)
    assert_array_equal(out, np.ones(300, smaller))


@ALL
def test_out_of_a_smaller_type_needs_more_than_safe(case: Case) -> None:
    operands = data(case, 300, "float64")
    out = np.full(300, 77, np.float32)
    with pytest.raises(TypeError, match="casting rule 'safe'"):
        call(case, operands, out=out, casting="safe")
    assert_array_equal(out, 77)
    call(case, operands, out=out)
    assert_array_equal(out, call(case, operands).astype(np.float32))


@ALL
@pytest.mark.parametrize("shape", [(4,), (299,), (301,), (1,), (), (300, 1), (2, 150)], ids=str)
def test_out_of_another_shape_is_refused(case: Case, shape: tuple[int, ...]) -> None:
    out = np.full(shape, 77, np.float32)
    with pytest.raises(ValueError, match=r"broadcast|non-broadcastable"):
        call(case, data(case), out=out)
    assert_array_equal(out, 77)


@ALL
@pytest.mark.parametrize("out", [[0.0, 0.0], 1.0, "out"], ids=str)
def test_out_must_be_an_array(case: Case, out: Any) -> None:
    with pytest.raises(TypeError, match=f"^{case.name}: out must be an array, not {type(out).__name__}$"):
        call(case, data(case, 2), out=out)


@ALL
def test_too_many_and_too_few_operands(case: Case) -> None:
    with pytest.raises(TypeError, match=case.name):
        case.ours()
    with pytest.raises(TypeError, match=case.name):
        case.ours(*[np.ones(2)] * (case.ours.nargs + 1))
    with pytest.raises(TypeError, match="axis"):
        call(case, data(case), axis=0)


# Memory that inputs and output share: as if the inputs had been copied before.


def overlapping(size: int) -> Iterator[tuple[str, Array, Array]]:
    """Names, inputs and outputs, each pair in memory of its own."""
    views: dict[str, Callable[[Array], tuple[Array, Array]]] = {
        "in_place": lambda m: (m[:size], m[:size]),
        "output_one_before": lambda m: (m[1 : size + 1], m[:size]),
        "output_one_after": lambda m: (m[:size], m[1 : size + 1]),
        "output_seven_before": lambda m: (m[7 : size + 7], m[:size]),
        "output_seventeen_after": lambda m: (m[:size], m[17 : size + 17]),
        "half_apart": lambda m: (m[:size], m[size // 2 : size // 2 + size]),
        "reversed": lambda m: (m[:size][::-1], m[:size]),
        "reversed_output": lambda m: (m[:size], m[:size][::-1]),
        "interleaved": lambda m: (m[: 2 * size : 2], m[1 : 2 * size : 2]),
        "input_runs_ahead": lambda m: (m[: 2 * size : 2], m[:size]),
        "output_runs_ahead": lambda m: (m[:size], m[: 2 * size : 2]),
        "both_reversed_and_shifted": lambda m: (m[1 : size + 1][::-1], m[:size][::-1]),
    }
    for name, view in views.items():
        memory = np.random.default_rng(0).standard_normal(2 * size + 20).astype(np.float32)
        yield name, *view(memory)


@ALL
@SIZES
def test_output_overlaps_each_input(case: Case, size: int) -> None:
    for position in range(len(case.data)):
        for name, x, out in overlapping(size):
            operands = data(case, size)
            operands[position] = x
            expected = call(case, [a.copy() for a in operands])
            assert call(case, operands, out=out) is out
            assert_array_equal(out, expected, err_msg=f"{name}, operand {position}")


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("operation", ["relu", "sigmoid", "relu_backward"])
def test_output_overlaps_with_streaming_stores_and_threads(operation: str, threads: int) -> None:
    case = CASES[operation]
    with fastrelu.num_threads(threads):
        for name, x, out in overlapping(100_003):
            expected = call(case, [x.copy()] * len(case.data))
            call(case, [x] * len(case.data), out=out)
            assert_array_equal(out, expected, err_msg=name)


@pytest.mark.parametrize("case", [c for c in CASES.values() if len(c.data) == 2], ids=lambda case: case.name)
@SIZES
def test_output_lies_between_two_inputs(case: Case, size: int) -> None:
    memory = np.random.default_rng(0).standard_normal(size + 20).astype(np.float32)
    operands, out = [memory[:size], memory[20 : size + 20]], memory[10 : size + 10]
    expected = call(case, [a.copy() for a in operands])
    assert_array_equal(call(case, operands, out=out), expected)


@ALL
@pytest.mark.parametrize("side", [3, 17, 331])
def test_output_is_the_transpose_of_the_input(case: Case, side: int) -> None:
    for change in (lambda m: m.T, lambda m: m[::-1], lambda m: m[:, ::-1], lambda m: np.roll(m, 0)[::-1, ::-1]):
        operands = data(case, (side, side))
        expected = call(case, [change(operands[0].copy()), *operands[1:]])
        call(case, [change(operands[0]), *operands[1:]], out=operands[0])
        assert_array_equal(operands[0], expected)


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.parameters], ids=lambda case: case.name)
@SIZES
def test_output_overlaps_the_parameter(case: Case, size: int) -> None:
    for view in (lambda m: m[:size], lambda m: m[size // 2], lambda m: m[:size][::-1], lambda m: m[1 : size + 1]):
        memory = np.random.default_rng(1).uniform(0.1, 0.9, size + 1).astype(np.float32)
        operands, alpha, out = data(case, size), view(memory), memory[:size]
        expected = case.ours(*operands, np.array(alpha))
        case.ours(*operands, alpha, out=out)
        assert_array_equal(out, expected)


@pytest.mark.parametrize("size", [300, 100_003])
def test_output_overlaps_an_input_of_another_size(size: int) -> None:
    # The element that an output writes is part of another of the input.
    memory = np.random.default_rng(0).standard_normal(size)
    expected = fastrelu.relu(memory.copy())
    out = memory.view(np.float32)[:size]
    fastrelu.relu(memory, out=out)
    assert_array_equal(out, expected.astype(np.float32))


# Types.


@pytest.mark.parametrize("name", FLOATS + INTEGERS)
@pytest.mark.parametrize("operation", SELECTING)
def test_selecting_operations_give_the_same_type_back(operation: str, name: str) -> None:
    case = CASES[operation]
    x = np.array([0, 1, 5, 100]).astype(dtype_of(name))
    result = call(case, [x] * len(case.data))
    assert result.dtype == x.dtype
    assert_array_equal(result.astype(int), [0, 1, 1, 1] if operation == "relu_derivative" else [0, 1, 5, 100])


@ALL
@pytest.mark.parametrize("name", FLOATS)
def test_floats_give_the_same_type_back(case: Case, name: str) -> None:
    operands = data(case, 5, name)
    assert call(case, operands).dtype == operands[0].dtype


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("case", [c for c in CASES.values() if c.name not in SELECTING], ids=lambda case: case.name)
def test_integers_become_floats_as_in_numpy(case: Case, name: str) -> None:
    x = np.array([0, 1, 3], name)
    peer = np.exp(x).dtype if not case.parameters else np.logaddexp(x, *case.parameters).dtype
    result = call(case, [x] * len(case.data))
    assert result.dtype == peer
    assert_array_equal(result, call(case, [x.astype(peer)] * len(case.data)))
    arrays = [x] * (len(case.data) + len(case.parameters))
    assert case.ours(*arrays).dtype == np.exp(x).dtype


PAIRS = ("float32 float64", "float16 float32", "bfloat16 float32", "bfloat16 float64", "int8 float32", "int32 float32")
PAIRS += ("int8 bfloat16", "int8 int32", "uint8 int8", "uint64 int64")


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("case", [c for c in CASES.values() if len(c.data) == 2], ids=lambda case: case.name)
def test_two_types_meet_in_the_type_that_holds_both(case: Case, pair: str) -> None:
    dtypes = [dtype_of(name) for name in pair.split()]
    common = np.result_type(*dtypes)
    if common.kind in "iu" and case.name not in SELECTING:
        common = np.exp(np.ones(1, common)).dtype if not case.parameters else np.dtype(np.float64)
    for order in (dtypes, dtypes[::-1]):
        operands = [np.array([1, 0, 3]).astype(dtype) for dtype in order]
        result = call(case, operands)
        expected = case.ours(*(a.astype(common) for a in operands), *case.parameters)
        assert_array_equal(result, expected, strict=True)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("number", [0.3, 1, 0, -2.5], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES.values() if c.parameters] + [CASES["relu_derivative"]], ids=lambda c: c.name)
def test_python_number_does_not_change_the_type(case: Case, number: float, name: str) -> None:
    operands = data(case, 5, name)
    result = case.ours(*operands, number)
    assert result.dtype == operands[0].dtype
    wide = np.float32 if operands[0].itemsize == 2 else operands[0].dtype
    expected = case.ours(*(a.astype(wide) for a in operands), np.full(5, number, wide)).astype(operands[0].dtype)
    assert_array_equal(result, expected)


@pytest.mark.parametrize("at_zero", [0, 1, -0.0, 1.0, 7.0])
@pytest.mark.parametrize("name", INTEGERS)
def test_whole_at_zero_keeps_an_integer_type(name: str, at_zero: float) -> None:
    x = np.array([0, 3], name)
    assert_array_equal(fastrelu.relu_derivative(x, at_zero=at_zero), np.array([at_zero, 1]).astype(name), strict=True)


def test_fractional_at_zero_makes_integers_floats() -> None:
    assert_array_equal(fastrelu.relu_derivative(np.array([-1, 0, 3], np.int8), 0.5), [0, 0.5, 1], strict=True)


def test_at_zero_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(OverflowError):
        fastrelu.relu_derivative(np.array([0], np.int8), at_zero=300)


REFUSED = {
    "bool": (np.ones(3, bool), "bool"),
    "complex64": (np.ones(3, np.complex64), "complex64"),
    "object": (np.array([1.0, None, 2.0]), "object"),
    "str": (np.array(["a", "b", "c"]), "str"),
    "bytes": (np.array([b"a", b"b", b"c"]), "bytes"),
    "datetime64": (np.zeros(3, "M8[s]"), "datetime64"),
    "timedelta64": (np.zeros(3, "m8[s]"), "timedelta64"),
    "longdouble": (np.ones(3, np.longdouble), np.dtype(np.longdouble).name),
    "structured": (np.zeros(3, "f4,f4"), "void"),
    "float8": (np.ones(3, ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
    "none": (None, "object"),
    "python_bool": (True, "bool"),
    "python_complex": (1j, "complex"),
    "python_str": ("abc", "str"),
}


@pytest.mark.parametrize(("bad", "shown"), REFUSED.values(), ids=REFUSED)
@ALL
def test_error_names_operation_operand_and_types(case: Case, bad: Any, shown: str) -> None:
    if shown == "float64":
        pytest.skip("long double is float64 on this machine")
    inputs = OPERATIONS[case.name].inputs
    for position, name in enumerate(inputs):
        for good in (np.ones(3), np.ones(3, np.float16)):
            operands = [good] * len(inputs)
            operands[position] = bad
            allowed = f"^{case.name}: {name} must be an integer type, float16, bfloat16, float32 or float64, not {shown}"
            for _ in range(2):  # NumPy must not remember a failure as an answer
                with pytest.raises(TypeError, match=allowed) as caught:
                    case.ours(*operands)
                assert caught.value.__cause__ is None
                assert caught.value.__suppress_context__


@pytest.mark.parametrize("operation", ["relu", "sigmoid", "tanh", "softplus"])
def test_integer_that_fits_no_type_is_refused(operation: str) -> None:
    with pytest.raises(TypeError, match=f"^{operation}: x must be .*, not object"):
        getattr(fastrelu, operation)(2**70)


@ALL
def test_a_good_call_after_a_refused_one(case: Case) -> None:
    operands = data(case)
    expected = call(case, operands)
    with pytest.raises(TypeError, match="must be"):
        call(case, [np.ones(3, bool)] * len(case.data))
    assert_array_equal(call(case, operands), expected)
    # An error of another kind is shown as it is, not as the one before.
    with pytest.raises(TypeError, match="same_kind"):
        call(case, operands, out=np.zeros(300, int))


@ALL
@pytest.mark.parametrize("dtype", ["bool", "complex128", "longdouble", "object", "int32"])
def test_refused_dtype_is_named(case: Case, dtype: str) -> None:
    if case.name in SELECTING and dtype == "int32":
        assert call(case, [np.ones(3, np.int16)] * len(case.data), dtype=dtype).dtype == dtype
        return
    with pytest.raises(TypeError, match=rf"^{case.name}: dtype must be .*float32 or float64, not {np.dtype(dtype).name}$"):
        call(case, data(case), dtype=dtype)


def test_float16_and_bfloat16_have_no_common_type() -> None:
    with pytest.raises(TypeError, match="common DType"):
        fastrelu.relu_backward(np.ones(3, np.float16), np.ones(3, ml_dtypes.bfloat16))


# The face of a ufunc.


@ALL
def test_attributes(case: Case) -> None:
    f, inputs = case.ours, OPERATIONS[case.name].inputs
    bare = getattr(ufuncs, case.name)
    assert (f.nin, f.nout, f.nargs) == (len(inputs), 1, len(inputs) + 1) == (bare.nin, bare.nout, bare.nargs)
    assert f.__name__ == f.__qualname__ == bare.__name__ == case.name
    assert len(f.types) == f.ntypes == len(set(f.types))
    assert f.types[:3] == [t for t in f.types if t[-1] in "efd"]
    assert (len(f.types) == 11) == (case.name in SELECTING)
    assert f.signature is None
    assert f.identity is None


@ALL
def test_types_are_those_of_the_results(case: Case) -> None:
    for row in case.ours.types:
        inputs, output = row.split("->")
        assert case.ours(*(np.ones(3, t) for t in inputs), signature=row).dtype.char == output


@ALL
def test_docstring_is_complete(case: Case) -> None:
    doc = inspect.getdoc(case.ours)
    sections = [doc.index(f"\n{title}\n{'-' * len(title)}\n") for title in ("Parameters", "Returns", "Raises", "Examples")]
    assert sections == sorted(sections)
    for name in inspect.signature(case.ours).parameters:
        assert name in doc


@ALL
def test_signature(case: Case) -> None:
    parameters = inspect.signature(case.ours).parameters
    inputs = OPERATIONS[case.name].inputs
    assert list(parameters) == [*inputs, "out", "kwargs"]
    positional = [*case.data, "alpha"] if case.name == "prelu" else case.data
    for name, parameter in parameters.items():
        assert (parameter.kind is parameter.POSITIONAL_ONLY) == (name in positional), name
    with pytest.raises(TypeError):
        case.ours(**dict(zip(inputs, [np.ones(2)] * len(inputs), strict=True)))


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.parameters and c.name != "prelu"], ids=lambda c: c.name)
def test_parameter_by_keyword_and_by_default(case: Case) -> None:
    operands = data(case)
    default = inspect.signature(case.ours).parameters["alpha"].default
    assert_array_equal(case.ours(*operands), case.ours(*operands, default))
    assert_array_equal(case.ours(*operands, alpha=0.3), case.ours(*operands, 0.3))
    out = np.zeros(300, np.float32)
    assert case.ours(*operands, alpha=0.3, out=out) is out
    assert_array_equal(out, case.ours(*operands, 0.3))


@ALL
def test_bare_ufunc(case: Case) -> None:
    bare = getattr(ufuncs, case.name)
    assert type(bare) is np.ufunc
    assert bare is getattr(ufuncs, case.name)
    assert case.name in dir(ufuncs)
    operands = data(case)
    assert_array_equal(bare(*operands, *all_parameters(case)), call(case, operands))


def test_no_ufunc_of_another_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ufuncs.nothing


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda f: pickle.loads(pickle.dumps(f))}


@ALL
@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_to_itself(case: Case, change: Callable[[Any], Any]) -> None:
    for f in (case.ours, getattr(ufuncs, case.name)):
        assert change(f) is f


def test_pickle_in_another_process() -> None:
    pickled = [pickle.dumps(f) for f in (fastrelu.tanh, ufuncs.tanh)]
    run(f"{NAMES}import pickle\nfor p in {pickled!r}: pickle.loads(p)(np.zeros(2))\nassert pickle.loads(p) is f.ufuncs.tanh")


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
@pytest.mark.parametrize("case", UNARY, ids=lambda case: case.name)
def test_at(case: Case, name: str) -> None:
    x = data(case, 20, name)[0]
    second = all_parameters(case)
    result = x.copy()
    case.ours.at(result, [1, 5, -1], *second)
    expected = x.copy()
    expected[[1, 5, -1]] = case.ours(x[[1, 5, -1]], *second)
    assert_array_equal(result, expected)


def test_at_applies_repeatedly_where_an_index_repeats() -> None:
    x = np.array([1.0, 2.0])
    fastrelu.tanh.at(x, [0, 0])
    assert_array_equal(x, [fastrelu.tanh(fastrelu.tanh(1.0)), 2.0])


def test_at_of_two_operands() -> None:
    dy = np.ones(4)
    fastrelu.relu_backward.at(dy, [0, 2], np.array([-1.0, 5.0]))
    assert_array_equal(dy, [0, 1, 1, 1])


def test_at_integers() -> None:
    x = np.array([-1, -2, 3])
    fastrelu.relu.at(x, slice(0, 1))
    assert_array_equal(x, [0, -2, 3])


def test_at_names_what_it_refuses() -> None:
    with pytest.raises(TypeError, match=r"^relu: x must be .*, not bool"):
        fastrelu.relu.at(np.ones(3, bool), [0])


@ALL
def test_memmap(case: Case, tmp_path: Path) -> None:
    operands = data(case, 1000)
    maps = []
    for i, a in enumerate(operands):
        a.tofile(tmp_path / str(i))
        maps.append(np.memmap(tmp_path / str(i), np.float32, "r"))
    expected = call(case, operands)
    assert_array_equal(call(case, maps), expected)
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=1000)
    assert call(case, maps, out=out) is out
    out.flush()
    assert_array_equal(np.fromfile(tmp_path / "out", np.float32), expected)
