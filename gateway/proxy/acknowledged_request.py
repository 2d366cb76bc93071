"""Writes: their responses tell a position in the journal, and where it is asked for wait until the store has them.

    Chroma's response begins ──► ticket released ──► its body is complete: slot released ──► stored ──► client
                                                                                              └── 503

Chroma has applied the write when its response begins, so every cut that begins later has it. What waits holds neither
a ticket nor a slot: the latency of the store delays this client and nothing else.
"""

import asyncio
from typing import Protocol

from gateway.auth.ack import Ack
from gateway.errors import GatewayError, InvalidRequest, LeaseLost, NotStored
from gateway.proxy.framing import Body
from gateway.proxy.heads import ResponseHead
from gateway.proxy.proxied_request import HELD_BYTES, ProxiedRequest

_FIRST_ERROR_STATUS = 300


class Journal(Protocol):
    """What the data path asks of the journal; `gateway.journal.journal` implements it."""

    @property
    def is_on(self) -> bool:
        """Whether what is written goes to the store by itself."""

    @property
    def unsupported(self) -> str | None:
        """Why there can be no journal on this disk; None if there can."""

    @property
    def position(self) -> str:
        """Where everything that was written so far will be."""

    async def stored(self) -> str:
        """Wait until the store has everything that was written so far. Raises GatewayError."""


def require_journal(journal: Journal | None) -> None:
    """Raise InvalidRequest if no write can be stored before it is answered."""
    if journal is None or not journal.is_on:
        why = journal.unsupported if journal is not None else None
        raise InvalidRequest(
            f"no write can be acknowledged as stored: {why or 'the journal is off'}",
            "nothing happened; ask for less with X-Gateway-Ack: local, or see GATEWAY_JOURNAL_INTERVAL_S",
        )


class AcknowledgedRequest(ProxiedRequest):
    """A write, if `journal` is set; as `ProxiedRequest` without."""

    journal: Journal | None = None
    ack = Ack.LOCAL
    _response: tuple[ResponseHead, Body] | None = None  # while it is held back
    _pieces: list[bytes]  # of its body
    _storing: asyncio.Task[None] | None = None

    def _send_head(self, head: ResponseHead, body: Body, payload: bytes) -> None:
        journal = self.journal
        if journal is None or head.status >= _FIRST_ERROR_STATUS:
            super()._send_head(head, body, payload)
            return
        if journal.is_on:
            self.extra_headers += b"x-gateway-position: %b\r\n" % journal.position.encode()
        if self.ack is Ack.LOCAL or self._client.transport.is_closing():
            super()._send_head(head, body, payload)
            return
        self.responding = False  # the client has none of it, so it may get an error instead
        self._response, self._pieces = (head, body), [payload]
        self._storing = asyncio.create_task(self._wait_until_stored(journal))

    def response_continued(self, body: Body, payload: bytes) -> None:
        if self._response is None:
            super().response_continued(body, payload)
            return
        self._pieces.append(payload)
        if sum(map(len, self._pieces)) > HELD_BYTES and self._upstream is not None:
            self._upstream.pause()

    def response_ended(self) -> None:
        if self._response is None:
            super().response_ended()
        else:
            self._leave_chroma()

    def check_timeouts(self, now_s: float, queue_timeout_s: float, read_timeout_s: float) -> None:
        if self._response is None:  # the journal limits how long it may wait
            super().check_timeouts(now_s, queue_timeout_s, read_timeout_s)

    async def _wait_until_stored(self, journal: Journal) -> None:
        failure: GatewayError | None = None
        try:
            await journal.stored()
        except NotStored as error:
            failure = error
        except LeaseLost as error:
            failure = LeaseLost(f"it was applied here, and it is not in the store: {error.message}", error.hint)
        except GatewayError as error:
            failure = NotStored(f"it was applied, and it cannot be stored: {error.message}", error.hint)
        assert self._response is not None
        head, body = self._response
        self._response = self._storing = None
        upstream = self._upstream
        if failure is not None:
            if upstream is not None:
                upstream.abort()
            self.fail(failure)
            return
        self.responding = True
        super()._send_head(head, body, b"".join(self._pieces))
        if upstream is None:
            super().response_ended()
        elif not self._client.write_paused:
            upstream.resume()

    def _leave_chroma(self) -> None:
        """Chroma's part is over: give back what only it needs."""
        self._upstream = None
        self._leave_gate()
        self._pool.release(self)

    def _end(self) -> None:
        if self._storing is not None:
            self._storing.cancel()
            self._response = self._storing = None
        super()._end()
