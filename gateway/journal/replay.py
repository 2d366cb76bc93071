"""Find what a moment is restored from, and write the journal's pages over the database of a fetched snapshot."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Series
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from gateway.aio import run_in_thread_uninterrupted
from gateway.chroma.disk import DATABASE
from gateway.errors import CorruptSnapshot, NotFound, NothingToRestore, ObjectMissing
from gateway.files import sync_file, write_error
from gateway.journal.entry import Entry, Head, Kind, NewestPages, digest_of
from gateway.journal.plan import chain, not_covered
from gateway.journal.sequence import Listed, Sequence
from gateway.snapshot.blocks import Fingerprints, page_digests
from gateway.snapshot.fetch import Replay
from gateway.snapshot.model import Manifest
from gateway.snapshot.repository import Repository

_FETCHES_AT_ONCE = 8


@dataclass(frozen=True)
class RestorePoint:
    """One state in the history: a snapshot, and the entries to be replayed over it, oldest first.

    `at`: the moment of the newest of them. `head`: that of the newest entry, None without entries.
    """

    manifest: Manifest
    at: datetime
    entries: list[Listed] = field(default_factory=list)
    head: Head | None = None

    @property
    def journal_bytes(self) -> int:
        return sum(each.size_bytes for each in self.entries)


async def find_point(sequence: Sequence, repository: Repository, at: datetime | None) -> RestorePoint | None:
    """Return the newest state at the moment `at`, or the newest one of all; None if there never was one.

    Raises NothingToRestore if history does not reach back to `at`, CorruptSnapshot if something of it is missing,
    StorageError. Safe to retry.
    """
    for is_last in (False, True):
        try:
            return await _find_point(sequence, repository, at)
        except CorruptSnapshot:
            if is_last:  # else entries may have been merged meanwhile
                raise
    raise AssertionError("the last attempt returns or raises")


async def _find_point(sequence: Sequence, repository: Repository, at: datetime | None) -> RestorePoint | None:
    line = Line(sequence, not_covered(await sequence.entries()))
    target = await line.newest_at(at)
    if target is None:
        return await _snapshot_alone(repository, at)
    base = await _newest_base(repository, target, at)
    if base is None:
        return await _snapshot_alone(repository, at)
    journal = base.journal
    if journal is None:
        return RestorePoint(base, base.snapshot.created_at)
    # Marks change nothing, so what comes after the newest cut is not needed.
    entries, missing = chain(line.listed, max(journal, target.run - 1), target.cut)
    if missing is not None:
        raise CorruptSnapshot(
            f"entry {missing} of the journal is missing in {sequence.url}, so history cannot be followed to"
            f" {target.at.isoformat()}",
            await _way_out(sequence, entries, base),
        )
    if not entries:
        return RestorePoint(base, base.snapshot.created_at)
    return RestorePoint(base, target.at, entries, target)


class Line:
    """The entries `listed`, oldest first. Their heads are read as they are needed, and may be damaged."""

    def __init__(self, sequence: Sequence, listed: list[Listed]) -> None:
        self._sequence, self.listed = sequence, listed
        self._heads: dict[int, Head | CorruptSnapshot] = {}

    async def newest_at(self, at: datetime | None) -> Head | None:
        """Return the head of the newest entry at `at`, or of all; None if there is none that old.

        Moments grow with the numbers, so a few heads are read. Raises CorruptSnapshot if the entry of that moment is
        missing or damaged: the one before it is of an older state.
        """
        found, low, high = None, 0, len(self.listed) - 1
        while low <= high:
            middle = high if at is None else (low + high) // 2
            index = await self._readable(middle, low)
            if index is None:
                low = middle + 1
            elif at is None or self._head(index).at <= at:
                found, low = index, middle + 1
            else:
                high = index - 1
        if found is None:
            if isinstance(first := self._heads.get(0), CorruptSnapshot):
                raise CorruptSnapshot(first.message, "restore a snapshot, see GET /admin/snapshot")
            return None
        head = self._head(found)
        if at != head.at and found + 1 < len(self.listed):
            self._require_next(found, head)
        return head

    async def _readable(self, index: int, least: int) -> int | None:
        """The newest entry from `least` to `index` whose head can be read."""
        while index >= least:
            if index not in self._heads:
                self._heads[index] = await _head_or_error(self._sequence, self.listed[index])
            if isinstance(self._heads[index], Head):
                return index
            index -= 1
        return None

    def _head(self, index: int) -> Head:
        head = self._heads[index]
        assert isinstance(head, Head)
        return head

    def _require_next(self, index: int, head: Head) -> None:
        """Raise CorruptSnapshot if the entry after `index`, whose head is given, is damaged or missing."""
        way_out, after = _way_out_to(head.at), self._heads.get(index + 1)
        if isinstance(after, CorruptSnapshot):
            raise CorruptSnapshot(after.message, way_out)
        # Of what history dropped only seals are left: there, snapshots are all that can be restored.
        if head.kind is not Kind.SEAL and self.listed[index + 1].first > head.number + 1:
            raise CorruptSnapshot(
                f"entry {head.number + 1} of the journal is missing in {self._sequence.url}, so the state of that"
                " moment is not known",
                way_out,
            )


async def _head_or_error(sequence: Sequence, listed: Listed) -> Head | CorruptSnapshot:
    try:
        return await sequence.head(listed.key)
    except ObjectMissing:
        return CorruptSnapshot(f"{sequence.url}{listed.key} is missing")
    except CorruptSnapshot as error:
        return error


async def _newest_base(repository: Repository, target: Head, at: datetime | None) -> Manifest | None:
    """The newest snapshot from which `target` can be reached, or which is newer than the journal."""
    async for snapshot_id in repository.newest_first():
        manifest = await _manifest(repository, snapshot_id)
        if manifest is None:
            continue
        journal = manifest.journal
        # Numbers tell what came first. Clocks are asked only where a snapshot has the number of the target.
        if at is not None and manifest.snapshot.created_at > at and (journal is None or journal >= target.cut):
            continue
        if journal is None:
            # Of a gateway that knew no journal. An upload was never served: a crash before the next checkpoint must not
            # bring it back in place of what was acknowledged.
            if manifest.snapshot.created_at > target.at and not manifest.is_upload:
                return manifest
            continue
        if target.run <= journal <= target.number or (not target.run and journal <= target.number):
            return manifest
        if journal < target.run:
            break
    if not target.run:
        return None
    manifest = await _manifest(repository, target.snapshot)
    if manifest is None:
        raise CorruptSnapshot(
            f"snapshot {target.snapshot}, over which the journal was written, is missing in {repository.url}",
            "bring it back; or restore another snapshot, see GET /admin/snapshot",
        )
    # Its own number lies in the past of another run.
    return manifest.model_copy(update={"journal": target.run - 1})


async def _manifest(repository: Repository, snapshot_id: str) -> Manifest | None:
    try:
        return await repository.manifest(snapshot_id)
    except NotFound:
        return None


async def _snapshot_alone(repository: Repository, at: datetime | None) -> RestorePoint | None:
    if at is None:
        latest = await repository.latest_id()
        if latest is None:
            return None
        manifest = await repository.manifest(latest)
        return RestorePoint(manifest, manifest.snapshot.created_at)
    async for snapshot_id in repository.newest_first():
        manifest = await repository.manifest(snapshot_id)
        if manifest.snapshot.created_at <= at:
            return RestorePoint(manifest, manifest.snapshot.created_at)
    raise NothingToRestore(
        f"{repository.url} has nothing as old as {at.isoformat()}", "GET /admin/history says how far back it goes"
    )


async def _way_out(sequence: Sequence, entries: Series[Listed], base: Manifest) -> str:
    """How far `entries`, which are written over the snapshot `base`, lead."""
    for each in reversed(entries):
        if isinstance(head := await _head_or_error(sequence, each), Head):
            return _way_out_to(head.at)
    return _way_out_to(base.snapshot.created_at)


def _way_out_to(at: datetime) -> str:
    return f"restore to {at.isoformat()}, which is as far as it goes"


# ---------------------------------------------------------------------- writing the pages


def replay_of(sequence: Sequence, point: RestorePoint) -> Replay | None:
    """What leads the database of the point's snapshot to the point; None if nothing has to."""
    return (lambda target, pages: replay(sequence, point, target, pages)) if point.entries else None


