"""The picture of a history: how much was written when, of what a list of the store tells."""

from datetime import UTC, datetime, timedelta

from gateway.journal.volume import EntryTimes, Part, divide

T0 = datetime(2026, 11, 26, 20, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def test_moments_between_known_ones_are_estimated() -> None:
    """In proportion to the numbers; before the first and after the last nothing is made up."""
    times = EntryTimes([(30, at(300)), (10, at(100)), (20, at(120))])
    assert [times.at(number) for number in (10, 15, 20, 25, 30)] == [at(100), at(110), at(120), at(210), at(300)]
    assert (times.at(1), times.at(99)) == (at(100), at(300))
    assert EntryTimes([]).at(1) is None


def test_moments_only_grow() -> None:
    """Also where a clock was set back, and where two sources differ: the earlier one is that of the cut."""
    times = EntryTimes([(1, at(50)), (2, at(40)), (3, at(60)), (3, at(90))])
    assert [times.at(number) for number in (1, 2, 3)] == [at(50), at(50), at(60)]


def test_what_was_stored_is_divided_into_parts() -> None:
    """Equal in time, without the empty ones; the end belongs to the last, and what lies outside to none."""
    stored = [(at(-1), 1, 1), (at(0), 1, 10), (at(9.9), 2, 20), (at(30), 1, 5), (at(40), 3, 7), (at(41), 1, 1)]
    assert divide(stored, at(0), at(40), 4) == [Part(at(0), 3, 30), Part(at(30), 4, 12)]


def test_a_time_of_no_length_has_one_part() -> None:
    """A store with one snapshot."""
    assert divide([(at(0), 1, 10)], at(0), at(0), 100) == [Part(at(0), 1, 10)]
