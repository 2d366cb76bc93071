"""How much the journal stored when: the picture of a history. Pure.

A list of the store tells the number and size of each entry, and not its moment. The moments of some are known: an entry
that was never merged was stored when it was cut, a snapshot contains the entries up to a number, and some heads were
read. Moments grow with the numbers, so those in between are estimated.
"""

import bisect
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple


class Part(NamedTuple):
    """What was stored from `at` on, for as long as one part lasts."""

    at: datetime
    entries: int
    stored_bytes: int


class EntryTimes:
    """When entries were cut, by their numbers. `known`: numbers and moments of some, in any order."""

    def __init__(self, known: Iterable[tuple[int, datetime]]) -> None:
        moments: dict[int, datetime] = {}
        for number, at in known:
            moments[number] = min(at, moments.get(number, at))
        self._numbers = sorted(moments)
        self._moments: list[datetime] = []
        for number in self._numbers:  # a clock may have been set back
            self._moments.append(max(moments[number], self._moments[-1]) if self._moments else moments[number])

    def at(self, number: int) -> datetime | None:
        """About when the entry of that number was cut; None if nothing is known."""
        if not self._numbers:
            return None
        after = bisect.bisect_left(self._numbers, number)
        if after == len(self._numbers):
            return self._moments[-1]
        if after == 0 or self._numbers[after] == number:
            return self._moments[after]
        low, high = self._numbers[after - 1], self._numbers[after]
        between = (number - low) / (high - low)
        return self._moments[after - 1] + (self._moments[after] - self._moments[after - 1]) * between


def divide(stored: Sequence[tuple[datetime, int, int]], begin: datetime, end: datetime, parts: int) -> list[Part]:
    """Divide the time from `begin` to `end` into equal parts. Return those in which something was stored, in order.

    `stored`: of each object its moment, how many entries are in it, and its bytes.
    """
    step = max((end - begin) / parts, timedelta(milliseconds=1))
    found: dict[int, tuple[int, int]] = {}
    for at, entries, size_bytes in stored:
        if begin <= at <= end:
            index = min(parts - 1, int((at - begin) / step))
            before = found.get(index, (0, 0))
            found[index] = before[0] + entries, before[1] + size_bytes
    return [Part(begin + step * index, *found[index]) for index in sorted(found)]
