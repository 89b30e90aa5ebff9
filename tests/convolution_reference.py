"""The reference of convolutions: every sum term by term, in the order that `fastrelu.convolution` states.

The terms of each output are gathered into a matrix, whose products `tests.reference.linear` adds in order.
"""

import math
from dataclasses import dataclass

import numpy as np

import fastrelu
from fastrelu.operations import HALVES
from tests.reference import linear

Pair = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """Shapes of x and w, and how they meet; padding as (top, left, bottom, right) or as the functions take it."""

    x: tuple[int, int, int, int]
    outputs: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[int, ...] | str = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def w(self) -> tuple[int, int, int, int]:
        return self.outputs, self.x[1] // self.groups, *self.kernel

    @property
    def options(self) -> dict:
        """The arguments of the functions."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Zeros at the top, at the left, at the bottom and at the right."""
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2
        return (0,) * 4 if self.padding == "valid" else (*self.padding, *self.padding)

    @property
    def y(self) -> tuple[int, int, int, int]:
        """The shape of the output."""
        pads, size = self.pads, []
        for i in range(2):
            room = self.x[2 + i] + pads[i] + pads[2 + i] - self.dilation[i] * (self.kernel[i] - 1) - 1
            size.append(room // self.stride[i] + 1)
        return self.x[0], self.outputs, *size

    def operands(self, dtype: type | np.dtype | str = "float32", seed: int = 0) -> tuple[np.ndarray, ...]:
        """Reproducible x, w and b."""
        rng = np.random.default_rng(seed)
        return tuple(rng.standard_normal(shape, np.float32).astype(dtype) for shape in (self.x, self.w, self.outputs))


def _wide(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a, np.float32 if a.dtype.name in HALVES else a.dtype)


def taps(case: Case, x: np.ndarray) -> np.ndarray:
    """What each position of the output sees: (N, C, KH, KW, OH, OW)."""
    top, left, bottom, right = case.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (sh, sw), (dh, dw), (oh, ow) = case.stride, case.dilation, case.y[2:]
    seen = np.empty((*x.shape[:2], *case.kernel, oh, ow), x.dtype)
    for i in range(case.kernel[0]):
        for j in range(case.kernel[1]):
            rows, columns = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh), slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
            seen[:, :, i, j] = padded[:, :, rows, columns]
    return seen


def _groups(case: Case, a: np.ndarray, axis: int) -> list[np.ndarray]:
    return np.split(a, case.groups, axis)


def sums(case: Case, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """The convolution, of halves in float32."""
    images, _, oh, ow = case.y
    seen, w = taps(case, _wide(x)), _wide(w)
    y = []
    for g, (part, weight) in enumerate(zip(_groups(case, seen, 1), _groups(case, w, 0), strict=True)):
        bias = None if b is None else _wide(b)[g * len(weight) : (g + 1) * len(weight)]
        terms = part.transpose(0, 4, 5, 1, 2, 3).reshape(images * oh * ow, -1)
        y.append(linear(terms, weight.reshape(len(weight), -1).T, bias).reshape(images, oh, ow, -1).transpose(0, 3, 1, 2))
    return np.concatenate(y, 1)


def layer(name: str, case: Case, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, *alpha: float) -> np.ndarray:
    """The function `name`: of these sums the package's own activation, rounded to the type of x."""
    y = sums(case, x, w, b)
    if name != "conv2d":
        y = getattr(fastrelu, name.removeprefix("conv2d_"))(y, *[np.asarray(a, y.dtype) for a in alpha])
    with np.errstate(all="ignore"):
        return y.astype(x.dtype)


def _dx(case: Case, dz: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The gradient of one group's input, one phase of the stride after the other."""
    images, (height, width), (top, left) = len(dz), case.x[2:], case.pads[:2]
    (sh, sw), (dh, dw), (oh, ow) = case.stride, case.dilation, case.y[2:]
    dx = np.zeros((images, w.shape[1], height, width), dz.dtype)
    # A row and a column of zeros stand for what lies outside.
    dz = np.pad(dz, ((0, 0), (0, 0), (0, 1), (0, 1)))
    for first_row in range(min(sh, height)):
        for first_column in range(min(sw, width)):
            kh = np.array([i for i in range(w.shape[2]) if (first_row + top - i * dh) % sh == 0], int)
            kw = np.array([j for j in range(w.shape[3]) if (first_column + left - j * dw) % sw == 0], int)
            rows = (np.arange(first_row, height, sh)[:, None] + top - kh * dh) // sh
            columns = (np.arange(first_column, width, sw)[:, None] + left - kw * dw) // sw
            rows[(rows < 0) | (rows > oh)], columns[(columns < 0) | (columns > ow)] = oh, ow
            seen = dz[:, :, rows[:, None, :, None], columns[None, :, None, :]]  # (N, O, H, W, KH, KW)
            seen = seen.transpose(0, 2, 3, 1, 4, 5)
            terms = seen.reshape(math.prod(seen.shape[:3]), math.prod(seen.shape[3:]))
            weight = w[:, :, kh][..., kw].transpose(0, 2, 3, 1).reshape(-1, w.shape[1])
            phase = linear(terms, weight).reshape(*seen.shape[:3], -1).transpose(0, 3, 1, 2)
            dx[:, :, first_row::sh, first_column::sw] = phase
    return dx


def backward(
    name: str,
    case: Case,
    dy: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    *alpha: float,
    added_to: tuple = (None, None, None),
) -> tuple[np.ndarray, ...]:
    """The gradients dx, dw and db by the function `name`, added to what is given for each, rounded to the type of dy."""
    dz = _wide(dy)
    if name != "conv2d_backward":
        dz = getattr(fastrelu, name.removeprefix("conv2d_"))(dz, _wide(y), *[np.asarray(a, dz.dtype) for a in alpha])
    seen, weights = taps(case, _wide(x)), _groups(case, _wide(w), 0)
    dx, dw, db = [], [], []
    for part, weight, z in zip(_groups(case, seen, 1), weights, _groups(case, dz, 1), strict=True):
        columns = z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1])
        rows = part.transpose(1, 2, 3, 0, 4, 5).reshape(-1, len(columns))
        dw.append(linear(rows, columns).T.reshape(weight.shape))
        db.append(linear(np.ones((1, len(columns)), z.dtype), columns)[0])
        dx.append(_dx(case, z, weight))
    results = np.concatenate(dx, 1), np.concatenate(dw), np.concatenate(db)
    with np.errstate(all="ignore"):
        results = [s if a is None else a.astype(s.dtype) + s for s, a in zip(results, added_to, strict=True)]
        return tuple(s.astype(dy.dtype) for s in results)
