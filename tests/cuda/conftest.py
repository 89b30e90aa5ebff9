"""What needs the extra ``cuda``: without it the whole directory is left out."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

# `numba.cuda` is a part of Numba as well, and an older one: numba-cuda is what the extra brings.
MISSING = find_spec("numba_cuda") is None
collect_ignore_glob = ["*"] if MISSING else []


@pytest.fixture
def device() -> Iterator[object]:
    """An emulated device in place of the driver; its `array` makes device arrays."""
    from fastrelu.cuda import launch
    from tests.cuda.emulator import EmulatedDriver

    before, launch.driver = launch.driver, EmulatedDriver()
    yield launch.driver
    launch.driver = before
