"""The command ``python -m fastrelu``: what runs on this machine, how fast, its plots, and the cache of compiled kernels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


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
    given = sys.argv[1:] if arguments is None else arguments
    bench = commands.add_parser(
        "bench",
        help="measure every operation beside the installed peers, compare two runs",
        description="Measure every operation beside the installed peers: JSON, a Markdown table and plots.",
    )
    if "bench" in given[:1]:
        from fastrelu.benchmarks import command as bench_command

        bench_command.add_arguments(bench)  # the only arguments that take an import
    plot = commands.add_parser("plot", help="draw the activations, or a run of bench", description="Draw with Matplotlib.")
    plot.add_argument(
        "results", nargs="?", type=Path, metavar="RESULTS", help="a folder or JSON file of bench; without one, the activations"
    )
    plot.add_argument(
        "--output",
        type=Path,
        default=Path(),
        metavar="PATH",
        help="the picture of the activations (activations.png by default), or the folder for the pictures of a run",
    )
    options = parser.parse_args(given)
    command = options.command
    if command in ("bench", "plot"):
        try:
            if command == "bench":
                parser.exit(bench_command.run(options))
            _plot(options.results, options.output)
        except (ValueError, OSError, ImportError) as error:
            parser.exit(2, f"fastrelu: {error}\n")
        return
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


def _plot(results: Path | None, output: Path) -> None:
    """Draw a run, or without one the activations, and say where."""
    from fastrelu.examples import plots, relu_plot

    if results is None:
        path = output / "activations.png" if output.is_dir() else output
        plots.check(path)
        relu_plot.draw(relu_plot.smooth_curves(), path)
        print(f"Written: {path}")
        return
    from fastrelu.benchmarks import pictures
    from fastrelu.benchmarks.results import read

    run = read(results)
    output.mkdir(parents=True, exist_ok=True)
    for path in pictures.draw(run, output):
        print(f"Written: {path}")


if __name__ == "__main__":
    main()
