"""The cache of compiled kernels can only help: it is never stale, never half written, and no trouble with it breaks a call."""

import errno
import importlib.util
import os
import platform
import shutil
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.native import store
from tests.subprocesses import ROOT, call, run

needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a feature of x86 processors")


def relu_is_right(*dtypes):
    """In a fresh process: the results for each type."""
    for dtype in dtypes:
        x = (np.arange(-100, 100) % 77 - 38).astype(dtype)
        assert_array_equal(fastrelu.relu(x), np.where(x > 0, x, 0))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A cache with relu for float32."""
    folder = tmp_path_factory.mktemp("filled")
    call(relu_is_right, "float32", env={"FASTRELU_CACHE_DIR": str(folder)})
    return folder


@pytest.fixture
def own(filled, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(filled, tmp_path / "cache"))


# Where the cache is: the environment names it, or not.


def test_home(tmp_path):
    environment = {"FASTRELU_CACHE_DIR": None, "XDG_CACHE_HOME": None, "LOCALAPPDATA": None, "HOME": str(tmp_path)}
    call(relu_is_right, "float32", env=environment)
    assert any("fastrelu_relu_float32" in name for name in contents(tmp_path))


def test_off_writes_nothing(tmp_path):
    environment = {"FASTRELU_CACHE_DIR": "off", "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    call(relu_is_right, "float32", env=environment)
    assert contents(tmp_path) == {}


# Unusable folders.


def warns_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        relu_is_right("float32", "float64")
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "FASTRELU_CACHE_DIR" in str(caught[0].message)


@pytest.mark.parametrize("variable", ["FASTRELU_CACHE_DIR", "HOME"])
def test_folder_cannot_be_made(tmp_path, variable):
    # Below a regular file nobody can make a folder, not even root.
    (tmp_path / "file").touch()
    others = {"FASTRELU_CACHE_DIR": None, "XDG_CACHE_HOME": None}
    call(warns_once, env={**others, variable: str(tmp_path / "file" / "folder")})


def test_entry_cannot_be_replaced(own):
    for path in own.rglob("fastrelu_*"):
        path.unlink()
        path.mkdir()
    call(warns_once, env={"FASTRELU_CACHE_DIR": str(own)})
    assert [Path(name).name.split("_")[2] for name in contents(own)] == ["float64"]  # and no leftovers


def disk_fills_up():
    import resource

    # No file may grow beyond this: a write fails as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    warns_once()


def test_disk_fills_up(tmp_path):
    call(disk_fills_up, env={"FASTRELU_CACHE_DIR": str(tmp_path)})
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("module", "function"), [(os, "replace"), (tempfile, "NamedTemporaryFile"), (Path, "mkdir")])
def test_step_of_writing_fails(tmp_path, monkeypatch, module, function):
    def fails(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("FASTRELU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(store, "_warned", False)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fails)
        with pytest.warns(RuntimeWarning, match="No space left"):
            store.write("kernel", b"code")
        store.write("kernel", b"code")  # a second warning would be an error here
    assert contents(tmp_path) == {}
    assert store.read("kernel") is None


def folder_disappears(folder):
    relu_is_right("float32")
    shutil.rmtree(folder)
    relu_is_right("float32", "float64")


def test_folder_disappears_while_in_use(own):
    call(folder_disappears, str(own), env={"FASTRELU_CACHE_DIR": str(own)})
    assert [Path(name).name.split("_")[2] for name in contents(own)] == ["float64"]


# Damaged files.


def test_every_truncation_and_every_flipped_bit_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRELU_CACHE_DIR", str(tmp_path))
    store.write("kernel", b"machine code")
    file = store.folder() / "kernel"
    whole = file.read_bytes()
    assert store.read("kernel") == b"machine code"
    damaged = [whole[:size] for size in range(len(whole))] + [whole + b"\0", bytes(len(whole))]
    damaged += [bytes(b ^ (1 << bit % 8) * (i == bit // 8) for i, b in enumerate(whole)) for bit in range(8 * len(whole))]
    for content in damaged:
        file.write_bytes(content)
        assert store.read("kernel") is None


def test_damaged_files_are_compiled_again(own, filled):
    damages = (lambda code: b"", lambda code: code[:-1], lambda code: code[:99] + bytes([code[99] ^ 1]) + code[100:])
    files = sorted(own.rglob("fastrelu_*"))
    assert len(files) == len(damages)
    for file, damage in zip(files, damages, strict=True):
        file.write_bytes(damage(file.read_bytes()))
    call(relu_is_right, "float32", env={"FASTRELU_CACHE_DIR": str(own)})
    assert contents(own) == contents(filled)


# Never stale.


def test_hit_leaves_files_alone(own):
    before = {path: path.stat() for path in own.rglob("*")}
    output = run(
        "import sys\nfrom tests.test_cache import relu_is_right\nrelu_is_right('float32')\nprint('numba' in sys.modules)",
        env={"FASTRELU_CACHE_DIR": str(own)},
    )
    assert output == "False\n"
    after = {path: path.stat() for path in own.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_ino) for p, s in after.items()} == {p: (s.st_mtime_ns, s.st_ino) for p, s in before.items()}


def key_of(package: Path) -> str:
    spec = importlib.util.spec_from_file_location("another_store", package / "native" / "store.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.folder().name


KERNEL_SOURCES = [
    *(f"kernels/{path.name}" for path in (ROOT / "fastrelu" / "kernels").glob("*.py")),
    "native/compiler.py",
    "native/loops.py",  # the signatures
    "native/pool.py",  # offsets in the pool's memory, which kernels contain
    "operations.py",  # what a loop is compiled for, the grain for one
]


@pytest.mark.parametrize("source", KERNEL_SOURCES)
def test_changed_source_is_another_folder(tmp_path, monkeypatch, source):
    monkeypatch.delenv("FASTRELU_CACHE_DIR", raising=False)
    package = Path(shutil.copytree(ROOT / "fastrelu", tmp_path / "fastrelu"))
    before = key_of(package)
    with open(package / source, "a") as file:
        file.write("# changed\n")
    assert key_of(package) != before


def test_changed_formula_counts_at_once(own, tmp_path):
    package = Path(shutil.copytree(ROOT / "fastrelu", tmp_path / "fastrelu"))
    with open(package / "kernels" / "formulas.py", "a") as file:
        file.write("\n\n@register_jitable\ndef relu(x):\n    return where(is_minus(x), x, 0)\n")
    code = "import fastrelu, numpy; print(*fastrelu.relu(numpy.array([-2, 3], numpy.float32)))"
    both = {"FASTRELU_CACHE_DIR": str(own)}
    assert run(code, env=both) == "0.0 3.0\n"
    assert run(code, env={**both, "PYTHONPATH": str(tmp_path)}) == "-2.0 0.0\n"
    assert run(code, env=both) == "0.0 3.0\n"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("NUMBA_CPU_FEATURES", "+sse4.2", marks=needs_x86),
        ("NUMBA_CPU_NAME", "generic"),
        ("NUMBA_ENABLE_AVX", "0"),
        ("NUMBA_OPT", "0"),
        ("NUMBA_DEBUGINFO", "1"),
    ],
)
def test_setting_that_changes_machine_code(tmp_path, filled, variable, value):
    # Code made under such a setting must not reach processes without it: another folder, or the same code in spite of it.
    call(relu_is_right, "float32", env={"FASTRELU_CACHE_DIR": str(tmp_path), variable: value})
    usual, other = contents(filled), contents(tmp_path)
    assert len(other) == len(usual)
    assert [name for name, code in other.items() if usual.get(name, code) != code] == []


# Several processes.


def print_results(*calls):
    for name, dtype in calls:
        x = np.linspace(-3, 3, 1000).astype(dtype)
        print(getattr(fastrelu, name)(x).tobytes().hex())


def test_kernels_that_different_processes_compiled(tmp_path):
    # Numba numbers functions in the order of their compilation, so that the first loop of each process has the same name
    # within its object file; a process that loads them all must still tell them apart.
    environment = {"FASTRELU_CACHE_DIR": str(tmp_path)}
    calls = [("elu", "float16"), ("leaky_relu", "float32"), ("sigmoid", "float64"), ("tanh", "float32"), ("elu", "float32")]
    call(relu_is_right, "int8", env=environment)
    with ThreadPoolExecutor(3) as pool:
        alone = list(pool.map(lambda one: call(print_results, one, env=environment), calls))
    assert call(print_results, *calls, env=environment) == "".join(alone)


def test_six_processes_fill_one_empty_cache(tmp_path):
    dtypes = ("float16", "float32", "float64", "int8", "int32", "uint64")
    environment = {"FASTRELU_CACHE_DIR": str(tmp_path)}
    with ThreadPoolExecutor(6) as pool:
        # Everyone begins with the runtime that all need, then with another type.
        for result in [
            pool.submit(call, relu_is_right, *dtypes[i:], *dtypes[:i], env=environment, timeout=120) for i in range(6)
        ]:
            result.result()
    names = [Path(name).name for name in contents(tmp_path)]
    assert len(names) == 2 + len(dtypes)
    assert all(name.startswith("fastrelu_") for name in names)
    run(
        f"import sys\nfrom tests.test_cache import relu_is_right\nrelu_is_right(*{dtypes})\nassert 'numba' not in sys.modules",
        env=environment,
    )
