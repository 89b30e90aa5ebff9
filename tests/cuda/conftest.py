"""What several test files need. They need the extra ``cuda``, and are read only where this folder is named."""

from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def device() -> Iterator[object]:
    """An emulated device in place of the driver; its `array` makes device arrays."""
    from fastrelu.cuda import launch
    from tests.cuda.emulator import EmulatedDriver

    before, launch.driver = launch.driver, EmulatedDriver()
    yield launch.driver
    launch.driver = before


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes every product use a block tile, and so many blocks of terms for each block of threads."""
    from fastrelu.cuda import plans, products

    def force(tile: object, per_part: int = 1 << 20) -> None:
        plans.clear()
        monkeypatch.setattr(products, "plan", lambda sizes, *_: (tile, min(per_part, max(-(-sizes[1] // 256), 1))))

    return force
