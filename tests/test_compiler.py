"""Numba as the compiler: what kernels must not contain, and that a program's own use of Numba is left alone."""

import io
import math

import numba
import pytest
from numba import types

from fastrelu.kernels.elementwise import LOOP, build
from fastrelu.native import linker, target
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


class Terminal(io.StringIO):
    """A stream that somebody looks at, or a closed one."""

    def isatty(self) -> bool:
        return super().isatty() or not self.closed


@pytest.mark.parametrize("replaced", [False, True])
def test_compiling_is_told_on_a_terminal_and_wiped_away(monkeypatch: pytest.MonkeyPatch, replaced: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    if not replaced:
        monkeypatch.setattr("sys.__stderr__", terminal)
    with linker._told():
        during = terminal.getvalue()
    first, _, wiped = terminal.getvalue().rpartition("\r")[0].rpartition("\r")
    if replaced:  # by a progress bar or a log, whose lines are not ours
        assert terminal.getvalue() == ""
    else:
        assert during == first == "\rfastrelu is compiling, once for each function and type ..."
        assert wiped == " " * (len(during) - 1)


@pytest.mark.parametrize("stream", [None, Terminal()])
def test_compiling_goes_on_where_nothing_can_be_told(monkeypatch: pytest.MonkeyPatch, stream: Terminal | None) -> None:
    if stream is not None:
        stream.close()
    for name in ("sys.stderr", "sys.__stderr__"):
        monkeypatch.setattr(name, stream)
    with linker._told():
        pass


def test_terminal_that_goes_away_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    for name in ("sys.stderr", "sys.__stderr__"):
        monkeypatch.setattr(name, terminal)
    with linker._told():
        terminal.close()
