"""Whether the newest snapshot lacks something."""

from gateway.snapshot.unsaved_writes import UnsavedWrites


def test_write_after_the_cut_counts_as_unsaved() -> None:
    """The time of the cut decides, not the time of the publication."""
    count = 0
    unsaved_writes = UnsavedWrites(lambda: count)
    assert unsaved_writes.any, "what was there before is not known"
    unsaved_writes.cut()
    unsaved_writes.saved()
    assert (unsaved_writes.any, unsaved_writes.writes) == (False, 0)
    unsaved_writes.cut()
    count += 1
    unsaved_writes.saved()
    assert (unsaved_writes.any, unsaved_writes.writes) == (True, 1)


def test_cut_without_a_publication_saves_nothing() -> None:
    """The snapshot failed on its way to the store."""
    count = 1
    unsaved_writes = UnsavedWrites(lambda: count)
    unsaved_writes.cut()
    assert unsaved_writes.any


def test_age_is_that_of_the_oldest_write_that_is_not_saved() -> None:
    """0 as long as nothing is written, however long ago the last snapshot was."""
    count = 0
    unsaved_writes = UnsavedWrites(lambda: count)
    unsaved_writes.look(10)
    assert unsaved_writes.age_s(15) == 5, "what was there at the start may not be saved"
    unsaved_writes.cut()
    unsaved_writes.look(20)
    unsaved_writes.saved()
    for now_s in (100, 1e6):
        unsaved_writes.look(now_s)
        assert unsaved_writes.age_s(now_s) == 0
    count += 1
    unsaved_writes.look(1e6 + 1)
    count += 1
    unsaved_writes.look(1e6 + 2)
    assert unsaved_writes.age_s(1e6 + 4) == 3


def test_age_after_a_snapshot_is_that_of_the_first_write_after_its_cut() -> None:
    """Not that of its publication, and not that of a cut that came to nothing."""
    count = 0
    unsaved_writes = UnsavedWrites(lambda: count)
    unsaved_writes.look(0)
    unsaved_writes.cut()
    count += 1
    unsaved_writes.look(5)
    unsaved_writes.cut()
    count += 1
    unsaved_writes.look(7)
    assert unsaved_writes.age_s(8) == 8
    unsaved_writes.saved()
    unsaved_writes.look(9)
    assert unsaved_writes.age_s(10) == 3
    unsaved_writes.cut()
    unsaved_writes.saved()
    assert unsaved_writes.age_s(11) == 0


def test_replaced_data_count_as_changed() -> None:
    """Also without a write."""
    unsaved_writes = UnsavedWrites(lambda: 7)
    unsaved_writes.cut()
    unsaved_writes.saved()
    unsaved_writes.nothing_is_saved()
    assert (unsaved_writes.any, unsaved_writes.writes) == (True, None)
