"""What is wrong with a Chroma data directory, and what of it can be repaired. Needs no gateway, no store, no Chroma.

For data of chromadb 0.4 to 1.5 that no process uses. `diagnose` changes nothing. `treat` copies what it is going to
change, then changes it, and nothing else; a bare Chroma opens the directory before and after. All blocking.
"""

import contextlib
import os
import resource
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from gateway.chroma.database import is_log_kept, open_database
from gateway.chroma.directory import PRIVATE
from gateway.chroma.disk import DATABASE, INDEX_FILES, has_super_journal, is_chromas, least_free_bytes
from gateway.chroma.lost_records import drop_records
from gateway.chroma.migrations import installed_migrations
from gateway.chroma.orphans import allocated_bytes, orphaned_directories
from gateway.chroma.repair import Repair, Way, back_up_database, repair_segment
from gateway.chroma.segments import Segment, index_log, log_rows, read_segments
from gateway.chroma.structure import IndexCheck, check_segment, check_segments
from gateway.chroma.users import users_of
from gateway.errors import ConfigError, DiskFull, GatewayError

_MAX_MESSAGES = 20
_LARGE_WAL_BYTES = 64 << 20
_LARGE_LOG_ROWS = 10_000
# Chroma holds four files of each index open, and the map beside them now and then (`chromadb/api/rust.py`).
_FILES_OF_AN_INDEX = 5
_LOST_RECORDS = "lost-records.jsonl"
_FULL_TEXT = "embedding_fulltext_search"


class Severity(StrEnum):
    """`note`: worth knowing. `warning`: will become a problem. `error`: data is unreadable, lost, or about to be."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


_ORDER = list(Severity)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `code` is stable; `where` is a collection, a file or a directory; `can_repair` by `treat`."""

    severity: Severity
    code: str
    where: str
    message: str
    advice: str = ""
    can_repair: bool = False


