"""Every elementwise operation: ``relu-float32-1000-given-fastrelu`` is ``relu(x, out=y)`` on 1000 numbers of float32.

The forms of a call are `new`: ``op(x)``; `given`: ``op(x, out=y)``; `in_place`: ``op(x, out=x)``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from bench.callables import CASES, PEERS, available
from fastrelu.measure import streaming_limit

SIZES = [10**exponent for exponent in range(1, 9)]
SMOKE_SIZES = [10, 10_000]
DTYPES = ["float16", "float32", "float64"]
FORMS = ["new", "given", "in_place"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    smoke, asked = metafunc.config.getoption("--smoke"), metafunc.config.getoption("--peers").split(",")
    peers = [name for name in PEERS if (name in asked or "all" in asked) and available(name)]
    parameters = [
        pytest.param(name, dtype, size, form, library, id=f"{name}-{dtype}-{size}-{form}-{library}")
        for name in CASES
        for dtype in DTYPES
        for size in (SMOKE_SIZES if smoke else SIZES)
        for form in FORMS
        for library in ("fastrelu", *peers)
        if _has_call(library, dtype, form)
    ]
    metafunc.parametrize(("name", "dtype", "size", "form", "library"), parameters)


def _has_call(library: str, dtype: str, form: str) -> bool:
    """JAX writes into no array."""
    return library == "fastrelu" or (dtype in PEERS[library] and (library != "jax" or form == "new"))


@lru_cache(maxsize=1)
def _operands(name: str, dtype: str, size: int) -> list[np.ndarray]:
    return CASES[name].operands(size, dtype)


def _steady(name: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Operands that a call in place may be repeated on for ever: nothing overflows or becomes subnormal, which takes longer."""
    first = np.zeros_like(arrays[0]) if name.endswith("_backward") else np.abs(arrays[0])
    return [first, *arrays[1:]]


def test_elementwise(
    benchmark: Any, request: pytest.FixtureRequest, name: str, dtype: str, size: int, form: str, library: str
) -> None:
    case, arrays = CASES[name], _operands(name, dtype, size)
    if form == "in_place":
        arrays = _steady(name, arrays)
    out = None if form == "new" else arrays[0] if form == "in_place" else np.empty_like(arrays[0])
    call = case.calls(arrays, out, [] if library == "fastrelu" else [library])[library]
    benchmark.group = f"{name} {dtype} {size}"
    if request.config.getoption("--smoke"):
        benchmark.pedantic(call, rounds=5, iterations=1, warmup_rounds=1)
    else:
        benchmark(call)
    if benchmark.stats is None:  # --benchmark-disable
        return
    speed = case.streams * arrays[0].nbytes / benchmark.stats.stats.min / 1e9
    limit = streaming_limit(2 * arrays[0].nbytes)
    benchmark.extra_info.update({"GB/s": speed, "limit GB/s": limit, "share of limit": speed / limit})
