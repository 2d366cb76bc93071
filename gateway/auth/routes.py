"""What each of Chroma's routes addresses. Pure.

The routes are those of chromadb 1.5.9's `GET /openapi.json`. One that is not here is UNKNOWN, and only an admin may
use it: a newer Chroma's routes stay closed until somebody has thought about them.

Paths are read as Chroma's router reads them (`rust/frontend/src/server.rs`, axum): split at slashes first, then each
part is decoded once, as UTF-8; nothing is normalised. By UUID a collection is found whatever tenant and database stand
before it: they are not looked at there. `by-id` does look.
"""

import re
from enum import Enum
from typing import NamedTuple
from urllib.parse import unquote_to_bytes


class Action(Enum):
    """What a request is about. The value is its label in metrics and in the audit."""

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
    UNKNOWN = "unknown"


class Addressed(NamedTuple):
    """What a request addresses. `collection` is a name or an id, by what the action says; a CRN for CRN."""

    action: Action
    tenant: str = ""
    database: str = ""
    collection: str = ""


READS = frozenset(
    (
        *(Action.PROBE, Action.PREFLIGHT_CHECKS, Action.IDENTITY, Action.CRN, Action.GET_TENANT, Action.LIST_DATABASES),
        *(Action.GET_DATABASE, Action.LIST_COLLECTIONS, Action.COUNT_COLLECTIONS, Action.GET_COLLECTION),
        *(Action.GET_COLLECTION_BY_ID, Action.GET_FUNCTION, Action.GET, Action.QUERY, Action.SEARCH, Action.COUNT),
        Action.COLLECTION_STATUS,
    )
)
BY_ID = frozenset(
    (
        *(Action.GET_COLLECTION_BY_ID, Action.UPDATE_COLLECTION, Action.FORK, Action.ATTACH_FUNCTION),
        *(Action.GET_FUNCTION, Action.DETACH_FUNCTION, Action.ADD, Action.UPSERT, Action.UPDATE, Action.DELETE),
        *(Action.GET, Action.QUERY, Action.SEARCH, Action.COUNT, Action.COLLECTION_STATUS),
    )
)
"""What addresses its collection by UUID."""
RECORD_WRITES = frozenset((Action.ADD, Action.UPSERT, Action.UPDATE, Action.DELETE))
RENAMES = frozenset(
    (
        *(Action.UPDATE_COLLECTION, Action.DELETE_COLLECTION, Action.DELETE_DATABASE, Action.UPDATE_TENANT),
        *(Action.RESET, Action.UNKNOWN),
    )
)
"""After these a UUID may be that of another name, or of none."""
DESTRUCTIVE = frozenset(
    (
        *(Action.RESET, Action.UPDATE_TENANT, Action.DELETE_DATABASE, Action.DELETE_COLLECTION),
        *(Action.UPDATE_COLLECTION, Action.DELETE, Action.DETACH_FUNCTION, Action.UNKNOWN),
    )
)
"""What the audit wants to know of."""

_ID_IN_PATH = rb"/api/v2/tenants/([^/]+)/databases/([^/]+)/collections/([^/]+)"
_TABLE: dict[str, list[tuple[re.Pattern[bytes], Action]]] = {
    method: [(re.compile(pattern), action) for pattern, action in routes]
    for method, routes in {
        "GET": [
            (_ID_IN_PATH + rb"/count", Action.COUNT),
            (_ID_IN_PATH + rb"/(?:fork_count|indexing_status)", Action.COLLECTION_STATUS),
            (_ID_IN_PATH + rb"/functions/[^/]+", Action.GET_FUNCTION),
            (rb"/api/v2/tenants/([^/]+)/databases/([^/]+)/collections/by-id/([^/]+)", Action.GET_COLLECTION_BY_ID),
            (_ID_IN_PATH, Action.GET_COLLECTION),
            (rb"/api/v2/tenants/([^/]+)/databases/([^/]+)/collections", Action.LIST_COLLECTIONS),
            (rb"/api/v2/tenants/([^/]+)/databases/([^/]+)/collections_count", Action.COUNT_COLLECTIONS),
            (rb"/api/v2/tenants/([^/]+)/databases/([^/]+)", Action.GET_DATABASE),
            (rb"/api/v2/tenants/([^/]+)/databases", Action.LIST_DATABASES),
            (rb"/api/v2/tenants/([^/]+)", Action.GET_TENANT),
            (rb"/api/v2/auth/identity", Action.IDENTITY),
            (rb"/api/v2/pre-flight-checks", Action.PREFLIGHT_CHECKS),
            (rb"/api/v2/(?:heartbeat|healthcheck|version)", Action.PROBE),
            (rb"/api/v1/(?:heartbeat|version)", Action.PROBE),
        ],
        "POST": [
            *(
                (_ID_IN_PATH + b"/" + action.value.encode(), action)
                for action in (
                    *(Action.QUERY, Action.GET, Action.ADD, Action.UPSERT, Action.UPDATE),
                    *(Action.DELETE, Action.SEARCH, Action.FORK),
                )
            ),
            (_ID_IN_PATH + rb"/functions/attach", Action.ATTACH_FUNCTION),
            (_ID_IN_PATH + rb"/attached_functions/[^/]+/detach", Action.DETACH_FUNCTION),
            (rb"/api/v2/tenants/([^/]+)/databases/([^/]+)/collections", Action.CREATE_COLLECTION),
            (rb"/api/v2/tenants/([^/]+)/databases", Action.CREATE_DATABASE),
            (rb"/api/v2/tenants", Action.CREATE_TENANT),
            (rb"/api/v2/reset", Action.RESET),
        ],
        "PUT": [(_ID_IN_PATH, Action.UPDATE_COLLECTION)],
        "PATCH": [(rb"/api/v2/tenants/([^/]+)", Action.UPDATE_TENANT)],
        "DELETE": [
            (_ID_IN_PATH, Action.DELETE_COLLECTION),
            (rb"/api/v2/tenants/([^/]+)/databases/([^/]+)", Action.DELETE_DATABASE),
        ],
    }.items()
}
_TABLE["HEAD"] = _TABLE["GET"]  # axum answers HEAD by running the GET handler
_CRN = re.compile(rb"/api/v2/collections/([^/]+)")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")


def addressed(method: str, raw_path: bytes) -> Addressed:
    """What `method raw_path` addresses. `raw_path` is as it came over the wire, without the query."""
    if b"#" in raw_path:
        return Addressed(Action.UNKNOWN)  # Chroma would take what follows for a fragment, and drop it
    for pattern, action in _TABLE.get(method, ()):
        if match := pattern.fullmatch(raw_path):
            return _named(action, match.groups())
    if method in ("GET", "HEAD") and (match := _CRN.fullmatch(raw_path)):
        return _named(Action.CRN, (b"", b"", match[1]))
    return Addressed(Action.UNKNOWN)


def _named(action: Action, raw: tuple[bytes, ...]) -> Addressed:
    try:
        return Addressed(action, *(unquote_to_bytes(part).decode() for part in raw))
    except UnicodeDecodeError:
        return Addressed(Action.UNKNOWN)


def collection_id(text: str) -> str | None:
    """A UUID as Chroma stores it; None for what is not one, or is written in a way that nobody needs."""
    if not _UUID.fullmatch(text):
        return None
    digits = text.replace("-", "").lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
