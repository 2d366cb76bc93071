"""A server in Chroma's place that does what a test says with each connection.

def behave(peer: Peer) -> None:
    peer.request()
    peer.reset()

with upstream(behave) as server: …
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.ports import small_listener

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Peer:
    """One connection from the gateway."""

    def __init__(self, raw: socket.socket, server: "Server", number: int) -> None:
        self.raw, self.number, self._server, self._rest = raw, number, server, b""

    def head(self) -> bytes | None:
        """The next request's head; None if the connection ends before it is complete."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                return None
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def request(self) -> tuple[bytes, bytes] | None:
        """The next complete request: its head, and its body as on the wire. None if the connection ends before."""
        head = self.head()
        if head is None:
            return None
        lower, body = head.lower(), b""
        if b"\r\ntransfer-encoding: chunked" in lower:
            while not self._rest.endswith(b"0\r\n\r\n"):
                if not self._more():
                    return None
            body, self._rest = self._rest, b""
        elif b"\r\ncontent-length: " in lower:
            size = int(lower.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
            while len(self._rest) < size:
                if not self._more():
                    return None
            body, self._rest = self._rest[:size], self._rest[size:]
        self._server.requests.append((head, body))
        return head, body

    def send(self, data: bytes) -> None:
        self.raw.sendall(data)

    def reset(self) -> None:
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.raw.close()

    def serve(self, answer: bytes = OK) -> None:
        """Send `answer` to every request."""
        while self.request():
            self.send(answer)

    @property
    def waiting(self) -> int:
        """How many bytes came with the head and were not read yet."""
        return len(self._rest)

    def hang(self) -> None:
        """Read requests and never respond."""
        while self.request():
            pass

    def ended(self, timeout_s: float = 10) -> bool:
        """Wait until the gateway closes the connection. Return whether it did."""
        self.raw.settimeout(timeout_s)
        try:
            while self.raw.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def _more(self) -> bytes:
        piece = self.raw.recv(65536)
        self._rest += piece
        return piece


class Server:
    def __init__(self, behave: Callable[[Peer], None], port: int) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        """All complete requests."""
        self.connections = 0
        self.failures: list[BaseException] = []
        self._behave = behave
        self._listener = small_listener(port=port, backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close the listener and all connections, as when the process ends."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for raw in self._open:
            with suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)
            raw.close()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(raw)
            self.connections += 1
            threading.Thread(target=self._run, args=(Peer(raw, self, self.connections),), daemon=True).start()

    def _run(self, peer: Peer) -> None:
        try:
            self._behave(peer)
        except OSError:
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            peer.raw.close()


@contextmanager
def upstream(behave: Callable[[Peer], None] = Peer.serve, port: int = 0) -> Iterator[Server]:
    server = Server(behave, port)
    try:
        yield server
    finally:
        server.close()
    assert server.failures == []
