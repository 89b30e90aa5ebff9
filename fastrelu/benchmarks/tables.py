"""The Markdown table of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastrelu.benchmarks.contention import MUCH
from fastrelu.benchmarks.operations import OURS
from fastrelu.benchmarks.results import Result, Run
from fastrelu.report import duration, quantity

_LEFT_OUT = ("kernel cache", "numba-cuda", "CUDA")


def markdown(run: Run) -> str:
    """All lines of the run: a table for each set of libraries that were measured beside each other.

    Under a library stands how many times as long as this package it takes, each related to the reference of its own turns;
    below 1, where it is faster, the number is bold.
    """
    facts = {name: value for name, value in run.facts.items() if name not in _LEFT_OUT and value != "not installed"}
    what = ", ".join(f"{name} {value.split(',')[0]}" for name, value in facts.items())
    lines = [
        f"Measured on {run.date[:10]}: {what}.",
        "",
        "Under a library: how many times as long it takes as fastrelu. Limit: what the machine can move or calculate at best.",
    ]
    if disturbed := sum(result.lacking > MUCH for result in run.results):
        lines.append(f"Other programs took processors during {disturbed} of {len(run.results)} measurements.")
    libraries: dict[str, dict[str, None]] = {}
    for result in run.results:
        if result.library != OURS:
            libraries.setdefault(result.operation, {})[result.library] = None
    shown: tuple[str, ...] | None = None
    for results in run.problems().values():
        if OURS not in results:
            continue
        beside = tuple(libraries.get(results[OURS].operation, ()))
        if beside != shown:
            shown = beside
            header = ("operation", "type", "size", "form", "time", "speed", "of limit", *shown)
            lines += ["", row(header), row(["---"] * len(header))]
        lines.append(row(_cells(results, shown)))
    return "\n".join(lines) + "\n"


def _cells(results: dict[str, Result], libraries: tuple[str, ...]) -> Iterator[str]:
    own = results[OURS]
    size = quantity(int(own.size)) if own.size.isdecimal() else own.size
    yield from (f"`{own.operation}`", own.dtype, size, own.form.replace("_", " "))
    speed = f"{own.speed:.3g}" if own.speed < 1000 else f"{own.speed:.0f}"
    yield from (duration(own.seconds), f"{speed} {own.unit}", f"{own.speed / own.limit:.0%}" if own.limit else "")
    for library in libraries:
        if library not in results:
            yield ""
            continue
        ratio = results[library].ratio / own.ratio
        yield f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def row(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
