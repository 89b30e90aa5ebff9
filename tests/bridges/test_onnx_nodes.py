"""The tests of nodes that the package onnx has, and its interface for what runs models."""

import re
import unittest
import warnings

import numpy as np
import onnx
import onnx.backend.test
import pytest
from numpy.testing import assert_array_equal
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from fastrelu.onnx import backend

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the cases are calculated when they are loaded, with overflows
    CASES = {case.name: case for case in onnx.backend.test.loader.load_model_tests(kind="node")}

PATTERN = re.compile(
    """^test_(
    gemm | matmul_ | matmulinteger | add | relu | leakyrelu | prelu | elu | sigmoid | tanh | softplus | conv_ | basic_conv |
    maxpool | flatten | reshape | softmax | globalaveragepool | globalmaxpool | constant_cpu | identity_cpu | dropout |
    transpose | squeeze | unsqueeze | sub | mul_ | div | averagepool | batchnorm | concat | clip | logsoftmax | where | slice |
    expand_dim | gather_[0-9n] | castlike_FLOAT_to_FLOAT16 | cast_FLOAT_to_BFLOAT16 | cast_FLOAT16_to_DOUBLE |
    reduce_sum | reduce_mean | reduce_max | reduce_min | reduce_prod | reduce_l1 | reduce_l2 | argmax | argmin | constant_pad |
    constantofshape | shape |
    size | ai_onnx_ml_(binarizer | array_feature) |
    (celu | hardsigmoid | hardswish | mish | selu | softsign | thresholdedrelu | instancenorm | layer_normalization | lrn |
    split_(?!to_sequence) | tile | range_)(?!.*expanded))""",
    re.VERBOSE,
)
CHOSEN = sorted(name for name in CASES if PATTERN.match(f"{name}_cpu"))


def as_double(model):
    """The same model in float64, for the values that are exact."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    single, wide = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    for value in (*double.graph.input, *double.graph.output, *double.graph.value_info):
        if value.type.tensor_type.elem_type == single:
            value.type.tensor_type.elem_type = wide
    for node in double.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == single:
                attribute.i = wide
            if attribute.HasField("t") and attribute.t.data_type == single:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype("f8")))
            if attribute.name == "value_float":
                array = numpy_helper.from_array(np.array(attribute.f))
                attribute.CopyFrom(onnx.helper.make_attribute("value", array))
    return double


def exact(model, arrays):
    """Outputs that are calculated in float64; None where the package onnx cannot, or takes seconds for what is exact anyway."""
    if model.graph.node[0].op_type == "MaxPool":
        return None
    arrays = [a.astype("f8") if a.dtype == np.float32 else a for a in arrays]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = (value.name for value in model.graph.input)
            return ReferenceEvaluator(as_double(model)).run(None, dict(zip(names, arrays, strict=True)))
    except Exception:
        return None


def bound(model, arrays):
    """What a product may differ from the exact one: (k + 2) u |x||w|, more than what any operator but products may."""
    node = model.graph.node[0]
    if node.op_type not in ("Gemm", "MatMul", "Conv"):
        return 0.0
    k = arrays[1][0].size if node.op_type == "Conv" else max(*arrays[0].shape, *arrays[1].shape)
    sizes = exact(model, [abs(a) for a in arrays])
    return (k + 2) * 2.0**-24 * sizes[0]


@pytest.mark.parametrize("name", CHOSEN)
def test_node_within_4_ulp_or_the_bound_of_products(name):
    case = CASES[name]
    prepared = backend.prepare(case.model)
    for inputs, outputs in case.data_sets:
        arrays, expected = (
            [numpy_helper.to_array(a) if isinstance(a, onnx.TensorProto) else np.asarray(a) for a in values]
            for values in (inputs, outputs)
        )
        results = prepared.run(arrays)
        assert len(results) == len(expected)
        references = exact(case.model, arrays) or expected
        for result, wanted, reference in zip(results, expected, references, strict=True):
            assert type(result) is np.ndarray
            assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
            if result.dtype != np.float32:
                assert_array_equal(result.astype("f8"), wanted.astype("f8"))
                continue
            with np.errstate(all="ignore"):
                reference = np.asarray(reference, "f8")
                allowed = 4 * np.spacing(np.abs(reference.astype("f4"))).astype("f8") + bound(case.model, arrays)
                close = np.abs(result - reference) <= allowed
            assert (close | (result == reference) | (np.isnan(result) & np.isnan(reference))).all(), name


def test_the_suite_of_onnx_runs_the_backend_by_patterns():
    suite = onnx.backend.test.BackendTest(backend, __name__)
    for pattern in (
        "^test_relu_cpu",
        "^test_gemm_.*_cpu",
        "^test_Linear_cpu",
        "^test_Conv2d_groups_cpu",
        "^test_operator_addmm_cpu",
    ):
        suite.include(pattern)
    result = unittest.TestResult()
    suite.test_suite.run(result)
    assert result.failures == result.errors == []
    assert result.testsRun - len(result.skipped) == 15


def test_a_node_that_is_not_supported_is_not_compatible_and_named():
    model = CASES["test_asin"].model
    assert not backend.is_compatible(model)
    with pytest.raises(
        NotImplementedError, match=r"load: node number 0 \(Asin\) has an operator that is not supported; supported are"
    ):
        backend.prepare(model)


def test_only_the_cpu_is_a_device():
    assert backend.supports_device("CPU")
    assert backend.supports_device("CPU:0")
    assert not backend.supports_device("CUDA")
    with pytest.raises(ValueError, match="prepare: device must be CPU, not CUDA"):
        backend.prepare(CASES["test_relu"].model, "CUDA")


def test_run_node_runs_one_node():
    node = onnx.helper.make_node("Gemm", ["a", "b"], ["y"], transB=1)
    a, b = np.ones((2, 3), "f4"), np.arange(12, dtype="f4").reshape(4, 3)
    (y,) = backend.run_node(node, [a, b], opset_version=13)
    assert_array_equal(y, a @ b.T)
    assert_array_equal(backend.run_node(onnx.helper.make_node("Add", ["a", "a"], ["y"]), [a, a]).y, a + a)
    assert_array_equal(backend.run_node(onnx.helper.make_node("Relu", ["x"], ["y"]), [[-1.0, 2.0]]).y, [0, 2])


def test_run_model_gives_outputs_by_name_and_number():
    result = backend.run_model(CASES["test_relu"].model, [np.array(CASES["test_relu"].data_sets[0][0][0])])
    assert_array_equal(result[0], result["y"])
