"""The shapes of register tiles, and the names under which parts of the matrix engine find one another.

Importing this module needs neither Numba nor llvmlite.
"""

import platform
from dataclasses import dataclass

import numpy as np

from fastrelu.operations import GRADIENTS, HALVES, Fused, Gradient

PART = "fastrelu_part"
PRODUCT = "fastrelu_product"
BACKWARD = "fastrelu_backward"
PACK_WEIGHT = "fastrelu_pack_weight"


def pack_name(dtype: str, vector_bytes: int) -> str:
    """What the packing of a matrix of `dtype` is called."""
    return f"fastrelu_pack_{dtype}_{vector_bytes}"


def tiles_name(formula: str, dtype: str, vector_bytes: int, gathers: bool = False) -> str:
    """What the micro-kernels with an activation are called."""
    return f"fastrelu_tiles_{formula}{'_gather' * gathers}_{dtype}_{vector_bytes}"


def finish_name(formula: str, dtype: str, mask: bool, vector_bytes: int) -> str:
    """What the pass after them is called."""
    return f"fastrelu_finish_{formula}{'_mask' * mask}_{dtype}_{vector_bytes}"


def thin_name(dtype: str, vector_bytes: int) -> str:
    """What the product for a few rows and contiguous columns is called."""
    return f"fastrelu_thin_{dtype}_{vector_bytes}"


def small_name(formula: str, dtype: str, vector_bytes: int) -> str:
    """What the product of small matrices is called."""
    return f"fastrelu_small_{formula}_{dtype}_{vector_bytes}"


def deliver_name(dtype: str, vector_bytes: int) -> str:
    """What brings sums to where they belong."""
    return f"fastrelu_deliver_{dtype}_{vector_bytes}"


def add_up_name(dtype: str, vector_bytes: int) -> str:
    """What adds the sums of blocks."""
    return f"fastrelu_add_up_{dtype}_{vector_bytes}"


def patches_name(dtype: str, vector_bytes: int) -> str:
    """What copies patches into a panel."""
    return f"fastrelu_patches_{dtype}_{vector_bytes}"


def rows_name(dtype: str, vector_bytes: int) -> str:
    """What copies rows of images into a band."""
    return f"fastrelu_rows_{dtype}_{vector_bytes}"


def grouped_name(dtype: str, vector_bytes: int) -> str:
    """What sums the products of groups side by side."""
    return f"fastrelu_grouped_gradient_{dtype}_{vector_bytes}"


def spread_name(dtype: str, vector_bytes: int) -> str:
    """What writes input channels side by side."""
    return f"fastrelu_spread_{dtype}_{vector_bytes}"


def form_name(formula: str, dtype: str, mask: bool, vector_bytes: int) -> str:
    """What forms the gradient before an activation."""
    return f"fastrelu_form_{formula}{'_mask' * mask}_{dtype}_{vector_bytes}"


