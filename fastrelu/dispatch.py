"""What the user holds: plain functions that show a ufunc's face and call the ufunc behind them.

A plain function rather than the ufunc itself, because a ufunc can neither be made before its loops are wanted nor look at
arrays that are not NumPy's. It costs 0.12 us a call; a call on 10 numbers still takes half as long as ``np.maximum(x, 0)``.
"""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from numpy import ndarray

from fastrelu.operations import OPERATIONS, Operation

P = ParamSpec("P")
R = TypeVar("R")

# Every operand by its own name: forwarding *args and **kwargs instead takes 0.13 us longer, as long as the call itself.
_FUNCTION = """
def {name}({parameters}, out=None, **kwargs):
    try:
        if type({first}) is ndarray and not kwargs:
            if out is None:
                return ufunc({operands})
            if type(out) is ndarray:
                return ufunc({operands}, out)
        return general(({operands},), out, kwargs)
    except TypeError as error:
        raise explain(error) from None
"""


def elementwise(declaration: Callable[P, R]) -> Callable[P, R]:
    """Turn the declaration of an elementwise operation (name, signature, docstring) into the function that runs it."""
    operation = OPERATIONS[declaration.__name__]
    signature = inspect.signature(declaration)
    defaults = {f"default_{p.name}": p.default for p in signature.parameters.values()}
    parameters = [
        p.name if p.default is p.empty else f"{p.name}=default_{p.name}"
        for p in list(signature.parameters.values())[: len(operation.inputs)]
    ]
    positional = sum(p.kind is p.POSITIONAL_ONLY for p in signature.parameters.values())
    parameters.insert(positional, "/")

    def bind() -> Any:
        """The ufunc; from then on the function calls it directly."""
        from fastrelu import ufuncs

        namespace["ufunc"] = ufunc = getattr(ufuncs, operation.name)
        return ufunc

    def first_use(*operands: Any) -> Any:
        return bind()(*operands)

    def general(operands: tuple[Any, ...], out: Any, kwargs: dict[str, Any]) -> Any:
        """Other kinds of operands, and calls with keyword arguments."""
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
        **defaults,
    }
    source = _FUNCTION.format(
        name=operation.name,
        parameters=", ".join(parameters),
        first=operation.inputs[0],
        operands=", ".join(f"whole({name})" if name in operation.whole else name for name in operation.inputs),
    )
    exec(compile(source, f"<fastrelu.{operation.name}>", "exec"), namespace)
    function: Any = namespace[operation.name]
    function.__doc__, function.__signature__ = declaration.__doc__, signature
    function.__annotations__ = declaration.__annotations__
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
