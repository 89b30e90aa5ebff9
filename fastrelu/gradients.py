"""The backward passes of the fused layers.

The names follow one rule: that of the layer and ``_backward``. With dz = f'(dy, y), the gradient before the activation,

    dx = dz @ w.T        dw = x.T @ dz        db = the sum of dz over the batch

and dz itself is never stored. What is said here once holds for all:

* ``w`` is a matrix (k, n), and all leading axes of dy (..., n), y (..., n) and x (..., k) are the batch: dx has the shape of
  x, dw that of w, db (n,). A w with batch axes of its own makes as many products, with the signature
  ``(m,n),(m,n),(m,k),(k,n)->(m,k),(k,n),(n)``; its axes and those of the others are broadcast. The bare generalized ufunc is
  `fastrelu.ufuncs.linear_relu_backward`, and so on.
* ``wanted`` names the gradients to calculate; the others are returned as None. x is needed for dw only and w for dx only, and
  may be None otherwise.
* ``out`` is a triple of arrays or None. Gradients that ``accumulate`` names are added to what `out` holds:
  ``out + gradient``, in the type of the sums for halves. Such an `out` takes part in the choice of the type like the other
  operands: float16 operands and a float32 `out` are summed and added in float32.
* Every element is summed as in the forward pass: in blocks of 256 terms, one chain of fused multiply-adds from 0 a block, and
  the blocks' sums in ascending order. The terms of dx run along n, those of dw and db along the batch. Nothing else that a
  call does changes the bits: neither threads, layouts, `wanted`, nor whether y or its bits are given. A batch in pieces
  of 256 rows, accumulated one after the other from 0, gives the bits of the whole batch.
* Where y is NaN the gradient passes. Types, strides, overlap, warnings, arrays on a CUDA device, ``precision`` and
  ``device`` are as in the forward pass (`fastrelu.layers`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from fastrelu import device, faults, foreign
from fastrelu.operations import FLOATS, GRADIENTS, INTEGERS, backward
from fastrelu.packed import PackedWeight, face

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    from fastrelu.layers import GufuncKeywords

__all__ = [
    "linear_backward",
    "linear_elu_backward",
    "linear_leaky_relu_backward",
    "linear_relu_backward",
    "linear_sigmoid_backward",
    "linear_softplus_backward",
    "linear_tanh_backward",
]

Triple = tuple[Any, Any, Any]
"""dx, dw and db."""


def _ufunc(base: str, mask: bool, wanted: tuple[str, ...], added: tuple[str, ...]) -> Any:
    from fastrelu import ufuncs

    return getattr(ufuncs, backward(base, mask, wanted, added).name)


_plain: dict[tuple[Any, ...], tuple[Any, bool, bool, tuple[int, ...], tuple[int, ...]]] = {}
"""For each kind of call that was checked once: the ufunc, whether it takes x and w, which gradients are wanted, and added."""


# Where NumPy arrays go to a GPU, no call is plain.
device.watch(lambda is_used: _plain.clear())


def _plain_call(key: tuple[Any, ...], operands: dict[str, Any], alpha: tuple[Any, ...], out: Any) -> Triple | None:
    """The gradients, if all operands are matrices and there is nothing to prepare: in a fifth of the time of the general way.

    None if that is not so, or if NumPy refuses the operands: the general way knows why.
    """
    ufunc, takes_x, takes_w, wanted, added = _plain[key]
    needed: list[Any] = []
    for name, operand in operands.items():
        if (name == "x" and not takes_x) or (name == "w" and not takes_w):
            if operand is not None and not _is_beside(operand, name, operands):
                return None
        elif type(operand) is not ndarray or operand.ndim != 2:
            return None
        else:
            needed.append(operand)
    if alpha:
        if type(alpha[0]) is not float:
            return None
        needed.append(alpha[0])
    if out is None:
        places: tuple[Any, ...] = (None,) * len(wanted)
    else:
        if type(out) is not tuple or len(out) != 3:
            return None
        for i in range(3):
            place = out[i]
            if place is None:
                if i in added:
                    return None
            elif i not in wanted or type(place) is not ndarray or place.ndim != (2, 2, 1)[i]:
                return None
        places = tuple([out[i] for i in wanted])
        needed += [out[i] for i in added]
    try:
        results = ufunc(*needed, out=places)
    except (TypeError, ValueError):
        return None
    if len(wanted) == 3:
        return results  # type: ignore[no-any-return]  # NumPy's stubs do not tell
    gradients = [None, None, None]
    for i, result in zip(wanted, results if type(results) is tuple else (results,), strict=True):
        gradients[i] = result
    return gradients[0], gradients[1], gradients[2]


def _is_beside(operand: Any, name: str, operands: dict[str, Any]) -> bool:
    """Whether x or w, which is not needed, changes nothing: of the type of dy and of a shape that fits."""
    dy = operands["dy"]
    if type(operand) is not ndarray or type(dy) is not ndarray or operand.ndim != 2 or operand.dtype is not dy.dtype:
        return False
    x, w = (operand, operands["w"]) if name == "x" else (operands["x"], operand)
    return (
        dy.ndim == 2
        and (x is None or (type(x) is ndarray and x.shape[:1] == dy.shape[:1]))
        and (w is None or (type(w) is ndarray and w.shape[1:] == dy.shape[1:]))
        and (x is None or w is None or x.shape[1:] == w.shape[:1])
    )


_IN_ORDER = frozenset(itertools.chain.from_iterable(itertools.combinations(GRADIENTS, n) for n in range(len(GRADIENTS) + 1)))


def named(base: str, what: str, given: Any) -> tuple[str, ...]:
    """The gradients that an argument names, in their order."""
    if type(given) is tuple and {*map(type, given)} <= {str} and given in _IN_ORDER:
        return given
    names = [None] if isinstance(given, str) or not isinstance(given, Iterable) else [*given]
    if not all(isinstance(name, str) and name in GRADIENTS for name in names):
        shown = " ".join(repr(given).split())
        shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
        raise ValueError(f"{base}: {what} must be a sequence of names among {GRADIENTS}, not {shown}")
    return tuple(name for name in GRADIENTS if name in names)


def _backward(
    base: str, operands: dict[str, Any], alpha: tuple[Any, ...], out: Any, wanted: Any, accumulate: Any, kwargs: Any
) -> Triple:
    """The gradients of a layer; `operands` are dy, y where the layer has an activation, x and w."""
    is_mask = base == "linear_relu_backward" and getattr(operands["y"], "dtype", None) == np.uint8
    key = None
    if type(wanted) is tuple and type(accumulate) is tuple and {*map(type, wanted + accumulate)} <= {str}:
        key = (base, is_mask, wanted, accumulate)
        if not kwargs and key in _plain:
            gradients = _plain_call(key, operands, alpha, out)
            if gradients is not None:
                return gradients
    try:
        return _general(base, key, {**operands}, alpha, out, wanted, accumulate, kwargs)
    except (TypeError, ValueError, OverflowError) as error:
        raise _explain(base, error, operands, alpha, out, wanted, accumulate, kwargs) from None


def _general(
    base: str,
    key: tuple[Any, ...] | None,
    operands: dict[str, Any],
    alpha: tuple[Any, ...],
    out: Any,
    wanted: Any,
    accumulate: Any,
    kwargs: Any,
) -> Triple:
    """The gradients for operands of any kind, which are checked; `key` stands for this kind of calls from then on."""
    has_mask = base == "linear_relu_backward"
    is_mask = has_mask and getattr(operands["y"], "dtype", None) == np.uint8
    wanted = named(base, "wanted", wanted)
    added = named(base, "accumulate", accumulate)
    if not wanted:
        raise ValueError(f"{base}: wanted must name at least one of {GRADIENTS}, not none")
    outputs = outputs_for(base, out, wanted, added)
    for name, gradient in (("x", "dw"), ("w", "dx")):
        if gradient not in wanted:
            if operands[name] is None:
                del operands[name]
        elif operands[name] is None:
            raise ValueError(f"{base}: {name} is needed for {gradient}, and must not be None")
    place = device.target(base, (*operands.values(), *alpha, *outputs.values()), kwargs)
    if place is not None:
        from fastrelu.cuda import dispatch as cuda

        operands |= dict(zip(("alpha",), alpha, strict=False))
        gradients: Triple = cuda.backward(base, operands, wanted, added, outputs, kwargs, place)
        return gradients
    device.check_precision(base, kwargs)
    if any(map(foreign.is_foreign_to_products, (*operands.values(), *alpha, *outputs.values()))):

        def with_arrays(*arrays: Any, out: Any = None) -> Triple:
            count = len(operands)
            given = dict.fromkeys(("x", "w")) | dict(zip(operands, arrays[:count], strict=True))
            return _general(base, None, given, arrays[count:], out, wanted, accumulate, kwargs)

        named_alpha = dict(zip(("alpha",), alpha, strict=False))
        gradients = foreign.call(with_arrays, base, operands | named_alpha, out, {})
        return gradients
    fault = faults.lazy_fault(base, operands.values(), {f"out for {name}": array for name, array in outputs.items()})
    if fault is not None:
        raise fault
    if type(operands.get("w")) is PackedWeight:
        operands["w"] = operands["w"].unpack()
    given = [*operands.values(), *alpha, *outputs.values()]
    results: Any
    if any(map(faults.overrides, given)) or "axes" in kwargs:
        results = _call(base, is_mask, wanted, added, operands, alpha, outputs, kwargs)
    else:
        operands = {name: o if type(o) is ndarray else np.asanyarray(o) for name, o in operands.items()}
        is_mask = has_mask and operands["y"].dtype == np.uint8
        check_shapes(base, operands, outputs, is_mask)
        for name, gradient in (("x", "dw"), ("w", "dx")):
            if name in operands and gradient not in wanted:
                # It takes part in the choice of the type all the same.
                operands["dy"] = _with_type_of(base, name, operands[name].dtype, operands["dy"])
        if "w" not in operands or operands["w"].ndim == 2:
            if alpha and np.ndim(alpha[0]):
                raise ValueError(f"{base}: alpha must be a single value, not of shape {np.shape(alpha[0])}")
            results = _flat(base, is_mask, wanted, added, operands, alpha, outputs, kwargs)
        else:
            # A subset has the batch axes of everything, also of what it does not need.
            dy = operands["dy"]
            batch = _batch(base, operands, alpha, outputs)
            operands["dy"] = np.broadcast_to(dy, batch + dy.shape[-2:])
            results = _call(base, is_mask, wanted, added, operands, alpha, outputs, kwargs)
    if key is not None and not device.is_used():
        numbers = {name: i for i, name in enumerate(GRADIENTS)}
        which = tuple(numbers[name] for name in wanted), tuple(numbers[name] for name in added)
        _plain[key] = (_ufunc(base, is_mask, wanted, added), "dw" in wanted, "dx" in wanted, *which)
    by_name = dict(zip(wanted, results, strict=True))
    return by_name.get("dx"), by_name.get("dw"), by_name.get("db")


def _explain(
    base: str,
    error: Exception,
    operands: dict[str, Any],
    alpha: tuple[Any, ...],
    out: Any,
    wanted: Any,
    accumulate: Any,
    kwargs: Any,
) -> BaseException:
    """What to raise instead of NumPy's error, or of our own if an operand is no array of numbers at all."""
    try:
        wanted, added = named(base, "wanted", wanted), named(base, "accumulate", accumulate)
    except ValueError:
        return error
    if faults.is_told(base, error, operands):
        return error
    given = {name: face(o) if name == "w" else o for name, o in operands.items() if name in ("dy", "y") or o is not None}
    unneeded = {
        name: given.pop(name) for name, gradient in (("x", "dw"), ("w", "dx")) if gradient not in wanted and name in given
    }
    places = dict(zip(GRADIENTS, out, strict=True)) if type(out) is tuple and len(out) == 3 else {}
    outputs = {f"out for {name}": places.get(name) for name in wanted} if places else {"out": out}
    sums = {f"out for {name}": places.get(name) for name in added if places.get(name) is not None}
    return faults.explain(
        base, error, {**given, **dict(zip(("alpha",), alpha, strict=False)), **sums, **unneeded}, outputs, kwargs
    )


