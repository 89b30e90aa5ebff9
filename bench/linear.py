"""The fused layer beside its peers: ``python -m bench.linear`` measures the layers of `bench.layers` and the points of the
target table, and writes linear.json, a plot, and a table into the README. ``--shapes FILE`` measures other layers and prints.

Every ratio comes from calls timed in turns in one process, the limits (multiply-adds of all cores, memory) among them. Run it
on a machine that does nothing else. Losses are written down like everything else.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

import fastrelu
from bench.layers import LAYERS, Layer, read
from bench.table import README, ROOT, Point, geometric_mean, machine, markdown, write_readme
from fastrelu import layer_peers, measure
from fastrelu.fma import multiply_adds

RESULTS, PLOT = ROOT / "bench" / "linear.json", ROOT / "bench" / "linear.png"
BEGIN, END = "<!-- linear table: begin -->", "<!-- linear table: end -->"

# Long enough for systems that wake a thread on a busy processor to move it to another.
TURN = 20e-3
SECONDS = 0.3
"""What the measurement of one layer may take, unless its calls are long."""

LARGE = [Layer("", 512, 512, 512), Layer("", 768, 1024, 640), Layer("", 1024, 1024, 1024), Layer("", 2048, 2048, 2048)]
OURS = ("fastrelu", "fastrelu packed")


def time_layer(layer: Layer, names: Iterable[str], dtype: str = "float32", turns: int = 2) -> dict[str, float]:
    """Seconds that the layer takes in each of `names`, and the seconds that its operations take at the limit."""
    operands = layer_peers.operands(layer.m, layer.k, layer.n, dtype)
    calls = {name: layer_peers.LAYERS[name](*operands) for name in names}
    limit, operations = multiply_adds(dtype)
    timings = measure.compare({**calls, "limit": limit}, SECONDS, turns, TURN)
    seconds = {name: timings[name].minimum for name in calls}
    seconds["limit"] = timings["limit"].minimum * layer.operations / operations
    gc.collect()
    return seconds


def lead(seconds: dict[str, float], ours: str) -> float:
    """How many times as long the fastest peer takes. The rivals of a plain call are those that take any weight."""
    others = [name for name in seconds if name not in (*OURS, "limit")]
    rivals = [name for name in others if ours == "fastrelu packed" or name in layer_peers.PLAIN]
    return min((seconds[name] for name in rivals), default=math.nan) / seconds[ours]


def layers(chosen: list[Layer]) -> tuple[list[dict[str, float]], list[Point]]:
    """Times of all layers, each printed, and the points that are made of them."""
    names = layer_peers.installed()
    times = []
    print(f"{'m':>6} {'k':>6} {'n':>6} {'us':>9} {'GFLOP/s':>8} {'of limit':>8}  {'  '.join(names[1:])}")
    for layer in chosen:
        seconds = time_layer(layer, names)
        times.append(seconds)
        own = seconds["fastrelu"]
        ratios = "  ".join(f"{seconds[name] / own:{len(name)}.2f}" for name in names[1:])
        share = seconds["limit"] / own
        sizes = f"{layer.m:6} {layer.k:6} {layer.n:6}"
        print(f"{sizes} {own * 1e6:9.1f} {layer.operations / own / 1e9:8.1f} {share:8.1%}  {ratios}  {layer.model}", flush=True)
    return times, list(_points_of(times, names))


def _points_of(times: list[dict[str, float]], names: list[str]) -> Iterator[Point]:
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
            if peer in names:
                mean = geometric_mean([seconds[peer] / seconds[ours] for seconds in times])
                yield Point(f"{text} call, geometric mean over the layers: times {peer}'s speed", {"": mean}, target)


def large() -> Iterator[Point]:
    """Products that only arithmetic limits."""
    for dtype in ("float32", "float64"):
        times = {f"{s.m} x {s.k} x {s.n}": time_layer(s, [*OURS, "numpy"], dtype, turns=8) for s in LARGE}
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
    seconds = time_layer(Layer("", 512, 512, 512), ["fastrelu"])
    x, weight, b = layer_peers.operands(512, 512, 512, "float16")
    calls = {"fastrelu": layer_peers.LAYERS["fastrelu"](x, weight, b), "numpy": lambda: np.matmul(x, weight.T)}
    timings = measure.compare(calls, SECONDS, turns=2, turn=TURN)
    own = timings["fastrelu"].minimum
    yield Point("float16, 512 x 512 x 512: times np.matmul's speed", {"": timings["numpy"].minimum / own}, 100)
    yield Point("the same: part of our float32 speed", {"": seconds["fastrelu"] / own}, 0.8)


def short_call() -> Iterator[Point]:
    """The cost of a call."""
    seconds = time_layer(Layer("", 4, 3, 5), ["fastrelu", "numpy"])
    yield Point("4 x 3 x 5: part of numpy's time", {"": seconds["fastrelu"] / seconds["numpy"]}, 0.5, at_most=True)


def plot(chosen: list[Layer], times: list[dict[str, float]], path: Path) -> None:
    """GFLOP/s of each layer against its operations, beside the limit."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    operations = [layer.operations for layer in chosen]
    for name, marker in (("numpy", "x"), ("torch", "+"), ("onednn", "1"), ("fastrelu", "o"), ("fastrelu packed", ".")):
        if name in times[0]:
            speeds = [layer.operations / seconds[name] / 1e9 for layer, seconds in zip(chosen, times, strict=True)]
            axes.plot(operations, speeds, marker, label=name, alpha=0.8)
    limit = max(layer.operations / seconds["limit"] for layer, seconds in zip(chosen, times, strict=True)) / 1e9
    axes.axhline(limit, color="black", linewidth=1, label="multiply-add limit")
    axes.set(xscale="log", yscale="log", xlabel="operations of the layer", ylabel="GFLOP/s", title="relu(x @ w.T + b), float32")
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.linear", description="Measure the fused layer beside its peers.")
    parser.add_argument("--shapes", type=Path, metavar="FILE", help="measure the layers of a JSON file and print alone")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw the layers of --shapes")
    parser.add_argument("--render", action="store_true", help="write the README from linear.json without measuring")
    arguments = parser.parse_args()

    if arguments.shapes:
        chosen = read(arguments.shapes)
        times, points = layers(chosen)
        print(markdown(datetime.date.today().isoformat(), machine(), points))
        if arguments.plot:
            plot(chosen, times, arguments.plot)
        return
    if not arguments.render:
        points = [point for group in (short_call, large, one_row, halves) for point in group()]
        times, more = layers(LAYERS)
        points += more
        plot(LAYERS, times, PLOT)
        results = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "points": [vars(point) for point in points],
            "layers": [{**vars(layer), "seconds": seconds} for layer, seconds in zip(LAYERS, times, strict=True)],
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    table = markdown(results["date"], results["machine"], [Point(**point) for point in results["points"]])
    print(table)
    if not write_readme(table, BEGIN, END):
        print(f"not written, it lacks the markers: {README}")


if __name__ == "__main__":
    main()
