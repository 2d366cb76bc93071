"""Take snapshots. `Snapshotter.take` has the steps in order."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import structlog

from gateway.aio import run_in_thread_uninterrupted, shielded
from gateway.chroma.database import Contents
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE, Signature, signature_of, signatures_of
from gateway.chroma.index_health import IndexHealth, missing_in_log
from gateway.chroma.log import count_log, keep_log, synced_to, trim_log
from gateway.chroma.pages import PageTracker
from gateway.chroma.process import chroma_version
from gateway.chroma.rebuild import sync_files
from gateway.chroma.segments import Segment, index_log, read_segments
from gateway.chroma.structure import IndexCheck
from gateway.errors import GatewayError, LeaseLost, SnapshotError, StorageError
from gateway.jobs import Progress
from gateway.snapshot import baseline as baselines
from gateway.snapshot.baseline import Baseline, StoredFile
from gateway.snapshot.blocks import Fingerprints
from gateway.snapshot.capture import Cut, freeze, plan_cut, read_database, read_index
from gateway.snapshot.model import Manifest, MigrationRow, Snapshot, SnapshotCollection, new_snapshot_id
from gateway.snapshot.packing import PackWriter
from gateway.snapshot.plan import IndexPlan
from gateway.snapshot.repository import Repository

log = structlog.get_logger()

Hold = Callable[[], AbstractAsyncContextManager[float]]
"""Closes the gate and drains it for the time of the block. Yields how long the drain took, in ms."""

# Attempts to read the indexes. Writes go on during all but the last.
_CAPTURE_ATTEMPTS = 3
# How often the baseline is saved to disk. After a crash, what changed since the last time is stored again.
_SAVE_EVERY_S = 60.0
# SQLite's log is bounded. Pages in it are remembered before it begins anew.
_MAX_WAL_PART = 0.05
_MIN_WAL_BYTES, _MAX_WAL_BYTES = 4 << 20, 64 << 20
# Rows of Chroma's log that are kept for older indexes in the store. Past that, the indexes are stored anew instead.
_MAX_LOG_ROWS = 25_000
_BOUND_EVERY_S = 1.0
_COUNT_EVERY_S = 60.0
_MOST_LOGGED = 20


class ServedChroma(Protocol):
    """What a snapshot needs to know about the running Chroma."""

    def require_served(self) -> int:
        """Return a number for Chroma's present run. Raises Unavailable unless all of its data can be read."""
        ...

    async def require_same_run(self, run: int) -> None:
        """Raise Unavailable if Chroma's process ended since: its files may be torn."""
        ...

    async def write_to_log(self, segment: Segment, ids: Sequence[str], hold: Hold) -> Sequence[str]:
        """Write the vectors of these records to Chroma's log again, from its memory.

        Returns the ids of which it has none. Raises GatewayError.
        """
        ...


class JournalLine(Protocol):
    """What a snapshot asks of the journal (`gateway.journal`), so that a restore knows where to go on."""

    async def require_sealed(self) -> None:
        """Know which entry is the newest. Raises LeaseLost, StorageError."""
        ...

    def number(self) -> int:
        """The number of the newest cut. Called while SQLite's write lock is held."""
        ...

    def snapshot_taken(self) -> None:
        """A snapshot was published."""
        ...

    def end_run(self) -> None:
        """The newest snapshot will not do any more."""
        ...

    def needs(self, snapshot_id: str) -> bool:
        """Whether the newest state is restored from this snapshot."""
        ...

    def new_run(self, *, replaces: bool) -> AbstractAsyncContextManager[None]:
        """Enclose what makes the data differ from those that the entries so far lead to."""
        ...


class _InMemoryAlone(Exception):
    """The vectors of these records are in Chroma's memory, and neither in a sound index nor in the log."""

    def __init__(self, segment: Segment, ids: list[str], problem: str) -> None:
        super().__init__(problem)
        self.segment, self.ids = segment, ids


