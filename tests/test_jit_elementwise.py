"""Activations and their gradients inside compiled functions: the bits and shapes of the same call from Python."""

import itertools
import pickle

import numpy as np
import pytest
from numba import njit, types
from numba.core.errors import TypingError

import fastrelu
from fastrelu.jit.errors import ShapeError
from fastrelu.native import pool
from fastrelu.operations import KC, OPERATIONS
from tests.jitting import Array, array, assert_same, function, plain, some, specials, view
from tests.subprocesses import call

NAMES = [name for name in OPERATIONS if name not in ("prelu_backward", "prelu_alpha_gradient")]
SELECTING = ("relu", "relu_derivative", "relu_backward")
# One operand, two, one and a parameter, two and a parameter.
TYPICAL = ("relu", "relu_backward", "elu", "leaky_relu_backward")


def call_of(name: str) -> tuple[str, str]:
    """Parameters and expression of a call."""
    parameters = ", ".join(OPERATIONS[name].inputs)
    return parameters, f"{name}({parameters})"


def in_loop(name: str, **options: bool):
    """A compiled function (operands, out) that calls an operation on one number after the other."""
    names = OPERATIONS[name].inputs
    parameter = OPERATIONS[name].parameter
    numbers = ", ".join(n if i == parameter else f"{n}[i]" for i, n in enumerate(names))
    source = f"def loop({', '.join(names)}, out):\n    for i in range(len(out)):\n        out[i] = {name}({numbers})\n"
    namespace = {name: getattr(fastrelu, name)}
    exec(source, namespace)
    return njit(**options)(namespace["loop"])


@pytest.mark.parametrize("name", NAMES)
def test_numbers(name: str) -> None:
    operation, exact = OPERATIONS[name], name in SELECTING
    data = len(operation.inputs) - (operation.parameter >= 0)
    # With fastmath a compiler may assume that there is no NaN, but not here.
    for loop in (in_loop(name), in_loop(name, fastmath=True, error_model="numpy", boundscheck=True)):
        for dtype in ("float32", "float64"):
            rng = np.random.default_rng(5)
            word = f"u{np.dtype(dtype).itemsize}"
            patterns = rng.integers(0, np.iinfo(word).max, (data, 600), word, endpoint=True).view(dtype)
            crossed = np.array([*itertools.product(specials(dtype), repeat=data)], dtype).T
            operands = [*np.concatenate([crossed, patterns], axis=1)]
            for alpha in (0.3, -2.0, 0.0, float("nan")) if operation.parameter >= 0 else (None,):
                given = operands if alpha is None else [*operands, alpha]
                out = np.empty_like(operands[0])
                loop(*given, out)
                assert_same(out, getattr(fastrelu, name)(*given), (dtype, alpha), exact)


@pytest.mark.parametrize("name", NAMES)
def test_whole_numbers_beside_the_defaults(name: str) -> None:
    parameters = ", ".join(n for n in OPERATIONS[name].inputs if n not in ("alpha", "at_zero") or name == "prelu")
    call = function(parameters, f"{name}({parameters})")
    for values in itertools.product([-3, 0, 1, 2**40], repeat=len(parameters.split())):
        expected = getattr(fastrelu, name)(*map(np.int64, values))
        found = call(*values)
        assert type(found) is (int if name in SELECTING else float)
        assert_same(found, expected, values)


def test_derivative_of_whole_numbers_at_zero() -> None:
    numbers = function("x, a", "relu_derivative(x, a)")
    assert [numbers(x, 7) for x in (-2, 0, 5)] == [0, 7, 1]
    assert [numbers(x, 0.5) for x in (-2, 0, 5)] == [0, 0.5, 1]
    x = np.array([-2, 0, 5], np.int32)
    for result in ("relu_derivative(x)", "relu_derivative(x, 1)", "relu_derivative(x, at_zero=0.5)"):
        assert_same(function("x", result)(x), plain("x", result)(x), result)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_any_strides(name: str) -> None:
    inputs = OPERATIONS[name].inputs
    call = function(*call_of(name), *[array("float32", 3)] * len(inputs))
    rng = np.random.default_rng(1)
    for number in range(60):
        shape = tuple(rng.integers(1, 6, 3)) if number % 10 else (3, 0, 4)
        # Axes of length 1 are broadcast.
        shapes = [tuple(np.where(rng.random(3) < 0.25, 1, shape)) for _ in inputs]
        operands = [view(rng, "float32", tuple(map(int, s))) for s in shapes]
        assert_same(call(*operands), getattr(fastrelu, name)(*operands), shapes, name in SELECTING)


