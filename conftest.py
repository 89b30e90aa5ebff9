"""What pytest must not import: it looks for examples in all files, and those for CUDA need the extra ``cuda``."""

from importlib.util import find_spec

# Numba has a part named cuda as well, an old one that lacks much: numba-cuda is what the extra brings.
collect_ignore_glob = [] if find_spec("numba_cuda") else ["fastrelu/cuda/*", "tests/cuda/*"]
