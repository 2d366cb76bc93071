"""Who may do what on the data path: every route, every role, in scope and out of it."""

import base64
import gc
import itertools
import json
import re
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import chromadb
import httpx
import pytest
from chromadb.config import Settings
from chromadb.errors import AuthorizationError, ChromaAuthError, NotFoundError

from tests.gateway_process import ADMIN_TOKEN, Gateway, gateway_process
from tests.keys import Keys

ROUTES = [
    tuple(line.split())
    for line in (Path(__file__).parents[1] / "routes.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
# What a reader may do; by hand, so that the gateway's own table is held to something.
READS = re.compile(
    r"GET .*|POST .*/collections/\{collection_id\}/(get|query|search)",
)
OPEN = {"/api/v2/heartbeat", "/api/v2/healthcheck", "/api/v2/version"}
ADMINS = {"/api/v2/reset"}
# What a key for a part of a tenant may not do, even to what it sees.
WHOLE = {
    ("POST", "/api/v2/tenants"),
    ("PATCH", "/api/v2/tenants/{tenant_name}"),
    ("POST", "/api/v2/tenants/{tenant}/databases"),
    ("DELETE", "/api/v2/tenants/{tenant}/databases/{database}"),
}
ROLES = ["none", "wrong", "reader", "writer", "admin", "scoped-reader", "scoped-writer"]
BY_NAME = {("GET", ""), ("DELETE", "")}
COLLECTION = "/api/v2/tenants/{tenant}/databases/{database}/collections/{collection_id}"
BODIES: dict[str, dict[str, Any]] = {
    "add": {"ids": ["1"], "embeddings": [[1, 2, 3]]},
    "upsert": {"ids": ["1"], "embeddings": [[1, 2, 3]]},
    "update": {"ids": ["1"], "embeddings": [[1, 2, 3]]},
    "delete": {"ids": ["1"]},
    "get": {},
    "query": {"query_embeddings": [[1, 2, 3]], "n_results": 1},
    "search": {"searches": [{}]},
}

_numbers = itertools.count()


class Place(NamedTuple):
    tenant: str
    database: str
    name: str
    id: str


class Served:
    """A gateway with keys and with data in and out of the scope of the scoped ones."""

    def __init__(self, built: Gateway, keys: Keys) -> None:
        self.gateway_process, self.keys = built, keys
        self.bare = httpx.Client(base_url=f"http://127.0.0.1:{built.chroma_port}", timeout=30)
        self.gateway = httpx.Client(base_url=built.url, timeout=30)

    def headers(self, role: str) -> dict[str, str]:
        if role == "none":
            return {}
        if role == "wrong":
            return {"Authorization": "Bearer cgw_000000000000_" + "x" * 43}
        return self.keys.bearer(role)

    def ask(self, role: str, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return self.gateway.request(method, path, headers=self.headers(role), **kwargs)

    def make(self, tenant: str, database: str, name: str) -> Place:
        """A collection, made behind the gateway's back, with the database around it if that is gone."""
        self.bare.post(f"/api/v2/tenants/{tenant}/databases", json={"name": database})
        path = f"/api/v2/tenants/{tenant}/databases/{database}/collections"
        made = self.bare.post(path, json={"name": name, "get_or_create": True})
        assert made.status_code == 200, made.text
        return Place(tenant, database, name, made.json()["id"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = Keys(tmp_path_factory.mktemp("keys") / "keys.json")
    keys.add("reader", "reader")
    keys.add("writer", "writer")
    keys.tokens["admin"] = keys.add("boss", "admin")
    part = {"tenants": ["acme"], "databases": ["web"], "collections": ["pages-*"]}
    keys.add("scoped-reader", "reader", **part)
    keys.add("scoped-writer", "writer", **part)
    with gateway_process(GATEWAY_KEYS_FILE=str(keys.path)) as built:
        built.start()
        served = Served(built, keys)
        for tenant in ("acme", "other"):
            served.bare.post("/api/v2/tenants", json={"name": tenant})
            for database in ("web", "private"):
                served.bare.post(f"/api/v2/tenants/{tenant}/databases", json={"name": database})
        yield served
        served.bare.close()
        served.gateway.close()
        assert built.stop() == 0


def filled(method: str, template: str, place: Place, *, by_id: bool = True) -> tuple[str, dict[str, Any] | None]:
    """The path and the body of a proper request for what is at `place`."""
    named = (method, template.removeprefix(COLLECTION)) in BY_NAME
    path = (
        template.replace("{tenant_name}", place.tenant)
        .replace("{tenant}", place.tenant)
        .replace("{database}", place.database)
        .replace("{collection_id}", place.name if named and "by-id" not in template else place.id)
        .replace("{crn}", f"{place.tenant}:{place.database}:{place.name}")
        .replace("{name}", "some")
        .replace("{function_name}", "some")
    )
    verb = template.rpartition("/")[2]
    fresh = f"pages-new-{next(_numbers)}"
    if method in ("GET", "DELETE"):
        return path, None
    if verb in BODIES:
        return path, BODIES[verb]
    if verb in ("tenants", "databases", "collections"):
        return path, {"name": fresh}
    if verb in ("{collection_id}", "fork"):
        return path, {"new_name": fresh}
    if verb == "attach":
        return path, {"name": "some", "function_id": "some", "output_collection": fresh, "params": {}}
    return path, {"resource_name": fresh} if method == "PATCH" else {}


def test_the_routes_are_chromas(served: Served) -> None:
    """The list that the tests below go through is what the installed Chroma says it serves."""
    paths = served.bare.get("/openapi.json").json()["paths"]
    listed = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert listed == set(ROUTES)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("method", "template"), ROUTES)
def test_every_route_in_scope(served: Served, method: str, template: str, role: str) -> None:
    """Each role may do what it is for, with what is in its scope, and is refused all else by its kind."""
    if "{crn}" in template and role in ("reader", "writer", "admin"):
        pytest.skip("Chroma ends such a connection without an answer")
    place = served.make("acme", "web", f"pages-{next(_numbers)}")
    path, body = filled(method, template, place)
    answer = served.ask(role, method, path, json=body)
    if template in OPEN:
        assert answer.status_code == 200
    elif role in ("none", "wrong"):
        assert (answer.status_code, answer.json()["error"]) == (401, "AuthorizationError")
        assert answer.headers["www-authenticate"] == "Bearer"
    elif template in ADMINS:
        assert answer.status_code == 403
    elif ("reader" in role and not READS.fullmatch(f"{method} {template}")) or (
        role == "scoped-writer" and (method, template) in WHOLE
    ):
        assert (answer.status_code, answer.json()["error"]) == (403, "AuthError")
    elif "{crn}" in template:
        assert answer.status_code == 404
    elif re.search("function|fork|search|indexing_status", template):
        # This Chroma does none of these; what it says is passed on.
        assert answer.content == served.bare.request(method, path, json=body).content
    else:
        assert answer.status_code in (200, 201), answer.text


OUTSIDE = {
    "tenant": Place("other", "web", "pages-theirs", ""),
    "database": Place("acme", "private", "pages-theirs", ""),
    "collection": Place("acme", "web", "secret", ""),
}


@pytest.mark.parametrize("outside", [*OUTSIDE, "liar"])
@pytest.mark.parametrize("role", ["scoped-reader", "scoped-writer"])
@pytest.mark.parametrize(("method", "template"), ROUTES)
def test_every_route_out_of_scope(served: Served, method: str, template: str, role: str, outside: str) -> None:
    """What is out of scope answers like what does not exist, byte for byte, and stays as it was."""
    if "{" not in template or "{crn}" in template:
        return  # it addresses nothing, or see above
    place = OUTSIDE["tenant" if outside == "liar" else outside]
    place = served.make(*place[:3])
    if outside == "liar":  # Chroma finds it by its id alone, whatever the path says
        if not template.startswith(COLLECTION) or (method, template.removeprefix(COLLECTION)) in BY_NAME:
            return
        place = place._replace(tenant="acme", database="web")
    if outside == "collection" and "{collection_id}" not in template:
        return  # what is addressed is in scope
    if outside == "database" and "{database}" not in template:
        return
    path, body = filled(method, template, place)
    answer = served.ask(role, method, path, json=body)
    absent = Place("no-such-tenant", "no-such-database", "no-such-collection", str(uuid.uuid4()))
    path, _ = filled(method, template, absent)
    same = served.ask(role, method, path, json=body)
    # A reader's creation may be a get, so it is answered as that of others.
    is_creation = (method, template.rpartition("/")[2]) == ("POST", "collections")
    if role == "scoped-reader" and not READS.fullmatch(f"{method} {template}") and not is_creation:
        assert (answer.status_code, answer.json()["error"]) == (403, "AuthError")
        assert same.content == answer.content
        return
    kept = [("date", ""), ("x-request-id", "")]

    def shape(response: httpx.Response) -> tuple[int, str, dict[str, str]]:
        text = response.text
        for mine, theirs in zip(place, absent, strict=True):
            text = text.replace(theirs, mine)
        headers = {name: value for name, value in response.headers.items() if name not in dict(kept)}
        if response is not answer:
            headers.pop("content-length"), headers.update({"content-length": str(len(text.encode()))})
        return response.status_code, text, headers

    # Whether it is there or not, the gateway says the same …
    assert shape(same) == shape(answer)
    # … which is what Chroma says of what is not there, save where Chroma does not look.
    chromas = served.bare.request(method, path, json=body)
    if (method, template) in (
        ("PATCH", "/api/v2/tenants/{tenant_name}"),
        ("POST", "/api/v2/tenants/{tenant}/databases"),
    ):
        assert answer.status_code == 404
    elif chromas.status_code != 501:
        assert shape(chromas) == shape(answer)
    assert served.bare.get(f"/api/v2/tenants/{OUTSIDE['tenant'].tenant}").status_code == 200
    where = OUTSIDE["tenant" if outside == "liar" else outside]
    base = f"/api/v2/tenants/{where.tenant}/databases/{where.database}/collections"
    still = served.bare.get(f"{base}/{where.name}")
    assert still.status_code == 200
    assert served.bare.get(f"{base}/{still.json()['id']}/count").text == "0"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "path",
    [
        "/api/v2/nonsense",
        "/api/v3/heartbeat",
        "/api/v2/tenants/acme/databases/web/collections/x/conditional/commit",
        "/api/v2/tenants/acme/databases/web/collections//get",
        "/api/v2//tenants/acme",
        "/api/v2/tenants/acme/",
        "/api/",
    ],
)
def test_a_route_that_nobody_thought_of_is_an_admins(served: Served, method: str, path: str) -> None:
    """Whatever a newer Chroma adds stays closed. Nobody is sent for an admin's key for a misspelt path."""
    for role in ("none", "wrong"):
        assert served.ask(role, method, path).status_code == 401
    for role in ("reader", "writer", "scoped-reader", "scoped-writer"):
        answer = served.ask(role, method, path)
        assert (answer.status_code, answer.content) == (404, b"")
    assert served.ask("admin", method, path).status_code not in (401, 403)


@pytest.mark.parametrize("path", ["/api/v1/collections", "/api/v1/tenants/acme", "/api/v1/nonsense"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_every_key_hears_that_api_v1_is_gone(served: Served, method: str, path: str) -> None:
    """In Chroma's own words."""
    assert served.ask("none", method, path).status_code == 401
    bare = served.bare.request(method, path)
    for role in ("reader", "writer", "admin", "scoped-reader", "scoped-writer"):
        answer = served.ask(role, method, path)
        assert (answer.status_code, answer.content) == (bare.status_code, bare.content)


@pytest.mark.parametrize("role", ["reader", "scoped-reader"])
def test_a_reader_gets_what_it_may_not_create(served: Served, role: str) -> None:
    """As LangChain and LlamaIndex ask: the collection as it is, and nothing is ever made."""
    place = served.make("acme", "web", "pages-there")
    path = f"/api/v2/tenants/{place.tenant}/databases/{place.database}/collections"
    there = {"name": place.name, "get_or_create": True, "metadata": {"new": 1}}
    bare = served.bare.get(f"{path}/{place.name}")
    answer = served.ask(role, "POST", path, json=there)
    assert (answer.status_code, answer.json()) == (200, bare.json())
    assert served.ask(role, "POST", path, content=iter([json.dumps(there).encode()])).json() == bare.json()
    assert served.ask(role, "POST", path, json=there | {"name": "pages-absent"}).status_code == 404
    for body in ({"name": place.name}, there | {"get_or_create": False}, there | {"name": 1}, [], {}):
        answer = served.ask(role, "POST", path, json=body)
        assert (answer.status_code, "reader" in answer.json()["message"]) == (403, True)
    for name in ("", "\ud800", "a\n"):
        content = json.dumps(there | {"name": name}).encode()
        assert served.ask(role, "POST", path, content=content).status_code == 400
    assert served.bare.get(f"{path}/pages-absent").status_code == 404
    assert served.bare.get(f"{path}/{place.name}").json() == bare.json()
    hidden = served.make("acme", "web", "secret")
    status = served.ask(role, "POST", path, json=there | {"name": hidden.name}).status_code
    assert status == (200 if role == "reader" else 403)
    outside = "/api/v2/tenants/other/databases/private/collections"
    assert served.ask("scoped-reader", "POST", outside, json=there).status_code == 400


# ---------------------------------------------------------------------- lists


def test_lists_show_what_is_in_scope(served: Served) -> None:
    """Pages are of what is visible; counts count it; what is shown is as Chroma wrote it."""
    served.bare.delete("/api/v2/tenants/acme/databases/web")
    for name in ("secret", "pages-a", "hidden", "pages-b", "pages-c", "secret-2"):
        served.make("acme", "web", name)
    base = "/api/v2/tenants/acme/databases/web/collections"
    everything = {each["name"]: each for each in served.bare.get(base).json()}
    seen = served.ask("scoped-reader", "GET", base).json()
    assert [each["name"] for each in seen] == [name for name in everything if name.startswith("pages-")]
    assert all(each == everything[each["name"]] for each in seen)
    for query, part in (
        ("limit=2", seen[:2]),
        ("offset=1", seen[1:]),
        ("limit=1&offset=1", seen[1:2]),
        ("limit=0", []),
    ):
        assert served.ask("scoped-reader", "GET", f"{base}?{query}").json() == part
    assert served.ask("scoped-reader", "GET", f"{base}_count").text == "3"
    assert served.ask("scoped-reader", "GET", f"{base}?limit=-1").status_code == 400
    assert "secret" not in served.ask("scoped-reader", "GET", f"{base}?limit=+9&limit=8").text
    head = served.ask("scoped-reader", "HEAD", base)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(served.ask("scoped-reader", "GET", base).content)
    databases = served.ask("scoped-reader", "GET", "/api/v2/tenants/acme/databases").json()
    assert [each["name"] for each in databases] == ["web"]


# ---------------------------------------------------------------------- names that change


def test_a_renamed_collection_opens_no_hole(served: Served) -> None:
    """From the moment a rename is acknowledged, a key sees it or not by its new name alone; ids stay the same."""
    place = served.make("acme", "web", f"pages-{next(_numbers)}")
    base = "/api/v2/tenants/acme/databases/web/collections"
    for _ in range(20):
        count = f"{base}/{place.id}/count"
        assert served.ask("scoped-reader", "GET", count).status_code == 200
        hidden = f"hidden-{next(_numbers)}"
        assert served.ask("writer", "PUT", f"{base}/{place.id}", json={"new_name": hidden}).status_code == 200
        assert served.ask("scoped-reader", "GET", count).status_code == 404
        assert served.ask("scoped-writer", "PUT", f"{base}/{place.id}", json={"new_name": "pages-x"}).status_code == 404
        assert served.ask("writer", "PUT", f"{base}/{place.id}", json={"new_name": place.name}).status_code == 200
    # A name made anew is another collection: the old one's id is of nobody.
    assert served.ask("writer", "DELETE", f"{base}/{place.name}").status_code == 200
    assert served.ask("scoped-reader", "GET", f"{base}/{place.id}/count").status_code == 404
    again = served.make("acme", "web", place.name)
    assert again.id != place.id
    assert served.ask("scoped-reader", "GET", f"{base}/{again.id}/count").status_code == 200
    assert served.ask("scoped-reader", "GET", f"{base}/{place.id}/count").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b'{"new_name": "secret"}',
        b'{"new_name": "pages-1", "new_name": "secret"}',
        b'{"new_name": "secret", "new_name": "pages-1"}',
        b'{"new_name": ["pages-1"]}',
        b'{"new_name": "pages-1\\u0000", "new_name": "x"}',
        b"[" * 100_000,
        b'{"new_name": "pages-1"',
        '{"new_name": "ｐages-1"}'.encode(),
        '{"new_name": "pages-1"}'.encode("utf-16"),
    ],
)
def test_nothing_is_named_out_of_scope(served: Served, body: bytes) -> None:
    """A key cannot give what it sees a name that it does not see, however it writes it."""
    place = served.make("acme", "web", f"pages-{next(_numbers)}")
    base = "/api/v2/tenants/acme/databases/web/collections"
    headers = served.headers("scoped-writer") | {"Content-Type": "application/json"}
    renamed = served.gateway.put(f"{base}/{place.id}", content=body, headers=headers)
    assert (renamed.status_code, renamed.json()["error"]) == (403, "AuthError")
    made = served.gateway.post(base, content=body.replace(b"new_name", b"name"), headers=headers)
    assert made.status_code == 403
    assert served.bare.get(f"{base}/{place.name}").status_code == 200


def test_a_long_body_is_not_judged_by_an_old_name(served: Served) -> None:
    """A request that began while its collection was in scope is not carried out once a rename was acknowledged."""
    place = served.make("acme", "web", f"pages-{next(_numbers)}")
    base = "/api/v2/tenants/acme/databases/web/collections"
    body = b'{"ids": ["1"], "embeddings": [[1, 2, 3]], "documents": ["' + b"x" * 200_000 + b'"]}'
    for verb, sent in (("add", body), ("get", b'{"ids": ["' + b"x" * 200_000 + b'"]}')):
        assert served.ask("scoped-writer", "GET", f"{base}/{place.id}/count").status_code == 200
        with socket.create_connection(("127.0.0.1", served.gateway_process.port), 10) as wire:
            token = served.keys.tokens["scoped-writer"]
            wire.sendall(
                f"POST {base}/{place.id}/{verb} HTTP/1.1\r\nHost: x\r\nX-Chroma-Token: {token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n".encode()
                + sent[:-10]
            )
            hidden = {"new_name": f"hidden-{next(_numbers)}"}
            assert served.ask("writer", "PUT", f"{base}/{place.id}", json=hidden).status_code == 200
            wire.sendall(sent[-10:])
            assert wire.recv(100).split()[1] in (b"503", b"404")
        assert served.bare.get(f"{base}/{place.id}/count").text == "0"
        assert served.ask("writer", "PUT", f"{base}/{place.id}", json={"new_name": place.name}).status_code == 200


# ---------------------------------------------------------------------- how keys are told, and how they end


def raw(served: Served, *requests: bytes) -> list[int]:
    """The statuses of answers to requests that are sent at once, on one connection."""
    with socket.create_connection(("127.0.0.1", served.gateway_process.port), 10) as wire:
        wire.sendall(b"".join(requests))
        got, statuses = b"", []
        while len(statuses) < len(requests) and (piece := wire.recv(65536)):
            got += piece
            statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", got)]
    return statuses


def test_each_request_of_a_connection_is_its_own(served: Served) -> None:
    """Whoever asked before on a connection lends no rights to who asks next, in whatever order."""
    ask = "GET /api/v2/tenants/other HTTP/1.1\r\nHost: x\r\n{}\r\n"
    tokens = served.keys.tokens
    with_key = {
        "reader": ask.format(f"Authorization: Bearer {tokens['reader']}\r\n").encode(),
        "scoped": ask.format(f"X-Chroma-Token: {tokens['scoped-reader']}\r\n").encode(),
        "none": ask.format("").encode(),
        "wrong": ask.format("Authorization: Bearer nonsense\r\n").encode(),
    }
    status = {"reader": 200, "scoped": 404, "none": 401, "wrong": 401}
    for order in itertools.permutations(with_key):
        assert raw(served, *(with_key[who] for who in order)) == [status[who] for who in order]


@pytest.mark.parametrize("role", ["none", "wrong", "reader", "scoped-writer"])
@pytest.mark.parametrize("size_bytes", [10, 100_000, 5_000_000])
def test_a_refusal_is_heard_whatever_is_being_sent(served: Served, role: str, size_bytes: int) -> None:
    """A client that is sending a long body reads why it was refused, not that the connection broke."""
    place = served.make("other", "web", "pages-theirs")
    path = f"/api/v2/tenants/other/databases/web/collections/{place.id}/add"
    answer = served.ask(role, "POST", path, content=b"x" * size_bytes)
    assert answer.status_code == {"reader": 403, "scoped-writer": 404}.get(role, 401)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("authorization: bearer {reader}", 200),
        ("AUTHORIZATION: BEARER   {reader}  ", 200),
        ("x-chroma-token: {reader}", 200),
        ("X-Chroma-Token: {reader}\r\nAuthorization: Bearer of-the-platform", 200),
        ("X-Chroma-Token: wrong\r\nAuthorization: Bearer {reader}", 401),
        ("Authorization: Bearer {reader}\r\nAuthorization: Bearer {reader}", 401),
        ("Authorization: Bearer {reader}\r\nauthorization: Bearer {boss}", 401),
        ("X-Chroma-Token: {reader}\r\nX-Chroma-Token: {reader}", 401),
        ("Authorization: {reader}", 401),
        ("Authorization: Basic {reader}", 401),
        ("Authorization: Basic {basic}", 200),
        ("authorization: basic {basic}", 200),
        ("Authorization: Basic {basic_name}", 200),
        ("Authorization: Basic {basic}x", 401),
        ("Authorization: Basic", 401),
        ("X-Chroma-Token: {reader}\r\nAuthorization: Basic b2Y6dGhlIHBsYXRmb3Jt", 200),
        ("Authorization: Bearer", 401),
        ("Authorization:", 401),
        ("X-Chroma-Token: Bearer {reader}", 401),
        ("X-Chroma-Token: {reader},{reader}", 401),
        ("Authorization: Bearer {reader}x", 401),
        ("Authorization: Bearer sha256:0", 401),
        ("X-Chroma-Token: é", 401),
        ("Connection: x-chroma-token\r\nX-Chroma-Token: {reader}", 200),
        ("X-Chroma-Token : {reader}", 400),
    ],
)
def test_headers_that_hold_a_key(served: Served, lines: str, status: int) -> None:
    """One key, told in one way; what could be understood in two is no key."""
    reader = served.keys.tokens["reader"]
    basic, basic_name = (base64.b64encode(each.encode()).decode() for each in (f"anybody:{reader}", f"{reader}:"))
    told = lines.format(reader=reader, boss=served.keys.tokens["admin"], basic=basic, basic_name=basic_name)
    ask = f"GET /api/v2/tenants/other HTTP/1.1\r\nHost: x\r\n{told}\r\n\r\n".encode()
    assert raw(served, ask) == [status]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v2/tenants/acme/databases/web/collections/secret",
        "/api/v2/tenants/acme/databases/web/collections/%73ecret",
        "/api/v2/tenants/acme/databases/web/collections/%2573ecret",
        "/api/v2/tenants/acme/databases/web/collections/secret#pages-1",
        "/api/v2/tenants/acme/databases/web/collections/secret%23pages-1",
        "/api/v2/tenants/acme/databases/web/collections/pages-1/../secret",
        "/api/v2/tenants/acme/databases/web/collections/pages-1%2f..%2fsecret",
        "/api/v2/tenants/acme/databases/web/collections/pages-1/%2e%2e/secret",
        "/api/v2/tenants/acme/databases/web/collections//secret",
        "/api/v2/tenants/acme/databases/web/collections/secret;pages-1",
        "/api/v2/tenants/acme/databases/web/collections/secret%00pages-1",
        "/api/v2/tenants/acme/databases/web/collections/SECRET",
        "/api/v2/tenants/acme/databases/web/collections/%EF%BD%93ecret",
        "/api/v2/tenants/acme/databases/web/collections/%ff",
        "/api/v2/tenants/acme/databases/web/../web/collections/secret",
        "/api/v2/./tenants/acme/databases/web/collections/secret",
        "//api/v2/tenants/acme/databases/web/collections/secret",
        "/api/v2/collections/acme:web:secret",
        "/api/v2/collections/{secret}",
        "/api/v2/tenants/acme/databases/web/collections/by-id/{secret}",
        "/api/v2/tenants/acme/databases/web/collections/by-id/{{{secret}}}",
        "/api/v2/tenants/acme/databases/web/collections/{secret}/count",
        "/api/v2/tenants/acme/databases/web/collections/{SECRET}/count",
        "/api/v2/tenants/acme/databases/web/collections/{bare}/count",
        "/api/v2/tenants/acme/databases/web/collections/urn:uuid:{secret}/count",
        "/api/v2/tenants/acme/databases/web/collections/%7B{secret}%7D/count",
        "/api/v2/tenants/acme/databases/web/collections/pages-1/{secret}/count",
        "http://pages-1/api/v2/tenants/acme/databases/web/collections/{secret}/count",
        "/api/v2/tenants/acme/databases/web/collections/{secret}/count?/pages-1",
        "/api/v2/tenants/acme/databases/web/collections/{secret}/count#/pages-1",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_way_of_writing_a_path_leads_around_the_scope(served: Served, method: str, path: str) -> None:
    """Nothing of what is hidden comes back, however it is addressed."""
    secret = served.make("acme", "web", "secret")
    written = path.format(secret=secret.id, SECRET=secret.id.upper(), bare=secret.id.replace("-", ""))
    token = served.keys.tokens["scoped-reader"]
    ask = f"{method} {written} HTTP/1.1\r\nHost: x\r\nX-Chroma-Token: {token}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.gateway_process.port), 10) as wire:
        wire.sendall(ask.encode())
        got = b"".join(iter(lambda: wire.recv(65536), b""))
    assert int(got.split()[1]) in (400, 403, 404), got
    assert b"configuration_json" not in got


@pytest.mark.parametrize("name", ["count", "get", "by-id", "collections", "add", "pages-..", "pages-%2e", "pages-a.b"])
def test_a_collection_named_like_a_route(served: Served, name: str, tmp_path: Path) -> None:
    """Names mean nothing to the routes around them."""
    base = "/api/v2/tenants/acme/databases/web/collections"
    made = served.bare.post(base, json={"name": name})
    visible = name.startswith("pages-")
    answer = served.ask("scoped-reader", "GET", f"{base}/{name.replace('%', '%25')}")
    assert answer.status_code == (200 if visible and made.status_code == 200 else 404)


def test_the_file_is_read_anew(served: Served) -> None:
    """A key works soon after it is written down, and no longer when it is gone or its time is over; a broken file
    changes nothing."""
    url = f"{served.gateway_process.url}/api/v2/tenants/other"
    token = served.keys.add("late", "reader")

    def status() -> int:
        return httpx.get(url, headers={"X-Chroma-Token": token}).status_code

    served.gateway_process.until(lambda: status() == 200, "the new key works", 10)
    good = served.keys.path.read_text()
    served.keys.path.write_text(good[:-3])
    served.gateway_process.until(
        lambda: "is neither TOML nor JSON" in served.gateway_process.output(), "the broken file is told", 10
    )
    assert status() == 200
    assert token not in served.gateway_process.output()
    served.keys.remove("late")
    served.gateway_process.until(lambda: status() == 401, "the key that is gone does not", 10)
    ends = datetime.now(UTC) + timedelta(seconds=3)
    token = served.keys.add("short", "reader", expires=ends.isoformat())
    served.gateway_process.until(lambda: status() == 200, "it works until its end", 10)
    served.gateway_process.until(lambda: status() == 401, "it ends", 10)
    assert datetime.now(UTC) >= ends
    served.keys.remove("short")


# A client that is refused when it is made leaves its connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("header", [None, "Authorization", "X-Chroma-Token"])
def test_chromas_own_client_with_a_key(served: Served, header: str | None) -> None:
    """Both ways to give it a key work, with either header, and refusals are Chroma's own errors."""
    place = served.make("acme", "web", f"pages-{next(_numbers)}")

    def client(token: str) -> chromadb.api.ClientAPI:
        where: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": served.gateway_process.port,
            "tenant": "acme",
            "database": "web",
        }
        if header is None:
            return chromadb.HttpClient(headers={"X-Chroma-Token": token}, **where)
        settings = Settings(
            chroma_client_auth_provider="chromadb.auth.token_authn.TokenAuthClientProvider",
            chroma_client_auth_credentials=token,
            chroma_auth_token_transport_header=header,
        )
        return chromadb.HttpClient(settings=settings, **where)

    tokens = served.keys.tokens
    writer = client(tokens["scoped-writer"])
    pages = writer.get_collection(place.name, embedding_function=None)
    pages.add(ids=["1"], embeddings=[[1, 2, 3]], documents=["one"])
    assert pages.query(query_embeddings=[[1, 2, 3]], n_results=1)["ids"] == [["1"]]
    assert place.name in [each.name for each in writer.list_collections()]
    identity = writer.get_user_identity()
    assert (identity.user_id, identity.tenant, identity.databases) == ("scoped-writer", "acme", ["web"])
    served.make("acme", "web", "secret")
    with pytest.raises(NotFoundError, match=r"Collection \[secret\] does not exist"):
        writer.get_collection("secret", embedding_function=None)
    with pytest.raises(ChromaAuthError):
        writer.create_collection("secret-too", embedding_function=None)
    with pytest.raises(ChromaAuthError, match="reader"):
        client(tokens["scoped-reader"]).get_collection(place.name, embedding_function=None).add(
            ids=["2"], embeddings=[[1, 2, 3]]
        )
    with pytest.raises(AuthorizationError, match="not known"):
        client("cgw_000000000000_" + "x" * 43)
    gc.collect()


