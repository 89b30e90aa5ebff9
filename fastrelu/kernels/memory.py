"""Memory as kernels see it: addresses are plain integers, and these primitives read and write what stands there."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, register_jitable

from fastrelu.kernels import half
from fastrelu.kernels.vector import Element, Vector, call_intrinsic, splat, suffix, widened

WORD = ir.IntType(64)


def pointer(builder, address, kind=WORD):
    return builder.inttoptr(address, kind.as_pointer())


def size_of(element: Element) -> int:
    """Bytes of one element."""
    return element.bits // 8


def _at(builder, address, index, vector: Vector):
    """A pointer to the vector that begins at element number `index` from `address` on."""
    return pointer(builder, builder.add(address, builder.mul(index, WORD(size_of(vector.element)))), vector.llvm)


def _first_lanes(builder, lanes: int, count):
    """A mask of the first `count` lanes."""
    kind = ir.IntType(32)
    numbers = ir.Constant(ir.VectorType(kind, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, splat(builder, builder.trunc(count, kind), lanes))


def load_first(builder, place, vector: Vector, count):
    """Load the first `count` lanes of a vector from the pointer `place`; the others are 0."""
    align, zeros = ir.IntType(32)(size_of(vector.element)), ir.Constant(vector.llvm, None)
    mask = _first_lanes(builder, vector.lanes, count)
    return call_intrinsic(builder, f"llvm.masked.load.{suffix(vector)}.p0", vector.llvm, [place, align, mask, zeros])


def store_first(builder, place, vector: Vector, value, count):
    """Store the first `count` lanes of `value` to the pointer `place`."""
    align, mask = ir.IntType(32)(size_of(vector.element)), _first_lanes(builder, vector.lanes, count)
    call_intrinsic(builder, f"llvm.masked.store.{suffix(vector)}.p0", ir.VoidType(), [value, place, align, mask])


@intrinsic(prefer_literal=True)
def words(typing_context, address, count):
    """The `count` (a literal) words at `address`, as a tuple."""
    n = count.literal_value

    def codegen(context, builder, sig, args):
        loaded = [builder.load(pointer(builder, builder.add(args[0], WORD(8 * i))), align=8) for i in range(n)]
        return context.make_tuple(builder, sig.return_type, loaded)

    return types.UniTuple(types.intp, n)(types.intp, count), codegen


def load_operands(operands, lanes: int, wide: bool, partial: bool):
    """A primitive that loads the same `lanes` elements of every input, as a tuple of vectors.

    Parameters
    ----------
    operands : sequence of (Element, bool)
        The element type, and whether the operand is one value for all lanes (step 0) instead of a contiguous run.
    lanes : int
        Elements to load of each.
    wide : bool
        Whether float16 and bfloat16 become float32.
    partial : bool
        Whether only the first `count` lanes may be touched; the others are 0 then.
    """
    vectors = [Vector(element, lanes) for element, _ in operands]

    @intrinsic
    def load(typing_context, addresses, index, count):
        def codegen(context, builder, sig, args):
            addresses, index, count = args
            loaded = []
            for i, (element, single) in enumerate(operands):
                address, vector, align = builder.extract_value(addresses, i), vectors[i], size_of(element)
                source = _at(builder, address, index, vector)
                if single:
                    value = builder.load(pointer(builder, address, element.llvm), align=align)
                    loaded.append(splat(builder, value, lanes))
                elif partial:
                    loaded.append(load_first(builder, source, vector, count))
                else:
                    loaded.append(builder.load(source, align=align))
            if wide:
                loaded = [
                    half.widen(builder, value, vector.element.name) if vector.element.is_half else value
                    for vector, value in zip(vectors, loaded, strict=True)
                ]
            return context.make_tuple(builder, sig.return_type, loaded)

        return types.Tuple([widened(v) if wide else v for v in vectors])(addresses, types.intp, types.intp), codegen

    return load


def load_lanes(element: Element, lanes: int):
    """A primitive (address, first, end, rest) that loads the lanes from `first` to `end` of the vector at `address`, and takes
    the others of `rest`.
    """
    vector = Vector(element, lanes)

    @intrinsic
    def load(typing_context, address, first, end, rest):
        def codegen(context, builder, sig, args):
            address, first, end, rest = args
            mask = builder.and_(_first_lanes(builder, lanes, end), builder.not_(_first_lanes(builder, lanes, first)))
            place, align = pointer(builder, address, vector.llvm), ir.IntType(32)(size_of(element))
            return call_intrinsic(builder, f"llvm.masked.load.{suffix(vector)}.p0", vector.llvm, [place, align, mask, rest])

        return vector(types.intp, types.intp, types.intp, vector), codegen

    return load


@intrinsic
def store(typing_context, address, index, value):
    """Write all lanes of `value` from element `index` on."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], _at(builder, *args[:2], value), align=size_of(value.element))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, value), codegen


@intrinsic(prefer_literal=True)
def store_streaming(typing_context, address, index, value, alignment):
    """The same past the caches, at a multiple of `alignment` (a literal) bytes. `store_fence` must follow."""
    align = alignment.literal_value

    def codegen(context, builder, sig, args):
        stored = builder.store(args[2], _at(builder, *args[:2], value), align=align)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, value, alignment), codegen


