"""Limits of one key or address: `gateway.auth.quota`."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gateway.auth.quota import Quota, QuotaLimits
from gateway.errors import RateLimited


def test_after_a_burst_of_one_second_the_rate_applies() -> None:
    """And a refusal says when to try again."""
    quota = Quota(QuotaLimits(requests_per_s=2), 100.0)
    quota.begin(100.0)
    quota.begin(100.0)
    with pytest.raises(RateLimited) as refused:
        quota.begin(100.0)
    assert refused.value.retry_after_s == 1
    quota.begin(100.5)
    with pytest.raises(RateLimited):
        quota.begin(100.6)


def test_a_rate_below_one_allows_the_first_request() -> None:
    """One in ten seconds means one now, and the next in ten seconds."""
    quota = Quota(QuotaLimits(requests_per_s=0.1), 0.0)
    quota.begin(0.0)
    with pytest.raises(RateLimited) as refused:
        quota.begin(1.0)
    assert refused.value.retry_after_s == 9
    quota.begin(10.0)


def test_no_more_than_in_flight_requests_at_once() -> None:
    """The next is allowed when one has ended. A refused one does not count."""
    quota = Quota(QuotaLimits(in_flight=2), 0.0)
    quota.begin(0.0)
    quota.begin(0.0)
    for _ in range(5):
        with pytest.raises(RateLimited):
            quota.begin(0.0)
    quota.end()
    quota.begin(0.0)
    assert quota.in_flight == 2


@given(some.floats(0.01, 1000), some.lists(some.floats(0, 1), max_size=300))
def test_the_rate_is_never_exceeded(rate: float, pauses: list[float]) -> None:
    """In any interval: at most one second's worth and what the rate adds, whatever the pauses."""
    quota, now_s, passed = Quota(QuotaLimits(requests_per_s=rate), 0.0), 0.0, 0
    for pause in pauses:
        now_s += pause
        try:
            quota.begin(now_s)
            passed += 1
        except RateLimited:
            pass
    assert passed <= max(1.0, rate) + now_s * rate + 1e-6


def test_a_quota_is_idle_only_when_a_new_one_would_be_the_same() -> None:
    """Then it can be dropped."""
    quota = Quota(QuotaLimits(requests_per_s=1), 0.0)
    quota.begin(0.0)
    assert not quota.idle(5.0)
    quota.end()
    assert not quota.idle(0.5)
    assert quota.idle(1.0)