@pytest.mark.parametrize("name", TYPICAL)
def test_other_numbers_of_axes(name: str) -> None:
    # As NumPy broadcasts them, 0-d to 4-d, each layout that Numba tells apart.
    rng, parameters = np.random.default_rng(2), OPERATIONS[name].inputs
    call = function(*call_of(name))
    few = [((), (), ()), ((4,), (3, 1), ()), ((2, 3, 4), (4,), (3, 1)), ((2, 1, 3, 4), (5, 1, 4), (4,)), ((0,), (2, 1), (1,))]
    for shapes in few:
        operands = [view(rng, "float64", shape) for shape in shapes[: len(parameters)]]
        assert_same(call(*operands), getattr(fastrelu, name)(*operands), shapes, name in SELECTING)
    fortran = [np.asfortranarray(some("float64", 3, 5)) for _ in parameters]
    assert_same(call(*fortran), getattr(fastrelu, name)(*fortran), "F")
    long = [some("float64", 300, 401) for _ in parameters]
    assert_same(call(*long), getattr(fastrelu, name)(*long), "divided among threads")


@pytest.mark.parametrize("name", TYPICAL)
def test_into_out(name: str) -> None:
    # Of any strides, broadcast into, and with a number in place of the last operand.
    inputs = OPERATIONS[name].inputs
    parameters, expression = f"{', '.join(inputs)}, out", f"{name}({', '.join(inputs)}, out=out)"
    call = function(parameters, expression, *[array("float64", 2)] * (len(inputs) + 1))
    of_number = function(parameters, expression, *[array("float64", 2)] * (len(inputs) - 1), types.float64, array("float64", 2))
    rng = np.random.default_rng(3)
    for number in range(60):
        shape = (int(rng.integers(1, 7)), int(rng.integers(1, 40)))
        shapes = [tuple(int(n) for n in np.where(rng.random(2) < 0.3, 1, shape)) for _ in inputs]
        operands, out = [view(rng, "float64", s) for s in shapes], view(rng, "float64", shape)
        if number % 3 == 0:
            operands[-1] = -0.5
        result = (of_number if number % 3 == 0 else call)(*operands, out)
        expected = np.empty(shape)
        getattr(fastrelu, name)(*operands, out=expected)
        assert_same(out, expected, shapes, name in SELECTING)
        assert result.ctypes.data == out.ctypes.data
        assert result.strides == out.strides


def test_numbers_into_out() -> None:
    call = function("x, y, out", "relu_backward(x, y, out)")
    out = np.zeros((2, 3), np.float32)
    assert_same(call(1.5, 2, out), np.full((2, 3), 1.5, np.float32))
    assert (out == 1.5).all()


def overlapping(base: Array, n: int) -> list[Array]:
    """Arrays of n elements that share the memory of `base` in many ways."""
    return [base[start:][: n * abs(step) : abs(step)][:: 1 if step > 0 else -1] for start in range(4) for step in (1, 2, -1)]


@pytest.mark.parametrize("n", [7, 70, 40_000])
def test_out_overlaps_operands_in_every_direction(n: int) -> None:
    call = function("x, y, out", "leaky_relu_backward(x, y, 0.5, out=out)", *[array("float32", 1)] * 3)
    base = some("float32", 2 * n + 8)
    expected, found = base.copy(), base.copy()
    views = [*zip(overlapping(expected, n), overlapping(found, n), strict=True)]
    for (x, a), (y, b), (out, c) in itertools.product(views, views[::5], views):
        expected[:] = found[:] = base
        out[:] = fastrelu.leaky_relu_backward(x.copy(), y.copy(), 0.5)
        call(a, b, c)
        assert_same(found, expected)


def test_out_is_the_transpose_or_a_row_of_an_operand() -> None:
    call = function("x, out", "relu(x, out=out)", *[array("float64", 2)] * 2)
    for lengths in ((5, 5), (64, 64)):
        x = some("float64", *lengths)
        for out in (lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a):
            a, b = x.copy(), x.copy()
            call(a, out(a))
            fastrelu.relu(b, out=out(b))
            assert_same(a, b)
        a, b = x.copy(), x.copy()
        call(a[2:3], a)
        fastrelu.relu(b[2:3], out=b)
        assert_same(a, b)


