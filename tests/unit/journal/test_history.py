"""History tells which moments can be restored, and reads few entries for it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.journal.entry import NO_PAGES, Entry, Head, Kind
from gateway.journal.history import Gap, History, gaps, whole_since
from gateway.journal.sequence import Listed, Sequence, key_of, merged_key
from gateway.journal.usage import Durations, LastHour
from gateway.snapshot.repository import Repository
from gateway.storage import FileStorage
from tests.unit.snapshot.manifests import manifest

T0 = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
HISTORY_S = 86_400


class CountedStorage(FileStorage):
    """Counts the heads of entries that are read."""

    heads = 0

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        self.heads += key.startswith("journal")
        return await super().get_range(key, start, length)


@pytest.fixture
def store(tmp_path: Path) -> CountedStorage:
    return CountedStorage(tmp_path / "store")


@pytest.fixture
def history(store: CountedStorage) -> History:
    return History(Sequence(store), Repository(store), HISTORY_S)


def at(number: int) -> datetime:
    return T0 + timedelta(seconds=number)


def head(number: int, *, first: int | None = None, epoch: int = 1, run: int = 0, seal: bool = False) -> Head:
    return Head(
        number=number,
        first=first or number,
        epoch=epoch,
        writer="w",
        where="host:1",
        kind=Kind.SEAL if seal else Kind.PAGES,
        at=at(number),
        previous="",
        run=run,
        snapshot="S",
        restored_to=at(3) if run == number > 2 else None,
    )


async def put(store: FileStorage, each: Head) -> None:
    key = key_of(each.number) if each.first == each.number else merged_key(each.first, each.number)
    await store.put(key, Entry.make(each, NO_PAGES, ()).data)


async def snapshot_at(store: FileStorage, number: int, journal: int | None) -> str:
    snapshot_id = f"{at(number):%Y%m%dT%H%M%SZ}-000000"
    found = manifest(snapshot_id)
    snapshot = found.snapshot.model_copy(update={"created_at": at(number), "label": "checkpoint"})
    await store.put(
        f"snapshots/{snapshot_id}/manifest.json",
        found.model_copy(update={"snapshot": snapshot, "journal": journal}).to_bytes(),
    )
    return snapshot_id


async def filled(store: FileStorage, last: int = 200) -> None:
    """A gateway from number 1 on with a restore at 101, and another gateway from 151 on."""
    for number in range(1, last + 1):
        epoch, run = (1, 2 if number < 101 else 101) if number < 151 else (2, 101 if number < 152 else 152)
        await put(store, head(number, epoch=epoch, run=run if number > 1 else 0, seal=number in (1, 151)))


async def test_marks_are_found_by_reading_few_entries(store: CountedStorage, history: History) -> None:
    """Takeovers and restores, newest first. What was read once is not read again."""
    await filled(store, 1000)
    page = await history.page(10)
    assert [(mark.kind, mark.position) for mark in page.marks] == [
        ("restore", "2-152"),
        ("seal", "2-151"),
        ("restore", "1-101"),
        ("run", "1-2"),
        ("seal", "1-1"),
    ]
    assert page.marks[2].restored_to == at(3)
    assert page.before is None
    assert store.heads < 60
    before = store.heads
    assert (await history.page(10)).marks == page.marks
    assert store.heads == before


async def test_marks_have_pages(store: CountedStorage, history: History) -> None:
    """The newest ones first; `before` goes on where a page ended."""
    await filled(store)
    seen, before = list[int](), None
    while True:
        page = await history.page(2, before)
        seen += [mark.number for mark in page.marks]
        if (before := page.before) is None:
            break
    assert seen == [152, 151, 101, 2, 1]


async def test_the_window_begins_with_the_oldest_snapshot_that_the_journal_follows(
    store: CountedStorage, history: History
) -> None:
    """Before a gap only the moments of snapshots can be restored. An upload is no base of the journal."""
    await filled(store)
    for number, journal in ((5, 5), (50, 50), (60, None), (70, 70), (160, 160)):
        await snapshot_at(store, number, journal)
    window = await history.window()
    assert window is not None
    assert (window.oldest, window.newest, window.full_since) == (at(5), at(200), at(5))
    await store.delete(key_of(55))
    page = await history.page(10)
    assert page.gaps == [Gap(55, 55)]
    assert page.window is not None
    assert (page.window.oldest, page.window.newest) == (at(70), at(200))
    assert [each.at for each in page.snapshots] == [at(160), at(70), at(60), at(50), at(5)]
    assert history.known == page.window


async def test_a_damaged_entry_is_a_gap(store: CountedStorage, history: History) -> None:
    """History is told all the same: it is what people look at then."""
    await filled(store)
    await snapshot_at(store, 5, 5)
    await snapshot_at(store, 160, 160)
    for number in (101, 151, 200):
        await store.put(key_of(number), b"damaged")
    page = await history.page(10)
    assert [mark.number for mark in page.marks] == [152, 102, 2, 1]
    assert page.gaps == [Gap(101, 101), Gap(151, 151)]
    assert page.window is not None
    assert (page.window.oldest, page.window.newest) == (at(160), at(199))


async def test_merged_entries_end_the_full_resolution(store: CountedStorage, history: History) -> None:
    """A merged entry has the place of many, so nothing is missing."""
    await filled(store)
    await snapshot_at(store, 5, 5)
    await put(store, head(30, first=10, run=2))
    await store.delete_all([key_of(number) for number in range(10, 31)])
    page = await history.page(10)
    assert page.gaps == []
    assert page.window is not None
    assert (page.window.oldest, page.window.full_since) == (at(5), at(30))


async def test_what_history_dropped_is_no_gap(store: CountedStorage) -> None:
    """A snapshot that is older than the window has all that was before it. Seals stay."""
    history = History(Sequence(store), Repository(store), history_s=600)
    await filled(store)
    await snapshot_at(store, 120, 120)
    await store.delete_all([key_of(number) for number in range(2, 121)])
    page = await history.page(10)
    assert page.gaps == []
    assert page.window is not None
    assert page.window.oldest == at(120)


async def test_without_entries_the_window_is_the_newest_snapshot(store: CountedStorage, history: History) -> None:
    """And None without a snapshot."""
    assert await history.window() is None
    await snapshot_at(store, 5, None)
    page = await history.page(10)
    assert page.window is not None
    assert page.window.oldest == page.window.newest == at(5)
    assert page.marks == []


def test_gaps_and_what_is_whole_follow_from_the_numbers() -> None:
    """Also where a merged entry and those that it holds are there."""

    def listed(*parts: tuple[int, int]) -> list[Listed]:
        return sorted((Listed("", a, b, 1, T0) for a, b in parts), key=lambda each: (each.last, each.first))

    whole = listed((1, 1), (2, 4), (3, 3), (4, 4), (5, 5))
    assert (gaps(whole), whole_since(whole)) == ([], 1)
    torn = listed((1, 1), (4, 6), (5, 5), (9, 9), (10, 10))
    assert (gaps(torn), whole_since(torn)) == ([Gap(2, 3), Gap(7, 8)], 9)


def test_requests_of_the_last_hour_are_counted() -> None:
    """Those before are not."""
    counted = LastHour()
    for second in range(0, 7200, 2):
        counted.add(float(second))
    assert 1740 <= counted.count(7199.0) <= 1800
    assert counted.count(7199.0 + 3600) == 0
    assert len(counted._minutes) == 60


def test_durations_have_a_median() -> None:
    """Of the newest hundred; the total is of all."""
    durations = Durations()
    assert durations.p50_s is None
    for _ in range(100):
        durations.add(5)
    for _ in range(100):
        durations.add(1)
    assert (durations.p50_s, durations.total_s) == (1, 600)
