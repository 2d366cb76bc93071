"""Fetch the files of a snapshot into a directory, and verify them.

1. Check the manifest: the paths, and Chroma's migrations.
2. Make every file at its full size.
3. Fetch the packs and write their pieces: all patches, then all bases.
4. Verify each file as soon as it is complete: digest, durability, and the contents of the database.
5. Verify the indexes.
6. Set the positions of the indexes in the database, so that Chroma replays the rest of its log.
"""

import asyncio
import functools
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog

from gateway.aio import TaskPool, run_in_thread_uninterrupted
from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE, is_snapshot_path, signatures_of
from gateway.chroma.hnsw import index_problems
from gateway.chroma.log import set_positions
from gateway.chroma.migrations import installed_migrations
from gateway.errors import CorruptSnapshot, DiskFull, IncompatibleSnapshot
from gateway.files import sync_file, write_error
from gateway.snapshot.baseline import Baseline, Origins, stored_file
from gateway.snapshot.blocks import (
    Fingerprinter,
    Fingerprints,
    Layout,
    base_writes,
    digest_of_pages,
    page_digests,
    parse_patch,
)
from gateway.snapshot.model import File, Manifest
from gateway.snapshot.packing import unpack
from gateway.snapshot.plan import Fetch, plan_restore
from gateway.snapshot.repository import Repository

log = structlog.get_logger()

OnBytes = Callable[[int, int], None]
"""Called with the bytes written so far, and the bytes to write in all."""

_FETCHES_AT_ONCE = 4
_CHECKS_AT_ONCE = 4
_READ_BYTES = 4 << 20
# Chroma opens the database and creates a WAL beside it.
_HEADROOM_BYTES = 16 << 20


@dataclass
class Staged:
    """A snapshot that was fetched and verified, with what a baseline needs to know about its files, by path."""

    manifest: Manifest
    fingerprinter: Fingerprinter = field(default_factory=lambda: Fingerprinter(secrets.randbits(64)))
    fingerprints: dict[str, Fingerprints] = field(default_factory=dict)
    origins: dict[str, Origins] = field(default_factory=dict)
    patch_lock: threading.Lock = field(default_factory=threading.Lock)

    def baseline(self, directory: DataDirectory) -> Baseline:
        """Return the baseline of the next snapshot, once this one is in place. Blocks."""
        manifest = self.manifest
        return Baseline(
            manifest.snapshot.id,
            self.fingerprinter.seed,
            {
                file.path: stored_file(file, manifest.packs, self.fingerprints[file.path], self.origins[file.path])
                for file in manifest.files
            },
            dict(manifest.positions),
            signatures_of(directory.path, manifest.positions),
        )


async def fetch_verified(
    repository: Repository, target: Path, manifest: Manifest, progress: OnBytes, *, keep_log: bool = True
) -> Staged:
    """Fetch a snapshot into the empty directory `target` and verify it. Then Chroma can serve `target`.

    `keep_log` False prepares it for a Chroma without a gateway, see `gateway.chroma.log`. Raises CorruptSnapshot
    (naming the object), IncompatibleSnapshot, DiskFull, StorageError; then `target` holds a part of the snapshot.
    """
    _require_known_paths(manifest)
    staged = Staged(manifest)
    # Uninterrupted: after a cancelled restore, the next one may write to the same place.
    await run_in_thread_uninterrupted(_make_files, target, manifest.files)
    for file in manifest.files:
        staged.origins[file.path] = np.zeros(Layout(file.layout).count(file.size_bytes), np.uint8)
    try:
        await _fetch_and_verify(repository, staged, target, progress)
    except CorruptSnapshot:
        # The files only show that something is corrupt. The packs show what.
        await repository.verify_packs(manifest.packs)
        raise
    await run_in_thread_uninterrupted(functools.partial(set_positions, target, manifest.positions, keep=keep_log))
    return staged


async def _fetch_and_verify(repository: Repository, staged: Staged, target: Path, progress: OnBytes) -> None:
    """Packs are not verified: every byte of a pack that is used is part of a file, and every file has a digest."""
    manifest = staged.manifest
    async with TaskPool(_CHECKS_AT_ONCE) as checks:

        async def verify(file: File) -> None:
            if file.path == DATABASE:
                await checks.start(asyncio.to_thread, _verify_database, target, manifest)
            await checks.start(asyncio.to_thread, _make_durable, target, file)
            await checks.start(asyncio.to_thread, _verify_file, target, file, staged)

        await checks.start(asyncio.to_thread, _require_known_migrations, manifest)
        await _fetch(repository, staged, target, progress, verify)
    await asyncio.to_thread(_verify_indexes, target, manifest)


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