class _IndexRead(NamedTuple):
    """An index that was read and packed."""

    position: int
    files: list[StoredFile]
    signatures: dict[str, Signature]
    is_sound: bool


@dataclass(slots=True)
class _Captured:
    """A cut whose every byte is in packs."""

    cut: Cut
    contents: Contents
    positions: dict[str, int]
    files: list[StoredFile] = field(default_factory=list)
    unsound: list[str] = field(default_factory=list)
    signatures: dict[str, Signature] = field(default_factory=dict)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    drain_ms: float = 0
    freeze_ms: float = 0


class Snapshotter:
    """Takes snapshots of one data directory, one at a time. Each costs what changed since the one before."""

    def __init__(self, repository: Repository, directory: DataDirectory, chroma: ServedChroma, hold: Hold) -> None:
        self._repository, self._directory, self._chroma, self._hold = repository, directory, chroma, hold
        self.tracker = PageTracker(directory.path)
        self.journal: JournalLine | None = None
        """Where the journal is; None without one."""
        self._baseline: Baseline | None = None
        self._saved_at = float("-inf")
        self._saved_id: str | None = None
        self._bounding = asyncio.Lock()
        self._health = IndexHealth(directory.path)
        self._torn: dict[str, str] = {}
        self._torn_in_run = 0
        self._lost: dict[str, Collection[str]] = {}
        self._times_outdated = 0

    async def take(self, label: str | None, progress: Progress | None = None) -> Snapshot:
        """Take a snapshot. Return it once its manifest is stored.

        After an error no new snapshot is listed, with one exception: after StorageUnavailable from writing the manifest
        the snapshot is listed whole or not at all. Safe to retry. Only one call may run at a time.
        Raises Unavailable, QuiesceTimeout, DiskFull, StorageError, LeaseLost.
        """
        progress = progress or Progress()
        started, run = time.monotonic(), self._chroma.require_served()
        self._torn, self._torn_in_run, self._lost = {}, run, {}
        outdated = self._times_outdated
        progress.phase("preparing", None)
        await self._repository.make()
        if self.journal is not None:
            await self.journal.require_sealed()
        baseline = await self._load_baseline()
        await run_in_thread_uninterrupted(keep_log, self._directory.path)
        writer = PackWriter(self._repository, await self._packs_to_reuse(baseline), progress)
        captured: _Captured | None = None
        try:
            async with writer:
                captured = await self._capture(run, baseline, writer, progress)
            # Leaving the writer waited until every pack is stored. Only now may a manifest name the packs.
            snapshot_id = new_snapshot_id(captured.created_at, await self._repository.newest_id())
            duration_s = time.monotonic() - started
            manifest = _manifest(captured, snapshot_id, label, duration_s, writer.uploaded_bytes)
            progress.phase("publishing", None)
            # Shielded: a manifest that arrives after its packs were deleted would be a broken snapshot.
            await shielded(self._repository.publish(manifest))
        except BaseException:
            if captured is not None:
                self.tracker.undo(captured.cut.database)
            await shielded(self._delete_unreferenced(writer.sent))
            raise
        await self._advance_baseline(baseline, manifest, captured, writer)
        if outdated == self._times_outdated:
            await asyncio.to_thread(self._directory.outdated.unlink, missing_ok=True)
        if self.journal is not None:
            self.journal.snapshot_taken()
        snapshot = manifest.snapshot
        log.info(
            "snapshot taken",
            snapshot=snapshot.id,
            size_bytes=snapshot.size_bytes,
            uploaded_bytes=snapshot.uploaded_bytes,
            duration_s=snapshot.duration_s,
            drain_ms=snapshot.drain_ms,
            freeze_ms=snapshot.freeze_ms,
        )
        return snapshot

    async def _packs_to_reuse(self, baseline: Baseline) -> Mapping[str, int]:
        """Size in bytes by name of packs in the store. Listed only without a baseline, since much is sent then."""
        return {} if baseline.snapshot_id else await self._repository.packs()

    async def _delete_unreferenced(self, packs: Iterable[str]) -> None:
        """Delete those of `packs` that no snapshot names. What cannot be deleted is left to the garbage collection."""
        with contextlib.suppress(StorageError, SnapshotError, LeaseLost):
            await self._repository.delete_unreferenced(packs)

    # ------------------------------------------------------------------ capturing

    async def _capture(self, run: int, baseline: Baseline, writer: PackWriter, progress: Progress) -> _Captured:
        """Make a cut and pack what the store does not have of it.

        If a required index changes while it is read, make another cut. Writes go on meanwhile, except in the last
        attempt, and except where the database is not in WAL mode. Another cut is also made after vectors of a torn
        index were written to the log.
        """
        indexes: dict[str, _IndexRead] = {}
        attempt = 1
        while attempt <= _CAPTURE_ATTEMPTS:
            holds_writes = attempt == _CAPTURE_ATTEMPTS
            try:
                captured = await self._capture_once(run, baseline, indexes, writer, progress, holds_writes=holds_writes)
            except _InMemoryAlone as torn:
                await self._save_in_log(torn)
                continue
            if captured is not None:
                return captured
            log.info("an index changed while it was read, making another cut", attempt=attempt)
            attempt += 1
        raise GatewayError(
            "an index could not be read although nothing wrote to it: files of it are missing, or something other than"
            " Chroma changes them",
            "see GET /readyz; restore the latest snapshot, or delete the collection",
        )

    async def _capture_once(
        self,
        run: int,
        baseline: Baseline,
        indexes: dict[str, _IndexRead],
        writer: PackWriter,
        progress: Progress,
        *,
        holds_writes: bool,
    ) -> _Captured | None:
        """Make one cut and pack it; None if a required index changed. `indexes`: those read so far, by segment."""
        cut: Cut | None = None
        captured: _Captured | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                gate = await stack.enter_async_context(contextlib.AsyncExitStack())
                drain_ms = await gate.enter_async_context(self._hold())
                created_at, frozen_at, freeze_ms = datetime.now(UTC), time.monotonic(), 0.0
                number = self.journal.number if self.journal is not None else _no_number
                cut = await run_in_thread_uninterrupted(
                    freeze, self._directory.path, self.tracker, baseline, number, undo=self._abandon
                )
                stack.push_async_callback(run_in_thread_uninterrupted, cut.close)
                if cut.database.keeps_writers_going and not holds_writes:
                    await gate.aclose()
                    freeze_ms = (time.monotonic() - frozen_at) * 1e3
                await self._chroma.require_same_run(run)
                captured = await self._read(cut, baseline, indexes, writer, progress)
                if captured is not None:
                    await gate.aclose()
                    captured.created_at, captured.drain_ms = created_at, drain_ms
                    captured.freeze_ms = freeze_ms or (time.monotonic() - frozen_at) * 1e3
        except BaseException:
            if cut is not None:
                self.tracker.undo(cut.database)
            raise
        if captured is None and cut is not None:
            self.tracker.undo(cut.database)
        return captured

    def _abandon(self, cut: Cut) -> None:
        self.tracker.undo(cut.database)
        cut.close()

    async def _read(
        self,
        cut: Cut,
        baseline: Baseline,
        indexes: dict[str, _IndexRead],
        writer: PackWriter,
        progress: Progress,
    ) -> _Captured | None:
        """Pack what is new in the cut; None if a required index changed. `indexes`: those read so far, by segment."""
        contents = await run_in_thread_uninterrupted(cut.database.contents)
        plan = await run_in_thread_uninterrupted(plan_cut, cut, baseline)
        described = await run_in_thread_uninterrupted(_segments, cut)
        if plan.required or plan.optional:
            await run_in_thread_uninterrupted(index_log, cut.database.connection)
        progress.phase("storing", cut.size_bytes)
        for segment_id in (*plan.required, *plan.optional):
            position = cut.segments[segment_id]
            if segment_id in indexes and indexes[segment_id].position == position:
                continue
            segment = described.get(segment_id)
            check = await run_in_thread_uninterrupted(self._health.check, segment_id, segment, cut.database.connection)
            if check.is_torn:
                await self._require_other_source(cut, plan, segment_id, segment, check)
                continue
            files = await read_index(self._directory.path, cut, segment_id, baseline, writer)
            if files is not None:
                is_sound = check.is_sound and segment is not None
                indexes[segment_id] = _IndexRead(position, files, cut.signatures_of(segment_id), is_sound)
            elif segment_id in plan.required:
                return None
        await run_in_thread_uninterrupted(self._health.save)
        captured = _Captured(cut, contents, dict(plan.positions))
        for segment_id, position in cut.segments.items():
            index = indexes.get(segment_id)
            if index is not None and index.position == position:
                captured.positions[segment_id] = index.position
                captured.files += index.files
                captured.signatures |= index.signatures
                is_sound = index.is_sound
            elif captured.positions.get(segment_id):
                captured.files += baseline.index_files(segment_id)
                is_sound = segment_id in baseline.sound
            else:
                continue
            if not is_sound:
                captured.unsound.append(segment_id)
        if signature := await asyncio.to_thread(signature_of, self._directory.path / DATABASE):
            captured.signatures[DATABASE] = signature
        captured.files.append(await read_database(cut.database, baseline, writer))
        return captured

    async def _require_other_source(
        self, cut: Cut, plan: IndexPlan, segment_id: str, segment: Segment | None, check: IndexCheck
    ) -> None:
        """An index is torn: make the snapshot rely on an older one in the store and the log, or on the log alone.

        Raises _InMemoryAlone if neither has every vector.
        """
        problem = "; ".join(map(str, check.problems))
        log.warning("an index is torn, so it is not stored", segment=segment_id, problem=problem)
        self._torn[segment_id] = problem
        if segment_id not in plan.required:
            return
        if segment is None or not cut.database.keeps_log:
            raise _only_on_disk(segment_id, problem)
        lost = self._lost.get(segment_id, ())
        missing = set(await run_in_thread_uninterrupted(missing_in_log, cut.database, segment)) - set(lost)
        if missing:
            raise _InMemoryAlone(segment, sorted(missing), problem)
        if lost:
            self._torn[segment_id] = f"{problem}; {len(lost)} record(s) have no vector in the snapshot"
        plan.positions[segment_id] = 0

    async def _save_in_log(self, torn: _InMemoryAlone) -> None:
        """Write what only Chroma's memory has to its log, once for each index in a snapshot."""
        segment, count = torn.segment, len(torn.ids)
        if segment.id in self._lost:
            raise _only_on_disk(segment.id, str(torn))
        log.warning("vectors that only Chroma's memory has are written to its log", segment=segment.id, vectors=count)
        lost = self._lost[segment.id] = await self._chroma.write_to_log(segment, torn.ids, self._hold)
        if lost:
            log.error(
                "records without a vector go into the snapshot",
                collection=segment.name,
                records=len(lost),
                ids=list(lost[:_MOST_LOGGED]),
            )

    # ------------------------------------------------------------------ the baseline

    async def _load_baseline(self) -> Baseline:
        """Return the baseline: what the store is known to have, of a snapshot that is still there."""
        if self._baseline is None:
            saved = await asyncio.to_thread(baselines.saved_snapshot_id, self._directory.baseline)
            if saved and await self._repository.exists(saved):
                with contextlib.suppress(SnapshotError):
                    manifest = await self._repository.manifest(saved)
                    self._baseline = await run_in_thread_uninterrupted(self._load_from_disk, manifest)
                    self._saved_id = saved
        elif not await self._repository.exists(self._baseline.snapshot_id):
            self._baseline = None
        if self._baseline is None:
            self._baseline, self._saved_id = baselines.empty_baseline(), None
        return self._baseline.without_packs(self._repository.corrupt_packs)

    def _load_from_disk(self, manifest: Manifest) -> Baseline | None:
        # Signatures first. If an index is synced in between, its new max_seq_id does not fit the old signatures.
        signatures = signatures_of(self._directory.path, manifest.segments)
        return baselines.load(self._directory.baseline, manifest, synced_to(self._directory.path), signatures)

    async def _advance_baseline(
        self, before: Baseline, manifest: Manifest, captured: _Captured, writer: PackWriter
    ) -> None:
        """Make the stored snapshot the baseline of the next one."""
        files, signatures = {file.path: file for file in captured.files}, before.signatures | captured.signatures
        self._baseline = Baseline(
            manifest.snapshot.id,
            before.seed,
            files,
            dict(captured.positions),
            {path: each for path, each in signatures.items() if path in files},
            manifest.sound,
        )
        named = {pack.sha256 for pack in manifest.packs}
        await self._delete_unreferenced([name for name in writer.sent if name not in named])
        try:
            advanced = captured.positions != before.positions
            # A journal goes on over the newest snapshot, so what that has must be known after a crash.
            if advanced or self.journal is not None or time.monotonic() - self._saved_at > _SAVE_EVERY_S:
                await self.save()
            if advanced:
                # Only once the baseline is saved. A saved baseline that is older than the log is of no use.
                await run_in_thread_uninterrupted(trim_log, self._directory.path, captured.positions)
        except (GatewayError, OSError) as error:
            log.warning("the baseline could not be saved", cause=str(error))

    async def save(self) -> None:
        """Save the baseline to disk. Raises DiskFull or GatewayError."""
        baseline = self._baseline
        if baseline is None or not baseline.snapshot_id or self._saved_id == baseline.snapshot_id:
            return
        await run_in_thread_uninterrupted(baselines.save, self._directory.baseline, baseline)
        self._saved_at, self._saved_id = time.monotonic(), baseline.snapshot_id

    @contextlib.asynccontextmanager
    async def swapping(self) -> AsyncIterator[None]:
        """Enclose a swap of the data. Forget what is known of them, and keep this object from touching them."""
        async with self._bounding:
            # From now on, the baseline on disk says what the store has.
            self._baseline, self._saved_id = None, None
            await run_in_thread_uninterrupted(self.tracker.forget)
            yield

    def outdate_snapshot(self) -> None:
        """An index was repaired, or the newest snapshot is broken: a journal can go on only over a new snapshot."""
        self._note_outdated()
        if self.journal is not None:
            self.journal.end_run()

    def _note_outdated(self) -> None:
        # On the disk, since a restart must know it too. Before the log is trimmed.
        self._times_outdated += 1
        with contextlib.suppress(OSError):
            self._directory.outdated.touch()

    async def base(self) -> tuple[str, Fingerprints, int] | None:
        """Return the newest snapshot if these data come from it: its id, the digests of its database's pages, and the
        newest entry of the journal before it.

        None if they do not, if that is not known, or if the log does not lead from its indexes to the data any more.
        Raises StorageError.
        """
        if self._repository.is_latest_broken or await asyncio.to_thread(self._directory.outdated.exists):
            return None
        baseline = await self._load_baseline()
        database = baseline.files.get(DATABASE)
        if database is None or baseline.snapshot_id != await self._repository.latest_id():
            return None
        manifest = await self._repository.manifest(baseline.snapshot_id)
        return None if manifest.journal is None else (baseline.snapshot_id, database.fingerprints, manifest.journal)

    def torn_indexes(self, run: int) -> dict[str, str]:
        """By segment, the problem of each index that the last snapshot found torn. Empty after a restart of Chroma."""
        return self._torn if run == self._torn_in_run else {}

    # ------------------------------------------------------------------ bounding the logs

    async def keep_bounded(self) -> None:
        """Keep SQLite's log and Chroma's log from growing, until cancelled."""
        counted_at = time.monotonic()
        while True:
            await asyncio.sleep(_BOUND_EVERY_S)
            try:
                async with self._bounding:
                    await run_in_thread_uninterrupted(self._bound_wal)
                if time.monotonic() - counted_at > _COUNT_EVERY_S:
                    counted_at = time.monotonic()
                    await self._bound_log()
            except Exception as error:
                # Any error: a log that is not bounded grows until the disk is full.
                log.warning("the logs could not be bounded, trying again", cause=str(error))

    def _bound_wal(self) -> None:
        if not self.tracker.is_tracking:
            return
        with contextlib.suppress(FileNotFoundError):
            size = (self._directory.path / DATABASE).stat().st_size
            if self.tracker.wal_bytes() > min(max(_MIN_WAL_BYTES, size * _MAX_WAL_PART), _MAX_WAL_BYTES):
                self.tracker.bound()

    async def _bound_log(self) -> None:
        """If indexes in the store are too far behind, delete the rows they need. The next snapshot stores them anew."""
        # Also without a baseline: the store may be unreachable for long.
        async with self._bounding:
            if await run_in_thread_uninterrupted(count_log, self._directory.path) <= _MAX_LOG_ROWS:
                return
        # The journal's lock comes first, as in a swap of the data.
        journal = self.journal.new_run(replaces=False) if self.journal is not None else contextlib.nullcontext()
        async with journal, self._bounding:
            self._note_outdated()
            await run_in_thread_uninterrupted(self._trim_to_disk)

    def _trim_to_disk(self) -> None:
        """Delete the rows of the log that the sound indexes on the disk do not need."""
        data_dir, sound = self._directory.path, dict[str, int]()
        for segment_id, position in synced_to(data_dir).items():
            # What the log alone has stays: rows are given up only for an index that is sound and on the disk.
            if self._health.check(segment_id).is_sound:
                sync_files(data_dir / segment_id)
                sound[segment_id] = position
        trim_log(data_dir, sound)

    async def close(self) -> None:
        """Save the baseline and close every file."""
        with contextlib.suppress(GatewayError):
            await self.save()
        await asyncio.to_thread(self.tracker.forget)


