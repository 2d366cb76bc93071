"""Rooms: directories of their own for what is on its way in or out, gone when nobody needs them."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.aio import run_in_thread_uninterrupted
from gateway.errors import DiskFull, GatewayError


@contextlib.asynccontextmanager
async def scratch_directory(parent: Path, what: str) -> AsyncIterator[Path]:
    """An empty directory below `parent`, removed at the end with all that is in it. Raises DiskFull."""
    path = await run_in_thread_uninterrupted(_make, parent, what, undo=_remove)
    try:
        yield path
    finally:
        await run_in_thread_uninterrupted(_remove, path)


def _make(parent: Path, what: str) -> Path:
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{what}-", dir=parent))
    except OSError as error:
        raise write_error(f"making a directory in {parent} failed", error) from error


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def write_error(what: str, error: OSError) -> GatewayError:
    """`error` of writing in the data directory, as one of ours: DiskFull if that is what it was."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(f"{what}: {error.strerror}", "free some space in the data directory, or give it more")
    return GatewayError(f"{what}: {error}")
