"""One gateway's repository in the store: manifests, packs and the format they are of."""

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from pydantic import ValidationError

from gateway.aio import TaskPool, shielded
from gateway.errors import CorruptSnapshot, NotFound, ObjectMissing, SnapshotError, StorageUnavailable
from gateway.lease.lease import read_lease_state
from gateway.lease.state import MAX_PENDING_DELETE
from gateway.snapshot.model import (
    FORMAT,
    Manifest,
    Pack,
    Snapshot,
    Verification,
    check_format,
    damaged,
    is_snapshot_id,
)
from gateway.snapshot.plan import unreferenced
from gateway.storage import ObjectInfo, Storage

_REPOSITORY = "repository.json"
_SNAPSHOTS = "snapshots/"
_MANIFEST = "manifest.json"
_VERIFIED = "verified.json"
_DATA = "data/"
_CLOCK = "gc.clock"
_PACK = re.compile(r"[0-9a-f]{64}")
_READS_AT_ONCE = 8
# Bounds for what is parsed as JSON, whoever wrote it. A manifest takes about 200 bytes for 1 MiB of data.
_MAX_REPOSITORY_BYTES = 64 << 10
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_VERIFIED_BYTES = 1 << 20


class Fence(Protocol):
    """What keeps a gateway that is not the writer any more from changing the repository."""

    async def require(self) -> None:
        """Raise LeaseLost where another gateway is the writer."""
        ...

    def publishing(self, snapshot_id: str) -> AbstractAsyncContextManager[None]:
        """Around the writing of a manifest, which counts once this has ended. Raises LeaseLost."""
        ...

    async def settle(self) -> None:
        """Make void what was announced and is not known to be published. Raises LeaseLost."""
        ...

    @property
    def pending_delete(self) -> frozenset[str]:
        """Names of packs that may be deleted at any moment, so that no snapshot may need them."""
        ...

    async def mark_pending_delete(self, packs: list[str]) -> None:
        """To be called before packs are deleted. Raises LeaseLost, and they must stay then."""
        ...

    async def unmark_pending_delete(self, packs: list[str]) -> None:
        """To be called when their deletion was answered."""
        ...


