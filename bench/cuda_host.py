"""What a call on a device costs the host: ``python -m bench.cuda_host``. It needs the extra ``cuda``, and no GPU.

The driver's functions are replaced by ones that do nothing. So this is the time of this package alone: operands are looked at,
the plan of the call is found, memory is asked for, arguments of kernels are written down. A real launch adds some
microseconds. With a GPU, ``python -m bench.cuda --only host_time`` measures whole calls, beside PyTorch's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from cuda.bindings import driver

import fastrelu
from bench.table import Point
from fastrelu.cuda import launch
from fastrelu.cuda.owned import OwnedArray

TARGETS = {"relu": 10e-6, "linear_relu": 25e-6, "linear_relu_backward": 40e-6}
_REPEATS, _TURNS = 200, 25


class Idle:
    """The functions of ``cuda.bindings.driver`` that are used, for one H200; constants are those of the bindings."""

    def __init__(self) -> None:
        self._next = 1 << 40
        of_device = driver.CUdevice_attribute
        self._attributes = {
            of_device.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: 9,
            of_device.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: 0,
            of_device.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: 132,
        }

    def __getattr__(self, name: str) -> Any:
        found = getattr(driver, name)
        if isinstance(found, type):
            return found

        def call(*_: Any) -> tuple[int, int]:
            return 0, 0

        call.__name__ = name
        setattr(self, name, call)
        return call

    def cuDriverGetVersion(self) -> tuple[int, int]:
        return 0, 13000

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[int, int]:
        return 0, self._attributes[attribute]

    def cuMemAllocAsync(self, nbytes: int, stream: int) -> tuple[int, int]:
        address = self._next
        self._next += -(-nbytes // 256) * 256
        return 0, address


def calls() -> dict[str, Callable[[], Any]]:
    """The calls that are timed, by their names: on a device, so small that it would wait for the host."""

    def array(*shape: int) -> OwnedArray:
        return OwnedArray(shape, "float32", 0, 1)

    x, y = array(1000), array(1000)
    a, w, b, out = array(4, 64), array(64, 64), array(64), array(4, 64)
    gradients = array(4, 64), array(64, 64), array(64)
    return {
        "relu": lambda: fastrelu.relu(x, out=y),
        "relu, new result": lambda: fastrelu.relu(x),
        "linear_relu": lambda: fastrelu.linear_relu(a, w, b, out=out),
        "linear_relu, new result": lambda: fastrelu.linear_relu(a, w, b),
        "linear_relu_backward": lambda: fastrelu.linear_relu_backward(out, out, a, w, out=gradients),
        "linear_relu_backward, new results": lambda: fastrelu.linear_relu_backward(out, out, a, w),
    }


def host_times() -> dict[str, float]:
    """Seconds of the processor for each call, least of some turns."""
    before, launch.driver = launch.driver, launch.CudaDriver(Idle())
    try:
        least = {}
        for name, call in calls().items():
            for turn in range(_TURNS + 1):
                begin = time.thread_time()
                for _ in range(_REPEATS):
                    call()
                taken = (time.thread_time() - begin) / _REPEATS
                if turn:  # the first one compiles
                    least[name] = min(least.get(name, taken), taken)
    finally:
        launch.driver = before
    return least


def points() -> list[Point]:
    """The same beside their targets."""
    seconds = host_times()
    found = []
    for name, target in TARGETS.items():
        values = {call: taken for call, taken in seconds.items() if call.partition(",")[0] == name}
        found.append(Point(f"host time of {name}", values, target, at_most=True, unit="s"))
    return found


def main() -> None:
    """Measure and print."""
    from bench.cuda import row

    argparse.ArgumentParser(prog="python -m bench.cuda_host", description=__doc__).parse_args()
    for point in points():
        print(row(point))


if __name__ == "__main__":
    main()
