"""Limits of one key, or of one address without a key. Pure: the caller passes the time.

Requests per second are a token bucket that holds one second's worth: after a burst of so many the rate applies.
"""

import math
from dataclasses import dataclass

from gateway.errors import RateLimited


@dataclass(frozen=True)
class QuotaLimits:
    """0 is no limit. `body_bytes` and `records` are per request."""

    requests_per_s: float = 0
    in_flight: int = 0
    body_bytes: int = 0
    records: int = 0


class Quota:
    """What one key or address has used of its limits."""

    __slots__ = ("_at_s", "_left", "in_flight", "limits")

    def __init__(self, limits: QuotaLimits, now_s: float) -> None:
        self.limits, self.in_flight = limits, 0
        self._left, self._at_s = max(1.0, limits.requests_per_s), now_s

    def begin(self, now_s: float) -> None:
        """Count a request in. The caller must call `end`.

        Raises RateLimited, with `retry_after_s`; then nothing is counted. `now_s` is of a monotonic clock.
        """
        limits = self.limits
        if limits.in_flight and self.in_flight >= limits.in_flight:
            raise RateLimited(f"{limits.in_flight} requests of yours are under way already", "wait for one to end")
        if limits.requests_per_s:
            most = max(1.0, limits.requests_per_s)
            left = min(most, self._left + (now_s - self._at_s) * limits.requests_per_s)
            self._at_s = now_s
            if left < 1:
                self._left = left
                wait_s = math.ceil((1 - left) / limits.requests_per_s)
                raise RateLimited(
                    f"more than {limits.requests_per_s:g} requests a second",
                    "send it again after as many seconds as Retry-After says",
                    retry_after_s=wait_s,
                )
            self._left = left - 1
        self.in_flight += 1

    def end(self) -> None:
        """A request that `begin` counted in is over."""
        self.in_flight -= 1

    def idle(self, now_s: float) -> bool:
        """Whether a new quota would allow the same."""
        return not self.in_flight and self._left + (now_s - self._at_s) * self.limits.requests_per_s >= max(
            1.0, self.limits.requests_per_s
        )
