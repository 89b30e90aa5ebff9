"""Multiply-adds as fast as the processor can do them, written here in LLVM's language: the limit of matrix products.

It shares no code with the kernels, so that it can be the limit that they are measured against.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from fastrelu.measure import Call
from fastrelu.native import target as host
from fastrelu.threads import get_num_threads

# Chains that run side by side: with 12 no processor waits for the result of a multiply-add, and they fit 16 registers.
CHAINS = 12
STEPS = 200_000
"""Steps of each chain in one call, which takes less than a millisecond."""


def _source(kind: str) -> str:
    def chains(line: str) -> str:
        return "\n".join("  " + line.replace("#", str(i)).replace("VECTOR", kind) for i in range(CHAINS))

    operands = ", ".join(["VECTOR"] * 3)
    suffix = kind.strip("<>").replace(" x ", "").replace("float", "f32").replace("double", "f64")
    intrinsic = f"@llvm.fma.v{suffix}"
    return f"""
declare VECTOR {intrinsic}({operands})
define void @multiply_add(ptr %sink, i64 %steps) {{
entry:
  %x = load VECTOR, ptr %sink, align 8
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
{chains("%a# = phi VECTOR [%x, %entry], [%b#, %loop]")}
{chains(f"%b# = call VECTOR {intrinsic}(VECTOR %a#, VECTOR %x, VECTOR %x)")}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %steps
  br i1 %more, label %loop, label %done
done:
{chains("store volatile VECTOR %b#, ptr %sink, align 8")}
  ret void
}}
""".replace("VECTOR", kind)


@cache
def _multiply_add(dtype: str) -> Any:
    host.initialize()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=host.cpu_name(), features=host.cpu_features(), opt=3, jit=True
    )
    kind = f"<{host.vector_bytes() // np.dtype(dtype).itemsize} x {'float' if dtype == 'float32' else 'double'}>"
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_source(kind)), machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    multiply_add = function(engine.get_function_address("multiply_add"))
    multiply_add.engine = engine  # type: ignore[attr-defined]  # the code lives as long as the engine
    return multiply_add


def multiply_adds(dtype: str = "float32") -> tuple[Call, int]:
    """A call that does nothing but multiply-adds, on one thread.

    The limit of a product on several threads is that speed times the cores that they have. That is what they can reach at best:
    a call that started threads of its own was seen to put two of them on one core.

    Parameters
    ----------
    dtype : str
        float32 or float64.

    Returns
    -------
    call : callable
        For `fastrelu.measure.compare`.
    operations : int
        Floating-point operations that all threads together do in the time of one call: two for each multiply-add.

    Examples
    --------
    >>> from fastrelu.fma import multiply_adds
    >>> call, operations = multiply_adds("float64")
    >>> call()
    >>> operations % 2
    0
    """
    lanes = host.vector_bytes() // np.dtype(dtype).itemsize
    sink = np.full(16, 0.5, dtype)
    function = _multiply_add(dtype)
    return lambda: function(sink.ctypes.data, STEPS), 2 * lanes * CHAINS * STEPS * min(get_num_threads(), _cores())


def _cores() -> int:
    """Cores that this process may use: two processors of one core share its multiply-adds."""
    try:
        files = [Path(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list") for i in os.sched_getaffinity(0)]
        return len({file.read_text() for file in files})
    except (OSError, AttributeError):  # not Linux
        return os.cpu_count() or 1
