"""How good a classifier is: counts of right and wrong labels, and the numbers made from them.

Names, meanings and the rule for 0 / 0 are those of `sklearn.metrics`, which is not needed here.

>>> from fastrelu import metrics
>>> truth, predicted = ["cat", "cat", "dog", "dog"], ["cat", "dog", "dog", "dog"]
>>> metrics.confusion_matrix(truth, predicted)
array([[1, 1],
       [0, 2]])
>>> metrics.accuracy(truth, predicted)
0.75
>>> metrics.recall(truth, predicted, average=None)
array([0.5, 1. ])
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["accuracy", "confusion_matrix", "f1", "precision", "recall"]

_AVERAGES = ("binary", "macro", "micro", "weighted", None)
_KINDS = {"b": "numbers", "i": "numbers", "u": "numbers", "U": "text", "S": "bytes"}
"""Kinds of NumPy's types that a label can have; labels of one kind can be compared."""


def confusion_matrix(y_true: ArrayLike, y_pred: ArrayLike, *, labels: ArrayLike | None = None) -> NDArray[np.int64]:
    """How often each label was taken for each.

    Parameters
    ----------
    y_true, y_pred : array_like of shape (n,)
        True and predicted labels: integers, bools or strings.
    labels : array_like of shape (c,), optional
        The labels in the order of the rows and columns. Pairs with another label are left out. All that occur in `y_true` or
        `y_pred`, sorted, by default.

    Returns
    -------
    ndarray of shape (c, c)
        The element [i, j] counts the pairs whose true label is ``labels[i]`` and whose predicted one is ``labels[j]``. int64.

    Raises
    ------
    TypeError
        If the labels are of other types, or those of the arguments cannot be compared.
    ValueError
        If an argument is empty or not one-dimensional, their lengths differ, or `labels` has a label twice or none of `y_true`.

    Examples
    --------
    >>> from fastrelu.metrics import confusion_matrix
    >>> confusion_matrix([2, 0, 2, 2, 0, 1], [0, 0, 2, 2, 0, 2])
    array([[2, 0, 0],
           [0, 0, 1],
           [1, 0, 2]])
    """
    return _counts("confusion_matrix", y_true, y_pred, labels)[0]


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """The share of labels that are right.

    Parameters
    ----------
    y_true, y_pred : array_like of shape (n,)
        As for `confusion_matrix`.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        As for `confusion_matrix`.

    Examples
    --------
    >>> from fastrelu.metrics import accuracy
    >>> accuracy([0, 1, 2, 3], [0, 2, 1, 3])
    0.5
    """
    truth, predicted = _pair("accuracy", y_true, y_pred)
    return float(np.mean(truth == predicted))


def precision(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    pos_label: int | str = 1,
    average: str | None = "binary",
    zero_division: float = 0.0,
) -> Any:
    """The share of right ones among those that were given a label: tp / (tp + fp).

    Parameters
    ----------
    y_true, y_pred : array_like of shape (n,)
        As for `confusion_matrix`.
    labels : array_like of shape (c,), optional
        The classes that count, in the order of the results of ``average=None``. All that occur, sorted, by default. "binary"
        does not look at it.
    pos_label : int or str, optional
        The class that "binary" is about.
    average : {"binary", "macro", "micro", "weighted", None}, optional
        "binary": of the class `pos_label`, where there are no more than two. None: of each class. "macro": the mean over the
        classes. "weighted": the mean weighted by how often each class is true. "micro": of the counts of all classes together.
    zero_division : float, optional
        What stands for 0 / 0. Classes for which it is NaN are left out of "macro" and "weighted".

    Returns
    -------
    float or ndarray of shape (c,)
        An array of float64 with ``average=None``.

    Raises
    ------
    TypeError, ValueError
        As for `confusion_matrix`, and ValueError for another `average`, and for "binary" with more than two classes or two
        without `pos_label`.

    Examples
    --------
    >>> from fastrelu.metrics import precision
    >>> precision([0, 1, 1, 1], [1, 1, 1, 0])
    0.6666666666666666
    >>> precision([0, 1, 2, 2], [0, 2, 2, 2], average=None)
    array([1.        , 0.        , 0.66666667])
    """
    return _score("precision", y_true, y_pred, labels, pos_label, average, zero_division)


def recall(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    pos_label: int | str = 1,
    average: str | None = "binary",
    zero_division: float = 0.0,
) -> Any:
    """The share of those of a class that were found: tp / (tp + fn).

    Parameters
    ----------
    y_true, y_pred, labels, pos_label, average, zero_division
        As for `precision`.

    Returns
    -------
    float or ndarray of shape (c,)
        As for `precision`.

    Raises
    ------
    TypeError, ValueError
        As for `precision`.

    Examples
    --------
    >>> from fastrelu.metrics import recall
    >>> recall([0, 1, 2, 2], [0, 2, 2, 0], average="macro")
    0.5
    """
    return _score("recall", y_true, y_pred, labels, pos_label, average, zero_division)


