"""What the target tables of real layers share: times beside the peers, printed lines, the plot, the command."""

from __future__ import annotations

import argparse
import datetime
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.table import BENCH, Point, machine, markdown, publish, save
from fastrelu import measure
from fastrelu.benchmarks.layers import LAYERS, Layer, read
from fastrelu.fma import multiply_adds

# Long enough for systems that wake a thread on a busy processor to move it to another.
TURN = 20e-3
SECONDS = 0.3
"""What the measurement of one layer may take, unless its calls are long."""

LARGE = [Layer("", 512, 512, 512), Layer("", 768, 1024, 640), Layer("", 1024, 1024, 1024), Layer("", 2048, 2048, 2048)]
"""Products that only arithmetic limits."""

Times = list[dict[str, float]]
Groups = Iterable[Callable[[], Iterator[Point]]]


def sizes(layer: Layer) -> str:
    """The name of a layer in the table."""
    return f"{layer.m} x {layer.k} x {layer.n}"


@dataclass(frozen=True)
class LayerSuite:
    """A calculation on real layers, and all who do it.

    Attributes
    ----------
    name : str
        The module, after which its files and its table in the README are called.
    function : str
        The public function of `fastrelu`.
    subject : str
        What the command measures.
    makers : mapping of str to callable
        For each name a function of the operands that makes the call to be timed. "fastrelu" is the first.
    operands : callable
        A function (m, k, n, dtype).
    installed : callable
        Without arguments: those of the names that can be measured here.
    least_rows : int
        Layers with fewer are left out.
    products : int
        How many times the operations of the layer's product are counted.
    title : str
        Of the plot.
    markers : mapping of str to str
        The names in the plot, and Matplotlib's markers for them.
    """

    name: str
    function: str
    subject: str
    makers: Mapping[str, Callable[..., measure.Call]]
    operands: Callable[[int, int, int, str], tuple[np.ndarray, ...]]
    installed: Callable[[], list[str]]
    least_rows: int
    products: int
    title: str
    markers: Mapping[str, str]

    @property
    def layers(self) -> list[Layer]:
        """The layers that the module measures."""
        return self.chosen(LAYERS)

    def chosen(self, layers: Iterable[Layer]) -> list[Layer]:
        """Those with enough rows."""
        return [layer for layer in layers if layer.m >= self.least_rows]

    def operations(self, layer: Layer) -> int:
        """Floating-point operations of a call."""
        return self.products * layer.operations

    def time(self, layer: Layer, names: Iterable[str], dtype: str = "float32", turns: int = 2) -> dict[str, float]:
        """Seconds that the layer takes in each of `names`, and the seconds that its operations take at the limit."""
        operands = self.operands(layer.m, layer.k, layer.n, dtype)
        calls = {name: self.makers[name](*operands) for name in names}
        limit, operations = multiply_adds(dtype)
        timings = measure.compare({**calls, "limit": limit}, SECONDS, turns, TURN)
        seconds = {name: timings[name].minimum for name in calls}
        seconds["limit"] = timings["limit"].minimum * self.operations(layer) / operations
        gc.collect()
        return seconds

    def time_all(self, layers: Sequence[Layer]) -> Times:
        """Times of all layers, each printed."""
        names = self.installed()
        times = []
        print(f"{'m':>6} {'k':>6} {'n':>6} {'us':>9} {'GFLOP/s':>8} {'of limit':>8}  {'  '.join(names[1:])}")
        for layer in layers:
            seconds = self.time(layer, names)
            times.append(seconds)
            own = seconds["fastrelu"]
            ratios = "  ".join(f"{seconds[name] / own:{len(name)}.2f}" for name in names[1:])
            share, speed = seconds["limit"] / own, self.operations(layer) / own / 1e9
            print(
                f"{layer.m:6} {layer.k:6} {layer.n:6} {own * 1e6:9.1f} {speed:8.1f} {share:8.1%}  {ratios}  {layer.model}",
                flush=True,
            )
        return times

    def plot(self, layers: Sequence[Layer], times: Times, path: Path) -> None:
        """GFLOP/s of each layer against its operations, beside the limit."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
        operations = [self.operations(layer) for layer in layers]

        def speeds(name: str) -> list[float]:
            return [count / seconds[name] / 1e9 for count, seconds in zip(operations, times, strict=True)]

        for name, marker in self.markers.items():
            if name in times[0]:
                axes.plot(operations, speeds(name), marker, label=name, alpha=0.8)
        axes.axhline(max(speeds("limit")), color="black", linewidth=1, label="multiply-add limit")
        axes.set(xscale="log", yscale="log", xlabel="operations of the layer", ylabel="GFLOP/s", title=self.title)
        axes.legend()
        figure.savefig(path, dpi=110)
        plt.close(figure)

    def command(self, groups: Groups, points_of: Callable[[Times], Iterator[Point]]) -> None:
        """Run the command of the module.

        Parameters
        ----------
        groups : iterable of callable
            What measures the points that are no summary of the layers.
        points_of : callable
            The summary of the layers' times.
        """
        parser = argparse.ArgumentParser(
            prog=f"python -m bench.{self.name}", description=f"Measure {self.subject} beside its peers."
        )
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--shapes", type=Path, metavar="FILE", help="measure the layers of a JSON file and print alone")
        render = f"write the README from {self.name}.json without measuring"
        what.add_argument("--render", action="store_true", help=render)
        parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw the layers of --shapes")
        arguments = parser.parse_args()
        if arguments.plot and not arguments.shapes:
            parser.error("--plot is for the layers of --shapes")

        if arguments.shapes:
            chosen = self.chosen(read(arguments.shapes))
            times = self.time_all(chosen)
            print(markdown(datetime.date.today().isoformat(), machine(), list(points_of(times))))
            if arguments.plot:
                self.plot(chosen, times, arguments.plot)
            return
        if not arguments.render:
            points = [point for group in groups for point in group()]
            times = self.time_all(self.layers)
            points += points_of(times)
            self.plot(self.layers, times, BENCH / f"{self.name}.png")
            layers = [{**vars(layer), "seconds": seconds} for layer, seconds in zip(self.layers, times, strict=True)]
            save(self.name, points, layers=layers)
        publish(self.name)