@dataclass(frozen=True)
class Tiling:
    """The tiles for inputs of one type.

    ``rows`` x ``vectors`` accumulators, the vectors of a row of w and one element of x fit the registers: 6 x 4 of 32, as
    AVX-512 and NEON have, and 6 x 2 of 16. Measured on Zen 4 (AVX-512, k = 256, cached): 6 x 4, 7 x 4 and 12 x 2 all reach the
    limit of 117 GFLOP/s a core; 12 x 2 and 14 x 2 fall to 105 and 88 where the rows of x are 4096 bytes apart.
    """

    dtype: str
    vector_bytes: int

    @property
    def registers(self) -> int:
        return 32 if self.vector_bytes == 64 or platform.machine() in ("arm64", "aarch64") else 16

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

    @property
    def sum_dtype(self) -> str:
        """The type in which sums are made, and in which alpha and packed weights are kept."""
        return "float32" if self.dtype in HALVES else self.dtype

    @property
    def size(self) -> int:
        """Bytes of an element of that type."""
        return np.dtype(self.sum_dtype).itemsize

    @property
    def in_size(self) -> int:
        """Bytes of an element of the inputs and of the output."""
        return 2 if self.dtype in HALVES else self.size

    @property
    def lanes(self) -> int:
        return self.vector_bytes // self.size

    @property
    def wide(self) -> tuple[int, ...]:
        """Lanes of a tile of 1, 2 or 3 rows that reads w where it lies: long runs, for the memory's sake."""
        return tuple(self.lanes << ((self.registers - 4) // rows).bit_length() - 1 for rows in (1, 2, 3))

    @property
    def widths(self) -> list[int]:
        """Lanes of the narrowest and of the widest tile; only one if they are the same."""
        return [self.lanes * vectors for vectors in sorted({self.least_vectors, self.vectors})]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and lanes of all tiles: first those of `widths` with 1 to `rows` rows, then the wide ones."""
        normal = [(rows, lanes) for lanes in self.widths for rows in range(1, self.rows + 1)]
        return normal + list(zip((1, 2, 3), self.wide, strict=True))


# Formulas of few operations, which are applied to a tile in registers.
IN_REGISTERS = ("", "relu", "leaky_relu")


def split_formula(spec: Fused) -> tuple[str, str | None]:
    """What is applied to the tiles in registers, and what to their rows afterwards; None if nothing is left to do."""
    is_half = spec.dtypes[0] in HALVES
    if spec.formula in IN_REGISTERS and not is_half:
        return spec.formula, "" if spec.mask else None
    return "", spec.formula


def has_small(spec: Fused) -> bool:
    """Whether there is a way of its own for small products."""
    return not (spec.packed or spec.mask or spec.dtypes[0] in HALVES)


def describe(spec: Fused) -> list[int | str]:
    """What `fastrelu.kernels.matrix` has to know of an operation: numbers, and names of external symbols."""
    tiling = Tiling(spec.dtypes[0], spec.vector_bytes)
    first, last = split_formula(spec)
    is_half = spec.dtypes[0] in HALVES
    return [
        *(tiling.rows, tiling.widths[0], tiling.widths[-1], *tiling.wide),
        *(tiling.in_size, tiling.size),
        pack_name(tiling.dtype, spec.vector_bytes),
        pack_name(tiling.sum_dtype, spec.vector_bytes),
        0 if is_half else thin_name(tiling.dtype, spec.vector_bytes),
        tiles_name(first, tiling.sum_dtype, spec.vector_bytes) + "_table",
        0 if last is None else finish_name(last, tiling.dtype, spec.mask, spec.vector_bytes),
        *(int(spec.packed), int(spec.has_bias), int(spec.has_alpha), int(spec.alpha_is_row), int(spec.mask)),
        0,
        small_name(spec.formula, tiling.dtype, spec.vector_bytes) if has_small(spec) else 0,
    ]


# The operands of a backward pass in their order.
DY, Y_IN, X_IN, W_IN, ALPHA, DX_HELD, DW_HELD, DB_HELD, DX_OUT, DW_OUT, DB_OUT = range(11)
COUNT = 11


def describe_backward(spec: Gradient) -> list[int | str]:
    """What `fastrelu.kernels.backward` has to know of an operation."""
    dtype, vector_bytes = spec.dtype, spec.vector_bytes
    tiling = Tiling(dtype, vector_bytes)
    sums = tiling.sum_dtype
    axes = (2, 2, 1)
    return [
        *(tiling.rows, tiling.widths[0], tiling.widths[-1], *tiling.wide),
        *(tiling.in_size, tiling.size),
        pack_name(dtype, vector_bytes),
        pack_name(sums, vector_bytes),
        0,
        tiles_name("", sums, vector_bytes) + "_table",
        *(0, 0, 0, int(spec.has_alpha), 0, 0),
        deliver_name(dtype, vector_bytes),
        form_name(spec.formula, sums, spec.mask, vector_bytes),
        add_up_name(sums, vector_bytes),
        int(spec.mask),
        2,
        2 if spec.formula else -1,
        2 if "dw" in spec.wanted else -1,
        2 if "dx" in spec.wanted else -1,
        0 if spec.has_alpha else -1,
        *(n if name in spec.added else -1 for name, n in zip(GRADIENTS, axes, strict=True)),
        *(n if name in spec.wanted else -1 for name, n in zip(GRADIENTS, axes, strict=True)),
    ]
