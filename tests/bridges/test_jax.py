"""`fastrelu.jax`: the bits of the NumPy functions, under every transformation of JAX."""

import threading

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fastrelu
import fastrelu.jax as fj
from tests.subprocesses import call, run

M, K, N = 19, 300, 21  # k beyond one block of a sum; no size fills a vector
_rng = np.random.default_rng(8)
X, W, B, DY = (_rng.standard_normal(shape, dtype=np.float32) for shape in ((M, K), (K, N), (N,), (M, N)))
SMALL = tuple(_rng.standard_normal(shape, dtype=np.float32) for shape in ((6, 5), (5, 3), (3,)))
EDGES = np.array([-np.inf, -1.5, -1e-40, -0.0, 0.0, 1e-40, 2.5, np.inf, np.nan], np.float32)

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
}


def bits(a):
    a = np.asarray(a)
    return a.view(f"u{a.dtype.itemsize}")


def reference_prelu(x, alpha):
    return jnp.where(x > 0, x, alpha * x)


def reference_elu(x, alpha):
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0)))


def assert_close(actual, desired):
    """Everything in two trees, within 1e-4 of the largest value of each array."""
    for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert a.shape == d.shape
        assert_allclose(a, d, rtol=1e-4, atol=1e-4 * max(1, float(np.abs(d).max(initial=0))))


# The bits of the NumPy functions.


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_and_gradient_have_the_bits_of_numpy(name):
    y = getattr(fastrelu, name)(EDGES)
    assert_array_equal(bits(getattr(fj, name)(EDGES)), bits(y))
    traced, vjp = jax.vjp(getattr(fj, name), EDGES)
    assert_array_equal(bits(traced), bits(y))
    dy = np.linspace(1, 2, len(EDGES), dtype=np.float32)
    # A NaN that is calculated is only promised to be one.
    assert_array_equal(vjp(jnp.asarray(dy))[0], getattr(fastrelu, f"{name}_backward")(dy, y))


@pytest.mark.parametrize("transformed", [lambda f: f, jax.jit, jax.checkpoint])
def test_layer_and_gradients_have_the_bits_of_numpy(transformed):
    y, vjp = jax.vjp(transformed(fj.linear_relu), X, W, B)
    assert_array_equal(bits(y), bits(fastrelu.linear_relu(X, W, B)))
    gradients = fastrelu.linear_relu_backward(DY, np.asarray(y), X, W)
    for actual, desired in zip(vjp(jnp.asarray(DY)), gradients, strict=True):
        assert_array_equal(bits(actual), bits(desired))


@pytest.mark.parametrize(
    "name", ["linear", "linear_leaky_relu", "linear_elu", "linear_sigmoid", "linear_tanh", "linear_softplus"]
)
@pytest.mark.nightly
def test_other_layers_have_the_bits_of_numpy(name):
    y, vjp = jax.vjp(getattr(fj, name), X, W, B)
    assert_array_equal(bits(y), bits(getattr(fastrelu, name)(X, W, B)))
    operands = (DY, X, W) if name == "linear" else (DY, np.asarray(y), X, W)
    for actual, desired in zip(vjp(jnp.asarray(DY)), getattr(fastrelu, f"{name}_backward")(*operands), strict=True):
        assert_array_equal(bits(actual), bits(desired))


def test_one_fused_call_makes_all_wanted_gradients():
    def loss(w, b):
        return (fj.linear_relu(X, w, b) * DY).sum()

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(W, B))
    assert "name=linear_relu_backward_only_dw_db" in text
    assert text.count("fastrelu[") == 2  # forward and backward; dx, which nobody wants, is not calculated


def test_batch_axes_are_rows_of_one_sum():
    x, dy = X[:18].reshape(3, 6, K), DY[:18].reshape(3, 6, N)
    y, vjp = jax.vjp(fj.linear_relu, x, W, B)
    gradients = fastrelu.linear_relu_backward(dy, np.asarray(y), x, W)
    for actual, desired in zip(vjp(jnp.asarray(dy)), gradients, strict=True):
        assert_array_equal(bits(actual), bits(desired))


