"""What the commands of the examples share: their arguments, and tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastrelu.examples import plots

EPOCHS_SHOWN = 10
"""How many epochs of a history are printed, about."""


def parser(name: str, description: str, *, seed: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments that all examples have; `seed`: whether there is anything random."""
    made = argparse.ArgumentParser(prog=f"python -m fastrelu.examples.{name}", description=description)
    if seed:
        made.add_argument("--seed", type=at_least(0), default=0, help="of all random numbers; 0 by default")
    made.add_argument("--plot", type=Path, metavar="PATH", help="where to save the picture: .png, .svg or .pdf")
    return made


def at_least(least: int) -> Callable[[str], int]:
    """A type of arguments: whole numbers from `least` on."""

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text}")
        return value

    return whole_number


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. What would keep the picture from being saved ends the command here, before any work."""
    options = parser.parse_args(arguments)
    if options.plot is not None:
        try:
            plots.check(options.plot)
        except (ImportError, ValueError) as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
    return options


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: the first column to the left, the others to the right. With rich, if it is installed."""
    cells = [[f"{cell + 0.0:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        print(f"\n{title}")
        for row in (header, *cells):
            first, *others = zip(row, widths, strict=True)
            print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in cells:
        table.add_row(*row)
    Console().print(table)


def print_history(history: Any) -> None:
    """Print what a `fastrelu.nn.History` has recorded: the first and last epoch, and some between."""
    columns = {name.replace("_", " "): values for name, values in vars(history).items() if values is not None}
    epochs = len(history.loss)
    shown = sorted({*range(0, epochs, -(-epochs // EPOCHS_SHOWN)), epochs - 1})
    print_table(
        "training", ["epoch", *columns], [[epoch + 1, *(values[epoch] for values in columns.values())] for epoch in shown]
    )
