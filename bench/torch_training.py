"""Steps of training in PyTorch with `fastrelu.torch.replace_linear_relu` and without: ``python -m bench.torch_training``
measures them and writes torch_training.json and a table into the README.

Both sides run the same loop with PyTorch's own optimizer and loss, timed in turns in one process. Beside the ratios stands what
they could be at most: if all products ran at the processor's limit of multiply-adds and only the optimizer took time besides.
"""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import fastrelu
from bench.table import Point, command
from fastrelu import fma, measure
from fastrelu.torch import replace_linear_relu

SECONDS, TURN = 2.0, 50e-3
NETWORKS = {"784-256-128-10": (784, 256, 128, 10), "4 layers 1024 wide": (1024,) * 5}
BATCHES = (64, 256)
OPTIMIZERS: dict[str, Callable[..., Any]] = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}
TARGET = 1.8

WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch": lambda model: model,
    "fastrelu": replace_linear_relu,
    "every linear": lambda model: replace_linear_relu(model, every_linear=True),
}


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    """`Linear` layers with a ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def step(model: nn.Module, optimizer: Any, batch: int, sizes: tuple[int, ...]) -> measure.Call:
    """A step of training."""
    x, labels, loss = torch.randn(batch, sizes[0]), torch.randint(0, sizes[-1], (batch,)), nn.CrossEntropyLoss()

    def call() -> None:
        optimizer.zero_grad()
        loss(model(x), labels).backward()
        optimizer.step()

    return call


def operations(batch: int, sizes: tuple[int, ...]) -> int:
    """Multiply-adds and their additions of a step, twice each; nobody wants the gradient of the first layer's input."""
    products = [inputs * outputs for inputs, outputs in itertools.pairwise(sizes)]
    return 2 * batch * (3 * sum(products) - products[0])


def points() -> Iterator[Point]:
    """The rows of the table."""
    times: dict[str, dict[str, float]] = {}
    highest = {}
    multiply_adds, count = fma.multiply_adds("float32")
    for name, sizes in NETWORKS.items():
        for batch in BATCHES:
            for of, make in OPTIMIZERS.items():
                torch.manual_seed(0)
                model, calls = network(sizes), {}
                for way, change in WAYS.items():
                    changed = change(copy.deepcopy(model))
                    calls[way] = step(changed, make(changed.parameters(), 1e-3), batch, sizes)
                optimizer = make(model.parameters(), 1e-3)
                step(model, optimizer, batch, sizes)()
                calls |= {"optimizer": optimizer.step, "multiply-adds": multiply_adds}
                case = f"{name}, {batch}, {of}"
                times[case] = {way: timing.minimum for way, timing in measure.compare(calls, SECONDS, turn=TURN).items()}
                least = operations(batch, sizes) * times[case]["multiply-adds"] / count + times[case]["optimizer"]
                highest[case] = times[case]["torch"] / least
                gc.collect()
    for title, way in (("", "fastrelu"), (", every_linear=True", "every linear")):
        ratios = {case: seconds["torch"] / seconds[way] for case, seconds in times.items()}
        yield Point(
            f"step of training, replace_linear_relu(model{title}): times torch eager's speed", ratios, TARGET, details=times
        )
    yield Point("the same, the most that the processor's multiply-adds allow", highest, TARGET)


if __name__ == "__main__":
    torch.set_num_threads(fastrelu.get_num_threads())
    command("torch_training", "steps of training in PyTorch", points)
