"""When the next snapshot is due. Pure: every moment is handed in.

Jitter keeps a fleet that was started together from coming to one store together. A turn that was
missed, by a long snapshot or a machine asleep, is not made up for: one snapshot holds it all.
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
        turns = max(0, (moment - self._start).total_seconds() // self._interval_s)
        due = self._start + timedelta(seconds=(turns + 1) * self._interval_s)
        # A division of floats may be off by a hair at a turn itself.
        return due if due > moment else due + timedelta(seconds=self._interval_s)


class Cron:
    """As a line of cron says: five fields, or six of which the first is seconds."""

    def __init__(self, expression: str) -> None:
        self._expression = expression

    def after(self, moment: datetime) -> datetime:
        return next(CronSim(self._expression, moment))


class Jittered:
    """Another schedule, each of its times put off by up to `jitter_s`."""

    def __init__(self, schedule: Schedule, jitter_s: float, random: Callable[[], float]) -> None:
        """`random` gives numbers from 0 to 1."""
        self._schedule, self._jitter_s, self._random = schedule, jitter_s, random

    def after(self, moment: datetime) -> datetime:
        return self._schedule.after(moment) + timedelta(seconds=self._jitter_s * self._random())


def check_cron(expression: str) -> None:
    """Raise ValueError unless `expression` is a cron line that ever comes true."""
    try:
        next(CronSim(expression, datetime(2026, 1, 1)))  # noqa: DTZ001  # any moment will do
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"{expression!r} is no cron expression such as '17 * * * *': {error or 'never due'}") from None
