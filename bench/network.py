"""Pooling, embeddings and the loss beside PyTorch: ``python -m bench.network`` measures them and writes network.json and a
table into the README.

Every ratio comes from calls timed in turns in one process, with as many threads for one as for the other. Run it on a machine
that does nothing else. Losses are written down like everything else.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

from bench.table import Point, command
from fastrelu import measure
from fastrelu.benchmarks.network import OPERATIONS, named
from fastrelu.benchmarks.operations import set_threads

# Of one case; systems that wake a thread on a busy processor move it to another within a turn.
SECONDS, TURN = 0.5, 20e-3

TITLES = {
    "max_pool2d": "max_pool2d(x, window, step, padding)",
    "max_pool2d_backward": "the same with indices, and max_pool2d_backward",
    "embedding_mean": "embedding_mean(ids, table), rows x d, bags x ids",
    "embedding_mean_backward": "the same, and embedding_mean_backward",
    "softmax_cross_entropy": "softmax_cross_entropy(logits, labels), rows x classes",
    "training_step": "step of training with Adam, network and batch",
}

TARGETS = {"training_step": 1.5}


def points() -> Iterator[Point]:
    """The rows of the table."""
    for name, operation in OPERATIONS.items():
        times = {}
        for case in operation.cases:
            timings = measure.compare(operation.calls(*case), SECONDS, turn=TURN)
            times[named(case)] = {library: timing.minimum for library, timing in timings.items()}
            gc.collect()
        ratios = {case: seconds.get("torch", math.nan) / seconds["fastrelu"] for case, seconds in times.items()}
        yield Point(f"{TITLES[name]}: times torch's speed", ratios, TARGETS.get(name, 1.0), details=times)


if __name__ == "__main__":
    set_threads()
    command("network", "what networks need besides layers beside PyTorch", points)
