"""Fetch the files of a snapshot into a directory, and verify them.

1. Check the manifest: the paths, and Chroma's migrations.
2. Make every file at its full size.
3. Fetch the packs and write their pieces: all patches, then all bases.
4. Verify each file as soon as it is complete: digest, durability, and the contents of the database.
5. Set the positions of the indexes in the database, so that Chroma replays the rest of its log.
6. Check the indexes that were not found sound before they were stored.
"""

import asyncio
import functools
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog

from gateway.aio import TaskPool, run_in_thread_uninterrupted
from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE, is_snapshot_path, signatures_of
from gateway.chroma.index_health import IndexHealth
from gateway.chroma.log import set_positions, whole_after
from gateway.chroma.migrations import installed_migrations
from gateway.chroma.segments import Segment
from gateway.chroma.structure import IndexCheck
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
from gateway.snapshot.model import File, Manifest, Pack, Piece, Snapshot
from gateway.snapshot.packing import unpack
from gateway.snapshot.plan import Fetch, plan_restore
from gateway.snapshot.repository import Repository

log = structlog.get_logger()

OnBytes = Callable[[int, int], None]
"""Called with the bytes written so far, and the bytes to write in all."""
GetPack = Callable[[Pack], Awaitable[bytes]]
Replay = Callable[[Path, Fingerprints], Awaitable[None]]
"""Makes the database in a directory a later one. Given the digests of its pages. Raises what a fetch raises."""

_FETCHES_AT_ONCE = 4
_CHECKS_AT_ONCE = 4
_READ_BYTES = 4 << 20
# Chroma opens the database and creates a WAL beside it.
_HEADROOM_BYTES = 16 << 20
_PAGE_BYTES = 4096
# Between blocks of patches lie many short parts of a base. To look at each would take longer than to write it.
_LEAST_LOOKED_AT_BYTES = 8 * _PAGE_BYTES
# A frame of zstd takes 3 bytes for each 128 KiB of one byte.
_RUN_RATIO = 10_000


@dataclass
class Staged:
    """A snapshot that was fetched and verified, with what a baseline needs to know about its files, by path.

    `unsound`: the indexes whose bytes are as they were stored and were torn already then, each with what is wrong.
    """

    manifest: Manifest
    fingerprinter: Fingerprinter = field(default_factory=lambda: Fingerprinter(secrets.randbits(64)))
    fingerprints: dict[str, Fingerprints] = field(default_factory=dict)
    origins: dict[str, Origins] = field(default_factory=dict)
    patch_lock: threading.Lock = field(default_factory=threading.Lock)
    unsound: list[tuple[Segment, IndexCheck]] = field(default_factory=list)

    def baseline(self, directory: DataDirectory) -> Baseline:
        """Return the baseline of the next snapshot, once this one is in place. Blocks.

        Without the positions of indexes that were torn: the next snapshot must not rely on them.
        """
        manifest, torn = self.manifest, {segment.id for segment, _ in self.unsound}
        return Baseline(
            manifest.snapshot.id,
            self.fingerprinter.seed,
            {
                file.path: stored_file(file, manifest.packs, self.fingerprints[file.path], self.origins[file.path])
                for file in manifest.files
            },
            {each: position for each, position in manifest.positions.items() if each not in torn},
            signatures_of(directory.path, manifest.positions),
            frozenset(manifest.positions.keys() - torn),
        )


