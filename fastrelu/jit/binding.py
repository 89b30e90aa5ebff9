"""How the machine code of a user's function reaches the kernels: primitives that become part of it.

``table``     the address of the table of an operation, asked for at the first call
``describe``  the arrays of a call, written to a block on the stack
``plan``      checks them, and writes the shapes of the results
``lengths``   reads one of these
``run``       calculates
``call_loop``  calculates where there is nothing to check or to broadcast

The layout of tables and blocks is that of `fastrelu.native.entries`.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastrelu.kernels.memory import WORD, pointer
from fastrelu.native.entries import (
    ARRAY_BYTES,
    ARRAYS,
    LENGTHS,
    LOOP,
    PLAN_ADDRESS,
    RUN_ADDRESS,
    STEPS,
)

_BYTE = ir.IntType(8)
_TEXT = _BYTE.as_pointer()
_INT = ir.IntType(32)


def _python(builder, name: str, result: ir.Type, *arguments: ir.Type, variadic: bool = False):
    """A function of Python's C interface, which every process that runs Numba has."""
    kind = ir.FunctionType(result, arguments, var_arg=variadic)
    return cgutils.get_or_insert_function(builder.module, kind, name)


def _ask(context, builder, key: str):
    """Call ``fastrelu.native.entries.address(key)``; 0, with the reason printed, if it fails.

    In a function of its own, so that what is needed once stays out of the caller.
    """
    name = builder.module.get_unique_name("fastrelu.ask")
    function = ir.Function(builder.module, ir.FunctionType(WORD, []), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    inner = ir.IRBuilder(function.append_basic_block())
    inner.ret(_answer(context, inner, key))
    return builder.call(function, [])


def _answer(context, builder, key: str):
    text = [context.insert_const_string(builder.module, t) for t in ("fastrelu.native.entries", "address", "s", key)]
    state = builder.call(_python(builder, "PyGILState_Ensure", _INT), [])
    answer = cgutils.alloca_once_value(builder, WORD(0))
    release = _python(builder, "Py_DecRef", ir.VoidType(), _TEXT)
    module = builder.call(_python(builder, "PyImport_ImportModule", _TEXT, _TEXT), text[:1])
    with builder.if_then(cgutils.is_not_null(builder, module)):
        method = _python(builder, "PyObject_CallMethod", _TEXT, _TEXT, _TEXT, _TEXT, variadic=True)
        number = builder.call(method, [module, *text[1:]])
        with builder.if_then(cgutils.is_not_null(builder, number)):
            builder.store(builder.call(_python(builder, "PyLong_AsSsize_t", WORD, _TEXT), [number]), answer)
            builder.call(release, [number])
        builder.call(release, [module])
    failed = builder.icmp_signed("==", builder.load(answer), WORD(0))
    with builder.if_then(failed):
        builder.call(_python(builder, "PyErr_WriteUnraisable", ir.VoidType(), _TEXT), [ir.Constant(_TEXT, None)])
    builder.call(_python(builder, "PyGILState_Release", ir.VoidType(), _INT), [state])
    return builder.load(answer)


def table(key: str) -> Callable[..., Any]:
    """A primitive that returns the address of the table for `key`, or 0 with the reason printed."""

    @intrinsic
    def find(typing_context):
        def codegen(context, builder, sig, args):
            known = cgutils.add_global_variable(builder.module, WORD, builder.module.get_unique_name("fastrelu.table"))
            known.linkage, known.initializer = "internal", WORD(0)
            found = cgutils.alloca_once_value(builder, builder.load_atomic(known, "acquire", 8))
            is_first = builder.icmp_signed("==", builder.load(found), WORD(0))
            with builder.if_then(is_first, likely=False):
                # Two threads may both ask; they are told the same.
                asked = _ask(context, builder, key)
                builder.store(asked, found)
                builder.store_atomic(asked, known, "release", 8)
            return builder.load(found)

        return types.intp(), codegen

    return find


def _write(builder, address, offset: int, value):
    builder.store(value, pointer(builder, builder.add(address, WORD(offset))), align=8)


def _describe_array(context, builder, kind, value, place):
    array = context.make_array(kind)(context, builder, value)
    _write(builder, place, 0, builder.ptrtoint(array.data, WORD))
    _write(builder, place, 8, WORD(kind.ndim))
    for offset, member in ((LENGTHS, array.shape), (STEPS, array.strides)):
        for axis, word in enumerate(cgutils.unpack_tuple(builder, member, kind.ndim)):
            _write(builder, place, offset + 8 * axis, word)


def describe(numbers: list[Any], rows: frozenset[int], count: int) -> Callable[..., Any]:
    """A primitive (arrays and numbers, outputs) that describes them in a new block, and returns its address.

    Parameters
    ----------
    numbers : list of (numba type or None)
        As what each operand that is a number is kept.
    rows : frozenset of int
        Operands that stand for as many values as the core dimension is long, if they are numbers.
    count : int
        How many operands and outputs there are.
    """

    @intrinsic
    def write_block(typing_context, operands, outputs):
        def codegen(context, builder, sig, args):
            with builder.goto_entry_block():
                block = builder.alloca(ir.ArrayType(WORD, (ARRAYS + count * ARRAY_BYTES) // 8))
                block.align = 64
            address = builder.ptrtoint(block, WORD)
            given = [(kind, args[0], i) for i, kind in enumerate(operands)]
            given += [(kind, args[1], i) for i, kind in enumerate(outputs)]
            for number, (kind, values, i) in enumerate(given):
                place = builder.add(address, WORD(ARRAYS + number * ARRAY_BYTES))
                value = builder.extract_value(values, i)
                if isinstance(kind, types.Array):
                    _describe_array(context, builder, kind, value, place)
                elif isinstance(kind, types.NoneType):
                    _write(builder, place, 8, WORD(-1))
                else:
                    kept = context.cast(builder, value, kind, numbers[number])
                    slot = cgutils.alloca_once_value(builder, kept)
                    _write(builder, place, 0, builder.ptrtoint(slot, WORD))
                    _write(builder, place, 8, WORD(1 if number in rows else 0))
                    if number in rows:
                        _write(builder, place, LENGTHS, WORD(-1))
                        _write(builder, place, STEPS, WORD(0))
            return address

        return types.intp(operands, outputs), codegen

    return write_block


def _forget_error(builder, failed):
    """Clear the exception that a kernel sets if it fails: the caller raises its own, which compiled code can catch."""
    with builder.if_then(cgutils.is_not_null(builder, failed), likely=False):
        state = builder.call(_python(builder, "PyGILState_Ensure", _INT), [])
        builder.call(_python(builder, "PyErr_Clear", ir.VoidType()), [])
        builder.call(_python(builder, "PyGILState_Release", ir.VoidType(), _INT), [state])


@intrinsic
def plan(typing_context, table, block):
    """Whether the shapes do not fit, as 0 or 1; writes those of the results."""
    return types.int32(types.intp, types.intp), _calls(PLAN_ADDRESS)


def _calls(offset: int):
    def codegen(context, builder, sig, args):
        function = builder.load(pointer(builder, builder.add(args[0], WORD(offset))), align=8)
        kind = ir.FunctionType(_INT, [WORD, WORD])
        return builder.call(builder.inttoptr(function, kind.as_pointer()), args[:2])

    return codegen


def _of_operands(count: int, define: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """A primitive of that many operands; `define` takes their types. A tuple of them would be counted as one more reference to
    each array: 5 ns an array, twice.
    """
    names = ", ".join(f"o{i}" for i in range(count))
    namespace: dict[str, Any] = {"define": define}
    exec(f"def primitive(typing_context, {names}):\n    return define([{names}])\n", namespace)
    return intrinsic(namespace["primitive"])


def are_apart(count: int) -> Callable[..., Any]:
    """A primitive (array, other arrays) of `count` operands: whether the array is aligned and shares no memory with the
    others, as far as the first and last bytes of all tell.
    """

    def define(kinds):
        def codegen(context, builder, sig, args):
            spans = [_span(context, builder, *one) for one in zip(kinds, args, strict=True) if isinstance(one[0], types.Array)]
            (low, high), *others = spans
            answer = _is_aligned(context, builder, kinds[0], args[0])
            for other_low, other_high in others:
                after = builder.icmp_signed(">=", low, other_high)
                answer = builder.and_(answer, builder.or_(after, builder.icmp_signed("<=", high, other_low)))
            return answer

        return types.boolean(*kinds), codegen

    return _of_operands(count, define)


def _is_aligned(context, builder, kind, value):
    array = context.make_array(kind)(context, builder, value)
    words = builder.ptrtoint(array.data, WORD)
    for step in cgutils.unpack_tuple(builder, array.strides, kind.ndim):
        words = builder.or_(words, step)
    odd = builder.and_(words, builder.sub(array.itemsize, WORD(1)))
    return builder.icmp_signed("==", odd, WORD(0))


def _span(context, builder, kind, value):
    """The first byte of an array and the one after its last."""
    array = context.make_array(kind)(context, builder, value)
    low = builder.ptrtoint(array.data, WORD)
    high = builder.add(low, array.itemsize)
    words = [cgutils.unpack_tuple(builder, member, kind.ndim) for member in (array.shape, array.strides)]
    for length, step in zip(*words, strict=True):
        reach = builder.mul(builder.sub(length, WORD(1)), step)
        is_down = builder.icmp_signed("<", reach, WORD(0))
        low = builder.add(low, builder.select(is_down, reach, WORD(0)))
        high = builder.add(high, builder.select(is_down, WORD(0), reach))
    return low, high


def call_loop(numbers: list[Any], row: int) -> Callable[..., Any]:
    """A primitive (table, x, w, ..., result) that calls the loop of a layer on one or two axes of x, a matrix w, one axis of b,
    and an alpha that is a number, which as operand `row` stands for all columns; 0, or 1 if there is no memory.
    """

    def define(kinds):
        def codegen(context, builder, sig, args):
            outer, core, pointers, sizes = [], [], [], []
            for i, (kind, value) in enumerate(zip(kinds[1:], args[1:], strict=True)):
                if not isinstance(kind, types.Array):
                    slot = cgutils.alloca_once_value(builder, context.cast(builder, value, kind, numbers[i]))
                    pointers.append(builder.ptrtoint(slot, WORD))
                    outer.append(WORD(0))
                    core += [WORD(0)] * (i == row)
                    continue
                array = context.make_array(kind)(context, builder, value)
                pointers.append(builder.ptrtoint(array.data, WORD))
                shape, steps = (list(cgutils.unpack_tuple(builder, m, kind.ndim)) for m in (array.shape, array.strides))
                is_batch = kind.ndim == 2 and i != 1
                outer.append(steps[0] if is_batch else WORD(0))
                core += steps[1:] if is_batch else steps
                if i < 2:
                    sizes += shape if i else shape[:1] if is_batch else [WORD(1)]
            blocks = []
            for words in (pointers, sizes, outer + core):
                block = cgutils.alloca_once(builder, ir.ArrayType(WORD, len(words)))
                blocks.append(builder.ptrtoint(block, WORD))
                for i, word in enumerate(words):
                    _write(builder, blocks[-1], 8 * i, word)
            loop = builder.load(pointer(builder, builder.add(args[0], WORD(LOOP))), align=8)
            kind = ir.FunctionType(_INT, [WORD] * 5)
            failed = builder.call(builder.inttoptr(loop, kind.as_pointer()), [WORD(0), *blocks, WORD(0)])
            _forget_error(builder, failed)
            return failed

        return types.int32(*kinds), codegen

    return _of_operands(len(numbers) + 2, define)


def lengths(number: int, axes: int) -> Callable[..., Any]:
    """A primitive (block) that returns the shape of operand `number`."""

    @intrinsic
    def read(typing_context, block):
        def codegen(context, builder, sig, args):
            first = ARRAYS + number * ARRAY_BYTES + LENGTHS
            places = [pointer(builder, builder.add(args[0], WORD(first + 8 * axis))) for axis in range(axes)]
            return context.make_tuple(builder, sig.return_type, [builder.load(place, align=8) for place in places])

        return types.UniTuple(types.intp, axes)(types.intp), codegen

    return read


def run(first: int) -> Callable[..., Any]:
    """A primitive (table, block, operands, outputs) that calculates the outputs, whose numbers begin with `first`; 0, or 1
    if there is no memory. It takes the operands only so that they live until then.
    """

    @intrinsic
    def calculate(typing_context, table, block, operands, outputs):
        def codegen(context, builder, sig, args):
            for i, kind in enumerate(outputs):
                place = builder.add(args[1], WORD(ARRAYS + (first + i) * ARRAY_BYTES))
                _describe_array(context, builder, kind, builder.extract_value(args[3], i), place)
            failed = _calls(RUN_ADDRESS)(context, builder, sig, args)
            _forget_error(builder, failed)
            return failed

        return types.int32(types.intp, types.intp, operands, outputs), codegen

    return calculate
