"""The table of targets: ``python -m bench.table`` measures every point and writes it to results.json and to the README.

Every ratio comes from calls timed in turns in one process (`fastrelu.measure`). Run it on a machine that does nothing else:
on a busy one the numbers say nothing. Losses are written down like everything else.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.callables import CASES
from fastrelu import measure
from fastrelu.benchmarks.tables import row
from fastrelu.report import facts, quantity

ROOT = Path(__file__).resolve().parent.parent
BENCH, README = ROOT / "bench", ROOT / "README.md"

ALL_SIZES = tuple(10**exponent for exponent in range(1, 9))
CACHED_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
LONGEST = 100_000_000
SECONDS = 2.0
"""What the measurement of one point may take, unless its calls are long."""


@dataclass
class Point:
    """A line of the table.

    Attributes
    ----------
    name : str
        What is measured.
    values : dict
        What came out, by array length or other condition; a single one has the name "".
    target : float
        What each value has to reach.
    at_most : bool
        Whether it is an upper bound.
    unit : str
        "" for a ratio, "%" for a share, "s" for a time, "MB" for memory.
    details : dict
        The times in seconds that the values come from, by condition and library.
    """

    name: str
    values: dict[str, float]
    target: float
    at_most: bool = False
    unit: str = ""
    details: dict[str, dict[str, float]] | None = None

    def missed(self) -> list[str]:
        """The conditions that do not reach the target; a value that is not a number does not."""
        return [key for key, v in self.values.items() if not (v <= self.target if self.at_most else v >= self.target)]


def time_case(name: str, size: int, dtype: str = "float32", out: bool = True, limit: bool = False) -> dict[str, float]:
    """Seconds that a call takes in this package and in every peer; with `limit` also the fastest copy, as ``"copy"``."""
    case = CASES[name]
    arrays = case.operands(size, dtype)
    target = np.empty_like(arrays[0]) if out else None
    calls = case.calls(arrays, target, case.libraries(dtype))
    ways = measure.copies(arrays[0], np.empty_like(arrays[0])) if limit else {}
    timings = measure.compare({**calls, **ways}, SECONDS, turns=5)
    seconds = {library: timings[library].minimum for library in calls}
    if limit:
        seconds["copy"] = min(timings[way].minimum for way in ways)
    gc.collect()
    return seconds


def lead(seconds: dict[str, float]) -> float:
    """How many times as long the fastest peer takes."""
    return min(taken for name, taken in seconds.items() if name not in ("fastrelu", "copy")) / seconds["fastrelu"]


def ratio(seconds: dict[str, float], library: str) -> float:
    """How many times as long a peer takes; not a number if it is not installed."""
    return seconds.get(library, math.nan) / seconds["fastrelu"]


def share(name: str, seconds: dict[str, float]) -> float:
    """Bytes a second, in parts of what the fastest copy moves."""
    return CASES[name].streams / 2 * seconds["copy"] / seconds["fastrelu"]


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def short_calls() -> Iterator[Point]:
    """The cost of a call."""
    for out, text in ((False, "relu(x)"), (True, "relu(x, out=y)")):
        seconds = time_case("relu", 10, out=out)
        for library, target in (("numpy", 0.58), ("torch", 0.36)):
            value = {"": 1 / ratio(seconds, library)}
            yield Point(f"{text}, 10 float32: part of {library}'s time", value, target, True, details={"10": seconds})


def relu_by_size() -> Iterator[Point]:
    """The call relu(x, out=y), from 10 numbers to 100 M."""
    times = {quantity(size): time_case("relu", size, limit=size == LONGEST) for size in ALL_SIZES}
    longest, last = times[quantity(LONGEST)], quantity(LONGEST)
    leads = {size: lead(seconds) for size, seconds in times.items()}
    yield Point("relu(x, out=y) float32: times the fastest peer's speed", leads, 0.97, details=times)
    for library, target in (("torch", 2.0), ("numpy", 4.0)):
        mean = geometric_mean([ratio(seconds, library) for seconds in times.values()])
        yield Point(f"the same, geometric mean over the lengths: times {library}'s speed", {"": mean}, target)
    yield Point("relu(x, out=y) float32, longest: times the fastest peer's speed", {last: leads[last]}, 1.25)
    yield Point("the same, share of the streaming limit", {last: share("relu", longest)}, 0.95, unit="%")


def relu_allocating() -> Iterator[Point]:
    """The call relu(x), into new memory."""
    seconds = time_case("relu", LONGEST, out=False)
    for library, target in (("numpy", 2.0), ("torch", 3.5)):
        value = {quantity(LONGEST): ratio(seconds, library)}
        yield Point(f"relu(x) float32: times {library}'s speed", value, target, details={quantity(LONGEST): seconds})


def backward_by_size() -> Iterator[Point]:
    """The call relu_backward(dy, y, out=dx)."""
    times = {quantity(size): time_case("relu_backward", size, limit=size == LONGEST) for size in ALL_SIZES}
    leads = {size: lead(seconds) for size, seconds in times.items()}
    yield Point("relu_backward(dy, y, out=dx) float32: times the fastest peer's speed", leads, 1.0, details=times)
    value = {quantity(LONGEST): share("relu_backward", times[quantity(LONGEST)])}
    yield Point("the same, share of the streaming limit", value, 0.9, unit="%")


def functions() -> Iterator[Point]:
    """The functions that calculate."""
    for name in ("sigmoid", "tanh", "elu", "softplus"):
        for dtype in ("float32", "float64"):
            times = {quantity(size): time_case(name, size, dtype) for size in CACHED_SIZES}
            leads = {size: lead(seconds) for size, seconds in times.items()}
            yield Point(f"{name}(x, out=y) {dtype}: times the fastest peer's speed", leads, 1.0, details=times)


def half_precision() -> Iterator[Point]:
    """float16, which NumPy converts one by one."""
    seconds = time_case("relu", 1 << 20, "float16")
    for library, target in (("numpy", 50.0), ("torch", 1.0)):
        value = {"1 Mi": ratio(seconds, library)}
        yield Point(f"relu(x, out=y) float16: times {library}'s speed", value, target, details={"1 Mi": seconds})


_IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
_FIRST_CALL = """
import time
import numpy as np
import fastrelu
x = np.ones(10, np.float32)
start = time.perf_counter()
fastrelu.relu(x)
print(time.perf_counter() - start)
"""


def in_new_process(program: str, cache: str | None = None) -> float:
    """What a program prints, run in a new process, with an own cache folder if one is given."""
    environment = os.environ if cache is None else {**os.environ, "FASTRELU_CACHE_DIR": cache}
    command = [sys.executable, "-c", program]
    return float(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout)


def new_processes() -> Iterator[Point]:
    """What a process pays before it has the first result."""
    with tempfile.TemporaryDirectory() as cache:
        # With its first name: until then the package has imported nothing, not even NumPy.
        imports: dict[str, list[float]] = {"import numpy": [], "import fastrelu; fastrelu.relu": []}
        for _ in range(20):
            for statements, taken in imports.items():
                taken.append(in_new_process(_IMPORT.format(statements), cache))
        numpy, own = (min(taken) for taken in imports.values())
        details = {"": {"numpy": numpy, "fastrelu": own}}
        yield Point(
            "import fastrelu; fastrelu.relu: times the time of import numpy", {"": own / numpy}, 1.2, True, details=details
        )
        in_new_process(_FIRST_CALL, cache)
        warm = min(in_new_process(_FIRST_CALL, cache) for _ in range(10))
        yield Point("first relu call of a process, kernels cached", {"": warm}, 0.45, True, "s")
    cold = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(in_new_process(_FIRST_CALL, cache))
    yield Point("first relu call of a process, no kernel cached", {"": min(cold)}, 3.0, True, "s")


GROUPS: dict[str, Callable[[], Iterator[Point]]] = {
    function.__name__: function
    for function in (
        short_calls,
        relu_by_size,
        relu_allocating,
        backward_by_size,
        functions,
        half_precision,
        new_processes,
    )
}


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return "not installed"
    return f"{100 * value:.3g}%" if unit == "%" else f"{value:.3g} {unit}".rstrip()


def _lines(point: Point) -> Iterator[str]:
    """A row; if the conditions are words, which nobody could tell apart in one cell, below it one for each of them."""
    missed = point.missed()

    def value(key: str) -> str:
        number = _number(point.values[key], point.unit)
        return f"**{number}**" if key in missed else number

    several, of_words = len(point.values) > 1, any(", " in key for key in point.values)
    measured = "" if of_words else ", ".join(f"{key}: {value(key)}" if key else value(key) for key in point.values)
    target = f"{'at most' if point.at_most else 'at least'} {_number(point.target, point.unit)}"
    count = f"{len(point.values) - len(missed)} of {len(point.values)}"
    yield row((point.name, measured, target, "yes" if not missed else count if several else "no"))
    if of_words:
        yield from (row((f"... {key}", value(key), "", "")) for key in point.values)


def markdown(date: str, machine: dict[str, str], points: list[Point]) -> str:
    """The table, and what it was measured on. What misses its target is bold."""
    what = ", ".join(f"{name} {value}" for name, value in machine.items())
    head = [f"Measured on {date}: {what}. Bold: misses the target.", ""]
    rows = [row(("point", "measured", "target", "met")), row(["---"] * 4)]
    return "\n".join([*head, *rows, *(line for point in points for line in _lines(point))]) + "\n"


def save(name: str, points: Iterable[Point], **more: Any) -> None:
    """Write ``bench/NAME.json``: when, on what, the points, and what there is besides."""
    results = {"points": [asdict(point) for point in points], **more}
    results = {"date": datetime.date.today().isoformat(), "machine": machine(), **results}
    (BENCH / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def publish(name: str) -> None:
    """Print the table of ``bench/NAME.json``, and put it between its two markers in the README."""
    results = json.loads((BENCH / f"{name}.json").read_text(encoding="utf-8"))
    table = markdown(results["date"], results["machine"], [Point(**point) for point in results["points"]])
    print(table)
    begin, end = (f"<!-- {name.replace('_', ' ')} table: {word} -->" for word in ("begin", "end"))
    before, found_begin, rest = README.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if found_begin and found_end:
        README.write_text(f"{before}{begin}\n{table}{end}{after}", encoding="utf-8")
    else:
        print(f"not written, it lacks the markers: {README}")


def command(name: str, subject: str, points: Callable[[], Iterable[Point]]) -> None:
    """Run ``python -m bench.NAME``, which measures points and nothing else."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=f"Measure {subject}.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--print", action="store_true", help="write nothing")
    what.add_argument("--render", action="store_true", help=f"write the README from {name}.json without measuring")
    arguments = parser.parse_args()
    if arguments.print:
        print(markdown(datetime.date.today().isoformat(), machine(), list(points())))
        return
    if not arguments.render:
        save(name, points())
    publish(name)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    everything = facts()
    names = ("processor", "threads", "fastrelu", "Python", "NumPy", "Numba", "torch", "jax", "numexpr")
    return {name: everything[name].split(",")[0] for name in names if everything[name] != "not installed"}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", help=f"print these alone: {', '.join(GROUPS)}")
    parser.add_argument("--render", action="store_true", help="write the README from results.json without measuring")
    arguments = parser.parse_args()

    if not arguments.render:
        points = []
        for group in arguments.only or GROUPS:
            for point in GROUPS[group]():
                points.append(point)
                print(*_lines(point), sep="\n", flush=True)
        if arguments.only:
            return
        save("results", points)
    publish("results")


if __name__ == "__main__":
    main()
