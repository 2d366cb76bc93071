"""A live restore that cannot be finished ends with Chroma running on the previous data."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from gateway.chroma.directory import DataDirectory
from gateway.errors import DiskFull, GatewayError, SnapshotError, Unavailable
from gateway.snapshot import fetch as fetching
from gateway.snapshot import restore
from gateway.snapshot.baseline import saved_snapshot_id
from gateway.snapshot.fetch import Staged
from gateway.snapshot.model import Manifest
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import restore_live, stage
from tests.unit.snapshot.manifests import ID, manifest, sha
from tests.unit.snapshot.stores import MemoryStore


class Chroma:
    """Reads the live data when it starts. The test says what it cannot read, and what stopping it raises."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "chroma.sqlite3"
        self.serves: str | None = self._path.read_text()
        self.cannot_read = ""
        self.stop_error: GatewayError | None = None

    def require_control(self) -> None:
        pass

    async def stop(self) -> None:
        self.serves = None
        if self.stop_error is not None:
            raise self.stop_error

    async def start(self) -> dict[str, str]:
        self.serves = self._path.read_text()
        return {"t/d/c": "it is torn"} if self.serves == self.cannot_read else {}


class Restore:
    """A data directory with old data, and a snapshot with new data."""

    def __init__(self, path: Path) -> None:
        self.directory = DataDirectory(path)
        self.directory.make()
        (path / "chroma.sqlite3").write_text("old")
        self.chroma = Chroma(path)
        self.refused: list[str] = []

    async def run(self) -> None:
        repository = Repository(MemoryStore())
        await repository.publish(manifest())

        @asynccontextmanager
        async def refuse(reason: str) -> AsyncIterator[None]:
            self.refused.append(reason)
            yield
            self.refused.pop()

        await restore_live(repository, self.directory, self.chroma, refuse, ID, lambda done, total: None)


@pytest.fixture
def restoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Restore:
    async def stage(
        repository: object, directory: DataDirectory, manifest: Manifest, progress: object, **_: object
    ) -> Staged:
        (directory.make_incoming() / "chroma.sqlite3").write_text("new")
        staged = Staged(manifest)
        for file in manifest.files:
            staged.fingerprints[file.path] = np.zeros((1, 2), np.uint64)
            staged.origins[file.path] = np.zeros(1, np.uint8)
        return staged

    monkeypatch.setattr(restore, "stage", stage)
    return Restore(tmp_path)


async def test_restored_snapshot_is_served_and_settled(restoring: Restore) -> None:
    """Nothing of the old data is kept."""
    await restoring.run()
    assert restoring.chroma.serves == "new"
    assert not restoring.directory.is_swapping()
    assert not restoring.refused


async def test_restored_snapshot_is_the_next_baseline(restoring: Restore) -> None:
    """It replaces the baseline of the old data."""
    restoring.directory.baseline.write_bytes(b"of the old state")
    await restoring.run()
    assert saved_snapshot_id(restoring.directory.baseline) == ID


async def test_baseline_that_cannot_be_saved_does_not_prevent_a_restore(restoring: Restore) -> None:
    """The only effect is that the next snapshot stores everything."""
    restoring.directory.baseline.with_suffix(".new").mkdir()
    await restoring.run()
    assert restoring.chroma.serves == "new"
    assert saved_snapshot_id(restoring.directory.baseline) is None


async def test_roll_back_discards_the_old_baseline(restoring: Restore) -> None:
    """The old data were moved out and back, so their baseline is not trusted."""
    restoring.directory.baseline.write_bytes(b"of the old state")
    restoring.chroma.cannot_read = "new"
    with pytest.raises(SnapshotError):
        await restoring.run()
    assert not restoring.directory.baseline.exists() or saved_snapshot_id(restoring.directory.baseline) == ID


async def test_snapshot_that_chroma_cannot_read_is_rolled_back(restoring: Restore) -> None:
    """The error names what could not be read, and the old data are served."""
    restoring.chroma.cannot_read = "new"
    with pytest.raises(SnapshotError, match="the data is what it was before: t/d/c: it is torn"):
        await restoring.run()
    assert restoring.chroma.serves == "old"
    assert not restoring.directory.is_swapping()


@pytest.mark.parametrize("fails_at", [1, 2, 3])
async def test_swap_that_fails_midway_is_undone(
    restoring: Restore, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """The disk is full when any phase is written down. Chroma is started again on the old data."""
    write, times = restoring.directory._write_swap, 0

    def failing(swap: dict[str, object] | None) -> None:
        nonlocal times
        times += 1
        if times == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(swap)

    monkeypatch.setattr(restoring.directory, "_write_swap", failing)
    with pytest.raises(DiskFull, match="swapping the data failed"):
        await restoring.run()
    assert restoring.chroma.serves == "old"
    assert not restoring.directory.is_swapping()
    assert list((restoring.directory.path / ".gateway").iterdir()) == []


async def test_chroma_that_does_not_stop_in_time_is_started_again(restoring: Restore) -> None:
    """It may end later. Nothing was swapped."""
    restoring.chroma.stop_error = Unavailable("stopping Chroma took longer than 15 s")
    with pytest.raises(Unavailable, match="took longer"):
        await restoring.run()
    assert restoring.chroma.serves == "old"
    assert not restoring.directory.is_swapping()


async def test_cancelled_restore_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it has ended, its files are removed. It does not write to what the next restore puts in their place."""
    directory, repository = DataDirectory(tmp_path), Repository(MemoryStore())
    directory.make()
    for data in (b"database", b"index"):
        await repository.put_pack(sha(data), data)
    begun, go, under_way = threading.Event(), threading.Event(), set[int]()

    def slow(descriptor: int, data: bytes, position: int) -> int:
        under_way.add(threading.get_ident())
        begun.set()
        assert go.wait(10)
        written = pwrite(descriptor, data, position)
        under_way.discard(threading.get_ident())
        return written

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", slow)
    staging = asyncio.create_task(stage(repository, directory, manifest(), lambda done, total: None))
    assert await asyncio.to_thread(begun.wait, 10)
    staging.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await staging
    assert not under_way
    assert not (tmp_path / ".gateway/incoming").exists()


async def test_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is nearly full may write less than it was given, without an error."""
    staged, repository = Staged(manifest()), Repository(MemoryStore())
    fetching._make_files(tmp_path, staged.manifest.files)
    staged.origins = {file.path: np.zeros(1, np.uint8) for file in staged.manifest.files}
    for data in (b"database", b"index"):
        await repository.put_pack(sha(data), data)

    async def fetch() -> None:
        await fetching._fetch(
            repository.get_unverified, staged, tmp_path, lambda done, total: None, lambda _: asyncio.sleep(0)
        )

    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, position: pwrite(descriptor, data[:3], position))
    await fetch()
    assert (tmp_path / "chroma.sqlite3").read_bytes() == b"database"

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull):
        await fetch()
