"""`replace_linear_relu`: models of PyTorch with their pairs of `Linear` and ReLU in one pass."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import fx, nn

from fastrelu.torch.modules import Linear, LinearReLU

__all__ = ["replace_linear_relu"]

M = TypeVar("M", bound=nn.Module)


def replace_linear_relu(model: M, *, every_linear: bool = False) -> M:
    """Make a `LinearReLU` of every `Linear` whose output goes to a ReLU and nowhere else.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place. A `Linear` and a `nn.ReLU` become a `LinearReLU` with the same parameters and an `Identity`, so that
        numbers of layers, names of parameters, optimizers and saved states stay valid: in every `Sequential`, at any depth; and
        where `torch.fx` can trace `model`, also where a ``forward`` calls one after the other.
    every_linear : bool, optional
        Whether each `Linear` that is left becomes a `fastrelu.torch.Linear`.

    Returns
    -------
    torch.nn.Module
        `model`.

    Notes
    -----
    Left as they are: layers with hooks, parametrizations or a ``forward`` of their own, subclasses, parameters that are neither
    on the CPU nor on a CUDA device or are no floats, and ReLUs that a ``forward`` calls as functions
    (``relu(self.linear(x))``): write ``fastrelu.torch.LinearReLU`` there. A `Linear` that is used in another
    place as well stays what it is there, with the same parameters.

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
    twins: dict[nn.Module, nn.Module] = {}
    for module in [*model.modules()]:
        if type(module) is nn.Sequential and not _has_own(module):
            _fuse(module, _pairs_in_sequence(module), twins)
    if any(map(_is_relu, model.modules())) and not isinstance(model, nn.Sequential):
        _fuse(model, _pairs_in_graph(model), twins)
    if every_linear:
        twins = {}
        for module in [*model.modules()]:
            for name, child in module._modules.items():
                if child is not None and _is_linear(child):
                    module._modules[name] = twins.setdefault(child, _twin(child, Linear))
    return model


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a `Linear` that nobody has changed, and that `fastrelu` can calculate."""
    if type(layer) is not nn.Linear or _has_own(layer):
        return False
    return all(p.is_floating_point() and (p.is_cpu or p.is_cuda) and p.layout is torch.strided for p in layer.parameters())


def _is_relu(layer: nn.Module) -> bool:
    return type(layer) is nn.ReLU and not _has_own(layer)


def _has_own(layer: nn.Module) -> bool:
    """Whether somebody looks at what goes into a layer or comes out of it, or has changed what it does."""
    return "forward" in vars(layer) or any(vars(layer)[name] for name in vars(layer) if name.endswith("_hooks"))


def _pairs_in_sequence(module: nn.Sequential) -> Iterator[tuple[str, str]]:
    layers = [*module._modules.items()]
    for (name, layer), (following_name, following) in itertools.pairwise(layers):
        if layer is not None and following is not None and _is_linear(layer) and _is_relu(following):
            yield name, following_name


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_ours = isinstance(module, Linear | LinearReLU)
        return is_ours or super().is_leaf_module(module, name)


def _pairs_in_graph(model: nn.Module) -> set[tuple[str, str]]:
    """The names of such layers in ``forward``, if they are a pair whether the model trains or not, and each is called once."""
    modes = [(module, module.training) for module in model.modules()]
    found = []
    try:
        for mode in (True, False):
            model.train(mode)
            found.append({*_pairs_of_calls(model)})
    except Exception:  # whatever a forward says to operands without values: it cannot be traced
        return set()
    finally:
        for module, mode in modes:
            module.training = mode
    return found[0] & found[1]


def _pairs_of_calls(model: nn.Module) -> Iterator[tuple[str, str]]:
    graph = _Tracer().trace(model)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    modules = {node: model.get_submodule(str(node.target)) for node in calls}
    times = Counter(modules.values())
    for node in calls:
        users = [*node.users]
        if len(users) != 1 or users[0] not in modules:
            continue
        layer, following = modules[node], modules[users[0]]
        if times[layer] == times[following] == 1 and _is_linear(layer) and _is_relu(following):
            yield str(node.target), str(users[0].target)


def _fuse(model: nn.Module, pairs: Any, twins: dict[nn.Module, nn.Module]) -> None:
    for name, following in pairs:
        layer = model.get_submodule(name)
        if layer not in twins:
            twins[layer] = _twin(layer, LinearReLU)
        _replace(model, name, twins[layer])
        _replace(model, following, nn.Identity().train(model.get_submodule(following).training))


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = layer


def _twin(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Another layer with the attributes of `layer`; the two have the same parameters also after one of them gets new ones."""
    twin = copy.copy(layer)
    twin.__class__ = kind
    return twin
