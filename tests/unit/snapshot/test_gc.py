"""Garbage is deleted, referenced packs never are, and a later collection completes one that was interrupted."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.errors import GatewayError, LeaseLost, StorageDenied, StorageUnavailable
from gateway.jobs import Progress
from gateway.lease.election import LeaderElection, LeaderRole
from gateway.lease.lease import read_lease_state
from gateway.snapshot import manifests
from gateway.snapshot.gc import GcResult, collect_garbage
from gateway.snapshot.history import decode
from gateway.snapshot.model import Manifest, Verification
from gateway.snapshot.packing import PackWriter
from gateway.snapshot.repository import Repository
from gateway.snapshot.retention import Keep
from gateway.storage import NoDeleteStorage, ObjectInfo
from tests.unit.snapshot.leaders import candidate
from tests.unit.snapshot.manifests import ID, NEWER, OLDER, manifest, sha
from tests.unit.snapshot.stores import MemoryStore

DAY_S = 24 * 3600


class AgingStore(MemoryStore):
    """A store with ages of objects, by a clock that the test moves. It fails at the call that the test names."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 11, 20, tzinfo=UTC)
        self.modified: dict[str, datetime] = {}
        self.deleted: list[str] = []
        self.calls = 0
        self.fail_at: int | None = None
        self.unreachable_for_deletes = False
        self.unlisted: set[str] = set()

    def _reach(self) -> None:
        self.calls += 1
        if self.fail_at is not None and self.calls >= self.fail_at:
            raise StorageUnavailable("killed here")
        super()._reach()

    async def put(self, key: str, data: bytes) -> None:
        await super().put(key, data)
        self.modified[key] = self.now

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        self._reach()
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after and key not in self.unlisted:
                data = self.objects[key]
                yield ObjectInfo(key, len(data), self.modified.get(key, self.now), sha(data))

    async def delete(self, key: str) -> None:
        if self.unreachable_for_deletes:
            raise StorageUnavailable("not now")
        await super().delete(key)
        self.deleted.append(key)


async def writer(store: Any, home: Path, *, may_delete: bool = True) -> tuple[Repository, LeaderElection]:
    """A gateway that holds the lease."""
    leader = candidate(home, store, may_delete=may_delete)
    await leader.require()
    return Repository(store, leader), leader


def scheduled(snapshot_id: str, packs: tuple[bytes, ...]) -> Manifest:
    """A snapshot without a label of a person. It may have more packs than files."""
    made = manifest(snapshot_id, packs)
    return made.model_copy(update={"snapshot": made.snapshot.model_copy(update={"label": "scheduled"})})


async def stored(repository: Repository, snapshot_id: str, *packs: bytes) -> None:
    await repository.make()
    for data in packs:
        await repository.put_pack(sha(data), data)
    await repository.publish(scheduled(snapshot_id, packs))


def packs_in(store: MemoryStore) -> set[bytes]:
    return {data for key, data in store.objects.items() if key.startswith("data/")}


async def test_unreferenced_packs_are_deleted_once_they_are_old(tmp_path: Path) -> None:
    """Age is by the store's clock. Referenced packs and young packs stay."""
    repository, leader = await writer(store := AgingStore(), tmp_path)
    await stored(repository, ID, b"shared", b"one")
    await repository.put_pack(sha(b"old garbage"), b"old garbage")
    store.now += timedelta(days=2)
    await repository.put_pack(sha(b"young garbage"), b"young garbage")
    collected = await collect_garbage(repository, leader, Keep(), DAY_S)
    assert packs_in(store) == {b"shared", b"one", b"young garbage"}
    assert (collected.deleted_packs, collected.young_packs, collected.problem) == (1, 1, None)
    lease_state = await read_lease_state(store)
    assert lease_state is not None
    assert lease_state.pending_delete == ()


