"""One operation runs at a time, and a failed one leaves nothing behind."""

import asyncio
import errno
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.chroma import database
from gateway.chroma.database import prepare
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE
from gateway.errors import Conflict, NotFound, StorageUnavailable
from gateway.jobs import Progress
from gateway.lease.election import LeaderElection, LeaderRole
from gateway.snapshot import create, operations
from gateway.snapshot.model import Verification
from gateway.snapshot.operations import Operations
from gateway.snapshot.repository import Repository
from gateway.snapshot.retention import Keep, OwnLabel
from tests.unit.snapshot.leaders import candidate
from tests.unit.snapshot.manifests import ID, NEWER, OLDER, manifest, sha
from tests.unit.snapshot.stores import MemoryStore


class ServedChroma:
    """A Chroma that serves."""

    def require_served(self) -> int:
        return 1

    async def require_same_run(self, run: int) -> None: ...

    async def write_to_log(self, *args: object) -> list[str]:
        return []


class Gate:
    """Lets everything through."""

    admitted_writes = 0
    lost: str | None = None

    @asynccontextmanager
    async def hold(self, drain_timeout_s: float) -> AsyncIterator[float]:
        yield 0.0

    @asynccontextmanager
    async def refuse(self, reason: str, drain_timeout_s: float) -> AsyncIterator[None]:
        yield


def made(path: Path, store: MemoryStore, leader: LeaderElection | None = None) -> Operations:
    leader = leader or candidate(path, store)
    prepare(path)
    chroma: Any = ServedChroma()
    return Operations(Repository(store, leader), DataDirectory(path), chroma, Gate(), leader, drain_timeout_s=1)


async def test_cancelled_quiesce_releases_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock that the quiesce was about to get is released. Otherwise Chroma would wait for good."""
    asked, go = threading.Event(), threading.Event()

    def lock(data_dir: Path) -> Any:
        asked.set()
        assert go.wait(10)
        return database.write_lock(data_dir)

    def slow(data_dir: Path) -> Any:
        return _Later(lambda: lock(data_dir))

    monkeypatch.setattr(operations, "write_lock", slow)
    asking = asyncio.create_task(made(tmp_path, MemoryStore()).quiesce(60))
    await asyncio.to_thread(asked.wait, 10)
    asking.cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(asking, return_exceptions=True)
    with closing(sqlite3.connect(tmp_path / DATABASE, timeout=2)) as writer:
        writer.execute("create table t(n)")


class _Later:
    """A context manager that is made when it is entered."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __enter__(self) -> None:
        self._made = self._make()
        self._made.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._made.__exit__(*error)


async def test_restore_of_an_unknown_snapshot_takes_the_lease_from_no_gateway(tmp_path: Path) -> None:
    """Also on a gateway whose data are behind."""
    store = MemoryStore()
    writer = candidate(tmp_path / "writer", store)
    behind = candidate(tmp_path / "behind", store, has_data=True)
    await writer.require()
    with pytest.raises(Exception, match="another gateway"):
        await behind.require()
    assert (writer.role, behind.role) == (LeaderRole.WRITER, LeaderRole.BEHIND)
    with pytest.raises(NotFound):
        await made(tmp_path / "behind", store, behind).restore(ID)
    await writer.abort_announced()


@pytest.mark.parametrize("ok", [True, False])
async def test_failed_verification_marks_the_data_as_unsaved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ok: bool
) -> None:
    """The next due time, or the end, takes another snapshot, although nothing was written since."""

    async def verify(*_: object) -> Verification:
        return Verification(ok=ok, level="data", at=datetime.now(UTC))

    monkeypatch.setattr(operations, "verify", verify)
    one = made(tmp_path, MemoryStore())
    one.unsaved_writes.cut()
    one.unsaved_writes.saved()
    await one.verify(ID, "data", Progress())
    assert one.unsaved_writes.any is not ok


