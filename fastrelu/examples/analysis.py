"""How training goes, watched from epoch to epoch: a network 64-32-1 with a sigmoid output on 1000 random points.

A point has 20 features, and its label follows a fixed rule: whether twice the product of the first two features, plus the next
two, minus the fifth, is positive. 800 points train the network, 200 tell what it is worth elsewhere: the curves part where it
begins to learn by heart.

    python -m fastrelu.examples.analysis [--epochs 100] [--seed 0] [--plot analysis.png]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fastrelu
from fastrelu import metrics, nn
from fastrelu.examples import plots, terminal

COUNT, TRAINING, FEATURES = 1000, 800, 20


@dataclass(frozen=True)
class Analysis:
    """What came out of training.

    Attributes
    ----------
    history : nn.History
        The curves.
    accuracy, precision, recall, f1 : float
        On the points that were kept back.
    probabilities, labels : ndarray of shape (200,)
        What the network says of these, and the truth.
    seconds : float
        That training took.
    """

    history: nn.History
    accuracy: float
    precision: float
    recall: float
    f1: float
    probabilities: np.ndarray
    labels: np.ndarray
    seconds: float

    @property
    def best_epoch(self) -> int:
        """The epoch with the least loss on the points that were kept back, counted from 1."""
        assert self.history.validation_loss is not None
        return int(np.argmin(self.history.validation_loss)) + 1


def data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points of shape (1000, 20) and their labels, 0 or 1."""
    x = rng.standard_normal((COUNT, FEATURES), dtype=np.float32)
    return x, (2 * x[:, 0] * x[:, 1] + x[:, 2] + x[:, 3] - x[:, 4] > 0).astype(np.int64)


def train(epochs: int, seed: int, progress: bool = True) -> Analysis:
    """Train the network and measure what it has learned."""
    rng = np.random.default_rng(seed)
    x, y = data(rng)
    x, x_test, y, y_test = x[:TRAINING], x[TRAINING:], y[:TRAINING], y[TRAINING:]
    model = nn.Sequential(
        nn.Linear(FEATURES, 64, rng=rng), nn.ReLU(), nn.Linear(64, 32, rng=rng), nn.ReLU(), nn.Linear(32, 1, rng=rng)
    )
    start = time.perf_counter()
    # The loss takes what goes into the sigmoid: so it stays exact where the sigmoid is all but 0 or 1.
    history = nn.fit(
        model,
        x,
        y,
        epochs,
        32,
        optimizer=nn.SGD(lr=0.02, momentum=0.9),
        loss="sigmoid_cross_entropy",
        validation=(x_test, y_test),
        rng=rng,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    probabilities = fastrelu.sigmoid(model.predict(x_test)[:, 0])
    predicted = (probabilities > 0.5).astype(np.int64)
    return Analysis(
        history,
        metrics.accuracy(y_test, predicted),
        metrics.precision(y_test, predicted),
        metrics.recall(y_test, predicted),
        metrics.f1(y_test, predicted),
        probabilities,
        y_test,
        seconds,
    )


def draw(analysis: Analysis, path: Path) -> None:
    """Save the picture: loss, accuracy, gradient norm, and the probabilities of both classes."""
    title = f"Network 64-32-1, sigmoid output: {analysis.accuracy:.1%} of the points kept back are right"
    history = analysis.history
    with plots.picture(path, title, 2, 2, (12, 8)) as axes:
        plots.draw_loss(axes[0, 0], history)
        axes[0, 0].axvline(analysis.best_epoch, color=plots.GREY, linestyle=":", linewidth=1.5)
        low, high = axes[0, 0].get_ylim()
        axes[0, 0].text(analysis.best_epoch, low + 0.93 * (high - low), f" least at {analysis.best_epoch}", color=plots.GREY)
        plots.draw_accuracy(axes[0, 1], history)
        plots.draw_gradient_norm(axes[1, 0], history)
        bins = np.linspace(0, 1, 21)
        for label, colour in ((0, plots.VERMILION), (1, plots.BLUE)):
            chosen = analysis.probabilities[analysis.labels == label]
            axes[1, 1].hist(chosen, bins, color=colour, alpha=0.6, label=f"true class {label}")
        axes[1, 1].axvline(0.5, color=plots.GREY, linewidth=1)
        axes[1, 1].set(title="Output for points kept back", xlabel="sigmoid output", ylabel="points")
        axes[1, 1].legend(loc="upper center")


def main(arguments: Sequence[str] | None = None) -> Analysis:
    """Run the command; returns what came out."""
    parser = terminal.parser("analysis", "How the training of a network 64-32-1 with a sigmoid output goes.")
    parser.add_argument("--epochs", type=terminal.at_least(1), default=100, help="100 by default")
    options = terminal.parse(parser, arguments)
    analysis = train(options.epochs, options.seed)
    terminal.print_history(analysis.history)
    print(f"{analysis.seconds:.2f} s; least loss on points kept back after epoch {analysis.best_epoch}")
    print(
        f"kept back: accuracy {analysis.accuracy:.3f}, precision {analysis.precision:.3f}, "
        f"recall {analysis.recall:.3f}, F1 {analysis.f1:.3f}"
    )
    if options.plot:
        draw(analysis, options.plot)
    return analysis


if __name__ == "__main__":
    main()
