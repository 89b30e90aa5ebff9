"""Moves, selections and comparisons: bits are kept, those of NaN too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnknownInstruction
from ..parser import Negated, Pair, Vector
from .registry import allow, assign, elementwise, instruction

if TYPE_CHECKING:
    from ..machine import Machine, Step
    from ..parser import Instruction

Array = np.ndarray[Any, Any]

_ORDERED = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
_UNSIGNED = {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
_COMBINED = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@instruction("mov")
def mov(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    target, source = which.operands
    bits = {"b32": "b", "b64": "b", "b128": "b", "u32": "b", "u64": "b"}
    if isinstance(source, Vector):
        # The first element is the lowest.
        if kind not in bits:
            raise UnknownInstruction(f"{which.text}")
        out = machine.register(target)
        width = 8 * out.dtype.itemsize // len(source.elements)
        parts = [machine.source(element, f"b{width}") for element in source.elements]
        columns = out.view(parts[0].dtype).reshape(-1, len(parts))
        return _columns(columns, parts)
    if isinstance(target, Vector):
        whole = machine.register(source) if hasattr(source, "type") else machine.source(source, kind)
        width = 8 * whole.dtype.itemsize // len(target.elements)
        columns = whole.view(f"u{width // 8}").reshape(-1, len(target.elements))
        steps = [
            assign(machine.target(element, f"b{width}"), lambda i=i: columns[:, i])  # type: ignore[misc]
            for i, element in enumerate(target.elements)
            if getattr(element, "name", "") != "_"
        ]

        def unpack(mask: Array | None) -> None:
            for step in steps:
                step(mask)

        return unpack
    out, value = machine.target(target, kind), machine.source(source, kind)
    return assign(out, lambda: value)


def _columns(columns: Array, parts: list[Array]) -> Step:
    def pack(mask: Array | None) -> None:
        for i, part in enumerate(parts):
            if mask is None:
                columns[:, i] = part
            else:
                np.copyto(columns[:, i], part, where=mask)

    return pack


@instruction("selp")
def selp(machine: Machine, which: Instruction) -> Step:
    kind = allow(which)
    target, a, b, p = which.operands
    bits = f"b{kind[1:]}"
    out, yes, no = machine.target(target, bits), machine.source(a, bits), machine.source(b, bits)
    choice = machine.source(p, "pred")
    return assign(out, lambda: np.where(choice, yes, no))


@instruction("setp")
def setp(machine: Machine, which: Instruction) -> Step:
    comparison, *rest = which.modifiers
    kind = rest[-1]
    target, a, b, *third = which.operands
    left, right = machine.source(a, kind), machine.source(b, kind)
    compare = _comparison(comparison, left.dtype)
    combine = None
    if len(rest) == 2:
        if rest[0] not in _COMBINED:
            raise UnknownInstruction(f"the modifier .{rest[0]} of {which.opcode} is not known")
        operand = third[0]
        inverted = isinstance(operand, Negated)
        other = machine.source(operand.operand if isinstance(operand, Negated) else operand, "pred")
        combine = _COMBINED[rest[0]]
    elif len(rest) != 1 or third:
        raise UnknownInstruction(which.text)

    if not isinstance(target, Pair) and combine is None:
        return elementwise(compare, (left, right), machine.target(target, "pred"))

    def finish(result: Array) -> Array:
        if combine is None:
            return result
        value: Array = combine(result, ~other if inverted else other)
        return value

    if not isinstance(target, Pair):
        return assign(machine.target(target, "pred"), lambda: finish(compare(left, right)))
    # Both are written after both were calculated: a target may be a source.
    outs = [None if getattr(t, "name", "_") == "_" else machine.target(t, "pred") for t in (target.first, target.second)]

    def both(mask: Array | None) -> None:
        result = compare(left, right)
        values = finish(result), finish(~result)
        for out, value in zip(outs, values, strict=True):
            if out is not None:
                np.copyto(out, value, where=True if mask is None else mask)

    return both


def _comparison(name: str, dtype: np.dtype[Any]) -> Any:
    """A comparison by PTX's name: of floats, ``lt`` is false for NaN and ``ltu`` is true."""
    if dtype.kind != "f":
        if name in _ORDERED | _UNSIGNED:
            return (_ORDERED | _UNSIGNED)[name]
    elif name == "ne":
        return lambda a, b, out=None: np.logical_and(a != b, ~(np.isnan(a) | np.isnan(b)), out=out)
    elif name == "neu":
        return np.not_equal
    elif name in _ORDERED:
        return _ORDERED[name]
    elif name[:-1] in _ORDERED and name.endswith("u"):
        ordered = _ORDERED[name[:-1]]
        return lambda a, b, out=None: np.logical_or(ordered(a, b), np.isnan(a) | np.isnan(b), out=out)
    elif name == "num":
        return lambda a, b, out=None: np.logical_not(np.isnan(a) | np.isnan(b), out=out)
    elif name == "nan":
        return lambda a, b, out=None: np.logical_or(np.isnan(a), np.isnan(b), out=out)
    raise UnknownInstruction(f"the comparison .{name} of {dtype} is not known")
