"""Numba as the compiler: what kernels must not contain, and that a program's own use of Numba is left alone."""

import math

import numba
import pytest
from numba import types

from fastrelu.kernels.elementwise import LOOP, build
from fastrelu.native import target
from fastrelu.native.compiler import UnresolvedSymbol, compile_assembly, compile_object
from fastrelu.operations import OPERATIONS

WIDE = {64: "%zmm", 32: "%ymm"}


def test_kernel_that_needs_a_library_is_refused() -> None:
    def kernel(x):
        return math.gamma(x)

    with pytest.raises(UnresolvedSymbol, match="needs_a_library"):
        compile_object(lambda: (kernel, types.float64(types.float64)), "needs_a_library", frozenset())


def test_exception_in_a_kernel_needs_nothing_of_numba() -> None:
    def kernel(i):
        return (1, 2, 3)[i]

    code = compile_object(lambda: (kernel, types.intp(types.intp)), "may_raise", frozenset())
    # The exception has nowhere to go: it is dropped with Numba's status, and nothing of Numba's runtime is referred to.
    assert code


def test_settings_of_numba_are_put_back() -> None:
    context = numba.core.registry.cpu_target.target_context
    before = numba.config.DISABLE_JIT, context.codegen(), context.cached_internal_func
    compile_object(lambda: (lambda x: x, types.intp(types.intp)), "identity", frozenset())
    assert (numba.config.DISABLE_JIT, context.codegen(), context.cached_internal_func) == before


def test_the_programs_own_functions_still_compile() -> None:
    build_loop = build(OPERATIONS["relu"].loop("float32", target.vector_bytes()))
    compile_assembly(lambda: (build_loop, LOOP), "loop")

    @numba.njit
    def f(a, b):
        return min(a, b) + 10 * max(a, b) + 100 * abs(a - b)

    assert f(1, 2) == 121
    assert f(2.0, 1.0) == 121


@pytest.mark.skipif(target.vector_bytes() not in WIDE, reason="the names of registers are known for x86")
@pytest.mark.parametrize("operation", ["relu", "leaky_relu", "tanh", "elu_backward"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_machine_code(operation: str, dtype: str) -> None:
    loop = OPERATIONS[operation].loop(dtype, target.vector_bytes())
    lines = compile_assembly(lambda: (build(loop), LOOP), loop.name).splitlines()
    # Full registers, streaming stores of them, and no library function: the only calls are to the driver, by its address.
    register = WIDE[target.vector_bytes()]
    assert any("vmov" in line and register in line for line in lines)
    assert any("vmovnt" in line and register in line for line in lines)
    calls = {line.split()[-1] for line in lines if line.strip().startswith("call")}
    assert all(call.startswith("*") for call in calls)
