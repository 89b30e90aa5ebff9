"""Everything that the suite measures: for each operation its sizes, its types, and who calculates it.

A `Family` is a kind of operation whose table of callables stands elsewhere in the package. To add an operation, add it to that
table; to add a kind, write a class like those below and put it into `FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import product
from typing import Protocol

import numpy as np

import fastrelu
from fastrelu import convolution_peers, gradient_peers, layer_peers, peers
from fastrelu.benchmarks import convolutions, layers, network
from fastrelu.measure import SMALLEST_PARALLEL_COPY, Call, copies, on_all_threads

OURS = "fastrelu"
EXTENTS = ("smoke", "quick", "usual", "full")
"""How many sizes there are, from those that show that everything runs to all."""
DTYPES = ("float16", "float32", "float64")
FORMS = ("new", "given", "in_place")
"""``op(x)``, ``op(x, out=y)`` and ``op(x, out=x)``."""
GIGABYTES, GIGAFLOPS = "GB/s", "GFLOP/s"


@dataclass(frozen=True)
class Problem:
    """An operation on certain operands.

    Attributes
    ----------
    makers : mapping of str to callable
        For each library a function without arguments that makes the call to be timed.
    references : mapping of str to callable
        What the times are related to, so that two runs on a noisy machine can be compared, and what makes these calls: first
        one that runs on one thread, then one that runs on all.
    amount : float
        What a call does: bytes that it reads or writes, operations, images.
    unit : str
        "GB/s", "GFLOP/s", or another without a limit of the machine.
    dtype : str
        The type that the machine's limit is measured in.
    """

    makers: Mapping[str, Callable[[], Call]]
    references: Mapping[str, Callable[[], Call]]
    amount: float
    unit: str
    dtype: str = "float32"


class Family(Protocol):
    """A kind of operation.

    Attributes
    ----------
    types : tuple of str
        Those that it can be measured in.
    """

    types: tuple[str, ...]

    def operations(self) -> list[str]:
        """Their names."""

    def sizes(self, operation: str, extent: str) -> list[str]:
        """The sizes of an extent."""

    def is_size(self, operation: str, size: str) -> bool:
        """Whether it can be measured at this size, in `sizes` or not."""

    def dtypes(self, extent: str) -> tuple[str, ...]:
        """The types of an extent."""

    def forms(self, extent: str) -> tuple[str, ...]:
        """The forms of a call in an extent."""

    def libraries(self, operation: str, dtype: str, form: str) -> list[str]:
        """Who calculates it here: `OURS` and its variants, and the installed peers."""

    def problem(self, operation: str, size: str, dtype: str, form: str) -> Problem:
        """The calls on operands of this size."""


def _make_multiply_adds() -> Call:
    from fastrelu.fma import multiply_adds

    return multiply_adds()[0]


MULTIPLY_ADDS: Mapping[str, Callable[[], Call]] = {
    "multiply-adds": _make_multiply_adds,
    "multiply-adds on all threads": lambda: on_all_threads(_make_multiply_adds()),
}
"""The references of what calculates: they depend on no library."""


def _make_copy(nbytes: int) -> Call:
    source = np.ones(max(1, nbytes), np.uint8)
    return partial(np.copyto, np.empty_like(source), source)


def _copy_on_threads(nbytes: int) -> dict[str, Callable[[], Call]]:
    """The reference on all threads of what moves so many bytes: a copy, or for few of them what does not wait for memory."""
    half, name = nbytes // 2, "copy on threads"
    if half < SMALLEST_PARALLEL_COPY or fastrelu.get_num_threads() == 1:
        (reference,) = list(MULTIPLY_ADDS.items())[1:]
        return dict([reference])
    return {name: lambda: copies(np.ones(half, np.uint8), np.ones(half, np.uint8))[name]}


class Elementwise(Family):
    """The operations of `fastrelu.peers`. A size is the number of elements."""

    types = DTYPES

    def operations(self) -> list[str]:
        return list(peers.CASES)

    def sizes(self, operation: str, extent: str) -> list[str]:
        exponents = {"smoke": (1, 4), "quick": (3, 5, 7), "usual": range(1, 8), "full": range(1, 9)}
        return [str(10**exponent) for exponent in exponents[extent]]

    def is_size(self, operation: str, size: str) -> bool:
        return size.isdecimal() and int(size) > 0

    def dtypes(self, extent: str) -> tuple[str, ...]:
        return ("float32",) if extent in ("quick", "usual") else DTYPES

    def forms(self, extent: str) -> tuple[str, ...]:
        return ("given",) if extent in ("quick", "usual") else FORMS

    def libraries(self, operation: str, dtype: str, form: str) -> list[str]:
        # JAX writes into no array.
        return [OURS, *(name for name in peers.CASES[operation].libraries(dtype) if name != "jax" or form == "new")]

    def problem(self, operation: str, size: str, dtype: str, form: str) -> Problem:
        case = peers.CASES[operation]
        arrays = case.operands(int(size), dtype)
        if form == "in_place":
            # A call may be repeated on them for ever: nothing overflows or becomes subnormal, which takes longer.
            first = np.zeros_like(arrays[0]) if operation.endswith("_backward") else np.abs(arrays[0])
            arrays = [first, *arrays[1:]]
        out = None if form == "new" else arrays[0] if form == "in_place" else np.empty_like(arrays[0])

        def make(library: str) -> Call:
            return case.calls(arrays, out, [] if library == OURS else [library])[library]

        makers = {library: partial(make, library) for library in (OURS, *case.expressions)}
        nbytes = case.streams * arrays[0].nbytes
        return Problem(makers, {"numpy": makers["numpy"], **_copy_on_threads(nbytes)}, nbytes, GIGABYTES, dtype)


class Dense(Family):
    """The fused layer and its backward pass. A size is m, k and n, such as ``64x784x256``."""

    types = DTYPES
    _USUAL = ("1x784x256", "64x784x256", "64x256x128", "64x128x10", "1024x784x256", "128x768x3072", "1024x1024x1024")
    _QUICK = ("64x784x256", "1024x1024x1024")
    _PEERS: Mapping[str, tuple[str, ...]] = {"numpy": ("float32", "float64"), "torch": DTYPES, "torch autograd": DTYPES}
    """The types of those that have others than float32, or that would take too long in float16."""

    def operations(self) -> list[str]:
        return ["linear_relu", "linear_relu_backward"]

    def sizes(self, operation: str, extent: str) -> list[str]:
        least_rows = 16 if operation.endswith("_backward") else 1  # nobody trains on fewer
        chosen = {
            "smoke": [(layer.m, layer.k, layer.n) for layer in layers.LAYERS if layer.m == 64],
            "quick": map(_numbers, self._QUICK),
            "usual": map(_numbers, self._USUAL),
            "full": [(layer.m, layer.k, layer.n) for layer in layers.LAYERS],
        }
        return list(dict.fromkeys(f"{m}x{k}x{n}" for m, k, n in chosen[extent] if m >= least_rows))

    def is_size(self, operation: str, size: str) -> bool:
        return re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", size) is not None

    def dtypes(self, extent: str) -> tuple[str, ...]:
        return ("float32",)

    def forms(self, extent: str) -> tuple[str, ...]:
        return ("given",)

    def libraries(self, operation: str, dtype: str, form: str) -> list[str]:
        names = (gradient_peers if operation.endswith("_backward") else layer_peers).installed()
        return [name for name in names if name.startswith(OURS) or dtype in self._PEERS.get(name, ("float32",))]

    def problem(self, operation: str, size: str, dtype: str, form: str) -> Problem:
        m, k, n = _numbers(size)
        backward = operation.endswith("_backward")
        table: Mapping[str, Callable[..., Call]] = gradient_peers.GRADIENTS if backward else layer_peers.LAYERS
        operands: tuple[np.ndarray, ...] = (gradient_peers if backward else layer_peers).operands(m, k, n, dtype)
        makers = {library: partial(maker, *operands) for library, maker in table.items()}
        return Problem(makers, MULTIPLY_ADDS, (4 if backward else 2) * m * k * n, GIGAFLOPS, dtype)


class Convolutions(Family):
    """The convolution with ReLU and its backward pass, on the layers of `convolutions`."""

    types = ("float32",)

    def __init__(self) -> None:
        self._layers = {convolutions.describe(layer): layer for layer in convolutions.LAYERS}

    def operations(self) -> list[str]:
        return ["conv2d_relu", "conv2d_relu_backward"]

    def sizes(self, operation: str, extent: str) -> list[str]:
        return list(self._layers)[: {"smoke": 1, "quick": 2, "usual": 4, "full": None}[extent]]

    def is_size(self, operation: str, size: str) -> bool:
        return size in self._layers

    def dtypes(self, extent: str) -> tuple[str, ...]:
        return ("float32",)

    def forms(self, extent: str) -> tuple[str, ...]:
        return ("new",)

    def libraries(self, operation: str, dtype: str, form: str) -> list[str]:
        return convolution_peers.installed(self._makers(operation))

    def problem(self, operation: str, size: str, dtype: str, form: str) -> Problem:
        layer, table = self._layers[size], self._makers(operation)
        makers = {library: partial(maker, layer) for library, maker in table.items()}
        products = 2 if operation.endswith("_backward") else 1
        return Problem(makers, MULTIPLY_ADDS, products * layer.operations, GIGAFLOPS)

    def _makers(self, operation: str) -> Mapping[str, convolution_peers.Maker]:
        return convolution_peers.BACKWARD if operation.endswith("_backward") else convolution_peers.FORWARD


class Network(Family):
    """Pooling, embeddings, the loss and steps of training, at the sizes of `network`."""

    types = ("float32",)

    def operations(self) -> list[str]:
        return list(network.OPERATIONS)

    def sizes(self, operation: str, extent: str) -> list[str]:
        names = [network.named(case) for case in network.OPERATIONS[operation].cases]
        return names[: 1 if extent in ("smoke", "quick") else None]

    def is_size(self, operation: str, size: str) -> bool:
        return size in self.sizes(operation, "full")

    def dtypes(self, extent: str) -> tuple[str, ...]:
        return ("float32",)

    def forms(self, extent: str) -> tuple[str, ...]:
        return ("new",)

    def libraries(self, operation: str, dtype: str, form: str) -> list[str]:
        return [OURS, *filter(peers.available, network.OPERATIONS[operation].peers)]

    def problem(self, operation: str, size: str, dtype: str, form: str) -> Problem:
        chosen = network.OPERATIONS[operation]
        case = next(case for case in chosen.cases if network.named(case) == size)
        calls = chosen.calls(*case)
        makers = {library: partial(_identity, call) for library, call in calls.items()}
        amount = chosen.amount(*case)
        if chosen.unit != GIGABYTES:
            return Problem(makers, MULTIPLY_ADDS, amount, chosen.unit)
        references: dict[str, Callable[[], Call]] = {
            "copy": partial(_make_copy, int(amount) // 2),
            **_copy_on_threads(int(amount)),
        }
        return Problem(makers, references, amount, GIGABYTES)


def _identity(call: Call) -> Call:
    return call


def _numbers(size: str) -> tuple[int, int, int]:
    m, k, n = map(int, size.split("x"))
    return m, k, n


FAMILIES: tuple[Family, ...] = (Elementwise(), Dense(), Convolutions(), Network())


@dataclass(frozen=True)
class Benchmark:
    """One line of a run: who calculates what on what."""

    operation: str
    dtype: str
    size: str
    form: str
    library: str

    def __str__(self) -> str:
        return "-".join((self.operation, self.dtype, self.size, self.form, self.library))

    def problem(self) -> Problem:
        """The calls on its operands. Those of the libraries on the same operands come after each other, and share them."""
        return _problem(self.operation, self.size, self.dtype, self.form)


@lru_cache(maxsize=1)
def _problem(operation: str, size: str, dtype: str, form: str) -> Problem:
    family = next(family for family in FAMILIES if operation in family.operations())
    return family.problem(operation, size, dtype, form)


@dataclass(frozen=True)
class Selection:
    """What of the table a run measures.

    Attributes
    ----------
    extent : str
        One of `EXTENTS`.
    operations, sizes, dtypes, forms : tuple of str
        Only these; empty for those of the extent. Elementwise operations and dense layers can have others: ``1000``, ``1M``,
        ``64x784x256``. Operations that have none of the sizes or types are left out.
    peers : tuple of str
        Libraries beside this package, or "all" for those that are installed. "onednn" is a way of calling PyTorch.

    Raises
    ------
    ValueError
        If one of them is none of those that there are, or nothing is left.
    """

    extent: str = "usual"
    operations: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(map(_in_full, self.sizes)))
        for name, given, allowed in (
            ("operations", self.operations, [name for family in FAMILIES for name in family.operations()]),
            ("dtypes", self.dtypes, DTYPES),
            ("forms", self.forms, FORMS),
            ("peers", self.peers, ("all", *peer_names())),
        ):
            if unknown := [word for word in given if word not in allowed]:
                raise ValueError(f"{name}: {', '.join(unknown)} is none of {', '.join(allowed)}")
        if absent := [name for name in self.peers if name not in ("all", *_installed())]:
            raise ValueError(f"peers: {', '.join(absent)} is not installed")
        measured = [(family, operation) for family in FAMILIES for operation in family.operations()]
        if unknown := [size for size in self.sizes if not any(f.is_size(operation, size) for f, operation in measured)]:
            raise ValueError(
                f"sizes: {', '.join(unknown)} is neither a length such as 1000 or 1M, nor m x k x n such as 64x784x256,"
                " nor a size as it stands in the table of a run"
            )

    def benchmarks(self) -> list[Benchmark]:
        """The lines of the run, in the order of the table."""
        found = dict.fromkeys(benchmark for family in FAMILIES for benchmark in self._of_family(family))
        if not found:
            raise ValueError("the operations have none of these sizes, types and forms")
        return [*found]

    def _of_family(self, family: Family) -> Iterator[Benchmark]:
        extent = self.extent
        dtypes = [dtype for dtype in self.dtypes or family.dtypes(extent) if dtype in family.types]
        forms = [form for form in family.forms("full") if form in (self.forms or family.forms(extent))]
        for operation in family.operations():
            if self.operations and operation not in self.operations:
                continue
            sizes = self.sizes or family.sizes(operation, extent)
            sizes = [size for size in sizes if family.is_size(operation, size)]
            for dtype in dtypes:
                for size in sizes:
                    for form in forms:
                        for library in family.libraries(operation, dtype, form):
                            # A library has variants: "torch", "torch autograd".
                            if library.startswith(OURS) or {library, library.split()[0], "all"} & {*self.peers}:
                                yield Benchmark(operation, dtype, size, form, library)


def peer_names() -> list[str]:
    """What can stand beside this package, installed or not."""
    names = (*peers.PEERS, *layer_peers.LAYERS, *gradient_peers.GRADIENTS, *convolution_peers.FORWARD)
    return list(dict.fromkeys(name.split()[0] for name in names if not name.startswith(OURS)))


@cache
def _installed() -> frozenset[str]:
    """Those of `peer_names` that can be measured here."""
    problems = ((f, *rest) for f in FAMILIES for rest in product(f.operations(), f.types, f.forms("full")))
    return frozenset(name.split()[0] for family, *problem in problems for name in family.libraries(*problem))


def _in_full(size: str) -> str:
    """A length without the suffix k or M."""
    if match := re.fullmatch(r"(\d+)([kM])", size):
        return str(int(match[1]) * {"k": 10**3, "M": 10**6}[match[2]])
    return size


def set_threads() -> None:
    """Give the libraries that have a number of threads of their own as many as this package takes."""
    if peers.available("torch"):
        import torch

        torch.set_num_threads(fastrelu.get_num_threads())


def limit(problem: Problem, seconds: float) -> tuple[Call, float] | None:
    """What the machine can do at best: a call to be timed in turns with the others, and how much it does.

    None for a unit that has no limit. `seconds`: how long ways of copying are compared.
    """
    from fastrelu.fma import multiply_adds
    from fastrelu.measure import fastest_copy

    if problem.unit == GIGAFLOPS:
        return multiply_adds("float64" if problem.dtype == "float64" else "float32")
    if problem.unit == GIGABYTES:
        return fastest_copy(int(problem.amount), seconds), problem.amount
    return None
