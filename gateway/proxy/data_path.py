"""What all connections share: the gate, the pool, the limits, and the clock that ends what waits too long."""

import asyncio
import itertools
import os
from typing import Any

import structlog

from gateway.proxy.client import ClientConnection
from gateway.proxy.gate import Gate
from gateway.proxy.limits import Limits
from gateway.proxy.upstream import Pool

log = structlog.get_logger()


class DataPath:
    """The way of `/api/` requests. `uvicorn.Config(http=…)` takes it for a protocol class."""

    def __init__(self, gate: Gate, host: str, port: int, limits: Limits) -> None:
        self.gate, self.limits = gate, limits
        self.pool = Pool(host, port, limits.max_in_flight, limits.max_queued)
        self.clients: set[ClientConnection] = set()
        self._run = os.urandom(4).hex().encode()
        self._numbers = itertools.count(1)

    def __call__(self, **uvicorn: Any) -> ClientConnection:
        """The protocol of one more client."""
        return ClientConnection(self, **uvicorn)

    def new_id(self) -> bytes:
        """A request id that no other request of any run has."""
        return b"%b-%x" % (self._run, next(self._numbers))

    async def watch_the_clock(self) -> None:
        """End what waits too long, until cancelled. One clock for all: a timer per request would cost every request."""
        limits = self.limits
        shortest_s = min(limits.client_timeout_s, limits.queue_timeout_s, limits.read_timeout_s, limits.keep_alive_s)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, shortest_s / 4))
            now_s = loop.time()
            for client in self.clients.copy():
                try:
                    client.check(now_s)
                except Exception:  # one client's trouble must not stop the clock for all
                    log.exception("a connection could not be checked")

    def close(self) -> None:
        """Break off whatever is left, on both sides."""
        for client in self.clients.copy():
            client.transport.abort()
        self.pool.close()
