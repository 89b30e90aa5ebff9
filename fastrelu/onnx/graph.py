"""What an ONNX file says, read once: nodes, constants, inputs and outputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
from numpy import ndarray
from onnx import numpy_helper

__all__ = ["Graph", "Node", "Value", "attribute_of", "dtype_of", "read"]

_NAMES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "BOOL": "bool",
}
TYPES = {onnx.TensorProto.DataType.Value(name): numpy for name, numpy in _NAMES.items()}
"""Element types of ONNX by their numbers, as NumPy calls them."""


@dataclass(frozen=True)
class Value:
    """An input or an output.

    Attributes
    ----------
    name : str
        As in the file.
    dtype : numpy.dtype
        Of its elements.
    shape : tuple or None
        A number, a name or None for each axis; None if the file does not tell.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        shape = "of any shape" if self.shape is None else f"({', '.join('?' if d is None else str(d) for d in self.shape)})"
        return f"{self.name} {self.dtype} {shape}"


@dataclass(frozen=True, eq=False)
class Node:
    """A node of the graph.

    Attributes
    ----------
    operator, name : str
        Its operator, and its name or, if it has none, its number.
    inputs, outputs : tuple of str
        Names of values; "" for one that is left out.
    attributes : mapping
        As Python's numbers, strings and lists, and as arrays.
    version : int
        Version of the operator set.
    constants : mapping
        Values that do not depend on the inputs of the graph, of the whole graph.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    version: int
    constants: Mapping[str, ndarray]

    def __str__(self) -> str:
        return f"node {self.name} ({self.operator})"

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute; `default` if it is not given and ONNX has no value for it."""
        return self.attributes.get(attribute, default)

    def has(self, i: int) -> bool:
        """Whether there is an input of this number."""
        return i < len(self.inputs) and self.inputs[i] != ""

    def constant(self, i: int) -> ndarray | None:
        """The input of this number if it does not depend on those of the graph."""
        return self.constants.get(self.inputs[i]) if self.has(i) else None

    def refuse(self, what: str) -> NotImplementedError:
        """The error for what is not supported."""
        return NotImplementedError(f"load: {self} {what}")


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph: `nodes` in an order in which they can be run, initial values of `constants`, `inputs` that have to be given,
    `defaults` (inputs with an initial value) and `outputs`.
    """

    name: str
    nodes: tuple[Node, ...]
    constants: dict[str, ndarray]
    inputs: tuple[Value, ...]
    defaults: tuple[Value, ...]
    outputs: tuple[Value, ...]


@cache
def dtype_of(number: int, what: str) -> np.dtype[Any]:
    """The type of a number of ONNX; `what` has it."""
    name = TYPES.get(number)
    if name is None:
        known = {value: key for key, value in onnx.TensorProto.DataType.items()}
        allowed = ", ".join(TYPES.values())
        raise NotImplementedError(f"load: {what} has elements of type {known.get(number, number)}; supported are {allowed}")
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def array_of(tensor: Any, what: str) -> ndarray:
    """The array that a file holds."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError(f"load: {what} is kept in another file; load the model by its path, not as bytes or an object")
    dtype = dtype_of(tensor.data_type, what)
    try:
        array: ndarray = numpy_helper.to_array(tensor)
    except (TypeError, ValueError) as error:
        raise ValueError(f"load: {what} cannot be read: {error}") from None
    return array if array.dtype == dtype else array.astype(dtype)  # older versions of onnx give float32 for bfloat16


