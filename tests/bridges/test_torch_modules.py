"""`LinearReLU` and `replace_linear_relu`: models that are trained, copied, saved, compiled and changed as before."""

import copy
import io
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import fastrelu.torch as ft  # noqa: E402
from fastrelu.torch import Linear, LinearReLU, replace_linear_relu  # noqa: E402


def mlp(*sizes):
    torch.manual_seed(0)
    layers = []
    for a, b in zip(sizes, sizes[1:]):  # noqa: B905, RUF007  # as one writes it
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def kinds(model):
    return [type(m) for m in model.modules() if not [*m.children()]]


def is_equal(model, other, *shape, tolerance=1e-5):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), other(x), rtol=tolerance, atol=tolerance)


def test_pairs_become_one_and_everything_else_stays():
    model = mlp(6, 5, 4, 3)
    other = copy.deepcopy(model)
    parameters = [*other.parameters()]
    assert replace_linear_relu(other) is other
    assert kinds(other) == [LinearReLU, nn.Identity, LinearReLU, nn.Identity, nn.Linear]
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))
    assert [*model.state_dict()] == [*other.state_dict()]
    other.load_state_dict(model.state_dict())
    is_equal(model, other, 7, 6)
    before = kinds(other)
    assert kinds(replace_linear_relu(other)) == before, "a second time"


def test_every_linear_on_request():
    model = replace_linear_relu(mlp(6, 5, 3), every_linear=True)
    assert kinds(model) == [LinearReLU, nn.Identity, Linear]
    is_equal(mlp(6, 5, 3), model, 7, 6)
    assert type(replace_linear_relu(nn.Linear(3, 2), every_linear=True)) is nn.Linear, "which the caller holds"
    shared = nn.Linear(3, 3)
    pair = replace_linear_relu(nn.ModuleList([shared, shared]), every_linear=True)
    assert type(pair[0]) is Linear
    assert pair[0] is pair[1]


def test_nested_and_shared_layers():
    shared = nn.Linear(5, 5)
    inner = nn.Sequential(shared, nn.ReLU(inplace=True), shared)
    model = nn.ModuleDict({"a": nn.Sequential(inner, nn.Sequential(shared, nn.ReLU())), "b": inner})
    other = replace_linear_relu(copy.deepcopy(model))
    layers = other["a"][0]
    assert [type(layer) for layer in layers] == [LinearReLU, nn.Identity, nn.Linear]
    assert other["a"][1][0] is layers[0]
    assert layers[0].weight is layers[2].weight
    assert [*model.state_dict()] == [*other.state_dict()]
    is_equal(model["a"], other["a"], 3, 5)
    # What one of them gets, both have.
    layers[2].weight = nn.Parameter(torch.zeros(5, 5))
    assert layers[0].weight is layers[2].weight
    assert len([*other.parameters()]) == 2


def _hooked(register):
    model = mlp(4, 3, 2)
    getattr(model[register[0]], register[1])(lambda *_: None)
    return model


@pytest.mark.parametrize(
    "register",
    [
        (0, "register_forward_hook"),
        (0, "register_forward_pre_hook"),
        (1, "register_forward_hook"),
        (0, "register_full_backward_hook"),
    ],
)
def test_layers_with_hooks_stay(register):
    model = _hooked(register)
    assert kinds(replace_linear_relu(model)) == [nn.Linear, nn.ReLU, nn.Linear]


def test_layers_that_are_no_plain_linear_stay():
    class Own(nn.Linear):
        pass

    normed = nn.Linear(3, 3)
    nn.utils.parametrizations.weight_norm(normed)
    replaced = nn.Linear(3, 3)
    replaced.forward = lambda x: x
    special = nn.Linear(3, 3)
    special.weight = nn.Parameter(torch.ones(3, 3).as_subclass(type("Special", (torch.Tensor,), {})))
    meta, of_complex = nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, dtype=torch.complex64)
    for layer in (Own(3, 3), normed, replaced, special, meta, of_complex):
        assert type(replace_linear_relu(nn.Sequential(layer, nn.ReLU()))[1]) is nn.ReLU
    assert kinds(replace_linear_relu(nn.Sequential(nn.Linear(3, 3), nn.ReLU6()))) == [nn.Linear, nn.ReLU6]


