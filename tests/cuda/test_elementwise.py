"""The elementwise operations on a device: values, layouts, types and refusals as on the CPU."""

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu import ufuncs
from fastrelu.cuda import elementwise, plans
from fastrelu.cuda.elementwise import call
from fastrelu.cuda.kernels.elementwise import LANES, THREADS, Sweep, kernel
from fastrelu.cuda.kernels.places import divisor
from fastrelu.cuda.layout import broadcast_strides, shared_axes
from fastrelu.operations import OPERATIONS
from tests.cuda.machine_code import assemble
from tests.cuda.values import bits, dtype_of, operands, to_host

SELECTING = ("relu", "relu_derivative", "relu_backward")
# One kernel of each way to read, calculate and write; the formulas themselves are tested elsewhere. The rest runs at night.
BITS = [
    *[("float16", name) for name in ("relu", "relu_derivative", "elu", "tanh", "sigmoid_backward", "prelu")],
    *[("bfloat16", name) for name in ("relu_backward", "leaky_relu", "softplus", "elu_backward")],
    *[("float32", name) for name in ("relu", "relu_backward", "sigmoid", "prelu_alpha_gradient")],
    *[("float64", name) for name in ("relu", "tanh_backward")],
    *[("int8", "relu"), ("uint16", "relu_backward"), ("int64", "relu_derivative")],
]
ALL = [(dtype, name) for name, operation in OPERATIONS.items() for dtype in operation.dtypes if name != "prelu_backward"]


def data(name, dtype, size=3000):
    """Operands of an operation, the parameter as an array of its own type; of halves every bit pattern."""
    operation = OPERATIONS[name]
    arrays = operands(dtype, len(operation.inputs), size)
    if dtype in ("float16", "bfloat16"):
        every = np.arange(1 << 16, dtype=np.uint16).view(dtype_of(dtype))
        arrays = [every, *[np.random.default_rng(i).permutation(every) for i in range(1, len(arrays))]]
    if operation.parameter >= 0 and operation.arithmetic:
        its = np.linspace(-1.5, 2, len(arrays[0]))
        arrays[operation.parameter] = its.astype(dtype_of(operation.loop(dtype, 0).dtypes[operation.parameter]))
    if name == "softplus_backward":  # an output is never negative
        arrays[1] = np.abs(arrays[1])
    return arrays


def check(device, name, arrays, *numbers, out=None):
    """The call gives what the CPU gives for the same operands, in type, shape and bits."""
    wanted = np.asarray(getattr(ufuncs, name)(*arrays, *numbers))
    on_device = [device.array(a) for a in arrays]
    result = to_host(call(name, (*on_device, *numbers), out))
    assert result.dtype == wanted.dtype
    assert result.shape == wanted.shape
    any_nan = name not in SELECTING
    assert_array_equal(bits(result, any_nan=any_nan), bits(wanted, any_nan=any_nan))


@pytest.mark.parametrize(("dtype", "name"), BITS)
def test_bits(device, dtype, name):
    check(device, name, data(name, dtype))


@pytest.mark.nightly
@pytest.mark.parametrize(("dtype", "name"), [pair for pair in ALL if pair not in BITS])
def test_bits_of_all(device, dtype, name):
    check(device, name, data(name, dtype))


@pytest.mark.parametrize("alpha", [0.01, -2, 1e300, np.float32(0.3)])
def test_parameter_as_a_number(device, alpha):
    x = operands("float32", 1, 1000)[0]
    with np.errstate(all="ignore"):
        check(device, "leaky_relu", [x], alpha)
        check(device, "leaky_relu", [x.astype(np.float16)], alpha)


def test_data_as_a_number(device):
    y = np.array([-1, 0, 2], np.float32)
    result = to_host(call("relu_backward", (2.5, device.array(y))))
    assert_array_equal(result, ufuncs.relu_backward(2.5, y))


def test_numbers_alone_fill_a_result(device):
    y = device.empty((3, 5), np.float32)
    assert fastrelu.leaky_relu(-2, 0.5, out=y) is y
    assert_array_equal(y.host, np.full((3, 5), -1, np.float32))


