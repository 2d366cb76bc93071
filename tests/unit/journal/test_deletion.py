"""History lists no moment that cannot be restored after a snapshot was deleted, and no number is given twice."""

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.errors import CorruptSnapshot
from gateway.journal.deletion import drop_with
from gateway.journal.history import Gap, History
from gateway.journal.merge import Merger
from gateway.journal.sequence import Sequence
from gateway.snapshot.repository import Repository
from gateway.storage import FileStorage
from tests.unit.journal.lines import BASE, LAST, LATER, at, fill, point, snapshot_at, snapshot_id

NEXT = 35


@pytest.fixture
async def store(tmp_path: Path) -> FileStorage:
    made = FileStorage(tmp_path)
    await fill(made)
    await snapshot_at(made, NEXT, position=3)
    return made


async def delete(store: FileStorage, number: int) -> int:
    dropped = await drop_with(Sequence(store), Repository(store), snapshot_id(number))
    await store.delete(f"snapshots/{snapshot_id(number)}/manifest.json")
    return dropped


async def test_moments_that_need_a_deleted_snapshot_go_with_it(store: FileStorage) -> None:
    """The log in the database goes back to its indexes only. Moments before and after it come back as before."""
    await snapshot_at(store, LATER, position=3)
    assert await delete(store, LATER) == NEXT - LATER
    for number in range(BASE, LAST + 1):
        if LATER < number <= NEXT:
            with pytest.raises(CorruptSnapshot) as refused:
                await point(store, at(number) - timedelta(seconds=1))
            assert refused.value.hint == f"restore to {at(LATER).isoformat()}, which is as far as it goes"
        else:
            assert (await point(store, at(number))).at == at(number)
    page = await History(Sequence(store), Repository(store), history_s=86_400).page(10)
    assert page.window is not None
    assert (page.window.oldest, page.window.newest) == (at(NEXT), at(LAST))
    assert page.gaps == [Gap(LATER + 1, NEXT)]


async def test_moments_that_the_snapshot_before_leads_to_stay(store: FileStorage) -> None:
    assert await delete(store, LATER) == 0
    for number in (BASE, LATER, LATER + 1, NEXT, LAST):
        found = await point(store, at(number))
        assert (found.at, found.manifest.journal) == (at(number), NEXT if number >= NEXT else BASE - 1)


async def test_the_first_snapshot_takes_all_moments_up_to_the_next_with_it(store: FileStorage) -> None:
    """Nothing is before it."""
    assert await delete(store, BASE - 1) == LATER - BASE + 1
    page = await History(Sequence(store), Repository(store), history_s=86_400).page(10)
    assert page.window is not None
    assert page.window.oldest == at(LATER)
    assert (await point(store, at(LATER + 1))).at == at(LATER + 1)


async def test_the_newest_entry_stays_so_that_no_number_is_given_twice(store: FileStorage) -> None:
    await snapshot_at(store, NEXT, position=3)
    await delete(store, NEXT)
    assert (await Sequence(store).seal(2, "another", "there")).head.number == LAST + 1
    await snapshot_at(store, LAST + 1)
    await Merger(Sequence(store)).drop_until(LAST + 1)
    assert (await Sequence(store).seal(3, "a third", "there")).head.number == LAST + 2


async def test_the_newest_cut_stays_when_all_history_is_dropped(store: FileStorage) -> None:
    """As after a day in which nothing was written."""
    await snapshot_at(store, LAST)
    assert await Merger(Sequence(store)).drop_until(LAST) == LAST - 2
    assert (await Sequence(store).seal(2, "another", "there")).head.number == LAST + 1
    assert (await point(store, None)).at == at(LAST)


async def test_an_upload_takes_nothing_with_it_and_is_not_the_newest_state(store: FileStorage) -> None:
    """A start before the next checkpoint brings back what was served, not the archive."""
    await snapshot_at(store, LAST + 5, journal=None)
    assert (await point(store, None)).at == at(LAST)
    assert await delete(store, LAST + 5) == 0


async def test_an_upload_is_the_newest_state_where_nothing_was_served(tmp_path: Path) -> None:
    store = FileStorage(tmp_path)
    await Sequence(store).seal(1, "w", "here")
    await snapshot_at(store, 1000, journal=None)
    assert (await point(store, None)).manifest.snapshot.id == snapshot_id(1000)