@intrinsic
def store_partial(typing_context, address, index, value, count):
    """Write the first `count` lanes of `value` from element `index` on."""

    def codegen(context, builder, sig, args):
        address, index, lanes, count = args
        store_first(builder, _at(builder, address, index, value), value, lanes, count)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, value, types.intp), codegen


@intrinsic
def store_fence(typing_context):
    """Order streaming stores before everything that follows."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic(prefer_literal=True)
def stack(typing_context, nbytes):
    """The address of `nbytes` (a literal) bytes on the stack, aligned to 64, alive until the function returns."""
    size = nbytes.literal_value

    def codegen(context, builder, sig, args):
        with builder.goto_entry_block():
            block = builder.alloca(ir.ArrayType(ir.IntType(8), size))
            block.align = 64
        return builder.ptrtoint(block, WORD)

    return types.intp(nbytes), codegen


@intrinsic
def copy_element(typing_context, target, source, size):
    """Copy one element of `size` (1, 2, 4 or 8) bytes from one address to another."""

    def codegen(context, builder, sig, args):
        done = builder.append_basic_block("copied")
        switch = builder.switch(args[2], done)
        for size in (1, 2, 4, 8):
            block = builder.append_basic_block(f"copy_{size}")
            switch.add_case(WORD(size), block)
            with builder.goto_block(block):
                to, source = (pointer(builder, a, ir.IntType(8 * size)) for a in args[:2])
                builder.store(builder.load(source, align=size), to, align=size)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def write_words(typing_context, address, values):
    """Write a tuple of words from `address` on."""

    def codegen(context, builder, sig, args):
        for i in range(len(values)):
            value = context.cast(builder, builder.extract_value(args[1], i), values[i], types.intp)
            builder.store(value, pointer(builder, builder.add(args[0], WORD(8 * i))), align=8)
        return context.get_dummy_value()

    return types.void(types.intp, values), codegen


@intrinsic
def read_word(typing_context, address):
    """The 64-bit word at `address`."""

    def codegen(context, builder, sig, args):
        return builder.load(pointer(builder, args[0]), align=8)

    return types.intp(types.intp), codegen


@intrinsic
def read_byte(typing_context, address):
    """The byte at `address`, as a word."""

    def codegen(context, builder, sig, args):
        return builder.zext(builder.load(pointer(builder, args[0], ir.IntType(8)), align=1), WORD)

    return types.intp(types.intp), codegen


@intrinsic
def write_byte(typing_context, address, value):
    """Write the lowest byte of `value` to `address`."""

    def codegen(context, builder, sig, args):
        byte = ir.IntType(8)
        builder.store(builder.trunc(args[1], byte), pointer(builder, args[0], byte), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def write_word(typing_context, address, value):
    """Write the 64-bit word at `address`."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], pointer(builder, args[0]), align=8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


def _choose(order: str):
    """A primitive that returns one of two integers. Numba's own min and max are compiled anew for each kernel, 20 ms each."""

    @intrinsic
    def chosen(typing_context, a, b):
        def codegen(context, builder, sig, args):
            return builder.select(builder.icmp_signed(order, *args), *args)

        return types.intp(types.intp, types.intp), codegen

    return chosen


smaller = _choose("<")
larger = _choose(">")


@register_jitable
def ceil(a, b):
    """The quotient a / b of positive numbers, rounded up."""
    return (a + b - 1) // b


@intrinsic
def atomic_read(typing_context, address):
    """The word at `address`, in one order with all other atomic operations."""

    def codegen(context, builder, sig, args):
        return builder.load_atomic(pointer(builder, args[0]), "seq_cst", 8)

    return types.intp(types.intp), codegen


