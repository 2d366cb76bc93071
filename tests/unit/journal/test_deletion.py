"""History lists no moment that cannot be restored after a snapshot was deleted, and no number is given twice."""

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.errors import CorruptSnapshot, LeaseLost
from gateway.journal.deletion import drop_with
from gateway.journal.entry import NO_PAGES, Entry
from gateway.journal.history import Gap, History
from gateway.journal.merge import Merger
from gateway.journal.sequence import Sequence, key_of
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


async def may_write() -> None:
    """The lease is held."""


async def delete(store: FileStorage, *numbers: int) -> int:
    ids = [snapshot_id(number) for number in numbers]
    dropped = await drop_with(Sequence(store), Repository(store), ids, may_write)
    for each in ids:
        await store.delete(f"snapshots/{each}/manifest.json")
    return dropped


async def begin_run(store: FileStorage, run: int, over: int) -> None:
    """Let a new run begin at entry `run`, over the snapshot of `over`, as after a restore."""
    for number in range(run, LAST + 1):
        entry = await Sequence(store).read(key_of(number))
        head = entry.head.model_copy(update={"run": run, "snapshot": snapshot_id(over)})
        await store.put(key_of(number), Entry.make(head, NO_PAGES, ()).data)


async def numbers_of(store: FileStorage) -> list[int]:
    return [each.last for each in await Sequence(store).entries()]


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


async def test_moments_go_only_from_where_a_run_began_over_the_deleted_snapshot(store: FileStorage) -> None:
    """The entries before that are of a run that the snapshot before leads into."""
    await begin_run(store, 31, over=LATER)
    assert await delete(store, LATER) == NEXT - 30
    assert await numbers_of(store) == [*range(1, 31), *range(NEXT + 1, LAST + 1)]
    for number in (LATER, LATER + 1, 30):
        assert (await point(store, at(number))).at == at(number)
    with pytest.raises(CorruptSnapshot):
        await point(store, at(31))


async def test_moments_of_a_run_over_another_snapshot_stay(store: FileStorage) -> None:
    """Only those before it need the deleted one."""
    await snapshot_at(store, LATER, position=3)
    await begin_run(store, 31, over=BASE - 1)
    assert await delete(store, LATER) == 30 - LATER
    assert await numbers_of(store) == [*range(1, LATER + 1), *range(31, LAST + 1)]
    assert (await point(store, at(33))).manifest.snapshot.id == snapshot_id(BASE - 1)


async def test_of_snapshots_that_go_together_none_leads_anywhere(store: FileStorage) -> None:
    """As when retention drops both: the one before would lead to the moments after the other, were it kept."""
    assert await delete(store, BASE - 1, LATER) == NEXT - BASE + 1
    assert await numbers_of(store) == [1, *range(NEXT + 1, LAST + 1)]


async def test_nothing_goes_once_the_lease_is_lost(store: FileStorage) -> None:
    """It is looked at when everything else was read."""

    async def lost() -> None:
        raise LeaseLost("another gateway has it")

    with pytest.raises(LeaseLost):
        await drop_with(Sequence(store), Repository(store), [snapshot_id(BASE - 1)], lost)
    assert await numbers_of(store) == [*range(1, LAST + 1)]


async def test_a_damaged_entry_does_not_hold_up_a_deletion(store: FileStorage) -> None:
    """It stays, as a restore says that it is damaged."""
    await store.put(key_of(10), b"damaged")
    assert await delete(store, BASE - 1) == LATER - BASE
    assert await numbers_of(store) == [1, 10, *range(LATER + 1, LAST + 1)]


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
