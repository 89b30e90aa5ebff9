"""What is wrong in a kernel is found: each test takes a right one and breaks it."""

import numpy as np
import pytest

from tests.cuda.emulator import Deadlock, Diverged, EmulationError, Misaligned, OutOfBounds, Race
from tests.cuda.snippets import run

SHARED = ".shared .align 16 .b8 room[1024];"

# Each thread leaves its number for its neighbour, behind a barrier.
NEIGHBOUR = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, room;
    shl.b32 %r2, %r0, 2;
    add.u32 %r3, %r1, %r2;
    st.shared.u32 [%r3], %r0;
    BARRIER
    xor.b32 %r4, %r2, 4;
    add.u32 %r4, %r1, %r4;
    ld.shared.u32 %r5, [%r4];
    mul.wide.u32 %rd9, %r0, 4;
    add.s64 %rd9, %rd0, %rd9;
    st.global.u32 [%rd9], %r5;
"""

# Two stages of copies: the second is under way while the first is read.
COPIES = """
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, room;
    shl.b32 %r2, %r0, 2;
    add.u32 %r3, %r1, %r2;
    mul.wide.u32 %rd9, %r0, 4;
    add.s64 %rd8, %rd0, %rd9;
    cp.async.ca.shared.global [%r3], [%rd8], 4;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r3+512], [%rd8], 4;
    cp.async.commit_group;
    WAIT
    BARRIER
    xor.b32 %r4, %r2, 4;
    add.u32 %r4, %r1, %r4;
    ld.shared.u32 %r5, [%r4];
    add.s64 %rd9, %rd1, %rd9;
    st.global.u32 [%rd9], %r5;