async def replay(sequence: Sequence, point: RestorePoint, target: Path, pages: Fingerprints) -> None:
    """Make the database in `target`, which is that of the point's snapshot, the one of the point. It is durable then.

    `pages`: the digests of its pages. Raises CorruptSnapshot, which says how far a restore can come, StorageError,
    DiskFull; then the database is neither of the two.
    """
    if point.head is None:
        return
    try:
        await _replay(sequence, point, point.head, target, pages)
    except CorruptSnapshot:
        # Entries may have been merged since they were listed. Then all are written again, over what was written.
        now = await _listed_anew(sequence, point)
        if now.entries == point.entries:
            raise
        await _replay(sequence, now, point.head, target, pages)


async def _listed_anew(sequence: Sequence, point: RestorePoint) -> RestorePoint:
    """The point with the entries that lead to it now; as it is if none do."""
    entries, missing = chain(not_covered(await sequence.entries()), point.entries[0].first - 1, point.entries[-1].last)
    return point if missing is not None else replace(point, entries=entries)


async def _replay(sequence: Sequence, point: RestorePoint, head: Head, target: Path, pages: Fingerprints) -> None:
    database = await run_in_thread_uninterrupted(_Database, target / DATABASE, pages, head)
    try:
        newer: Entry | None = None
        async with contextlib.aclosing(_newest_first(sequence, point.entries)) as reading:
            async for listed, entry in reading:
                try:
                    newer = await _write(database, listed, await entry, newer)
                except CorruptSnapshot as error:
                    before = point.entries[: point.entries.index(listed)]
                    raise CorruptSnapshot(error.message, await _way_out(sequence, before, point.manifest)) from error
        await run_in_thread_uninterrupted(database.finish)
    finally:
        await asyncio.to_thread(database.close)


