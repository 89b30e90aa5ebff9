"""Kernels compiled, loaded and launched, through a driver that stands in for NVIDIA's."""

import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as real
from numpy.testing import assert_array_equal

from fastrelu.cuda import availability, launch
from fastrelu.cuda.launch import CudaDriver, Kernel
from fastrelu.cuda.toolkit import cuda, link, target_of, types

POINTER = types.CPointer(types.float32)


def _scale(x: Any, y: Any, n: Any, a: Any) -> None:
    for i in range(cuda.grid(1), n, cuda.gridsize(1)):
        y[i] = a * x[i]


def scale(**options: Any) -> Kernel:
    return Kernel(_scale, (POINTER, POINTER, types.int64, types.float32), threads=64, **options)


class StandIn:
    """The bindings' functions that are used; constants are those of the bindings."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.context: list[int] = []
        self.read: list[tuple[Any, ...]] = []
        self.version, self.start, self.launched = 13000, 0, 0
        self.capture_mode: Any = real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
        self.loaded_amid: list[int] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(real, name)
        return found if isinstance(found, type) else self._function(name)

    def _function(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            return (0, *getattr(self, f"_{name}", lambda *_: ())(*arguments))

        call.__name__ = name
        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def cuInit(self, _: int) -> tuple[int]:
        return (self.start,)

    def cuCtxGetDevice(self) -> tuple[int, int]:
        return (0, self.context[-1]) if self.context else (201, 0)

    def cuLaunchKernel(self, *arguments: Any) -> tuple[int]:
        self.calls.append(("cuLaunchKernel", arguments))
        slots = (ctypes.c_void_p * 4).from_address(arguments[9])
        kinds = ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64, ctypes.c_float
        self.read.append(tuple(kind.from_address(slot).value for kind, slot in zip(kinds, slots, strict=True)))
        return (self.launched,)

    def _cuDriverGetVersion(self) -> tuple[int]:
        return (self.version,)

    def _cuDeviceGetCount(self) -> tuple[int]:
        return (2,)

    def _cuDeviceGetName(self, length: int, device: int) -> tuple[bytes]:
        return (f"GPU {device}".encode().ljust(length, b"\0"),)

    def _cuDeviceTotalMem(self, device: int) -> tuple[int]:
        return (1 << 30,)

    def _cuDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[int]:
        attributes = real.CUdevice_attribute
        values = {
            int(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR): 9,
            int(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR): 0,
            int(attributes.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT): 132,
        }
        return (values[int(attribute)],)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int]:
        return (device,)

    def _cuCtxPushCurrent(self, context: int) -> tuple[()]:
        self.context.append(context)
        return ()

    def _cuCtxPopCurrent(self) -> tuple[int]:
        return (self.context.pop(),)

    def _cuThreadExchangeStreamCaptureMode(self, mode: Any) -> tuple[Any]:
        before, self.capture_mode = self.capture_mode, mode
        return (before,)

    def _cuLibraryLoadData(self, code: bytes, *_: Any) -> tuple[int]:
        self.loaded_amid.append(int(self.capture_mode))
        return (1,)

    def _cuLibraryGetKernel(self, library: int, name: bytes) -> tuple[int]:
        return (0x3000,)

    def _cuKernelGetFunction(self, kernel: int) -> tuple[int]:
        return (0x4000,)

    def _cuGetErrorString(self, error: int) -> tuple[bytes]:
        return (b"a launch of no use",)

    def _cuEventCreate(self, flags: Any) -> tuple[int]:
        return (7,)

    def _cuStreamCreate(self, flags: Any) -> tuple[int]:
        self.loaded_amid.append(int(self.capture_mode))
        return (9,)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn()
    monkeypatch.setattr("cuda.bindings.driver", stand_in)
    monkeypatch.setattr(launch, "driver", None)
    yield stand_in
    assert not stand_in.context, "a context was left behind"


def test_arguments_and_sizes_arrive(api: StandIn) -> None:
    scale(shared=1000).launch(1, 77, (3, 4, 5), 1 << 40, 2**63, -(1 << 40), 1.5)
    ((_, arguments),) = [call for call in api.calls if call[0] == "cuLaunchKernel"]
    assert int(arguments[0]) == 0x3000
    assert arguments[1:9] == (3, 4, 5, 64, 1, 1, 1000, 77)
    assert api.read == [(1 << 40, 2**63, -(1 << 40), 1.5)]


def test_loaded_once_a_device_as_machine_code_of_it(api: StandIn) -> None:
    kernel = scale()
    for device in (0, 1, 0, 1, 1):
        kernel.launch(device, 1, (1, 1, 1), 0, 0, 0, 1.0)
    loads = [arguments for name, arguments in api.calls if name == "cuLibraryLoadData"]
    assert [code[:4] for code, *_ in loads] == [b"\x7fELF"] * 2
    assert api.names().count("cuLaunchKernel") == 5


def test_loading_disturbs_no_capture(api: StandIn) -> None:
    modes = real.CUstreamCaptureMode
    for before in (modes.CU_STREAM_CAPTURE_MODE_GLOBAL, modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL):
        api.capture_mode = before
        scale().launch(0, 1, (1, 1, 1), 0, 0, 0, 1.0)
        assert api.capture_mode == before
    assert api.loaded_amid == [modes.CU_STREAM_CAPTURE_MODE_RELAXED] * 2


def test_work_aside_is_part_of_no_graph(api: StandIn) -> None:
    with launch.active().aside(1) as stream:
        assert (stream, api.context) == (9, [1])
    assert api.loaded_amid == [real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED]
    assert api.capture_mode == real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    assert [name for name in api.names() if "Stream" in name and "Exchange" not in name] == [
        *("cuStreamCreate", "cuStreamSynchronize", "cuStreamDestroy")
    ]


def test_forked_child_says_what_is_wrong(api: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = launch.active()
    pointer = 1 << 40
    monkeypatch.setattr("os.getpid", lambda: -1)
    driver.free(0, pointer, 1)  # what an array does when it dies there
    assert "cuMemFreeAsync" not in api.names()
    monkeypatch.setattr(StandIn, "cuLaunchKernel", lambda self, *_: (real.CUresult.CUDA_ERROR_NOT_INITIALIZED,))
    with pytest.raises(RuntimeError, match=r"^CUDA cannot be used in a process forked from .*: start processes by 'spawn'$"):
        scale().launch(0, 1, (1, 1, 1), 0, 0, 0, 1.0)


def test_launch_takes_the_context_of_the_thread_if_it_is_right(api: StandIn) -> None:
    kernel = scale()
    kernel.launch(1, 1, (1, 1, 1), 0, 0, 0, 1.0)
    api.calls.clear()
    for current, pushed in (([], True), ([0], True), ([1], False)):
        api.context[:] = current
        kernel.launch(1, 1, (1, 1, 1), 0, 0, 0, 1.0)
        assert ("cuCtxPushCurrent" in api.names()) is pushed
        assert api.context == current
        api.calls.clear()
    api.context.clear()


def test_much_shared_memory_is_asked_for(api: StandIn) -> None:
    scale(shared=48 << 10).launch(0, 1, (1, 1, 1), 0, 0, 0, 1.0)
    assert "cuKernelSetAttribute" not in api.names()
    scale(shared=(48 << 10) + 16).launch(0, 1, (1, 1, 1), 0, 0, 0, 1.0)
    ((_, arguments),) = [call for call in api.calls if call[0] == "cuKernelSetAttribute"]
    assert arguments[1:] == ((48 << 10) + 16, 0x3000, 0)


def test_grid_of_no_blocks_does_nothing(api: StandIn) -> None:
    scale().launch(0, 1, (0, 1, 1), 0, 0, 0, 1.0)
    assert not api.calls


def test_launch_that_fails_says_so(api: StandIn) -> None:
    api.launched = 1
    with pytest.raises(RuntimeError, match=r"^CUDA: cuLaunchKernel: a launch of no use$"):
        scale().launch(0, 1, (1, 1, 1), 0, 0, 0, 1.0)


def test_threads_do_not_share_arguments(api: StandIn) -> None:
    kernel, both = scale(), threading.Barrier(2)
    kernel.launch(0, 1, (1, 1, 1), 0, 0, 0, 1.0)
    api.calls.clear()
    api.context.append(0)

    def run() -> None:
        kernel.launch(0, 1, (1, 1, 1), 0, 0, 0, 1.0)
        both.wait()  # or the second thread may get the memory of the first

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    api.context.clear()
    assert len({arguments[9] for name, arguments in api.calls if name == "cuLaunchKernel"}) == 2


def test_streams_wait_by_an_event(api: StandIn) -> None:
    launch.active().wait_for(0, 11, 22)
    calls = [(name, arguments[-2:]) for name, arguments in api.calls if "Event" in name]
    assert [name for name, _ in calls] == ["cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "cuEventDestroy"]
    assert calls[1][1] == (7, 22)
    assert api.calls[[name for name, _ in api.calls].index("cuStreamWaitEvent")][1][:2] == (11, 7)


def test_memory_of_no_bytes_is_not_asked_for(api: StandIn) -> None:
    driver = launch.active()
    assert driver.allocate(0, 0, 1) == 0
    driver.free(0, 0, 1)
    assert not {"cuMemAllocAsync", "cuMemFreeAsync"} & {*api.names()}


def test_devices_are_told(api: StandIn) -> None:
    assert availability.devices() == (("GPU 0", (9, 0), 1 << 30), ("GPU 1", (9, 0), 1 << 30))
    assert availability.reason() == ""
    assert launch.active().processors(1) == 132


@pytest.mark.parametrize(
    ("start", "version", "words"),
    [
        (real.CUresult.CUDA_ERROR_NO_DEVICE, 13000, "the NVIDIA driver finds no GPU"),
        (1, 13000, "the NVIDIA driver does not start: a launch of no use"),
        (0, 12090, r"the NVIDIA driver knows CUDA 12\.9, and must know 13\.0"),
    ],
)
def test_driver_that_cannot_be_used(api: StandIn, start: int, version: int, words: str) -> None:
    api.start, api.version = start, version
    with pytest.raises(RuntimeError, match=f"^{words}$"):
        CudaDriver()
    assert not availability.is_available()


def _no_driver() -> bool:
    try:
        real.cuInit(0)
    except RuntimeError:
        return True
    return False


@pytest.mark.skipif("not _no_driver()", reason="there is a driver, which would do what it is told")
def test_bindings_take_our_arguments() -> None:
    """Without a driver, a function fails for that reason only after it has converted its arguments."""
    attribute = real.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    ordinal = real.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    processors = real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    room = (ctypes.c_void_p * 1)(1 << 40)
    for function, *arguments in (
        (real.cuLaunchKernel, real.CUfunction(int(real.CUkernel(5))), 1, 1, 1, 64, 1, 1, 0, 1 << 40, ctypes.addressof(room), 0),
        (real.cuLibraryLoadData, b"code", None, None, 0, None, None, 0),
        (real.cuLibraryGetKernel, real.CUlibrary(5), b"name"),
        (real.cuKernelSetAttribute, attribute, 100_000, real.CUkernel(5), 0),
        (real.cuKernelGetFunction, real.CUkernel(5)),
        (real.cuThreadExchangeStreamCaptureMode, real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED),
        (real.cuMemAllocAsync, 1000, 1),
        (real.cuMemFreeAsync, 1 << 40, 1),
        (real.cuMemcpyHtoDAsync, 1 << 40, 1 << 40, 8, 1),
        (real.cuMemcpyDtoHAsync, 1 << 40, 1 << 40, 8, 1),
        (real.cuStreamSynchronize, 1),
        (real.cuEventCreate, real.CUevent_flags.CU_EVENT_DISABLE_TIMING),
        (real.cuEventRecord, real.CUevent(5), 1),
        (real.cuStreamWaitEvent, 1, real.CUevent(5), 0),
        (real.cuEventDestroy, real.CUevent(5)),
        (real.cuStreamCreate, real.CUstream_flags.CU_STREAM_NON_BLOCKING),
        (real.cuStreamDestroy, real.CUstream(5)),
        (real.cuDeviceGetAttribute, processors, 0),
        (real.cuDevicePrimaryCtxRetain, 0),
        (real.cuCtxPushCurrent, real.CUcontext(5)),
        (real.cuCtxPopCurrent,),
        (real.cuCtxGetDevice,),
        (real.cuDeviceGetName, 256, 0),
        (real.cuDeviceTotalMem, 0),
        (real.cuPointerGetAttribute, ordinal, 1 << 40),
        (real.cuGetErrorString, real.CUresult.CUDA_ERROR_NO_DEVICE),
        (real.cuDriverGetVersion,),
        (real.cuDeviceGetCount,),
    ):
        with pytest.raises(RuntimeError, match="driver"):
            function(*arguments)


@pytest.mark.parametrize(
    ("capability", "target"),
    [((8, 0), (8, 0)), ((8, 9), (8, 9)), ((9, 0), (9, 0, "a")), ((10, 1), (10, 0)), ((99, 0), (12, 1))],
)
def test_target_of_a_device(capability: tuple[int, int], target: Any) -> None:
    assert target_of(capability) == target


def test_target_of_an_old_device() -> None:
    with pytest.raises(RuntimeError, match=r"compute capability 3\.5 is older"):
        target_of((3, 5))


@pytest.mark.parametrize("target", [(8, 0), (9, 0, "a")])
def test_compiled_without_a_driver(target: Any) -> None:
    kernel = scale(blocks=4)
    ptx, name = kernel.ptx(target)
    assert f".visible .entry {name}(" in ptx
    assert f".target sm_{''.join(map(str, target))}" in ptx
    assert ".maxntid 64" in ptx
    assert ".minnctapersm 4" in ptx
    assert link(ptx, target)[:4] == b"\x7fELF"
    assert kernel.ptx(target) is kernel.ptx(target)


def test_kernel_runs(device: Any) -> None:
    x, y = device.array(np.arange(100, dtype=np.float32)), device.empty((100,), np.float32)
    scale().launch(0, 1, (1, 1, 1), x.host.ctypes.data, y.host.ctypes.data, 100, 2.0)
    assert_array_equal(y.host, 2 * x.host)