"""


def neighbours(barrier, threads=64):
    out = np.zeros(threads, np.uint32)
    run(NEIGHBOUR.replace("BARRIER", barrier), out, threads=threads, variables=SHARED)
    np.testing.assert_array_equal(out, np.arange(threads) ^ 1)


def test_barrier_of_the_block():
    neighbours("bar.sync 0;")


def test_barrier_of_the_warp_is_enough_within_a_warp():
    neighbours("bar.warp.sync -1;")


def test_missing_barrier():
    with pytest.raises(Race, match="thread 0 would read shared byte 4, which thread 1 has written"):
        neighbours("")


def test_barrier_of_the_warp_is_not_enough_between_warps():
    text = NEIGHBOUR.replace("xor.b32 %r4, %r2, 4", "xor.b32 %r4, %r2, 128").replace("BARRIER", "bar.warp.sync -1;")
    with pytest.raises(Race):
        run(text, np.zeros(64, np.uint32), threads=64, variables=SHARED)


def test_write_after_a_neighbour_has_read():
    text = NEIGHBOUR.replace("BARRIER", "bar.sync 0;") + "BARRIER st.shared.u32 [%r3], %r5;"
    run(text.replace("BARRIER", "bar.sync 0;"), np.zeros(64, np.uint32), threads=64, variables=SHARED)
    with pytest.raises(Race, match="has read"):
        run(text.replace("BARRIER", ""), np.zeros(64, np.uint32), threads=64, variables=SHARED)


def test_two_threads_write_one_place():
    with pytest.raises(Race, match="thread 1 would write"):
        run("mov.u32 %r1, room; st.shared.u32 [%r1], %r1;", variables=SHARED)


def test_many_readers_then_a_writer():
    text = "mov.u32 %r0, %tid.x; setp.eq.u32 %p0, %r0, 0; ld.shared.u32 %r1, [room]; BARRIER @%p0 st.shared.u32 [room], %r0;"
    run(text.replace("BARRIER", "bar.warp.sync -1;"), variables=SHARED)
    for threads, barrier in ((32, ""), (64, "bar.warp.sync -1;")):
        with pytest.raises(Race, match=r"(several threads|thread \d+) has read"):
            run(text.replace("BARRIER", barrier), variables=SHARED, threads=threads)


def copies(wait, barrier="bar.sync 0;"):
    x, out = np.arange(100, 164, dtype=np.uint32), np.zeros(64, np.uint32)
    run(COPIES.replace("WAIT", wait).replace("BARRIER", barrier), x, out, threads=64, variables=SHARED)
    np.testing.assert_array_equal(out, x[np.arange(64) ^ 1])


@pytest.mark.parametrize("wait", ["cp.async.wait_group 1;", "cp.async.wait_group 0;", "cp.async.wait_all;"])
def test_copies_that_are_waited_for(wait):
    copies(wait)


@pytest.mark.parametrize(
    ("wait", "barrier"), [("cp.async.wait_group 2;", "bar.sync 0;"), ("", "bar.sync 0;"), ("cp.async.wait_group 1;", "")]
)
def test_copies_that_are_not_waited_for(wait, barrier):
    with pytest.raises(Race):
        copies(wait, barrier)


def test_copy_into_what_others_still_read():
    text = (
        COPIES.replace("WAIT", "cp.async.wait_all;").replace("BARRIER", "bar.sync 0;")
        + "BARRIER cp.async.ca.shared.global [%r3], [%rd8], 4;"
    )
    x, out = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    run(text.replace("BARRIER", "bar.sync 0;"), x, out, threads=64, variables=SHARED)
    with pytest.raises(Race, match="has read"):
        run(text.replace("BARRIER", ""), x, out, threads=64, variables=SHARED)


def test_copy_of_fewer_bytes_fills_up_with_zeros_and_reads_no_more():
    x, out = np.array([7], np.uint32), np.full(4, 9, np.uint32)
    text = """
        cp.async.cg.shared.global [room], [%rd0], 16, SIZE;
        cp.async.wait_all;
        ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [room];
        st.global.v4.u32 [%rd1], {%r1, %r2, %r3, %r4};
    """
    room = np.zeros(8, np.uint32)
    x = room[-room.ctypes.data // 4 % 4 :][:1]
    out = np.zeros(8, np.uint32)
    out = out[-out.ctypes.data // 4 % 4 :][:4]
    x[0] = 7
    for size, expected in (("4", [7, 0, 0, 0]), ("0", [0, 0, 0, 0])):
        run(text.replace("SIZE", size), x, out, threads=1, variables=SHARED)
        np.testing.assert_array_equal(out, expected)
    with pytest.raises(OutOfBounds):
        run(text.replace("SIZE", "8"), x, out, threads=1, variables=SHARED)


@pytest.mark.parametrize("offset", [-4, 16, 1 << 20])
def test_global_access_out_of_bounds(offset):
    x = np.zeros(4, np.uint32)
    with pytest.raises(OutOfBounds, match=r"bytes (before|behind) array"):
        run(f"ld.global.u32 %r0, [%rd0+{offset}];", x, threads=1)


def test_global_access_half_out_of_bounds():
    room = np.zeros(8, np.uint64)
    x = room[room.ctypes.data // 8 % 2 :][:3]
    with pytest.raises(OutOfBounds):
        run("ld.global.v2.u64 {%rd8, %rd9}, [%rd0+16];", x, threads=1)


def test_write_to_what_is_only_read():
    from tests.cuda.emulator import GlobalMemory, execute
    from tests.cuda.snippets import program

    x, memory = np.zeros(4, np.uint32), GlobalMemory()
    memory.register(x, writable=False)
    execute(program("ld.global.u32 %r0, [%rd0];", 1), (1, 1, 1), (1, 1, 1), (x.ctypes.data,), memory)
    with pytest.raises(OutOfBounds, match="write"):
        execute(program("st.global.u32 [%rd0], 0;", 1), (1, 1, 1), (1, 1, 1), (x.ctypes.data,), memory)


@pytest.mark.parametrize("text", ["ld.global.u64 %rd9, [%rd0+4];", "st.global.v4.f32 [%rd0+8], {%f0, %f0, %f0, %f0};"])
def test_misaligned_global_access(text):
    room = np.zeros(16, np.uint32)
    x = room[-room.ctypes.data // 4 % 4 :][:12]
    with pytest.raises(Misaligned):
        run(text, x, threads=1)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("st.shared.u32 [room+1024], 0;", OutOfBounds),
        ("ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [room+1012];", Misaligned),
        ("mov.u32 %r0, 0; ld.shared.u32 %r1, [%r0];", OutOfBounds),
        ("st.shared.u64 [room+4], %rd9;", Misaligned),
    ],
)
def test_shared_access(text, error):
    with pytest.raises(error):
        run(text, threads=1, variables=SHARED)


def test_shared_memory_is_not_zero_at_first():
    out = np.zeros(1, np.uint32)
    run("ld.shared.u32 %r0, [room]; st.global.u32 [%rd0], %r0;", out, threads=1, variables=SHARED)
    assert np.isnan(out.view(np.float32)[0])


def test_barrier_that_some_threads_never_reach():
    branch = "mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 32; @%p0 bra around; bar.sync 0; around:"
    with pytest.raises((Diverged, Deadlock)):
        run(branch, threads=64)
    run(branch.replace("%r0, 32", "%r0, 0"), threads=64)


def test_threads_of_a_warp_at_two_barriers():
    text = "mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 7; @%p0 bra other; bar.sync 0; bra.uni done; other: bar.sync 0; done:"
    with pytest.raises(Diverged):
        run(text)


def test_shuffle_that_some_threads_of_a_warp_do_not_reach():
    text = "mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 7; @%p0 shfl.sync.idx.b32 %r1, %r0, 0, 31, -1;"
    with pytest.raises(Diverged):
        run(text)


def test_division_by_zero():
    with pytest.raises(EmulationError, match="divided by 0"):
        run("mov.u32 %r0, 0; div.u32 %r1, %r0, %r0;")


def test_fault_names_instruction_and_kernel():
    with pytest.raises(
        OutOfBounds, match=r"at instruction 1: ld.global.u32 %r0, \[%rd0\+64\]\n  kernel snippet, blocks 0 to 0"
    ):
        run("ld.global.u32 %r0, [%rd0+64];", np.zeros(4, np.uint32), threads=1)


@pytest.mark.parametrize(("stride", "passes"), [(4, 1), (8, 2), (128, 32), (132, 1)])
def test_bank_conflicts(stride, passes):
    text = f"mov.u32 %r0, %tid.x; mad.lo.u32 %r1, %r0, {stride}, room; ld.shared.u32 %r2, [%r1];"
    text = text.replace(", room;", ", %r9;").replace("mov.u32 %r0", "mov.u32 %r9, room; mov.u32 %r0")
    counts = run(text, variables=".shared .align 16 .b8 room[8192];", measure=True)
    assert (counts.wavefronts["load"], counts.least_wavefronts["load"]) == (passes, 1)


@pytest.mark.parametrize(("stride", "sectors"), [(4, 4), (8, 8), (32, 32), (64, 32)])
def test_sectors(stride, sectors):
    room = np.zeros(1024, np.uint32)
    x = room[-room.ctypes.data // 4 % 8 :][:512]
    counts = run(
        f"mov.u32 %r0, %tid.x; mul.wide.u32 %rd8, %r0, {stride}; add.s64 %rd9, %rd0, %rd8; ld.global.u32 %r1, [%rd9];",
        x,
        measure=True,
    )
    assert (counts.sectors["load"], counts.requests["load"], counts.least_sectors["load"]) == (sectors, 1, 4)


def test_blocks_that_write_the_same_place():
    text = "mov.u32 %r0, %ctaid.x; st.global.u32 [%rd0], %r0;"
    run(text, np.zeros(1, np.uint32), threads=1)
    with pytest.raises(Race, match=r"thread 0 of block 1 would write at byte 0 of 4 .* which another thread has written"):
        run(text, np.zeros(1, np.uint32), threads=1, grid=2)


def test_block_that_reads_what_another_one_writes():
    text = """
        mov.u32 %r0, %ctaid.x;
        mul.wide.u32 %rd8, %r0, 4;
        add.s64 %rd9, %rd0, %rd8;
        st.global.u32 [%rd9], %r0;
        ld.global.u32 %r1, [%rd0+4];
    """
    with pytest.raises(Race, match="has written"):
        run(text, np.zeros(3, np.uint32), threads=1, grid=3)
    with pytest.raises(Race, match="has read"):
        run("ld.global.u32 %r1, [%rd0]; st.global.u32 [%rd0], %r1;", np.zeros(1, np.uint32), threads=1, grid=2)


def test_barrier_orders_global_memory_within_a_block():
    text = """
        mov.u32 %r0, %tid.x;
        mul.wide.u32 %rd8, %r0, 2;
        add.s64 %rd9, %rd0, %rd8;
        st.global.u16 [%rd9], %h0;
        BARRIER
        ld.global.u16 %h1, [%rd0+6];
        bar.sync 0;
        st.global.u16 [%rd9], %h1;
    """
    x = np.zeros(64, np.uint16)
    run(text.replace("BARRIER", "bar.sync 0;"), x, threads=64)
    with pytest.raises(Race):
        run(text.replace("BARRIER", ""), x, threads=64)


def test_constant_load_of_what_the_kernel_writes():
    text = "st.global.u32 [%rd0], 7; ld.global.nc.u32 %r0, [%rd0];"
    with pytest.raises(Race):
        run(text, np.zeros(1, np.uint32), threads=1)
    run(text.replace(".nc", ""), np.zeros(1, np.uint32), threads=1)
    run("ld.global.nc.u32 %r0, [%rd0]; st.global.u32 [%rd0], %r0;", np.zeros(1, np.uint32), threads=1)  # in place
