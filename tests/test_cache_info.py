"""Seeing, clearing and filling the cache of compiled kernels."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastrelu
from fastrelu.__main__ import main
from fastrelu.cache import FUNCTIONS
from fastrelu.native import store
from tests.subprocesses import call, run
from tests.test_cache import HEEDS_PERMISSIONS, contents, needs_permissions, relu_is_right

OLD = "0123456789abcdef" * 2
"""The folder of another version."""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of this process."""
    monkeypatch.setenv("FASTRELU_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(folder: Path, *names: str) -> None:
    """Files of 10 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(bytes(10))


# Seeing it.


def test_names_load_numpy_only():
    code = """
import sys
before = set(sys.modules)
import fastrelu
fastrelu.cache_info, fastrelu.clear_cache, fastrelu.warmup, fastrelu.CacheInfo
added = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(added - sys.stdlib_module_names))
"""
    assert run(code).split() == ["fastrelu", "numpy"]


def counts_of_process(loaded, compiled, kernels=3):
    before = fastrelu.cache_info()
    assert (before.loaded, before.compiled) == (0, 0)
    relu_is_right("float32", "float32")
    info = fastrelu.cache_info()
    assert (info.loaded, info.compiled) == (loaded, compiled)
    assert (info.kernels, info.writable) == (kernels, True)
    assert info.folder == store.folder()


def test_counts(tmp_path):
    environment = {"FASTRELU_CACHE_DIR": str(tmp_path)}
    call(counts_of_process, 0, 3, env=environment)
    call(counts_of_process, 3, 0, env=environment)
    next(tmp_path.rglob("fastrelu_relu*")).write_bytes(b"damaged")
    call(counts_of_process, 2, 1, env=environment)


def test_bytes_and_other_versions(cache):
    put(store.folder(), "fastrelu_a", "fastrelu_b", "fastrelu_b.0123456789abcdef.tmp", "another")
    put(cache / OLD, "fastrelu_a", "another")
    put(cache / OLD[::-1], "another")
    info = fastrelu.cache_info()
    assert (info.kernels, info.nbytes, info.stale_folders, info.stale_nbytes) == (2, 30, 1, 10)
    assert str(store.folder()) in str(info)


def test_off(monkeypatch):
    for value in ("off", "OFF"):
        monkeypatch.setenv("FASTRELU_CACHE_DIR", value)
        info = fastrelu.cache_info()
        assert (info.folder, info.writable, info.kernels, info.nbytes) == (None, False, 0, 0)
        assert "off" in str(info)
        assert fastrelu.clear_cache() == 0


def test_missing_folder(cache):
    info = fastrelu.cache_info()
    assert (info.writable, info.kernels, info.stale_folders) == (True, 0, 0)
    assert fastrelu.clear_cache() == 0
    assert not cache.exists()


def test_folder_below_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        monkeypatch.setenv("FASTRELU_CACHE_DIR", str(path))
        assert not fastrelu.cache_info().writable
        assert fastrelu.clear_cache() == 0


def test_folder_is_a_link_to_nothing(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    monkeypatch.setenv("FASTRELU_CACHE_DIR", str(tmp_path / "link"))
    assert not fastrelu.cache_info().writable
    assert fastrelu.clear_cache() == 0


def test_current_folder_is_gone(tmp_path):
    code = """
