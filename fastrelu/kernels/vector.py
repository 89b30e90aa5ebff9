"""SIMD vectors as Numba values: a type, its operators, and the few primitives that formulas are written with.

A vector holds ``lanes`` elements of one element type and lowers to a generic LLVM vector, which LLVM turns into AVX-512,
AVX2, SSE or NEON. One lane lowers to a plain number, so that a formula serves scalars and vectors alike. Scalars in an
expression (``1.0 + x``) are spread over the lanes and rounded to the element type; nothing is ever widened silently.

float16 and bfloat16 lanes are kept as their 16 bits: they can be compared and selected as they are, and kernels that
calculate convert them to float32 when loading and back when storing.

A comparison instruction raises the floating-point "invalid" flag when it meets a NaN. `is_minus`,
`is_negative`, `is_zero` and `is_positive` look at the bits instead and are quiet.
"""

import operator
from dataclasses import dataclass

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_builtin, lower_cast
from numba.core.typeconv import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from fastrelu.kernels import half


@dataclass(frozen=True)
class Element:
    """What one lane holds: its name in NumPy, its kind (f, i, u or b for bool) and its size."""

    name: str
    kind: str
    bits: int
    as_bits: bool = False  # a float whose lanes are kept as integers: what is only compared and selected needs no more

    @property
    def is_half(self) -> bool:
        return self.kind == "f" and self.bits == 16

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def integer(self) -> ir.Type:
        """The integer type with as many bits."""
        return ir.IntType(self.bits)

    @property
    def llvm(self) -> ir.Type:
        """The type of a lane, and of the element in memory."""
        if self.kind != "f" or self.is_half or self.as_bits:
            return self.integer
        return ir.FloatType() if self.bits == 32 else ir.DoubleType()

    @property
    def minus_infinity(self) -> int:
        """The bits of -inf, read as a signed integer."""
        mantissa = {"bfloat16": 7, "float16": 10, "float32": 23, "float64": 52}[self.name]
        return -(1 << mantissa)


BOOL = Element("bool", "b", 1)
FLOAT32 = Element("float32", "f", 32)
ELEMENTS = {
    e.name: e
    for e in (
        Element("float16", "f", 16),
        Element("bfloat16", "f", 16),
        FLOAT32,
        Element("float64", "f", 64),
        *(Element(f"{sign}int{bits}", sign or "i", bits) for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
}


class Vector(types.Type):
    """The Numba type of a vector: ``lanes`` values of one `Element`."""

    def __init__(self, element: Element, lanes: int):
        self.element, self.lanes = element, lanes
        super().__init__(f"Vector({element}, {lanes})")  # Numba tells types apart by their names

    @property
    def llvm(self) -> ir.Type:
        return self._lanes_of(self.element.llvm)

    @property
    def integers(self) -> ir.Type:
        return self._lanes_of(self.element.integer)

    def _lanes_of(self, kind: ir.Type) -> ir.Type:
        return kind if self.lanes == 1 else ir.VectorType(kind, self.lanes)

    @property
    def mask(self) -> "Vector":
        return Vector(BOOL, self.lanes)

    def constant(self, value):
        """`value` in every lane."""
        return self._constant(self.llvm, value)

    def bits(self, value: int):
        """The integer `value` in every lane."""
        return self._constant(self.integers, value)

    def _constant(self, kind: ir.Type, value):
        return ir.Constant(kind, value if self.lanes == 1 else [value] * self.lanes)

    def can_convert_from(self, typing_context, other):
        return Conversion.safe if isinstance(other, types.Number) else None


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, data_model_manager, vector):
        super().__init__(data_model_manager, vector, vector.llvm)


def splat(builder, value, lanes: int):
    """Spread one LLVM value over all lanes."""
    if lanes == 1:
        return value
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    )


@lower_cast(types.Number, Vector)
def _spread_number(context, builder, number, vector, value):
    element, lanes = vector.element, vector.lanes
    if not element.is_float:
        integer = context.cast(builder, value, number, types.int64)
        return splat(builder, integer if element.bits == 64 else builder.trunc(integer, element.llvm), lanes)
    real = context.cast(builder, value, number, types.float64)
    spread = splat(builder, real if element.bits == 64 else builder.fptrunc(real, ir.FloatType()), lanes)
    if element.is_half:
        return half.narrow(builder, spread, element.name)
    return builder.bitcast(spread, vector.llvm)


def _vector_of(*kinds) -> Vector | None:
    """The vector among the argument types, if there is one."""
    return next((kind for kind in kinds if isinstance(kind, Vector)), None)


