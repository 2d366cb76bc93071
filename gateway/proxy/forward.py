"""The data path: an ASGI application that passes `/api/*` on to Chroma and streams both ways."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx
import structlog

from gateway.errors import BadUpstream, GatewayError, Unavailable, UpstreamTimeout
from gateway.proxy.classify import classify
from gateway.proxy.gate import Gate
from gateway.proxy.headers import for_client, for_upstream
from gateway.proxy.transport import NO_BODY, RawTargetTransport

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = structlog.get_logger()


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
            if self._gate.passes(route):
                with self._gate.reading():
                    await self._pass_on(exchange, self._read_timeout)
            else:
                await self._write(exchange, route.collection_id)
        except ClientGone:
            return
        except GatewayError as error:
            await exchange.fail(error)

    async def _write(self, exchange: "_Exchange", collection_id: str | None) -> None:
        """Pass a request on under a ticket, in a task of its own: the server may cancel ours."""
        ticket = await self._gate.enter(f"{exchange.method} {exchange.raw_path.decode('latin-1')}", collection_id)

        async def run() -> None:
            status = 0
            try:
                status = await self._pass_on(exchange, {})
            finally:
                self._gate.leave(ticket, done=status == 200)

        task = asyncio.create_task(run())
        self._writes.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # seen here if the request's own task is no longer there to see it

    async def _pass_on(self, exchange: "_Exchange", timeout: dict[str, float]) -> int:
        """Send the request, stream the answer back; return Chroma's status."""
        request = httpx.Request(
            exchange.method,
            self._base_url,
            headers=for_upstream(exchange.headers),
            stream=exchange.request_stream(),
            extensions={"target": exchange.target, "timeout": timeout},
        )
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.ConnectError:
            raise Unavailable(
                "Chroma is not running just now", "it is being started; try again, or look at GET /readyz"
            ) from None
        except httpx.TimeoutException:
            raise UpstreamTimeout(f"Chroma did not answer within {timeout.get('read', 0):g} s") from None
        except httpx.TransportError as error:
            if exchange.client_gone:
                raise ClientGone from None
            raise BadUpstream(
                f"Chroma broke off before it answered: {error}",
                "if this was a write, it may or may not have happened; look at GET /readyz",
            ) from None
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
        return response.status_code


class _Exchange:
    """One ASGI request and its answer."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        query: bytes = scope["query_string"]
        self.target = self.raw_path + b"?" + query if query else self.raw_path
        self.client_gone = False
        self._receive, self._send, self._started = receive, send, False

    def request_stream(self) -> httpx.AsyncByteStream:
        for name, _ in self.headers:
            if name in (b"content-length", b"transfer-encoding"):
                return _RequestBody(self)
        return NO_BODY

    async def chunks(self) -> AsyncIterator[bytes]:
        """The request's body as it arrives. Raises ClientGone if it does not arrive whole."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.client_gone = True
                raise ClientGone
            more = message.get("more_body", False)
            if body := message.get("body", b""):
                yield body

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