def _with_type_of(base: str, name: str, dtype: np.dtype[Any], dy: np.ndarray) -> np.ndarray:
    """Dy in the common type of both."""
    if dtype.name not in FLOATS + INTEGERS:
        raise TypeError(f"{base}: {name} must be an integer type, float16, bfloat16, float32 or float64, not {dtype.name}")
    return dy if dtype == dy.dtype or dy.dtype.name not in FLOATS else dy.astype(np.promote_types(dtype, dy.dtype), copy=False)


def outputs_for(base: str, out: Any, wanted: tuple[str, ...], added: tuple[str, ...]) -> dict[str, Any]:
    """The arrays for the gradients, by their names."""
    if out is None:
        out = (None, None, None)
    if type(out) is not tuple or len(out) != 3:
        came = f"a tuple of {len(out)}" if type(out) is tuple else type(out).__name__
        raise ValueError(f"{base}: out must be a tuple of three arrays or None, for dx, dw and db, not {came}")
    outputs = {name: array for name, array in zip(GRADIENTS, out, strict=True) if array is not None}
    for name, array in outputs.items():
        if name not in wanted:
            raise ValueError(f"{base}: out has an array for {name}, which wanted does not name")
        if (not hasattr(array, "shape") and not faults.is_on_cuda(array)) or isinstance(array, np.generic):
            raise TypeError(f"{base}: out for {name} must be an array or None, not {type(array).__name__}")
        fault = faults.read_only_fault(base, f"out for {name}", array)
        if fault is not None:
            raise fault
    for name in added:
        if name not in outputs:
            raise ValueError(f"{base}: accumulate names {name}, for which out has no array")
    return outputs


