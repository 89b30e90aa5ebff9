"""Narrower vectors than this machine has: another compilation of the same source gives the same bits."""

import hashlib

import ml_dtypes
import numpy as np
import pytest

from fastrelu import ufuncs
from fastrelu.native import target
from fastrelu.operations import OPERATIONS
from tests.subprocesses import call, run

# Settings under which the package is compiled for fewer instructions, and the width of the vectors that then remain.
TARGETS = {
    "avx2": ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"}, 32),
    "sse4": ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse4.2"}, 16),
    "generic": ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": None}, 16),
    "no_avx": ({"NUMBA_ENABLE_AVX": "0"}, 16),
}

pytestmark = pytest.mark.skipif(not target.has_feature("avx2"), reason="only the features of x86 processors are varied")


def digests(*names: str) -> dict[str, str]:
    """Of each operation and dtype, the digest of its results: all lengths of a few vectors, and an array for the pool."""
    found = {}
    for name in names:
        operation, function = OPERATIONS[name], getattr(ufuncs, name)
        for dtype in operation.dtypes:
            kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
            rng = np.random.default_rng(7)
            digest = hashlib.sha256()
            for size in (*range(71), 70_001):
                # Random bits: every exponent, both signs, subnormals, infinities, NaNs.
                bits = rng.integers(0, 256, (len(operation.inputs), (size + 1) * kind.itemsize), np.uint8)
                operands = [row.view(kind)[:size] for row in bits]
                results = [function(*operands)]
                if operation.parameter >= 0:
                    results.append(function(*operands[:-1], bits[-1].view(kind)[-1]))
                for result in results:
                    if operation.arithmetic:
                        result[np.isnan(result)] = np.nan  # which NaN a calculation returns is open
                    digest.update(result.tobytes())
            found[f"{name} {dtype}"] = digest.hexdigest()
    return found


def print_digests(*names):
    print(digests(*names))


BY_DAY = [("relu", "avx2"), ("prelu", "avx2"), ("tanh", "avx2"), ("softplus_backward", "avx2")]
ALL = [(name, to) for name in OPERATIONS for to in ("avx2", "sse4")]


@pytest.mark.parametrize(
    ("name", "to"), [*BY_DAY, *(pytest.param(*one, marks=pytest.mark.nightly) for one in ALL if one not in BY_DAY)]
)
def test_bits_are_the_same(name, to):
    """Those of a process that compiles for another target."""
    assert eval(call(print_digests, name, env=TARGETS[to][0])) == digests(name)


# Without its own instructions for fused multiply-adds and float16, a processor calls functions of the C library.
@pytest.mark.nightly
@pytest.mark.parametrize("to", ["generic", "no_avx"])
def test_target_without_fma_and_f16c(to):
    names = ("softplus_backward",)
    environment = {**TARGETS[to][0], "FASTRELU_CACHE_DIR": "off"}
    assert eval(call(print_digests, *names, env=environment)) == digests(*names)


@pytest.mark.parametrize("to", TARGETS)
def test_vectors_have_the_width_of_the_target(to):
    code = "from fastrelu.native import target; print(target.vector_bytes())"
    assert int(run(code, env=TARGETS[to][0])) == TARGETS[to][1]


def compare_with_numba():
    from numba.core.registry import cpu_target

    codegen = cpu_target.target_context.codegen()
    assert codegen._get_host_cpu_name() == target.cpu_name()
    # What the processor lacks may be left out of one of them.
    ours, numbas = ({f for f in text.split(",") if f.startswith("+")} for text in (target.cpu_features(), codegen._tm_features))
    assert ours == numbas


@pytest.mark.parametrize("to", ["this_machine", *TARGETS])
def test_numba_compiles_for_the_same_target(to):
    call(compare_with_numba, env=TARGETS[to][0] if to in TARGETS else None)


def test_disabled_jit():
    # The setting is for a program's own functions, to debug them as Python; kernels exist as machine code only.
    environment = {"NUMBA_DISABLE_JIT": "1", "FASTRELU_CACHE_DIR": "off"}
    assert eval(call(print_digests, "leaky_relu", env=environment)) == digests("leaky_relu")
