"""A pool of native threads for short fork-join jobs, as one compiled function: ``parallel_for``.

Numba's threading layers cannot be used from a library that must never abort: workqueue aborts when two Python threads
call it, omp kills a forked child, and the first compiled parallel function of the process fixes the choice. This pool
is POSIX threads and four atomic words. A job is published in `STATE`; workers that are awake join it, the caller works
too, and it returns when no part is left and every worker that joined has left again. It never waits for a worker that
has not woken up.

* Several callers at once: the first has the pool, the others do their parts themselves. As many workers make room, between
  two parts, as there are other callers, and come back when those have finished.
* After a fork the child has no workers, and the word that tells whose they are is 0 or another process: it starts its own.
* At interpreter exit nothing has to be stopped: no worker ever touches Python.
* OpenMP's threads spin for a while after each of their jobs, on the processors that workers would need. So a thread that calls
  from among another library's OpenMP jobs may ask for that library's threads (`fastrelu.torch.threads`).

The words of the pool stand in a block of memory that `fastrelu.native.pool` lays out and provides.
"""

import sys

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels.memory import (
    DEFAULT_FLOAT_STATUS,
    atomic_add,
    atomic_read,
    atomic_replace,
    atomic_write,
    call_address,
    call_function,
    callback_address,
    enter_default_float_status,
    larger,
    leave_float_status,
    read_word,
    set_float_status,
    smaller,
    spin_pause,
    stack,
    symbol_address,
    words,
    write_word,
    write_words,
)
from fastrelu.native.pool import (
    ASK,
    BUSY,
    CALLERS,
    CONDITION,
    DEFAULT,
    FORK_JOIN,
    GUEST,
    JOB,
    LIMIT,
    MAX_THREADS,
    MUTEX,
    OWNER,
    PARALLEL_FOR,
    POOL,
    RANGES,
    SIGNALS,
    SLEEPERS,
    STARTED,
    STATE,
    TEAM,
)

# Of the state word: set while parts are handed out; below it the number of workers inside, from 2**32 up the generation.
OPEN = 1 << 31
# Bytes that describe a job to another library's threads: its words, and each thread's range.
_TEAM_JOB = 64 * (1 + MAX_THREADS)
# A worker looks for work for about 30 us before it sleeps: a wake-up costs as much.
SPINS = 1000

_int = types.int32
_word = types.intp
_pthread_create = types.ExternalFunction("pthread_create", _int(_word, _word, _word, _word))
_pthread_detach = types.ExternalFunction("pthread_detach", _int(_word))
_pthread_sigmask = types.ExternalFunction("pthread_sigmask", _int(_int, _word, _word))
_sigfillset = types.ExternalFunction("sigfillset", _int(_word))
_mutex_init = types.ExternalFunction("pthread_mutex_init", _int(_word, _word))
_mutex_lock = types.ExternalFunction("pthread_mutex_lock", _int(_word))
_mutex_unlock = types.ExternalFunction("pthread_mutex_unlock", _int(_word))
_condition_init = types.ExternalFunction("pthread_cond_init", _int(_word, _word))
_condition_wait = types.ExternalFunction("pthread_cond_wait", _int(_word, _word))
_condition_broadcast = types.ExternalFunction("pthread_cond_broadcast", _int(_word))
_pthread_self = types.ExternalFunction("pthread_self", _word())
_getpid = types.ExternalFunction("getpid", _int())
_sched_yield = types.ExternalFunction("sched_yield", _int())

pool_address = symbol_address(POOL)
in_parallel = types.ExternalFunction(PARALLEL_FOR, types.void(_word, _word, _word))
"""`parallel_for`, as other kernels call it."""
_ask = types.ExternalFunction(ASK, _word())
_SIG_BLOCK, _SIG_SETMASK = (1, 3) if sys.platform == "darwin" else (0, 2)


@register_jitable
def thread_limit():
    """How many threads a call may use. Only the first call of a forked child has to ask Python."""
    pool = pool_address()
    limit = read_word(pool + LIMIT)
    if limit == 0:
        limit = read_word(pool + DEFAULT)
        if limit == 0:
            limit = larger(_ask(), 1)
    return limit