def check_shapes(base: str, operands: dict[str, Any], outputs: dict[str, Any], is_mask: bool) -> None:
    """A ValueError if shapes of the operands and outputs of a layer's backward pass do not fit."""
    shapes = {name: operand.shape for name, operand in operands.items()}
    dy, w = shapes["dy"], shapes.get("w")
    if len(dy) < 1:
        raise ValueError(f"{base}: dy must have at least one axis, (..., n), not shape {dy}")
    n = dy[-1]
    if w is not None and (len(w) < 2 or w[-1] != n):
        raise ValueError(f"{base}: w must have shape (..., k, {n}) for dy of shape {dy}, not {w}")
    flat = w is None or len(w) == 2
    batch = dy[:-1]
    lengths = {"y": -(-n // 8) if is_mask else n, "x": shapes["x"][-1] if w is None and shapes.get("x") else None}
    if w is not None:
        lengths["x"] = w[-2]
    for name in ("y", "x"):
        if name not in shapes:
            continue
        shape, length = shapes[name], lengths[name]
        if len(shape) < 1 or shape[-1] != length or (flat and shape[:-1] != batch):
            allowed = f"({', '.join(map(str, batch))}{', ' if batch else ''}{'k' if length is None else length})"
            kind = "as bits of y > 0, which dtype uint8 means, must" if name == "y" and is_mask else "must"
            beside = f"dy of shape {dy}" if name == "y" or w is None else f"dy of shape {dy} and w of shape {w}"
            raise ValueError(f"{base}: {name} {kind} have shape {allowed} for {beside}, not {shape}")
    if not flat:
        if len(dy) < 2:
            raise ValueError(f"{base}: dy must have shape (..., m, {n}) for w of shape {w}, not {dy}")
        for name in ("y", "x"):
            if name in shapes and (len(shapes[name]) < 2 or shapes[name][-2] != dy[-2]):
                allowed = f"(..., {dy[-2]}, {lengths[name]})"
                raise ValueError(f"{base}: {name} must have shape {allowed} for dy of shape {dy}, not {shapes[name]}")
        return
    k = w[-2] if w is not None else shapes["x"][-1] if "x" in shapes else 0
    allowed_shapes = {"dx": (*batch, k), "dw": (k, n), "db": (n,)}
    for name, array in outputs.items():
        if array.shape != allowed_shapes[name]:
            raise ValueError(f"{base}: out for {name} must have shape {allowed_shapes[name]}, not {array.shape}")


def _batch(base: str, operands: dict[str, Any], alpha: tuple[Any, ...], outputs: dict[str, Any]) -> tuple[int, ...]:
    """The batch axes of all operands together, where w has some of its own."""
    shapes = {name: operand.shape for name, operand in operands.items()}
    batches = {name: shape[:-2] for name, shape in shapes.items()}
    if alpha:
        shapes["alpha"] = batches["alpha"] = np.shape(alpha[0])
    fault = faults.batch_fault(base, shapes, batches)
    if fault is not None:
        raise fault
    batch = np.broadcast_shapes(*batches.values())
    (m, n), k = shapes["dy"][-2:], shapes["w"][-2]
    cores: dict[str, tuple[int, ...]] = {"dx": (m, k), "dw": (k, n), "db": (n,)}
    for name, array in outputs.items():
        fault = faults.output_fault(base, f"out for {name}", array, (*batch, *cores[name]), len(cores[name]))
        if fault is not None:
            raise fault
    return batch


def _flat(
    base: str,
    is_mask: bool,
    wanted: tuple[str, ...],
    added: tuple[str, ...],
    operands: dict[str, Any],
    alpha: tuple[Any, ...],
    outputs: dict[str, Any],
    kwargs: Any,
) -> Sequence[Any]:
    """The gradients with all leading axes as one batch."""
    batch = operands["dy"].shape[:-1]
    if len(batch) == 1:
        return _call(base, is_mask, wanted, added, operands, alpha, outputs, kwargs)
    m = math.prod(batch)
    flat = {name: o if name == "w" else o.reshape(m, o.shape[-1]) for name, o in operands.items()}
    given, late = outputs.get("dx"), None
    if given is not None:
        outputs = {**outputs, "dx": given.reshape(m, given.shape[-1])}
        if not np.may_share_memory(outputs["dx"], given):
            late = given  # its batch axes are not one axis of any stride
    results = list(_call(base, is_mask, wanted, added, flat, alpha, outputs, kwargs))
    if "dx" in wanted:
        results[0] = results[0].reshape(*batch, results[0].shape[-1]) if given is None else given
    if late is not None:
        late[...] = outputs["dx"].reshape(late.shape)
    return results


def _call(
    base: str,
    is_mask: bool,
    wanted: tuple[str, ...],
    added: tuple[str, ...],
    operands: dict[str, Any],
    alpha: tuple[Any, ...],
    outputs: dict[str, Any],
    kwargs: Any,
) -> Sequence[Any]:
    """What the ufunc of this variant returns, as a tuple."""
    needed = [operands["dy"], *([operands["y"]] if "y" in operands else [])]
    needed += [operands[name] for name, gradient in (("x", "dw"), ("w", "dx")) if gradient in wanted]
    out = tuple(outputs.get(name) for name in wanted)
    results = _ufunc(base, is_mask, wanted, added)(*needed, *alpha, *(outputs[name] for name in added), out=out, **kwargs)
    return results if type(results) is tuple else (results,)


def linear_backward(
    dy: ArrayLike,
    x: ArrayLike | None,
    w: Any,
    /,
    out: Any = None,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    **kwargs: Unpack[GufuncKeywords],
) -> Triple:
    """Gradients of `linear` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output (..., n).
    x : array_like or None
        The input (..., k); needed for dw only.
    w : array_like, PackedWeight or None
        The weight (k, n); needed for dx only.
    out : tuple of (ndarray or None), optional
        Where to put dx, dw and db.
    wanted : sequence of str, optional
        The gradients to calculate, among "dx", "dw" and "db".
    accumulate : sequence of str, optional
        Those of them that are added to what `out` holds.
    **kwargs
        As for any generalized `numpy.ufunc`.

    Returns
    -------
    dx : ndarray or None
        dy @ w.T, of the shape of `x`.
    dw : ndarray or None
        x.T @ dy, of the shape of `w`.
    db : ndarray or None
        The sum of dy over the batch (n,).

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit, if an operand that is needed is None, or if `wanted`, `out` and `accumulate` do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> dx, dw, db = fastrelu.linear_backward(np.array([[1.0, 2.0]]), np.array([[3.0]]), np.array([[1.0, -1.0]]))
    >>> dx, dw, db
    (array([[-1.]]), array([[3., 6.]]), array([1., 2.]))
    """
    return _backward("linear_backward", {"dy": dy, "x": x, "w": w}, (), out, wanted, accumulate, kwargs)


def linear_relu_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: Any,
    /,
    out: Any = None,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    **kwargs: Unpack[GufuncKeywords],
) -> Triple:
    """Gradients of `linear_relu` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output (..., n).
    y : array_like
        The output (..., n), or the bits of y > 0 that ``linear_relu(mask=)`` writes: an array of uint8 (..., ceil(n / 8)). The
        type uint8 always means bits; those beyond the last column are ignored.
    x, w, out, wanted, accumulate, **kwargs
        As for `linear_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `linear_backward`, with dz = dy where y > 0 or y is NaN, else 0, in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `linear_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, -1.0]])
    >>> y = fastrelu.linear_relu(x, w)
    >>> fastrelu.linear_relu_backward(np.ones((1, 2)), y, x, w, wanted=("dw", "db"))
    (None, array([[1., 0.],
           [2., 0.]]), array([1., 0.]))
    """
    return _backward("linear_relu_backward", {"dy": dy, "y": y, "x": x, "w": w}, (), out, wanted, accumulate, kwargs)


def linear_leaky_relu_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: Any,
    /,
    alpha: ArrayLike = 0.01,
    out: Any = None,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    **kwargs: Unpack[GufuncKeywords],
) -> Triple:
    """Gradients of `linear_leaky_relu` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output (..., n).
    y : array_like
        The output (..., n). It tells the sign of the input for alpha >= 0 only.
    x, w
        As for `linear_backward`.
    alpha : array_like, optional
        As in the forward pass.
    out, wanted, accumulate, **kwargs
        As for `linear_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `linear_backward`, with dz = `leaky_relu_backward` of dy, y and alpha in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `linear_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> y = np.array([[-0.5, 2.0]])
    >>> fastrelu.linear_leaky_relu_backward(np.ones((1, 2)), y, None, None, 0.25, wanted=("db",))
    (None, None, array([0.25, 1.  ]))
    """
    operands = {"dy": dy, "y": y, "x": x, "w": w}
    return _backward("linear_leaky_relu_backward", operands, (alpha,), out, wanted, accumulate, kwargs)


