"""A repository lists what is there, deletes no more than it may, and knows an unreachable store from an empty one."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.errors import CorruptSnapshot, IncompatibleSnapshot, NotFound, StorageUnavailable
from gateway.lease.state import LeaseState
from gateway.snapshot.model import FORMAT, Manifest, Verification
from gateway.snapshot.repository import Repository
from gateway.storage.protocol import ObjectInfo
from tests.unit.snapshot.leaders import candidate
from tests.unit.snapshot.manifests import ID, NEWER, OLDER, manifest, sha
from tests.unit.snapshot.stores import MemoryStore


async def stored(store: MemoryStore, snapshot_id: str, packs: tuple[bytes, ...]) -> Manifest:
    """Put a snapshot with these packs into `store`."""
    repository, made = Repository(store), manifest(snapshot_id, packs)
    await repository.make()
    for data in packs:
        await repository.put_pack(sha(data), data)
    await repository.publish(made)
    return made


def key(snapshot_id: str) -> str:
    return f"snapshots/{snapshot_id}/manifest.json"


def packs_in(store: MemoryStore) -> set[bytes]:
    return {data for key, data in store.objects.items() if key.startswith("data/")}


async def test_snapshots_are_listed_newest_first() -> None:
    """By the time in their ids, whatever the order of the store. `latest` is the first one."""
    store = MemoryStore()
    for snapshot_id in (ID, NEWER, OLDER):
        await stored(store, snapshot_id, (b"database",))
    repository = Repository(store)
    assert await repository.ids() == [NEWER, ID, OLDER]
    assert [snapshot.id for snapshot in await repository.snapshots()] == [NEWER, ID, OLDER]
    assert await repository.resolve("latest") == NEWER
    assert await repository.resolve(OLDER) == OLDER


async def test_the_newest_verification_is_found_without_its_manifest() -> None:
    """The newest snapshots need not be verified, and the latest result of one counts."""
    store, at = MemoryStore(), datetime(2026, 11, 22, tzinfo=UTC)
    repository = Repository(store)
    for snapshot_id in (OLDER, ID, NEWER):
        await stored(store, snapshot_id, (b"database",))
    assert await repository.newest_verified() is None
    for snapshot_id, ok in ((OLDER, True), (ID, False), (ID, True)):
        verification = Verification(ok=ok, level="data", at=at)
        await repository.save_verification(snapshot_id, verification)
        assert await repository.newest_verified() == (snapshot_id, verification)


class Lagging(MemoryStore):
    """A store whose lists lack the newest snapshot."""

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix, after):
            if NEWER not in info.key:
                yield info


async def published_by_a_gateway(store: MemoryStore, path: Path) -> Repository:
    """OLDER and NEWER, the way a gateway publishes."""
    repository = Repository(store, candidate(path, store))
    await repository.make()
    for snapshot_id in (OLDER, NEWER):
        await repository.put_pack(sha(b"database"), b"database")
        await repository.publish(manifest(snapshot_id, (b"database",)))
    return repository


async def test_what_a_list_lacks_is_found_by_its_name(tmp_path: Path) -> None:
    """The lease names what was published last. Without it a start would go back to an older state, or to none."""
    store = Lagging()
    await published_by_a_gateway(store, tmp_path)
    assert await Repository(store).resolve("latest") == NEWER
    assert await Repository(store).ids() == [NEWER, OLDER]


async def test_a_published_snapshot_that_is_missing_is_no_older_state(tmp_path: Path) -> None:
    """A copy in part, or a wrong `rm`: an error that may pass. Others are listed, and can be named."""
    store = MemoryStore()
    await published_by_a_gateway(store, tmp_path)
    del store.objects[key(NEWER)]
    with pytest.raises(StorageUnavailable, match=NEWER):
        await Repository(store).latest_id()
    assert await Repository(store).ids() == [OLDER]
    assert await Repository(store).resolve(OLDER) == OLDER


async def test_a_snapshot_that_was_deleted_on_purpose_is_not_missed(tmp_path: Path) -> None:
    """The one before it is the latest then; and after the last one the store is empty."""
    repository = await published_by_a_gateway(MemoryStore(), tmp_path)
    await repository.delete(NEWER)
    assert await repository.latest_id() == OLDER
    await repository.delete(OLDER)
    assert await repository.latest_id() is None


@pytest.mark.parametrize("part", ["data/", "snapshots/", "lease.json"])
async def test_store_that_was_copied_in_part_is_not_empty(tmp_path: Path, part: str) -> None:
    """Neither if only the data have arrived, nor if only the manifests or the lease are missing."""
    whole, store = MemoryStore(), MemoryStore()
    await published_by_a_gateway(whole, tmp_path)
    if part == "data/":
        store.objects = {key: data for key, data in whole.objects.items() if key.startswith(part)}
    else:
        store.objects = {key: data for key, data in whole.objects.items() if not key.startswith(part)}
    if part == "lease.json":
        assert await Repository(store).latest_id() == NEWER
    else:
        with pytest.raises(StorageUnavailable, match=r"missing|neither a snapshot nor a lease"):
            await Repository(store).latest_id()


async def test_other_objects_are_not_listed() -> None:
    """Packs without a manifest, and objects of others, are not snapshots."""
    store = MemoryStore()
    for stranger in (
        "snapshots/notes.txt",
        f"snapshots/{ID}/manifest.json.bak",
        "snapshots/..x/manifest.json",
        "data/x",
    ):
        store.objects[stranger] = b"{}"
    store.objects["snapshots/20261340T000000Z-000000/manifest.json"] = b"of no moment"
    assert await Repository(store).snapshots() == []


async def test_damaged_snapshot_is_listed_with_its_problem() -> None:
    """A truncated manifest and one of a newer format are listed as damaged, with why. Others are listed as usual."""
    store = MemoryStore()
    good = await stored(store, ID, (b"database",))
    store.objects[key(OLDER)] = store.objects[key(ID)][:100]
    store.objects[key(NEWER)] = json.dumps({"format": FORMAT + 1}).encode()
    newer, middle, older = await Repository(store).snapshots()
    assert middle == good.snapshot
    assert (newer.id, newer.state, older.id, older.state) == (NEWER, "damaged", OLDER, "damaged")
    assert f"format {FORMAT + 1}" in newer.problem
    assert "cut off" in older.problem


CALLS: dict[str, Callable[[Repository], Awaitable[object]]] = {
    "ids": lambda repository: repository.ids(),
    "snapshots": lambda repository: repository.snapshots(),
    "latest": lambda repository: repository.resolve("latest"),
    "manifest": lambda repository: repository.manifest(ID),
    "check_format": lambda repository: repository.check_format(),
    "make": lambda repository: repository.make(),
    "packs": lambda repository: repository.packs(),
    "get_pack": lambda repository: repository.get_pack(manifest().packs[0]),
    "publish": lambda repository: repository.publish(manifest()),
    "delete": lambda repository: repository.delete(ID),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("holds", [True, False], ids=["with a snapshot", "empty"])
async def test_unreachable_store_is_never_taken_for_an_empty_one(
    call: Callable[[Repository], Awaitable[object]], holds: bool
) -> None:
    """Every call raises that the store could not be reached."""
    store = MemoryStore()
    if holds:
        await stored(store, ID, (b"database",))
    store.unreachable = True
    with pytest.raises(StorageUnavailable):
        await call(Repository(store))


async def test_manifest_that_cannot_be_fetched_is_not_listed_as_damaged() -> None:
    """A store that fails during a listing fails the listing."""
    store = MemoryStore()
    await stored(store, ID, (b"database",))
    repository = Repository(store)
    read = store.get

    async def failing(key: str) -> bytes:
        store.unreachable = True
        return await read(key)

    store.get = failing  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailable):
        await repository.snapshots()


async def test_empty_store_has_no_snapshot() -> None:
    """The list is empty, and `latest` is not found."""
    repository = Repository(MemoryStore())
    assert await repository.snapshots() == []
    assert not await repository.check_format()
    with pytest.raises(NotFound, match="no snapshot yet"):
        await repository.resolve("latest")
    with pytest.raises(NotFound, match=ID):
        await repository.manifest(ID)
    with pytest.raises(NotFound, match="no snapshot id"):
        await repository.resolve("../../etc")


# ---------------------------------------------------------------------- its format


async def test_newer_repository_is_refused_and_not_changed() -> None:
    """A gateway that does not know its format neither reads nor writes it."""
    store = MemoryStore()
    store.objects["repository.json"] = document = json.dumps({"format": FORMAT + 1}).encode()
    for call in ("check_format", "make"):
        with pytest.raises(IncompatibleSnapshot, match=f"format {FORMAT + 1}"):
            await getattr(Repository(store), call)()
    assert store.objects == {"repository.json": document}


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"{}", b'{"format": "one"}', b"\xff"])
async def test_repository_without_a_format_is_corrupt(document: bytes) -> None:
    """It is not taken for an empty place."""
    store = MemoryStore()
    store.objects["repository.json"] = document
    with pytest.raises(CorruptSnapshot):
        await Repository(store).make()
    assert store.objects == {"repository.json": document}


async def test_making_a_repository_twice_changes_nothing() -> None:
    """The format is written once."""
    store = MemoryStore()
    await Repository(store).make()
    first = dict(store.objects)
    await Repository(store).make()
    assert store.objects == first
    assert await Repository(store).check_format()


# ---------------------------------------------------------------------- deleting


async def test_delete_keeps_packs_that_another_snapshot_names() -> None:
    """The snapshot's own packs are deleted, shared ones stay, and the other snapshot stays complete."""
    store = MemoryStore()
    await stored(store, OLDER, (b"old", b"shared"))
    newer = await stored(store, NEWER, (b"new", b"shared"))
    repository = Repository(store)
    await repository.delete(OLDER)
    assert packs_in(store) == {b"new", b"shared"}
    assert await repository.snapshots() == [newer.snapshot]
    await repository.delete(NEWER)
    assert packs_in(store) == set()
    assert await repository.snapshots() == []


