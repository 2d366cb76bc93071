"""The side towards clients: one connection, its requests one after the other, and their answers in order.

A subclass of uvicorn's httptools protocol, put in its place by `uvicorn.Config(http=…)`. Heads are read
here; requests to `/api/` become exchanges with Chroma, all else is fed to uvicorn's own parser, message by
message, and answered by the ASGI application.
"""

import asyncio
import re
import socket
import struct
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import BodyTooLarge, ClientTooSlow, GatewayError, HeadTooLarge, InvalidRequest
from gateway.proxy.answers import CONTINUE, error_answer
from gateway.proxy.framing import LAST_CHUNK, BadFraming, Body, Chunked, chunk
from gateway.proxy.gate import Gate
from gateway.proxy.heads import END_OF_HEAD, MAX_HEAD_BYTES
from gateway.proxy.limits import ProxyLimits
from gateway.proxy.local_response import LocalResponse
from gateway.proxy.policy import Decision, RequestPolicy
from gateway.proxy.proxied_request import HELD_BYTES, ProxiedRequest
from gateway.proxy.upstream import Pool

_BARE_LF = re.compile(rb"(?<!\r)\n")
# How long to go on reading what nobody wants, so that the client reads our answer before it sees a reset.
_LINGER_S = 2.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Path(Protocol):
    """What all connections share."""

    gate: Gate
    pool: Pool
    limits: ProxyLimits
    policy: RequestPolicy
    clients: "set[ClientConnection]"

    def new_id(self) -> bytes:
        """A request id that no other request has."""

    def begin(
        self, client: "ClientConnection", decision: Decision, request_id: bytes
    ) -> "ProxiedRequest | LocalResponse":
        """What is to become of a request that is not simply passed on."""


