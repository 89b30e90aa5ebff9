"""Operations on a GPU beside PyTorch's: ``python -m bench.cuda`` measures the points of the target table, prints them and
writes cuda.json. It needs a GPU, the extra ``cuda`` and PyTorch with CUDA.

Times are those of CUDA events around many calls, taken in turns in one process; clocks are left alone. Losses are written down
like everything else.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import fastrelu
import fastrelu.cuda
from bench.table import Point, geometric_mean
from fastrelu.benchmarks.convolutions import LAYERS as CONVOLUTIONS
from fastrelu.benchmarks.layers import LAYERS, Layer, read
from fastrelu.convolution_peers import Convolution

RESULTS = Path(__file__).with_suffix(".json")
DEVICE = "cuda"
SECONDS = 0.02
"""What the calls between two events take, unless one of them is longer."""
TURNS = 7
IMAGES = 32
"""At least as many images has each convolution: fewer leave most of a GPU idle."""

Call = Callable[[], Any]


def missing() -> str:
    """What is missing for the measurement; an empty string if nothing is."""
    if reason := fastrelu.cuda.reason():
        return reason
    if find_spec("torch") is None:
        return "PyTorch is not installed, whose operations are the peers"
    import torch

    return "" if torch.cuda.is_available() else "PyTorch finds no GPU"


def times(calls: dict[str, Call]) -> dict[str, float]:
    """Seconds of each call on the device, least of some turns in which all are called."""
    repeats = {}
    for name, call in calls.items():
        _between_events(call, 2)  # compiles, and takes memory
        repeats[name] = max(3, min(2000, math.ceil(SECONDS / max(_between_events(call, 3), 1e-6))))
    least = dict.fromkeys(calls, math.inf)
    for _ in range(TURNS):
        for name, call in calls.items():
            least[name] = min(least[name], _between_events(call, repeats[name]))
    gc.collect()
    return least


def _between_events(call: Call, repeats: int) -> float:
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / repeats


def host_times(calls: dict[str, Call], repeats: int = 500) -> dict[str, float]:
    """Seconds of each call on the host, which does not wait for the device."""
    import torch

    least = dict.fromkeys(calls, math.inf)
    for _ in range(TURNS):
        for name, call in calls.items():
            call()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            least[name] = min(least[name], (time.perf_counter() - begin) / repeats)
    torch.cuda.synchronize()
    return least


def normal(*shape: int, dtype: str = "float32") -> Any:
    """Random numbers on the device: zeros would cost less power, and run faster than real data."""
    import torch

    return torch.randn(shape, device=DEVICE, dtype=getattr(torch, dtype))


def streaming(sizes: tuple[int, ...] = (1 << 26, 1 << 28)) -> Iterator[Point]:
    """Elementwise operations on arrays far larger than the caches, beside the device's own copy."""
    import torch

    shares: dict[str, dict[str, float]] = {"relu": {}, "relu_backward": {}, "sigmoid": {}}
    details = {}
    for size in sizes:
        x, dy, y = normal(size), normal(size), normal(size)
        calls = {
            "copy": lambda x=x, y=y: y.copy_(x),
            "relu": lambda x=x, y=y: fastrelu.relu(x, out=y),
            "relu_backward": lambda x=x, dy=dy, y=y: fastrelu.relu_backward(dy, x, out=y),
            "sigmoid": lambda x=x, y=y: fastrelu.sigmoid(x, out=y),
            "torch clamp_min": lambda x=x, y=y: torch.clamp_min(x, 0, out=y),
        }
        key = f"{4 * size >> 20} MiB"
        details[key] = seconds = times(calls)
        for name, values in shares.items():
            arrays = 3 if name == "relu_backward" else 2
            values[key] = arrays / 2 * seconds["copy"] / seconds[name]
        details[key]["copy, TB/s"] = 8 * size / seconds["copy"] / 1e12
        del x, dy, y, calls
    for name, values in shares.items():
        text = f"{name} float32: share of the device-to-device copy rate"
        yield Point(text, values, 0.93, unit="%", details=details if name == "relu" else None)


