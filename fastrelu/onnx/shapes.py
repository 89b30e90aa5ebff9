"""Operators that move elements without calculating."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu.onnx.graph import Node
from fastrelu.onnx.registry import ANY, operator

__all__ = ["numbers"]


def numbers(node: Node, attribute: str, i: int) -> Callable[[tuple[Any, ...]], list[int] | None]:
    """Whole numbers that are an attribute in old versions and an input in new ones, as a function of all inputs."""
    found = node.get(attribute, node.constant(i))
    if found is not None:
        fixed: list[int] = np.ravel(found).tolist()
        return lambda inputs: fixed
    return lambda inputs: None if len(inputs) <= i or inputs[i] is None else inputs[i].ravel().tolist()


@operator("Identity", view=True)
def _identity(node: Node) -> Callable[..., Any]:
    return lambda x: x


@operator("Dropout", view=True, outputs=2)
def _dropout(node: Node) -> Callable[..., Any]:
    if node.version < LAST_WITH_IS_TEST and not node.get("is_test"):
        raise node.refuse("is for training; supported is inference")
    training = node.constant(2)
    if node.has(2) and (training is None or training.any()):
        raise node.refuse("is for training, or may be; supported is inference")
    has_mask = len(node.outputs) > 1

    def dropout(x: ndarray, *others: Any) -> Any:
        mask_type = np.bool_ if node.version >= MASK_IS_BOOL else x.dtype
        return (x, np.ones(x.shape, mask_type)) if has_mask else x

    return dropout


LAST_WITH_IS_TEST, MASK_IS_BOOL = 7, 10
"""Versions of the operator set in which Dropout changed."""


@operator("Reshape", view=True)
def _reshape(node: Node) -> Callable[..., Any]:
    wanted, keeps_zeros = numbers(node, "shape", 1), bool(node.get("allowzero"))

    def reshape(*inputs: Any) -> Any:
        x, shape = inputs[0], wanted(inputs) or []
        if not keeps_zeros:
            if 0 in shape[x.ndim :]:
                raise ValueError(f"shape {shape} has a 0 where x of shape {x.shape} has no axis")
            shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
        if -1 in shape and x.size == 0:  # NumPy cannot tell what is left
            rest, left = prod(n for n in shape if n != -1), x.size
            shape = [(left // rest if rest else 0) if n == -1 else n for n in shape]
        return x.reshape(shape)

    return reshape


@operator("Flatten", view=True)
def _flatten(node: Node) -> Callable[..., Any]:
    axis = node.get("axis")

    def flatten(x: ndarray) -> Any:
        if not -x.ndim <= axis <= x.ndim:
            raise ValueError(f"axis must be {-x.ndim} to {x.ndim}, not {axis}")
        first = axis if axis >= 0 else axis + x.ndim
        return x.reshape(prod(x.shape[:first]), prod(x.shape[first:]))

    return flatten


@operator("Transpose", view=True)
def _transpose(node: Node) -> Callable[..., Any]:
    order = node.get("perm")
    return lambda x: x.transpose(order)


@operator("Squeeze", view=True)
def _squeeze(node: Node) -> Callable[..., Any]:
    axes = numbers(node, "axes", 1)

    def squeeze(*inputs: Any) -> Any:
        chosen = axes(inputs)
        return inputs[0].squeeze() if chosen is None else inputs[0].squeeze(tuple(chosen))

    return squeeze


@operator("Unsqueeze", view=True)
def _unsqueeze(node: Node) -> Callable[..., Any]:
    axes = numbers(node, "axes", 1)
    return lambda *inputs: np.expand_dims(inputs[0], tuple(axes(inputs) or ()))


@operator("Concat")
def _concat(node: Node) -> Callable[..., Any]:
    axis = node.get("axis", 1)  # required from version 4 on
    return lambda *arrays: np.concatenate(arrays, axis)


@operator("Split", outputs=ANY)
def _split(node: Node) -> Callable[..., Any]:
    axis, lengths, parts = node.get("axis"), numbers(node, "split", 1), len(node.outputs)

    def split(*inputs: Any) -> Any:
        x, wanted = inputs[0], lengths(inputs)
        n = x.shape[axis]
        if wanted is None:  # of the same length, but for the last
            each = -(-n // parts)
            wanted = [*[each] * (parts - 1), n - each * (parts - 1)]
        if sum(wanted) != n or len(wanted) != parts or min(wanted) < 0:
            raise ValueError(f"{n} elements along axis {axis} must be split into {parts} parts, not {wanted}")
        pieces = tuple(piece.copy() for piece in np.split(x, np.cumsum(wanted[:-1]), axis))
        return pieces if parts > 1 else pieces[0]

    return split


@operator("Tile")
def _tile(node: Node) -> Callable[..., Any]:
    return lambda x, repeats: np.tile(x, repeats.tolist())


@operator("Range")
def _range(node: Node) -> Callable[..., Any]:
    return lambda start, limit, step: np.arange(start, limit, step, dtype=start.dtype)


@operator("Expand")
def _expand(node: Node) -> Callable[..., Any]:
    # A copy: each element of a result has memory of its own.
    return lambda x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, shape.tolist())).copy()


@operator("Shape")
def _shape(node: Node) -> Callable[..., Any]:
    chosen = slice(node.get("start"), node.get("end"))
    return lambda x: np.array(x.shape[chosen], np.int64)


@operator("Size")
def _size(node: Node) -> Callable[..., Any]:
    return lambda x: np.array(x.size, np.int64)


@operator("Gather")
def _gather(node: Node) -> Callable[..., Any]:
    axis = node.get("axis")
    return lambda x, indices: np.take(x, indices, axis)


@operator("Slice", view=True)
def _slice(node: Node) -> Callable[..., Any]:
    names = ("starts", "ends", "axes", "steps")
    given = [numbers(node, name, i) for i, name in enumerate(names, 1)]

    def cut(*inputs: Any) -> Any:
        starts, ends, axes, steps = (read(inputs) for read in given)
        starts, ends = starts or [], ends or []
        axes, steps = axes or [*range(len(starts))], steps or [1] * len(starts)
        parts = [slice(None)] * inputs[0].ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if step < 0:  # a start before the first element is the first one, other than in Python
                start = max(start, -inputs[0].shape[axis])
            parts[axis] = slice(start, end, step)
        return inputs[0][tuple(parts)]

    return cut


@operator("Pad")
def _pad(node: Node) -> Callable[..., Any]:
    kind = node.get("mode")
    if kind not in ("constant", "edge", "reflect", "wrap"):
        raise node.refuse(f"has the mode {kind!r}; supported are constant, edge, reflect and wrap")
    wanted = numbers(node, "pads" if "pads" in node.attributes else "paddings", 1)

    def pad(*inputs: Any) -> Any:
        x, pads = inputs[0], wanted(inputs) or []
        value = inputs[2] if len(inputs) > 2 and inputs[2] is not None else node.get("value", 0)
        axes = [*range(x.ndim)] if len(inputs) < 4 or inputs[3] is None else [int(axis) % x.ndim for axis in inputs[3]]
        begin, end = ([0] * x.ndim for _ in range(2))
        for i, axis in enumerate(axes):
            begin[axis], end[axis] = pads[i], pads[i + len(axes)]
        # Less than none is cut off.
        x = x[tuple(slice(max(-b, 0), n - max(-e, 0)) for n, b, e in zip(x.shape, begin, end, strict=True))]
        widths = [(max(b, 0), max(e, 0)) for b, e in zip(begin, end, strict=True)]
        more = {"constant_values": np.asarray(value, x.dtype).reshape(())} if kind == "constant" else {}
        return np.pad(x, widths, kind, **more)

    return pad


@operator("Constant")
def _constant(node: Node) -> Callable[..., Any]:
    if "value" in node.attributes:
        array = np.asarray(node.attributes["value"])
    else:
        (name, value), *_ = [*node.attributes.items(), ("none", None)]
        dtype = {"value_float": np.float32, "value_int": np.int64}.get(name.removesuffix("s"))
        if dtype is None:
            raise node.refuse(f"has the attribute {name}; supported are value, and numbers of type float or int")
        array = np.asarray(value, dtype)
    return lambda: array


@operator("ConstantOfShape")
def _constant_of_shape(node: Node) -> Callable[..., Any]:
    value = node.get("value", np.zeros(1, np.float32))
    return lambda shape: np.full(tuple(int(n) for n in shape), value.reshape(()), value.dtype)