import os, fastrelu
os.rmdir(os.getcwd())
assert not fastrelu.cache_info().writable
assert fastrelu.clear_cache() == 0
"""
    run(f"import os\nos.chdir({str(tmp_path)!r}){code}", env={"FASTRELU_CACHE_DIR": "relative"})


# Clearing it.


def test_clear_removes_all_versions(cache):
    put(store.folder(), "fastrelu_a", "fastrelu_a.0123456789abcdef.tmp")
    put(cache / OLD, "fastrelu_a")
    assert fastrelu.clear_cache() == 30
    assert list(cache.iterdir()) == []


def test_clear_stale_only(cache):
    put(store.folder(), "fastrelu_a")
    put(cache / OLD, "fastrelu_a")
    assert fastrelu.clear_cache(stale_only=True) == 10
    assert [*contents(cache)] == [f"{store.folder().name}/fastrelu_a"]


def test_clear_leaves_what_others_have_made(cache, tmp_path):
    put(cache / OLD, "fastrelu_a", "FASTRELU_a", "fastrelu_a.txt", "fastrelu", "another")
    put(cache / "folder", "fastrelu_a")  # not the name of a version
    put(cache / OLD.upper(), "fastrelu_a")
    put(cache, "fastrelu_a")
    put(cache / OLD / "fastrelu_folder", "fastrelu_a")
    (cache / ("f" * 32)).mkdir()
    put(tmp_path / "elsewhere", "fastrelu_a")
    (cache / OLD[::-1]).symlink_to(tmp_path / "elsewhere")
    (cache / OLD / "fastrelu_link").symlink_to(tmp_path / "elsewhere" / "fastrelu_a")
    before = set(tmp_path.rglob("*"))
    assert fastrelu.clear_cache() == 10
    assert before - set(tmp_path.rglob("*")) == {cache / OLD / "fastrelu_a"}


def clear_in_read_only_folder(cache):
    put(store.folder(), "fastrelu_a")
    put(Path(cache) / OLD, "fastrelu_a")
    store.folder().chmod(0o555)
    info = fastrelu.cache_info()
    assert (info.writable, info.kernels) == (False, 1)
    with pytest.raises(PermissionError):
        fastrelu.clear_cache()
    assert [*contents(Path(cache))] == [f"{store.folder().name}/fastrelu_a"]
    store.folder().chmod(0)
    info = fastrelu.cache_info()
    assert (info.writable, info.kernels) == (False, 0)
    with pytest.raises(PermissionError):
        fastrelu.clear_cache()
    store.folder().chmod(0o755)
    assert fastrelu.clear_cache() == 10


@needs_permissions
def test_clear_read_only_folder(cache):
    arguments = f"from tests.test_cache_info import clear_in_read_only_folder\nclear_in_read_only_folder({str(cache)!r})"
    run(HEEDS_PERMISSIONS + arguments)


def test_one_file_cannot_be_removed(cache, monkeypatch):
    put(cache / OLD, "fastrelu_a", "fastrelu_b", "fastrelu_c")
    usual = os.unlink

    refused: list[str] = []

    def refuses_first(path):
        if not refused:
            refused.append(path.name)
            raise PermissionError(path.name)
        usual(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuses_first)
        with pytest.raises(PermissionError, match="fastrelu_"):
            fastrelu.clear_cache()
    assert [*contents(cache)] == [f"{OLD}/{refused[0]}"]


def clear_while_in_use():
    relu_is_right("float32")
    assert fastrelu.clear_cache() > 0
    relu_is_right("float32", "float64")
    assert fastrelu.cache_info().kernels == 1


def test_clear_while_in_use(cache):
    call(clear_while_in_use)


def test_two_clear_at_once(cache, monkeypatch):
    # The other is faster with every file, and with the folder.
    put(store.folder(), "fastrelu_a", "fastrelu_b")
    usual = os.unlink

    def second(path, **kwargs):
        if not kwargs and store.folder().exists():
            shutil.rmtree(store.folder())
        usual(path, **kwargs)

    monkeypatch.setattr(os, "unlink", second)
    assert fastrelu.clear_cache() == 0


# Filling it.


def everything_is_there(has_backward):
    """After `warmup` in the same process: none of these calls loads or compiles anything."""
    backward = ["linear_relu_backward", "prelu_backward"] if has_backward else []
    before = fastrelu.warmup(["relu", fastrelu.linear_relu, *backward], "float32")
    rng = np.random.default_rng(0)
    x, w, b, dy = (rng.integers(-3, 4, shape).astype("float32") for shape in ((6, 3), (3, 5), (5,), (6, 5)))
    z = x @ w + b
    packed, mask = fastrelu.pack(w), np.empty((6, 1), np.uint8)
    relu_is_right("float32")
    assert_array_equal(fastrelu.linear_relu(x, w, b), np.maximum(z, 0))
    assert_array_equal(fastrelu.linear_relu(x, packed, b, mask=mask)[0], np.maximum(z, 0))
    fastrelu.linear_relu(x, w)
    fastrelu.linear_relu(x, packed)
    fastrelu.linear_relu(x, w, mask=mask)
    for y in (z, mask) if has_backward else ():
        fastrelu.linear_relu_backward(dy, y, x, w)
        dw, db = fastrelu.linear_relu_backward(dy, y, x, None, wanted=("dw", "db"))[1:]
        assert_array_equal(dw, x.T @ (dy * (z > 0)))
        fastrelu.linear_relu_backward(dy, y, x, w, out=(None, dw, db), accumulate=("dw", "db"))
        fastrelu.prelu_backward(x, x, 0.5)
    after = fastrelu.cache_info()
    assert (after.loaded, after.compiled) == (before.loaded, before.compiled)


@pytest.mark.parametrize("has_backward", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_warmup_leaves_nothing_to_compile(has_backward):
    call(everything_is_there, has_backward, timeout=300)


def warmup_of_an_empty_cache():
    info = fastrelu.warmup([fastrelu.relu, "relu_backward"], "float32")
    assert info.compiled == info.kernels == 4
    assert info.loaded == 0
    assert fastrelu.warmup("relu", "float32") == info


def test_warmup_fills_an_empty_cache(cache):
    call(warmup_of_an_empty_cache)
    before = contents(cache)
    call(counts_of_process, 3, 0, 4)
    assert contents(cache) == before


def warmup_of_types(*dtypes):
    fastrelu.warmup(["relu", "sigmoid"], dtypes)
    before = fastrelu.cache_info()
    for dtype in ("int8", "int32", "float16"):
        fastrelu.relu(np.ones(1, dtype))
        fastrelu.sigmoid(np.ones(1, dtype))
    assert fastrelu.cache_info() == before
    assert before.kernels == 2 + 3 + 2  # sigmoid calculates int8 in float16, and int32 in float64


@pytest.mark.nightly  # it compiles for 10 s
def test_warmup_of_types_that_are_calculated_in_others(cache):
    call(warmup_of_types, "int8", "int32", "float16", timeout=120)


def warmup_of_packing():
    fastrelu.warmup("pack", "float16")
    before = fastrelu.cache_info()
    fastrelu.pack(np.ones((3, 5), "float16"))
    assert fastrelu.cache_info() == before


def test_warmup_of_packing(cache):
    call(warmup_of_packing)


def test_warmup_of_bfloat16_needs_no_ml_dtypes(cache):
    run("import sys, fastrelu\nfastrelu.warmup('relu', 'bfloat16')\nassert 'ml_dtypes' not in sys.modules")
    assert len([name for name in contents(cache) if "relu_bfloat16" in name]) == 1


def warmup_after_clear():
    relu_is_right("float32", "float64")
    fastrelu.clear_cache()
    info = fastrelu.warmup("relu", np.float32)
    assert (info.kernels, info.compiled) == (4, 4)


def test_warmup_writes_again_what_was_cleared(cache):
    call(warmup_after_clear)
    call(relu_is_right, "float32", "float64")


@pytest.mark.parametrize("value", ["off", "below a file"])
def test_warmup_without_a_cache(tmp_path, value):
    (tmp_path / "file").touch()
    folder = "off" if value == "off" else str(tmp_path / "file" / "folder")
    code = f"""
