"""The fused layer beside its peers: ``python -m bench.linear`` measures the layers of `fastrelu.benchmarks.layers`
and the points of the target table, and writes linear.json, a plot, and a table into the README. ``--shapes FILE`` measures
other layers and prints.

Every ratio comes from calls timed in turns in one process, the limits (multiply-adds of all cores, memory) among them. Run it
on a machine that does nothing else. Losses are written down like everything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

import fastrelu
from bench.layer_suite import LARGE, SECONDS, TURN, LayerSuite, Times, sizes
from bench.table import Point, geometric_mean
from fastrelu import layer_peers, measure
from fastrelu.benchmarks.layers import Layer

SUITE = LayerSuite(
    name="linear",
    function="linear_relu",
    subject="the fused layer",
    makers=layer_peers.LAYERS,
    operands=layer_peers.operands,
    installed=layer_peers.installed,
    least_rows=1,
    products=1,
    title="relu(x @ w.T + b), float32",
    markers={"numpy": "x", "torch": "+", "onednn": "1", "fastrelu": "o", "fastrelu packed": "."},
)
OURS = ("fastrelu", "fastrelu packed")


def lead(seconds: dict[str, float], ours: str) -> float:
    """How many times as long the fastest peer takes. The rivals of a plain call are those that take any weight."""
    others = [name for name in seconds if name not in (*OURS, "limit")]
    rivals = [name for name in others if ours == "fastrelu packed" or name in layer_peers.PLAIN]
    return min((seconds[name] for name in rivals), default=math.nan) / seconds[ours]


def points_of(times: Times) -> Iterator[Point]:
    """The summary of the layers' times."""
    for ours, rivals in (("fastrelu", "the fastest plain peer"), ("fastrelu packed", "the fastest of all peers")):
        leads = [lead(seconds, ours) for seconds in times]
        ahead = sum(value >= 1 for value in leads) / len(leads)
        text = "plain" if ours == "fastrelu" else "packed"
        yield Point(f"{text} call, layers at least as fast as {rivals}", {"": ahead}, 0.95, unit="%")
        yield Point(f"{text} call, slowest layer: times the speed of {rivals}", {"": min(leads)}, 0.9)
    targets = {"fastrelu": {"numpy": 2.2, "torch": 2.2, "onednn": 0.95}, "fastrelu packed": {"onednn": 1.15}}
    for ours, peers in targets.items():
        text = "plain" if ours == "fastrelu" else "packed"
        for peer, target in peers.items():
            if peer in times[0]:
                mean = geometric_mean([seconds[peer] / seconds[ours] for seconds in times])
                yield Point(f"{text} call, geometric mean over the layers: times {peer}'s speed", {"": mean}, target)


def large() -> Iterator[Point]:
    """Products that only arithmetic limits."""
    for dtype in ("float32", "float64"):
        times = {sizes(layer): SUITE.time(layer, [*OURS, "numpy"], dtype, turns=8) for layer in LARGE}
        for ours, target in (("fastrelu packed", 0.97), ("fastrelu", 0.93)):
            shares = {key: seconds["limit"] / seconds[ours] for key, seconds in times.items()}
            text = "packed" if ours == "fastrelu packed" else "plain"
            yield Point(f"{dtype}, {text}: share of the multiply-add limit", shares, target, unit="%", details=times)
        ratios = {key: seconds["numpy"] / seconds["fastrelu"] for key, seconds in times.items()}
        yield Point(f"{dtype}, plain: times numpy's speed", ratios, 2.0 if dtype == "float64" else 1.0)


def _row_major(x: np.ndarray, weight: np.ndarray, b: np.ndarray) -> dict[str, measure.Call]:
    """The calls on w with contiguous rows, (k, n)."""
    w, y = np.ascontiguousarray(weight.T), np.empty((len(x), len(weight)), x.dtype)
    return {
        "fastrelu, w (k, n)": lambda: fastrelu.linear_relu(x, w, b, out=y),
        "numpy, w (k, n)": lambda: np.maximum(np.add(np.matmul(x, w, out=y), b, out=y), 0, out=y),
    }


def one_row() -> Iterator[Point]:
    """Inference: the weight is read once."""
    names = layer_peers.installed()
    for k, n in ((4096, 4096), (784, 256)):
        x, weight, b = layer_peers.operands(1, k, n)
        calls = {name: layer_peers.LAYERS[name](x, weight, b) for name in names} | _row_major(x, weight, b)
        ways = measure.reads(weight)
        timings = measure.compare({**calls, **ways}, 2.0, turns=5, turn=TURN)
        seconds = {name: timings[name].minimum for name in calls}
        plain = min(seconds[name] for name in names if name in layer_peers.PLAIN)
        every = min(value for name, value in seconds.items() if not name.startswith("fastrelu"))
        values = {
            "w.T": plain / seconds["fastrelu"],
            "w": min(plain, seconds["numpy, w (k, n)"]) / seconds["fastrelu, w (k, n)"],
            "packed": every / seconds["fastrelu packed"],
        }
        yield Point(f"one row, w {k} x {n}: times the fastest peer's speed", values, 1.0, details={"": seconds})
        if k == 4096:
            limit = min(timings[way].minimum for way in ways)
            ours = {"w.T": "fastrelu", "w": "fastrelu, w (k, n)", "packed": "fastrelu packed"}
            shares = {key: limit / seconds[name] for key, name in ours.items()}
            yield Point("the same, share of the streaming read limit", shares, 0.9, unit="%")


def halves() -> Iterator[Point]:
    """float16, which NumPy multiplies one by one."""
    seconds = SUITE.time(Layer("", 512, 512, 512), ["fastrelu"])
    x, weight, b = layer_peers.operands(512, 512, 512, "float16")
    calls = {"fastrelu": layer_peers.LAYERS["fastrelu"](x, weight, b), "numpy": lambda: np.matmul(x, weight.T)}
    timings = measure.compare(calls, SECONDS, turns=2, turn=TURN)
    own = timings["fastrelu"].minimum
    yield Point("float16, 512 x 512 x 512: times np.matmul's speed", {"": timings["numpy"].minimum / own}, 100)
    yield Point("the same: part of our float32 speed", {"": seconds["fastrelu"] / own}, 0.8)


def short_call() -> Iterator[Point]:
    """The cost of a call."""
    seconds = SUITE.time(Layer("", 4, 3, 5), ["fastrelu", "numpy"])
    yield Point("4 x 3 x 5: part of numpy's time", {"": seconds["fastrelu"] / seconds["numpy"]}, 0.5, at_most=True)


if __name__ == "__main__":
    SUITE.command((short_call, large, one_row, halves), points_of)
