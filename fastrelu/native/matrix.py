"""The shapes of register tiles, and the names under which parts of the matrix engine find one another.

Importing this module needs neither Numba nor llvmlite.
"""

import platform
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastrelu.operations import HALVES, Fused

PRODUCT = "fastrelu_product"


def pack_name(dtype: str, vector_bytes: int) -> str:
    """What the packing of a matrix of `dtype` is called."""
    return f"fastrelu_pack_{dtype}_{vector_bytes}"


def thin_name(dtype: str, vector_bytes: int) -> str:
    """What the product for a few rows and contiguous columns is called."""
    return f"fastrelu_thin_{dtype}_{vector_bytes}"


@dataclass(frozen=True)
class Tiling:
    """The tiles of one operation on one type.

    ``rows`` x ``vectors`` accumulators, the vectors of a row of w and one element of x fit the registers: 6 x 4 of 32, as
    AVX-512 and NEON have, and 6 x 2 of 16. Measured on Zen 4 (AVX-512, k = 256, cached): 6 x 4, 7 x 4 and 12 x 2 all reach the
    limit of 117 GFLOP/s a core; 12 x 2 and 14 x 2 fall to 105 and 88 where the rows of x are 4096 bytes apart.
    """

    spec: Fused

    @property
    def registers(self) -> int:
        return 32 if self.spec.vector_bytes == 64 or platform.machine() in ("arm64", "aarch64") else 16

    @property
    def least_vectors(self) -> int:
        """Vectors in a row of the narrowest tile: it fills whole bytes of a bit mask."""
        return max(1, 8 // self.lanes)

    @property
    def vectors(self) -> int:
        """Vectors in a row of the widest tile."""
        return max(4 if self.registers == 32 else 2, self.least_vectors)

    @property
    def rows(self) -> int:
        return min(6, (self.registers - self.vectors - 1) // self.vectors)

    @cached_property
    def dtype(self) -> str:
        """The type in which sums are made."""
        return "float32" if self.spec.dtypes[0] in HALVES else self.spec.dtypes[0]

    @property
    def alpha_dtype(self) -> str:
        return self.dtype

    @property
    def size(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def in_size(self) -> int:
        return 2 if self.spec.dtypes[0] in HALVES else self.size

    @property
    def out_size(self) -> int:
        return 2 if self.spec.dtypes[-1] in HALVES else self.size

    @property
    def lanes(self) -> int:
        return self.spec.vector_bytes // self.size

    @property
    def wide(self) -> tuple[int, ...]:
        """Lanes of a tile of 1, 2 or 3 rows that reads w where it lies: long runs, for the memory's sake."""
        return tuple(self.lanes << ((self.registers - 4) // rows).bit_length() - 1 for rows in (1, 2, 3))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and lanes of all tiles: first, from narrow to wide, those with 1 to `rows` rows, then the wide ones."""
        widths = [1 << i for i in range(self.vectors.bit_length()) if 1 << i >= self.least_vectors]
        normal = [(rows, vectors * self.lanes) for vectors in widths for rows in range(1, self.rows + 1)]
        return normal + list(zip((1, 2, 3), self.wide, strict=True))
