"""The console: its files, its sessions, and what a session may do."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from gateway.api.app import bounded
from gateway.api.key_holder import KeyHolder
from gateway.auth.scope import Role
from gateway.auth.sessions import LIFETIME_S
from gateway.config import Settings
from gateway.console.files import static_files
from gateway.server.admin import routes_of
from gateway.server.container import Gateway
from tests.keys import Keys

PAGES = ("overview", "timeline", "collections", "documents", "jobs", "check")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
MAX_FIRST_PAINT_BYTES = 150_000
ORIGIN = {"Origin": "http://testserver"}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    built = Keys(tmp_path / "keys.json")
    built.add("watcher", "reader")
    built.add("crawler", "writer", collections=["pages-*"])
    built.add("operator", "admin")
    return built


@pytest.fixture
def gateway(tmp_path: Path, keys: Keys) -> Gateway:
    (tmp_path / "data").mkdir()
    settings = Settings(data_dir=tmp_path / "data", store=f"file://{tmp_path}/store", keys_file=keys.path)
    return Gateway(settings, "an-admin-token")


@pytest.fixture
def client(gateway: Gateway) -> Iterator[TestClient]:
    app = bounded(routes_of(gateway), KeyHolder(gateway.keyring, Role.ADMIN), 1)
    with TestClient(app, follow_redirects=False) as built:
        yield built


def sign_in(client: TestClient, key: str, **headers: str) -> Any:
    return client.post("/console/session", json={"key": key}, headers=ORIGIN | headers)


# ---------------------------------------------------------------------- files


def test_the_root_leads_to_the_console(client: TestClient) -> None:
    """It is what people try first."""
    answer = client.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (307, "/console")
    assert client.get("/console/").headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("path", ["/console", *sorted(f"/console/{each}" for each in static_files())])
def test_every_file_has_the_strict_headers(client: TestClient, path: str) -> None:
    """No script, style or frame of elsewhere, no guessing of types, and a new version is seen at once."""
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert client.get(path, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    assert "Set-Cookie" not in answer.headers


def text_of(name: str) -> str:
    return static_files()[name].data.decode()


def modules_of(name: str) -> set[str]:
    """All modules that `name` imports in the end."""
    found, waiting = set[str](), [name]
    while waiting:
        module = waiting.pop()
        found.add(module)
        folder = module.rpartition("/")[0]
        for path in re.findall(r"""(?:from|import) "(\.[^"]+)";""", text_of(module)):
            target = path.removeprefix("./") if not path.startswith("../") else path.removeprefix("../")
            target = target if path.startswith("../") or not folder else f"{folder}/{target}"
            assert target in static_files(), f"{module} imports {path}"
            if target not in found:
                waiting.append(target)
    return found


def test_the_first_paint_is_small() -> None:
    """The page, its style, the shell and the overview, as they are sent."""
    first = {"index.html", "style.css", "icon.svg"} | modules_of("app.js") | modules_of("pages/overview.js")
    assert sum(len(static_files()[name].data) for name in first) < MAX_FIRST_PAINT_BYTES


def test_nothing_is_inline_and_nothing_is_loaded_from_elsewhere() -> None:
    """As the policy demands; a violation would only be seen in a browser."""
    page = text_of("index.html")
    assert not re.search(r"<script(?![^>]* src=\"/console/)|<style|\sstyle=|\son[a-z]+=|https?://", page)
    for target in re.findall(r"""(?:src|href)="(/console/[^"]+)\"""", page):
        assert target.removeprefix("/console/") in static_files()
    for name in static_files():
        text = re.sub(r"http://www\.w3\.org/2000/svg", "", text_of(name))
        assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]", text), name


def test_no_string_becomes_html() -> None:
    """Names, documents and metadata are anyone's text: they become text nodes."""
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser|srcdoc|setHTML"
    found = {name for name in static_files() if name.endswith(".js") and re.search(sinks, text_of(name))}
    assert found == set()


def test_every_page_is_there_and_leads_somewhere() -> None:
    """The navigation, the list in the shell and the modules are the same pages; links lead to one of them."""
    modules = {name for name in static_files() if name.startswith("pages/")}
    assert {f"pages/{page}.js" for page in PAGES} <= modules
    assert tuple(re.findall(r'<li><a href="#/([a-z]+)">', text_of("index.html"))) == PAGES
    listed = re.search(r"const PAGES = \[([^\]]+)\]", text_of("app.js"))
    assert listed is not None
    assert tuple(re.findall(r'"([a-z]+)"', listed[1])) == PAGES
    for name in static_files():
        if name.endswith(".js"):
            assert set(re.findall(r'["`]#/([a-z]+)', text_of(name))) <= set(PAGES), name
            modules_of(name)
    for page in PAGES:
        text = text_of(f"pages/{page}.js")
        assert re.search(r"^export const title = ", text, re.MULTILINE)
        assert re.search(r"^export (async )?function mount\(", text, re.MULTILINE)


