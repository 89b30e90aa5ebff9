"""Models of `fastrelu.nn` as ONNX files: checked by onnx, run by ONNX Runtime and by `fastrelu.onnx.load`."""

import numpy as np
import onnx
import onnx.checker
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu.onnx
from fastrelu import nn
from fastrelu.examples import digits
from fastrelu.onnx import export, load, save
from tests.bridges.onnx_models import normal, onnxruntime_outputs

U = 2.0**-24
RNG = np.random.default_rng(5)


def biased(layer):
    """With a bias that is not 0."""
    layer.bias[:] = normal(*layer.bias.shape, seed=7)
    return layer


def prelu():
    layer = nn.PReLU()
    layer.alpha = np.asarray(-0.5, np.float32)
    return layer


LAYERS = {
    "Linear": (lambda: biased(nn.Linear(6, 5, rng=0)), (6,), None),
    "Linear without bias": (lambda: nn.Linear(6, 5, bias=False, rng=0), (6,), None),
    "Linear on more axes": (lambda: biased(nn.Linear(6, 5, rng=0)), (3, 6), ("N", 3, 6)),
    "LinearReLU": (lambda: biased(nn.LinearReLU(6, 5, rng=0)), (6,), None),
    "ReLU": (nn.ReLU, (6,), ("N", 6)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), (6,), ("N", 6)),
    "PReLU": (prelu, (6,), ("N", 6)),
    "ELU": (lambda: nn.ELU(0.7), (6,), ("N", 6)),
    "Sigmoid": (nn.Sigmoid, (6,), ("N", 6)),
    "Tanh": (nn.Tanh, (6,), ("N", 6)),
    "Softplus": (nn.Softplus, (6,), ("N", 6)),
    "Conv2d": (lambda: biased(nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, rng=0)), (4, 9, 8), None),
    "Conv2d without bias": (lambda: nn.Conv2d(4, 6, 3, bias=False, rng=0), (4, 9, 8), None),
    "Conv2d with the same size": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same", dilation=(2, 1), rng=0), (4, 9, 8), None),
    "Conv2d with all zeros left out": (lambda: nn.Conv2d(4, 6, 3, padding="valid", rng=0), (4, 9, 8), None),
    "Conv2dReLU": (lambda: biased(nn.Conv2dReLU(4, 6, 3, rng=0)), (4, 9, 8), None),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), (4, 9, 8), None),
    "MaxPool2d with ceil_mode": (lambda: nn.MaxPool2d((2, 3), (2, 3), (1, 0), (1, 2), True), (4, 9, 8), None),
    "Flatten": (nn.Flatten, (4, 9, 8), ("N", None, 9, 8)),
}


def check(network, x, shape=None, product=1.0):
    """The exported model by ONNX Runtime and by us, for two sizes of a batch."""
    model = export(network, input_shape=shape)
    onnx.checker.check_model(model, full_check=True)
    loaded = load(model)
    for rows in (x, x[:1]):
        expected = network.predict(rows) if isinstance(network, nn.Sequential) else network.forward(rows)
        (y,) = onnxruntime_outputs(model, x=rows)
        assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
        assert_allclose(y, expected, rtol=8 * U, atol=product * U)
        assert_array_equal(loaded(rows), expected)
    assert loaded.outputs[0].shape[0] == "N"
    return loaded


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer(name):
    make, shape, given = LAYERS[name]
    check(make(), normal(3, *shape), given, product=2 * 40 * 10)


@pytest.mark.parametrize("padding_id", [None, 2])
def test_embedding_mean(padding_id):
    layer = nn.EmbeddingMean(9, 4, padding_id=padding_id, rng=0)
    ids = np.array([[1, 2, 3], [2, 2, 2], [8, 0, 8]])
    if padding_id is not None:
        layer.weight[padding_id] = np.nan  # which does not count
    model = export(layer)
    onnx.checker.check_model(model, full_check=True)
    for rows in (ids, ids[:1], ids[:, :2]):
        expected = layer.forward(rows)
        for y in (*onnxruntime_outputs(model, x=rows), load(model)(rows)):
            assert_allclose(y, expected, rtol=0, atol=4 * 4 * U)


def test_the_networks_of_the_examples():
    dense = check(digits.dense(RNG), normal(5, 1, 28, 28), ("N", 1, 28, 28), product=784 * 8)
    assert [step.kernel.text.split()[0] for step in dense._plan.steps] == ["NumPy", "linear_relu,", "linear_relu,", "linear,"]
    check(digits.convolutional(RNG), normal(2, 1, 28, 28), ("N", 1, 28, 28), product=784 * 8)


def test_a_network_in_a_network():
    inner = nn.Sequential(nn.ReLU(), nn.Linear(5, 6, rng=1))
    loaded = check(nn.Sequential(nn.Linear(6, 5, rng=0), inner, nn.Sequential()), normal(3, 6), product=200)
    assert len(loaded._plan.steps) == 2


def test_a_linear_layer_behind_a_convolution_takes_the_last_axis():
    network = nn.Sequential(nn.Conv2d(2, 3, 3, rng=0), biased(nn.Linear(6, 5, rng=1)))
    check(network, normal(2, 2, 7, 8), product=2000)


