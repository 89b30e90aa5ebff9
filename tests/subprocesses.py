"""Fresh interpreters for tests of what can kill or hang a process, or of what happens only once in one."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Every warning is an error, but for Python's own about any fork of a process with threads.
_FLAGS = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")


def run(code: str, env: Mapping[str, str | None] | None = None, timeout: float = 180) -> str:
    """Run `code` in a fresh interpreter, require that it succeeds in time, and return what it prints.

    Parameters
    ----------
    code : str
        Python source. It can import the package and the modules in this folder.
    env : mapping, optional
        Environment variables to set, or with None to remove.
    timeout : float
        Seconds after which it and all processes that it started are killed, and the test fails.
    """
    merged = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    process = subprocess.Popen(
        [sys.executable, *_FLAGS, "-c", code],
        env={name: value for name, value in merged.items() if value is not None},
        cwd=tempfile.gettempdir(),  # the interpreter looks there first, and must not find the package
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        raise AssertionError(f"no end after {timeout} s\n{output}\n{errors}") from None
    assert process.returncode == 0, f"exit status {process.returncode}\n{output}\n{errors}"
    # An exception that nobody could catch does not show in the exit status.
    assert errors == ""
    return output


def call(
    function: Callable[..., None], *arguments: Any, env: Mapping[str, str | None] | None = None, timeout: float = 180
) -> str:
    """The same for a function of a test module with arguments that can be written as source."""
    name = function.__name__
    return run(f"from {function.__module__} import {name}\n{name}(*{arguments!r})", env, timeout)


def wait_for_interrupt() -> None:
    """Wait, half a minute at most. One long sleep does not end early by an interrupt that another thread makes."""
    for _ in range(600):
        time.sleep(0.05)
