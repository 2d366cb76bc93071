"""An image that is updated with changed pages alone equals the database at every cut."""

import itertools
import os
import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from gateway.chroma import database
from gateway.chroma.database import ReadTransaction, prepare
from gateway.chroma.disk import DATABASE
from gateway.chroma.pages import DatabaseCut, Mark, PageTracker
from gateway.errors import QuiesceTimeout

PAGES_SEEDS = int(os.environ.get("PAGES_SEEDS", "4"))

# Fields of the header that `backup` writes anew: the modes, and the counters of changes.
_HEADER_OF_ITS_OWN = ((18, 20), (24, 28), (40, 44), (92, 100))


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path / DATABASE, isolation_level=None, check_same_thread=False, timeout=10)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    prepare(tmp_path)
    return tmp_path


@pytest.fixture
def tracker(data_dir: Path) -> Iterator[PageTracker]:
    made = PageTracker(data_dir)
    yield made
    made.forget()


@pytest.fixture
def writer(data_dir: Path) -> Iterator[sqlite3.Connection]:
    with closing(connect(data_dir)) as connection:
        connection.execute("create table t(id integer primary key, data blob)")
        yield connection


class Image:
    """What a store would have: the bytes of the last kept cut, updated with changed pages alone."""

    def __init__(self) -> None:
        self.data: bytearray | None = None
        self.scans = 0

    def keep(self, cut: DatabaseCut) -> None:
        whole = b"".join(cut.read_all())
        assert len(whole) == cut.size_bytes
        if cut.changed is None or self.data is None:
            self.data, self.scans = bytearray(whole), self.scans + 1
        else:
            numbers = sorted(number for number in cut.changed if number <= cut.pages)
            kept = self.data[: cut.size_bytes]
            kept += bytes(cut.size_bytes - len(kept))
            for number, page in zip(numbers, cut.read(numbers), strict=True):
                kept[(number - 1) * cut.page_bytes : number * cut.page_bytes] = page
            self.data = kept
            assert bytes(kept) == whole, "a page changed that was not listed"


def either_cut(tracker: PageTracker, chance: random.Random) -> DatabaseCut:
    """A cut with SQLite's write lock or beside writers."""
    if chance.random() < 0.5:
        return tracker.cut()
    return tracker.cut_beside_writers(lambda: None, Mark.SNAPSHOT)


def by_sqlite(cut: DatabaseCut) -> bytes:
    """The pages of the cut as SQLite's own backup reads them."""
    with closing(sqlite3.connect(":memory:")) as copy:
        cut._connection.backup(copy)
        return blank(copy.serialize())


def blank(data: bytes) -> bytes:
    header = bytearray(data[:100])
    for start, end in _HEADER_OF_ITS_OWN:
        header[start:end] = bytes(end - start)
    return bytes(header) + data[100:]


def write(connection: sqlite3.Connection, chance: random.Random) -> None:
    connection.execute("begin immediate")
    for _ in range(chance.randint(1, 60)):
        row = chance.randint(1, 1500)
        if chance.random() < 0.7:
            data = chance.randbytes(chance.randint(10, 6000))
            connection.execute("insert or replace into t values (?, ?)", (row, data))
        else:
            connection.execute("delete from t where id = ?", (row,))
    connection.execute(chance.choice(("commit", "commit", "rollback")))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, PAGES_SEEDS))])
def test_every_changed_page_is_listed(
    data_dir: Path, tracker: PageTracker, writer: sqlite3.Connection, seed: int
) -> None:
    """With two writers, rollbacks, vacuum, all kinds of checkpoints, `bound` and cuts that are undone."""
    chance, image = random.Random(seed), Image()
    with closing(connect(data_dir)) as other:
        other.execute("pragma busy_timeout=0")
        for _ in range(120):
            for _ in range(chance.randint(0, 5)):
                write(chance.choice((writer, other)), chance)
            if chance.random() < 0.05:
                writer.execute("vacuum")
            if chance.random() < 0.2:
                kind = chance.choice(("passive", "passive", "full", "restart", "truncate"))
                other.execute(f"pragma wal_checkpoint({kind})")
            if chance.random() < 0.4:
                tracker.bound()
            if chance.random() < 0.5:
                cut = either_cut(tracker, chance)
                if chance.random() < 0.5:
                    write(writer, chance)  # the cut stays what it is
                    other.execute("pragma wal_checkpoint(passive)")
                assert blank(b"".join(cut.read_all())) == by_sqlite(cut)
                if chance.random() < 0.2:
                    tracker.undo(cut)
                else:
                    image.keep(cut)
                cut.close()
    assert image.scans <= 3, "the log was hardly of use"


