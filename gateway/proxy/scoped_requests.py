"""Proxied requests that need a check or a filter: scopes, and limits on records.

`ScopedRequest` checks that a collection's name is in scope when the request arrives, and again before Chroma gets the
last of it: the collection may have been renamed in between. It makes a reader's `get_or_create` a get.
`FilteredRequest` asks Chroma for a whole list, and passes on what is in scope.
"""

import asyncio
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

import msgspec

from gateway.auth.access import FilteredList, StaticResponse, name_to_get, require_name
from gateway.auth.scope import Names
from gateway.chroma.names import CollectionNames
from gateway.chroma.routes import match_route
from gateway.errors import BadUpstream, BodyTooLarge, GatewayError, InvalidRequest, Overloaded, Unavailable
from gateway.proxy.acknowledged_request import AcknowledgedRequest
from gateway.proxy.framing import Body, Chunked
from gateway.proxy.gate import Gate, Ticket
from gateway.proxy.heads import RequestHead, ResponseHead
from gateway.proxy.policy import Decision
from gateway.proxy.proxied_request import ProxiedRequest
from gateway.proxy.upstream import Pool, UpstreamConnection

if TYPE_CHECKING:
    from gateway.proxy.client import ClientConnection

_MAX_NAMING_BODY_BYTES = 1 << 20
_OF_A_BODY = (b"content-length", b"content-type", b"content-encoding", b"transfer-encoding")
_RENAMED = "the collection's name may have changed meanwhile"