async def _write(database: "_Database", listed: Listed, entry: Entry, newer: Entry | None) -> Entry:
    _check_order(listed, entry, newer)
    await run_in_thread_uninterrupted(database.write, entry)
    return entry


async def _newest_first(
    sequence: Sequence, entries: Series[Listed]
) -> AsyncGenerator[tuple[Listed, asyncio.Task[Entry]], None]:
    """Fetch entries from the newest to the oldest, a few ahead."""
    waiting = [*entries]
    reading: list[tuple[Listed, asyncio.Task[Entry]]] = []
    try:
        while waiting or reading:
            while waiting and len(reading) < _FETCHES_AT_ONCE:
                listed = waiting.pop()
                reading.append((listed, asyncio.create_task(sequence.read(listed.key))))
            yield reading[0]
            del reading[0]
    finally:
        for _, task in reading:
            task.cancel()
        await asyncio.gather(*(task for _, task in reading), return_exceptions=True)


def _check_order(listed: Listed, entry: Entry, newer: Entry | None) -> None:
    head = entry.head
    if (head.first, head.number) != (listed.first, listed.last):
        raise CorruptSnapshot(f"{listed.key} holds the entries {head.first} to {head.number}")
    if newer is not None and newer.head.first == head.number + 1 and newer.head.previous != entry.chain:
        raise CorruptSnapshot(
            f"{listed.key} is not what entry {newer.head.first} was written after: one of the two is foreign"
        )
    if newer is not None and newer.head.epoch < head.epoch:
        raise CorruptSnapshot(f"{listed.key} is of a later epoch than the entry after it")


class _Database:
    """The file, into which pages are written from the newest entry to the oldest. Blocks."""

    def __init__(self, path: Path, pages: Fingerprints, head: Head) -> None:
        self._path, self._head = path, head
        self._digests = np.zeros((head.pages, 2), np.uint64)
        common = min(len(pages), head.pages)
        self._digests[:common] = pages[:common]
        self._newest = NewestPages(head.pages)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, entry: Entry) -> None:
        if entry.head.kind is not Kind.PAGES:
            return
        size = self._head.page_bytes
        if entry.head.page_bytes != size:
            raise CorruptSnapshot(f"entry {entry.head.number} of the journal has pages of another size")
        numbers, pages = self._newest.of(entry)
        self._digests[numbers - 1] = page_digests(pages, size)
        try:
            for index, number in enumerate(numbers.tolist()):
                page, offset = pages[index * size : (index + 1) * size], (number - 1) * size
                while page:  # a disk that is nearly full writes less than it was given
                    done = os.pwrite(self._descriptor, page, offset)
                    page, offset = page[done:], offset + done
        except OSError as error:
            raise write_error(f"writing {self._path} failed", error) from error

    def finish(self) -> None:
        head = self._head
        if digest_of(self._digests) != head.database:
            raise CorruptSnapshot(
                f"the database is not what it was at {head.at.isoformat()}: pages of it are missing in the journal",
                f"restore to a moment before {head.at.isoformat()}",
            )
        try:
            os.ftruncate(self._descriptor, head.pages * head.page_bytes)
            with os.fdopen(os.dup(self._descriptor), "r+b", 0) as file:
                sync_file(file)
        except OSError as error:
            raise write_error(f"writing {self._path} failed", error) from error

    def close(self) -> None:
        os.close(self._descriptor)
