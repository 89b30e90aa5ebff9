"""Fused layers: f(x @ w + b) in one pass.

The names follow one rule: ``linear_`` and the activation. What is said here once holds for all:

* Every function is a generalized ufunc with the signature ``(k),(k,n),(n)->(n)`` in all that it does: batches of any shape, w
  and b with batch axes of their own, any strides (``weight.T`` costs nothing extra), ``out``, ``axes``, ``dtype``, ``casting``,
  lists, subclasses, other libraries' arrays through ``__array_ufunc__``. b may be left out. w may be prepacked (`pack`).
* float16, bfloat16, float32 and float64 give the same type back; the halves are summed in float32 and rounded once, at the end.
  Types are mixed by NumPy's rules; integers become floats.
* Every element is summed over k in blocks of 256 terms: within a block one chain of fused multiply-adds in ascending order, the
  first block starting from the bias and the others from 0; the blocks' sums are added in ascending order. The bits depend
  on nothing else: not on the number of threads, the batch, the memory layout, packing, nor the processor. On random data of
  one sign, which is what a ReLU leaves, the error stays below 16 u |x||w| up to k = 16384, where u is half a unit in the last
  place of 1; on all data below (k + 2) u |x||w|.
* NaN and infinities spread as IEEE arithmetic says, in their row and column only. No call warns about floating-point errors.
* `out` may overlap the inputs in any way.
* Arrays on a CUDA device (CuPy's, PyTorch's, JAX's, numba-cuda's) are calculated there, in the stream of their library, which
  makes the results; w must be an array there, and of the keywords of a ufunc none is taken. ``device="cuda"`` brings NumPy
  arrays there and back (`fastrelu.use`). ``precision`` says how exact products are there: "highest", the default, has the
  bits of the CPU; "high" splits each float32 in two for the tensor cores, with errors about as small; "medium" rounds them to
  TF32. On the CPU, as in PyTorch, every precision is the highest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar, cast

import numpy as np
from numpy import ndarray

from fastrelu import device, faults, foreign
from fastrelu.faults import overrides
from fastrelu.native.guard import lock
from fastrelu.operations import FLOATS, HALVES, INTEGERS, LAYERS
from fastrelu.packed import PackedWeight, face

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Unpack

P = ParamSpec("P")
R = TypeVar("R")


class GufuncKeywords(TypedDict, total=False):
    """The keyword arguments of a generalized `numpy.ufunc`."""

    axes: Any
    axis: int
    keepdims: bool
    casting: str
    order: str
    dtype: DTypeLike
    subok: bool
    signature: Any
    precision: str
    device: str


__all__ = [
    "linear",
    "linear_elu",
    "linear_leaky_relu",
    "linear_prelu",
    "linear_relu",
    "linear_sigmoid",
    "linear_softplus",
    "linear_tanh",
]

# Every operand by its own name, for the same reason as in `fastrelu.dispatch`: short calls.
_FUNCTION = """
def {name}({parameters}, out=None{mask_parameter}, **kwargs):
    try:
        if type(x) is ndarray and not kwargs and (out is None or type(out) is ndarray){without_mask}:
            if type(w) is ndarray:
                if type(b) is ndarray:
                    return ufunc(x, w, b{alpha}) if out is None else ufunc(x, w, b{alpha}, out)
                if b is None:
                    return no_bias(x, w{alpha}) if out is None else no_bias(x, w{alpha}, out)
            if type(w) is PackedWeight and x.dtype is w.dtype and type(b) is ndarray and w._columns is None{is_plain}:
                if out is None:
                    return packed(x, w._operand, b{alpha})
                return packed(x, w._operand, b{alpha}, out)
        return general((x, w, b{alpha_name}), out, {mask}, kwargs)
    except (TypeError, ValueError, OverflowError) as error:
        raise explain(error, (x, w, b{alpha_name}), out, {mask}, kwargs) from None
