"""chroma.sqlite3 is prepared, locked, read and checked, with SQLite itself and data that Chroma wrote."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from gateway.chroma import database
from gateway.chroma.database import ReadTransaction, check, is_empty, prepare, read_contents, write_lock
from gateway.chroma.disk import DATABASE
from gateway.errors import ConfigError, CorruptSnapshot, QuiesceTimeout
from tests.unit.chroma.conftest import RECORDS


@pytest.fixture(autouse=True)
def short_lock_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the lock ends soon."""
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_S", 0.05)


def connect(data_dir: Path, timeout_s: float = 0) -> sqlite3.Connection:
    """A connection of another process."""
    return sqlite3.connect(data_dir / DATABASE, timeout=timeout_s, isolation_level=None, check_same_thread=False)


def execute(data_dir: Path, *statements: str) -> None:
    with closing(connect(data_dir)) as connection:
        for statement in statements:
            connection.execute(statement)


def copy_to(pinned: ReadTransaction, target: Path) -> None:
    """Write the state that `pinned` holds to a database in WAL mode."""
    with closing(sqlite3.connect(target)) as copy:
        pinned._connection.backup(copy)


def mode_of(data_dir: Path) -> str:
    with closing(connect(data_dir)) as connection:
        return str(connection.execute("pragma journal_mode").fetchone()[0])


