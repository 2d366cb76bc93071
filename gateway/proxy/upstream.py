"""The side towards Chroma: connections that are kept, and how many requests may be under way on them.

At most `max_in_flight` exchanges have a *slot*; up to `max_queued` more wait for one, first come, first
served. Probes (heartbeats and the like) need none.
"""

import asyncio
from collections import deque
from typing import Protocol

from gateway.errors import GatewayError, Overloaded, Unavailable
from gateway.proxy.framing import BadFraming, Body, UntilClose
from gateway.proxy.heads import END_OF_HEAD, MAX_HEAD_BYTES, RequestHead, ResponseHead, response_head

_CONNECT_TIMEOUT_S = 5
_MAX_IDLE = 256  # probes come on top of what may be in flight, and could leave any number behind
_SWITCHING_PROTOCOLS = 101
_FIRST_FINAL_STATUS = 200


class Asker(Protocol):
    """One request, as its connection to Chroma sees it."""

    head: RequestHead
    received: bool
    over: bool
    has_slot: bool

    def connected(self, upstream: "Upstream") -> None:
        """`upstream` is this request's now."""

    def fail(self, error: GatewayError) -> None:
        """There is no connection for it."""

    def answer_begins(self, head: ResponseHead, body: Body, payload: bytes) -> None: ...

    def answer_goes_on(self, body: Body, payload: bytes) -> None: ...

    def answer_ended(self) -> None: ...

    def upstream_lost(self, upstream: "Upstream", cause: str) -> None:
        """The connection broke before the answer ended."""

    def upstream_full(self) -> None:
        """Chroma takes less than it is sent: send no more until `upstream_ready`."""

    def upstream_ready(self) -> None: ...


class Upstream(asyncio.Protocol):
    """One connection to Chroma. Carries one exchange at a time, and is kept for the next."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._asker: Asker | None = None
        self._body: Body | None = None  # of the answer under way, once its head is here
        self._rest = b""  # of an unfinished head
        self._keep_alive = True
        self._paused = False
        self._nonsense: str | None = None
        self.reused = False
        self.heard = False
        self.heard_at_s = 0.0

    def begin(self, asker: Asker, data: bytes) -> None:
        """Carry `asker`'s exchange: send `data`, tell it the answer."""
        self._asker, self.heard, self.heard_at_s = asker, False, self._loop.time()
        self._transport.write(data)

    def send(self, data: bytes) -> None:
        """More of the request."""
        self.heard_at_s = self._loop.time()
        self._transport.write(data)

    def drop(self) -> None:
        """Nobody wants the answer any more: break off, so that Chroma need not work on it."""
        self._asker = None
        self._transport.abort()

    def pause(self) -> None:
        """Take no more of the answer until `resume`."""
        if not self._paused and self.usable:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on taking the answer."""
        self.heard_at_s = self._loop.time()
        if self._paused and self.usable:
            self._paused = False
            self._transport.resume_reading()

    @property
    def usable(self) -> bool:
        """Whether there is still somebody at the other end, as far as we know."""
        return not self._transport.is_closing()

    # ------------------------------------------------------------------ called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # of TCP
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        asker = self._asker
        if asker is None:
            self._transport.abort()  # an answer that nobody asked for must never meet the next question
            return
        self.heard, self.heard_at_s = True, self._loop.time()
        try:
            body = self._body
            if body is None:
                head, data = self._take_head(data)
                if head is None:
                    return
                self._keep_alive = head.keep_alive
                self._body = body = head.body(asker.head.method)
                payload, rest = body.take(data)
                asker.answer_begins(head, body, payload)
            else:
                payload, rest = body.take(data)
                asker.answer_goes_on(body, payload)
        except BadFraming as error:
            self._nonsense = f"it answered nonsense: {error}"
            self._transport.abort()
            return
        if body.complete and self._asker is asker:
            self._finish(asker, reusable=self._keep_alive and asker.received and not rest)

    def _take_head(self, data: bytes) -> tuple[ResponseHead | None, bytes]:
        """The final answer's head, once it is all here, and what follows it. 1xx is passed over."""
        data = self._rest + data if self._rest else data
        while (end := data.find(END_OF_HEAD) + len(END_OF_HEAD)) >= len(END_OF_HEAD):
            head, data = response_head(data[:end]), data[end:]
            if head.status == _SWITCHING_PROTOCOLS:
                raise BadFraming("Chroma changed the protocol, unasked")
            if head.status >= _FIRST_FINAL_STATUS:
                self._rest = b""
                return head, data
        if len(data) > MAX_HEAD_BYTES:
            raise BadFraming("its head does not end")
        self._rest = data
        return None, b""

    def _finish(self, asker: Asker, *, reusable: bool) -> None:
        self._asker = self._body = None
        if reusable:
            if self._paused:
                self.resume()
            self.reused = True
            self._pool.keep(self)
        else:
            self._transport.abort()
        asker.answer_ended()

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.forget(self)
        asker, self._asker = self._asker, None
        if asker is None:
            return
        if error is None and isinstance(self._body, UntilClose) and self._nonsense is None:
            asker.answer_ended()
        else:
            asker.upstream_lost(self, self._nonsense or str(error or "the connection was closed"))

    def pause_writing(self) -> None:
        if self._asker is not None:
            self._asker.upstream_full()

    def resume_writing(self) -> None:
        if self._asker is not None:
            self._asker.upstream_ready()


