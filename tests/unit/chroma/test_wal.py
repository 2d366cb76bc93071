"""SQLite's write-ahead log is read as SQLite writes it."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.chroma.database import ReadTransaction
from gateway.chroma.disk import DATABASE
from gateway.chroma.wal import DatabaseFiles, WalHead, follows, pages_in, read_frame

PAGE_BYTES = 1024


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / DATABASE


@pytest.fixture
def writer(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that makes no checkpoints by itself."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(f"pragma page_size={PAGE_BYTES}")
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma wal_autocheckpoint=0")
        yield connection


@pytest.fixture
def files(database: Path) -> Iterator[DatabaseFiles]:
    opened = DatabaseFiles(database)
    yield opened
    opened.close()


def fill(writer: sqlite3.Connection, rows: int = 20) -> None:
    writer.execute("create table if not exists t(n, text)")
    writer.executemany("insert into t values (?, ?)", ((n, "x" * 300) for n in range(rows)))


def head(files: DatabaseFiles) -> WalHead:
    found = files.head()
    assert found is not None
    return found


def test_a_database_without_a_wal_has_no_head(database: Path, files: DatabaseFiles) -> None:
    """In rollback mode there is no WAL, and reading creates none."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("create table t(n)")
        assert files.head() is None
        assert [path.name for path in database.parent.iterdir()] == [DATABASE]


def test_the_head_counts_frames_as_sqlite_does(writer: sqlite3.Connection, files: DatabaseFiles) -> None:
    """Its numbers are those of `wal_checkpoint`, and a rollback does not count."""
    fill(writer)
    before = head(files)
    assert before.frames > 0
    writer.execute("begin")
    fill(writer)
    writer.execute("rollback")
    assert head(files) == before
    _, frames, copied = writer.execute("pragma wal_checkpoint(passive)").fetchone()
    now = head(files)
    assert (now.frames, now.backfilled) == (frames, copied) == (before.frames, before.frames)


def test_a_reader_prevents_later_frames_from_being_copied_back(
    writer: sqlite3.Connection, files: DatabaseFiles, database: Path
) -> None:
    """Frames up to its moment are in the database, later ones are not, and the head says so."""
    fill(writer)
    pinned = ReadTransaction(database.parent)
    seen = head(files).frames
    fill(writer)
    writer.execute("pragma wal_checkpoint(passive)")
    pinned.close()
    assert head(files).backfilled == seen < head(files).frames


def test_a_restarted_wal_follows_only_the_one_before(writer: sqlite3.Connection, files: DatabaseFiles) -> None:
    """After two restarts changes may have been missed."""
    fill(writer)
    heads = [head(files)]
    for _ in range(2):
        writer.execute("pragma wal_checkpoint(restart)")
        fill(writer)
        heads.append(head(files))
    assert len({each.salts for each in heads}) == 3
    assert follows(heads[0], heads[1])
    assert follows(heads[1], heads[2])
    assert not follows(heads[0], heads[2])
    assert not follows(heads[1], heads[0])
    assert not follows(heads[0], heads[0])


def test_the_salt_that_counts_restarts_wraps_around() -> None:
    """It has 32 bits."""
    last, first = b"\xff\xff\xff\xff", b"\0\0\0\0"
    assert follows(WalHead(last + b"abcd", 1, 1), WalHead(first + b"efgh", 0, 0))
    assert not follows(WalHead(first + b"abcd", 1, 1), WalHead(last + b"efgh", 0, 0))


def test_the_newest_frame_of_a_page_is_the_page(
    writer: sqlite3.Connection, files: DatabaseFiles, database: Path
) -> None:
    """It equals the page in the database after a checkpoint of everything."""
    fill(writer)
    writer.execute("update t set n = n + 1")
    committed = head(files).frames
    newest = pages_in(files.wal, 1, committed, PAGE_BYTES)
    assert max(newest.values()) == committed
    pages = {number: read_frame(files.wal, frame, PAGE_BYTES) for number, frame in newest.items()}
    writer.execute("pragma wal_checkpoint(passive)")
    whole = database.read_bytes()
    assert {number: whole[(number - 1) * PAGE_BYTES : number * PAGE_BYTES] for number in pages} == pages


def test_frames_between_two_heads_have_the_pages_changed_in_between(
    writer: sqlite3.Connection, files: DatabaseFiles
) -> None:
    """A change of one row of one page lists that page and few others."""
    fill(writer, 200)
    before = head(files).frames
    writer.execute("update t set n = -1 where rowid = 1")
    changed = pages_in(files.wal, before + 1, head(files).frames, PAGE_BYTES)
    assert len(changed) == 1


def test_replaced_files_are_opened_again(writer: sqlite3.Connection, files: DatabaseFiles, database: Path) -> None:
    """Reads are of the present files."""
    fill(writer)
    old = head(files)
    for suffix in ("", "-wal", "-shm"):
        path = database.with_name(DATABASE + suffix)
        path.rename(path.with_name(f"old{suffix}"))
    assert files.head() is None
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("pragma journal_mode=wal")
        other.execute("create table u(n)")
        assert head(files).salts != old.salts
        assert pages_in(files.wal, 1, head(files).frames, 4096)


def test_reading_the_wal_does_not_release_a_readers_locks(
    writer: sqlite3.Connection, files: DatabaseFiles, database: Path
) -> None:
    """A reader of this process keeps its state against other processes."""
    fill(writer)
    pinned = ReadTransaction(database.parent)
    head(files)
    pages_in(files.wal, 1, 1, PAGE_BYTES)
    assert files.database
    fill(writer)
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None);"
        "print(c.execute('pragma wal_checkpoint(truncate)').fetchone()[0])"
    )

    def busy() -> bool:
        ran = subprocess.run([sys.executable, "-c", program, database], capture_output=True, check=True, timeout=60)
        return bool(int(ran.stdout))

    assert busy()
    pinned.close()
    assert not busy()
