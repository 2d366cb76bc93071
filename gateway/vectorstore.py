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
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog
import tenacity

from gateway.aio import shielded, within
from gateway.chroma.database import holds_anything, read_contents
from gateway.chroma.directory import PRIVATE, DataDirectory
from gateway.chroma.disk_probe import Presence, write_problems
from gateway.chroma.managed import ManagedChroma, ProcessControl
from gateway.chroma.quarantine import Quarantine
from gateway.chroma.repair import Repair
from gateway.chroma.watch import ChromaWatch
from gateway.errors import (
    Conflict,
    GatewayError,
    LeaseLost,
    NotFound,
    NothingToRestore,
    QuiesceTimeout,
    SnapshotError,
    StorageUnavailable,
)
from gateway.jobs import Progress, counted
from gateway.journal.deletion import drop_with
from gateway.journal.history import History
from gateway.journal.journal import Base, Journal, JournalOptions, why_behind
from gateway.journal.merge import Merger
from gateway.journal.plan import restore_s
from gateway.journal.replay import RestorePoint, find_point, replay_of
from gateway.journal.sequence import Sequence
from gateway.lease.data_dir_state import DataDirState
from gateway.lease.election import LeaderElection, LeaderRole, LeaseOptions
from gateway.lease.lease import this_process
from gateway.proxy.gate import Gate
from gateway.snapshot.gc import GcResult
from gateway.snapshot.index_copies import StoredCopies
from gateway.snapshot.model import Snapshot, SnapshotCollection, is_snapshot_id, moment_of
from gateway.snapshot.operations import Operations, Wanted
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
_LOOK_AT_RECOVERY_EVERY_S = 1.0
_CHECKPOINT_AGAIN_S = 5.0
_MERGE_EVERY_S = 60.0
_FIRST_TIDY_S = 300.0
_TIDY_EVERY_S = 3600.0
_LOOK_AT_HISTORY_EVERY_S = 600.0
_LAG_WARNING_S, _LAG_PROBLEM_S = 10.0, 60.0
_LOST_WITH_A_KILL = (
    "if this machine is lost or killed, everything written since the latest snapshot is lost: the journal is off"
    " (GATEWAY_JOURNAL_INTERVAL_S=0), and no snapshot is scheduled (GATEWAY_SNAPSHOT_INTERVAL_S)"
)


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
    `is_unsaved`: the store outlives the container, and neither a journal nor a schedule saves anything in it.
    """

    restore: str
    restore_at: datetime | None
    restore_retry_s: float
    takeover_timeout_s: float
    drain_timeout_s: float
    gate_timeout_s: float
    snapshot_on_exit: bool
    is_unsaved: bool
    may_delete: bool
    keep: Keep
    gc_grace_s: float
    journal: JournalOptions
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


class HistoryNeeds(NamedTuple):
    """The snapshots from `history_from` on, and the entries after `base`; None if all of them."""

    history_from: str
    base: int | None


class Restored(NamedTuple):
    """What a restore brought back. `at`: the moment of these data; `return_to`: the moment to undo it, if there is one.

    `entries`: how many entries of the journal were replayed over the snapshot. `stored`: whether the store knows
    already that these are the data now.
    """

    snapshot: Snapshot
    entries: int
    at: datetime
    return_to: datetime | None
    stored: bool


class Preview(NamedTuple):
    """What a restore would bring back. `duration_s`: about how long it would take on a machine such as ours.

    `now`: what it would replace; empty if that cannot be read.
    """

    point: RestorePoint
    fetched_bytes: int
    duration_s: float
    collections: tuple[SnapshotCollection, ...]
    now: tuple[SnapshotCollection, ...] = ()


class _Checkpoints:
    """What the journal asks of snapshots."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def base(self) -> Base | None:
        found = await self._operations.snapshotter.base()
        return Base(*found) if found else None

    async def take(self) -> None:
        await self._operations.snapshot(OwnLabel.CHECKPOINT)


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
        self.journal = Journal(
            Sequence(store, lambda: self.leader.conditions),
            self.operations.snapshotter.tracker,
            self.leader,
            _Checkpoints(self.operations),
            lambda: bool(self.watch.starts) and self.gate.lost is None,
            lambda: holds_anything(directory.path),
            options.journal,
            where=this_process(),
        )
        self.leader.why_behind = self.journal.why_behind
        self.leader.first_epoch = self.journal.sequence.first_epoch
        self.journal.is_behind = lambda head: why_behind(head, directory.path, self._data_dir_state)
        self.operations.snapshotter.journal = self.journal
        self.operations.before_swap, self.operations.beside_swap = self._save_before_swap, self._beside_swap
        self.operations.before_deletion = self._drop_moments_of
        self.history = History(self.journal.sequence, repository, options.journal.history_s)
        self._presence = Presence(directory.path)
        self._disk_problems: list[str] = []
        self._restoring_to: datetime | None = None
        self._return_to: datetime | None = None
        self._is_saved = False
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
            self.journal.begin_anew()
        await asyncio.to_thread(self._data_dir_state.name)
        self.leader.begin(has_data=has_data)
        if self._options.is_unsaved:
            log.warning(_LOST_WITH_A_KILL)

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
        if self.leader.epoch is not None:
            # From here on, nothing is added by the gateway before this one.
            await self.journal.seal()
        point = await self._demanded(self._find(wanted, self._options.restore_at))
        if point is None:
            log.info("the store holds no snapshot, starting empty", store=repository.url)
            self._nothing_to_save()
            return
        snapshot_id, entries = point.manifest.snapshot.id, len(point.entries)

        def progress(done: int, total: int) -> None:
            reason = f"restoring snapshot {snapshot_id}: {done} of {total} bytes"
            self._start = Readiness(Phase.RESTORING, reason, {"bytes_done": done, "bytes_total": total})

        log.info("restoring", snapshot=snapshot_id, entries=entries, at=point.at.isoformat(), store=repository.url)
        replay = replay_of(self.journal.sequence, point)
        await self._demanded(restore_at_boot(repository, self.directory, snapshot_id, progress, replay))
        if wanted == "latest":
            self._nothing_to_save()
        else:
            self.journal.restored_to = point.at

    async def _find(self, wanted: str, at: datetime | None) -> RestorePoint | None:
        """What `wanted` names: `latest`, or a snapshot's id; or the state at the moment `at`, if that is given."""
        repository = self.repository
        if wanted == "latest" or at is not None:
            return await find_point(self.journal.sequence, repository, at)
        manifest = await repository.manifest(await repository.resolve(wanted))
        return RestorePoint(manifest, manifest.snapshot.created_at)

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

    # ------------------------------------------------------------------ back to a moment

    async def find(self, wanted: str, at: datetime | None = None) -> RestorePoint:
        """What a restore of the snapshot `wanted`, of `latest`, or of the moment `at` would bring back.

        Raises NotFound, NothingToRestore, SnapshotError, StorageError.
        """
        point = await self._find(wanted, at)
        if point is None:
            raise NotFound("there is no snapshot yet", "take one: POST /admin/snapshot")
        return point

    async def preview(self, wanted: str, at: datetime | None, progress: Progress) -> Preview:
        """What `restore` would bring back. Of a moment between snapshots the database is fetched to count its records.

        Raises what `find` and `Operations.contents` do. Changes nothing; safe to retry.
        """
        progress.phase("reading", None)
        point = await self.find(wanted, at)
        manifest, head = point.manifest, point.head
        rows = max(0, head.log - max(manifest.segments.values(), default=0)) if head else 0
        snapshot_bytes = sum(piece.stored_bytes for file in manifest.files for piece in file.pieces)
        return Preview(
            point,
            snapshot_bytes + point.journal_bytes,
            restore_s(manifest.snapshot.size_bytes, len(point.entries), point.journal_bytes, rows),
            await self.operations.contents(Wanted(manifest.snapshot.id, replay_of(self.journal.sequence, point))),
            await self._contents_now(),
        )

    async def _contents_now(self) -> tuple[SnapshotCollection, ...]:
        try:
            found = await asyncio.to_thread(read_contents, self.directory.path)
        except (GatewayError, OSError):  # a look at the past is worth something alone
            return ()
        return tuple(SnapshotCollection(**each._asdict()) for each in found.collections)

    async def restore(self, wanted: str, at: datetime | None, progress: Progress) -> Restored:
        """Go back to the snapshot `wanted`, to `latest`, or to the moment `at`, while the gateway serves.

        What is served now is saved first, so that there is a way back. Raises what `find` and `Operations.restore` do.
        """
        if wanted != "latest" or at is not None:  # what `latest` is shows afterwards
            # No other gateway is to leave for what is not there.
            await self.find(wanted, at)
        return await self._restore_live(at.isoformat() if at else wanted, lambda: self.find(wanted, at), progress)

    async def restore_snapshot(self, name: str, progress: Progress) -> Restored:
        """As `restore`, of a snapshot, where `latest` is the newest snapshot and not the newest state."""
        if name != "latest":
            return await self.restore(name, None, progress)

        async def find() -> RestorePoint:
            return await self.find(await self.repository.resolve(name))

        return await self._restore_live(name, find, progress)

    async def _restore_live(
        self, name: str, find: Callable[[], Awaitable[RestorePoint]], progress: Progress
    ) -> Restored:
        found: list[RestorePoint] = []

        async def wanted() -> Wanted:
            if self.leader.epoch is not None:
                await self.journal.seal()
            point = await find()
            found.append(point)
            self._restoring_to = point.at
            return Wanted(point.manifest.snapshot.id, replay_of(self.journal.sequence, point))

        self._return_to, self._is_saved = None, await self._save_before_restore()
        try:
            snapshot = await self.operations.restore(name, progress, wanted)
        finally:
            self._restoring_to = None
        return_to, stored = self._return_to, False
        if self.journal.is_on:
            try:
                await self.journal.stored()
                stored = True
            except GatewayError as error:
                log.warning("the restored data are served, and not stored yet", cause=str(error))
        return Restored(snapshot, len(found[-1].entries), found[-1].at, return_to, stored)

    @contextlib.asynccontextmanager
    async def _beside_swap(self) -> AsyncIterator[None]:
        async with self.journal.new_run():
            yield
            self.journal.restored_to = self._restoring_to

    def _can_save(self) -> bool:
        return self.journal.is_on and self.leader.role is LeaderRole.WRITER and self.watch.up

    async def _save_before_restore(self) -> bool:
        """Store what is served now, while requests go on. False if that cannot be done: it may be what is broken."""
        if not self._can_save():
            return False
        try:
            await self.journal.stored()
        except LeaseLost:
            raise
        except GatewayError as error:
            log.warning(
                "what is served now cannot be stored, so there is no way back from the restore", cause=str(error)
            )
            return False
        return True

    async def _save_before_swap(self) -> None:
        """What came since must be in the store too, or the restore would be a way without return."""
        if self._is_saved and self._can_save():
            await self.journal.stored()
            self._return_to = self.journal.moment()

    async def keep_recovery_short(self) -> None:
        """Take a checkpoint whenever a restore would take too long without it, until cancelled."""
        repairs: list[Repair] = []
        while True:
            await asyncio.sleep(_LOOK_AT_RECOVERY_EVERY_S)
            if self.chroma.repairs != repairs:
                repairs = [*self.chroma.repairs]
                if repairs:
                    self.operations.snapshotter.outdate_snapshot()
            if (
                self.journal.recovery_s <= self._options.journal.recovery_s
                or not self.watch.up
                or self.leader.role is not LeaderRole.WRITER
            ):
                continue
            try:
                await self.operations.snapshot(OwnLabel.CHECKPOINT)
            except Exception as error:  # any: this must go on while there is a gateway
                log.info("a checkpoint could not be taken, trying again", cause=str(error))
                await asyncio.sleep(_CHECKPOINT_AGAIN_S)

    async def watch_history(self) -> None:
        """Look every ten minutes which moments can be restored, until cancelled; see `History.known`."""
        while True:
            if self.readiness().phase is Phase.READY:
                try:
                    await self.history.window()
                except GatewayError as error:
                    log.info("the history cannot be read, trying again", cause=str(error))
                else:
                    await asyncio.sleep(_LOOK_AT_HISTORY_EVERY_S)
            await asyncio.sleep(_LOOK_AT_STORE_AGAIN_S)

    # ------------------------------------------------------------------ how it is

    @property
    def unsaved_s(self) -> float:
        """How long the oldest write has waited to be in the store: in the journal, or without one in a snapshot."""
        now_s = time.monotonic()
        return self.journal.lag_s if self.journal.is_on else self.operations.unsaved_writes.age_s(now_s)

    def journal_status(self) -> dict[str, Any]:
        """For `/admin/status`. The window is as of the last look, and ends with the newest entry."""
        window = self.history.known
        newest = max((each for each in (self.journal.at, window and window.newest) if each), default=None)
        return {
            **self.journal.status(),
            "restorable_from": window.oldest if window else None,
            "restorable_to": newest if window else None,
        }

    def _journal_problem(self, most_s: float) -> str | None:
        """Why what is written does not reach the store, if that has lasted for `most_s`."""
        journal = self.journal
        if not journal.is_on or journal.lag_s <= most_s:
            return None
        why = f": {journal.problem.message}" if journal.problem else ""
        return f"what was written in the last {journal.lag_s:.0f} s is not in the store yet{why}"

    def _journal_warnings(self) -> list[str]:
        journal, found = self.journal, self._journal_problem(_LAG_WARNING_S)
        if found is None and journal.problem is not None:
            found = f"the journal cannot be written: {journal.problem.message}"
        warnings = [found, journal.unsupported, _LOST_WITH_A_KILL if self._options.is_unsaved else None]
        return [each for each in warnings if each]

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
        found = [
            *self.leader.warnings,
            *self._disk_problems,
            *self._journal_warnings(),
            *self.repository.damage,
            *self._index_problems(),
        ]
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
            "journal-behind": self._journal_problem(_LAG_PROBLEM_S),
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
        async with self.operations.in_turn(f"the repair of {collection}"):
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
            self.operations.nothing_is_saved()
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

    async def tidy(self, *, own: bool = False) -> GcResult:
        """Apply the retention, collect the garbage. `own`: nobody asked for it."""
        options = self._options
        needed = HistoryNeeds("", None)

        async def needs() -> str | None:
            nonlocal needed
            if not self.journal.is_on:
                return None
            needed = await self._history_needs()
            return needed.history_from

        result = await self.operations.collect_garbage(
            options.keep, options.gc_grace_s, may_delete=options.may_delete, needs=needs, own=own
        )
        if needed.base is not None and options.may_delete:
            await Merger(self.journal.sequence).drop_until(needed.base)
        return result

    async def _drop_moments_of(self, snapshot_ids: Collection[str]) -> None:
        """What cannot be restored without these snapshots goes with them, so that history does not list it."""
        sequence = self.journal.sequence
        if entries := await drop_with(sequence, self.repository, snapshot_ids, self.leader.require):
            log.info("moments go with the snapshots that they are restored from", entries=entries)

    async def _history_needs(self) -> HistoryNeeds:
        """What the moments of the last `GATEWAY_HISTORY_S` are restored from."""
        limit = datetime.now(UTC) - timedelta(seconds=self._options.journal.history_s)
        base: int | None = None
        async for snapshot_id in self.repository.newest_first():
            if base is not None:
                # One more: an entry may have been written over it while the one after it was taken.
                return HistoryNeeds(snapshot_id, base)
            if moment_of(snapshot_id) <= limit:
                with contextlib.suppress(SnapshotError, NotFound):
                    base = (await self.repository.manifest(snapshot_id)).journal
        return HistoryNeeds("", base)

    async def keep_history(self) -> None:
        """Merge old entries of the journal, and drop what no moment of the history needs, until cancelled."""
        # Soon after the start too: many a container lives for less than an hour.
        tidied_at, merger, entries = time.monotonic() - _TIDY_EVERY_S + _FIRST_TIDY_S, Merger(self.journal.sequence), -1
        while True:
            await asyncio.sleep(_MERGE_EVERY_S)
            if not self.journal.is_on or self.leader.role is not LeaderRole.WRITER or not self._options.may_delete:
                continue
            try:
                await self.leader.require()
                if merger.has_more or entries != self.journal.counts.entries:
                    entries = self.journal.counts.entries
                    await merger.merge_old(datetime.now(UTC))
                if time.monotonic() - tidied_at > _TIDY_EVERY_S:
                    await self.tidy(own=True)
                    tidied_at = time.monotonic()
            except Exception as error:  # any: history that is not bounded fills the store
                log.warning("old history could not be merged or dropped, trying again", cause=str(error))

    # ------------------------------------------------------------------ the end

    async def save_final(self, left_s: Callable[[], float]) -> GatewayError | None:
        """Take the final snapshot in what is left of the grace; return why it failed, None if it did not.

        Without one wanted, wait until what is under way has ended.
        """
        # Most requests have ended. One that is still arriving would be acknowledged after the cut.
        self.gate.refuse_writes("this gateway is stopping")
        await self.operations.resume()
        budget_s, writes, failure = left_s(), self.operations.unsaved_writes.writes, None
        saves = self._options.snapshot_on_exit or self.journal.is_on
        wanted = saves and self.watch.starts and self.leader.may_write
        work = self._save(OwnLabel.FINAL) if wanted else self._drain(budget_s)
        try:
            await within(budget_s, work, break_off_s=_BREAK_OFF_S)
        except TimeoutError:
            last = "the last cut was not stored within" if self.journal.is_on else "the final snapshot did not fit into"
            what = last if wanted else "what was under way did not end within"
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
        if self.journal.is_on:
            await self.journal.stored()
            # What Chroma has not answered yet is acknowledged too. It takes a moment, or is given up after that cut.
            try:
                async with self.gate.hold(self._options.drain_timeout_s):
                    await self.journal.stored()
            except (Conflict, QuiesceTimeout) as error:
                log.warning("writes that are under way may come too late to be stored", cause=str(error))
            log.info("everything that was acknowledged is in the journal", position=self.journal.stored_position)
            return
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
