"""Exchanges for which the door wants more than to pass them on: scopes, limits, the audit.

`ScopedRequest` makes sure that a collection's name is in scope when the request comes in, and again when Chroma is
given the last of it: between the two the collection may have been renamed. `FilteredRequest` asks for a whole list
and shows what is in scope. A `Companion` is told how it ends.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import parse_qsl

import msgspec

from gateway.auth.access import AccessPlan, Answer, Lists, require_name
from gateway.auth.quota import Quota
from gateway.auth.scope import Names, Scope
from gateway.errors import BadUpstream, BodyTooLarge, GatewayError, InvalidRequest, Overloaded, Unavailable
from gateway.proxy.answers import own_answer
from gateway.proxy.framing import Body, Chunked
from gateway.proxy.gate import Gate, Ticket
from gateway.proxy.heads import RequestHead, ResponseHead
from gateway.proxy.policy import Decision
from gateway.proxy.proxied_request import Client, ProxiedRequest
from gateway.proxy.upstream import Pool, Upstream

_MAX_NAMING_BODY_BYTES = 1 << 20
_RENAMED = "the collection's name may have changed meanwhile"


class CollectionNames(Protocol):
    """Knows which name a UUID has; see `gateway.chroma.names`."""

    @property
    def generation(self) -> object: ...

    def changed(self) -> None: ...

    def known(self, collection_id: str) -> "tuple[str, str, str] | None": ...

    async def find(self, collection_id: str) -> "tuple[str, str, str] | None": ...


class Room:
    """How much of bodies that must be whole may be here at once, of all visitors together."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.taken_bytes = most_bytes, 0


class ScopedRequest(ProxiedRequest):
    """Of a visitor who sees a part only, or may write so many records at once."""

    _generation: object = None
    _taken_bytes = 0  # of the room

    def __init__(
        self,
        client: Client,
        decision: Decision,
        request_id: bytes,
        gate: Gate,
        pool: Pool,
        names: CollectionNames,
        max_records: int,
        room: Room,
    ) -> None:
        super().__init__(client, decision.head, request_id, gate, pool, decision.counter)
        assert decision.principal is not None
        self._plan: AccessPlan = decision.plan
        self._scope: Scope = decision.principal.scope
        self._names, self._max_records, self._room = names, max_records, room
        self._wants_whole = self._plan.name_field is not None or max_records > 0

    def receive(self, data: bytes, *, complete: bool) -> None:
        if self.over:
            return
        if self._wants_whole and not self._begun:
            self._receive_whole(data, complete=complete)
            return
        if complete and self._upstream is not None and not self._awaits_end and self._stale:
            self._give_up()
            return
        super().receive(data, complete=complete)

    def _receive_whole(self, data: bytes, *, complete: bool) -> None:
        self.received = complete
        if data:
            self._held.append(data)
            self._held_bytes += len(data)
            self._taken_bytes += len(data)
            self._room.taken_bytes += len(data)
        if self._room.taken_bytes > self._room.most_bytes:
            self.fail(Overloaded("too many long requests are arriving at once", "send it again, a little later"))
        elif self._plan.name_field is not None and self._held_bytes > _MAX_NAMING_BODY_BYTES:
            self.fail(BodyTooLarge(f"the body of {self.head.what} may have {_MAX_NAMING_BODY_BYTES} bytes"))
        elif complete:
            try:
                self._inspect(_unframed(self._held, chunked=self.head.chunked))
            except GatewayError as error:
                self.fail(error)
                return
            self._begin()

    def _inspect(self, body: bytes) -> None:
        if self._plan.name_field is not None:
            require_name(self._plan, body)
        if self._max_records:
            records = _records(body)
            if records > self._max_records:
                raise BodyTooLarge(
                    f"{records} records at once, and this key may write {self._max_records}", "send them in parts"
                )

    def _begin(self) -> None:
        self._begun = True
        id_ = self._plan.collection_id
        if id_ is None:
            super()._begin()
            return
        named = self._names.known(id_)
        if named is None:
            self._admission = asyncio.create_task(self._look_up(id_))
        else:
            self._admit_if_visible(named)

    async def _look_up(self, id_: str) -> None:
        try:
            named = await self._names.find(id_)
        except GatewayError as error:
            self.fail(error)
            return
        finally:
            self._admission = None
        if not self.over:
            self._admit_if_visible(named)

    def _admit_if_visible(self, named: tuple[str, str, str] | None) -> None:
        to = self.head.to
        # Chroma does not look at the tenant and the database before a UUID; this key's holder must name its own.
        if named is None or not self._scope.sees(*named) or tuple(named[:2]) != (to.tenant, to.database):
            assert self._plan.absent is not None
            self._say(self._plan.absent)
            return
        self._generation = self._names.generation
        super()._begin()

    @property
    def _stale(self) -> bool:
        return self._plan.collection_id is not None and self._generation != self._names.generation

    def connected(self, upstream: Upstream) -> None:
        if self._stale:
            # Look again, with all that comes before: nothing was sent yet.
            self._pool.keep(upstream)
            self._pool.leave(self)
            self._leave_the_gate()
            self._awaits_end = False
            self._begin()
            return
        super().connected(upstream)

    def _send_the_end(self, ticket: Ticket) -> None:
        if self._upstream is not None and not self.over and self._stale:
            self._gate.leave(ticket)
            self._give_up()
            return
        super()._send_the_end(ticket)

    def _give_up(self) -> None:
        """Chroma has a part of the request, which it does nothing with."""
        if self._upstream is not None:
            self._upstream.drop()
        self.fail(Unavailable(_RENAMED, "nothing happened; send it again"))

    def _end(self) -> None:
        self._room.taken_bytes -= self._taken_bytes
        self._taken_bytes = 0
        super()._end()

    def _say(self, answer: Answer) -> None:
        if self.over:
            return
        last = self._client.closing or not self.head.keep_alive or not self.received
        self._status = answer.status
        self._end()
        bare = self.head.method == b"HEAD"
        self._client.write(own_answer(answer, self._request_id, close=last, bare=bare, extra=self.extra))
        self._client.answer_ended(last=last)


