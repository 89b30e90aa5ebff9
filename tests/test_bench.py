"""``python -m fastrelu bench`` and ``plot``: what is measured, what is written, and what counts as a loss."""

import builtins
import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastrelu import fma, peers
from fastrelu.__main__ import main
from fastrelu.benchmarks import comparison, contention, operations, pictures, plugin, results, tables
from fastrelu.benchmarks.operations import FAMILIES, OURS, Selection
from tests import subprocesses

LINE = results.Result(
    operation="relu",
    dtype="float32",
    size="1000",
    form="given",
    library=OURS,
    seconds=1e-6,
    references={"numpy": results.Reference(2e-6, [0.5, 0.52, 0.51]), "all threads": results.Reference(1e-6, [1.0, 0.99, 1.02])},
    threads=2,
    lacking=0.0,
    amount=8000,
    unit="GB/s",
    speed=8.0,
    limit=16.0,
)
FACTS = {"NumPy": "2.4.6", "processor": "this one, really", "kernel cache": "5 kernels"}


def command(*arguments):
    """The exit status of the command."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", *map(str, arguments)])
    return caught.value.code


def line(factor=1.0, threads=1.0, **changes):
    """A line whose call takes `factor` times as long beside both references, and `threads` times that beside the second."""
    references = {
        name: dataclasses.replace(was, ratios=[factor * more * ratio for ratio in was.ratios])
        for (name, was), more in zip(LINE.references.items(), (1, threads), strict=True)
    }
    return dataclasses.replace(LINE, references=references, **changes)


def turns(*ratios):
    """A line with these ratios in its turns."""
    return dataclasses.replace(LINE, references={"numpy": results.Reference(1.0, list(ratios))})


def saved(path, *lines, facts=FACTS):
    """The file of a run."""
    entries = [{"extra_info": dataclasses.asdict(result)} for result in lines]
    content = {"datetime": "2026-01-02T03:04:05", "machine_info": {"fastrelu": facts}, "benchmarks": entries}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a short run writes."""
    folder = tmp_path_factory.mktemp("bench")
    chosen = ["--operations", "relu", "linear_relu", "--sizes", "10", "1k", "4x3x5", "--dtypes", "float32", "--peers", "numpy"]
    assert command("--smoke", *chosen, "--forms", "given", "--output", folder) == 0
    return folder


def test_run(folder):
    run = results.read(folder)
    assert run.facts["NumPy"]
    names = {result.name for result in run.results}
    expected = {f"relu-float32-{size}-given-{library}" for size in (10, 1000) for library in ("fastrelu", "numpy")}
    assert names == expected | {f"linear_relu-float32-4x3x5-given-{name}" for name in ("fastrelu", "fastrelu packed", "numpy")}
    assert {result.threads for result in run.results if result.library == OURS} == {1}
    for result in run.results:
        assert len(result.references) == 2
        for reference in result.references.values():
            assert reference.seconds > 0
            assert len(reference.ratios) == 1
            assert min(reference.ratios) > 0
        assert result.speed == pytest.approx(result.amount / result.seconds / 1e9)
        assert result.limit > 0


def test_fields_of_a_run_are_documented():
    text = (subprocesses.ROOT / "bench" / "README.md").read_text()
    for field in (*dataclasses.fields(results.Result), *dataclasses.fields(results.Reference)):
        assert f"`{field.name}`" in text


def test_table_of_a_run(folder):
    rows = [row for row in (folder / "table.md").read_text().splitlines() if row.startswith("| `")]
    assert [row.split(" | ")[0:4:2] for row in rows] == [["| `relu`", "10"], ["| `relu`", "1 k"], ["| `linear_relu`", "4x3x5"]]


def test_plots_of_a_run(folder):
    pytest.importorskip("matplotlib")
    for name in ("relu", "linear_relu"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_run_compared_with_itself(folder, capsys):
    assert command("compare", folder, folder / "results.json") == 0
    assert "4 benchmarks: 0 losses and 0 gains" in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.1, 0), (1.3, 1), (5.0, 1), (0.5, 0)])
