"""Pooling, embeddings and the loss beside PyTorch: ``python -m bench.network`` measures them and writes network.json and a
table into the README.

Every ratio comes from calls timed in turns in one process, with as many threads for one as for the other. Run it on a machine
that does nothing else. Losses are written down like everything else.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
from collections.abc import Iterator
from dataclasses import asdict

import fastrelu
from bench.table import ROOT, Point, machine, markdown, write_readme
from fastrelu import measure
from fastrelu.benchmarks.network import CASES, named
from fastrelu.peers import available

RESULTS = ROOT / "bench" / "network.json"
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
    """The rows of the table, each printed by who asks for it."""
    for name, (maker, cases) in CASES.items():
        times = {}
        for case in cases:
            timings = measure.compare(maker(*case), SECONDS, turn=TURN)
            times[named(case)] = {library: timing.minimum for library, timing in timings.items()}
            gc.collect()
        ratios = {case: seconds.get("torch", math.nan) / seconds["fastrelu"] for case, seconds in times.items()}
        yield Point(f"{TITLES[name]}: times torch's speed", ratios, TARGETS.get(name, 1.0), details=times)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.network", description="Measure what networks need besides layers.")
    parser.add_argument("--print", action="store_true", help="write nothing")
    parser.add_argument("--render", action="store_true", help="write the README from network.json without measuring")
    arguments = parser.parse_args()
    if available("torch"):
        import torch

        torch.set_num_threads(fastrelu.get_num_threads())
    if not arguments.render:
        measured = [asdict(point) for point in points()]
        results = {"date": datetime.date.today().isoformat(), "machine": machine(), "points": measured}
        if not arguments.print:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    else:
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    table = markdown(results["date"], results["machine"], [Point(**point) for point in results["points"]])
    print(table)
    if not arguments.print:
        write_readme(table, "<!-- network table: begin -->", "<!-- network table: end -->")


if __name__ == "__main__":
    main()
