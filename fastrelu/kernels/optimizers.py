"""One step of an optimizer: every parameter and its state updated in one pass over its gradient, whose squares are summed.

``run``   all parameters of a model, divided into chunks for the pool
``part``  one chunk: the formula on vectors, and the sum of the squares of its gradient

A table of rows of words describes the parameters, which are contiguous: addresses of the parameter, of its gradient and of what
the optimizer keeps for it, the number of elements, and the number of chunks up to its end. The sums are float64: within a chunk
16 running sums of every 16th element, added in ascending order, then the chunks' sums in ascending order.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable

from fastrelu.kernels import formulas, half
from fastrelu.kernels.memory import (
    WORD,
    callback_address,
    enter_default_float_status,
    leave_float_status,
    load_operands,
    pointer,
    read_word,
    size_of,
    smaller,
    store,
    store_first,
    words,
)
from fastrelu.kernels.pool import in_parallel
from fastrelu.kernels.vector import ELEMENTS, FLOAT32, Vector, call_intrinsic, suffix
from fastrelu.native.optimizers import CHUNK, FORMULAS

# The same on every processor: the sum of the squares depends on it.
LANES = 16
FLOAT64 = ELEMENTS["float64"]
SQUARES = Vector(FLOAT64, LANES)
ONE = Vector(FLOAT64, 1)


def _store_results(elements, partial: bool):
    """A primitive that writes new values of a parameter and of its state over the old ones.

    Parameters
    ----------
    elements : sequence of Element
        What they are in memory.
    partial : bool
        Whether only the first `count` lanes are written.
    """

    @intrinsic
    def store_results(typing_context, addresses, index, values, count):
        def codegen(context, builder, sig, args):
            for i, element in enumerate(elements):
                value, vector = builder.extract_value(args[2], i), Vector(element, LANES)
                if element.is_half:
                    value = half.narrow(builder, value, element.name)
                start = builder.add(builder.extract_value(args[0], i), builder.mul(args[1], WORD(size_of(element))))
                place = pointer(builder, start, vector.llvm)
                if partial:
                    store_first(builder, place, vector, value, args[3])
                else:
                    builder.store(value, place, align=size_of(element))
            return context.get_dummy_value()

        return types.void(addresses, types.intp, values, types.intp), codegen

    return store_results


@intrinsic
def zero(typing_context):
    """0 as a vector of one lane."""

    def codegen(context, builder, sig, args):
        return ONE.constant(0.0)

    return ONE(), codegen


@intrinsic
def zeros(typing_context):
    """Running sums before the first of `add_squares`."""

    def codegen(context, builder, sig, args):
        return SQUARES.constant(0.0)

    return SQUARES(), codegen


@intrinsic
def add_squares(typing_context, sums, x):
    """Each sum and the square of the lane, in float64."""

    def codegen(context, builder, sig, args):
        wide = args[1] if x.element.bits == 64 else builder.fpext(args[1], SQUARES.llvm)
        return call_intrinsic(builder, f"llvm.fma.{suffix(SQUARES)}", SQUARES.llvm, [wide, wide, args[0]])

    return SQUARES(SQUARES, x), codegen


@intrinsic
def add_lanes(typing_context, sums):
    """The sum of the lanes, in ascending order."""

    def codegen(context, builder, sig, args):
        lanes = [builder.extract_element(args[0], ir.IntType(32)(i)) for i in range(LANES)]
        total = lanes[0]
        for lane in lanes[1:]:
            total = builder.fadd(total, lane)
        return total

    return ONE(SQUARES), codegen


def build(name: str, dtype: str, vector_bytes: int):
    """The kernel of the optimizer `name` for parameters of `dtype`.

    Its words are the address of the table, the number of chunks, the address of the words that point to the formula's
    coefficients, and that of float64 numbers, one for each chunk and one for the sum of all.
    """
    formula, (STATES, COEFFICIENTS) = getattr(formulas, name), FORMULAS[name]
    element = ELEMENTS[dtype]
    wide = FLOAT32 if element.is_half else element
    OPERANDS = 2 + STATES
    SIZE, ENDS = 8 * OPERANDS, 8 * OPERANDS + 8
    ROW = ENDS + 8
    operands = [(element, False)] * 2 + [(wide, False)] * STATES
    load = load_operands(operands, LANES, True, partial=False)
    load_partial = load_operands(operands, LANES, True, partial=True)
    load_coefficients = load_operands([(wide, True)] * COEFFICIENTS, LANES, True, partial=False)
    load_sum = load_operands([(FLOAT64, False)], 1, False, partial=False)
    results = [element] + [wide] * STATES
    keep, keep_partial = _store_results(results, False), _store_results(results, True)

    @register_jitable
    def targets(addresses):
        """The places of what changes: all but the gradient."""
        return addresses[:1] + addresses[2:]

    def part(task, index):
        row, _, coefficients, sums = words(task, 4)
        first = 0
        while index >= read_word(row + ENDS):
            first = read_word(row + ENDS)
            row += ROW
        addresses = words(row, OPERANDS)
        places = targets(addresses)
        fixed = load_coefficients(words(coefficients, COEFFICIENTS), 0, LANES)
        i = (index - first) * CHUNK
        end = smaller(i + CHUNK, read_word(row + SIZE))
        squares = zeros()
        while i <= end - LANES:
            loaded = load(addresses, i, LANES)
            keep(places, i, formula(*(loaded + fixed)), LANES)
            squares = add_squares(squares, loaded[1])
            i += LANES
        if i < end:
            loaded = load_partial(addresses, i, end - i)
            keep_partial(places, i, formula(*(loaded + fixed)), end - i)
            squares = add_squares(squares, loaded[1])
        store(sums, index, add_lanes(squares))

    part_address = callback_address(part, 2)

    def run(task):
        _, chunks, _, sums = words(task, 4)
        status = enter_default_float_status()
        in_parallel(part_address(), task, chunks)
        total = zero()
        for i in range(chunks):
            total = total + load_sum((sums,), i, 1)[0]
        store(sums, chunks, total)
        leave_float_status(status)
        return 0

    return run
