"""One gateway's repository in the store: its format, its packs, and what is published and deleted.

docs/format.md describes the objects. `gateway.lease.state` says when a snapshot is committed, and why a gateway that
lost the lease can neither publish nor delete.
"""

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from gateway.aio import TaskPool, shielded
from gateway.errors import CorruptSnapshot, ObjectMissing, SnapshotError, StorageUnavailable
from gateway.lease.election import LeaderElection
from gateway.lease.state import MAX_PENDING_DELETE
from gateway.snapshot.manifests import DATA, READS_AT_ONCE, SNAPSHOTS, VERIFIED, AllRead, Manifests, key_of
from gateway.snapshot.model import FORMAT, Manifest, Pack, Verification, check_format
from gateway.storage import ObjectInfo, Storage

log = structlog.get_logger()

_REPOSITORY = "repository.json"
_CLOCK = "gc.clock"
_PACK = re.compile(r"[0-9a-f]{64}")
_READS_AT_ONCE = 8
_DELETED_AT_ONCE = 500
_MAX_REPOSITORY_BYTES = 64 << 10
# A deletion reads at most so many manifests to find out which packs it may delete too.
_MOST_READ_TO_DELETE = 256


class Repository(Manifests):
    """The snapshots in `store`, which is this gateway's own prefix. Every method raises StorageError.

    `leader` guards what is published and deleted. Without it, the repository is for reading, or for a store that has
    no other writer.
    """

    def __init__(self, store: Storage, leader: LeaderElection | None = None) -> None:
        super().__init__(store)
        self._leader = leader
        self._corrupt_packs: set[str] = set()
        self.unreadable: dict[str, str] = {}
        """Why, by id, for the snapshots whose manifests could not be read when all were read last."""

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

    @property
    def _may_save_summaries(self) -> bool:
        return self._leader is not None and self._leader.epoch is not None

    # ------------------------------------------------------------------ snapshots

    async def save_verification(self, snapshot_id: str, verification: Verification) -> None:
        """Store a verification's result beside the manifest. It replaces an earlier result."""
        await self._store.put(f"{SNAPSHOTS}{snapshot_id}/{VERIFIED}", verification.model_dump_json().encode())

    async def publish(self, manifest: Manifest) -> None:
        """Write the manifest. From then on the snapshot exists.

        Raises LeaseLost: the snapshot will never be committed. After StorageUnavailable the snapshot may exist or not,
        since the answer may be lost. If it exists, it is whole.
        """
        data = await asyncio.to_thread(manifest.to_bytes)
        async with self._leader.publishing(manifest.snapshot.id) if self._leader else nullcontext():
            await self._store.put(key_of(manifest.snapshot.id), data)
        self._history.add(manifest, (len(data), ""))
        self._changed, self._latest = self._changed + 1, manifest.snapshot.id
        if self._count is not None:
            self._count += 1

    async def delete(self, snapshot_id: str) -> None:
        """Delete a snapshot: first its manifest, then the packs that no other snapshot names.

        Raises NotFound, LeaseLost. Safe to retry after an error: what it leaves behind is garbage that no snapshot
        names. Packs are left to the garbage collection while another manifest cannot be read, since it might name them,
        and where it would take long to find out which packs those are: see `delete_unreferenced`.
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

        Raises SnapshotError and deletes nothing while a manifest cannot be read, since it might name them. So it does
        if there are more than a thousand snapshots, or so many manifests that were not read yet: that would take long.
        """
        if names := [name for name in names if not self._history.names(name)]:
            if self._leader:
                # Abort a snapshot that is still announced. Otherwise it could be committed after its packs are gone.
                await self._leader.abort_announced()
            read = await self.read_all(at_most=_MOST_READ_TO_DELETE)
            for error in read.unreadable.values():
                raise error
            named = await asyncio.to_thread(read.named)
            await self.delete_packs([name for name in names if bytes.fromhex(name) not in named])

    async def delete_manifest(self, snapshot_id: str) -> None:
        """Delete a snapshot's manifest and its verification. A garbage collection finds its packs."""
        await self.delete_manifests([snapshot_id], {snapshot_id})

    async def delete_manifests(self, snapshot_ids: Sequence[str], verified: Collection[str]) -> None:
        """Delete the manifests of snapshots, about in this order, and the verifications of those that are `verified`.

        Raises LeaseLost. Safe to retry.
        """
        for start in range(0, len(snapshot_ids), _DELETED_AT_ONCE):
            some = snapshot_ids[start : start + _DELETED_AT_ONCE]
            if self._leader:
                for snapshot_id in some:
                    await self._leader.note_deletion(snapshot_id)
            await self._store.delete_all([key_of(each) for each in some])
            await self._store.delete_all([f"{SNAPSHOTS}{each}/{VERIFIED}" for each in some if each in verified])
            for snapshot_id in some:
                if self._count is not None and (snapshot_id in self._history or snapshot_id in self.unreadable):
                    self._count -= 1
                self._changed += snapshot_id in self._history
                self._history.forget(snapshot_id)
                self.unreadable.pop(snapshot_id, None)

    # ------------------------------------------------------------------ packs

    async def packs(self) -> dict[str, int]:
        """Return the size in bytes, by name, of every pack that a new snapshot may name.

        Leaves out packs that were found to be corrupt, and packs that are pending delete.
        """
        corrupt = self.corrupt_packs
        return {
            info.key: info.size_bytes
            async for info in self.pack_objects()
            if info.key not in corrupt and not self.is_pending_delete(info.key)
        }

    def is_pending_delete(self, name: str) -> bool:
        """Return whether a deletion of this pack may be under way. A new snapshot must not name such a pack."""
        return self._leader is not None and name in self._leader.pending_delete

    async def pack_objects(self) -> AsyncIterator[ObjectInfo]:
        """Yield every pack in the store with its size and age. `key` is the pack's name."""
        async for info in self._store.list(DATA):
            name = info.key.removeprefix(DATA)
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
            await self._store.delete_all([f"{DATA}{name}" for name in some])
            if self._leader:
                await self._leader.unmark_pending_delete(own)

    # ------------------------------------------------------------------ damage

    async def look_for_damage(
        self, packs: Collection[str], *, at_once: int = READS_AT_ONCE, pause_s: float = 0
    ) -> AllRead:
        """Read all manifests, and compare what they name with `packs`, a list of the store's that was made before.

        `damage` tells afterwards what was found. `at_once` and `pause_s` are those of `read_all`. Safe to retry.
        """
        read = await self.read_all(at_once=at_once, pause_s=pause_s)
        self.unreadable = {snapshot_id: error.message for snapshot_id, error in read.unreadable.items()}
        await self.find_missing_packs(packs)
        for problem in self.damage:
            log.warning("the store is damaged", problem=problem)
        return read

    @property
    def damage(self) -> list[str]:
        """What `look_for_damage` found last, in sentences for an operator. Empty if that was nothing."""
        found = []
        if self._missing_snapshot:
            found.append(f"snapshot {self._missing_snapshot}, which was published last, is missing in the store")
        if self.unreadable:
            snapshot_id, why = max(self.unreadable.items())
            found.append(
                f"{len(self.unreadable)} snapshot(s) cannot be read, among them {snapshot_id} ({why}): packs that they"
                " may name are kept; put their manifests back, or delete them"
            )
        if broken := self.broken:
            snapshot_id, pack = next(iter(broken.items()))
            latest = "the latest one too" if self.is_latest_broken else "not the latest one"
            found.append(
                f"{len(broken)} snapshot(s) need packs that are missing in the store, {latest}: {snapshot_id} needs"
                f" data/{pack}; bring these objects back, and look for what deletes them, such as a lifecycle rule"
            )
        return found

    @property
    def is_latest_broken(self) -> bool:
        """Whether the newest snapshot was found to need a pack that is missing, or to have an unreadable manifest."""
        return self._latest in self.broken or self._latest in self.unreadable

    async def find_missing_packs(self, present: Collection[str]) -> dict[str, str]:
        """Return the snapshots that need a pack which is missing, newest first, each with one such pack.

        `present`: the packs of a list. What it lacks is looked for by its name, since a list may lag. The next snapshot
        stores what it needs of these packs again. All manifests must have been read. Safe to retry.
        """
        known, missing = set(self._history.missing), set[str]()

        async def look(name: str) -> None:
            if not await self._is_object(f"{DATA}{name}"):
                missing.add(name)

        async with TaskPool(_READS_AT_ONCE) as pool:
            for name in self._history.named_but_not_in(present):
                if name in known:
                    missing.add(name)
                else:
                    await pool.start(look, name)
        self._history.set_missing(missing)
        return self.broken

    @property
    def broken(self) -> dict[str, str]:
        """The snapshots that were found to need a pack which is missing, newest first, each with one such pack."""
        return self._history.broken

    @property
    def missing_packs(self) -> Collection[str]:
        """Names of the packs that a snapshot needs and that were found to be missing."""
        return self._history.missing

    @property
    def corrupt_packs(self) -> frozenset[str]:
        """Names of packs that were found to be missing, or to have other bytes than their name says."""
        return frozenset(self._corrupt_packs.union(self._history.missing))

    # ------------------------------------------------------------------ a pack

    async def put_pack(self, name: str, data: bytes) -> None:
        """Store a pack. Replaces what has that name, so a corrupt pack is repaired. Safe to retry.

        Runs to its end when cancelled. Otherwise a pack could arrive after the clean-up and stay for good.
        """
        await shielded(self._store.put(f"{DATA}{name}", data))
        self._corrupt_packs.discard(name)
        self._history.found(name)

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
            return await self._store.get_range(f"{DATA}{pack.sha256}", 0, pack.size_bytes + 1)
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

    async def close(self) -> None:
        await self._store.close()


def check_pack(pack: Pack, data: bytes) -> None:
    """Raise CorruptSnapshot unless `data` has the size and the digest of `pack`."""
    if len(data) != pack.size_bytes or hashlib.sha256(data).hexdigest() != pack.sha256:
        raise CorruptSnapshot(
            f"pack data/{pack.sha256} is not what was stored: its bytes have another digest",
            "restore another snapshot, see GET /admin/snapshot",
        )
