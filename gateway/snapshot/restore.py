"""Go back to a snapshot: the recipe, at boot and live.

Until everything was fetched and verified nothing of the data directory is touched.
"""

import asyncio
import functools
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from gateway.aio import TaskPool, run_in_thread_uninterrupted, shielded
from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE, is_snapshot_path, signatures_of
from gateway.chroma.hnsw import index_problems
from gateway.chroma.log import put_back
from gateway.chroma.migrations import installed_migrations
from gateway.errors import (
    Conflict,
    CorruptSnapshot,
    DiskFull,
    GatewayError,
    IncompatibleSnapshot,
    SnapshotError,
)
from gateway.files import write_error
from gateway.snapshot import baseline as baselines
from gateway.snapshot.baseline import Baseline, stored
from gateway.snapshot.blocks import (
    Fingerprinter,
    Fingerprints,
    Layout,
    digest_of_pages,
    page_digests,
    parse_base,
    parse_patch,
)
from gateway.snapshot.model import File, Manifest, Snapshot
from gateway.snapshot.packing import unpack
from gateway.snapshot.plan import Fetch, plan_restore
from gateway.snapshot.repository import Repository

log = structlog.get_logger()

Progress = Callable[[int, int], None]
"""Called with bytes restored so far, and of how many."""

_FETCHES_AT_ONCE = 4
_CHECKS_AT_ONCE = 4
_READ_BYTES = 4 << 20
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


@dataclass
class Staged:
    """A snapshot that was fetched and proved good; `fingerprints` of its files' blocks, by path."""

    manifest: Manifest
    sketch: Fingerprinter = field(default_factory=lambda: Fingerprinter(secrets.randbits(64)))
    fingerprints: dict[str, Fingerprints] = field(default_factory=dict)
    origins: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    patching: threading.Lock = field(default_factory=threading.Lock)

    def baseline(self, directory: DataDirectory) -> Baseline:
        """It is what the next snapshot is measured against, once it is in place. Blocks."""
        manifest = self.manifest
        return Baseline(
            manifest.snapshot.id,
            self.sketch.seed,
            {
                file.path: stored(file, manifest.packs, self.fingerprints[file.path], self.origins[file.path])
                for file in manifest.files
            },
            dict(manifest.positions),
            signatures_of(directory.path, manifest.positions),
        )


async def stage(repository: Repository, directory: DataDirectory, manifest: Manifest, progress: Progress) -> Staged:
    """Fetch a snapshot into the data directory's `incoming` and prove it good. Nothing live is touched.

    Raises CorruptSnapshot (naming the object), IncompatibleSnapshot, DiskFull, StorageError; then
    `incoming` is gone. Safe to retry.
    """
    incoming = await asyncio.to_thread(directory.incoming)
    try:
        return await fetch_verified(repository, incoming, manifest, progress)
    except SnapshotError as error:
        await asyncio.to_thread(directory.drop_incoming)
        error.message = f"snapshot {manifest.snapshot.id} cannot be restored: {error.message}"
        raise
    except BaseException:
        await asyncio.to_thread(directory.drop_incoming)
        raise


async def fetch_verified(
    repository: Repository, target: Path, manifest: Manifest, progress: Progress, *, keep_log: bool = True
) -> Staged:
    """Fetch a snapshot into the empty directory `target` and prove it good: a data directory that Chroma can serve.

    `keep_log` False makes it one for a Chroma without a gateway, see `gateway.chroma.log`. Raises
    CorruptSnapshot (naming the object), IncompatibleSnapshot, DiskFull, StorageError; then `target` holds a part.
    """
    _require_known_paths(manifest)
    staged = Staged(manifest)
    # What writes goes to its end: after a restore that was cancelled there may be files of the next one's here.
    await run_in_thread_uninterrupted(_make_files, target, manifest.files)
    for file in manifest.files:
        staged.origins[file.path] = np.zeros(Layout(file.layout).count(file.size_bytes), np.uint8)
    try:
        await _fetch_and_check(repository, staged, target, progress)
    except CorruptSnapshot:
        # The files tell that something is wrong, their packs what it is.
        await repository.require_sound(manifest.packs)
        raise
    await run_in_thread_uninterrupted(functools.partial(put_back, target, manifest.positions, keep=keep_log))
    return staged


