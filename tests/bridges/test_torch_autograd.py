"""Gradients of `fastrelu.torch`, of first and higher order, and its functions under PyTorch's compilers and transforms."""

import pytest

torch = pytest.importorskip("torch")
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.library import opcheck  # noqa: E402

import fastrelu.torch as ft  # noqa: E402

functional = torch.nn.functional
PEERS = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
}
ALPHA = {"leaky_relu": (0.01,), "elu": (1.0,)}


def normal(*shape, seed=0, dtype=torch.float32, requires_grad=False):
    made = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_(requires_grad)


def operands(dtype=torch.float32, requires_grad=True):
    given = {"dtype": dtype, "requires_grad": requires_grad}
    return normal(4, 5, **given), normal(3, 5, seed=1, **given), normal(3, seed=2, **given)


@pytest.mark.parametrize("name", PEERS)
def test_gradients_of_activations(name):
    x = normal(4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(getattr(ft, name), (x,))
    assert gradgradcheck(getattr(ft, name), (x,))


def test_gradients_of_prelu():
    x = normal(4, 5, dtype=torch.float64, requires_grad=True)
    for alpha in (torch.linspace(-0.5, 0.5, 5), torch.tensor(-0.25)):
        slopes = alpha.double().requires_grad_()
        assert gradcheck(ft.prelu, (x, slopes))
        assert gradgradcheck(ft.prelu, (x, slopes))


@pytest.mark.parametrize("name", ["linear", "linear_relu"])
def test_gradients_of_layers(name):
    function, (x, weight, bias) = getattr(ft, name), operands(torch.float64)
    for given in ((x, weight, bias), (x, weight), (x, weight.detach()), (x[0], weight), (x.reshape(2, 2, 5), weight, bias)):
        assert gradcheck(function, given)
        assert gradgradcheck(function, given)
    assert gradcheck(lambda bias: function(x.detach(), weight.detach(), bias), (bias,))
    assert gradgradcheck(lambda bias: function(x.detach(), weight.detach(), bias), (bias,))
    assert gradgradcheck(lambda weight: function(x.detach(), weight), (weight,))


@pytest.mark.nightly  # a kernel each for float64
@pytest.mark.parametrize("name", PEERS)
def test_gradients_of_all_layers(name):
    assert gradcheck(getattr(ft, f"linear_{name}"), operands(torch.float64))
    assert gradgradcheck(getattr(ft, f"linear_{name}"), operands(torch.float64))


@pytest.mark.parametrize("name", PEERS)
def test_first_and_second_gradients_of_layers_are_pytorchs(name):
    def both(function):
        given = operands()
        y = function(*given)
        first = torch.autograd.grad(y, given, torch.ones_like(y), create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in first), given[:2])
        return *first, *second

    ours = both(getattr(ft, f"linear_{name}"))
    theirs = both(lambda x, weight, bias: PEERS[name](functional.linear(x, weight, bias)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradients_have_the_same_bits_with_and_without_a_graph():
    x, weight, bias = operands()
    y = ft.linear_relu(x, weight, bias)
    plain = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y), retain_graph=True)
    graph = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y), create_graph=True)
    for a, b in zip(plain, graph, strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
        assert b.requires_grad or b is graph[2]


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)])
def test_only_wanted_gradients_are_calculated(wanted, monkeypatch):
    from fastrelu.torch import kernels

    asked, kernel = [], kernels.KERNELS["linear_relu_backward"]

    def spy(*operands):
        asked.append(tuple(operands[4]))
        return kernel(*operands)

    monkeypatch.setitem(kernels.KERNELS, "linear_relu_backward", spy)
    given = [o.requires_grad_(want) for o, want in zip(operands(requires_grad=False), wanted, strict=True)]
    ft.linear_relu(*given).sum().backward()
    assert asked == [wanted]
    assert [o.grad is not None for o in given] == [*wanted]


def test_no_graph_where_none_is_wanted():
    x, weight, bias = operands()
    with torch.no_grad():
        assert not ft.linear_relu(x, weight, bias).requires_grad
        assert not ft.relu(x).requires_grad
    assert not ft.linear_relu(x.detach(), weight.detach()).requires_grad
    with torch.inference_mode():
        assert ft.linear_relu(x, weight, bias).is_inference()


