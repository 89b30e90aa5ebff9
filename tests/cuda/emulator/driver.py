"""A device that is emulated: what stands in place of the driver in tests, and arrays that claim to be on it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .memory import GlobalMemory
from .program import Program
from .run import launch
from .statistics import Statistics


class EmulatedDriver:
    """The methods of `fastrelu.cuda.launch.Driver`, on this machine's memory.

    Parameters
    ----------
    capability : tuple of int, optional
        Compute capability of the device, which decides what kernels are compiled for.
    measure : bool, optional
        Count sectors and wavefronts as well, which takes a while.
    """

    def __init__(self, capability: tuple[int, int] = (8, 0), *, devices: int = 1, measure: bool = False) -> None:
        self._capability, self._devices, self.measure = capability, devices, measure
        self.global_memory = GlobalMemory()
        self.launches: list[Statistics] = []
        """What each launch did, in order."""
        self.chosen = 0
        self._allocated: dict[int, np.ndarray[Any, Any]] = {}

    def count(self) -> int:
        return self._devices

    def current(self) -> int:
        return self.chosen

    def device_of(self, pointer: int) -> int:
        return 0

    def name(self, device: int) -> str:
        return "emulated"

    def capability(self, device: int) -> tuple[int, int]:
        return self._capability

    def memory(self, device: int) -> int:
        return 1 << 34

    def processors(self, device: int) -> int:
        return 4

    def load(self, device: int, kernel: Any) -> tuple[Program, Any]:
        from fastrelu.cuda.toolkit import target_of

        ptx, name = kernel.ptx(target_of(self._capability))
        return Program(ptx, name), kernel

    def launch(self, function: Any, grid: tuple[int, int, int], stream: int, arguments: tuple[Any, ...]) -> None:
        program, kernel = function
        statistics = launch(
            program, grid, kernel.threads, arguments, self.global_memory, shared=kernel.shared, measure=self.measure
        )
        self.launches.append(statistics)

    def allocate(self, device: int, nbytes: int, stream: int) -> int:
        if not nbytes:
            return 0
        room = np.full(nbytes + 256, 0xFF, np.uint8)
        memory = room[-room.ctypes.data % 256 :][:nbytes]  # cuMemAlloc's alignment
        pointer = int(memory.ctypes.data)
        self._allocated[pointer] = memory
        self.global_memory.add(pointer, pointer + nbytes, f"{nbytes} bytes from the driver")
        return pointer

    def free(self, device: int, pointer: int, stream: int) -> None:
        if pointer:
            del self._allocated[pointer]
            self.global_memory.remove(pointer)

    def copy_to_device(self, device: int, pointer: int, host: int, nbytes: int, stream: int) -> None:
        ctypes.memmove(pointer, host, nbytes)

    def copy_to_host(self, device: int, host: int, pointer: int, nbytes: int, stream: int) -> None:
        ctypes.memmove(host, pointer, nbytes)

    def wait_for(self, device: int, stream: int, other: int) -> None:
        """Everything has happened already."""

    def array(self, values: Any, *, writable: bool = True) -> DeviceArray:
        """A device array with these values, in the layout that they have."""
        return DeviceArray(self, np.array(values, copy=True, order="K", subok=False), writable=writable)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """A device array that is not filled: its bits are those of NaN."""
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = 0xFF
        return DeviceArray(self, array)


class DeviceArray:
    """An array that claims to be on the emulated device: its memory is that of ``host``, a NumPy array."""

    def __init__(
        self, driver: EmulatedDriver, host: np.ndarray[Any, Any], *, writable: bool = True, register: bool = True
    ) -> None:
        self.driver, self.host, self.stream = driver, host, 1
        self._writable = writable
        if register:
            driver.global_memory.register(host, writable=writable)

    def __getitem__(self, index: Any) -> DeviceArray:
        """A view: the kernel may still touch no more than the whole array."""
        return DeviceArray(self.driver, self.host[index], writable=self._writable, register=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements: ``typestr`` has no letter for bfloat16."""
        return self.host.dtype

    @property
    def T(self) -> DeviceArray:
        """The transposed view."""
        return DeviceArray(self.driver, self.host.T, writable=self._writable, register=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        contiguous = self.host.flags.c_contiguous
        return {
            "shape": self.host.shape,
            "typestr": self.host.dtype.str,
            "data": (self.host.ctypes.data if self.host.size else 0, not self._writable),
            "strides": None if contiguous else self.host.strides,
            "version": 3,
            "stream": self.stream,
        }
