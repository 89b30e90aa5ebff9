"""The processor time that Linux grants the control group of this process, in processors."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def _numbers(file: Path) -> list[int]:
    """The integers in a file; "max" is -1, and so is what cannot be read."""
    try:
        return [-1 if word == "max" else int(word) for word in file.read_text("ascii").split()]
    except (OSError, ValueError):
        return [-1]


def _quota(folder: Path) -> int | None:
    """Processors that one group may use, rounded up, in either version of control groups; None if there is no limit."""
    for numbers in (
        _numbers(folder / "cpu.max"),
        _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us"),
    ):
        quota, period = (*numbers, -1, -1)[:2]
        if quota > 0 and period > 0:
            return -(-quota // period)
    return None


def _groups(groups: Path) -> Iterator[tuple[list[str], str]]:
    """The controllers and the path of each group that this process is in; the only controller is "" in version 2."""
    try:
        lines = groups.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        yield controllers.split(","), path


def processors(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The smallest quota of the group that this process is in and of all groups around it.

    Parameters
    ----------
    groups : Path
        Where Linux lists the groups of a process.
    root : Path
        Where version 2 of control groups is mounted, or the folder of the mounts of version 1.

    Returns
    -------
    int or None
        Processors, rounded up, at least 1; None if there is no limit.
    """
    # In a container the mount is often the container's own group, while its path is that outside: so look at the mount's top.
    folders = {root, root / "cpu", root / "cpu,cpuacct"}
    for controllers, path in _groups(groups):
        if controllers == [""]:
            mounts = {root, root / "unified"}
        elif "cpu" in controllers:
            mounts = {root / "cpu", root / ",".join(controllers)}
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        if ".." not in group.parts:  # a group outside of what this process can see
            folders |= {mount / part for mount in mounts for part in (group, *group.parents)}
    return min((quota for folder in folders if (quota := _quota(folder)) is not None), default=None)
