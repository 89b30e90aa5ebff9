"""What single lanes need: vectors of which only some lanes are in memory, every second lane, reductions, numbers of lanes.

Vectors narrower than a register, or wider than one, are as good as any: LLVM splits and fills.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable

from fastrelu.kernels import half
from fastrelu.kernels.memory import WORD, load_operands, pointer, size_of, store, store_partial
from fastrelu.kernels.vector import BOOL, ELEMENTS, Element, Vector, call_intrinsic, splat, suffix, widened

INT64, FLOAT64 = ELEMENTS["int64"], ELEMENTS["float64"]
_LANE = ir.IntType(32)


def _lowest_bits(element: Element) -> int:
    """The bits of -inf, or of the least integer."""
    if element.is_float:
        return element.minus_infinity
    return -(1 << (element.bits - 1)) if element.kind == "i" else 0


def _lowest(builder, vector: Vector):
    return builder.bitcast(vector.bits(_lowest_bits(vector.element)), vector.llvm)


def _shuffle(builder, value, lanes):
    """The lanes of `value` with these numbers."""
    numbers = ir.Constant(ir.VectorType(_LANE, len(lanes)), list(lanes))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), numbers)


def lowest(element: Element, lanes: int):
    """A primitive that returns -inf, or the least integer, in every lane; float16 and bfloat16 become float32."""
    vector = widened(Vector(element, lanes))

    @intrinsic
    def make(typing_context):
        def codegen(context, builder, sig, args):
            return _lowest(builder, vector)

        return vector(), codegen

    return make


def _low_bits(builder, count, lanes: int):
    """A word with so many low bits set, at most `lanes`."""
    kept = builder.select(builder.icmp_signed("<", count, WORD(0)), WORD(0), count)
    kept = builder.select(builder.icmp_signed("<", kept, WORD(lanes)), kept, WORD(lanes))
    return builder.sub(builder.shl(WORD(1), kept), WORD(1))


def first_lanes(lanes: int):
    """A primitive that returns a mask of the first `count` of at most 32 lanes."""
    mask = Vector(BOOL, lanes)

    @intrinsic
    def make(typing_context, count):
        def codegen(context, builder, sig, args):
            return builder.bitcast(builder.trunc(_low_bits(builder, args[0], lanes), ir.IntType(lanes)), mask.llvm)

        return mask(types.intp), codegen

    return make


def load_between(element: Element, lanes: int):
    """A primitive (address, first, end) that loads the lanes from number `first` up to `end`; the others are -inf or the least
    integer. Nothing else is touched. float16 and bfloat16 become float32. At most 32 lanes; one lane is always loaded.
    """
    vector = Vector(element, lanes)

    def load_some(builder, place, first, end):
        bits = builder.and_(_low_bits(builder, end, lanes), builder.not_(_low_bits(builder, first, lanes)))
        mask = builder.bitcast(builder.trunc(bits, ir.IntType(lanes)), vector.mask.llvm)
        arguments = [place, _LANE(size_of(element)), mask, _lowest(builder, vector)]
        return call_intrinsic(builder, f"llvm.masked.load.{suffix(vector)}.p0", vector.llvm, arguments)

    @intrinsic
    def load(typing_context, address, first, end):
        def codegen(context, builder, sig, args):
            address, first, end = args
            place = pointer(builder, address, vector.llvm)
            if lanes == 1:
                value = builder.load(place, align=size_of(element))
            else:
                is_whole = builder.and_(builder.icmp_signed("<=", first, WORD(0)), builder.icmp_signed(">=", end, WORD(lanes)))
                with builder.if_else(is_whole, likely=True) as (then, otherwise):
                    with then:
                        whole = builder.load(place, align=size_of(element))
                        after_whole = builder.block
                    with otherwise:
                        some = load_some(builder, place, first, end)
                        after_some = builder.block
                value = builder.phi(vector.llvm)
                value.add_incoming(whole, after_whole)
                value.add_incoming(some, after_some)
            return half.widen(builder, value, element.name) if element.is_half else value

        return widened(vector)(types.intp, types.intp, types.intp), codegen

    return load


def load_whole(element: Element, lanes: int):
    """A primitive (address) that loads all lanes; float16 and bfloat16 become float32."""
    load = load_operands([(element, False)], lanes, True, partial=False)

    @register_jitable
    def load_lanes(address):
        return load((address,), 0, 0)[0]

    return load_lanes


def store_lanes(lanes: int):
    """A function (address, value, count) that writes the first `count` of the `lanes` lanes of `value`."""
    if lanes == 1:

        @register_jitable
        def store_count(address, value, count):
            store(address, 0, value)

    else:

        @register_jitable
        def store_count(address, value, count):
            if count >= lanes:
                store(address, 0, value)
            else:
                store_partial(address, 0, value, count)

    return store_count


@intrinsic
def store_every_other(typing_context, address, value, count):
    """Write the first `count` lanes of `value` to every second place from `address` on, and nothing between them."""

    def codegen(context, builder, sig, args):
        address, lanes, count = args
        places = Vector(value.element, 2 * value.lanes)
        spread = _shuffle(builder, lanes, [i // 2 for i in range(places.lanes)])
        numbers = ir.Constant(ir.VectorType(_LANE, places.lanes), list(range(places.lanes)))
        end = builder.trunc(builder.shl(count, WORD(1)), _LANE)
        shown = builder.icmp_signed("<", numbers, splat(builder, end, places.lanes))
        even = ir.Constant(places.mask.llvm, [i % 2 == 0 for i in range(places.lanes)])
        arguments = [spread, pointer(builder, address, places.llvm), _LANE(size_of(value.element)), builder.and_(shown, even)]
        call_intrinsic(builder, f"llvm.masked.store.{suffix(places)}.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(types.intp, value, types.intp), codegen


def every(step: int, first: int):
    """A primitive that returns every `step`-th lane of a vector, from number `first` on."""

    @intrinsic
    def pick(typing_context, block):
        def codegen(context, builder, sig, args):
            return args[0] if step == 1 else _shuffle(builder, args[0], range(first, block.lanes, step))

        return Vector(block.element, block.lanes // step)(block), codegen

    return pick


def ramp(lanes: int, step: int):
    """A primitive that returns the integers ``start + step * lane`` as int64."""
    vector = Vector(INT64, lanes)

    @intrinsic
    def make(typing_context, start):
        def codegen(context, builder, sig, args):
            steps = [step * i for i in range(lanes)]
            return builder.add(splat(builder, args[0], lanes), ir.Constant(vector.llvm, steps if lanes > 1 else 0))

        return vector(types.intp), codegen

    return make


@intrinsic
def plus(typing_context, numbers, offset):
    """The vector of integers `numbers` plus the integer `offset`."""

    def codegen(context, builder, sig, args):
        return builder.add(args[0], splat(builder, args[1], numbers.lanes))

    return numbers(numbers, types.intp), codegen


def _beats(builder, element: Element, x, best):
    if not element.is_float:
        return (builder.icmp_unsigned if element.kind == "u" else builder.icmp_signed)(">", x, best)
    return builder.and_(builder.fcmp_unordered(">", x, best), builder.fcmp_ordered("ord", best, best))


@intrinsic
def beats(typing_context, x, best):
    """Whether `x` replaces `best` as the first maximum: x > best, or x is a NaN and `best` is none."""

    def codegen(context, builder, sig, args):
        return _beats(builder, x.element, *args)

    return x.mask(x, best), codegen


@intrinsic
def spread(typing_context, x, number):
    """The one lane of `number` in every lane of a vector of as many lanes as `x` has."""

    def codegen(context, builder, sig, args):
        return splat(builder, args[1], x.lanes)

    return Vector(number.element, x.lanes)(x, number), codegen


def _reduction(combine):
    """A primitive that combines all lanes to one: the lower half with the upper, and so on."""

    @intrinsic
    def reduced(typing_context, x):
        def codegen(context, builder, sig, args):
            value, lanes = args[0], x.lanes
            while lanes > 1:
                lanes //= 2
                value = combine(builder, *(_shuffle(builder, value, range(n, n + lanes)) for n in (0, lanes)))
            return builder.extract_element(value, _LANE(0)) if x.lanes > 1 else value

        return Vector(x.element, 1)(x), codegen

    return reduced


total = _reduction(lambda builder, x, y: builder.fadd(x, y))
"""The sum of all lanes, in one order."""

largest = _reduction(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))
"""The largest of all lanes; if one is a NaN, any of them."""


@intrinsic
def first_maximum(typing_context, x, numbers):
    """The maximum of all lanes as `beats` has it, and its number: of equal ones the least."""

    def codegen(context, builder, sig, args):
        value, number, lanes = *args, x.lanes
        while lanes > 1:
            lanes //= 2
            (a, b), (i, j) = ([_shuffle(builder, v, range(n, n + lanes)) for n in (0, lanes)] for v in (value, number))
            is_before = builder.icmp_signed("<", j, i)
            is_tie = builder.not_(_beats(builder, x.element, a, b))
            takes = builder.or_(_beats(builder, x.element, b, a), builder.and_(is_tie, is_before))
            value, number = builder.select(takes, b, a), builder.select(takes, j, i)
        if x.lanes > 1:
            value, number = (builder.extract_element(v, _LANE(0)) for v in (value, number))
        return context.make_tuple(builder, sig.return_type, [value, number])

    return types.Tuple([Vector(x.element, 1), Vector(numbers.element, 1)])(x, numbers), codegen


def converted(element: Element):
    """A primitive that turns floats into floats of the type `element`, which is float32 or float64."""

    @intrinsic
    def convert(typing_context, x):
        vector = Vector(element, x.lanes)

        def codegen(context, builder, sig, args):
            if x.element.bits == element.bits:
                return args[0]
            return (builder.fpext if element.bits == 64 else builder.fptrunc)(args[0], vector.llvm)

        return vector(x), codegen

    return convert


def outside(lanes: int):
    """A primitive (address, limit, exempt) that tells whether one of the int64 words is neither in ``range(limit)`` nor
    `exempt`.
    """
    vector = Vector(INT64, lanes)

    @intrinsic
    def find(typing_context, address, limit, exempt):
        def codegen(context, builder, sig, args):
            values = builder.load(pointer(builder, args[0], vector.llvm), align=8)
            bad = builder.and_(
                builder.icmp_unsigned(">=", values, splat(builder, args[1], lanes)),
                builder.icmp_unsigned("!=", values, splat(builder, args[2], lanes)),
            )
            if lanes == 1:
                return bad
            return builder.icmp_unsigned("!=", builder.bitcast(bad, ir.IntType(lanes)), ir.IntType(lanes)(0))

        return types.boolean(types.intp, types.intp, types.intp), codegen

    return find


@intrinsic
def exponent_and_mantissa(typing_context, x):
    """A normal, positive float64 as n and f with x = 2**n * f and 1 <= f < 2."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], x.integers)
        n = builder.sub(builder.lshr(bits, x.bits(52)), x.bits(1023))
        fraction = builder.or_(builder.and_(bits, x.bits((1 << 52) - 1)), x.bits(1023 << 52))
        parts = [builder.sitofp(n, x.llvm), builder.bitcast(fraction, x.llvm)]
        return context.make_tuple(builder, sig.return_type, parts)

    return types.UniTuple(x, 2)(x), codegen
