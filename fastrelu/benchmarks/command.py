"""``python -m fastrelu bench`` and ``bench compare``."""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fastrelu
from fastrelu.benchmarks import comparison, pictures, results, tables
from fastrelu.benchmarks.operations import DTYPES, FORMS, Selection, peer_names

_LISTS = ("operations", "sizes", "dtypes", "forms", "peers")
_SECONDS = {"smoke": 0.01, "quick": 0.05, "usual": 0.2, "full": 1.0}
"""What pytest-benchmark may take for one call, in each extent."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    extent = parser.add_mutually_exclusive_group()
    for name, help_text in (
        ("quick", "a few sizes: one to two minutes"),
        ("full", "all sizes, types and forms: hours"),
        ("smoke", "only see that everything runs"),
    ):
        extent.add_argument(f"--{name}", action="store_const", const=name, dest="extent", help=help_text)
    parser.set_defaults(extent="usual")
    parser.add_argument("--operations", nargs="+", default=(), metavar="NAME", help="such as relu linear_relu; all by default")
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=(),
        metavar="SIZE",
        help="elements of elementwise operations, such as 1000 or 1M, and m x k x n of dense layers, such as 64x784x256;"
        " operations that have none of them are left out",
    )
    parser.add_argument("--dtypes", nargs="+", default=(), metavar="TYPE", help=f"{', '.join(DTYPES)}; float32 by default")
    parser.add_argument(
        "--forms",
        nargs="+",
        default=(),
        metavar="FORM",
        help=f"{', '.join(FORMS)}: op(x), with out=y (the default), with out=x",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        default=("all",),
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
        compared = comparison.compare(results.read(options.old), results.read(options.new))
        print(comparison.describe(compared, options.threshold))
        return int(any(change.is_loss(options.threshold) for change in compared.changes))
    selection = {name: tuple(getattr(options, name)) for name in _LISTS}
    Selection(extent=options.extent, **selection).benchmarks()  # raises what is wrong with them
    for package in ("pytest", "pytest_benchmark"):
        if find_spec(package) is None:
            raise ImportError(f'the benchmarks need {package.replace("_", "-")}: pip install "fastrelu[bench]"')
    folder = options.output or Path(f"fastrelu-bench-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / results.NAME).absolute()
    status = _measure(options.extent, selection, path)
    if not path.exists() or not path.stat().st_size:
        return status or 1
    measured = results.read(path)
    table = tables.markdown(measured)
    (folder / "table.md").write_text(table, encoding="utf-8")
    print(table)
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
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):  # of tests that call this
        environment.pop(name, None)
    # In the folder that has this package, so that the process imports the same one.
    where = Path(fastrelu.__file__).resolve().parent.parent
    with subprocess.Popen(command, cwd=where, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed, _ = process.communicate()
        except KeyboardInterrupt:  # has reached the process as well, which writes what it has
            printed, _ = process.communicate()
    if process.returncode:
        print(printed, file=sys.stderr)
    return process.returncode
