"""The fused layer on the layers of `bench.layers`.

``linear_relu-64-784-256-fastrelu packed`` is m, k, n and who calculates it.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.layers import LAYERS, Layer
from fastrelu import layer_peers
from fastrelu.fma import multiply_adds
from fastrelu.measure import compare

SMOKE = [layer for layer in LAYERS if layer.m == 64]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    smoke, asked = metafunc.config.getoption("--smoke"), metafunc.config.getoption("--peers").split(",")
    peers = [n for n in layer_peers.installed() if n.startswith("fastrelu") or "all" in asked or n.split()[0] in asked]
    parameters = [
        pytest.param(layer, name, id=f"linear_relu-{layer.m}-{layer.k}-{layer.n}-{name}")
        for layer in dict.fromkeys(SMOKE if smoke else LAYERS)
        for name in peers
    ]
    metafunc.parametrize(("layer", "name"), parameters)


def test_linear_relu(benchmark: Any, request: pytest.FixtureRequest, layer: Layer, name: str) -> None:
    call = layer_peers.LAYERS[name](*layer_peers.operands(layer.m, layer.k, layer.n))
    benchmark.group = f"linear_relu {layer.m} x {layer.k} x {layer.n}"
    if request.config.getoption("--smoke"):
        benchmark.pedantic(call, rounds=5, iterations=1, warmup_rounds=1)
    else:
        benchmark(call)
    if benchmark.stats is None:  # --benchmark-disable
        return
    limit, operations = multiply_adds()
    fastest = operations / compare({"limit": limit}, 0.05, turns=1)["limit"].minimum
    speed = layer.operations / benchmark.stats.stats.min
    benchmark.extra_info.update({"GFLOP/s": speed / 1e9, "limit GFLOP/s": fastest / 1e9, "share of limit": speed / fastest})
