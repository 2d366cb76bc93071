"""Chroma's HTTP routes: what each addresses, and what it does to Chroma's disk. Pure.

`ROUTES` is the only table of them: the gate, the roles, the scopes, the audit, the metrics and the documentation read
it. It has the routes of chromadb 1.5.9's `GET /openapi.json`, and those of API v1 that old clients call first.

POST does not mean write: `get`, `query` and `search` read. A route that is not in the table is a write, and only an
admin's key reaches it. So a route that a newer Chroma adds may wait needlessly, and never passes a closed gate. API v1
is gone, and every key gets Chroma's answer that it is.

Paths are matched as Chroma's router matches them (`rust/frontend/src/server.rs`, axum): split at slashes, then each
segment is decoded once, as UTF-8. Nothing is normalised: a doubled slash or a dot segment is one more unknown path.
"""

import re
from enum import Enum
from typing import NamedTuple
from urllib.parse import unquote_to_bytes


class Kind(Enum):
    """What a request does to Chroma's disk."""

    READ = "read"
    WRITE = "write"
    RECORD_READ = "record read"
    """A read of one collection's records. The first one since Chroma's start writes: see `gateway.proxy.gate`."""


class Resource(Enum):
    """What a path names last. The value is the placeholder in `Route.path`."""

    NONE = ""
    TENANT = "tenant"
    DATABASE = "database"
    COLLECTION = "collection"
    COLLECTION_ID = "collection_id"
    CRN = "crn"


class Action(Enum):
    """What a request is for. The value is its label in metrics, traces and the audit."""

    PROBE = "probe"
    PREFLIGHT_CHECKS = "pre_flight_checks"
    IDENTITY = "identity"
    RESET = "reset"
    CRN = "crn"
    CREATE_TENANT = "create_tenant"
    GET_TENANT = "get_tenant"
    UPDATE_TENANT = "update_tenant"
    LIST_DATABASES = "list_databases"
    CREATE_DATABASE = "create_database"
    GET_DATABASE = "get_database"
    DELETE_DATABASE = "delete_database"
    LIST_COLLECTIONS = "list_collections"
    COUNT_COLLECTIONS = "count_collections"
    CREATE_COLLECTION = "create_collection"
    GET_COLLECTION = "get_collection"
    DELETE_COLLECTION = "delete_collection"
    GET_COLLECTION_BY_ID = "get_collection_by_id"
    UPDATE_COLLECTION = "update_collection"
    FORK = "fork"
    ATTACH_FUNCTION = "attach_function"
    GET_FUNCTION = "get_function"
    DETACH_FUNCTION = "detach_function"
    ADD = "add"
    UPSERT = "upsert"
    UPDATE = "update"
    DELETE = "delete"
    GET = "get"
    QUERY = "query"
    SEARCH = "search"
    COUNT = "count"
    COLLECTION_STATUS = "collection_status"
    RETIRED = "retired"
    """API v1. Chroma answers that it is gone."""
    UNKNOWN = "unknown"


class Route(NamedTuple):
    """One route of Chroma."""

    method: str
    path: str
    """With placeholders: `{collection}` is a name, `{collection_id}` a UUID."""
    action: Action
    kind: Kind
    whole_body: bool = False
    """Whether Chroma parses the whole body before it does anything: its handler takes `Json<…>`. Other handlers may
    run as soon as they have the head."""
    probe: bool = False
    """Whether it asks if Chroma is up. Probes never wait behind other requests."""
    renames: bool = False
    """Whether a collection's UUID may have another name afterwards, or none."""
    audited: bool = False
    """Whether it destroys or renames something. Such requests are audited."""

    @property
    def resource(self) -> Resource:
        """What the path names last, functions aside."""
        names = [name for name in re.findall(r"{(\w+)}", self.path) if name != "function"]
        return Resource(names[-1] if names else "")


_READ, _WRITE, _RECORD_READ = Kind.READ, Kind.WRITE, Kind.RECORD_READ
_TENANT = "/api/v2/tenants/{tenant}"
_DATABASE = f"{_TENANT}/databases/{{database}}"
_COLLECTION = f"{_DATABASE}/collections/{{collection}}"
_BY_ID = f"{_DATABASE}/collections/{{collection_id}}"

