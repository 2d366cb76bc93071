"""Which snapshots are kept: by table, and for any history."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.snapshot.retention import Candidate, Keep, plan_retention

START = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)


def at(hours: float, label: str | None = "scheduled", *, usable: bool = True) -> Candidate:
    """A snapshot taken `hours` before START."""
    moment = START - timedelta(hours=hours)
    return Candidate(f"{moment:%Y%m%dT%H%M%SZ}-000000", moment, label, usable)


def kept(keep: Keep, *snapshots: Candidate) -> list[float]:
    """The ages in hours of the kept snapshots, newest first."""
    plan = plan_retention(snapshots, keep)
    by_id = {each.id: (START - each.created_at).total_seconds() / 3600 for each in snapshots}
    assert {*plan.kept, *plan.dropped} == set(by_id)
    return [by_id[each] for each in plan.kept]


HALF_HOURS = [at(hours / 2) for hours in range(300)]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(last=3), [0, 0.5, 1]),
        (Keep(hourly=3), [0, 1, 2]),  # 12:30, 11:30, 10:30
        (Keep(daily=2), [0, 13]),  # the newest of the 20th and, at 23:30, of the 19th
        (Keep(last=2, daily=2), [0, 0.5, 13]),
        (Keep(weekly=2), [0, 109]),  # it is Friday; the week before ended on Sunday, with the one at 23:30
        (Keep(monthly=5), [0]),
        (Keep(yearly=1), [0]),
    ],
)
def test_each_rule_keeps_the_newest_of_its_periods(keep: Keep, expected: list[float]) -> None:
    """Of 150 hours with a snapshot every half hour."""
    assert kept(keep, *HALF_HOURS) == expected


def test_periods_without_a_snapshot_are_not_counted() -> None:
    """Three days are three days that have a snapshot, however far apart."""
    assert kept(Keep(daily=3), at(0), at(240), at(241), at(2400), at(24000)) == [0, 240, 2400]


def test_weeks_are_iso_weeks() -> None:
    """The last days of December and the first of January may be in one week."""
    days = [datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 2, tzinfo=UTC)]
    snapshots = [Candidate(f"{day:%Y%m%d}T000000Z-000000", day, None, True) for day in days]
    assert plan_retention(snapshots, Keep(weekly=5)).dropped == (snapshots[0].id,)


def test_no_rule_keeps_everything() -> None:
    """Without a rule nothing is deleted."""
    assert kept(Keep(), at(0), at(1), at(20000)) == [0, 1, 20000]


def test_snapshot_that_a_person_labelled_is_kept() -> None:
    """The gateway's own labels do not count."""
    keep = Keep(last=1)
    assert kept(keep, at(0), at(1, "before the import"), at(2, "final"), at(3, None), at(4, "handover")) == [0, 1]


def test_newest_usable_snapshot_is_kept() -> None:
    """A newer damaged one does not count for a rule, and is kept itself."""
    assert kept(Keep(yearly=2, last=1), at(0, usable=False), at(1), at(2), at(9000)) == [0, 1, 9000]
    reasons = plan_retention([at(0, usable=False), at(1)], Keep(last=1)).kept
    assert list(reasons.values()) == [("damaged",), ("newest", "last")]


snapshots = st.lists(
    st.builds(
        at,
        st.floats(0, 50000),
        st.sampled_from([None, "scheduled", "final", "mine"]),
        usable=st.booleans(),
    ),
    max_size=40,
    unique_by=lambda each: each.id,
)
keeps = st.builds(Keep, *[st.integers(0, 5)] * 6)


@given(snapshots, keeps)
def test_retention_holds_its_promises_for_any_history(history: list[Candidate], keep: Keep) -> None:
    """Nothing is both kept and dropped. The newest usable, labelled and damaged stay. A second run drops nothing."""
    plan = plan_retention(history, keep)
    assert set(plan.kept) | set(plan.dropped) == {each.id for each in history}
    assert not set(plan.kept) & set(plan.dropped)
    assert list(plan.dropped) == sorted(plan.dropped)
    usable = [each.id for each in history if each.usable]
    if usable:
        assert max(usable) in plan.kept
    for each in history:
        if not each.usable or each.label == "mine":
            assert each.id in plan.kept
    assert plan_retention([each for each in history if each.id in plan.kept], keep).dropped == ()


@given(snapshots, keeps)
def test_larger_numbers_never_drop_more(history: list[Candidate], keep: Keep) -> None:
    """A larger number only keeps more."""
    if keep.everything:
        return
    more = Keep(keep.last + 1, keep.hourly + 1, keep.daily + 1, keep.weekly + 1, keep.monthly + 1, keep.yearly + 1)
    assert set(plan_retention(history, keep).kept) <= set(plan_retention(history, more).kept)
