"""Older copies of one index from the store, for the repair of a torn one (`gateway.chroma.repair`).

Only the files of that index are fetched, into a scratch directory. The snapshot that the baseline names comes first: it
is of the history that these data have. After a restore, other snapshots may have other vectors at the same positions;
the repair compares a copy with the log before it uses it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog

from gateway.chroma.repair import IndexCopy
from gateway.chroma.segments import Segment
from gateway.errors import GatewayError, NotFound, SnapshotError
from gateway.files import scratch_directory
from gateway.snapshot import baseline as baselines
from gateway.snapshot.fetch import fetch_index, index_files
from gateway.snapshot.model import Manifest
from gateway.snapshot.repository import Repository

log = structlog.get_logger()

# A start must not wait for long for a store: the log and the torn files are there without it.
_REACH_TIMEOUT_S = 10.0
_LEAST_BYTES_PER_S = 8 << 20
_ASK_AGAIN_S = 60.0
_MOST_COPIES = 3


class StoredCopies:
    """The copies that the store has. `of` never raises for a store that fails: then there is no copy."""

    def __init__(
        self, repository: Repository, scratch: Path, *, baseline: Path | None = None, before: str | None = None
    ) -> None:
        """Fetch into directories below `scratch`. `baseline`: that of the data, as a file.

        `before` leaves out that snapshot and all newer ones.
        """
        self._repository, self._scratch, self._baseline, self._before = repository, scratch, baseline, before
        self._ask_again_at = 0.0

    @contextlib.asynccontextmanager
    async def of(self, segment: Segment) -> AsyncIterator[Sequence[IndexCopy]]:
        """Fetch the newest stored version of an index; it is there until the block ends.

        Takes at most 10 s, and the time that its bytes take at 8 MiB/s. A store that could not be reached is asked
        again only a minute later.
        """
        async with contextlib.AsyncExitStack() as stack:
            found: list[IndexCopy] = []
            if time.monotonic() >= self._ask_again_at:
                try:
                    found = await self._fetch(segment, stack)
                except (GatewayError, TimeoutError) as error:
                    self._ask_again_at = time.monotonic() + _ASK_AGAIN_S
                    log.warning(
                        "the store cannot be asked for an older copy of an index",
                        collection=segment.name,
                        cause=str(error) or "it did not answer in time",
                    )
            yield found

    async def _fetch(self, segment: Segment, stack: contextlib.AsyncExitStack) -> list[IndexCopy]:
        async with asyncio.timeout(_REACH_TIMEOUT_S):
            manifests = await self._manifests(segment.id)
        for manifest in manifests:
            size_bytes = sum(file.size_bytes for file in index_files(manifest, segment.id))
            path: Path = await stack.enter_async_context(scratch_directory(self._scratch, "copy"))
            try:
                async with asyncio.timeout(_REACH_TIMEOUT_S + size_bytes / _LEAST_BYTES_PER_S):
                    await fetch_index(self._repository, path, manifest, segment.id)
            except SnapshotError as error:
                log.warning("a stored index cannot be used", snapshot=manifest.snapshot.id, cause=error.message)
                continue
            log.info("an older copy of an index was fetched", collection=segment.name, snapshot=manifest.snapshot.id)
            return [IndexCopy(path / segment.id, manifest.positions[segment.id])]
        return []

    async def _manifests(self, segment_id: str) -> list[Manifest]:
        """Manifests with different versions of the index, the best first."""
        saved = await asyncio.to_thread(baselines.saved_snapshot_id, self._baseline) if self._baseline else None
        found: dict[tuple[str, ...], Manifest] = {}
        async for snapshot_id in self._ids(saved):
            try:
                manifest = await self._repository.manifest(snapshot_id)
            except (SnapshotError, NotFound):
                continue
            if manifest.positions.get(segment_id):
                found.setdefault(tuple(file.sha256 for file in index_files(manifest, segment_id)), manifest)
            if len(found) == _MOST_COPIES:
                break
        return list(found.values())

    async def _ids(self, first: str | None) -> AsyncIterator[str]:
        """The ids of the snapshots that may have a copy: `first`, if it is there, and then the newest first."""
        if first and (not self._before or first < self._before) and await self._repository.exists(first):
            yield first
        async for snapshot_id in self._repository.newest_first(self._before):
            if snapshot_id != first:
                yield snapshot_id
