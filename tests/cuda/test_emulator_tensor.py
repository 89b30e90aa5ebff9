"""The emulator's tensor cores, against the layouts of fragments and tiles as the PTX manual gives them for each element."""

import ml_dtypes
import numpy as np
import pytest

from tests.cuda.emulator import EmulationError, Race
from tests.cuda.snippets import run

KINDS = {"tf32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
WORDS = "mov.u32 %r39, %tid.x;"


def integers(shape, dtype, seed=0):
    """Whole numbers, with which nothing is rounded."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


def loads(array, register, count):
    """Statements that load ``count`` words of this thread from an array of rows of words."""
    lines = [f"mad.wide.u32 %rd30, %r39, {4 * count}, %rd{array};"]
    lines += [f"ld.global.u32 %{register}{i}, [%rd30+{4 * i}];" for i in range(count)]
    return "\n".join(lines)


def stores(array, register, count):
    """The same for storing."""
    lines = [f"mad.wide.u32 %rd30, %r39, {4 * count}, %rd{array};"]
    return "\n".join(lines + [f"st.global.f32 [%rd30+{4 * i}], %{register}{i};" for i in range(count)])


def manual(kind, depth):
    """Rows and columns of a thread's elements of a (16 x k), b (k x 8) and c (16 x 8)."""
    group, thread = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4
    if kind == "tf32":
        i = np.arange(depth // 2)
        a = group + 8 * (i % 2), thread + 4 * (i // 2)
        i = np.arange(depth // 4)
        b = thread + 4 * i, group + 0 * i
    else:
        i = np.arange(depth // 2)
        a = group + 8 * (i // 2 % 2), 2 * thread + i % 2 + 8 * (i // 4)
        i = np.arange(depth // 4)
        b = 2 * thread + i % 2 + 8 * (i // 2), group + 0 * i
    i = np.arange(4)
    return a, b, (group + 8 * (i // 2), 2 * thread + i % 2)


@pytest.mark.parametrize(("kind", "depth"), [("tf32", 4), ("tf32", 8), ("f16", 8), ("f16", 16), ("bf16", 8), ("bf16", 16)])
def test_mma(kind, depth):
    a, b, c = integers((16, depth), KINDS[kind]), integers((depth, 8), KINDS[kind], 1), integers((16, 8), np.float32, 2)
    at_a, at_b, at_c = manual(kind, depth)
    fragments = [np.ascontiguousarray(x[at]).view(np.uint32) for x, at in ((a, at_a), (b, at_b), (c, at_c))]
    na, nb = fragments[0].shape[1], fragments[1].shape[1]
    out = np.zeros((32, 4), np.float32)
    ranges = ("f", range(4)), ("r", range(na)), ("r", range(10, 10 + nb))
    c_registers, a_registers, b_registers = ("{" + ", ".join(f"%{name}{i}" for i in some) + "}" for name, some in ranges)
    shape = f"m16n8k{depth}.row.col.f32.{kind}.{kind}.f32"
    text = f"""
        {WORDS}
        {loads(0, "r", na)}
        {loads(1, "r1", nb)}
        {loads(2, "f", 4).replace(".u32 %f", ".f32 %f")}
        mma.sync.aligned.{shape} {c_registers}, {a_registers}, {b_registers}, {c_registers};
        {stores(3, "f", 4)}
    """
    run(text, *fragments, out)
    expected = a.astype(np.float64) @ b.astype(np.float64) + c
    np.testing.assert_array_equal(out, expected[at_c])


def test_mma_takes_10_bits_of_tf32_and_cuts_the_sum():
    a, b, c = np.zeros((32, 4), np.float32), np.zeros((32, 2), np.float32), np.zeros((32, 4), np.float32)
    a[0, 0], b[0, 0] = 1 + 2**-11, 1  # the last bit is beyond the ten
    a[1, 0], b[1, 0] = 2**-24, 2**-1  # c = 1 and 2**-25 more
    c[0, 0] = 1
    out = np.zeros((32, 4), np.float32)
    text = f"""{WORDS} {loads(0, "r", 4)} {loads(1, "r1", 2)} {loads(2, "f", 4).replace(".u32 %f", ".f32 %f")}
        mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
            {{%f0, %f1, %f2, %f3}}, {{%r0, %r1, %r2, %r3}}, {{%r10, %r11}}, {{%f0, %f1, %f2, %f3}};
        {stores(3, "f", 4)}"""
    run(text, a.view(np.uint32), b.view(np.uint32), c, out)
    assert out[0, 0] == 2
    c[0, 0] = -1
    a[0, 0] = 0
    run(text, a.view(np.uint32), b.view(np.uint32), c, out)
    assert out[0, 0] == np.float32(-1) + np.float32(2**-24)


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, trans):
    matrices = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    out = np.zeros((32, count), np.uint32)
    registers = ", ".join(f"%r{i}" for i in range(count))
    text = f"""
        {WORDS}
        mov.u32 %r31, room;
        mad.lo.u32 %r31, %r39, 16, %r31;
        mad.wide.u32 %rd30, %r39, 16, %rd0;
        setp.lt.u32 %p0, %r39, {8 * count};
        @%p0 ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%rd30];
        @%p0 st.shared.v4.u32 [%r31], {{%r1, %r2, %r3, %r4}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{count}{".trans" if trans else ""}.shared.b16 {{{registers}}}, [%r31];
        {stores(1, "r", count).replace("f32", "u32")}
    """
    room = np.zeros(count * 64 + 8, np.uint16)
    aligned = room[-room.ctypes.data % 16 // 2 :][: count * 64]
    aligned[:] = matrices.ravel()
    run(text, aligned, out, variables=".shared .align 16 .b8 room[512];")
    lane, i = np.arange(32)[:, None, None], np.arange(2)
    row, column = lane // 4, 2 * (lane % 4) + i
    which = np.arange(count)[:, None]
    expected = matrices[which, column, row] if trans else matrices[which, row, column]
    np.testing.assert_array_equal(out.view(np.uint16).reshape(32, count, 2), expected)


def swizzled(matrix, width):
    """The bytes of a tile in shared memory: rows of ``width`` bytes, whose 16-byte parts are exchanged."""
    rows = np.ascontiguousarray(matrix).view(np.uint8)
    room = np.zeros(rows.shape[0] * width, np.uint8)
    row, byte = np.divmod(np.arange(rows.size), rows.shape[1])
    address = row * width + byte
    room[address ^ ((address >> 7 & (width // 16 - 1)) << 4)] = rows.ravel()
    return room


def product(kind, width, columns=16, wait="wgmma.wait_group.sync.aligned 0;", fence="fence.proxy.async.shared::cta;", after=""):
    """One wgmma of m64 by a number of columns; returns what came and what should."""
    dtype = KINDS[kind]
    depth = 32 // np.dtype(dtype).itemsize
    a, b = integers((64, depth), dtype), integers((columns, depth), dtype, 1)
    tiles = np.concatenate([swizzled(a, width), swizzled(b, width)])
    room = np.zeros(len(tiles) + 16, np.uint8)
    source = room[-room.ctypes.data % 16 :][: len(tiles)]
    source[:] = tiles
    out = np.zeros((128, columns // 2), np.float32)
    mode, stride = {128: 1, 64: 2, 32: 3}[width], 8 * width
    high = (mode << 62) | (stride >> 4 << 32) | (1 << 16)
    registers = ", ".join(f"%f{i}" for i in range(columns // 2))
    options = "p, 1, 1" if kind == "tf32" else "p, 1, 1, 0, 0"
    text = f"""
        {WORDS}
        mov.u32 %r30, room;
        mov.u32 %r31, %r39;
    again:
        setp.ge.u32 %p0, %r31, {len(tiles) // 16};
        @%p0 bra done;
        mul.wide.u32 %rd30, %r31, 16;
        add.s64 %rd30, %rd0, %rd30;
        ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%rd30];
        shl.b32 %r32, %r31, 4;
        add.u32 %r32, %r32, %r30;
        st.shared.v4.u32 [%r32], {{%r0, %r1, %r2, %r3}};
        add.u32 %r31, %r31, 128;
        bra.uni again;
    done:
        {fence}
        bar.sync 0;
        shr.u32 %r33, %r30, 4;
        cvt.u64.u32 %rd31, %r33;
        or.b64 %rd31, %rd31, {high};
        add.s64 %rd32, %rd31, {64 * width // 16};
        wgmma.fence.sync.aligned;
        {{ .reg .pred p; setp.ne.b32 p, 0, 0;
        wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{kind}.{kind} {{{registers}}}, %rd31, %rd32, {options}; }}
        {{ .reg .pred p; setp.ne.b32 p, 1, 0;
        wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{kind}.{kind} {{{registers}}}, %rd31, %rd32, {options}; }}
        wgmma.commit_group.sync.aligned;
        {wait}
        {after}
        {stores(1, "f", columns // 2)}
    """
    run(text, source, out, threads=128, variables=f".shared .align 1024 .b8 room[{len(tiles)}];")
    thread, i = np.arange(128)[:, None], np.arange(columns // 2)
    rows = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
    places = 8 * (i // 4) + 2 * (thread % 4) + i % 2
    return out, 2 * (a.astype(np.float64) @ b.astype(np.float64).T)[rows, places]


@pytest.mark.parametrize("width", [128, 64, 32])
@pytest.mark.parametrize("kind", ["tf32", "bf16", "f16"])
def test_wgmma(kind, width):
    np.testing.assert_array_equal(*product(kind, width))


def test_wgmma_of_what_was_not_fenced():
    with pytest.raises(Race, match="has not fenced"):
        product("tf32", 128, fence="")


def test_accumulators_that_nobody_waited_for():
    out, _ = product("tf32", 128, wait="wgmma.wait_group.sync.aligned 1;")
    assert np.isnan(out).all()


def test_write_to_a_tile_that_is_still_read():
    write = "st.shared.u32 [room], %r0;"
    first = f"setp.eq.u32 %p1, %r39, 0; bar.sync 0; @%p1 {write}"
    np.testing.assert_array_equal(*product("tf32", 128, after=first))
    with pytest.raises(Race, match="nobody waited"):
        product("tf32", 128, after=first, wait="")


def test_wgmma_needs_whole_warpgroups():
    with pytest.raises(EmulationError, match="warpgroup"):
        run("wgmma.fence.sync.aligned;", threads=64)
