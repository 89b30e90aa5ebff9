"""The formulas of `fastrelu.kernels.formulas` on a GPU: the same functions, not written again.

A formula has no control flow, so it can be run once while a kernel is compiled, on values that write down LLVM IR. Its names
(``where``, ``fma``, ``exp`` ...) get the meanings below for it; the primitives of `fastrelu.kernels.vector` lower as they
do on the CPU, as vectors of one lane, except where NVVM has no such instruction.

NVVM contracts a * b + c to a fused multiply-add by default, which would change bits. Sums, products and quotients are therefore
its functions that are rounded by themselves (``llvm.nvvm.mul.rn.f``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import CellType, FunctionType
from typing import Any

from fastrelu.cuda.conversion import bits_of
from fastrelu.cuda.toolkit import intrinsic, types
from fastrelu.kernels import formulas, functions, vector
from fastrelu.kernels.vector import ELEMENTS, FLOAT32, Element, Vector, call_intrinsic

_PRIMITIVES = (
    "where",
    "fma",
    "is_minus",
    "is_negative",
    "is_zero",
    "is_positive",
    "negated",
    "like",
    "maximum",
    "power_of_two",
    "sqrt",
)
_FUNCTIONS = ("exp", "expm1", "log1p")


class Value:
    """A value of a formula, while it is being written down."""

    def __init__(self, builder: Any, kind: Vector, value: Any) -> None:
        self.builder, self.kind, self.value = builder, kind, value

    def _rounded(self, operation: str, *operands: Any) -> Value:
        letter = "f" if self.kind.element.bits == 32 else "d"
        values = [_value_of(operand, self.kind) for operand in operands]
        result = call_intrinsic(self.builder, f"llvm.nvvm.{operation}.rn.{letter}", self.kind.llvm, values)
        return Value(self.builder, self.kind, result)

    def __add__(self, other: Any) -> Value:
        return self._rounded("add", self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Value:
        return self._rounded("add", self, -other)

    def __rsub__(self, other: Any) -> Value:
        return self._rounded("add", other, -self)

    def __mul__(self, other: Any) -> Value:
        return self._rounded("mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Value:
        return self._rounded("div", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        # The reciprocal is a shorter instruction sequence, rounded as the quotient is.
        return self._rounded("rcp", self) if other == 1 else self._rounded("div", other, self)

    def __neg__(self) -> Value:
        # -0.0 - x is how LLVM 7 wrote it, whose IR NVVM still takes.
        return Value(self.builder, self.kind, self.builder.fsub(_value_of(-0.0, self.kind), self.value))

    def __or__(self, other: Value) -> Value:
        return Value(self.builder, self.kind, self.builder.or_(self.value, other.value))

    def __gt__(self, other: Any) -> Value:
        holds = self.builder.fcmp_ordered(">", self.value, _value_of(other, self.kind))
        return Value(self.builder, self.kind.mask, holds)

    def bits(self) -> Any:
        """The value as an integer."""
        return self.builder.bitcast(self.value, self.kind.integers)

    def with_bits(self, bits: Any) -> Value:
        """The value that has these bits."""
        return Value(self.builder, self.kind, self.builder.bitcast(bits, self.kind.llvm))


def _value_of(operand: Any, kind: Any) -> Any:
    """The LLVM value of an operand, which may be a Python number."""
    if isinstance(operand, Value):
        return operand.value
    if kind.element.is_half:
        operand = bits_of(operand, kind.element.name)
    return kind.constant(operand)


def _primitive(lower: Any) -> Callable[..., Value]:
    """The counterpart of a primitive of `fastrelu.kernels.vector`, which Numba's decorator keeps as ``__wrapped__``."""

    def write(*operands: Any) -> Value:
        kinds = [operand.kind if isinstance(operand, Value) else type(operand) for operand in operands]
        signature, codegen = lower.__wrapped__(None, *kinds)
        builder = next(operand.builder for operand in operands if isinstance(operand, Value))
        values = [_value_of(operand, kind) for operand, kind in zip(operands, signature.args, strict=True)]
        return Value(builder, signature.return_type, codegen(None, builder, signature, values))

    return write