def test_what_is_not_there_is_not_found(client: TestClient) -> None:
    """No path leads out of the folder."""
    for path in ("/console/none.js", "/console/../__init__.py", "/console/%2e%2e/__init__.py", "/console/pages"):
        assert client.get(path).status_code == 404


# ---------------------------------------------------------------------- sign-in


def test_the_cookie_of_a_session_is_held_tightly(client: TestClient) -> None:
    """No script reads it, no other site sends it, and it ends by itself."""
    answer = sign_in(client, "an-admin-token")
    assert answer.json() == {"name": "admin", "role": "admin", "left_s": LIFETIME_S, "user_id": "default"}
    cookie = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={LIFETIME_S}"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert "an-admin-token" not in cookie
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("headers", [{"Origin": "https://testserver"}, {"X-Forwarded-Proto": "https"}])
def test_behind_tls_the_cookie_is_secure(client: TestClient, headers: dict[str, str]) -> None:
    """As the browser says with its origin, or the proxy that ends TLS. Its name lets no other host set it."""
    cookie = sign_in(client, "an-admin-token", **headers).headers["Set-Cookie"]
    assert cookie.startswith("__Host-chroma-gateway-session=cgs_")
    assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Domain" not in cookie


def test_behind_tls_a_sign_out_removes_the_cookie_too(client: TestClient, gateway: Gateway) -> None:
    """Browsers take a cookie of this name only if it is secure, also when it is removed."""
    session, _ = gateway.keyring.begin_session("an-admin-token")
    cookie = {"Cookie": f"__Host-chroma-gateway-session={session}"}
    assert client.get("/console/session", headers=cookie).json()["role"] == "admin"
    removed = client.delete("/console/session", headers=ORIGIN | cookie).headers["Set-Cookie"]
    assert removed.startswith('__Host-chroma-gateway-session="";')
    assert {"Max-Age=0", "Secure", "Path=/"} <= set(removed.split("; "))
    answer = client.get("/console/session", headers=cookie)
    assert (answer.json()["role"], answer.headers["Set-Cookie"]) == (None, removed)


@pytest.mark.parametrize(
    ("key", "status"),
    [("watcher", 200), ("operator", 200), ("crawler", 403), ("unknown", 401)],
)
def test_a_key_that_sees_everything_signs_in(client: TestClient, keys: Keys, key: str, status: int) -> None:
    """A key for a part of the data would see nothing of what the console shows."""
    answer = sign_in(client, keys.tokens.get(key, "cgw_unknown"))
    assert answer.status_code == status
    assert ("Set-Cookie" in answer.headers) is (status == 200)
    assert ("cgw_" in answer.text) is False


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "https://evil.example.com"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)
def test_another_page_neither_signs_in_nor_out(client: TestClient, headers: dict[str, str]) -> None:
    """Else a stolen page could sign a person in with the key of its author."""
    assert client.post("/console/session", json={"key": "an-admin-token"}, headers=headers).status_code == 403
    sign_in(client, "an-admin-token")
    assert client.delete("/console/session", headers=headers).status_code == 403
    assert client.get("/console/session").json()["role"] == "admin"


def test_a_form_of_another_page_is_no_sign_in(client: TestClient) -> None:
    """It cannot send JSON, and nothing else is read."""
    answer = client.post("/console/session", data={"key": "an-admin-token"}, headers=ORIGIN)
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (400, False)


def test_a_sign_out_ends_the_session(client: TestClient) -> None:
    """In the browser, and for who has copied the cookie."""
    sign_in(client, "an-admin-token")
    stolen = dict(client.cookies)
    assert client.delete("/console/session", headers=ORIGIN).status_code == 204
    assert not client.cookies
    assert client.get("/console/session").json()["role"] is None
    client.cookies.update(stolen)
    answer = client.get("/console/session")
    assert answer.json()["role"] is None
    assert "Max-Age=0" in answer.headers["Set-Cookie"]


def test_another_sign_in_ends_the_session_before(client: TestClient, gateway: Gateway, keys: Keys) -> None:
    """A browser has one."""
    sign_in(client, "an-admin-token")
    sign_in(client, keys.tokens["watcher"])
    assert len(gateway.keyring.sessions) == 1
    assert client.get("/console/session").json()["name"] == "watcher"


# ---------------------------------------------------------------------- what a session may do

SEEN_BY_READERS = {
    "/admin/status",
    "/admin/history",
    "/admin/databases",
    "/admin/collections",
    "/admin/collections/{collection}",
    "/admin/snapshot",
    "/admin/snapshot/{snapshot_id}",
    "/admin/jobs",
    "/admin/jobs/{job_id}",
    "/admin/jobs/{job_id}/events",
    "/admin/users/{user_id}/avatars",
    "/admin/users/{user_id}/image",
    "/admin/check",
}