@pytest.mark.parametrize(
    ("name", "dtypes", "out"),
    [
        ("relu", ("int8",), "int64"),
        ("relu", ("uint64",), None),
        ("relu", ("int64",), "int16"),
        ("relu", ("float64",), "float32"),
        ("relu", ("float32",), "complex128"),
        ("relu_backward", ("int32", "float32"), None),
        ("relu_backward", ("uint8", "int8"), "float32"),
        ("elu_backward", ("float32", "float64", "float32"), "float32"),
        ("elu_backward", ("float32", "float32", "float64"), None),
        ("sigmoid", ("int32",), None),
        ("softplus", ("float32",), "float64"),
    ],
)
def test_types_are_mixed(name: str, dtypes: tuple[str, ...], out: str | None) -> None:
    names = OPERATIONS[name].inputs
    operands = [some(dtype, 3, 7, seed=i) for i, dtype in enumerate(dtypes)]
    with np.errstate(all="ignore"):
        if out is None:
            assert_same(function(*call_of(name))(*operands), getattr(fastrelu, name)(*operands))
            return
        call = function(f"{', '.join(names)}, out", f"{name}({', '.join(names)}, out=out)")
        for first in (operands[0], operands[0][0]):
            found, expected = np.zeros((3, 7), out), np.zeros((3, 7), out)
            call(first, *operands[1:], found)
            getattr(fastrelu, name)(first, *operands[1:], out=expected)
            assert_same(found, expected)


def test_small_integers_become_float32() -> None:
    for dtype in ("int8", "uint16"):
        x = some(dtype, 20)
        assert_same(function("x", "tanh(x)")(x), fastrelu.tanh(x.astype(np.float32)))
        assert_same(function("x", "tanh(x)")(x[3]), float(fastrelu.tanh(x[3:4].astype(np.float32))[0]))


def test_keywords_defaults_and_numbers_beside_arrays() -> None:
    x = some("float32", 33)
    for result in ("elu(x)", "elu(x, 2)", "leaky_relu(x, out=None)", "elu(x, alpha=0.1, out=np.empty_like(x))"):
        assert_same(function("x", result)(x), plain("x", result)(x), result)
    for result in ("relu_backward(x, 1)", "relu_backward(0.1, x)", "prelu(x, 0.1)"):
        assert_same(function("x", result)(x), plain("x", result)(x), result)


def at_odd_addresses() -> None:
    # Numba does not care where arrays lie; NumPy would copy them. Streaming stores do care.
    fastrelu.relu(1.0)
    pool.write(pool.CACHE, 1)

    def odd(n: int, first: int) -> Array:
        return np.zeros(8 * n + 8, np.uint8)[first : first + 8 * n].view(np.float64)

    call = function("x, out", "relu(x, out=out)")
    for n in (5, 100, 600_000):
        x, out = odd(n, 1), odd(n, 3)
        x[:] = some("float64", n)
        call(x, out)
        assert_same(out.copy(), fastrelu.relu(x.copy()))
    packed = np.zeros(70, np.dtype([("a", "u1"), ("b", "f4")]))
    packed["b"] = some("float32", 70)
    found = function("x", "relu(x['b'])")(packed)
    assert_same(found, fastrelu.relu(packed["b"].copy()))


def test_elements_at_odd_addresses() -> None:
    call(at_odd_addresses)


SHAPES = [
    ("relu_backward(a, b)", [(3,), (4,)]),
    ("relu_backward(a, b)", [(0,), (2,)]),
    ("elu_backward(a, b, c)", [(2, 3), (3,), (2,)]),
    ("relu(a, out=b)", [(3,), (2,)]),
    ("relu(a, out=b)", [(3,), (1,)]),
    ("relu(a, out=b)", [(2, 3), (3,)]),
    ("relu(a, b)", [(2, 0), (2, 1)]),
    ("relu_backward(a, b, out=c)", [(2, 1), (1, 3), (2, 1)]),
    ("leaky_relu(a, 0.5, out=b)", [(3,), ()]),
    ("prelu_backward(a, b, c)", [(2, 3), (3, 2), (3,)]),
    ("prelu_backward(a, b, c)", [(2, 3), (2, 3), (2,)]),
    ("prelu_backward(a, b, c)", [(1, 3), (1, 3), (2, 1)]),
    ("prelu_backward(a, b, 0.5)", [(3,), (2,)]),
]


@pytest.mark.parametrize(("call", "shapes"), SHAPES)
def test_shapes_that_do_not_fit(call: str, shapes: list[tuple[int, ...]]) -> None:
    names = ", ".join("abc"[: len(shapes)])
    arrays = [np.ones(shape) for shape in shapes]
    with pytest.raises(ValueError, match=r"\w+: ") as expected:
        plain(names, call)(*arrays)
    with pytest.raises(ShapeError) as found:
        function(names, call)(*arrays)
    assert str(found.value) == str(expected.value)
    assert str(pickle.loads(pickle.dumps(found.value))) == str(expected.value)
    assert all((a == 1).all() for a in arrays)


