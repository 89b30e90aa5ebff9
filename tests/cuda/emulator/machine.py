"""Blocks of a grid, run side by side: one NumPy array holds a register of all of their threads.

A *lane* is a thread of one of the blocks. The lanes of a block are padded to whole warps; padding never runs.
Instructions are bound once to the arrays that they work on, as closures, and grouped into straight stretches of code.
A stretch runs for all lanes that stand at its start; of several such groups the one that is furthest behind runs
first, so that lanes meet again where their ways join.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import parser, races
from .errors import Deadlock, Diverged, EmulationError, UnknownInstruction
from .memory import GlobalMemory
from .program import Program, Stretch
from .shared import BASE, SharedMemory
from .statistics import Statistics

Array = np.ndarray[Any, Any]
Step = Callable[[Array | None], None]
"""An instruction at work: its argument says which lanes take part, None means all of them."""

SHARED_WINDOW = 1 << 60
LOCAL_WINDOW = 1 << 61
"""Where shared and local memory appear among generic addresses: far above every address of this machine."""

_TYPES: dict[str, Any] = {"pred": np.bool_, "f32": np.float32, "f64": np.float64, "f16": np.uint16, "bf16": np.uint16}
_TYPES |= {
    f"{letter}{8 * size}": np.dtype(f"{kind}{size}")
    for letter, kind in (("b", "u"), ("u", "u"), ("s", "i"))
    for size in (1, 2, 4, 8)
}
_TYPES |= {"f16x2": np.uint32, "bf16x2": np.uint32}
TYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, kind in _TYPES.items()}
"""NumPy's type for each of PTX's; the short floats are bits."""


class Machine:
    """The state of some blocks of a kernel.

    Parameters
    ----------
    program : Program
    blocks : int
        Blocks that run side by side.
    block : tuple of int
        Threads of a block along x, y and z.
    shared : int
        Bytes of dynamic shared memory.
    memory : GlobalMemory
    """

    def __init__(self, program: Program, blocks: int, block: tuple[int, int, int], shared: int, memory: GlobalMemory) -> None:
        self.program, self.memory, self.blocks = program, memory, blocks
        self.threads = int(np.prod(block))
        self.padded = -(-self.threads // 32) * 32
        self.lanes = blocks * self.padded
        self.thread = np.tile(np.arange(self.padded), blocks)
        self.block_of = np.repeat(np.arange(blocks), self.padded)
        static = program.shared_size
        if program.dynamic_align:
            static = -(-static // program.dynamic_align) * program.dynamic_align
        self._symbols = {name: BASE + offset for name, offset in program.shared_offsets.items()}
        self._symbols |= dict.fromkeys(program.dynamic_names, BASE + static)
        self._symbols |= program.local_offsets
        self.shared = SharedMemory(blocks, self.lanes, static + shared, program.granule)
        self.local = np.zeros((self.lanes, max(program.local_size, 1)), np.uint8)
        self.parameters: dict[str, np.generic] = {}
        self.statistics = Statistics(program)
        self.measure = False
        self.shared.asynchronous = any(i.name == "wgmma" for i in program.kernel.instructions)
        self.copies: list[Any] = []
        self.products: list[Any] = []
        self.product_groups: dict[int, int] = {}
        self.accumulators: dict[Any, Any] = {}
        self.committed = np.zeros(self.lanes, np.int64)
        self._registers = {name: np.zeros(self.lanes, TYPES[r.type]) for name, r in program.kernel.registers.items()}
        self._constants: dict[tuple[bytes, np.dtype[Any]], Array] = {}
        x, y, _ = block
        self._special = {
            "%tid.x": self.thread % x,
            "%tid.y": self.thread // x % y,
            "%tid.z": self.thread // (x * y),
            "%laneid": self.thread % 32,
            "%warpid": self.thread // 32,
            "%lanemask_lt": (1 << (self.thread % 32)) - 1,
            "%lanemask_le": (2 << (self.thread % 32)) - 1,
            "%lanemask_eq": 1 << (self.thread % 32),
            "%dynamic_smem_size": np.full(self.lanes, shared),
            **{f"%ntid.{axis}": np.full(self.lanes, n) for axis, n in zip("xyz", block, strict=True)},
            **{f"%{name}.{axis}": np.zeros(self.lanes) for name in ("ctaid", "nctaid") for axis in "xyz"},
        }
        self._special = {name: values.astype(np.uint32) for name, values in self._special.items()}
        self._steps = [self._bind(stretch) for stretch in program.stretches]

    # ---- operands, for the instructions

    def source(self, operand: parser.Operand, kind: str) -> Array:
        """The array that an operand is, read as PTX's type ``kind``: a view where it is a register, a constant otherwise."""
        dtype = TYPES[kind]
        if isinstance(operand, parser.Register):
            return self._view(self._registers[operand.name], dtype)
        if isinstance(operand, parser.Special):
            if operand.name not in self._special:
                raise UnknownInstruction(f"the register {operand.name} is not known")
            return self._view(self._special[operand.name], dtype)
        if isinstance(operand, parser.Immediate):
            value = _constant(operand.text, dtype)
        elif isinstance(operand, parser.Symbol):
            value = np.array(self.symbol(operand.name), np.uint64).astype(dtype)
        else:
            raise UnknownInstruction(f"{operand} is no source")
        key = value.tobytes(), dtype
        if key not in self._constants:
            self._constants[key] = np.full(self.lanes, value)
            self._constants[key].flags.writeable = False
        return self._constants[key]

    def target(self, operand: parser.Operand, kind: str) -> Array:
        """The array of a register that an instruction writes."""
        if not isinstance(operand, parser.Register):
            raise UnknownInstruction(f"{operand} is no register")
        return self._view(self._registers[operand.name], TYPES[kind])

    def register(self, operand: parser.Operand) -> Array:
        """The array of a register, in its declared type."""
        if not isinstance(operand, parser.Register):
            raise UnknownInstruction(f"{operand} is no register")
        return self._registers[operand.name]

    def symbol(self, name: str) -> int:
        """The address of a variable, in its own state space."""
        if name in self._symbols:
            return self._symbols[name]
        if name in self.program.globals:
            return int(self.program.globals[name].ctypes.data)
        raise UnknownInstruction(f"the name {name} is not known")

    @staticmethod
    def _view(values: Array, dtype: np.dtype[Any]) -> Array:
        if values.dtype == dtype:
            return values
        if values.dtype.itemsize == dtype.itemsize and np.bool_ not in (values.dtype, dtype):
            return values.view(dtype)
        if values.dtype.itemsize > dtype.itemsize:
            return values.view(dtype)[:: values.dtype.itemsize // dtype.itemsize]
        raise UnknownInstruction(f"a register of {values.dtype} cannot stand for {dtype}")

    # ---- a launch

    def run(self, first: int, count: int, grid: tuple[int, int, int], parameters: dict[str, np.generic]) -> None:
        """Run the ``count`` blocks of a grid from number ``first``."""
        index = first + self.block_of
        for axis, n in enumerate(grid):
            self._special[f"%ctaid.{'xyz'[axis]}"][:] = index % n
            self._special[f"%nctaid.{'xyz'[axis]}"][:] = n
            index = index // n
        for values in self._registers.values():
            values.view(np.uint8)[:] = 1 if values.dtype == np.bool_ else 0xFF  # whoever reads what was never written gets NaN
        self.parameters.clear()
        self.parameters |= parameters
        self.shared.reset()
        self.copies.clear()
        self.products.clear()
        self.product_groups.clear()
        self.accumulators.clear()
        self.committed[:] = 0
        self.moments = races.global_stamps(first + self.block_of, self.thread)
        alive = (self.thread < self.threads) & (self.block_of < count)
        try:
            with np.errstate(all="ignore"):
                self._run(alive)
        except EmulationError as error:
            error.note(f"kernel {self.program.kernel.name}, blocks {first} to {first + count - 1} of {grid}")
            raise

    def _run(self, alive: Array) -> None:
        place = np.zeros(self.lanes, np.int64)
        waiting = np.full(self.lanes, -1, np.int64)
        end = len(self._steps)
        place[~alive] = end
        while True:
            ready = np.where(waiting < 0, place, end)
            at = int(ready.min())
            if at == end:
                if (waiting < 0).all():
                    return
                raise Deadlock("threads wait at a barrier that the others of their block never reach")
            here = ready == at
            mask, limit = None, end
            if not here.all():
                mask, limit = here, int(ready[~here].min())
            # The group runs alone until it reaches a place where others stand.
            after: int | None = at
            while after is not None and after < limit:
                at = after
                self._execute(at, mask)
                after = self.program.stretches[at].exit(self, mask, at, place, waiting, end)
            if after is not None:
                place[slice(None) if mask is None else mask] = after

    def _execute(self, at: int, mask: Array | None) -> None:
        stretch = self.program.stretches[at]
        self.statistics.executed(at, self.lanes if mask is None else int(np.count_nonzero(mask)))
        for number, step in enumerate(self._steps[at]):
            try:
                step(mask)
            except EmulationError as error:
                error.note(f"at instruction {stretch.start + number}: {stretch.instructions[number].text}")
                raise

    def _bind(self, stretch: Stretch) -> list[Step]:
        from .instructions import bind

        steps = []
        for instruction in stretch.instructions:
            try:
                step = bind(self, instruction)
            except EmulationError as error:
                error.note(f"in {instruction.text}")
                raise
            steps.append(self._guarded(step, instruction) if instruction.predicate else step)
        return steps

    def _guarded(self, step: Step, instruction: parser.Instruction) -> Step:
        assert instruction.predicate is not None
        predicate, negated = self.source(instruction.predicate, "pred"), instruction.negated

        def guarded(mask: Array | None) -> None:
            taken = ~predicate if negated else predicate.copy()
            if mask is not None:
                taken &= mask
            if taken.all():
                step(None)
            elif taken.any():
                step(taken)

        return guarded

    # ---- barriers, for the exits of stretches

    def arrive(self, mask: Array | None, at: int, place: Array, waiting: Array, barrier: int, end: int) -> None:
        """Lanes reach a barrier of their block: they go on once all of the block's threads have."""
        lanes = np.arange(self.lanes) if mask is None else np.flatnonzero(mask)
        place[lanes] = at + 1
        waiting[lanes] = barrier
        member = self.thread < self.threads
        for block in np.unique(self.block_of[lanes]):
            these = slice(int(block) * self.padded, int(block) * self.padded + self.threads)
            if (waiting[these] == barrier).all() and member[these].all():
                stops = place[these]
                warps = np.arange(self.threads) // 32
                if (stops != stops[np.searchsorted(warps, warps)]).any():
                    raise Diverged("the threads of a warp wait at different barriers")
                waiting[these] = -1
                self.shared.barrier(np.arange(these.start, these.stop))
                self.moments[these] += races.BARRIER
            elif ((place[these] == end) & (waiting[these] < 0)).any():
                raise Diverged("some threads of a block have ended, and others wait for them at a barrier")

    def warps(self, mask: Array | None) -> Array:
        """The numbers of the warps that reach an instruction for whole warps; raises where a warp is not complete."""
        if mask is None:
            return np.arange(self.lanes // 32)
        rows = mask.reshape(-1, 32)
        whole = rows.all(1)
        if (rows.any(1) & ~whole).any():
            raise Diverged("only some threads of a warp reach an instruction for the whole warp")
        return np.flatnonzero(whole)


def _constant(text: str, dtype: np.dtype[Any]) -> Array:
    if text[:2] in ("0f", "0F"):
        value: Array = np.array(int(text[2:], 16), np.uint32).view(np.float32)
    elif text[:2] in ("0d", "0D"):
        value = np.array(int(text[2:], 16), np.uint64).view(np.float64)
    elif dtype.kind == "f":
        return np.array(float(text), dtype)
    elif dtype == np.bool_:
        return np.array(int(text, 0) != 0)
    else:
        bits = int(text.rstrip("U"), 0) & ((1 << (8 * dtype.itemsize)) - 1)
        return np.array(bits, f"u{dtype.itemsize}").view(dtype)
    if dtype.kind == "f":
        return value.astype(dtype)
    if value.dtype.itemsize != dtype.itemsize:
        raise UnknownInstruction(f"the constant {text} cannot stand for {dtype}")
    return value.view(dtype)
