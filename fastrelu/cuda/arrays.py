"""Arrays on a device, whoever's they are, as the few numbers that a kernel needs.

Arrays of CuPy and PyTorch are asked directly, all others through ``__cuda_array_interface__`` (version 2 or 3) or DLPack.
Results come from the library of the first operand on the device: CuPy's, PyTorch's and numba-cuda's own allocators. JAX's
arrays cannot be written to, so that its results are made here and handed to it through DLPack; libraries that are not known get
an `OwnedArray`. A call is put into the current stream of that library and waits for nothing, except that JAX, which does not
say when it takes memory back, is waited for.

How an operation uses it::

    with Work("relu", {"x": x}, {"out": out}) as work:
        x = work.arrays["x"]
        y = work.arrays.get("out") or work.empty(x.shape, x.dtype)
        work.launch(kernel, grid, x.pointer, y.pointer, x.size)
    return work.result(y)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fastrelu import faults
from fastrelu.cuda import dlpack, launch
from fastrelu.cuda.owned import ITEMSIZES, OwnedArray, ordered_strides
from fastrelu.operands import name_of

DEFAULT_STREAM = 1
"""The handle of the default stream of a device; 0 may mean another one."""


@dataclass(eq=False, slots=True)  # a frozen one takes three times as long to make
class DeviceArray:
    """An array on a device, which nobody changes.

    Attributes
    ----------
    pointer : int, or Place
        Address of the first element; while a plan is written it is a `fastrelu.cuda.plans.Place`.
    shape, strides : tuple of int
        Lengths of the axes, and their steps in bytes.
    dtype : str
        The name of the type: one of FLOATS and INTEGERS.
    device, stream : int
        The device's number, and the stream in which the array's library works.
    writable : bool
        Whether results may be written there.
    owner : object
        The library's array.
    library : str
        cupy, torch, jax, numba, or an empty string.
    holder : object
        What else keeps the memory alive.
    """

    pointer: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int
    stream: int
    writable: bool
    owner: Any
    library: str = ""
    holder: Any = None

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return ITEMSIZES[self.dtype]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie side by side in C order."""
        step = self.itemsize
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != step and self.size:
                return False
            step *= length
        return True

    def extent(self) -> tuple[Any, Any]:
        """The first address, and the one behind the last."""
        first, end = _span(self.shape, self.strides, ITEMSIZES[self.dtype])
        return self.pointer + first, self.pointer + end

    def may_overlap(self, other: DeviceArray) -> bool:
        """Whether the two may share memory, by where they begin and end."""
        first, end = self.extent()
        its_first, its_end = other.extent()
        return self.device == other.device and first < its_end and its_first < end


