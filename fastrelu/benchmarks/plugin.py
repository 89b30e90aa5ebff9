"""The options of the suite for pytest, what it says about the machine, and its progress bar."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fastrelu import report
from fastrelu.benchmarks.interrupts import interrupted_once
from fastrelu.benchmarks.operations import DTYPES, EXTENTS, FORMS, Selection, peer_names, set_threads

_LISTS = ("operations", "sizes", "dtypes", "forms", "peers")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the suite."""
    group = parser.getgroup("fastrelu")
    group.addoption("--extent", choices=EXTENTS, default="full", help="how many sizes, types and forms; all by default")
    group.addoption("--smoke", action="store_const", const="smoke", dest="extent", help="only see that everything runs")
    group.addoption("--operations", default="", metavar="LIST", help="only these, such as relu,linear_relu")
    group.addoption("--sizes", default="", metavar="LIST", help="only these, such as 1000,1M,64x784x256")
    group.addoption("--dtypes", default="", metavar="LIST", help=f"some of {','.join(DTYPES)}")
    group.addoption("--forms", default="", metavar="LIST", help=f"some of {','.join(FORMS)}: op(x), with out=y, with out=x")
    group.addoption("--peers", default="", metavar="LIST", help=f"time these as well: all, or some of {','.join(peer_names())}")
    group.addoption("--bar", action="store_true", help="show a progress bar instead of dots")


def selection(config: pytest.Config) -> Selection:
    """What the options choose."""
    # A comma before a space belongs to a size: "64 x 10, 30".
    lists = {name: tuple(filter(None, re.split(",(?! )", config.getoption(f"--{name}")))) for name in _LISTS}
    return Selection(extent=config.getoption("--extent"), **lists)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options before anything is collected."""
    try:
        selection(config).benchmarks()
    except ValueError as error:
        raise pytest.UsageError(f"--{error}") from None
    if config.getoption("--bar"):
        config.pluginmanager.register(_Command(), "fastrelu-command")


def pytest_sessionstart() -> None:
    """All libraries have the same number of threads."""
    set_threads()


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """What `python -m fastrelu info` prints goes into the results."""
    machine_info["fastrelu"] = report.facts()


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_json(benchmarks: list[Any]) -> None:
    """Leave out what an interrupt or a failure has cut off: its statistics are there before the times in turns."""
    benchmarks[:] = [benchmark for benchmark in benchmarks if benchmark.extra_info]


class _Command:
    """For `fastrelu.benchmarks.command`: shows on stderr how far the run is, and what was left out."""

    def __init__(self) -> None:
        self._left_out: dict[str, None] = {}

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """An interrupt ends the run, at the latest after this benchmark: an exception can get lost in code that was called."""
        stack = ExitStack()
        stack.enter_context(interrupted_once(lambda: setattr(session, "shouldstop", "interrupted")))
        session.config.add_cleanup(stack.close)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        try:
            with report.progress(len(session.items)) as self._advance:
                return (yield)
        finally:
            print(*self._left_out, sep="\n", end="\n" * bool(self._left_out), file=sys.stderr)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._advance(nodeid.partition("[")[2].rstrip("]"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self._left_out.setdefault(report.longrepr[2])

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """The single samples are as long as all the rest."""
        for entry in output_json["benchmarks"]:
            del entry["stats"]["data"]
