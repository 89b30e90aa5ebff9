"""The instructions that numba-cuda has no words for, as inline PTX. No other file has any."""

from typing import Any

from llvmlite import ir

from fastrelu.cuda.toolkit import intrinsic, types

_VOID = ir.VoidType()
_WORD = ir.IntType(32)
_ADDRESS = ir.IntType(64)
_FLOAT = ir.FloatType()


def _assembly(builder: Any, result: Any, operands: tuple[Any, ...], text: str, constraints: str) -> Any:
    """One instruction that must stay where it is."""
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=True), operands)


def _without_operands(text: str) -> Any:
    @intrinsic
    def instruction(typing_context):
        def codegen(context, builder, signature, arguments):
            _assembly(builder, _VOID, (), text, "~{memory}")
            return context.get_dummy_value()

        return types.void(), codegen

    return instruction


def copy_async(nbytes: int) -> Any:
    """The function (shared address, global address, is_given) that starts to copy 4, 8 or 16 bytes, aligned to as many.

    Where `is_given` is false the source is not read, and the destination becomes 0. Only copies of 16 bytes can pass the
    first-level cache by, and do.
    """
    text = f"cp.async.{'cg' if nbytes == 16 else 'ca'}.shared.global [$0], [$1], {nbytes}, $2;"

    @intrinsic
    def copy(typing_context, destination, source, is_given):
        def codegen(context, builder, signature, arguments):
            place, address, given = arguments
            read = builder.select(given, ir.Constant(_WORD, nbytes), ir.Constant(_WORD, 0))
            _assembly(builder, _VOID, (builder.trunc(place, _WORD), address, read), text, "r,l,r,~{memory}")
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.boolean), codegen

    return copy


def copy_async_below(nbytes: int) -> Any:
    """The function (shared address, global address, i, n) that does the same where i < n, both of 32 bits."""

    @intrinsic
    def copy(typing_context, destination, source, i, n):
        def codegen(context, builder, signature, arguments):
            place, address, *words = arguments
            # Numba would compare 64 bits, in two instructions.
            is_given = builder.icmp_signed("<", *(builder.trunc(word, _WORD) for word in words))
            read = builder.select(is_given, _WORD(nbytes), _WORD(0))
            text = f"cp.async.{'cg' if nbytes == 16 else 'ca'}.shared.global [$0], [$1], {nbytes}, $2;"
            _assembly(builder, _VOID, (builder.trunc(place, _WORD), address, read), text, "r,l,r,~{memory}")
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return copy


commit_copies = _without_operands("cp.async.commit_group;")
"""What this thread has started to copy since the last call is one group."""

wait_for_copies = _without_operands("cp.async.wait_group 0;")
"""Wait for all groups of this thread."""


@intrinsic
def copy_async_part(typing_context, destination, source, nbytes):
    """Start to copy the first `nbytes` of 16 bytes, which are aligned to 16; the others become 0."""

    def codegen(context, builder, signature, arguments):
        place, address, count = arguments
        operands = builder.trunc(place, _WORD), address, builder.trunc(count, _WORD)
        _assembly(builder, _VOID, operands, "cp.async.cg.shared.global [$0], [$1], 16, $2;", "r,l,r,~{memory}")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def wait_for_copies_but(groups: int) -> Any:
    """The function () that waits for all groups of this thread but the last ones."""
    return _without_operands(f"cp.async.wait_group {groups};")


# What follows writes one instruction of the tensor cores into a function that is being built: `fragments` has the functions.


def emit_load_matrices(builder: Any, address: Any, transposed: bool) -> list[Any]:
    """Four matrices of 8 x 16 bytes, a row from the address that each thread gives: 4 words a thread."""
    words = ir.LiteralStructType([_WORD] * 4)
    text = f"ldmatrix.sync.aligned.m8n8.x4{'.trans' * transposed}.shared.b16 {{$0,$1,$2,$3}}, [$4];"
    result = _assembly(builder, words, (builder.trunc(address, _WORD),), text, "=r,=r,=r,=r,r,~{memory}")
    return [builder.extract_value(result, i) for i in range(4)]


def emit_to_tf32(builder: Any, number: Any) -> Any:
    """The nearest TF32 number, as a word: 10 of 23 bits of the fraction; ties go away from 0."""
    kind = ir.FunctionType(_WORD, [_FLOAT])
    return builder.call(ir.InlineAsm(kind, "cvt.rna.tf32.f32 $0, $1;", "=r,f"), (number,))


SHAPES = {"tf32": 8, "f16": 16, "bf16": 16}
"""Terms that one instruction of the tensor cores sums, for each kind of operand."""


