"""Options of the benchmarks, and the limit that each result is related to."""

from __future__ import annotations

import pytest

from bench.callables import PEERS
from fastrelu.layer_peers import LAYERS

NAMES = list(dict.fromkeys((*PEERS, *(name.split()[0] for name in LAYERS if not name.startswith("fastrelu")))))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastrelu")
    group.addoption("--smoke", action="store_true", help="Only see that everything runs: short arrays, few rounds.")
    group.addoption("--peers", default="", metavar="LIST", help=f"Time these as well, 'all' or some of {','.join(NAMES)}.")


def pytest_configure(config: pytest.Config) -> None:
    unknown = set(config.getoption("--peers").split(",")) - {"", "all", *NAMES}
    if unknown:
        raise pytest.UsageError(f"--peers: {', '.join(sorted(unknown))} is none of all, {', '.join(NAMES)}")
