"""What a request asks of Chroma, by method and path: `gateway.chroma.routes`."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.chroma.routes import (
    AUDITED,
    READS,
    RECORD_WRITES,
    RENAMES,
    ROUTES,
    Action,
    Kind,
    Resource,
    Route,
    RouteMatch,
    match_route,
    parse_collection_id,
)
from tests.chroma_routes import MARKDOWN_TABLE, OPENAPI_ROUTES, filled, without_names

ID = "0b9f4f6e-6d1c-4c7e-9a52-7f4d3a1e2b90"
DATABASE = "/api/v2/tenants/t/databases/d"
COLLECTION = f"{DATABASE}/collections/{ID}"

READ, WRITE, RECORD_READ = Kind.READ, Kind.WRITE, Kind.RECORD_READ

# chromadb 1.5.9, GET /openapi.json: every route it has, written out here apart from the table.
EXPECTED = [
    ("GET", "/api/v2/auth/identity", READ),
    ("GET", "/api/v2/collections/crn:1:2:3", READ),
    ("GET", "/api/v2/healthcheck", READ),
    ("GET", "/api/v2/heartbeat", READ),
    ("GET", "/api/v2/pre-flight-checks", READ),
    ("POST", "/api/v2/reset", WRITE),
    ("POST", "/api/v2/tenants", WRITE),
    ("GET", "/api/v2/tenants/t", READ),
    ("PATCH", "/api/v2/tenants/t", WRITE),
    ("GET", "/api/v2/tenants/t/databases", READ),
    ("POST", "/api/v2/tenants/t/databases", WRITE),
    ("GET", DATABASE, READ),
    ("DELETE", DATABASE, WRITE),
    ("GET", f"{DATABASE}/collections", READ),
    ("POST", f"{DATABASE}/collections", WRITE),
    ("GET", f"{DATABASE}/collections/by-id/{ID}", READ),
    ("GET", COLLECTION, READ),
    ("PUT", COLLECTION, WRITE),
    ("DELETE", COLLECTION, WRITE),
    ("POST", f"{COLLECTION}/add", WRITE),
    ("POST", f"{COLLECTION}/attached_functions/f/detach", WRITE),
    ("GET", f"{COLLECTION}/count", RECORD_READ),
    ("POST", f"{COLLECTION}/delete", WRITE),
    ("POST", f"{COLLECTION}/fork", WRITE),
    ("GET", f"{COLLECTION}/fork_count", READ),
    ("POST", f"{COLLECTION}/functions/attach", WRITE),
    ("GET", f"{COLLECTION}/functions/f", READ),
    ("POST", f"{COLLECTION}/get", RECORD_READ),
    ("GET", f"{COLLECTION}/indexing_status", READ),
    ("POST", f"{COLLECTION}/query", RECORD_READ),
    ("POST", f"{COLLECTION}/search", RECORD_READ),
    ("POST", f"{COLLECTION}/update", WRITE),
    ("POST", f"{COLLECTION}/upsert", WRITE),
    ("GET", f"{DATABASE}/collections_count", READ),
    ("GET", "/api/v2/version", READ),
]

UNKNOWN = [
    # Routes of a newer Chroma, and routes that do not exist.
    ("POST", f"{COLLECTION}/conditional/commit"),
    ("POST", f"{COLLECTION}/anything"),
    ("GET", f"{COLLECTION}/anything"),
    ("GET", f"{COLLECTION}/count/more"),
    ("GET", "/api/v2"),
    ("GET", "/api/v2/"),
    ("GET", "/api/v3/heartbeat"),
    ("GET", "/"),
    ("GET", ""),
    # A known path with another method.
    ("GET", f"{COLLECTION}/get"),
    ("GET", f"{COLLECTION}/query"),
    ("GET", f"{COLLECTION}/add"),
    ("POST", f"{COLLECTION}/count"),
    ("PUT", f"{COLLECTION}/get"),
    ("PATCH", f"{COLLECTION}/query"),
    ("DELETE", f"{COLLECTION}/count"),
    ("POST", COLLECTION),
    ("POST", "/api/v2/heartbeat"),
    # Unusual methods.
    ("TRACE", "/api/v2/heartbeat"),
    ("PURGE", COLLECTION),
    ("QUERY", f"{COLLECTION}/query"),
    ("get", "/api/v2/heartbeat"),
    ("post", f"{COLLECTION}/get"),
    ("", "/api/v2/heartbeat"),
    # Not normalised: Chroma's router takes each of these for another path, too.
    ("GET", "/api/v2/heartbeat/"),
    ("GET", "//api/v2/heartbeat"),
    ("GET", "/api//v2/heartbeat"),
    ("GET", "/api/v2/tenants/t//databases"),
    ("GET", f"{COLLECTION}/count/"),
    ("POST", f"{COLLECTION}//get"),
    ("POST", f"{COLLECTION}/get/"),
    ("POST", f"{COLLECTION}/get/../add"),
    ("POST", f"{COLLECTION}/./get"),
    ("GET", "/api/v2/./heartbeat"),
    ("GET", "/api/v2/tenants/../heartbeat/x"),
    ("POST", f"{COLLECTION}/%67et"),
    ("POST", f"{COLLECTION}%2Fget"),
    ("GET", "/api/v2/heartbea%74"),
    ("GET", "/API/v2/heartbeat"),
    ("POST", f"{COLLECTION}/GET"),
    ("POST", f"{COLLECTION}/get\n"),
    ("GET", "/api/v2/heartbeat\n"),
    ("GET", "/api/v2/heartbeat?x"),
    # A name in place of an id, and invalid ids.
    ("POST", f"{DATABASE}/collections/notes/get"),
    ("POST", f"{DATABASE}/collections/{ID[:-1]}/get"),
    ("POST", f"{DATABASE}/collections/{ID}0/get"),
    ("POST", f"{DATABASE}/collections/{ID.replace('-', '')}/get"),
    ("POST", f"{DATABASE}/collections/{ID[:-1]}g/get"),
    ("GET", f"{DATABASE}/collections/notes/count"),
    # Empty names.
    ("POST", f"/api/v2/tenants//databases/d/collections/{ID}/get"),
    ("POST", f"/api/v2/tenants/t/databases//collections/{ID}/get"),
    ("GET", "/api/v2/tenants/"),
]
RETIRED = [
    ("POST", "/api/v1/collections"),
    ("POST", f"/api/v1/collections/{ID}/get"),
    ("POST", f"/api/v1/collections/{ID}/query"),
    ("GET", "/api/v1/collections"),
    ("GET", f"/api/v1/collections/{ID}/count"),
    ("DELETE", "/api/v1/collections/notes"),
]


def kind(method: str, path: str) -> Kind:
    return match_route(method, path.encode("latin-1")).kind


def test_the_table_has_exactly_the_routes_of_openapi() -> None:
    """And no others but those of API v1. So a route that is missing here is not in Chroma either."""
    known = {(route.method, without_names(route.path)) for route in ROUTES if not route.path.startswith("/api/v1")}
    assert known == {(method, without_names(path)) for method, path in OPENAPI_ROUTES}
    assert len(ROUTES) == len({(route.method, route.path) for route in ROUTES})


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_found_by_its_path(route: Route) -> None:
    """With its own action, kind and flags, and the names in the path."""
    path = route.path.format(
        tenant="t", database="d", collection="c", collection_id=ID, function="f", crn="crn:1:2:3"
    ).encode()
    match = match_route(route.method, path)
    assert (match.action, match.kind, match.whole_body, match.probe) == (
        route.action,
        route.kind,
        route.whole_body,
        route.probe,
    )
    assert match.tenant == ("t" if "{tenant}" in route.path else "")
    assert match.database == ("d" if "{database}" in route.path else "")
    named = {Resource.COLLECTION: "c", Resource.COLLECTION_ID: ID, Resource.CRN: "crn:1:2:3"}
    assert match.collection == named.get(match.resource, "")


def test_one_action_is_one_kind() -> None:
    """Roles go by the action and the gate by the kind, so both must agree about every route."""
    for route in ROUTES:
        if route.action is not Action.UNKNOWN:
            assert (route.action in READS) == (route.kind is not Kind.WRITE), route
            assert (route.action in RENAMES, route.action in AUDITED) == (route.renames, route.audited), route
    assert Action.UNKNOWN not in READS
    assert Action.UNKNOWN in RENAMES & AUDITED


def test_the_sets_of_actions_are_these() -> None:
    """Written out, so that a wrong flag in the table is seen."""
    assert {Action.ADD, Action.UPSERT, Action.UPDATE, Action.DELETE} == RECORD_WRITES
    renames = {Action.UPDATE_COLLECTION, Action.DELETE_COLLECTION, Action.DELETE_DATABASE, Action.UPDATE_TENANT}
    assert {*renames, Action.RESET, Action.UNKNOWN} == RENAMES
    assert RENAMES | {Action.DELETE, Action.DETACH_FUNCTION} == AUDITED


def test_the_documentation_can_show_every_route() -> None:
    """The table has a row for each, with the role and what a closed gate does."""
    assert MARKDOWN_TABLE.count("\n") == len(ROUTES) + 1
    assert "/add` | `add` | writer | waits |" in MARKDOWN_TABLE
    assert "`POST /api/v2/reset` | `reset` | admin | waits |" in MARKDOWN_TABLE
    assert "/query` | `query` | reader | the first one of a collection waits |" in MARKDOWN_TABLE


@pytest.mark.parametrize(("method", "path", "expected"), EXPECTED)
def test_every_route_has_the_right_kind(method: str, path: str, expected: Kind) -> None:
    """The kind is what the route does to the disk, and a record read names its collection."""
    match = match_route(method, path.encode())
    assert (match.kind, match.collection_id) == (expected, ID if expected is RECORD_READ else None)


def test_only_handlers_that_parse_json_wait_for_the_whole_body() -> None:
    """Any other handler may run as soon as it has the head, so its ticket comes before the head."""
    trusted = {(method, path) for method, path, _ in EXPECTED if match_route(method, path.encode()).whole_body}
    actions = ("add", "upsert", "update", "delete", "get", "query", "search")
    assert trusted == {("POST", f"{COLLECTION}/{action}") for action in actions}
    assert not any(match_route(method, path.encode("latin-1")).whole_body for method, path in UNKNOWN)


@pytest.mark.parametrize(("method", "path", "expected"), [route for route in EXPECTED if route[0] == "GET"])
def test_head_does_what_get_does(method: str, path: str, expected: Kind) -> None:
    """Chroma answers HEAD by running the GET handler, so HEAD of a count is a record read as well."""
    assert match_route("HEAD", path.encode()) == match_route(method, path.encode())
    assert kind("HEAD", path) is expected


@pytest.mark.parametrize("path", [*(path for _, path, _ in EXPECTED), "/api/v2/anything", "/api/v1/collections"])
def test_options_is_a_read(path: str) -> None:
    """A browser's preflight is answered by a layer above Chroma's handlers."""
    assert kind("OPTIONS", path) is READ


@pytest.mark.parametrize(("method", "path"), UNKNOWN)
def test_an_unknown_route_is_a_write(method: str, path: str) -> None:
    """It takes a ticket, also where a known path has an invalid id."""
    match = match_route(method, path.encode("latin-1"))
    assert (match.kind, match.collection_id, match.whole_body, match.probe) == (WRITE, None, False, False)


@pytest.mark.parametrize(("method", "path"), [each for each in UNKNOWN if f"/collections/{ID}/" in each[1]])
def test_an_unknown_route_has_no_action(method: str, path: str) -> None:
    """So only an admin may call it."""
    assert match_route(method, path.encode("latin-1")) == RouteMatch(Action.UNKNOWN, WRITE)


@pytest.mark.parametrize(("method", "path"), RETIRED)
def test_api_v1_does_nothing(method: str, path: str) -> None:
    """Chroma only says that it is gone. So it waits for nothing and counts as no write."""
    assert match_route(method, path.encode()) == RouteMatch(Action.RETIRED, READ)


@pytest.mark.parametrize("path", ["/api/v1", "/api/v1/heartbeat", "/api/v1/version", "/api/v1/pre-flight-checks"])
def test_the_first_requests_of_old_clients_are_reads(path: str) -> None:
    """They find out with API v1 which server this is, and must not wait for the gate."""
    assert kind("GET", path) is READ


@pytest.mark.parametrize(
    "name", ["a%20b", "%2F", "a%2Fb", "%2e%2e", "..", ".", "%C3%A9", "\xe9", "a;b", "%", "%zz", "a+b", "'", "@:"]
)
def test_a_name_does_not_change_the_kind(name: str) -> None:
    """A tenant or database is any one segment, escaped or not: reads stay reads, writes stay writes."""
    base = f"/api/v2/tenants/{name}/databases/{name}"
    assert kind("GET", base) is READ
    assert kind("GET", f"{base}/collections/{name}") is READ
    query = match_route("POST", f"{base}/collections/{ID}/query".encode("latin-1"))
    assert (query.kind, query.collection_id) == (RECORD_READ, ID)
    assert kind("POST", f"{base}/collections/{ID}/add") is WRITE
    assert kind("DELETE", f"{base}/collections/{name}") is WRITE


def test_the_case_of_a_collections_id_does_not_matter() -> None:
    """Chroma parses ids in any case, so the gate must take both for one collection."""
    upper = f"{DATABASE}/collections/{ID.upper()}"
    assert match_route("POST", f"{upper}/get".encode()).collection_id == ID
    assert match_route("GET", f"{upper}/count".encode()).collection_id == ID


WORDS = {word for _, path, _ in EXPECTED for word in path.split("/")} | {"v1", "conditional", "..", ".", "%67et", ""}
SEGMENTS = st.one_of(
    st.sampled_from(sorted(WORDS)),
    st.text(st.characters(max_codepoint=255), max_size=5),
)
PATHS = st.one_of(
    st.lists(SEGMENTS, max_size=12).map(lambda parts: "/" + "/".join(parts)),
    # A known path with something inserted somewhere.
    st.tuples(
        st.sampled_from([path for _, path, _ in EXPECTED]),
        st.integers(0, 120),
        st.one_of(SEGMENTS, st.sampled_from(["/", "//", "/.", "/..", "?", "#", "%2F", ";", "\n"])),
    ).map(lambda how: how[0][: how[1]] + how[2] + how[0][how[1] :]),
    st.sampled_from([path for _, path, _ in EXPECTED]),
)
TEMPLATES = [
    (method, re.sub(r"(?<=/)(t|d|f|crn:1:2:3)(?=/|$)", "*", path).replace(ID, "*").split("/"), expected)
    for method, path, expected in EXPECTED
]


def oracle(method: str, path: str) -> Kind:
    """The kind, found segment by segment in the list above."""
    parts = path.split("/")
    for known, template, expected in TEMPLATES:
        if known == method and len(parts) == len(template):
            pairs = list(zip(parts, template, strict=True))
            is_id = re.fullmatch(r"[0-9a-fA-F-]{36}", parts[-2]) if expected is RECORD_READ else True
            if is_id and all(part == wanted or (wanted == "*" and part) for part, wanted in pairs):
                return expected
    return WRITE


@given(st.sampled_from(["POST", "PUT", "PATCH", "DELETE"]), PATHS)
def test_a_writing_method_is_never_a_plain_read(method: str, path: str) -> None:
    """POST, PUT, PATCH and DELETE are never READ. They are record reads on exactly the routes that are."""
    assert kind(method, path) is not READ
    assert kind(method, path) is (oracle(method, path) if method == "POST" else WRITE)


@given(st.sampled_from(["GET", "HEAD"]), PATHS)
def test_only_a_known_path_is_a_read(method: str, path: str) -> None:
    """GET and HEAD are reads on exactly the routes of the list, whatever is inserted into them."""
    if not path.startswith("/api/v1"):
        assert kind(method, path) is oracle("GET", path)


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@pytest.mark.parametrize(("method", "template"), OPENAPI_ROUTES)
def test_every_route_of_openapi_is_known(method: str, template: str) -> None:
    """And its action and its kind agree about whether it reads."""
    match = match_route(method, filled(template, "acme", "web", ID))
    assert match.action is not Action.UNKNOWN
    assert (match.action in READS) == (match.kind is not Kind.WRITE)


@given(st.sampled_from(OPENAPI_ROUTES), names, names, names)
def test_names_are_decoded_once(route: tuple[str, str], tenant: str, database: str, collection: str) -> None:
    """As Chroma does, whatever is in them."""
    method, template = route
    match = match_route(method, filled(template, tenant, database, collection))
    if "{tenant" in template:
        assert match.tenant == tenant
    if "{database}" in template:
        assert match.database == database
    if "{collection_id}" in template or "{crn}" in template:
        assert match.collection == collection


@given(st.sampled_from([method for method, _ in OPENAPI_ROUTES]), st.binary(max_size=60))
def test_no_path_raises(method: str, rest: bytes) -> None:
    """It has an action, or UNKNOWN."""
    for path in (rest, b"/api/v2/tenants/" + rest, b"/api/v2/tenants/a/databases/b/collections/" + rest):
        assert isinstance(match_route(method, path).action, Action)


@pytest.mark.parametrize("name", [b"c#1", b"%ff", b"\xe9"])
def test_a_name_that_chroma_may_read_otherwise_is_for_admins_only(name: bytes) -> None:
    """Chroma drops what follows a `#`, and rejects what is not UTF-8."""
    match = match_route("GET", b"/api/v2/tenants/t/databases/d/collections/" + name)
    assert match == RouteMatch(Action.UNKNOWN, READ)


def test_a_literal_segment_takes_precedence_over_a_placeholder() -> None:
    """As in Chroma's router: `by-id/count` is the collection with the id `count`."""
    match = match_route("GET", f"{DATABASE}/collections/by-id/count".encode())
    assert (match.action, match.collection) == (Action.GET_COLLECTION_BY_ID, "count")


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        (ID, ID),
        (ID.upper(), ID),
        (ID.replace("-", ""), ID),
        (f"{{{ID}}}", None),
        (f"urn:uuid:{ID}", None),
        (ID[:-1], None),
        (ID + "\n", None),
        (ID[:-1] + "\uff11", None),
        (ID.replace("-", "_"), None),
        ("", None),
    ],
)
def test_a_collections_id_is_a_uuid_with_or_without_hyphens(text: str, id_: str | None) -> None:
    """Chroma accepts more; a key with a scope must use one of these."""
    assert parse_collection_id(text) == id_


@pytest.mark.parametrize("form", ["{id}", "{upper}", "{hex}", "%7B{id}%7D", "urn:uuid:{id}"])
@pytest.mark.parametrize(("method", "what"), [("GET", "count"), ("POST", "get"), ("POST", "add"), ("POST", "delete")])
def test_what_loads_an_index_is_known_in_every_form_of_its_uuid(form: str, method: str, what: str) -> None:
    """A quarantine must not be passed by another spelling (docs/chroma-internals.md, "What loads an index")."""
    id_ = "8907d4e7-72d0-4bec-b589-b3d1f7885fcb"
    written = form.format(id=id_, upper=id_.upper(), hex=id_.replace("-", ""))
    path = f"/api/v2/tenants/t/databases/d/collections/{written}/{what}"
    assert match_route(method, path.encode()).touches == id_


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/c"), ("GET", "/c"), ("PUT", "/8907d4e7-72d0-4bec-b589-b3d1f7885fcb")]
)
def test_what_loads_no_index_passes_a_quarantine(method: str, path: str) -> None:
    """A collection that cannot be read can still be deleted, renamed and looked up."""
    assert match_route(method, f"/api/v2/tenants/t/databases/d/collections{path}".encode()).touches is None
