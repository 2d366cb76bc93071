"""Verify a snapshot: is every byte there, and does a Chroma serve it?

A snapshot that is broken is a result, with its `problems`. An unreachable store or a full disk is an error, since it
says nothing about the snapshot.
"""

import contextlib
import shutil
import time
from collections import Counter, OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx

from gateway.aio import TaskPool, run_in_thread_uninterrupted
from gateway.chroma import database
from gateway.chroma.disk import DATABASE
from gateway.chroma.index_health import IndexHealth
from gateway.chroma.process import http_client, scratch_chroma
from gateway.chroma.segments import Segment
from gateway.chroma.structure import IndexCheck
from gateway.chroma.watch import collection_url
from gateway.errors import CorruptSnapshot, ObjectArchived, SnapshotError
from gateway.files import scratch_directory
from gateway.jobs import Progress, counted
from gateway.snapshot.fetch import fetch_database, fetch_files, fetch_verified
from gateway.snapshot.model import Manifest, Pack, SnapshotCollection, Verification
from gateway.snapshot.repository import Repository
from gateway.snapshot.sound import describe

Level = Literal["data", "boot"]

_FETCHES_AT_ONCE = 4
_READS_AT_ONCE = 4
_MAX_PROBLEMS = 20
# Small indexes are fetched together up to this size.
_PART_BYTES = 64 << 20
_KEPT_PACKS = 8
# The first read of a collection loads its index.
_READ_TIMEOUT_S = 300.0
# Records of each collection that are read and queried by their own vector.
_SAMPLES = 5


async def verify(
    repository: Repository, scratch: Path, snapshot_id: str, level: Level, progress: Progress
) -> Verification:
    """Verify one snapshot, and store the result beside it.

    The level `data` needs free disk for the database and the largest index in `scratch`. The level `boot` needs it for
    the snapshot, and memory for a second Chroma, until it ends.
    Raises NotFound, StorageError, DiskFull. Safe to retry.
    """
    started, problems = time.monotonic(), list[str]()
    try:
        manifest = await repository.manifest(snapshot_id)
        if level == "boot":
            problems = await _boot(repository, scratch, manifest, progress)
        else:
            problems = await _read_data(repository, scratch, manifest, progress)
    except SnapshotError as error:
        problems = [error.message]
    except ObjectArchived as error:
        problems = [str(error)]
    verification = Verification(
        ok=not problems,
        level=level,
        at=datetime.now(UTC),
        duration_s=round(time.monotonic() - started, 3),
        problems=tuple(problems[:_MAX_PROBLEMS]),
    )
    await repository.save_verification(snapshot_id, verification)
    return verification


async def _read_data(repository: Repository, scratch: Path, manifest: Manifest, progress: Progress) -> list[str]:
    """Read every pack once. Return the problems that a restore would find before it starts Chroma.

    The database is put together first, since it alone knows to which collections the indexes belong, and then the
    indexes, a few at a time. What is corrupt leaves the rest to be checked.
    """
    problems, packs = list[str](), _CheckedPacks(repository, manifest, progress)
    async with scratch_directory(scratch, "verify") as directory:
        try:
            await fetch_database(packs.get, directory, manifest)
            for segment_ids in _in_parts(manifest):
                try:
                    problems += await _check_indexes(packs, directory, manifest, segment_ids)
                except CorruptSnapshot as error:
                    problems.append(error.message)
        except SnapshotError as error:
            problems.append(error.message)
    await packs.read_rest()
    bad = packs.problems.values()
    return sorted(bad) + [problem for problem in problems if problem not in bad]


async def _check_indexes(
    packs: "_CheckedPacks", directory: Path, manifest: Manifest, segment_ids: frozenset[str]
) -> list[str]:
    """Fetch some indexes beside the database in `directory`, and return what is wrong with them."""
    files = tuple(file for file in manifest.files if file.path.partition("/")[0] in segment_ids)
    try:
        await fetch_files(packs.get, directory, manifest, files)
        unsound = await run_in_thread_uninterrupted(IndexHealth(directory).unsound, segment_ids)
    finally:
        for segment_id in segment_ids:
            await run_in_thread_uninterrupted(shutil.rmtree, directory / segment_id, True)
    return _problems_of_indexes(unsound)


def _in_parts(manifest: Manifest) -> list[frozenset[str]]:
    """The segments in parts: those without files, a large index alone, or small ones whose packs are neighbours."""
    sizes, first_packs = Counter[str](), dict[str, int]()
    for file in manifest.files:
        if file.path != DATABASE:
            segment_id = file.path.partition("/")[0]
            sizes[segment_id] += file.size_bytes
            packs = [piece.pack for piece in file.pieces]
            first_packs[segment_id] = min([first_packs.get(segment_id, len(manifest.packs)), *packs])
    parts = [set(manifest.positions.keys() - sizes.keys()), set[str]()]
    part_bytes = 0
    for segment_id in sorted(sizes, key=lambda each: first_packs[each]):
        part_bytes += sizes[segment_id]
        if parts[-1] and part_bytes > _PART_BYTES:
            parts.append(set())
            part_bytes = sizes[segment_id]
        parts[-1].add(segment_id)
    return [frozenset(part) for part in parts if part]


