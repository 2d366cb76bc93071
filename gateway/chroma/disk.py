"""The files in a Chroma data directory.

    chroma.sqlite3 (-wal, -shm, -journal)     everything but vectors
    <segment id>/header.bin, data_level0.bin, length.bin, link_lists.bin, index_metadata.pickle

A sync writes the files of an index in place and in that order (docs/chroma-internals.md, "Index files are written in
place"). The directory of a deleted collection stays. Only the table `segments` says which directories are in use.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

DATABASE = "chroma.sqlite3"
DATABASE_FILES = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal")
HEADER, LEVEL0, LENGTH, LINK_LISTS, ID_MAP = (
    "header.bin",
    "data_level0.bin",
    "length.bin",
    "link_lists.bin",
    "index_metadata.pickle",
)
INDEX_FILES = frozenset((HEADER, LEVEL0, LENGTH, LINK_LISTS, ID_MAP))

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_SEGMENT_DIRECTORY = re.compile(_UUID)

_LEAST_FREE_BYTES = 256 << 20

# https://sqlite.org/fileformat.html, "The Rollback Journal".
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


class Signature(NamedTuple):
    """What `stat` says of a file. It differs after every change of the file's bytes.

    Exception: two writes within one tick of the kernel's clock, if the first look was between them.
    """

    mtime_ns: int
    ctime_ns: int
    size_bytes: int
    inode: int


def has_super_journal(data_dir: Path) -> bool:
    """Whether the database's rollback journal names a super-journal, at its end.

    SQLite would open that file, whatever it is, and might delete it (`pager.c`, `readSuperJournal`,
    `pager_delsuper`). Chroma attaches no second database, so its journals name none.
    """
    try:
        with (data_dir / f"{DATABASE}-journal").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(_JOURNAL_MAGIC)))
            return file.read() == _JOURNAL_MAGIC
    except FileNotFoundError:
        return False


def is_snapshot_path(path: str) -> bool:
    """Whether a manifest may name `path`: only the database, or a known file of one index."""
    directory, _, name = path.rpartition("/")
    if not directory:
        return name == DATABASE
    return bool(_SEGMENT_DIRECTORY.fullmatch(directory)) and name in INDEX_FILES


def is_chromas(name: str) -> bool:
    """Whether an entry of the data directory belongs to Chroma, not to the gateway or the file system."""
    return name in DATABASE_FILES or bool(_SEGMENT_DIRECTORY.fullmatch(name))


def index_signatures(data_dir: Path, segment_ids: Iterable[str]) -> dict[str, Signature]:
    """Signatures of these segments' index files, by path relative to `data_dir`. Missing files are left out."""
    paths = (f"{segment_id}/{name}" for segment_id in segment_ids for name in INDEX_FILES)
    return {path: signature for path in paths if (signature := signature_of(data_dir / path))}


def signatures_of(data_dir: Path, segment_ids: Iterable[str]) -> dict[str, Signature]:
    """As `index_signatures`, with the database's signature."""
    found = index_signatures(data_dir, segment_ids)
    database = signature_of(data_dir / DATABASE)
    return found | {DATABASE: database} if database else found


def signature_of(path: Path) -> Signature | None:
    """The signature of the file at `path`; None if there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Signature(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def least_free_bytes(database_bytes: int) -> int:
    """With less free space than this, Chroma may soon meet a full disk: one large write, or SQLite's own journal."""
    return max(_LEAST_FREE_BYTES, database_bytes // 4)


def size_bytes(directory: Path) -> int:
    """Bytes of all files below `directory`. Files that vanish during the walk are not counted."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except OSError:
                continue
    return total
