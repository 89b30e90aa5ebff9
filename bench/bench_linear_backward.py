"""The backward pass of the fused layer on the layers of `bench.linear_backward`.

``linear_relu_backward-64-784-256-fastrelu mask`` is m, k, n and who calculates it.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.layers import Layer
from bench.linear_backward import SUITE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    SUITE.parametrize(metafunc)


def test_linear_relu_backward(benchmark: Any, request: pytest.FixtureRequest, layer: Layer, name: str) -> None:
    SUITE.benchmark(benchmark, request.config.getoption("--smoke"), layer, name)
