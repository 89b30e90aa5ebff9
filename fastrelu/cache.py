"""What a user may want of the cache of compiled kernels: see it, clear it, fill it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import fastrelu
from fastrelu.native.guard import lock
from fastrelu.operations import (
    BACKWARD,
    FLOATS,
    HALVES,
    INTEGERS,
    LAYERS,
    OPERATIONS,
    backward_variants,
)

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["CacheInfo", "cache_info", "clear_cache", "warmup"]

_RANGES = ("ranges", "first_outside")
ROUTINES = {
    "embedding_mean": (_RANGES, ("embedding_mean", "forward", "{}")),
    "embedding_mean_backward": (_RANGES, ("embedding_mean", "sort"), ("embedding_mean", "backward", "{}")),
    "max_pool2d": (("max_pool2d", "forward", "{}", "values"), ("max_pool2d", "forward", "{}", "indices")),
    "max_pool2d_backward": (_RANGES, ("max_pool2d", "backward", "{}")),
    "softmax_cross_entropy": (_RANGES, ("softmax_cross_entropy", "build", "{}")),
}
"""What the functions that are no ufuncs ask `fastrelu.native.routine` for; braces stand for the type."""

CONVOLUTIONS = tuple(name for name in fastrelu.__all__ if name.startswith("conv2d"))
_BASES = {*OPERATIONS, *(layer.base for layer in LAYERS.values()), *BACKWARD, *ROUTINES, *CONVOLUTIONS, "pack"}
FUNCTIONS = tuple(sorted(_BASES.intersection(fastrelu.__all__)))
"""Names of the public functions that kernels are compiled for."""


@dataclass(frozen=True)
class CacheInfo:
    """What `cache_info` found.

    Parameters
    ----------
    folder : Path or None
        Where the kernels of this version for this processor are kept; None if the cache is off.
    writable : bool
        Whether permissions allow to write there. A full disk shows only when it is tried.
    kernels, nbytes : int
        How many kernels are there, and the bytes of these files.
    stale_folders, stale_nbytes : int
        Folders beside it, of other versions or settings, which upgrades leave behind; and the bytes of their files.
    loaded, compiled : int
        How many kernels this process has taken from the cache, and how many it has compiled.

    Examples
    --------
    >>> import fastrelu
    >>> info = fastrelu.cache_info()
    >>> print(info)  # doctest: +SKIP
    9 kernels, 140 KiB in /home/me/.cache/fastrelu/6e98d1cc3e3e9dcd7b9b19d7a1dd4d55
    2 folders of other versions, 1204 KiB
    in this process 3 loaded, 0 compiled
    """

    folder: Path | None
    writable: bool
    kernels: int
    nbytes: int
    stale_folders: int
    stale_nbytes: int
    loaded: int
    compiled: int

    def __str__(self) -> str:
        process = f"in this process {self.loaded} loaded, {self.compiled} compiled"
        if self.folder is None:
            return f"off: every process compiles its kernels again\n{process}"
        here = f"{self.kernels} kernels, {self.nbytes / 1024:.0f} KiB in {self.folder}"
        stale = f"{self.stale_folders} folders of other versions, {self.stale_nbytes / 1024:.0f} KiB"
        return "\n".join((here + ("" if self.writable else ", which cannot be written"), stale, process))


def cache_info() -> CacheInfo:
    """Look at the cache of compiled kernels.

    Returns
    -------
    CacheInfo
        Where it is, what is in it, what upgrades have left behind, and what this process took from it.

    Examples
    --------
    >>> import fastrelu
    >>> y = fastrelu.relu(1.0)
    >>> info = fastrelu.cache_info()
    >>> info.loaded + info.compiled > 0
    True
    """
    with lock:
        from fastrelu.native import linker, store

    folder = store.folder()
    found: dict[Path, dict[str, int]] = {}
    with contextlib.suppress(OSError):  # nobody may look into it
        for where in store.folders():
            found[where] = {}
            with contextlib.suppress(OSError):
                found[where] = store.sizes(where)
    here = found.pop(folder, {}) if folder is not None else {}
    stale = [sizes for sizes in found.values() if sizes]
    return CacheInfo(
        folder,
        folder is not None and _is_writable(folder),
        len([name for name in here if not name.endswith(".tmp")]),
        sum(here.values()),
        len(stale),
        sum(sum(sizes.values()) for sizes in stale),
        *linker.counts(),
    )


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which may have to be made first."""
    with contextlib.suppress(OSError):  # a relative path, and the current folder is gone
        for existing in (folder.absolute(), *folder.absolute().parents):
            if os.path.lexists(existing):
                return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)
    return False


