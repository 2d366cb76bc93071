"""The connection of one client: its requests one after the other, and their responses in order.

A subclass of uvicorn's httptools protocol, installed with `uvicorn.Config(http=…)`. It parses heads itself. Requests to
`/api/` become proxied requests; all others are passed to uvicorn's own parser, message by message, and the ASGI
application answers them.
"""

import re
import socket
import struct
from asyncio import Transport
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import BodyTooLarge, ClientTooSlow, GatewayError, HeadTooLarge, InvalidRequest
from gateway.proxy.framing import LAST_CHUNK, BadFraming, Body, Chunked, chunk
from gateway.proxy.heads import END_OF_HEAD, MAX_HEAD_BYTES
from gateway.proxy.local_response import LocalResponse
from gateway.proxy.policy import Decision
from gateway.proxy.proxied_request import HELD_BYTES, ProxiedRequest
from gateway.proxy.responses import CONTINUE, HTTP_2_GOAWAY, error_response

if TYPE_CHECKING:
    from gateway.proxy.data_path import DataPath

_HTTP_2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"  # `SM` and an empty line follow
_BARE_LF = re.compile(rb"(?<!\r)\n")
# After a refusal the rest of the request is read and discarded for so long. If the connection were closed at once, the
# client could see a reset before it reads the response.
_LINGER_S = 2.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ClientConnection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, data_path: "DataPath", **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._data_path = data_path
        self._buffer = b""  # received, not parsed yet
        self._body: Body | None = None  # of the request that is being received
        self._received_bytes = self._max_body_bytes = 0
        self._request: ProxiedRequest | LocalResponse | None = None
        self._in_application = False  # the ASGI application has the current request
        self._is_noted = False  # counted in `gateway.proxy.usage`
        self._advancing = self._yielding = False
        self._linger_until_s: float | None = None
        self.last_activity_s = self.loop.time()
        """When bytes last came, or a response ended."""
        self._head_since_s: float | None = None  # when an incomplete head began
        self._write_paused_since_s: float | None = None
        self.forwarded_for = b"unknown"
        """The address to add to `X-Forwarded-For`."""
        self.closing = False
        """Whether the connection closes after the current response."""
        self.write_paused = False
        """Whether the client reads more slowly than it is sent."""

    # ------------------------------------------------------------------ called by the event loop

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if self.client is not None:
            self.forwarded_for = self.client[0].encode()
        self._data_path.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._data_path.clients.discard(self)
        super().connection_lost(exc)
        self._buffer = b""
        if self._request is not None:
            self._request.client_disconnected()

    def data_received(self, data: bytes) -> None:
        self.last_activity_s = self.loop.time()
        if self._linger_until_s is not None:
            return
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_paused, self._write_paused_since_s = True, self.loop.time()
        if self._request is not None:
            self._request.client_write_paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_paused, self._write_paused_since_s = False, None
        if self._request is not None:
            self._request.client_write_resumed()
        elif self._buffer:
            self._advance()

    # ------------------------------------------------------------------ requests, in order

    def _advance(self) -> None:
        """Process the buffer as far as it goes."""
        if self._advancing:
            return  # called from within the loop below, which goes on anyway
        if self._yielding:
            self._limit_buffer()
            return
        self._advancing, began_one = True, False
        try:
            while self._buffer and self._linger_until_s is None and not self.transport.is_closing():
                if self._body is not None:
                    self._read_body(self._body)
                elif self._request is not None or self._in_application or self.write_paused:
                    # A pipelined request waits until the current response ended. Reading goes on meanwhile, because
                    # otherwise a disconnect would not be noticed.
                    self._limit_buffer()
                    return
                elif began_one:
                    # The last request was answered at once, as refusals are. Let other connections go first:
                    # thousands of pipelined refusals would block the event loop.
                    self._yielding = True
                    self._limit_buffer()
                    self.loop.call_soon(self._after_yield)
                    return
                elif not self._read_head():
                    return
                else:
                    began_one = True
        except GatewayError as error:
            self._refuse(error)
        finally:
            self._advancing = False

    def _limit_buffer(self) -> None:
        if len(self._buffer) > HELD_BYTES:
            self.pause_reading()

    def _after_yield(self) -> None:
        self._yielding = False
        self.resume_reading()
        self._advance()

    def _read_head(self) -> bool:
        """Begin the next message. Return False if its head is incomplete."""
        data = self._buffer
        end = data.find(END_OF_HEAD)
        if end < 0 or end > MAX_HEAD_BYTES:
            if len(data) > MAX_HEAD_BYTES:
                raise HeadTooLarge(f"the head of a request may have {MAX_HEAD_BYTES} bytes")
            if _BARE_LF.search(data):
                raise InvalidRequest("this is not a valid HTTP request: lines end in CRLF")
            if data.startswith(b"\r\n"):  # some clients send an extra CRLF after a body
                self._buffer = data[2:]
                return bool(self._buffer)
            self._head_since_s = self._head_since_s or self.loop.time()
            return False
        self._head_since_s = None
        end += len(END_OF_HEAD)
        raw, self._buffer = (data, b"") if end == len(data) else (data[:end], data[end:])
        if raw == _HTTP_2_PREFACE:
            self.write(HTTP_2_GOAWAY)
            self._linger()
            return False
        decision = self._data_path.policy.decide(raw)
        head = decision.head
        self._body, self._received_bytes = head.body(), 0
        if head.for_chroma:
            self._begin_request(decision)
        elif b"#" in head.path:
            # uvicorn drops what follows, and it would be another document's name.
            raise InvalidRequest("there is a '#' in the path: a name has it as %23")
        else:
            self._in_application = True
            super().data_received(raw)
        return True

    def _begin_request(self, decision: Decision) -> None:
        data_path, head = self._data_path, decision.head
        if not self._is_noted and decision.principal is not None and not head.route.probe:
            self._is_noted = True
            data_path.policy.usage.connections.note(self.forwarded_for, head)
        self._max_body_bytes = decision.max_body_bytes
        if head.length_bytes is not None and head.length_bytes > decision.max_body_bytes and decision.refusal is None:
            raise _too_large(decision.max_body_bytes)
        request_id = head.request_id or data_path.new_id()
        request: ProxiedRequest | LocalResponse
        if decision.pass_through:
            request = ProxiedRequest(self, head, request_id, data_path.gate, data_path.pool, decision.counter)
        else:
            request = data_path.begin_request(self, decision, request_id)
        self._request = request
        if self._body is None:
            request.receive(b"", complete=True)
        elif head.expects_continue and not self._buffer and not head.http_1_0 and not request.ended:
            self.transport.write(CONTINUE)

    def _read_body(self, body: Body) -> None:
        try:
            payload, self._buffer = body.take(self._buffer)
        except BadFraming as error:
            raise InvalidRequest(f"this is not a valid HTTP request: {error}") from None
        if body.complete:
            self._body = None
        request = self._request
        self._received_bytes += len(payload)
        if request is not None and self._received_bytes > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)
        if isinstance(body, Chunked):
            payload = chunk(payload) + LAST_CHUNK if body.complete else chunk(payload)
        if request is not None:
            request.receive(payload, complete=body.complete)
        elif payload:
            super().data_received(payload)

    def _refuse(self, error: GatewayError) -> None:
        """Respond with `error` and close the connection: where the next request begins is not known."""
        request, self._request = self._request, None
        if request is not None:
            request.client_disconnected()
        if self._in_application:
            self.transport.close()
            return
        if request is not None and request.responding:
            self._reset_transport()
            return
        self.write(error_response(error, None, close=True, no_body=False))
        self._linger()

    # ------------------------------------------------------------------ called by the current request

    def write(self, data: bytes) -> None:
        """Send `data`, unless the client disconnected."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def pause_reading(self) -> None:
        """Read no more from the client until `resume_reading`."""
        if not self.transport.is_closing():
            self.flow.pause_reading()

    def resume_reading(self) -> None:
        """Go on reading from the client."""
        if self.flow.read_paused and not self.transport.is_closing():
            self.last_activity_s = self.loop.time()
            self.flow.resume_reading()

    def response_ended(self, *, close: bool) -> None:
        """The current request is over, and the next one may begin. `close` says that it was the last."""
        self._request = None
        self._message_ended()
        if self.transport.is_closing():
            return
        if close or self.closing:
            if self._body is None:
                self.transport.close()
            else:
                self._linger()
            return
        self.resume_reading()
        if self._buffer:
            self._advance()

    def reset(self) -> None:
        """Reset the connection: the client must not take the part that it received for the whole response."""
        self._request = None
        self._message_ended()
        self._reset_transport()

    def _reset_transport(self) -> None:
        if (raw := self.transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def _linger(self) -> None:
        """Send no more, discard what the client still sends, then close (RFC 9112 §9.6); see `_LINGER_S`."""
        self._buffer, self._linger_until_s = b"", self.loop.time() + _LINGER_S
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume_reading()

    def _message_ended(self) -> None:
        self.server_state.total_requests += 1
        self.last_activity_s = self.loop.time()

    # ------------------------------------------------------------------ called by uvicorn

    def on_response_complete(self) -> None:
        """The ASGI application has responded."""
        self._in_application = False
        self._message_ended()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        # In the next turn of the event loop: uvicorn is still in the middle of sending this response.
        self.loop.call_soon(self._advance)

    def shutdown(self) -> None:
        """The server stops: close the connection after the current response."""
        self.closing = True
        if self._request is None:
            super().shutdown()

    # ------------------------------------------------------------------ timeouts

    def check_timeouts(self, now_s: float) -> None:
        """End what waited too long. Called periodically by `DataPath.watch_the_clock`."""
        limits, idle_s = self._data_path.limits, now_s - self.last_activity_s
        if self._write_paused_since_s is not None and now_s - self._write_paused_since_s > limits.client_timeout_s:
            self._reset_transport()
        elif self._linger_until_s is not None:
            if now_s > self._linger_until_s:
                self.transport.close()
        elif self._head_since_s is not None:
            if now_s - self._head_since_s > limits.client_timeout_s:
                self._refuse(_too_slow(limits.client_timeout_s))
        elif self._body is not None and not self.flow.read_paused and idle_s > limits.client_timeout_s:
            if self._request is None:
                self.transport.close()  # uvicorn tells the application of the disconnect
            else:
                self._refuse(_too_slow(limits.client_timeout_s))
        elif self._request is not None:
            self._request.check_timeouts(now_s, limits.queue_timeout_s, limits.read_timeout_s)
        elif not self._in_application and idle_s > limits.keep_alive_s:
            self.transport.close()


def _too_slow(timeout_s: float) -> ClientTooSlow:
    return ClientTooSlow(f"this request did not arrive: nothing came for {timeout_s:g} s, or its head took as long")


def _too_large(limit_bytes: int) -> BodyTooLarge:
    # Chroma's message (`rust/frontend/src/server.rs`, `DefaultBodyLimit`).
    return BodyTooLarge(
        "Failed to buffer the request body: length limit exceeded",
        f"a request may have {limit_bytes} bytes: send it in parts, or raise GATEWAY_MAX_BODY_BYTES",
    )