@register_jitable
def _has_room(pool, me):
    """Whether a worker may run beside all callers."""
    return me < read_word(pool + JOB + 24) - (atomic_read(pool + CALLERS) - 1)


@register_jitable
def _work(pool, me):
    """Run parts of the current job: this thread's own range first, so that its data stay in its cache, then the others'.

    Returns False if a worker makes room and leaves parts to the others.
    """
    function, argument, team = words(pool + JOB, 3)
    for turn in range(team):
        part_range = pool + RANGES + 64 * ((me + turn) % team)
        end = read_word(part_range + 8)
        part = atomic_add(part_range, 1)
        while part < end:
            call_address(function, argument, part)
            if me > 0 and not _has_room(pool, me):
                return False
            part = atomic_add(part_range, 1)
    return True


@register_jitable
def _is_news(state, seen):
    return state & OPEN != 0 and state >> 32 != seen


@register_jitable
def _await_job(pool, seen, me):
    """Return the state once it announces another job than `seen`, and there is room: spin first, then sleep."""
    for _ in range(SPINS):
        state = atomic_read(pool + STATE)
        if _is_news(state, seen) and _has_room(pool, me):
            return state
        spin_pause()
    _mutex_lock(pool + MUTEX)
    atomic_add(pool + SLEEPERS, 1)
    state = atomic_read(pool + STATE)
    while not (_is_news(state, seen) and _has_room(pool, me)):
        _condition_wait(pool + CONDITION, pool + MUTEX)
        state = atomic_read(pool + STATE)
    atomic_add(pool + SLEEPERS, -1)
    _mutex_unlock(pool + MUTEX)
    return state


@register_jitable
def _worker(me):
    pool = pool_address()
    set_float_status(DEFAULT_FLOAT_STATUS)  # else it would be that of the thread which started this one
    seen = 0
    while True:
        state = _await_job(pool, seen, me)
        generation, is_over = state >> 32, True
        # The job's fields are those of `state` as long as joining succeeds: it fails once the job is closed or replaced.
        while _is_news(state, 0) and state >> 32 == generation and me < read_word(pool + JOB + 16):
            if atomic_replace(pool + STATE, state, state + 1):
                is_over = _work(pool, me)
                atomic_add(pool + STATE, -1)
                break
            state = atomic_read(pool + STATE)
        if is_over:
            seen = generation


_worker_address = callback_address(_worker, 1)


@register_jitable
def _own_pool(pool):
    """Make the pool this process's own, after a fork or at first use; False while another thread is at it."""
    process = types.intp(_getpid())
    owner = atomic_read(pool + OWNER)
    if owner == process:
        return True
    if owner == -process or not atomic_replace(pool + OWNER, owner, -process):
        return False
    _mutex_init(pool + MUTEX, 0)
    _condition_init(pool + CONDITION, 0)
    atomic_write(pool + BUSY, 0)
    atomic_write(pool + STATE, 0)
    atomic_write(pool + SLEEPERS, 0)
    atomic_write(pool + CALLERS, 0)
    write_word(pool + STARTED, 0)
    atomic_write(pool + OWNER, process)
    return True


@register_jitable
def _start_workers(pool, wanted):
    """Start workers up to `wanted` and return how many there are. Signals are blocked in them: those are Python's."""
    started = read_word(pool + STARTED)
    if started < wanted:
        _sigfillset(pool + SIGNALS)
        _pthread_sigmask(_SIG_BLOCK, pool + SIGNALS, pool + SIGNALS + 128)
        thread = stack(8)
        while started < wanted and _pthread_create(thread, 0, _worker_address(), started + 1) == 0:
            _pthread_detach(read_word(thread))
            started += 1
        _pthread_sigmask(_SIG_SETMASK, pool + SIGNALS + 128, 0)
        write_word(pool + STARTED, started)
    return smaller(started, wanted)


