"""`fastrelu.torch`: values, types, shapes, faults, threads and processes."""

import multiprocessing
import os
import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from tests.subprocesses import call

torch = pytest.importorskip("torch")
functional = torch.nn.functional

import fastrelu.torch as ft  # noqa: E402  # it needs PyTorch
from fastrelu.native import pool  # noqa: E402
from fastrelu.torch import memory  # noqa: E402

PEERS = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
}
# x, weight, bias: a batch, no batch, several axes, no rows, no inputs, no outputs, work for several threads.
SHAPES = [((5, 7), 3), ((7,), 3), ((2, 3, 7), 4), ((0, 7), 3), ((5, 0), 3), ((5, 7), 0), ((130, 200), 150)]


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PEERS)
def test_activation_has_the_bits_of_numpys_and_the_values_of_pytorchs(name):
    x = normal(50, 40)
    y = getattr(ft, name)(x)
    assert_array_equal(y.numpy(), getattr(fastrelu, name)(x.numpy()))
    torch.testing.assert_close(y, PEERS[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PEERS)
def test_fused_layer_has_the_bits_of_numpys_and_the_values_of_pytorchs(name):
    x, weight, bias = normal(9, 20), normal(6, 20, seed=1), normal(6, seed=2)
    y = getattr(ft, f"linear_{name}")(x, weight, bias)
    assert_array_equal(y.numpy(), getattr(fastrelu, f"linear_{name}")(x.numpy(), weight.numpy().T, bias.numpy()))
    torch.testing.assert_close(y, PEERS[name](functional.linear(x, weight, bias)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "out"), SHAPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_shapes_and_gradients_are_those_of_pytorch(shape, out, has_bias):
    operands = normal(*shape), normal(out, shape[-1], seed=1), normal(out, seed=2) if has_bias else None
    results = []
    for function in (ft.linear_relu, lambda *o: torch.relu(functional.linear(*o))):
        given = [None if o is None else o.clone().requires_grad_() for o in operands]
        y = function(*given)
        y.backward(normal(*y.shape, seed=3))
        results.append([y.detach(), *(o.grad for o in given if o is not None)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32(dtype):
    x, weight, bias = (t.to(dtype).requires_grad_() for t in (normal(8, 300), normal(5, 300, seed=1), normal(5, seed=2)))
    y = ft.linear_relu(x, weight, bias)
    y.backward(torch.ones_like(y))
    exact = torch.relu(functional.linear(x.double(), weight.double(), bias.double()))
    assert y.dtype is weight.grad.dtype is x.grad.dtype is dtype
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)
    torch.testing.assert_close(ft.relu(x), torch.relu(x), rtol=0, atol=0)


def test_strides_of_tensors_need_no_copy_and_change_no_bit():
    x, weight = normal(8, 12), normal(6, 12, seed=1)
    expected = ft.linear_relu(x, weight)
    across = x.t().contiguous().t()
    assert not across.is_contiguous()
    spread = torch.zeros(8, 24)[:, ::2].copy_(x)
    for other in (across, spread, x[None].expand(3, 8, 12)[1]):
        torch.testing.assert_close(ft.linear_relu(other, weight), expected, rtol=0, atol=0)
    torch.testing.assert_close(ft.linear_relu(x, weight.t().contiguous().t()), expected, rtol=0, atol=0)
    assert ft.relu(across).stride() == across.stride() == torch.relu(across).stride()


def test_signs_that_the_memory_does_not_have_yet():
    x = torch.tensor([1 + 2j, 1 - 3j]).conj().imag
    assert x.is_neg()
    assert ft.relu(x).tolist() == [0.0, 3.0]
    assert ft.linear(x, torch.tensor([[1.0, 1.0]])).tolist() == [1.0]


def test_values_at_the_edges():
    x = torch.tensor([float("nan"), -0.0, float("inf"), -float("inf"), 1e-45])
    y = ft.relu(x)
    assert_array_equal(y.numpy(), fastrelu.relu(x.numpy()))
    assert not torch.signbit(y[1])
    assert ft.relu(torch.tensor(-1.0)).shape == ()
    assert ft.relu(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("shape", [(), (6,), (4, 6), (2, 6, 3, 5)])
@pytest.mark.parametrize("count", [1, 6])
def test_prelu_has_a_slope_for_each_channel(shape, count):
    if shape in ((), (6,)) and count == 6:
        pytest.skip("PyTorch has no channels there")
    x, alpha = normal(*shape), torch.linspace(-0.5, 0.5, count)
    results = []
    for function in (ft.prelu, functional.prelu):
        given = x.clone().requires_grad_(), alpha.clone().requires_grad_()
        y = function(*given)
        y.backward(torch.ones_like(y))
        results.append((y.detach(), *(g.grad for g in given)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


X, W, B = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)


@pytest.mark.parametrize(
    ("function", "operands", "kind", "message"),
    [
        (ft.relu, (np.ones(3),), TypeError, "relu: x must be a tensor, not ndarray"),
        (
            ft.relu,
            (torch.ones(3, dtype=torch.int64),),
            TypeError,
            "relu: x must be float16, bfloat16, float32 or float64, not int64",
        ),
        (ft.tanh, (torch.ones(3, dtype=torch.complex64),), TypeError, "tanh: x must be float16, .* not complex64"),
        (ft.relu, (torch.eye(3).to_sparse(),), TypeError, "relu: x must be a dense tensor, not one of layout torch.sparse_coo"),
        (ft.elu, (X, -1.0), ValueError, "elu: alpha must be at least 0, not -1.0"),
        (ft.leaky_relu, (X, "a"), TypeError, "leaky_relu: alpha must be a number, not str"),
        (
            ft.prelu,
            (X, torch.ones(2)),
            ValueError,
            r"prelu: alpha must have 1 or 3 values for x of shape \(2, 3\), not shape \(2,\)",
        ),
        (ft.linear_relu, (X, None), TypeError, "linear_relu: weight must be a tensor, not NoneType"),
        (ft.linear_relu, (X, W.double()), TypeError, "linear_relu: weight must have the type of x, float32, not float64"),
        (ft.linear_relu, (X, W, B.half()), TypeError, "linear_relu: bias must have the type of x, float32, not float16"),
        (ft.linear, (X.long(), W.long()), TypeError, "linear: x must be float16, .* not int64"),
        (ft.linear, (X, W[0]), ValueError, r"linear: weight must have shape \(out, in\), not \(3,\)"),
        (
            ft.linear,
            (X.t(), W),
            ValueError,
            r"linear: x must have shape \(\.\.\., 3\) for weight of shape \(4, 3\), not \(3, 2\)",
        ),
        (ft.linear, (X[0, 0], W), ValueError, r"linear: x must have shape \(\.\.\., 3\)"),
        (ft.linear, (X, W, B[:1]), ValueError, r"linear: bias must have shape \(4,\) for weight of shape \(4, 3\), not \(1,\)"),
        (ft.linear, (X, W.to("meta")), ValueError, "linear: weight must be on the device of x, cpu, not on meta"),
    ],
)
def test_faults_name_the_argument_and_what_is_allowed(function, operands, kind, message):
    with pytest.raises(kind, match=message):
        function(*operands)


def test_tensors_without_memory_have_shapes_only():
    y = ft.linear_relu(X.to("meta"), W.to("meta"), B.to("meta"))
    assert y.device.type == "meta"
    assert y.shape == (2, 4)
    assert ft.elu(X.to("meta")).shape == (2, 3)


def test_autocast_casts_what_pytorch_casts():
    weight = W.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, theirs = ft.linear_relu(X, weight, B), torch.relu(functional.linear(X, weight, B))
        assert y.dtype is theirs.dtype is torch.bfloat16
        assert ft.relu(X).dtype is torch.relu(X).dtype is torch.float32
        assert ft.prelu(y, B).dtype is functional.prelu(theirs, B).dtype is torch.bfloat16
        assert ft.linear(X.double(), W.double()).dtype is torch.float64
        # What a layer before has cast beside a weight that is kept as it is.
        assert ft.linear_relu(X.bfloat16(), weight).dtype is torch.bfloat16
    y.float().sum().backward()
    assert weight.grad.dtype is torch.float32


def test_memory_of_results_is_used_again_when_nobody_sees_it():
    x, weight = torch.ones(256, 300), torch.eye(300)  # large enough to be kept
    first = ft.linear(x, weight)
    place, seen = first.data_ptr(), first[1:]
    assert place % 64 == 0
    del first
    second = ft.linear(x, 2 * weight)
    assert second.data_ptr() != place
    assert (seen == 1).all(), "a view was overwritten"
    as_array = seen.numpy()
    del seen
    assert ft.linear(x, weight).data_ptr() not in (place, second.data_ptr())
    assert (as_array == 1).all()
    del as_array
    assert place in [result.data_ptr() for result in [ft.linear(x, weight) for _ in range(3)]]
    del second
    fastrelu.release_memory()
    assert sum(map(len, memory._blocks.values())) <= 1


def test_memory_is_not_kept_without_end(monkeypatch):
    monkeypatch.setattr(memory, "MOST", 1 << 20)
    fastrelu.release_memory()
    results = [ft.linear(torch.ones(256, 300), torch.ones(300 + i, 300)) for i in range(8)]
    assert memory._kept() <= 1 << 20
    assert all((result == 300).all() for result in results)


def large():
    """Work for several threads."""
    return normal(256, 512), normal(512, 512, seed=1)


def test_bits_do_not_depend_on_whose_threads_work():
    x, weight = large()
    dy = normal(256, 512, seed=2)
    expected = fastrelu.linear_relu(x.numpy(), weight.numpy().T)
    gradients = fastrelu.linear_relu_backward(dy.numpy(), expected, x.numpy(), weight.numpy().T)
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3, before):
            torch.set_num_threads(count)
            for ours in (1, 2, 4):
                with fastrelu.num_threads(ours):
                    operands = x.clone().requires_grad_(), weight.clone().requires_grad_()
                    y = ft.linear_relu(*operands)
                    y.backward(dy)
                    assert_array_equal(y.detach().numpy(), expected)
                    assert_array_equal(operands[0].grad.numpy(), gradients[0])
                    assert_array_equal(operands[1].grad.numpy(), gradients[1].T)
    finally:
        torch.set_num_threads(before)


def test_subnormal_numbers_are_kept_on_threads_that_flush_them():
    x, weight = torch.full((256, 512), 2.0**-75), torch.full((512, 512), 2.0**-74)
    if not torch.set_flush_denormal(True):
        pytest.skip("PyTorch cannot flush them here")
    try:
        torch.ones(1 << 20).add(1)  # on all threads
        y = ft.linear(x, weight)
        torch.set_flush_denormal(False)
        assert (y == 512 * 2.0**-149).all()
    finally:
        torch.set_flush_denormal(False)


def work_on_pytorchs_threads():
    torch.set_num_threads(3)
    with fastrelu.num_threads(3):
        x, weight = large()
        ft.linear_relu(x, weight)
        assert pool.read(pool.FORK_JOIN) != 0
        assert pool.read(pool.STARTED) == 0, "workers of the pool were started"
        fastrelu.linear_relu(x.numpy(), weight.numpy().T)
        assert pool.read(pool.STARTED) == 2, "a call without tensors went to PyTorch's threads"


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="PyTorch has threads of another kind")
def test_work_goes_to_pytorchs_threads_for_calls_with_tensors_alone():
    call(work_on_pytorchs_threads)


def count_threads():
    torch.set_num_threads(1)
    with fastrelu.num_threads(4):
        before = threading.active_count(), len(os.listdir("/proc/self/task"))
        ft.linear_relu(*large())
        assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == before


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads cannot be counted here")
def test_one_thread_is_one_thread():
    call(count_threads)


def fork_after_use():
    torch.set_num_threads(2)
    with fastrelu.num_threads(2):
        x, weight = large()
        expected = ft.linear_relu(x, weight).numpy()
        fork = multiprocessing.get_context("fork")
        for _ in range(2):
            child = fork.Process(target=check_in_child, args=(x, weight, expected))
            child.start()
            child.join()
            assert child.exitcode == 0
        child = fork.Process(target=calculate_alone, args=(x, weight, expected))
        child.start()
        child.join()
        assert child.exitcode == 0


def calculate_alone(x, weight, expected):
    """On two threads that are not PyTorch's, in whose place nobody is."""
    assert_array_equal(ft.linear_relu(x, weight).numpy(), expected)
    assert pool.read(pool.STARTED) == 1


def check_in_child(x, weight, expected):
    torch.set_num_threads(1)  # as the workers of a DataLoader do: PyTorch's own functions would hang
    given = weight.clone().requires_grad_()
    y = ft.linear_relu(x, given)
    assert_array_equal(y.detach().numpy(), expected)
    y.backward(y.detach())
    assert given.grad.isfinite().all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_children_calculate_with_workers_of_their_own():
    call(fork_after_use, timeout=60)


def test_many_threads_call_at_once():
    x, weight = large()
    expected = fastrelu.linear_relu(x.numpy(), weight.numpy().T)
    wrong = []

    def work():
        for _ in range(20):
            if not np.array_equal(ft.linear_relu(x, weight).numpy(), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):  # beside calls without tensors
        assert_array_equal(fastrelu.linear_relu(x.numpy(), weight.numpy().T), expected)
    for thread in threads:
        thread.join()
    assert not wrong
