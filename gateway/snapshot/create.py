"""Take snapshots: the recipe, and what is remembered from one to the next."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import structlog

from gateway.aio import run_in_thread_uninterrupted, shielded
from gateway.chroma.database import Contents
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE, Signature, signature_of, signatures_of
from gateway.chroma.log import count_log, keep_log, synced_to, trim_log
from gateway.chroma.pages import PageTracker
from gateway.chroma.process import chroma_version
from gateway.errors import GatewayError, LeaseLost, SnapshotError, StorageError
from gateway.snapshot import baseline as baselines
from gateway.snapshot.baseline import Baseline, Stored
from gateway.snapshot.capture import Cut, choose, freeze, read_database, read_index
from gateway.snapshot.model import Manifest, MigrationRow, Snapshot, SnapshotCollection, new_snapshot_id
from gateway.snapshot.packing import PackWriter
from gateway.snapshot.progress import Progress, Silent
from gateway.snapshot.repository import Repository

log = structlog.get_logger()

Hold = Callable[[], AbstractAsyncContextManager[float]]
"""Closes the gate and drains it for the time of the block; yields the drain in ms."""

# Tries to read indexes while writes go on; then writes have to wait for it.
_TRIES = 3
# Pages of text and vectors, as a part of their size; 0.35 was seen (scripts/bench-snapshot).
_COMPRESSED = 0.5
# How often fingerprints are put on disk. What changed since is stored again after a crash.
_SAVE_EVERY_S = 60.0
# The log of the database is bounded: pages passed by are remembered, and written again where they belong.
_MAX_WAL_PART = 0.05
_MIN_WAL_BYTES, _MAX_WAL_BYTES = 4 << 20, 64 << 20
# Rows of Chroma's log that are kept for indexes in the store; with more, indexes are stored anew instead.
_MAX_LOG_ROWS = 25_000
_BOUND_EVERY_S = 1.0
_COUNT_EVERY_S = 60.0


class Source(Protocol):
    """What taking a snapshot asks of the running Chroma."""

    def require_served(self) -> int:
        """A number for Chroma's present run. Raises Unavailable unless all of its data can be read."""
        ...

    async def require_same_run(self, run: int) -> None:
        """Raise Unavailable if Chroma's process ended since: files may be torn."""
        ...


@dataclass(slots=True)
class _Taken:
    """What a snapshot is made of, once every byte of it is in packs."""

    created_at: datetime
    drain_ms: float = 0
    freeze_ms: float = 0
    contents: Contents | None = None
    segments: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    files: list[Stored] = field(default_factory=list)


