"""Machine code of kernels, made and read by NVIDIA's own tools: registers, spills, and the instructions of loops. No GPU
is needed.

The tools come with the extra ``cuda-test``, as files inside the packages named ``nvidia``.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: ``opcode`` is its first word with the modifiers, ``LDG.E.128.CONSTANT``."""

    address: int
    opcode: str
    operands: str
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]


@dataclass(frozen=True)
class Loop:
    """The instructions from a label to the branch back to it."""

    instructions: list[Instruction]

    def count(self, name: str) -> int:
        """Instructions of one name."""
        return sum(1 for i in self.instructions if i.name == name)

    def share(self, name: str) -> float:
        """How much of the loop they are."""
        return self.count(name) / len(self.instructions)


@dataclass(frozen=True)
class Code:
    """What ptxas says about a kernel, and its machine code."""

    registers: int
    stack: int
    spilled: int
    shared: int
    warnings: list[str]
    instructions: list[Instruction] = field(repr=False)

    def count(self, *names: str) -> int:
        """Instructions whose name, or opcode with some of its modifiers in this order, is one of ``names``."""
        wanted = [name.split(".") for name in names]
        return sum(1 for i in self.instructions if any(_matches(i.opcode.split("."), parts) for parts in wanted))

    def opcodes(self) -> Counter[str]:
        """How many instructions there are of each opcode."""
        return Counter(i.opcode for i in self.instructions)

    def loops(self) -> list[Loop]:
        """All loops, those inside others too."""
        places = {label: n for n, i in enumerate(self.instructions) for label in i.labels}
        found = []
        for n, i in enumerate(self.instructions):
            goal = re.search(r"`\((\.L\w+)\)", i.operands) if i.name == "BRA" else None
            if goal and places.get(goal[1], n + 1) < n:
                found.append(Loop(self.instructions[places[goal[1]] : n + 1]))
        return found

    def main_loop(self, name: str) -> Loop:
        """The innermost loop with the most instructions of one name."""
        loops = [loop for loop in self.loops() if loop.count(name)]
        if not loops:
            raise LookupError(f"no loop holds {name}")
        most = max(loop.count(name) for loop in loops)
        return min((loop for loop in loops if 2 * loop.count(name) > most), key=lambda loop: len(loop.instructions))


def _matches(parts: list[str], wanted: list[str]) -> bool:
    rest = iter(parts)
    return parts[0] == wanted[0] and all(word in rest for word in wanted)


def architecture(target: tuple[int, int] | tuple[int, int, str]) -> str:
    """``sm_90a`` for ``(9, 0, "a")``."""
    return f"sm_{''.join(map(str, target))}"


@cache
def tool(name: str) -> str:
    """The path of a tool in the environment's ``nvidia`` packages."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(folder).glob(f"*/bin/{name}")):
            return str(found)
    raise FileNotFoundError(f"{name} is not installed: pip install '.[cuda-test]'")


@cache
def assemble(ptx: str, target: tuple[int, int] | tuple[int, int, str]) -> Code:
    """Compile PTX to machine code and read it.

    Parameters
    ----------
    ptx : str
        One kernel.
    target : tuple
        Such as ``(8, 0)`` or ``(9, 0, "a")``.

    Returns
    -------
    Code
    """
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [tool("ptxas"), f"-arch={architecture(target)}", "-O3", "-v", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"ptxas: {done.stderr[-3000:]}")
        listing = subprocess.run([tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=True, timeout=120)
    said = done.stderr

    def number(pattern: str) -> int:
        found = re.search(pattern, said)
        return int(found[1]) if found else 0

    return Code(
        registers=number(r"Used (\d+) registers"),
        stack=number(r"(\d+) bytes stack frame"),
        spilled=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        shared=number(r"(\d+) bytes smem"),
        warnings=[line for line in said.splitlines() if "warning" in line.lower() or "potential" in line.lower()],
        instructions=_read(listing.stdout),
    )


_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\b(.*?);")
_LABEL = re.compile(r"^(\.L\w+):")


def _read(listing: str) -> list[Instruction]:
    instructions, labels = [], []
    for line in listing.splitlines():
        if found := _LABEL.match(line):
            labels.append(found[1])
        elif found := _INSTRUCTION.match(line):
            instructions.append(Instruction(int(found[1], 16), found[2], found[3].strip(), tuple(labels)))
            labels = []
    return instructions
