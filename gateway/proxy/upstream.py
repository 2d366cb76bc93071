"""Connections to Chroma: they are kept, and only so many requests are in progress on them.

At most `max_in_flight` requests have a *slot*. Up to `max_queued` more wait for one, first come, first served.
Probes (heartbeats and the like) need none.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from gateway.errors import Overloaded, Unavailable
from gateway.proxy.framing import BadFraming, Body, UntilClose
from gateway.proxy.heads import END_OF_HEAD, MAX_HEAD_BYTES, ResponseHead, parse_response

if TYPE_CHECKING:
    from gateway.proxy.proxied_request import ProxiedRequest

_CONNECT_TIMEOUT_S = 5
_MAX_IDLE = 256  # probes have no slot, so their number has no other limit
_SWITCHING_PROTOCOLS = 101
_FIRST_FINAL_STATUS = 200


class UpstreamConnection(asyncio.Protocol):
    """One connection to Chroma. It carries one request at a time, and is kept for the next."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._request: ProxiedRequest | None = None
        self._body: Body | None = None  # of the current response, once its head is complete
        self._buffer = b""  # of an incomplete head
        self._keep_alive = True
        self._paused = False
        self._protocol_error: str | None = None
        self.reused = False
        """Whether it carried a request before the current one."""
        self.received_any = False
        """Whether any byte of the current response came."""
        self.last_activity_s = 0.0
        """When it last sent or received, by the event loop's clock."""

    def start(self, request: "ProxiedRequest", data: bytes) -> None:
        """Send `data`, the beginning of `request`, and pass the response to `request`."""
        self._request, self.received_any, self.last_activity_s = request, False, self._loop.time()
        self._transport.write(data)

    def send(self, data: bytes) -> None:
        """Send more of the request."""
        self.last_activity_s = self._loop.time()
        self._transport.write(data)

    def abort(self) -> None:
        """Close the connection at once: nothing needs the response, so Chroma can stop working on it."""
        self._request = None
        self._transport.abort()

    def pause(self) -> None:
        """Read no more of the response until `resume`."""
        if not self._paused and self.is_open:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading the response."""
        self.last_activity_s = self._loop.time()
        if self._paused and self.is_open:
            self._paused = False
            self._transport.resume_reading()

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as this side knows."""
        return not self._transport.is_closing()

    # ------------------------------------------------------------------ called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # of TCP
        self._pool.add(self)

    def data_received(self, data: bytes) -> None:
        request = self._request
        if request is None:
            self._transport.abort()  # these bytes must not become the response to the next request
            return
        self.received_any, self.last_activity_s = True, self._loop.time()
        try:
            body = self._body
            if body is None:
                head, data = self._read_head(data)
                if head is None:
                    return
                self._keep_alive = head.keep_alive
                self._body = body = head.body(request.head.method)
                payload, rest = body.take(data)
                request.response_started(head, body, payload)
            else:
                payload, rest = body.take(data)
                request.response_continued(body, payload)
        except BadFraming as error:
            self._protocol_error = f"it sent an invalid response: {error}"
            self._transport.abort()
            return
        if body.complete and self._request is request:
            self._finish(request, reusable=self._keep_alive and request.received and not rest)

    def _read_head(self, data: bytes) -> tuple[ResponseHead | None, bytes]:
        """The head of the final response, None while it is incomplete, and what follows it. Skips 1xx."""
        data = self._buffer + data if self._buffer else data
        while (end := data.find(END_OF_HEAD) + len(END_OF_HEAD)) >= len(END_OF_HEAD):
            head, data = parse_response(data[:end]), data[end:]
            if head.status == _SWITCHING_PROTOCOLS:
                raise BadFraming("Chroma changed the protocol")
            if head.status >= _FIRST_FINAL_STATUS:
                self._buffer = b""
                return head, data
        if len(data) > MAX_HEAD_BYTES:
            raise BadFraming("its head does not end")
        self._buffer = data
        return None, b""

    def _finish(self, request: "ProxiedRequest", *, reusable: bool) -> None:
        self._request = self._body = None
        if reusable:
            if self._paused:
                self.resume()
            self.reused = True
            self._pool.keep_idle(self)
        else:
            self._transport.abort()
        request.response_ended()

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.remove(self)
        request, self._request = self._request, None
        if request is None:
            return
        if error is None and isinstance(self._body, UntilClose) and self._protocol_error is None:
            request.response_ended()
        else:
            request.upstream_lost(self, self._protocol_error or str(error or "the connection was closed"))

    def pause_writing(self) -> None:
        if self._request is not None:
            self._request.upstream_write_paused()

    def resume_writing(self) -> None:
        if self._request is not None:
            self._request.upstream_write_resumed()


class Pool:
    """All connections to the one Chroma at `host` and `port`."""

    def __init__(self, host: str, port: int, max_in_flight: int, max_queued: int) -> None:
        self._host, self._port = host, port
        self._max_in_flight, self._max_queued = max_in_flight, max_queued
        self._idle: list[UpstreamConnection] = []  # the last one used goes first, so that the others can be closed
        self._all: set[UpstreamConnection] = set()
        self._queue: deque[ProxiedRequest] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self.in_flight = 0

    @property
    def queued(self) -> int:
        return len(self._queue)

    def submit(self, request: "ProxiedRequest") -> None:
        """Give `request` a connection now or later, or fail it with Overloaded or Unavailable.

        The caller must call `release`, except for a probe.
        """
        if request.head.route.probe:
            self._connect(request)
        elif self.in_flight < self._max_in_flight:
            self.in_flight += 1
            request.has_slot = True
            self._connect(request)
        elif len(self._queue) < self._max_queued:
            self._queue.append(request)
        else:
            request.fail(
                Overloaded(f"{self._max_queued} requests wait for Chroma already", "send it again, a little later")
            )

    def submit_on_new_connection(self, request: "ProxiedRequest") -> None:
        """Give `request`, which has its slot, a connection that was never used."""
        task = asyncio.create_task(self._open(request))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def release(self, request: "ProxiedRequest") -> None:
        """Take back the slot of `request` and give it to the next in the queue; or remove `request` from the queue."""
        if request.has_slot:
            request.has_slot = False
            self.in_flight -= 1
            while self._queue and self.in_flight < self._max_in_flight:
                self.submit(self._queue.popleft())
        elif self._queue and request in self._queue:
            self._queue.remove(request)

    def add(self, connection: UpstreamConnection) -> None:
        """A connection was opened."""
        self._all.add(connection)

    def keep_idle(self, connection: UpstreamConnection) -> None:
        """Keep a connection for the next request, or close it if there are `_MAX_IDLE` already."""
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.abort()

    def remove(self, connection: UpstreamConnection) -> None:
        """A connection was closed."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close all connections at once."""
        for task in self._connecting:
            task.cancel()
        for connection in self._all.copy():
            connection.abort()

    def _connect(self, request: "ProxiedRequest") -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                request.connected(connection)
                return
        self.submit_on_new_connection(request)

    async def _open(self, request: "ProxiedRequest") -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(lambda: UpstreamConnection(self), self._host, self._port)
        except (OSError, TimeoutError):
            if not request.ended:
                request.fail(
                    Unavailable(
                        "Chroma is not running just now", "it is being started; try again, or look at GET /readyz"
                    )
                )
            return
        if request.ended:
            self.keep_idle(connection)
        else:
            request.connected(connection)
