"""Steps of the optimizers: the same bits as their formulas in NumPy, and the norm of the gradients."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu.native.optimizers import CHUNK
from fastrelu.nn import SGD, Adam

# Around a vector, several chunks with a rest, and nothing at all.
LENGTHS = (0, 1, 15, 16, 17, 2 * CHUNK + 5)
OPTIMIZERS = {
    "sgd": lambda: SGD(0.1),
    "sgd decay": lambda: SGD(0.1, weight_decay=0.01),
    "sgd momentum": lambda: SGD(0.1, 0.9, 0.01),
    "adam": lambda: Adam(0.01),
    "adam decay": lambda: Adam(0.01, (0.8, 0.99), 1e-6, 0.01),
}


def wide(dtype):
    return np.dtype(dtype) if np.dtype(dtype).itemsize > 2 else np.dtype(np.float32)


class Reference:
    """The formulas in NumPy, with coefficients rounded to the type that is calculated in."""

    def __init__(self, optimizer, dtype):
        self.optimizer, self.kind = optimizer, wide(dtype).type
        self.states, self.t = {}, 0

    def step(self, parameters, gradients):
        o, kind = self.optimizer, self.kind
        self.t += 1
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            p32, g32 = p.astype(kind), g.astype(kind)
            if o.weight_decay:
                g32 = g32 + kind(o.weight_decay) * p32
            if isinstance(o, Adam):
                m, v = self.states.get(i, (np.zeros_like(p32), np.zeros_like(p32)))
                b1, b2 = o.betas
                m = kind(b1) * m + kind(1 - b1) * g32
                v = kind(b2) * v + kind(1 - b2) * (g32 * g32)
                self.states[i] = m, v
                rate, root = kind(o.lr / (1 - b1**self.t)), kind(np.sqrt(1 - b2**self.t))
                p[...] = (p32 - rate * m / (np.sqrt(v) / root + kind(o.eps))).astype(p.dtype)
                continue
            if o.momentum:
                g32 = kind(o.momentum) * self.states.get(i, np.zeros_like(p32)) + g32
                self.states[i] = g32
            p[...] = (p32 - kind(o.lr) * g32).astype(p.dtype)


def arrays(dtype, lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype(dtype) for n in lengths]


def bits(array):
    return array.view(f"u{array.itemsize}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_have_the_bits_of_numpy(name, dtype):
    optimizer = OPTIMIZERS[name]()
    reference, own, expected = Reference(optimizer, dtype), arrays(dtype), arrays(dtype)
    for t in range(3):
        gradients = arrays(dtype, seed=1 + t)
        optimizer.step(own, gradients)
        reference.step(expected, gradients)
        for a, b in zip(own, expected, strict=True):
            assert_array_equal(bits(a), bits(b))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_calculated_in_float32(dtype):
    optimizer = SGD(0.1, 0.9)
    reference, own, expected = Reference(optimizer, dtype), arrays(dtype, (17,)), arrays(dtype, (17,))
    for t in range(3):
        gradients = arrays(dtype, (17,), seed=1 + t)
        optimizer.step(own, gradients)
        reference.step(expected, gradients)
    assert_array_equal(bits(own[0]), bits(expected[0]))
    assert own[0].dtype == dtype


def test_norm_is_that_of_all_gradients():
    gradients = [*arrays(np.float32), *arrays(np.float64, (5,))]
    parameters = [np.zeros_like(g) for g in gradients]
    expected = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients))
    assert_allclose(SGD().step(parameters, gradients), expected, rtol=1e-14)


def test_norm_of_large_float32_gradients_does_not_overflow():
    assert SGD(0.0).step([np.zeros(4, np.float32)], [np.full(4, 3e38, np.float32)]) == 2 * float(np.float32(3e38))


def test_no_parameters():
    assert SGD().step([], []) == 0.0


@pytest.mark.parametrize("name", ["sgd momentum", "adam"])
def test_threads_do_not_change_a_bit(name):
    def steps(threads):
        with fastrelu.num_threads(threads):
            optimizer, parameters = OPTIMIZERS[name](), arrays(np.float32, (5 * CHUNK + 3, 7))
            norms = [optimizer.step(parameters, arrays(np.float32, (5 * CHUNK + 3, 7), seed=t)) for t in range(2)]
        return norms, [p.tobytes() for p in parameters]

    assert steps(1) == steps(2) == steps(5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_special_values(momentum):
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 1.0], np.float32)
    p, g = (a.ravel().copy() for a in np.meshgrid(special, special))
    expected = p.copy()
    optimizer = SGD(0.5, momentum)
    with np.errstate(invalid="ignore"):
        Reference(optimizer, np.float32).step([expected], [g])
        optimizer.step([p], [g])
    assert_array_equal(np.isnan(p), np.isnan(expected))
    known = ~np.isnan(p)
    assert_array_equal(bits(p[known]), bits(expected[known]))


def layouts():
    base = np.arange(24, dtype=np.float32)
    unaligned = np.zeros(97, np.uint8)[1:].view(np.float32)
    unaligned[:] = base
    yield "fortran", base.reshape(4, 6).copy(order="F")
    yield "strided", np.repeat(base, 2)[::2]
    yield "reversed", base[::-1]
    yield "byte-swapped", base.astype(">f4")
    yield "unaligned", unaligned


@pytest.mark.parametrize(("name", "parameter"), [*layouts()], ids=[name for name, _ in layouts()])
def test_other_layouts(name, parameter):
    plain = np.array(parameter, np.float32, order="C")
    gradient = np.ones(plain.shape, np.float32)
    optimizers = SGD(0.1, 0.9), SGD(0.1, 0.9)
    for _ in range(2):
        norms = optimizers[0].step([parameter], [gradient]), optimizers[1].step([plain], [gradient])
    assert_array_equal(parameter, plain)
    assert norms[0] == norms[1]


def test_arrays_that_move_keep_their_state():
    moved, still = SGD(0.1, 0.9), SGD(0.1, 0.9)
    a, b = arrays(np.float32, (20,)), arrays(np.float32, (20,))
    for t in range(3):
        gradients = arrays(np.float32, (20,), seed=t)
        moved.step(a, [gradients[0].copy()])
        still.step(b, gradients)
        a = [a[0].copy()]
    assert_array_equal(a[0], b[0])


def test_mappings_are_matched_by_key():
    parameters = {"w": np.zeros(2), "b": np.zeros(1)}
    SGD(1.0).step(parameters, {"b": np.ones(1), "w": np.full(2, 2.0)})
    assert_array_equal(parameters["w"], [-2, -2])
    assert_array_equal(parameters["b"], [-1])


def test_learning_rate_may_change():
    optimizer, p = SGD(1.0), np.zeros(1)
    optimizer.step([p], [np.ones(1)])
    optimizer.lr = 0.5
    optimizer.step([p], [np.ones(1)])
    assert_array_equal(p, [-1.5])


def test_pickle_keeps_the_state():
    optimizer, p = Adam(0.1), arrays(np.float32, (20,))
    optimizer.step(p, arrays(np.float32, (20,), seed=1))
    other, q = pickle.loads(pickle.dumps((optimizer, p)))
    gradients = arrays(np.float32, (20,), seed=2)
    optimizer.step(p, gradients)
    other.step(q, gradients)
    assert_array_equal(p[0], q[0])


def read_only():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    return array


F = np.zeros(3, np.float32)
FAULTS = [
    ([F], [], ValueError, "gradients must be as many as parameters, 1, not 0"),
    ([F], [np.zeros(4, np.float32)], ValueError, r"gradients\[0\] must have the shape of its parameter, \(3,\), not \(4,\)"),
    ([F], [np.zeros(3)], TypeError, r"gradients\[0\] must be float32 as its parameter, not float64"),
    ([np.zeros(3, int)], [np.zeros(3, int)], TypeError, r"parameters\[0\] must be float16, .* not int64"),
    ([[0.0]], [F], TypeError, r"parameters\[0\] must be an array, not list"),
    ([read_only()], [F], ValueError, r"parameters\[0\] is read-only"),
    ({"w": F}, {"b": F}, ValueError, r"gradients must have the keys of parameters, \['w'\], not \['b'\]"),
    ({"w": F}, [F], TypeError, "two mappings or two sequences"),
]


@pytest.mark.parametrize(("parameters", "gradients", "error", "words"), FAULTS)
def test_fault_is_told_before_anything_changes(parameters, gradients, error, words):
    optimizer = SGD()
    with pytest.raises(error, match=f"^SGD: .*{words}"):
        optimizer.step(parameters, gradients)
    assert optimizer.steps == 0
    assert not F.any()


def test_parameters_that_share_memory():
    base = np.zeros((4, 4), np.float32)
    SGD().step([base[::2], base[1::2]], [base[::2].copy(), base[1::2].copy()])
    for parameters in ([base, base], [base[1:], base[:2]]):
        with pytest.raises(ValueError, match=r"SGD: parameters\[1\] shares memory with parameters\[0\]"):
            SGD().step(parameters, [p.copy() for p in parameters])


def test_other_shapes_than_at_the_first_step():
    optimizer = SGD()
    optimizer.step([np.zeros(2)], [np.zeros(2)])
    with pytest.raises(ValueError, match="must have the shapes and types of the first step"):
        optimizer.step([np.zeros(3)], [np.zeros(3)])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: SGD(-1), ValueError, "SGD: lr must be finite and at least 0, not -1"),
        (lambda: SGD(np.nan), ValueError, "SGD: lr must be finite"),
        (lambda: SGD("1"), TypeError, "SGD: lr must be a number, not str"),
        (lambda: SGD(momentum=1), ValueError, "SGD: momentum must be at least 0 and below 1, not 1"),
        (lambda: Adam(betas=0.9), ValueError, "Adam: betas must be a pair of numbers, not 0.9"),
        (lambda: Adam(betas=(0.9, 1.0)), ValueError, r"Adam: betas\[1\] must be at least 0 and below 1, not 1.0"),
        (lambda: Adam(eps=True), TypeError, "Adam: eps must be a number, not bool"),
    ],
)
def test_argument_out_of_range(make, error, words):
    with pytest.raises(error, match=f"^{words}"):
        make()
