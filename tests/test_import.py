"""What an import costs, what it brings along, and what it offers."""

import inspect
import re
from importlib.resources import files

import pytest

import fastrelu
from tests.subprocesses import run

# Prints the top-level modules that the statements add, without Python's own.
ADDED = """
import sys
before = set(sys.modules)
{statements}
added = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(added - sys.stdlib_module_names))
"""
CALL = "import fastrelu, numpy; fastrelu.relu(numpy.ones(3, numpy.float32))"


def test_import_loads_nothing_else():
    assert run(ADDED.format(statements="import fastrelu")).split() == ["fastrelu"]


def test_function_loads_numpy_only():
    assert run(ADDED.format(statements="import fastrelu; fastrelu.relu, fastrelu.linear_relu")).split() == ["fastrelu", "numpy"]


def test_all_names_are_there():
    namespace: dict[str, object] = {}
    exec("from fastrelu import *", namespace)
    assert set(fastrelu.__all__) <= namespace.keys() & set(dir(fastrelu))
    with pytest.raises(AttributeError, match="no attribute 'rely'"):
        fastrelu.rely  # noqa: B018  # the access is the test


def test_library_that_is_absent_hides_nothing_else():
    # `help(fastrelu)` and others look at all that `dir` names.
    code = """
import inspect, sys
sys.modules.update(dict.fromkeys(("jax", "onnx", "torch")))
import fastrelu
print([name for name in ("jax", "onnx", "torch") if hasattr(fastrelu, name)])
print(dict(inspect.getmembers(fastrelu))["jit"].__name__)
try:
    fastrelu.torch
except AttributeError as error:
    print(error)
"""
    assert run(code).splitlines() == [
        "[]",
        "fastrelu.jit",
        "module 'fastrelu' cannot offer 'torch': fastrelu.torch needs PyTorch 2.5 or newer: pip install \"fastrelu[torch]\"",
    ]


def test_name_that_is_not_there_meets_the_one_that_is():
    for statement, name in (("import fastrelu; fastrelu.rely", "relu"), ("from fastrelu import nn; nn.Relu", "ReLU")):
        with pytest.raises(AssertionError, match=f"Did you mean: '{name}'"):
            run(statement)


def test_warm_call_loads_no_compiler():
    run(CALL)
    assert run(ADDED.format(statements=CALL)).split() == ["fastrelu", "llvmlite", "numpy"]


def test_package_is_marked_as_typed():
    assert files("fastrelu").joinpath("py.typed").is_file()


def documented_parameters(docstring: str) -> list[str]:
    """The names in the numpydoc section "Parameters"."""
    section = re.search(r"^Parameters\n-{10}\n(.*?)(?=\n\n\S+\n---|\Z)", docstring, re.MULTILINE | re.DOTALL)
    lines = section.group(1).splitlines() if section else []
    entries = [line.partition(" : ")[0] for line in lines if line and not line.startswith(" ")]
    return [name.strip("* ") for entry in entries for name in entry.split(",")]


@pytest.mark.parametrize("name", fastrelu.__all__)
def test_docstring_names_the_parameters_of_the_signature(name):
    function = getattr(fastrelu, name)
    assert documented_parameters(inspect.getdoc(function)) == list(inspect.signature(function).parameters)