class Pool:
    """All connections to the one Chroma, at `host` and `port`."""

    def __init__(self, host: str, port: int, max_in_flight: int, max_queued: int) -> None:
        self._host, self._port = host, port
        self._max_in_flight, self._max_queued = max_in_flight, max_queued
        self._idle: list[Upstream] = []  # the one used last goes first: the others may be let go some day
        self._all: set[Upstream] = set()
        self._queue: deque[Asker] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self.in_flight = 0

    @property
    def queued(self) -> int:
        return len(self._queue)

    def ask(self, asker: Asker) -> None:
        """Give `asker` a connection, now or later; or fail it with Overloaded or Unavailable."""
        if asker.head.probe:
            self._serve(asker)
        elif self.in_flight < self._max_in_flight:
            self.in_flight += 1
            asker.has_slot = True
            self._serve(asker)
        elif len(self._queue) < self._max_queued:
            self._queue.append(asker)
        else:
            asker.fail(
                Overloaded(f"{self._max_queued} requests wait for Chroma already", "send it again, a little later")
            )

    def ask_anew(self, asker: Asker) -> None:
        """Give `asker`, which has what it needs but for a connection that works, one that was never used."""
        task = asyncio.create_task(self._connect(asker))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def leave(self, asker: Asker) -> None:
        """`asker` needs nothing any more: its slot goes to the next, its place in the queue is free."""
        if asker.has_slot:
            asker.has_slot = False
            self.in_flight -= 1
            while self._queue and self.in_flight < self._max_in_flight:
                self.ask(self._queue.popleft())
        elif self._queue and asker in self._queue:
            self._queue.remove(asker)

    def opened(self, upstream: Upstream) -> None:
        """There is one connection more."""
        self._all.add(upstream)

    def keep(self, upstream: Upstream) -> None:
        """An idle connection is there for the next, unless there are plenty."""
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(upstream)
        else:
            upstream.drop()

    def forget(self, upstream: Upstream) -> None:
        """A connection is gone."""
        self._all.discard(upstream)
        if upstream in self._idle:
            self._idle.remove(upstream)

    def close(self) -> None:
        """Break off whatever is left."""
        for task in self._connecting:
            task.cancel()
        for upstream in self._all.copy():
            upstream.drop()

    def _serve(self, asker: Asker) -> None:
        while self._idle:
            upstream = self._idle.pop()
            if upstream.usable:
                asker.connected(upstream)
                return
        self.ask_anew(asker)

    async def _connect(self, asker: Asker) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, upstream = await loop.create_connection(lambda: Upstream(self), self._host, self._port)
        except (OSError, TimeoutError):
            if not asker.over:
                asker.fail(
                    Unavailable(
                        "Chroma is not running just now", "it is being started; try again, or look at GET /readyz"
                    )
                )
            return
        if asker.over:
            self.keep(upstream)
        else:
            asker.connected(upstream)
