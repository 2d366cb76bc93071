"""What is merged, and what a merged entry covers."""

from datetime import UTC, datetime, timedelta

from gateway.journal.entry import MAX_BODY_BYTES, Head, Kind
from gateway.journal.plan import chain, not_covered, plan_merges
from gateway.journal.sequence import Listed, key_of, merged_key

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LATER = BEGAN + timedelta(days=1)


def head(number: int, seconds: float, kind: Kind = Kind.PAGES, *, run: int = 1, pages: int = 1) -> Head:
    at = BEGAN + timedelta(seconds=seconds)
    return Head(
        number=number,
        first=number,
        epoch=1,
        writer="w",
        kind=kind,
        at=at,
        previous="",
        run=run,
        cut=number,
        page_bytes=4096,
        pages=pages,
        changed=pages,
    )


def listed(first: int, last: int) -> Listed:
    key = key_of(last) if first == last else merged_key(first, last)
    return Listed(key, first, last, 10, BEGAN)


def numbers(groups: list[list[Head]]) -> list[list[int]]:
    return [[each.number for each in group] for group in groups]


def test_a_minute_of_one_run_is_merged() -> None:
    heads = [head(1, 0), head(2, 30), head(3, 59), head(4, 61), head(5, 62)]
    assert numbers(plan_merges(heads, LATER)) == [[1, 2, 3], [4, 5]]


def test_marks_and_new_runs_and_gaps_divide() -> None:
    heads = [head(1, 0), head(2, 1), head(3, 2, Kind.SEAL), head(4, 3), head(5, 4, run=5), head(6, 5, run=5)]
    assert numbers(plan_merges([*heads, head(8, 6, run=5)], LATER)) == [[1, 2], [5, 6]]


def test_what_is_young_stays() -> None:
    assert plan_merges([head(1, 0), head(2, 1)], BEGAN + timedelta(minutes=30)) == []


def test_no_merged_entry_is_larger_than_one_may_be() -> None:
    pages = MAX_BODY_BYTES // 4096 // 2
    heads = [head(number, number, pages=pages) for number in range(1, 6)]
    assert numbers(plan_merges(heads, LATER)) == [[1, 2], [3, 4]]


def test_entries_that_a_merged_one_holds_are_left_out() -> None:
    """A merge that was killed between its deletions leaves some of them."""
    entries = [listed(1, 1), listed(3, 3), listed(4, 4), listed(2, 4), listed(5, 5)]
    assert not_covered(entries) == [listed(1, 1), listed(2, 4), listed(5, 5)]


def test_a_chain_takes_merged_entries_and_names_a_gap() -> None:
    entries = [listed(1, 1), listed(2, 4), listed(5, 5), listed(7, 7)]
    assert chain(entries, 0, 5) == ([listed(1, 1), listed(2, 4), listed(5, 5)], None)
    assert chain(entries, 2, 5) == ([listed(2, 4), listed(5, 5)], None)
    assert chain(entries, 4, 7) == ([listed(5, 5)], 6)
