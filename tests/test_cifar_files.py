"""The files of CIFAR-10 are read as they are published, and nothing that a pickle asks for is run."""

import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastrelu.examples import cifar_files

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def text(value: bytes) -> bytes:
    """A string as Python 2 pickled it, which no Python 3 does."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def pickled(
    data: np.ndarray, labels: list[int], kind: bytes = b"u1", function: bytes = b"numpy.core.multiarray\n_reconstruct"
) -> bytes:
    """A batch as it is in the published files: pickled by Python 2 with protocol 2."""
    array = b"c%s\ncnumpy\nndarray\n" % function + number(0) + b"\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(kind) + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + 2 * (b"J" + struct.pack("<i", -1)) + number(0) + b"tb"
    shape = b"".join(map(number, data.shape)) + b"\x86"
    array += b"(" + number(1) + shape + dtype + b"\x89" + text(data.tobytes()) + b"tb"
    content = {
        b"batch_label": text(b"training batch 1 of 5"),
        b"labels": b"](" + b"".join(map(number, labels)) + b"e",
        b"data": array,
        b"filenames": b"](" + b"".join(text(b"image_%d.png" % i) for i in range(len(labels))) + b"e",
    }
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in content.items()) + b"u."


def write(folder: Path, is_binary: bool, count: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write all files of a version, of few images; returns what is in each. An image is bright where its class says."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    batches = {}
    for name in NAMES:
        labels = rng.permutation(np.arange(count) % 10)
        images = rng.integers(0, 100, (count, 3, 32, 32), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label % 3, 3 * label : 3 * label + 3] += 150
        batches[name] = images, labels
        data = images.reshape(count, -1)
        if is_binary:
            (folder / f"{name}.bin").write_bytes(np.c_[labels.astype(np.uint8), data].tobytes())
        else:
            (folder / name).write_bytes(pickled(data, labels.tolist()))
    return batches


def test_pickle_is_what_python_makes_of_it():
    """The writer above is right: NumPy itself reads it."""
    data = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    batch = pickle.loads(pickled(data, [3, 7], function=b"numpy._core.multiarray\n_reconstruct"), encoding="bytes")
    assert_array_equal(batch[b"data"], data)
    assert batch[b"data"].dtype == np.uint8
    assert batch[b"labels"] == [3, 7]


@pytest.mark.parametrize("place", ["", "cifar-10-batches"])
@pytest.mark.parametrize("is_binary", [False, True])
def test_load(tmp_path, is_binary, place):
    batches = write(tmp_path / (place and place + ("-bin" if is_binary else "-py")), is_binary)
    data = cifar_files.load(tmp_path)
    assert_array_equal(data.x, np.concatenate([batches[name][0] for name in NAMES[:5]]))
    assert_array_equal(data.y, np.concatenate([batches[name][1] for name in NAMES[:5]]))
    assert_array_equal(data.x_test, batches["test_batch"][0])
    assert_array_equal(data.y_test, batches["test_batch"][1])
    assert data.x.dtype == np.uint8
    assert data.y.dtype == np.int64


def test_absent_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"no CIFAR-10 in {tmp_path}: get the python or the binary version")
    ) as caught:
        cifar_files.load(tmp_path)
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in str(caught.value)
    write(tmp_path, False)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="no data_batch_3 in"):
        cifar_files.load(tmp_path)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def test_pickle_cannot_run_anything(tmp_path):
    mark = tmp_path / "mark"
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Attack(f"touch {mark}"), "labels": []}, protocol=2))
    with pytest.raises(ValueError, match=r"is no file of CIFAR-10: UnpicklingError: it names \w+\.system"):
        cifar_files.read_python(path)
    assert not mark.exists()


IMAGES = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "EOFError"),
        (b"hello", "UnpicklingError"),
        (pickle.dumps([1, 2]), "TypeError"),
        (pickle.dumps({b"data": 1}, protocol=2), "names _codecs.encode"),
        (pickled(IMAGES[:, :5], [1, 2]), "must have (n, 3072) pixels and n labels, not (2, 5) and (2,)"),
        (pickled(IMAGES, [1, 2, 3]), "not (2, 3072) and (3,)"),
        (pickled(IMAGES, [1, 10]), "its labels must be whole numbers from 0 to 9"),
        (pickled(IMAGES, [1, 2], kind=b"i2"), "must be of type uint8"),
        (pickled(IMAGES, [1, 2])[:-300], "no file of CIFAR-10"),
        (pickled(IMAGES, [1, 2], function=b"builtins\neval"), "names builtins.eval"),
    ],
)
def test_foreign_pickles(tmp_path, content, words):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)):
        cifar_files.read_python(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not 0"),
        (bytes(3072), "its size must be a multiple of 3073 bytes, not 3072"),
        (b"\x0a" + bytes(3072), "from 0 to 9"),
    ],
)
def test_foreign_binary_files(tmp_path, content, words):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        cifar_files.read_binary(path)
