"""What moved since it was read ahead is found, whatever moved; the rest is not read again."""

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from gateway.chroma.database import prepare
from gateway.snapshot.capture import Ahead, Cut, TooMuchMoved, describe, freeze, look, pack_cut, read_ahead
from gateway.snapshot.packing import PackWriter
from gateway.snapshot.repository import Repository
from gateway.store import FileStore
from tests.bare_chroma import bare_chroma

SYNCED = {"hnsw": {"sync_threshold": 20, "batch_size": 10}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that Chroma wrote: two synced indexes, and one of a deleted collection."""
    path = tmp_path_factory.mktemp("made")
    prepare(path)
    with bare_chroma(path) as chroma:
        for name in ("one", "two", "gone"):
            collection = chroma.client().create_collection(name, embedding_function=None, configuration=SYNCED)
            collection.add(ids=[str(i) for i in range(40)], embeddings=[[float(i), 1.0] for i in range(40)])
        chroma.client().delete_collection("gone")
    return path


@pytest.fixture
def data_dir(made: Path, tmp_path: Path) -> Path:
    """A copy whose files were last changed long ago."""
    shutil.copytree(made, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    # ctime cannot be set: let it settle.
    time.sleep(0.12)
    return tmp_path / "data"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def writer(tmp_path: Path) -> PackWriter:
    return PackWriter(Repository(FileStore(tmp_path / "store")), {})


async def test_nothing_is_read_again_when_nothing_moved(data_dir: Path, scratch: Path, writer: PackWriter) -> None:
    """The freeze copies no index file; the cut has those of the live segments and none of the deleted one's."""
    ahead = Ahead()
    async with writer:
        await read_ahead(data_dir, ahead, writer)
        cut = freeze(data_dir, ahead, scratch, 0)
        assert isinstance(cut, Cut)
        assert cut.copied == []
        segments, _ = look(data_dir)
        assert len(segments) == 2
        assert {path.partition("/")[0] for path in cut.paths} == set(segments)
        assert len([path for path in data_dir.iterdir() if path.is_dir()]) == 3
        contents = describe(cut, scratch)
        cut.close()
        assert [(each.name, each.records) for each in contents.collections] == [("one", 40), ("two", 40)]
        packed = await pack_cut(cut, ahead, scratch, writer)
    assert {file.path for file in packed} == {*cut.paths, "chroma.sqlite3"}


async def test_a_file_changed_in_place_is_copied_in_the_freeze(
    data_dir: Path, scratch: Path, writer: PackWriter
) -> None:
    """Same size, other bytes: it and nothing else is read again, as it is now."""
    ahead = Ahead()
    async with writer:
        await read_ahead(data_dir, ahead, writer)
        path = next(path for path in ahead.packed if path.endswith("data_level0.bin"))
        with (data_dir / path).open("r+b") as file:
            file.write(b"\xff")
        cut = freeze(data_dir, ahead, scratch, None)
        assert isinstance(cut, Cut)
        cut.close()
        assert cut.copied == [path]
        assert (scratch / path).read_bytes() == (data_dir / path).read_bytes()


async def test_a_segment_synced_since_is_copied_whole(data_dir: Path, scratch: Path, writer: PackWriter) -> None:
    """`max_seq_id` moved: no file of that segment is believed, even if none seems to have changed."""
    ahead = Ahead()
    async with writer:
        await read_ahead(data_dir, ahead, writer)
        segment = min(ahead.segments)
        with closing(sqlite3.connect(data_dir / "chroma.sqlite3")) as database, database:
            database.execute("update max_seq_id set seq_id = seq_id + 1 where segment_id = ?", (segment,))
        cut = freeze(data_dir, ahead, scratch, None)
        assert isinstance(cut, Cut)
        cut.close()
        assert cut.copied == sorted(path for path in ahead.packed if path.startswith(segment))


async def test_a_file_changed_just_before_it_was_read_is_read_again(
    data_dir: Path, scratch: Path, writer: PackWriter
) -> None:
    """Within one tick of the clock a second change leaves no trace, so what is that fresh is not believed."""
    path = next(path for path in look(data_dir)[1] if path.endswith("length.bin"))
    (data_dir / path).touch()
    ahead = Ahead()
    async with writer:
        await read_ahead(data_dir, ahead, writer)
        cut = freeze(data_dir, ahead, scratch, None)
        assert isinstance(cut, Cut)
        cut.close()
        assert cut.copied == [path]


async def test_a_freeze_that_would_take_too_long_is_given_up(data_dir: Path, scratch: Path, writer: PackWriter) -> None:
    """More moved than may be copied: nothing is, nothing stays locked, and a second read ahead catches up."""
    async with writer:
        given_up = freeze(data_dir, Ahead(), scratch, 1000)
        assert isinstance(given_up, TooMuchMoved)
        assert list(scratch.iterdir()) == []
        with closing(sqlite3.connect(data_dir / "chroma.sqlite3", timeout=0)) as database:
            database.execute("begin immediate")
            database.rollback()
        ahead = Ahead()
        await read_ahead(data_dir, ahead, writer)
        caught_up = freeze(data_dir, ahead, scratch, 1000)
        assert isinstance(caught_up, Cut)
        caught_up.close()


async def test_without_wal_the_database_is_copied_in_the_freeze(
    data_dir: Path, scratch: Path, writer: PackWriter
) -> None:
    """Where WAL cannot be had a reader would block writers, so the copy is made before the lock is let go."""
    with closing(sqlite3.connect(data_dir / "chroma.sqlite3")) as database:
        assert database.execute("pragma journal_mode=delete").fetchone()[0] == "delete"
    ahead = Ahead()
    async with writer:
        await read_ahead(data_dir, ahead, writer)
        cut = freeze(data_dir, ahead, scratch, None)
        assert isinstance(cut, Cut)
        assert (scratch / "chroma.sqlite3").exists()
        contents = describe(cut, scratch)
        cut.close()
    with closing(sqlite3.connect(scratch / "chroma.sqlite3")) as database:
        assert database.execute("select count(*) from collections").fetchone()[0] == len(contents.collections) == 2
