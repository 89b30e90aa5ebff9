"""Prepacked weights: the order in which the matrix engine reads a weight, made once."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from fastrelu import faults
from fastrelu.operations import FLOATS

__all__ = ["PackedWeight", "pack"]

MAX_COLUMNS = 4
"""Columns of a weight that is used as it is."""

_PACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class PackedWeight:
    """A weight in the order in which the fused layers read it, made by `pack`.

    It is a copy: what is done to the array afterwards neither changes it nor makes it wrong. `matches` tells whether it still
    holds the values of an array, and `update` takes them over.

    Parameters
    ----------
    w : array_like
        As for `pack`.

    Attributes
    ----------
    shape : tuple of int
        (k, n), as of the array.
    dtype : numpy.dtype
        As of the array. float16 and bfloat16 are kept as float32, which is exact.
    nbytes : int
        Memory that it takes.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> w = np.array([[1.0, -1.0], [2.0, 0.5]])
    >>> packed = fastrelu.PackedWeight(w)
    >>> fastrelu.linear_relu(np.array([1.0, 1.0]), packed, np.zeros(2))
    array([3., 0.])
    >>> packed.matches(w), packed.matches(2 * w)
    (True, False)
    """

    __array_ufunc__ = None  # NumPy's own functions refuse it

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def __init__(self, w: np.ndarray):
        from fastrelu.native import target
        from fastrelu.native.matrix import Tiling

        w = _checked(w, "PackedWeight")
        self.shape, self.dtype = (w.shape[0], w.shape[1]), w.dtype
        self._tiling = Tiling(w.dtype.name, target.vector_bytes())
        k, n = self.shape
        narrow = self._tiling.widths[0]
        # Cache lines of the processor begin at multiples of 64 bytes.
        size = np.dtype(self._tiling.sum_dtype).itemsize
        raw = np.zeros(k * -(-n // narrow) * narrow * size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        self._data = raw[start : len(raw) - 64 + start].view(self._tiling.sum_dtype)
        # The engine takes the address alone. NumPy sees a matrix of the right shape.
        self._operand = self._data[: k * n].reshape(k, n)
        # With a few columns the engine is fastest on columns that are contiguous, not on panels.
        self._columns = np.empty((n, k), self.dtype).T if 0 < n <= MAX_COLUMNS else None
        self._fill(w)

    @property
    def nbytes(self) -> int:
        return int(self._data.nbytes)

    def _fill(self, w: np.ndarray) -> None:
        k, n = self.shape
        if k == 0 or n == 0:
            return
        if self._columns is not None:
            self._columns[...] = w
        tiling = self._tiling
        pack_weight, pack_block = _functions(self.dtype.name, tiling.vector_bytes)
        steps = (*w.strides, k, n)
        sizes = (tiling.widths[0], tiling.widths[-1], tiling.size)
        pack_weight(ctypes.byref((ctypes.c_int64 * 10)(w.ctypes.data, *steps, self._data.ctypes.data, *sizes, pack_block)))

    def update(self, w: np.ndarray, /) -> None:
        """Take over the values of `w`, without new memory. No call may use the object meanwhile.

        Parameters
        ----------
        w : ndarray
            An array of the same shape and type.

        Raises
        ------
        TypeError, ValueError
            If it is not.
        """
        self._fill(_checked(w, "update", self.shape, self.dtype))

    def unpack(self) -> np.ndarray:
        """The weight as an array of its own.

        Returns
        -------
        ndarray
            Of shape `shape` and type `dtype`; every bit as it was packed, but for signalling NaNs of float16, which become
            quiet.
        """
        k, n = self.shape
        w = np.empty(self.shape, self._data.dtype)
        narrow, wide = self._tiling.widths[0], self._tiling.widths[-1]
        j = 0
        while j < n and k > 0:
            width = wide if n - j >= wide else narrow
            columns = min(width, n - j)
            w[:, j : j + columns] = self._data[j * k : (j + width) * k].reshape(k, width)[:, :columns]
            j += columns
        if self.dtype.name == "bfloat16":  # a cast would change NaNs
            return (w.view(np.uint32) >> 16).astype(np.uint16).view(self.dtype)
        with np.errstate(all="ignore"):
            return w.astype(self.dtype, copy=False)

    def matches(self, w: np.ndarray, /) -> bool:
        """Whether it holds exactly the values of `w`, bit by bit.

        Parameters
        ----------
        w : array_like
            Anything.

        Returns
        -------
        bool
        """
        w = _as_array(w, "matches")
        native = w.dtype.newbyteorder("=")
        if w.shape != self.shape or native != self.dtype:
            return False
        return np.ascontiguousarray(w, native).tobytes() == self.unpack().tobytes()

    def __reduce__(self) -> tuple[Any, ...]:
        return pack, (self.unpack(),)  # another processor may want another order

    def __repr__(self) -> str:
        return f"PackedWeight(shape={self.shape}, dtype={self.dtype})"


def face(w: Any) -> Any:
    """`w`, or if it is prepacked an array of its shape and type that takes no memory."""
    return np.broadcast_to(np.zeros((), w.dtype), w.shape) if type(w) is PackedWeight else w


@cache
def _functions(dtype: str, vector_bytes: int) -> tuple[Any, int]:
    from fastrelu.native import loops

    pack_weight, pack_block = loops.weight_packing(dtype, vector_bytes)
    return _PACK(pack_weight), pack_block


def _as_array(w: Any, function: str) -> np.ndarray:
    fault = faults.device_fault(function, "w", w)
    if fault is not None:
        raise fault
    try:
        return np.asarray(w)
    except (TypeError, ValueError) as error:
        raise faults.explain(function, error, {"w": w}) from None


def _checked(w: Any, function: str, shape: tuple[int, ...] | None = None, dtype: Any = None) -> np.ndarray:
    """`w` as a matrix that the packing can read."""
    array = _as_array(w, function)
    if array.dtype.name not in FLOATS:
        came = array.dtype.name if isinstance(w, np.ndarray) else f"{array.dtype.name} ({type(w).__name__})"
        raise TypeError(f"{function}: w must be float16, bfloat16, float32 or float64, not {came}")
    if array.ndim != 2:
        raise ValueError(f"{function}: w must have two axes, (k, n), not shape {array.shape}")
    if dtype is not None and array.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"{function}: w must have type {dtype}, not {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{function}: w must have shape {shape}, not {array.shape}")
    if not array.dtype.isnative or not array.flags.aligned:
        array = np.array(array, array.dtype.newbyteorder("="))
    return array


def pack(w: Any, /) -> PackedWeight:
    """Pack a weight once, for many calls of the fused layers.

    ``linear_relu(x, pack(w), b)`` has the bits of ``linear_relu(x, w, b)`` and is faster: what each call does to bring w into
    the order in which it is read is done already.

    Parameters
    ----------
    w : array_like
        The weight (k, n), of any strides, float16, bfloat16, float32 or float64.

    Returns
    -------
    PackedWeight
        A copy: changing `w` afterwards does not change it. Where the weight changes, as in training, call its `update`, or
        do without.

    Raises
    ------
    TypeError
        If `w` has another type.
    ValueError
        If `w` has not two axes.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> w = fastrelu.pack(np.eye(3))
    >>> fastrelu.linear_relu(np.array([1.0, -2.0, 3.0]), w)
    array([1., 0., 3.])
    """
    return PackedWeight(_checked(w, "pack"))
