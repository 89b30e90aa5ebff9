"""The elementwise operations on a GPU: a grid of threads goes through items of a few elements, 16 bytes where they can be had.

``contiguous``  operands that lie side by side in the same order, with single elements before the first item and after the last
``strided``     operands of any strides; an item's place is found without division

A thread loads all its items before it calculates, so that many loads are under way: with 2048 threads of 64 bytes each a
multiprocessor has 128 KiB in flight, where 30 KiB hide the latency of memory (4.8 TB/s times 0.8 us, over 132 multiprocessors).
"""

from dataclasses import dataclass
from functools import cache

from llvmlite import ir

from fastrelu.cuda import formulas
from fastrelu.cuda.conversion import converted, narrowed, widened
from fastrelu.cuda.kernels.places import WORD, coordinates, count_of_divisors, members, moved
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.memory import lanes_of, read_words, size_of, write_lanes
from fastrelu.cuda.toolkit import cuda, intrinsic, types
from fastrelu.kernels.vector import ELEMENTS
from fastrelu.native.guard import lock

THREADS = 256
LOADS = 4
"""Loads of a thread that are under way at once."""

LANES, ONE, NUMBER = "lanes", "one", "number"
"""How an item takes an operand: element by element; one element for all; bits that are the same for all items."""
SELECT = "select"
"""A formula of its own: of a mask (uint8), x and y the x where the mask is not 0, else the y."""


