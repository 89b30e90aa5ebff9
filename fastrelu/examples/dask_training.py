"""Training on more rows than a machine holds: data in chunks, workers of dask, and what a terabyte would cost.

The rows are made chunk by chunk where they are needed: 64 features, and the class that a network which nobody knows gives them.
A network 64-256-128-10 learns from them on a cluster of worker processes (``distributed.LocalCluster``), while the rows never
come to this process. At the end it is compared with the same training in memory: no bit differs.

    python -m fastrelu.examples.dask_training [--workers 2] [--rows 20000] [--epochs 3] [--seed 0] [--plot dask.png]

With ``--workers 0`` the threads of this process do it. It needs ``pip install "fastrelu[dask]"``.

How a step goes: the parameters travel to the workers, each of which calculates the gradients of the blocks of 256 rows of a
*shard*, neighbouring rows of the batch; the sums of the shards are added one after the other, from worker to worker; the
optimizer runs here. So for a network with G bytes of parameters and S shards, which are as many as threads of workers, there
are

    compute    the rows of a shard, by the time of a row
    tasks      about 4 S (two that take rows, one that calculates, one that adds), one at a time in the scheduler
    chain      S - 1 additions one after the other, each a few messages and G bytes from one worker to the next
    ends       G bytes to all workers, which hand them on, and G bytes back
    reading    of the chunks, all workers at a time

A plan for 1 TB, which is 319 million rows of 784 float32, with 784-256-128-10 (G = 0.94 MB), on 100 nodes of 16 cores: one
worker a node, with one task at a time whose calls have 16 threads (``dask worker --nthreads 1``, ``FASTRELU_NUM_THREADS=16``);
chunks of 100 MB; a batch of 100 shards of 4096 rows, and so 779 steps an epoch. Measured on two cores of a Zen 4 server, which
client, scheduler and workers shared: 11 us a row on one core, 3 ms a task. Assumed: 10 Gbit/s between nodes, disks of 1 GB/s.
An epoch:

    compute    779 * 4096 * 11 us / 16              2 s
    tasks      779 * 400 * 3 ms                   930 s
    chain      779 * 99 * (3 * 3 + 0.75) ms       750 s
    ends       779 * 8 * 0.75 ms                    5 s
    reading    10 GB a node                        10 s

That is 28 minutes, nearly all of it dask's own; shards ten times as long (a batch of 4 million rows) make it 3 minutes. One
such node alone needs 4 minutes for the arithmetic and 17 for reading. So for a network this small more nodes pay for their
disks and memory, with large batches only. `plan` does the arithmetic for other numbers, and the command prints it with what it
measures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import fastrelu
from fastrelu import nn
from fastrelu.examples import plots, terminal

WIDTHS = (64, 256, 128, 10)
BATCH = 2048
COURSE = (784, 256, 128, 10)
"""The network of the plan."""


@dataclass(frozen=True)
class Plan:
    """Seconds of an epoch."""

    steps: int
    compute: float
    tasks: float
    chain: float
    ends: float
    reading: float


@dataclass(frozen=True)
class Training:
    """What came out: the curves, whether they are those of a training in memory, and seconds."""

    history: nn.History
    is_same: bool
    seconds: float
    row: float
    task: float


def network(widths: Sequence[int], rng: np.random.Generator) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[Any] = []
    for k, n in pairwise(widths):
        layers += [nn.Linear(k, n, rng=rng), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data(rows: int, seed: int) -> tuple[Any, Any]:
    """Points (rows, 64) and their classes, as dask arrays in eight chunks that nobody has calculated yet."""
    import dask.array as da

    x = da.random.default_rng(seed).standard_normal((rows, WIDTHS[0]), chunks=(-(-rows // 8), -1), dtype=np.float32)
    rng = np.random.default_rng(seed)
    w1, w2 = (rng.standard_normal(shape, dtype=np.float32) for shape in ((WIDTHS[0], 32), (32, WIDTHS[-1])))
    # Lazy as well, by NumPy's own protocol for generalized ufuncs.
    scores = fastrelu.linear(fastrelu.linear_relu(x, w1), w2)
    return x, (scores - scores.mean(0)).argmax(1)


@contextmanager
def workers(count: int) -> Iterator[None]:
    """A cluster of `count` processes of one thread each, or none."""
    if not count:
        yield
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=count, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        yield


def time_of_row() -> float:
    """Seconds that forward and backward pass of a row take on one core, in the network of the plan."""
    rng = np.random.default_rng(0)
    model, x = network(COURSE, rng), rng.standard_normal((2048, COURSE[0]), dtype=np.float32)
    labels = rng.integers(COURSE[-1], size=len(x))
    best = np.inf
    with fastrelu.num_threads(1):
        for _ in range(8):
            start = time.perf_counter()
            _, dy = fastrelu.softmax_cross_entropy(model.forward(x), labels)
            model.backward(dy, wants_dx=False)
            best = min(best, time.perf_counter() - start)
    return best / len(x)


def time_of_task() -> float:
    """Seconds that dask takes for a task that does nothing."""
    import dask

    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        dask.compute(*(dask.delayed(abs, pure=False)(i) for i in range(200)))
        best = min(best, time.perf_counter() - start)
    return best / 200


def plan(
    row: float,
    task: float,
    *,
    terabytes: float = 1.0,
    nodes: int = 100,
    cores: int = 16,
    shard: int = 4096,
    bandwidth: float = 1.25e9,
    disk: float = 1e9,
) -> Plan:
    """What an epoch costs.

    Parameters
    ----------
    row, task : float
        Seconds of a row on one core, and of a task in the scheduler.
    terabytes : float, optional
        Of rows of 784 float32.
    nodes, cores : int, optional
        One worker a node, whose calls use all its cores.
    shard : int, optional
        Rows of a step for each node.
    bandwidth, disk : float, optional
        Bytes a second of the network between two nodes (10 Gbit/s), and of what a node reads from.

    Examples
    --------
    >>> from fastrelu.examples.dask_training import plan
    >>> plan(15e-6, 1e-3).steps
    779
    """
    rows = terabytes * 1e12 / (4 * COURSE[0])
    parameters = 4 * sum(k * n + n for k, n in pairwise(COURSE))
    steps = int(np.ceil(rows / (nodes * shard)))
    message = parameters / bandwidth
    return Plan(
        steps,
        compute=steps * shard * row / cores,
        tasks=steps * 4 * nodes * task,
        # An addition waits for a message to the scheduler, one back, and the sum from the worker before.
        chain=steps * (nodes - 1) * (3 * task + message),
        ends=steps * (np.ceil(np.log2(nodes)) + 1) * message,
        reading=terabytes * 1e12 / nodes / disk,
    )


def train(rows: int, epochs: int, seed: int, count: int = 2, progress: bool = True) -> Training:
    """Train on a cluster, and in memory."""
    x, y = data(rows, seed)
    with workers(count):
        task = time_of_task()
        model = network(WIDTHS, np.random.default_rng(seed))
        start = time.perf_counter()
        history = nn.fit(model, x, y, epochs, BATCH, optimizer=nn.Adam(), shuffle=rows // 4, rng=seed, progress=progress)
        seconds = time.perf_counter() - start
    other = network(WIDTHS, np.random.default_rng(seed))
    inputs, labels = x.compute(), y.compute()
    expected = nn.fit(other, inputs, labels, epochs, BATCH, optimizer=nn.Adam(), shuffle=rows // 4, rng=seed, progress=False)
    pairs = zip(model.parameters.values(), other.parameters.values(), strict=True)
    is_same = history == expected and all(a.tobytes() == b.tobytes() for a, b in pairs)
    return Training(history, is_same, seconds, time_of_row(), task)


def draw(found: Training, path: Path) -> None:
    """Save the picture: loss, accuracy and where the time of the plan goes."""
    with plots.picture(path, "Training over dask arrays, and a plan for 1 TB", 1, 3, (15, 4.4)) as axes:
        plots.draw_loss(axes[0, 0], found.history)
        plots.draw_accuracy(axes[0, 1], found.history)
        parts = {name: value for name, value in vars(plan(found.row, found.task)).items() if name != "steps"}
        axes[0, 2].barh([*parts], [*parts.values()])
        axes[0, 2].set(title="1 TB on 100 nodes", xlabel="seconds of an epoch")


def main(arguments: Sequence[str] | None = None) -> Training:
    """Run the command; returns what came out."""
    parser = terminal.parser("dask_training", "Training over dask arrays on worker processes, and what a terabyte would cost.")
    parser.add_argument(
        "--workers", type=terminal.at_least(0), default=2, help="processes; 0 for the threads of this one; 2 by default"
    )
    parser.add_argument("--rows", type=terminal.at_least(4), default=20_000, help="20000 by default")
    parser.add_argument("--epochs", type=terminal.at_least(1), default=3, help="3 by default")
    options = terminal.parse(parser, arguments)
    try:
        import distributed  # noqa: F401
    except ImportError:
        parser.exit(2, f'{parser.prog}: it needs dask: pip install "fastrelu[dask]"\n')
    found = train(options.rows, options.epochs, options.seed, options.workers)
    terminal.print_history(found.history)
    print(f"{found.seconds:.1f} s; the same bits as in memory: {found.is_same}")
    print(f"784-256-128-10: {1e6 * found.row:.1f} us a row on one core; dask: {1e3 * found.task:.2f} ms a task")
    whole = plan(found.row, found.task)
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in vars(whole).items() if name != "steps")
    print(f"1 TB on 100 nodes of 16 cores, an epoch of {whole.steps} steps: {parts}")
    if options.plot:
        draw(found, options.plot)
    return found


if __name__ == "__main__":
    main()
