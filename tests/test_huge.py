"""More than 2**31 elements in one dimension, and in all: no index and no size is kept in 32 bits.

Operands repeat a short pattern, so that what any element must be is known without a second array of that size. All of them is
memory: each test runs in a process of its own, which gives it back, and only where there is enough.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from tests.reference import bits
from tests.subprocesses import call

pytestmark = pytest.mark.nightly

HUGE = 2**31 + 2**27 + 1009
"""So much more that parts begin beyond 2**31 as well, where the work is shared out to many threads."""
SIDE = 46_347
"""Of a square with more than 2**31 elements."""
PERIOD = 65_537
GIGABYTE = 10**9


def available() -> int:
    """Bytes that programs can have without others being driven out; 0 where it is not known."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except OSError:
        return 0


def run(function: Callable[..., None], *arguments: object, gigabytes: float, timeout: float = 600) -> None:
    if available() < (gigabytes + 1) * GIGABYTE:
        pytest.skip(f"needs {gigabytes + 1} GB of memory")
    call(function, *arguments, env={"FASTRELU_NUM_THREADS": "16"}, timeout=timeout)


def pattern(dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (3 * rng.standard_normal(PERIOD)).astype(dtype)
    return rng.integers(-128, 128, PERIOD).astype(dtype)


def repeated(values: np.ndarray, size: int) -> np.ndarray:
    """`values` over and over."""
    x = np.empty(size, values.dtype)
    whole = size // len(values) * len(values)
    x[:whole].reshape(-1, len(values))[...] = values
    x[whole:] = values[: size - whole]
    return x


def places(size: int) -> list[slice]:
    """Runs in which to look: the ends, around every power of two from 2**29 up, and a few others."""
    starts = [0, size - 1000, *(2**p - 500 for p in range(29, 33)), 2**31 + 2**26]
    starts += [int(i) for i in np.random.default_rng(7).integers(0, size - 1000, 30)]
    return [slice(start, start + 1000) for start in starts if start <= size - 1000]


def at(values: np.ndarray, place: slice) -> np.ndarray:
    """What a repeated pattern has there."""
    return values[np.arange(place.start, place.stop) % len(values)]


def elementwise(name: str, dtype: str) -> None:
    values, others = pattern(dtype), pattern(dtype, 1)
    function = getattr(fastrelu, name)
    x = repeated(values, HUGE)
    if name == "relu_backward":
        y = repeated(others, HUGE)
        assert function(x, y, out=x) is x
    else:
        assert function(x, out=x) is x
    for place in places(HUGE):
        operands = [at(values, place), at(others, place)][: 1 + (name == "relu_backward")]
        expected = function(*operands)
        if expected.dtype.kind == "f":
            assert_array_equal(bits(x[place]), bits(expected), err_msg=str(place))
        assert_array_equal(x[place], expected, err_msg=str(place))


@pytest.mark.parametrize(
    ("name", "dtype", "gigabytes"),
    [
        ("relu", "int8", 2.4),
        ("relu", "float16", 4.7),
        ("relu", "float32", 9.2),
        ("relu_backward", "int8", 4.7),
        ("relu_backward", "float16", 9.2),
        ("tanh", "float16", 4.7),
        ("tanh", "float32", 9.2),
    ],
)
def test_long_array(name: str, dtype: str, gigabytes: float) -> None:
    run(elementwise, name, dtype, gigabytes=gigabytes)


def strided(kind: str) -> None:
    values = pattern("int8")
    if kind == "every other element":
        x = repeated(values, 2 * HUGE)
        view = x[::2]
    elif kind == "one long column of two":
        x = repeated(values, 2 * HUGE)
        view = x.reshape(HUGE, 2)[:, :1]
    elif kind == "backwards":
        x = repeated(values, HUGE)
        view = x[::-1]
    elif kind == "transposed":
        x = repeated(values, SIDE * SIDE)
        view = x.reshape(SIDE, SIDE).T
    else:
        x = repeated(values, SIDE * (SIDE + 7))
        view = x.reshape(SIDE, SIDE + 7)[:, 3 : 3 + SIDE]
    fastrelu.relu(view, out=view)
    for place in places(x.size):
        i, expected = np.arange(place.start, place.stop), at(values, place).copy()
        if kind in ("every other element", "one long column of two"):
            taken = i % 2 == 0
        elif kind == "columns":
            taken = (i % (SIDE + 7) >= 3) & (i % (SIDE + 7) < 3 + SIDE)
        else:
            taken = np.ones(len(i), bool)
        expected[taken & (expected < 0)] = 0
        assert_array_equal(x[place], expected, err_msg=str(place))


@pytest.mark.parametrize("kind", ["every other element", "one long column of two", "backwards", "transposed", "columns"])
def test_long_array_with_strides(kind: str) -> None:
    run(strided, kind, gigabytes=4.7)


def one_value() -> None:
    y = np.ones(HUGE, np.int8)
    fastrelu.relu(np.broadcast_to(np.int8(7), HUGE), out=y)
    assert (y == 7).all()


def test_one_value_into_a_long_array() -> None:
    run(one_value, gigabytes=4.7)


# Fused layers. Terms are whole and cancel or are few, so that each sum is exact in any order and a half holds it.


def many_results(masked: bool) -> None:
    x, w = (repeated(pattern("int8") % 8, 2 * SIDE).astype(np.float16) for _ in range(2))
    x, w = x.reshape(SIDE, 2) - 3, w.reshape(2, SIDE) - 4
    y = np.full((SIDE, SIDE), 77, np.float16)
    if masked:
        y, mask = fastrelu.linear_relu(x, w, out=y, mask=np.full((SIDE, -(-SIDE // 8)), 0x55, np.uint8))
    else:
        fastrelu.linear_relu(x, w, out=y)
    for i in (0, 1, SIDE // 2, 2**30 // SIDE, 2**31 // SIDE - 1, 2**31 // SIDE, SIDE - 1):
        expected = np.maximum(x[i, 0] * w[0] + x[i, 1] * w[1], 0)
        assert_array_equal(y[i], expected, err_msg=str(i))
        if masked:
            assert_array_equal(mask[i], np.packbits(expected > 0, bitorder="little"))


@pytest.mark.parametrize("masked", [False, True])
def test_many_results_of_a_layer(masked: bool) -> None:
    run(many_results, masked, gigabytes=5)


def canceling(size: int) -> np.ndarray:
    """1, -1, 1, -1 ..., as halves."""
    return repeated(np.array([1, -1] * 1000, np.float16), size)


def marks(size: int) -> dict[int, int]:
    """Places and the powers of two to put there; each sum of them tells which are missing."""
    return {place: 2**i for i, place in enumerate((0, 2**30, 2**31 - 1, 2**31, 2**31 + 2**26, size - 1)) if place < size}


def many_terms() -> None:
    x, w = canceling(HUGE - 1), np.ones(HUGE - 1, np.float16)
    for place, power in marks(HUGE - 1).items():
        x[place] += power
    y = fastrelu.linear_relu(x[None], w[:, None], np.full(1, 1024, np.float16))
    assert y.tolist() == [[1024 + 63]]


def test_many_terms_of_a_layer() -> None:
    run(many_terms, gigabytes=9.2)


def many_rows(side: str) -> None:
    values = pattern("int8").astype(np.float16)
    x, one = repeated(values, HUGE), np.full((1, 1), 2, np.float16)
    y = np.full(HUGE, 77, np.float16)
    if side == "rows":
        fastrelu.linear_relu(x[:, None], one, np.ones(1, np.float16), out=y[:, None])
    else:
        fastrelu.linear_relu(one, x[None], out=y[None])
    for place in places(HUGE):
        expected = 2 * at(values, place) + (side == "rows")
        assert_array_equal(y[place], np.maximum(expected, 0), err_msg=str(place))


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_many_rows_or_columns_of_a_layer(side: str) -> None:
    run(many_rows, side, gigabytes=9.2)


def large_operand(which: str) -> None:
    # 7 is prime to the side, and a product of two such numbers is small and whole.
    values = np.arange(SIDE * 2) % 7 - 3
    large = repeated(values[: 7 * (SIDE // 7)].astype(np.float16), SIDE * SIDE).reshape(SIDE, SIDE)
    few = np.zeros((3, SIDE), np.float16)
    at_places = (0, SIDE // 2, SIDE - 1)
    for row, place in enumerate(at_places):
        few[row, place] = row + 1
    if which == "x":
        y = fastrelu.linear(large, np.ascontiguousarray(few.T)).T
        expected = [(row + 1) * large[:, place] for row, place in enumerate(at_places)]
    else:
        y = fastrelu.linear(few, fastrelu.pack(large) if which == "packed" else large)
        expected = [(row + 1) * large[place] for row, place in enumerate(at_places)]
    assert_array_equal(y, expected)


@pytest.mark.parametrize(("which", "gigabytes"), [("x", 4.5), ("w", 4.5), ("packed", 13.5)])
def test_operand_of_a_layer_with_many_elements(which: str, gigabytes: float) -> None:
    run(large_operand, which, gigabytes=gigabytes)


# Backward.


def batch(kind: str) -> None:
    dy, x = canceling(HUGE - 1), np.ones(HUGE - 1, np.float16)
    for place, power in marks(HUGE - 1).items():
        dy[place] += power
        x[place] = 2
    w = np.full((1, 1), 3, np.float16)
    if kind == "mask":
        # The bit of the last row is not set: its gradient is 0.
        mask = np.ones((HUGE - 1, 1), np.uint8)
        mask[-1] = 0
        _, dw, db = fastrelu.linear_relu_backward(dy[:, None], mask, x[:, None], None, wanted=("dw", "db"))
        total = 63 - 32 + 1  # of the last row is missing 32, and the -1 that cancels
    else:
        _, dw, db = fastrelu.linear_backward(dy[:, None], x[:, None], None, wanted=("dw", "db"))
        total = 63
    assert db.tolist() == [total]
    marked = [place for place in marks(HUGE - 1) if kind != "mask" or place != HUGE - 2]
    assert dw.tolist() == [[total + sum(float(dy[place]) for place in marked)]]
    if kind == "dx":
        dx, _, _ = fastrelu.linear_backward(dy[:, None], None, w, wanted=("dx",), out=(x[:, None], None, None))
        for place in places(HUGE - 1):
            assert_array_equal(dx[place, 0], 3 * dy[place])


@pytest.mark.parametrize(("kind", "gigabytes"), [("sums", 9.2), ("mask", 11.6), ("dx", 9.2)])
def test_long_batch_of_gradients(kind: str, gigabytes: float) -> None:
    run(batch, kind, gigabytes=gigabytes)


def many_columns_of_gradients() -> None:
    m = 2
    dy = repeated(pattern("int8").astype(np.float16) % 16, m * HUGE).reshape(m, HUGE)
    _, _, db = fastrelu.linear_backward(dy, None, None, wanted=("db",))
    for place in places(HUGE):
        assert_array_equal(db[place], dy[0, place] + dy[1, place])


def test_many_columns_of_gradients() -> None:
    run(many_columns_of_gradients, gigabytes=14)


def test_sizes() -> None:
    # Of what the other tests stand on.
    assert HUGE - 1 > 2**31
    assert SIDE * SIDE > 2**31
    assert math.gcd(HUGE, PERIOD) == 1
    assert sum(marks(HUGE - 1).values()) == 63
