"""Every function and every fault: one sentence that names the function, the argument and what came; nothing is written.

Functions stand in one table and faults in another; what a fault means for an argument is told once.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu import nn
from fastrelu.operations import BACKWARD, LAYERS, OPERATIONS
from tests.subprocesses import call as call_in_a_process

Array = np.ndarray
M, K, N = 2, 3, 5
MARK = 77


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# The functions.


@dataclass(frozen=True)
class Function:
    """A function with operands that it takes."""

    name: str
    """What its messages begin with."""
    run: Callable[..., Any]
    operands: dict[str, Any]
    """By name, in order; shapes all differ where their order matters."""
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of the arrays that it can be given for its results, by the names that messages have for them."""
    keywords: dict[str, Any] = field(default_factory=dict)
    single: tuple[str, ...] = ()
    """Operands that are single numbers."""
    optional: tuple[str, ...] = ()
    """Operands that may be None."""

    def marked(self) -> dict[str, Array]:
        """New arrays for the results."""
        return {name: np.full(shape, MARK, np.uint8 if name == "mask" else np.float32) for name, shape in self.outputs.items()}

    def call(self, operands: dict[str, Any], outputs: dict[str, Any] | None = None, **keywords: Any) -> tuple[Any, ...]:
        """What it returns, as a tuple."""
        outputs = self.marked() if outputs is None else outputs
        keywords = {**self.keywords, **keywords}
        if "out for dx" in outputs:
            keywords.setdefault("out", tuple(outputs.values()))
        else:
            keywords = {**outputs, **keywords}
        result = self.run(*operands.values(), **keywords)
        return result if isinstance(result, tuple) else (result,)


def elementwise() -> Iterator[tuple[str, Function]]:
    for name, operation in OPERATIONS.items():
        if name in fastrelu.__all__:
            operands = {operand: normal(M, K, seed=i) for i, operand in enumerate(operation.inputs)}
            outputs = {} if name == "prelu_backward" else {"out": (M, K)}
            yield name, Function(name, getattr(fastrelu, name), operands, outputs)


def layers() -> Iterator[tuple[str, Function]]:
    for base in sorted({layer.base for layer in LAYERS.values()}):
        alpha = {"": {}, "()": {"alpha": np.float32(0.5)}, "(n)": {"alpha": normal(N, seed=3)}}[LAYERS[base].alpha]
        plain = {"x": normal(M, K), "w": normal(K, N, seed=1), "b": normal(N, seed=2), **alpha}
        for kind, w in (("", plain["w"]), ("_packed", fastrelu.pack(plain["w"]))):
            single = ("alpha",) if LAYERS[base].alpha == "()" else ()
            function = Function(base, getattr(fastrelu, base), {**plain, "w": w}, {"out": (M, N)}, {}, single, ("b",))
            yield base + kind, function
            if base == "linear_relu":
                outputs = {"out": (M, N), "mask": (M, 1)}
                yield f"{base}{kind}_mask", Function(base, function.run, function.operands, outputs, optional=("b",))


def backward() -> Iterator[tuple[str, Function]]:
    outputs = {"out for dx": (M, K), "out for dw": (K, N), "out for db": (N,)}
    for base in BACKWARD:
        operands = {"dy": normal(M, N), "y": normal(M, N, seed=1), "x": normal(M, K, seed=2), "w": normal(K, N, seed=3)}
        if base == "linear_backward":
            del operands["y"]
        single = ("alpha",) if BACKWARD[base].alpha else ()
        if single:
            operands["alpha"] = np.float32(0.5)
        yield base, Function(base, getattr(fastrelu, base), operands, outputs, single=single)
        if base == "linear_relu_backward":
            operands = {**operands, "y": np.array([[3], [17]], np.uint8)}
            yield f"{base}_bits", Function(base, getattr(fastrelu, base), operands, outputs)


def of_a_weight() -> Iterator[tuple[str, Function]]:
    w = normal(K, N)
    yield "pack", Function("pack", lambda *w: fastrelu.pack(*w).unpack(), {"w": w})
    yield "PackedWeight", Function("PackedWeight", lambda *w: fastrelu.PackedWeight(*w).unpack(), {"w": w})
    packed = fastrelu.pack(w)
    yield "update", Function("update", lambda *w: packed.update(*w) or packed.unpack(), {"w": w})


