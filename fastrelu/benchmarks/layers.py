"""Real layers, y = relu(x @ w + b) with x (m, k) and w (k, n), and the models that they come from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Layer:
    """A layer of a model at some batch size: m rows, k inputs, n outputs."""

    model: str
    m: int
    k: int
    n: int

    @property
    def operations(self) -> int:
        """Floating-point operations of the product: two for each multiply-add."""
        return 2 * self.m * self.k * self.n

    @property
    def nbytes(self) -> int:
        """Bytes of x, w, b and y in float32."""
        return 4 * (self.m * self.k + self.k * self.n + self.n + self.m * self.n)


def _network(model: str, batches: tuple[int, ...], *widths: int) -> list[Layer]:
    """The layers of a network of dense layers of these widths, for each batch size."""
    return [Layer(model, m, k, n) for m in batches for k, n in pairwise(widths)]


LAYERS = [
    *_network("dosage network of the course text", (100,), 1, 2, 1),
    *_network("digits, 784-256-128-10 of the course text", (1, 64, 1024), 784, 256, 128, 10),
    *_network("LeNet-300-100, LeCun et al. 1998", (128,), 784, 300, 100, 10),
    *_network("VGG-16 classifier, Simonyan and Zisserman 2014", (1, 16), 25088, 4096, 4096, 1000),
    *_network("ResNet-50 classifier, He et al. 2015", (1, 128), 2048, 1000),
    *_network("MobileNetV2 classifier, Sandler et al. 2018", (32,), 1280, 1000),
    *_network("DQN, Mnih et al. 2015", (1, 32), 3136, 512, 18),
    *_network("Transformer feed-forward, Vaswani et al. 2017", (1, 25, 512), 512, 2048, 512),
    *_network("BERT-base feed-forward, Devlin et al. 2018", (128, 512), 768, 3072, 768),
    *_network("ViT-B/16 feed-forward, Dosovitskiy et al. 2020", (197,), 768, 3072, 768),
    *_network("Llama-7B feed-forward, Touvron et al. 2023", (1, 8, 128), 4096, 11008),
    *_network("DLRM bottom, Naumov et al. 2019", (2048,), 13, 512, 256, 64, 16),
    *_network("DLRM top, Naumov et al. 2019", (2048,), 479, 1024, 1024, 512, 256, 1),
    *_network("NCF, He et al. 2017", (1, 256), 256, 256, 128, 64),
    *_network("NeRF, Mildenhall et al. 2020", (16384,), 63, 256, 256),
    *_network("text classifier with mean-pooled embeddings", (64,), 300, 64, 4),
]


def read(path: Path, most_operations: float = 20e9, most_bytes: float = 1e9) -> list[Layer]:
    """The layers in a JSON file: under ``"linear"`` a list of objects with ``name``, ``m``, ``k`` and ``n``.

    Parameters
    ----------
    path : Path
        The file.
    most_operations, most_bytes : float
        Larger ones are left out: every peer keeps a copy of the weight.
    """
    entries = json.loads(path.read_text(encoding="utf-8"))["linear"]
    layers = [Layer(entry["name"], entry["m"], entry["k"], entry["n"]) for entry in entries]
    return [layer for layer in layers if layer.operations <= most_operations and layer.nbytes <= most_bytes]
