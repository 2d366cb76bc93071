"""The data path in uvicorn, in front of a stand-in for Chroma that a test controls; all in one event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import uvicorn

from gateway.proxy.acknowledged_request import Journal
from gateway.proxy.data_path import DataPath as Connections
from gateway.proxy.gate import Gate
from gateway.proxy.limits import ProxyLimits
from gateway.proxy.policy import RequestPolicy
from tests.ports import small_listener

DEADLINE_S = 20
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
WRITE = b"POST /api/v2/tenants HTTP/1.1\r\nhost: g\r\n"
READ = b"GET /api/v2/version HTTP/1.1\r\nhost: g\r\n"


class Request(NamedTuple):
    """A message from the wire: `lines` is its head, `body` is without chunk framing."""

    lines: list[bytes]
    body: bytes

    @property
    def target(self) -> bytes:
        return self.lines[0].split(b" ")[1]

    @property
    def headers(self) -> list[bytes]:
        return self.lines[1:]

    def header(self, name: bytes) -> bytes | None:
        return header(self.headers, name)


def header(lines: list[bytes], name: bytes) -> bytes | None:
    for line in lines:
        if line.lower().startswith(name + b":"):
            return line.partition(b":")[2].strip()
    return None


class Peer:
    """One end of a raw connection. Each wait fails after `DEADLINE_S`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(DEADLINE_S):
            await self.writer.drain()

    async def head(self) -> list[bytes]:
        """The lines of a head. Raises IncompleteReadError at the end of the connection."""
        async with asyncio.timeout(DEADLINE_S):
            return (await self.reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.readexactly(count)

    async def chunk(self) -> bytes:
        """One chunk of a chunked body. The last one is empty."""
        async with asyncio.timeout(DEADLINE_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def body(self, lines: list[bytes]) -> bytes:
        """The body that follows the head `lines`, without chunk framing."""
        if length := header(lines, b"content-length"):
            return await self.exactly(int(length))
        whole = b""
        if header(lines, b"transfer-encoding") == b"chunked":
            while chunk := await self.chunk():
                whole += chunk
        return whole

    async def message(self) -> Request:
        lines = await self.head()
        return Request(lines, await self.body(lines))

    async def rest(self) -> bytes:
        """All bytes until the connection ends, by a close or a reset."""
        found = b""
        async with asyncio.timeout(DEADLINE_S):
            with suppress(ConnectionError):
                while more := await self.reader.read(1 << 16):
                    found += more
        return found

    def reset(self) -> None:
        """Reset the connection at once."""
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


Chroma = Callable[[Peer], Awaitable[None]]


async def always_ok(peer: Peer) -> None:
    while True:
        await peer.message()
        await peer.send(OK)


class DataPath:
    """The data path in uvicorn, and the listener that stands in for Chroma's."""

    def __init__(
        self, port: int, upstream: asyncio.Server, gate: Gate, connections: Connections, server: uvicorn.Server
    ) -> None:
        self.port, self.upstream, self.gate, self.connections = port, upstream, gate, connections
        self.server = server
        self.chroma_port: int = upstream.sockets[0].getsockname()[1]
        self._open: list[Peer] = []

    async def connect(self) -> Peer:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", self.port))
        self._open.append(peer)
        return peer

    async def ask(self, request: bytes) -> Request:
        """Send one request on a connection of its own. Return the response."""
        peer = await self.connect()
        await peer.send(request)
        return await peer.message()

    async def close(self) -> None:
        for peer in self._open:
            await peer.close()


@asynccontextmanager
async def data_path(
    chroma: Chroma = always_ok,
    *,
    read_timeout_s: float = DEADLINE_S,
    gate_timeout_s: float = DEADLINE_S,
    client_timeout_s: float = DEADLINE_S,
    journal: Journal | None = None,
    policy: RequestPolicy | None = None,
) -> AsyncIterator[DataPath]:
    """A data path. `chroma` serves each connection that it opens to Chroma."""
    serving: set[asyncio.Task[None]] = set()
    errors: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        serving.add(task)
        peer = Peer(reader, writer)
        try:
            await chroma(peer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the gateway closed the connection, or the test is over
        except BaseException as error:
            errors.append(error)
        finally:
            serving.discard(task)
            await peer.close()

    upstream = await asyncio.start_server(serve, sock=small_listener())
    chroma_port = upstream.sockets[0].getsockname()[1]
    gate = Gate(gate_timeout_s)
    limits = ProxyLimits(
        client_timeout_s=client_timeout_s,
        queue_timeout_s=DEADLINE_S,
        read_timeout_s=read_timeout_s,
        max_body_bytes=1 << 30,
        max_in_flight=1000,
        max_queued=1000,
    )
    connections = Connections(gate, "127.0.0.1", chroma_port, limits, policy, journal=journal)
    listener = small_listener()
    listener.setblocking(False)
    config = uvicorn.Config(
        _no_application,
        http=connections,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
    )
    server = uvicorn.Server(config)
    clock = asyncio.create_task(connections.watch_the_clock())
    running = asyncio.create_task(server.serve(sockets=[listener]))
    path = DataPath(listener.getsockname()[1], upstream, gate, connections, server)
    try:
        yield path
    finally:
        await path.close()
        for task in serving:
            task.cancel()
        upstream.close()
        server.should_exit = True
        async with asyncio.timeout(DEADLINE_S):
            await running
        clock.cancel()
        connections.close()
        async with asyncio.timeout(DEADLINE_S):
            await upstream.wait_closed()
            while serving:
                await asyncio.sleep(0)
        listener.close()
    assert not errors, errors


async def _no_application(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError(f"{scope['raw_path']} is not for Chroma")


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` is true. Raises TimeoutError after `DEADLINE_S`."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)
