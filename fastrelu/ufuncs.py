"""The bare ufuncs, made on first use: ``fastrelu.ufuncs.relu`` is a genuine `numpy.ufunc`.

``fastrelu.relu`` is a plain function in front of it. Take the ufunc itself where a library insists on one, for its methods,
or to save the 0.1 us of that function. It can be pickled like NumPy's own.
"""

import threading
from collections.abc import Iterable
from functools import lru_cache, reduce
from typing import Any, cast

import numpy as np
from numpy._core._exceptions import _UFuncNoLoopError

from fastrelu.native.guard import lock
from fastrelu.operations import (
    BACKWARD,
    FLOATS,
    HALVES,
    INTEGERS,
    LAYERS,
    OPERATIONS,
    Backward,
    Layer,
    Operation,
    backward_variants,
)
from fastrelu.ufunc_maker import Choice, make

_failure = threading.local()


def __getattr__(name: str) -> Any:
    if name not in OPERATIONS and name not in LAYERS and name not in backward_variants():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with lock:
        if name not in globals():
            if name in OPERATIONS:
                made = _make(OPERATIONS[name])
            else:
                made = _make_layer(LAYERS[name]) if name in LAYERS else _make_backward(backward_variants()[name])
            globals().setdefault(name, made)  # another thread may have been first, and there must be one ufunc only
        return globals()[name]


def __dir__() -> list[str]:
    return sorted((*OPERATIONS, *LAYERS, *BACKWARD))


def explain(error: TypeError) -> BaseException:
    """What to raise instead of `error`: why there is no loop, if that is what NumPy complains about."""
    reason: BaseException | None = getattr(_failure, "reason", None)
    _failure.reason = None
    return reason if reason is not None and isinstance(error, _UFuncNoLoopError) else error


def _fail(reason: BaseException) -> None:
    _failure.reason = reason


def _make(operation: Operation) -> np.ufunc:
    from fastrelu.native import loops, target

    def choose(operands: tuple[type | None, ...], given: tuple[type | None, ...]) -> Choice:
        prescribed = [t for t in given if t is not None]
        name = element_of(operation, prescribed or operands, prescribed != [])
        loop = operation.loop(name, target.vector_bytes())
        return tuple(_dtype(n) for n in loop.dtypes), loops.address_of(loop)

    return make(operation.name, len(operation.inputs), 1, choose, _fail)


def _make_layer(layer: Layer) -> np.ufunc:
    from fastrelu.native import loops, target

    def choose(operands: tuple[type | None, ...], given: tuple[type | None, ...]) -> Choice:
        prescribed = [t for t in given[: len(layer.inputs) + 1] if t is not None]
        name = _packed_element(layer, operands) if layer.packed else element_of(layer, prescribed or operands, prescribed != [])
        loop = layer.loop(name, target.vector_bytes())
        masks = (np.dtype(np.uint8),) * layer.mask
        return tuple(_dtype(n) for n in loop.dtypes) + masks, loops.address_of_fused(loop)

    return make(layer.name, len(layer.inputs), 1 + layer.mask, choose, _fail, signature=layer.signature)


def _make_backward(layer: Backward) -> np.ufunc:
    from fastrelu.native import loops, target

    def without_mask(classes: tuple[type | None, ...]) -> tuple[type | None, ...]:
        return classes[:1] + classes[2:] if layer.mask else classes

    def choose(operands: tuple[type | None, ...], given: tuple[type | None, ...]) -> Choice:
        prescribed = [t for t in without_mask(given) if t is not None]
        name = element_of(layer, prescribed or without_mask(operands), prescribed != [])
        loop = layer.loop(name, target.vector_bytes())
        return tuple(_dtype(n) for n in loop.dtypes), loops.address_of_gradient(loop)

    return make(layer.name, layer.nin, len(layer.wanted), choose, _fail, signature=layer.signature)


