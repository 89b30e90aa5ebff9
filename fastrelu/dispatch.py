"""What the user holds: plain functions that show a ufunc's face and call the ufunc behind them.

A plain function rather than the ufunc itself, because a ufunc can neither be made before its loops are wanted nor look at
arrays that are not NumPy's. It costs 0.12 us a call; a call on 10 numbers still takes half as long as ``np.maximum(x, 0)``.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from numpy import ndarray

from fastrelu import device, faults, foreign
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
        if {plain} and not kwargs:
            if out is None:
                return ufunc({operands})
            if out is not ... and type(out) is not tuple:
                return ufunc({operands}, out)
        return general(({operands},), out, kwargs)
    except (TypeError, ValueError, OverflowError) as error:
        raise explain(error, ({names}), out, kwargs) from None
"""


def elementwise(declaration: Callable[P, R]) -> Callable[P, R]:
    """Turn the declaration of an elementwise operation (name, signature, docstring) into the function that runs it."""
    operation = OPERATIONS[declaration.__name__]
    code, name, names = declaration.__code__, operation.name, operation.inputs
    defaults = dict(zip(code.co_varnames[: code.co_argcount][::-1], (declaration.__defaults__ or ())[::-1], strict=False))
    parameters = [f"{operand}=default_{operand}" if operand in defaults else operand for operand in names]
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
        place = device.target(name, (*operands, out), kwargs)
        if place is not None:
            from fastrelu.cuda import dispatch as cuda

            return cuda.elementwise(name, dict(zip(names, operands, strict=True)), out, kwargs, place)
        if any(map(foreign.is_foreign, (*operands, out))):
            return foreign.call(function, name, dict(zip(names, operands, strict=True)), out, kwargs)
        if out is Ellipsis and not _NUMPY_HAS_ELLIPSIS_OUT:
            result = bind()(*operands, **kwargs)
            return np.asarray(result) if isinstance(result, np.generic) else result
        if out is not None:
            kwargs["out"] = out
        return bind()(*operands, **kwargs)

    def explain(error: Exception, operands: tuple[Any, ...], out: Any, kwargs: dict[str, Any]) -> BaseException:
        return _explain(operation.name, error, dict(zip(operation.inputs, operands, strict=True)), out, kwargs)

    namespace: dict[str, Any] = {
        "ndarray": ndarray,
        "ufunc": first_use,
        "general": general,
        "explain": explain,
        "whole": _whole,
        "__name__": declaration.__module__,
        **{f"default_{name}": value for name, value in defaults.items()},
    }
    source = _FUNCTION.format(
        name=operation.name,
        parameters=", ".join(parameters),
        # Not the parameter, which is a number most of the time.
        plain=" and ".join(f"type({operand}) is ndarray" for i, operand in enumerate(names) if i != operation.parameter),
        names="".join(f"{name}, " for name in operation.inputs),
        operands=", ".join(f"whole({name})" if name in operation.whole else name for name in operation.inputs),
    )
    exec(compile(source, f"<fastrelu.{operation.name}>", "exec"), namespace)
    # Where NumPy arrays go to a GPU, no array is one that goes to the ufunc directly.
    device.watch(lambda is_used: namespace.update(ndarray=None if is_used else ndarray))
    function: Any = namespace[operation.name]
    function.__doc__, function.__annotations__ = declaration.__doc__, declaration.__annotations__
    function.__wrapped__ = declaration  # whose signature `inspect` and editors show
    _give_face(function, operation, bind)
    return cast(Callable[P, R], function)


def _whole(value: Any) -> Any:
    """A Python float that is a whole number as an int, so that it does not turn an array of integers into one of floats."""
    return int(value) if type(value) is float and value.is_integer() else value


def _explain(base: str, error: Exception, operands: dict[str, Any], out: Any, kwargs: dict[str, Any]) -> BaseException:
    """What to raise instead of NumPy's error."""
    if faults.is_told(base, error, operands):
        return error
    if type(out) is tuple and len(out) == 1:
        out = out[0]
    if type(out) is tuple:
        return ValueError(f"{base}: out must be an array or a tuple of one, not a tuple of {len(out)}")
    where = kwargs.get("where", True)
    if isinstance(error, ValueError) and not any(map(faults.overrides, (*operands.values(), out, where))):
        error = _shape_fault(base, error, operands, out, where)
    return faults.explain(base, error, operands, {"out": None if out is ... else out}, kwargs)


def _shape_fault(base: str, error: ValueError, operands: dict[str, Any], out: Any, where: Any) -> ValueError:
    """What is wrong with the shapes or with the output, if that is what NumPy complains about."""
    try:
        shapes = {name: np.shape(value) for name, value in (*operands.items(), ("where", where))}
    except (TypeError, ValueError):
        return error  # an operand cannot become an array
    fault = faults.shapes_fault(base, shapes)
    return fault or faults.output_fault(base, "out", out, np.broadcast_shapes(*shapes.values())) or error


def _give_face(function: Any, operation: Operation, bind: Callable[[], Any]) -> None:
    """Attributes and methods that a ufunc has."""
    function.nin, function.nout, function.nargs = len(operation.inputs), 1, len(operation.inputs) + 1
    function.types = operation.types
    function.ntypes = len(operation.types)
    function.identity = function.signature = None

    def at(a: Any, indices: Any, /, *operands: Any) -> None:
        """Apply the operation in place to the elements of `a` that `indices` selects, as `numpy.ufunc.at` does."""
        name = f"{operation.name}.at"
        if not isinstance(a, ndarray) and not faults.overrides(a):
            raise TypeError(f"{name}: a must be an array, not {type(a).__name__}")
        fault = faults.read_only_fault(name, "a", a)
        if fault is not None:  # NumPy would write to it all the same
            raise fault
        try:
            bind().at(a, indices, *operands)
        except TypeError as error:
            given = dict(zip(operation.inputs, (a, *operands), strict=False))
            raise _explain(operation.name, error, given, None, {}) from None

    at.__qualname__ = f"{operation.name}.at"
    function.at = at
