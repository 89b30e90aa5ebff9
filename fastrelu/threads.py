"""How many threads one call may use."""

import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager

from fastrelu.native import pool


def _from_environment(name: str) -> int | None:
    """The positive integer in an environment variable; OpenMP allows a list, whose first number counts."""
    try:
        count = int(os.environ.get(name, "").split(",")[0])
    except ValueError:
        return None
    return count if count > 0 else None


def _cgroup_quota() -> int | None:
    """The processors that the container's quota amounts to, rounded up."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None


def default_num_threads() -> int:
    """``FASTRELU_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the processors this process may run on."""
    asked = _from_environment("FASTRELU_NUM_THREADS") or _from_environment("OMP_NUM_THREADS")
    if asked is None:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = min(allowed, _cgroup_quota() or allowed)
    return min(asked, pool.MAX_THREADS)


def get_num_threads() -> int:
    """The number of threads that one call may use, in this process.

    Returns
    -------
    int
        What `set_num_threads` set, else ``FASTRELU_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number of
        processors that this process may run on (affinity and container quota considered).

    Examples
    --------
    >>> import fastrelu
    >>> fastrelu.get_num_threads() >= 1
    True
    """
    return pool.read(pool.LIMIT) or default_num_threads()


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
    """
    pool.write(pool.LIMIT, _checked(count, "set_num_threads"))


@contextmanager
def num_threads(count: int, /) -> Iterator[None]:
    """Within a ``with`` block, limit the calls of this process to `count` threads.

    Parameters
    ----------
    count : int
        1 to 256, as for `set_num_threads`.

    Examples
    --------
    >>> import fastrelu
    >>> with fastrelu.num_threads(1):
    ...     fastrelu.get_num_threads()
    1
    """
    number, before = _checked(count, "num_threads"), get_num_threads()
    set_num_threads(number)
    try:
        yield
    finally:
        set_num_threads(before)
