"""How many threads one call may use."""

import _thread
import ctypes
import operator
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from fastrelu.native import pool, quota


def _from_environment(name: str) -> int | None:
    """The positive integer in an environment variable; OpenMP allows a list, whose first number counts."""
    try:
        count = int(os.environ.get(name, "").split(",")[0])
    except ValueError:
        return None
    return count if count > 0 else None


def _is_worker() -> bool:
    """Whether `multiprocessing`, or what builds on it, started this process; nothing is imported to find out."""
    module = sys.modules.get("multiprocessing.process")
    # Until all that it was sent is unpickled, a process that was not forked does not know its parent yet.
    return module is not None and (module.parent_process() is not None or hasattr(module.current_process(), "_inheriting"))


def default_num_threads() -> int:
    """What holds in this process unless a program sets another number, as `get_num_threads` describes it."""
    asked = _from_environment("FASTRELU_NUM_THREADS") or _from_environment("OMP_NUM_THREADS")
    if asked is None and _is_worker():
        asked = 1
    if asked is None:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = min(allowed, quota.processors() or allowed)
    return min(asked, pool.MAX_THREADS)


def _default() -> int:
    """The default of this process: found out once, so that it is what every call uses and what is reported."""
    count = pool.read(pool.DEFAULT)
    if count == 0:
        count = default_num_threads()
        pool.write(pool.DEFAULT, count)
    return count


def _answer() -> int:
    try:
        return _default()
    except KeyboardInterrupt:
        # Nothing can be raised through a kernel, nor by this thread before it is back in there: another one sends the
        # interrupt again when this one has let go of the GIL. The call uses one thread.
        _thread.start_new_thread(_thread.interrupt_main, ())
        return 1


@cache
def ask() -> int:
    """The address of a C function that kernels call while the default is unknown. It takes the GIL by itself."""
    function = ctypes.CFUNCTYPE(ctypes.c_int64)(_answer)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(function))  # the code that refers to it is never freed either
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def _in_child() -> None:
    # For systems without `MADV_WIPEONFORK`: numbers of processes are used again.
    pool.write(pool.OWNER, 0)
    # Affinity, environment, and whether the process is one of many workers may be others than in the parent.
    pool.write(pool.DEFAULT, 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def get_num_threads() -> int:
    """The number of threads that one call may use, in this process.

    Returns
    -------
    int
        What `set_num_threads` set. Else ``FASTRELU_NUM_THREADS``, else ``OMP_NUM_THREADS``. Else 1 in a process that
        `multiprocessing` started, or what builds on it (``ProcessPoolExecutor``, joblib, dask): as many workers as there
        are processors, each with as many threads, would be in each other's way. Else the processors that this process may
        run on, by its affinity and the quotas of its container.

    Notes
    -----
    The default is found out at the first call or the first question, and later changes of the environment do not count. A
    forked process finds it out anew, but inherits what `set_num_threads` has set.

    Examples
    --------
    >>> import fastrelu
    >>> fastrelu.get_num_threads() >= 1
    True
    """
    return pool.read(pool.LIMIT) or _default()


def _checked(count: object, function: str) -> int:
    try:
        number = operator.index(count)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        number = None
    if number is None or isinstance(count, bool):
        raise TypeError(f"{function}: count must be an integer, not {type(count).__name__}")
    if not 1 <= number <= pool.MAX_THREADS:
        raise ValueError(f"{function}: count must be 1 to {pool.MAX_THREADS}, not {number}")
    return number


def set_num_threads(count: int, /) -> None:
    """Limit every later call, from any Python thread, to `count` threads. Results do not depend on it.

    Parameters
    ----------
    count : int
        1 to 256; the calling thread is one of them.

    Raises
    ------
    TypeError
        If `count` is not an integer.
    ValueError
        If it is out of range.

    Examples
    --------
    >>> import fastrelu
    >>> with fastrelu.num_threads(1):  # which puts back what was in force
    ...     fastrelu.set_num_threads(2)
    ...     fastrelu.get_num_threads()
    2
    """
    pool.write(pool.LIMIT, _checked(count, "set_num_threads"))


@contextmanager
def num_threads(count: int, /) -> Iterator[None]:
    """Within a ``with`` block, limit the calls of this process to `count` threads.

    Parameters
    ----------
    count : int
        1 to 256, as for `set_num_threads`.

    Raises
    ------
    TypeError, ValueError
        As for `set_num_threads`.

    Examples
    --------
    >>> import fastrelu
    >>> with fastrelu.num_threads(1):
    ...     fastrelu.get_num_threads()
    1
    """
    number = _checked(count, "num_threads")
    before = pool.read(pool.LIMIT)  # 0 if nobody has set a number, which then holds again
    set_num_threads(number)
    try:
        yield
    finally:
        pool.write(pool.LIMIT, before)
