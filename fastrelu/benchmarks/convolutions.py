"""Convolutions of real networks, and the models that they come from."""

from __future__ import annotations

import json
from pathlib import Path

from fastrelu.convolution_peers import Convolution

ONE, TWO = (1, 1), (2, 2)
LAYERS = [
    Convolution("LeNet-5, LeCun et al. 1998", 64, 1, 28, 28, 6, (5, 5), padding=TWO),
    Convolution("LeNet-5, LeCun et al. 1998", 64, 6, 14, 14, 16, (5, 5)),
    Convolution("CIFAR-10 classifier", 64, 3, 32, 32, 32, (3, 3), padding=ONE),
    Convolution("CIFAR-10 classifier", 64, 32, 16, 16, 64, (3, 3), padding=ONE),
    Convolution("VGG-16, Simonyan and Zisserman 2014", 1, 64, 224, 224, 64, (3, 3), padding=ONE),
    Convolution("VGG-16, Simonyan and Zisserman 2014", 4, 256, 56, 56, 256, (3, 3), padding=ONE),
    Convolution("ResNet-50, He et al. 2015", 8, 3, 224, 224, 64, (7, 7), TWO, (3, 3)),
    Convolution("ResNet-50, He et al. 2015", 8, 64, 56, 56, 256, (1, 1)),
    Convolution("ResNet-50, He et al. 2015", 8, 128, 28, 28, 128, (3, 3), padding=ONE),
    Convolution("ResNet-50, He et al. 2015", 8, 256, 56, 56, 512, (1, 1), TWO),
    Convolution("ResNet-50, He et al. 2015", 8, 512, 7, 7, 512, (3, 3), padding=ONE),
    Convolution("ResNet-50, He et al. 2015", 1, 256, 14, 14, 256, (3, 3), padding=ONE),
    Convolution("MobileNetV2, Sandler et al. 2018", 8, 96, 56, 56, 96, (3, 3), padding=ONE, groups=96),
    Convolution("MobileNetV2, Sandler et al. 2018", 8, 144, 56, 56, 144, (3, 3), TWO, ONE, groups=144),
    Convolution("ResNeXt-50, Xie et al. 2016", 8, 128, 56, 56, 128, (3, 3), padding=ONE, groups=32),
    Convolution("DQN, Mnih et al. 2015", 32, 4, 84, 84, 32, (8, 8), (4, 4)),
    Convolution("DeepLab, Chen et al. 2017", 1, 512, 28, 28, 256, (3, 3), padding=TWO, dilation=TWO),
]


def read(path: Path, most_operations: float = 20e9, most_bytes: float = 1e9) -> list[Convolution]:
    """The layers in a JSON file: under ``"conv2d"`` a list of objects with ``n c h w out_c kh kw sh sw ph pw dh dw groups``.

    Parameters
    ----------
    path : Path
        The file.
    most_operations, most_bytes : float
        Larger ones are left out, and those with another padding at the end than at the beginning.
    """
    layers = [
        Convolution(
            e["name"],
            *(e["n"], e["c"], e["h"], e["w"], e["out_c"], (e["kh"], e["kw"]), (e["sh"], e["sw"]), (e["ph"], e["pw"])),
            *((e["dh"], e["dw"]), e["groups"]),
        )
        for e in json.loads(path.read_text(encoding="utf-8"))["conv2d"]
        if e["symmetric_padding"]
    ]
    return [layer for layer in layers if layer.operations <= most_operations and layer.nbytes <= most_bytes]


def describe(layer: Convolution) -> str:
    """The layer in a few words."""
    options = {"stride": layer.stride, "dilation": layer.dilation, "groups": (layer.groups, 1)}
    said = "".join(f" {name} {value[0]}" for name, value in options.items() if value[0] != 1)
    return f"{layer.n}x{layer.c}x{layer.h}x{layer.w} to {layer.outputs}, {layer.kernel[0]}x{layer.kernel[1]}{said}"