def clear_cache(*, stale_only: bool = False) -> int:
    """Remove compiled kernels from the cache.

    Only files and folders that the package itself has made are removed, and links are not followed. Other processes may use
    the cache meanwhile: they have loaded what they use, or compile it again. A process keeps the kernels it has loaded.

    Parameters
    ----------
    stale_only : bool, optional
        Keep the kernels of this version on this processor, and remove those of all others, which upgrades leave behind.

    Returns
    -------
    int
        Bytes freed: 0 if there is no cache, or if it is off.

    Raises
    ------
    OSError
        If something could not be removed, as in a read-only folder. All that could be is gone then.

    Examples
    --------
    >>> import fastrelu
    >>> fastrelu.clear_cache(stale_only=True)  # doctest: +SKIP
    1232896
    """
    with lock:
        from fastrelu.native import store

    freed, failure = 0, None
    for where in store.folders():
        if stale_only and where == store.folder():
            continue
        try:
            freed += store.remove(where)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
    return freed


def warmup(
    functions: str | Callable[..., Any] | Iterable[str | Callable[..., Any]] | None = None,
    dtypes: DTypeLike | Iterable[DTypeLike] = ("float32", "float64"),
    *,
    progress: bool | None = None,
) -> CacheInfo:
    """Compile kernels now and keep them in the cache, so that later processes start without the compiler.

    An administrator can so fill a cache for all users, or the cache of a container's image. What is cached already is only
    loaded, and what this process has loaded and the cache has lost is written again. All functions for one type take about
    a minute on an empty cache.

    Parameters
    ----------
    functions : str, function, or iterable of these, optional
        The public functions, such as ``"linear_relu"`` or ``fastrelu.linear_relu``; by default all that have kernels. Every
        variant is compiled: with and without a bias, packed weights, masks, subsets of the gradients.
    dtypes : dtype or iterable of dtypes, optional
        Types of the operands, as types or names. Functions that calculate turn integers into floats, and what is compiled
        is the kernel for these.
    progress : bool, optional
        Whether to show a progress bar by tqdm. By default there is one if tqdm is installed and stderr is a terminal.

    Returns
    -------
    CacheInfo
        What the cache holds now.

    Raises
    ------
    ValueError
        If there is no such function or type.
    ImportError
        If `progress` is true and tqdm is not installed.

    Examples
    --------
    >>> import fastrelu
    >>> info = fastrelu.warmup([fastrelu.relu, "relu_backward"], "float32")
    >>> info.loaded + info.compiled >= 4
    True
    """
    names = FUNCTIONS if functions is None else [*map(_function_name, _several(functions))]
    types = [*map(_dtype_name, _several(dtypes))]
    # By their names, since some functions share kernels.
    wanted = dict(kernel for name in names for dtype in types for kernel in _kernels(name, dtype))
    with lock:
        from fastrelu.native import linker

    for load in _with_progress(list(wanted.values()), progress):
        load()
    linker.keep_all()
    return cache_info()


Load = Callable[[], Any]
"""Puts a kernel and all that it calls into the process."""


def _several(given: Any) -> list[Any]:
    return [given] if isinstance(given, (str, np.dtype)) or callable(given) else list(given)


