"""Nothing outside the operands is read or written: they stand directly before or after memory that cannot be touched."""

import ctypes
import mmap
import sys

import ml_dtypes
import numpy as np
import pytest

import fastrelu
from fastrelu import ufuncs
from fastrelu.native import pool, target
from fastrelu.operations import OPERATIONS
from tests.subprocesses import call
from tests.test_target import TARGETS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no mprotect here")

_MARK = 0xA5


class Guarded:
    """A block of memory between two pages that cannot be touched: what touches them ends the process."""

    def __init__(self, size: int):
        page = mmap.PAGESIZE
        inside = -(-size // page) * page
        self._map = mmap.mmap(-1, inside + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for guard in (address, address + page + inside):
            assert protect(guard, page, 0) == 0, ctypes.get_errno()  # 0 is PROT_NONE
        self.bytes = np.frombuffer(self._map, np.uint8)[page : page + inside]

    def array(self, dtype: np.dtype, size: int, step: int, at_end: bool) -> np.ndarray:
        """An array of every `step`-th element whose last or first element touches a guard."""
        whole = self.bytes.view(dtype)
        span = (size - 1) * abs(step) + 1 if size else 0
        return (whole[len(whole) - span :] if at_end else whole[:span])[:: abs(step)][:: 1 if step > 0 else -1]


def sweep(name: str, sizes: list[int], steps: list[int], parallel: bool) -> None:
    """Call an operation on every type for all sizes and steps, with its operands at either guard."""
    operation, function = OPERATIONS[name], getattr(ufuncs, name)
    widest = max(sizes) * max(abs(step) for step in steps) * 8
    blocks = [Guarded(widest) for _ in range(len(operation.inputs) + 1)]
    if parallel:
        fastrelu.relu(1.0)
        pool.write(pool.CACHE, 1)  # every store that can be is a streaming store
        fastrelu.set_num_threads(3)
    rng = np.random.default_rng(3)
    for dtype in operation.dtypes:
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        for block in blocks[:-1]:
            block.bytes[:] = rng.integers(0, 100, len(block.bytes), np.uint8)
        for size in sizes:
            for step in steps:
                for at_end in (False, True):
                    *inputs, out = [block.array(kind, size, step, at_end) for block in blocks]
                    for single in (False, True) if operation.parameter >= 0 else (False,):
                        if single:
                            inputs[-1] = blocks[len(inputs) - 1].array(kind, 1, 1, at_end)
                        # Equal to a plain call, so that every element is written; and nothing else is.
                        expected = function(*[np.array(x) for x in inputs])
                        blocks[-1].bytes[:] = _MARK
                        function(*inputs, out=out)
                        assert out.tobytes() == expected.tobytes(), (dtype, size, step, at_end)
                        out.view(f"u{kind.itemsize}")[:] = int.from_bytes([_MARK] * kind.itemsize, "little")
                        assert (blocks[-1].bytes == _MARK).all(), (dtype, size, step, at_end)


@pytest.mark.parametrize("name", OPERATIONS)
def test_short_arrays(name):
    # All remainders of two registers of 64 bytes.
    call(sweep, name, [*range(134)], [1, 3, -1], False)


@pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")
@pytest.mark.parametrize("to", ["avx2", pytest.param("sse4", marks=pytest.mark.nightly)])
# By day what `test_target` compiles for these vectors as well.
@pytest.mark.parametrize(
    "name", ["relu", "tanh", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("prelu", "leaky_relu_backward"))]
)
def test_short_arrays_in_narrower_vectors(name, to):
    call(sweep, name, [*range(70)], [1], False, env=TARGETS[to][0])


@pytest.mark.parametrize("name", OPERATIONS)
def test_streamed_in_parts(name):
    call(sweep, name, [33_000, 65_537, 65_599], [1], True)