async def test_a_reader_sees_and_an_admin_acts(gateway: Gateway, keys: Keys) -> None:
    """Of all routes of the admin API, a reader's session gets those that show, and a reader's key in a header none."""
    app = routes_of(gateway)
    routes = [
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        if path.startswith("/admin/")
        for method in methods
    ]
    assert len(routes) > 30
    holder = KeyHolder(gateway.keyring, Role.ADMIN)
    session, _ = gateway.keyring.begin_session(keys.tokens["watcher"])
    cookie = {"Cookie": f"chroma-gateway-session={session}", "Sec-Fetch-Site": "same-origin"}
    for method, path in routes:
        assert passes(holder, method, path, cookie) is (method == "GET" and path in SEEN_BY_READERS), path
        assert not passes(holder, method, path, keys.bearer("watcher")), path
        assert not passes(holder, method, path, keys.bearer("crawler")), path
        assert passes(holder, method, path, keys.bearer("operator")), path


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("avatars/a/vectorstore_data", True),
        ("avatars/a/media/original/text/", True),
        ("avatars/a/vectorstore_data/diary.md", False),
        ("avatars/a/media/original/text/diary.md", False),
        ("image/me.png", False),
        ("image/", True),
    ],
)
async def test_a_reader_sees_names_of_documents_and_not_what_is_in_them(
    gateway: Gateway, keys: Keys, path: str, seen: bool
) -> None:
    """The originals may be more private than what was made of them."""
    holder = KeyHolder(gateway.keyring, Role.ADMIN)
    session, _ = gateway.keyring.begin_session(keys.tokens["watcher"])
    cookie = {"Cookie": f"chroma-gateway-session={session}", "Sec-Fetch-Site": "same-origin"}
    assert passes(holder, "GET", f"/admin/users/default/{path}", cookie) is seen


def passes(holder: KeyHolder, method: str, path: str, headers: dict[str, str]) -> bool:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return holder.lets_pass(Request({"type": "http", "method": method, "path": path, "headers": raw, "state": {}}))


def test_the_cookie_is_a_key_for_the_admin_routes(client: TestClient, keys: Keys) -> None:
    """For what its key may do, from our own pages, and not from others."""
    sign_in(client, keys.tokens["watcher"])
    assert client.get("/admin/jobs").status_code == 200
    assert client.get("/admin/jobs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 401
    assert client.delete("/admin/jobs/7", headers=ORIGIN).status_code == 403
    sign_in(client, "an-admin-token")
    assert client.delete("/admin/jobs/7", headers=ORIGIN).status_code == 404
    assert client.delete("/admin/jobs/7").status_code == 401
    assert client.delete("/admin/jobs/7", headers={"Origin": "https://evil.example.com"}).status_code == 401


async def test_ended_sessions_are_told_where_to_sign_in(client: TestClient, gateway: Gateway) -> None:
    """The hint is for a person at a browser."""
    sign_in(client, "an-admin-token")
    gateway.keyring.sessions.end(client.cookies["chroma-gateway-session"])
    answer = client.get("/admin/jobs")
    assert (answer.status_code, answer.json()["hint"]) == (401, "sign in again at /console")


# ---------------------------------------------------------------------- live events


async def stream(gateway: Gateway, headers: dict[str, str]) -> list[dict[str, Any]]:
    """All that the application sends for GET /console/events, until the stream ends. Nobody disconnects."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/console/events",
        "raw_path": b"/console/events",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "state": {},
    }

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(routes_of(gateway)(scope, receive, send), 20)
    return sent


async def test_the_stream_ends_with_the_session(gateway: Gateway, keys: Keys) -> None:
    """With an event that says so: a page that stays open is no longer than its session."""
    session, _ = gateway.keyring.begin_session(keys.tokens["watcher"])

    async def sign_out() -> None:
        while gateway.feed.subscribers == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        gateway.keyring.sessions.end(session)

    ending = asyncio.create_task(sign_out())
    sent = await stream(gateway, {"Cookie": f"chroma-gateway-session={session}"})
    await ending
    body = b"".join(each.get("body", b"") for each in sent).decode()
    assert sent[0]["status"] == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in sent[0]["headers"]
    assert body.startswith("event: overview\ndata: {")
    assert body.endswith("event: end\ndata: {}\n\n")
    assert gateway.feed.subscribers == 0


async def test_the_stream_ends_when_the_process_ends(gateway: Gateway, keys: Keys) -> None:
    """Open consoles do not hold up the end."""

    async def close() -> None:
        while gateway.feed.subscribers == 0:
            await asyncio.sleep(0.01)
        gateway.feed.close()

    ending = asyncio.create_task(close())
    sent = await stream(gateway, keys.bearer("watcher"))
    await ending
    assert sent[-1]["more_body"] is False
    assert (await stream(gateway, keys.bearer("watcher")))[0]["status"] == 503


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_the_stream_wants_a_key(gateway: Gateway, headers: dict[str, str]) -> None:
    """Also on this machine, as /admin/ does."""
    assert (await stream(gateway, headers))[0]["status"] == 401
