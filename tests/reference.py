"""The reference of the fused layers: every sum term by term, in the order that `fastrelu.layers` states."""

import numpy as np
from numba import njit
from numba.extending import intrinsic

import fastrelu
from fastrelu.operations import HALVES, LAYERS

# Terms of a block: part of the contract, and therefore not taken from the package.
BLOCK = 256


@intrinsic
def fma(typing_context, a, b, c):
    """A * b + c, rounded once."""

    def codegen(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return a(a, b, c), codegen


@njit
def _add_products(x, w, y, chain):
    for i in range(x.shape[0]):
        for first in range(0, x.shape[1], BLOCK):
            for j in range(w.shape[1]):
                chain[j] = y[i, j] if first == 0 else 0
            for p in range(first, min(first + BLOCK, x.shape[1])):
                for j in range(w.shape[1]):
                    chain[j] = fma(x[i, p], w[p, j], chain[j])
            for j in range(w.shape[1]):
                y[i, j] = chain[j] if first == 0 else y[i, j] + chain[j]


def linear(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """The sums x @ w + b of matrices, b being broadcast; of halves in float32."""
    wide = np.dtype(np.float32 if x.dtype.name in HALVES else x.dtype)
    y = np.zeros((len(x), w.shape[1]), wide)
    if b is not None:
        y[:] = b
    _add_products(np.ascontiguousarray(x, wide), np.ascontiguousarray(w, wide), y, np.empty(w.shape[1], wide))
    return y


def layer(name: str, x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *alpha: np.ndarray | float) -> np.ndarray:
    """The fused layer `name`: of these sums the package's own activation, which has its own tests, rounded to the type of x."""
    y = linear(x, w, b)
    if LAYERS[name].formula:
        # A parameter beside halves is float32, not rounded to a half first.
        y = getattr(fastrelu, name.removeprefix("linear_"))(y, *[np.asarray(a, y.dtype) for a in alpha])
    with np.errstate(all="ignore"):
        return y.astype(x.dtype)


def bits(y: np.ndarray) -> np.ndarray:
    """The elements as unsigned integers, so that the sign of a zero counts; which NaN a calculation returns is open."""
    y = np.array(y, order="C")
    y[y != y] = np.nan
    return y.view(f"u{y.itemsize}")


def backward(name: str, dy: np.ndarray, y: np.ndarray, x: np.ndarray, w: np.ndarray, *alpha: float) -> tuple[np.ndarray, ...]:
    """The gradients dx, dw and db of a fused layer of matrices by the function `name`, in the type of the sums, not rounded."""
    wide = np.dtype(np.float32 if dy.dtype.name in HALVES else dy.dtype)
    dz = np.ascontiguousarray(dy, wide)
    if name != "linear_backward":
        parameters = [np.asarray(a, wide) for a in alpha]
        dz = getattr(fastrelu, name.removeprefix("linear_"))(dz, np.ascontiguousarray(y, wide), *parameters)
    return linear(dz, w.T), linear(x.T, dz), linear(np.ones((1, len(dz)), wide), dz)[0]


def gradients(
    name: str, dy: np.ndarray, y: np.ndarray, x: np.ndarray, w: np.ndarray, *alpha: float, added_to: tuple = (None, None, None)
) -> tuple[np.ndarray, ...]:
    """The same, added to what is given for each, and rounded to the type of dy."""
    sums = backward(name, dy, y, x, w, *alpha)
    with np.errstate(all="ignore"):
        sums = [s if a is None else a.astype(s.dtype) + s for s, a in zip(sums, added_to, strict=True)]
        return tuple(s.astype(dy.dtype) for s in sums)