def f1(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    pos_label: int | str = 1,
    average: str | None = "binary",
    zero_division: float = 0.0,
) -> Any:
    """The harmonic mean of precision and recall: 2 tp / (2 tp + fp + fn).

    Parameters
    ----------
    y_true, y_pred, labels, pos_label, average, zero_division
        As for `precision`. It is 0 / 0 only for a class that is neither true nor predicted anywhere.

    Returns
    -------
    float or ndarray of shape (c,)
        As for `precision`.

    Raises
    ------
    TypeError, ValueError
        As for `precision`.

    Examples
    --------
    >>> from fastrelu.metrics import f1
    >>> f1([0, 1, 1, 1], [1, 1, 1, 0])
    0.6666666666666666
    """
    return _score("f1", y_true, y_pred, labels, pos_label, average, zero_division)


def _score(
    name: str,
    y_true: ArrayLike,
    y_pred: ArrayLike,
    labels: ArrayLike | None,
    pos_label: int | str,
    average: str | None,
    zero_division: float,
) -> Any:
    """Precision, recall or F1, by its name."""
    if average not in _AVERAGES:
        allowed = ", ".join(map(repr, _AVERAGES[:-1]))
        raise ValueError(f"{name}: average must be {allowed} or None, not {average!r}")
    matrix, true, predicted, classes = _counts(name, y_true, y_pred, None if average == "binary" else labels)
    right = matrix.diagonal()
    if average == "binary":
        if len(classes) > 2:
            raise ValueError(f"{name}: average must be 'macro', 'micro', 'weighted' or None with {len(classes)} classes")
        present = classes.tolist()
        if pos_label not in present:
            if len(present) == 2:
                raise ValueError(f"{name}: pos_label must be one of the classes {present}, not {pos_label!r}")
            return float(zero_division)
        place = present.index(pos_label)
        right, true, predicted = (counts[place : place + 1] for counts in (right, true, predicted))
    elif average == "micro":
        right, true, predicted = (counts.sum(keepdims=True) for counts in (right, true, predicted))
    above, below = {"precision": (right, predicted), "recall": (right, true), "f1": (2 * right, true + predicted)}[name]
    scores = np.full(len(below), zero_division, np.float64)
    np.divide(above, below, out=scores, where=below != 0)
    if average is None:
        return scores
    weights = true if average == "weighted" else np.ones_like(true)
    kept = ~np.isnan(scores)
    if not weights[kept].any():
        return float(zero_division)
    return float(np.average(scores[kept], weights=weights[kept]))


def _counts(
    name: str, y_true: ArrayLike, y_pred: ArrayLike, labels: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """The confusion matrix; how often each class is true, and predicted, pairs with other labels included; the classes."""
    truth, predicted = _pair(name, y_true, y_pred)
    present = np.union1d(truth, predicted)
    if labels is None:
        classes, order = present, np.arange(len(present))
    else:
        classes = _labels(name, "labels", labels)
        _comparable(name, "labels", classes, truth)
        known, order = np.unique(classes, return_index=True)
        if len(known) < len(classes):
            raise ValueError(f"{name}: labels must not have a label twice")
        if not np.isin(truth, classes).any():
            raise ValueError(f"{name}: labels must have one of those in y_true at least")
    count = len(classes)
    # The place of each label in `classes`, or `count` for one that is not there.
    sorted_classes = classes[order]
    rows, columns = (_places(values, sorted_classes, order) for values in (truth, predicted))
    table = np.bincount(rows * (count + 1) + columns, minlength=(count + 1) ** 2).reshape(count + 1, count + 1)
    table = table.astype(np.int64, copy=False)
    return table[:count, :count], table.sum(1)[:count], table.sum(0)[:count], classes


def _places(values: NDArray[Any], classes: NDArray[Any], order: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each value its place before `classes` were sorted by `order`, or their number."""
    places = np.minimum(np.searchsorted(classes, values), len(classes) - 1)
    return np.where(classes[places] == values, order[places], len(classes))


def _pair(name: str, y_true: ArrayLike, y_pred: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    truth, predicted = _labels(name, "y_true", y_true), _labels(name, "y_pred", y_pred)
    if len(truth) != len(predicted):
        raise ValueError(f"{name}: y_pred must have the length of y_true, {len(truth)}, not {len(predicted)}")
    _comparable(name, "y_pred", predicted, truth)
    return truth, predicted


def _labels(name: str, argument: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1 or not array.size:
        hint = ": argmax(1) makes labels of outputs" if array.ndim == 2 else ""
        raise ValueError(f"{name}: {argument} must be one-dimensional and not empty, not of shape {array.shape}{hint}")
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array):
        array = array.astype(str)  # a column of pandas
    if array.dtype.kind not in _KINDS:
        raise TypeError(f"{name}: {argument} must be integers, bools or strings, not {array.dtype}")
    return array


def _comparable(name: str, argument: str, values: NDArray[Any], truth: NDArray[Any]) -> None:
    came, allowed = _KINDS[values.dtype.kind], _KINDS[truth.dtype.kind]
    if came != allowed:
        raise TypeError(f"{name}: {argument} must be {allowed} as y_true, not {came}")
