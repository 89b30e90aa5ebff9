"""Means of rows of a table of embeddings, and their gradients.

A bag is a sequence of ids; its mean is the sum of their rows of the table, in the order of the ids, starting from 0, divided by
their number. float16 and bfloat16 are added up and divided in float32 and rounded once. Results depend neither on threads nor
on other bags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from fastrelu.native.routine import address, routine
from fastrelu.operands import (
    check_output,
    float_array,
    integer_array,
    is_direct,
    name_of,
    whole_number,
    wide,
    words_within,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["embedding_mean", "embedding_mean_backward"]

# As in `fastrelu.kernels.embedding_mean`, which imports Numba.
_DIGIT = 11


def _bags(base: str, ids: ndarray, offsets: Any) -> tuple[tuple[int, ...], int, ndarray | None]:
    """The shape of the bags, how many ids each has, and where they begin and end if that differs."""
    if offsets is None:
        if ids.ndim == 0:
            raise ValueError(f"{base}: ids must have at least one axis, along which the mean is taken")
        return ids.shape[:-1], ids.shape[-1], None
    firsts = integer_array(base, "offsets", offsets)
    if ids.ndim != 1 or firsts.ndim != 1:
        name, shape = ("ids", ids.shape) if ids.ndim != 1 else ("offsets", firsts.shape)
        raise ValueError(f"{base}: {name} must have one axis where offsets are given, not shape {shape}")
    ends = np.append(firsts.astype(np.int64), len(ids))
    if ends[0] != 0:
        raise ValueError(f"{base}: offsets must begin with 0, not {ends[0] if len(firsts) else 'be empty'}")
    falling = np.flatnonzero(ends[1:] < ends[:-1])
    if falling.size:
        i = int(falling[0])
        limit = f"offsets[{i + 1}]" if i + 1 < len(firsts) else "the number of ids"
        raise ValueError(f"{base}: offsets must not fall, and offsets[{i}] of {ends[i]} exceeds {limit}, {ends[i + 1]}")
    return (len(firsts),), 0, ends


def _padding(base: str, padding_id: Any) -> int | None:
    return None if padding_id is None else whole_number(base, "padding_id", padding_id, -(2**63), 2**63 - 1)


def embedding_mean(
    ids: ArrayLike,
    table: ArrayLike,
    offsets: ArrayLike | None = None,
    *,
    padding_id: int | None = None,
    out: ndarray | None = None,
) -> ndarray:
    """The mean of some rows of a table, for each of many bags of ids.

    Parameters
    ----------
    ids : array_like
        Numbers of rows, of any integer type: (..., l) for bags of l ids each, or with `offsets` (l,) for all bags one after
        the other.
    table : array_like
        The rows (rows, d), of any float type. An array whose rows are not contiguous is copied first.
    offsets : array_like, optional
        Where each bag begins in `ids`: ascending, and 0 first. The last one ends with the ids.
    padding_id : int, optional
        An id that does not count, any integer of 64 bits with a sign. It need not have a row.
    out : ndarray, optional
        Where to put the result.

    Returns
    -------
    ndarray
        (..., d) of the type of the table: the sum of the rows divided by their number, and 0 for a bag without ids.

    Raises
    ------
    TypeError
        If an operand has another type.
    ValueError
        If an id has no row, the offsets do not fit, or a shape is wrong.

    Notes
    -----
    The meaning is that of ``torch.nn.EmbeddingBag(mode="mean")``. A NaN in a row shows in the mean. Iyyer, Manjunatha,
    Boyd-Graber and Daumé, "Deep unordered composition rivals syntactic methods for text classification", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> table = np.array([[0.0, 0.0], [2.0, 4.0], [4.0, 6.0]])
    >>> fastrelu.embedding_mean([[1, 2], [2, 0]], table, padding_id=0)
    array([[3., 5.],
           [4., 6.]])
    >>> fastrelu.embedding_mean([1, 2, 2], table, offsets=[0, 2])
    array([[3., 5.],
           [4., 6.]])
    """
    base = "embedding_mean"
    numbers = integer_array(base, "ids", ids)
    rows = float_array(base, "table", table, {2: "(rows, d)"})
    lead, length, ends = _bags(base, numbers, offsets)
    padding = _padding(base, padding_id)
    shape = (*lead, rows.shape[1])
    if out is not None:
        check_output(base, out, shape, rows.dtype)
    found = words_within(base, "ids", "an id", numbers, len(rows), padding)

    if rows.strides[1] != rows.itemsize:
        rows = np.ascontiguousarray(rows)
    is_place = is_direct(out, numbers, rows) and out is not None and out.flags.c_contiguous
    y = out if is_place and out is not None else np.empty(shape, rows.dtype)
    if y.size:
        # -1 is no row; where nothing is left out, no id is -1 either.
        skipped = -1 if padding is None else padding
        routine("embedding_mean", "forward", name_of(rows.dtype))(
            address(found), found.size, 0 if ends is None else address(ends), length, address(rows), rows.strides[0],
            address(y), y.itemsize * shape[-1], y.size // shape[-1], shape[-1], skipped, 0,
        )  # fmt: skip
    if out is not None and y is not out:
        np.copyto(out, y)
    return y if out is None else out


def embedding_mean_backward(
    dy: ArrayLike,
    ids: ArrayLike,
    rows: int,
    offsets: ArrayLike | None = None,
    *,
    padding_id: int | None = None,
    sparse: bool = False,
    out: ndarray | None = None,
) -> Any:
    """Gradient of `embedding_mean` with respect to the table.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to the means, (..., d).
    ids : array_like
        As it was given to `embedding_mean`, like `offsets` and `padding_id`.
    rows : int
        How many rows the table has.
    offsets, padding_id : optional
        See `ids`.
    sparse : bool, optional
        Whether to return only the rows that occur among the ids.
    out : ndarray, optional
        Where to put the result; not with `sparse`.

    Returns
    -------
    dtable : ndarray
        (rows, d) of the type of dy: for each id the sum of dy divided by the number of ids in the bag, over all its places in
        ascending order, starting from 0. The quotients and sums of float16 and bfloat16 are float32, rounded once at the end.
    unique, gradients : ndarray
        With `sparse` instead: the ids that occur, ascending, as int64, and their rows of the same gradient.

    Raises
    ------
    TypeError
        If an operand has another type.
    ValueError
        If an id has no row, the offsets do not fit, or a shape is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrelu
    >>> dy = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> fastrelu.embedding_mean_backward(dy, [[1, 2], [2, 2]], 3)
    array([[0. , 0. ],
           [0.5, 1. ],
           [3.5, 5. ]])
    >>> unique, gradients = fastrelu.embedding_mean_backward(dy, [[1, 2], [2, 2]], 3, sparse=True)
    >>> unique
    array([1, 2])
    """
    base = "embedding_mean_backward"
    gradients = float_array(base, "dy", dy)
    numbers = integer_array(base, "ids", ids)
    count = whole_number(base, "rows", rows, 0, 2**63 - 1)
    lead, length, ends = _bags(base, numbers, offsets)
    padding = _padding(base, padding_id)
    if gradients.ndim != len(lead) + 1 or gradients.shape[:-1] != lead:
        raise ValueError(f"{base}: dy must have shape {(*lead, 'd')}, not {gradients.shape}".replace("'", ""))
    columns = gradients.shape[-1]
    if out is not None:
        if sparse:
            raise ValueError(f"{base}: out must not be given with sparse, whose results have as many rows as ids occur")
        check_output(base, out, (count, columns), gradients.dtype)
    found = words_within(base, "ids", "an id", numbers, count, padding).reshape(-1)

    bags = gradients.size // columns if columns else int(np.prod(lead))
    lengths = np.full(bags, length) if ends is None else np.diff(ends)
    owners = np.repeat(np.arange(bags), lengths)
    if padding is not None:
        counted = found != padding
        found, owners = found[counted], owners[counted]
        lengths = np.bincount(owners, minlength=bags)
    sums = wide(gradients.dtype)
    with np.errstate(all="ignore"):
        counts = np.maximum(lengths, 1).astype(sums)[:, None]
        terms = np.divide(gradients.reshape(bags, columns).astype(sums, copy=False), counts, order="C")
    keys, owners = _sorted(found, owners, count)
    unique = None
    if sparse:
        is_first = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
        unique = keys[is_first]
        keys, count = np.cumsum(is_first) - 1, len(unique)

    is_place = is_direct(out, gradients, numbers) and out is not None and out.strides[1] == out.itemsize
    result = out if is_place and out is not None else np.empty((count, columns), gradients.dtype)
    if result.size:
        routine("embedding_mean", "backward", name_of(gradients.dtype))(
            address(keys), address(owners), len(keys), address(terms), terms.itemsize * columns,
            address(result), result.strides[0], count, columns, 0,
        )  # fmt: skip
    if unique is not None:
        return unique, result
    if out is not None and result is not out:
        np.copyto(out, result)
    return result if out is None else out


def _sorted(keys: ndarray, values: ndarray, limit: int) -> tuple[ndarray, ndarray]:
    """Both in ascending order of the keys, which are in ``range(limit)``; equal ones keep their order."""
    passes = -(-max(limit - 1, 0).bit_length() // _DIGIT)
    keys, values = np.array(keys), np.array(values)
    other_keys, other_values = np.empty_like(keys), np.empty_like(values)
    if len(keys) and passes:
        addresses = [address(array) for array in (keys, values, other_keys, other_values)]
        routine("embedding_mean", "sort")(*addresses, len(keys), passes)
    return (other_keys, other_values) if passes % 2 else (keys, values)
