"""Starts whose credentials may not do everything in the store."""

from pathlib import Path

import pytest

from gateway.config import Settings
from gateway.errors import StorageDenied
from gateway.lease.election import LeaderRole
from gateway.server.container import vectorstore_of
from gateway.storage import FileStorage, Storage
from gateway.vectorstore import VectorStore


class ReadOnly(FileStorage):
    """Denies every write."""

    async def put(self, key: str, data: bytes) -> None:
        raise StorageDenied(f"put {key}: AccessDenied")

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        raise StorageDenied(f"put {key}: AccessDenied")


class Undeletable(FileStorage):
    """Denies every deletion."""

    async def delete(self, key: str) -> None:
        raise StorageDenied(f"delete {key}: AccessDenied")


def made(path: Path, store: Storage) -> VectorStore:
    vectorstore = vectorstore_of(Settings(data_dir=path / "data", store=f"file://{path}/store"), store)
    vectorstore.directory.make()
    return vectorstore


async def not_running() -> bool:
    return False


async def test_an_empty_data_directory_does_not_start_without_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with status 3: what clients wrote would be lost with the disk, and `/readyz` would be green."""
    vectorstore = made(tmp_path, ReadOnly(tmp_path / "store"))
    monkeypatch.setattr(vectorstore.chroma, "is_running", not_running)
    await vectorstore.begin()
    with pytest.raises(StorageDenied, match="AccessDenied") as caught:
        await vectorstore.open()
    assert caught.value.exit_code == 3
    assert vectorstore.gate.write_refusal is not None
    await vectorstore.close()


async def test_a_store_that_denies_deletion_is_written_to(tmp_path: Path) -> None:
    """It only fills up: the gateway becomes the writer, so that snapshots are taken."""
    vectorstore = made(tmp_path, Undeletable(tmp_path / "store"))
    await vectorstore.begin()
    await vectorstore.leader.acquire()
    assert vectorstore.leader.role is LeaderRole.WRITER
    await vectorstore.close()
