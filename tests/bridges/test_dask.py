"""Training over dask arrays: the bits of a training in memory, for all chunks, schedulers, workers and threads."""

import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu import nn
from fastrelu.examples import dask_training
from fastrelu.nn import dask_data

ROWS = 1500
CHUNKS = {"one": ROWS, "blocks": 256, "uneven": (3, 700, 0, 797), "small": 110}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two worker processes of two threads each."""
    options = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def threads() -> Iterator[None]:
    with dask.config.set(scheduler="threads", num_workers=3):
        yield


def data() -> tuple[np.ndarray, np.ndarray]:
    """Points, and the number of the largest of three sums of their coordinates."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 8), dtype=np.float32)
    return x, (x @ rng.standard_normal((8, 3))).argmax(1)


def network(*widths: int, dtype: str = "float32") -> nn.Sequential:
    rng = np.random.default_rng(7)
    layers: list[Any] = []
    for k, n in pairwise(widths):
        layers += [nn.Linear(k, n, rng=rng, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trained(x: Any, y: Any, model: nn.Sequential | None = None, **options: Any) -> tuple[nn.History, list[bytes]]:
    """History and parameters after two epochs; a batch of 1200 rows has blocks that do not divide evenly among shards."""
    model = model or network(8, 16, 3)
    history = nn.fit(model, x, y, 2, **{"batch_size": 1200, "rng": 3, "progress": False, **options})
    return history, [p.tobytes() for p in model.parameters.values()]


def chunked(x: np.ndarray, y: np.ndarray, chunks: Any) -> tuple[Any, Any]:
    return da.from_array(x, (chunks, *x.shape[1:])), da.from_array(y, (chunks, *y.shape[1:]))


# The same bits as in memory.


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"shuffle": 500}, {"batch_size": 100}], ids=str)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_threads_train_as_in_memory(threads: None, chunks: Any, options: dict[str, Any]) -> None:
    x, y = data()
    assert trained(*chunked(x, y, chunks), **options) == trained(x, y, **options)


@pytest.mark.parametrize("chunks", ["uneven", "small"])
@pytest.mark.parametrize("shuffle", [True, 500])
def test_workers_train_as_in_memory(client: Client, chunks: str, shuffle: bool | int) -> None:
    x, y = data()
    expected = trained(x, y, shuffle=shuffle, validation=(x[:1200], y[:1200]))
    lazy = chunked(x, y, CHUNKS[chunks])
    held_out = (lazy[0][:1200], lazy[1][:1200])
    assert trained(*lazy, shuffle=shuffle, validation=held_out) == expected
    assert expected[0].loss[1] < expected[0].loss[0]


def test_one_worker_and_in_process_workers_train_alike(client: Client) -> None:
    x, y = data()
    expected = trained(x, y)
    lazy = chunked(x, y, 400)
    first, _ = client.nthreads()
    with dask.annotate(workers=[first]):
        assert trained(*lazy) == expected
    with Client(n_workers=1, threads_per_worker=3, processes=False, dashboard_address=":0"):
        assert trained(*lazy) == expected


@pytest.mark.parametrize("loss", ["mean_squared_error", "sigmoid_cross_entropy"])
def test_other_losses(threads: None, loss: str) -> None:
    x, y = data()
    targets = np.stack([y == 0, y == 1, y == 2], 1)
    for each, width in ((targets, 3), (targets[:, 0], 1)):
        lazy = chunked(x, each, 400)
        expected = trained(x, each, network(8, 16, width), loss=loss, validation=(x, each))
        assert trained(*lazy, network(8, 16, width), loss=loss, validation=lazy) == expected


def test_targets_may_be_an_array_and_labelled(threads: None) -> None:
    xr = pytest.importorskip("xarray")
    x, y = data()
    lazy, _ = chunked(x, y, 400)
    assert trained(lazy, y) == trained(lazy, y.tolist()) == trained(x, y)
    assert trained(xr.DataArray(lazy, dims=["row", "column"]), y) == trained(x, y)


def test_chunks_of_columns_and_of_other_rows_in_the_targets(threads: None) -> None:
    x, y = data()
    assert trained(da.from_array(x, (700, 3)), da.from_array(y, 110)) == trained(x, y)


def test_threads_of_a_call_do_not_change_a_bit(threads: None) -> None:
    x, y = data()
    lazy = chunked(x, y, 400)
    with fastrelu.num_threads(1):
        expected = trained(*lazy)
    with fastrelu.num_threads(3):
        assert trained(*lazy) == expected


def test_networks_whose_sums_are_no_blocks_of_rows_depend_on_the_batch_only(threads: None) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(50, size=(ROWS, 5)), rng.integers(3, size=ROWS)

    def words() -> nn.Sequential:
        return nn.Sequential(nn.EmbeddingMean(50, 16, rng=1), nn.PReLU(np.float32(0.2)), nn.Linear(16, 3, rng=2))

    results = [trained(*chunked(x, y, chunks), words()) for chunks in (ROWS, 400, 110)]
    assert results[0] == results[1] == results[2]
    # Of a single block they are those in memory.
    assert trained(*chunked(x, y, 400), words(), batch_size=256) == trained(x, y, words(), batch_size=256)


