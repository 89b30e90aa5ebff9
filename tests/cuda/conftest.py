"""What several test files need. Without the extra ``cuda`` none of them is read: see ``conftest.py`` above ``tests``."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def device() -> Iterator[object]:
    """An emulated device in place of the driver; its `array` makes device arrays."""
    from fastrelu.cuda import launch
    from tests.cuda.emulator import EmulatedDriver

    before, launch.driver = launch.driver, EmulatedDriver()
    yield launch.driver
    launch.driver = before
