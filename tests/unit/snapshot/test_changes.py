"""Whether the newest snapshot lacks something."""

from gateway.snapshot.changes import Changes


def test_write_after_the_cut_counts_as_unsaved() -> None:
    """The time of the cut decides, not the time of the publication."""
    count = 0
    changes = Changes(lambda: count)
    assert changes.any, "what was there before is not known"
    changes.cut()
    changes.saved()
    assert (changes.any, changes.writes) == (False, 0)
    changes.cut()
    count += 1
    changes.saved()
    assert (changes.any, changes.writes) == (True, 1)


def test_cut_without_a_publication_saves_nothing() -> None:
    """The snapshot failed on its way to the store."""
    count = 1
    changes = Changes(lambda: count)
    changes.cut()
    assert changes.any


def test_replaced_data_count_as_changed() -> None:
    """Also without a write."""
    changes = Changes(lambda: 7)
    changes.cut()
    changes.saved()
    changes.nothing_is_saved()
    assert (changes.any, changes.writes) == (True, None)
