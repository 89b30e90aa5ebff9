"""Memory that a thread keeps for packing: asked for once, so that no call pays for new pages.

Every thread that packs has an entry in a table. Its state says whether the memory is in use; while it is not, any thread may
give its pages back to the system: the addresses stay those of the thread, which finds them filled with zeros next time.

``take_scratch``, ``return_scratch``  around each part
``tidy``                              gives back what is idle, or frees what threads had that a fork has lost
"""

import os
import sys

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.memory import (
    atomic_read,
    atomic_replace,
    atomic_write,
    callback_address,
    read_byte,
    read_word,
    spin_pause,
    stack,
    words,
    write_word,
    write_words,
)
from fastrelu.kernels.pool import pool_address
from fastrelu.native.pool import MAX_SCRATCHES, SCRATCH_KEY, SCRATCHES

_word, _int = types.intp, types.int32
malloc = types.ExternalFunction("malloc", _word(_word))
free = types.ExternalFunction("free", types.void(_word))
_key_create = types.ExternalFunction("pthread_key_create", _int(_word, _word))
_key_delete = types.ExternalFunction("pthread_key_delete", _int(_int))
_get = types.ExternalFunction("pthread_getspecific", _word(_int))
_set = types.ExternalFunction("pthread_setspecific", _int(_int, _word))

_memalign = types.ExternalFunction("posix_memalign", _int(_word, _word, _word))
_madvise = types.ExternalFunction("madvise", _int(_word, _word, _int))
_mincore = types.ExternalFunction("mincore", _int(_word, _word, _word))
_sched_yield = types.ExternalFunction("sched_yield", _int())

POSIX = os.name == "posix"
LINUX = sys.platform == "linux"
# One large page, where the system gives one, instead of 330 small ones, of which the core knows the places of 72 at once.
PAGE = 1 << 21
_HUGE_PAGES, _NOT_NEEDED = 14, 4  # MADV_HUGEPAGE, MADV_DONTNEED
# Small pages in a large one, at most.
_SMALL_PAGES = PAGE >> 12

# The state of an entry: nobody's; memory not in use; the same, its pages with the system again; in use; being given back.
_STATE = 16
_FREE, _IDLE, _EMPTY, _USED, _LEAVING = range(5)
# Giving pages back takes some 50 us. Who waits longer goes without: after a fork by C code, nobody may be at it any more.
_SPINS, _PATIENCE = 1000, 10000


@register_jitable
def _acquire(entry):
    """Take an entry for use; False if another thread does not let go of it."""
    for turn in range(_PATIENCE):
        if atomic_replace(entry + _STATE, _IDLE, _USED) or atomic_replace(entry + _STATE, _EMPTY, _USED):
            return True
        spin_pause()
        if turn > _SPINS:
            _sched_yield()
    return False


@register_jitable
def _drop(entry):
    """Free an entry and its memory."""
    memory = read_word(entry)
    write_word(entry, 0)  # before it is freed: what a fork sees must not be freed once more
    free(memory)
    atomic_write(entry + _STATE, _FREE)


@register_jitable
def _end(entry):
    """At the end of a thread."""
    if _acquire(entry):
        _drop(entry)


_end_address = callback_address(_end, 1)


@register_jitable
def _key():
    """The number under which POSIX threads keep their entries, plus 1; 0 if there is none left."""
    place = pool_address() + SCRATCH_KEY
    key = atomic_read(place)
    if key == 0:
        made = stack(8)
        if _key_create(made, _end_address()) != 0:
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
def _new_entry(key):
    """An entry in use for this thread; 0 if there is none left."""
    for i in range(MAX_SCRATCHES):
        entry = pool_address() + SCRATCHES + 64 * i
        if atomic_read(entry + _STATE) == _FREE and atomic_replace(entry + _STATE, _FREE, _USED):
            if _set(types.int32(key - 1), entry) == 0:
                return entry
            atomic_write(entry + _STATE, _FREE)
            return 0
    return 0


@register_jitable
def take_scratch(nbytes):
    """The address of `nbytes` bytes that no other thread uses, not aligned; 0 if there is no memory."""
    if not POSIX:
        return malloc(nbytes)
    key = _key()
    entry = _get(types.int32(key - 1)) if key != 0 else 0
    if entry != 0:
        if not _acquire(entry):
            entry = 0
    elif key != 0:
        entry = _new_entry(key)
    if entry == 0:
        return malloc(nbytes)
    memory = read_word(entry)
    if memory == 0:
        memory = _allocate(nbytes)
        if memory == 0:
            atomic_write(entry + _STATE, _EMPTY)
            return 0
        write_words(entry, (memory, (nbytes + PAGE - 1) & -PAGE))
    return memory


@register_jitable
def return_scratch(memory):
    """To be called when the work is done. The thread keeps the memory, and its end frees it."""
    key = atomic_read(pool_address() + SCRATCH_KEY) if POSIX else 0
    entry = _get(types.int32(key - 1)) if key != 0 else 0
    if entry != 0 and read_word(entry) == memory:
        atomic_write(entry + _STATE, _IDLE)
    else:
        free(memory)


@register_jitable
def _give_back(entry, page):
    """Give the memory of an entry back to the system; returns how many bytes there were."""
    memory, nbytes = words(entry, 2)
    if not LINUX:
        write_word(entry, 0)
        free(memory)
        return nbytes
    count, resident = 0, stack(_SMALL_PAGES)
    for start in range(0, nbytes, PAGE):
        if _mincore(memory + start, PAGE, resident) == 0:
            for i in range(PAGE // page):
                count += read_byte(resident + i) & 1
    _madvise(memory, nbytes, types.int32(_NOT_NEEDED))
    return count * page


def tidy(page, is_child):
    """Give back all memory that is not in use; or, in a forked child, free that of the threads which it has lost.

    Parameters
    ----------
    page : intp
        Bytes of a page of memory.
    is_child : intp
        1 in the thread of a child that has just been forked, else 0.

    Returns
    -------
    intp
        How many bytes were given back.
    """
    key = atomic_read(pool_address() + SCRATCH_KEY)
    own = _get(types.int32(key - 1)) if key != 0 else 0
    count = 0
    for i in range(MAX_SCRATCHES):
        entry = pool_address() + SCRATCHES + 64 * i
        state = atomic_read(entry + _STATE)
        if is_child != 0:
            if entry != own and state != _FREE:
                _drop(entry)
            elif state == _LEAVING:  # the thread that was at it is lost
                atomic_write(entry + _STATE, _IDLE)
        elif state == _IDLE and atomic_replace(entry + _STATE, _IDLE, _LEAVING):
            count += _give_back(entry, page)
            atomic_write(entry + _STATE, _EMPTY)
    return count