def _layer_calls(layer: Layer, precisions: tuple[str, ...], dtype: str = "float32") -> tuple[dict[str, Call], list[Any]]:
    """The fused layer at some precisions, and cuBLAS's own, into given arrays; and the arrays."""
    import torch

    x, weight, b = normal(layer.m, layer.k, dtype=dtype), normal(layer.n, layer.k, dtype=dtype), normal(layer.n, dtype=dtype)
    y, z = normal(layer.m, layer.n, dtype=dtype), normal(layer.m, layer.n, dtype=dtype)
    w = weight.t()

    def ours(precision: str) -> Call:
        return lambda: fastrelu.linear_relu(x, w, b, out=y, precision=precision)

    calls = {precision: ours(precision) for precision in precisions}

    def cublas() -> None:
        torch._addmm_activation(b, x, w, use_gelu=False, out=z)

    return {**calls, "cublas": cublas}, [x, w, b, y, z]


def _key(layer: Layer) -> str:
    return f"{layer.m} x {layer.k} x {layer.n}"


def highest(layers: list[Layer]) -> Iterator[Point]:
    """The layer in plain float32 beside cuBLAS's with a fused epilogue."""
    _tf32(False)
    large = Layer("", 4096, 4096, 4096)
    details, ratios = {}, {}
    for layer in [large, *layers]:
        calls, _ = _layer_calls(layer, ("highest",))
        details[_key(layer)] = seconds = times(calls)
        ratios[_key(layer)] = seconds["cublas"] / seconds["highest"]
    text = 'linear_relu float32 "highest": times the speed of cuBLAS with a fused epilogue'
    yield Point(text, {_key(large): ratios[_key(large)]}, 0.9, details=details)
    rest = [ratios[_key(layer)] for layer in layers]
    yield Point("the same, geometric mean over the layers", {"": geometric_mean(rest)}, 0.9)
    yield Point("the same, slowest layer", {"": min(rest)}, 0.9)


def high(sizes: tuple[int, ...] = (4096, 8192)) -> Iterator[Point]:
    """Three products of TF32: speed and error beside cuBLAS's float32."""
    _tf32(False)
    ratios, errors, details = {}, {}, {}
    for size in sizes:
        calls, (x, w, b, y, z) = _layer_calls(Layer("", size, size, size), ("high",))
        key = f"{size}^3"
        details[key] = seconds = times(calls)
        ratios[key] = seconds["cublas"] / seconds["high"]
        rows = slice(0, 512)  # a reference in float64 of the whole would take long
        reference = (x[rows].double() @ w.double() + b.double()).relu()
        own, its = ((got[rows].double() - reference).norm().item() for got in (y, z))
        errors[key] = own / its
        del calls, x, w, b, y, z, reference
    yield Point('linear_relu float32 "high": times the speed of cuBLAS float32', ratios, 1.5, details=details)
    yield Point("the same: part of cuBLAS's error", errors, 1.0, at_most=True)


def medium(size: int = 8192) -> Iterator[Point]:
    """TF32 and bfloat16 on the tensor cores, beside cuBLAS's."""
    layer = Layer("", size, size, size)
    for dtype, precision, text in (("float32", "medium", '"medium", TF32'), ("bfloat16", "medium", "bfloat16")):
        _tf32(True)
        seconds = times(_layer_calls(layer, (precision,), dtype)[0])
        value = {f"{size}^3": seconds["cublas"] / seconds[precision]}
        yield Point(f"linear_relu {text}: times the speed of cuBLAS", value, 0.7, details={f"{size}^3": seconds})
    _tf32(False)


def backward(sizes: tuple[tuple[int, int, int], ...] = ((4096, 4096, 4096), (512, 3072, 768))) -> Iterator[Point]:
    """The backward pass of the layer beside PyTorch's."""
    import torch

    _tf32(False)
    ratios, details = {}, {}
    for m, k, n in sizes:
        x, weight, b = normal(m, k).requires_grad_(), normal(n, k).requires_grad_(), normal(n).requires_grad_()
        dy = normal(m, n)
        y = torch.relu(torch.nn.functional.linear(x, weight, b))
        given = [array.detach() for array in (dy, y, x, weight.t())]
        out = normal(m, k), normal(n, k).t(), normal(n)
        calls = {
            "fastrelu": lambda given=given, out=out: fastrelu.linear_relu_backward(*given, out=out),
            "torch": lambda y=y, x=x, w=weight, b=b, dy=dy: torch.autograd.grad(y, (x, w, b), dy, retain_graph=True),
        }
        key = f"{m} x {k} x {n}"
        details[key] = seconds = times(calls)
        ratios[key] = seconds["torch"] / seconds["fastrelu"]
        del calls, given, out, x, weight, b, y, dy
    yield Point("linear_relu_backward float32: times the speed of torch autograd", ratios, 1.1, details=details)