@pytest.mark.parametrize(
    ("call", "argument", "said"),
    [
        ("relu(x)", True, "relu: x must be an array or a number of an integer type, float32 or float64, not bool"),
        ("relu(x)", 1j, "relu: x must be"),
        ("relu(x)", np.ones(3, complex), "relu: x must be"),
        ("relu(x)", np.ones(3, bool), "relu: x must be"),
        ("relu(x)", np.ones(3, np.float16), "relu: x must be"),
        ("relu(x)", "text", "relu: x must be"),
        ("relu(x)", None, "relu: x must be"),
        ("elu(np.ones(3), x)", True, "elu: alpha must be"),
        ("sigmoid_backward(1.0, y=x)", (1.0, 2.0), "sigmoid_backward: y must be"),
        ("relu(np.ones(3), out=x)", np.zeros(3, int), "relu: out must be"),
        ("relu(np.ones(3), out=x)", np.zeros(3, np.float16), "relu: out must be"),
        ("relu(np.ones(3), out=x)", np.zeros(3, bool), "relu: out must be"),
        ("relu(np.ones(3), out=x)", 1.0, "relu: out must be an array"),
        ("relu(np.ones(3), out=x)", np.broadcast_to(0.0, 3), "relu: out must be an array that can be written to"),
        ("prelu_backward(x, 1.0, 0.5)", np.ones(3), "prelu_backward: dy must be"),
        ("prelu_backward(1.0, 1.0, x)", np.ones(3), "prelu_backward: alpha must be"),
        ("prelu_backward(1.0, x, 0.5)", False, "prelu_backward: x must be"),
    ],
)
def test_argument_of_another_type(call: str, argument: object, said: str) -> None:
    with pytest.raises(TypingError) as error:
        function("x", call)(argument)
    assert said in str(error.value)


def test_read_only_operands() -> None:
    for x in (np.broadcast_to(np.float32(-2), (3, 4)), np.frombuffer(np.ones(5).tobytes())):
        assert_same(function("x", "elu(x)")(x), fastrelu.elu(x))
    view_of = some("float32", 9)
    view_of.flags.writeable = False
    assert_same(function("x", "elu(x)")(view_of), fastrelu.elu(view_of))


# The learned slope.


def test_gradient_of_alpha() -> None:
    # One block of a sum, its end, the second and the third; summed axes before, between and after those that are kept.
    dtype, call = "float32", function("dy, x, alpha", "prelu_backward(dy, x, alpha)")
    for shape, slopes in [
        ((2 * KC + 3, 3), (3,)),
        ((3, KC), (3, 1)),
        ((KC + 1, 2), (1, 1)),
        ((KC - 1, 2), ()),
        ((3, 4, 200), (4, 1)),
        ((3, 4, 200), (3, 1, 200)),
        ((2, 3, 4), (2, 3, 4)),
        ((0, 3), (3,)),
        ((3, 0), (3, 1)),
    ]:
        dy, x = np.random.default_rng(1).standard_normal((2, *shape)).astype(dtype)
        # Of any strides, for fewer compilations.
        dy, x = (np.repeat(a, 2, axis=-1)[..., ::2] for a in (dy, x))
        alpha = np.random.default_rng(2).standard_normal(slopes).astype(dtype)
        alpha = np.repeat(alpha, 2, axis=-1)[..., ::2] if slopes else np.array(alpha)
        assert_same(call(dy, x, alpha), fastrelu.prelu_backward(dy, x, alpha), (shape, slopes))
        back, turned = dy[::-1], np.repeat(x.T, 2, axis=-1)[..., ::2].T
        assert_same(call(back, turned, alpha), fastrelu.prelu_backward(back, turned, alpha), (shape, slopes))
    special, x = some(dtype, 40, 6)[:, ::2], some(dtype, 40, 6, seed=1)[:, ::2]
    assert_same(call(special, x, x[0]), fastrelu.prelu_backward(special, x, x[0]))


def test_gradient_of_alpha_beside_numbers_and_other_types() -> None:
    call = function("dy, x, alpha", "prelu_backward(dy, x, alpha)")
    dy, x = np.random.default_rng(1).standard_normal((2, 300, 3)).astype(np.float32)
    for alpha in (0.25, np.linspace(-1, 1, 3), np.array(0.5), np.arange(3)):
        assert_same(call(dy, x, alpha), fastrelu.prelu_backward(dy, x, alpha), alpha)
    b, slopes = np.arange(900, dtype=np.int32).reshape(300, 3) - 400, np.float32([1, -2, 3])
    assert_same(call(dy, b, slopes), fastrelu.prelu_backward(dy, b, slopes))
    for values in ((2.0, -3.0, 0.5), (-0.0, -3.0, 0.5), (np.nan, 1.0, 2.0), (2, -3, 4)):
        assert_same(call(*values), fastrelu.prelu_backward(*map(np.float64, values)), values)
