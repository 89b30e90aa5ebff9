"""Models as files."""

import json

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastrelu import nn


def model(dtype="float32"):
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=2, padding=(1, 0), groups=2, bias=False, rng=rng, dtype=dtype),
        nn.LeakyReLU(0.25),
        nn.MaxPool2d(2, 1),
        nn.Sequential(nn.Flatten(), nn.LinearReLU(8, 5, rng=rng, dtype=dtype)),
        nn.PReLU(rng.standard_normal(5).astype(dtype)),
        nn.Conv2dReLU(1, 1, 1, rng=rng),
        nn.EmbeddingMean(7, 3, padding_id=2, rng=rng, dtype=dtype),
        nn.ELU(0.5, copy=True),
    )


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64"])
def test_model_comes_back_with_its_bits(tmp_path, dtype):
    before = model(dtype)
    before.parameters["4.alpha"][:2] = np.nan, -0.0
    nn.save(before, tmp_path / "a model")
    after = nn.load(tmp_path / "a model")
    assert repr(after) == repr(before)
    assert after.parameters.keys() == before.parameters.keys()
    for a, b in zip(after.parameters.values(), before.parameters.values(), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def test_model_predicts_the_same(tmp_path):
    before = nn.Sequential(nn.Linear(4, 3, rng=0), nn.ReLU(), nn.Linear(3, 2, rng=1))
    x = np.random.default_rng(2).standard_normal((5, 4))
    nn.save(before, tmp_path / "m.npz")
    assert_array_equal(nn.load(str(tmp_path / "m.npz")).predict(x), before.predict(x))


def test_numpy_reads_the_parameters(tmp_path):
    before = model()
    nn.save(before, tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as file:
        assert_array_equal(file["0.weight"], before.parameters["0.weight"])
        assert json.loads(str(file["architecture"]))["format"] == "fastrelu.nn 1"


def test_nothing_else_is_left_in_the_folder(tmp_path):
    nn.save(model(), tmp_path / "m.npz")
    nn.save(nn.Sequential(nn.Tanh()), tmp_path / "m.npz")
    assert repr(nn.load(tmp_path / "m.npz").layers) == "(Tanh(),)"
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_failure_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    nn.save(model(), tmp_path / "m.npz")
    before = (tmp_path / "m.npz").read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="disk full"):
        nn.save(nn.Sequential(nn.ReLU()), tmp_path / "m.npz")
    assert (tmp_path / "m.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def described(**options):
    return json.dumps({"format": "fastrelu.nn 1", "model": {"kind": "Sequential", "layers": [options]}})


LINEAR = {"kind": "Linear", "options": {"in_features": 2, "out_features": 1, "bias": False, "dtype": "float32"}}
OF_NPZ = {
    "no architecture": ({"a": np.zeros(3)}, "architecture"),
    "no JSON": ({"architecture": np.array("x")}, "Expecting value"),
    "other format": ({"architecture": np.array('{"format": "other"}')}, "its format is 'other'"),
    "unknown layer": ({"architecture": np.array(described(kind="os"))}, "'os'"),
    "unknown option": ({"architecture": np.array(described(kind="ReLU", options={"x": 1}))}, "x"),
    "no weight": ({"architecture": np.array(described(**LINEAR))}, r"\['0.weight'\]"),
    "other shape": (
        {"architecture": np.array(described(**LINEAR)), "0.weight": np.zeros((1, 2), np.float32)},
        r"0.weight is float32 \(1, 2\), and its layer has float32 \(2, 1\)",
    ),
    "pickle": ({"architecture": np.array([object()])}, "allow_pickle=False"),
}


@pytest.mark.parametrize("case", OF_NPZ)
def test_file_of_another_kind(tmp_path, case):
    arrays, words = OF_NPZ[case]
    path = tmp_path / "m.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"^load: path must be a file that save wrote, not .*m.npz': .*{words}"):
        nn.load(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"some text", b"\x93NUMPY"])
def test_file_that_is_no_npz(tmp_path, content):
    path = tmp_path / "m.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^load: path must be a file that save wrote"):
        nn.load(path)


def test_file_that_is_damaged(tmp_path):
    path = tmp_path / "m.npz"
    nn.save(nn.Sequential(nn.Linear(30, 30, rng=0)), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^load: path must be a file that save wrote"):
        nn.load(path)


def test_array_alone(tmp_path):
    np.save(tmp_path / "m.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"^load: path must be a file that save wrote"):
        nn.load(tmp_path / "m.npy")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none/model.npz'$"):
        nn.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "none" / "model.npz")
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "m.npz")


class Own(nn.Linear):
    """A layer of a user."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (nn.Sequential(Own(2, 1)), "save: layers must be those of fastrelu.nn, not Own"),
        (nn.Linear(2, 1), "save: model must be a Sequential, not Linear"),
    ],
)
def test_what_cannot_be_saved(tmp_path, value, words):
    with pytest.raises(TypeError, match=f"^{words}"):
        nn.save(value, tmp_path / "m.npz")
    assert not list(tmp_path.iterdir())