def _convolution(layer: Convolution) -> tuple[list[Any], dict[str, Any]]:
    """X, w and b of a layer, and how x and w meet."""
    x, w = normal(layer.n, layer.c, layer.h, layer.w), normal(layer.outputs, layer.c // layer.groups, *layer.kernel)
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    return [x, w / w[0].numel() ** 0.5, normal(layer.outputs)], options


def convolutions() -> Iterator[Point]:
    """Convolutions with ReLU in plain float32 beside PyTorch's, which is cuDNN with the algorithm that it finds fastest.

    That may be one of fewer multiplications, whose bits are others.
    """
    import torch

    _tf32(False)
    torch.backends.cudnn.benchmark = True
    conv2d, forward, backward = torch.nn.functional.conv2d, {}, {}
    forward_details, backward_details = {}, {}
    for layer in (replace(each, n=max(each.n, IMAGES)) for each in CONVOLUTIONS):
        key = (
            f"{layer.n} x {layer.c} x {layer.h} x {layer.w} to {layer.outputs}, {layer.kernel}, {layer.stride}, {layer.groups}"
        )
        operands, options = _convolution(layer)
        out, dy = normal(*layer.y), normal(*layer.y)
        calls: dict[str, Call] = {
            "fastrelu": lambda a=operands, o=options, y=out: fastrelu.conv2d_relu(*a, **o, out=y),
            "torch": lambda a=operands, o=options: torch.relu_(conv2d(*a, **o)),
        }
        forward_details[key] = seconds = times(calls)
        forward[key] = seconds["torch"] / seconds["fastrelu"]
        x, w, b = (array.clone().requires_grad_() for array in operands)
        y = torch.relu(conv2d(x, w, b, **options))
        given = [array.detach() for array in (dy, y, x, w)]
        places = tuple(map(torch.empty_like, operands))
        calls = {
            "fastrelu": lambda a=given, o=options, p=places: fastrelu.conv2d_relu_backward(*a, **o, out=p),
            "torch": lambda y=y, a=(x, w, b), dy=dy: torch.autograd.grad(y, a, dy, retain_graph=True),
        }
        backward_details[key] = seconds = times(calls)
        backward[key] = seconds["torch"] / seconds["fastrelu"]
        del calls, operands, out, dy, x, w, b, y, given, places
    for name, ratios, details in (
        ("conv2d_relu", forward, forward_details),
        ("conv2d_relu_backward", backward, backward_details),
    ):
        text = f"{name} float32: times the speed of PyTorch"
        yield Point(f"{text}, geometric mean over the layers", {"": geometric_mean([*ratios.values()])}, 0.9, details=details)
        yield Point(f"{text}, slowest layer", {"": min(ratios.values())}, 0.5)


def bits() -> Iterator[Point]:
    """Elements that differ from the CPU's."""
    rng = np.random.default_rng(0)
    differing = {}
    for layer in (
        Convolution("", 9, 37, 29, 31, 65, (3, 3), (2, 1), (1, 1)),
        Convolution("", 4, 48, 20, 20, 96, (5, 2), groups=4),
    ):
        x, w, b, dy = layer.operands()
        options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
        y = fastrelu.conv2d_relu(x, w, b, **options)
        theirs = (y, *fastrelu.conv2d_relu_backward(dy, y, x, w, **options))
        its_x, its_w, its_b, its_y, its_dy = (_to_device(array) for array in (x, w, b, y, dy))
        gradients = fastrelu.conv2d_relu_backward(its_dy, its_y, its_x, its_w, **options)
        got = fastrelu.conv2d_relu(its_x, its_w, its_b, **options), *gradients
        for name, ours, its in zip(("y", "dx", "dw", "db"), got, theirs, strict=True):
            host = np.asarray(ours.cpu().numpy())
            key = f"{name}, {layer.c} channels to {layer.outputs}"
            differing[key] = float(np.count_nonzero(host.view(np.uint32) != its.view(np.uint32)))
    for m, k, n in ((509, 1021, 263), (64, 4096, 128)):
        x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n), (n,)))
        y = fastrelu.linear_relu(x, w, b)
        dy = rng.standard_normal(y.shape).astype(np.float32)
        theirs = fastrelu.linear_relu_backward(dy, y, x, w)
        on_device = [_to_device(array) for array in (x, w, b, y, dy)]
        got = [fastrelu.linear_relu(*on_device[:3]), *fastrelu.linear_relu_backward(on_device[4], on_device[3], *on_device[:2])]
        for name, ours, its in zip(("y", "dx", "dw", "db"), got, (y, *theirs), strict=True):
            host = np.asarray(ours.cpu().numpy())
            differing[f"{name}, {m} x {k} x {n}"] = float(np.count_nonzero(host.view(np.uint32) != its.view(np.uint32)))
    yield Point('"highest": elements whose bits differ from the CPU\'s', differing, 0, at_most=True)


