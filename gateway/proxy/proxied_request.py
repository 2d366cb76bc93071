"""One request to Chroma and its answer: through the gate, to a connection, and back to the client.

    received ──► admitted by the gate ──► connected ──► answer begins ──► answer ended
       │ 400, 413      │ 503 (gate, restore)  │ 503 (full, down)  │ 502, 504        the ticket ends
       └── a body of up to HELD_BYTES is received whole before anything else happens

So a slow client holds neither a ticket nor a slot, and a read that met a dead connection can be sent again.
Longer bodies stream; where Chroma acts on the whole body only, all but the last piece goes up without a ticket,
so that a slow client still holds none. Whatever the client does, a write that Chroma was given whole keeps its
ticket until Chroma answers; what Chroma was not given whole is broken off, so that it never takes a part for all.
"""

import asyncio
from typing import Protocol

import structlog

from gateway.errors import BadUpstream, ClientTooSlow, GatewayError, Overloaded, Unavailable, UpstreamTimeout
from gateway.proxy.answers import error_answer
from gateway.proxy.counters import BROKEN, CLIENT_GONE, RequestCounter
from gateway.proxy.framing import LAST_CHUNK, Body, Chunked, UntilClose, chunk
from gateway.proxy.gate import Gate, Ticket
from gateway.proxy.heads import RequestHead, ResponseHead
from gateway.proxy.upstream import Pool, Upstream

log = structlog.get_logger()

HELD_BYTES = 64 * 1024
# Where others wait for a slot, a request that has one must arrive; a client that is slow on purpose would keep it.
_MAY_BE_SLOW_S = 5.0
_LEAST_BYTES_PER_S = 64 * 1024


class Client(Protocol):
    """Who asked, as the exchange sees it."""

    forwarded_for: bytes
    """The address to name in `X-Forwarded-For`."""
    moved_at_s: float
    """When the client last sent something."""
    closing: bool
    """Whether the present answer is the last in any case."""
    slow: bool
    """Whether it takes less than it is sent."""

    def write(self, data: bytes) -> None: ...

    def stop_reading(self) -> None: ...

    def read_on(self) -> None: ...

    def answer_ended(self, *, last: bool) -> None: ...

    def break_off(self) -> None:
        """End the connection so that the client cannot take what it got for all of the answer."""


class Companion(Protocol):
    """Wants to know how an exchange goes on."""

    def answered(self) -> None:
        """Chroma's answer begins, and the client knows nothing of it yet."""

    def ended(self, status: int) -> None:
        """It is over, with this status or one of `counter`'s stand-ins."""


