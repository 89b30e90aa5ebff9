"""Loading ONNX models: files, fusion, the rules of ONNX, calls and their faults."""

import io
import pickle
import textwrap
import threading
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnx import TensorProto, helper, numpy_helper

import fastrelu
from fastrelu.onnx import load
from tests.bridges.onnx_models import model_of, normal, onnxruntime_outputs
from tests.subprocesses import run

U = 2.0**-24


def calls(model):
    return [step.kernel.text.split()[0].rstrip(",") for step in model._plan.steps]


def mlp(sizes=(20, 16, 12, 5), operator="Gemm", activation="Relu"):
    """A network, its weights (k, n) and its biases."""
    w = [normal(k, n, seed=i) for i, (k, n) in enumerate(pairwise(sizes))]
    b = [normal(n, seed=9 + i) for i, n in enumerate(sizes[1:])]
    constants, nodes, last = {}, [], "x"
    for i in range(len(w)):
        constants |= {f"w{i}": w[i].T if operator == "Gemm" else w[i], f"b{i}": b[i]}
        if operator == "Gemm":
            nodes.append(("Gemm", f"{last} w{i} b{i}", f"z{i}", {"transB": 1}))
        else:
            nodes += [("MatMul", f"{last} w{i}", f"p{i}"), ("Add", f"p{i} b{i}", f"z{i}")]
        last = "y" if i == len(w) - 1 else f"a{i}"
        if last != "y":
            nodes.append((activation, f"z{i}", last))
        else:
            nodes.append(("Identity", f"z{i}", "y"))
    return model_of(nodes, {"x": ("N", sizes[0])}, constants), w, b


def test_path_bytes_file_and_object_are_the_same(tmp_path):
    model, _, _ = mlp()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    x = normal(3, 20)
    expected = load(model)(x)
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()), file):
            assert_array_equal(load(source)(x), expected)


def test_weights_in_a_file_of_their_own_are_found_beside_the_path_only(tmp_path):
    model, _, _ = mlp()
    expected = load(model)(normal(2, 20))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").exists()
    assert_array_equal(load(path)(normal(2, 20)), expected)
    with pytest.raises(ValueError, match="load: initializer w0 is kept in another file; load the model by its path"):
        load(path.read_bytes())


def test_weights_that_are_missing_or_damaged_are_told(tmp_path):
    model, _, _ = mlp()
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    with pytest.raises(ValueError, match=r"^load: the file '.*model.onnx' has weights that cannot be read: "):
        load(path)
    model, _, _ = mlp()
    model.graph.initializer[0].raw_data = b"123"
    with pytest.raises(ValueError, match=r"^load: initializer w0 cannot be read: "):
        load(model)


@pytest.mark.parametrize(
    "source", [b"", b"no model", io.BytesIO(b"\x00\x01"), onnx.ModelProto()], ids=["empty", "text", "file", "object"]
)
def test_what_is_no_model_is_refused(source):
    with pytest.raises(ValueError, match="load: model must"):
        load(source)


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"load: model must be a path, bytes, a file or an onnx.ModelProto, not int"):
        load(3)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.onnx")


@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
@pytest.mark.parametrize("batch", [0, 1, 7, 256])
def test_a_network_has_the_bits_of_the_fused_layers(operator, batch):
    model, w, b = mlp(operator=operator)
    x = normal(batch, 20)
    loaded = load(model)
    assert calls(loaded) == ["linear_relu", "linear_relu", "linear", "NumPy"]
    h = x
    for i in range(3):
        h = (fastrelu.linear if i == 2 else fastrelu.linear_relu)(h, w[i], b[i])
    assert_array_equal(loaded(x), h)
    if batch:
        assert_allclose(h, onnxruntime_outputs(model, x=x)[0], rtol=0, atol=64 * U * np.abs(x).sum(1).max() * 10)


@pytest.mark.parametrize(("n", "call"), [(1, "linear_relu"), (4, "linear_relu"), (5, "linear_relu,")])
def test_a_few_columns_are_not_packed(n, call):
    w, b, x = normal(6, n), normal(n, seed=1), normal(3, 6, seed=2)
    model = load(model_of([("Gemm", "x w b", "z"), ("Relu", "z", "y")], {"x": ("N", 6)}, {"w": w, "b": b}))
    assert model._plan.steps[0].kernel.text.split()[0] == call
    assert_array_equal(model(x), fastrelu.linear_relu(x, w, b))


SLOPES = normal(4, seed=3)
ACTIVATIONS = {
    "Relu": ("", {}, fastrelu.relu),
    "Elu": ("", {"alpha": 0.5}, lambda z: fastrelu.elu(z, 0.5)),
    "PRelu": (" s", {}, lambda z: fastrelu.prelu(z, SLOPES)),
}


