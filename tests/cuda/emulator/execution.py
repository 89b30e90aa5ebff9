"""A launch: the blocks of a grid in batches, each batch as NumPy vectors."""

from __future__ import annotations

from typing import Any

from .machine import Machine
from .memory import GlobalMemory
from .program import Program
from .statistics import Statistics

LANES = 4096
"""Threads that run side by side: many, for NumPy's calls cost the same for few; not more, for registers stay in the cache."""


def execute(
    program: Program,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arguments: tuple[Any, ...],
    memory: GlobalMemory,
    *,
    shared: int = 0,
    measure: bool = False,
) -> Statistics:
    """Run a kernel.

    Parameters
    ----------
    program : Program
        The kernel.
    grid, block : tuple of int
        Blocks, and threads of a block, along x, y and z.
    arguments : tuple of numbers
        Addresses, integers and floats.
    memory : GlobalMemory
        What the kernel may touch.
    shared : int, optional
        Bytes of dynamic shared memory.
    measure : bool, optional
        Count sectors and wavefronts as well.

    Returns
    -------
    Statistics

    Raises
    ------
    EmulationError
        At the first thing that is wrong.
    """
    threads = -(-block[0] * block[1] * block[2] // 32) * 32
    total = grid[0] * grid[1] * grid[2]
    batches = -(-total // max(LANES // threads, 1))
    side_by_side = -(-total // batches)
    key = side_by_side, block, shared, id(memory)
    machine = program.machines.get(key)
    if machine is None:
        machine = program.machines[key] = Machine(program, side_by_side, block, shared, memory)
    machine.statistics, machine.measure = Statistics(program), measure
    memory.begin(program.global_granule)
    for variable in program.globals.values():
        memory.add(variable.ctypes.data, variable.ctypes.data + variable.nbytes, "a variable of the module")
    try:
        packed = program.pack(arguments)
        for first in range(0, total, side_by_side):
            machine.run(first, min(side_by_side, total - first), grid, packed)
    finally:
        for variable in program.globals.values():
            memory.remove(variable.ctypes.data)
    return machine.statistics
