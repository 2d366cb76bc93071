"""Is it alive, is it ready and, if not, why; and what an operator asks first."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import gateway
from gateway.chroma.disk_usage import DiskUsage
from gateway.chroma.process import chroma_version
from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.observability.collector import MetricsCollector
from gateway.observability.memory import resident_bytes
from gateway.vectorstore import Phase, Readiness, VectorStore

_STORE_TIMEOUT_S = 5.0
_MAX_SHOWN = 100
_RECENT = 5
_SHOWN = {"id", "label", "created_at", "state", "size_bytes", "uploaded_bytes", "duration_s", "verified"}


class Health:
    """Answers for `/readyz` and `/admin/status`. Cheap but for `status`."""

    def __init__(self, settings: Settings, vectorstore: VectorStore, sizes: MetricsCollector) -> None:
        self._settings, self._vectorstore, self._sizes = settings, vectorstore, sizes
        self.started_s = time.monotonic()

    def readiness(self) -> Readiness:
        """What keeps it from being served, or that nothing does."""
        return self._vectorstore.readiness()

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although everything else works."""
        return self._vectorstore.warnings

    def unreadable(self) -> dict[str, str]:
        """Why, by name, for a handful of the collections that cannot be read."""
        return self._vectorstore.unreadable()

    async def status(self) -> dict[str, Any]:
        """What an operator asks first. Reads the store once."""
        live, found = await self.live()
        return {**live, "collections": _collections(found) if found else [], "store": await self.store()}

    async def live(self, sizes_age_s: float | None = None) -> tuple[dict[str, Any], DiskUsage | None]:
        """What `status` says without its list of collections and the store; and the sizes that it was made of.

        Cheap, unless the sizes are older than `sizes_age_s`.
        """
        store, readiness = self._vectorstore, self.readiness()
        gate, watch, operations = store.gate, store.watch, store.operations
        found = await self._sizes.disk_usage(sizes_age_s)
        current: dict[str, Any] = {"operation": operations.current}
        if operations.restored_bytes:
            current["bytes_done"], current["bytes_total"] = operations.restored_bytes
        live = {
            "version": gateway.__version__,
            "chroma_version": chroma_version(),
            "uptime_s": round(time.monotonic() - self.started_s, 1),
            "ready": readiness.phase is Phase.READY,
            "phase": readiness.phase.value,
            "reason": None if readiness.phase is Phase.READY else readiness.reason,
            "warnings": self.warnings,
            "gate": {
                "state": gate.state.value,
                "refusal": gate.refusal,
                "writes_under_way": gate.writes,
                "writes_waiting": gate.waiting,
            },
            "chroma": {
                "up": watch.up,
                "starts": watch.starts,
                "unreadable": watch.unreadable,
            },
            "current": current,
            "data_dir": {
                "path": str(store.directory.path),
                "size_bytes": found.size_bytes if found else None,
                "free_bytes": found.free_bytes if found else None,
                "sqlite_bytes": found.sqlite_bytes if found else None,
                "log_backlog_records": found.log_records if found else None,
                "orphaned_directories": found.orphaned_directories if found else None,
                "orphaned_bytes": found.orphaned_bytes if found else None,
                "problem": found.problem if found else "it cannot be looked at",
            },
            "memory": {"gateway_bytes": resident_bytes()},
            "lease": store.leader.status(),
            "snapshots": {
                "interval_s": self._settings.snapshot_interval_s,
                "cron": self._settings.snapshot_cron,
                "final": self._settings.takes_final_snapshot and not store.journal.is_on,
                "unsaved_s": round(store.unsaved_s, 1),
            },
            "journal": store.journal_status(),
            "last_error": operations.last_error,
        }
        return live, found

    async def store(self) -> dict[str, Any]:
        """The store, asked now: whether it answers, and its newest snapshots. Takes a few seconds at most."""
        repository = self._vectorstore.repository
        try:
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                recent = (await repository.page(_RECENT)).snapshots
                count = await repository.count()
        except TimeoutError:
            return {"url": repository.url, "reachable": False, "message": f"no answer within {_STORE_TIMEOUT_S:g} s"}
        except GatewayError as error:
            return {"url": repository.url, "reachable": False, **error.body()}
        last = recent[0] if recent else None
        return {
            "url": repository.url,
            "reachable": True,
            "snapshots": count,
            "last_snapshot": last.model_dump(mode="json", include=_SHOWN) if last else None,
            "recent": [each.model_dump(mode="json", include=_SHOWN) for each in recent],
            "last_snapshot_age_s": round((datetime.now(UTC) - last.created_at).total_seconds(), 1) if last else None,
        }


def _collections(found: DiskUsage) -> list[dict[str, Any]]:
    largest = sorted(found.collections, key=lambda each: -each.collection.records)[:_MAX_SHOWN]
    return [{**each.collection._asdict(), "hnsw_bytes": each.hnsw_bytes} for each in largest]