def test_gradient_of_prelu_is_summed_in_our_order():
    x, alpha, dy = X, np.linspace(-1, 1, K, dtype=np.float32), X[::-1]
    _, vjp = jax.vjp(fj.prelu, x, alpha)
    for actual, desired in zip(vjp(jnp.asarray(dy)), fastrelu.prelu_backward(dy, x, alpha), strict=True):
        assert_array_equal(bits(actual), bits(desired))


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.nightly)])
def test_halves(dtype):
    x, w, b = (np.asarray(jnp.asarray(a, dtype)) for a in (X, W, B))
    y, vjp = jax.vjp(fj.linear_relu, x, w, b)
    assert y.dtype == dtype
    assert_array_equal(bits(y), bits(fastrelu.linear_relu(x, w, b)))
    for actual, desired in zip(vjp(y), fastrelu.linear_relu_backward(y, np.asarray(y), x, w), strict=True):
        assert_array_equal(bits(actual), bits(desired))
    # A float32 alpha stays as it is, and does not widen the data.
    alpha = np.full(K, 0.3, np.float32)
    y, vjp = jax.vjp(fj.prelu, x, alpha)
    assert_array_equal(bits(y), bits(fastrelu.prelu(x, alpha)))
    dx, dalpha = fastrelu.prelu_backward(x, x, alpha)
    assert_array_equal(bits(vjp(jnp.asarray(x))[0]), bits(dx))
    assert_array_equal(bits(vjp(jnp.asarray(x))[1]), bits(dalpha))


def test_float64():
    with jax.enable_x64(True):
        x, w, b = (a.astype(np.float64) for a in (X, W, B))
        assert_array_equal(bits(fj.linear_relu(x, w, b)), bits(fastrelu.linear_relu(x, w, b)))
        assert fj.linear_relu(X, w, B).dtype == np.float64


def test_subnormal_numbers_are_kept_inside_a_program_that_flushes_them():
    tiny = np.full((4, 4), 1e-40, np.float32)
    assert_array_equal(jax.jit(lambda x: fj.linear_relu(fj.tanh(x), np.eye(4, dtype=np.float32)))(tiny), tiny)


# Derivatives of any order, beside those of plain JAX.


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_three_derivatives_of_activations(name):
    def derivatives(f):
        def once(f):
            return jax.grad(lambda x: (f(x) * jnp.cos(x)).sum())

        first = once(f)
        return jax.jit(lambda x: (jax.jacfwd(f)(x), first(x), once(first)(x), once(once(first))(x)))(SMALL[2])

    assert_close(derivatives(getattr(fj, name)), derivatives(ACTIVATIONS[name]))


@pytest.mark.parametrize("alpha", [0.2, -0.3, np.float32([0.5, -0.5, 2.0])], ids=["known", "negative", "array"])
@pytest.mark.parametrize(("name", "theirs"), [("prelu", reference_prelu), ("elu", reference_elu)])
def test_derivatives_with_respect_to_alpha(name, theirs, alpha):
    def derivatives(f):
        def loss(b, alpha):
            return jnp.sin(f(b, alpha)).sum()

        known = jax.jit(lambda x, b: (f(x, alpha), jax.grad(lambda b: loss(b, alpha))(b)))
        traced = jax.jit(lambda b, alpha: (jax.grad(loss, (0, 1))(b, alpha), jax.hessian(loss, (0, 1))(b, alpha)))
        return known(SMALL[0][:, :3], SMALL[2]), traced(SMALL[2], alpha)

    assert_close(derivatives(getattr(fj, name)), derivatives(theirs))


@pytest.mark.parametrize("alpha", [0.2, -0.3], ids=["known", "negative"])
def test_layer_with_alpha(alpha):
    def derivatives(f):
        known = jax.jit(jax.grad(lambda x, w, b: jnp.sin(f(x, w, b, alpha)).sum(), (0, 1, 2)))(*SMALL)
        return known, jax.jit(jax.grad(lambda *operands: jnp.sin(f(*operands)).sum(), (0, 1, 2, 3)))(*SMALL, alpha)

    theirs = derivatives(lambda x, w, b, alpha: reference_prelu(x @ w + b, alpha))
    assert_close(derivatives(fj.linear_leaky_relu), theirs)
    assert_close(derivatives(fj.linear_prelu), theirs)


@pytest.mark.parametrize(("name", "activation"), [("linear_relu", jax.nn.relu), ("linear_sigmoid", jax.nn.sigmoid)])
def test_jacobians_and_hessian_of_layers(name, activation):
    def derivatives(f):
        def loss(*operands):
            return (f(*operands) ** 2).sum()

        every = (0, 1, 2)
        functions = jax.jacrev(f, every), jax.jacfwd(f, every), jax.hessian(loss, every)
        return jax.jit(lambda *operands: [function(*operands) for function in functions])(*SMALL)

    assert_close(derivatives(getattr(fj, name)), derivatives(lambda x, w, b: activation(x @ w + b)))


