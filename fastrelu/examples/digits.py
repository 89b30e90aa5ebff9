"""Handwritten digits, read by a network 784-256-128-10 and by a convolutional network.

The 1797 images are those that scikit-learn brings along (8 x 8 points; the test set of Alpaydin and Kaynak 1998, UCI), made
28 x 28 points large. A fifth of them is kept back for the test; the others are shifted by up to two points, anew in every
epoch.

    python -m fastrelu.examples.digits [--epochs 30] [--seed 0] [--plot digits.png]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrelu import nn
from fastrelu.examples import images, plots, terminal
from fastrelu.examples.classification import Report, evaluate

SIZE = 28
CLASSES = tuple("0123456789")


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 28, 28) of float32 from 0 to 1, and their digits."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Trained:
    """What came out of training one network.

    Attributes
    ----------
    history : nn.History
        The curves.
    report : Report
        The metrics on the test set.
    predicted : ndarray of shape (n,)
        The digit of each test image.
    seconds : float
        An epoch took.
    """

    history: nn.History
    report: Report
    predicted: np.ndarray
    seconds: float


def data(rng: np.random.Generator) -> Digits:
    """The images in random order, a fifth of them for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('the digits come from scikit-learn: pip install "fastrelu[examples]"') from None
    bunch = load_digits()
    x = enlarged(bunch.images / 16, SIZE).astype(np.float32)[:, None]
    test, training = np.split(rng.permutation(len(x)), [len(x) // 5])
    return Digits(x[training], bunch.target[training], x[test], bunch.target[test])


def enlarged(x: np.ndarray, size: int) -> np.ndarray:
    """Square images (n, h, h) as (n, size, size), by linear interpolation between the middles of the points."""
    height = x.shape[1]
    places = np.clip((np.arange(size) + 0.5) * height / size - 0.5, 0, height - 1)
    first = np.minimum(places.astype(int), height - 2)
    share = places - first
    # Row i of the result is a mean of two rows.
    weights = np.zeros((size, height))
    weights[np.arange(size), first] = 1 - share
    weights[np.arange(size), first + 1] = share
    return np.asarray(weights @ x @ weights.T)


def dense(rng: np.random.Generator) -> nn.Sequential:
    """The network 784-256-128-10."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIZE * SIZE, 256, rng=rng),
        nn.ReLU(),
        nn.Linear(256, 128, rng=rng),
        nn.ReLU(),
        nn.Linear(128, 10, rng=rng),
    )


def convolutional(rng: np.random.Generator) -> nn.Sequential:
    """Twice a convolution with 3 x 3 points, ReLU and the maximum of 2 x 2 points; then one dense layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (SIZE // 4) ** 2, 10, rng=rng),
    )


NETWORKS: Mapping[str, Callable[[np.random.Generator], nn.Sequential]] = {
    "784-256-128-10": dense,
    "convolutional": convolutional,
}


def train(model: nn.Sequential, digits: Digits, epochs: int, rng: np.random.Generator, progress: bool = True) -> Trained:
    """Train a network and test it."""
    how = images.Training(epochs, batch_size=32, rate=3e-3, reach=2)
    test = digits.x_test, digits.y_test
    history, seconds = images.train(model, (digits.x, digits.y), test, how, rng, progress)
    predicted = model.predict(digits.x_test).argmax(1)
    return Trained(history, evaluate(digits.y_test, predicted, CLASSES), predicted, seconds)


def draw(found: Mapping[str, Trained], digits: Digits, path: Path) -> None:
    """Save the picture: a row for each network, and below the images that the last one took for another digit."""
    scores = ", ".join(f"{name} {trained.report.accuracy:.3f}" for name, trained in found.items())
    rows = len(found)
    with plots.picture(path, f"Handwritten digits, test accuracy: {scores}", rows, 4, (17, 4.4 * rows)) as axes:
        for row, (name, trained) in zip(axes, found.items(), strict=True):
            plots.draw_loss(row[0], trained.history)
            row[0].set_title(f"{name}: loss")
            plots.draw_accuracy(row[1], trained.history)
            row[1].set_ylim(0.9, 1.003)
            plots.draw_confusion(row[2], trained.report.confusion, CLASSES)
            draw_mistakes(row[3], digits, trained.predicted)


def draw_mistakes(axes: Any, digits: Digits, predicted: np.ndarray) -> None:
    """The first nine images that were taken for another digit."""
    wrong = np.flatnonzero(predicted != digits.y_test)[:9]
    sheet = np.zeros((3 * 37, 3 * 32))
    axes.set(title=f"Mistakes ({int((predicted != digits.y_test).sum())}), true → predicted")
    axes.axis("off")
    for place, index in enumerate(wrong):
        top, left = place // 3 * 37 + 8, place % 3 * 32 + 2
        sheet[top : top + SIZE, left : left + SIZE] = digits.x_test[index, 0]
        axes.text(left + SIZE / 2, top - 1, f"{digits.y_test[index]} → {predicted[index]}", ha="center", va="bottom")
    axes.imshow(sheet, cmap="Greys")


def main(arguments: Sequence[str] | None = None) -> dict[str, Trained]:
    """Run the command; returns what came out for each network."""
    parser = terminal.parser("digits", "Handwritten digits, read by a dense and by a convolutional network.")
    parser.add_argument("--epochs", type=terminal.at_least(1), default=30, help="30 by default")
    options = terminal.parse(parser, arguments)
    rng = np.random.default_rng(options.seed)
    try:
        digits = data(rng)
    except ImportError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    found = {}
    for name, make in NETWORKS.items():
        trained = found[name] = train(make(rng), digits, options.epochs, rng)
        trained.report.print(name)
        print(f"{trained.seconds:.2f} s an epoch")
    if options.plot:
        draw(found, digits, options.plot)
    return found


if __name__ == "__main__":
    main()