"""


def layer(declaration: Callable[P, R]) -> Callable[P, R]:
    """Turn the declaration of a fused layer (name, signature, docstring) into the function that runs it."""
    base = declaration.__name__
    operation = LAYERS[base]
    has_mask, is_row = f"{base}_mask" in LAYERS, operation.alpha == "(n)"
    parameters = {"": "x, w, b=None, /", "()": "x, w, b=None, /, alpha=default", "(n)": "x, w, b, alpha, /"}[operation.alpha]

    def bind(name: str) -> Any:
        with lock:
            from fastrelu import ufuncs

            return getattr(ufuncs, name)

    def first_use(name: str, variable: str) -> Callable[..., Any]:
        """What stands for a ufunc until it is called."""

        def call(*operands: Any) -> Any:
            namespace[variable] = bind(name)
            return namespace[variable](*operands)

        return call

    def general(operands: tuple[Any, ...], out: Any, mask: Any, kwargs: dict[str, Any]) -> Any:
        """Prepacked weights, other kinds of operands, bit masks, keyword arguments, arrays on a device."""
        place = device.target(base, (*operands, out, mask), kwargs)
        if place is not None:
            from fastrelu.cuda import dispatch as cuda

            given = dict.fromkeys(("x", "w", "b", "alpha")) | dict(zip(operation.inputs, operands, strict=True))
            return cuda.layer(base, given, out, mask, kwargs, place)
        device.check_precision(base, kwargs)
        if any(map(foreign.is_foreign_to_products, (*operands, out))):
            keywords = kwargs if mask is None else {**kwargs, "mask": mask}
            return foreign.call(function, base, dict(zip(operation.inputs, operands, strict=True)), out, keywords)
        fault = faults.lazy_fault(base, operands, {"out": _first_output(out), "mask": mask})
        if fault is not None:
            raise fault
        x, w, b, *alpha = operands
        if is_row:
            alpha = [_row(alpha[0], x, w)]
        options = "_no_bias" if b is None else ""
        if mask is not None:
            out = (_first_output(out), _checked_mask(base, mask, w))
        if type(w) is PackedWeight:
            x, w, packed = _beside_packed(base, x, w, (b, *alpha, out), kwargs)
            options += packed
        if mask is not None:
            options += "_mask"
            dtype = kwargs.get("dtype")
            if dtype is not None:  # NumPy would prescribe it for the mask as well
                kwargs = {name: value for name, value in kwargs.items() if name != "dtype"}
                kwargs["signature"] = (None,) * (len(operands) - (b is None)) + (dtype, np.uint8)
        if out is not None:
            kwargs = {**kwargs, "out": out}
        arguments = (x, w, *alpha) if b is None else (x, w, b, *alpha)
        return bind(base + options)(*arguments, **kwargs)

    def explain(error: Exception, operands: tuple[Any, ...], out: Any, mask: Any, kwargs: dict[str, Any]) -> BaseException:
        return _explain(base, error, operands, out, mask, kwargs)

    namespace: dict[str, Any] = {
        "ndarray": ndarray,
        "ufunc": first_use(base, "ufunc"),
        "no_bias": first_use(f"{base}_no_bias", "no_bias"),
        "packed": first_use(f"{base}_packed", "packed"),
        "PackedWeight": PackedWeight,
        "general": general,
        "explain": explain,
        "row": _row,
        "default": (declaration.__defaults__ or (None,))[-2:][0],
        "__name__": declaration.__module__,
    }
    source = _FUNCTION.format(
        name=base,
        parameters=parameters,
        alpha={"": "", "()": ", alpha", "(n)": ", row(alpha, x, w)"}[operation.alpha],
        alpha_name=", alpha" if operation.alpha else "",
        mask_parameter=", *, mask=None" if has_mask else "",
        is_plain=" and type(alpha) in (float, ndarray)" if operation.alpha else "",
        without_mask=" and mask is None" if has_mask else "",
        mask="mask" if has_mask else "None",
    )
    exec(compile(source, f"<fastrelu.{base}>", "exec"), namespace)
    # Where NumPy arrays go to a GPU, no array is one that goes to the ufunc directly.
    device.watch(lambda is_used: namespace.update(ndarray=None if is_used else ndarray))
    function: Any = namespace[base]
    function.__doc__, function.__annotations__ = declaration.__doc__, declaration.__annotations__
    function.__wrapped__ = declaration  # whose signature `inspect` and editors show
    function.nin, function.nout, function.nargs = len(operation.inputs), 1, len(operation.inputs) + 1
    function.types, function.ntypes = operation.types, len(operation.types)
    function.identity, function.signature = None, operation.signature
    return cast(Callable[P, R], function)


def _row(alpha: Any, x: Any, w: Any) -> Any:
    """One value for all columns as a row of them. A Python number does not change the type of the result."""
    if overrides(alpha) or np.ndim(alpha):
        return alpha
    dtype = None
    if type(alpha) in (int, float):
        kinds = [np.dtype(o.dtype) if hasattr(o, "dtype") else np.asarray(o).dtype for o in (x, w)]
        dtype = np.promote_types(*kinds)
        dtype = np.dtype(np.float32) if dtype.itemsize == 2 else np.promote_types(dtype, np.float32)
    return np.broadcast_to(np.asarray(alpha, dtype), (w.shape if hasattr(w, "shape") else np.shape(w))[-1:])


def _beside_packed(base: str, x: Any, w: PackedWeight, others: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, str]:
    """X and w as the ufunc wants them where w is prepacked, and what is appended to its name."""
    outputs = others[-1] if type(others[-1]) is tuple else others[-1:]
    if any(overrides(operand) for operand in (x, *others[:-1], *outputs) if operand is not None):
        return x, w.unpack(), ""  # another library decides what happens to the operands
    if "axes" in kwargs and tuple(kwargs["axes"][1]) not in ((-2, -1), (0, 1)):
        raise ValueError(f"{base}: the axes of a packed w are (-2, -1), not {kwargs['axes'][1]}")
    x = np.asanyarray(x)
    native = x.dtype.newbyteorder("=")
    chosen = (w._operand, "_packed") if w._columns is None else (w._columns, "")
    if native == w.dtype:
        return (x, *chosen)
    # A half is kept as float32, which beside a half counts as one.
    kinds = (w.dtype, w._operand.dtype)
    is_other_half = native.name in HALVES and w.dtype.name in HALVES
    dtype = native if is_other_half or native.name not in FLOATS + INTEGERS else np.promote_types(native, w.dtype)
    if dtype not in kinds:
        raise TypeError(f"{base}: x must have the type of the packed w, {w.dtype}, or one that fits it, not {native}")
    return (x.astype(dtype), *chosen)


def _first_output(out: Any) -> Any:
    """Y of an ``out`` that does not name the mask."""
    out = out[0] if type(out) is tuple and len(out) == 1 else out
    return None if out is Ellipsis else out


def _checked_mask(base: str, mask: Any, w: Any) -> np.ndarray:
    """The array for the bits, which NumPy cannot check against the shape of y."""
    if not isinstance(mask, ndarray) or mask.dtype != np.uint8:
        kind = mask.dtype if isinstance(mask, ndarray) else type(mask).__name__
        raise TypeError(f"{base}: mask must be an array of uint8, not {kind}")
    shape = w.shape if hasattr(w, "shape") else np.shape(w)
    length = -(-shape[-1] // 8) if shape else 0
    if len(shape) > 1 and mask.shape[-1:] != (length,):
        raise ValueError(f"{base}: mask must have shape (..., {length}) for {shape[-1]} columns, not {mask.shape}")
    return mask


def _explain(
    base: str, error: Exception, operands: tuple[Any, ...], out: Any, mask: Any, kwargs: dict[str, Any]
) -> BaseException:
    """What to raise instead of NumPy's error."""
    given = {name: o for name, o in zip(("x", "w", "b", "alpha"), operands, strict=False) if name != "b" or o is not None}
    if faults.is_told(base, error, given):
        return error
    for name in ("b", "bias"):
        if name in kwargs:
            return TypeError(f"{base}() takes the bias by its place, not as {name}=: {base}({', '.join(LAYERS[base].inputs)})")
    given["w"] = face(given["w"])
    out = out[0] if type(out) is tuple and len(out) == 1 else None if out is ... else out
    if type(out) is tuple:
        return ValueError(f"{base}: out must be an array or a tuple of one, not a tuple of {len(out)}")
    outputs = {"out": out} if mask is None else {"out": out, "mask": mask}
    is_told = str(error).startswith(f"{base}: mask ")
    if type(error) is ValueError and not is_told and not any(map(_tells_shapes, (*given.values(), *outputs.values()))):
        error = shape_fault(base, given, outputs, kwargs) or error
    return faults.explain(base, error, given, outputs, kwargs)