def test_admins_alone_administer(served: Served) -> None:
    """`/admin/*` wants an admin's key; the admin token is one, on the data path too."""
    for role in ROLES:
        status = httpx.get(f"{served.gateway_process.url}/admin/snapshot", headers=served.headers(role)).status_code
        assert status == (401 if role in ("none", "wrong") else 200 if role == "admin" else 403), role
    told = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    assert httpx.get(f"{served.gateway_process.url}/admin/snapshot", headers=told).status_code == 200
    assert httpx.get(f"{served.gateway_process.url}/api/v2/tenants/other", headers=told).status_code == 200
    assert httpx.get(f"{served.gateway_process.url}/healthz").status_code == 200


def test_nobody_says_where_an_admin_comes_from(served: Served) -> None:
    """No proxy is trusted here, not even one of this machine: what a client says of its address is not written down."""
    headers = served.headers("admin") | {"X-Forwarded-For": "6.6.6.6", "X-Request-Id": "from-afar"}
    assert httpx.post(f"{served.gateway_process.url}/admin/resume", headers=headers).status_code == 200
    served.gateway_process.until(lambda: '"from-afar"' in served.gateway_process.output(), "it is written", 10)
    served.gateway_process.until(
        lambda: any(
            json.loads(line)["address"] == "127.0.0.1"
            for line in served.gateway_process.output().splitlines()
            if '"stream": "audit"' in line and '"from-afar"' in line
        ),
        "the address is the peer's",
        10,
    )