async def fetch_verified(
    repository: Repository,
    target: Path,
    manifest: Manifest,
    progress: OnBytes,
    *,
    keep_log: bool = True,
    served_in: Path | None = None,
    replay: Replay | None = None,
    check_again: bool = False,
) -> Staged:
    """Fetch a snapshot into the empty directory `target` and verify it. Chroma can serve it but for `unsound` indexes.

    `replay` leads its database to a later state, for which the log in it has what the indexes of the snapshot lack.

    Indexes that were found sound before they were stored are not read for it again, except to `check_again`.

    `keep_log` False prepares it for a Chroma without a gateway, see `gateway.chroma.log`. `served_in` is the data
    directory that remembers which indexes are sound. Raises CorruptSnapshot (naming the object), IncompatibleSnapshot,
    DiskFull, StorageError; then `target` holds a part of the snapshot.
    """
    staged = Staged(manifest)
    await _make(staged, target)
    try:
        await _fetch_and_verify(repository, staged, target, progress)
    except CorruptSnapshot:
        # The files only show that something is corrupt. The packs show what.
        await repository.verify_packs(manifest.packs)
        raise
    positions = manifest.positions
    if replay is not None:
        await replay(target, staged.fingerprints[DATABASE])
        positions = await run_in_thread_uninterrupted(_positions_after_replay, target, manifest)
    await run_in_thread_uninterrupted(functools.partial(set_positions, target, positions, keep=keep_log))
    health = IndexHealth(target, served_in)
    unsound = functools.partial(health.unsound, known=() if check_again else manifest.sound)
    staged.unsound = await run_in_thread_uninterrupted(unsound)
    await run_in_thread_uninterrupted(health.save)
    return staged


def _positions_after_replay(target: Path, manifest: Manifest) -> dict[str, int]:
    """Check the database after a replay, and remove the indexes of collections that it does not have any more.

    Return the position of each index: that of the snapshot, 0 where it has none. Chroma replays its log from there.
    """
    contents = database.check(target)
    _require_migrations(((row.dir, row.version, row.filename) for row in contents.migrations), manifest.snapshot)
    _require_whole_log(target, manifest, contents.segments)
    for segment_id in manifest.positions.keys() - contents.segments.keys():
        shutil.rmtree(target / segment_id, ignore_errors=True)
    return {segment_id: manifest.positions.get(segment_id, 0) for segment_id in contents.segments}


def _require_whole_log(target: Path, manifest: Manifest, segments: dict[str, int]) -> None:
    """Raise CorruptSnapshot unless the log leads from the indexes of the snapshot to the database after a replay."""
    lagging = {
        segment_id: position
        for segment_id, position in manifest.positions.items()
        if 0 < position < segments.get(segment_id, 0)
    }
    with closing(database.ReadTransaction(target)) as reader:
        broken = lagging.keys() - whole_after(reader, lagging)
    if broken:
        raise CorruptSnapshot(
            f"Chroma's log does not lead from the {len(broken)} index(es) of snapshot {manifest.snapshot.id} to this"
            " moment: a snapshot in between was deleted",
            "restore another moment, see GET /admin/history",
        )


def index_files(manifest: Manifest, segment_id: str) -> tuple[File, ...]:
    """The files of one index of a snapshot."""
    return tuple(file for file in manifest.files if file.path.startswith(f"{segment_id}/"))


async def fetch_index(repository: Repository, target: Path, manifest: Manifest, segment_id: str) -> None:
    """Fetch the files of one index into a directory of `target` named by the segment, and verify their digests.

    Says nothing about their structure. Raises CorruptSnapshot, DiskFull, StorageError; then a part of it is there.
    """
    await fetch_files(repository.get_unverified, target, manifest, index_files(manifest, segment_id))


async def fetch_files(get: GetPack, target: Path, manifest: Manifest, files: tuple[File, ...]) -> Staged:
    """Fetch some files of a snapshot into `target`, and verify their digests. `get` returns the bytes of a pack.

    Raises what `get` raises, CorruptSnapshot, DiskFull; then a part of them is there.
    """
    staged = Staged(manifest.model_copy(update={"files": files}))
    await _make(staged, target)
    async with TaskPool(_CHECKS_AT_ONCE) as checks:

        async def verify(file: File) -> None:
            await checks.start(asyncio.to_thread, _verify_file, target, file, staged)

        await _fetch(get, staged, target, lambda _done, _total: None, verify)
    return staged


async def fetch_contents(get: GetPack, target: Path, manifest: Manifest, replay: Replay) -> database.Contents:
    """Fetch the database alone into the empty directory `target`, lead it to a later state, and return what it holds.

    No Chroma can serve it. Raises what `fetch_database` and `replay` do; then a part of it is there.
    """
    _require_known_paths(manifest)
    staged = await fetch_files(get, target, manifest, tuple(file for file in manifest.files if file.path == DATABASE))
    await replay(target, staged.fingerprints[DATABASE])
    return await run_in_thread_uninterrupted(database.check, target)


