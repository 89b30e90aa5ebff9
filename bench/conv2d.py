"""Convolutions beside their peers: ``python -m bench.conv2d`` measures the layers of
`fastrelu.benchmarks.convolutions`, forward and backward, and writes conv2d.json and a table into the README. ``--shapes FILE``
measures other layers and prints.

Every ratio comes from calls timed in turns in one process, the limit (multiply-adds of all cores) among them. Run it on a
machine that does nothing else. Losses are written down like everything else.
"""

from __future__ import annotations

import argparse
import datetime
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.table import Point, geometric_mean, machine, markdown, publish, save
from fastrelu import measure
from fastrelu.benchmarks.convolutions import LAYERS, describe, read
from fastrelu.convolution_peers import BACKWARD, FORWARD, Convolution, Maker, installed
from fastrelu.fma import multiply_adds

SECONDS, TURN = 0.5, 20e-3
"""What the measurement of one layer may take unless its calls are long, and how long a turn is at least."""

Times = list[dict[str, float]]


def time(layer: Convolution, makers: Mapping[str, Maker], products: int) -> dict[str, float]:
    """Seconds that the layer takes for each of `makers`, and those of its operations at the limit."""
    calls = {name: makers[name](layer) for name in installed(makers)}
    limit, operations = multiply_adds()
    timings = measure.compare({**calls, "limit": limit}, SECONDS, turns=2, turn=TURN)
    seconds = {name: timings[name].minimum for name in calls}
    seconds["limit"] = timings["limit"].minimum * products * layer.operations / operations
    gc.collect()
    return seconds


def time_all(layers: Sequence[Convolution], makers: Mapping[str, Maker], products: int) -> Times:
    """Times of all layers, each printed."""
    names = installed(makers)
    print(f"{'us':>10} {'GFLOP/s':>8} {'of limit':>8}  {'  '.join(names[1:])}")
    times = []
    for layer in layers:
        seconds = time(layer, makers, products)
        times.append(seconds)
        own = seconds["fastrelu"]
        ratios = "  ".join(f"{seconds[name] / own:{len(name)}.2f}" for name in names[1:])
        speed = products * layer.operations / own / 1e9
        print(f"{own * 1e6:10.1f} {speed:8.1f} {seconds['limit'] / own:8.1%}  {ratios}  {describe(layer)}", flush=True)
    return times


def points_of(times: Times, kind: str) -> Iterator[Point]:
    """The summary of the layers' times."""
    peers = [name for name in times[0] if name not in ("fastrelu", "limit")]
    if peers:
        leads = [min(seconds[name] for name in peers) / seconds["fastrelu"] for seconds in times]
        ahead = sum(value >= 1 for value in leads) / len(leads)
        yield Point(f"{kind}, layers at least as fast as the fastest peer", {"": ahead}, 0.8, unit="%")
        yield Point(f"{kind}, slowest layer: times the speed of the fastest peer", {"": min(leads)}, 1.0)
    for name in peers:
        mean = geometric_mean([seconds[name] / seconds["fastrelu"] for seconds in times])
        yield Point(
            f"{kind}, geometric mean over the layers: times {name}'s speed", {"": mean}, 1.5 if name == "torch" else 1.0
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.conv2d", description="Measure convolutions beside their peers.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shapes", type=Path, metavar="FILE", help="measure the layers of a JSON file and print alone")
    what.add_argument("--render", action="store_true", help="write the README from conv2d.json without measuring")
    arguments = parser.parse_args()
    layers = read(arguments.shapes) if arguments.shapes else LAYERS
    if not arguments.render:
        points, measured = [], {}
        for kind, makers, products in (("forward", FORWARD, 1), ("backward", BACKWARD, 2)):
            print(kind)
            times = measured[kind] = time_all(layers, makers, products)
            points += points_of(times, kind)
        if arguments.shapes:
            print(markdown(datetime.date.today().isoformat(), machine(), points))
            return
        save(
            "conv2d",
            points,
            layers=[{**vars(layer), **{kind: times[i] for kind, times in measured.items()}} for i, layer in enumerate(layers)],
        )
    publish("conv2d")


if __name__ == "__main__":
    main()
