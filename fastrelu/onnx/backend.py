"""The interface that ONNX prescribes for what runs models, which its own tests use: see `onnx.backend.base`.

>>> import numpy as np
>>> from onnx import helper
>>> from fastrelu.onnx import backend
>>> node = helper.make_node("Relu", ["x"], ["y"])
>>> backend.run_node(node, [np.array([-1.0, 2.0])]).y
array([0., 2.])

``onnx.backend.test.BackendTest(backend, __name__)`` runs the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy import ndarray
from onnx import helper
from onnx.backend.base import Backend as _Base
from onnx.backend.base import BackendRep, namedtupledict

from fastrelu.onnx.graph import TYPES
from fastrelu.onnx.model import Model, load

__all__ = ["Backend", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]


class _Prepared(BackendRep):  # type: ignore[misc]
    """A model that was loaded."""

    def __init__(self, model: Model):
        self.model = model
        self._result = namedtupledict("Outputs", [value.name for value in model.outputs])

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs; `inputs` is a list, or one array if there is one."""
        arrays = [inputs] if isinstance(inputs, ndarray) and len(self.model.inputs) == 1 else inputs
        results = self.model(arrays) if isinstance(arrays, dict) else self.model(*arrays)
        outputs: tuple[Any, ...] = self._result(*(results if isinstance(results, tuple) else (results,)))
        return outputs


class Backend(_Base):  # type: ignore[misc]
    """`onnx.backend.base.Backend` with the package's kernels."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run there: on the CPU only."""
        return device.partition(":")[0] == "CPU"

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether `load` takes the model."""
        try:
            load(model)
        except (NotImplementedError, TypeError, ValueError):
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> _Prepared:
        """The model, ready to run."""
        if not cls.supports_device(device):
            raise ValueError(f"prepare: device must be CPU, not {device}")
        super().prepare(model, device, **kwargs)
        return _Prepared(load(model))

    @classmethod
    def run_node(cls, node: Any, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs of one node."""
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        numbers = {name: number for number, name in TYPES.items()}
        # One that the node takes twice is given twice.
        arrays = {name: np.asarray(a) for name, a in zip(filter(None, node.input), inputs, strict=True)}
        values = [helper.make_tensor_value_info(name, numbers[a.dtype.name], a.shape) for name, a in arrays.items()]
        types = [next((value.type.tensor_type.elem_type for value in values), 1)] * len(node.output)
        if outputs_info is not None:
            types = [numbers[dtype.name] for dtype, _ in outputs_info]
        outputs = [helper.make_tensor_value_info(n, t, None) for n, t in zip(node.output, types, strict=True) if n]
        graph = helper.make_graph([node], "node", values, outputs)
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        return _Prepared(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)]))).run(arrays)


is_compatible = Backend.is_compatible
prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device