def _function_name(given: Any) -> str:
    name = given if isinstance(given, str) else getattr(given, "__name__", None)
    if name not in FUNCTIONS or (name != given and getattr(fastrelu, name) is not given):
        raise ValueError(f"warmup: functions must be among {', '.join(FUNCTIONS)}, not {given!r}")
    return str(name)


def _dtype_name(given: Any) -> str:
    name = given
    if not isinstance(given, str) or given not in FLOATS + INTEGERS:  # NumPy itself does not know bfloat16
        with contextlib.suppress(TypeError):
            name = None if given is None else np.dtype(given).name
    if name not in FLOATS + INTEGERS:
        raise ValueError(f"warmup: dtypes must be among {', '.join(FLOATS + INTEGERS)}, not {given!r}")
    return str(name)


def _kernels(function: str, dtype: str) -> Iterator[tuple[str, Load]]:
    """All kernels that a public function can need for operands of a type: their names, and what loads them."""
    with lock:
        from fastrelu.native import loops, target

    width = target.vector_bytes()
    is_open = function in OPERATIONS and not OPERATIONS[function].arithmetic
    if dtype in INTEGERS and not is_open and function != "max_pool2d":
        dtype = np.result_type(dtype, np.float16).name
    if function in OPERATIONS:
        elementwise = [OPERATIONS[function].loop(dtype, width)]
        if function == "prelu_backward":
            wide = "float32" if dtype in HALVES else dtype
            elementwise.append(OPERATIONS["prelu_alpha_gradient"].loop(wide, width))
        yield from ((loop.name, partial(loops.address_of, loop)) for loop in elementwise)
        return
    if function in ROUTINES:
        with lock:
            from fastrelu.native.routine import routine

        kernels = [tuple(part.format(dtype) for part in kernel) for kernel in ROUTINES[function]]
        yield from ((" ".join(kernel), partial(routine, *kernel)) for kernel in kernels)
        return
    if function == "conv2d_prelu":  # two passes
        wide = "float32" if dtype in HALVES else dtype
        yield from (*_kernels("conv2d", wide), *_kernels("prelu", wide))
        return
    if function in CONVOLUTIONS:
        yield from _kernels_of_convolution(function, dtype, width)
        return
    yield f"pack {dtype}", partial(loops.weight_packing, dtype, width)
    fused = (layer.loop(dtype, width) for layer in LAYERS.values() if layer.base == function)
    yield from ((loop.name, partial(loops.address_of_fused, loop)) for loop in fused)
    gradients = (variant.loop(dtype, width) for variant in backward_variants().values() if variant.base == function)
    yield from ((loop.name, partial(loops.address_of_gradient, loop)) for loop in gradients)


def _kernels_of_convolution(function: str, dtype: str, width: int) -> Iterator[tuple[str, Load]]:
    with lock:
        from fastrelu.native import loops
        from fastrelu.native.routine import routine

    formula = function.removeprefix("conv2d").removeprefix("_")
    yield "convolution", partial(routine, "convolution", "build")
    if not function.endswith("backward"):
        yield f"{function} {dtype}", partial(loops.addresses_of_patches, formula, None, dtype, width)
        return
    derivative = "" if formula == "backward" else formula
    yield "swapped weight", partial(routine, "swapped_weight", "build")
    yield "convolution gradient", partial(routine, "convolution_gradient", "build")
    yield f"{function} {dtype} dx", partial(loops.addresses_of_patches, "", derivative, dtype, width)
    yield f"{function} {dtype} dw", partial(loops.addresses_of_weight_gradient, derivative, dtype, width)


def _with_progress(loads: list[Load], progress: bool | None) -> Iterable[Load]:
    if progress is None:
        is_seen = sys.stderr is not None and sys.stderr.isatty()
        progress = is_seen and importlib.util.find_spec("tqdm") is not None
    if not progress:
        return loads
    try:
        with lock:
            from tqdm import tqdm
    except ImportError:
        raise ImportError('warmup: the progress bar needs tqdm: pip install "fastrelu[progress]"') from None
    bar: Iterable[Load] = tqdm(loads, desc="kernels", unit="kernel")
    return bar
