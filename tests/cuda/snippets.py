"""Pieces of PTX in a kernel around them, run by the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.cuda.emulator import GlobalMemory, Program, Statistics, execute

_KERNEL = """
.version 9.0
.target sm_90a
.address_size 64
.visible .entry snippet({parameters})
{{
    .reg .pred %p<10>;
    .reg .b16 %h<10>;
    .reg .b32 %r<40>;
    .reg .f32 %f<140>;
    .reg .b64 %rd<40>;
    .reg .f64 %d<10>;
    {variables}
    {loads}
    {body}
    ret;
}}
"""


def program(body: str, parameters: int, variables: str = "") -> Program:
    """A kernel of the statements ``body``, with addresses in ``%rd0``, ``%rd1`` and so on."""
    names = [f"p{i}" for i in range(parameters)]
    loads = "\n".join(f"ld.param.u64 %rd{i}, [{name}];" for i, name in enumerate(names))
    text = _KERNEL.format(parameters=", ".join(f".param .u64 {n}" for n in names), variables=variables, loads=loads, body=body)
    return Program(text)


def run(
    body: str,
    *arrays: np.ndarray[Any, Any],
    threads: int = 32,
    grid: int = 1,
    shared: int = 0,
    variables: str = "",
    measure: bool = False,
) -> Statistics:
    """Run statements on arrays, whose addresses are in ``%rd0``, ``%rd1`` and so on."""
    memory = GlobalMemory()
    for array in arrays:
        memory.register(array)
    addresses = tuple(array.ctypes.data for array in arrays)
    what = program(body, len(arrays), variables)
    return execute(what, (grid, 1, 1), (threads, 1, 1), addresses, memory, shared=shared, measure=measure)


def evaluate(text: str, *inputs: np.ndarray[Any, Any], out: Any) -> np.ndarray[Any, Any]:
    """Run statements for each element: inputs are in ``%f0 %r0 %d0 %rd10`` and on, by type, the result is in number 3."""
    result = np.empty(inputs[0].shape, out)
    arrays = [*(np.ascontiguousarray(x) for x in inputs), result]
    lines = ["mov.u32 %r39, %tid.x;"]
    for i, array in enumerate(arrays):
        lines.append(f"mul.wide.u32 %rd38, %r39, {array.itemsize}; add.s64 %rd{20 + i}, %rd{i}, %rd38;")
        if array is not result:
            kind = f"{'f' if array.dtype.kind == 'f' else 'u'}{8 * array.itemsize}"
            lines.append(f"ld.global.{kind} {_register(array.dtype, i)}, [%rd{20 + i}];")
    kind = f"{'f' if result.dtype.kind == 'f' else 'u'}{8 * result.itemsize}"
    lines += [text, f"st.global.{kind} [%rd{20 + len(inputs)}], {_register(result.dtype, 3)};"]
    run("\n".join(lines), *arrays, threads=len(result))
    return result


def _register(dtype: np.dtype[Any], i: int) -> str:
    if dtype.kind == "f":
        return f"%f{i}" if dtype.itemsize == 4 else f"%d{i}"
    return {2: f"%h{i}", 4: f"%r{i}", 8: f"%rd{10 + i}"}[dtype.itemsize]


def bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bits of floats."""
    return values.view(f"u{values.dtype.itemsize}").copy()