@dataclass(frozen=True)
class Sweep:
    """What a kernel is compiled for.

    Attributes
    ----------
    formula : str
        Its name in `fastrelu.kernels.formulas`, or SELECT; "" copies.
    arithmetic : bool
        Whether the formula calculates, so that halves are widened.
    calculated : tuple of str
        The types of the formula's operands and result, to which and from which what is in memory is converted.
    stored : tuple of str
        The types in memory.
    reads : tuple of str
        LANES, ONE or NUMBER for each operand.
    lanes : int
        Elements of an item.
    axes : int
        Of how many axes the operands have strides; 0 if they are contiguous.
    wide : bool
        Whether places need 64 bits.
    """

    formula: str
    arithmetic: bool
    calculated: tuple[str, ...]
    stored: tuple[str, ...]
    reads: tuple[str, ...]
    lanes: int
    axes: int = 0
    wide: bool = False

    @property
    def loads(self) -> int:
        """Operands in memory."""
        return len(self.reads) - self.reads.count(NUMBER)

    @property
    def unroll(self) -> int:
        """Items of a thread that are under way at once."""
        return max(1, LOADS // max(1, self.loads))

    @property
    def tile(self) -> int:
        """Items of a block that are under way at once."""
        return THREADS * self.unroll


def _calculate(builder, spec: Sweep, operands: list):
    """The formula of one element: operands as they are in memory, result as it will be."""
    values = []
    for operand, stored, name in zip(operands, spec.stored, spec.calculated, strict=False):
        element = ELEMENTS[name]
        value = converted(builder, operand, ELEMENTS[stored], element)
        values.append(widened(builder, value, element) if element.is_half and spec.arithmetic else value)
    result = ELEMENTS[spec.calculated[-1]]
    value = values[0]
    if spec.formula == SELECT:
        value = builder.select(builder.icmp_unsigned("!=", value, value.type(0)), *values[1:])
    elif spec.formula:
        value = formulas.write(spec.formula, builder, formulas.calculated_in(result, spec.arithmetic), tuple(values))
    if result.is_half and spec.arithmetic:
        value = narrowed(builder, value, result)
    return converted(builder, value, result, ELEMENTS[spec.stored[-1]])


def _sweep(builder, spec: Sweep, inside: list, places: list, numbers: list) -> None:
    """Load, calculate and store some items.

    `inside` tells of each whether it exists, or is None where it does; `places` are its addresses, the result's last, and
    `numbers` the bits of operands that have no address.
    """
    elements = [ELEMENTS[name] for name in spec.stored]
    counts = [spec.lanes if read == LANES else 1 for read in spec.reads]

    def load(addresses):
        return [
            [] if read == NUMBER else read_words(builder, element, address, count)
            for read, element, address, count in zip(spec.reads, elements, addresses, counts, strict=False)
        ]

    loaded = []
    for condition, addresses in zip(inside, places, strict=True):
        if condition is None:
            loaded.append(load(addresses))
            continue
        before = builder.block
        with builder.if_then(condition):
            words = load(addresses)
            after = builder.block
        loaded.append([[_merged(builder, word, before, after) for word in group] for group in words])
    for condition, addresses, words in zip(inside, places, loaded, strict=True):
        operands = []
        for read, element, group, bits in zip(spec.reads, elements, words, numbers, strict=False):
            if read == NUMBER:
                part = builder.trunc(bits, element.integer) if element.bits < 64 else bits
                lanes = [builder.bitcast(part, element.llvm)]
            else:
                lanes = lanes_of(builder, element, group)
            operands.append(lanes if read == LANES else lanes[:1] * spec.lanes)
        results = [_calculate(builder, spec, list(lanes)) for lanes in zip(*operands, strict=True)]
        if condition is None:
            write_lanes(builder, elements[-1], addresses[-1], results)
        else:
            with builder.if_then(condition):
                write_lanes(builder, elements[-1], addresses[-1], results)


def _merged(builder, word, before, after):
    """A word that was loaded on one of two ways, and does not matter on the other."""
    merged = builder.phi(word.type)
    merged.add_incoming(ir.Constant(word.type, ir.Undefined), before)
    merged.add_incoming(word, after)
    return merged


def _items_of(builder, i, items, count: int):
    """The numbers of the items of a thread, and whether they exist."""
    numbers = [builder.add(i, WORD(u * THREADS)) for u in range(count)]
    return numbers, [builder.icmp_signed("<", number, items) for number in numbers]


def _contiguous_items(spec: Sweep, unroll: int):
    """The function (places, i, items) that does the items i, i + THREADS, ... of contiguous operands, as many as there are; of
    a spec of one lane with `unroll` 0 the element i.
    """
    COUNT = len(spec.stored)
    sizes = [
        size_of(ELEMENTS[name]) * (spec.lanes if read == LANES else 0)
        for name, read in zip(spec.stored, (*spec.reads, LANES), strict=True)
    ]

    @intrinsic
    def do_items(typing_context, places, i, items):
        def codegen(context, builder, signature, arguments):
            bases, first, end = members(builder, arguments[0], COUNT), *arguments[1:]
            numbers, inside = ([first], [None]) if unroll == 0 else _items_of(builder, first, end, unroll)
            addresses = [
                [builder.add(base, builder.mul(number, WORD(size))) for base, size in zip(bases, sizes, strict=True)]
                for number in numbers
            ]
            _sweep(builder, spec, inside, addresses, bases)
            return context.get_dummy_value()

        return types.void(places, types.int64, types.int64), codegen

    return do_items


def _strided_items(spec: Sweep):
    """The function (places, divisors, strides, i, items) that does the items i, i + THREADS, ... of strided operands; there is
    a stride of each operand in memory and each axis.
    """
    COUNT, AXES = len(spec.stored), spec.axes
    in_memory = [k for k, read in enumerate((*spec.reads, LANES)) if read != NUMBER]

    @intrinsic
    def do_items(typing_context, places, divisors, strides, i, items):
        def codegen(context, builder, signature, arguments):
            bases = members(builder, arguments[0], COUNT)
            dividing = members(builder, arguments[1], count_of_divisors(AXES))
            steps = members(builder, arguments[2], len(in_memory) * AXES)
            numbers, inside = _items_of(builder, arguments[3], arguments[4], spec.unroll)
            addresses = []
            for number in numbers:
                found = coordinates(builder, number, dividing, AXES, spec.wide)
                addresses.append(list(bases))
                for n, k in enumerate(in_memory):
                    addresses[-1][k] = moved(builder, bases[k], found, steps[n * AXES : (n + 1) * AXES])
            _sweep(builder, spec, inside, addresses, bases)
            return context.get_dummy_value()

        return types.void(places, divisors, strides, types.int64, types.int64), codegen

    return do_items


def _contiguous(spec: Sweep):
    """(items, head, rest, places): elements -head ... -1 and `rest` ones after the last item are done singly."""
    TILE, LANES_OF_ITEM = spec.tile, spec.lanes
    do_items = _contiguous_items(spec, spec.unroll)
    do_element = _contiguous_items(Sweep(spec.formula, spec.arithmetic, spec.calculated, spec.stored, spec.reads, 1), 0)

    def contiguous(items, head, rest, places):
        i = cuda.blockIdx.x * TILE + cuda.threadIdx.x
        while i < items:
            do_items(places, i, items)
            i += cuda.gridDim.x * TILE
        single = cuda.blockIdx.x * THREADS + cuda.threadIdx.x - head
        if single < rest:
            if single >= 0:
                single += items * LANES_OF_ITEM
            do_element(places, single, 0)

    return contiguous


def _strided(spec: Sweep):
    """(items, places, divisors, strides)"""
    TILE = spec.tile
    do_items = _strided_items(spec)

    def strided(items, places, divisors, strides):
        i = cuda.blockIdx.x * TILE + cuda.threadIdx.x
        while i < items:
            do_items(places, divisors, strides, i, items)
            i += cuda.gridDim.x * TILE

    return strided


@cache
def kernel(spec: Sweep) -> Kernel:
    """The kernel for `spec`."""
    places = types.UniTuple(types.int64, len(spec.stored))
    divisors = types.UniTuple(types.int64, count_of_divisors(spec.axes))
    strides = types.UniTuple(types.int64, (spec.loads + 1) * max(1, spec.axes))
    with lock:  # numba-cuda takes up no new functions while another thread compiles
        if spec.axes:
            return Kernel(_strided(spec), (types.int64, places, divisors, strides), THREADS)
        return Kernel(_contiguous(spec), (types.int64, types.int64, types.int64, places), THREADS)
