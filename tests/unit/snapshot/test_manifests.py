"""What an operation asks of the store does not grow with the number of snapshots."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.errors import InvalidRequest, ObjectArchived, SnapshotError, StorageDenied, StorageUnavailable
from gateway.lease.state import LeaseState
from gateway.snapshot import manifests, repository
from gateway.snapshot.history import decode
from gateway.snapshot.manifests import SUMMARIES
from gateway.snapshot.model import new_snapshot_id
from gateway.snapshot.repository import Repository
from gateway.storage.protocol import ObjectInfo
from tests.unit.snapshot.leaders import candidate
from tests.unit.snapshot.manifests import ID, NEWER, manifest, sha
from tests.unit.snapshot.stores import MemoryStore

START = datetime(2026, 1, 1, tzinfo=UTC)
MANY = 400
IDS = [new_snapshot_id(START + timedelta(hours=3 * number), None) for number in range(MANY)]
NEWEST_FIRST = IDS[::-1]


class CountingStore(MemoryStore):
    """Counts what is listed and read."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = self.read = 0
        self.archived: set[str] = set()

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix, after):
            self.listed += 1
            yield replace(info, tag=sha(self.objects[info.key]))

    async def get(self, key: str) -> bytes:
        self.read += key.endswith("manifest.json")
        if key in self.archived:
            raise ObjectArchived(f"{key} is in an archive", "bring it back")
        return await super().get(key)

    def counted(self) -> tuple[int, int]:
        """What was listed, and how many manifests were read, since the last call."""
        result = self.listed, self.read
        self.listed = self.read = 0
        return result


@pytest.fixture(scope="module")
def objects() -> dict[str, bytes]:
    """Many snapshots, each with a pack of its own, and a lease that names the last one."""
    made = {}
    for snapshot_id in IDS:
        packs = (b"shared", snapshot_id.encode())
        made |= {f"snapshots/{snapshot_id}/manifest.json": manifest(snapshot_id, packs).to_bytes()}
        made |= {f"data/{sha(pack)}": pack for pack in packs}
    held = LeaseState(holder="a", home="a")
    made["lease.json"] = held.announcing(IDS[-1]).confirming(IDS[-1]).to_bytes()
    return made


