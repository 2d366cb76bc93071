"""The data path in uvicorn, in a thread of this process, in front of any server that a test starts."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import uvicorn
import uvloop

from gateway.proxy.data_path import DataPath
from gateway.proxy.gate import Gate
from gateway.proxy.limits import ProxyLimits
from tests.ports import small_listener

MIB = 1024 * 1024
COLLECTION = (
    "/api/v2/tenants/default_tenant/databases/default_database/collections/0f8fad5b-d9cb-469f-a165-70867728950e"
)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Stands in for the FastAPI application: responds with the path and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        body += message.get("body", b"")
    response = b"application: " + scope["raw_path"] + b" " + body
    headers = [(b"content-length", str(len(response)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": response})


class Front:
    """Serves on `port` until `stop`."""

    def __init__(self, upstream_port: int, host: str, limits: ProxyLimits, gate_timeout_s: float, grace_s: int) -> None:
        self.gate = Gate(gate_timeout_s)
        self.path = DataPath(self.gate, "127.0.0.1", upstream_port, limits)
        self._listener = small_listener(host, backlog=2048)
        self.host, self.port = host, self._listener.getsockname()[1]
        config = uvicorn.Config(
            application,
            http=self.path,
            ws="none",
            lifespan="off",
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=grace_s,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))

    async def _serve(self) -> None:
        clock = asyncio.create_task(self.path.watch_the_clock())
        await self._server.serve([self._listener])
        clock.cancel()
        self.path.close()
        await asyncio.sleep(0.01)  # so that the event loop closes the aborted connections

    def start(self) -> Self:
        self._thread.start()
        until(lambda: self._server.started)
        return self

    def ask_to_stop(self) -> None:
        """As SIGTERM does."""
        self._server.should_exit = True

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()

    def join_forever(self) -> None:
        self._thread.join()

    def connect(self, timeout_s: float = 10) -> "Wire":
        return Wire(socket.create_connection((self.host, self.port), timeout_s))

    def ask(self, request: bytes) -> bytes:
        """Send one request on a connection of its own. Return the response, as `Wire.answer` does."""
        with self.connect() as wire:
            wire.send(request)
            return wire.answer()


@contextmanager
def front(
    upstream_port: int, host: str = "127.0.0.1", gate_timeout_s: float = 10, grace_s: int = 5, **limits: Any
) -> Iterator[Front]:
    defaults = {
        "client_timeout_s": 10,
        "queue_timeout_s": 10,
        "read_timeout_s": 10,
        "max_body_bytes": 40 * MIB,
        "max_in_flight": 64,
        "max_queued": 64,
    }
    built = Front(upstream_port, host, ProxyLimits(**defaults | limits), gate_timeout_s, grace_s).start()
    try:
        yield built
    finally:
        built.ask_to_stop()
        built.join()


class Wire:
    """A client's raw socket."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw, self._rest = raw, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()

    def send(self, data: bytes) -> None:
        self.raw.sendall(data)

    def answer(self, method: bytes = b"GET") -> bytes:
        """The next response: its head, and its body without chunk framing. Raises EOFError if it is incomplete."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        lower = head.lower()
        body = b""
        if method == b"HEAD" or status in (100, 204, 304):
            pass
        elif b"\r\ntransfer-encoding: chunked" in lower:
            while True:
                size = int(self._take_line(), 16)
                body += self._take(size)
                assert self._take(2) == b"\r\n"
                if size == 0:
                    break
        elif b"\r\ncontent-length: " in lower:
            body = self._take(int(lower.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0]))
        else:
            body, self._rest = self._rest + self.until_closed(), b""
        return head + b"\r\n\r\n" + body

    def until_closed(self) -> bytes:
        """All bytes until the other side closes. Raises ConnectionResetError on a reset."""
        data = b""
        while piece := self.raw.recv(65536):
            data += piece
        return data

    def is_closed(self) -> bool:
        """Whether the other side closes the connection without sending more."""
        try:
            return not self._rest and self.raw.recv(1) == b""
        except ConnectionResetError:
            return True

    def _take_line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._more()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _take(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._more()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _more(self) -> None:
        piece = self.raw.recv(65536)
        if not piece:
            raise EOFError(f"the connection ended after {self._rest[:200]!r}")
        self._rest += piece


def until(condition: Any, what: str = "it", timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.005)
