"""What all connections share: policy, gate, pool, limits, and the clock that ends what waits too long."""

import asyncio
import itertools
import os
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

import structlog

from gateway.auth.ack import Ack
from gateway.auth.addresses import Network, client_address, counted_as
from gateway.auth.audit import Audit
from gateway.auth.quota import Quota
from gateway.chroma.names import CollectionNames
from gateway.chroma.routes import AUDITED, RECORD_WRITES, RENAMES, Kind
from gateway.errors import GatewayError
from gateway.proxy.acknowledged_request import AcknowledgedRequest, Journal, require_journal
from gateway.proxy.client import ClientConnection
from gateway.proxy.gate import Gate
from gateway.proxy.limits import ProxyLimits
from gateway.proxy.local_response import LocalResponse, Render
from gateway.proxy.observer import OnEnd, RequestObserver
from gateway.proxy.policy import NO_KEY, Decision, RequestPolicy
from gateway.proxy.proxied_request import ProxiedRequest
from gateway.proxy.responses import empty_response, error_response, static_response
from gateway.proxy.scoped_requests import BodyBudget, FilteredRequest, ScopedRequest
from gateway.proxy.upstream import Pool

log = structlog.get_logger()

# How many addresses have a quota of their own. A quota that is idle is dropped, which changes nothing for its address.
_MAX_ADDRESSES = 10_000
_BODY_BUDGET_BYTES = 256 << 20


class RequestTracer(Protocol):
    """Makes a span for each request; `gateway.observability.tracing` implements it."""

    def begin(self, route: str, what: str, traceparent: bytes | None, request_id: bytes) -> tuple[bytes, OnEnd]:
        """Begin a span. Return the `traceparent` header line for Chroma, and what to call at its end."""


