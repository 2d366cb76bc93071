"""The application as a whole: what comes before its routes."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from gateway.api.app import admin_application, bounded
from gateway.api.deps import Needs
from gateway.api.key_holder import KeyHolder
from gateway.auth.keyring import Keyring
from gateway.auth.scope import Role
from gateway.config import Settings
from gateway.jobs import Jobs
from gateway.vectorstore import VectorStore
from tests.keys import Keys
from tests.ports import free_port


@pytest.mark.parametrize(("method", "path"), [("PATCH", "/admin/users/default/avatars/a/b"), ("POST", "/admin/none")])
async def test_what_a_stranger_sends_is_not_read(method: str, path: str) -> None:
    """Before anybody knows whose it is, a body costs nothing: it would be parsed where all requests wait."""
    said: list[dict[str, Any]] = []

    async def application(*_: Any) -> None:
        raise AssertionError("it reached the routes")

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        said.append(message)

    holder = KeyHolder(Keyring("an-admin-token"), Role.ADMIN)
    for headers in ([], [(b"authorization", b"Bearer wrong")]):
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        await bounded(application, holder, 1)(scope, receive, send)
    assert [message["status"] for message in said if message["type"] == "http.response.start"] == [401, 401]


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """The admin routes with what they need of FastAPI, and nothing behind them."""
    keyring = Keyring("an-admin-token")
    app = admin_application(Settings(data_dir=tmp_path, chroma_port=free_port()), keyring)
    for kind in (VectorStore, Jobs):
        app.dependency_overrides[Needs(kind)] = lambda: SimpleNamespace(operations=None)
    return TestClient(
        bounded(app, KeyHolder(keyring, Role.ADMIN), 1), headers={"Authorization": "Bearer an-admin-token"}
    )


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/admin/snapshot", "GET, POST"),
        ("GET", "/admin/quiesce", "POST"),
        ("POST", "/admin/snapshot/latest", "GET, DELETE"),
        ("PUT", "/admin/jobs/7", "GET, DELETE"),
        ("POST", "/readyz", "GET"),
        ("PATCH", "/admin/users/default/image/a.png", "GET, HEAD, PUT, DELETE"),
    ],
)
def test_a_wrong_method_is_answered_with_the_right_ones(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    """In the message, and in the header Allow (RFC 9110 §15.5.6)."""
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    assert answer.json()["message"] == f"{method} {path}: this route takes {allowed}"


def test_head_is_answered_as_get(client: TestClient) -> None:
    """A health check of some load balancers asks with HEAD."""
    answer = client.head("/healthz")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ('{"lable": "x"}', "body.lable: there is no such field; did you mean label?", "GET /docs"),
        ('{"wait": true}', "body.wait: there is no such field", "GET /docs"),
        ("{'label': 'x'}", "the body is not JSON: Expecting property name", '{"label": "nightly"}'),
        ('{"label": 3}', "body.label: Input should be a valid string", "GET /docs"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(client: TestClient, body: str, message: str, hint: str) -> None:
    """The field, and the nearest one that there is."""
    answer = client.post("/admin/snapshot", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidArgumentError")
    assert answer.json()["message"].startswith(message)
    assert hint in answer.json()["hint"]


@pytest.mark.parametrize(
    ("method", "target", "message", "hint"),
    [
        ("POST", "/admin/snapshot?wiat=false", "wiat: there is no such parameter; did you mean wait?", "takes wait"),
        ("POST", "/admin/snapshot?label=x", "label: there is no such parameter; send label as a field", "takes wait"),
        (
            "GET",
            "/admin/snapshot?limt=3&after=x",
            "limt: there is no such parameter; did you mean limit?",
            "limit, after",
        ),
        ("DELETE", "/admin/jobs/7?force=true", "force: there is no such parameter", "takes no parameters"),
    ],
)
def test_a_misspelt_parameter_is_refused(client: TestClient, method: str, target: str, message: str, hint: str) -> None:
    """It would be ignored otherwise: `?wiat=false` would wait for the end of the job."""
    answer = client.request(method, target)
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidArgumentError")
    assert message in answer.json()["message"]
    assert hint in answer.json()["hint"]


@pytest.mark.parametrize("path", ["/healthz", "/docs"])
def test_health_checks_may_add_parameters(client: TestClient, path: str) -> None:
    """Load balancers and scrapers append some of their own, against caches."""
    assert client.get(f"{path}?nocache=1").status_code == 200


def test_a_scraper_hears_which_key_will_do(tmp_path: Path) -> None:
    """Not the admin's: Prometheus reads."""
    keys = Keys(tmp_path / "keys.json")
    client = TestClient(admin_application(Settings(data_dir=tmp_path, keys_file=keys.path), Keyring("an-admin-token")))
    answer = client.get("/metrics")
    assert answer.status_code == 401
    assert "a reader's will do" in answer.json()["hint"]
    assert "admin" not in answer.json()["hint"]


@pytest.mark.parametrize("path", ["/docs", "/chroma/docs"])
def test_pages_of_routes_need_no_network(client: TestClient, path: str) -> None:
    """All that such a page loads is served by this process, without a key."""
    client.headers.clear()
    page = client.get(path)
    assert page.headers["Content-Type"].startswith("text/html")
    loaded = re.findall(r"""(?:src|href|url)[=:] ?["']([^"']+)""", page.text)
    assert {"/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"} < set(loaded)
    assert not [url for url in loaded if not url.startswith(("/", "data:"))]
    script, style = client.get("/docs/swagger-ui-bundle.js"), client.get("/docs/swagger-ui.css")
    assert (script.status_code, script.headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
    assert "SwaggerUIBundle" in script.text
    assert (style.status_code, style.headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert not re.search(r"url\((?!['\"]?data:)", style.text)


def test_without_chroma_there_is_no_description_of_it(client: TestClient) -> None:
    """Its document comes from the Chroma that runs."""
    answer = client.get("/chroma/openapi.json")
    assert (answer.status_code, answer.json()["hint"]) == (503, "GET /readyz says why")


@pytest.mark.parametrize(
    ("sent", "routed"),
    [
        ("/admin/snapshot/", "/admin/snapshot"),
        ("/readyz//", "/readyz"),
        ("/", "/"),
        ("/admin/users/default/avatars/a/media/", "/admin/users/default/avatars/a/media/"),
        ("/admin/users/default/avatars/", "/admin/users/default/avatars"),
        ("/admin/users/default/image/", "/admin/users/default/image"),
    ],
)
async def test_a_slash_at_the_end_changes_nothing(sent: str, routed: str) -> None:
    """A redirect would: curl follows none and ends with 0, so a cron job would take no snapshot."""
    seen: list[str] = []

    async def application(scope: Any, *_: Any) -> None:
        seen.extend((scope["path"], scope["raw_path"].decode()))

    holder = KeyHolder(Keyring("an-admin-token"), Role.ADMIN)
    headers = [(b"authorization", b"Bearer an-admin-token")]
    scope = {"type": "http", "method": "POST", "path": sent, "raw_path": sent.encode(), "headers": headers}
    await bounded(application, holder, 1)(scope, None, None)
    assert seen == [routed, routed]


@pytest.mark.parametrize("name", ["x%0A", "x%0A/", "x%0Ay", "%0A"])
def test_a_name_with_a_line_break_is_not_taken_for_another(client: TestClient, name: str) -> None:
    """PUT would replace that document, and DELETE delete it."""
    answer = client.put(f"/admin/users/default/avatars/a/media/audio/{name}", follow_redirects=False)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("there is a line break in the path '/admin/users/default/avatars/a/")
