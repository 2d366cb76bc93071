"""Merge entries that are older than an hour, so that history grows coarser before it goes.

The entries of one minute become one: its newest pages, under the numbers of all of them. The merged entry is stored
before any of the others is deleted, and its bytes depend on theirs alone. So it does not matter where a merge is
killed, nor whether two gateways merge at once. A restore takes the merged entry or the single ones, whichever is there.

Seals stay. What they are for is told in `gateway.journal.sequence`.
"""

from collections.abc import Sequence as Series
from datetime import datetime, timedelta

import numpy as np
import structlog

from gateway.aio import TaskPool, run_in_thread_uninterrupted
from gateway.errors import CorruptSnapshot
from gateway.journal.entry import NO_PAGES, Entry, Head, Kind, NewestPages
from gateway.journal.plan import FULL_RESOLUTION, not_covered, plan_merges
from gateway.journal.sequence import Listed, Sequence, key_of

log = structlog.get_logger()

_READS_AT_ONCE = 8
# One turn reads no more than this, so that nothing else waits for long.
_MOST_AT_ONCE = 600
# Under `stored`, many entries may come in a minute.
_MOST_IN_A_MINUTE = 300
_A_MINUTE = timedelta(minutes=1)


class Merger:
    """Makes history coarser and drops it. `has_more` tells that the last turn left something to be merged."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        self._kept: set[str] = set()
        """Keys of entries that will never be merged with others: seals, and those that are alone in their minute."""
        self.has_more = True

    async def merge_old(self, now: datetime) -> int:
        """Merge entries that are older than `FULL_RESOLUTION`. Return how many were merged into others.

        Safe to retry. Raises StorageError.
        """
        sequence = self._sequence
        # The store's time of an entry is that of its cut or later, so none is looked at too early.
        listed = [each for each in await sequence.entries() if now - each.stored_at > FULL_RESOLUTION + _A_MINUTE]
        needed = {each.key for each in not_covered(listed)}
        if leftovers := [each.key for each in listed if each.key not in needed]:  # an earlier merge was killed
            await sequence.delete(leftovers)
        single = [each for each in listed if not each.is_merged and each.key in needed and each.key not in self._kept]
        self.has_more = len(single) > _MOST_AT_ONCE
        heads = await read_heads(sequence, single[:_MOST_AT_ONCE])
        self._kept &= {each.key for each in listed}
        merged = set[int]()
        for group in plan_merges(heads, now):
            try:
                entries = [await sequence.read(key_of(head.number)) for head in group]
                entry = await run_in_thread_uninterrupted(merge, entries)
            except CorruptSnapshot as error:
                log.warning("entries of the journal cannot be merged", cause=str(error))
                continue
            await sequence.put_merged(entry)
            await sequence.delete([key_of(head.number) for head in group])
            merged |= {head.number for head in group}
        # The last minute may go on beyond what was read.
        last = len(heads) if not self.has_more else max(0, len(heads) - _MOST_IN_A_MINUTE)
        self._kept |= {key_of(head.number) for head in heads[:last] if head.number not in merged}
        return len(merged)

    async def drop_until(self, number: int) -> int:
        """Delete the entries up to `number`, which no moment of the history needs any more. Return how many.

        Seals stay, and the newest entry, so that no number is given twice. Safe to retry. Raises StorageError.
        """
        old = [each for each in (await self._sequence.entries())[:-1] if each.last <= number]
        single = [each for each in old if not each.is_merged]
        keys = [each.key for each in old if each.is_merged]
        for start in range(0, len(single), _MOST_AT_ONCE):
            heads = await read_heads(self._sequence, single[start : start + _MOST_AT_ONCE])
            keys += [key_of(head.number) for head in heads if head.kind is not Kind.SEAL]
        await self._sequence.delete(keys)
        return len(keys)


def merge(entries: Series[Entry]) -> Entry:
    """Return one entry in place of `entries`, which follow each other in one run. Blocks. Raises CorruptSnapshot."""
    first, last = entries[0].head, entries[-1]
    newest, size = NewestPages(last.head.pages), last.head.page_bytes
    numbers, pages = [NO_PAGES], list[bytes]()
    for entry in reversed(entries):
        some, data = newest.of(entry)
        numbers.append(some)
        pages += [bytes(data[at : at + size]) for at in range(0, len(data), size)]
    all_numbers = np.concatenate(numbers)
    order = np.argsort(all_numbers)
    head = last.head.model_copy(
        update={
            "first": first.first,
            "previous": first.previous,
            "last_sha256": last.chain,
            "kind": Kind.PAGES,
            "restored_to": first.restored_to,
        }
    )
    return Entry.make(head, all_numbers[order], [pages[index] for index in order.tolist()])


async def read_heads(sequence: Sequence, listed: Series[Listed]) -> list[Head]:
    """Return the heads of entries, in order of their numbers, without those that are damaged."""
    found: dict[int, Head] = {}

    async def read(each: Listed) -> None:
        try:
            found[each.last] = await sequence.head(each.key)
        except CorruptSnapshot as error:
            log.warning("an entry of the journal cannot be read", cause=str(error))

    async with TaskPool(_READS_AT_ONCE) as pool:
        for each in listed:
            await pool.start(read, each)
    return [found[number] for number in sorted(found)]
