"""The Python source of an implementation that calls a kernel on arrays, which Numba then compiles for the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba.core import types
from numba.np.numpy_support import as_dtype

from fastrelu.jit import binding
from fastrelu.jit.errors import NO_KERNEL, NO_MEMORY, ShapeError

OPTIONS = {"fastmath": False, "parallel": False, "error_model": "numpy"}
"""What Numba compiles implementations with: none of the caller's own settings may change a bit."""


@dataclass
class Operand:
    """An operand: the expression for it, its type, and the type of its elements that the kernel wants."""

    expression: str
    kind: Any
    dtype: Any
    is_row: bool = False

    @property
    def is_array(self) -> bool:
        return isinstance(self.kind, types.Array)


@dataclass
class Result:
    """A result: the expression for the array that the caller has given, its type or None, and what is made without one."""

    given: str
    kind: Any
    dtype: Any
    axes: int
    order: str = "C"

    @property
    def is_cast(self) -> bool:
        return self.kind is not None and self.kind.dtype != self.dtype


_SOURCE = """
def {name}({parameters}):
    place = table()
    if place == 0:
        raise RuntimeError(NO_KERNEL)
{before}    operands = ({operands},)
    block = describe(operands, ({given},))
    if plan(place, block) != 0:
        {fails}
{make}    if run(place, block, operands, ({results},)) != 0:
        raise MemoryError(NO_MEMORY)
{after}    return {returned}
"""


def assignment(target: str, value: str) -> str:
    """Lines that copy one array into another: compiled in a tenth of the time of ``target[...] = value``."""
    return f"    for index, number in np.ndenumerate({value}):\n        {target}[index] = number\n"


def array_call(
    name: str,
    parameters: str,
    key: str,
    operands: list[Operand],
    results: list[Result],
    call: str,
    mentioned: list[tuple[str, Any]],
    *,
    before: str = "",
    after: str = "",
    returned: str = "",
) -> Callable[..., Any]:
    """The implementation.

    Parameters
    ----------
    name, parameters : str
        Name and signature, which must be those that Numba has been told.
    key : str
        Names the table of the operation in `fastrelu.native.entries`.
    operands, results : list
        In the order of the kernel.
    call : str
        The same call from Python, with ``{}`` for each array; ``CALL`` in `before` raises what is wrong with it.
    mentioned : list
        These arrays: an expression and the type of each.
    before, after : str
        Lines around the call. After it the results are called ``r0``, ``r1`` and so on.
    returned : str
        What to return if it is not just the results.
    """
    namespace: dict[str, Any] = {
        **{"np": np, "NO_KERNEL": NO_KERNEL, "NO_MEMORY": NO_MEMORY, "ShapeError": ShapeError, "call": call},
        **{"table": binding.table(key), "plan": binding.plan, "run": binding.run(len(operands))},
    }
    numbers = [None if o.is_array else o.dtype for o in operands]
    rows = frozenset(i for i, o in enumerate(operands) if o.is_row)
    namespace["describe"] = binding.describe(numbers, rows, len(operands) + len(results))
    namespace["axes"] = " ".join("u" * (kind.dtype == types.uint8) + str(kind.ndim) for _, kind in mentioned)
    words = [f"{array}.shape[{axis}]" for array, kind in mentioned for axis in range(kind.ndim)]
    fails = f"raise ShapeError({', '.join(['call', 'axes', *words])})"
    values, make = [], ""
    for i, operand in enumerate(operands):
        value = operand.expression
        if operand.is_array and operand.kind.dtype != operand.dtype:
            namespace[f"dtype{i}"] = as_dtype(operand.dtype)
            before += f"    a{i} = {value}.astype(dtype{i})\n"
            value = f"a{i}"
        values.append(value)
    given = []
    for i, result in enumerate(results):
        given.append("None" if result.kind is None else result.given)
        namespace[f"lengths{i}"] = binding.lengths(len(operands) + i, result.axes)
        namespace[f"result_dtype{i}"] = as_dtype(result.dtype)
        if result.kind is None or result.is_cast:
            reverse, transpose = ("[::-1]", ".T") if result.order == "F" else ("", "")
            make += f"    r{i} = np.empty(lengths{i}(block){reverse}, result_dtype{i}){transpose}\n"
        else:
            make += f"    r{i} = {result.given}\n"
        if result.is_cast:
            after = assignment(result.given, f"r{i}") + f"    r{i} = {result.given}\n" + after
    names = [f"r{i}" for i in range(len(results))]
    source = _SOURCE.format(
        name=name,
        parameters=parameters,
        before=before.replace("CALL", fails),
        fails=fails,
        operands=", ".join(values),
        given=", ".join(given),
        make=make,
        results=", ".join(names),
        after=after,
        returned=returned or ", ".join(names),
    )
    return compiled(name, source, namespace)


def declaration(function: Callable[..., Any], implement: Callable[[str, dict[str, Any]], Callable[..., Any]]) -> Any:
    """The function that Numba asks for an implementation of `function`.

    It has the same signature without ``**kwargs`` and without ``device``, since compiled code has arrays of the host only.

    `implement` takes the signature, which the implementation must have as well, and the types of the arguments by name.
    """
    every = inspect.signature(function).parameters.values()
    given = [p for p in every if p.kind is not p.VAR_KEYWORD and p.name != "device"]
    parameters = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given)
    arguments = ", ".join(f"{p.name}={p.name}" for p in given)
    source = f"def {function.__name__}({parameters}):\n    return implement({parameters!r}, dict({arguments}))\n"
    return compiled(function.__name__, source, {"implement": implement})


def compiled(name: str, source: str, namespace: dict[str, Any]) -> Callable[..., Any]:
    """The function `name` that the source defines."""
    exec(compile(source, f"<fastrelu.jit {name}>", "exec"), namespace)
    return namespace[name]  # type: ignore[no-any-return]
