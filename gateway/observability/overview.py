"""What the first page of the console shows, once a second.

Nothing here reads the store at each turn: `watch_store` looks at it after each operation, and every few seconds.
"""

import asyncio
import contextlib
import time
from datetime import datetime
from typing import Any

from gateway.errors import GatewayError
from gateway.jobs import Jobs
from gateway.journal.plan import restore_s
from gateway.observability.advice import advice_on
from gateway.observability.health import Health
from gateway.observability.metrics import Metrics
from gateway.proxy.counters import Counters
from gateway.vectorstore import VectorStore

_LOOK_AT_STORE_EVERY_S = 20.0
_LOOK_AGAIN_S = 0.5
_SIZES_AGE_S = 60.0
_RATE_OVER_S = 5.0
_FAILED = 500


class Overview:
    """Makes the overview. `Health` knows all but what is counted between two turns."""

    def __init__(
        self, health: Health, vectorstore: VectorStore, counters: Counters, jobs: Jobs, metrics: Metrics
    ) -> None:
        self._health, self._vectorstore, self._counters = health, vectorstore, counters
        self._jobs, self._metrics = jobs, metrics
        self._store: dict[str, Any] | None = None
        self._counts: list[tuple[float, int, int, int]] = []
        """When, and how many requests there had been by then: reads, writes, and those that failed."""

    async def make(self) -> dict[str, Any]:
        """The fields of `/admin/status` without its lists, and `totals`, `requests` and `restore_s`.

        `warnings` have a `message` and what to do, as `hint`. What is null is not known yet.
        """
        live, found = await self._health.live(_SIZES_AGE_S)
        collections = found.collections if found else []
        return {
            **live,
            "warnings": [{"message": each, "hint": advice_on(each)} for each in live["warnings"]],
            "totals": {
                "collections": len(collections),
                "records": sum(each.collection.records for each in collections),
                "hnsw_bytes": sum(each.hnsw_bytes for each in collections),
            },
            "requests": self._requests(),
            "store": self._store,
            "restore_s": self._restore_s(live["journal"]["recovery_s"]),
        }

    async def watch_store(self) -> None:
        """Look at the store until cancelled: after each snapshot and each job, and now and then."""
        looked_at_s, was = float("-inf"), self._newest()
        while True:
            now_s, newest = time.monotonic(), self._newest()
            if newest != was:
                looked_at_s = float("-inf")
            was = newest
            if now_s - looked_at_s >= _LOOK_AT_STORE_EVERY_S:
                self._store = await self._health.store()
                await self._find_window()
                looked_at_s = now_s
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _newest(self) -> tuple[float | None, datetime | None]:
        """When the newest snapshot was taken, and when the newest job ended."""
        ends = [each.ended_at for each in self._jobs.all() if each.ended_at is not None]
        return self._metrics.last_good_s, max(ends, default=None)

    async def _find_window(self) -> None:
        """Look which moments can be restored, unless that is known: soon after the start it is not."""
        history = self._vectorstore.history
        if history.known is None and self._vectorstore.journal.is_on:
            with contextlib.suppress(GatewayError):  # the state of the store says why
                await history.window()

    def _restore_s(self, recovery_s: float) -> float | None:
        """About how long a restore of the newest state would take now; None without a snapshot."""
        last = (self._store or {}).get("last_snapshot")
        return round(restore_s(last["size_bytes"], 0, 0, 0) + recovery_s, 1) if last else None

    def _requests(self) -> dict[str, Any]:
        """Requests a second, over the last few seconds."""
        now_s = time.monotonic()
        reads, writes = (
            sum(self._counters.whole[kind].counts) if kind in self._counters.whole else 0 for kind in ("read", "write")
        )
        failed = sum(
            number
            for counter in list(self._counters.by_label.values())
            for status, number in list(counter.statuses.items())
            if status >= _FAILED or status == 0
        )
        self._counts = [each for each in self._counts if now_s - each[0] <= _RATE_OVER_S * 2]
        earlier = next(
            (each for each in reversed(self._counts) if now_s - each[0] >= _RATE_OVER_S),
            self._counts[0] if self._counts else None,
        )
        self._counts.append((now_s, reads, writes, failed))
        if earlier is None:
            return {"reads_per_s": None, "writes_per_s": None, "failed_per_s": None}
        passed_s = max(now_s - earlier[0], 0.001)
        return {
            "reads_per_s": round((reads - earlier[1]) / passed_s, 1),
            "writes_per_s": round((writes - earlier[2]) / passed_s, 1),
            "failed_per_s": round((failed - earlier[3]) / passed_s, 1),
        }
