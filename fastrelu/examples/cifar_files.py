"""The files of CIFAR-10 (Krizhevsky 2009, "Learning multiple layers of features from tiny images"), python and binary version.

The python version is pickled. A pickle can name any function for Python to call; the ones here may name three, and even for
those something harmless stands in: no code runs but the one below.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 3 * 32 * 32
"""Numbers of an image: red, green and blue, each row by row."""
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
"""What the archives unpack to."""
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Cifar10:
    """The data set.

    Attributes
    ----------
    x, x_test : ndarray of shape (n, 3, 32, 32)
        Images, uint8.
    y, y_test : ndarray of shape (n,)
        Their classes, numbers of `CLASSES`.
    """

    x: Images
    y: Labels
    x_test: Images
    y_test: Labels


def load(folder: Path) -> Cifar10:
    """Read the data set.

    Parameters
    ----------
    folder : Path
        With the unpacked files of either version, or with the folder that the archive has unpacked to.

    Raises
    ------
    FileNotFoundError
        If there are no such files; it says where to get them.
    ValueError
        If a file holds something else.
    """
    for place in (folder, *(folder / name for name in FOLDERS)):
        for ending, read in (("", read_python), (".bin", read_binary)):
            if (place / f"test_batch{ending}").is_file():
                return _load(place, ending, read)
    raise FileNotFoundError(
        f"no CIFAR-10 in {folder.absolute()}: get the python or the binary version from {HOME} and unpack it there"
    )


def _load(folder: Path, ending: str, read: Callable[[Path], tuple[Images, Labels]]) -> Cifar10:
    missing = [name for name in _BATCHES if not (folder / f"{name}{ending}").is_file()]
    if missing:
        raise FileNotFoundError(f"no {', '.join(missing)} in {folder.absolute()}: get CIFAR-10 again from {HOME}")
    images, labels = zip(*(read(folder / f"{name}{ending}") for name in _BATCHES), strict=True)
    return Cifar10(np.concatenate(images), np.concatenate(labels), *read(folder / f"test_batch{ending}"))


def read_binary(path: Path) -> tuple[Images, Labels]:
    """Images and labels of a file of the binary version: a byte for the label, then the image, and so on."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if not content.size or content.size % (1 + SIZE):
        raise ValueError(f"{path} is no file of CIFAR-10: its size must be a multiple of {1 + SIZE} bytes, not {content.size}")
    rows = content.reshape(-1, 1 + SIZE)
    return _checked(path, rows[:, 1:], rows[:, 0])


def read_python(path: Path) -> tuple[Images, Labels]:
    """Images and labels of a file of the python version."""
    try:
        batch = _Unpickler(BytesIO(path.read_bytes()), encoding="bytes").load()
        data, labels = batch[b"data"].array(), batch[b"labels"]
    # A damaged pickle can raise anything at all.
    except Exception as error:
        raise ValueError(f"{path} is no file of CIFAR-10: {type(error).__name__}: {error}") from None
    return _checked(path, data, labels)


def _checked(path: Path, data: Any, labels: Any) -> tuple[Images, Labels]:
    classes = np.asarray(labels)
    if data.ndim != 2 or data.shape[1] != SIZE or classes.shape != data.shape[:1]:
        raise ValueError(
            f"{path} is no file of CIFAR-10: it must have (n, {SIZE}) pixels and n labels, not {data.shape} and {classes.shape}"
        )
    if classes.dtype.kind not in "iu" or (classes.size and not 0 <= classes.min() <= classes.max() < len(CLASSES)):
        raise ValueError(f"{path} is no file of CIFAR-10: its labels must be whole numbers from 0 to {len(CLASSES) - 1}")
    return data.reshape(-1, 3, 32, 32), classes.astype(np.int64)


class _Type:
    """Stands in for numpy.dtype."""

    def __init__(self, name: Any, *others: Any):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """The byte order and so on: the same for all bytes."""


class _Array:
    """Stands in for numpy.ndarray, and keeps what a pickled one is made of."""

    shape: Any
    kind: Any
    content: Any

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, is_fortran, self.content = state
        if is_fortran:
            raise ValueError("the pixels must be in C order")

    def array(self) -> Images:
        """The array itself."""
        if not isinstance(self.kind, _Type) or self.kind.name not in (b"u1", "u1"):
            raise ValueError("the pixels must be of type uint8")
        return np.frombuffer(self.content, np.uint8).reshape(self.shape)


def _reconstruct(*arguments: Any) -> _Array:
    """Stands in for the function by which NumPy unpickles an array."""
    return _Array()


class _Unpickler(pickle.Unpickler):
    """Knows the three names that the files have, and no others."""

    _KNOWN = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a file of CIFAR-10 does not") from None
