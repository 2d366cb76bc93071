"""The sequence of entries in the store, which is also the fence between two writers.

    journal/{number}            an entry; numbers have 12 digits and no gaps
    journal-merged/{first}-{last}   entries that were merged into one; see `gateway.journal.merge`

**Why nothing that was stored is lost, and history is one line.** An entry is written with put-if-absent under the
number after the newest one. A writer has one entry on its way at a time, and takes the next number only after the
store has answered, or shows, that the one before is its own. Whoever takes the lease first writes a *seal* under the
next free number, and reads everything before it. It follows:

- A number belongs to one entry for ever. So all gateways see the same line, in the same order.
- Say a gateway has stored entry k, and another one seals later at s. If k < s, the new writer reads k, since it reads
  all that is before its seal: what was acknowledged with k is in its data. If k > s, the old gateway must have met
  number s before, since it goes through the numbers one by one. There it met the seal, and has stopped. k = s is one
  object, so it is one of the two.
- So a gateway that lost the lease finds that out at its next entry, at the latest: the store says that the number is
  taken, and the object there is of a higher epoch. It acknowledges nothing more as stored. It does not matter when its
  request arrives, before the seal, after it or a day later, nor what any clock says.
- A request whose answer was lost is told apart by reading the object: it is our own if it has the very bytes.

Two gateways that take the lease at the same time have different epochs (`gateway.lease.state`). The lower one stops
where it meets the higher one's seal or entry. If it has sealed before, the higher one reads past that seal.

Seals are never deleted. A writer that was paused for so long that the entries around its next number were dropped
still meets the seal there. The newest entry is not deleted either: the next number follows from it.

This needs put-if-absent to be atomic. `gateway.lease.probe` finds a store that ignores or refuses the condition, and
operators are told. There an entry is written only after a look that shows the number to be free, and is acknowledged
only if the lease is still held after that. It follows:

- Gateways that write one after the other lose nothing.
- A gateway that wakes up finds its number taken, and stops, as above.
- A request that was on its way while another gateway took the lease may still replace an object. That is the seal,
  since both take the same number. Its gateway then finds the lease lost, and acknowledges nothing. The new writer's
  entries do not need the seal: they begin with a run of their own over a snapshot.
- Two gateways that take the lease at the same moment are not told apart by such a store (`gateway.lease.lease`).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from gateway.errors import CorruptSnapshot, LeaseLost, ObjectMissing, StorageUnavailable
from gateway.journal.entry import HEAD_BYTES, NO_PAGES, Entry, Head, Kind, moment_after, parse_head
from gateway.lease.probe import UNFENCED, Conditions
from gateway.storage import Storage

JOURNAL = "journal/"
MERGED = "journal-merged/"
_DIGITS = 12
_MAX_ENTRY_BYTES = 320 << 20
_READ_ATTEMPTS = 3
_CALL_TIMEOUT_S = 60.0

_T = TypeVar("_T")


class Listed(NamedTuple):
    """An entry as the store lists it. It holds the numbers `first` to `last`. `stored_at` is the store's time."""

    key: str
    first: int
    last: int
    size_bytes: int
    stored_at: datetime

    @property
    def is_merged(self) -> bool:
        """Whether it was made of several."""
        return self.key.startswith(MERGED)


class Superseded(LeaseLost):
    """The next number is taken by another gateway's entry."""


