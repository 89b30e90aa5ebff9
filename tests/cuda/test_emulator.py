"""The emulator itself: what each instruction gives."""

import numpy as np
import pytest

from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.toolkit import cuda, types
from tests.cuda.emulator import UnknownInstruction
from tests.cuda.snippets import bits, evaluate, run

F32, F64, U16, U32, S32, U64, S64 = np.float32, np.float64, np.uint16, np.uint32, np.int32, np.uint64, np.int64
NAN32 = 0x7FFFFFFF
EDGES = np.array([0, -0.0, 1, -1, 1.5, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3.4e38, 1 + 2**-23], F32)


def test_kernel_by_the_way_of_the_package(device):
    pointer = types.CPointer(types.float32)

    def double(x, y, n):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            y[i] = x[i] + x[i]

    x = device.array(np.arange(1003, dtype=np.float32), writable=False)
    y = device.empty((1003,), np.float32)
    Kernel(double, (pointer, pointer, types.int64), 256).launch(0, 0, (3, 1, 1), x.host.ctypes.data, y.host.ctypes.data, 1003)
    np.testing.assert_array_equal(y.host, 2 * x.host)
    assert device.launches[-1].instructions["add.f32"] == 1003


def test_fma_has_one_rounding():
    # The product's last bit decides, and lies beyond what float64 holds of the sum.
    a = np.array([1 + 2**-12, 1 + 2**-23, 1 + 2**-23], F32)
    b = np.array([1 + 2**-12, 1 - 2**-23, 1 + 2**-23], F32)
    c = np.array([-(1 + 2**-11), 2**-60, 2**-80], F32)
    got = evaluate("fma.rn.f32 %f3, %f0, %f1, %f2;", a, b, c, out=F32)
    np.testing.assert_array_equal(got, np.array([2**-24, 1, 1 + 2**-22], F32))
    a, b = np.array([1 + 2**-52], F64), np.array([1 - 2**-52], F64)
    got = evaluate("fma.rn.f64 %d3, %d0, %d1, %d2;", a, b, np.array([-1.0]), out=F64)
    np.testing.assert_array_equal(got, [-(2.0**-104)])


def test_fma_of_ties_beyond_float64():
    # a * b is half a unit in the last place of c, and the rest of the product would be lost in a float64 sum.
    a, b = np.array([1 + 2**-23] * 2, F32), np.array([2**-24, 2**-24], F32)
    c = np.array([1, -1], F32)
    got = evaluate("fma.rn.f32 %f3, %f0, %f1, %f2;", a, b, c, out=F32)
    np.testing.assert_array_equal(got, np.array([1 + 2**-23, -1 + 2**-24], F32))


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("add.rn.f32", np.add),
        ("sub.rn.f32", np.subtract),
        ("mul.rn.f32", np.multiply),
        ("div.rn.f32", np.divide),
    ],
)
def test_float32_results_keep_subnormals_and_have_one_nan(text, function):
    a, b = (x.ravel() for x in np.meshgrid(EDGES, EDGES))
    with np.errstate(all="ignore"):
        expected = function(a, b)
    expected.view(U32)[np.isnan(expected)] = NAN32
    got = evaluate(f"{text} %f3, %f0, %f1;", a, b, out=F32)
    np.testing.assert_array_equal(bits(got), bits(expected))


def test_moves_and_selections_keep_the_payload_of_nan():
    nan = np.array([0x7FC01234, 0xFF800001], U32).view(F32)
    got = evaluate("setp.eq.f32 %p0, %f0, %f0; selp.f32 %f3, 0f3F800000, %f0, %p0;", nan, out=F32)
    np.testing.assert_array_equal(bits(got), bits(nan))
    got = evaluate("neg.f32 %f3, %f0;", nan, out=F32)
    np.testing.assert_array_equal(bits(got), bits(nan) ^ U32(1 << 31))