import warnings, fastrelu
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    info = fastrelu.warmup("relu", "float32")
assert (info.kernels, info.compiled) == (0, 3)
assert len(caught) == {0 if value == "off" else 1}
"""
    run(code, env={"FASTRELU_CACHE_DIR": folder, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)})
    assert contents(tmp_path) == {"file": b""}


@pytest.mark.parametrize("function", ["rely", np.tanh, 3, None, "prelu_alpha_gradient", "linear_no_bias"])
def test_warmup_of_what_is_no_function(function):
    with pytest.raises(ValueError, match=r"functions must be among .*linear_relu, .*, not"):
        fastrelu.warmup([function])


@pytest.mark.parametrize("dtype", ["complex64", "float31", bool, None, "longdouble", object()])
def test_warmup_of_what_is_no_type(dtype):
    with pytest.raises(ValueError, match=r"dtypes must be among .*float32, .*, not"):
        fastrelu.warmup("relu", [dtype])


def test_warmup_knows_every_function_with_kernels():
    others = {"CacheInfo", "PackedWeight", "cache_info", "clear_cache", "release_memory", "use", "warmup"}
    threads = {"get_num_threads", "num_threads", "set_num_threads"}
    assert set(FUNCTIONS) == set(fastrelu.__all__) - others - threads


USES_OF_ROUTINES = """
import numpy as np
import fastrelu
from fastrelu.cache import ROUTINES
fastrelu.warmup([{function!r}], "float16")
before = fastrelu.cache_info()
x, y = np.ones((1, 1, 4, 4), np.float16), np.ones((1, 1, 2, 2), np.float16)
ids, table = np.zeros((4, 2), int), np.ones((3000, 4), np.float16)
uses = {{
    "embedding_mean": lambda: fastrelu.embedding_mean(ids, table),
    "embedding_mean_backward": lambda: fastrelu.embedding_mean_backward(table[:4], ids, 3000, sparse=True),
    "max_pool2d": lambda: [fastrelu.max_pool2d(x, 2, return_indices=both) for both in (False, True)],
    "max_pool2d_backward": lambda: fastrelu.max_pool2d_backward(y, y.astype(int), (4, 4)),
    "softmax_cross_entropy": lambda: fastrelu.softmax_cross_entropy(table[:4], ids[:, 0]),
}}
assert uses.keys() <= ROUTINES.keys()
uses[{function!r}]()
after = fastrelu.cache_info()
assert (after.loaded, after.compiled) == (before.loaded, before.compiled)
"""


@pytest.mark.parametrize(
    "function",
    ["embedding_mean", "embedding_mean_backward", "max_pool2d", "max_pool2d_backward", "softmax_cross_entropy"],
)
def test_warmup_of_functions_that_are_no_ufuncs(function):
    run(USES_OF_ROUTINES.format(function=function))


# The progress bar.


def test_bar_is_asked_for(capsys):
    fastrelu.warmup("relu", "float32", progress=True)
    assert "1/1" in capsys.readouterr().err


@pytest.mark.parametrize("progress", [None, False])
def test_no_bar_beside_a_terminal(capsys, progress):
    fastrelu.warmup("relu", "float32", progress=progress)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("progress", [None, False])
@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.skipif(os.name != "posix", reason="terminals of POSIX")
def test_bar_on_a_terminal(monkeypatch, progress, installed):
    import fcntl
    import struct
    import termios

    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # without a width there is no room for a bar
    with open(end, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        if not installed:
            patch.setitem(sys.modules, "tqdm", None)
            patch.setattr("importlib.util.find_spec", lambda name: None)
        fastrelu.warmup("relu", "float32", progress=progress)
        print("end", file=stderr, flush=True)
        shown = os.read(terminal, 10_000)
    os.close(terminal)
    assert (b"1/1" in shown) == (progress is None and installed)


def test_no_stderr_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    fastrelu.warmup("relu", "float32")


def test_bar_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"fastrelu\[progress\]"):
        fastrelu.warmup("relu", "float32", progress=True)


# The command line.


def test_commands(cache, capsys):
    main(["warmup", "relu", "--dtypes", "float32"])
    assert f"kernels, {sum(map(len, contents(cache).values())) / 1024:.0f} KiB in {store.folder()}" in capsys.readouterr().out
    put(cache / OLD, "fastrelu_a")
    main(["cache"])
    assert "1 folders of other versions" in capsys.readouterr().out
    main(["cache", "--clear-stale"])
    assert len({*cache.iterdir()}) == 1
    main(["cache", "--clear"])
    assert "KiB removed\n0 kernels" in capsys.readouterr().out
    assert contents(cache) == {}


def test_command_with_a_wrong_name(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["warmup", "rely"])
    assert "not 'rely'" in capsys.readouterr().err
