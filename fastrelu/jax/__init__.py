"""fastrelu on JAX's arrays: under ``jit``, ``grad``, ``vmap`` and the rest, on the CPU, with the bits of the NumPy functions.

>>> import jax, jax.numpy as jnp
>>> from fastrelu.jax import linear_relu
>>> x, w, b = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.zeros(4)
>>> jax.jit(linear_relu)(x, w, b).shape
(2, 4)
>>> dw, db = jax.grad(lambda w, b: linear_relu(x, w, b).sum(), argnums=(0, 1))(w, b)

XLA calls our loops through its foreign function interface, on its own buffers: nothing is copied, and no Python runs. What
holds for all functions here:

* Forward and reverse mode, of any order, and ``vmap`` of everything. The gradient of a fused layer is one fused backward pass.
* Types are promoted as JAX does it: Python's numbers are weak, integers become floats (in `relu` they stay). As in the NumPy
  functions, halves are calculated in float32 and rounded once, and a float32 `alpha` does not widen them.
* Zeros and NaN as in `fastrelu`: the gradient of ReLU at 0 is 0, and passes where x is NaN.
* XLA calls from threads of its own; `fastrelu.set_num_threads` limits ours.
* A program for another platform than the CPU is refused when it is compiled. One array on several devices is gathered first,
  outside of ``pmap`` and ``shard_map``.

A program that another process has exported (`jax.export`) needs `register` before it is run.
"""

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    raise ImportError("fastrelu.jax needs JAX 0.5 or newer: pip install 'fastrelu[jax]'") from error

from fastrelu.jax.activations import elu, leaky_relu, prelu, relu, sigmoid, softplus, tanh
from fastrelu.jax.layers import (
    linear,
    linear_elu,
    linear_leaky_relu,
    linear_prelu,
    linear_relu,
    linear_sigmoid,
    linear_softplus,
    linear_tanh,
)
from fastrelu.jax.target import register

__all__ = [
    "elu",
    "leaky_relu",
    "linear",
    "linear_elu",
    "linear_leaky_relu",
    "linear_prelu",
    "linear_relu",
    "linear_sigmoid",
    "linear_softplus",
    "linear_tanh",
    "prelu",
    "register",
    "relu",
    "sigmoid",
    "softplus",
    "tanh",
]
