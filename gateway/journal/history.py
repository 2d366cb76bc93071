"""History: which moments can be restored, and what happened in between.

A list of the store tells the numbers, and so the gaps. The rest is in the heads of entries, one request each. Few of
them are read: epoch, run and moment only grow with the numbers, so a change is found by halving. What was read is
remembered by its key, since an entry never changes.

Terms:

- *window*: from the oldest moment from which the journal goes on without a gap, to the newest. Any moment in it can be
  restored, at the resolution of its age.
- *mark*: an entry at which the line changes: a *seal* of a gateway that took the lease, a *restore*, or the first entry
  of another *run*.
"""

import asyncio
import bisect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, TypeVar

from gateway.errors import CorruptSnapshot, NotFound, ObjectMissing, SnapshotError
from gateway.journal.entry import Head, Kind
from gateway.journal.sequence import Listed, Sequence
from gateway.journal.volume import EntryTimes
from gateway.snapshot.model import moment_of
from gateway.snapshot.repository import Repository

_READS_AT_ONCE = 16
_MOST_SNAPSHOTS = 100
_MOST_DAMAGED = 100

_T = TypeVar("_T")


MarkKind = Literal["seal", "restore", "run"]
"""`seal`: a gateway took the lease. `restore`: the data were replaced. `run`: the journal began on a snapshot."""


class Mark(NamedTuple):
    """`restored_to`: of a restore, the moment that was restored. `where`: host and process id of the gateway."""

    kind: MarkKind
    number: int
    epoch: int
    at: datetime
    where: str
    snapshot: str
    restored_to: datetime | None

    @property
    def position(self) -> str:
        return f"{self.epoch}-{self.number}"


class Gap(NamedTuple):
    """Numbers that are missing or damaged, though nothing should have dropped them."""

    first: int
    last: int


class PastSnapshot(NamedTuple):
    """A snapshot. `journal`: the newest number whose entry it contains; None if it is not of the journal's line."""

    id: str
    at: datetime
    label: str | None
    journal: int | None


class Window(NamedTuple):
    """All moments from `oldest` to `newest` can be restored. From `full_since` on no entries are merged."""

    oldest: datetime
    newest: datetime
    full_since: datetime


@dataclass(frozen=True)
class HistoryPage:
    """`snapshots` and `marks`: newest first. `before`: the number from which older marks go on, None at their end.

    `listed`: all entries, in order. `times`: about when they were cut.
    """

    window: Window | None
    snapshots: list[PastSnapshot]
    marks: list[Mark]
    gaps: list[Gap]
    before: int | None
    entries: int
    stored_bytes: int
    listed: list[Listed]
    times: EntryTimes


