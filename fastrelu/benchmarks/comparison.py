"""Two runs beside each other: what became slower, told by ratios to references that were measured in the same minutes.

A machine that is busy, or another one, makes the call and its reference slower alike. What is left is noise of some percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fastrelu.benchmarks.operations import OURS
from fastrelu.benchmarks.results import Result, Run

THRESHOLD = 0.15
"""A loss is at least so much more time in parts of the reference's."""
_OF_THE_RUN = ("kernel cache",)
"""Facts that differ without any meaning."""


@dataclass(frozen=True)
class Change:
    """A benchmark that both runs have.

    Attributes
    ----------
    old, new : Result
        Its lines.
    factor : float
        How many times as long it takes now, both related to their references.
    is_clear : bool
        Whether the slowest turn of the faster run is faster than the fastest turn of the slower one.
    """

    old: Result
    new: Result

    @property
    def factor(self) -> float:
        return self.new.ratio / self.old.ratio

    @property
    def is_clear(self) -> bool:
        return min(self.new.ratios) > max(self.old.ratios) or max(self.new.ratios) < min(self.old.ratios)

    def is_loss(self, threshold: float) -> bool:
        """Whether it became slower by more than the threshold, and by more than the turns of each run differ."""
        return self.factor > 1 + threshold and self.is_clear

    def is_gain(self, threshold: float) -> bool:
        """The contrary."""
        return self.factor < 1 / (1 + threshold) and self.is_clear


@dataclass(frozen=True)
class Comparison:
    """What two runs tell.

    Attributes
    ----------
    changes : list of Change
        Every benchmark of this package that both have.
    only_old, only_new : list of str
        Those that only one has, or with another reference.
    facts : dict
        Old and new value of every fact about the machine that differs.
    """

    changes: list[Change]
    only_old: list[str]
    only_new: list[str]
    facts: dict[str, tuple[str, str]]


def compare(old: Run, new: Run) -> Comparison:
    """Put two runs beside each other. What the peers do is not compared.

    Raises
    ------
    ValueError
        If they have no benchmark in common.
    """
    before, now = (_by_name(run.results) for run in (old, new))
    common = {name for name in before if name in now and before[name].reference == now[name].reference}
    if not common:
        raise ValueError("the two runs have no benchmark in common")
    names = dict.fromkeys((*old.facts, *new.facts))
    facts = {name: (old.facts.get(name, "unknown"), new.facts.get(name, "unknown")) for name in names}
    return Comparison(
        [Change(before[name], now[name]) for name in before if name in common],
        [name for name in before if name not in common],
        [name for name in now if name not in common],
        {name: pair for name, pair in facts.items() if pair[0] != pair[1] and name not in _OF_THE_RUN},
    )


def describe(comparison: Comparison, threshold: float) -> str:
    """The comparison as text: facts that differ, losses, gains, and how many there are."""
    lines = [f"{name}: {old} before, {new} now" for name, (old, new) in comparison.facts.items()]
    if lines:
        lines = ["The runs differ in:", *(f"  {line}" for line in lines), ""]
    changes = sorted(comparison.changes, key=lambda change: -change.factor)
    losses = [change for change in changes if change.is_loss(threshold)]
    gains = [change for change in changes if change.is_gain(threshold)]
    unclear = [c for c in changes if not 1 / (1 + threshold) <= c.factor <= 1 + threshold and not c.is_clear]
    for title, chosen in (("Losses", losses), ("Gains", gains), ("Too noisy to tell", unclear)):
        if chosen:
            lines += [f"{title}:", *map(_line, chosen), ""]
    for title, names in (("Only in the old run", comparison.only_old), ("Only in the new run", comparison.only_new)):
        if names:
            lines += [f"{title}: {len(names)} benchmarks, {names[0]} for instance", ""]
    mean = math.exp(sum(math.log(change.factor) for change in changes) / len(changes))
    lines.append(
        f"{len(changes)} benchmarks: {len(losses)} losses and {len(gains)} gains of more than {threshold:.0%}, {len(unclear)}"
        f" too noisy to tell. Geometric mean of all: {mean:.3f} times the time of before, in parts of the reference's."
    )
    return "\n".join(lines)


def _by_name(results: Iterable[Result]) -> dict[str, Result]:
    return {result.name: result for result in results if result.library.startswith(OURS)}


def _line(change: Change) -> str:
    was, now = change.old, change.new
    return f"  {change.factor:5.2f} times the time  {was.name}: {was.ratio:.3g} of {was.reference} before, {now.ratio:.3g} now"
