"""Fragments as values: what a thread holds of the operands and the sums of the tensor cores.

A warp's product of 16 x 8 numbers has its operands and sums spread over the threads: with g = lane // 4 and q = lane % 4, a
thread has the sums (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1). Of A it has four words, of B two; a word is one TF32
number or two halves. `ROWS` such products below each other and `COLUMNS` beside each other are a warp's tile, ``ROWS *
COLUMNS * 4`` sums a thread. A *step* is 16 terms: two instructions for TF32, one for halves.

All functions here generate straight-line code of constant indices: what is indexed at run time would not stay in registers.
"""

from typing import Any

from llvmlite import ir

from fastrelu.cuda import conversion, ptx
from fastrelu.cuda.memory import SHARED
from fastrelu.cuda.toolkit import intrinsic, types
from fastrelu.kernels.vector import ELEMENTS

STEP = 16
"""Terms of a step."""

_WORD = ir.IntType(32)
_ADDRESS = ir.IntType(64)
_FLOAT = ir.FloatType()


def _unpacked(builder: Any, values: Any) -> list[Any]:
    return [builder.extract_value(values, i) for i in range(values.type.count)]


def _packed(builder: Any, values: list[Any]) -> Any:
    result = ir.Constant(ir.ArrayType(values[0].type, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        result = builder.insert_value(result, value, i)
    return result


def _bits(builder: Any, number: Any) -> Any:
    return builder.bitcast(number, _WORD)


def _number(builder: Any, bits: Any) -> Any:
    return builder.bitcast(bits, _FLOAT)


def _shared_pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(ir.IntType(8), SHARED))


def widened(dtype: str) -> Any:
    """The function (number) -> float32 for a number in memory."""
    number = types.float32 if dtype == "float32" else types.uint16

    @intrinsic
    def widen(typing_context, value):
        def codegen(context, builder, signature, arguments):
            return arguments[0] if dtype == "float32" else conversion.widened(builder, arguments[0], ELEMENTS[dtype])

        return types.float32(number), codegen

    return widen


def narrowed(dtype: str) -> Any:
    """The function (four float32 numbers) -> what is stored of them."""
    four = types.UniTuple(types.float32, 4)
    result = four if dtype == "float32" else types.UniTuple(types.uint16, 4)

    @intrinsic
    def narrow(typing_context, values):
        def codegen(context, builder, signature, arguments):
            if dtype == "float32":
                return arguments[0]
            return _packed(
                builder, [conversion.narrowed(builder, value, ELEMENTS[dtype]) for value in _unpacked(builder, arguments[0])]
            )

        return result(four), codegen

    return narrow


def zeros(count: int) -> Any:
    """The function () -> `count` sums of 0."""
    sums = types.UniTuple(types.float32, count)

    @intrinsic
    def make(typing_context):
        def codegen(context, builder, signature, arguments):
            return _packed(builder, [ir.Constant(_FLOAT, 0)] * count)

        return sums(), codegen

    return make


def load_rows(kind: str, count: int, pitch: int, instructions: int) -> Any:
    """The function (address) -> fragments of a step, from rows of an operand whose terms are contiguous in shared memory.

    There are `count` matrices of 16 rows. The address is of a row, and of 16 bytes in it, that the thread reads for others;
    the 16 bytes of terms are swapped within each row of 128 bytes by bits 4 to 6 of the address.
    """
    words = types.UniTuple(types.uint32, 4 * count * instructions)

    @intrinsic
    def load(typing_context, address):
        def codegen(context, builder, signature, arguments):
            values = []
            for instruction in range(instructions):
                place = builder.xor(arguments[0], ir.Constant(_ADDRESS, 32 * instruction))
                for i in range(count):
                    at = builder.add(place, ir.Constant(_ADDRESS, 16 * pitch * i))
                    values += ptx.emit_load_matrices(builder, at, False)
            return _packed(builder, values)

        return words(types.int64), codegen

    return load


def load_transposed(count: int) -> Any:
    """The function (address) -> fragments of a step, of halves whose rows are contiguous: 32 bytes each 16 rows."""
    words = types.UniTuple(types.uint32, 4 * count)

    @intrinsic
    def load(typing_context, address):
        def codegen(context, builder, signature, arguments):
            values = []
            for i in range(count):
                at = builder.add(arguments[0], ir.Constant(_ADDRESS, 32 * i))
                values += ptx.emit_load_matrices(builder, at, True)
            return _packed(builder, values)

        return words(types.int64), codegen

    return load


def load_words(offsets: list[int]) -> Any:
    """The function (address) -> the words at these distances from an address in shared memory."""
    words = types.UniTuple(types.uint32, len(offsets))

    @intrinsic
    def load(typing_context, address):
        def codegen(context, builder, signature, arguments):
            pointer = _shared_pointer(builder, arguments[0])
            values = []
            for offset in offsets:
                place = builder.gep(pointer, [ir.Constant(_WORD, offset)])
                values.append(builder.load(builder.bitcast(place, ir.PointerType(_WORD, 3)), align=4))
            return _packed(builder, values)

        return words(types.int64), codegen

    return load


def store_sums(rows: int, columns: int, pitch: int, first: int = 0, count: int = 0) -> Any:
    """The function (address of the thread's first sum, sums) that writes a warp's tile to shared memory, by rows."""
    length = rows * columns * 4
    sums = types.UniTuple(types.float32, count or length)
    pair = ir.VectorType(_FLOAT, 2)

    @intrinsic
    def store(typing_context, address, tile):
        def codegen(context, builder, signature, arguments):
            pointer = _shared_pointer(builder, arguments[0])
            values = _unpacked(builder, arguments[1])[first : first + length]
            for at in range(0, length, 2):
                product, half = divmod(at // 2, 2)
                i, j = divmod(product, columns)
                place = builder.gep(pointer, [ir.Constant(_WORD, (16 * i + 8 * half) * pitch + 32 * j)])
                two = ir.Constant(pair, ir.Undefined)
                for lane in range(2):
                    two = builder.insert_element(two, values[at + lane], ir.Constant(_WORD, lane))
                builder.store(two, builder.bitcast(place, ir.PointerType(pair, 3)), align=8)
            return context.get_dummy_value()

        return types.void(types.int64, sums), codegen

    return store


def _split(builder: Any, word: Any) -> tuple[Any, Any]:
    """A float32 as two TF32 numbers whose sum it is, but for at most one unit in its last place.

    The first is rounded to nearest (ties away from 0). The second has at most 12 bits, of which the last is cut off; its
    sign is that of no operand, so that neither this nor the product of two second parts, which nobody calculates, adds up.
    An infinity has NaN as its second part, and so has a NaN.
    """
    mask = ir.Constant(_WORD, -(1 << 13))
    high = builder.and_(builder.add(word, ir.Constant(_WORD, 1 << 12)), mask)
    low = builder.fsub(_number(builder, word), _number(builder, high))
    return high, builder.and_(_bits(builder, low), mask)


def multiply(kind: str, rows: int, columns: int) -> Any:
    """The function (sums, a, b) -> sums + a @ b for a step. Numbers of type float32 are rounded to TF32."""
    sums = types.UniTuple(types.float32, rows * columns * 4)
    instructions = STEP // ptx.SHAPES[kind]
    a_words = types.UniTuple(types.uint32, 4 * rows * instructions)
    b_words = types.UniTuple(types.uint32, 2 * columns * instructions)

    @intrinsic
    def multiply_step(typing_context, tile, a, b):
        def codegen(context, builder, signature, arguments):
            values, a_values, b_values = (_unpacked(builder, argument) for argument in arguments)
            if kind == "tf32":
                a_values = [ptx.emit_to_tf32(builder, _number(builder, word)) for word in a_values]
                b_values = [ptx.emit_to_tf32(builder, _number(builder, word)) for word in b_values]
            for g in range(instructions):
                for i in range(rows):
                    left = a_values[(g * rows + i) * 4 :][:4]
                    for j in range(columns):
                        right = b_values[(g * columns + j) * 2 :][:2]
                        at = (i * columns + j) * 4
                        values[at : at + 4] = ptx.emit_mma(builder, kind, values[at : at + 4], left, right)
            return _packed(builder, values)

        return sums(sums, a_words, b_words), codegen

    return multiply_step


def _promoted(builder: Any, total: Any, rest: Any) -> tuple[Any, Any]:
    """The sum of two numbers, rounded to nearest, and what the rounding lost (Dekker; exact where the first is the larger)."""
    sum_ = builder.fadd(total, rest)
    return sum_, builder.fsub(rest, builder.fsub(sum_, total))


def promote(count: int) -> Any:
    """The function (totals, sums) -> (totals + sums, what their rounding lost), which is where the next sums start."""
    sums = types.UniTuple(types.float32, count)
    pair = types.UniTuple(sums, 2)

    @intrinsic
    def add(typing_context, totals, rest):
        def codegen(context, builder, signature, arguments):
            both = [_promoted(builder, *two) for two in zip(*(_unpacked(builder, each) for each in arguments), strict=True)]
            return context.make_tuple(builder, pair, [_packed(builder, list(values)) for values in zip(*both, strict=True)])

        return pair(sums, sums), codegen

    return add


def multiply_split(rows: int, columns: int) -> Any:
    """The function (totals, sums, a, b) -> (totals, sums) for a step of float32: three products of TF32 numbers and `promote`.

    The small products come first, since the tensor cores cut off what does not fit beside the larger sums.
    """
    sums = types.UniTuple(types.float32, rows * columns * 4)
    pair = types.UniTuple(sums, 2)
    instructions = STEP // ptx.SHAPES["tf32"]
    a_words = types.UniTuple(types.uint32, 4 * rows * instructions)
    b_words = types.UniTuple(types.uint32, 2 * columns * instructions)

    @intrinsic
    def multiply_step(typing_context, totals, rest, a, b):
        def codegen(context, builder, signature, arguments):
            whole, values, a_values, b_values = (_unpacked(builder, argument) for argument in arguments)
            b_parts = [_split(builder, word) for word in b_values]
            for i in range(rows):
                a_parts = [[_split(builder, word) for word in a_values[(g * rows + i) * 4 :][:4]] for g in range(instructions)]
                for j in range(columns):
                    at = (i * columns + j) * 4
                    part = values[at : at + 4]
                    for which_a, which_b in ((1, 0), (0, 1), (0, 0)):
                        for g in range(instructions):
                            left = [words[which_a] for words in a_parts[g]]
                            right = [words[which_b] for words in b_parts[(g * columns + j) * 2 :][:2]]
                            part = ptx.emit_mma(builder, "tf32", part, left, right)
                    for e in range(4):
                        whole[at + e], values[at + e] = _promoted(builder, whole[at + e], part[e])
            return context.make_tuple(builder, pair, [_packed(builder, whole), _packed(builder, values)])

        return pair(sums, sums, a_words, b_words), codegen

    return multiply_step


def split_words(count: int) -> Any:
    """The function (words) -> (first parts, second parts) of float32 numbers, see `multiply_split`."""
    words = types.UniTuple(types.uint32, count)
    pair = types.UniTuple(words, 2)

    @intrinsic
    def split(typing_context, values):
        def codegen(context, builder, signature, arguments):
            both = [_split(builder, word) for word in _unpacked(builder, arguments[0])]
            return context.make_tuple(builder, pair, [_packed(builder, list(part)) for part in zip(*both, strict=True)])

        return pair(words), codegen

    return split


def round_words(count: int) -> Any:
    """The function (words) -> float32 numbers rounded to TF32."""
    words = types.UniTuple(types.uint32, count)

    @intrinsic
    def round_(typing_context, values):
        def codegen(context, builder, signature, arguments):
            return _packed(builder, [ptx.emit_to_tf32(builder, _number(builder, w)) for w in _unpacked(builder, arguments[0])])

        return words(words), codegen

    return round_


def begin_products(columns: int, instructions: int, products: tuple[tuple[int, int], ...]) -> Any:
    """The function (sums, first parts of a, second parts, descriptors of the first and second parts of b) of a warpgroup.

    It begins ``sums + a @ b`` for the terms of some instructions in a row of shared memory, for each pair of parts of a and b.
    """
    sums = types.UniTuple(types.float32, columns // 2)
    words = types.UniTuple(types.uint32, 4 * instructions)

    @intrinsic
    def begin(typing_context, tile, high, low, high_descriptor, low_descriptor):
        def codegen(context, builder, signature, arguments):
            values = _unpacked(builder, arguments[0])
            a_parts, b_parts = [_unpacked(builder, part) for part in arguments[1:3]], arguments[3:]
            ptx.emit_wgmma_begin(builder)
            small, large = products[:-1], products[-1:]
            for pairs in (small, large):
                for g in range(instructions):
                    for a, b in pairs:
                        descriptor = builder.add(b_parts[b], ir.Constant(_ADDRESS, 2 * g))
                        values = ptx.emit_wgmma(builder, "tf32", values, a_parts[a][4 * g : 4 * g + 4], descriptor)
            ptx.emit_wgmma_commit(builder)
            return _packed(builder, values)

        return sums(sums, words, words, types.int64, types.int64), codegen

    return begin


def begin_described(kind: str, columns: int, instructions: int, a_rows: bool, b_rows: bool) -> Any:
    """The function (sums, descriptor of a, descriptor of b) by which a warpgroup begins ``sums + a @ b``.

    Either operand is in shared memory and may have contiguous rows, or else contiguous terms.
    """
    sums = types.UniTuple(types.float32, columns // 2)
    # To the next 16 terms there are 32 bytes of a row, or 16 rows of 128 bytes; descriptors count by 16 bytes.
    a_step, b_step = (128 if rows else 2 for rows in (a_rows, b_rows))

    @intrinsic
    def begin(typing_context, tile, a_descriptor, b_descriptor):
        def codegen(context, builder, signature, arguments):
            values = _unpacked(builder, arguments[0])
            ptx.emit_wgmma_begin(builder)
            for g in range(instructions):
                a, b = (
                    builder.add(descriptor, ir.Constant(_ADDRESS, step * g))
                    for descriptor, step in zip(arguments[1:], (a_step, b_step), strict=True)
                )
                values = ptx.emit_wgmma(builder, kind, values, [a], b, (a_rows, b_rows))
            ptx.emit_wgmma_commit(builder)
            return _packed(builder, values)

        return sums(sums, types.int64, types.int64), codegen

    return begin


def end_products(columns: int) -> Any:
    """The function (sums) -> sums, once they are there."""
    sums = types.UniTuple(types.float32, columns // 2)

    @intrinsic
    def end(typing_context, tile):
        def codegen(context, builder, signature, arguments):
            return _packed(builder, ptx.emit_wgmma_wait(builder, _unpacked(builder, arguments[0])))

        return sums(sums), codegen

    return end
