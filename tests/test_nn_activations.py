"""The activations as layers: what they keep, and what they write over."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu import nn

LAYERS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


def data(dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Z, with both zeros and a NaN, and dLdA."""
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((7, 5)).astype(dtype)
    Z[0, :3] = 0.0, -0.0, np.nan
    return Z, rng.standard_normal((7, 5)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_the_function(name, dtype):
    Z, dLdA = data(dtype)
    layer = LAYERS[name]()
    parameters = (layer.alpha,) if hasattr(layer, "alpha") else ()
    A = getattr(fastrelu, name)(Z, *parameters)
    assert_array_equal(layer.forward(Z), A)
    assert_array_equal(layer.backward(dLdA), getattr(fastrelu, f"{name}_backward")(dLdA, A, *parameters))


@pytest.mark.parametrize("name", LAYERS)
def test_in_place_writes_over_z_and_over_the_gradient(name):
    Z, dLdA = data()
    layer, other = LAYERS[name](inplace=True), LAYERS[name]()
    A, dLdZ = other.forward(Z), None
    dLdZ = other.backward(dLdA)
    assert layer.forward(Z) is Z
    assert layer.backward(dLdA) is dLdA
    assert_array_equal(Z, A)
    assert_array_equal(dLdA, dLdZ)


@pytest.mark.parametrize("name", LAYERS)
def test_output_is_kept_without_a_copy(name):
    Z, _ = data()
    layer = LAYERS[name]()
    assert layer.forward(Z) is layer.A


def test_copy_survives_a_change_of_the_output():
    Z, dLdA = data()
    layer = nn.ReLU(copy=True)
    A = layer.forward(Z)
    expected = fastrelu.relu_backward(dLdA, A)
    A[:] = 0
    assert_array_equal(layer.backward(dLdA), expected)


@pytest.mark.parametrize("inplace", [False, True])
def test_prelu_has_the_gradient_of_alpha(inplace):
    Z, dLdA = data()
    alpha = np.linspace(-1, 1, 5, dtype=np.float32)
    layer = nn.PReLU(alpha, inplace=inplace)
    expected = fastrelu.prelu(Z, alpha)
    dx, dalpha = fastrelu.prelu_backward(dLdA, Z, alpha)
    assert_array_equal(layer.forward(Z), expected)
    assert_array_equal(layer.backward(dLdA), dx)
    assert_array_equal(layer.dLdalpha, dalpha)
    assert (layer.A is Z) == inplace


def test_prelu_with_a_negative_alpha_knows_the_sign_of_its_input():
    layer = nn.PReLU(np.float32(-0.5))
    layer.forward(np.array([-2.0, 2.0], np.float32))
    assert_array_equal(layer.backward(np.ones(2, np.float32)), np.array([-0.5, 1.0], np.float32))


def test_gradient_of_another_shape_is_refused():
    layer = nn.ReLU()
    layer.forward(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"ReLU: dLdA must have the shape of the output, \(2, 3\), not \(3,\)"):
        layer.backward(np.ones(3))


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.PReLU()])
def test_backward_needs_a_forward(layer):
    with pytest.raises(RuntimeError, match="backward needs a forward before it"):
        layer.backward(np.ones(3))


def test_only_an_array_can_be_written_over():
    with pytest.raises(TypeError, match="Z must be an array to be overwritten, not list"):
        nn.ReLU(inplace=True).forward([1.0])


@pytest.mark.parametrize("kind", [nn.LeakyReLU, nn.ELU])
def test_alpha_must_let_the_output_tell_the_sign(kind):
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        kind(alpha=-0.1)


def test_repr_shows_the_options():
    assert repr(nn.LeakyReLU(0.2, inplace=True)) == "LeakyReLU(alpha=0.2, inplace=True)"
