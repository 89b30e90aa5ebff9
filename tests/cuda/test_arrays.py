"""Arrays of other libraries as records, results from their allocators, the order of their streams, and what is refused."""

import contextlib
import gc
import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastrelu.cuda import arrays, dlpack, launch
from fastrelu.cuda.arrays import DEFAULT_STREAM, Work, view
from fastrelu.cuda.owned import OwnedArray
from tests.subprocesses import run


@pytest.fixture(autouse=True)
def waits(device: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Which stream was told to wait for which; -1 is the host."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(device, "wait_for", lambda device, stream, other: told.append((stream, other)))
    monkeypatch.setattr(device, "synchronize", lambda device, stream: told.append((-1, stream)))
    return told


class Interface:
    """An array of a library that is known by ``__cuda_array_interface__`` only."""

    def __init__(self, host: np.ndarray, **said: Any):
        self.host, self.said = host, said

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = self.host.ctypes.data, False
        return {"shape": self.host.shape, "typestr": self.host.dtype.str, "data": data, "version": 3, **self.said}


class Dlpack:
    """An array of a library that is known by DLPack only."""

    def __init__(self, host: np.ndarray, dtype: str = "", device: tuple[int, int] = (2, 0), versioned: bool = True):
        self.host, self.dtype_name, self.device_pair, self.versioned = host, dtype or host.dtype.name, device, versioned
        self.streams: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device_pair

    def __dlpack__(self, *, stream: Any = None, **keywords: Any) -> Any:
        if keywords and not self.versioned:
            raise TypeError("unexpected keyword")
        self.streams.append(stream)
        a = self.host
        return dlpack.write(a, a.ctypes.data, a.shape, a.strides, self.dtype_name, a.itemsize, self.device_pair, self.versioned)


def record(value: Any) -> arrays.DeviceArray:
    return view("f", "x", value)


# __cuda_array_interface__.


def test_strides_none_are_those_of_c_order() -> None:
    a = record(Interface(np.zeros((2, 3, 4), np.float32), strides=None))
    assert (a.shape, a.strides, a.dtype, a.ndim, a.size, a.itemsize) == ((2, 3, 4), (48, 16, 4), "float32", 3, 24, 4)
    assert a.is_contiguous
    assert a.writable
    assert record(Interface(np.zeros((2, 0, 4), np.float32), strides=None)).strides == (16, 16, 4)


def test_strides_are_kept() -> None:
    host = np.zeros((3, 4))[::-1, ::2]
    a = record(Interface(host, strides=host.strides))
    assert (a.pointer, a.strides) == (host.ctypes.data, (-32, 16))
    assert not a.is_contiguous
    assert a.extent() == (host.ctypes.data - 64, host.ctypes.data + 16 + 8)


@pytest.mark.parametrize(
    ("said", "stream"),
    [
        ({"version": 2}, DEFAULT_STREAM),
        ({"stream": None}, DEFAULT_STREAM),
        ({"stream": 1}, 1),
        ({"stream": 2}, 2),
        ({"stream": 99}, 99),
    ],
)
def test_stream(said: dict[str, Any], stream: int) -> None:
    assert record(Interface(np.zeros(3), **said)).stream == stream


def test_array_without_elements_has_no_address() -> None:
    a = record(Interface(np.zeros((0, 3)), data=(0, False)))
    assert (a.pointer, a.device, a.size) == (0, 0, 0)
    assert a.extent() == (0, 0)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"version": 1}, "version 2 or later, not 1"),
        ({"mask": np.zeros(3)}, "has a mask"),
        ({"stream": 0}, "the stream 0"),
        ({"typestr": ">f4"}, "native byte order, not >f4"),
    ],
)
def test_interface_that_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=f"^f: x ?.*{words}"):
        record(Interface(np.zeros(3, np.float32), **said))


def test_bfloat16_that_the_interface_calls_void() -> None:
    class Array(Interface):
        dtype = np.dtype(ml_dtypes.bfloat16)

    assert record(Array(np.zeros(3, ml_dtypes.bfloat16))).dtype == "bfloat16"