def _make_files(target: Path, files: tuple[File, ...]) -> None:
    needed = sum(file.size_bytes for file in files) + _HEADROOM_BYTES
    free = shutil.disk_usage(target).free
    if free < needed:
        raise DiskFull(
            f"restoring needs {needed} bytes in the data directory and {free} are free",
            "free some space in the data directory, or give it more",
        )
    try:
        for file in files:
            path = target / file.path
            path.parent.mkdir(exist_ok=True)
            with path.open("xb") as opened:
                opened.truncate(file.size_bytes)
    except OSError as error:
        raise write_error(f"making the files in {target} failed", error) from error


# ---------------------------------------------------------------------- fetching


async def _fetch(
    repository: Repository,
    staged: Staged,
    target: Path,
    progress: OnBytes,
    on_complete: Callable[[File], Awaitable[None]],
) -> None:
    """Fetch every pack and write its pieces. Await `on_complete(file)` for each file that has all of them."""
    patches, bases = plan_restore(staged.manifest)
    total = sum(part.piece.size_bytes for fetch in (*patches, *bases) for part in fetch.parts)
    done = 0
    progress(done, total)
    missing = {file.path: len(file.base) for file in staged.manifest.files}

    async def write(fetch: Fetch) -> None:
        nonlocal done
        data = await repository.get_unverified(fetch.pack)
        done += await run_in_thread_uninterrupted(_write_parts, target, fetch, data, staged)
        progress(done, total)

    async def write_base(fetch: Fetch) -> None:
        await write(fetch)
        for part in fetch.parts:
            missing[part.file.path] -= 1
            if not missing[part.file.path]:
                await on_complete(part.file)

    async with TaskPool(_FETCHES_AT_ONCE) as pool:
        for fetch in patches:
            await pool.start(write, fetch)
    for file in staged.manifest.files:
        if not file.base:
            await on_complete(file)
    # Bases come last and skip the blocks of patches. So a file is complete as soon as all of its base is written.
    async with TaskPool(_FETCHES_AT_ONCE) as pool:
        for fetch in bases:
            await pool.start(write_base, fetch)


def _write_parts(target: Path, fetch: Fetch, data: bytes, staged: Staged) -> int:
    """Write the parts of a pack to their files. Return how many bytes they have."""
    done = 0
    for part in fetch.parts:
        file, raw = part.file, unpack(part.piece, fetch.pack, data)
        layout, origins = Layout(file.layout), staged.origins[file.path]
        try:
            with (target / file.path).open("r+b", 0) as opened:
                if part.number:
                    # One patch at a time, in any order. An older patch skips the blocks that a newer one wrote.
                    with staged.patch_lock:
                        blocks, writes = parse_patch(raw, layout, file.size_bytes, origins > part.number)
                        origins[blocks[blocks < len(origins)]] = part.number
                        _write(opened.fileno(), writes)
                else:
                    _write(opened.fileno(), base_writes(raw, layout, file.size_bytes, part.offset, origins != 0))
        except OSError as error:
            raise write_error(f"writing {file.path} failed", error) from error
        done += part.piece.size_bytes
    return done


def _write(descriptor: int, writes: Iterator[tuple[int, memoryview]]) -> None:
    for position, some in writes:
        rest = some
        while rest:  # a disk that is nearly full writes less than it was given, without an error
            rest = rest[os.pwrite(descriptor, rest, position + len(some) - len(rest)) :]


# ---------------------------------------------------------------------- verifying


def _make_durable(target: Path, file: File) -> None:
    try:
        with (target / file.path).open("r+b", 0) as opened:
            sync_file(opened)
    except OSError as error:
        raise write_error(f"making {file.path} durable failed", error) from error


def _verify_file(target: Path, file: File, staged: Staged) -> None:
    """Read a file back, compare it with its digest, and note its fingerprints."""
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
                    found.append(staged.fingerprinter.fingerprint(data, layout))
    except OSError as error:
        raise write_error(f"reading {file.path} back failed", error) from error
    staged.fingerprints[file.path] = fingerprints = np.concatenate(found)
    sha256 = digest_of_pages(fingerprints) if file.page_bytes else digest.hexdigest()
    if sha256 != file.sha256:
        raise CorruptSnapshot(f"{file.path} does not have the digest the manifest names")


def _verify_database(target: Path, manifest: Manifest) -> None:
    contents = database.check(target)
    if contents.segments != manifest.segments:
        raise CorruptSnapshot("the database names other segments than the manifest")
    expected = {collection.id: collection.records for collection in manifest.snapshot.collections}
    found = {collection.id: collection.records for collection in contents.collections}
    if found != expected:
        raise CorruptSnapshot("the database holds other collections or records than the manifest")


def _verify_indexes(target: Path, manifest: Manifest) -> None:
    for segment_id, position in manifest.positions.items():
        if position and (problems := index_problems(target / segment_id)):
            raise CorruptSnapshot(f"the index of segment {segment_id} is torn: {'; '.join(problems)}")
