"""Rooms: directories of their own for what is on its way in or out, gone when nobody needs them."""

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.chroma.disk import write_error
from gateway.snapshot.parallel import to_its_end


@contextlib.asynccontextmanager
async def room(parent: Path, what: str) -> AsyncIterator[Path]:
    """An empty directory below `parent`, removed at the end with all that is in it. Raises DiskFull."""
    path = await to_its_end(_make, parent, what, undo=_remove)
    try:
        yield path
    finally:
        await to_its_end(_remove, path)


def _make(parent: Path, what: str) -> Path:
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{what}-", dir=parent))
    except OSError as error:
        raise write_error(f"making a directory in {parent} failed", error) from error


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