@dataclass(frozen=True, slots=True)
class CollectionFinding:
    """One collection: how many records and vectors it has, and whether its index is sound."""

    name: str
    id: str
    segment_id: str
    dimension: int | None
    space: str
    records: int
    vectors: int
    deleted: int
    index_bytes: int
    is_synced: bool
    is_sound: bool


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found in a directory."""

    path: str
    findings: list[Finding]
    collections: list[CollectionFinding]
    database_bytes: int
    wal_bytes: int
    log_rows: int
    free_bytes: int
    duration_s: float

    @property
    def worst(self) -> Severity | None:
        return max((each.severity for each in self.findings), key=_ORDER.index, default=None)


@dataclass(frozen=True, slots=True)
class Treatment:
    """What was done. `backup` has what was changed, as it was. `failures` are in words; nothing was changed there."""

    backup: str
    actions: list[str]
    failures: list[str]
    repairs: list[Repair] = field(default_factory=list)


def require_unused(data_dir: Path) -> None:
    """Raise ConfigError if `data_dir` is no Chroma data directory, or a process uses it."""
    if not (data_dir / DATABASE).is_file():
        raise ConfigError(
            f"{data_dir} is no Chroma data directory: there is no {DATABASE}", "give the persist directory"
        )
    if users := users_of(data_dir):
        raise ConfigError(
            f"{data_dir} is in use by {', '.join(users)}", "stop it first, or examine a copy of the directory"
        )


def diagnose(data_dir: Path, progress: Callable[[str], None] | None = None) -> Diagnosis:
    """Examine a directory that no process uses. Reads each index once: about 1 s for 500 MB.

    `progress` is told what is being looked at. Damage raises nothing. Raises ConfigError as `require_unused`.
    """
    require_unused(data_dir)
    began = time.monotonic()
    findings = list(_files(data_dir))
    collections: list[CollectionFinding] = []
    rows = 0
    if not any(each.code == "super-journal" for each in findings):
        try:
            with _opened(data_dir) as connection:
                if progress:
                    progress(DATABASE)
                findings += _database(connection)
                if not any(each.code == "database-damaged" and not each.can_repair for each in findings):
                    rows = int(connection.execute("select count(*) from embeddings_queue").fetchone()[0])
                    segments = read_segments(connection)
                    index_log(connection)
                    findings += _tables(data_dir, connection, segments, rows)
                    for segment in segments:
                        if progress:
                            progress(segment.name)
                        found, wrong = _index(data_dir, connection, segment)
                        collections.append(found)
                        findings += wrong
        except (sqlite3.Error, OSError) as error:
            findings.append(
                Finding(
                    Severity.ERROR,
                    "database-unreadable",
                    DATABASE,
                    f"SQLite cannot read it: {error}",
                    "restore a snapshot; or try the `.recover` command of the sqlite3 shell on a copy",
                )
            )
    findings += _open_files(collections)
    findings.sort(key=lambda each: -_ORDER.index(each.severity))
    return Diagnosis(
        str(data_dir),
        findings,
        collections,
        _size(data_dir / DATABASE),
        _size(data_dir / f"{DATABASE}-wal"),
        rows,
        shutil.disk_usage(data_dir).free,
        time.monotonic() - began,
    )


# ---------------------------------------------------------------------- looking


def _files(data_dir: Path) -> Iterator[Finding]:
    if has_super_journal(data_dir):
        yield Finding(
            Severity.ERROR,
            "super-journal",
            f"{DATABASE}-journal",
            "the journal names another file, which SQLite would delete; Chroma never writes such a one",
            "find out where the directory comes from before anything opens it",
        )
    names = [name for name in sorted(os.listdir(data_dir)) if is_chromas(name)]
    for path in [data_dir, *(data_dir / name for name in names)]:
        below = (
            [path] if path.is_file() or path == data_dir else [path, *sorted(path.iterdir())] if path.is_dir() else []
        )
        for each in below:
            where = str(each.relative_to(data_dir)) if each != data_dir else str(data_dir)
            if not os.access(each, os.R_OK | (os.X_OK if each.is_dir() else 0)):
                yield Finding(Severity.ERROR, "not-readable", where, "it may not be read", "change its owner or mode")
            elif not os.access(each, os.W_OK):
                yield Finding(
                    Severity.ERROR,
                    "not-writable",
                    where,
                    "it may not be written: Chroma answers, and what it writes is lost or refused",
                    "change its owner or mode, or mount the file system writable",
                )
    free = shutil.disk_usage(data_dir).free
    if free < least_free_bytes(_size(data_dir / DATABASE)):
        yield Finding(
            Severity.WARNING,
            "little-space",
            str(data_dir),
            f"{free >> 20} MiB are free; a full disk tears the index that is being written",
            "free some space, or give it more",
        )
    wal = _size(data_dir / f"{DATABASE}-wal")
    if wal > _LARGE_WAL_BYTES:
        yield Finding(
            Severity.WARNING,
            "large-wal",
            f"{DATABASE}-wal",
            f"it has {wal >> 20} MiB that are not in the database yet: something kept an old state open",
            "it goes back into the database when nothing holds it",
            can_repair=True,
        )


@contextlib.contextmanager
def _opened(data_dir: Path, *, to_change: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection. Unless it is to change something, the files are as before when it is closed.

    The last one to close a database puts its write-ahead log into it, unless it may only read.
    """
    last = None if to_change else _reader(data_dir)
    try:
        with closing(open_database(data_dir / DATABASE)) as connection:
            yield connection
    finally:
        if last:
            last.close()


def _reader(data_dir: Path) -> sqlite3.Connection | None:
    """A connection that may only read, if there is a write-ahead log; without one it would leave an empty one."""
    if not _size(data_dir / f"{DATABASE}-wal"):
        return None
    uri = f"{(data_dir / DATABASE).absolute().as_uri()}?mode=ro"
    reader = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        reader.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.Error:
        reader.close()
        return None
    return reader


