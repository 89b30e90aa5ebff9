"""Training on images that look a little different in every epoch, so that a network does not learn them by heart."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from fastrelu import nn

LAST_RATE = 1e-4
"""What the step size of Adam falls to, from epoch to epoch by the same factor each time."""


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes
    ----------
    epochs, batch_size : int
        As for `fastrelu.nn.fit`.
    rate : float
        Step size of Adam in the first epoch.
    reach : int
        By how many points an image may be shifted.
    mirror : bool
        Whether half of the images are mirrored.
    """

    epochs: int
    batch_size: int
    rate: float
    reach: int
    mirror: bool = False


def augmented(x: np.ndarray, reach: int, mirror: bool, rng: np.random.Generator) -> np.ndarray:
    """Images (n, c, h, w), each shifted by up to `reach` points along both axes, and mirrored by chance; 0 comes in."""
    count, _, height, width = x.shape
    result = np.zeros_like(x)
    downs, rights = rng.integers(-reach, reach + 1, (2, count))
    flips = rng.integers(2 if mirror else 1, size=count)
    # Images with the same fate in one go.
    fates = (downs + reach) * (2 * reach + 1) + rights + reach
    order = np.argsort(fates, kind="stable")
    for chosen in np.split(order, np.flatnonzero(np.diff(fates[order])) + 1):
        down, right = downs[chosen[0]], rights[chosen[0]]
        source = x[chosen, :, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
        result[chosen, :, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = source
    mirrored = np.flatnonzero(flips)
    result[mirrored] = result[mirrored, ..., ::-1]
    return result


def train(
    model: nn.Sequential,
    data: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    training: Training,
    rng: np.random.Generator,
    progress: bool = True,
) -> tuple[nn.History, float]:
    """Train a classifier by Adam.

    Parameters
    ----------
    model : Sequential
        Changed in place.
    data, validation : (ndarray of shape (n, c, h, w), ndarray of shape (n,))
        Images and labels.
    training : Training
        How.
    rng : Generator
        For shifts, mirrors and the order.
    progress : bool
        Whether to show the progress.

    Returns
    -------
    history : nn.History
        Of all epochs.
    seconds : float
        An epoch took, validation included.
    """
    x, y = data
    optimizer = nn.Adam(lr=training.rate)
    history = nn.History(validation_loss=[], validation_accuracy=[])
    start = time.perf_counter()
    for epoch in range(training.epochs):
        optimizer.lr = training.rate * (LAST_RATE / training.rate) ** (epoch / max(1, training.epochs - 1))
        seen = nn.fit(
            model,
            augmented(x, training.reach, training.mirror, rng),
            y,
            1,
            training.batch_size,
            optimizer=optimizer,
            loss="softmax_cross_entropy",
            validation=validation,
            rng=rng,
            progress=progress,
        )
        for name, values in vars(history).items():
            values += getattr(seen, name)
    return history, (time.perf_counter() - start) / training.epochs
