"""chroma.sqlite3: journal mode, write lock, read transactions, contents. All of it blocks: call it from a thread.

Chroma sets no journal mode, so the file keeps the one it has. Its busy timeout is 1000 seconds, so its writers wait
while the gateway holds the write lock (`rust/sqlite/src/config.rs`; docs/chroma-internals.md, "SQLite").
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
    """A row of `collections`, with its tenant and database. `dimension` is None before the first record."""

    tenant: str
    database: str
    name: str
    id: str
    records: int
    dimension: int | None


class Migration(NamedTuple):
    """A schema migration that was applied. `dir` is sysdb, metadb or embeddings_queue."""

    dir: str
    version: int
    filename: str


@dataclass(frozen=True, slots=True)
class Contents:
    """One state of the database. `segments` has the position of each live vector segment, 0 if it was never synced."""

    collections: list[Collection]
    segments: dict[str, int]
    migrations: list[Migration]


# ---------------------------------------------------------------------- before Chroma starts


def prepare(data_dir: Path) -> str:
    """Create or open the database and switch it to WAL mode. Return the journal mode it is in then.

    In WAL mode a reader keeps its state while writers go on, and writes are 1.2 to 1.35 times faster
    (docs/chroma-internals.md, "WAL mode"). Where the file system has no shared memory, the mode stays what it was.
    Then a snapshot blocks writes for as long as copying the database takes. Chroma must not run.
    Raises ConfigError if the file is not a database or another process uses it, DiskFull. Safe to retry.
    """
    path = data_dir / DATABASE
    try:
        with closing(open_database(path, make=True)) as connection:
            mode = str(connection.execute("pragma journal_mode=wal").fetchone()[0])
            if not connection.execute("select count(*) from sqlite_master").fetchone()[0]:
                # SQLite stores the mode in the first page, which an empty database does not have.
                connection.execute("create table _first(page)")
                connection.execute("drop table _first")
            elif mode == "wal":
                with suppress(sqlite3.OperationalError):  # a full disk must not prevent reading
                    # Not "truncate", which waits for readers. A running gateway is one.
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
    """Whether there is no database, or one without tables."""
    path = data_dir / DATABASE
    if not path.exists():
        return True
    try:
        with closing(open_database(path)) as connection:
            return not connection.execute("select count(*) from sqlite_master").fetchone()[0]
    except sqlite3.DatabaseError:
        return False  # `prepare` reports what it is


def holds_anything(data_dir: Path) -> bool:
    """Whether somebody made a collection, a database or a tenant: Chroma begins with one tenant and one database."""
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        row = connection.execute(
            "select exists(select 1 from collections) or (select count(*) from databases) > 1"
            " or (select count(*) from tenants) > 1"
        ).fetchone()
        return bool(row[0])


def newest_log_row(data_dir: Path) -> int:
    """The highest sequence number in Chroma's log at this moment, 0 if it is empty."""
    with translated(data_dir / DATABASE), closing(ReadTransaction(data_dir)) as reader:
        return reader.newest_log_row()


# ---------------------------------------------------------------------- while it runs


@contextmanager
def write_lock(data_dir: Path) -> Iterator[None]:
    """Hold SQLite's write lock for the block. Writers that bypass the gateway wait too. Reads go on.

    Raises QuiesceTimeout if another writer holds it for `_LOCK_TIMEOUT_S`.
    """
    with closing(open_database(data_dir / DATABASE)) as connection, write_lock_on(connection, commit=False):
        yield