def _database(connection: sqlite3.Connection) -> Iterator[Finding]:
    messages = [str(row[0]) for row in connection.execute(f"pragma integrity_check({_MAX_MESSAGES})")]
    if messages != ["ok"]:
        of_index = all("index" in each for each in messages)
        yield Finding(
            Severity.ERROR,
            "database-damaged",
            DATABASE,
            f"SQLite's integrity check says: {'; '.join(messages[:3])}",
            "its indexes can be made anew" if of_index else "restore a snapshot",
            can_repair=of_index,
        )
        if not of_index:
            return
    try:
        with _trial(connection):
            connection.execute(f"insert into {_FULL_TEXT}({_FULL_TEXT}) values ('integrity-check')")  # noqa: S608
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            yield Finding(Severity.ERROR, "full-text-unreadable", _FULL_TEXT, f"it cannot be used: {error}")
    except sqlite3.DatabaseError as error:
        yield Finding(
            Severity.ERROR,
            "full-text-damaged",
            _FULL_TEXT,
            f"the full-text index does not fit the documents ({error}): searches in documents miss some or fail",
            "it can be made anew from the documents",
            can_repair=True,
        )


@contextlib.contextmanager
def _trial(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("begin immediate")
    try:
        yield
    finally:
        connection.rollback()


def _tables(data_dir: Path, connection: sqlite3.Connection, segments: list[Segment], rows: int) -> Iterator[Finding]:
    yield from _migrations(connection)
    for name, scope in connection.execute(
        "select c.name, s.scope from collections c join (select 'VECTOR' scope union select 'METADATA') s"
        " where not exists (select 1 from segments x where x.collection = c.id and x.scope = s.scope)"
    ):
        yield Finding(Severity.ERROR, "segment-missing", name, f"it has no {scope} segment", "restore a snapshot")
    for orphan in orphaned_directories(data_dir, connection):
        yield Finding(
            Severity.NOTE,
            "orphaned-directory",
            orphan.name,
            f"it belongs to no collection and takes {allocated_bytes(orphan) >> 10} KiB",
            "Chroma leaves it when a collection is deleted; it can be moved away",
            can_repair=True,
        )
    yield from _log(data_dir, connection, segments, rows)


def _migrations(connection: sqlite3.Connection) -> Iterator[Finding]:
    applied = {(str(row[0]), int(row[1])) for row in connection.execute("select dir, version from migrations")}
    try:
        known = installed_migrations()
    except ConfigError as error:
        yield Finding(Severity.NOTE, "chromadb-not-asked", "chromadb", error.message)
        return
    if newer := sorted(applied - known):
        yield Finding(
            Severity.ERROR,
            "schema-too-new",
            DATABASE,
            f"a newer chromadb has written it ({_names(newer)}); the installed one cannot open it",
            "install the chromadb that wrote it, or a newer one",
        )
    if pending := sorted(known - applied):
        yield Finding(
            Severity.NOTE,
            "migration-pending",
            DATABASE,
            f"the installed chromadb will apply {len(pending)} migrations at its first start ({_names(pending)})",
            "take a copy before: there is no way back to the older version",
        )


def _names(migrations: list[tuple[str, int]]) -> str:
    return ", ".join(f"{directory}/{version:05}" for directory, version in migrations)


def _log(data_dir: Path, connection: sqlite3.Connection, segments: list[Segment], rows: int) -> Iterator[Finding]:
    if not rows:
        return
    needed = 0
    for segment in segments:
        position = min(segment.position or 0, segment.metadata_position or 0)
        needed += sum(1 for _ in log_rows(connection, segment, position - 1))
    done = rows - needed
    try:
        kept = is_log_kept(connection)
    except (sqlite3.Error, ValueError):
        kept = True  # chromadb before 0.5.4 has no such table, and purges nothing
    if done > _LARGE_LOG_ROWS and kept and not (data_dir / PRIVATE).exists():
        yield Finding(
            Severity.WARNING,
            "log-never-purged",
            "embeddings_queue",
            f"{done} of {rows} rows are in the indexes already, and Chroma was told to keep them",
            "`chroma vacuum` deletes them; from them an index could be rebuilt, so do that when all are sound",
        )
    if needed > _LARGE_LOG_ROWS:
        yield Finding(
            Severity.NOTE,
            "long-replay",
            "embeddings_queue",
            f"{needed} rows are not in the indexes yet: Chroma applies them when it first reads each collection",
        )


def _index(data_dir: Path, connection: sqlite3.Connection, segment: Segment) -> tuple[CollectionFinding, list[Finding]]:
    try:
        check = check_segment(data_dir, connection, segment)
    except sqlite3.Error as error:
        return _collection(data_dir, connection, segment, IndexCheck(())), [
            Finding(Severity.ERROR, "records-unreadable", segment.name, f"its records cannot be read: {error}")
        ]
    findings = [
        Finding(
            Severity.ERROR,
            each.code,
            segment.name,
            each.message,
            "upsert them again: their documents are there; or delete them (`--drop-lost`)"
            if check.only_lacks_vectors
            else "its index can be rebuilt",
            can_repair=not check.only_lacks_vectors,
        )
        for each in check.problems
    ]
    return _collection(data_dir, connection, segment, check), findings


def _collection(
    data_dir: Path, connection: sqlite3.Connection, segment: Segment, check: IndexCheck
) -> CollectionFinding:
    (records,) = connection.execute(
        "select count(*) from embeddings where segment_id = ?", (segment.metadata_id,)
    ).fetchone()
    return CollectionFinding(
        segment.name,
        segment.collection_id,
        segment.id,
        segment.dimension,
        segment.space,
        int(records),
        check.ids,
        check.deleted,
        sum(_size(data_dir / segment.id / name) for name in INDEX_FILES),
        check.is_synced,
        check.is_sound,
    )


def _open_files(collections: Iterable[CollectionFinding]) -> Iterator[Finding]:
    needed = sum(_FILES_OF_AN_INDEX for each in collections if each.is_synced)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > soft:
        yield Finding(
            Severity.WARNING,
            "many-indexes",
            "collections",
            f"Chroma needs {needed} open files for all indexes at once, the limit here is {soft}",
            "raise the limit of open files (`ulimit -n`) before Chroma starts",
        )


# ---------------------------------------------------------------------- repairing


def treat(
    data_dir: Path,
    found: Diagnosis,
    backup: Path,
    progress: Callable[[str], None] | None = None,
    *,
    drop_lost: bool = False,
) -> Treatment:
    """Repair what `found` says can be, after a copy of it to `backup`, a directory that does not exist yet.

    `drop_lost` deletes records that have no vector any more, after they were written to a file in `backup`. One failure
    does not keep the rest from being repaired. May be repeated. Raises ConfigError if the directory is used, DiskFull
    if the copy would not fit; then nothing was changed.
    """
    require_unused(data_dir)
    codes = {each.code for each in found.findings if each.can_repair}
    unsound = [
        each
        for each in found.collections
        if any(finding.where == each.name and finding.can_repair for finding in found.findings)
    ]
    treatment = Treatment(str(backup), [], [])
    if not codes and not (drop_lost and has_lost_records(found)):
        return treatment
    _require_space(data_dir, unsound, backup)
    backup.mkdir(mode=0o700, parents=True)
    with _opened(data_dir, to_change=True) as connection:
        back_up_database(connection, backup)
        _database_actions(connection, codes, treatment)
    for each in unsound:
        if progress:
            progress(each.name)
        try:
            repair = repair_segment(data_dir, each.segment_id, backup=backup)
        except (GatewayError, sqlite3.Error) as error:
            treatment.failures.append(f"{each.name}: {error}")
            continue
        treatment.repairs.append(repair)
        treatment.actions.append(f"{each.name}: {describe(repair)}")
    if drop_lost:
        _drop_lost(data_dir, backup, treatment)
    if "orphaned-directory" in codes:
        _move_orphans(data_dir, backup, treatment)
    return treatment


def has_lost_records(found: Diagnosis) -> bool:
    """Whether some record has no vector, in index or log."""
    return any(each.code == "records-without-vectors" for each in found.findings)


def _drop_lost(data_dir: Path, backup: Path, treatment: Treatment) -> None:
    with _opened(data_dir, to_change=True) as connection:
        for segment, check in check_segments(data_dir, connection):
            if not check.only_lacks_vectors:
                continue
            try:
                count = drop_records(connection, segment, check.missing_ids, backup / _LOST_RECORDS)
            except (GatewayError, OSError, sqlite3.Error) as error:
                treatment.failures.append(f"{segment.name}: records without a vector: {error}")
            else:
                treatment.actions.append(
                    f"{segment.name}: deleted {count} records without a vector; {_LOST_RECORDS} has them"
                )


def describe(repair: Repair) -> str:
    """A repair in words."""
    if repair.way is Way.NONE:
        return "nothing could be made better"
    said = {
        Way.COPY: "put an older copy of the index in place",
        Way.LOG: "removed the index: Chroma builds it anew from its log when it first reads the collection",
        Way.ID_MAP: f"made a new id map for {repair.salvaged} vectors; nothing else was wrong",
        Way.SALVAGE: f"rebuilt the index from {repair.salvaged} vectors in its files",
    }[repair.way]
    if repair.replayed:
        said += f"; {repair.replayed} rows of the log come on top at the first read"
    for ids, what in (
        (repair.lost_ids, "records have no vector any more"),
        (repair.doubtful_ids, "records may have an earlier vector"),
        (repair.unscaled_ids, "vectors have the right direction and the length 1"),
    ):
        said += f"; {len(ids)} {what}" if ids else ""
    return said


def _database_actions(connection: sqlite3.Connection, codes: set[str], treatment: Treatment) -> None:
    statements = {
        "database-damaged": ("reindex", "made the indexes of SQLite anew"),
        "full-text-damaged": (
            f"insert into {_FULL_TEXT}({_FULL_TEXT}) values ('rebuild')",  # noqa: S608  # a constant
            "made the full-text index anew from the documents",
        ),
        "large-wal": ("pragma wal_checkpoint(truncate)", "put the write-ahead log into the database"),
    }
    for code, (statement, said) in statements.items():
        if code in codes:
            try:
                connection.execute(statement).fetchall()
            except sqlite3.Error as error:
                treatment.failures.append(f"{DATABASE}: {statement}: {error}")
            else:
                treatment.actions.append(f"{DATABASE}: {said}")


def _move_orphans(data_dir: Path, backup: Path, treatment: Treatment) -> None:
    with _opened(data_dir) as connection:
        found = orphaned_directories(data_dir, connection)
    for orphan in found:
        try:
            shutil.move(orphan, backup / orphan.name)
        except OSError as error:
            treatment.failures.append(f"{orphan.name}: {error}")
        else:
            treatment.actions.append(f"{orphan.name}: moved the directory of a deleted collection away")


def _require_space(data_dir: Path, unsound: list[CollectionFinding], backup: Path) -> None:
    indexes = sum(allocated_bytes(data_dir / each.segment_id) for each in unsound)
    largest = max((allocated_bytes(data_dir / each.segment_id) for each in unsound), default=0)
    copied = indexes + _size(data_dir / DATABASE) + _size(data_dir / f"{DATABASE}-wal")
    parent = next(each for each in (backup, *backup.parents) if each.exists())
    # The new index is built beside the old one, with a log of its own.
    needed = {data_dir: 3 * largest}
    if parent.stat().st_dev == data_dir.stat().st_dev:
        needed = {data_dir: 3 * largest + copied}
    else:
        needed[parent] = copied
    for place, size in needed.items():
        if (free := shutil.disk_usage(place).free) < size:
            raise DiskFull(
                f"the repair needs {size >> 20} MiB at {place}, {free >> 20} MiB are free",
                "free some space, or name another place with --backup",
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
