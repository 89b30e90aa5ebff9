"""Genuine NumPy ufuncs whose loops are compiled the first time that NumPy asks for them.

A ufunc is made without any loop, only with a *promoter*, which NumPy asks about every combination of operand types that it
has not seen yet. The promoter chooses the types to calculate in, compiles the loop (or takes it from the cache), registers
it, and tells NumPy, which remembers the answer. From then on a call goes straight to machine code. See NumPy's C API,
"Array method API" and `PyUFunc_AddPromoter`; the functions are reached by their numbers in its table, which are ABI.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy._core import _multiarray_umath  # type: ignore[attr-defined]  # not in NumPy's stubs

from fastrelu.native.guard import table_lock

Choice = tuple[tuple[np.dtype[Any], ...], int]
"""The types of all operands of a loop, and its address."""

_FROM_FUNC_AND_DATA_AND_SIGNATURE, _ADD_LOOP_FROM_SPEC, _ADD_PROMOTER = 31, 43, 44
_NO_IDENTITY = -1
_NO_CASTING = 0
# A loop leaves the floating-point flags as it found them, so that NumPy need not look at them: 15 % of a short call.
_NO_FLOATINGPOINT_ERRORS = 2
_STRIDED_LOOP = 5

_kept: list[Any] = []
"""What NumPy holds pointers to, for the life of the process."""


class _Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("function", ctypes.c_void_p)]


class _Spec(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("nin", ctypes.c_int),
        ("nout", ctypes.c_int),
        ("casting", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("dtypes", ctypes.POINTER(ctypes.py_object)),
        ("slots", ctypes.POINTER(_Slot)),
    ]


_Types = ctypes.POINTER(ctypes.c_void_p)
_Promoter = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, _Types, _Types, _Types)


@cache
def _api(number: int, result: Any, *arguments: Any) -> Callable[..., Any]:
    """The function `number` of NumPy's C table of ufunc functions."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = ctypes.cast(pointer(_multiarray_umath._UFUNC_API, None), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.PYFUNCTYPE(result, *arguments)(table[number])


def _add_loop(ufunc: np.ufunc, choice: Choice) -> None:
    dtypes, address = choice
    classes: Any = (ctypes.py_object * len(dtypes))(*map(type, dtypes))  # type: ignore[misc]  # ctypes wraps each
    slots = (_Slot * 2)(_Slot(_STRIDED_LOOP, address), _Slot(0, None))
    name = ufunc.__name__.encode()
    spec = _Spec(name, ufunc.nin, ufunc.nout, _NO_CASTING, _NO_FLOATINGPOINT_ERRORS, classes, slots)
    _kept.append((classes, slots, name))
    _api(_ADD_LOOP_FROM_SPEC, ctypes.c_int, ctypes.py_object, ctypes.POINTER(_Spec))(ufunc, spec)


def _add_promoter(ufunc: np.ufunc, promoter: Any) -> None:
    capsule_new = ctypes.pythonapi.PyCapsule_New
    capsule_new.restype, capsule_new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    name = b"numpy._ufunc_promoter"
    capsule = capsule_new(ctypes.cast(promoter, ctypes.c_void_p), name, None)
    _kept.append((promoter, name))
    # np.dtype is the abstract base of all types; an output may be anything.
    pattern = (np.dtype,) * ufunc.nin + (None,) * ufunc.nout
    _api(_ADD_PROMOTER, ctypes.c_int, ctypes.py_object, ctypes.py_object, ctypes.py_object)(ufunc, pattern, capsule)


def make(
    name: str,
    nin: int,
    nout: int,
    choose: Callable[[tuple[type | None, ...], tuple[type | None, ...]], Choice | None],
    failed: Callable[[BaseException], None],
    doc: str = "",
    signature: str | None = None,
) -> np.ufunc:
    """Make a ufunc.

    Parameters
    ----------
    name, doc : str
        Its name and its docstring.
    nin, nout : int
        Numbers of inputs and outputs.
    choose : callable
        Takes the types (dtype classes) of all operands and those that the caller prescribes, None for each that is not
        known, and returns the loop to use, or None if there is none for these types. Called once a combination, with
        the GIL held. NumPy's classes for Python's int and float have these as their attribute ``type``.
    failed : callable
        Takes what `choose` raised, since an exception cannot pass through NumPy here. NumPy reports a missing loop
        (TypeError) to its caller, who can then raise the other instead.
    signature : str, optional
        Core dimensions, for a generalized ufunc.

    Returns
    -------
    np.ufunc
    """
    loops: dict[tuple[np.dtype[Any], ...], Choice] = {}

    def promote(_ufunc: int, operands: Any, given: Any, result: Any) -> int:
        before = [operands[i] for i in range(nin + nout)]
        after = list(before)
        try:
            choice = choose(*(tuple(_object(types[i]) for i in range(nin + nout)) for types in (operands, given)))
            with table_lock:
                if choice is not None and choice[0] not in loops:
                    _add_loop(ufunc, choice)
                    loops[choice[0]] = choice
            if choice is not None:
                # An output that was known already is left open, lest nothing change.
                after = [id(type(dtype)) if i < nin or not before[i] else None for i, dtype in enumerate(choice[0])]
        except BaseException as error:
            failed(error)
        # The same types as before mean to NumPy that there is no loop.
        for i, address in enumerate(after):
            if address:
                ctypes.pythonapi.Py_IncRef(ctypes.c_void_p(address))
            result[i] = address
        return 0

    texts = [name.encode(), doc.encode(), None if signature is None else signature.encode()]
    _kept.append(texts)
    pointers, ints, char = [ctypes.c_void_p] * 3, [ctypes.c_int] * 4, ctypes.c_char_p
    create = _api(_FROM_FUNC_AND_DATA_AND_SIGNATURE, ctypes.py_object, *pointers, *ints, char, char, ctypes.c_int, char)
    ufunc: np.ufunc = create(None, None, None, 0, nin, nout, _NO_IDENTITY, *texts[:2], 0, texts[2])
    _add_promoter(ufunc, _Promoter(promote))
    return ufunc


def _object(address: int | None) -> Any:
    """The Python object at an address; None for NULL."""
    return None if not address else ctypes.cast(address, ctypes.py_object).value