def emit_mma(builder: Any, kind: str, sums: list[Any], a: list[Any], b: list[Any]) -> list[Any]:
    """What the sums of a warp, 16 x 8 numbers, are with a @ b added."""
    shape = f"m16n8k{SHAPES[kind]}"
    registers = "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13}"
    text = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {registers};"
    function = ir.FunctionType(ir.LiteralStructType([_FLOAT] * 4), [_WORD] * 6 + [_FLOAT] * 4)
    result = builder.call(ir.InlineAsm(function, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f"), [*a, *b, *sums])
    return [builder.extract_value(result, i) for i in range(4)]


def rounded_to_bfloat16(builder: Any, value: Any) -> Any:
    """The bits of a float32 rounded to bfloat16, ties to even."""
    kind = ir.FunctionType(ir.IntType(16), [ir.FloatType()])
    return builder.call(ir.InlineAsm(kind, "cvt.rn.bf16.f32 $0, $1;", "=h,f", side_effect=False), (value,))


@intrinsic
def product_of(typing_context, a, b):
    """All 64 bits of a product of two numbers of 32 bits without a sign; LLVM would multiply numbers of 64 bits."""

    def codegen(context, builder, signature, arguments):
        words = [builder.trunc(argument, _WORD) for argument in arguments]
        kind = ir.FunctionType(_ADDRESS, [_WORD] * 2)
        return builder.call(ir.InlineAsm(kind, "mul.wide.u32 $0, $1, $2;", "=l,r,r"), words)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def added_product(typing_context, a, b, total):
    """The sum of 64 bits and a product of two numbers of 32 bits with a sign, in one instruction likewise."""

    def codegen(context, builder, signature, arguments):
        words = [builder.trunc(argument, _WORD) for argument in arguments[:2]]
        kind = ir.FunctionType(_ADDRESS, [_WORD, _WORD, _ADDRESS])
        return builder.call(ir.InlineAsm(kind, "mad.wide.s32 $0, $1, $2, $3;", "=l,r,r,l"), [*words, arguments[2]])

    return types.int64(types.int64, types.int64, types.int64), codegen


fence_for_tensor_cores = _without_operands("fence.proxy.async.shared::cta;")
"""What this thread has written to shared memory is seen by wgmma once other threads may know of it."""


def emit_wgmma_begin(builder: Any) -> None:
    """Before the first wgmma after its registers were written."""
    _assembly(builder, _VOID, (), "wgmma.fence.sync.aligned;", "~{memory}")


def emit_wgmma(
    builder: Any, kind: str, sums: list[Any], a: list[Any], b: Any, contiguous_rows: tuple[bool, ...] = ()
) -> list[Any]:
    """Begin to add a @ b of a warpgroup; a is four words in registers, or like b a descriptor of shared memory.

    Halves in shared memory may have contiguous rows instead of contiguous terms.
    """
    count = len(sums)
    shape = f"m64n{2 * count}k{SHAPES[kind]}"
    numbers = ",".join(f"${i}" for i in range(count))
    left = f"${2 * count}" if len(a) == 1 else "{" + ",".join(f"${2 * count + i}" for i in range(len(a))) + "}"
    flags = "".join(f", {rows:d}" for rows in contiguous_rows)
    operands = f"{{{numbers}}}, {left}, ${2 * count + len(a)}, added, 1, 1{flags}"
    product = f"wgmma.mma_async.sync.aligned.{shape}.f32.{kind}.{kind} {operands}"
    # Whether sums are added to is not a number but a predicate.
    text = f"{{ .reg .pred added; setp.eq.u32 added, 0, 0; {product}; }}"
    letters = ["l"] if len(a) == 1 else ["r"] * len(a)
    constraints = ",".join(["=f"] * count + [str(i) for i in range(count)] + letters + ["l"])
    result = _assembly(builder, ir.LiteralStructType([_FLOAT] * count), (*sums, *a, b), text, constraints)
    return [builder.extract_value(result, i) for i in range(count)]


def emit_wgmma_commit(builder: Any) -> None:
    """What has begun since the last call is one group."""
    _assembly(builder, _VOID, (), "wgmma.commit_group.sync.aligned;", "~{memory}")


def emit_wgmma_wait(builder: Any, sums: list[Any]) -> list[Any]:
    """Wait for all groups; only now are the sums there."""
    count = len(sums)
    constraints = ",".join(["=f"] * count + [str(i) for i in range(count)] + ["~{memory}"])
    kind = ir.LiteralStructType([_FLOAT] * count)
    result = _assembly(builder, kind, tuple(sums), "wgmma.wait_group.sync.aligned 0;", constraints)
    return [builder.extract_value(result, i) for i in range(count)]


def _special_register(name: str) -> Any:
    @intrinsic
    def read(typing_context):
        def codegen(context, builder, signature, arguments):
            return _assembly(builder, _WORD, (), f"mov.u32 $0, {name};", "=r")

        return types.uint32(), codegen

    return read


# Reading them again is cheaper than keeping them: what is calculated from them need not stay in registers meanwhile.
thread_index = _special_register("%tid.x")
"""The number of the thread in its block."""
block_index = _special_register("%ctaid.x")
"""The number of the block in its grid."""
