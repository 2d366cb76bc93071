"""What an operator can ask for, one thing at a time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from gateway.chroma.database import write_lock
from gateway.chroma.directory import DataDirectory
from gateway.errors import Conflict, GatewayError
from gateway.snapshot.create import Hold, Snapshotter, Source
from gateway.snapshot.model import Snapshot
from gateway.snapshot.repository import Repository
from gateway.snapshot.restore import Chroma, restore_live, try_out

log = structlog.get_logger()

Refuse = Callable[[str], AbstractAsyncContextManager[None]]


class Operations:
    """Snapshot, restore, delete and quiesce. A second one while one runs raises Conflict."""

    def __init__(
        self,
        repository: Repository,
        directory: DataDirectory,
        source: Source,
        chroma: Chroma,
        hold: Hold,
        refuse: Refuse,
    ) -> None:
        self.repository = repository
        self._directory, self._source, self._chroma = directory, source, chroma
        self._hold, self._refuse = hold, refuse
        self.snapshotter = Snapshotter(repository, directory, source, hold)
        self._quiesced: _Quiesced | None = None
        self.current: str | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.restored_bytes: tuple[int, int] | None = None
        self.last_error: dict[str, Any] | None = None

    @contextlib.contextmanager
    def _claim(self, what: str) -> Iterator[None]:
        if self.current is not None:
            raise Conflict(
                f"{self.current} is under way",
                "wait for it, or for POST /admin/resume; see GET /admin/status",
            )
        self.current = what
        self._idle.clear()
        try:
            yield
        finally:
            self.current = None
            self._idle.set()

    async def until_idle(self) -> None:
        """Wait for the operation under way, if there is one."""
        await self._idle.wait()

    async def snapshot(self, label: str | None = None) -> Snapshot:
        """Take a snapshot; see `create_snapshot`."""
        with self._claim("a snapshot"):
            try:
                snapshot = await self.snapshotter.take(label)
            except GatewayError as error:
                self.last_error = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **error.body()}
                raise
            self.last_error = None
            return snapshot

    async def restore(self, name: str) -> Snapshot:
        """Go back to a snapshot while running; see `restore_live`."""
        with self._claim(f"the restore of snapshot {name}"):
            snapshot_id = await self.repository.resolve(name)
            self.snapshotter.forget()
            try:
                return await restore_live(
                    self.repository,
                    self._directory,
                    self._chroma,
                    self._refuse,
                    snapshot_id,
                    self._note_restored,
                )
            finally:
                self.restored_bytes = None

    def _note_restored(self, done: int, total: int) -> None:
        self.restored_bytes = (done, total)

    async def begin(self) -> None:
        """Take over from an earlier gateway on this directory that may have died at any point of a restore.

        Chroma is started if it was left stopped. An exchange that was not settled is settled or rolled
        back; requests are refused until then, from the first step of this coroutine on.
        """
        with self._claim("the start"), contextlib.suppress(GatewayError):
            if not self._directory.is_exchanging():
                await self._chroma.ensure_running()
                return
            async with self._refuse("an interrupted restore is being finished"):
                await try_out(self._directory, self._chroma)

    async def delete(self, name: str) -> None:
        """Remove a snapshot; see `Repository.delete`."""
        with self._claim(f"the deletion of snapshot {name}"):
            await self.repository.delete(await self.repository.resolve(name))

    # ------------------------------------------------------------------ for snapshots made by others

    async def quiesce(self, ttl_s: float) -> dict[str, Any]:
        """Hold writes back until `resume`, at most `ttl_s`; return when the disk is quiet.

        The gate is closed and drained and SQLite's write lock held, so that the disk can be
        snapshotted from outside. Raises Conflict, QuiesceTimeout.
        """
        stack = contextlib.AsyncExitStack()
        async with contextlib.AsyncExitStack() as entering:
            entering.enter_context(self._claim("a quiesce"))
            self._source.require_served()
            drain_ms = await entering.enter_async_context(self._hold())
            await entering.enter_async_context(_in_thread(lambda: write_lock(self._directory.path)))
            stack = entering.pop_all()
        self._quiesced = _Quiesced(stack, ttl_s, self._expire)
        log.info("quiesced", ttl_s=ttl_s, drain_ms=drain_ms)
        return {"state": "closed", "expires_at": self._quiesced.expires_at, "drain_ms": round(drain_ms, 3)}

    async def resume(self) -> bool:
        """End a quiesce; say whether there was one."""
        quiesced, self._quiesced = self._quiesced, None
        if quiesced is None:
            return False
        await quiesced.end()
        log.info("resumed")
        return True

    async def _expire(self) -> None:
        log.warning("the quiesce was not resumed in time, writes go on")
        await self.resume()


class _Quiesced:
    """A quiesce under way, and the timer that ends it if nobody does."""

    def __init__(self, stack: contextlib.AsyncExitStack, ttl_s: float, on_expiry: Callable[[], Any]) -> None:
        self._stack = stack
        self.expires_at = (datetime.now(UTC) + timedelta(seconds=ttl_s)).isoformat(timespec="milliseconds")
        self._timer = asyncio.create_task(self._expire(ttl_s, on_expiry))

    async def _expire(self, ttl_s: float, on_expiry: Callable[[], Any]) -> None:
        await asyncio.sleep(ttl_s)
        await on_expiry()

    async def end(self) -> None:
        if self._timer is not asyncio.current_task():
            self._timer.cancel()
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def _in_thread(make: Callable[[], contextlib.AbstractContextManager[None]]) -> AsyncIterator[None]:
    """Enter and leave a blocking context manager in threads."""
    manager = make()
    await asyncio.to_thread(manager.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


async def snapshot_regularly(operations: Operations, interval_s: float) -> None:
    """Take a snapshot every `interval_s`, until cancelled. A failure is logged; the next turn tries again."""
    due = time.monotonic() + interval_s
    while True:
        await asyncio.sleep(max(0, due - time.monotonic()))
        due += interval_s * max(1, (time.monotonic() - due) // interval_s + 1)
        try:
            await operations.snapshot("scheduled")
        except GatewayError as error:
            log.error("the scheduled snapshot failed", cause=str(error))
        except Exception:
            log.exception("the scheduled snapshot failed")
