"""DLPack, read and written with ctypes: how libraries hand over arrays without knowing each other.

Layout of the structures: https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import atexit
import ctypes
from typing import Any, NamedTuple

CUDA = 2
"""The kind of device that GPUs are."""

_INT, _UINT, _FLOAT, _BFLOAT = 0, 1, 2, 4
_NAMES = {_INT: "int", _UINT: "uint", _FLOAT: "float", _BFLOAT: "bfloat", 5: "complex", 6: "bool"}
_VERSION = (1, 0)
_READ_ONLY = 1


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


class Tensor(NamedTuple):
    """What a capsule says."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In bytes."""
    dtype: str
    device: int
    writable: bool
    owner: Any
    """Keeps the memory alive."""


def read(value: Any, stream: int | None) -> Tensor:
    """An array's memory, which a stream may use from now on.

    Parameters
    ----------
    value : object
        With ``__dlpack__``.
    stream : int or None
        As in DLPack: 1 is the default stream, 2 that of the thread, larger numbers are handles; None on the host.
    """
    try:
        capsule = value.__dlpack__(stream=stream, max_version=_VERSION)
    except TypeError:  # older than the second argument
        capsule = value.__dlpack__(stream=stream)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    if _is_called(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(get(capsule, b"dltensor_versioned"))
        tensor, writable = versioned.tensor, not versioned.flags & _READ_ONLY
    else:
        tensor, writable = _Managed.from_address(get(capsule, b"dltensor")).tensor, True
    code, bits, lanes = tensor.type.code, tensor.type.bits, tensor.type.lanes
    dtype = _NAMES.get(code, f"DLPack type {code}, ") + (str(bits) if code in _NAMES else f"{bits} bits")
    dtype = "bool" if dtype == "bool8" else dtype
    itemsize = bits * lanes // 8
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        strides = tuple(itemsize * step for step in tensor.strides[: tensor.ndim])
    else:
        strides = contiguous_strides(shape, itemsize)
    # The capsule is not consumed: when it dies, it frees what it holds.
    return Tensor((tensor.data or 0) + tensor.byte_offset, shape, strides, dtype, tensor.device.number, writable, capsule)


def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Steps in bytes of an array in C order."""
    strides, step = [], itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def write(
    owner: Any,
    pointer: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
    itemsize: int,
    device: tuple[int, int],
    versioned: bool,
) -> Any:
    """A capsule with an array's memory, which keeps `owner` alive until its consumer is done.

    Parameters
    ----------
    owner : object
        Whose memory it is.
    pointer, shape, strides, dtype, itemsize
        The array; strides in bytes.
    device : tuple of int
        Kind and number.
    versioned : bool
        Whether the consumer knows DLPack 1.0.
    """
    code = {"i": _INT, "u": _UINT, "f": _FLOAT, "b": _BFLOAT}[dtype[0]]
    dims = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    steps = (ctypes.c_int64 * max(len(shape), 1))(*(step // itemsize for step in strides))
    managed: Any = _Versioned() if versioned else _Managed()
    if versioned:
        managed.major, managed.minor = _VERSION
    managed.deleter = ctypes.cast(_delete, ctypes.c_void_p).value
    tensor = managed.tensor
    tensor.data, tensor.ndim, tensor.byte_offset = pointer, len(shape), 0
    tensor.device = _Device(*device)
    tensor.type = _Type(code, 8 * itemsize, 1)
    tensor.shape, tensor.strides = dims, steps
    address = ctypes.addressof(managed)
    _lent[address] = (managed, dims, steps, owner)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    name = _NEW_VERSIONED if versioned else _NEW
    return new(address, name, ctypes.cast(_forget, ctypes.c_void_p).value)


_NEW, _NEW_VERSIONED = b"dltensor", b"dltensor_versioned"  # capsules point to these bytes
_lent: dict[int, Any] = {}
"""What consumers hold pointers to, by the address of its structure."""


def _is_called(capsule: Any, name: bytes) -> bool:
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    is_valid.restype, is_valid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
    return bool(is_valid(capsule, name))


def _callbacks(lent: dict[int, Any]) -> tuple[Any, Any]:
    """What consumers call when they are done, and what a capsule calls when it dies.

    Both may be called while Python ends, when the names of this module are gone already: they know all that they use.
    """
    names = _NEW, _NEW_VERSIONED
    is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))

    def delete(address: int) -> None:
        lent.pop(address, None)

    def forget(capsule: int) -> None:
        for name in names:
            if is_valid(capsule, name):  # what is still called as it was made has never been consumed
                lent.pop(get(capsule, name), None)

    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(delete), ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(forget)


_delete, _forget = _callbacks(_lent)
for _kept in (_lent, _delete, _forget):  # for ever: consumers may live longer than this module
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))


@atexit.register
def _leave() -> None:
    """What is lent when Python ends is never given back: its consumers may come to an end when nothing can be called."""
    for managed, *_ in list(_lent.values()):
        managed.deleter = None
