"""Scheduled snapshots, and the garbage collection after each.

1. Wait until a snapshot is due.
2. Skip it if nothing changed since the last one.
3. Take the snapshot.
4. Tell the dead man's switch.
5. Apply retention and collect garbage.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import httpx
import structlog
from dateutil import tz

from gateway.aio import cancel
from gateway.errors import GatewayError, LeaseLost
from gateway.snapshot.retention import OwnLabel
from gateway.snapshot.schedule import Schedule
from gateway.snapshot.unsaved_writes import UnsavedWrites

log = structlog.get_logger()

# A clock that was set, or a machine that slept, is noticed within this time.
_LONGEST_SLEEP_S = 30.0
_PING_TIMEOUT_S = 10.0


async def run_schedule(
    schedule: Schedule,
    unsaved_writes: UnsavedWrites,
    snapshot: Callable[[str], Awaitable[Any]],
    tidy: Callable[[], Awaitable[Any]],
    ping: Callable[[], None],
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Take snapshots as they are due, until cancelled. A failure is logged, and the next due time tries again."""
    while True:
        await _sleep_until_due(schedule, now)
        await run_once(unsaved_writes, snapshot, tidy, ping)


async def _sleep_until_due(schedule: Schedule, now: Callable[[], datetime]) -> None:
    looked = now()
    due = schedule.after(looked)
    while (left_s := (due - looked).total_seconds()) > 0:
        await asyncio.sleep(min(left_s, _LONGEST_SLEEP_S))
        before, looked = looked, now()
        if looked < before:  # the clock was set back
            due = schedule.after(looked)


async def run_once(
    unsaved_writes: UnsavedWrites,
    snapshot: Callable[[str], Awaitable[Any]],
    tidy: Callable[[], Awaitable[Any]],
    ping: Callable[[], None],
) -> None:
    """Take one snapshot if anything changed. Does not raise. `ping` is called only if a snapshot was taken."""
    if not unsaved_writes.any:
        log.debug("scheduled snapshot skipped, nothing changed since the last one")
        return
    try:
        await snapshot(OwnLabel.SCHEDULED)
    except LeaseLost as error:
        log.debug("scheduled snapshot skipped, this gateway does not hold the lease", cause=error.message)
        return
    except GatewayError as error:
        log.error("the scheduled snapshot failed", cause=str(error))
        return
    except Exception:
        log.exception("the scheduled snapshot failed")
        return
    ping()
    try:
        await tidy()
    except GatewayError as error:
        log.error("the garbage collection failed", cause=str(error))
    except Exception:
        log.exception("the garbage collection failed")


class DeadMansSwitch:
    """A URL that is called after every successful snapshot. A monitor raises an alarm if the calls stop.

    A snapshot does not wait for the call. A failed call is a line in the log.
    """

    def __init__(self, url: str | None, timeout_s: float = _PING_TIMEOUT_S) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._pings: set[asyncio.Task[None]] = set()

    def ping(self) -> None:
        """Call the URL in the background, if there is one."""
        if self._url:
            task = asyncio.create_task(self._call(self._url))
            self._pings.add(task)
            task.add_done_callback(self._pings.discard)

    async def close(self) -> None:
        """Cancel the calls that are under way."""
        await cancel(*self._pings)

    async def _call(self, url: str) -> None:
        # The URL is a secret, since it identifies the switch. httpx names it in its errors, so those are not logged.
        try:
            async with asyncio.timeout(self._timeout_s):
                # Reads the certificates of all authorities, for tens of milliseconds.
                client = await asyncio.to_thread(httpx.AsyncClient, timeout=self._timeout_s)
                async with client:
                    answer = await client.get(url)
            if answer.is_error:
                log.warning("the dead man's switch answered with an error", status=answer.status_code)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            log.warning("the dead man's switch cannot be reached", cause=type(error).__name__)


def steady_clock() -> Callable[[], datetime]:
    """A clock that shows the time now and goes on steadily, also when the machine's clock is set."""
    start, began_s = datetime.now(UTC), time.monotonic()
    return lambda: start + timedelta(seconds=time.monotonic() - began_s)


def local_zone() -> tzinfo:
    """The time zone of this machine, with its daylight saving: `TZ`, else /etc/localtime, else UTC."""
    return tz.gettz() or UTC
