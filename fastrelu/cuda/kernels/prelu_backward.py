"""The sums of the gradient of `prelu` with respect to alpha, in the order of `fastrelu.sums.sum_to`.

``block_sums``  a thread for each column and each KC of its rows: one chain of additions, from 0
``totals``      a block of threads for each column: they fetch the sums of its blocks, and one adds them in ascending order

A column is an element of alpha, and its rows are the elements of dy and x that it belongs to.
"""

from dataclasses import dataclass
from functools import cache

from fastrelu.cuda.conversion import converted
from fastrelu.cuda.formulas import Value, write
from fastrelu.cuda.kernels.places import WORD, coordinates, count_of_divisors, members, moved
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import lanes_of, load, read_words, size_of, store, write_lanes
from fastrelu.cuda.toolkit import cuda, intrinsic, types
from fastrelu.kernels.vector import ELEMENTS, Vector
from fastrelu.native.guard import lock
from fastrelu.operations import KC

THREADS = 128
STEP = 8
"""Terms that a thread loads before it adds them."""
FETCHED = 2048
"""Sums that a block of threads fetches before one of them adds: beyond a few hundred, memory is waited for no longer."""


@dataclass(frozen=True)
class BlockSums:
    """What a kernel of sums of blocks is compiled for: the types of dy, x and the sums, the numbers of axes of columns and of
    rows, and whether places need 64 bits.
    """

    dtypes: tuple[str, str, str]
    column_axes: int
    row_axes: int
    wide: bool


def _number(dtype: str):
    return getattr(types, dtype)


def _first_terms(spec: BlockSums):
    """The function (dy, x, column divisors, column strides, thread) that returns the block, and where dy and x begin for it."""
    AXES = spec.column_axes + 1

    @intrinsic
    def find(typing_context, dy, x, divisors, strides, thread):
        result = types.UniTuple(types.int64, 3)

        def codegen(context, builder, signature, arguments):
            dividing = members(builder, arguments[2], count_of_divisors(AXES))
            steps = members(builder, arguments[3], max(1, 2 * spec.column_axes))
            block, *column = coordinates(builder, arguments[4], dividing, AXES, spec.wide)
            bases = [moved(builder, arguments[k], column, steps[k * len(column) : (k + 1) * len(column)]) for k in (0, 1)]
            block = block if spec.wide else builder.zext(block, WORD)
            return context.make_tuple(builder, result, [block, *bases])

        return result(types.int64, types.int64, divisors, strides, types.int64), codegen

    return find


def _add_terms(spec: BlockSums, count: int):
    """The function (total, dy, x, row divisors, row strides, row) that adds so many terms to a total, one after the other."""
    elements = [ELEMENTS[name] for name in spec.dtypes]
    number = _number(spec.dtypes[-1])

    @intrinsic
    def add(typing_context, total, dy, x, divisors, strides, row):
        def codegen(context, builder, signature, arguments):
            dividing = members(builder, arguments[3], count_of_divisors(spec.row_axes))
            steps = members(builder, arguments[4], 2 * spec.row_axes)
            terms = []
            for i in range(count):
                found = coordinates(builder, builder.add(arguments[5], WORD(i)), dividing, spec.row_axes, spec.wide)
                of_row = []
                for k in (0, 1):
                    place = moved(builder, arguments[1 + k], found, steps[k * spec.row_axes : (k + 1) * spec.row_axes])
                    (value,) = lanes_of(builder, elements[k], read_words(builder, elements[k], place, 1))
                    of_row.append(converted(builder, value, elements[k], elements[-1]))
                terms.append(tuple(of_row))
            kind = Vector(elements[-1], 1)
            total = Value(builder, kind, arguments[0])
            for term in terms:
                total = total + Value(builder, kind, write("prelu_alpha_gradient", builder, elements[-1], term))
            return total.value

        return number(number, types.int64, types.int64, divisors, strides, types.int64), codegen

    return add