class Repository:
    """Snapshots in `store`, which is this gateway's own prefix. Errors of the store pass through.

    Without a `fence` it is for reading, or for the only writer there is.
    """

    def __init__(self, store: Storage, fence: Fence | None = None) -> None:
        self._store, self._fence = store, fence
        # Manifests never change once written, so what was read stays true.
        self._read: dict[str, Snapshot] = {}
        # These may, but then they are another object.
        self._verified: dict[str, tuple[ObjectInfo, Verification | None]] = {}
        self._rotten: set[str] = set()

    @property
    def url(self) -> str:
        return self._store.url

    async def check_format(self) -> bool:
        """Say whether there is a repository. Raises IncompatibleSnapshot if it is newer than we know."""
        try:
            document = await self._store.get_range(_REPOSITORY, 0, _MAX_REPOSITORY_BYTES)
        except ObjectMissing:
            return False
        try:
            version = json.loads(document)["format"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CorruptSnapshot(f"{self.url}{_REPOSITORY} cannot be read: {error}") from error
        check_format(version, f"the repository {self.url}")
        return True

    async def make(self) -> None:
        """Write the format's version where there is none. Safe to retry. Raises LeaseLost."""
        if self._fence:
            await self._fence.require()
        if not await self.check_format():
            document = {"format": FORMAT, "created_at": datetime.now(UTC).isoformat(timespec="seconds")}
            await self._store.put_if_absent(_REPOSITORY, json.dumps(document).encode())

    # ------------------------------------------------------------------ snapshots

    async def ids(self) -> list[str]:
        """Ids of all snapshots, newest first."""
        return (await self._listed())[0]

    async def _listed(self) -> tuple[list[str], dict[str, ObjectInfo]]:
        """Ids of all snapshots, newest first, and what holds the verification of those that have one."""
        found, verified = [], {}
        async for info in self._store.list(_SNAPSHOTS):
            snapshot_id, _, name = info.key.removeprefix(_SNAPSHOTS).partition("/")
            if is_snapshot_id(snapshot_id):
                if name == _MANIFEST:
                    found.append(snapshot_id)
                elif name == _VERIFIED:
                    verified[snapshot_id] = info
        # After the list, never before: see `gateway.lease.state`.
        lease_state = await read_lease_state(self._store) if found else None
        return sorted(
            (each for each in found if lease_state is None or lease_state.is_committed(each)), reverse=True
        ), verified

    async def newest_id(self) -> str | None:
        """The newest id that was ever given, also to a snapshot that never counted: a new one comes after it."""
        ids = [info.key.removeprefix(_SNAPSHOTS).partition("/")[0] async for info in self._store.list(_SNAPSHOTS)]
        lease_state = await read_lease_state(self._store)
        if lease_state is not None:
            ids += [*lease_state.aborted, *([lease_state.announced] if lease_state.announced else [])]
        return max(filter(is_snapshot_id, ids), default=None)

    async def snapshots(self) -> list[Snapshot]:
        """All snapshots, newest first; one that cannot be read is shown as damaged."""
        shown: dict[str, Snapshot] = {}

        async def show(snapshot_id: str) -> None:
            try:
                snapshot = self._read.get(snapshot_id) or (await self.manifest(snapshot_id)).snapshot
            except SnapshotError as error:
                snapshot = damaged(snapshot_id, error.message)
            except NotFound:
                return  # deleted since it was listed
            if snapshot_id in verified:
                verification = await self._verification(snapshot_id, verified[snapshot_id])
                snapshot = snapshot.model_copy(update={"verified": verification})
            shown[snapshot_id] = snapshot

        ids, verified = await self._listed()
        async with TaskPool(_READS_AT_ONCE) as pool:
            for snapshot_id in ids:
                await pool.start(show, snapshot_id)
        return [shown[snapshot_id] for snapshot_id in ids if snapshot_id in shown]

    async def resolve(self, name: str) -> str:
        """The id that `name` means: an id, or `latest`. Raises NotFound."""
        if name == "latest":
            ids = await self.ids()
            if not ids:
                raise NotFound("there is no snapshot yet", "take one: POST /admin/snapshot")
            return ids[0]
        if not is_snapshot_id(name):
            raise NotFound(f"{name!r} is no snapshot id", "GET /admin/snapshot lists them")
        lease_state = await read_lease_state(self._store)
        if lease_state is not None and not lease_state.is_committed(name):
            raise NotFound(f"snapshot {name} was never published", "GET /admin/snapshot lists those that were")
        return name

    async def manifest(self, snapshot_id: str) -> Manifest:
        """Raises NotFound, CorruptSnapshot or IncompatibleSnapshot."""
        try:
            data = await self._store.get_range(f"{_SNAPSHOTS}{snapshot_id}/{_MANIFEST}", 0, _MAX_MANIFEST_BYTES)
        except ObjectMissing:
            raise NotFound(f"there is no snapshot {snapshot_id}", "GET /admin/snapshot lists them") from None
        manifest = await asyncio.to_thread(Manifest.parse, data, snapshot_id)
        self._read[snapshot_id] = manifest.snapshot
        return manifest

    async def snapshot(self, snapshot_id: str) -> Snapshot:
        """One snapshot, as `snapshots` shows it. Raises NotFound, CorruptSnapshot or IncompatibleSnapshot."""
        snapshot = (await self.manifest(snapshot_id)).snapshot
        return snapshot.model_copy(update={"verified": await self._verification(snapshot_id, None)})

    async def note_verified(self, snapshot_id: str, verification: Verification) -> None:
        """Keep what a verification found, beside the manifest. It replaces what an earlier one found."""
        await self._store.put(f"{_SNAPSHOTS}{snapshot_id}/{_VERIFIED}", verification.model_dump_json().encode())

    async def _verification(self, snapshot_id: str, info: ObjectInfo | None) -> Verification | None:
        """What was noted; `info` says which object that is, so that it need not be read again."""
        known = self._verified.get(snapshot_id)
        if known and known[0] == info:
            return known[1]
        try:
            data = await self._store.get_range(f"{_SNAPSHOTS}{snapshot_id}/{_VERIFIED}", 0, _MAX_VERIFIED_BYTES)
            verification = Verification.model_validate_json(data)
        except (ObjectMissing, ValidationError):
            verification = None  # what cannot be read says nothing
        if info:
            self._verified[snapshot_id] = info, verification
        return verification

    async def publish(self, manifest: Manifest) -> None:
        """Write the manifest: from here on the snapshot exists.

        After an error it may exist or not, since the answer can be lost; if so it is whole.
        """
        data = await asyncio.to_thread(manifest.to_bytes)
        async with self._fence.publishing(manifest.snapshot.id) if self._fence else nullcontext():
            await self._store.put(f"{_SNAPSHOTS}{manifest.snapshot.id}/{_MANIFEST}", data)
        self._read[manifest.snapshot.id] = manifest.snapshot

    async def delete(self, snapshot_id: str) -> None:
        """Remove a snapshot: its manifest first, then the packs no other one names. Raises NotFound.

        After an error, call again or leave it: what is left over is named by nothing. Packs are kept
        while any other manifest cannot be read, since it might name them.
        """
        if self._fence:
            await self._fence.require()
        try:
            packs = (await self.manifest(snapshot_id)).packs
        except SnapshotError:
            packs = ()  # it cannot say what it holds; removing the manifest is all there is to do
        await self._store.delete(f"{_SNAPSHOTS}{snapshot_id}/{_MANIFEST}")
        await self._store.delete(f"{_SNAPSHOTS}{snapshot_id}/{_VERIFIED}")
        self._read.pop(snapshot_id, None)
        with contextlib.suppress(SnapshotError):
            await self.drop_unreferenced([pack.sha256 for pack in packs])

    async def drop_unreferenced(self, names: Iterable[str]) -> None:
        """Remove those packs of `names` that no snapshot that counts names. Raises LeaseLost, StorageError.

        Raises SnapshotError, having removed nothing, while a manifest cannot be read: it might name them.
        """
        if names := list(names):
            if self._fence:
                # What was announced and may or may not be published yet is neither from here on but void.
                await self._fence.settle()
            dropped = unreferenced(names, [await self.manifest(snapshot_id) for snapshot_id in await self.ids()])
            await self.delete_packs(dropped)

    async def drop(self, snapshot_id: str) -> None:
        """Remove a snapshot's manifest, and what is beside it; a garbage collection finds the rest."""
        await self._store.delete(f"{_SNAPSHOTS}{snapshot_id}/{_MANIFEST}")
        await self._store.delete(f"{_SNAPSHOTS}{snapshot_id}/{_VERIFIED}")
        self._read.pop(snapshot_id, None)

    async def unpublished(self) -> list[str]:
        """Ids of manifests in the store that will never count: of gateways that lost the lease over them."""
        lease_state = await read_lease_state(self._store)
        found = [info.key.removeprefix(_SNAPSHOTS).partition("/")[0] async for info in self._store.list(_SNAPSHOTS)]
        return [each for each in found if lease_state and each in lease_state.aborted]

    # ------------------------------------------------------------------ packs

    async def packs(self) -> dict[str, int]:
        """Size in bytes by name of every pack in the store, less those that were seen to be rotten."""
        named = {info.key.removeprefix(_DATA): info.size_bytes async for info in self._store.list(_DATA)}
        return {
            name: size_bytes
            for name, size_bytes in named.items()
            if name not in self._rotten and not self.is_condemned(name)
        }

    def is_condemned(self, name: str) -> bool:
        """Whether a pack of this name may be deleted at any moment: a new snapshot must not name it."""
        return self._fence is not None and name in self._fence.pending_delete

    async def pack_objects(self) -> AsyncIterator[ObjectInfo]:
        """Every pack in the store with its size and age, by its name as `key`."""
        async for info in self._store.list(_DATA):
            name = info.key.removeprefix(_DATA)
            if _PACK.fullmatch(name):
                yield replace(info, key=name)

    async def tell_time(self) -> datetime:
        """The present moment in UTC by the store's own clock, which is the one that objects' ages are of."""
        await self._store.put(_CLOCK, b"the time of this object is that of the last garbage collection\n")
        async for info in self._store.list(_CLOCK):
            return info.modified_at.astimezone(UTC)
        raise StorageUnavailable(f"{self.url}{_CLOCK} was written and is not listed", "try again")

    async def delete_packs(self, names: list[str]) -> None:
        """Delete packs, which no snapshot that counts may need. Raises LeaseLost; safe to retry."""
        for start in range(0, len(names), MAX_PENDING_DELETE):
            some = names[start : start + MAX_PENDING_DELETE]
            # Those that an earlier holder condemned stay so: its deletes may still be on their way.
            own = [name for name in some if not self.is_condemned(name)]
            if self._fence:
                await self._fence.mark_pending_delete(some)
            async with TaskPool(_READS_AT_ONCE) as pool:
                for name in some:
                    await pool.start(self.delete_pack, name)
            if self._fence:
                await self._fence.unmark_pending_delete(own)

    @property
    def rotten(self) -> frozenset[str]:
        """Names of packs that were seen not to be what they are named by, or not to be there."""
        return frozenset(self._rotten)

    async def put_pack(self, name: str, data: bytes) -> None:
        """Safe to retry; what lies under that name is replaced, and mended if it was rotten.

        Goes to its end when cancelled: a pack that arrived after all was dropped would stay for good.
        """
        await shielded(self._store.put(f"{_DATA}{name}", data))
        self._rotten.discard(name)

    async def get_pack(self, pack: Pack) -> bytes:
        """Its bytes, verified. Raises CorruptSnapshot if they are not there, or are not what it is named by."""
        data = await self.get_unverified(pack)
        try:
            await asyncio.to_thread(check_pack, pack, data)
        except CorruptSnapshot:
            self._rotten.add(pack.sha256)
            raise
        return data

    async def get_unverified(self, pack: Pack) -> bytes:
        """Its bytes, for a caller that verifies what it makes of them. Raises CorruptSnapshot if they are not there."""
        try:
            # One byte more than there should be: enough to see that it is another, without reading all of it.
            return await self._store.get_range(f"{_DATA}{pack.sha256}", 0, pack.size_bytes + 1)
        except ObjectMissing:
            self._rotten.add(pack.sha256)
            raise CorruptSnapshot(
                f"pack data/{pack.sha256} is missing in {self.url}",
                "restore another snapshot, see GET /admin/snapshot",
            ) from None

    async def require_sound(self, packs: Iterable[Pack]) -> None:
        """Read all of `packs`. Raises CorruptSnapshot, which names one that is not what it should be."""
        async with TaskPool(_READS_AT_ONCE) as pool:
            for pack in packs:
                await pool.start(self._require_sound, pack)

    async def _require_sound(self, pack: Pack) -> None:
        await self.get_pack(pack)

    async def delete_pack(self, name: str) -> None:
        await self._store.delete(f"{_DATA}{name}")

    async def close(self) -> None:
        await self._store.close()


def check_pack(pack: Pack, data: bytes) -> None:
    """Raise CorruptSnapshot unless `data` is what `pack` is named by."""
    if len(data) != pack.size_bytes or hashlib.sha256(data).hexdigest() != pack.sha256:
        raise CorruptSnapshot(
            f"pack data/{pack.sha256} is not what was stored: its bytes have another digest",
            "restore another snapshot, see GET /admin/snapshot",
        )
