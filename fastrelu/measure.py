"""Times as ratios: calls are timed in turns in one run, so that whatever slows the machine down slows all of them down.

The limit is measured, not looked up: the fastest of several ways of copying the same number of bytes, in the same turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, repeat
from statistics import median
from typing import Any

import numpy as np

from fastrelu.threads import get_num_threads

Call = Callable[[], Any]

# A sample is as many calls as take this long: a thousand times the clock's resolution.
SAMPLE = 50e-6
# Samples of one call in one turn; then the next call has its turn.
TURN = 5e-3
# Before each turn the threads of the library before must stop waiting for more work: OpenBLAS's spin for 0.1 s, ONNX
# Runtime's for 0.04 s, and a product on two cores takes twice as long beside one that spins.
PAUSE = 5e-3
LONGEST_PAUSE = 0.5

# Below this, handing a copy to threads takes longer than the copy.
SMALLEST_PARALLEL_COPY = 1 << 20
# Stores that bypass the caches pay only where arrays exceed them.
_SMALLEST_STREAMING_COPY = 8 << 20


@dataclass(frozen=True)
class Timing:
    """Seconds that a call takes.

    Attributes
    ----------
    minimum, median : float
        Of all samples.
    samples : int
        How many there are.
    turns : tuple of float
        The least of each turn.
    """

    minimum: float
    median: float
    samples: int
    turns: tuple[float, ...]


def compare(calls: Mapping[str, Call], seconds: float = 1.0, turns: int = 3, turn: float = TURN) -> dict[str, Timing]:
    """Time several calls in turns.

    Parameters
    ----------
    calls : mapping of str to callable
        Functions without arguments. Each is called at least twice before it is timed, so that it is compiled and its memory
        is mapped.
    seconds : float
        Stop after the turn in which this time is over.
    turns : int
        Turns that there are in any case, however long they take.
    turn : float
        Seconds that a turn takes at least. Some systems wake a thread on the processor of the thread that woke it, and move it
        only after some milliseconds.

    Returns
    -------
    dict of str to Timing
        In the order of `calls`.

    Examples
    --------
    >>> from fastrelu.measure import compare
    >>> timings = compare({"short": lambda: sum(range(10)), "long": lambda: sum(range(10000))}, seconds=0.1)
    >>> timings["short"].minimum < timings["long"].minimum
    True
    """
    end = time.perf_counter() + seconds
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    names = list(calls)
    for number in count(1):
        for name in names:
            samples[name].append(_turn(calls[name], repeats[name], turn))
        if number >= turns and time.perf_counter() >= end:
            break
        names.reverse()  # so that none always runs after the same other
    return {name: _timing(taken) for name, taken in samples.items()}


def _timing(turns: list[list[float]]) -> Timing:
    samples = [sample for turn in turns for sample in turn]
    return Timing(min(samples), median(samples), len(samples), tuple(map(min, turns)))


def _sample(call: Call, repeats: int) -> float:
    calls = repeat(None, repeats)
    start = time.perf_counter()
    for _ in calls:
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(call: Call) -> int:
    """How many calls make a sample."""
    call()
    repeats = 1
    while (taken := _sample(call, repeats)) * repeats < SAMPLE:
        repeats = max(2 * repeats, round(SAMPLE / max(taken, 1e-9)))
    return repeats


def _settle() -> None:
    """Wait until no thread of this process works."""
    end = time.perf_counter() + LONGEST_PAUSE
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - before < PAUSE / 20:
            return


def _turn(call: Call, repeats: int, turn: float) -> list[float]:
    _settle()
    start = time.perf_counter()
    samples = [_sample(call, repeats)]
    if time.perf_counter() - start < turn:
        samples.clear()  # it had to fetch its data into the caches and to wake its threads
    while not samples or time.perf_counter() - start < turn:
        samples.append(_sample(call, repeats))
    return samples


def copies(source: np.ndarray, target: np.ndarray) -> dict[str, Call]:
    """Ways of copying one contiguous array to another of the same size: the fastest is what the memory allows.

    Parameters
    ----------
    source, target : ndarray
        Contiguous arrays of the same number of bytes. The calls overwrite `target`.

    Returns
    -------
    dict of str to callable
        For `compare`: `numpy.copyto` and, for long arrays, `fastrelu.stream.copy_streaming`, each on one thread and on as many
        as `fastrelu.get_num_threads` allows, and PyTorch's ``copy_`` if it is installed. A copy moves ``2 * source.nbytes``
        bytes. Handing it to threads takes some 10 us, so that for arrays which fit the caches it is a limit for a call, not
        for the caches.
    """
    source, target = source.reshape(-1).view(np.uint8), target.reshape(-1).view(np.uint8)
    ways: dict[str, Call] = {"copy": partial(np.copyto, target, source)}
    threads = get_num_threads()
    if threads > 1 and source.nbytes >= SMALLEST_PARALLEL_COPY:
        ways["copy on threads"] = _parallel_copy(np.copyto, target, source, threads)
    if source.nbytes >= _SMALLEST_STREAMING_COPY:
        from fastrelu.stream import copy_streaming

        ways["streaming copy"] = partial(copy_streaming, target, source)
        if threads > 1:
            ways["streaming copy on threads"] = _parallel_copy(copy_streaming, target, source, threads)
    from fastrelu.peers import available

    if available("torch"):
        import torch

        ways["copy by torch"] = partial(torch.from_numpy(target).copy_, torch.from_numpy(source))
    return ways


def _parallel_copy(copy: Callable[..., None], target: np.ndarray, source: np.ndarray, threads: int) -> Call:
    pool = _pool(threads)
    share = (len(source) // threads + 64) & -64
    parts = [slice(start, start + share) for start in range(0, len(source), share)]
    targets, sources = [target[part] for part in parts], [source[part] for part in parts]
    return lambda: list(pool.map(copy, targets, sources))


def reads(source: np.ndarray) -> dict[str, Call]:
    """Ways of reading a contiguous array once: the fastest is what the memory allows.

    Parameters
    ----------
    source : ndarray
        A contiguous array.

    Returns
    -------
    dict of str to callable
        For `compare`: on one thread, and on as many as `fastrelu.get_num_threads` allows.
    """
    from fastrelu.stream import read_streaming

    source, threads = source.reshape(-1).view(np.uint8), get_num_threads()
    share = (len(source) // threads + 64) & -64
    parts = [source[start : start + share] for start in range(0, len(source), share)]
    pool = _pool(threads)

    def together() -> None:
        waiting = [pool.submit(read_streaming, part) for part in parts[1:]]
        read_streaming(parts[0])
        for future in waiting:
            future.result()

    return {"read": partial(read_streaming, source), "read on threads": together}


def on_all_threads(call: Call) -> Call:
    """A call that makes `call` on as many threads as `fastrelu.get_num_threads` allows, all at once."""
    threads = get_num_threads()
    pool = _pool(threads)

    def together() -> None:
        for future in [pool.submit(call) for _ in range(threads)]:
            future.result()

    return together


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def bandwidth(timings: Mapping[str, Timing], ways: Mapping[str, Call], nbytes: int) -> float:
    """GB/s of the fastest of `ways` in `timings`, all of which move `nbytes` bytes."""
    return nbytes / min(timings[way].minimum for way in ways) / 1e9


def fastest_copy(nbytes: int, seconds: float = 0.5) -> Call:
    """The fastest of `copies` that moves `nbytes` bytes, read and written ones together. Which it is, is measured once."""
    return _copies_moving(nbytes)[_fastest_way(nbytes, seconds)]


def _copies_moving(nbytes: int) -> dict[str, Call]:
    half = max(nbytes // 2, 1)
    return copies(np.ones(half, np.uint8), np.ones(half, np.uint8))


@cache
def _fastest_way(nbytes: int, seconds: float) -> str:
    timings = compare(_copies_moving(nbytes), seconds)
    return min(timings, key=lambda way: timings[way].minimum)
