"""Layers with parameters: what they calculate, what they learn, and what they refuse."""

import copy
import inspect
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu import nn
from tests.test_import import documented_parameters

RNG = np.random.default_rng


def normal(*shape, seed=0, dtype=np.float32):
    return RNG(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_function(bias):
    layer, x, dy = nn.Linear(5, 3, bias=bias, rng=0), normal(4, 5), normal(4, 3, seed=1)
    assert_array_equal(layer.forward(x), fastrelu.linear(x, layer.weight, layer.bias))
    dx, dw, db = fastrelu.linear_backward(dy, x, layer.weight)
    assert_array_equal(layer.backward(dy), dx)
    assert_array_equal(layer.gradients["weight"], dw)
    assert layer.gradients.keys() == layer.parameters.keys() == ({"weight", "bias"} if bias else {"weight"})
    if bias:
        assert_array_equal(layer.gradients["bias"], db)


def test_linear_relu_is_the_function():
    layer, x, dy = nn.LinearReLU(5, 3, rng=0), normal(4, 5), normal(4, 3, seed=1)
    y = layer(x)
    assert_array_equal(y, fastrelu.linear_relu(x, layer.weight, layer.bias))
    dx, dw, db = fastrelu.linear_relu_backward(dy, y, x, layer.weight)
    assert_array_equal(layer.backward(dy), dx)
    assert_array_equal(layer.gradients["weight"], dw)
    assert_array_equal(layer.gradients["bias"], db)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv2dReLU])
def test_convolution_is_the_function(kind):
    layer, x = kind(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), rng=0), normal(2, 3, 7, 6)
    name = {"Conv2d": "conv2d", "Conv2dReLU": "conv2d_relu"}[kind.__name__]
    geometry = (2, 1), (1, 0), (1, 1), 1
    y = layer.forward(x)
    assert_array_equal(y, getattr(fastrelu, name)(x, layer.weight, layer.bias, *geometry))
    dy = normal(*y.shape, seed=1)
    operands = (dy, x, layer.weight) if kind is nn.Conv2d else (dy, y, x, layer.weight)
    dx, dw, db = getattr(fastrelu, f"{name}_backward")(*operands, *geometry)
    assert_array_equal(layer.backward(dy), dx)
    assert_array_equal(layer.gradients["weight"], dw)
    assert_array_equal(layer.gradients["bias"], db)


@pytest.mark.parametrize(("padding", "zeros"), [("same", (2, 1)), ("valid", 0)])
def test_padding_by_a_word(padding, zeros):
    layer = nn.Conv2d(1, 2, (3, 3), padding=padding, dilation=(2, 1), rng=0)
    x = normal(2, 1, 7, 6)
    assert_array_equal(layer.forward(x), nn.Conv2d(1, 2, 3, padding=zeros, dilation=(2, 1), rng=0).forward(x))
    assert repr(eval(repr(layer), {"Conv2d": nn.Conv2d})) == repr(layer)


def test_pooling_takes_the_largest_and_gives_the_gradient_back():
    layer = nn.MaxPool2d(2)
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    assert_array_equal(layer.forward(x)[0, 0], [[5, 7], [13, 15]])
    dx = layer.backward(np.ones((1, 1, 2, 2)))
    assert_array_equal(np.flatnonzero(dx), [5, 7, 13, 15])


def test_embedding_is_the_mean_of_rows():
    layer = nn.EmbeddingMean(5, 3, padding_id=0, rng=0)
    ids = np.array([[1, 2, 0], [4, 4, 4]])
    assert_allclose(layer.forward(ids), [layer.weight[[1, 2]].mean(0), layer.weight[4]], rtol=1e-6)
    assert layer.backward(np.ones((2, 3))) is None
    assert_allclose(layer.gradients["weight"], np.outer([0, 0.5, 0.5, 0, 1], np.ones(3)), rtol=1e-6)
    assert not layer.weight[0].any()


@pytest.mark.parametrize("layer", [nn.Linear(3, 2, rng=0), nn.Sequential(nn.Flatten(), nn.Linear(3, 2, rng=0), nn.ReLU())])
def test_dx_is_left_out_if_nobody_wants_it(layer):
    layer.forward(normal(4, 3))
    layer.backward(normal(4, 2))
    expected = {name: gradient.copy() for name, gradient in layer.gradients.items()}
    assert layer.backward(normal(4, 2), wants_dx=False) is None
    for name, gradient in layer.gradients.items():
        assert_array_equal(gradient, expected[name])


def test_flatten_and_back():
    layer, x = nn.Flatten(), normal(2, 3, 4)
    assert_array_equal(layer.forward(x), x.reshape(2, 12))
    assert_array_equal(layer.backward(x.reshape(2, 12)), x)
    assert layer.forward(np.empty((0, 3, 4))).shape == (0, 12)


def test_weights_begin_as_he_et_al_say():
    weight = nn.Linear(500, 400, rng=0).weight
    assert_allclose(weight.std(), np.sqrt(2 / 500), rtol=0.01)
    assert_allclose(weight.mean(), 0, atol=1e-3)
    assert_allclose(nn.Conv2d(64, 100, 3, groups=2, rng=0).weight.std(), np.sqrt(2 / (32 * 9)), rtol=0.02)
    assert not nn.Linear(3, 2).bias.any()


