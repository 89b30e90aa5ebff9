"""Models as files: .npz without pickle, which NumPy alone can read: the layers as JSON, the parameters by their names."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastrelu.nn import activations, convolution, embedding, layers
from fastrelu.nn.initial import float_type
from fastrelu.nn.sequential import Sequential

__all__ = ["load", "save"]

_FORMAT = "fastrelu.nn 1"
_LAYERS = {name: getattr(m, name) for m in (activations, convolution, embedding, layers) for name in m.__all__}
_LAYERS["Sequential"] = Sequential


def save(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Write a model to a file: its layers and the values of their parameters.

    The file is complete or not there: what was at `path` is replaced at the end only.

    Parameters
    ----------
    model : Sequential
        All its layers must be of `fastrelu.nn`.
    path : str or path
        Where to; nothing is appended to the name, which usually ends with .npz.

    Raises
    ------
    TypeError
        If `model` is no Sequential, or has a layer of another kind.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fastrelu import nn
    >>> model = nn.Sequential(nn.Linear(3, 2, rng=0), nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.save(model, Path(folder, "model.npz"))
    ...     nn.load(Path(folder, "model.npz"))
    Sequential(
        Linear(in_features=3, out_features=2, bias=True, dtype='float32'),
        ReLU(),
    )
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"save: model must be a Sequential, not {type(model).__name__}")
    text = json.dumps({"format": _FORMAT, "model": _described(model)})
    arrays = {name: _plain(array) for name, array in model.parameters.items()}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, architecture=np.array(text), **arrays)  # type: ignore[arg-type]  # all names are free
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None:
            error.filename = str(path)  # not that of the temporary file
        raise
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def load(path: str | os.PathLike[str]) -> Sequential:
    """Read a model that `save` wrote. Nothing in the file is run.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    Sequential
        With the same layers and the same bits.

    Raises
    ------
    ValueError
        If the file is none that `save` wrote, or damaged.
    OSError
        If it cannot be read.

    Examples
    --------
    See `save`.
    """
    try:
        with open(path, "rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is no archive")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        described = json.loads(str(arrays.pop("architecture")))
        if described["format"] != _FORMAT:
            raise ValueError(f"its format is {described['format']!r}, and {_FORMAT!r} is known")
        model: Sequential = _made(described["model"])
        _fill(model, arrays)
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"load: path must be a file that save wrote, not {os.fspath(path)!r}: {why}") from None
    return model


def _described(layer: Any) -> dict[str, Any]:
    """A layer as JSON can have it."""
    kind = type(layer).__name__
    if _LAYERS.get(kind) is not type(layer):
        raise TypeError(f"save: layers must be those of fastrelu.nn, not {kind}")
    if isinstance(layer, Sequential):
        return {"kind": kind, "layers": [_described(inner) for inner in layer.layers]}
    options = layer._options()
    if "alpha" in layer.parameters:  # PReLU: only the shape and the type of what is learned
        options |= {"alpha": list(layer.alpha.shape), "dtype": layer.alpha.dtype.name}
    elif "alpha" in options:
        options["alpha"] = np.asarray(options["alpha"]).item()
    return {"kind": kind, "options": options}


def _made(described: dict[str, Any]) -> Any:
    kind = _LAYERS[described["kind"]]
    if kind is Sequential:
        return Sequential(*map(_made, described["layers"]))
    options = described["options"]
    if kind is activations.PReLU:
        alpha = np.zeros(options.pop("alpha"), float_type("PReLU", options.pop("dtype")))
        return activations.PReLU(alpha, **options)
    return kind(**options)


def _fill(model: Sequential, arrays: dict[str, np.ndarray]) -> None:
    """Put the values into the parameters."""
    parameters = model.parameters
    if parameters.keys() != arrays.keys():
        raise ValueError(f"it has the parameters {[*arrays]}, and its layers have {[*parameters]}")
    for name, parameter in parameters.items():
        array, place = arrays[name], _plain(parameter)
        if array.dtype != place.dtype or array.shape != place.shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, and its layer has {place.dtype} {place.shape}")
        place[...] = array


def _plain(array: np.ndarray) -> np.ndarray:
    """The same memory as a type that the file format knows."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array
