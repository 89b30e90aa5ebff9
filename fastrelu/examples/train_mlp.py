"""Gradient descent on a task with 20 features and three classes: a network 20-64-32-3 with ReLU.

The class says in which third of the first 18 features the squares have the largest sum; the last two features mean nothing. No
linear model can tell: every feature is as often negative as positive in each class.

    python -m fastrelu.examples.train_mlp [--epochs 30] [--seed 0] [--plot train_mlp.png]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrelu import metrics, nn
from fastrelu.examples import plots, terminal

FEATURES, GROUPS = 20, 3
HIDDEN = (64, 32)
COUNT, TEST_COUNT = 16_000, 2000


@dataclass(frozen=True)
class Training:
    """What came out: the curves, and the accuracy on points that were never seen."""

    history: nn.History
    test_accuracy: float


def data(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points of shape (count, 20) and their classes."""
    x = rng.standard_normal((count, FEATURES), dtype=np.float32)
    squares = x[:, : FEATURES // GROUPS * GROUPS].reshape(count, GROUPS, -1) ** 2
    return x, squares.sum(2).argmax(1)


def train(epochs: int, seed: int, count: int = COUNT, progress: bool = True) -> Training:
    """Train the network."""
    rng = np.random.default_rng(seed)
    x, y = data(count, rng)
    x_test, y_test = data(TEST_COUNT, rng)
    model = nn.Sequential(
        nn.Linear(FEATURES, HIDDEN[0], rng=rng),
        nn.ReLU(),
        nn.Linear(*HIDDEN, rng=rng),
        nn.ReLU(),
        nn.Linear(HIDDEN[1], GROUPS, rng=rng),
    )
    optimizer = nn.SGD(lr=0.1)
    history = nn.fit(
        model,
        x,
        y,
        epochs,
        64,
        optimizer=optimizer,
        loss="softmax_cross_entropy",
        validation=(x_test, y_test),
        rng=rng,
        progress=progress,
    )
    return Training(history, metrics.accuracy(y_test, model.predict(x_test).argmax(1)))


def draw(training: Training, path: Path) -> None:
    """Save the picture: loss, accuracy and gradient norm of each epoch."""
    title = f"Gradient descent, 20-64-32-3 with ReLU: test accuracy {training.test_accuracy:.3f}"
    with plots.picture(path, title, 1, 3, (14, 4.4)) as axes:
        plots.draw_loss(axes[0, 0], training.history)
        plots.draw_accuracy(axes[0, 1], training.history)
        plots.draw_gradient_norm(axes[0, 2], training.history)


def main(arguments: Sequence[str] | None = None) -> Training:
    """Run the command; returns the curves and the accuracy."""
    parser = terminal.parser("train_mlp", "Gradient descent on a task with 20 features: loss, accuracy, gradient norm.")
    parser.add_argument("--epochs", type=terminal.at_least(1), default=30, help="30 by default")
    options = terminal.parse(parser, arguments)
    training = train(options.epochs, options.seed)
    terminal.print_history(training.history)
    print(f"test accuracy {training.test_accuracy:.4f}")
    if options.plot:
        draw(training, options.plot)
    return training


if __name__ == "__main__":
    main()
