"""The benchmarks as one test of pytest-benchmark over the table in `operations`.

``relu-float32-1000-given-fastrelu`` is ``relu(x, out=y)`` on 1000 numbers of float32; the last word says who calculates.
Besides the statistics of pytest-benchmark, each test records the times of its call and of references, taken in turns.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastrelu.benchmarks.contention import Watch
from fastrelu.benchmarks.operations import OURS, Benchmark, Problem, limit
from fastrelu.benchmarks.plugin import selection
from fastrelu.measure import Call, compare
from fastrelu.native import pool
from fastrelu.threads import get_num_threads

_TURNS = {"smoke": 1, "quick": 5, "usual": 7, "full": 7}
# Some systems wake a thread on a busy processor, and move it to another only after some milliseconds.
_TURN = 20e-3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each line of the run."""
    benchmarks = selection(metafunc.config).benchmarks()
    metafunc.parametrize("case", benchmarks, ids=list(map(str, benchmarks)))


def test_operation(benchmark: Any, request: pytest.FixtureRequest, case: Benchmark) -> None:
    """Time one call, and beside it the references."""
    extent = selection(request.config).extent
    problem = case.problem()
    call = _first_call(problem, case.library)
    threads = _threads(call) if case.library.startswith(OURS) else get_num_threads()
    benchmark.group = f"{case.operation} {case.dtype} {case.size} {case.form}"
    if extent == "smoke":
        benchmark.pedantic(call, rounds=5, iterations=1, warmup_rounds=1)
    else:
        benchmark(call)
    if benchmark.stats is not None:  # --benchmark-disable
        benchmark.extra_info.update(vars(case) | _in_turns(problem, call, extent) | {"threads": threads})


def _first_call(problem: Problem, library: str) -> Call:
    try:
        call = problem.makers[library]()
        call()
    except Exception as error:
        if library.startswith(OURS):
            raise
        # Whatever another library raises, the suite is not about it.
        pytest.skip(f"{library} does not work here: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return call


def _threads(call: Call) -> int:
    """How many threads a call of this package uses: all, if it gives the pool a job."""
    before = pool.read(pool.STATE)
    call()
    return 1 if pool.read(pool.STATE) == before else get_num_threads()


def _in_turns(problem: Problem, call: Call, extent: str) -> dict[str, Any]:
    """What `fastrelu.benchmarks.results` reads again."""
    bound = limit(problem, 0.02 if extent == "smoke" else 0.5)
    references = {name: make() for name, make in problem.references.items()}
    calls = {"call": call, **references, **({"limit": bound[0]} if bound else {})}
    watch = Watch()
    timings = compare(calls, 0, _TURNS[extent], 1e-3 if extent == "smoke" else _TURN)
    lacking = watch.lacking()
    own = timings["call"]
    return {
        "seconds": own.minimum,
        "references": {
            name: {
                "seconds": timings[name].minimum,
                "ratios": [mine / its for mine, its in zip(own.turns, timings[name].turns, strict=True)],
            }
            for name in references
        },
        "lacking": lacking,
        "amount": problem.amount,
        "unit": problem.unit,
        "speed": problem.amount / own.minimum / _scale(problem.unit),
        "limit": bound[1] / timings["limit"].minimum / _scale(problem.unit) if bound else None,
    }


def _scale(unit: str) -> float:
    return 1e9 if unit.startswith("G") else 1.0