@contextmanager
def write_lock_on(connection: sqlite3.Connection, *, commit: bool) -> Iterator[None]:
    """As `write_lock`, on a connection that may write in the block. `commit` False rolls its changes back."""
    try:
        connection.execute("begin immediate")
    except sqlite3.OperationalError as error:
        raise QuiesceTimeout(
            f"SQLite's write lock was not free within {_LOCK_TIMEOUT_S:g} s: {error}",
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


class ReadTransaction:
    """One state of the database. It stays readable until `close`."""

    def __init__(self, data_dir: Path) -> None:
        with translated(data_dir / DATABASE):
            self._connection = open_database(data_dir / DATABASE)
            try:
                self._connection.execute("begin")
                # SQLite begins the transaction with the first read, not with "begin".
                self._connection.execute("select count(*) from sqlite_master").fetchone()
            except BaseException:
                self._connection.close()
                raise

    @property
    def connection(self) -> sqlite3.Connection:
        """For reading more of this state."""
        return self._connection

    @property
    def keeps_writers_going(self) -> bool:
        """Whether Chroma can write while this is open. Only WAL mode allows it."""
        return bool(self._connection.execute("pragma journal_mode").fetchone()[0] == "wal")

    def segments(self) -> dict[str, int]:
        """The position of each live vector segment, 0 if it was never synced."""
        return _segments(self._connection)

    def segment_collections(self) -> dict[str, str]:
        """The id of its collection, for each live vector segment."""
        return dict(self._connection.execute("select id, collection from segments where scope = 'VECTOR'"))

    def log_rows(self, topic: str, after: int) -> int:
        """The number of the log's rows of `topic` with a sequence id above `after`."""
        count = self._connection.execute(
            "select count(*) from embeddings_queue where seq_id > ? and topic = ?", (after, topic)
        ).fetchone()[0]
        return int(count)

    def has_log_row(self, topic: str, seq_id: int) -> bool:
        """Whether the log has a row of `topic` with this sequence id."""
        row = self._connection.execute(
            "select 1 from embeddings_queue where seq_id = ? and topic = ?", (seq_id, topic)
        ).fetchone()
        return row is not None

    def newest_log_row(self) -> int:
        """The highest sequence number in Chroma's log, 0 if it is empty."""
        return int(self._connection.execute("select coalesce(max(seq_id), 0) from embeddings_queue").fetchone()[0])

    @property
    def keeps_log(self) -> bool:
        """Whether Chroma is configured to keep the rows of its log."""
        return is_log_kept(self._connection)

    def contents(self) -> Contents:
        """Collections, positions and migrations in this state."""
        return _contents(self._connection)

    def close(self) -> None:
        self._connection.close()


def read_contents(data_dir: Path) -> Contents:
    """Collections, positions and migrations at this moment. Raises GatewayError if they cannot be read."""
    with translated(data_dir / DATABASE), closing(open_database(data_dir / DATABASE)) as connection:
        connection.execute("begin")
        return _contents(connection)


# ---------------------------------------------------------------------- of a restored copy


def check(data_dir: Path, *, thoroughly: bool = False) -> Contents:
    """Check every page of a restored database and return its contents.

    `thoroughly` also compares SQLite's indexes with their tables, which takes four times as long. Leaves no file
    beside the database. Raises CorruptSnapshot.
    """
    with _sound(data_dir, thoroughly=thoroughly) as connection:
        return _contents(connection)


def require_sound(data_dir: Path) -> None:
    """Raise CorruptSnapshot if SQLite's integrity check finds a fault. For databases of any Chroma version."""
    with _sound(data_dir):
        pass


# ---------------------------------------------------------------------- inside


@contextmanager
def _sound(data_dir: Path, *, thoroughly: bool = True) -> Iterator[sqlite3.Connection]:
    path = data_dir / DATABASE
    if not path.exists():
        raise CorruptSnapshot(f"it has no {DATABASE}")
    try:
        with closing(open_database(path)) as connection:
            verdict = connection.execute(f"pragma {'integrity' if thoroughly else 'quick'}_check").fetchone()[0]
            if verdict != "ok":
                raise CorruptSnapshot(f"SQLite's check of {DATABASE} says: {verdict}")
            yield connection
    except sqlite3.DatabaseError as error:
        raise CorruptSnapshot(f"{DATABASE} cannot be read: {error}") from error


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors as DiskFull or GatewayError."""
    try:
        yield
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DiskFull(f"{path}: {error}", "free some space in the data directory") from error
        raise GatewayError(f"{path} cannot be used: {error}") from error


def open_database(path: Path, *, make: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode: a transaction begins with an explicit "begin".

    Threads may use it in turn, not at once. `make` creates a missing file. Only `prepare` may do that: an empty
    database would look like one of Chroma's.
    """
    uri = f"{path.absolute().as_uri()}?mode={'rwc' if make else 'rw'}"
    return sqlite3.connect(uri, uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def is_log_kept(connection: sqlite3.Connection) -> bool:
    """Whether Chroma is configured to keep the rows of its log, in the state that `connection` reads."""
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
        " (select count(*) from embeddings e where e.segment_id = m.id), c.dimension"
        " from collections c join databases d on d.id = c.database_id"
        # A join, since SQLite makes an index for it: a subquery would look through all segments for each collection.
        " left join segments m on m.collection = c.id and m.scope = 'METADATA' order by 1, 2, 3"
    )
    migrations = connection.execute("select dir, version, filename from migrations order by dir, version")
    return Contents(
        [Collection(*row) for row in collections],
        _segments(connection),
        [Migration(*row) for row in migrations],
    )
