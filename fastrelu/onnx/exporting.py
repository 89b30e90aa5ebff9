"""Models of `fastrelu.nn` as ONNX files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.shape_inference
from numpy import ndarray
from onnx import helper, numpy_helper

import fastrelu
from fastrelu import nn
from fastrelu.onnx.graph import TYPES
from fastrelu.operands import name_of, wide
from fastrelu.operations import FLOATS, HALVES

__all__ = ["export", "save"]

OLDEST, OPSET, OPSET_22 = 13, 17, 22
"""Versions of the operator set: the oldest that can be written; what is written unless another is asked for; from which on all
operators take bfloat16, and ``ceil_mode`` does not count windows that begin behind the image.
"""
# Beyond this a file of protobuf cannot be read, and weights go to a file beside it.
_LARGEST = 2**31 - 2**20

_NUMBERS = {name: number for number, name in TYPES.items()}
Shape = tuple[int | str | None, ...]


class _Writer:
    """The nodes and the weights so far, and how many axes the last result has (None if nobody knows)."""

    def __init__(self, ndim: int | None, dtype: np.dtype[Any], opset: int):
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.value, self.ndim, self.dtype, self.opset = "x", ndim, dtype, opset
        self.prefix = ""

    def constant(self, name: str, array: ndarray) -> str:
        """Enter a weight; its name."""
        name = f"{self.prefix}.{name}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Enter a node; the name of its result."""
        result = f"{len(self.nodes)}"
        name = f"{self.prefix}.{operator}.{result}"
        self.nodes.append(helper.make_node(operator, inputs, [result], name=name, **attributes))
        return result

    def cast(self, dtype: np.dtype[Any]) -> None:
        """The last result with another type."""
        if dtype != self.dtype:
            self.value, self.dtype = self.node("Cast", self.value, to=_NUMBERS[name_of(dtype)]), dtype

    def numbers(self, name: str, *values: int) -> str:
        """Whole numbers as an input of a node."""
        return self.constant(name, np.array(values, np.int64))


def _activation(operator: str) -> Callable[[_Writer, Any], None]:
    def write(writer: _Writer, layer: Any) -> None:
        alpha = {"alpha": float(layer.alpha)} if hasattr(layer, "alpha") else {}
        writer.value = writer.node(operator, writer.value, **alpha)

    return write


def _leaky_relu(writer: _Writer, layer: Any) -> None:
    """An attribute is a float32; where more digits count, alpha is a weight."""
    is_exact = writer.dtype != np.float64 or float(np.float32(layer.alpha)) == layer.alpha
    (_activation("LeakyRelu") if is_exact else _prelu)(writer, layer)


def _prelu(writer: _Writer, layer: Any) -> None:
    """In the type that x and alpha have together; beside a half a slope of float32 does not change the type of the result."""
    alpha, before = np.asarray(layer.alpha), writer.dtype
    is_half = name_of(before) in HALVES and alpha.dtype in (before, np.float32)
    writer.cast(wide(before) if is_half else np.promote_types(before, alpha.dtype))
    writer.value = writer.node("PRelu", writer.value, writer.constant("alpha", alpha.astype(writer.dtype)))
    if is_half:
        writer.cast(before)


def _linear(writer: _Writer, layer: Any) -> None:
    w, b = layer.parameters["weight"], layer.parameters.get("bias")
    writer.cast(w.dtype)
    if writer.ndim == 2:
        inputs = [writer.constant("weight", w), *([] if b is None else [writer.constant("bias", b)])]
        writer.value = writer.node("Gemm", writer.value, *inputs)
        return
    writer.value = writer.node("MatMul", writer.value, writer.constant("weight", w))
    if b is not None:
        writer.value = writer.node("Add", writer.value, writer.constant("bias", b))


