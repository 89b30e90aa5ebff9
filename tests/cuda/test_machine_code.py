"""Machine code of the kernels that public calls choose at the points of the target table.

The calls are made on devices that run nothing and note what they would run. So it is the choice that is tested here
as well; kernels that are seldom chosen are looked at beside the tests of their results.
"""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastrelu
from fastrelu.cuda import launch
from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.toolkit import target_of
from tests.cuda.emulator import DeviceArray, EmulatedDriver
from tests.cuda.machine_code import Code, assemble

SIZE = 4096


class Recorder(EmulatedDriver):
    """A device with as many multiprocessors as a real one, whose memory nobody touches."""

    def __init__(self, capability: tuple[int, int], processors: int) -> None:
        super().__init__(capability)
        self._processors = processors
        self.kernels: list[Kernel] = []

    def processors(self, device: int) -> int:
        return self._processors

    def load(self, device: int, kernel: Kernel) -> Any:
        return kernel

    def launch(self, function: Any, grid: tuple[int, int, int], stream: int, arguments: tuple[Any, ...]) -> None:
        self.kernels.append(function)

    def _room(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)  # the system gives no memory before it is touched

    def new(self, *shape: int, dtype: Any = np.float32) -> DeviceArray:
        return self.empty(shape, dtype)


A100, H200 = ((8, 0), 108), ((9, 0), 132)


def chosen(device: tuple[tuple[int, int], int], call: Any) -> list[tuple[str, Code]]:
    """The PTX and the machine code of each kernel that a call launches."""
    recorder = Recorder(*device)
    before, launch.driver = launch.driver, recorder
    try:
        call(recorder)
        target = target_of(recorder.capability(0))
        return [(ptx, assemble(ptx, target)) for ptx in (kernel.ptx(target)[0] for kernel in recorder.kernels)]
    finally:
        launch.driver = before


def layer(precision: str, dtype: Any = np.float32) -> Any:
    """The fused layer on a large square, the weight by rows of outputs."""

    def call(on: Recorder) -> None:
        x, w, b = on.new(SIZE, SIZE, dtype=dtype), on.new(SIZE, SIZE, dtype=dtype).T, on.new(SIZE, dtype=dtype)
        fastrelu.linear_relu(x, w, b, precision=precision)

    return call


def layer_backward(on: Recorder) -> None:
    fastrelu.linear_relu_backward(*(on.new(SIZE, SIZE) for _ in range(3)), on.new(SIZE, SIZE).T)


def assert_clean(ptx: str, code: Code) -> None:
    """What holds for every kernel without float64."""
    assert code.spilled == code.stack == code.count("LDL", "STL") == 0
    assert code.warnings == []
    assert ".f64" not in ptx
    # ptxas may make one fma of a product and a sum that do not say how they are rounded.
    assert not re.search(r"\bmul\.f(32|64)\b", ptx)


@pytest.mark.parametrize("device", [A100, H200], ids=["A100", "H200"])
@pytest.mark.parametrize("name", ["relu", "relu_backward"])
def test_elementwise(device, name):
    arrays = 1 if name == "relu" else 2
    ((ptx, code),) = chosen(device, lambda on: getattr(fastrelu, name)(*(on.new(1 << 26) for _ in range(arrays))))
    assert_clean(ptx, code)
    assert code.count("LDG.128") >= 4
    assert code.count("STG.128") >= 2
    assert code.registers <= 64  # 1024 threads, with 16 KiB each of which are under way


@pytest.mark.parametrize("device", [A100, H200], ids=["A100", "H200"])
def test_layer_in_float32(device):
    ((ptx, code),) = chosen(device, layer("highest"))
    assert_clean(ptx, code)
    assert code.registers <= 128  # two blocks of 256 threads
    # 512 of 607 instructions with steps of 8 terms, on devices with less shared memory; else 1024 of 1187.
    assert code.main_loop("FFMA").share("FFMA") >= 0.84


@pytest.mark.parametrize(("precision", "dtype"), [("high", "float32"), ("medium", "float32"), ("medium", "bfloat16")])
def test_layer_on_tensor_cores_of_hopper(precision, dtype):
    ((ptx, code),) = chosen(H200, layer(precision, ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32))
    assert_clean(ptx, code)
    assert code.count("HGMMA") > 0
    assert code.count("HMMA") == 0


def test_layer_on_tensor_cores_of_ampere():
    ((ptx, code),) = chosen(A100, layer("high"))
    assert_clean(ptx, code)
    assert code.main_loop("HMMA").count("HMMA") >= 64


def test_layer_backward():
    kernels = chosen(H200, layer_backward)
    for ptx, code in kernels:
        assert_clean(ptx, code)
        assert code.registers <= 128
    shares = sorted(code.main_loop("FFMA").share("FFMA") for _, code in kernels if code.count("FFMA") > 100)
    assert len(shares) == 2  # dx and dw, with dz formed while it is read
    assert shares[0] >= 0.82


def convolution(on: Recorder) -> None:
    fastrelu.conv2d_relu(on.new(32, 256, 28, 28), on.new(256, 256, 3, 3), on.new(256), padding=1)


def convolution_backward(on: Recorder) -> None:
    y = on.new(32, 256, 28, 28)
    fastrelu.conv2d_relu_backward(on.new(*y.host.shape), y, on.new(*y.host.shape), on.new(256, 256, 3, 3), padding=1)


@pytest.mark.parametrize(
    ("device", "call", "least"),
    [
        # Steps of 8 terms, for lack of shared memory.
        pytest.param(A100, convolution, [0.81], marks=pytest.mark.nightly),
        # Besides 1024 FFMA and 80 loads from shared memory 8 numbers are copied, each with 9 instructions: of its tap, of the
        # test whether that is in the image, and of the address.
        (H200, convolution, [0.83]),
        # And of dw each thread finds two positions; dz is made of dy and y beside them.
        (H200, convolution_backward, [0.75, 0.8]),
    ],
    ids=["forward on A100", "forward on H200", "backward on H200"],
)
def test_convolution(device, call, least):
    kernels = chosen(device, call)
    shares = []
    for ptx, code in kernels:
        assert_clean(ptx, code)
        if code.count("FFMA") > 100:
            assert code.registers <= 128
            shares.append(code.main_loop("FFMA").share("FFMA"))
            # All taps are read before the first number is copied, lest each copy wait for its own.
            names = [i.opcode.partition(".")[0] for i in code.main_loop("FFMA").instructions]
            assert names.count("LDG") <= 8
    assert len(shares) == len(least)
    assert all(share >= bound for share, bound in zip(sorted(shares), least, strict=True)), shares
