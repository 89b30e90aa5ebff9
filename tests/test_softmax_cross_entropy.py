"""Softmax cross-entropy: values against float64 or longer, bits of a row that depend on that row only."""

import itertools
import sys

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu.losses import row_losses, sum_of_losses
from fastrelu.native import target
from tests.dtypes import dtype_of
from tests.reference import bits
from tests.subprocesses import call
from tests.test_guard_pages import Guarded
from tests.test_target import TARGETS

FLOATS = ("float16", "bfloat16", "float32", "float64")
# Half a unit in the last place of 1.
U = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}

Array = np.ndarray


def problem(dtype: str, rows: int, classes: int, scale: float = 3, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    z = (scale * rng.standard_normal((rows, classes))).astype(np.float32).astype(dtype_of(dtype))
    return z, rng.integers(0, classes, rows)


def reference(z: Array, labels: Array) -> tuple[Array, Array]:
    """The losses of the rows and their gradients, in the longest type there is."""
    z = z.astype(np.longdouble)
    z = z - z.max(axis=1, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=1, keepdims=True)
    rows = np.arange(len(z))
    gradient = e / total
    gradient[rows, labels] -= 1
    return np.log(total[:, 0]) - z[rows, labels], gradient


def assert_close(z: Array, labels: Array, dtype: str) -> None:
    losses, gradient = reference(z, labels)
    result, dz = fastrelu.softmax_cross_entropy(z, labels, reduction="none")
    assert result.dtype == dz.dtype == z.dtype
    u, wide = U[dtype], min(U[dtype], U["float32"])
    # Sums and logarithms are float64: one rounding of the loss, besides what that of z - max(z) does to each exponential.
    spread = float(np.ptp(z.astype(np.float64))) if z.size else 0
    error = wide * (4 + spread)
    assert_allclose(result.astype(float), losses.astype(float), rtol=u, atol=error)
    assert_allclose(dz.astype(float), gradient.astype(float), rtol=u, atol=2 * error)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_number_of_classes(dtype: str) -> None:
    for classes in [*range(1, 70), 127, 130, 1000]:
        assert_close(*problem(dtype, 5, classes, seed=classes), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_classes(dtype: str) -> None:
    # The sum of so many float32 would err by some hundred units.
    z, labels = problem(dtype, 3, 200_000, 1e-3)
    losses, _ = reference(z, labels)
    assert_allclose(fastrelu.softmax_cross_entropy(z, labels, reduction="none")[0], losses.astype(float), rtol=2 * U[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_large_logits_do_not_overflow(dtype: str) -> None:
    limit = float(ml_dtypes.finfo(dtype_of(dtype)).max)
    z = np.array([[limit, 0, -limit], [limit, limit, 0], [-limit, -limit, -limit], [0, 0, limit]]).astype(dtype_of(dtype))
    losses, dz = fastrelu.softmax_cross_entropy(z, [0, 1, 2, 2], reduction="none")
    expected = np.array([[0, 0, 0], [0.5, -0.5, 0], [1 / 3, 1 / 3, -2 / 3], [0, 0, 0]])
    assert_allclose(losses.astype(float), [0, np.log(2), np.log(3), 0], rtol=2 * U[dtype])
    assert_allclose(dz.astype(float), expected, rtol=2 * U[dtype])


def test_small_losses_are_exact():
    z = np.array([[20.0, 0.0], [0.0, -30.0]], np.float32)
    losses, dz = fastrelu.softmax_cross_entropy(z, [0, 0], reduction="none")
    assert_allclose(losses, np.log1p(np.exp([-20.0, -30.0])), rtol=1e-2)  # 1 + exp(-30) in float64
    assert_allclose(dz[:, 1], np.exp([-20.0, -30.0]), rtol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_no_numbers(dtype: str) -> None:
    inf, nan = np.inf, np.nan
    rows = np.full((7, 40), 0.0)
    rows[0, 3], rows[1, 39], rows[2, [0, 1]], rows[3] = nan, nan, inf, -inf
    rows[4, 7], rows[5, [7, 20]], rows[6] = -inf, (inf, -inf), nan
    z = rows.astype(dtype_of(dtype))
    losses, dz = fastrelu.softmax_cross_entropy(z, [0, 0, 0, 0, 7, 7, 3], reduction="none")
    assert_array_equal(np.isnan(losses.astype(float)), [True, True, True, True, False, True, True])
    assert losses.astype(float)[4] == inf
    assert_array_equal(np.isnan(dz.astype(float)).all(axis=1), [True, True, True, True, False, True, True])
    assert dz.astype(float)[4, 7] == -1
    assert_allclose(np.delete(dz[4].astype(float), 7), 1 / 39, rtol=2 * U[dtype])


# Bits.


def in_order(losses: Array) -> np.float64:
    """The sum of the losses in the order that the docstring states."""
    chains, whole = np.zeros(16), len(losses) // 16 * 16
    for step in losses[:whole].reshape(-1, 16):
        chains += step
    rest = np.float64(0)
    for loss in losses[whole:]:
        rest += loss
    while len(chains) > 1:
        chains = chains[: len(chains) // 2] + chains[len(chains) // 2 :]
    return chains[0] + rest


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 255, 1000])
def test_reductions(rows: int) -> None:
    z, labels = problem("float64", rows, 11)
    losses, dz = fastrelu.softmax_cross_entropy(z, labels, reduction="none")
    loss, same = fastrelu.softmax_cross_entropy(z, labels, reduction="sum")
    assert isinstance(loss, np.float64)
    assert loss == in_order(losses)
    assert_array_equal(same, dz)
    loss, mean = fastrelu.softmax_cross_entropy(z, labels)
    assert loss == in_order(losses) / rows
    assert_allclose(mean, dz / rows, rtol=1e-15, atol=1e-17)


@pytest.mark.parametrize("dtype", FLOATS)
def test_row_alone_and_in_any_batch(dtype: str) -> None:
    z, labels = problem(dtype, 30, 37)
    losses, dz = fastrelu.softmax_cross_entropy(z, labels, reduction="none")
    for i in range(30):
        loss, dlogits = fastrelu.softmax_cross_entropy(z[i], labels[i], reduction="none")
        assert loss.shape == ()
        assert_array_equal(loss, losses[i])
        assert_array_equal(bits(dlogits), bits(dz[i]))
    many, gradients = fastrelu.softmax_cross_entropy(z.reshape(2, 3, 5, 37), labels.reshape(2, 3, 5), reduction="none")
    assert_array_equal(many.ravel(), losses)
    assert_array_equal(gradients.reshape(30, 37), dz)


@pytest.mark.parametrize(("rows", "classes"), [(3001, 10), (7, 30_011), (401, 130)])
def test_number_of_threads(rows: int, classes: int) -> None:
    z, labels = problem("float32", rows, classes)
    with fastrelu.num_threads(1):
        loss, dz = fastrelu.softmax_cross_entropy(z, labels)
    for threads in (2, 3, 5, 8):
        with fastrelu.num_threads(threads):
            again, dlogits = fastrelu.softmax_cross_entropy(z, labels)
            assert again == loss
            assert_array_equal(bits(dlogits), bits(dz))


def layouts(z: Array) -> list[Array]:
    frozen = z.copy()
    frozen.flags.writeable = False
    shifted = np.zeros(z.nbytes + 1, np.uint8)[1:].view(z.dtype).reshape(z.shape)
    shifted[:] = z
    return [
        frozen,
        np.asfortranarray(z),
        np.pad(z, 3)[3:-3, 3:-3],
        np.repeat(z, 2, axis=1)[:, ::2],
        z[::-1, ::-1].copy()[::-1, ::-1],
        z if z.dtype.name == "bfloat16" else z.astype(z.dtype.newbyteorder()),
        shifted,
    ]


@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts(dtype: str) -> None:
    z, labels = problem(dtype, 9, 21)
    loss, dz = fastrelu.softmax_cross_entropy(z, labels)
    for form, out in zip(layouts(z), layouts(np.zeros_like(z)), strict=True):
        assert_array_equal(bits(fastrelu.softmax_cross_entropy(form, labels.astype(np.uint8))[1]), bits(dz))
        if out.flags.writeable:
            again, result = fastrelu.softmax_cross_entropy(z, np.repeat(labels, 2)[::2], out=out)
            assert again == loss
            assert result is out
            assert_array_equal(out.astype(float), dz.astype(float))


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_in_the_place_of_the_logits(dtype: str) -> None:
    for shape in ((9, 21), (3, 40), (2, 16)):
        z, labels = problem(dtype, *shape)
        loss, dz = fastrelu.softmax_cross_entropy(z, labels)
        again, out = fastrelu.softmax_cross_entropy(z, labels, out=z)
        assert again == loss
        assert out is z
        assert_array_equal(bits(z), bits(dz))


def test_output_that_overlaps_the_logits_elsewhere():
    flat = np.concatenate([problem("float32", 9, 21)[0].ravel(), np.zeros(30, np.float32)])
    labels = np.arange(9)
    dz = fastrelu.softmax_cross_entropy(flat[:189].reshape(9, 21), labels)[1]
    fastrelu.softmax_cross_entropy(flat[:189].reshape(9, 21), labels, out=flat[5:194].reshape(9, 21))
    assert_array_equal(flat[5:194].reshape(9, 21), dz)


def test_no_rows():
    loss, dz = fastrelu.softmax_cross_entropy(np.ones((0, 4), np.float32), np.ones(0, int))
    assert np.isnan(loss)
    assert loss.dtype == np.float32
    assert dz.shape == (0, 4)
    assert fastrelu.softmax_cross_entropy(np.ones((0, 4)), [], reduction="sum")[0] == 0
    assert fastrelu.softmax_cross_entropy(np.ones((0, 0)), [], reduction="none")[0].shape == (0,)


def test_integers_become_floats():
    loss, dz = fastrelu.softmax_cross_entropy([[0, 0]], [1])
    assert loss.dtype == dz.dtype == np.float64
    assert_array_equal(dz, [[0.5, -0.5]])


def test_sum_beyond_the_type_is_infinite():
    z = np.tile(np.array([0, 60000], np.float16), (9, 1))
    assert fastrelu.softmax_cross_entropy(z, np.zeros(9, int), reduction="sum")[0] == np.inf
    assert fastrelu.softmax_cross_entropy(z, np.zeros(9, int))[0] == 60000


# Faults.

Z, LABELS = np.ones((3, 4), np.float32), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((1.0, 0), {}, "logits must have at least one axis, that of the classes"),
        ((Z > 0, LABELS), {}, "logits must be an integer type, float16, bfloat16, float32 or float64, not bool"),
        ((Z, LABELS[:2]), {}, r"labels must have shape \(3,\) as the rows of logits, not \(2,\)"),
        ((Z, Z), {}, "labels must be of an integer type, not float32"),
        ((Z, LABELS + 2), {}, r"a label must be in range\(4\), not 4 as in labels\[2\]"),
        ((Z, LABELS - 1), {}, r"a label must be in range\(4\), not -1 as in labels\[0\]"),
        ((Z[0], 4), {}, r"a label must be in range\(4\), not 4 as in labels$"),
        ((Z[:, :0], LABELS), {}, r"a label must be in range\(0\), not 0 as in labels\[0\]"),
        ((Z, LABELS), {"reduction": "max"}, r"reduction must be one of \('mean', 'sum', 'none'\), not 'max'"),
        ((Z, LABELS), {"reduction": ["mean"]}, r"reduction must be one of \('mean', 'sum', 'none'\), not \['mean'\]"),
        ((Z, LABELS), {"out": Z.T}, r"out must have shape \(3, 4\), not \(4, 3\)"),
        ((Z, LABELS), {"out": Z.astype(float)}, "out must have type float32, not float64"),
        ((Z, LABELS), {"out": layouts(Z)[0]}, "out is read-only"),
    ],
)
def test_faults(arguments: tuple, keywords: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^softmax_cross_entropy: {message}"):
        fastrelu.softmax_cross_entropy(*arguments, **keywords)


# Memory beside the operands, and other processors.


def sweep(dtypes: tuple[str, ...]) -> None:
    """Run with all operands at either guard."""
    blocks = [Guarded(8 * 4 * 70) for _ in range(3)]
    for dtype, classes, at_end in itertools.product(dtypes, [*range(1, 50), 63, 65], (False, True)):
        z, labels = problem(dtype, 4, classes)
        kinds = ((z.dtype, z.size), (z.dtype, z.size), (labels.dtype, 4))
        arrays = [block.array(*kind, 1, at_end) for block, kind in zip(blocks, kinds, strict=True)]
        logits, out = (a.reshape(z.shape) for a in arrays[:2])
        logits[:], arrays[2][:] = z, labels
        fastrelu.softmax_cross_entropy(logits, arrays[2], out=out)
        assert_array_equal(bits(out), bits(fastrelu.softmax_cross_entropy(z, labels)[1]))


@pytest.mark.skipif(sys.platform == "win32", reason="no mprotect here")
def test_nothing_outside_the_operands_is_touched():
    call(sweep, FLOATS, timeout=300)


def results() -> None:
    """Print all bits of some results."""
    for classes in (2, 10, 16, 17, 100, 1003):
        loss, dz = fastrelu.softmax_cross_entropy(*problem("float32", 20, classes))
        print(loss.view(np.uint32), dz.view(np.uint32).ravel().tolist())


@pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")
def test_bits_are_those_of_narrower_vectors():
    assert call(results, env=TARGETS["avx2"][0], timeout=300) == call(results, timeout=300) != ""


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 32, 100, 257])
def test_losses_in_parts_have_the_sum_of_the_whole(rows: int) -> None:
    rng = np.random.default_rng(rows)
    z, labels = rng.standard_normal((rows, 5), dtype=np.float32), rng.integers(5, size=rows)
    whole, loss, dz = row_losses(z, labels, rows)
    cut = rows // 3
    parts = [row_losses(z[a:b], labels[a:b], rows) for a, b in ((0, cut), (cut, rows))]
    assert_array_equal(np.concatenate([part[0] for part in parts]), whole)
    assert_array_equal(np.concatenate([part[2] for part in parts]), dz)
    assert sum_of_losses(whole) == loss