@pytest.fixture(params=["wal", "delete"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database with one table, in either journal mode."""
    execute(tmp_path, f"pragma journal_mode={request.param}", "create table t(n)", "insert into t values (1)")
    return tmp_path


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    """A database with one table in WAL mode."""
    execute(tmp_path, "pragma journal_mode=wal", "create table t(n)", "insert into t values (1)")
    return tmp_path


# ---------------------------------------------------------------------- prepare


def test_a_new_database_stays_in_wal_mode(tmp_path: Path) -> None:
    """It is prepared before Chroma's first start, and another process that makes tables keeps the mode."""
    assert prepare(tmp_path) == "wal"
    assert mode_of(tmp_path) == "wal"
    execute(tmp_path, "create table collections(id)", "insert into collections values (1)")
    assert mode_of(tmp_path) == "wal"


def test_a_new_database_is_still_empty_and_can_be_prepared_again(tmp_path: Path) -> None:
    """An interrupted start leaves nothing that looks like Chroma's data."""
    for _ in range(2):
        assert prepare(tmp_path) == "wal"
        assert is_empty(tmp_path)


def test_a_database_in_rollback_mode_is_switched_and_keeps_its_data(tmp_path: Path) -> None:
    """A database that Chroma created is switched to WAL mode."""
    execute(tmp_path, "create table t(n)", "insert into t values (1)")
    assert mode_of(tmp_path) == "delete"
    assert prepare(tmp_path) == "wal"
    with closing(connect(tmp_path)) as connection:
        assert connection.execute("select n from t").fetchall() == [(1,)]


def test_commits_that_a_kill_left_in_the_wal_are_kept(tmp_path: Path) -> None:
    """They are in the database afterwards."""
    live = tmp_path / "live"
    live.mkdir()
    with closing(connect(live)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma wal_autocheckpoint=0")
        connection.execute("create table t(n)")
        connection.execute("insert into t values (1)")
        for file in list(live.iterdir()):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert (tmp_path / f"{DATABASE}-wal").stat().st_size
    assert prepare(tmp_path) == "wal"
    with closing(connect(tmp_path)) as connection:
        assert connection.execute("select n from t").fetchall() == [(1,)]


def test_a_file_that_is_no_database_stops_the_start_and_stays(tmp_path: Path) -> None:
    """The message names the file and what to do."""
    path = tmp_path / DATABASE
    path.write_bytes(b"something else entirely " * 100)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        prepare(tmp_path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert path.read_bytes() == b"something else entirely " * 100


def test_a_database_that_another_process_uses_stops_the_start(tmp_path: Path) -> None:
    """Its mode is not switched."""
    execute(tmp_path, "create table t(n)")
    with closing(connect(tmp_path)) as other:
        other.execute("begin exclusive")
        with pytest.raises(ConfigError, match="cannot be opened: database is locked"):
            prepare(tmp_path)


def test_a_directory_in_its_place_stops_the_start(tmp_path: Path) -> None:
    """It cannot be opened either."""
    (tmp_path / DATABASE).mkdir()
    with pytest.raises(ConfigError, match="cannot be opened"):
        prepare(tmp_path)


# ---------------------------------------------------------------------- is_empty


def test_a_directory_without_a_database_is_empty_and_stays_so(tmp_path: Path) -> None:
    """The check creates no file."""
    assert is_empty(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_no_bytes_is_empty(tmp_path: Path) -> None:
    """SQLite takes a file of no bytes for a database without tables."""
    (tmp_path / DATABASE).touch()
    assert is_empty(tmp_path)


def test_a_database_with_a_table_is_not_empty(table: Path) -> None:
    """Also if the table is empty, because Chroma made it."""
    execute(table, "delete from t")
    assert not is_empty(table)


def test_a_table_that_is_only_in_the_wal_counts(wal: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Data that a kill left in the WAL are never treated as absent."""
    copy = tmp_path_factory.mktemp("killed")
    (copy / DATABASE).touch()
    with closing(connect(copy)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma wal_autocheckpoint=0")
        connection.execute("create table t(n)")
        killed = tmp_path_factory.mktemp("copy")
        for file in list(copy.iterdir()):
            (killed / file.name).write_bytes(file.read_bytes())
    assert not is_empty(killed)


def test_a_file_that_is_no_database_is_not_empty(tmp_path: Path) -> None:
    """So no restore overwrites it."""
    (tmp_path / DATABASE).write_bytes(b"something else entirely " * 100)
    assert not is_empty(tmp_path)


# ---------------------------------------------------------------------- write_lock


def test_writers_wait_for_the_lock_and_readers_do_not(table: Path) -> None:
    """While it is held, a writer waits and readers read. Afterwards the waiting write is done."""
    waiting = threading.Event()

    def write() -> None:
        with closing(connect(table, timeout_s=30)) as writer:
            waiting.set()
            writer.execute("insert into t values (2)")

    with write_lock(table):
        patient = threading.Thread(target=write)
        patient.start()
        waiting.wait()
        with closing(connect(table)) as impatient:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                impatient.execute("insert into t values (3)")
            assert impatient.execute("select n from t").fetchall() == [(1,)]
    patient.join()
    with closing(connect(table)) as reader:
        assert reader.execute("select n from t").fetchall() == [(1,), (2,)]


def test_a_lock_that_another_writer_keeps_is_a_transient_error(table: Path) -> None:
    """It may be retried, and the other writer is not harmed."""
    with closing(connect(table)) as writer:
        writer.execute("begin immediate")
        writer.execute("insert into t values (2)")
        with pytest.raises(QuiesceTimeout, match="write lock"), write_lock(table):
            pytest.fail("there were two writers")
        writer.execute("commit")
        assert writer.execute("select count(*) from t").fetchone() == (2,)


def test_the_lock_is_released_after_an_error(table: Path) -> None:
    """Any error in the block releases it."""
    with pytest.raises(ZeroDivisionError), write_lock(table):
        raise ZeroDivisionError
    execute(table, "insert into t values (2)")


def test_locking_does_not_make_a_database(tmp_path: Path) -> None:
    """A missing database stays missing."""
    with pytest.raises(sqlite3.OperationalError), write_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- ReadTransaction


def test_a_read_transaction_does_not_see_later_commits(wal: Path, tmp_path: Path) -> None:
    """Writers go on, and a copy has exactly its rows."""
    pinned = ReadTransaction(wal)
    assert pinned.keeps_writers_going
    execute(wal, "insert into t values (2)", "create table u(n)", "delete from t where n = 1")
    target = tmp_path / "copy.sqlite3"
    copy_to(pinned, target)
    pinned.close()
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("select n from t").fetchall() == [(1,)]
        assert copy.execute("select name from sqlite_master").fetchall() == [("t",)]
    with closing(connect(wal)) as live:
        assert live.execute("select n from t").fetchall() == [(2,)]


def test_a_read_transaction_without_wal_blocks_writers(tmp_path: Path) -> None:
    """It reports that, and no writer can change what is being copied."""
    execute(tmp_path, "create table t(n)")
    pinned = ReadTransaction(tmp_path)
    assert not pinned.keeps_writers_going
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        execute(tmp_path, "insert into t values (2)")
    pinned.close()
    execute(tmp_path, "insert into t values (2)")


def test_a_read_transaction_under_the_lock_has_the_state_of_the_lock(wal: Path) -> None:
    """It never sees writes that waited for the lock."""
    with write_lock(wal):
        pinned = ReadTransaction(wal)
    execute(wal, "insert into t values (2)")
    with closing(sqlite3.connect(wal / "copy")) as copy:
        copy_to(pinned, wal / "copy")
        assert copy.execute("select n from t").fetchall() == [(1,)]
    pinned.close()


def test_contents_have_collections_segments_and_migrations(data_dir: Path) -> None:
    """Collections with their records, segments with their positions."""
    pinned = ReadTransaction(data_dir)
    contents = pinned.contents()
    assert pinned.segments() == contents.segments
    pinned.close()
    named = {collection.name: collection for collection in contents.collections}
    assert {name: (each.records, each.dimension) for name, each in named.items()} == {
        "synced": (RECORDS, 8),
        "unsynced": (1, 2),
    }
    assert {each.tenant for each in contents.collections} == {"default_tenant"}
    assert sorted(contents.segments.values())[0] == 0
    assert sorted(contents.segments.values())[1] > 0
    assert {row.dir for row in contents.migrations} == {"sysdb", "metadb", "embeddings_queue"}
    assert read_contents(data_dir) == contents


# ---------------------------------------------------------------------- check


@pytest.fixture
def restored(data_dir: Path, tmp_path: Path) -> Path:
    """A database as a restore writes it: one file in WAL mode."""
    prepare(data_dir)
    pinned = ReadTransaction(data_dir)
    target = tmp_path / "restored"
    target.mkdir()
    copy_to(pinned, target / DATABASE)
    pinned.close()
    return target


def test_a_good_database_passes_and_nothing_is_left_beside_it(restored: Path) -> None:
    """The check returns its contents and does not change a byte."""
    before = (restored / DATABASE).read_bytes()
    assert {collection.name for collection in check(restored).collections} == {"synced", "unsynced"}
    assert [path.name for path in restored.iterdir()] == [DATABASE]
    assert (restored / DATABASE).read_bytes() == before


def test_a_missing_database_is_corrupt_and_not_made(tmp_path: Path) -> None:
    """The check creates no file."""
    with pytest.raises(CorruptSnapshot, match=f"has no {DATABASE}"):
        check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_overwritten_page_is_found(restored: Path) -> None:
    """Each page in turn is filled with noise."""
    path, page_bytes = restored / DATABASE, 4096
    whole = path.read_bytes()
    missed = []
    for start in range(0, len(whole), page_bytes):
        path.write_bytes(whole[:start] + b"\xa5" * page_bytes + whole[start + page_bytes :])
        try:
            check(restored)
        except CorruptSnapshot:
            continue
        missed.append(start // page_bytes)
    # A page on the free list holds nothing that could be lost.
    path.write_bytes(whole)
    with closing(connect(restored)) as connection:
        free = connection.execute("pragma freelist_count").fetchone()[0]
    assert len(missed) <= free


def test_a_database_whose_rows_contradict_its_tables_is_found(restored: Path) -> None:
    """Every page is readable, and SQLite's integrity check fails."""
    execute(
        restored,
        "create table t(n)",
        "insert into t values (null)",
        "pragma writable_schema = on",
        "update sqlite_master set sql = 'create table t(n not null)' where name = 't'",
    )
    with pytest.raises(CorruptSnapshot, match=r"SQLite's check of chroma\.sqlite3 says: NULL value in t\.n"):
        check(restored)


@pytest.mark.parametrize("keep", [0, 50, 100, 4096, 4096 * 3 + 7, -4096])
def test_a_truncated_database_is_found(restored: Path, keep: int) -> None:
    """At any length."""
    path = restored / DATABASE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptSnapshot):
        check(restored)


def test_a_database_of_another_program_is_corrupt(wal: Path) -> None:
    """It is sound, and has none of Chroma's tables."""
    with pytest.raises(CorruptSnapshot, match="no such table"):
        check(wal)