def _packed_element(layer: Layer, classes: Any) -> str:
    """The type to calculate in where w is prepacked and must not be cast: that of x if it is a half, else that of w."""
    x, w = (cast("np.dtype[Any]", np.dtype(cls.type)) for cls in classes[:2])
    is_half = x.name in HALVES and w.name == "float32"
    if w.name not in ("float32", "float64") or not (is_half or (x.name in FLOATS + INTEGERS and np.can_cast(x, w))):
        raise TypeError(f"{layer.base}: x of type {x.name} does not fit a packed w of type {w.name}")
    result = x if is_half else w
    for i, cls in enumerate(classes[2 : len(layer.inputs)], 2):
        if cls.type in (int, float):
            continue
        other = np.dtype(cls.type)
        widest = w if i == layer.parameter else result
        if other.name not in FLOATS + INTEGERS or np.promote_types(other, widest) != widest:
            raise TypeError(
                f"{layer.base}: {layer.inputs[i]} of type {other.name} does not fit a packed w of type {result.name}"
            )
    return str(result.name)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes  # must be there: an operand has its type

        return cast("np.dtype[Any]", np.dtype(ml_dtypes.bfloat16))
    return np.dtype(name)


def element_of(operation: Operation | Layer | Backward, classes: Iterable[Any], prescribed: bool) -> str:
    """The name of the type to calculate in, by NumPy's rules of promotion; TypeError if there is none."""
    return _element_of(operation, tuple(classes), prescribed)


@lru_cache(maxsize=1024)  # NumPy asks once; calls on a CUDA device ask each time
def _element_of(operation: Operation | Layer | Backward, classes: tuple[Any, ...], prescribed: bool) -> str:
    inputs = classes if prescribed else classes[: len(operation.inputs)]
    strong: list[np.dtype[Any]] = []
    weak: list[float] = []
    for i, cls in enumerate(inputs):
        scalar = cls.type
        name = scalar.__name__ if scalar in (int, float, complex) else np.dtype(scalar).name
        if scalar in (int, float):
            weak.append(scalar(0))
        elif name in FLOATS + INTEGERS:
            strong.append(np.dtype(scalar))
        else:
            raise TypeError(_allowed(operation, "dtype" if prescribed else operation.inputs[i], name))
    if not prescribed and len(strong) == len(inputs) and _is_wide_parameter(operation, strong):
        del strong[operation.parameter]
    result = reduce(np.promote_types, strong) if strong else np.result_type(*weak)
    if result.name not in FLOATS:  # a Python number does not change a float, not even bfloat16, of which NumPy knows nothing
        result = np.result_type(result, *weak)
    name = result.name
    if name in INTEGERS and operation.arithmetic and not prescribed:
        # As in NumPy's own functions: the smallest float that holds every value of the integer type.
        name = next(f for f in ("float16", "float32", "float64") if np.can_cast(result, f))
    if name not in operation.dtypes:
        raise TypeError(_allowed(operation, "dtype" if prescribed else operation.inputs[0], name))
    return name


def _is_wide_parameter(operation: Operation | Layer | Backward, dtypes: list[np.dtype[Any]]) -> bool:
    """Whether the parameter is float32 and all else float16, or bfloat16.

    The loops for halves take a float32 parameter. NumPy finds them by the types of the operands without asking the
    promoter, so that this must be the rule at first use as well.
    """
    i = operation.parameter
    others = {dtype.name for dtype in dtypes[:i] + dtypes[i + 1 :]}
    return i >= 0 and operation.arithmetic and dtypes[i].name == "float32" and others in ({"float16"}, {"bfloat16"})


def _allowed(operation: Operation | Layer | Backward, what: str, name: str) -> str:
    integer = "an integer type, " if what != "dtype" or not operation.arithmetic else ""
    public = operation.base if isinstance(operation, Layer | Backward) else operation.name
    return f"{public}: {what} must be {integer}float16, bfloat16, float32 or float64, not {name}"
