"""The gradient of a bias: the sum of dz over the rows.

dz = f'(dy, y) as an operand of a product is an `Operand` of `fastrelu.cuda.kernels.operands`; it is stored nowhere.
"""

from functools import cache

from fastrelu.cuda.kernels.linear import Result
from fastrelu.cuda.kernels.operands import Operand, cast, reading, sums_of
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import load, number_of, store
from fastrelu.cuda.toolkit import cuda, types
from fastrelu.kernels.vector import ELEMENTS
from fastrelu.operations import KC

ACROSS, DOWN = 32, 8
"""Threads of a block along the columns, and along the blocks of rows that each of them sums."""


@cache
def column_sums(operand: Operand, result: Result) -> Kernel:
    """The kernel that sums blocks of `KC` rows, each a chain of additions from 0.

    Parameters
    ----------
    operand : Operand
        dy, or dz.
    result : Result
        What becomes of the sums: their type, and that of alpha.
    """
    dtype = sums_of(result.dtype)
    element = ELEMENTS[dtype]
    number, SIZE = number_of(element), element.bits // 8
    read, put = reading(operand, dtype, result.dtype), store(dtype)
    IS_MASK, HAS_ALPHA = operand.of.startswith("bits"), bool(result.alpha and operand.derivative)
    read_alpha, widened_alpha = load(result.alpha or dtype), cast((result.alpha or dtype, dtype))

    def sum_columns(dy, dy_row, dy_column, y, y_row, y_column, alpha, alphas, sums, sums_row, m, n):
        j = cuda.blockIdx.x * ACROSS + cuda.threadIdx.x
        if j >= n:
            return
        parameter = number(alpha)
        if HAS_ALPHA:
            parameter = widened_alpha(read_alpha(alphas))
        at, bit = y + j * y_column, 0
        if IS_MASK:
            at, bit = y + (j >> 3) * y_column, j & 7
        block = cuda.blockIdx.y * DOWN + cuda.threadIdx.y
        while block * KC < m or block == 0:
            total = number(0)
            for i in range(block * KC, min(m, (block + 1) * KC)):
                total += read(dy + i * dy_row + j * dy_column, at + i * y_row, bit, parameter)
            put(sums + block * sums_row + j * SIZE, total)
            block += cuda.gridDim.y * DOWN

    word = types.int64
    return Kernel(sum_columns, (*[word] * 6, number, *[word] * 5), (ACROSS, DOWN, 1))
