"""Plans: from which snapshot and which entries a moment comes back, what is merged, what is dropped. Pure."""

import bisect
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from gateway.journal.entry import MAX_BODY_BYTES, Head, Kind
from gateway.journal.sequence import Listed
from gateway.snapshot.plan import REPLAYED_ROWS_PER_S

# How fast a restore fetches and applies entries: estimates, so that a checkpoint comes rather too early.
_ENTRY_BYTES_PER_S = 20e6
_ENTRIES_PER_S = 150
# docs/benchmarks.md: a start with 309 and with 509 MB to restore.
_SNAPSHOT_BYTES_PER_S = 80e6


def chain(listed: Sequence[Listed], after: int, to: int) -> tuple[list[Listed], int | None]:
    """Return the entries that hold the numbers above `after` up to `to`, in order, with as few objects as possible.

    The second value is the first number that is missing, None if none is. The entries go as far as that. An entry that
    begins before `after` may be used: what it holds of the snapshot's own past is in a later entry of it too.
    """
    by_first: dict[int, Listed] = {}
    for each in listed:
        if each.last <= to and each.last > after:
            first = max(each.first, after + 1)
            if first not in by_first or by_first[first].last < each.last:
                by_first[first] = each
    found, number = list[Listed](), after + 1
    while number <= to:
        if number not in by_first:
            return found, number
        found.append(by_first[number])
        number = by_first[number].last + 1
    return found, None


def not_covered(listed: Sequence[Listed]) -> list[Listed]:
    """Return the entries without those that a merged one holds too, which a merge that was killed left behind."""
    merged = sorted((each.first, each.last) for each in listed if each.is_merged)
    firsts = [first for first, _ in merged]

    def is_covered(each: Listed) -> bool:
        index = bisect.bisect_right(firsts, each.last) - 1
        return not each.is_merged and index >= 0 and each.last <= merged[index][1]

    return [each for each in listed if not is_covered(each)]


def recovery_s(entries: int, size_bytes: int, rows: int) -> float:
    """Return about how long a restore takes longer for so many entries and rows of Chroma's log to be replayed."""
    return entries / _ENTRIES_PER_S + size_bytes / _ENTRY_BYTES_PER_S + rows / REPLAYED_ROWS_PER_S


def restore_s(snapshot_bytes: int, entries: int, journal_bytes: int, rows: int) -> float:
    """Return about how long a restore of a snapshot of `snapshot_bytes` takes, with what is replayed over it."""
    return snapshot_bytes / _SNAPSHOT_BYTES_PER_S + recovery_s(entries, journal_bytes, rows)


# ---------------------------------------------------------------------- history that grows old

FULL_RESOLUTION = timedelta(hours=1)
MERGED_RESOLUTION = timedelta(minutes=1)


def plan_merges(heads: Iterable[Head], now: datetime) -> list[list[Head]]:
    """Return the groups of entries to merge: those of one minute that are older than an hour. `heads`: in order.

    A group has consecutive numbers and cuts of one run only, and not more pages than fit into one entry.
    """
    groups: list[list[Head]] = []
    group: list[Head] = []
    for head in heads:
        fits = (
            group
            and head.first == group[-1].number + 1
            and head.kind is Kind.PAGES
            and not head.starts_run
            and _minute(head.at) == _minute(group[-1].at)
            and sum(each.changed * each.page_bytes for each in (*group, head)) <= MAX_BODY_BYTES
        )
        if not fits:
            groups.append(group)
            group = []
        if head.kind is Kind.PAGES and now - head.at > FULL_RESOLUTION:
            group.append(head)
    groups.append(group)
    return [each for each in groups if len(each) > 1]


def _minute(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(second=0, microsecond=0)
