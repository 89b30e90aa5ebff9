"""An ONNX model as something to call."""

from __future__ import annotations

from typing import Any

from fastrelu.onnx.graph import Value, proto_of, read
from fastrelu.onnx.plan import Plan

__all__ = ["Model", "load"]


class Model:
    """A model that `load` has read.

    Call it with arrays in the order of `inputs`, by name, or with one dict of names: ``model(x)``, ``model(x=x)``,
    ``model({"x": x})``. The result is an array, or a tuple of arrays if there are several outputs; they are new ones each time.
    Any number of threads may call at the same time.

    Attributes
    ----------
    inputs, outputs : tuple of Value
        What goes in and comes out: ``name``, ``dtype`` and ``shape``, which has a number, a name or None for each axis.
    defaults : tuple of Value
        Inputs that have an initial value in the file: they may be given by name.
    """

    def __init__(self, proto: Any):
        self._proto, self._graph = proto, read(proto)
        self._count = len(self._graph.inputs)
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._plan = self._plan_for(())
        self._run = self._plan.run
        if not self._graph.defaults:  # there will be no other plan
            self._graph.constants.clear()

    @property
    def inputs(self) -> tuple[Value, ...]:
        return self._graph.inputs

    @property
    def defaults(self) -> tuple[Value, ...]:
        return self._graph.defaults

    @property
    def outputs(self) -> tuple[Value, ...]:
        return self._graph.outputs

    def _plan_for(self, overridden: tuple[str, ...]) -> Plan:
        plan = self._plans.get(overridden)
        if plan is None:
            more = [value for value in self._graph.defaults if value.name in overridden]
            plan = self._plans[overridden] = Plan(self._graph, [*self._graph.inputs, *more])
        return plan

    def __call__(self, /, *arrays: Any, **named: Any) -> Any:
        plan = self._plan
        try:
            if len(arrays) == self._count and not named and arrays and not isinstance(arrays[0], dict):
                return self._run(*arrays)
            plan, arrays = self._arguments(arrays, named)
            return plan.run(*arrays)
        except (TypeError, ValueError, IndexError) as error:
            raise plan.explain(error) from None

    def _arguments(self, arrays: tuple[Any, ...], named: dict[str, Any]) -> tuple[Plan, tuple[Any, ...]]:
        """The plan and the arguments of a call that is not just arrays in their order."""
        if len(arrays) == 1 and isinstance(arrays[0], dict):
            named = {**arrays[0], **named}
            arrays = ()
        names = [value.name for value in self.inputs]
        wanted = ", ".join(names) or "none"
        if len(arrays) > len(names):
            raise TypeError(f"model: at most {len(names)} inputs may be given by position ({wanted}), not {len(arrays)}")
        given = dict(zip(names, arrays, strict=False))
        for name, array in named.items():
            if name in given:
                raise TypeError(f"model: input {name} must be given once, not by position and by name")
            if name not in names and all(name != value.name for value in self.defaults):
                more = "".join(f", {value.name}" for value in self.defaults)
                raise TypeError(f"model: an input must be one of {wanted}{more}, not {name}")
            given[name] = array
        missing = [name for name in names if name not in given]
        if missing:
            raise TypeError(f"model: input {missing[0]} must be given; the inputs are {wanted}")
        plan = self._plan_for(tuple(value.name for value in self.defaults if value.name in given))
        return plan, tuple(given[value.name] for value in plan.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self._proto.SerializeToString(),)

    def __repr__(self) -> str:
        rows = [
            (str(i), " + ".join(node.operator for node in step.nodes), step.kernel.text, ", ".join(step.outputs))
            for i, step in enumerate(self._plan.steps, 1)
        ]
        table = [("", "nodes", "call", "gives"), *rows]
        widths = [max(len(row[column]) for row in table) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        ends = [f"{kind} {'; '.join(map(str, values))}" for kind, values in (("from", self.inputs), ("to", self.outputs))]
        return "\n".join([f"Model {self._graph.name!r} {', '.join(ends)}", *lines])


def load(model: Any) -> Model:
    """Read an ONNX model.

    What depends on no input is calculated once; matrix weights are packed once. A bias and an activation that follow a product
    or a convolution become part of its call, and a batch normalization that follows a convolution part of its weight.

    Parameters
    ----------
    model : path, bytes, file or onnx.ModelProto
        The model. Weights that are kept in files of their own are found only beside a path.

    Returns
    -------
    Model
        To be called with arrays. Its ``repr`` is a table of the calls that it makes.

    Raises
    ------
    NotImplementedError
        If it has an operator, a type or an option that is not supported; the message names the node.
    TypeError, ValueError
        If it is no model.

    Notes
    -----
    Products and convolutions have the bits of `fastrelu.linear` and `fastrelu.conv2d`. Inputs are converted to the type of the
    model, floats to floats and integers to both.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrelu import nn, onnx
    >>> network = nn.Sequential(nn.Linear(4, 8, rng=0), nn.ReLU(), nn.Linear(8, 2, rng=1))
    >>> model = onnx.load(onnx.export(network))
    >>> x = np.ones((5, 4), np.float32)
    >>> np.array_equal(model(x), network.predict(x))
    True
    >>> model
    Model 'fastrelu' from x float32 (N, 4), to y float32 (N, 2)
       nodes        call                               gives
    1  Gemm + Relu  linear_relu, packed 4 x 8 float32  1
    2  Gemm         linear 8 x 2 float32               y
    """
    return Model(proto_of(model))
