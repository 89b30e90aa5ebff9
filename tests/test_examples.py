"""The runnable examples do what they say."""

import builtins
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastrelu
from fastrelu import metrics, nn
from fastrelu.examples import (
    analysis,
    cifar10,
    classification,
    dask_training,
    digits,
    dosage,
    images,
    neuron,
    potential,
    relu_plot,
    terminal,
    text,
    train_mlp,
)
from tests.subprocesses import run
from tests.test_cifar_files import write

EXAMPLES = [path for path in Path(potential.__file__).parent.glob("*.py") if "\ndef main(" in path.read_text()]
PNG = b"\x89PNG"


@pytest.fixture
def picture(tmp_path):
    """Where an example saves its picture; that it has is asserted after the test."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    yield path
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 5000


def walk_with_numpy(steps, layers, seed):
    """`potential.walk`, step by step in NumPy, whose generator gives the same random numbers."""
    random = np.random.RandomState(seed)
    here, now, total, accepted = np.zeros(3, np.float32), np.inf, 0.0, 0
    for _ in range(steps):
        there = (here + 0.6 * (random.random_sample(3) - 0.5)).astype(np.float32)
        then = potential.energy(there, layers)
        if then <= now or random.random_sample() < np.exp(now - then):
            here, now = there, then
            accepted += 1
        total += now
    return total / steps, accepted / steps


def test_walk_in_a_potential_is_that_of_numpy():
    layers = potential.network(3)
    mean, accepted = potential.walk(500, layers, 7)
    mean_of_numpy, accepted_of_numpy = walk_with_numpy(500, layers, 7)
    assert accepted == accepted_of_numpy
    assert mean == pytest.approx(mean_of_numpy, rel=1e-5)


def test_potential_runs():
    code = "from fastrelu.examples import potential\npotential.main(['2000'])"
    assert "2,000 steps: mean energy" in run(code, timeout=120)


def test_relu_plot(picture):
    found = relu_plot.main(["--plot", str(picture)])
    x = found["ReLU"].x
    assert_array_equal(found["ReLU"].y, np.maximum(x, 0))
    assert_array_equal(found["ReLU"].slope, x > 0)
    assert_array_equal(found["leaky ReLU"].slope, np.where(x > 0, 1, 0.01))
    assert_array_equal(found["parametric ReLU"].slope, np.where(x > 0, 1, 0.25))
    for curve in found.values():  # the derivative is that of the function
        smooth = np.abs(x[1:-1]) > 0.02
        differences = (curve.y[2:] - curve.y[:-2]) / (x[2:] - x[:-2])
        assert_allclose(curve.slope[1:-1][smooth], differences[smooth], atol=1e-4)


@pytest.mark.parametrize(("bias", "output"), [(0.1, 1.69), (-0.1, 1.49)])
def test_neuron(picture, capsys, bias, output):
    found = neuron.main(["--bias", str(bias), "--plot", str(picture)])
    assert found.before == pytest.approx(output)
    assert found.output == pytest.approx(output)
    assert f"ReLU: max(0, {output}0)" in capsys.readouterr().out


def test_neuron_that_is_off(capsys):
    assert neuron.main(["--inputs", "1", "2", "3", "--weights", "-1", "1", "-2", "--bias", "0"]).output == 0
    with pytest.raises(SystemExit):
        neuron.main(["--inputs", "1"])
    assert "--weights must be as many as --inputs, 1, not 2" in capsys.readouterr().err


def test_dosage(picture):
    found = dosage.main(["--plot", str(picture)])
    # The least squares of the three medium dosages: the slopes beside the point are equal, (1.70 * 40.8) / 2 each.
    assert found.weight == pytest.approx(1.70 * 40.8 / 2 / 2.7, rel=1e-4)
    x = np.linspace(0, 1, 1001)
    effect = dosage.steps(x, found.weight, found.bias).effect
    top = int(effect.argmax())
    assert x[top] == pytest.approx(0.5)
    assert (effect[:450] == 0).all()
    assert (effect[550:] == 0).all()
    rise, fall = np.diff(effect)[top - 1], np.diff(effect)[top]
    assert rise > 0.03
    assert fall < -0.03  # a point, no dome
    error = np.mean((dosage.steps(dosage.data()[0], found.weight, found.bias).effect - dosage.data()[1]) ** 2)
    assert found.error == pytest.approx(error)


def test_dosage_by_hand():
    found = dosage.steps(np.array([0.0, 0.5, 1.0]), 12.6, 0.0)
    first = np.maximum(np.array([0.0, 0.5, 1.0]) * 1.70 - 0.85, 0) * -40.8
    second = np.array([0.0, 6.3, 12.6]) * 2.7
    assert_allclose(found.effect, np.maximum(first + second - 16, 0), rtol=1e-13)
    sharp = dosage.smooth_effect(found.dosage, dosage.Fit(12.6, 0.0, 0.0, (0.0, 0.0), 1), 1e6)
    assert_allclose(sharp, found.effect, atol=1e-4)


def test_train_mlp(picture):
    found = train_mlp.train(12, 0, count=8000, progress=False)
    train_mlp.draw(found, picture)
    assert found.test_accuracy > 0.8
    assert found.history.loss[-1] < 0.5 * found.history.loss[0]
    assert len(found.history.gradient_norm) == 12


def test_analysis(picture, capsys):
    found = analysis.main(["--epochs", "20", "--plot", str(picture)])
    assert found.accuracy > 0.8
    assert found.accuracy == np.mean((found.probabilities > 0.5) == found.labels)
    assert found.history.accuracy[-1] > found.accuracy  # learned by heart
    assert "least loss on points kept back after epoch" in capsys.readouterr().out


def test_images_are_enlarged_evenly():
    x = np.arange(8.0)[None, None, :] + 10 * np.arange(8.0)[None, :, None]
    large = digits.enlarged(x, 28)[0]
    assert large.shape == (28, 28)
    inside = (np.arange(28) + 0.5) * 8 / 28 - 0.5
    inside = inside.clip(0, 7)  # the edge goes on as it is
    assert_allclose(large, inside[None, :] + 10 * inside[:, None], atol=1e-12)


def test_digits(picture, capsys):
    pytest.importorskip("sklearn")
    found = digits.main(["--epochs", "15", "--plot", str(picture)])
    printed = capsys.readouterr().out
    dense, convolutional = (trained.report for trained in found.values())
    assert dense.accuracy >= 0.97
    assert convolutional.accuracy >= 0.98
    for report in (dense, convolutional):
        assert report.confusion.sum() == 1797 // 5
        assert report.accuracy == report.confusion.trace() / report.confusion.sum()
        assert f"accuracy {report.accuracy:.4f}" in printed


def test_shifted_and_mirrored_images():
    rng = np.random.default_rng(0)
    x = rng.random((500, 2, 5, 6)) + 1
    shifted = images.augmented(x, 2, True, rng)
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    places = set()
    for image, result in zip(padded, shifted, strict=True):
        matches = [
            (down, right, step)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for step in (1, -1)
            if np.array_equal(image[:, 2 - down : 7 - down, 2 - right : 8 - right][..., ::step], result)
        ]
        assert len(matches) == 1
        places.update(matches)
    assert len(places) == 50  # every shift, mirrored and not
    assert_array_equal(images.augmented(x, 0, False, rng), x)


@pytest.mark.parametrize("is_binary", [False, True])
def test_cifar10(tmp_path, picture, capsys, is_binary):
    write(tmp_path / "cifar", is_binary, 40)
    found = cifar10.main([str(tmp_path / "cifar"), "--epochs", "6" if is_binary else "1", "--plot", str(picture)])
    assert found.report.confusion.sum() == 40
    assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    if is_binary:
        assert found.report.accuracy > 0.5
    assert "airplane" in capsys.readouterr().out


def test_cifar10_that_is_absent(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cifar10.main([str(tmp_path)])
    assert caught.value.code == 2
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in capsys.readouterr().err


def test_scale_of_photographs():
    x = np.random.default_rng(0).integers(0, 200, (50, 3, 32, 32), dtype=np.uint8)
    scaled = cifar10.Scale.of(x)(x)
    assert scaled.dtype == np.float32
    assert_allclose(scaled.mean((0, 2, 3)), 0, atol=1e-5)
    assert_allclose(scaled.std((0, 2, 3)), 1, rtol=1e-5)


def test_vocabulary():
    texts = ["The cat's hat. The CAT!", "A hat, a dog", "déjà-vu dog"]
    assert text.Vocabulary.tokenise(texts[0]) == ["the", "cat's", "hat", "the", "cat"]
    vocabulary = text.Vocabulary.build(texts, min_count=2)
    assert vocabulary.numbers == {"a": 2, "dog": 3, "hat": 4, "the": 5}
    assert vocabulary.counts["dog"] == 2
    assert len(vocabulary) == 6
    assert_array_equal(vocabulary.encode(["a hat and a dog", "", "dog"], 4), [[2, 4, 1, 2], [0, 0, 0, 0], [3, 0, 0, 0]])


def test_reviews_have_the_right_label():
    texts, labels = text.data(200, np.random.default_rng(0))
    for review, label in zip(texts, labels, strict=True):
        words = set(text.Vocabulary.tokenise(review))
        praise, complaint = bool(words & set(text.GOOD)), bool(words & set(text.BAD))
        if praise or complaint:  # else a typing error
            assert label == (praise != bool(words & set(text.NEGATIONS)))
    assert 60 < labels.sum() < 140


def test_text(picture):
    found = text.train(5, 0, count=4000, progress=False)
    text.draw(found, picture)
    assert found.accuracy > 0.9
    assert found.linear_accuracy < 0.6
    sure = found.probabilities
    assert sure["The film was great."] > 0.9 > 0.1 > sure["The film was not great."]
    assert 0 < found.unknown < 0.1


def test_report_of_a_classifier(capsys):
    truth, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    report = classification.evaluate(truth, predicted, ["ant", "bee", "cat", "dog"])
    assert_array_equal(report.confusion.sum(1), [2, 1, 1, 0])
    assert_array_equal(report.recall, [0.5, 1, 0, 0])
    assert_array_equal(report.f1, metrics.f1(truth, predicted, labels=range(4), average=None))
    report.print("pets")
    assert re.search(r"macro mean +0\.333 +0\.375", capsys.readouterr().out)


def test_same_seed_same_bits():
    with fastrelu.num_threads(1):
        one = train_mlp.train(1, 3, count=500, progress=False)
    two = train_mlp.train(1, 3, count=500, progress=False)
    assert vars(one.history) == vars(two.history)
    assert train_mlp.train(1, 4, count=500, progress=False).history.loss != one.history.loss


def without(monkeypatch, name):
    """Make imports of a package fail as if it was not installed."""
    original = builtins.__import__

    def refuse(module, *others, **keywords):
        if module.partition(".")[0] == name:
            raise ImportError(f"No module named {name!r}")
        return original(module, *others, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_without_matplotlib(monkeypatch, capsys):
    without(monkeypatch, "matplotlib")
    assert neuron.main([]).output == pytest.approx(1.69)
    with pytest.raises(SystemExit):
        neuron.main(["--plot", "neuron.png"])
    assert 'a picture needs Matplotlib: pip install "fastrelu[examples]"' in capsys.readouterr().err


def test_without_scikit_learn(monkeypatch, capsys):
    without(monkeypatch, "sklearn")
    with pytest.raises(SystemExit):
        digits.main([])
    assert 'the digits come from scikit-learn: pip install "fastrelu[examples]"' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--epochs", "ten"], ["--seed", "-1"]])
def test_numbers_that_cannot_be(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        train_mlp.main(arguments)
    assert caught.value.code == 2
    assert f"{arguments[0]}: must be a whole number of at least" in capsys.readouterr().err


def test_without_dask(monkeypatch, capsys):
    without(monkeypatch, "distributed")
    with pytest.raises(SystemExit):
        dask_training.main([])
    assert 'it needs dask: pip install "fastrelu[dask]"' in capsys.readouterr().err


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_help(capsys, name):
    with pytest.raises(SystemExit) as caught:
        import_module(f"fastrelu.examples.{name}").main(["--help"])
    assert caught.value.code == 0
    assert f"usage: python -m fastrelu.examples.{name} [-h]" in capsys.readouterr().out


@pytest.mark.parametrize("has_rich", [False, True])
def test_tables(monkeypatch, capsys, has_rich):
    if has_rich:
        pytest.importorskip("rich")
    else:
        without(monkeypatch, "rich")
    terminal.print_table("numbers", ["name", "value"], [["one", 1.0], ["minus zero", -0.0]])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["name", "value"] in lines
    assert ["one", "1.000"] in lines
    assert ["minus", "zero", "0.000"] in lines


@pytest.mark.parametrize(
    ("path", "words"), [("relu", "must end in .png"), ("relu.xyz", "must end in .png"), ("no/relu.png", "folder must exist")]
)
def test_picture_that_cannot_be_saved(monkeypatch, tmp_path, capsys, path, words):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(nn, "fit", None)  # no work before
    with pytest.raises(SystemExit):
        train_mlp.main(["--plot", str(tmp_path / path)])
    assert words in capsys.readouterr().err


def test_pictures_leave_the_state_of_matplotlib_alone(tmp_path):
    pytest.importorskip("matplotlib")
    code = f"""
import sys
from pathlib import Path
from fastrelu.examples import plots
with plots.picture(Path({str(tmp_path)!r}, "empty.svg"), "nothing"):
    pass
print("matplotlib.figure" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    assert run(code).split() == ["True", "False"]
    assert (tmp_path / "empty.svg").read_text().startswith("<?xml")
