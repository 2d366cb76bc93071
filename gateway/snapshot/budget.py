"""Whether the final snapshot will fit into the time that is left after SIGTERM. Pure.

An estimate, from what was seen: how fast bytes last went to the store, and how long the part of a snapshot that
does not depend on bytes last took. It is shown before it matters, when there is time to do something about it.
"""

from collections import deque
from typing import NamedTuple, Protocol


class Uploaded(NamedTuple):
    """One snapshot that was taken. `duration_s` is of all of it."""

    uploaded_bytes: int
    duration_s: float


class ChangedBytes(Protocol):
    """What a snapshot taken now would upload."""

    def __call__(self) -> int | None:
        """In bytes, after compression as far as that is known; None if it is not known."""
        ...


class Estimate(NamedTuple):
    """None where it is not known; `fits` then too."""

    changed_bytes: int | None
    bandwidth_bytes_per_s: float | None
    estimate_s: float | None
    budget_s: float
    fits: bool | None


_REMEMBERED = 8
# Below this a snapshot tells how long the rest takes, and nothing about bandwidth.
_TELLING_BYTES = 64 << 10


class Record:
    """The last few snapshots, for estimates."""

    def __init__(self) -> None:
        self._seen: deque[Uploaded] = deque(maxlen=_REMEMBERED)

    def add(self, uploaded_bytes: int, duration_s: float) -> None:
        """A snapshot was taken."""
        self._seen.append(Uploaded(uploaded_bytes, duration_s))

    @property
    def fixed_s(self) -> float | None:
        """How long a snapshot of nothing would take: at most what the quickest one took."""
        return min((each.duration_s for each in self._seen), default=None)

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """Of the slowest snapshot that says something about it: who plans for the worst may be pleased."""
        telling = [
            each.uploaded_bytes / each.duration_s
            for each in self._seen
            if each.uploaded_bytes >= _TELLING_BYTES and each.duration_s > 0
        ]
        return min(telling, default=None)

    def estimate(self, changed_bytes: int | None, budget_s: float) -> Estimate:
        """Whether `changed_bytes` fit into `budget_s`."""
        bandwidth, fixed_s = self.bandwidth_bytes_per_s, self.fixed_s
        if changed_bytes == 0:
            return Estimate(0, bandwidth, 0.0, budget_s, True)
        if changed_bytes is None or fixed_s is None or (bandwidth is None and changed_bytes >= _TELLING_BYTES):
            return Estimate(changed_bytes, bandwidth, None, budget_s, None)
        estimate_s = round(fixed_s + (changed_bytes / bandwidth if bandwidth else 0), 3)
        return Estimate(
            changed_bytes, round(bandwidth) if bandwidth else None, estimate_s, budget_s, estimate_s <= budget_s
        )
