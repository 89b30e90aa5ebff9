"""The tables of targets in the README, and what ``python -m fastrelu`` prints on terminals of any width."""

import io
import sys

import pytest

from bench import conftest
from bench.table import Point, command, markdown
from fastrelu import report
from tests import subprocesses

HEADER = ("linear_relu, float32", "m x k x n", "time", "GFLOP/s", "of limit", "numpy", "onnxruntime packed")
ROW = ("linear_relu", "1024 x 1024 x 1024", "22.8 ms", "94.3", "40%", "1.69", "0.98")


def rows(*points):
    return markdown("2026-01-02", {"processor": "this one"}, points).splitlines()[4:]


@pytest.mark.parametrize(
    ("point", "row"),
    [
        (Point("a", {"": 1.234}, 1.0), "| a | 1.23 | at least 1 | yes |"),
        (Point("a", {"": 0.9}, 1.0), "| a | **0.9** | at least 1 | no |"),
        (Point("a", {"": 0.9}, 1.0, at_most=True, unit="s"), "| a | 0.9 s | at most 1 s | yes |"),
        (Point("a", {"10": 0.969, "1 k": 0.971}, 0.97, unit="%"), "| a | 10: **96.9%**, 1 k: 97.1% | at least 97% | 1 of 2 |"),
        (Point("a", {"10": float("nan")}, 1.0), "| a | 10: **not installed** | at least 1 | no |"),
    ],
)
def test_point_in_one_row(point, row):
    assert rows(point) == [row]


def test_conditions_of_words_have_rows_of_their_own():
    assert rows(Point("step", {"small, Adam": 2.0, "large, SGD": 1.5}, 1.8)) == [
        "| step |  | at least 1.8 | 1 of 2 |",
        "| ... small, Adam | 2 |  |  |",
        "| ... large, SGD | **1.5** |  |  |",
    ]


def test_pytest_collects_the_suite_of_the_folder_alone():
    """The commands beside it import what is not there everywhere."""
    folder = subprocesses.ROOT / "bench"
    ignored = {path for pattern in conftest.collect_ignore_glob for path in folder.glob(pattern)}
    assert {path.name for path in {*folder.glob("*.py")} - ignored} == {"bench_suite.py"}


def test_help_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit, match="0"):
        command("compiled", "calls", lambda: pytest.fail("measured"))
    assert "python -m bench.compiled" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=["rich", "plain"])
def on_terminal(monkeypatch, request):
    """What a function prints on a terminal of 40 columns."""
    if request.param == "rich":
        pytest.importorskip("rich")
    monkeypatch.setattr(report, "_has_rich", lambda: request.param == "rich")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")

    def printed(function, *arguments):
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            patch.setattr(sys, "stderr", terminal)
            function(*arguments)
        return terminal.getvalue()

    return printed


def test_narrow_terminal_shows_every_figure(on_terminal):
    printed = on_terminal(report._print_table, HEADER, [ROW])
    for cell in (*HEADER, *ROW):
        assert cell in printed


def test_bar_is_one_line_of_a_narrow_terminal(on_terminal):
    def steps():
        with report.progress(3) as advance:
            for _ in range(3):
                advance("x" * 60)

    printed = on_terminal(steps)
    assert "\n" not in printed.rstrip()
    assert max(map(len, printed.split("\r"))) < 40


def test_progress_beside_a_terminal_is_a_line_for_each_tenth(capsys):
    with report.progress(40) as advance:
        for i in range(40):
            advance(f"step {i}")
    assert capsys.readouterr().err.splitlines() == [f"{i}/40 step {i}" for i in range(0, 40, 4)]