def test_seed_decides_the_weights():
    assert_array_equal(nn.Linear(3, 2, rng=1).weight, nn.Linear(3, 2, rng=RNG(1)).weight)
    generator = RNG(1)
    first, second = (nn.Linear(3, 2, rng=generator).weight for _ in range(2))
    assert (first != second).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_type_of_the_parameters(dtype):
    layer = nn.Linear(3, 2, rng=0, dtype=dtype)
    assert {p.dtype.name for p in layer.parameters.values()} == {dtype}


@pytest.mark.parametrize("x", [np.ones((2, 3)), np.ones((2, 3), np.int8), [[1, 1, 1], [1, 1, 1]], np.ones((2, 3), ">f4")])
def test_input_becomes_of_the_type_of_the_parameters(x):
    layer = nn.Linear(3, 2, rng=0)
    y = layer.forward(x)
    assert y.dtype == np.float32
    assert_array_equal(y, layer.forward(np.ones((2, 3), np.float32)))
    assert layer.backward(np.ones((2, 2))).dtype == np.float32


def test_batch_may_have_many_axes():
    layer, x = nn.Linear(3, 2, rng=0), normal(4, 5, 3)
    assert_array_equal(layer.forward(x).reshape(20, 2), layer.forward(x.reshape(20, 3)))


def test_gradients_are_filled_again():
    layer = nn.Linear(3, 2, rng=0)
    layer.forward(normal(4, 3))
    layer.backward(normal(4, 2))
    first, values = layer.gradients["weight"], layer.gradients["weight"].copy()
    layer.forward(normal(4, 3, seed=5))
    layer.backward(normal(4, 2))
    assert layer.gradients["weight"] is first
    assert (first != values).any()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_have_the_parameters_and_nothing_of_the_last_call(again):
    layer = nn.Linear(3, 2, rng=0)
    layer.forward(normal(4, 3))
    other = again(layer)
    assert_array_equal(other.weight, layer.weight)
    assert other.gradients == {}
    with pytest.raises(RuntimeError, match="backward needs a forward"):
        other.backward(normal(4, 2))


def test_repr_makes_such_a_layer():
    layer = nn.Conv2d(2, 4, 3, padding=1, groups=2, bias=False, dtype="float64")
    other = eval(repr(layer), {"Conv2d": nn.Conv2d})
    assert repr(other) == repr(layer)
    assert other.weight.shape == (4, 1, 3, 3)


FAULTS = [
    (lambda: nn.Linear(0, 2), ValueError, "Linear: in_features must be at least 1, not 0"),
    (lambda: nn.LinearReLU(2, 2.0), TypeError, "LinearReLU: out_features must be an integer, not float"),
    (
        lambda: nn.Linear(2, 2, dtype="int32"),
        ValueError,
        "Linear: dtype must be float16, bfloat16, float32 or float64, not 'int32'",
    ),
    (lambda: nn.Linear(2, 2, dtype=None), ValueError, "Linear: dtype must be .* not None"),
    (lambda: nn.Linear(2, 2, rng="x"), TypeError, "Linear: rng must be a seed, a numpy.random.Generator or None, not 'x'"),
    (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "Conv2d: in_channels must be a multiple of groups, 2, not 3"),
    (lambda: nn.Conv2d(3, 4, (3, 3, 3)), ValueError, "Conv2d: kernel_size must be one integer or two, not 3"),
    (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, 'Conv2d: padding must be "same", "valid", an integer or a pair'),
    (lambda: nn.Conv2d(3, 4, 3, 2, "same"), ValueError, r'Conv2d: padding must not be "same" with stride \(2, 2\)'),
    (lambda: nn.Conv2d(3, 4, 3, stride=0), ValueError, "Conv2d: stride must be at least 1, not 0"),
    (lambda: nn.MaxPool2d(2, padding=-1), ValueError, "MaxPool2d: padding must be at least 0, not -1"),
    (
        lambda: nn.EmbeddingMean(5, 2, padding_id=5),
        ValueError,
        "EmbeddingMean: padding_id must be below num_embeddings, 5, not 5",
    ),
    (lambda: nn.Linear(3, 2).forward(np.ones((2, 4))), ValueError, r"Linear: x must have shape \(..., 3\) .*, not \(2, 4\)"),
    (lambda: nn.Linear(3, 2).forward("x"), TypeError, "Linear: x must be an integer type, float16"),
    (lambda: nn.Linear(3, 2).forward([[1], [1, 2]]), ValueError, "Linear: x must be an array or become one"),
    (lambda: nn.Conv2d(3, 2, 1).forward(np.ones((2, 4, 5, 5))), ValueError, r"Conv2d: x must have shape \(N, 3, H, W\)"),
    (lambda: nn.Linear(3, 2).backward(np.ones((2, 4))), RuntimeError, "Linear: backward needs a forward before it"),
    (lambda: nn.Flatten().forward(1.0), ValueError, "Flatten: x must have at least one axis"),
]


@pytest.mark.parametrize(("call", "error", "words"), FAULTS)
def test_fault(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()


def test_gradient_of_another_shape_is_refused():
    layer = nn.Linear(3, 2, rng=0)
    layer.forward(normal(4, 3))
    with pytest.raises(ValueError, match=r"^Linear: dy must have the shape of the output, \(4, 2\), not \(4, 3\)$"):
        layer.backward(normal(4, 3))
    assert layer.gradients == {}


@pytest.mark.parametrize("name", nn.__all__)
def test_docstring_names_the_parameters_of_the_signature(name):
    thing = getattr(nn, name)
    assert documented_parameters(inspect.getdoc(thing)) == list(inspect.signature(thing).parameters)