@register_jitable
def serial_for(function, argument, parts):
    """`parallel_for` where there are no POSIX threads."""
    for part in range(parts):
        call_address(function, argument, part)


@register_jitable
def _wake(pool):
    if atomic_read(pool + SLEEPERS) > 0:
        _mutex_lock(pool + MUTEX)
        _condition_broadcast(pool + CONDITION)
        _mutex_unlock(pool + MUTEX)


@register_jitable
def _team_for(pool, function, argument, parts, limit):
    """`parallel_for` with the pool, which this caller has."""
    team = 1 + _start_workers(pool, smaller(limit, parts) - 1)
    write_words(pool + JOB, (function, argument, team, limit))
    for member in range(team):
        write_words(pool + RANGES + 64 * member, (parts * member // team, parts * (member + 1) // team))
    generation = (atomic_read(pool + STATE) >> 32) + 1
    atomic_write(pool + STATE, generation << 32 | OPEN)
    _wake(pool)
    _work(pool, 0)
    # Close the job, then wait for those inside.
    state = atomic_add(pool + STATE, -OPEN) - OPEN
    spins = 0
    while state & (OPEN - 1) != 0:
        spin_pause()
        spins += 1
        if spins > SPINS:
            _sched_yield()
        state = atomic_read(pool + STATE)
    atomic_write(pool + BUSY, 0)


@register_jitable
def _is_guest(pool):
    """Whether this thread's jobs are for another library's threads."""
    return read_word(pool + GUEST) == _pthread_self()


@register_jitable
def _member(job):
    """What every thread of another library's team runs: its own range of parts first, then the others', as `_work`."""
    function, argument, team, caller, _ = words(job, 5)
    me = 0 if _pthread_self() == caller else atomic_add(job + 32, 1) + 1
    if me >= team:
        return
    status = enter_default_float_status()
    for turn in range(team):
        part_range = job + 64 + 64 * ((me + turn) % team)
        end = read_word(part_range + 8)
        part = atomic_add(part_range, 1)
        while part < end:
            call_address(function, argument, part)
            part = atomic_add(part_range, 1)
    leave_float_status(status)


_member_address = callback_address(_member, 1)


@register_jitable
def _as_guest(pool, function, argument, parts, limit):
    """`parallel_for` on another library's threads.

    All of them are asked for, since OpenMP ends threads that a job does not use; those beyond the limit have nothing to do.
    """
    job, team = stack(_TEAM_JOB), smaller(limit, parts)
    write_words(job, (function, argument, team, _pthread_self(), 0))
    for member in range(team):
        write_words(job + 64 + 64 * member, (parts * member // team, parts * (member + 1) // team))
    call_function(read_word(pool + FORK_JOIN), (_member_address(), job, read_word(pool + TEAM), 0))


def parallel_for(function, argument, parts):
    """Call ``function(argument, part)`` for every part in ``range(parts)``, on several threads, in any order.

    Parameters
    ----------
    function : intp
        Address of a C function of two words.
    argument : intp
        Passed on.
    parts : intp
        How many calls to make. All have returned when this function returns.
    """
    pool, limit = pool_address(), thread_limit()
    is_guest = _is_guest(pool)
    if is_guest:
        limit = smaller(limit, read_word(pool + TEAM))
    if smaller(limit, parts) < 2 or not _own_pool(pool):
        serial_for(function, argument, parts)
        return
    others = atomic_add(pool + CALLERS, 1)
    if limit - others < 2:
        serial_for(function, argument, parts)
    elif is_guest and read_word(pool + FORK_JOIN) != 0:
        _as_guest(pool, function, argument, parts, limit)
    elif not atomic_replace(pool + BUSY, 0, 1):
        serial_for(function, argument, parts)
    else:
        _team_for(pool, function, argument, parts, limit)
    callers = atomic_add(pool + CALLERS, -1) - 1
    if atomic_read(pool + STATE) & OPEN != 0 and callers < read_word(pool + JOB + 24):
        _wake(pool)  # a worker that has made room
