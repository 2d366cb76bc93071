"""The last snapshot is taken, whatever else goes on."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.aio import shielded
from gateway.config import Settings
from gateway.errors import Conflict, LeaseLost
from gateway.jobs import Progress
from gateway.server import lifecycle
from gateway.server.container import storage_of, vectorstore_of
from gateway.snapshot import operations
from gateway.snapshot.retention import OwnLabel
from gateway.vectorstore import VectorStore
from tests.unit.snapshot.manifests import manifest


def made(path: Path) -> VectorStore:
    settings = Settings(data_dir=path / "data", store=f"file://{path}/store", journal_interval_s=0)
    return vectorstore_of(settings, storage_of(settings))


async def test_it_waits_for_other_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for one that begins at the very moment at which the one before it ends."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/chroma.sqlite3").write_bytes(b"not empty")
    vectorstore = made(tmp_path)
    tries: list[str] = []

    async def snapshot(label: str) -> Any:
        tries.append(label)
        if len(tries) < 3:
            raise Conflict("a garbage collection is under way")
        vectorstore.operations.unsaved_writes.cut()
        vectorstore.operations.unsaved_writes.saved()
        return type("Taken", (), {"id": "an id"})

    monkeypatch.setattr(vectorstore.operations, "snapshot", snapshot)
    await asyncio.wait_for(vectorstore.leader._save(), 10)
    assert tries == ["handover"] * 3
    await asyncio.wait_for(vectorstore._save(OwnLabel.HANDOVER), 10)
    assert len(tries) == 3, "nothing changed since"


async def test_an_upload_saves_nothing_of_what_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the newest snapshot, of other data: a new container would find those, not what was acknowledged here."""
    vectorstore = made(tmp_path)
    vectorstore.directory.make()
    vectorstore.operations.unsaved_writes.cut()
    vectorstore.operations.unsaved_writes.saved()

    async def published(*_: object) -> Any:
        async with vectorstore.repository._leader.publishing("20261120T210455Z-3f9a1c"):
            pass
        return manifest().snapshot

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    monkeypatch.setattr(operations, "import_tar", published)
    await vectorstore.leader.require()
    assert not vectorstore.operations.unsaved_writes.any
    await vectorstore.operations.import_tar(nothing(), None, 1, Progress(), asyncio.Event())
    assert vectorstore.operations.unsaved_writes.any


async def test_a_stop_does_not_wait_for_ever_for_what_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduled snapshot whose bytes are on their way to a store that does not answer keeps nobody from ending."""
    monkeypatch.setattr(lifecycle, "_JOBS_END_S", 0.05)
    answer, ended = asyncio.Event(), asyncio.Event()

    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
            raise Conflict("it fails at its end")

    stuck = asyncio.create_task(shielded(answer.wait()))
    other = asyncio.create_task(failing())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await lifecycle._end(stuck, other)
    assert (stuck.done(), ended.is_set()) == (False, True)
    answer.set()
    await stuck


async def test_a_last_snapshot_that_fails_whatever_it_fails_of_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the exit status too: an error that nobody thought of is no success."""
    vectorstore = made(tmp_path)

    async def broken(*_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(vectorstore, "_save", broken)
    monkeypatch.setattr(vectorstore, "_drain", broken)
    assert await vectorstore.save_final(lambda: 5.0) is not None


async def test_no_write_is_let_through_after_the_last_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that takes longer than the grace is turned away: acknowledged it would be in no snapshot."""
    vectorstore = made(tmp_path)
    refusals: list[str | None] = []

    async def note(*_: object) -> None:
        refusals.append(vectorstore.gate.write_refusal)

    monkeypatch.setattr(vectorstore, "_save", note)
    monkeypatch.setattr(vectorstore, "_drain", note)
    await vectorstore.save_final(lambda: 5.0)
    assert refusals == ["this gateway is stopping"]
    with pytest.raises(LeaseLost, match="stopping"):
        await vectorstore.gate.acquire("upsert")