def test_whole_numbers_keep_integers(device):
    check(device, "relu_derivative", [np.array([-3, 0, 5], np.int8)], 7)
    check(device, "relu_derivative", [np.array([-3, 0, 5], np.int8)], 0.5)


def inside(device, size, dtype, offset):
    """A view of `size` elements that begins `offset` elements after an address that is a multiple of 16, and what is around."""
    room = np.full(size + 48, 99, dtype)
    start = -room.ctypes.data % 16 // room.itemsize + 16 + offset
    whole = device.array(room)
    start = -whole.host.ctypes.data % 16 // room.itemsize + 16 + offset
    return whole, whole[start : start + size]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lengths_and_starts(device, dtype):
    rng = np.random.default_rng(1)
    for size, (first, second) in product([*range(41)], [(0, 0), (1, 1), (3, 3), (0, 1), (2, 3)]):
        values = rng.standard_normal(size).astype(dtype)
        _, x = inside(device, size, dtype, first)
        x.host[...] = values
        around, y = inside(device, size, dtype, second)
        assert call("relu", (x,), y) is y
        assert_array_equal(y.host, np.maximum(values, 0))
        y.host[...] = 99
        assert (around.host == 99).all()


def test_every_tile_of_a_grid_that_is_too_small(device, monkeypatch):
    monkeypatch.setattr(elementwise, "BLOCKS", 2)
    plans.clear()
    check(device, "relu", [operands("float32", 1, 5 * 4 * 4 * THREADS + 5)[0]])
    check(device, "relu", [operands("float32", 1, 6000)[0].reshape(3, 2000)[:, ::2]])
    plans.clear()


VIEWS = {
    "fortran": lambda a: np.asfortranarray(a),
    "transposed": lambda a: a.transpose(2, 0, 1),
    "every_second": lambda a: a[..., ::2],
    "rows_that_stay_aligned": lambda a: a[:, :, :4],
    "rows_that_begin_amid_16_bytes": lambda a: a[:, :, 1:5],
    "rows_of_two": lambda a: a[:, 1:, 2:4],
    "reversed": lambda a: a[::-1, :, ::-1],
    "one_row": lambda a: a[1:2, :, 1:2],
    "new_axes": lambda a: a[None, :, None, ::3],
    "repeated": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "swapped": lambda a: a.swapaxes(0, 1)[::-1, 1:],
}


def on_device(device, base, view):
    """A view of `base` as the same view of a device array."""
    if not np.shares_memory(base, view):
        return device.array(view)
    whole = device.array(base)
    place = view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    part = np.lib.stride_tricks.as_strided(
        np.frombuffer(whole.host.reshape(-1).view(np.uint8), view.dtype, 1, place) if view.size else view,
        view.shape,
        view.strides,
    )
    return type(whole)(device, part)


@pytest.mark.parametrize("view", VIEWS)
def test_layouts(device, view):
    base = operands("float32", 1, 1000)[0][:480].reshape(5, 6, 16)
    x = VIEWS[view](base)
    result = call("relu", (on_device(device, base, x),))
    wanted = fastrelu.relu(x)
    assert_array_equal(bits(to_host(result)), bits(wanted))
    if view != "repeated":  # NumPy gives it the order of the repeated axis
        assert to_host(result).strides == wanted.strides


