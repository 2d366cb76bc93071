"""What an operator can ask for, one thing at a time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import structlog

from gateway.aio import run_in_thread_uninterrupted
from gateway.chroma.database import write_lock
from gateway.chroma.directory import DataDirectory
from gateway.chroma.managed import ManagedChroma
from gateway.chroma.orphans import remove_orphaned_directories
from gateway.errors import Conflict, GatewayError, LeaseLost, NotFound, SnapshotError, Unavailable
from gateway.files import scratch_directory
from gateway.jobs import Progress, counted
from gateway.lease.election import LeaderElection
from gateway.snapshot.create import Snapshotter
from gateway.snapshot.fetch import Replay, fetch_contents
from gateway.snapshot.gc import GcResult, collect_garbage
from gateway.snapshot.import_tar import import_tar
from gateway.snapshot.model import Snapshot, SnapshotCollection, Verification
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import restore_live, start_or_roll_back
from gateway.snapshot.retention import Keep, OwnLabel
from gateway.snapshot.sound import fetch_sound
from gateway.snapshot.unsaved_writes import UnsavedWrites
from gateway.snapshot.verify import Level, verify

log = structlog.get_logger()

# What has not ended then breaks off: all other requests are refused meanwhile.
_REFUSAL_GRACE_S = 5.0
# At most 40 manifests a second: less than a tenth of the processor.
_SLOW_READS_AT_ONCE, _SLOW_READS_PAUSE_S = 2, 0.05
_GC = "garbage collection"


class Gate(Protocol):
    """What operations do to clients' requests; `gateway.proxy.gate` does it."""

    @property
    def admitted_writes(self) -> int: ...

    @property
    def lost(self) -> str | None: ...

    def hold(self, drain_timeout_s: float) -> AbstractAsyncContextManager[float]: ...

    def refuse(self, reason: str, drain_timeout_s: float) -> AbstractAsyncContextManager[None]: ...


class Wanted(NamedTuple):
    """What a restore is to bring back: a snapshot, and what leads it to a later state."""

    snapshot_id: str
    replay: Replay | None = None


async def _nothing(*_: object) -> None:
    """What is done before a swap or a deletion where nothing is to be done."""


