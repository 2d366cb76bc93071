"""The memory of this process, and how much there may be."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def resident_bytes() -> int | None:
    """Resident memory of this process in bytes; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def limit_bytes() -> int | None:
    """The memory that this machine or this container has, in bytes; None where the system does not say."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
    return min([total, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """The limits of this process's control groups, of version 1 and 2, and of those above them."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS / "memory" if controllers else _CGROUPS
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        # In a container the path may be that of the host, and the container's own group is the root.
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                yield int((directory / name).read_text())
            if directory == root:
                break
