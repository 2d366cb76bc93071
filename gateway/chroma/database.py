"""chroma.sqlite3: its journal mode, its freeze, and what it says. All blocking: call from a thread.

Chroma opens it with SQLite's defaults (`rust/sqlite/src/config.rs`): it keeps whatever journal mode
the file has, and its busy timeout is 1000 seconds, so that its writers wait while we hold the lock.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gateway.chroma.disk import DATABASE
from gateway.errors import ConfigError, CorruptSnapshot, DiskFull, GatewayError, QuiesceTimeout

_LOCK_TIMEOUT_S = 10.0


class Collection(NamedTuple):
    """A row of `collections` with where it belongs. `dimension` is None before the first record."""

    tenant: str
    database: str
    name: str
    id: str
    records: int
    dimension: int | None


class Migration(NamedTuple):
    """A schema change that was applied; `dir` is sysdb, metadb or embeddings_queue."""

    dir: str
    version: int
    filename: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What one state of the database says. `segments`: max_seq_id by live vector segment, 0 if unsynced."""

    collections: list[Collection]
    segments: dict[str, int]
    migrations: list[Migration]


# ---------------------------------------------------------------------- before Chroma starts


def prepare(data_dir: Path) -> str:
    """Make the database, or open the one there, in WAL mode; return the journal mode it is in.

    WAL lets a reader hold a state while writers go on, and makes writes 1.2 to 1.35 times faster
    (DESIGN §2.5). Where the file system cannot share memory the mode stays what it was: then
    snapshots hold writes back for as long as the database takes to copy. Chroma must not be running.
    Raises ConfigError if the file is no database, or another process uses it.
    """
    path = data_dir / DATABASE
    try:
        with closing(open_database(path, make=True)) as connection:
            mode = str(connection.execute("pragma journal_mode=wal").fetchone()[0])
            if not connection.execute("select count(*) from sqlite_master").fetchone()[0]:
                # The mode is only stored with the first page.
                connection.execute("create table _first(page)")
                connection.execute("drop table _first")
            elif mode == "wal":
                with suppress(sqlite3.OperationalError):  # it only tidies up, and a full disk may be read
                    # Not "truncate": that waits for readers, and a gateway may be one.
                    connection.execute("pragma wal_checkpoint(passive)").fetchone()
            return mode
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DiskFull(f"{path} cannot be opened: {error}", "free some space in the data directory") from error
        raise ConfigError(
            f"{path} cannot be opened: {error}", "is another Chroma using this directory? may it be written?"
        ) from error
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{path} is damaged: {error}",
            "move the data directory away and start again: the latest snapshot will be restored",
        ) from error


def is_empty(data_dir: Path) -> bool:
    """Whether there is no database, or one in which Chroma never made a table."""
    path = data_dir / DATABASE
    if not path.exists():
        return True
    try:
        with closing(open_database(path)) as connection:
            return not connection.execute("select count(*) from sqlite_master").fetchone()[0]
    except sqlite3.DatabaseError:
        return False  # something is there, and `prepare` will say what


# ---------------------------------------------------------------------- while it runs


@contextmanager
def write_lock(data_dir: Path) -> Iterator[None]:
    """Hold SQLite's write lock: writers that go round the gate wait too, reads go on.

    Raises QuiesceTimeout when some other writer does not let go of it.
    """
    with closing(open_database(data_dir / DATABASE)) as connection, write_lock_on(connection, commit=False):
        yield


@contextmanager
def write_lock_on(connection: sqlite3.Connection, *, commit: bool) -> Iterator[None]:
    """As `write_lock`, by a connection that may write meanwhile; `commit` says whether that is to stay."""
    try:
        connection.execute("begin immediate")
    except sqlite3.OperationalError as error:
        raise QuiesceTimeout(
            f"SQLite's write lock was not to be had within {_LOCK_TIMEOUT_S:g} s: {error}",
            "something other than the gateway writes to the database",
        ) from error
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    if commit:
        connection.commit()
    else:
        connection.rollback()


