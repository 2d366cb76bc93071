"""A vector store notices when its data directory is gone, and what is not saved."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from gateway import vectorstore as module
from gateway.chroma.disk import DATABASE
from gateway.config import Settings
from gateway.errors import LeaseLost, NothingToRestore, StorageUnavailable, Unavailable
from gateway.lease.election import LeaderRole
from gateway.lease.lease import read_lease_state
from gateway.observability.alerts import EVENTS
from gateway.server.container import storage_of, vectorstore_of
from gateway.snapshot.model import Manifest
from gateway.storage.protocol import Storage
from gateway.vectorstore import Phase, VectorStore
from tests.unit.journal.lines import BASE, LAST, LATER, fill, snapshot_at, snapshot_id
from tests.unit.snapshot.manifests import sha
from tests.unit.snapshot.stores import MemoryStore


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VectorStore]:
    """One that is watched, with a Chroma that is up."""
    monkeypatch.setattr(module, "_LOOK_AT_DATA_DIR_EVERY_S", 0.01)
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store")
    vectorstore = vectorstore_of(settings, storage_of(settings))
    vectorstore.directory.make()
    (vectorstore.directory.path / DATABASE).write_bytes(b"data")
    vectorstore.watch.up = vectorstore.watch.warmed = True
    await vectorstore.begin()
    await vectorstore.leader.require()
    watching = asyncio.create_task(vectorstore.watch_data_dir())
    await looked(vectorstore)
    assert vectorstore.readiness().phase is Phase.READY
    yield vectorstore
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await vectorstore.close()


async def looked(vectorstore: VectorStore) -> None:
    """Return after a whole look."""
    looks, look = 0, vectorstore.operations.unsaved_writes.look

    def count(now_s: float) -> None:
        nonlocal looks
        looks += 1
        look(now_s)

    vectorstore.operations.unsaved_writes.look = count  # type: ignore[method-assign]
    await until(lambda: looks > 1)
    vectorstore.operations.unsaved_writes.look = look  # type: ignore[method-assign]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_writes_are_refused_while_the_data_directory_is_gone(served: VectorStore) -> None:
    """`/readyz` says why and what to do, no snapshot is taken, and all is well again when it is back."""
    path = served.directory.path
    path.rename(path.with_name("away"))
    await until(lambda: served.readiness().phase is Phase.DATA_DIR_GONE)
    reason = served.readiness().reason
    assert str(path) in reason
    assert "put it back" in reason
    assert served.problems == {"data-dir-gone": reason}
    with pytest.raises(Unavailable, match="cannot be found"):
        await served.gate.acquire("a write")
    with pytest.raises(Unavailable, match="cannot be found"):
        await served.operations.quiesce(1)
    path.with_name("away").rename(path)
    await until(lambda: served.readiness().phase is Phase.READY)
    served.gate.release(await served.gate.acquire("a write"))


async def test_an_empty_database_in_place_of_the_lost_one_is_not_served(served: VectorStore) -> None:
    """Chroma ends, and its next start makes an empty one: that is not what was acknowledged."""
    database = served.directory.path / DATABASE
    database.unlink()
    await until(lambda: served.gate.lost is not None)
    served.watch.up = False
    await looked(served)
    assert served.gate.lost, "it is not known to be back"
    database.write_bytes(b"an empty one")
    served.watch.up = True
    await looked(served)
    assert served.readiness().phase is Phase.DATA_DIR_GONE


async def test_a_restore_is_a_way_out(served: VectorStore) -> None:
    """The restored database is what is served from then on. Meanwhile nothing is said of it."""
    database = served.directory.path / DATABASE
    database.unlink()
    await until(lambda: served.gate.lost is not None)
    async with served.gate.refuse("a restore", 1):
        assert served.readiness().phase is Phase.REFUSING
        await looked(served)
        database.write_bytes(b"restored")
        await looked(served)
    await until(lambda: served.readiness().phase is Phase.READY)


async def test_what_is_not_saved_has_an_age(served: VectorStore) -> None:
    """From the first write on."""
    unsaved = served.operations.unsaved_writes
    unsaved.cut()
    unsaved.saved()
    await looked(served)
    assert unsaved.age_s(1e9) == 0
    served.gate.release(await served.gate.acquire("a write"))
    await looked(served)
    assert unsaved.age_s(1e9) > 0


async def test_a_state_that_needs_a_person_is_told(served: VectorStore) -> None:
    """Each under the name of its event."""
    served.leader._problem = StorageUnavailable("the store is down")
    served.watch.unreadable = {"a/b/c": "torn"}
    served.leader.role, served.leader.reason = LeaderRole.BEHIND, "behind"
    with pytest.raises(LeaseLost):
        await served.tidy()
    assert "gc-failed" not in served.problems, "it is for the other gateway to do"
    store = MemoryStore()
    served.leader.role, served.repository._store = LeaderRole.WRITER, cast(Storage, store)
    store.unreachable = True
    with pytest.raises(StorageUnavailable):
        await served.tidy()
    served.leader.role = LeaderRole.BEHIND
    assert set(served.problems) == {"store-refused", "index-torn", "lease-lost", "gc-failed"}
    assert set(served.problems) <= set(EVENTS)
    assert served.problems["gc-failed"] in served.warnings


async def test_the_leader_election_waits_for_an_interrupted_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is settled or rolled back nobody knows which data are there, and whether they are behind."""
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store")
    vectorstore = vectorstore_of(settings, storage_of(settings))
    vectorstore.directory.make()
    vectorstore.directory.make_incoming()
    vectorstore.directory.swap_in("20261120T210455Z-3f9a1c")
    steps = list[str]()

    async def finish() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        steps.append("it is known which data are there")

    async def run() -> None:
        steps.append("the lease is looked at")

    monkeypatch.setattr(vectorstore.operations, "finish_interrupted_restore", finish)
    monkeypatch.setattr(vectorstore.leader, "run", run)
    await vectorstore.begin()
    await asyncio.gather(vectorstore.lead(), vectorstore.open())
    assert steps == ["it is known which data are there", "the lease is looked at"]
    await vectorstore.close()