class FilteredRequest(ProxiedRequest):
    """Of a list, of which the visitor sees a part."""

    def __init__(self, client: Client, decision: Decision, request_id: bytes, gate: Gate, pool: Pool) -> None:
        self._bare = decision.head.method == b"HEAD"
        self._plan = decision.plan
        head, self._offset, self._limit = _of_all(decision.head, decision.plan.lists)
        super().__init__(client, head, request_id, gate, pool, decision.counter)
        self._answer_head: ResponseHead | None = None
        self._pieces: list[bytes] = []

    def answer_begins(self, head: ResponseHead, body: Body, payload: bytes) -> None:
        self._answer_head = head
        self._pieces.append(payload)

    def answer_goes_on(self, body: Body, payload: bytes) -> None:
        self._pieces.append(payload)

    def answer_ended(self) -> None:
        assert self._answer_head is not None
        status, body = self._answer_head.status, b"".join(self._pieces)
        try:
            if status == 200:
                body = self._visible(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.fail(BadUpstream("Chroma's list is not one"))
            return
        last = self._client.closing or not self.head.keep_alive or not self.received
        self._status = status
        self._end()
        words = own_answer(Answer(status, body), self._request_id, close=last, bare=self._bare, extra=self.extra)
        self._client.write(words)
        self._client.answer_ended(last=last)

    def _visible(self, body: bytes) -> bytes:
        shown = visible(body, self._plan.visible)
        if self._plan.lists is Lists.COUNT:
            return b"%d" % len(shown)
        end = None if self._limit is None else self._offset + self._limit
        return b"[" + b",".join(shown[self._offset : end]) + b"]"


class _Item(msgspec.Struct):
    name: str


def visible(body: bytes, names: Names) -> list[bytes]:
    """Those of a JSON list whose `name` is one of `names`, as they are."""
    return [
        bytes(each)
        for each in msgspec.json.decode(body, type=list[msgspec.Raw])
        if msgspec.json.decode(each, type=_Item).name in names
    ]


_NUMBER = re.compile(r"[0-9]{1,9}")


def _of_all(head: RequestHead, lists: Lists | None) -> tuple[RequestHead, int, int | None]:
    """The same question for all of the list, and which part of what is visible of it was asked for.

    A query that Chroma may not take goes to Chroma as it is.
    """
    query = parse_qsl(head.query.decode("latin-1"), keep_blank_values=True)
    asked = {name: value for name, value in query if name in ("limit", "offset")}
    proper = len([name for name, _ in query if name in asked]) == len(asked)
    proper = proper and all(map(_NUMBER.fullmatch, asked.values()))
    target = head.path
    if lists is Lists.COUNT:
        target = target.removesuffix(b"_count")
    elif not proper:
        target += b"?" + head.query
    _, _, lines = head.upstream.partition(b"\r\n")
    upstream = b"GET %b HTTP/1.1\r\n%b" % (target, lines)
    limit = int(asked["limit"]) if proper and "limit" in asked else None
    offset = int(asked["offset"]) if proper and "offset" in asked else 0
    return head._replace(upstream=upstream, method=b"GET"), offset, limit


class _Written(msgspec.Struct):
    ids: list[msgspec.Raw] | None = None


def _records(body: bytes) -> int:
    """How many records a write names. Raises InvalidRequest for what cannot be counted."""
    try:
        return len(msgspec.json.decode(body, type=_Written).ids or ())
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest(
            "this key may write so many records at once, and those of this body cannot be counted"
        ) from None


def _unframed(pieces: list[bytes], *, chunked: bool) -> bytes:
    body = b"".join(pieces)
    return Chunked().take(body)[0] if chunked else body


class Watcher:
    """The companion of an exchange that is counted, that may rename, or that the audit wants to know of."""

    def __init__(self, quota: Quota | None, names: CollectionNames | None, notes: "Sequence[Note]") -> None:
        self._quota, self._names, self._notes = quota, names, notes

    def answered(self) -> None:
        if self._names is not None:
            self._names.changed()

    def ended(self, status: int) -> None:
        if self._quota is not None:
            self._quota.end()
        if self._names is not None:
            self._names.changed()
        for note in self._notes:
            note(status)


class Note(Protocol):
    """Writes down how it ended."""

    def __call__(self, status: int) -> None: ...