class _CheckedPacks:
    """Reads packs, and compares all of their bytes with their names. `problems`: what is wrong, by pack.

    The last few packs are kept: small indexes share their packs.
    """

    def __init__(self, repository: Repository, manifest: Manifest, progress: Progress) -> None:
        self._repository, self._manifest, self._progress = repository, manifest, progress
        self._read = set[str]()
        self._kept = OrderedDict[str, bytes]()
        self.problems: dict[str, str] = {}
        progress.phase("reading", sum(pack.size_bytes for pack in manifest.packs))

    async def get(self, pack: Pack) -> bytes:
        """Return the bytes of a pack. Raises CorruptSnapshot if they are not there, or not what they were."""
        name = pack.sha256
        if name in self.problems:
            raise CorruptSnapshot(self.problems[name])
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        try:
            data = await self._repository.get_pack(pack)
        except (SnapshotError, ObjectArchived) as error:
            self.problems[name] = (
                f"{error.message}: {error.hint}" if isinstance(error, ObjectArchived) else error.message
            )
            raise CorruptSnapshot(self.problems[name]) from error
        finally:
            if name not in self._read:
                self._read.add(name)
                self._progress.advance(pack.size_bytes)
        self._kept[name] = data
        while len(self._kept) > _KEPT_PACKS:
            self._kept.popitem(last=False)
        return data

    async def read_rest(self) -> None:
        """Read the packs that were not read yet."""

        async def read(pack: Pack) -> None:
            with contextlib.suppress(CorruptSnapshot):
                await self.get(pack)

        async with TaskPool(_FETCHES_AT_ONCE) as pool:
            for pack in self._manifest.packs:
                if pack.sha256 not in self._read:
                    await pool.start(read, pack)


def _problems_of_indexes(unsound: list[tuple[Segment, IndexCheck]]) -> list[str]:
    return [f"the index of collection {segment.name} is not sound: {describe(check)}" for segment, check in unsound]


async def _boot(repository: Repository, scratch: Path, manifest: Manifest, progress: Progress) -> list[str]:
    async with scratch_directory(scratch, "verify") as directory:
        staged = await fetch_verified(repository, directory, manifest, counted(progress, "fetching"), check_again=True)
        if staged.unsound:  # Chroma may end when it reads them
            return _problems_of_indexes(staged.unsound)
        progress.phase("checking", None)
        await run_in_thread_uninterrupted(database.require_sound, directory)
        progress.phase("starting Chroma", None)
        async with scratch_chroma(directory) as url:
            return await _compare(url, manifest, progress)


async def _compare(url: str, manifest: Manifest, progress: Progress) -> list[str]:
    """Read every collection from the Chroma at `url`. Return what differs from what the manifest recorded."""
    problems = list[str]()
    collections = manifest.snapshot.collections
    progress.phase("reading collections", len(collections), "collections")
    async with http_client(url, _READ_TIMEOUT_S) as client:

        async def read(collection: SnapshotCollection) -> None:
            name = f"{collection.tenant}/{collection.database}/{collection.name}"
            try:
                await _read(client, collection)
            except _Mismatch as error:
                problems.append(f"collection {name}: {error}")
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                problems.append(f"collection {name}: it cannot be read: {error!r}")
            progress.advance(1)

        async with TaskPool(_READS_AT_ONCE) as pool:
            for collection in collections:
                await pool.start(read, collection)
    return sorted(problems)


class _Mismatch(Exception):
    """A collection is not as it was when the snapshot was taken."""


async def _read(client: httpx.AsyncClient, collection: SnapshotCollection) -> None:
    """Count a collection, read some of its records and query their vectors. Raises _Mismatch."""
    base = collection_url(collection.tenant, collection.database, collection.id)
    count = _require_ok("count", await client.get(f"{base}/count"))
    if count != collection.records:
        raise _Mismatch(f"it has {count} records, and had {collection.records} when the snapshot was taken")
    # Samples from all over the collection, not from its beginning alone.
    vectors = list[list[float]]()
    for offset in range(0, count, max(1, count // _SAMPLES)):
        wanted = {"limit": 1, "offset": offset, "include": ["embeddings", "metadatas", "documents"]}
        read = _require_ok("get", await client.post(f"{base}/get", json=wanted))
        if len(read["ids"]) != 1:
            raise _Mismatch(f"record {offset} of {count} is not there")
        vectors += [vector for vector in read["embeddings"] or [] if vector]
    if vectors:
        wanted = {"query_embeddings": vectors, "n_results": 1, "include": []}
        found = _require_ok("query", await client.post(f"{base}/query", json=wanted))
        if not all(found["ids"]):
            raise _Mismatch("query: a record is not found by its own vector")


def _require_ok(what: str, response: httpx.Response) -> Any:
    if response.status_code != httpx.codes.OK:
        raise _Mismatch(f"{what}: {response.status_code} {response.text[:500]}")
    return response.json()
