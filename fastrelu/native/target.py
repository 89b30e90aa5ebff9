"""The machine that kernels are compiled for, and the sizes that follow from it."""

import os
import platform
import sys
from functools import cache

import llvmlite.binding as llvm

_DEFAULT_LAST_LEVEL_CACHE = 32 << 20
_COMPILER_SETTINGS = ("NUMBA_OPT", "NUMBA_LOOP_VECTORIZE", "NUMBA_SLP_VECTORIZE", "NUMBA_DEBUGINFO", "NUMBA_BOUNDSCHECK")


@cache
def initialize() -> None:
    """Make LLVM ready for this machine. Numba does the same; doing it twice is harmless."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@cache
def cpu_name() -> str:
    """The processor as LLVM names it, or what ``NUMBA_CPU_NAME`` asks for."""
    return os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()


@cache
def cpu_features() -> str:
    """Its instruction sets in LLVM's notation, or what ``NUMBA_CPU_FEATURES`` asks for."""
    asked = os.environ.get("NUMBA_CPU_FEATURES")
    if asked is not None or cpu_name() == "generic":
        return asked or ""
    features = llvm.get_host_cpu_features()
    if os.environ.get("NUMBA_ENABLE_AVX") == "0":
        features.update({name: False for name in features if name.startswith("avx")})
    return str(features.flatten())


def has_feature(name: str) -> bool:
    return f"+{name}" in cpu_features().split(",")


@cache
def vector_bytes() -> int:
    """Width of a SIMD register: 64 with AVX-512, 32 with AVX2, else 16 (SSE, NEON)."""
    if has_feature("avx512f") and has_feature("avx512bw"):
        return 64
    return 32 if has_feature("avx2") else 16


@cache
def last_level_cache() -> int:
    """Bytes of the largest cache that this process's first core sees."""
    folder = "/sys/devices/system/cpu/cpu0/cache"
    sizes = [0]
    for index in range(8):
        try:
            with open(f"{folder}/index{index}/size") as file:
                text = file.read().strip()
        except OSError:
            break
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 0)
        sizes.append(int(text[:-1]) * unit if unit else int(text))
    return max(sizes) or _DEFAULT_LAST_LEVEL_CACHE


def describe() -> str:
    """All that the machine code of a kernel depends on, besides its source and the compiler."""
    settings = [f"{name}={os.environ.get(name)}" for name in _COMPILER_SETTINGS]
    return "\n".join((sys.platform, platform.machine(), cpu_name(), cpu_features(), *settings))
