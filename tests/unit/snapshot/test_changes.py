"""Whether the newest snapshot lacks something."""

from gateway.snapshot.changes import Changes


def test_a_write_after_the_cut_is_not_saved_by_it() -> None:
    """What counts is the moment of the cut, not that of the publication."""
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


def test_a_cut_that_was_never_published_saves_nothing() -> None:
    """It failed on its way to the store."""
    count = 1
    changes = Changes(lambda: count)
    changes.cut()
    assert changes.any


def test_exchanged_data_are_changed_data() -> None:
    """Also without any write."""
    changes = Changes(lambda: 7)
    changes.cut()
    changes.saved()
    changes.exchanged()
    assert (changes.any, changes.writes) == (True, None)