def _tells_shapes(operand: Any) -> bool:
    """Whether another library's error is as clear as ours: dask knows the axes by the letters of the signature only."""
    is_of_dask = type(operand).__module__.startswith("dask.array") and all(isinstance(size, int) for size in operand.shape)
    return overrides(operand) and not is_of_dask


def shape_fault(base: str, given: dict[str, Any], outputs: dict[str, Any], kwargs: dict[str, Any]) -> ValueError | None:
    """What is wrong with the shapes or with an output, if that is what NumPy complains about."""
    for name, array in outputs.items():
        fault = faults.read_only_fault(base, name, array)
        if fault is not None:
            return fault
    if not {"axes", "axis", "keepdims"}.isdisjoint(kwargs):
        return None  # which axis is which is not told here
    try:
        shapes = {name: np.shape(operand) for name, operand in given.items()}
    except (TypeError, ValueError):
        return None  # an operand cannot become an array
    x, w = shapes["x"], shapes["w"]
    if len(x) < 1:
        return ValueError(f"{base}: x must have at least one axis, (..., k), not shape {x}")
    if len(w) < 2:
        return ValueError(f"{base}: w must have at least two axes, (..., k, n), not shape {w}")
    if x[-1] != w[-2]:
        hint = "; w.T would fit" if len(w) == 2 and w[1] == x[-1] else ""
        return ValueError(f"{base}: w must have shape (..., {x[-1]}, n) for x of shape {x}, not {w}{hint}")
    n = w[-1]
    batches = {"x": x[:-1], "w": w[:-2]}
    for name in ("b", "alpha"):
        shape = shapes.get(name, ())
        is_row = name in shapes and (name == "b" or (LAYERS[base].alpha == "(n)" and shape != ()))
        if is_row and shape[-1:] != (n,):
            return ValueError(f"{base}: {name} must have shape (..., {n}) for w of shape {w}, not {shape}")
        batches[name] = shape[:-1] if is_row else shape
    out, mask = outputs["out"], outputs.get("mask")
    if isinstance(out, ndarray) and out.shape[-1:] != (n,):
        return ValueError(f"{base}: out must have shape (..., {n}) for w of shape {w}, not {out.shape}")
    fault = faults.batch_fault(base, shapes, batches)
    if fault is not None:
        return fault
    batch = np.broadcast_shapes(*batches.values())
    return faults.output_fault(base, "out", out, (*batch, n)) or faults.output_fault(base, "mask", mask, (*batch, -(-n // 8)))


@layer
def linear(x: ArrayLike, w: Any, b: ArrayLike | None = None, /, out: Any = None, **kwargs: Unpack[GufuncKeywords]) -> Any:
    """Linear layer: x @ w + b.

    Parameters
    ----------
    x : array_like
        Input (..., k).
    w : array_like or PackedWeight
        Weight (..., k, n): of PyTorch's layout (out, in) the transpose, ``weight.T``.
    b : array_like, optional
        Bias (..., n).
    out : ndarray, optional
        Where to put the result.
    **kwargs
        As for any generalized `numpy.ufunc`.

    Returns
    -------
    ndarray or scalar
        (..., n). An empty sum, k = 0, is the bias.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.linear(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, -1.0]]), np.array([0.5, 0.5]))
    array([[ 1.5, -1.5]])
    """


@layer
def linear_relu(
    x: ArrayLike,
    w: Any,
    b: ArrayLike | None = None,
    /,
    out: Any = None,
    *,
    mask: np.ndarray | None = None,
    **kwargs: Unpack[GufuncKeywords],
) -> Any:
    """Linear layer and `relu`: max(x @ w + b, 0).

    Parameters
    ----------
    x, w, b, out
        As for `linear`.
    mask : ndarray of uint8, optional
        Where to put the bits of y > 0, which are all that the backward pass needs of y: shape (..., ceil(n / 8)), row-major, a
        row beginning with a new byte, and the column 8 i + j being bit j (of value 2**j) of byte i. Bits beyond the last
        column are 0. A NaN counts as positive. The same as ``np.packbits(~(y <= 0), axis=-1, bitorder="little")``. With a
        mask the result is the pair (y, mask).
    **kwargs
        As for `linear`.

    Returns
    -------
    ndarray or scalar
        (..., n): +0 where the sum is not positive, NaN where it is NaN.

    Raises
    ------
    TypeError
        If an operand is neither of a float nor of an integer type, or `mask` is not an array of uint8.
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> x, w, b = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, -1.0]]), np.array([0.5, 0.5])
    >>> fastrelu.linear_relu(x, w, b)
    array([[1.5, 0. ]])
    >>> y, mask = fastrelu.linear_relu(x, w, b, mask=np.empty((1, 1), np.uint8))
    >>> mask
    array([[1]], dtype=uint8)
    """


@layer
def linear_leaky_relu(
    x: ArrayLike,
    w: Any,
    b: ArrayLike | None = None,
    /,
    alpha: ArrayLike = 0.01,
    out: Any = None,
    **kwargs: Unpack[GufuncKeywords],
) -> Any:
    """Linear layer and `leaky_relu`.

    Parameters
    ----------
    x, w, b
        As for `linear`.
    alpha : array_like, optional
        Slope where the sum is negative: one value, or one for each matrix of a batch.
    out, **kwargs
        As for `linear`.

    Returns
    -------
    ndarray or scalar
        (..., n).

    Raises
    ------
    TypeError, ValueError
        As `linear`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.linear_leaky_relu(np.array([1.0, 2.0]), np.array([[1.0, 0.0], [0.0, -1.0]]), alpha=0.25)
    array([ 1. , -0.5])
    """


@layer
def linear_prelu(
    x: ArrayLike,
    w: Any,
    b: ArrayLike | None,
    alpha: ArrayLike,
    /,
    out: Any = None,
    **kwargs: Unpack[GufuncKeywords],
) -> Any:
    """Linear layer and `prelu`, with a slope for each column.

    Parameters
    ----------
    x, w, b
        As for `linear`; b may be None.
    alpha : array_like
        Slopes (..., n), or one for all.
    out, **kwargs
        As for `linear`.

    Returns
    -------
    ndarray or scalar
        (..., n).

    Raises
    ------
    TypeError, ValueError
        As `linear`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.linear_prelu(np.array([-4.0]), np.array([[1.0, 2.0]]), None, np.array([0.25, 0.5]))
    array([-1., -4.])
    """


@layer
def linear_elu(
    x: ArrayLike,
    w: Any,
    b: ArrayLike | None = None,
    /,
    alpha: ArrayLike = 1.0,
    out: Any = None,
    **kwargs: Unpack[GufuncKeywords],
) -> Any:
    """Linear layer and `elu`.

    Parameters
    ----------
    x, w, b
        As for `linear`.
    alpha : array_like, optional
        Minus the limit for large negative sums.
    out, **kwargs
        As for `linear`.

    Returns
    -------
    ndarray or scalar
        (..., n), in float32 and float64 with the bits that `elu` of `linear` has.

    Raises
    ------
    TypeError, ValueError
        As `linear`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.linear_elu(np.array([1.0]), np.array([[-1.0, 2.0]]))
    array([-0.63212056,  2.        ])
    """


@layer
def linear_sigmoid(
    x: ArrayLike, w: Any, b: ArrayLike | None = None, /, out: Any = None, **kwargs: Unpack[GufuncKeywords]
) -> Any:
    """Linear layer and `sigmoid`.

    Parameters
    ----------
    x, w, b, out, **kwargs
        As for `linear`.

    Returns
    -------
    ndarray or scalar
        (..., n), in float32 and float64 with the bits that `sigmoid` of `linear` has.

    Raises
    ------
    TypeError, ValueError
        As `linear`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.linear_sigmoid(np.array([0.0]), np.array([[1.0]]))
    array([0.5])
    """


@layer
def linear_tanh(x: ArrayLike, w: Any, b: ArrayLike | None = None, /, out: Any = None, **kwargs: Unpack[GufuncKeywords]) -> Any:
    """Linear layer and `tanh`.

    Parameters
    ----------
    x, w, b, out, **kwargs
        As for `linear`.

    Returns
    -------
    ndarray or scalar
        (..., n), in float32 and float64 with the bits that `tanh` of `linear` has.

    Raises
    ------
    TypeError, ValueError
        As `linear`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.linear_tanh(np.array([0.0]), np.array([[1.0]]))
    array([0.])
    """


@layer
def linear_softplus(
    x: ArrayLike, w: Any, b: ArrayLike | None = None, /, out: Any = None, **kwargs: Unpack[GufuncKeywords]
) -> Any:
    """Linear layer and `softplus`.

    Parameters
    ----------
    x, w, b, out, **kwargs
        As for `linear`.

    Returns
    -------
    ndarray or scalar
        (..., n), in float32 and float64 with the bits that `softplus` of `linear` has.

    Raises
    ------
    TypeError, ValueError
        As `linear`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> fastrelu.linear_softplus(np.array([0.0]), np.array([[1.0]]))
    array([0.69314718])
    """
