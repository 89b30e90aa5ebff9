"""Elements of any type at raw addresses in a device's memory, one or a few at a time, up to 128 bits in one instruction.

What takes a ``builder`` writes LLVM IR down; `load` and `store` are functions for kernels.
"""

from functools import cache

from llvmlite import ir

from fastrelu.cuda.toolkit import intrinsic, types
from fastrelu.kernels.vector import ELEMENTS, Element

PACKET = 16
"""Bytes of the widest load and store."""

GLOBAL, SHARED = 1, 3
"""Address spaces: the device's memory, and that of a block."""


def size_of(element: Element) -> int:
    """Bytes of an element."""
    return element.bits // 8


def number_of(element: Element):
    """The Numba type of an element in a kernel; halves are uint16."""
    return types.uint16 if element.is_half else getattr(types, element.name)


def _words(element: Element, count: int):
    """The type of the word that `count` elements are moved in, and how many of them."""
    nbytes = size_of(element) * count
    width = min(nbytes, 8 if size_of(element) == 8 else 4)
    return ir.IntType(8 * width), nbytes // width


def read_words(builder, element: Element, address, count: int, space: int = GLOBAL) -> list:
    """Load `count` elements, at most 16 bytes and as much aligned, as words that `lanes_of` takes apart."""
    word, n = _words(element, count)
    kind = word if n == 1 else ir.VectorType(word, n)
    loaded = builder.load(builder.inttoptr(address, ir.PointerType(kind, space)), align=size_of(element) * count)
    return [loaded] if n == 1 else [builder.extract_element(loaded, ir.IntType(32)(i)) for i in range(n)]


def lanes_of(builder, element: Element, words: list) -> list:
    """The elements in words."""
    bits = element.bits
    lanes = []
    for word in words:
        for shift in range(0, word.type.width, bits):
            part = builder.lshr(word, word.type(shift)) if shift else word
            lane = builder.trunc(part, element.integer) if bits < word.type.width else part
            lanes.append(builder.bitcast(lane, element.llvm))
    return lanes


def write_lanes(builder, element: Element, address, lanes: list, space: int = GLOBAL) -> None:
    """Store elements, at most 16 bytes and as much aligned."""
    word, n = _words(element, len(lanes))
    each = len(lanes) // n
    words = []
    for first in range(0, len(lanes), each):
        parts = [builder.bitcast(lane, element.integer) for lane in lanes[first : first + each]]
        if each > 1:
            parts = [builder.zext(part, word) for part in parts]
        whole = parts[0]
        for i, part in enumerate(parts[1:], 1):
            whole = builder.or_(whole, builder.shl(part, word(element.bits * i)))
        words.append(whole)
    value = words[0]
    if n > 1:
        value = ir.Constant(ir.VectorType(word, n), ir.Undefined)
        for i, whole in enumerate(words):
            value = builder.insert_element(value, whole, ir.IntType(32)(i))
    pointer = builder.inttoptr(address, ir.PointerType(value.type, space))
    builder.store(value, pointer, align=size_of(element) * len(lanes))


@cache
def load(dtype: str, count: int = 1, space: int = GLOBAL):
    """A function (address) that loads elements: a number, or a tuple of `count`, at most 16 bytes and as much aligned."""
    element = ELEMENTS[dtype]
    number = number_of(element)
    result = number if count == 1 else types.UniTuple(number, count)

    @intrinsic
    def load_elements(typing_context, address):
        def codegen(context, builder, signature, arguments):
            lanes = lanes_of(builder, element, read_words(builder, element, arguments[0], count, space))
            return lanes[0] if count == 1 else context.make_tuple(builder, result, lanes)

        return result(types.int64), codegen

    return load_elements


@cache
def store(dtype: str, count: int = 1, space: int = GLOBAL):
    """A function (address, elements) that stores a number, or a tuple of `count`, at most 16 bytes and as much aligned."""
    element = ELEMENTS[dtype]
    number = number_of(element)
    kind = number if count == 1 else types.UniTuple(number, count)

    @intrinsic
    def store_elements(typing_context, address, elements):
        def codegen(context, builder, signature, arguments):
            place, value = arguments
            lanes = [value] if count == 1 else [builder.extract_value(value, i) for i in range(count)]
            write_lanes(builder, element, place, lanes, space)
            return context.get_dummy_value()

        return types.void(types.int64, kind), codegen

    return store_elements
