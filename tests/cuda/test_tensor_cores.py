"""Products on the tensor cores: errors, edges, layouts, special values, machine code.

No GPU has run any of it: what is compiled is emulated, with sums that are cut off instead of rounded, as those of real
tensor cores are.
"""

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.cuda import launch, tensor_cores
from tests.cuda.emulator import EmulatedDriver
from tests.cuda.machine_code import assemble
from tests.cuda.values import nightly

AMPERE, HOPPER = (8, 0), (9, 0)
UNIT = 2.0**-24
"""Half a unit in the last place of 1 in float32."""
BOUNDS = {
    ("float32", "high"): 4 * UNIT,
    ("float32", "medium"): 2.0**-10,
    ("float16", "high"): 2.0**-11 + 8 * UNIT,
    ("bfloat16", "high"): 2.0**-8 + 8 * UNIT,
    ("bfloat16", "medium"): 2.0**-8 + 64 * UNIT,
}
"""Largest error of a small product relative to |x| @ |w| + |b|: of two operands that are rounded to TF32, or of a result that
is rounded to its type.
"""


def normal(dtype, *shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def problem(m, k, n, dtype="float32"):
    return normal(dtype, m, k, seed=m), normal(dtype, k, n, seed=n), normal(dtype, n, seed=k)


DEVICES = {capability: EmulatedDriver(capability) for capability in (AMPERE, HOPPER)}
"""They are kept, with the kernels that they have loaded."""


@pytest.fixture(params=[AMPERE, HOPPER], ids=["ampere", "hopper"])
def gpu(request, monkeypatch):
    """An emulated device of either family of instructions."""
    return use(monkeypatch, DEVICES[request.param])


@pytest.fixture
def ampere(monkeypatch):
    return use(monkeypatch, DEVICES[AMPERE])


def use(monkeypatch, device):
    device.measure = False
    device.launches.clear()
    monkeypatch.setattr(launch, "driver", device)
    return device


def laid_out(x, w, precision):
    """Half of the kernels: x and w by rows where the precision is high, else by columns."""
    return [np.asarray(o, order="C" if precision == "high" else "F") for o in (x, w)]


def run(device, x, w, b, precision, name="linear"):
    operands = [device.array(o) if isinstance(o, np.ndarray) else o for o in (x, w, b)]
    return getattr(fastrelu, name)(*operands, precision=precision).copy_to_host()


def error(y, x, w, b):
    """The largest error, relative to the sum of the products' sizes."""
    x, w, b = (np.asarray(o, np.float64) for o in (x, w, b))
    return np.max(np.abs(y.astype(np.float64) - (x @ w + b)) / (np.abs(x) @ np.abs(w) + np.abs(b)))


def assert_near(y, x, w, b, precision):
    __tracebackhide__ = True
    assert y.dtype == x.dtype
    assert y.shape == (x.shape[0], w.shape[1])
    assert error(y, x, w, b) < BOUNDS[str(x.dtype), precision], (x.shape, w.shape)


# Edges.


@pytest.mark.parametrize("precision", ["high", *nightly("medium")])
def test_every_edge_of_a_tile(gpu, precision):
    for m, k, n in [(1, 1, 1), (3, 33, 5), (127, 31, 4), (128, 64, 127), (17, 97, 9), (8, 130, 65)]:
        x, w, b = problem(m, k, n)
        assert_near(run(gpu, *laid_out(x, w, precision), b, precision), x, w, b, precision)


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "medium"), *nightly(("float16", "high"))])
def test_edges_of_halves(gpu, dtype, precision):
    for m, k, n in [(1, 1, 1), (17, 65, 126), (127, 127, 8)]:
        x, w, b = problem(m, k, n, dtype)
        assert_near(run(gpu, *laid_out(x, w, precision), b, precision), x, w, b, precision)