def in_layers() -> Iterator[tuple[str, Function]]:
    """The methods of the objects in `fastrelu.nn`; in place they write over their argument."""
    for name in nn.activations.__all__:
        kind = getattr(nn, name)

        def backward(dLdA: Any, kind: Any = kind) -> Any:
            layer = kind()
            layer.forward(normal(M, K))
            return layer.backward(dLdA)

        yield f"{name}.forward", Function(name, kind().forward, {"Z": normal(M, K)})
        yield f"{name}.backward", Function(name, backward, {"dLdA": normal(M, K, seed=1)})
    yield "PReLU", Function("PReLU", lambda alpha: nn.PReLU(alpha).alpha, {"alpha": normal(K)})


FUNCTIONS = dict(itertools.chain(elementwise(), layers(), backward(), of_a_weight(), in_layers()))


@cache
def expected(key: str) -> tuple[Any, ...]:
    """What a valid call returns. Not before a test asks: collecting the tests compiles nothing of it."""
    return FUNCTIONS[key].call(FUNCTIONS[key].operands, {})


def assert_valid_call_is_right(key: str) -> None:
    function, plain = FUNCTIONS[key], key.removesuffix("_mask")
    results = function.call(function.operands)
    for result, right in zip(results, expected(plain), strict=False):
        assert_array_equal(result, right, strict=True)


def content(value: Any) -> Any:
    """The bits of what a call could have changed."""
    if isinstance(value, Array):
        return value.dtype.str, value.shape, value.tobytes() if value.dtype != object else [*map(id, value.flat)]
    if isinstance(value, tuple | list | dict):
        return [content(item) for item in (value.values() if isinstance(value, dict) else value)]
    return id(value)


def assert_refused(
    key: str,
    words: tuple[str, ...],
    operands: dict[str, Any] | None = None,
    outputs: dict[str, Any] | None = None,
    error: Any = (TypeError, ValueError),
    **keywords: Any,
) -> None:
    """One sentence with these words comes, nothing is changed, and the next call is right."""
    function = FUNCTIONS[key]
    operands = function.operands if operands is None else operands
    outputs = function.marked() if outputs is None else outputs
    before = content([operands, outputs, keywords])
    with pytest.raises(error) as caught:
        function.call(operands, outputs, **keywords)
    message = str(caught.value)
    assert message.startswith(f"{function.name}: "), message
    assert "\n" not in message
    assert len(message) < 250
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message), (word, message)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert content([operands, outputs, keywords]) == before
    assert_valid_call_is_right(key)


# Operands that are no arrays of numbers, and what the message calls them.


class CudaArray:
    """What a library for GPUs hands out, as far as a call can see it."""

    shape, dtype = (M, K), np.dtype(np.float32)
    __cuda_array_interface__: ClassVar = {"shape": shape, "typestr": "<f4", "data": (1 << 40, False), "version": 3}


class DlpackArray:
    """One that is known by DLPack only."""

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("not for the CPU")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


class RefusingCudaArray(CudaArray):
    """One that becomes no array of NumPy, like those of PyTorch and CuPy."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class CudaArrayWithoutTheUfunc(CudaArray):
    """One that takes the ufuncs of NumPy only, like those of CuPy."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented


DEVICES = (CudaArray, DlpackArray, RefusingCudaArray, CudaArrayWithoutTheUfunc)

# From the shape of a good operand the bad one, and the words for it.
NO_NUMBERS: dict[str, tuple[Callable[[tuple[int, ...]], Any], tuple[str, ...]]] = {
    "none": (lambda shape: None, ("None",)),
    "str": (lambda shape: "abc", ("str",)),
    "bytes": (lambda shape: b"abc", ("bytes",)),
    "dict": (lambda shape: {}, ("dict",)),
    "object": (lambda shape: object(), ("object",)),
    "set": (lambda shape: {1.0}, ("set",)),
    "generator": (lambda shape: (i for i in ()), ("generator",)),
    "class": (lambda shape: float, ("type",)),
    "array_class": (lambda shape: np.ndarray, ("type",)),
    "rows_of_different_lengths": (lambda shape: [[1.0, 2.0], [3.0]], ("list", "length")),
    "list_of_str": (lambda shape: ["a", "b"], ("list",)),
    "bool": (lambda shape: np.zeros(shape, bool), ("bool",)),
    "complex64": (lambda shape: np.zeros(shape, np.complex64), ("complex64",)),
    "object_array": (lambda shape: np.zeros(shape, object), ("object",)),
    "datetime64": (lambda shape: np.zeros(shape, "M8[s]"), ("datetime64",)),
    "structured": (lambda shape: np.zeros(shape, "f4,f4"), ("void",)),
    "longdouble": (lambda shape: np.zeros(shape, np.longdouble), (np.dtype(np.longdouble).name,)),
    "str_array": (lambda shape: np.zeros(shape, "U3"), ("str",)),
    **{kind.__name__: (lambda shape, kind=kind: kind(), ("CUDA", kind.__name__)) for kind in DEVICES},
}


