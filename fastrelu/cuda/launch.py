"""Kernels, and the driver that runs them.

A kernel's author writes a plain function in the language of ``numba.cuda`` and says what its arguments are::

    from fastrelu.cuda.launch import Kernel
    from fastrelu.cuda.toolkit import cuda, types

    def _double(x, y, n):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            y[i] = x[i] + x[i]

    POINTER = types.CPointer(types.float32)
    double = Kernel(_double, (POINTER, POINTER, types.int64), threads=256)

and whoever calls it gives the device, the stream, the blocks of the grid, and plain numbers: addresses, integers, floats::

    double.launch(x.device, x.stream, (blocks, 1, 1), x.pointer, y.pointer, n)

The function is compiled once a target, and loaded once a device. A launch takes no memory from the device and waits for
nothing, so that it can be captured into a graph. The first one of a kernel takes a second, also while a stream is captured.

`driver` is the only way to the hardware: tests put an object with the same methods there.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from fastrelu.native.guard import lock

Grid = tuple[int, int, int]

_FREE_SHARED_MEMORY = 48 << 10
"""Bytes of dynamic shared memory that a kernel may have without asking."""
FIRST_CAPABILITY = (8, 0)
"""The oldest GPUs with asynchronous copies to shared memory, and with tensor cores for TF32 and bfloat16."""
_OLDEST_DRIVER = 13000
"""Version of CUDA whose machine code numba-cuda[cu13] makes."""

_LETTERS = {"int32": "i4x", "uint32": "I4x", "int64": "q", "uint64": "Q", "float32": "f4x", "float64": "d"}
"""How `struct` writes a number into 8 bytes."""


class Driver(Protocol):
    """What a driver does. Devices are numbers, streams and addresses as well; every call is about the device it names."""

    def count(self) -> int:
        """How many devices there are."""

    def current(self) -> int:
        """The device that the thread has chosen; 0 if it has not."""

    def device_of(self, pointer: int) -> int:
        """The device whose memory an address is in."""

    def name(self, device: int) -> str:
        """What the device is called."""

    def capability(self, device: int) -> tuple[int, int]:
        """Its compute capability."""

    def memory(self, device: int) -> int:
        """Bytes of its memory."""

    def processors(self, device: int) -> int:
        """Its multiprocessors."""

    def load(self, device: int, kernel: Kernel) -> Any:
        """Make a kernel ready for a device; returns what `launch` takes."""

    def launch(self, function: Any, grid: Grid, stream: int, arguments: Sequence[Any]) -> None:
        """Put a kernel into a stream, for a grid of blocks, with one number for each argument."""

    def allocate(self, device: int, nbytes: int, stream: int) -> int:
        """The address of new memory, which a stream can use from now on."""

    def free(self, device: int, pointer: int, stream: int) -> None:
        """Give memory back, once a stream has done what it has been told so far."""

    def copy_to_device(self, device: int, pointer: int, host: int, nbytes: int, stream: int) -> None:
        """Copy from an address on the host; the host's memory may change after the call."""

    def copy_to_host(self, device: int, host: int, pointer: int, nbytes: int, stream: int) -> None:
        """Copy to an address on the host, and wait for it."""

    def wait_for(self, device: int, stream: int, other: int) -> None:
        """Let a stream wait for what another has been told so far."""

    def synchronize(self, device: int, stream: int) -> None:
        """Wait for what a stream has been told so far."""

    def aside(self, device: int) -> AbstractContextManager[int]:
        """A stream for work that becomes part of no graph, though one may be captured; at the end it is waited for."""


driver: Driver | None = None
"""The driver in use; None until the first one is wanted."""


def active() -> Driver:
    """The driver in use; the real one if there is none yet.

    Raises
    ------
    RuntimeError
        If there is none, or it is too old.
    ImportError
        If cuda-bindings is not installed.
    """
    global driver
    if driver is None:
        with lock:
            if driver is None:
                driver = CudaDriver()
    return driver


