"""Whether there is a GPU to use, and what is missing if not."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from fastrelu.cuda import launch
from fastrelu.cuda.launch import FIRST_CAPABILITY


class Device(NamedTuple):
    """A GPU."""

    name: str
    capability: tuple[int, int]
    memory: int
    """Bytes."""


def is_available() -> bool:
    """Whether operations can run on a GPU here; `reason` says why not.

    Returns
    -------
    bool

    Examples
    --------
    >>> import fastrelu.cuda
    >>> fastrelu.cuda.is_available() == (fastrelu.cuda.reason() == "")
    True
    """
    return reason() == ""


def reason() -> str:
    """What is missing for a GPU to be used; an empty string if nothing is.

    Returns
    -------
    str
        One of: packages that are not installed, with the command that installs them; the driver; a device.

    Examples
    --------
    >>> import fastrelu.cuda
    >>> isinstance(fastrelu.cuda.reason(), str)
    True
    """
    for distribution in ("numba-cuda", "cuda-bindings"):
        try:
            version(distribution)
        except PackageNotFoundError:
            return f"{distribution} is not installed: pip install 'fastrelu[cuda]'"
    try:
        found = devices()
    except (ImportError, RuntimeError) as error:
        return str(error)
    if not found:
        return "the NVIDIA driver finds no GPU"
    if all(device.capability < FIRST_CAPABILITY for device in found):
        names = ", ".join(f"{device.name} has {device.capability[0]}.{device.capability[1]}" for device in found)
        return f"compute capability {FIRST_CAPABILITY[0]}.{FIRST_CAPABILITY[1]} is needed, and {names}"
    return ""


def devices() -> tuple[Device, ...]:
    """The GPUs that the driver sees.

    Returns
    -------
    tuple of Device
        Name, compute capability and bytes of memory of each.

    Raises
    ------
    RuntimeError
        If there is no driver, or one that is too old.
    ImportError
        If cuda-bindings is not installed.
    """
    driver = launch.active()
    return tuple(Device(driver.name(i), driver.capability(i), driver.memory(i)) for i in range(driver.count()))
