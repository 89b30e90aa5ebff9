"""Layers one after the other: fusion without another bit, gradients of whole networks, memory that is used again."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu import nn


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def layers(name, dtype="float64"):
    """The layers of a network for images (N, 2, 6, 6)."""
    rng = np.random.default_rng(1)

    def linear(k, n, **options):
        return nn.Linear(k, n, rng=rng, dtype=dtype, **options)

    dense = {
        "relu": [linear(72, 8), nn.ReLU(), linear(8, 5), nn.ReLU(), linear(5, 3)],
        "linear_relu": [nn.LinearReLU(72, 8, rng=rng, dtype=dtype), linear(8, 3, bias=False)],
        "smooth": [
            linear(72, 8),
            nn.Tanh(),
            linear(8, 7),
            nn.Softplus(),
            linear(7, 6),
            nn.ELU(0.5),
            linear(6, 5),
            nn.Sigmoid(),
        ],
        "leaky": [linear(72, 8), nn.LeakyReLU(0.2), linear(8, 3), nn.PReLU(np.full(3, 0.25, dtype))],
        "alone": [nn.Tanh(), linear(72, 4), nn.ReLU(inplace=True), linear(4, 3), nn.Sigmoid(copy=True)],
        "nested": [nn.Sequential(linear(72, 4), nn.ReLU()), nn.Sequential(linear(4, 3))],
    }
    if name in dense:
        return [nn.Flatten(), *dense[name]]
    convolutions = [nn.Conv2d(2, 3, 3, padding=1, rng=rng, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2)]
    return [*convolutions, nn.Conv2dReLU(3, 4, 2, rng=rng, dtype=dtype), nn.Flatten(), linear(16, 3)]


NAMES = ("relu", "linear_relu", "smooth", "leaky", "alone", "nested", "convolution")


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    model = nn.Sequential(*layers(name))
    x = normal(3, 2, 6, 6)
    y = model.forward(x)
    weights = normal(*y.shape, seed=3)
    dx = model.backward(weights).copy()
    gradients = {key: g.copy() for key, g in model.gradients.items()}

    def total():
        return float((model.predict(x) * weights).sum())

    step = 1e-6
    rng = np.random.default_rng(4)
    for array, gradient in [(x, dx), *((model.parameters[key], gradients[key]) for key in gradients)]:
        for i in rng.choice(array.size, min(8, array.size), replace=False):
            at = np.unravel_index(i, array.shape)
            before = array[at]
            array[at] = before + step
            above = total()
            array[at] = before - step
            below = total()
            array[at] = before
            assert_allclose(gradient[at], (above - below) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["relu", "smooth", "leaky", "convolution"])
def test_fusion_does_not_change_a_bit(name):
    model, alone = nn.Sequential(*layers(name)), layers(name)
    x = normal(5, 2, 6, 6)
    y = x
    for layer in alone:
        y = layer.forward(y)
    assert_array_equal(model.forward(x), y)
    dy = dx = normal(*y.shape, seed=1)
    for layer in reversed(alone):
        dx = layer.backward(dx)
    assert_array_equal(model.backward(dy), dx)
    expected = [gradient for layer in alone for gradient in layer.gradients.values()]
    for gradient, theirs in zip(model.gradients.values(), expected, strict=True):
        assert_array_equal(gradient, theirs)


def test_linear_and_relu_are_one_call(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 2, rng=0), nn.ReLU(), nn.Linear(2, 2, rng=0))
    called = []
    for name in ("linear", "linear_relu", "relu", "linear_backward", "linear_relu_backward", "relu_backward"):
        original = getattr(fastrelu, name)
        for module in (fastrelu, fastrelu.activations):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *a, name=name, f=original, **k: (called.append(name), f(*a, **k))[1])
    model.forward(normal(4, 3))
    model.backward(normal(4, 2))
    assert called == ["linear_relu", "linear", "linear_backward", "linear_relu_backward"]
    assert model.layers[1].A.shape == (4, 2)


def test_arrays_between_the_layers_are_used_again_and_results_are_not():
    model = nn.Sequential(*layers("convolution"))
    x = normal(5, 2, 6, 6)
    first, dx = model.forward(x), model.backward(np.ones((5, 3)))
    between = [stage._arrays[0] for stage in model._stages]
    kept = first.copy(), dx.copy()
    second, dx2 = model.forward(-x), model.backward(np.ones((5, 3)))
    assert [stage._arrays[0] is array for stage, array in zip(model._stages, between, strict=True)] == [True] * 5
    assert [array is None for array in between] == [False, False, False, True, True]
    assert not np.shares_memory(first, second)
    assert not np.shares_memory(dx, dx2)
    assert_array_equal(first, kept[0])
    assert_array_equal(dx, kept[1])


def test_result_is_new_behind_a_layer_that_gives_a_view():
    model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Flatten())
    first = model.forward(normal(2, 3))
    kept = first.copy()
    model.forward(normal(2, 3, seed=1))
    assert_array_equal(first, kept)


def test_activation_that_copies_lets_its_output_be_changed():
    model = nn.Sequential(nn.Linear(3, 4, rng=0, dtype="float64"), nn.ReLU(copy=True))
    y = model.forward(normal(2, 3))
    dx = model.backward(np.ones((2, 4)))
    model.forward(normal(2, 3))[:] = 1
    assert_array_equal(model.backward(np.ones((2, 4))), dx)
    assert not np.shares_memory(y, model.layers[1].A)


def test_other_batches_in_between():
    model, x = nn.Sequential(*layers("relu")), normal(6, 2, 6, 6)
    expected = model.forward(x)
    for rows in (6, 2, 6, 1):
        assert_array_equal(model.forward(x[:rows]), expected[:rows])
        assert_array_equal(model.predict(x[:rows]), expected[:rows])


@pytest.mark.parametrize("batch_size", [1, 4, 10, 11, 1000])
def test_predict_has_the_same_bits_for_every_batch_size(batch_size):
    model, x = nn.Sequential(*layers("relu")), normal(10, 2, 6, 6)
    assert_array_equal(model.predict(x, batch_size), model.forward(x))


def test_predict_keeps_nothing_and_spares_what_backward_needs():
    model, x = nn.Sequential(*layers("relu")), normal(4, 2, 6, 6)
    y = model.forward(x)
    dx = model.backward(np.ones_like(y))
    model.forward(x)
    model.predict(-x)
    assert_array_equal(model.backward(np.ones_like(y)), dx)


def test_predict_of_nothing():
    assert nn.Sequential(*layers("relu")).predict(np.empty((0, 2, 6, 6))).shape == (0, 3)


class Scale:
    """A layer of a user, with the two methods only."""

    def forward(self, x):
        self.seen = x
        return 2 * x

    def backward(self, dy):
        return 2 * dy


def test_layer_of_a_user():
    own = Scale()
    model = nn.Sequential(nn.Linear(3, 4, rng=0), own, nn.Linear(4, 2, rng=0))
    x = normal(2, 3)
    model.forward(x)
    seen, values = own.seen, own.seen.copy()
    model.forward(-x)
    assert_array_equal(seen, values)
    assert model.backward(np.ones((2, 2))).shape == (2, 3)
    assert list(model.parameters) == ["0.weight", "0.bias", "2.weight", "2.bias"]


class Halved(nn.Linear):
    """A layer of ours with another forward pass."""

    def forward(self, x):
        return super().forward(x) / 2

    def backward(self, dy, **options):
        return super().backward(dy / 2, **options)


def test_layer_of_a_user_that_is_derived_from_ours():
    layer = Halved(3, 2, rng=0, dtype="float64")
    x, dy = normal(4, 3), normal(4, 2)
    y = fastrelu.relu(layer.forward(x))
    dx = layer.backward(fastrelu.relu_backward(dy, y))
    model = nn.Sequential(layer, nn.ReLU())
    assert_array_equal(model.forward(x), y)
    assert_array_equal(model.backward(dy), dx)


def test_copy_is_another_model():
    model, x = nn.Sequential(*layers("nested")), normal(2, 2, 6, 6)
    other = copy.deepcopy(model)
    assert_array_equal(other.forward(x), model.forward(x))
    other.parameters["1.0.weight"][:] = 0
    assert model.parameters["1.0.weight"].any()
    assert other._stages[1].layer is other.layers[1]


def test_repr_shows_what_was_written():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Sequential(nn.Flatten()))
    assert repr(model).splitlines() == [
        "Sequential(",
        "    Linear(in_features=3, out_features=2, bias=True, dtype='float32'),",
        "    ReLU(),",
        "    Sequential(",
        "        Flatten(),",
        "    ),",
        ")",
    ]
    assert [type(layer).__name__ for layer in model.layers] == ["Linear", "ReLU", "Sequential"]


def test_empty_model_is_the_identity():
    model, x = nn.Sequential(), normal(2, 3)
    assert_array_equal(model.forward(x), x)
    assert_array_equal(model.backward(x), x)


def test_something_that_is_no_layer():
    with pytest.raises(TypeError, match=r"^Sequential: layer 0 must have .*, not be the type ReLU: write ReLU\(\)"):
        nn.Sequential(nn.ReLU)
    with pytest.raises(TypeError, match=r"^Sequential: layer 1 must have .*, not be a list: write \*layers"):
        nn.Sequential(nn.ReLU(), [nn.ReLU()])


def test_layer_that_is_there_twice():
    layer = nn.Tanh()
    with pytest.raises(ValueError, match=r"Sequential: layer 2, Tanh\(\), is there twice"):
        nn.Sequential(layer, nn.Flatten(), layer)


def test_backward_needs_a_forward():
    with pytest.raises(RuntimeError, match="Sequential: backward needs a forward before it"):
        nn.Sequential(nn.ReLU()).backward(np.ones(2))
