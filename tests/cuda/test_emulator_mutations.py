"""A kernel of the package is broken on purpose, in each way that matters, and the emulator says what is wrong."""

import re
from typing import Any

import numpy as np
import pytest

import fastrelu
from fastrelu.cuda import launch, products
from fastrelu.cuda.kernels.linear import BlockTile
from fastrelu.cuda.toolkit import target_of
from tests.cuda.emulator import EmulatedDriver, Misaligned, OutOfBounds, Program, Race
from tests.cuda.values import to_host

M, K, N = 70, 100, 68


class Broken(EmulatedDriver):
    """A device that changes the kernel of the layer before it runs, or the address of its first operand."""

    def __init__(self, change: Any = None, shift: int = 0) -> None:
        super().__init__((9, 0))
        self._change, self._shift = change, shift

    def load(self, device: int, kernel: Any) -> Any:
        ptx, name = kernel.ptx(target_of(self._capability))
        return Program(self._change(ptx) if self._change else ptx, name), kernel

    def launch(self, function: Any, grid: Any, stream: int, arguments: tuple[Any, ...]) -> None:
        super().launch(function, grid, stream, (arguments[0] + self._shift, *arguments[1:]))


@pytest.fixture
def layer(monkeypatch):
    """Runs the layer on a device, with asynchronous copies of 16 bytes."""
    monkeypatch.setattr(products, "plan", lambda *_: (BlockTile(32, 32, 16, 4, 4, 8), 1))

    def run(device: Broken) -> None:
        monkeypatch.setattr(launch, "driver", device)
        rng = np.random.default_rng(0)
        x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, K), (K, N), (N,)))
        got = fastrelu.linear_relu(*(device.array(array, writable=False) for array in (x, w, b)))
        np.testing.assert_array_equal(to_host(got), fastrelu.linear_relu(x, w, b))

    return run


def without(pattern: str, which: int) -> Any:
    """The change that takes out one of the statements that match."""

    def change(ptx: str) -> str:
        found = list(re.finditer(pattern, ptx))[which]
        return ptx[: found.start()] + ptx[found.end() :]

    return change


def test_right_as_it_is(layer):
    layer(Broken())


def test_each_barrier_is_needed(layer):
    kernels = []
    layer(Broken(lambda ptx: kernels.append(ptx) or ptx))
    count = len(re.findall(r"bar\.sync[^;]*;", kernels[0]))
    assert count
    for which in range(count):
        with pytest.raises(Race):
            layer(Broken(without(r"bar\.sync[^;]*;", which)))


def test_wait_for_one_group_less(layer):
    with pytest.raises(Race, match="a copy that nobody waited for"):
        layer(Broken(lambda ptx: re.sub(r"wait_group (\d+)", lambda found: f"wait_group {int(found[1]) + 1}", ptx)))


@pytest.mark.parametrize("shift", [-4 * K * M, 4 * K, 1 << 30])
def test_operand_moved_out_of_its_memory(layer, shift):
    with pytest.raises(OutOfBounds):
        layer(Broken(shift=shift))


def test_operand_moved_by_half_an_element(layer):
    with pytest.raises(Misaligned):
        layer(Broken(shift=2))