def test_no_page_is_missed_beside_writing_threads(
    data_dir: Path, tracker: PageTracker, writer: sqlite3.Connection
) -> None:
    """Cuts and `bound` beside two threads that write all the time."""
    writer.execute("insert into t values (1, x'01')")
    stop, image, failures = threading.Event(), Image(), []

    def write_on(seed: int) -> None:
        try:
            chance = random.Random(seed)
            with closing(connect(data_dir)) as connection:
                # SQLite's lock is not given in turn: writers without a pause would never let go of it.
                while not stop.wait(0.01):
                    write(connection, chance)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write_on, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(40):
            if turn % 3 == 0:
                tracker.bound()
            cut = either_cut(tracker, random.Random(turn))
            image.keep(cut)
            cut.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert image.scans == 1


def test_the_first_cut_has_no_list_and_the_second_has_a_short_one(
    tracker: PageTracker, writer: sqlite3.Connection
) -> None:
    """One row in a large table makes a few changed pages. Without writes there are none."""
    writer.executemany("insert into t values (?, ?)", ((n, bytes(2000)) for n in range(1000)))
    changed = []
    for statement in ("select 1", "update t set data = x'01' where id = 500", "select 1"):
        writer.execute(statement)
        cut = tracker.cut()
        changed.append(cut.changed)
        cut.close()
    assert changed[0] is None
    assert changed[1] is not None
    assert 1 <= len(changed[1]) <= 4
    assert changed[2] == set()


def test_a_cut_beside_writers_waits_for_no_lock(
    data_dir: Path, tracker: PageTracker, writer: sqlite3.Connection
) -> None:
    """Another connection holds the write lock, with changes that are not committed: the cut lacks them."""
    tracker.cut().close()
    writer.execute("insert into t values (1, x'01')")
    with closing(connect(data_dir)) as other:
        other.execute("begin immediate")
        other.execute("insert into t values (2, x'02')")
        cut = tracker.cut_beside_writers(lambda: None, Mark.SNAPSHOT)
        other.execute("commit")
    assert cut.changed
    assert by_sqlite(cut) == blank(b"".join(cut.read_all()))
    assert cut.connection.execute("select id from t").fetchall() == [(1,)]
    cut.close()


