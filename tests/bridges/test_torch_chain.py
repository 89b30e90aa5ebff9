"""`fastrelu.torch.Sequential`: layers that follow each other as one function of autograd, with the bits of each by itself."""

import copy
import itertools
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import fastrelu.torch as ft  # noqa: E402
from fastrelu.torch import functional  # noqa: E402


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def network(*sizes):
    torch.manual_seed(0)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return ft.replace_linear_relu(nn.Sequential(*layers[:-1]), every_linear=True)


def chains(monkeypatch):
    """The layers of each chain that is called from now on."""
    called, apply = [], functional._Chain.apply
    monkeypatch.setattr(functional._Chain, "apply", lambda names, *operands: called.append(names) or apply(names, *operands))
    return called


@pytest.mark.parametrize("wants_dx", [False, True])
@pytest.mark.parametrize("frozen", [(), (0,), (0, 2), (2,), (4,), (0, 2, 4)])
def test_layers_that_follow_each_other_are_one_function_with_the_same_bits(monkeypatch, wants_dx, frozen):
    model = network(6, 5, 7, 3)
    assert type(model) is ft.Sequential
    for i in frozen:
        model[i].weight.requires_grad_(False)
        model[i].bias.requires_grad_(i == 0)
    x, dy, found = normal(4, 6), normal(4, 3), []
    called = chains(monkeypatch)
    for layers in (model, [*model]):
        operand = x.clone().requires_grad_(wants_dx)
        y = operand
        for layer in [layers] if layers is model else layers:
            y = layer(y)
        model.zero_grad()
        if y.requires_grad:
            y.backward(dy)
        found.append([y.detach(), operand.grad, *(p.grad for p in model.parameters())])
    assert called == [("linear_relu", "linear_relu", "linear")]
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_only_what_a_gradient_needs_is_kept():
    model, saved = network(6, 5, 7, 4, 3), []
    for layer in [*model][:5]:
        layer.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        model(normal(9, 6))
    assert [shape for shape in saved if shape[0] == 9] == [(9, 6), (9, 4)], "x, and what the last layer takes"


def test_a_chain_has_gradients_of_gradients():
    model = network(3, 4, 2).double()
    x = normal(5, 3).double().requires_grad_()
    names, parameters = ("linear_relu", "linear"), [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(lambda x, *p: functional.chain(names, x, [*p]), (x, *parameters))
    assert torch.autograd.gradgradcheck(lambda x, *p: functional.chain(names, x, [*p]), (x, *parameters))
    rows = torch.autograd.functional.jacobian(lambda x: functional.chain(names, x, parameters), x, vectorize=True)
    expected = torch.autograd.functional.jacobian(model, x)
    np.testing.assert_allclose(rows.numpy(), expected.numpy(), rtol=1e-12, atol=1e-14)


def test_a_chain_is_called_layer_by_layer_where_somebody_looks(monkeypatch):
    model, x = network(6, 5, 7, 3), normal(4, 6).requires_grad_()
    expected, called, seen = model(x).detach(), chains(monkeypatch), []
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype is torch.bfloat16
    handle = model[2].register_forward_hook(lambda *_: seen.append("hook"))
    np.testing.assert_array_equal(model(x).detach(), expected)
    handle.remove()
    with torch.overrides.BaseTorchFunctionMode():
        model(x)
    torch.func.vmap(model)(x)
    np.testing.assert_array_equal(torch.func.functional_call(model, {"4.bias": torch.ones(3)}, (x,)).detach().shape, (4, 3))
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    model(x)
    handle.remove()
    assert seen == ["hook"]
    assert called == [("linear_relu", "linear_relu", "linear")]
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 6\)"):
        model(normal(4, 5))
    with pytest.raises(TypeError, match="the type of x"):
        model(x.double())


def test_a_change_between_the_passes_is_told():
    model = network(6, 5, 3)
    y = model(normal(4, 6))
    with torch.no_grad():
        model[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_chain_can_be_copied_stored_sliced_and_scripted(tmp_path):
    model, x = network(6, 5, 7, 3), normal(4, 6)
    expected = model(x).detach()
    torch.save(model, tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(model)
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model", weights_only=False), model[:], scripted):
        np.testing.assert_array_equal(other(x).detach(), expected)
    np.testing.assert_array_equal(torch.fx.symbolic_trace(model)(x).detach(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_rows_of_any_steps_go_to_the_loops_or_the_general_way_with_the_same_bits(dtype):
    weight, bias = normal(7, 5).to(dtype), normal(7).to(dtype)
    wide = normal(8, 10).to(dtype)
    memory = bytearray(1 + 20 * wide.itemsize)
    unaligned = torch.frombuffer(memory, dtype=dtype, offset=1).view(4, 5).copy_(wide[4:, :5])
    for x in (
        wide[:4, :5],
        wide[::2, ::2],
        wide[:4, :5].t().contiguous().t(),
        wide[0, :5],
        wide[:, :5].reshape(2, 4, 5),
        unaligned,
    ):
        x = x.detach().requires_grad_()
        y = ft.linear_relu(x, weight, bias)
        expected = ft.linear_relu(x.detach().contiguous().reshape(-1, 5), weight, bias)
        np.testing.assert_array_equal(y.detach().float().reshape(-1, 7), expected.float())
        dy = torch.ones(1, dtype=dtype).expand(y.shape)
        y.backward(dy)
        copied = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        ft.linear_relu(copied, weight, bias).backward(dy.contiguous())
        np.testing.assert_array_equal(x.grad.float(), copied.grad.float())