@lru_cache(maxsize=4096)
def _span(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Where an array begins and ends, relative to its first element."""
    if 0 in shape:
        return 0, 0
    ends = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    return sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends) + itemsize


class Work:
    """The arrays of one call: on one device, in one stream.

    Parameters
    ----------
    base : str
        The public function, for errors.
    operands : mapping
        Values by name; None for one that is not given. Numbers and arrays without axes may lie on the host.
    outputs : mapping, optional
        Arrays to write to, likewise.

    Attributes
    ----------
    arrays : dict of str to DeviceArray
        What lies on the device.
    numbers : dict of str to number
        What does not: Python's numbers as they are, all else as NumPy scalars.
    device, stream : int
        Where to launch kernels.
    precision : str
        How exact products of matrices must be; "highest" unless the operation says otherwise.
    made : dict
        What the parts of an operation calculate once for each other.

    Raises
    ------
    TypeError
        If arrays are on the host, or of types that no operation takes.
    ValueError
        If they are on several devices, or an output cannot be written.
    """

    def __init__(self, base: str, operands: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> None:
        self.arrays: dict[str, DeviceArray] = {}
        self.numbers: dict[str, Any] = {}
        self.precision = "highest"
        self.made: dict[Any, Any] = {}
        given = {**operands, **outputs} if outputs else operands
        first: DeviceArray | None = None
        others: set[int] = set()
        rest: list[str] = []
        for name, value in given.items():
            if value is None:
                continue
            if not _is_here(value):
                rest.append(name)
                continue
            array = self.arrays[name] = view(base, name, value)
            if name == "where":
                if array.dtype != "bool":
                    raise TypeError(f"{base}: where must be of type bool, not {array.dtype}")
                array.dtype = "uint8"
            if array.dtype not in ITEMSIZES or array.dtype == "bool":
                allowed = "an integer type, float16, bfloat16, float32 or float64"
                raise TypeError(f"{base}: {name} must be {allowed}, not {array.dtype}")
            if first is None:
                first = array
            elif array.device != first.device:
                where = f"CUDA device {array.device}, and {next(iter(self.arrays))} on {first.device}"
                raise ValueError(f"{base}: {name} is on {where}: they must be on one")
            elif array.stream != first.stream:
                others.add(array.stream)
        if first is None:
            raise TypeError(f"{base}: no operand is on a CUDA device")
        self._first, self._others = first, others
        self.device, self.stream = first.device, first.stream
        for name in rest:
            value = given[name]
            if name not in operands or np.ndim(value):
                raise self._on_host(base, name, value)
            self.numbers[name] = value if type(value) in (int, float) else _scalar(base, name, value)
        self._outputs = [name for name in outputs or () if name in self.arrays]
        for name in self._outputs:
            if not self.arrays[name].writable:
                raise ValueError(f"{base}: {name} is read-only, and must be writable")

    def __enter__(self) -> Work:
        for stream in self._others:
            launch.active().wait_for(self.device, self.stream, stream)
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._others:  # before they reuse memory that is still read here
            launch.active().wait_for(self.device, stream, self.stream)
        for array in self.arrays.values():
            if array.library == "jax":
                launch.active().synchronize(self.device, self.stream)
                return

    def empty(self, shape: tuple[int, ...], dtype: str, order: tuple[int, ...] | None = None) -> DeviceArray:
        """A new array of the caller's library; of this package where that has none.

        Parameters
        ----------
        shape : tuple of int
            Its shape.
        dtype : str
            The name of its type.
        order : tuple of int, optional
            The axes, the one with the longest steps first; as they come if not given.
        """
        return _view(self.make(shape, dtype, order)[0])

    def make(self, shape: tuple[int, ...], dtype: str, order: tuple[int, ...] | None) -> tuple[Any, int]:
        """The same as the library's array, and its address."""
        library = self._first.library
        if library == "torch":
            tensor = _torch_empty(self._first.owner, shape, dtype, order)
            return tensor, tensor.data_ptr()
        if library == "cupy":
            array = _cupy_empty(self.device, shape, dtype, order)
            return array, array.data.ptr
        if library == "numba" and dtype != "bfloat16":
            array = _numba_empty(self._first.owner, self.device, shape, dtype, order)
            return array, array.__cuda_array_interface__["data"][0] or 0
        own = OwnedArray(shape, dtype, self.device, self.stream, order)
        return own, own.pointer

    def scratch(self, nbytes: int) -> DeviceArray:
        """Memory for this call, which goes back to the caller's library when the record dies."""
        return self.empty((nbytes,), "uint8")

    def launch(self, kernel: launch.Kernel, grid: launch.Grid, *arguments: Any) -> None:
        """Put a kernel into the stream of the call; see `fastrelu.cuda.launch.Kernel.launch`."""
        kernel.launch(self.device, self.stream, grid, *arguments)

    def result(self, array: DeviceArray) -> Any:
        """What the caller gets: the library's array."""
        return self.handed_over(array.owner)

    def handed_over(self, made: Any) -> Any:
        """An array that `make` has made, or the caller's own, as an array of the caller's library."""
        if isinstance(made, OwnedArray) and self._first.library == "jax":
            made.has_lasting_readers = True  # JAX's streams, which may still read when it drops the array
            return sys.modules["jax"].dlpack.from_dlpack(made)
        return made

    def shared(self) -> tuple[tuple[int, int, int], ...]:
        """Of arrays that share memory with an output, or with each other by way of one: the array's number, that of the
        first of them, and how many bytes it begins behind that.
        """
        if not self._outputs:
            return ()
        arrays = [*self.arrays.values()]
        extents = [array.extent() for array in arrays]
        firsts = [*range(len(arrays))]
        for i, name in enumerate(self.arrays):
            if name in self._outputs:
                first, end = extents[i]
                for k, (its_first, its_end) in enumerate(extents):
                    if its_first < end and its_end > first and firsts[k] != firsts[i]:
                        low, high = sorted((firsts[k], firsts[i]))
                        firsts = [low if group == high else group for group in firsts]
        return tuple([(i, k, arrays[i].pointer - arrays[k].pointer) for i, k in enumerate(firsts) if i != k])

    def _on_host(self, base: str, name: str, value: Any) -> TypeError:
        other = next(iter(self.arrays))
        return TypeError(
            f"{base}: {name} is on the host ({_kind(value)}), and {other} on CUDA device {self.device}: they must be on one"
        )


def _is_here(value: Any) -> bool:
    """Whether a value is on a CUDA device."""
    kind: type = type(value)
    if kind is OwnedArray:
        return True
    library = library_of(kind)
    if library == "torch":
        return bool(value.is_cuda)
    return library == "cupy" or faults.is_on_cuda(value)


def view(base: str, name: str, value: Any) -> DeviceArray:
    """An array on a device as a record; `base` and `name` say in errors whose it is.

    Raises
    ------
    TypeError
        If it has a mask, belongs to a graph of gradients, or says of itself what nobody understands.
    """
    try:
        return _view(value)
    except _Unfit as error:
        raise TypeError(f"{base}: {name} {error}") from None


def _view(value: Any) -> DeviceArray:
    kind: type = type(value)
    library = library_of(kind)
    if library == "torch":
        return _torch_view(value)
    if library == "cupy":
        device = value.device.id
        stream = sys.modules["cupy"].cuda.get_current_stream(device).ptr or DEFAULT_STREAM
        shape, strides, name = value.shape, value.strides, name_of(value.dtype)
        return DeviceArray(value.data.ptr, shape, strides, name, device, stream, True, value, library)
    if isinstance(value, OwnedArray):
        stream = value.stream or DEFAULT_STREAM
        return DeviceArray(value.pointer, value.shape, value.strides, value.dtype, value.device, stream, True, value)
    if library == "jax" or not hasattr(value, "__cuda_array_interface__"):
        tensor = dlpack.read(value, DEFAULT_STREAM)
        writable = tensor.writable and library != "jax"
        pointer, shape, strides, dtype, device = tensor[:5]
        return DeviceArray(pointer, shape, strides, dtype, device, DEFAULT_STREAM, writable, value, library, tensor.owner)
    return _interface_view(value, library)


class _Unfit(Exception):
    """Why an array cannot be an operand: the rest of a sentence that begins with its name."""


def _interface_view(value: Any, library: str) -> DeviceArray:
    """What ``__cuda_array_interface__`` says.

    See https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html
    """
    said = value.__cuda_array_interface__
    if said["version"] < 2:
        raise _Unfit(f"must have a __cuda_array_interface__ of version 2 or later, not {said['version']}")
    if said.get("mask") is not None:
        raise _Unfit("has a mask, which no operation takes")
    if said.get("stream") == 0 and library != "numba":  # numba-cuda says so of its default_stream()
        raise _Unfit("names the stream 0, which __cuda_array_interface__ does not allow")
    shape, (pointer, read_only) = tuple(map(int, said["shape"])), said["data"]
    if said["typestr"][1:] == "V2":  # bfloat16 of ml_dtypes
        dtype, itemsize = str(getattr(value, "dtype", "V2")), 2
    elif said["typestr"][0] == ">" and said["typestr"][2:] != "1":
        raise _Unfit(f"must be of native byte order, not {said['typestr']}")
    else:
        numpy_type = np.dtype(said["typestr"])
        dtype, itemsize = name_of(numpy_type), numpy_type.itemsize
    # numba-cuda says None of broadcast arrays as well
    strides = value.strides if library == "numba" else said.get("strides")
    strides = strides or dlpack.contiguous_strides(shape, itemsize)
    using = launch.active()
    device = using.device_of(pointer) if pointer else using.current()
    stream = said.get("stream") or DEFAULT_STREAM
    strides = tuple(map(int, strides))
    return DeviceArray(int(pointer or 0), shape, strides, dtype, device, stream, not read_only, value, library)


def _torch_view(value: Any) -> DeviceArray:
    torch = sys.modules["torch"]
    if value.requires_grad and torch.is_grad_enabled():
        raise _Unfit(
            "requires grad, and no graph is recorded: pass it with .detach(), call under torch.no_grad(), or use fastrelu.torch"
        )
    if value.layout != torch.strided:
        raise _Unfit(f"must be dense, not of layout {value.layout}")
    resolved = value.resolve_neg()  # a view that only promises to change the sign
    itemsize, device = value.element_size(), value.device.index
    strides = tuple(itemsize * step for step in resolved.stride())
    stream = torch.cuda.current_stream(device).cuda_stream or DEFAULT_STREAM
    dtype = str(value.dtype).removeprefix("torch.")
    shape, writable = tuple(value.shape), resolved is value
    return DeviceArray(resolved.data_ptr(), shape, strides, dtype, device, stream, writable, value, "torch", resolved)


def _torch_empty(like: Any, shape: tuple[int, ...], dtype: str, order: tuple[int, ...] | None) -> Any:
    torch = sys.modules["torch"]
    kind = getattr(torch, dtype)
    if order is None:
        return torch.empty(shape, dtype=kind, device=like.device)
    steps = tuple(stride // ITEMSIZES[dtype] for stride in ordered_strides(shape, ITEMSIZES[dtype], order))
    return torch.empty_strided(shape, steps, dtype=kind, device=like.device)


def _cupy_empty(device: int, shape: tuple[int, ...], dtype: str, order: tuple[int, ...] | None) -> Any:
    cupy: Any = sys.modules["cupy"]
    with cupy.cuda.Device(device):
        if order is None:
            return cupy.empty(shape, _numpy_type(dtype))
        return cupy.empty(tuple(shape[axis] for axis in order), _numpy_type(dtype)).transpose(np.argsort(order).tolist())


def _numba_empty(like: Any, device: int, shape: tuple[int, ...], dtype: str, order: tuple[int, ...] | None) -> Any:
    from fastrelu.cuda.toolkit import cuda

    kind = np.dtype(dtype)
    with cuda.gpus[device]:
        # An array says in which stream it is being written, and keeps that alive.
        return cuda.device_array(shape, kind, strides=ordered_strides(shape, kind.itemsize, order), stream=like.stream)


def _numpy_type(dtype: str) -> Any:
    if dtype == "bfloat16":
        import ml_dtypes  # must be there: an operand has its type

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


@cache
def library_of(kind: type) -> str:
    """The library that a type of arrays comes from: cupy, torch, jax, numba, or an empty string."""
    for base in kind.__mro__:
        root, _, rest = base.__module__.partition(".")
        if root in ("cupy", "torch"):
            return root
        if root in ("jax", "jaxlib"):
            return "jax"
        if root in ("numba", "numba_cuda") and "cuda" in (root + rest):
            return "numba"
    return ""


def _scalar(base: str, name: str, value: Any) -> Any:
    """A number of the host as a NumPy scalar."""
    number = np.asarray(value)[()]
    if number.dtype.name not in ITEMSIZES or number.dtype == bool:
        raise TypeError(
            f"{base}: {name} must be an integer type, float16, bfloat16, float32 or float64, not {number.dtype.name}"
        )
    return number


def _kind(value: Any) -> str:
    module = type(value).__module__
    return type(value).__name__ if module == "builtins" else f"{module}.{type(value).__name__}"
