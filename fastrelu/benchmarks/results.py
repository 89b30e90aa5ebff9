"""What a run has written: the JSON of pytest-benchmark, with the times that the suite has taken in turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

NAME = "results.json"


@dataclass(frozen=True)
class Reference:
    """What a call is related to: its least time, and the time of the call in parts of its own, for each turn."""

    seconds: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        """The usual one."""
        return median(self.ratios)


@dataclass(frozen=True)
class Result:
    """A line of a run.

    Attributes
    ----------
    operation, dtype, size, form, library : str
        What was measured, as in `fastrelu.benchmarks.operations.Benchmark`.
    seconds : float
        The least time of the call.
    references : dict of str to Reference
        What was timed in the same turns, to compare runs by.
    threads, lacking : int, float
        How many a call uses, or may use in another library, and how many of the processors for all that it may use other
        programs took meanwhile.
    amount, unit, speed : float, str, float
        What a call does; the unit of `speed`, what it does in a second.
    limit : float or None
        The highest speed that the machine allows, measured in the same run.
    """

    operation: str
    dtype: str
    size: str
    form: str
    library: str
    seconds: float
    references: dict[str, Reference]
    threads: int
    lacking: float
    amount: float
    unit: str
    speed: float
    limit: float | None

    @property
    def problem(self) -> tuple[str, str, str, str]:
        """What is calculated, whoever does it."""
        return self.operation, self.dtype, self.size, self.form

    @property
    def name(self) -> str:
        """The line in a few words."""
        return "-".join((*self.problem, self.library))

    @property
    def ratio(self) -> float:
        """The least time in parts of that of the first reference, which was timed in the same turns."""
        return self.seconds / next(iter(self.references.values())).seconds


@dataclass(frozen=True)
class Run:
    """A whole run: when, on what (`fastrelu.report.facts`), and its lines."""

    date: str
    facts: dict[str, str]
    results: list[Result]

    def problems(self) -> dict[tuple[str, str, str, str], dict[str, Result]]:
        """The lines of each problem, by library."""
        found: dict[tuple[str, str, str, str], dict[str, Result]] = {}
        for result in self.results:
            found.setdefault(result.problem, {})[result.library] = result
        return found


def read(path: Path) -> Run:
    """Read a run from its JSON file, or from the folder that has it.

    Raises
    ------
    ValueError
        If it is no file of a run.
    OSError
        If it cannot be read.
    """
    path = path / NAME if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        facts = content["machine_info"]["fastrelu"]
        return Run(content["datetime"], facts, [_result(entry["extra_info"]) for entry in content["benchmarks"]])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what `python -m fastrelu bench` writes: {type(error).__name__}: {error}") from None


def _result(entry: Mapping[str, Any]) -> Result:
    values = {field.name: entry[field.name] for field in fields(Result)}
    return Result(**values | {"references": {name: Reference(**timing) for name, timing in values["references"].items()}})
