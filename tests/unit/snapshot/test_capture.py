"""A cut finds and reads what changed since the baseline. It does not read the rest again."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.chroma import log
from gateway.chroma.database import prepare
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE, INDEX_FILES, index_signatures
from gateway.chroma.pages import PageTracker
from gateway.jobs import Progress
from gateway.snapshot import capture, create, plan
from gateway.snapshot.baseline import Baseline, StoredFile, empty_baseline
from gateway.snapshot.capture import Cut, freeze, plan_cut, read_database, read_index
from gateway.snapshot.create import Snapshotter
from gateway.snapshot.packing import PackWriter
from gateway.snapshot.plan import IndexPlan
from gateway.snapshot.repository import Repository
from tests.bare_chroma import bare_chroma
from tests.unit.snapshot.stores import MemoryStore

SYNCED = {"hnsw": {"sync_threshold": 20, "batch_size": 10}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that Chroma wrote, with its log kept. Two synced indexes, and one of a deleted collection."""
    path = tmp_path_factory.mktemp("made")
    prepare(path)
    with bare_chroma(path) as chroma:
        log.keep_log(path)
        for name in ("one", "two", "gone"):
            collection = chroma.client().create_collection(name, embedding_function=None, configuration=SYNCED)
            for start in (0, 20):
                ids = [str(number) for number in range(start, start + 20)]
                collection.add(ids=ids, embeddings=[[float(number), 1.0] for number in range(start, start + 20)])
                collection.count()
        chroma.client().delete_collection("gone")
    return path


