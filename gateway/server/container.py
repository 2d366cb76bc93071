"""The gateway's process: builds the objects, mounts the routers, serves until told to stop.

`/api/` goes to the data path, past every framework; all else goes to FastAPI. One process, one loop.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from typing import Any

import structlog
from fastapi import FastAPI

from gateway.aio import within
from gateway.api.app import admin_application
from gateway.api.documents import Documents
from gateway.auth.addresses import networks
from gateway.auth.audit import Audit
from gateway.auth.keyring import Keyring
from gateway.auth.keys import parse_keys
from gateway.auth.quota import QuotaLimits
from gateway.chroma.directory import DataDirectory
from gateway.chroma.names import CollectionNames
from gateway.chroma.process import HOST, base_url
from gateway.chroma.watch import ChromaWatch
from gateway.config import Settings
from gateway.documents.embedding import Embedding
from gateway.documents.store import DocumentStore
from gateway.documents.train import Trainer
from gateway.errors import (
    Conflict,
    GatewayError,
    NotFound,
    SnapshotError,
)
from gateway.jobs import Jobs
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.election import LeaderElection
from gateway.lease.lease import this_process
from gateway.observability.collector import MetricsCollector
from gateway.observability.health import Health
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import open_tracing
from gateway.proxy.data_path import DataPath
from gateway.proxy.gate import Gate
from gateway.proxy.limits import ProxyLimits
from gateway.proxy.policy import RequestPolicy
from gateway.server.managed_chroma import ManagedChroma
from gateway.snapshot.budget import ChangedBytes, Estimate, Record
from gateway.snapshot.changes import Changes
from gateway.snapshot.gc import GcResult
from gateway.snapshot.model import Snapshot
from gateway.snapshot.operations import Operations
from gateway.snapshot.repository import Repository
from gateway.snapshot.retention import Keep
from gateway.snapshot.schedule import Cron, Every, Jittered, Schedule
from gateway.snapshot.scheduler import DeadMansSwitch, run_schedule
from gateway.storage import NoDeleteStorage, PrefixedStorage, Storage, open_storage
from gateway.storage.instrumented import InstrumentedStorage
from gateway.supervisor.client import Supervisor

log = structlog.get_logger()

# Of the 10 s that platforms give after SIGTERM: requests under way, then the final snapshot, then
# Chroma's own stop.
_GRACE_S = 4
_LEAST_FOR_THE_LEASE_S = 0.5
# Bytes on their way to a store that does not answer are waited for no longer than this.
_BREAK_OFF_S = 0.5
_AGAIN_S = 0.02
_JOBS_END_S = 2.0
# What has not ended then breaks off: everybody else is turned away meanwhile.
_REFUSAL_GRACE_S = 5.0


class Gateway:
    """Everything of one gateway, built from its settings."""

    def __init__(self, settings: Settings, admin_token: str) -> None:
        self.settings = settings
        self.directory = DataDirectory(settings.data_dir)
        self.metrics = Metrics()
        everything = InstrumentedStorage(storage_of(settings), self.metrics)
        store = PrefixedStorage(everything, settings.repository_prefix)
        self.gate = Gate(settings.gate_timeout_s)
        self.changes = Changes(lambda: self.gate.admitted_writes)
        self.leader = LeaderElection(
            store,
            DataDirState(settings.data_dir),
            this_process(),
            self.gate,
            has_data=lambda: not self.directory.is_empty(),
            save=self._save,
            on_published=self.changes.saved,
            on_change=self.changes.exchanged,
            on_empty_start=self._restored_at_boot,
            takeover_timeout_s=settings.takeover_timeout_s,
            may_delete=not settings.store_never_delete,
        )
        self.repository = Repository(store, self.leader)
        self.record = Record()
        self.switch = DeadMansSwitch(
            settings.snapshot_ping_url.get_secret_value() if settings.snapshot_ping_url else None
        )
        limits = ProxyLimits(
            client_timeout_s=settings.client_timeout_s,
            queue_timeout_s=settings.gate_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            max_body_bytes=settings.max_body_bytes,
            max_in_flight=settings.max_in_flight,
            max_queued=settings.max_queued,
        )
        self.watch = ChromaWatch(settings.data_dir, settings.chroma_port, self.gate.ticket, self.gate.chroma_gone)
        given = settings.keys.get_secret_value() if settings.keys else None
        self.keyring = Keyring(admin_token, parse_keys(given, "GATEWAY_KEYS") if given else (), settings.keys_file)
        self.audit = Audit(settings.audit_file)
        self.policy = RequestPolicy(
            self.keyring,
            anonymous=not settings.is_closed,
            allow_reset=settings.allow_reset,
            max_body_bytes=settings.max_body_bytes,
            limits=QuotaLimits(
                requests_per_s=settings.limit_requests_per_s,
                in_flight=settings.limit_in_flight,
                records=settings.limit_records,
            ),
            origins=settings.origins,
            traced=settings.traces,
        )
        self.tracing = open_tracing() if settings.traces else None
        self.data_path = DataPath(
            self.gate,
            HOST,
            settings.chroma_port,
            limits,
            self.policy,
            CollectionNames(settings.data_dir, lambda: self.watch.starts),
            self.audit,
            networks(settings.trusted_proxies),
            self.tracing,
        )
        self.chroma = ManagedChroma(
            Supervisor(settings.supervisor_url) if settings.supervisor_url else None, self.watch
        )
        self.operations = Operations(
            self.repository,
            self.directory,
            self.watch,
            self.chroma,
            hold=self._hold,
            refuse=lambda reason: self.gate.refuse(reason, _REFUSAL_GRACE_S),
            leader=self.leader,
        )
        self.operations.on_outcome = self._note_snapshot
        self.collector = MetricsCollector(
            self.metrics,
            self.policy.counters,
            self.gate,
            self.data_path.pool,
            self.watch,
            lambda: len(self.data_path.clients),
            settings.data_dir,
            self._lease,
        )
        self.health = Health(
            settings,
            self.directory,
            self.watch,
            self.gate,
            self.operations,
            self.leader,
            self._final_snapshot,
            self.collector,
        )
        self.changed_bytes: ChangedBytes = lambda: (
            self.operations.snapshotter.changed_bytes() if self.changes.any else 0
        )
        self.jobs = Jobs(lambda job: self.metrics.job_ended(job.kind, job.state))
        self.documents = Documents(
            DocumentStore(everything, settings.user_id, settings.max_document_bytes),
            Trainer(
                base_url(settings.chroma_port),
                self.gate.admitted,
                embedding=Embedding.of(settings.embedding),
                module=settings.embedding_module or None,
                restores=lambda: self.gate.refusals,
            ),
            self.jobs,
        )
        self.stop_by: float | None = None
        self.last_failure: GatewayError | None = None
        self.admin = admin_application(self)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """What runs beside requests; at the end the final snapshot."""
        await asyncio.to_thread(self.directory.drop_scratch)
        snapshotter = self.operations.snapshotter
        work = (
            self.watch.run(),
            self.data_path.watch_the_clock(),
            self.operations.begin(),
            snapshotter.keep_bounded(),
            self.keyring.run(),
            self._look_for_the_last_snapshot(),
        )
        lasting = [asyncio.create_task(_logged(each)) for each in work]
        election, *scheduling = (asyncio.create_task(_logged(each)) for each in (self.leader.run(), *self._schedule()))
        # Their first steps: an interrupted restore refuses requests before there can be one.
        await asyncio.sleep(0)
        log.info("gateway is listening", host=self.settings.host, port=self.settings.port)
        try:
            yield
        finally:
            await _end(*scheduling, election)
            await self._end_jobs()
            await self._last_snapshot()
            await self._give_the_lease_back()
            await _end(*lasting)
            await self.switch.close()
            await snapshotter.close()
            self.data_path.close()
            await asyncio.to_thread(self.audit.close)
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)
            await self.repository.close()

    @contextlib.asynccontextmanager
    async def _hold(self) -> AsyncIterator[float]:
        async with self.gate.hold(self.settings.drain_timeout_s) as drain_ms:
            self.changes.cut()
            yield drain_ms

    def _restored_at_boot(self) -> None:
        # The newest snapshot is what is there, or is about to be, and nothing was written to it yet.
        if self.settings.restore == "latest" and not self.gate.admitted_writes:
            self.changes.cut()
            self.changes.saved()

    async def _save(self, label: str) -> None:
        """Take a last snapshot for whoever comes next, unless the newest one has everything.

        Waits for other operations, as long as there are any: the caller bounds it.
        """
        while True:
            await self.operations.resume()
            await self.operations.until_idle()
            try:
                await self._save_now(label)
            except Conflict as error:  # something else was quicker, a round's garbage collection for one
                log.debug("the last snapshot waits", cause=error.message)
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def _drain(self, timeout_s: float) -> None:
        await self.operations.until_idle()
        async with self.gate.hold(timeout_s):
            pass

    async def _save_now(self, label: str) -> None:
        if not self.changes.any or (not self.watch.starts and await asyncio.to_thread(self.directory.is_empty)):
            log.info("nothing changed since the latest snapshot, so it is the last one")
            return
        writes = self.changes.writes
        snapshot = await self.operations.snapshot(label)
        log.info("everything that was acknowledged is in the last snapshot", snapshot=snapshot.id, writes=writes)

    def _lease(self) -> tuple[bool, int]:
        return self.leader.may_write, self.leader.status()["epoch"] or 0

    def _note_snapshot(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            self.metrics.snapshot_failed()
        else:
            self.record.add(snapshot.uploaded_bytes, snapshot.duration_s)
            self.metrics.snapshot_taken(
                at_s=snapshot.created_at.timestamp(),
                duration_s=snapshot.duration_s,
                drain_s=snapshot.drain_ms / 1e3,
                freeze_s=snapshot.freeze_ms / 1e3,
            )

    async def _look_for_the_last_snapshot(self) -> None:
        """Tell the metrics how old the latest good snapshot is, which an earlier process took."""
        try:
            for snapshot_id in await self.repository.ids():
                with contextlib.suppress(SnapshotError, NotFound):  # damaged, or deleted since
                    latest = (await self.repository.manifest(snapshot_id)).snapshot
                    if self.metrics.last_good_s is None:
                        self.metrics.last_good_snapshot(latest.created_at.timestamp())
                    return
        except GatewayError as error:
            log.warning("the store's snapshots cannot be listed", cause=str(error))

    def _schedule(self) -> list[Coroutine[Any, Any, None]]:
        settings, schedules = self.settings, list[Schedule]()
        if settings.snapshot_interval_s:
            schedules.append(Every(datetime.now(UTC), settings.snapshot_interval_s))
        if settings.snapshot_cron:
            schedules.append(Cron(settings.snapshot_cron))
        jitter = random.Random().random  # noqa: S311  # not a secret
        return [
            run_schedule(
                Jittered(schedule, settings.snapshot_jitter_s, jitter),
                self.changes,
                self.operations.snapshot,
                self.tidy,
                self.switch.ping,
                now=_now_here,
            )
            for schedule in schedules
        ]

    async def tidy(self) -> GcResult:
        """Apply the retention, collect the garbage."""
        settings = self.settings
        keep = Keep(
            last=settings.keep_last,
            hourly=settings.keep_hourly,
            daily=settings.keep_daily,
            weekly=settings.keep_weekly,
            monthly=settings.keep_monthly,
            yearly=settings.keep_yearly,
        )
        return await self.operations.collect_garbage(
            keep, settings.gc_grace_s, may_delete=not settings.store_never_delete
        )

    def _final_snapshot(self) -> Estimate:
        return self.record.estimate(self.changed_bytes(), self.settings.exit_budget_s)

    async def _give_the_lease_back(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(_LEAST_FOR_THE_LEASE_S, self._left_s())):
                await self.leader.end()

    def _left_s(self) -> float:
        return (self.stop_by or time.monotonic() + self.settings.exit_budget_s) - time.monotonic()

    async def _end_jobs(self) -> None:
        """Cancel what runs, but let a snapshot come to its end: it holds what the last one would."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_JOBS_END_S):
                await self.jobs.close(spare="snapshot")

    async def _last_snapshot(self) -> None:
        """Take the final snapshot in what is left of the grace; keep why, if it failed."""
        # Most requests have ended. One that is still arriving would be acknowledged after the cut.
        self.gate.refuse_writes("this gateway is stopping")
        await self.operations.resume()
        left_s, writes = self._left_s(), self.changes.writes
        wanted = self.settings.takes_final_snapshot and self.watch.starts and self.leader.may_write
        try:
            await within(left_s, self._save("final") if wanted else self._drain(left_s), break_off_s=_BREAK_OFF_S)
        except TimeoutError:
            what = "the final snapshot did not fit into" if wanted else "what was under way did not end within"
            self.last_failure = GatewayError(f"{what} the {left_s:.1f} s that were left")
        except GatewayError as error:
            self.last_failure = error
        except Exception:
            log.exception("the final snapshot failed unexpectedly")
            self.last_failure = GatewayError("the final snapshot failed unexpectedly", "the lines before say why")
        if self.last_failure is not None:
            log.error(
                "what was written since the latest snapshot is not in the store",
                writes="unknown" if writes is None else writes,
                cause=str(self.last_failure),
            )


def storage_of(settings: Settings) -> Storage:
    store = open_storage(settings.store, addressing=settings.s3_addressing)
    return NoDeleteStorage(store) if settings.store_never_delete else store


def _now_here() -> datetime:
    """Now, in the time zone of this machine, which is what lines of cron are in."""
    return datetime.now(UTC).astimezone()


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel `tasks` and wait until they have ended, not for ever: one may be at what must not be left halfway."""
    for task in tasks:
        task.cancel()
    await asyncio.wait([asyncio.gather(task, return_exceptions=True) for task in tasks], timeout=_JOBS_END_S)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """Nobody awaits a task that runs for life: its failure must at least be heard."""
    try:
        await work
    except Exception:
        log.exception("a background task failed")
        raise
