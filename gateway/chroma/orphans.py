"""Index directories of deleted collections. Chroma leaves them when it deletes a collection. All blocking."""

import contextlib
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import structlog

from gateway.chroma.database import is_empty, open_database, translated
from gateway.chroma.directory import PRIVATE
from gateway.chroma.disk import DATABASE, DATABASE_FILES, is_chromas

log = structlog.get_logger()


class Removed(NamedTuple):
    """How many directories were deleted, and what they took on the disk."""

    deleted_directories: int
    freed_bytes: int


def orphaned_directories(data_dir: Path, connection: sqlite3.Connection) -> list[Path]:
    """Directories named like a segment that is not in the database. Raises sqlite3.Error."""
    # The names first. Chroma commits a segment before it makes the directory (docs/chroma-internals.md), so a
    # directory that is seen now has its row by the time the rows are read.
    names = [name for name in sorted(os.listdir(data_dir)) if is_chromas(name) and name not in DATABASE_FILES]
    # Of all scopes, so that none is taken for an orphan by mistake.
    known = {str(row[0]) for row in connection.execute("select id from segments")}
    return [data_dir / name for name in names if name not in known and (data_dir / name).is_dir()]


def remove_orphaned_directories(data_dir: Path, grace_s: float) -> Removed:
    """Delete the orphaned directories that nothing changed for `grace_s`. Chroma may be running. May be repeated.

    What cannot be deleted is logged and stays. Raises GatewayError if the database cannot be read.
    """
    if is_empty(data_dir):
        return Removed(0, 0)
    path = data_dir / DATABASE
    with translated(path), closing(open_database(path)) as connection:
        found = orphaned_directories(data_dir, connection)
    count = freed = 0
    for each in found:
        if time.time() - _changed_at(each) < grace_s:
            continue
        size = allocated_bytes(each)
        # Not under its name: a directory that is deleted halfway must not look like an index.
        away = data_dir / PRIVATE / f"orphan-{uuid.uuid4().hex}"
        try:
            each.rename(away)
            shutil.rmtree(away)
        except OSError as error:
            log.warning("a directory of a deleted collection cannot be deleted", directory=each.name, cause=str(error))
            continue
        count, freed = count + 1, freed + size
        log.info("the directory of a deleted collection was deleted", directory=each.name, freed_bytes=size)
    return Removed(count, freed)


def allocated_bytes(directory: Path) -> int:
    """What the files of one directory take on the disk: less than their sizes where they have holes."""
    return sum(each.st_blocks * 512 for each in _statuses(directory))


def _changed_at(directory: Path) -> float:
    return max((each.st_ctime for each in _statuses(directory)), default=0.0)


def _statuses(directory: Path) -> Iterator[os.stat_result]:
    """Of the directory and of its files; of none that is gone by now."""
    with contextlib.suppress(OSError):
        yield directory.stat()
        for each in directory.iterdir():
            with contextlib.suppress(OSError):
                yield each.stat()
