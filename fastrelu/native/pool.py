"""The memory that the pool of threads lives in, laid out for the kernels and for Python.

Importing this module needs neither Numba nor llvmlite. `fastrelu.kernels.pool` has the algorithm.
"""

import ctypes

# Names of the compiled functions and of the memory itself, as kernels refer to them.
POOL = "fastrelu_pool"
PARALLEL_FOR = "fastrelu_parallel_for"
ELEMENTWISE = "fastrelu_elementwise"
ASK = "fastrelu_ask_num_threads"

MAX_THREADS = 256

# Offsets in bytes. Words that different threads write stand in different cache lines.
OWNER = 0  # process that the workers belong to, negative while one thread sets the pool up
BUSY = 64  # 1 while a caller has the pool
STATE = 128  # the current job's generation, whether it is open, and the number of workers inside
JOB = 192  # function, argument, threads that take part, threads that all callers together may have
SLEEPERS = 256  # workers that wait on the condition
LIMIT = 320  # threads that a job may use, the caller included, as a program has asked for; 0 if it has not
CACHE = 328  # bytes beyond which streaming stores pay; set from Python
STARTED = 336  # workers that exist
SCRATCH_KEY = 344  # of the threads' own memory, plus 1
DEFAULT = 352  # what holds while LIMIT is 0; 0 until somebody needs it, and again in a forked child
MUTEX = 384
CONDITION = 512
SIGNALS = 640  # two signal sets of 128 bytes
CALLERS = 896  # calls that are inside `parallel_for` with more than one part
RANGES = 1024  # for each thread that takes part: next part, end of its own parts; 64 bytes apart
_SIZE = RANGES + 64 * MAX_THREADS


def _allocate() -> ctypes.Array[ctypes.c_int64]:
    raw = ctypes.create_string_buffer(_SIZE + 64)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(raw))
    return (ctypes.c_int64 * (_SIZE // 8)).from_buffer(raw, -ctypes.addressof(raw) % 64)


memory = _allocate()
"""The block, zero at first, aligned to a cache line, and never freed: threads look at it until the process ends."""


def read(offset: int) -> int:
    """The word at `offset`."""
    return int(memory[offset // 8])


def write(offset: int, value: int) -> None:
    """Set the word at `offset`."""
    memory[offset // 8] = value
