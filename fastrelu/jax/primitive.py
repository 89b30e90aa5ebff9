"""The primitive that runs any of the package's ufuncs on JAX's arrays: their shapes, their lowering to XLA, their batches.

A generalized ufunc broadcasts all axes before its core dimensions, as NumPy does, so that ``vmap`` has nothing to copy: it
gives every operand that it maps one more axis in front.
"""

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from fastrelu.jax import target
from fastrelu.native.entries import MAX_AXES
from fastrelu.operations import LAYERS, OPERATIONS, backward_variants

Cores = tuple[tuple[str, ...], ...]


@cache
def cores(name: str) -> tuple[Cores, Cores]:
    """The core dimensions of the inputs and of the outputs of a ufunc."""
    if name in OPERATIONS:
        return ((),) * len(OPERATIONS[name].inputs), ((),)
    layer = LAYERS.get(name) or backward_variants()[name]
    inputs, outputs = layer.signature.split("->")
    return _split(inputs), _split(outputs)


def _split(signature: str) -> Cores:
    return tuple(tuple(re.findall(r"\w+", core)) for core in re.findall(r"\(([^)]*)\)", signature))


ufunc_p = Primitive("fastrelu")
ufunc_p.multiple_results = True


def ufunc(name: str, *operands: Any, from_output: bool = True) -> Any:
    """Run a ufunc, whose operands have the types of its loop already.

    Parameters
    ----------
    name : str
        As in `fastrelu.ufuncs`.
    *operands : jax.Array
        The first has the type of the data.
    from_output : bool, optional
        Whether the output tells the sign of the input, as it does for an alpha that is known and not negative.

    Returns
    -------
    jax.Array or list of jax.Array
        One, or the gradients that the name says.
    """
    results = ufunc_p.bind(*_alike(operands), name=name, from_output=from_output)
    return results[0] if len(results) == 1 else results


def _varying(aval: Any) -> frozenset[str]:
    """The axes of the mesh along which a value differs, inside of ``shard_map`` with ``check_vma``."""
    kind = getattr(aval, "mat", None)  # since JAX 0.10
    varying: frozenset[str] = getattr(aval, "vma", frozenset()) if kind is None else kind.varying
    return varying


def _alike(operands: Sequence[Any]) -> Sequence[Any]:
    """Operands that differ along the same axes of the mesh: the gradient of one that did not is then summed over the others."""
    kinds = [_varying(getattr(operand, "aval", None)) for operand in operands]  # NumPy's arrays have none
    every = frozenset[str]().union(*kinds)
    return [_cast(operand, tuple(sorted(every - kind))) for operand, kind in zip(operands, kinds, strict=True)]


def _cast(operand: Any, axes: tuple[str, ...]) -> Any:
    if not axes:
        return operand
    return jax.lax.pcast(operand, axes, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary(operand, axes)


def result_type(operands: Sequence[Any], shape: Sequence[int], *, weak: bool = False) -> Any:
    """The type of a result, which differs along the axes of the mesh along which the operands do."""
    dtype = operands[0].dtype
    if not _varying(operands[0]):
        return jax.core.ShapedArray(tuple(shape), dtype, weak_type=weak)
    sharding = NamedSharding(operands[0].sharding.mesh, PartitionSpec())
    return operands[0].update(shape=tuple(shape), dtype=dtype, weak_type=weak, sharding=sharding)


@cache
def _compiled(name: str, from_output: bool) -> Any:
    return jax.jit(partial(ufunc_p.bind, name=name, from_output=from_output))


def _run(*operands: Any, **params: Any) -> Any:
    with jax.disable_jit(False):  # one primitive is compiled in any case
        return _compiled(**params)(*operands)


def _shapes(*operands: Any, name: str, from_output: bool) -> list[Any]:
    inputs, outputs = cores(name)
    sizes: dict[str, int] = {}
    loops = []
    for operand, core in zip(operands, inputs, strict=True):
        first = operand.ndim - len(core)
        loops.append(operand.shape[:first])
        sizes.update(zip(core, operand.shape[first:], strict=True))
    loop = jax.lax.broadcast_shapes(*loops)
    axes = len(loop) + max(map(len, inputs + outputs))
    if axes > MAX_AXES:
        raise ValueError(f"fastrelu.jax: {name} is for arrays of at most {MAX_AXES} axes, those of vmap included, not {axes}")
    weak = all(operand.weak_type for operand in operands)
    return [result_type(operands, (*loop, *(sizes[axis] for axis in core)), weak=weak) for core in outputs]


def aligned(operands: Sequence[Any], axes: Sequence[int | None], lengths: Sequence[int]) -> tuple[list[Any], int]:
    """Operands with the axis that ``vmap`` maps as one more loop axis, and which of these it is in a result.

    `lengths` are the numbers of core axes. Beside weights that have loop axes and are not mapped themselves it is the last
    one, as the rows of a product; else the first.
    """
    loops = [operand.ndim - length - (axis is not None) for operand, axis, length in zip(operands, axes, lengths, strict=True)]
    weights = [i for i, length in enumerate(lengths) if length == 2]
    is_row = any(loops[i] > 0 for i in weights) and all(axes[i] is None for i in weights)
    found = []
    for operand, axis, own in zip(operands, axes, loops, strict=True):
        if is_row:
            found.append(jnp.expand_dims(operand, own) if axis is None else jnp.moveaxis(operand, axis, own))
        elif axis is None:
            found.append(operand)
        else:
            found.append(jnp.expand_dims(jnp.moveaxis(operand, axis, 0), range(1, 1 + max(loops) - own)))
    return found, max(loops) if is_row else 0


def _batch(operands: Sequence[Any], axes: Sequence[int | None], **params: Any) -> tuple[Any, list[int]]:
    inputs, outputs = cores(params["name"])
    operands, axis = aligned(operands, axes, [*map(len, inputs)])
    return ufunc_p.bind(*operands, **params), [axis] * len(outputs)


def _lower(context: Any, *operands: Any, name: str, from_output: bool) -> Any:
    target.register()
    operation = f"{name} {context.avals_in[0].dtype.name}"
    target.load(operation)
    return jax.ffi.ffi_lowering(target.NAME)(context, *operands, operation=np.int64(target.key(operation)))


def _refuse(context: Any, *operands: Any, name: str, from_output: bool) -> Any:
    platform = ", ".join(context.module_context.platforms)
    raise NotImplementedError(
        f"fastrelu.jax: {name} runs on the CPU only, not on {platform}: put the arrays on jax.devices('cpu')[0]"
    )


ufunc_p.def_impl(_run)
ufunc_p.def_abstract_eval(_shapes)
batching.primitive_batchers[ufunc_p] = _batch
mlir.register_lowering(ufunc_p, _refuse)
mlir.register_lowering(ufunc_p, _lower, platform="cpu")