@pytest.fixture
def store(objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> CountingStore:
    """As of a list that takes many requests."""
    monkeypatch.setattr(manifests, "_FEW", 10)
    store = CountingStore()
    store.objects = dict(objects)
    return store


async def test_a_page_lists_and_reads_no_more_than_it_shows(store: CountingStore) -> None:
    """The first time about as much as it has; the second time a list of as much, and no manifest."""
    repository = Repository(store)
    page = await repository.page(20)
    assert [snapshot.id for snapshot in page.snapshots] == NEWEST_FIRST[:20]
    assert page.next == NEWEST_FIRST[19]
    listed, read = store.counted()
    assert listed < 10 + 8 * 21
    assert read == 20
    again = await repository.page(20)
    assert again == page
    listed, read = store.counted()
    assert listed < 2 * 21
    assert read == 0


@pytest.mark.parametrize("limit", [1, 7, 150, 1000])
async def test_pages_have_every_snapshot_once(store: CountingStore, limit: int) -> None:
    """From the newest to the oldest, on a fresh gateway and on one that has read them all."""
    repository = Repository(store)
    for _ in range(2):
        found, before = list[str](), None
        while True:
            page = await repository.page(limit, before)
            found += [snapshot.id for snapshot in page.snapshots]
            assert len(page.snapshots) <= limit
            if (before := page.next) is None:
                break
            if len(found) > 3 * limit:  # the others are alike
                return
        assert found == NEWEST_FIRST


async def test_pages_end_where_snapshots_are_large(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has at least one, and no more than some megabytes of manifests are read for it."""
    monkeypatch.setattr(manifests, "_PAGE_BYTES", len(store.objects[f"snapshots/{IDS[0]}/manifest.json"]) * 5 // 2)
    page = await Repository(store).page(20)
    assert ([each.id for each in page.snapshots], page.next) == (NEWEST_FIRST[:2], NEWEST_FIRST[1])
    monkeypatch.setattr(manifests, "_PAGE_BYTES", 1)
    page = await Repository(store).page(20, page.next)
    assert ([each.id for each in page.snapshots], page.next) == (NEWEST_FIRST[2:3], NEWEST_FIRST[2])


async def test_pages_begin_at_an_id() -> None:
    """Also at one that was deleted meanwhile, but not at anything else."""
    repository = Repository(MemoryStore())
    assert await repository.page(10, ID) == ([], None)
    with pytest.raises(InvalidRequest):
        await repository.page(10, "../..")


async def test_pages_skip_aborted_snapshots(store: CountingStore) -> None:
    """However many of the newest ones they are."""
    held = LeaseState(holder="a", home="a", aborted=tuple(IDS[-50:-1]), announced=IDS[-1])
    store.objects["lease.json"] = held.to_bytes()
    page = await Repository(store).page(20)
    assert [snapshot.id for snapshot in page.snapshots] == NEWEST_FIRST[50:70]


async def test_a_new_snapshot_lists_only_what_is_newer_than_all_that_is_known(store: CountingStore) -> None:
    """The id of the next one, and whether the one before is still there, cost the same after 10 as after 10,000."""
    repository = Repository(store)
    assert await repository.newest_id() == IDS[-1]
    assert await repository.exists(IDS[0])
    assert not await repository.exists(NEWER)
    assert store.counted()[0] == 1
    for most in (11, 1):  # the first time it looks whether there are few
        assert await repository.latest_id() == IDS[-1]
        assert store.counted()[0] <= most


async def test_garbage_collection_reads_each_manifest_once(store: CountingStore) -> None:
    """The first one all of them; the second one only what changed since."""
    repository = Repository(store)
    read = await repository.read_all()
    assert len(read.named()) == MANY + 1
    assert store.counted() == (MANY, MANY)
    store.objects[f"snapshots/{NEWER}/manifest.json"] = manifest(NEWER, (b"new",)).to_bytes()
    del store.objects[f"snapshots/{IDS[0]}/manifest.json"]
    read = await repository.read_all()
    assert len(read.named()) == MANY + 1
    assert bytes.fromhex(sha(b"new")) in read.named()
    # That the deleted one is gone is asked for by its name, since a list may lag.
    assert store.counted() == (MANY, 2)
    assert (await repository.read_all()).named() == read.named()
    assert store.counted() == (MANY, 0)


async def writer(home: Path, store: CountingStore) -> Repository:
    """The repository of a gateway that holds the lease."""
    leader = candidate(home, store, may_delete=False)
    await leader.require()
    return Repository(store, leader)


async def test_another_disk_reads_only_what_is_new(store: CountingStore, tmp_path: Path) -> None:
    """What was read is in the store. Damaged it is as none, and what it says of another object does not count."""
    before = await (await writer(tmp_path / "first", store)).read_all()
    store.objects[f"snapshots/{IDS[0]}/manifest.json"] = manifest(IDS[0], (b"another",)).to_bytes()
    store.counted()
    read = await (await writer(tmp_path / "second", store)).read_all()
    assert store.counted() == (MANY, 1)
    assert read.named() == before.named() - {bytes.fromhex(sha(IDS[0].encode()))} | {bytes.fromhex(sha(b"another"))}
    assert {each: read.taken(each) for each in IDS} == {each: before.taken(each) for each in IDS}
    data = bytearray(store.objects[SUMMARIES])
    data[len(data) // 2] ^= 1
    store.objects[SUMMARIES] = bytes(data)
    assert (await (await writer(tmp_path / "third", store)).read_all()).named() == read.named()
    assert store.counted() == (MANY, MANY)


async def test_what_was_read_is_stored_by_the_holder_of_the_lease_alone(store: CountingStore, tmp_path: Path) -> None:
    """And again only once much has changed. A store that refuses it changes nothing else."""
    await Repository(store).read_all()
    assert SUMMARIES not in store.objects
    repository = await writer(tmp_path, store)
    await repository.read_all()
    stored = store.objects[SUMMARIES]
    await repository.publish(manifest(NEWER))
    await repository.read_all()
    assert store.objects[SUMMARIES] == stored
    await repository.delete_manifests(IDS[:50], ())
    store.put_error = StorageDenied("not here")
    await repository.read_all()
    assert store.objects[SUMMARIES] == stored
    store.put_error = None
    await repository.delete_manifests(IDS[50:100], ())
    await repository.save_summaries()
    assert len(decode(store.objects[SUMMARIES])) == MANY - 100 + 1


async def test_what_was_read_is_asked_for_again_after_an_error(store: CountingStore, tmp_path: Path) -> None:
    """A store that is away has not said that it holds none."""
    await (await writer(tmp_path / "first", store)).read_all()
    repository = await writer(tmp_path / "second", store)
    store.counted()
    store.unreachable = True
    with pytest.raises(StorageUnavailable):
        await repository.read_all()
    store.unreachable = False
    await repository.read_all()
    assert store.counted() == (MANY, 0)


async def test_a_deletion_reads_few_manifests(
    store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there are many, or many not read yet, packs are left to the garbage collection. Else they are deleted too."""
    monkeypatch.setattr(repository, "_MOST_READ_TO_DELETE", 10)
    leader = candidate(tmp_path, store, may_delete=False)
    many = Repository(store, leader)
    for snapshot_id in IDS[2:4]:
        await many.delete(snapshot_id)
        assert store.counted() <= (10, 1)
        assert f"data/{sha(snapshot_id.encode())}" in store.objects
    monkeypatch.setattr(manifests, "_FEW", 10_000)
    one = Repository(store, leader)
    await one.delete(IDS[0])
    assert store.counted()[1] == 1
    assert f"data/{sha(IDS[0].encode())}" in store.objects
    await one.read_all()
    store.counted()
    await one.delete(IDS[1])
    assert store.counted()[1] == 1
    assert f"data/{sha(IDS[1].encode())}" not in store.objects
    assert f"data/{sha(b'shared')}" in store.objects


async def test_archived_manifest_is_damaged_and_hides_no_other(store: CountingStore) -> None:
    """The list says that it has to be brought back. What it names is not known."""
    store.archived.add(f"snapshots/{IDS[-1]}/manifest.json")
    page = await Repository(store).page(2)
    assert [snapshot.state for snapshot in page.snapshots] == ["damaged", "complete"]
    assert "archive" in (page.snapshots[0].problem or "")
    assert list((await Repository(store).read_all()).unreadable) == [IDS[-1]]
    with pytest.raises(SnapshotError, match="archive"):
        await Repository(store).manifest(IDS[-1])


async def test_snapshots_are_counted(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few are counted anew. Of many, the last list counts, and what was taken and deleted since."""
    repository = Repository(store)
    assert await repository.count() == MANY
    monkeypatch.setattr(manifests, "_COUNTED_ANEW", 10)
    await repository.publish(manifest(NEWER))
    store.counted()
    assert await repository.count() == MANY + 1
    assert store.counted() == (0, 0)
