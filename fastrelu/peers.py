"""One table of everything that calculates the same thing: this package, the plain definition, and its peers.

The tests compare values with it, the benchmarks compare times. A peer is written as the expression that its user would
write, the fastest reasonable one, and is bound to given operands before it is timed, so that conversions are not part of the
time. Importing this module imports no peer.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

import fastrelu
from fastrelu.measure import Call

Maker = Callable[[list[np.ndarray], np.ndarray | None], Call]

PEERS = {
    "numpy": ("float16", "float32", "float64"),
    "torch": ("float16", "float32", "float64"),
    "jax": ("float16", "float32", "float64"),
    "numexpr": ("float32", "float64"),
}
"""The peers, and the types that each is compared in; none has bfloat16 on NumPy arrays."""


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
    expressions : dict
        For each peer the expression that calculates the same, in the names of `data`, ``alpha`` and ``out``; a pair if the
        call without ``out`` is another than the one with it.
    """

    name: str
    data: tuple[str, ...]
    parameters: tuple[float, ...]
    definition: Callable[..., Any]
    expressions: dict[str, str | tuple[str, str]] = field(default_factory=dict)

    @property
    def ours(self) -> Callable[..., Any]:
        """The public function."""
        function: Callable[..., Any] = getattr(fastrelu, self.name)
        return function

    @property
    def streams(self) -> int:
        """Arrays that a call reads or writes once each."""
        return len(self.data) + 1

    @cached_property
    def peers(self) -> dict[str, Maker]:
        """For each peer a function (arrays, out) that makes the call to be timed; `out` may be None, or one of the arrays.

        A call takes no arguments and returns what the library returns. JAX never writes into an array: its calls ignore
        `out`.
        """
        return {library: partial(_MAKERS[library], self) for library in self.expressions}

    def libraries(self, dtype: str) -> list[str]:
        """The peers that have it, are installed and take arrays of `dtype`."""
        return [library for library in libraries(dtype) if library in self.expressions]

    def calls(self, arrays: list[np.ndarray], out: np.ndarray | None, libraries: Iterable[str]) -> dict[str, Call]:
        """The calls of this package, first, and of the given peers on the same operands."""
        names = _names(self, arrays, out)
        operands = ", ".join((*self.data, *map(str, self.parameters)))
        own = f"{self.name}({operands}, out=out)"
        calls = {"fastrelu": _call(own if out is not None else _without_out(own), {self.name: self.ours, **names})}
        return calls | {library: self.peers[library](arrays, out) for library in libraries}

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


def libraries(dtype: str) -> list[str]:
    """The peers that are installed and take arrays of `dtype`."""
    return [library for library, dtypes in PEERS.items() if dtype in dtypes and available(library)]


def available(library: str) -> bool:
    """Whether a peer is installed."""
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None  # else it is a folder of that name, such as a clone of its repository


def _call(expression: str, names: dict[str, Any]) -> Call:
    """The expression as a function without arguments: the same cost around every library's call."""
    call: Call = eval(f"lambda: {expression}", names)
    return call


def _without_out(expression: str) -> str:
    return re.sub(r", out=\w+", "", expression)


def _names(case: Case, arrays: list[np.ndarray], out: np.ndarray | None) -> dict[str, Any]:
    return {
        **dict(zip(case.data, arrays, strict=True)),
        **({"alpha": case.parameters[0]} if case.parameters else {}),
        "out": out,
    }


def _expression(case: Case, library: str, out: np.ndarray | None) -> str:
    expression = case.expressions[library]
    if isinstance(expression, tuple):
        return expression[out is not None]
    return expression if out is not None else _without_out(expression)


def _numpy(case: Case, arrays: list[np.ndarray], out: np.ndarray | None) -> Call:
    """NumPy. With `out`, intermediates are preallocated: ``scratch`` (`out` if it can be), ``spare``, ``mask``."""
    expression = _expression(case, "numpy", out)
    names = {"np": np, **_names(case, arrays, out)}
    if case.parameters:
        names["alpha"] = arrays[0].dtype.type(case.parameters[0])  # else NumPy would make it float64 beside a mask
    if out is not None:
        names["mask"] = np.empty_like(out, dtype=bool) if "mask" in expression else None
        is_operand = any(out is array for array in arrays)
        names["spare"] = np.empty_like(out) if "spare" in expression or is_operand else None
        names["scratch"] = names["spare"] if is_operand else out
    call = _call(expression, names)
    if arrays[0].dtype != np.float16 or "np.exp" not in expression:
        return call

    def quiet() -> Any:
        with np.errstate(over="ignore"):  # exp(12) does not fit float16, and the result is right
            return call()

    return quiet


