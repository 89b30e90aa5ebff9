"""From nodes to steps: what does not depend on the inputs is calculated at once, and a layer takes up what follows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu.onnx.convolution import Convolution, convolution_of
from fastrelu.onnx.elementwise import ACTIVATIONS, LEGACY, activation
from fastrelu.onnx.graph import Graph, Node
from fastrelu.onnx.products import Layer, layer_of
from fastrelu.onnx.registry import Kernel, build, checked

__all__ = ["Step", "steps"]


@dataclass(frozen=True, eq=False)
class Step:
    """One call: the kernel, the nodes that it stands for, and the names of the results."""

    kernel: Kernel
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]


def steps(graph: Graph, given: Collection[str]) -> tuple[list[Step], dict[str, ndarray]]:
    """The steps of a graph whose values `given` are arguments of a call, and the constants; nothing that is not needed."""
    constants = {name: array for name, array in graph.constants.items() if name not in given}
    wanted = [value.name for value in graph.outputs]
    nodes = checked(_needed([replace(node, constants=constants) for node in graph.nodes], wanted))
    types = {value.name: value.dtype for value in (*graph.inputs, *graph.defaults) if value.name in given}
    return _fused(_folded(nodes, constants, types), wanted), constants


def _needed(nodes: Iterable[Node], wanted: Iterable[str]) -> list[Node]:
    """Those that the outputs depend on."""
    names, kept = set(wanted), []
    for node in reversed([*nodes]):
        if names.intersection(node.outputs):
            names.update(filter(None, node.inputs))  # one that is left out has no name, like an output
            kept.append(node)
    return kept[::-1]


def _folded(nodes: Iterable[Node], constants: MutableMapping[str, ndarray], types: Mapping[str, np.dtype[Any]]) -> list[Node]:
    """The nodes that depend on an argument, of which `types` are known; the results of the others become constants."""
    known, rest = {*types, ""}, []
    for node in nodes:
        missing = [name for name in node.inputs if name not in known and name not in constants]
        if missing:
            raise ValueError(f"load: {node} needs {missing[0]!r}, which neither an input nor a node before it gives")
        if node.operator == "CastLike" and node.inputs[0] in constants and node.inputs[1] in types:
            constants[node.outputs[0]] = constants[node.inputs[0]].astype(types[node.inputs[1]])
            continue
        if not all(name in constants for name in node.inputs if name):
            known.update(node.outputs)
            rest.append(node)
            continue
        kernel = _built(build, node)
        try:
            with np.errstate(all="ignore"):
                made = kernel.function(*(constants.get(a) if isinstance(a, str) else a for a in kernel.arguments))
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"load: {node}: {error}") from None
        results = made if isinstance(made, tuple) else (made,)
        constants.update({name: np.asarray(a) for name, a in zip(node.outputs, results, strict=False) if name})
    return rest


def _built(maker: Callable[[Node], Any], node: Node) -> Any:
    """What a maker makes of a node."""
    try:
        return maker(node)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"load: {node} has not the inputs and attributes that its operator needs: {error!r}") from error


class _Chain:
    """Who reads what: for the nodes that follow a layer and nobody else needs."""

    def __init__(self, nodes: Iterable[Node], outputs: Iterable[str]):
        nodes = [*nodes]
        self._readers = {name: node for node in nodes for name in node.inputs}
        self._uses = Counter(name for node in nodes for name in node.inputs) + Counter(outputs)

    def after(self, node: Node) -> Node | None:
        """The only node that reads the result of this one."""
        name = node.outputs[0]
        is_only = self._uses[name] == 1 and all(not self._uses[other] for other in node.outputs[1:])
        return self._readers.get(name) if is_only else None


def _fused(nodes: Iterable[Node], outputs: Iterable[str]) -> list[Step]:
    nodes = [*nodes]
    chain = _Chain(nodes, outputs)
    made: dict[Node, Step] = {}
    done: set[Node] = set()
    for node in nodes:
        if node not in done:
            step = _layer(node, chain) or _expm1(node, chain) or Step(_built(build, node), (node,), node.outputs)
            # It stands where the last of its nodes did: what that reads is there by then.
            made[step.nodes[-1]] = step
            done.update(step.nodes)
    return [made[node] for node in nodes if node in made]


def _expm1(node: Node, chain: _Chain) -> Step | None:
    """exp(x) - 1, of which nothing is left for a small x in two steps."""
    after = chain.after(node) if node.operator == "Exp" else None
    one = after.constant(1) if after is not None and after.operator == "Sub" else None
    if after is None or one is None or one.ndim or one != 1:
        return None
    return Step(Kernel(np.expm1, node.inputs, "NumPy"), (node, after), after.outputs)


_LAYERS: dict[str, Callable[[Node], Layer | Convolution | None]] = {
    "Gemm": layer_of,
    "MatMul": layer_of,
    "Conv": convolution_of,
}


def _layer(node: Node, chain: _Chain) -> Step | None:
    """A layer with the bias and the activation that follow it; None if the node is none, or not of constants."""
    maker = _LAYERS.get(node.operator)
    layer = None if maker is None else _built(maker, node)
    if layer is None:
        return None
    nodes = [node]
    while (after := chain.after(nodes[-1])) is not None and (taken := _taken(layer, after, nodes[-1].outputs[0])) is not None:
        layer = taken
        nodes.append(after)
    name: str = ""
    alpha: Any = None
    if after is not None and after.operator in ACTIVATIONS:
        name, alpha = activation(after)
    elif after is not None and after.operator == "PRelu" and (slope := after.constant(1)) is not None:
        slopes = layer.slopes(slope) if after.version >= LEGACY and slope.dtype == layer.w.dtype else None
        name, alpha = ("", None) if slopes is None else ("prelu", slopes)
    if after is not None and name:
        nodes.append(after)
    return Step(layer.kernel(name, alpha), tuple(nodes), nodes[-1].outputs)


def _taken(layer: Layer | Convolution, after: Node, name: str) -> Layer | Convolution | None:
    """The layer with what follows it; None if that is neither a bias nor a normalization."""
    if after.operator == "BatchNormalization" and after.inputs[0] == name:
        return layer.normalized(after)
    if after.operator != "Add" or (after.version < LEGACY and after.get("broadcast")):
        return None
    other = after.constant(1 if after.inputs[0] == name else 0)
    return None if other is None else layer.plus(other)
