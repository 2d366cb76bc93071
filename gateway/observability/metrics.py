"""Metrics that are counted where something happens.

`gateway.observability.collector` adds those that are read at a scrape: requests, sizes and states. Names follow
Prometheus: base units, `_total` for counters, the prefix `chroma_gateway_`. No label has values that a client chooses.
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
    """One set for each process, in its own registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def name(of: str) -> str:
            return f"{PREFIX}_{of}"

        self._snapshots = Counter(
            name("snapshots"), "Snapshots that ended, by outcome.", ["outcome"], registry=registry
        )
        self._snapshot_s = Histogram(
            name("snapshot_duration_seconds"), "Duration of snapshots.", buckets=_LONG_SECONDS, registry=registry
        )
        self._drain_s = Histogram(
            name("snapshot_drain_seconds"),
            "Time until the writes in progress had ended, after a snapshot closed the gate.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._freeze_s = Histogram(
            name("snapshot_freeze_seconds"),
            "Time for which writes waited after that.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._last_good = Gauge(
            name("last_snapshot_timestamp_seconds"),
            "Time of the last good snapshot, 0 if none is known.",
            registry=registry,
        )
        Gauge(
            name("last_snapshot_age_seconds"),
            "Age of the last good snapshot, +Inf if none is known. Negative: the clock was set back since.",
            registry=registry,
        ).set_function(self._age_s)
        self._moved = Counter(
            name("store_bytes"),
            "Bytes sent to the store (up) and received from it (down).",
            ["direction"],
            registry=registry,
        )
        self._requests = Counter(name("store_requests"), "Requests to the store.", ["operation"], registry=registry)
        self._errors = Counter(
            name("store_errors"),
            "Requests to the store that failed, by error.",
            ["operation", "error"],
            registry=registry,
        )
        self._jobs = Counter(
            name("jobs"), "Jobs that ended, by kind and outcome.", ["kind", "outcome"], registry=registry
        )
        self.last_good_s: float | None = None
        self._age_when_noted_s, self._noted_s = 0.0, 0.0
        for outcome in SNAPSHOT_OUTCOMES:
            self._snapshots.labels(outcome)
        for direction in ("up", "down"):
            self._moved.labels(direction)

    # ------------------------------------------------------------------ snapshots

    def snapshot_taken(self, *, at_s: float, duration_s: float, drain_s: float, freeze_s: float) -> None:
        """A snapshot is complete. Its data are of `at_s`, in seconds since the epoch."""
        self._snapshots.labels("ok").inc()
        self._snapshot_s.observe(duration_s)
        self._drain_s.observe(drain_s)
        self._freeze_s.observe(freeze_s)
        self.last_good_snapshot(at_s)

    def snapshot_failed(self) -> None:
        self._snapshots.labels("failed").inc()

    def last_good_snapshot(self, at_s: float | None) -> None:
        """The store's latest good snapshot is of `at_s`, in seconds since the epoch; None if there is none."""
        self.last_good_s = at_s
        self._last_good.set(at_s or 0)
        # By the clock that is never set: the machine's clock may be set back later.
        self._age_when_noted_s, self._noted_s = time.time() - (at_s or 0), time.monotonic()

    def _age_s(self) -> float:
        if self.last_good_s is None:
            return math.inf
        passed_s = self._age_when_noted_s + time.monotonic() - self._noted_s
        # The clock that is never set stands still while the machine sleeps.
        return max(passed_s, time.time() - self.last_good_s)

    # ------------------------------------------------------------------ store

    def store_asked(self, operation: str, *, up_bytes: int = 0, down_bytes: int = 0) -> None:
        """Count one request to the store, with the bytes that it moved."""
        self._requests.labels(operation).inc()
        if up_bytes:
            self._moved.labels("up").inc(up_bytes)
        if down_bytes:
            self._moved.labels("down").inc(down_bytes)

    def store_refused(self, operation: str, error: str) -> None:
        """Count one failed request to the store. `error` is the name of the gateway's exception class."""
        self._errors.labels(operation, error if error in STORE_ERRORS else "other").inc()

    # ------------------------------------------------------------------ jobs

    def job_ended(self, kind: str, outcome: str) -> None:
        """Count a job that ended. `kind` and `outcome` are constants of the program, never a user's text."""
        self._jobs.labels(kind, outcome).inc()
