"""Every formula of the CPU gives the same bits in a kernel."""

import inspect

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastrelu import ufuncs
from fastrelu.cuda import formulas
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import load, store
from fastrelu.cuda.toolkit import compile_ptx, cuda, intrinsic, types
from fastrelu.kernels import formulas as of_the_cpu
from fastrelu.kernels.vector import ELEMENTS
from fastrelu.operations import HALVES, OPERATIONS
from tests.cuda.values import bits, operands

NAMES = {operation.formula or name: name for name, operation in OPERATIONS.items()}
"""An operation for each formula."""
SELECTING = ("relu", "relu_derivative", "relu_backward")
PLACES = {"x": 0, "y": 0, "dy": 1, "alpha": 2, "at_zero": 2}
"""Which of three numbers each argument of a formula is."""


def arguments(formula, numbers):
    return [numbers[PLACES[name]] for name in inspect.signature(getattr(of_the_cpu, formula)).parameters]


def kernel_of_all(dtype, chosen):
    """A kernel (n, operands, results): of the numbers i of three arrays all formulas, one row of results each."""
    SIZE, COUNT = ELEMENTS[dtype].bits // 8, len(chosen)
    take, put = load(dtype), store(dtype)
    number = types.uint16 if dtype in HALVES else getattr(types, dtype)

    @intrinsic
    def calculate(typing_context, x, dy, alpha):
        def codegen(context, builder, signature, values):
            results = [formulas.write(name, builder, ELEMENTS[dtype], arguments(name, values)) for name in chosen]
            return context.make_tuple(builder, signature.return_type, results)

        return types.UniTuple(number, COUNT)(number, number, number), codegen

    def kernel(n, x, dy, alpha, results):
        i = cuda.grid(1)
        if i < n:
            calculated = calculate(take(x + SIZE * i), take(dy + SIZE * i), take(alpha + SIZE * i))
            for k in range(COUNT):
                put(results + SIZE * (k * n + i), calculated[k])

    return Kernel(kernel, (types.int64,) * 5, 128)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_of_all_formulas(device, dtype):
    x, dy, alpha = operands(dtype, 3, 3000)
    chosen = sorted(NAMES)
    given = [device.array(a) for a in (x, dy, alpha)]
    results = device.empty((len(chosen), len(x)), dtype)
    addresses = [a.host.ctypes.data for a in (*given, results)]
    kernel_of_all(dtype, chosen).launch(0, 1, (-(-len(x) // 128), 1, 1), len(x), *addresses)
    for formula, result in zip(chosen, results.host, strict=True):
        # The output of softplus is never negative, and beyond that its gradient means nothing.
        defined = np.signbit(x) == 0 if formula == "softplus_backward" else np.ones(len(x), bool)
        wanted = getattr(ufuncs, NAMES[formula])(*arguments(formula, (x, dy, alpha)))
        is_exact = formula in SELECTING
        assert_array_equal(bits(result, any_nan=not is_exact)[defined], bits(wanted, any_nan=not is_exact)[defined], formula)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8", "int64"])
def test_what_only_selects_takes_any_type(device, dtype):
    x, dy, at_zero = operands(dtype, 3, 3000)
    given = [device.array(a) for a in (x, dy, at_zero)]
    results = device.empty((len(SELECTING), len(x)), x.dtype)
    addresses = [a.host.ctypes.data for a in (*given, results)]
    kernel_of_all(dtype, SELECTING).launch(0, 1, (-(-len(x) // 128), 1, 1), len(x), *addresses)
    for formula, result in zip(SELECTING, results.host, strict=True):
        assert_array_equal(bits(result), bits(getattr(ufuncs, formula)(*arguments(formula, (x, dy, at_zero)))), formula)


def test_products_and_sums_are_rounded_by_themselves():
    product, total = formulas.inline("leaky_relu", "float32"), formulas.inline("elu_backward", "float32")

    def kernel(x, y):
        y[0] = product(x[0], x[1]) + total(x[2], x[3], x[4])

    pointer = types.CPointer(types.float32)
    ptx, _ = compile_ptx(kernel, (pointer, pointer), (8, 0))
    assert "fma" not in ptx
    assert ".f64" not in ptx


def test_inline_takes_tuples_and_numbers(device):
    twice, four, put = formulas.inline("leaky_relu", "float32"), load("float32", 4), store("float32", 4)
    one = load("float32")

    def kernel(x, alpha, y):
        put(y, twice(four(x), one(alpha)))
        put(y + 16, twice(four(x), four(x)))

    x, alpha = np.array([-1, 2, -3, 4], np.float32), np.array([0.5], np.float32)
    memory, slope, y = device.array(x), device.array(alpha), device.empty((8,), np.float32)
    Kernel(kernel, (types.int64,) * 3, 1).launch(0, 1, (1, 1, 1), *(a.host.ctypes.data for a in (memory, slope, y)))
    assert_array_equal(y.host, [-0.5, 2, -1.5, 4, 1, 2, 9, 4])
