"""NumPy arrays on a device: whole calls, with the bits of the CPU."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.operations import GRADIENTS

M, K, N = 5, 7, 9


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_elementwise(device: Any, dtype: Any) -> None:
    x = normal(M, N, dtype=dtype)
    for call in (fastrelu.relu, lambda x: fastrelu.leaky_relu(x, 0.5), lambda x: fastrelu.relu_backward(x, x.T.copy().T)):
        wanted = call(x)
        with fastrelu.use("cuda"):
            result = call(x)
        assert result.dtype == x.dtype
        assert_array_equal(result.view(np.uint8), wanted.view(np.uint8))
    assert len(device.launches) == 3


def test_single_element_is_a_scalar(device: Any) -> None:
    result = fastrelu.relu(np.array([[-1.0]])[0], device="cuda")
    assert_array_equal(result, [0.0])
    wanted, result = (
        fastrelu.linear(np.ones(3), np.ones((3, 1)), device="cpu"),
        fastrelu.linear(np.ones(3), np.ones((3, 1)), device="cuda"),
    )
    assert_array_equal(result, wanted)


def test_where(device: Any) -> None:
    x, out = normal(M, N), normal(M, N, seed=1)
    wanted = out.copy()
    fastrelu.relu(x, out=wanted, where=x < 0.5)
    assert fastrelu.relu(x, out=out, where=x < 0.5, device="cuda") is out
    assert_array_equal(out, wanted)
    assert_array_equal(fastrelu.relu(x, where=np.True_, device="cuda"), fastrelu.relu(x))


@pytest.mark.nightly
def test_layer_with_an_output_and_a_mask(device: Any) -> None:
    x, w, b = normal(M, K), np.asfortranarray(normal(K, N, seed=1)), normal(N, seed=2)
    wanted, bits = fastrelu.linear_relu(x, w, b, mask=np.empty((M, 2), np.uint8))
    out, mask = np.full((M, N), np.nan, np.float32), np.full((M, 2), 255, np.uint8)
    y, its = fastrelu.linear_relu(x, w, b, out=out, mask=mask, device="cuda")
    assert y is out
    assert its is mask
    assert_array_equal(out, wanted)
    assert_array_equal(mask, bits)
    assert_array_equal(fastrelu.linear_relu(x, w, device="cuda"), fastrelu.linear_relu(x, w))


def test_backward_that_adds(device: Any) -> None:
    dy, x, w = normal(M, N), normal(M, K, seed=1), normal(K, N, seed=2)
    y = np.maximum(normal(M, N, seed=3), 0)
    before = normal(M, K), normal(K, N), normal(N)
    wanted = tuple(map(np.copy, before))
    fastrelu.linear_relu_backward(dy, y, x, w, out=wanted, accumulate=GRADIENTS)
    out = tuple(map(np.copy, before))
    with fastrelu.use("cuda"):
        results = fastrelu.linear_relu_backward(dy, y, x, w, out=out, accumulate=GRADIENTS)
    for result, its, right in zip(results, out, wanted, strict=True):
        assert result is its
        assert_array_equal(its, right)
    dx, dw, db = fastrelu.linear_backward(dy, x, w, wanted=("dw",), device="cuda")
    assert (dx, db) == (None, None)
    assert_array_equal(dw, fastrelu.linear_backward(dy, x, w)[1])


def test_prelu_backward(device: Any) -> None:
    dy, x, alpha = normal(M, N), normal(M, N, seed=1), normal(N, seed=2)
    wanted = fastrelu.prelu_backward(dy, x, alpha)
    for place in ("cuda", "cpu"):
        for got, right in zip(fastrelu.prelu_backward(dy, x, alpha, device=place), wanted, strict=True):
            assert_array_equal(got, right)
    assert len(device.launches) == 3
    with pytest.raises(ValueError, match=r"^prelu_backward: device must be"):
        fastrelu.prelu_backward(dy, x, alpha, device="gpu")


def test_errors_are_those_of_the_function(device: Any) -> None:
    with pytest.raises(ValueError, match=r"^linear_relu: w must have shape"):
        fastrelu.linear_relu(normal(M, K), normal(M, K), device="cuda")
    with pytest.raises(TypeError, match=r"^relu: signature is not available for arrays on a CUDA device$"):
        fastrelu.relu(normal(3), signature="f->f", device="cuda")
    with pytest.raises(TypeError, match=r"^relu: where must be of type bool, not float32$"):
        fastrelu.relu(normal(3), where=normal(3), device="cuda")
    assert not device.launches


def test_nothing_is_left_on_the_device(device: Any) -> None:
    for _ in range(2):
        fastrelu.linear_relu(normal(M, K), normal(K, N), device="cuda")
    assert not device._allocated
