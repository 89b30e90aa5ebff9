"""`replace_linear_relu`: models of PyTorch with their pairs of `Linear` and ReLU in one pass."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import fx, nn

from fastrelu.torch.modules import Linear, LinearReLU, Sequential, is_called_only

__all__ = ["replace_linear_relu"]

M = TypeVar("M", bound=nn.Module)

_MOST_TRACES = 16  # of one forward, in each mode; every argument that can be None doubles their number


def replace_linear_relu(model: M, *, every_linear: bool = False) -> M:
    """Make a `LinearReLU` of every `Linear` whose output goes to a ReLU and nowhere else.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place. A `Linear` and a `nn.ReLU` become a `LinearReLU` with the same parameters and an `Identity`, so that
        numbers of layers, names of parameters, optimizers and saved states stay valid: in every `Sequential`, at any depth; and
        where `torch.fx` can trace `model` or else a part of it, also where a ``forward`` calls one after the other, each time.
        A `Sequential` in which such layers follow each other becomes a `fastrelu.torch.Sequential`.
    every_linear : bool, optional
        Whether each `Linear` that is left becomes a `fastrelu.torch.Linear`.

    Returns
    -------
    torch.nn.Module
        `model`.

    Notes
    -----
    Left as they are: layers with hooks, parametrizations or a ``forward`` of their own, subclasses, parameters that are neither
    on the CPU nor on a CUDA device, are no floats or no plain tensors, and ReLUs that a ``forward`` calls as functions
    (``relu(self.linear(x))``): write ``fastrelu.torch.LinearReLU`` there. A `Linear` that is used in another
    place as well stays what it is there, with the same parameters.

    A layer that was replaced always returns max(z, 0). So this is not for models that take the output of a `Linear` from the
    middle of a `Sequential`, or whose ``forward`` takes another path after an attribute has changed. Other threads must not
    call modules meanwhile, as while `torch.fx` traces.

    Raises
    ------
    TypeError
        If `model` is no module.

    Examples
    --------
    >>> from torch import nn
    >>> from fastrelu.torch import replace_linear_relu
    >>> replace_linear_relu(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)))
    Sequential(
      (0): LinearReLU(in_features=4, out_features=3, bias=True)
      (1): Identity()
      (2): Linear(in_features=3, out_features=1, bias=True)
    )
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_linear_relu: model must be a torch.nn.Module, not {type(model).__name__}")
    _replace_in_sequences(model)
    _replace_in_forward(model)
    if every_linear:
        _swap(model, {layer: _twin(layer, Linear) for layer in model.modules() if _is_linear(layer)})
    for module in model.modules():
        if type(module) is nn.Sequential and "forward" not in vars(module) and _has_chain(module):
            module.__class__ = Sequential
    return model


def _has_chain(module: nn.Sequential) -> bool:
    """Whether layers of ours follow each other."""
    layers = [layer for layer in module if type(layer) is not nn.Identity]
    return any(is_called_only(one) and is_called_only(other) for one, other in itertools.pairwise(layers))


def _is_linear(layer: Any) -> bool:
    """Whether a layer is a `Linear` that nobody has changed, and that `fastrelu` can calculate."""
    if type(layer) is not nn.Linear or _has_own(layer):
        return False
    return all(
        type(p) is nn.Parameter and p.is_floating_point() and (p.is_cpu or p.is_cuda) and p.layout is torch.strided
        for p in layer.parameters()
    )


def _is_relu(layer: Any) -> bool:
    return type(layer) is nn.ReLU and not _has_own(layer)


def _has_own(layer: nn.Module) -> bool:
    """Whether somebody looks at what goes into a layer or comes out of it, or has changed what it does."""
    return "forward" in vars(layer) or any(vars(layer)[name] for name in vars(layer) if name.endswith("_hooks"))


def _replace_in_sequences(model: nn.Module) -> None:
    twins: dict[nn.Module, nn.Module] = {}
    for module in [*model.modules()]:
        if (
            not isinstance(module, nn.Sequential)
            or type(module).forward not in (nn.Sequential.forward, Sequential.forward)
            or _has_own(module)
        ):
            continue
        for (name, layer), (following_name, following) in itertools.pairwise([*module._modules.items()]):
            if _is_linear(layer) and _is_relu(following):
                module._modules[name] = twins.setdefault(layer, _twin(layer, LinearReLU))
                module._modules[following_name] = nn.Identity().train(following.training)


def _replace_in_forward(model: nn.Module) -> None:
    """Replace pairs that a ``forward`` calls: of the whole model if it can be traced, else of the parts that can."""
    if not any(map(_is_relu, model.modules())):
        return
    pairs = _pairs_of_calls(model)
    if pairs is None:
        for child in model.children():
            _replace_in_forward(child)
    elif pairs:
        new: dict[nn.Module, nn.Module] = {}
        for layer, following in pairs:
            new[layer] = _twin(layer, LinearReLU)
            new[following] = nn.Identity().train(following.training)
        _swap(model, new)
        if _pairs_of_calls(model) is None:  # it still calls one of them, from a list or wherever else it has that
            _swap(model, {after: before for before, after in new.items()})


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # their values may be others at the next call

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) or _has_own(module) or super().is_leaf_module(module, name)


def _traces(model: nn.Module) -> Iterator[fx.Graph]:
    """What `model` calls when it trains and when it does not, with and without each argument that can be None."""
    if "forward" in vars(model):
        raise TypeError("torch.fx would trace the forward of the class")
    # A copy with the same tensors: a forward may keep what it sees, and count its calls.
    stand_in = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    arguments = inspect.signature(stand_in.forward).parameters.values()
    choices = [(False, True) if argument.default is None else (False,) for argument in arguments]
    if math.prod(map(len, choices)) > _MOST_TRACES:
        raise ValueError("too many arguments that can be None")
    for trains, *absent in itertools.product((True, False), *choices):
        for module in stand_in.modules():
            module.training = trains
        yield _Tracer().trace(stand_in, {a.name: None for a, is_absent in zip(arguments, absent, strict=True) if is_absent})


def _pairs_of_calls(model: nn.Module) -> list[tuple[nn.Module, nn.Module]] | None:
    """A `Linear` and a ReLU that each follow a layer of the other kind in all of their calls; None if no trace can be made."""
    pairs, refused = set(), set()
    try:
        for graph in _traces(model):
            called = {node: model.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
            for node, module in called.items():
                is_relu = _is_relu(module)
                beside = [called.get(other) for other in (node.all_input_nodes if is_relu else node.users)]
                other = beside[0] if len(beside) == 1 else None
                pair = (other, module) if is_relu else (module, other)
                if _is_linear(pair[0]) and _is_relu(pair[1]):
                    pairs.add(pair)
                else:
                    refused.update(module.modules())
            # Whose parameters are used without it.
            refused |= {model.get_submodule(node.target.rpartition(".")[0]) for node in graph.nodes if node.op == "get_attr"}
    except Exception:  # whatever a forward says to operands without values
        return None
    while spoiled := {module for pair in pairs if refused & {*pair} for module in pair} - refused:
        refused |= spoiled
    return [pair for pair in pairs if not refused & {*pair}]


def _swap(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put others in the place of modules, wherever those stand in `model`."""
    for module in [*model.modules()]:
        for name, child in module._modules.items():
            if child in new:
                module._modules[name] = new[child]


def _twin(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Another layer with the attributes of `layer`; the two have the same parameters also after one of them gets new ones."""
    twin = copy.copy(layer)
    twin.__class__ = kind
    return twin
