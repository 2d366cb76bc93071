"""The gateway estimates beforehand whether the final snapshot fits into its time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.snapshot.budget import Record

MB = 1_000_000


def record(*taken: tuple[int, float]) -> Record:
    made = Record()
    for uploaded_bytes, duration_s in taken:
        made.add(uploaded_bytes, duration_s)
    return made


@pytest.mark.parametrize(
    ("taken", "changed_bytes", "estimate_s", "fits"),
    [
        ((), 0, 0.0, True),  # nothing to save: nothing to estimate
        ((), 5 * MB, None, None),  # never seen one
        (((10 * MB, 2.0),), None, None, None),  # what changed is not known
        (((10 * MB, 2.0),), 10 * MB, 4.0, True),  # 2 s for all but the bytes, at most, and 2 s for those
        (((10 * MB, 2.0), (100, 0.5)), 10 * MB, 2.5, True),
        (((10 * MB, 2.0), (100, 0.5)), 100 * MB, 20.5, False),
        (((10 * MB, 2.0), (10 * MB, 5.0), (0, 0.5)), 10 * MB, 5.5, True),  # the slowest counts
        (((100, 0.5),), 1000, 0.5, True),  # a few bytes need no bandwidth
        (((100, 0.5),), 10 * MB, None, None),  # many do
    ],
)
def test_estimate_from_earlier_snapshots(
    taken: tuple[tuple[int, float], ...], changed_bytes: int | None, estimate_s: float | None, fits: bool | None
) -> None:
    """For a budget of 8 s."""
    estimate = record(*taken).estimate(changed_bytes, 8)
    assert (estimate.estimate_s, estimate.fits) == (estimate_s, fits)


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.floats(0.001, 100)), max_size=12),
    st.one_of(st.none(), st.integers(0, 10**10)),
    st.floats(0.1, 100),
)
def test_estimate_never_contradicts_itself(
    taken: list[tuple[int, float]], changed_bytes: int | None, budget_s: float
) -> None:
    """It fits exactly if its time is known and within the budget. More bytes never take less time."""
    made = record(*taken)
    estimate = made.estimate(changed_bytes, budget_s)
    assert (estimate.fits is None) == (estimate.estimate_s is None)
    if estimate.estimate_s is not None and changed_bytes is not None:
        assert estimate.fits == (estimate.estimate_s <= budget_s)
        more = made.estimate(changed_bytes * 2, budget_s)
        assert more.estimate_s is None or more.estimate_s >= estimate.estimate_s
