"""The command ``python -m fastrelu``: what runs on this machine, and how fast."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line without the program's name; that of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="fastrelu", description="What of fastrelu runs on this machine, and how fast beside the libraries installed."
    )
    commands = parser.add_subparsers(
        dest="command", metavar="command", description="Without one: info, then a short measurement."
    )
    commands.add_parser("info", help="versions, processor, threads, caches", description="Show what runs on this machine.")
    command = parser.parse_args(arguments).command

    from fastrelu import report

    report.print_facts()
    if command is None:
        print()
        report.print_times()


if __name__ == "__main__":
    main()
