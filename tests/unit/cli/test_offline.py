"""Commands on a store without a gateway."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.chroma.directory import DataDirectory
from gateway.cli import offline
from gateway.cli.offline import OfflineRepository
from gateway.errors import ConfigError, CorruptSnapshot, NothingToRestore
from gateway.jobs import Progress
from gateway.lease.election import LeaderRole
from gateway.snapshot.model import Snapshot
from gateway.storage import FileStorage, PrefixedStorage
from tests.unit.snapshot.leaders import candidate
from tests.unit.snapshot.manifests import ID, manifest

MANIFEST = f"snapshots/{ID}/manifest.json"


@pytest.fixture
def store(tmp_path: Path) -> PrefixedStorage:
    return PrefixedStorage(FileStorage(tmp_path / "store"), "users/default/vectorstore/")


@pytest.fixture
def repository(tmp_path: Path) -> OfflineRepository:
    return OfflineRepository(f"file://{tmp_path}/store", None)


async def published(tmp_path: Path, store: PrefixedStorage) -> None:
    """Snapshot `ID`, by a gateway that died with the lease."""
    writer = candidate(tmp_path / "writer", store)
    await writer.require()
    async with writer.publishing(ID):
        await store.put(MANIFEST, manifest().to_bytes())


def restored(directory: DataDirectory) -> Snapshot:
    (directory.path / "chroma.sqlite3").write_bytes(b"restored")
    return manifest().snapshot


async def test_a_gateway_continues_from_what_the_command_restored(
    tmp_path: Path, store: PrefixedStorage, repository: OfflineRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not behind of exactly what it holds, and waits for the holder as a start on an empty directory does."""
    await published(tmp_path, store)

    async def restore(_repository: object, directory: DataDirectory, *_: object) -> Snapshot:
        assert (directory.path / ".gateway/home.json").is_file(), "it is noted before data come in"
        return restored(directory)

    monkeypatch.setattr(offline, "restore_at_boot", restore)
    await run(repository, tmp_path / "data")
    gateway = candidate(tmp_path / "data", store, has_data=True)
    await gateway.require()
    assert gateway.role is LeaderRole.WRITER


@pytest.mark.parametrize("was_there", [True, False])
async def test_what_is_not_restored_leaves_nothing_behind(
    tmp_path: Path,
    store: PrefixedStorage,
    repository: OfflineRepository,
    monkeypatch: pytest.MonkeyPatch,
    was_there: bool,
) -> None:
    """Neither where there is no such snapshot, nor where it is damaged."""
    target = tmp_path / "data"
    if was_there:
        target.mkdir()

    async def fail(*_: object) -> Snapshot:
        raise CorruptSnapshot("its packs are damaged")

    monkeypatch.setattr(offline, "restore_at_boot", fail)
    with pytest.raises(NothingToRestore):
        await run(repository, target, "20200101T000000Z-000000")
    assert not target.exists() or not [*target.iterdir()]
    await published(tmp_path, store)
    with pytest.raises(CorruptSnapshot):
        await run(repository, target)
    assert target.exists() is was_there
    assert not was_there or not [*target.iterdir()]


async def test_a_directory_with_data_is_left_alone(
    tmp_path: Path, store: PrefixedStorage, repository: OfflineRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own memory."""
    await published(tmp_path, store)
    home = tmp_path / "writer/.gateway/home.json"
    (tmp_path / "writer/chroma.sqlite3").write_bytes(b"data")
    before = json.loads(home.read_text())
    with pytest.raises(ConfigError, match="holds data already"):
        await run(repository, tmp_path / "writer")
    assert json.loads(home.read_text()) == before


async def run(repository: OfflineRepository, target: Path, name: str = "latest") -> dict[str, Any]:
    return await asyncio.to_thread(repository.restore, name, target, Progress())