def _relu_behind(write: Callable[[_Writer, Any], None]) -> Callable[[_Writer, Any], None]:
    def both(writer: _Writer, layer: Any) -> None:
        write(writer, layer)
        writer.value = writer.node("Relu", writer.value)

    return both


def _conv2d(writer: _Writer, layer: Any) -> None:
    w, b = layer.parameters["weight"], layer.parameters.get("bias")
    writer.cast(w.dtype)
    writer.ndim = 4
    inputs = [writer.constant("weight", w), *([] if b is None else [writer.constant("bias", b)])]
    writer.value = writer.node(
        "Conv",
        writer.value,
        *inputs,
        kernel_shape=layer.kernel_size,
        strides=layer.stride,
        pads=_pads(layer),
        dilations=layer.dilation,
        group=layer.groups,
    )


def _pads(layer: Any) -> tuple[int, ...]:
    """Zeros before the rows and columns, and behind them."""
    if not isinstance(layer.padding, str):
        return tuple(layer.padding) * 2
    sums = (d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in sums)
    return top, left, bottom, right


def _max_pool2d(writer: _Writer, layer: Any) -> None:
    writer.ndim = 4
    writer.value = writer.node(
        "MaxPool",
        writer.value,
        kernel_shape=layer.kernel_size,
        strides=layer.stride,
        pads=layer.padding * 2,
        dilations=layer.dilation,
        ceil_mode=int(layer.ceil_mode),
    )


def _flatten(writer: _Writer, layer: Any) -> None:
    writer.value, writer.ndim = writer.node("Flatten", writer.value, axis=1), 2


def _embedding_mean(writer: _Writer, layer: Any) -> None:
    """The sum of the rows that count, divided by how many these are, at least 1."""
    table = layer.parameters["weight"]
    sums = np.dtype(np.float32) if table.dtype.itemsize == 2 else table.dtype  # halves are rounded once
    number = _NUMBERS[sums.name]
    ids, writer.dtype, writer.ndim = writer.value, table.dtype, 2
    rows = writer.node("Gather", writer.constant("weight", table), ids, axis=0)
    if sums != table.dtype:
        rows = writer.node("Cast", rows, to=number)
    if layer.padding_id is None:
        ones = writer.node("Cast", writer.node("Equal", ids, ids), to=number)
    else:
        counts = writer.node("Not", writer.node("Equal", ids, writer.numbers("padding_id", layer.padding_id)))
        ones = writer.node("Cast", counts, to=number)
        column = writer.node("Unsqueeze", counts, writer.numbers("last", -1))
        rows = writer.node("Where", column, rows, writer.constant("zero", np.zeros((), sums)))
    axis = writer.numbers("axis", 1)
    count = writer.node("ReduceSum", ones, axis, keepdims=1)
    count = writer.node("Max", count, writer.constant("one", np.ones((), sums)))
    mean = writer.node("Div", writer.node("ReduceSum", rows, axis, keepdims=0), count)
    writer.value = mean if sums == table.dtype else writer.node("Cast", mean, to=_NUMBERS[table.dtype.name])


def _sequential(writer: _Writer, model: Any) -> None:
    before = writer.prefix
    for i, layer in enumerate(model.layers):
        writer.prefix = f"{before}.{i}" if before else f"{i}"
        _write(writer, layer)
    writer.prefix = before


_LAYERS: dict[type, Callable[[_Writer, Any], None]] = {
    nn.Linear: _linear,
    nn.LinearReLU: _relu_behind(_linear),
    nn.Conv2d: _conv2d,
    nn.Conv2dReLU: _relu_behind(_conv2d),
    nn.MaxPool2d: _max_pool2d,
    nn.EmbeddingMean: _embedding_mean,
    nn.Flatten: _flatten,
    nn.Sequential: _sequential,
    nn.ReLU: _activation("Relu"),
    nn.LeakyReLU: _leaky_relu,
    nn.PReLU: _prelu,
    nn.ELU: _activation("Elu"),
    nn.Sigmoid: _activation("Sigmoid"),
    nn.Tanh: _activation("Tanh"),
    nn.Softplus: _activation("Softplus"),
}