class Snapshotter:
    """Takes snapshots of one data directory, one after the other, each at the cost of what changed."""

    def __init__(self, repository: Repository, directory: DataDirectory, chroma: Source, hold: Hold) -> None:
        self._repository, self._directory, self._chroma, self._hold = repository, directory, chroma, hold
        self._tracker = PageTracker(directory.path)
        self._baseline: Baseline | None = None
        self._saved_at = float("-inf")
        self._saved_id: str | None = None
        self._bounding = asyncio.Lock()

    async def take(self, label: str | None, progress: Progress | None = None) -> Snapshot:
        """Take a snapshot and return it once its manifest is stored.

        After an error nothing is listed that was not there before, save for StorageUnavailable while the
        manifest was being written: then it is there whole or not at all. Safe to retry. Only one may run
        at a time. Raises Unavailable, QuiesceTimeout, DiskFull, StorageError.
        """
        progress = progress or Silent()
        started, run = time.monotonic(), self._chroma.require_served()
        progress.phase("preparing", None)
        await self._repository.make()
        ids = await self._repository.ids()
        baseline = await self._known(ids)
        # From now on, if it did not before.
        await run_in_thread_uninterrupted(keep_log, self._directory.path)
        # What the store has is only asked for where much is to be sent.
        existing = {} if baseline.snapshot_id else await self._repository.packs()
        writer = PackWriter(self._repository, existing, progress)
        cut: Cut | None = None
        try:
            async with writer, self._reading(run, baseline, writer, progress) as (cut, taken):
                pass
            # The writer has waited: every pack is stored before the manifest names it.
            manifest = self._manifest(taken, label, await self._repository.newest_id(), started, writer.uploaded_bytes)
            progress.phase("publishing", None)
            # Whole or not at all: a manifest that arrives after its packs were dropped would be a broken snapshot.
            await shielded(self._repository.publish(manifest))
        except BaseException:
            if cut is not None:
                self._tracker.undo(cut.database)
            await shielded(self._drop(writer.sent))
            raise
        await self._remember(baseline, manifest, taken, writer)
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

    # ------------------------------------------------------------------ the cut, and what is read of it

    @contextlib.asynccontextmanager
    async def _reading(
        self, run: int, baseline: Baseline, writer: PackWriter, progress: Progress
    ) -> AsyncIterator[tuple[Cut, _Taken]]:
        """Make a cut and put all that is new in it into packs; if an index moved that is needed, make another.

        Writes go on meanwhile. Only the last try lets them wait for it, and a database that is not in WAL mode.
        """
        read: dict[str, tuple[int, list[Stored], dict[str, Signature]]] = {}
        for last in [False] * (_TRIES - 1) + [True]:
            async with contextlib.AsyncExitStack() as stack:
                held = await stack.enter_async_context(contextlib.AsyncExitStack())
                drain_ms = await held.enter_async_context(self._hold())
                frozen_at, taken = time.monotonic(), _Taken(datetime.now(UTC), drain_ms=drain_ms)
                cut = await run_in_thread_uninterrupted(
                    freeze, self._directory.path, self._tracker, baseline, undo=self._let_go
                )
                stack.push_async_callback(run_in_thread_uninterrupted, cut.close)
                try:
                    if not last and cut.database.keeps_writers_going:
                        await held.aclose()
                        taken.freeze_ms = (time.monotonic() - frozen_at) * 1e3
                    await self._chroma.require_same_run(run)
                    if await self._read(cut, taken, baseline, read, writer, progress):
                        await held.aclose()
                        taken.freeze_ms = taken.freeze_ms or (time.monotonic() - frozen_at) * 1e3
                        yield cut, taken
                        return
                except BaseException:
                    self._tracker.undo(cut.database)
                    raise
                self._tracker.undo(cut.database)
                log.info("indexes moved while they were read, reading them again")
        raise GatewayError(
            "an index could not be read although nothing wrote to it: files of it are missing, or something other than"
            " Chroma changes them",
            "see GET /readyz; restore the latest snapshot, or delete the collection",
        )

    def _let_go(self, cut: Cut) -> None:
        self._tracker.undo(cut.database)
        cut.close()

    async def _read(
        self,
        cut: Cut,
        taken: _Taken,
        baseline: Baseline,
        read: dict[str, tuple[int, list[Stored], dict[str, Signature]]],
        writer: PackWriter,
        progress: Progress,
    ) -> bool:
        """Put what is new into packs; False if an index moved that is needed. `read`: indexes of earlier tries."""
        taken.contents = await run_in_thread_uninterrupted(cut.database.contents)
        taken.segments = cut.segments
        choice = await run_in_thread_uninterrupted(choose, cut, baseline)
        size_bytes = sum(cut.signatures[path].size_bytes for path in cut.signatures) + cut.database.size_bytes
        progress.phase("storing", size_bytes)
        for segment_id in (*choice.must, *choice.may):
            if read.get(segment_id, (None,))[0] == cut.segments[segment_id]:
                continue
            files = await read_index(self._directory.path, cut, segment_id, baseline, writer)
            if files is not None:
                of_it = {path: each for path, each in cut.signatures.items() if path.startswith(f"{segment_id}/")}
                read[segment_id] = cut.segments[segment_id], files, of_it
            elif segment_id in choice.must:
                return False
        taken.positions = dict(choice.positions)
        for segment_id in cut.segments:
            if segment_id in read and read[segment_id][0] == cut.segments[segment_id]:
                taken.positions[segment_id], files, signatures = read[segment_id]
                taken.files += files
                taken.signatures |= signatures
            elif taken.positions.get(segment_id):
                taken.files += baseline.of_index(segment_id)
        if signature := await asyncio.to_thread(signature_of, self._directory.path / DATABASE):
            taken.signatures[DATABASE] = signature
        taken.files.append(await read_database(cut.database, baseline, writer))
        return True

    def _manifest(
        self, taken: _Taken, label: str | None, newest: str | None, started: float, uploaded_bytes: int
    ) -> Manifest:
        assert taken.contents is not None
        packs, files = baselines.listing(taken.files)
        return Manifest(
            snapshot=Snapshot(
                id=new_snapshot_id(taken.created_at, newest),
                label=label,
                created_at=taken.created_at,
                size_bytes=sum(file.size_bytes for file in files),
                uploaded_bytes=uploaded_bytes,
                files=len(files),
                collections=tuple(SnapshotCollection(**each._asdict()) for each in taken.contents.collections),
                chroma_version=chroma_version(),
                duration_s=round(time.monotonic() - started, 3),
                drain_ms=round(taken.drain_ms, 3),
                freeze_ms=round(taken.freeze_ms, 3),
            ),
            migrations=tuple(MigrationRow(**row._asdict()) for row in taken.contents.migrations),
            segments=taken.segments,
            positions=taken.positions,
            packs=packs,
            files=files,
        )

    async def _drop(self, sent: Iterable[str]) -> None:
        """Leave nothing behind of a snapshot that came to nothing; what cannot be dropped waits for the next gc."""
        with contextlib.suppress(StorageError, SnapshotError, LeaseLost):
            await self._repository.drop_unreferenced(sent)

    # ------------------------------------------------------------------ what is remembered

    async def _known(self, ids: list[str]) -> Baseline:
        """What the store has, as far as is known: of a snapshot that is still there."""
        if self._baseline is None:
            saved = await asyncio.to_thread(baselines.saved_snapshot, self._directory.baseline)
            if saved in ids:
                with contextlib.suppress(SnapshotError):
                    manifest = await self._repository.manifest(saved)
                    self._baseline = await run_in_thread_uninterrupted(self._load, manifest)
                    self._saved_id = saved
        if self._baseline is None or self._baseline.snapshot_id not in ids:
            self._baseline, self._saved_id = baselines.nothing(), None
        return self._baseline.without_packs(self._repository.rotten)

    def _load(self, manifest: Manifest) -> Baseline | None:
        # The signatures first: what is synced after them does not look like what it was.
        signatures = signatures_of(self._directory.path, manifest.segments)
        return baselines.load(self._directory.baseline, manifest, synced_to(self._directory.path), signatures)

    async def _remember(self, before: Baseline, manifest: Manifest, taken: _Taken, writer: PackWriter) -> None:
        """The snapshot is stored; from now on it is what the next one is measured against."""
        files, signatures = {file.path: file for file in taken.files}, before.signatures | taken.signatures
        self._baseline = Baseline(
            manifest.snapshot.id,
            before.seed,
            files,
            dict(taken.positions),
            {path: each for path, each in signatures.items() if path in files},
        )
        with contextlib.suppress(StorageError, SnapshotError, LeaseLost):
            named = {pack.sha256 for pack in manifest.packs}
            await self._repository.drop_unreferenced([name for name in writer.sent if name not in named])
        try:
            moved = taken.positions != before.positions
            if moved or time.monotonic() - self._saved_at > _SAVE_EVERY_S:
                await self.save()
            if moved:
                # Not before it is saved: a baseline that is older than the log is of no use.
                await run_in_thread_uninterrupted(trim_log, self._directory.path, taken.positions)
        except (GatewayError, OSError) as error:
            log.warning("what was stored could not be noted down", cause=str(error))

    async def save(self) -> None:
        """Put the fingerprints of what is stored on disk. Raises OSError."""
        baseline = self._baseline
        if baseline is None or not baseline.snapshot_id or self._saved_id == baseline.snapshot_id:
            return
        await run_in_thread_uninterrupted(baselines.save, self._directory.baseline, baseline)
        self._saved_at, self._saved_id = time.monotonic(), baseline.snapshot_id

    @contextlib.asynccontextmanager
    async def swapping(self) -> AsyncIterator[None]:
        """Around an exchange of the data: what is known of them is forgotten, and nothing here touches them."""
        async with self._bounding:
            # What is on disk says from now on what is known.
            self._baseline, self._saved_id = None, None
            await run_in_thread_uninterrupted(self._tracker.forget)
            yield

    def changed_bytes(self) -> int | None:
        """What a snapshot taken now would send of the database, about; None if unknown.

        An index that moved comes on top: a few hundredths of its size.
        """
        changed = self._tracker.changed_bytes()
        return None if changed is None else int(changed * _COMPRESSED)

    # ------------------------------------------------------------------ meanwhile

    async def keep_bounded(self) -> None:
        """Keep SQLite's log and Chroma's from growing, until cancelled."""
        counted_at = time.monotonic()
        while True:
            await asyncio.sleep(_BOUND_EVERY_S)
            try:
                async with self._bounding:
                    await run_in_thread_uninterrupted(self._bound_wal)
                    if time.monotonic() - counted_at > _COUNT_EVERY_S:
                        counted_at = time.monotonic()
                        await run_in_thread_uninterrupted(self._bound_log)
            except Exception as error:
                # Whatever it was: a log that nobody bounds any more grows until the disk is full.
                log.warning("the logs could not be bounded, trying again", cause=str(error))

    def _bound_wal(self) -> None:
        if not self._tracker.is_tracking:
            return
        with contextlib.suppress(FileNotFoundError):
            size = (self._directory.path / DATABASE).stat().st_size
            if self._tracker.log_bytes() > min(max(_MIN_WAL_BYTES, size * _MAX_WAL_PART), _MAX_WAL_BYTES):
                self._tracker.bound()

    def _bound_log(self) -> None:
        """When indexes in the store lag too far behind, give the rows up: the next snapshot reads those anew."""
        # Also while nothing is known of the store: it may stay away for long.
        if count_log(self._directory.path) <= _MAX_LOG_ROWS:
            return
        trim_log(self._directory.path, synced_to(self._directory.path))

    async def close(self) -> None:
        """Save what is known; nothing is held any more."""
        with contextlib.suppress(OSError):
            await self.save()
        await asyncio.to_thread(self._tracker.forget)
