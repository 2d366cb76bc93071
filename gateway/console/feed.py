"""The feed: one producer of events for all consoles, so that ten cost hardly more than one.

It works while there is a subscriber. A subscriber that reads slowly misses events: it gets the newest one next, and
nothing is queued for it.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import Any

import structlog

from gateway.errors import GatewayError, Overloaded

log = structlog.get_logger()

EVERY_S = 1.0
MAX_SUBSCRIBERS = 64
MAX_OF_ONE_KEY = 16
_AGAIN_S = 10.0


def _event(name: str, body: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(body, separators=(',', ':'), default=_as_json)}\n\n"


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


class Feed:
    """Server-sent events `overview`, each with what `produce` returned. Used from the event loop's thread."""

    def __init__(
        self,
        produce: Callable[[], Awaitable[dict[str, Any]]],
        beside: Callable[[], Awaitable[None]],
        every_s: float = EVERY_S,
    ) -> None:
        """`beside` gathers what takes long. It runs while there is a subscriber, and again if it ends."""
        self._produce, self._beside, self._every_s = produce, beside, every_s
        self._newest, self._number = "", 0
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._by_key = Counter[str]()

    @property
    def subscribers(self) -> int:
        return self._by_key.total()

    def require_place(self, key: str) -> None:
        """Raise Overloaded if there are as many subscribers as there may be, or the process ends.

        `key`: the name of the subscriber's key. One key cannot take all places.
        """
        if self._closed or self.subscribers >= MAX_SUBSCRIBERS:
            raise Overloaded(f"{self.subscribers} consoles are open already", "close one, or try again later")
        if self._by_key[key] >= MAX_OF_ONE_KEY:
            raise Overloaded(
                f"{self._by_key[key]} consoles are open with the key {key} already",
                "close one, or sign in with another key",
            )

    async def events(self, key: str) -> AsyncGenerator[str, None]:
        """Yield the newest event, then each new one, until `close`."""
        self._by_key[key] += 1
        if not self._tasks:
            self._newest, self._number = "", 0
            self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._run_beside())]
        seen = 0
        try:
            while not self._closed:
                changed = self._changed
                if self._number == seen:
                    await changed.wait()
                    continue
                seen = self._number
                yield self._newest
        finally:
            self._by_key[key] -= 1
            if not self.subscribers:
                self._stop()

    def close(self) -> None:
        """End all streams, and let none begin: the process ends."""
        self._closed = True
        self._wake()
        self._stop()

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _work(self) -> None:
        while True:
            try:
                self._newest = _event("overview", await self._produce())
            except GatewayError as error:
                self._newest = _event("problem", error.body())
            except Exception as error:
                log.error("the overview of the console cannot be made", exc_info=error)
                unexpected = GatewayError("the gateway failed unexpectedly", "its log says more")
                self._newest = _event("problem", unexpected.body())
            self._number += 1
            self._wake()
            await asyncio.sleep(self._every_s)

    async def _run_beside(self) -> None:
        while True:
            try:
                await self._beside()
            except Exception as error:  # any: the overview goes on, with what was gathered before
                log.error("what the console shows cannot be gathered, trying again", exc_info=error)
            await asyncio.sleep(_AGAIN_S)
