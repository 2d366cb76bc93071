"""The request policy: who sends a request, and what may they do? Decided once for each distinct head.

A *decision* follows from one head's bytes and the current keys. It is cached, so a head that was seen before costs one
look-up, with keys or without. Heads hold tokens, so only heads with a valid key are cached (any head, where no key is
needed), at most `_MAX_CACHED`; the cache is cleared whenever the keys change. Requests without a valid key cannot evict
the others.
"""

import re
import time
from collections.abc import Collection

from gateway.auth.access import UNRESTRICTED, AccessPlan, StaticResponse, identity_response, plan_access
from gateway.auth.ack import Ack, ack_level, parse_ack
from gateway.auth.keyring import Keyring
from gateway.auth.keys import ANONYMOUS_NAME, Key
from gateway.auth.origins import require_local_host
from gateway.auth.quota import Quota, QuotaLimits
from gateway.auth.scope import EVERYTHING, Role, Scope
from gateway.auth.tokens import COOKIE, token_in
from gateway.chroma.routes import AUDITED, READS, RECORD_WRITES, RENAMES, Action, Kind
from gateway.errors import Forbidden, GatewayError, Unauthorized
from gateway.proxy.counters import Counters, Label, RequestCounter
from gateway.proxy.heads import RequestHead, parse_request
from gateway.proxy.responses import cors_headers, preflight_head
from gateway.proxy.usage import Usage

# Longer heads are rare, and would fill the memory.
_MAX_CACHED_HEAD_BYTES = 2048
_MAX_CACHED = 2048
_TRACEPARENT = re.compile(rb"\r\ntraceparent:[^\r\n]*\r\n", re.IGNORECASE)
_HINT = "send the header 'Authorization: Bearer <key>' or 'X-Chroma-Token: <key>'"
NO_KEY = "none"
"""The `key` label of requests without a valid key, and their role in the audit."""
_KINDS = {Kind.READ: "read", Kind.RECORD_READ: "read", Kind.WRITE: "write"}


class Principal:
    """The holder of a key, or all clients without one."""

    __slots__ = ("key", "limits", "name", "quota", "role", "scope")

    def __init__(self, key: Key | None, role: Role, scope: Scope, limits: QuotaLimits, now_s: float) -> None:
        self.key, self.role, self.scope, self.limits = key, role, scope, limits
        self.name = key.name if key else ANONYMOUS_NAME
        # Clients without a key have a quota for each address instead.
        self.quota = Quota(limits, now_s) if key and (limits.requests_per_s or limits.in_flight) else None


class Decision:
    """What to do with the requests of one head."""

    __slots__ = (
        "ack",
        "counter",
        "expires_at_s",
        "extra_headers",
        "head",
        "max_body_bytes",
        "pass_through",
        "plan",
        "principal",
        "refusal",
        "response",
    )

    def __init__(
        self, head: RequestHead, counter: RequestCounter, principal: Principal | None, max_body_bytes: int
    ) -> None:
        self.head, self.counter, self.max_body_bytes = head, counter, max_body_bytes
        self.principal = principal
        """None without a valid key where one is needed."""
        self.plan: AccessPlan = UNRESTRICTED
        self.response: StaticResponse | bytes | None = None
        """Send this instead of asking Chroma. Bytes are the head of a response without a body."""
        self.refusal: GatewayError | None = None
        self.extra_headers = b""
        """Header lines that are added to the response."""
        self.ack: Ack | None = None
        """When a write is answered; None if it is no write."""
        self.expires_at_s: float | None = None
        """When the key expires, in seconds since the epoch."""
        self.pass_through = True
        """Whether the request needs nothing but to be passed on."""