@pytest.mark.parametrize("shape", [(), (1,), (16,), (6, 1), (6, 16), (5, 1, 1), (1, 6, 1), (5, 1, 16), (2, 5, 6, 16)])
def test_broadcasting(device, shape):
    x = operands("float32", 1, 1000)[0][:480].reshape(5, 6, 16)
    alpha = np.linspace(-1, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    check(device, "prelu", [x, alpha])
    check(device, "prelu", [alpha, x.transpose(0, 1, 2)])


def test_places_of_64_bits(device, monkeypatch):
    monkeypatch.setattr(elementwise, "NARROW", 1)
    plans.clear()
    x = operands("float32", 1, 1000)[0][:480].reshape(5, 6, 16)
    check(device, "prelu", [x, np.linspace(-1, 2, 6, dtype=np.float32)[:, None]])
    check(device, "relu", [x[::-1, :, ::3]])
    plans.clear()


@pytest.mark.parametrize("wide", [False, True])
def test_division_by_multiplication(wide):
    kept, rng = 63 if wide else 31, np.random.default_rng(3)
    lengths = [
        2,
        3,
        5,
        7,
        255,
        256,
        257,
        (1 << 16) - 1,
        (1 << kept) - 1,
        1 << (kept - 1),
        *rng.integers(2, 1 << kept, 50).tolist(),
    ]
    for length in lengths:
        multiplier, shift = divisor(length, wide)
        assert multiplier < 1 << (kept + 1)
        numbers = [
            0,
            length - 1,
            length,
            (1 << kept) - 1,
            (1 << kept) // length * length - 1,
            *rng.integers(0, 1 << kept, 50).tolist(),
        ]
        for number in numbers:
            assert (number * multiplier >> (kept + 1)) >> shift == number // length


def places(start, shape, strides):
    return [start + sum(i * step for i, step in zip(index, strides, strict=True)) for index in np.ndindex(*shape)]


def test_shared_axes_go_through_the_same_elements():
    rng = np.random.default_rng(0)
    for _ in range(300):
        shape = tuple(rng.integers(1, 4, rng.integers(0, 5)).tolist())
        arrays = []
        for _ in range(3):
            order = rng.permutation(len(shape))
            steps = np.zeros(len(shape), int)
            steps[order] = np.cumprod([4, *[shape[axis] for axis in order[:-1]]])[: len(shape)]
            steps *= rng.choice([-1, 1, 1, 0], len(shape))
            arrays.append(tuple(steps.tolist()))
        axes, starts = shared_axes(shape, arrays)
        lengths = tuple(axis.length for axis in axes)
        before = zip(*(places(0, shape, strides) for strides in arrays), strict=True)
        after = zip(*(places(start, lengths, [a.steps[k] for a in axes]) for k, start in enumerate(starts)), strict=True)
        assert sorted(before) == sorted(after)
        assert 1 not in lengths


def test_broadcast_strides():
    assert broadcast_strides((1, 3), (100, 8), (5, 4, 3)) == (0, 0, 8)
    assert broadcast_strides((), (), (2,)) == (0,)


@pytest.mark.parametrize(("target", "source"), [((0, 64), (0, 64)), ((1, 64), (0, 63)), ((0, 63), (1, 64)), ((0, 64), None)])
def test_result_over_an_operand(device, target, source):
    """The same elements, elements further back, elements further ahead, and the same reversed."""
    values = operands("float32", 1, 1000)[0][-64:]
    memory = device.array(values)
    x = memory[::-1] if source is None else memory[slice(*source)]
    wanted = np.maximum(x.host, 0)
    call("relu", (x,), memory[slice(*target)])
    assert_array_equal(memory.host[slice(*target)], wanted)


def test_result_backwards(device):
    x, y = operands("float32", 1, 1000)[0][:480].reshape(5, 6, 16), device.empty((5, 6, 16), np.float32)
    call("relu", (device.array(x),), y[::-1, :, ::-1])
    assert_array_equal(bits(y.host[::-1, :, ::-1]), bits(fastrelu.relu(x)))


def test_result_over_the_second_operand(device):
    dy, y = operands("float32", 2, 2000)
    memory = device.array(y)
    call("relu_backward", (device.array(dy), memory), memory)
    assert_array_equal(bits(memory.host), bits(ufuncs.relu_backward(dy, y)))


def test_result_over_an_operand_of_another_size(device):
    memory = device.array(np.arange(-8, 8, dtype=np.float32))
    x = type(memory)(device, memory.host.view(np.float16)[:8])
    wanted = np.maximum(x.host, 0).astype(np.float32)
    call("relu", (x,), memory[:8])
    assert_array_equal(memory.host[:8], wanted)


def test_result_larger_than_the_operands(device):
    x = np.array([-1, 2, 3], np.float32)
    y = device.empty((2, 3), np.float32)
    call("relu", (device.array(x),), y)
    assert_array_equal(y.host, [[0, 2, 3], [0, 2, 3]])


MIXTURES = [
    ("relu_backward", ("int8", "int16")),
    ("relu_backward", ("uint8", "int8")),
    ("relu_backward", ("float16", "float32")),
    ("relu_backward", ("int32", "float16")),
    ("leaky_relu", ("int8", "float32")),
    ("leaky_relu", ("uint16", "float16")),
    ("elu", ("int32", "int64")),
    ("prelu", ("bfloat16", "float32")),
    ("prelu", ("float16", "float64")),
    ("sigmoid_backward", ("bfloat16", "int8")),
]


@pytest.mark.parametrize(("name", "dtypes"), MIXTURES)
def test_mixed_types(device, name, dtypes):
    arrays = [operands(dtype, 1, 500)[0] for dtype in dtypes]
    with np.errstate(all="ignore"):
        wanted = np.asarray(getattr(ufuncs, name)(*arrays))
        result = to_host(call(name, tuple(map(device.array, arrays))))
    assert result.dtype == wanted.dtype
    assert_array_equal(bits(result, any_nan=True), bits(wanted, any_nan=True))


@pytest.mark.parametrize(
    ("dtype", "its"),
    [("float32", "float64"), ("float64", "float16"), ("float32", "bfloat16"), ("int64", "float32"), ("int32", "int16")],
)
def test_result_of_another_type(device, dtype, its):
    x = operands(dtype, 1, 500)[0]
    x[-1] = 1 + 2**-11 + 2**-30  # rounded twice on the way to float16 it would become 1
    y, wanted = device.empty(x.shape, dtype_of(its)), np.empty(x.shape, dtype_of(its))
    with np.errstate(all="ignore"):
        fastrelu.relu(x, out=wanted)
        call("relu", (device.array(x),), y)
    assert_array_equal(bits(y.host, any_nan=True), bits(wanted, any_nan=True))


def test_type_prescribed(device):
    x = operands("float64", 1, 500)[0]
    with np.errstate(all="ignore"):
        result = to_host(call("relu", (device.array(x),), None, {"dtype": np.float32}))
        assert_array_equal(bits(result, any_nan=True), bits(fastrelu.relu(x, dtype=np.float32), any_nan=True))
        assert call("relu", (device.array(x),), None, {"dtype": None}).dtype == "float64"


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5)])
def test_empty(device, shape):
    check(device, "relu", [np.empty(shape, np.float32)])
    assert not device.launches


