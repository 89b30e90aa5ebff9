"""Optimizers: each step is one compiled pass over all parameters, their gradients and what is kept for them.

What is said here once holds for all:

* Parameters are updated in place: contiguous arrays where they lie, others through a copy.
* float32 and float64 are calculated in their own type, float16 and bfloat16 in float32, which is also the type of what is
  kept for them. The bits depend neither on threads nor on the processor. NaN and infinities spread as IEEE arithmetic says.
* What is kept belongs to the position of a parameter, so that an optimizer serves one model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import is_
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from fastrelu.native.guard import lock
from fastrelu.native.optimizers import CHUNK, FORMULAS
from fastrelu.operations import FLOATS, HALVES

__all__ = ["SGD", "Adam"]

Arrays = Mapping[str, np.ndarray] | Sequence[np.ndarray]
"""The parameters of a model, or their gradients."""


class _Pass:
    """A step over arrays of one type that stay where they are: their addresses, and the compiled function."""

    def __init__(self, formula: str, rows: Sequence[Sequence[np.ndarray]]):
        with lock:
            from fastrelu.native.routine import routine

        coefficients, dtype = FORMULAS[formula][1], rows[0][0].dtype
        wide = _wide(dtype)
        words: list[int] = []
        chunks = 0
        for row in rows:
            chunks -= -row[0].size // CHUNK
            words += [array.ctypes.data for array in row] + [row[0].size, chunks]
        self._rows, self._table = rows, np.array(words, np.int64)
        self._coefficients = np.empty(coefficients, wide)
        self._pointers = self._coefficients.ctypes.data + wide.itemsize * np.arange(coefficients, dtype=np.int64)
        self._sums = np.empty(chunks + 1)
        self._words = [self._table.ctypes.data, chunks, self._pointers.ctypes.data, self._sums.ctypes.data]
        self._run = routine("optimizers", "build", formula, dtype.name)

    def __call__(self, coefficients: Sequence[float]) -> float:
        """Update the arrays; returns the sum of the squares of the gradients."""
        self._coefficients[:] = coefficients
        self._run(*self._words)
        return float(self._sums[-1])


class _Optimizer:
    """What the optimizers share: checks, and what they keep for each parameter."""

    _formula: str

    def __init__(self) -> None:
        self.steps = 0
        self._kinds: list[tuple[tuple[int, ...], str]] = []
        self._states: list[list[np.ndarray]] = []
        self._own: list[np.ndarray] = []
        self._arrays: list[np.ndarray] = []
        self._passes: list[_Pass] = []

    def _coefficients(self) -> Sequence[float]:
        raise NotImplementedError

    def step(self, parameters: Arrays, gradients: Arrays) -> float:
        """Update all parameters in place.

        Parameters
        ----------
        parameters : mapping or sequence of ndarray
            Such as ``model.parameters``: float arrays of any shapes, the same at each step.
        gradients : mapping or sequence of ndarray
            Such as ``model.gradients``: of the same keys or order, types and shapes.

        Returns
        -------
        float
            The L2 norm of all gradients together: the squares are summed in float64, in an order that the shapes alone
            determine.

        Raises
        ------
        TypeError, ValueError
            If arrays do not fit together, or to those of the steps before. Nothing has been changed then.
        """
        own, theirs = _pairs(type(self).__name__, parameters, gradients)
        arrays = [*own, *theirs]
        if len(arrays) != len(self._arrays) or not all(map(is_, arrays, self._arrays)):
            self._prepare(own, theirs)
        self.steps += 1
        return self._update(arrays)

    def _update(self, arrays: list[np.ndarray]) -> float:
        if self._arrays:
            return _norm(self._passes, self._coefficients())
        half = len(arrays) // 2
        copies = [np.array(array, array.dtype.newbyteorder("="), order="C") for array in arrays]
        norm = _norm(self._passes_of(copies[:half], copies[half:]), self._coefficients())
        for array, copy in zip(arrays[:half], copies, strict=False):
            array[...] = copy
        return norm

    def _prepare(self, own: list[np.ndarray], theirs: list[np.ndarray]) -> None:
        """Check new arrays, and find their addresses."""
        name = type(self).__name__
        for i, (parameter, gradient) in enumerate(zip(own, theirs, strict=True)):
            _check(name, i, parameter, gradient)
        kinds = [(p.shape, p.dtype.name) for p in own]
        if not self.steps:
            states = range(FORMULAS[self._formula][0])
            self._kinds = kinds
            self._states = [[np.zeros(p.shape, _wide(p.dtype)) for _ in states] for p in own]
        elif kinds != self._kinds:
            raise ValueError(f"{name}: parameters must have the shapes and types of the first step, {self._kinds}, not {kinds}")
        if len(own) != len(self._own) or not all(map(is_, own, self._own)):
            _check_memory(name, own)
            self._own = own
        self._arrays, self._passes = [], []
        if all(a.flags.c_contiguous and a.flags.aligned and a.dtype.isnative for a in (*own, *theirs)):
            self._passes = self._passes_of(own, theirs)
            self._arrays = [*own, *theirs]

    def _passes_of(self, own: list[np.ndarray], theirs: list[np.ndarray]) -> list[_Pass]:
        """A pass for each type of parameters."""
        rows: dict[np.dtype[Any], list[list[np.ndarray]]] = {}
        for parameter, gradient, state in zip(own, theirs, self._states, strict=True):
            rows.setdefault(parameter.dtype, []).append([parameter, gradient, *state])
        return [_Pass(self._formula, of_type) for of_type in rows.values()]

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copies, without addresses."""
        return {**self.__dict__, "_own": [], "_arrays": [], "_passes": []}


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    With the gradient g of a parameter p, and a velocity v that is 0 at first,

        v = momentum * v + (g + weight_decay * p)        p = p - lr * v

    Parameters
    ----------
    lr : float, optional
        Learning rate, at least 0. It may be changed between steps.
    momentum : float, optional
        What is left of the velocity after a step, from 0 to below 1. Without momentum no velocity is kept.
    weight_decay : float, optional
        Factor of an L2 penalty on all parameters, at least 0.

    Attributes
    ----------
    steps : int
        How many steps there were.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number or out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import SGD
    >>> p, g = np.array([1.0, 2.0]), np.array([3.0, -4.0])
    >>> SGD(lr=0.5).step([p], [g])
    5.0
    >>> p
    array([-0.5,  4. ])
    """

    def __init__(self, lr: float = 0.1, momentum: float = 0.0, weight_decay: float = 0.0):
        super().__init__()
        self.lr = _number("SGD", "lr", lr)
        self.momentum = _number("SGD", "momentum", momentum, below=1)
        self.weight_decay = _number("SGD", "weight_decay", weight_decay)
        self._formula = "sgd_momentum" if momentum else "sgd"

    def _coefficients(self) -> Sequence[float]:
        plain = (self.weight_decay, self.lr)
        return (*plain, self.momentum) if self._formula == "sgd_momentum" else plain

    def __repr__(self) -> str:
        return f"SGD(lr={self.lr}, momentum={self.momentum}, weight_decay={self.weight_decay})"


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), as `torch.optim.Adam`.

    With the gradient g of a parameter p at step t, to which ``weight_decay * p`` is added first,

        m = beta1 * m + (1 - beta1) * g        v = beta2 * v + (1 - beta2) * g**2
        p = p - lr / (1 - beta1**t) * m / (sqrt(v) / sqrt(1 - beta2**t) + eps)

    Parameters
    ----------
    lr : float, optional
        Learning rate, at least 0. It may be changed between steps.
    betas : tuple of two floats, optional
        Decay of the running means of the gradient and of its square, from 0 to below 1.
    eps : float, optional
        What is added to the denominator, at least 0.
    weight_decay : float, optional
        Factor of an L2 penalty on all parameters, at least 0.

    Attributes
    ----------
    steps : int
        How many steps there were.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number or out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.nn import Adam
    >>> p = np.array([1.0, 2.0])
    >>> Adam(lr=0.25).step([p], [np.array([3.0, -4.0])])
    5.0
    >>> p.round(6)
    array([0.75, 2.25])
    """

    _formula = "adam"

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__()
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"Adam: betas must be a pair of numbers, not {betas!r}")
        self.lr = _number("Adam", "lr", lr)
        self.betas = _number("Adam", "betas[0]", betas[0], below=1), _number("Adam", "betas[1]", betas[1], below=1)
        self.eps = _number("Adam", "eps", eps)
        self.weight_decay = _number("Adam", "weight_decay", weight_decay)

    def _coefficients(self) -> Sequence[float]:
        beta1, beta2 = self.betas
        rate, root = self.lr / (1 - beta1**self.steps), math.sqrt(1 - beta2**self.steps)
        return self.weight_decay, rate, beta1, 1 - beta1, beta2, 1 - beta2, root, self.eps

    def __repr__(self) -> str:
        return f"Adam(lr={self.lr}, betas={self.betas}, eps={self.eps}, weight_decay={self.weight_decay})"


