"""The runnable examples do what they say."""

import numpy as np
import pytest

from fastrelu.examples import potential
from tests.subprocesses import run


def walk_with_numpy(steps, layers, seed):
    """`potential.walk`, step by step in NumPy, whose generator gives the same random numbers."""
    random = np.random.RandomState(seed)
    here, now, total, accepted = np.zeros(3, np.float32), np.inf, 0.0, 0
    for _ in range(steps):
        there = (here + 0.6 * (random.random_sample(3) - 0.5)).astype(np.float32)
        then = potential.energy(there, layers)
        if then <= now or random.random_sample() < np.exp(now - then):
            here, now = there, then
            accepted += 1
        total += now
    return total / steps, accepted / steps


def test_walk_in_a_potential_is_that_of_numpy():
    layers = potential.network(3)
    mean, accepted = potential.walk(500, layers, 7)
    mean_of_numpy, accepted_of_numpy = walk_with_numpy(500, layers, 7)
    assert accepted == accepted_of_numpy
    assert mean == pytest.approx(mean_of_numpy, rel=1e-5)


def test_potential_runs():
    code = "import sys\nfrom fastrelu.examples import potential\nsys.argv[1:] = ['2000']\npotential.main()"
    assert "2,000 steps: mean energy" in run(code, timeout=120)
