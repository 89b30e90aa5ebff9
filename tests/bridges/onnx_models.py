"""ONNX models for tests, and what ONNX Runtime makes of them."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def model_of(nodes, inputs, constants=None, outputs=("y",), opset=17, output_type=TensorProto.FLOAT):
    """A model of nodes ``(operator, inputs, outputs, attributes)``; `inputs` have (type, shape), or a shape of float32."""
    made = [helper.make_node(op, read.split(), wrote.split(), **(more[0] if more else {})) for op, read, wrote, *more in nodes]
    values = []
    for name, spec in inputs.items():
        has_type = len(spec) == 2 and isinstance(spec[1], tuple)
        values.append(helper.make_tensor_value_info(name, *(spec if has_type else (TensorProto.FLOAT, spec))))
    results = [helper.make_tensor_value_info(name, output_type, None) for name in outputs]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(made, "test", values, results, weights)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def onnxruntime_outputs(model, **arrays):
    """The outputs of ONNX Runtime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, arrays)


def normal(*shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