# The first route that matches counts. axum prefers a literal segment (`by-id`) to a placeholder.
ROUTES = (
    Route("GET", "/api/v2/heartbeat", Action.PROBE, _READ, probe=True),
    Route("GET", "/api/v2/healthcheck", Action.PROBE, _READ, probe=True),
    Route("GET", "/api/v2/version", Action.PROBE, _READ, probe=True),
    Route("GET", "/api/v2/pre-flight-checks", Action.PREFLIGHT_CHECKS, _READ, probe=True),
    Route("GET", "/api/v2/auth/identity", Action.IDENTITY, _READ),
    Route("POST", "/api/v2/reset", Action.RESET, _WRITE, renames=True, audited=True),
    Route("GET", "/api/v2/collections/{crn}", Action.CRN, _READ),
    Route("POST", "/api/v2/tenants", Action.CREATE_TENANT, _WRITE),
    Route("GET", _TENANT, Action.GET_TENANT, _READ),
    Route("PATCH", _TENANT, Action.UPDATE_TENANT, _WRITE, renames=True, audited=True),
    Route("GET", f"{_TENANT}/databases", Action.LIST_DATABASES, _READ),
    Route("POST", f"{_TENANT}/databases", Action.CREATE_DATABASE, _WRITE),
    Route("GET", _DATABASE, Action.GET_DATABASE, _READ),
    Route("DELETE", _DATABASE, Action.DELETE_DATABASE, _WRITE, renames=True, audited=True),
    Route("GET", f"{_DATABASE}/collections", Action.LIST_COLLECTIONS, _READ),
    Route("POST", f"{_DATABASE}/collections", Action.CREATE_COLLECTION, _WRITE),
    Route("GET", f"{_DATABASE}/collections_count", Action.COUNT_COLLECTIONS, _READ),
    Route("GET", f"{_DATABASE}/collections/by-id/{{collection_id}}", Action.GET_COLLECTION_BY_ID, _READ),
    Route("GET", _COLLECTION, Action.GET_COLLECTION, _READ),
    Route("DELETE", _COLLECTION, Action.DELETE_COLLECTION, _WRITE, renames=True, audited=True),
    Route("PUT", _BY_ID, Action.UPDATE_COLLECTION, _WRITE, renames=True, audited=True),
    Route("GET", f"{_BY_ID}/count", Action.COUNT, _RECORD_READ),
    Route("POST", f"{_BY_ID}/get", Action.GET, _RECORD_READ, whole_body=True),
    Route("POST", f"{_BY_ID}/query", Action.QUERY, _RECORD_READ, whole_body=True),
    Route("POST", f"{_BY_ID}/search", Action.SEARCH, _RECORD_READ, whole_body=True),
    Route("POST", f"{_BY_ID}/add", Action.ADD, _WRITE, whole_body=True),
    Route("POST", f"{_BY_ID}/upsert", Action.UPSERT, _WRITE, whole_body=True),
    Route("POST", f"{_BY_ID}/update", Action.UPDATE, _WRITE, whole_body=True),
    Route("POST", f"{_BY_ID}/delete", Action.DELETE, _WRITE, whole_body=True, audited=True),
    Route("GET", f"{_BY_ID}/indexing_status", Action.COLLECTION_STATUS, _READ),
    Route("GET", f"{_BY_ID}/fork_count", Action.COLLECTION_STATUS, _READ),
    Route("POST", f"{_BY_ID}/fork", Action.FORK, _WRITE),
    Route("POST", f"{_BY_ID}/functions/attach", Action.ATTACH_FUNCTION, _WRITE),
    Route("GET", f"{_BY_ID}/functions/{{function}}", Action.GET_FUNCTION, _READ),
    Route("POST", f"{_BY_ID}/attached_functions/{{function}}/detach", Action.DETACH_FUNCTION, _WRITE, audited=True),
    # Old clients call these first, to find out which server this is.
    Route("GET", "/api/v1", Action.RETIRED, _READ),
    Route("GET", "/api/v1/heartbeat", Action.PROBE, _READ, probe=True),
    Route("GET", "/api/v1/version", Action.PROBE, _READ, probe=True),
    Route("GET", "/api/v1/pre-flight-checks", Action.PREFLIGHT_CHECKS, _READ, probe=True),
)

READS = frozenset(route.action for route in ROUTES if route.kind is not Kind.WRITE)
"""A reader may do these."""
RECORD_WRITES = frozenset(route.action for route in ROUTES if route.whole_body and route.kind is Kind.WRITE)
"""The body has `ids`, one for each record."""
RENAMES = frozenset(route.action for route in ROUTES if route.renames) | {Action.UNKNOWN}
AUDITED = frozenset(route.action for route in ROUTES if route.audited) | {Action.UNKNOWN}