async def test_retention_deletes_a_snapshot_and_then_its_own_packs(tmp_path: Path) -> None:
    """The manifest goes first, so a snapshot without its packs is never listed."""
    repository, leader = await writer(store := AgingStore(), tmp_path)
    await stored(repository, OLDER, b"shared", b"of the older")
    await stored(repository, NEWER, b"shared", b"of the newer")
    store.now += timedelta(days=2)
    collected = await collect_garbage(repository, leader, Keep(last=1), DAY_S)
    assert collected.dropped_snapshots == [OLDER]
    assert await repository.ids() == [NEWER]
    assert packs_in(store) == {b"shared", b"of the newer"}
    gone = [key for key in store.deleted if not key.startswith("probe/")]
    assert gone[0] == f"snapshots/{OLDER}/manifest.json"
    assert gone[1:] == [f"data/{sha(b'of the older')}"]


async def test_snapshot_that_failed_verification_does_not_count_for_a_rule(tmp_path: Path) -> None:
    """The rule keeps the newest usable snapshot. The broken one stays too, to be examined."""
    repository, leader = await writer(AgingStore(), tmp_path)
    await stored(repository, OLDER, b"of the older")
    await stored(repository, NEWER, b"of the newer")
    failed = Verification(
        ok=False, level="data", at=datetime(2026, 11, 20, tzinfo=UTC), duration_s=1, problems=("rot",)
    )
    await repository.save_verification(NEWER, failed)
    collected = await collect_garbage(repository, leader, Keep(last=1), DAY_S)
    assert collected.dropped_snapshots == []
    assert collected.kept_snapshots == {NEWER: ["damaged"], OLDER: ["newest", "last"]}


async def test_no_pack_is_deleted_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    """That manifest might name any pack."""
    repository, leader = await writer(store := AgingStore(), tmp_path)
    await stored(repository, ID, b"one")
    await stored(repository, NEWER, b"two")
    store.objects[f"snapshots/{ID}/manifest.json"] = b"{"
    store.now += timedelta(days=2)
    collected = await collect_garbage(Repository(store, leader), leader, Keep(last=1), DAY_S)
    assert ID in (collected.problem or "")
    assert packs_in(store) == {b"one", b"two"}


async def test_pack_that_was_stored_again_after_an_unreadable_manifest_stays(tmp_path: Path) -> None:
    """So the age of a pack does not tell whether such a manifest names it. Once it is deleted, so is the garbage."""
    repository, leader = await writer(store := AgingStore(), tmp_path)
    await stored(repository, ID, b"one")
    store.objects[f"snapshots/{ID}/manifest.json"] = b"{"
    store.now += timedelta(days=7)
    await stored(repository, NEWER, b"one", b"two")
    await repository.delete(NEWER)
    store.now += timedelta(days=2)
    repository = Repository(store, leader)
    collected = await collect_garbage(repository, leader, Keep(), DAY_S)
    assert packs_in(store) == {b"one", b"two"}
    assert (collected.deleted_packs, collected.held_packs, collected.young_packs) == (0, 2, 0)
    assert ID in repository.damage[0]
    await repository.delete(ID)
    collected = await collect_garbage(repository, leader, Keep(), DAY_S)
    assert packs_in(store) == set()
    assert (collected.problem, repository.damage) == (None, [])


async def test_manifest_that_was_read_before_holds_what_it_names(tmp_path: Path) -> None:
    """Manifests never change, so what a damaged one named is known exactly."""
    repository, leader = await writer(store := AgingStore(), tmp_path)
    await repository.put_pack(sha(b"garbage"), b"garbage")
    await stored(repository, ID, b"one")
    store.objects[f"snapshots/{ID}/manifest.json"] = b"{"
    await stored(repository, NEWER, b"two")
    store.now += timedelta(days=2)
    collected = await collect_garbage(repository, leader, Keep(last=1), DAY_S)
    assert packs_in(store) == {b"one", b"two"}
    assert (collected.kept_snapshots[ID], collected.held_packs) == (["damaged"], 0)
    assert ID in (collected.problem or "")


