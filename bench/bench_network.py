"""Pooling, embeddings and the loss: ``softmax_cross_entropy-64 x 10-torch`` is function, operands and who calculates."""

from __future__ import annotations

from typing import Any

import pytest

from bench.network import CASES, named
from fastrelu.peers import available


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    smoke, asked = metafunc.config.getoption("--smoke"), metafunc.config.getoption("--peers").split(",")
    libraries = ["fastrelu", *(["torch"] if {"torch", "all"} & {*asked} and available("torch") else [])]
    parameters = [
        pytest.param(name, case, library, id=f"{name}-{named(case)}-{library}")
        for name, (_, cases) in CASES.items()
        for case in cases[: 1 if smoke else None]
        for library in libraries
    ]
    metafunc.parametrize(("name", "case", "library"), parameters)


def test_network(benchmark: Any, request: pytest.FixtureRequest, name: str, case: tuple[Any, ...], library: str) -> None:
    call = CASES[name][0](*case)[library]
    benchmark.group = f"{name} {named(case)}"
    if request.config.getoption("--smoke"):
        benchmark.pedantic(call, rounds=5, iterations=1, warmup_rounds=1)
    else:
        benchmark(call)