class Sequence:
    """The entries in `store`, which is this gateway's own prefix. Every method raises StorageError."""

    def __init__(self, store: Storage, conditions: Callable[[], Conditions | None] = lambda: None) -> None:
        """`conditions` tells what the store does with conditional writes; None before that was probed."""
        self._store, self._conditions = store, conditions
        self._newest: Entry | None = None  # as of the last look: only what comes after it is listed again

    @property
    def url(self) -> str:
        return self._store.url

    # ------------------------------------------------------------------ reading

    async def entries(self, after: int = 0) -> list[Listed]:
        """Return the entries with a number above `after`, in order of their last numbers, the merged ones first."""
        found = [
            Listed(info.key, int(name), int(name), info.size_bytes, info.modified_at)
            async for info in self._store.list(JOURNAL, key_of(after))
            if (name := info.key.removeprefix(JOURNAL)).isdecimal()
        ]
        async for info in self._store.list(MERGED):
            first, _, last = info.key.removeprefix(MERGED).partition("-")
            if first.isdecimal() and last.isdecimal() and int(last) > after:
                found.append(Listed(info.key, int(first), int(last), info.size_bytes, info.modified_at))
        return sorted(found, key=lambda each: (each.last, each.first))

    async def first_epoch(self) -> int:
        """The lowest epoch that a lease may begin with, if there is none: one above all that wrote entries."""
        newest = await self.newest()
        return newest.head.epoch + 1 if newest else 1

    async def head(self, key: str) -> Head:
        """Return the head of an entry. Raises CorruptSnapshot, ObjectMissing."""

        async def parse(data: bytes) -> Head:
            return parse_head(data, f"{self.url}{key}")

        return await self._verified(key, HEAD_BYTES, parse)

    async def read(self, key: str) -> Entry:
        """Return a whole entry, verified. Raises CorruptSnapshot, also if it is missing."""
        try:
            return await self._entry(key)
        except ObjectMissing:
            raise CorruptSnapshot(f"{self.url}{key} is missing", "see GET /admin/history") from None

    async def _entry(self, key: str) -> Entry:
        async def parse(data: bytes) -> Entry:
            return await asyncio.to_thread(Entry.parse, data, f"{self.url}{key}")

        return await self._verified(key, _MAX_ENTRY_BYTES, parse)

    async def _verified(self, key: str, length: int, parse: Callable[[bytes], Awaitable[_T]]) -> _T:
        """Return what `parse` makes of the first `length` bytes. Bytes may be damaged on their way."""
        for attempts_left in reversed(range(_READ_ATTEMPTS)):
            try:
                return await parse(await self._store.get_range(key, 0, length))
            except CorruptSnapshot:
                if not attempts_left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    # ------------------------------------------------------------------ writing

    async def append(self, entry: Entry) -> None:
        """Store `entry` under its number. Safe to retry with the same entry.

        Raises Superseded if another gateway's entry is there: then this gateway has lost the lease. After
        StorageUnavailable it may be stored or not.
        """
        key = key_of(entry.head.number)
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                if await self._put_new(key, entry.data):
                    return
                found = await self._entry(key)
        except TimeoutError:
            raise StorageUnavailable(f"{self.url}{key}: no answer within {_CALL_TIMEOUT_S:g} s", "try again") from None
        if found.data != entry.data:
            raise _superseded_by(found.head, f"{self.url}{key}")

    async def newest(self) -> Entry | None:
        """Return the newest entry, None if there never was one. A list that lags is looked past."""
        found = self._newest
        if entries := await self.entries(found.head.number if found else 0):
            found = await self.read(entries[-1].key)
        with contextlib.suppress(ObjectMissing):
            while found is not None:
                self._newest = found
                found = await self._entry(key_of(found.head.number + 1))
        return self._newest

    async def seal(self, epoch: int, writer: str, where: str, *, anew: bool = False) -> Entry:
        """Write the seal of `epoch` behind the newest entry, and return it. Safe to retry.

        `anew`: the data of the new writer do not come from the entries before. Raises Superseded if a gateway with a
        higher epoch has written meanwhile.
        """
        before = await self.newest()
        while True:
            if before is not None and before.head.epoch > epoch:
                raise _superseded_by(before.head, f"{self.url}{JOURNAL}")
            if before is not None and before.head.epoch == epoch:
                if before.head.kind is Kind.SEAL and before.head.writer == writer:
                    return before  # the answer to an earlier attempt was lost
                raise _superseded_by(before.head, f"{self.url}{JOURNAL}")
            entry = Entry.make(_seal(before, epoch, writer, where, anew=anew), NO_PAGES, ())
            if await self._put_new(key_of(entry.head.number), entry.data):
                return entry
            before = await self.read(key_of(entry.head.number))

    async def _put_new(self, key: str, data: bytes) -> bool:
        """Store `data` under `key` unless the key exists, as far as the store tells. Return whether it was stored."""
        conditions = self._conditions()
        if conditions in UNFENCED:
            with contextlib.suppress(ObjectMissing):
                await self._store.get_range(key, 0, 1)
                return False
        if conditions is Conditions.REFUSED:
            await self._store.put(key, data)
            return True
        return await self._store.put_if_absent(key, data)

    async def put_merged(self, entry: Entry) -> None:
        """Store an entry that several were merged into. Safe to retry: its bytes depend on theirs alone."""
        await self._store.put(merged_key(entry.head.first, entry.head.number), entry.data)

    async def delete(self, keys: list[str]) -> None:
        """Delete entries. Safe to retry."""
        await self._store.delete_all(keys)


def _seal(before: Entry | None, epoch: int, writer: str, where: str, *, anew: bool) -> Head:
    if before is None:
        return Head(
            number=1,
            first=1,
            epoch=epoch,
            writer=writer,
            where=where,
            kind=Kind.SEAL,
            at=moment_after(None, datetime.now(UTC)),
            previous="",
            author=writer,
        )
    return before.next_mark(Kind.SEAL, epoch, writer, where).model_copy(
        update={"author": writer, "log": 0} if anew else {}
    )


def key_of(number: int) -> str:
    """The key of an entry."""
    return f"{JOURNAL}{number:0{_DIGITS}}"


def merged_key(first: int, last: int) -> str:
    """The key of an entry that several were merged into."""
    return f"{MERGED}{first:0{_DIGITS}}-{last:0{_DIGITS}}"


def _superseded_by(head: Head, name: str) -> Superseded:
    return Superseded(
        f"another gateway ({head.where}, epoch {head.epoch}) has written {name} and is the writer now",
        "send writes to that gateway",
    )
