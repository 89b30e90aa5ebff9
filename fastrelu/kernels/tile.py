"""Register tiles as Numba values: a few rows of a matrix, each row one vector, that stay in registers.

A tile is a tuple of `fastrelu.kernels.vector` vectors. The lanes of a row may fill several registers; LLVM splits it.
Addresses and steps are in bytes.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastrelu.kernels import half
from fastrelu.kernels.memory import WORD, load_first, pointer, size_of, store_first
from fastrelu.kernels.vector import Element, Vector, call_intrinsic, splat, suffix, widened


def _row(builder, address, step, i: int, vector: Vector):
    """A pointer to row `i` of those that stand `step` bytes apart."""
    return pointer(builder, builder.add(address, builder.mul(step, WORD(i))) if i else address, vector.llvm)


def zeros(element: Element, rows: int, lanes: int):
    """A primitive that returns a tile of zeros."""
    kind = types.UniTuple(Vector(element, lanes), rows)

    @intrinsic
    def make(typing_context):
        def codegen(context, builder, sig, args):
            return ir.Constant(context.get_value_type(kind), None)

        return kind(), codegen

    return make


def load_row(element: Element, lanes: int):
    """A primitive (address) that loads one row."""
    vector = Vector(element, lanes)

    @intrinsic
    def load(typing_context, address):
        def codegen(context, builder, sig, args):
            return builder.load(pointer(builder, args[0], vector.llvm), align=size_of(element))

        return vector(types.intp), codegen

    return load


def load_tile(element: Element, rows: int, lanes: int):
    """A primitive (address, step) that loads `rows` rows; with step 0 they are all the same."""
    vector = Vector(element, lanes)
    kind = types.UniTuple(vector, rows)

    @intrinsic
    def load(typing_context, address, step):
        def codegen(context, builder, sig, args):
            places = [_row(builder, *args, i, vector) for i in range(rows)]
            return context.make_tuple(builder, kind, [builder.load(p, align=size_of(element)) for p in places])

        return kind(types.intp, types.intp), codegen

    return load


@intrinsic
def store_tile(typing_context, tile, address, step):
    """Write the rows `step` bytes apart."""

    def codegen(context, builder, sig, args):
        for i, vector in enumerate(tile):
            place = _row(builder, *args[1:], i, vector)
            builder.store(builder.extract_value(args[0], i), place, align=size_of(vector.element))
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp), codegen


@intrinsic
def store_tile_partial(typing_context, tile, address, step, count):
    """Write the first `count` lanes of each row."""

    def codegen(context, builder, sig, args):
        tile_value, address, step, count = args
        for i, vector in enumerate(tile):
            place = _row(builder, address, step, i, vector)
            store_first(builder, place, vector, builder.extract_value(tile_value, i), count)
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp, types.intp), codegen


def _fma(builder, vector: Vector, x, y, z):
    return call_intrinsic(builder, f"llvm.fma.{suffix(vector)}", vector.llvm, [x, y, z])


def _spread_element(builder, address, vector: Vector):
    """The element at `address` in all lanes."""
    value = builder.load(pointer(builder, address, vector.element.llvm), align=size_of(vector.element))
    return splat(builder, value, vector.lanes)


@intrinsic
def fma_outer(typing_context, tile, a, a_row, b):
    """The tile plus the product of a column, its elements `a_row` bytes apart from `a` on, and the row `b`."""

    def codegen(context, builder, sig, args):
        tile_value, a, a_row, b = args
        rows = []
        for i, vector in enumerate(tile):
            element = _spread_element(builder, builder.add(a, builder.mul(a_row, WORD(i))), vector)
            rows.append(_fma(builder, vector, element, b, builder.extract_value(tile_value, i)))
        return context.make_tuple(builder, tile, rows)

    return tile(tile, types.intp, types.intp, b), codegen


@intrinsic
def add(typing_context, tile, other):
    """The sum of two tiles."""

    def codegen(context, builder, sig, args):
        rows = [builder.fadd(*(builder.extract_value(t, i) for t in args)) for i in range(tile.count)]
        return context.make_tuple(builder, tile, rows)

    return tile(tile, other), codegen


def on_rows(function):
    """A primitive (tile, parameter) that applies the jitable ``function(row, parameter)`` to each row."""

    @intrinsic
    def apply(typing_context, tile, parameter):
        kind = typing_context.resolve_value_type(function)
        call = kind.get_call_type(typing_context, (tile.dtype, parameter), {})
        result = types.UniTuple(call.return_type, tile.count)

        def codegen(context, builder, sig, args):
            compiled = context.get_function(kind, call)
            rows = [compiled(builder, (builder.extract_value(args[0], i), args[1])) for i in range(tile.count)]
            return context.make_tuple(builder, result, rows)

        return result(tile, parameter), codegen

    return apply


@intrinsic
def store_bits(typing_context, masks, address, count):
    """Write the bits of a tile of masks row by row, each row from a new 64-bit word on, lane 0 lowest; lanes from `count` on
    are 0.
    """

    def codegen(context, builder, sig, args):
        value, address, count = args
        for i, mask in enumerate(masks):
            numbers = ir.Constant(ir.VectorType(ir.IntType(32), mask.lanes), list(range(mask.lanes)))
            shown = builder.icmp_signed("<", numbers, splat(builder, builder.trunc(count, ir.IntType(32)), mask.lanes))
            bits = builder.bitcast(builder.and_(builder.extract_value(value, i), shown), ir.IntType(mask.lanes))
            step = -(-mask.lanes // 64)
            words = [builder.lshr(bits, bits.type(64 * part)) for part in range(step)]
            for part, word in enumerate(words):
                word = builder.trunc(word, WORD) if mask.lanes > 64 else builder.zext(word, WORD) if mask.lanes < 64 else word
                builder.store(word, pointer(builder, builder.add(address, WORD(8 * (i * step + part)))), align=8)
        return context.get_dummy_value()

    return types.void(masks, types.intp, types.intp), codegen


@intrinsic
def prefetch(typing_context, address):
    """Ask for the cache line at `address`, which need not be mapped."""

    def codegen(context, builder, sig, args):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.globals.get("llvm.prefetch.p0") or ir.Function(builder.module, kind, "llvm.prefetch.p0")
        # to read, into the second-level cache, data
        builder.call(function, [pointer(builder, args[0], ir.IntType(8)), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def even_lanes(typing_context, low, high):
    """The lanes 0, 2, 4 ... of two vectors, one after the other."""

    def codegen(context, builder, sig, args):
        return _shuffle(builder, *args, range(0, 2 * low.lanes, 2))

    return low(low, high), codegen


def load_transposed(element: Element, lanes: int, partial: bool):
    """A primitive (address, step, last, count) that loads a square, as the tile of its rows.

    The square stands column by column: column j from ``address + j * step`` on. Columns beyond number `last` repeat that
    one. If `partial`, only the first `count` elements of a column are touched, and the others are 0; else there is no
    `last` column either. float16 and bfloat16 become float32.
    """
    vector = Vector(element, lanes)
    wide = widened(vector)
    kind = types.UniTuple(wide, lanes)

    @intrinsic
    def load(typing_context, address, step, last, count):
        def codegen(context, builder, sig, args):
            address, step, last, count = args
            columns = []
            for j in range(lanes):
                number = WORD(j)
                if partial:
                    number = builder.select(builder.icmp_signed("<", last, number), last, number)
                place = pointer(builder, builder.add(address, builder.mul(step, number)), vector.llvm)
                column = load_first(builder, place, vector, count) if partial else builder.load(place, align=size_of(element))
                columns.append(half.widen(builder, column, element.name) if element.is_half else column)
            rows = _transpose(builder, columns, 16 // size_of(wide.element))
            return context.make_tuple(builder, kind, rows)

        return kind(types.intp, types.intp, types.intp, types.intp), codegen

    return load


def _shuffle(builder, x, y, lanes):
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))


def _transpose(builder, vectors, group: int):
    """Transpose vectors: first within each 128 bits, of `group` lanes, where x86's shuffles are cheapest, then these. If there
    are only as many vectors as 128 bits have lanes, the first step is all.
    """
    n = vectors[0].type.count

    def interleave(x, y, size, high):
        """Of each 128 bits the lower or the higher half of x and y, interleaved in pieces of `size` lanes."""
        lanes = []
        for start in range(high * group // 2, n, group):
            for first in range(start, start + group // 2, size):
                lanes += [*range(first, first + size), *range(n + first, n + first + size)]
        return _shuffle(builder, x, y, lanes)

    def pick(x, y, odd):
        """The even or the odd 128 bits of x, then those of y."""
        return _shuffle(builder, x, y, [b * group + i for b in range(odd, 2 * n // group, 2) for i in range(group)])

    def halves(combine, vs, *options):
        """`combine` neighbours, once for the lower or even parts and once for the others."""
        pairs = list(zip(vs[::2], vs[1::2], strict=True))
        return ([combine(x, y, *options, part) for x, y in pairs] for part in (0, 1))

    def within(vs, size=1):
        """Transpose the 128 bits of as many vectors as 128 bits have pieces of `size` lanes."""
        if len(vs) == 1:
            return vs
        low, high = halves(interleave, vs, size)
        return within(low, 2 * size) + within(high, 2 * size)

    def across(vs):
        """Transpose the pieces of 128 bits of as many vectors as a vector has pieces."""
        if len(vs) == 1:
            return vs
        even, odd = (across(part) for part in halves(pick, vs))
        return [v for pair in zip(even, odd, strict=True) for v in pair]

    squares = [within(vectors[i : i + group]) for i in range(0, len(vectors), group)]
    if len(squares) == 1:
        return squares[0]
    rows = [across([square[i] for square in squares]) for i in range(group)]
    return [rows[i % group][i // group] for i in range(n)]


@intrinsic
def fma_square(typing_context, tile, a, a_row, a_step, square):
    """`fma_outer` for each vector of a square in turn, with columns `a_step` bytes apart."""

    def codegen(context, builder, sig, args):
        tile_value, a, a_row, a_step, square_value = args
        rows = [builder.extract_value(tile_value, i) for i in range(tile.count)]
        for p in range(square.count):
            b, column = builder.extract_value(square_value, p), builder.add(a, builder.mul(a_step, WORD(p)))
            for i, vector in enumerate(tile):
                element = _spread_element(builder, builder.add(column, builder.mul(a_row, WORD(i))), vector)
                rows[i] = _fma(builder, vector, element, b, rows[i])
        return context.make_tuple(builder, tile, rows)

    return tile(tile, types.intp, types.intp, types.intp, square), codegen
