"""The same operations on NVIDIA GPUs, where the data live.

Nobody calls this package: an array of CuPy, PyTorch, JAX or numba-cuda among the operands of ``fastrelu.relu`` and its
siblings leads here, and `fastrelu.use` brings NumPy arrays here. Importing it imports neither Numba nor CUDA.
"""

from fastrelu.cuda.availability import Device, devices, is_available, reason

__all__ = ["Device", "devices", "is_available", "reason"]
