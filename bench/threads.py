"""Throughput of many Python threads: ``python -m bench.threads`` prints calls a second of one thread and of eight together.

A call may use its default number of threads. Beside it stand one thread whose calls are limited to one core, and NumPy. The
rates are measured in turns, and the best of each counts. Short calls hold the GIL, so that all threads share one core.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

import fastrelu

CALLERS = 8
LENGTHS = (10, 1000, 10_000, 100_000, 1_000_000)
SHAPES = ((4, 3, 5), (64, 64, 64), (256, 256, 256))

Call = Callable[[], object]
Maker = Callable[[], Call]


def makers() -> Iterator[tuple[str, Maker, Maker]]:
    """Names, and for fastrelu and for NumPy what makes a call with results of its own."""
    for length in LENGTHS:
        x = np.linspace(-1, 1, length, dtype=np.float32)

        def relu(x: np.ndarray = x) -> Call:
            y = np.empty_like(x)
            return lambda: fastrelu.relu(x, out=y)

        def maximum(x: np.ndarray = x) -> Call:
            y = np.empty_like(x)
            return lambda: np.maximum(x, 0, out=y)

        yield f"relu, {length}", relu, maximum
    rng = np.random.default_rng(0)
    for m, k, n in SHAPES:
        x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n), n))

        def layer(x: np.ndarray = x, w: np.ndarray = w, b: np.ndarray = b) -> Call:
            y = np.empty((len(x), len(b)), np.float32)
            return lambda: fastrelu.linear_relu(x, w, b, out=y)

        def product(x: np.ndarray = x, w: np.ndarray = w, b: np.ndarray = b) -> Call:
            y = np.empty((len(x), len(b)), np.float32)
            return lambda: np.maximum(np.add(np.matmul(x, w, out=y), b, out=y), 0, out=y)

        yield f"linear_relu, {m} x {k} x {n}", layer, product


def rate(make: Maker, callers: int, seconds: float) -> float:
    """Calls a second of so many Python threads together."""
    start, stop = threading.Barrier(callers + 1), threading.Event()
    counts = [0] * callers

    def work(number: int) -> None:
        call, count = make(), 0
        call()
        start.wait()
        while not stop.is_set():
            for _ in range(10):
                call()
            count += 10
        counts[number] = count

    threads = [threading.Thread(target=work, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def rates(ours: Maker, numpy: Maker, turns: int, seconds: float) -> dict[str, float]:
    """The best rates of several turns."""
    best: dict[str, float] = {}
    for _ in range(turns):
        now = {"one": rate(ours, 1, seconds), "eight": rate(ours, CALLERS, seconds)}
        with fastrelu.num_threads(1):
            now["core"] = rate(ours, 1, seconds)
        now |= {"numpy one": rate(numpy, 1, seconds), "numpy eight": rate(numpy, CALLERS, seconds)}
        best = {name: max(value, best.get(name, 0)) for name, value in now.items()}
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.threads", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each measurement")
    options = parser.parse_args()
    print(f"calls a second, {fastrelu.get_num_threads()} threads a call")
    print("| call | 1 thread | 1 thread, 1 core | 8 threads | 8 / 1 | 8 / 1 on 1 core | NumPy, 1 | NumPy, 8 | 8 / 1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, ours, numpy in makers():
        r = rates(ours, numpy, options.turns, options.seconds)
        cells = [f"{r[key]:,.0f}" for key in ("one", "core", "eight")]
        cells += [f"{r['eight'] / r['one']:.2f}", f"{r['eight'] / r['core']:.2f}"]
        cells += [f"{r['numpy one']:,.0f}", f"{r['numpy eight']:,.0f}", f"{r['numpy eight'] / r['numpy one']:.2f}"]
        print("|", " | ".join((name, *cells)), "|", flush=True)


if __name__ == "__main__":
    main()
