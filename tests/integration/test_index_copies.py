"""The store is the first source of a torn index; and a torn index that the store has is named, and repaired."""

import asyncio
import os
import random
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.chroma import structure
from gateway.chroma.disk import DATABASE, HEADER, ID_MAP, LEVEL0, LINK_LISTS
from gateway.chroma.index_health import IndexHealth
from gateway.chroma.level0 import scan_level0
from gateway.chroma.log import keep_log
from gateway.chroma.orphans import remove_orphaned_directories
from gateway.chroma.repair import Repair, Way
from gateway.errors import CorruptSnapshot, InvalidRequest, StorageUnavailable
from gateway.jobs import Progress
from gateway.snapshot import create, index_copies
from gateway.snapshot.fetch import fetch_verified
from gateway.snapshot.import_tar import import_tar
from gateway.snapshot.index_copies import StoredCopies
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import restore_at_boot
from gateway.snapshot.retention import Keep
from gateway.snapshot.tar import tar
from gateway.snapshot.verify import Level, verify
from tests.bare_chroma import bare_chroma
from tests.integration.test_engine_model import Walk

DIMENSION = 8
HNSW: Any = {"hnsw": {"sync_threshold": 20, "batch_size": 10}}


def vectors(seed: int, count: int) -> list[list[float]]:
    found: list[list[float]] = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype("f4").tolist()
    return found


class Engine(Walk):
    """A Chroma with collections `notes` and `others`, and snapshots of it, as `Walk` has them."""

    def begin(self) -> None:
        self.chroma.begin()
        for name in ("notes", "others"):
            self.chroma.client.create_collection(name, embedding_function=None, configuration=HNSW)
        keep_log(self.directory.path)
        self.held: dict[str, list[float]] = {}
        self.add(0, 40)
        others = self.chroma.client.get_collection("others", embedding_function=None)
        others.add(ids=[f"o{number}" for number in range(20)], embeddings=vectors(9, 20))

    def add(self, start: int, count: int, seed: int | None = None) -> None:
        """Add records to `notes`."""
        ids, made = [f"r{number}" for number in range(start, start + count)], vectors(seed or start + 1, count)
        self.chroma.client.get_collection("notes", embedding_function=None).upsert(ids=ids, embeddings=made)
        self.held.update(zip(ids, made, strict=True))

    def index(self, name: str = "notes") -> Path:
        with closing(sqlite3.connect(self.directory.path / DATABASE)) as database:
            row = database.execute(
                "select s.id from segments s join collections c on c.id = s.collection"
                " where s.scope = 'VECTOR' and c.name = ?",
                (name,),
            ).fetchone()
        return self.directory.path / str(row[0])

    def drop_log(self) -> None:
        """What an older gateway has given up of it: all but the row at the position."""
        with closing(sqlite3.connect(self.directory.path / DATABASE)) as database, database:
            database.execute(
                "delete from embeddings_queue where seq_id < (select min(m.seq_id) from max_seq_id m join segments s"
                " on s.id = m.segment_id where s.scope = 'VECTOR')"
            )

    async def repair(self) -> list[Repair]:
        """As before Chroma starts."""
        self.chroma.end()
        copies = StoredCopies(self.repository, self.directory.scratch, baseline=self.directory.baseline)
        repairs = await IndexHealth(self.directory.path).repair_unsound(copies.of)
        assert not list(self.directory.scratch.glob("*"))
        self.chroma.begin()
        return repairs

    def stored(self) -> dict[str, Any]:
        got = self.chroma.client.get_collection("notes", embedding_function=None).get(include=["embeddings"])
        return {each: np.float32(vector).tolist() for each, vector in zip(got["ids"], got["embeddings"], strict=True)}


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    made = Engine(tmp_path, 0, monkeypatch)
    made.begin()
    try:
        yield made
    finally:
        await made.snapshotter.close()
        made.chroma.end()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


async def test_a_torn_index_is_replaced_by_the_stored_one_and_the_log(engine: Engine) -> None:
    """Of this collection alone, and what was written since comes from the log, which has no more than that."""
    await engine.snapshot()
    engine.add(40, 50)
    cut(engine.index() / LEVEL0)
    (repair,) = await engine.repair()
    assert (repair.way, repair.lost_ids, repair.segment.name) == (Way.COPY, (), "notes")
    assert 0 < repair.replayed <= 51
    assert engine.stored() == engine.held


