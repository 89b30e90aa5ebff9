"""A device that is emulated: what stands in place of the driver in tests, and arrays that claim to be on it."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .execution import execute
from .memory import GlobalMemory
from .program import Program
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
        statistics = execute(
            program, grid, kernel.threads, arguments, self.global_memory, shared=kernel.shared, measure=self.measure
        )
        self.launches.append(statistics)

    def allocate(self, device: int, nbytes: int, stream: int) -> int:
        if not nbytes:
            return 0
        room = self._room(nbytes + 256)
        memory = room[-room.ctypes.data % 256 :][:nbytes]  # cuMemAlloc's alignment
        pointer = int(memory.ctypes.data)
        self._allocated[pointer] = memory
        self.global_memory.add(pointer, pointer + nbytes, f"{nbytes} bytes from the driver")
        return pointer

    def _room(self, nbytes: int) -> np.ndarray[Any, Any]:
        return np.full(nbytes, 0xFF, np.uint8)  # NaN: nothing is known of new memory

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

    def synchronize(self, device: int, stream: int) -> None:
        """Likewise."""

    @contextmanager
    def aside(self, device: int) -> Iterator[int]:
        yield 1

    def array(self, values: Any, *, writable: bool = True) -> DeviceArray:
        """A device array with these values, in the order of axes that they have."""
        values = np.asarray(values)
        array = self.empty(values.shape, values.dtype, values)
        array.host[...] = values
        if not writable:
            self.global_memory.protect(array.host.ctypes.data)
            array.writable = False
        return array

    def empty(self, shape: tuple[int, ...], dtype: Any, like: np.ndarray[Any, Any] | None = None) -> DeviceArray:
        """A device array that is not filled: its bits are those of NaN. Its axes are in the order of those of ``like``."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        pointer = self.allocate(0, max(count * dtype.itemsize, 1), 0)
        strides = np.empty_like(np.broadcast_to(np.empty((), dtype), shape) if like is None else like, dtype).strides
        flat = self._allocated[pointer][: count * dtype.itemsize].view(dtype)
        host = np.lib.stride_tricks.as_strided(flat, shape, strides) if count else flat.reshape(shape)
        weakref.finalize(flat, self.free, 0, pointer, 0)
        kind = DeviceArray if dtype.kind != "V" and dtype.name != "bfloat16" else PackedArray
        return kind(self, host)


class DeviceArray:
    """An array that claims to be on the emulated device: its memory is that of ``host``, a NumPy array."""

    def __init__(self, driver: EmulatedDriver, host: np.ndarray[Any, Any], *, writable: bool = True) -> None:
        self.driver, self.host, self.writable, self.stream = driver, host, writable, 1

    def __getitem__(self, index: Any) -> DeviceArray:
        """A view: a kernel may still touch the whole array."""
        return type(self)(self.driver, self.host[index], writable=self.writable)

    @property
    def T(self) -> DeviceArray:
        """The transposed view."""
        return type(self)(self.driver, self.host.T, writable=self.writable)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.host.shape,
            "typestr": self.host.dtype.str,
            "data": (self.host.ctypes.data if self.host.size else 0, not self.writable),
            "strides": None if self.host.flags.c_contiguous else self.host.strides,
            "version": 3,
            "stream": self.stream,
        }


class PackedArray(DeviceArray):
    """The same by DLPack, which has a name for bfloat16."""

    __cuda_array_interface__ = property()  # type: ignore[assignment]

    def __dlpack_device__(self) -> tuple[int, int]:
        from fastrelu.cuda import dlpack

        return dlpack.CUDA, 0

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None, **_: Any) -> Any:
        from fastrelu.cuda import dlpack

        host, versioned = self.host, max_version is not None and max_version >= (1, 0)
        where = self.__dlpack_device__()
        return dlpack.write(
            self, host.ctypes.data, host.shape, host.strides, host.dtype.name, host.dtype.itemsize, where, versioned
        )
