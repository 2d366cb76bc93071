"""chroma.sqlite3 is made ready, frozen, read and checked; with SQLite itself and what Chroma wrote."""

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
    """What waits for a lock for nothing gives up soon."""
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_S", 0.05)


def connect(data_dir: Path, timeout_s: float = 0) -> sqlite3.Connection:
    """Another process's connection."""
    return sqlite3.connect(data_dir / DATABASE, timeout=timeout_s, isolation_level=None, check_same_thread=False)


def execute(data_dir: Path, *statements: str) -> None:
    with closing(connect(data_dir)) as connection:
        for statement in statements:
            connection.execute(statement)


def copy_to(pinned: ReadTransaction, target: Path) -> None:
    """Write the state that `pinned` holds into a database of its own, in WAL mode as it is."""
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


def test_a_new_database_is_in_wal_mode_for_whoever_opens_it_next(tmp_path: Path) -> None:
    """Prepared before Chroma's first start, and still so after another process made its tables."""
    assert prepare(tmp_path) == "wal"
    assert mode_of(tmp_path) == "wal"
    execute(tmp_path, "create table collections(id)", "insert into collections values (1)")
    assert mode_of(tmp_path) == "wal"


def test_a_new_database_is_still_empty_and_can_be_prepared_again(tmp_path: Path) -> None:
    """A start that got no further leaves nothing that looks like Chroma's data."""
    for _ in range(2):
        assert prepare(tmp_path) == "wal"
        assert is_empty(tmp_path)


def test_a_database_in_rollback_mode_is_switched_and_keeps_its_data(tmp_path: Path) -> None:
    """One that Chroma made by itself comes into WAL mode."""
    execute(tmp_path, "create table t(n)", "insert into t values (1)")
    assert mode_of(tmp_path) == "delete"
    assert prepare(tmp_path) == "wal"
    with closing(connect(tmp_path)) as connection:
        assert connection.execute("select n from t").fetchall() == [(1,)]


def test_what_a_kill_left_in_the_wal_is_kept(tmp_path: Path) -> None:
    """Commits that were never checkpointed are in the database afterwards, and the WAL is empty."""
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


