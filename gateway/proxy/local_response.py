"""A request that the gateway answers itself: refusals, identities, and what is out of a key's scope."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.proxy.counters import RequestCounter
from gateway.proxy.heads import RequestHead

if TYPE_CHECKING:
    from gateway.proxy.client import ClientConnection

# A longer body is not read: the client gets the response at once, and the connection ends.
_MAX_DISCARDED_BYTES = 64 * 1024

Render = Callable[..., bytes]
"""Called with the keywords `close` and `no_body`; returns the complete response."""


class LocalResponse:
    """Takes the place of a `ProxiedRequest`: discards the request's body, then responds."""

    responding = False
    ended = False

    def __init__(
        self, client: "ClientConnection", head: RequestHead, status: int, render: Render, counter: RequestCounter
    ) -> None:
        self._client, self.head, self._status, self._render, self._counter = client, head, status, render, counter
        self._discarded_bytes = 0

    def receive(self, data: bytes, *, complete: bool) -> None:
        """The next piece of the request's body."""
        self._discarded_bytes += len(data)
        if self.ended:
            return
        if complete or self._discarded_bytes > _MAX_DISCARDED_BYTES:
            close = self._client.closing or not self.head.keep_alive or not complete
            self.ended = True
            self._counter.statuses[self._status] += 1  # the duration says nothing about Chroma
            self._client.write(self._render(close=close, no_body=self.head.method == b"HEAD"))
            self._client.response_ended(close=close)

    def client_disconnected(self) -> None:
        self.ended = True

    def client_write_paused(self) -> None: ...

    def client_write_resumed(self) -> None: ...

    def check_timeouts(self, now_s: float, queue_timeout_s: float, read_timeout_s: float) -> None: ...