async def test_a_start_that_demands_an_unknown_snapshot_takes_the_lease_from_no_gateway(tmp_path: Path) -> None:
    """Otherwise the one that writes would hand over to a process that ends. The store is as it was."""
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store", restore="20261120T210455Z-3f9a1c")
    writer = vectorstore_of(settings.model_copy(update={"data_dir": tmp_path / "other"}), storage_of(settings))
    vectorstore = vectorstore_of(settings, storage_of(settings))
    for each in (writer, vectorstore):
        each.directory.make()
        each.chroma.is_running = not_running  # type: ignore[method-assign]
    await writer.begin()
    await writer.leader.require()
    lease_state = await read_lease_state(writer.repository._store)
    await vectorstore.begin()
    with pytest.raises(NothingToRestore):
        await vectorstore.open()
    assert await read_lease_state(writer.repository._store) == lease_state
    assert not (vectorstore.directory.path / DATABASE).exists()
    for each in (writer, vectorstore):
        await each.close()


async def not_running() -> bool:
    return False


async def test_moments_that_need_a_deleted_snapshot_go_first(
    served: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So history never lists what cannot be restored, wherever the deletion ends."""
    store = served.journal.sequence._store
    await fill(store)
    await snapshot_at(store, LATER, position=3)
    monkeypatch.setattr(served.journal, "needs", lambda _: False)
    deleted = served.repository.delete

    async def fails(_: str) -> None:
        raise StorageUnavailable("the store is away")

    monkeypatch.setattr(served.repository, "delete", fails)
    with pytest.raises(StorageUnavailable):
        await served.operations.delete(snapshot_id(LATER))
    numbers = [each.last for each in await served.journal.sequence.entries()]
    assert numbers == [*range(1, LATER + 1), LAST]
    monkeypatch.setattr(served.repository, "delete", deleted)
    await served.operations.delete(snapshot_id(LATER))
    assert [each async for each in served.repository.newest_first()] == [snapshot_id(BASE - 1)]


async def test_moments_go_with_the_snapshots_that_retention_drops(tmp_path: Path) -> None:
    """With the journal switched off, history has what was written before, and retention keeps nothing for it."""
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store", journal_interval_s=0, keep_last=1)
    vectorstore = vectorstore_of(settings, storage_of(settings))
    vectorstore.directory.make()
    await vectorstore.begin()
    await vectorstore.leader.require()
    store = vectorstore.journal.sequence._store
    await fill(store)
    for pack in (b"database", b"index"):
        await store.put(f"data/{sha(pack)}", pack)
    for each in (snapshot_id(BASE - 1), snapshot_id(LATER)):
        key = f"snapshots/{each}/manifest.json"
        found = Manifest.parse(await store.get(key), each)
        unlabelled = found.model_copy(update={"snapshot": found.snapshot.model_copy(update={"label": None})})
        await store.put(key, unlabelled.to_bytes())
    assert (await vectorstore.tidy()).dropped_snapshots == [snapshot_id(BASE - 1)]
    assert [each.last for each in await vectorstore.journal.sequence.entries()] == [1, *range(LATER + 1, LAST + 1)]
    await vectorstore.close()
