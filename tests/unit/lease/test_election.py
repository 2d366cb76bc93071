"""Which of the gateways on one store accepts writes, and when."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.chroma.directory import DataDirectory
from gateway.errors import GatewayError, LeaseLost, StorageUnavailable
from gateway.lease import data_dir_state
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.election import LeaderElection, LeaderRole, LeaseOptions
from gateway.lease.lease import Lease, read_lease_state
from gateway.lease.state import LEASE
from tests.unit.snapshot.manifests import ID, NEWER
from tests.unit.snapshot.stores import MemoryStore

POLL_S = 0.02


class Gateway:
    """One process with a data directory, and what became of its clients' writes."""

    def __init__(
        self,
        store: MemoryStore,
        path: Path,
        *,
        has_data: bool = False,
        patience_s: float = 0,
        answer_timeout_s: float = 60,
        poll_s: float = POLL_S,
    ) -> None:
        (path / ".gateway").mkdir(parents=True, exist_ok=True)
        self.path, self.refusal, self.saves = path, "", 0
        self.extended: list[tuple[float, str]] = []
        self.heard: asyncio.Event = asyncio.Event()
        self.save_error: Exception | None = None
        options = LeaseOptions(patience_s, may_delete=True, poll_s=poll_s, answer_timeout_s=answer_timeout_s)
        self.leader = LeaderElection(store, DataDirState(path), self, self.save, options, where=path.name)
        self.leader.begin(has_data=has_data)
        self._task: asyncio.Task[None] | None = None

    def refuse_writes(self, reason: str) -> None:
        self.refusal = reason
        self.heard.set()

    def accept_writes(self) -> None:
        self.refusal = ""
        self.heard.set()

    def extend_writes(self, until_s: float) -> None:
        self.extended.append((until_s, self.refusal))

    async def save(self) -> None:
        assert self.refusal, "a last snapshot while writes go on"
        self.saves += 1
        if self.save_error:
            raise self.save_error
        async with self.leader.publishing(ID):
            pass

    def start(self) -> "Gateway":
        self._task = asyncio.create_task(self.leader.run())
        return self

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.heard.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.heard.wait(), POLL_S)

    async def until_role(self, role: LeaderRole) -> "Gateway":
        await self.until(lambda: self.leader.role is role)
        return self

    async def kill(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Callable[..., Gateway]]:
    gateways: list[Gateway] = []

    def make(store: MemoryStore, name: str, **kwargs: object) -> Gateway:
        gateways.append(Gateway(store, tmp_path / name, **kwargs))
        return gateways[-1]

    yield make
    for each in gateways:
        await each.kill()


async def test_writes_go_to_one(made: Callable[..., Gateway]) -> None:
    """The old one saves what it has, then the new one accepts writes: never both."""
    store = MemoryStore()
    old = await made(store, "old", patience_s=30).start().until_role(LeaderRole.WRITER)
    assert old.refusal == ""
    new = made(store, "new", patience_s=30).start()
    await old.until_role(LeaderRole.READER)
    assert old.saves == 1
    assert "another gateway" in old.refusal
    await new.until_role(LeaderRole.WRITER)
    assert new.refusal == ""
    assert old.refusal
    with pytest.raises(LeaseLost):
        await old.leader.require()
    await new.leader.require()


async def test_after_a_pause_the_lease_is_looked_at_before_a_write(made: Callable[..., Gateway]) -> None:
    """A process that was stopped, and succeeded meanwhile, lets no write pass from its first step on."""
    store = MemoryStore()
    old = made(store, "old", patience_s=30, answer_timeout_s=0.5, poll_s=60)  # the regular look comes later
    await old.start().until_role(LeaderRole.WRITER)
    await old.until(lambda: len(old.extended) > 1)
    until_s, _ = old.extended[-1]
    taken = await read_lease_state(store)
    assert taken is not None
    await store.put(LEASE, taken.succeeded_by("new", "new", "new").to_bytes())
    time.sleep(until_s - time.monotonic() + 0.2)
    count = len(old.extended)
    await old.until(lambda: len(old.extended) > count)
    assert old.extended[count][1], "writes were let through before the lease was looked at"
    assert old.leader.role is LeaderRole.READER


