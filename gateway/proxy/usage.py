"""How clients use Chroma, as far as heads tell: plain numbers, from which the production check is made.

No body is read for it. Everything is bounded, and a request that is only passed on costs one look at an attribute. The
caller passes the time, of the event loop's clock.
"""

import re

from gateway.auth.addresses import is_private
from gateway.chroma.routes import Action
from gateway.proxy.counters import Note
from gateway.proxy.heads import RequestHead

# What Chroma answers to a query with one vector that found nothing, if it asked for what clients ask for by default:
# {"ids":[[]],"embeddings":null,"documents":[[]],"uris":null,"metadatas":[[]],"distances":[[]],
# "include":["metadatas","documents","distances"]} (docs/chroma-internals.md, "An answer without a record").
NOTHING_FOUND_BYTES = 141
_HOUR_S, _MINUTE_S = 3600, 60
_MAX_COLLECTIONS = 1000
_MAX_CLIENTS = 100
_FIRST_ERROR_STATUS = 300
_OK = 200
# `chromadb/api/fastapi.py` and `async_fastapi.py`. The JavaScript client does not say what it is.
_PYTHON_CLIENT = re.compile(rb"Chroma Python Client v(\d{1,3}(?:\.\d{1,3}){1,2})")
_LOCAL = (b"127.", b"::1", b"unknown")


class RecordWrites:
    """Requests since Chroma's start that added, upserted or updated records. `busiest` is the most of one minute."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.count = self.busiest = 0
        self._minute, self._in_minute = -1.0, 0

    def note(
        self, _collection_id: str | None, status: int, _length_bytes: int | None, epoch: int | None, now_s: float
    ) -> None:
        if status >= _FIRST_ERROR_STATUS:
            return
        if epoch != self.epoch:
            self.epoch, self.count, self.busiest, self._minute = epoch, 0, 0, -1.0
        self.count += 1
        minute = now_s // _MINUTE_S
        if minute != self._minute:
            self._minute, self._in_minute = minute, 0
        self._in_minute += 1
        self.busiest = max(self.busiest, self._in_minute)


class Answers:
    """What queries of one collection found. `nothing` counts answers that are as long as one without a record."""

    __slots__ = ("nothing", "since_s", "total")

    def __init__(self, since_s: float) -> None:
        self.since_s, self.total, self.nothing = since_s, 0, 0


class Queries:
    """Answers to queries by collection, of this hour and the one before."""

    def __init__(self) -> None:
        self._hour = -1.0
        self._now: dict[str, Answers] = {}
        self._before: dict[str, Answers] = {}

    def note(
        self, collection_id: str | None, status: int, length_bytes: int | None, _epoch: int | None, now_s: float
    ) -> None:
        if status != _OK or collection_id is None:
            return
        self._turn(now_s)
        answers = self._now.get(collection_id)
        if answers is None:
            if len(self._now) >= _MAX_COLLECTIONS:
                return
            answers = self._now[collection_id] = Answers(now_s)
        answers.total += 1
        answers.nothing += length_bytes == NOTHING_FOUND_BYTES

    def latest(self, now_s: float, least: int) -> dict[str, Answers]:
        """By collection: this hour's answers if there are at least `least`, else those of the hour before."""
        self._turn(now_s)
        return self._before | {each: found for each, found in self._now.items() if found.total >= least}

    def _turn(self, now_s: float) -> None:
        hour = now_s // _HOUR_S
        if hour != self._hour:
            self._before = self._now if hour == self._hour + 1 else {}
            self._hour, self._now = hour, {}


class Connections:
    """Connections of clients with a valid key, or without one where none is needed. Probes do not count.

    `python_clients`: by version of chromadb. `forwarded`: a proxy sent the first request. `encrypted`: it came to that
    proxy over TLS. `clear`: it came from another machine without TLS, to this gateway or to that proxy. A proxy that
    does not say it is counted in neither. `private`: it came from a private address without TLS and without a proxy.
    That may be another machine, or this one: a connection to a port that Docker publishes comes from its bridge.
    """

    def __init__(self) -> None:
        self.python_clients: dict[str, int] = {}
        self.forwarded = self.encrypted = self.clear = self.private = 0

    def note(self, peer: bytes, head: RequestHead) -> None:
        """Count a connection by its first request. `peer` is the address that the connection comes from."""
        if head.forwarded_for is not None or head.forwarded_proto is not None:
            self.forwarded += 1
        if head.forwarded_proto == b"https":
            self.encrypted += 1
        elif head.forwarded_proto is not None:
            self.clear += 1
        elif head.forwarded_for is None and not peer.startswith(_LOCAL):
            if is_private(peer.decode("latin-1")):
                self.private += 1
            else:
                self.clear += 1
        if head.user_agent is not None and (found := _PYTHON_CLIENT.match(head.user_agent)):
            version = found[1].decode()
            if version in self.python_clients or len(self.python_clients) < _MAX_CLIENTS:
                self.python_clients[version] = self.python_clients.get(version, 0) + 1


class Usage:
    """All of it."""

    def __init__(self) -> None:
        self.writes, self.queries, self.connections = RecordWrites(), Queries(), Connections()

    def note_of(self, action: Action) -> Note | None:
        """What to call when Chroma's response to such a request begins; None for most actions."""
        if action is Action.QUERY:
            return self.queries.note
        return self.writes.note if action in (Action.ADD, Action.UPSERT, Action.UPDATE) else None
