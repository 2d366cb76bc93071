"""The manifests of a repository: listed, read, and remembered.

A list of many snapshots takes many requests, and so do their manifests. Therefore:

- A page of snapshots lists the end of the store's list alone, as far back as the page needs.
- A manifest is read once. `gateway.snapshot.history` keeps what is needed of it, and so does one object in the store,
  `summaries`. What it says of a manifest counts only while a list shows that manifest with the same size and tag.
- Manifests are read many at a time, within a bound on their bytes.

Whether a snapshot is committed is said by the lease, which is read after every list (`gateway.lease.state`).
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog
from pydantic import ValidationError

from gateway.aio import TaskPool
from gateway.errors import (
    InvalidRequest,
    NotFound,
    ObjectArchived,
    ObjectMissing,
    SnapshotError,
    StorageError,
    StorageUnavailable,
)
from gateway.lease.lease import read_lease_state
from gateway.lease.state import LeaseState
from gateway.snapshot.history import History, Summary, decode, encode
from gateway.snapshot.model import (
    Manifest,
    Snapshot,
    Verification,
    damaged,
    is_snapshot_id,
    moment_of,
)
from gateway.storage import ObjectInfo, Storage

log = structlog.get_logger()

SNAPSHOTS = "snapshots/"
MANIFEST = "manifest.json"
VERIFIED = "verified.json"
DATA = "data/"
SUMMARIES = "summaries"

READS_AT_ONCE = 32
# Bytes of manifests that are being read at once. A larger one is read alone.
_BYTES_AT_ONCE = 8 << 20
# Parsing these takes less than a millisecond, so it is not worth a thread.
_SMALL_BYTES = 32 << 10
# Bounds for untrusted JSON. A manifest takes about 200 bytes for 1 MiB of data.
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_VERIFIED_BYTES = 1 << 20
_MAX_SUMMARIES_BYTES = 64 << 20
# A page is shorter if its manifests have more than this: each snapshot in it names all of its collections.
_PAGE_BYTES = 8 << 20
# So many manifests, and one in 64, are read again after a restart rather than summarised at once.
_SAVED_AFTER = 32
_TAKEN_AT_ONCE = 256
# How far back a page is looked for: a store lists from the oldest to the newest, so the beginning is guessed.
_LOOK_BACK_H = (1, 8, 64, 512, 4096, 32768)
# S3 lists a thousand objects with one request. So many or fewer are listed whole.
_FEW = 1000
# Up to so many snapshots are counted anew whenever somebody asks.
_COUNTED_ANEW = 1000
_COUNT_TIMEOUT_S = 0.25


class Listing(NamedTuple):
    """A part of the list of snapshots, or all of it.

    `ids`: the committed ones, newest first. `manifests` and `verified`: the objects by id; a manifest that the list
    lacks and that was found by its name is None. `aborted`: ids whose manifests are in the store. `missing`: the
    snapshot that the lease says was published last, if it belongs here and is not in the store.
    """

    ids: list[str]
    manifests: dict[str, ObjectInfo | None]
    verified: dict[str, ObjectInfo]
    aborted: list[str]
    missing: str | None
    lease_state: LeaseState | None


class Page(NamedTuple):
    """Some snapshots, newest first. `next` is the last of them if there are more, else None."""

    snapshots: list[Snapshot]
    next: str | None


class AllRead(NamedTuple):
    """All snapshots, after every manifest was read once.

    `summaries`: by id; also of manifests that were read before they became unreadable. `unreadable`: why, by id.
    """

    listing: Listing
    summaries: dict[str, Summary]
    unreadable: dict[str, SnapshotError]

    def taken(self, snapshot_id: str) -> tuple[datetime, str | None]:
        """Return when a snapshot was taken, and its label; as far as its id tells if its manifest was never read."""
        summary = self.summaries.get(snapshot_id)
        return (summary.created_at, summary.label) if summary else (moment_of(snapshot_id), None)

    def named(self, without: Collection[str] = ()) -> set[bytes]:
        """Return the names, as 32 bytes each, of the packs that manifests name other than those of `without`."""
        kept = self.summaries.keys() - set(without)
        return {name for snapshot_id in kept for name in self.summaries[snapshot_id].packs}


class Manifests:
    """The manifests in `store`, which is this gateway's own prefix. Every method raises StorageError."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        self._history = History()
        self._is_loaded, self._summarising = False, asyncio.Lock()
        # By id: the version of the object and its bytes. A verification may be replaced.
        self._verified: dict[str, tuple[tuple[int, str], bytes | None]] = {}
        self._reading = _ByteLimit(_BYTES_AT_ONCE)
        self._saved = self._changed = 0
        self._has_many = False
        self._count: int | None = None
        self._missing_snapshot: str | None = None
        self._latest: str | None = None

    @property
    def url(self) -> str:
        return self._store.url

    # ------------------------------------------------------------------ ids

    async def ids(self) -> list[str]:
        """Return the ids of all committed snapshots, newest first."""
        return (await self._list()).ids

    async def newest_first(self, before: str | None = None) -> AsyncIterator[str]:
        """Yield the ids of the committed snapshots before `before`, newest first, and list no more than is asked for.

        Of many, a snapshot that is deleted meanwhile may be yielded.
        """
        count = 16
        while True:
            ids = (await self._newest(count, before)).ids
            for snapshot_id in ids:
                yield snapshot_id
            if len(ids) < count:
                return
            before, count = ids[-1], count * 4

    async def latest_id(self) -> str | None:
        """Return the id of the newest snapshot, None if the store never held one.

        Raises StorageUnavailable if a part of the store is missing: the snapshot that was published last, as the lease
        says, or the snapshots and the lease of the data that are there. Then what is there is not the latest.
        """
        found = await self._newest(1)
        if found.missing and found.missing > max(found.ids, default=""):
            raise StorageUnavailable(
                f"snapshot {found.missing}, which was published last, is missing in {self.url}",
                "complete the copy of the store; or name another snapshot, or 'none', in GATEWAY_RESTORE",
            )
        if not found.ids and found.lease_state is None and await self._has_data():
            raise StorageUnavailable(
                f"{self.url} has data, and neither a snapshot nor a lease",
                "complete the copy of the store; or set GATEWAY_RESTORE to 'none' to begin anew",
            )
        return found.ids[0] if found.ids else None

    async def newest_id(self) -> str | None:
        """Return the newest id that was ever used, also by an aborted snapshot. A new id must sort after it."""
        lease_state = await read_lease_state(self._store)
        known = {self._history.newest_id()}
        if lease_state is not None:
            known |= {lease_state.published, lease_state.announced, *lease_state.aborted}
        newest = _newest_of(each for each in known if each)
        # Only what sorts after it is listed.
        listed = [_parts(info)[0] async for info in self._store.list(SNAPSHOTS, _after(newest or ""))]
        return _newest_of(listed) or newest

    async def exists(self, snapshot_id: str) -> bool:
        """Return whether a committed snapshot has this id."""
        if not is_snapshot_id(snapshot_id) or not await self._is_stored(snapshot_id):
            return False
        lease_state = await read_lease_state(self._store)
        return lease_state is None or lease_state.is_committed(snapshot_id)

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

    async def count(self) -> int | None:
        """Return how many snapshots there are. Of more than a thousand: as of the last full list; None before one."""
        if self._count is None or self._count <= _COUNTED_ANEW:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_COUNT_TIMEOUT_S):
                    await self.ids()
        return self._count

    # ------------------------------------------------------------------ snapshots

    async def page(self, limit: int, before: str | None = None) -> Page:
        """Return at most `limit` snapshots that are older than `before`, newest first.

        One whose manifest cannot be read, or that needs a pack which is missing, has the state `damaged`. Raises
        InvalidRequest if `before` is no snapshot id.
        """
        if before is not None and not is_snapshot_id(before):
            raise InvalidRequest(f"{before!r} is no snapshot id", "use `next` of the previous page")
        listing = await self._newest(limit + 1, before)
        ids, size_bytes = list[str](), 0
        for snapshot_id in listing.ids[:limit]:
            size_bytes += _size(listing.manifests[snapshot_id])
            if ids and size_bytes > _PAGE_BYTES:
                break
            ids.append(snapshot_id)
        shown: dict[str, Snapshot] = {}

        async def show(snapshot_id: str) -> None:
            with contextlib.suppress(NotFound):  # It was deleted after the list was made.
                shown[snapshot_id] = await self._show(snapshot_id, listing)

        async with TaskPool(READS_AT_ONCE) as pool:
            for snapshot_id in ids:
                await pool.start(show, snapshot_id)
        is_last = len(ids) == len(listing.ids)
        return Page([shown[each] for each in ids if each in shown], None if is_last else ids[-1])

    async def snapshots(self) -> list[Snapshot]:
        """Return all snapshots, newest first, as `page` does. All of them are in memory then."""
        found, before = list[Snapshot](), None
        while True:
            page = await self.page(_COUNTED_ANEW, before)
            found += page.snapshots
            if (before := page.next) is None:
                return found

    async def _show(self, snapshot_id: str, listing: Listing) -> Snapshot:
        info = listing.manifests[snapshot_id]
        snapshot = self._history.shown(snapshot_id) if self._is_known(snapshot_id, info) else None
        if snapshot is None:
            try:
                snapshot = (await self._read(snapshot_id, info)).snapshot
            except SnapshotError as error:
                snapshot = damaged(snapshot_id, error.message)
        verification = None
        if (verified := listing.verified.get(snapshot_id)) is not None:
            verification = await self._verification(snapshot_id, verified)
        return self._as_known(snapshot, verification)

    def _as_known(self, snapshot: Snapshot, verification: Verification | None) -> Snapshot:
        update: dict[str, object] = {"verified": verification}
        if pack := self._history.broken.get(snapshot.id):
            update |= {"state": "damaged", "problem": f"pack {DATA}{pack} is missing"}
        return snapshot.model_copy(update=update)

    async def snapshot(self, snapshot_id: str) -> Snapshot:
        """Return one snapshot, as `page` does. Raises NotFound, CorruptSnapshot, IncompatibleSnapshot."""
        snapshot = (await self.manifest(snapshot_id)).snapshot
        return self._as_known(snapshot, await self._verification(snapshot_id, None))

    async def manifest(self, snapshot_id: str) -> Manifest:
        """Return a snapshot's manifest. Raises NotFound, CorruptSnapshot, IncompatibleSnapshot, SnapshotError."""
        return await self._read(snapshot_id, None)

    async def _read(self, snapshot_id: str, info: ObjectInfo | None) -> Manifest:
        async with self._reading.hold(_size(info)):
            try:
                data = await self._store.get_range(key_of(snapshot_id), 0, _MAX_MANIFEST_BYTES)
            except ObjectMissing:
                self._history.forget(snapshot_id)
                raise NotFound(f"there is no snapshot {snapshot_id}", "GET /admin/snapshot lists them") from None
            except ObjectArchived as error:
                raise SnapshotError(
                    f"the manifest of snapshot {snapshot_id} cannot be read: {error.message}", error.hint
                ) from error
            if len(data) <= _SMALL_BYTES:
                manifest = Manifest.parse(data, snapshot_id)
            else:
                manifest = await asyncio.to_thread(Manifest.parse, data, snapshot_id)
        self._history.add(manifest, _version(info))
        self._changed += 1
        return manifest

    # ------------------------------------------------------------------ all of them

    async def read_all(
        self, *, at_once: int = READS_AT_ONCE, pause_s: float = 0, at_most: int | None = None
    ) -> AllRead:
        """List all snapshots, and read every manifest that is not known yet, `at_once` at a time.

        After each one it waits for `pause_s`, so that it does not take all of the processor. With `at_most`, raises
        SnapshotError and reads nothing if there are more than that to read, or many snapshots.
        """
        await self._load_summaries()
        try:
            if at_most is not None and self._has_many:
                raise _TooMany
            listing = await self._list(at_most=None if at_most is None else _FEW)
        except _TooMany:
            self._has_many = True
            raise SnapshotError("there are too many snapshots to list all of them", "see POST /admin/gc") from None
        self._history.keep_only(listing.ids)
        unreadable, gone, ended = dict[str, SnapshotError](), set[str](), set[str]()

        def is_done(snapshot_id: str) -> bool:
            if snapshot_id in ended:
                # Another operation may have made this forget it since.
                return snapshot_id in self._history or snapshot_id in gone or snapshot_id in unreadable
            return self._is_known(snapshot_id, listing.manifests[snapshot_id])

        async def read(snapshot_id: str) -> None:
            if not is_done(snapshot_id):  # else another operation was quicker
                try:
                    await self._read(snapshot_id, listing.manifests[snapshot_id])
                except NotFound:  # It was deleted after the list was made, so it names nothing.
                    gone.add(snapshot_id)
                except SnapshotError as error:
                    unreadable[snapshot_id] = error
                await asyncio.sleep(pause_s)
            ended.add(snapshot_id)

        while to_read := [each for each in listing.ids if not is_done(each)]:
            if at_most is not None and len(to_read) > at_most:
                raise SnapshotError(f"{len(to_read)} manifests were not read yet", "POST /admin/gc reads them")
            async with TaskPool(at_once) as pool:
                for snapshot_id in to_read:
                    await pool.start(read, snapshot_id)
        # Taken at once: what is kept may change with the next await.
        summaries = {each: self._history[each] for each in listing.ids if each in self._history}
        await self.save_summaries()
        return AllRead(listing._replace(ids=[each for each in listing.ids if each not in gone]), summaries, unreadable)

    async def _load_summaries(self) -> None:
        """Take over what an earlier process read. The next list shows which of it still holds."""
        async with self._summarising:
            if self._is_loaded:
                return
            summaries: dict[str, Summary] = {}
            with contextlib.suppress(ObjectMissing, ObjectArchived, ValueError):
                data = await self._store.get_range(SUMMARIES, 0, _MAX_SUMMARIES_BYTES)
                summaries = await asyncio.to_thread(decode, data)
            for number, (snapshot_id, summary) in enumerate(summaries.items()):
                if snapshot_id not in self._history:
                    self._history.put(snapshot_id, summary)
                if number % _TAKEN_AT_ONCE == 0:  # all of them take a tenth of a second
                    await asyncio.sleep(0)
            self._is_loaded, self._saved = True, len(summaries)

    async def save_summaries(self) -> None:
        """Store what was read, once that is much more, or much less, than the object in the store has.

        Gateways may overwrite each other's: each of them is right about every manifest that it names.
        """
        async with self._summarising:
            if not self._may_save_summaries or self._changed < _SAVED_AFTER + self._saved // 64:
                return
            summaries = dict(self._history.summaries)
            try:
                await self._store.put(SUMMARIES, await asyncio.to_thread(encode, summaries))
            except StorageError as error:
                log.warning("what was read of the manifests cannot be saved", cause=error.message)
            self._saved, self._changed = len(summaries), 0

    @property
    def _may_save_summaries(self) -> bool:
        return False

    async def newest_verified(self) -> tuple[str, Verification] | None:
        """Return the newest snapshot that was verified, and with what result; None if none of the newest 1,000 was."""
        listing = await self._newest(_COUNTED_ANEW)
        for snapshot_id in listing.ids:
            if (info := listing.verified.get(snapshot_id)) is not None and (
                verification := await self._verification(snapshot_id, info)
            ) is not None:
                return snapshot_id, verification
        return None

    async def failed_verifications(self, listing: Listing) -> set[str]:
        """Return those snapshots of `listing` whose latest verification failed."""
        failed = set[str]()

        async def read(snapshot_id: str, info: ObjectInfo) -> None:
            verification = await self._verification(snapshot_id, info)
            if verification is not None and not verification.ok:
                failed.add(snapshot_id)

        async with TaskPool(READS_AT_ONCE) as pool:
            for snapshot_id in listing.ids:
                if (info := listing.verified.get(snapshot_id)) is not None:
                    await pool.start(read, snapshot_id, info)
        return failed

    async def _verification(self, snapshot_id: str, info: ObjectInfo | None) -> Verification | None:
        """Return the stored verification, None if there is none. `info` is its object, so that it is read only once."""
        known = self._verified.get(snapshot_id)
        if info and known and known[0] == _version(info):
            return Verification.model_validate_json(known[1]) if known[1] else None
        try:
            data = await self._store.get_range(f"{SNAPSHOTS}{snapshot_id}/{VERIFIED}", 0, _MAX_VERIFIED_BYTES)
            verification = Verification.model_validate_json(data)
        except (ObjectMissing, ObjectArchived, ValidationError):
            verification = None
        if version := _version(info):
            self._verified[snapshot_id] = version, verification.model_dump_json().encode() if verification else None
        return verification

    # ------------------------------------------------------------------ lists

    async def _newest(self, count: int, before: str | None = None) -> Listing:
        """List the newest `count` committed snapshots before `before`."""
        if not self._has_many:
            try:
                listing = await self._list(end=before, at_most=_FEW)
            except _TooMany:
                self._has_many = True
            else:
                return listing._replace(ids=listing.ids[:count])
        found, end = None, before
        for start in self._starts(count, before, await self._last_known() if before is None else before):
            part = await self._list(start, end)
            found = part if found is None else _joined(found, part)
            if len(found.ids) >= count:
                break
            end = start
        assert found
        return found._replace(ids=found.ids[:count])

    async def _last_known(self) -> str | None:
        """The newest id that is known without a list."""
        if (known := self._history.newest_id()) is not None:
            return known
        lease_state = await read_lease_state(self._store)
        return lease_state.published if lease_state else None

    def _starts(self, count: int, before: str | None, known: str | None) -> Iterator[str]:
        """Where to begin a list that is to have `count` ids before `before`: one try after the other."""
        last = before or "~"
        if (start := self._history.id_before(before, count)) is not None:
            yield (last := start)
        moment = moment_of(known) if known and is_snapshot_id(known) else datetime.now(UTC)
        for hours in _LOOK_BACK_H:
            if moment.year < 2000:  # no snapshot is as old as that, and dates end in the year 1
                break
            if (start := f"{moment - timedelta(hours=hours):%Y%m%dT%H%M%SZ}") < last:
                yield (last := start)
        yield ""

    async def _list(self, start: str = "", end: str | None = None, *, at_most: int | None = None) -> Listing:
        """List the snapshots from `start` to before `end`, all of them without these.

        Raises _TooMany once `at_most` objects were listed.
        """
        manifests: dict[str, ObjectInfo | None] = {}
        verified: dict[str, ObjectInfo] = {}
        count = 0
        async with contextlib.aclosing(self._listed(start)) as listed:
            async for info in listed:
                snapshot_id, name = _parts(info)
                if end is not None and snapshot_id >= end:
                    break
                count += 1
                if count == at_most:
                    raise _TooMany
                if is_snapshot_id(snapshot_id):
                    if name == MANIFEST:
                        manifests[snapshot_id] = info
                    elif name == VERIFIED:
                        verified[snapshot_id] = info
        is_full = not start and end is None
        if is_full:
            # A list may lag. What was known is only gone if it is not found by its name either.
            await self._find_by_name(self._history.ids() - manifests.keys(), manifests)
        lease_state = await read_lease_state(self._store)  # after the list, never before: see `gateway.lease.state`
        missing = lease_state.expected if lease_state else None
        if missing and start <= missing and (end is None or missing < end):
            if missing not in manifests:
                await self._find_by_name([missing], manifests)
            missing = None if missing in manifests else missing
        else:
            missing = None
        aborted = manifests.keys() & set(lease_state.aborted if lease_state else ())
        announced = lease_state.announced if lease_state else None
        committed = sorted((each for each in manifests.keys() - aborted if each != announced), reverse=True)
        if end is None and committed:
            self._latest = committed[0]
        if is_full:
            self._count, self._missing_snapshot, self._has_many = len(committed), missing, count >= _FEW
            self._verified = {each: known for each, known in self._verified.items() if each in verified}
        return Listing(committed, manifests, verified, sorted(aborted), missing, lease_state)

    async def _listed(self, start: str) -> AsyncGenerator[ObjectInfo, None]:
        async for info in self._store.list(SNAPSHOTS, _after(start)):
            yield info

    async def _find_by_name(self, snapshot_ids: Collection[str], found: dict[str, ObjectInfo | None]) -> None:
        """Add those of `snapshot_ids` to `found` whose manifests are in the store. Forget the others."""

        async def look(snapshot_id: str) -> None:
            if await self._is_stored(snapshot_id):
                found[snapshot_id] = None
            else:
                self._history.forget(snapshot_id)

        async with TaskPool(READS_AT_ONCE) as pool:
            for snapshot_id in snapshot_ids:
                await pool.start(look, snapshot_id)

    async def _is_stored(self, snapshot_id: str) -> bool:
        return await self._is_object(key_of(snapshot_id))

    async def _is_object(self, key: str) -> bool:
        """Return whether there is such an object, also one that is archived."""
        try:
            await self._store.get_range(key, 0, 1)
        except ObjectMissing:
            return False
        except ObjectArchived:
            return True
        return True

    async def _has_data(self) -> bool:
        async with contextlib.aclosing(self._packs()) as packs:
            async for _ in packs:
                return True
        return False

    async def _packs(self) -> AsyncGenerator[ObjectInfo, None]:
        async for info in self._store.list(DATA):
            yield info

    def _is_known(self, snapshot_id: str, info: ObjectInfo | None) -> bool:
        version = _version(info)
        return snapshot_id in self._history if version is None else self._history.is_current(snapshot_id, version)


