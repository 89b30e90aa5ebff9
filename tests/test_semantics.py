"""What stands in each element, on bits: special values, and the same result in every path through a loop.

The expected bits are written with integers only, so that no floating-point rule of this machine stands between the table
and the test.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from bench.callables import CASES, Case
from fastrelu.operations import FLOATS, INTEGERS, OPERATIONS
from tests.dtypes import dtype_of

MANTISSA = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
# Operations that only compare and select, with the dtypes that they have loops for.
SELECTING = ("relu", "relu_derivative", "relu_backward")
# A step of a loop is two registers of at most 64 bytes.
STEP = 128
# More than two parts of every operation, and no multiple of anything.
LONG = 100_003


def bits(x: np.ndarray) -> np.ndarray:
    """The elements as unsigned integers, so that the sign of a zero and the payload of a NaN count."""
    return np.ascontiguousarray(x).view(f"u{x.itemsize}")


def outcome(case: Case, x: np.ndarray) -> np.ndarray:
    """The bits of a result; of a calculated NaN only that it is one, since which of two comes out is left open."""
    return bits(x if case.name in SELECTING else np.where(is_nan(x), np.array(np.nan, x.dtype), x))


def is_float(name: str) -> bool:
    return name in FLOATS


def fields(name: str) -> tuple[int, int, int]:
    """The sign bit, the bits of infinity and the bits of 1.0."""
    width, m = 8 * dtype_of(name).itemsize, MANTISSA[name]
    infinity = (1 << (width - 1)) - (1 << m)
    return 1 << (width - 1), infinity, (infinity >> 1) & infinity


def specials(name: str) -> np.ndarray:
    """Zeros, subnormals, ordinary numbers, limits, infinities and NaNs, of both signs."""
    dtype = dtype_of(name)
    if not is_float(name):
        info = np.iinfo(dtype)
        return np.array([0, 1, 2, 3, info.max // 2, info.max // 2 + 1, info.max - 1, info.max, info.min, info.min // 2], dtype)
    sign, infinity, one = fields(name)
    m = MANTISSA[name]
    quiet, payload, signalling = infinity | 1 << (m - 1), infinity | 1 << (m - 1) | 5, infinity | 1
    subnormal = (1, 3, (1 << m) - 1)
    normal = (1 << m, one - 1, one, one + 1, infinity - 1)
    words = (0, *subnormal, *normal, infinity, quiet, payload, signalling, (2 << (m - 1)) - 1 | infinity)
    return np.array([*words, *(sign | w for w in words)], f"u{dtype.itemsize}").view(dtype)


def size_of(x: np.ndarray) -> np.ndarray:
    """The bits without the sign."""
    return bits(x) & bits(x).dtype.type(fields(x.dtype.name)[0] - 1)


def is_nan(x: np.ndarray) -> np.ndarray:
    return size_of(x) > fields(x.dtype.name)[1] if is_float(x.dtype.name) else np.zeros(x.shape, bool)


def is_zero(x: np.ndarray) -> np.ndarray:
    return size_of(x) == 0


def is_cleared(x: np.ndarray) -> np.ndarray:
    """Whether x <= 0."""
    return is_zero(x) | ((bits(x) != size_of(x)) & ~is_nan(x))


def expected(operation: str, name: str, *operands: np.ndarray) -> np.ndarray:
    """The bits that the table of the contract asks for."""
    x = operands[-1]
    if not is_float(name):
        positive = {"relu": x, "relu_derivative": np.ones_like(x), "relu_backward": operands[0]}[operation]
        return bits(np.where(x > 0, positive, np.zeros_like(x)))
    words = bits(x)
    one = words.dtype.type(fields(name)[2])
    positive = {"relu": words, "relu_derivative": np.full_like(words, one), "relu_backward": bits(operands[0])}[operation]
    return np.where(is_cleared(x), words.dtype.type(0), positive)


def arguments(operation: str, x: np.ndarray) -> list[np.ndarray]:
    """Operands of a selecting operation whose last is `x`."""
    return [np.roll(x, 5), x] if operation == "relu_backward" else [x]


def block(case: Case, name: str) -> list[np.ndarray]:
    """Operands with every pair of special values and with ordinary numbers; 997 is prime, so every lane meets all of them."""
    rng, count = np.random.default_rng(0), len(case.data)
    operands = []
    for pairs in np.meshgrid(*[specials(name)] * count):
        draw = (3 * rng.standard_normal(997)).astype(np.float32) if is_float(name) else rng.integers(0, 100, 997)
        operands.append(np.concatenate([pairs.ravel(), draw.astype(dtype_of(name))])[:997])
    if case.name == "softplus_backward":
        operands[1] = size_of(operands[1]).view(dtype_of(name))  # an output is never negative
    return operands


def scattered(a: np.ndarray, step: int) -> np.ndarray:
    """The same elements, `step` elements apart in memory."""
    wide = np.zeros(len(a) * abs(step), a.dtype)[:: step or 1]
    wide[:] = a
    return wide


def unaligned(a: np.ndarray) -> np.ndarray:
    """The same elements, beginning at an odd address."""
    return np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every_second": lambda a: scattered(a, 2),
    "every_seventh": lambda a: scattered(a, 7),
    "reversed": lambda a: scattered(a, -1),
    "reversed_every_third": lambda a: scattered(a, -3),
    "unaligned": unaligned,
    "byteswapped": lambda a: a if a.dtype == ml_dtypes.bfloat16 else a.astype(a.dtype.newbyteorder()),
    "read_only": lambda a: np.frombuffer(a.tobytes(), a.dtype),
}
SELECT = [pytest.param(op, name, id=f"{op}-{name}") for op in SELECTING for name in FLOATS + INTEGERS]
EVERY = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in CASES.values()
    for name in OPERATIONS[case.name].dtypes
    if name in FLOATS or name in ("int8", "uint64")
]
THREADS = pytest.mark.parametrize("threads", [1, 2, 3, 5, 8])


# The table of the contract.


@pytest.mark.parametrize(("operation", "name"), SELECT)
def test_specials_in_every_lane_of_every_length(operation: str, name: str) -> None:
    # From no element to three steps and one, so that every tail occurs after every number of whole steps; the specials
    # move on by one with each length. What stands before and behind the output must stay.
    f, special = getattr(fastrelu, operation), specials(name)
    count = 3 * STEP // special.itemsize + 2
    source = np.resize(special, count + len(special))
    for n in range(count):
        operands = arguments(operation, source[n % len(special) :][:n])
        guarded = np.full(n + 2, 77, source.dtype)
        f(*operands, out=guarded[1 : n + 1])
        assert_array_equal(bits(guarded[1 : n + 1]), expected(operation, name, *operands), err_msg=f"length {n}")
        assert_array_equal(guarded[[0, n + 1]], 77, err_msg=f"written outside of {n} elements")


@pytest.mark.parametrize(("operation", "name"), SELECT)
def test_each_special_alone(operation: str, name: str) -> None:
    f = getattr(fastrelu, operation)
    for x in specials(name):
        operands = arguments(operation, np.array([x]))
        result = f(*operands)
        assert_array_equal(bits(result), expected(operation, name, *operands), err_msg=repr(x))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("operation", SELECTING)
def test_every_half(operation: str, name: str) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype_of(name))
    operands = arguments(operation, x)
    assert_array_equal(bits(getattr(fastrelu, operation)(*operands)), expected(operation, name, *operands))


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16"])
def test_every_small_integer(name: str) -> None:
    info = np.iinfo(name)
    x = np.arange(info.min, info.max + 1).astype(name)
    assert_array_equal(fastrelu.relu(x), np.maximum(x, 0), strict=True)
    assert_array_equal(fastrelu.relu_derivative(x), (x > 0).astype(name), strict=True)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0, -0.0, np.inf, np.nan])
def test_derivative_at_zero_of_either_sign(name: str, at_zero: float) -> None:
    x = specials(name)
    zero = is_zero(x)
    result = fastrelu.relu_derivative(x, at_zero=at_zero)
    # A whole number passes through an integer, which has one zero only.
    value = bits(np.array([at_zero if at_zero else 0.0]).astype(x.dtype))[0]
    assert_array_equal(bits(result)[zero], value)
    assert_array_equal(bits(result)[~zero], expected("relu_derivative", name, x)[~zero])
    assert zero.sum() == 2


@pytest.mark.parametrize("name", FLOATS)
def test_derivative_at_zero_one_value_for_each_element(name: str) -> None:
    x = np.zeros(300, dtype_of(name))
    at_zero = np.resize(specials(name), 300)
    assert_array_equal(bits(fastrelu.relu_derivative(x, at_zero)), bits(at_zero))


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_leaky_slope_is_one_product(name: str) -> None:
    # One rounding, so there is one right answer, subnormal products included.
    x, alpha = block(CASES["leaky_relu"], name), dtype_of(name).type(0.3)
    number = ~is_nan(x[0])
    with np.errstate(all="ignore"):
        forward = np.where(x[0] < 0, alpha * x[0], x[0])
        backward = np.where(x[0] <= 0, alpha * x[0], x[0])
    assert_array_equal(bits(fastrelu.leaky_relu(x[0], alpha))[number], bits(forward)[number])
    assert_array_equal(bits(fastrelu.prelu(x[0], alpha))[number], bits(forward)[number])
    assert_array_equal(bits(fastrelu.leaky_relu_backward(x[0], x[0], alpha))[number], bits(backward)[number])


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.0, -1.0, np.inf])
@pytest.mark.parametrize("operation", ["leaky_relu", "prelu", "elu"])
def test_zero_keeps_its_sign_under_a_slope(operation: str, alpha: float, name: str) -> None:
    x = np.array([0.0, -0.0], dtype_of(name))
    assert_array_equal(bits(getattr(fastrelu, operation)(x, alpha)), bits(x))


@pytest.mark.parametrize("name", FLOATS)
def test_zero_keeps_its_sign_in_tanh(name: str) -> None:
    x = np.array([0.0, -0.0], dtype_of(name))
    assert_array_equal(bits(fastrelu.tanh(x)), bits(x))


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_limits(name: str) -> None:
    x = np.array([-np.inf, np.inf], name)
    for f, limits in ((fastrelu.sigmoid, [0, 1]), (fastrelu.tanh, [-1, 1]), (fastrelu.elu, [-1, np.inf])):
        assert_array_equal(f(x), np.array(limits, name), strict=True)
    assert_array_equal(bits(fastrelu.softplus(x)), bits(np.array([0.0, np.inf], name)))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("operation", ["tanh", "elu", "leaky_relu"])
def test_subnormals_are_not_flushed(operation: str, name: str) -> None:
    # Near 0 tanh(x) and expm1(x) are x; a slope of 1 keeps x.
    x = specials(name)
    subnormal = x[~is_zero(x) & (size_of(x) < 1 << MANTISSA[name])]
    assert len(subnormal) == 6
    parameters = (1.0,) if operation != "tanh" else ()
    assert_array_equal(bits(getattr(fastrelu, operation)(subnormal, *parameters)), bits(subnormal))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nan_is_never_hidden(case: Case, name: str) -> None:
    nan = specials(name)
    nan = nan[is_nan(nan)]
    for i in range(len(case.data)):
        operands = [np.full_like(nan, 1) for _ in case.data]
        operands[i] = nan
        result = case.ours(*operands, *case.parameters)
        if case.name == "relu_derivative" or (case.name in ("relu_backward", "leaky_relu_backward", "elu_backward") and i):
            assert_array_equal(bits(result), fields(name)[2])  # the gradient passes, and it is 1
        else:
            assert_array_equal(is_nan(result), True)


# Every path through a loop gives the bits of the plain one: a short contiguous array.


@pytest.mark.parametrize(("case", "name"), EVERY)
def test_position_does_not_matter(case: Case, name: str) -> None:
    # The whole block against one element a call.
    operands = block(case, name)
    alone = np.concatenate([case.ours(*(a[i : i + 1] for a in operands), *case.parameters) for i in range(len(operands[0]))])
    assert_array_equal(outcome(case, case.ours(*operands, *case.parameters)), outcome(case, alone))


@pytest.mark.parametrize(("case", "name"), EVERY)
def test_length_does_not_matter(case: Case, name: str) -> None:
    operands = block(case, name)
    whole = outcome(case, case.ours(*operands, *case.parameters))
    for n in range(3 * STEP // operands[0].itemsize + 2):
        part = case.ours(*(a[n : 2 * n] for a in operands), *case.parameters)
        assert_array_equal(outcome(case, part), whole[n : 2 * n], err_msg=f"length {n}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("case", "name"), EVERY)
def test_layout_does_not_matter(case: Case, name: str, layout: str) -> None:
    operands = block(case, name)
    whole = outcome(case, case.ours(*operands, *case.parameters))
    laid = [LAYOUTS[layout](a) for a in operands]
    assert_array_equal(outcome(case, case.ours(*laid, *case.parameters)), whole)
    # One operand alone, so that steps differ among operands; and one longer than the buffer of the strided path.
    assert_array_equal(outcome(case, case.ours(*laid[:1], *operands[1:], *case.parameters)), whole)
    assert_array_equal(outcome(case, case.ours(*(a[:258] for a in laid), *case.parameters)), whole[:258])


@pytest.mark.parametrize("step", [2, -1, -5])
@pytest.mark.parametrize(("case", "name"), EVERY)
def test_strided_output(case: Case, name: str, step: int) -> None:
    operands = block(case, name)
    whole = case.ours(*operands, *case.parameters)
    memory = np.full(abs(step) * len(whole), 77, whole.dtype)
    out = memory[::step]
    between = np.ones(len(memory), bool)
    between[::step] = False
    case.ours(*operands, *case.parameters, out=out)
    assert_array_equal(outcome(case, out), outcome(case, whole))
    assert_array_equal(memory[between], 77)


@pytest.mark.parametrize(("case", "name"), EVERY)
def test_fortran_and_mixed_order(case: Case, name: str) -> None:
    operands = [np.resize(a, 37 * 53) for a in block(case, name)]
    whole = outcome(case, case.ours(*operands, *case.parameters)).reshape(37, 53)
    grids = [a.reshape(37, 53) for a in operands]
    fortran = [np.asfortranarray(a) for a in grids]
    for laid in (fortran, [*fortran[:1], *grids[1:]], [a[:, ::-1].copy()[:, ::-1] for a in grids]):
        assert_array_equal(outcome(case, case.ours(*laid, *case.parameters)), whole)
    assert_array_equal(outcome(case, case.ours(*(a.T for a in fortran), *case.parameters)), whole.T)
    assert_array_equal(outcome(case, case.ours(*(a[3:30:4, 5:50:3] for a in grids), *case.parameters)), whole[3:30:4, 5:50:3])


@pytest.mark.parametrize(("case", "name"), EVERY)
def test_one_value_for_all(case: Case, name: str) -> None:
    # An operand of step 0, in a run of any other.
    for value in specials(name):
        operands = [np.full(300, value) for _ in case.data]
        single = [np.broadcast_to(value, 300) for _ in case.data]
        assert_array_equal(
            outcome(case, case.ours(*single[:1], *operands[1:], *case.parameters)),
            outcome(case, case.ours(*operands, *case.parameters)),
        )


@pytest.mark.parametrize("size", [1, 300, LONG])
@pytest.mark.parametrize(("case", "name"), [p for p in EVERY if p.values[0].parameters])
def test_parameter_as_number_or_array(case: Case, name: str, size: int) -> None:
    operands = [np.resize(a, size) for a in block(case, name)]
    number = outcome(case, case.ours(*operands, 0.25))
    values = np.full(2 * size, 0.25, dtype_of(name))
    for alpha in (values[0], values[:1], values[:size], values[::2], values[::-2], np.broadcast_to(values[0], size)):
        assert_array_equal(outcome(case, case.ours(*operands, alpha)), number)


@THREADS
@pytest.mark.parametrize(("case", "name"), EVERY)
def test_threads_do_not_matter(case: Case, name: str, threads: int) -> None:
    operands = block(case, name)
    whole = np.resize(outcome(case, case.ours(*operands, *case.parameters)), LONG)
    long = [np.resize(a, LONG) for a in operands]
    with fastrelu.num_threads(threads):
        assert_array_equal(outcome(case, case.ours(*long, *case.parameters)), whole)
        assert_array_equal(outcome(case, case.ours(*(scattered(a, -2) for a in long), *case.parameters)), whole)


@pytest.mark.usefixtures("streaming")
@THREADS
@pytest.mark.parametrize(("case", "name"), EVERY)
def test_streaming_stores_do_not_matter(case: Case, name: str, threads: int) -> None:
    operands = block(case, name)
    whole = np.resize(outcome(case, case.ours(*operands, *case.parameters)), LONG)
    long = [np.resize(a, LONG) for a in operands]
    out = np.full(LONG + 2, 77, long[0].dtype)
    with fastrelu.num_threads(threads):
        case.ours(*long, *case.parameters, out=out[1:-1])
        assert_array_equal(outcome(case, out[1:-1]), whole)
        assert_array_equal(out[[0, -1]], 77)
        case.ours(*long, *case.parameters, out=long[0])
        assert_array_equal(outcome(case, long[0]), whole)


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("name", FLOATS)
def test_streaming_to_an_output_of_every_alignment(name: str) -> None:
    # Aligned stores must begin at a vector of the output, wherever it and the input begin.
    n = 2 * OPERATIONS["relu"].grain + 61
    x = np.resize(specials(name), n + STEP)
    whole = expected("relu", name, x)
    for offset in range(STEP // x.itemsize + 1):
        out = np.full(n + STEP, 77, x.dtype)
        fastrelu.relu(x[1 : n + 1], out=out[offset : offset + n])
        assert_array_equal(bits(out[offset : offset + n]), whole[1 : n + 1], err_msg=f"offset {offset}")
        assert_array_equal(out[:offset], 77)
        assert_array_equal(out[offset + n :], 77)


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
@pytest.mark.parametrize("operation", ["relu", "sigmoid"])
def test_lengths_around_the_division_into_parts(operation: str, name: str) -> None:
    f, grain = getattr(fastrelu, operation), OPERATIONS[operation].grain
    x = block(CASES[operation], name)[0]
    whole, long = np.resize(bits(f(x)), 5 * grain), np.resize(x, 5 * grain)
    for parts in (1, 2, 3, 4):
        for n in (parts * grain + d for d in (-65, -64, -63, -1, 0, 1, 63, 64, 65)):
            with fastrelu.num_threads(2):
                out = np.full(n, 77, x.dtype)
                assert_array_equal(bits(f(long[:n], out=out)), whole[:n], err_msg=f"length {n}")


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nothing_is_touched_beyond_an_operand(case: Case, name: str) -> None:
    # Operands that end where the next page may not be read: one byte too many ends the process.
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None)
    libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    dtype = dtype_of(name)
    arrays = []
    for _ in range(len(case.data) + 1):
        memory = mmap.mmap(-1, 3 * page)
        raw = np.frombuffer(memory, np.uint8)
        for number in (0, 2):
            assert libc.mprotect(raw.ctypes.data + number * page, page, 0) == 0
        arrays.append(raw[page : 2 * page].view(dtype))
    for n in range(3 * STEP // dtype.itemsize + 2):
        for start in (0, len(arrays[0]) - n):
            *operands, out = (a[start : start + n] for a in arrays)
            for a in operands:
                a[:] = 1
            case.ours(*operands, *case.parameters, out=out)
            assert_array_equal(bits(out), bits(case.ours(*(a.copy() for a in operands), *case.parameters)))


# Floating-point errors: NumPy looks at the flags where a type is converted, and errstate turns each into an exception.


@pytest.mark.parametrize(("case", "name"), EVERY)
def test_no_floating_point_error(case: Case, name: str) -> None:
    operands = block(case, name)
    long = [np.resize(a, LONG) for a in operands]
    with np.errstate(all="raise"):
        case.ours(*operands, *case.parameters)
        case.ours(*long, *case.parameters)
        case.ours(*(a[::-2] for a in long), *case.parameters)
        for values in zip(*(a[:100] for a in operands), strict=True):
            case.ours(*values, *case.parameters)


@pytest.mark.parametrize(("case", "name"), EVERY)
def test_no_floating_point_error_with_casts(case: Case, name: str) -> None:
    # The conversions themselves are exact: to the next wider type, and no signalling NaN, whose conversion is an error.
    operands = block(case, name)
    if is_float(name):
        quiet = np.ones(len(operands[0]), bool)
        for a in operands:
            quiet &= ~is_nan(a) | (bits(a) >> (MANTISSA[name] - 1) & 1 == 1)
        operands = [a[quiet] for a in operands]
    wider = {"float64": np.longdouble, "float32": np.float64}.get(name, np.float32 if is_float(name) else np.float64)
    plain = case.ours(*operands, *case.parameters)
    with np.errstate(all="raise"):
        for length in (len(plain), 7):
            out = np.empty(length, wider)
            case.ours(*(a[:length] for a in operands), *case.parameters, out=out)
            assert_array_equal(out, plain[:length].astype(wider))
        if name != "float64":
            case.ours(*operands, *case.parameters, dtype=wider)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("edge", ["specials", "sum_overflows", "infinities_cancel", "result_is_subnormal"])
def test_no_floating_point_error_in_prelu_backward(edge: str, name: str) -> None:
    dy, x = block(CASES["relu_backward"], name)
    if edge != "specials":
        largest = np.array([fields(name)[1] - 1], bits(x).dtype).view(x.dtype)[0]
        dy, x = {
            "sum_overflows": ([largest] * 300, [-1] * 300),
            "infinities_cancel": ([np.inf, -np.inf], [-1, -1]),
            "result_is_subnormal": (specials(name)[1:2], [-0.3]),
        }[edge]
        dy, x = np.array(dy, dtype_of(name)), np.array(x, dtype_of(name))
    with np.errstate(all="raise"):
        for alpha in (0.25, np.array(0.25, x.dtype), np.full(len(x), 0.25, x.dtype)):
            fastrelu.prelu_backward(dy, x, alpha)