def _torch(case: Case, arrays: list[np.ndarray], out: np.ndarray | None) -> Call:
    """PyTorch, by the shortest way into it: ``aten`` for gradients, which have no public function."""
    import torch

    expression = _expression(case, "torch", out)
    names = _names(case, arrays, out)
    if "x" not in names and re.search(r"\bx\b", expression):
        names["x"] = _before_softplus(names["y"])
    tensors = {id(a): torch.from_numpy(a) for a in names.values() if isinstance(a, np.ndarray)}
    names = {name: tensors.get(id(value), value) for name, value in names.items()}
    return _call(expression, {"torch": torch, "nn": torch._C._nn, "aten": torch.ops.aten, **names})


def _before_softplus(y: np.ndarray) -> np.ndarray:
    """The input whose softplus is `y`: PyTorch's gradient wants that."""
    with np.errstate(divide="ignore"):
        x: np.ndarray = np.log(np.expm1(y.astype(np.float64))).astype(y.dtype)
    return x


def _jax(case: Case, arrays: list[np.ndarray], out: np.ndarray | None) -> Call:
    """JAX, compiled, on the CPU."""
    if "JAX_PLATFORMS" not in os.environ:
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    names = {"jax": jax, "jnp": jax.numpy, **_names(case, arrays, None)}
    compiled = jax.jit(eval(f"lambda {', '.join(case.data)}: {case.expressions['jax']}", names))
    is_double = arrays[0].dtype == np.float64
    wide: AbstractContextManager[Any] = jax.enable_x64(True) if is_double else nullcontext()
    with wide:
        device = [jax.device_put(array, jax.devices("cpu")[0]) for array in arrays]
        if is_double:
            compiled = compiled.lower(*device).compile()
    return lambda: compiled(*device).block_until_ready()


def _numexpr(case: Case, arrays: list[np.ndarray], out: np.ndarray | None) -> Call:
    """numexpr; a number that is not an integer has to be an array of the right type there."""
    import numexpr

    expression, dtype = _expression(case, "numexpr", out), arrays[0].dtype
    names = dict(zip(case.data, arrays, strict=True))
    numbers = {"one": 1, "alpha": case.parameters[0] if case.parameters else 0}
    names |= {name: np.asarray(value, dtype) for name, value in numbers.items() if re.search(rf"\b{name}\b", expression)}
    return lambda: numexpr.evaluate(expression, names, {}, out=out)


_MAKERS: dict[str, Callable[[Case, list[np.ndarray], np.ndarray | None], Call]] = {
    "numpy": _numpy,
    "torch": _torch,
    "jax": _jax,
    "numexpr": _numexpr,
}


def _logistic(x: Any) -> Any:
    return np.where(x < 0, np.exp(np.minimum(x, 0)) / (1 + np.exp(np.minimum(x, 0))), 1 / (1 + np.exp(-np.maximum(x, 0))))