def linear_elu_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: Any,
    /,
    alpha: ArrayLike = 1.0,
    out: Any = None,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    **kwargs: Unpack[GufuncKeywords],
) -> Triple:
    """Gradients of `linear_elu` with respect to its input, weight and bias.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the output (..., n).
    y : array_like
        The output (..., n). It suffices for alpha >= 0 only.
    x, w
        As for `linear_backward`.
    alpha : array_like, optional
        As in the forward pass.
    out, wanted, accumulate, **kwargs
        As for `linear_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `linear_backward`, with dz = `elu_backward` of dy, y and alpha in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `linear_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> y = np.array([[-0.5, 2.0]])
    >>> fastrelu.linear_elu_backward(np.ones((1, 2)), y, None, None, wanted=("db",))
    (None, None, array([0.5, 1. ]))
    """
    operands = {"dy": dy, "y": y, "x": x, "w": w}
    return _backward("linear_elu_backward", operands, (alpha,), out, wanted, accumulate, kwargs)


def linear_sigmoid_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: Any,
    /,
    out: Any = None,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    **kwargs: Unpack[GufuncKeywords],
) -> Triple:
    """Gradients of `linear_sigmoid` with respect to its input, weight and bias.

    Parameters
    ----------
    dy, y : array_like
        Gradient with respect to the output, and the output (..., n).
    x, w, out, wanted, accumulate, **kwargs
        As for `linear_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `linear_backward`, with dz = `sigmoid_backward` of dy and y in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `linear_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.linear_sigmoid_backward(np.ones((1, 1)), np.array([[0.5]]), None, None, wanted=("db",))
    (None, None, array([0.25]))
    """
    return _backward("linear_sigmoid_backward", {"dy": dy, "y": y, "x": x, "w": w}, (), out, wanted, accumulate, kwargs)


