"""Kernels for NVIDIA GPUs: grids, blocks and shared memory, of operations that bear the same names as on the CPU."""