async def test_delete_keeps_every_pack_while_another_manifest_cannot_be_read() -> None:
    """That manifest may name them. The snapshot is deleted, its packs stay."""
    store = MemoryStore()
    await stored(store, OLDER, (b"old", b"shared"))
    await stored(store, NEWER, (b"new", b"shared"))
    whole = store.objects[key(NEWER)]
    store.objects[key(NEWER)] = whole[:-10]
    repository = Repository(store)
    await repository.delete(OLDER)
    assert await repository.ids() == [NEWER]
    assert packs_in(store) == {b"old", b"new", b"shared"}


async def test_delete_keeps_packs_when_the_store_fails_after_the_manifest() -> None:
    """Without a list of the other manifests, no pack is deleted."""
    store = MemoryStore()
    await stored(store, OLDER, (b"old", b"shared"))
    await stored(store, NEWER, (b"new", b"shared"))
    repository = Repository(store)
    delete = store.delete

    async def last_delete(key: str) -> None:
        await delete(key)
        store.unreachable = True

    store.delete = last_delete  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailable):
        await repository.delete(OLDER)
    store.unreachable = False
    assert packs_in(store) == {b"old", b"new", b"shared"}
    assert await Repository(store).ids() == [NEWER]


async def test_damaged_snapshot_can_be_deleted() -> None:
    """Its manifest is deleted. The packs that it cannot name stay."""
    store = MemoryStore()
    await stored(store, ID, (b"database",))
    store.objects[key(ID)] = b"{"
    repository = Repository(store)
    await repository.delete(ID)
    assert await repository.ids() == []
    assert packs_in(store) == {b"database"}


