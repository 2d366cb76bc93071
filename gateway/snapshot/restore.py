"""Restore a snapshot, at boot or while the gateway serves.

1. `stage`: fetch the snapshot into the data directory's `incoming`, verify it, and repair what was torn when it was
   taken. The live data are not touched.
2. `_swap_in_and_try`: refuse requests, stop Chroma, swap `incoming` in, save the baseline.
3. `start_or_roll_back`: start Chroma. If it reads every collection, settle. Otherwise roll back to the previous data.

At boot there are no previous data and no running Chroma, so step 3 is left to readiness.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog

from gateway.aio import run_in_thread_uninterrupted, shielded
from gateway.chroma.directory import DataDirectory
from gateway.errors import Conflict, GatewayError, SnapshotError
from gateway.snapshot import baseline as baselines
from gateway.snapshot.fetch import OnBytes, Replay, Staged
from gateway.snapshot.model import Manifest, Snapshot
from gateway.snapshot.repository import Repository
from gateway.snapshot.sound import fetch_sound

log = structlog.get_logger()

Refuse = Callable[[str], AbstractAsyncContextManager[None]]
"""Refuses clients' requests for the time of the block, for the reason given."""


class ChromaProcess(Protocol):
    """What a live restore asks of Chroma."""

    def require_control(self) -> object:
        """Raise Unavailable if Chroma cannot be stopped and started."""
        ...

    async def stop(self) -> None:
        """Return once Chroma's process has ended. Raises Unavailable."""
        ...

    async def start(self) -> dict[str, str]:
        """Start Chroma and read every collection. Return why, by name, for each one that could not be read.

        Raises Unavailable if Chroma does not come up.
        """
        ...


async def stage(
    repository: Repository,
    directory: DataDirectory,
    manifest: Manifest,
    progress: OnBytes,
    *,
    may_lose: bool = False,
    replay: Replay | None = None,
) -> Staged:
    """Fetch a snapshot into the data directory's `incoming`, verify it, and repair its indexes. The live data stay.

    `may_lose`, `replay`: see `fetch_sound`. Raises CorruptSnapshot (naming the object), IncompatibleSnapshot, DiskFull,
    StorageError; then `incoming` is removed. Safe to retry.
    """
    incoming = await asyncio.to_thread(directory.make_incoming)
    try:
        return await fetch_sound(
            repository,
            incoming,
            manifest,
            progress,
            directory.scratch,
            served_in=directory.path,
            may_lose=may_lose,
            replay=replay,
        )
    except SnapshotError as error:
        await asyncio.to_thread(directory.drop_incoming)
        error.message = f"snapshot {manifest.snapshot.id} cannot be restored: {error.message}"
        error.hint = error.hint or "try again; or restore another snapshot or moment, see GET /admin/history"
        raise
    except BaseException:
        await asyncio.to_thread(directory.drop_incoming)
        raise


async def restore_at_boot(
    repository: Repository,
    directory: DataDirectory,
    snapshot_id: str,
    progress: OnBytes,
    replay: Replay | None = None,
) -> Snapshot:
    """Fill an empty data directory, before Chroma starts. Raises NotFound, and what `stage` raises."""
    manifest = await repository.manifest(snapshot_id)
    # Records that lost their vectors are named once Chroma runs: there are no other data to serve instead.
    staged = await stage(repository, directory, manifest, progress, may_lose=True, replay=replay)
    await asyncio.to_thread(directory.swap_in, snapshot_id)
    # There are no previous data to roll back to. Whether Chroma can read these is told by readiness.
    await asyncio.to_thread(directory.settle)
    await asyncio.to_thread(_save_baseline, staged, directory)
    return _restored(manifest)


async def restore_live(
    repository: Repository,
    directory: DataDirectory,
    chroma: ChromaProcess,
    refuse: Refuse,
    snapshot_id: str,
    progress: OnBytes,
    replay: Replay | None = None,
) -> Snapshot:
    """Replace the data of a running gateway. Return when the restored data are being served.

    Requests are refused from the moment Chroma stops until the new data were read, or the old data after a failure.
    After any error the old data are served. Can be cancelled while it fetches; after that it runs to its end.
    Raises what `stage` raises, Conflict, Unavailable, and SnapshotError if Chroma could not serve the snapshot.
    """
    chroma.require_control()
    manifest = await repository.manifest(snapshot_id)
    if directory.is_swapping():
        raise Conflict("an earlier restore is not finished yet", "wait until GET /readyz answers 200")
    staged = await stage(repository, directory, manifest, progress, replay=replay)
    await shielded(_swap_in_and_try(staged, directory, chroma, refuse))
    return _restored(manifest)


async def _swap_in_and_try(staged: Staged, directory: DataDirectory, chroma: ChromaProcess, refuse: Refuse) -> None:
    snapshot_id = staged.manifest.snapshot.id
    async with refuse(f"snapshot {snapshot_id} is being restored"):
        try:
            await chroma.stop()
            await run_in_thread_uninterrupted(directory.swap_in, snapshot_id)
            # Before Chroma starts: now its files are as they were fetched.
            await run_in_thread_uninterrupted(_save_baseline, staged, directory)
        except GatewayError:
            if directory.is_swapping():  # Chroma has stopped, but the swap could not be finished.
                await run_in_thread_uninterrupted(directory.roll_back)
            await run_in_thread_uninterrupted(directory.drop_incoming)
            raise
        finally:
            # In any case Chroma must run again. A swap that was begun goes forward.
            if directory.is_swapping():
                await start_or_roll_back(directory, chroma)
            else:
                await chroma.start()


async def start_or_roll_back(directory: DataDirectory, chroma: ChromaProcess) -> None:
    """Start Chroma on data that are on trial. Settle if it can read all of them, otherwise roll back.

    Raises SnapshotError after a roll back.
    """
    snapshot_id = directory.on_trial
    try:
        unreadable = await chroma.start()
        problem = "; ".join(f"{name}: {why}" for name, why in unreadable.items())
    except GatewayError as error:
        problem = error.message
    if not problem and directory.on_trial:
        await asyncio.to_thread(directory.settle)
        return
    log.error("the restored snapshot cannot be served, rolling back", snapshot=snapshot_id, problem=problem)
    if directory.on_trial:  # Otherwise Chroma died, and its second start has rolled back already.
        await chroma.stop()
        await run_in_thread_uninterrupted(directory.roll_back)
        if not directory.is_empty():  # else it was restored at boot, and is to be restored again
            await chroma.start()
    raise SnapshotError(
        f"Chroma could not serve snapshot {snapshot_id}, the data is what it was before: {problem or 'Chroma died'}",
        "restore another snapshot, see GET /admin/snapshot",
    )


def _save_baseline(staged: Staged, directory: DataDirectory) -> None:
    """Let the next snapshot store only what changes from here. Without the baseline it stores everything."""
    try:
        baselines.save(directory.baseline, staged.baseline(directory))
    except GatewayError as error:
        log.warning("the baseline could not be saved, so the next snapshot stores everything", cause=str(error))


def _restored(manifest: Manifest) -> Snapshot:
    snapshot = manifest.snapshot
    log.info("snapshot restored", snapshot=snapshot.id, size_bytes=snapshot.size_bytes)
    return snapshot
