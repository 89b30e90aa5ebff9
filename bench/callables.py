"""One table of everything that calculates the same thing: this package, the plain definition, and its peers.

The tests compare values with it, the benchmarks compare times. A peer is built for given operands, so that conversions are
not part of what is timed; it takes no arguments and writes into a preallocated array where the library can.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastrelu

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """An operation and all that it can be compared with.

    Attributes
    ----------
    name : str
        The public function of `fastrelu`.
    data : tuple of str
        Names of the operands that are arrays.
    parameters : tuple of float
        Numbers that follow them.
    definition : callable
        The plain definition in NumPy, of operands in a wider type.
    peers : dict
        For each library, a function (x, out, *other arrays) that makes the call to be timed, without and with ``out``.
    """

    name: str
    data: tuple[str, ...]
    parameters: tuple[float, ...]
    definition: Callable[..., Any]
    peers: dict[str, Callable[..., Call]] = field(default_factory=dict)

    @property
    def ours(self) -> Callable[..., Any]:
        return getattr(fastrelu, self.name)

    @property
    def streams(self) -> int:
        """Arrays that a call reads or writes once each."""
        return len(self.data) + 1

    def operands(self, size: int, dtype: str, seed: int = 0) -> list[np.ndarray]:
        """Reproducible arrays: normally distributed with standard deviation 3; an output `y` is in the range it can have."""
        rng = np.random.default_rng(seed)
        arrays = []
        for name in self.data:
            block = (3 * rng.standard_normal(min(size, 1 << 20), dtype=np.float32)).astype(dtype)
            array = np.resize(block, size)
            if name == "y":
                forward = getattr(fastrelu, self.name.removesuffix("_backward"))
                forward(array, *self.parameters, out=array)
            arrays.append(array)
        return arrays


def _logistic(x: Any) -> Any:
    return np.where(x < 0, np.exp(np.minimum(x, 0)) / (1 + np.exp(np.minimum(x, 0))), 1 / (1 + np.exp(-np.maximum(x, 0))))


def _torch(function: Callable[..., Callable[..., Any]]) -> Callable[..., Call]:
    """A peer in torch: `function` is given the module and returns what takes the tensors, `out` last or None."""

    def make(arrays: list[np.ndarray], out: np.ndarray | None) -> Call:
        import torch

        torch.set_grad_enabled(False)
        tensors = [torch.from_numpy(a) for a in arrays]
        target = None if out is None else torch.from_numpy(out)
        call = function(torch)
        return lambda: call(*tensors, out=target)

    return make


def _numpy(call: Callable[..., Any]) -> Callable[..., Call]:
    return lambda arrays, out: lambda: call(*arrays, out=out)


def _numexpr(expression: str, names: tuple[str, ...]) -> Callable[..., Call]:
    def make(arrays: list[np.ndarray], out: np.ndarray | None) -> Call:
        import numexpr

        operands = dict(zip(names, arrays, strict=True))
        return lambda: numexpr.evaluate(expression, operands, out=out)

    return make


def _jax(function: Callable[..., Callable[..., Any]]) -> Callable[..., Call]:
    """A peer in JAX, compiled; arrays there are never written into, so `out` is ignored."""

    def make(arrays: list[np.ndarray], out: np.ndarray | None) -> Call:
        import jax

        if any(a.dtype == np.float64 for a in arrays):
            jax.config.update("jax_enable_x64", True)
        device = [jax.device_put(a) for a in arrays]
        call = jax.jit(function(jax))
        return lambda: call(*device).block_until_ready()

    return make


def available(library: str) -> bool:
    """Whether a peer is installed."""
    return importlib.util.find_spec(library) is not None


os.environ.setdefault("JAX_PLATFORMS", "cpu")

CASES = {
    case.name: case
    for case in (
        Case("relu", ("x",), (), lambda x: np.where(x <= 0, 0, x)),
        Case("relu_derivative", ("x",), (), lambda x: np.where(x <= 0, 0, 1).astype(x.dtype)),
        Case("relu_backward", ("dy", "y"), (), lambda dy, y: np.where(y <= 0, 0, dy)),
        Case("leaky_relu", ("x",), (0.01,), lambda x, alpha: np.where(x < 0, alpha * x, x)),
        Case("leaky_relu_backward", ("dy", "y"), (0.01,), lambda dy, y, alpha: np.where(y <= 0, alpha * dy, dy)),
        Case("prelu", ("x",), (0.25,), lambda x, alpha: np.where(x < 0, alpha * x, x)),
        Case("elu", ("x",), (1.0,), lambda x, alpha: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)),
        Case("elu_backward", ("dy", "y"), (1.0,), lambda dy, y, alpha: np.where(y <= 0, dy * (y + alpha), dy)),
        Case("sigmoid", ("x",), (), _logistic),
        Case("sigmoid_backward", ("dy", "y"), (), lambda dy, y: dy * y * (1 - y)),
        Case("tanh", ("x",), (), np.tanh),
        Case("tanh_backward", ("dy", "y"), (), lambda dy, y: dy * (1 - y * y)),
        Case("softplus", ("x",), (), lambda x: np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))),
        Case("softplus_backward", ("dy", "y"), (), lambda dy, y: dy * -np.expm1(-y)),
    )
}