def test_public_functions(device):
    dy, y = operands("float32", 2, 2000)
    result, place = fastrelu.relu_backward(device.array(dy), device.array(y)), device.empty(y.shape, y.dtype)
    assert_array_equal(bits(to_host(result)), bits(fastrelu.relu_backward(dy, y)))
    assert fastrelu.leaky_relu(device.array(y), 0.5, out=(place,)) is place
    assert_array_equal(bits(place.host, any_nan=True), bits(fastrelu.leaky_relu(y, 0.5), any_nan=True))
    assert_array_equal(to_host(fastrelu.relu_derivative(device.array(np.arange(-1, 2)))), [0, 0, 1])


def test_no_axes(device):
    check(device, "tanh", [np.array(0.5, np.float32)])


def test_the_next_call_of_the_kind_finds_everything_ready(device, monkeypatch):
    x = operands("float32", 1, 900)[0]
    call("relu", (device.array(x),))
    monkeypatch.setattr(elementwise, "calculate", None)
    check(device, "relu", [-x])


@pytest.mark.parametrize("with_output", [True, False])
def test_where(device, with_output):
    x, alpha = operands("float32", 1, 600)[0].reshape(20, 30), np.float32(0.5)
    for mask in (x > 0, (x > 0)[:, :1], (x > 0)[::2].repeat(2, 0).T.copy().T):
        out = np.full_like(x, 7) if with_output else None
        wanted = np.full_like(x, 7)
        fastrelu.leaky_relu(x, alpha, out=wanted, where=mask)
        place = device.array(out) if with_output else None
        got = to_host(fastrelu.leaky_relu(device.array(x), alpha, out=place, where=device.array(mask)))
        everywhere = np.broadcast_to(mask, x.shape)
        assert_array_equal(bits(got[everywhere]), bits(wanted[everywhere]))
        assert not with_output or (got[~everywhere] == 7).all()