# What travels, and what stays.


def test_chunk_is_calculated_once_while_its_rows_are_shuffled(threads: None) -> None:
    x, y = data()
    calculated = []

    def count(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info:
            calculated.append(block_info[0]["chunk-location"][0])
        return block

    lazy = da.from_array(x, (250, 8)).map_blocks(count, dtype=x.dtype)
    trained(lazy, y, batch_size=50, shuffle=500)
    assert sorted(calculated) == sorted(2 * [*range(6)])
    calculated.clear()
    trained(lazy, y, batch_size=50, shuffle=False)
    assert sorted(calculated) == sorted(2 * [*range(6)])


def test_few_chunks_are_in_memory(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data()
    kept = []
    original = dask_data.InChunks._keep

    def keep(self: Any, rows: np.ndarray) -> None:
        original(self, rows)
        kept.append(len(self._kept))

    monkeypatch.setattr(dask_data.InChunks, "_keep", keep)
    trained(*chunked(x, y, 100), batch_size=50, shuffle=300)
    assert max(kept) <= 6  # of two parts of 300 rows
    kept.clear()
    trained(*chunked(x, y, 100), batch_size=50, shuffle=False)
    assert max(kept) == 1
    trained(*chunked(x, y, 100))
    assert max(kept) == 1


def test_rows_of_a_task_are_few(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data()
    lazy = chunked(x, y, 400)
    expected = trained(x, y, validation=(x, y))
    rows = []
    original = dask_data._joined

    def joined(pieces: dask_data.Pieces) -> tuple[np.ndarray, np.ndarray]:
        parts = original(pieces)
        rows.append(len(parts[0]))
        return parts

    monkeypatch.setattr(dask_data, "_joined", joined)
    monkeypatch.setattr(dask_data, "_LARGEST", 20_000)  # bytes; a block of a batch has 11,000
    with dask.config.set(num_workers=1):
        assert trained(*lazy, validation=lazy) == expected
    # Of two epochs: blocks of 256 of two batches, and of 1024 of the validation data.
    assert sorted(rows) == sorted(2 * [*4 * [256], 176, 256, 44, 1024, 476])


def test_numbers_of_neighbouring_rows_do_not_travel(threads: None) -> None:
    rows = np.arange(5, 900)
    assert dask_data._short(rows) == range(5, 900)
    for others in (rows[::2], rows[::-1]):
        assert dask_data._short(others) is others


def test_targets_of_any_size_travel_without_a_warning(client: Client) -> None:
    x, y = data()
    lazy, _ = chunked(x, y, 400)
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 kB"}):
        assert trained(lazy, y) == trained(x, y)


def test_nothing_stays_on_the_workers(client: Client) -> None:
    x, y = data()
    trained(*chunked(x, y, 400), shuffle=500)
    deadline = time.monotonic() + 20
    while any(client.has_what().values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(client.has_what().values())


def test_client_holds_no_rows(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("rows came to the client")

    x = da.random.default_rng(0).standard_normal((ROWS, 8), chunks=(400, 8), dtype=np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    monkeypatch.setattr(dask_data, "_joined", refused)
    monkeypatch.setattr(da.Array, "__array__", refused)
    trained(x, y, validation=(x, y))


def test_workers_are_not_oversubscribed(client: Client) -> None:
    ours, theirs = client.run(fastrelu.get_num_threads), client.nthreads()
    assert len(ours) == 2
    for worker, threads in theirs.items():
        assert ours[worker] * threads <= max(os.cpu_count() or 1, threads)


# What goes wrong.


def test_worker_that_dies_changes_nothing() -> None:
    x, y = data()
    expected = trained(x, y)
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0", "silence_logs": 50}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))

        class Deadly(nn.Adam):
            def step(self, parameters: Any, gradients: Any) -> float:
                if self.steps == 2:
                    os.kill(victim, signal.SIGKILL)
                return super().step(parameters, gradients)

        assert trained(*chunked(x, y, 400), optimizer=Deadly()) == expected


def test_error_in_a_chunk_arrives_and_leaves_complete_steps(threads: None) -> None:
    def fail(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info and block_info[0]["chunk-location"][0] == 2:
            raise OSError("no such file")
        return block

    x, y = data()
    model, other = network(8, 3), network(8, 3)
    lazy = da.from_array(x, (500, 8)).map_blocks(fail, dtype=x.dtype)
    with pytest.raises(OSError, match="no such file"):
        nn.fit(model, lazy, y, 1, 500, shuffle=False, progress=False)
    nn.fit(other, x[:1000], y[:1000], 1, 500, shuffle=False, progress=False)
    assert_array_equal(model.parameters["0.weight"], other.parameters["0.weight"])


X, Y = (a[:10] for a in data())
LAZY, LABELS = da.from_array(X, (4, 8)), da.from_array(Y, 5)
FAULTS = [
    (lambda m: nn.fit(m, LAZY, LABELS[:9]), ValueError, "y must have as many rows as x, 10, not 9"),
    (lambda m: nn.fit(m, LAZY, Y[:9]), ValueError, "y must have as many rows as x, 10, not 9"),
    (lambda m: nn.fit(m, LAZY[:0], LABELS[:0]), ValueError, r"x must have at least one row, not shape \(0, 8\)"),
    (lambda m: nn.fit(m, LAZY, LABELS + 1), ValueError, "y must be from 0 to 2 for 3 outputs, not 3"),
    (lambda m: nn.fit(m, LAZY, LABELS * 1.0), TypeError, "y must be integers, the classes, .* not float64"),
    (lambda m: nn.fit(m, LAZY, LABELS[:, None]), ValueError, r"y must have shape \(10,\), .* not \(10, 1\)"),
    (lambda m: nn.fit(m, LAZY, LABELS, validation=(LAZY, LABELS - 5)), ValueError, "validation y must be from 0 to 2 "),
    (lambda m: nn.fit(m, LAZY, LABELS, shuffle=0), ValueError, "shuffle must be at least 1, not 0"),
    (lambda m: nn.fit(m, LAZY, LABELS, shuffle=0.5), TypeError, "shuffle must be an integer, not float"),
    (lambda m: nn.fit(m, LAZY[LAZY[:, 0] > 0], LABELS), ValueError, "x must have chunks of known sizes: call its compute_ch"),
    (lambda m: nn.fit(m, da.ma.masked_greater(LAZY, 1), LABELS), TypeError, "x must be an array without a mask, not a Masked"),
    (lambda m: nn.fit(m, LAZY, np.ma.array(Y)), TypeError, "y must be an array without a mask, not a MaskedArray"),
    (
        lambda m: nn.fit(m, LAZY, da.ma.masked_equal(LABELS, 1)),
        TypeError,
        "y must be an array without a mask, not a MaskedArray",
    ),
    (lambda m: nn.fit(m, dask.delayed(X), Y), TypeError, "x must be an array, not a Delayed.* of dask: make it a dask array"),
    (
        lambda m: nn.fit(m, LAZY, dask.delayed(Y)),
        TypeError,
        "y must be an array, not a Delayed.* of dask: make it a dask array",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), FAULTS)
def test_fault_is_told_before_anything_changes(threads: None, call: Any, error: type[Exception], words: str) -> None:
    model = network(8, 3)
    before = model.parameters["0.weight"].copy()
    with pytest.raises(error, match=f"^fit: {words}"):
        call(model)
    assert_array_equal(model.parameters["0.weight"], before)
    assert model.history is None


def test_data_that_do_not_fit_the_first_layer(threads: None) -> None:
    with pytest.raises(ValueError, match=r"^Sequential: layer 0, Linear: x must have shape \(..., 8\) .*, not \(1, 7\)"):
        nn.fit(network(8, 3), LAZY[:, :7], LABELS)


def test_frames_and_datasets_are_told_what_to_do(threads: None) -> None:
    xr, dd = pytest.importorskip("xarray"), pytest.importorskip("dask.dataframe")
    with pytest.raises(TypeError, match=r"^fit: x must be an array, not a Dataset of xarray: make it a dask array first"):
        nn.fit(network(8, 3), xr.Dataset({"x": (("row", "column"), LAZY)}), Y)
    frame = dd.from_dask_array(LAZY)
    with pytest.raises(
        TypeError, match=r"^fit: x must be an array, not a DataFrame of dask: call its to_dask_array\(lengths=T"
    ):
        nn.fit(network(8, 3), frame, Y)
    assert trained(frame.to_dask_array(lengths=True), Y) == trained(X, Y)


# Calls on dask arrays, on workers.


def test_linear_relu_of_a_dask_array_runs_on_the_workers(client: Client) -> None:
    x = np.random.default_rng(0).standard_normal((60, 8), dtype=np.float32)
    w, b = np.ones((8, 5), np.float32), np.arange(5, dtype=np.float32)
    y = fastrelu.linear_relu(da.from_array(x, (25, 8)), w, b)
    assert (y.shape, y.dtype, y.chunks) == ((60, 5), np.float32, ((25, 25, 10), (5,)))
    assert_array_equal(y.compute(), fastrelu.linear_relu(x, w, b))


def test_predictions_stay_where_the_chunks_are(client: Client) -> None:
    x, _ = data()
    model = network(8, 16, 3)
    y = da.from_array(x, (400, 8)).map_blocks(model.predict, chunks=((400, 400, 400, 300), (3,)), dtype=np.float32)
    assert_array_equal(y.compute(), model.predict(x))


# The example.


def test_example_trains_as_in_memory() -> None:
    found = dask_training.train(3000, 2, 0, count=0, progress=False)
    assert found.is_same
    assert found.history.loss[1] < found.history.loss[0]


def test_plan_grows_with_the_rows() -> None:
    small, large = dask_training.plan(1e-5, 1e-3), dask_training.plan(1e-5, 1e-3, terabytes=2.0)
    for name, seconds in vars(small).items():
        assert getattr(large, name) == pytest.approx(2 * seconds, rel=0.01)
    rows = 1e12 / (4 * 784)
    assert small.compute == pytest.approx(rows * 1e-5 / 1600, rel=0.01)
    assert small.reading == 10