@pytest.mark.parametrize("operator", ACTIVATIONS)
def test_the_activation_behind_a_product_is_fused_with_the_same_bits(operator):
    more, attributes, function = ACTIVATIONS[operator]
    w, b, x = normal(6, 4), normal(4, seed=1), normal(3, 6, seed=2)
    nodes = [("MatMul", "x w", "p"), ("Add", "b p", "z"), (operator, f"z{more}", "y", attributes)]
    model = load(model_of(nodes, {"x": ("N", 6)}, {"w": w, "b": b, "s": SLOPES}))
    assert len(model._plan.steps) == 1
    assert_array_equal(model(x), function(fastrelu.linear(x, w, b)))


@pytest.mark.parametrize("operator", ACTIVATIONS)
def test_the_activation_behind_a_convolution_is_fused_with_the_same_bits(operator):
    more, attributes, function = ACTIVATIONS[operator]
    w, b, x = normal(4, 2, 3, 3), normal(4, seed=1), normal(2, 2, 6, 7, seed=2)
    nodes = [("Conv", "x w", "p", {"pads": [1, 1, 1, 1]}), ("Add", "p b", "z"), (operator, f"z{more}", "y", attributes)]
    constants = {"w": w, "b": b.reshape(1, 4, 1, 1), "s": SLOPES.reshape(4, 1, 1)}
    model = load(model_of(nodes, {"x": ("N", 2, "H", "W")}, constants))
    assert len(model._plan.steps) == 1
    z = fastrelu.conv2d(x, w, b, padding=1)
    assert_array_equal(model(x), function(z.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))


def test_a_pipeline_as_scikit_learn_is_converted():
    """A scaler, an MLPClassifier of two classes, and its labels, in the nodes that skl2onnx writes."""
    ml = {"domain": "ai.onnx.ml"}
    constants = {f"w{i}": normal(k, n, seed=i) for i, (k, n) in enumerate(pairwise((20, 16, 1)))}
    constants |= {f"b{i}": normal(1, n, seed=9 + i) for i, n in enumerate((16, 1))}
    constants |= {"one": np.float32(1), "labels": np.array([7, -3], "i4"), "flat": np.array([-1])}
    constants["b1"] -= 10  # some rows of each class
    offset, scale = normal(20, seed=5).tolist(), (np.abs(normal(20, seed=6)) + 0.5).tolist()
    nodes = [
        ("Scaler", "x", "scaled", ml | {"offset": offset, "scale": scale}),
        ("Cast", "scaled", "cast", {"to": TensorProto.FLOAT}),
        *[("MatMul", "cast w0", "p0"), ("Add", "p0 b0", "z0"), ("Relu", "z0", "a0")],
        *[("MatMul", "a0 w1", "p1"), ("Add", "p1 b1", "z1"), ("Sigmoid", "z1", "a1")],
        *[("Sub", "one a1", "other"), ("Concat", "other a1", "probabilities", {"axis": 1})],
        *[("ArgMax", "probabilities", "best", {"axis": 1}), ("ArrayFeatureExtractor", "labels best", "found", ml)],
        *[("Reshape", "found flat", "row"), ("Cast", "row", "label", {"to": TensorProto.INT64})],
    ]
    model = model_of(nodes, {"x": ("N", 20)}, constants, outputs=("probabilities",))
    model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, None))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    x = normal(9, 20, seed=7)
    (probabilities, label), expected = load(model)(x), onnxruntime_outputs(model, x=x)
    assert_allclose(probabilities, expected[0], rtol=1e-4, atol=1e-6)
    assert_array_equal(label, expected[1])
    assert set(label) == {7, -3}


def test_a_value_that_is_read_twice_or_put_out_is_not_fused_away():
    w, x = normal(6, 5), normal(3, 6, seed=2)
    z = fastrelu.linear(x, w)
    model = load(model_of([("MatMul", "x w", "z"), ("Relu", "z", "a"), ("Add", "z a", "y")], {"x": (3, 6)}, {"w": w}))
    assert_array_equal(model(x), z + fastrelu.relu(z))
    model = load(model_of([("MatMul", "x w", "z"), ("Relu", "z", "y")], {"x": (3, 6)}, {"w": w}, outputs=("y", "z")))
    y, found = model(x)
    assert_array_equal(found, z)
    assert_array_equal(y, fastrelu.relu(z))


def test_a_row_bias_of_two_axes_gives_a_vector_a_second_axis():
    w, b, x = normal(6, 5), normal(1, 5, seed=1), normal(6, seed=2)
    model = load(model_of([("MatMul", "x w", "z"), ("Add", "z b", "y")], {"x": (6,)}, {"w": w, "b": b}))
    assert len(model._plan.steps) == 1
    assert_array_equal(model(x), fastrelu.linear(x[None], w, b[0]))


def test_a_bias_that_differs_from_row_to_row_is_added_behind():
    w, b, x = normal(6, 5), normal(3, 5, seed=1), normal(3, 6, seed=2)
    for nodes in (
        [("Gemm", "x w b", "z"), ("Relu", "z", "y")],
        [("MatMul", "x w", "p"), ("Add", "p b", "z"), ("Relu", "z", "y")],
    ):
        model = load(model_of(nodes, {"x": (3, 6)}, {"w": w, "b": b}))
        assert_array_equal(model(x), fastrelu.relu(fastrelu.linear(x, w) + b))