def test_forward_mode_and_linear_transpose():
    tangents = tuple(2 - a for a in SMALL)
    ours = jax.jvp(fj.linear_relu, SMALL, tangents)  # and without jit
    assert_close(ours, jax.jvp(lambda x, w, b: jax.nn.relu(x @ w + b), SMALL, tangents))
    x, w, _ = SMALL
    (dw,) = jax.linear_transpose(lambda w: fj.linear(x, w), w)(np.ones((6, 3), np.float32))
    assert_close(dw, x.T @ np.ones((6, 3), np.float32))


@pytest.mark.parametrize("axes", [(0, None, None), (0, 0, 0), (None, 0, None), (None, None, 0), (0, None, 0)])
def test_vmap(axes):
    operands = [np.stack([a, 1 - a, 2 * a]) if axis == 0 else a for a, axis in zip(SMALL, axes, strict=True)]

    def values(f):
        mapped = jax.vmap(f, axes)
        loss = jax.grad(lambda *a: (mapped(*a) ** 2).sum(), (0, 1, 2))
        each = jax.vmap(jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2)), axes)
        return jax.jit(lambda *a: (mapped(*a), loss(*a), each(*a), jax.jvp(mapped, a, a)[1]))(*operands)

    assert_close(values(fj.linear_relu), values(lambda x, w, b: jax.nn.relu(x @ w + b)))


def over_weights_inside(x, w, b):
    return jax.vmap(lambda x: jax.vmap(fj.linear_relu, (None, 0, None))(x, w, b))(x)


def broadcast_weights(x, w, b):
    return fj.linear_relu(x[:, None], w, b)


@pytest.mark.parametrize("layers", [over_weights_inside, broadcast_weights])
def test_rows_of_several_weights_are_products_whatever_axis_comes_first(layers):
    x, w, b = SMALL[0], np.stack([SMALL[1], -SMALL[1]]), SMALL[2]
    assert_array_equal(bits(layers(x, w, b)), bits(fastrelu.linear_relu(x, w[:, None], b).swapaxes(0, 1)))

    def loss(x, w, b):
        return (layers(x, w, b) ** 2).sum()

    # The largest is dx for each weight. A gradient of w for each row would have 3 times the elements.
    program = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, w, b)
    assert max(variable.aval.size for equation in program.eqns for variable in equation.outvars) == 2 * x.size
    theirs = jax.grad(lambda x, w, b: (jax.nn.relu(x @ w + b) ** 2).sum(), (0, 1, 2))
    assert_close(jax.jit(jax.grad(loss, (0, 1, 2)))(x, w, b), theirs(x, w, b))


def test_vmap_of_the_last_axis_and_of_alpha():
    x, alpha = SMALL[0], np.float32([0.1, 0.2, -0.3, 0.4, 0.5])
    assert_array_equal(jax.vmap(fj.prelu, (1, 0), 1)(x, alpha), fastrelu.prelu(x, alpha))
    assert_array_equal(jax.vmap(fj.relu, 1, 1)(x), fastrelu.relu(x))


# Programs.


def forward(params, x, layer=fj.linear_relu, last=fj.linear):
    for w, b in params[:-1]:
        x = layer(x, w, b)
    return last(x, *params[-1])


def test_training_step_on_a_tree_of_parameters():
    params = [(SMALL[1], SMALL[2]), (SMALL[1][:3], SMALL[2])]

    def step(params, layer, last):
        def loss(params):
            return (forward(params, SMALL[0], layer, last) ** 2).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    ours = jax.jit(lambda p: step(p, fj.linear_relu, fj.linear), donate_argnums=0)(jax.tree.map(jnp.array, params))
    assert_close(ours, step(params, lambda x, w, b: jax.nn.relu(x @ w + b), lambda x, w, b: x @ w + b))


def test_scan_over_layers():
    w = np.stack([SMALL[1] @ SMALL[1].T] * 3) / 4

    def loss(w, layer):
        return jax.lax.scan(lambda h, w: (layer(h, w), None), SMALL[0], w)[0].sum()

    ours = jax.jit(jax.grad(lambda w: loss(w, jax.checkpoint(fj.linear_relu))))(w)
    assert_close(ours, jax.grad(lambda w: loss(w, lambda h, w: jax.nn.relu(h @ w)))(w))


def test_without_jit():
    desired = jax.grad(lambda w: fj.linear_relu(X, w, B).sum())(W)
    with jax.disable_jit():
        assert_array_equal(fj.linear_relu(X, W, B), fastrelu.linear_relu(X, W, B))
        assert_array_equal(jax.grad(lambda w: fj.linear_relu(X, w, B).sum())(W), desired)
        assert_array_equal(jax.vmap(fj.relu)(X), fastrelu.relu(X))


