"""A convolution with ReLU, and its gradients, as this package and its peers calculate them.

A peer is written as its user would write it, the fastest reasonable way on plain arrays in the order (N, C, H, W), and is bound
to given operands before it is timed. Importing this module imports no peer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastrelu
from fastrelu.measure import Call
from fastrelu.peers import available


@dataclass(frozen=True)
class Convolution:
    """A layer of a model: sizes of x (n, c, h, w), output channels, and how the kernel meets x."""

    model: str
    n: int
    c: int
    h: int
    w: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def y(self) -> tuple[int, int, int, int]:
        """The shape of the output."""
        size = [
            (room + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for room, padding, dilation, kernel, stride in zip(
                (self.h, self.w), self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        return self.n, self.outputs, size[0], size[1]

    @property
    def operations(self) -> int:
        """Floating-point operations of one product: two for each multiply-add."""
        return 2 * int(np.prod(self.y)) * self.c // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def nbytes(self) -> int:
        """Bytes of x and y in float32."""
        return 4 * (self.n * self.c * self.h * self.w + int(np.prod(self.y)))

    def operands(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Reproducible x, w, b and dy."""
        rng = np.random.default_rng(0)
        shapes = (
            (self.n, self.c, self.h, self.w),
            (self.outputs, self.c // self.groups, *self.kernel),
            (self.outputs,),
            self.y,
        )
        x, w, b, dy = (np.resize(rng.standard_normal(min(1 << 20, int(np.prod(s))), np.float32), s) for s in shapes)
        return x, w / np.float32(np.sqrt(w[0].size)), b, dy


Maker = Callable[[Convolution], Call]


def _fastrelu(layer: Convolution) -> Call:
    x, w, b, dy = layer.operands()
    out, options = np.empty_like(dy), (layer.stride, layer.padding, layer.dilation, layer.groups)
    conv2d_relu = fastrelu.conv2d_relu
    return lambda: conv2d_relu(x, w, b, *options, out=out)


def _torch(layer: Convolution) -> Call:
    """PyTorch, eager."""
    import torch

    x, w, b = (torch.from_numpy(a) for a in layer.operands()[:3])
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    conv2d, relu_ = torch.nn.functional.conv2d, torch.relu_

    def call() -> Any:
        with torch.no_grad():
            return relu_(conv2d(x, w, b, *options))

    return call


def _jax(layer: Convolution) -> Call:
    """JAX, compiled, on the CPU."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    x, w, b = (jax.device_put(a, jax.devices("cpu")[0]) for a in layer.operands()[:3])
    forward = jax.jit(_of_jax(layer))
    return lambda: forward(x, w, b).block_until_ready()


def _of_jax(layer: Convolution) -> Any:
    """The layer as a function of JAX arrays."""
    import jax

    def forward(x: Any, w: Any, b: Any) -> Any:
        z = jax.lax.conv_general_dilated(
            x,
            w,
            layer.stride,
            [(padding, padding) for padding in layer.padding],
            rhs_dilation=layer.dilation,
            feature_group_count=layer.groups,
        )
        return jax.numpy.maximum(z + b[:, None, None], 0)

    return forward


def _onnxruntime(layer: Convolution) -> Call:
    """ONNX Runtime: Conv and Relu, which it fuses, with a weight that is packed once."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    x, w, b, dy = layer.operands()
    options = {
        "strides": layer.stride,
        "pads": layer.padding * 2,
        "dilations": layer.dilation,
        "group": layer.groups,
    }
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["z"], **options), helper.make_node("Relu", ["z"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dy.shape)],
        [numpy_helper.from_array(a, name) for name, a in {"w": w, "b": b}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = fastrelu.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    binding, y = session.io_binding(), np.empty_like(dy)
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)

    def call() -> np.ndarray:
        session.run_with_iobinding(binding)
        return y

    return call


def _fastrelu_backward(layer: Convolution) -> Call:
    x, w, _, dy = layer.operands()
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    y = fastrelu.conv2d_relu(x, w, None, *options)
    out = np.empty_like(x), np.empty_like(w), np.empty(layer.outputs, np.float32)
    conv2d_relu_backward = fastrelu.conv2d_relu_backward
    return lambda: conv2d_relu_backward(dy, y, x, w, *options, out=out)


def _torch_backward(layer: Convolution) -> Call:
    """What PyTorch's autograd calls, without its graph."""
    import torch

    x, w, _, dy = (torch.from_numpy(a) for a in layer.operands())
    geometry = [[*pair] for pair in (layer.stride, layer.padding, layer.dilation)]
    y = torch.relu(torch.nn.functional.conv2d(x, w, None, *geometry, layer.groups))
    backward, mask = torch.ops.aten.convolution_backward.default, torch.ops.aten.threshold_backward.default

    def call() -> Any:
        dz = mask(dy, y, 0)
        return backward(dz, x, w, [layer.outputs], *geometry, False, [0, 0], layer.groups, [True, True, True])

    return call


def _jax_backward(layer: Convolution) -> Call:
    """The gradient of JAX alone: its compiler drops what the forward pass need not do again."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    x, w, b, dy = (jax.device_put(a, jax.devices("cpu")[0]) for a in layer.operands())
    _, pull = jax.vjp(_of_jax(layer), x, w, b)
    backward = jax.jit(pull)
    return lambda: jax.block_until_ready(backward(dy))


FORWARD: dict[str, Maker] = {"fastrelu": _fastrelu, "torch": _torch, "jax": _jax, "onnxruntime": _onnxruntime}
"""The layer as each of them calculates it."""
BACKWARD: dict[str, Maker] = {"fastrelu": _fastrelu_backward, "torch": _torch_backward, "jax": _jax_backward}
"""Its gradients."""


def installed(names: Iterable[str]) -> list[str]:
    """Those of the names that can be measured here."""
    return [name for name in names if name == "fastrelu" or available({"onnxruntime": "onnx"}.get(name, name))]
