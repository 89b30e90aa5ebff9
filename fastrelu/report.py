"""What ``python -m fastrelu`` prints: what runs on this machine, and how fast beside the libraries that are installed."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import Any

import numpy as np

import fastrelu
from fastrelu import gradient_peers, layer_peers, measure, peers
from fastrelu.native import target

OPERATIONS = ("relu", "relu_backward", "tanh", "sigmoid", "elu", "softplus")
SIZES = (10, 10_000, 1_000_000, 50_000_000)
LAYERS = ((1, 784, 256), (64, 784, 256), (64, 256, 128), (64, 128, 10), (1024, 784, 256), (128, 768, 3072), (1024, 1024, 1024))
SECONDS = 0.15
"""What one line of the table may take, unless its calls are long."""

Row = tuple[str, ...]


def facts() -> dict[str, str]:
    """What runs here, as names and values.

    Returns
    -------
    dict of str to str
        Versions, processor, threads, caches, devices.

    Examples
    --------
    >>> from fastrelu.report import facts
    >>> facts()["NumPy"] == np.__version__
    True
    """
    return {
        "fastrelu": fastrelu.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "NumPy": np.__version__,
        "Numba": version("numba"),
        "llvmlite": version("llvmlite"),
        **{library: _version(library) for library in peers.PEERS if library != "numpy"},
        "processor": f"{processor()} (LLVM: {target.cpu_name()})",
        "vectors": f"{8 * target.vector_bytes()} bits",
        "threads": f"{fastrelu.get_num_threads()}, in the package's own pool; Numba's threading layer does not matter",
        "last-level cache": f"{target.last_level_cache() / 2**20:g} MiB",
        "kernel cache": str(fastrelu.cache_info()).partition("\n")[0],
        "numba-cuda": _version("numba-cuda"),
        "CUDA": _gpus(),
    }


def processor() -> str:
    """The processor's name as the operating system has it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _gpus() -> str:
    from fastrelu import cuda

    why = cuda.reason()
    if why:
        return f"no: {why}"
    return "; ".join(
        f"{name} (compute capability {major}.{minor}, {memory / 2**30:.3g} GiB)"
        for name, (major, minor), memory in cuda.devices()
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "installed, version unknown" if peers.available(library) else "not installed"


def print_facts() -> None:
    """Print `facts`, a line each."""
    lines = facts()
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


def print_times() -> None:
    """Measure the operations in float32 beside their peers, for some 20 s, and print a table."""
    libraries = peers.libraries("float32")
    header = ("float32", "n", "time", "GB/s", "of limit", *libraries)
    rows: list[tuple[str, int, Row]] = []
    layers: dict[str, list[Row]] = {}
    failures: dict[str, str] = {}
    with progress(len(OPERATIONS) * len(SIZES) + 2 * len(LAYERS)) as advance:
        for size in SIZES:
            for name in OPERATIONS:
                advance(f"{name} {quantity(size)}")
                rows.append((name, size, _times(peers.CASES[name], size, libraries, failures)))
        for name, suite in _suites().items():
            layers[name] = list(_layer_rows(name, *suite, advance, failures))
    rows.sort(key=lambda row: (OPERATIONS.index(row[0]), row[1]))
    _print_table(header, [cells for _, _, cells in rows])
    print(
        "\nTime of one call f(x, out=y). Under a library: how many times as long it takes; below 1.00 it is faster."
        "\nLimit: GB/s of the fastest plain copy of n numbers, timed in the same turns."
    )
    for table in layers.values():
        print()
        _print_table(table[0], table[1:])
    print(
        "\nrelu(x @ w.T + b), and dx, dw and db of it. Limit: nothing but multiply-adds on all cores."
        "\npacked, onednn: the weight was packed before. mask: from the bits of y > 0."
    )
    for library, reason in failures.items():
        print(f"{library} does not work here: {reason}")


def _suites() -> dict[str, tuple[Any, Any, list[str], int]]:
    """For the layer and its backward pass: operands, makers of calls and their names, and products of m k n multiply-adds."""
    return {
        "linear_relu": (layer_peers.operands, layer_peers.LAYERS, layer_peers.installed(), 1),
        "linear_relu_backward": (gradient_peers.operands, gradient_peers.GRADIENTS, gradient_peers.installed(), 2),
    }


def _layer_rows(
    title: str,
    operands: Any,
    makers: Any,
    names: list[str],
    products: int,
    advance: Callable[[str], Any],
    failures: dict[str, str],
) -> Iterator[Row]:
    """The fused layer: GFLOP/s, and the share of the limit of multiply-adds."""
    from fastrelu.fma import multiply_adds

    libraries = names[1:]
    yield (f"{title}, float32", "m x k x n", "time", "GFLOP/s", "of limit", *libraries)
    limit, operations = multiply_adds()
    for m, k, n in LAYERS:
        advance(f"{title} {m} x {k} x {n}")
        given = operands(m, k, n)
        calls = {"fastrelu": makers["fastrelu"](*given)}
        for name in libraries:
            if name not in failures:
                try:
                    calls[name] = makers[name](*given)
                    calls[name]()
                except Exception as error:  # whatever another library raises, this command is not about it
                    failures[name] = f"{title}: {error}"
                    calls.pop(name, None)
        timings = measure.compare({**calls, "limit": limit}, SECONDS, turns=2)
        seconds = timings["fastrelu"].minimum
        speed = 2 * products * m * k * n / seconds
        ratios = (f"{timings[name].minimum / seconds:.2f}" if name in timings else "-" for name in libraries)
        share = speed * timings["limit"].minimum / operations
        yield (title, f"{m} x {k} x {n}", duration(seconds), f"{speed / 1e9:.3g}", f"{share:.0%}", *ratios)


def _times(case: peers.Case, size: int, libraries: list[str], failures: dict[str, str]) -> Row:
    arrays = case.operands(size, "float32")
    out = np.empty_like(arrays[0])
    calls = case.calls(arrays, out, [])
    for library in case.libraries("float32"):
        if library in failures:
            continue
        try:
            call = case.peers[library](arrays, out)
            if size == SIZES[0]:
                call()
        except Exception as error:  # whatever another library raises, this command is not about it
            failures[library] = f"{case.name}: {error}"
        else:
            calls[library] = call
    ways = measure.copies(arrays[0], out)
    timings = measure.compare({**calls, **ways}, SECONDS, turns=2)
    seconds = timings["fastrelu"].minimum
    speed = case.streams * out.nbytes / seconds / 1e9
    limit = measure.bandwidth(timings, ways, 2 * out.nbytes)
    ratios = (f"{timings[name].minimum / seconds:.2f}" if name in timings else "-" for name in libraries)
    return (case.name, quantity(size), duration(seconds), f"{speed:.3g}", f"{speed / limit:.0%}", *ratios)


def quantity(size: int) -> str:
    """A number of elements, short.

    Examples
    --------
    >>> from fastrelu.report import quantity
    >>> quantity(50_000_000)
    '50 M'
    """
    for unit, factor in (("M", 10**6), ("k", 10**3)):
        if size % factor == 0 and size >= factor:
            return f"{size // factor} {unit}"
    return str(size)


def duration(seconds: float) -> str:
    """A time with three digits and a fitting unit.

    Examples
    --------
    >>> from fastrelu.report import duration
    >>> duration(2.5e-7)
    '250 ns'
    """
    for unit, factor in (("ns", 1e9), ("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def _has_rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def _print_table(header: Row, rows: list[Row]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if _has_rich() and sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, title in enumerate(header):
            table.add_column(title, justify="left" if i == 0 else "right", no_wrap=True)
        first_ratio = header.index("of limit") + 1
        for row in rows:
            table.add_row(*row[:first_ratio], *map(_coloured, row[first_ratio:]), end_section=row[1] == rows[-1][1])
        # A narrow terminal breaks the lines itself; rich would leave figures out.
        width, height = Console().size
        Console(width=max(width, sum(widths) + 2 * len(widths)), height=height).print(table)
        return
    for row in (header, *rows):
        cells = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join((f"{row[0]:<{widths[0]}}", *cells)))


def _coloured(ratio: str) -> str:
    return f"[red]{ratio}[/red]" if ratio != "-" and float(ratio) < 1 else ratio


@contextmanager
def progress(steps: int) -> Iterator[Callable[[str], Any]]:
    """Show on stderr how far the measuring is: a bar on a terminal, elsewhere a line for each tenth.

    Yields what is to be called before each step, with its name.
    """
    done = count()
    if not sys.stderr.isatty():
        tenth = max(1, steps // 10)

        def announce(text: str) -> None:
            if (number := next(done)) % tenth == 0:
                print(f"{number}/{steps} {text}", file=sys.stderr, flush=True)

        yield announce
    elif _has_rich():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column

        name = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        columns = name, BarColumn(20), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
            task = bar.add_task("", total=steps)
            yield lambda text: bar.update(task, description=text, completed=next(done))
    else:
        width = shutil.get_terminal_size().columns - 1

        def advance(text: str) -> None:
            print(f"\r{f'{next(done)}/{steps} {text}':<{width}.{width}}", end="", file=sys.stderr, flush=True)

        yield advance
        print(f"\r{'':<{width}}", end="\r", file=sys.stderr, flush=True)