def _absolute(x: Value) -> Value:
    return x.with_bits(x.builder.and_(x.bits(), x.kind.bits(_sign(x) - 1)))


def _copysign(size: Value, sign: Value) -> Value:
    builder = size.builder
    return size.with_bits(builder.or_(_absolute(size).bits(), builder.and_(sign.bits(), size.kind.bits(_sign(size)))))


def _sign(x: Value) -> int:
    return 1 << (x.kind.element.bits - 1)


def _function(name: str) -> Callable[[Value], Any]:
    """The counterpart of a function of `fastrelu.kernels.functions`, which builds an implementation for each type."""
    build = getattr(functions, f"_{name}")

    def write(x: Value) -> Any:
        return _in_vocabulary(build(x.kind))(x)

    return write


def _in_vocabulary(function: Any) -> Any:
    """`function` with the meanings of this module for the names in it."""
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    closure = tuple(CellType(_primitive(held) if hasattr(held, "__wrapped__") else held) for held in cells)
    return FunctionType(function.__code__, _VOCABULARY, function.__name__, None, closure)


_VOCABULARY: dict[str, Any] = {
    **{name: _primitive(getattr(vector, name)) for name in _PRIMITIVES},
    **{name: _function(name) for name in _FUNCTIONS},
    "absolute": _absolute,
    "copysign": _copysign,
}
_VOCABULARY |= {"ratio": _in_vocabulary(functions.ratio), "relu": _in_vocabulary(formulas.relu)}


def calculated_in(element: Element, arithmetic: bool) -> Element:
    """What a formula works with for operands of an element type: halves become float32 unless they are only selected."""
    return FLOAT32 if element.is_half and arithmetic else element


def write(name: str, builder: Any, element: Element, values: tuple[Any, ...]) -> Any:
    """Write a formula down.

    Parameters
    ----------
    name : str
        The formula, in `fastrelu.kernels.formulas`.
    builder : llvmlite.ir.IRBuilder
        Where to.
    element : Element
        What the formula works with: float32 or float64, or for a formula that only selects any type.
    values : tuple of LLVM values
        Its arguments.

    Returns
    -------
    LLVM value
        Its result.
    """
    kind = Vector(element, 1)
    formula = _in_vocabulary(getattr(formulas, name))
    return formula(*(Value(builder, kind, value) for value in values)).value


@cache
def inline(name: str, dtype: str) -> Any:
    """A formula as a function for kernels.

    Parameters
    ----------
    name : str
        The formula, in `fastrelu.kernels.formulas`.
    dtype : str
        What it works with: "float32" or "float64", or for a formula that only selects any element type. Halves are passed
        as uint16.

    Returns
    -------
    function
        Takes numbers, or tuples of them, and returns one number or a tuple. A number beside tuples counts for every place.
    """
    element = ELEMENTS[dtype]
    number = types.uint16 if element.is_half else getattr(types, dtype)

    def define(*operands: Any) -> Any:
        counts = {operand.count for operand in operands if isinstance(operand, types.BaseTuple)}
        if len(counts) > 1:
            return None
        count = next(iter(counts), 0)
        many = types.UniTuple(number, count)
        kinds = [many if isinstance(operand, types.BaseTuple) else number for operand in operands]

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def place(i: int) -> tuple[Any, ...]:
                return tuple(
                    builder.extract_value(argument, i) if kind is many else argument
                    for kind, argument in zip(kinds, arguments, strict=True)
                )

            if not count:
                return write(name, builder, element, place(0))
            return context.make_tuple(builder, many, [write(name, builder, element, place(i)) for i in range(count)])

        return (many if count else number)(*kinds), codegen

    # Numba wants every argument by its name.
    of_arguments = {
        1: lambda typing_context, x: define(x),
        2: lambda typing_context, x, y: define(x, y),
        3: lambda typing_context, x, y, z: define(x, y, z),
    }
    return intrinsic(of_arguments[getattr(formulas, name).__code__.co_argcount])