class BodyBudget:
    """Limits the memory for bodies that are held until they are complete, of all requests together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.used_bytes = max_bytes, 0


class ScopedRequest(AcknowledgedRequest):
    """A request of a key with a scope, or with a limit of `max_records` per write (0 is no limit)."""

    _generation: object = None  # of the collection's name, when it was checked
    _budgeted_bytes = 0

    def __init__(
        self,
        client: "ClientConnection",
        decision: Decision,
        request_id: bytes,
        gate: Gate,
        pool: Pool,
        names: CollectionNames,
        max_records: int,
        budget: BodyBudget,
    ) -> None:
        super().__init__(client, decision.head, request_id, gate, pool, decision.counter)
        assert decision.principal is not None
        self._plan, self._scope = decision.plan, decision.principal.scope
        self._names, self._max_records, self._budget = names, max_records, budget
        self._is_about_a_name = self._plan.name_field is not None or self._plan.get_only
        self._needs_whole_body = self._is_about_a_name or max_records > 0

    def receive(self, data: bytes, *, complete: bool) -> None:
        if self.ended:
            return
        if self._needs_whole_body and not self._begun:
            self._receive_whole(data, complete=complete)
            return
        if complete and self._upstream is not None and not self._holds_last_piece and self._names_changed:
            self._fail_renamed()
            return
        super().receive(data, complete=complete)

    def _receive_whole(self, data: bytes, *, complete: bool) -> None:
        self.received = complete
        if data:
            self._held.append(data)
            self._held_bytes += len(data)
            self._budgeted_bytes += len(data)
            self._budget.used_bytes += len(data)
        if self._budget.used_bytes > self._budget.max_bytes:
            self.fail(Overloaded("too many long requests are arriving at once", "send it again, a little later"))
        elif self._is_about_a_name and self._held_bytes > _MAX_NAMING_BODY_BYTES:
            self.fail(BodyTooLarge(f"the body of {self.head.what} may have {_MAX_NAMING_BODY_BYTES} bytes"))
        elif complete:
            try:
                self._check_body(_payload(self._held, chunked=self.head.chunked))
            except GatewayError as error:
                self.fail(error)
                return
            self._begin()

    def _check_body(self, body: bytes) -> None:
        name = name_to_get(body) if self._plan.get_only else None
        if self._plan.name_field is not None:
            require_name(self._plan, body)
        if name is not None:
            self.head, self._held, self._held_bytes = _get_collection(self.head, name), [], 0
        if self._max_records:
            records = _count_records(body)
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
        if not self.ended:
            self._admit_if_visible(named)

    def _admit_if_visible(self, named: tuple[str, str, str] | None) -> None:
        route = self.head.route
        # Chroma finds a collection by its UUID alone and ignores the tenant and database in the path
        # (`gateway.chroma.names`). So the gateway compares them.
        if named is None or not self._scope.sees(*named) or tuple(named[:2]) != (route.tenant, route.database):
            assert self._plan.not_found is not None
            self._respond_static(self._plan.not_found)
            return
        self._generation = self._names.generation
        super()._begin()

    @property
    def _names_changed(self) -> bool:
        return self._plan.collection_id is not None and self._generation != self._names.generation

    def connected(self, upstream: UpstreamConnection) -> None:
        if self._names_changed:
            self._begin_again(upstream)
            return
        super().connected(upstream)

    def _send_last_piece(self, ticket: Ticket) -> None:
        if self._upstream is not None and not self.ended and self._names_changed:
            self._gate.release(ticket)
            self._fail_renamed()
            return
        super()._send_last_piece(ticket)

    def _fail_renamed(self) -> None:
        """Chroma has a part of the request. It does nothing with a part."""
        if self._upstream is not None:
            self._upstream.abort()
        self.fail(Unavailable(_RENAMED, "nothing happened; send it again"))

    def _leave_chroma(self) -> None:
        self._return_budget()
        super()._leave_chroma()

    def _end(self) -> None:
        self._return_budget()
        super()._end()

    def _return_budget(self) -> None:
        self._budget.used_bytes -= self._budgeted_bytes
        self._budgeted_bytes = 0


def _get_collection(head: RequestHead, name: str) -> RequestHead:
    """The request for a collection in place of the one to get or create it, which has a body."""
    path = b"%b/%b" % (head.path, quote(name, safe="").encode())
    lines = [line for line in head.upstream.split(b"\r\n")[1:] if line.partition(b":")[0].lower() not in _OF_A_BODY]
    upstream = b"\r\n".join((b"GET %b HTTP/1.1" % path, *lines))
    route = match_route("GET", path)
    return head._replace(
        upstream=upstream, method=b"GET", route=route, length_bytes=None, chunked=False, idempotent=True
    )


class FilteredRequest(ProxiedRequest):
    """A request for a list of which the key sees a part."""

    def __init__(
        self, client: "ClientConnection", decision: Decision, request_id: bytes, gate: Gate, pool: Pool
    ) -> None:
        self._is_head = decision.head.method == b"HEAD"
        self._plan = decision.plan
        head, self._offset, self._limit = _unfiltered(decision.head, decision.plan.filtered)
        super().__init__(client, head, request_id, gate, pool, decision.counter)
        self._response_head: ResponseHead | None = None
        self._pieces: list[bytes] = []

    @property
    def _no_body(self) -> bool:
        return self._is_head  # Chroma is always sent GET

    def response_started(self, head: ResponseHead, body: Body, payload: bytes) -> None:
        self._response_head = head
        self._pieces.append(payload)

    def response_continued(self, body: Body, payload: bytes) -> None:
        self._pieces.append(payload)

    def response_ended(self) -> None:
        assert self._response_head is not None
        status, body = self._response_head.status, b"".join(self._pieces)
        try:
            if status == 200:
                body = self._filter(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.fail(BadUpstream("Chroma's list cannot be read"))
            return
        self._respond_static(StaticResponse(status, body))

    def _filter(self, body: bytes) -> bytes:
        visible = filter_by_name(body, self._plan.visible)
        if self._plan.filtered is FilteredList.COUNT:
            return b"%d" % len(visible)
        end = None if self._limit is None else self._offset + self._limit
        return b"[" + b",".join(visible[self._offset : end]) + b"]"


class _Item(msgspec.Struct):
    name: str


def filter_by_name(body: bytes, names: Names) -> list[bytes]:
    """The items of a JSON list whose `name` is one of `names`, in order, each byte for byte.

    Raises msgspec.DecodeError if `body` is not such a list.
    """
    return [
        bytes(each)
        for each in msgspec.json.decode(body, type=list[msgspec.Raw])
        if msgspec.json.decode(each, type=_Item).name in names
    ]


_NUMBER = re.compile(r"[0-9]{1,9}")


def _unfiltered(head: RequestHead, filtered: FilteredList | None) -> tuple[RequestHead, int, int | None]:
    """The request for the whole list, and the offset and limit that the client asked for.

    If they may be invalid, Chroma gets the query as it is, and rejects it.
    """
    query = parse_qsl(head.query.decode("latin-1"), keep_blank_values=True)
    asked = {name: value for name, value in query if name in ("limit", "offset")}
    valid = len([name for name, _ in query if name in asked]) == len(asked)
    valid = valid and all(map(_NUMBER.fullmatch, asked.values()))
    target = head.path
    if filtered is FilteredList.COUNT:
        target = target.removesuffix(b"_count")
    elif not valid:
        target += b"?" + head.query
    _, _, lines = head.upstream.partition(b"\r\n")
    upstream = b"GET %b HTTP/1.1\r\n%b" % (target, lines)
    limit = int(asked["limit"]) if valid and "limit" in asked else None
    offset = int(asked["offset"]) if valid and "offset" in asked else 0
    return head._replace(upstream=upstream, method=b"GET"), offset, limit


class _RecordsBody(msgspec.Struct):
    ids: list[msgspec.Raw] | None = None


def _count_records(body: bytes) -> int:
    """How many records a write names. Raises InvalidRequest if they cannot be counted."""
    try:
        return len(msgspec.json.decode(body, type=_RecordsBody).ids or ())
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest(
            "this key has a limit of records per write, and the records of this body cannot be counted"
        ) from None


def _payload(pieces: list[bytes], *, chunked: bool) -> bytes:
    body = b"".join(pieces)
    return Chunked().take(body)[0] if chunked else body