async def test_manifest_that_another_process_read_holds_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has its summary. So garbage is collected beside a damaged manifest on a new disk too."""
    monkeypatch.setattr(manifests, "_SAVED_AFTER", 0)
    repository, leader = await writer(store := AgingStore(), tmp_path / "first")
    await stored(repository, ID, b"one")
    await collect_garbage(repository, leader, Keep(), DAY_S)
    store.objects[f"snapshots/{ID}/manifest.json"] = b"{"
    await repository.put_pack(sha(b"garbage"), b"garbage")
    store.now += timedelta(days=2)
    repository, leader = await writer(store, tmp_path / "second")
    collected = await collect_garbage(repository, leader, Keep(last=1), DAY_S)
    assert packs_in(store) == {b"one"}
    assert (collected.deleted_packs, collected.held_packs, list(repository.unreadable)) == (1, 0, [ID])


async def test_summaries_that_were_dropped_are_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection that drops most leaves no name for which the next gateway has to ask the store."""
    monkeypatch.setattr(manifests, "_SAVED_AFTER", 1)
    repository, leader = await writer(store := AgingStore(), tmp_path)
    for number in range(5):
        await stored(repository, f"2026112{number}T000000Z-000000", b"shared")
    await collect_garbage(repository, leader, Keep(last=1), DAY_S)
    assert list(decode(store.objects[manifests.SUMMARIES])) == ["20261124T000000Z-000000"]


# ---------------------------------------------------------------------- what is named and not there


async def vanished(store: AgingStore, home: Path) -> tuple[Repository, LeaderElection]:
    """A gateway with two snapshots, of which the newer one lost a pack."""
    repository, leader = await writer(store, home)
    await stored(repository, OLDER, b"shared", b"of the older")
    await stored(repository, NEWER, b"shared", b"of the newer")
    del store.objects[f"data/{sha(b'of the newer')}"]
    store.now += timedelta(days=2)
    return repository, leader


async def test_retention_keeps_a_whole_snapshot_in_place_of_a_broken_one(tmp_path: Path) -> None:
    """A lifecycle rule or a wrong `rm` took a pack. The broken snapshot is listed as damaged and counts for no rule."""
    repository, leader = await vanished(store := AgingStore(), tmp_path)
    collected = await collect_garbage(repository, leader, Keep(last=1), DAY_S)
    assert collected.kept_snapshots == {NEWER: ["damaged"], OLDER: ["newest", "last"]}
    assert (collected.missing_packs, collected.broken_snapshots) == (1, [NEWER])
    assert NEWER in (collected.problem or "")
    newer, older = await repository.snapshots()
    assert (newer.state, older.state) == ("damaged", "complete")
    assert sha(b"of the newer") in (newer.problem or "")
    assert packs_in(store) == {b"shared", b"of the older"}


async def test_missing_pack_is_stored_again_by_the_next_snapshot(tmp_path: Path) -> None:
    """It counts as corrupt, so no snapshot relies on it. Once it is stored again, nothing is broken any more."""
    repository, leader = await vanished(AgingStore(), tmp_path)
    name = sha(b"of the newer")
    await collect_garbage(repository, leader, Keep(), DAY_S)
    assert name in repository.corrupt_packs
    assert repository.is_latest_broken
    await repository.put_pack(name, b"of the newer")
    assert name not in repository.corrupt_packs
    assert (repository.damage, repository.is_latest_broken) == ([], False)
    assert [snapshot.state for snapshot in await repository.snapshots()] == ["complete", "complete"]


async def test_pack_that_a_list_lacks_is_looked_for_by_its_name(tmp_path: Path) -> None:
    """Lists may lag."""
    repository, leader = await writer(store := AgingStore(), tmp_path)
    await stored(repository, ID, b"one")
    store.unlisted.add(f"data/{sha(b'one')}")
    collected = await collect_garbage(repository, leader, Keep(), DAY_S)
    assert (collected.missing_packs, collected.problem) == (0, None)