def _binary(operation, lower):
    """Give vectors the operator `operation`; a scalar on either side is spread."""

    @infer_global(operation)
    class Binary(AbstractTemplate):
        def generic(self, args, kws):
            vector = _vector_of(*args)
            if vector is not None and len(args) == 2:
                return signature(vector, vector, vector)
            return None

    @lower_builtin(operation, Vector, Vector)
    def lowering(context, builder, sig, args):
        return lower(builder, sig.return_type, *args)


_binary(operator.add, lambda b, v, x, y: b.fadd(x, y))
_binary(operator.sub, lambda b, v, x, y: b.fsub(x, y))
_binary(operator.mul, lambda b, v, x, y: b.fmul(x, y))
_binary(operator.truediv, lambda b, v, x, y: b.fdiv(x, y))
_binary(operator.or_, lambda b, v, x, y: b.or_(x, y))


@infer_global(operator.gt)
class _Greater(AbstractTemplate):
    def generic(self, args, kws):
        vector = _vector_of(*args)
        return signature(vector.mask, vector, vector) if vector is not None else None


@lower_builtin(operator.gt, Vector, Vector)
def _greater(context, builder, sig, args):
    return builder.fcmp_ordered(">", *args)


@infer_global(operator.neg)
class _Negation(AbstractTemplate):
    def generic(self, args, kws):
        return signature(args[0], args[0]) if isinstance(args[0], Vector) else None


@lower_builtin(operator.neg, Vector)
def _negate(context, builder, sig, args):
    return builder.fneg(args[0])


def call_intrinsic(builder, name: str, result, args):
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def suffix(vector: Vector) -> str:
    """What LLVM appends to the name of an intrinsic on `vector`: ``v16f32``, or ``f32`` for one lane."""
    lanes = "" if vector.lanes == 1 else f"v{vector.lanes}"
    return f"{lanes}{'f' if vector.element.llvm != vector.element.integer else 'i'}{vector.element.bits}"


def _unary(result, lower):
    """A primitive of one vector; `result` gives the type it returns."""

    @intrinsic
    def primitive(typing_context, x):
        if not isinstance(x, Vector):
            return None

        def codegen(context, builder, sig, args):
            return lower(builder, x, args[0])

        return result(x)(x), codegen

    return primitive


def _as_integers(builder, vector: Vector, value):
    return builder.bitcast(value, vector.integers)


def _lower_is_minus(builder, x, value):
    if x.element.kind == "u":
        return x.mask.constant(False)
    if x.element.kind == "i":
        return builder.icmp_signed("<", value, x.constant(0))
    # As signed integers the negative numbers, -0.0 and -inf included, are all at most the bits of -inf: above it stand
    # the NaNs with a sign, then +0.0 and everything else. One integer comparison, exact and quiet.
    return builder.icmp_signed("<=", _as_integers(builder, x, value), x.bits(x.element.minus_infinity))


def _lower_is_negative(builder, x, value):
    if not x.element.is_float:
        return _lower_is_minus(builder, x, value)
    # -0.0 is the lowest signed integer: one less wraps around to the highest.
    less = builder.sub(_as_integers(builder, x, value), x.bits(1))
    return builder.icmp_signed("<=", less, x.bits(x.element.minus_infinity - 1))


def _lower_is_zero(builder, x, value):
    bits = _as_integers(builder, x, value)
    if x.element.is_float:
        bits = builder.shl(bits, x.bits(1))  # drops the sign
    return builder.icmp_unsigned("==", bits, x.bits(0))


def _lower_is_positive(builder, x, value):
    bits = _as_integers(builder, x, value)
    if x.element.kind == "u":
        return builder.icmp_unsigned("!=", bits, x.bits(0))
    above_zero = builder.icmp_signed(">", bits, x.bits(0))
    if not x.element.is_float:
        return above_zero
    infinity = (1 << (x.element.bits - 1)) + x.element.minus_infinity
    return builder.and_(above_zero, builder.icmp_signed("<=", bits, x.bits(infinity)))


def _lower_absolute(builder, x, value):
    return call_intrinsic(builder, f"llvm.fabs.{suffix(x)}", x.llvm, [value])


def _lower_rint(builder, x, value):
    return call_intrinsic(builder, f"llvm.rint.{suffix(x)}", x.llvm, [value])


def _lower_sqrt(builder, x, value):
    return call_intrinsic(builder, f"llvm.sqrt.{suffix(x)}", x.llvm, [value])