def test_loss_is_more_time_in_parts_of_the_reference(tmp_path, capsys, factor, status):
    old, new = saved(tmp_path / "old.json", line()), saved(tmp_path / "new.json", line(factor))
    assert command("compare", old, new) == status
    assert ("Losses:" in capsys.readouterr().out) == bool(status)


def test_slower_machine_is_no_loss(tmp_path):
    slow = line(seconds=30e-6, speed=8 / 30)
    assert command("compare", saved(tmp_path / "old.json", line()), saved(tmp_path / "new.json", slow)) == 0


def test_threshold(tmp_path):
    old, new = saved(tmp_path / "old.json", line()), saved(tmp_path / "new.json", line(1.3))
    assert command("compare", old, new, "--threshold", "0.4") == 0
    assert command("compare", old, new, "--threshold", "0.2") == 1
    assert command("compare", old, new, "--threshold", "0") == 2


@pytest.mark.parametrize("more", [0.3, 3.0])
def test_change_beside_one_reference_alone_is_no_loss(tmp_path, capsys, more):
    """A processor that another program takes: what needs all of them becomes slower beside what needs one."""
    old, new = saved(tmp_path / "old.json", line()), saved(tmp_path / "new.json", line(threads=more))
    assert command("compare", old, new) == 0
    assert command("compare", old, saved(tmp_path / "lost.json", line(1.3 / min(more, 1), threads=more))) == 1


@pytest.mark.parametrize(("factor", "status"), [(1.9, 0), (2.5, 1)])
def test_taken_processors_explain_at_most_the_loss_of_the_threads(tmp_path, capsys, factor, status):
    old, new = saved(tmp_path / "old.json", line()), saved(tmp_path / "new.json", line(factor, lacking=0.7))
    assert command("compare", old, new) == status
    assert ("Too noisy to tell:" in capsys.readouterr().out) == (not status)
    assert command("compare", new, old) == 0
    assert (
        command("compare", saved(tmp_path / "busy.json", line(lacking=0.7)), saved(tmp_path / "free.json", line(factor))) == 1
    )


@pytest.mark.parametrize(("factor", "status"), [(1.1, 0), (1.3, 1)])
def test_call_on_one_thread_is_compared_with_a_reference_on_one(tmp_path, factor, status):
    """Whatever other programs take, and whatever that does to the reference on all threads."""
    old = dataclasses.replace(line(), threads=1)
    new = dataclasses.replace(line(factor, threads=0.2, lacking=1.9), threads=1)
    assert command("compare", saved(tmp_path / "old.json", old), saved(tmp_path / "new.json", new)) == status


def test_nothing_is_told_of_threads_without_a_processor(tmp_path, capsys):
    old, new = saved(tmp_path / "old.json", line()), saved(tmp_path / "new.json", line(5.0, lacking=1.5))
    assert command("compare", old, new) == 0
    printed = capsys.readouterr().out
    assert "Too noisy to tell:" in printed
    assert "Other programs took processors during 1 of them" in printed


