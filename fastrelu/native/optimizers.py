"""What the kernels of `fastrelu.kernels.optimizers` and Python agree on.

Importing this module needs neither Numba nor llvmlite.
"""

FORMULAS = {"sgd": (0, 2), "sgd_momentum": (1, 3), "adam": (2, 8)}
"""For each formula the number of arrays that it keeps for a parameter, and the number of its coefficients."""

CHUNK = 1 << 14
"""Elements that a thread updates at a time: some microseconds' work."""
