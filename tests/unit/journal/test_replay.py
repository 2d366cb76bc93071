"""What a moment is restored from, also where entries are missing or damaged: nothing is skipped."""

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.errors import CorruptSnapshot, NothingToRestore
from gateway.journal.sequence import key_of
from gateway.storage import FileStorage
from tests.unit.journal.lines import BASE, LAST, LATER, at, fill, point, snapshot_at, snapshot_id


@pytest.fixture
async def store(tmp_path: Path) -> FileStorage:
    made = FileStorage(tmp_path)
    await fill(made)
    return made


async def damage(store: FileStorage, number: int, how: str) -> None:
    if how == "missing":
        await store.delete(key_of(number))
    else:
        data = await store.get(key_of(number))
        await store.put(key_of(number), data[:-9] if how == "cut off" else bytes(byte ^ 8 for byte in data))


async def test_each_moment_comes_from_the_newest_snapshot_before_it(store: FileStorage) -> None:
    """With the entries between, and with none of those that the snapshot has."""
    for number in range(BASE, LAST + 1):
        for moment in (at(number), at(number + 0.5)):
            found = await point(store, moment)
            base = LATER if number >= LATER else BASE - 1
            assert found.manifest.snapshot.id == snapshot_id(base)
            assert [each.last for each in found.entries] == list(range(base + 1, number + 1))
            assert found.at == at(number)
    assert (await point(store, None)).at == at(LAST)
    with pytest.raises(NothingToRestore):
        await point(store, at(0))


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_was_set_does_not_change_what_is_restored(store: FileStorage, hours: int) -> None:
    """Numbers tell what came first: of a snapshot that says to be an hour older or newer, as well."""
    await snapshot_at(store, LATER, clock=timedelta(hours=hours))
    for number in range(BASE, LAST + 1):
        for moment in (at(number), at(number + 0.5)):
            found = await point(store, moment)
            # At its own number it may have more than the entry: then the entry is restored.
            base = LATER if number > LATER or (number == LATER and hours < 0) else BASE - 1
            assert (found.manifest.snapshot.id, len(found.entries)) == (snapshot_id(base), number - base)
            assert found.head is None or found.at == at(number)
    assert (await point(store, None)).at == at(LAST)


@pytest.mark.parametrize("how", ["missing", "cut off", "flipped"])
async def test_a_moment_whose_entry_is_damaged_is_refused_with_the_way_out(store: FileStorage, how: str) -> None:
    """The state before it is another one. All moments that can be told are restored as before."""
    for number in (7, 20, 33):
        await damage(store, number, how)
    for number in range(BASE, LAST + 1):
        if number in (7, 20, 33):
            with pytest.raises(CorruptSnapshot) as refused:
                await point(store, at(number + 0.5))
            assert refused.value.hint == f"restore to {at(number - 1).isoformat()}, which is as far as it goes"
        is_followed = number < 7 or LATER <= number < 33  # a replay of the others meets a damaged one
        if is_followed:
            assert (await point(store, at(number))).at == at(number)
    if how == "missing":
        with pytest.raises(CorruptSnapshot, match="entry 33 of the journal is missing") as refused:
            await point(store, None)
        assert refused.value.hint == f"restore to {at(32).isoformat()}, which is as far as it goes"


async def test_a_newest_entry_that_is_damaged_is_not_left_out(store: FileStorage) -> None:
    """A start ends with an error that names the newest moment that can be restored."""
    for number in (LAST, LAST - 1):
        await damage(store, number, "cut off")
    with pytest.raises(CorruptSnapshot, match="truncated") as refused:
        await point(store, None)
    assert refused.value.hint == f"restore to {at(LAST - 2).isoformat()}, which is as far as it goes"
    assert (await point(store, at(LAST - 2))).at == at(LAST - 2)


async def test_where_nothing_can_be_read_a_snapshot_is_the_way_out(store: FileStorage) -> None:
    for number in range(1, LAST + 1):
        await damage(store, number, "flipped")
    for moment in (None, at(10)):
        with pytest.raises(CorruptSnapshot) as refused:
            await point(store, moment)
        assert "restore a snapshot" in str(refused.value.hint)


async def test_of_what_history_dropped_snapshots_are_left(store: FileStorage) -> None:
    """Seals stay, and are no reason to refuse a moment."""
    for number in range(2, LATER + 1):
        await store.delete(key_of(number))
    assert (await point(store, at(10))).manifest.snapshot.id == snapshot_id(BASE - 1)
    assert (await point(store, at(LATER + 0.5))).entries == []
    assert (await point(store, at(30))).at == at(30)