def _to_device(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def host_time() -> Iterator[Point]:
    """What a call costs the host."""
    import torch

    x, y, dy = normal(1000), normal(1000), normal(1000)
    a, w, b, out = normal(4, 64), normal(64, 64), normal(64), normal(4, 64)
    images, kernels, features = normal(2, 8, 6, 6), normal(64, 8, 3, 3), normal(2, 64, 4, 4)
    seconds = host_times(
        {
            "relu": lambda: fastrelu.relu(x, out=y),
            "relu_backward": lambda: fastrelu.relu_backward(dy, x, out=y),
            "linear_relu": lambda: fastrelu.linear_relu(a, w, b, out=out),
            "conv2d_relu": lambda: fastrelu.conv2d_relu(images, kernels, b, out=features),
            "torch clamp_min": lambda: torch.clamp_min(x, 0, out=y),
            "torch addmm": lambda: torch._addmm_activation(b, a, w, use_gelu=False, out=out),
        }
    )
    ours = {name: taken for name, taken in seconds.items() if not name.startswith("torch")}
    yield Point("host time of a call", ours, 20e-6, at_most=True, unit="s", details={"": seconds})


def _tf32(allowed: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def machine() -> dict[str, str]:
    """The device and the versions."""
    import torch

    names = ("fastrelu", "numba-cuda", "cuda-bindings", "numpy", "torch")
    device = torch.cuda.get_device_properties(0)
    return {
        "device": f"{device.name}, {device.multi_processor_count} multiprocessors",
        "compute capability": f"{device.major}.{device.minor}",
        "CUDA of PyTorch": str(torch.version.cuda),
        **{name: version(name) for name in names},
    }


def row(point: Point) -> str:
    """A line of what is printed."""
    missed = point.missed()
    scale, unit = {"%": (100, " %"), "s": (1e6, " us")}.get(point.unit, (1, ""))
    values = ", ".join(f"{key + ': ' if key else ''}{scale * value:.4g}{unit}" for key, value in point.values.items())
    sign = "<=" if point.at_most else ">="
    return f"{'missed' if missed else 'ok':6}  {point.name}  (target {sign} {scale * point.target:g}{unit})\n        {values}"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__)
    parser.add_argument("--only", choices=GROUPS, help="one group of points, printed only")
    parser.add_argument("--shapes", type=Path, help="other layers, from a JSON file")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write")
    options = parser.parse_args(arguments)
    if reason := missing():
        parser.exit(1, f"bench.cuda measures a GPU: {reason}\n")
    layers = read(options.shapes) if options.shapes else LAYERS
    points = []
    for name in [options.only] if options.only else GROUPS:
        for point in GROUPS[name](layers) if name == "highest" else GROUPS[name]():
            print(row(point), flush=True)
            points.append(asdict(point))
    if not options.only:
        results = {"date": datetime.date.today().isoformat(), "machine": machine(), "points": points}
        options.out.write_text(json.dumps(results, indent=1) + "\n")


GROUPS: dict[str, Callable[..., Iterator[Point]]] = {
    "streaming": streaming,
    "highest": highest,
    "high": high,
    "medium": medium,
    "backward": backward,
    "convolutions": convolutions,
    "bits": bits,
    "host_time": host_time,
}

if __name__ == "__main__":
    main()
