"""The proof of `gateway.journal.sequence`: random interleavings of writers, successors, lost answers, late writes."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from gateway.errors import StorageUnavailable
from gateway.journal.entry import NO_PAGES, Entry, Head, Kind, moment_after
from gateway.journal.sequence import JOURNAL, Sequence, Superseded, key_of
from tests.unit.journal.memory_store import MemoryStore


def cut_after(before: Entry, payload: int) -> Entry:
    number = before.head.number + 1
    head = Head(
        number=number,
        first=number,
        epoch=before.head.epoch,
        writer=before.head.writer,
        kind=Kind.PAGES,
        at=moment_after(before.head.at, datetime.now(UTC)),
        previous=before.chain,
        run=number,
        cut=number,
        snapshot="20260101T000000Z-000000",
        log=payload,
    )
    return Entry.make(head, NO_PAGES, ())


class Writer:
    """A gateway that takes the lease with `epoch`, and then stores cuts until it meets another one's entry."""

    def __init__(self, store: MemoryStore, epoch: int) -> None:
        self.store, self.epoch = store, epoch
        self.sequence = Sequence(store.storage)
        self.acknowledged: list[bytes] = []
        self.sealed: Entry | None = None
        self.lost = False

    async def run(self, cuts: int) -> None:
        try:
            newest = self.sealed = await self._until_answered(self._seal)
            for payload in range(cuts):
                entry = cut_after(newest, self.epoch * 1000 + payload)

                async def append(entry: Entry = entry) -> Entry:
                    await self.sequence.append(entry)
                    return entry

                newest = await self._until_answered(append)
                self.acknowledged.append(entry.data)
        except Superseded:
            self.lost = True

    async def _seal(self) -> Entry:
        return await self.sequence.seal(self.epoch, f"writer {self.epoch}", "")

    async def _until_answered(self, work: Callable[[], Awaitable[Entry]]) -> Entry:
        while True:
            try:
                return await work()
            except StorageUnavailable:
                await asyncio.sleep(0)


def line_of(store: MemoryStore) -> list[Entry]:
    keys = sorted(key for key in store.objects if key.startswith(JOURNAL))
    assert keys == [key_of(number) for number in range(1, len(keys) + 1)]
    return [Entry.parse(store.objects[key], key) for key in keys]


@pytest.mark.parametrize("part", range(8))
async def test_nothing_acknowledged_is_lost_and_history_is_one_line(part: int) -> None:
    for seed in range(part * 60, (part + 1) * 60):
        store = MemoryStore(seed, chance=store_chance(seed))
        writers = [Writer(store, epoch) for epoch in range(1, 2 + seed % 4)]

        async def begin(writer: Writer, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await writer.run(12)

        waits = sorted(store.random.randrange(120) for _ in writers)
        await asyncio.wait_for(asyncio.gather(*map(begin, writers, waits)), 20)
        for key, data in store.late:  # what is still under way arrives in the end
            store.objects.setdefault(key, data)
        line = line_of(store)
        assert [entry.head.previous for entry in line] == ["", *(entry.chain for entry in line[:-1])], seed
        epochs = [entry.head.epoch for entry in line]
        assert epochs == sorted(epochs), seed
        stored = [entry.data for entry in line]
        for writer in writers:
            assert all(data in stored for data in writer.acknowledged), seed
            if writer.sealed is not None:
                # What was acknowledged by those before it lies before its seal: its data have all of it.
                before = stored[: writer.sealed.head.number]
                for other in writers[: writer.epoch - 1]:
                    assert all(data in before for data in other.acknowledged), seed
        assert all(writer.lost for writer in writers if writer.epoch < epochs[-1] and len(writer.acknowledged) < 12)


def store_chance(seed: int) -> float:
    return (0.0, 0.1, 0.3, 0.6)[seed % 4]


async def test_a_revived_writer_meets_the_seal_although_history_around_it_was_dropped() -> None:
    store = MemoryStore()
    old, new = Writer(store, 1), Writer(store, 2)
    await old.run(3)
    assert old.sealed is not None
    await new.run(5)
    for number in range(1, 9):
        entry = Entry.parse(store.objects[key_of(number)], "")
        if entry.head.kind is not Kind.SEAL:
            del store.objects[key_of(number)]
    late = cut_after(old.sealed.__class__.parse(old.acknowledged[-1], ""), 99)
    with pytest.raises(Superseded):
        await old.sequence.append(late)


async def test_an_own_entry_whose_answer_was_lost_is_known_again() -> None:
    store = MemoryStore()
    writer = Writer(store, 1)
    await writer.run(0)
    assert writer.sealed is not None
    entry = cut_after(writer.sealed, 1)
    store.objects[key_of(entry.head.number)] = entry.data
    await writer.sequence.append(entry)
    with pytest.raises(Superseded):
        await writer.sequence.append(cut_after(writer.sealed, 2))
