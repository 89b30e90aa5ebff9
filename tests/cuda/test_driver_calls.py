"""The real driver's functions, called through the real bindings: a library with their names stands in for NVIDIA's.

It is compiled from libcuda.c, and processes of their own find it in the place of the real one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import subprocesses

COMPILER = shutil.which(os.environ.get("CC", "cc"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
SOURCE = Path(__file__).with_name("libcuda.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stand-in."""
    folder = tmp_path_factory.mktemp("driver")
    command = [str(COMPILER), "-shared", "-fPIC", "-O1", "-w", str(SOURCE), "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture
def calls(library: Path, tmp_path: Path) -> Callable[[Callable[[], None]], list[str]]:
    """Runs a function of this file in a process with the stand-in, and returns the calls that this has got."""

    def run(function: Callable[[], None]) -> list[str]:
        record = tmp_path / "calls"
        subprocesses.call(function, env={"LD_LIBRARY_PATH": str(library), "CALLS": str(record)})
        return record.read_text().splitlines()

    return run


def _kernel() -> None:
    from fastrelu.cuda import availability, launch
    from tests.cuda.test_launch import scale

    assert availability.reason() == ""
    assert availability.devices() == (("stand-in 0", (9, 0), 1 << 37), ("stand-in 1", (9, 0), 1 << 37))
    kernel = scale(shared=50_000)
    for stream in (1, 0x7FFF12345678):
        kernel.launch(1, stream, (3, 4, 5), 1 << 40, 2**63, -5, 1.5)
    driver = launch.active()
    assert driver.current() == 0
    assert driver.device_of(1 << 40) == 1
    with pytest.raises(RuntimeError, match=r"^CUDA: cuStreamSynchronize: error 400 of the stand-in$"):
        driver.synchronize(0, 0xBAD)


def test_kernel_is_loaded_and_launched(calls: Callable[[Callable[[], None]], list[str]]) -> None:
    told = calls(_kernel)
    assert told[0] == "init 0"
    first = told.index("push 1")
    launched = "launch grid 3 4 5 block 64 1 1 shared 50000 stream {} device 1 arguments 10000000000 8000000000000000 {:x}"
    assert told[first : told.index("retain 0")] == [
        *("push 1", "capture mode 2", "load", "shared 50000 on 1", "capture mode 0", "pop"),
        *("push 1", launched.format("1", 2**64 - 5), "pop"),
        *("push 1", launched.format("7fff12345678", 2**64 - 5), "pop"),
    ]


def _memory() -> None:
    from fastrelu.cuda import launch

    driver = launch.active()
    sent, back = np.arange(8.0), np.zeros(8)
    pointer = driver.allocate(0, 64, 7)
    driver.copy_to_device(0, pointer, sent.ctypes.data, 64, 7)
    driver.copy_to_host(0, back.ctypes.data, pointer, 64, 7)
    np.testing.assert_array_equal(back, sent)
    driver.wait_for(0, 7, 8)
    driver.free(0, pointer, 8)


def test_memory_and_streams(calls: Callable[[Callable[[], None]], list[str]]) -> None:
    assert [line for line in calls(_memory) if not line.startswith(("init", "retain", "push", "pop"))] == [
        "allocate 64 stream 7, now 1",
        *("to device 64 stream 7", "synchronize 7"),
        *("to host 64 stream 7", "synchronize 7"),
        *("event 2", "record in 8", "wait in 7", "destroy"),
        "free stream 8, now 0",
    ]


def _public() -> None:
    import fastrelu

    x = np.array([[-1, 2, 3]], np.float32)
    for _ in range(2):
        y = fastrelu.leaky_relu(x, 0.5, device="cuda:1")
        assert (type(y), y.shape, y.dtype) == (np.ndarray, (1, 3), np.float32)
    with pytest.raises(RuntimeError, match=r"^relu: cuda:2 cannot be used: there are 2 devices$"):
        fastrelu.relu(x, device="cuda:2")


def test_public_function(calls: Callable[[Callable[[], None]], list[str]]) -> None:
    told = calls(_public)
    assert told.count("load") == 1
    launches = [line for line in told if line.startswith("launch")]
    assert len(launches) == 2
    assert all("block 256 1 1 shared 0 stream 1 device 1" in line for line in launches)
    assert "retain 0" not in told
    assert [line for line in told if ", now" in line][-1] == "free stream 1, now 0"


def _fork() -> None:
    import fastrelu
    from fastrelu.cuda.owned import OwnedArray

    x = OwnedArray((3,), "float32", 0, 1)
    fastrelu.relu(x)
    child = os.fork()
    if not child:
        try:
            fastrelu.relu(x)
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) and "'spawn'" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    fastrelu.relu(x)


def test_fork(calls: Callable[[Callable[[], None]], list[str]]) -> None:
    assert [line for line in calls(_fork) if ", now" in line][-1] == "free stream 1, now 0"
