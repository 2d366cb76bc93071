"""What all connections share: the door, the gate, the pool, the limits, and the clock that ends what waits too long."""

import asyncio
import itertools
import os
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

import structlog

from gateway.auth.access import Answer
from gateway.auth.addresses import Network, client_address, counted_as
from gateway.auth.audit import Audit
from gateway.auth.quota import Quota
from gateway.auth.routes import DESTRUCTIVE, RECORD_WRITES, RENAMES
from gateway.errors import GatewayError
from gateway.proxy.answers import ended_head, error_answer, own_answer
from gateway.proxy.client import ClientConnection
from gateway.proxy.gate import Gate
from gateway.proxy.limits import ProxyLimits
from gateway.proxy.local_response import LocalResponse, Words
from gateway.proxy.policy import NOBODY, Decision, RequestPolicy
from gateway.proxy.proxied_request import ProxiedRequest
from gateway.proxy.scoped_requests import CollectionNames, FilteredRequest, Note, Room, ScopedRequest, Watcher
from gateway.proxy.upstream import Pool

log = structlog.get_logger()

# Strangers come and go; each of them is forgotten once that changes nothing.
_MAX_ADDRESSES = 10_000
_ROOM_BYTES = 256 << 20


class Tracing(Protocol):
    """Follows requests; see `gateway.observability.tracing`."""

    def begin(self, route: str, what: str, traceparent: bytes | None, request_id: bytes) -> tuple[bytes, Note]:
        """A span begins: the header line that tells Chroma of it, and what to call at its end."""