def _norm(passes: Sequence[_Pass], coefficients: Sequence[float]) -> float:
    """Take a step; returns the norm of the gradients."""
    squares = 0.0
    for step in passes:
        squares += step(coefficients)
    return math.sqrt(squares)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that is calculated in."""
    return np.dtype(np.float32) if dtype.name in HALVES else dtype.newbyteorder("=")


def _number(name: str, argument: str, value: Any, below: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: {argument} must be a number, not {type(value).__name__}")
    if not 0 <= value < below:
        allowed = "finite and at least 0" if below == math.inf else f"at least 0 and below {below}"
        raise ValueError(f"{name}: {argument} must be {allowed}, not {value!r}")
    return float(value)


def _pairs(name: str, parameters: Arrays, gradients: Arrays) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters and gradients in one order."""
    if isinstance(parameters, Mapping) != isinstance(gradients, Mapping):
        raise TypeError(f"{name}: parameters and gradients must be two mappings or two sequences")
    if isinstance(parameters, Mapping) and isinstance(gradients, Mapping):
        if parameters.keys() != gradients.keys():
            raise ValueError(f"{name}: gradients must have the keys of parameters, {[*parameters]}, not {[*gradients]}")
        return [*parameters.values()], [gradients[key] for key in parameters]
    if len(parameters) != len(gradients):
        raise ValueError(f"{name}: gradients must be as many as parameters, {len(parameters)}, not {len(gradients)}")
    return [*parameters], [*gradients]


