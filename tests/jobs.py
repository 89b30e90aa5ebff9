"""Jobs for the pool of threads whose parts wait until a test lets them go, so that it can look at who works."""

import ctypes
import threading
import time
from collections.abc import Callable

import fastrelu
from fastrelu.native import linker, pool

_parts = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether `condition` comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


class Job:
    """A call of `parallel_for` from a thread of its own."""

    def __init__(self, parts: int):
        self.working: dict[int, int] = {}
        """The thread that works on each part."""
        self.done: list[int] = []
        self._gates = [threading.Event() for _ in range(parts)]
        self._lock = threading.Lock()
        self._function = _parts(self._part)
        fastrelu.relu(1.0)  # the pool is linked with the first loop
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(linker._symbols[pool.PARALLEL_FOR])
        address = ctypes.cast(self._function, ctypes.c_void_p).value
        self.caller = threading.Thread(target=function, args=(address, 0, parts), daemon=True)
        self.caller.start()

    def _part(self, _: int, part: int) -> None:
        with self._lock:
            self.working[part] = threading.get_ident()
        self._gates[part].wait()
        with self._lock:
            del self.working[part]
            self.done.append(part)

    def step(self) -> None:
        """Let each thread that works on it end its part."""
        with self._lock:
            parts = list(self.working)
        for part in parts:
            self._gates[part].set()
        assert eventually(lambda: not self.working.keys() & set(parts))

    def has(self, threads: int) -> bool:
        """Whether so many threads work on it, now and a while later."""
        if not eventually(lambda: len(self.working) == threads):
            return False
        time.sleep(0.1)
        return len(self.working) == len(set(self.working.values())) == threads

    def end(self) -> list[int]:
        """Let all parts end, and return the numbers of all that were calculated."""
        for gate in self._gates:
            gate.set()
        self.caller.join(30)
        assert not self.caller.is_alive()
        return sorted(self.done)