def test_types_are_converted_as_the_layers_do():
    slopes = nn.PReLU(np.array([0.25, 0.5, 0.3, -1.0, 0.1]))  # float64
    network = nn.Sequential(biased(nn.Linear(6, 5, rng=0)), slopes)
    assert check(network, normal(3, 6), product=200).outputs[0].dtype == np.float64
    check(nn.Sequential(*network.layers, nn.Linear(5, 3, rng=1)), normal(3, 6), product=2000)
    half = nn.Sequential(nn.Linear(6, 5, rng=0, dtype="float16"), nn.PReLU(np.full(5, 0.3, np.float32)))
    assert load(export(half)).outputs[0].dtype == np.float16


def test_a_slope_of_float64_keeps_its_digits():
    network, x = nn.Sequential(nn.LeakyReLU(0.01)), normal(3, 6, dtype="f8")
    model = export(network, input_shape=("N", 6), dtype="float64")
    assert_array_equal(load(model)(x), network.predict(x))
    assert_array_equal(onnxruntime_outputs(model, x=x)[0], network.predict(x))


def test_the_weights_are_copied():
    layer = nn.Linear(6, 5, rng=0)
    model = export(layer)
    expected = load(model)(normal(2, 6))
    layer.weight[:] = 0
    assert_array_equal(load(model)(normal(2, 6)), expected)


def test_a_file(tmp_path):
    network, x = nn.Sequential(nn.Linear(6, 5, rng=0), nn.ReLU()), normal(3, 6)
    save(network, tmp_path / "saved.onnx")
    export(network, tmp_path / "exported.onnx")
    for name in ("saved.onnx", "exported.onnx"):
        assert_array_equal(load(tmp_path / name)(x), network.predict(x))


def test_large_weights_go_to_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("fastrelu.onnx.exporting._LARGEST", 1000)
    network, x = nn.Sequential(nn.Linear(40, 30, rng=0), nn.ReLU()), normal(3, 40)
    save(network, tmp_path / "large.onnx")
    size = (tmp_path / "large.onnx.data").stat().st_size
    assert size >= 4800
    monkeypatch.chdir(tmp_path)
    assert_array_equal(load(export(network, "large.onnx"))(x), network.predict(x))  # over the old one
    assert (tmp_path / "large.onnx.data").stat().st_size == size
    onnx.checker.check_model(str(tmp_path / "large.onnx"), full_check=True)
    assert_array_equal(load(tmp_path / "large.onnx")(x), network.predict(x))


def test_windows_that_begin_behind_the_image_are_not_counted_in_the_shapes():
    pool = nn.MaxPool2d(1, 2, ceil_mode=True)  # the third window of 4 points would begin behind them
    network = nn.Sequential(pool, nn.Flatten(), biased(nn.Linear(4, 3, rng=0)))
    check(network, normal(3, 1, 4, 4), ("N", 1, 4, 4), product=200)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_versions_of_the_operator_set(opset):
    network = nn.Sequential(nn.Conv2d(1, 3, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 5, rng=1))
    model = export(network, input_shape=("N", 1, 8, 8), opset=opset)
    assert model.opset_import[0].version == opset
    x = normal(2, 1, 8, 8)
    assert_allclose(onnxruntime_outputs(model, x=x)[0], network.predict(x), rtol=0, atol=200 * U)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_are_checked_by_onnx(dtype):
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, rng=0, dtype=dtype),
        nn.ELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 5, rng=1, dtype=dtype),
        nn.Softplus(),
    )
    model = export(network, input_shape=("N", 1, 8, 8))
    onnx.checker.check_model(model, full_check=True)
    loaded = load(model)
    assert (loaded.inputs[0].dtype, loaded.outputs[0].dtype) == (network.parameters["0.weight"].dtype,) * 2


class Own:
    """A layer of a user."""

    def forward(self, x):
        return x

    backward = forward


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), Own()),
            {"input_shape": (1, 2)},
            TypeError,
            "export: layer 1 must be one of Linear, .*, not Own",
        ),
        (Own(), {"input_shape": (1, 2)}, TypeError, "export: model must be one of Linear, .*, not Own"),
        (nn.ReLU(), {}, ValueError, "export: input_shape must be given, since the first layer does not tell what it reads"),
        (nn.ReLU(), {"input_shape": 3}, TypeError, "export: input_shape must be a tuple of integers, names and None, not 3"),
        (nn.Linear(2, 3), {"opset": 12}, ValueError, "export: opset must be 13 to [0-9]+, not 12"),
        (
            nn.MaxPool2d(2, ceil_mode=True),
            {"opset": 21},
            ValueError,
            "export: opset must be 22 to [0-9]+ for MaxPool2d with ceil_mode",
        ),
        (nn.Linear(2, 3), {"opset": 17.0}, TypeError, "export: opset must be an integer, not float"),
        (
            nn.ReLU(),
            {"input_shape": ("N", 2), "dtype": "complex64"},
            TypeError,
            "export: dtype must be a float type, not complex64",
        ),
        (nn.Linear(2, 3), {"input_shape": ("N", 3)}, ValueError, "export: the layers do not fit the input"),
    ],
)
def test_what_cannot_be_exported_is_told(model, options, error, message, tmp_path):
    with pytest.raises(error, match=f"^{message}"):
        export(model, tmp_path / "model.onnx", **options)
    assert not (tmp_path / "model.onnx").exists()


def test_the_names_of_the_package():
    assert fastrelu.onnx.load is load
    assert "Gemm" in fastrelu.onnx.supported()
