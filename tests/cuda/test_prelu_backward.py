"""The gradients of prelu on a device: the bits of the CPU, also of the sums."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.cuda.kernels import prelu_backward as kernels
from tests.cuda.values import bits, dtype_of, operands, to_host


def check(device, dy, x, alpha):
    wanted = fastrelu.prelu_backward(dy, x, alpha)
    given = [a if isinstance(a, float) else device.array(a) for a in (dy, x, alpha)]
    for result, its in zip(fastrelu.prelu_backward(*given), wanted, strict=True):
        result, its = to_host(result), np.asarray(its)
        assert (result.dtype, result.shape) == (its.dtype, its.shape)
        assert_array_equal(bits(result, any_nan=True), bits(its, any_nan=True))


def data(shape, dtype="float32"):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype_of(dtype)) for _ in "dx"]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (300, 1), (300, 7), (4, 300, 7), (1, 1, 7), (4, 1, 1)])
def test_shapes_of_alpha(device, shape):
    dy, x = data((4, 300, 7))
    check(device, dy, x, np.linspace(-1, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape))


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 255, 256, 257, 519, 2600])
def test_rows(device, rows):
    dy, x = data((rows, 3))
    check(device, dy, x, np.array([0.5, -1, 0], np.float32))


def test_more_blocks_than_are_fetched_at_once(device, monkeypatch):
    monkeypatch.setattr(kernels, "FETCHED", 3)
    kernels.totals.cache_clear()
    dy, x = data((256 * 7 + 5, 2))
    check(device, dy, x, np.array([0.5, -1], np.float32))
    kernels.totals.cache_clear()


def test_layouts(device):
    dy, x = data((5, 70, 6))
    alpha = np.linspace(-1, 2, 6, dtype=np.float32)
    check(device, np.asfortranarray(dy), x, alpha)
    check(device, dy, np.asfortranarray(x), alpha)
    given = device.array(dy)[::-1, ::2, 1:], device.array(x)[::-1, ::2, 1:]
    result = fastrelu.prelu_backward(*given, device.array(alpha[1:]))[1]
    assert_array_equal(to_host(result), fastrelu.prelu_backward(dy[::-1, ::2, 1:], x[::-1, ::2, 1:], alpha[1:])[1])


@pytest.mark.parametrize(
    "dtypes",
    [("float16",) * 3, ("bfloat16", "bfloat16", "float32"), ("float64", "float32", "float16"), ("float32", "float32", "int16")],
)
def test_types(device, dtypes):
    dy, x, alpha = (data((300, 3), dtype)[0] for dtype in dtypes)
    check(device, dy, x, alpha[0])


def test_number_for_alpha(device):
    dy, x = data((300, 3))
    check(device, dy, x, 0.25)


def test_special_values(device):
    dy, x = (a[:784].reshape(-1, 28) for a in operands("float32", 2, 1000))
    check(device, dy, x, np.zeros(28, np.float32))


def test_no_columns(device):
    check(device, np.zeros((5, 0), np.float32), np.zeros((5, 0), np.float32), np.zeros(0, np.float32))


def test_refused(device):
    dy, x = map(device.array, data((4, 3)))
    with pytest.raises(ValueError, match=r"dy must have the shape of x, \(4, 3\), not \(2, 3\)"):
        fastrelu.prelu_backward(dy[:2], x, 0.5)
    with pytest.raises(ValueError, match=r"alpha must broadcast to the shape of x, \(4, 3\), not have shape \(2, 4, 3\)"):
        fastrelu.prelu_backward(dy, x, device.array(np.zeros((2, 4, 3))))
    with pytest.raises(TypeError, match="dy must be an array on the device"):
        fastrelu.prelu_backward(0.5, x, 0.5)
    assert not device.launches
