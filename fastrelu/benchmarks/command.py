"""``python -m fastrelu bench`` and ``bench compare``."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fastrelu
from fastrelu.benchmarks import comparison, pictures, results, tables
from fastrelu.benchmarks.interrupts import interrupted_once
from fastrelu.benchmarks.operations import DTYPES, FORMS, Selection, peer_names

_LISTS: dict[str, tuple[str, ...]] = {"operations": (), "sizes": (), "dtypes": (), "forms": (), "peers": ("all",)}
_DEFAULTS = {"extent": "usual", **_LISTS, "output": None}
_SECONDS = {"smoke": 0.01, "quick": 0.05, "usual": 0.2, "full": 1.0}
"""What pytest-benchmark may take for one call, in each extent."""

_BYTES = 4096
"""What a line of the results takes, and some more."""
_PATIENCE = 60
"""Seconds that a call which cannot be interrupted may take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    extent = parser.add_mutually_exclusive_group()
    for name, help_text in (
        ("quick", "a few sizes: about four minutes"),
        ("full", "all sizes, types and forms: half a day"),
        ("smoke", "only see that everything runs"),
    ):
        extent.add_argument(f"--{name}", action="store_const", const=name, dest="extent", help=help_text)
    parser.set_defaults(**_DEFAULTS)
    parser.add_argument("--operations", nargs="+", metavar="NAME", help="such as relu linear_relu; all by default")
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="SIZE",
        help="elements of elementwise operations, such as 1000 or 1M, and m x k x n of dense layers, such as 64x784x256;"
        " operations that have none of them are left out",
    )
    parser.add_argument("--dtypes", nargs="+", metavar="TYPE", help=f"{', '.join(DTYPES)}; float32 by default")
    parser.add_argument(
        "--forms",
        nargs="+",
        metavar="FORM",
        help=f"{', '.join(FORMS)}: op(x), with out=y (the default), with out=x",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(peer_names())}; all that are installed by default",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for results.json, table.md and the plots; a new one by default"
    )
    commands = parser.add_subparsers(dest="bench_command", metavar="command")
    compare = commands.add_parser(
        "compare",
        help="what became slower between two runs",
        description="Compare two runs by ratios to references that were measured in the same minutes. Exit status 1 on a loss.",
    )
    compare.add_argument("old", type=Path, metavar="OLD", help="results.json, or the folder that has it")
    compare.add_argument("new", type=Path, metavar="NEW", help="the later one")
    compare.add_argument(
        "--threshold",
        type=_positive,
        default=comparison.THRESHOLD,
        metavar="PART",
        help="how much more time is a loss; %(default)s by default",
    )


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Raises
    ------
    ValueError, OSError, ImportError
        With the sentence to be printed.
    """
    if options.bench_command == "compare":
        if any(getattr(options, name) != default for name, default in _DEFAULTS.items()):
            raise ValueError("compare measures nothing: it takes two runs and --threshold alone")
        compared = comparison.compare(results.read(options.old), results.read(options.new))
        print(comparison.describe(compared, options.threshold))
        return int(any(change.is_loss(options.threshold) for change in compared.changes))
    selection = {name: tuple(getattr(options, name)) for name in _LISTS}
    benchmarks = Selection(extent=options.extent, **selection).benchmarks()  # raises what is wrong with them
    for package in ("pytest", "pytest_benchmark"):
        if find_spec(package) is None:
            raise ImportError(f'the benchmarks need {package.replace("_", "-")}: pip install "fastrelu[bench]"')
    folder = options.output or Path(f"fastrelu-bench-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = (folder / f"{results.NAME}.part").absolute()
    # A folder that cannot be written, or is full, is better known now than after the run.
    unfinished.write_bytes(bytes(_BYTES * len(benchmarks)))
    unfinished.write_bytes(b"")
    status = _measure(options.extent, selection, unfinished)
    measured = results.read(unfinished) if unfinished.stat().st_size else None
    if measured is None or not measured.results:
        unfinished.unlink()
        print("Nothing was measured.", file=sys.stderr)
        return status or 1
    unfinished.replace(folder / results.NAME)
    table = tables.markdown(measured)
    print(table)
    (folder / "table.md").write_text(table, encoding="utf-8")
    try:
        drawn = pictures.draw(measured, folder)
    except ImportError:
        print('No plots: they need Matplotlib, pip install "fastrelu[bench]".')
        drawn = []
    print(f"Written to {folder}: {results.NAME}, table.md{f', {len(drawn)} plots' if drawn else ''}.")
    return status


def _measure(extent: str, selection: dict[str, Any], path: Path) -> int:
    """Run the suite in a process of its own, with no other configuration or plugin of pytest, and return its exit status."""
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={path.parent}", "--import-mode=importlib"]
    command += ["-p", "pytest_benchmark.plugin", "-p", "fastrelu.benchmarks.plugin", "-p", "no:cacheprovider"]
    # Not captured, since the bar would be.
    command += ["--capture=no", "--bar", "-q", "--benchmark-only", "--benchmark-quiet", "--benchmark-disable-gc"]
    command += [f"--benchmark-max-time={_SECONDS[extent]}", "--benchmark-min-rounds=3", f"--benchmark-json={path}"]
    command += [f"--extent={extent}", *(f"--{name}={','.join(chosen)}" for name, chosen in selection.items())]
    command.append(str(Path(__file__).with_name("suite.py")))
    # A sample of many short calls: ten thousands of single ones would be hundreds of megabytes.
    command += ["--benchmark-min-time=0.001"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):  # of tests that call this
        environment.pop(name, None)
    # In the folder that has this package, so that the process imports the same one.
    where = Path(fastrelu.__file__).resolve().parent.parent
    with (
        interrupted_once(),
        subprocess.Popen(command, cwd=where, env=environment, stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            printed, _ = process.communicate()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # a terminal sends it to both, others may not
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_PATIENCE)  # it writes what it has
            process.kill()
            print("Interrupted.", file=sys.stderr)
            return 128 + signal.SIGINT
    if process.returncode:
        print(printed, file=sys.stderr)
    return process.returncode
