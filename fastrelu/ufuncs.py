"""The bare ufuncs, made on first use: ``fastrelu.ufuncs.relu`` is a genuine `numpy.ufunc`.

``fastrelu.relu`` is a plain function in front of it. Take the ufunc itself where a library insists on one, for its methods,
or to save the 0.1 us of that function. It can be pickled like NumPy's own.
"""

import threading
from typing import Any, cast

import numpy as np
from numpy._core._exceptions import _UFuncNoLoopError

from fastrelu.operations import FLOATS, INTEGERS, OPERATIONS, Operation
from fastrelu.ufunc_maker import Choice, make

_failure = threading.local()


def __getattr__(name: str) -> Any:
    if name not in OPERATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    ufunc = _make(OPERATIONS[name])
    # Another thread may have been first; there must be one ufunc only.
    return globals().setdefault(name, ufunc)


def __dir__() -> list[str]:
    return sorted(OPERATIONS)


def explain(error: TypeError) -> BaseException:
    """What to raise instead of `error`: why there is no loop, if that is what NumPy complains about."""
    reason: BaseException | None = getattr(_failure, "reason", None)
    _failure.reason = None
    return reason if reason is not None and isinstance(error, _UFuncNoLoopError) else error


def _fail(reason: BaseException) -> None:
    _failure.reason = reason


def _make(operation: Operation) -> np.ufunc:
    from fastrelu.native import linker, loops, target

    def choose(operands: tuple[type | None, ...], given: tuple[type | None, ...]) -> Choice:
        prescribed = [t for t in given if t is not None]
        name = _element(operation, prescribed or operands, prescribed != [])
        loop = operation.loop(name, target.vector_bytes())
        return tuple(_dtype(n) for n in loop.dtypes), loops.address_of(loop)

    return make(operation.name, len(operation.inputs), 1, choose, _fail, linker.lock)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes  # must be there: an operand has its type

        return cast("np.dtype[Any]", np.dtype(ml_dtypes.bfloat16))
    return np.dtype(name)


def _element(operation: Operation, classes: Any, prescribed: bool) -> str:
    """The name of the type to calculate in, by NumPy's rules of promotion; TypeError if there is none."""
    strong: list[np.dtype[Any]] = []
    weak: list[float] = []
    for i, cls in enumerate(classes[: len(operation.inputs)]):
        scalar = cls.type
        if scalar in (int, float):
            weak.append(scalar(0))
            continue
        name = np.dtype(scalar).name if scalar is not complex else "complex"
        if name not in FLOATS + INTEGERS:
            what = "dtype" if prescribed else operation.inputs[i]
            raise TypeError(_allowed(operation, what, name))
        strong.append(np.dtype(scalar))
    if len(set(strong)) == 1 and strong[0].name in FLOATS:
        return strong[0].name  # also bfloat16 with a Python number, which NumPy would make float32
    result: str = np.result_type(*strong, *weak).name
    if result in INTEGERS and operation.arithmetic and not prescribed:
        # As in NumPy's own functions: the smallest float that holds every value of the integer type.
        result = next(f for f in ("float16", "float32", "float64") if np.can_cast(result, f))
    if result not in operation.dtypes:
        raise TypeError(_allowed(operation, "dtype" if prescribed else operation.inputs[0], result))
    return result


def _allowed(operation: Operation, what: str, name: str) -> str:
    integer = "an integer type, " if what != "dtype" or not operation.arithmetic else ""
    return f"{operation.name}: {what} must be {integer}float16, bfloat16, float32 or float64, not {name}"