async def fetch_database(get: GetPack, target: Path, manifest: Manifest) -> None:
    """Fetch the database alone, and verify it as a restore does. It is as Chroma gets it then.

    Raises what `fetch_files` does, and IncompatibleSnapshot.
    """
    _require_known_paths(manifest)
    await asyncio.to_thread(_require_known_migrations, manifest)
    await fetch_files(get, target, manifest, tuple(file for file in manifest.files if file.path == DATABASE))
    await run_in_thread_uninterrupted(_verify_database, target, manifest)
    await run_in_thread_uninterrupted(functools.partial(set_positions, target, manifest.positions, keep=True))


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
        await _fetch(repository.get_unverified, staged, target, progress, verify)


# ---------------------------------------------------------------------- before anything is fetched


def _require_known_paths(manifest: Manifest) -> None:
    for file in manifest.files:
        if not is_snapshot_path(file.path):
            raise CorruptSnapshot(f"snapshot {manifest.snapshot.id} names {file.path!r}, which is no file of Chroma's")


def _require_known_migrations(manifest: Manifest) -> None:
    _require_migrations(((row.dir, row.version, row.filename) for row in manifest.migrations), manifest.snapshot)


def _require_migrations(rows: Iterable[tuple[str, int, str]], snapshot: Snapshot) -> None:
    known = installed_migrations()
    for directory, version, name in rows:
        if (directory, version) not in known:
            raise IncompatibleSnapshot(
                f"snapshot {snapshot.id} was taken with chromadb {snapshot.chroma_version}, whose"
                f" migration {directory}/{name} the installed one does not know",
                f"install chromadb {snapshot.chroma_version} or newer",
            )


async def _make(staged: Staged, target: Path) -> None:
    _require_known_paths(staged.manifest)
    # Uninterrupted: after a cancelled restore, the next one may write to the same place.
    await run_in_thread_uninterrupted(_make_files, target, staged.manifest.files)
    for file in staged.manifest.files:
        staged.origins[file.path] = np.zeros(Layout(file.layout).count(file.size_bytes), np.uint8)


def _make_files(target: Path, files: tuple[File, ...]) -> None:
    """Make every file at its full size, as one hole."""
    pieces = (piece for file in files for piece in file.pieces if not _is_hole(piece))
    needed = sum(piece.size_bytes for piece in pieces) + _HEADROOM_BYTES
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
    get: GetPack,
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
        data = await get(fetch.pack)
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
                    # No two bases and no patch write to the same place, so a hole is what it was: zeros.
                    writes = base_writes(raw, layout, file.size_bytes, part.offset, origins != 0)
                    _write(opened.fileno(), _without_holes(writes))
        except OSError as error:
            raise write_error(f"writing {file.path} failed", error) from error
        done += part.piece.size_bytes
    return done


def _is_hole(piece: Piece) -> bool:
    """Whether a piece is nothing but zeros, by its size: only runs of one byte are compressed so well."""
    return piece.stored_bytes * _RUN_RATIO < piece.size_bytes


def _without_holes(writes: Iterator[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
    """Leave out pages of the file that are nothing but zeros, where many lie together."""
    for position, data in writes:
        if len(data) < _LEAST_LOOKED_AT_BYTES:
            yield position, data
            continue
        first = -position % _PAGE_BYTES
        words = np.frombuffer(data[first : first + (len(data) - first) // _PAGE_BYTES * _PAGE_BYTES], np.uint64)
        pages = words.reshape(-1, _PAGE_BYTES // 8)
        is_empty = pages[:, 0] == 0  # few pages begin with zeros, so few are looked at
        is_empty[is_empty] = ~pages[is_empty].any(axis=1)
        if not is_empty.any():
            yield position, data
            continue
        # From one page of zeros to the next: what lies between is written.
        at = 0
        for page in np.flatnonzero(is_empty).tolist():
            start = first + page * _PAGE_BYTES
            if at < start:
                yield position + at, data[at:start]
            at = start + _PAGE_BYTES
        if at < len(data):
            yield position + at, data[at:]


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