def test_donated_buffer():
    given = jnp.array(X)
    assert_array_equal(jax.jit(fj.relu, donate_argnums=0)(given), fastrelu.relu(X))
    assert given.is_deleted()


def test_sharding_on_one_device():
    mesh = Mesh(np.array(jax.devices()[:1]), ("batch",))
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("batch")))
    desired = fastrelu.linear_relu(X, W, B)
    assert_array_equal(jax.jit(fj.linear_relu)(x, W, B), desired)
    assert_array_equal(jax.pmap(fj.linear_relu, in_axes=(0, None, None))(X[None], W, B)[0], desired)


def test_calls_from_many_threads_at_once():
    x = np.tile(X, (20, 1))
    desired, program, wrong = fastrelu.linear_relu(x, W, B), jax.jit(fj.linear_relu), []

    def work():
        for _ in range(20):
            if not np.array_equal(program(x, W, B), desired):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_number_of_threads_changes_no_bit():
    x, results = np.tile(X, (20, 1)), []
    for count in (1, 2, 5):
        with fastrelu.num_threads(count):
            results.append(jax.grad(lambda w: fj.linear_relu(x, w, B).sum())(W))
    assert_array_equal(bits(results[0]), bits(results[1]))
    assert_array_equal(bits(results[0]), bits(results[2]))