def _check(name: str, i: int, parameter: Any, gradient: Any) -> None:
    """Whether a parameter and its gradient can be used together."""
    for argument, array in (("parameters", parameter), ("gradients", gradient)):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: {argument}[{i}] must be an array, not {type(array).__name__}")
    if parameter.dtype.name not in FLOATS:
        raise TypeError(f"{name}: parameters[{i}] must be float16, bfloat16, float32 or float64, not {parameter.dtype}")
    if gradient.dtype.name != parameter.dtype.name:
        raise TypeError(f"{name}: gradients[{i}] must be {parameter.dtype} as its parameter, not {gradient.dtype}")
    if gradient.shape != parameter.shape:
        raise ValueError(
            f"{name}: gradients[{i}] must have the shape of its parameter, {parameter.shape}, not {gradient.shape}"
        )
    if not parameter.flags.writeable:
        raise ValueError(f"{name}: parameters[{i}] is read-only, and must be writable")


def _check_memory(name: str, parameters: Sequence[np.ndarray]) -> None:
    """Whether every parameter has memory of its own: several threads write to them."""
    spans = sorted((*byte_bounds(parameter), i) for i, parameter in enumerate(parameters) if parameter.size)
    for (_, end, i), (start, _, j) in pairwise(spans):
        if start < end and np.shares_memory(parameters[i], parameters[j]):
            raise ValueError(f"{name}: parameters[{max(i, j)}] shares memory with parameters[{min(i, j)}]")
