"""Estimate whether the final snapshot fits into the time after SIGTERM. Pure.

The estimate is made from earlier snapshots: how fast bytes went to the store, and how long the part of a snapshot took
that does not depend on bytes. It is shown while there is still time to act on it.
"""

from collections import deque
from typing import NamedTuple


class Uploaded(NamedTuple):
    """One snapshot that was taken. `duration_s` is that of the whole snapshot."""

    uploaded_bytes: int
    duration_s: float


class Estimate(NamedTuple):
    """A field is None where its value is unknown."""

    changed_bytes: int | None
    bandwidth_bytes_per_s: float | None
    estimate_s: float | None
    budget_s: float
    fits: bool | None


_REMEMBERED = 8
# A smaller upload tells how long the rest of a snapshot takes. It tells nothing about bandwidth.
_MIN_MEASURED_BYTES = 64 << 10


class Record:
    """The most recent snapshots, for estimates."""

    def __init__(self) -> None:
        self._seen: deque[Uploaded] = deque(maxlen=_REMEMBERED)

    def add(self, uploaded_bytes: int, duration_s: float) -> None:
        """Note a snapshot that was taken."""
        self._seen.append(Uploaded(uploaded_bytes, duration_s))

    @property
    def fixed_s(self) -> float | None:
        """How long a snapshot without changes takes: at most as long as the quickest one that was seen."""
        return min((each.duration_s for each in self._seen), default=None)

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """The bandwidth of the slowest snapshot that was large enough to measure it. The slowest, to be safe."""
        measured = [
            each.uploaded_bytes / each.duration_s
            for each in self._seen
            if each.uploaded_bytes >= _MIN_MEASURED_BYTES and each.duration_s > 0
        ]
        return min(measured, default=None)

    def estimate(self, changed_bytes: int | None, budget_s: float) -> Estimate:
        """Estimate whether a snapshot of `changed_bytes` fits into `budget_s`."""
        bandwidth, fixed_s = self.bandwidth_bytes_per_s, self.fixed_s
        if changed_bytes == 0:
            return Estimate(0, bandwidth, 0.0, budget_s, True)
        if changed_bytes is None or fixed_s is None or (bandwidth is None and changed_bytes >= _MIN_MEASURED_BYTES):
            return Estimate(changed_bytes, bandwidth, None, budget_s, None)
        estimate_s = round(fixed_s + (changed_bytes / bandwidth if bandwidth else 0), 3)
        return Estimate(
            changed_bytes, round(bandwidth) if bandwidth else None, estimate_s, budget_s, estimate_s <= budget_s
        )