def operand_cases() -> Iterator[Any]:
    for key, function in FUNCTIONS.items():
        for operand, fault in itertools.product(function.operands, NO_NUMBERS):
            if not (fault == "none" and operand in function.optional) and not (operand == "w" and key.endswith("_packed")):
                yield pytest.param(key, operand, fault, id=f"{key}-{operand}-{fault}")


@pytest.mark.parametrize(("key", "operand", "fault"), list(operand_cases()))
def test_operand_that_is_no_array_of_numbers(key: str, operand: str, fault: str) -> None:
    function = FUNCTIONS[key]
    make, words = NO_NUMBERS[fault]
    bad = make(np.shape(function.operands[operand]))
    if fault == "none" and operand in ("x", "w") and key.endswith(("_backward", "_bits")) and key.startswith("linear"):
        words = ("needed", "None")
    elif fault == "none":
        words = ("NoneType",)
    if fault == "longdouble" and np.dtype(np.longdouble) == np.float64:
        pytest.skip("long double is float64 on this machine")
    if isinstance(bad, Array) and function.name in ("pack", "PackedWeight", "update"):
        words = (bad.dtype.name,)  # they show it in full
    elif fault in ("str", "bytes", "str_array", "structured", "datetime64") and isinstance(bad, str | bytes):
        words = (type(bad).__name__,)
    kind = TypeError if fault != "rows_of_different_lengths" and words[0] != "needed" else ValueError
    assert_refused(key, (operand, *words), {**function.operands, operand: bad}, error=kind)


# Shapes.


