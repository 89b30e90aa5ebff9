"""A copy whose stores bypass the caches, and a reader: what memory can be asked for, written here in LLVM's language.

The C library's ``memcpy`` does the same only beyond a size that it derives from the caches, a quarter of a gigabyte on some
servers; below, each line of the target is read before it is overwritten, and half as many bytes again are moved. This copy
shares no code with the kernels, so that it can be the limit that they are measured against.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from fastrelu.native import target as host

_LINE = 64

# Lines of 64 bytes from an address of any alignment to one that is a multiple of 64.
_SOURCE = """
define void @copy_lines(ptr %target, ptr %source, i64 %lines) {
entry:
  %any = icmp sgt i64 %lines, 0
  br i1 %any, label %loop, label %done
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %from = getelementptr [64 x i8], ptr %source, i64 %i
  %to = getelementptr [64 x i8], ptr %target, i64 %i
  %line = load <16 x i32>, ptr %from, align 1
  store <16 x i32> %line, ptr %to, align 64, !nontemporal !0
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %lines
  br i1 %more, label %loop, label %done
done:
  fence seq_cst
  ret void
}
define void @read_lines(ptr %sink, ptr %source, i64 %lines) {
entry:
  %any = icmp sgt i64 %lines, 0
  br i1 %any, label %loop, label %done
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %sum = phi <16 x i32> [zeroinitializer, %entry], [%after, %loop]
  %from = getelementptr [64 x i8], ptr %source, i64 %i
  %line = load <16 x i32>, ptr %from, align 1
  %after = xor <16 x i32> %sum, %line
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %lines
  br i1 %more, label %loop, label %last
last:
  store <16 x i32> %after, ptr %sink, align 1
  br label %done
done:
  ret void
}
!0 = !{i32 1}
"""


@cache
def _function(name: str) -> Any:
    host.initialize()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=host.cpu_name(), features=host.cpu_features(), opt=3, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_SOURCE), machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    compiled = function(engine.get_function_address(name))
    compiled.engine = engine  # type: ignore[attr-defined]  # the code lives as long as the engine
    return compiled


def copy_streaming(target: np.ndarray, source: np.ndarray) -> None:
    """Copy contiguous bytes without the GIL, past the caches.

    Parameters
    ----------
    target, source : ndarray
        One-dimensional arrays of uint8, of the same length.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.stream import copy_streaming
    >>> source, target = np.arange(200, dtype=np.uint8), np.zeros(200, np.uint8)
    >>> copy_streaming(target, source)
    >>> bool((target == source).all())
    True
    """
    head = min(-target.ctypes.data % _LINE, len(target))
    lines = (len(target) - head) // _LINE
    tail = head + lines * _LINE
    target[:head], target[tail:] = source[:head], source[tail:]
    _function("copy_lines")(target.ctypes.data + head, source.ctypes.data + head, lines)


def read_streaming(source: np.ndarray) -> None:
    """Read contiguous bytes without the GIL and do nothing with them.

    Parameters
    ----------
    source : ndarray
        One-dimensional array of uint8; a last part of less than 64 bytes is left out.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu.stream import read_streaming
    >>> read_streaming(np.zeros(200, np.uint8))
    """
    sink = np.empty(_LINE, np.uint8)
    _function("read_lines")(sink.ctypes.data, source.ctypes.data, len(source) // _LINE)
