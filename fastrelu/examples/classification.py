"""How well a classifier does, printed and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastrelu import metrics
from fastrelu.examples import terminal


@dataclass(frozen=True)
class Report:
    """The metrics of a classifier on a test set.

    Attributes
    ----------
    classes : sequence of str
        Names of the c classes, whose labels are 0 to c - 1.
    confusion : ndarray of shape (c, c)
        Counts; rows are true classes, columns predicted ones.
    accuracy : float
        The share that is right.
    precision, recall, f1 : ndarray of shape (c,)
        Of each class.
    """

    classes: Sequence[str]
    confusion: np.ndarray
    accuracy: float
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def print(self, title: str) -> None:
        """Print a table of the classes and their means."""
        scores = (self.precision, self.recall, self.f1)
        counts = self.confusion.sum(1)
        rows = [[name, *map(float, row), int(count)] for name, *row, count in zip(self.classes, *scores, counts, strict=True)]
        rows.append(["macro mean", *(float(score.mean()) for score in scores), int(counts.sum())])
        terminal.print_table(f"{title}: accuracy {self.accuracy:.4f}", ["class", "precision", "recall", "F1", "images"], rows)


def evaluate(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Report:
    """The report on predicted labels."""
    numbers = np.arange(len(classes))
    precision, recall, f1 = (
        score(labels, predicted, labels=numbers, average=None) for score in (metrics.precision, metrics.recall, metrics.f1)
    )
    confusion = metrics.confusion_matrix(labels, predicted, labels=numbers)
    return Report(classes, confusion, metrics.accuracy(labels, predicted), precision, recall, f1)
