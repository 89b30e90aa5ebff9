"""Plots of a run: for each operation its speed over the size, beside the peers and the machine's limit."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from fastrelu.benchmarks.operations import GIGABYTES, GIGAFLOPS, OURS
from fastrelu.benchmarks.results import Result, Run
from fastrelu.examples import plots

_MARKERS = "osv^Dx+1"
_AMOUNTS = {GIGABYTES: "bytes", GIGAFLOPS: "operations"}
"""What the sizes of shapes are told in; other units have their names."""
_LIMITS = {GIGABYTES: "the fastest copy", GIGAFLOPS: "multiply-adds"}


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
                panel.set_visible(bool(chosen))  # a run that was interrupted has not all of them
                if chosen:
                    _draw_panel(panel, f"{dtype}, {form.replace('_', ' ')}", chosen)
        paths.append(path)
    return paths


def _draw_panel(axes: Any, title: str, results: list[Result]) -> None:
    from matplotlib.ticker import LogFormatter, LogLocator

    first = results[0]
    axes.set(title=title, ylabel=first.unit, yscale="log")
    joined = first.size.isdecimal()  # shapes are no series
    if joined:
        axes.set(xlabel="elements", xscale="log")
    elif first.unit in _AMOUNTS:
        axes.set(xlabel=f"{_AMOUNTS[first.unit]} of a call", xscale="log")
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # more labels would lie on each other
    else:
        axes.tick_params("x", labelrotation=20)
    for number, library in enumerate(dict.fromkeys(result.library for result in results)):
        own = [(_place(r), r.speed) for r in results if r.library == library]
        if isinstance(own[0][0], float):
            own.sort()
        weight = {"linewidth": 2.6, "zorder": 3} if library == OURS else {"linewidth": 1.4, "alpha": 0.85}
        look = {"linestyle": "-" if joined else "none", "marker": _MARKERS[number % len(_MARKERS)]}
        axes.plot(*zip(*own, strict=True), label=library, **look, **weight)
    limits: dict[float | str, float] = {}
    for result in results:
        if result.limit:  # the highest of those measured beside each library
            limits[_place(result)] = max(result.limit, limits.get(_place(result), 0.0))
    if limits:
        look = {"linestyle": "--", "color": "black", "label": f"limit: {_LIMITS[first.unit]}"}
        if len(limits) == 1:
            axes.axhline(*limits.values(), linewidth=1.4, **look)
        else:
            axes.plot(*zip(*sorted(limits.items()), strict=True), linewidth=1.4, **look)
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
    axes.legend(fontsize=9)


def _place(result: Result) -> float | str:
    if result.size.isdecimal():
        return float(result.size)
    return float(result.amount) if result.unit in _AMOUNTS else result.size
