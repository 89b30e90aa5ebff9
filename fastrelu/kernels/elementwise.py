"""The loop of one elementwise operation on operands of given types: NumPy's pointers and steps in, vectors through a formula.

``loop``    what NumPy calls; short contiguous runs go straight on, everything else through `fastrelu.kernels.driver`
``apply``   contiguous operands, vector by vector, with a masked rest
``stream``  the same with stores that bypass the caches
"""

from dataclasses import replace

from numba import types
from numba.extending import register_jitable

from fastrelu.kernels import formulas
from fastrelu.kernels.memory import (
    constant_words,
    enter_default_float_status,
    leave_float_status,
    load_operands,
    read_word,
    size_of,
    smaller,
    steps_are,
    store,
    store_fence,
    store_partial,
    store_streaming,
    words,
)
from fastrelu.kernels.vector import ELEMENTS, narrow
from fastrelu.native.pool import ELEMENTWISE
from fastrelu.operations import Loop

# NumPy's PyArrayMethod_StridedLoop: (context, pointers, dimensions, steps, auxiliary data) -> 0 or -1
LOOP = types.int32(types.intp, types.intp, types.intp, types.intp, types.intp)

# Registers of each operand in a step: the dependent operations of several vectors interleave, which gains 15 % in tanh.
UNROLL = 4

_elementwise = types.ExternalFunction(ELEMENTWISE, types.void(types.intp, types.intp, types.intp, types.intp))


def _contiguous(spec: Loop, single: bool, streaming: bool):
    """The function (pointers, n) for contiguous operands; with `single` the parameter is one value for all."""
    # LLVM may turn a look at the bits of a float into a comparison of numbers, which raises flags and minds modes.
    elements = [replace(ELEMENTS[name], as_bits=not spec.arithmetic) for name in spec.dtypes]
    inputs = [(element, single and i == spec.parameter) for i, element in enumerate(elements[:-1])]
    wide, output = spec.arithmetic, elements[-1]
    LANES = spec.vector_bytes // max(4 if wide and e.is_half else size_of(e) for e in elements)
    STEP = UNROLL * LANES
    OPERANDS, OUTPUT, SIZE = len(elements), len(inputs), size_of(output)
    ALIGNMENT = LANES * SIZE
    formula = getattr(formulas, spec.formula)
    load = load_operands(inputs, STEP, wide, partial=False)
    load_partial = load_operands(inputs, LANES, wide, partial=True)
    rounded = narrow(output)

    @register_jitable
    def rest(operands, i, end):
        """The elements that do not fill a step, one register at a time."""
        while i < end:
            count = smaller(end - i, LANES)
            store_partial(operands[OUTPUT], i, rounded(formula(*load_partial(operands, i, count))), count)
            i += count

    @register_jitable
    def apply(pointers, n):
        operands = words(pointers, OPERANDS)
        i = 0
        while i <= n - STEP:
            store(operands[OUTPUT], i, rounded(formula(*load(operands, i, STEP))))
            i += STEP
        rest(operands, i, n)

    @register_jitable
    def stream(pointers, n):
        operands = words(pointers, OPERANDS)
        i = smaller(n, (-operands[OUTPUT] & (ALIGNMENT - 1)) // SIZE)
        rest(operands, 0, i)
        while i <= n - STEP:
            store_streaming(operands[OUTPUT], i, rounded(formula(*load(operands, i, STEP))), ALIGNMENT)
            i += STEP
        rest(operands, i, n)
        store_fence()

    return stream if streaming else apply


def build(spec: Loop):
    """The loop for `spec` as a Python function, to be compiled with the signature `LOOP`."""
    SIZES = tuple(size_of(ELEMENTS[name]) for name in spec.dtypes)
    SHORT = 2 * spec.grain
    ARITHMETIC = spec.arithmetic
    has_parameter = spec.parameter >= 0
    apply = _contiguous(spec, False, False)
    apply_single = _contiguous(spec, True, False) if has_parameter else apply
    stream = _contiguous(spec, False, True)
    stream_single = _contiguous(spec, True, True) if has_parameter else stream
    description = constant_words((len(SIZES), spec.grain, spec.parameter, apply, apply_single, stream, stream_single, *SIZES))
    are_contiguous = steps_are(SIZES)
    are_single = steps_are(tuple(0 if i == spec.parameter else size for i, size in enumerate(SIZES)))

    def loop(context, pointers, dimensions, steps, auxiliary):
        n = read_word(dimensions)
        status = 0
        if ARITHMETIC:
            status = enter_default_float_status()
        if n < SHORT and are_contiguous(steps):
            apply(pointers, n)
        elif n < SHORT and are_single(steps):
            apply_single(pointers, n)
        else:
            _elementwise(description(), pointers, steps, n)
        if ARITHMETIC:
            leave_float_status(status)
        return 0

    return loop