@pytest.mark.parametrize("c", [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("is_constant", [True, False], ids=["constants", "inputs"])
def test_gemm_with_all_attributes(c, is_constant):
    a, b = normal(6, 3), normal(5, 6, seed=1)
    given = {"b": b} | ({} if c is None else {"c": normal(*c, seed=2)})
    options = {"alpha": 0.3, "beta": 1.7, "transA": 1, "transB": 1}
    nodes = [("Gemm", "a b" + " c" * (c is not None), "y", options)]
    inputs = {"a": (6, 3)} | ({} if is_constant else {name: array.shape for name, array in given.items()})
    model = model_of(
        nodes, {name: (TensorProto.FLOAT, shape) for name, shape in inputs.items()}, given if is_constant else None
    )
    arrays = {"a": a} | ({} if is_constant else given)
    expected = 0.3 * (a.T.astype("f8") @ b.T) + 1.7 * np.float64(given.get("c", 0))
    allowed = 10 * U * (np.abs(a.T) @ np.abs(b.T) + np.abs(given.get("c", 0)) * 2)
    assert (np.abs(load(model)(arrays) - expected) <= allowed).all()


def test_gemm_without_a_part_of_c_ignores_what_is_infinite_there():
    a, b, c = normal(3, 6), normal(6, 5), np.full(5, np.inf, "f4")
    nodes = [("Gemm", "a b c", "y", {"beta": 0.0})]
    for model, arrays in (
        (model_of(nodes, {"a": (3, 6)}, {"b": b, "c": c}), (a,)),
        (model_of(nodes, {"a": (3, 6), "b": (6, 5), "c": (5,)}), (a, b, c)),
    ):
        assert_array_equal(load(model)(*arrays), fastrelu.linear(a, b))


def test_gemm_of_integers():
    a, b = np.arange(6, dtype="i4").reshape(2, 3), np.arange(12, dtype="i4").reshape(3, 4)
    spec = {"a": (TensorProto.INT32, (2, 3)), "b": (TensorProto.INT32, (3, 4))}
    assert_array_equal(load(model_of([("Gemm", "a b", "y")], spec, output_type=TensorProto.INT32))(a, b), a @ b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((6,), (6,)),
        ((6,), (6, 5)),
        ((3, 6), (6,)),
        ((4, 1, 3, 6), (2, 6, 5)),
        ((6,), (2, 6, 5)),
        ((2, 3, 6), (6, 5)),
        ((2, 0, 6), (6, 5)),
    ],
)
@pytest.mark.parametrize("is_constant", [True, False], ids=["constant", "input"])
def test_matmul_broadcasts_as_numpy_does(a, b, is_constant):
    x, w = normal(*a), normal(*b, seed=1)
    inputs = {"a": (TensorProto.FLOAT, a)} | ({} if is_constant else {"b": (TensorProto.FLOAT, b)})
    model = load(model_of([("MatMul", "a b", "y")], inputs, {"b": w} if is_constant else None))
    y = model(x) if is_constant else model(x, w)
    assert type(y) is np.ndarray
    assert y.shape == np.matmul(x, w).shape
    assert_allclose(y, np.matmul(x.astype("f8"), w), rtol=0, atol=8 * U * 6 * 9)


CONVOLUTIONS = {
    "asymmetric pads": ((2, 4, 9, 8), (6, 4, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    "same upper": ((1, 4, 9, 8), (6, 4, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "same lower": ((1, 4, 9, 8), (6, 4, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "valid": ((1, 4, 9, 8), (6, 4, 4, 3), {"auto_pad": "VALID"}),
    "groups and dilations": ((2, 4, 9, 8), (6, 2, 2, 3), {"group": 2, "dilations": [2, 3], "pads": [1, 1, 1, 1]}),
    "one axis": ((2, 4, 11), (6, 2, 3), {"group": 2, "pads": [2, 1], "strides": [2], "dilations": [2]}),
    "three axes": (
        (2, 4, 7, 6, 8),
        (6, 2, 3, 2, 3),
        {"group": 2, "pads": [1, 0, 1, 2, 1, 0], "strides": [2, 1, 2], "dilations": [2, 1, 1]},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_agree_with_onnx_runtime(name):
    shape, kernel, attributes = CONVOLUTIONS[name]
    x, w, b = normal(*shape), normal(*kernel, seed=1), normal(kernel[0], seed=2)
    model = model_of(
        [("Conv", "x w b", "z", attributes), ("Relu", "z", "y")], {"x": (TensorProto.FLOAT, shape)}, {"w": w, "b": b}
    )
    y, (expected,) = load(model)(x), onnxruntime_outputs(model, x=x)
    assert len(load(model)._plan.steps) == 1
    assert y.shape == expected.shape
    terms = w[0].size
    assert_allclose(y, expected, rtol=0, atol=2 * (terms + 2) * U * np.abs(w).max() * np.abs(x).max() * terms)


def test_a_weight_that_is_an_input_is_convolved():
    x, w = normal(1, 2, 5, 5), normal(3, 2, 3, 3, seed=1)
    model = load(model_of([("Conv", "x w", "y")], {"x": (1, 2, 5, 5), "w": (3, 2, 3, 3)}))
    assert_array_equal(model(x, w), fastrelu.conv2d(x, w))


def test_a_normalization_behind_a_convolution_disappears():
    w, x = normal(3, 2, 3, 3), normal(2, 2, 6, 6, seed=1)
    names = ("scale", "shift", "mean", "variance")
    constants = {"w": w} | {name: np.abs(normal(3, seed=i)) + 0.1 for i, name in enumerate(names)}
    nodes = [("Conv", "x w", "p"), ("BatchNormalization", f"p {' '.join(names)}", "z"), ("Relu", "z", "y")]
    model = model_of(nodes, {"x": (2, 2, 6, 6)}, constants)
    assert calls(load(model)) == ["conv2d_relu"]
    assert_allclose(load(model)(x), onnxruntime_outputs(model, x=x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("c", "steps"), [((1,), 1), ((1, 4), 1), ((1, 1, 4), 3)], ids=str)
def test_a_normalization_behind_a_gemm_disappears_where_its_axis_is_the_last(c, steps):
    w, b, x = normal(6, 4), normal(4, seed=1), normal(4, 6, seed=2)  # as many rows as columns
    names = ("scale", "shift", "mean", "variance")
    constants = {"w": w, "b": b, "c": normal(*c, seed=8)}
    constants |= {name: np.abs(normal(4, seed=i)) + 0.1 for i, name in enumerate(names)}
    nodes = [
        ("Gemm", "x w b", "p"),
        ("Add", "p c", "q"),
        ("BatchNormalization", f"q {' '.join(names)}", "z"),
        ("Relu", "z", "y"),
    ]
    model = model_of(nodes, {"x": (4, 6)}, constants)
    assert len(calls(load(model))) == steps
    assert_allclose(load(model)(x), onnxruntime_outputs(model, x=x)[0], rtol=1e-5, atol=1e-5)


def test_a_normalization_behind_a_product_of_any_axes_stays():
    names = ("scale", "shift", "mean", "variance")
    constants = {"w": normal(6, 3)} | {name: np.abs(normal(3, seed=i)) + 0.1 for i, name in enumerate(names)}
    model = model_of([("MatMul", "x w", "p"), ("BatchNormalization", f"p {' '.join(names)}", "y")], {"x": (2, 3, 6)}, constants)
    x = normal(2, 3, 6, seed=2)
    assert_allclose(load(model)(x), onnxruntime_outputs(model, x=x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outputs", [("y",), ("y", "m"), ("y", "m", "v")], ids=len)
def test_a_normalization_for_training_has_as_many_outputs_as_are_wanted(outputs):
    x = normal(3, 4)
    nodes = [("BatchNormalization", "x one zero zero one", " ".join(outputs), {"training_mode": 1})]
    constants = {"one": np.ones(4, "f4"), "zero": np.zeros(4, "f4")}
    results = load(model_of(nodes, {"x": (3, 4)}, constants, outputs=outputs))(x)
    results = results if isinstance(results, tuple) else (results,)
    expected = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0.1 * x.mean(0), 0.9 + 0.1 * x.var(0))
    for result, wanted in zip(results, expected, strict=False):
        assert_allclose(result, wanted, rtol=1e-4, atol=1e-6)
    assert len(results) == len(outputs)


POOLS = {
    "window beyond the end": ((1, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 3], "ceil_mode": 1}),
    "asymmetric pads": ((1, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 2]}),
    "same lower": ((1, 2, 7, 8), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "dilations": ((1, 2, 7, 8), {"kernel_shape": [2, 3], "dilations": [3, 2]}),
    "one axis": ((2, 3, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    "three axes": ((1, 2, 5, 6, 7), {"kernel_shape": [2, 3, 2], "strides": [2, 1, 3], "pads": [1, 1, 0, 0, 1, 1]}),
}


@pytest.mark.parametrize("name", POOLS)
def test_max_pool_and_its_places_agree_with_onnx_runtime(name):
    shape, attributes = POOLS[name]
    x = normal(*shape)
    spec = {"x": (TensorProto.FLOAT, shape)}
    for more in ({}, {"storage_order": 1}):
        model = model_of([("MaxPool", "x", "y places", attributes | more)], spec, outputs=("y",))
        y = onnx.helper.make_tensor_value_info("places", TensorProto.INT64, None)
        model.graph.output.append(y)
        values, places = load(model)(x)
        expected = onnxruntime_outputs(model, x=x)
        assert_array_equal(values, expected[0])
        if not more:
            assert_array_equal(places, expected[1])
            assert_array_equal(x.ravel()[places], values)
    assert_array_equal(load(model_of([("MaxPool", "x", "y", attributes)], spec))(x), values)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("counts", [0, 1])
def test_average_pool_agrees_with_onnx_runtime(name, counts):
    shape, attributes = POOLS[name]
    x = normal(*shape)
    model = model_of(
        [("AveragePool", "x", "y", attributes | {"count_include_pad": counts})], {"x": (TensorProto.FLOAT, shape)}, opset=19
    )
    assert_allclose(load(model)(x), onnxruntime_outputs(model, x=x)[0], rtol=0, atol=18 * U * 4)


def test_max_pool_of_bytes_and_of_nan():
    x = normal(1, 1, 4, 4)
    x[0, 0, 1, 2] = np.nan
    nodes = [("MaxPool", "x", "y", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]})]
    y = load(model_of(nodes, {"x": (1, 1, 4, 4)}))(x)
    assert np.isnan(y).sum() == 4
    small = np.arange(-8, 8, dtype="i1").reshape(1, 1, 4, 4)
    model = load(model_of(nodes, {"x": (TensorProto.INT8, (1, 1, 4, 4))}, output_type=TensorProto.INT8))
    assert_array_equal(model(small)[0, 0], [[-3, -2, -1, -1], [1, 2, 3, 3], [5, 6, 7, 7], [5, 6, 7, 7]])


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_softmax_of_old_versions_takes_all_axes_from_one_on(opset, axis):
    x = normal(2, 3, 4)
    model = model_of(
        [("Softmax", "x", "y", {} if axis is None else {"axis": axis})], {"x": (TensorProto.FLOAT, (2, 3, 4))}, opset=opset
    )
    assert_allclose(load(model)(x), onnxruntime_outputs(model, x=x)[0], rtol=1e-6)


def test_old_versions_broadcast_by_attributes():
    x, b = normal(2, 3, 4), normal(3, seed=1)
    nodes = [("Add", "x b", "z", {"broadcast": 1, "axis": 1}), ("PRelu", "z b", "y")]
    model = load(model_of(nodes, {"x": (TensorProto.FLOAT, (2, 3, 4))}, {"b": b}, opset=6))
    assert_array_equal(model(x), fastrelu.prelu(x + b[:, None], b[:, None]))


@pytest.mark.parametrize(
    ("shape", "wanted", "allowzero", "result"),
    [
        ((2, 3, 4), [0, -1], 0, (2, 12)),
        ((0, 3), [3, -1], 0, (3, 0)),
        ((0, 3), [0, 4], 1, (0, 4)),
        ((2, 3), [-1], 0, (6,)),
        ((), [1, 1], 0, (1, 1)),
    ],
)
def test_reshape_with_zero_and_minus_one(shape, wanted, allowzero, result):
    nodes = [("Reshape", "x s", "y", {"allowzero": allowzero})]
    model = load(model_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"s": np.array(wanted)}))
    assert model(normal(*shape)).shape == result


def test_slice_backwards_from_before_the_first_element():
    constants = {"s": np.array([-9]), "e": np.array([-9]), "a": np.array([0]), "t": np.array([-1])}
    model = load(model_of([("Slice", "x s e a t", "y")], {"x": (3,)}, constants))
    assert_array_equal(model(np.arange(3, dtype="f4")), [0])


def test_what_depends_on_no_input_is_calculated_at_once():
    w = normal(5, 6)
    nodes = [
        ("Transpose", "w", "t"),
        ("Constant", "", "b", {"value": numpy_helper.from_array(normal(5, seed=1))}),
        ("Gemm", "x t b", "y"),
    ]
    model = load(model_of(nodes, {"x": ("N", 6)}, {"w": w}))
    assert calls(model) == ["linear"]
    x = normal(2, 6, seed=2)
    assert_array_equal(model(x), fastrelu.linear(x, w.T, normal(5, seed=1)))


def test_the_shape_that_exporters_calculate():
    nodes = [
        ("Shape", "x", "s"),
        ("Gather", "s zero", "n"),
        ("Unsqueeze", "n axes", "first"),
        ("Concat", "first rest", "shape", {"axis": 0}),
        ("Reshape", "x shape", "y"),
    ]
    constants = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    model = load(model_of(nodes, {"x": (TensorProto.FLOAT, ("N", 3, 4))}, constants))
    assert model(normal(5, 3, 4)).shape == (5, 12)


@pytest.mark.parametrize(
    "nodes", [[("Identity", "x", "y")], [("Flatten", "x", "y")], [("Dropout", "x", "z"), ("Transpose", "z", "y")]]
)
def test_results_are_new_arrays(nodes):
    x = normal(3, 4)
    y = load(model_of(nodes, {"x": (3, 4)}))(x)
    assert not np.may_share_memory(x, y)
    assert_array_equal(y, x.T if len(nodes) == 2 else x)


def test_a_result_of_any_shape_can_be_written_to():
    nodes = [("Relu", "x", "r"), ("Shape", "s", "n"), ("Expand", "r n", "y")]
    model = load(model_of(nodes, {"x": (TensorProto.FLOAT, (3,)), "s": (TensorProto.FLOAT, (2, 3))}))
    y = model(normal(3), normal(2, 3))
    y[0] = 7
    assert_array_equal(y[1], np.maximum(normal(3), 0))


def test_constants_and_values_that_come_out_twice_are_new_arrays():
    w = normal(3)
    nodes = [("Relu", "x", "y"), ("Identity", "w", "c"), ("Identity", "y", "z")]
    model = load(model_of(nodes, {"x": (3,)}, {"w": w}, outputs=("y", "z", "c", "x")))
    x = normal(3, seed=1)
    y, z, c, same = model(x)
    for i, a in enumerate((y, z, c, same, x)):
        assert not any(np.may_share_memory(a, other) for other in (y, z, c, same, x)[i + 1 :])
    c[:] = 0
    assert_array_equal(model(x)[2], w)


def test_a_single_value_is_an_array():
    y = load(model_of([("Relu", "x", "y")], {"x": (TensorProto.FLOAT, ())}))(np.float32(-1))
    assert (type(y), y.shape, y.dtype, y) == (np.ndarray, (), np.float32, 0)


def test_nan_stays_and_nothing_warns():
    x = np.array([np.nan, -np.inf, np.inf, -0.0, 200.0], "f4")
    nodes = [("Relu", "x", "r"), ("Exp", "x", "e"), ("Div", "e x", "y")]
    r, y = load(model_of(nodes, {"x": (5,)}, outputs=("r", "y")))(x)
    assert_array_equal(r, np.array([np.nan, 0, np.inf, 0, 200], "f4"))
    assert not np.signbit(r[3])
    assert_array_equal(y, np.array([np.nan, 0, np.nan, -np.inf, np.inf], "f4"))


TWO = [("Sub", "a b", "y")]


def test_inputs_by_position_name_and_dict():
    model = load(model_of(TWO, {"a": ("N", 2), "b": ("N", 2)}))
    a, b = normal(3, 2), normal(3, 2, seed=1)
    mapping = OrderedDict(a=a, b=b)
    for y in (model(a, b), model(a, b=b), model(b=b, a=a), model({"a": a, "b": b}), model({"a": a}, b=b), model(mapping)):
        assert_array_equal(y, a - b)
    assert [str(value) for value in model.inputs] == ["a float32 (N, 2)", "b float32 (N, 2)"]


@pytest.mark.parametrize(
    ("arrays", "named", "message"),
    [
        ((normal(3, 2),), {}, "model: input b must be given; the inputs are a, b"),
        ((normal(3, 2), normal(3, 2), 1), {}, r"model: at most 2 inputs may be given by position \(a, b\), not 3"),
        ((normal(3, 2),), {"a": 1}, "model: input a must be given once, not by position and by name"),
        ((), {"a": 1, "c": 2}, "model: an input must be one of a, b, not c"),
        ((normal(3, 3), normal(3, 2)), {}, r"model: input a must have shape \(N, 2\), not \(3, 3\)"),
        ((normal(2), normal(3, 2)), {}, r"model: input a must have shape \(N, 2\), not \(2,\)"),
        ((normal(3, 2), normal(4, 2)), {}, "model: input b must have N = 3 as a has, not 4"),
        (
            (normal(3, 2), normal(3, 2).astype(complex)),
            {},
            "model: input b must be of type float32 or one that fits it, not complex128",
        ),
        ((np.ma.masked_array(normal(3, 2)), 1), {}, "model: input a must be a NumPy array, not a masked one"),
        (
            ([[1, 2], [3]], normal(3, 2)),
            {},
            "model: input a must be an array or become one, not list: its rows differ in length",
        ),
    ],
)
def test_wrong_arguments_are_told(arrays, named, message):
    model = load(model_of(TWO, {"a": ("N", 2), "b": ("N", 2)}))
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        model(*arrays, **named)


def test_floats_are_not_made_integers():
    model = load(model_of([("Relu", "x", "y")], {"x": (TensorProto.INT32, (2,))}, output_type=TensorProto.INT32))
    assert_array_equal(model([-1, 2]), [0, 2])
    assert_array_equal(model(np.array([True, False])), [1, 0])
    with pytest.raises(ValueError, match=r"^model: input x must be within the range of int32, not 1099511627776"):
        model([2**40, 3])
    with pytest.raises(TypeError, match=r"model: input x must be of type int32 or one that fits it, not float64"):
        model([-1.0, 2.0])


def test_other_types_strides_and_lists_are_converted():
    model, _, _ = mlp()
    loaded, x = load(model), normal(4, 20)
    expected = loaded(x)
    for same in (x.astype("f8"), np.asfortranarray(x), x.astype(">f4"), x.tolist(), np.repeat(x, 2, 1)[:, ::2]):
        assert_array_equal(loaded(same), expected)


def test_an_input_with_an_initial_value_may_be_left_out():
    w = normal(6, 5)
    model = load(model_of([("MatMul", "x w", "z"), ("Relu", "z", "y")], {"x": ("N", 6), "w": (6, 5)}, {"w": w}))
    x, other = normal(3, 6, seed=1), normal(6, 5, seed=2)
    assert [value.name for value in model.inputs] == ["x"]
    assert [value.name for value in model.defaults] == ["w"]
    assert_array_equal(model(x), fastrelu.linear_relu(x, w))
    assert_array_equal(model(x, w=other), fastrelu.relu(fastrelu.linear(x, other)))
    assert_array_equal(model(x), fastrelu.linear_relu(x, w))


def test_an_input_that_is_left_out_between_others():
    nodes = [helper.make_node("Clip", ["x", "", "high"], ["y"])]
    model = model_of([], {"x": (3,)}, {"high": np.float32(0.5)})
    model.graph.node.extend(nodes)
    assert_array_equal(load(model)([-1, 0.25, 1]), np.array([-1, 0.25, 0.5], "f4"))


def test_threads_do_not_disturb_each_other():
    model, _, _ = mlp()
    loaded = load(model)
    inputs = [normal(1 + i, 20, seed=i) for i in range(8)]
    expected, wrong = [loaded(x) for x in inputs], []

    def work(i):
        for _ in range(200):
            if not np.array_equal(loaded(inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_pickle_is_the_same_model():
    model, _, _ = mlp()
    x = normal(3, 20)
    assert_array_equal(pickle.loads(pickle.dumps(load(model)))(x), load(model)(x))


def test_the_defaults_of_attributes_are_float32_as_onnx_has_them():
    x = -(normal(5, dtype="f8") ** 2)
    spec = {"x": (TensorProto.DOUBLE, (5,))}
    model = model_of([("LeakyRelu", "x", "y")], spec, output_type=TensorProto.DOUBLE)
    assert_array_equal(load(model)(x), x * np.float64(np.float32(0.01)))


def test_float64_stays():
    w, x = normal(6, 4, dtype="f8"), normal(3, 6, dtype="f8", seed=1)
    spec = {"x": (TensorProto.DOUBLE, ("N", 6))}
    y = load(model_of([("MatMul", "x w", "y")], spec, {"w": w}, output_type=TensorProto.DOUBLE))(x)
    assert y.dtype == np.float64
    assert_array_equal(y, fastrelu.linear(x, w))


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_stay_and_are_rounded_once(dtype):
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    number = TensorProto.BFLOAT16 if dtype == "bfloat16" else TensorProto.FLOAT16
    w, b, x = normal(6, 5, dtype=kind), normal(5, dtype=kind, seed=1), normal(3, 6, dtype=kind, seed=2)
    for options in ({}, {"alpha": 0.3}):
        nodes = [("Gemm", "x w b", "z", options), ("Relu", "z", "y")]
        y = load(model_of(nodes, {"x": (number, ("N", 6))}, {"w": w, "b": b}, output_type=number))(x)
        sums = fastrelu.linear(x.astype("f4"), w.astype("f4")) * np.float32(options.get("alpha", 1)) + b.astype("f4")
        assert y.dtype == kind
        assert_array_equal(y.astype("f4"), np.maximum(sums, 0).astype(kind).astype("f4"))


def test_the_table_of_a_model():
    assert repr(load(mlp()[0])).splitlines() == [
        "Model 'test' from x float32 (N, 20), to y float32 of any shape",
        "   nodes        call                                 gives",
        "1  Gemm + Relu  linear_relu, packed 20 x 16 float32  a0",
        "2  Gemm + Relu  linear_relu, packed 16 x 12 float32  a1",
        "3  Gemm         linear, packed 12 x 5 float32        z2",
        "4  Identity     NumPy                                y",
    ]


def test_an_error_in_a_call_names_the_node():
    model = model_of([("Reshape", "x s", "y")], {"x": ("N", 4)}, {"s": np.array([3, 4])})
    model.graph.node[0].name = "view"
    with pytest.raises(ValueError, match=r"^node 'view' \(Reshape\): cannot reshape array of size 8"):
        load(model)(normal(2, 4))


REFUSED = {
    "an operator": (
        [("Acosh", "x", "y")],
        r"node number 0 \(Acosh\) has an operator that is not supported; supported are Abs, ",
    ),
    "another domain": (
        [("Gelu", "x", "y", {"domain": "com.microsoft"})],
        r"node number 0 \(com.microsoft.Gelu\) has an operator",
    ),
    "training": ([("Dropout", "x r t", "y")], r"node number 0 \(Dropout\) is for training, or may be; supported is inference"),
    "four axes": (
        [("Conv", "x w", "y")],
        r"node number 0 \(Conv\) has a weight of shape \(1, 1, 1, 1, 1, 1\); supported are convolutions",
    ),
    "a subgraph": (
        [("Loop", "n t x", "y", {"body": helper.make_graph([], "body", [], [])})],
        r"node number 0 \(Loop\) has an operator",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_when_it_is_loaded(name):
    nodes, message = REFUSED[name]
    constants = {"r": np.float32(0.5), "t": np.array(True), "w": np.ones((1,) * 6, "f4"), "n": np.array(3)}
    model = model_of(nodes, {"x": (TensorProto.FLOAT, (1,) * 6)}, constants)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(NotImplementedError, match=f"^load: {message}"):
        load(model)


def test_all_operators_that_are_not_supported_are_named_at_once():
    nodes = [("Acosh", "x", "a"), ("Relu", "a", "b"), ("Asin", "b", "c"), ("Asin", "c", "y")]
    with pytest.raises(
        NotImplementedError, match=r"^load: node number 0 \(Acosh\), node number 2 \(Asin\) have operators that"
    ):
        load(model_of(nodes, {"x": (1,)}))


def test_nodes_that_nothing_needs_are_not_looked_at():
    model = model_of([("Acosh", "x", "a"), ("Neg", "missing", "b")], {"x": (3,)}, {"high": np.float32(0.5)})
    model.graph.node.append(
        helper.make_node("Clip", ["x", "", "high"], ["y"])
    )  # an input without a name like that of an output
    model.graph.node.insert(0, helper.make_node("Asin", ["x"], [""]))
    assert calls(load(model)) == ["NumPy"]


INVALID = {
    "an attribute": ([("Relu", "x", "y", {"alpha": 1.0})], "has the attribute alpha, which there is not in version 17"),
    "no attribute": ([("Concat", "x x", "y")], "needs the attribute axis"),
    "one input": ([("Relu", "x x", "y")], "must take 1, not 2 inputs"),
    "two inputs": ([("Add", "x", "y")], "must take 2, not 1 inputs"),
    "more inputs": ([("Gemm", "x", "y")], "must take 2 to 3, not 1 inputs"),
    "any inputs": ([("Concat", "", "y", {"axis": 0})], "must take at least 1, not 0 inputs"),
    "a cycle": ([("Add", "x b", "a"), ("Relu", "a", "y"), ("Relu", "a", "b")], "needs 'b', which neither an input nor a node"),
}


@pytest.mark.parametrize("name", INVALID)
def test_nodes_that_are_not_as_onnx_defines_them_are_refused(name):
    nodes, message = INVALID[name]
    with pytest.raises(ValueError, match=rf"^load: node number 0 \({nodes[0][0]}\) {message}"):
        load(model_of(nodes, {"x": (3,)}))


def test_an_operator_of_a_later_version_is_refused():
    with pytest.raises(ValueError, match=r"^load: node number 0 \(Expand\) has an operator that version 7 of the operator set"):
        load(model_of([("Expand", "x s", "y")], {"x": (3,)}, {"s": np.array([2, 3])}, opset=7))


def test_a_value_that_is_given_twice_is_refused():
    twice = [("Relu", "x", "y"), ("Neg", "x", "y")]
    with pytest.raises(ValueError, match=r"^load: 'y' must be given once, not by 2 inputs, initializers or nodes"):
        load(model_of(twice, {"x": (3,)}))
    with pytest.raises(ValueError, match=r"^load: 'w' must be given once"):
        load(model_of([("Relu", "x", "w"), ("Neg", "w", "y")], {"x": (3,)}, {"w": normal(3)}))
    with pytest.raises(ValueError, match=r"^load: 'x' must be given once"):
        load(model_of([("Relu", "y", "x")], {"x": (3,)}))


def test_versions_that_nobody_knows_yet_are_refused():
    model = model_of([("Relu", "x", "y")], {"x": (3,)})
    model.opset_import[0].version = 999
    with pytest.raises(NotImplementedError, match=r"^load: model needs version 999 of the operator set; the package onnx that"):
        load(model)


def test_a_negative_length_is_any():
    model = model_of([("Relu", "x", "y")], {"x": (3, 2)})
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert load(model).inputs[0].shape == (None, 2)
    assert load(model)(normal(5, 2)).shape == (5, 2)


def test_types_that_are_not_supported_are_refused():
    text = model_of([("Identity", "x", "y")], {"x": (TensorProto.STRING, (1,))})
    with pytest.raises(NotImplementedError, match=r"^load: input x has elements of type STRING; supported are float32, "):
        load(text)
    sparse = model_of([("Identity", "x", "y")], {"x": (1,)})
    values = numpy_helper.from_array(np.ones(1, "f4"), "s")
    sparse.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [3]))
    with pytest.raises(NotImplementedError, match=r"^load: initializer s is sparse; supported are dense ones"):
        load(sparse)
    sequence = model_of([("Identity", "x", "y")], {"x": (1,)})
    sequence.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))
    with pytest.raises(NotImplementedError, match=r"^load: input x is a sequence_type, not a tensor"):
        load(sequence)


def test_a_value_that_nothing_gives_is_told():
    with pytest.raises(
        ValueError, match=r"^load: node number 0 \(Add\) needs 'missing', which neither an input nor a node before"
    ):
        load(model_of([("Add", "x missing", "y")], {"x": (1,)}))
    with pytest.raises(ValueError, match=r"^load: output z is given by no node"):
        load(model_of([("Relu", "x", "y")], {"x": (1,)}, outputs=("z",)))


def test_without_onnx_the_error_says_what_to_install():
    code = """
    import sys
    sys.modules["onnx"] = None
    import fastrelu
    try:
        import fastrelu.onnx
    except ImportError as error:
        print(error)
    """
    assert 'fastrelu.onnx needs the package onnx: pip install "fastrelu[onnx]"' in run(textwrap.dedent(code))
