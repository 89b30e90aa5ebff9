"""The cache of compiled kernels can only help: it is never stale, never half written, and no trouble with it breaks a call."""

import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import stat
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.native import linker, store, target
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
    run("from fastrelu.native import store\nstore.write('fastrelu_kernel', b'code')", env=environment)
    assert any("fastrelu_kernel" in name for name in contents(tmp_path))


# Unusable folders.


def warns_once(*dtypes):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        relu_is_right(*(dtypes or ("float32", "float64")))
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "FASTRELU_CACHE_DIR" in str(caught[0].message)


def test_folder_cannot_be_made(tmp_path):
    # Below a regular file nobody can make a folder, not even root.
    (tmp_path / "file").touch()
    call(warns_once, env={"FASTRELU_CACHE_DIR": None, "XDG_CACHE_HOME": None, "HOME": str(tmp_path / "file" / "folder")})


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
    with pytest.warns(RuntimeWarning, match="FASTRELU_CACHE_DIR"):
        store.write("fastrelu_kernel", bytes(5000))


def test_disk_fills_up(tmp_path):
    call(disk_fills_up, env={"FASTRELU_CACHE_DIR": str(tmp_path)})
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("module", "function"), [(os, "replace"), (store, "open"), (Path, "mkdir")])
def test_step_of_writing_fails(tmp_path, monkeypatch, module, function):
    def fails(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("FASTRELU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(store, "_warned", False)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fails, raising=False)  # open is not an attribute of the module yet
        with pytest.warns(RuntimeWarning, match="No space left"):
            store.write("kernel", b"code")
        store.write("kernel", b"code")  # a second warning would be an error here
    assert contents(tmp_path) == {}
    assert store.read("kernel") is None


# What a process needs to feel permissions: root may write everywhere, by a capability that it can give up.
HEEDS_PERMISSIONS = """
import ctypes, os
if os.geteuid() == 0:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
"""
needs_permissions = pytest.mark.skipif(
    os.name != "posix" or (os.geteuid() == 0 and sys.platform != "linux"), reason="root may do everything here"
)


@needs_permissions
def test_read_only_package_and_home(tmp_path):
    package, home = tmp_path / "package", tmp_path / "home"
    shutil.copytree(ROOT / "fastrelu", package / "fastrelu", ignore=shutil.ignore_patterns("__pycache__"))
    home.mkdir()
    before = contents(tmp_path)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(path.stat().st_mode & 0o555)
    environment = {"PYTHONPATH": f"{package}{os.pathsep}{ROOT}", "HOME": str(home), "PYTHONDONTWRITEBYTECODE": None}
    try:
        run(
            f"""{HEEDS_PERMISSIONS}
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastrelu
assert fastrelu.__file__.startswith({str(package)!r})
assert not caught
from tests.test_cache import warns_once
warns_once()""",
            env={"FASTRELU_CACHE_DIR": None, "XDG_CACHE_HOME": None, **environment},
        )
        assert contents(tmp_path) == before
    finally:
        tmp_path.chmod(0o755)


def folder_turns_read_only():
    relu_is_right("float32")
    os.chmod(store.folder(), 0o555)
    warns_once("float32", "float64", "int8")
    os.chmod(store.folder(), 0o755)


@needs_permissions
def test_folder_turns_read_only_while_in_use(tmp_path, filled):
    code = f"{HEEDS_PERMISSIONS}\nfrom tests.test_cache import folder_turns_read_only\nfolder_turns_read_only()"
    run(code, env={"FASTRELU_CACHE_DIR": str(tmp_path)})
    assert contents(tmp_path) == contents(filled)


def test_other_users_may_read_what_the_umask_allows(filled):
    mask = os.umask(0)
    os.umask(mask)
    files = [path for path in filled.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


@pytest.mark.parametrize("step", ["open", "replace"])
def test_folder_is_cleared_amid_writing(tmp_path, monkeypatch, step):
    # By another process, between two steps: what had been made for the second is gone.
    monkeypatch.setenv("FASTRELU_CACHE_DIR", str(tmp_path))
    module = {"open": store, "replace": os}[step]
    usual = getattr(module, step, open)
    clears = [shutil.rmtree]

    def cleared(*arguments):
        if clears:
            clears.pop()(store.folder())
        return usual(*arguments)

    monkeypatch.setattr(module, step, cleared, raising=False)
    store.write("fastrelu_kernel", b"code")
    assert not clears
    assert store.read("fastrelu_kernel") == b"code"
    assert len(contents(tmp_path)) == 1


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


def layer_is_right():
    x, w, b = np.arange(-6.0, 6).reshape(4, 3), np.arange(15.0).reshape(3, 5), np.arange(5.0)
    assert_array_equal(fastrelu.linear_relu(x, w, b), np.maximum(x @ w + b, 0))


@pytest.fixture(scope="module")
def layer(tmp_path_factory) -> Path:
    """A cache with linear_relu for float64: kernels that call each other."""
    folder = tmp_path_factory.mktemp("layer")
    call(layer_is_right, env={"FASTRELU_CACHE_DIR": str(folder)}, timeout=180)
    return folder


def damages(content: bytes) -> list[bytes]:
    """The content of a file, cut off and with a bit flipped, at its ends and in the checksum, the header and the code."""
    size = len(content)
    cut = [content[:end] for end in (0, 1, 31, 32, 33, 96, size // 2, size - 1)]
    flipped = [
        content[:i] + bytes([content[i] ^ 16]) + content[i + 1 :] for i in (0, 31, 32, 40, size // 3, size // 2, size - 1)
    ]
    return cut + flipped


def test_damage_to_real_kernels_is_noticed(tmp_path, monkeypatch):
    layer_is_right()
    monkeypatch.setenv("FASTRELU_CACHE_DIR", str(tmp_path))
    linker.keep_all()
    files = sorted(tmp_path.rglob("fastrelu_*"))
    assert len(files) > 7
    whole = [file.read_bytes() for file in files]
    for i, file in enumerate(files):
        assert store.read(file.name) == whole[i][32:]
        for content in (*damages(whole[i]), whole[i - 1]):  # the last is another kernel's
            file.write_bytes(content)
            assert store.read(file.name) is None
        file.write_bytes(whole[i])


@pytest.mark.nightly
def test_damaged_layer_is_compiled_again(tmp_path, layer):
    shutil.copytree(layer, tmp_path, dirs_exist_ok=True)
    # The larger ones take long to compile.
    for i, file in enumerate(sorted(tmp_path.rglob("fastrelu_*"), key=lambda file: file.stat().st_size)[:5]):
        wrong = damages(file.read_bytes())
        file.write_bytes(wrong[(i + 3) % len(wrong)])
    call(layer_is_right, env={"FASTRELU_CACHE_DIR": str(tmp_path)}, timeout=180)
    assert contents(tmp_path) == contents(layer)


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


def store_of(package: Path) -> ModuleType:
    """A copy of the module that has not looked at versions and sources yet."""
    spec = importlib.util.spec_from_file_location("another_store", package / "native" / "store.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def key_of(package: Path) -> str:
    return store_of(package).folder().name


KERNEL_SOURCES = [
    *(f"{folder}/{path.name}" for folder in ("kernels", "native") for path in (ROOT / "fastrelu" / folder).glob("*.py")),
    "operations.py",  # what a loop is compiled for, the grain for one
]


def test_all_modules_that_kernels_are_built_from_are_known():
    code = """
import sys
from importlib import import_module
from pathlib import Path
for name in {sources}:
    import_module("fastrelu." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
root = Path(sys.modules["fastrelu"].__file__).parent
print(*(Path(m.__file__).relative_to(root).as_posix() for name, m in sys.modules.items() if name.startswith("fastrelu")))
"""
    loaded = set(run(code.format(sources=KERNEL_SOURCES)).split())
    # The first has names only; the others call compiled code, and are not compiled into anything.
    assert loaded - set(KERNEL_SOURCES) == {"__init__.py", "memory.py", "threads.py"}


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return Path(shutil.copytree(ROOT / "fastrelu", tmp_path_factory.mktemp("package") / "fastrelu"))


@pytest.mark.parametrize("source", KERNEL_SOURCES)
def test_changed_source_is_another_folder(package, monkeypatch, source):
    monkeypatch.delenv("FASTRELU_CACHE_DIR", raising=False)
    before = key_of(package)
    with open(package / source, "a") as file:
        file.write("# changed\n")
    assert key_of(package) != before


@pytest.mark.parametrize("upgraded", ["numba", "llvmlite", "Python", "processor"])
def test_upgrade_is_another_folder(monkeypatch, upgraded):
    monkeypatch.delenv("FASTRELU_CACHE_DIR", raising=False)
    before = key_of(ROOT / "fastrelu")
    if upgraded == "Python":
        monkeypatch.setattr(sys, "version", sys.version + " changed")
    elif upgraded == "processor":
        monkeypatch.setattr(target, "cpu_name", lambda: "another")
    else:
        usual = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: usual(name) + ".1" * (name == upgraded))
    assert key_of(ROOT / "fastrelu") != before


def test_changed_formula_counts_at_once(own, tmp_path):
    package = Path(shutil.copytree(ROOT / "fastrelu", tmp_path / "fastrelu"))
    with open(package / "kernels" / "formulas.py", "a") as file:
        file.write("\n\n@register_jitable\ndef relu(x):\n    return where(is_minus(x), x, 0)\n")
    code = "import fastrelu, numpy; print(*fastrelu.relu(numpy.array([-2, 3], numpy.float32)))"
    both = {"FASTRELU_CACHE_DIR": str(own)}
    assert run(code, env=both) == "0.0 3.0\n"
    assert run(code, env={**both, "PYTHONPATH": str(tmp_path)}) == "-2.0 0.0\n"
    assert run(code, env=both) == "0.0 3.0\n"


def test_sources_are_replaced_while_a_process_runs(tmp_path):
    # It has imported some of the old modules and would import some of the new: what it compiles then is neither's.
    package, folder = tmp_path / "fastrelu", tmp_path / "cache"
    shutil.copytree(ROOT / "fastrelu", package)
    code = f"""
from tests.test_cache import relu_is_right
relu_is_right("float32")
with open({str(package / "kernels" / "formulas.py")!r}, "a") as file:
    file.write("# changed\\n")
relu_is_right("float32", "float64")
"""
    run(code, env={"FASTRELU_CACHE_DIR": str(folder), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert [name for name in contents(folder) if "float64" in name] == []
    assert len(contents(folder)) == 3


@pytest.mark.parametrize(
    ("module", "function", "error"),
    [(importlib.metadata, "version", importlib.metadata.PackageNotFoundError), (Path, "read_bytes", FileNotFoundError)],
)
def test_bundle_without_versions_or_sources(tmp_path, monkeypatch, module, function, error):
    def missing(*arguments):
        raise error

    monkeypatch.setenv("FASTRELU_CACHE_DIR", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(module, function, missing)
        bundled = store_of(ROOT / "fastrelu")
        assert bundled.folder() is None
    bundled.write("kernel", b"code")
    assert bundled.read("kernel") is None
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("NUMBA_CPU_FEATURES", "+sse4.2", marks=[needs_x86, pytest.mark.nightly]),
        pytest.param("NUMBA_CPU_NAME", "generic", marks=pytest.mark.nightly),
        pytest.param("NUMBA_ENABLE_AVX", "0", marks=pytest.mark.nightly),
        ("NUMBA_OPT", "0"),
        pytest.param("NUMBA_DEBUGINFO", "1", marks=pytest.mark.nightly),
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
    calls = [("elu", "float16"), ("leaky_relu", "float32"), ("elu", "float32")]
    call(relu_is_right, "int8", env=environment)
    with ThreadPoolExecutor(3) as pool:
        alone = list(pool.map(lambda one: call(print_results, one, env=environment), calls))
    assert call(print_results, *calls, env=environment) == "".join(alone)


DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int32", "int64", "uint64")
LOADS_ALL = """
import sys
from tests.test_cache import relu_is_right
relu_is_right(*{dtypes})
assert "numba" not in sys.modules
"""


@pytest.mark.parametrize(("dtypes", "rounds"), [(DTYPES[:3], 1), pytest.param(DTYPES, 10, marks=pytest.mark.nightly)])
def test_processes_fill_one_empty_cache(tmp_path, dtypes, rounds):
    # Everyone begins with the runtime that all need, then with another type.
    orders = [dtypes[i:] + dtypes[:i] for i in range(len(dtypes))]
    for number in range(rounds):
        folder = tmp_path / str(number)
        environment = {"FASTRELU_CACHE_DIR": str(folder)}
        with ThreadPoolExecutor(len(orders)) as pool:
            list(pool.map(lambda order: call(relu_is_right, *order, env=environment, timeout=300), orders))  # noqa: B023
        kernels = {Path(name).name: content for name, content in contents(folder).items()}
        assert len(kernels) == 2 + len(dtypes)
        for name, content in kernels.items():
            assert name.startswith("fastrelu_")
            assert content[:32] == hashlib.sha256(name.encode() + b"\0" + content[32:]).digest()
        run(LOADS_ALL.format(dtypes=dtypes), env=environment)
        shutil.rmtree(folder)