def test_where_has_more_axes_or_is_single_or_overlaps(device):
    x = np.array([-1, 2, -3], np.float32)
    mask = np.array([[True, False, True], [False, True, False]])
    wanted = np.zeros((2, 3), np.float64)
    fastrelu.relu(x, out=wanted, where=mask)
    out = device.array(np.zeros((2, 3)))
    assert fastrelu.relu(device.array(x), out=out, where=device.array(mask)) is out
    assert_array_equal(out.host, wanted)
    for where in (True, np.True_, np.array(True)):
        assert_array_equal(to_host(fastrelu.relu(device.array(x), where=where)), [0, 2, 0])
    y = device.array(x)
    assert fastrelu.relu(y, out=y, where=False) is y
    assert_array_equal(y.host, x)
    assert fastrelu.relu(y[::-1], out=y, where=device.array(mask[0])).host.tolist() == [0, 2, 0]


@pytest.mark.parametrize("order", "CFAK")
def test_order_of_a_new_array(device, order):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for x in (base, np.asfortranarray(base), base.transpose(1, 0, 2), base[:, ::2]):
        result = fastrelu.relu(device.array(x)[:], order=order)
        assert result.strides == np.positive(device.array(x).host, order=order).strides


def test_types_by_another_rule(device):
    x = np.array([-1, 2], np.float32)
    out = device.empty((2,), np.float16)
    fastrelu.elu(device.array(x), out=out, casting="unsafe")
    assert_array_equal(out.host, fastrelu.elu(x).astype(np.float16))
    assert to_host(fastrelu.elu(device.array(x), dtype="f8", casting="safe")).dtype == np.float64