def test_operands_that_have_to_be_copied(ampere):
    x, w, b = problem(12, 20, 28)
    plain = run(ampere, x, w, b, "high")
    wide = np.zeros((12, 43), np.float32)
    wide[:, 1:41:2] = x
    device_x = ampere.array(wide)[:, 1:41:2]
    operands = device_x, ampere.array(w), ampere.array(b)
    assert_array_equal(fastrelu.linear(*operands, precision="high").copy_to_host(), plain)


def test_results_in_strided_memory(ampere):
    x, w, b = problem(12, 20, 30)
    plain = run(ampere, x, w, b, "high")
    memory = ampere.array(np.full((31, 12), 7, np.float32))
    out = memory.T[:, :30]
    fastrelu.linear(ampere.array(x), ampere.array(w), ampere.array(b), out=out, precision="high")
    assert_array_equal(out.host, plain)
    assert_array_equal(memory.host[30], 7)


# Errors.


@pytest.mark.parametrize("positive", [True, *nightly(False)])
def test_high_precision_errs_no_more_than_blocks_of_float32(gpu, positive):
    x, w, b = problem(24, 1500, 40)
    if positive:
        x, w, b = np.abs(x), np.abs(w), np.abs(b)
    assert error(run(gpu, x, w, b, "high"), x, w, b) < 0.7 * error(fastrelu.linear(x, w, b), x, w, b)


def test_sums_of_halves_at_high_precision_err_by_one_rounding(ampere):
    x, w, b = (np.abs(o) for o in problem(8, 900, 16, "float16"))
    exact = x.astype(np.float64) @ w.astype(np.float64) + b.astype(np.float64)
    nearest = exact.astype(np.float16)
    # The tensor cores alone would cut off enough to leave about every second result too small by a unit.
    assert np.mean(run(ampere, x, w, b, "high") == nearest) > 0.97


@pytest.mark.nightly
def test_terms_that_several_blocks_share(ampere):
    x, w, b = problem(5, 4100, 7)
    assert tensor_cores._parts(1, 4100, ampere.processors(0))[0] == 4
    y = run(ampere, x, w, b, "high", "linear_relu")
    exact = np.maximum(x.astype(np.float64) @ w + b, 0)
    assert np.max(np.abs(y - exact) / (np.abs(x).astype(np.float64) @ np.abs(w) + np.abs(b))) < 2 * UNIT


# Backward.


def test_gradients(ampere):
    x, w, b = problem(37, 20, 44)
    y = fastrelu.linear_relu(x, w, b)
    dy = normal("float32", 37, 44, seed=1)
    dx, dw, db = fastrelu.linear_relu_backward(*map(ampere.array, (dy, y, x, w)), precision="high")
    dz = np.where(y > 0, dy, 0)
    assert error(dx.copy_to_host(), dz, w.T, 0) < BOUNDS["float32", "high"]
    assert error(dw.copy_to_host(), x.T, dz, 0) < BOUNDS["float32", "high"]
    assert_array_equal(db.copy_to_host(), fastrelu.linear_relu_backward(dy, y, x, w)[2])


@pytest.mark.parametrize("slope", ["number", "array"])
def test_gradients_that_are_added(ampere, slope):
    x, w, b = problem(12, 20, 28)
    y = fastrelu.linear_leaky_relu(x, w, b, 0.25)
    dy, before = normal("float32", 12, 28, seed=1), normal("float32", 20, 28, seed=2)
    dw = ampere.array(before)
    given = map(ampere.array, (dy, y, x, w))
    alpha = ampere.array(np.float32(0.25)) if slope == "array" else 0.25
    fastrelu.linear_leaky_relu_backward(*given, alpha, out=(None, dw, None), wanted=["dw"], accumulate=["dw"], precision="high")
    assert error(dw.host, x.T, np.where(y > 0, dy, np.float32(0.25) * dy), before) < BOUNDS["float32", "high"]


# Special values.


