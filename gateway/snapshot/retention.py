"""Decide which snapshots are kept, and why. Pure.

Each rule keeps the newest usable snapshot of each of the newest N hours, days, ISO weeks, months or years that have
one. Periods are in UTC. The rule `last` counts snapshots instead of periods. A snapshot that several rules keep counts
for each of them. A snapshot that no rule keeps is dropped, with these exceptions:

- Without any rule, everything is kept.
- The newest usable snapshot is always kept.
- A snapshot that a person labelled is kept until a person deletes it. The gateway's own labels do not count.
- A snapshot that the journal's history needs is kept. Checkpoints go by themselves once it does not: without any rule
  they are not kept, and they do not count for the rule `last`.
- A snapshot that cannot be read, that needs packs which are missing, or that failed its verification is kept: someone
  may want to examine it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple


class OwnLabel(StrEnum):
    """The labels that the gateway gives by itself."""

    SCHEDULED = "scheduled"
    FINAL = "final"
    HANDOVER = "handover"
    CHECKPOINT = "checkpoint"


OWN_LABELS = frozenset(OwnLabel)


@dataclass(frozen=True)
class Keep:
    """The rules: how many of each to keep. 0 means that there is no such rule."""

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
    """What the rules need to know about a snapshot. `usable`: as far as is known, it can be restored."""

    id: str
    created_at: datetime
    label: str | None
    usable: bool


class RetentionPlan(NamedTuple):
    """`kept`: the reasons by id, newest first.

    `dropped`: ids, oldest first, so that an interrupted collection leaves the newer ones.
    """

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


def plan_retention(snapshots: Iterable[Candidate], keep: Keep, history_from: str | None = None) -> RetentionPlan:
    """Return which of `snapshots` to keep and which to drop.

    `history_from`: the oldest snapshot that the journal's history needs; None without a journal.
    """
    newest_first = sorted(snapshots, key=lambda each: each.id, reverse=True)
    usable = [each for each in newest_first if each.usable]
    reasons: dict[str, list[str]] = {each.id: [] for each in newest_first}
    if usable:
        reasons[usable[0].id].append("newest")
    for each in newest_first:
        if history_from is not None and each.id >= history_from:
            reasons[each.id].append("history")
        if keep.everything and each.label != OwnLabel.CHECKPOINT:
            reasons[each.id].append("no rule")
        if not each.usable:
            reasons[each.id].append("damaged")
        if each.label is not None and each.label not in OWN_LABELS:
            reasons[each.id].append("labelled")
    taken = [each for each in usable if each.label != OwnLabel.CHECKPOINT]
    for each in taken[: keep.last]:
        reasons[each.id].append("last")
    for name, period_of in _PERIODS.items():
        seen: set[object] = set()
        for each in usable:
            period = period_of(each.created_at.astimezone(UTC))
            if period not in seen and len(seen) < getattr(keep, name):
                seen.add(period)
                reasons[each.id].append(name)
    return RetentionPlan(
        {snapshot_id: tuple(why) for snapshot_id, why in reasons.items() if why},
        tuple(sorted(snapshot_id for snapshot_id, why in reasons.items() if not why)),
    )
