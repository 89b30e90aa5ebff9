"""What this package takes from numba-cuda: the language of kernels, and Python functions compiled to PTX without a driver.

This is the only file that imports numba-cuda: whoever ports the package to its successor changes this file and `ptx`.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

_has_row_stack = hasattr(np, "row_stack")
if not _has_row_stack:  # gone in NumPy 2.5; numba-cuda 0.30.4 names it once, while it is imported
    np.row_stack = np.vstack
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2.5 as well
        import numba.cuda.np.arrayobj  # noqa: F401
        from numba import cuda
        from numba.cuda import types
        from numba.cuda.cudadrv import nvrtc
        from numba.cuda.extending import intrinsic
finally:
    if not _has_row_stack:
        del np.row_stack

__all__ = ["compile_ptx", "cuda", "device_function", "intrinsic", "link", "target_of", "types"]

_ENTRY = re.compile(r"\.visible \.entry (\w+)\(")
_FIRST_WITH_OWN_INSTRUCTIONS = (9, 0)
"""From here on an architecture has instructions that no later one has (wgmma), under the letter "a"."""


def device_function(function: Callable[..., Any]) -> Any:
    """A function for kernels to call, put in the place of each call. Unlike numba-cuda's other kinds it needs no driver."""
    return cuda.jit(function, device=True, inline="always")


Target = tuple[int, int] | tuple[int, int, str]


def target_of(capability: tuple[int, int]) -> Target:
    """What to compile for, on a device of a compute capability: the newest target that it runs."""
    known = [target for target in nvrtc.get_supported_ccs() if target <= capability]
    if not known:
        raise RuntimeError(f"compute capability {'.'.join(map(str, capability))} is older than numba-cuda compiles for")
    if known[-1] == capability and capability >= _FIRST_WITH_OWN_INSTRUCTIONS:
        return (*capability, "a")
    return tuple(known[-1])


def compile_ptx(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    target: Target,
    threads: int | None = None,
    blocks: int | None = None,
) -> tuple[str, str]:
    """Compile a kernel. No driver is needed.

    Parameters
    ----------
    function : callable
        A plain Python function in the language of ``numba.cuda``.
    arguments : tuple of numba types
        The types of its arguments.
    target : tuple
        Such as ``(8, 0)`` or ``(9, 0, "a")``, see `target_of`.
    threads : int, optional
        How many threads a block has at most.
    blocks : int, optional
        How many blocks a multiprocessor must have room for, which limits the registers.

    Returns
    -------
    ptx, name : str
        The code, and what the kernel is called there.
    """
    bounds = None if threads is None else (threads,) if blocks is None else (threads, blocks)
    ptx, _ = cuda.compile(
        function, types.void(*arguments), device=False, abi="numba", cc=target, launch_bounds=bounds, output="ptx"
    )
    (name,) = _ENTRY.findall(ptx)
    return ptx, name


def link(ptx: str, target: Target) -> bytes:
    """Machine code of PTX, made by nvJitLink: the driver's own compiler may be older than the PTX. No driver is needed."""
    from cuda.bindings import nvjitlink

    code = ptx.encode()
    options = [f"-arch=sm_{''.join(map(str, target))}"]
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
    finally:
        nvjitlink.destroy(handle)
    return bytes(cubin)
