"""Verify a snapshot: is every byte there, and does a Chroma serve it?

A snapshot that is broken is a result, with its `problems`. An unreachable store or a full disk is an error, since it
says nothing about the snapshot.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx

from gateway.aio import TaskPool, run_in_thread_uninterrupted
from gateway.chroma import database
from gateway.chroma.process import http_client, scratch_chroma
from gateway.chroma.structure import check_index
from gateway.chroma.watch import collection_url
from gateway.errors import DiskFull, SnapshotError
from gateway.files import scratch_directory
from gateway.jobs import Progress, counted
from gateway.snapshot.fetch import Staged, fetch_index, fetch_verified
from gateway.snapshot.model import Manifest, Pack, SnapshotCollection, Verification
from gateway.snapshot.repository import Repository
from gateway.snapshot.sound import describe

Level = Literal["data", "boot"]

_FETCHES_AT_ONCE = 4
_READS_AT_ONCE = 4
_MAX_PROBLEMS = 20
# The first read of a collection loads its index.
_READ_TIMEOUT_S = 300.0
# Records of each collection that are read and queried by their own vector.
_SAMPLES = 5


async def verify(
    repository: Repository, scratch: Path, snapshot_id: str, level: Level, progress: Progress
) -> Verification:
    """Verify one snapshot, and store the result beside it.

    The level `data` needs free disk for the largest index in `scratch`. The level `boot` needs it for the snapshot, and
    memory for a second Chroma, until it ends.
    Raises NotFound, StorageError, DiskFull. Safe to retry.
    """
    started, problems = time.monotonic(), list[str]()
    try:
        manifest = await repository.manifest(snapshot_id)
        if level == "boot":
            problems = await _boot(repository, scratch, manifest, progress)
        elif not (problems := await _read_packs(repository, manifest, progress)):
            problems = await _check_indexes(repository, scratch, manifest, progress)
    except SnapshotError as error:
        problems = [error.message]
    verification = Verification(
        ok=not problems,
        level=level,
        at=datetime.now(UTC),
        duration_s=round(time.monotonic() - started, 3),
        problems=tuple(problems[:_MAX_PROBLEMS]),
    )
    await repository.save_verification(snapshot_id, verification)
    return verification


async def _read_packs(repository: Repository, manifest: Manifest, progress: Progress) -> list[str]:
    """Fetch every pack and return the problems. Packs are named by their digests, so this verifies every byte."""
    problems = list[str]()
    progress.phase("reading", sum(pack.size_bytes for pack in manifest.packs))

    async def read(pack: Pack) -> None:
        try:
            await repository.get_pack(pack)
        except SnapshotError as error:
            problems.append(error.message)
        progress.advance(pack.size_bytes)

    async with TaskPool(_FETCHES_AT_ONCE) as pool:
        for pack in manifest.packs:
            await pool.start(read, pack)
    return sorted(problems)


async def _check_indexes(repository: Repository, scratch: Path, manifest: Manifest, progress: Progress) -> list[str]:
    """Fetch one index after the other and return what is wrong with its structure."""
    problems, indexes = list[str](), [each for each, position in manifest.positions.items() if position]
    progress.phase("checking indexes", len(indexes), "indexes")
    for segment_id in indexes:
        async with scratch_directory(scratch, "verify") as directory:
            await fetch_index(repository, directory, manifest, segment_id)
            check = await run_in_thread_uninterrupted(check_index, directory / segment_id)
        if not check.is_sound:
            problems.append(f"the index {segment_id} is torn: {describe(check)}")
        progress.advance(1)
    if not problems:
        return []
    try:  # Only the database knows to which collections they belong.
        async with scratch_directory(scratch, "verify") as directory:
            staged = await fetch_verified(repository, directory, manifest, lambda _done, _total: None)
            return _problems_of_indexes(staged) or problems
    except DiskFull:
        return problems


def _problems_of_indexes(staged: Staged) -> list[str]:
    return [
        f"the index of collection {segment.name} is not sound: {describe(check)}" for segment, check in staged.unsound
    ]


async def _boot(repository: Repository, scratch: Path, manifest: Manifest, progress: Progress) -> list[str]:
    async with scratch_directory(scratch, "verify") as directory:
        staged = await fetch_verified(repository, directory, manifest, counted(progress, "fetching"))
        if staged.unsound:  # Chroma may end when it reads them
            return _problems_of_indexes(staged)
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