def test_results_that_were_overwritten_are_noticed():
    x, weight, bias = operands()
    y = ft.linear_relu(x, weight, bias)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_are_added_to_those_that_are_there():
    x, weight, bias = operands()
    ft.linear_relu(x, weight, bias).sum().backward()
    once = weight.grad.clone()
    ft.linear_relu(x, weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * once)


@pytest.mark.parametrize("name", PEERS)
def test_operators_keep_their_promises(name):
    x, weight, bias = operands()
    alpha = ALPHA.get(name, ())
    y = getattr(ft, name)(x).detach().requires_grad_()
    opcheck(getattr(torch.ops.fastrelu, name).default, (x, *alpha))
    opcheck(getattr(torch.ops.fastrelu, f"{name}_backward").default, (normal(4, 5, seed=3), y, *alpha))
    opcheck(getattr(torch.ops.fastrelu, f"linear_{name}").default, (x, weight, bias, *alpha))


def test_other_operators_keep_their_promises():
    x, weight, bias = operands()
    dy = normal(4, 3, seed=3, requires_grad=True)
    opcheck(torch.ops.fastrelu.prelu.default, (x, normal(5, seed=4, requires_grad=True)))
    opcheck(torch.ops.fastrelu.prelu_backward.default, (normal(4, 5, seed=3), x, normal(5, seed=4)))
    opcheck(torch.ops.fastrelu.linear.default, (x, weight, None))
    y = ft.linear_relu(x, weight, bias).detach()
    opcheck(torch.ops.fastrelu.linear_relu_backward.default, (dy, y, x, weight, [True, True, True]))
    opcheck(torch.ops.fastrelu.linear_backward.default, (dy, None, x, None, [False, True, False]))


