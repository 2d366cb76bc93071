"""One request to Chroma and its response: through the gate, to a connection, and back to the client.

    received ──► admitted by the gate ──► connected ──► response started ──► response ended
       │ 400, 413      │ 503 (gate, restore)  │ 503 (full, down)  │ 502, 504        the ticket ends
       └── a body of up to HELD_BYTES is received completely before anything else happens

So a slow client holds neither a ticket nor a slot, and a read that met a dead connection can be sent again.

Longer bodies stream. Where Chroma acts on the whole body only, all but the last piece is sent without a ticket, so a
slow client still holds none.

A write that Chroma received completely keeps its ticket until Chroma responds, even if the client disconnects. If
Chroma did not receive it completely, its connection is closed, so that Chroma never takes a part for the whole.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import structlog

from gateway.auth.access import StaticResponse
from gateway.errors import BadUpstream, ClientTooSlow, GatewayError, Overloaded, Unavailable, UpstreamTimeout
from gateway.proxy.counters import BROKEN, CLIENT_GONE, RequestCounter
from gateway.proxy.framing import LAST_CHUNK, Body, Chunked, UntilClose, chunk
from gateway.proxy.gate import Gate, Ticket
from gateway.proxy.heads import RequestHead, ResponseHead
from gateway.proxy.observer import RequestObserver
from gateway.proxy.responses import error_response, static_response
from gateway.proxy.upstream import Pool, UpstreamConnection

if TYPE_CHECKING:
    from gateway.proxy.client import ClientConnection

log = structlog.get_logger()

HELD_BYTES = 64 * 1024
_FAILED = 500
# While other requests wait for a slot, an upload that has one must go on at a minimum rate, after a grace period.
# Otherwise slow clients could keep all slots.
_UPLOAD_GRACE_S = 5.0
_MIN_UPLOAD_BYTES_PER_S = 64 * 1024


class ProxiedRequest:
    """Not thread-safe: use it from the event loop."""

    # Initial values. They are on the class because setting them on each instance costs time for each request.
    received = False
    """Whether the request was received completely."""
    responding = False
    """Whether the response has begun."""
    ended = False
    has_slot = False
    _begun = _retried = _chunks = _close = False
    _holds_last_piece = False  # sends without a ticket, all but the last piece
    _upstream_paused = False  # Chroma reads more slowly than the client sends
    _repeatable = False  # all of it is in `_held`, and Chroma may get it twice
    _held_bytes = _streamed_bytes = 0
    _status = CLIENT_GONE
    _sent_at_s = 0.0  # when Chroma was sent the request
    observer: RequestObserver | None = None
    extra_headers = b""
    """Header lines that are added to the response."""
    upstream_headers = b""
    """Header lines that are added to the request to Chroma."""
    _ticket: Ticket | None = None  # None while it counts as a read
    _epoch: int | None = None  # the gate's epoch when it admitted this; None before
    _admission: asyncio.Task[None] | None = None
    _upstream: UpstreamConnection | None = None
    _waits_since_s: float | None = None

    def __init__(
        self,
        client: "ClientConnection",
        head: RequestHead,
        request_id: bytes,
        gate: Gate,
        pool: Pool,
        counter: RequestCounter,
    ) -> None:
        self._client, self.head, self._request_id = client, head, request_id
        self._gate, self._pool, self._counter = gate, pool, counter
        self._began_at_s = client.last_activity_s
        self._held: list[bytes] = []
        self._last_piece = b""

    # ------------------------------------------------------------------ the client's side

    def receive(self, data: bytes, *, complete: bool) -> None:
        """The next piece of the request's body, framed for Chroma. `complete` says that it is the last one."""
        self.received = complete
        if self._upstream is not None:
            self._streamed_bytes += len(data)
            if self._holds_last_piece:
                data = self._hold_back(data)
            self._upstream.send(data)
            if complete and self._holds_last_piece:
                self._acquire_for_last_piece()
            return
        if data:
            self._held.append(data)
            self._held_bytes += len(data)
        if not self._begun and (complete or self._held_bytes > HELD_BYTES):
            self._begin()
        if self._held_bytes > HELD_BYTES and self._upstream is None and not self.ended:
            self._client.pause_reading()

    def client_disconnected(self) -> None:
        """The client closed its connection."""
        if self.ended:
            return
        self._cancel_admission()
        if self._upstream is None:
            self._end()
        elif self._ticket is None or not self.received:
            self._upstream.abort()
            self._end()
        else:
            self._upstream.resume()

    def client_write_paused(self) -> None:
        """The client reads more slowly than it is sent."""
        if self._upstream is not None:
            self._upstream.pause()

    def client_write_resumed(self) -> None:
        if self._upstream is not None:
            self._upstream.resume()

    def check_timeouts(self, now_s: float, queue_timeout_s: float, read_timeout_s: float) -> None:
        """End the request if it waited too long.

        A write that Chroma received has no time limit: it holds its ticket until Chroma responds.
        """
        upstream = self._upstream
        if upstream is None:
            if self._epoch is None:
                return  # it waits for the gate, which has its own timeout
            self._waits_since_s = self._waits_since_s or now_s
            if now_s - self._waits_since_s > queue_timeout_s:
                self.fail(Overloaded(f"this request waited {queue_timeout_s:g} s for its turn", "send it again"))
        elif not self.received and not self.responding and not self._upstream_paused and self._pool.queued:
            late_s = now_s - self._sent_at_s - _UPLOAD_GRACE_S
            if late_s > 0 and self._streamed_bytes < late_s * _MIN_UPLOAD_BYTES_PER_S:
                upstream.abort()
                self.fail(ClientTooSlow("this request arrived too slowly while others waited", "send it again"))
        elif (
            self._ticket is None
            and self.received
            and not self._client.write_paused
            and now_s - upstream.last_activity_s > read_timeout_s
        ):
            upstream.abort()
            self._break_off(UpstreamTimeout(f"Chroma did not answer within {read_timeout_s:g} s"))

    # ------------------------------------------------------------------ the gate

    def _begin(self) -> None:
        self._begun = True
        head, gate = self.head, self._gate
        try:
            if gate.lets_pass(head.route):
                gate.begin_read()
            elif head.route.whole_body and not self.received:
                gate.begin_read()
                self._holds_last_piece = True
            else:
                self._ticket = gate.try_acquire(head.what, head.route.collection_id, head.route.touches)
                if self._ticket is None:
                    self._admission = asyncio.create_task(self._acquire())
                    return
        except GatewayError as error:
            self.fail(error)
            return
        self._admitted()

    async def _acquire(self) -> None:
        route = self.head.route
        try:
            self._ticket = await self._gate.acquire(self.head.what, route.collection_id, route.touches)
        except GatewayError as error:
            self.fail(error)
            return
        finally:
            self._admission = None
        self._admitted()

    def _hold_back(self, data: bytes) -> bytes:
        """Keep `data` and return the piece before it: Chroma must not have the whole body yet."""
        if not data:
            return b""
        earlier, self._last_piece = self._last_piece, data
        return earlier

    def _acquire_for_last_piece(self) -> None:
        """The body is complete, and Chroma has all but the last piece. Send that one with a ticket."""
        route = self.head.route
        ticket = self._gate.try_acquire(self.head.what, route.collection_id, route.touches)
        if ticket is None:
            self._pool.release(self)  # writes that wait for the gate must not take the slots of reads
            self._admission = asyncio.create_task(self._wait_to_send_last_piece())
        else:
            self._send_last_piece(ticket)

    async def _wait_to_send_last_piece(self) -> None:
        route = self.head.route
        try:
            ticket = await self._gate.acquire(self.head.what, route.collection_id, route.touches)
        except GatewayError as error:
            if self._upstream is not None:
                self._upstream.abort()
            self.fail(error)
            return
        finally:
            self._admission = None
        self._send_last_piece(ticket)

    def _send_last_piece(self, ticket: Ticket) -> None:
        if self._upstream is None or self.ended:
            self._gate.release(ticket)
            return
        self._holds_last_piece, self._ticket = False, ticket
        self._gate.end_read()
        self._gate.sending(ticket)
        self._upstream.send(self._last_piece)
        self._last_piece = b""

    def _admitted(self) -> None:
        self._epoch = self._gate.epoch
        self._pool.submit(self)

    def _cancel_admission(self) -> None:
        if self._admission is not None:
            self._admission.cancel()

    def _leave_gate(self) -> None:
        if self._epoch is None:
            return
        self._epoch = None
        if self._ticket is None:
            self._gate.end_read()
        else:
            self._gate.release(self._ticket)
            self._ticket = None

    def _begin_again(self, unused: UpstreamConnection) -> None:
        """Start over at the gate. Nothing was sent yet."""
        self._pool.keep_idle(unused)
        self._pool.release(self)
        self._leave_gate()
        self._holds_last_piece = False
        self._begin()

    # ------------------------------------------------------------------ Chroma's side

    def connected(self, upstream: UpstreamConnection) -> None:
        """Send what was received so far."""
        if self._epoch != self._gate.epoch:
            # Chroma was restarted meanwhile, so a collection that was warm is not.
            self._begin_again(upstream)
            return
        self._upstream = upstream
        client, head = self._client, self.head
        client.resume_reading()
        address = client.forwarded_for
        if head.forwarded_for is not None:
            address = head.forwarded_for + b", " + address
        lines = b"%bx-forwarded-for: %b\r\nx-request-id: %b\r\n%b\r\n" % (
            head.upstream,
            address,
            self._request_id,
            self.upstream_headers,
        )
        if self._holds_last_piece:
            self._last_piece = self._held.pop()
        if self._ticket is not None:
            self._gate.sending(self._ticket)
        upstream.start(self, b"".join((lines, *self._held)) if self._held else lines)
        self._sent_at_s = upstream.last_activity_s
        self._repeatable = head.idempotent and self.received and not self._holds_last_piece
        if not self._repeatable:
            self._held, self._held_bytes = [], 0
        if self._holds_last_piece and self.received:
            self._acquire_for_last_piece()

    def response_started(self, head: ResponseHead, body: Body, payload: bytes) -> None:
        """Pass on the head, and the part of the body that came with it."""
        self.responding, self._status = True, head.status
        if self._upstream is not None:
            self._counter.upstream.add(self._upstream.last_activity_s - self._sent_at_s)
            if self._counter.note is not None:
                now_s = self._upstream.last_activity_s
                self._counter.note(self.head.route.touches, head.status, head.length_bytes, self._epoch, now_s)
        if self.observer is not None:
            self.observer.response_started()
        if head.status == _FAILED and self.head.route.touches is not None:
            self._gate.quarantine.doubt(self.head.route.touches)
        if self._ticket is not None:
            # Chroma's handlers return complete JSON values (`rust/frontend/src/server.rs`), so the work is done when
            # the response begins. A client that reads slowly must not hold the ticket.
            self._gate.release_at_response(self._ticket, done=head.status == 200)
            self._ticket = None
        self._send_head(head, body, payload)

    def _send_head(self, head: ResponseHead, body: Body, payload: bytes) -> None:
        client = self._client
        http_1_0, unframed = self.head.http_1_0, isinstance(body, UntilClose)
        lines, end = head.client, b"\r\n"
        if isinstance(body, Chunked):
            self._chunks, unframed = not http_1_0, http_1_0
        self._close = unframed or client.closing or not self.head.keep_alive or not self.received
        if self._close:
            end = b"connection: close\r\n\r\n"
        elif http_1_0:
            end = b"connection: keep-alive\r\n\r\n"
        if http_1_0:
            lines = lines.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        if self._chunks:
            end = b"transfer-encoding: chunked\r\n" + end
            payload = chunk(payload) + LAST_CHUNK if body.complete else chunk(payload)
        client.write(b"%bx-request-id: %b\r\n%b%b%b" % (lines, self._request_id, self.extra_headers, end, payload))

    def response_continued(self, body: Body, payload: bytes) -> None:
        """Pass on more of the body."""
        if self._chunks:
            payload = chunk(payload) + LAST_CHUNK if body.complete else chunk(payload)
        self._client.write(payload)

    def response_ended(self) -> None:
        """Chroma's response is complete."""
        self._end()
        self._client.response_ended(close=self._close or not self.received)

    def upstream_lost(self, upstream: UpstreamConnection, cause: str) -> None:
        """The connection broke before the response was complete. How much Chroma received is not known."""
        self._upstream = None
        if self._holds_last_piece and not self.responding:
            self._cancel_admission()
            self.fail(Unavailable("Chroma stopped before it had the whole request", "nothing happened; send it again"))
            return
        # Chroma closed a kept connection while the request was on its way.
        was_stale = upstream.reused and not upstream.received_any
        if self._repeatable and was_stale and not self._retried:
            self._retried = True
            self._pool.submit_on_new_connection(self)
        else:
            hint = None if self.head.idempotent else "it may or may not have happened; look at GET /readyz"
            self._break_off(BadUpstream(f"Chroma broke off before it answered: {cause}", hint))

    def upstream_write_paused(self) -> None:
        """Chroma reads more slowly than the client sends."""
        self._upstream_paused = True
        self._client.pause_reading()

    def upstream_write_resumed(self) -> None:
        self._upstream_paused = False
        self._client.resume_reading()

    # ------------------------------------------------------------------ ends

    def fail(self, error: GatewayError) -> None:
        """Respond with `error`. Chroma's response must not have begun."""
        self._respond(error.status, partial(error_response, error))

    def _respond_static(self, response: StaticResponse) -> None:
        self._respond(response.status, partial(static_response, response))

    @property
    def _no_body(self) -> bool:
        return self.head.method == b"HEAD"

    def _respond(self, status: int, render: Callable[..., bytes]) -> None:
        if self.ended:
            return
        close = self._client.closing or not self.head.keep_alive or not self.received
        self._status = status
        self._end()
        response = render(self._request_id, close=close, no_body=self._no_body, extra_headers=self.extra_headers)
        self._client.write(response)
        self._client.response_ended(close=close)

    def _break_off(self, error: GatewayError) -> None:
        """Respond with `error`; or, if the response has begun, reset the client's connection."""
        if not self.responding:
            self.fail(error)
            return
        log.warning(
            "response broke off",
            what=self.head.what,
            cause=error.message,
            request_id=self._request_id.decode("latin-1"),
        )
        self._status = BROKEN
        self._end()
        self._client.reset()

    def _end(self) -> None:
        self.ended = True
        upstream = self._upstream
        ended_at_s = asyncio.get_running_loop().time() if upstream is None else upstream.last_activity_s
        self._counter.add(self._status, ended_at_s - self._began_at_s)
        if self.observer is not None:
            self.observer.ended(self._status)
        self._upstream = None
        self._leave_gate()
        if not self.head.route.probe:
            self._pool.release(self)