# DLPack.


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "uint64"])
def test_dlpack_of_every_type(versioned: bool, dtype: str) -> None:
    host = np.zeros((4, 6), dtype)[1::2, ::3]
    value = Dlpack(host, versioned=versioned)
    a = record(value)
    assert (a.pointer, a.shape, a.strides, a.dtype) == (host.ctypes.data, host.shape, host.strides, dtype)
    assert value.streams == [DEFAULT_STREAM]


def test_dlpack_of_bfloat16() -> None:
    a = record(Dlpack(np.zeros((2, 3), np.uint16), "bfloat16"))
    assert (a.dtype, a.itemsize, a.strides) == ("bfloat16", 2, (6, 2))


def test_dlpack_keeps_the_memory_as_long_as_the_record() -> None:
    a = record(Dlpack(np.zeros(3)))
    assert len(dlpack._lent) == 1
    del a
    gc.collect()
    assert not dlpack._lent


@pytest.mark.parametrize("versioned", [True, False])
def test_dlpack_that_numpy_takes_over(versioned: bool) -> None:
    host = np.arange(12.0).reshape(3, 4).T

    class Older(Dlpack):
        def __dlpack__(self, **keywords: Any) -> Any:
            return super().__dlpack__()

    taken = np.from_dlpack(Older(host, device=(1, 0), versioned=versioned))
    assert_array_equal(taken, host)
    assert taken.ctypes.data == host.ctypes.data
    assert len(dlpack._lent) == 1
    del taken
    gc.collect()
    assert not dlpack._lent


def test_dlpack_of_numpy_is_read() -> None:
    host = np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2]
    tensor = dlpack.read(host, None)
    assert tensor[:4] == (host.ctypes.data, host.shape, host.strides, "int16")
    host.flags.writeable = False
    assert not dlpack.read(host, None).writable


# Arrays of the package's own.


def test_own_array_gives_its_memory_back(device: Any) -> None:
    own = OwnedArray((3, 4), "float32", 0, DEFAULT_STREAM)
    assert device._allocated
    del own
    gc.collect()
    assert not device._allocated


def test_own_array_lives_as_long_as_what_was_made_of_it(device: Any) -> None:
    own = OwnedArray((3,), "bfloat16", 0, DEFAULT_STREAM)
    capsule = own.__dlpack__(max_version=(1, 0))
    del own
    gc.collect()
    assert device._allocated
    del capsule
    gc.collect()
    assert not device._allocated


def test_consumer_of_an_own_array_waits(waits: list[tuple[int, int]]) -> None:
    own = OwnedArray((3,), "float32", 0, 77)
    for stream in (None, 1, 2, 88, 77, -1):
        own.__dlpack__(stream=stream)
    assert waits == [(1, 77), (1, 77), (2, 77), (88, 77)]
    assert own.__cuda_array_interface__["stream"] == 77


@pytest.mark.parametrize("stream", [0, -2])
def test_stream_that_may_mean_two(stream: int) -> None:
    own = OwnedArray((2,), "float32", 0, 77)
    with pytest.raises(ValueError, match=r"^stream must be a handle, 1 for .*, not (0|-2)$"):
        own.__dlpack__(stream=stream)


def test_own_array_goes_back_after_its_lasting_readers(waits: list[tuple[int, int]]) -> None:
    own = OwnedArray((3,), "float32", 0, DEFAULT_STREAM)
    own.has_lasting_readers = True
    for stream in (88, -1, DEFAULT_STREAM):
        own.__dlpack__(stream=stream)
    assert waits == [(88, 1)]
    del own
    gc.collect()
    assert waits == [(88, 1), (1, 88)]


@pytest.mark.parametrize("asked", [{"copy": True}, {"dl_device": (1, 0)}])
def test_own_array_neither_copies_nor_moves(asked: dict[str, Any]) -> None:
    own = OwnedArray((3,), "float32", 0, DEFAULT_STREAM)
    with pytest.raises(BufferError, match="lends its memory on CUDA device 0"):
        own.__dlpack__(**asked)
    assert own.__dlpack__(dl_device=(2, 0), copy=False)