def test_strides_of_gradients_are_those_that_compilers_expect():
    """Those of x, also where the gradient that comes back has others."""
    across = normal(2, 3, 4, 5).to(memory_format=torch.channels_last)
    opcheck(torch.ops.fastrelu.prelu_backward.default, (normal(2, 3, 4, 5, seed=1), across, normal(3, seed=2)))
    opcheck(torch.ops.fastrelu.relu_backward.default, (across, normal(2, 3, 4, 5, seed=1)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_functions_have_the_same_bits(backend):
    def loss(x, weight, bias):
        return ft.linear_relu(ft.elu(x), weight, bias).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    for rows in (4, 6):  # the second time with sizes that are not known
        results = []
        for function in (loss, compiled):
            _, weight, bias = operands()
            x = normal(rows, 5, requires_grad=True)
            value = function(x, weight, bias)
            value.backward()
            results.append((value, x.grad, weight.grad, bias.grad))
        assert all(map(torch.equal, *results))


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("transform", ["grad", "jacfwd"])
def test_compilers_leave_transforms_alone(transform):
    x, weight, _ = operands(requires_grad=False)

    def transformed(weight):
        return getattr(torch.func, transform)(lambda w: ft.linear_relu(x, w).sum())(weight)

    expected = transformed(weight)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(transformed, backend="aot_eager")(weight), expected)


def test_export_and_tracing_keep_operators():
    model, x = torch.nn.Sequential(ft.LinearReLU(5, 3), torch.nn.Linear(3, 2)), normal(4, 5)
    expected = model(x)
    exported = torch.export.export(model, (x,))
    assert "fastrelu.linear_relu" in exported.graph_module.code
    assert torch.equal(exported.module()(x), expected)
    symbolic = torch.fx.symbolic_trace(model)
    assert "linear_relu" in symbolic.code
    assert torch.equal(symbolic(x), expected)
    made = torch.fx.experimental.proxy_tensor.make_fx(model)(x)
    assert "fastrelu.linear_relu" in made.code
    assert torch.equal(made(x), expected)


def test_functional_transforms_compose():
    from torch.func import functional_call, grad, jacrev, vmap

    x, weight, bias = operands(requires_grad=False)
    rows = normal(7, 4, 5, seed=5)

    def loss(weight, x):
        return ft.linear_elu(x, weight, bias).square().sum()

    def peer(weight, x):
        return functional.elu(functional.linear(x, weight, bias)).square().sum()

    def agree(transform):
        torch.testing.assert_close(transform(loss), transform(peer), rtol=1e-4, atol=1e-4)

    agree(lambda f: grad(f)(weight, x))
    agree(lambda f: jacrev(jacrev(f))(weight, x))
    agree(lambda f: vmap(f, (None, 0))(weight, rows))
    agree(lambda f: vmap(grad(f), (None, 0))(weight, rows))  # a gradient for each example
    agree(lambda f: vmap(f, (2, None))(torch.stack([weight] * 4, 2), x))  # an ensemble
    agree(lambda f: vmap(vmap(f, (None, 0)), (0, None))(torch.stack([weight] * 2), rows))
    agree(lambda f: grad(lambda w: vmap(f, (None, 0))(w, rows).sum())(weight))
    for name, function in PEERS.items():
        ours, theirs = (
            vmap(grad(lambda t, f=name: getattr(ft, f)(t).sum()))(rows),
            vmap(grad(lambda t, f=function: f(t).sum()))(rows),
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    alpha = torch.linspace(0, 1, 5)
    torch.testing.assert_close(
        vmap(ft.prelu, (0, None))(rows, alpha), functional.prelu(rows.flatten(0, 1), alpha).view_as(rows)
    )
    layer = ft.LinearReLU(5, 3)
    state = dict(layer.named_parameters())
    gradients = grad(lambda s: functional_call(layer, s, (x,)).sum())(state)
    layer(x).sum().backward()
    assert torch.equal(gradients["weight"], layer.weight.grad)


# PyTorch's own rules for forward mode are scripts.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", PEERS)
def test_forward_mode_agrees_in_every_order(name):
    from torch.func import hessian, jacfwd, jvp

    given, x = operands(requires_grad=False), normal(4, 5, seed=6)
    ours = getattr(ft, name), getattr(ft, f"linear_{name}")
    theirs = PEERS[name], lambda x, weight, bias: PEERS[name](functional.linear(x, weight, bias))

    def transforms(activation, layer):
        yield jvp(activation, (x,), (given[0],))
        yield hessian(lambda x: activation(x).square().sum())(x)
        yield jacfwd(jacfwd(lambda x: activation(x).square().sum()))(x)
        yield jvp(layer, given, (x, given[1] + 1, given[2] + 1))
        yield jacfwd(layer, (0, 1, 2))(*given)
        for argument in range(3):
            yield hessian(lambda *given: layer(*given).square().sum(), argument)(*given)

    for a, b in zip(transforms(*ours), transforms(*theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_forward_mode_of_prelu_and_linear():
    from torch.func import hessian, jacfwd

    x, alpha, weight = normal(2, 3, 4), torch.tensor([0.1, -0.2, 0.3]), normal(3, 4, seed=1)
    for transform in (jacfwd, hessian):
        for argument in (0, 1):
            ours, theirs = (
                transform(lambda *given, f=f: f(*given).square().sum(), argument)(x, alpha)
                for f in (ft.prelu, functional.prelu)
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(jacfwd(lambda w: ft.linear(x, w))(weight), jacfwd(lambda w: functional.linear(x, w))(weight))


def test_ensembles_without_members():
    from torch.func import grad, vmap

    x, weights = normal(4, 5), torch.empty(0, 3, 5)
    assert vmap(lambda w: ft.linear_relu(x, w))(weights).shape == (0, 4, 3)
    assert vmap(grad(lambda w: ft.linear_relu(x, w).sum()))(weights).shape == (0, 3, 5)


@pytest.mark.parametrize("name", ["relu", "linear_relu", "prelu"])
def test_tangents_of_dual_tensors_and_batches_of_gradients(name):
    from torch.autograd import forward_ad
    from torch.autograd.functional import jacobian

    x, weight, bias = operands(requires_grad=False)
    alpha = torch.tensor([0.25])
    ours, theirs = {
        "relu": (ft.relu, torch.relu),
        "prelu": (lambda x: ft.prelu(x, alpha), lambda x: functional.prelu(x, alpha)),
        "linear_relu": (
            lambda x: ft.linear_relu(x, weight, bias),
            lambda x: torch.relu(functional.linear(x, weight, bias)),
        ),
    }[name]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, normal(4, 5, seed=7))
        a, b = (forward_ad.unpack_dual(function(dual)).tangent for function in (ours, theirs))
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(jacobian(ours, x, vectorize=True), jacobian(theirs, x))
