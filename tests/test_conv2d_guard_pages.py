"""Convolutions touch nothing outside their arrays, which stand directly before or after memory that cannot be touched."""

import itertools
import sys

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.native import target
from fastrelu.operations import FLOATS
from tests.convolution_reference import Case
from tests.reference import bits
from tests.subprocesses import call
from tests.test_guard_pages import Guarded
from tests.test_target import TARGETS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no mprotect here")

_MARK = 0xA5


def _array(block: Guarded, kind: np.dtype, shape: tuple[int, ...], layout: str, at_end: bool) -> np.ndarray:
    """An array of a shape whose last or first element touches a guard, in rows or with its channels last."""
    flat = block.array(kind, int(np.prod(shape)), 1, at_end)
    if layout == "rows" or len(shape) < 4:
        return flat.reshape(shape)
    images, channels, height, width = shape
    return flat.reshape(images, height, width, channels).transpose(0, 3, 1, 2)


def sweep(dtypes: tuple[str, ...], cases: list[tuple], threads: int) -> None:
    """Call a layer and its gradient for all cases, with all operands and results at either guard."""
    fastrelu.set_num_threads(threads)
    cases = [Case(*case) for case in cases]
    largest = [max(int(np.prod(shape)) for shape in shapes) for shapes in zip(*((c.x, c.w, c.y) for c in cases), strict=True)]
    names = {"x": 0, "w": 1, "y": 2, "dy": 2, "dx": 0, "dw": 1, "b": 1, "db": 1, "out": 2}
    blocks = {name: Guarded(8 * max(largest[i], 64)) for name, i in names.items()}
    rng = np.random.default_rng(3)
    for dtype in dtypes:
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        for name in ("x", "w", "y", "dy", "b"):
            view = blocks[name].bytes.view(kind)
            view[:] = rng.standard_normal(len(view)).astype(np.float32)
        for case, layout, at_end in itertools.product(cases, ("rows", "channels last"), (False, True)):
            shapes = {"x": case.x, "w": case.w, "y": case.y, "dy": case.y, "b": (case.outputs,)}
            given = {name: _array(blocks[name], kind, shape, layout, at_end) for name, shape in shapes.items()}
            copies = {name: np.array(a) for name, a in given.items()}
            expected = [fastrelu.conv2d_relu(*(copies[name] for name in "xwb"), **case.options)]
            expected += fastrelu.conv2d_relu_backward(*(copies[name] for name in ("dy", "y", "x", "w")), **case.options)
            out_shapes = {"out": case.y, "dx": case.x, "dw": case.w, "db": (case.outputs,)}
            for name in out_shapes:
                blocks[name].bytes[:] = _MARK
            outs = [_array(blocks[name], kind, shape, "rows", at_end) for name, shape in out_shapes.items()]
            fastrelu.conv2d_relu(given["x"], given["w"], given["b"], **case.options, out=outs[0])
            operands = [given[name] for name in ("dy", "y", "x", "w")]
            fastrelu.conv2d_relu_backward(*operands, **case.options, out=tuple(outs[1:]))
            for name, out, wanted in zip(out_shapes, outs, expected, strict=True):
                # Equal to a plain call, so that every element is written; and nothing else is.
                assert_array_equal(bits(out), bits(wanted), err_msg=f"{name} {dtype} {layout} {at_end} {case}")
                out.view(np.uint8)[...] = _MARK
                assert (blocks[name].bytes == _MARK).all(), (name, dtype, layout, at_end, case)


def _cases(widths, kernels, strides=((1, 1),), paddings=((0, 0),)) -> list[tuple]:
    return [
        ((2, 3, height, width), 5, kernel, stride, padding)
        for width, kernel, stride, padding in itertools.product(widths, kernels, strides, paddings)
        for height in (kernel[0] + 2,)
        if width >= kernel[1]
    ]


def test_widths():
    cases = _cases([*range(1, 20), 31, 33, 63, 65, 130], [(1, 1), (2, 3)], paddings=[(0, 0), (1, 1)])
    call(sweep, ("float32",), cases, 1, timeout=300)


@pytest.mark.parametrize("dtype", FLOATS)
def test_strides(dtype):
    cases = _cases([5, 17, 40], [(1, 1), (3, 2)], [(1, 2), (2, 3), (3, 1)], [(0, 0), (1, 1)])
    call(sweep, (dtype,), cases, 1, timeout=300)


def test_groups_and_dilation():
    cases = [
        ((2, 6, 9, 11), 6, (3, 2), (1, 1), (1, 2), (2, 3), 3),
        ((3, 17, 5, 7), 17, (3, 3), (1, 1), (1, 1), (1, 1), 17),
        ((3, 17, 5, 7), 34, (3, 3), (2, 2), (1, 1), (1, 1), 17),
        ((70, 2, 2, 3), 3, (1, 1)),
        ((70, 2, 1, 1), 3, (1, 1)),
    ]
    call(sweep, ("float32", "float16"), cases, 1, timeout=300)


def test_divided_among_threads():
    cases = [((5, 12, 20, 21), 33, (3, 3), (1, 1), (1, 1)), ((1, 40, 14, 15), 130, (3, 3)), ((3, 64, 14, 14), 70, (1, 1))]
    call(sweep, ("float32",), cases, 3, timeout=300)


@pytest.mark.nightly
@pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")
@pytest.mark.parametrize("to", ["avx2"])
def test_narrower_vectors(to):
    cases = _cases([1, 4, 7, 9, 17, 33], [(1, 1), (3, 2)], [(1, 1), (2, 2)], [(1, 1)])
    call(sweep, ("float32",), cases, 1, env=TARGETS[to][0], timeout=300)
