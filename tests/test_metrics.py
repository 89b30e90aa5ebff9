"""Metrics of a classifier have the values of `sklearn.metrics`."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastrelu import metrics

peer = pytest.importorskip("sklearn.metrics")
SCORES = {"precision": peer.precision_score, "recall": peer.recall_score, "f1": peer.f1_score}


def draw(classes: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted labels, about half of which are right; the last class is rare."""
    rng = np.random.default_rng(seed)
    truth = np.minimum(rng.integers(0, classes, count), rng.integers(0, classes, count))
    return truth, np.where(rng.random(count) < 0.5, truth, rng.integers(0, classes, count))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_confusion_matrix_and_accuracy(classes):
    truth, predicted = draw(classes, 57)
    ours = metrics.confusion_matrix(truth, predicted)
    assert_array_equal(ours, peer.confusion_matrix(truth, predicted))
    assert ours.dtype == np.int64
    assert metrics.accuracy(truth, predicted) == peer.accuracy_score(truth, predicted)


def test_one_class():
    assert_array_equal(metrics.confusion_matrix(["a", "a"], ["a", "a"]), [[2]])


def test_labels_choose_and_order_the_rows():
    truth, predicted = draw(5, 57)
    labels = [3, 0, 7, 4]  # 7 occurs nowhere, 1 and 2 are left out
    assert_array_equal(
        metrics.confusion_matrix(truth, predicted, labels=labels), peer.confusion_matrix(truth, predicted, labels=labels)
    )


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
@pytest.mark.parametrize("labels", [None, [3, 0, 7, 4]])
def test_scores_of_many_classes(name, average, labels):
    truth, predicted = draw(5, 57)
    keywords = {"average": average, "labels": labels, "zero_division": 1.0}
    ours = getattr(metrics, name)(truth, predicted, **keywords)
    assert_allclose(ours, SCORES[name](truth, predicted, **keywords), rtol=1e-15)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        ([0, 1, 1, 1], [1, 1, 1, 0]),
        ([1, 2, 1, 1], [2, 2, 1, 1]),  # the class is 1, not the larger one
        ([-1, 1, 1], [-1, -1, 1]),
        ([False, True, True], [True, True, False]),
        ([0, 0, 0], [0, 0, 0]),  # no positive one
        ([1, 1], [1, 1]),
    ],
    ids=str,
)
def test_scores_of_two_classes(name, truth, predicted):
    ours = getattr(metrics, name)(truth, predicted, zero_division=1.0)
    assert_allclose(ours, SCORES[name](truth, predicted, zero_division=1.0), rtol=1e-15)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("zero_division", [0.0, 1.0, np.nan])
@pytest.mark.parametrize("average", ["macro", "weighted", None])
def test_zero_divided_by_zero(name, zero_division, average):
    truth, predicted = [0, 0, 1, 2], [0, 0, 3, 2]  # 3 is never true, 1 never predicted, 4 neither
    keywords = {"average": average, "labels": [0, 1, 2, 3, 4], "zero_division": zero_division}
    ours = getattr(metrics, name)(truth, predicted, **keywords)
    assert_allclose(ours, SCORES[name](truth, predicted, **keywords), rtol=1e-15)


def test_labels_of_text():
    truth, predicted = ["dog", "cat", "ant", "cat"], ["dog", "ant", "ant", "cat"]
    assert_array_equal(metrics.confusion_matrix(truth, predicted), peer.confusion_matrix(truth, predicted))
    objects = np.array(truth, object)
    assert metrics.accuracy(objects, predicted) == 0.75
    assert metrics.f1(["no", "yes"], ["yes", "yes"], pos_label="yes") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "words"),
    [
        (([], []), {}, ValueError, "y_true must be one-dimensional and not empty, not of shape (0,)"),
        (
            ([[1]], [1]),
            {},
            ValueError,
            "y_true must be one-dimensional and not empty, not of shape (1, 1): argmax(1) makes labels of outputs",
        ),
        (([1, 0], [1]), {}, ValueError, "y_pred must have the length of y_true, 2, not 1"),
        (([1.5], [1]), {}, TypeError, "y_true must be integers, bools or strings, not float64"),
        (([1], ["1"]), {}, TypeError, "y_pred must be numbers as y_true, not text"),
        (
            ([1], [1]),
            {"average": "mean"},
            ValueError,
            "average must be 'binary', 'macro', 'micro', 'weighted' or None, not 'mean'",
        ),
        (([0, 1, 2], [0, 1, 2]), {}, ValueError, "average must be 'macro', 'micro', 'weighted' or None with 3 classes"),
        (([0, 2], [0, 2]), {}, ValueError, "pos_label must be one of the classes [0, 2], not 1"),
        (([0], [0]), {"labels": [0, 0], "average": None}, ValueError, "labels must not have a label twice"),
        (([0], [0]), {"labels": [1], "average": None}, ValueError, "labels must have one of those in y_true at least"),
        (([0], [0]), {"labels": ["0"], "average": None}, TypeError, "labels must be numbers as y_true, not text"),
    ],
)
def test_faults(arguments, keywords, error, words):
    with pytest.raises(error, match=f"^f1: {re.escape(words)}$"):
        metrics.f1(*arguments, **keywords)