def test_processors_that_others_take(monkeypatch):
    def watch(*now):
        times = iter([(0.0, 10.0, 1.0), now])
        monkeypatch.setattr(contention, "_now", lambda: next(times))
        return contention.Watch().lacking()

    monkeypatch.setattr(contention.os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(contention, "get_num_threads", lambda: 3)
    assert watch(2.0, 18.0, 3.0) == pytest.approx(2.0)  # others took 3 of 4 processors, and a call wants 3
    assert watch(2.0, 12.0, 3.0) == 0
    assert watch(2.0, 10.0, 3.0) == 0  # the system does not tell


def test_turns_that_overlap_are_too_noisy(tmp_path, capsys):
    old = saved(tmp_path / "old.json", turns(0.4, 0.5, 2.0))
    assert command("compare", old, saved(tmp_path / "new.json", turns(0.5, 1.0, 2.0))) == 0
    printed = capsys.readouterr().out
    assert "Too noisy to tell:" in printed
    assert "Other programs" not in printed


def test_single_turns_hide_no_loss(tmp_path):
    old = saved(tmp_path / "old.json", turns(0.5, 0.5, 0.5, 0.5, 9.0))
    assert command("compare", old, saved(tmp_path / "new.json", turns(0.1, 1.0, 1.0, 1.0, 1.0))) == 1


def test_peer_that_is_slower_is_no_loss(tmp_path):
    old = saved(tmp_path / "old.json", line(), line(library="numpy"))
    assert command("compare", old, saved(tmp_path / "new.json", line(), line(3.0, library="numpy"))) == 0


def test_variant_of_ours_that_is_slower_is_a_loss(tmp_path):
    old = saved(tmp_path / "old.json", line(), line(library="fastrelu packed"))
    assert command("compare", old, saved(tmp_path / "new.json", line(), line(3.0, library="fastrelu packed"))) == 1


def test_facts_that_differ(tmp_path, capsys):
    facts = FACTS | {"NumPy": "2.5.0", "kernel cache": "6 kernels"}
    command("compare", saved(tmp_path / "old.json", line()), saved(tmp_path / "new.json", line(), facts=facts))
    printed = capsys.readouterr().out
    assert "NumPy: 2.4.6 before, 2.5.0 now" in printed
    assert "processor" not in printed
    assert "kernel cache" not in printed


def test_only_the_same_reference_can_be_compared(tmp_path, capsys):
    old = saved(tmp_path / "old.json", line(), line(size="10"))
    other = dataclasses.replace(turns(9.0), size="10")
    new = saved(tmp_path / "new.json", line(), other)
    assert command("compare", old, new) == 0
    assert "Only in the new run: 1 benchmarks, relu-float32-10-given-fastrelu" in capsys.readouterr().out
    assert command("compare", old, saved(tmp_path / "other.json", line(size="7"))) == 2
    assert "no benchmark in common\n" in capsys.readouterr().err
    assert command("compare", old, saved(tmp_path / "threads.json", other)) == 2
    assert "no benchmark in common with the same references" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"benchmarks": []}', '{"machine_info": {"fastrelu": 1}, "benchmarks": [{}]}'])
