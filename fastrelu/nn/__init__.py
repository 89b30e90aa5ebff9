"""Layers of a network as objects that remember in `forward` what `backward` needs, models, and their training.

>>> import numpy as np
>>> from fastrelu import nn
>>> rng = np.random.default_rng(0)
>>> x = rng.standard_normal((1000, 2))
>>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
>>> model = nn.Sequential(nn.Linear(2, 32, rng=rng), nn.ReLU(), nn.Linear(32, 2, rng=rng))
>>> history = nn.fit(model, x, y, epochs=10, optimizer=nn.Adam(lr=0.01), rng=rng)
>>> history.accuracy[-1] > 0.9
True
>>> model.predict([[1, 1], [1, -1]]).argmax(1)
array([1, 0])
"""

import sys
from typing import TYPE_CHECKING, Any

from fastrelu.native.guard import lock
from fastrelu.nn.activations import ELU, LeakyReLU, PReLU, ReLU, Sigmoid, Softplus, Tanh
from fastrelu.nn.convolution import Conv2d, Conv2dReLU, MaxPool2d
from fastrelu.nn.embedding import EmbeddingMean
from fastrelu.nn.layers import Flatten, Linear, LinearReLU
from fastrelu.nn.optimizers import SGD, Adam
from fastrelu.nn.sequential import Sequential
from fastrelu.nn.storage import load, save
from fastrelu.nn.training import History, fit

if TYPE_CHECKING:
    from fastrelu.nn.estimator import MLPClassifier as MLPClassifier

__all__ = [
    "ELU",
    "SGD",
    "Adam",
    "Conv2d",
    "Conv2dReLU",
    "EmbeddingMean",
    "Flatten",
    "History",
    "LeakyReLU",
    "Linear",
    "LinearReLU",
    "MaxPool2d",
    "PReLU",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "fit",
    "load",
    "save",
]


# MLPClassifier is no part of it, since it needs scikit-learn.


def __getattr__(name: str) -> Any:
    if name != "MLPClassifier":
        raise AttributeError(f"module 'fastrelu.nn' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    try:
        with lock:
            from fastrelu.nn.estimator import MLPClassifier
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("sklearn"):
            raise
        raise ImportError('MLPClassifier needs scikit-learn: pip install "fastrelu[sklearn]"') from None
    globals()[name] = MLPClassifier
    return MLPClassifier
