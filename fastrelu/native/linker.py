"""Puts object code into the process: from the cache if it is there, else from the compiler.

A kernel that is cached needs only llvmlite: Numba is not imported.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from fastrelu.native import store, target
from fastrelu.native.guard import lock, table_lock, uninterrupted

# C functions that the pool calls, and those that LLVM itself may call for an operation that the processor lacks.
_C_FUNCTIONS = frozenset(
    (
        *("pthread_create", "pthread_detach", "pthread_sigmask", "pthread_self", "sigfillset", "getpid", "sched_yield"),
        *("pthread_mutex_init", "pthread_mutex_lock", "pthread_mutex_unlock"),
        *("pthread_cond_init", "pthread_cond_wait", "pthread_cond_broadcast"),
        *("pthread_key_create", "pthread_key_delete", "pthread_getspecific", "pthread_setspecific", "malloc", "free"),
        *("posix_memalign", "madvise"),
        *("mincore", "memcpy", "memset", "memmove", "fma", "fmaf"),
    )
)

_symbols: dict[str, int] = {}
_objects: dict[str, bytes] = {}
_compiled: set[str] = set()


@cache
def _engine() -> Any:
    target.initialize()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    # Never freed: NumPy keeps pointers to the code, and the pool's threads run in it until the process ends.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
    return engine


def provide(name: str, address: int) -> None:
    """Let kernels refer to what stands at `address` by `name`."""
    _symbols[name] = address
    llvm.add_symbol(name, address)


_NOTICE = "fastrelu is compiling, once for each function and type ..."


@contextmanager
def _told() -> Iterator[None]:
    """Show on a terminal, while it lasts, why a call takes seconds. Nothing where the stream was replaced, as by a log."""
    stream: Any = sys.stderr
    seen = False
    with suppress(OSError, ValueError, AttributeError):  # it is closed, or no stream at all
        if sys.stderr is sys.__stderr__ and stream.isatty():
            stream.write(f"\r{_NOTICE}")
            stream.flush()
            seen = True
    try:
        yield
    finally:
        if seen:
            with suppress(OSError, ValueError):
                stream.write(f"\r{'':{len(_NOTICE)}}\r")
                stream.flush()


def _compile(name: str, source: Callable[[], tuple[Callable[..., Any], Any]]) -> bytes:
    from fastrelu.native.compiler import compile_object

    code: bytes = compile_object(source, name, _C_FUNCTIONS | _symbols.keys())
    _compiled.add(name)
    store.write(name, code)
    return code


def link(name: str, source: Callable[[], tuple[Callable[..., Any], Any]]) -> int:
    """The address of the C function `name`.

    Parameters
    ----------
    name : str
        What the function is called, in the cache and in the object file.
    source : callable
        Returns the Python function to compile and its Numba signature. Called only if the cache does not have it.
    """
    with lock:
        if name not in _symbols:
            code = store.read(name)
            if code is None:
                with _told():
                    code = uninterrupted(lambda: _compile(name, source))
            with table_lock:
                if name not in _symbols:  # a thread that passed the lock by may have been first
                    engine = _engine()
                    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
                    engine.finalize_object()
                    provide(name, engine.get_function_address(name))
                    _objects[name] = code
        return _symbols[name]


def counts() -> tuple[int, int]:
    """How many kernels this process has taken from the cache, and how many it has compiled."""
    with lock:
        return len(_objects.keys() - _compiled), len(_compiled)


def keep_all() -> None:
    """Write the kernels of this process that the cache has lost since."""
    with lock:
        for name, code in list(_objects.items()):
            if store.read(name) is None:
                store.write(name, code)
