"""How much memory this process has."""

import os
from pathlib import Path


def resident_bytes() -> int | None:
    """The memory of this process; None where that cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