def _block_sums(spec: BlockSums):
    """(threads, rows, dy, x, sums, column divisors, column strides, row divisors, row strides)"""
    SIZE, ZERO = size_of(ELEMENTS[spec.dtypes[-1]]), _number(spec.dtypes[-1])
    find, add_step, add_one, put = _first_terms(spec), _add_terms(spec, STEP), _add_terms(spec, 1), store(spec.dtypes[-1])

    def block_sums(threads, rows, dy, x, sums, column_divisors, column_strides, row_divisors, row_strides):
        thread = cuda.blockIdx.x * types.int64(THREADS) + cuda.threadIdx.x
        if thread < threads:
            block, dy_column, x_column = find(dy, x, column_divisors, column_strides, thread)
            row = block * KC
            end = min(row + KC, rows)
            total = ZERO(0)
            while row + STEP <= end:
                total = add_step(total, dy_column, x_column, row_divisors, row_strides, row)
                row += STEP
            while row < end:
                total = add_one(total, dy_column, x_column, row_divisors, row_strides, row)
                row += 1
            put(sums + thread * SIZE, total)

    return block_sums


def _adding(dtype: str):
    """The function (a, b) that adds two numbers and rounds, whatever is multiplied before."""
    number = _number(dtype)
    kind = Vector(ELEMENTS[dtype], 1)

    @intrinsic
    def add(typing_context, a, b):
        def codegen(context, builder, signature, arguments):
            a, b = (Value(builder, kind, value) for value in arguments)
            return (a + b).value

        return number(number, number), codegen

    return add


def _put_converted(source: str, target: str):
    """The function (address, number) that stores a number of the type `source` as one of the type `target`."""

    @intrinsic
    def put(typing_context, address, number):
        def codegen(context, builder, signature, arguments):
            value = converted(builder, arguments[1], ELEMENTS[source], ELEMENTS[target])
            write_lanes(builder, ELEMENTS[target], arguments[0], [value])
            return context.get_dummy_value()

        return types.void(types.int64, _number(source)), codegen

    return put


def _totals(source: str, target: str):
    """(columns, blocks, sums, result)"""
    SIZE, RESULT_SIZE, NUMBER = size_of(ELEMENTS[source]), size_of(ELEMENTS[target]), _number(source)
    take, add, put = load(source), _adding(source), _put_converted(source, target)

    def totals(columns, blocks, sums, result):
        fetched = cuda.shared.array(FETCHED, NUMBER)
        column = types.int64(cuda.blockIdx.x)
        total = NUMBER(0)
        first = types.int64(0)
        while first < blocks:
            count = min(blocks - first, types.int64(FETCHED))
            i = types.int64(cuda.threadIdx.x)
            while i < count:
                fetched[i] = take(sums + ((first + i) * columns + column) * SIZE)
                i += THREADS
            cuda.syncthreads()
            if cuda.threadIdx.x == 0:
                i = types.int64(0)
                while i < count:
                    total = add(total, fetched[i])
                    i += 1
            cuda.syncthreads()
            first += FETCHED
        if cuda.threadIdx.x == 0:
            put(result + column * RESULT_SIZE, total)

    return totals


@cache
def block_sums(spec: BlockSums) -> Kernel:
    """The kernel for the sums of blocks."""
    column_divisors, row_divisors = count_of_divisors(spec.column_axes + 1), count_of_divisors(spec.row_axes)
    counts = (column_divisors, max(1, 2 * spec.column_axes), row_divisors, 2 * spec.row_axes)
    with lock:
        return Kernel(_block_sums(spec), (*[types.int64] * 5, *(types.UniTuple(types.int64, n) for n in counts)), THREADS)


@cache
def totals(source: str, target: str) -> Kernel:
    """The kernel that adds sums of blocks of the type `source`, into the type `target`."""
    with lock:
        return Kernel(_totals(source, target), (types.int64,) * 4, THREADS)
