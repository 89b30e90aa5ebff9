"""ReLU networks for NumPy: fast on every core, exact to the bit.

>>> import numpy as np
>>> import fastrelu
>>> fastrelu.relu(np.array([-1.0, 2.0]))
array([0., 2.])

`fastrelu.nn` has layers, models and their training, `fastrelu.metrics` says how good a classifier is, `fastrelu.ufuncs` are the
bare ufuncs, `fastrelu.cuda` tells about the GPU. `fastrelu.torch`, `fastrelu.jax` and `fastrelu.onnx` are for these libraries,
`fastrelu.jit` is about functions under Numba's ``@njit``.

Importing the package imports nothing else, not even NumPy; the first call of a function compiles it or loads it from the cache.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastrelu.native.guard import lock

if TYPE_CHECKING:
    from fastrelu.activations import (
        elu,
        elu_backward,
        leaky_relu,
        leaky_relu_backward,
        prelu,
        prelu_backward,
        relu,
        relu_backward,
        relu_derivative,
        sigmoid,
        sigmoid_backward,
        softplus,
        softplus_backward,
        tanh,
        tanh_backward,
    )
    from fastrelu.cache import CacheInfo, cache_info, clear_cache, warmup
    from fastrelu.convolution import (
        conv2d,
        conv2d_elu,
        conv2d_leaky_relu,
        conv2d_prelu,
        conv2d_relu,
        conv2d_sigmoid,
        conv2d_softplus,
        conv2d_tanh,
    )
    from fastrelu.convolution_gradients import (
        conv2d_backward,
        conv2d_elu_backward,
        conv2d_leaky_relu_backward,
        conv2d_relu_backward,
        conv2d_sigmoid_backward,
        conv2d_softplus_backward,
        conv2d_tanh_backward,
    )
    from fastrelu.device import use
    from fastrelu.embeddings import embedding_mean, embedding_mean_backward
    from fastrelu.gradients import (
        linear_backward,
        linear_elu_backward,
        linear_leaky_relu_backward,
        linear_relu_backward,
        linear_sigmoid_backward,
        linear_softplus_backward,
        linear_tanh_backward,
    )
    from fastrelu.layers import (
        linear,
        linear_elu,
        linear_leaky_relu,
        linear_prelu,
        linear_relu,
        linear_sigmoid,
        linear_softplus,
        linear_tanh,
    )
    from fastrelu.losses import softmax_cross_entropy
    from fastrelu.memory import release_memory
    from fastrelu.packed import PackedWeight, pack
    from fastrelu.pooling import max_pool2d, max_pool2d_backward
    from fastrelu.threads import get_num_threads, num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "CacheInfo",
    "PackedWeight",
    "cache_info",
    "clear_cache",
    "conv2d",
    "conv2d_backward",
    "conv2d_elu",
    "conv2d_elu_backward",
    "conv2d_leaky_relu",
    "conv2d_leaky_relu_backward",
    "conv2d_prelu",
    "conv2d_relu",
    "conv2d_relu_backward",
    "conv2d_sigmoid",
    "conv2d_sigmoid_backward",
    "conv2d_softplus",
    "conv2d_softplus_backward",
    "conv2d_tanh",
    "conv2d_tanh_backward",
    "elu",
    "elu_backward",
    "embedding_mean",
    "embedding_mean_backward",
    "get_num_threads",
    "leaky_relu",
    "leaky_relu_backward",
    "linear",
    "linear_backward",
    "linear_elu",
    "linear_elu_backward",
    "linear_leaky_relu",
    "linear_leaky_relu_backward",
    "linear_prelu",
    "linear_relu",
    "linear_relu_backward",
    "linear_sigmoid",
    "linear_sigmoid_backward",
    "linear_softplus",
    "linear_softplus_backward",
    "linear_tanh",
    "linear_tanh_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "num_threads",
    "pack",
    "prelu",
    "prelu_backward",
    "release_memory",
    "relu",
    "relu_backward",
    "relu_derivative",
    "set_num_threads",
    "sigmoid",
    "sigmoid_backward",
    "softmax_cross_entropy",
    "softplus",
    "softplus_backward",
    "tanh",
    "tanh_backward",
    "use",
    "warmup",
]


_MODULES = ("cuda", "jit", "metrics", "nn", "ufuncs")
"""What is imported when it is first used."""

_BRIDGES = ("jax", "onnx", "torch")
"""The same, with a library that may not be there: not listed, since `help` and others look at all that `dir` names."""


def _home(name: str) -> str:
    """The module that a public function is in, and that is imported when it is first used."""
    if name.startswith("conv2d"):
        return "convolution_gradients" if name.endswith("_backward") else "convolution"
    if name.startswith("linear"):
        return "gradients" if name.endswith("_backward") else "layers"
    if name.startswith("max_pool2d"):
        return "pooling"
    if name.startswith("embedding_mean"):
        return "embeddings"
    if name == "softmax_cross_entropy":
        return "losses"
    if name in ("PackedWeight", "pack"):
        return "packed"
    if name in ("CacheInfo", "cache_info", "clear_cache", "warmup"):
        return "cache"
    if name == "release_memory":
        return "memory"
    if name == "use":
        return "device"
    return "threads" if name.endswith("threads") else "activations"


def __getattr__(name: str) -> Any:
    if name in _MODULES + _BRIDGES:
        try:
            with lock:
                return import_module(f"fastrelu.{name}")
        except ImportError as error:
            raise AttributeError(f"module 'fastrelu' cannot offer {name!r}: {error}") from error
    if name not in __all__:
        # With name and obj Python asks "Did you mean".
        raise AttributeError(f"module 'fastrelu' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    with lock:  # a child that is forked amid an import would wait for its end for ever
        value = globals()[name] = getattr(import_module(f"fastrelu.{_home(name)}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