def test_file_that_is_no_run(tmp_path, capsys, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    assert command("compare", path, path) == 2
    assert f"{path} is not what `python -m fastrelu bench` writes" in capsys.readouterr().err


def test_file_that_is_absent(tmp_path, capsys):
    assert command("compare", tmp_path / "no.json", tmp_path / "no.json") == 2
    assert "no.json" in capsys.readouterr().err


def interrupted(folder):
    """Start a run, and end it by a signal to the command alone once something is measured."""
    chosen = ["--operations", "relu", "--sizes", *map(str, range(10, 20)), "--peers", "--output", folder]
    words = [sys.executable, "-m", "fastrelu", "bench", "--quick", *chosen]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while "1/10" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    printed, _ = process.communicate()
    assert process.returncode == 130
    assert "| `relu` | float32 | 10 | given |" in printed


def test_interrupt_keeps_what_was_measured(tmp_path):
    subprocesses.call(interrupted, str(tmp_path / "out"))
    run = results.read(tmp_path / "out")
    assert 1 <= len(run.results) < 10
    assert not (tmp_path / "out" / "results.json.part").exists()


def test_benchmark_that_was_cut_off_is_left_out():
    benchmarks = [SimpleNamespace(extra_info={"operation": "relu"}), SimpleNamespace(extra_info={})]
    plugin.pytest_benchmark_generate_json(benchmarks)
    assert [benchmark.extra_info for benchmark in benchmarks] == [{"operation": "relu"}]


def test_run_that_fails_leaves_the_results_of_the_last(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "results.json", line())
    monkeypatch.setattr("fastrelu.benchmarks.command._measure", lambda *_: 3)
    assert command("--smoke", "--output", tmp_path) == 3
    assert capsys.readouterr() == ("", "Nothing was measured.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert len(results.read(tmp_path).results) == 1


def test_folder_that_cannot_be_written_is_known_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastrelu.benchmarks.command._measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "results.json.part").mkdir()
    assert command("--smoke", "--output", tmp_path) == 2
    assert "results.json.part" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device without room")
def test_full_disk_is_known_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastrelu.benchmarks.command._measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "results.json.part").symlink_to("/dev/full")
    assert command("--smoke", "--output", tmp_path) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_compare_takes_no_options_of_a_run(tmp_path, capsys):
    path = saved(tmp_path / "x.json", line())
    assert command("--quick", "compare", path, path) == 2
    assert "compare measures nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--operations", "rleu"], "operations: rleu is none of relu, "),
        (["--dtypes", "int8"], "dtypes: int8 is none of float16, float32, float64"),
        (["--peers", "tensorflow"], "peers: tensorflow is none of all, numpy, torch, "),
        (["--forms", "other"], "forms: other is none of new, given, in_place"),
        (["--sizes", "12x", "10"], "sizes: 12x is neither a length such as 1000 or 1M, nor m x k x n such as 64x784x256"),
        (["--sizes", "0"], "sizes: 0 is neither a length"),
        (["--operations", "relu", "--sizes", "4x3x5"], "the operations have none of these sizes, types and forms"),
    ],
)
def test_faults(tmp_path, capsys, arguments, words):
    assert command(*arguments, "--output", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sizes_choose_the_operations():
    chosen = Selection(sizes=("2k", "4x3x5")).benchmarks()
    assert {(b.operation.startswith("linear"), b.size) for b in chosen} == {(False, "2000"), (True, "4x3x5")}
    assert {b.library.split()[0] for b in chosen} == {OURS}


def test_peers_and_their_variants():
    chosen = Selection("quick", operations=("linear_relu_backward",), peers=("numpy",)).benchmarks()
    assert {b.library for b in chosen} == {"fastrelu", "fastrelu mask", "numpy"}


@pytest.mark.parametrize("extent", ["smoke", "quick", "usual", "full"])
def test_extents_have_every_operation(extent):
    chosen = Selection(extent).benchmarks()
    assert {b.operation for b in chosen} == {name for family in FAMILIES for name in family.operations()}
    assert len(set(map(str, chosen))) == len(chosen)


def test_names_of_sizes_can_be_asked_for():
    """Also all of them at once, from the command and in the options of pytest, though names have commas."""
    offered = [(f, operation, size) for f in FAMILIES for operation in f.operations() for size in f.sizes(operation, "full")]
    names = dict.fromkeys(size for *_, size in offered)
    options = {"--extent": "full", "--sizes": ",".join(names)}
    chosen = plugin.selection(SimpleNamespace(getoption=lambda name: options.get(name, "")))
    assert chosen.sizes == tuple(names)
    found = {(benchmark.operation, benchmark.size) for benchmark in chosen.benchmarks()}
    assert {(operation, size) for _, operation, size in offered} <= found
    assert all(f.is_size(o, size) for o, size in found for f in FAMILIES if o in f.operations())


def test_size_of_one_operation_is_none_of_another():
    found = Selection(sizes=("64 x 10",)).benchmarks()
    assert [str(benchmark) for benchmark in found] == ["softmax_cross_entropy-float32-64 x 10-new-fastrelu"]


def test_size_given_twice_is_measured_once():
    names = [str(benchmark) for benchmark in Selection(operations=("relu",), sizes=("1000", "1k")).benchmarks()]
    assert names == ["relu-float32-1000-given-fastrelu"]


def test_peer_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(operations, "_installed", lambda: {"numpy"})
    with pytest.raises(ValueError, match="peers: torch is not installed"):
        Selection(peers=("numpy", "torch"))
    Selection(peers=("all",))


def test_folder_with_the_name_of_a_peer_is_no_peer(tmp_path, monkeypatch):
    (tmp_path / "some_peer").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not peers.available("some_peer")
    (tmp_path / "some_peer" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert peers.available("some_peer")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_forms_and_types_of_each_extent(family):
    for extent in ("smoke", "quick", "usual"):
        assert {*family.dtypes(extent)} <= {*family.types}
        assert {*family.forms(extent)} <= {*family.forms("full")}


def test_losses_are_bold_in_the_table():
    others = [line(library="numpy", seconds=4e-6), line(library="torch", seconds=5e-7)]
    table = tables.markdown(results.Run("2026-01-02T03:04:05", FACTS, [LINE, *others]))
    assert "Measured on 2026-01-02: NumPy 2.4.6, processor this one." in table
    assert "| `relu` | float32 | 1 k | given | 1 us | 8 GB/s | 50% | 4.00 | **0.50** |" in table
    assert "Other programs" not in table


def test_table_has_the_libraries_of_each_operation():
    lines = [LINE, line(library="numpy"), line(size="10"), line(operation="tanh"), line(operation="tanh", library="jax")]
    table = tables.markdown(results.Run("2026-01-02T03:04:05", FACTS, lines))
    headers = [row for row in table.splitlines() if row.startswith("| operation")]
    assert [header.split(" | ")[7:] for header in headers] == [["numpy |"], ["jax |"]]


def test_table_tells_of_other_programs():
    table = tables.markdown(results.Run("2026-01-02T03:04:05", FACTS, [LINE, line(size="10", lacking=0.5)]))
    assert "Other programs took processors during 1 of 2 measurements." in table


def test_pictures_show_the_limit(tmp_path):
    pytest.importorskip("matplotlib")
    lines = [line(library=library, size=str(size)) for library in (OURS, "numpy") for size in (10, 1000)]
    lines += [line(operation="training_step", size="digits, 64", unit="images/s", limit=None, form="new")]
    drawn = pictures.draw(results.Run("", FACTS, lines), tmp_path, ".svg")
    assert [path.name for path in drawn] == ["relu.svg", "training_step.svg"]
    text = drawn[0].read_text()
    assert "limit: the fastest copy" in text
    assert "elements" in text
    assert "limit" not in drawn[1].read_text()
    assert "digits, 64" in drawn[1].read_text()


def test_pictures_of_a_run_that_was_interrupted(tmp_path):
    pytest.importorskip("matplotlib")
    lines = [line(dtype="float16", form=form) for form in ("new", "given")] + [line(form="new")]
    (drawn,) = pictures.draw(results.Run("", FACTS, lines), tmp_path, ".svg")
    text = drawn.read_text()
    assert "float32, new" in text
    assert "float32, given" not in text


def test_plot_of_the_activations(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main(["plot", "--output", str(tmp_path)])
    assert (tmp_path / "activations.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="2"):
        main(["plot", "--output", str(tmp_path / "x.txt")])
    assert "must end in .png" in capsys.readouterr().err


def test_plot_of_a_run(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main(["plot", str(saved(tmp_path / "x.json", line())), "--output", str(tmp_path / "new")])
    assert (tmp_path / "new" / "relu.png").exists()
    assert "relu.png" in capsys.readouterr().out


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    original = builtins.__import__

    def refuse(name, *others, **keywords):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *others, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SystemExit, match="2"):
        main(["plot", "--output", str(tmp_path)])
    assert "a picture needs Matplotlib" in capsys.readouterr().err


def test_without_pytest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastrelu.benchmarks.command.find_spec", lambda name: None)
    assert command("--smoke", "--output", tmp_path / "out") == 2
    assert 'the benchmarks need pytest: pip install "fastrelu[bench]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_geometric_mean_of_all(tmp_path, capsys):
    old = comparison.compare(
        results.Run("", {}, [line(), line(size="10")]), results.Run("", {}, [line(4.0), line(1.0, size="10")])
    )
    assert math.prod(change.factor for change in old.changes) == pytest.approx(4)
    assert "Geometric mean of all: 2.000 times" in comparison.describe(old, 0.15)


@pytest.mark.parametrize(("siblings", "cores"), [(["0-1", "0-1"], 1), (["0", "1"], 2)])
def test_limit_of_products_counts_cores(monkeypatch, siblings, cores):
    """Two processors of one core share its multiply-adds."""
    texts = iter(siblings)
    monkeypatch.setattr(fma.os, "sched_getaffinity", lambda _: range(2), raising=False)
    monkeypatch.setattr(fma, "Path", lambda _: SimpleNamespace(read_text=lambda: next(texts)))
    monkeypatch.setattr(fma, "get_num_threads", lambda: 2)
    lanes = fma.host.vector_bytes() // 4
    assert fma.multiply_adds()[1] == cores * 2 * lanes * fma.CHAINS * fma.STEPS
