"""The same calls on a real GPU: every operation's bits, the streams and graphs of other libraries, and arrays that are large.

Without a GPU the calls are made on the emulated device, a few of them and small ones, so that this file is known to run; what
only a GPU can show is skipped. With one, ``python -m pytest tests/cuda/test_on_device.py`` runs all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import fastrelu
from fastrelu.cuda import launch
from fastrelu.operations import FLOATS, LAYERS, OPERATIONS
from tests.cuda.emulator import EmulatedDriver
from tests.cuda.values import bits, operands, to_host


def reason() -> str:
    """Why there is no GPU; an empty string where there is one."""
    try:
        return "" if launch.CudaDriver().count() else "the driver finds no GPU"
    except RuntimeError as error:
        return str(error)


def has(library: str) -> bool:
    """Whether a library is installed, and knows of GPUs: there are builds of PyTorch that do not."""
    if library != "torch":
        return library == "numba" or find_spec(library) is not None
    return find_spec("torch") is not None and import_module("torch").cuda.is_available()


NO_GPU = reason()
LIBRARIES = [name for name in ("numba", "cupy", "torch") if NO_GPU == "" and has(name)]
needs_gpu = pytest.mark.skipif(NO_GPU != "", reason=NO_GPU)
needs_torch = pytest.mark.skipif("torch" not in LIBRARIES, reason=NO_GPU or "PyTorch is not installed")
needs_cupy = pytest.mark.skipif("cupy" not in LIBRARIES, reason=NO_GPU or "CuPy is not installed")

Put = Callable[[np.ndarray], Any]


def put_by(library: str) -> Put:
    """The function that brings a NumPy array to the device by way of a library."""
    if library == "torch":
        import torch

        return lambda array: torch.from_numpy(array).cuda() if array.dtype.name != "bfloat16" else _torch_bfloat16(array)
    if library == "cupy":
        import cupy

        return cupy.asarray
    from fastrelu.cuda.toolkit import cuda

    return cuda.to_device


def _torch_bfloat16(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)


def back(array: Any) -> np.ndarray:
    """What stands in an array of any library."""
    kind = type(array).__module__.partition(".")[0]
    if kind == "torch":
        import ml_dtypes
        import torch

        if array.dtype == torch.bfloat16:
            return array.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
        return np.asarray(array.cpu().numpy())
    if kind == "cupy":
        return np.asarray(array.get())
    if kind in ("numba", "numba_cuda"):
        return np.asarray(array.copy_to_host())
    return to_host(array)


@pytest.fixture(params=LIBRARIES or ["emulator"])
def put(request: pytest.FixtureRequest) -> Iterator[Put]:
    """Brings arrays to the device: a real one by each library that is installed, or the emulated one."""
    if request.node.callspec.params.get("dtype") == "bfloat16" and request.param in ("numba", "cupy"):
        pytest.skip(f"{request.param} has no bfloat16")
    if request.param != "emulator":
        yield put_by(request.param)
        return
    before, launch.driver = launch.driver, EmulatedDriver((9, 0))
    yield launch.driver.array
    launch.driver = before


def compare(put: Put, call: Callable[..., Any], arrays: list[np.ndarray], **kwargs: Any) -> None:
    """Call with arrays on the host and on the device, and compare the bits of all results."""
    expected, got = call(*arrays, **kwargs), call(*map(put, arrays), **kwargs)
    pairs = zip(expected, got, strict=True) if isinstance(expected, tuple) else [(expected, got)]
    for on_host, on_device in pairs:
        np.testing.assert_array_equal(bits(back(on_device), any_nan=True), bits(np.asarray(on_host), any_nan=True))


# On the emulator every kernel costs a second to compile: these show that the file is right.
EMULATED = {("relu", "float32"), ("sigmoid", "float16")}
ELEMENTWISE = [
    (name, dtype)
    for name, operation in OPERATIONS.items()
    for dtype in operation.dtypes
    if hasattr(fastrelu, name) and (NO_GPU == "" or (name, dtype) in EMULATED)
]


@pytest.mark.parametrize(("name", "dtype"), ELEMENTWISE)
def test_elementwise(put, name, dtype):
    function, count = getattr(fastrelu, name), len(OPERATIONS[name].inputs)
    with np.errstate(all="ignore"):
        for size in (3001,) if NO_GPU else (3001, 1_000_003):
            compare(put, function, operands(dtype, count, size))


LAYER_NAMES = sorted({layer.base for layer in LAYERS.values()})
LAYER_CASES = [(name, dtype) for name in LAYER_NAMES for dtype in ("float32", "float64", "float16")]


def layer_arrays(name: str, dtype: str, m: int, k: int, n: int) -> list[np.ndarray]:
    """x, w, b, and alpha where the layer has one."""
    rng = np.random.default_rng(m + k + n)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (n,))]
    return [*arrays, rng.standard_normal(n).astype(dtype)] if name == "linear_prelu" else arrays


@pytest.mark.parametrize(("name", "dtype"), LAYER_CASES if NO_GPU == "" else [("linear_relu", "float32")])
def test_layer(put, name, dtype):
    sizes = [(5, 300, 7)] if NO_GPU else [(1, 1, 1), (5, 300, 7), (129, 1025, 130), (1000, 513, 777)]
    for m, k, n in sizes:
        compare(put, getattr(fastrelu, name), layer_arrays(name, dtype, m, k, n))


@pytest.mark.parametrize("name", ["linear_relu_backward", "linear_tanh_backward"] if NO_GPU == "" else ["linear_relu_backward"])
@pytest.mark.parametrize("dtype", ["float32", "float64"] if NO_GPU == "" else ["float32"])
def test_layer_backward(put, name, dtype):
    forward = getattr(fastrelu, name.removesuffix("_backward"))
    for m, k, n in [(300, 5, 7)] if NO_GPU else [(1, 1, 1), (300, 5, 7), (1025, 129, 130), (513, 777, 1000)]:
        x, w, b = layer_arrays(name, dtype, m, k, n)
        y = forward(x, w, b)
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
        compare(put, getattr(fastrelu, name), [dy, y, x, w])


CONVOLUTIONS = sorted(name.replace("linear", "conv2d") for name in LAYER_NAMES)
CONVOLUTION_CASES = [(name, dtype) for name in CONVOLUTIONS for dtype in ("float32", "float64", "float16")]
MEETINGS = [
    ((2, 3, 7, 8), (5, 3, 3, 2), {"padding": 1}),
    ((3, 64, 30, 29), (96, 64, 3, 3), {"stride": (2, 1), "padding": (1, 2)}),
    ((2, 24, 33, 40), (48, 6, 5, 3), {"groups": 4, "dilation": (1, 2), "padding": "same"}),
    ((9, 256, 14, 14), (130, 256, 1, 1), {}),
    ((4, 20, 31, 17), (20, 1, 3, 3), {"groups": 20, "stride": 3}),
    ((1, 4, 200, 150), (33, 4, 8, 8), {"stride": 4}),
]


def convolution_arrays(name: str, dtype: str, x: tuple[int, ...], w: tuple[int, ...]) -> list[np.ndarray]:
    """x, w, b, and alpha where the function has one."""
    rng = np.random.default_rng(x[0] + w[0])
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in (x, w, w[:1])]
    return [*arrays, rng.standard_normal(w[:1]).astype(dtype)] if name == "conv2d_prelu" else arrays


@pytest.mark.parametrize(("name", "dtype"), CONVOLUTION_CASES if NO_GPU == "" else [("conv2d_relu", "float32")])
def test_convolution(put, name, dtype):
    for x, w, options in MEETINGS[:1] if NO_GPU else MEETINGS:
        compare(put, getattr(fastrelu, name), convolution_arrays(name, dtype, x, w), **options)


BACKWARD_CASES = [("conv2d_relu_backward", "float32"), ("conv2d_relu_backward", "float64"), ("conv2d_elu_backward", "float32")]


@pytest.mark.parametrize(("name", "dtype"), BACKWARD_CASES[: 1 if NO_GPU else None])
def test_convolution_backward(put, name, dtype):
    forward = getattr(fastrelu, name.removesuffix("_backward"))
    for shape, kernel, options in MEETINGS[:1] if NO_GPU else MEETINGS:
        x, w, b = convolution_arrays(name, dtype, shape, kernel)
        y = forward(x, w, b, **options)
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
        compare(put, getattr(fastrelu, name), [dy, y, x, w], **options)


@needs_torch
def test_images_in_the_order_of_channels_last():
    import torch

    x, w, b = convolution_arrays("conv2d_relu", "float32", (3, 16, 20, 24), (32, 16, 3, 3))
    y = fastrelu.conv2d_relu(x, w, b, padding=1)
    dy = np.random.default_rng(1).standard_normal(y.shape, np.float32)
    last = [torch.from_numpy(array).cuda().to(memory_format=torch.channels_last) for array in (dy, y, x, w)]
    got = fastrelu.conv2d_relu(last[2], last[3], torch.from_numpy(b).cuda(), padding=1)
    np.testing.assert_array_equal(bits(back(got)), bits(y))
    got = fastrelu.conv2d_relu_backward(*last, padding=1)
    for ours, its in zip(got, fastrelu.conv2d_relu_backward(dy, y, x, w, padding=1), strict=True):
        np.testing.assert_array_equal(bits(back(ours)), bits(its))


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::2], lambda a: a[:, 1:], lambda a: a[::-1]])
def test_views(put, view):
    x, w, b = layer_arrays("linear_relu", "float32", 12, 12, 6)
    on_device = put(x)
    try:
        its = view(on_device)
    except (ValueError, NotImplementedError):
        pytest.skip("the library has no such view")
    got = fastrelu.linear_relu(its, *map(put, (np.resize(w, (view(x).shape[1], 6)), b)))
    expected = fastrelu.linear_relu(view(x), np.resize(w, (view(x).shape[1], 6)), b)
    np.testing.assert_array_equal(bits(back(got)), bits(expected))


@needs_gpu
@pytest.mark.parametrize(("precision", "bound"), [("high", 3e-6), ("medium", 2e-3)])
def test_lower_precisions(put, precision, bound):
    x, w, b = layer_arrays("linear_relu", "float32", 1000, 2048, 777)
    exact = np.maximum(x.astype(np.float64) @ w + b, 0)
    got = back(fastrelu.linear_relu(*map(put, (x, w, b)), precision=precision))
    assert np.linalg.norm(got - exact) <= bound * np.linalg.norm(exact)


@needs_gpu
def test_lengths_beyond_32_bits(put):
    n = (1 << 31) + 77
    x = put(np.full(1, -5, np.int8))
    y = put(np.tile(np.array([-1, 2, -3], np.int8), n // 3 + 1)[:n])
    got = back(fastrelu.relu(y))
    assert got.shape == (n,)
    np.testing.assert_array_equal(got[-1000:], np.maximum(np.tile([-1, 2, -3], n // 3 + 1)[:n][-1000:], 0))
    assert int(got[: n // 3 * 3].astype(bool).sum()) == n // 3
    assert back(fastrelu.relu(x))[0] == 0


@needs_gpu
def test_matrices_beyond_32_bits(put):
    rows, k, n = 70_000, 33_000, 8  # x has more than 2**31 elements
    x = np.zeros((rows, k), np.float16)
    x[-1], x[::7001] = 1, 2
    w, b = np.full((k, n), 2.0**-10, np.float16), np.zeros(n, np.float16)
    got = back(fastrelu.linear_relu(*map(put, (x, w, b))))
    np.testing.assert_array_equal(got[-300:], fastrelu.linear_relu(x[-300:], w, b))


@needs_torch
def test_work_goes_to_the_current_stream_of_torch():
    import torch

    x = torch.full((1 << 20,), -1.0, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fastrelu.relu(x)  # loads the kernel, which may wait
        torch.cuda._sleep(200_000_000)
        x.fill_(3)  # behind the sleep: a kernel in another stream would still see -1
        y = fastrelu.relu(x)
    stream.synchronize()
    assert bool((y == 3).all())


@needs_torch
def test_calls_do_not_wait_for_the_device():
    import torch

    x = torch.ones(1 << 20, device="cuda")
    fastrelu.relu(x)
    torch.cuda.synchronize()
    torch.cuda._sleep(400_000_000)
    event = torch.cuda.Event()
    y = fastrelu.relu(x)
    event.record()
    assert not event.query()
    torch.cuda.synchronize()
    assert bool((y == 1).all())


@needs_torch
def test_graph_captured_by_torch():
    import torch

    x, w, b = (torch.randn(shape, device="cuda") for shape in ((256, 700), (700, 64), (64,)))

    def step() -> Any:
        y = fastrelu.linear_relu(x, w, b)
        images, kernels = x.view(16, 16, 25, 28)[:, :, :24], w[:180, :16].reshape(20, 16, 3, 3)
        features = fastrelu.conv2d_relu(images, kernels, b[:20])
        gradients = fastrelu.conv2d_relu_backward(features, features, images, kernels)
        return (y, *fastrelu.linear_relu_backward(fastrelu.relu(y), y, x, w), features, *gradients)

    step()  # kernels are loaded before
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        torch.manual_seed(seed)
        x.normal_()
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert torch.equal(got, expected)


@needs_cupy
def test_graph_captured_by_cupy():
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x, y = cupy.full(1000, -2.0, dtype=cupy.float32), cupy.empty(1000, dtype=cupy.float32)
        fastrelu.relu(x, out=y)
        stream.synchronize()
        stream.begin_capture()
        fastrelu.relu(x, out=y)
        graph = stream.end_capture()
        x.fill(5)
        graph.launch(stream)
        stream.synchronize()
        assert bool((y == 5).all())


@needs_gpu
def test_many_threads_call_at_once(put):
    x, w, b = layer_arrays("linear_relu", "float32", 64, 300, 33)
    expected, wrong = fastrelu.linear_relu(x, w, b), []

    def work() -> None:
        for _ in range(50):
            got = back(fastrelu.linear_relu(*map(put, (x, w, b))))
            if not np.array_equal(got, expected):
                wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_gpu
def test_result_is_of_the_caller_library(put):
    x = put(np.ones(3, np.float32))
    assert type(fastrelu.relu(x)) is type(x)


def test_all_float_types_are_covered():
    assert set(FLOATS) <= {dtype for operation in OPERATIONS.values() for dtype in operation.dtypes}
