"""The one function by which XLA calls all operations, and the table in which it finds them."""

import ctypes
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jax

from fastrelu.native import entries, errors, linker, loops
from fastrelu.native.guard import lock, table_lock
from fastrelu.operations import FLOATS, INTEGERS, LAYERS, OPERATIONS, backward_variants

NAME = "fastrelu"
"""What the function is called in XLA's programs."""

_OPERATIONS = 4096  # more than there are
_TEXTS = [
    ctypes.create_string_buffer(b"fastrelu: this version has no operation that a compiled program asks for"),
    ctypes.create_string_buffer(b"fastrelu: a compiled program was made for operands that this version does not take"),
    ctypes.create_string_buffer(b"fastrelu: no memory for packing"),
]
_state = (ctypes.c_int64 * (4 + 2 * _OPERATIONS))()
for _i, _text in enumerate(_TEXTS):
    _state[1 + _i] = ctypes.addressof(_text)


@cache
def key(name: str) -> int:
    """The number that stands for ``"NAME DTYPE"`` in XLA's programs: the same in every process and version."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)


@cache
def load(name: str) -> int:
    """Make the kernels of ``"NAME DTYPE"``, let XLA find them, and return the address of their table."""
    address = entries.address(name)
    with table_lock:
        count = _state[0]
        _state[4 + 2 * count], _state[5 + 2 * count] = key(name), address
        _state[0] = count + 1
    return address


def _names() -> list[str]:
    names = [*OPERATIONS, *LAYERS, *backward_variants()]
    return [f"{name} {dtype}" for name in names for dtype in FLOATS + INTEGERS]


def _find(wanted: int) -> int:
    """The table of an operation by its key, for a program that was compiled by another process; 0 if there is none."""
    try:
        return next((load(name) for name in _names() if key(name) == wanted), 0)
    except Exception:  # there is nobody to catch it: XLA raises an error for the 0
        return 0


@cache
def register() -> None:
    """Make the function known to XLA, for a program that another process has exported.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from jax import export
    >>> import fastrelu.jax
    >>> checks = [export.DisabledSafetyCheck.custom_call("fastrelu")]
    >>> program = export.export(jax.jit(fastrelu.jax.relu), disabled_checks=checks)(jnp.ones(3)).serialize()

    In the other process:

    >>> fastrelu.jax.register()
    >>> export.deserialize(program).call(jnp.array([-1.0, 0.0, 2.0]))
    Array([0., 0., 2.], dtype=float32)
    """
    # The folder of cached kernels is named after all their sources but this one.
    source = Path(__file__).with_name("handler.py").read_bytes()
    digest = hashlib.sha256(source).hexdigest()[:16]

    def build() -> loops.Source:
        from fastrelu.jax import handler

        return handler.handler, handler.SIGNATURE

    find = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(_find)
    for kept in (find, _state, _TEXTS):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))  # XLA's threads may run while the interpreter ends
    with lock:
        loops.runtime()
        linker.provide("PyErr_Clear", errors.address_of("PyErr_Clear"))
        linker.provide("fastrelu_xla_state", ctypes.addressof(_state))
        linker.provide("fastrelu_xla_find", _address(find))
        address = linker.link(f"fastrelu_xla_{digest}", build)
    stages = dict.fromkeys(("instantiate", "execute"), jax.ffi.pycapsule(address))
    jax.ffi.register_ffi_target(NAME, stages, platform="cpu")


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
