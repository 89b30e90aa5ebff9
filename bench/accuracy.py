"""Largest errors of the transcendental functions: every float32, and random float64 (``python -m bench.accuracy``).

The reference is float64 for float32 and numpy.longdouble for float64; on platforms where longdouble is no wider than float64
the second half says nothing. Takes about five minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.callables import CASES

NAMES = ("sigmoid", "tanh", "elu", "softplus")
BLOCK = 1 << 22
# Above this size all four are constant or the identity.
LARGEST = np.float32(200).view(np.uint32)


def ulp_error(name: str, x: np.ndarray, wide: Any) -> np.ndarray:
    """The error of each result in units in the last place of the right one."""
    case = CASES[name]
    with np.errstate(all="ignore"):
        expected = case.definition(x.astype(wide), *case.parameters)
        unit = np.spacing(abs(expected).astype(x.dtype)).astype(wide)
        return abs(case.ours(x, *case.parameters).astype(wide) - expected) / unit


def every_float32() -> Iterator[np.ndarray]:
    for sign in (0, 1 << 31):
        for start in range(0, int(LARGEST), BLOCK):
            bits = np.arange(start, min(start + BLOCK, int(LARGEST)), dtype=np.uint32)
            yield (bits | np.uint32(sign)).view(np.float32)


def random_float64(blocks: int = 60) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    size = BLOCK // 2
    for _ in range(blocks // 5):
        yield from (rng.uniform(-limit, limit, size) for limit in (1, 4, 40))
        yield from (sign * np.exp(rng.uniform(-60, 6.6, size)) for sign in (1, -1))


def main() -> None:
    """Print a line for each function."""
    argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__).parse_args()
    for name in NAMES:
        largest = [
            max(float(ulp_error(name, x, wide).max()) for x in blocks)
            for blocks, wide in ((every_float32(), np.float64), (random_float64(), np.longdouble))
        ]
        print(f"{name:10s} float32 {largest[0]:.2f} ULP, float64 {largest[1]:.2f} ULP", flush=True)


if __name__ == "__main__":
    main()
