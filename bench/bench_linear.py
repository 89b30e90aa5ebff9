"""The fused layer on the layers of `bench.layers`.

``linear_relu-64-784-256-fastrelu packed`` is m, k, n and who calculates it.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.layers import Layer
from bench.linear import SUITE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    SUITE.parametrize(metafunc)


def test_linear_relu(benchmark: Any, request: pytest.FixtureRequest, layer: Layer, name: str) -> None:
    SUITE.benchmark(benchmark, request.config.getoption("--smoke"), layer, name)
