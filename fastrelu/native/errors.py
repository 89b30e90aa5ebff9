"""The exceptions that a loop can raise, as memory that kernels can read."""

import ctypes

# The name of that memory, and the functions of Python that raise what stands there.
ERRORS = "fastrelu_errors"
FUNCTIONS = ("PyGILState_Ensure", "PyGILState_Release", "PyErr_SetString")

NO_MEMORY, WRONG_MASK = range(2)
_TEXTS = [
    ctypes.create_string_buffer(b"fastrelu: no memory for packing"),
    ctypes.create_string_buffer(b"mask must have ceil(n / 8) elements in its last axis, n being the columns of w"),
]
table = (ctypes.c_int64 * 4)(id(MemoryError), ctypes.addressof(_TEXTS[0]), id(ValueError), ctypes.addressof(_TEXTS[1]))
"""Pairs of an exception's class and its text. Kept, like the classes, as long as the process lives."""


def address_of(function: str) -> int:
    """The address of a function of Python's C interface."""
    address = ctypes.cast(getattr(ctypes.pythonapi, function), ctypes.c_void_p).value
    assert address is not None
    return address