class History:
    """Reads the history of one store. Every method raises StorageError and may be called again."""

    def __init__(self, sequence: Sequence, repository: Repository, history_s: float) -> None:
        """`history_s`: older entries may have been dropped."""
        self._sequence, self._repository, self._history_s = sequence, repository, history_s
        self._heads: dict[str, Head] = {}
        self._snapshots: dict[str, PastSnapshot] = {}
        self._damaged: set[str] = set()
        self._busy = asyncio.Lock()
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self.known: Window | None = None
        """The window as of the last look."""

    async def page(self, limit: int, before: int | None = None) -> HistoryPage:
        """Return the window, the newest hundred snapshots, and the newest `limit` marks below the number `before`."""
        return await self._without_damaged(lambda: self._page(limit, before))

    async def _page(self, limit: int, before: int | None) -> HistoryPage:
        listed, ids = await self._entries(), await self._ids()
        newest = await asyncio.gather(*map(self._snapshot, ids[-_MOST_SNAPSHOTS:]))
        older = [each for each in listed if before is None or each.last < before]
        marks = await self._marks(older, limit + 1)
        dropped = await self._dropped(ids)
        return HistoryPage(
            await self._window(listed, ids),
            [each for each in reversed(newest) if each is not None],
            marks[:limit],
            [gap for gap in gaps(listed) if gap.last > dropped],
            marks[limit - 1].number if len(marks) > limit else None,
            len(listed),
            sum(each.size_bytes for each in listed),
            listed,
            self._times(listed),
        )

    def _times(self, listed: list[Listed]) -> EntryTimes:
        """What is known without another request."""
        heads = ((head.number, head.at) for head in self._heads.values())
        snapshots = ((each.journal, each.at) for each in self._snapshots.values() if each.journal is not None)
        # A merged entry was stored an hour after its cut.
        single = (
            (each.last, each.stored_at) for each in listed if each.first == each.last and each.key not in self._heads
        )
        return EntryTimes([*heads, *snapshots, *single])

    async def window(self) -> Window | None:
        """Return which moments can be restored; None if there is no snapshot that can be read."""

        async def look() -> Window | None:
            return await self._window(await self._entries(), await self._ids())

        return await self._without_damaged(look)

    async def _without_damaged(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do `work`, and again without each entry that turns out to be damaged: it counts as missing."""
        async with self._busy:
            self._damaged.clear()
            while True:
                known = len(self._damaged)
                try:
                    return await work()
                except (CorruptSnapshot, ObjectMissing):
                    if len(self._damaged) == known or known >= _MOST_DAMAGED:
                        raise

    async def _entries(self) -> list[Listed]:
        listed = [each for each in await self._sequence.entries() if each.key not in self._damaged]
        keys = {each.key for each in listed}
        self._heads = {key: head for key, head in self._heads.items() if key in keys}
        return listed

    # ------------------------------------------------------------------ snapshots

    async def _ids(self) -> list[str]:
        """All snapshots, oldest first."""
        ids = sorted([each async for each in self._repository.newest_first()])
        for gone in self._snapshots.keys() - set(ids):
            del self._snapshots[gone]
        return ids

    async def _snapshot(self, snapshot_id: str) -> PastSnapshot | None:
        """None if it is gone, or cannot be read."""
        if snapshot_id not in self._snapshots:
            try:
                async with self._reads:
                    manifest = await self._repository.manifest(snapshot_id)
            except (NotFound, SnapshotError):
                return None
            found = manifest.snapshot
            self._snapshots[snapshot_id] = PastSnapshot(snapshot_id, found.created_at, found.label, manifest.journal)
        return self._snapshots[snapshot_id]

    async def _dropped(self, ids: list[str]) -> int:
        """Up to which number entries are not needed by any moment that `history_s` keeps."""
        until = datetime.now(UTC) - timedelta(seconds=self._history_s)
        for snapshot_id in reversed(ids):
            if moment_of(snapshot_id) <= until:
                found = await self._snapshot(snapshot_id)
                if found is not None and found.journal is not None:
                    return found.journal
        return 0

    async def _window(self, listed: list[Listed], ids: list[str]) -> Window | None:
        self.known = await self._find_window(listed, ids)
        return self.known

    async def _find_window(self, listed: list[Listed], ids: list[str]) -> Window | None:
        if not listed:
            newest = await self._snapshot(ids[-1]) if ids else None
            return Window(newest.at, newest.at, newest.at) if newest else None
        whole = whole_since(listed)
        oldest = await self._oldest_before(whole, await self._head(_first_at(listed, whole)), ids)
        if oldest is None:
            return None
        newest_at = (await self._head(listed[-1])).at
        merged = [each for each in listed if each.is_merged]
        full_since = (await self._head(merged[-1])).at if merged else oldest.at
        return Window(oldest.at, max(newest_at, oldest.at), max(full_since, oldest.at))

    async def _oldest_before(self, number: int, head: Head, ids: list[str]) -> PastSnapshot | None:
        """The oldest snapshot from which the entries from `number` on, whose head is given, can be followed."""
        later = bisect.bisect(ids, head.at, key=moment_of)
        found = None
        for snapshot_id in reversed(ids[:later]):
            snapshot = await self._snapshot(snapshot_id)
            if snapshot is not None and snapshot.journal is not None:
                if snapshot.journal < number - 1:
                    break
                found = snapshot
        for snapshot_id in ids[later:] if found is None else ():
            snapshot = await self._snapshot(snapshot_id)
            if snapshot is not None and snapshot.journal is not None and snapshot.journal >= number - 1:
                return snapshot
        return found

    # ------------------------------------------------------------------ marks

    async def _head(self, listed: Listed) -> Head:
        if listed.key not in self._heads:
            try:
                async with self._reads:
                    head = await self._sequence.head(listed.key)
            except (CorruptSnapshot, ObjectMissing):  # damaged, or merged into another since
                self._damaged.add(listed.key)
                raise
            self._heads[listed.key] = head
        return self._heads[listed.key]

    async def _marks(self, listed: list[Listed], limit: int) -> list[Mark]:
        """Return the newest `limit` marks, newest first."""
        if not listed:
            return []
        first, last = await asyncio.gather(self._head(listed[0]), self._head(listed[-1]))
        # Parts of the list in whose two ends the line differs: a change is in each. Halved until it is between the two.
        parts = [(0, len(listed) - 1)] if _line(first) != _line(last) else []
        while any(high - low > 1 for low, high in parts):
            middles = [(low + high) // 2 for low, high in parts]
            await asyncio.gather(*(self._head(listed[middle]) for middle in middles))
            halves = list[tuple[int, int]]()
            for (low, high), middle in zip(parts, middles, strict=True):
                for half in ((low, middle), (middle, high)):
                    ends = [_line(self._heads[listed[end].key]) for end in half]
                    if ends[0] != ends[1]:
                        halves.append(half)
            parts = halves[-limit:]
        changes = [0, *(high for _, high in parts)] if len(parts) < limit else [high for _, high in parts]
        return [_mark(self._heads[listed[each].key]) for each in reversed(changes)]


def _line(head: Head) -> tuple[int, int]:
    """What only grows, and differs on both sides of a mark."""
    return head.epoch, head.run


def _mark(head: Head) -> Mark:
    kind: MarkKind = "seal" if head.kind is Kind.SEAL else "restore" if head.restored_to else "run"
    return Mark(kind, head.number, head.epoch, head.at, head.where, head.snapshot, head.restored_to)


def whole_since(listed: list[Listed]) -> int:
    """Return the smallest number from which on none is missing. `listed`: in order of their last numbers, some."""
    covered = listed[-1].last + 1
    for each in reversed(listed):
        if each.last < covered - 1:
            break
        covered = min(covered, each.first)
    return covered


def gaps(listed: list[Listed]) -> list[Gap]:
    """Return the numbers that are missing between the first and the last entry. `listed`: in order of last numbers."""
    found, covered = list[Gap](), listed[-1].last + 1 if listed else 0
    for each in reversed(listed):
        if each.last < covered - 1:
            found.append(Gap(each.last + 1, covered - 1))
        covered = min(covered, each.first)
    return found[::-1]


def _first_at(listed: list[Listed], number: int) -> Listed:
    return next(each for each in listed if each.last >= number)