class RequestPolicy:
    """One for all connections. `anonymous` says whether requests without a key may do everything.

    `local_hosts_only`: without a key, only those whose `Host` names this machine may.
    """

    def __init__(
        self,
        keyring: Keyring | None = None,
        *,
        anonymous: bool = True,
        local_hosts_only: bool = False,
        allow_reset: bool = False,
        max_body_bytes: int,
        limits: QuotaLimits | None = None,
        origins: Collection[str] = (),
        counters: Counters | None = None,
        traced: bool = False,
        ack: Ack = Ack.LOCAL,
    ) -> None:
        """`ack` is the acknowledgement level of writes whose key and request say nothing else."""
        self._keyring, self._anonymous, self._allow_reset = keyring, anonymous, allow_reset
        self._local_hosts_only = local_hosts_only
        self._max_body_bytes, self._limits = max_body_bytes, limits or QuotaLimits()
        self._origins = frozenset(each.encode() for each in origins)
        self.counters, self.usage = counters or Counters(), Usage()
        self.traced, self._ack = traced, ack
        self._cache: dict[bytes, Decision] = {}
        now_s = time.monotonic()
        self._anonymous_principal = Principal(None, Role.ADMIN, EVERYTHING, self._limits, now_s)
        self._principals: dict[str, Principal] = {}
        if keyring is not None:
            keyring.on_change(self._keys_changed)

    def decide(self, raw: bytes) -> Decision:
        """The decision about a head, which includes its empty line. Raises InvalidRequest or HeadTooLarge."""
        decision = self._cache.get(raw)
        if decision is not None:
            if decision.expires_at_s is None or time.time() < decision.expires_at_s:
                return decision
            del self._cache[raw]
        decision = self._decide(parse_request(raw))
        principal = decision.principal
        authenticated = principal is not None and (self._anonymous or principal is not self._anonymous_principal)
        # A session may end at any moment.
        has_cookie = any(name == COOKIE for name, _ in decision.head.credentials)
        if authenticated and len(raw) <= _MAX_CACHED_HEAD_BYTES and not has_cookie:
            if len(self._cache) >= _MAX_CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[raw] = decision
        return decision

    def principal(self, token: str | None) -> Principal:
        """The sender of `token`. Raises Unauthorized for an invalid token, and for None where a key is needed."""
        if self._keyring is None:
            return self._anonymous_principal
        if token is None:
            if self._anonymous:
                return self._anonymous_principal
            raise Unauthorized("no key was given", _HINT)
        try:
            key = self._keyring.find(token)
        except Unauthorized:
            if self._ignores_unknown_tokens:
                return self._anonymous_principal
            raise
        principal = self._principals.get(key.name)
        if principal is None or principal.key != key:
            principal = Principal(key, key.role, key.scope, key.limits or self._limits, time.monotonic())
            self._principals[key.name] = principal
        return principal

    # ------------------------------------------------------------------ inside

    def _keys_changed(self) -> None:
        """Clear the cache. A principal whose key is the same keeps its quota."""
        self._cache.clear()
        keys = {key.name: key for key in self._keyring.keys} if self._keyring else {}
        self._principals = {
            name: principal
            for name, principal in self._principals.items()
            if principal.key == keys.get(name, principal.key)
        }

    @property
    def _ignores_unknown_tokens(self) -> bool:
        """Whether no keys are configured. Then a token is meant for another server, such as a proxy in front."""
        return self._anonymous and (self._keyring is None or not self._keyring.keys)

    def _decide(self, head: RequestHead) -> Decision:
        action = head.route.action
        principal, refusal = self._authenticate(head)
        kind = "probe" if action is Action.PROBE else _KINDS[head.route.kind]
        label = Label(action.value, head.method.decode("ascii"), principal.name if principal else NO_KEY)
        limits = principal.limits if principal else self._limits
        max_body_bytes = min(self._max_body_bytes, limits.body_bytes or self._max_body_bytes)
        if self.traced:  # Chroma gets the gateway's own span as parent instead
            head = head._replace(upstream=_TRACEPARENT.sub(b"\r\n", head.upstream))
        decision = Decision(head, self.counters.of(label, kind), principal, max_body_bytes)
        decision.counter.note = self.usage.note_of(action)
        decision.refusal = refusal
        self._check_origin(decision)
        if principal is self._anonymous_principal and self._local_hosts_only and action is not Action.PROBE:
            try:
                require_local_host(head.host)
            except Forbidden as error:
                decision.refusal, decision.response = error, None
        if principal is not None and head.for_chroma and decision.response is None:
            self._plan(decision, principal, action)
        decision.pass_through = (
            principal is not None
            and decision.plan is UNRESTRICTED
            and decision.response is None
            and decision.refusal is None
            and not limits.requests_per_s
            and not limits.in_flight
            and not (limits.records and action in RECORD_WRITES)
            and action not in RENAMES
            and action not in AUDITED
            and decision.ack is None
            and not decision.extra_headers
            and not self.traced
        )
        if principal is not None and principal.key is not None:
            decision.expires_at_s = principal.key.expires_at_s
        return decision

    def _authenticate(self, head: RequestHead) -> tuple[Principal | None, GatewayError | None]:
        try:
            return self.principal(token_in(head.credentials)), None
        except Unauthorized as error:
            # Probes need no key: load balancers have none, and a probe's response says nothing else.
            if self._ignores_unknown_tokens or head.route.action is Action.PROBE:
                return self._anonymous_principal, None
            return None, error

    def _check_origin(self, decision: Decision) -> None:
        head = decision.head
        if head.origin is not None and head.origin in self._origins:
            decision.extra_headers = cors_headers(head.origin)
            if head.method == b"OPTIONS" and head.has_request_method:
                decision.refusal, decision.response = None, preflight_head(head.origin)
        elif (
            head.cross_origin
            and decision.principal is self._anonymous_principal
            and head.method not in (b"GET", b"HEAD")
        ):
            # A browser sends simple requests of any page without a preflight, and a write needs no readable response.
            # Where keys are needed, a page of another origin has none.
            decision.refusal = Forbidden("pages of other origins may not change anything", "see GATEWAY_CORS_ORIGINS")

    def _plan(self, decision: Decision, principal: Principal, action: Action) -> None:
        try:
            decision.plan = plan_access(principal.scope, principal.role, decision.head.route)
            if action is Action.RESET and not self._allow_reset:
                raise _ResetDisabled("Reset is disabled by config", "it removes everything; see GATEWAY_ALLOW_RESET")
            if action is Action.IDENTITY and principal.key is not None:
                decision.response = identity_response(principal.name, principal.scope)
            elif decision.plan.response is not None:
                decision.response = decision.plan.response
            asked, of_key = parse_ack(decision.head.ack), principal.key.ack if principal.key else None
            if _writes(decision):
                decision.ack = ack_level(self._ack, of_key, asked)
        except GatewayError as error:
            decision.refusal = error


def _writes(decision: Decision) -> bool:
    """Whether Chroma changes something that is worth to be stored. First reads write too, and change no records."""
    route = decision.head.route
    return route.kind is Kind.WRITE and route.action not in READS and not decision.plan.get_only


class _ResetDisabled(Forbidden):
    """Has Chroma's message and name (`rust/frontend/src/impls/service_based_frontend.rs`)."""

    @property
    def name(self) -> str:
        return "ChromaError"