async def test_a_save_that_fails_for_now_is_tried_again(made: Callable[..., Gateway]) -> None:
    """The other one waits, since the old one moves."""
    store = MemoryStore()
    old = await made(store, "old", patience_s=30).start().until_role(LeaderRole.WRITER)
    old.save_error = StorageUnavailable("later")
    new = made(store, "new", patience_s=30).start()
    await old.until(lambda: bool(old.saves))
    assert new.leader.role is LeaderRole.STARTING
    old.save_error = None
    await new.until_role(LeaderRole.WRITER)
    assert old.saves == 2
    lease_state = await read_lease_state(store)
    assert lease_state is not None
    assert lease_state.published == ID


async def test_a_long_save_is_waited_for(made: Callable[..., Gateway]) -> None:
    """Far beyond the time in which an answer is due: who moves is alive."""
    store = MemoryStore()
    old = await made(store, "old", patience_s=60).start().until_role(LeaderRole.WRITER)
    may_end, save = asyncio.Event(), old.save

    async def slowly() -> None:
        await may_end.wait()
        await save()

    old.leader._save = slowly
    new = made(store, "new", patience_s=60, answer_timeout_s=0.3).start()
    await old.until_role(LeaderRole.LEAVING)
    await asyncio.sleep(1)
    assert (old.leader.role, new.leader.role) == (LeaderRole.LEAVING, LeaderRole.STARTING)
    may_end.set()
    await new.until_role(LeaderRole.WRITER)
    assert old.saves == 1
    lease_state = await read_lease_state(store)
    assert lease_state is not None
    assert (lease_state.published, lease_state.aborted) == (ID, ())