class Pinned:
    """One state of the database, held by a read transaction for as long as this is open."""

    def __init__(self, data_dir: Path) -> None:
        with translated(data_dir / DATABASE):
            self._connection = open_database(data_dir / DATABASE)
            try:
                self._connection.execute("begin")
                # A transaction begins with its first read, not with "begin".
                self._connection.execute("select count(*) from sqlite_master").fetchone()
            except BaseException:
                self._connection.close()
                raise

    @property
    def keeps_writers_going(self) -> bool:
        """Whether Chroma can write while this is open: only in WAL mode."""
        return bool(self._connection.execute("pragma journal_mode").fetchone()[0] == "wal")

    def segments(self) -> dict[str, int]:
        """`max_seq_id` by live vector segment in this state; 0 for one never synced."""
        return _segments(self._connection)

    def segment_collections(self) -> dict[str, str]:
        """The collection's id by live vector segment."""
        return dict(self._connection.execute("select id, collection from segments where scope = 'VECTOR'"))

    def log_rows(self, topic: str, after: int) -> int:
        """How many rows of `topic` the log has after sequence id `after`."""
        count = self._connection.execute(
            "select count(*) from embeddings_queue where seq_id > ? and topic = ?", (after, topic)
        ).fetchone()[0]
        return int(count)

    @property
    def keeps_log(self) -> bool:
        """Whether Chroma was told not to delete rows of its log."""
        return is_log_kept(self._connection)

    def contents(self) -> Contents:
        """What this state says."""
        return _contents(self._connection)

    def close(self) -> None:
        self._connection.close()


def read_contents(data_dir: Path) -> Contents:
    """What the database says now."""
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        connection.execute("begin")
        return _contents(connection)


# ---------------------------------------------------------------------- of a restored copy


def check(data_dir: Path) -> Contents:
    """Prove that a restored database can be used here, and return what it says.

    Raises CorruptSnapshot. Leaves no file beside it.
    """
    path = data_dir / DATABASE
    if not path.exists():
        raise CorruptSnapshot(f"it has no {DATABASE}")
    try:
        with closing(open_database(path)) as connection:
            if (verdict := connection.execute("pragma integrity_check").fetchone()[0]) != "ok":
                raise CorruptSnapshot(f"SQLite's integrity check of {DATABASE} says: {verdict}")
            return _contents(connection)
    except sqlite3.DatabaseError as error:
        raise CorruptSnapshot(f"{DATABASE} cannot be read: {error}") from error


# ---------------------------------------------------------------------- inside


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DiskFull(f"{path}: {error}", "free some space in the data directory") from error
        raise GatewayError(f"{path} cannot be used: {error}") from error


def open_database(path: Path, *, make: bool = False) -> sqlite3.Connection:
    """A connection that begins its transactions by hand."""
    # Autocommit: transactions are begun by hand. Threads take turns, never share. Only `prepare` may
    # make the file: an empty database where there was none would look like Chroma's.
    uri = f"{path.absolute().as_uri()}?mode={'rwc' if make else 'rw'}"
    return sqlite3.connect(uri, uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def is_log_kept(connection: sqlite3.Connection) -> bool:
    """Whether Chroma was told not to delete rows of its log, in the state that `connection` sees."""
    row = connection.execute("select config_json_str from embeddings_queue_config").fetchone()
    return row is not None and json.loads(row[0]).get("automatically_purge") is False


def _segments(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(
        connection.execute(
            "select s.id, coalesce(m.seq_id, 0) from segments s left join max_seq_id m on m.segment_id = s.id"
            " where s.scope = 'VECTOR' order by s.id"
        )
    )


def _contents(connection: sqlite3.Connection) -> Contents:
    collections = connection.execute(
        "select d.tenant_id, d.name, c.name, c.id,"
        " (select count(*) from segments s join embeddings e on e.segment_id = s.id"
        "  where s.collection = c.id and s.scope = 'METADATA'), c.dimension"
        " from collections c join databases d on d.id = c.database_id order by 1, 2, 3"
    )
    migrations = connection.execute("select dir, version, filename from migrations order by dir, version")
    return Contents(
        [Collection(*row) for row in collections],
        _segments(connection),
        [Migration(*row) for row in migrations],
    )