class Kernel:
    """A function for a GPU.

    Parameters
    ----------
    function : callable
        A plain Python function in the language of ``numba.cuda``.
    arguments : tuple of numba types
        The types of its arguments: pointers, integers and floats, and tuples of them, which are launched with one number each.
    threads : int or tuple of int
        Threads of a block, along x, or along x, y and z.
    shared : int, optional
        Bytes of dynamic shared memory of a block.
    blocks : int, optional
        How many blocks a multiprocessor must have room for, which limits the registers of a thread.
    """

    def __init__(
        self,
        function: Callable[..., None],
        arguments: tuple[Any, ...],
        threads: int | Grid,
        *,
        shared: int = 0,
        blocks: int | None = None,
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.threads: Grid = (threads, 1, 1) if isinstance(threads, int) else threads
        self.shared = shared
        self.blocks = blocks
        self._compiled: dict[Any, tuple[str, str]] = {}
        self._loaded: dict[tuple[Driver, int], Any] = {}

    def ptx(self, target: Any) -> tuple[str, str]:
        """The code for a target such as ``(9, 0, "a")``, and the kernel's name in it."""
        if target not in self._compiled:
            from fastrelu.cuda.toolkit import compile_ptx

            x, y, z = self.threads
            self._compiled[target] = compile_ptx(self.function, self.arguments, target, x * y * z, self.blocks)
        return self._compiled[target]

    def launch(self, device: int, stream: int, grid: Grid, *arguments: float) -> None:
        """Put the kernel into a stream of a device.

        Parameters
        ----------
        device, stream : int
            The device's number, and the stream's handle.
        grid : tuple of int
            Blocks along x, y and z. A grid of no blocks does nothing.
        *arguments : int or float
            One number for each argument. Whoever calls keeps what they point to alive, as the libraries of arrays do.
        """
        if 0 in grid:
            return
        using = driver or active()
        using.launch(self.on(using, device), grid, stream, arguments)

    def on(self, using: Driver, device: int) -> Any:
        """The kernel as a driver launches it on a device; compiled and loaded if it has not been before."""
        function = self._loaded.get((using, device))
        if function is None:
            with lock:
                function = self._loaded.get((using, device))
                if function is None:
                    function = self._loaded[using, device] = using.load(device, self)
        return function


class _Function:
    """A kernel on a device, with room for the arguments of a launch by each thread."""

    def __init__(self, handle: Any, device: int, kernel: Kernel) -> None:
        self.handle = handle
        self.device = device
        self.block = kernel.threads
        self.shared = kernel.shared
        numbers = [number for argument in kernel.arguments for number in getattr(argument, "types", (argument,))]
        self.format = "=" + "".join(map(_letter, numbers))
        self.room = _Room(len(numbers))


class _Room(threading.local):
    """Arguments in slots of 8 bytes, and the addresses of the slots: a launch lets other threads run while it reads them."""

    def __init__(self, n: int) -> None:
        self.values = (ctypes.c_int64 * max(n, 1))()
        first = ctypes.addressof(self.values)
        self.pointers = (ctypes.c_void_p * max(n, 1))(*(first + 8 * i for i in range(n)))
        self.address = ctypes.addressof(self.pointers)


def _letter(argument: Any) -> str:
    """The same for a numba type; a pointer is an address."""
    name = str(argument)
    return "Q" if name.endswith("*") else _LETTERS[name]


class CudaDriver:
    """NVIDIA's driver, through cuda-bindings.

    Parameters
    ----------
    api : module, optional
        What stands in for ``cuda.bindings.driver``.
    """

    def __init__(self, api: Any = None) -> None:
        if api is None:
            from cuda.bindings import driver

            api = driver
        self._api = api
        self._process = os.getpid()
        self._contexts: dict[int, Any] = {}
        try:
            error, *_ = api.cuInit(0)
        except RuntimeError:
            raise RuntimeError("there is no NVIDIA driver on this machine") from None
        if error == api.CUresult.CUDA_ERROR_NO_DEVICE:
            raise RuntimeError("the NVIDIA driver finds no GPU")
        if error:
            raise RuntimeError(f"the NVIDIA driver does not start: {self._text(error)}")
        found = self._call(api.cuDriverGetVersion)
        if found < _OLDEST_DRIVER:
            raise RuntimeError(
                f"the NVIDIA driver knows CUDA {found // 1000}.{found % 1000 // 10}, and must know {_OLDEST_DRIVER // 1000}.0"
            )

    def count(self) -> int:
        return int(self._call(self._api.cuDeviceGetCount))

    def current(self) -> int:
        error, device = self._api.cuCtxGetDevice()
        return 0 if error else int(device)

    def device_of(self, pointer: int) -> int:
        attribute = self._api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(self._call(self._api.cuPointerGetAttribute, attribute, pointer))

    def name(self, device: int) -> str:
        text: bytes = self._call(self._api.cuDeviceGetName, 256, device)
        return text.partition(b"\0")[0].decode()

    def capability(self, device: int) -> tuple[int, int]:
        return self._attribute(device, "COMPUTE_CAPABILITY_MAJOR"), self._attribute(device, "COMPUTE_CAPABILITY_MINOR")

    def memory(self, device: int) -> int:
        return int(self._call(self._api.cuDeviceTotalMem, device))

    def processors(self, device: int) -> int:
        return self._attribute(device, "MULTIPROCESSOR_COUNT")

    def load(self, device: int, kernel: Kernel) -> _Function:
        from fastrelu.cuda.toolkit import link, target_of

        api, capability = self._api, self.capability(device)
        if capability < FIRST_CAPABILITY:
            has, needs = (".".join(map(str, pair)) for pair in (capability, FIRST_CAPABILITY))
            raise RuntimeError(
                f"CUDA device {device} ({self.name(device)}) has compute capability {has}, and kernels need {needs}"
            )
        target = target_of(capability)
        ptx, name = kernel.ptx(target)
        # A device that is newer than all targets gets what its driver makes of the PTX.
        code = link(ptx, target) if target[:2] == capability else ptx.encode() + b"\0"
        with self._on(device), self._amid_captures():
            library = self._call(api.cuLibraryLoadData, code, None, None, 0, None, None, 0)
            loaded = self._call(api.cuLibraryGetKernel, library, name.encode())
            if kernel.shared > _FREE_SHARED_MEMORY:
                attribute = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._call(api.cuKernelSetAttribute, attribute, kernel.shared, loaded, device)
            # Now rather than at the first launch: loading may wait for the device.
            self._call(api.cuKernelGetFunction, loaded)
        # The library's kernel, which the driver takes in place of a function, runs in every context of the device.
        return _Function(api.CUfunction(int(loaded)), device, kernel)

    def launch(self, function: _Function, grid: Grid, stream: int, arguments: Sequence[Any]) -> None:
        api, room = self._api, function.room
        struct.pack_into(function.format, room.values, 0, *arguments)
        call = (function.handle, *grid, *function.block, function.shared, stream, room.address, 0)
        error, device = api.cuCtxGetDevice()
        if error or int(device) != function.device:
            with self._on(function.device):
                self._call(api.cuLaunchKernel, *call)
        else:
            self._call(api.cuLaunchKernel, *call)

    def allocate(self, device: int, nbytes: int, stream: int) -> int:
        with self._on(device):
            return int(self._call(self._api.cuMemAllocAsync, nbytes, stream)) if nbytes else 0

    def free(self, device: int, pointer: int, stream: int) -> None:
        if pointer and os.getpid() == self._process:  # a forked child has no part in the memory
            with self._on(device):
                self._call(self._api.cuMemFreeAsync, pointer, stream)

    def copy_to_device(self, device: int, pointer: int, host: int, nbytes: int, stream: int) -> None:
        with self._on(device):
            self._call(self._api.cuMemcpyHtoDAsync, pointer, host, nbytes, stream)
        self.synchronize(device, stream)

    def copy_to_host(self, device: int, host: int, pointer: int, nbytes: int, stream: int) -> None:
        with self._on(device):
            self._call(self._api.cuMemcpyDtoHAsync, host, pointer, nbytes, stream)
        self.synchronize(device, stream)

    def wait_for(self, device: int, stream: int, other: int) -> None:
        api = self._api
        with self._on(device):
            event = self._call(api.cuEventCreate, api.CUevent_flags.CU_EVENT_DISABLE_TIMING)
            try:
                self._call(api.cuEventRecord, event, other)
                self._call(api.cuStreamWaitEvent, stream, event, 0)
            finally:
                self._call(api.cuEventDestroy, event)  # its work is done even if the device has not come to it

    def synchronize(self, device: int, stream: int) -> None:
        with self._on(device):
            self._call(self._api.cuStreamSynchronize, stream)

    @contextmanager
    def aside(self, device: int) -> Iterator[int]:
        api = self._api
        with self._on(device), self._amid_captures():
            stream = self._call(api.cuStreamCreate, api.CUstream_flags.CU_STREAM_NON_BLOCKING)
            try:
                yield int(stream)
                self._call(api.cuStreamSynchronize, stream)
            finally:
                self._call(api.cuStreamDestroy, stream)

    def _attribute(self, device: int, name: str) -> int:
        attribute = getattr(self._api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call(self._api.cuDeviceGetAttribute, attribute, device))

    def _on(self, device: int) -> _Context:
        """Makes the context of a device, which all libraries share, the thread's own for a while."""
        if device not in self._contexts:
            self._contexts[device] = self._call(self._api.cuDevicePrimaryCtxRetain, device)
        return _Context(self, self._contexts[device])

    @contextmanager
    def _amid_captures(self) -> Iterator[None]:
        """Lets this thread do for a while what is forbidden while a stream is captured, and becomes no part of the graph."""
        api = self._api
        before = self._call(api.cuThreadExchangeStreamCaptureMode, api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            yield
        finally:
            self._call(api.cuThreadExchangeStreamCaptureMode, before)

    def _call(self, function: Any, *arguments: Any) -> Any:
        error, *values = function(*arguments)
        if error:
            if os.getpid() != self._process:
                raise RuntimeError(
                    "CUDA cannot be used in a process forked from one that had used it: start processes by 'spawn'"
                )
            kind = MemoryError if error == self._api.CUresult.CUDA_ERROR_OUT_OF_MEMORY else RuntimeError
            raise kind(f"CUDA: {function.__name__}: {self._text(error)}")
        return values[0] if values else None

    def _text(self, error: Any) -> str:
        _, text = self._api.cuGetErrorString(error)
        return text.decode() if text else str(error)


class _Context:
    def __init__(self, using: CudaDriver, context: Any) -> None:
        self._driver, self._context = using, context

    def __enter__(self) -> None:
        self._driver._call(self._driver._api.cuCtxPushCurrent, self._context)

    def __exit__(self, *_: object) -> None:
        self._driver._call(self._driver._api.cuCtxPopCurrent)
