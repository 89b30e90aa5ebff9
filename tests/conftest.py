"""What several test files need."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

import fastrelu
from fastrelu.native import pool

# Every example of a run is the same in the next one, and nothing is written beside the tests.
settings.register_profile("repeatable", deadline=None, max_examples=30, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture
def streaming() -> Iterator[None]:
    """Streaming stores at every size that is divided into parts, as if the machine had no cache."""
    fastrelu.relu(1.0)  # the size of the cache is set when the first loop is loaded
    before = pool.read(pool.CACHE)
    pool.write(pool.CACHE, 1)
    yield
    pool.write(pool.CACHE, before)