def test_infinities_and_nan_come_out_as_in_float32(gpu):
    x, w, b = problem(20, 40, 24)
    x[3, 5], x[7, 9], w[4, 2], b[6] = np.inf, np.nan, -np.inf, np.inf
    x[11], x[12, 3] = 3.4028235e38, -3.4028235e38
    with np.errstate(all="ignore"):
        expected = fastrelu.linear(x, w, b)
    y = run(gpu, x, w, b, "high")
    assert_array_equal(np.isnan(y), np.isnan(expected))
    assert_array_equal(y[np.isinf(expected)], expected[np.isinf(expected)])


@pytest.mark.nightly
def test_formulas_with_a_parameter(ampere):
    x, w, b = problem(9, 33, 20)
    alpha = normal("float32", 20, seed=9)
    given = ampere.array(x), ampere.array(w), ampere.array(b)
    before = run(ampere, x, w, b, "medium")
    y = fastrelu.linear_leaky_relu(*given, 0.25, precision="medium").copy_to_host()
    assert_array_equal(y, fastrelu.leaky_relu(before, np.float32(0.25)))
    y = fastrelu.linear_prelu(*given, ampere.array(alpha), precision="medium").copy_to_host()
    assert_array_equal(y, fastrelu.prelu(before, alpha))


# What the tensor cores do not take.


def test_float64_is_calculated_at_the_highest_precision(ampere):
    x, w, b = problem(5, 20, 7, "float64")
    assert_array_equal(run(ampere, x, w, b, "medium"), fastrelu.linear(x, w, b))


def test_old_devices_calculate_at_the_highest_precision(monkeypatch):
    x, w, b = problem(5, 20, 7)
    assert_array_equal(run(use(monkeypatch, EmulatedDriver((7, 5))), x, w, b, "medium"), fastrelu.linear(x, w, b))


def test_unknown_precision(gpu):
    x, w, b = problem(2, 3, 4)
    with pytest.raises(ValueError, match=r"linear: precision must be one of .*, not 'low'"):
        run(gpu, x, w, b, "low")


# What a GPU would make of it.


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "high"), *nightly(("float32", "medium"), ("bfloat16", "high"), ("bfloat16", "medium"))]
)
def test_several_blocks_access_shared_memory_without_conflicts(gpu, dtype, precision):
    gpu.measure = True
    x, w, b = problem(136, 72, 136, dtype)
    assert_near(run(gpu, *laid_out(x, w, precision), b, precision), x, w, b, precision)
    (statistics,) = gpu.launches
    assert statistics.wavefronts["load"] > 1000
    assert statistics.wavefronts == statistics.least_wavefronts


MACHINE_CODE = [
    ("float32", "high", "terms", "rows", AMPERE),
    ("bfloat16", "medium", "rows", "terms", AMPERE),
    ("float32", "high", "terms", "rows", HOPPER),
    ("float32", "medium", "rows", "terms", HOPPER),
    ("bfloat16", "medium", "rows", "terms", HOPPER),
    *nightly(
        ("float32", "medium", "rows", "terms", AMPERE),
        ("float16", "high", "terms", "rows", AMPERE),
        ("float16", "high", "terms", "rows", HOPPER),
    ),
]


@pytest.mark.parametrize(("dtype", "precision", "x", "w", "capability"), MACHINE_CODE, ids=str)
def test_machine_code(dtype, precision, x, w, capability):
    kernel = tensor_cores._kernel(dtype, tensor_cores._way(dtype, precision), x, w, "", True, False, False, capability)
    target = (9, 0, "a") if capability == HOPPER else capability
    ptx, _ = kernel.ptx(target)
    code = assemble(ptx, target)
    assert code.spilled == code.stack == code.count("LDL", "STL") == 0
    assert code.registers <= 255  # 256 threads of a block have 65536
    assert code.warnings == []  # such as that wgmma would wait for each other
    assert ".f64" not in ptx
    assert code.count("LDGSTS.E.BYPASS.128") > 0
    name = "HGMMA" if capability == HOPPER else "HMMA"
    products = {"HGMMA": 4, "HMMA": 32 if dtype == "float32" else 64}[name] * (
        3 if (dtype, precision) == ("float32", "high") else 1
    )
    assert code.main_loop(name).count(name) in (products, 2 * products)
