"""The door: who is it, and what may they do here? Answered once for each distinct head.

An *entry* is what follows from one head's bytes and the keys of this moment. It is remembered, so that a request
whose head was seen before costs one look-up, with keys or without. Heads hold tokens: only those that were let in
are remembered, at most `_REMEMBERED`, and all are forgotten whenever the keys change. Strangers cannot push them out.
"""

import re
import time
from collections.abc import Collection

from gateway.auth.access import GO_ON, AccessPlan, Answer, identity, plan, require_role
from gateway.auth.keyring import Keyring
from gateway.auth.keys import ANONYMOUS_NAME, Key
from gateway.auth.quota import Quota, QuotaLimits
from gateway.auth.routes import DESTRUCTIVE, RECORD_WRITES, RENAMES, Action
from gateway.auth.scope import EVERYTHING, Role, Scope
from gateway.auth.tokens import token_in
from gateway.errors import Forbidden, GatewayError, Unauthorized
from gateway.proxy.answers import allow_origin, preflight
from gateway.proxy.classify import Kind
from gateway.proxy.counters import Counters, Label, RequestCounter
from gateway.proxy.heads import RequestHead, parse_request

# Longer ones are rare, and would fill the memory.
_REMEMBERED_BYTES = 2048
_REMEMBERED = 2048
_TRACEPARENT = re.compile(rb"\r\ntraceparent:[^\r\n]*\r\n", re.IGNORECASE)
_HINT = "send the header 'Authorization: Bearer <key>' or 'X-Chroma-Token: <key>'"
NOBODY = "none"
"""In metrics, the key of those that were turned away for having no valid one."""
_KINDS = {Kind.READ: "read", Kind.RECORD_READ: "read", Kind.WRITE: "write"}


class Principal:
    """Whoever holds a key, or anybody without one."""

    __slots__ = ("key", "limits", "name", "quota", "role", "scope")

    def __init__(self, key: Key | None, role: Role, scope: Scope, limits: QuotaLimits, now_s: float) -> None:
        self.key, self.role, self.scope, self.limits = key, role, scope, limits
        self.name = key.name if key else ANONYMOUS_NAME
        # One without a key shares with nobody but its own address.
        self.quota = Quota(limits, now_s) if key and (limits.requests_per_s or limits.in_flight) else None


class Decision:
    """See above. `plain` says that there is nothing to do but to pass the request on."""

    __slots__ = (
        *(
            "answer",
            "expires_at_s",
            "extra",
            "head",
            "max_body_bytes",
            "plain",
            "plan",
            "refusal",
            "counter",
            "principal",
        ),
    )

    def __init__(
        self, head: RequestHead, counter: RequestCounter, principal: Principal | None, max_body_bytes: int
    ) -> None:
        self.head, self.counter, self.principal, self.max_body_bytes = head, counter, principal, max_body_bytes
        self.plan: AccessPlan = GO_ON
        self.answer: Answer | bytes | None = None
        self.refusal: GatewayError | None = None
        self.extra = b""
        self.expires_at_s: float | None = None
        self.plain = True