@pytest.fixture
def data_dir(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def tracker(data_dir: Path) -> Iterator[PageTracker]:
    tracker = PageTracker(data_dir)
    yield tracker
    tracker.forget()


@pytest.fixture
def writer() -> PackWriter:
    return PackWriter(Repository(MemoryStore()), {}, Progress())


def execute(data_dir: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(data_dir / DATABASE)) as database, database:
        database.execute(statement, values)


def known(cut: Cut, files: list[StoredFile], seed: int, **positions: int) -> Baseline:
    """The baseline after a snapshot of `cut`."""
    return Baseline("", seed, {file.path: file for file in files}, {**cut.segments, **positions})


async def read_all(data_dir: Path, cut: Cut, baseline: Baseline, writer: PackWriter) -> list[StoredFile]:
    files = []
    for segment_id in cut.segments:
        found = await read_index(data_dir, cut, segment_id, baseline, writer)
        assert found is not None
        files += found
    return [*files, await read_database(cut.database, baseline, writer)]


async def test_empty_baseline_reads_everything_that_is_live(
    data_dir: Path, tracker: PageTracker, writer: PackWriter
) -> None:
    """The indexes of live segments whole, none of a deleted segment, and the database as SQLite has it."""
    baseline = empty_baseline()
    cut = freeze(data_dir, tracker, baseline)
    assert len(cut.segments) == 2
    assert len([path for path in data_dir.iterdir() if path.is_dir()]) == 3
    plan = plan_cut(cut, baseline)
    assert (sorted(plan.required), plan.optional, plan.positions) == (sorted(cut.segments), [], {})
    async with writer:
        files = await read_all(data_dir, cut, baseline, writer)
    contents = cut.database.contents()
    cut.close()
    assert {file.path for file in files} == {
        DATABASE,
        *(f"{segment}/{name}" for segment in cut.segments for name in INDEX_FILES),
    }
    assert all(file.size_bytes == (data_dir / file.path).stat().st_size for file in files if file.path != DATABASE)
    assert [(each.name, each.records) for each in contents.collections] == [("one", 40), ("two", 40)]


async def test_unchanged_data_are_not_read_or_stored_again(
    data_dir: Path, tracker: PageTracker, writer: PackWriter
) -> None:
    """The next cut does not read the signatures of the indexes, and no byte of the database goes to the store."""
    baseline = empty_baseline()
    async with writer:
        cut = freeze(data_dir, tracker, baseline)
        before = await read_all(data_dir, cut, baseline, writer)
        cut.close()
        baseline = known(cut, before, baseline.seed)
        sent = set(writer.sent)
        cut = freeze(data_dir, tracker, baseline)
        assert cut.signatures == {}
        assert plan_cut(cut, baseline) == IndexPlan([], [], cut.segments)
        again = await read_database(cut.database, baseline, writer)
        cut.close()
    assert (again.base, again.patches, again.sha256) == (before[-1].base, before[-1].patches, before[-1].sha256)
    assert set(writer.sent) == sent


async def test_index_that_changes_while_it_is_read_is_not_used(
    data_dir: Path, tracker: PageTracker, writer: PackWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed in place, grown, truncated, deleted or replaced, at any time between the cut and the end of reading."""
    baseline = empty_baseline()
    cut = freeze(data_dir, tracker, baseline)
    segment = min(cut.segments)
    path = data_dir / segment / "data_level0.bin"
    whole = path.read_bytes()

    def change_in_place() -> None:
        with path.open("r+b") as file:
            file.write(b"\xff")

    def touch_other() -> None:
        (data_dir / segment / "length.bin").touch()

    moves = {
        "changed": change_in_place,
        "touched": touch_other,
        "grown": lambda: path.write_bytes(whole + b"more"),
        "cut": lambda: path.write_bytes(whole[:-4]),
        "emptied": lambda: path.write_bytes(b""),
        "gone": path.unlink,
    }
    store = capture._store_file
    async with writer:
        for how, move in moves.items():
            for when in ("before", "between", "after"):
                path.write_bytes(whole)
                for each in path.parent.iterdir():
                    os.utime(each, (1_000_000_000, 1_000_000_000))
                cut.signatures.update(index_signatures(data_dir, cut.segments))

                async def storing(name: str, *args: object, when: str = when, move: object = move) -> StoredFile:
                    try:
                        if name.endswith("data_level0.bin") and when == "before":
                            move()
                        return await store(name, *args)
                    finally:
                        if name.endswith({"between": "data_level0.bin", "after": "link_lists.bin"}.get(when, "-")):
                            move()

                monkeypatch.setattr(capture, "_store_file", storing)
                assert await read_index(data_dir, cut, segment, baseline, writer) is None, (how, when)
    cut.close()


async def test_index_without_files_is_not_read(data_dir: Path, tracker: PageTracker, writer: PackWriter) -> None:
    """There is nothing to store."""
    baseline = empty_baseline()
    cut = freeze(data_dir, tracker, baseline)
    segment = min(cut.segments)
    cut.close()
    shutil.rmtree(data_dir / segment)
    cut = freeze(data_dir, tracker, baseline)
    async with writer:
        assert await read_index(data_dir, cut, segment, baseline, writer) is None
    cut.close()


# ---------------------------------------------------------------------- which indexes are read


@pytest.fixture
def cut(data_dir: Path, tracker: PageTracker) -> Iterator[Cut]:
    """A cut whose log goes back to the first record."""
    made = freeze(data_dir, tracker, empty_baseline())
    yield made
    made.close()


def chosen(cut: Cut, positions: dict[str, int]) -> IndexPlan:
    return plan_cut(cut, Baseline("", 0, {}, positions))


def first_row(data_dir: Path, segment: str) -> int:
    with closing(sqlite3.connect(data_dir / DATABASE)) as database:
        query = (
            "select min(q.seq_id) from embeddings_queue q join segments s"
            " on q.topic = 'persistent://default/default/' || s.collection where s.id = ?"
        )
        return int(database.execute(query, (segment,)).fetchone()[0])


def test_older_index_serves_while_the_log_has_the_rest(
    data_dir: Path, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index is read only where reading is cheaper than a replay. Even then it is optional."""
    older = {segment: first_row(data_dir, segment) for segment in cut.segments}
    monkeypatch.setattr(plan, "REPLAYED_ROWS_PER_S", 1e12)
    assert chosen(cut, older) == IndexPlan([], [], older)
    monkeypatch.setattr(plan, "REPLAYED_ROWS_PER_S", 1e-6)
    assert chosen(cut, older) == IndexPlan([], list(cut.segments), older)


def test_index_is_required_where_the_log_lacks_rows(data_dir: Path, cut: Cut) -> None:
    """The store has no index, or a newer one, or one from before the log begins."""
    segment, other = sorted(cut.segments)
    synced = cut.segments[segment]
    same = {other: cut.segments[other]}
    for positions in ({}, {segment: synced + 1}, {segment: first_row(data_dir, segment) - 1}):
        assert chosen(cut, {**same, **positions}) == IndexPlan([segment], [], same)


def test_every_changed_index_is_required_where_chroma_purges_its_log(data_dir: Path, tracker: PageTracker) -> None:
    """Chroma may delete the rows at any time."""
    execute(data_dir, "delete from embeddings_queue_config")
    cut = freeze(data_dir, tracker, empty_baseline())
    older = {segment: first_row(data_dir, segment) for segment in cut.segments}
    assert chosen(cut, older) == IndexPlan(list(cut.segments), [], {})
    assert chosen(cut, cut.segments) == IndexPlan([], [], cut.segments)
    cut.close()


def test_index_that_was_never_synced_is_built_from_the_log(data_dir: Path, tracker: PageTracker) -> None:
    """It has no files, and its position is 0."""
    execute(data_dir, "delete from max_seq_id")
    cut = freeze(data_dir, tracker, empty_baseline())
    assert cut.signatures == {}
    assert chosen(cut, {}) == IndexPlan([], [], dict.fromkeys(cut.segments, 0))
    cut.close()


async def test_database_without_wal_is_read_while_writers_wait(
    data_dir: Path, tracker: PageTracker, writer: PackWriter
) -> None:
    """Where WAL is not available, a cut is as exact, and says that it holds writers."""
    with closing(sqlite3.connect(data_dir / DATABASE)) as database:
        assert database.execute("pragma journal_mode=delete").fetchone()[0] == "delete"
    cut = freeze(data_dir, tracker, empty_baseline())
    assert not cut.database.keeps_writers_going
    async with writer:
        stored = await read_database(cut.database, empty_baseline(), writer)
    cut.close()
    assert stored.size_bytes == (data_dir / DATABASE).stat().st_size
    execute(data_dir, "create table t(n)")


async def test_chromas_log_is_bounded_while_the_store_is_unreachable(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known about the store then, for any length of time. The rows that Chroma itself needs are kept."""
    monkeypatch.setattr(create, "_MAX_LOG_ROWS", 10)
    unused: Any = None
    snapshotter = Snapshotter(Repository(MemoryStore()), DataDirectory(data_dir), unused, unused)
    before, synced = log.count_log(data_dir), log.synced_to(data_dir)
    await snapshotter._bound_log()
    assert before == 80
    assert log.count_log(data_dir) == len(synced) == 2
