"""Say what a request does to Chroma's disk: method *and* route decide. Pure.

Chroma's routes are those of chromadb 1.5.9's `GET /openapi.json`. POST does not mean write there:
`get`, `query` and `search` read. Unknown means write, so that a route that a newer Chroma adds can
only ever wait needlessly, never slip past the gate.
"""

import re
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    READ = "read"
    WRITE = "write"
    # A read of one collection's records: the first since Chroma's start writes.
    RECORD_READ = "record read"


class Route(NamedTuple):
    """`acts_on_whole_body`: Chroma parses the body before it does anything, so nothing happens until it is whole."""

    kind: Kind
    collection_id: str | None = None
    acts_on_whole_body: bool = False


_READ, _WRITE = Route(Kind.READ), Route(Kind.WRITE)
# Handlers that take `Json<…>` (`rust/frontend/src/server.rs`). Others may run as soon as they have the head.
_RECORD_WRITE = Route(Kind.WRITE, acts_on_whole_body=True)

# By raw path, as Chroma's own router matches: segments first, escapes decoded afterwards, nothing
# normalised. A doubled slash or a dot segment is one more odd name and can only become a write.
_COLLECTION = rb"/api/v2/tenants/[^/]+/databases/[^/]+/collections/"
_RECORD_READ_POST = re.compile(_COLLECTION + rb"([0-9a-fA-F-]{36})/(?:get|query|search)")
_RECORD_WRITE_POST = re.compile(_COLLECTION + rb"[^/]+/(?:add|upsert|update|delete)")
_RECORD_READ_GET = re.compile(_COLLECTION + rb"([0-9a-fA-F-]{36})/count")
_PLAIN_READ_GET = re.compile(
    rb"/api/v2(?:/heartbeat|/healthcheck|/version|/pre-flight-checks|/auth/identity|/collections/[^/]+"
    rb"|/tenants/[^/]+(?:/databases(?:/[^/]+(?:/collections_count|/collections"
    rb"(?:/[^/]+(?:/fork_count|/indexing_status|/functions/[^/]+)?|/by-id/[^/]+)?)?)?)?)"
    rb"|/api/v1(?:/heartbeat|/version|/pre-flight-checks)?"
)


def classify(method: str, raw_path: bytes) -> Route:
    """The kind of `method raw_path`, with the collection's id (lower case) for a record read.

    `raw_path` is the path as it came over the wire, without the query.
    """
    if method == "POST":
        if match := _RECORD_READ_POST.fullmatch(raw_path):
            return Route(Kind.RECORD_READ, match[1].decode().lower(), acts_on_whole_body=True)
        return _RECORD_WRITE if _RECORD_WRITE_POST.fullmatch(raw_path) else _WRITE
    if method in ("GET", "HEAD"):  # Chroma's router (axum) answers HEAD by running the GET handler
        if match := _RECORD_READ_GET.fullmatch(raw_path):
            return Route(Kind.RECORD_READ, match[1].decode().lower())
        return _READ if _PLAIN_READ_GET.fullmatch(raw_path) else _WRITE
    return _READ if method == "OPTIONS" else _WRITE