class RequestPolicy:
    """One for all connections. `anonymous` says whether requests without a key may do all that Chroma can do."""

    def __init__(
        self,
        keyring: Keyring | None = None,
        *,
        anonymous: bool = True,
        allow_reset: bool = False,
        max_body_bytes: int,
        limits: QuotaLimits | None = None,
        origins: Collection[str] = (),
        counters: Counters | None = None,
        traced: bool = False,
    ) -> None:
        self._keyring, self._anonymous, self._allow_reset = keyring, anonymous, allow_reset
        self._max_body_bytes, self._limits = max_body_bytes, limits or QuotaLimits()
        self._origins = frozenset(each.encode() for each in origins)
        self.counters = counters or Counters()
        self.traced = traced
        self._known: dict[bytes, Decision] = {}
        now_s = time.monotonic()
        self._nobody = Principal(None, Role.ADMIN, EVERYTHING, self._limits, now_s)
        self._principals: dict[str, Principal] = {}
        if keyring is not None:
            keyring.when_changed(self.forget)

    def forget(self) -> None:
        """The keys have changed."""
        self._known.clear()
        named = {key.name: key for key in self._keyring.keys} if self._keyring else {}
        self._principals = {
            name: principal
            for name, principal in self._principals.items()
            if principal.key == named.get(name, principal.key)
        }

    def enter(self, raw: bytes) -> Decision:
        """The entry of a head, with the empty line that ends it. Raises InvalidRequest."""
        decision = self._known.get(raw)
        if decision is not None:
            if decision.expires_at_s is None or time.time() < decision.expires_at_s:
                return decision
            del self._known[raw]
        decision = self._judge(parse_request(raw))
        known = decision.principal is not None and (self._anonymous or decision.principal is not self._nobody)
        if known and len(raw) <= _REMEMBERED_BYTES:
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[raw] = decision
        return decision

    def principal(self, token: str | None) -> Principal:
        """Who sends `token`. Raises Unauthorized for a wrong one, and for none where one is needed."""
        if self._keyring is None:
            return self._nobody
        if token is None:
            if self._anonymous:
                return self._nobody
            raise Unauthorized("no key was given", _HINT)
        try:
            key = self._keyring.find(token)
        except Unauthorized:
            if self._ignores_strange_tokens:
                return self._nobody
            raise
        principal = self._principals.get(key.name)
        if principal is None or principal.key != key:
            principal = Principal(key, key.role, key.scope, key.limits or self._limits, time.monotonic())
            self._principals[key.name] = principal
        return principal

    # ------------------------------------------------------------------ inside

    @property
    def _ignores_strange_tokens(self) -> bool:
        """Nobody was given a key, so what looks like one is meant for somebody else."""
        return self._anonymous and (self._keyring is None or not self._keyring.keys)

    def _judge(self, head: RequestHead) -> Decision:
        action = head.to.action
        kind = "probe" if action is Action.PROBE else _KINDS[head.route.kind]
        method = head.method.decode("ascii")
        principal: Principal | None = None
        refusal: GatewayError | None = None
        try:
            principal = self.principal(token_in(head.credentials))
        except Unauthorized as error:
            refusal = error
            if self._ignores_strange_tokens:
                principal, refusal = self._nobody, None
            elif action is Action.PROBE:
                # Whoever sees to it that this is up has no key, and learns nothing else.
                principal, refusal = self._nobody, None
        name = principal.name if principal else NOBODY
        counter = self.counters.of(Label(action.value, method, name), kind)
        limits = principal.limits if principal else self._limits
        most = min(self._max_body_bytes, limits.body_bytes or self._max_body_bytes)
        if self.traced:  # the span in between is ours
            head = head._replace(upstream=_TRACEPARENT.sub(b"\r\n", head.upstream))
        decision = Decision(head, counter, principal, most)
        decision.refusal = refusal
        if head.origin is not None and head.origin in self._origins:
            decision.extra = allow_origin(head.origin)
            if method == "OPTIONS" and head.asks_method:
                decision.refusal, decision.answer = None, preflight(head.origin)
        elif head.of_another_page and principal is self._nobody and method not in ("GET", "HEAD"):
            # It asked for no permission before, and needs none to be harmful; where keys are wanted it has none.
            decision.refusal = Forbidden("pages of other origins may not change anything", "see GATEWAY_CORS_ORIGINS")
        if principal is not None and head.for_chroma and decision.answer is None:
            self._plan(decision, principal, action)
        decision.plain = (
            principal is not None
            and decision.plan is GO_ON
            and decision.answer is None
            and decision.refusal is None
            and not limits.requests_per_s
            and not limits.in_flight
            and not (limits.records and action in RECORD_WRITES)
            and action not in RENAMES
            and action not in DESTRUCTIVE
            and not decision.extra
            and not self.traced
        )
        if principal is not None and principal.key is not None:
            decision.expires_at_s = principal.key.expires_at_s
        return decision

    def _plan(self, decision: Decision, principal: Principal, action: Action) -> None:
        try:
            require_role(principal.role, action)
            if action is Action.RESET and not self._allow_reset:
                raise _ResetDisabled("Reset is disabled by config", "it removes everything; see GATEWAY_ALLOW_RESET")
            decision.plan = plan(principal.scope, decision.head.to)
            if action is Action.IDENTITY and principal.key is not None:
                decision.answer = identity(principal.name, principal.scope)
            elif decision.plan.answer is not None:
                decision.answer = decision.plan.answer
        except GatewayError as error:
            decision.refusal = error


class _ResetDisabled(Forbidden):
    """In Chroma's own words and kind (`rust/frontend/src/impls/service_based_frontend.rs`)."""

    @property
    def name(self) -> str:
        return "ChromaError"
