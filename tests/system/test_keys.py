"""Who may do what on the data path: every route, every role, in scope and out of it."""

import itertools
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import chromadb
import httpx
import pytest
from chromadb.config import Settings
from chromadb.errors import AuthorizationError, ChromaAuthError, NotFoundError

from tests.house import ADMIN_TOKEN, House, house
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
    """A house with keys and with data in and out of the scope of the scoped ones."""

    def __init__(self, built: House, keys: Keys) -> None:
        self.house, self.keys = built, keys
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
    with house(GATEWAY_KEYS_FILE=str(keys.path)) as built:
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
    elif "reader" in role and not READS.fullmatch(f"{method} {template}"):
        assert (answer.status_code, answer.json()["error"]) == (403, "AuthError")
    elif role == "scoped-writer" and (method, template) in WHOLE:
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
    if role == "scoped-reader" and not READS.fullmatch(f"{method} {template}"):
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
    if (method, template) in (("PATCH", "/api/v2/tenants/{tenant_name}"), ("POST", "/api/v2/tenants/{tenant}/databases")):
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
    """Whatever a newer Chroma adds stays closed."""
    for role in ("none", "wrong"):
        assert served.ask(role, method, path).status_code == 401
    for role in ("reader", "writer", "scoped-reader", "scoped-writer"):
        assert served.ask(role, method, path).status_code == 403
    assert served.ask("admin", method, path).status_code not in (401, 403)
