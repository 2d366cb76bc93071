"""What a request does to Chroma's disk, by method and route: `gateway.proxy.classify`."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.classify import Kind, Route, classify

ID = "0b9f4f6e-6d1c-4c7e-9a52-7f4d3a1e2b90"
DATABASE = "/api/v2/tenants/t/databases/d"
COLLECTION = f"{DATABASE}/collections/{ID}"

READ, WRITE, RECORD_READ = Kind.READ, Kind.WRITE, Kind.RECORD_READ

# chromadb 1.5.9, GET /openapi.json: every route it has.
ROUTES = [
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
    # Of a newer Chroma, or of none.
    ("POST", f"{COLLECTION}/conditional/commit"),
    ("POST", f"{COLLECTION}/anything"),
    ("GET", f"{COLLECTION}/anything"),
    ("GET", f"{COLLECTION}/count/more"),
    ("GET", "/api/v2"),
    ("GET", "/api/v2/"),
    ("GET", "/api/v3/heartbeat"),
    ("GET", "/"),
    ("GET", ""),
    # The right route with the wrong method.
    ("GET", f"{COLLECTION}/get"),
    ("GET", f"{COLLECTION}/query"),
    ("GET", f"{COLLECTION}/add"),
    ("POST", f"{COLLECTION}/count"),
    ("PUT", f"{COLLECTION}/get"),
    ("PATCH", f"{COLLECTION}/query"),
    ("DELETE", f"{COLLECTION}/count"),
    ("POST", COLLECTION),
    ("POST", "/api/v2/heartbeat"),
    # Odd methods.
    ("TRACE", "/api/v2/heartbeat"),
    ("PURGE", COLLECTION),
    ("QUERY", f"{COLLECTION}/query"),
    ("get", "/api/v2/heartbeat"),
    ("post", f"{COLLECTION}/get"),
    ("", "/api/v2/heartbeat"),
    # Not normalised: each of these is another name to Chroma's router, too.
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
    # A name where an id belongs, and ids that are none.
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
    # v1 is gone from Chroma; what it wrote with is not to be read as a read.
    ("POST", "/api/v1/collections"),
    ("POST", f"/api/v1/collections/{ID}/get"),
    ("POST", f"/api/v1/collections/{ID}/query"),
    ("GET", "/api/v1/collections"),
    ("GET", f"/api/v1/collections/{ID}/count"),
    ("DELETE", "/api/v1/collections/notes"),
]


def kind(method: str, path: str) -> Kind:
    return classify(method, path.encode("latin-1")).kind


@pytest.mark.parametrize(("method", "path", "expected"), ROUTES)
def test_every_route_of_chroma(method: str, path: str, expected: Kind) -> None:
    """Each route is what it does to the disk, and a record read names its collection."""
    assert classify(method, path.encode())[:2] == (expected, ID if expected is RECORD_READ else None)


def test_only_known_handlers_are_trusted_to_wait_for_the_whole_body() -> None:
    """Those that parse JSON do; any other may act on the head alone, and so takes its ticket before it."""
    trusted = {(method, path) for method, path, _ in ROUTES if classify(method, path.encode()).acts_on_whole_body}
    actions = ("add", "upsert", "update", "delete", "get", "query", "search")
    assert trusted == {("POST", f"{COLLECTION}/{action}") for action in actions}
    assert not any(classify(method, path.encode("latin-1")).acts_on_whole_body for method, path in UNKNOWN)


@pytest.mark.parametrize(("method", "path", "expected"), [route for route in ROUTES if route[0] == "GET"])
def test_head_does_what_get_does(method: str, path: str, expected: Kind) -> None:
    """Chroma answers HEAD by running the GET handler, so HEAD of a count is a record read as well."""
    assert classify("HEAD", path.encode()) == classify(method, path.encode())
    assert kind("HEAD", path) is expected


@pytest.mark.parametrize("path", [*(path for _, path, _ in ROUTES), "/api/v2/anything", "/api/v1/collections"])
def test_options_is_a_read(path: str) -> None:
    """A browser's preflight is answered by a layer above Chroma's handlers."""
    assert kind("OPTIONS", path) is READ


@pytest.mark.parametrize(("method", "path"), UNKNOWN)
def test_unknown_means_write(method: str, path: str) -> None:
    """What is not exactly a route that is known to read is a write."""
    assert classify(method, path.encode("latin-1")) == Route(WRITE)


@pytest.mark.parametrize("path", ["/api/v1", "/api/v1/heartbeat", "/api/v1/version", "/api/v1/pre-flight-checks"])
def test_v1_that_clients_ask_first(path: str) -> None:
    """Old clients find out who they talk to with these: they wait for no gate."""
    assert kind("GET", path) is READ


@pytest.mark.parametrize(
    "name", ["a%20b", "%2F", "a%2Fb", "%2e%2e", "..", ".", "%C3%A9", "\xe9", "a;b", "%", "%zz", "a+b", "'", "@:"]
)
def test_names_may_be_anything(name: str) -> None:
    """Tenants and databases are any one segment, escaped or not: reads stay reads, writes stay writes."""
    base = f"/api/v2/tenants/{name}/databases/{name}"
    assert kind("GET", base) is READ
    assert kind("GET", f"{base}/collections/{name}") is READ
    assert classify("POST", f"{base}/collections/{ID}/query".encode("latin-1"))[:2] == (RECORD_READ, ID)
    assert kind("POST", f"{base}/collections/{ID}/add") is WRITE
    assert kind("DELETE", f"{base}/collections/{name}") is WRITE


def test_a_collection_has_one_id_in_any_case() -> None:
    """Chroma parses ids in any case; the gate must know the collection as the same one."""
    shouted = f"{DATABASE}/collections/{ID.upper()}"
    assert classify("POST", f"{shouted}/get".encode()).collection_id == ID
    assert classify("GET", f"{shouted}/count".encode()).collection_id == ID


WORDS = {word for _, path, _ in ROUTES for word in path.split("/")} | {"v1", "conditional", "..", ".", "%67et", ""}
SEGMENTS = st.one_of(
    st.sampled_from(sorted(WORDS)),
    st.text(st.characters(max_codepoint=255), max_size=5),
)
PATHS = st.one_of(
    st.lists(SEGMENTS, max_size=12).map(lambda parts: "/" + "/".join(parts)),
    # A known path with something put in somewhere.
    st.tuples(
        st.sampled_from([path for _, path, _ in ROUTES]),
        st.integers(0, 120),
        st.one_of(SEGMENTS, st.sampled_from(["/", "//", "/.", "/..", "?", "#", "%2F", ";", "\n"])),
    ).map(lambda how: how[0][: how[1]] + how[2] + how[0][how[1] :]),
    st.sampled_from([path for _, path, _ in ROUTES]),
)
TEMPLATES = [
    (method, re.sub(r"(?<=/)(t|d|f|crn:1:2:3)(?=/|$)", "*", path).replace(ID, "*").split("/"), expected)
    for method, path, expected in ROUTES
]


def oracle(method: str, path: str) -> Kind:
    """The same question answered segment by segment, from the table above."""
    parts = path.split("/")
    for known, template, expected in TEMPLATES:
        if known == method and len(parts) == len(template):
            pairs = list(zip(parts, template, strict=True))
            is_id = re.fullmatch(r"[0-9a-fA-F-]{36}", parts[-2]) if expected is RECORD_READ else True
            if is_id and all(part == wanted or (wanted == "*" and part) for part, wanted in pairs):
                return expected
    return WRITE


@given(st.sampled_from(["POST", "PUT", "PATCH", "DELETE"]), PATHS)
def test_no_method_that_writes_is_ever_a_plain_read(method: str, path: str) -> None:
    """POST, PUT, PATCH and DELETE are never READ; they are record reads on exactly the routes that are."""
    assert kind(method, path) is not READ
    assert kind(method, path) is (oracle(method, path) if method == "POST" else WRITE)


@given(st.sampled_from(["GET", "HEAD"]), PATHS)
def test_no_path_but_a_known_one_is_a_read(method: str, path: str) -> None:
    """GET and HEAD read on exactly the routes of the table, whatever is put into them."""
    if not path.startswith("/api/v1"):
        assert kind(method, path) is oracle("GET", path)