def test_minimum_and_maximum_of_nan_and_zeros():
    a = np.array([np.nan, 1, -0.0, 0.0, np.nan], F32)
    b = np.array([1, np.nan, 0.0, -0.0, np.nan], F32)
    np.testing.assert_array_equal(
        bits(evaluate("max.f32 %f3, %f0, %f1;", a, b, out=F32)), [0x3F800000, 0x3F800000, 0, 0, NAN32]
    )
    low = bits(evaluate("min.f32 %f3, %f0, %f1;", a, b, out=F32))
    np.testing.assert_array_equal(low, [0x3F800000, 0x3F800000, 1 << 31, 1 << 31, NAN32])
    kept = bits(evaluate("max.NaN.f32 %f3, %f0, %f1;", a, b, out=F32))
    np.testing.assert_array_equal(kept, [NAN32, NAN32, 0, 0, NAN32])


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"])
def test_comparisons_of_floats(name):
    a, b = (x.ravel() for x in np.meshgrid(EDGES, EDGES))
    unordered = np.isnan(a) | np.isnan(b)
    if name in ("num", "nan"):
        expected = unordered == (name == "nan")
    else:
        plain = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[name[:2]]
        expected = np.where(unordered, name.endswith("u"), plain)
    got = evaluate(f"setp.{name}.f32 %p0, %f0, %f1; selp.u32 %r3, 1, 0, %p0;", a, b, out=U32)
    np.testing.assert_array_equal(got, expected)


def test_comparison_with_two_results_and_a_third_operand():
    a, b = np.array([1, 2, 3], S32), np.array([2, 2, 2], S32)
    text = (
        "setp.ne.s32 %p2, %r0, 3; setp.le.and.s32 %p0|%p1, %r0, %r1, THIRD; selp.u32 %r3, 1, 0, %p0; @%p1 add.u32 %r3, %r3, 2;"
    )
    np.testing.assert_array_equal(evaluate(text.replace("THIRD", "%p2"), a, b, out=U32), [1, 1, 0])
    np.testing.assert_array_equal(evaluate(text.replace("THIRD", "!%p2"), a, b, out=U32), [0, 0, 2])


@pytest.mark.parametrize(
    ("text", "a", "b", "expected"),
    [
        ("add.s32 %r3, %r0, %r1;", 2**31 - 1, 1, -(2**31)),
        ("mul.lo.s32 %r3, %r0, %r1;", 1 << 20, 1 << 20, 0),
        ("mul.hi.s32 %r3, %r0, %r1;", -1, 1 << 20, -1),
        ("mul.hi.u32 %r3, %r0, %r1;", -1, -1, -2),
        ("div.s32 %r3, %r0, %r1;", -7, 2, -3),
        ("rem.s32 %r3, %r0, %r1;", -7, 2, -1),
        ("div.u32 %r3, %r0, %r1;", -1, 2, 2**31 - 1),
        ("shl.b32 %r3, %r0, %r1;", 1, 32, 0),
        ("shl.b32 %r3, %r0, %r1;", 1, 31, -(2**31)),
        ("shr.s32 %r3, %r0, %r1;", -8, 40, -1),
        ("shr.u32 %r3, %r0, %r1;", -8, 40, 0),
        ("and.b32 %r3, %r0, %r1;", 12, 10, 8),
        ("xor.b32 %r3, %r0, %r1;", 12, 10, 6),
        ("min.s32 %r3, %r0, %r1;", -1, 1, -1),
        ("min.u32 %r3, %r0, %r1;", -1, 1, 1),
        ("not.b32 %r3, %r0;", 0, 0, -1),
        ("abs.s32 %r3, %r0;", -5, 0, 5),
        ("popc.b32 %r3, %r0;", 0xFF, 0, 8),
        ("clz.b32 %r3, %r0;", 1, 0, 31),
        ("clz.b32 %r3, %r0;", 0, 0, 32),
        ("brev.b32 %r3, %r0;", 1, 0, -(2**31)),
        ("bfe.u32 %r3, %r0, 4, 8;", 0xABCD, 0, 0xBC),
        ("bfe.s32 %r3, %r0, 4, 8;", 0xABCD, 0, 0xBC - 256),
        ("bfi.b32 %r3, %r1, %r0, 4, 8;", 0, 0x1FF, 0xFF0),
        ("shf.l.wrap.b32 %r3, %r0, %r1, 8;", 0x12345678, 1, 0x112),
        ("shf.r.clamp.b32 %r3, %r0, %r1, 40;", 0x12345678, 7, 7),
        ("prmt.b32 %r3, %r0, %r1, 0x5410;", 0x11112222, 0x33334444, 0x44442222),
        ("lop3.b32 %r3, %r0, %r1, 255, 0x80;", 0x0F0F, 0x00FF, 0x0F),
        ("mad.lo.s32 %r3, %r0, %r1, -1;", 3, 5, 14),
    ],
)
def test_integers(text, a, b, expected):
    got = evaluate(text, np.array([a & 0xFFFFFFFF], U32), np.array([b & 0xFFFFFFFF], U32), out=S32)
    assert got[0] == expected