async def test_a_lease_that_nobody_takes_comes_back(
    made: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that asked died on its way: the old one is the writer again."""
    monkeypatch.setattr("gateway.lease.election._UNCLAIMED_S", 0.1)
    store = MemoryStore()
    old = await made(store, "old", patience_s=30).start().until_role(LeaderRole.WRITER)
    asking = Lease(store, "new", "new", conditional=True, takeover_timeout_s=30)
    taking = asyncio.create_task(asking.take())
    await old.until(lambda: b'"wanted_by": null' not in store.objects[LEASE])
    taking.cancel()
    await old.until_role(LeaderRole.READER)
    await old.until_role(LeaderRole.WRITER)
    assert old.refusal == ""
    async with old.leader.publishing(ID):
        pass


async def test_a_store_that_is_down_does_not_stop_the_service(made: Callable[..., Gateway]) -> None:
    """Writes are accepted, nothing is published; when it comes back, the lease is taken."""
    store = MemoryStore()
    store.unreachable = True
    only = made(store, "only", has_data=True).start()
    await only.until(lambda: bool(only.leader.warnings))
    assert only.refusal == ""
    with pytest.raises(StorageUnavailable):
        await only.leader.require()
    store.unreachable = False
    await only.leader.require()
    assert only.leader.role is LeaderRole.WRITER
    assert only.leader.warnings == []


async def test_a_lease_that_cannot_be_read_stops_writes(made: Callable[..., Gateway]) -> None:
    """It may be of a newer gateway; that is said."""
    store = MemoryStore()
    store.objects[LEASE] = b'{"format": 2}'
    only = made(store, "only", has_data=True).start()
    await only.until(lambda: "format 2" in only.refusal)
    del store.objects[LEASE]
    await only.until_role(LeaderRole.WRITER)


async def test_data_that_are_behind_are_not_written_to(made: Callable[..., Gateway]) -> None:
    """Neither while the other gateway lives nor after; until they are replaced by what it published."""
    store = MemoryStore()
    old = await made(store, "old").start().until_role(LeaderRole.WRITER)
    await old.leader.end()
    await old.kill()
    other = await made(store, "other").start().until_role(LeaderRole.WRITER)
    again = await made(store, "old", has_data=True).start().until_role(LeaderRole.BEHIND)
    assert "may lack" in again.refusal
    assert other.leader.role is LeaderRole.WRITER, "it was asked to leave for nothing"
    async with other.leader.publishing(ID):
        pass
    await other.leader.end()
    await again.kill()
    again = await made(store, "old", has_data=True).start().until_role(LeaderRole.BEHIND)
    assert ID in again.refusal
    await again.leader.adopt()
    assert again.refusal, "the restore may still fail"
    await again.leader.adopted()
    assert (again.leader.role, again.refusal) == (LeaderRole.WRITER, "")
    await again.kill()
    await made(store, "old", has_data=True).start().until_role(LeaderRole.WRITER)


async def test_a_kill_after_a_restore_leaves_them_no_longer_behind(made: Callable[..., Gateway]) -> None:
    """The process had no time to note it. Of what was published they hold an older snapshot, as was asked for."""
    store = MemoryStore()
    other = await made(store, "other").start().until_role(LeaderRole.WRITER)
    for snapshot_id in (ID, NEWER):
        async with other.leader.publishing(snapshot_id):
            pass
    await other.leader.end()
    again = await made(store, "old", has_data=True).start().until_role(LeaderRole.BEHIND)
    await again.leader.adopt()
    directory = DataDirectory(again.path)
    directory.make_incoming()
    directory.swap_in(ID)
    directory.settle()
    await again.kill()
    await made(store, "old", has_data=True).start().until_role(LeaderRole.WRITER)


async def test_a_restore_that_failed_leaves_them_behind(made: Callable[..., Gateway]) -> None:
    """Also for the next start."""
    store = MemoryStore()
    other = await made(store, "other").start().until_role(LeaderRole.WRITER)
    async with other.leader.publishing(ID):
        pass
    await other.leader.end()
    again = await made(store, "old", has_data=True).start().until_role(LeaderRole.BEHIND)
    await again.leader.adopt()
    await again.leader.end()
    await again.kill()
    again = await made(store, "old", has_data=True).start().until_role(LeaderRole.BEHIND)
    assert again.refusal


async def test_data_whose_last_writer_published_nothing_are_not_behind(made: Callable[..., Gateway]) -> None:
    """Another gateway came and went between without writing anything."""
    store = MemoryStore()
    old = await made(store, "old").start().until_role(LeaderRole.WRITER)
    async with old.leader.publishing(ID):
        pass
    await old.leader.end()
    other = await made(store, "other").start().until_role(LeaderRole.WRITER)
    await other.leader.end()
    await made(store, "old", has_data=True).start().until_role(LeaderRole.WRITER)


@pytest.mark.parametrize("ended", [True, False])
async def test_a_disk_that_is_set_back_is_behind(made: Callable[..., Gateway], ended: bool) -> None:
    """Of what was published from it after the image was made, however the process of that time ended."""
    store = MemoryStore()
    old = await made(store, "old").start().until_role(LeaderRole.WRITER)
    image = (old.path / ".gateway/home.json").read_bytes()
    async with old.leader.publishing(ID):
        pass
    if ended:
        await old.leader.end()
    await old.kill()
    await made(store, "old", has_data=True).start().until_role(LeaderRole.WRITER)
    (old.path / ".gateway/home.json").write_bytes(image)
    again = await made(store, "old", has_data=True).start().until_role(LeaderRole.BEHIND)
    assert ID in again.refusal
    assert "newer state of these data" in again.refusal
    await again.leader.adopt()
    await again.leader.adopted()
    assert again.leader.role is LeaderRole.WRITER


async def test_a_copy_of_the_disk_does_not_take_the_lease_from_the_original(
    made: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks. The original publishes what it has, which the copy lacks, and goes on as the writer."""
    monkeypatch.setattr("gateway.lease.election._UNCLAIMED_S", 0.1)
    store = MemoryStore()
    original = await made(store, "original", patience_s=30).start().until_role(LeaderRole.WRITER)
    shutil.copytree(original.path, original.path.parent / "copy")
    copy = await made(store, "copy", has_data=True, patience_s=30).start().until_role(LeaderRole.BEHIND)
    assert original.saves == 1
    assert ID in copy.refusal
    await original.until_role(LeaderRole.WRITER)
    assert (original.refusal, original.leader.lost) == ("", None)
    async with original.leader.publishing(NEWER):
        pass
    with pytest.raises(LeaseLost):
        await copy.leader.require()


async def test_a_disk_that_moved_succeeds_the_dead_holder(
    made: Callable[..., Gateway], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine died with the lease. On another machine the data are not behind; the holder's silence is awaited."""
    store = MemoryStore()
    old = await made(store, "old").start().until_role(LeaderRole.WRITER)
    async with old.leader.publishing(ID):
        pass
    await old.kill()
    (tmp_path / "boot").write_text("of another machine")
    monkeypatch.setattr(data_dir_state, "_BOOT_ID", tmp_path / "boot")
    moved = made(store, "old", has_data=True, patience_s=60, answer_timeout_s=0.5).start()
    await moved.until(lambda: "waits for another one" in moved.refusal)
    await moved.until_role(LeaderRole.WRITER)
    assert moved.refusal == ""


async def test_what_cannot_be_noted_is_noted_later(
    made: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails keeps no snapshot from being published, and does not make the data look older for good."""
    store = MemoryStore()
    old = await made(store, "old").start().until_role(LeaderRole.WRITER)

    def failing(*_: object) -> None:
        raise GatewayError("the disk fails")

    with monkeypatch.context() as patch:
        patch.setattr(data_dir_state, "write_durably", failing)
        async with old.leader.publishing(ID):
            pass
        lease_state = await read_lease_state(store)
        memory = DataDirState(old.path)
        assert memory.is_behind(lease_state) == ID
    await old.until(lambda: memory.is_behind(lease_state) is None)


async def test_a_store_that_does_not_tell_is_a_warning(made: Callable[..., Gateway]) -> None:
    """Of the writer too, as long as it lasts: another gateway may have taken over."""
    store = MemoryStore()
    writer = await made(store, "writer").start().until_role(LeaderRole.WRITER)
    store.unreachable = True
    await writer.until(lambda: bool(writer.leader.warnings))
    assert "the store is down" in writer.leader.warnings[0]
    assert writer.refusal == ""
    store.unreachable = False
    await writer.until(lambda: not writer.leader.warnings)


async def test_only_a_lease_that_was_not_handed_over_is_lost(
    made: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handover is what happens at every deployment. A loss is for a person to look at."""
    store = MemoryStore()
    old = await made(store, "old", patience_s=30).start().until_role(LeaderRole.WRITER)
    new = await made(store, "new", patience_s=30).start().until_role(LeaderRole.WRITER)
    monkeypatch.setattr("gateway.lease.election._UNCLAIMED_S", 0)
    await old.until(lambda: old.leader._released_at is None)  # it has seen that the lease was taken
    assert (old.leader.role, old.leader.lost) == (LeaderRole.READER, None)
    taken = await read_lease_state(store)
    assert taken is not None
    await store.put(LEASE, taken.succeeded_by("another", "another", "another").to_bytes())
    await new.until_role(LeaderRole.READER)
    assert new.leader.lost


async def test_a_start_anew_is_not_behind(made: Callable[..., Gateway], tmp_path: Path) -> None:
    """GATEWAY_RESTORE=none says that these are to be the data from now on."""
    store = MemoryStore()
    other = await made(store, "other").start().until_role(LeaderRole.WRITER)
    async with other.leader.publishing(ID):
        pass
    await other.leader.end()
    (tmp_path / "anew/.gateway").mkdir(parents=True)
    DataDirState(tmp_path / "anew").begin_anew()
    await made(store, "anew", has_data=True).start().until_role(LeaderRole.WRITER)
    assert not DataDirState(tmp_path / "anew").begins_anew()


async def test_an_end_releases_the_lease(made: Callable[..., Gateway]) -> None:
    """The next one waits for nobody; a store that is down then does not hold up the end."""
    store = MemoryStore()
    old = await made(store, "old", patience_s=60).start().until_role(LeaderRole.WRITER)
    await old.leader.end()
    await asyncio.wait_for(made(store, "new", patience_s=60).start().until_role(LeaderRole.WRITER), 5)
    down = await made(other_store := MemoryStore(), "down").start().until_role(LeaderRole.WRITER)
    other_store.unreachable = True
    await asyncio.wait_for(down.leader.end(), 10)


async def test_a_gateway_that_took_the_lease_for_a_restore_gives_it_back(made: Callable[..., Gateway]) -> None:
    """The restore failed, so it never became the writer; who comes next need not wait until it seems dead."""
    store = MemoryStore()
    await made(store, "writer").leader.require()
    behind = await made(store, "behind", has_data=True).start().until_role(LeaderRole.BEHIND)
    await behind.leader.adopt()
    await behind.leader.end()
    lease_state = await read_lease_state(store)
    assert lease_state is not None
    assert (lease_state.where, lease_state.state) == ("behind", "released")
