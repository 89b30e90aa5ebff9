"""What XLA calls: its description of the buffers in, one of our loops run on them, as one compiled C function.

XLA hands over a *call frame*, whose layout is that of ``xla/ffi/api/c_api.h``. The one attribute of a call says which
operation it is; its table, and the block that describes the arrays, are those by which code that Numba has compiled calls a
loop (`fastrelu.native.entries`). XLA calls us once when it makes or reads a program, so that an operation which another process
has compiled in is loaded then, by Python, and then at every run, without Python.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from fastrelu.kernels.memory import (
    WORD,
    atomic_read,
    call_function,
    read_word,
    stack,
    symbol_address,
    words,
    write_word,
    write_words,
)
from fastrelu.native.entries import (
    ARRAY_BYTES,
    ARRAYS,
    BLOCK_BYTES,
    COUNTS,
    LENGTHS,
    OPERAND_BYTES,
    OPERANDS,
    PLAN_ADDRESS,
    RUN_ADDRESS,
    STEPS,
)

SIGNATURE = types.intp(types.intp)

# The memory that `fastrelu.jax.target` fills: how many operations there are, the texts of the errors, then pairs of the key and
# the table of an operation.
STATE = "fastrelu_xla_state"
COUNT, TEXTS, PAIRS = 0, 8, 32
FIND = "fastrelu_xla_find"
UNKNOWN, NO_FIT, NO_MEMORY = range(3)
_CODES = 5, 3, 8  # XLA_FFI_Error_Code: not found, invalid argument, resource exhausted

# Offsets in XLA_FFI_CallFrame, and those of the size and the array in XLA_FFI_Args, _Rets and _Attrs.
_EXTENSION, _API, _STAGE = 8, 16, 32
_ARGUMENTS, _RESULTS, _ATTRIBUTES = 40, 80, 120
_SIZE, _ARRAY, _ATTRIBUTE_ARRAY = 16, 32, 40
# In XLA_FFI_Buffer.
_DATA, _RANK, _DIMENSIONS = 24, 32, 40
# The stage, an int, in which a program is made: it has no buffers.
_INSTANTIATE = 0
# XLA asks a handler by an extension of this type for the version that it was written to, which is 0.1: major, then minor.
_METADATA, _VERSION = 1, 1 << 32
# In XLA_FFI_Api; and the size of XLA_FFI_Error_Create_Args.
_ERROR_CREATE, _ERROR_BYTES = 48, 28

_state = symbol_address(STATE)
_find = types.ExternalFunction(FIND, types.intp(types.intp))
_ensure = types.ExternalFunction("PyGILState_Ensure", types.int32())
_release = types.ExternalFunction("PyGILState_Release", types.void(types.int32))
_clear = types.ExternalFunction("PyErr_Clear", types.void())


@intrinsic
def _call_word(typing_context, function, argument):
    """Call the C function of one word at the address `function`, which returns one."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(WORD, [WORD])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.intp(types.intp, types.intp), codegen


@register_jitable
def _error(frame, number, code):
    """An error of XLA's with the text of this number."""
    arguments = stack(32)
    write_words(arguments, (_ERROR_BYTES, 0, read_word(_state() + TEXTS + 8 * number), code))
    return _call_word(read_word(read_word(frame + _API) + _ERROR_CREATE), arguments)


@register_jitable
def _table(key):
    """The table of an operation; 0 if there is none of this key."""
    state = _state()
    for i in range(atomic_read(state + COUNT)):
        found, table = words(state + PAIRS + 16 * i, 2)
        if found == key and table != 0:  # another thread may be writing the pair
            return table
    return _find(key)


@register_jitable
def _describe(buffer, array, size):
    """Write what a contiguous buffer is, whose elements have `size` bytes."""
    data, axes, dimensions = words(buffer + _DATA, 3)
    write_words(array, (data, axes))
    step = size
    for reverse in range(axes):
        axis = axes - 1 - reverse
        length = read_word(dimensions + 8 * axis)
        write_word(array + LENGTHS + 8 * axis, length)
        write_word(array + STEPS + 8 * axis, step)
        step *= length


@register_jitable
def _describe_all(buffers, count, array, operand):
    for i in range(count):
        size = read_word(operand + OPERAND_BYTES * i)
        _describe(read_word(buffers + 8 * i), array + ARRAY_BYTES * i, size)


def handler(frame):
    """Run the operation that a call frame names.

    Parameters
    ----------
    frame : intp
        Address of the XLA_FFI_CallFrame.

    Returns
    -------
    intp
        0, or the address of an XLA_FFI_Error.
    """
    extension = read_word(frame + _EXTENSION)
    if extension != 0 and read_word(extension + 8) & 0xFFFFFFFF == _METADATA:
        write_word(read_word(extension + 24) + 24, _VERSION)
        return 0
    attribute = read_word(read_word(frame + _ATTRIBUTES + _ATTRIBUTE_ARRAY))
    table = _table(read_word(read_word(attribute + 8)))
    if table == 0:
        return _error(frame, UNKNOWN, _CODES[UNKNOWN])
    if read_word(frame + _STAGE) & 0xFFFFFFFF == _INSTANTIATE:
        return 0
    inputs, outputs = words(table + COUNTS, 2)
    arguments, results = frame + _ARGUMENTS, frame + _RESULTS
    if read_word(arguments + _SIZE) != inputs or read_word(results + _SIZE) != outputs:
        return _error(frame, NO_FIT, _CODES[NO_FIT])
    block = stack(BLOCK_BYTES)
    array, operand = block + ARRAYS, table + OPERANDS
    _describe_all(read_word(arguments + _ARRAY), inputs, array, operand)
    _describe_all(read_word(results + _ARRAY), outputs, array + ARRAY_BYTES * inputs, operand + OPERAND_BYTES * inputs)
    if call_function(read_word(table + PLAN_ADDRESS), (table, block)) != 0:
        return _error(frame, NO_FIT, _CODES[NO_FIT])
    if call_function(read_word(table + RUN_ADDRESS), (table, block)) != 0:
        # It has set a Python exception, which would come up at some other place.
        state = _ensure()
        _clear()
        _release(state)
        return _error(frame, NO_MEMORY, _CODES[NO_MEMORY])
    return 0
