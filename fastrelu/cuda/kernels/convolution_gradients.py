"""The gradient of the bias of a convolution: the sum of dz over images and positions.

dz = f'(dy, y) as an operand is an `Operand` of `fastrelu.cuda.kernels.operands`; it is stored nowhere.
"""

from functools import cache

from fastrelu.cuda.kernels.gradients import ACROSS, DOWN
from fastrelu.cuda.kernels.linear import Result
from fastrelu.cuda.kernels.operands import Operand, cast, reading, sums_of
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import load, number_of, store
from fastrelu.cuda.toolkit import cuda, types
from fastrelu.kernels.vector import ELEMENTS
from fastrelu.operations import KC


@cache
def channel_sums(operand: Operand, result: Result) -> Kernel:
    """The kernel that sums blocks of `KC` positions of each channel, each a chain of additions from 0.

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
    HAS_ALPHA = bool(result.alpha and operand.derivative)
    read_alpha, widened_alpha = load(result.alpha or dtype), cast((result.alpha or dtype, dtype))

    def sum_channels(
        dy, dy_image, dy_channel, dy_row, dy_column, y, y_image, y_channel, y_row, y_column,
        alpha, alphas, sums, sums_row, m, n, height, width,
    ):  # fmt: skip
        j = cuda.blockIdx.x * ACROSS + cuda.threadIdx.x
        if j >= n:
            return
        parameter = number(alpha)
        if HAS_ALPHA:
            parameter = widened_alpha(read_alpha(alphas))
        block = cuda.blockIdx.y * DOWN + cuda.threadIdx.y
        while block * KC < m or block == 0:
            left = min(KC, m - block * KC)
            row, v = block * KC // width, block * KC % width
            image, h = row // height, row % height
            total = number(0)
            while left > 0:
                length = min(left, width - v)
                at = dy + image * dy_image + j * dy_channel + h * dy_row + v * dy_column
                beside = y + image * y_image + j * y_channel + h * y_row + v * y_column
                for p in range(length):
                    total += read(at + p * dy_column, beside + p * y_column, 0, parameter)
                left -= length
                v, h = 0, h + 1
                if h == height:
                    h, image = 0, image + 1
            put(sums + block * sums_row + j * SIZE, total)
            block += cuda.gridDim.y * DOWN

    word = types.int64
    return Kernel(sum_channels, (*[word] * 10, number, *[word] * 7), (ACROSS, DOWN, 1))