REFUSED = [
    (lambda d: call("relu", (d.array(np.zeros(2, bool)),)), TypeError, "x must be an integer type"),
    (lambda d: call("relu", (d.array(np.zeros(2)),), None, {"signature": "d->d"}), TypeError, "signature is not available"),
    (lambda d: call("relu", (d.array(np.zeros(2)),), None, {"where": np.ones(2, bool)}), TypeError, "where is on the host"),
    (
        lambda d: call("relu", (d.array(np.zeros(2)),), None, {"where": d.array(np.zeros(2))}),
        TypeError,
        "where must be of type bool, not float64",
    ),
    (
        lambda d: call("relu", (d.array(np.zeros(2)),), None, {"where": d.array(np.zeros(3, bool))}),
        ValueError,
        r"where must broadcast with x of shape \(2,\), not have shape \(3,\)",
    ),
    (lambda d: call("relu", (d.array(np.zeros(2)),), None, {"casting": "no way"}), ValueError, "casting must be one of"),
    (lambda d: call("relu", (d.array(np.zeros(2)),), None, {"order": "X"}), ValueError, "order must be one of"),
    (
        lambda d: call("elu", (d.array(np.zeros(2, "f4")), 1.0), d.empty((2,), "f2"), {"casting": "safe"}),
        TypeError,
        "out must have a type that takes float32 by casting rule 'safe', not float16",
    ),
    (
        lambda d: call("elu", (d.array(np.zeros(2)), 1.0), None, {"dtype": "f4", "casting": "safe"}),
        TypeError,
        "x must have a type that becomes float32 by casting rule 'safe', not float64",
    ),
    (
        lambda d: call("relu", (d.array(np.zeros(2)),), d.empty((2,), "i4"), {"casting": "unsafe"}),
        TypeError,
        "floats become no integers on a CUDA device",
    ),
    (lambda d: call("relu", (d.array(np.zeros(2)),), d.empty((3,), float)), ValueError, r"out must have shape \(2,\)"),
    (lambda d: call("relu", (d.array(np.zeros((2, 2))),), d.empty((2,), float)), ValueError, r"out must have shape \(2, 2\)"),
    (lambda d: call("relu", (d.array(np.zeros(2)),), d.empty((2,), int)), TypeError, "takes float64 by casting rule"),
    (lambda d: call("relu", (d.array(np.zeros(2)),), d.array(np.zeros(2), writable=False)), ValueError, "out is read-only"),
    (lambda d: call("relu", (d.array(np.zeros(2)),), np.zeros(2)), TypeError, "out is on the host"),
    (lambda d: call("prelu", (d.array(np.zeros(2)), np.zeros(2))), TypeError, "alpha is on the host"),
    (lambda d: call("prelu", (d.array(np.zeros(2)), d.array(np.zeros(3)))), ValueError, "alpha must broadcast with x"),
    (
        lambda d: call("relu_derivative", (d.array(np.zeros(2, np.uint8)), -1)),
        OverflowError,
        "within the range of uint8, not -1",
    ),
    (lambda d: call("elu", (d.array(np.zeros(2)),) * 2, None, {"dtype": np.int32}), TypeError, "dtype must be float16"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refused_before_any_work(device, case):
    attempt, kind, text = REFUSED[case]
    with pytest.raises(kind, match=text):
        attempt(device)
    assert not device.launches


def test_repeated_elements_are_no_result(device):
    out = device.array(np.zeros((3, 1), np.float32))
    out = type(out)(device, np.lib.stride_tricks.as_strided(out.host, (3, 4), (4, 0)))
    with pytest.raises(ValueError, match="an element of its own"):
        call("relu", (device.array(np.zeros((3, 4), np.float32)),), out)


def test_unaligned_elements_are_refused(device):
    memory = device.array(np.zeros(64, np.uint8))
    x = type(memory)(device, memory.host[1:33].view(np.float32))
    with pytest.raises(ValueError, match="relu: x must have elements that are aligned"):
        call("relu", (x,))
    with pytest.raises(ValueError, match="relu: out must have elements that are aligned"):
        call("relu", (device.empty((8,), np.float32),), x)


def test_accesses_fill_their_sectors(device):
    device.measure = True
    x, alpha = operands("float32", 1, 4096)[0].reshape(64, 64), np.linspace(-1, 2, 64, dtype=np.float32)
    for a, its in ((x, alpha), (x[:, :48], alpha[:48]), (x, alpha[:, None]), (x[:, :33], alpha[:33])):
        check(device, "prelu", [a, its])
        done = device.launches[-1]
        # Rows of 33 are gone through element by element, and alpha of a row is one address for many threads.
        assert 0 < done.sectors["store"] <= 1.3 * done.least_sectors["store"]
        assert 0 < done.sectors["load"] <= 1.3 * done.least_sectors["load"]


@pytest.mark.parametrize("target", [(8, 0), (9, 0, "a")])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float32", "relu"), ("float32", "relu_backward"), ("float32", "tanh"), ("bfloat16", "leaky_relu_backward")],
)
def test_machine_code(dtype, name, target):
    operation, size = OPERATIONS[name], dtype_of(dtype).itemsize
    calculated = operation.loop(dtype, 0).dtypes
    reads = [LANES] * len(operation.inputs)
    if operation.parameter >= 0:
        reads[operation.parameter] = "number"
    spec = Sweep(operation.formula or name, operation.arithmetic, calculated, calculated, tuple(reads), 16 // size)
    code = assemble(kernel(spec).ptx(target)[0], target)
    assert (code.spilled, code.stack) == (0, 0)
    assert code.count("LDG.E.128") >= spec.loads * spec.unroll
    assert code.count("STG.E.128") >= spec.unroll
    assert not code.count("LDL", "STL")
    assert not [opcode for opcode in code.opcodes() if "F64" in opcode or opcode.startswith(("DFMA", "DADD", "DMUL"))]
    # With 64 bytes a thread under way, this many registers leave room for 64 KiB on a multiprocessor.
    assert code.registers <= 64
