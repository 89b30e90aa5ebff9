"""What holds without a GPU: what is missing is said, nothing is imported early, and the CPU goes on."""

import re
import sys
from importlib.metadata import PackageNotFoundError
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.cuda import availability, launch
from fastrelu.device import PRECISIONS
from tests.subprocesses import call as call_in_a_process

X = np.array([[-1.0, 2.0], [3.0, -4.0]], np.float32)
KERNEL = np.ones((1, 1, 1, 1), np.float32)


class CudaArray:
    """What a library for GPUs hands out, as far as a call can see it."""

    __cuda_array_interface__ = {"shape": (2, 2), "typestr": "<f4", "data": (1 << 40, False), "version": 3}  # noqa: RUF012


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is not installed."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(availability, "version", version)


class Nothing:
    """A driver of devices that are too old, or of none."""

    def __init__(self, *capabilities: tuple[int, int]):
        self.capabilities = capabilities

    def count(self) -> int:
        return len(self.capabilities)

    def name(self, device: int) -> str:
        return f"GPU {device}"

    def capability(self, device: int) -> tuple[int, int]:
        return self.capabilities[device]

    def memory(self, device: int) -> int:
        return 1 << 30


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is installed, and there is no driver."""

    def start() -> None:
        raise RuntimeError("there is no NVIDIA driver on this machine")

    monkeypatch.setattr(availability, "version", lambda name: "1.0")
    monkeypatch.setattr(launch, "CudaDriver", start)
    monkeypatch.setattr(launch, "driver", None)


def test_reason_without_the_extra(no_extra: None) -> None:
    assert fastrelu.cuda.reason() == "numba-cuda is not installed: pip install 'fastrelu[cuda]'"
    assert not fastrelu.cuda.is_available()


def test_reason_without_a_driver(no_driver: None) -> None:
    assert fastrelu.cuda.reason() == "there is no NVIDIA driver on this machine"
    with pytest.raises(RuntimeError, match="there is no NVIDIA driver"):
        fastrelu.cuda.devices()


def test_reason_with_devices_that_do_not_do(no_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "driver", Nothing())
    assert fastrelu.cuda.reason() == "the NVIDIA driver finds no GPU"
    monkeypatch.setattr(launch, "driver", Nothing((7, 0), (7, 5)))
    assert fastrelu.cuda.reason() == "compute capability 8.0 is needed, and GPU 0 has 7.0, GPU 1 has 7.5"
    monkeypatch.setattr(launch, "driver", Nothing((7, 0), (8, 0)))
    assert fastrelu.cuda.is_available()


@pytest.mark.parametrize("missing", ["no_extra", "no_driver"])
def test_array_on_a_device(missing: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(missing)
    reason = re.escape(fastrelu.cuda.reason())
    x = CudaArray()
    for call, name in (
        (lambda: fastrelu.relu(x), "relu: x"),
        (lambda: fastrelu.linear_relu(x, x), "linear_relu: x"),
        (lambda: fastrelu.linear_backward(x, x, x), "linear_backward: dy"),
        (lambda: fastrelu.prelu_backward(x, x, 0.5), "prelu_backward: dy"),
        (lambda: fastrelu.conv2d(x, x), "conv2d: x"),
        (lambda: fastrelu.conv2d_prelu(KERNEL, KERNEL, None, x), "conv2d_prelu: alpha"),
        (lambda: fastrelu.conv2d_elu(KERNEL, KERNEL, alpha=x), "conv2d_elu: alpha"),
        (lambda: fastrelu.conv2d_relu(KERNEL, KERNEL, out=x), "conv2d_relu: out"),
        (lambda: fastrelu.conv2d_relu_backward(x, x, x, x), "conv2d_relu_backward: dy"),
        (lambda: fastrelu.conv2d_backward(KERNEL, KERNEL, x), "conv2d_backward: w"),
        (lambda: fastrelu.relu_backward(X, x), "relu_backward: y"),
        (lambda: fastrelu.relu(X, out=x), "relu: out"),
    ):
        with pytest.raises(
            TypeError, match=f"^{name} is on a CUDA device; it must be a NumPy array, not .*CudaArray: {reason}$"
        ):
            call()


def test_function_without_kernels_for_gpus() -> None:
    with pytest.raises(
        TypeError,
        match=r"^max_pool2d: x is on a CUDA device; .*: max_pool2d has no kernels for GPUs, copy it to the host first$",
    ):
        fastrelu.max_pool2d(CudaArray(), 2)


@pytest.mark.parametrize("missing", ["no_extra", "no_driver"])
def test_use_and_the_keyword_say_what_is_missing(missing: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(missing)
    reason = re.escape(fastrelu.cuda.reason())
    with pytest.raises(RuntimeError, match=f"^use: cuda:0 cannot be used: {reason}$"):
        fastrelu.use("cuda")
    with pytest.raises(RuntimeError, match=f"^relu: cuda:1 cannot be used: {reason}$"):
        fastrelu.relu(X, device="cuda:1")
    assert_array_equal(fastrelu.relu(X), np.maximum(X, 0))


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", ""])
def test_device_of_another_name(device: str) -> None:
    for call, name in ((lambda: fastrelu.use(device), "use"), (lambda: fastrelu.relu(X, device=device), "relu")):
        with pytest.raises(ValueError, match=rf"^{name}: device must be 'cpu', 'cuda' or 'cuda:1' and so on, not '{device}'$"):
            call()
    with pytest.raises(TypeError, match=r"^use: device must be .*, not int$"):
        fastrelu.use(0)  # type: ignore[arg-type]


def test_cpu_as_the_device() -> None:
    wanted = np.maximum(X, 0)
    assert_array_equal(fastrelu.relu(X, device="cpu"), wanted)
    assert_array_equal(fastrelu.linear_relu(X, np.eye(2, dtype=np.float32), device="cpu"), wanted)
    with fastrelu.use("cpu"):
        assert_array_equal(fastrelu.relu(X), wanted)
    dx, _, _ = fastrelu.linear_backward(X, X, X, device="cpu")
    assert_array_equal(dx, X @ X.T)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_the_highest_on_the_cpu(precision: str) -> None:
    x, w = (np.random.default_rng(i).standard_normal((40, 40), dtype=np.float32) for i in range(2))
    assert_array_equal(fastrelu.linear(x, w, precision=precision), fastrelu.linear(x, w))
    assert_array_equal(fastrelu.linear(x, fastrelu.pack(w), precision=precision), fastrelu.linear(x, w))
    for result, wanted in zip(
        fastrelu.linear_backward(x, x, w, precision=precision), fastrelu.linear_backward(x, x, w), strict=True
    ):
        assert_array_equal(result, wanted)


def test_precision_of_another_name() -> None:
    for call, name in (
        (lambda: fastrelu.linear(X, X, precision="low"), "linear"),
        (lambda: fastrelu.linear_backward(X, X, X, precision="low"), "linear_backward"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: precision must be one of \('highest', 'high', 'medium'\), not 'low'$"):
            call()


def import_without_libraries() -> None:
    import fastrelu.cuda

    loaded = {"numba", "numba.cuda", "numba_cuda", "cuda", "torch", "cupy", "jax"}
    assert not loaded & {*sys.modules}
    told = fastrelu.cuda.reason()
    assert fastrelu.cuda.is_available() == (told == "")
    assert not {"numba", "numba.cuda", "torch", "cupy", "jax"} & {*sys.modules}


def test_import_brings_no_library() -> None:
    call_in_a_process(import_without_libraries)


def test_info_says_what_is_missing(no_extra: None) -> None:
    from fastrelu.report import facts

    assert facts()["CUDA"] == "no: numba-cuda is not installed: pip install 'fastrelu[cuda]'"


def test_info_names_the_devices(no_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrelu.report import facts

    monkeypatch.setattr(launch, "driver", Nothing((9, 0), (8, 6)))
    told: Any = facts()["CUDA"]
    assert told == "GPU 0 (compute capability 9.0, 1 GiB); GPU 1 (compute capability 8.6, 1 GiB)"
