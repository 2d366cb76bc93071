"""When the next snapshot is due. Pure: the present moment is an argument.

Jitter spreads the snapshots of gateways that were started together over time. A due time that was missed, because a
snapshot took long or the machine slept, is skipped: the next snapshot holds everything.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from cronsim import CronSim, CronSimError


class Schedule(Protocol):
    """The times at which snapshots are due."""

    def after(self, moment: datetime) -> datetime:
        """The first due time after `moment`, in its time zone."""
        ...


class Every:
    """Every `interval_s` seconds, counted from `start`."""

    def __init__(self, start: datetime, interval_s: float) -> None:
        self._start, self._interval_s = start, interval_s

    def after(self, moment: datetime) -> datetime:
        intervals = max(0, (moment - self._start).total_seconds() // self._interval_s)
        due = self._start + timedelta(seconds=(intervals + 1) * self._interval_s)
        # Float division may be off by one interval where `moment` is exactly a due time.
        return due if due > moment else due + timedelta(seconds=self._interval_s)


class Cron:
    """By a cron expression of five fields, or of six, of which the first is seconds."""

    def __init__(self, expression: str) -> None:
        self._expression = expression

    def after(self, moment: datetime) -> datetime:
        return next(CronSim(self._expression, moment))


class Jittered:
    """Another schedule, with each due time delayed by up to `jitter_s`."""

    def __init__(self, schedule: Schedule, jitter_s: float, random: Callable[[], float]) -> None:
        """`random` returns numbers from 0 to 1."""
        self._schedule, self._jitter_s, self._random = schedule, jitter_s, random

    def after(self, moment: datetime) -> datetime:
        return self._schedule.after(moment) + timedelta(seconds=self._jitter_s * self._random())


def check_cron(expression: str) -> None:
    """Raise ValueError unless `expression` is a cron expression that has a due time."""
    try:
        next(CronSim(expression, datetime(2026, 1, 1)))  # noqa: DTZ001  # any moment will do
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"{expression!r} is no cron expression such as '17 * * * *': {error or 'never due'}") from None