def _write(writer: _Writer, layer: Any) -> None:
    write = _LAYERS.get(type(layer))
    if write is None:
        names = ", ".join(kind.__name__ for kind in _LAYERS)
        where = f"layer {writer.prefix}" if writer.prefix else "model"
        raise TypeError(f"export: {where} must be one of {names}, not {type(layer).__name__}")
    write(writer, layer)


def _first(model: Any) -> Any:
    """The first layer that tells what it reads, or the first of all."""
    layers = _all_layers(model)
    passing = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.MaxPool2d)
    return next((layer for layer in layers if not isinstance(layer, passing)), layers[0] if layers else None)


def _all_layers(model: Any) -> list[Any]:
    if not isinstance(model, nn.Sequential):
        return [model]
    return [layer for part in model.layers for layer in _all_layers(part)]


def _input(model: Any, shape: Sequence[int | str | None] | None, dtype: Any) -> tuple[np.dtype[Any], Shape]:
    """Type and shape of what the model reads."""
    first = _first(model)
    is_ids = isinstance(first, nn.EmbeddingMean)
    arrays = [p for layer in _all_layers(model) for p in getattr(layer, "parameters", {}).values()]
    found = np.dtype(np.int64) if is_ids else np.dtype(dtype or (arrays[0].dtype if arrays else np.float32))
    if shape is not None:
        if not isinstance(shape, list | tuple) or not all(d is None or isinstance(d, int | str) for d in shape):
            raise TypeError(f"export: input_shape must be a tuple of integers, names and None, not {shape!r}")
        return found, tuple(("N" if i == 0 else f"d{i}") if d is None else d for i, d in enumerate(shape))
    if isinstance(first, nn.Linear):
        return found, ("N", first.parameters["weight"].shape[0])
    if isinstance(first, nn.Conv2d):
        return found, ("N", first.parameters["weight"].shape[1] * first.groups, "H", "W")
    if is_ids:
        return found, ("N", "length")
    if isinstance(_all_layers(model)[0] if _all_layers(model) else None, nn.MaxPool2d):
        return found, ("N", "C", "H", "W")
    raise ValueError("export: input_shape must be given, since the first layer does not tell what it reads")


def _inferred_output(model: Any) -> Any:
    """The output with the shape that onnx infers, which needs of long weights no more than their shapes."""
    graph = model.graph
    inputs, short = [*graph.input], []
    for tensor in graph.initializer:
        if len(tensor.raw_data) <= 64:
            short.append(tensor)
        else:
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    light = helper.make_model(
        helper.make_graph(graph.node, graph.name, inputs, graph.output, short),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    try:
        inferred = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"export: the layers do not fit the input: {error}") from None
    return inferred.graph.output[0]


def _write_file(model: Any, path: str, is_large: bool) -> None:
    if not is_large:
        onnx.save(model, path)
        return
    data = f"{path}.data"
    with suppress(FileNotFoundError):
        os.remove(data)  # onnx would append to it
    onnx.save(model, path, save_as_external_data=True, location=os.path.basename(data))
    onnx.load_external_data_for_model(model, os.path.dirname(path) or ".")  # onnx has moved the weights to the file