def wrong_shapes(key: str, function: Function) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Operands with shapes that do not fit."""
    if key in OPERATIONS:
        for operand in function.operands:
            if len(function.operands) > 1:
                yield from ((operand, shape) for shape in ((K + 1,), (M + 1, K), (M, K + 1), (M, 0), (2, M + 1, K)))
        return
    for operand, good in function.operands.items():
        shape = np.shape(good)
        if operand in function.single and not function.name.endswith("_backward"):
            yield operand, (M + 1,)
        elif operand in function.single:
            yield from ((operand, wrong) for wrong in ((1,), (M,), (M, N)))
        elif function.name in ("pack", "PackedWeight", "update"):
            yield from ((operand, wrong) for wrong in ((), (K,), (1, K, N)))
        elif operand == "dLdA":
            yield from ((operand, wrong) for wrong in ((), (K,), (M, 1), (M + 1, K)))
        elif shape and operand not in ("Z", "alpha") and not (operand == "w" and "packed" in key):
            if function.name.endswith("_backward") or operand != "x":
                yield operand, (shape[0] + 1, *shape[1:])
            yield operand, (*shape[:-1], shape[-1] + 1) if operand != "w" or len(function.operands) == 2 else (K + 1, N + 1)
            yield operand, ()
            yield operand, (0,) if operand != "dy" else (M, 0)
        elif operand == "alpha" and function.name == "linear_prelu":
            yield from ((operand, wrong) for wrong in ((1,), (N + 1,), (M + 1, N)))
    if function.name.startswith("linear") and "packed" not in key:
        w = {"w": (M + 1, K, N)} if not function.name.endswith("_backward") else {}
        yield from w.items()


def shape_cases() -> Iterator[Any]:
    for key, function in FUNCTIONS.items():
        for operand, shape in wrong_shapes(key, function):
            yield pytest.param(key, operand, shape, id=f"{key}-{operand}-{shape}")


@pytest.mark.parametrize(("key", "operand", "shape"), list(shape_cases()))
def test_operand_of_a_wrong_shape(key: str, operand: str, shape: tuple[int, ...]) -> None:
    function = FUNCTIONS[key]
    good = function.operands[operand]
    bad = np.ones(shape, getattr(good, "dtype", np.float32))
    assert_refused(key, (operand, "must"), {**function.operands, operand: bad}, error=ValueError)
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        function.call({**function.operands, operand: bad})
    as_list = bad.tolist()
    if np.shape(as_list) == shape and "w" not in function.operands and not key.endswith("_bits"):
        assert_refused(key, (operand, str(shape)[1:-1]), {**function.operands, operand: as_list}, error=ValueError)


@pytest.mark.parametrize("key", [key for key, function in FUNCTIONS.items() if function.name.startswith("linear")])
def test_operands_in_another_order(key: str) -> None:
    function = FUNCTIONS[key]
    names = [*function.operands]
    for order in itertools.permutations(names):
        given = dict(zip(names, (function.operands[name] for name in order), strict=True))
        fits = all(np.shape(given[name]) == np.shape(function.operands[name]) for name in names if not is_packed(given[name]))
        if not fits or any(is_packed(given[name]) != is_packed(function.operands[name]) for name in names):
            assert_refused(key, ("must",), given)


def is_packed(value: Any) -> bool:
    return isinstance(value, fastrelu.PackedWeight)


# Outputs.


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


# From a good output the bad one, what is raised, and the words for it.
OUTPUTS: dict[str, tuple[Callable[[Array], Any], Any, tuple[str, ...]]] = {
    "read_only": (read_only, ValueError, ("read-only",)),
    "longer": (lambda a: np.full((*a.shape[:-1], a.shape[-1] + 1), MARK, a.dtype), ValueError, ("shape",)),
    "of_more_rows": (lambda a: np.full((a.shape[0] + 1, *a.shape[1:]), MARK, a.dtype), ValueError, ("shape",)),
    "of_one_row": (lambda a: np.full((1, *a.shape[1:]), MARK, a.dtype), ValueError, ("shape",)),
    "without_axes": (lambda a: np.full((), MARK, a.dtype), ValueError, ("shape", "()")),
    "empty": (lambda a: np.full((*a.shape[:-1], 0), MARK, a.dtype), ValueError, ("shape",)),
    "int64": (lambda a: np.full(a.shape, MARK), TypeError, ("int64",)),
    "bool": (lambda a: np.full(a.shape, True), TypeError, ("bool",)),
    "structured": (lambda a: np.full(a.shape, MARK, "i4,i4"), TypeError, ("f0",)),
    "list": (lambda a: a.tolist(), TypeError, ("list",)),
    "number": (lambda a: 1.0, TypeError, ("float",)),
    "scalar_of_numpy": (lambda a: a.dtype.type(1), TypeError, ("float32",)),
    "str": (lambda a: "out", TypeError, ("str",)),
    "dict": (lambda a: {}, TypeError, ("dict",)),
    "packed": (lambda a: fastrelu.pack(normal(2, 2)), TypeError, ("PackedWeight",)),
    **{kind.__name__: (lambda a, kind=kind: kind(), TypeError, ("CUDA", kind.__name__)) for kind in DEVICES},
}


def output_cases() -> Iterator[Any]:
    for key, function in FUNCTIONS.items():
        for output, fault in itertools.product(function.outputs, OUTPUTS):
            yield pytest.param(key, output, fault, id=f"{key}-{output}-{fault}")


@pytest.mark.parametrize(("key", "output", "fault"), list(output_cases()))
def test_output_that_cannot_be_used(key: str, output: str, fault: str) -> None:
    function = FUNCTIONS[key]
    good = function.marked()[output]
    if fault == "of_one_row" and good.shape[0] == 1:
        pytest.skip("it has one row")
    make, error, words = OUTPUTS[fault]
    bad = make(good)
    if fault == "structured" and output == "mask":
        words = ("i4",)
    if fault == "scalar_of_numpy":  # uint8 for a mask
        words = (type(bad).__name__,)
    if words == ("shape",):
        words = ("shape", *(str(size) for size in bad.shape))
    assert_refused(key, (output, *words), outputs={**function.marked(), output: bad}, error=error)


@pytest.mark.parametrize("key", [key for key, function in FUNCTIONS.items() if "out" in function.outputs])
def test_tuple_of_another_number_of_outputs(key: str) -> None:
    function = FUNCTIONS[key]
    good = function.marked()
    for out in ((), (good["out"], np.full_like(good["out"], MARK)), (good["out"],) * 3):
        assert_refused(key, ("out", f"a tuple of {len(out)}"), outputs={**good, "out": out}, error=ValueError)
    assert_refused(key, ("out", "list"), outputs={**good, "out": ([MARK],)}, error=TypeError)


@pytest.mark.parametrize("key", [key for key, function in FUNCTIONS.items() if "out for dx" in function.outputs])
def test_outputs_that_are_no_triple(key: str) -> None:
    marked = tuple(FUNCTIONS[key].marked().values())
    for out in (marked[0], marked[:2], (), [*marked], (*marked, None), "out", 1.0, CudaArray()):
        shown = f"a tuple of {len(out)}" if isinstance(out, tuple) else type(out).__name__
        assert_refused(key, ("out", shown), out=out)


@pytest.mark.parametrize("key", [key for key, function in FUNCTIONS.items() if "out for dx" in function.outputs])
@pytest.mark.parametrize("argument", ["wanted", "accumulate"])
def test_names_of_gradients(key: str, argument: str) -> None:
    shown = {"dx": "'dx'", ("dz",): "dz", 3: "3", None: "None", b"dx": "b'dx'", (1,): "1"}
    for wrong, word in shown.items():
        assert_refused(key, (argument, word.strip("'()")), error=ValueError, **{argument: wrong})
    assert_refused(key, (argument, "array"), error=ValueError, **{argument: [np.ones(2)]})


@pytest.mark.parametrize("key", [key for key, function in FUNCTIONS.items() if "out for dx" in function.outputs])
def test_gradients_and_their_arrays_do_not_match(key: str) -> None:
    assert_refused(key, ("wanted", "none"), error=ValueError, wanted=())
    assert_refused(key, ("out", "dx", "wanted"), error=ValueError, wanted=("dw", "db"))
    assert_refused(key, ("accumulate", "dw", "out"), error=ValueError, out=None, accumulate=("dw",))
    marked = FUNCTIONS[key].marked()
    bad = {**marked, "out for dw": np.full((K, N), MARK, object)}
    assert_refused(key, ("out for dw", "object"), outputs=bad, error=TypeError, accumulate=("dw",))


def test_output_that_is_longer_than_one_column_of_a_batch_of_weights() -> None:
    # An axis of the result is not broadcast as a batch is.
    operands = {"dy": normal(M, 1), "y": normal(M, 1), "x": normal(M, K), "w": normal(4, K, 1)}
    outputs = {"out for dx": None, "out for dw": None, "out for db": np.full((4, N), MARK, np.float32)}
    assert_refused("linear_relu_backward", ("out for db", "4, 1", "4, 5"), operands, outputs, error=ValueError)


@pytest.mark.parametrize("which", ["out for dx", "out for dw", "out for db"])
def test_wrong_output_of_a_batch_of_weights(which: str) -> None:
    function = FUNCTIONS["linear_relu_backward"]
    operands = {**function.operands, "w": normal(4, K, N)}
    shapes = {"out for dx": (4, M, K), "out for dw": (4, K, N), "out for db": (4, N)}
    good = shapes[which]
    for wrong in ((5, *good[1:]), (*good[:-1], good[-1] + 1), (*good[:-1], 1), (1, *good[1:]), (1,)):
        outputs = {name: np.full(shape, MARK, np.float32) for name, shape in {**shapes, which: wrong}.items()}
        assert_refused("linear_relu_backward", (which, "shape"), operands, outputs, error=ValueError)


def test_read_only_output_whose_batch_axes_are_not_one_axis() -> None:
    # Its values are copied to it at the end; by then the others have been written.
    operands = {"dy": normal(M, 4, N), "y": normal(M, 4, N), "x": normal(M, 4, K), "w": normal(K, N)}
    dx = read_only(np.full((4, M, K), MARK, np.float32).transpose(1, 0, 2))
    outputs = {**FUNCTIONS["linear_relu_backward"].marked(), "out for dx": dx}
    assert_refused("linear_relu_backward", ("out for dx", "read-only"), operands, outputs, error=ValueError)


@pytest.mark.parametrize("key", [key for key, function in FUNCTIONS.items() if "out" in function.outputs])
def test_output_in_the_memory_of_an_operand(key: str) -> None:
    function = FUNCTIONS[key]
    first = next(iter(function.operands))
    memory = np.full((M + 1, 2 * N), 3, np.float32)
    shape, wanted = np.shape(function.operands[first]), function.outputs["out"]
    operands = {**function.operands, first: memory[: shape[0], : shape[1]]}
    for out in (memory[: wanted[0] + 1, : wanted[1]], memory[: wanted[0], 1 : wanted[1] + 2], memory[:1, : wanted[1]]):
        outputs = {**function.marked(), "out": out}
        assert_refused(key, ("out", "shape"), operands, outputs, error=ValueError)
    assert (memory == 3).all()


# Arrays without elements.


@pytest.mark.parametrize("key", [key for key, function in FUNCTIONS.items() if "out" in function.outputs])
def test_empty_batch_hides_no_fault(key: str) -> None:
    function = FUNCTIONS[key]
    data = [name for name in function.operands if key in OPERATIONS or name == "x"]
    operands = {name: value[:0] if name in data else value for name, value in function.operands.items()}
    outputs = {name: array[:0] for name, array in function.marked().items()}
    assert function.call(operands, outputs)[0].shape == outputs["out"].shape
    for bad, error, word in (
        (np.full((0, 9), 0, np.float32), ValueError, "(0, 9)"[1:-1]),
        (np.full((4, *function.outputs["out"][1:]), MARK, np.float32), ValueError, "shape"),
        (np.full((0, *function.outputs["out"][1:]), MARK), TypeError, "int64"),
        (read_only(outputs["out"].copy()), ValueError, "read-only"),
    ):
        assert_refused(key, ("out", word), operands, {**outputs, "out": bad}, error=error)
    assert_refused(key, (data[0], "bool"), {**operands, data[0]: operands[data[0]].astype(bool)}, outputs, error=TypeError)


# Numbers of arguments, and their names. Python tells these itself.


PLAIN = {name: FUNCTIONS[name] for name in fastrelu.__all__ if name in FUNCTIONS and name != "PackedWeight"}


@pytest.mark.parametrize("name", PLAIN)
def test_missing_and_superfluous_arguments(name: str) -> None:
    function, f = PLAIN[name], getattr(fastrelu, name)
    given = [*function.operands.values()]
    first = next(iter(function.operands))
    marked = tuple(function.marked().values())
    keywords = {} if not marked else {"out": marked if len(marked) > 1 else marked[0]}
    for arguments, options, word in (
        ((), keywords, first),
        ((*given, *given, *given), {}, "positional"),
        (given, {**keywords, "nothing": 1}, "nothing"),
        ((), {**keywords, first: given[0]}, first),
    ):
        with pytest.raises(TypeError, match=rf"^{name}\(\) .*{word}") as caught:
            f(*arguments, **options)
        assert "\n" not in str(caught.value)
    assert all((array == MARK).all() for array in marked)
    assert_valid_call_is_right(name)


@pytest.mark.parametrize("name", [name for name in PLAIN if name.startswith("linear") and not name.endswith("backward")])
def test_unknown_keyword_names_the_public_function(name: str) -> None:
    # Not the variant of its ufunc that was chosen.
    x, w, _, *alpha = PLAIN[name].operands.values()
    for weight in (w, fastrelu.pack(w)):
        with pytest.raises(TypeError, match=rf"^{name}\(\) .*'nothing'"):
            getattr(fastrelu, name)(x, weight, None, *alpha, nothing=1)
    with pytest.raises(TypeError, match=rf"^{name}: axis can only"):
        getattr(fastrelu, name)(x, w, None, *alpha, axis=1)


def test_bias_by_its_name() -> None:
    x, w = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    for name in ("b", "bias"):
        with pytest.raises(TypeError, match=rf"^linear_relu\(\) takes the bias by its place, not as {name}=: .*\(x, w, b\)$"):
            fastrelu.linear_relu(x, w, **{name: np.ones(4, np.float32)})


def test_weight_in_the_layout_of_pytorch() -> None:
    with pytest.raises(ValueError, match=r"for x of shape \(2, 3\), not \(4, 3\); w.T would fit$"):
        fastrelu.linear_relu(np.ones((2, 3), np.float32), np.ones((4, 3), np.float32))


@pytest.mark.parametrize("name", [name for name in PLAIN if "alpha" in PLAIN[name].operands and "out" in PLAIN[name].outputs])
def test_alpha_where_out_belongs(name: str) -> None:
    function = PLAIN[name]
    assert_refused(name, ("out", "float"), {**function.operands, "one more": 0.5}, outputs={}, error=TypeError)


@pytest.mark.parametrize("name", [name for name in PLAIN if name in OPERATIONS and PLAIN[name].outputs])
def test_where(name: str) -> None:
    assert_refused(name, ("where", "float32"), error=TypeError, where=np.ones((M, K), np.float32))
    assert_refused(name, ("where", "(4,)"[1:-1]), error=ValueError, where=np.ones(4, bool))


@pytest.mark.parametrize("key", FUNCTIONS)
def test_casting_that_is_not_allowed(key: str) -> None:
    function = FUNCTIONS[key]
    if not function.outputs or "packed" in key:
        pytest.skip("it takes no casting")
    first = next(iter(function.operands))
    operands = {**function.operands, first: function.operands[first].astype(np.float64)}
    assert_refused(key, (first, "float64", "float32", "'no'"), operands, error=TypeError, dtype=np.float32, casting="no")


# Numbers that do not fit.


@pytest.mark.parametrize(
    ("name", "operands", "argument", "words"),
    [
        ("relu_derivative", (np.ones(3, np.int8), 1000), "at_zero", ("int8", "1000")),
        ("relu_backward", (np.ones(3, np.uint8), -1), "y", ("uint8", "-1")),
        ("leaky_relu", (np.ones(3, np.float32), 10**400), "alpha", ("float32", "1329 bits")),
        ("linear_elu", (normal(M, K), normal(K, N), None, 10**5000), "alpha", ("float32", "bits")),
    ],
)
def test_python_number_out_of_range(name: str, operands: Any, argument: str, words: tuple[str, ...]) -> None:
    with pytest.raises(OverflowError, match=f"^{name}: {argument} must ") as caught:
        getattr(fastrelu, name)(*operands)
    for word in words:
        assert word in str(caught.value)


def test_types_without_a_common_one() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for key, first, second in (("relu_backward", "dy", "y"), ("linear", "x", "w"), ("linear_backward", "dy", "x")):
        operands = {**FUNCTIONS[key].operands}
        for name in operands:
            operands[name] = operands[name].astype(ml_dtypes.bfloat16 if name == second else np.float16)
        assert_refused(key, (first, second, "float16", "bfloat16"), operands, error=TypeError)


# `at`.


def test_at_names_what_cannot_be_written() -> None:
    with pytest.raises(TypeError, match=r"^relu\.at: a must be an array, not list$"):
        fastrelu.relu.at([1.0], 0)
    with pytest.raises(TypeError, match=r"^relu\.at\(\) missing .*'indices'"):
        fastrelu.relu.at(np.ones(3))
    a = read_only(np.full(3, -1.0))
    with pytest.raises(ValueError, match=r"^relu\.at: a is read-only"):
        fastrelu.relu.at(a, [0])
    assert_array_equal(a, -1)


# Threads.


@pytest.mark.parametrize("name", ["set_num_threads", "num_threads"])
@pytest.mark.parametrize(
    ("count", "error", "words"),
    [
        (None, TypeError, "an integer, not NoneType"),
        ("2", TypeError, "an integer, not str"),
        (2.0, TypeError, "an integer, not float"),
        (True, TypeError, "an integer, not bool"),
        (CudaArray(), TypeError, "an integer, not CudaArray"),
        (0, ValueError, "1 to 256, not 0"),
        (257, ValueError, "1 to 256, not 257"),
    ],
)
def test_number_of_threads(name: str, count: Any, error: Any, words: str) -> None:
    before = fastrelu.get_num_threads()

    def use() -> None:
        if name == "set_num_threads":
            fastrelu.set_num_threads(count)
        else:
            with fastrelu.num_threads(count):
                pass

    with pytest.raises(error, match=f"^{name}: count must be {words}$"):
        use()
    assert fastrelu.get_num_threads() == before


# Layers that remember.

KINDS = {name: getattr(nn, name) for name in nn.activations.__all__}


@pytest.mark.parametrize("name", KINDS)
def test_layer_that_writes_over_its_argument(name: str) -> None:
    for make, error, word in (
        (lambda: read_only(normal(M, K)), ValueError, "read-only"),
        (lambda: normal(M, K).tolist(), TypeError, "list"),
        (lambda: None, TypeError, "NoneType"),
        (lambda: np.full((M, K), -3), TypeError, "int64"),
        (CudaArray, TypeError, "CUDA device"),
    ):
        for method, argument in (("forward", "Z"), ("backward", "dLdA")):
            layer, bad = KINDS[name](inplace=True), make()
            if name == "ReLU" and word == "int64":
                continue  # it keeps integers
            before = content(bad)
            Z = normal(M, K)
            layer.forward(Z)
            A, kept, gradient = layer.A.copy(), layer.A, getattr(layer, "dLdalpha", None)
            with pytest.raises(error, match=rf"^{name}: {argument} .*{word}"):
                getattr(layer, method)(bad)
            assert content(bad) == before
            assert layer.A is kept
            assert_array_equal(layer.A, A)
            assert getattr(layer, "dLdalpha", None) is gradient


@pytest.mark.parametrize("name", KINDS)
def test_layer_whose_backward_comes_first(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name}: backward needs a forward before it$"):
        KINDS[name]().backward(normal(M, K))


@pytest.mark.parametrize("name", ["LeakyReLU", "ELU"])
def test_slope_of_a_layer(name: str) -> None:
    for alpha, error, words in (
        ("x", TypeError, ".*not str"),
        (None, TypeError, ".*not object .NoneType."),
        (1j, TypeError, ".*not complex128 .complex."),
        (True, TypeError, ".*not bool"),
        (np.ones(2), ValueError, r"a single number, not of shape \(2,\)"),
        (-1.0, ValueError, "at least 0, not -1.0"),
        (np.nan, ValueError, "at least 0, not nan"),
    ):
        with pytest.raises(error, match=f"^{name}: alpha must be {words}"):
            KINDS[name](alpha)
    with pytest.raises(TypeError, match=f"^{name}: alpha is on a CUDA device"):
        KINDS[name](CudaArray())


def test_slopes_that_do_not_fit_the_input() -> None:
    with pytest.raises(ValueError, match=r"^PReLU: alpha must broadcast with Z of shape \(2, 3\), not have shape \(4,\)$"):
        nn.PReLU(np.ones(4, np.float32)).forward(normal(M, K))


# Arrays of other libraries.


def tell_a_device_without_its_library() -> None:
    import sys

    import numpy as np

    import fastrelu

    class Tensor:
        def __dlpack__(self, **_: object) -> None: ...

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    told = ""
    for f, operands in ((fastrelu.relu, 1), (fastrelu.linear, 2), (fastrelu.linear_backward, 3)):
        try:
            f(*[Tensor()] * operands)
        except TypeError as error:
            told = str(error)
        assert "is on a CUDA device; it must be a NumPy array" in told
    assert fastrelu.relu(np.float32(-1)) == 0
    assert not {"torch", "cupy", "jax", "numba.cuda", "cuda"} & {*sys.modules}


def test_device_is_told_without_its_library() -> None:
    call_in_a_process(tell_a_device_without_its_library)


class HostArray:
    """One of another library in host memory, which becomes an array of NumPy."""

    def __init__(self, array: Array):
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.array, dtype)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


@pytest.mark.parametrize("key", [key for key in FUNCTIONS if "packed" not in key])
def test_array_in_host_memory_is_taken(key: str) -> None:
    function = FUNCTIONS[key]
    results = function.call({name: HostArray(np.asarray(value)) for name, value in function.operands.items()})
    for result, right in zip(results, expected(key.removesuffix("_mask")), strict=False):
        assert_array_equal(result, right)


class Failing:
    """Takes ufuncs, and fails in its own way."""

    shape = (M, K)

    def __init__(self, error: Exception):
        self.error = error

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("key", [key for key, function in FUNCTIONS.items() if function.outputs])
def test_error_of_another_library_stays_its_own(key: str) -> None:
    function = FUNCTIONS[key]
    for operand in function.operands:
        for error in (TypeError("mine"), ValueError("mine\nin two lines"), OverflowError("mine"), KeyError("mine")):
            with pytest.raises(type(error)) as caught:
                function.call({**function.operands, operand: Failing(error)})
            assert caught.value is error


def test_prescribed_type_beside_a_mask() -> None:
    # It is that of y, not of the mask.
    x, w, b = FUNCTIONS["linear_relu"].operands.values()
    for weight, bias in itertools.product((w, fastrelu.pack(w)), (b, None)):
        mask = np.zeros((M, 1), np.uint8)
        y, returned = fastrelu.linear_relu(x, weight, bias, mask=mask, dtype=np.float32)
        assert_array_equal(y, fastrelu.linear_relu(x, w, bias), strict=True)
        assert returned is mask
        assert_array_equal(mask, np.packbits(y > 0, axis=-1, bitorder="little"))
    with pytest.raises(TypeError, match=r"^linear_relu: dtype must be float16, .*, not bool$"):
        fastrelu.linear_relu(x, w, b, mask=np.zeros((M, 1), np.uint8), dtype=bool)
