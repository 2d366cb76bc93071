"""One gateway's repository in the store: its manifests, its packs and its format.

docs/format.md describes the objects. `gateway.lease.state` says when a snapshot is committed, and why a gateway that
lost the lease can neither publish nor delete.
"""

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import ValidationError

from gateway.aio import TaskPool, shielded
from gateway.errors import CorruptSnapshot, NotFound, ObjectMissing, SnapshotError, StorageUnavailable
from gateway.lease.election import LeaderElection
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
# Bounds for untrusted JSON. A manifest takes about 200 bytes for 1 MiB of data.
_MAX_REPOSITORY_BYTES = 64 << 10
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_VERIFIED_BYTES = 1 << 20


class _Listing(NamedTuple):
    """The ids of all committed snapshots, newest first, and the objects with their verifications, by id.

    `missing`: the snapshot that the lease says was published last, if it is not in the store.
    """

    ids: list[str]
    verified: dict[str, ObjectInfo]
    missing: str | None


class Repository:
    """The snapshots in `store`, which is this gateway's own prefix. Every method raises StorageError.

    `leader` guards what is published and deleted. Without it, the repository is for reading, or for a store that has
    no other writer.
    """

    def __init__(self, store: Storage, leader: LeaderElection | None = None) -> None:
        self._store, self._leader = store, leader
        # By id. Manifests never change once written.
        self._read: dict[str, Snapshot] = {}
        # By id. A verification may be replaced; then its object has another version.
        self._verified: dict[str, tuple[ObjectInfo, Verification | None]] = {}
        self._corrupt_packs: set[str] = set()

    @property
    def url(self) -> str:
        return self._store.url

    async def check_format(self) -> bool:
        """Return whether there is a repository. Raises IncompatibleSnapshot if its format is newer than we know."""
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
        """Create the repository if there is none: write its format. Safe to retry. Raises LeaseLost."""
        if self._leader:
            await self._leader.require()
        if not await self.check_format():
            document = {"format": FORMAT, "created_at": datetime.now(UTC).isoformat(timespec="seconds")}
            await self._store.put_if_absent(_REPOSITORY, json.dumps(document).encode())

    # ------------------------------------------------------------------ snapshots

    async def ids(self) -> list[str]:
        """Return the ids of all committed snapshots, newest first."""
        return (await self._listed()).ids

    async def _listed(self) -> "_Listing":
        found, verified = [], {}
        async for info in self._store.list(_SNAPSHOTS):
            snapshot_id, _, name = info.key.removeprefix(_SNAPSHOTS).partition("/")
            if is_snapshot_id(snapshot_id):
                if name == _MANIFEST:
                    found.append(snapshot_id)
                elif name == _VERIFIED:
                    verified[snapshot_id] = info
        # The lease is read after the list, never before: see `gateway.lease.state`.
        lease_state = await read_lease_state(self._store)
        missing = lease_state.expected if lease_state else None
        if missing and (missing in found or await self._is_stored(missing)):
            found, missing = list({*found, missing}), None  # a list may lag
        committed = [each for each in found if lease_state is None or lease_state.is_committed(each)]
        return _Listing(sorted(committed, reverse=True), verified, missing)

    async def _is_stored(self, snapshot_id: str) -> bool:
        try:
            await self._store.get_range(f"{_SNAPSHOTS}{snapshot_id}/{_MANIFEST}", 0, 1)
        except ObjectMissing:
            return False
        return True

    async def latest_id(self) -> str | None:
        """Return the id of the newest snapshot, None if the store never held one.

        Raises StorageUnavailable if the snapshot that the lease says was published last is not there: what is there
        instead is not the latest.
        """
        ids, _, missing = await self._listed()
        if missing and missing > max(ids, default=""):
            raise StorageUnavailable(
                f"snapshot {missing}, which was published last, is missing in {self.url}",
                "complete the copy of the store; or name another snapshot, or 'none', in GATEWAY_RESTORE",
            )
        return ids[0] if ids else None

    async def newest_id(self) -> str | None:
        """Return the newest id that was ever used, also by an aborted snapshot. A new id must sort after it."""
        ids = await self._listed_names()
        lease_state = await read_lease_state(self._store)
        if lease_state is not None:
            ids += [*lease_state.aborted, *([lease_state.announced] if lease_state.announced else [])]
        return max(filter(is_snapshot_id, ids), default=None)

    async def snapshots(self) -> list[Snapshot]:
        """Return all snapshots, newest first. One whose manifest cannot be read has the state `damaged`."""
        shown: dict[str, Snapshot] = {}

        async def show(snapshot_id: str) -> None:
            try:
                snapshot = self._read.get(snapshot_id) or (await self.manifest(snapshot_id)).snapshot
            except SnapshotError as error:
                snapshot = damaged(snapshot_id, error.message)
            except NotFound:
                return  # It was deleted after the list was made.
            if snapshot_id in verified:
                verification = await self._verification(snapshot_id, verified[snapshot_id])
                snapshot = snapshot.model_copy(update={"verified": verification})
            shown[snapshot_id] = snapshot

        ids, verified, _ = await self._listed()
        async with TaskPool(_READS_AT_ONCE) as pool:
            for snapshot_id in ids:
                await pool.start(show, snapshot_id)
        return [shown[snapshot_id] for snapshot_id in ids if snapshot_id in shown]

    async def resolve(self, name: str) -> str:
        """Return the id of the snapshot `name`, which is an id or `latest`. Raises NotFound."""
        if name == "latest":
            if (latest := await self.latest_id()) is None:
                raise NotFound("there is no snapshot yet", "take one: POST /admin/snapshot")
            return latest
        if not is_snapshot_id(name):
            raise NotFound(f"{name!r} is no snapshot id", "GET /admin/snapshot lists them")
        lease_state = await read_lease_state(self._store)
        if lease_state is not None and not lease_state.is_committed(name):
            raise NotFound(f"snapshot {name} was never published", "GET /admin/snapshot lists those that were")
        return name

    async def manifest(self, snapshot_id: str) -> Manifest:
        """Return a snapshot's manifest. Raises NotFound, CorruptSnapshot, IncompatibleSnapshot."""
        try:
            data = await self._store.get_range(f"{_SNAPSHOTS}{snapshot_id}/{_MANIFEST}", 0, _MAX_MANIFEST_BYTES)
        except ObjectMissing:
            raise NotFound(f"there is no snapshot {snapshot_id}", "GET /admin/snapshot lists them") from None
        manifest = await asyncio.to_thread(Manifest.parse, data, snapshot_id)
        self._read[snapshot_id] = manifest.snapshot
        return manifest

    async def snapshot(self, snapshot_id: str) -> Snapshot:
        """Return one snapshot, as `snapshots` does. Raises NotFound, CorruptSnapshot, IncompatibleSnapshot."""
        snapshot = (await self.manifest(snapshot_id)).snapshot
        return snapshot.model_copy(update={"verified": await self._verification(snapshot_id, None)})

    async def save_verification(self, snapshot_id: str, verification: Verification) -> None:
        """Store a verification's result beside the manifest. It replaces an earlier result."""
        await self._store.put(f"{_SNAPSHOTS}{snapshot_id}/{_VERIFIED}", verification.model_dump_json().encode())

    async def _verification(self, snapshot_id: str, info: ObjectInfo | None) -> Verification | None:
        """Return the stored verification, None if there is none. `info` is its object, so that it is read only once."""
        known = self._verified.get(snapshot_id)
        if known and known[0] == info:
            return known[1]
        try:
            data = await self._store.get_range(f"{_SNAPSHOTS}{snapshot_id}/{_VERIFIED}", 0, _MAX_VERIFIED_BYTES)
            verification = Verification.model_validate_json(data)
        except (ObjectMissing, ValidationError):
            verification = None
        if info:
            self._verified[snapshot_id] = info, verification
        return verification

    async def publish(self, manifest: Manifest) -> None:
        """Write the manifest. From then on the snapshot exists.

        Raises LeaseLost: the snapshot will never be committed. After StorageUnavailable the snapshot may exist or not,
        since the answer may be lost. If it exists, it is whole.
        """
        data = await asyncio.to_thread(manifest.to_bytes)
        async with self._leader.publishing(manifest.snapshot.id) if self._leader else nullcontext():
            await self._store.put(f"{_SNAPSHOTS}{manifest.snapshot.id}/{_MANIFEST}", data)
        self._read[manifest.snapshot.id] = manifest.snapshot

    async def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot: first its manifest, then the packs that no other snapshot names.

        Raises NotFound, LeaseLost. Safe to retry after an error: what it leaves behind is garbage that no snapshot
        names. Packs are kept while another manifest cannot be read, since it might name them.
        """
        if self._leader:
            await self._leader.require()
        try:
            packs = (await self.manifest(snapshot_id)).packs
        except SnapshotError:
            packs = ()  # Without a readable manifest its packs are unknown. They are left to the garbage collection.
        await self.delete_manifest(snapshot_id)
        with contextlib.suppress(SnapshotError):
            await self.delete_unreferenced([pack.sha256 for pack in packs])

    async def delete_unreferenced(self, names: Iterable[str]) -> None:
        """Delete the packs of `names` that no committed snapshot names. Safe to retry. Raises LeaseLost, StorageError.

        Raises SnapshotError and deletes nothing while a manifest cannot be read, since it might name them.
        """
        if names := list(names):
            if self._leader:
                # Abort a snapshot that is still announced. Otherwise it could be committed after its packs are gone.
                await self._leader.abort_announced()
            manifests = [await self.manifest(snapshot_id) for snapshot_id in await self.ids()]
            await self.delete_packs(unreferenced(names, manifests))

    async def delete_manifest(self, snapshot_id: str) -> None:
        """Delete a snapshot's manifest and its verification. A garbage collection finds its packs."""
        if self._leader:
            await self._leader.note_deletion(snapshot_id)
        await self._store.delete(f"{_SNAPSHOTS}{snapshot_id}/{_MANIFEST}")
        await self._store.delete(f"{_SNAPSHOTS}{snapshot_id}/{_VERIFIED}")
        self._read.pop(snapshot_id, None)

    async def aborted_ids(self) -> list[str]:
        """Return the ids of aborted snapshots whose manifests are in the store."""
        lease_state = await read_lease_state(self._store)
        return [each for each in await self._listed_names() if lease_state and each in lease_state.aborted]

    async def _listed_names(self) -> list[str]:
        """The names of the folders below `snapshots/`, one for each object in them."""
        return [info.key.removeprefix(_SNAPSHOTS).partition("/")[0] async for info in self._store.list(_SNAPSHOTS)]

    # ------------------------------------------------------------------ packs

    async def packs(self) -> dict[str, int]:
        """Return the size in bytes, by name, of every pack that a new snapshot may name.

        Leaves out packs that were found to be corrupt, and packs that are pending delete.
        """
        sizes = {info.key.removeprefix(_DATA): info.size_bytes async for info in self._store.list(_DATA)}
        return {
            name: size_bytes
            for name, size_bytes in sizes.items()
            if name not in self._corrupt_packs and not self.is_pending_delete(name)
        }

    def is_pending_delete(self, name: str) -> bool:
        """Return whether a deletion of this pack may be under way. A new snapshot must not name such a pack."""
        return self._leader is not None and name in self._leader.pending_delete

    async def pack_objects(self) -> AsyncIterator[ObjectInfo]:
        """Yield every pack in the store with its size and age. `key` is the pack's name."""
        async for info in self._store.list(_DATA):
            name = info.key.removeprefix(_DATA)
            if _PACK.fullmatch(name):
                yield replace(info, key=name)

    async def store_time(self) -> datetime:
        """Return the present time, in UTC, by the store's own clock. The ages of objects are by that clock."""
        await self._store.put(_CLOCK, b"the time of this object is that of the last garbage collection\n")
        async for info in self._store.list(_CLOCK):
            return info.modified_at.astimezone(UTC)
        raise StorageUnavailable(f"{self.url}{_CLOCK} was written but is not listed", "try again")

    async def delete_packs(self, names: list[str]) -> None:
        """Delete packs. No committed snapshot may name them. Safe to retry. Raises LeaseLost."""
        for start in range(0, len(names), MAX_PENDING_DELETE):
            some = names[start : start + MAX_PENDING_DELETE]
            # Packs that an earlier holder marked stay marked: its deletions may still be under way.
            own = [name for name in some if not self.is_pending_delete(name)]
            if self._leader:
                await self._leader.mark_pending_delete(some)
            async with TaskPool(_READS_AT_ONCE) as pool:
                for name in some:
                    await pool.start(self._delete_pack, name)
            if self._leader:
                await self._leader.unmark_pending_delete(own)

    @property
    def corrupt_packs(self) -> frozenset[str]:
        """Names of packs that were found to be missing, or to have other bytes than their name says."""
        return frozenset(self._corrupt_packs)

    async def put_pack(self, name: str, data: bytes) -> None:
        """Store a pack. Replaces what has that name, so a corrupt pack is repaired. Safe to retry.

        Runs to its end when cancelled. Otherwise a pack could arrive after the clean-up and stay for good.
        """
        await shielded(self._store.put(f"{_DATA}{name}", data))
        self._corrupt_packs.discard(name)

    async def get_pack(self, pack: Pack) -> bytes:
        """Return a pack's bytes, verified. Raises CorruptSnapshot if they are missing or have another digest."""
        data = await self.get_unverified(pack)
        try:
            await asyncio.to_thread(check_pack, pack, data)
        except CorruptSnapshot:
            self._corrupt_packs.add(pack.sha256)
            raise
        return data

    async def get_unverified(self, pack: Pack) -> bytes:
        """Return a pack's bytes, for a caller that verifies their use. Raises CorruptSnapshot if they are missing."""
        try:
            # One byte more than the pack has. That shows a longer object without reading all of it.
            return await self._store.get_range(f"{_DATA}{pack.sha256}", 0, pack.size_bytes + 1)
        except ObjectMissing:
            self._corrupt_packs.add(pack.sha256)
            raise CorruptSnapshot(
                f"pack data/{pack.sha256} is missing in {self.url}",
                "restore another snapshot, see GET /admin/snapshot",
            ) from None

    async def verify_packs(self, packs: Iterable[Pack]) -> None:
        """Read all of `packs`. Raises CorruptSnapshot, which names one that is missing or corrupt."""

        async def verify(pack: Pack) -> None:
            await self.get_pack(pack)

        async with TaskPool(_READS_AT_ONCE) as pool:
            for pack in packs:
                await pool.start(verify, pack)

    async def _delete_pack(self, name: str) -> None:
        await self._store.delete(f"{_DATA}{name}")

    async def close(self) -> None:
        await self._store.close()


def check_pack(pack: Pack, data: bytes) -> None:
    """Raise CorruptSnapshot unless `data` has the size and the digest of `pack`."""
    if len(data) != pack.size_bytes or hashlib.sha256(data).hexdigest() != pack.sha256:
        raise CorruptSnapshot(
            f"pack data/{pack.sha256} is not what was stored: its bytes have another digest",
            "restore another snapshot, see GET /admin/snapshot",
        )
