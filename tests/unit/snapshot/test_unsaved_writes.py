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


def test_replaced_data_count_as_changed() -> None:
    """Also without a write."""
    unsaved_writes = UnsavedWrites(lambda: 7)
    unsaved_writes.cut()
    unsaved_writes.saved()
    unsaved_writes.nothing_is_saved()
    assert (unsaved_writes.any, unsaved_writes.writes) == (True, None)