@intrinsic
def atomic_write(typing_context, address, value):
    """Write the word at `address`."""

    def codegen(context, builder, sig, args):
        builder.store_atomic(args[1], pointer(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def atomic_add(typing_context, address, value):
    """Add to the word at `address`; returns what stood there."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", pointer(builder, args[0]), args[1], "seq_cst")

    return types.intp(types.intp, types.intp), codegen


@intrinsic
def atomic_replace(typing_context, address, expected, value):
    """Write `value` if `expected` stands at `address`; returns whether it did."""

    def codegen(context, builder, sig, args):
        outcome = builder.cmpxchg(pointer(builder, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(outcome, 1)

    return types.boolean(types.intp, types.intp, types.intp), codegen


@intrinsic
def spin_pause(typing_context):
    """Tell the core that this thread is waiting in a loop."""

    def codegen(context, builder, sig, args):
        triple = builder.module.triple
        if triple.startswith(("x86_64", "i386", "i686")):
            call_intrinsic(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif triple.startswith(("aarch64", "arm64")):
            call_intrinsic(builder, "llvm.aarch64.hint", ir.VoidType(), [ir.IntType(32)(1)])
        return context.get_dummy_value()

    return types.void(), codegen


def _symbol(builder, name: str):
    return builder.module.globals.get(name) or ir.GlobalVariable(builder.module, ir.IntType(8), name)


def symbol_address(name: str):
    """A primitive that returns the address of the external symbol `name`."""

    @intrinsic
    def address(typing_context):
        def codegen(context, builder, sig, args):
            return builder.ptrtoint(_symbol(builder, name), WORD)

        return types.intp(), codegen

    return address


def _callback(context, builder, function, arguments: int):
    """`function` compiled as a C function of that many words."""
    callee_sig = types.void(*[types.intp] * arguments)
    compiled = context.compile_subroutine(builder, function, callee_sig)
    callee = context.declare_function(builder.module, compiled.fndesc)
    kind = ir.FunctionType(ir.VoidType(), [WORD] * arguments)
    name = builder.module.get_unique_name(f"{function.__name__}_callback")
    wrapper = ir.Function(builder.module, kind, name)
    wrapper.linkage = "internal"
    inner = ir.IRBuilder(wrapper.append_basic_block())
    context.call_conv.call_function(inner, callee, types.void, callee_sig.args, wrapper.args)
    inner.ret_void()
    return wrapper


def callback_address(function, arguments: int):
    """A primitive that returns the address of `function`, compiled as a C function of that many words."""

    @intrinsic
    def address(typing_context):
        def codegen(context, builder, sig, args):
            return builder.ptrtoint(_callback(context, builder, function, arguments), WORD)

        return types.intp(), codegen

    return address


def constant_words(values):
    """A primitive that returns the address of constant words: integers, and functions of two words as their addresses; a
    string names an external symbol.
    """

    @intrinsic
    def address(typing_context):
        def codegen(context, builder, sig, args):
            compiled = {f: _callback(context, builder, f, 2).ptrtoint(WORD) for f in dict.fromkeys(values) if callable(f)}
            compiled |= {name: _symbol(builder, name).ptrtoint(WORD) for name in values if isinstance(name, str)}
            kind = ir.ArrayType(WORD, len(values))
            table = ir.GlobalVariable(builder.module, kind, builder.module.get_unique_name("words"))
            table.linkage, table.global_constant = "internal", True
            table.initializer = ir.Constant(kind, [WORD(v) if isinstance(v, int) else compiled[v] for v in values])
            return builder.ptrtoint(table, WORD)

        return types.intp(), codegen

    return address


def steps_are(expected):
    """A primitive that tells whether the words at an address are the integers `expected`."""

    @intrinsic
    def matches(typing_context, steps):
        def codegen(context, builder, sig, args):
            answer = ir.IntType(1)(True)
            for i, value in enumerate(expected):
                step = builder.load(pointer(builder, builder.add(args[0], WORD(8 * i))), align=8)
                answer = builder.and_(answer, builder.icmp_signed("==", step, WORD(value)))
            return answer

        return types.boolean(types.intp), codegen

    return matches


@intrinsic
def call_address(typing_context, function, first, second):
    """Call the C function of two words at the address `function`."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.VoidType(), [WORD, WORD])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def call_function(typing_context, function, arguments):
    """Call the C function at the address `function` with a tuple of words; it returns an int32."""

    def codegen(context, builder, sig, args):
        values = [context.cast(builder, builder.extract_value(args[1], i), t, types.intp) for i, t in enumerate(arguments)]
        kind = ir.FunctionType(ir.IntType(32), [WORD] * len(values))
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)

    return types.int32(types.intp, arguments), codegen


# Of x86's MXCSR register: all exceptions masked, no flag set, ties to even, subnormal numbers kept.
DEFAULT_FLOAT_STATUS = 0x1F80
FLOAT_FLAGS = 0x3F


@intrinsic
def float_status(typing_context):
    """The floating-point control and status register, where the host has one register for both; else 0."""

    def codegen(context, builder, sig, args):
        if not builder.module.triple.startswith("x86_64"):
            return WORD(0)
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        call_intrinsic(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [builder.bitcast(slot, ir.IntType(8).as_pointer())])
        return builder.zext(builder.load(slot), WORD)

    return types.intp(), codegen


@intrinsic
def set_float_status(typing_context, status):
    """Set that register."""

    def codegen(context, builder, sig, args):
        if builder.module.triple.startswith("x86_64"):
            slot = cgutils.alloca_once_value(builder, builder.trunc(args[0], ir.IntType(32)))
            call_intrinsic(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [builder.bitcast(slot, ir.IntType(8).as_pointer())])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@register_jitable
def enter_default_float_status():
    """Set the default, since a program may have subnormal numbers flushed, and return what to give `leave_float_status`.

    Writing the register stalls the processor for some 10 ns; reading it does not, and mostly nothing has to be written.
    """
    status = float_status()
    if status & ~FLOAT_FLAGS != DEFAULT_FLOAT_STATUS and status != 0:
        set_float_status(DEFAULT_FLOAT_STATUS)
    return status


@register_jitable
def leave_float_status(status):
    """Put back modes and exception flags as they were found."""
    if float_status() != status:
        set_float_status(status)
