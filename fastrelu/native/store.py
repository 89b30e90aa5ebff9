"""The cache of compiled kernels: one object file a kernel, in a folder named after everything it was compiled from.

It can only help. A file is written under another name and then moved into place, so that no process ever sees half of
one; it begins with a checksum, so that a damaged one is compiled again; a folder that cannot be read or written means
compiling in memory and one warning. Another version of any kernel source, of Numba, llvmlite or Python, or another
processor is another folder, so that nothing is ever stale.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
import warnings
from functools import cache
from importlib.metadata import version
from pathlib import Path

from fastrelu.native import target

_CHECKSUM_BYTES = 32
_warned = False


def root() -> Path | None:
    """The folder of all caches: ``FASTRELU_CACHE_DIR``, or the user's cache folder; None if the variable is
    ``off``, or if there is no home folder.
    """
    asked = os.environ.get("FASTRELU_CACHE_DIR")
    if asked == "off":
        return None
    if asked:
        return Path(asked)
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():  # there is no home folder
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fastrelu"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "fastrelu"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fastrelu"


@cache
def _key() -> str:
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parent.parent
    for source in sorted([*package.glob("kernels/*.py"), *package.glob("native/*.py"), package / "operations.py"]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    digest.update("\n".join((version("numba"), version("llvmlite"), sys.version, target.describe())).encode())
    return digest.hexdigest()[:32]


def folder() -> Path | None:
    """Where the kernels of this version on this machine are kept."""
    base = root()
    return None if base is None else base / _key()


def read(name: str) -> bytes | None:
    """The object file `name`, or None if there is none that is whole."""
    where = folder()
    if where is None:
        return None
    try:
        content = (where / name).read_bytes()
    except OSError:
        return None
    checksum, payload = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    return payload if payload and _checksum(name, payload) == checksum else None


def _checksum(name: str, payload: bytes) -> bytes:
    """Of the content under its own name: a file must not be taken for another."""
    return hashlib.sha256(name.encode() + b"\0" + payload).digest()


def write(name: str, payload: bytes) -> None:
    """Keep the object file `name`; a failure is a warning, once."""
    where = folder()
    if where is None:
        return
    temporary = None
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=where, delete=False) as file:
            temporary = file.name
            file.write(_checksum(name, payload) + payload)
        os.replace(temporary, where / name)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):  # the folder may be gone or read-only: nothing is left to tidy then
                os.unlink(temporary)
        _warn(error)


def _warn(error: OSError) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"fastrelu cannot keep compiled kernels ({error}); every process will compile them again. "
            "Set FASTRELU_CACHE_DIR to a folder that can be written, or to 'off'.",
            RuntimeWarning,
            stacklevel=2,
        )
