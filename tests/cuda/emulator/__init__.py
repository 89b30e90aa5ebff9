"""An emulator of compiled PTX: kernels run where there is no GPU, and what they do wrong is found.

It executes what the compiler made, on real memory, with the results that PTX defines, to the bit. It finds accesses
out of bounds and misaligned ones, races in shared memory, copies that nobody waited for, barriers and warp
instructions that not all threads reach; and it counts instructions, sectors and bank conflicts. What it does not know
is an error.

Numba's simulator is not used: it runs Python instead of what the compiler made, knows no raw addresses and none of the
intrinsics that kernels here consist of, and took 20 s for a plain product of 64 x 64 x 64 with shared tiles, where the
emulator took 0.07 s for the layer's kernel with all its checks (same machine). So every remainder is tested here.

| module | holds |
|---|---|
| `parser` | PTX text to instructions |
| `program` | a kernel's straight stretches of code, and where its variables lie |
| `machine` | blocks side by side: registers, divergence, barriers |
| `instructions` | what each instruction does |
| `numbers` | arithmetic as PTX defines it |
| `memory`, `shared`, `races` | memory, its bounds, and who touched it |
| `statistics` | what a launch did |
| `execution`, `driver` | a launch, and a device made of it for `fastrelu.cuda` |
"""

from .driver import DeviceArray, EmulatedDriver
from .errors import Deadlock, Diverged, EmulationError, Misaligned, OutOfBounds, Race, UnknownInstruction
from .execution import execute
from .memory import GlobalMemory
from .program import Program
from .statistics import Statistics

__all__ = [
    "Deadlock",
    "DeviceArray",
    "Diverged",
    "EmulatedDriver",
    "EmulationError",
    "GlobalMemory",
    "Misaligned",
    "OutOfBounds",
    "Program",
    "Race",
    "Statistics",
    "UnknownInstruction",
    "execute",
]