async def test_a_sound_index_asks_nothing_of_the_store(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is asked only for what is needed."""
    await engine.snapshot()
    asked: list[str] = []
    monkeypatch.setattr(index_copies, "fetch_index", lambda *_: asked.append("fetch"))
    assert await engine.repair() == []
    assert not asked


@pytest.mark.parametrize("failing", ["hangs", "refuses"])
async def test_a_store_that_cannot_be_reached_delays_the_start_a_little(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Then the log is used; the store is asked once for all torn indexes."""
    await engine.snapshot()
    asked = 0

    async def exists(_snapshot_id: str) -> bool:
        nonlocal asked
        asked += 1
        if failing == "hangs":
            await asyncio.sleep(60)
        raise StorageUnavailable("no route")

    monkeypatch.setattr(engine.repository, "exists", exists)
    monkeypatch.setattr(index_copies, "_REACH_TIMEOUT_S", 0.2)
    for name in ("notes", "others"):
        (engine.index(name) / HEADER).write_bytes(b"")
    began = time.monotonic()
    repairs = await engine.repair()
    assert time.monotonic() - began < 20
    assert {repair.way for repair in repairs} <= {Way.LOG, Way.SALVAGE}
    assert [repair.lost_ids for repair in repairs] == [(), ()]
    assert asked == 1
    assert engine.stored() == engine.held


async def test_a_corrupt_copy_is_passed_over(engine: Engine) -> None:
    """The next older version serves: what it has comes back although the log has no row of it any more."""
    await engine.snapshot()
    older = await engine.repository.manifest(max(engine.snapshots))
    engine.add(40, 50)
    await engine.snapshot()
    newest = await engine.repository.manifest(max(engine.snapshots))
    for pack in set(newest.packs) - set(older.packs):
        (engine.path / "store/data" / pack.sha256).write_bytes(b"rot")
    (engine.index() / LEVEL0).write_bytes(b"")
    (repair,) = await engine.repair()
    assert set(repair.lost_ids) <= {f"r{number}" for number in range(40, 90)}
    kept = sorted(engine.held.keys() - set(repair.lost_ids))
    got = engine.chroma.client.get_collection("notes", embedding_function=None).get(ids=kept, include=["embeddings"])
    assert [np.float32(each).tolist() for each in got["embeddings"]] == [engine.held[each] for each in got["ids"]]


async def test_a_copy_of_another_history_is_not_used(engine: Engine) -> None:
    """After a restore, the same positions have other vectors. The log tells, whatever the store has."""
    await engine.snapshot()
    first = max(engine.snapshots)
    engine.add(40, 20, seed=77)
    await engine.snapshot()
    await engine.operations.restore(first)
    engine.add(40, 20, seed=78)
    engine.directory.baseline.unlink(missing_ok=True)
    cut(engine.index() / LEVEL0)
    (repair,) = await engine.repair()
    assert repair.lost_ids == ()
    assert engine.stored() == engine.held


# ---------------------------------------------------------------------- a torn index in the store


async def store_torn(engine: Engine, monkeypatch: pytest.MonkeyPatch, *names: str) -> str:
    """Take a snapshot as a gateway without the check does."""
    made = create._manifest
    with monkeypatch.context() as patch:
        patch.setattr(IndexHealth, "check", lambda *_: check_nothing())
        patch.setattr(create, "_manifest", lambda *args: made(*args).model_copy(update={"unsound": None}))
        for name in names:
            cut(engine.index() / name)
        await engine.snapshot()
    return max(engine.snapshots)


def check_nothing() -> Any:
    from gateway.chroma.structure import IndexCheck

    return IndexCheck(())


async def test_what_was_checked_before_it_was_stored_is_not_read_for_it_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore compares digests. Verify reads anew."""
    await engine.snapshot()
    snapshot_id = max(engine.snapshots)
    scanned: list[Path] = []

    def noted(path: Path, *args: Any, **named: Any) -> Any:
        scanned.append(path)
        return scan_level0(path, *args, **named)

    monkeypatch.setattr(structure, "scan_level0", noted)
    await engine.operations.restore(snapshot_id)
    assert not scanned
    assert (await verify(engine.repository, engine.directory.scratch, snapshot_id, "boot", Progress())).ok
    assert scanned


async def test_a_record_without_a_vector_is_found_in_each_restore(engine: Engine, tmp_path: Path) -> None:
    """Also in a snapshot that takes its index from the one before: an index is not called sound for its files alone."""
    with closing(sqlite3.connect(engine.directory.path / DATABASE)) as database, database:
        database.execute(
            "insert into embeddings (segment_id, embedding_id, seq_id)"
            " select segment_id, 'ghost', seq_id from embeddings where embedding_id = 'r1'"
        )
    for number in range(2):
        await engine.snapshotter.take(None)
        manifest = await engine.repository.manifest(str(await engine.repository.latest_id()))
        assert manifest.unsound == (engine.index().name,)
        target = tmp_path / f"restored-{number}"
        target.mkdir()
        staged = await fetch_verified(engine.repository, target, manifest, lambda _done, _total: None)
        assert [check.missing_ids for _, check in staged.unsound] == [("ghost",)]


@pytest.mark.parametrize("level", ["data", "boot"])
async def test_verify_names_the_collection_and_what_is_wrong(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, level: Level
) -> None:
    """At every level, without a Chroma that reads it."""
    snapshot_id = await store_torn(engine, monkeypatch, LEVEL0)
    found = await verify(engine.repository, engine.directory.scratch, snapshot_id, level, Progress())
    assert not found.ok
    (problem,) = found.problems
    assert "collection notes" in problem
    assert "data_level0.bin" in problem
    assert not list(engine.directory.scratch.glob("*"))


async def test_verify_of_a_sound_snapshot_finds_nothing(engine: Engine) -> None:
    """At the level of data too, where each index is looked at."""
    await engine.snapshot()
    found = await verify(engine.repository, engine.directory.scratch, max(engine.snapshots), "data", Progress())
    assert found.ok


async def test_a_torn_snapshot_is_repaired_before_it_is_swapped_in(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its log or an older snapshot has everything, nothing is lost; the next snapshot stores what is sound."""
    snapshot_id = await store_torn(engine, monkeypatch, LEVEL0)
    engine.add(40, 30)
    await engine.operations.restore(snapshot_id)
    assert engine.stored() == {each: vector for each, vector in engine.held.items() if int(each[1:]) < 40}
    engine.snapshotter.tracker.forget()
    await engine.snapshot()
    found = await verify(engine.repository, engine.directory.scratch, max(engine.snapshots), "data", Progress())
    assert found.ok, found.problems


async def test_a_live_restore_that_would_lose_records_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It names the collection and the records, and touches nothing. A start has nothing else, and restores it."""
    engine.drop_log()
    snapshot_id = await store_torn(engine, monkeypatch, LEVEL0)
    with pytest.raises(
        CorruptSnapshot, match=r"collection notes is torn .* have no vector anywhere else, among them r"
    ):
        await engine.operations.restore(snapshot_id)
    assert engine.stored().keys() == engine.held.keys()
    fresh = type(engine.directory)(tmp_path / "fresh")
    fresh.make()
    await restore_at_boot(engine.repository, fresh, snapshot_id, lambda _done, _total: None)
    (repair,) = await IndexHealth(fresh.path).repair_unsound()
    assert repair.segment.name == "notes"
    assert 0 < len(repair.lost_ids) < len(engine.held)


@pytest.mark.parametrize("log", ["whole", "gone"])
async def test_an_upload_with_a_torn_index_is_repaired_or_refused(engine: Engine, tmp_path: Path, log: str) -> None:
    """Before a Chroma reads it. It is refused where records would lose their vector, with the collection's name."""
    if log == "gone":
        engine.drop_log()
    engine.chroma.end()
    uploaded = tmp_path / "uploaded"
    shutil.copytree(engine.directory.path, uploaded, ignore=shutil.ignore_patterns(".gateway"))
    engine.chroma.begin()
    cut(uploaded / engine.index().name / LEVEL0)

    async def body() -> AsyncIterator[bytes]:
        for piece in tar(uploaded):
            yield piece

    def upload() -> Any:
        scratch = engine.directory.scratch
        return import_tar(engine.repository, scratch, body(), None, 1 << 30, Progress(), asyncio.Event())

    if log == "gone":
        with pytest.raises(InvalidRequest, match="collection notes is torn"):
            await upload()
        return
    made = await upload()
    target = tmp_path / "restored"
    target.mkdir()
    manifest = await engine.repository.manifest(made.id)
    assert (await fetch_verified(engine.repository, target, manifest, lambda _done, _total: None)).unsound == []
    with bare_chroma(target) as chroma:
        got = chroma.client().get_collection("notes", embedding_function=None).get(include=["embeddings"])
    assert set(got["ids"]) == engine.held.keys()


# ---------------------------------------------------------------------- files with holes, directories without an owner


async def test_holes_are_restored_as_holes(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bytes and digests are the same, and a gigabyte of nothing takes neither disk nor free space."""
    path = engine.index() / LINK_LISTS
    os.truncate(path, 40 << 20)
    with path.open("r+b") as file:
        file.seek(20 << 20)
        file.write(random.Random(0).randbytes(50_000))
    snapshot_id = await store_torn(engine, monkeypatch)
    target = tmp_path / "restored"
    target.mkdir()
    free = shutil.disk_usage(target)._replace(free=24 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)
    manifest = await engine.repository.manifest(snapshot_id)
    await fetch_verified(engine.repository, target, manifest, lambda _done, _total: None)
    restored = target / path.parent.name / LINK_LISTS
    assert restored.read_bytes() == path.read_bytes()
    assert restored.stat().st_blocks * 512 < 200_000


def test_directories_of_deleted_collections_go_after_a_grace(engine: Engine) -> None:
    """Those of live collections stay, whatever else lies there stays, and so does what changed a moment ago."""
    orphan, live, data_dir = engine.index("others"), engine.index("notes"), engine.directory.path
    engine.chroma.client.delete_collection("others")
    (data_dir / "mine").mkdir()
    assert orphan.is_dir(), "Chroma deletes it itself"
    assert remove_orphaned_directories(data_dir, 3600) == (0, 0)
    removed = remove_orphaned_directories(data_dir, 0)
    assert removed.deleted_directories == 1
    assert removed.freed_bytes > 0
    assert not orphan.exists()
    assert (live / ID_MAP).is_file()
    assert (data_dir / "mine").is_dir()
    assert not list((data_dir / ".gateway").glob("orphan-*"))
    engine.add(40, 50)
    assert engine.stored() == engine.held


def test_a_collection_that_is_being_made_keeps_its_directory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its segment is committed before its directory is there: the names are read first, the rows second."""
    order: list[str] = []
    listdir = os.listdir

    def listed(path: Any) -> list[str]:
        order.append("names")
        found = listdir(path)
        engine.chroma.client.create_collection("new", embedding_function=None, configuration=HNSW).add(
            ids=[str(number) for number in range(30)], embeddings=vectors(3, 30)
        )
        return found

    monkeypatch.setattr("gateway.chroma.orphans.os.listdir", listed)
    assert remove_orphaned_directories(engine.directory.path, 0) == (0, 0)
    assert order == ["names"]
    assert engine.index("new").is_dir()


# ---------------------------------------------------------------------- what the store lost


async def is_whole(engine: Engine, snapshot_id: str) -> bool:
    """As another gateway finds it: what this one knows of corrupt packs stays as it is."""
    return (await verify(Repository(engine.store), engine.directory.scratch, snapshot_id, "data", Progress())).ok


async def test_the_next_snapshot_stores_what_vanished(engine: Engine) -> None:
    """A lifecycle rule took every pack. Snapshots rely on one another, so none would be whole any more."""
    await engine.snapshot()
    engine.add(40, 30)
    await engine.snapshot()
    for pack in (engine.path / "store/data").iterdir():
        pack.unlink()
    engine.add(70, 5)
    await engine.snapshot()
    assert not await is_whole(engine, max(engine.snapshots))
    broken = set(engine.snapshots)
    collected = await engine.operations.collect_garbage(Keep(last=1), 0)
    assert set(collected.broken_snapshots) == broken
    assert collected.dropped_snapshots == []
    engine.add(75, 5)
    await engine.snapshot()
    assert await is_whole(engine, max(engine.snapshots))
    collected = await engine.operations.collect_garbage(Keep(last=1), 0)
    assert collected.kept_snapshots[max(engine.snapshots)] == ["newest", "last"]
    assert await is_whole(engine, max(engine.snapshots))