def linear_tanh_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: Any,
    /,
    out: Any = None,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    **kwargs: Unpack[GufuncKeywords],
) -> Triple:
    """Gradients of `linear_tanh` with respect to its input, weight and bias.

    Parameters
    ----------
    dy, y : array_like
        Gradient with respect to the output, and the output (..., n).
    x, w, out, wanted, accumulate, **kwargs
        As for `linear_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `linear_backward`, with dz = `tanh_backward` of dy and y in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `linear_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.linear_tanh_backward(np.ones((1, 1)), np.array([[0.5]]), None, None, wanted=("db",))
    (None, None, array([0.75]))
    """
    return _backward("linear_tanh_backward", {"dy": dy, "y": y, "x": x, "w": w}, (), out, wanted, accumulate, kwargs)


def linear_softplus_backward(
    dy: ArrayLike,
    y: ArrayLike,
    x: ArrayLike | None,
    w: Any,
    /,
    out: Any = None,
    *,
    wanted: Sequence[str] = GRADIENTS,
    accumulate: Sequence[str] = (),
    **kwargs: Unpack[GufuncKeywords],
) -> Triple:
    """Gradients of `linear_softplus` with respect to its input, weight and bias.

    Parameters
    ----------
    dy, y : array_like
        Gradient with respect to the output, and the output (..., n).
    x, w, out, wanted, accumulate, **kwargs
        As for `linear_backward`.

    Returns
    -------
    dx, dw, db : ndarray or None
        As for `linear_backward`, with dz = `softplus_backward` of dy and y in place of dy.

    Raises
    ------
    TypeError, ValueError
        As for `linear_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> y = fastrelu.softplus(np.zeros((1, 1)))
    >>> dx, dw, db = fastrelu.linear_softplus_backward(np.ones((1, 1)), y, None, None, wanted=("db",))
    >>> db.round(12)
    array([0.5])
    """
    return _backward("linear_softplus_backward", {"dy": dy, "y": y, "x": x, "w": w}, (), out, wanted, accumulate, kwargs)