class DataPath:
    """Handles `/api/` requests. It is callable, so that `uvicorn.Config(http=…)` takes it as a protocol class."""

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
        tracing: RequestTracer | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`host` and `port` are Chroma's. `names` is needed where keys have scopes, or limits on records."""
        self._tracing, self._journal = tracing, journal
        self.gate, self.limits = gate, limits
        self.policy = policy or RequestPolicy(max_body_bytes=limits.max_body_bytes)
        self.pool = Pool(host, port, limits.max_in_flight, limits.max_queued)
        self.clients: set[ClientConnection] = set()
        self._names, self._audit, self._trusted = names, audit, tuple(trusted_proxies)
        self._address_quotas: dict[str, Quota] = {}
        self._body_budget = BodyBudget(max(_BODY_BUDGET_BYTES, limits.max_body_bytes))
        self._run_id = os.urandom(4).hex().encode()
        self._numbers = itertools.count(1)

    def __call__(self, **uvicorn: Any) -> ClientConnection:
        """The protocol of a new connection."""
        return ClientConnection(self, **uvicorn)

    def new_id(self) -> bytes:
        """A new request id, unique across restarts."""
        return b"%b-%x" % (self._run_id, next(self._numbers))

    # ------------------------------------------------------------------ requests that are not just passed on

    def begin_request(
        self, client: ClientConnection, decision: Decision, request_id: bytes
    ) -> ProxiedRequest | LocalResponse:
        """The handler of a request that is refused, answered here, or needs more than to be passed on."""
        record = self._audit_record(client, decision, request_id)
        if decision.refusal is not None:
            return _refuse(client, decision, request_id, decision.refusal, record)
        if isinstance(decision.response, bytes):
            return _local(client, decision, 204, partial(empty_response, decision.response, request_id))
        if decision.response is not None:
            if record is not None:
                record(decision.response.status)
            render = partial(static_response, decision.response, request_id, extra_headers=decision.extra_headers)
            return _local(client, decision, decision.response.status, render)
        try:
            if decision.ack is Ack.STORED:
                require_journal(self._journal)
            quota = self._begin_quota(client, decision)
        except GatewayError as error:
            return _refuse(client, decision, request_id, error, record)
        request = self._proxied_request(client, decision, request_id)
        request.extra_headers = decision.extra_headers
        if decision.ack is not None and isinstance(request, AcknowledgedRequest):
            request.journal, request.ack = self._journal, decision.ack
        route = decision.head.route
        names = self._names if route.action in RENAMES else None
        on_end = [] if record is None else [record]
        if self._tracing is not None:
            head = decision.head
            request.upstream_headers, end = self._tracing.begin(
                route.action.value, head.what, head.traceparent, request_id
            )
            on_end.append(end)
        if quota is not None or names is not None or on_end:
            request.observer = RequestObserver(quota, names, on_end)
        return request

    def _proxied_request(self, client: ClientConnection, decision: Decision, request_id: bytes) -> ProxiedRequest:
        plan = decision.plan
        if plan.filtered is not None:
            return FilteredRequest(client, decision, request_id, self.gate, self.pool)
        principal, action = decision.principal, decision.head.route.action
        max_records = principal.limits.records if principal and action in RECORD_WRITES else 0
        if plan.collection_id is None and plan.name_field is None and not max_records and not plan.get_only:
            plain = ProxiedRequest if decision.ack is None else AcknowledgedRequest
            return plain(client, decision.head, request_id, self.gate, self.pool, decision.counter)
        if self._names is None:
            raise AssertionError("scopes need the names of collections")
        return ScopedRequest(
            client, decision, request_id, self.gate, self.pool, self._names, max_records, self._body_budget
        )

    def _begin_quota(self, client: ClientConnection, decision: Decision) -> Quota | None:
        """Count the request in. Return what to count it out of, None without limits. Raises RateLimited."""
        principal = decision.principal
        if principal is None or not (principal.limits.requests_per_s or principal.limits.in_flight):
            return None
        now_s = client.last_activity_s
        quota = principal.quota
        if quota is None:
            address = counted_as(self._address(client, decision))
            quota = self._address_quotas.get(address)
            if quota is None:
                if len(self._address_quotas) >= _MAX_ADDRESSES:
                    self._drop_idle_quotas(now_s)
                quota = self._address_quotas[address] = Quota(principal.limits, now_s)
        quota.begin(now_s)
        return quota

    def _drop_idle_quotas(self, now_s: float) -> None:
        self._address_quotas = {
            address: quota for address, quota in self._address_quotas.items() if not quota.idle(now_s)
        }
        if len(self._address_quotas) >= _MAX_ADDRESSES:
            # Drop a tenth of them, the oldest, so that the next new address does not walk the whole table again.
            for address in list(itertools.islice(self._address_quotas, _MAX_ADDRESSES // 10)):
                del self._address_quotas[address]

    def _address(self, client: ClientConnection, decision: Decision) -> str:
        return client_address(client.forwarded_for.decode("latin-1"), decision.head.forwarded_for, self._trusted)

    def _audit_record(self, client: ClientConnection, decision: Decision, request_id: bytes) -> OnEnd | None:
        """Writes the audit's line of this request; None if it is not audited."""
        audit, head = self._audit, decision.head
        # Unauthenticated requests are not audited: they change nothing and could fill the disk.
        if (
            audit is None
            or head.route.action not in AUDITED
            or decision.principal is None
            or head.route.kind is not Kind.WRITE
        ):
            return None
        principal = decision.principal

        def record(status: int) -> None:
            audit.record(
                who=principal.name,
                role=principal.role.name.lower() if principal.key else NO_KEY,
                address=self._address(client, decision),
                method=head.method.decode("ascii"),
                path=head.path.decode("latin-1"),
                action=head.route.action.value,
                status=status,
                request_id=request_id.decode("latin-1"),
            )

        return record

    # ------------------------------------------------------------------ time

    async def watch_the_clock(self) -> None:
        """End what waits too long, until cancelled. One loop for all connections is cheaper than a timer for each."""
        limits = self.limits
        shortest_s = min(limits.client_timeout_s, limits.queue_timeout_s, limits.read_timeout_s, limits.keep_alive_s)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, shortest_s / 4))
            now_s = loop.time()
            for client in self.clients.copy():
                try:
                    client.check_timeouts(now_s)
                except Exception:  # an error in one connection must not stop the timeouts of the others
                    log.exception("timeout check failed")

    def close(self) -> None:
        """Close all connections to clients and to Chroma at once."""
        for client in self.clients.copy():
            client.transport.abort()
        self.pool.close()


def _refuse(
    client: ClientConnection, decision: Decision, request_id: bytes, error: GatewayError, record: OnEnd | None
) -> LocalResponse:
    if record is not None:
        record(error.status)
    render = partial(error_response, error, request_id, extra_headers=decision.extra_headers)
    return _local(client, decision, error.status, render)


def _local(client: ClientConnection, decision: Decision, status: int, render: Render) -> LocalResponse:
    return LocalResponse(client, decision.head, status, render, decision.counter)
