"""The backward pass of one fused layer, y = relu(x @ w + b), and a training step, as this package and its peers calculate them.

Conventions as in `fastrelu.layer_peers`: the weight has PyTorch's layout, (out, in), and so has its gradient. A peer is written
as its user would write it, the fastest reasonable way, and is bound to given operands before it is timed. Importing this module
imports no peer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np

import fastrelu
from fastrelu import layer_peers
from fastrelu.measure import Call
from fastrelu.peers import available

Maker = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Call]
Parameters = list[tuple[np.ndarray, np.ndarray]]
StepMaker = Callable[[np.ndarray, np.ndarray, Parameters, float], Call]

WIDTHS = (784, 256, 128, 10)
"""The network of the training step: ReLU after each layer but the last."""


def operands(m: int, k: int, n: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reproducible dy (m, n), y (m, n), x (m, k) and weight (n, k): y is the output of the layer without bias."""
    x, weight, _ = layer_peers.operands(m, k, n, dtype)
    dy = np.random.default_rng(1).standard_normal((m, n), dtype=np.float32).astype(dtype, copy=False)
    return dy, fastrelu.linear_relu(x, weight.T), x, weight


def _results(dy: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays for dx, dw in the layout of the weight, and db."""
    return np.empty_like(x), np.empty_like(weight), np.empty(dy.shape[1], dy.dtype)


def _fastrelu(dy: np.ndarray, y: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Call:
    w, linear_relu_backward = weight.T, fastrelu.linear_relu_backward
    dx, dw, db = _results(dy, x, weight)
    out = dx, dw.T, db
    return lambda: linear_relu_backward(dy, y, x, w, out=out)


def _fastrelu_mask(dy: np.ndarray, y: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Call:
    """With the bits that the forward pass can write instead of y."""
    return _fastrelu(dy, np.packbits(y > 0, axis=-1, bitorder="little"), x, weight)


def _numpy(dy: np.ndarray, y: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Call:
    dx, dw, db = _results(dy, x, weight)
    mask, dz, ones = np.empty(y.shape, bool), np.empty_like(dy), np.ones(len(dy), dy.dtype)

    def call() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        np.multiply(dy, np.greater(y, 0, out=mask), out=dz)
        np.matmul(dz, weight, out=dx)
        np.matmul(dz.T, x, out=dw)
        np.matmul(ones, dz, out=db)  # in less than half the time of dz.sum(0)
        return dx, dw.T, db

    return call


def _torch_autograd(dy: np.ndarray, y: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Call:
    """PyTorch's backward pass alone. The graph has its own y: as that of `operands`, it is the output without bias."""
    import torch

    inputs = [torch.from_numpy(a).requires_grad_() for a in (x, weight, np.zeros(len(weight), weight.dtype))]
    output, gradient, grad = torch.relu(torch.nn.functional.linear(*inputs)), torch.from_numpy(dy), torch.autograd.grad

    def call() -> Any:
        dx, dw, db = grad(output, inputs, gradient, retain_graph=True)
        return dx, dw.T, db

    return call


def _torch(dy: np.ndarray, y: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Call:
    """PyTorch's operations, eager, without autograd."""
    import torch

    tensors = [torch.from_numpy(a) for a in (dy, y, x, weight)]
    dx, dw, db = (torch.from_numpy(a) for a in _results(dy, x, weight))
    dz, threshold_backward = torch.empty_like(tensors[0]), torch.ops.aten.threshold_backward.grad_input

    def call() -> Any:
        with torch.no_grad():
            threshold_backward(tensors[0], tensors[1], 0, grad_input=dz)
            torch.mm(dz, tensors[3], out=dx)
            torch.mm(dz.T, tensors[2], out=dw)
            torch.sum(dz, 0, out=db)
        return dx, dw.T, db

    return call


def _jax(dy: np.ndarray, y: np.ndarray, x: np.ndarray, weight: np.ndarray) -> Call:
    """JAX, compiled, on the CPU."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    def gradients(dy: Any, y: Any, x: Any, weight: Any) -> Any:
        dz = jax.numpy.where(y > 0, dy, 0)
        return dz @ weight, dz.T @ x, dz.sum(0)

    device = [jax.device_put(a, jax.devices("cpu")[0]) for a in (dy, y, x, weight)]
    compiled = jax.jit(gradients)

    def call() -> Any:
        dx, dw, db = jax.block_until_ready(compiled(*device))
        return dx, dw.T, db

    return call


GRADIENTS: dict[str, Maker] = {
    "fastrelu": _fastrelu,
    "fastrelu mask": _fastrelu_mask,
    "numpy": _numpy,
    "torch autograd": _torch_autograd,
    "torch": _torch,
    "jax": _jax,
}
"""The backward pass, bound to (dy, y, x, weight), as each of them calculates it. A call returns dx, dw (k, n) and db."""


def installed(names: Iterable[str] = tuple(GRADIENTS)) -> list[str]:
    """Those of the names in `GRADIENTS` or `STEPS` that can be measured here."""
    return [name for name in names if name.startswith("fastrelu") or available(name.split()[0])]


def batch(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Reproducible pixels (rows, 784) and digits (rows)."""
    rng = np.random.default_rng(0)
    return rng.random((rows, WIDTHS[0]), dtype=np.float32), rng.integers(WIDTHS[-1], size=rows)


def parameters() -> Parameters:
    """Reproducible weight (out, in) and bias of each layer, initialized by He's rule."""
    rng = np.random.default_rng(1)
    return [
        (rng.standard_normal((n, k), dtype=np.float32) * np.float32(np.sqrt(2 / k)), np.zeros(n, np.float32))
        for k, n in pairwise(WIDTHS)
    ]


def _descend(parameters: Parameters, gradients: Parameters, rate: np.float32) -> None:
    for own, of_own in zip(parameters, gradients, strict=True):
        for parameter, gradient in zip(own, of_own, strict=True):
            np.multiply(gradient, rate, out=gradient)
            np.subtract(parameter, gradient, out=parameter)


def _softmax_gradient(z: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> None:
    """Make of the last layer's output, in place, the gradient of the mean cross-entropy of its softmax."""
    np.subtract(z, z.max(1, keepdims=True), out=z)
    np.exp(z, out=z)
    np.divide(z, z.sum(1, keepdims=True), out=z)
    z[rows, labels] -= 1
    np.divide(z, len(z), out=z)


def _step_fastrelu(x: np.ndarray, labels: np.ndarray, parameters: Parameters, rate: float) -> Call:
    (w1, b1), (w2, b2), (w3, b3) = ((weight.T, b) for weight, b in parameters)
    y1, y2, z = (np.empty((len(x), len(b)), x.dtype) for _, b in parameters)
    dy1, dy2 = np.empty_like(y1), np.empty_like(y2)
    gradients = [(np.empty_like(weight), np.empty_like(b)) for weight, b in parameters]
    (dw1, db1), (dw2, db2), (dw3, db3) = ((dw.T, db) for dw, db in gradients)
    rows, step = np.arange(len(x)), np.float32(rate)
    linear, linear_relu = fastrelu.linear, fastrelu.linear_relu
    linear_backward, linear_relu_backward = fastrelu.linear_backward, fastrelu.linear_relu_backward

    def call() -> None:
        linear_relu(x, w1, b1, out=y1)
        linear_relu(y1, w2, b2, out=y2)
        linear(y2, w3, b3, out=z)
        _softmax_gradient(z, rows, labels)
        linear_backward(z, y2, w3, out=(dy2, dw3, db3))
        linear_relu_backward(dy2, y2, y1, w2, out=(dy1, dw2, db2))
        linear_relu_backward(dy1, y1, x, w1, out=(None, dw1, db1), wanted=("dw", "db"))
        _descend(parameters, gradients, step)

    return call


def _step_fastrelu_nn(x: np.ndarray, labels: np.ndarray, parameters: Parameters, rate: float) -> Call:
    """With the layers, the model and the optimizer of `fastrelu.nn`, whose weights take the place of the given ones."""
    nn, layers = fastrelu.nn, []
    for i, (weight, b) in enumerate(parameters):
        layer = nn.Linear(*weight.T.shape, rng=0)
        layer.weight[...], layer.bias[...] = weight.T, b
        parameters[i] = layer.weight.T, layer.bias
        layers += [layer, nn.ReLU()]
    model, optimizer = nn.Sequential(*layers[:-1]), nn.SGD(rate)
    softmax_cross_entropy = fastrelu.softmax_cross_entropy

    def call() -> None:
        _, dy = softmax_cross_entropy(model.forward(x), labels)
        model.backward(dy, wants_dx=False)
        optimizer.step(model.parameters, model.gradients)

    return call


def _step_numpy(x: np.ndarray, labels: np.ndarray, parameters: Parameters, rate: float) -> Call:
    (w1, b1), (w2, b2), (w3, b3) = parameters
    y1, y2, z = (np.empty((len(x), len(b)), x.dtype) for _, b in parameters)
    dy1, dy2 = np.empty_like(y1), np.empty_like(y2)
    gradients = [(np.empty_like(weight), np.empty_like(b)) for weight, b in parameters]
    rows, ones, step = np.arange(len(x)), np.ones(len(x), x.dtype), np.float32(rate)

    def forward(x: np.ndarray, weight: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        np.matmul(x, weight.T, out=out)
        np.add(out, b, out=out)

    def backward(dz: np.ndarray, x: np.ndarray, dw: np.ndarray, db: np.ndarray) -> None:
        np.matmul(dz.T, x, out=dw)
        np.matmul(ones, dz, out=db)

    def call() -> None:
        forward(x, w1, b1, y1)
        np.maximum(y1, 0, out=y1)
        forward(y1, w2, b2, y2)
        np.maximum(y2, 0, out=y2)
        forward(y2, w3, b3, z)
        _softmax_gradient(z, rows, labels)
        backward(z, y2, *gradients[2])
        np.matmul(z, w3, out=dy2)
        np.multiply(dy2, y2 > 0, out=dy2)
        backward(dy2, y1, *gradients[1])
        np.matmul(dy2, w2, out=dy1)
        np.multiply(dy1, y1 > 0, out=dy1)
        backward(dy1, x, *gradients[0])
        _descend(parameters, gradients, step)

    return call


def _step_torch(x: np.ndarray, labels: np.ndarray, parameters: Parameters, rate: float) -> Call:
    """PyTorch, eager: autograd, and the update that costs least."""
    import torch

    linear, cross_entropy = torch.nn.functional.linear, torch.nn.functional.cross_entropy
    pixels, digits = torch.from_numpy(x), torch.from_numpy(labels)
    tensors = [torch.from_numpy(a).requires_grad_() for own in parameters for a in own]
    w1, b1, w2, b2, w3, b3 = tensors

    def call() -> None:
        y1 = torch.relu(linear(pixels, w1, b1))
        y2 = torch.relu(linear(y1, w2, b2))
        gradients = torch.autograd.grad(cross_entropy(linear(y2, w3, b3), digits), tensors)
        with torch.no_grad():
            for tensor, gradient in zip(tensors, gradients, strict=True):
                tensor.sub_(gradient, alpha=rate)

    return call


STEPS: dict[str, StepMaker] = {
    "fastrelu": _step_fastrelu,
    "fastrelu nn": _step_fastrelu_nn,
    "numpy": _step_numpy,
    "torch": _step_torch,
}
"""A training step, bound to (x, labels, parameters, rate): forward, cross-entropy, backward, descent by the gradient times the
rate. A call updates the parameters, which are (weight, bias) of each layer, in place.
"""