# An alpha of 1 is left out of NumPy's, JAX's and numexpr's expressions, which saves them a pass.
CASES = {
    case.name: case
    for case in (
        Case(
            "relu",
            ("x",),
            (),
            lambda x: np.where(x <= 0, 0, x),
            {
                "numpy": "np.maximum(x, 0, out=out)",
                "torch": ("torch.relu(x)", "torch.clamp_min(x, 0, out=out)"),
                "jax": "jax.nn.relu(x)",
                "numexpr": "where(x < 0, 0, x)",
            },
        ),
        Case(
            "relu_derivative",
            ("x",),
            (),
            lambda x: np.where(x <= 0, 0, 1).astype(x.dtype),
            {
                "numpy": ("np.greater(x, 0).astype(x.dtype)", "np.greater(x, 0, out=out)"),
                "torch": ("torch.gt(x, 0).to(x.dtype)", "torch.gt(x, 0, out=out)"),
                "jax": "(x > 0).astype(x.dtype)",
                "numexpr": "where(x > 0, one, 0)",
            },
        ),
        Case(
            "relu_backward",
            ("dy", "y"),
            (),
            lambda dy, y: np.where(y <= 0, 0, dy),
            {
                "numpy": "np.multiply(dy, np.greater(y, 0, out=mask), out=out)",
                "torch": (
                    "aten.threshold_backward.default(dy, y, 0)",
                    "aten.threshold_backward.grad_input(dy, y, 0, grad_input=out)",
                ),
                "jax": "jnp.where(y > 0, dy, 0)",
                "numexpr": "where(y > 0, dy, 0)",
            },
        ),
        Case(
            "leaky_relu",
            ("x",),
            (0.01,),
            lambda x, alpha: np.where(x < 0, alpha * x, x),
            {
                "numpy": "np.maximum(x, np.multiply(x, alpha, out=scratch), out=out)",
                "torch": "nn.leaky_relu(x, alpha, out=out)",
                "jax": "jax.nn.leaky_relu(x, alpha)",
                "numexpr": "where(x < 0, alpha * x, x)",
            },
        ),
        Case(
            "leaky_relu_backward",
            ("dy", "y"),
            (0.01,),
            lambda dy, y, alpha: np.where(y <= 0, alpha * dy, dy),
            {
                "numpy": "np.multiply(dy, np.maximum(np.greater(y, 0, out=mask), alpha, out=scratch), out=out)",
                "torch": (
                    "aten.leaky_relu_backward.default(dy, y, alpha, True)",
                    "aten.leaky_relu_backward.grad_input(dy, y, alpha, True, grad_input=out)",
                ),
                "jax": "jnp.where(y > 0, dy, alpha * dy)",
                "numexpr": "where(y > 0, dy, alpha * dy)",
            },
        ),
        Case(
            "prelu",
            ("x",),
            (0.25,),
            lambda x, alpha: np.where(x < 0, alpha * x, x),
            {
                "numpy": "np.maximum(x, np.multiply(x, alpha, out=scratch), out=out)",
                "torch": "nn.leaky_relu(x, alpha, out=out)",  # the same for one alpha; torch.prelu has no out
                "jax": "jnp.where(x < 0, alpha * x, x)",
                "numexpr": "where(x < 0, alpha * x, x)",
            },
        ),
        Case(
            "elu",
            ("x",),
            (1.0,),
            lambda x, alpha: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x),
            {
                "numpy": "np.maximum(x, np.expm1(np.minimum(x, 0, out=scratch), out=scratch), out=out)",
                "torch": "nn.elu(x, alpha, out=out)",
                "jax": "jax.nn.elu(x)",
                "numexpr": "where(x < 0, expm1(x), x)",
            },
        ),
        Case(
            "elu_backward",
            ("dy", "y"),
            (1.0,),
            lambda dy, y, alpha: np.where(y <= 0, dy * (y + alpha), dy),
            {
                "numpy": "np.multiply(dy, np.add(np.minimum(y, 0, out=scratch), 1, out=scratch), out=out)",
                "torch": (
                    "aten.elu_backward.default(dy, alpha, 1, 1, True, y)",
                    "aten.elu_backward.grad_input(dy, alpha, 1, 1, True, y, grad_input=out)",
                ),
                "jax": "jnp.where(y > 0, dy, dy * (y + 1))",
                "numexpr": "where(y > 0, dy, dy * (y + 1))",
            },
        ),
        Case(
            "sigmoid",
            ("x",),
            (),
            _logistic,
            {
                "numpy": "np.reciprocal(np.add(np.exp(np.negative(x, out=out), out=out), 1, out=out), out=out)",
                "torch": "torch.sigmoid(x, out=out)",
                "jax": "jax.nn.sigmoid(x)",
                "numexpr": "1 / (1 + exp(-x))",
            },
        ),
        Case(
            "sigmoid_backward",
            ("dy", "y"),
            (),
            lambda dy, y: dy * y * (1 - y),
            {
                "numpy": "np.multiply(dy, np.multiply(y, np.subtract(1, y, out=scratch), out=scratch), out=out)",
                "torch": (
                    "aten.sigmoid_backward.default(dy, y)",
                    "aten.sigmoid_backward.grad_input(dy, y, grad_input=out)",
                ),
                "jax": "dy * y * (1 - y)",
                "numexpr": "dy * y * (1 - y)",
            },
        ),
        Case(
            "tanh",
            ("x",),
            (),
            np.tanh,
            {
                "numpy": "np.tanh(x, out=out)",
                "torch": "torch.tanh(x, out=out)",
                "jax": "jnp.tanh(x)",
                "numexpr": "tanh(x)",
            },
        ),
        Case(
            "tanh_backward",
            ("dy", "y"),
            (),
            lambda dy, y: dy * (1 - y * y),
            {
                "numpy": "np.multiply(dy, np.subtract(1, np.square(y, out=scratch), out=scratch), out=out)",
                "torch": (
                    "aten.tanh_backward.default(dy, y)",
                    "aten.tanh_backward.grad_input(dy, y, grad_input=out)",
                ),
                "jax": "dy * (1 - y * y)",
                "numexpr": "dy * (1 - y * y)",
            },
        ),
        Case(
            "softplus",
            ("x",),
            (),
            lambda x: np.maximum(x, 0) + np.log1p(np.exp(-abs(x))),
            {
                "numpy": "np.add(np.log1p(np.exp(np.negative(np.abs(x, out=spare), out=spare), out=spare), out=spare),"
                " np.maximum(x, 0, out=out), out=out)",
                "torch": "nn.softplus(x, out=out)",
                "jax": "jax.nn.softplus(x)",
                "numexpr": "where(x < 0, log1p(exp(x)), x + log1p(exp(-x)))",
            },
        ),
        Case(
            "softplus_backward",
            ("dy", "y"),
            (),
            lambda dy, y: dy * -np.expm1(-y),
            {
                "numpy": "np.multiply(dy, np.negative(np.expm1(np.negative(y, out=scratch), out=scratch), out=scratch),"
                " out=out)",
                "torch": (
                    "aten.softplus_backward.default(dy, x, 1, 20)",
                    "aten.softplus_backward.grad_input(dy, x, 1, 20, grad_input=out)",
                ),
                "jax": "-dy * jnp.expm1(-y)",
                "numexpr": "-dy * expm1(-y)",
            },
        ),
    )
}