class Block(nn.Module):
    """Forward code, with one Linear whose output goes elsewhere as well."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.drop = nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5)
        self.second, self.act2 = nn.Linear(5, 5), nn.ReLU()
        self.third, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = self.drop(self.act(self.first(x)))
        z = self.second(x)
        return self.last(torch.relu(self.third(self.act2(z) + z)))


def test_models_with_forward_code():
    torch.manual_seed(0)
    model = Block().eval()
    other = replace_linear_relu(copy.deepcopy(model))
    assert type(other) is Block
    assert type(other.first) is LinearReLU
    assert type(other.act) is nn.Identity
    assert type(other.second) is type(other.third) is nn.Linear
    assert type(other.act2) is nn.ReLU
    assert [*model.state_dict()] == [*other.state_dict()]
    assert not any(m.training for m in other.modules())
    is_equal(model, other, 3, 6)


class Depends(nn.Module):
    """Forward code that cannot be traced, or whose pair is one while it trains only."""

    def __init__(self, on):
        super().__init__()
        self.on, self.linear, self.act = on, nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        z = self.linear(x)
        if self.training if self.on == "training" else x.sum() > 0:
            return self.act(z)
        return z


@pytest.mark.parametrize("on", ["training", "values"])
def test_models_with_other_paths_stay(on):
    model = replace_linear_relu(Depends(on))
    assert kinds(model) == [nn.Linear, nn.ReLU]
    assert model.training


def model_with(forward):
    torch.manual_seed(0)
    model = type("Model", (nn.Module,), {"forward": forward})()
    model.a, model.b, model.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()
    model.alias, model.held = model.a, (model.a, model.act)
    model.register_buffer("switch", torch.zeros(()))
    return model


def ends_early(self, x, mask=None):
    z = self.a(x)
    return z if mask is None else self.act(z) * mask


def ends_late(self, x, mask=None):
    z = self.act(self.a(x))
    return z if mask is None else z * mask


@pytest.mark.parametrize(
    ("forward", "count"),
    [
        pytest.param(lambda self, x: self.act(self.b(self.act(self.a(x)))), 2, id="one ReLU behind two layers"),
        pytest.param(lambda self, x: self.act(self.b(x) + self.act(self.a(x))), 0, id="a ReLU elsewhere as well"),
        pytest.param(lambda self, x: self.act(self.a(self.act(self.a(x)))), 1, id="the same pair twice"),
        pytest.param(lambda self, x: self.a(self.act(self.a(x))), 0, id="a layer elsewhere as well"),
        pytest.param(lambda self, x: self.act(self.alias(x)), 1, id="a second name"),
        pytest.param(lambda self, x: self.act(self.held[0](x)), 0, id="a layer held in a tuple"),
        pytest.param(lambda self, x: self.held[1](self.a(x)), 0, id="a ReLU held in a tuple"),
        pytest.param(lambda self, x: self.act(self.a(x)) + self.a.forward(x), 0, id="forward called by itself"),
        pytest.param(lambda self, x: self.act(self.a(x)) if self.training else x, 1, id="while it trains only"),
        pytest.param(lambda self, x: self.a(x) if self.switch else self.act(self.a(x)), 0, id="a buffer decides"),
        pytest.param(ends_early, 0, id="an argument decides"),
        pytest.param(ends_late, 1, id="an argument that decides nothing"),
    ],
)
def test_pairs_in_forward_code(forward, count):
    model = model_with(forward)
    other = replace_linear_relu(copy.deepcopy(model))
    assert [type(m) for m in other.modules()].count(LinearReLU) == count
    assert [*model.state_dict()] == [*other.state_dict()]
    x = torch.randn(5, 4)
    for training in (True, False):
        for more in ((), (torch.ones(4),)) if forward in (ends_early, ends_late) else ((),):
            torch.testing.assert_close(model.train(training)(x, *more), other.train(training)(x, *more))


def test_parts_of_models_that_cannot_be_traced():
    class Parts(nn.ModuleList):
        def forward(self, x):
            for part in self:
                x = part(x if x.sum() > 0 else -x)
            return x

    class Sequence(nn.Sequential):
        pass

    torch.manual_seed(0)
    model = Parts([model_with(ends_late), nn.Sequential(model_with(ends_late)), Sequence(nn.Linear(4, 4), nn.ReLU())])
    other = replace_linear_relu(copy.deepcopy(model))
    assert type(other[0].a) is type(other[1][0].a) is type(other[2][0]) is LinearReLU
    is_equal(model, other, 3, 4)
    assert type(replace_linear_relu(copy.deepcopy(model[1]))[0].a) is LinearReLU


def test_looking_at_a_model_leaves_no_trace():
    def forward(self, x):
        self.switch += 1
        self.seen = x
        return self.act(self.a(x)) + torch.ones(4)

    model = model_with(forward)
    before = {*vars(model)}
    model.train = None  # a mode may change more than a flag
    replace_linear_relu(model)
    assert type(model.a) is LinearReLU
    assert {*vars(model)} - {"train"} == before
    assert model.switch == 0
    assert model.training


def test_containers_with_hooks_and_forwards_of_their_own_stay():
    model, seen = model_with(lambda self, x: self.act(self.inner(x))), []
    model.inner = nn.Sequential(nn.Linear(4, 4))
    hook = model.inner.register_forward_hook(lambda module, x, z: seen.append(z))
    assert type(replace_linear_relu(model).inner[0]) is nn.Linear
    hook.remove()
    model.forward = lambda x: model.inner(x)
    assert type(replace_linear_relu(model).inner[0]) is nn.Linear
    del model.forward
    assert type(replace_linear_relu(model).inner[0]) is LinearReLU


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"replace_linear_relu: model must be a torch\.nn\.Module, not list"):
        replace_linear_relu([nn.Linear(2, 2)])


def test_models_are_copied_saved_and_converted():
    model = replace_linear_relu(mlp(6, 5, 3))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert type(other[0]) is LinearReLU
        assert other[0].weight is not model[0].weight
        is_equal(model, other, 4, 6, tolerance=0)
    for dtype in (torch.float64, torch.bfloat16):
        assert copy.deepcopy(model).to(dtype)(torch.ones(2, 6, dtype=dtype)).dtype is dtype
    assert model.eval()[0].training is False
    assert repr(model[0]) == "LinearReLU(in_features=6, out_features=5, bias=True)"
    assert LinearReLU(6, 5, bias=False)(torch.ones(2, 6)).shape == (2, 5)


def test_compiled_and_scripted_models():
    model, x = replace_linear_relu(mlp(6, 5, 3), every_linear=True), torch.ones(2, 6)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))
    with warnings.catch_warnings():  # both are deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        traced, scripted = torch.jit.trace(model, x), torch.jit.script(model)
    assert torch.equal(traced(x), model(x))
    assert torch.equal(scripted(x), model(x))


def test_training_follows_pytorchs():
    """The same losses within the rounding of float32, over steps of Adam."""
    losses = []
    for change in (lambda m: m, replace_linear_relu, lambda m: replace_linear_relu(m, every_linear=True)):
        model = change(mlp(20, 16, 12, 4))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        x, labels = torch.randn(64, 20, generator=torch.Generator().manual_seed(2)), torch.arange(64) % 4
        steps = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(steps)
    assert losses[0][-1] < 0.5 * losses[0][0]
    for other in losses[1:]:
        torch.testing.assert_close(losses[0], other, rtol=1e-3, atol=1e-4)


def test_gradients_of_a_layer_are_its_own_memory():
    """Not copied once more on their way to the parameter: torch takes over what nobody else holds."""
    layer = LinearReLU(300, 200)
    from fastrelu.torch import kernels

    made, kernel = [], kernels.KERNELS["linear_relu_backward"]

    def spy(*operands):
        found = kernel(*operands)
        made.append(found[1].data_ptr())
        return found

    kernels.KERNELS["linear_relu_backward"] = spy
    try:
        layer(torch.ones(4, 300)).sum().backward()
    finally:
        kernels.KERNELS["linear_relu_backward"] = kernel
    assert layer.weight.grad.data_ptr() == made[0]
    assert layer.weight.grad.is_contiguous()


def test_functions_and_modules_agree():
    layer, x = LinearReLU(6, 5), torch.ones(2, 6)
    assert torch.equal(layer(x), ft.linear_relu(x, layer.weight, layer.bias))
