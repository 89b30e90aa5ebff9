"""A network of the course text, 784-256-128-10, trained on the digits that scikit-learn brings along."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu

WIDTHS = (784, 256, 128, 10)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images of 28 x 28 points between 0 and 1, and their labels."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    data = sklearn_datasets.load_digits()
    nearest = np.arange(28) * 8 // 28
    images = (data.images / 16)[:, nearest][:, :, nearest]
    return images.reshape(len(images), -1).astype(np.float32), data.target


def trained(x: np.ndarray, labels: np.ndarray, batch: int, rate: float, epochs: int) -> list[np.ndarray]:
    """Weights and biases after training by stochastic gradient descent on the cross-entropy."""
    rng = np.random.default_rng(0)
    parameters = []
    for k, n in pairwise(WIDTHS):
        parameters += [(rng.standard_normal((k, n)) * np.sqrt(2 / k)).astype(np.float32), np.zeros(n, np.float32)]
    w1, b1, w2, b2, w3, b3 = parameters
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(x)), len(x) // batch):
            y0 = x[rows]
            y1 = fastrelu.linear_relu(y0, w1, b1)
            y2 = fastrelu.linear_relu(y1, w2, b2)
            z = fastrelu.linear(y2, w3, b3)
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(rows)), labels[rows]] -= 1
            p /= np.float32(len(rows))
            dy2, dw3, db3 = fastrelu.linear_backward(p, y2, w3)
            dy1, dw2, db2 = fastrelu.linear_relu_backward(dy2, y2, y1, w2)
            _, dw1, db1 = fastrelu.linear_relu_backward(dy1, y1, y0, None, wanted=("dw", "db"))
            for parameter, gradient in zip(parameters, (dw1, db1, dw2, db2, dw3, db3), strict=True):
                parameter -= np.float32(rate) * gradient
    return parameters


def accuracy(x: np.ndarray, labels: np.ndarray, parameters: list[np.ndarray]) -> float:
    w1, b1, w2, b2, w3, b3 = parameters
    z = fastrelu.linear(fastrelu.linear_relu(fastrelu.linear_relu(x, w1, b1), w2, b2), w3, b3)
    return float(np.mean(z.argmax(1) == labels))


@pytest.mark.parametrize("batch", [64, 600])
def test_threads_do_not_change_a_bit(digits, batch):
    x, labels = digits
    with fastrelu.num_threads(1):
        one = trained(x, labels, batch, 0.1, 2)
    for threads in (2, 5):
        with fastrelu.num_threads(threads):
            for a, b in zip(one, trained(x, labels, batch, 0.1, 2), strict=True):
                assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_network_learns(digits):
    x, labels = digits
    parameters = trained(x[:1500], labels[:1500], 64, 0.1, 8)
    assert accuracy(x[1500:], labels[1500:], parameters) > 0.9
