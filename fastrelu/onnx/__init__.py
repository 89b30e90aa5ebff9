"""ONNX files: run them with the package's kernels, and write models of `fastrelu.nn` as such.

>>> import numpy as np
>>> from fastrelu import nn, onnx
>>> network = nn.Sequential(nn.Linear(784, 256, rng=0), nn.ReLU(), nn.Linear(256, 10, rng=1))
>>> model = onnx.load(onnx.export(network))  # or a path
>>> model(np.ones((2, 784), np.float32)).shape
(2, 10)

Needs the package `onnx` (``pip install "fastrelu[onnx]"``). `fastrelu.onnx.backend` is the same for `onnx.backend`.
"""

try:
    import onnx as _onnx  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "onnx":
        raise
    raise ImportError('fastrelu.onnx needs the package onnx: pip install "fastrelu[onnx]"') from None

from fastrelu.onnx import (  # noqa: F401  # the operators
    convolution,
    elementwise,
    normalization,
    pipelines,
    pooling,
    products,
    reductions,
    shapes,
)
from fastrelu.onnx.exporting import export, save
from fastrelu.onnx.graph import Value
from fastrelu.onnx.model import Model, load
from fastrelu.onnx.registry import supported

__all__ = ["Model", "Value", "export", "load", "save", "supported"]
