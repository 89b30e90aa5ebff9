"""The cache of compiled kernels: one object file a kernel, in a folder named after everything it was compiled from.

It can only help. A file is written under another name and then moved into place, so that no process ever sees half of
one; it begins with a checksum, so that a damaged one is compiled again; a folder that cannot be read or written means
compiling in memory and one warning. Another version of any kernel source, of Numba, llvmlite or Python, or another
processor is another folder, so that nothing is ever stale.
"""

import contextlib
import hashlib
import os
import re
import sys
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastrelu.native import target

_CHECKSUM_BYTES = 32
_FOLDER = re.compile(r"[0-9a-f]{32}", re.ASCII)
_FILE = re.compile(r"fastrelu_\w+(\.[0-9a-f]{16}\.tmp)?", re.ASCII)  # with the ending while it is written
_ATTEMPTS = 5
_warned = False


def root() -> Path | None:
    """The folder of all caches: ``FASTRELU_CACHE_DIR``, or the user's cache folder; None if the variable is
    ``off``, or if there is no home folder. Looked up at every use, so that a program can set it as well.
    """
    asked = os.environ.get("FASTRELU_CACHE_DIR", "")
    if asked.lower() == "off":
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


def _version() -> str | None:
    """The name of a folder for everything that kernels are compiled from; None where that cannot be told, as in a bundle
    without sources.
    """
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parent.parent
    try:
        for source in sorted([*package.glob("kernels/*.py"), *package.glob("native/*.py"), package / "operations.py"]):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
        digest.update("\n".join((version("numba"), version("llvmlite"), sys.version, target.describe())).encode())
    except (OSError, PackageNotFoundError):
        return None
    return digest.hexdigest()[:32]


_key = cache(_version)


def folder() -> Path | None:
    """Where the kernels of this version on this machine are kept."""
    base, key = root(), _key()
    return None if base is None or key is None else base / key


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
    if where is None or where.name != _version():
        return  # in the second case sources were replaced while this process ran: the kernel may be from both versions
    try:
        for attempt in range(_ATTEMPTS):
            try:
                _place(where, name, _checksum(name, payload) + payload)
                return
            except FileNotFoundError:  # another process has just cleared the cache
                if attempt == _ATTEMPTS - 1:
                    raise
    except OSError as error:
        _warn(error)


def _place(where: Path, name: str, content: bytes) -> None:
    where.mkdir(parents=True, exist_ok=True)
    # Not by the module tempfile, whose files nobody else may read: an administrator may warm a cache for all users.
    temporary = where / f"{name}.{os.urandom(8).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, where / name)
    except OSError:
        with contextlib.suppress(OSError):  # the folder may be gone or read-only: nothing is left to tidy then
            os.unlink(temporary)
        raise


def folders() -> list[Path]:
    """The folders of all versions, this one's included. Nothing that a link leads to."""
    base = root()
    if base is None:
        return []
    try:
        with os.scandir(base) as entries:
            return [Path(e.path) for e in entries if _FOLDER.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def sizes(where: Path) -> dict[str, int]:
    """The files in a folder of a version that this package has made, and their bytes."""
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(where) as entries:
        for entry in entries:
            if _FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
    return found


def remove(where: Path) -> int:
    """Remove these files, and the folder if nothing else is in it.

    Returns
    -------
    int
        Bytes freed.

    Raises
    ------
    OSError
        If a file cannot be removed; the others are gone then.
    """
    freed, failure = 0, None
    found = sizes(where)
    for name, size in found.items():
        try:
            os.unlink(where / name)
            freed += size
        except FileNotFoundError:
            pass  # another process was faster
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
    if found:
        with contextlib.suppress(OSError):  # there are files of others, or new ones
            where.rmdir()
    return freed


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