async def test_deleting_an_unknown_snapshot_is_not_found() -> None:
    """And nothing is deleted."""
    store = MemoryStore()
    await stored(store, ID, (b"database",))
    before = dict(store.objects)
    with pytest.raises(NotFound):
        await Repository(store).delete(NEWER)
    assert store.objects == before


async def test_missing_pack_is_corrupt_and_named() -> None:
    """A manifest names it, so this is not only a missing object."""
    made = await stored(store := MemoryStore(), ID, (b"database",))
    store.objects.pop(f"data/{made.packs[0].sha256}")
    with pytest.raises(CorruptSnapshot, match=f"data/{made.packs[0].sha256} is missing"):
        await Repository(store).get_pack(made.packs[0])


async def test_corrupt_pack_is_sent_again_by_the_next_snapshot() -> None:
    """Once found to be corrupt, it is not reused. Storing it again repairs every snapshot that names it."""
    made = await stored(store := MemoryStore(), ID, (b"database",))
    name = made.packs[0].sha256
    good = store.objects[f"data/{name}"]
    store.objects[f"data/{name}"] = bytes(len(good))
    repository = Repository(store)
    assert name in await repository.packs()
    with pytest.raises(CorruptSnapshot, match="another digest"):
        await repository.get_pack(made.packs[0])
    assert name not in await repository.packs()
    await repository.put_pack(name, good)
    assert name in await repository.packs()
    assert await repository.get_pack(made.packs[0]) == good


async def test_new_id_sorts_after_every_id_that_was_ever_used() -> None:
    """Also after announced and aborted ones. Otherwise a clock that was set back could reuse one of them."""
    store = MemoryStore()
    await stored(store, ID, (b"database",))
    repository = Repository(store)
    assert await repository.newest_id() == ID
    lease = LeaseState(holder="a", home="a").announcing(NEWER)
    for state in (lease, lease.succeeded_by("b", "b", "")):
        store.objects["lease.json"] = state.to_bytes()
        assert await repository.newest_id() == NEWER
        assert await repository.ids() == [ID]
    assert await Repository(MemoryStore()).newest_id() is None


async def test_aborted_snapshot_is_not_found() -> None:
    """Neither by its id nor as `latest`."""
    store = MemoryStore()
    await stored(store, ID, (b"database",))
    store.objects["lease.json"] = LeaseState(holder="a", home="a").announcing(ID).aborting_announced().to_bytes()
    with pytest.raises(NotFound, match="never published"):
        await Repository(store).resolve(ID)
    with pytest.raises(NotFound):
        await Repository(store).resolve("latest")
