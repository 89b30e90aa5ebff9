"""One fused layer, y = relu(x @ w + b), as this package and its peers calculate it.

The weight has PyTorch's layout, (out, in): ``w`` is its transpose. A peer is written as its user would write it, the fastest
reasonable way, and is bound to given operands before it is timed. Importing this module imports no peer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import fastrelu
from fastrelu.measure import Call
from fastrelu.peers import available

Maker = Callable[[np.ndarray, np.ndarray, np.ndarray], Call]


def operands(m: int, k: int, n: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reproducible x (m, k), weight (n, k) and b (n): x as a ReLU leaves it, half of it 0."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        block = rng.standard_normal(min(1 << 20, int(np.prod(shape))), dtype=np.float32)
        return np.resize(block, shape).astype(dtype)

    return np.maximum(normal(m, k), 0), normal(n, k) / np.asarray(np.sqrt(max(k, 1)), dtype), normal(n)


def _fastrelu(x: np.ndarray, weight: np.ndarray, b: np.ndarray) -> Call:
    w, out, linear_relu = weight.T, np.empty((len(x), len(weight)), x.dtype), fastrelu.linear_relu
    return lambda: linear_relu(x, w, b, out=out)


def _fastrelu_packed(x: np.ndarray, weight: np.ndarray, b: np.ndarray) -> Call:
    w, out, linear_relu = fastrelu.pack(weight.T), np.empty((len(x), len(weight)), x.dtype), fastrelu.linear_relu
    return lambda: linear_relu(x, w, b, out=out)


def _numpy(x: np.ndarray, weight: np.ndarray, b: np.ndarray) -> Call:
    w, y = weight.T, np.empty((len(x), len(weight)), x.dtype)

    def call() -> np.ndarray:
        np.matmul(x, w, out=y)
        np.add(y, b, out=y)
        return np.maximum(y, 0, out=y)

    return call


def _torch(x: np.ndarray, weight: np.ndarray, b: np.ndarray) -> Call:
    """PyTorch, eager."""
    import torch

    linear, relu_, tensors = torch._C._nn.linear, torch.relu_, [torch.from_numpy(a) for a in (x, weight, b)]

    def call() -> Any:
        with torch.no_grad():
            return relu_(linear(*tensors))

    return call


def _onednn(x: np.ndarray, weight: np.ndarray, b: np.ndarray) -> Call:
    """OneDNN as PyTorch's compiler calls it, with a weight that was reordered once."""
    import torch

    tensors = [torch.from_numpy(a) for a in (x, weight, b)]
    linear = torch.ops.mkldnn._linear_pointwise.default
    packed = torch.ops.mkldnn._reorder_linear_weight(tensors[1], len(x))

    def call() -> Any:
        with torch.no_grad():
            return linear(tensors[0], packed, tensors[2], "relu", [], "")

    return call


def _jax(x: np.ndarray, weight: np.ndarray, b: np.ndarray) -> Call:
    """JAX, compiled, on the CPU."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    device = [jax.device_put(a, jax.devices("cpu")[0]) for a in (x, weight, b)]
    layer = jax.jit(lambda x, weight, b: jax.numpy.maximum(x @ weight.T + b, 0))
    return lambda: layer(*device).block_until_ready()


def _onnxruntime(x: np.ndarray, weight: np.ndarray, b: np.ndarray) -> Call:
    """ONNX Runtime: Gemm and Relu, with a weight that may be another in each call, as for all that is called plain here."""
    return _onnxruntime_session(x, weight, b, constant=False)


def _onnxruntime_packed(x: np.ndarray, weight: np.ndarray, b: np.ndarray) -> Call:
    """The same with the weight as a constant of the model, which ONNX Runtime packs once."""
    return _onnxruntime_session(x, weight, b, constant=True)


def _onnxruntime_session(x: np.ndarray, weight: np.ndarray, b: np.ndarray, constant: bool) -> Call:
    import onnxruntime
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    operands = {"w": weight, "b": b}
    y = np.empty((len(x), len(weight)), x.dtype)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1), helper.make_node("Relu", ["z"], ["y"])],
        "layer",
        [helper.make_tensor_value_info(name, kind, a.shape) for name, a in {"x": x, **({} if constant else operands)}.items()],
        [helper.make_tensor_value_info("y", kind, y.shape)],
        [numpy_helper.from_array(a, name) for name, a in operands.items()] if constant else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = fastrelu.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, a in {"x": x, **({} if constant else operands)}.items():
        binding.bind_cpu_input(name, a)
    binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)

    def call() -> np.ndarray:
        session.run_with_iobinding(binding)
        return y

    return call


LAYERS: dict[str, Maker] = {
    "fastrelu": _fastrelu,
    "fastrelu packed": _fastrelu_packed,
    "numpy": _numpy,
    "torch": _torch,
    "onednn": _onednn,
    "jax": _jax,
    "onnxruntime": _onnxruntime,
    "onnxruntime packed": _onnxruntime_packed,
}
"""The layer, bound to (x, weight, b), as each of them calculates it."""

PLAIN = ("numpy", "torch", "jax", "onnxruntime")
"""The peers that take any weight in each call. The others have packed it."""

_MODULES = {"onednn": "torch", "onnxruntime": "onnx", "onnxruntime packed": "onnx"}


def installed(names: Iterable[str] = tuple(LAYERS)) -> list[str]:
    """Those of the names in `LAYERS` that can be measured here."""
    return [name for name in names if name.startswith("fastrelu") or available(_MODULES.get(name, name))]
