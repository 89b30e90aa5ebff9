"""The suite of ``python -m fastrelu bench``, with all that pytest and pytest-benchmark can do: ``python -m pytest bench``."""

from fastrelu.benchmarks.suite import pytest_generate_tests, test_operation

__all__ = ["pytest_generate_tests", "test_operation"]