async def test_packs_of_a_snapshot_that_a_list_lacks_stay(tmp_path: Path) -> None:
    """The snapshot was known before the list lagged."""
    repository, leader = await writer(store := AgingStore(), tmp_path)
    await stored(repository, OLDER, b"of the older")
    await stored(repository, NEWER, b"of the newer")
    store.unlisted.add(f"snapshots/{OLDER}/manifest.json")
    store.now += timedelta(days=2)
    await collect_garbage(repository, leader, Keep(), DAY_S)
    assert packs_in(store) == {b"of the older", b"of the newer"}


async def test_unreachable_store_is_not_taken_for_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that cannot be fetched is not taken for a missing one."""
    monkeypatch.setattr("gateway.lease.lease._FIRST_PAUSE_S", 0)
    repository, leader = await writer(store := AgingStore(), tmp_path)
    await stored(repository, ID, b"one")
    store.now += timedelta(days=2)
    store.calls, calls = 0, 0
    while True:
        store.calls, store.fail_at = 0, calls
        try:
            await collect_garbage(Repository(store, leader), leader, Keep(), 0)
            break
        except StorageUnavailable:
            calls += 1
    assert packs_in(store) == {b"one"}
    assert calls > 5


async def test_collection_killed_at_any_call_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every listed snapshot is complete at every moment, and the result is the same in the end."""
    monkeypatch.setattr("gateway.lease.lease._FIRST_PAUSE_S", 0)
    for fail_at in range(1, 60):
        store = AgingStore()
        repository, leader = await writer(store, tmp_path / str(fail_at))
        await stored(repository, OLDER, b"shared", b"of the older")
        await stored(repository, NEWER, b"shared", b"of the newer")
        await repository.put_pack(sha(b"garbage"), b"garbage")
        store.now += timedelta(days=2)
        store.calls, store.fail_at = 0, fail_at
        try:
            await collect_garbage(repository, leader, Keep(last=1), DAY_S)
        except GatewayError:
            pass
        ended, store.fail_at = store.calls < fail_at, None
        # The process that comes next; it was killed, so this one has another name for the lease.
        repository, leader = await writer(store, tmp_path / str(fail_at))
        for snapshot_id in await repository.ids():
            for pack in (await repository.manifest(snapshot_id)).packs:
                await repository.get_pack(pack)
        await collect_garbage(repository, leader, Keep(last=1), DAY_S)
        assert packs_in(store) == {b"shared", b"of the newer"}
        if ended:
            return
    pytest.fail("it never came to its end")


async def test_gateway_that_lost_the_lease_deletes_nothing(tmp_path: Path) -> None:
    """From the moment on at which another gateway took the lease."""
    repository, leader = await writer(store := AgingStore(), tmp_path / "old")
    await stored(repository, ID, b"one")
    await repository.put_pack(sha(b"garbage"), b"garbage")
    store.now += timedelta(days=2)
    await writer(store, tmp_path / "new")
    store.deleted.clear()
    with pytest.raises(LeaseLost):
        await collect_garbage(repository, leader, Keep(), DAY_S)
    assert store.deleted == []
    with pytest.raises(LeaseLost):
        await repository.delete_packs([sha(b"garbage")])


async def test_pack_that_a_former_holder_is_deleting_is_not_reused(tmp_path: Path) -> None:
    """While that deletion is under way, the successor packs the same bytes. They get another name and survive."""
    repository, _ = await writer(store := AgingStore(), tmp_path / "old")
    async with PackWriter(repository, {}, Progress()) as packer:
        await packer.add([b"the same bytes"])
    (name,) = [key.removeprefix("data/") for key in store.objects if key.startswith("data/")]
    on_its_way, may_arrive = asyncio.Event(), asyncio.Event()
    delete = store.delete

    async def late(key: str) -> None:
        on_its_way.set()
        await may_arrive.wait()
        await delete(key)

    store.delete = late  # type: ignore[method-assign]
    deleting = asyncio.create_task(repository.delete_packs([name]))
    await on_its_way.wait()

    winner, leader = await writer(store, tmp_path / "new", may_delete=False)
    assert name in leader.pending_delete
    existing = await winner.packs()
    assert name not in existing
    async with PackWriter(winner, existing, Progress()) as packer:
        (packed,) = await packer.add([b"the same bytes"])
    pack = packed.pack
    may_arrive.set()
    with pytest.raises(LeaseLost):
        await deleting
    assert f"data/{name}" not in store.objects
    assert pack.sha256 != name
    assert (await winner.get_pack(pack)).startswith(b"the same bytes")


