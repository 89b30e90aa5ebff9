"""Photographs of ten kinds, read by a convolutional network: CIFAR-10.

The network: convolution with 32 channels, pool, convolution with 64, pool, dense with 512, dense with 10; ReLU after all but
the last. Every epoch sees each photograph anew, mirrored or not and shifted by up to 4 points. In the end each one of the test
is shown twice, as it is and mirrored, and the mean of both answers counts. The data are not part of the package: get the python
or the binary version from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it.

    python -m fastrelu.examples.cifar10 FOLDER [--epochs 10] [--seed 0] [--plot cifar10.png]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrelu import nn
from fastrelu.examples import images, plots, terminal
from fastrelu.examples.cifar_files import CLASSES, Cifar10, load
from fastrelu.examples.classification import Report, evaluate


@dataclass(frozen=True)
class Trained:
    """What came out of training.

    Attributes
    ----------
    history : nn.History
        The curves, those of the test set included.
    report : Report
        The metrics on the test set.
    probabilities : ndarray of shape (n, 10)
        What the network says of each test photograph.
    seconds : float
        An epoch took.
    """

    history: nn.History
    report: Report
    probabilities: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Scale:
    """Makes of bytes numbers with mean 0 and variance 1 in each channel.

    Attributes
    ----------
    mean, deviation : ndarray of shape (3, 1, 1)
        Of the training set.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Scale:
        """That of photographs of shape (n, 3, 32, 32)."""
        # From how often each byte occurs: the photographs need not become numbers of 8 bytes.
        counts = np.stack([np.bincount(x[:, channel].reshape(-1), minlength=256) for channel in range(3)])
        shares, values = counts / counts.sum(1, keepdims=True), np.arange(256)
        mean = shares @ values
        deviation = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))
        return cls(*(part.astype(np.float32)[:, None, None] for part in (mean, np.maximum(deviation, 1))))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((x.astype(np.float32) - self.mean) / self.deviation)


def network(rng: np.random.Generator) -> nn.Sequential:
    """The network, for photographs of 32 x 32 points."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 8 * 8, 512, rng=rng),
        nn.ReLU(),
        nn.Linear(512, len(CLASSES), rng=rng),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of the classes."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def train(data: Cifar10, epochs: int, seed: int, progress: bool = True) -> Trained:
    """Train the network and test it; the history's validation is that of photographs shown once."""
    rng = np.random.default_rng(seed)
    scale = Scale.of(data.x)
    x, x_test = scale(data.x), scale(data.x_test)
    model = network(rng)
    how = images.Training(epochs, batch_size=64, rate=1e-3, reach=4, mirror=True)
    history, seconds = images.train(model, (x, data.y), (x_test, data.y_test), how, rng, progress)
    probabilities = (softmax(model.predict(x_test)) + softmax(model.predict(x_test[..., ::-1]))) / 2
    return Trained(history, evaluate(data.y_test, probabilities.argmax(1), CLASSES), probabilities, seconds)


def draw(trained: Trained, data: Cifar10, path: Path) -> None:
    """Save the picture: the curves, the confusion matrix, and some photographs with what the network says."""
    title = f"CIFAR-10: test accuracy {trained.report.accuracy:.3f} after {len(trained.history.loss)} epochs"
    with plots.picture(path, title, 2, 2, (14, 12)) as axes:
        plots.draw_loss(axes[0, 0], trained.history)
        plots.draw_accuracy(axes[0, 1], trained.history)
        plots.draw_confusion(axes[1, 0], trained.report.confusion, CLASSES)
        draw_photographs(axes[1, 1], data, trained.probabilities)


def draw_photographs(axes: Any, data: Cifar10, probabilities: np.ndarray) -> None:
    """The first sixteen photographs of the test set; red words for a mistake."""
    sheet = np.full((4 * 44, 4 * 40, 3), 255, np.uint8)
    shown = zip(data.x_test[:16], data.y_test, probabilities, strict=False)
    for place, (image, label, chances) in enumerate(shown):
        top, left = place // 4 * 44 + 10, place % 4 * 40 + 4
        sheet[top : top + 32, left : left + 32] = image.transpose(1, 2, 0)
        guess = int(chances.argmax())
        text, colour = f"{CLASSES[guess]} {chances[guess]:.0%}", "black" if guess == label else plots.VERMILION
        axes.text(left + 16, top - 2, text, ha="center", va="bottom", color=colour, fontsize=9)
    axes.imshow(sheet)
    axes.set(title="Photographs of the test set (coloured words: wrong)")
    axes.axis("off")


def main(arguments: Sequence[str] | None = None) -> Trained:
    """Run the command; returns what came out."""
    parser = terminal.parser("cifar10", "Photographs of ten kinds, read by a convolutional network.")
    parser.add_argument("folder", type=Path, help="where CIFAR-10 has been unpacked, the python or the binary version")
    parser.add_argument("--epochs", type=terminal.at_least(1), default=10, help="10 by default")
    options = terminal.parse(parser, arguments)
    try:
        data = load(options.folder)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    trained = train(data, options.epochs, options.seed)
    trained.report.print("CIFAR-10")
    print(f"{trained.seconds:.1f} s an epoch")
    if options.plot:
        draw(trained, data, options.plot)
    return trained


if __name__ == "__main__":
    main()
