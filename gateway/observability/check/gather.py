"""Looks the facts of the production check up. What cannot be looked up is `Missing`; nothing is raised for it."""

import asyncio
import functools
import importlib.metadata
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import httpx

from gateway.aio import SharedRuns
from gateway.auth.addresses import is_loopback
from gateway.auth.keyring import Keyring
from gateway.auth.quota import QuotaLimits
from gateway.chroma.collection_facts import read_collection_facts
from gateway.chroma.database import Collection, newest_log_row
from gateway.chroma.disk_usage import DiskUsage
from gateway.chroma.process import base_url, chroma_version, http_client
from gateway.chroma.routes import Action
from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.observability.check.answers import CheckReport, report_of
from gateway.observability.check.facts import (
    Access,
    Clients,
    Collections,
    Disk,
    Facts,
    Missing,
    Monitoring,
    QueriedCollection,
    Readiness,
    Saving,
    Versions,
    Writes,
)
from gateway.observability.check.rules import RULES
from gateway.observability.collector import MetricsCollector
from gateway.observability.memory import limit_bytes
from gateway.proxy.data_path import DataPath
from gateway.snapshot.model import Snapshot, Verification
from gateway.vectorstore import Phase, VectorStore

MAX_COLLECTIONS = 500
"""Of more collections, those with the most records are looked at."""
_MAX_SNAPSHOTS = 50
_LEAST_QUERIES = 20
_GONE = 410
_STORE_TIMEOUT_S, _CHROMA_TIMEOUT_S = 5.0, 2.0
# Of an element of `data_level0.bin` beside its vector: 32 links of 4 bytes, their count and the label.
_ELEMENT_BYTES = 140
_BOUND = re.compile(r"chromadb\b.*")


