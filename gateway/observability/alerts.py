"""Failures are told to `GATEWAY_ALERT_URL`: one POST of JSON for each, tried again until it is accepted.

A failed operation is told each time. A state that is wrong is told once when it begins (`watch`), and again after it
was right in between. The URL is a secret, since anybody who knows it can raise alarms: it is never logged. httpx names
it in its errors, so those are not logged either.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog

from gateway.aio import cancel
from gateway.errors import GatewayError

log = structlog.get_logger()

EVENTS = {
    "snapshot-failed": "a snapshot failed",
    "final-snapshot-failed": "the final snapshot failed: what was written since the one before is not in the store",
    "gateway-failed": "the gateway ends with an error",
    "data-dir-gone": "the data directory is gone, so writes are refused",
    "lease-lost": "writes are refused: another gateway has the lease, or these data are older than the store's",
    "store-refused": "the store cannot be asked, or refuses the gateway",
    "store-damaged": "snapshots cannot be restored, as manifests or packs are missing or damaged in the store",
    "gc-failed": "a garbage collection failed, so the store grows",
    "journal-behind": "what was written has not reached the store for a minute",
    "index-torn": "an index is torn, or a collection cannot be read",
}
"""What each event means, by its name in JSON."""

_PAUSES_S = (1.0, 5.0, 30.0, 120.0, 600.0)
_TIMEOUT_S = 10.0
_MOST_PENDING = 100
# A state that is wrong for one look only is not worth a call at night.
_LOOK_EVERY_S = 5.0


class Alerts:
    """Sends events in the background to `url`; without one it does nothing."""

    def __init__(
        self,
        url: str | None,
        source: Mapping[str, Any],
        *,
        timeout_s: float = _TIMEOUT_S,
        pauses_s: tuple[float, ...] = _PAUSES_S,
    ) -> None:
        """`source` says in each message which gateway it comes from. `pauses_s` are the times between the attempts."""
        self._url, self._source, self._timeout_s, self._pauses_s = url, source, timeout_s, pauses_s
        self._pending: set[asyncio.Task[None]] = set()

    def send(self, event: str, message: str, hint: str | None = None) -> bool:
        """Tell of `event`, one of `EVENTS`. Returns at once, False if it was dropped, and never raises."""
        if self._url is None:
            return True
        if len(self._pending) >= _MOST_PENDING:
            log.error("an alert is dropped, as too many others wait to be accepted", alert=event)
            return False
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = f"Chroma Gateway {self._source.get('where', '')}: {EVENTS[event]}. {message}"
        body = {"event": event, "text": text, "message": message, "hint": hint, "at": now, **self._source}
        task = asyncio.create_task(self._deliver(self._url, event, body))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return True

    def send_error(self, event: str, error: GatewayError) -> None:
        """As `send`, of an error."""
        self.send(event, error.message, error.hint)

    async def watch(self, problems: Callable[[], Mapping[str, str]]) -> None:
        """Tell of each of `problems()`, which are messages by event, that is there at two looks, until cancelled."""
        told, seen = set[str](), frozenset[str]()
        while True:
            found = problems()
            for event in (found.keys() & seen) - told:
                if self.send(event, found[event]):
                    told.add(event)
            told &= found.keys()
            seen = frozenset(found)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def close(self, timeout_s: float) -> None:
        """Wait until what was sent is accepted, for at most `timeout_s`, and drop the rest."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=timeout_s)
        await cancel(*self._pending)

    async def _deliver(self, url: str, event: str, body: Mapping[str, Any]) -> None:
        for pause_s in (*self._pauses_s, None):
            cause, is_final = await self._try(url, body)
            if cause is None:
                return
            if is_final or pause_s is None:
                log.error("an alert was not accepted", alert=event, cause=cause)
                return
            log.warning("an alert was not accepted, trying again", alert=event, cause=cause, pause_s=pause_s)
            await asyncio.sleep(pause_s)

    async def _try(self, url: str, body: Mapping[str, Any]) -> tuple[str | None, bool]:
        """Why it was not accepted, None if it was; and whether trying again is of no use."""
        try:
            async with asyncio.timeout(self._timeout_s):
                # Reads the certificates of all authorities, for tens of milliseconds.
                client = await asyncio.to_thread(httpx.AsyncClient, timeout=self._timeout_s)
                async with client:
                    answer = await client.post(url, json=body)
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            return type(error).__name__, False
        except httpx.InvalidURL as error:
            return type(error).__name__, True
        if answer.is_success:
            return None, True
        may_pass = answer.is_server_error or answer.status_code in (
            httpx.codes.REQUEST_TIMEOUT,
            httpx.codes.TOO_MANY_REQUESTS,
        )
        return f"status {answer.status_code}", not may_pass
