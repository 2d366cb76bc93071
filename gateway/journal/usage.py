"""What the journal costs: how long cuts and requests take, and how many requests there were. Pure."""

from collections import deque
from statistics import median

_REMEMBERED = 100
_MINUTE_S, _MINUTES = 60.0, 60
PUT_USD = 0.005 / 1000
"""The list price of one PUT at S3 Standard, in us-east-1."""


class Durations:
    """The newest hundred durations, in seconds."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=_REMEMBERED)
        self.total_s = 0.0

    def add(self, duration_s: float) -> None:
        self._newest.append(duration_s)
        self.total_s += duration_s

    @property
    def p50_s(self) -> float | None:
        """The median of the newest hundred; None before the first."""
        return median(self._newest) if self._newest else None


class LastHour:
    """Counts what happened in the last hour, by the minute."""

    def __init__(self) -> None:
        self._minutes: deque[tuple[int, int]] = deque(maxlen=_MINUTES)

    def add(self, now_s: float) -> None:
        """Count one event, at `now_s` by a clock that is never set."""
        minute = int(now_s // _MINUTE_S)
        count = self._minutes.pop()[1] if self._minutes and self._minutes[-1][0] == minute else 0
        self._minutes.append((minute, count + 1))

    def count(self, now_s: float) -> int:
        """How many events there were in the hour before `now_s`."""
        return sum(count for minute, count in self._minutes if minute > now_s // _MINUTE_S - _MINUTES)