def sharded():
    """What a process with four devices checks."""
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    rows, whole = PartitionSpec("batch"), PartitionSpec()

    def over_shards(x, w, b):
        return jax.lax.psum((fj.linear_relu(x, w, b) ** 2).sum(), "batch")

    def reference(x, w, b):
        return (jax.nn.relu(x @ w + b) ** 2).sum()

    x, w, b = np.tile(SMALL[0], (2, 1)), *SMALL[1:]
    desired = jax.jit(jax.grad(reference, (0, 1, 2)))(x, w, b)
    ours = jax.shard_map(over_shards, mesh=mesh, in_specs=(rows, whole, whole), out_specs=whole)
    assert_close(jax.jit(jax.grad(ours, (0, 1, 2)))(x, w, b), desired)
    with pytest.raises(ValueError, match="replicat"):  # what differs from shard to shard is not one array
        jax.jit(jax.shard_map(fj.relu, mesh=mesh, in_specs=rows, out_specs=whole))(x)
    for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
        on_four = jax.device_put(x, NamedSharding(jax.make_mesh((4,), ("batch",), axis_types=(kind,)), rows))
        assert_array_equal(bits(jax.jit(fj.linear_relu)(on_four, w, b)), bits(fastrelu.linear_relu(x, w, b)))
        assert_close(jax.jit(jax.grad(lambda w, x=on_four: (fj.linear_relu(x, w, b) ** 2).sum()))(w), desired[1])


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="JAX before 0.6 refuses a primitive in shard_map that checks")
def test_shards_on_four_devices():
    call(sharded, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4"})


def exported(function, *shapes):
    checks = [export.DisabledSafetyCheck.custom_call("fastrelu")]
    types = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return export.export(jax.jit(function), disabled_checks=checks)(*types).serialize()


def test_program_of_another_process_for_batches_of_any_length(tmp_path):
    def gradients(x, w, b):
        return fj.linear_relu(x, w, b), *jax.grad(lambda *operands: fj.linear_relu(*operands).sum(), (0, 1, 2))(x, w, b)

    shape = export.symbolic_shape(f"batch, {K}")
    (tmp_path / "program").write_bytes(exported(gradients, shape, W.shape, B.shape))
    y = fastrelu.linear_relu(X, W, B)
    np.savez(tmp_path / "data", X, W, B, y, *fastrelu.linear_relu_backward(np.ones_like(y), y, X, W))
    run(f"""
import numpy as np
from jax import export
from fastrelu.jax import register
register()
data = [*np.load({str(tmp_path / "data.npz")!r}).values()]
with open({str(tmp_path / "program")!r}, "rb") as file:
    program = export.deserialize(bytearray(file.read()))
for actual, desired in zip(program.call(*data[:3]), data[3:], strict=True):
    np.testing.assert_array_equal(actual, desired)
""")


def test_symbols_that_do_not_fit_are_named():
    batch, k, n = export.symbolic_shape("batch, k, n")
    with pytest.raises(
        ValueError, match=r"^linear_relu: w must have shape \(..., k, n\) for x of shape \(batch, k\), not \(n, k\)"
    ):
        exported(fj.linear_relu, (batch, k), (n, k))


def test_process_ends_while_programs_run():
    code = """
import numpy as np
import jax
from fastrelu.jax import linear_relu
x = np.ones((1000, 1000), np.float32)
program = jax.jit(lambda x, w: linear_relu(linear_relu(x, w), w))
program(x, x)
y = x
for _ in range(10):
    y = program(y, x)
"""
    run(code, timeout=60)


def test_process_ends_while_a_program_of_another_process_starts(tmp_path):
    (tmp_path / "program").write_bytes(exported(lambda x: fj.linear_sigmoid(x, x, x[0]), (1500, 1500)))
    code = f"""
import jax, jax.numpy as jnp
from jax import export
from fastrelu.jax import register
register()
x = jnp.ones((1500, 1500))
with open({str(tmp_path / "program")!r}, "rb") as file:
    program = jax.jit(export.deserialize(bytearray(file.read())).call).lower(x).compile()
program(x @ x @ x @ x)
"""
    run(code, timeout=60)


def test_program_for_another_version():
    result = jax.ShapeDtypeStruct((3,), np.float32)
    with pytest.raises(Exception, match="fastrelu: this version has no operation that a compiled program asks for"):
        jax.ffi.ffi_call("fastrelu", result)(SMALL[2], operation=np.int64(1))


# What goes in.


@pytest.mark.parametrize("x", [2, -1.5, np.float32(3), np.int8([-1, 2])])
def test_types_are_those_of_jax(x):
    ours, theirs = fj.relu(x), jnp.maximum(x, 0)
    assert (ours.dtype, ours.weak_type) == (theirs.dtype, theirs.weak_type)
    assert_array_equal(ours, theirs)
    ours, theirs = fj.tanh(x), jnp.tanh(x)
    assert (ours.dtype, ours.weak_type) == (theirs.dtype, theirs.weak_type)
    assert_allclose(ours, theirs, rtol=1e-6)


def test_mixed_types():
    assert fj.linear_relu(np.int32(SMALL[0]), SMALL[1], 1 * SMALL[2]).dtype == np.float32
    assert fj.linear_relu(jnp.asarray(SMALL[0], jnp.bfloat16), *SMALL[1:]).dtype == np.float32
    assert fj.leaky_relu(jnp.arange(-2, 2)).dtype == np.float32


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty(shape):
    x, w = np.zeros(shape, np.float32), np.ones((shape[1], 3), np.float32)
    assert_array_equal(fj.linear_relu(x, w, SMALL[2]), fastrelu.linear_relu(x, w, SMALL[2]))
    assert_array_equal(jax.grad(lambda w: fj.linear_relu(x, w, SMALL[2]).sum())(w), np.zeros_like(w))
    assert fj.relu(x).shape == shape


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fj.relu([1.0]), TypeError, "relu: x must be an array or a number, not list"),
        (lambda: fj.relu(True), TypeError, "relu: x must be an array or a number, not bool"),
        (lambda: fj.relu(X > 0), TypeError, "relu: x must be an integer type, float16, bfloat16, float32 or float64, not bool"),
        (lambda: fj.prelu(X, B), ValueError, "prelu: alpha must broadcast with x of shape (19, 300), not have shape (21,)"),
        (
            lambda: fj.linear_relu(X, fastrelu.pack(W)),
            TypeError,
            "linear_relu: w must be an array or a number, not PackedWeight",
        ),
        (
            lambda: jax.jit(fj.linear_relu)(X, W.T, B),
            ValueError,
            "linear_relu: w must have shape (..., 300, n) for x of shape (19, 300), not (21, 300); w.T would fit",
        ),
        (
            lambda: fj.relu(jnp.ones((1,) * 33)),
            ValueError,
            "relu: x must have at most 32 axes, not 33",
        ),
        (
            lambda: jax.eval_shape(jax.vmap(fj.relu), jnp.ones((1,) * 33)),
            ValueError,
            "fastrelu.jax: relu is for arrays of at most 32 axes, those of vmap included, not 33",
        ),
        (
            lambda: jax.grad(lambda b: fj.linear_relu(X, W, b).sum())(B[:3]),
            ValueError,
            "linear_relu: b must have shape (..., 21) for w of shape (300, 21), not (3,)",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


def test_other_platforms_are_refused():
    with pytest.raises(NotImplementedError, match=r"^fastrelu.jax: relu runs on the CPU only, not on cuda: put the arrays on"):
        jax.jit(fj.relu).trace(X).lower(lowering_platforms=("cuda",))


def test_without_jax_one_sentence_tells_what_to_do():
    code = """
import sys
sys.modules["jax"] = None
try:
    import fastrelu.jax
except ImportError as error:
    print(error)
"""
    assert run(code) == "fastrelu.jax needs JAX 0.5 or newer: pip install 'fastrelu[jax]'\n"
