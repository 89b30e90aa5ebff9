"""The backward pass of the fused layer beside its peers: ``python -m bench.linear_backward`` measures the layers of
`fastrelu.benchmarks.layers` with batches and the points of the target table, and writes linear_backward.json, a plot, and a
table into the README. ``--shapes FILE`` measures other layers and prints.

Every ratio comes from calls timed in turns in one process, the limit (multiply-adds of all cores) among them. Run it on a
machine that does nothing else. Losses are written down like everything else.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import numpy as np
from numpy.testing import assert_allclose

from bench.layer_suite import LARGE, TURN, LayerSuite, Times, sizes
from bench.table import Point, geometric_mean, in_new_process
from fastrelu import gradient_peers, measure
from fastrelu.benchmarks.layers import Layer

SUITE = LayerSuite(
    name="linear_backward",
    function="linear_relu_backward",
    subject="the backward pass of the fused layer",
    makers=gradient_peers.GRADIENTS,
    operands=gradient_peers.operands,
    installed=gradient_peers.installed,
    least_rows=16,  # nobody trains on fewer
    products=2,
    title="backward pass of relu(x @ w.T + b): dx, dw and db, float32",
    markers={"numpy": "x", "torch": "+", "torch autograd": "1", "jax": "2", "fastrelu": "o", "fastrelu mask": "."},
)

USUAL = [
    Layer("", 64, 784, 256),
    Layer("", 256, 784, 256),
    Layer("", 128, 512, 512),
    Layer("", 8192, 256, 256),
    Layer("", 65536, 64, 64),
]
OURS = ("fastrelu", "fastrelu mask")
BATCHES = (64, 1024)
RATE = 1e-3
"""Small: the steps that are timed, thousands on one batch, should not end where all gradients are 0."""


def lead(seconds: dict[str, float]) -> float:
    """How many times as long the fastest peer takes."""
    rivals = [taken for name, taken in seconds.items() if name not in (*OURS, "limit")]
    return min(rivals, default=math.nan) / seconds["fastrelu"]


def points_of(times: Times) -> Iterator[Point]:
    """The summary of the layers' times."""
    ahead = sum(lead(seconds) >= 1 for seconds in times) / len(times)
    yield Point("layers at least as fast as the fastest peer", {"": ahead}, 0.95, unit="%")
    for peer, target in (("torch autograd", 2.2), ("jax", 1.3)):
        mean = geometric_mean([seconds.get(peer, math.nan) / seconds["fastrelu"] for seconds in times])
        yield Point(f"geometric mean over the layers: times {peer}'s speed", {"": mean}, target)


def large() -> Iterator[Point]:
    """Products that only arithmetic limits."""
    times = {sizes(layer): SUITE.time(layer, ["fastrelu"], turns=8) for layer in LARGE}
    shares = {key: seconds["limit"] / seconds["fastrelu"] for key, seconds in times.items()}
    yield Point("m x k x n, share of the multiply-add limit", shares, 0.93, unit="%", details=times)


def usual() -> Iterator[Point]:
    """Layers of small networks, and of long batches."""
    times = {sizes(layer): SUITE.time(layer, SUITE.installed(), turns=5) for layer in USUAL}
    leads = {key: lead(seconds) for key, seconds in times.items()}
    yield Point("m x k x n, times the fastest peer's speed", leads, 1.2, details=times)
    ratios = {key: seconds.get("torch autograd", math.nan) / seconds["fastrelu"] for key, seconds in times.items()}
    yield Point("m x k x n, times torch autograd's speed", ratios, 2.0)


def _step(name: str, rows: int, rate: float) -> tuple[measure.Call, gradient_peers.Parameters]:
    """A step on its own copy of the parameters."""
    parameters = gradient_peers.parameters()
    return gradient_peers.STEPS[name](*gradient_peers.batch(rows), parameters, rate), parameters


def check_steps(rows: int) -> None:
    """See that some training steps lead everyone to the same parameters."""
    reached = {}
    for name in gradient_peers.installed(gradient_peers.STEPS):
        step, parameters = _step(name, rows, 0.1)
        for _ in range(3):
            step()
        reached[name] = [a for own in parameters for a in own]
    for name, arrays in reached.items():
        for mine, theirs, start in zip(reached["numpy"], arrays, sum(gradient_peers.parameters(), ()), strict=True):
            change = mine - start
            assert_allclose(theirs - start, change, rtol=1e-3, atol=1e-4 * np.abs(change).max(), err_msg=name)


def training() -> Iterator[Point]:
    """A training step of 784-256-128-10: forward, cross-entropy, backward, descent."""
    times = {}
    for rows in BATCHES:
        check_steps(rows)
        calls = {name: _step(name, rows, RATE)[0] for name in gradient_peers.installed(gradient_peers.STEPS)}
        timings = measure.compare(calls, 2.0, turns=5, turn=TURN)
        times[f"batch {rows}"] = {name: timing.minimum for name, timing in timings.items()}
    for peer, target in (("numpy", 2.0), ("torch", 1.5)):
        ratios = {key: seconds.get(peer, math.nan) / seconds["fastrelu"] for key, seconds in times.items()}
        details = times if peer == "numpy" else None
        yield Point(f"training step of 784-256-128-10: times {peer}'s speed", ratios, target, details=details)
    ratios = {key: seconds.get("torch", math.nan) / seconds["fastrelu nn"] for key, seconds in times.items()}
    yield Point("the same with fastrelu.nn: times torch's speed", ratios, 1.5)


# Operands and results come from NumPy alone, filled in place. The call before, which loads the code, is made by a thread of its
# own on one thread, with whose end its memory for packing is free again. Not ru_maxrss: it starts from the peak of the process
# that started this one.
_MEMORY = """
import threading
import numpy as np
import fastrelu

def memory(kind):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(kind)) * 1024

def backward(m, k, n):
    rng = np.random.default_rng(0)
    dy, y, x, w = (np.empty(shape, np.float32) for shape in ((m, n), (m, n), (m, k), (k, n)))
    for array in (dy, y, x, w):
        rng.standard_normal(out=array, dtype=np.float32)
    out = np.zeros_like(x), np.zeros_like(w), np.zeros(n, np.float32)
    for array in out:
        array.fill(0)  # the memory of zeros is not there before it is written
    before = memory("VmRSS:")
    fastrelu.linear_relu_backward(dy, np.maximum(y, 0, out=y), x, w, out=out)
    return memory("VmHWM:") - before

def first():
    with fastrelu.num_threads(1):
        backward(64, 64, 64)

thread = threading.Thread(target=first)
thread.start()
thread.join()
print(backward(8192, 4096, 4096) / 1e6)
"""


def memory() -> Iterator[Point]:
    """What a call takes beside its operands and results."""
    if sys.platform == "linux":
        value = {"8192 x 4096 x 4096": in_new_process(_MEMORY)}
        yield Point("peak memory beyond operands and results", value, 16.0, True, "MB")


if __name__ == "__main__":
    SUITE.command((large, usual, training, memory), points_of)
