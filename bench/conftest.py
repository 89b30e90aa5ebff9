"""The options of the suite, for ``python -m pytest bench``."""

from fastrelu.benchmarks.plugin import (
    pytest_addoption,
    pytest_benchmark_generate_json,
    pytest_benchmark_update_machine_info,
    pytest_configure,
    pytest_sessionstart,
)

# The commands beside the suite need what they measure: a GPU's driver, ONNX Runtime.
collect_ignore_glob = ["[!b]*.py"]

__all__ = [
    "pytest_addoption",
    "pytest_benchmark_generate_json",
    "pytest_benchmark_update_machine_info",
    "pytest_configure",
    "pytest_sessionstart",
]
