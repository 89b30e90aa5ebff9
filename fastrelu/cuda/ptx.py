"""The instructions that numba-cuda has no words for, as inline PTX. No other file has any."""

from typing import Any

from llvmlite import ir


def rounded_to_bfloat16(builder: Any, value: Any) -> Any:
    """The bits of a float32 rounded to bfloat16, ties to even."""
    kind = ir.FunctionType(ir.IntType(16), [ir.FloatType()])
    return builder.call(ir.InlineAsm(kind, "cvt.rn.bf16.f32 $0, $1;", "=h,f", side_effect=False), (value,))
