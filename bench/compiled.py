"""The functions inside compiled code, beside the same calls from Python: ``python -m bench.compiled`` measures them and writes
compiled.json and a table into the README.

Every ratio comes from calls timed in turns in one process. Run it on a machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import njit

import fastrelu
from bench.table import Point, command
from fastrelu import measure
from fastrelu.examples import potential

SECONDS = 2.0
LAYERS = ((1, 16, 16), (4, 3, 5), (64, 784, 256), (512, 512, 512), (2048, 256, 256))
LENGTHS = (10, 1_000, 100_000, 1_000_000)
STEPS = 20_000
"""Of the walk in a potential, a sample."""


@njit
def relu(calls, x, y):
    for _ in range(calls):
        fastrelu.relu(x, out=y)


@njit
def linear_relu(calls, x, w, b, y):
    for _ in range(calls):
        fastrelu.linear_relu(x, w, b, out=y)


@njit
def linear_relu_backward(calls, dy, y, x, w, dx, dw, db):
    for _ in range(calls):
        fastrelu.linear_relu_backward(dy, y, x, w, out=(dx, dw, db))


def _compare(compiled: Any, plain: Any, operands: tuple[Any, ...], work: float) -> dict[str, float]:
    """Seconds of a call in a compiled loop and in one of Python, so many calls that a loop takes some time."""
    calls = max(1, int(1e6 / work))
    loops = {"compiled": lambda: compiled(calls, *operands), "python": lambda: [plain(*operands) for _ in range(calls)]}
    timings = measure.compare(loops, SECONDS, turns=7)
    return {name: timing.minimum / calls for name, timing in timings.items()}


def _ratios(name: str, times: dict[str, dict[str, float]]) -> Point:
    values = {key: seconds["python"] / seconds["compiled"] for key, seconds in times.items()}
    return Point(f"{name}: times its speed from Python", values, 0.9, details=times)


def points() -> Iterator[Point]:
    """Every line of the table."""
    rng = np.random.default_rng(0)
    times = {}
    for n in LENGTHS:
        x = rng.standard_normal(n, dtype=np.float32)
        times[f"{n:,}"] = _compare(relu, lambda x, y: fastrelu.relu(x, out=y), (x, np.empty_like(x)), n + 1000)
    yield _ratios("relu(x, out=y) float32", times)
    forward, backward = {}, {}
    for m, k, n in LAYERS:
        x, w, b, dy = (rng.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n), (n,), (m, n)))
        y = np.empty((m, n), np.float32)
        key, work = f"{m} x {k} x {n}", m * k * n / 10 + 5000
        forward[key] = _compare(linear_relu, lambda x, w, b, y: fastrelu.linear_relu(x, w, b, out=y), (x, w, b, y), work)
        operands = (dy, y, x, w, np.empty_like(x), np.empty_like(w), np.empty_like(b))
        backward[key] = _compare(
            linear_relu_backward,
            lambda dy, y, x, w, *out: fastrelu.linear_relu_backward(dy, y, x, w, out=out),
            operands,
            2 * work,
        )
    yield _ratios("linear_relu, m x k x n, float32", forward)
    yield _ratios("linear_relu_backward, m x k x n, float32", backward)
    layers = potential.network()
    places = rng.standard_normal((STEPS // 10, 3)).astype(np.float32)
    timings = measure.compare(
        {
            "compiled": lambda: potential.walk(STEPS, layers, 0),
            "numpy": lambda: [potential.energy(r, layers) for r in places],
        },
        SECONDS,
        turns=7,
    )
    seconds = {"compiled": timings["compiled"].minimum / STEPS, "numpy": timings["numpy"].minimum / len(places)}
    value = {"": seconds["numpy"] / seconds["compiled"]}
    yield Point("a step in the potential of a 3-16-16-1 network: times the speed of NumPy", value, 20, details={"": seconds})


if __name__ == "__main__":
    command("compiled", "calls from compiled functions beside those from Python", points)
