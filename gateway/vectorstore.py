"""One user's vector store: its data directory, its Chroma, the gate before it, its lease and its snapshots.

`open` is the start, in one line of steps:

1. is Chroma running? A gateway that was restarted leaves it alone
2. is the data directory empty? Take the lease, so that the gateway before this one publishes its last snapshot and no
   other afterwards; then restore what `restore` says
3. start Chroma, which finishes an interrupted swap and puts the database in WAL mode first
4. read every collection once, and open for requests (`gateway.chroma.watch`)

What it finds decides what it does. Data is left alone. An empty store means an empty start. A store that cannot be
reached is asked again for `restore_retry_s` and is then an error: an unreachable store is not an empty one.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
import tenacity

from gateway.aio import shielded, within
from gateway.chroma.directory import PRIVATE, DataDirectory
from gateway.chroma.disk_probe import Presence, write_problems
from gateway.chroma.managed import ManagedChroma, ProcessControl
from gateway.chroma.quarantine import Quarantine
from gateway.chroma.repair import Repair
from gateway.chroma.watch import ChromaWatch
from gateway.errors import (
    Conflict,
    GatewayError,
    NotFound,
    NothingToRestore,
    StorageUnavailable,
)
from gateway.jobs import Progress, counted
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.election import LeaderElection, LeaderRole, LeaseOptions
from gateway.proxy.gate import Gate
from gateway.snapshot.budget import Estimate, Record
from gateway.snapshot.gc import GcResult
from gateway.snapshot.index_copies import StoredCopies
from gateway.snapshot.model import Snapshot, is_snapshot_id
from gateway.snapshot.operations import Operations
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import restore_at_boot
from gateway.snapshot.retention import Keep, OwnLabel
from gateway.storage import PrefixedStorage, Storage

log = structlog.get_logger()

_T = TypeVar("_T")

_AGAIN_S = 0.02
# Bytes on their way to a store that does not answer are waited for no longer than this.
_BREAK_OFF_S = 0.5
_LEAST_FOR_THE_LEASE_S = 0.5
_MOST_NAMED = 5
_PROBE_DISK_EVERY_S = 5.0
# What makes writes be lost is seen within a second.
_LOOK_AT_DATA_DIR_EVERY_S = 0.5
_LOOK_AT_STORE_AGAIN_S = 5.0


class Phase(Enum):
    """Where a vector store is between its start and being served. `value` is what JSON and logs say."""

    PREPARING = "preparing"
    WAITING_FOR_LEASE = "waiting-for-lease"
    WAITING_FOR_STORE = "waiting"
    RESTORING = "restoring"
    STARTING = "starting"
    READING = "reading"
    UNREADABLE = "unreadable"
    REFUSING = "refusing"
    DATA_DIR_GONE = "data-dir-gone"
    READ_ONLY = "read-only"
    READY = "ready"

    @property
    def text(self) -> str:
        """One sentence for people who may not know names of collections or of the store."""
        return _TEXTS[self]


_TEXTS = {
    Phase.PREPARING: "the data directory is being prepared",
    Phase.WAITING_FOR_LEASE: "another gateway is handing over",
    Phase.WAITING_FOR_STORE: "the store does not answer yet",
    Phase.RESTORING: "a snapshot is being restored",
    Phase.STARTING: "Chroma is starting",
    Phase.READING: "every collection is being read once",
    Phase.UNREADABLE: "some collections cannot be read; ask with a key to see which",
    Phase.REFUSING: "requests are refused for a moment, as during a restore",
    Phase.DATA_DIR_GONE: "the data directory is gone, so writes are refused",
    Phase.READ_ONLY: "writes are refused: another gateway has the lease, or has had it",
    Phase.READY: "everything is served",
}


@dataclass(frozen=True)
class Readiness:
    """`reason` is one sentence for an operator; `progress` says how far this phase has come."""

    phase: Phase
    reason: str
    progress: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VectorStoreOptions:
    """What an operator can set for one vector store; see docs/configuration.md. `gateway.config` has the defaults.

    `written_config` is the file that the gateway writes for Chroma; the command of the program `chroma` in
    supervisord.conf names it. `chroma_settings` is what the operator's own file, GATEWAY_CHROMA_CONFIG, has for it.
    """

    restore: str
    restore_retry_s: float
    takeover_timeout_s: float
    drain_timeout_s: float
    gate_timeout_s: float
    exit_budget_s: float
    snapshot_on_exit: bool
    may_delete: bool
    keep: Keep
    gc_grace_s: float
    allow_reset: bool
    ready_requires_all: bool
    max_body_bytes: int
    chroma_settings: Mapping[str, Any]
    written_config: Path


@dataclass(frozen=True)
class RepairReport:
    """What `VectorStore.repair` did. `unreadable`: why Chroma still does not read the collection, None if it does."""

    repair: Repair
    outage_s: float
    unreadable: str | None


class VectorStore:
    """Everything that belongs to one user's data. `open`, then `run`, and at the end `close`."""

    def __init__(
        self,
        directory: DataDirectory,
        chroma_port: int,
        storage: Storage,
        prefix: str,
        control: ProcessControl | None,
        options: VectorStoreOptions,
    ) -> None:
        """`prefix` is this vector store's own part of `storage`; `control` is None where something else runs Chroma."""
        self.directory, self._options = directory, options
        self._data_dir_state = DataDirState(directory.path)
        store = PrefixedStorage(storage, prefix)
        self.quarantine = Quarantine(directory.path / PRIVATE / "quarantine")
        self.gate = Gate(options.gate_timeout_s, self.quarantine)
        self.watch = ChromaWatch(directory.path, chroma_port, self.gate.ticket, self.gate.chroma_gone, self.quarantine)
        self.leader = LeaderElection(
            store,
            self._data_dir_state,
            self.gate,
            partial(self._save, OwnLabel.HANDOVER),
            LeaseOptions(takeover_timeout_s=options.takeover_timeout_s, may_delete=options.may_delete),
        )
        repository = Repository(store, self.leader)
        self.chroma = ManagedChroma(
            directory,
            self.watch,
            control,
            options.written_config,
            self.quarantine,
            settings={
                "allow_reset": options.allow_reset,
                "max_payload_bytes": options.max_body_bytes,
                "operators": options.chroma_settings,
            },
            copies=StoredCopies(repository, directory.scratch, baseline=directory.baseline).of,
            lost=lambda: self.gate.lost,
        )
        self.operations = Operations(
            repository,
            directory,
            self.chroma,
            self.gate,
            self.leader,
            drain_timeout_s=options.drain_timeout_s,
        )
        self._record = Record()
        self._presence = Presence(directory.path)
        self._disk_problems: list[str] = []
        self._start = Readiness(Phase.PREPARING, Phase.PREPARING.text)
        self._has_finished_swap = asyncio.Event()

    @property
    def repository(self) -> Repository:
        return self.operations.repository

    # ------------------------------------------------------------------ the start

    async def open(self) -> None:
        """Restore if there is nothing, and start Chroma. Returns before every collection is read.

        Raises ConfigError, StorageError, SnapshotError or DiskFull, and has changed nothing then. May be repeated.
        """
        if self.directory.is_swapping():
            await self.operations.finish_interrupted_restore()
        self._has_finished_swap.set()
        await asyncio.to_thread(self.directory.drop_leftovers)
        if await self.chroma.is_running():
            self._enter(Phase.STARTING)
            return
        if await asyncio.to_thread(self.directory.is_empty):
            await self._fill()
        self._enter(Phase.STARTING)
        await self.chroma.launch()

    async def begin(self) -> None:
        """Refuse writes until the lease is taken: the first step, before there can be a request."""
        has_data = await self.chroma.is_running() or not await asyncio.to_thread(self.directory.is_empty)
        if not has_data and self._options.restore == "none":
            await asyncio.to_thread(self._data_dir_state.begin_anew)
        await asyncio.to_thread(self._data_dir_state.name)
        self.leader.begin(has_data=has_data)

    async def lead(self) -> None:
        """Take part in the leader election, once it is known which data are there; until cancelled."""
        await self._has_finished_swap.wait()
        await self.leader.run()

    async def _fill(self) -> None:
        """Restore into an empty data directory what the options say."""
        if self._options.restore == "none":
            log.info("nothing is restored, as GATEWAY_RESTORE says")
            return
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(StorageUnavailable),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
            stop=tenacity.stop_after_delay(self._options.restore_retry_s),
            before_sleep=self._note_waiting,
            reraise=True,
        ):
            with attempt:
                if is_snapshot_id(self._options.restore):  # no other gateway is to leave for one that is not there
                    await self._demanded(self.repository.manifest(self._options.restore))
                self._enter(Phase.WAITING_FOR_LEASE)
                # Not without it: what clients write to a store that denies writes would be lost with the disk.
                await self.leader.acquire()
                await self._restore()

    async def _restore(self) -> None:
        wanted, repository = self._options.restore, self.repository
        await repository.check_format()
        if wanted == "latest":
            latest = await repository.latest_id()
            if latest is None:
                log.info("the store holds no snapshot, starting empty", store=repository.url)
                self._nothing_to_save()
                return
            snapshot_id = latest
        else:
            snapshot_id = await self._demanded(repository.resolve(wanted))

        def progress(done: int, total: int) -> None:
            reason = f"restoring snapshot {snapshot_id}: {done} of {total} bytes"
            self._start = Readiness(Phase.RESTORING, reason, {"bytes_done": done, "bytes_total": total})

        log.info("restoring", snapshot=snapshot_id, store=repository.url)
        await self._demanded(restore_at_boot(repository, self.directory, snapshot_id, progress))
        if wanted == "latest":
            self._nothing_to_save()

    async def _demanded(self, work: Awaitable[_T]) -> _T:
        try:
            return await work
        except NotFound as error:
            raise NothingToRestore(
                f"GATEWAY_RESTORE demands snapshot {self._options.restore}, which is not in {self.repository.url}",
                "set it to a snapshot that is, to 'latest' or to 'none'",
            ) from error

    def _nothing_to_save(self) -> None:
        # The newest snapshot is what is there, and nothing was written to it yet.
        if not self.gate.admitted_writes:
            self.operations.unsaved_writes.cut()
            self.operations.unsaved_writes.saved()

    def _note_waiting(self, state: tenacity.RetryCallState) -> None:
        cause = str(state.outcome.exception()) if state.outcome else ""
        self._enter(Phase.WAITING_FOR_STORE, f"waiting for the store: {cause}")
        log.warning("the store cannot be reached, trying again", cause=cause)

    def _enter(self, phase: Phase, reason: str | None = None) -> None:
        self._start = Readiness(phase, reason or phase.text)
        log.debug("phase", phase=phase.value)

    # ------------------------------------------------------------------ how it is

    def readiness(self) -> Readiness:
        """What keeps it from being served, or `Phase.READY`."""
        watch = self.watch
        if self.gate.refusal is not None:
            done, total = self.operations.restored_bytes or (None, None)
            return Readiness(Phase.REFUSING, self.gate.refusal, {"bytes_done": done, "bytes_total": total})
        if self.gate.lost is not None:
            return Readiness(Phase.DATA_DIR_GONE, self.gate.lost)
        if not watch.up:
            if self._start.phase is Phase.WAITING_FOR_LEASE and self.leader.reason:
                return Readiness(Phase.WAITING_FOR_LEASE, self.leader.reason)
            return self._start
        return self._readiness_of_data()

    def _readiness_of_data(self) -> Readiness:
        watch = self.watch
        if watch.unreadable and (watch.serves_nothing or self._options.ready_requires_all):
            return Readiness(Phase.UNREADABLE, self._unreadable_names(), {"unreadable": self.unreadable()})
        if not watch.warmed:
            return Readiness(
                Phase.READING,
                f"reading every collection: {watch.done_warming} of {watch.to_warm}",
                {"collections_done": watch.done_warming, "collections_total": watch.to_warm},
            )
        if self.leader.reason:
            return Readiness(Phase.READ_ONLY, f"writes are refused: {self.leader.reason}")
        return Readiness(Phase.READY, Phase.READY.text)

    def unreadable(self) -> dict[str, str]:
        """Why, by name, for a handful of the collections that cannot be read."""
        return dict(sorted(self.watch.unreadable.items())[:_MOST_NAMED])

    def _unreadable_names(self) -> str:
        count, named = len(self.watch.unreadable), self.unreadable()
        more = f" and {count - len(named)} more" if count > len(named) else ""
        return f"{count} collection(s) cannot be read: {', '.join(named)}{more}"

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although everything else works."""
        found = [*self.leader.warnings, *self._disk_problems, *self.repository.damage, *self._index_problems()]
        return [*found, problem] if (problem := self.operations.gc_problem) else found

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong at this moment and needs a person, by the event that GATEWAY_ALERT_URL is told."""
        found = {
            "data-dir-gone": self.gate.lost,
            "lease-lost": self.leader.lost or (self.leader.reason if self.leader.role is LeaderRole.BEHIND else None),
            "store-refused": self.leader.store_problem,
            "store-damaged": "; ".join(self.repository.damage),
            "gc-failed": self.operations.gc_problem,
            "index-torn": "; ".join(self._index_problems()),
        }
        return {event: problem for event, problem in found.items() if problem}

    def _index_problems(self) -> list[str]:
        found = []
        if self.watch.unreadable:
            found.append(
                f"{len(self.watch.unreadable)} collection(s) cannot be read, see `unreadable`; all others are served."
                " Repair one with `chroma-gateway repair COLLECTION`, restore a snapshot, or delete it"
            )
        found += [
            f"{len(repair.lost_ids)} record(s) of {repair.segment.name} lost their vector with a torn index,"
            f" among them {', '.join(repair.lost_ids[:5])}: upsert them again"
            for repair in self.chroma.repairs
            if repair.lost_ids
        ]
        torn = self.operations.snapshotter.torn_indexes(self.watch.starts)
        return found + [
            f"the index {segment_id} is torn on disk and is repaired at Chroma's next start: {problem}"
            for segment_id, problem in torn.items()
        ]

    async def repair(
        self, collection: str, tenant: str, database: str, progress: Progress, *, rebuild: bool = False
    ) -> RepairReport:
        """Check and repair the index of one collection with one restart of Chroma, which also ends its quarantine.

        `collection` is an id, or a name in `tenant` and `database`. `rebuild`: build a sound index anew too. Writes
        wait meanwhile, and reads get 503. It is not cancelled once it has begun. Raises NotFound, Conflict while
        another operation runs, Unavailable, QuiesceTimeout, DiskFull and GatewayError; then the index is no worse than
        before. Safe to retry.
        """
        self.chroma.require_control()
        with self.operations.exclusively(f"the repair of {collection}"):
            segment = await asyncio.to_thread(self.chroma.find, collection, tenant, database)
            progress.phase("repairing", None, "vectors")
            loop, indexed = asyncio.get_running_loop(), counted(progress, "indexing", "vectors")

            def note(done: int, total: int) -> None:
                loop.call_soon_threadsafe(indexed, done, total)

            repair, outage_s = await shielded(
                self.chroma.repair(
                    segment, lambda: self.gate.hold(self._options.drain_timeout_s), note, rebuild=rebuild
                )
            )
            self.operations.unsaved_writes.nothing_is_saved()
            full_name = f"{segment.tenant}/{segment.database}/{segment.collection}"
            return RepairReport(repair, outage_s, self.watch.unreadable.get(full_name))

    async def watch_data_dir(self) -> None:
        """Refuse writes while the data directory is not the one that Chroma uses, until cancelled.

        Also note when unsaved writes came.
        """
        while True:
            swaps = self._swaps()
            problem = await asyncio.to_thread(self._presence.problem, swaps)
            # A swap that began meanwhile may be what was seen.
            if swaps == self._swaps() and (problem or swaps is not None) and problem != self.gate.lost:
                if problem:
                    log.critical("writes are refused, they would be lost", cause=problem)
                else:
                    log.info("the data directory is back, writes are accepted")
                self.gate.lose_writes(problem)
            self.operations.unsaved_writes.look(time.monotonic())
            await asyncio.sleep(_LOOK_AT_DATA_DIR_EVERY_S)

    def _swaps(self) -> int | None:
        """How often the data may have been swapped; None while they are being swapped, or Chroma does not run."""
        return self.gate.refusals if self.watch.up and self.gate.refusal is None else None

    async def probe_disk(self) -> None:
        """Look every few seconds whether the data directory can be written, until cancelled; see `warnings`."""
        while True:
            found = await asyncio.to_thread(write_problems, self.directory.path)
            for problem in set(found) - set(self._disk_problems):
                log.warning("Chroma's files cannot be written, or soon cannot", problem=problem)
            self._disk_problems = found
            await asyncio.sleep(_PROBE_DISK_EVERY_S)

    async def look_at_store(self) -> None:
        """Once all is served, look whether the store has what its snapshots need; see `warnings`.

        Returns when that was done. A store that fails is asked again.
        """
        while True:
            if self.readiness().phase is Phase.READY:
                try:
                    await self.operations.look_for_damage()
                except GatewayError as error:
                    log.warning("the store cannot be looked at, trying again", cause=str(error))
                else:
                    return
            await asyncio.sleep(_LOOK_AT_STORE_AGAIN_S)

    def final_snapshot(self) -> Estimate:
        """Whether a final snapshot taken now would fit into the time there is after SIGTERM."""
        return self._record.estimate(self.changed_bytes(), self._options.exit_budget_s)

    def changed_bytes(self) -> int | None:
        """What a snapshot taken now would upload, in bytes; None if that is not known."""
        return self.operations.snapshotter.changed_bytes() if self.operations.unsaved_writes.any else 0

    def note_snapshot(self, snapshot: Snapshot) -> None:
        """Remember how long it took, for estimates."""
        self._record.add(snapshot.uploaded_bytes, snapshot.duration_s)

    async def tidy(self) -> GcResult:
        """Apply the retention, collect the garbage."""
        options = self._options
        return await self.operations.collect_garbage(options.keep, options.gc_grace_s, may_delete=options.may_delete)

    # ------------------------------------------------------------------ the end

    async def save_final(self, left_s: Callable[[], float]) -> GatewayError | None:
        """Take the final snapshot in what is left of the grace; return why it failed, None if it did not.

        Without one wanted, wait until what is under way has ended.
        """
        # Most requests have ended. One that is still arriving would be acknowledged after the cut.
        self.gate.refuse_writes("this gateway is stopping")
        await self.operations.resume()
        budget_s, writes, failure = left_s(), self.operations.unsaved_writes.writes, None
        wanted = self._options.snapshot_on_exit and self.watch.starts and self.leader.may_write
        work = self._save(OwnLabel.FINAL) if wanted else self._drain(budget_s)
        try:
            await within(budget_s, work, break_off_s=_BREAK_OFF_S)
        except TimeoutError:
            what = "the final snapshot did not fit into" if wanted else "what was under way did not end within"
            failure = GatewayError(f"{what} the {budget_s:.1f} s that were left")
        except GatewayError as error:
            failure = error
        except Exception:
            log.exception("the final snapshot failed unexpectedly")
            failure = GatewayError("the final snapshot failed unexpectedly", "the lines before say why")
        if failure is not None:
            log.error(
                "what was written since the latest snapshot is not in the store",
                writes="unknown" if writes is None else writes,
                cause=str(failure),
            )
        return failure

    async def release_lease(self, left_s: Callable[[], float]) -> None:
        """Give the lease back, so that the next gateway need not wait for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(_LEAST_FOR_THE_LEASE_S, left_s())):
                await self.leader.end()

    async def close(self) -> None:
        """Close what is open. Chroma goes on."""
        self.quarantine.stopped()
        self._presence.close()
        await self.operations.snapshotter.close()
        await self.repository.close()

    async def _save(self, label: OwnLabel) -> None:
        """Take a last snapshot for the gateway that comes next, unless the newest one has everything.

        Waits for other operations, as long as there are any: the caller bounds it.
        """
        while True:
            await self.operations.resume()
            await self.operations.until_idle()
            try:
                await self._save_now(label)
            except Conflict as error:  # another operation was quicker, such as a garbage collection
                log.debug("the last snapshot waits", cause=error.message)
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def _save_now(self, label: OwnLabel) -> None:
        if not self.operations.unsaved_writes.any or (
            not self.watch.starts and await asyncio.to_thread(self.directory.is_empty)
        ):
            log.info("nothing changed since the latest snapshot, so it is the last one")
            return
        writes = self.operations.unsaved_writes.writes
        snapshot = await self.operations.snapshot(label)
        log.info("everything that was acknowledged is in the last snapshot", snapshot=snapshot.id, writes=writes)

    async def _drain(self, timeout_s: float) -> None:
        await self.operations.until_idle()
        async with self.gate.hold(timeout_s):
            pass
