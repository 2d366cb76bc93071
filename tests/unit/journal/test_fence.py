"""The proof of `gateway.journal.sequence`: random interleavings of writers, successors, lost answers, late writes."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from gateway.errors import StorageUnavailable
from gateway.journal.entry import NO_PAGES, Entry, Head, Kind, moment_after
from gateway.journal.sequence import JOURNAL, Sequence, Superseded, key_of
from gateway.lease.probe import UNFENCED, Conditions
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
        self.sequence = Sequence(store.storage, lambda: store.conditions)
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
    conflicts = set[str]()
    for seed in range(part * 60, (part + 1) * 60):
        store = MemoryStore(seed, chance=store_chance(seed))
        writers = [Writer(store, epoch) for epoch in range(1, 2 + seed % 4)]

        async def begin(writer: Writer, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await writer.run(12)

        waits = sorted(store.random.randrange(120) for _ in writers)
        await asyncio.wait_for(asyncio.gather(*map(begin, writers, waits)), 20)
        while store.late:  # what is still under way arrives in the end
            store.arrive(0)
        conflicts |= store.conflicts.keys()
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
    assert conflicts >= {"nobody", "own"}, "a 409 that ends so was met"


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


@pytest.mark.parametrize("winner", ["nobody", "own", "another"])
async def test_a_write_that_was_answered_with_409_is_ours_only_if_the_store_has_it(winner: str) -> None:
    """409: another write of this number is under way. The next try tells how that one ended."""
    store = MemoryStore()
    writer, other = Writer(store, 1), Sequence(store.storage)
    await writer.run(0)
    assert writer.sealed is not None
    entry, newest = cut_after(writer.sealed, 1), writer.sealed
    answers = iter([StorageUnavailable("409 ConditionalRequestConflict")])
    put = store.put_if_absent

    async def conflicting(key: str, data: bytes) -> bool:
        for error in answers:
            raise error
        return await put(key, data)

    store.put_if_absent = conflicting  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailable):
        await writer.sequence.append(entry)
    if winner == "own":  # of an earlier try, whose answer was lost
        store.objects[key_of(entry.head.number)] = entry.data
    elif winner == "another":
        newest = await other.seal(2, "writer 2", "")
    if winner == "another":
        with pytest.raises(Superseded):
            await writer.sequence.append(entry)
    else:
        await writer.sequence.append(entry)
        newest = entry
    assert line_of(store)[-1].data == newest.data


UNKEPT = pytest.mark.parametrize("conditions", sorted(UNFENCED, key=str))


@UNKEPT
async def test_without_conditions_gateways_one_after_the_other_lose_nothing(conditions: Conditions) -> None:
    """Answers are lost and requests come late: of one gateway, which has ended before the next one begins."""
    for seed in range(40):
        store = MemoryStore(seed, chance=store_chance(seed), conditions=conditions)
        stored = list[bytes]()
        for epoch in range(1, 5):
            writer = Writer(store, epoch)
            await asyncio.wait_for(writer.run(8), 20)
            while store.late:
                store.arrive(0)
            stored += writer.acknowledged
            assert len(writer.acknowledged) == 8
            assert not writer.lost
        line = line_of(store)
        assert [entry.data for entry in line if entry.head.kind is Kind.PAGES] == stored, seed


@UNKEPT
async def test_without_conditions_a_revived_writer_stops_at_the_seal(conditions: Conditions) -> None:
    """It looks first, and replaces nothing. What it stored before is there."""
    store = MemoryStore(conditions=conditions)
    old, new = Writer(store, 1), Writer(store, 2)
    await old.run(3)
    await new.run(5)
    before = dict(store.objects)
    with pytest.raises(Superseded):
        await old.sequence.append(cut_after(Entry.parse(old.acknowledged[-1], ""), 99))
    assert store.objects == before


async def test_without_conditions_a_request_that_comes_late_can_replace_no_cut_of_the_new_writer() -> None:
    """Only the seal, which no restore needs: the new writer's cuts follow each other as before."""
    store = MemoryStore(conditions=Conditions.BROKEN)
    old, new = Writer(store, 1), Writer(store, 2)
    await old.run(3)
    late = cut_after(Entry.parse(old.acknowledged[-1], ""), 99)
    await new.run(5)
    assert new.sealed is not None
    assert late.head.number == new.sealed.head.number
    store.late.append((key_of(late.head.number), late.data))
    store.arrive(0)
    cuts = [entry for entry in line_of(store) if entry.head.epoch == 2]
    assert [entry.data for entry in cuts] == new.acknowledged
    assert [entry.head.previous for entry in cuts[1:]] == [entry.chain for entry in cuts[:-1]]
