"""How a loop raises an exception: it sets it, with Python's lock held, and returns -1."""

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.memory import symbol_address, words
from fastrelu.native.errors import ERRORS

_ensure = types.ExternalFunction("PyGILState_Ensure", types.int32())
_release = types.ExternalFunction("PyGILState_Release", types.void(types.int32))
_set_string = types.ExternalFunction("PyErr_SetString", types.void(types.intp, types.intp))

_errors = symbol_address(ERRORS)


@register_jitable
def fail(number):
    """Set the exception with this number in `fastrelu.native.errors` and return -1."""
    exception, text = words(_errors() + 16 * number, 2)
    state = _ensure()
    _set_string(exception, text)
    _release(state)
    return -1