def test_consumers_outlive_the_interpreter() -> None:
    code = """
import sys
import numpy as np
from fastrelu.cuda import dlpack

class Lender:
    host = np.arange(3.0)

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **keywords):
        return dlpack.write(self, self.host.ctypes.data, (3,), (8,), "float64", 8, (1, 0), True)

sys.kept = [np.from_dlpack(Lender()), Lender().__dlpack__()]  # die after the modules
sys.kept.append(sys.kept)
"""
    assert run(code) == ""


def test_own_array_in_another_order() -> None:
    own = OwnedArray((2, 3, 4), "float64", 0, DEFAULT_STREAM, (2, 0, 1))
    assert own.strides == (24, 8, 48)
    host = own.copy_to_host()
    assert (host.shape, host.strides) == (own.shape, own.strides)


# The arrays of a call.


def test_result_of_an_unknown_library_is_an_own_array() -> None:
    with Work("f", {"x": Interface(np.zeros((2, 3)))}) as work:
        y = work.empty((2, 3), "float64")
    assert type(work.result(y)) is OwnedArray


def test_numbers_stay_numbers() -> None:
    given = {"x": Interface(np.zeros(3)), "i": 2, "f": 0.5, "s": np.float32(1.5), "a": np.array(7), "n": None}
    work = Work("f", given)
    assert [*work.arrays] == ["x"]
    assert work.numbers == {"i": 2, "f": 0.5, "s": 1.5, "a": 7}
    assert type(work.numbers["s"]) is np.float32


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            {"x": np.zeros(3), "y": Interface(np.zeros(3))},
            TypeError,
            r"x is on the host \(numpy.ndarray\), and y on CUDA device 0",
        ),
        ({"x": Interface(np.zeros(3)), "y": [1.0, 2.0]}, TypeError, r"y is on the host \(list\), and x on CUDA device 0"),
        ({"x": Interface(np.zeros(3, np.complex64))}, TypeError, "x must be an integer type, .* not complex64"),
        ({"x": Interface(np.zeros(3, bool))}, TypeError, "x must be an integer type, .* not bool"),
        ({"x": Interface(np.zeros(3)), "a": True}, TypeError, "a must be an integer type, .* not bool"),
        ({"x": Interface(np.zeros(3)), "a": "b"}, TypeError, "a must be an integer type, .* not str"),
        ({"x": Dlpack(np.zeros(3)), "y": Dlpack(np.zeros(3), device=(2, 1))}, ValueError, "y is on CUDA device 1, and x on 0"),
    ],
)
def test_operands_that_are_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^f: {words}"):
        Work("f", given)


def test_output_that_is_refused() -> None:
    x = Interface(np.zeros(3))
    with pytest.raises(ValueError, match=r"^f: out is read-only, and must be writable$"):
        Work("f", {"x": x}, {"out": Interface(np.zeros(3), data=(8, True))})
    with pytest.raises(TypeError, match=r"^f: out is on the host \(numpy.ndarray\), and x on CUDA device 0"):
        Work("f", {"x": x}, {"out": np.zeros(3)})
    with pytest.raises(TypeError, match=r"^f: out is on the host \(float\)"):
        Work("f", {"x": x}, {"out": 1.0})


def test_streams_wait_for_each_other(waits: list[tuple[int, int]]) -> None:
    first, second = Interface(np.zeros(3), stream=11), Interface(np.zeros(3), stream=22)
    with Work("f", {"x": first, "y": second, "z": first}) as work:
        assert work.stream == 11
        assert waits == [(11, 22)]
    assert waits == [(11, 22), (22, 11)]


def test_one_stream_waits_for_nothing(waits: list[tuple[int, int]]) -> None:
    with Work("f", {"x": Interface(np.zeros(3)), "y": Interface(np.zeros(3))}):
        pass
    assert not waits


def test_overlap_is_told_by_the_ends() -> None:
    host = np.zeros(10)
    a, b, c = (record(Interface(part, strides=part.strides)) for part in (host[:6], host[5:], host[6:]))
    assert a.may_overlap(b)
    assert not a.may_overlap(c)
    assert not a.may_overlap(record(Interface(host[:0])))


