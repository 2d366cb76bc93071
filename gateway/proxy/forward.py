"""The data path: an ASGI application that passes `/api/*` on to Chroma and streams both ways."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx
import structlog

from gateway.errors import BadUpstream, GatewayError, RequestTimeout, Unavailable, UpstreamTimeout
from gateway.proxy.classify import Route, classify
from gateway.proxy.gate import Gate, Ticket
from gateway.proxy.headers import for_client, for_upstream
from gateway.proxy.transport import NO_BODY, RawTargetTransport

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = structlog.get_logger()

_BODY_IDLE_S = 60.0


class ClientGone(Exception):
    """The client hung up before its request was complete."""


class Forward:
    """Passes requests on to Chroma at `base_url`, through the gate.

    Reads end after `read_timeout_s` without a byte from Chroma. Writes have no time limit of their
    own: an unfinished write must stay accounted for until Chroma answers or dies.
    """

    def __init__(self, gate: Gate, transport: RawTargetTransport, base_url: str, read_timeout_s: float) -> None:
        self._gate, self._transport, self._base_url = gate, transport, httpx.URL(base_url)
        self._read_timeout = {"read": read_timeout_s}
        self._writes: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one ASGI HTTP request."""
        exchange = _Exchange(scope, receive, send)
        route = classify(exchange.method, exchange.raw_path)
        try:
            with self._gate.passing():
                if self._gate.lets_pass(route):
                    await self._pass_on(exchange, self._read_timeout)
                else:
                    await self._write(exchange, route)
        except ClientGone:
            return
        except GatewayError as error:
            await exchange.fail(error)
        except asyncio.CancelledError:
            # The server's grace is over. A write goes on without us, and its ticket with it.
            await exchange.fail(Unavailable("the gateway is stopping", "if this was a write, it may have happened"))

    async def _write(self, exchange: "_Exchange", route: Route) -> None:
        """Pass a request on under a ticket, in a task of its own: the server may cancel ours.

        The ticket is taken before Chroma can act: before the first byte goes up or, where Chroma acts
        on the whole body only, before the last does, so that a client that stalls holds nobody up.
        """
        what = f"{exchange.method} {exchange.raw_path.decode('latin-1')}"

        async def run() -> None:
            exchange.admission = lambda: self._gate.enter(what, route.collection_id)
            try:
                if not route.acts_on_whole_body:
                    await exchange.admit()
                await self._pass_on(exchange, {})
            finally:
                if exchange.ticket is not None:
                    self._gate.leave(exchange.ticket)

        task = asyncio.create_task(run())
        self._writes.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # seen here if the request's own task is no longer there to see it

    async def _pass_on(self, exchange: "_Exchange", timeout: dict[str, float]) -> None:
        """Send the request and stream the answer back."""
        response = await self._send(exchange, timeout)
        if exchange.ticket is not None:
            # Chroma's handlers return whole JSON values (`rust/frontend/src/server.rs`): once an answer
            # begins the work is done, and a client that reads it slowly holds nobody up.
            self._gate.leave(exchange.ticket, done=response.status_code == httpx.codes.OK)
        try:
            await exchange.start(response.status_code, for_client(response.headers.raw))
            async for chunk in response.stream:  # type: ignore[union-attr]  # it is an AsyncByteStream
                await exchange.body(chunk)
            await exchange.end()
        except httpx.TransportError as error:
            # Too late for a status: returning without an end makes the server cut the connection.
            log.warning("chroma broke off in mid-answer", target=exchange.target.decode("latin-1"), cause=str(error))
        finally:
            await response.aclose()

    async def _send(self, exchange: "_Exchange", timeout: dict[str, float]) -> httpx.Response:
        stream = exchange.request_stream()
        if stream is NO_BODY:
            await exchange.admit()
        request = httpx.Request(
            exchange.method,
            self._base_url,
            headers=for_upstream(exchange.headers),
            stream=stream,
            extensions={"target": exchange.target, "timeout": timeout},
        )
        try:
            return await self._transport.handle_async_request(request)
        except httpx.TransportError as error:
            raise self._meaning(exchange, error, timeout) from None

    def _meaning(self, exchange: "_Exchange", error: httpx.TransportError, timeout: dict[str, float]) -> Exception:
        """What it means that no answer came."""
        if exchange.failure is not None:
            return exchange.failure
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unavailable(
                "Chroma is not running just now", "it is being started; try again, or look at GET /readyz"
            )
        if isinstance(error, httpx.TimeoutException):
            return UpstreamTimeout(f"Chroma did not answer within {timeout.get('read', 0):g} s")
        if exchange.admission is not None and exchange.ticket is None:
            return Unavailable("Chroma stopped before it had the whole request", "nothing happened; send it again")
        return BadUpstream(
            f"Chroma broke off before it answered: {error}",
            "if this was a write, it may or may not have happened; look at GET /readyz",
        )


class _Exchange:
    """One ASGI request and its answer."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        query: bytes = scope["query_string"]
        self.target = self.raw_path + b"?" + query if query else self.raw_path
        self.admission: Callable[[], Awaitable[Ticket]] | None = None
        self.ticket: Ticket | None = None
        self.failure: Exception | None = None
        self._receive, self._send, self._started = receive, send, False

    def request_stream(self) -> httpx.AsyncByteStream:
        for name, _ in self.headers:
            if name in (b"content-length", b"transfer-encoding"):
                return _RequestBody(self)
        return NO_BODY

    async def admit(self) -> None:
        """Take the ticket, if this is a write without one: from here on Chroma may act.

        Raises GateTimeout, Unavailable.
        """
        if self.admission is not None and self.ticket is None:
            self.ticket = await self.admission()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The request's body as it arrives, its last piece only once it is admitted.

        Whatever ends it early is kept in `failure`: the transport has only words of its own for it.
        """
        try:
            held, more = b"", True
            while more:
                message = await self._receive_soon()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                more = message.get("more_body", False)
                if body := message.get("body", b""):
                    if self.admission is None or self.ticket is not None:
                        yield body
                        continue
                    if held:
                        yield held
                    held = body
            await self.admit()
            if held:
                yield held
        except (ClientGone, GatewayError) as error:
            self.failure = error
            raise

    async def _receive_soon(self) -> Message:
        try:
            async with asyncio.timeout(_BODY_IDLE_S):
                return await self._receive()
        except TimeoutError:
            raise RequestTimeout(
                f"nothing of the request's body came for {_BODY_IDLE_S:g} s", "send it again"
            ) from None

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, chunk: bytes) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: GatewayError) -> None:
        if self._started:
            return
        body = json.dumps(error.body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        await self.start(error.status, headers)
        await self._send({"type": "http.response.body", "body": body})


class _RequestBody(httpx.AsyncByteStream):
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._exchange.chunks()