@pytest.mark.parametrize("interrupted", [0, 1, 4, 100])
def test_a_cut_beside_writers_has_what_was_committed_before_it_began(
    tracker: PageTracker, writer: sqlite3.Connection, interrupted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is committed while its transactions begin, and however often that happens."""
    image, numbers, left = Image(), itertools.count(), [0]

    def write() -> None:
        writer.execute("insert into t values (?, zeroblob(9000))", (next(numbers),))

    def begun(data_dir: Path) -> ReadTransaction:
        if left[0] and not writer.in_transaction:
            left[0] -= 1
            with suppress(sqlite3.OperationalError):  # the cut has the lock
                write()
        return ReadTransaction(data_dir)

    writer.execute("pragma busy_timeout=0")
    monkeypatch.setattr("gateway.chroma.pages.ReadTransaction", begun)
    for _ in range(5):
        left[0] = interrupted
        cut = tracker.cut_beside_writers(write, Mark.JOURNAL)
        count = cut.connection.execute("select count(*) from t").fetchone()[0]
        assert 0 < count <= next(numbers)
        image.keep(cut)
        assert blank(b"".join(cut.read_all())) == by_sqlite(cut)
        cut.close()
    assert image.scans == 1


def test_undo_adds_the_changes_to_the_next_cut(tracker: PageTracker, writer: sqlite3.Connection) -> None:
    """The next cut has the changes of the undone cut and the later ones."""
    tracker.cut().close()
    writer.execute("insert into t values (1, x'01')")
    lost = tracker.cut()
    lost.close()
    tracker.undo(lost)
    writer.execute("create table u(n)")
    cut = tracker.cut()
    cut.close()
    assert lost.changed
    assert cut.changed
    assert lost.changed < cut.changed


def test_undo_of_a_cut_without_a_list_leaves_changes_unknown(tracker: PageTracker, writer: sqlite3.Connection) -> None:
    """Any page may differ from the store."""
    cut = tracker.cut()
    cut.close()
    tracker.undo(cut)
    writer.execute("insert into t values (1, x'01')")
    cut = tracker.cut()
    cut.close()
    assert cut.changed is None


def test_after_forget_changes_are_unknown(tracker: PageTracker, writer: sqlite3.Connection) -> None:
    """The database may have been replaced."""
    tracker.cut().close()
    tracker.forget()
    assert not tracker.is_tracking
    cut = tracker.cut()
    cut.close()
    assert cut.changed is None


def test_a_bounded_wal_does_not_grow(data_dir: Path, tracker: PageTracker, writer: sqlite3.Connection) -> None:
    """Whatever is written after a cut, and no changed page is missed."""
    image = Image()
    cut = tracker.cut()
    image.keep(cut)
    cut.close()
    chance, log, largest = random.Random(0), data_dir / f"{DATABASE}-wal", 0
    for _ in range(100):
        write(writer, chance)
        if tracker.wal_bytes() > 1 << 20:
            tracker.bound()
        largest = max(largest, log.stat().st_size)
    assert largest < 4 << 20
    cut = tracker.cut()
    image.keep(cut)
    cut.close()
    assert image.scans == 1


def test_a_wal_without_bound_grows(data_dir: Path, tracker: PageTracker, writer: sqlite3.Connection) -> None:
    """The test before this one relies on it: the reader between two cuts prevents a restart."""
    writer.execute("insert into t values (1, x'01')")
    tracker.cut().close()
    chance = random.Random(0)
    for _ in range(100):
        write(writer, chance)
    assert (data_dir / f"{DATABASE}-wal").stat().st_size > 4 << 20


def test_bound_before_the_first_cut_does_nothing(tracker: PageTracker) -> None:
    """There is no reader that makes the WAL grow."""
    tracker.bound()
    assert not tracker.is_tracking


def test_a_bound_that_must_wait_too_long_loses_nothing(
    data_dir: Path, tracker: PageTracker, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another writer keeps the lock, `bound` raises QuiesceTimeout, and the next cut has all changes."""
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_S", 0.05)
    image = Image()
    cut = tracker.cut()
    image.keep(cut)
    cut.close()
    writer.execute("insert into t values (1, x'01')")
    writer.execute("begin immediate")
    with pytest.raises(QuiesceTimeout):
        tracker.bound()
    with pytest.raises(QuiesceTimeout):
        tracker.cut()
    writer.execute("commit")
    cut = tracker.cut()
    image.keep(cut)
    cut.close()


def test_an_error_under_the_lock_releases_everything(
    data_dir: Path, tracker: PageTracker, writer: sqlite3.Connection
) -> None:
    """Writers go on, no reader is open, and changes are unknown."""
    tracker.cut().close()

    def fail(_: DatabaseCut) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tracker.cut(fail)
    writer.execute("insert into t values (1, x'01')")
    assert not tracker.is_tracking
    cut = tracker.cut()
    cut.close()
    assert cut.changed is None


@pytest.mark.parametrize("page_bytes", [512, 1024, 65536])
def test_pages_of_any_size(tmp_path: Path, page_bytes: int) -> None:
    """SQLite writes 65536 as 1 in its header."""
    with closing(connect(tmp_path)) as connection:
        connection.execute(f"pragma page_size={page_bytes}")
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table t(id integer primary key, data blob)")
        tracker, image, chance = PageTracker(tmp_path), Image(), random.Random(0)
        for _ in range(6):
            cut = tracker.cut()
            assert cut.page_bytes == page_bytes
            image.keep(cut)
            assert blank(b"".join(cut.read_all())) == by_sqlite(cut)
            cut.close()
            write(connection, chance)
        tracker.forget()
    assert image.scans == 1


def test_a_database_that_grows_past_a_gibibyte(tmp_path: Path) -> None:
    """SQLite never writes the page at 1 GiB, which holds its locks. It is in no WAL and not yet in the file."""
    page_bytes, last = 65536, (1 << 30) // 65536
    with closing(connect(tmp_path)) as connection:
        connection.execute(f"pragma page_size={page_bytes}")
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table t(id integer primary key, data blob)")
    with (tmp_path / DATABASE).open("r+b") as file:  # up to there, with pages that nothing uses
        file.truncate(1 << 30)
        file.seek(28)
        file.write(last.to_bytes(4, "big"))
    with closing(connect(tmp_path)) as connection:
        connection.execute("insert into t values (1, x'01')")
        tracker = PageTracker(tmp_path)
        tracker.cut().close()
        connection.execute("insert into t values (2, zeroblob(100000))")
        cut = tracker.cut()
        assert cut.changed is not None
        assert last + 1 not in cut.changed
        assert cut.pages > last + 1
        assert next(cut.read([last + 1])) == bytes(page_bytes)
        cut.close()
        tracker.forget()


def test_without_wal_changes_are_unknown_and_pages_are_right(tmp_path: Path) -> None:
    """In rollback mode there is no WAL to read."""
    with closing(connect(tmp_path)) as connection:
        connection.execute("create table t(id integer primary key, data blob)")
        tracker, chance = PageTracker(tmp_path), random.Random(0)
        for _ in range(4):
            write(connection, chance)
            cut = tracker.cut()
            assert cut.changed is None
            assert not cut.keeps_writers_going
            assert b"".join(cut.read_all()) == (tmp_path / DATABASE).read_bytes()
            cut.close()
        tracker.forget()


def test_without_wal_writers_go_on_after_the_cut_is_closed(tmp_path: Path) -> None:
    """No reader stays open that would block them."""
    with closing(connect(tmp_path)) as connection:
        connection.execute("create table t(id integer primary key, data blob)")
        connection.execute("pragma busy_timeout=200")
        tracker = PageTracker(tmp_path)
        for number in range(3):
            cut = tracker.cut()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                connection.execute("insert into t values (?, x'01')", (number,))
            cut.close()
            connection.execute("insert into t values (?, x'01')", (number,))
            tracker.bound()
        tracker.forget()
