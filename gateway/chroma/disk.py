"""What lies in a Chroma data directory.

    chroma.sqlite3 (-wal, -shm, -journal)     everything but vectors
    <segment id>/header.bin, data_level0.bin, length.bin, link_lists.bin, index_metadata.pickle

An index's files are written in place, in that order, every `sync_threshold` records
(`hnswlib/hnswalg.h`, `persistDirty`; `rust/segment/src/local_hnsw.rs`, `persist`).
Directories of deleted collections stay behind; only the table `segments` says which ones live.
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

# A file written twice within one tick of the kernel's clock can have the same time stamps after
# both; what changed this recently may be changing still.
_SETTLED_NS = 100_000_000

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


class Signature(NamedTuple):
    """What `stat` says of a file; any change of its bytes changes it, but see `is_settled`."""

    mtime_ns: int
    ctime_ns: int
    size_bytes: int
    inode: int

    def is_settled(self, now_ns: int) -> bool:
        """Whether the last change lies so far back that a later one must show."""
        return now_ns - max(self.mtime_ns, self.ctime_ns) > _SETTLED_NS


def has_super_journal(data_dir: Path) -> bool:
    """Whether the database's journal names another file, at its very end: SQLite would open it, and perhaps delete
    it (`pager.c`, `readSuperJournal`, `pager_delsuper`). Chroma never writes such a one."""
    try:
        with (data_dir / f"{DATABASE}-journal").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(_JOURNAL_MAGIC)))
            return file.read() == _JOURNAL_MAGIC
    except FileNotFoundError:
        return False


def is_snapshot_path(path: str) -> bool:
    """Whether a manifest may name `path`: the database, or a known file of one index. Nothing else."""
    directory, _, name = path.rpartition("/")
    if not directory:
        return name == DATABASE
    return bool(_SEGMENT_DIRECTORY.fullmatch(directory)) and name in INDEX_FILES


def is_chromas(name: str) -> bool:
    """Whether an entry of the data directory is Chroma's: not ours, not the file system's."""
    return name in DATABASE_FILES or bool(_SEGMENT_DIRECTORY.fullmatch(name))


def index_signatures(data_dir: Path, segment_ids: Iterable[str]) -> dict[str, Signature]:
    """The files of these segments' indexes, by path relative to `data_dir`. Those without files are left out."""
    paths = (f"{segment_id}/{name}" for segment_id in segment_ids for name in INDEX_FILES)
    return {path: signature for path in paths if (signature := signature_of(data_dir / path))}


def signatures_of(data_dir: Path, segment_ids: Iterable[str]) -> dict[str, Signature]:
    """As `index_signatures`, and the database's."""
    found = index_signatures(data_dir, segment_ids)
    database = signature_of(data_dir / DATABASE)
    return found | {DATABASE: database} if database else found


def signature_of(path: Path) -> Signature | None:
    """None if there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Signature(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def size_bytes(directory: Path) -> int:
    """Bytes of all files below `directory`; files that vanish meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except OSError:
                continue
    return total
