"""Sizes in the data directory. It blocks and walks the whole directory: call it from a thread and cache the result."""

import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gateway.chroma.database import Collection, read_contents
from gateway.chroma.disk import DATABASE_FILES, size_bytes
from gateway.errors import GatewayError

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class CollectionUsage:
    """One collection. `hnsw_bytes` is the size of its index on disk, 0 before the first sync."""

    collection: Collection
    hnsw_bytes: int


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Sizes at one moment.

    `log_records` counts the rows of Chroma's log, applied or not. An orphaned directory is the index of a deleted
    collection. If the database cannot be read, `problem` says why, and the counts are 0.
    """

    collections: list[CollectionUsage]
    log_records: int
    orphaned_directories: int
    orphaned_bytes: int
    size_bytes: int
    sqlite_bytes: int
    free_bytes: int
    problem: str | None = None


def disk_usage(data_dir: Path) -> DiskUsage:
    """Measure it. Raises OSError if the directory itself cannot be read."""
    size, free = size_bytes(data_dir), shutil.disk_usage(data_dir).free
    sqlite_bytes = sum(_file_bytes(data_dir / name) for name in DATABASE_FILES)
    try:
        contents = read_contents(data_dir)
        segments, log_records = _read(data_dir)
    except (GatewayError, sqlite3.Error) as error:
        return DiskUsage([], 0, 0, 0, size, sqlite_bytes, free, str(error))
    directories = {each.name: each for each in data_dir.iterdir() if each.is_dir() and _UUID.fullmatch(each.name)}
    sizes = {name: size_bytes(path) for name, path in directories.items()}
    orphans = directories.keys() - segments.keys()
    of_collection: dict[str, int] = {}
    for segment, collection in segments.items():
        of_collection[collection] = of_collection.get(collection, 0) + sizes.get(segment, 0)
    return DiskUsage(
        [CollectionUsage(each, of_collection.get(each.id, 0)) for each in contents.collections],
        log_records,
        len(orphans),
        sum(sizes[name] for name in orphans),
        size,
        sqlite_bytes,
        free,
    )


def _read(data_dir: Path) -> tuple[dict[str, str], int]:
    uri = f"{(data_dir / DATABASE_FILES[0]).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=_TIMEOUT_S, isolation_level=None)) as connection:
        segments = dict(connection.execute("select id, collection from segments where scope = 'VECTOR'"))
        (log_records,) = connection.execute("select count(*) from embeddings_queue").fetchone()
    return segments, log_records


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
