"""Operations as compiled code calls them: by the address of a table that says how.

Machine code that Numba has written for a user's function knows an operation by its name only. When it first calls it, it asks
`address` for the table, so that code from a cache of the user's own finds the kernels of this process and this processor.

Importing this module needs neither Numba nor llvmlite.
"""

import ctypes
import re
from functools import cache

import numpy as np

from fastrelu.operations import LAYERS, OPERATIONS, Backward, Layer, Operation, backward_variants

PLAN = "fastrelu_plan"
RUN = "fastrelu_run"

MAX_AXES = 32
MAX_OPERANDS = 11
MAX_CORES = 4

# The table of an operation. An operand takes four words: bytes of an element, the number of its core axes, and which they are.
LOOP = 0
PLAN_ADDRESS = 8
RUN_ADDRESS = 16
COUNTS = 24  # inputs, outputs, core dimensions; then which of these is n and which ceil(n / 8), or -1
OPERANDS = 64
OPERAND_BYTES = 32

# The block in which a call describes its arrays. Of an operand: its address, the number of its axes (-1 if it is an output that
# is still to be made), their lengths (-1 if any length is right), the steps along them in bytes.
AXES = 0  # number of loop axes
SHAPE = 8  # and their lengths
CORES = SHAPE + 8 * MAX_AXES  # lengths of the core dimensions
ARRAYS = CORES + 8 * MAX_CORES
LENGTHS = 16
STEPS = LENGTHS + 8 * MAX_AXES
ARRAY_BYTES = STEPS + 8 * MAX_AXES
BLOCK_BYTES = ARRAYS + MAX_OPERANDS * ARRAY_BYTES


def _find(name: str) -> Operation | Layer | Backward:
    return OPERATIONS.get(name) or LAYERS.get(name) or backward_variants()[name]


def _core_axes(operation: Operation | Layer | Backward) -> list[list[str]]:
    """The names of the core axes of each operand."""
    if isinstance(operation, Operation):
        return [[]] * (len(operation.inputs) + 1)
    return [re.findall(r"\w+", core) for core in re.findall(r"\(([^)]*)\)", operation.signature)]


@cache
def address(key: str) -> int:
    """The address of the table for ``"NAME DTYPE"``, the ufunc of that name on that type; its kernel is made at first use."""
    from fastrelu.native import loops, target

    name, dtype = key.split()
    operation = _find(name)
    if isinstance(operation, Operation):
        elementwise = operation.loop(dtype, target.vector_bytes())
        dtypes, loop, outputs = elementwise.dtypes, loops.address_of(elementwise), 1
    elif isinstance(operation, Layer):
        fused = operation.loop(dtype, target.vector_bytes())
        dtypes, loop, outputs = fused.dtypes + ("uint8",) * operation.mask, loops.address_of_fused(fused), 1 + operation.mask
    else:
        gradient = operation.loop(dtype, target.vector_bytes())
        dtypes, loop, outputs = gradient.dtypes, loops.address_of_gradient(gradient), len(operation.wanted)
    cores = _core_axes(operation)
    names = list(dict.fromkeys(axis for axes in cores for axis in axes))
    number = {axis: i for i, axis in enumerate(names)}
    head = [loop, *loops.array_calls(), len(dtypes) - outputs, outputs, len(names)]
    head += [number.get("n", -1), number.get("q", -1)] if "q" in number else [-1, -1]
    rows = [[np.dtype(t).itemsize, len(axes), *(number[a] for a in axes)] for t, axes in zip(dtypes, cores, strict=True)]
    words = head + [word for row in rows for word in row + [0] * (4 - len(row))]
    table = (ctypes.c_int64 * len(words))(*words)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(table))  # threads may run the code that refers to it while the interpreter ends
    return ctypes.addressof(table)
