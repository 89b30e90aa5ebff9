"""What the user holds: plain functions that show a ufunc's face and call the ufunc behind them.

A plain function rather than the ufunc itself, because a ufunc can neither be made before its loops are wanted nor look at
arrays that are not NumPy's. It costs 0.12 us a call; a call on 10 numbers still takes half as long as ``np.maximum(x, 0)``.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from numpy import ndarray

from fastrelu.native.guard import lock
from fastrelu.operations import OPERATIONS, Operation

P = ParamSpec("P")
R = TypeVar("R")

# ``out=...`` asks for an array also where the result would be a scalar; NumPy knows it since 2.3.
_NUMPY_HAS_ELLIPSIS_OUT = np.lib.NumpyVersion(np.__version__) >= "2.3.0"

# Every operand by its own name: forwarding *args and **kwargs instead takes 0.13 us longer, as long as the call itself.
_FUNCTION = """
def {name}({parameters}, out=None, **kwargs):
    try:
        if type({first}) is ndarray and not kwargs:
            if out is None:
                return ufunc({operands})
            if out is not ... and type(out) is not tuple:
                return ufunc({operands}, out)
        return general(({operands},), out, kwargs)
    except TypeError as error:
        raise explain(error) from None
"""


def elementwise(declaration: Callable[P, R]) -> Callable[P, R]:
    """Turn the declaration of an elementwise operation (name, signature, docstring) into the function that runs it."""
    operation = OPERATIONS[declaration.__name__]
    code, names = declaration.__code__, operation.inputs
    defaults = dict(zip(code.co_varnames[: code.co_argcount][::-1], (declaration.__defaults__ or ())[::-1], strict=False))
    parameters = [f"{name}=default_{name}" if name in defaults else name for name in names]
    parameters.insert(code.co_posonlyargcount, "/")

    def bind() -> Any:
        """The ufunc; from then on the function calls it directly."""
        with lock:
            from fastrelu import ufuncs

            namespace["ufunc"] = ufunc = getattr(ufuncs, operation.name)
            return ufunc

    def first_use(*operands: Any) -> Any:
        return bind()(*operands)

    def general(operands: tuple[Any, ...], out: Any, kwargs: dict[str, Any]) -> Any:
        """Other kinds of operands, and calls with keyword arguments."""
        if out is Ellipsis and not _NUMPY_HAS_ELLIPSIS_OUT:
            result = bind()(*operands, **kwargs)
            return np.asarray(result) if isinstance(result, np.generic) else result
        if out is not None:
            kwargs["out"] = out
        return bind()(*operands, **kwargs)

    namespace: dict[str, Any] = {
        "ndarray": ndarray,
        "ufunc": first_use,
        "general": general,
        "explain": _explain,
        "whole": _whole,
        "__name__": declaration.__module__,
        **{f"default_{name}": value for name, value in defaults.items()},
    }
    source = _FUNCTION.format(
        name=operation.name,
        parameters=", ".join(parameters),
        first=operation.inputs[0],
        operands=", ".join(f"whole({name})" if name in operation.whole else name for name in operation.inputs),
    )
    exec(compile(source, f"<fastrelu.{operation.name}>", "exec"), namespace)
    function: Any = namespace[operation.name]
    function.__doc__, function.__annotations__ = declaration.__doc__, declaration.__annotations__
    function.__wrapped__ = declaration  # whose signature `inspect` and editors show
    _give_face(function, operation, bind)
    return cast(Callable[P, R], function)


def _whole(value: Any) -> Any:
    """A Python float that is a whole number as an int, so that it does not turn an array of integers into one of floats."""
    return int(value) if type(value) is float and value.is_integer() else value


def _explain(error: TypeError) -> BaseException:
    from fastrelu import ufuncs

    return ufuncs.explain(error)


def _give_face(function: Any, operation: Operation, bind: Callable[[], Any]) -> None:
    """Attributes and methods that a ufunc has."""
    function.nin, function.nout, function.nargs = len(operation.inputs), 1, len(operation.inputs) + 1
    function.types = operation.types
    function.ntypes = len(operation.types)
    function.identity = function.signature = None

    def at(a: Any, indices: Any, /, *operands: Any) -> None:
        """Apply the operation in place to the elements of `a` that `indices` selects, as `numpy.ufunc.at` does."""
        try:
            bind().at(a, indices, *operands)
        except TypeError as error:
            raise _explain(error) from None

    function.at = at