class _TooMany(Exception):
    """There are more objects than were to be listed."""


class _ByteLimit:
    """Lets work in while all of it together has at most so many bytes. Work that has more comes in alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._released = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def hold(self, size_bytes: int) -> AsyncIterator[None]:
        size_bytes = min(size_bytes, self._limit_bytes)
        async with self._released:
            await self._released.wait_for(lambda: self._held_bytes + size_bytes <= self._limit_bytes)
            self._held_bytes += size_bytes
        try:
            yield
        finally:
            self._held_bytes -= size_bytes
            async with self._released:
                self._released.notify_all()


def key_of(snapshot_id: str) -> str:
    """The key of a snapshot's manifest."""
    return f"{SNAPSHOTS}{snapshot_id}/{MANIFEST}"


def _after(start: str) -> str:
    return SNAPSHOTS + start if start else ""


def _parts(info: ObjectInfo) -> tuple[str, str]:
    """The folder below `snapshots/`, and the name in it."""
    folder, _, name = info.key.removeprefix(SNAPSHOTS).partition("/")
    return folder, name


def _version(info: ObjectInfo | None) -> tuple[int, str] | None:
    return (info.size_bytes, info.tag) if info else None


def _size(info: ObjectInfo | None) -> int:
    return info.size_bytes if info else 0


def _newest_of(names: Iterable[str]) -> str | None:
    return next(filter(is_snapshot_id, sorted(names, reverse=True)), None)


def _joined(newer: Listing, older: Listing) -> Listing:
    return Listing(
        newer.ids + older.ids,
        newer.manifests | older.manifests,
        newer.verified | older.verified,
        newer.aborted + older.aborted,
        newer.missing or older.missing,
        older.lease_state,
    )
