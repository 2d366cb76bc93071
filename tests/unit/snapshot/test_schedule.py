"""When a snapshot is due."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.snapshot.schedule import Cron, Every, Jittered, check_cron

START = datetime(2026, 11, 20, 21, 4, 55, tzinfo=UTC)


@pytest.mark.parametrize(("after_s", "due_s"), [(-5, 10), (0, 10), (9.99, 10), (10, 20), (34, 40)])
def test_an_interval_is_counted_from_the_start(after_s: float, due_s: float) -> None:
    """A turn that was missed is not made up for, and none is moved by how long the one before took."""
    assert Every(START, 10).after(START + timedelta(seconds=after_s)) == START + timedelta(seconds=due_s)


@given(st.floats(0.001, 1e6), st.floats(0, 1e7))
def test_what_is_due_lies_ahead(interval_s: float, after_s: float) -> None:
    """Always, and no further than one interval: a schedule never stands still, whatever floats do."""
    moment = START + timedelta(seconds=after_s)
    due = Every(START, interval_s).after(moment)
    assert moment < due <= moment + timedelta(seconds=interval_s * 2)


def test_a_line_of_cron() -> None:
    """In the time zone of the moment it is asked with."""
    assert Cron("17 3 * * *").after(START) == datetime(2026, 11, 21, 3, 17, tzinfo=UTC)
    there = ZoneInfo("Europe/Berlin")
    assert Cron("17 3 * * *").after(START.astimezone(there)) == datetime(2026, 11, 21, 2, 17, tzinfo=UTC)


def test_an_hour_that_is_skipped_or_comes_twice_is_one_turn() -> None:
    """When clocks change, what is due at a time that does not exist, or exists twice, is due once."""
    there, schedule = ZoneInfo("Europe/Berlin"), Cron("30 2 * * *")
    for year, month, day in ((2026, 3, 28), (2026, 10, 24)):
        moments = [datetime(year, month, day, 12, tzinfo=there)]
        for _ in range(3):
            moments.append(schedule.after(moments[-1]))
        assert [b.date() - a.date() for a, b in pairwise(moments)] == [timedelta(days=1)] * 3


def test_jitter_only_ever_delays() -> None:
    """By what chance says, up to all of it."""
    every = Every(START, 10)
    assert Jittered(every, 4, lambda: 0.5).after(START) == START + timedelta(seconds=12)
    assert Jittered(every, 0, lambda: 0.5).after(START) == START + timedelta(seconds=10)


@pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "every day", "0 0 31 2 *"])
def test_what_is_no_cron_line_is_refused(expression: str) -> None:
    """At the start, not at the first turn; also one that never comes true."""
    with pytest.raises(ValueError, match="no cron expression"):
        check_cron(expression)