def _no_number() -> None:
    """The number of the newest cut of a journal, without one."""


def _only_on_disk(segment_id: str, problem: str) -> SnapshotError:
    return SnapshotError(
        f"the index {segment_id} is torn, and neither the store nor Chroma's log has all of it: {problem}",
        "restart the gateway: it repairs the index before Chroma starts",
    )


def _segments(cut: Cut) -> dict[str, Segment]:
    """What the database of the cut says of each index."""
    return {segment.id: segment for segment in read_segments(cut.database.connection)}


def _manifest(
    captured: _Captured, snapshot_id: str, label: str | None, duration_s: float, uploaded_bytes: int
) -> Manifest:
    packs, files = baselines.manifest_files(captured.files)
    return Manifest(
        snapshot=Snapshot(
            id=snapshot_id,
            label=label,
            created_at=captured.created_at,
            size_bytes=sum(file.size_bytes for file in files),
            uploaded_bytes=uploaded_bytes,
            files=len(files),
            collections=tuple(SnapshotCollection(**each._asdict()) for each in captured.contents.collections),
            chroma_version=chroma_version(),
            duration_s=round(duration_s, 3),
            drain_ms=round(captured.drain_ms, 3),
            freeze_ms=round(captured.freeze_ms, 3),
        ),
        migrations=tuple(MigrationRow(**row._asdict()) for row in captured.contents.migrations),
        segments=captured.cut.segments,
        positions=captured.positions,
        packs=packs,
        files=files,
        journal=captured.cut.journal,
        unsound=tuple(captured.unsound),
    )