class ClientConnection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, path: Path, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._path = path
        self._rest = b""  # what came and was not looked at yet
        self._body: Body | None = None  # of the request that is being received
        self._received_bytes = self._max_body_bytes = 0
        self._exchange: ProxiedRequest | LocalResponse | None = None
        self._in_application = False  # the ASGI application has the present request
        self._advancing = self._resting = False
        self._lingers_until_s: float | None = None
        self.moved_at_s = self.loop.time()  # when bytes last came, or an answer ended
        self._head_since_s: float | None = None  # when an unfinished head began
        self._slow_since_s: float | None = None
        self.forwarded_for = b"unknown"
        self.closing = self.slow = False

    # ------------------------------------------------------------------ called by the event loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if self.client is not None:
            self.forwarded_for = self.client[0].encode()
        self._path.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._path.clients.discard(self)
        super().connection_lost(exc)
        self._rest = b""
        if self._exchange is not None:
            self._exchange.client_gone()

    def data_received(self, data: bytes) -> None:
        self.moved_at_s = self.loop.time()
        if self._lingers_until_s is not None:
            return
        self._rest = self._rest + data if self._rest else data
        self._advance()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.slow, self._slow_since_s = True, self.loop.time()
        if self._exchange is not None:
            self._exchange.client_full()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.slow, self._slow_since_s = False, None
        if self._exchange is not None:
            self._exchange.client_ready()
        elif self._rest:
            self._advance()

    # ------------------------------------------------------------------ requests, in order

    def _advance(self) -> None:
        """Go as far as the bytes that are here allow."""
        if self._advancing:
            return  # an answer ended at once: the loop below goes on anyway
        if self._resting:
            self._hold_still()
            return
        self._advancing, taken = True, False
        try:
            while self._rest and self._lingers_until_s is None and not self.transport.is_closing():
                if self._body is not None:
                    self._take_body(self._body)
                elif self._exchange is not None or self._in_application or self.slow:
                    # Pipelined: its turn comes when the answer under way ended. Not to read at all would
                    # mean not to see the client go.
                    self._hold_still()
                    return
                elif taken:
                    # The last was answered at once, as refusals are: others come first, or thousands of wrong
                    # keys in a row would hold them up.
                    self._resting = True
                    self._hold_still()
                    self.loop.call_soon(self._go_on)
                    return
                elif not self._take_head():
                    return
                else:
                    taken = True
        except GatewayError as error:
            self._refuse(error)
        finally:
            self._advancing = False

    def _hold_still(self) -> None:
        if len(self._rest) > HELD_BYTES:
            self.stop_reading()

    def _go_on(self) -> None:
        self._resting = False
        self.read_on()
        self._advance()

    def _take_head(self) -> bool:
        """Begin the next message; False if its head is not all here."""
        rest = self._rest
        end = rest.find(END_OF_HEAD)
        if end < 0 or end > MAX_HEAD_BYTES:
            if len(rest) > MAX_HEAD_BYTES:
                raise HeadTooLarge(f"the head of a request may have {MAX_HEAD_BYTES} bytes")
            if _BARE_LF.search(rest):
                raise InvalidRequest("this is not a valid HTTP request: lines end in CRLF")
            if rest.startswith(b"\r\n"):  # some clients send one too many after a body
                self._rest = rest[2:]
                return bool(self._rest)
            self._head_since_s = self._head_since_s or self.loop.time()
            return False
        self._head_since_s = None
        end += len(END_OF_HEAD)
        raw, self._rest = (rest, b"") if end == len(rest) else (rest[:end], rest[end:])
        decision = self._path.policy.enter(raw)
        head = decision.head
        self._body, self._received_bytes = head.body(), 0
        if head.for_chroma:
            self._begin_exchange(decision)
        else:
            self._in_application = True
            super().data_received(raw)
        return True

    def _begin_exchange(self, decision: Decision) -> None:
        path, head = self._path, decision.head
        self._max_body_bytes = decision.max_body_bytes
        if head.length_bytes is not None and head.length_bytes > decision.max_body_bytes and decision.refusal is None:
            raise _too_large(decision.max_body_bytes)
        request_id = head.request_id or path.new_id()
        exchange: ProxiedRequest | LocalResponse
        if decision.plain:
            exchange = ProxiedRequest(self, head, request_id, path.gate, path.pool, decision.counter)
        else:
            exchange = path.begin(self, decision, request_id)
        self._exchange = exchange
        if self._body is None:
            exchange.receive(b"", complete=True)
        elif head.expects_continue and not self._rest and not head.old and not exchange.over:
            self.transport.write(CONTINUE)

    def _take_body(self, body: Body) -> None:
        try:
            payload, self._rest = body.take(self._rest)
        except BadFraming as error:
            raise InvalidRequest(f"this is not a valid HTTP request: {error}") from None
        if body.complete:
            self._body = None
        exchange = self._exchange
        self._received_bytes += len(payload)
        if exchange is not None and self._received_bytes > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)
        if isinstance(body, Chunked):
            payload = chunk(payload) + LAST_CHUNK if body.complete else chunk(payload)
        if exchange is not None:
            exchange.receive(payload, complete=body.complete)
        elif payload:
            super().data_received(payload)

    def _refuse(self, error: GatewayError) -> None:
        """Answer what cannot be understood, or is not wanted, and part: where the next request begins nobody knows."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
        if self._in_application:
            self.transport.close()
            return
        if exchange is None or not exchange.answering:
            self.write(error_answer(error, None, close=True, bare=False))
        self._linger()

    # ------------------------------------------------------------------ what an exchange asks of its client

    def write(self, data: bytes) -> None:
        """Send, unless nobody is there any more."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def stop_reading(self) -> None:
        """Take no more from the client until `read_on`."""
        if not self.transport.is_closing():
            self.flow.pause_reading()

    def read_on(self) -> None:
        """Take from the client again."""
        if self.flow.read_paused and not self.transport.is_closing():
            self.moved_at_s = self.loop.time()
            self.flow.resume_reading()

    def answer_ended(self, *, last: bool) -> None:
        """The exchange is over; the next request may begin."""
        self._exchange = None
        self._message_ended()
        if self.transport.is_closing():
            return
        if last or self.closing:
            if self._body is None:
                self.transport.close()
            else:
                self._linger()
            return
        self.read_on()
        if self._rest:
            self._advance()

    def break_off(self) -> None:
        """End with a reset: a client must not take what it got for all of the answer."""
        self._exchange = None
        self._message_ended()
        self._reset()

    def _reset(self) -> None:
        if (raw := self.transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def _linger(self) -> None:
        """Say no more, but let a client that is still sending read what was said."""
        self._rest, self._lingers_until_s = b"", self.loop.time() + _LINGER_S
        self.read_on()

    def _message_ended(self) -> None:
        self.server_state.total_requests += 1
        self.moved_at_s = self.loop.time()

    # ------------------------------------------------------------------ what uvicorn asks

    def on_response_complete(self) -> None:
        """The ASGI application has answered."""
        self._in_application = False
        self._message_ended()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        # Not from here: the answer's sender has its own last things to do.
        self.loop.call_soon(self._advance)

    def shutdown(self) -> None:
        """The server stops: answer what was asked, then close."""
        self.closing = True
        if self._exchange is None:
            super().shutdown()

    # ------------------------------------------------------------------ time

    def check(self, now_s: float) -> None:
        """End what waited too long. Called now and then."""
        limits, moved_s = self._path.limits, now_s - self.moved_at_s
        if self._slow_since_s is not None and now_s - self._slow_since_s > limits.client_timeout_s:
            self._reset()
        elif self._lingers_until_s is not None:
            if now_s > self._lingers_until_s:
                self.transport.close()
        elif self._head_since_s is not None:
            if now_s - self._head_since_s > limits.client_timeout_s:
                self._refuse(_too_slow(limits.client_timeout_s))
        elif self._body is not None and not self.flow.read_paused and moved_s > limits.client_timeout_s:
            if self._exchange is None:
                self.transport.close()  # the application's; it hears of it
            else:
                self._refuse(_too_slow(limits.client_timeout_s))
        elif self._exchange is not None:
            self._exchange.check(now_s, limits.queue_timeout_s, limits.read_timeout_s)
        elif not self._in_application and moved_s > limits.keep_alive_s:
            self.transport.close()


def _too_slow(timeout_s: float) -> ClientTooSlow:
    return ClientTooSlow(f"this request did not arrive: nothing came for {timeout_s:g} s, or its head took as long")


def _too_large(limit_bytes: int) -> BodyTooLarge:
    # Chroma's own words (`rust/frontend/src/server.rs`, `DefaultBodyLimit`).
    return BodyTooLarge(
        "Failed to buffer the request body: length limit exceeded",
        f"a request may have {limit_bytes} bytes: send it in parts, or raise GATEWAY_MAX_BODY_BYTES",
    )