def test_what_is_no_database_stops_the_start_and_is_left_as_it_is(tmp_path: Path) -> None:
    """The message names the file and the way out."""
    path = tmp_path / DATABASE
    path.write_bytes(b"something else entirely " * 100)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        prepare(tmp_path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert path.read_bytes() == b"something else entirely " * 100


def test_a_database_that_another_process_uses_stops_the_start(tmp_path: Path) -> None:
    """It is not switched under somebody's feet."""
    execute(tmp_path, "create table t(n)")
    with closing(connect(tmp_path)) as other:
        other.execute("begin exclusive")
        with pytest.raises(ConfigError, match="cannot be opened: database is locked"):
            prepare(tmp_path)


def test_a_directory_in_its_place_stops_the_start(tmp_path: Path) -> None:
    """As any other thing that cannot be opened."""
    (tmp_path / DATABASE).mkdir()
    with pytest.raises(ConfigError, match="cannot be opened"):
        prepare(tmp_path)


# ---------------------------------------------------------------------- is_empty


def test_a_directory_without_a_database_is_empty_and_stays_so(tmp_path: Path) -> None:
    """Asking does not make one."""
    assert is_empty(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_no_bytes_is_empty(tmp_path: Path) -> None:
    """SQLite takes a file of no bytes for a database without tables."""
    (tmp_path / DATABASE).touch()
    assert is_empty(tmp_path)


def test_a_database_with_a_table_is_not_empty(table: Path) -> None:
    """Although the table may be: Chroma was there."""
    execute(table, "delete from t")
    assert not is_empty(table)


def test_a_table_that_is_only_in_the_wal_counts(wal: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Data that a kill left in the WAL is never taken for nothing."""
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


def test_what_is_no_database_is_not_empty(tmp_path: Path) -> None:
    """Something is there, so that nothing is restored over it."""
    (tmp_path / DATABASE).write_bytes(b"something else entirely " * 100)
    assert not is_empty(tmp_path)


# ---------------------------------------------------------------------- write_lock


def test_writers_wait_for_the_lock_and_readers_do_not(table: Path) -> None:
    """While it is held a writer gets nowhere and every reader reads; afterwards the waiting write is done."""
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


def test_a_writer_that_does_not_let_go_is_told(table: Path) -> None:
    """As something that may be tried again, and the writer is not harmed."""
    with closing(connect(table)) as writer:
        writer.execute("begin immediate")
        writer.execute("insert into t values (2)")
        with pytest.raises(QuiesceTimeout, match="write lock"), write_lock(table):
            pytest.fail("there were two writers")
        writer.execute("commit")
        assert writer.execute("select count(*) from t").fetchone() == (2,)


def test_the_lock_is_given_back_after_an_error(table: Path) -> None:
    """Whatever happens while it is held."""
    with pytest.raises(ZeroDivisionError), write_lock(table):
        raise ZeroDivisionError
    execute(table, "insert into t values (2)")


def test_locking_does_not_make_a_database(tmp_path: Path) -> None:
    """Where there is none, none comes about."""
    with pytest.raises(sqlite3.OperationalError), write_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- ReadTransaction


def test_pinned_sees_its_moment_and_nothing_since(wal: Path, tmp_path: Path) -> None:
    """Writers go on, and the copy is the pinned state to the row."""
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


def test_pinned_holds_writers_back_where_there_is_no_wal(tmp_path: Path) -> None:
    """In rollback mode it says so, and a writer cannot change what is being copied."""
    execute(tmp_path, "create table t(n)")
    pinned = ReadTransaction(tmp_path)
    assert not pinned.keeps_writers_going
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        execute(tmp_path, "insert into t values (2)")
    pinned.close()
    execute(tmp_path, "insert into t values (2)")


def test_pinned_under_the_lock_is_the_locked_moment(wal: Path) -> None:
    """ReadTransaction while writers wait, it never sees what they write when the lock is gone."""
    with write_lock(wal):
        pinned = ReadTransaction(wal)
    execute(wal, "insert into t values (2)")
    with closing(sqlite3.connect(wal / "copy")) as copy:
        copy_to(pinned, wal / "copy")
        assert copy.execute("select n from t").fetchall() == [(1,)]
    pinned.close()


def test_pinned_tells_what_chromas_database_says(data_dir: Path) -> None:
    """Collections with their records, segments with how far they are synced, migrations."""
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
    """A database as a restore puts it there: one file in WAL mode."""
    prepare(data_dir)
    pinned = ReadTransaction(data_dir)
    target = tmp_path / "restored"
    target.mkdir()
    copy_to(pinned, target / DATABASE)
    pinned.close()
    return target


def test_a_good_database_passes_and_nothing_is_left_beside_it(restored: Path) -> None:
    """It says what it holds, and is byte for byte what it was."""
    before = (restored / DATABASE).read_bytes()
    assert {collection.name for collection in check(restored).collections} == {"synced", "unsynced"}
    assert [path.name for path in restored.iterdir()] == [DATABASE]
    assert (restored / DATABASE).read_bytes() == before


def test_a_missing_database_is_corrupt_and_not_made(tmp_path: Path) -> None:
    """A check makes nothing."""
    with pytest.raises(CorruptSnapshot, match=f"has no {DATABASE}"):
        check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_overwritten_page_is_found(restored: Path) -> None:
    """Each page of the file, one after the other, filled with noise: never good."""
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
    """Every page can be read, and yet SQLite's integrity check says no."""
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
    """Wherever it ends."""
    path = restored / DATABASE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptSnapshot):
        check(restored)


def test_a_database_of_another_program_is_corrupt(wal: Path) -> None:
    """Sound as it may be, it is not Chroma's."""
    with pytest.raises(CorruptSnapshot, match="no such table"):
        check(wal)
