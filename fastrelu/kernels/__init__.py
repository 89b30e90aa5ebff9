"""The kernels: Python sources for Numba. Nothing here runs as Python, and nothing here is imported once a loop is cached."""
