"""A request that the gateway answers itself: refusals, identities, what is out of somebody's sight."""

from typing import Protocol

from gateway.proxy.counters import RequestCounter
from gateway.proxy.heads import RequestHead

# A longer body is not waited for: the client is told at once, and the connection ends.
_READ_OUT_BYTES = 64 * 1024


class Client(Protocol):
    """Who asked."""

    closing: bool

    def write(self, data: bytes) -> None: ...

    def answer_ended(self, *, last: bool) -> None: ...


class Words(Protocol):
    """Makes the whole answer."""

    def __call__(self, *, close: bool, bare: bool) -> bytes: ...


class LocalResponse:
    """In the place of an exchange: takes the request's body in, drops it, and answers."""

    answering = False
    over = False

    def __init__(self, client: Client, head: RequestHead, status: int, words: Words, counter: RequestCounter) -> None:
        self._client, self.head, self._status, self._words, self._counter = client, head, status, words, counter
        self._taken_bytes = 0

    def receive(self, data: bytes, *, complete: bool) -> None:
        """The next piece of the body."""
        self._taken_bytes += len(data)
        if self.over:
            return
        if complete or self._taken_bytes > _READ_OUT_BYTES:
            last = self._client.closing or not self.head.keep_alive or not complete
            self.over = True
            self._counter.statuses[self._status] += 1  # its time says nothing of the way to Chroma
            self._client.write(self._words(close=last, bare=self.head.method == b"HEAD"))
            self._client.answer_ended(last=last)

    def client_gone(self) -> None:
        self.over = True

    def client_full(self) -> None: ...

    def client_ready(self) -> None: ...

    def check(self, now_s: float, queue_timeout_s: float, read_timeout_s: float) -> None: ...
