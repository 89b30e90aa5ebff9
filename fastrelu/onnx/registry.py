"""The table of operators: for each, what makes a function of a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastrelu.onnx.graph import Node

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
        Whether the result may share memory with an argument.
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
        Whether the result may share memory with an input.
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


def check(node: Node) -> None:
    """Refuse a node that has an operator, or more outputs, than there are."""
    if node.operator not in _TABLE:
        raise node.refuse(f"has an operator that is not supported; supported are {', '.join(supported())}")
    most = _TABLE[node.operator][2]
    if len([name for name in node.outputs[most:] if name]):
        raise node.refuse(f"has {len(node.outputs)} outputs; supported is the first" + f" {most}" * (most > 1))


def build(node: Node) -> Kernel:
    """The kernel of a node."""
    builder, is_view, _ = _TABLE[node.operator]
    made = builder(node)
    if isinstance(made, Kernel):
        return made
    return Kernel(made, tuple(name or None for name in node.inputs), "NumPy", is_view)