def proto_of(model: Any) -> Any:
    """The model as an object of onnx: from a path, bytes, a file, or as it is."""
    if isinstance(model, onnx.ModelProto):
        return _filled(model)
    if isinstance(model, bytes | bytearray | memoryview):
        data = bytes(model)
    elif hasattr(model, "read"):
        data = model.read()
        if not isinstance(data, bytes):
            raise TypeError("load: a file must be opened in binary mode")
    else:
        try:
            path = os.fspath(model)
        except TypeError:
            allowed = "a path, bytes, a file or an onnx.ModelProto"
            raise TypeError(f"load: model must be {allowed}, not {type(model).__name__}") from None
        with _decoding(f"the file {path!r}"):
            return _filled(onnx.load(path))
    with _decoding("what was given"):
        return _filled(onnx.load_from_string(data))


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Within it what cannot be decoded, or lacks a file of weights, gives a `ValueError`."""
    try:
        yield
    except onnx.checker.ValidationError as error:
        raise ValueError(f"load: {what} has weights that cannot be read: {error}") from None
    except Exception as error:
        if type(error).__name__ in ("DecodeError", "ParseError", "UnicodeDecodeError"):
            raise ValueError(f"load: model must be in ONNX's format, which {what} is not") from None
        raise


def _filled(model: Any) -> Any:
    if not model.graph.node and not model.graph.output:
        raise ValueError("load: model must have a graph with outputs, and what was given has none")
    return model


def read(model: Any) -> Graph:
    """The graph of an `onnx.ModelProto`."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    versions = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if versions.get("ai.onnx", 0) > newest:
        what = f"needs version {versions['ai.onnx']} of the operator set"
        raise NotImplementedError(f"load: model {what}; the package onnx that is installed knows those up to {newest}")
    graph = model.graph
    _check_origins(graph)
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise NotImplementedError(f"load: initializer {name} is sparse; supported are dense ones")
    constants = {tensor.name: array_of(tensor, f"initializer {tensor.name}") for tensor in graph.initializer}
    inputs = [_value(info, "input") for info in graph.input]
    nodes = tuple(_node(proto, i, versions, constants) for i, proto in enumerate(graph.node))
    return Graph(
        graph.name,
        nodes,
        constants,
        tuple(value for value in inputs if value.name not in constants),
        tuple(value for value in inputs if value.name in constants),
        tuple(_value(info, "output") for info in graph.output),
    )


def _check_origins(graph: Any) -> None:
    """Refuse a value that several inputs, initializers or nodes give."""
    inputs = [info.name for info in graph.input]
    initial = [tensor.name for tensor in graph.initializer]
    made = [name for node in graph.node for name in node.output if name]
    for counts in (Counter(inputs + made), Counter(initial + made)):
        for name, count in counts.items():
            if count > 1:
                raise ValueError(f"load: {name!r} must be given once, not by {count} inputs, initializers or nodes")


def _value(info: Any, kind: str) -> Value:
    what = f"{kind} {info.name}"
    if info.type.WhichOneof("value") != "tensor_type":
        raise NotImplementedError(f"load: {what} is a {info.type.WhichOneof('value') or 'value without type'}, not a tensor")
    tensor = info.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(map(_length, tensor.shape.dim))
    return Value(info.name, dtype_of(tensor.elem_type, what), shape)


def _length(dimension: Any) -> int | str | None:
    """A number, a name, or None for any; some exporters write -1 for that."""
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value) if dimension.dim_value >= 0 else None
    return str(dimension.dim_param) or None


def _node(proto: Any, i: int, versions: Mapping[str, int], constants: Mapping[str, ndarray]) -> Node:
    domain = proto.domain or "ai.onnx"
    operator = proto.op_type if domain == "ai.onnx" else f"{domain}.{proto.op_type}"
    name = repr(proto.name) if proto.name else f"number {i}"
    if domain not in versions:
        raise ValueError(f"load: node {name} ({operator}) is of the domain {domain}, of which the model imports no version")
    attributes = {a.name: attribute_of(a, f"node {name} ({operator})") for a in proto.attribute}
    return Node(operator, name, tuple(proto.input), tuple(proto.output), attributes, versions[domain], constants)


def attribute_of(attribute: Any, what: str) -> Any:
    """The value of an attribute; what no supported operator takes stays as it is."""
    if attribute.ref_attr_name:
        raise ValueError(f"load: {what} refers to an attribute {attribute.ref_attr_name} of a function that is not there")
    if attribute.type == onnx.AttributeProto.TENSOR:
        return array_of(attribute.t, f"attribute {attribute.name} of {what}")
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
