"""Exported networks beside ONNX Runtime: ``python -m bench.onnx_mlp`` measures them and writes onnx_mlp.json and a table into
the README.

ONNX Runtime has its default number of threads, which wait actively for more work, and once more threads that sleep instead
(``session.intra_op.allow_spinning`` off). Before each turn the threads of the one before have gone to sleep, so that none is
disturbed by the other; other rows tell what happens where calls follow each other one by one. Run it on a machine that does
nothing else. Losses are written down like everything else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime

import fastrelu.onnx
from bench.table import Point, command
from fastrelu import measure, nn
from fastrelu.examples import digits

# Of one case; systems that wake a thread on a busy processor move it to another within a turn.
SECONDS, TURN = 1.0, 20e-3

# Networks, the shape of what they read, and batches.
CASES: dict[str, tuple[Callable[[Any], nn.Sequential], tuple[int, ...], tuple[int, ...]]] = {
    "784-256-128-10": (digits.dense, (784,), (1, 256)),
    "digits convolutional": (digits.convolutional, (1, 28, 28), (1, 64)),
}
TARGET = 1.0


def session(model: Any, *, spins: bool) -> Any:
    """The model in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def measured(
    make: Callable[[Any], nn.Sequential], shape: tuple[int, ...], batches: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """Seconds of a call, by batch and library."""
    network = make(np.random.default_rng(0))
    if len(shape) == 1:
        network = nn.Sequential(*(layer for layer in network.layers if not isinstance(layer, nn.Flatten)))
    exported = fastrelu.onnx.export(network, input_shape=("N", *shape))
    model = fastrelu.onnx.load(exported)
    names = {"onnxruntime": True, "onnxruntime without spinning": False}
    sessions = {name: session(exported, spins=spins) for name, spins in names.items()}
    times = {}
    for batch in batches:
        x = np.random.default_rng(1).standard_normal((batch, *shape), dtype=np.float32)
        calls: dict[str, measure.Call] = {"fastrelu": lambda x=x: model(x)}  # type: ignore[misc]
        for name, one in sessions.items():
            calls[name] = lambda one=one, feed={"x": x}: one.run(None, feed)  # type: ignore[misc]
        timings = measure.compare(calls, SECONDS, turn=TURN)
        found = {name: timing.minimum for name, timing in timings.items()}
        first, second = one_by_one(calls["fastrelu"], calls["onnxruntime"])
        times[f"batch {batch}"] = {**found, "fastrelu, one by one": first, "onnxruntime, one by one": second}
    return times


def one_by_one(first: measure.Call, second: measure.Call) -> tuple[float, float]:
    """The least seconds of two calls that take turns without a pause: the threads of one still wait beside the other."""
    least = [math.inf, math.inf]
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for i, call in enumerate((first, second)):
            start = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - start)
    return least[0], least[1]


def points() -> Iterator[Point]:
    """The rows of the table."""
    for name, case in CASES.items():
        times = measured(*case)
        for peer, words in (("onnxruntime", ""), ("onnxruntime without spinning", " with threads that sleep")):
            ratios = {batch: seconds[peer] / seconds["fastrelu"] for batch, seconds in times.items()}
            yield Point(f"{name}: times the speed of ONNX Runtime{words}", ratios, TARGET, details=times)
        ratios = {batch: took["onnxruntime, one by one"] / took["fastrelu, one by one"] for batch, took in times.items()}
        yield Point(f"{name}: times the speed of ONNX Runtime, one call of each in turn", ratios, TARGET, details=times)


if __name__ == "__main__":
    command("onnx_mlp", "networks beside ONNX Runtime", points)