async def _fetch_and_check(repository: Repository, staged: Staged, target: Path, progress: Progress) -> None:
    """Packs are not verified one by one: every byte that is used of them is in a file, and files have digests."""
    manifest = staged.manifest
    async with TaskPool(_CHECKS_AT_ONCE) as checks:

        async def check(file: File) -> None:
            if file.path == DATABASE:
                await checks.start(asyncio.to_thread, _check_database, target, manifest)
            await checks.start(asyncio.to_thread, _make_durable, target, file)
            await checks.start(asyncio.to_thread, _check_file, target, file, staged)

        await checks.start(asyncio.to_thread, _require_known_migrations, manifest)
        await _fetch(repository, staged, target, progress, check)
    await asyncio.to_thread(_check_indexes, target, manifest)


async def restore_at_boot(
    repository: Repository, directory: DataDirectory, snapshot_id: str, progress: Progress
) -> Snapshot:
    """Fill an empty data directory, before Chroma starts. Errors as `stage`, and NotFound."""
    manifest = await repository.manifest(snapshot_id)
    staged = await stage(repository, directory, manifest, progress)
    await asyncio.to_thread(directory.swap_in, snapshot_id)
    # There is no previous state to go back to; whether Chroma can read this one, readiness tells.
    await asyncio.to_thread(directory.settle)
    await asyncio.to_thread(_note_down, staged, directory)
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
    was read. After any error the data served is what it was before. Can be cancelled until then; after that
    it goes to its end. Raises what `stage` raises, and SnapshotError if Chroma could not serve the snapshot.
    """
    chroma.require_control()
    manifest = await repository.manifest(snapshot_id)
    if directory.is_swapping():
        raise Conflict("an earlier restore is not finished yet", "wait until GET /readyz answers 200")
    staged = await stage(repository, directory, manifest, progress)
    await shielded(_exchange(snapshot_id, staged, directory, chroma, refuse))
    log.info("snapshot restored", snapshot=snapshot_id, size_bytes=manifest.snapshot.size_bytes)
    return manifest.snapshot


async def _exchange(
    snapshot_id: str,
    staged: Staged,
    directory: DataDirectory,
    chroma: Chroma,
    refuse: Callable[[str], AbstractAsyncContextManager[None]],
) -> None:
    async with refuse(f"snapshot {snapshot_id} is being restored"):
        try:
            await chroma.stop()
            await run_in_thread_uninterrupted(directory.swap_in, snapshot_id)
            # Chroma does not run yet, and its files are as they were fetched.
            await run_in_thread_uninterrupted(_note_down, staged, directory)
        except GatewayError:
            if directory.is_swapping():  # Chroma has stopped, the exchange could not be finished
                await run_in_thread_uninterrupted(directory.roll_back)
            await run_in_thread_uninterrupted(directory.drop_incoming)
            raise
        finally:
            # However far that came, Chroma is to run again; an exchange once begun goes forward.
            if directory.is_swapping():
                await try_out(directory, chroma)
            else:
                await chroma.start()


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
        await run_in_thread_uninterrupted(directory.roll_back)
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


async def _fetch(
    repository: Repository,
    staged: Staged,
    target: Path,
    progress: Progress,
    complete: Callable[[File], Awaitable[None]],
) -> None:
    """Put every piece where it belongs; await `complete(file)` for each file that has all of them."""
    patches, bases = plan_restore(staged.manifest)
    total = sum(part.piece.size_bytes for fetch in (*patches, *bases) for part in fetch.parts)
    done = 0
    progress(done, total)
    missing = {file.path: len(file.base) for file in staged.manifest.files}

    async def place(fetch: Fetch) -> None:
        nonlocal done
        data = await repository.get_unverified(fetch.pack)
        done += await run_in_thread_uninterrupted(_place, target, fetch, data, staged)
        progress(done, total)

    async def place_base(fetch: Fetch) -> None:
        await place(fetch)
        for part in fetch.parts:
            missing[part.file.path] -= 1
            if not missing[part.file.path]:
                await complete(part.file)

    async with TaskPool(_FETCHES_AT_ONCE) as pool:
        for fetch in patches:
            await pool.start(place, fetch)
    for file in staged.manifest.files:
        if not file.base:
            await complete(file)
    # Last, and only where no patch has been: so a file is complete as soon as all of its base is there.
    async with TaskPool(_FETCHES_AT_ONCE) as pool:
        for fetch in bases:
            await pool.start(place_base, fetch)


def _place(target: Path, fetch: Fetch, data: bytes, staged: Staged) -> int:
    """Write the pieces of a pack where they belong; return how many bytes that were."""
    done = 0
    for part in fetch.parts:
        file, raw = part.file, unpack(part.piece, fetch.pack, data)
        layout, origins = Layout(file.layout), staged.origins[file.path]
        try:
            with (target / file.path).open("r+b", 0) as opened:
                if part.number:
                    # One patch after the other, in any order: older blocks leave newer ones alone.
                    with staged.patching:
                        blocks, writes = parse_patch(raw, layout, file.size_bytes, origins > part.number)
                        origins[blocks[blocks < len(origins)]] = part.number
                        _write(opened.fileno(), writes)
                else:
                    _write(opened.fileno(), parse_base(raw, layout, file.size_bytes, part.offset, origins != 0))
        except OSError as error:
            raise write_error(f"writing {file.path} failed", error) from error
        done += part.piece.size_bytes
    return done


def _write(descriptor: int, writes: Iterator[tuple[int, memoryview]]) -> None:
    for position, some in writes:
        rest = some
        while rest:  # what a disk takes before it is full is less, and no error
            rest = rest[os.pwrite(descriptor, rest, position + len(some) - len(rest)) :]


# ---------------------------------------------------------------------- verifying


def _make_durable(target: Path, file: File) -> None:
    try:
        with (target / file.path).open("r+b", 0) as opened:
            os.fsync(opened.fileno())
    except OSError as error:
        raise write_error(f"making {file.path} durable failed", error) from error


def _check_file(target: Path, file: File, staged: Staged) -> None:
    """Read a file back, compare it with its digest, and take its fingerprints."""
    layout, digest = Layout(file.layout), hashlib.sha256()
    found = [np.empty((0, 2), np.uint64)]
    buffer = memoryview(bytearray(max(1, _READ_BYTES // layout.period_bytes) * layout.period_bytes))
    try:
        with (target / file.path).open("rb", 0) as opened:
            while data := buffer[: opened.readinto(buffer)]:
                if file.page_bytes:
                    found.append(page_digests(data, file.page_bytes))
                else:
                    digest.update(data)
                    found.append(staged.sketch.of(data, layout))
    except OSError as error:
        raise write_error(f"reading {file.path} back failed", error) from error
    staged.fingerprints[file.path] = fingerprints = np.concatenate(found)
    sha256 = digest_of_pages(fingerprints) if file.page_bytes else digest.hexdigest()
    if sha256 != file.sha256:
        raise CorruptSnapshot(f"{file.path} does not have the digest the manifest names")


def _check_database(target: Path, manifest: Manifest) -> None:
    contents = database.check(target)
    if contents.segments != manifest.segments:
        raise CorruptSnapshot("the database names other segments than the manifest")
    expected = {collection.id: collection.records for collection in manifest.snapshot.collections}
    found = {collection.id: collection.records for collection in contents.collections}
    if found != expected:
        raise CorruptSnapshot("the database holds other collections or records than the manifest")


def _check_indexes(target: Path, manifest: Manifest) -> None:
    for segment_id, position in manifest.positions.items():
        if position and (problems := index_problems(target / segment_id)):
            raise CorruptSnapshot(f"the index of segment {segment_id} is torn: {'; '.join(problems)}")


def _note_down(staged: Staged, directory: DataDirectory) -> None:
    """Let the next snapshot store only what changes from here. Without it, it stores everything."""
    try:
        baselines.save(directory.baseline, staged.baseline(directory))
    except OSError as error:
        log.warning("what was restored could not be noted down", cause=str(error))
