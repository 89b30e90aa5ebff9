"""Plots of a run: for each operation its speed over the size, beside the peers and the machine's limit."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from fastrelu.benchmarks.operations import OURS
from fastrelu.benchmarks.results import Result, Run
from fastrelu.examples import plots

_MARKERS = "osv^Dx+1"
_AMOUNTS = {"GB/s": "bytes", "GFLOP/s": "operations", "images/s": "images"}


def draw(run: Run, folder: Path, suffix: str = ".png") -> list[Path]:
    """Save a picture ``OPERATION.png`` for each operation of the run, with a row for each type and a column for each form.

    Parameters
    ----------
    run : Run
        What was measured.
    folder : Path
        An existing folder.
    suffix : str
        The format.

    Returns
    -------
    list of Path
        The pictures.

    Raises
    ------
    ImportError
        Without Matplotlib.
    """
    operations: dict[str, list[Result]] = {}
    for result in run.results:
        operations.setdefault(result.operation, []).append(result)
    paths = []
    for operation, results in operations.items():
        path = folder / f"{operation}{suffix}"
        dtypes, forms = ([*dict.fromkeys(values)] for values in ((r.dtype for r in results), (r.form for r in results)))
        size = (7.5 * len(forms), 4.8 * len(dtypes))
        with plots.picture(path, operation, len(dtypes), len(forms), size) as axes:
            for panel, (dtype, form) in zip(axes.flat, product(dtypes, forms), strict=True):
                chosen = [r for r in results if (r.dtype, r.form) == (dtype, form)]
                _draw_panel(panel, f"{dtype}, {form.replace('_', ' ')}", chosen)
        paths.append(path)
    return paths


def _draw_panel(axes: Any, title: str, results: list[Result]) -> None:
    libraries = list(dict.fromkeys(result.library for result in results))
    for number, library in enumerate(libraries):
        own = sorted((_place(r), r.speed) for r in results if r.library == library)
        style = {"linewidth": 2.6, "zorder": 3} if library == OURS else {"linewidth": 1.4, "alpha": 0.85}
        axes.plot(*zip(*own, strict=True), marker=_MARKERS[number % len(_MARKERS)], label=library, **style)
    limits: dict[float, float] = {}
    for result in results:
        if result.limit:  # the highest of those measured beside each library
            limits[_place(result)] = max(result.limit, limits.get(_place(result), 0.0))
    if limits:
        axes.plot(*zip(*sorted(limits.items()), strict=True), "--", color="black", linewidth=1.4, label="limit of the machine")
    first = results[0]
    axes.set(xscale="log", yscale="log", title=title, ylabel=first.unit)
    axes.set_xlabel("elements" if first.size.isdecimal() else f"{_AMOUNTS[first.unit]} of a call")
    axes.legend(fontsize=9)


def _place(result: Result) -> float:
    return float(result.size) if result.size.isdecimal() else result.amount
