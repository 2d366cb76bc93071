"""Every metric that is counted where it happens, with small functions to count by.

What can be asked for when Prometheus comes (the data path's own numbers, sizes, states) is not here but in
`gateway.observability.collector`. Names follow Prometheus: base units, `_total` for what only grows,
`chroma_gateway_` before all. No label has values that a stranger chooses.
"""

import math
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "chroma_gateway"
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

SNAPSHOT_OUTCOMES = ("ok", "failed")
STORE_ERRORS = ("StorageUnavailable", "StorageDenied", "ObjectMissing", "other")


class Metrics:
    """One set per process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def name(of: str) -> str:
            return f"{PREFIX}_{of}"

        self._snapshots = Counter(
            name("snapshots"), "Snapshots that ended, by outcome.", ["outcome"], registry=registry
        )
        self._snapshot_s = Histogram(
            name("snapshot_duration_seconds"), "How long snapshots took.", buckets=_LONG_SECONDS, registry=registry
        )
        self._drain_s = Histogram(
            name("snapshot_drain_seconds"),
            "How long writes under way took to end, once a snapshot held the others back.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._freeze_s = Histogram(
            name("snapshot_freeze_seconds"),
            "How long writes were held back after that.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._last_good = Gauge(
            name("last_snapshot_timestamp_seconds"),
            "When the last good snapshot was taken, 0 if none is known.",
            registry=registry,
        )
        self._age = Gauge(
            name("last_snapshot_age_seconds"), "How old that is; +Inf if none is known.", registry=registry
        )
        self._moved = Counter(
            name("store_bytes"), "Bytes moved between here and the store.", ["direction"], registry=registry
        )
        self._requests = Counter(
            name("store_requests"), "What was asked of the store.", ["operation"], registry=registry
        )
        self._errors = Counter(
            name("store_errors"), "What the store refused, by error.", ["operation", "error"], registry=registry
        )
        self._jobs = Counter(
            name("jobs"), "Jobs that ended, by kind and outcome.", ["kind", "outcome"], registry=registry
        )
        self._lease_held = Gauge(
            name("lease_held"), "Whether this gateway holds the lease of its store prefix.", registry=registry
        )
        self._lease_epoch = Gauge(name("lease_epoch"), "The lease's epoch, 0 if there is none.", registry=registry)
        self.last_good_s: float | None = None
        for outcome in SNAPSHOT_OUTCOMES:
            self._snapshots.labels(outcome)
        for direction in ("up", "down"):
            self._moved.labels(direction)

    # ------------------------------------------------------------------ snapshots

    def snapshot_taken(self, *, at_s: float, duration_s: float, drain_s: float, freeze_s: float) -> None:
        """A snapshot is whole, as of `at_s` in seconds since the epoch."""
        self._snapshots.labels("ok").inc()
        self._snapshot_s.observe(duration_s)
        self._drain_s.observe(drain_s)
        self._freeze_s.observe(freeze_s)
        self.last_good_snapshot(at_s)

    def snapshot_failed(self) -> None:
        self._snapshots.labels("failed").inc()

    def last_good_snapshot(self, at_s: float | None) -> None:
        """The store's latest good snapshot is of `at_s`; None if it has none."""
        self.last_good_s = at_s
        self._last_good.set(at_s or 0)

    def refresh(self) -> None:
        """Before a scrape: what grows by itself."""
        known = self.last_good_s
        self._age.set(math.inf if known is None else max(0.0, time.time() - known))

    # ------------------------------------------------------------------ store

    def store_asked(self, operation: str, *, up_bytes: int = 0, down_bytes: int = 0) -> None:
        """One request to the store, with what it moved."""
        self._requests.labels(operation).inc()
        if up_bytes:
            self._moved.labels("up").inc(up_bytes)
        if down_bytes:
            self._moved.labels("down").inc(down_bytes)

    def store_refused(self, operation: str, error: str) -> None:
        """One request to the store failed; `error` is the name of our exception's class."""
        self._errors.labels(operation, error if error in STORE_ERRORS else "other").inc()

    # ------------------------------------------------------------------ jobs, lease

    def job_ended(self, kind: str, outcome: str) -> None:
        """A job ended: `kind` and `outcome` are words of the program, never of a user."""
        self._jobs.labels(kind, outcome).inc()

    def lease(self, *, held: bool, epoch: int) -> None:
        """Whether the lease is held, and its epoch."""
        self._lease_held.set(int(held))
        self._lease_epoch.set(epoch)
