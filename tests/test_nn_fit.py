"""Training: the same bits for a seed, what is recorded, interrupts, and what is refused."""

import sys
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu import nn
from fastrelu.nn import training
from fastrelu.nn.data import batches
from fastrelu.nn.losses import LOSSES
from tests.subprocesses import call


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def network(*widths, dtype="float32"):
    rng = np.random.default_rng(7)
    layers = []
    for k, n in pairwise(widths):
        layers += [nn.Linear(k, n, rng=rng, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data(rows=300, classes=3):
    """Points, and the number of the largest of three sums of their coordinates."""
    x = normal(rows, 8)
    return x, (x @ normal(8, classes, seed=1)).argmax(1)


@pytest.mark.parametrize("batch_size", [32, 300])
def test_threads_do_not_change_a_bit(batch_size):
    x, y = data(300)
    x = np.tile(x, 16)  # wide enough for several threads

    def trained(threads):
        with fastrelu.num_threads(threads):
            model = network(128, 128, 64, 3)
            history = nn.fit(model, x, y, 2, batch_size, optimizer=nn.SGD(0.1, 0.9), rng=3, progress=False)
        return history, [p.tobytes() for p in model.parameters.values()]

    assert trained(1) == trained(2) == trained(5)


def convolutional():
    rng = np.random.default_rng(7)
    layers = [nn.Conv2d(1, 8, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2dReLU(8, 4, 3, rng=rng)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 3, rng=rng))


def of_words():
    rng = np.random.default_rng(7)
    return nn.Sequential(
        nn.EmbeddingMean(50, 32, padding_id=0, rng=rng), nn.LinearReLU(32, 16, rng=rng), nn.Linear(16, 3, rng=rng)
    )


@pytest.mark.parametrize("make", [convolutional, of_words])
def test_threads_do_not_change_a_bit_of_other_networks(make):
    y = data(200)[1]
    x = normal(200, 1, 16, 16) if make is convolutional else np.random.default_rng(0).integers(50, size=(200, 12))

    def trained(threads):
        with fastrelu.num_threads(threads):
            model = make()
            history = nn.fit(model, x, y, 2, 64, rng=3, progress=False)
        return history, [p.tobytes() for p in model.parameters.values()]

    first = trained(1)
    assert first[0].loss[1] < first[0].loss[0]
    assert first == trained(2) == trained(5)


@pytest.mark.parametrize("make", [lambda: network(784, 256, 128, 10), convolutional])
def test_step_allocates_no_array(make):
    model, loss, optimizer = make(), LOSSES["softmax_cross_entropy"](), nn.SGD(0.1, 0.9)
    x = normal(256, 784) if len(model.layers) == 5 else normal(256, 1, 16, 16)
    y = np.zeros(256, np.int64)

    def step():
        _, dy = loss(model._forward(x, escapes=False), y)
        model._backward(dy, wants_dx=False)
        optimizer.step(model.parameters, model.gradients)

    step()
    step()
    tracemalloc.start()
    try:
        step()
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_seed_decides_the_order():
    def loss(rng, **options):
        return nn.fit(network(8, 3), *data(), 1, rng=rng, progress=False, **options).loss

    assert loss(1) == loss(1) == loss(np.random.default_rng(1))
    assert loss(1) != loss(2)
    assert loss(1, shuffle=False) == loss(2, shuffle=False)


def test_one_batch_is_one_step():
    x, y = data()
    model, other = network(8, 16, 3), network(8, 16, 3)
    history = nn.fit(model, x, y, 1, len(x), optimizer=nn.SGD(0.5), shuffle=False, progress=False)
    outputs = other.forward(x)
    loss, dy = fastrelu.softmax_cross_entropy(outputs, y)
    other.backward(dy)
    norm = nn.SGD(0.5).step(other.parameters, other.gradients)
    for a, b in zip(model.parameters.values(), other.parameters.values(), strict=True):
        assert_array_equal(a, b)
    assert history.loss == [float(loss)]
    assert history.gradient_norm == [norm]
    assert history.accuracy == [np.mean(outputs.argmax(1) == y)]


def test_means_weigh_the_last_batch_by_its_rows():
    x, y = data(100)
    model = network(8, 3)
    history = nn.fit(model, x, y, 1, 64, optimizer=nn.SGD(0.0), rng=0, validation=(x, y), progress=False)
    expected, _ = fastrelu.softmax_cross_entropy(model.predict(x), y)
    assert_allclose(history.loss, [expected], rtol=1e-6)
    assert_allclose(history.validation_loss, [expected], rtol=1e-6)
    assert_allclose(history.accuracy, [np.mean(model.predict(x).argmax(1) == y)], rtol=1e-12)
    assert_allclose(history.validation_accuracy, history.accuracy, rtol=1e-12)


@pytest.mark.parametrize("optimizer", [None, nn.SGD(0.1, 0.9)])
def test_network_learns(optimizer):
    x, y = data(1000)
    model = network(8, 32, 3)
    history = nn.fit(model, x[:800], y[:800], 20, 32, optimizer=optimizer, validation=(x[800:], y[800:]), rng=0, progress=False)
    assert history.epochs == 20
    assert history.validation_accuracy[-1] > 0.9
    assert history.loss[-1] < history.loss[0] / 3


def test_two_classes_with_one_output():
    x, _ = data(500)
    y = x[:, 0] > x[:, 1]
    model = network(8, 16, 1)
    history = nn.fit(model, x, y, 30, 32, loss="sigmoid_cross_entropy", optimizer=nn.Adam(0.01), rng=0, progress=False)
    assert history.accuracy[-1] > 0.95


def test_numbers():
    x, _ = data(500)
    model = network(8, 16, 2)
    y = np.stack([x[:, 0] - x[:, 1], abs(x[:, 2])], 1)
    history = nn.fit(
        model, x, y, 40, 32, loss="mean_squared_error", optimizer=nn.Adam(0.01), validation=(x, y), rng=0, progress=False
    )
    assert history.validation_loss[-1] < 0.05
    assert history.accuracy is None
    assert history.validation_accuracy is None


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_a_loss_is_that_of_finite_differences(name):
    z = normal(4, 3, dtype=np.float64)
    y = np.array([0, 2, 1, 1]) if name == "softmax_cross_entropy" else np.random.default_rng(2).random((4, 3))
    loss = LOSSES[name]()
    targets = loss.targets("y", y, z[:1])
    dz = loss(z, targets)[1].copy()
    for at in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[at] = 1e-6
        expected = (loss(z + step, targets)[0] - loss(z - step, targets)[0]) / 2e-6
        assert_allclose(dz[at], expected, rtol=1e-6, atol=1e-9)


def test_sigmoid_cross_entropy_is_exact_for_large_logits():
    loss = LOSSES["sigmoid_cross_entropy"]()
    value, dz = loss(np.array([[-800.0, 800.0, 30.0]]), np.array([[0.0, 1.0, 1.0]]))
    assert_allclose(value, np.log1p(np.exp(-30)) / 3, rtol=1e-12)
    assert_allclose(dz, [[0, 0, -np.exp(-30) / 3]], rtol=1e-3, atol=1e-300)


def test_first_layer_calculates_no_dx(monkeypatch):
    wanted = []
    original = fastrelu.linear_relu_backward

    def spy(*operands, **keywords):
        wanted.append(keywords["wanted"])
        return original(*operands, **keywords)

    monkeypatch.setattr(fastrelu, "linear_relu_backward", spy)
    model = nn.Sequential(nn.Flatten(), *network(8, 16, 16, 3).layers)
    nn.fit(model, *data(32), 1, 32, progress=False)
    assert wanted == [("dx", "dw", "db"), ("dw", "db")]


def test_nothing_is_kept_after_training():
    model = network(8, 16, 3)
    nn.fit(model, *data(), 1, progress=False)
    assert all(layer._kept is None for layer in model.layers if isinstance(layer, nn.Linear))
    assert all(layer.A is None for layer in model.layers if isinstance(layer, nn.ReLU))


class Interrupted(nn.SGD):
    """Ctrl-C in a step."""

    def step(self, parameters, gradients):
        if self.steps == 7:
            raise KeyboardInterrupt
        return super().step(parameters, gradients)


def test_interrupt_leaves_what_is_complete():
    x, y = data(96)
    model, other = network(8, 3), network(8, 3)
    with pytest.raises(KeyboardInterrupt):
        nn.fit(model, x, y, 10, 32, optimizer=Interrupted(0.1), validation=(x, y), rng=0, progress=False)
    expected = nn.fit(other, x, y, 2, 32, optimizer=nn.SGD(0.1), validation=(x, y), rng=0, progress=False)
    assert model.history == expected
    assert nn.fit(model, x, y, 1, progress=False).epochs == 1  # and it can go on


def interrupt_a_training():
    import os
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    x, y = data(500)
    model = network(8, 64, 3)
    nn.fit(model, x, y, 1, rng=0, progress=False)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        nn.fit(model, x, y, 10**6, rng=0, validation=(x, y), progress=False)
    except KeyboardInterrupt:
        epochs = model.history.epochs
        assert epochs > 1
        assert all(len(values) >= epochs for values in vars(model.history).values())
        assert nn.fit(model, x, y, 2, rng=0, progress=False).accuracy[-1] > 0.9
        print("interrupted")


def test_ctrl_c():
    assert call(interrupt_a_training) == "interrupted\n"


def test_no_epochs():
    assert nn.fit(network(8, 3), *data(), 0, progress=False).loss == []


def test_optimizer_goes_on():
    x, y = data(64)
    optimizer, model, other = nn.SGD(0.1, 0.9), network(8, 3), network(8, 3)
    for _ in range(2):
        nn.fit(model, x, y, 1, 64, optimizer=optimizer, shuffle=False, progress=False)
    nn.fit(other, x, y, 2, 64, optimizer=nn.SGD(0.1, 0.9), shuffle=False, progress=False)
    assert_array_equal(model.parameters["0.weight"], other.parameters["0.weight"])


class Terminal:
    """A stderr that somebody sees."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self): ...

    def isatty(self):
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar(monkeypatch, progress):
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    nn.fit(network(8, 3), *data(), 2, progress=progress)
    assert ("training: 100%" in terminal.text) == progress


def test_no_bar_without_tqdm(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    assert nn.fit(network(8, 3), *data(), 1, progress=True).epochs == 1


X, Y = data(10)
FAULTS = [
    (lambda m: nn.fit(m, X, Y[:9]), ValueError, "y must have as many rows as x, 10, not 9"),
    (lambda m: nn.fit(m, X[:0], Y[:0]), ValueError, r"x must have at least one row, not shape \(0, 8\)"),
    (lambda m: nn.fit(m, X, Y + 1), ValueError, "y must be from 0 to 2 for 3 outputs, not 3"),
    (lambda m: nn.fit(m, X, Y + 1), ValueError, ".*: classes count from 0"),
    (lambda m: nn.fit(m, X, Y.astype(str)), TypeError, r".* not <U21: np.unique\(y, return_inverse=True\)\[1\] numbers them"),
    (lambda m: nn.fit(m, X, Y * 0.5), TypeError, '.* not float64: .* for other numbers there is loss="mean_squared_error"'),
    (lambda m: nn.fit(m, X, np.eye(3)[Y]), ValueError, r".* not \(10, 3\): argmax\(-1\) makes classes"),
    (lambda m: nn.fit(network(8, 1), X, Y), ValueError, ".* for one output there is sigmoid_cross_entropy"),
    (lambda m: nn.fit(m, X, Y, optimizer=nn.Adam), TypeError, r"optimizer must .*, not be the type Adam: write Adam\(\)"),
    (lambda m: nn.fit(m, X, -Y), ValueError, "y must be from 0 to 2 for 3 outputs, not -"),
    (lambda m: nn.fit(m, X, Y * 1.0), TypeError, "y must be integers, the classes, for softmax_cross_entropy, not float64"),
    (lambda m: nn.fit(m, X, Y[:, None]), ValueError, r"y must have shape \(10,\), a class for each row, not \(10, 1\)"),
    (lambda m: nn.fit(m, X, Y, loss="hinge"), ValueError, "loss must be one of softmax_cross_entropy, .*, not 'hinge'"),
    (
        lambda m: nn.fit(m, X, Y, loss="mean_squared_error"),
        ValueError,
        r"y must have shape \(10, 3\) as the outputs, not \(10,\)",
    ),
    (
        lambda m: nn.fit(m, X, np.full((10, 3), 1.5), loss="sigmoid_cross_entropy"),
        ValueError,
        "y must be from 0 to 1 ",
    ),
    (lambda m: nn.fit(m, X, Y, batch_size=0), ValueError, "batch_size must be at least 1, not 0"),
    (lambda m: nn.fit(m, X, Y, 1.5), TypeError, "epochs must be an integer, not float"),
    (lambda m: nn.fit(m, X, Y, optimizer="adam"), TypeError, "optimizer must have a method step, .* not be a str"),
    (lambda m: nn.fit(m, X, Y, rng="x"), TypeError, "rng must be a seed"),
    (lambda m: nn.fit(m, X, Y, validation=X), ValueError, "validation must be a pair, x and y"),
    (lambda m: nn.fit(m, X, Y, validation=(X, Y + 5)), ValueError, "validation y must be from 0 to 2"),
    (lambda m: nn.fit(nn.Linear(2, 2), X, Y), TypeError, "model must be a Sequential, not Linear"),
    (lambda m: nn.fit(nn.Sequential(nn.ReLU()), X, Y), ValueError, "model has no parameters to learn"),
]


@pytest.mark.parametrize(("call", "error", "words"), FAULTS)
def test_fault_is_told_before_anything_changes(call, error, words):
    model = network(8, 3)
    before = model.parameters["0.weight"].copy()
    with pytest.raises(error, match=f"^fit: {words}"):
        call(model)
    assert_array_equal(model.parameters["0.weight"], before)
    assert model.history is None


def test_data_that_do_not_fit_the_first_layer():
    with pytest.raises(ValueError, match=r"^Sequential: layer 0, Linear: x must have shape \(..., 8\) .*, not \(2, 7\)"):
        nn.fit(network(8, 3), X[:, :7], Y)


def test_images_without_an_axis_for_channels():
    # One of them alone would be taken for an image without a batch.
    with pytest.raises(
        ValueError, match=r"^Sequential: layer 0, Conv2d: x must have shape \(N, 1, H, W\) .*, not \(2, 16, 16\)"
    ):
        nn.fit(convolutional(), normal(10, 16, 16), Y)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_that_is_no_number_any_more_is_told_once(loss):
    x, y = data(64)
    x[3] = np.nan
    model = network(8, 3)
    with pytest.warns(RuntimeWarning, match="^fit: the loss has become nan: x or y may have NaN") as caught:
        history = nn.fit(model, x, y if loss == "softmax_cross_entropy" else np.eye(3)[y], 3, loss=loss, rng=0, progress=False)
    assert len(caught) == 1
    assert np.isnan(history.loss).tolist() == [True] * 3


def test_loss_that_grows_beyond_all_numbers_is_told():
    x, y = data(64)
    with pytest.warns(RuntimeWarning, match="^fit: .* learning rate may be too large") as caught:
        nn.fit(network(8, 3), 100 * x, np.eye(3)[y], 5, optimizer=nn.SGD(1e9), loss="mean_squared_error", progress=False)
    assert len(caught) == 1  # and nothing about an overflow


def test_data_of_another_type():
    x, y = data(64)
    plain, other = network(8, 3), network(8, 3)
    nn.fit(plain, x, y, 1, rng=0, progress=False)
    nn.fit(other, x.astype(np.float64), y.astype(np.uint8), 1, rng=0, progress=False)
    assert_array_equal(plain.parameters["0.weight"], other.parameters["0.weight"])


def unaligned(x):
    array = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    array[...] = x
    return array


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda x: np.repeat(x, 2, 0)[::2], lambda x: x.astype(">f4"), unaligned])
def test_data_of_other_layouts(layout):
    x, y = data(64)
    plain, other = network(8, 3), network(8, 3)
    nn.fit(plain, x, y, 1, 20, rng=0, progress=False)
    nn.fit(other, layout(x), y, 1, 20, rng=0, progress=False)
    assert_array_equal(plain.parameters["0.weight"], other.parameters["0.weight"])


def test_data_may_be_lists():
    assert nn.fit(network(2, 2), [[0.0, 1.0], [1.0, 0.0]], [0, 1], 2, progress=False).epochs == 2


@pytest.mark.parametrize("shuffle", [False, True, 1, 7, 100, 1000])
@pytest.mark.parametrize("size", [1, 64, 300, 1000])
def test_batches_have_each_row_once(shuffle, size):
    rows = np.arange(700)
    seen = [rows[batch] for batch in batches(700, size, shuffle, np.random.default_rng(0))]
    assert_array_equal(np.sort(np.concatenate(seen)), rows)
    assert {len(batch) for batch in seen[:-1]} <= {size}
    for batch in seen:
        assert len(batch) <= 256 or (np.diff(batch) > 0).all()
    assert shuffle is False or size == 1000 or not np.array_equal(np.concatenate(seen), rows)


def test_parts_are_shuffled_one_after_the_other():
    seen = np.concatenate([*batches(100, 7, 30, np.random.default_rng(0))])
    parts = np.split(seen // 30, np.flatnonzero(np.diff(seen // 30)) + 1)
    assert sorted(part[0] for part in parts) == [0, 1, 2, 3]
    assert [part[0] for part in parts] != [0, 1, 2, 3]


@pytest.mark.parametrize("shuffle", [True, 100])
def test_order_may_be_that_of_parts(shuffle):
    x, y = data(700)
    model, other = network(8, 3), network(8, 3)
    nn.fit(model, x, y, 2, 64, optimizer=nn.SGD(0.1), rng=5, shuffle=shuffle, progress=False)
    rng, optimizer = np.random.default_rng(5), nn.SGD(0.1)
    for _ in range(2):
        for batch in batches(700, 64, shuffle, rng):
            _, dy = fastrelu.softmax_cross_entropy(other.forward(x[batch]), y[batch])
            other.backward(dy)
            optimizer.step(other.parameters, other.gradients)
    assert_array_equal(model.parameters["0.weight"], other.parameters["0.weight"])
