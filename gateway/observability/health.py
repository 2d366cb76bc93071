"""Is it alive, is it ready and, if not, why; and what an operator asks first."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import gateway
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk_usage import DiskUsage
from gateway.chroma.process import chroma_version
from gateway.chroma.watch import ChromaWatch
from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.lease.election import LeaderElection
from gateway.observability.memory import resident_bytes
from gateway.proxy.gate import Gate
from gateway.snapshot.budget import Estimate
from gateway.snapshot.operations import Operations

_STORE_TIMEOUT_S = 5.0
_MAX_SHOWN = 100
_SHOWN = {"id", "label", "created_at", "state", "size_bytes", "uploaded_bytes", "duration_s"}


class Sizes(Protocol):
    """Knows how much there is of everything."""

    async def disk_usage(self) -> DiskUsage | None: ...


class Health:
    """Asks everybody how they are. Cheap but for `status`."""

    def __init__(
        self,
        settings: Settings,
        directory: DataDirectory,
        watch: ChromaWatch,
        gate: Gate,
        operations: Operations,
        leader: LeaderElection,
        final_snapshot: Callable[[], Estimate],
        sizes: Sizes,
    ) -> None:
        self._sizes = sizes
        self.sections: dict[str, Callable[[], Any]] = {}
        """More for `status`, by name: who has something to tell puts a function here that returns it as JSON."""
        self._settings, self._directory, self._watch = settings, directory, watch
        self._gate, self._operations = gate, operations
        self._leader, self._final_snapshot = leader, final_snapshot
        self._started = time.monotonic()

    def why_not_ready(self) -> str | None:
        """The reason, or None when every collection can be read."""
        if self._gate.refusal is not None:
            return self._gate.refusal
        watch = self._watch
        if not watch.up:
            return self._why_chroma_is_down()
        if watch.unreadable:
            return "; ".join(f"{name} cannot be read: {why}" for name, why in sorted(watch.unreadable.items()))
        if not watch.warmed:
            return f"reading every collection: {watch.done_warming} of {watch.to_warm}"
        return f"writes are refused: {self._leader.reason}" if self._leader.reason else None

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although everything works."""
        return self._leader.warnings

    def progress(self) -> dict[str, Any]:
        """How far a start has come, for machines; see `NotReady` in `gateway.api.health`."""
        watch = self._watch
        if self._gate.refusal is not None:
            done, total = self._operations.restored_bytes or (None, None)
            return {"phase": "refusing", "bytes_done": done, "bytes_total": total}
        if not watch.up:
            note = self._directory.boot_note()
            found = {"phase": note.get("phase", "starting")}
            return found | {name: note[name] for name in ("bytes_done", "bytes_total") if name in note}
        if watch.unreadable:
            return {"phase": "unreadable", "unreadable": dict(sorted(watch.unreadable.items())[:_MAX_SHOWN])}
        if watch.warmed and self._leader.reason:
            return {"phase": "read-only"}
        return {"phase": "reading", "collections_done": watch.done_warming, "collections_total": watch.to_warm}

    def _why_chroma_is_down(self) -> str:
        note = self._directory.boot_note()
        if note.get("phase") == "restoring":
            return f"restoring snapshot {note['snapshot']}: {note['bytes_done']} of {note['bytes_total']} bytes"
        if note.get("phase") == "succeeding":
            return f"waiting for another gateway ({note['holder']}) to hand over"
        if note.get("phase") == "waiting":
            return f"waiting for the store: {note['cause']}"
        return "Chroma is starting"

    async def status(self) -> dict[str, Any]:
        """What an operator asks first. Reads the store once."""
        found = await self._sizes.disk_usage()
        current = {"operation": self._operations.current}
        if self._operations.restored_bytes:
            current["bytes_done"], current["bytes_total"] = self._operations.restored_bytes  # type: ignore[assignment]
        return {
            "version": gateway.__version__,
            "chroma_version": chroma_version(),
            "uptime_s": round(time.monotonic() - self._started, 1),
            "ready": (reason := self.why_not_ready()) is None,
            "reason": reason,
            "gate": {
                "state": self._gate.state.value,
                "refusal": self._gate.refusal,
                "writes_under_way": self._gate.writes,
                "writes_waiting": self._gate.waiting,
            },
            "chroma": {
                "up": self._watch.up,
                "starts": self._watch.starts,
                "unreadable": self._watch.unreadable,
            },
            "current": current,
            "data_dir": {
                "path": str(self._directory.path),
                "size_bytes": found.size_bytes if found else None,
                "free_bytes": found.free_bytes if found else None,
                "sqlite_bytes": found.sqlite_bytes if found else None,
                "log_backlog_records": found.log_records if found else None,
                "orphaned_directories": found.orphaned_directories if found else None,
                "orphaned_bytes": found.orphaned_bytes if found else None,
                "problem": found.problem if found else "it cannot be looked at",
            },
            "collections": _collections(found) if found else [],
            "memory": {"gateway_bytes": resident_bytes()},
            "lease": self._leader.status(),
            "snapshots": {
                "interval_s": self._settings.snapshot_interval_s,
                "cron": self._settings.snapshot_cron,
                "final": self._settings.takes_final_snapshot,
            },
            "final_snapshot": self._final_snapshot()._asdict(),
            "store": await self._store(),
            "last_error": self._operations.last_error,
            **{name: tell() for name, tell in self.sections.items()},
        }

    async def _store(self) -> dict[str, Any]:
        repository = self._operations.repository
        try:
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                snapshots = await repository.snapshots()
        except TimeoutError:
            return {"url": repository.url, "reachable": False, "message": f"no answer within {_STORE_TIMEOUT_S:g} s"}
        except GatewayError as error:
            return {"url": repository.url, "reachable": False, **error.body()}
        last = snapshots[0] if snapshots else None
        return {
            "url": repository.url,
            "reachable": True,
            "snapshots": len(snapshots),
            "last_snapshot": last.model_dump(mode="json", include=_SHOWN) if last else None,
            "recent": [each.model_dump(mode="json", include=_SHOWN) for each in snapshots[:5]],
            "last_snapshot_age_s": round((datetime.now(UTC) - last.created_at).total_seconds(), 1) if last else None,
        }


def _collections(found: DiskUsage) -> list[dict[str, Any]]:
    largest = sorted(found.collections, key=lambda each: -each.collection.records)[:_MAX_SHOWN]
    return [{**each.collection._asdict(), "hnsw_bytes": each.hnsw_bytes} for each in largest]