# Libraries that are known. Their modules are stood in for.


class Stand:
    """A module that stands in for a library's."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch):
        self.module = SimpleNamespace()
        monkeypatch.setitem(sys.modules, name, self.module)  # type: ignore[arg-type]


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, device: Any) -> Any:
    """CuPy, as far as it is used."""
    module = Stand("cupy", monkeypatch).module
    module.entered = []

    class Device:
        def __init__(self, number: int):
            self.id = number

        def __enter__(self) -> None:
            module.entered.append(self.id)

        def __exit__(self, *_: Any) -> None: ...

    class Array:
        __module__ = "cupy"

        def __init__(self, host: np.ndarray):
            self.host, self.shape, self.strides, self.dtype = host, host.shape, host.strides, host.dtype
            self.data, self.device = SimpleNamespace(ptr=host.ctypes.data), Device(0)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def transpose(self, axes: Any) -> "Array":
            return Array(self.host.transpose(axes))

    module.ndarray, module.empty = Array, lambda shape, dtype: Array(np.empty(shape, dtype))
    module.cuda = SimpleNamespace(Device=Device, get_current_stream=lambda device: SimpleNamespace(ptr=55))
    return module


def test_cupy(cupy: Any) -> None:
    x = cupy.ndarray(np.zeros((2, 3), np.float32))
    with Work("f", {"x": x}) as work:
        y = work.empty((4, 5, 6), "float16", (2, 0, 1))
    assert work.arrays["x"].library == "cupy"
    assert work.stream == 55
    result = work.result(y)
    assert type(result) is cupy.ndarray
    assert (result.shape, result.strides, result.dtype) == ((4, 5, 6), (10, 2, 40), np.float16)
    assert cupy.entered == [0]
    assert work.empty((3,), "bfloat16").owner.dtype == ml_dtypes.bfloat16


def test_cupy_with_its_default_stream(cupy: Any) -> None:
    cupy.cuda.get_current_stream = lambda device: SimpleNamespace(ptr=0)
    assert record(cupy.ndarray(np.zeros(3))).stream == DEFAULT_STREAM


def test_second_library_on_another_stream(cupy: Any, waits: list[tuple[int, int]]) -> None:
    with Work("f", {"x": Interface(np.zeros(3)), "y": cupy.ndarray(np.zeros(3))}) as work:
        y = work.empty((3,), "float64")
    assert type(work.result(y)) is OwnedArray
    assert waits == [(1, 55), (55, 1)]


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch, device: Any) -> Any:
    """PyTorch, as far as it is used."""
    module = Stand("torch", monkeypatch).module
    module.grad = True

    class Tensor:
        __module__ = "torch"
        requires_grad, negative, layout, is_cuda = False, False, "strided", True

        def __init__(self, host: np.ndarray, dtype: str = ""):
            self.host, self.shape, self.dtype = host, host.shape, f"torch.{dtype or host.dtype.name}"
            self.device = SimpleNamespace(index=0)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def stride(self) -> tuple[int, ...]:
            return tuple(step // self.host.itemsize for step in self.host.strides)

        def element_size(self) -> int:
            return self.host.itemsize

        def data_ptr(self) -> int:
            return self.host.ctypes.data if self.host.size else 0

        def resolve_neg(self) -> "Tensor":
            return Tensor(-self.host) if self.negative else self

    def empty_strided(shape: Any, steps: Any, dtype: Any, device: Any) -> Tensor:
        host = np.empty(shape, dtype)
        return Tensor(np.lib.stride_tricks.as_strided(host, shape, tuple(step * host.itemsize for step in steps)))

    module.Tensor, module.empty_strided = Tensor, empty_strided
    module.empty = lambda shape, dtype, device: Tensor(np.empty(shape, "uint16" if dtype == "bfloat16" else dtype), dtype)
    module.is_grad_enabled, module.strided = lambda: module.grad, "strided"
    module.float32, module.float64, module.bfloat16 = "float32", "float64", "bfloat16"
    module.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=66))
    return module


def test_torch(torch: Any) -> None:
    x = torch.Tensor(np.zeros((3, 4), np.float32).T)
    with Work("f", {"x": x}) as work:
        y, z = work.empty((4, 3), "float32", (1, 0)), work.empty((4, 3), "bfloat16")
    assert (work.stream, work.arrays["x"].strides) == (66, (4, 16))
    assert (y.strides, y.library, z.dtype, z.strides) == ((4, 16), "torch", "bfloat16", (6, 2))
    assert type(work.result(y)) is torch.Tensor


def test_torch_subclass_is_known(torch: Any) -> None:
    class Parameter(torch.Tensor):
        __module__ = "a_users_own"

    assert record(Parameter(np.zeros(3))).library == "torch"


def test_torch_tensor_that_belongs_to_a_graph(torch: Any) -> None:
    x = torch.Tensor(np.zeros(3))
    x.requires_grad = True
    with pytest.raises(TypeError, match=r"^f: x requires grad, .*\.detach\(\).*torch\.no_grad\(\).*fastrelu\.torch$"):
        record(x)
    torch.grad = False
    assert record(x).owner is x


def test_torch_tensor_that_promises_to_change_the_sign(torch: Any) -> None:
    x = torch.Tensor(np.ones(3))
    x.negative = True
    a = record(x)
    assert not a.writable
    assert_array_equal(a.holder.host, -np.ones(3))


def test_torch_tensor_that_is_sparse(torch: Any) -> None:
    x = torch.Tensor(np.ones(3))
    x.layout = "torch.sparse_coo"
    with pytest.raises(TypeError, match=r"^f: x must be dense, not of layout torch\.sparse_coo"):
        record(x)


def test_jax_gets_own_memory_and_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, waits: list[tuple[int, int]], device: Any
) -> None:
    module = Stand("jax", monkeypatch).module
    module.dlpack = SimpleNamespace(from_dlpack=lambda value: ("jax", value))

    class Array(Dlpack):
        __module__ = "jaxlib._jax"

    x = Array(np.zeros((2, 3), np.float32))
    with Work("f", {"x": x}) as work:
        y = work.empty((2, 3), "float32")
    kind, own = work.result(y)
    assert (kind, type(own)) == ("jax", OwnedArray)
    assert waits == [(-1, DEFAULT_STREAM)]
    with pytest.raises(ValueError, match=r"^f: out is read-only"):
        Work("f", {"x": x}, {"out": x})


@pytest.mark.parametrize(("stream", "its"), [(None, 0), (0, "default_stream()"), (33, "a stream")])
def test_numba_array_knows_its_stream(monkeypatch: pytest.MonkeyPatch, stream: Any, its: Any) -> None:
    from fastrelu.cuda import toolkit

    class Array(Interface):
        __module__ = "numba.cuda.cudadrv.devicearray"

        stream = its

        @property
        def strides(self) -> tuple[int, ...]:
            return tuple(self.said.get("strides") or self.host.strides)

    def device_array(shape: Any, dtype: Any, strides: Any, stream: Any) -> Array:
        made = Array(np.empty(shape, dtype), strides=strides)
        made.stream = stream
        return made

    gpus = [contextlib.nullcontext()]
    stand_in = SimpleNamespace(gpus=gpus, device_array=device_array)
    monkeypatch.setattr(toolkit, "cuda", stand_in)
    with Work("f", {"x": Array(np.zeros((2, 3)), stream=stream)}) as work:
        y = work.empty((2, 3), "float32", (1, 0))
    assert (y.library, y.strides) == ("numba", (4, 8))
    assert work.result(y).stream == its
    assert work.stream == (stream or DEFAULT_STREAM)
    assert type(work.empty((2,), "bfloat16").owner) is OwnedArray  # of which numba knows nothing


def test_broadcast_array_of_numba_keeps_its_strides() -> None:
    class Array(Interface):
        __module__ = "numba.cuda.cudadrv.devicearray"
        strides = (0, 8)

    assert record(Array(np.zeros((2, 3)), strides=None)).strides == (0, 8)


def test_record_of_a_device_that_the_driver_names(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "device_of", lambda pointer: 3)
    assert record(Interface(np.zeros(3))).device == 3
    assert launch.active() is device
