"""Where the elements of strided arrays are, from one number: its coordinates along some axes, without division."""

from llvmlite import ir

WORD = ir.IntType(64)


def divisor(length: int, wide: bool) -> tuple[int, int]:
    """What a length of at least 2 is divided by with: floor(i / length) = (high half of i * multiplier) >> shift for all
    i < 2**31, or 2**63 if `wide`.

    Granlund and Montgomery, "Division by invariant integers using multiplication", 1994, doi:10.1145/178243.178249.
    """
    power = (length - 1).bit_length()
    kept = 63 if wide else 31
    return -(-(1 << (kept + power)) // length), power - 1


def divisors(lengths: list[int], wide: bool) -> list[int]:
    """What `coordinates` needs for axes of these lengths: of each but the first the length, a multiplier and a shift."""
    return [number for length in lengths[1:] for number in (length, *divisor(length, wide))]


def count_of_divisors(axes: int) -> int:
    """How many numbers these are; at least 1, since a kernel takes no empty tuple."""
    return max(1, 3 * (axes - 1))


def coordinates(builder, number, dividing: list, axes: int, wide: bool) -> list:
    """The coordinates of a number, of 64 bits, along axes; they have 64 bits if `wide`, else 32."""
    index = ir.IntType(64 if wide else 32)
    rest = number if wide else builder.trunc(number, index)
    found = []
    for axis in reversed(range(axes - 1)):
        of_axis = dividing[3 * axis : 3 * axis + 3]
        length, multiplier, shift = of_axis if wide else (builder.trunc(value, index) for value in of_axis)
        quotient = _quotient(builder, rest, multiplier, shift)
        found.insert(0, builder.sub(rest, builder.mul(quotient, length)))
        rest = quotient
    return [rest, *found]


def _quotient(builder, number, multiplier, shift):
    name = "llvm.nvvm.mulhi.ull" if number.type.width == 64 else "llvm.nvvm.mulhi.ui"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(number.type, (number.type, number.type)), name)
    return builder.lshr(builder.call(function, (number, multiplier)), shift)


def moved(builder, address, found: list, strides: list):
    """An address plus coordinates times strides. Of 32 bits each, a product and its sum are one instruction."""
    for coordinate, stride in zip(found, strides, strict=True):
        if coordinate.type.width < WORD.width:
            stride = builder.sext(builder.trunc(stride, coordinate.type), WORD)
            coordinate = builder.sext(coordinate, WORD)
        address = builder.add(address, builder.mul(coordinate, stride))
    return address


def members(builder, value, count: int) -> list:
    """The numbers in a tuple."""
    return [builder.extract_value(value, i) for i in range(count)]
