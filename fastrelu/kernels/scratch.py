"""Memory that a thread keeps for packing: asked for once, so that no call pays for new pages."""

import os
import sys

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.memory import atomic_read, atomic_replace, read_word, stack, symbol_address
from fastrelu.kernels.pool import pool_address
from fastrelu.native.pool import SCRATCH_KEY

_word, _int = types.intp, types.int32
malloc = types.ExternalFunction("malloc", _word(_word))
free = types.ExternalFunction("free", types.void(_word))
_key_create = types.ExternalFunction("pthread_key_create", _int(_word, _word))
_key_delete = types.ExternalFunction("pthread_key_delete", _int(_int))
_get = types.ExternalFunction("pthread_getspecific", _word(_int))
_set = types.ExternalFunction("pthread_setspecific", _int(_int, _word))
_free_address = symbol_address("free")

_memalign = types.ExternalFunction("posix_memalign", _int(_word, _word, _word))
_madvise = types.ExternalFunction("madvise", _int(_word, _word, _int))

POSIX = os.name == "posix"
LINUX = sys.platform == "linux"
# One large page, where the system gives one, instead of 330 small ones, of which the core knows the places of 72 at once.
PAGE = 1 << 21
_HUGE_PAGES = 14  # MADV_HUGEPAGE


@register_jitable
def _key():
    """The number under which POSIX threads keep their scratch memory, plus 1; 0 if there is none left."""
    place = pool_address() + SCRATCH_KEY
    key = atomic_read(place)
    if key == 0:
        made = stack(8)
        if _key_create(made, _free_address()) != 0:
            return 0
        key = (read_word(made) & 0xFFFFFFFF) + 1
        if not atomic_replace(place, 0, key):  # another thread was first
            _key_delete(types.int32(key - 1))
            key = atomic_read(place)
    return key


@register_jitable
def _allocate(nbytes):
    """Memory for one thread; 0 if there is none."""
    if LINUX:
        place = stack(8)
        if _memalign(place, PAGE, (nbytes + PAGE - 1) & -PAGE) != 0:
            return 0
        memory = read_word(place)
        _madvise(memory, (nbytes + PAGE - 1) & -PAGE, types.int32(_HUGE_PAGES))
        return memory
    return malloc(nbytes)


@register_jitable
def take_scratch(nbytes):
    """The address of `nbytes` bytes that no other thread uses, not aligned; 0 if there is no memory."""
    if not POSIX:
        return malloc(nbytes)
    key = _key()
    if key == 0:
        return malloc(nbytes)
    memory = _get(types.int32(key - 1))
    if memory == 0:
        memory = _allocate(nbytes)
        if memory != 0 and _set(types.int32(key - 1), memory) != 0:
            free(memory)
            return 0
    return memory


@register_jitable
def return_scratch(memory):
    """To be called when the work is done. The thread keeps the memory, and its end frees it."""
    if not POSIX or atomic_read(pool_address() + SCRATCH_KEY) == 0:
        free(memory)
