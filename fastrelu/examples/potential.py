"""A walk in a potential that is a small neural network: one evaluation a step, each of which depends on the one before.

The energy at the place r is that of a network 3-16-16-1 with ReLU plus |r|**2 / 2, which keeps the walker near the origin. The
walk is that of Metropolis et al. 1953, doi:10.1063/1.1699114, at temperature 1. Nothing in it can be batched, so that NumPy
would be called for every step; here the whole loop is compiled, and the layers in it are those of this package.

    python -m fastrelu.examples.potential [steps]
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from numba import njit

import fastrelu
from fastrelu.examples import terminal

STEPS = 1_000_000
HIDDEN = 16


def network(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Weights and biases (w1, b1, w2, b2, w3, b3) of a random network of float32."""
    rng = np.random.default_rng(seed)
    layers: list[np.ndarray] = []
    for k, n in ((3, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)):
        layers.append(rng.normal(0, np.sqrt(2 / k), (k, n)).astype(np.float32))  # He et al. 2015
        layers.append(rng.normal(0, 0.1, n).astype(np.float32))
    return tuple(layers)


def energy(r: np.ndarray, layers: tuple[np.ndarray, ...]) -> float:
    """The energy at `r` (3,), by NumPy."""
    w1, b1, w2, b2, w3, b3 = layers
    h = np.maximum(r @ w1 + b1, 0)
    h = np.maximum(h @ w2 + b2, 0)
    return float((h @ w3 + b3)[0] + (r * r).sum() / 2)


@njit
def walk(steps: int, layers: tuple[np.ndarray, ...], seed: int) -> tuple[float, float]:
    """Take so many steps from the origin; returns the mean energy and the share of moves that were accepted."""
    np.random.seed(seed)
    w1, b1, w2, b2, w3, b3 = layers
    h1, h2, e = np.empty(HIDDEN, np.float32), np.empty(HIDDEN, np.float32), np.empty(1, np.float32)
    here, there = np.zeros(3, np.float32), np.empty(3, np.float32)
    now, total, accepted = np.inf, 0.0, 0
    for _ in range(steps):
        square = 0.0
        for axis in range(3):
            there[axis] = here[axis] + 0.6 * (np.random.random() - 0.5)
            square += there[axis] * there[axis]
        fastrelu.linear_relu(there, w1, b1, out=h1)
        fastrelu.linear_relu(h1, w2, b2, out=h2)
        fastrelu.linear(h2, w3, b3, out=e)
        then = e[0] + square / 2
        if then <= now or np.random.random() < np.exp(now - then):
            here, there, now = there, here, then
            accepted += 1
        total += now
    return total / steps, accepted / steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare a step with an evaluation by NumPy."""
    parser = argparse.ArgumentParser(
        prog="python -m fastrelu.examples.potential", description="A walk in the potential of a small network, compiled."
    )
    parser.add_argument("steps", type=terminal.at_least(1), nargs="?", default=STEPS, help=f"of the walk; {STEPS} by default")
    steps = parser.parse_args(arguments).steps
    layers = network()
    walk(1, layers, 0)  # compiles
    start = time.perf_counter()
    mean, accepted = walk(steps, layers, 0)
    ours = (time.perf_counter() - start) / steps
    places = np.random.default_rng(1).standard_normal((min(steps, 20_000), 3)).astype(np.float32)
    start = time.perf_counter()
    for r in places:
        energy(r, layers)
    theirs = (time.perf_counter() - start) / len(places)
    print(f"{steps:,} steps: mean energy {mean:.4f}, {accepted:.0%} of the moves accepted")
    print(f"a step {ours * 1e9:.0f} ns, an evaluation by NumPy {theirs * 1e9:.0f} ns: {theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
