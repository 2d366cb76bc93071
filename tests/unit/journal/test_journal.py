"""Cuts of a real database with a WAL, stored and replayed: every moment comes back bit for bit."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import numpy as np
import pytest

from gateway.aio import background
from gateway.chroma.database import prepare
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE
from gateway.chroma.pages import Mark, PageTracker
from gateway.errors import Conflict, CorruptSnapshot, InvalidRequest, LeaseLost, NotStored, StorageUnavailable
from gateway.journal.entry import Entry, Kind
from gateway.journal.journal import Base, Journal, JournalOptions, why_behind
from gateway.journal.merge import Merger
from gateway.journal.plan import chain
from gateway.journal.replay import Line, RestorePoint, replay
from gateway.journal.sequence import Sequence, Superseded, key_of
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.election import LeaderElection, LeaderRole
from gateway.snapshot.blocks import page_digests
from gateway.snapshot.capture import scan_database
from gateway.storage import ObjectInfo
from tests.unit.journal.memory_store import MemoryStore

PAGE_BYTES = 4096


@dataclass
class Leader:
    epoch: int = 1
    role: LeaderRole = LeaderRole.WRITER
    lost: str | None = None
    noted: list[int] = field(default_factory=list)
    last_stored: int = 0
    had_data: bool = False
    behind: str | None = None
    confirms: LeaseLost | None = None

    def fall_behind(self, why: str) -> None:
        self.role, self.behind = LeaderRole.BEHIND, why

    async def home(self) -> str:
        return f"home {self.epoch}"

    async def note_journal(self, number: int, *, once_settled: bool = False) -> None:
        self.noted.append(number)

    async def note_stored(self, number: int) -> None:
        self.last_stored = number

    async def confirm(self) -> None:
        if self.confirms is not None:
            raise self.confirms

    def lose(self, reason: str) -> None:
        self.role, self.lost = LeaderRole.READER, reason


class Snapshots:
    """Whole copies of the database, in place of snapshots."""

    def __init__(self, tracker: PageTracker) -> None:
        self.tracker = tracker
        self.taken: dict[str, tuple[bytes, int]] = {}
        self.known = True
        self.journal: Journal | None = None

    async def base(self) -> Base | None:
        if not self.taken or not self.known:
            return None
        name = max(self.taken)
        data, number = self.taken[name]
        return Base(name, page_digests(data, PAGE_BYTES), number)

    async def take(self) -> None:
        assert self.journal is not None
        await self.journal.require_sealed()
        journal, numbers = self.journal, list[int]()
        cut = await asyncio.to_thread(self.tracker.cut, lambda _: numbers.append(journal.number()), Mark.SNAPSHOT)
        data = b"".join(cut.read_all())
        cut.close()
        self.taken[f"snapshot {len(self.taken):03}"] = (data, numbers[0])
        self.known = True
        self.journal.snapshot_taken()


class Lab:
    def __init__(self, path: Path, store: MemoryStore, interval_s: float = 3600) -> None:
        self.path, self.store = path, store
        prepare(path)
        self.writer = sqlite3.connect(path / DATABASE, isolation_level=None, timeout=10)
        self.writer.execute("create table if not exists embeddings_queue(seq_id integer primary key, data blob)")
        self.tracker = PageTracker(path)
        self.leader, self.snapshots = Leader(), Snapshots(self.tracker)
        self.journal = Journal(
            Sequence(store.storage),
            self.tracker,
            cast(LeaderElection, self.leader),
            self.snapshots,
            lambda: True,
            lambda: True,
            JournalOptions(interval_s, 5, 10, 3600),
            where="here",
        )
        self.snapshots.journal = self.journal
        self.random = random.Random(1)
        self.moments: dict[int, bytes] = {}

    def write(self) -> None:
        some = self.random
        for _ in range(some.randrange(1, 6)):
            data = some.randbytes(some.choice((10, 3000, 20_000)))
            if some.random() < 0.2:
                self.writer.execute("delete from embeddings_queue where seq_id % 7 = ?", (some.randrange(7),))
            self.writer.execute("insert into embeddings_queue(data) values (?)", (data,))
        if some.random() < 0.1:
            self.writer.execute("pragma wal_checkpoint(passive)")

    def image(self) -> bytes:
        with closing(sqlite3.connect(self.path / DATABASE)) as connection, closing(sqlite3.connect(":memory:")) as copy:
            connection.backup(copy)
            return "\n".join(copy.iterdump()).encode()

    async def save(self) -> int:
        """Store what was written, and remember what that is."""
        image = self.image()
        number = int((await self.journal.stored()).partition("-")[2])
        if number and number not in self.moments:  # else a snapshot has it all, and no entry was needed
            self.moments[number] = image
        return number

    async def restored(self, number: int, target: Path) -> bytes:
        """Restore the state of the entry `number` as a restore does."""
        return await self.replayed(*await self.found(number), target)

    async def found(self, number: int) -> tuple[RestorePoint, bytes]:
        """What the state of the entry `number` is restored from: the second value is the database of its snapshot."""
        sequence = self.journal.sequence
        listed = await sequence.entries()
        head = (await sequence.read(next(each.key for each in listed if each.last == number))).head
        # A snapshot with the same number was taken after the entry.
        usable = (name for name, (_, journal) in self.snapshots.taken.items() if head.run <= journal < number)
        name = max(usable, default=head.snapshot)
        data, journal = self.snapshots.taken[name]
        entries, missing = chain(listed, max(journal, head.run - 1), number)
        assert missing is None
        return RestorePoint(cast(Any, None), head.at, entries, head if entries else None), data

    async def replayed(self, point: RestorePoint, data: bytes, target: Path) -> bytes:
        target.mkdir()
        (target / DATABASE).write_bytes(data)
        await replay(self.journal.sequence, point, target, page_digests(data, PAGE_BYTES))
        with closing(sqlite3.connect(target / DATABASE)) as connection:
            assert connection.execute("pragma integrity_check").fetchone()[0] == "ok"
            return "\n".join(connection.iterdump()).encode()

    def close(self) -> None:
        self.writer.close()
        self.tracker.forget()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def lab(tmp_path: Path, store: MemoryStore) -> Iterator[Lab]:
    (tmp_path / "live").mkdir()
    built = Lab(tmp_path / "live", store)
    yield built
    built.close()


@pytest.fixture
async def running(lab: Lab) -> AsyncIterator[Lab]:
    async with background(lab.journal.run()):
        yield lab


async def test_every_moment_comes_back(running: Lab, tmp_path: Path) -> None:
    for turn in range(40):
        running.write()
        if turn % 9 == 4:
            await running.snapshots.take()
        if turn % 11 == 7:
            await asyncio.to_thread(running.tracker.bound)
        if turn % 13 == 9:
            running.journal.end_run()
        if turn % 17 == 11:
            running.snapshots.known = False
            running.journal.end_run()
        await running.save()
    assert len(running.moments) > 30
    for number, image in running.moments.items():
        assert await running.restored(number, tmp_path / f"r{number}") == image, number
    merged = await Merger(running.journal.sequence).merge_old(now=datetime.now(UTC).replace(year=2030))
    assert merged > 10
    left = {each.last for each in await running.journal.sequence.entries()}
    for number in left & running.moments.keys():
        assert await running.restored(number, tmp_path / f"m{number}") == running.moments[number], number


async def test_entries_that_are_merged_during_a_restore_are_found_again(
    running: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also in the middle of it. A moment that merging took away is refused, and nothing else is put in its place."""
    for turn in range(20):
        running.write()
        if turn == 9:
            await running.snapshots.take()
        await running.save()
    sequence = running.journal.sequence
    points = {number: await running.found(number) for number in running.moments}
    way_out = "the way out is another test's"
    monkeypatch.setattr("gateway.journal.replay._way_out", AsyncMock(return_value=way_out))
    read, reads = Sequence.read, 0

    async def merged_meanwhile(self: Sequence, key: str) -> Entry:
        nonlocal reads
        reads += 1
        if reads == 5:
            assert await Merger(sequence).merge_old(datetime.now(UTC).replace(year=2030)) > 5
        return await read(self, key)

    newest = max(points)
    monkeypatch.setattr(Sequence, "read", merged_meanwhile)
    assert await running.replayed(*points[newest], tmp_path / "newest") == running.moments[newest]
    monkeypatch.setattr(Sequence, "read", read)
    left, refused = {each.last for each in await sequence.entries()}, 0
    for number, point in points.items():
        target = tmp_path / str(number)
        if number in left or not point[0].entries:
            assert await running.replayed(*point, target) == running.moments[number]
        else:
            with pytest.raises(CorruptSnapshot, match="is missing"):
                await running.replayed(*point, target)
            refused += 1
    assert refused > 5