def export(
    model: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    input_shape: Sequence[int | str | None] | None = None,
    dtype: Any = None,
    opset: int | None = None,
) -> Any:
    """Write a model of `fastrelu.nn` as an ONNX model, with the input ``x`` and the output ``y``.

    Parameters
    ----------
    model : Sequential or layer
        Of layers of `fastrelu.nn`. The weights are copied.
    path : path, optional
        A file to write it to. Weights of more than 2 GB are put into a file of the same name with ``.data`` behind it.
    input_shape : tuple, optional
        Lengths of the axes of x; a name or None where any length will do. By default what the first layer tells, with a batch
        of any length and images of any size. Needed where no layer tells, and for rows that are not in a plain batch.
    dtype : dtype, optional
        Type of x in a model without parameters, by default float32.
    opset : int, optional
        Version of the operator set, at least 13 and by default 17; with ``ceil_mode`` at least 22, which is the default for
        bfloat16 too.

    Returns
    -------
    onnx.ModelProto
        The model, checked by `onnx.checker` unless it has more than 2 GB.

    Raises
    ------
    TypeError
        If a layer is not of `fastrelu.nn`, or an argument has the wrong type.
    ValueError
        If the input cannot be told, or the version is too old.

    Notes
    -----
    What `load` makes of it gives the bits of the model, with two exceptions. ONNX keeps the alpha of ELU as float32, which
    matters in float64; and EmbeddingMean is a gather and a mean, in another order of sums.

    Examples
    --------
    >>> from fastrelu import nn, onnx
    >>> network = nn.Sequential(nn.Linear(4, 3, rng=0), nn.ReLU())
    >>> [node.op_type for node in onnx.export(network).graph.node]
    ['Gemm', 'Relu']
    """
    found, shape = _input(model, input_shape, dtype)
    types = {found, *(p.dtype for layer in _all_layers(model) for p in getattr(layer, "parameters", {}).values())}
    has_bfloat16 = any(t.name == "bfloat16" for t in types)
    has_ceil_mode = any(isinstance(layer, nn.MaxPool2d) and layer.ceil_mode for layer in _all_layers(model))
    if opset is None:
        opset = OPSET_22 if has_bfloat16 or has_ceil_mode else OPSET
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise TypeError(f"export: opset must be an integer, not {type(opset).__name__}")
    most = onnx.defs.onnx_opset_version()
    oldest, why = (OPSET_22, " for MaxPool2d with ceil_mode") if has_ceil_mode else (OLDEST, "")
    if not oldest <= opset <= most:
        raise ValueError(f"export: opset must be {oldest} to {most}{why}, not {opset}")
    if found.name not in (*FLOATS, "int64"):
        raise TypeError(f"export: dtype must be a float type, not {found}")
    writer = _Writer(len(shape), found, opset)
    _write(writer, model)
    if not writer.nodes:
        writer.value = writer.node("Identity", writer.value)
    writer.nodes[-1].output[0] = "y"
    x = helper.make_tensor_value_info("x", _NUMBERS[found.name], shape)
    y = helper.make_tensor_value_info("y", _NUMBERS[writer.dtype.name], None)
    graph = helper.make_graph(writer.nodes, "fastrelu", [x], [y], writer.weights)
    versions = [helper.make_opsetid("", opset)]
    made = helper.make_model(
        graph,
        opset_imports=versions,
        ir_version=helper.find_min_ir_version_for(versions),
        producer_name="fastrelu",
        producer_version=fastrelu.__version__,
    )
    made.graph.output[0].CopyFrom(_inferred_output(made))
    is_large = sum(len(tensor.raw_data) for tensor in made.graph.initializer) > _LARGEST
    if not is_large:
        onnx.checker.check_model(made, full_check=True)
    if path is not None:
        _write_file(made, os.fspath(path), is_large)
    return made


def save(model: Any, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a model of `fastrelu.nn` to an ONNX file.

    Parameters
    ----------
    model, path, **options
        As for `export`.

    Raises
    ------
    TypeError, ValueError
        As `export`.

    Examples
    --------
    >>> import os, tempfile
    >>> from fastrelu import nn, onnx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     onnx.save(nn.Sequential(nn.Linear(4, 3, rng=0)), os.path.join(folder, "model.onnx"))
    ...     onnx.load(os.path.join(folder, "model.onnx")).outputs
    (Value(name='y', dtype=dtype('float32'), shape=('N', 3)),)
    """
    export(model, path, **options)
