"""The door: who is it, and what may they do here? Answered once for each distinct head.

An *entry* is what follows from one head's bytes and the keys of this moment. It is remembered, so that a request
whose head was seen before costs one look-up, with keys or without. Heads hold tokens: only those that were let in
are remembered, at most `_REMEMBERED`, and all are forgotten whenever the keys change. Strangers cannot push them out.
"""

import re
import time
from collections.abc import Collection

from gateway.auth.access import GO_ON, Answer, Plan, identity, plan, require_role
from gateway.auth.keyring import Keyring
from gateway.auth.keys import ANONYMOUS_NAME, Key
from gateway.auth.quota import Limits, Quota
from gateway.auth.routes import DESTRUCTIVE, RECORD_WRITES, RENAMES, Action
from gateway.auth.scope import EVERYTHING, Role, Scope
from gateway.auth.tokens import token_in
from gateway.errors import Forbidden, GatewayError, Unauthorized
from gateway.proxy.answers import allow_origin, preflight
from gateway.proxy.classify import Kind
from gateway.proxy.heads import RequestHead, parse_request
from gateway.proxy.tally import Label, Tallies, Tally

# Longer ones are rare, and would fill the memory.
_REMEMBERED_BYTES = 2048
_REMEMBERED = 2048
_TRACEPARENT = re.compile(rb"\r\ntraceparent:[^\r\n]*\r\n", re.IGNORECASE)
_HINT = "send the header 'Authorization: Bearer <key>' or 'X-Chroma-Token: <key>'"
NOBODY = "none"
"""In metrics, the key of those that were turned away for having no valid one."""
_KINDS = {Kind.READ: "read", Kind.RECORD_READ: "read", Kind.WRITE: "write"}


class Visitor:
    """Whoever holds a key, or anybody without one."""

    __slots__ = ("key", "limits", "name", "quota", "role", "scope")

    def __init__(self, key: Key | None, role: Role, scope: Scope, limits: Limits, now_s: float) -> None:
        self.key, self.role, self.scope, self.limits = key, role, scope, limits
        self.name = key.name if key else ANONYMOUS_NAME
        # One without a key shares with nobody but its own address.
        self.quota = Quota(limits, now_s) if key and (limits.requests_per_s or limits.in_flight) else None


class Entry:
    """See above. `plain` says that there is nothing to do but to pass the request on."""

    __slots__ = (
        *("answer", "expires_at_s", "extra", "head", "max_body_bytes", "plain", "plan", "refusal", "tally", "visitor"),
    )

    def __init__(self, head: RequestHead, tally: Tally, visitor: Visitor | None, max_body_bytes: int) -> None:
        self.head, self.tally, self.visitor, self.max_body_bytes = head, tally, visitor, max_body_bytes
        self.plan: Plan = GO_ON
        self.answer: Answer | bytes | None = None
        self.refusal: GatewayError | None = None
        self.extra = b""
        self.expires_at_s: float | None = None
        self.plain = True


