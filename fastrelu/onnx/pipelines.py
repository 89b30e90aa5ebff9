"""Operators of the domain ai.onnx.ml that stand before and behind a network in a pipeline of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu.onnx.graph import Node
from fastrelu.onnx.registry import operator

__all__: list[str] = []


@operator("ai.onnx.ml.Scaler")
def _scaler(node: Node) -> Callable[..., Any]:
    offset, scale = (np.array(node.get(name, default), np.float64) for name, default in (("offset", 0), ("scale", 1)))
    return lambda x: ((x - offset) * scale).astype(np.float32)


@operator("ai.onnx.ml.Binarizer")
def _binarizer(node: Node) -> Callable[..., Any]:
    threshold = node.get("threshold")
    return lambda x: (x > threshold).astype(x.dtype)


@operator("ai.onnx.ml.ArrayFeatureExtractor")
def _array_feature_extractor(node: Node) -> Callable[..., Any]:
    def extract(x: ndarray, indices: ndarray) -> Any:
        lead = x.shape[:-1] or (1,)
        return x[..., indices.ravel()].reshape(*lead, prod(indices.shape))

    return extract
