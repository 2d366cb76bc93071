"""When a snapshot is due."""

import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.snapshot.schedule import Cron, Every, Jittered, check_cron
from gateway.snapshot.scheduler import local_zone, steady_clock

START = datetime(2026, 11, 20, 21, 4, 55, tzinfo=UTC)


@pytest.mark.parametrize(("after_s", "due_s"), [(-5, 10), (0, 10), (9.99, 10), (10, 20), (34, 40)])
def test_interval_is_counted_from_the_start(after_s: float, due_s: float) -> None:
    """A due time that was missed is skipped, and none is moved by how long the one before took."""
    assert Every(START, 10).after(START + timedelta(seconds=after_s)) == START + timedelta(seconds=due_s)


@given(st.floats(0.001, 1e6), st.floats(0, 1e7))
def test_due_time_is_always_ahead(interval_s: float, after_s: float) -> None:
    """By no more than about one interval, whatever the rounding of floats: a schedule never stands still."""
    moment = START + timedelta(seconds=after_s)
    due = Every(START, interval_s).after(moment)
    assert moment < due <= moment + timedelta(seconds=interval_s * 2)


def test_cron_expression() -> None:
    """In the time zone of the moment."""
    assert Cron("17 3 * * *").after(START) == datetime(2026, 11, 21, 3, 17, tzinfo=UTC)
    there = ZoneInfo("Europe/Berlin")
    assert Cron("17 3 * * *").after(START.astimezone(there)) == datetime(2026, 11, 21, 2, 17, tzinfo=UTC)


def test_hour_that_is_skipped_or_repeated_is_due_once() -> None:
    """When clocks change, a due time that does not exist, or exists twice, is due once."""
    there, schedule = ZoneInfo("Europe/Berlin"), Cron("30 2 * * *")
    for year, month, day in ((2026, 3, 28), (2026, 10, 24)):
        moments = [datetime(year, month, day, 12, tzinfo=there)]
        for _ in range(3):
            moments.append(schedule.after(moments[-1]))
        assert [b.date() - a.date() for a, b in pairwise(moments)] == [timedelta(days=1)] * 3


@pytest.mark.parametrize(("day", "due"), [("2026-03-28", 1), ("2026-10-24", 1)])
def test_the_zone_of_the_machine_knows_daylight_saving(day: str, due: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the offset of the moment alone, a night of Berlin was due twice or at the wrong hour."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    moments = [datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=local_zone())]
    for _ in range(3):
        moments.append(Cron("30 2 * * *").after(moments[-1]))
    assert [b.date() - a.date() for a, b in pairwise(moments)] == [timedelta(days=due)] * 3
    assert (moments[3].hour, moments[3].minute) == (2, 30)


def test_steady_clock_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's clock that is set a day back moves no interval."""
    monotonic_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: monotonic_s)
    now = steady_clock()
    start = now()
    monotonic_s += 60
    assert now() - start == timedelta(seconds=60)


def test_jitter_only_delays() -> None:
    """By a random part of it."""
    every = Every(START, 10)
    assert Jittered(every, 4, lambda: 0.5).after(START) == START + timedelta(seconds=12)
    assert Jittered(every, 0, lambda: 0.5).after(START) == START + timedelta(seconds=10)


@pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "every day", "0 0 31 2 *"])
def test_invalid_cron_expression_is_refused(expression: str) -> None:
    """At the start, not at the first due time. Also an expression that is never due."""
    with pytest.raises(ValueError, match="no cron expression"):
        check_cron(expression)
