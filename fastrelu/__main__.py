"""The command ``python -m fastrelu``: what runs on this machine, how fast, and the cache of its compiled kernels."""

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
    cache = commands.add_parser(
        "cache", help="compiled kernels that are kept", description="Show the cache of compiled kernels."
    )
    cache.add_argument("--clear", action="store_true", help="remove them first, those of other versions included")
    cache.add_argument("--clear-stale", action="store_true", help="remove those of other versions first")
    warmup = commands.add_parser(
        "warmup", help="compile kernels now", description="Compile kernels, and keep them in the cache."
    )
    warmup.add_argument("functions", nargs="*", help="such as relu, linear_relu; all by default")
    warmup.add_argument(
        "--dtypes", nargs="+", default=["float32", "float64"], help="such as float16; float32 and float64 by default"
    )
    options = parser.parse_args(arguments)
    command = options.command
    if command in ("cache", "warmup"):
        import fastrelu

        try:
            if command == "warmup":
                fastrelu.warmup(options.functions or None, options.dtypes)
            elif options.clear or options.clear_stale:
                freed = fastrelu.clear_cache(stale_only=not options.clear)
                print(f"{freed / 1024:.0f} KiB removed")
        except (ValueError, OSError) as error:
            parser.exit(2, f"fastrelu: {error}\n")
        print(fastrelu.cache_info())
        return

    from fastrelu import report

    report.print_facts()
    if command is None:
        print()
        report.print_times()


if __name__ == "__main__":
    main()
