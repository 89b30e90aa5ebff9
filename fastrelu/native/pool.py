"""The memory that the pool of threads lives in, laid out for the kernels and for Python.

Importing this module needs neither Numba nor llvmlite. `fastrelu.kernels.pool` has the algorithm.
"""

import ctypes
import mmap
import os
import sys
from contextlib import suppress

# Names of the compiled functions and of the memory itself, as kernels refer to them.
POOL = "fastrelu_pool"
PARALLEL_FOR = "fastrelu_parallel_for"
ELEMENTWISE = "fastrelu_elementwise"
ASK = "fastrelu_ask_num_threads"
TIDY = "fastrelu_tidy"

MAX_THREADS = 256
MAX_SCRATCHES = 1024

# Offsets in bytes. Words that different threads write stand in different cache lines.
OWNER = 0  # process that the workers belong to, negative while one thread sets the pool up
# A thread (its pthread) whose jobs go to another library's threads, while they do; the address of that library's
# GOMP_parallel, and the number of its threads. Like OWNER on pages of which a forked child finds nothing.
GUEST, FORK_JOIN, TEAM = 64, 72, 80
_REST = 1 << 16  # the largest pages that there are
BUSY = _REST  # 1 while a caller has the pool
STATE = _REST + 64  # the current job's generation, whether it is open, and the number of workers inside
JOB = _REST + 128  # function, argument, threads that take part, threads that all callers together may have
SLEEPERS = _REST + 192  # workers that wait on the condition
LIMIT = _REST + 256  # threads that a job may use, the caller included, as a program has asked for; 0 if it has not
CACHE = _REST + 264  # bytes beyond which streaming stores pay; set from Python
STARTED = _REST + 272  # workers that exist
SCRATCH_KEY = _REST + 280  # under which a thread finds its entry of `SCRATCHES`, plus 1
DEFAULT = _REST + 288  # what holds while LIMIT is 0; 0 until somebody needs it, and again in a forked child
MUTEX = _REST + 320
CONDITION = _REST + 448
SIGNALS = _REST + 576  # two signal sets of 128 bytes
CALLERS = _REST + 832  # calls that are inside `parallel_for` with more than one part
RANGES = _REST + 960  # for each thread that takes part: next part, end of its own parts; 64 bytes apart
SCRATCHES = RANGES + 64 * MAX_THREADS  # for each thread that packs its memory: address, bytes, state; 64 bytes apart
_SIZE = SCRATCHES + 64 * MAX_SCRATCHES

_WIPE_ON_FORK = 18  # MADV_WIPEONFORK of Linux 4.14


def _allocate() -> ctypes.Array[ctypes.c_int64]:
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    raw = mmap.mmap(-1, _SIZE, **private)
    if sys.platform == "linux":
        # A child has no owner then, even one that C code forks, and one that has its parent's number in a namespace of its own.
        with suppress(OSError):
            raw.madvise(_WIPE_ON_FORK, OWNER, _REST)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(raw))
    return (ctypes.c_int64 * (_SIZE // 8)).from_buffer(raw)


memory = _allocate()
"""The block, zero at first, aligned to a page, and never freed: threads look at it until the process ends."""


def read(offset: int) -> int:
    """The word at `offset`."""
    return int(memory[offset // 8])


def write(offset: int, value: int) -> None:
    """Set the word at `offset`."""
    memory[offset // 8] = value
