"""Scheduled snapshots are taken when due, are skipped when nothing changed, and report only success."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import structlog

from gateway.errors import GatewayError, LeaseLost, StorageUnavailable
from gateway.snapshot import scheduler
from gateway.snapshot.schedule import Cron, Every
from gateway.snapshot.scheduler import DeadMansSwitch, run_once, run_schedule
from gateway.snapshot.unsaved_writes import UnsavedWrites


class Day:
    """What happened, in order."""

    def __init__(self, changed: bool = True, fails: dict[str, Exception] | None = None) -> None:
        self.count, self.happened = 0, list[str]()
        self.unsaved_writes = UnsavedWrites(lambda: self.count)
        if not changed:
            self.unsaved_writes.cut()
            self.unsaved_writes.saved()
        self.fails = fails or {}

    async def snapshot(self, label: str) -> None:
        self._do(label)
        self.unsaved_writes.cut()
        self.unsaved_writes.saved()

    async def tidy(self) -> None:
        self._do("tidy")

    def ping(self) -> None:
        self._do("ping")

    def _do(self, what: str) -> None:
        self.happened.append(what)
        if what in self.fails:
            raise self.fails[what]

    async def run(self) -> list[str]:
        await run_once(self.unsaved_writes, self.snapshot, self.tidy, self.ping)
        return self.happened


async def test_snapshot_then_ping_then_garbage_collection() -> None:
    """In this order."""
    assert await Day().run() == ["scheduled", "ping", "tidy"]


async def test_without_changes_nothing_is_done() -> None:
    """No snapshot and no ping, until something is written."""
    day = Day(changed=False)
    assert await day.run() == []
    day.count += 1
    assert await day.run() == ["scheduled", "ping", "tidy"]
    assert await day.run() == ["scheduled", "ping", "tidy"]


@pytest.mark.parametrize(
    "error", [StorageUnavailable("down"), LeaseLost("another"), GatewayError("x"), ValueError("y")]
)
async def test_only_success_is_reported(error: Exception) -> None:
    """After a failed snapshot there is no ping. No error is raised."""
    assert await Day(fails={"scheduled": error}).run() == ["scheduled"]


async def test_failed_collection_does_not_undo_the_report() -> None:
    """The snapshot succeeded, and the ping was sent."""
    assert await Day(fails={"tidy": ValueError("y")}).run() == ["scheduled", "ping", "tidy"]


async def test_snapshots_are_taken_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one when it is due by the clock, also after a failure."""
    monkeypatch.setattr(scheduler, "_LONGEST_SLEEP_S", 0.01)
    clock, day, third = datetime(2026, 11, 20, tzinfo=UTC), Day(), asyncio.Event()
    due: list[datetime] = []
    day.fails["scheduled"] = StorageUnavailable("down")

    def now() -> datetime:
        nonlocal clock
        clock += timedelta(seconds=5)  # every reading moves the clock on
        return clock

    async def snapshot(label: str) -> None:
        due.append(clock)
        if len(due) == 3:
            third.set()
        await day.snapshot(label)

    running = asyncio.create_task(run_schedule(Every(clock, 9), day.unsaved_writes, snapshot, day.tidy, day.ping, now))
    await asyncio.wait_for(third.wait(), 20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert all(9 <= (b - a).total_seconds() <= 20 for a, b in pairwise(due))


async def test_a_clock_that_is_set_back_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was due in an hour by the old time is due in an hour by the new one, not in a day and an hour."""
    clock, taken = datetime(2026, 11, 20, 2, tzinfo=UTC), list[datetime]()

    async def sleep(seconds: float) -> None:
        nonlocal clock
        clock += timedelta(seconds=seconds)
        if clock.hour == 2 and clock.minute == 30 and clock.day == 20:
            clock -= timedelta(days=1)

    async def snapshot(_label: str) -> None:
        taken.append(clock)
        raise asyncio.CancelledError

    day = Day()
    monkeypatch.setattr("asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await run_schedule(Cron("0 3 * * *"), day.unsaved_writes, snapshot, day.tidy, day.ping, lambda: clock)
    assert taken == [datetime(2026, 11, 19, 3, tzinfo=UTC)]


# ---------------------------------------------------------------------- the switch


@asynccontextmanager
async def listener(answer: bytes) -> AsyncIterator[tuple[str, list[bytes], asyncio.Event]]:
    """An HTTP server that sends `answer` to every request, or nothing at all."""
    heard: list[bytes] = []
    came, over = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        heard.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        came.set()
        if answer:
            stream.write(answer)
        else:
            await over.wait()
        stream.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret", heard, came
    finally:
        over.set()
        server.close()
        await server.wait_closed()


async def test_switch_is_called() -> None:
    """Once for each ping."""
    async with listener(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (url, heard, came):
        switch = DeadMansSwitch(url)
        switch.ping()
        await asyncio.wait_for(came.wait(), 5)
        await switch.close()
        assert heard == [b"GET /secret HTTP/1.1"]


async def test_switch_that_does_not_answer_delays_nothing() -> None:
    """The ping returns at once, and the call has a time limit."""
    async with listener(b"") as (url, _, came):
        switch = DeadMansSwitch(url, timeout_s=2)
        switch.ping()
        await asyncio.wait_for(came.wait(), 5)
        await asyncio.wait_for(asyncio.gather(*switch._pings), 5)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", b"nonsense\r\n\r\n", None])
async def test_failed_switch_is_logged(answer: bytes | None) -> None:
    """Without its URL, which is a secret."""
    with structlog.testing.capture_logs() as lines:
        async with listener(answer or b"") as (url, _, _):
            if answer is not None:
                await _pinged(url)
        if answer is None:
            await _pinged(url)  # the server has ended
    assert [line["log_level"] for line in lines] == ["warning"]
    assert "secret" not in str(lines)


async def _pinged(url: str) -> Any:
    switch = DeadMansSwitch(url)
    switch.ping()
    await asyncio.wait_for(asyncio.gather(*switch._pings), 20)


async def test_no_call_without_a_url() -> None:
    """It is off by default."""
    switch = DeadMansSwitch(None)
    switch.ping()
    assert not switch._pings
