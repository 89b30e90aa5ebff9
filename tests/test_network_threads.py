"""Pooling, embeddings and the loss from many threads and in forks: the same bytes as alone, and no hang.

What can hang or kill a process runs in a fresh one.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastrelu
from tests.forks import ended_well, start_child
from tests.subprocesses import call

FOUR = {"FASTRELU_NUM_THREADS": "4"}


def everything() -> list[bytes]:
    """All results, of operands that are divided among threads."""
    rng = np.random.default_rng(0)
    x, table = rng.standard_normal((8, 16, 64, 64)).astype(np.float32), rng.standard_normal((500, 16)).astype(np.float32)
    ids, labels = rng.integers(0, 500, (3000, 9)), rng.integers(0, 64, 8192)
    y, indices = fastrelu.max_pool2d(x, 3, 2, 1, return_indices=True)
    dx = fastrelu.max_pool2d_backward(y, indices, x.shape)
    loss, dlogits = fastrelu.softmax_cross_entropy(x.reshape(-1, 64), labels)
    mean = fastrelu.embedding_mean(ids, table)
    dtable = fastrelu.embedding_mean_backward(mean, ids, 500)
    return [a.tobytes() for a in (y, indices, dx, loss, dlogits, mean, dtable)]


def eight_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: everything(), range(32)))
    assert all(result == everything() for result in results)


def test_first_use_from_eight_threads_at_once():
    call(eight_threads, env=FOUR, timeout=120)


def forks() -> None:
    expected = everything()
    for _ in range(5):
        assert ended_well(
            start_child(lambda: everything() == expected and ended_well(start_child(lambda: everything() == expected)))
        )
    assert everything() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_children_and_grandchildren():
    call(forks, env=FOUR, timeout=120)
