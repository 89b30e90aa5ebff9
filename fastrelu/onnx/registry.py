"""The table of operators: for each, what makes a function of a node."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import onnx.defs

from fastrelu.onnx.graph import Node, attribute_of

__all__ = ["Kernel", "build", "operator", "supported"]


@dataclass(frozen=True, eq=False)
class Kernel:
    """What a node becomes.

    Attributes
    ----------
    function : callable
        Takes the arguments, and returns an array, or a tuple of as many as the node has outputs if these are several.
    arguments : tuple
        Names of values (str), or what is handed over as it is.
    text : str
        For people.
    is_view : bool
        Whether the result may share memory with the first argument, and with no other.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    text: str
    is_view: bool = False


Builder = Callable[[Node], Any]
F = TypeVar("F", bound=Builder)

_TABLE: dict[str, tuple[Builder, bool, int]] = {}


def operator(*names: str, view: bool = False, outputs: int = 1) -> Callable[[F], F]:
    """Enter a builder: a function that makes of a node a `Kernel`, or a function of all its inputs (None for one left out).

    Parameters
    ----------
    *names : str
        Operators.
    view : bool
        Whether the result may share memory with the first input, and with no other.
    outputs : int
        How many outputs it may have.
    """

    def enter(builder: F) -> F:
        _TABLE.update(dict.fromkeys(names, (builder, view, outputs)))
        return builder

    return enter


def supported() -> list[str]:
    """Names of the operators that there are."""
    return sorted(_TABLE)


def checked(nodes: Collection[Node]) -> list[Node]:
    """The nodes with the attributes that ONNX has a value for.

    Nodes whose operators there are not are refused, all in one sentence, and those that are not as ONNX defines them.
    """
    missing: dict[str, Node] = {}
    for node in nodes:
        if node.operator not in _TABLE:
            missing.setdefault(node.operator, node)
    if missing:
        what = "have operators that are" if len(missing) > 1 else "has an operator that is"
        where = ", ".join(map(str, missing.values()))
        raise NotImplementedError(f"load: {where} {what} not supported; supported are {', '.join(supported())}")
    return [_completed(node) for node in nodes]


def _completed(node: Node) -> Node:
    domain, _, name = node.operator.rpartition(".")
    try:
        schema = onnx.defs.get_schema(name, node.version, domain)
    except onnx.defs.SchemaError:
        raise ValueError(f"load: {node} has an operator that version {node.version} of the operator set has not") from None
    for attribute in node.attributes:
        if attribute not in schema.attributes:
            raise ValueError(f"load: {node} has the attribute {attribute}, which there is not in version {node.version}")
    implied = {}
    for attribute, form in schema.attributes.items():
        if form.required and attribute not in node.attributes:
            raise ValueError(f"load: {node} needs the attribute {attribute}")
        if form.default_value.name:
            implied[attribute] = attribute_of(form.default_value, str(node))
    count = len(node.inputs)
    if not schema.min_input <= count <= schema.max_input or any(not name for name in node.inputs[: schema.min_input]):
        raise ValueError(f"load: {node} must take {_range(schema.min_input, schema.max_input)}, not {count} inputs")
    most = _TABLE[node.operator][2]
    if any(node.outputs[most:]):
        raise node.refuse(f"has {len(node.outputs)} outputs; supported is the first" + f" {most}" * (most > 1))
    return replace(node, attributes=implied | dict(node.attributes))


def _range(least: int, most: int) -> str:
    if least == most:
        return str(least)
    return f"{least} to {most}" if most < ANY else f"at least {least}"


ANY = 2**31 - 1
"""What ONNX has for any number of inputs or outputs."""


def build(node: Node) -> Kernel:
    """The kernel of a node."""
    builder, is_view, _ = _TABLE[node.operator]
    made = builder(node)
    if isinstance(made, Kernel):
        return made
    return Kernel(made, tuple(name or None for name in node.inputs), "NumPy", is_view)
