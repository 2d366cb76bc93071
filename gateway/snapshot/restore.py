"""Go back to a snapshot: the recipe, at boot and live.

Until everything was fetched and verified nothing of the data directory is touched.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import structlog

from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import is_snapshot_path, write_error
from gateway.chroma.hnsw import index_problems
from gateway.chroma.migrations import installed_migrations
from gateway.errors import (
    Conflict,
    CorruptSnapshot,
    DiskFull,
    GatewayError,
    IncompatibleSnapshot,
    SnapshotError,
)
from gateway.snapshot.model import File, Manifest, Snapshot
from gateway.snapshot.packing import unpack
from gateway.snapshot.parallel import Crew, to_its_end
from gateway.snapshot.plan import Fetch, plan_restore
from gateway.snapshot.repository import Repository

log = structlog.get_logger()

Progress = Callable[[int, int], None]
"""Called with bytes restored so far, and of how many."""

_FETCHES_AT_ONCE = 4
_CHECKS_AT_ONCE = 2
# Chroma opens the database and makes a WAL beside it.
_HEADROOM_BYTES = 16 << 20


class Chroma(Protocol):
    """What a live restore asks of Chroma."""

    def require_control(self) -> object:
        """Raise Unavailable where it cannot be stopped and started."""
        ...

    async def ensure_running(self) -> None:
        """Start it if it was left stopped. Raises Unavailable."""
        ...

    async def stop(self) -> None:
        """Returns once its process has ended. Raises Unavailable."""
        ...

    async def start(self) -> dict[str, str]:
        """Start it and read every collection; return what could not be read, and why, by name.

        Raises Unavailable if it does not come up.
        """
        ...


# ---------------------------------------------------------------------- both ways


async def stage(repository: Repository, directory: DataDirectory, manifest: Manifest, progress: Progress) -> None:
    """Fetch a snapshot into the data directory's `incoming` and prove it good. Nothing live is touched.

    Raises CorruptSnapshot (naming the object), IncompatibleSnapshot, DiskFull, StoreError; then
    `incoming` is gone. Safe to retry.
    """
    _require_known_paths(manifest)
    await asyncio.to_thread(_require_known_migrations, manifest)
    incoming = await asyncio.to_thread(directory.incoming)
    try:
        await asyncio.to_thread(_make_files, incoming, manifest.files)
        await _fetch(repository, manifest, incoming, progress)
        async with Crew(_CHECKS_AT_ONCE) as crew:
            for file in manifest.files:
                await crew.start(asyncio.to_thread, _check_file, incoming, file)
        await asyncio.to_thread(_check_contents, incoming, manifest)
    except SnapshotError as error:
        await asyncio.to_thread(directory.drop_incoming)
        error.message = f"snapshot {manifest.snapshot.id} cannot be restored: {error.message}"
        raise
    except BaseException:
        await asyncio.to_thread(directory.drop_incoming)
        raise


async def restore_at_boot(
    repository: Repository, directory: DataDirectory, snapshot_id: str, progress: Progress
) -> Snapshot:
    """Fill an empty data directory, before Chroma starts. Errors as `stage`, and NotFound."""
    manifest = await repository.manifest(snapshot_id)
    await stage(repository, directory, manifest, progress)
    await asyncio.to_thread(directory.swap_in, snapshot_id)
    # There is no previous state to go back to; whether Chroma can read this one, readiness tells.
    await asyncio.to_thread(directory.settle)
    log.info("snapshot restored", snapshot=snapshot_id, size_bytes=manifest.snapshot.size_bytes)
    return manifest.snapshot


async def restore_live(
    repository: Repository,
    directory: DataDirectory,
    chroma: Chroma,
    refuse: Callable[[str], AbstractAsyncContextManager[None]],
    snapshot_id: str,
    progress: Progress,
) -> Snapshot:
    """Exchange the data under a running gateway; returns when the restored data is being served.

    Clients are refused from the moment Chroma stops until the new state, or after a failure the old one,
    was read. After any error the data served is what it was before. Raises what `stage` raises, and
    SnapshotError if Chroma could not serve the snapshot.
    """
    chroma.require_control()
    manifest = await repository.manifest(snapshot_id)
    if directory.is_exchanging():
        raise Conflict("an earlier restore is not finished yet", "wait until GET /readyz answers 200")
    await stage(repository, directory, manifest, progress)
    async with refuse(f"snapshot {snapshot_id} is being restored"):
        try:
            await chroma.stop()
            await to_its_end(directory.swap_in, snapshot_id)
        except GatewayError:
            if directory.is_exchanging():  # Chroma has stopped, the exchange could not be finished
                await to_its_end(directory.roll_back)
            await to_its_end(directory.drop_incoming)
            raise
        finally:
            # However far that came, Chroma is to run again; an exchange once begun goes forward.
            if directory.is_exchanging():
                await try_out(directory, chroma)
            else:
                await chroma.start()
    log.info("snapshot restored", snapshot=snapshot_id, size_bytes=manifest.snapshot.size_bytes)
    return manifest.snapshot


async def try_out(directory: DataDirectory, chroma: Chroma) -> None:
    """Start Chroma on a state that is on trial; settle if all of it can be read, else roll back.

    Raises SnapshotError after rolling back.
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
    if directory.on_trial:  # else Chroma died of it and its second start has rolled back already
        await chroma.stop()
        await to_its_end(directory.roll_back)
        await chroma.start()
    raise SnapshotError(
        f"Chroma could not serve snapshot {snapshot_id}, the data is what it was before: {problem or 'Chroma died'}",
        "restore another snapshot, see GET /admin/snapshot",
    )