async def test_pack_marked_by_a_former_holder_stays_marked(tmp_path: Path) -> None:
    """Even after it was deleted again: the first deletion may still be under way."""
    old, _ = await writer(store := AgingStore(), tmp_path / "old")
    name, own = sha(b"marked"), sha(b"garbage")
    await old.put_pack(name, b"marked")
    store.unreachable_for_deletes = True
    with pytest.raises(StorageUnavailable):
        await old.delete_packs([name])
    store.unreachable_for_deletes = False
    repository, leader = await writer(store, tmp_path / "new", may_delete=False)
    await repository.put_pack(own, b"garbage")
    store.now += timedelta(days=2)
    await collect_garbage(repository, leader, Keep(), DAY_S)
    assert packs_in(store) == set()
    assert leader.pending_delete == {name}


async def test_aborted_snapshot_is_garbage(tmp_path: Path) -> None:
    """The manifest of a gateway that lost the lease, and its packs, are never listed and are deleted."""
    repository, _ = await writer(store := AgingStore(), tmp_path / "old")
    await repository.put_pack(sha(b"lost"), b"lost")
    put = store.put

    async def lose(key: str, data: bytes) -> None:
        await put(key, data)
        if key.endswith("manifest.json"):
            store.put = put  # type: ignore[method-assign]
            await writer(store, tmp_path / "new")

    store.put = lose  # type: ignore[method-assign]
    with pytest.raises(LeaseLost):
        await repository.publish(manifest(ID, (b"lost",)))
    assert f"snapshots/{ID}/manifest.json" in store.objects
    assert await repository.ids() == []
    assert await Repository(store).snapshots() == []

    winner, leader = await writer(store, tmp_path / "newest")
    store.now += timedelta(days=2)
    await collect_garbage(winner, leader, Keep(), DAY_S)
    assert f"snapshots/{ID}/manifest.json" not in store.objects
    assert packs_in(store) == set()