class DataPath:
    """The way of `/api/` requests. `uvicorn.Config(http=…)` takes it for a protocol class."""

    def __init__(
        self,
        gate: Gate,
        host: str,
        port: int,
        limits: ProxyLimits,
        policy: RequestPolicy | None = None,
        names: CollectionNames | None = None,
        audit: Audit | None = None,
        trusted_proxies: Iterable[Network] = (),
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self.gate, self.limits = gate, limits
        self.policy = policy or RequestPolicy(max_body_bytes=limits.max_body_bytes)
        self.pool = Pool(host, port, limits.max_in_flight, limits.max_queued)
        self.clients: set[ClientConnection] = set()
        self._names, self._audit, self._trusted = names, audit, tuple(trusted_proxies)
        self._addresses: dict[str, Quota] = {}
        self._room = Room(max(_ROOM_BYTES, limits.max_body_bytes))
        self._run = os.urandom(4).hex().encode()
        self._numbers = itertools.count(1)

    def __call__(self, **uvicorn: Any) -> ClientConnection:
        """The protocol of one more client."""
        return ClientConnection(self, **uvicorn)

    def new_id(self) -> bytes:
        """A request id that no other request of any run has."""
        return b"%b-%x" % (self._run, next(self._numbers))

    # ------------------------------------------------------------------ what is not simply passed on

    def begin(self, client: ClientConnection, decision: Decision, request_id: bytes) -> ProxiedRequest | LocalResponse:
        """What is to become of a request that the door wants more for than to be passed on."""
        note = self._note(client, decision, request_id)
        if decision.refusal is not None:
            return self._refuse(client, decision, request_id, decision.refusal, note)
        if isinstance(decision.answer, bytes):
            return LocalResponse(
                client, decision.head, 204, partial(ended_head, decision.answer, request_id), decision.counter
            )
        if decision.answer is not None:
            return self._answer(client, decision, request_id, decision.answer, note)
        try:
            quota = self._quota(client, decision)
        except GatewayError as error:
            return self._refuse(client, decision, request_id, error, note)
        exchange = self._exchange(client, decision, request_id)
        exchange.extra = decision.extra
        names = self._names if decision.head.to.action in RENAMES else None
        notes = [] if note is None else [note]
        if self._tracing is not None:
            head = decision.head
            exchange.asked_with, end = self._tracing.begin(
                head.to.action.value, head.what, head.traceparent, request_id
            )
            notes.append(end)
        if quota is not None or names is not None or notes:
            exchange.companion = Watcher(quota, names, notes)
        return exchange

    def _exchange(self, client: ClientConnection, decision: Decision, request_id: bytes) -> ProxiedRequest:
        plan = decision.plan
        if plan.lists is not None:
            return FilteredRequest(client, decision, request_id, self.gate, self.pool)
        principal, action = decision.principal, decision.head.to.action
        records = principal.limits.records if principal and action in RECORD_WRITES else 0
        if plan.collection_id is None and plan.name_field is None and not records:
            return ProxiedRequest(client, decision.head, request_id, self.gate, self.pool, decision.counter)
        if self._names is None:
            raise AssertionError("a scope wants to know names")
        return ScopedRequest(client, decision, request_id, self.gate, self.pool, self._names, records, self._room)

    def _refuse(
        self, client: ClientConnection, decision: Decision, request_id: bytes, error: GatewayError, note: Note | None
    ) -> LocalResponse:
        if note is not None:
            note(error.status)
        return self._reply(
            client, decision, error.status, partial(error_answer, error, request_id, extra=decision.extra)
        )

    def _answer(
        self, client: ClientConnection, decision: Decision, request_id: bytes, answer: Answer, note: Note | None
    ) -> LocalResponse:
        if note is not None:
            note(answer.status)
        return self._reply(
            client, decision, answer.status, partial(own_answer, answer, request_id, extra=decision.extra)
        )

    def _reply(self, client: ClientConnection, decision: Decision, status: int, words: Words) -> LocalResponse:
        return LocalResponse(client, decision.head, status, words, decision.counter)

    def _quota(self, client: ClientConnection, decision: Decision) -> Quota | None:
        principal = decision.principal
        if principal is None or not (principal.limits.requests_per_s or principal.limits.in_flight):
            return None
        now_s = client.moved_at_s
        quota = principal.quota
        if quota is None:
            address = counted_as(self.address(client, decision))
            quota = self._addresses.get(address)
            if quota is None:
                if len(self._addresses) >= _MAX_ADDRESSES:
                    self._forget_idle(now_s)
                quota = self._addresses[address] = Quota(principal.limits, now_s)
        quota.begin(now_s)
        return quota

    def _forget_idle(self, now_s: float) -> None:
        self._addresses = {address: quota for address, quota in self._addresses.items() if not quota.idle(now_s)}
        if len(self._addresses) >= _MAX_ADDRESSES:
            # The eldest, and so many that the next address does not cost all this again.
            for address in list(itertools.islice(self._addresses, _MAX_ADDRESSES // 10)):
                del self._addresses[address]

    def address(self, client: ClientConnection, decision: Decision) -> str:
        """Where a request comes from, as far as can be believed."""
        return client_address(client.forwarded_for.decode("latin-1"), decision.head.forwarded_for, self._trusted)

    def _note(self, client: ClientConnection, decision: Decision, request_id: bytes) -> Note | None:
        audit, head = self._audit, decision.head
        # Who has no key at all destroys nothing, and could fill the disk.
        if (
            audit is None
            or head.to.action not in DESTRUCTIVE
            or decision.principal is None
            or head.route.kind.value != "write"
        ):
            return None
        principal = decision.principal

        def note(status: int) -> None:
            audit.note(
                who=principal.name,
                role=principal.role.name.lower() if principal.key else NOBODY,
                address=self.address(client, decision),
                method=head.method.decode("ascii"),
                path=head.path.decode("latin-1"),
                action=head.to.action.value,
                status=status,
                request_id=request_id.decode("latin-1"),
            )

        return note

    # ------------------------------------------------------------------ time

    async def watch_the_clock(self) -> None:
        """End what waits too long, until cancelled. One clock for all: a timer per request would cost every request."""
        limits = self.limits
        shortest_s = min(limits.client_timeout_s, limits.queue_timeout_s, limits.read_timeout_s, limits.keep_alive_s)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, shortest_s / 4))
            now_s = loop.time()
            for client in self.clients.copy():
                try:
                    client.check(now_s)
                except Exception:  # one client's trouble must not stop the clock for all
                    log.exception("a connection could not be checked")

    def close(self) -> None:
        """Break off whatever is left, on both sides."""
        for client in self.clients.copy():
            client.transport.abort()
        self.pool.close()
