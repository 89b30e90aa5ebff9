"""Two runs beside each other: what became slower, told by ratios to references that were timed in the same turns.

A machine that is busy, or another one, makes a call and its references slower alike. There are two of them, on one thread and
on all, since a processor that another program takes slows only what needs it: for a call on several threads a loss is one
beside both. If its processors are taken, it may do all of its work on one; how many were taken is measured as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fastrelu.benchmarks.contention import MUCH
from fastrelu.benchmarks.operations import OURS
from fastrelu.benchmarks.results import Reference, Result, Run

THRESHOLD = 0.15
"""How much more time is a loss, beside the references."""
_OF_THE_RUN = ("kernel cache",)
"""Facts that differ without any meaning."""


@dataclass(frozen=True)
class Change:
    """A benchmark that both runs have, with the same references."""

    old: Result
    new: Result

    @property
    def factors(self) -> dict[str, float]:
        """How many times as long it takes now, beside each reference; beside the first, if it is on one thread as well."""
        references = list(self.old.references.items())[: 1 if self._threads == 1 else None]
        return {name: self.new.references[name].ratio / was.ratio for name, was in references}

    @property
    def _threads(self) -> int:
        return max(self.old.threads, self.new.threads)

    @property
    def factor(self) -> float:
        """The one of them that tells least."""
        return min(self.factors.values(), key=lambda factor: abs(math.log(factor)))

    def is_loss(self, threshold: float) -> bool:
        """Whether it became slower by more than the threshold, and by more than the turns differ, beside every reference.

        Where processors were taken, a call on several threads also by more than the loss of all but one explains; if none was
        left to it, nothing can be told.
        """
        slack = 1.0
        if self._threads > 1 and self.new.lacking > MUCH:
            slack = self._threads if self.new.lacking < self._threads - 1 else math.inf
        return all(
            factor > slack * (1 + threshold) and _middle(self.new.references[name])[0] > _middle(self.old.references[name])[1]
            for name, factor in self.factors.items()
        )

    def is_gain(self, threshold: float) -> bool:
        """The contrary."""
        return Change(self.new, self.old).is_loss(threshold)

    def is_unclear(self, threshold: float) -> bool:
        """Whether it is neither, and not the same beside every reference either."""
        changed = [not 1 / (1 + threshold) <= factor <= 1 + threshold for factor in self.factors.values()]
        return all(changed) and not self.is_loss(threshold) and not self.is_gain(threshold)


def _middle(reference: Reference) -> tuple[float, float]:
    """The ratios without the lowest and the highest quarter."""
    ratios = sorted(reference.ratios)
    cut = len(ratios) // 4
    return ratios[cut], ratios[-1 - cut]


@dataclass(frozen=True)
class Comparison:
    """What two runs tell.

    Attributes
    ----------
    changes : list of Change
        Every benchmark of this package that both have.
    only_old, only_new : list of str
        Those that only one has, or with other references.
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
    common = {name for name in before if name in now and before[name].references.keys() == now[name].references.keys()}
    if not common:
        why = " with the same references: those depend on the number of threads" if before.keys() & now.keys() else ""
        raise ValueError(f"the two runs have no benchmark in common{why}")
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
    unclear = [change for change in changes if change.is_unclear(threshold)]
    for title, chosen in (("Losses", losses), ("Gains", gains), ("Too noisy to tell", unclear)):
        if chosen:
            lines += [f"{title}:", *map(_line, chosen), ""]
    for title, names in (("Only in the old run", comparison.only_old), ("Only in the new run", comparison.only_new)):
        if names:
            lines += [f"{title}: {len(names)} benchmarks, {names[0]} for instance", ""]
    mean = math.exp(sum(math.log(change.factor) for change in changes) / len(changes))
    lines.append(
        f"{len(changes)} benchmarks: {len(losses)} losses and {len(gains)} gains of more than {threshold:.0%}, {len(unclear)}"
        f" too noisy to tell. Geometric mean of all: {mean:.3f} times the time of before, beside the references."
    )
    if disturbed := sum(max(change.old.lacking, change.new.lacking) > MUCH for change in changes):
        lines.append(f"Other programs took processors during {disturbed} of them, in one of the runs at least.")
    return "\n".join(lines)


def _by_name(results: Iterable[Result]) -> dict[str, Result]:
    return {result.name: result for result in results if result.library.startswith(OURS)}


def _line(change: Change) -> str:
    beside = ", ".join(
        f"{was.ratio:.3g} then {change.new.references[name].ratio:.3g} of {name}" for name, was in change.old.references.items()
    )
    return f"  {change.factor:5.2f} times the time  {change.old.name}: {beside}"
