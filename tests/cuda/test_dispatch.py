"""From the public functions to a device and back: which way a call takes, and with what."""

import sys
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.cuda import dispatch
from fastrelu.cuda.owned import OwnedArray
from fastrelu.faults import CUDA
from fastrelu.operations import BACKWARD, LAYERS, OPERATIONS

X = np.array([[-1.0, 2.0], [3.0, -4.0]], np.float32)


class Calls(list[tuple[Any, ...]]):
    """What the modules behind the dispatch were called with; they return `result`."""

    result: Any = "done"

    def call(self, *arguments: Any) -> Any:
        self.append(arguments)
        return self.result(*arguments) if callable(self.result) else self.result


@pytest.fixture
def calls(device: Any, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stands in for the operations on a device."""
    monkeypatch.setattr(dispatch, "_module", lambda name: sys.modules[f"fastrelu.cuda.{name}"])
    made = Calls()
    for name in ("elementwise", "linear", "gradients", "convolution", "convolution_gradients"):
        module: Any = ModuleType(name)
        module.call = made.call
        monkeypatch.setitem(sys.modules, f"fastrelu.cuda.{name}", module)
    module = ModuleType("prelu_backward")
    module.call = lambda *operands: made.call("prelu_backward", operands, None, {})
    monkeypatch.setitem(sys.modules, "fastrelu.cuda.prelu_backward", module)
    return made


# Arrays on a device.


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name in fastrelu.__all__])
def test_elementwise(name: str, calls: Calls, device: Any) -> None:
    operation = OPERATIONS[name]
    given = tuple(device.array(X) for _ in operation.inputs)
    assert getattr(fastrelu, name)(*given) == "done"
    ((called, operands, out, kwargs),) = calls
    assert (called, operands, out, kwargs) == (name, given, None, {})


def test_elementwise_with_numbers_and_an_output(calls: Calls, device: Any) -> None:
    x, y = device.array(X), device.array(X)
    for out in (y, (y,)):
        fastrelu.leaky_relu(x, out=out)
        assert calls.pop() == ("leaky_relu", (x, 0.01), y, {})
    fastrelu.relu(x, out=...)
    assert calls.pop() == ("relu", (x,), None, {})
    fastrelu.elu(x, np.float32(0.5), where=y, dtype="f4")
    assert calls.pop() == ("elu", (x, np.float32(0.5)), None, {"where": y, "dtype": "f4"})
    with pytest.raises(ValueError, match=r"^relu: out must be an array or a tuple of one, not a tuple of 2$"):
        fastrelu.relu(x, out=(y, y))


@pytest.mark.parametrize("name", sorted({layer.base for layer in LAYERS.values()}))
def test_layer(name: str, calls: Calls, device: Any) -> None:
    x, w, b, alpha, y, mask = (device.array(X) for _ in range(6))
    kind = LAYERS[name].alpha
    if kind == "(n)":
        getattr(fastrelu, name)(x, w, b, alpha, precision="high")
        getattr(fastrelu, name)(x, w, b, 0.5)
        assert [call[4] for call in calls] == [alpha, 0.5]
    else:
        getattr(fastrelu, name)(x, w, b, precision="high")
        getattr(fastrelu, name)(x, w, out=y)
        default = {"": None, "()": 1.0 if "elu" in name and "leaky" not in name else 0.01}[kind]
        assert calls[1] == (name, x, w, None, default, y, None, {})
        assert calls[0][4] == default
    assert calls[0][:4] == (name, x, w, b)
    assert calls[0][7] == {"precision": "high"}
    if name == "linear_relu":
        fastrelu.linear_relu(x, w, mask=mask)
        assert calls.pop()[5:7] == (None, mask)


@pytest.mark.parametrize("name", BACKWARD)
def test_backward(name: str, calls: Calls, device: Any) -> None:
    calls.result = (1, 2, 3)
    dy, y, x, w, dw = (device.array(X) for _ in range(5))
    layer = BACKWARD[name]
    alpha = {"alpha": 0.25} if layer.alpha else {}
    given = (dy, y) if layer.formula else (dy,)
    names = {"dy": dy, "y": y} if layer.formula else {"dy": dy}
    assert getattr(fastrelu, name)(*given, x, w, **alpha, precision="medium") == (1, 2, 3)
    everything = names | {"x": x, "w": w} | alpha
    assert calls.pop() == (name, everything, ("dx", "dw", "db"), (), {}, {"precision": "medium"})
    getattr(fastrelu, name)(*given, x, None, **alpha, wanted=("dw",), accumulate=["dw"], out=(None, dw, None))
    assert calls.pop() == (name, names | {"x": x} | alpha, ("dw",), ("dw",), {"dw": dw}, {})


CONVOLUTIONS = sorted(name for name in CUDA if name.startswith("conv2d"))


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if not name.endswith("backward")])
def test_convolution(name: str, calls: Calls, device: Any) -> None:
    x, w, b, alpha, y = (device.array(X) for _ in range(5))
    slopes = (alpha,) if name == "conv2d_prelu" else ()
    getattr(fastrelu, name)(x, w, b, *slopes, 2, "valid", out=y)
    default = {"conv2d_prelu": alpha, "conv2d_elu": 1.0, "conv2d_leaky_relu": 0.01}.get(name)
    everything = {"x": x, "w": w, "b": b, "alpha": default}
    assert calls.pop() == (name, everything, (2, "valid", 1, 1), y)
    getattr(fastrelu, name)(x, w, None, *slopes, groups=3)
    assert calls.pop() == (name, everything | {"b": None}, (1, 0, 1, 3), None)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name.endswith("backward")])
def test_convolution_backward(name: str, calls: Calls, device: Any) -> None:
    calls.result = (1, 2, 3)
    dy, y, x, w, dw = (device.array(X) for _ in range(5))
    names = {"dy": dy} if name == "conv2d_backward" else {"dy": dy, "y": y}
    default = {"conv2d_elu_backward": 1.0, "conv2d_leaky_relu_backward": 0.01}.get(name)
    assert getattr(fastrelu, name)(*names.values(), x, w, dilation=2) == (1, 2, 3)
    everything = names | {"x": x, "w": w, "alpha": default}
    assert calls.pop() == (name, everything, (1, 0, 2, 1), ("dx", "dw", "db"), (), {})
    getattr(fastrelu, name)(*names.values(), x, w, wanted=("dw",), accumulate=["dw"], out=(None, dw, None))
    assert calls.pop() == (name, everything, (1, 0, 1, 1), ("dw",), ("dw",), {"dw": dw})
    getattr(fastrelu, name)(*names.values(), None, None, wanted=["db"])
    assert calls.pop()[1] == names | {"alpha": default}


def test_parameter_of_a_convolution(calls: Calls, device: Any) -> None:
    x = device.array(X)
    fastrelu.conv2d_elu(x, x, alpha=x)
    assert calls.pop()[1]["alpha"] is x
    with pytest.raises(TypeError, match=r"^conv2d_elu: alpha must be a number, not str$"):
        fastrelu.conv2d_elu(x, x, alpha="a")  # type: ignore[arg-type]


def test_backward_is_not_remembered_as_plain(calls: Calls, device: Any) -> None:
    calls.result = (1, 2, 3)
    dy = device.array(X)
    for _ in range(2):
        assert fastrelu.linear_backward(dy, dy, dy) == (1, 2, 3)
    dx, _, _ = fastrelu.linear_backward(X, X, X)
    assert_array_equal(dx, X @ X.T)


def test_precision(calls: Calls, device: Any) -> None:
    x = device.array(X)
    for precision, passed in (("highest", {}), ("high", {"precision": "high"}), ("medium", {"precision": "medium"})):
        fastrelu.linear(x, x, precision=precision)
        assert calls.pop()[7] == passed
    with pytest.raises(ValueError, match=r"^linear: precision must be one of .*'medium'\), not 'low'$"):
        fastrelu.linear(x, x, precision="low")


def test_errors_of_a_device_are_not_explained_away(calls: Calls, device: Any) -> None:
    x = device.array(X)
    for error in (TypeError("of its own"), ValueError("of its own"), ValueError("relu: of its own")):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        calls.result = fail
        for call in (
            lambda: fastrelu.relu(x),
            lambda: fastrelu.linear_relu(x, x),
            lambda: fastrelu.linear_backward(x, x, x),
        ):
            with pytest.raises(type(error)) as caught:
                call()
            assert caught.value is error


def test_array_of_the_host_among_those_of_a_device(device: Any) -> None:
    x = device.array(X)
    for call, words in (
        (lambda: fastrelu.relu_backward(x, X), r"relu_backward: y is on the host \(numpy\.ndarray\), and dy on CUDA device 0"),
        (lambda: fastrelu.relu_backward(X, x), r"relu_backward: dy is on the host \(numpy\.ndarray\), and y on CUDA device 0"),
        (lambda: fastrelu.relu(x, out=X), r"relu: out is on the host \(numpy\.ndarray\), and x on CUDA device 0"),
        (lambda: fastrelu.relu(X, out=x), "relu: out is on a CUDA device; it must be a NumPy array"),
        (lambda: fastrelu.conv2d(x, X), r"conv2d: w is on the host \(numpy\.ndarray\), and x on CUDA device 0"),
        (
            lambda: fastrelu.conv2d(X[None, None], X[None, None], out=x),
            "conv2d: out is on a CUDA device; it must be a NumPy array",
        ),
        (lambda: fastrelu.conv2d(X, X, x), "conv2d: b is on a CUDA device; it must be a NumPy array"),
        (lambda: fastrelu.conv2d_relu_backward(x, X, x, x), r"conv2d_relu_backward: y is on the host"),
        (lambda: fastrelu.conv2d_backward(X, x, X), r"conv2d_backward: x is on a CUDA device; it must be a NumPy array"),
    ):
        with pytest.raises(TypeError, match=f"^{words}"):
            call()


def test_packed_weight_beside_an_array_on_a_device(device: Any) -> None:
    x = device.array(X)
    with pytest.raises(TypeError, match=r"^linear_relu: w is packed for the CPU, and x \(DeviceArray\) is on a CUDA device"):
        fastrelu.linear_relu(x, fastrelu.pack(X))
    with pytest.raises(TypeError, match=r"^linear_relu_backward: w is packed for the CPU, and dy"):
        fastrelu.linear_relu_backward(x, x, x, fastrelu.pack(X))


@pytest.mark.parametrize("name", ["max_pool2d", "embedding_mean", "softmax_cross_entropy", "pack"])
def test_function_without_kernels_for_gpus(name: str, device: Any) -> None:
    assert name not in CUDA
    x = device.array(X)
    operands = [x] if name in ("max_pool2d", "pack") else [x, x]
    with pytest.raises(TypeError, match=rf"^{name}: \w+ is on a CUDA device.*: {name} has no kernels for GPUs"):
        getattr(fastrelu, name)(*operands, **({"kernel_size": 2} if name == "max_pool2d" else {}))


def test_device_cpu_beside_an_array_on_a_device(device: Any) -> None:
    with pytest.raises(ValueError, match=r"^relu: device is 'cpu', and operands are on a CUDA device"):
        fastrelu.relu(device.array(X), device="cpu")


# NumPy arrays.


def doubled(name: str, operands: tuple[Any, ...], out: Any, kwargs: Any) -> Any:
    """What stands in for an operation: twice its first operand."""
    x = operands[0]
    result = OwnedArray(x.shape, x.dtype, x.device, 1) if out is None else out
    host = x.copy_to_host() * 2
    from fastrelu.cuda import launch

    launch.active().copy_to_device(0, result.pointer, np.ascontiguousarray(host).ctypes.data, result.nbytes, 1)
    return result


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32, ">f4"])
def test_numpy_array_there_and_back(calls: Calls, dtype: Any) -> None:
    calls.result = doubled
    x = X.astype(dtype)
    y = fastrelu.relu(x, device="cuda")
    assert type(y) is np.ndarray
    assert y.dtype == x.dtype.newbyteorder("=")
    assert_array_equal(y.astype(np.float32), 2 * X)
    ((_, (sent,), _, kwargs),) = calls
    assert type(sent) is OwnedArray
    assert kwargs == {}


@pytest.mark.parametrize(
    "x",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(24.0).reshape(4, 6)[::-2, ::3],
        np.broadcast_to(np.arange(3.0), (2, 3)),
        np.zeros((0, 3)),
        np.arange(9, dtype=np.uint8)[1:].view(np.float32) * 0 + 5,
        [[1.0, 2.0], [3.0, 4.0]],
    ],
    ids=["fortran", "transposed", "strided", "broadcast", "empty", "unaligned", "list"],
)
def test_every_layout_is_sent(calls: Calls, x: Any) -> None:
    calls.result = doubled
    assert_array_equal(fastrelu.relu(x, device="cuda:0"), 2 * np.asarray(x))
    if np.asarray(x).flags.f_contiguous and np.size(x):
        (_, (sent,), _, _) = calls[0]
        assert sent.strides == x.strides


def test_output_of_the_host(calls: Calls) -> None:
    calls.result = doubled
    out = np.empty((4, 2), np.float32)[::2]
    assert fastrelu.relu(X, out=out, device="cuda") is out
    assert_array_equal(out, 2 * X)
    frozen = np.empty_like(X)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"^relu: out is read-only, and must be writable$"):
        fastrelu.relu(X, out=frozen, device="cuda")
    with pytest.raises(TypeError, match=r"^relu: out must be an array, not list$"):
        fastrelu.relu(X, out=[1.0], device="cuda")


def test_operand_that_cannot_be_sent(calls: Calls) -> None:
    with pytest.raises(TypeError, match=r"^relu: x must be an integer type, .* not complex128$"):
        fastrelu.relu(np.zeros(2, complex), device="cuda")
    with pytest.raises(TypeError, match=r"^relu: device='cuda' takes NumPy arrays, lists and numbers, not MaskedArray$"):
        fastrelu.relu(np.ma.array(X), device="cuda")
    with pytest.raises(RuntimeError, match=r"^relu: cuda:7 cannot be used: there are 1 devices$"):
        fastrelu.relu(X, device="cuda:7")


def test_number_stays_on_the_host(calls: Calls) -> None:
    assert fastrelu.relu(-1.5, device="cuda") == 0
    with fastrelu.use("cuda"):
        assert fastrelu.relu(np.float32(2.5)) == 2.5
    assert not calls


def test_use(calls: Calls) -> None:
    calls.result = doubled
    assert_array_equal(fastrelu.relu(X), np.maximum(X, 0))
    with fastrelu.use("cuda"):
        assert_array_equal(fastrelu.relu(X), 2 * X)
        assert_array_equal(fastrelu.relu(X, device="cpu"), np.maximum(X, 0))
        with fastrelu.use("cpu"):
            assert_array_equal(fastrelu.relu(X), np.maximum(X, 0))
        assert_array_equal(fastrelu.relu(X), 2 * X)
    assert_array_equal(fastrelu.relu(X), np.maximum(X, 0))
    assert len(calls) == 2


def test_use_reaches_every_function(calls: Calls) -> None:
    fastrelu.linear_backward(X, X, X)  # it has been called on the CPU before
    with fastrelu.use("cuda"):
        for name in sorted(CUDA & {*fastrelu.__all__}):
            calls.result = (1, 2, 3) if name in BACKWARD else "done"
            if name in CONVOLUTIONS:
                is_short = name == "conv2d_backward" or not ("prelu" in name or "backward" in name)
                getattr(fastrelu, name)(*[X] * (3 if is_short else 4))
                assert calls.pop()[0] == name
                continue
            n = (
                len(OPERATIONS[name].inputs)
                if name in OPERATIONS
                else 4
                if LAYERS.get(name, None) and LAYERS[name].alpha == "(n)"
                else 0
            )
            n = n or (3 + bool(BACKWARD[name].formula) if name in BACKWARD else 3)
            getattr(fastrelu, name)(*[X] * n)
            assert calls.pop()[0] == name
    dx, _, _ = fastrelu.linear_backward(X, X, X)
    assert_array_equal(dx, X @ X.T)


def test_use_is_not_forgotten_after_a_call_on_the_cpu(calls: Calls) -> None:
    calls.result = (1, 2, 3)
    with fastrelu.use("cuda"):
        fastrelu.linear_backward(X, X, X, device="cpu")
        assert fastrelu.linear_backward(X, X, X) == (1, 2, 3)


def test_use_leaves_what_is_not_numpys_own_on_the_cpu(calls: Calls) -> None:
    with fastrelu.use("cuda"):
        assert type(fastrelu.relu(np.ma.array(X))) is np.ma.MaskedArray
    assert not calls


def test_prelu_backward_of_numpy_arrays(calls: Calls) -> None:
    calls.result = lambda name, operands, out, kwargs: (operands[0], operands[2])
    with fastrelu.use("cuda"):
        dx, dalpha = fastrelu.prelu_backward(X, X, np.array([1.0, 2.0]))
    assert_array_equal(dx, X)
    assert_array_equal(dalpha, [1.0, 2.0])