async def test_confirmation_that_arrives_after_a_collection_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packs of its snapshot are deleted by then, so the snapshot must not become committed."""
    monkeypatch.setattr("gateway.lease.lease._FIRST_PAUSE_S", 0)
    repository, leader = await writer(store := AgingStore(), tmp_path)
    await repository.put_pack(sha(b"late"), b"late")
    put_if_match, late = store.put_if_match, list[tuple[str, bytes, str]]()

    async def lose(key: str, data: bytes, version: str) -> bool:
        if b'"announced": null' in data:
            late.append((key, data, version))
            raise StorageUnavailable("on its way")
        return await put_if_match(key, data, version)

    store.put_if_match = lose  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailable):
        await repository.publish(scheduled(ID, (b"late",)))
    store.put_if_match = put_if_match  # type: ignore[method-assign]
    store.now += timedelta(days=2)
    await collect_garbage(repository, leader, Keep(), DAY_S)
    assert packs_in(store) == set()
    assert late
    assert not any([await put_if_match(*each) for each in late])
    assert await repository.ids() == []


async def test_never_delete_deletes_nothing(tmp_path: Path) -> None:
    """Neither a collection, nor a request, nor the probe deletes an object."""
    store = AgingStore()
    repository, leader = await writer(NoDeleteStorage(store), tmp_path, may_delete=False)
    await stored(repository, OLDER, b"one")
    await stored(repository, NEWER, b"two")
    store.now += timedelta(days=2)
    collected = await collect_garbage(repository, leader, Keep(last=1), 0, may_delete=False)
    assert "NEVER_DELETE" in (collected.problem or "")
    with pytest.raises(StorageDenied, match="NEVER_DELETE"):
        await repository.delete(OLDER)
    assert store.deleted == []


class AnyHistory(RuleBasedStateMachine):
    """Snapshots, deletions, collections, takeovers and time in any order. Each may be killed at any call."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = AgingStore()
        self.homes, self.directory = 0, tempfile.TemporaryDirectory()
        self.model: dict[str, set[bytes]] = {}
        self.number = 0
        self.begin()

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.directory.cleanup()

    def run(self, work: Any, fail_at: int | None) -> bool:
        """Run `work` until that call, and return whether it completed. After a kill, a new process begins."""
        self.store.calls, self.store.fail_at = 0, fail_at
        try:
            self.loop.run_until_complete(work)
        except StorageUnavailable:
            self.store.fail_at = None
            self.begin()
            return False
        finally:
            self.store.fail_at = None
        return True

    def begin(self) -> None:
        self.homes += 1
        home = Path(self.directory.name) / str(self.homes)
        self.repository, self.leader = self.loop.run_until_complete(writer(self.store, home))
        assert self.leader.role is LeaderRole.WRITER

    kill = st.one_of(st.none(), st.integers(1, 40))

    @rule(contents=st.sets(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), min_size=1, max_size=4), kill=kill)
    def snapshot(self, contents: set[bytes], kill: int | None) -> None:
        self.number += 1
        snapshot_id = f"20261120T{self.number // 3600:02}{self.number // 60 % 60:02}{self.number % 60:02}Z-000000"

        async def take() -> None:
            existing, packs = await self.repository.packs(), []
            for data in sorted(contents):
                while self.repository.is_pending_delete(sha(data)):
                    data += b"!"  # noqa: PLW2901
                packs.append(data)
                if sha(data) not in existing:
                    await self.repository.put_pack(sha(data), data)
            self.taken = set(packs)
            await self.repository.publish(scheduled(snapshot_id, tuple(packs)))

        if self.run(take(), kill) or snapshot_id in self.loop.run_until_complete(self.repository.ids()):
            self.model[snapshot_id] = self.taken

    @rule(last=st.integers(1, 3), grace_s=st.sampled_from([0, 3600]), kill=kill)
    def collect_garbage(self, last: int, grace_s: float, kill: int | None) -> None:
        before = sorted(self.model, reverse=True)
        if self.run(collect_garbage(self.repository, self.leader, Keep(last=last), grace_s), kill):
            self.model = {each: self.model[each] for each in before[:last]}
            if grace_s == 0:
                assert packs_in(self.store) == set().union(*self.model.values())
        else:
            left = self.loop.run_until_complete(self.repository.ids())
            assert set(before[:last]) <= set(left)
            self.model = {each: self.model[each] for each in left}

    @rule(kill=kill)
    def delete(self, kill: int | None) -> None:
        if not self.model:
            return
        oldest = min(self.model)
        self.run(self.repository.delete(oldest), kill)
        if oldest not in self.loop.run_until_complete(self.repository.ids()):
            del self.model[oldest]

    @rule()
    def succeed(self) -> None:
        self.begin()

    @rule(hours=st.integers(1, 48))
    def wait(self, hours: int) -> None:
        self.store.now += timedelta(hours=hours)

    @invariant()
    def what_is_listed_is_whole(self) -> None:
        async def read() -> dict[str, set[bytes]]:
            found = {}
            for snapshot_id in await self.repository.ids():
                made = await self.repository.manifest(snapshot_id)
                found[snapshot_id] = {await self.repository.get_pack(pack) for pack in made.packs}
            return found

        assert self.loop.run_until_complete(read()) == self.model


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=15, stateful_step_count=15, suppress_health_check=list(HealthCheck))


def test_every_field_of_the_answer_is_described() -> None:
    """In the OpenAPI description."""
    assert all(field.description for field in GcResult.model_fields.values())