def widened(x: Vector) -> Vector:
    """The type of `x` once its lanes are float32, if they are halves."""
    return Vector(FLOAT32, x.lanes) if x.element.is_half else x


is_minus = _unary(lambda x: x.mask, _lower_is_minus)
"""x < 0 or x is -0.0; False for every NaN."""

is_negative = _unary(lambda x: x.mask, _lower_is_negative)
"""x < 0; False for -0.0 and every NaN."""

is_zero = _unary(lambda x: x.mask, _lower_is_zero)
"""x is +0.0 or -0.0."""

is_positive = _unary(lambda x: x.mask, _lower_is_positive)
"""x > 0; False for every NaN."""

negated = _unary(lambda x: x, lambda builder, x, value: builder.not_(value))
"""Not x, of a mask."""

absolute = _unary(lambda x: x, _lower_absolute)
"""|x|."""

rint = _unary(lambda x: x, _lower_rint)
"""x rounded to the nearest integer, ties to even."""

sqrt = _unary(lambda x: x, _lower_sqrt)
"""The square root, correctly rounded."""


def narrow(element: Element):
    """A primitive that rounds a float32 vector to `element` where that is a half type, and else passes it on."""

    @intrinsic
    def to_element(typing_context, x):
        narrows = element.is_half and not x.element.is_half

        def codegen(context, builder, sig, args):
            return half.narrow(builder, args[0], element.name) if narrows else args[0]

        return Vector(element, x.lanes)(x), codegen

    return to_element


@intrinsic
def where(typing_context, mask, x, y):
    """Lane by lane `x` where `mask` holds, else `y`."""
    vector = _vector_of(x, y)
    if vector is None or not isinstance(mask, Vector):
        return None

    def codegen(context, builder, sig, args):
        return builder.select(*args)

    return vector(mask, vector, vector), codegen


@intrinsic
def fma(typing_context, x, y, z):
    """X * y + z with a single rounding."""
    vector = _vector_of(x, y, z)
    if vector is None:
        return None

    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, f"llvm.fma.{suffix(vector)}", vector.llvm, args)

    return vector(vector, vector, vector), codegen


@intrinsic
def maximum(typing_context, limit, x):
    """The larger of the two; a NaN in `x` stays."""
    vector = _vector_of(limit, x)
    if vector is None:
        return None

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return vector(vector, vector), codegen


@intrinsic
def like(typing_context, x, value):
    """The number `value` in every lane of a vector of the type of `x`."""
    if not isinstance(x, Vector):
        return None

    def codegen(context, builder, sig, args):
        return args[1]

    return x(x, x), codegen


@intrinsic
def copysign(typing_context, size, sign):
    """|size| with the sign of `sign`."""
    vector = _vector_of(size, sign)
    if vector is None:
        return None

    def codegen(context, builder, sig, args):
        return call_intrinsic(builder, f"llvm.copysign.{suffix(vector)}", vector.llvm, args)

    return vector(vector, vector), codegen


def polynomial(coefficients):
    """A primitive that evaluates c[0] + c[1] x + c[2] x**2 + ... by Horner's rule with fused multiply-adds."""

    @intrinsic
    def evaluate(typing_context, x):
        def codegen(context, builder, sig, args):
            value = x.constant(coefficients[-1])
            for c in reversed(coefficients[:-1]):
                value = call_intrinsic(builder, f"llvm.fma.{suffix(x)}", x.llvm, [value, args[0], x.constant(c)])
            return value

        return x(x), codegen

    return evaluate


@intrinsic
def power_of_two(typing_context, shifted):
    """2**n, read from the low bits of a float that holds the biased exponent n + bias there."""

    def codegen(context, builder, sig, args):
        mantissa = 23 if shifted.element.bits == 32 else 52
        exponent = builder.shl(_as_integers(builder, shifted, args[0]), shifted.bits(mantissa))
        return builder.bitcast(exponent, shifted.llvm)

    return shifted(shifted), codegen


def bits_as_mask(lanes: int):
    """A primitive that turns the low bits of a word into a mask, the lowest for lane 0."""
    mask = Vector(BOOL, lanes)

    @intrinsic
    def as_mask(typing_context, bits):
        def codegen(context, builder, sig, args):
            kept = args[0] if lanes == 64 else builder.trunc(args[0], ir.IntType(lanes))
            return builder.bitcast(kept, mask.llvm)

        return mask(types.intp), codegen

    return as_mask