class Operations:
    """Snapshot, restore, delete and quiesce. A second one while one runs raises Conflict."""

    def __init__(
        self,
        repository: Repository,
        directory: DataDirectory,
        chroma: ManagedChroma,
        gate: Gate,
        leader: LeaderElection,
        *,
        drain_timeout_s: float,
    ) -> None:
        self.repository = repository
        self._directory, self._chroma, self._gate, self._leader = directory, chroma, gate, leader
        self._drain_timeout_s = drain_timeout_s
        self.unsaved_writes = UnsavedWrites(lambda: gate.admitted_writes)
        self.snapshotter = Snapshotter(repository, directory, chroma, self._hold)
        self._quiesced: _Quiesced | None = None
        self.current: str | None = None
        self._removing = self._is_own = False
        self._inspection: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.restored_bytes: tuple[int, int] | None = None
        self._errors: dict[str, dict[str, Any]] = {}
        self.before_swap: Callable[[], Awaitable[None]] = _nothing
        """Called before the data are swapped, when all requests have ended. What it raises ends the restore."""
        self.beside_swap: Callable[[], AbstractAsyncContextManager[None]] = contextlib.nullcontext
        """Entered for the time of the swap."""
        self.before_deletion: Callable[[Collection[str]], Awaitable[object]] = _nothing
        """Called with the ids of snapshots that are about to be deleted. What it raises ends the deletion."""
        self.on_outcome: Callable[[Snapshot | None], None] = lambda _snapshot: None
        """Called for every snapshot that ended; with None for one that failed."""

    @contextlib.asynccontextmanager
    async def _hold(self) -> AsyncIterator[float]:
        async with self._gate.hold(self._drain_timeout_s) as drain_ms:
            self.unsaved_writes.cut()
            yield drain_ms

    @contextlib.contextmanager
    def exclusively(self, what: str, *, removes: bool = False, own: bool = False) -> Iterator[None]:
        """One operation at a time. Raises Conflict while another is under way.

        `removes` says that it takes away what the inspection of a snapshot needs; `own`, that nobody asked for it.
        """
        if (other := self.current or (self._inspection if removes else None)) is not None:
            raise Conflict(
                f"{other} is under way",
                "wait for it, or for POST /admin/resume; see GET /admin/status",
            )
        self.current, self._removing, self._is_own = what, removes, own
        self._idle.clear()
        try:
            yield
        finally:
            self.current, self._removing, self._is_own = None, False, False
            self._idle.set()

    @contextlib.asynccontextmanager
    async def in_turn(self, what: str, *, removes: bool = False) -> AsyncIterator[None]:
        """As `exclusively`, for what people ask for: what the gateway does by itself at this moment is waited for."""
        while self._is_own:
            await self._idle.wait()
        with self.exclusively(what, removes=removes):
            yield

    @contextlib.asynccontextmanager
    async def _own_or_in_turn(self, what: str, *, own: bool, removes: bool = False) -> AsyncIterator[None]:
        if own:
            with self.exclusively(what, removes=removes, own=True):
                yield
        else:
            async with self.in_turn(what, removes=removes):
                yield

    @contextlib.contextmanager
    def _inspect(self, what: str) -> Iterator[None]:
        """Inspections take long and change nothing. There is one at a time, and snapshots go on beside it."""
        if self._inspection is not None:
            raise Conflict(f"{self._inspection} is under way", "wait for it; see GET /admin/jobs")
        if self._removing:
            raise Conflict(f"{self.current} is under way", "wait for it; see GET /admin/status")
        self._inspection = what
        try:
            yield
        finally:
            self._inspection = None

    def nothing_is_saved(self) -> None:
        """The newest snapshot is not known to hold the data any more, nor is what the journal writes over it."""
        self.unsaved_writes.nothing_is_saved()
        self.snapshotter.outdate_snapshot()

    async def until_idle(self) -> None:
        """Wait for the operation under way, if there is one."""
        await self._idle.wait()

    def require_idle(self) -> None:
        """Raise Conflict while an operation is under way that somebody asked for."""
        if not self._is_own:
            with self.exclusively("a question"):
                pass

    async def snapshot(self, label: str | None = None, progress: Progress | None = None) -> Snapshot:
        """Take a snapshot; see `Snapshotter.take`."""
        async with self._own_or_in_turn("a snapshot", own=label == OwnLabel.CHECKPOINT):
            try:
                with self._noting_errors("snapshot"):
                    snapshot = await self.snapshotter.take(label, progress)
            except Exception:
                self.on_outcome(None)
                raise
            self.unsaved_writes.saved()
            self.on_outcome(snapshot)
            return snapshot

    @contextlib.contextmanager
    def _noting_errors(self, what: str) -> Iterator[None]:
        """Note the error of this kind of work for `last_error`, until the same work succeeds."""
        try:
            yield
        except Exception as error:
            self._note_error(what, error if isinstance(error, GatewayError) else _unexpected(error))
            raise
        self._errors.pop(what, None)

    def _note_error(self, what: str, error: GatewayError) -> None:
        self._errors.pop(what, None)  # the newest one is the last
        self._errors[what] = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **error.body()}

    @property
    def last_error(self) -> dict[str, Any] | None:
        """The newest error of a snapshot, a garbage collection or the store that no later success has settled."""
        return next(reversed(self._errors.values()), None)

    @property
    def gc_problem(self) -> str | None:
        """Why the newest garbage collection failed, None if it did not, or if it is for another gateway to do."""
        error = self._errors.get(_GC)
        if error is None or error["error"] == LeaseLost.__name__:
            return None
        return f"garbage collection fails, so nothing is deleted: {error['message']}"

    async def restore(
        self, name: str, progress: Progress | None = None, find: Callable[[], Awaitable[Wanted]] | None = None
    ) -> Snapshot:
        """Go back to a snapshot while running; see `restore_live`.

        `find` is asked what to restore once the lease is ours. Without it, that is the snapshot `name`.
        """
        if self._gate.lost is not None:
            raise Unavailable(self._gate.lost)
        async with self.in_turn(f"the restore of snapshot {name}"):
            if find is None and name != "latest":  # which one that is shows afterwards
                # No other gateway is to leave for a snapshot that is not there.
                await self.repository.manifest(await self.repository.resolve(name))
            await self._leader.adopt()
            wanted = await find() if find else Wanted(await self.repository.resolve(name))
            note = counted(progress or Progress(), "fetching")

            def fetched(done: int, total: int) -> None:
                self.restored_bytes = (done, total)
                note(done, total)

            @contextlib.asynccontextmanager
            async def refuse(reason: str) -> AsyncIterator[None]:
                if progress:
                    progress.phase("exchanging", None)
                async with self._swapping(reason):
                    yield

            try:
                restored = await restore_live(
                    self.repository,
                    self._directory,
                    self._chroma,
                    refuse,
                    wanted.snapshot_id,
                    fetched,
                    wanted.replay,
                )
                self.nothing_is_saved()
                await self._leader.adopted()
                return restored
            finally:
                self.restored_bytes = None

    @contextlib.asynccontextmanager
    async def _swapping(self, reason: str) -> AsyncIterator[None]:
        # Not before: a restore that comes to nothing takes nothing from what is known of the data.
        async with self._gate.refuse(reason, _REFUSAL_GRACE_S):
            await self.before_swap()
            async with self.beside_swap(), self.snapshotter.swapping():
                yield

    async def finish_interrupted_restore(self) -> None:
        """Settle or roll back a restore that an earlier gateway on this directory died of, and start Chroma.

        Requests are refused until then. Logs the outcome; the data served is sound in either case.
        """
        with self.exclusively("the start"), contextlib.suppress(GatewayError):
            refuse = self._gate.refuse("an interrupted restore is being finished", _REFUSAL_GRACE_S)
            async with refuse, self.beside_swap():
                await start_or_roll_back(self._directory, self._chroma)

    async def delete(self, name: str) -> None:
        """Remove a snapshot; see `Repository.delete`."""
        async with self.in_turn(f"the deletion of snapshot {name}", removes=True):
            snapshot_id = await self.repository.resolve(name)
            journal = self.snapshotter.journal
            if journal is not None and journal.needs(snapshot_id):
                # The entries so far are of no use without a snapshot under them.
                await self.snapshotter.take(OwnLabel.CHECKPOINT)
            self.unsaved_writes.nothing_is_saved()
            await self.before_deletion((snapshot_id,))
            await self.repository.delete(snapshot_id)

    async def collect_garbage(
        self,
        keep: Keep,
        grace_s: float,
        *,
        may_delete: bool = True,
        needs: Callable[[], Awaitable[str | None]] | None = None,
        own: bool = False,
    ) -> GcResult:
        """Drop snapshots that no rule keeps and packs that none names; see `gateway.snapshot.gc`.

        `needs` returns the oldest snapshot that the journal's history needs; `own`: nobody asked for it. Then remove
        the index directories of collections that were deleted longer ago than `grace_s`.
        """
        async with self._own_or_in_turn("a garbage collection", own=own, removes=True):
            with self._noting_errors(_GC):
                history_from = await needs() if needs else None
                result = await collect_garbage(
                    self.repository,
                    self._leader,
                    keep,
                    grace_s,
                    may_delete=may_delete,
                    history_from=history_from,
                    before_deletion=self.before_deletion,
                )
            self._note_damage()
            removed = await run_in_thread_uninterrupted(remove_orphaned_directories, self._directory.path, grace_s)
            return result.model_copy(update=removed._asdict())

    async def look_for_damage(self) -> None:
        """Look, slowly, whether all that the snapshots need is in the store; see `Repository.damage`.

        Other operations go on meanwhile. Raises StorageError; safe to retry.
        """
        packs = {info.key async for info in self.repository.pack_objects()}
        async for newest in self.repository.newest_first():
            with contextlib.suppress(SnapshotError, NotFound):
                await self.repository.manifest(newest)  # first the one that matters most
                await self.repository.find_missing_packs(packs)
            break
        self._note_damage()
        await self.repository.look_for_damage(packs, at_once=_SLOW_READS_AT_ONCE, pause_s=_SLOW_READS_PAUSE_S)
        self._note_damage()

    def _note_damage(self) -> None:
        if damage := self.repository.damage:
            self._note_error("the store", SnapshotError("; ".join(damage), "see GET /readyz"))
        else:
            self._errors.pop("the store", None)
        if self.repository.is_latest_broken:
            self.nothing_is_saved()

    # ------------------------------------------------------------------ inspected, in and out

    async def verify(self, name: str, level: Level, progress: Progress) -> Verification:
        """Look at all of a snapshot; see `verify`."""
        with self._inspect(f"the verification of snapshot {name}"):
            snapshot_id = await self.repository.resolve(name)
            found = await verify(self.repository, self._directory.scratch, snapshot_id, level, progress)
            if not found.ok:
                self.nothing_is_saved()  # the newest snapshot may be the broken one
            return found

    async def unpack_to_scratch(self, name: str, stack: contextlib.AsyncExitStack, progress: Progress) -> Path:
        """Restore a snapshot into a scratch directory, which `stack` removes; for a Chroma without a gateway.

        Needs free disk for all of it in the data directory. Raises what a restore raises.
        """
        with self._inspect(f"the archiving of snapshot {name}"):
            manifest = await self.repository.manifest(await self.repository.resolve(name))
            path = await stack.enter_async_context(scratch_directory(self._directory.scratch, "archive"))
            await fetch_sound(
                self.repository,
                path,
                manifest,
                counted(progress, "fetching"),
                self._directory.scratch,
                keep_log=False,
            )
            return path

    async def contents(self, wanted: Wanted) -> tuple[SnapshotCollection, ...]:
        """Return the collections of a state, and how many records each has.

        Of a snapshot its manifest says so. Of a later state the database is fetched into a scratch directory and led
        there, which needs free disk for it in the data directory. Raises what a restore raises.
        """
        manifest = await self.repository.manifest(wanted.snapshot_id)
        if wanted.replay is None:
            return manifest.snapshot.collections
        with self._inspect(f"the preview of a restore from snapshot {wanted.snapshot_id}"):
            async with scratch_directory(self._directory.scratch, "preview") as path:
                found = await fetch_contents(self.repository.get_unverified, path, manifest, wanted.replay)
        return tuple(SnapshotCollection(**each._asdict()) for each in found.collections)

    async def import_tar(
        self,
        body: AsyncIterator[bytes],
        label: str | None,
        max_bytes: int,
        progress: Progress,
        received: asyncio.Event,
    ) -> Snapshot:
        """Make a snapshot of an archive; see `import_tar`."""
        async with self.in_turn("an upload"):
            scratch = self._directory.scratch
            try:
                return await import_tar(self.repository, scratch, body, label, max_bytes, progress, received)
            finally:
                # The newest snapshot may be of other data than those that are served.
                self.nothing_is_saved()

    # ------------------------------------------------------------------ for snapshots made by others

    async def quiesce(self, ttl_s: float) -> dict[str, Any]:
        """Hold writes back until `resume`, at most `ttl_s`; return when the disk is quiet.

        The gate is closed and drained and SQLite's write lock held, so that the disk can be
        snapshotted from outside. Raises Conflict, QuiesceTimeout.
        """
        stack = contextlib.AsyncExitStack()
        async with contextlib.AsyncExitStack() as entering:
            await entering.enter_async_context(self.in_turn("a quiesce"))
            self._chroma.require_served()
            drain_ms = await entering.enter_async_context(self._hold())
            await entering.enter_async_context(_in_thread(lambda: write_lock(self._directory.path)))
            stack = entering.pop_all()
        self._quiesced = _Quiesced(stack, ttl_s, self._expire)
        log.info("quiesced", ttl_s=ttl_s, drain_ms=drain_ms)
        return {"state": "closed", "expires_at": self._quiesced.expires_at, "drain_ms": round(drain_ms, 3)}

    async def resume(self) -> bool:
        """End a quiesce; say whether there was one."""
        quiesced, self._quiesced = self._quiesced, None
        if quiesced is None:
            return False
        await quiesced.end()
        log.info("resumed")
        return True

    async def _expire(self) -> None:
        log.warning("the quiesce was not resumed in time, writes go on")
        await self.resume()


def _unexpected(error: Exception) -> GatewayError:
    return GatewayError(f"it failed unexpectedly: {error!r}", "see the log")


class _Quiesced:
    """A quiesce under way, and the timer that ends it if nobody does."""

    def __init__(self, stack: contextlib.AsyncExitStack, ttl_s: float, on_expiry: Callable[[], Any]) -> None:
        self._stack = stack
        self.expires_at = (datetime.now(UTC) + timedelta(seconds=ttl_s)).isoformat(timespec="milliseconds")
        self._timer = asyncio.create_task(self._expire(ttl_s, on_expiry))

    async def _expire(self, ttl_s: float, on_expiry: Callable[[], Any]) -> None:
        await asyncio.sleep(ttl_s)
        await on_expiry()

    async def end(self) -> None:
        if self._timer is not asyncio.current_task():
            self._timer.cancel()
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def _in_thread(make: Callable[[], contextlib.AbstractContextManager[None]]) -> AsyncIterator[None]:
    """Enter and leave a blocking context manager in threads."""
    manager = make()
    await run_in_thread_uninterrupted(manager.__enter__, undo=lambda _: manager.__exit__(None, None, None))
    try:
        yield
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)