def test_no_key_reaches_a_log_or_chroma(served: Served) -> None:
    """What was said of requests names keys, never tokens."""
    place = served.make("acme", "web", f"pages-{next(_numbers)}")
    path = f"/api/v2/tenants/acme/databases/web/collections/{place.name}"
    assert served.ask("scoped-reader", "DELETE", path).status_code == 403
    assert served.ask("scoped-writer", "DELETE", path).status_code == 200
    assert served.ask("wrong", "DELETE", path).status_code == 401
    told = served.headers("wrong") | {"X-Request-Id": "the-last"}
    assert served.gateway.get("/admin/snapshot", headers=told).status_code == 401
    served.gateway_process.until_logged('"the-last"')
    output = served.gateway_process.output()
    for token in (*served.keys.tokens.values(), ADMIN_TOKEN):
        assert token not in output
        assert token[-43:] not in output  # the secret, which may have any character of "_" in it
    notes = [json.loads(line) for line in output.splitlines() if '"stream": "audit"' in line]
    assert {"scoped-writer", "scoped-reader"} <= {note["who"] for note in notes}
    deleted = next(note for note in notes if note["action"] == "delete_collection" and note["status"] == 200)
    assert deleted["address"] == "127.0.0.1"
    assert deleted["path"].startswith("/api/v2/tenants/acme/")