async def test_a_snapshot_that_fails_of_what_nobody_expects_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any other failure: by `last_error`, and to those that count outcomes."""
    one, outcomes = made(tmp_path, MemoryStore()), list[object]()
    one.on_outcome = outcomes.append

    async def broken(*_: object) -> None:
        raise sqlite3.DatabaseError("malformed")

    monkeypatch.setattr(one.snapshotter, "take", broken)
    with pytest.raises(sqlite3.DatabaseError):
        await one.snapshot()
    assert outcomes == [None]
    assert one.last_error is not None
    assert "malformed" in one.last_error["message"]


async def test_logs_are_bounded_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is short of descriptors for a while goes on bounding SQLite's log afterwards."""
    monkeypatch.setattr(create, "_BOUND_EVERY_S", 0)
    snapshotter, times, again = made(tmp_path, MemoryStore()).snapshotter, list[int](), asyncio.Event()
    loop = asyncio.get_running_loop()

    def bound() -> None:
        times.append(1)
        if len(times) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        loop.call_soon_threadsafe(again.set)

    monkeypatch.setattr(snapshotter, "_bound_wal", bound)
    keeping = asyncio.create_task(snapshotter.keep_bounded())
    async with asyncio.timeout(5):
        await again.wait()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_database_is_not_touched_during_a_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to the old database could leave a log beside the new one."""
    monkeypatch.setattr(create, "_BOUND_EVERY_S", 0)
    snapshotter = made(tmp_path, MemoryStore()).snapshotter
    bounding, go, bounded = threading.Event(), threading.Event(), list[int]()

    def bound() -> None:
        bounding.set()
        assert go.wait(10)
        bounded.append(1)

    monkeypatch.setattr(snapshotter, "_bound_wal", bound)
    keeping = asyncio.create_task(snapshotter.keep_bounded())
    assert await asyncio.to_thread(bounding.wait, 10)
    asyncio.get_running_loop().call_later(0.05, go.set)
    async with snapshotter.swapping():
        assert bounded == [1]
        for _ in range(5):
            await asyncio.sleep(0)
        assert bounded == [1]
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


# ---------------------------------------------------------------------- a damaged store


async def damaged(store: MemoryStore, one: Operations, lost: bytes) -> None:
    """Two snapshots as they are stored by a gateway, and then without the pack `lost`."""
    await one.repository.make()
    for snapshot_id, pack in ((OLDER, b"older"), (NEWER, b"newer")):
        await one.repository.put_pack(sha(pack), pack)
        await one.repository.publish(manifest(snapshot_id, (pack,)))
    one.unsaved_writes.cut()
    one.unsaved_writes.saved()
    del store.objects[f"data/{sha(lost)}"]


@pytest.mark.parametrize("lost", [b"older", b"newer"])
@pytest.mark.parametrize("at_start", [True, False], ids=["at a start", "garbage collection"])
async def test_missing_pack_is_an_error_until_it_is_back(tmp_path: Path, lost: bytes, at_start: bool) -> None:
    """Status and readiness tell. If the newest snapshot lacks it, the next due time takes another one."""
    one = made(tmp_path, store := MemoryStore())
    await damaged(store, one, lost)

    async def look() -> None:
        await (one.look_for_damage() if at_start else one.collect_garbage(Keep(), 0))

    await look()
    assert one.last_error is not None
    assert sha(lost) in one.last_error["message"]
    assert one.unsaved_writes.any is (lost == b"newer")
    store.objects[f"data/{sha(lost)}"] = lost
    await look()
    assert (one.last_error, one.repository.damage) == (None, [])


async def test_published_snapshot_that_is_missing_is_told(tmp_path: Path) -> None:
    """Also while the data are there, so that nothing must be restored."""
    one = made(tmp_path, store := MemoryStore())
    await damaged(store, one, b"older")
    del store.objects[f"snapshots/{NEWER}/manifest.json"]
    await one.look_for_damage()
    assert any(NEWER in each and "published last" in each for each in one.repository.damage)


async def test_failed_snapshot_is_the_last_error_when_it_is_told(tmp_path: Path) -> None:
    """What is told of it says why."""
    one = made(tmp_path, store := MemoryStore())
    told: list[Any] = []
    one.on_outcome = lambda snapshot: told.append((snapshot, one.last_error))
    store.unreachable = True
    with pytest.raises(StorageUnavailable):
        await one.snapshot()
    ((snapshot, error),) = told
    assert (snapshot, error["error"]) == (None, "StorageUnavailable")


async def test_failed_garbage_collection_is_the_last_error_until_one_succeeds(tmp_path: Path) -> None:
    """A log line alone would be overlooked for weeks. So it is a problem of its own, too."""
    one = made(tmp_path, store := MemoryStore())
    await damaged(store, one, b"older")
    store.objects[f"data/{sha(b'older')}"] = b"older"
    store.unreachable = True
    with pytest.raises(StorageUnavailable):
        await one.collect_garbage(Keep(), 0)
    assert one.last_error is not None
    assert one.last_error["error"] == "StorageUnavailable"
    assert "the store is down" in (one.gc_problem or "")
    store.unreachable = False
    await one.collect_garbage(Keep(), 0)
    assert (one.last_error, one.gc_problem) == (None, None)


async def test_what_the_gateway_does_by_itself_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows of a checkpoint, so nobody is told to wait for it."""
    built, taken, go = made(tmp_path, MemoryStore()), list[str | None](), asyncio.Event()

    async def take(label: str | None, _progress: object) -> Any:
        taken.append(label)
        await go.wait()

    monkeypatch.setattr(built.snapshotter, "take", take)
    own = asyncio.create_task(built.snapshot(OwnLabel.CHECKPOINT))
    await asyncio.sleep(0)
    built.require_idle()
    asked = [asyncio.create_task(built.snapshot(label)) for label in ("mine", "yours")]
    await asyncio.sleep(0.01)
    assert taken == ["checkpoint"]
    with pytest.raises(Conflict, match="a snapshot is under way"):
        await built.snapshot(OwnLabel.CHECKPOINT)
    go.set()
    await asyncio.gather(own, *asked)
    assert taken == ["checkpoint", "mine", "yours"]
