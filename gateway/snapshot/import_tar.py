"""Make a snapshot of a Chroma directory that is uploaded as a tar archive.

1. Unpack the archive into a scratch directory.
2. Check the integrity of the database, and the structure of the indexes. Repair what is torn if nothing is lost by it.
3. Let a Chroma of the installed version migrate the directory and read every collection, then stop it.
4. Take a snapshot of the directory.

The data that are served are not touched.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx

from gateway.chroma import database
from gateway.chroma.directory import DataDirectory
from gateway.chroma.disk import DATABASE
from gateway.chroma.index_health import IndexHealth
from gateway.chroma.process import http_client, scratch_chroma
from gateway.chroma.segments import Segment
from gateway.chroma.watch import probe
from gateway.errors import CorruptSnapshot, InvalidRequest, SnapshotError
from gateway.files import scratch_directory
from gateway.jobs import Progress
from gateway.snapshot.create import Hold, Snapshotter
from gateway.snapshot.model import Snapshot
from gateway.snapshot.repository import Repository
from gateway.snapshot.sound import repair_without_loss
from gateway.snapshot.tar import untar

_READ_TIMEOUT_S = 300.0
_HINT = "check that Chroma opens the directory, and that no Chroma wrote to it while the archive was made"


async def import_tar(
    repository: Repository,
    scratch: Path,
    body: AsyncIterator[bytes],
    label: str | None,
    max_bytes: int,
    progress: Progress,
    received: asyncio.Event,
) -> Snapshot:
    """Make a snapshot of the tar archive in `body`, and return it. It is the newest snapshot then.

    `received` is set once all of `body` was read. `scratch` needs free disk for the contents of the archive.
    Raises InvalidRequest, BodyTooLarge, DiskFull, StorageError; then there is no snapshot. Safe to retry.
    """
    async with scratch_directory(scratch, "upload") as path:
        await untar(body, path, max_bytes, progress)
        received.set()
        try:
            await _migrate(path, progress)
        except SnapshotError as error:
            raise InvalidRequest(
                f"the archive does not hold a sound Chroma directory: {error.message}", _HINT
            ) from error
        directory = DataDirectory(path)
        await asyncio.to_thread(directory.make)
        snapshotter = Snapshotter(repository, directory, _NoChroma(), _no_writers)
        try:
            return await snapshotter.take(label, progress)
        finally:
            await snapshotter.close()


async def _migrate(path: Path, progress: Progress) -> None:
    """Let Chroma migrate the directory to its own version and read every collection. Raises SnapshotError."""
    progress.phase("checking", None)
    await asyncio.to_thread(database.require_sound, path)
    if await asyncio.to_thread(database.is_empty, path):
        raise CorruptSnapshot(f"its {DATABASE} is empty")
    # Before Chroma reads them: a torn index may end it.
    await repair_without_loss(IndexHealth(path))
    progress.phase("migrating", None)
    # Start Chroma twice. A Chroma 1.5.9 process that has just migrated a directory of 0.4 still uses the old columns
    # and panics (`rust/sysdb/src/sqlite.rs`, ColumnNotFound "bool_value"). The next process does not.
    async with scratch_chroma(path):
        pass
    async with scratch_chroma(path) as url:
        contents = await asyncio.to_thread(database.read_contents, path)
        progress.phase("reading collections", len(contents.collections), "collections")
        async with http_client(url, _READ_TIMEOUT_S) as client:
            for collection in contents.collections:
                try:
                    problem = await probe(client, collection)
                except httpx.HTTPError as error:
                    problem = repr(error)
                if problem:
                    name = f"{collection.tenant}/{collection.database}/{collection.name}"
                    raise CorruptSnapshot(f"collection {name} cannot be read: {problem}")
                progress.advance(1)
    await asyncio.to_thread(database.prepare, path)


class _NoChroma:
    """Stands for the Chroma of a directory on which no Chroma runs."""

    def require_served(self) -> int:
        return 0

    async def require_same_run(self, run: int) -> None:
        pass

    async def write_to_log(self, segment: Segment, ids: Sequence[str], hold: Hold) -> Sequence[str]:
        raise CorruptSnapshot(
            f"the index of collection {segment.name} is torn, and {len(ids)} record(s) have no vector"
        )


@contextlib.asynccontextmanager
async def _no_writers() -> AsyncIterator[float]:
    yield 0.0