async def test_many_who_wait_share_one_entry(running: Lab) -> None:
    running.write()
    await running.journal.stored()
    before = running.journal.counts.entries
    running.write()
    await asyncio.gather(*(running.journal.stored() for _ in range(50)))
    assert running.journal.counts.entries - before <= 2


async def test_nothing_is_written_where_nothing_changed(running: Lab) -> None:
    running.write()
    await running.journal.stored()
    objects = len(running.store.objects)
    for _ in range(3):
        await running.journal.stored()
    assert len(running.store.objects) == objects
    assert running.journal.lag_s == 0


async def test_a_lost_answer_costs_no_entry_and_a_store_that_is_away_is_a_lag(
    running: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write()
    await running.save()
    put = running.store.put_if_absent

    async def away(key: str, data: bytes) -> bool:
        if len(lost) < 1:
            lost.append(key)
            await put(key, data)
        raise StorageUnavailable("it is away")

    lost: list[str] = []
    monkeypatch.setattr(running.store, "put_if_absent", away)
    monkeypatch.setattr(running.journal, "options", JournalOptions(3600, 0.3, 10, 3600))
    running.write()
    with pytest.raises(NotStored, match="was applied, and could not be stored within"):
        await running.journal.stored()
    assert running.journal.lag_s > 0.2
    assert running.journal.problem is not None
    monkeypatch.setattr(running.store, "put_if_absent", put)
    monkeypatch.setattr(running.journal, "options", JournalOptions(3600, 5, 10, 3600))
    running.write()
    number = await running.save()
    assert running.journal.lag_s == 0
    assert key_of(number) in running.store.objects


async def test_a_writer_that_meets_another_ones_seal_acknowledges_nothing(running: Lab) -> None:
    running.write()
    await running.save()
    await Sequence(running.store.storage).seal(2, "another home", "there")
    running.write()
    with pytest.raises(Superseded, match=r"another gateway \(there, epoch 2\)"):
        await running.journal.stored()
    assert running.leader.lost


async def test_without_conditions_what_is_stored_after_the_lease_was_lost_is_not_acknowledged(running: Lab) -> None:
    """The store answered, and another gateway took the lease meanwhile: its data need not have this write."""
    running.write()
    await running.save()
    running.leader.confirms = LeaseLost("another gateway is now the writer")
    running.write()
    with pytest.raises(LeaseLost, match="now the writer"):
        await running.journal.stored()


async def test_positions(running: Lab) -> None:
    for _ in range(2):
        running.write()
        position = running.journal.position
        await running.journal.stored(position)
    assert running.journal.stored_position == position
    with pytest.raises(InvalidRequest, match="is no position"):
        await running.journal.stored("latest")
    # Of an epoch that is over: what it stored is known, what it did not store is said.
    running.leader.epoch = 2
    await running.journal.seal()
    await running.journal.stored(position)
    epoch, _, number = position.partition("-")
    with pytest.raises(Conflict, match="was never stored"):
        await running.journal.stored(f"{epoch}-{int(number) + 1}")


async def test_a_position_from_before_the_seal_is_known_by_its_process_only(running: Lab) -> None:
    """Of another process it cannot be told whether what was written there was stored."""
    running.write()
    position = running.journal.position
    assert position.startswith("0-")
    await running.journal.stored(position)
    await running.journal.stored(position)  # also once the lease is taken
    with pytest.raises(Conflict, match="cannot be told"):
        await running.journal.stored(f"0-{running.journal._unsealed + 1}")


async def test_the_newest_entry_is_looked_for_after_the_one_that_is_known(running: Lab) -> None:
    """A start asks for it several times: the whole list is read once."""
    listed, sequence = list[str](), Sequence(running.store.storage)
    list_after = running.store.list
    for _ in range(3):
        running.write()
        await running.save()

    def noted(prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        listed.append(after)
        return list_after(prefix, after)

    running.store.list = noted  # type: ignore[method-assign]
    for _ in range(2):
        newest = await sequence.newest()
        assert newest is not None
        running.write()
        await running.save()
    assert [each for each in listed if each] == [key_of(0), key_of(newest.head.number - 1)]
    assert (await sequence.newest()) == running.journal._newest


async def test_a_cut_that_fails_leaves_a_mark_under_its_number(
    running: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A snapshot may name the number of that cut: data that came later must not be stored under it."""
    for _ in range(2):
        running.write()
        await running.save()

    def fails(*_: object) -> None:
        monkeypatch.setattr("gateway.journal.journal.scan_database", scan_database)
        raise MemoryError

    monkeypatch.setattr("gateway.journal.journal.scan_database", fails)
    running.write()
    with pytest.raises(MemoryError):
        await running.journal._store_changes([], changed=True)
    await running.snapshots.take()
    running.write()
    number = await running.save()
    kinds = [
        (await running.journal.sequence.read(each.key)).head.kind for each in await running.journal.sequence.entries()
    ]
    assert kinds == [Kind.SEAL, Kind.PAGES, Kind.VOID, Kind.PAGES]
    assert await running.restored(number, tmp_path / "r") == running.moments[number]


@pytest.mark.parametrize("damage", ["flipped", "cut off", "deleted", "doubled", "of another line"])
async def test_damage_ends_the_replay_and_says_so(running: Lab, tmp_path: Path, damage: str) -> None:
    for _ in range(4):
        running.write()
        await running.save()
    objects = running.store.objects
    last = max(running.moments)
    key, before = key_of(last - 1), key_of(last - 2)
    match damage:
        case "flipped":
            data = bytearray(objects[key])
            data[len(data) // 2] ^= 1
            objects[key] = bytes(data)
        case "cut off":
            objects[key] = objects[key][:-7]
        case "deleted":
            del objects[key]
        case "doubled":
            objects[key] = objects[before]
        case "of another line":
            entry = Entry.parse(objects[key], key)
            numbers, pages = entry.pages()
            other = np.frombuffer(pages, np.uint8) ^ 1
            size = entry.head.page_bytes
            parts = [other[at : at + size].tobytes() for at in range(0, len(other), size)]
            objects[key] = Entry.make(entry.head, numbers, parts).data
    with pytest.raises((CorruptSnapshot, AssertionError)) as raised:
        await running.restored(last, tmp_path / "r")
    if damage != "deleted":
        assert isinstance(raised.value, CorruptSnapshot)
        assert "restore to" in str(raised.value.hint)
    with contextlib.suppress(KeyError):
        earlier = sorted(running.moments)[-3]
        assert await running.restored(earlier, tmp_path / "earlier") == running.moments[earlier]


@pytest.mark.parametrize("fate", ["before", "after"])
async def test_a_fault_at_any_request_skips_nothing(tmp_path: Path, fate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request of the journal fails once, before or after the store did it."""
    monkeypatch.setattr("gateway.journal.journal._AGAIN_S", (0.01,))
    at = 0
    while True:
        at += 1
        if await _with_a_fault(tmp_path / f"{at}", MemoryStore(), at, fate) < at:
            break  # a scenario ended before its fault came
    assert at > 10


async def _with_a_fault(path: Path, store: MemoryStore, at: int, fate: str) -> int:
    """Write and save with a fault at request number `at`. Return how many requests there were."""
    requests = 0

    def failing(name: str) -> None:
        method = getattr(store, name)

        async def call(*args: Any) -> Any:
            nonlocal requests
            requests += 1
            if requests == at:
                if fate == "after":
                    await method(*args)
                raise StorageUnavailable("a fault")
            return await method(*args)

        setattr(store, name, call)

    for name in ("put_if_absent", "get_range"):
        failing(name)
    (path / "live").mkdir(parents=True)
    lab = Lab(path / "live", store)
    try:
        async with background(lab.journal.run()):
            for turn in range(4):
                lab.write()
                if turn == 2:
                    lab.leader.epoch += 1  # a restart: the sequence is sealed again
                while True:
                    try:
                        await lab.save()
                        break
                    except StorageUnavailable:
                        continue

            for number, image in lab.moments.items():
                try:
                    found = await lab.restored(number, path / f"{number}")
                except StorageUnavailable:
                    found = await lab.restored(number, path / f"{number} again")
                assert found == image, (at, number)
    finally:
        lab.close()
    return requests


async def test_a_clock_that_is_set_back_makes_no_moment_older(
    running: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each moment is that of one entry, which `restore --at` finds. Merging leaves the newest of them."""
    for hours in (0, -1, -2, -2, 3):

        class Clock:
            @staticmethod
            def now(tz: Any = None) -> datetime:
                return datetime.now(tz) + timedelta(hours=hours)  # noqa: B023

        monkeypatch.setattr("gateway.journal.journal.datetime", Clock)
        running.write()
        await running.save()
    sequence = running.journal.sequence
    heads = [(await sequence.read(each.key)).head for each in await sequence.entries()]
    moments = [head.at for head in heads]
    assert moments == sorted(moments)
    assert len(set(moments)) == len(moments)
    line = Line(sequence, await sequence.entries())
    assert [await line.newest_at(at) for at in moments] == heads
    assert await Merger(sequence).merge_old(datetime.now(UTC) - timedelta(hours=1)) == 0, "nothing is old by this clock"
    assert await Merger(sequence).merge_old(datetime.now(UTC) + timedelta(hours=9)) >= 3
    for each in await sequence.entries():
        if each.last in running.moments:
            assert await running.restored(each.last, tmp_path / f"{each.last}") == running.moments[each.last]
    assert (await sequence.entries())[-1].last == heads[-1].number


async def test_what_is_deleted_last_is_stored_too(running: Lab) -> None:
    """Data of which nothing is left are not data of which nothing has to be stored."""
    for _ in range(2):
        running.write()
        await running.save()
    running.journal._has_data = lambda: False
    running.journal.end_run()
    running.writer.execute("delete from embeddings_queue")
    entries = running.journal.counts.entries
    await running.journal.stored()
    assert running.journal.counts.entries == entries + 1


async def test_replaced_data_get_a_number_of_their_own(running: Lab) -> None:
    """So a snapshot of the new data is not taken for one of the old data, whatever clocks say."""
    for _ in range(2):
        running.write()
        await running.save()
    before = running.journal.number()
    async with running.journal.new_run():
        running.write()
    await running.snapshots.take()
    assert max(journal for _, journal in running.snapshots.taken.values()) == before + 1
    running.write()
    number = await running.save()
    kinds = {
        each.last: (await running.journal.sequence.read(each.key)).head.kind
        for each in await running.journal.sequence.entries()
    }
    assert (kinds[before], kinds[before + 1], kinds[number]) == (Kind.PAGES, Kind.VOID, Kind.PAGES)
    assert running.leader.noted[-1] == before


async def test_whether_own_data_are_older_than_the_journal(running: Lab, tmp_path: Path) -> None:
    for _ in range(3):
        running.write()
        await running.save()
    newest = await running.journal.sequence.newest()
    assert newest is not None
    cut = newest.head.cut
    (tmp_path / "home").mkdir()
    DataDirectory(tmp_path / "home").make()
    memory = DataDirState(tmp_path / "home")

    running.journal.is_behind = lambda head: why_behind(head, running.path, memory)
    why = running.journal.why_behind

    assert "another gateway has written" in str(await why())
    memory._remember([], stems_from=[newest.head.author])
    assert await why() is None, "the log is as new as the entry's"
    memory.note_stored(cut - 2)
    assert "older than the journal" in str(await why()), "as on a disk that was set back"
    memory.note_stored(cut - 1)  # the newest one was stored, and not noted in time
    assert await why() is None
    running.writer.execute("delete from embeddings_queue where seq_id > 1")  # as with a collection
    assert "older than the journal" in str(await why())
    memory.note_stored(cut)
    assert await why() is None
    memory.see_journal(cut)
    memory.note_stored(0)
    assert await why() is None, "it was put back on purpose"


async def test_a_lease_that_was_deleted_begins_above_the_journal(running: Lab) -> None:
    running.leader.epoch = 7
    running.write()
    await running.save()
    assert await running.journal.sequence.first_epoch() == 8
    with pytest.raises(Superseded):
        await running.journal.sequence.seal(7, "somebody else", "there")


async def test_a_gateway_with_data_that_seals_after_a_last_write_of_another_falls_behind(running: Lab) -> None:
    """Between the look at the journal and the seal, the one before may still have stored something."""
    running.write()
    await running.save()
    running.leader.epoch, running.leader.had_data = 2, True

    async def is_behind(_head: object) -> str:
        return "they lack entry 2"

    running.journal.is_behind = is_behind
    with pytest.raises(LeaseLost, match="they lack entry 2"):
        await running.journal.seal()
    assert running.leader.behind == "they lack entry 2"