def test_integers_of_64_bits():
    a, b = np.array([-(2**62), 2**63 - 1, -3], S64), np.array([5, 2**63 - 1, -7], S64)
    high = [(int(x) * int(y)) >> 64 for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(evaluate("mul.hi.s64 %rd13, %rd10, %rd11;", a, b, out=S64), high)
    np.testing.assert_array_equal(evaluate("mul.lo.s64 %rd13, %rd10, %rd11;", a, b, out=S64), a * b)
    c = np.array([-5, 7], S32)
    np.testing.assert_array_equal(evaluate("mul.wide.s32 %rd13, %r0, %r0;", c, out=S64), [25, 49])
    np.testing.assert_array_equal(evaluate("cvt.s64.s32 %rd13, %r0;", c, out=S64), [-5, 7])
    np.testing.assert_array_equal(
        evaluate("mov.b64 {%r3, %r4}, %rd10; mov.b64 %rd13, {%r4, %r3};", a, out=U64),
        np.roll(a.view(U32).reshape(-1, 2), 1, 1).copy().view(U64)[:, 0],
    )


def test_conversions_of_floats():
    values = np.array(
        [1 + 2**-11, 1 + 3 * 2**-11, 65519, 65520, 2**-25, -(2**-24), np.nan, np.inf, 1 + 2**-8, 1 + 3 * 2**-8], F32
    )
    import ml_dtypes

    with np.errstate(all="ignore"):
        half, brain = bits(values.astype(np.float16)), bits(values.astype(ml_dtypes.bfloat16))
    half[6] = brain[6] = 0x7FFF
    np.testing.assert_array_equal(evaluate("cvt.rn.f16.f32 %h3, %f0;", values, out=U16), half)
    np.testing.assert_array_equal(evaluate("cvt.rn.bf16.f32 %h3, %f0;", values, out=U16), brain)
    back = evaluate("cvt.rn.f16.f32 %h3, %f0; cvt.f32.f16 %f3, %h3;", values, out=F32)
    np.testing.assert_array_equal(back, half.view(np.float16).astype(F32))
    both = evaluate("cvt.rn.bf16x2.f32 %r3, %f0, 0f3F800000;", values, out=U32)
    np.testing.assert_array_equal(both, brain.astype(U32) << U32(16) | U32(0x3F80))
    whole = evaluate("cvt.rzi.s32.f32 %r3, %f0;", np.array([-1.9, 1.9, np.nan, 1e10, -1e10], F32), out=S32)
    np.testing.assert_array_equal(whole, [-1, 1, 0, 2**31 - 1, -(2**31)])


def test_conversion_to_tf32_ties_away_from_zero():
    values = np.array([1 + 2**-11, -(1 + 2**-11), 1 + 2**-11 - 2**-23, np.inf, np.nan], F32)
    got = evaluate("cvt.rna.tf32.f32 %r3, %f0;", values, out=U32).view(F32)
    np.testing.assert_array_equal(got, np.array([1 + 2**-10, -(1 + 2**-10), 1, np.inf, np.nan], F32))


def test_shuffles():
    lane = np.arange(32, dtype=U32)
    got = evaluate("shfl.sync.down.b32 %r3|%p0, %r0, 4, 31, -1; @!%p0 mov.u32 %r3, 99;", lane, out=U32)
    np.testing.assert_array_equal(got, np.where(lane < 28, lane + 4, 99))
    np.testing.assert_array_equal(evaluate("shfl.sync.bfly.b32 %r3, %r0, 5, 31, -1;", lane, out=U32), lane ^ 5)
    got = evaluate("shfl.sync.up.b32 %r3, %r0, 1, 0x1800, -1;", lane, out=U32)  # within quarters of a warp
    np.testing.assert_array_equal(got, np.where(lane % 8, lane - 1, lane))
    np.testing.assert_array_equal(evaluate("shfl.sync.idx.b32 %r3, %r0, 7, 31, -1;", lane, out=U32), np.full(32, 7))


def test_votes():
    lane = np.arange(32, dtype=U32)
    got = evaluate("setp.lt.u32 %p0, %r0, 3; vote.sync.ballot.b32 %r3, %p0, -1;", lane, out=U32)
    np.testing.assert_array_equal(got, np.full(32, 7))
    got = evaluate("setp.lt.u32 %p0, %r0, 3; vote.sync.any.pred %p1, %p0, -1; selp.u32 %r3, 1, 0, %p1;", lane, out=U32)
    np.testing.assert_array_equal(got, np.ones(32))


def test_loop_with_another_number_of_rounds_for_each_thread():
    lane = np.arange(64, dtype=U32)
    text = """
        mov.u32 %r3, 0;
        mov.u32 %r4, 0;
    again:
        setp.ge.u32 %p0, %r4, %r0;
        @%p0 bra done;
        add.u32 %r3, %r3, %r4;
        add.u32 %r4, %r4, 1;
        bra.uni again;
    done:
    """
    np.testing.assert_array_equal(evaluate(text, lane, out=U32), lane * (lane - 1) // 2)


def test_threads_of_a_block_that_is_no_whole_warp():
    x = np.arange(45, dtype=U32)
    np.testing.assert_array_equal(evaluate("add.u32 %r3, %r0, 1;", x, out=U32), x + 1)


def test_atomic_addition_returns_what_was_there():
    counter, order = np.zeros(1, U32), np.full(64, 99, U32)
    run(
        "atom.global.add.u32 %r1, [%rd0], 1; mul.wide.u32 %rd8, %tid.x, 4;add.s64 %rd9, %rd1, %rd8; st.global.u32 [%rd9], %r1;",
        counter,
        order,
        threads=64,
    )
    assert counter[0] == 64
    np.testing.assert_array_equal(order, np.arange(64))


def test_accesses_of_all_widths():
    x = np.arange(64, dtype=np.uint8)
    for width, kind in ((1, "u8"), (2, "u16"), (4, "u32"), (8, "u64")):
        out = np.zeros(1, U64)
        register = {1: "%h0", 2: "%h0", 4: "%r0", 8: "%rd9"}[width]
        widen = {1: "cvt.u64.u16 %rd9, %h0;", 2: "cvt.u64.u16 %rd9, %h0;", 4: "cvt.u64.u32 %rd9, %r0;", 8: ""}[width]
        run(f"ld.global.{kind} {register}, [%rd0+8]; {widen} st.global.u64 [%rd1], %rd9;", x, out, threads=1)
        assert out[0] == int.from_bytes(bytes(range(8, 8 + width)), "little")
    run("ld.global.nc.v2.u64 {%rd8, %rd9}, [%rd0+16]; st.global.v2.b64 [%rd0], {%rd9, %rd8};", x, threads=1)
    np.testing.assert_array_equal(x[:16], [*range(24, 32), *range(16, 24)])


def test_sign_of_short_loads():
    x, out = np.array([-2], np.int8), np.zeros(1, S32)
    run("ld.global.s8 %r0, [%rd0]; st.global.u32 [%rd1], %r0;", x, out, threads=1)
    assert out[0] == -2


@pytest.mark.parametrize(
    "text",
    [
        "ex2.approx.f32 %f0, %f1;",
        "fma.rn.ftz.f32 %f0, %f1, %f1, %f1;",
        "add.rz.f32 %f0, %f1, %f1;",
        "frobnicate.b32 %r0, %r1;",
        "mov.u32 %r0, %nonsense;",
        "bar.sync 0, 64;",
    ],
)
def test_unknown_instruction_is_an_error(text):
    with pytest.raises(UnknownInstruction):
        run(text)