class ProductionCheck:
    """The production check of one gateway."""

    def __init__(
        self,
        settings: Settings,
        keyring: Keyring,
        vectorstore: VectorStore,
        data_path: DataPath,
        collector: MetricsCollector,
        started_s: float,
    ) -> None:
        """`started_s` is when the gateway started, by the monotonic clock."""
        self._settings, self._keyring, self._vectorstore = settings, keyring, vectorstore
        self._data_path, self._usage, self._collector = data_path, data_path.policy.usage, collector
        self._started_s = started_s
        self._runs = SharedRuns(self._run)

    async def run(self) -> CheckReport:
        """Look the facts up and apply every rule. Takes a store that does not answer 5 s; one runs at a time.

        Those who ask meanwhile share the next run. Safe to repeat: nothing is changed.
        """
        return await self._runs.run()

    async def _run(self) -> CheckReport:
        began_s = time.monotonic()
        facts = await self._facts()
        return report_of(RULES, facts, round(time.monotonic() - began_s, 3))

    async def _facts(self) -> Facts:
        usage, (snapshots, verified), max_batch = await asyncio.gather(
            # Measured anew: an operator who has followed an advice checks again at once.
            self._collector.disk_usage(0),
            self._snapshots(),
            self._max_batch(),
        )
        now, now_s = datetime.now(UTC), asyncio.get_running_loop().time()
        # By the clock of the event loop, as `gateway.proxy.usage` has it.
        queries = {
            collection_id: _Queries(seen.total, seen.nothing, now - timedelta(seconds=now_s - seen.since_s))
            for collection_id, seen in self._usage.queries.latest(now_s, _LEAST_QUERIES).items()
        }
        looked = await asyncio.to_thread(self._look, usage, queries)
        store, memory = self._vectorstore, limit_bytes()
        readiness = store.readiness()
        return Facts(
            now=now,
            uptime_s=time.monotonic() - self._started_s,
            readiness=Readiness(readiness.phase is Phase.READY, readiness.reason, tuple(store.warnings)),
            saving=self._saving(looked.same_disk),
            snapshots=snapshots,
            verified=verified,
            access=self._access(),
            collections=looked.collections,
            queried=looked.queried,
            clients=self._clients(),
            writes=self._writes(looked.newest_row),
            max_batch=max_batch,
            disk=_disk(usage),
            memory_bytes=Missing("the system does not say how much memory there is") if memory is None else memory,
            versions=Versions(chroma_version(), _supported()),
            monitoring=self._monitoring(),
        )

    # ------------------------------------------------------------------ asked

    async def _snapshots(self) -> tuple[tuple[Snapshot, ...] | Missing, tuple[str, Verification] | Missing | None]:
        """The newest snapshots, and the newest that was verified."""
        repository = self._vectorstore.repository
        try:
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                page = await repository.page(_MAX_SNAPSHOTS)
                return tuple(page.snapshots), await repository.newest_verified()
        except TimeoutError:
            missing = Missing(f"the store does not answer within {_STORE_TIMEOUT_S:g} s")
        except GatewayError as error:
            missing = Missing(error.message)
        return missing, missing

    async def _max_batch(self) -> int | Missing:
        try:
            async with http_client(base_url(self._settings.chroma_port), _CHROMA_TIMEOUT_S) as client:
                return int((await client.get("/api/v2/pre-flight-checks")).json()["max_batch_size"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return Missing("Chroma does not answer")

    def _look(self, usage: DiskUsage | None, queries: "dict[str, _Queries]") -> "_Looked":
        """What is read from the data directory. Blocks."""
        directory = self._vectorstore.directory.path
        same_disk = _same_disk(self._settings.store, directory)
        problem = Missing("the data directory cannot be read" if usage is None else usage.problem or "")
        if usage is None or usage.problem:
            return _Looked(same_disk, problem, problem, problem)
        everything = sorted((each.collection for each in usage.collections), key=lambda each: -each.records)
        chosen = everything[:MAX_COLLECTIONS]
        more = [each for each in everything[MAX_COLLECTIONS:] if each.id in queries]
        try:
            found = read_collection_facts(directory, [*chosen, *more])
            newest_row = newest_log_row(directory)
        # Also what is no number in a damaged database.
        except (GatewayError, ValueError, TypeError, ArithmeticError) as error:
            problem = Missing(str(error))
            return _Looked(same_disk, problem, problem, problem)
        ids = {each.id for each in chosen}
        looked_at = tuple(each for each in found if each.collection.id in ids)
        queried = tuple(
            QueriedCollection(each, *seen) for each in found if (seen := queries.get(each.collection.id)) is not None
        )
        return _Looked(same_disk, Collections(len(everything), looked_at), queried, newest_row)

    # ------------------------------------------------------------------ known already

    def _saving(self, same_disk: bool | None) -> Saving:
        settings, store = self._settings, self._vectorstore
        journal, lease = store.journal, store.leader.status()
        cron = f"GATEWAY_SNAPSHOT_CRON={settings.snapshot_cron}" if settings.snapshot_cron else None
        interval = f"GATEWAY_SNAPSHOT_INTERVAL_S={settings.snapshot_interval_s:g}"
        keeps = (
            settings.keep_last,
            settings.keep_hourly,
            settings.keep_daily,
            settings.keep_weekly,
            settings.keep_monthly,
            settings.keep_yearly,
        )
        return Saving(
            store=settings.store,
            same_disk=same_disk,
            journal_on=journal.is_on,
            journal_interval_s=settings.journal_interval_s,
            journal_lag_s=journal.lag_s,
            journal_problem=journal.problem.message if journal.problem else None,
            acknowledges_stored=settings.ack == "stored",
            schedule=interval if settings.snapshot_interval_s else cron,
            interval_s=settings.snapshot_interval_s,
            keeps_some=any(keeps),
            may_delete=not settings.store_never_delete,
            role=lease["role"],
            conditional_writes=lease["conditional_writes"],
        )

    def _access(self) -> Access:
        settings, connections = self._settings, self._usage.connections
        limits = QuotaLimits(settings.limit_requests_per_s, settings.limit_in_flight)
        keys = self._keyring.keys
        unlimited = [each.name for each in keys if not _limits(each.limits or limits)]
        if not keys and settings.is_closed and not _limits(limits):
            unlimited = ["the admin token"]
        return Access(
            host=settings.host,
            is_loopback=is_loopback(settings.host),
            is_closed=settings.is_closed,
            limited=_limits(limits),
            unlimited=tuple(unlimited),
            forwarded=connections.forwarded,
            encrypted=connections.encrypted,
            clear=connections.clear,
            private=connections.private,
        )

    def _clients(self) -> Clients:
        labels = self._data_path.policy.counters.by_label.items()
        retired = sum(
            # Only what Chroma answered: a request without a key that needs one is 401, and may be a scanner's.
            counter.statuses.get(_GONE, 0)
            for label, counter in labels
            if label.route == Action.RETIRED.value
        )
        return Clients(dict(self._usage.connections.python_clients), retired)

    def _writes(self, newest_row: int | Missing) -> Writes | Missing:
        watch, writes = self._vectorstore.watch, self._usage.writes
        if isinstance(newest_row, Missing):
            return newest_row
        if not watch.up or watch.first_row is None:
            return Missing("Chroma does not run")
        if writes.epoch != self._vectorstore.gate.epoch:
            return Writes(0, 0, 0)
        return Writes(writes.count, writes.busiest, max(0, newest_row - watch.first_row))

    def _monitoring(self) -> Monitoring:
        scraped_at_s = self._collector.scraped_at_s
        scraped_s = None if scraped_at_s is None else time.monotonic() - scraped_at_s
        return Monitoring(self._settings.alert_url is not None, scraped_s)


class _Queries(NamedTuple):
    total: int
    nothing: int
    since: datetime


class _Looked(NamedTuple):
    same_disk: bool | None
    collections: Collections | Missing
    queried: tuple[QueriedCollection, ...] | Missing
    newest_row: int | Missing


def _limits(limits: QuotaLimits) -> bool:
    return bool(limits.requests_per_s or limits.in_flight)


def _same_disk(store: str, directory: Path) -> bool | None:
    """Whether the store's directory is on the file system of `directory`; None if it is none, or is not there."""
    scheme, _, location = store.partition("://")
    try:
        return scheme == "file" and Path(location).stat().st_dev == directory.stat().st_dev
    except OSError:
        return None


def _disk(usage: DiskUsage | None) -> Disk | Missing:
    if usage is None or usage.problem:
        return Missing("the data directory cannot be read" if usage is None else usage.problem or "")
    return Disk(
        size_bytes=usage.size_bytes,
        sqlite_bytes=usage.sqlite_bytes,
        free_bytes=usage.free_bytes,
        log_rows=usage.log_records,
        index_bytes=sum(_index_bytes(each.collection) for each in usage.collections),
        collections=len(usage.collections),
    )


def _index_bytes(collection: Collection) -> int:
    return collection.records * (4 * collection.dimension + _ELEMENT_BYTES) if collection.dimension else 0


@functools.cache
def _supported() -> tuple[str, str]:
    """The oldest chromadb that this package asks for, and the first that it does not take."""
    required = next(filter(_BOUND.fullmatch, importlib.metadata.requires("chroma-gateway") or ()), "")
    bounds = dict(re.findall(r"(>=|<)([0-9.]+)", required))
    return bounds.get(">=", "0"), bounds.get("<", "1000")
