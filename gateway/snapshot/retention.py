"""Which snapshots are kept, and why. Pure.

Each rule keeps the newest good snapshot of each of the newest so many hours, days, ISO weeks, months or
years, in UTC, that have one; `last` counts snapshots themselves. One that several rules keep counts for
each of them. What no rule keeps is dropped, except:

- with no rule at all everything is kept;
- the newest good one is kept in any case;
- what a person labelled is kept until a person deletes it; the gateway's own labels do not count;
- what cannot be read, or failed its verification, is kept: it may be wanted to find out what it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import NamedTuple

OWN_LABELS = frozenset({"scheduled", "final", "handover"})


@dataclass(frozen=True)
class Keep:
    """How many of each; 0 is no rule."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def everything(self) -> bool:
        """Whether there is no rule."""
        return not any(getattr(self, field.name) for field in fields(self))


class Candidate(NamedTuple):
    """What the rules need to know of a snapshot. `good`: it can be read, and no verification of it failed."""

    id: str
    created_at: datetime
    label: str | None
    good: bool


class RetentionPlan(NamedTuple):
    """`kept`: the reasons by id, newest first. `dropped`: ids, oldest first, so that an end midway leaves the newer."""

    kept: dict[str, tuple[str, ...]]
    dropped: tuple[str, ...]


def _iso_week(moment: datetime) -> tuple[int, int]:
    return moment.isocalendar()[:2]


_PERIODS: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda moment: (moment.date(), moment.hour),
    "daily": lambda moment: moment.date(),
    "weekly": _iso_week,
    "monthly": lambda moment: (moment.year, moment.month),
    "yearly": lambda moment: moment.year,
}


def plan_retention(snapshots: Iterable[Candidate], keep: Keep) -> RetentionPlan:
    """What to keep of `snapshots` and what to drop."""
    newest_first = sorted(snapshots, key=lambda each: each.id, reverse=True)
    good = [each for each in newest_first if each.good]
    reasons: dict[str, list[str]] = {each.id: [] for each in newest_first}
    if good:
        reasons[good[0].id].append("newest")
    for each in newest_first:
        if keep.everything:
            reasons[each.id].append("no rule")
        if not each.good:
            reasons[each.id].append("damaged")
        if each.label is not None and each.label not in OWN_LABELS:
            reasons[each.id].append("labelled")
    for each in good[: keep.last]:
        reasons[each.id].append("last")
    for name, period in _PERIODS.items():
        seen: set[object] = set()
        for each in good:
            of = period(each.created_at.astimezone(UTC))
            if of not in seen and len(seen) < getattr(keep, name):
                seen.add(of)
                reasons[each.id].append(name)
    return RetentionPlan(
        {snapshot_id: tuple(why) for snapshot_id, why in reasons.items() if why},
        tuple(sorted(snapshot_id for snapshot_id, why in reasons.items() if not why)),
    )