class ProxiedRequest:
    """Used from the event loop's thread only."""

    # Where every exchange begins. On the class, because setting them costs every request.
    received = False
    """Whether the request is here whole."""
    answering = False
    over = False
    has_slot = False
    _begun = _retried = _chunks = _last = False
    _awaits_end = False  # streams up without a ticket, all but its last piece
    _held_up = False  # by Chroma, which takes less than the client sends
    _can_repeat = False  # all of it is in `_held`, and Chroma may be asked twice
    _held_bytes = _streamed_bytes = 0
    _status = CLIENT_GONE
    _asked_at_s = 0.0  # when Chroma was given the request
    companion: Companion | None = None
    extra = b""
    """Header lines that the answer gets besides its own."""
    asked_with = b""
    """Header lines that Chroma is given besides the client's."""
    _ticket: Ticket | None = None  # admitted as a write; or else as a read
    _epoch: int | None = None  # of the gate, when it admitted this
    _admission: asyncio.Task[None] | None = None
    _upstream: Upstream | None = None
    _waits_since_s: float | None = None

    def __init__(
        self,
        client: Client,
        head: RequestHead,
        request_id: bytes,
        gate: Gate,
        pool: Pool,
        counter: RequestCounter,
    ) -> None:
        self._client, self.head, self._request_id = client, head, request_id
        self._gate, self._pool, self._counter = gate, pool, counter
        self._began_at_s = client.moved_at_s
        self._held: list[bytes] = []
        self._back = b""  # the piece that is held back

    # ------------------------------------------------------------------ the client's side

    def receive(self, data: bytes, *, complete: bool) -> None:
        """The next piece of the request's body, framed for Chroma; or nothing, and `complete`."""
        self.received = complete
        if self._upstream is not None:
            self._streamed_bytes += len(data)
            if self._awaits_end:
                data = self._hold_back(data)
            self._upstream.send(data)
            if complete and self._awaits_end:
                self._admit_the_end()
            return
        if data:
            self._held.append(data)
            self._held_bytes += len(data)
        if not self._begun and (complete or self._held_bytes > HELD_BYTES):
            self._begin()
        if self._held_bytes > HELD_BYTES and self._upstream is None and not self.over:
            self._client.stop_reading()

    def client_gone(self) -> None:
        """The client hung up."""
        if self.over:
            return
        self._stop_waiting()
        if self._upstream is None:
            self._end()
        elif self._ticket is None or not self.received:
            self._upstream.drop()
            self._end()
        else:
            self._upstream.resume()

    def client_full(self) -> None:
        """The client takes less than it is sent."""
        if self._upstream is not None:
            self._upstream.pause()

    def client_ready(self) -> None:
        if self._upstream is not None:
            self._upstream.resume()

    def check(self, now_s: float, queue_timeout_s: float, read_timeout_s: float) -> None:
        """End what waited too long. A write that Chroma was given has no time limit: it must stay accounted for."""
        upstream = self._upstream
        if upstream is None:
            if self._epoch is None:
                return  # for the gate it waits by the gate's own clock
            self._waits_since_s = self._waits_since_s or now_s
            if now_s - self._waits_since_s > queue_timeout_s:
                self.fail(Overloaded(f"this request waited {queue_timeout_s:g} s for its turn", "send it again"))
        elif not self.received and not self.answering and not self._held_up and self._pool.queued:
            asked_s = now_s - self._asked_at_s - _MAY_BE_SLOW_S
            if asked_s > 0 and self._streamed_bytes < asked_s * _LEAST_BYTES_PER_S:
                upstream.drop()
                self.fail(ClientTooSlow("this request arrived too slowly while others waited", "send it again"))
        elif (
            self._ticket is None
            and self.received
            and not self._client.slow
            and now_s - upstream.heard_at_s > read_timeout_s
        ):
            upstream.drop()
            self._broken(UpstreamTimeout(f"Chroma did not answer within {read_timeout_s:g} s"))

    # ------------------------------------------------------------------ the gate

    def _begin(self) -> None:
        self._begun = True
        head, gate = self.head, self._gate
        try:
            if gate.lets_pass(head.route):
                gate.begin_read()
            elif head.route.acts_on_whole_body and not self.received:
                gate.begin_read()
                self._awaits_end = True
            else:
                self._ticket = gate.enter_now(head.what, head.route.collection_id)
                if self._ticket is None:
                    self._admission = asyncio.create_task(self._wait_for_the_gate())
                    return
        except GatewayError as error:
            self.fail(error)
            return
        self._admitted()

    async def _wait_for_the_gate(self) -> None:
        try:
            self._ticket = await self._gate.enter(self.head.what, self.head.route.collection_id)
        except GatewayError as error:
            self.fail(error)
            return
        finally:
            self._admission = None
        self._admitted()

    def _hold_back(self, data: bytes) -> bytes:
        """Keep `data`, return what was kept before: Chroma must not have all of it yet."""
        if not data:
            return b""
        earlier, self._back = self._back, data
        return earlier

    def _admit_the_end(self) -> None:
        """All is here, all but the last piece is with Chroma: that one goes up under a ticket."""
        ticket = self._gate.enter_now(self.head.what, self.head.route.collection_id)
        if ticket is None:
            self._pool.leave(self)  # reads must find a slot, however many writes wait here
            self._admission = asyncio.create_task(self._wait_to_send_the_end())
        else:
            self._send_the_end(ticket)

    async def _wait_to_send_the_end(self) -> None:
        try:
            ticket = await self._gate.enter(self.head.what, self.head.route.collection_id)
        except GatewayError as error:
            if self._upstream is not None:
                self._upstream.drop()
            self.fail(error)
            return
        finally:
            self._admission = None
        self._send_the_end(ticket)

    def _send_the_end(self, ticket: Ticket) -> None:
        if self._upstream is None or self.over:
            self._gate.leave(ticket)
            return
        self._awaits_end, self._ticket = False, ticket
        self._gate.end_read()
        self._upstream.send(self._back)
        self._back = b""

    def _admitted(self) -> None:
        self._epoch = self._gate.epoch
        self._pool.ask(self)

    def _stop_waiting(self) -> None:
        if self._admission is not None:
            self._admission.cancel()

    def _leave_the_gate(self) -> None:
        if self._epoch is None:
            return
        self._epoch = None
        if self._ticket is None:
            self._gate.end_read()
        else:
            self._gate.leave(self._ticket)
            self._ticket = None

    # ------------------------------------------------------------------ Chroma's side

    def connected(self, upstream: Upstream) -> None:
        """Send what there is so far."""
        if self._epoch != self._gate.epoch:
            # Chroma was restarted while this waited: tickets were forgotten, and what was warm is cold.
            self._pool.keep(upstream)
            self._pool.leave(self)
            self._leave_the_gate()
            self._awaits_end = False
            self._begin()
            return
        self._upstream = upstream
        client, head = self._client, self.head
        client.read_on()
        address = client.forwarded_for
        if head.forwarded_for is not None:
            address = head.forwarded_for + b", " + address
        lines = b"%bx-forwarded-for: %b\r\nx-request-id: %b\r\n%b\r\n" % (
            head.upstream,
            address,
            self._request_id,
            self.asked_with,
        )
        if self._awaits_end:
            self._back = self._held.pop()
        upstream.begin(self, b"".join((lines, *self._held)) if self._held else lines)
        self._asked_at_s = upstream.heard_at_s
        self._can_repeat = head.idempotent and self.received and not self._awaits_end
        if not self._can_repeat:
            self._held, self._held_bytes = [], 0
        if self._awaits_end and self.received:
            self._admit_the_end()

    def answer_begins(self, head: ResponseHead, body: Body, payload: bytes) -> None:
        """Pass the head on, and what is here of the body."""
        client = self._client
        self.answering, self._status = True, head.status
        if self._upstream is not None:
            self._counter.upstream.add(self._upstream.heard_at_s - self._asked_at_s)
        if self.companion is not None:
            self.companion.answered()
        if self._ticket is not None:
            # Chroma's handlers return whole JSON values (`rust/frontend/src/server.rs`): once an answer begins
            # the work is done, and a client that reads it slowly holds nobody up.
            self._gate.answered(self._ticket, done=head.status == 200)
            self._ticket = None
        old, unframed = self.head.old, isinstance(body, UntilClose)
        lines, end = head.client, b"\r\n"
        if isinstance(body, Chunked):
            self._chunks, unframed = not old, old
        self._last = unframed or client.closing or not self.head.keep_alive or not self.received
        if self._last:
            end = b"connection: close\r\n\r\n"
        elif old:
            end = b"connection: keep-alive\r\n\r\n"
        if old:
            lines = lines.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        if self._chunks:
            end = b"transfer-encoding: chunked\r\n" + end
            payload = chunk(payload) + LAST_CHUNK if body.complete else chunk(payload)
        client.write(b"%bx-request-id: %b\r\n%b%b%b" % (lines, self._request_id, self.extra, end, payload))

    def answer_goes_on(self, body: Body, payload: bytes) -> None:
        """Pass on what came of the body."""
        if self._chunks:
            payload = chunk(payload) + LAST_CHUNK if body.complete else chunk(payload)
        self._client.write(payload)

    def answer_ended(self) -> None:
        """Chroma has said all it had to say."""
        self._end()
        self._client.answer_ended(last=self._last or not self.received)

    def upstream_lost(self, upstream: Upstream, cause: str) -> None:
        """The connection broke. Nobody knows how much of the request Chroma has seen."""
        self._upstream = None
        if self._awaits_end and not self.answering:
            self._stop_waiting()
            self.fail(Unavailable("Chroma stopped before it had the whole request", "nothing happened; send it again"))
            return
        again = self._can_repeat and upstream.reused and not upstream.heard
        if again and not self._retried:
            self._retried = True
            self._pool.ask_anew(self)
        else:
            hint = None if self.head.idempotent else "it may or may not have happened; look at GET /readyz"
            self._broken(BadUpstream(f"Chroma broke off before it answered: {cause}", hint))

    def upstream_full(self) -> None:
        self._held_up = True
        self._client.stop_reading()

    def upstream_ready(self) -> None:
        self._held_up = False
        self._client.read_on()

    # ------------------------------------------------------------------ ends

    def fail(self, error: GatewayError) -> None:
        """Answer with `error`: Chroma's own answer has not begun, and will not."""
        if self.over:
            return
        last = self._client.closing or not self.head.keep_alive or not self.received
        bare = self.head.method == b"HEAD"
        self._status = error.status
        self._end()
        self._client.write(error_answer(error, self._request_id, close=last, bare=bare, extra=self.extra))
        self._client.answer_ended(last=last)

    def _broken(self, error: GatewayError) -> None:
        if not self.answering:
            self.fail(error)
            return
        log.warning(
            "an answer broke off in the middle",
            what=self.head.what,
            cause=error.message,
            request_id=self._request_id.decode("latin-1"),
        )
        self._status = BROKEN
        self._end()
        self._client.break_off()

    def _end(self) -> None:
        self.over = True
        upstream = self._upstream
        ended_at_s = asyncio.get_running_loop().time() if upstream is None else upstream.heard_at_s
        self._counter.add(self._status, ended_at_s - self._began_at_s)
        if self.companion is not None:
            self.companion.ended(self._status)
        self._upstream = None
        self._leave_the_gate()
        if not self.head.probe:
            self._pool.leave(self)
