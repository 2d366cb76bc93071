"""Take a snapshot: the recipe."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import structlog

from gateway.chroma.directory import DataDirectory
from gateway.chroma.process import chroma_version
from gateway.errors import StoreError
from gateway.snapshot.capture import (
    COPY_IN_FREEZE_BYTES,
    Ahead,
    Cut,
    TooMuchMoved,
    describe,
    freeze,
    pack_cut,
    read_ahead,
)
from gateway.snapshot.model import Manifest, MigrationRow, Snapshot, SnapshotCollection, new_snapshot_id
from gateway.snapshot.packing import PackWriter
from gateway.snapshot.parallel import to_its_end
from gateway.snapshot.repository import Repository

log = structlog.get_logger()

Hold = Callable[[], AbstractAsyncContextManager[float]]
"""Closes the gate and drains it for the time of the block; yields the drain in ms."""

_TRIES = 3


class Source(Protocol):
    """What taking a snapshot asks of the running Chroma."""

    def require_served(self) -> int:
        """A number for Chroma's present run. Raises Unavailable unless all of its data can be read."""
        ...

    async def require_same_run(self, run: int) -> None:
        """Raise Unavailable if Chroma's process ended since: files may be torn."""
        ...


async def create_snapshot(
    repository: Repository, directory: DataDirectory, chroma: Source, hold: Hold, label: str | None
) -> Snapshot:
    """Take a snapshot and return it once its manifest is stored.

    After an error nothing is listed that was not there before, save for StoreUnavailable while the
    manifest was being written: then it is there whole or not at all. Safe to retry. Only one may run
    at a time. Raises Unavailable, QuiesceTimeout, DiskFull, StoreError.
    """
    started, run = time.monotonic(), chroma.require_served()
    await repository.make()
    newest = await repository.newest_id()
    scratch = await asyncio.to_thread(directory.scratch)
    try:
        async with PackWriter(repository, await repository.packs()) as writer:
            ahead = Ahead()
            await read_ahead(directory.path, ahead, writer)
            cut, created_at, drain_ms, freeze_ms = await _make_cut(directory.path, ahead, scratch, hold, writer)
            try:
                await chroma.require_same_run(run)
                # To its end: a reader must not be closed under a copy that is being made of it.
                contents = await to_its_end(describe, cut, scratch)
            finally:
                await to_its_end(cut.close)
            packed = await pack_cut(cut, ahead, scratch, writer)
        # The writer has waited: every pack is stored before the manifest names it.
        packs, files = writer.finish(packed)
        snapshot = Snapshot(
            id=new_snapshot_id(created_at, newest),
            label=label,
            created_at=created_at,
            size_bytes=sum(file.size_bytes for file in files),
            uploaded_bytes=writer.uploaded_bytes,
            files=len(files),
            collections=tuple(SnapshotCollection(**collection._asdict()) for collection in contents.collections),
            chroma_version=chroma_version(),
            duration_s=round(time.monotonic() - started, 3),
            drain_ms=round(drain_ms, 3),
            freeze_ms=round(freeze_ms, 3),
        )
        await repository.publish(
            Manifest(
                snapshot=snapshot,
                migrations=tuple(MigrationRow(**row._asdict()) for row in contents.migrations),
                segments=contents.segments,
                packs=packs,
                files=files,
            )
        )
    finally:
        await asyncio.to_thread(directory.drop_scratch)
    with contextlib.suppress(StoreError):  # what is left over costs space, not the snapshot
        await writer.drop_unused(packs)
    log.info(
        "snapshot taken",
        snapshot=snapshot.id,
        size_bytes=snapshot.size_bytes,
        uploaded_bytes=snapshot.uploaded_bytes,
        duration_s=snapshot.duration_s,
        drain_ms=snapshot.drain_ms,
        freeze_ms=snapshot.freeze_ms,
    )
    return snapshot


async def _make_cut(
    data_dir: Path, ahead: Ahead, scratch: Path, hold: Hold, writer: PackWriter
) -> tuple[Cut, datetime, float, float]:
    """Hold the gate and freeze; if too much moved since it was read ahead, read ahead again and retry.

    The last try copies whatever moved while the gate is held. Returns the cut, its moment, and how
    long its drain and its freeze took, in ms.
    """
    for last in [False] * (_TRIES - 1) + [True]:
        async with hold() as drain_ms:
            frozen_at, created_at = time.monotonic(), datetime.now(UTC)
            limit = None if last else COPY_IN_FREEZE_BYTES
            result = await to_its_end(freeze, data_dir, ahead, scratch, limit, undo=_let_go)
        freeze_ms = (time.monotonic() - frozen_at) * 1e3
        if isinstance(result, Cut):
            return result, created_at, drain_ms, freeze_ms
        log.info("indexes moved while they were read, reading them again", moved_bytes=result.size_bytes)
        await read_ahead(data_dir, ahead, writer)
    raise AssertionError("the last try always cuts")


def _let_go(result: Cut | TooMuchMoved) -> None:
    result.close()