class Door:
    """One for all connections. `anonymous` says whether requests without a key may do all that Chroma can do."""

    def __init__(
        self,
        keyring: Keyring | None = None,
        *,
        anonymous: bool = True,
        allow_reset: bool = False,
        max_body_bytes: int,
        limits: Limits | None = None,
        origins: Collection[str] = (),
        tallies: Tallies | None = None,
        traced: bool = False,
    ) -> None:
        self._keyring, self._anonymous, self._allow_reset = keyring, anonymous, allow_reset
        self._max_body_bytes, self._limits = max_body_bytes, limits or Limits()
        self._origins = frozenset(each.encode() for each in origins)
        self.tallies = tallies or Tallies()
        self.traced = traced
        self._known: dict[bytes, Entry] = {}
        now_s = time.monotonic()
        self._nobody = Visitor(None, Role.ADMIN, EVERYTHING, self._limits, now_s)
        self._visitors: dict[str, Visitor] = {}
        if keyring is not None:
            keyring.when_changed(self.forget)

    def forget(self) -> None:
        """The keys have changed."""
        self._known.clear()
        named = {key.name: key for key in self._keyring.keys} if self._keyring else {}
        self._visitors = {
            name: visitor for name, visitor in self._visitors.items() if visitor.key == named.get(name, visitor.key)
        }

    def enter(self, raw: bytes) -> Entry:
        """The entry of a head, with the empty line that ends it. Raises InvalidRequest."""
        entry = self._known.get(raw)
        if entry is not None:
            if entry.expires_at_s is None or time.time() < entry.expires_at_s:
                return entry
            del self._known[raw]
        entry = self._judge(parse_request(raw))
        known = entry.visitor is not None and (self._anonymous or entry.visitor is not self._nobody)
        if known and len(raw) <= _REMEMBERED_BYTES:
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[raw] = entry
        return entry

    def visitor(self, token: str | None) -> Visitor:
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
        visitor = self._visitors.get(key.name)
        if visitor is None or visitor.key != key:
            visitor = Visitor(key, key.role, key.scope, key.limits or self._limits, time.monotonic())
            self._visitors[key.name] = visitor
        return visitor

    # ------------------------------------------------------------------ inside

    @property
    def _ignores_strange_tokens(self) -> bool:
        """Nobody was given a key, so what looks like one is meant for somebody else."""
        return self._anonymous and (self._keyring is None or not self._keyring.keys)

    def _judge(self, head: RequestHead) -> Entry:
        action = head.to.action
        kind = "probe" if action is Action.PROBE else _KINDS[head.route.kind]
        method = head.method.decode("ascii")
        visitor: Visitor | None = None
        refusal: GatewayError | None = None
        try:
            visitor = self.visitor(token_in(head.credentials))
        except Unauthorized as error:
            refusal = error
            if self._ignores_strange_tokens:
                visitor, refusal = self._nobody, None
            elif action is Action.PROBE:
                # Whoever sees to it that this is up has no key, and learns nothing else.
                visitor, refusal = self._nobody, None
        name = visitor.name if visitor else NOBODY
        tally = self.tallies.of(Label(action.value, method, name), kind)
        limits = visitor.limits if visitor else self._limits
        most = min(self._max_body_bytes, limits.body_bytes or self._max_body_bytes)
        if self.traced:  # the span in between is ours
            head = head._replace(upstream=_TRACEPARENT.sub(b"\r\n", head.upstream))
        entry = Entry(head, tally, visitor, most)
        entry.refusal = refusal
        if head.origin is not None and head.origin in self._origins:
            entry.extra = allow_origin(head.origin)
            if method == "OPTIONS" and head.asks_method:
                entry.refusal, entry.answer = None, preflight(head.origin)
        elif head.of_another_page and visitor is self._nobody and method not in ("GET", "HEAD"):
            # It asked for no permission before, and needs none to be harmful; where keys are wanted it has none.
            entry.refusal = Forbidden("pages of other origins may not change anything", "see GATEWAY_CORS_ORIGINS")
        if visitor is not None and head.for_chroma and entry.answer is None:
            self._plan(entry, visitor, action)
        entry.plain = (
            visitor is not None
            and entry.plan is GO_ON
            and entry.answer is None
            and entry.refusal is None
            and not limits.requests_per_s
            and not limits.in_flight
            and not (limits.records and action in RECORD_WRITES)
            and action not in RENAMES
            and action not in DESTRUCTIVE
            and not entry.extra
            and not self.traced
        )
        if visitor is not None and visitor.key is not None:
            entry.expires_at_s = visitor.key.expires_at_s
        return entry

    def _plan(self, entry: Entry, visitor: Visitor, action: Action) -> None:
        try:
            require_role(visitor.role, action)
            if action is Action.RESET and not self._allow_reset:
                raise _ResetDisabled("Reset is disabled by config", "it removes everything; see GATEWAY_ALLOW_RESET")
            entry.plan = plan(visitor.scope, entry.head.to)
            if action is Action.IDENTITY and visitor.key is not None:
                entry.answer = identity(visitor.name, visitor.scope)
            elif entry.plan.answer is not None:
                entry.answer = entry.plan.answer
        except GatewayError as error:
            entry.refusal = error


class _ResetDisabled(Forbidden):
    """In Chroma's own words and kind (`rust/frontend/src/impls/service_based_frontend.rs`)."""

    @property
    def name(self) -> str:
        return "ChromaError"