# ---------------------------------------------------------------------- before anything is fetched


def _require_known_paths(manifest: Manifest) -> None:
    for file in manifest.files:
        if not is_snapshot_path(file.path):
            raise CorruptSnapshot(f"snapshot {manifest.snapshot.id} names {file.path!r}, which is no file of Chroma's")


def _require_known_migrations(manifest: Manifest) -> None:
    known = installed_migrations()
    for row in manifest.migrations:
        if (row.dir, row.version) not in known:
            raise IncompatibleSnapshot(
                f"snapshot {manifest.snapshot.id} was taken with chromadb {manifest.snapshot.chroma_version}, whose"
                f" migration {row.dir}/{row.filename} the installed one does not know",
                f"install chromadb {manifest.snapshot.chroma_version} or newer",
            )


# ---------------------------------------------------------------------- fetching


def _make_files(incoming: Path, files: tuple[File, ...]) -> None:
    needed = sum(file.size_bytes for file in files) + _HEADROOM_BYTES
    free = shutil.disk_usage(incoming).free
    if free < needed:
        raise DiskFull(
            f"restoring needs {needed} bytes in the data directory and {free} are free",
            "free some space in the data directory, or give it more",
        )
    try:
        for file in files:
            path = incoming / file.path
            path.parent.mkdir(exist_ok=True)
            with path.open("xb") as target:
                target.truncate(file.size_bytes)
    except OSError as error:
        raise write_error(f"making the files in {incoming} failed", error) from error


async def _fetch(repository: Repository, manifest: Manifest, incoming: Path, progress: Progress) -> None:
    total, done = sum(file.size_bytes for file in manifest.files), 0
    progress(done, total)

    async def fetch(each: Fetch) -> None:
        nonlocal done
        data = await repository.get_pack(each.pack)
        done += await asyncio.to_thread(_place, incoming, each, data)
        progress(done, total)

    async with Crew(_FETCHES_AT_ONCE) as crew:
        for each in plan_restore(manifest):
            await crew.start(fetch, each)


def _place(incoming: Path, fetch: Fetch, data: bytes) -> int:
    """Write the blocks of a pack where they belong, each verified; return how many bytes that were."""
    written = 0
    for block, path, offset in fetch.placements:
        raw = unpack(block, fetch.pack, data)
        try:
            with (incoming / path).open("r+b") as file:
                file.seek(offset)
                file.write(raw)
        except OSError as error:
            raise write_error(f"writing {path} failed", error) from error
        written += len(raw)
    return written


# ---------------------------------------------------------------------- verifying


def _check_file(incoming: Path, file: File) -> None:
    """Read a file back, compare it with its digest, and make it durable."""
    try:
        with (incoming / file.path).open("r+b") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            size_bytes = handle.seek(0, os.SEEK_END)
            os.fsync(handle.fileno())
    except OSError as error:
        raise write_error(f"making {file.path} durable failed", error) from error
    if digest != file.sha256 or size_bytes != file.size_bytes:
        raise CorruptSnapshot(f"{file.path} does not have the digest the manifest names")


def _check_contents(incoming: Path, manifest: Manifest) -> None:
    contents = database.check(incoming)
    if contents.segments != manifest.segments:
        raise CorruptSnapshot("the database names other segments than the manifest")
    expected = {collection.id: collection.records for collection in manifest.snapshot.collections}
    found = {collection.id: collection.records for collection in contents.collections}
    if found != expected:
        raise CorruptSnapshot("the database holds other collections or records than the manifest")
    for segment_id in contents.segments:
        if problems := index_problems(incoming / segment_id):
            raise CorruptSnapshot(f"the index of segment {segment_id} is torn: {'; '.join(problems)}")