class RouteMatch(NamedTuple):
    """What a request asks of Chroma."""

    action: Action
    kind: Kind
    collection_id: str | None = None
    """Of a RECORD_READ: the collection that is read, in lower case."""
    whole_body: bool = False
    probe: bool = False
    resource: Resource = Resource.NONE
    tenant: str = ""
    database: str = ""
    collection: str = ""
    """A name, a UUID or a CRN, as `resource` says. Decoded."""
    touches: str | None = None
    """The UUID of the collection whose index Chroma loads for it, for reads and writes of records."""


_UNKNOWN = RouteMatch(Action.UNKNOWN, Kind.WRITE)
# One handler for all of them (`rust/frontend/src/server.rs`, `v1_deprecation_notice`).
_RETIRED = RouteMatch(Action.RETIRED, Kind.READ)
_API_V1 = re.compile(rb"/api/v1(?:/[^#]*)?")
# A browser's preflight is answered by a layer above Chroma's handlers (`rust/frontend/src/server.rs`, `CorsLayer`).
_OPTIONS = RouteMatch(Action.UNKNOWN, Kind.READ)
_READABLE_ID = re.compile(rb"[0-9a-fA-F-]{36}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")


def _compile(path: str) -> re.Pattern[bytes]:
    """A pattern of raw paths, with the groups `tenant`, `database` and `collection`."""
    groups = {"tenant": "tenant", "database": "database", "function": ""} | dict.fromkeys(
        ("collection", "collection_id", "crn"), "collection"
    )
    pattern = re.sub(
        r"\\{(\w+)\\}", lambda name: f"(?P<{group}>[^/]+)" if (group := groups[name[1]]) else "[^/]+", re.escape(path)
    )
    return re.compile(pattern.encode())


# By method and number of slashes, so that few patterns are tried.
_PATTERNS: dict[tuple[str, int], list[tuple[re.Pattern[bytes], Route, Resource]]] = {}
for _route in ROUTES:
    # axum answers HEAD by running the GET handler.
    for _method in (_route.method, "HEAD") if _route.method == "GET" else (_route.method,):
        _entry = (_compile(_route.path), _route, _route.resource)
        _PATTERNS.setdefault((_method, _route.path.count("/")), []).append(_entry)


def match_route(method: str, raw_path: bytes) -> RouteMatch:
    """What `method raw_path` asks of Chroma. Never fails: an unknown route is a write.

    `raw_path` is the path as it came over the wire, without the query. Where Chroma may read the names in it in another
    way, the action is UNKNOWN, so that only an admin may do it.
    """
    for pattern, route, resource in _PATTERNS.get((method, raw_path.count(b"/")), ()):
        if match := pattern.fullmatch(raw_path):
            return _matched(route, resource, match.groupdict(), raw_path)
    if method == "OPTIONS":
        return _OPTIONS
    return _RETIRED if _API_V1.fullmatch(raw_path) else _UNKNOWN


def _matched(route: Route, resource: Resource, raw: dict[str, bytes], raw_path: bytes) -> RouteMatch:
    kind, whole_body, id_ = route.kind, route.whole_body, None
    touches = _touched(raw["collection"]) if kind is Kind.RECORD_READ or route.action in RECORD_WRITES else None
    if kind is Kind.RECORD_READ:
        if _READABLE_ID.fullmatch(raw["collection"]):
            id_ = raw["collection"].decode().lower()
        else:  # without its id the gate cannot tell whether this is the first read
            kind, whole_body = Kind.WRITE, False
    unknown = RouteMatch(Action.UNKNOWN, kind, id_, whole_body, route.probe, touches=touches)
    if b"#" in raw_path:
        return unknown  # Chroma takes what follows for a fragment and drops it (the `http` crate, `PathAndQuery`)
    try:
        decoded = {name: unquote_to_bytes(value).decode() for name, value in raw.items()}
    except UnicodeDecodeError:
        return unknown
    tenant, database, collection = (decoded.get(name, "") for name in ("tenant", "database", "collection"))
    names = (tenant, database, collection)
    return RouteMatch(route.action, kind, id_, whole_body, route.probe, resource, *names, touches)


def _touched(raw: bytes) -> str | None:
    """The UUID in a path, in any form that Chroma parses (the `uuid` crate: with braces, or as a URN, too)."""
    text = unquote_to_bytes(raw).decode("latin-1").lower().removeprefix("urn:uuid:")
    return parse_collection_id(text[1:-1] if text.startswith("{") else text)


def parse_collection_id(text: str) -> str | None:
    """A UUID as Chroma stores it: lower case, with hyphens. None for any other text.

    Chroma also parses braces and `urn:uuid:`; no client writes them.
    """
    if not _UUID.fullmatch(text):
        return None
    digits = text.replace("-", "").lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
