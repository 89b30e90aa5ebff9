"""Arrays in the memory of a device that belong to this package, for callers whose library cannot make one."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu.cuda import dlpack, launch

ITEMSIZES = {"bool": 1, "bfloat16": 2, **{name: np.dtype(name).itemsize for name in ("float16", "float32", "float64")}}
ITEMSIZES |= {f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)}


class OwnedArray:
    """An array on a device, which others read through ``__cuda_array_interface__`` or DLPack.

    Parameters
    ----------
    shape : tuple of int
        Its shape.
    dtype : str
        The name of its type.
    device, stream : int
        Where it lies, and the stream that uses it first.
    order : tuple of int, optional
        The axes, the one with the longest steps first.

    Attributes
    ----------
    pointer, strides, nbytes
        The address, steps in bytes, and size in bytes.
    has_lasting_readers : bool
        Whether the streams of those who take the array through DLPack exist as long as it does: the memory then goes back
        after what they were told. Not so at first.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: str, device: int, stream: int, order: tuple[int, ...] | None = None
    ) -> None:
        self.shape, self.dtype, self.device, self.stream = shape, dtype, device, stream
        self.strides = ordered_strides(shape, ITEMSIZES[dtype], order)
        self.nbytes = math.prod(shape) * ITEMSIZES[dtype]
        using = launch.active()
        self.pointer = using.allocate(device, self.nbytes, stream)
        self._readers: set[int] = set()
        self.has_lasting_readers = False
        weakref.finalize(self, _give_back, using, device, self.pointer, stream, self._readers).atexit = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == "bfloat16":
            raise AttributeError("bfloat16 has no typestr: use DLPack")
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.pointer, False),
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"an OwnedArray lends its memory on CUDA device {self.device}: copy_to_host() makes a copy")
        waiting = 1 if stream is None else stream
        if waiting == 0 or waiting < -1:  # 0 may mean either default stream
            raise ValueError(
                "stream must be a handle, 1 for the default stream, 2 for that of the thread, -1 for none or None, "
                f"not {stream!r}"
            )
        if waiting not in (-1, self.stream):  # -1 asks for no order
            launch.active().wait_for(self.device, waiting, self.stream)
            if self.has_lasting_readers:
                self._readers.add(waiting)
        versioned = max_version is not None and max_version >= (1, 0)
        where = dlpack.CUDA, self.device
        return dlpack.write(self, self.pointer, self.shape, self.strides, self.dtype, ITEMSIZES[self.dtype], where, versioned)

    def copy_to_host(self) -> ndarray:
        """A NumPy array with the same values; bfloat16 needs ml_dtypes."""
        if self.dtype == "bfloat16":
            import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)
        order = sorted(range(len(self.shape)), key=lambda axis: -self.strides[axis])
        flat = np.empty([self.shape[axis] for axis in order], dtype)
        if self.nbytes:
            launch.active().copy_to_host(self.device, flat.ctypes.data, self.pointer, self.nbytes, self.stream)
        return flat.transpose(np.argsort(order)) if order else flat

    def __repr__(self) -> str:
        return f"OwnedArray(shape={self.shape}, dtype={self.dtype}, device={self.device})"


def _give_back(using: launch.Driver, device: int, pointer: int, stream: int, readers: set[int]) -> None:
    for reader in readers:
        using.wait_for(device, stream, reader)
    using.free(device, pointer, stream)


def ordered_strides(shape: tuple[int, ...], itemsize: int, order: tuple[int, ...] | None) -> tuple[int, ...]:
    """Steps in bytes of a dense array whose axes lie in an order, the one with the longest steps first."""
    if order is None:
        return dlpack.contiguous_strides(shape, itemsize)
    packed = dlpack.contiguous_strides(tuple(shape[axis] for axis in order), itemsize)
    strides = [0] * len(shape)
    for axis, step in zip(order, packed, strict=True):
        strides[axis] = step
    return tuple(strides)
