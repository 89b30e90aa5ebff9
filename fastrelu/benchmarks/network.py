"""Pooling, embeddings, the loss and steps of training, as this package and PyTorch calculate them, at real sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastrelu
from fastrelu import measure, nn
from fastrelu.examples import cifar10, digits
from fastrelu.peers import available

Calls = dict[str, measure.Call]

# Images, window, step and padding: LeNet on a batch, VGG 16, ResNet 50, GoogLeNet.
POOLING = [
    ((64, 6, 28, 28), 2, 2, 0),
    ((8, 64, 224, 224), 2, 2, 0),
    ((8, 64, 112, 112), 3, 2, 1),
    ((8, 192, 28, 28), 3, 1, 1),
]
# Rows and columns of the table, bags, ids in a bag: words of texts, items of users, tokens of long texts.
EMBEDDINGS = [(20_000, 64, 64, 30), (100_000, 128, 512, 50), (1_000_000, 64, 2048, 32)]
# Rows and classes: MNIST, CIFAR-100, ImageNet, a language model.
LOSSES = [(64, 10), (1024, 100), (256, 1000), (64, 50_257)]
# Networks of the examples, with the shape of what they read, and images of a step.
NETWORKS: dict[str, tuple[Callable[[np.random.Generator], nn.Sequential], tuple[int, ...]]] = {
    "digits 784-256-128-10": (digits.dense, (1, 28, 28)),
    "digits convolutional": (digits.convolutional, (1, 28, 28)),
    "cifar10": (cifar10.network, (3, 32, 32)),
}
STEPS = [(name, batch) for name in NETWORKS for batch in (64, 256)]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _with_grad(torch: Any, forward: Callable[[Any], Any], x: np.ndarray, dy: Any = None) -> measure.Call:
    """Both passes by autograd."""
    operand = torch.from_numpy(x.copy()).requires_grad_()

    def call() -> Any:
        operand.grad = None
        forward(operand).backward(dy)
        return operand.grad

    return call


def max_pool2d(shape: tuple[int, ...], window: int, step: int, padding: int) -> Calls:
    x = normal(*shape)
    calls: Calls = {"fastrelu": lambda: fastrelu.max_pool2d(x, window, step, padding)}
    if available("torch"):
        import torch

        of_torch = torch.from_numpy(x)
        calls["torch"] = lambda: torch.nn.functional.max_pool2d(of_torch, window, step, padding)
    return calls


def max_pool2d_backward(shape: tuple[int, ...], window: int, step: int, padding: int) -> Calls:
    """With the forward pass, which finds the places."""
    x = normal(*shape)
    dy = normal(*fastrelu.max_pool2d(x, window, step, padding).shape)

    def both() -> Any:
        indices = fastrelu.max_pool2d(x, window, step, padding, return_indices=True)[1]
        return fastrelu.max_pool2d_backward(dy, indices, shape)

    calls: Calls = {"fastrelu": both}
    if available("torch"):
        import torch

        pool = torch.nn.functional.max_pool2d
        calls["torch"] = _with_grad(torch, lambda x: pool(x, window, step, padding), x, torch.from_numpy(dy))
    return calls


def embedding_mean(rows: int, d: int, bags: int, length: int) -> Calls:
    table, ids = normal(rows, d), np.random.default_rng(1).integers(0, rows, (bags, length))
    calls: Calls = {"fastrelu": lambda: fastrelu.embedding_mean(ids, table)}
    if available("torch"):
        import torch

        of_torch = torch.from_numpy(ids), torch.from_numpy(table)
        calls["torch"] = lambda: torch.nn.functional.embedding_bag(*of_torch, mode="mean")
    return calls


def embedding_mean_backward(rows: int, d: int, bags: int, length: int) -> Calls:
    """With the forward pass; the gradient of the whole table."""
    table, ids, dy = normal(rows, d), np.random.default_rng(1).integers(0, rows, (bags, length)), normal(bags, d)

    def both() -> Any:
        fastrelu.embedding_mean(ids, table)
        return fastrelu.embedding_mean_backward(dy, ids, rows)

    calls: Calls = {"fastrelu": both}
    if available("torch"):
        import torch

        of_torch, bag = torch.from_numpy(ids), torch.nn.functional.embedding_bag
        calls["torch"] = _with_grad(torch, lambda table: bag(of_torch, table, mode="mean"), table, torch.from_numpy(dy))
    return calls


def softmax_cross_entropy(rows: int, classes: int) -> Calls:
    """The loss and its gradient."""
    logits, labels = normal(rows, classes), np.random.default_rng(1).integers(0, classes, rows)
    calls: Calls = {"fastrelu": lambda: fastrelu.softmax_cross_entropy(logits, labels)}
    if available("torch"):
        import torch

        of_torch = torch.from_numpy(labels)
        calls["torch"] = _with_grad(torch, lambda z: torch.nn.functional.cross_entropy(z, of_torch), logits)
    return calls


def training_step(name: str, batch: int) -> Calls:
    """A step of Adam on a network of the examples."""
    make, shape = NETWORKS[name]
    model = make(np.random.default_rng(0))
    x, labels = normal(batch, *shape), np.random.default_rng(1).integers(0, 10, batch)
    optimizer = nn.Adam(lr=1e-3)

    def step() -> None:
        _, dy = fastrelu.softmax_cross_entropy(model.forward(x), labels)
        model.backward(dy, wants_dx=False)
        optimizer.step(model.parameters, model.gradients)

    calls: Calls = {"fastrelu": step}
    if available("torch"):
        import torch

        of_torch = _as_torch(torch, model)
        adam, loss = torch.optim.Adam(of_torch.parameters(), lr=1e-3), torch.nn.CrossEntropyLoss()
        images, targets = torch.from_numpy(x), torch.from_numpy(labels)

        def torch_step() -> None:
            adam.zero_grad()
            loss(of_torch(images), targets).backward()
            adam.step()

        calls["torch"] = torch_step
    return calls


def _as_torch(torch: Any, model: nn.Sequential) -> Any:
    """The same network."""
    of = torch.nn
    makers: dict[type, Callable[[Any], Any]] = {
        nn.Linear: lambda layer: of.Linear(*layer.parameters["weight"].shape),
        nn.Conv2d: lambda layer: of.Conv2d(*layer.parameters["weight"].shape[1::-1], 3, padding=1),
        nn.ReLU: lambda layer: of.ReLU(),
        nn.MaxPool2d: lambda layer: of.MaxPool2d(2),
        nn.Flatten: lambda layer: of.Flatten(),
    }
    return of.Sequential(*(makers[type(layer)](layer) for layer in model.layers))


def _pooled_bytes(shape: tuple[int, ...], window: int, step: int, padding: int) -> float:
    places = [(side + 2 * padding - window) // step + 1 for side in shape[2:]]
    return 4 * (math.prod(shape) + math.prod((*shape[:2], *places)))


def _pooled_back_bytes(shape: tuple[int, ...], window: int, step: int, padding: int) -> float:
    """Twice the images and the places, and the indices, which are written and read."""
    forward = _pooled_bytes(shape, window, step, padding)
    return 2 * forward + 2 * 8 * (forward / 4 - math.prod(shape))


def _embedded_bytes(rows: int, d: int, bags: int, length: int) -> float:
    return 4 * bags * length * d + 8 * bags * length + 4 * bags * d


def _embedded_back_bytes(rows: int, d: int, bags: int, length: int) -> float:
    return _embedded_bytes(rows, d, bags, length) + 8 * bags * length + 4 * (bags + rows) * d


@dataclass(frozen=True)
class Operation:
    """An operation, and what a run of it needs.

    Attributes
    ----------
    calls : callable
        What makes the calls of all libraries on the operands of a case, given its numbers.
    cases : list of tuple
        Its sizes.
    amount : callable
        What a call does, given the same numbers: bytes with each array counted once, or another number.
    unit : str
        The unit of that in a second.
    peers : tuple of str
        The libraries beside this package that `calls` has where they are installed.

    Examples
    --------
    >>> from fastrelu.benchmarks.network import OPERATIONS
    >>> OPERATIONS["softmax_cross_entropy"].amount(64, 10)  # the logits and their gradient
    5120
    """

    calls: Callable[..., Calls]
    cases: list[Any]
    amount: Callable[..., float]
    unit: str = "GB/s"
    peers: tuple[str, ...] = ("torch",)


OPERATIONS = {
    "max_pool2d": Operation(max_pool2d, POOLING, _pooled_bytes),
    "max_pool2d_backward": Operation(max_pool2d_backward, POOLING, _pooled_back_bytes),
    "embedding_mean": Operation(embedding_mean, EMBEDDINGS, _embedded_bytes),
    "embedding_mean_backward": Operation(embedding_mean_backward, EMBEDDINGS, _embedded_back_bytes),
    "softmax_cross_entropy": Operation(softmax_cross_entropy, LOSSES, lambda rows, classes: 8 * rows * classes),
    "training_step": Operation(training_step, STEPS, lambda name, batch: batch, "images/s"),
}


def named(case: tuple[Any, ...]) -> str:
    """What a case is called in the table."""
    if isinstance(case[0], str):
        return f"{case[0]}, {case[1]}"
    if isinstance(case[0], tuple):
        return f"{' x '.join(map(str, case[0]))}, {' '.join(map(str, case[1:]))}"
    return ", ".join(" x ".join(map(str, case[i : i + 2])) for i in range(0, len(case), 2))
