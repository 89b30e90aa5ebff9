"""The options of the suite for pytest, what it says about the machine, and its progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fastrelu import report
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
    lists = {name: tuple(filter(None, config.getoption(f"--{name}").split(","))) for name in _LISTS}
    return Selection(extent=config.getoption("--extent"), **lists)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse wrong options before anything is collected."""
    try:
        selection(config).benchmarks()
    except ValueError as error:
        raise pytest.UsageError(f"--{error}") from None
    if config.getoption("--bar"):
        config.pluginmanager.register(_Bar(), "fastrelu-bar")


def pytest_sessionstart() -> None:
    """All libraries have the same number of threads."""
    set_threads()


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """What `python -m fastrelu info` prints goes into the results."""
    machine_info["fastrelu"] = report.facts()


class _Bar:
    """Shows on stderr how far the run is."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        with self._stack:
            self._advance = self._stack.enter_context(report.progress(len(session.items)))
            return (yield)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._advance(nodeid.partition("[")[2].rstrip("]")[:60])
